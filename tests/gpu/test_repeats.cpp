// Twenty launches give the same bits: of every kind of mask, where all rows see alike and where
// some see all keys and others none. What is divided, pruned or too large for the host repeats in
// test_splits.cpp, test_prune.cpp and test_layouts.cpp.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "values.hpp"

using namespace gpu_tests;
using girih::InputInfo;
using girih::TileConfig;
using girih::verify::InputData;

namespace {

struct Run {
  std::string text;
  Case parameters;
  TileConfig tile = {};
};

void check_runs(const std::vector<Run>& runs) {
  std::vector<Binding> bindings;
  for (const Run& run : runs) bindings.push_back({run.text, run.parameters.problem, run.tile});
  const std::vector<Bound> bound = bind_all(bindings);
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto& [text, parameters, tile] = runs[i];
    CAPTURE(text);
    CAPTURE(describe(parameters.problem));
    CAPTURE(describe(tile));
    CHECK_MESSAGE(bound[i].kernel, bound[i].message);
    if (!bound[i].kernel) continue;
    girih::verify::Workload workload(parameters);
    workload.fill_normal(i + 1);
    girih::verify::Buffer memory(bound[i].kernel->workspace_bytes(workload.args()));
    check_repeats(*bound[i].kernel, workload, memory);
  }
}

void check_kernels(const std::string& text, const Case& c) {
  std::vector<Run> runs;
  for (const TileConfig& tile : kKernels) runs.push_back({text, c, tile});
  check_runs(runs);
}

Case case_with(std::vector<InputData> inputs, int seqlen_q, int seqlen_k, int head_dim = 128) {
  Case c = make_case(make_problem(DType::bfloat16, head_dim, 8, 2), 1, seqlen_q, seqlen_k);
  c.inputs = std::move(inputs);
  return c;
}

// Of every four rows of blocks, one sees all keys and one none.
void skew_rows(InputData& blocks) {
  const auto columns = static_cast<std::size_t>(blocks.num_kv_blocks);
  for (std::size_t row = 0; row * columns < blocks.visible.size(); ++row) {
    if (row % 4 > 1) continue;
    std::fill_n(blocks.visible.begin() + static_cast<std::ptrdiff_t>(row * columns), columns,
                static_cast<std::uint8_t>(row % 4));
  }
}

}  // namespace

TEST_CASE("twenty launches give the same bits: closed forms, in every type") {
  std::vector<Run> runs;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128, 256}) {
      const Case c = make_case(make_problem(dtype, head_dim, 16, 8), 2, 1023, 1024);
      const std::string text =
          pattern_text({dense(), causal(), streaming(64, 256), window(9, 9)}, 4);
      runs.push_back({text, c, {}});
      if (dtype == DType::bfloat16) runs.push_back({text, c, kPortable});
    }
  }
  check_runs(runs);
}

TEST_CASE("twenty launches give the same bits: 64 heads of three kinds") {
  // Rows differ much in what they see; without a density one sees all keys, the others one block.
  std::vector<Run> runs;
  Case c = make_case(make_problem(DType::bfloat16, 128, 64, 16), 1, 2048, 2048);
  for (const double density : {0.0, 0.1, 1.0}) {
    c.inputs = {girih::verify::random_blocks("m", 1, 16, 32, 32, density, 3, 9)};
    if (density == 0) {
      for (int i = 0; i < 16 * 32; ++i) {
        c.inputs[0].visible[static_cast<std::size_t>(32 * i + i % 32)] = 1;
      }
      std::fill_n(c.inputs[0].visible.begin() + 32 * 20, 32, std::uint8_t{1});
    }
    for (const TileConfig& tile : kKernels) {
      runs.push_back({"heads(0-19: causal, 20-39: " + oracle::text(streaming(16, 100)) +
                          ", 40-63: blocks(m, q=64, kv=64))",
                      c, tile});
    }
  }
  check_runs(runs);
}

TEST_CASE("twenty launches give the same bits: blocks of every size and density") {
  std::vector<Run> runs;
  std::uint64_t seed = 0;
  for (const auto& [q_block, kv_block] :  // those of 16 and 32 keys are gathered on Hopper
       {std::pair{64, 16}, {64, 32}, {128, 16}, {128, 32}, {64, 64}, {128, 128}}) {
    constexpr int kRows = 1023, kKeys = 4000;
    const std::string text = fmt::format("blocks(m, q={}, kv={})", q_block, kv_block);
    for (const double density : {0.25, 0.5, 0.1}) {
      const bool skewed = density == 0.1;
      InputData blocks = girih::verify::random_blocks("m", 1, 2, (kRows + q_block - 1) / q_block,
                                                      (kKeys + kv_block - 1) / kv_block, density,
                                                      skewed ? 3 : 0, ++seed);
      if (skewed) skew_rows(blocks);
      for (const TileConfig& tile : kKernels) {
        runs.push_back({text, case_with({blocks}, kRows, kKeys), tile});
      }
    }
  }
  check_runs(runs);
}

TEST_CASE("twenty launches give the same bits: columns and slashes") {
  const InputData lists = girih::verify::random_slashes("v", 1, 8, 3000, 300, 200, 3);
  check_kernels("vertical_slash(v)", case_with({lists}, 1500, 3000));
}

TEST_CASE("twenty launches give the same bits: a neighborhood in bricks") {
  const oracle::Expr video = neighborhood({{12, 6, 1, 1}, {19, 8, 1, 1}, {21, 9, 1, 1}});
  const int tokens = static_cast<int>(oracle::grid_tokens(video));
  check_kernels(oracle::text(video), case_with({}, tokens, tokens + 50));
}

TEST_CASE("twenty launches give the same bits: documents") {
  const InputData documents = girih::verify::random_documents("doc", 1, 1, 2000, 3000, 300, 5);
  check_kernels("causal & segments(doc)", case_with({documents}, 2000, 3000));
}

TEST_CASE("twenty launches give the same bits: intervals of rows") {
  const InputData columns = girih::verify::random_columns("c", 1, 2, 2000, 3000, 2, 400, 7);
  check_kernels("columns(c)", case_with({columns}, 2000, 3000));
}

TEST_CASE("twenty launches give the same bits: an expression over tensors") {
  // Stripes of 200 keys are there for every row, or only for those of their own document.
  InputData documents{.kind = InputInfo::Kind::int_tensor, .name = "doc", .shape = {3000}};
  for (int token = 0; token < 3000; ++token) documents.numbers.push_back(token / 170);
  const InputData stripes = girih::verify::random_int_tensor(
      {.name = "stripe", .kind = InputInfo::Kind::int_tensor, .rank = 1}, {.free = 15}, 3, 8);
  check_kernels("causal & expr(\"doc[q] == doc[k] || stripe[k / 200] == 0\")",
                case_with({documents, stripes}, 2000, 3000));
}

TEST_CASE("twenty launches give the same bits: a sequence of 131072") {
  constexpr int kLength = 1 << 17;
  check_kernels("causal & (sink(64) | window(left=1023))",
                make_case(make_problem(DType::bfloat16, 128, 1, 1), 1, kLength, kLength));
}
