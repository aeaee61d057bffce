// Copies rows of a tensor into a swizzled tile.
#pragma once

#include "girih/ptx/cp_async.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Rows [first_row, first_row + kRows) of a [num_rows, kHeadDim] tensor, by all kNumThreads threads.
// Rows that do not exist become zeros and are not read: a sequence's padding may hold anything.
template <int kRows, int kHeadDim, int kNumThreads>
__device__ __forceinline__ void load_tile(uint32 tile, const uint16* tensor, int64 row_stride,
                                          int first_row, int num_rows) {
  constexpr int kChunksPerRow = kHeadDim / 8;
  constexpr int kLanesPerRow = min(kChunksPerRow & -kChunksPerRow, 16);  // a power of two
  constexpr int kRowsPerPass = kNumThreads / kLanesPerRow;
  static_assert(kRowsPerPass % 8 == 0, "a thread's rows share their swizzle");

  const int row = static_cast<int>(threadIdx.x) / kLanesPerRow;
  const int lane = static_cast<int>(threadIdx.x) % kLanesPerRow;
  const uint16* source = tensor + (first_row + row) * row_stride + 8 * lane;
  const int existing = num_rows - first_row - row;
#pragma unroll
  for (int pass = 0; pass < ceil_div(kRows, kRowsPerPass); ++pass) {
    if (kRows % kRowsPerPass != 0 && pass * kRowsPerPass + row >= kRows) break;
#pragma unroll
    for (int chunk = 0; chunk < kChunksPerRow; chunk += kLanesPerRow) {
      cp_async_16(tile + chunk_offset<kHeadDim>(row, lane + chunk) +
                      pass * kRowsPerPass * row_pitch_bytes(kHeadDim),
                  source + 8 * chunk, pass * kRowsPerPass < existing);
    }
    source += kRowsPerPass * row_stride;
  }
}

}  // namespace girih
