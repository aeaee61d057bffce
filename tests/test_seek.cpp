// What is visible and which tiles are visited: the interpreter and the templates' static
// structures against the oracle's naive predicates.
#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "girih/shared/structure.cuh"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"

using girih::Geometry;
using girih::KeyTiles;
using girih::Mask;
using girih::QueryRows;
using girih::Run;
using girih::Span;
using girih::TileKind;

namespace {

int below(std::mt19937_64& random, int bound) {
  return static_cast<int>(random() % static_cast<unsigned>(bound));
}

template <class T, std::size_t kCount>
T one_of(std::mt19937_64& random, const T (&values)[kCount]) {
  return values[below(random, kCount)];
}

Geometry geometry_of(const oracle::Sizes& sizes) {
  return {static_cast<int>(sizes.seqlen_q), static_cast<int>(sizes.seqlen_k),
          static_cast<int>(sizes.q_start),  static_cast<int>(sizes.k_start),
          static_cast<int>(sizes.head),     static_cast<int>(sizes.group_size),
          static_cast<int>(sizes.num_heads)};
}

// A case to look at, in words.
struct Case {
  oracle::Expr expr;
  oracle::Sizes sizes;
  int block_m;
  int block_n;

  std::string words() const {
    return oracle::text(expr) + ", Sq " + std::to_string(sizes.seqlen_q) + ", Sk " +
           std::to_string(sizes.seqlen_k) + ", q_start " + std::to_string(sizes.q_start) +
           ", k_start " + std::to_string(sizes.k_start) + ", head " + std::to_string(sizes.head) +
           " of " + std::to_string(sizes.num_heads) + " in groups of " +
           std::to_string(sizes.group_size) + ", tile " + std::to_string(block_m) +
           " x " + std::to_string(block_n);
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

Case random_case(std::mt19937_64& random, int depth) {
  return random_case(random,
                     [&](int longest) { return oracle::random_expr(random, depth, longest); });
}

Case random_atom_case(std::mt19937_64& random, int kind) {
  return random_case(random, [&](int longest) {
    return oracle::random_atom(random, static_cast<oracle::Expr::Kind>(kind), longest);
  });
}

// The true kind of every key tile for the query rows [q0, q1).
std::vector<TileKind> true_kinds(const Case& c, int q0, int q1) {
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
};

// Checks soundness of the run that every tile of one row of tiles starts, and counts what a walk
// visits. doctest's assertions are slow: they run only when something is wrong.
void check_row_of_tiles(const Case& c, const Mask& mask, int q0, Tightness& tightness) {
  const Geometry geometry = geometry_of(c.sizes);
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

// Mask of a static structure, and how many numbers it takes.
template <class Structure>
struct Reflect;
template <class Atom>
struct Reflect<girih::Leaf<Atom>> {
  static Mask mask(const int* numbers) {
    return Mask::atom(Atom::kInfo.name, {numbers, numbers + Atom::kInfo.num_numbers()});
  }
};
template <class Operand>
struct Reflect<girih::Not<Operand>> {
  static Mask mask(const int* numbers) { return !Reflect<Operand>::mask(numbers); }
};
template <class First, class... Rest>
struct Reflect<girih::All<First, Rest...>> {
  static Mask mask(const int* numbers) {
    Mask result = Reflect<First>::mask(numbers);
    numbers += First::kNumNumbers;
    ((result = result & Reflect<Rest>::mask(numbers), numbers += Rest::kNumNumbers), ...);
    return result;
  }
};
template <class First, class... Rest>
struct Reflect<girih::Any<First, Rest...>> {
  static Mask mask(const int* numbers) {
    Mask result = Reflect<First>::mask(numbers);
    numbers += First::kNumNumbers;
    ((result = result | Reflect<Rest>::mask(numbers), numbers += Rest::kNumNumbers), ...);
    return result;
  }
};

// Compares one class of `Classes` with the interpreter on random shapes.
template <class Structure, class Classes>
void compare_structure(std::mt19937_64& random, int head_class) {
  static constexpr int kBlockN[] = {16, 32, 48, 64, 80, 128, 256};
  for (int round = 0; round < 12; ++round) {
    const int longest = below(random, 2) == 0 ? 40 : 300;
    std::vector<int> numbers;
    for (int i = 0; i < Structure::kNumNumbers; ++i) numbers.push_back(below(random, longest));
    const Mask mask = Reflect<Structure>::mask(numbers.data());

    Geometry g{1 + below(random, longest), 1 + below(random, longest), 0, 0};
    g.q_start = g.seqlen_k - g.seqlen_q;
    if (below(random, 4) == 0) {
      g.k_start = below(random, longest);
      g.q_start = below(random, 2 * longest) - longest / 2;
    }
    const int block_n = one_of(random, kBlockN);
    const int block_m = 16 << below(random, 4);
    const KeyTiles tiles{block_n, g.seqlen_k};
    INFO(mask.text(), ", Sq ", g.seqlen_q, ", Sk ", g.seqlen_k, ", q_start ", g.q_start,
         ", k_start ", g.k_start, ", tile ", block_m, " x ", block_n);

    bool seeks_equal = true;
    for (int q = 0; q < g.seqlen_q; q += block_m) {
      const QueryRows rows{q, std::min(q + block_m, g.seqlen_q)};
      for (int n = 0; n < tiles.count(); ++n) {
        const Run fixed = Classes::seek(head_class, numbers.data(), g, rows, tiles, n);
        const Run dynamic = girih::pattern::seek(mask, g, rows, tiles, n);
        seeks_equal = seeks_equal && fixed.end == dynamic.end && fixed.kind == dynamic.kind;
      }
    }
    CHECK(seeks_equal);

    bool bits_equal = true;
    const int row_step = 1 + g.seqlen_q / 40;
    for (int q = 0; q < g.seqlen_q; q += row_step) {
      for (int first_key = 0; first_key < g.seqlen_k; first_key += 16) {
        const girih::uint32 bits =
            Classes::row_bits(head_class, numbers.data(), g, q, girih::KeyWord{first_key});
        for (int i = 0; i < 32; ++i) {
          const bool bit = (bits >> i & 1) != 0;
          bits_equal = bits_equal && bit == girih::pattern::visible(mask, g, q, first_key + i);
        }
      }
    }
    CHECK(bits_equal);
  }
}

template <class... Structures>
void compare_structures(std::mt19937_64& random) {
  using Classes = girih::HeadClasses<Structures...>;
  int head_class = 0;
  (compare_structure<Structures, Classes>(random, head_class++), ...);
}

}  // namespace

TEST_CASE("the interpreter agrees with the naive predicates on every element") {
  std::mt19937_64 random(1);
  for (int i = 0; i < 12000; ++i) {
    const Case c = random_case(random, 1 + i % 4);
    const Geometry geometry = geometry_of(c.sizes);
    const Mask mask = Mask::parse(oracle::text(c.expr));
    std::int64_t wrong = 0, count = 0;
    for (int q = 0; q < geometry.seqlen_q; ++q) {
      const std::vector<Span> spans = girih::pattern::row_spans(mask, geometry, q);
      std::vector<char> in_spans(geometry.seqlen_k, 0);
      int previous = -1;  // spans are sorted, disjoint, not adjacent and clipped
      for (const Span& span : spans) {
        wrong += previous < span.lo && span.lo < span.hi && span.hi <= geometry.seqlen_k ? 0 : 1;
        std::fill(in_spans.begin() + span.lo, in_spans.begin() + span.hi, 1);
        previous = span.hi;
      }
      for (int k = 0; k < geometry.seqlen_k; ++k) {
        const bool expected = oracle::visible(c.expr, c.sizes, q, k);
        count += expected;
        wrong += expected != girih::pattern::visible(mask, geometry, q, k);
        wrong += expected != (in_spans[k] != 0);
      }
    }
    if (wrong != 0 || count != girih::pattern::count_visible(mask, geometry)) {
      INFO(c.words());
      CHECK(wrong == 0);
      REQUIRE(count == girih::pattern::count_visible(mask, geometry));
    }
  }
}

TEST_CASE("nothing is visible outside the sequence, not even under a negation") {
  const Geometry geometry{4, 6, 2, 0};
  for (const char* text : {"dense", "!sink(0)", "!causal", "window(left=3)"}) {
    const Mask mask = Mask::parse(text);
    for (const auto& [q, k] : {std::pair(-1, 0), {4, 0}, {0, -1}, {0, 6}, {3, 1 << 30}}) {
      CHECK_FALSE(girih::pattern::visible(mask, geometry, q, k));
    }
    CHECK(girih::pattern::row_spans(mask, geometry, -1).empty());
    CHECK(girih::pattern::row_spans(mask, geometry, 4).empty());
  }
  CHECK(girih::pattern::count_visible(girih::dense(), {0, 6, 6, 0}) == 0);
  CHECK(girih::pattern::count_visible(girih::dense(), {6, 0, -6, 0}) == 0);
  CHECK(girih::pattern::count_tiles(girih::dense(), {6, 0, -6, 0}, 4, 4).full == 0);
}

TEST_CASE("seeks of atoms alone are exact") {
  std::mt19937_64 random(2);
  Tightness tightness;
  for (int i = 0; i < 40000; ++i) {
    const Case c = random_atom_case(random, i % oracle::kNumAtoms);
    const Mask mask = Mask::parse(oracle::text(c.expr));
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
      if (tightness.inexact != 0) {
        INFO(c.words(), ", row ", q0);
        REQUIRE(tightness.inexact == 0);
      }
    }
  }
  CHECK(tightness.walked.visited == tightness.truth.visited);
  CHECK(tightness.walked.partial == tightness.truth.partial);
}

TEST_CASE("seeks of random expressions are sound and tight") {
  std::mt19937_64 random(3);
  Tightness tightness;
  for (int i = 0; i < 12000; ++i) {
    const Case c = random_case(random, 2 + i % 3);
    const Mask mask = Mask::parse(oracle::text(c.expr));
    const std::int64_t before = tightness.walked.visited, partial = tightness.walked.partial;
    const std::int64_t all = ((c.sizes.seqlen_q + c.block_m - 1) / c.block_m) *
                             ((c.sizes.seqlen_k + c.block_n - 1) / c.block_n);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
    const auto counts =
        girih::pattern::count_tiles(mask, geometry_of(c.sizes), c.block_m, c.block_n);
    const bool counted = counts.full + counts.partial == tightness.walked.visited - before &&
                         counts.partial == tightness.walked.partial - partial &&
                         counts.full + counts.partial + counts.empty == all;
    if (!counted) {
      INFO(c.words());
      REQUIRE(counted);
    }
  }
  const double visited = double(tightness.walked.visited) / double(tightness.truth.visited);
  const double partial = double(tightness.walked.partial) / double(tightness.truth.partial);
  MESSAGE("tiles visited / needed: ", visited, ", partial tiles / needed: ", partial);
  CHECK(visited <= 1.05);
  CHECK(partial <= 1.10);
}

TEST_CASE("awkward lengths at the tiles of kernels") {
  static constexpr int kLengths[][2] = {
      {113, 203},   {128, 217},   {113, 211},   {108, 256},   {256, 512},   {512, 256},
      {1024, 1024}, {1023, 1024}, {1024, 1023}, {2048, 2048}, {15, 15},     {15, 8192},
      {5175, 5175}, {8192, 8192}, {1, 8192},    {1, 1},       {8185, 8173}, {5175, 15}};
  using Kind = oracle::Expr::Kind;
  const oracle::Expr causal{Kind::causal, {}, {}};
  const oracle::Expr sink{Kind::sink, {64}, {}};
  const oracle::Expr window{Kind::window, {255, -1}, {}};
  const oracle::Expr band{Kind::window, {100, 37}, {}};
  const oracle::Expr streaming{Kind::all_of, {}, {causal, {Kind::any_of, {}, {sink, window}}}};
  const oracle::Expr holes{Kind::all_of, {}, {causal, {Kind::negation, {}, {band}}}};
  const oracle::Expr no_sink{Kind::negation, {}, {{Kind::sink, {1}, {}}}};

  Tightness tightness;
  std::mt19937_64 random(4);
  for (const auto& [seqlen_q, seqlen_k] : kLengths) {
    for (const oracle::Expr& expr : {causal, streaming, holes, no_sink}) {
      for (const auto& [block_m, block_n] : {std::pair(64, 64), {128, 80}, {128, 128}}) {
        const Case c{expr, oracle::bottom_right(seqlen_q, seqlen_k), block_m, block_n};
        const Mask mask = Mask::parse(oracle::text(expr));
        const int num_rows = (seqlen_q + block_m - 1) / block_m;
        const int sampled[] = {0, below(random, num_rows), num_rows - 1};
        for (int m : sampled) check_row_of_tiles(c, mask, m * block_m, tightness);
      }
    }
  }
  const double visited = double(tightness.walked.visited) / double(tightness.truth.visited);
  MESSAGE("tiles visited / needed: ", visited);
  CHECK(visited <= 1.02);
}

TEST_CASE("runs combine to the farther end where one side decides and the nearer elsewhere") {
  constexpr TileKind kEmpty = TileKind::empty, kPartial = TileKind::partial, kFull = TileKind::full;
  struct Combined {
    Run a, b, all, any;
  };
  for (const Combined& c : {Combined{{3, kEmpty}, {7, kEmpty}, {7, kEmpty}, {3, kEmpty}},
                            Combined{{3, kEmpty}, {7, kPartial}, {3, kEmpty}, {3, kPartial}},
                            Combined{{7, kEmpty}, {3, kPartial}, {7, kEmpty}, {3, kPartial}},
                            Combined{{7, kEmpty}, {3, kFull}, {7, kEmpty}, {3, kFull}},
                            Combined{{3, kEmpty}, {7, kFull}, {3, kEmpty}, {7, kFull}},
                            Combined{{3, kPartial}, {7, kPartial}, {3, kPartial}, {3, kPartial}},
                            Combined{{7, kPartial}, {3, kFull}, {3, kPartial}, {3, kFull}},
                            Combined{{3, kPartial}, {7, kFull}, {3, kPartial}, {7, kFull}},
                            Combined{{3, kFull}, {7, kFull}, {3, kFull}, {7, kFull}}}) {
    const auto equal = [](Run x, Run y) { return x.end == y.end && x.kind == y.kind; };
    CHECK(equal(girih::all_of(c.a, c.b), c.all));
    CHECK(equal(girih::all_of(c.b, c.a), c.all));
    CHECK(equal(girih::any_of(c.a, c.b), c.any));
    CHECK(equal(girih::any_of(c.b, c.a), c.any));
  }
}

TEST_CASE("a negation does not make a tile full that crosses the end of the keys") {
  const Mask mask = !girih::sink(1);
  const Geometry geometry{1, 3, 2, 0};
  const KeyTiles tiles{2, 3};
  const Run first = girih::pattern::seek(mask, geometry, {0, 1}, tiles, 0);
  CHECK(first.kind == TileKind::partial);
  const Run last = girih::pattern::seek(mask, geometry, {0, 1}, tiles, 1);
  CHECK(last.kind == TileKind::partial);
  CHECK(last.end == 2);

  const Run dense = girih::pattern::seek(girih::dense(), {1, 7, 6, 0}, {0, 1}, {2, 7}, 0);
  CHECK(dense.kind == TileKind::full);
  CHECK(dense.end == 3);
}

TEST_CASE("extreme numbers do not overflow") {
  constexpr int kMost = girih::kMaxNumber;
  const Mask mask = girih::window({.left = kMost, .right = kMost}) | girih::sink(kMost);
  for (const Geometry& g : {Geometry{1, kMost, kMost - 1, 0}, Geometry{kMost, 1, 1 - kMost, 0},
                            Geometry{kMost, kMost, 0, 0}, Geometry{kMost, kMost, kMost, 0},
                            Geometry{kMost, kMost, kMost, kMost}}) {
    const QueryRows rows{g.seqlen_q - 1, g.seqlen_q};
    const Run run = girih::pattern::seek(mask, g, rows, {128, g.seqlen_k}, 0);
    CHECK(run.end > 0);
    CHECK(girih::pattern::visible(mask, g, rows.begin, 0) ==
          !girih::pattern::row_spans(mask, g, rows.begin).empty());
  }
}

TEST_CASE("a matrix of 131072 x 131072 is counted quickly and exactly") {
  constexpr std::int64_t kLength = 131072;
  const Geometry geometry{kLength, kLength, 0, 0};
  const auto begin = std::chrono::steady_clock::now();
  CHECK(girih::pattern::count_visible(girih::causal(), geometry) == kLength * (kLength + 1) / 2);
  const Mask streaming = girih::causal() & (girih::sink(128) | girih::window({.left = 255}));
  // Rows from 383 on see 128 + 256 keys; those before see all that causality allows.
  CHECK(girih::pattern::count_visible(streaming, geometry) ==
        383 * 384 / 2 + (kLength - 383) * 384);
  const auto counts = girih::pattern::count_tiles(streaming, geometry, 128, 64);
  CHECK(counts.full + counts.partial + counts.empty == 1024 * 2048);
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  MESSAGE("seconds: ", elapsed.count());
  CHECK(elapsed.count() < 5);  // 0.03 s optimised on an idle machine; sanitizers need seconds
}

TEST_CASE("static structures seek and mask as the interpreter does") {
  using girih::All;
  using girih::Any;
  using girih::Not;
  using Dense = girih::Leaf<girih::Dense>;
  using Causal = girih::Leaf<girih::Causal>;
  using Window = girih::Leaf<girih::Window>;
  using Sink = girih::Leaf<girih::Sink>;
  std::mt19937_64 random(5);
  compare_structures<Dense>(random);
  compare_structures<Causal, All<Causal, Any<Sink, Window>>>(random);
  compare_structures<Window, Sink, Not<Sink>, Not<Window>, All<Causal, Window>, Any<Sink, Window>,
                     All<Causal, Not<Sink>>, Not<All<Causal, Any<Sink, Window>>>,
                     Any<All<Causal, Window>, All<Sink, Not<Causal>>, Sink>,
                     All<Dense, Causal, Not<Any<Sink, All<Window, Not<Sink>>>>>,
                     Any<Window, Not<Any<Causal, Sink>>>,
                     All<Any<Sink, Window>, Any<Not<Sink>, Causal>>, Not<Dense>,
                     Any<Window, Window, Window>, All<Not<Window>, Not<Window>, Causal>>(random);
}
