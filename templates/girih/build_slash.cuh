// Turns lists of columns and distances into the rows of bits that vertical_slash reads
// (shared/slash.cuh), in three launches: `sort` makes bits of columns and puts distances in order;
// `link` finds for each distance, and for each block of query rows, the window that begins there
// and where the next one does (SlashWindows), which is the same for all rows; `windows` writes the
// blocks' rows, of which those that differ by their first window alone are copies of one another.
#pragma once

#include "girih/shared/params.cuh"
#include "girih/shared/slash.cuh"
#ifdef __CUDACC__
#include "girih/attn/cta_sum.cuh"
#include "girih/attn/sequence.cuh"
#endif

namespace girih {

constexpr int kBuildSlashThreads = 256;

// A window of keys as it is for every row that has it: a block of rows whose last row sees no key
// from `reach` on has the keys [reach - begin, reach - end), and then the window of the next link.
struct SlashLink {
  int begin, end;
  int next;  // the rank of a distance among those of the plane, or -1 behind the last window
};

struct BuildSlashParams {
  enum class Phase : int { sort, link, windows };
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

  uint32* bits;      // [num_planes, 1 + num_blocks, words_per_row]
  int* sorted;       // [num_planes, sorted_capacity()]: distances in order, then how many
  uint32* gap_bits;  // [num_planes, gap_words()]: where a distance is far from the one before
  SlashLink* links;  // [num_planes, most_links()]: of the distances, then of the blocks
  int num_planes;
  int planes_per_batch;
  int num_blocks;  // of query rows
  int words_per_row;
  int seqlen_k;       // of the longest sequence
  int num_distances;  // at least 1

  // Different distances there may be, with 0.
  GIRIH_HD int most_distances() const { return min(num_distances_given, num_distances - 1) + 1; }
  GIRIH_HD int sorted_capacity() const { return most_distances() + 1; }
  GIRIH_HD int gap_words() const { return ceil_div(most_distances(), 32); }
  GIRIH_HD int most_links() const { return most_distances() + num_blocks; }
};

// Blocks of query rows that a warp writes.
constexpr int kBuildSlashRows = 8;

// CTAs that have something to do in a phase.
GIRIH_HD constexpr int64 build_slash_ctas(const BuildSlashParams& p) {
  const int64 planes = p.num_planes;
  switch (p.phase) {
    case BuildSlashParams::Phase::sort:
      return 2 * planes;
    case BuildSlashParams::Phase::link:
      return planes * ceil_div(p.most_links(), kBuildSlashThreads);
    case BuildSlashParams::Phase::windows:
      break;
  }
  const int64 warps = planes * ceil_div(p.num_blocks, kBuildSlashRows);
  constexpr int kWarps = kBuildSlashThreads / 32;
  return (warps + kWarps - 1) / kWarps;
}

#ifdef __CUDACC__

struct BuildSlash {
  static constexpr int kWarps = kBuildSlashThreads / 32;
  static constexpr int kSharedWords = 6144;
  // Of a row, that a warp makes at once, behind the last words of those before.
  static constexpr int kWordsBefore = 4;
  static constexpr int kChunkWords = kSharedWords / kWarps - kWordsBefore;
  static_assert(kChunkWords % 4 == 0);

  // Windows may end in a gap of more than so many distances, and nowhere else.
  static constexpr int kGap = SlashPlane::kRows;
  // What stands before distance 0: every window ends there.
  static constexpr int kBeforeFirst = -2 * SlashPlane::kRows;

  struct Shared {
    alignas(16) uint32 words[kSharedWords];
    int counts[kWarps];
  };

  // Bits [32 * first, 32 * (first + chunk)) of those below `limit` that the list names; by a CTA.
  // Bit `always` is set; -1 is none.
  static __device__ void collect(const int* list, int count, int limit, int always, int first,
                                 int chunk, uint32* words, int* num_ignored) {
    for (int w = threadIdx.x; w < chunk; w += kBuildSlashThreads) {
      words[w] = always >= 0 && always / 32 == first + w ? 1u << always % 32 : 0u;
    }
    __syncthreads();
#pragma unroll 4
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
  }

  static __device__ void sort_columns(const BuildSlashParams& p, const int* list, int plane,
                                      uint32* words) {
    uint32* const row = p.bits + int64{plane} * (1 + p.num_blocks) * p.words_per_row;
    for (int first = 0; first < p.words_per_row; first += kSharedWords) {
      const int chunk = min(kSharedWords, p.words_per_row - first);
      collect(list, p.num_columns, p.seqlen_k, -1, first, chunk, words, p.num_ignored);
      for (int w = threadIdx.x; w < chunk; w += kBuildSlashThreads) row[first + w] = words[w];
      __syncthreads();
    }
  }

  static __device__ void sort_distances(const BuildSlashParams& p, const int* list, int plane,
                                        Shared& shared) {
    int* const sorted = p.sorted + int64{plane} * p.sorted_capacity();
    const int num_words = ceil_div(p.num_distances, 32);
    int found = 0;
    for (int first = 0; first < num_words; first += kSharedWords) {
      const int chunk = min(kSharedWords, num_words - first);
      collect(list, p.num_distances_given, p.num_distances, 0, first, chunk, shared.words,
              p.num_ignored);
      const int each = ceil_div(chunk, kBuildSlashThreads);
      const int begin = min(static_cast<int>(threadIdx.x) * each, chunk);
      const int end = min(begin + each, chunk);
      int count = 0;
      for (int w = begin; w < end; ++w) count += __popc(shared.words[w]);
      int all;
      int rank = found + sum_before<kBuildSlashThreads>(count, shared.counts, all);
      for (int w = begin; w < end; ++w) {
        for (uint32 left = shared.words[w]; left != 0; left &= left - 1) {
          sorted[rank++] = 32 * (first + w) + lowest_bit(left);
        }
      }
      found += all;
      __syncthreads();
    }
    if (threadIdx.x == 0) sorted[p.most_distances()] = found;

    uint32* const gaps = p.gap_bits + int64{plane} * p.gap_words();
    for (int first = 0; first < found; first += kBuildSlashThreads) {
      const int rank = first + threadIdx.x;
      const bool gap = rank < found && gap_before(sorted, rank);
      const uint32 word = __ballot_sync(0xffffffff, gap);
      if (threadIdx.x % 32 == 0 && rank < found) gaps[rank / 32] = word;
    }
  }

  static __device__ int distance_before(const int* sorted, int rank) {
    return rank == 0 ? kBeforeFirst : sorted[rank - 1];
  }
  static __device__ bool gap_before(const int* sorted, int rank) {
    return sorted[rank] - distance_before(sorted, rank) > kGap;
  }

  // The greatest rank up to `rank` that has a gap before it; rank 0 has one.
  static __device__ int last_gap(const uint32* gaps, int rank) {
    int word = rank / 32;
    uint32 found = gaps[word] & KeyWord{32 * word}.below(rank + 1);
    while (found == 0) found = gaps[--word];
    return 32 * word + 31 - __clz(found);
  }

  // From where 64 keys after 64 keys are taken as long as there is a distance among them. `rank`:
  // how many distances are less than `begin`.
  static __device__ SlashLink link_from(const int* sorted, const uint32* gaps, int begin,
                                        int rank) {
    if (rank == 0 || begin - sorted[rank - 1] > kGap) return {begin, begin, rank - 1};
    while (true) {
      const int at = last_gap(gaps, rank - 1);
      const int above = sorted[at];
      const int end = above - floor_mod(above - begin, SlashPlane::kRows);
      rank = at;
      if (end - distance_before(sorted, at) > kGap) return {begin, end, at - 1};
    }
  }

  // Distances less than `bound`.
  static __device__ int rank_of(const int* sorted, int count, int bound) {
    int less = 0, rest = count;
    while (rest > 0) {
      const int half = rest / 2;
      if (sorted[less + half] < bound) {
        less += half + 1;
        rest -= half + 1;
      } else {
        rest = half;
      }
    }
    return less;
  }

  // The first key that nobody in a block of 64 rows sees, were there keys enough.
  static __device__ int reach_of(const Geometry& g, int block) {
    return g.diagonal(block * SlashPlane::kRows) + SlashPlane::kRows;
  }

  static __device__ void link(const BuildSlashParams& p, const FwdParams& params, int plane,
                              int index) {
    const int* const sorted = p.sorted + int64{plane} * p.sorted_capacity();
    const uint32* const gaps = p.gap_bits + int64{plane} * p.gap_words();
    SlashLink* const links = p.links + int64{plane} * p.most_links();
    const int count = sorted[p.most_distances()];
    const int block = index - p.most_distances();
    if (block >= 0) {
      const int reach = reach_of(sequence_of(params, plane / p.planes_per_batch).geometry, block);
      links[index] = link_from(sorted, gaps, reach, rank_of(sorted, count, reach));
    } else if (index < count) {  // 64 keys at least, whatever comes after
      const SlashLink own = link_from(sorted, gaps, sorted[index], index);
      links[index] = {own.begin + SlashPlane::kRows, own.end, own.next};
    }
  }

  // A plane's links as a warp follows them, 32 at a time.
  struct Chain {
    const SlashLink* links;
    int rank;      // of the window it is at; -1 behind the last
    int top = -1;  // lane i holds the link of rank top - i
    SlashLink held{};

    __device__ SlashLink own() {
      if (rank > top || rank <= top - 32) {
        top = rank;
        const int at = top - static_cast<int>(threadIdx.x % 32);
        if (at >= 0) held = links[at];
      }
      const int lane = top - rank;
      return {__shfl_sync(0xffffffff, held.begin, lane), __shfl_sync(0xffffffff, held.end, lane),
              __shfl_sync(0xffffffff, held.next, lane)};
    }
  };

  // Words from `first` on of the windows from where `chain` is, of a block that reaches to `reach`.
  // Before them are the last ones of the words that were here, or zeros.
  static __device__ void fill(Chain& chain, int reach, int first, uint32* words) {
    const int lane = threadIdx.x % 32;
    if (lane < kWordsBefore) {
      words[lane - kWordsBefore] = first == 0 ? 0u : words[lane - kWordsBefore + kChunkWords];
    }
    __syncwarp();
    for (int w = lane; w < kChunkWords; w += 32) words[w] = 0;
    __syncwarp();
    const int chunk_end = 32 * (first + kChunkWords);
    while (chain.rank >= 0) {
      const SlashLink link = chain.own();
      const Span window{reach - link.begin, reach - link.end};
      if (window.lo >= chunk_end) break;
      const int word_end = min(first + kChunkWords, ceil_div(window.hi, 32));
      for (int w = max(window.lo / 32, first) + lane; w < word_end; w += 32) {
        atomicOr(words + (w - first), KeyWord{32 * w}.inside(window, window.hi));
      }
      if (window.hi > chunk_end) break;
      chain.rank = link.next;
    }
    __syncwarp();
  }

  // Rows [begin, end) of blocks; by a warp. Of those whose second window is the same, each has the
  // windows of the one before 64 keys later, and other keys before.
  static __device__ void write_rows(const BuildSlashParams& p, const Geometry& g, int plane,
                                    int begin, int end, uint32* words) {
    constexpr int kStep = SlashPlane::kRows / 32;  // words, from one block's windows to the next's
    // Rows are written in steps of four words, from those that begin in the chunk's own or before.
    static_assert(kStep % 2 == 0 && kWordsBefore >= 2);
    const int lane = threadIdx.x % 32;
    const SlashLink* const links = p.links + int64{plane} * p.most_links();
    SlashLink first_window{};
    if (begin + lane < end) first_window = links[p.most_distances() + begin + lane];
    uint32* const rows = p.bits + (int64{plane} * (1 + p.num_blocks) + 1) * p.words_per_row;

    for (int block = begin; block < end;) {
      const int next = __shfl_sync(0xffffffff, first_window.next, block - begin);
      const uint32 others = __ballot_sync(
          0xffffffff, begin + lane >= end || (begin + lane > block && first_window.next != next));
      const int block_end = min(end, begin + lowest_bit(others));
      Chain chain{links, next};
      const int reach = reach_of(g, block);
      const int most = SlashPlane::words_written(g, block, p.words_per_row);
      int first = 0;
      do {
        fill(chain, reach, first, words);
        for (int own = block; own < block_end; ++own) {
          const int moved = (own - block) * kStep;
          const int first_end =
              __shfl_sync(0xffffffff, first_window.begin - first_window.end, own - begin) / 32;
          const int keys_end = SlashPlane::keys_seen(g, own);
          const int num_words = min((first + kChunkWords + moved) / 4 * 4,
                                    SlashPlane::words_written(g, own, p.words_per_row));
          uint32* const row = rows + int64{own} * p.words_per_row;
          const int from_word = first == 0 ? 0 : (first + moved) / 4 * 4;
#pragma unroll 2  // registers
          for (int w = from_word + 4 * lane; w < num_words; w += 128) {
            const int from = w - moved - first;
            uint2 low{}, high{};
            if (from >= -2) {
              low = *reinterpret_cast<const uint2*>(words + from);
              high = *reinterpret_cast<const uint2*>(words + from + 2);
            }
            if (w < first_end) low = {~0u, ~0u};
            if (w + 2 < first_end) high = {~0u, ~0u};
            uint4 four{low.x, low.y, high.x, high.y};
            if (32 * (w + 4) > keys_end) {
              four.x &= KeyWord{32 * w}.below(keys_end);
              four.y &= KeyWord{32 * w + 32}.below(keys_end);
              four.z &= KeyWord{32 * w + 64}.below(keys_end);
              four.w &= KeyWord{32 * w + 96}.below(keys_end);
            }
            *reinterpret_cast<uint4*>(row + w) = four;
          }
        }
        __syncwarp();
        first += kChunkWords;
      } while (first < most + 4);  // the last step may begin in the chunk's last words
      block = block_end;
    }
  }

  static __device__ void run(const BuildSlashParams& p, const FwdParams& params) {
    __shared__ Shared shared;
    switch (p.phase) {
      case BuildSlashParams::Phase::sort:
        for (int job = blockIdx.x; job < 2 * p.num_planes; job += gridDim.x) {
          const int plane = job / 2;
          const int64 source =
              plane / p.planes_per_batch * p.planes_per_source_batch + plane % p.planes_per_batch;
          if (job % 2 == 0) {
            sort_distances(p, p.distances + source * p.num_distances_given, plane, shared);
          } else {
            sort_columns(p, p.columns + source * p.num_columns, plane, shared.words);
          }
        }
        return;
      case BuildSlashParams::Phase::link: {
        const int ctas_per_plane = ceil_div(p.most_links(), kBuildSlashThreads);
        const int64 count = int64{p.num_planes} * ctas_per_plane;
        for (int64 job = blockIdx.x; job < count; job += gridDim.x) {
          const int index = static_cast<int>(job % ctas_per_plane) * kBuildSlashThreads +
                            static_cast<int>(threadIdx.x);
          if (index >= p.most_links()) continue;
          link(p, params, static_cast<int>(job / ctas_per_plane), index);
        }
        return;
      }
      case BuildSlashParams::Phase::windows:
        break;
    }
    const int warp = threadIdx.x / 32;
    const int warps_per_plane = ceil_div(p.num_blocks, kBuildSlashRows);
    const int64 count = int64{p.num_planes} * warps_per_plane;
    const int64 step = int64{gridDim.x} * kWarps;
    for (int64 job = int64{blockIdx.x} * kWarps + warp; job < count; job += step) {
      const int plane = static_cast<int>(job / warps_per_plane);
      const int index = warps_per_plane - 1 - static_cast<int>(job % warps_per_plane);  // longest
      const Geometry geometry = sequence_of(params, plane / p.planes_per_batch).geometry;
      const int begin = index * kBuildSlashRows;
      const int end = min(begin + kBuildSlashRows, ceil_div(geometry.seqlen_q, SlashPlane::kRows));
      write_rows(p, geometry, plane, begin, end,
                 shared.words + warp * (kWordsBefore + kChunkWords) + kWordsBefore);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
