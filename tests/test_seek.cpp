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
#include "oracle/golden.hpp"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "seek.hpp"

using girih::Geometry;
using girih::KeyTiles;
using girih::Mask;
using girih::QueryRows;
using girih::Run;
using girih::Span;
using girih::TileKind;
using namespace girih::tests;

namespace {

// An atom of this name with random numbers.
Mask random_atom(std::mt19937_64& random, const std::string& name, int longest) {
  for (int kind = 0; kind <= int(oracle::Expr::Kind::neighborhood); ++kind) {
    const std::string text =
        oracle::text(oracle::random_atom(random, static_cast<oracle::Expr::Kind>(kind), longest));
    if (text.substr(0, text.find('(')) == name) return Mask::parse(text);
  }
  FAIL("the oracle does not know ", name);
  return girih::dense();
}

// A random mask of a static structure; its numbers go behind those that are there.
template <class Structure>
struct Reflect;
template <class Atom>
struct Reflect<girih::Leaf<Atom>> {
  static Mask mask(std::mt19937_64& random, int longest, std::vector<int>& numbers) {
    const Mask atom = random_atom(random, Atom::kInfo.name, longest);
    numbers.insert(numbers.end(), atom.numbers().begin(), atom.numbers().end());
    return atom;
  }
};
template <class Operand>
struct Reflect<girih::Not<Operand>> {
  static Mask mask(std::mt19937_64& random, int longest, std::vector<int>& numbers) {
    return !Reflect<Operand>::mask(random, longest, numbers);
  }
};
template <class First, class... Rest>
struct Reflect<girih::All<First, Rest...>> {
  static Mask mask(std::mt19937_64& random, int longest, std::vector<int>& numbers) {
    Mask result = Reflect<First>::mask(random, longest, numbers);
    ((result = result & Reflect<Rest>::mask(random, longest, numbers)), ...);
    return result;
  }
};
template <class First, class... Rest>
struct Reflect<girih::Any<First, Rest...>> {
  static Mask mask(std::mt19937_64& random, int longest, std::vector<int>& numbers) {
    Mask result = Reflect<First>::mask(random, longest, numbers);
    ((result = result | Reflect<Rest>::mask(random, longest, numbers)), ...);
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
    const Mask mask = Reflect<Structure>::mask(random, longest, numbers);
    REQUIRE(static_cast<int>(numbers.size()) == Structure::kNumNumbers);

    Geometry g{1 + below(random, longest), 1 + below(random, longest), 0, 0};
    g.q_start = g.seqlen_k - g.seqlen_q;
    if (below(random, 4) == 0) {
      g.k_start = below(random, longest);
      g.q_start = below(random, 2 * longest) - longest / 2;
    }
    g.group_size = 1 << below(random, 2);
    g.num_heads = 12;
    g.head = below(random, g.num_heads);
    g.head_kv = g.head / g.group_size;
    const int block_n = one_of(random, kBlockN);
    const int block_m = 16 << below(random, 4);
    const KeyTiles tiles{block_n, g.seqlen_k};
    INFO(mask.text(), ", Sq ", g.seqlen_q, ", Sk ", g.seqlen_k, ", q_start ", g.q_start,
         ", k_start ", g.k_start, ", head ", g.head, ", tile ", block_m, " x ", block_n);

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
  std::mt19937_64 random(6);
  for (int i = 0; i < 2 * oracle::kNumAtoms; ++i) {
    const auto kind = static_cast<oracle::Expr::Kind>(i / 2);
    const Mask atom = Mask::parse(oracle::text(oracle::random_atom(random, kind, 8)));
    const Mask mask = i % 2 == 0 ? atom : !atom;
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
  const double partial = double(tightness.walked.partial) / double(tightness.truth.partial);
  MESSAGE("tiles visited / needed: ", tightness.visited(), ", partial tiles / needed: ", partial);
  CHECK(tightness.visited() <= 1.05);
  CHECK(partial <= 1.10);
}

TEST_CASE("heads said to be alike are alike, and those that differ are told apart") {
  std::mt19937_64 random(8);
  int alike = 0, different = 0;
  for (int i = 0; i < 2000; ++i) {
    const Case c = i % 2 == 0 ? random_case(random, 3)
                              : random_atom_case(random, int(oracle::Expr::Kind::strided));
    oracle::Sizes other = c.sizes;
    other.head = below(random, static_cast<int>(other.num_heads));
    const Mask mask = Mask::parse(oracle::text(c.expr));
    const bool same =
        girih::pattern::same_for_heads(mask, geometry_of(c.sizes), geometry_of(other));
    bool equal = true;
    for (int q = 0; q < c.sizes.seqlen_q; ++q) {
      for (int k = 0; k < c.sizes.seqlen_k; ++k) {
        equal =
            equal && oracle::visible(c.expr, c.sizes, q, k) == oracle::visible(c.expr, other, q, k);
      }
    }
    if (same && !equal) {
      INFO(c.words(), ", head ", other.head);
      REQUIRE(equal);
    }
    if (!oracle::depends_on_head(c.expr)) REQUIRE(same);
    alike += same && other.head != c.sizes.head;
    different += !same;
  }
  CHECK(alike > 500);
  CHECK(different > 300);
}

TEST_CASE("S2-Attention's settings at the tiles of kernels") {
  std::mt19937_64 random(9);
  Tightness tightness;
  for (const auto& [local, stride] : {std::pair(10, 3), {1, 8}, {8, 1}, {16, 8}, {2, 10000}}) {
    for (const int block : {16, 32, 64, 128}) {
      for (int variant = 0; variant < 6; ++variant) {
        oracle::Strided strided{.left = local, .right = local, .stride = stride, .block = block};
        strided.offset = variant % 2;
        strided.homo = variant == 2;
        strided.dense_heads = variant == 3 ? 2 : 0;
        strided.kv_heads = variant == 4;
        strided.relative = variant == 5;
        if (strided.relative) strided.offset = 0;
        const oracle::Expr expr{oracle::Expr::Kind::strided, {}, {}, strided};
        const int seqlen_q = variant == 0 ? 4096 : 4096 - below(random, 300);
        Case c{expr, oracle::bottom_right(seqlen_q, 4096 - below(random, 300)), 128, 64};
        c.sizes.num_heads = 8;
        c.sizes.group_size = 2;
        c.sizes.head = below(random, 8);
        c.block_n = 32 << below(random, 3);
        const Mask mask = Mask::parse(oracle::text(expr));
        for (int i = 0; i < 3; ++i) {
          const int m = i == 0 ? 0 : below(random, (seqlen_q + c.block_m - 1) / c.block_m);
          check_row_of_tiles(c, mask, m * c.block_m, tightness);
        }
      }
    }
  }
  CHECK(tightness.inexact == 0);
  CHECK(tightness.truth.visited > tightness.truth.partial);
}

TEST_CASE("S2-Attention's own matrices are drawn to the block") {
  const Geometry geometry{oracle::kGoldenTokens, oracle::kGoldenTokens, 0, 0};
  for (const oracle::GoldenBlocks& golden : oracle::kGoldenStrided) {
    CAPTURE(golden.text);
    const Mask mask = Mask::parse(golden.text);
    for (int q = 0; q < oracle::kGoldenTokens; ++q) {
      for (int k = 0; k < oracle::kGoldenTokens; ++k) {
        CAPTURE(q);
        CAPTURE(k);
        CHECK(girih::pattern::visible(mask, geometry, q, k) == golden.visible(q, k));
      }
    }
  }
}

TEST_CASE("block streaming counts blocks of the launch, its quirk included") {
  // One local block may lie ahead of a row, which then does not even see itself.
  const Mask one = girih::block_streaming({.sink = 0, .local = 1, .block = 2});
  CHECK(girih::pattern::row_spans(one, {2, 3, 1, 0}, 0).empty());
  // A chunk's local blocks need not be those of the same rows in one launch.
  const Mask local = girih::block_streaming({.sink = 0, .local = 2, .block = 4});
  CHECK(girih::pattern::row_spans(local, {10, 10, 0, 0}, 9)[0].lo == 4);
  CHECK(girih::pattern::row_spans(local, {1, 10, 9, 0}, 0)[0].lo == 8);
  // Anchored at the row's own block, it is a block window: equal when offsets are whole blocks.
  std::mt19937_64 random(10);
  for (int i = 0; i < 200; ++i) {
    const int block = 1 + below(random, 9), sink = below(random, 4), blocks = 1 + below(random, 5);
    const Mask streaming = girih::block_streaming({.sink = sink, .local = blocks, .block = block});
    const Mask window =
        girih::causal() &
        (girih::sink(sink * block) | girih::block_window({.left = blocks - 1, .block = block}));
    const int seqlen_q = 1 + below(random, 40);
    const int offset = block * below(random, 5);
    const Geometry geometry{seqlen_q, seqlen_q + offset, offset, 0};
    for (int q = 0; q < seqlen_q; ++q) {
      const auto a = girih::pattern::row_spans(streaming, geometry, q);
      const auto b = girih::pattern::row_spans(window, geometry, q);
      INFO(streaming.text(), ", Sq ", seqlen_q, ", offset ", offset, ", row ", q);
      REQUIRE(std::equal(a.begin(), a.end(), b.begin(), b.end(),
                         [](Span x, Span y) { return x.lo == y.lo && x.hi == y.hi; }));
    }
  }
}

TEST_CASE("rows before the first position belong to no chunk, but to blocks") {
  const Geometry geometry{5, 3, -2, 0};  // two rows stand before the first key
  const auto spans = [&](const char* text, int q) {
    return girih::pattern::row_spans(Mask::parse(text), geometry, q);
  };
  CHECK(spans("chunk(2)", 0).empty());
  CHECK(spans("chunk(2)", 1).empty());
  CHECK(spans("chunk(2)", 2)[0].hi == 2);
  CHECK(spans("block_window(left=0, right=0, block=2)", 1).empty());
  CHECK(spans("block_window(left=0, right=1, block=2)", 1)[0].hi == 2);
  CHECK(spans("queries(-1..0)", 1)[0].hi == 3);
  CHECK(spans("queries(-1..0)", 2).empty());
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
  const oracle::Expr s2{
      Kind::strided, {}, {}, {.left = 4, .right = 4, .stride = 8, .block = 64, .offset = 1}};
  const oracle::Expr strided{Kind::all_of, {}, {causal, s2}};
  const oracle::Expr blocks{Kind::block_streaming, {1, 3, 128, 1}, {}};
  const oracle::Expr chunks{Kind::all_of, {}, {causal, {Kind::chunk, {500}, {}}}};

  Tightness tightness;
  std::mt19937_64 random(4);
  for (const auto& [seqlen_q, seqlen_k] : kLengths) {
    for (const oracle::Expr& expr : {causal, streaming, holes, no_sink, strided, blocks, chunks}) {
      for (const auto& [block_m, block_n] : {std::pair(64, 64), {128, 80}, {128, 128}}) {
        const Case c{expr, oracle::bottom_right(seqlen_q, seqlen_k), block_m, block_n};
        const Mask mask = Mask::parse(oracle::text(expr));
        const int num_rows = (seqlen_q + block_m - 1) / block_m;
        const int sampled[] = {0, below(random, num_rows), num_rows - 1};
        for (int m : sampled) check_row_of_tiles(c, mask, m * block_m, tightness);
      }
    }
  }
  MESSAGE("tiles visited / needed: ", tightness.visited());
  CHECK(tightness.visited() <= 1.02);
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
  const long long most = kMost;
  using Kind = oracle::Expr::Kind;
  std::vector<oracle::Expr> exprs = {{Kind::window, {most, most}, {}},
                                     {Kind::sink, {most}, {}},
                                     {Kind::last_keys, {most}, {}},
                                     {Kind::first_queries, {most}, {}},
                                     {Kind::last_queries, {most}, {}},
                                     {Kind::queries, {-most, most}, {}},
                                     {Kind::keys, {most, most}, {}},
                                     {Kind::chunk, {most}, {}},
                                     {Kind::block_window, {most, -1, most}, {}},
                                     {Kind::block_window, {-1, most, 1}, {}},
                                     {Kind::block_streaming, {most, most, most, 1}, {}},
                                     {Kind::block_streaming, {0, most, 3, 1}, {}},
                                     {Kind::block_streaming, {most, 1, 1, 0}, {}},
                                     {Kind::dilated, {1}, {}},
                                     {Kind::dilated, {most}, {}},
                                     {Kind::dilated, {most - 1}, {}}};
  const auto neighborhood = [](std::vector<oracle::Axis> axes) {
    return oracle::Expr{Kind::neighborhood, {}, {}, {}, {}, std::move(axes)};
  };
  for (const bool causal : {false, true}) {
    exprs.push_back(neighborhood({{most, most, most, 1, causal}}));
    exprs.push_back(neighborhood({{most, 1, 1, most, causal}}));
    exprs.push_back(neighborhood({{most, most / 7, 3, 7, causal}}));
    exprs.push_back(neighborhood({{1 << 10, 9, 9, 1, causal}, {1 << 19, 1 << 18, 1, 2, causal}}));
    exprs.push_back(neighborhood({{1 << 9, 3, 1, 5, causal}, {1 << 19, 2, 1, 1}, {2, 1, 1, 1}}));
  }
  for (const long long block : {1LL, most}) {
    for (const long long step : {-most, most}) {
      oracle::Strided band{.left = most, .right = most, .stride = 1 << 20, .block = block};
      exprs.push_back({Kind::strided, {}, {}, band});  // its step follows from the stride
      oracle::Strided relative = band;
      relative.relative = true;
      band.offset = -step / 2;
      band.step = step > 0 ? 4096 : -4096;
      oracle::Strided ranges = band;
      ranges.ranges = {{-most / 2, 1}, {most / 2, 1 << 20}, {0, (1 << 20) - 1}};
      for (const oracle::Strided& strided : {band, relative, ranges}) {
        exprs.push_back({Kind::strided, {}, {}, strided});
      }
    }
  }
  for (const oracle::Sizes& sizes : {oracle::Sizes{1, most, most - 1, 0},
                                     {most, 1, 1 - most, 0},
                                     {most, most, 0, 0},
                                     {most, most, most, 0},
                                     {most, most, -most, 0},
                                     {most, most, most, most},
                                     {most, most, -most, most}}) {
    oracle::Sizes in_last_head = sizes;
    in_last_head.num_heads = 65536;
    in_last_head.head = 65535;
    const Geometry g = geometry_of(in_last_head);
    for (const oracle::Expr& expr : exprs) {
      const Mask mask = Mask::parse(oracle::text(expr));
      for (const int q : {0, g.seqlen_q / 2, g.seqlen_q - 1}) {
        const KeyTiles tiles{128, g.seqlen_k};
        for (const int k : {0, g.seqlen_k / 2, g.seqlen_k - 1}) {
          const Case c{expr, in_last_head, 1, 128};
          INFO(c.words(), ", q ", q, ", k ", k);
          const bool seen = oracle::visible(expr, in_last_head, q, k);
          CHECK(girih::pattern::visible(mask, g, q, k) == seen);
          const int n = k / 128;
          const Run run = girih::pattern::seek(mask, g, {q, q + 1}, tiles, n);
          CHECK(run.end > n);
          CHECK(run.kind != (seen ? TileKind::empty : TileKind::full));
        }
      }
    }
  }
}

TEST_CASE("a matrix of 131072 x 131072 is counted quickly and exactly") {
  constexpr std::int64_t kLength = 131072;
  const Geometry geometry{kLength, kLength, 0, 0};
  const auto begin = std::chrono::steady_clock::now();
  CHECK(girih::pattern::count_visible(girih::causal(), geometry) == kLength * (kLength + 1) / 2);
  // Phi-3-small's: 16 blocks up to the diagonal's, and of those before, every eighth.
  const Mask strided =
      girih::causal() & girih::strided({.local = 16, .stride = 8, .block = 64, .offset = 1});
  const std::int64_t blocks = kLength / 64, far = blocks - 16;
  std::int64_t visible = 64 * 64 * (16 * blocks - 16 * 15 / 2) - blocks * 64 * 63 / 2;
  for (std::int64_t i = 0; i < far; ++i) visible += 64 * 64 * ((i + 1) / 8);
  CHECK(girih::pattern::count_visible(strided, geometry) == visible);
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
  using LastKeys = girih::Leaf<girih::LastKeys>;
  using FirstQueries = girih::Leaf<girih::FirstQueries>;
  using LastQueries = girih::Leaf<girih::LastQueries>;
  using Queries = girih::Leaf<girih::Queries>;
  using Keys = girih::Leaf<girih::Keys>;
  using Chunk = girih::Leaf<girih::Chunk>;
  using BlockWindow = girih::Leaf<girih::BlockWindow>;
  using BlockStreaming = girih::Leaf<girih::BlockStreaming>;
  using Strided = girih::Leaf<girih::Strided>;
  using Dilated = girih::Leaf<girih::Dilated>;
  using Neighborhood = girih::Leaf<girih::Neighborhood>;
  std::mt19937_64 random(5);
  compare_structures<Dense>(random);
  compare_structures<LastKeys, FirstQueries, LastQueries, Queries, Keys, Chunk, BlockWindow,
                     BlockStreaming, Strided, Not<LastKeys>, Not<FirstQueries>, Not<LastQueries>,
                     Not<Queries>, Not<Keys>, Not<Chunk>, Not<BlockWindow>, Not<BlockStreaming>,
                     Not<Strided>>(random);
  compare_structures<All<Causal, Strided>, All<Causal, Any<Sink, BlockWindow>>,
                     Any<All<Queries, Causal>, All<Not<Queries>, BlockStreaming>>,
                     Any<FirstQueries, LastQueries, Sink, LastKeys, BlockWindow>,
                     All<Causal, Chunk, Not<Keys>>, Any<Strided, All<Strided, Chunk>>>(random);
  compare_structures<Dilated, Neighborhood, Not<Dilated>, Not<Neighborhood>,
                     All<Causal, Any<Sink, All<Window, Dilated>>>, Any<Neighborhood, Sink>>(random);
  compare_structures<Causal, All<Causal, Any<Sink, Window>>>(random);
  compare_structures<Window, Sink, Not<Sink>, Not<Window>, All<Causal, Window>, Any<Sink, Window>,
                     All<Causal, Not<Sink>>, Not<All<Causal, Any<Sink, Window>>>,
                     Any<All<Causal, Window>, All<Sink, Not<Causal>>, Sink>,
                     All<Dense, Causal, Not<Any<Sink, All<Window, Not<Sink>>>>>,
                     Any<Window, Not<Any<Causal, Sink>>>,
                     All<Any<Sink, Window>, Any<Not<Sink>, Causal>>, Not<Dense>,
                     Any<Window, Window, Window>, All<Not<Window>, Not<Window>, Causal>>(random);
}
