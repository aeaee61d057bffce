// The consumers of a Hopper kernel that prunes. They go through runs of key tiles that are kept as
// ConsumerSm90's do: Q * K^T of the next tile and P * V of this one at once, the decision on the
// next tile and its softmax while the latter runs. The copy of a V, which nobody starts before its
// tile is known to be kept, has as long. Between such runs a tile costs Q * K^T and the decision.
#pragma once

#include "girih/attn/fragments_sm90.cuh"
#include "girih/attn/prune.cuh"
#include "girih/attn/ring.cuh"
#include "girih/attn/scores.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"

namespace girih {

// Config has kPrune.
template <class Config>
struct PrunedConsumer : FragmentsSm90<Config> {
  using Fragments = FragmentsSm90<Config>;
  using Fragments::accumulate, Fragments::pack_probabilities, Fragments::score;
  using Fragments::cap, Fragments::find_mask, Fragments::hide, Fragments::modify;
  using Fragments::clear, Fragments::rescale, Fragments::stage_output;
  using Fragments::kBlockM, Fragments::kLayout, Fragments::kWarpgroupBarrier;
  using Fragments::kNumQStages, Fragments::kNumStages, Fragments::kNumWorks;
  using Fragments::plain_scale_log2, Fragments::score_scale_log2;
  using typename Fragments::Classes, typename Fragments::Control;
  using typename Fragments::Mask, typename Fragments::Tile;
  using typename Fragments::Output, typename Fragments::Probabilities, typename Fragments::Scores;
  using typename Fragments::Visit, typename Fragments::Work;
  static constexpr bool kModifies = kNaturalScores<Classes>;

  const FwdParams& params;
  Control& control;
  unsigned char* const shared_bytes;
  const int warpgroup;

  const uint32 shared = shared_address(shared_bytes);
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  Ring<kNumStages> keys = {}, values = {};
  Tile tile = {};         // the latest whose scores were begun
  bool may_skip = false;  // it
  uint32 count = 0;       // of query tiles
  uint32 votes = 0;
  PruneRule rule = {};  // the query tile's
  int rows = 0;         // from the thread's first one on, that exist
  Scores scores = {};
  Probabilities probabilities = {};
  Output output = {};
  LazySoftmax softmax;
  float scale_log2;

  __device__ __forceinline__ const Work& work() const { return control.work[count % kNumWorks]; }

  __device__ __forceinline__ bool is_last() const { return (tile.flags & kLastVisit) != 0; }

  // Of the next key tile.
  __device__ __forceinline__ void start_scores() {
    wait(control.k_full[keys.stage], keys.parity);
    const Visit& visit = control.tiles[keys.stage];
    tile = {visit.flags, visit.boxes[0]};
    may_skip = rule.may_skip(tile.box);
    score(scores,
          RowOperand<kBlockM>(shared + count % kNumQStages * kLayout.q_stage_bytes +
                              warpgroup * 64 * kPanelRowBytes),
          shared + kLayout.k_offset + keys.stage * kLayout.k_stage_bytes);
  }

  // Behind that product: takes the key tile and tells whether it is kept. Then its scores are ready
  // for the softmax. The decision comes before modifiers, and looks at what the mask shows alone;
  // behind them the mask must hide again what they made of -inf.
  __device__ __forceinline__ bool take_tile() {
    pin_registers(scores);
    release(control.k_empty[keys.stage], lane);
    keys.advance();
    cap(scores, params, work(), warpgroup);
    bool masked = false;
    Mask seen;
    find_mask(work(), tile, nullptr, warpgroup, warp_row, lane, [&](const Mask& mask) {
      hide(scores, mask, lane);
      if constexpr (kModifies) {
        masked = true;
        seen = mask;
      }
    });
    if (may_skip) {
      const float scale = kModifies ? plain_scale_log2(params, work().softcap[0]) : scale_log2;
      const bool own = reaches(scores, rows, scale, rule.threshold);
      if (!control.votes.vote(votes++, own, lane)) return false;
    }
    if constexpr (kModifies) {
      modify(scores, params, work(), tile, warpgroup, warp_row, lane);
      if (masked) hide(scores, seen, lane);
    }
    return true;
  }

  __device__ __forceinline__ void start_values() {
    wait(control.v_full[values.stage], values.parity);
    accumulate(output, probabilities,
               shared + kLayout.v_offset + values.stage * kLayout.v_stage_bytes);
  }

  __device__ __forceinline__ void finish_values() {
    wgmma_wait<0>();
    pin_registers(output);
    release(control.v_empty[values.stage], lane);
    values.advance();
  }

  // Passes over tiles that are skipped; false when the query tile's last one was.
  __device__ __forceinline__ bool find_kept() {
    do {
      start_scores();
      wgmma_wait<0>();
      if (take_tile()) return true;
    } while (!is_last());
    return false;
  }

  // From a tile that is kept, whose scores are known, to one that is not; false when there is none.
  __device__ __forceinline__ bool use_kept() {
    float shrink[2];
    softmax.update(scores, scale_log2, shrink);
    pin_registers(scores);
    if (softmax.moved(shrink)) rescale(output, shrink);
    pack_probabilities(probabilities, scores);
    while (!is_last()) {
      start_scores();
      start_values();
      wgmma_wait<1>();
      if (!take_tile()) {
        finish_values();
        return !is_last();
      }
      softmax.update(scores, scale_log2, shrink);
      pin_registers(scores);
      const bool moved = softmax.moved(shrink);
      finish_values();
      if (moved) rescale(output, shrink);
      pack_probabilities(probabilities, scores);
    }
    start_values();
    finish_values();
    return false;
  }

  __device__ __forceinline__ void run() {
    for (;; ++count) {
      const auto queries = ring_at<kNumQStages>(count);
      wait(control.q_full[queries.stage], queries.parity);
      if (work().first_row < 0) return;
      scale_log2 = score_scale_log2(params, work().softcap[0]);
      clear(output);
      softmax.reset();
      rule = work().rule;
      rows = work().geometry.seqlen_q - work().first_row_of(warpgroup) - warp_row - lane / 4;
      while (find_kept() && use_kept()) {
      }
      named_barrier_sync<128>(kWarpgroupBarrier + warpgroup);  // Q's rows have been read
      stage_output(shared_bytes + queries.stage * kLayout.q_stage_bytes, params, work(), output,
                   softmax);
      fence_proxy_async();
      release(control.out_full[queries.stage], lane);
      release(control.work_empty[count % kNumWorks], lane);
    }
  }
};

}  // namespace girih
