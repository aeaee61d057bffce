// The host's side of split query tiles: which kernels split, and how a workspace is laid out. What
// is split is tested by tests/emulation/test_splits.cpp.
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "plans.hpp"
#include "runtime/splits.hpp"

using namespace girih;

namespace {

bool splits(const std::string& pattern, const std::string& arch, const TileConfig& tile = {}) {
  const Problem problem{.head_dim = 128, .num_heads = 32, .num_heads_kv = 8};
  return tests::plan_for(pattern, problem, arch, tile).spec.splits;
}

FwdParams params_of(int num_tiles, int seqlen_k) {
  FwdParams params{};
  params.num_tiles = num_tiles;
  params.geometry.seqlen_k = seqlen_k;
  return params;
}

constexpr runtime::SplitShape kShape{
    .block_m = 128, .block_n = 128, .head_dim_v = 128, .num_sms = 132};

}  // namespace

TEST_CASE("Hopper's kernel splits rows of block lists, and of nothing else") {
  for (const char* pattern : {"blocks(m, q=128, kv=128)", "causal & blocks(m, q=64, kv=16)",
                              "heads(0-9: causal, else: blocks(m, q=128, kv=64) with softcap(9))",
                              "blocks(m, q=128, kv=128) with alibi(s), bias(b)"}) {
    CAPTURE(pattern);
    CHECK(splits(pattern, "sm_90"));
    CHECK_FALSE(splits(pattern, "sm_80"));
    CHECK_FALSE(splits(pattern, "sm_90", {.portable = true}));
  }
  for (const char* pattern :
       {"causal", "causal & segments(doc)", "vertical_slash(v)",
        "heads(0: vertical_slash(v), else: blocks(m, q=128, kv=128))",
        "blocks(m, q=128, kv=128) with sink_logit(z)",
        "heads(0: causal with sink_logit(z), else: blocks(m, q=128, kv=128))",
        "heads(0: causal with prune(t, kv=64), else: blocks(m, q=128, kv=128))"}) {
    CAPTURE(pattern);
    CHECK_FALSE(splits(pattern, "sm_90"));
  }
}

TEST_CASE("what a plan and its parts take lies one behind the other in the workspace") {
  constexpr std::size_t kInputs = 1024;
  alignas(16) static char base[1 << 25];
  for (const auto& [num_tiles, seqlen_k] : {std::pair{4096, 131072}, {1, 8192}, {3, 4200}}) {
    const FwdParams params = params_of(num_tiles, seqlen_k);
    const runtime::SplitPlan plan = runtime::plan_splits(kShape, params, kInputs, base);
    const SplitMemory& memory = plan.memory;
    CHECK(memory.capacity == split_capacity(kShape.num_sms, num_tiles, ceil_div(seqlen_k, 128)));
    CHECK(memory.most_visits == ceil_div(seqlen_k, 128));
    REQUIRE(memory.capacity > 0);
    CHECK(runtime::plan_splits(kShape, params, kInputs, nullptr).workspace_bytes ==
          plan.workspace_bytes);
    REQUIRE(plan.workspace_bytes <= sizeof base);

    const auto slots = static_cast<std::size_t>(memory.capacity);
    const std::vector<std::pair<const void*, std::size_t>> pieces = {
        {memory.header, sizeof(SplitHeader)},
        {base + runtime::kWorkspaceHeadBytes, kInputs - runtime::kWorkspaceHeadBytes},
        {memory.visits, static_cast<std::size_t>(num_tiles) * sizeof(int)},
        {memory.tiles, kMostHeavyTiles * sizeof(SplitTile)},
        {memory.items, (slots + kMostHeavyTiles) * sizeof(SplitItem)},
        {memory.lse, slots * 128 * sizeof(float)},
        {memory.out, slots * 128 * 128 * sizeof(float)}};
    const char* end = base + runtime::kIgnoredCountsBytes;
    for (const auto& [piece, bytes] : pieces) {
      const char* const begin = static_cast<const char*>(piece);
      CHECK(begin >= end);
      CHECK(reinterpret_cast<std::uintptr_t>(begin) % 16 ==
            (piece == memory.header ? runtime::kSplitHeaderOffset % 16 : 0));
      end = begin + bytes;
    }
    CHECK(end <= base + plan.workspace_bytes);
  }
}

TEST_CASE("sequences too short for a row to be worth splitting take no memory for it") {
  for (const auto& [num_tiles, seqlen_k] : {std::pair{4096, 32 * 128}, {0, 131072}, {5, 0}}) {
    const runtime::SplitPlan plan =
        runtime::plan_splits(kShape, params_of(num_tiles, seqlen_k), 512, nullptr);
    CHECK(plan.workspace_bytes == 512);
    CHECK(plan.memory.header == nullptr);
    CHECK(plan.memory.capacity == 0);
  }
}
