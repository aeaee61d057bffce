// The consumers of a Hopper kernel that does not prune, a warpgroup each: their way through the key
// tiles of one query tile after the other.
#pragma once

#include "girih/attn/fragments_sm90.cuh"
#include "girih/attn/lazy_softmax.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/ring.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"

namespace girih {

template <class Config>
struct ConsumerSm90 : FragmentsSm90<Config> {
  using Fragments = FragmentsSm90<Config>;
  using Fragments::accumulate, Fragments::score;
  using Fragments::cap, Fragments::find_mask, Fragments::hide, Fragments::hide_boxes,
      Fragments::modify;
  using Fragments::gathered_of, Fragments::kGathers, Fragments::kTellsBoxes;
  using Fragments::kBlockM, Fragments::kBlockN, Fragments::kBoxes, Fragments::kLayout;
  using Fragments::kMostPassed, Fragments::kWarpgroupBarrier;
  using Fragments::kNumQStages, Fragments::kNumStages, Fragments::kNumWorks;
  using Fragments::score_scale_log2, Fragments::stage_output;
  using typename Fragments::Control, typename Fragments::Gather;
  using typename Fragments::Mask, typename Fragments::Tile;
  using typename Fragments::Output, typename Fragments::Probabilities, typename Fragments::Scores;
  using typename Fragments::Visit, typename Fragments::Work;
  using Softmax = LazySoftmax<Fragments>;

  static __device__ __forceinline__ void run(const FwdParams& params, Control& control,
                                             unsigned char* shared_bytes, int warpgroup) {
    const uint32 shared = shared_address(shared_bytes);
    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 % 4 * 16;
    const auto k_tile = [&](int stage) {
      return shared + kLayout.k_offset + stage * kLayout.k_stage_bytes;
    };
    const auto v_tile = [&](int stage) {
      return shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    };
    Ring<kNumStages> keys, values;
    int passed = 0;  // key tiles whose V is to be released after that of `values`
    Tile tile{};
    uint32 count = 0;  // of query tiles
    Scores scores = {};
    Probabilities probabilities = {};
    Output output = {};
    bool begun = false;  // the query tile's output
    Softmax softmax;
    float scale_log2;

    const auto work = [&]() -> const Work& { return control.work[count % kNumWorks]; };
    const auto start_values = [&] {
      accumulate(output, probabilities, v_tile(values.stage), begun);
      begun = true;
    };
    const auto release_values = [&] {
      release(control.v_empty[values.stage], lane);
      values.advance();
    };
    const auto release_passed = [&] {
      for (; passed > 0; --passed) {
        wait(control.v_full[values.stage], values.parity);
        release_values();
      }
    };
    const auto finish_tile = [&](uint32 finished) {
      const int stage = finished % kNumQStages;
      const int work_stage = finished % kNumWorks;
      release_values();
      named_barrier_sync<128>(kWarpgroupBarrier + warpgroup);  // Q's rows have been read
      stage_output(shared_bytes + stage * kLayout.q_stage_bytes, params, control.work[work_stage],
                   output, softmax);
      fence_proxy_async();
      release(control.out_full[stage], lane);
      release(control.work_empty[work_stage], lane);
    };

    const auto read_tile = [&] {
      const Visit& visit = control.tiles[keys.stage];
      return Tile{visit.flags, visit.boxes[lane % kBoxes]};
    };
    // The next key tile that the warpgroup's rows see; false when the query tile has none. Others
    // are passed over: their K is released here, their V in its turn.
    const auto next_tile = [&] {
      while (true) {
        wait(control.k_full[keys.stage], keys.parity);
        tile = read_tile();
        if (kMostPassed == 0 || kind_of(tile.flags, warpgroup) != 0) return true;
        release(control.k_empty[keys.stage], lane);
        keys.advance();
        ++passed;
        if (tile.flags & kLastVisit) return false;
      }
    };
    const auto start_scores = [&] {
      score(scores,
            RowOperand<kBlockM>(shared + count % kNumQStages * kLayout.q_stage_bytes +
                                warpgroup * 64 * kPanelRowBytes),
            k_tile(keys.stage));
    };
    const auto finish_scores = [&](const typename Gather::Seen* given) {
      cap(scores, params, work(), warpgroup);
      modify(scores, params, work(), tile, warpgroup, warp_row, lane);
      find_mask(work(), tile, given, warpgroup, warp_row, lane,
                [&](const Mask& mask) { hide(scores, mask, lane); });
      if constexpr (kTellsBoxes) hide_boxes(scores, tile, warpgroup);
    };
    const auto take_scores = [&] {
      pin_registers(scores);
      if constexpr (kGathers) {  // masks lie in K's stages
        finish_scores(&gathered_of(control).tiles[keys.stage]);
      }
      release(control.k_empty[keys.stage], lane);
      keys.advance();
      if constexpr (!kGathers) finish_scores(nullptr);
    };
    const auto next_query_tile = [&] {
      const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
      wait(control.q_full[queries.stage], queries.parity);
      return work().first_row >= 0 && next_tile();
    };

    for (bool under_way = false;; under_way = true) {
      // From one query tile to the next: where Q has another stage, its first product beside the
      // storing of this one's output. Before the first and after the last query tile one of the
      // products is of what happens to lie there, and nobody looks at it: ptxas serialises wgmma
      // under conditions, and code costs compile time.
      constexpr bool kBeside = kNumQStages > 1;
      if (under_way) {
        ++count;
        wait(control.v_full[values.stage], values.parity);
      }
      start_values();
      bool another;
      const auto begin_query_tile = [&] {
        another = next_query_tile();
        start_scores();
      };
      if constexpr (kBeside) begin_query_tile();
      wgmma_wait<kBeside ? 1 : 0>();
      pin_registers(output);
      if (under_way) finish_tile(count - 1);
      if constexpr (!kBeside) begin_query_tile();
      wgmma_wait<0>();
      if (!another) {
        release_passed();
        return;
      }

      begun = false;
      scale_log2 = score_scale_log2(params, work().softcap[Work::head_of(warpgroup)]);
      release_passed();
      take_scores();
      softmax.reset();
      bool must_follow = true;
      while (true) {
        if (must_follow) softmax.follow(probabilities, output, begun, scores, scale_log2);
        release_passed();
        if ((tile.flags & kLastVisit) || !next_tile()) break;
        bool straight_on;  // to a key tile that the warpgroup sees
        do {
          start_scores();
          tile = read_tile();
          wait(control.v_full[values.stage], values.parity);
          start_values();
          wgmma_wait<1>();
          take_scores();
          typename Softmax::Early early;
          softmax.find_early(early, scores, scale_log2);
          pin_registers(early.p);
          // The wait also holds ptxas, which would wait for the output before any exponential.
          straight_on = kMostPassed == 0 ? (tile.flags & kLastVisit) == 0
                                         : passed == 0 && sees_next(tile.flags, warpgroup);
          if (straight_on) wait(control.k_full[keys.stage], keys.parity);
          wgmma_wait<0>();
          pin_registers(output);
          release_values();
          must_follow = softmax.find_late(probabilities, early, scores, scale_log2);
        } while (straight_on && !must_follow);
      }
    }
  }
};

}  // namespace girih
