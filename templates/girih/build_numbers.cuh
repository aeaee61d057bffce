// Lays out tokens' numbers as atoms read them (shared/token_numbers.cuh): copies them, and finds
// the ranges of blocks and spans. A CTA makes one span after the other.
#pragma once

#include "girih/shared/token_numbers.cuh"

namespace girih {

constexpr int kBuildNumbersThreads = 256;
constexpr int kMaxSides = 4;

struct BuildNumbersParams {
  // Plane (b, h) has the numbers from b * batch_stride + h / planes_per_head * head_stride on,
  // token_stride apart. Without any, they are 0.
  struct Source {
    const int* numbers;
    int64 batch_stride, head_stride, token_stride;
    int planes_per_head;
    int num_tokens;
  };
  Source sources[kMaxSides];
  int num_sides;

  int* out;  // [num_planes, num_sides, TokenNumbers::kWordsPerSpan * num_spans]
  int num_planes;
  int planes_per_batch;
  int num_spans;
};

#ifdef __CUDACC__

struct BuildNumbers {
  static constexpr int kWarps = kBuildNumbersThreads / 32;

  // `ranges` holds those of the span's blocks; by all threads.
  static __device__ void make_span(const BuildNumbersParams::Source& source, const int* from,
                                   int* side, int num_spans, int span, NumberRange* ranges) {
    using Layout = TokenNumbers;
    static_assert(Layout::kBlock == 32 && Layout::kBlocksPerSpan == 32, "a lane for each");
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    auto* const block_ranges =
        reinterpret_cast<NumberRange*>(side + Layout::block_ranges(num_spans));
    auto* const span_ranges = reinterpret_cast<NumberRange*>(side + Layout::span_ranges(num_spans));
    for (int i = warp; i < Layout::kBlocksPerSpan; i += kWarps) {
      const int token = span * Layout::kSpan + i * Layout::kBlock + lane;
      const bool exists = token < source.num_tokens;
      const int number =
          exists && source.numbers != nullptr ? from[token * source.token_stride] : 0;
      side[token] = number;
      const NumberRange range{__reduce_min_sync(0xffffffff, exists ? number : kNoNumbers.least),
                              __reduce_max_sync(0xffffffff, exists ? number : kNoNumbers.most)};
      if (lane == 0) {
        ranges[i] = range;
        block_ranges[span * Layout::kBlocksPerSpan + i] = range;
      }
    }
    __syncthreads();
    if (warp == 0) {
      const NumberRange own = ranges[lane];
      const NumberRange range{__reduce_min_sync(0xffffffff, own.least),
                              __reduce_max_sync(0xffffffff, own.most)};
      if (lane == 0) span_ranges[span] = range;
    }
    __syncthreads();
  }

  static __device__ void run(const BuildNumbersParams& p) {
    __shared__ NumberRange ranges[TokenNumbers::kBlocksPerSpan];
    const int64 count = int64{p.num_planes} * p.num_sides * p.num_spans;
    for (int64 index = blockIdx.x; index < count; index += gridDim.x) {
      const int span = static_cast<int>(index % p.num_spans);
      const int64 plane_side = index / p.num_spans;
      const int plane = static_cast<int>(plane_side / p.num_sides);
      const BuildNumbersParams::Source& source = p.sources[plane_side % p.num_sides];
      const int* from = source.numbers + plane / p.planes_per_batch * source.batch_stride +
                        plane % p.planes_per_batch / source.planes_per_head * source.head_stride;
      make_span(source, from, p.out + plane_side * TokenNumbers::kWordsPerSpan * p.num_spans,
                p.num_spans, span, ranges);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
