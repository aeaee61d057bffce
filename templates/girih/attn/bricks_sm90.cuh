// What is different in a Hopper kernel whose tiles are bricks of a grid (shared/bricks.cuh): the
// copies of Q, K and V, which key tiles a query tile visits, masks, and where results go. A query
// tile's rows are numbered as if bricks followed one another in memory: brick i has the rows
// [i * kBlockM, (i + 1) * kBlockM).
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/shared/bricks.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Config has QueryBrick and KeyBrick where tiles are bricks.
template <class Config>
constexpr bool kVisitsBricks = requires {
  typename Config::QueryBrick;
};

// What is known of a query brick.
template <class Config, bool kVisits = kVisitsBricks<Config>>
struct BrickTile {};
template <class Config>
struct BrickTile<Config, true> {
  using Rows = typename Config::QueryBrick;
  static constexpr int kNumSpans = Rows::a + Rows::b + Rows::c;

  GridPoint origin;         // of the brick, in tokens
  uint32 spans[kNumSpans];  // what its planes, lines and columns of rows see: pack_row_span()
};

// Kernel is FwdSm90 of such a Config.
template <class Kernel, class Config>
struct BricksSm90 {
  using Rows = typename Config::QueryBrick;
  using Keys = typename Config::KeyBrick;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kParts = Config::kBlockM / kBrickPartRows;  // a warpgroup's rows each
  static constexpr GridPoint kPart = part_of(Rows::box());
  static constexpr GridPoint kPartsOnAxis{Rows::a / kPart.a, Rows::b / kPart.b, 1};

  static_assert(Rows::box().volume() == Config::kBlockM && is_query_brick(Rows::box()));
  static_assert(Keys::box().volume() == kBlockN && is_key_brick(Keys::box()));

  // --- Producing

  // Starts the copy of a brick that begins at a token, panel after panel, by one lane.
  template <class Brick, int kNumPanels>
  static __device__ __forceinline__ void load(uint32 tile, const TensorMap& map,
                                              const uint64& barrier, int64 head_stride,
                                              BoxOrigin sequence, GridPoint token) {
    constexpr int kPanelBytes = Brick::box().volume() * kPanelRowBytes;
    mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kPanelBytes);
    const int column = sequence.head * static_cast<int>(head_stride);
#pragma unroll
    for (int panel = 0; panel < kNumPanels; ++panel) {
      tma_load_grid(tile + panel * kPanelBytes, map, shared_address(&barrier),
                    {column + panel * kPanelColumns, token.c, token.b, token.a, sequence.batch});
    }
  }

  // Likewise that of a visited key tile; behind the grid keys are consecutive rows of `rows`.
  template <int kNumPanels>
  static __device__ __forceinline__ void load_keys(uint32 tile, const TensorMap& bricks,
                                                   const TensorMap& rows, const uint64& barrier,
                                                   int64 head_stride, BoxOrigin sequence,
                                                   uint32 flags, int box) {
    if (flags & Kernel::kExtraKeys) {
      Kernel::template load_panels<kBlockN, kBlockN, kNumPanels>(
          tile, rows, barrier, [&](int) -> BoxOrigin {
            return {0, sequence.row + box, sequence.head, sequence.batch};
          });
    } else {
      load<Keys, kNumPanels>(tile, bricks, barrier, head_stride, sequence,
                             scaled(unpack_place(box), Keys::box()));
    }
  }

  static __device__ __forceinline__ int token_at(const Neighborhood& n, GridPoint at) {
    return (at.a * n.extent(1) + at.b) * n.extent(2) + at.c;
  }

  // Of a row of the tile its token, or -1 where the brick goes beyond the grid.
  template <class Work>
  static __device__ __forceinline__ int token_of(const Work& work, int row) {
    const Neighborhood n(work.numbers[0]);
    const GridPoint at = sum(work.origin, place_in(Rows::box(), row));
    if (at.a >= n.extent(0) || at.b >= n.extent(1) || at.c >= n.extent(2)) return -1;
    return token_at(n, at);
  }

  // Fills in what the tile's rows see, by a warp.
  template <class Work>
  static __device__ __forceinline__ void describe(Work& work) {
    const int lane = fresh_thread_index() % 32;
    const Neighborhood n(work.numbers[0]);
    const GridPoint bricks = bricks_of(grid_of(n), Rows::box());
    const GridPoint origin =
        scaled(place_in(bricks, work.first_row / Config::kBlockM), Rows::box());
    if (lane == 0) work.origin = origin;
#pragma unroll 1
    for (int i = lane; i < Work::kNumSpans; i += 32) {
      const int axis = i < Rows::a ? 0 : i < Rows::a + Rows::b ? 1 : 2;
      const int first = axis == 0 ? 0 : axis == 1 ? Rows::a : Rows::a + Rows::b;
      work.spans[i] = pack_row_span(n, axis, origin.on(axis) + i - first);
    }
    __syncwarp();
  }

  // Announces the tile's visits: key bricks in row-major order, then the keys behind the grid. A
  // visit is announced when it is known who sees the next one.
  template <class Control, class Work, class Announcer>
  static __device__ __forceinline__ void find_visits(Control& control, const Work& work,
                                                     Announcer& announcer) {
    if (work.first_row < 0) {
      announcer.announce(control, Kernel::kFirstVisit | Kernel::kLastVisit, 0);
      return;
    }
    const int lane = fresh_thread_index() % 32;
    const Neighborhood n(work.numbers[0]);
    const GridPoint part = scaled(place_in(kPartsOnAxis, lane % kParts), kPart);
    const BrickView view = brick_view(n, sum(work.origin, part), kPart, Keys::box());
    const int seqlen_k = work.geometry.seqlen_k;
    GridPoint begin, end;
    const auto join = [&](int axis, int& first, int& behind) {
      first = __reduce_min_sync(0xffffffff, view.visible[axis].lo);
      behind = __reduce_max_sync(0xffffffff, view.visible[axis].hi);
    };
    join(0, begin.a, end.a);
    join(1, begin.b, end.b);
    join(2, begin.c, end.c);

    GridPoint at = begin;
    int extra = -1;  // the first key of a tile behind the grid, once they are reached
    bool more = true;
    uint32 seen = 0, full = 0;  // a bit for each part
    const auto look = [&] {
      const bool whole = extra + kBlockN <= seqlen_k;
      seen = __ballot_sync(0xffffffff, lane < kParts && (extra >= 0 || view.sees(at)));
      full =
          __ballot_sync(0xffffffff, lane < kParts && (extra >= 0 ? whole : view.sees_all_of(at)));
    };
    const auto advance = [&] {
      if (extra >= 0) {
        extra += kBlockN;
      } else if (++at.c == end.c) {
        at.c = begin.c;
        if (++at.b == end.b) {
          at.b = begin.b;
          if (++at.a == end.a) extra = n.tokens();
        }
      }
      more = extra < seqlen_k;
    };
    uint32 flags = Kernel::kFirstVisit;
    look();
#pragma unroll 1
    while (more) {
      flags |= Kernel::two_bits_each(seen) + Kernel::two_bits_each(seen & full);
      if (extra >= 0) flags |= Kernel::kExtraKeys;
      const int box = extra >= 0 ? extra : pack_place(at);
      advance();
      look();
      flags |= more ? seen << Kernel::kSeesNextBit : Kernel::kLastVisit;
      announcer.announce(control, flags, box);
      flags = 0;
    }
  }

  // Writes the staged output of the tile's rows that the grid has.
  template <class Work>
  static __device__ __forceinline__ void store(const Work& work, int64 row_stride,
                                               const unsigned char* tile) {
    constexpr uint32 kChunksPerRow = Config::kHeadDimV / 8;
#pragma unroll 1
    for (uint32 index = fresh_thread_index() % 32; index < Config::kBlockM * kChunksPerRow;
         index += 32) {
      const int row = index / kChunksPerRow, chunk = index % kChunksPerRow;
      const int token = token_of(work, row);
      if (token < 0) continue;
      *reinterpret_cast<uint4*>(work.out + token * row_stride + 8 * chunk) =
          *reinterpret_cast<const uint4*>(tile + Kernel::staged_chunk(row, chunk));
    }
  }

  // --- Consuming

  // The mask of a visit's tile for the 16 rows from `first_row` of the query tile on; false when it
  // hides nothing. By a warp.
  template <class Work>
  static __device__ __forceinline__ bool evaluate(WarpMask<16, kBlockN>& mask, const Work& work,
                                                  uint32 flags, int box, int first_row, int lane) {
    const GridPoint row = place_in(Rows::box(), first_row + lane % 16);
    const BrickRow<Keys> keys(work.spans[row.a], work.spans[Rows::a + row.b],
                              work.spans[Rows::a + Rows::b + row.c],
                              scaled(unpack_place(box), Keys::box()));
    bool hides = false;
#pragma unroll
    for (int i = 0; i < mask.kWordsPerLane; ++i) {
      const int word = mask.kLanesPerRow * i + lane / 16;
      const uint32 every = KeyWord{32 * word}.below(kBlockN);
      mask.words[i] = keys.word(word);
      if (flags & Kernel::kExtraKeys) {
        mask.words[i] = KeyWord{box + 32 * word}.below(work.geometry.seqlen_k) & every;
      }
      hides |= mask.words[i] != every;
    }
    return __any_sync(0xffffffff, hides);
  }
};

}  // namespace girih
