// The exact mask test of neighborhoods whose tiles are bricks of their grid: at grids that are no
// multiple of a brick, with extra keys, in every layout; their values; and who does not get them.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "hashed_workload.hpp"
#include "plan/plan.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::TileConfig;

namespace {

bool on_hopper() { return girih::verify::Device().arch() == "sm_90"; }

void check_bricks(const Binding& binding) {
  if (!on_hopper()) return;
  const auto plan = girih::plan::make_plan(girih::Pattern::parse(binding.pattern), binding.problem,
                                           girih::plan::Arch::parse(girih::verify::Device().arch()),
                                           binding.tile);
  CHECK_MESSAGE(plan.spec.bricks.has_value(), binding.pattern);
}

struct GridCase {
  std::vector<oracle::Expr> classes;  // on one grid
  int extra_keys = 0;
  int head_dim = 128;
  Layout layout = Layout::bshd;
  TileConfig tile = {};
};

Binding binding_of(const GridCase& c) {
  const int heads = kHashes * static_cast<int>(c.classes.size());
  Problem problem = make_problem(c.head_dim % 128 == 0 ? DType::bfloat16 : DType::float16,
                                 c.head_dim, heads, c.extra_keys % 2 == 0 ? heads : 2);
  problem.layout = c.layout;
  return {pattern_text(c.classes, kHashes), problem, c.tile};
}

// Every row of two sequences, with and without a cap on the grid of CTAs.
void check_cases(const std::vector<GridCase>& cases) {
  std::vector<Binding> bindings;
  for (const GridCase& c : cases) bindings.push_back(binding_of(c));
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (!bound[i].kernel) continue;
    check_bricks(bindings[i]);
    const int tokens = static_cast<int>(oracle::grid_tokens(cases[i].classes[0]));
    const Lengths lengths{tokens, tokens + cases[i].extra_keys};
    const std::vector<Expected> expected = {
        Expected(cases[i].classes, oracle::bottom_right(lengths.q, lengths.k))};
    HashedWorkload workload(mask_case(bindings[i].problem, 2, lengths), i);
    for (const int max_ctas : {0, 2}) {
      workload.parameters().max_ctas = max_ctas;
      const auto outcome = workload.check(*bound[i].kernel, expected);
      CHECK_OUTCOME(outcome,
                    fmt::format("{} {} with {} extra keys, max_ctas {}", bindings[i].pattern,
                                describe(bindings[i].problem), cases[i].extra_keys, max_ctas));
    }
  }
}

oracle::Expr image(long long rows, long long columns, long long window, bool causal = false) {
  return neighborhood({{rows, window, 1, 1, causal}, {columns, window, 1, 1}});
}

}  // namespace

TEST_CASE("bricks: grids that are no multiple of them show exactly their keys") {
  const std::vector<oracle::Expr> small = {image(13, 21, 5), image(13, 21, 13),
                                           neighborhood({{13, 7, 3, 1}, {21, 9, 9, 1, true}})};
  const std::vector<oracle::Expr> video = {
      neighborhood({{5, 2, 1, 1}, {9, 3, 1, 1}, {11, 4, 1, 1}}),
      neighborhood({{5, 2, 1, 1, true}, {9, 4, 2, 1}, {11, 3, 3, 1}}),
      neighborhood({{5, 1, 1, 1}, {9, 3, 3, 1, true}, {11, 6, 6, 1, true}})};
  const std::vector<oracle::Expr> longer = {
      neighborhood({{12, 6, 1, 1}, {19, 8, 1, 1}, {21, 9, 1, 1}}),
      neighborhood({{12, 5, 1, 1, true}, {19, 7, 4, 1}, {21, 21, 1, 1}})};
  check_cases({{small},
               {video},
               {longer},
               {{image(64, 64, 20)}},
               {{image(100, 37, 16, true)}},
               {{neighborhood({{1, 1, 1, 1}, {40, 9, 1, 1}, {50, 11, 1, 1}})}},
               {{neighborhood({{120, 9, 1, 1}, {130, 11, 1, 1}, {1, 1, 1, 1}})}},
               {{neighborhood({{56, 7, 7, 1}, {56, 7, 7, 1}})}}});
}

TEST_CASE("bricks: dilation groups show exactly their keys") {
  const std::vector<oracle::Expr> plane = {neighborhood({{61, 9, 1, 2}, {83, 7, 3, 3}}),
                                           neighborhood({{61, 20, 4, 2, true}, {83, 5, 1, 3}})};
  const std::vector<oracle::Expr> video = {
      neighborhood({{13, 3, 1, 2}, {19, 5, 1, 1}, {50, 8, 2, 3}}),
      neighborhood({{13, 2, 2, 2, true}, {19, 9, 1, 1}, {50, 5, 1, 3, true}})};
  // Bricks of 16 x 8 and more, of which groups of 32 tokens on an axis have none behind the second.
  const std::vector<oracle::Expr> uneven = {neighborhood({{65, 12, 1, 2}, {65, 12, 1, 2}})};
  std::vector<GridCase> cases = {{uneven},
                                 {{neighborhood({{120, 9, 1, 8}, {128, 9, 1, 4}})}},
                                 {{neighborhood({{33, 1, 1, 1}, {1000, 60, 1, 8}})}},  // 4 x 32
                                 {{neighborhood({{3, 1, 1, 3}, {40, 9, 1, 1}, {50, 11, 1, 2}})}},
                                 {{neighborhood({{5, 5, 5, 1}, {56, 7, 7, 2}, {28, 7, 7, 1}})}}};
  for (const int head_dim : {64, 128, 256}) {
    cases.push_back({plane, head_dim == 64 ? 77 : 0, head_dim, Layout::bhsd});
    cases.push_back({video, head_dim == 128 ? 130 : 0, head_dim});
  }
  check_cases(cases);
}

TEST_CASE("bricks: keys behind the grid are visible to every row") {
  const std::vector<oracle::Expr> classes = {
      neighborhood({{12, 6, 1, 1}, {19, 8, 1, 1}, {21, 9, 1, 1}}),
      neighborhood({{12, 1, 1, 1, true}, {19, 1, 1, 1}, {21, 1, 1, 1}})};
  check_cases({{classes, 1},
               {classes, 77},
               {classes, 128},
               {classes, 300},
               {{image(33, 70, 11)}, 200},
               {{image(33, 70, 11)}, 77, 64, Layout::bhsd}});
}

TEST_CASE("bricks: every width of heads, layout and tile shows exactly its keys") {
  const std::vector<oracle::Expr> video = {
      neighborhood({{10, 5, 1, 1}, {17, 7, 1, 1}, {21, 6, 1, 1}}),
      neighborhood({{10, 4, 2, 1, true}, {17, 9, 1, 1}, {21, 21, 1, 1}})};
  const std::vector<oracle::Expr> plane = {image(50, 61, 15),
                                           neighborhood({{50, 20, 5, 1}, {61, 9, 1, 1, true}})};
  std::vector<GridCase> cases;
  for (const int head_dim : {16, 64, 80, 96, 128, 192, 256}) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      cases.push_back({video, 0, head_dim, layout});
      cases.push_back({plane, 0, head_dim, layout});
    }
  }
  for (const TileConfig& tile :
       {TileConfig{.block_m = 128, .block_n = 64}, TileConfig{.block_m = 128, .block_n = 80},
        TileConfig{.block_m = 128, .block_n = 144, .num_q_stages = 1},
        TileConfig{.block_m = 192, .block_n = 64}, TileConfig{.block_m = 192, .block_n = 80}}) {
    cases.push_back({plane, 0, 128, Layout::bshd, tile});
    if (tile.block_n < 100) cases.push_back({video, 0, 128, Layout::bhsd, tile});
  }
  check_cases(cases);
}

TEST_CASE("bricks: values are right, also under a soft cap and with keys behind the grid") {
  girih::verify::GpuReference reference;
  const oracle::Expr video = neighborhood({{12, 6, 1, 1}, {19, 8, 1, 1}, {21, 9, 1, 1}});
  const std::vector<oracle::Expr> images = {image(45, 83, 17),
                                            neighborhood({{45, 3, 1, 1, true}, {83, 60, 1, 1}})};
  const oracle::Expr dilated = neighborhood({{45, 9, 1, 2}, {83, 17, 1, 1}});
  struct Values {
    std::vector<oracle::Expr> classes;
    const char* modifiers;
    int head_dim;
  };
  for (const Values& values :
       {Values{{video}, "", 128}, Values{{video}, " with softcap(30)", 64},
        Values{{images[0]}, " with softcap(30)", 128}, Values{images, "", 128},
        Values{{images[0]}, "", 256}, Values{{dilated}, " with softcap(30)", 128}}) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      for (const int extra : {0, 50}) {
        Case c;
        c.problem = make_problem(DType::bfloat16, values.head_dim, 4, 2);
        c.problem.layout = layout;
        c.batch = 2;
        c.seqlen_q = static_cast<int>(oracle::grid_tokens(values.classes[0]));
        c.seqlen_k = c.seqlen_q + extra;
        const int heads_per_class = 4 / static_cast<int>(values.classes.size());
        const std::string text = pattern_text(values.classes, heads_per_class) + values.modifiers;
        check_bricks({text, c.problem, {}});
        const auto report = girih::verify::verify_attention(
            girih::jit::compile(girih::Pattern::parse(text)), c,
            oracle_mask(values.classes, heads_per_class, c), reference);
        ++kernels_bound;
        rows_checked += report.rows_checked;
        CHECK_MESSAGE(report.ok(), text << ", " << extra << " extra keys: " << report.rows_wrong
                                        << " of " << report.rows_checked << " rows wrong, "
                                        << report.touched_padding << " written outside");
        CHECK(report.rows_checked > 0);
      }
    }
  }
}

TEST_CASE(
    "bricks: shortened sequences are refused by a kernel of whole grids, and right in others") {
  const oracle::Expr expr = image(13, 21, 5);
  const int tokens = 13 * 21;
  const std::string text = pattern_text({expr}, kHashes);
  Problem whole = make_problem(DType::bfloat16, 64, kHashes, kHashes), partial = whole;
  partial.partial_keys = true;
  Case c = mask_case(partial, 2, {tokens, tokens});
  c.lengths.used_k = {tokens - 20, tokens};
  HashedWorkload workload(c, 3);
  const std::vector<Expected> expected = expected_of({expr}, c);
  CHECK_OUTCOME(workload.check(girih::jit::compile(girih::Pattern::parse(text), partial), expected),
                "partial_keys");
  if (!on_hopper()) return;
  std::string refusal;
  workload.parameters().problem.partial_keys = false;
  try {
    workload.check(girih::jit::compile(girih::Pattern::parse(text), whole), expected);
  } catch (const girih::Error& error) {
    CHECK(error.code() == girih::Errc::invalid_argument);
    refusal = error.what();
  }
  CHECK(refusal.find("seqused_k was given") == 0);
  CHECK(refusal.find("problem.partial_keys") != refusal.npos);
}

TEST_CASE("bricks: a program takes tokens in a row where heads are too far apart for bricks") {
  constexpr int kTokens = 13 * 21, kHeads = 2, kWidth = 64;
  constexpr std::int64_t kApart = std::int64_t{1} << 31;
  const girih::Pattern pattern = girih::Pattern::parse(oracle::text(image(13, 21, 5)));
  const Problem whole = make_problem(DType::bfloat16, kWidth, kHeads, kHeads);
  Problem partial = whole;
  partial.partial_keys = true;
  girih::verify::Workload workload(mask_case(whole, 1, {kTokens, kTokens}));
  workload.fill_normal(7);
  const auto results = [&] {
    girih::verify::synchronize();
    workload.download_outputs();
    return result_bits(workload);
  };
  workload.poison_outputs();
  girih::jit::compile(pattern, partial).launch(workload.args());
  const std::vector<std::uint16_t> expected = results();

  // Keys of both heads, and values behind them.
  constexpr std::int64_t kRows = std::int64_t{kTokens} * kWidth;
  girih::cuda::Buffer far(2 * static_cast<std::size_t>(kApart + 2 * kRows));
  for (int h = 0; h < kHeads; ++h) {
    for (int token = 0; token < kTokens; ++token) {
      const std::int64_t at = h * kApart + token * kWidth;
      far.upload(workload.k_row(0, token, h), 2 * kWidth, 2 * static_cast<std::size_t>(at));
      far.upload(workload.v.row(0, token, h), 2 * kWidth, 2 * static_cast<std::size_t>(at + kRows));
    }
  }
  girih::jit::Args args = workload.args();
  args.k.data = far.data();
  args.v.data = static_cast<std::uint16_t*>(far.data()) + kRows;
  args.k.stride = args.v.stride = {0, kWidth, kApart, 1};
  workload.poison_outputs();
  girih::jit::compile(pattern)(args);
  CHECK(results() == expected);
  rows_checked += kTokens * kHeads;
  if (!on_hopper()) return;
  std::string refusal;
  try {
    girih::jit::compile(pattern, whole).launch(args);
  } catch (const girih::Error& error) {
    refusal = error.what();
  }
  CHECK(refusal.find("a tensor has stride 2147483648 between its 2 heads") == 0);
}

TEST_CASE("sanitizer: bricks of a small video show exactly their keys") {
  check_cases({{{neighborhood({{5, 3, 1, 1}, {9, 3, 1, 1}, {11, 3, 1, 1}})}, 9, 64}});
}

TEST_CASE("sanitizer: bricks of the dilation groups of a small image show exactly their keys") {
  check_cases({{{neighborhood({{33, 5, 1, 2}, {33, 5, 1, 2}})}, 9, 64}});
}
