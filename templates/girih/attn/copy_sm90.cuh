// The Hopper kernel's copies: of Q and K by one warp and of V by another, as soon as stages are
// free, and of finished output by a third.
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
  using typename Pipeline::Control, typename Pipeline::Gather, typename Pipeline::Gathered;
  using typename Pipeline::Visit, typename Pipeline::Work;
  using Bricks = BricksSm90<Config>;

  static constexpr int kPanels = ceil_div(kHeadDim, kPanelColumns);
  static constexpr int kPanelsV = ceil_div(kHeadDimV, kPanelColumns);

  // Maps that only some kernels have.
  struct OtherMaps {
    const FwdRowMaps* rows;
    const FwdBrickMaps* bricks;
  };

  // A key tile whose V is to be loaded.
  struct Values {
    BoxOrigin keys;  // of the sequence
    int rows;        // of the sequence, that may be read
    GridPoint brick;
    Ring<kNumStages> ring;
  };

  // Starts the copy of a visit's V into the ring's stage, which is free, and takes that.
  // `single_keys` where the visit says kSingleKeys.
  static __device__ __forceinline__ void start_values(const FwdParams& params,
                                                      const FwdTensorMaps& maps,
                                                      const OtherMaps& others, Control& control,
                                                      unsigned char* shared, Values& values,
                                                      const Visit& visit, const int* single_keys,
                                                      uint32& tail_parity) {
    const int stage = values.ring.stage;
    values.ring.advance();
    unsigned char* tile = shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    if constexpr (kBricks) {
      if (elect_one()) {
        Bricks::template load_keys<kPanelsV>(shared_address(tile), others.bricks->v, maps.v,
                                             control.v_full[stage], params.v_strides.head,
                                             values.keys, visit, values.brick);
      }
      __syncwarp();
      return;
    }
    if constexpr (kGathers) {
      if (visit.flags & kSingleKeys) {  // of the sequence, all of them
        if (elect_one()) {
          load_rows<kBlockN, kPanelsV>(shared_address(tile), others.rows->v, control.v_full[stage],
                                       values.keys, single_keys);
        }
        __syncwarp();
        return;
      }
    }
    const int own_box = min(static_cast<int>(fresh_thread_index() % 32), kBoxes - 1);
    const bool whole = __all_sync(0xffffffff, rows_of(values, visit, own_box) == kKeyBox);
    if (elect_one()) {
      load_panels<kBlockN, kKeyBox, kPanelsV>(
          shared_address(tile), maps.v, whole ? control.v_full[stage] : control.v_tail,
          [&](int box) { return box_at(values.keys, visit, box); });
    }
    __syncwarp();
    if (!whole) {
      wait(control.v_tail, tail_parity);
      tail_parity ^= 1;
#pragma unroll 1
      for (int i = 0; i < kBoxes; ++i) {
        zero_tail(tile + i * kKeyBox * kPanelRowBytes, rows_of(values, visit, i));
      }
      fence_proxy_async();
      __syncwarp();
      if (elect_one()) arrive(control.v_full[stage]);
      __syncwarp();
    }
  }

  // A word a lane; by a warp.
  template <class To>
  static __device__ __forceinline__ void copy_words(To& to, const To& from) {
    constexpr int kWords = sizeof(To) / sizeof(uint32);
    static_assert(kWords <= 32);
    const int lane = fresh_thread_index() % 32;
    if (lane < kWords) {
      reinterpret_cast<uint32*>(&to)[lane] = reinterpret_cast<const uint32*>(&from)[lane];
    }
  }

  static __device__ __forceinline__ BoxOrigin box_at(BoxOrigin keys, const Visit& visit, int box) {
    keys.row += visit.boxes[box] * kBoxStep;
    return keys;
  }

  // Of a box, that may be read.
  static __device__ __forceinline__ int rows_of(const Values& values, const Visit& visit, int box) {
    return min(max(values.rows - visit.boxes[box] * kBoxStep, 0), kKeyBox);
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

  // Loads Q and K of what is visited, as soon as stages are free.
  static __device__ __forceinline__ void load(const FwdParams& params, const FwdTensorMaps& maps,
                                              const OtherMaps& others, Control& control,
                                              unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    Ring<kNumVisits> visits;
    Ring<kNumStages> keys;
    uint32 count = 0;  // of query tiles
#pragma unroll 1
    while (true) {
      wait(control.visit_full[visits.stage], visits.parity);
      const Visit& visit = control.visits[visits.stage];
      const uint32 flags = visit.flags;
      const Work& work = control.work[count % kNumWorks];
      if (flags & kFirstVisit) {
        const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
        const bool none_left = work.first_row < 0;
        wait(control.q_empty[queries.stage], queries.parity ^ 1);
        if (elect_one()) {
          if (none_left) {
            arrive(control.q_full[queries.stage]);
          } else if constexpr (kBricks) {
            Bricks::template load<typename Config::QueryBrick, kPanels>(
                shared_address(shared) + queries.stage * kLayout.q_stage_bytes, others.bricks->q,
                control.q_full[queries.stage], params.q_strides.head, work.queries,
                work.group.token(work.origin));
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
      GridPoint brick{};
      if constexpr (kBricks) brick = Bricks::first_token(work, visit);
      wait(control.k_empty[keys.stage], keys.parity ^ 1);
      const int* single_keys = nullptr;
      if constexpr (kGathers) {
        Gathered& gathered = gathered_of(control);
        single_keys = gathered.visits[visits.stage].keys;
        copy_words<typename Gather::Seen>(gathered.tiles[keys.stage],
                                          gathered.visits[visits.stage]);
        copy_words(control.tiles[keys.stage], visit);
        __syncwarp();
      }
      const bool elected = elect_one();
      if (kGathers && kSpeakingLanes > 1 && !elected) arrive(control.k_full[keys.stage]);
      if (elected) {
        if constexpr (!kGathers) control.tiles[keys.stage] = visit;
        const uint32 tile =
            shared_address(shared) + kLayout.k_offset + keys.stage * kLayout.k_stage_bytes;
        if constexpr (kBricks) {
          Bricks::template load_keys<kPanels>(tile, others.bricks->k, maps.k,
                                              control.k_full[keys.stage], params.k_strides.head,
                                              sequence, visit, brick);
        } else if (kGathers && (flags & kSingleKeys)) {
          load_rows<kBlockN, kPanels>(tile, others.rows->k, control.k_full[keys.stage], sequence,
                                      single_keys);
        } else {
          load_panels<kBlockN, kKeyBox, kPanels>(
              tile, maps.k, control.k_full[keys.stage],
              [&](int box) { return box_at(sequence, visit, box); });
        }
      }
      release(control.visit_empty[visits.stage], lane);
      visits.advance();
      if (flags & kLastVisit) release(control.work_empty[count++ % kNumWorks], lane);
      keys.advance();
    }
  }

  // Loads V of what is visited, while K runs ahead; where tiles may be skipped, of some of them.
  static __device__ __forceinline__ void load_values(const FwdParams& params,
                                                     const FwdTensorMaps& maps,
                                                     const OtherMaps& others, Control& control,
                                                     unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    const bool foreign_tails = params.cu_seqlens_k != nullptr || params.seqused_k != nullptr;
    Ring<kNumVisits> visits;
    Values values{};
    uint32 tail_parity = 0;
    uint32 count = 0;  // of query tiles
    KeptValues kept;
#pragma unroll 1
    for (;; visits.advance()) {
      wait(control.visit_full[visits.stage], visits.parity);
      const Visit& visit = control.visits[visits.stage];
      const int work_stage = count % kNumWorks;
      const Work& work = control.work[work_stage];
      if (work.first_row < 0) return;
      // Without keys no row of the tile may be read; else the copy itself makes zeros of what lies
      // beyond the tensor.
      const int seqlen_k = work.geometry.seqlen_k;
      values.keys = work.keys;
      if constexpr (kBricks) values.brick = Bricks::first_token(work, visit);
      values.rows = foreign_tails || seqlen_k == 0 ? seqlen_k : 1 << 30;
      if (visit.flags & kLastVisit) {
        ++count;
        release(control.work_empty[work_stage], lane);
      }
      const uint64& stage_empty = control.v_empty[values.ring.stage];
      if constexpr (kPrune) {
        const Visit own = visit;
        release(control.visit_empty[visits.stage], lane);
        wait(stage_empty, values.ring.parity ^ 1);  // while they decide
        const bool is_kept = kept.next(control.votes, (own.flags & kFirstVisit) != 0,
                                       (own.flags & kMaySkip) != 0, [&] {
                                         start_values(params, maps, others, control, shared, values,
                                                      own, nullptr, tail_parity);
                                       });
        if ((own.flags & kScouted) != 0 && lane == 0) {
          control.skipped.note(own.boxes[0], !is_kept, (own.flags & kLastVisit) != 0);
        }
      } else {
        const int* single_keys = nullptr;
        if constexpr (kGathers) single_keys = gathered_of(control).visits[visits.stage].keys;
        wait(stage_empty, values.ring.parity ^ 1);
        start_values(params, maps, others, control, shared, values, visit, single_keys,
                     tail_parity);
        release(control.visit_empty[visits.stage], lane);
      }
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
