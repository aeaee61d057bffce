// A pattern's structure as a type: All<Causal, Any<Sink, Window>>. The numbers of its atoms, in
// the order of the text, arrive at run time. Every type offers
//   kNumNumbers
//   seek(numbers, geometry, rows, tiles, n)   the run of key tiles that tile n starts
//   row_bits(numbers, geometry, q, columns)   one bit for each of a thread's columns in a tile
#pragma once

#include "girih/shared/atoms.cuh"

namespace girih {

// The columns of a key tile that one thread of an m16n8 accumulator holds: first_key + 8 * j and
// the one after it, j = 0, 1, ... Bit 2 * j + i of a row's word is column first_key + 8 * j + i.
template <class Bits>
struct TileColumns {
  int first_key;  // n_block * block_n + 2 * (lane % 4)

  // Bits of the columns with key < bound.
  GIRIH_HD Bits below(int bound) const {
    const int distance = bound - first_key;
    const int count = distance <= 0 ? 0 : 2 * (distance / 8) + min(distance % 8, 2);
    constexpr int kNumBits = 8 * static_cast<int>(sizeof(Bits));
    return count >= kNumBits ? ~Bits(0) : (Bits(1) << count) - Bits(1);
  }
  GIRIH_HD Bits inside(Span span, int seqlen_k) const {  // clipped first: bounds may be extreme
    return below(min(span.hi, seqlen_k)) & ~below(max(span.lo, 0));
  }
};

template <class Atom>
struct Leaf {
  static constexpr int kNumNumbers = Atom::kInfo.num_params;
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return make_atom<Atom>(numbers).seek(g, rows, tiles, n);
  }
  template <class Bits>
  GIRIH_HD static Bits row_bits(const int* numbers, const Geometry& g, int q,
                                TileColumns<Bits> columns) {
    return columns.inside(make_atom<Atom>(numbers).span(g, q), g.seqlen_k);
  }
};

template <class Operand>
struct Not {
  static constexpr int kNumNumbers = Operand::kNumNumbers;
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return negation(Operand::seek(numbers, g, rows, tiles, n));
  }
  template <class Bits>
  GIRIH_HD static Bits row_bits(const int* numbers, const Geometry& g, int q,
                                TileColumns<Bits> columns) {
    return ~Operand::row_bits(numbers, g, q, columns);
  }
};

template <class First, class... Rest>
struct All {
  using Tail = All<Rest...>;
  static constexpr int kNumNumbers = First::kNumNumbers + Tail::kNumNumbers;
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return all_of(First::seek(numbers, g, rows, tiles, n),
                  Tail::seek(numbers + First::kNumNumbers, g, rows, tiles, n));
  }
  template <class Bits>
  GIRIH_HD static Bits row_bits(const int* numbers, const Geometry& g, int q,
                                TileColumns<Bits> columns) {
    return First::row_bits(numbers, g, q, columns) &
           Tail::row_bits(numbers + First::kNumNumbers, g, q, columns);
  }
};
template <class Last>
struct All<Last> : Last {};

template <class First, class... Rest>
struct Any {
  using Tail = Any<Rest...>;
  static constexpr int kNumNumbers = First::kNumNumbers + Tail::kNumNumbers;
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return any_of(First::seek(numbers, g, rows, tiles, n),
                  Tail::seek(numbers + First::kNumNumbers, g, rows, tiles, n));
  }
  template <class Bits>
  GIRIH_HD static Bits row_bits(const int* numbers, const Geometry& g, int q,
                                TileColumns<Bits> columns) {
    return First::row_bits(numbers, g, q, columns) |
           Tail::row_bits(numbers + First::kNumNumbers, g, q, columns);
  }
};
template <class Last>
struct Any<Last> : Last {};

// The structures of a kernel's head classes. Which one a head has is a run-time number, the same
// for a whole query tile: the branches below are uniform.
template <class... Structures>
struct HeadClasses {
  static constexpr int kCount = sizeof...(Structures);
  static constexpr int kNumNumbers = [] {  // of the class with the most
    int most = 0;
    ((most = max(most, Structures::kNumNumbers)), ...);
    return most;
  }();

  GIRIH_HD static Run seek(int head_class, const int* numbers, const Geometry& g, QueryRows rows,
                           KeyTiles tiles, int n) {
    Run run{tiles.count(), TileKind::empty};
    int index = 0;
    ((head_class == index++ ? void(run = Structures::seek(numbers, g, rows, tiles, n)) : void()),
     ...);
    return demote_last_tile(run, tiles, n);
  }

  template <class Bits>
  GIRIH_HD static Bits row_bits(int head_class, const int* numbers, const Geometry& g, int q,
                                TileColumns<Bits> columns) {
    Bits bits = 0;
    int index = 0;
    ((head_class == index++ ? void(bits = Structures::row_bits(numbers, g, q, columns)) : void()),
     ...);
    return bits & columns.below(g.seqlen_k);
  }
};

}  // namespace girih
