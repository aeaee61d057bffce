// The exact mask test of closed forms: every atom, in every tile, at every width and length.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../oracle/golden.hpp"
#include "hashed_workload.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::TileConfig;
using Kind = oracle::Expr::Kind;

namespace {

const std::vector<Lengths> kLengths = {
    {113, 203},   {128, 217},   {113, 211},   {108, 256}, {256, 512}, {512, 256},   {1024, 1024},
    {1023, 1024}, {1024, 1023}, {2048, 2048}, {15, 15},   {1, 1},     {5175, 5175}, {8192, 8192},
};

std::vector<oracle::Expr> every_atom() {
  std::vector<oracle::Expr> atoms = {dense(), causal()};
  for (const auto& [left, right] : std::vector<std::pair<int, int>>{
           {-1, -1}, {0, 0}, {0, -1}, {-1, 0}, {255, -1}, {63, 17}, {-1, 5}, {1000, 1000}}) {
    atoms.push_back(window(left, right));
  }
  for (const int n : {0, 1, 64, 200, 100000}) atoms.push_back(sink(n));
  for (const int n : {0, 1, 100, 100000}) {
    for (const Kind kind : {Kind::last_keys, Kind::first_queries, Kind::last_queries}) {
      atoms.push_back(atom(kind, {n}));
    }
  }
  for (const auto& [begin, end] :
       std::vector<std::pair<int, int>>{{-20, 30}, {64, 65}, {7, 7}, {100, 100000}}) {
    atoms.push_back(atom(Kind::queries, {begin, end}));
    atoms.push_back(atom(Kind::keys, {std::max(begin, 0), end}));
  }
  for (const int n : {1, 50, 128, 1024}) atoms.push_back(atom(Kind::chunk, {n}));
  for (const std::vector<long long>& bounds : std::vector<std::vector<long long>>{
           {1, 0, 64}, {0, 1, 17}, {-1, 0, 32}, {2, -1, 50}, {3, 3, 128}, {0, 0, 1}}) {
    atoms.push_back(atom(Kind::block_window, bounds));
  }
  for (const std::vector<long long>& blocks : std::vector<std::vector<long long>>{
           {1, 2, 128, 1}, {0, 1, 64, 1}, {2, 1, 32, 0}, {1, 3, 50, 1}, {0, 0, 16, 1}}) {
    atoms.push_back(atom(Kind::block_streaming, blocks));
  }
  const std::vector<oracle::Strided> s2 = {
      {.left = 10, .right = 10, .stride = 3, .block = 16},
      {.left = 1, .right = 1, .stride = 8, .block = 64, .offset = 1},
      {.left = 8, .right = 8, .stride = 1, .block = 32},
      {.left = 16, .right = 2, .stride = 8, .block = 128, .kv_heads = true},
      {.left = 4, .right = 4, .stride = 5, .block = 20, .step = -3, .dense_heads = 2},
      {.left = 2, .right = 2, .stride = 3, .block = 16, .homo = true},
      {.left = 2, .right = 1, .stride = 3, .block = 64, .dense_heads = 1, .relative = true},
      {.left = 3, .right = 3, .stride = 10000, .block = 1},  // beyond the keys but in some heads
      {.block = 32, .offset = -7, .ranges = {{-2, 4}, {3, 1}, {9, 2}, {0, 7}}},
  };
  for (const oracle::Strided& blocks : s2) atoms.push_back(strided(blocks));
  for (const int d : {1, 2, 7, 128, 300}) atoms.push_back(atom(Kind::dilated, {d}));
  const std::size_t count = atoms.size();
  for (std::size_t i = 0; i < count; ++i) atoms.push_back(negation(atoms[i]));
  return atoms;
}

// Kinds of heads that meet in one launch.
std::vector<oracle::Expr> mixed_classes() {
  return {dense(),
          causal(),
          window(255, -1),
          window(63, 17),
          sink(200),
          negation(causal()),
          negation(window(63, 17)),
          negation(sink(64)),
          atom(Kind::last_keys, {70}),
          negation(atom(Kind::last_queries, {100})),
          {Kind::any_of, {}, {atom(Kind::queries, {20, 150}), atom(Kind::dilated, {3})}},
          negation(atom(Kind::keys, {30, 90})),
          both(causal(), atom(Kind::chunk, {100})),
          atom(Kind::block_window, {1, 0, 48}),
          atom(Kind::block_streaming, {1, 2, 64, 1}),
          both(causal(), strided({.left = 2, .right = 2, .stride = 5, .block = 24, .offset = 1}))};
}

// All types and widths, with 4, 2 and 1 KV heads for a class' four heads.
const std::vector<Problem> kProblems = {
    make_problem(DType::bfloat16, 128, kHashes, 2),
    make_problem(DType::bfloat16, 64, kHashes, 4),
    make_problem(DType::float16, 128, kHashes, 1),
    make_problem(DType::float16, 64, kHashes, 2),
};

// Every atom alone in a launch, and its negation, in all heads.
void check_every_atom(const std::vector<Problem>& problems, const std::vector<Lengths>& lengths,
                      const TileConfig& tile) {
  const std::vector<oracle::Expr> atoms = every_atom();
  std::vector<Binding> bindings;
  for (const Problem& problem : problems) {
    for (const oracle::Expr& atom : atoms) {
      bindings.push_back({pattern_text({atom}, kHashes), problem, tile});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);

  for (const Lengths& length : lengths) {
    const auto expected_of_atom = [&](std::size_t a, std::size_t p) {
      return Expected({atoms[a]},
                      with_heads(oracle::bottom_right(length.q, length.k), problems[p]));
    };
    std::vector<std::vector<Expected>> expected;
    for (std::size_t a = 0; a < atoms.size(); ++a) expected.push_back({expected_of_atom(a, 0)});
    for (std::size_t p = 0; p < problems.size(); ++p) {
      const int batch = length.q <= 1024 ? 2 : 1;
      HashedWorkload workload(mask_case(problems[p], batch, length), 100 + p);
      for (std::size_t a = 0; a < atoms.size(); ++a) {
        const std::size_t index = p * atoms.size() + a;
        if (!bound[index].kernel) continue;
        if (p > 0 && oracle::depends_on_head(atoms[a])) {
          if (length.q > 2048) continue;  // the oracle would take long
          expected[a] = {expected_of_atom(a, p)};
        }
        const auto outcome = workload.check(*bound[index].kernel, expected[a]);
        CHECK_OUTCOME(outcome,
                      fmt::format("{} {} at {} x {}, tile {}", bindings[index].pattern,
                                  describe(problems[p]), length.q, length.k, describe(tile)));
      }
    }
  }
}

}  // namespace

TEST_CASE("every atom and its negation shows exactly its keys at every length") {
  std::mt19937 random(11);
  std::vector<Lengths> lengths = kLengths;
  for (std::size_t i = 0; i < kLengths.size() - 2; ++i) {  // true lengths, short of the maximum
    const auto shorter = [&](int length) {
      return std::max(1, length - static_cast<int>(random() % 21));
    };
    lengths.push_back({shorter(kLengths[i].q), shorter(kLengths[i].k)});
  }
  check_every_atom(kProblems, lengths, {});
}

TEST_CASE("every atom and its negation shows exactly its keys in the portable kernel") {
  check_every_atom({kProblems[0], kProblems[3]},
                   {{1, 1}, {15, 15}, {113, 203}, {128, 217}, {512, 256}, {1023, 1024}, {700, 333}},
                   kPortable);
}

namespace {

// Binds every tile that the plan accepts for every problem, and launches each with and without a
// cap on the grid. Returns how many there were.
std::size_t check_tiles(const std::vector<oracle::Expr>& classes,
                        const std::vector<Problem>& problems, const std::vector<TileConfig>& tiles,
                        const std::vector<Lengths>& lengths) {
  std::vector<Binding> bindings;
  for (const Problem& problem : problems) {
    for (const TileConfig& tile : tiles) {
      bindings.push_back({pattern_text(classes, kHashes), problem, tile});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings);
  std::size_t num_bound = 0;
  for (std::size_t i = 0; i < bound.size(); ++i) {
    num_bound += bound[i].kernel.has_value();
    if (bound[i].kernel) continue;
    const bool refused =
        bound[i].code == girih::Errc::unsupported || bound[i].code == girih::Errc::invalid_argument;
    CHECK_MESSAGE(refused, describe(bindings[i].tile) << ": " << bound[i].message);
  }

  for (const Lengths length : lengths) {
    for (std::size_t begin = 0; begin < bindings.size(); begin += tiles.size()) {
      const std::vector<Expected> expected = {Expected(
          classes, with_heads(oracle::bottom_right(length.q, length.k), bindings[begin].problem))};
      HashedWorkload workload(mask_case(bindings[begin].problem, 1, length), 7);
      for (std::size_t i = begin; i < begin + tiles.size(); ++i) {
        if (!bound[i].kernel) continue;
        for (const int max_ctas : {0, 2}) {
          workload.parameters().max_ctas = max_ctas;
          const auto outcome = workload.check(*bound[i].kernel, expected);
          CHECK_OUTCOME(
              outcome,
              fmt::format("tile {}, {} at {} x {}, max_ctas {}", describe(bindings[i].tile),
                          describe(bindings[i].problem), length.q, length.k, max_ctas));
        }
      }
    }
  }
  return num_bound;
}

const int kMixedHeads = kHashes * static_cast<int>(mixed_classes().size());

}  // namespace

TEST_CASE("every tile configuration shows exactly the keys of all atoms in one launch") {
  // All that the plan accepts are tried; block_n beyond 128 takes more words for a row's mask.
  const std::vector<TileConfig> tiles = {
      {64, 16, 2, 4},      {64, 32, 3, 4},       {64, 48, 2, 4},       {64, 64, 4, 4},
      {64, 128, 2, 4},     {64, 144, 2, 4},      {64, 256, 2, 4},      {128, 32, 4, 4},
      {128, 64, 2, 4},     {128, 64, 2, 8},      {128, 64, 3, 8},      {128, 128, 2, 4},
      {128, 128, 2, 8},    {256, 64, 2, 8},      {128, 128, 2, 12, 2}, {128, 64, 4, 12, 2},
      {128, 16, 2, 12, 1}, {128, 176, 2, 12, 1}, {192, 128, 2, 16, 2}, {192, 48, 3, 16, 1},
      {128, 16, 8, 12, 2}, {128, 32, 7, 12, 1},  {192, 16, 6, 16, 2}};
  std::vector<Problem> problems;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128})
      problems.push_back(make_problem(dtype, head_dim, kMixedHeads, 8));
  }
  const std::size_t num_bound =
      check_tiles(mixed_classes(), problems, tiles,
                  {{15, 15}, {113, 203}, {512, 256}, {1023, 1024}, {1024, 1023}});
  CHECK(num_bound >= problems.size() * tiles.size() / 3);
}

TEST_CASE("every tile that a tuner may propose shows exactly the keys of four kinds of heads") {
  const std::vector<oracle::Expr> classes = {causal(), streaming(70, 100), window(63, 17),
                                             negation(window(40, 90))};
  const auto arch = girih::plan::Arch::parse(girih::verify::Device().arch());
  for (const int head_dim : {64, 96, 128, 192, 256}) {
    const DType dtype = head_dim % 128 == 0 ? DType::bfloat16 : DType::float16;
    const Problem problem = make_problem(dtype, head_dim, 4 * kHashes, 8);
    const auto pattern = girih::Pattern::parse(pattern_text(classes, kHashes));
    const TileConfig own = girih::plan::make_plan(pattern, problem, arch).spec.tile;
    const std::vector<TileConfig> tiles = girih::plan::candidate_tiles(own, problem, arch);
    CHECK(check_tiles(classes, {problem}, tiles, {{203, 113}, {700, 900}}) == tiles.size());
  }
}

TEST_CASE("every width of heads shows exactly the keys of all atoms in one launch") {
  const std::vector<TileConfig> tiles = {
      {}, kPortable, {64, 16, 3, 4}, {64, 64, 2, 4}, {128, 48, 2, 8}};
  std::vector<Problem> problems;
  for (const int head_dim : {16, 48, 80, 96, 160, 192, 256}) {
    const bool even = problems.size() % 2 == 0;
    problems.push_back(
        make_problem(even ? DType::bfloat16 : DType::float16, head_dim, kMixedHeads, 4));
  }
  problems.push_back(make_problem(DType::bfloat16, 192, kMixedHeads, 8, 128));
  problems.push_back(make_problem(DType::float16, 32, kMixedHeads, 8, 240));
  problems.push_back(make_problem(DType::bfloat16, 256, kMixedHeads, 8, 16));
  const std::size_t num_bound =
      check_tiles(mixed_classes(), problems, tiles, {{113, 203}, {512, 256}, {1023, 1024}});
  CHECK(num_bound >= problems.size() * 2);
}

TEST_CASE("sequences of many lengths show exactly their keys in every layout") {
  struct Shape {
    Layout layout;
    int count;
    Lengths longest;
    bool used, padded;
  };
  const std::vector<Shape> shapes = {
      {Layout::thd, 12, {203, 203}, false, false}, {Layout::thd, 12, {130, 300}, false, false},
      {Layout::thd, 9, {300, 130}, true, false},   {Layout::thd, 9, {160, 257}, false, true},
      {Layout::thd, 13, {128, 256}, true, true},   {Layout::bshd, 9, {113, 260}, true, true},
      {Layout::bhsd, 9, {130, 203}, true, true},   {Layout::bhsd, 5, {130, 203}, true, false},
      {Layout::bshd, 5, {64, 128}, false, true}};
  const std::vector<oracle::Expr> classes = mixed_classes();
  const std::vector<Problem> problems = {make_problem(DType::bfloat16, 128, kMixedHeads, 4),
                                         make_problem(DType::float16, 64, kMixedHeads, 32),
                                         make_problem(DType::bfloat16, 80, kMixedHeads, 1, 48)};
  std::vector<Binding> bindings;
  std::vector<Binding> portable;
  for (const Shape& shape : shapes) {
    for (Problem problem : problems) {
      problem.layout = shape.layout;
      bindings.push_back({pattern_text(classes, kHashes), problem, {}});
      portable.push_back({bindings.back().pattern, problem, kPortable});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings), bound_portable = bind_all(portable);
  require_bound(bindings, bound);
  require_bound(portable, bound_portable);

  std::mt19937_64 random(31);
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    if (!bound[i].kernel || !bound_portable[i].kernel) continue;
    const Shape& shape = shapes[i / problems.size()];
    Case c = mask_case(bindings[i].problem, shape.count, shape.longest);
    std::vector<int> keys(static_cast<std::size_t>(shape.count), shape.longest.k);
    if (shape.layout == Layout::thd) {
      c.lengths.q = ragged_lengths(random, shape.count, shape.longest.q);
      c.lengths.k = keys = ragged_lengths(random, shape.count, shape.longest.k);
    }
    if (shape.used) c.lengths.used_k = random_parts(random, keys);
    if (shape.padded) c.lengths.leftpad_k = random_parts(random, keys);
    if (i % 2 == 1) c.empty_lse = std::numeric_limits<float>::infinity();
    if (i % 4 == 2) {  // nothing tells the launch how short the sequences are
      c.seqlen_q += shape.layout == Layout::thd ? 1000 : 0;
      c.seqlen_k += shape.layout == Layout::thd ? 5000 : 0;
    }
    const std::vector<Expected> expected = expected_of(classes, c);
    HashedWorkload workload(c, i);
    for (const bool is_portable : {false, true}) {
      for (const int max_ctas : {0, 2}) {
        workload.parameters().max_ctas = max_ctas;
        const auto outcome =
            workload.check(is_portable ? *bound_portable[i].kernel : *bound[i].kernel, expected);
        CHECK_OUTCOME(outcome, fmt::format("{}, {} sequences up to {} x {}, max_ctas {}{}",
                                           describe(c.problem), c.batch, c.seqlen_q, c.seqlen_k,
                                           max_ctas, is_portable ? ", portable" : ""));
      }
    }
  }
}

namespace {

// `count` launches of random expressions, as many in launch i as num_classes says.
template <class NumClasses>
void check_random_expressions(int count, std::uint64_t seed, const NumClasses& num_classes_of,
                              const TileConfig& tile) {
  struct RandomCase {
    std::vector<oracle::Expr> classes;
    Case parameters;
  };
  std::mt19937_64 random(seed);
  const auto below = [&](int bound) {
    return static_cast<int>(random() % static_cast<std::uint64_t>(bound));
  };
  std::vector<RandomCase> cases;
  std::vector<Binding> bindings;
  for (int i = 0; i < count; ++i) {
    RandomCase entry;
    Lengths length = kLengths[static_cast<std::size_t>(below(static_cast<int>(kLengths.size())))];
    if (i % 2 == 0) {
      length = {std::max(1, length.q - below(21)), std::max(1, length.k - below(21))};
    }
    const int num_classes = num_classes_of(i, below);
    while (static_cast<int>(entry.classes.size()) < num_classes) {
      oracle::Expr expr = oracle::random_expr(random, 3, std::max(length.q, length.k));
      if (!expr.operands.empty()) entry.classes.push_back(std::move(expr));
    }
    const int num_heads = kHashes * num_classes;
    const int group_sizes[] = {1, 2, 4, num_heads};
    const DType dtype = below(2) == 0 ? DType::bfloat16 : DType::float16;
    const int head_dim = below(2) == 0 ? 64 : 128;
    const Problem problem =
        make_problem(dtype, head_dim, num_heads, num_heads / group_sizes[below(4)]);
    entry.parameters = mask_case(problem, 1 + below(2), length);
    if (below(3) == 0) {  // a chunk of a longer sequence
      entry.parameters.k_start = below(500);
      entry.parameters.q_start =
          below(2) == 0 ? 0 : entry.parameters.k_start + below(length.k + 50);
    }
    if (below(4) == 0) entry.parameters.max_ctas = 2;
    if (below(4) == 0) entry.parameters.row_gap = 64;
    bindings.push_back({pattern_text(entry.classes, kHashes), problem, tile});
    cases.push_back(std::move(entry));
  }
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);

  for (std::size_t i = 0; i < cases.size(); ++i) {
    if (!bound[i].kernel) continue;
    const Case& c = cases[i].parameters;
    const oracle::Sizes sizes = sizes_of(c)[0];  // every sequence's
    HashedWorkload workload(c, i);
    const auto outcome = workload.check(*bound[i].kernel, {Expected(cases[i].classes, sizes)});
    CHECK_OUTCOME(outcome,
                  fmt::format("{} {} at {} x {}, q_start {}, k_start {}, max_ctas {}, tile {}",
                              bindings[i].pattern, describe(c.problem), c.seqlen_q, c.seqlen_k,
                              sizes.q_start, c.k_start, c.max_ctas, describe(tile)));
  }
}

}  // namespace

TEST_CASE("200 random expressions show exactly their keys") {
  check_random_expressions(
      200, 2024, [](int i, const auto& below) { return i % 4 == 0 ? 2 + below(2) : 1; }, {});
}

TEST_CASE("200 random expressions show exactly their keys in the portable kernel") {
  // Five in a launch: what takes time is the compiler, a kernel at a time.
  check_random_expressions(
      40, 2025, [](int, const auto&) { return 5; }, kPortable);
}

TEST_CASE("S2-Attention's own matrices show exactly their keys") {
  std::vector<oracle::Expr> classes;
  std::string text;
  for (const oracle::GoldenBlocks& golden : oracle::kGoldenStrided) {
    classes.push_back({Kind::condition, {}, {}});
    classes.back().condition.holds = [&golden](const oracle::Sizes&, long long q, long long k) {
      return golden.visible(q, k);
    };
    text += fmt::format("{}-{}: {}, ", text.empty() ? 0 : kHashes,
                        static_cast<int>(classes.size()) * kHashes - 1, golden.text);
  }
  text = "heads(" + text.substr(0, text.size() - 2) + ")";
  const Lengths length{oracle::kGoldenTokens, oracle::kGoldenTokens};
  const std::vector<Expected> expected = {
      Expected(classes, oracle::bottom_right(length.q, length.k))};
  for (const int head_dim : {64, 128}) {
    const Problem problem = make_problem(DType::bfloat16, head_dim, 2 * kHashes, 2);
    check_kernels(text, mask_case(problem, 2, length), kKernels, expected, text);
  }
}

TEST_CASE("neighborhoods on grids of one to three axes show exactly their keys") {
  // In each list grids have equally many tokens, so that their heads go into one launch.
  const std::vector<std::vector<oracle::Expr>> lists = {
      {neighborhood({{600, 100, 1, 1}}), neighborhood({{600, 33, 7, 3, true}}),
       neighborhood({{20, 7, 1, 1}, {30, 8, 1, 1}}),
       neighborhood({{20, 5, 2, 3}, {30, 30, 30, 1, true}}),
       neighborhood({{5, 3, 1, 1, true}, {8, 4, 4, 2}, {15, 6, 3, 1}}),
       negation(neighborhood({{4, 1, 1, 4}, {10, 9, 1, 1}, {15, 2, 2, 7, true}})),
       both(causal(), neighborhood({{100, 50, 1, 1}, {6, 3, 1, 1}}))},
      {neighborhood({{64, 20, 1, 1}, {64, 20, 1, 1}}),
       neighborhood({{64, 16, 16, 1}, {64, 16, 16, 1}}),
       neighborhood({{8, 5, 1, 1, true}, {16, 7, 1, 1}, {32, 12, 4, 2}}),
       neighborhood({{4096, 1000, 1, 1}})},
      {neighborhood({{1, 1, 1, 1}}), negation(neighborhood({{1, 1, 1, 1}, {1, 1, 1, 1}}))},
  };
  for (const std::vector<oracle::Expr>& classes : lists) {
    const int tokens = static_cast<int>(oracle::grid_tokens(classes[0]));
    const int num_heads = kHashes * static_cast<int>(classes.size());
    std::vector<Binding> bindings;
    for (const int head_dim : {64, 128, 192, 256}) {
      const DType dtype = head_dim % 128 == 0 ? DType::bfloat16 : DType::float16;
      const Problem problem = make_problem(dtype, head_dim, num_heads, 4);
      for (const TileConfig& tile : kKernels) {
        bindings.push_back({pattern_text(classes, kHashes), problem, tile});
      }
    }
    const std::vector<Bound> bound = bind_all(bindings);
    require_bound(bindings, bound);
    for (const int extra : {0, 77}) {
      const std::vector<Expected> expected = {
          Expected(classes, oracle::bottom_right(tokens, tokens + extra))};
      for (std::size_t i = 0; i < bindings.size(); ++i) {
        if (!bound[i].kernel) continue;
        HashedWorkload workload(mask_case(bindings[i].problem, 2, {tokens, tokens + extra}), i);
        for (const int max_ctas : {0, 2}) {
          workload.parameters().max_ctas = max_ctas;
          const auto outcome = workload.check(*bound[i].kernel, expected);
          CHECK_OUTCOME(outcome,
                        fmt::format("{} {} with {} extra keys, max_ctas {}", bindings[i].pattern,
                                    describe(bindings[i].problem), extra, max_ctas));
        }
      }
    }
  }
}

TEST_CASE("neighborhoods of an image and of a video show exactly their keys") {
  const std::vector<oracle::Expr> exprs = {
      neighborhood({{256, 80, 1, 1}, {256, 80, 1, 1}}),
      neighborhood({{30, 18, 1, 1}, {48, 24, 1, 1}, {80, 24, 1, 1}})};
  std::mt19937 random(6);
  for (const oracle::Expr& expr : exprs) {
    const int tokens = static_cast<int>(oracle::grid_tokens(expr));
    std::vector<int> rows = {0, 1, tokens - 2, tokens - 1};
    for (int i = 0; i < 400; ++i) rows.push_back(static_cast<int>(random() % tokens));
    std::sort(rows.begin(), rows.end());
    const Problem problem = make_problem(DType::bfloat16, 128, kHashes, kHashes);
    const std::string text = pattern_text({expr}, kHashes);
    check_kernels(text, mask_case(problem, 1, {tokens, tokens}), kKernels,
                  {Expected({expr}, oracle::bottom_right(tokens, tokens), rows)}, text);
  }
}

TEST_CASE("a launch whose length is not the grid's is refused") {
  const Problem problem = make_problem(DType::bfloat16, 64, 1, 1);
  const girih::jit::Kernel kernel =
      girih::jit::compile(girih::Pattern::parse("neighborhood(8x16, window=(3, 5))"), problem);
  const auto refusal_at = [&](Lengths length) -> std::string {
    HashedWorkload workload(mask_case(problem, 1, length), 1);
    try {
      workload.check(kernel, {});
    } catch (const girih::Error& error) {
      CHECK(error.code() == girih::Errc::invalid_argument);
      return error.what();
    }
    return "";
  };
  CHECK(refusal_at({127, 128}) ==
        "seqlen_q 127 does not go with neighborhood(8x16): it must be the grid's 128 tokens");
  CHECK(
      refusal_at({128, 127}) ==
      "seqlen_k 127 does not go with neighborhood(8x16): it must be the grid's 128 tokens, or more "
      "with extra keys behind them");
}

TEST_CASE("the heads of tensor-parallel ranks show exactly the model's") {
  const std::vector<oracle::Expr> classes = {
      causal(), both(causal(), strided({.left = 3, .right = 3, .stride = 7, .block = 20})),
      strided({.left = 1,
               .right = 1,
               .stride = 9,
               .block = 32,
               .kv_heads = true,
               .step = 2,
               .dense_heads = 1})};
  const int num_heads = kHashes * static_cast<int>(classes.size());
  for (const int group_size : {1, 2}) {
    for (int rank = 0; rank < static_cast<int>(classes.size()); ++rank) {
      Problem problem = make_problem(DType::bfloat16, 64, kHashes, kHashes / group_size);
      problem.head_offset = rank * kHashes;
      problem.num_heads_total = num_heads;
      std::vector<Binding> bindings;
      for (const TileConfig& tile : kKernels) {
        bindings.push_back({pattern_text(classes, kHashes), problem, tile});
      }
      const std::vector<Bound> bound = bind_all(bindings);
      require_bound(bindings, bound);
      for (const Lengths length : {Lengths{203, 113}, {700, 1000}}) {
        const Case c = mask_case(problem, 2, length);
        const Expected expected({classes[static_cast<std::size_t>(rank)]}, sizes_of(c)[0]);
        HashedWorkload workload(c, 5);
        for (std::size_t i = 0; i < bindings.size(); ++i) {
          if (!bound[i].kernel) continue;
          const auto outcome = workload.check(*bound[i].kernel, {expected});
          CHECK_OUTCOME(outcome,
                        fmt::format("rank {}, {} at {} x {}, tile {}", rank, describe(problem),
                                    length.q, length.k, describe(bindings[i].tile)));
        }
      }
    }
  }
}

TEST_CASE("every atom and its negation shows exactly its keys at 131072 x 131072") {
  const int length = 1 << 17;
  const std::vector<oracle::Expr> positive = {
      dense(),
      causal(),
      window(255, -1),
      window(1000, 1000),
      sink(200),
      atom(Kind::last_keys, {300}),
      atom(Kind::last_queries, {100}),
      atom(Kind::queries, {1000, 70000}),
      atom(Kind::keys, {1000, 70000}),
      atom(Kind::chunk, {8192}),
      atom(Kind::block_window, {15, 0, 64}),
      atom(Kind::block_streaming, {1, 8, 128, 1}),
      both(window(2000, 0), atom(Kind::dilated, {4})),
      strided({.left = 16, .right = 16, .stride = 8, .block = 64, .offset = 1})};
  std::vector<oracle::Expr> atoms = positive;
  for (const oracle::Expr& atom : positive) atoms.push_back(negation(atom));

  std::vector<int> rows = {0, 1, 199, 200, length - 1001, length - 1000, length - 2, length - 1};
  std::mt19937 random(5);
  for (int i = 0; i < 128; ++i) {
    const int edge = 64 * (1 + static_cast<int>(random() % (length / 64 - 1)));
    rows.insert(rows.end(), {edge - 1, edge, edge + 1});
  }
  for (int i = 0; i < 128; ++i) rows.push_back(static_cast<int>(random() % length));

  for (const Problem& problem : {make_problem(DType::bfloat16, 128, kHashes, 1),
                                 make_problem(DType::float16, 64, kHashes, 2)}) {
    std::vector<Binding> bindings;
    for (const oracle::Expr& atom : atoms) {
      bindings.push_back({pattern_text({atom}, kHashes), problem, {}});
    }
    if (problem.dtype == DType::bfloat16) {  // and the portable kernel, of one type
      for (const oracle::Expr& atom : atoms) {
        bindings.push_back({pattern_text({atom}, kHashes), problem, kPortable});
      }
    }
    const std::vector<Bound> bound = bind_all(bindings);
    require_bound(bindings, bound);
    HashedWorkload workload(mask_case(problem, 1, {length, length}), 3);
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      const std::vector<Expected> expected = {
          Expected({atoms[a]}, with_heads(oracle::bottom_right(length, length), problem), rows)};
      for (std::size_t i = a; i < bindings.size(); i += atoms.size()) {
        if (!bound[i].kernel) continue;
        const auto outcome = workload.check(*bound[i].kernel, expected);
        CHECK_OUTCOME(outcome, bindings[i].pattern + " " + describe(problem) + ", tile " +
                                   describe(bindings[i].tile));
      }
    }
  }
}

TEST_CASE("sanitizer: three classes of heads show exactly their keys") {
  // Elaborate masks, and simple ones, which Hopper's kernel gives larger tiles.
  const std::vector<oracle::Expr> kinds[] = {
      {dense(), streaming(16, 32),
       negation(strided({.left = 2, .right = 1, .stride = 3, .block = 10}))},
      {dense(), streaming(16, 32), window(20, 5)}};
  std::vector<Case> cases;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128}) {
      for (const Lengths length : {Lengths{113, 203}, {203, 113}, {15, 15}}) {
        cases.push_back(mask_case(make_problem(dtype, head_dim, 12, 6), 2, length));
      }
    }
  }
  cases.push_back(mask_case(make_problem(DType::bfloat16, 80, 12, 6, 48), 2, {130, 70}));
  Case packed = mask_case(make_problem(DType::float16, 80, 12, 6, 48, Layout::thd), 5, {90, 110});
  packed.lengths = {
      {90, 0, 1, 33, 70}, {110, 64, 0, 17, 100}, {100, 64, 0, 20, 0}, {3, 0, 0, 17, 0}};
  cases.push_back(packed);
  for (const std::vector<oracle::Expr>& classes : kinds) {
    std::vector<Binding> bindings;
    std::vector<std::size_t> case_of;
    for (std::size_t i = 0; i < cases.size(); ++i) {
      for (const TileConfig& tile : kKernels) {
        if (tile.portable && i % 3 != 0 && i < 12) continue;  // one length of each type and width
        bindings.push_back({pattern_text(classes, kHashes), cases[i].problem, tile});
        case_of.push_back(i);
      }
    }
    const std::vector<Bound> bound = bind_all(bindings);
    require_bound(bindings, bound);
    for (std::size_t i = 0; i < bindings.size(); ++i) {
      if (!bound[i].kernel) continue;
      Case& c = cases[case_of[i]];
      c.max_ctas = 2;
      HashedWorkload workload(c, i);
      const auto outcome = workload.check(*bound[i].kernel, expected_of(classes, c));
      CHECK_OUTCOME(outcome, fmt::format("{} at {} x {}, tile {}", describe(c.problem), c.seqlen_q,
                                         c.seqlen_k, describe(bindings[i].tile)));
    }
  }
}
