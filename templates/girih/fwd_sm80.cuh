// Attention forward for every GPU from sm_80 up: mma.sync, ldmatrix and cp.async.
//
// A CTA takes one query tile (block_m rows of one head) at a time and walks the key tiles its mask
// lets it see. Every thread loads; each warp owns kRowsPerWarp query rows and keeps their scores,
// probabilities and output in registers. K and V arrive in a ring of stages; beside each stage
// lies the descriptor {n_block, kind} that the walk produced, so that the computing side knows
// neither patterns nor heads except where a partial tile must be masked.
//
// Config offers Element (Bf16 or Fp16), kHeadDim (a multiple of 16), kBlockM, kBlockN (a multiple
// of 16), kNumStages (>= 2), kNumWarps, Heads (a HeadTable) and Classes (HeadClasses).
#pragma once

#include "girih/attn/schedule.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/attn/walk.cuh"
#include "girih/ptx/mma_sm80.cuh"
#include "girih/tile/load_cp_async.cuh"

namespace girih {

template <class Config>
struct FwdSm80 {
  using Element = typename Config::Element;
  using Classes = typename Config::Classes;
  using Heads = typename Config::Heads;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kBlockM = Config::kBlockM;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kNumStages = Config::kNumStages;
  static constexpr int kNumThreads = 32 * Config::kNumWarps;
  static constexpr int kRowsPerWarp = kBlockM / Config::kNumWarps;
  static constexpr int kRowFragments = kRowsPerWarp / 16;  // m16
  static constexpr int kKeyFragments = kBlockN / 8;        // n8 of the scores
  static constexpr int kDimFragments = kHeadDim / 8;       // n8 of the output
  static constexpr FwdSm80Layout kLayout = fwd_sm80_layout(kBlockM, kBlockN, kHeadDim, kNumStages);

  static_assert(kHeadDim % 16 == 0, "ldmatrix takes 16 columns at a time");
  static_assert(kBlockN % 16 == 0, "ldmatrix takes 16 keys at a time");
  static_assert(kRowsPerWarp % 16 == 0 && kRowFragments * 16 * Config::kNumWarps == kBlockM);
  static_assert(kNumStages >= 2, "one stage is read while the next one is filled");

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

  // Probabilities as mma's A operand: an accumulator of the scores is one, element for element.
  using Probabilities = uint32[kRowFragments][kKeyFragments / 2][4];

  static __device__ __forceinline__ void pack_row_fragment(uint32 (&packed)[kKeyFragments / 2][4],
                                                           const float (&p)[kKeyFragments][4]) {
#pragma unroll
    for (int j = 0; j < kKeyFragments / 2; ++j) {
      packed[j][0] = pack<Element>(p[2 * j][0], p[2 * j][1]);
      packed[j][1] = pack<Element>(p[2 * j][2], p[2 * j][3]);
      packed[j][2] = pack<Element>(p[2 * j + 1][0], p[2 * j + 1][1]);
      packed[j][3] = pack<Element>(p[2 * j + 1][2], p[2 * j + 1][3]);
    }
  }

  // output += P * V
  static __device__ __forceinline__ void accumulate(Output& output,
                                                    const Probabilities& probabilities,
                                                    uint32 v_tile, int lane) {
    const MatrixAddress<kHeadDim> v(v_tile, lane % 16, lane / 16);
#pragma unroll
    for (int j = 0; j < kKeyFragments / 2; ++j) {
#pragma unroll
      for (int d = 0; d < kHeadDim / 16; ++d) {
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

  // Normalises, writes lse, and stores the rows through the warp's own part of the Q tile.
  static __device__ __forceinline__ void store(const FwdParams& params, const QueryTile& at,
                                               Output& output,
                                               OnlineSoftmax (&softmax)[kRowFragments],
                                               unsigned char* q_tile, int warp, int lane) {
    const int seqlen_q = params.geometry.seqlen_q;
    const int first_row = at.m_block * kBlockM;
    const int64 lse_row =
        (static_cast<int64>(at.batch) * params.num_heads + at.head) * seqlen_q + first_row;
#pragma unroll
    for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = warp * kRowsPerWarp + 16 * i + 8 * r + lane / 4;
        float lse;
        const float factor = softmax[i].finish(r, params.softmax_scale, lse);
        if (params.lse != nullptr && lane % 4 == 0 && first_row + row < seqlen_q) {
          params.lse[lse_row + row] = lse;
        }
#pragma unroll
        for (int d = 0; d < kDimFragments; ++d) {
          const uint32 word =
              pack<Element>(output[i][d][2 * r] * factor, output[i][d][2 * r + 1] * factor);
          *reinterpret_cast<uint32*>(q_tile + chunk_offset<kHeadDim>(row, d) + 4 * (lane % 4)) =
              word;
        }
      }
    }
    __syncwarp();

    constexpr int kChunksPerRow = kHeadDim / 8;
    uint16* out = static_cast<uint16*>(params.out) + at.batch * params.out_strides.batch +
                  at.head * params.out_strides.head;
    for (int index = lane; index < kRowsPerWarp * kChunksPerRow; index += 32) {
      const int row = warp * kRowsPerWarp + index / kChunksPerRow;
      const int chunk = index % kChunksPerRow;
      if (first_row + row < seqlen_q) {
        *reinterpret_cast<uint4*>(out + (first_row + row) * params.out_strides.row + 8 * chunk) =
            *reinterpret_cast<const uint4*>(q_tile + chunk_offset<kHeadDim>(row, chunk));
      }
    }
  }

  // What thread 0 keeps for all: the walk, and where this query tile's keys and values begin.
  // It walks one tile ahead of the loads, so that a descriptor is written a barrier before it is
  // read.
  struct Producer {
    static constexpr uint32 kRing = kNumStages + 1;

    int index;  // of the query tile in launch order
    QueryTile at;
    KeyWalk<Classes> walk;
    const uint16* k;
    const uint16* v;
    TileDescriptor ring[kRing];

    // Takes up a query tile, if there is one of that index.
    __device__ __forceinline__ void start(const FwdParams& params, const Heads& heads,
                                          int tile_index) {
      index = tile_index;
      if (index >= params.num_tiles) return;
      at = query_tile(params, index);
      const int first_row = at.m_block * kBlockM;
      const int kv_head = at.head / params.group_size;
      walk = {{first_row, min(first_row + kBlockM, params.geometry.seqlen_q)},
              {kBlockN, params.geometry.seqlen_k},
              head_mask<Classes>(heads, at.head)};
      k = static_cast<const uint16*>(params.k) + at.batch * params.k_strides.batch +
          kv_head * params.k_strides.head;
      v = static_cast<const uint16*>(params.v) + at.batch * params.v_strides.batch +
          kv_head * params.v_strides.head;
      for (int i = 0; i < kNumStages; ++i) ring[i] = walk.next(params.geometry);
    }
  };
  static_assert(sizeof(Producer) <= kFwdSm80ProducerBytes);

  // All threads: starts the copies of the t-th visited tile, or of nothing after the last.
  static __device__ __forceinline__ void load_visited(const FwdParams& params,
                                                      const Producer& producer, uint32 shared,
                                                      uint32 t) {
    const TileDescriptor tile = producer.ring[t % Producer::kRing];
    if (tile.kind != static_cast<int>(TileKind::empty)) {
      const uint32 target = shared + t % kNumStages * kLayout.stage_bytes;
      const int first_key = tile.n_block * kBlockN;
      const int seqlen_k = params.geometry.seqlen_k;
      load_tile<kBlockN, kHeadDim, kNumThreads>(target + kLayout.k_offset, producer.k,
                                                params.k_strides.row, first_key, seqlen_k);
      load_tile<kBlockN, kHeadDim, kNumThreads>(target + kLayout.v_offset, producer.v,
                                                params.v_strides.row, first_key, seqlen_k);
    }
    cp_async_commit();
  }

  static __device__ __forceinline__ void load_queries(const FwdParams& params, const QueryTile& at,
                                                      uint32 q_tile) {
    const uint16* q = static_cast<const uint16*>(params.q) + at.batch * params.q_strides.batch +
                      at.head * params.q_strides.head;
    load_tile<kBlockM, kHeadDim, kNumThreads>(q_tile, q, params.q_strides.row, at.m_block * kBlockM,
                                              params.geometry.seqlen_q);
  }

  static __device__ __forceinline__ void attend(const FwdParams& params, const Heads& heads,
                                                Producer& producer, unsigned char* shared) {
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const uint32 q_tile = shared_address(shared);

    load_queries(params, producer.at, q_tile);
#pragma unroll
    for (uint32 t = 0; t < kNumStages - 1; ++t) load_visited(params, producer, q_tile, t);

    Output output = {};
    OnlineSoftmax softmax[kRowFragments];
    for (uint32 t = 0;; ++t) {
      cp_async_wait<kNumStages - 2>();
      __syncthreads();  // tile t has arrived, and nobody reads tile t - 1 any more
      const TileDescriptor tile = producer.ring[t % Producer::kRing];
      if (tile.kind == static_cast<int>(TileKind::empty)) break;

      // --- Producing: loads are kNumStages - 1 tiles ahead, the walk is kNumStages ahead ---
      load_visited(params, producer, q_tile, t + kNumStages - 1);
      if (threadIdx.x == 0) {
        producer.ring[(t + kNumStages) % Producer::kRing] = producer.walk.next(params.geometry);
      }

      // --- Consuming: scores, mask, softmax, output ---
      const uint32 stage = q_tile + t % kNumStages * kLayout.stage_bytes;
      Scores scores;
      score(scores, q_tile, stage + kLayout.k_offset, warp, lane);

      if (tile.kind == static_cast<int>(TileKind::partial)) {
        WarpMask<kRowsPerWarp, kBlockN> mask;
        mask.template evaluate<Classes>(
            head_mask<Classes>(heads, producer.at.head), params.geometry,
            producer.at.m_block * kBlockM + warp * kRowsPerWarp, tile.n_block * kBlockN);
#pragma unroll
        for (int i = 0; i < kRowFragments; ++i) {
#pragma unroll
          for (int r = 0; r < 2; ++r) mask.apply(scores[i], 16 * i + 8 * r + lane / 4, r);
        }
      }

      Probabilities probabilities;
#pragma unroll
      for (int i = 0; i < kRowFragments; ++i) {
        float shrink[2];
        softmax[i].update(scores[i], params.softmax_scale_log2, shrink);
        pack_row_fragment(probabilities[i], scores[i]);
        if (__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) {  // seldom later on
#pragma unroll
          for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
            for (int e = 0; e < 4; ++e) output[i][d][e] *= shrink[e / 2];
          }
        }
      }
      accumulate(output, probabilities, stage + kLayout.v_offset, lane);
    }
    store(params, producer.at, output, softmax, shared, warp, lane);
  }

  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads) {
    extern __shared__ __align__(128) unsigned char shared[];
    Producer& producer = *reinterpret_cast<Producer*>(shared + kLayout.producer_offset);
    if (threadIdx.x == 0) producer.start(params, heads, blockIdx.x);
    __syncthreads();
    while (producer.index < params.num_tiles) {
      attend(params, heads, producer, shared);
      __syncthreads();  // the next tile's Q goes where this one's output was staged
      if (threadIdx.x == 0) producer.start(params, heads, producer.index + gridDim.x);
      __syncthreads();
    }
  }
};

}  // namespace girih
