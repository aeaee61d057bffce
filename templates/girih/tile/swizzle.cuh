// Tiles in shared memory: rows of 16-byte chunks, chunk c of row r stored at c ^ (r % 8), so that
// eight rows' same chunk lie in different banks (ldmatrix reads such columns, copies write rows).
// A tile starts at a multiple of 128 bytes.
#pragma once

#include "girih/shared/smem_layout.cuh"

namespace girih {

__device__ __forceinline__ uint32 shared_address(const void* pointer) {
  return static_cast<uint32>(__cvta_generic_to_shared(pointer));
}

// Byte offset of a chunk in a tile.
template <int kHeadDim>
__device__ __forceinline__ uint32 chunk_offset(int row, int chunk) {
  return row * row_pitch_bytes(kHeadDim) + ((chunk ^ (row & 7)) << 4);
}

// A lane's addresses for ldmatrix: chunk `first_chunk` (0 or 1) of a row, and from there steps of
// 16 rows and of two chunks (16 elements). The swizzle repeats every 8 chunks, so a step is one
// xor and an immediate: nothing is kept per step.
template <int kHeadDim>
struct MatrixAddress {
  uint32 base;

  __device__ __forceinline__ MatrixAddress(uint32 tile, int row, int first_chunk)
      : base(tile + chunk_offset<kHeadDim>(row, first_chunk)) {}

  __device__ __forceinline__ uint32 at(int row_step, int chunk_step) const {
    return (base ^ (chunk_step % 4 << 5)) + chunk_step / 4 * 128 +
           row_step * 16 * row_pitch_bytes(kHeadDim);
  }
};

}  // namespace girih
