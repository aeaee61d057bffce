// vertical_slash on a GPU: the exact mask test of lists that the GPU makes into windows, of key
// tiles gathered from them and of consecutive ones, and values, for keys are gathered twice, once
// for K and once for V.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "hashed_workload.hpp"
#include "planes.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

// The lists of each class, repeated for its kHashes heads; some entries are not there.
InputData lists_for(const Case& c, int batch, bool by_head, int num_vertical, int num_slash) {
  const int classes = c.problem.num_heads / kHashes;
  InputData data = girih::verify::random_slashes("v", batch, classes, std::max(c.seqlen_k, 1),
                                                 num_vertical, num_slash, c.seed);
  std::mt19937 random(static_cast<unsigned>(c.seed));
  for (std::vector<std::int32_t>* list : {&data.vertical, &data.slash}) {
    for (std::int32_t& entry : *list) {
      if (random() % 5 == 0) entry = random() % 2 == 0 ? -1 : c.seqlen_k + 1000;
    }
    const auto row = static_cast<std::ptrdiff_t>(list == &data.vertical ? num_vertical : num_slash);
    for (std::ptrdiff_t plane = 0; plane < batch * classes; ++plane) {
      std::shuffle(list->begin() + plane * row, list->begin() + (plane + 1) * row, random);
    }
    if (!by_head) continue;
    std::vector<std::int32_t> repeated;
    for (std::ptrdiff_t plane = 0; plane < batch * classes; ++plane) {
      for (int i = 0; i < kHashes; ++i) {
        repeated.insert(repeated.end(), list->begin() + plane * row,
                        list->begin() + (plane + 1) * row);
      }
    }
    *list = std::move(repeated);
  }
  if (by_head) data.heads = c.problem.num_heads;
  return data;
}

enum class Mixture { alone, with_others, in_expressions };

std::vector<oracle::Expr> classes_of(const InputData& data, const Case& c, int b,
                                     const oracle::Sizes& sizes, Mixture mixture,
                                     const std::vector<int>& rows) {
  const auto plane = [&](int head_class) {
    return slashes_of(data, data.plane(b, head_class * kHashes, c.problem.num_heads), sizes, rows);
  };
  switch (mixture) {
    case Mixture::alone:
      return {plane(0), plane(1), plane(2)};
    case Mixture::with_others:
      return {causal(), plane(1), streaming(16, 100)};
    case Mixture::in_expressions:
      return {both(window(200, 0), plane(0)),
              {Kind::any_of, {}, {plane(1), streaming(3, 100)}},
              both(causal(), negation(plane(2)))};
  }
  return {};
}

void check_lists(const Case& c, const InputData& data, Mixture mixture,
                 const girih::TileConfig& tile = {}) {
  std::vector<Expected> expected;
  std::string text;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < sizes.size(); ++b) {
    const auto classes =
        classes_of(data, c, static_cast<int>(b), sizes[b], mixture, all_rows(sizes[b].seqlen_q));
    if (b == 0) text = pattern_text(classes, kHashes);
    expected.emplace_back(classes, sizes[b]);
  }
  check_kernels(text, with_input(c, data), {&tile, 1}, expected,
                fmt::format("{}, {} columns, {} slashes", text, data.num_vertical, data.num_slash));
}

Case slash_case(int head_dim, int batch, Lengths lengths, std::uint64_t seed) {
  Case c = mask_case(make_problem(DType::bfloat16, head_dim, 3 * kHashes, 3), batch, lengths);
  c.seed = seed;
  return c;
}

}  // namespace

TEST_CASE("columns and slashes show exactly their keys, alone, beside other heads and in masks") {
  constexpr Lengths kSlashLengths[] = {{1024, 1024}, {1024, 1023}, {128, 217}, {300, 2111},
                                       {700, 333},   {1, 5175},    {15, 15}};
  constexpr std::pair<int, int> kCounts[] = {{0, 0}, {40, 10}, {300, 150}, {200, 3}, {5, 400}};
  std::uint64_t turn = 0;
  for (const int head_dim : {32, 64, 96, 128, 192, 256}) {
    for (const Lengths lengths : kSlashLengths) {
      for (const Mixture mixture :
           {Mixture::alone, Mixture::with_others, Mixture::in_expressions}) {
        const Case c = slash_case(head_dim, 2, lengths, ++turn);
        const auto [num_vertical, num_slash] = kCounts[turn % std::size(kCounts)];
        const InputData data =
            lists_for(c, turn % 4 == 3 ? 1 : 2, turn % 2 == 0, num_vertical, num_slash);
        for (const girih::TileConfig& tile : kKernels) {
          // Every mixture at the widths whose portable tiles differ most.
          if (tile.portable && (head_dim % 128 != 0 || lengths.q > 1000)) continue;
          check_lists(c, data, mixture, tile);
        }
      }
    }
  }
}

TEST_CASE("columns and slashes show exactly their keys in the portable kernel and in other tiles") {
  std::uint64_t turn = 100;
  for (const Mixture mixture : {Mixture::alone, Mixture::with_others}) {
    for (const int head_dim : {64, 128}) {
      const Case c = slash_case(head_dim, 2, {700, 1500}, ++turn);
      const InputData data = lists_for(c, 2, true, 200, 100);
      check_lists(c, data, mixture, kPortable);
      for (const int block_n : {64, 96, 112, 128}) {
        girih::TileConfig tile;
        tile.block_n = block_n;
        check_lists(c, data, mixture, tile);
      }
    }
  }
}

TEST_CASE("columns and slashes follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(4);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    const Case c = with_ragged_lengths(slash_case(64, 7, {300, 720}, 600), layout, random);
    for (const int batch : {1, 7}) {
      for (const Mixture mixture : {Mixture::alone, Mixture::with_others}) {
        const InputData data = lists_for(c, batch, batch == 1, 60, 20);
        for (const girih::TileConfig& tile : kKernels) check_lists(c, data, mixture, tile);
      }
    }
  }
}

TEST_CASE("positions given by the launch move slashes, and columns stay") {
  for (const int q_start : {0, 37, 900, 2000}) {
    Case c = slash_case(128, 1, {300, 1000}, 700 + static_cast<std::uint64_t>(q_start));
    c.q_start = q_start;
    c.k_start = q_start / 10;
    const InputData data = lists_for(c, 1, true, 100, 40);
    for (const girih::TileConfig& tile : kKernels) check_lists(c, data, Mixture::alone, tile);
  }
}

TEST_CASE("columns and slashes of MInference's counts show exactly their keys at 131072") {
  const int length = 1 << 17;
  Case c = mask_case(make_problem(DType::bfloat16, 128, kHashes, 1), 1, {length, length});
  std::vector<int> rows;
  for (int q = 0; q < length; q += 4091) rows.push_back(q);
  rows.push_back(length - 1);
  for (const auto& [num_vertical, num_slash] : {std::pair{1000, 6096}, {30, 800}, {3500, 100}}) {
    c.seed = static_cast<std::uint64_t>(num_slash);
    const InputData data =
        girih::verify::random_slashes("v", 1, 1, length, num_vertical, num_slash, c.seed);
    const oracle::Sizes sizes = with_heads(oracle::bottom_right(length, length), c.problem);
    const std::vector<oracle::Expr> classes = {slashes_of(data, 0, sizes, rows)};
    const std::vector<Expected> expected = {Expected(classes, sizes, rows)};
    check_kernels("vertical_slash(v)", with_input(c, data), kKernels, expected,
                  fmt::format("{} columns, {} slashes", num_vertical, num_slash));
  }
}

TEST_CASE("values under columns and slashes are right, where each head has its own and some none") {
  girih::verify::GpuReference gpu_reference;
  std::uint64_t seed = 0;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 80, 128, 192, 256}) {
      Case c = mask_case(make_problem(dtype, head_dim, 3 * kHashes, 3), 1, {1500, 2000});
      c.seed = ++seed;
      const InputData data = lists_for(c, 1, true, 400, 30);
      c.inputs = {data};
      const oracle::Sizes sizes = sizes_of(c).front();
      const auto classes =
          classes_of(data, c, 0, sizes, Mixture::with_others, all_rows(sizes.seqlen_q));
      for (const girih::TileConfig& tile : kKernels) {
        if (tile.portable && dtype == DType::float16) continue;
        const girih::jit::Program program = girih::jit::compile(
            girih::Pattern::parse(pattern_text(classes, kHashes)), {.tile = tile});
        const girih::verify::Report report = girih::verify::verify_attention(
            program, c, oracle_mask(classes, kHashes, c), gpu_reference);
        ++kernels_bound;
        rows_checked += report.rows_checked;
        CHECK(report.rows_checked > 0);
        CHECK_MESSAGE(report.ok(), describe(c.problem)
                                       << ": " << report.rows_wrong << " rows wrong, error "
                                       << report.error << " of " << report.allowed_error
                                       << " allowed in " << report.closest << ", tile "
                                       << describe(tile));
      }
    }
  }
}

TEST_CASE("entries of columns and slashes that are out of range are ignored, or refused if asked") {
  const Case c = slash_case(64, 1, {200, 300}, 800);
  const auto kernel = girih::jit::compile(girih::Pattern::parse("vertical_slash(v)"), c.problem);
  const auto build = [&](std::int32_t column, std::int32_t distance) {
    InputData data{.kind = girih::InputInfo::Kind::slashes, .name = "v"};
    data.num_vertical = data.num_slash = 2;
    data.vertical = {3, column};
    data.slash = {distance, 5};
    girih::verify::Workload workload(with_input(c, data));
    const girih::jit::Args args = workload.args();
    const girih::verify::Buffer memory(kernel.workspace_bytes(args));
    try {
      kernel.build_lists(args, {memory.data(), memory.size()}, girih::jit::Check::yes);
    } catch (const girih::Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(build(299, 299) == "");
  CHECK(build(-1, -1) == "");  // padding
  CHECK(build(300, -2) ==
        "the input 'v' has 2 entries out of range: columns must be from 0 to 299 and distances "
        "from 0 to 362; pad rows with -1");
}

TEST_CASE("sanitizer: columns and slashes show exactly their keys") {
  Case c = slash_case(64, 3, {150, 210}, 41);
  c.problem.layout = Layout::thd;
  c.lengths.q = {150, 0, 129};
  c.lengths.k = {210, 64, 1};
  c.max_ctas = 2;
  for (const girih::TileConfig& tile : kKernels) {
    check_lists(c, lists_for(c, 3, true, 30, 20), Mixture::with_others, tile);
  }
  c.problem.layout = Layout::bshd;
  c.lengths = {};
  check_lists(c, lists_for(c, 1, false, 100, 3), Mixture::alone);
}
