// Split query tiles in the Hopper kernel: counting what tiles visit, the works that a launch has
// instead of tiles, results of parts, and merging those.
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/attn/schedule.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/attn/split_rows.cuh"
#include "girih/ptx/convert.cuh"

namespace girih {

// Whether a kernel may split tiles at all; an entry of one that does says kSplits.
template <class Config>
constexpr bool kSplitsTiles = requires {
  Config::kSplits;
};

// A part of a query tile's description that only kernels have which split.
template <bool kSplits>
struct PartOfTile {
  static __device__ constexpr bool is_part() { return false; }
};
template <>
struct PartOfTile<true> {
  int first_box;  // that it may visit
  int end_box;
  float* part_out;  // [block_m, head_dim_v], where its result goes; null: the whole tile
  float* part_lse;  // [block_m]

  __device__ __forceinline__ bool is_part() const { return part_out != nullptr; }
};

// Kernel is a FwdSm90.
template <class Kernel>
struct SplitsSm90 {
  using Work = typename Kernel::Work;
  static constexpr int kWarps = kSplitThreads / 32;
  static constexpr int kBlockM = Kernel::kBlockM;
  static constexpr int kHeadDimV = Kernel::kHeadDimV;

  // --- Planning; a kernel of its own

  static __device__ __forceinline__ void plan(const FwdParams& params,
                                              const typename Kernel::Heads& heads,
                                              const InputView* inputs, const SplitMemory& memory,
                                              SplitPhase phase) {
    constexpr int kBoxesPerVisit = Kernel::kBlockN / Kernel::kScanBox;
    const bool samples = phase == SplitPhase::sample;
    if (!samples && samples_show_no_heavy_tile(memory)) return;
    if (phase == SplitPhase::choose) {
      ChooseSplits::run(memory, params, kBoxesPerVisit);
      return;
    }
    __shared__ __align__(16) unsigned char works[kWarps][sizeof(Work)];
    const int warp = threadIdx.x / 32;
    Work& work = *reinterpret_cast<Work*>(works[warp]);
    const bool places = phase == SplitPhase::place;
    const int num_tiles = places    ? memory.header->num_split_tiles
                          : samples ? params.num_tiles / memory.sample_step
                                    : params.num_tiles;
    const int step = gridDim.x * kWarps;
#pragma unroll 1
    for (int i = blockIdx.x * kWarps + warp; i < num_tiles; i += step) {
      const SplitTile* const split = places ? memory.tiles + i : nullptr;
      const int tile = places ? split->tile : samples ? sampled_tile(i, memory.sample_step) : i;
      bool described = false;
      if (fresh_thread_index() % 32 == 0) {
        described = Kernel::describe(work, params, heads, inputs, tile);
      }
      described = __shfl_sync(0xffffffff, described, 0);
      __syncwarp();
      int visits = kNoRows;
      if (described) {
        const KeyTiles boxes{Kernel::kScanBox, work.geometry.seqlen_k};
        const int count = boxes.count();
        const auto seek = [&](int part, int n) {
          return Kernel::seek_boxes(work, boxes, count, part, n);
        };
        const int found = place_parts<typename Kernel::Scan>(seek, count, split, memory.items);
        visits = ceil_div(found, kBoxesPerVisit);
      }
      if (fresh_thread_index() % 32 == 0) {
        if (phase == SplitPhase::count) memory.visits[tile] = visits;
        if (samples) {
          atomicAdd(&memory.header->sampled_cost, static_cast<uint64>(split_cost(visits)));
        }
      }
      __syncwarp();
    }
  }

  // --- Scheduling

  static __device__ __forceinline__ int num_items(const FwdParams& params,
                                                  const SplitMemory& memory) {
    return memory.is_for(params) ? memory.header->num_items : 0;
  }

  // The tile that work `index` is of: what goes first comes first, then all tiles in their order.
  // Negative where it is one of those that went first.
  static __device__ __forceinline__ int describe(Work& work, const SplitMemory& memory,
                                                 int num_items, int index) {
    work.first_box = 0;
    work.end_box = kNoBox;
    work.part_out = work.part_lse = nullptr;
    if (index >= num_items) {
      const int tile = index - num_items;
      return num_items > 0 && memory.visits[tile] == kGoesFirst ? -1 : tile;
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
  static __device__ __forceinline__ void merge(const FwdParams& params, const SplitMemory& memory) {
    if (!memory.is_for(params)) return;
    const int num_rows = memory.header->num_split_tiles * kBlockM;
    const int step = gridDim.x * kWarps;
#pragma unroll 1
    for (int i = blockIdx.x * kWarps + threadIdx.x / 32; i < num_rows; i += step) {
      const SplitTile split = memory.tiles[i / kBlockM];
      const int row = i % kBlockM;
      const QueryTile at = query_tile(params, split.tile, Kernel::kHeadsPerTile);
      const Sequence sequence = sequence_of(params, at.batch);
      const int head = at.head + row / Kernel::kRowsPerHead;
      const int head_row = at.m_block * Kernel::kRowsPerHead + row % Kernel::kRowsPerHead;
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
  // Returns the row's lse. A part of which it sees nothing says so by an infinite one.
  static __device__ __forceinline__ float merge_row(const float* part_lse, const float* part_out,
                                                    int num_parts, uint16* out, float empty_lse) {
    const int lane = threadIdx.x % 32;
    float highest = kMinusInfinity;
#pragma unroll 1
    for (int part = lane; part < num_parts; part += 32) {
      const float lse = part_lse[part * kBlockM];
      if (!isinf(lse)) highest = fmaxf(highest, lse);
    }
    const auto weight = [&](int part) {
      constexpr float kLog2E = 1.44269504088896341f;
      const float lse = part_lse[part * kBlockM];
      return isinf(lse) ? 0.0f : exp2_approx((lse - highest) * kLog2E);
    };
#pragma unroll 1
    for (int delta = 16; delta > 0; delta /= 2) {
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, delta));
    }
    float sum = 0.0f;
#pragma unroll 1
    for (int part = lane; part < num_parts; part += 32) sum += weight(part);
#pragma unroll 1
    for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_xor_sync(0xffffffff, sum, delta);
    const float factor = sum == 0.0f ? 0.0f : reciprocal_approx(sum);

#pragma unroll 1
    for (int column = 4 * lane; column < kHeadDimV; column += 128) {
      float4 merged = {};
#pragma unroll 8
      for (int part = 0; part < num_parts; ++part) {
        const float w = weight(part);
        const float4 own = *reinterpret_cast<const float4*>(
            part_out + int64{part} * (kBlockM * kHeadDimV) + column);
        merged.x += w * own.x;
        merged.y += w * own.y;
        merged.z += w * own.z;
        merged.w += w * own.w;
      }
      using Element = typename Kernel::Element;
      *reinterpret_cast<uint2*>(out + column) =
          make_uint2(pack<Element>(merged.x * factor, merged.y * factor),
                     pack<Element>(merged.z * factor, merged.w * factor));
    }
    return sum == 0.0f ? empty_lse : highest + logf(sum);
  }
};

}  // namespace girih
