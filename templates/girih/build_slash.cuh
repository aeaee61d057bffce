// Turns lists of columns and distances into the rows of bits that vertical_slash reads
// (shared/slash.cuh), in two launches: `sort` makes bits of both lists, a CTA a plane; `windows`
// finds the windows of every block of query rows, a warp a block.
#pragma once

#include "girih/shared/params.cuh"
#include "girih/shared/slash.cuh"
#ifdef __CUDACC__
#include "girih/attn/sequence.cuh"
#endif

namespace girih {

constexpr int kBuildSlashThreads = 256;

struct BuildSlashParams {
  enum class Phase : int { sort, windows };
  Phase phase;

  // Plane (b, h) has rows b * planes_per_source_batch + h. Entries outside of [0, seqlen_k) and of
  // [0, num_distances) show nothing; those that are not -1 are counted where num_ignored is not
  // null.
  const int* columns;    // [planes, num_columns]
  const int* distances;  // [planes, num_distances_given]
  int num_columns;
  int num_distances_given;
  int planes_per_source_batch;  // 0 where all sequences share
  int* num_ignored;

  uint32* bits;           // [num_planes, 1 + num_blocks, words_per_row]
  uint32* distance_bits;  // [num_planes, ceil(num_distances / 32)]
  int num_planes;
  int planes_per_batch;
  int num_blocks;  // of query rows
  int words_per_row;
  int seqlen_k;       // of the longest sequence
  int num_distances;  // at least 1
};

#ifdef __CUDACC__

struct BuildSlash {
  static constexpr int kWarps = kBuildSlashThreads / 32;
  static constexpr int kSharedWords = 4096;
  static constexpr int kChunkWords = kSharedWords / kWarps;  // of a row, that a warp makes at once

  // Bits [0, limit) of a row of num_words words; by a CTA. Bit `always` is set; -1 is none.
  static __device__ void sort(const int* list, int count, int limit, int always, uint32* row,
                              int num_words, uint32* words, int* num_ignored) {
    for (int first = 0; first < num_words; first += kSharedWords) {
      const int chunk = min(kSharedWords, num_words - first);
      for (int w = threadIdx.x; w < chunk; w += kBuildSlashThreads) {
        words[w] = always >= 0 && always / 32 == first + w ? 1u << always % 32 : 0u;
      }
      __syncthreads();
      for (int i = threadIdx.x; i < count; i += kBuildSlashThreads) {
        const int entry = list[i];
        if (entry < 0 || entry >= limit) {
          if (entry != -1 && first == 0 && num_ignored != nullptr) atomicAdd(num_ignored, 1);
          continue;
        }
        const int word = entry / 32 - first;
        if (0 <= word && word < chunk) atomicOr(words + word, 1u << entry % 32);
      }
      __syncthreads();
      for (int w = threadIdx.x; w < chunk; w += kBuildSlashThreads) row[first + w] = words[w];
      __syncthreads();
    }
  }

  // Searches rows of bits downwards, 1024 at a time; by a warp.
  struct Distances {
    const uint32* words;
    int limit;
    int top = -1;  // lane i holds word top - i
    uint32 held = 0;

    __device__ void hold(int word) {
      top = word;
      const int own = top - static_cast<int>(threadIdx.x % 32);
      held = own < 0 ? 0 : words[own];
    }

    __device__ int operator()(int bound) {
      bound = min(bound, limit);
      if (bound <= 0) return -1;
      const int last = (bound - 1) / 32;
      if (last > top || last <= top - 32) hold(last);
      while (true) {
        const int own = top - static_cast<int>(threadIdx.x % 32);
        const uint32 below = own < 0 ? 0 : held & KeyWord{32 * own}.below(bound);
        const uint32 found = __ballot_sync(0xffffffff, below != 0);
        if (found != 0) {
          const int lane = lowest_bit(found);
          return 32 * (top - lane) + 31 - __clz(__shfl_sync(0xffffffff, below, lane));
        }
        if (top < 32) return -1;
        hold(top - 32);
      }
    }
  };

  // The row of block `block` of a sequence; by a warp.
  static __device__ void find_windows(const BuildSlashParams& p, const Geometry& g, int plane,
                                      int block, uint32* words) {
    const int lane = threadIdx.x % 32;
    const int first_row = block * SlashPlane::kRows;
    const int last_row = min(first_row + SlashPlane::kRows, g.seqlen_q) - 1;
    const int end = min(g.seqlen_k, g.diagonal(last_row) + 1);  // nobody sees keys from here on
    Distances distances{p.distance_bits + int64{plane} * ceil_div(p.num_distances, 32),
                        p.num_distances};
    SlashWindows windows(g.diagonal(first_row));
    Span window{0, 0};
    bool some = windows.next(distances, window);
    uint32* row = p.bits + (int64{plane} * (1 + p.num_blocks) + 1 + block) * p.words_per_row;
    for (int first = 0; first < p.words_per_row; first += kChunkWords) {
      const int chunk = min(kChunkWords, p.words_per_row - first);
      for (int w = lane; w < chunk; w += 32) words[w] = 0;
      __syncwarp();
      const int chunk_end = 32 * (first + chunk);
      while (some && window.lo < chunk_end) {
        const int word_end = min(first + chunk, ceil_div(window.hi, 32));
        for (int w = max(window.lo / 32, first) + lane; w < word_end; w += 32) {
          words[w - first] |= KeyWord{32 * w}.inside(window, end);
        }
        __syncwarp();
        if (window.hi > chunk_end) break;
        some = windows.next(distances, window);
      }
      for (int w = lane; w < chunk; w += 32) row[first + w] = words[w];
      __syncwarp();
    }
  }

  static __device__ void run(const BuildSlashParams& p, const FwdParams& params) {
    __shared__ uint32 words[kSharedWords];
    if (p.phase == BuildSlashParams::Phase::sort) {
      for (int plane = blockIdx.x; plane < p.num_planes; plane += gridDim.x) {
        const int64 source =
            plane / p.planes_per_batch * p.planes_per_source_batch + plane % p.planes_per_batch;
        sort(p.columns + source * p.num_columns, p.num_columns, p.seqlen_k, -1,
             p.bits + int64{plane} * (1 + p.num_blocks) * p.words_per_row, p.words_per_row, words,
             p.num_ignored);
        const int distance_words = ceil_div(p.num_distances, 32);
        sort(p.distances + source * p.num_distances_given, p.num_distances_given, p.num_distances,
             0, p.distance_bits + int64{plane} * distance_words, distance_words, words,
             p.num_ignored);
      }
      return;
    }
    const int warp = threadIdx.x / 32;
    const int64 count = int64{p.num_planes} * p.num_blocks;
    const int64 step = int64{gridDim.x} * kWarps;
    for (int64 index = int64{blockIdx.x} * kWarps + warp; index < count; index += step) {
      const int plane = static_cast<int>(index / p.num_blocks);
      const int block = static_cast<int>(index % p.num_blocks);
      const Geometry geometry = sequence_of(params, plane / p.planes_per_batch).geometry;
      if (block * SlashPlane::kRows >= geometry.seqlen_q) continue;
      find_windows(p, geometry, plane, block, words + warp * kChunkWords);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
