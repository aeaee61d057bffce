// Emitted entries compiled, for every architecture of a written-down matrix, without spills, stack
// or lost performance.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "codegen/emit.hpp"
#include "compiled.hpp"
#include "girih/jit.hpp"
#include "girih/prune.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "plans.hpp"
#include "sandbox.hpp"

using namespace girih;
using tests::check_compiled;
using tests::Compiled;
using tests::holds_symbol;
using tests::plan_for;
using tests::TemporaryFolder;

namespace {

// --- The matrix: each pattern, head_dim and dtype, for one architecture --------------------------

const char* const kMatrixPatterns[] = {
    "dense",
    "causal",
    "causal & (sink(128) | window(left=255))",
    "heads(0-15: causal, else: causal & (sink(128) | window(left=255)))",
    "heads(0-7: causal, 8-15: causal & !(window(left=63) | sink(16)), "
    "else: !window(left=31, right=31))",
};

constexpr TileConfig kPortable{.portable = true};

struct MatrixCase {
  std::string pattern;
  Problem problem;
  TileConfig tile = {};
};

// Compiles all of them, on two threads, and checks each.
void check_cases(const std::string& arch, const std::vector<MatrixCase>& cases) {
  const TemporaryFolder folder;
  jit::Options options;  // nothing from the environment
  options.mode = jit::Mode::automatic;
  options.cache_dir = folder / "cache";
  options.cache_layers.emplace();
  std::vector<Compiled> results(cases.size());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i; (i = next++) < cases.size();) {
      const auto& [pattern, problem, tile] = cases[i];
      Compiled& result = results[i];
      result.what =
          fmt::format("{} {} head_dim {} and {}, tile {} x {}, {} stages and {} of Q: {}", arch,
                      to_string(problem.dtype), problem.head_dim, problem.width_v(), tile.block_m,
                      tile.block_n, tile.num_stages, tile.num_q_stages, pattern);
      jit::Options with_tile = options;
      with_tile.tile = tile;
      try {
        jit::Artifact artifact = jit::build(Pattern::parse(pattern), problem, arch, with_tile);
        if (artifact.info.cache_hit) result.error = "it was in the cache";
        result.resources = {.registers = artifact.info.registers,
                            .spill_bytes = artifact.info.spill_bytes,
                            .stack_bytes = artifact.info.stack_bytes};
        result.log = std::move(artifact.log);
        result.cubin = std::move(artifact.cubin);
        result.builds_lists = pattern.find("blocks(") != pattern.npos;
        result.builds_numbers =
            pattern.find("(doc)") != pattern.npos || pattern.find("columns(") != pattern.npos;
        result.builds_slashes = pattern.find("vertical_slash") != pattern.npos;
        result.builds_tiles = pattern.find("expr(") != pattern.npos;
        result.splits = plan_for(pattern, problem, arch, tile).spec.splits;
      } catch (const std::exception& error) {
        result.error = error.what();
      }
    }
  };
  std::thread other(work);
  work();
  other.join();
  for (const Compiled& result : results) check_compiled(result);
}

void check_matrix(const std::string& arch) {
  std::vector<MatrixCase> cases;
  for (const char* pattern : kMatrixPatterns) {
    for (const int head_dim : {64, 128}) {
      for (const DType dtype : {DType::bfloat16, DType::float16}) {
        cases.push_back(
            {pattern, {.dtype = dtype, .head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8}});
      }
    }
  }
  check_cases(arch, cases);
}

// Every atom by itself and in mixtures, with and without a soft cap. Where tiles are no bricks,
// neighborhoods share a kernel, which is compiled once.
void check_atoms(const std::string& arch, const TileConfig& tile = {}) {
  const std::string streaming = "causal & (sink(128) | window(left=255))";
  std::vector<MatrixCase> cases;
  std::set<std::string> sources;
  for (const std::string& pattern :
       {std::string("last_keys(7)"), std::string("first_queries(7)"),
        std::string("last_queries(7)"), std::string("queries(0..7)"), std::string("keys(0..7)"),
        std::string("causal & chunk(7)"), std::string("block_window(left=1, right=0, block=64)"),
        std::string("block_streaming(sink=1, local=2)"),
        std::string("causal & strided(local=16, stride=8, block=64, offset=1)"),
        std::string("causal & blocks(m, q=64, kv=64)"), std::string("dilated(2)"),
        std::string("causal & (sink(1024) | window(left=8191) & dilated(2))"),
        std::string("neighborhood(256x256, window=80)"),
        std::string(
            "heads(0: causal, 1: neighborhood(64x64, window=9), else: causal & (sink(128) | "
            "window(left=255)))"),
        std::string("blocks(m, q=128, kv=128) | sink($n) with softcap(30)"),
        std::string("causal & strided(block=64, ranges=[(4, 1), (inf, 8)]) with softcap(30)"),
        "heads(0: causal, 1: " + streaming + ", else: causal & chunk(8192))",
        "heads(0: block_streaming(1, 2), 1: " + streaming +
            ", else: causal & strided(local=16, stride=8, block=64))",
        "heads(0: causal with softcap(30), 1: " + streaming +
            ", else: first_queries(64) | last_queries(64) | sink(64) | last_keys(64) | "
            "block_window(left=1, right=1, block=64))"}) {
    cases.push_back({pattern, {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8}, tile});
    if (arch != "sm_90") continue;
    cases.push_back({pattern, {.head_dim = 64, .num_heads = 32, .num_heads_kv = 8}, tile});
  }
  for (const int head_dim : {16, 96, 192, 256}) {
    for (const char* pattern :
         {"causal & strided(local=16, stride=8, block=64) with softcap(30)",
          "causal & strided(local=16, stride=8, block=64)",
          "neighborhood(30x48x80, window=(18, 24, 24)) with softcap(30)",
          "neighborhood(30x48x80, window=(18, 24, 24))", "neighborhood(256x256, window=80)",
          "neighborhood(128x128, window=9, dilation=9)",
          "causal & neighborhood(64x64, window=9) | sink(4)",
          "blocks(m, q=128, kv=128) | sink($n)"}) {
      const Problem problem{.head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8};
      const plan::Plan plan = plan_for(pattern, problem, arch, tile);
      if (sources.insert(codegen::emit(plan.spec)).second)
        cases.push_back({pattern, problem, tile});
    }
  }
  if (arch == "sm_90" && !tile.portable) {  // three warpgroups beside elaborate masks
    for (const int head_dim : {64, 128}) {
      const Problem problem{.head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8};
      cases.push_back(
          {"neighborhood(30x48x80, window=(18, 24, 24)) with softcap(30)", problem, tile});
      cases.push_back(
          {"heads(0-7: causal & segments(doc), else: causal & segments(doc) & "
           "(sink(64) | window(left=999)))",
           problem, tile});
      cases.push_back({"blocks(m, q=64, kv=64)", problem, {.block_m = 192}});
    }
  }
  check_cases(arch, cases);
}

// Block masks, numbers from inputs, and both in mixtures of heads. Sizes of blocks that share a
// kernel, for only its tile goes with them, are compiled once.
void check_inputs(const std::string& arch) {
  std::vector<MatrixCase> cases;
  std::set<std::string> sources;
  const auto add = [&](const std::string& pattern, int head_dim) {
    const Problem problem{.head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8};
    const bool first = sources.insert(codegen::emit(plan_for(pattern, problem, arch).spec)).second;
    if (first) cases.push_back({pattern, problem});
  };
  for (const auto& [q, kv] : {std::pair{16, 16}, {32, 128}, {64, 64}, {128, 32}, {128, 128}}) {
    const std::string blocks = fmt::format("blocks(m, q={}, kv={})", q, kv);
    const bool largest = q == 128 && kv == 128;
    for (const int head_dim : {64, 128, 256}) {
      add("causal & " + blocks, head_dim);
      if (!largest) continue;
      add(blocks, head_dim);
      add("heads(0-9: causal, 10-19: causal & " + blocks +
              ", else: causal & (sink(128) | window(left=255)))",
          head_dim);
    }
  }
  for (const int head_dim : {64, 128, 192, 256}) add("causal & segments(doc)", head_dim);
  for (const int head_dim : {64, 128, 192, 256}) {
    add("vertical_slash(v)", head_dim);
    add("heads(0-9: vertical_slash(v), 10-19: causal, else: causal & (sink(4) | window(left=99)))",
        head_dim);
    add("heads(0-9: vertical_slash(v), 10-19: blocks(m, q=128, kv=64), else: strided(local=4, "
        "stride=8, block=64))",
        head_dim);
  }
  add("causal & vertical_slash(v) with softcap(30)", 128);
  add("causal & !vertical_slash(v) | window(left=9, right=0) & vertical_slash(w)", 128);
  add("index_ge(doc)", 128);
  for (const int head_dim : {64, 128, 192, 256}) {
    add("causal & columns(rows)", head_dim);
    add("causal with alibi(s)", head_dim);
    add("causal with bias(b)", head_dim);
    add("causal with softcap(30), alibi(s), bias(b), sink_logit(z)", head_dim);
    add("heads(0: causal with alibi(s), 1: dense with bias(b), else: causal & window(left=99) with "
        "sink_logit(z))",
        head_dim);
    add("heads(0-9: vertical_slash(v), 10-19: causal with alibi(s), else: vertical_slash(v) with "
        "sink_logit(z))",
        head_dim);
  }
  for (const int head_dim : {64, 128, 192, 256}) {
    add("expr(\"doc[b][q] == doc[b][k] && (k <= p || k < prefix[b])\")", head_dim);
    add("heads(0-9: causal, 10-19: expr(\"t[h][q / 64][k / 64] > 0\") & causal, else: causal & "
        "!expr(\"(p - k) % 7 == 3\"))",
        head_dim);
    add("causal with score(\"s * scale[h] + far[h][min(abs(p - k), 31)]\")", head_dim);
    add("dense with softcap(30), alibi(a), bias(b), score(\"s + label[b][h][q][min(max(p - k, "
        "-12), "
        "12) + 12] * w[g]\"), sink_logit(z)",
        head_dim);
    add("expr(\"ids[b][q] == ids[b][k]\") with score(\"s * t[b][h][q][k] + u[b][k] * w[h]\")",
        head_dim);
    add("heads(0: vertical_slash(v), else: causal with score(\"s * t[b][h][q][k]\"))", head_dim);
    add("expr(\"q / 50 >= k / 50\") with softcap(30), alibi(a), score(\"exp(min(s, 2.0)) - "
        "sqrt(abs(s)) + w[(k + q) % 6]\")",
        head_dim);
  }
  add("expr(\"exp(k * 0.001) < sqrt(q * 2.0) && tanh(k * 0.1) < 0.5 || t[b][h][q][k] / (q % 7 + g) "
      "> t[g][h][k][q] % (k - p)\")",
      128);
  add("heads(0: causal with score(\"k % 3 == 0 ? tanh(s) * 2 : log(abs(s) + 1)\"), else: "
      "vertical_slash(v))",
      128);
  add("causal & sink(4) with sink_logit(z)", 64);
  add("blocks(m, q=64, kv=64) & causal with softcap(30), alibi(s), bias(b)", 128);
  for (const int head_dim : {128, 192}) {
    add("!columns(rows) & segments(doc) with softcap(20), bias(b)", head_dim);
  }
  add("!columns(rows) & segments(doc) with bias(b)", 128);
  add("segments(doc) & index_gt(doc) with softcap(30)", 64);
  add("heads(0-9: causal, 10-19: causal & segments(doc), else: index_ge(doc) & " +
          std::string("blocks(a, q=64, kv=64))"),
      128);
  add("causal & (sink($s) | window(left=$l, right=$r) | !chunk($c)) & block_streaming($a, $b)",
      128);
  add("blocks(a, q=64, kv=64) & !blocks(b, q=128, kv=16) | sink($n) & causal with softcap(30)",
      128);
  check_cases(arch, cases);
}

// Pruned heads alone, beside others, and in mixtures, where a kernel has their tiles.
void check_prune(const std::string& arch, const TileConfig& tile = {}) {
  std::vector<MatrixCase> cases;
  const auto add = [&](const std::string& pattern, int head_dim, int head_dim_v = 0) {
    const Problem problem{
        .head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8, .head_dim_v = head_dim_v};
    cases.push_back({pattern, problem, tile});
  };
  for (const int kv : {64, 128}) {
    const std::string prune = fmt::format("prune(t, kv={})", kv);
    for (const int head_dim : {64, 96, 128, 160, 192, 256}) {
      if (head_dim > (kv == 128 ? 192 : 256)) continue;
      add("causal with " + prune, head_dim);
      if (head_dim % 64 != 0) continue;
      add("heads(0-9: causal with softcap(30), " + prune + ", 10-19: dense, 20-29: causal & " +
              "(sink(128) | window(left=255)) with " + prune +
              ", else: causal & blocks(m, q=64, kv=64) with " + prune + ")",
          head_dim);
      add("heads(0-9: causal with " + prune + ", sink_logit(z), else: dense)", head_dim);
      add("heads(0-9: vertical_slash(v), 10-19: neighborhood(30x40, window=9), else: " +
              ("causal & vertical_slash(v) with " + prune) + ")",
          head_dim);
      add("heads(0-9: causal with softcap(30), " + prune + ", else: causal with alibi(a), bias(b))",
          head_dim);
      add("causal with " + prune + ", alibi(a)", head_dim);
      add("causal with " + prune + ", score(\"s * scale[h] + far[h][min(abs(p - k), 31)]\")",
          head_dim);
      add("dense with softcap(30), " + prune + ", alibi(a), bias(b), score(\"s + " +
              "label[b][h][q][min(max(p - k, -12), 12) + 12] * w[g]\"), sink_logit(z)",
          head_dim);
      add("heads(0-9: causal with softcap(30), " + prune +
              ", alibi(a), 10-19: causal & segments(doc) with bias(b), 20-29: causal & " +
              "blocks(m, q=64, kv=64) with " + prune +
              ", else: causal & (sink(4) | window(left=99)) with " + prune +
              ", score(\"k % 3 == 0 ? tanh(s) * 2 : log(abs(s) + 1)\"))",
          head_dim);
    }
  }
  add("dense with softcap(2), prune(t, kv=64)", 192, 128);
  check_cases(arch, cases);
}

// Every head_dim, and pairs that differ, with one mixed pattern, for sm_90 with `causal` too.
void check_widths(const std::string& arch, const TileConfig& tile = {}) {
  std::vector<MatrixCase> cases;
  const auto add = [&](int head_dim, int head_dim_v) {
    if (head_dim_v == 0 && arch == "sm_90") {
      cases.push_back({"causal", {.head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8}, tile});
    }
    cases.push_back(
        {"heads(0-15: causal, else: causal & (sink(128) | window(left=255)))",
         {.head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8, .head_dim_v = head_dim_v},
         tile});
  };
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) add(head_dim, 0);
  for (const auto& [head_dim, head_dim_v] :
       {std::pair{64, 128}, {128, 64}, {192, 128}, {64, 256}, {256, 16}, {16, 256}}) {
    add(head_dim, head_dim_v);
  }
  check_cases(arch, cases);
}

// The Hopper kernel's tiles that a tuner may propose: of each height the last, which takes the most
// registers, and of other tiles every sixth beside a pattern of closed forms.
void check_candidates() {
  const plan::Arch arch = plan::Arch::parse("sm_90");
  std::vector<MatrixCase> cases;
  std::size_t count = 0;
  const auto add = [&](const std::string& pattern, int head_dim, int head_dim_v, bool others) {
    const Problem problem{
        .head_dim = head_dim, .num_heads = 32, .num_heads_kv = 8, .head_dim_v = head_dim_v};
    const plan::Plan own = plan_for(pattern, problem);
    const std::vector<TileConfig> tiles = plan::candidate_tiles(own, problem, arch);
    CHECK(tiles.size() >= 3);
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      if (plan::family_of(tiles[i]) != plan::KernelFamily::fwd_sm90) continue;
      const bool last = i + 1 == tiles.size() || tiles[i + 1].block_m != tiles[i].block_m;
      if (last || (others && count++ % 6 == 0)) cases.push_back({pattern, problem, tiles[i]});
    }
  };
  for (const auto& [head_dim, head_dim_v] :
       {std::pair{64, 64}, {96, 96}, {128, 128}, {192, 128}, {192, 192}, {256, 256}}) {
    add("causal & (sink(128) | window(left=255))", head_dim, head_dim_v, true);
  }
  CHECK(cases.size() >= 25);
  for (const char* pattern :
       {"causal & strided(local=16, stride=8, block=64)",
        "neighborhood(59x35, window=(9, 11), stride=(3, 1), dilation=(2, 1))",
        "heads(0: causal, 1: neighborhood(64x64, window=9), else: causal & sink(128))",
        "causal & segments(doc)", "causal & columns(c)", "causal & blocks(m, q=128, kv=128)",
        "heads(0: vertical_slash(v), else: causal)", "causal with softcap(30)",
        "causal with alibi(a)", "causal with score(\"s + far[h][min(abs(p - k), 31)]\")"}) {
    for (const int head_dim : {64, 128, 192}) add(pattern, head_dim, head_dim, false);
  }
  check_cases("sm_90", cases);
}

}  // namespace

TEST_CASE("the matrix compiles for sm_80 without spills") { check_matrix("sm_80"); }
TEST_CASE("the matrix compiles for sm_89 without spills") { check_matrix("sm_89"); }
TEST_CASE("the matrix compiles for sm_90a without spills") { check_matrix("sm_90a"); }
TEST_CASE("the matrix compiles for sm_100 without spills") { check_matrix("sm_100"); }
TEST_CASE("the matrix compiles for sm_120 without spills") { check_matrix("sm_120"); }

TEST_CASE("every atom compiles for sm_80 without spills") { check_atoms("sm_80"); }
TEST_CASE("every atom compiles for sm_90 without spills") { check_atoms("sm_90"); }
TEST_CASE("every atom compiles portably for sm_90 without spills") {
  check_atoms("sm_90", kPortable);
}
TEST_CASE("every atom compiles for sm_120 without spills") { check_atoms("sm_120"); }

TEST_CASE("run-time inputs compile for sm_80 without spills") { check_inputs("sm_80"); }
TEST_CASE("run-time inputs compile for sm_90 without spills") { check_inputs("sm_90"); }

TEST_CASE("pruned heads compile for sm_80 without spills") { check_prune("sm_80"); }
TEST_CASE("pruned heads compile for sm_90 without spills") { check_prune("sm_90"); }
TEST_CASE("pruned heads compile portably for sm_90 without spills") {
  check_prune("sm_90", kPortable);
}
TEST_CASE("tile maxima compile without spills") {
  const TemporaryFolder folder;
  for (const char* arch : {"sm_80", "sm_90", "sm_120"}) {
    for (const auto& [head_dim, kv] : {std::pair{64, 64}, {64, 128}, {128, 64}, {256, 64}}) {
      // sm_120 has 100 KB of shared memory.
      if (head_dim == 256 && std::string(arch) == "sm_120") continue;
      const Problem problem{.head_dim = head_dim, .num_heads = 8, .num_heads_kv = 2};
      jit::Options options;
      options.cache_dir = folder / "cache";
      const jit::Artifact made = jit::build_tile_maxima(
          Pattern::parse("heads(0-3: causal with softcap(5), else: causal & (sink(4) | "
                         "window(left=99)) with prune(t, kv=64))"),
          kv, problem, arch, options);
      CAPTURE(arch);
      CAPTURE(head_dim);
      CAPTURE(kv);
      CHECK(made.info.spill_bytes == 0);
      CHECK(made.info.stack_bytes == 0);
      CHECK(made.info.registers > 32);
      CHECK(holds_symbol(made.cubin, codegen::kKernelSymbol));
    }
  }
}

TEST_CASE("tile maxima of run-time masks compile without spills, with what prepares their inputs") {
  const TemporaryFolder folder;
  struct Subject {
    const char* pattern;
    std::vector<const char*> prepare;  // kernels beside it
  };
  const Subject subjects[] = {
      {"causal & blocks(m, q=64, kv=32)", {codegen::kBuildListsSymbol}},
      {"vertical_slash(v)", {codegen::kBuildSlashSymbol}},
      {"causal & segments(d)", {codegen::kBuildNumbersSymbol}},
      {"causal & !columns(c)", {codegen::kBuildNumbersSymbol}},
      {"causal & (sink($n) | window(left=$w))", {}},
      {"causal & expr(\"k % 7 != t[b]\")", {codegen::kBuildTilesSymbol}},
      {"heads(0: causal & blocks(m, q=64, kv=32) with softcap(1.5), 1: vertical_slash(v), "
       "2: causal & segments(d) & expr(\"k % 7 != t[b]\") with alibi(a), "
       "3: columns(c) | causal & sink($n))",
       {codegen::kBuildListsSymbol, codegen::kBuildSlashSymbol, codegen::kBuildNumbersSymbol,
        codegen::kBuildTilesSymbol}}};
  for (const auto& [pattern, prepare] : subjects) {
    for (const auto& [head_dim, kv] : {std::pair{64, 128}, {128, 64}, {256, 64}}) {
      const Problem problem{.head_dim = head_dim, .num_heads = 4, .num_heads_kv = 2};
      jit::Options options;
      options.cache_dir = folder / "cache";
      const jit::Artifact made =
          jit::build_tile_maxima(Pattern::parse(pattern), kv, problem, "sm_80", options);
      CAPTURE(pattern);
      CAPTURE(head_dim);
      CAPTURE(kv);
      CHECK(made.info.spill_bytes == 0);
      CHECK(made.info.stack_bytes == 0);
      for (const char* symbol : {codegen::kBuildListsSymbol, codegen::kBuildSlashSymbol,
                                 codegen::kBuildNumbersSymbol, codegen::kBuildTilesSymbol}) {
        const bool wanted = std::find(prepare.begin(), prepare.end(), symbol) != prepare.end();
        CHECK(holds_symbol(made.cubin, symbol) == wanted);
      }
    }
  }
}

TEST_CASE("every width compiles for sm_80 without spills") { check_widths("sm_80"); }
TEST_CASE("every width compiles for sm_86 without spills") { check_widths("sm_86"); }
TEST_CASE("every width compiles for sm_90 without spills") { check_widths("sm_90"); }
TEST_CASE("every width compiles portably for sm_90 without spills") {
  check_widths("sm_90", kPortable);
}
TEST_CASE("every width compiles for sm_100 without spills") { check_widths("sm_100"); }

TEST_CASE("tiles that a tuner proposes to the Hopper kernel compile without spills") {
  check_candidates();
}
