// Random cases for seeks, and their check against the oracle's naive predicates: no tile that a run
// calls empty or full may be anything else.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"

namespace girih::tests {

inline int below(std::mt19937_64& random, int bound) {
  return static_cast<int>(random() % static_cast<unsigned>(bound));
}

template <class T, std::size_t kCount>
T one_of(std::mt19937_64& random, const T (&values)[kCount]) {
  return values[below(random, kCount)];
}

inline Geometry geometry_of(const oracle::Sizes& sizes) {
  return {static_cast<int>(sizes.seqlen_q),   static_cast<int>(sizes.seqlen_k),
          static_cast<int>(sizes.q_start),    static_cast<int>(sizes.k_start),
          static_cast<int>(sizes.head),       static_cast<int>(sizes.head / sizes.group_size),
          static_cast<int>(sizes.group_size), static_cast<int>(sizes.num_heads)};
}

// A case to look at, in words.
struct Case {
  oracle::Expr expr;
  oracle::Sizes sizes;
  int block_m;
  int block_n;

  // Data of run-time inputs, by slot, and which of it the sequence and head see.
  const girih::InputView* inputs = nullptr;
  int batch = 0;
  int local_head = 0;

  Geometry geometry() const {
    Geometry result = geometry_of(sizes);
    result.inputs = inputs;
    result.batch = batch;
    result.local_head = local_head;
    return result;
  }

  std::string words() const {
    return oracle::text(expr) + ", Sq " + std::to_string(sizes.seqlen_q) + ", Sk " +
           std::to_string(sizes.seqlen_k) + ", q_start " + std::to_string(sizes.q_start) +
           ", k_start " + std::to_string(sizes.k_start) + ", head " + std::to_string(sizes.head) +
           " of " + std::to_string(sizes.num_heads) + " in groups of " +
           std::to_string(sizes.group_size) + ", tile " + std::to_string(block_m) + " x " +
           std::to_string(block_n);
  }
};

template <class MakeExpr>
Case random_case(std::mt19937_64& random, MakeExpr&& make_expr) {
  const bool large = below(random, 40) == 0;
  const int longest = large ? 260 : 48;
  oracle::Sizes sizes =
      oracle::bottom_right(1 + below(random, longest), 1 + below(random, longest));
  if (below(random, 12) == 0) sizes = oracle::bottom_right(1, sizes.seqlen_k);
  if (below(random, 4) == 0) {  // a chunk of a longer sequence, or top-left
    sizes.k_start = below(random, 2) * below(random, longest);
    sizes.q_start = below(random, 3) == 0 ? 0 : below(random, 3 * longest) - longest;
  }
  sizes.group_size = 1 << below(random, 3);
  sizes.num_heads = sizes.group_size * (1 + below(random, 6));
  sizes.head = below(random, static_cast<int>(sizes.num_heads));
  static constexpr int kSmall[] = {1, 2, 3, 4, 5, 8, 16}, kLarge[] = {16, 32, 64, 80, 128};
  const int block_m = large ? one_of(random, kLarge) : one_of(random, kSmall);
  const int block_n = large ? one_of(random, kLarge) : one_of(random, kSmall);
  return {make_expr(longest), sizes, block_m, block_n};
}

inline Case random_case(std::mt19937_64& random, int depth) {
  return random_case(random,
                     [&](int longest) { return oracle::random_expr(random, depth, longest); });
}

inline Case random_atom_case(std::mt19937_64& random, int kind) {
  return random_case(random, [&](int longest) {
    return oracle::random_atom(random, static_cast<oracle::Expr::Kind>(kind), longest);
  });
}

// The true kind of every key tile for the query rows [q0, q1).
inline std::vector<TileKind> true_kinds(const Case& c, int q0, int q1) {
  const int seqlen_k = static_cast<int>(c.sizes.seqlen_k);
  std::vector<TileKind> kinds;
  for (int k0 = 0; k0 < seqlen_k; k0 += c.block_n) {
    const int k1 = std::min(k0 + c.block_n, seqlen_k);
    int count = 0;
    for (int q = q0; q < q1; ++q) {
      for (int k = k0; k < k1; ++k) count += oracle::visible(c.expr, c.sizes, q, k) ? 1 : 0;
    }
    const bool full = count == (q1 - q0) * c.block_n;  // of whole tiles only
    kinds.push_back(count == 0 ? TileKind::empty : full ? TileKind::full : TileKind::partial);
  }
  return kinds;
}

struct Visits {
  std::int64_t visited = 0;
  std::int64_t partial = 0;
  void add(TileKind kind) {
    visited += kind != TileKind::empty;
    partial += kind == TileKind::partial;
  }
};

struct Tightness {
  Visits walked, truth;
  std::int64_t inexact = 0;  // tiles called partial that are not

  // Tiles visited for each that is needed.
  double visited() const { return double(walked.visited) / double(truth.visited); }
};

// Checks soundness of the run that every tile of one row of tiles starts, and counts what a walk
// visits. doctest's assertions are slow: they run only when something is wrong.
inline void check_row_of_tiles(const Case& c, const Mask& mask, int q0, Tightness& tightness) {
  const Geometry geometry = c.geometry();
  const QueryRows rows{q0, std::min(q0 + c.block_m, geometry.seqlen_q)};
  const KeyTiles tiles{c.block_n, geometry.seqlen_k};
  const std::vector<TileKind> truth = true_kinds(c, rows.begin, rows.end);
  int next = 0;
  for (int n = 0; n < tiles.count(); ++n) {
    const Run run = girih::pattern::seek(mask, geometry, rows, tiles, n);
    bool sound = n < run.end && run.end <= tiles.count();
    for (int i = n; sound && i < run.end; ++i) {
      sound = run.kind == TileKind::partial || run.kind == truth[i];
    }
    if (!sound) {
      INFO(c.words(), ", row ", q0, ", tile ", n, ", end ", run.end, ", kind ",
           static_cast<int>(run.kind));
      REQUIRE(sound);
    }
    tightness.inexact += run.kind != truth[n];
    tightness.truth.add(truth[n]);
    if (n == next) {
      for (int i = n; i < run.end; ++i) tightness.walked.add(run.kind);
      next = run.end;
    }
  }
}

}  // namespace girih::tests
