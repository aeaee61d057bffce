// In which order a launch takes query tiles: sections of heads, and series of pruned ones. The
// order itself is the kernels': tests/emulation/test_series.cpp.
#include <doctest/doctest.h>

#include <cstdint>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "runtime/tile_order.hpp"

using namespace girih;

namespace {

constexpr int kL2Bytes = 50 << 20;
constexpr int kNumSms = 132;

// Of one sequence, with query tiles of 128 rows.
FwdParams ordered(int heads, int kv_heads, int seqlen) {
  const Problem problem{.head_dim = 128, .num_heads = heads, .num_heads_kv = kv_heads};
  FwdParams params{};
  params.geometry.seqlen_q = params.geometry.seqlen_k = seqlen;
  params.num_batch_heads = heads;
  runtime::plan_order(params, problem, {.rows = 128, .heads = 1},
                      runtime::section_bytes({}, kL2Bytes));
  return params;
}

int tiles_per_series(int heads, int kv_heads, int seqlen, int num_ctas) {
  FwdParams params = ordered(heads, kv_heads, seqlen);
  runtime::group_into_series(params, num_ctas);
  return params.tiles_per_series;
}

}  // namespace

TEST_CASE("heads go in sections whose keys and values the L2 cache holds") {
  const FwdParams params = ordered(32, 32, 32768);
  CHECK(params.num_m_blocks == 256);
  CHECK(params.num_tiles == 32 * 256);
  CHECK(params.tiles_per_series == 1);
  CHECK(params.heads_per_section == 2);  // of 16 MiB each
  CHECK(ordered(32, 8, 32768).heads_per_section == 8);
  CHECK(ordered(32, 8, 1024).heads_per_section == 32);
  CHECK(ordered(32, 32, 1 << 20).heads_per_section == 1);  // whatever it takes
  CHECK(ordered(32, 32, 0).num_tiles == 0);
  CHECK_THROWS_AS(ordered(1 << 15, 1 << 15, 1 << 24), Error);
}

TEST_CASE("lists share fewer keys and documents more") {
  const std::int64_t bytes = runtime::section_bytes({"Leaf<Causal>"}, kL2Bytes);
  CHECK(runtime::section_bytes({"Leaf<Causal>", "Leaf<Blocks>"}, kL2Bytes) == bytes / 4);
  CHECK(runtime::section_bytes({"All<Leaf<Causal>, Leaf<Segments>>"}, kL2Bytes) == 2 * bytes);
}

TEST_CASE("series are as long as leaves work and keys to share") {
  CHECK(tiles_per_series(32, 8, 32768, kNumSms) == 8);
  CHECK(tiles_per_series(32, 32, 32768, kNumSms) == 4);  // two heads' keys fit the cache
  CHECK(tiles_per_series(32, 8, 8192, kNumSms) == 8);
  CHECK(tiles_per_series(32, 32, 8192, kNumSms) == 2);  // or few series end a section
  CHECK(tiles_per_series(8, 8, 2048, kNumSms) == 1);    // less than a tile for each
  CHECK(tiles_per_series(8, 8, 2048, 2) == 8);
  CHECK(tiles_per_series(1, 1, 128, 1) == 1);
}

TEST_CASE("series take every tile, and leave no round of CTAs half empty") {
  for (const int heads : {1, 3, 16, 40}) {
    for (int blocks = 1; blocks < 300; blocks += 7) {
      for (const int num_ctas : {1, 2, 5, kNumSms}) {
        CAPTURE(heads);
        CAPTURE(blocks);
        CAPTURE(num_ctas);
        const FwdParams before = ordered(heads, heads, 128 * blocks - 5);
        FwdParams params = before;
        runtime::group_into_series(params, num_ctas);
        const int tiles = params.tiles_per_series;
        REQUIRE(params.num_m_blocks == ceil_div(before.num_m_blocks, tiles));
        REQUIRE(params.num_tiles == params.num_m_blocks * heads);
        REQUIRE(params.heads_per_section == before.heads_per_section);
        if (tiles == 1) continue;
        const int rounds = ceil_div(before.num_tiles, tiles * num_ctas);
        REQUIRE(rounds * tiles * num_ctas <= before.num_tiles * 17 / 16);
      }
    }
  }
}
