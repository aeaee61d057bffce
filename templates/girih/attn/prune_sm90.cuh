// The consumers of a Hopper kernel that prunes. They go through runs of key tiles that are kept as
// ConsumerSm90's do: Q * K^T of the next tile and P * V of this one at once, the vote on the next
// tile and the beginning of its softmax while the latter runs. Between such runs a tile costs
// Q * K^T and the vote, and V is not copied; behind a run it is, before the vote has ended the run.
//
// A warpgroup that waited for the other's vote would do its product at the same time as that, and
// neither would do anything beside it. So one that does not want a tile goes on to the next
// product, and comes back to the tile if the other wants it. K of the tile stays as long. Between
// tiles that are likely skipped (SkippedTiles) it does not wait for its own warps' votes either, if
// such guesses have been right for long (kTrusted).
#pragma once

#include "girih/attn/fragments_sm90.cuh"
#include "girih/attn/lazy_softmax.cuh"
#include "girih/attn/prune.cuh"
#include "girih/attn/ring.cuh"
#include "girih/attn/scores.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"

namespace girih {

// Config has kPrune.
template <class Config>
struct PrunedConsumer : FragmentsSm90<Config> {
  using Fragments = FragmentsSm90<Config>;
  using Fragments::accumulate, Fragments::score;
  using Fragments::cap, Fragments::find_mask, Fragments::hide, Fragments::modify;
  using Fragments::clear, Fragments::stage_output;
  using Fragments::kBlockM, Fragments::kBlockN, Fragments::kKeyFragments, Fragments::kLayout;
  using Fragments::kNumQStages, Fragments::kNumStages, Fragments::kNumWorks;
  using Fragments::kWarpgroupBarrier;
  using Fragments::plain_scale_log2, Fragments::score_scale_log2;
  using typename Fragments::Classes, typename Fragments::Control;
  using typename Fragments::Mask, typename Fragments::Tile;
  using typename Fragments::Output, typename Fragments::Probabilities, typename Fragments::Scores;
  using typename Fragments::Visit, typename Fragments::Work;
  using Keys = Ring<kNumStages>;
  using Softmax = LazySoftmax<Fragments>;
  // What of a tile that the warpgroup does not want it has not released yet.
  enum class Unwanted : int { kNone, kKeys, kKeysAndValues };
  // Where a tile is likely skipped, the warpgroup may go on before its own warps have voted: a
  // wrong guess costs two products, a right one saves a wait, if the next product is long enough to
  // hide it. Guesses are trusted behind so many skipped tiles.
  static constexpr bool kGuesses = kBlockN >= 128;
  static constexpr uint32 kTrusted = 32;
  static constexpr bool kModifies = kNaturalScores<Classes>;

  const FwdParams& params;
  Control& control;
  unsigned char* const shared_bytes;
  const int warpgroup;

  const uint32 shared = shared_address(shared_bytes);
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  Keys keys = {};  // from the tile on that the warpgroup may come back to, if there is one
  Keys values = {};
  Tile tile = {};                       // the latest whose scores were begun
  Unwanted unwanted = Unwanted::kNone;  // of the latest, to which the warpgroup may come back
  bool begun = false;                   // whether a tile of the query tile was used
  uint32 count = 0;                     // of query tiles
  uint32 votes = 0;
  uint32 skipped = 0;      // tiles since a run of kept ones began with one that was likely skipped
  float threshold = 0.0f;  // the query tile's
  int rows = 0;            // from the thread's first one on, that exist
  Scores scores = {};
  Probabilities probabilities = {};
  Output output = {};
  Softmax softmax;
  float scale_log2;

  __device__ __forceinline__ const Work& work() const { return control.work[count % kNumWorks]; }

  __device__ __forceinline__ bool may_return() const { return unwanted != Unwanted::kNone; }

  __device__ __forceinline__ bool is_last() const { return (tile.flags & kLastVisit) != 0; }

  // Of the key tile there.
  __device__ __forceinline__ void start_scores(const Keys& at) {
    wait(control.k_full[at.stage], at.parity);
    score(scores,
          RowOperand<kBlockM>(shared + count % kNumQStages * kLayout.q_stage_bytes +
                              warpgroup * 64 * kPanelRowBytes),
          shared + kLayout.k_offset + at.stage * kLayout.k_stage_bytes);
    const Visit& visit = control.tiles[at.stage];
    tile = {visit.flags, visit.boxes[0]};
  }

  __device__ __forceinline__ void release_values() {
    release(control.v_empty[values.stage], lane);
    values.advance();
  }

  __device__ __forceinline__ void release_keys() {
    release(control.k_empty[keys.stage], lane);
    keys.advance();
  }

  // Whether the warpgroup wants a tile, by scores that no modifier has seen: a warp whose own reach
  // the threshold does not wait for other warps. Behind a tile that was kept a quarter of them
  // mostly tells.
  template <bool kBehindKept>
  __device__ __forceinline__ bool vote() {
    const float scale = kModifies ? plain_scale_log2(params, work().softcap[0]) : scale_log2;
    constexpr int kAll = kKeyFragments, kSome = kBehindKept ? kAll / 4 : kAll;
    bool own = __any_sync(0xffffffff, reaches<kSome>(scores, rows, scale, threshold));
    if (kSome < kAll && !own) {
      own = __any_sync(0xffffffff, reaches<kAll>(scores, rows, scale, threshold));
    }
    const uint32 number = votes++;
    control.votes.cast(warpgroup, number, own, lane);
    const bool trusts = kGuesses && !kBehindKept && skipped >= kTrusted;
    if (trusts && (tile.flags & kLikelySkipped)) return false;  // all warps, whatever they want
    return own || control.votes.wants(warpgroup, number);
  }

  // Behind that product: takes the key tile and tells whether it is kept for all that the warpgroup
  // knows; it is if it has come back to it. Then its scores are ready for the softmax. The vote
  // comes before modifiers, and looks at what the mask shows alone; behind them the mask must hide
  // again what they made of -inf.
  template <bool kBehindKept>
  __device__ __forceinline__ bool take_tile(bool has_returned = false) {
    pin_registers(scores);
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
    if ((tile.flags & kMaySkip) && !has_returned && !vote<kBehindKept>()) {
      unwanted = kBehindKept ? Unwanted::kKeysAndValues : Unwanted::kKeys;
      return false;
    }
    release_keys();
    if constexpr (kModifies) {
      modify(scores, params, work(), tile, warpgroup, warp_row, lane);
      if (masked) hide(scores, seen, lane);
    }
    return true;
  }

  // Whether the tile that the warpgroup does not want is kept, by the other's vote; or by its own
  // one, if it went on before that.
  __device__ __forceinline__ bool must_return() {
    const bool has_values = unwanted == Unwanted::kKeysAndValues;
    unwanted = Unwanted::kNone;
    if (kGuesses ? control.votes.keep(votes - 1) : control.votes.wants(1 - warpgroup, votes - 1)) {
      return true;
    }
    ++skipped;
    release_keys();
    if (has_values) {
      // Or the next copy would begin before this one has ended, and a warp that had not seen its
      // phase would take it for the next one's.
      wait(control.v_full[values.stage], values.parity);
      release_values();
    }
    return false;
  }

  __device__ __forceinline__ void start_values() {
    wait(control.v_full[values.stage], values.parity);
    accumulate(output, probabilities,
               shared + kLayout.v_offset + values.stage * kLayout.v_stage_bytes, true);
  }

  __device__ __forceinline__ void finish_values() {
    wgmma_wait<0>();
    pin_registers(output);
    release_values();
  }

  // Passes over tiles that are skipped; false when the query tile's last one was. The other's vote
  // on a tile is looked for while the product of the next one is under way, which is done once more
  // if the warpgroup must return.
  __device__ __forceinline__ bool find_kept() {
    bool returns = false;
    while (true) {
      if (is_last() && !returns) {
        if (!may_return() || !must_return()) return false;
        returns = true;
      }
      Keys at = keys;
      if (may_return()) at.advance();
      start_scores(at);
      const bool turns_back = may_return() && must_return();
      wgmma_wait<0>();
      if (!turns_back && take_tile<false>(returns)) {
        if (tile.flags & kLikelySkipped) skipped = 0;
        return true;
      }
      returns = turns_back;
    }
  }

  // From a tile that is kept, whose scores are known, to one that is not; false when there is none.
  __device__ __forceinline__ bool use_kept() {
    typename Softmax::Early early;
    bool must_follow = true;
    if (begun) {
      softmax.find_early(early, scores, scale_log2);
      must_follow = softmax.find_late(probabilities, early, scores, scale_log2);
    }
    while (true) {
      if (must_follow) softmax.follow(probabilities, output, begun, scores, scale_log2);
      begun = true;
      do {
        if (is_last()) {
          start_values();
          finish_values();
          return false;
        }
        start_scores(keys);
        start_values();
        wgmma_wait<1>();
        if (!take_tile<true>()) {
          finish_values();
          return true;
        }
        softmax.find_early(early, scores, scale_log2);
        pin_registers(early.p);
        finish_values();
        must_follow = softmax.find_late(probabilities, early, scores, scale_log2);
      } while (!must_follow);
    }
  }

  __device__ __forceinline__ void run() {
    for (;; ++count) {
      const auto queries = ring_at<kNumQStages>(count);
      wait(control.q_full[queries.stage], queries.parity);
      if (work().first_row < 0) return;
      scale_log2 = score_scale_log2(params, work().softcap[0]);
      clear(output);
      softmax.reset();
      tile = {};  // not the last one any more
      begun = false;
      threshold = work().rule.threshold;
      rows = work().geometry.seqlen_q - work().first_row_of(warpgroup) - warp_row - lane / 4;
      while (find_kept() && use_kept()) {
      }
      // Q's rows have been read. The warpgroup is found once more, or it would be spilled.
      named_barrier_sync<128>(kWarpgroupBarrier + static_cast<int>(fresh_thread_index() / 128) - 1);
      stage_output(shared_bytes + queries.stage * kLayout.q_stage_bytes, params, work(), output,
                   softmax);
      fence_proxy_async();
      release(control.out_full[queries.stage], lane);
      release(control.work_empty[count % kNumWorks], lane);
    }
  }
};

}  // namespace girih
