// The consumers of a Hopper kernel that prunes. They go through runs of key tiles that are kept as
// FwdSm90's others do: Q * K^T of the next tile and P * V of this one at once, the decision on the
// next tile and its softmax while the latter runs. The copy of a V, which nobody starts before its
// tile is known to be kept, has as long. Between such runs a tile costs Q * K^T and the decision.
#pragma once

#include "girih/attn/prune.cuh"
#include "girih/attn/scores.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"

namespace girih {

// Kernel is FwdSm90 of a Config with kPrune.
template <class Kernel>
struct PrunedConsumer {
  using Scores = typename Kernel::Scores;
  using Tile = typename Kernel::Tile;
  static constexpr bool kModifies = kNaturalScores<typename Kernel::Classes>;

  const FwdParams& params;
  typename Kernel::Control& control;
  unsigned char* const shared_bytes;
  const int warpgroup;

  const uint32 shared = shared_address(shared_bytes);
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  typename Kernel::template Ring<Kernel::kNumStages> keys = {}, values = {};
  Tile tile = {};         // the latest whose scores were begun
  bool may_skip = false;  // it
  uint32 count = 0;       // of query tiles
  uint32 votes = 0;
  PruneRule rule = {};  // the query tile's
  int rows = 0;         // from the thread's first one on, that exist
  Scores scores = {};
  typename Kernel::Probabilities probabilities = {};
  typename Kernel::Output output = {};
  LazySoftmax softmax;
  float scale_log2;

  __device__ __forceinline__ const typename Kernel::Work& work() const {
    return control.work[count % Kernel::kNumWorks];
  }

  __device__ __forceinline__ bool is_last() const { return (tile.flags & Kernel::kLastVisit) != 0; }

  // Of the next key tile.
  __device__ __forceinline__ void start_scores() {
    Kernel::wait(control.k_full[keys.stage], keys.parity);
    const typename Kernel::Visit& visit = control.tiles[keys.stage];
    tile = {visit.flags, visit.boxes[0]};
    may_skip = rule.may_skip(tile.box);
    Kernel::score(scores,
                  RowOperand<Kernel::kBlockM>(
                      shared + count % Kernel::kNumQStages * Kernel::kLayout.q_stage_bytes +
                      warpgroup * 64 * kPanelRowBytes),
                  shared + Kernel::kLayout.k_offset + keys.stage * Kernel::kLayout.k_stage_bytes);
  }

  // Behind that product: takes the key tile and tells whether it is kept. Then its scores are ready
  // for the softmax. The decision comes before modifiers, and looks at what the mask shows alone;
  // behind them the mask must hide again what they made of -inf.
  __device__ __forceinline__ bool take_tile() {
    pin_registers(scores);
    Kernel::release(control.k_empty[keys.stage], lane);
    keys.advance();
    Kernel::cap(scores, params, work(), warpgroup);
    bool masked = false;
    typename Kernel::Mask seen;
    Kernel::find_mask(work(), tile, nullptr, warpgroup, warp_row, lane,
                      [&](const typename Kernel::Mask& mask) {
                        Kernel::hide(scores, mask, lane);
                        if constexpr (kModifies) {
                          masked = true;
                          seen = mask;
                        }
                      });
    if (may_skip) {
      const float scale =
          kModifies ? Kernel::plain_scale_log2(params, work().softcap[0]) : scale_log2;
      const bool own = reaches(scores, rows, scale, rule.threshold);
      if (!control.votes.vote(votes++, own, lane)) return false;
    }
    if constexpr (kModifies) {
      Kernel::modify(scores, params, work(), tile, warpgroup, warp_row, lane);
      if (masked) Kernel::hide(scores, seen, lane);
    }
    return true;
  }

  __device__ __forceinline__ void start_values() {
    Kernel::wait(control.v_full[values.stage], values.parity);
    Kernel::accumulate(
        output, probabilities,
        shared + Kernel::kLayout.v_offset + values.stage * Kernel::kLayout.v_stage_bytes);
  }

  __device__ __forceinline__ void finish_values() {
    wgmma_wait<0>();
    pin_registers(output);
    Kernel::release(control.v_empty[values.stage], lane);
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
    if (softmax.moved(shrink)) Kernel::rescale(output, shrink);
    Kernel::pack_probabilities(probabilities, scores);
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
      if (moved) Kernel::rescale(output, shrink);
      Kernel::pack_probabilities(probabilities, scores);
    }
    start_values();
    finish_values();
    return false;
  }

  __device__ __forceinline__ void run() {
    for (;; ++count) {
      const auto queries = Kernel::template ring_at<Kernel::kNumQStages>(count);
      Kernel::wait(control.q_full[queries.stage], queries.parity);
      if (work().first_row < 0) return;
      scale_log2 = Kernel::score_scale_log2(params, work().softcap[0]);
      Kernel::clear(output);
      softmax.reset();
      rule = work().rule;
      rows = work().geometry.seqlen_q - work().first_row_of(warpgroup) - warp_row - lane / 4;
      while (find_kept() && use_kept()) {
      }
      named_barrier_sync<128>(Kernel::kWarpgroupBarrier + warpgroup);  // Q's rows have been read
      Kernel::stage_output(shared_bytes + queries.stage * Kernel::kLayout.q_stage_bytes, params,
                           work(), output, softmax);
      fence_proxy_async();
      Kernel::release(control.out_full[queries.stage], lane);
      Kernel::release(control.work_empty[count % Kernel::kNumWorks], lane);
    }
  }
};

}  // namespace girih
