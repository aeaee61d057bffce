// A query tile that is a brick of a grid (shared/bricks.cuh), as a kernel's warps know it: where
// its rows are in the grid, which key tiles it visits, and masks. Rows are numbered as if bricks
// followed one another in memory, group after group: brick i has the rows
// [i * kBlockM, (i + 1) * kBlockM).
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/shared/bricks.cuh"

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

  using Row = BrickRow<Rows, typename Config::KeyBrick>;

  DilationGroup group;
  GridPoint origin;  // of the brick, in the group
  int first_token;
  GridPoint token_steps;         // to the next row on each axis
  AlignedSpan spans[kNumSpans];  // what its planes, lines and columns of rows see, in Row::kUnits

  // Finds where a brick is; false where it has no rows. By one lane.
  __device__ __forceinline__ bool place(const Neighborhood& n, int brick) {
    const DilatedGrid grid = grid_of(n);
    const GridPoint bricks = grid.bricks_of_group(Rows::box());
    const DilationGroup own = grid.group(brick / bricks.volume());
    const GridPoint first = scaled(place_in(bricks, brick % bricks.volume()), Rows::box());
    if (!is_inside(first, own.extents)) return false;
    const GridPoint token = own.token(first);
    const auto& [a, b, c] = grid.extents;
    group = own;
    origin = first;
    first_token = (token.a * b + token.b) * c + token.c;
    token_steps = scaled(grid.dilation, {b * c, c, 1});
    return true;
  }

  // Then finds what its rows see. By a warp.
  __device__ __forceinline__ void find_spans(const Neighborhood& n) {
#pragma unroll 1
    for (int i = fresh_thread_index() % 32; i < kNumSpans; i += 32) {
      const int axis = i < Rows::a ? 0 : i < Rows::a + Rows::b ? 1 : 2;
      const int before = axis == 0 ? 0 : axis == 1 ? Rows::a : Rows::a + Rows::b;
      spans[i] = {row_span(n, axis, group.extents.on(axis), origin.on(axis) + i - before,
                           Row::kUnits.on(axis))};
    }
    __syncwarp();
  }

  // The token of a row, or -1 where the brick goes beyond the group.
  __device__ __forceinline__ int token_of(int row) const {
    const GridPoint at = place_in(Rows::box(), row);
    if (!is_inside(sum(origin, at), group.extents)) return -1;
    return first_token + at.a * token_steps.a + at.b * token_steps.b + at.c * token_steps.c;
  }
};

// The key tiles that a query brick visits: bricks of its group in row-major order, then the keys
// behind the grid. By a warp, of which a lane holds what one part of 64 rows sees.
template <class Config>
struct BrickWalk {
  using Rows = typename Config::QueryBrick;
  using Keys = typename Config::KeyBrick;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kParts = Config::kBlockM / kBrickPartRows;

  BrickView view;
  GridPoint begin, end;  // of the bricks that some part sees
  GridPoint at;
  int extra = -1;  // behind the grid the tile's first key
  int num_tokens;
  int seqlen_k;

  // The tile that the walk is at: a bit for each part that sees some of it, or all.
  uint32 seen;
  uint32 full;

  __device__ __forceinline__ BrickWalk(const Neighborhood& n, const BrickTile<Config>& tile,
                                       int keys)
      : num_tokens(n.tokens()), seqlen_k(keys) {
    constexpr GridPoint kPart = part_of(Rows::box());
    constexpr GridPoint kPartsOnAxis{Rows::a / kPart.a, Rows::b / kPart.b, 1};
    const int part = fresh_thread_index() % 32 % kParts;
    const GridPoint first = scaled(place_in(kPartsOnAxis, part), kPart);
    view = brick_view(n, tile.group.extents, sum(tile.origin, first), kPart, Keys::box());
    begin = {least(view.visible[0].lo), least(view.visible[1].lo), least(view.visible[2].lo)};
    end = {most(view.visible[0].hi), most(view.visible[1].hi), most(view.visible[2].hi)};
    at = begin;
    look();
  }

  // The tile's place as visits have it.
  __device__ __forceinline__ int place() const { return extra >= 0 ? extra : pack_place(at); }
  __device__ __forceinline__ bool behind_grid() const { return extra >= 0; }

  // False behind the last tile. There is a first one, for the brick's first row is in its group.
  __device__ __forceinline__ bool advance() {
    if (extra >= 0) {
      extra += kBlockN;
    } else if (++at.c == end.c) {
      at.c = begin.c;
      if (++at.b == end.b) {
        at.b = begin.b;
        if (++at.a == end.a) extra = num_tokens;
      }
    }
    look();
    return extra < seqlen_k;
  }

 private:
  __device__ __forceinline__ void look() {
    const bool whole = extra + kBlockN <= seqlen_k;
    const bool is_part = fresh_thread_index() % 32 < kParts;
    seen = __ballot_sync(0xffffffff, is_part && (extra >= 0 || view.sees(at)));
    full = __ballot_sync(0xffffffff, is_part && (extra >= 0 ? whole : view.sees_all_of(at)));
  }
  __device__ __forceinline__ static int least(int value) {
    return __reduce_min_sync(0xffffffff, value);
  }
  __device__ __forceinline__ static int most(int value) {
    return __reduce_max_sync(0xffffffff, value);
  }
};

// What a warp's 16 rows see of a visited tile; of a brick each lane knows it for its own scores.
template <class Config, bool kVisits = kVisitsBricks<Config>>
struct TileMask : WarpMask<16, Config::kBlockN> {};
template <class Config>
struct TileMask<Config, true> {
  using Rows = typename Config::QueryBrick;
  using Keys = typename Config::KeyBrick;
  using Row = BrickRow<Rows, Keys>;

  typename Row::Word seen[2];  // of the warp's rows lane / 4 and lane / 4 + 8

  // Of the rows from the query brick's row `first_row` on, a multiple of 16; false when the mask
  // hides nothing. By a warp.
  __device__ __forceinline__ bool evaluate(const BrickTile<Config>& tile, int place,
                                           bool behind_grid, int seqlen_k, int first_row) {
    const int lane = threadIdx.x % 32;
    if (behind_grid) {
      seen[0] = seen[1] = Row::below(seqlen_k - place, lane % 4);
    } else {
      const GridPoint first = scaled(unpack_place(place), scaled(Keys::box(), Row::kUnits));
      const GridPoint row = place_in(Rows::box(), first_row + lane / 4);
      const auto* planes = tile.spans + row.a;
      const auto* lines = tile.spans + Rows::a + row.b;
      const auto* columns = tile.spans + Rows::a + Rows::b + row.c;
      seen[0] = Row::seen(*planes, *lines, *columns, first, lane % 4);
      if constexpr (Rows::c >= 16) {
        columns += 8;
      } else if constexpr (Rows::b * Rows::c % 16 == 0) {
        lines += 8 / Rows::c;
      } else {
        const GridPoint lower = place_in(Rows::box(), first_row + lane / 4 + 8);
        planes += lower.a - row.a;
        lines += lower.b - row.b;
        columns += lower.c - row.c;
      }
      seen[1] = Row::seen(*planes, *lines, *columns, first, lane % 4);
    }
    return __any_sync(0xffffffff, (seen[0] & seen[1]) != Row::kAll);
  }

  // As WarpMask's.
  __device__ __forceinline__ void apply(float (&scores)[Config::kBlockN / 8][4], int, int r) const {
#pragma unroll
    for (int j = 0; j < Config::kBlockN / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        if (!(seen[r] >> (2 * j + e) & 1)) scores[j][2 * r + e] = kMinusInfinity;
      }
    }
  }
};

}  // namespace girih
