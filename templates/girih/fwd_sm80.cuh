// Attention forward for every GPU from sm_80 up: mma.sync, ldmatrix and cp.async.
//
// A CTA takes one query tile (block_m rows of one head) at a time and walks the key tiles its mask
// lets it see. Every thread loads; each warp owns kRowsPerWarp query rows and keeps their scores,
// probabilities and output in registers. K and V arrive in a ring of stages; beside each stage
// lies the descriptor {n_block, kind} that the walk produced, so that the computing side knows
// neither patterns nor heads except where a partial tile must be masked.
//
// Config offers Element (Bf16 or Fp16), kHeadDim and kHeadDimV (multiples of 16), kBlockM, kBlockN
// (a multiple of 16), kNumStages (1 where there is no room for more: nothing is loaded ahead then),
// kNumWarps, kSoftcap (whether some head has one), kPrune
// where heads are pruned (see attn/prune.cuh), kTileMaxima where instead of attention the highest
// score of each tile is wanted, Heads (a HeadTable) and Classes (HeadClasses).
#pragma once

#include "girih/attn/prune.cuh"
#include "girih/attn/schedule.cuh"
#include "girih/attn/scores.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/attn/walk.cuh"
#include "girih/ptx/mma_sm80.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/tile/load_cp_async.cuh"

namespace girih {

template <class Config>
struct FwdSm80 {
  using Element = typename Config::Element;
  using Classes = typename Config::Classes;
  using Heads = typename Config::Heads;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kHeadDimV = Config::kHeadDimV;
  static constexpr int kBlockM = Config::kBlockM;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kNumStages = Config::kNumStages;
  static constexpr int kNumThreads = 32 * Config::kNumWarps;
  static constexpr bool kPrune = kPrunes<Config>;
  static constexpr bool kTileMaxima = kWantsTileMaxima<Config>;
  static constexpr int kRowsPerWarp = kBlockM / Config::kNumWarps;
  static constexpr int kRowFragments = kRowsPerWarp / 16;  // m16
  static constexpr int kKeyFragments = kBlockN / 8;        // n8 of the scores
  static constexpr int kDimFragments = kHeadDimV / 8;      // n8 of the output
  static constexpr FwdSm80Layout kLayout =
      fwd_sm80_layout(kBlockM, kBlockN, kHeadDim, kHeadDimV, kNumStages);

  static_assert(kHeadDim % 16 == 0 && kHeadDimV % 16 == 0, "ldmatrix takes 16 columns at a time");
  static_assert(kBlockN % 16 == 0, "ldmatrix takes 16 keys at a time");
  static_assert(kRowsPerWarp % 16 == 0 && kRowFragments * 16 * Config::kNumWarps == kBlockM);
  static_assert(kNumStages >= 1);
  static_assert(!kPrune || kBlockM == kPruneRows, "a decision is for the whole query tile");

  using Scores = float[kRowFragments][kKeyFragments][4];
  using Output = float[kRowFragments][kDimFragments][4];

  // Q * K^T for this warp's rows. Both tiles are [rows][head_dim]: K's rows are mma's columns.
  static __device__ __forceinline__ void score(Scores& scores, uint32 q_tile, uint32 k_tile,
                                               int warp, int lane) {
    const MatrixAddress<kHeadDim> q(q_tile, warp * kRowsPerWarp + lane % 16, lane / 16);
    const MatrixAddress<kHeadDim> k(k_tile, lane % 8 + 8 * (lane / 16), lane / 8 % 2);
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      uint32 a[kRowFragments][4];
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        ldmatrix_x4(a[i], q.at(i, d));
      }
#pragma unroll
      for (int j = 0; j < kKeyFragments / 2; ++j) {
        uint32 b[4];
        ldmatrix_x4(b, k.at(j, d));
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          mma_m16n8k16<Element>(scores[i][2 * j], a[i], b[0], b[1], d > 0);
          mma_m16n8k16<Element>(scores[i][2 * j + 1], a[i], b[2], b[3], d > 0);
        }
      }
    }
  }

  using Probabilities = uint32[kRowFragments][kKeyFragments / 2][4];

  // output += P * V
  static __device__ __forceinline__ void accumulate(Output& output,
                                                    const Probabilities& probabilities,
                                                    uint32 v_tile, int lane) {
    const MatrixAddress<kHeadDimV> v(v_tile, lane % 16, lane / 16);
#pragma unroll
    for (int j = 0; j < kKeyFragments / 2; ++j) {
#pragma unroll
      for (int d = 0; d < kHeadDimV / 16; ++d) {
        uint32 b[4];
        ldmatrix_x4_trans(b, v.at(j, d));
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          mma_m16n8k16<Element>(output[i][2 * d], probabilities[i][j], b[0], b[1]);
          mma_m16n8k16<Element>(output[i][2 * d + 1], probabilities[i][j], b[2], b[3]);
        }
      }
    }
  }

  // What thread 0 keeps for all: the query tile, where its data lies, and the walk over its keys.
  // The walk is one tile ahead of the loads, so that a descriptor is written a barrier before it
  // is read.
  struct Producer : PrunedTile<kPrune> {
    static constexpr uint32 kRing = kNumStages + 1;

    int index;          // of the query tile in launch order; from num_tiles on there is none
    int first_row;      // of the tile in its sequence
    Geometry geometry;  // of the sequence and head
    const uint16* q;    // of the sequence and head, from row 0
    const uint16* k;
    const uint16* v;
    uint16* out;
    float* lse;  // or null
    float softcap;
    KeyWalk<Classes> walk;
    TileDescriptor ring[kRing];

    // Takes up the first query tile from `candidate` on, in steps of the grid, that has rows.
    __device__ __forceinline__ void start(const FwdParams& params, const Heads& heads,
                                          const InputView* inputs, int candidate) {
      Sequence sequence;
      QueryTile at;
      for (;; candidate += gridDim.x) {
        index = candidate;
        if (index >= params.num_tiles) return;
        at = query_tile(params, index, 1);
        sequence = sequence_of(params, at.batch);
        first_row = at.m_block * kBlockM;
        if (first_row < sequence.geometry.seqlen_q) break;
      }
      geometry = sequence.geometry;
      const int kv_head = at.head / geometry.group_size;
      geometry.head += at.head;
      geometry.head_kv += kv_head;
      geometry.inputs = inputs;
      geometry.batch = at.batch;
      geometry.local_head = at.head;
      q = static_cast<const uint16*>(params.q) +
          offset(params.q_strides, sequence.q_batch, sequence.q_row, at.head);
      k = static_cast<const uint16*>(params.k) +
          offset(params.k_strides, sequence.k_batch, sequence.k_row, kv_head);
      v = static_cast<const uint16*>(params.v) +
          offset(params.v_strides, sequence.k_batch, sequence.k_row, kv_head);
      out = static_cast<uint16*>(params.out) +
            offset(params.out_strides, sequence.q_batch, sequence.q_row, at.head);
      lse = params.lse == nullptr ? nullptr
                                  : params.lse + offset(params.lse_strides, sequence.q_batch,
                                                        sequence.q_row, at.head);

      const auto& head = heads.rows[Heads::kCapacity == 1 ? 0 : at.head];
      softcap = head.softcap;
      if constexpr (kPrune) {
        this->rule = prune_rule(head.numbers[Classes::kNumNumbers], geometry, first_row, kBlockN);
      }
      walk = {{first_row, min(first_row + kBlockM, geometry.seqlen_q)},
              {kBlockN, geometry.seqlen_k},
              Classes::kCount == 1 ? 0 : head.head_class,
              head.numbers};
#pragma unroll 1  // next() is much code
      for (int i = 0; i < kNumStages; ++i) ring[i] = walk.next(geometry);
    }
  };
  static_assert(sizeof(Producer) <= kFwdSm80ProducerBytes);

  // Read where they are used: the walk has no register to spare for them. The first is of scores
  // that no modifier has seen yet.
  static __device__ __forceinline__ float plain_scale_log2(const FwdParams& params,
                                                           const Producer& producer) {
    const float scale = params.softmax_scale_log2;
    return Config::kSoftcap ? capped_scale_log2(scale, producer.softcap) : scale;
  }
  static __device__ __forceinline__ float scale_log2_of(const FwdParams& params,
                                                        const Producer& producer) {
    if constexpr (kNaturalScores<Classes>) return kNaturalScaleLog2;
    return plain_scale_log2(params, producer);
  }

  // All threads: starts the copies of the t-th visited tile, or of nothing after the last.
  static __device__ __forceinline__ void load_visited(const FwdParams& params,
                                                      const Producer& producer, uint32 shared,
                                                      uint32 t) {
    const TileDescriptor tile = producer.ring[t % Producer::kRing];
    if (tile.kind != static_cast<int>(TileKind::empty)) {
      const uint32 stage = t % kNumStages;
      const int first_key = tile.n_block * kBlockN;
      const int seqlen_k = producer.geometry.seqlen_k;
      load_tile<kBlockN, kHeadDim, kNumThreads>(
          shared + kLayout.k_offset + stage * kLayout.k_stage_bytes, producer.k,
          params.k_strides.row, first_key, seqlen_k);
      if constexpr (!kTileMaxima) {
        load_tile<kBlockN, kHeadDimV, kNumThreads>(
            shared + kLayout.v_offset + stage * kLayout.v_stage_bytes, producer.v,
            params.v_strides.row, first_key, seqlen_k);
      }
    }
    cp_async_commit();
  }

  static __device__ __forceinline__ float finish(const OnlineSoftmax& softmax, int r,
                                                 const FwdParams& params, const Producer& producer,
                                                 float& lse) {
    if constexpr (ClassModifiers<Classes>::kSinks) {
      const float sink = ClassModifiers<Classes>::sink_logit(
          producer.walk.head_class, producer.walk.numbers, producer.geometry);
      return softmax.finish(r, sink, params.empty_lse, lse);
    }
    return softmax.finish(r, params.empty_lse, lse);
  }

  // Normalises, writes lse, and stores the rows through the warp's own part of what was the Q tile:
  // nobody reads Q after the barrier that ended the walk.
  static __device__ __forceinline__ void store(const FwdParams& params, const Producer& producer,
                                               Output& output,
                                               OnlineSoftmax (&softmax)[kRowFragments],
                                               unsigned char* staging) {
    const int warp = fresh_thread_index() / 32;
    const int lane = fresh_thread_index() % 32;
    const int first_row = producer.first_row;
    const int seqlen_q = producer.geometry.seqlen_q;
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp * kRowsPerWarp + 16 * i + 8 * r + lane / 4;
        float lse;
        const float factor = finish(softmax[i], r, params, producer, lse);
        if (producer.lse != nullptr && lane % 4 == 0 && first_row + row < seqlen_q) {
          producer.lse[first_row + row] = lse;
        }
#pragma unroll
        for (int d = 0; d < kDimFragments; ++d) {
          const uint32 word =
              pack<Element>(output[i][d][2 * r] * factor, output[i][d][2 * r + 1] * factor);
          *reinterpret_cast<uint32*>(staging + chunk_offset<kHeadDimV>(row, d) + 4 * (lane % 4)) =
              word;
        }
      }
    }
    __syncwarp();

    constexpr int kChunksPerRow = kHeadDimV / 8;
    for (int index = lane; index < kRowsPerWarp * kChunksPerRow; index += 32) {
      const int row = warp * kRowsPerWarp + index / kChunksPerRow;
      const int chunk = index % kChunksPerRow;
      if (first_row + row < seqlen_q) {
        *reinterpret_cast<uint4*>(producer.out + (first_row + row) * params.out_strides.row +
                                  8 * chunk) =
            *reinterpret_cast<const uint4*>(staging + chunk_offset<kHeadDimV>(row, chunk));
      }
    }
  }

  static __device__ __forceinline__ void attend(const FwdParams& params, Producer& producer,
                                                unsigned char* shared) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const uint32 q_tile = shared_address(shared);
    if constexpr (kTileMaxima) {  // what is not visited stays -inf; nobody else writes here
      float* const maxima = tile_maxima_row(params, producer.lse, producer.first_row, kBlockN);
      const int count = ceil_div(params.geometry.seqlen_k, kBlockN);
      for (int n = threadIdx.x; n < count; n += kNumThreads) maxima[n] = kMinusInfinity;
    }

    load_tile<kBlockM, kHeadDim, kNumThreads>(q_tile, producer.q, params.q_strides.row,
                                              producer.first_row, producer.geometry.seqlen_q);
#pragma unroll
    for (uint32 t = 0; t < kNumStages - 1; ++t) load_visited(params, producer, q_tile, t);
    if constexpr (kNumStages == 1) cp_async_commit();  // of Q

    Output output = {};
    OnlineSoftmax softmax[kRowFragments];
    for (uint32 t = 0;; ++t) {
      cp_async_wait<max(kNumStages - 2, 0)>();
      __syncthreads();  // tile t has arrived (or Q), and nobody reads tile t - 1 any more
      const TileDescriptor tile = producer.ring[t % Producer::kRing];
      if (tile.kind == static_cast<int>(TileKind::empty)) break;

      // --- Producing: loads are kNumStages - 1 tiles ahead, the walk is kNumStages ahead ---
      load_visited(params, producer, q_tile, t + kNumStages - 1);
      if (threadIdx.x == 0) {
        producer.ring[(t + kNumStages) % Producer::kRing] = producer.walk.next(producer.geometry);
      }

      // --- Consuming: mask, scores, softcap, softmax, output. What a pattern computes with is gone
      // before the scores take their registers. ---
      const bool partial = tile.kind == static_cast<int>(TileKind::partial);
      WarpMask<kRowsPerWarp, kBlockN> mask;
      if (partial) {
        mask.template evaluate<Classes, 32>(
            producer.walk.head_class, producer.walk.numbers, producer.geometry,
            producer.first_row + warp * kRowsPerWarp,
            [&](int column) { return tile.n_block * kBlockN + column; });
      }
      if constexpr (kNumStages == 1) {
        cp_async_wait<0>();
        __syncthreads();
      }
      const uint32 stage = t % kNumStages;
      Scores scores;
      score(scores, q_tile, q_tile + kLayout.k_offset + stage * kLayout.k_stage_bytes, warp, lane);

      if constexpr (Config::kSoftcap) {
        if (producer.softcap > 0.0f) {
#pragma unroll
          for (int i = 0; i < kRowFragments; ++i) {
            cap_scores(scores[i], params.softmax_scale_log2 / producer.softcap);
          }
        }
      }

      const auto hide = [&] {
        if (!partial) return;
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) mask.apply(scores[i], 16 * i + 8 * r + lane / 4, r);
        }
      };
      const int existing_rows =  // from the thread's first one on
          producer.geometry.seqlen_q - producer.first_row - warp * kRowsPerWarp - lane / 4;

      // A decision looks at what the mask shows, and comes before modifiers.
      if constexpr (kPrune) {
        hide();
        if (producer.rule.may_skip(tile.n_block)) {
          bool keep = false;
#pragma unroll
          for (int i = 0; i < kRowFragments; ++i) {
            keep |=
                reaches<kKeyFragments>(scores[i], existing_rows - 16 * i,
                                       plain_scale_log2(params, producer), producer.rule.threshold);
          }
          if (!__syncthreads_or(keep)) continue;
        }
      }

      if constexpr (kNaturalScores<Classes>) {
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          modify_scores<Classes, kBlockN>(
              scores[i], natural_scale(params.softmax_scale_log2, producer.softcap),
              producer.walk.head_class, producer.walk.numbers, producer.geometry,
              producer.first_row + warp * kRowsPerWarp + 16 * i + lane / 4,
              [&](int column) { return tile.n_block * kBlockN + column; });
        }
      }
      if constexpr (!kPrune || kNaturalScores<Classes>) hide();  // also what they made of -inf

      if constexpr (kTileMaxima) {
        float* const maxima = tile_maxima_row(params, producer.lse, producer.first_row, kBlockN);
        const float scale = scale_log2_of(params, producer);
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
          raise(maxima[tile.n_block], scores[i], existing_rows - 16 * i, scale);
        }
        continue;
      }

      Probabilities probabilities;
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        float shrink[2];
        softmax[i].update(scores[i], scale_log2_of(params, producer), shrink);
#pragma unroll
        for (int j = 0; j < kKeyFragments; ++j) {
          pack_fragment<Element>(probabilities[i], j, scores[i][j]);
        }
        if (__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) {  // seldom later on
#pragma unroll
          for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
            for (int e = 0; e < 4; ++e) output[i][d][e] *= shrink[e / 2];
          }
        }
      }
      accumulate(output, probabilities, q_tile + kLayout.v_offset + stage * kLayout.v_stage_bytes,
                 lane);
    }
    if constexpr (!kTileMaxima) store(params, producer, output, softmax, shared);
  }

  // `inputs`: the pattern's, by slot; null where it has none.
  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads,
                                             const InputView* inputs) {
    extern __shared__ __align__(128) unsigned char shared[];
    Producer& producer = *reinterpret_cast<Producer*>(shared + kLayout.producer_offset);
    for (int candidate = blockIdx.x;;) {  // start() is called in one place: it is much code
      if (threadIdx.x == 0) producer.start(params, heads, inputs, candidate);
      __syncthreads();
      if (producer.index >= params.num_tiles) break;
      attend(params, producer, shared);
      candidate = producer.index + gridDim.x;
      __syncthreads();  // the next tile's Q goes where this one's output was staged
    }
  }
};

}  // namespace girih
