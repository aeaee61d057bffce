// Turns lists of columns and distances into the rows of bits that vertical_slash reads
// (shared/slash.cuh), in three launches: `sort` makes bits of columns and puts distances in order;
// `link` finds for each distance, and for each block of query rows, the window that begins there
// and where the next one does (SlashWindows), which is the same for all rows; `windows` writes rows
// of bits, one for blocks in a row that differ by their first window alone.
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

  uint32* bits;      // [num_planes, plane_words()]
  int* sorted;       // [num_planes, sorted_capacity()]: distances in order, then how many
  uint32* gap_bits;  // [num_planes, gap_words()]: where a distance is far from the one before
  SlashLink* links;  // [num_planes, most_links()]: of the distances, then of the blocks
  int num_planes;
  int planes_per_batch;
  int num_blocks;     // of query rows
  int words_per_row;  // of columns
  int seqlen_k;       // of the longest sequence
  int num_distances;  // at least 1

  // Different distances there may be, with 0.
  GIRIH_HD int most_distances() const { return min(num_distances_given, num_distances - 1) + 1; }
  GIRIH_HD int sorted_capacity() const { return most_distances() + 1; }
  GIRIH_HD int gap_words() const { return ceil_div(most_distances(), 32); }
  GIRIH_HD int most_links() const { return most_distances() + num_blocks; }

  GIRIH_HD int64 plane_words() const { return row_at(num_blocks); }
  GIRIH_HD int64 row_at(int block) const {
    return SlashPlane::row_at(words_per_row, num_blocks, block);
  }
};

// Blocks of query rows that a warp has.
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
  static constexpr int kChunkWords = kSharedWords / kWarps;  // of a row, that a warp makes at once
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
    uint32* const row = p.bits + plane * p.plane_words();
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
  static __device__ void fill(Chain& chain, int reach, int first, uint32* words) {
    const int lane = threadIdx.x % 32;
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

  // The windows behind the first one of `block`, the last of those from first_block on that have
  // them 64 keys apart; by a warp.
  static __device__ void write_row(const BuildSlashParams& p, const Geometry& g, int plane,
                                   int first_block, int block, int rank, uint32* words) {
    constexpr int kWordsBeyond = 512 / 32;  // that a tile reads for rows that follow
    const int reach = reach_of(g, block);
    const int keys = min(reach, g.seqlen_k + (block - first_block) * SlashPlane::kRows);
    const int row_words = SlashPlane::words_of_windows(p.words_per_row);
    const int end = min(round_up(ceil_div(max(keys, 0), 32) + kWordsBeyond, 4), row_words);
    uint32* const row = p.bits + plane * p.plane_words() + p.row_at(block);
    Chain chain{p.links + int64{plane} * p.most_links(), rank};
    for (int first = 0; first < end; first += kChunkWords) {
      fill(chain, reach, first, words);
      const int count = min(kChunkWords, end - first);
      for (int w = 4 * (threadIdx.x % 32); w < count; w += 128) {
        *reinterpret_cast<uint4*>(row + first + w) = *reinterpret_cast<const uint4*>(words + w);
      }
      __syncwarp();
    }
  }

  // Entries of blocks [begin, begin + kBuildSlashRows) below `end`, and the rows that are theirs;
  // by a warp. Blocks in a row have the last one's where all have the same second window.
  static __device__ void write_blocks(const BuildSlashParams& p, const Geometry& g, int plane,
                                      int begin, int end, uint32* words) {
    static_assert(SlashPlane::kShared == 32 && 32 % kBuildSlashRows == 0);
    const int lane = threadIdx.x % 32;
    const int shared_begin = begin / 32 * 32;
    const int block = shared_begin + lane;
    const SlashLink* const of_blocks = p.links + int64{plane} * p.most_links() + p.most_distances();
    SlashLink first_window{0, 0, -1};
    if (block < end) first_window = of_blocks[block];
    const int following = __shfl_sync(0xffffffff, first_window.next, (lane + 1) % 32);
    const bool is_last = lane == 31 || block + 1 >= end || following != first_window.next;
    const uint32 last = __ballot_sync(0xffffffff, is_last);
    const bool own = begin <= block && block < min(begin + kBuildSlashRows, end);
    if (own) {
      const int distance = lowest_bit(last >> lane);  // to the block whose row it has
      uint32* const bits = p.bits + plane * p.plane_words();
      auto& entry =
          *reinterpret_cast<SlashEntry*>(bits + SlashPlane::entry_at(p.words_per_row, block));
      entry = {static_cast<int>(p.row_at(block + distance)) + distance * SlashPlane::kStep,
               (first_window.begin - first_window.end) / 32};
    }
    for (uint32 left = last & __ballot_sync(0xffffffff, own); left != 0; left &= left - 1) {
      const int at = lowest_bit(left);
      const uint32 before = last & ((1u << at) - 1);
      const int first = before == 0 ? 0 : 32 - __clz(before);
      write_row(p, g, plane, shared_begin + first, shared_begin + at,
                __shfl_sync(0xffffffff, first_window.next, at), words);
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
      const int end = ceil_div(geometry.seqlen_q, SlashPlane::kRows);
      write_blocks(p, geometry, plane, index * kBuildSlashRows, end,
                   shared.words + warp * kChunkWords);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
