// Split query tiles in the Hopper kernel: planning them, the works that a launch has instead of
// tiles, results of parts, and merging those.
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/attn/part_of_tile.cuh"
#include "girih/attn/schedule.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/attn/split_rows.cuh"
#include "girih/ptx/convert.cuh"
#include "girih/ptx/warp.cuh"

namespace girih {

// Pipeline is a PipelineSm90.
template <class Pipeline>
struct SplitsSm90 {
  using Work = typename Pipeline::Work;
  static constexpr int kWarps = kSplitThreads / 32;
  static constexpr int kBlockM = Pipeline::kBlockM;
  static constexpr int kHeadDimV = Pipeline::kHeadDimV;

  // --- Planning; a kernel of its own

  // Counts what tiles visit, a warp a tile; or chooses, by one CTA, and places parts.
  static __device__ __forceinline__ void plan(const FwdParams& params,
                                              const typename Pipeline::Heads& heads,
                                              const InputView* inputs, const SplitMemory& memory,
                                              SplitPhase phase) {
    const bool counts = phase == SplitPhase::count;
    if (!counts && !ChooseSplits::run(memory, params)) return;
    const int num_tiles = counts ? params.num_tiles : memory.header->num_split_tiles;
    const int step = gridDim.x * kWarps;
    uint64 cost = 0;
#pragma unroll 1
    for (int i = blockIdx.x * kWarps + threadIdx.x / 32; i < num_tiles; i += step) {
      const SplitTile* const split = counts ? nullptr : memory.tiles + i;
      const int tile = counts ? i : split->tile;
      const QueryTile at = query_tile(params, tile, Pipeline::kHeadsPerTile);
      Geometry geometry = sequence_of(params, at.batch).geometry;
      geometry.inputs = inputs;
      geometry.batch = at.batch;
      geometry.local_head = at.head;
      const int first_row = at.m_block * Pipeline::kRowsPerHead;
      const auto& head = heads.rows[Pipeline::Heads::kCapacity == 1 ? 0 : at.head];
      const TileColumns columns = TileColumns::of(
          typename Pipeline::Classes{}, Pipeline::Classes::kCount == 1 ? 0 : head.head_class,
          head.numbers, geometry,
          {first_row, min(first_row + Pipeline::kRowsPerHead, geometry.seqlen_q)});
      const int found = columns.walk(split, memory.items, Pipeline::kBlockN, Pipeline::kScanBox);
      if (!counts) continue;
      const int visits = ceil_div(found * columns.kv_block, Pipeline::kBlockN);
      memory.visits[tile] = visits;
      if (first_row >= geometry.seqlen_q) continue;
      cost +=
          split_cost(columns.is_listed ? visits : ceil_div(columns.num_keys, Pipeline::kBlockN));
    }
    if (counts) add_cost(cost, memory.header->cost);
  }

  // Of a CTA's warps at once: additions to one number in global memory follow one another.
  static __device__ __forceinline__ void add_cost(uint64 of_warp, uint64& total) {
    __shared__ uint64 costs[kWarps];
    if (threadIdx.x % 32 == 0) costs[threadIdx.x / 32] = of_warp;
    __syncthreads();
    if (threadIdx.x != 0) return;
    uint64 cost = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) cost += costs[i];
    atomicAdd(&total, cost);
  }

  // --- Scheduling

  static __device__ __forceinline__ int num_items(const FwdParams& params,
                                                  const SplitMemory& memory) {
    return memory.is_for(params) ? memory.header->num_items : 0;
  }

  // The tile that work `index` is of: what goes first comes first, then all tiles in their order.
  // Negative where it is one of those that went first.
  static __device__ __forceinline__ int describe(Work& work, const FwdParams& params,
                                                 const SplitMemory& memory, int num_items,
                                                 int index) {
    work.first_box = 0;
    work.end_box = kNoBox;
    work.part_out = work.part_lse = nullptr;
    if (index >= num_items) {
      const int tile = index - num_items;
      const bool went_first =
          num_items > 0 && tile < params.num_tiles && memory.visits[tile] == kGoesFirst;
      return went_first ? -1 : tile;
    }
    const SplitItem item = memory.items[index];
    work.first_box = item.first_box;
    if (index + 1 < num_items) {
      const SplitItem next = memory.items[index + 1];
      if (next.tile == item.tile) work.end_box = next.first_box;
    }
    if (item.slot >= 0) {
      work.part_lse = memory.lse + int64{item.slot} * kBlockM;
      work.part_out = memory.out + int64{item.slot} * (kBlockM * kHeadDimV);
    }
    return item.tile;
  }

  // --- Results

  // Keeps a row of a part, of which a thread has two neighbouring columns in each fragment.
  template <int kDimFragments>
  static __device__ __forceinline__ void keep(const Work& work,
                                              const float (&output)[kDimFragments][4], int r,
                                              int row, float factor, float lse) {
    const int quad_lane = fresh_thread_index() % 4;
    if (quad_lane == 0) work.part_lse[row] = lse;
    float* const out = work.part_out + row * kHeadDimV + 2 * quad_lane;
#pragma unroll
    for (int d = 0; d < kDimFragments; ++d) {
      *reinterpret_cast<float2*>(out + 8 * d) =
          make_float2(output[d][2 * r] * factor, output[d][2 * r + 1] * factor);
    }
  }

  // Merges the parts of every split tile, a warp a row; a kernel of its own, after the other.
  // Leaves the other's counter of query tiles as the next launch needs it, whatever became of the
  // plan while that ran.
  static __device__ __forceinline__ void merge(const FwdParams& params, const SplitMemory& memory,
                                               int* counter) {
    if (counter != nullptr && blockIdx.x == 0 && threadIdx.x == 0) *counter = 0;
    if (!memory.is_for(params)) return;
    const int num_rows = memory.header->num_split_tiles * kBlockM;
    const int step = gridDim.x * kWarps;
#pragma unroll 1
    for (int i = blockIdx.x * kWarps + threadIdx.x / 32; i < num_rows; i += step) {
      const SplitTile split = memory.tiles[i / kBlockM];
      const int row = i % kBlockM;
      const QueryTile at = query_tile(params, split.tile, Pipeline::kHeadsPerTile);
      const Sequence sequence = sequence_of(params, at.batch);
      const int head = at.head + row / Pipeline::kRowsPerHead;
      const int head_row = at.m_block * Pipeline::kRowsPerHead + row % Pipeline::kRowsPerHead;
      if (head_row >= sequence.geometry.seqlen_q) continue;

      uint16* const out =
          static_cast<uint16*>(params.out) +
          offset(params.out_strides, sequence.q_batch, sequence.q_row + head_row, head);
      const int64 first_row = int64{split.first_slot} * kBlockM + row;
      const float lse = merge_row(memory.lse + first_row, memory.out + first_row * kHeadDimV,
                                  split.num_parts, out, params.empty_lse);
      if (params.lse != nullptr && threadIdx.x % 32 == 0) {
        params.lse[offset(params.lse_strides, sequence.q_batch, sequence.q_row + head_row, head)] =
            lse;
      }
    }
  }

 private:
  // Returns the row's lse. A part of which it sees nothing says so by an infinite one. Weights are
  // as exact as lse is: to 1e-4 where it is 1000.
  static __device__ __forceinline__ float merge_row(const float* part_lse, const float* part_out,
                                                    int num_parts, uint16* out, float empty_lse) {
    constexpr float kLog2E = 1.44269504088896341f;
    float highest = kMinusInfinity, sum = 0.0f;
#pragma unroll 1
    for (int column = threadIdx.x % 32 * 4; column < kHeadDimV; column += 128) {
      float4 merged = {};
      highest = kMinusInfinity;
      sum = 0.0f;
#pragma unroll 4
      for (int part = 0; part < num_parts; ++part) {
        const float lse = part_lse[part * kBlockM];
        const float4 own =
            *reinterpret_cast<const float4*>(part_out + part * (kBlockM * kHeadDimV) + column);
        if (isinf(lse)) continue;
        const float higher = fmaxf(highest, lse);
        const float shrink = exp2_approx((highest - higher) * kLog2E);
        const float weight = exp2_approx((lse - higher) * kLog2E);
        highest = higher;
        sum = sum * shrink + weight;
        merged.x = merged.x * shrink + weight * own.x;
        merged.y = merged.y * shrink + weight * own.y;
        merged.z = merged.z * shrink + weight * own.z;
        merged.w = merged.w * shrink + weight * own.w;
      }
      const float factor = sum == 0.0f ? 0.0f : reciprocal_approx(sum);
      using Element = typename Pipeline::Element;
      *reinterpret_cast<uint2*>(out + column) =
          make_uint2(pack<Element>(merged.x * factor, merged.y * factor),
                     pack<Element>(merged.z * factor, merged.w * factor));
    }
    return sum == 0.0f ? empty_lse : highest + logf(sum);
  }
};

}  // namespace girih
