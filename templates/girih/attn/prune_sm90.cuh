// The consumers of a Hopper kernel that prunes. While the warpgroups decide on a key tile, and do
// the softmax of one that is kept, Q * K^T of the next runs, where registers hold two tiles' scores
// (Config::kScoresAhead): a row of skipped tiles then costs little but these products.
#pragma once

#include "girih/attn/prune.cuh"
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
  static constexpr bool kAhead = Kernel::kScoresAhead;

  const FwdParams& params;
  typename Kernel::Control& control;
  unsigned char* const shared_bytes;
  const int warpgroup;

  const uint32 shared = shared_address(shared_bytes);
  const int lane = threadIdx.x % 32;
  const int warp_row = threadIdx.x / 32 % 4 * 16;
  typename Kernel::template Ring<Kernel::kNumStages> keys = {}, values = {};
  Tile tile = {};    // the latest whose product was started
  uint32 count = 0;  // of query tiles
  uint32 votes = 0;
  typename Kernel::Probabilities probabilities = {};
  typename Kernel::Output output = {};
  LazySoftmax softmax;
  float scale_log2;

  __device__ __forceinline__ const typename Kernel::Work& work() const {
    return control.work[count % Kernel::kNumWorks];
  }

  __device__ __forceinline__ void start_scores(Scores& scores) {
    Kernel::score(scores,
                  RowOperand<Kernel::kBlockM>(
                      shared + count % Kernel::kNumQStages * Kernel::kLayout.q_stage_bytes +
                      warpgroup * 64 * kPanelRowBytes),
                  shared + Kernel::kLayout.k_offset + keys.stage * Kernel::kLayout.k_stage_bytes);
  }

  // Behind the product with the tile's keys.
  __device__ __forceinline__ void take_tile() {
    const typename Kernel::Visit& visit = control.tiles[keys.stage];
    tile = {visit.flags, visit.boxes[0]};
    Kernel::release(control.k_empty[keys.stage], lane);
    keys.advance();
  }

  __device__ __forceinline__ bool keeps(const Scores& scores, const Tile& own) {
    const PruneRule& rule = work().rule;
    if (!rule.may_skip(own.box)) return true;
    const int rows = work().geometry.seqlen_q - work().first_row_of(warpgroup) - warp_row;
    return control.votes.vote(votes++, reaches(scores, rows, scale_log2, rule.threshold));
  }

  // Uses the latest tile, whose scores these are, or skips it, and gets the scores of the next;
  // false when it was the query tile's last: then the product that runs ahead is of what happens to
  // lie there, and nobody looks at it, for ptxas serialises wgmma under conditions.
  __device__ __forceinline__ bool step(Scores& scores, Scores& next) {
    const Tile own = tile;
    const bool last = (own.flags & Kernel::kLastVisit) != 0;
    if (kAhead) {
      if (!last) Kernel::wait(control.k_full[keys.stage], keys.parity);
      start_scores(next);
    }
    Kernel::modify(scores, params, work(), own, nullptr, warpgroup, warp_row, lane);
    if (keeps(scores, own)) {
      float shrink[2];
      softmax.update(scores, scale_log2, shrink);
      pin_registers(scores);
      if (softmax.moved(shrink)) Kernel::rescale(output, shrink);
      Kernel::pack_probabilities(probabilities, scores);
      Kernel::wait(control.v_full[values.stage], values.parity);
      Kernel::accumulate(
          output, probabilities,
          shared + Kernel::kLayout.v_offset + values.stage * Kernel::kLayout.v_stage_bytes);
      wgmma_wait<0>();
      pin_registers(output);
      Kernel::release(control.v_empty[values.stage], lane);
      values.advance();
    } else if (kAhead) {
      wgmma_wait<0>();
    }
    if (kAhead) {
      pin_registers(next);
      if (!last) take_tile();
    } else if (!last) {
      first_scores(next);
    }
    return !last;
  }

  // Of a tile before which nothing runs.
  __device__ __forceinline__ void first_scores(Scores& scores) {
    Kernel::wait(control.k_full[keys.stage], keys.parity);
    start_scores(scores);
    wgmma_wait<0>();
    pin_registers(scores);
    take_tile();
  }

  __device__ __forceinline__ void run() {
    Scores even = {}, odd = {};  // of every other tile, where they are got ahead
    for (;; ++count) {
      const auto queries = Kernel::template ring_at<Kernel::kNumQStages>(count);
      Kernel::wait(control.q_full[queries.stage], queries.parity);
      if (work().first_row < 0) return;
      scale_log2 = Kernel::score_scale_log2(params, work().softcap[0]);
      Kernel::clear(output);
      softmax.reset();
      first_scores(even);
      if constexpr (kAhead) {
        while (step(even, odd) && step(odd, even)) {
        }
      } else {
        while (step(even, even)) {
        }
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
