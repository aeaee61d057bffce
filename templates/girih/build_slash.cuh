// Turns lists of columns and distances into the rows of bits that vertical_slash reads
// (shared/slash.cuh), in three launches: `collect` makes bits of columns and finds clusters of
// distances; `link` finds for each cluster, and for each block of query rows, the window that
// begins there and where the next one does (SlashWindows), which is the same for all rows;
// `windows` writes rows of bits, one for blocks in a row whose windows are found in it.
#pragma once

#include "girih/shared/params.cuh"
#include "girih/shared/slash.cuh"
#ifdef __CUDACC__
#include "girih/attn/cta_sum.cuh"
#include "girih/attn/sequence.cuh"
#endif

namespace girih {

constexpr int kBuildSlashThreads = 256;

// Distances of which none is farther than a window's size from the next one.
struct SlashCluster {
  int first, last;
};

// A window of keys as it is for every row that has it: a block of rows whose last row sees no key
// from `reach` on has the keys [reach - begin, reach - end), and then the window of the next link.
struct SlashLink {
  int begin, end;
  int next;  // windows begin at clusters, but for a block's first one; -1: this is the last
};

struct BuildSlashParams {
  enum class Phase : int { collect, link, windows };
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

  uint32* bits;            // [num_planes, plane_words()]
  SlashCluster* clusters;  // [num_planes, most_clusters()], in order
  int* num_clusters;       // [num_planes]
  SlashLink* links;        // [num_planes, most_links()]: of the clusters, then of the blocks
  int num_planes;
  int planes_per_batch;
  int num_blocks;     // of query rows
  int words_per_row;  // of columns
  int seqlen_k;       // of the longest sequence
  int num_distances;  // at least 1

  // Different distances there may be, with 0.
  GIRIH_HD int most_distances() const { return min(num_distances_given, num_distances - 1) + 1; }
  GIRIH_HD int most_clusters() const {
    return min(most_distances(), ceil_div(num_distances, SlashPlane::kRows + 1));
  }
  GIRIH_HD int most_links() const { return most_clusters() + num_blocks; }

  GIRIH_HD int64 plane_words() const { return row_at(num_blocks); }
  GIRIH_HD int64 row_at(int block) const {
    return SlashPlane::row_at(words_per_row, num_blocks, block);
  }
};

// Blocks of query rows that a warp has.
constexpr int kBuildSlashRows = 4;

// CTAs that have something to do in a phase.
GIRIH_HD constexpr int64 build_slash_ctas(const BuildSlashParams& p) {
  const int64 planes = p.num_planes;
  switch (p.phase) {
    case BuildSlashParams::Phase::collect:
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

  // Windows may end in a gap of more than so many distances, and nowhere else: between clusters.
  static constexpr int kGap = SlashPlane::kRows;
  // What stands before distance 0: every window ends there.
  static constexpr int kBeforeFirst = -2 * SlashPlane::kRows;

  struct Shared {
    alignas(16) uint32 words[kSharedWords];
    int counts[kWarps];
    Span windows[kWarps][32];
  };

  // Bits [32 * first, 32 * (first + chunk)) of those below `limit` that the list names; by a CTA.
  // Bit `always` is set; -1 is none. Entries out of range are counted where num_ignored is given.
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
        if (entry != -1 && num_ignored != nullptr) atomicAdd(num_ignored, 1);
        continue;
      }
      const int word = entry / 32 - first;
      if (0 <= word && word < chunk) atomicOr(words + word, 1u << entry % 32);
    }
    __syncthreads();
  }

  static __device__ void collect_columns(const BuildSlashParams& p, const int* list, int plane,
                                         uint32* words) {
    uint32* const row = p.bits + plane * p.plane_words();
    for (int first = 0; first < p.words_per_row; first += kSharedWords) {
      const int chunk = min(kSharedWords, p.words_per_row - first);
      collect(list, p.num_columns, p.seqlen_k, -1, first, chunk, words,
              first == 0 ? p.num_ignored : nullptr);
      for (int w = threadIdx.x; w < chunk; w += kBuildSlashThreads) row[first + w] = words[w];
      __syncthreads();
    }
  }

  static __device__ void find_clusters(const BuildSlashParams& p, const int* list, int plane,
                                       Shared& shared) {
    static_assert(kGap == 64);
    constexpr int kAround = 2;  // words on either side in which a near distance is
    constexpr int kChunk = kSharedWords - 2 * kAround;
    SlashCluster* const clusters = p.clusters + int64{plane} * p.most_clusters();
    const int num_words = ceil_div(p.num_distances, 32);
    int num_begins = 0, num_ends = 0;
    for (int first = 0; first < num_words; first += kChunk) {
      const int chunk = min(kChunk, num_words - first);
      collect(list, p.num_distances_given, p.num_distances, 0, first - kAround, chunk + 2 * kAround,
              shared.words, first == 0 ? p.num_ignored : nullptr);
      for (int done = 0; done < chunk; done += kBuildSlashThreads) {
        const int at = done + static_cast<int>(threadIdx.x);
        const uint32* const word = shared.words + kAround + at;
        bool begins = false, ends = false;
        int lowest = 0, highest = 0;
        if (at < chunk && *word != 0) {
          lowest = lowest_bit(*word);
          highest = 31 - __clz(*word);
          begins = word[-1] == 0 && word[-2] >> lowest == 0;
          ends = word[1] == 0 && word[2] << (31 - highest) == 0;
        }
        int all;  // begins, and ends above them
        const int before = sum_before<kBuildSlashThreads>((begins ? 1 : 0) | (ends ? 1 << 16 : 0),
                                                          shared.counts, all);
        const int distance = 32 * (first + at);
        if (begins) clusters[num_begins + (before & 0xffff)].first = distance + lowest;
        if (ends) clusters[num_ends + (before >> 16)].last = distance + highest;
        num_begins += all & 0xffff;
        num_ends += all >> 16;
      }
    }
    if (threadIdx.x == 0) p.num_clusters[plane] = num_begins;
  }

  // The last cluster with distances less than `bound`, or -1.
  static __device__ int cluster_below(const SlashCluster* clusters, int count, int bound) {
    int less = 0, rest = count;
    while (rest > 0) {
      const int half = rest / 2;
      if (clusters[less + half].first < bound) {
        less += half + 1;
        rest -= half + 1;
      } else {
        rest = half;
      }
    }
    return less - 1;
  }

  // From where 64 keys after 64 keys are taken as long as there is a distance among them; `at` is
  // the last cluster with distances less than `begin`.
  static __device__ SlashLink link_from(const SlashCluster* clusters, int begin, int at) {
    if (at < 0 || begin - clusters[at].last > kGap) return {begin, begin, at};
    while (true) {
      const int above = clusters[at].first;
      const int end = above - floor_mod(above - begin, SlashPlane::kRows);
      const int before = at == 0 ? kBeforeFirst : clusters[at - 1].last;
      --at;
      if (end - before > kGap) return {begin, end, at};
    }
  }

  // The first key that nobody in a block of 64 rows sees, were there keys enough.
  static __device__ int reach_of(const Geometry& g, int block) {
    return g.diagonal(block * SlashPlane::kRows) + SlashPlane::kRows;
  }

  static __device__ void link(const BuildSlashParams& p, const FwdParams& params, int plane,
                              int index) {
    const SlashCluster* const clusters = p.clusters + int64{plane} * p.most_clusters();
    SlashLink* const links = p.links + int64{plane} * p.most_links();
    const int count = p.num_clusters[plane];
    const int block = index - p.most_clusters();
    if (block >= 0) {
      const int reach = reach_of(sequence_of(params, plane / p.planes_per_batch).geometry, block);
      links[index] = link_from(clusters, reach, cluster_below(clusters, count, reach));
    } else if (index < count) {  // 64 keys at least, whatever comes after
      const SlashCluster cluster = clusters[index];
      const int below = cluster.first < cluster.last ? index : index - 1;
      const SlashLink own = link_from(clusters, cluster.last, below);
      links[index] = {own.begin + SlashPlane::kRows, own.end, own.next};
    }
  }

  // Of the links from `first` on, one a lane, those of the chain that begins at `next`, which is
  // left at the link behind them.
  static __device__ uint32 follow(const SlashLink& own, int first, int& next) {
    uint32 met = 1u << threadIdx.x % 32;  // from this lane's on
    int behind = own.next;
#pragma unroll
    for (int length = 1; length < 32; length *= 2) {
      const int at = behind - first;
      const uint32 met_there = __shfl_sync(0xffffffff, met, at & 31);
      const int behind_there = __shfl_sync(0xffffffff, behind, at & 31);
      if (at >= 0) {
        met |= met_there;
        behind = behind_there;
      }
    }
    const int at = next - first;
    next = __shfl_sync(0xffffffff, behind, at);
    return __shfl_sync(0xffffffff, met, at);
  }

  // Sets the bits of windows; by a warp, eight lanes for each window.
  static __device__ void set_bits(const Span* windows, int count, uint32* words) {
    constexpr int kLanes = 8;
    const int lane = threadIdx.x % 32;
    for (int i = lane / kLanes; i < count; i += 32 / kLanes) {
      const Span window = windows[i];
      for (int w = window.lo / 32 + lane % kLanes; 32 * w < window.hi; w += kLanes) {
        atomicOr(words + w, KeyWord{32 * w}.inside(window, window.hi));
      }
    }
  }

  // The windows from the link `next` on as `block` has them, the last of the blocks from
  // first_block on whose windows are found there; by a warp.
  static __device__ void write_row(const BuildSlashParams& p, const Geometry& g, int plane,
                                   int first_block, int block, int next, Span* windows) {
    constexpr int kWordsBeyond = 512 / 32;  // that a tile reads for rows that follow
    const int reach = reach_of(g, block);
    const int keys = min(reach, g.seqlen_k + (block - first_block) * SlashPlane::kRows);
    const int row_words = SlashPlane::words_of_windows(p.words_per_row);
    const int end = min(round_up(ceil_div(max(keys, 0), 32) + kWordsBeyond, 4), row_words);
    const int lane = threadIdx.x % 32;
    uint32* const row = p.bits + plane * p.plane_words() + p.row_at(block);
    for (int w = 4 * lane; w < end; w += 128) *reinterpret_cast<uint4*>(row + w) = uint4{};
    __syncwarp();

    const SlashLink* const links = p.links + int64{plane} * p.most_links();
    while (next >= 0) {
      const int first = next / 32 * 32;
      SlashLink own{0, 0, -1};
      if (first + lane <= next) own = links[first + lane];
      const uint32 met = follow(own, first, next);
      if ((met >> lane & 1) != 0) {
        windows[__popc(met >> lane) - 1] = {reach - own.begin, min(reach - own.end, 32 * end)};
      }
      __syncwarp();
      set_bits(windows, __popc(met), row);
      __syncwarp();
    }
  }

  // Whether the windows behind a block's `first` one are found in the row of a later block whose
  // second one is that of the link `at`, with no other key behind the first one.
  static __device__ bool is_found_from(const SlashLink* links, int at, const SlashLink& first) {
    bool covered = true;  // what comes before them in the row, by the first window
    while (at > first.next) {
      const SlashLink link = links[at];
      covered = link.end >= first.end;
      at = link.next;
    }
    return at == first.next && covered;
  }

  // Entries of blocks [begin, begin + kBuildSlashRows) below `end`, and the rows that are theirs;
  // by a warp. Blocks in a row have the last one's where each one's windows are found in the next
  // one's.
  static __device__ void write_blocks(const BuildSlashParams& p, const Geometry& g, int plane,
                                      int begin, int end, Span* windows) {
    static_assert(SlashPlane::kShared == 32 && 32 % kBuildSlashRows == 0);
    const int lane = threadIdx.x % 32;
    const int shared_begin = begin / 32 * 32;
    const int block = shared_begin + lane;
    const SlashLink* const links = p.links + int64{plane} * p.most_links();
    SlashLink first_window{0, 0, -1};
    if (block < end) first_window = links[p.most_clusters() + block];
    const int following = __shfl_sync(0xffffffff, first_window.next, (lane + 1) % 32);
    const bool is_last =
        lane == 31 || block + 1 >= end || !is_found_from(links, following, first_window);
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
                __shfl_sync(0xffffffff, first_window.next, at), windows);
    }
  }

  static __device__ void run(const BuildSlashParams& p, const FwdParams& params) {
    __shared__ Shared shared;
    switch (p.phase) {
      case BuildSlashParams::Phase::collect:
        for (int job = blockIdx.x; job < 2 * p.num_planes; job += gridDim.x) {
          const int plane = job / 2;
          const int64 source =
              plane / p.planes_per_batch * p.planes_per_source_batch + plane % p.planes_per_batch;
          if (job % 2 == 0) {
            find_clusters(p, p.distances + source * p.num_distances_given, plane, shared);
          } else {
            collect_columns(p, p.columns + source * p.num_columns, plane, shared.words);
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
      write_blocks(p, geometry, plane, index * kBuildSlashRows, end, shared.windows[warp]);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
