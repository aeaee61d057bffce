// What the Hopper kernel knows of parts of query tiles; what it does with them is in
// attn/splits_sm90.cuh, which an entry includes that splits.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

struct SplitMemory;
template <class Pipeline>
struct SplitsSm90;

// Whether a kernel may split tiles at all; an entry of one that does says kSplits.
template <class Config>
concept SplitsTiles = requires {
  Config::kSplits;
};

// Of a query tile's description what only kernels have that split.
template <class Config>
struct PartOfTile {
  static __device__ constexpr bool is_part() { return false; }
};
template <SplitsTiles Config>
struct alignas(16) PartOfTile<Config> {
  int first_box;  // that it may visit
  int end_box;
  float* part_out;  // [block_m, head_dim_v], where its result goes; null: it is the whole tile
  float* part_lse;  // [block_m]

  __device__ __forceinline__ bool is_part() const { return part_out != nullptr; }
};

}  // namespace girih
