// Lays out tokens' numbers as atoms read them (shared/token_numbers.cuh): copies them, and finds
// the ranges of blocks and spans, a span a CTA; then, where rows are compared with keys, what rows
// see, a block of them a CTA.
#pragma once

#include "girih/shared/token_numbers.cuh"

namespace girih {

constexpr int kBuildNumbersThreads = 256;
constexpr int kMaxSides = 4;

struct BuildNumbersParams {
  enum class Phase : int { numbers, seen_keys };  // a launch each, in this order
  Phase phase = Phase::numbers;

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

  int* out;  // [num_planes, words_per_span * num_spans]
  int num_planes;
  int planes_per_batch;
  int num_spans;
  int words_per_span;
  int num_row_blocks;  // of TokenNumbers::kBlock, that are compared with keys; 0 where none are

  // Units of work of a phase.
  GIRIH_HD int64 num_spans_of_sides() const { return int64{num_planes} * num_sides * num_spans; }
  GIRIH_HD int64 num_blocks_of_rows() const { return int64{num_planes} * num_row_blocks; }
};

#ifdef __CUDACC__

// Compared: atoms that compare numbers, which the kernel has.
template <class... Compared>
struct BuildNumbers {
  static constexpr int kWarps = kBuildNumbersThreads / 32;
  static constexpr uint32 kAllLanes = 0xffffffff;
  static constexpr SeenKeys kNoRows{{2147483647, 0}, {0, 2147483647}};  // joined, the others'
  static_assert(TokenNumbers::kBlock == 32 && TokenNumbers::kBlocksPerSpan == 32,
                "a lane for each");

  // `ranges` holds those of the span's blocks; by all threads.
  static __device__ void make_span(const BuildNumbersParams::Source& source, const int* from,
                                   int* side, int num_spans, int span, NumberRange* ranges) {
    using Layout = TokenNumbers;
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
      const NumberRange range{__reduce_min_sync(kAllLanes, exists ? number : kNoNumbers.least),
                              __reduce_max_sync(kAllLanes, exists ? number : kNoNumbers.most)};
      if (lane == 0) {
        ranges[i] = range;
        block_ranges[span * Layout::kBlocksPerSpan + i] = range;
      }
    }
    __syncthreads();
    if (warp == 0) {
      const NumberRange own = ranges[lane];
      const NumberRange range{__reduce_min_sync(kAllLanes, own.least),
                              __reduce_max_sync(kAllLanes, own.most)};
      if (lane == 0) span_ranges[span] = range;
    }
    __syncthreads();
  }

  static __device__ void make_numbers(const BuildNumbersParams& p) {
    __shared__ NumberRange ranges[TokenNumbers::kBlocksPerSpan];
    for (int64 index = blockIdx.x; index < p.num_spans_of_sides(); index += gridDim.x) {
      const int span = static_cast<int>(index % p.num_spans);
      const int64 plane_side = index / p.num_spans;
      const int plane = static_cast<int>(plane_side / p.num_sides);
      const int side = static_cast<int>(plane_side % p.num_sides);
      const BuildNumbersParams::Source& source = p.sources[side];
      const int* from = source.numbers + plane / p.planes_per_batch * source.batch_stride +
                        plane % p.planes_per_batch / source.planes_per_head * source.head_stride;
      int* const to = p.out + int64{plane} * p.words_per_span * p.num_spans +
                      int64{side} * TokenNumbers::kWordsPerSpan * p.num_spans;
      make_span(source, from, to, p.num_spans, span, ranges);
    }
  }

  // The keys of a plane, searched by a warp for what a row with some number sees of them.
  template <class Atom>
  struct Search {
    TokenNumbers keys;
    int num_keys;
    int number;
    int lane;

    static constexpr int kNone = -1;
    static __device__ bool is_visible(TileKind kind) { return kind != TileKind::empty; }
    static __device__ bool is_not_full(TileKind kind) { return kind != TileKind::full; }

    // A bit for each of 32 keys, blocks or spans from `first` on: whether it is of a kind.
    template <int kTokens, class Is>
    __device__ uint32 found(int first, const Is& is) const {
      const int i = first + lane;
      bool is_one = false;
      if (i < ceil_div(num_keys, kTokens)) {
        NumberRange range;
        if constexpr (kTokens == TokenNumbers::kSpan) {
          range = keys.range_of_span(i);
        } else if constexpr (kTokens == TokenNumbers::kBlock) {
          range = keys.range_of_block(i);
        } else {
          range = {keys.numbers[i], keys.numbers[i]};
        }
        is_one = is(Atom::kind({number, number}, range));
      }
      return __ballot_sync(kAllLanes, is_one);
    }

    // The first block of a kind, of those from `from` on.
    template <class Is>
    __device__ int first_block(int from, const Is& is) const {
      for (int span = from / 32; span * TokenNumbers::kSpan < num_keys; span += 32) {
        for (uint32 some = found<TokenNumbers::kSpan>(span, is); some != 0; some &= some - 1) {
          const int first = 32 * (span + lowest_bit(some));
          uint32 blocks = found<TokenNumbers::kBlock>(first, is);
          if (first < from) blocks &= ~0u << (from - first);
          if (blocks != 0) return first + lowest_bit(blocks);
        }
      }
      return kNone;
    }

    template <class Is>
    __device__ int last_block(const Is& is) const {
      for (int span = (num_keys - 1) / TokenNumbers::kSpan / 32 * 32; span >= 0; span -= 32) {
        for (uint32 some = found<TokenNumbers::kSpan>(span, is); some != 0;) {
          const int last = 31 - __clz(some);
          some &= ~(1u << last);
          const uint32 blocks = found<TokenNumbers::kBlock>(32 * (span + last), is);
          if (blocks != 0) return 32 * (span + last) + 31 - __clz(blocks);
        }
      }
      return kNone;
    }

    // The hull begins and ends with a visible key of its first and last block that are not empty,
    // or with the block where it has none, for a range may say partial of what nobody sees. The
    // core begins with the hull's first visible key, and is empty where its block has none.
    __device__ SeenKeys run() const {
      const int first = first_block(0, is_visible);
      if (first == kNone) return kNoKeys;
      const int last = last_block(is_visible);
      const uint32 begins = found<1>(32 * first, is_visible);
      const uint32 ends = found<1>(32 * last, is_visible);
      SeenKeys seen{{32 * first, min(32 * last + 32, num_keys)}, kNoKeys.core};
      if (ends != 0) seen.hull.hi = 32 * last + 32 - __clz(ends);
      if (begins == 0) return seen;

      seen.hull.lo += lowest_bit(begins);
      seen.core = {seen.hull.lo, num_keys};
      int block = first;
      uint32 behind = found<1>(32 * first, is_not_full) & ~0u << lowest_bit(begins);
      if (behind == 0) {
        block = first_block(first + 1, is_not_full);
        if (block == kNone) return seen;
        behind = found<1>(32 * block, is_not_full);
      }
      seen.core.hi = 32 * block + lowest_bit(behind);
      return seen;
    }
  };

  // Of a block of rows; by all threads. A warp searches for each number that its rows have once.
  template <class Atom>
  static __device__ void find_seen_keys(const BuildNumbersParams& p, int* plane, int block,
                                        SeenKeys* of_rows) {
    constexpr int kRowsPerWarp = TokenNumbers::kBlock / kWarps;
    const int warp = threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    const TokenNumbers rows{plane, p.num_spans};
    const TokenNumbers keys{plane + TokenNumbers::kWordsPerSpan * p.num_spans, p.num_spans};
    const int begin = block * TokenNumbers::kBlock;
    const int row = begin + warp * kRowsPerWarp + lane;
    const bool exists = lane < kRowsPerWarp && row < p.sources[0].num_tokens;
    const int own = exists ? rows.numbers[row] : 0;
    SeenKeys seen = kNoRows;
    for (uint32 left = __ballot_sync(kAllLanes, exists); left != 0;) {
      const int number = __shfl_sync(kAllLanes, own, lowest_bit(left));
      const Search<Atom> search{keys, p.sources[1].num_tokens, number, lane};
      const SeenKeys found = search.run();
      const bool same = exists && own == number;
      if (same) seen = found;
      left &= ~__ballot_sync(kAllLanes, same);
    }
    if (exists) {
      auto* const intervals = reinterpret_cast<AlignedSpan*>(
          plane + TokenNumbers::intervals(p.num_spans, Atom::kComparison));
      const bool empty = seen.hull.lo >= seen.hull.hi;
      intervals[row] = {empty ? Span{0, 0} : seen.is_exact() ? seen.core : kNoInterval};
    }
    if (lane < kRowsPerWarp) of_rows[warp * kRowsPerWarp + lane] = seen;
    __syncthreads();
    if (warp == 0) {
      const SeenKeys each = of_rows[lane];
      const SeenKeys all{
          {__reduce_min_sync(kAllLanes, each.hull.lo), __reduce_max_sync(kAllLanes, each.hull.hi)},
          {__reduce_max_sync(kAllLanes, each.core.lo), __reduce_min_sync(kAllLanes, each.core.hi)}};
      auto* const of_blocks = reinterpret_cast<SeenKeys*>(
          plane + TokenNumbers::seen_keys(p.num_spans, Atom::kComparison));
      if (lane == 0) of_blocks[block] = all;
    }
    __syncthreads();
  }

  static __device__ void find_seen_keys(const BuildNumbersParams& p) {
    __shared__ SeenKeys of_rows[TokenNumbers::kBlock];
    for (int64 index = blockIdx.x; index < p.num_blocks_of_rows(); index += gridDim.x) {
      int* const plane = p.out + index / p.num_row_blocks * p.words_per_span * p.num_spans;
      const int block = static_cast<int>(index % p.num_row_blocks);
      (find_seen_keys<Compared>(p, plane, block, of_rows), ...);
    }
  }

  static __device__ void run(const BuildNumbersParams& p) {
    if (p.phase == BuildNumbersParams::Phase::numbers) {
      make_numbers(p);
    } else {
      find_seen_keys(p);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
