// Finds the tiles in which an expression's condition holds for some elements and for all
// (shared/expression.cuh), by evaluating it: a warp makes one tile after the other, and looks no
// further in one where it holds for some elements and not for others.
#pragma once

#include "girih/shared/expression.cuh"
#include "girih/shared/params.cuh"
#ifdef __CUDACC__
#include "girih/attn/sequence.cuh"
#endif

namespace girih {

constexpr int kBuildTilesThreads = 128;
// On a multiprocessor, at least: without a number ptxas spills some registers to fit one more.
constexpr int kBuildTilesCtas = 4;
constexpr int kMostExpressionTensors = 16;

struct BuildTilesParams {
  int condition;  // which of the kernel's
  int places[kMostExpressionTensors];

  uint32* bits;  // TileBits [num_planes, num_rows, 2, words_per_row]
  int num_planes;
  int planes_per_batch;  // planes of one sequence
  int heads_per_plane;
  int shared_by_batch;  // not 0: there are planes of one sequence, the longest, for all
  int num_rows;         // of blocks
  int words_per_row;
};

#ifdef __CUDACC__

template <class... Conditions>
struct BuildTiles {
  static constexpr int kWarps = kBuildTilesThreads / 32;
  static constexpr int kBlock = TileBits::kBlock;
  static constexpr int kRowsAtOnce = 8;  // between two looks at what others have found

  // Of the tile whose first element is `first_row`, `first_key`; by a warp, the same in all lanes.
  template <class Condition>
  static __device__ TileKind kind_of(const Condition& condition, const Geometry& g, int first_row,
                                     int first_key) {
    const int lane = threadIdx.x % 32;
    const int end_row = min(first_row + kBlock, g.seqlen_q);
    const int end_key = min(first_key + kBlock, g.seqlen_k);
    bool visible = false, hidden = false;
    for (int row = first_row; row < end_row;) {
      const int end = min(row + kRowsAtOnce, end_row);
      for (; row < end; ++row) {
        ElementIndices at(g, row, first_key + lane);
        for (; at.k < end_key; at.k += 32) {
          const bool holds = condition(at);
          visible |= holds;
          hidden |= !holds;
        }
      }
      if (__any_sync(0xffffffff, visible) && __any_sync(0xffffffff, hidden)) {
        return TileKind::partial;
      }
    }
    return __any_sync(0xffffffff, visible) ? TileKind::full : TileKind::empty;
  }

  template <class Condition>
  static __device__ void build(const BuildTilesParams& p, const FwdParams& params,
                               const InputView* inputs) {
    __shared__ uint32 words[2];
    const int warp = threadIdx.x / 32;
    const int64 count = int64{p.num_planes} * p.num_rows * p.words_per_row;
    for (int64 index = blockIdx.x; index < count; index += gridDim.x) {
      const int word = static_cast<int>(index % p.words_per_row);
      const int row = static_cast<int>(index / p.words_per_row % p.num_rows);
      const int plane = static_cast<int>(index / p.words_per_row / p.num_rows);
      const int batch = plane / p.planes_per_batch;
      const int head = plane % p.planes_per_batch * p.heads_per_plane;
      Geometry g = params.geometry;
      if (p.shared_by_batch == 0) {
        g = sequence_of(params, batch).geometry;
      } else if (params.bottom_right) {
        g.q_start = g.k_start + g.seqlen_k - g.seqlen_q;
      }
      g.head += head;
      g.head_kv += head / g.group_size;
      g.batch = batch;
      g.local_head = head;
      g.inputs = inputs;

      if (threadIdx.x < 2) words[threadIdx.x] = 0;
      __syncthreads();
      const Condition condition{{inputs, p.places}};
      for (int i = warp; i < 32; i += kWarps) {
        const int first_key = (32 * word + i) * kBlock;
        if (first_key >= g.seqlen_k || row * kBlock >= g.seqlen_q) break;
        const TileKind kind = kind_of(condition, g, row * kBlock, first_key);
        if (threadIdx.x % 32 == 0 && kind != TileKind::empty) {
          atomicOr(words + TileBits::kSome, 1u << i);
          if (kind == TileKind::full) atomicOr(words + TileBits::kAll, 1u << i);
        }
      }
      __syncthreads();
      if (threadIdx.x < 2) {
        p.bits[(int64{2} * (int64{plane} * p.num_rows + row) + threadIdx.x) * p.words_per_row +
               word] = words[threadIdx.x];
      }
      __syncthreads();
    }
  }

  static __device__ void run(const BuildTilesParams& p, const FwdParams& params,
                             const InputView* inputs) {
    int index = 0;
    ((p.condition == index++ ? build<Conditions>(p, params, inputs) : void()), ...);
  }
};

#endif  // __CUDACC__

}  // namespace girih
