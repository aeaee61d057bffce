// The exact mask test of run-time inputs, expressions and neighborhoods in every tile that a tuner
// may propose: whether keys are gathered, heads packed and tiles bricks follows from the tile.
// Closed forms have theirs in test_mask.cpp.
//
// Each tile is a kernel, which takes about a second to compile: 244 of them on Hopper. Every kind
// of mask has all tiles of heads of 128, and those kinds whose tiles are not of consecutive rows
// and keys those of heads of 192, too, the widest of which keys are gathered. A sample of widths:
// 64 would add as many tiles again, with more keys and stages.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "hashed_workload.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "planes.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::InputInfo;
using girih::TileConfig;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kBatch = 2;
constexpr Lengths kLengths[] = {{333, 217}, {700, 900}};

Case tile_case(int head_dim, Lengths lengths) {
  Case c = mask_case(make_problem(DType::bfloat16, head_dim, kHashes, 1), kBatch, lengths);
  c.seed = static_cast<std::uint64_t>(head_dim + lengths.q);
  return c;
}

// What sequence b sees, in all heads alike.
using Reading = std::function<oracle::Expr(int b)>;

// Every tile that a tuner may propose for the pattern that is read, with a CTA for each query tile
// and with few that take one after the other.
void check_tiles(Case c, const Reading& reading) {
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (int b = 0; b < c.batch; ++b) {
    expected.emplace_back(std::vector{reading(b)}, sizes[static_cast<std::size_t>(b)]);
  }
  const std::string text = oracle::text(reading(0));
  const auto arch = girih::plan::Arch::parse(girih::verify::Device().arch());
  const girih::plan::Plan plan =
      girih::plan::make_plan(girih::Pattern::parse(text), c.problem, arch);
  const std::vector<TileConfig> tiles = girih::plan::candidate_tiles(plan, c.problem, arch);
  CHECK(tiles.size() >= 8);  // as many as neighborhoods of wide heads have on Hopper
  for (const int max_ctas : {0, 2}) {
    c.max_ctas = max_ctas;
    check_kernels(text, c, tiles, expected, fmt::format("{}, max_ctas {}", text, max_ctas));
  }
}

// Rows of blocks differ much in how many they see.
void check_blocks(int head_dim, int q_block, int kv_block, bool shared_inputs = false) {
  for (const Lengths lengths : kLengths) {
    Case c = tile_case(head_dim, lengths);
    c.problem.shared_inputs = shared_inputs;
    const InputData data =
        girih::verify::random_blocks("m", kBatch, 1, (lengths.q + q_block - 1) / q_block,
                                     (lengths.k + kv_block - 1) / kv_block, 0.4, 2, c.seed);
    check_tiles(with_input(c, data), [&](int b) { return blocks_of(data, b, q_block, kv_block); });
  }
}

void check_slashes(int head_dim) {
  for (const Lengths lengths : kLengths) {
    const Case c = tile_case(head_dim, lengths);
    const InputData data =
        girih::verify::random_slashes("v", kBatch, 1, lengths.k, 60, 120, c.seed);
    check_tiles(with_input(c, data), [&](int b) {
      return slashes_of(data, b, sizes_of(c)[static_cast<std::size_t>(b)], all_rows(lengths.q));
    });
  }
}

// Of grids that are no multiple of any brick, and so large that each of Hopper's tiles is one.
void check_neighborhood(int head_dim, const oracle::Expr& expr) {
  const int tokens = static_cast<int>(oracle::grid_tokens(expr));
  for (const int extra_keys : {0, 77}) {
    check_tiles(tile_case(head_dim, {tokens, tokens + extra_keys}), [&](int) { return expr; });
  }
}

}  // namespace

TEST_CASE("every tile that a tuner may propose: blocks of 64 x 16") { check_blocks(128, 64, 16); }

TEST_CASE("every tile that a tuner may propose: blocks of 64 x 16 that wide heads share") {
  check_blocks(192, 64, 16, true);
}

TEST_CASE("every tile that a tuner may propose: blocks of 128 x 128") {
  check_blocks(128, 128, 128);
}

TEST_CASE("every tile that a tuner may propose: documents") {
  // Also such as are several query tiles long.
  for (const auto& [lengths, mean] :
       {std::pair{kLengths[0], 60}, {kLengths[1], 60}, {Lengths{1300, 1500}, 500}}) {
    const Case c = tile_case(128, lengths);
    const InputData data =
        girih::verify::random_documents("doc", kBatch, 1, lengths.q, lengths.k, mean, c.seed);
    check_tiles(with_input(c, data),
                [&](int b) { return both(causal(), indices_of(Kind::segments, data, b)); });
  }
}

TEST_CASE("every tile that a tuner may propose: intervals of rows") {
  for (const Lengths lengths : kLengths) {
    const Case c = tile_case(128, lengths);
    const InputData data =
        girih::verify::random_columns("c", kBatch, 1, lengths.q, lengths.k, 2, 90, c.seed);
    check_tiles(with_input(c, data), [&](int b) { return columns_of(data, b); });
  }
}

TEST_CASE("every tile that a tuner may propose: columns and slashes") { check_slashes(128); }

TEST_CASE("every tile that a tuner may propose: columns and slashes of wide heads") {
  check_slashes(192);
}

TEST_CASE("every tile that a tuner may propose: an expression over tensors") {
  // Key tiles in a stripe are full, others lie in the row's own document, are cut by it, or empty.
  for (const Lengths lengths : kLengths) {
    Case c = tile_case(128, lengths);
    const int tokens = std::max(lengths.q, lengths.k);
    InputData documents{
        .kind = InputInfo::Kind::int_tensor, .name = "doc", .shape = {kBatch, tokens}};
    for (int b = 0; b < kBatch; ++b) {
      for (int i = 0; i < tokens; ++i) documents.numbers.push_back((i + 31 * b) / 77);
    }
    const InputData stripes{.kind = InputInfo::Kind::int_tensor,
                            .name = "stripe",
                            .numbers = {0, 0, 1, 0, 0},
                            .shape = {5}};
    c.inputs = {documents, stripes};
    check_tiles(c, [&](int b) {
      const auto document = [&documents, first = b * tokens](long long token) {
        return documents.numbers[static_cast<std::size_t>(first + token)];
      };
      return condition("doc[b][q] == doc[b][k] || stripe[k / 200] > 0",
                       [=, &stripes](const oracle::Sizes&, long long q, long long k) {
                         return document(q) == document(k) ||
                                stripes.numbers[static_cast<std::size_t>(k / 200)] > 0;
                       });
    });
  }
}

TEST_CASE("every tile that a tuner may propose: a neighborhood of an image") {
  check_neighborhood(128, neighborhood({{29, 9, 3, 1}, {35, 11, 1, 1, true}}));
}

TEST_CASE("every tile that a tuner may propose: a dilated neighborhood of an image") {
  check_neighborhood(64, neighborhood({{59, 9, 3, 2}, {35, 11, 1, 1, true}}));
}

TEST_CASE("every tile that a tuner may propose: a neighborhood of a video, of wide heads") {
  check_neighborhood(192, neighborhood({{5, 3, 1, 1, true}, {17, 6, 1, 1}, {19, 5, 2, 1}}));
}
