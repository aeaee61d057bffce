// Turns block lists and byte masks into the bits that kernels walk over: one warp for each row of
// blocks. Every word of the destination is written once, by whatever order the indices come in.
#pragma once

#include "girih/shared/inputs.cuh"

namespace girih {

constexpr int kBuildListsThreads = 256;

// A source is one of
//   indptr   row r of plane p has indices[p * plane_stride + indptr[p * (num_rows + 1) + r], ...
//            up to indptr[... + r + 1]), clipped to [0, num_indices)
//   counts   it has the first counts[p * num_rows + r], at most row_capacity, of the row_capacity
//            indices from (p * num_rows + r) * row_capacity on
//   mask     bytes, not 0 where visible, from b * batch_stride + h * plane_stride + r * row_stride
//            on, with p = b * planes_per_batch + h
struct BuildListsParams {
  const int* indptr;
  const int* counts;
  const int* indices;
  const unsigned char* mask;
  int64 num_indices;
  int64 batch_stride, plane_stride, row_stride;
  int planes_per_batch;
  int row_capacity;

  uint32* bits;  // [num_planes, num_rows, words_per_row]
  int num_planes;
  int num_rows;
  int num_columns;
  int words_per_row;
  int* num_ignored;  // counts indices outside [0, num_columns) and rows outside their list; or null
};

#ifdef __CUDACC__

struct BuildLists {
  static constexpr int kWarps = kBuildListsThreads / 32;
  static constexpr int kChunkWords = 256;  // of a row, 8192 columns, are gathered at a time

  static __device__ void gather_indices(const BuildListsParams& p, int64 row, uint32* words) {
    const int lane = threadIdx.x % 32;
    const int plane = static_cast<int>(row / p.num_rows);
    int64 begin, end;
    bool outside = false;
    if (p.indptr != nullptr) {
      const int* indptr = p.indptr + row + plane;  // planes have one entry more than rows
      const int64 first = plane * p.plane_stride;
      begin = first + indptr[0];
      end = first + indptr[1];
      outside = begin < first || end < begin || end > p.num_indices;
      begin = begin < first ? first : begin;
      end = end > p.num_indices ? p.num_indices : end;
    } else {
      const int count = p.counts[row];
      outside = count < 0 || count > p.row_capacity;
      begin = row * p.row_capacity;
      end = begin + min(max(count, 0), p.row_capacity);
    }

    uint32* out = p.bits + row * p.words_per_row;
    int ignored = outside && lane == 0 ? 1 : 0;
    for (int first_word = 0; first_word < p.words_per_row; first_word += kChunkWords) {
      const int chunk_words = min(kChunkWords, p.words_per_row - first_word);
      for (int w = lane; w < chunk_words; w += 32) words[w] = 0;
      __syncwarp();
      for (int64 i = begin + lane; i < end; i += 32) {
        const int column = p.indices[i];
        if (column < 0 || column >= p.num_columns) {
          if (first_word == 0) ++ignored;
          continue;
        }
        const int word = column / 32 - first_word;
        if (0 <= word && word < chunk_words) atomicOr(words + word, 1u << column % 32);
      }
      __syncwarp();
      for (int w = lane; w < chunk_words; w += 32) out[first_word + w] = words[w];
      __syncwarp();
    }
    if (p.num_ignored != nullptr && ignored > 0) atomicAdd(p.num_ignored, ignored);
  }

  static __device__ void pack_bytes(const BuildListsParams& p, int64 row) {
    const int lane = threadIdx.x % 32;
    const int plane = static_cast<int>(row / p.num_rows);
    const unsigned char* bytes = p.mask + plane / p.planes_per_batch * p.batch_stride +
                                 plane % p.planes_per_batch * p.plane_stride +
                                 row % p.num_rows * p.row_stride;
    uint32* out = p.bits + row * p.words_per_row;
    for (int w = 0; w < p.words_per_row; ++w) {
      const int column = 32 * w + lane;
      const uint32 word = __ballot_sync(0xffffffff, column < p.num_columns && bytes[column] != 0);
      if (lane == w % 32) out[w] = word;
    }
  }

  static __device__ void run(const BuildListsParams& p) {
    __shared__ uint32 words[kWarps][kChunkWords];
    const int warp = threadIdx.x / 32;
    const int64 num_rows = int64{p.num_planes} * p.num_rows;
    const int64 step = int64{gridDim.x} * kWarps;
    for (int64 row = int64{blockIdx.x} * kWarps + warp; row < num_rows; row += step) {
      if (p.mask != nullptr) {
        pack_bytes(p, row);
      } else {
        gather_indices(p, row, words[warp]);
      }
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
