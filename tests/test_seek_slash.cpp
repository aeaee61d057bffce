// What vertical_slash shows and which tiles it visits, against the oracle's naive predicate: the
// host's planes of bits, their seeks, and the windows that slashes become.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "girih/shared/slash.cuh"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "seek.hpp"
#include "verify/inputs.hpp"

using namespace girih::tests;
using girih::Geometry;
using girih::InputView;
using girih::Mask;
using girih::SlashPlane;
using girih::uint32;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kHeads = 4;  // of a launch

std::vector<std::int32_t> entries(std::mt19937_64& random, int count, int range) {
  std::vector<std::int32_t> list;
  const bool near = below(random, 2) == 0;
  for (int i = 0; i < count; ++i) {
    const int width = near ? 1 + below(random, range) : range;
    list.push_back(below(random, 12) == 0 ? -1 - below(random, 3) : below(random, width));
  }
  return list;
}

// One input, whose planes other than that of the case hold other lists.
struct Slashes {
  std::vector<uint32> words;
  InputView view;

  Slashes(std::mt19937_64& random, Case& c) {
    InputData data{.kind = girih::InputInfo::Kind::slashes, .name = "v"};
    const int batch = 2, shared_heads = 1 << below(random, 3);
    data.batch = 1 + below(random, 2);
    data.heads = kHeads / shared_heads;
    const int seqlen_q = static_cast<int>(c.sizes.seqlen_q);
    const int seqlen_k = static_cast<int>(c.sizes.seqlen_k);
    data.num_vertical = below(random, 2) * below(random, 1 + seqlen_k);
    data.num_slash = below(random, 8);
    if (below(random, 3) == 0) data.num_slash = below(random, 200);
    const int planes = data.batch * data.heads;
    data.vertical = entries(random, planes * data.num_vertical, seqlen_k + 40);
    data.slash = entries(random, planes * data.num_slash, seqlen_k + 100);

    // A sequence beside it that is longer.
    c.batch = below(random, batch);
    c.local_head = below(random, kHeads);
    const int most_q = seqlen_q + below(random, 100), most_k = seqlen_k + below(random, 100);
    std::vector<Geometry> sequences(static_cast<std::size_t>(batch),
                                    Geometry{most_q, most_k, 3, 0});
    sequences[static_cast<std::size_t>(c.batch)] = geometry_of(c.sizes);
    words = girih::verify::slash_planes(data, sequences, most_q, most_k, view);
    view.heads_per_plane = shared_heads;
    view.data = words.data();
    c.inputs = &view;

    const int plane = data.plane(c.batch, c.local_head, kHeads);
    slash.name = "i0";
    slash.distances.insert(0);
    for (int i = 0; i < data.num_vertical; ++i) {
      slash.columns.insert(data.vertical[static_cast<std::size_t>(plane * data.num_vertical + i)]);
    }
    for (int i = 0; i < data.num_slash; ++i) {
      const auto distance = data.slash[static_cast<std::size_t>(plane * data.num_slash + i)];
      if (distance >= 0) slash.distances.insert(distance);
    }
    put(c.expr, random);
    std::vector<int> rows;
    for (int q = 0; q < seqlen_q; ++q) rows.push_back(q);
    remember(c.expr, c.sizes, rows);
  }
  Slashes(const Slashes&) = delete;
  Slashes& operator=(const Slashes&) = delete;

 private:
  void put(oracle::Expr& expr, std::mt19937_64& random) {
    for (oracle::Expr& operand : expr.operands) put(operand, random);
    if (!expr.operands.empty() || (some && below(random, 3) != 0)) return;
    expr = {Kind::vertical_slash, {}, {}};
    expr.slash = slash;
    some = true;
  }

  static void remember(oracle::Expr& expr, const oracle::Sizes& sizes,
                       const std::vector<int>& rows) {
    for (oracle::Expr& operand : expr.operands) remember(operand, sizes, rows);
    if (expr.kind == Kind::vertical_slash) expr.slash.remember(sizes, rows);
  }

  oracle::VerticalSlash slash;
  bool some = false;
};

Case slash_case(std::mt19937_64& random, int depth) {
  Case c = random_case(random, depth);
  if (below(random, 4) == 0) {  // several blocks of rows, gaps between windows
    c.sizes = oracle::bottom_right(1 + below(random, 300), 1 + below(random, 1500));
    if (below(random, 4) == 0) c.sizes.q_start = below(random, 2500) - 200;
    static constexpr int kTiles[] = {16, 64, 96, 128};
    c.block_m = one_of(random, kTiles);
    c.block_n = one_of(random, kTiles);
  }
  return c;
}

Mask mask_of(const oracle::Expr& expr) {
  return Mask::parse(oracle::text(expr)).with_inputs([](const std::string& name) {
    return std::stoi(name.substr(1));
  });
}

}  // namespace

TEST_CASE("columns and slashes show exactly their keys, alone and in expressions") {
  std::mt19937_64 random(41);
  for (int i = 0; i < 600; ++i) {
    Case c = slash_case(random, 1 + i % 4);
    const Slashes slashes(random, c);
    const Mask mask = mask_of(c.expr);
    const Geometry geometry = c.geometry();
    std::int64_t wrong = 0, count = 0;
    for (int q = 0; q < geometry.seqlen_q; ++q) {
      for (int k = 0; k < geometry.seqlen_k; ++k) {
        const bool expected = oracle::visible(c.expr, c.sizes, q, k);
        const int first = std::max(k - (q + i) % 32, 0);  // words begin anywhere
        const uint32 word = girih::pattern::row_bits(mask, geometry, q, first);
        count += expected;
        wrong += expected != ((word >> (k - first) & 1) != 0);
      }
    }
    if (wrong == 0 && count == girih::pattern::count_visible(mask, geometry)) continue;
    FAIL(c.words());
  }
}

TEST_CASE("seeks of expressions with columns and slashes are sound") {
  std::mt19937_64 random(42);
  Tightness tightness;
  for (int i = 0; i < 1500; ++i) {
    Case c = slash_case(random, 1 + i % 3);
    const Slashes slashes(random, c);
    const Mask mask = mask_of(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  CHECK(tightness.truth.visited > 0);
}

TEST_CASE("seeks of columns and slashes alone are exact where tiles hold whole blocks of rows") {
  std::mt19937_64 random(43);
  Tightness tightness;
  for (int i = 0; i < 200; ++i) {
    static constexpr int kBlocksM[] = {64, 128, 192}, kBlocksN[] = {16, 32, 64, 80, 128, 176};
    Case c{{Kind::vertical_slash, {}, {}},
           oracle::bottom_right(1 + below(random, 500), 1 + below(random, 1500)),
           one_of(random, kBlocksM),
           one_of(random, kBlocksN)};
    const Slashes slashes(random, c);
    const Mask mask = mask_of(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  CHECK(tightness.inexact == 0);
  CHECK(tightness.walked.visited == tightness.truth.visited);
  CHECK(tightness.truth.visited > tightness.truth.partial);
}

TEST_CASE("windows of 64 keys end where distances lead, and those that touch become one") {
  const auto windows = [](int diagonal, std::vector<int> ascending) {
    std::vector<girih::Span> result;
    const auto largest_below = [&](int bound) {
      const auto above = std::lower_bound(ascending.begin(), ascending.end(), bound);
      return above == ascending.begin() ? -1 : *(above - 1);
    };
    girih::SlashWindows each(diagonal);
    for (girih::Span window{}; each.next(largest_below, window);) result.push_back(window);
    return result;
  };
  const auto check = [&](int diagonal, const std::vector<int>& distances,
                         const std::vector<girih::Span>& expected) {
    const std::vector<girih::Span> found = windows(diagonal, distances);
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(found[i].lo == expected[i].lo);
      CHECK(found[i].hi == expected[i].hi);
    }
  };
  check(1024, {0}, {{1024, 1088}});
  check(1024, {0, 1}, {{1023, 1151}});  // reaches 63 keys beyond the block's last row
  check(1024, {0, 64}, {{960, 1088}});  // touch
  check(1024, {0, 128}, {{896, 960}, {1024, 1088}});
  check(1024, {0, 129}, {{895, 959}, {1024, 1088}});
  check(1024, {700, 1024}, {{0, 64}, {324, 388}});
  check(1024, {1050, 1087}, {{0, 64}});  // for the last rows only: from key 0 on
  check(1024, {1088}, {});               // behind everything
  check(-100, {0, 5}, {});               // rows before the first key
  check(-63, {0}, {{0, 64}});
}

TEST_CASE("columns and slashes that --fill makes are those of the benchmarks") {
  constexpr int kLength = 4096;
  const InputData data = girih::verify::random_slashes("v", 2, 3, kLength, 100, 400, 5);
  REQUIRE(data.vertical.size() == 6 * 100);
  REQUIRE(data.slash.size() == 6 * 400);
  for (int plane = 0; plane < 6; ++plane) {
    for (int i = 0; i < 30; ++i)
      CHECK(data.vertical[static_cast<std::size_t>(100 * plane + i)] == i);
    for (int i = 0; i < 100; ++i) CHECK(data.slash[static_cast<std::size_t>(400 * plane + i)] == i);
    int far = 0;
    for (int i = 100; i < 400; ++i) {
      const int distance = data.slash[static_cast<std::size_t>(400 * plane + i)];
      REQUIRE(distance >= 100);
      REQUIRE(distance < kLength);
      far += distance >= 640;  // the middle of the logarithms
    }
    CHECK(far > 110);
    CHECK(far < 190);
  }
}

TEST_CASE("heads share what columns and slashes show where they read the same plane") {
  InputView view;
  view.row_stride = SlashPlane::words_per_row(64);
  view.head_stride = SlashPlane::row_at(view.row_stride, 1, 1);
  std::vector<uint32> words(static_cast<std::size_t>(2 * view.head_stride), 0);
  view.data = words.data();
  view.heads_per_plane = 2;
  Geometry a{64, 64, 0, 0};
  a.inputs = &view;
  Geometry b = a;
  const Mask mask =
      Mask::parse("vertical_slash(i0)").with_inputs([](const std::string&) { return 0; });
  b.local_head = 1;
  CHECK(girih::pattern::same_for_heads(mask, a, b));
  b.local_head = 2;
  CHECK_FALSE(girih::pattern::same_for_heads(mask, a, b));
}
