// The Hopper kernel's copies, by a warp each: of Q, K and V, as soon as stages are free, and of
// finished output.
#pragma once

#include "girih/attn/bricks_sm90.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/ring.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/tile/load_tma.cuh"

namespace girih {

template <class Config>
struct CopiesSm90 : PipelineSm90<Config> {
  using Pipeline = PipelineSm90<Config>;
  using Pipeline::gathered_of, Pipeline::staged_chunk;
  using Pipeline::kBlockM, Pipeline::kBlockN, Pipeline::kHeadDim, Pipeline::kHeadDimV;
  using Pipeline::kBoxes, Pipeline::kBoxStep, Pipeline::kKeyBox, Pipeline::kLayout;
  using Pipeline::kBricks, Pipeline::kDocumentTiles, Pipeline::kGathers, Pipeline::kPrune;
  using Pipeline::kHeadsPerTile, Pipeline::kRowsPerHead;
  using Pipeline::kNumQStages, Pipeline::kNumStages, Pipeline::kNumVisits, Pipeline::kNumWorks;
  using typename Pipeline::Control, typename Pipeline::Gathered;
  using typename Pipeline::Visit, typename Pipeline::Work;
  using Bricks = BricksSm90<Config>;

  static constexpr int kPanels = ceil_div(kHeadDim, kPanelColumns);
  static constexpr int kPanelsV = ceil_div(kHeadDimV, kPanelColumns);

  // Maps that only some kernels have.
  struct OtherMaps {
    const FwdRowMaps* rows;
    const FwdBrickMaps* bricks;
  };

  // A key tile whose V is to be loaded; which one, its K's stage still says.
  struct Pending {
    static constexpr int kNone = -1;
    BoxOrigin keys;    // of the sequence
    int rows = kNone;  // of the sequence, that may be read; or that nothing is pending
    Ring<kNumStages> ring;
  };

  // Starts the copy of a V; with `kept`, of that visit's.
  static __device__ __forceinline__ void load_values(const FwdParams& params,
                                                     const FwdTensorMaps& maps,
                                                     const OtherMaps& others, Control& control,
                                                     unsigned char* shared, const Pending& pending,
                                                     uint32& tail_parity,
                                                     const Visit* kept = nullptr) {
    const int stage = pending.ring.stage;
    const Visit& visit = kept == nullptr ? control.tiles[stage] : *kept;
    unsigned char* tile = shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    if constexpr (kBricks) {
      wait(control.v_empty[stage], pending.ring.parity ^ 1);
      if (elect_one()) {
        Bricks::template load_keys<kPanelsV>(shared_address(tile), others.bricks->v, maps.v,
                                             control.v_full[stage], params.v_strides.head,
                                             pending.keys, visit);
      }
      __syncwarp();
      return;
    }
    if constexpr (kGathers) {
      if (visit.flags & kSingleKeys) {  // of the sequence, all of them
        wait(control.v_empty[stage], pending.ring.parity ^ 1);
        if (elect_one()) {
          load_rows<kBlockN, kPanelsV>(shared_address(tile), others.rows->v, control.v_full[stage],
                                       pending.keys, gathered_of(control).tiles[stage].keys);
        }
        __syncwarp();
        return;
      }
    }
    bool whole = true;
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) whole &= rows_of(pending, visit, i) == kKeyBox;
    wait(control.v_empty[stage], pending.ring.parity ^ 1);
    if (elect_one()) {
      load_panels<kBlockN, kKeyBox, kPanelsV>(
          shared_address(tile), maps.v, whole ? control.v_full[stage] : control.v_tail,
          [&](int box) { return box_at(pending.keys, visit, box); });
    }
    __syncwarp();
    if (!whole) {
      wait(control.v_tail, tail_parity);
      tail_parity ^= 1;
#pragma unroll 1
      for (int i = 0; i < kBoxes; ++i) {
        zero_tail(tile + i * kKeyBox * kPanelRowBytes, rows_of(pending, visit, i));
      }
      fence_proxy_async();
      __syncwarp();
      if (elect_one()) arrive(control.v_full[stage]);
      __syncwarp();
    }
  }

  static __device__ __forceinline__ BoxOrigin box_at(BoxOrigin keys, const Visit& visit, int box) {
    keys.row += visit.boxes[box] * kBoxStep;
    return keys;
  }

  // Of a box, that may be read.
  static __device__ __forceinline__ int rows_of(const Pending& pending, const Visit& visit,
                                                int box) {
    return min(max(pending.rows - visit.boxes[box] * kBoxStep, 0), kKeyBox);
  }

  // Rows that are another sequence's, or that nobody has written, become zeros: a probability of 0
  // times NaN would be NaN.
  static __device__ __forceinline__ void zero_tail(unsigned char* box, int rows) {
#pragma unroll 1
    for (uint32 chunk = rows * 8 + fresh_thread_index() % 32; chunk < kKeyBox * 8; chunk += 32) {
#pragma unroll
      for (int panel = 0; panel < kPanelsV; ++panel) {
        *reinterpret_cast<uint4*>(box + panel * kBlockN * kPanelRowBytes + chunk * 16) = {};
      }
    }
  }

  // Loads Q, K and V of what is visited, as soon as stages are free.
  static __device__ __forceinline__ void load(const FwdParams& params, const FwdTensorMaps& maps,
                                              const OtherMaps& others, Control& control,
                                              unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    Ring<kNumVisits> visits;
    Ring<kNumStages> keys;
    // V goes one tile behind K, as it is used; what is due goes next. A kernel that prunes has
    // another warp for it, and nothing pending here.
    Pending pending{}, due{};
    uint32 tail_parity = 0;
    uint32 count = 0;  // of query tiles
    const bool foreign_tails = params.cu_seqlens_k != nullptr || params.seqused_k != nullptr;
    const auto make_due = [&] {
      due = pending;
      pending.rows = Pending::kNone;
      return due.rows != Pending::kNone;
    };
#pragma unroll 1
    while (true) {
      if (!kPrune && due.rows != Pending::kNone) {
        load_values(params, maps, others, control, shared, due, tail_parity);
        due.rows = Pending::kNone;
      }
      const uint64& announced = control.visit_full[visits.stage];
      if (!mbarrier_has_ended(shared_address(&announced), visits.parity)) {
        if (make_due()) continue;
        wait(announced, visits.parity);
      }
      const Visit& visit = control.visits[visits.stage];
      const uint32 flags = visit.flags;
      const Work& work = control.work[count % kNumWorks];
      if (flags & kFirstVisit) {
        const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
        const bool none_left = work.first_row < 0;
        // The output of the tile before needs its last V before it makes room in Q's only stage.
        if ((kNumQStages == 1 || none_left) && make_due()) continue;
        wait(control.q_empty[queries.stage], queries.parity ^ 1);
        if (elect_one()) {
          if (none_left) {
            arrive(control.q_full[queries.stage]);
          } else if constexpr (kBricks) {
            Bricks::template load<typename Config::QueryBrick, kPanels>(
                shared_address(shared) + queries.stage * kLayout.q_stage_bytes, others.bricks->q,
                control.q_full[queries.stage], params.q_strides.head, work.queries, work.origin);
          } else {
            load_panels<kBlockM, kRowsPerHead, kPanels>(
                shared_address(shared) + queries.stage * kLayout.q_stage_bytes, maps.q,
                control.q_full[queries.stage], [&](int head) {
                  BoxOrigin at = work.queries;
                  at.head += head;
                  return at;
                });
          }
        }
        __syncwarp();
        if (none_left) return;
      }

      const BoxOrigin sequence = work.keys;
      const int seqlen_k = work.geometry.seqlen_k;
      wait(control.k_empty[keys.stage], keys.parity ^ 1);
      if constexpr (kGathers) {
        if (flags & kGivenMask) {
          Gathered& gathered = gathered_of(control);
          const auto* from = reinterpret_cast<const uint32*>(&gathered.visits[visits.stage]);
          auto* to = reinterpret_cast<uint32*>(&gathered.tiles[keys.stage]);
          constexpr int kWords = sizeof(GatheredKeys<kBlockN>) / sizeof(uint32);
          for (int i = lane; i < kWords; i += 32) to[i] = from[i];
          __syncwarp();
        }
      }
      const bool elected = elect_one();
      if (kGathers && kSpeakingLanes > 1 && !elected) arrive(control.k_full[keys.stage]);
      if (elected) {
        control.tiles[keys.stage] = visit;
        const uint32 tile =
            shared_address(shared) + kLayout.k_offset + keys.stage * kLayout.k_stage_bytes;
        if constexpr (kBricks) {
          Bricks::template load_keys<kPanels>(tile, others.bricks->k, maps.k,
                                              control.k_full[keys.stage], params.k_strides.head,
                                              sequence, visit);
        } else if (kGathers && (flags & kSingleKeys)) {
          load_rows<kBlockN, kPanels>(tile, others.rows->k, control.k_full[keys.stage], sequence,
                                      gathered_of(control).tiles[keys.stage].keys);
        } else {
          load_panels<kBlockN, kKeyBox, kPanels>(
              tile, maps.k, control.k_full[keys.stage],
              [&](int box) { return box_at(sequence, visit, box); });
        }
      }
      release(control.visit_empty[visits.stage], lane);
      visits.advance();
      if (flags & kLastVisit) release(control.work_empty[count++ % kNumWorks], lane);
      make_due();
      // Without keys no row of the tile may be read; else the copy itself makes zeros of what lies
      // beyond the tensor.
      const bool some_foreign = foreign_tails || seqlen_k == 0;
      if constexpr (!kPrune) pending = {sequence, some_foreign ? seqlen_k : 1 << 30, keys};
      keys.advance();
    }
  }

  // Where key tiles are pruned: loads V of those that are kept, as soon as that is known, while K
  // runs ahead. Stages of V hold kept tiles only.
  static __device__ __forceinline__ void load_kept_values(const FwdParams& params,
                                                          const FwdTensorMaps& maps,
                                                          Control& control, unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    const bool foreign_tails = params.cu_seqlens_k != nullptr || params.seqused_k != nullptr;
    Ring<kNumVisits> visits;
    Pending pending{};
    uint32 tail_parity = 0;
    uint32 count = 0;  // of query tiles
    uint32 votes = 0;
#pragma unroll 1
    while (true) {
      wait(control.visit_full[visits.stage], visits.parity);
      const Visit visit = control.visits[visits.stage];
      release(control.visit_empty[visits.stage], lane);
      visits.advance();
      const int work_stage = count % kNumWorks;
      const Work& work = control.work[work_stage];
      if (work.first_row < 0) return;
      const int seqlen_k = work.geometry.seqlen_k;
      const bool some_foreign = foreign_tails || seqlen_k == 0;
      pending.keys = work.keys;
      pending.rows = some_foreign ? seqlen_k : 1 << 30;
      if (visit.flags & kLastVisit) {
        ++count;
        release(control.work_empty[work_stage], lane);
      }
      wait(control.v_empty[pending.ring.stage], pending.ring.parity ^ 1);  // while they decide
      if ((visit.flags & kMaySkip) && !control.votes.keep(votes++)) continue;
      load_values(params, maps, {nullptr, nullptr}, control, shared, pending, tail_parity, &visit);
      pending.ring.advance();
    }
  }

  // Stores finished tiles; Q's stage is free once it has been read.
  static __device__ __forceinline__ void store(const FwdParams& params, const FwdTensorMaps& maps,
                                               Control& control, unsigned char* shared) {
    for (uint32 count = 0;; ++count) {
      const Ring<kNumWorks> works = ring_at<kNumWorks>(count);
      const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
      const int stage = queries.stage;
      wait(control.q_full[stage], queries.parity);
      const Work& work = control.work[works.stage];
      if (work.first_row < 0) return;
      wait(control.out_full[stage], queries.parity);
      unsigned char* tile = shared + stage * kLayout.q_stage_bytes;
      if constexpr (kBricks) {
        Bricks::store(work, params.out_strides.row, tile);
      } else if (work.is_part()) {
        // Its consumers have stored it.
      } else if ((params.cu_seqlens_q == nullptr && !kDocumentTiles) ||
                 work.first_row + kRowsPerHead <= work.geometry.seqlen_q) {
        if (elect_one()) {
#pragma unroll
          for (int head = 0; head < kHeadsPerTile; ++head) {
#pragma unroll
            for (int panel = 0; panel < kPanelsV; ++panel) {
              tma_store(
                  maps.out,
                  shared_address(tile) + (panel * kBlockM + head * kRowsPerHead) * kPanelRowBytes,
                  {panel * kPanelColumns, work.queries.row, work.queries.head + head,
                   work.queries.batch});
            }
          }
          tma_store_commit();
          tma_store_wait_read();
        }
      } else {
        constexpr uint32 kChunksPerRow = kHeadDimV / 8;
        const uint32 chunks = (work.geometry.seqlen_q - work.first_row) * kChunksPerRow;
        for (int head = 0; head < kHeadsPerTile; ++head) {
          uint16* const out = work.out + head * params.out_strides.head;
#pragma unroll 1
          for (uint32 index = fresh_thread_index() % 32; index < chunks; index += 32) {
            const int row = index / kChunksPerRow;
            const int chunk = index % kChunksPerRow;
            *reinterpret_cast<uint4*>(out + (work.first_row + row) * params.out_strides.row +
                                      8 * chunk) =
                *reinterpret_cast<const uint4*>(tile +
                                                staged_chunk(head * kRowsPerHead + row, chunk));
          }
        }
      }
      const int lane = fresh_thread_index() % 32;
      release(control.q_empty[stage], lane);
      release(control.work_empty[works.stage], lane);
    }
  }
};

}  // namespace girih
