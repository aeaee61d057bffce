// Which blocks of keys each block of queries should see. A row of the products is some tokens of a
// head side by side, query tokens in the reverse order of key tokens: a product is then the sum of
// scores along an antidiagonal. (Means of blocks come as tokens, too: pool_blocks.cuh.) Of the
// softmax over a row of products, what a block of keys has is added up over the rows of a block of
// queries, and the largest of these values are taken.
//
// A CTA goes through all columns for kEstimateBlocksRows rows. Of the products in a block it keeps
// the logarithm of their sum for each row, in memory of its own which it uses again for the next
// rows: neither products nor values of all rows exist at any time.
#pragma once

#include "girih/select_blocks.cuh"
#include "girih/shared/params.cuh"

namespace girih {

constexpr int kEstimateBlocksThreads = 256;
constexpr int kEstimateBlocksRows = 128;     // of products, that a CTA computes at once
constexpr int kEstimateBlocksColumns = 256;  // likewise
constexpr int kEstimateBlocksDepth = 64;     // elements of a row in a stage

struct EstimateBlocksParams {
  struct Operand {
    const void* data;  // [batch, num_tokens, heads, head_dim], by its strides
    Strides strides;
    int num_tokens;
  };
  Operand q, k;
  int tokens;     // of an operand, in a row of products; those beyond num_tokens are zeros
  bool reversed;  // those of q
  int num_planes, num_heads, group_size;

  int seqlen_q, seqlen_k;
  int row_tokens, column_tokens;  // of a sequence, that a row and a column of products stand for
  int num_rows, num_columns;
  int q_block, kv_block;  // tokens of a sequence; multiples of row_tokens and of column_tokens
  int num_q_blocks, num_kv_blocks;
  bool causal;
  float scale_log2;  // of products; more than 0

  bool keep_first;
  int top_k;        // blocks of a row that are taken, or 0 for as many as reach
  float threshold;  // of the row's sum

  float* values;        // of each CTA: [kEstimateBlocksRows, num_kv_blocks]
  unsigned char* mask;  // [num_planes, num_q_blocks, num_kv_blocks]

  GIRIH_HD int num_row_tiles() const { return ceil_div(num_rows, kEstimateBlocksRows); }
  GIRIH_HD int num_works() const { return num_planes * num_row_tiles(); }
  GIRIH_HD int rows_per_block() const { return q_block / row_tokens; }
  GIRIH_HD int columns_per_block() const { return kv_block / column_tokens; }
  // Of a single row they are in the same order as what they stand for.
  GIRIH_HD bool ranks_logarithms() const { return rows_per_block() == 1 && top_k > 0; }

  // The position of the last of `count` queries from `first` on, which exists.
  GIRIH_HD int last_position(int first, int count) const {
    return min(first + count, seqlen_q) - 1 + seqlen_k - seqlen_q;
  }
  // Columns, or blocks of keys, that a row or block of queries sees: causal, those whose first key
  // is not behind its last query.
  GIRIH_HD int visible_columns(int row) const {
    if (row >= num_rows) return 0;
    if (!causal) return num_columns;
    const int last = last_position(row * row_tokens, row_tokens);
    return last < 0 ? 0 : last / column_tokens + 1;
  }
  GIRIH_HD int visible_blocks(int block) const {
    if (block >= num_q_blocks) return 0;
    if (!causal) return num_kv_blocks;
    const int last = last_position(block * q_block, q_block);
    return last < 0 ? 0 : last / kv_block + 1;
  }
  // Of them, the first that holds a position of the block's own queries.
  GIRIH_HD int diagonal(int block) const {
    return max(block * q_block + seqlen_k - seqlen_q, 0) / kv_block;
  }
};

GIRIH_HD constexpr int estimate_blocks_stage_bytes() {
  return (kEstimateBlocksRows + kEstimateBlocksColumns) * 2 * kEstimateBlocksDepth;
}
GIRIH_HD constexpr int estimate_blocks_shared_bytes(int num_stages) {
  return num_stages * estimate_blocks_stage_bytes() + 4 * kEstimateBlocksRows;
}

}  // namespace girih

#ifdef __CUDACC__

#include "girih/ptx/cp_async.cuh"
#include "girih/ptx/mma_sm80.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

template <class Element, int kHeadDim, int kNumStages>
struct EstimateBlocks {
  using Params = EstimateBlocksParams;
  static constexpr int kRows = kEstimateBlocksRows;
  static constexpr int kColumns = kEstimateBlocksColumns;
  static constexpr int kDepth = kEstimateBlocksDepth;
  static constexpr int kWarps = kEstimateBlocksThreads / 32;
  static constexpr int kWarpTile = 64;  // rows and columns
  static constexpr int kWarpsOfRows = kRows / kWarpTile;
  static constexpr int kStageBytes = estimate_blocks_stage_bytes();
  static constexpr int kColumnsOffset = kRows * 2 * kDepth;  // within a stage
  static constexpr float kNoReference = -1e30f;
  // Of a row of blocks, that stages have room for when the products are done.
  static constexpr int kRanksHeld = kNumStages * kStageBytes / 4 / kWarps;

  // Element e of fragment [u][n] is in row 16 * u + e / 2 * 8 + lane / 4 and column 8 * n + 2 *
  // (lane % 4) + e % 2 of a warp's tile.
  using Products = float[kWarpTile / 16][kWarpTile / 8][4];

  struct Work {
    int plane, first_row;
    const uint16 *q, *k;  // of the head
    float* values;        // of the CTA
  };

  static __device__ void run(const Params& p, unsigned char* shared) {
    float* const row_sums = reinterpret_cast<float*>(shared + kNumStages * kStageBytes);
    const int num_works = p.num_works();
    for (int index = blockIdx.x; index < num_works; index += gridDim.x) {
      Work work;
      work.plane = index % p.num_planes;
      // Those that see most go first.
      work.first_row = (p.num_row_tiles() - 1 - index / p.num_planes) * kRows;
      const int batch = work.plane / p.num_heads, head = work.plane % p.num_heads;
      work.q = static_cast<const uint16*>(p.q.data) + batch * p.q.strides.batch +
               head * p.q.strides.head;
      work.k = static_cast<const uint16*>(p.k.data) + batch * p.k.strides.batch +
               head / p.group_size * p.k.strides.head;
      work.values = p.values + int64{kRows} * static_cast<int>(blockIdx.x) * p.num_kv_blocks;
      multiply(p, work, shared);
      __syncthreads();
      if (!p.ranks_logarithms()) {
        find_row_sums(p, work, row_sums);
        __syncthreads();
      }
      select(p, work, row_sums, reinterpret_cast<uint32*>(shared));
      __syncthreads();
    }
  }

 private:
  // --- Products ---

  // Rows of an operand, 16 bytes a copy: every thread has the same chunk of every 32nd row.
  template <int kNumRows>
  static __device__ __forceinline__ void load(uint32 shared, const uint16* data,
                                              const Params::Operand& of, int tokens, bool reversed,
                                              int first_row, int step) {
    constexpr int kChunksOfToken = kHeadDim / 8;
    constexpr int kRowsAtOnce = kEstimateBlocksThreads / (kDepth / 8);
    const int row = static_cast<int>(threadIdx.x) / (kDepth / 8);
    const int chunk = threadIdx.x % (kDepth / 8);
    const int from_row = step * (kDepth / 8) + chunk;
    const int in_row = from_row / kChunksOfToken;
    const bool exists = in_row < tokens;
    int token = (first_row + row) * tokens + (reversed ? tokens - 1 - in_row : in_row);
    const uint16* from = data + token * of.strides.row + from_row % kChunksOfToken * 8;
    const int64 stride = int64{kRowsAtOnce} * tokens * of.strides.row;
    const uint32 to = shared + chunk_offset<kDepth>(row, chunk);
#pragma unroll
    for (int i = 0; i < kNumRows / kRowsAtOnce; ++i) {
      cp_async_16(to + i * kRowsAtOnce * 2 * kDepth, from, exists && token < of.num_tokens);
      from += stride;
      token += kRowsAtOnce * tokens;
    }
  }

  static __device__ void multiply(const Params& p, const Work& work, unsigned char* shared) {
    // The last row that exists sees most.
    const int columns = p.visible_columns(min(work.first_row + kRows, p.num_rows) - 1);
    const int num_tiles = ceil_div(columns, kColumns);
    const int num_steps = ceil_div(p.tokens * kHeadDim, kDepth);  // of a tile
    const uint32 stages = shared_address(shared);
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int warp_row = warp % kWarpsOfRows * kWarpTile;
    const int warp_column = warp / kWarpsOfRows * kWarpTile;

    int load_tile = 0, load_step = 0, load_stage = 0;
    const auto load_next = [&] {
      if (load_tile < num_tiles) {
        const uint32 stage = stages + load_stage * kStageBytes;
        load<kRows>(stage, work.q, p.q, p.tokens, p.reversed, work.first_row, load_step);
        load<kColumns>(stage + kColumnsOffset, work.k, p.k, p.tokens, false, load_tile * kColumns,
                       load_step);
        if (++load_step == num_steps) {
          load_step = 0;
          ++load_tile;
        }
        load_stage = load_stage + 1 == kNumStages ? 0 : load_stage + 1;
      }
      cp_async_commit();
    };
#pragma unroll
    for (int i = 0; i < kNumStages - 1; ++i) load_next();

    int stage = 0;
#pragma unroll 1
    for (int tile = 0; tile < num_tiles; ++tile) {
      Products products;
#pragma unroll
      for (auto& row : products) {
#pragma unroll
        for (auto& fragment : row) {
#pragma unroll
          for (float& element : fragment) element = 0.0f;
        }
      }
#pragma unroll 1
      for (int step = 0; step < num_steps; ++step) {
        cp_async_wait<kNumStages - 2>();
        __syncthreads();
        load_next();
        const uint32 tile_of_q = stages + stage * kStageBytes;
        const MatrixAddress<kDepth> of_q(tile_of_q, warp_row + lane % 16, lane / 16);
        const MatrixAddress<kDepth> of_k(tile_of_q + kColumnsOffset,
                                         warp_column + lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
        for (int depth = 0; depth < kDepth / 16; ++depth) {
          uint32 a[kWarpTile / 16][4];
#pragma unroll
          for (int u = 0; u < kWarpTile / 16; ++u) ldmatrix_x4(a[u], of_q.at(u, depth));
#pragma unroll
          for (int pair = 0; pair < kWarpTile / 16; ++pair) {
            uint32 b[4];
            ldmatrix_x4(b, of_k.at(pair, depth));
#pragma unroll
            for (int u = 0; u < kWarpTile / 16; ++u) {
              mma_m16n8k16<Element>(products[u][2 * pair], a[u], b[0], b[1]);
              mma_m16n8k16<Element>(products[u][2 * pair + 1], a[u], b[2], b[3]);
            }
          }
        }
        stage = stage + 1 == kNumStages ? 0 : stage + 1;
      }
      add_up(p, work, warp_row, tile * kColumns + warp_column, products);
    }
    cp_async_wait<0>();  // none of them is under way when the memory is used for something else
  }

  // Of each row and block the logarithm of the sum of exp2; a product where it is a block's own.
  static __device__ __forceinline__ void add_up(const Params& p, const Work& work, int warp_row,
                                                int first_column, const Products& products) {
    const int lane = threadIdx.x % 32, quad = lane % 4;
    const int per_block = p.columns_per_block();
    const float hidden = __int_as_float(0xff800000);  // -inf
#pragma unroll
    for (int u = 0; u < kWarpTile / 16; ++u) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + 16 * u + 8 * half + lane / 4;
        const int visible = p.visible_columns(work.first_row + row) - first_column - 2 * quad;
        float* const to = work.values + int64{row} * p.num_kv_blocks;
        const auto score = [&](int n, int e) {
          return 8 * n + e < visible ? products[u][n][2 * half + e] * p.scale_log2 : hidden;
        };
        const auto write = [&](int block, float value) {
          if (block < p.num_kv_blocks) to[block] = value;
        };
        if (per_block == 1) {
#pragma unroll
          for (int n = 0; n < kWarpTile / 8; ++n) {
            write(first_column + 8 * n + 2 * quad, score(n, 0));
            write(first_column + 8 * n + 2 * quad + 1, score(n, 1));
          }
          continue;
        }
        float reference = kNoReference;
#pragma unroll
        for (int n = 0; n < kWarpTile / 8; ++n) {
          reference = fmaxf(reference, fmaxf(score(n, 0), score(n, 1)));
        }
        reference = fmaxf(reference, __shfl_xor_sync(0xffffffff, reference, 1));
        reference = fmaxf(reference, __shfl_xor_sync(0xffffffff, reference, 2));
        float sums[kWarpTile / 8];  // of 4 columns, then of as many as there are in a block
#pragma unroll
        for (int n = 0; n < kWarpTile / 8; ++n) {
          sums[n] = exp2_approx(score(n, 0) - reference) + exp2_approx(score(n, 1) - reference);
          sums[n] += __shfl_xor_sync(0xffffffff, sums[n], 1);
          if (per_block >= 8) sums[n] += __shfl_xor_sync(0xffffffff, sums[n], 2);
        }
        if (per_block >= 16) {
#pragma unroll
          for (int n = 0; n < kWarpTile / 8; n += 2) sums[n] += sums[n + 1];
        }
        if (per_block >= 32) {
#pragma unroll
          for (int n = 0; n < kWarpTile / 8; n += 4) sums[n] += sums[n + 2];
        }
#pragma unroll
        for (int n = 0; n < kWarpTile / 8; ++n) {
          const bool own = per_block == 4 ? quad % 2 == 0 : quad == n % 4 && 8 * n % per_block == 0;
          const int column = first_column + 8 * n + (per_block == 4 ? 2 * quad : 0);
          if (own) write(column / per_block, reference + log2f(sums[n]));
        }
      }
    }
  }

  // --- Blocks ---

  // The logarithm of a row's sum over all blocks; +inf where it sees none.
  static __device__ void find_row_sums(const Params& p, const Work& work, float* row_sums) {
    const int lane = threadIdx.x % 32;
    const int rows_per_block = p.rows_per_block();
#pragma unroll 1
    for (int row = static_cast<int>(threadIdx.x) / 32; row < kRows; row += kWarps) {
      const int count = p.visible_blocks((work.first_row + row) / rows_per_block);
      const float* const values = work.values + int64{row} * p.num_kv_blocks;
      float reference = kNoReference, sum = 0.0f;
#pragma unroll 4
      for (int block = lane; block < count; block += 32) {
        reference = fmaxf(reference, values[block]);
      }
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        reference = fmaxf(reference, __shfl_xor_sync(0xffffffff, reference, lanes));
      }
#pragma unroll 4
      for (int block = lane; block < count; block += 32) {
        sum += exp2_approx(values[block] - reference);
      }
#pragma unroll
      for (int lanes = 16; lanes > 0; lanes /= 2) {
        sum += __shfl_xor_sync(0xffffffff, sum, lanes);
      }
      if (lane == 0) row_sums[row] = sum > 0 ? reference + log2f(sum) : __int_as_float(0x7f800000);
    }
  }

  // A warp a block of queries. Its ranks take the place of values that are done with.
  static __device__ void select(const Params& p, const Work& work, const float* row_sums,
                                uint32* held) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32;
    const int rows_per_block = p.rows_per_block();
#pragma unroll 1
    for (int row = warp * rows_per_block; row < kRows; row += kWarps * rows_per_block) {
      const int block = (work.first_row + row) / rows_per_block;
      if (block >= p.num_q_blocks) break;
      const float* const of_rows = work.values + int64{row} * p.num_kv_blocks;
      BlockRow blocks;
      blocks.count = p.visible_blocks(block);
      blocks.ranks = blocks.count <= kRanksHeld
                         ? held + warp * kRanksHeld
                         : reinterpret_cast<uint32*>(work.values) + int64{row} * p.num_kv_blocks;
      blocks.diagonal_begin = p.causal ? p.diagonal(block) : 0;
      blocks.diagonal_end = p.causal ? blocks.count : 0;
      blocks.keep_first = p.keep_first;
      blocks.forced = 0.0f;
#pragma unroll 2
      for (int column = lane; column < blocks.count; column += 32) {
        float value = 0.0f;
        if (p.ranks_logarithms()) {
          value = of_rows[column];
        } else {
#pragma unroll 4
          for (int i = 0; i < rows_per_block; ++i) {
            value += exp2_approx(of_rows[int64{i} * p.num_kv_blocks + column] - row_sums[row + i]);
          }
        }
        SelectBlocks::put(blocks, column, value);
      }
      SelectBlocks::run(blocks, p.top_k, p.threshold,
                        p.mask + (int64{work.plane} * p.num_q_blocks + block) * p.num_kv_blocks,
                        p.num_kv_blocks);
    }
  }
};

}  // namespace girih

#endif  // __CUDACC__
