// What neighborhoods show and which tiles they let a kernel visit: the interpreter against the
// oracle's naive predicates.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "seek.hpp"

using girih::Geometry;
using girih::Mask;
using namespace girih::tests;

TEST_CASE("neighborhoods show their keys, and seeks are exact without dilation and near with it") {
  std::mt19937_64 random(12);
  Tightness exact, near;
  for (int i = 0; i < 3000; ++i) {
    Case c = random_case(random,
                         [&](int longest) { return oracle::random_neighborhood(random, longest); });
    if (i % 4 != 0) {  // as launches have it; the rest is for masks alone
      c.sizes.seqlen_q = oracle::grid_tokens(c.expr);
      c.sizes.seqlen_k = c.sizes.seqlen_q + (i % 2 == 0 ? below(random, 20) : 0);
    }
    const Mask mask = Mask::parse(oracle::text(c.expr));
    const Geometry geometry = geometry_of(c.sizes);
    std::int64_t wrong = 0;
    for (int q = 0; q < geometry.seqlen_q; ++q) {
      for (int k = 0; k < geometry.seqlen_k; k += 1 + below(random, 40)) {
        const girih::uint32 bits = girih::pattern::row_bits(mask, geometry, q, k);
        for (int j = 0; j < 32; ++j) {
          wrong += (bits >> j & 1) != (oracle::visible(c.expr, c.sizes, q, k + j) ? 1u : 0u);
        }
      }
    }
    if (wrong != 0) {
      INFO(c.words());
      REQUIRE(wrong == 0);
    }
    const bool dilated = std::any_of(c.expr.axes.begin(), c.expr.axes.end(),
                                     [](const oracle::Axis& axis) { return axis.dilation > 1; });
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, dilated ? near : exact);
      if (exact.inexact != 0) {
        INFO(c.words(), ", row ", q0);
        REQUIRE(exact.inexact == 0);
      }
    }
  }
  CHECK(exact.truth.visited > exact.truth.partial);
  MESSAGE("tiles visited / needed with dilation: ", near.visited());
  CHECK(near.visited() <= 1.05);
}

TEST_CASE("seeks of expressions with neighborhoods are sound") {
  std::mt19937_64 random(13);
  Tightness tightness;
  for (int i = 0; i < 3000; ++i) {
    const Case c = random_case(random, [&](int longest) {
      const oracle::Expr a = oracle::random_neighborhood(random, longest);
      const oracle::Expr b = i % 3 == 0 ? oracle::random_neighborhood(random, longest)
                                        : oracle::random_expr(random, 2, longest);
      const oracle::Expr hidden{oracle::Expr::Kind::negation, {}, {a}};
      return oracle::Expr{i % 2 == 0 ? oracle::Expr::Kind::all_of : oracle::Expr::Kind::any_of,
                          {},
                          {i % 5 == 0 ? hidden : a, b}};
    });
    const Mask mask = Mask::parse(oracle::text(c.expr));
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  MESSAGE("tiles visited / needed: ", tightness.visited());
  CHECK(tightness.visited() <= 1.05);
}

TEST_CASE("a video's and an image's neighborhoods at the tiles of kernels") {
  std::mt19937_64 random(14);
  Tightness tightness;
  const oracle::Expr image{oracle::Expr::Kind::neighborhood, {}, {}, {}, {},
                           {{64, 20, 1, 1}, {64, 20, 1, 1}}};
  const oracle::Expr strided{oracle::Expr::Kind::neighborhood,
                             {},
                             {},
                             {},
                             {},
                             {{12, 6, 2, 1, true}, {16, 8, 8, 1}, {24, 11, 4, 1}}};
  const oracle::Expr line{oracle::Expr::Kind::neighborhood, {}, {}, {}, {}, {{4096, 1000, 1, 1}}};
  for (const oracle::Expr& expr : {image, strided, line}) {
    const long long tokens = oracle::grid_tokens(expr);
    for (const int block_n : {32, 64, 80, 128}) {
      const Case c{expr, oracle::bottom_right(tokens, tokens + block_n / 2), 128, block_n};
      const Mask mask = Mask::parse(oracle::text(expr));
      for (int i = 0; i < 2; ++i) {
        const int m = below(random, static_cast<int>((tokens + 127) / 128));
        check_row_of_tiles(c, mask, m * c.block_m, tightness);
      }
    }
  }
  CHECK(tightness.inexact == 0);
  CHECK(tightness.truth.visited > tightness.truth.partial);
}

TEST_CASE("what a neighborhood shows is counted by its axes as by its rows") {
  std::mt19937_64 random(31);
  const auto from = [&](int least, int most) {
    return least + static_cast<int>(random() % static_cast<unsigned>(most - least + 1));
  };
  for (int turn = 0; turn < 300; ++turn) {
    const int axes = from(1, 3);
    girih::GridNeighborhood grid;
    std::vector<int> windows, strides, dilations, causal;
    int tokens = 1;
    for (int axis = 0; axis < axes; ++axis) {
      const int extent = from(1, 12), dilation = from(1, std::min(3, extent));
      const int window = from(1, extent / dilation);
      grid.grid.push_back(extent);
      windows.push_back(window);
      strides.push_back(from(1, window));
      dilations.push_back(dilation);
      causal.push_back(from(0, 1));
      tokens *= extent;
    }
    grid.window.values = windows;
    grid.stride.values = strides;
    grid.dilation.values = dilations;
    grid.causal.values = causal;
    const Mask mask = girih::neighborhood(grid);
    CAPTURE(mask.text());
    const int behind = from(0, 40);
    // Fewer rows than the grid has are no product; nor are masks of it.
    for (const int rows : {tokens, tokens - 1}) {
      const Geometry geometry{rows, tokens + behind, 0, 0};
      girih::pattern::Budget unlimited;
      REQUIRE(girih::pattern::count_visible(mask, geometry) ==
              girih::pattern::count_visible(mask, geometry, {0, rows}, {0, geometry.seqlen_k},
                                            unlimited));
    }
    const Geometry geometry{tokens, tokens + behind, 0, 0};
    REQUIRE(girih::pattern::count_visible(mask, geometry) +
                girih::pattern::count_visible(!mask, geometry) ==
            std::int64_t{tokens} * (tokens + behind));
  }
  // 2^26 tokens, one by one for minutes.
  const Mask image = Mask::parse("neighborhood(8192x8192, window=64)");
  constexpr int kTokens = 1 << 26;
  CHECK(girih::pattern::count_visible(image, {kTokens, kTokens + 5, 0, 0}) ==
        std::int64_t{kTokens} * (64 * 64 + 5));
}
