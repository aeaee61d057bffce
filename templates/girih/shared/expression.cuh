// Expressions of patterns as atoms: a condition that a kernel's entry defines, evaluated for each
// element, and the tiles that build_tiles.cuh has found to hold nothing or everything.
#pragma once

#include "girih/shared/arithmetic.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

// What expressions are about. Heads are those of the whole model; `local` ones, which index
// tensors, those of the launch.
struct ElementIndices {
  int b, h, g, local_h, local_g;
  int q, k, p;  // p is the key at the row's position
  int Sq, Sk;

  GIRIH_HD ElementIndices(const Geometry& geometry, int row, int key)
      : b(geometry.batch),
        h(geometry.head),
        g(geometry.head_kv),
        local_h(geometry.local_head),
        local_g(geometry.local_head / geometry.group_size),
        q(row),
        k(key),
        p(geometry.diagonal(row)),
        Sq(geometry.seqlen_q),
        Sk(geometry.seqlen_k) {}
};

// Base of an entry's expressions: reads elements of the tensors that lie at `places`. Indices of
// the dimensions in kInside are known to be inside: TensorView::offset.
template <class Value>
struct ExpressionTensors {
  const InputView* inputs;
  const int* places;

  template <int kRank, uint32 kInside = 0, class... Indices>
  GIRIH_HD Value element(int tensor, Indices... indices) const {
    static_assert(sizeof...(Indices) == kRank);
    const TensorView& view = TensorView::at(inputs, places[tensor]);
    const int at[kRank] = {indices...};
    return static_cast<const Value*>(view.data)[view.offset(at, kRank, kInside)];
  }
};

// For each block of rows two rows of bits, one bit for each block of keys: whether some element is
// visible, and whether all are.
struct TileBits {
  static constexpr int kBlock = 64;  // rows and keys
  static constexpr int kSome = 0, kAll = 1;

  const uint32* words;
  int words_per_row;

  GIRIH_HD static TileBits of(const Geometry& g, int place) {
    const InputView& view = g.inputs[place];
    return {view.plane(g.batch, g.local_head), view.row_stride};
  }
  GIRIH_HD uint32 word(int row_block, int which, int i) const {
    return words[(int64{2} * row_block + which) * words_per_row + i];
  }
};

struct ExprTiles : KeySearch<ExprTiles> {
  TileBits bits;
  GIRIH_HD explicit ExprTiles(const TileBits& tile_bits) : bits(tile_bits) {}

  // Words that one search looks at: where nothing was found in them, what comes next may be called
  // both visible and hidden. No tile has so many keys.
  static constexpr int kMostWords = 16;

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    constexpr int kBlock = TileBits::kBlock;
    const int first = rows.begin / kBlock, last = (rows.end - 1) / kBlock;
    const int begin = k / kBlock, end = ceil_div(g.seqlen_k, kBlock);  // columns
    NextKeys next{kNoUpperBound, kNoUpperBound};
    uint32 ahead = ~0u << begin % 32;
    GIRIH_ROLLED
    for (int w = begin / 32; 32 * w < end; ++w, ahead = ~0u) {
      if (w - begin / 32 == kMostWords) {
        next = {min(next.visible, 32 * w), min(next.hidden, 32 * w)};
        break;
      }
      uint32 some = 0, all = ~0u;
      GIRIH_ROLLED
      for (int block = first; block <= last; ++block) {
        some |= bits.word(block, TileBits::kSome, w);
        all &= bits.word(block, TileBits::kAll, w);
      }
      some &= ahead;
      all |= ~ahead;
      if (next.visible == kNoUpperBound && some != 0) next.visible = 32 * w + lowest_bit(some);
      if (next.hidden == kNoUpperBound && all != ~0u) next.hidden = 32 * w + lowest_bit(~all);
      if (next.visible != kNoUpperBound && next.hidden != kNoUpperBound) break;
    }
    const auto key_of = [&](int column) {  // bits behind the last column mean nothing
      return column >= end ? kNoUpperBound : max(k, column * kBlock);
    };
    return {key_of(next.visible), key_of(next.hidden)};
  }
};

// A mask's structure where Condition holds. Condition derives from ExpressionTensors<int> and has
//   kNumTensors
//   bool operator()(ElementIndices)
// Its numbers are places: that of its tiles, then those of its tensors.
template <class Condition>
struct Expr {
  static constexpr int kNumNumbers = 1 + Condition::kNumTensors;

  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return ExprTiles(TileBits::of(g, numbers[0])).seek(g, rows, tiles, n);
  }

  GIRIH_HD static uint32 row_bits(const int* numbers, const Geometry& g, int q, KeyWord keys) {
    if (q >= g.seqlen_q || keys.first_key >= g.seqlen_k) return 0;  // there are no such elements
    const Condition condition{{g.inputs, numbers + 1}};
    ElementIndices at(g, q, keys.first_key);
    uint32 bits = 0;
    GIRIH_ROLLED
    for (int i = 0; i < 32; ++i, ++at.k) bits |= condition(at) ? 1u << i : 0u;
    return bits;
  }
};

}  // namespace girih
