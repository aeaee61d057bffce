// Emitted entries: byte for byte against tests/golden, and a function of the spec alone.
//
// To write the golden files anew after a change of the generator, and then to read the diff:
//   UPDATE_GOLDEN=1 build/bin/girih_tests --test-case='*golden*'
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <utility>

#include "codegen/emit.hpp"
#include "plan/plan.hpp"
#include "plans.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"

using namespace girih;
using plan::KernelSpec;
using tests::source_dir;
namespace fs = std::filesystem;

namespace {

KernelSpec spec_for(const std::string& pattern, const Problem& problem, const std::string& arch) {
  return tests::plan_for(pattern, problem, arch).spec;
}

struct GoldenEntry {
  const char* file;
  const char* pattern;
  Problem problem;
  const char* arch;
};

const GoldenEntry kGolden[] = {
    {"dense_d64_fp16_sm80.cu",
     "dense",
     {.dtype = DType::float16, .head_dim = 64, .num_heads = 8, .num_heads_kv = 8},
     "sm_80"},
    {"causal_d128_bf16_sm120.cu", "causal", {.head_dim = 128}, "sm_120"},
    {"mixed_d128_bf16_sm90a.cu",
     "heads(0-15: causal, else: causal & (sink(128) | window(left=255)))",
     {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8},
     "sm_90a"},
    {"nested_d64_bf16_sm89.cu",
     "heads(0-7: causal & !(window(left=63) | sink(16)), 8-11: !sink(4) & causal, "
     "else: window(left=127, right=127))",
     {.head_dim = 64, .num_heads = 40, .num_heads_kv = 8},
     "sm_89"},
    {"blocks_d128_bf16_sm90a.cu",
     "heads(0-7: causal, 8-15: causal & blocks(m, q=128, kv=64), else: sink($n) | "
     "window(left=3, right=$w))",
     {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8},
     "sm_90a"},
    {"number_d64_fp16_sm80.cu",
     "causal | sink($prefix)",
     {.dtype = DType::float16, .head_dim = 64},
     "sm_80"},
    {"segments_d128_bf16_sm90a.cu", "causal & segments(doc)", {.head_dim = 128}, "sm_90a"},
    {"bricks_d128_bf16_sm90a.cu",
     "neighborhood(30x48x80, window=(18, 24, 24))",
     {.head_dim = 128, .num_heads = 24, .num_heads_kv = 24},
     "sm_90a"},
    {"slashes_d128_bf16_sm90a.cu",
     "heads(0-7: vertical_slash(v), else: causal & (sink(4) | window(left=4095)))",
     {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8},
     "sm_90a"},
    {"prune_d128_bf16_sm90a.cu",
     "heads(0-7: causal & sink(4) with prune(t, kv=64), else: dense)",
     {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8},
     "sm_90a"},
    {"modified_d128_bf16_sm90a.cu",
     "heads(0-3: causal with alibi(slopes), else: causal with bias(b), sink_logit(z))",
     {.head_dim = 128, .num_heads = 8, .num_heads_kv = 8},
     "sm_90a"},
    {"expressions_d128_bf16_sm90a.cu",
     "heads(0-3: causal & expr(\"doc[b][q] == doc[b][k] || (p - k) % 64 < 2\"), else: causal with "
     "score(\"s * 0.5 + far[h][min(p - k, 63)]\"))",
     {.head_dim = 128, .num_heads = 8, .num_heads_kv = 8},
     "sm_90a"},
};

}  // namespace

TEST_CASE("emitted entries are the golden files, byte for byte") {
  const fs::path folder = source_dir() / "tests" / "golden";
  const bool update = std::getenv("UPDATE_GOLDEN") != nullptr;
  std::set<std::string> expected_files;
  for (const GoldenEntry& golden : kGolden) {
    CAPTURE(golden.file);
    expected_files.insert(golden.file);
    const std::string source = codegen::emit(spec_for(golden.pattern, golden.problem, golden.arch));
    if (update) REQUIRE(support::write_file_atomically(folder / golden.file, source) == "");
    const auto text = support::read_file(folder / golden.file);
    REQUIRE(text.has_value());
    CHECK(source == *text);
  }
  std::set<std::string> files;
  for (const auto& file : fs::directory_iterator(folder)) files.insert(file.path().filename());
  CHECK(files == expected_files);  // none is left over
}

TEST_CASE("an entry depends on every field of the spec and on nothing else") {
  const Problem problem{.head_dim = 128, .num_heads = 32, .num_heads_kv = 8};
  const KernelSpec spec = spec_for("heads(0-15: causal, else: sink(12345))", problem, "sm_80");
  const std::string source = codegen::emit(spec);
  CHECK(codegen::emit(KernelSpec(spec)) == source);
  CHECK(source.find("12345") == source.npos);  // numbers are arguments

  std::set<std::string> sources{source};
  const auto with = [&](auto change) {
    KernelSpec changed = spec;
    change(changed);
    sources.insert(codegen::emit(changed));
  };
  with([](KernelSpec& s) { s.arch.number = 86; });
  with([](KernelSpec& s) { s.arch.suffix = "a"; });
  with([](KernelSpec& s) { s.dtype = DType::float16; });
  with([](KernelSpec& s) { s.head_dim = 64; });
  with([](KernelSpec& s) { s.head_dim_v = 64; });
  with([](KernelSpec& s) { s.softcap = true; });
  with([](KernelSpec& s) { s.prune = true; });
  with([](KernelSpec& s) { s.tile_maxima = true; });
  with([](KernelSpec& s) { s.tile.block_m += 64; });
  with([](KernelSpec& s) { s.tile.block_n += 16; });
  with([](KernelSpec& s) { s.tile.num_stages += 1; });
  with([](KernelSpec& s) { s.tile.num_warps += 4; });
  with([](KernelSpec& s) { s.family = plan::KernelFamily::fwd_sm90; });
  with([](KernelSpec& s) { s.min_ctas_per_sm += 1; });
  with([](KernelSpec& s) { s.structures.pop_back(); });
  with([](KernelSpec& s) { s.structures.push_back("Leaf<Window>"); });
  with([](KernelSpec& s) { s.head_capacity *= 2; });
  with([](KernelSpec& s) { s.num_inputs = 1; });
  with([](KernelSpec& s) { s.num_inputs = 2; });
  with([](KernelSpec& s) { s.builds_lists = true; });
  with([](KernelSpec& s) { s.builds_numbers = true; });
  with([](KernelSpec& s) { s.builds_slashes = true; });
  with([](KernelSpec& s) { s.expressions = {{.name = "Condition_0", .code = "true"}}; });
  with([](KernelSpec& s) { s.expressions = {{.name = "Condition_0", .code = "false"}}; });
  with([](KernelSpec& s) {
    s.expressions = {{.of_scores = true, .name = "Score_0", .code = "score"}};
  });
  CHECK(sources.size() == 26);

  KernelSpec hopper = spec_for("causal", problem, "sm_90");
  const std::string two = codegen::emit(hopper);
  hopper.tile.num_q_stages = 1;
  CHECK(codegen::emit(hopper) != two);

  KernelSpec bricks = spec_for("neighborhood(64x64, window=9)", problem, "sm_90");
  std::set<std::string> boxes{codegen::emit(bricks)};
  std::swap(bricks.bricks->queries.b, bricks.bricks->queries.c);
  boxes.insert(codegen::emit(bricks));
  std::swap(bricks.bricks->keys.b, bricks.bricks->keys.c);
  boxes.insert(codegen::emit(bricks));
  bricks.bricks.reset();
  boxes.insert(codegen::emit(bricks));
  CHECK(boxes.size() == 4);
}
