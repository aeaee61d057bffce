// Tiles as wgmma and the copy engine see them (PTX ISA, "Matrix Descriptor Format"): a row of
// head_dim elements is split into panels of 64 (128 bytes), a panel holds its rows one after the
// other, and 16-byte chunks are swizzled within groups of 8 rows (tile/swizzle.cuh). Tiles start at
// multiples of 1024 bytes.
#pragma once

#include "girih/shared/smem_layout.cuh"

namespace girih {

constexpr int kPanelColumns = 64;
constexpr int kPanelRowBytes = 128;

// Where an operand starts. Steps through a tile change the address alone, which counts 16 bytes and
// never overflows.
struct MatrixDescriptor {
  uint32 low;
  // 1024 bytes per 8 rows; 128-byte swizzle.
  static constexpr uint64 kHigh = uint64{1024 >> 4 | 1u << 30} << 32;

  __device__ __forceinline__ uint64 at(int offset) const { return kHigh | (low + offset); }
};

// Rows are the operand's rows (or, of b, its columns), contiguous along the summed dimension: a
// k16 step is 32 bytes within a panel.
template <int kRows>
struct RowOperand : MatrixDescriptor {
  __device__ __forceinline__ explicit RowOperand(uint32 tile) : MatrixDescriptor{tile >> 4} {}
  static __device__ constexpr int offset(int k) {
    return (k / 4 * kRows * kPanelRowBytes + k % 4 * 32) >> 4;
  }
};

// Rows are the summed dimension, contiguous along b's columns: a k16 step is 16 rows. The
// descriptor also holds the distance of panels.
template <int kRows>
struct ColumnOperand : MatrixDescriptor {
  __device__ __forceinline__ explicit ColumnOperand(uint32 tile)
      : MatrixDescriptor{tile >> 4 | kRows * kPanelRowBytes >> 4 << 16} {}
  static __device__ constexpr int offset(int k) { return k * 16 * kPanelRowBytes >> 4; }
};

}  // namespace girih
