// A pattern's structure as a type: All<Causal, Any<Sink, Window>>. The numbers of its atoms, in
// the order of the text, arrive at run time. Every type offers
//   kNumNumbers
//   seek(numbers, geometry, rows, tiles, n)   the run of key tiles that tile n starts
//   row_bits(numbers, geometry, q, keys)   one bit for each of a thread's columns in a tile
#pragma once

#include "girih/shared/atoms.cuh"

namespace girih {

// Bit i of kFromInputs says that number i is the slot of a run-time input that holds the number,
// one for all or one for each sequence and head.
template <class Atom, uint32 kFromInputs = 0>
struct Leaf {
  static constexpr int kNumNumbers = Atom::kInfo.num_numbers();
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return atom(numbers, g).seek(g, rows, tiles, n);
  }
  GIRIH_HD static uint32 row_bits(const int* numbers, const Geometry& g, int q, KeyWord keys) {
    return atom(numbers, g).row_bits(g, q, keys);
  }

 private:
  GIRIH_HD static Atom atom(const int* numbers, const Geometry& g) {
    if constexpr (kFromInputs == 0) {
      return make_atom<Atom>(numbers);
    } else {
      int own[kNumNumbers];
      read<0>(numbers, g, own);
      return make_atom<Atom>(own);
    }
  }

  // What lies out of bounds counts as the nearest bound.
  template <int i>
  GIRIH_HD static void read(const int* numbers, const Geometry& g, int* own) {
    if constexpr (i < kNumNumbers) {
      own[i] = numbers[i];
      if constexpr ((kFromInputs >> i & 1) != 0) {
        constexpr AtomParam kParam = Atom::kInfo.params[i];
        const int value = static_cast<int>(*g.inputs[numbers[i]].plane(g.batch, g.local_head));
        own[i] = min(max(value, kParam.least), kParam.most);
      }
      read<i + 1>(numbers, g, own);
    }
  }
};

template <class Operand>
struct Not {
  static constexpr int kNumNumbers = Operand::kNumNumbers;
  GIRIH_HD static Run seek(const int* numbers, const Geometry& g, QueryRows rows, KeyTiles tiles,
                           int n) {
    return negation(Operand::seek(numbers, g, rows, tiles, n));
  }
  GIRIH_HD static uint32 row_bits(const int* numbers, const Geometry& g, int q, KeyWord keys) {
    return ~Operand::row_bits(numbers, g, q, keys);
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
  GIRIH_HD static uint32 row_bits(const int* numbers, const Geometry& g, int q, KeyWord keys) {
    return First::row_bits(numbers, g, q, keys) &
           Tail::row_bits(numbers + First::kNumNumbers, g, q, keys);
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
  GIRIH_HD static uint32 row_bits(const int* numbers, const Geometry& g, int q, KeyWord keys) {
    return First::row_bits(numbers, g, q, keys) |
           Tail::row_bits(numbers + First::kNumNumbers, g, q, keys);
  }
};
template <class Last>
struct Any<Last> : Last {};

// The structures of a kernel's head classes. Which one a head has is a run-time number, the same
// for a whole query tile: the branches below are uniform.
template <class... Structures>
struct HeadClasses {
  static constexpr int kCount = sizeof...(Structures);
  static constexpr int kNumNumbers = largest(Structures::kNumNumbers...);

  GIRIH_HD static Run seek(int head_class, const int* numbers, const Geometry& g, QueryRows rows,
                           KeyTiles tiles, int n) {
    Run run{tiles.count(), TileKind::empty};
    int index = 0;
    ((is_class(head_class, index++) ? void(run = Structures::seek(numbers, g, rows, tiles, n))
                                    : void()),
     ...);
    return demote_last_tile(run, tiles, n);
  }

  GIRIH_HD static uint32 row_bits(int head_class, const int* numbers, const Geometry& g, int q,
                                  KeyWord keys) {
    uint32 bits = 0;
    int index = 0;
    ((is_class(head_class, index++) ? void(bits = Structures::row_bits(numbers, g, q, keys))
                                    : void()),
     ...);
    return bits & keys.below(g.seqlen_k);
  }

 private:
  // A single class needs no number.
  GIRIH_HD static bool is_class(int head_class, int index) {
    return kCount == 1 || head_class == index;
  }
};

}  // namespace girih
