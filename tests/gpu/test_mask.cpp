// The exact mask test: which keys does each row see, to the last one?
//
// K holds random bits, each row of Q is one-hot, and softmax_scale is ln 2, so that
// exp(lse) = the sum over visible keys of 2^bit: an integer, for which one key more or less is a
// change of 1 or 2. A key exchanged for another one shows in at least one of the four heads that
// look at different bits, with a probability of 15/16 a row. Expected sums are popcounts of the
// oracle's bits.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Problem;
using girih::TileConfig;
using girih::verify::Case;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kHashes = 4;  // heads of a class
const float kLn2 = static_cast<float>(std::log(2.0));

struct Lengths {
  int q, k;
};
const std::vector<Lengths> kLengths = {
    {113, 203},   {128, 217},   {113, 211},   {108, 256}, {256, 512}, {512, 256},   {1024, 1024},
    {1023, 1024}, {1024, 1023}, {2048, 2048}, {15, 15},   {1, 1},     {5175, 5175}, {8192, 8192},
};

std::vector<int> all_rows(long long seqlen_q) {
  std::vector<int> rows(static_cast<std::size_t>(seqlen_q));
  for (int q = 0; q < seqlen_q; ++q) rows[static_cast<std::size_t>(q)] = q;
  return rows;
}

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
      {.block = 32, .offset = -7, .ranges = {{-2, 4}, {3, 1}, {9, 2}, {0, 7}}},
  };
  for (const oracle::Strided& blocks : s2) atoms.push_back(strided(blocks));
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
          atom(Kind::queries, {20, 150}),
          negation(atom(Kind::keys, {30, 90})),
          both(causal(), atom(Kind::chunk, {100})),
          atom(Kind::block_window, {1, 0, 48}),
          atom(Kind::block_streaming, {1, 2, 64, 1}),
          both(causal(), strided({.left = 2, .right = 2, .stride = 5, .block = 24, .offset = 1}))};
}

// What heads should see in chosen rows of a sequence: classes[c] is for heads
// [c * kHashes, (c + 1) * kHashes), each or all of them. `sizes` are those of the first head.
struct Expected {
  std::vector<int> rows;
  std::vector<std::vector<VisibleRows>> classes;

  Expected(const std::vector<oracle::Expr>& exprs, const oracle::Sizes& sizes,
           std::vector<int> chosen)
      : rows(std::move(chosen)) {
    for (const oracle::Expr& expr : exprs) {
      const int first_head = kHashes * static_cast<int>(classes.size());
      const int num_heads = oracle::depends_on_head(expr) ? kHashes : 1;
      classes.emplace_back();
      for (int i = 0; i < num_heads; ++i) {
        classes.back().emplace_back(expr, in_head(sizes, first_head + i), rows);
      }
    }
  }

  const VisibleRows& of_head(int h) const {
    const std::vector<VisibleRows>& heads = classes[static_cast<std::size_t>(h / kHashes)];
    return heads[heads.size() == 1 ? 0 : static_cast<std::size_t>(h % kHashes)];
  }
  Expected(const std::vector<oracle::Expr>& exprs, const oracle::Sizes& sizes)
      : Expected(exprs, sizes, all_rows(sizes.seqlen_q)) {}
};

// All rows of every sequence of a case.
std::vector<Expected> expected_of(const std::vector<oracle::Expr>& exprs, const Case& c) {
  std::vector<Expected> expected;
  for (const oracle::Sizes& sizes : sizes_of(c)) expected.emplace_back(exprs, sizes);
  return expected;
}

// Inputs whose result counts keys, on the device, and the bits they were made of.
class HashedWorkload {
 public:
  HashedWorkload(const Case& c, std::uint64_t seed)
      : workload_(c),
        words_(girih::verify::mask_words(workload_.longest_k())),
        bits_(static_cast<std::size_t>(c.batch * c.problem.num_heads_kv * c.problem.head_dim) *
              static_cast<std::size_t>(words_)),
        seed_(seed) {
    REQUIRE(static_cast<float>(kLn2 * 1.44269504088896341f) == 1.0f);
    workload_.parameters.softmax_scale = kLn2;
    workload_.fill_normal(seed);  // v; keys outside the sequences stay NaN
    fill_q();
    fill_k();
    workload_.upload_inputs();
  }

  struct Outcome {
    std::int64_t rows = 0;
    std::int64_t wrong = 0;
    std::string first;
  };

  // Launches with poisoned outputs and compares what is expected of each sequence, or of all
  // alike where it is given once.
  Outcome check(const girih::jit::Kernel& kernel, const std::vector<Expected>& expected) {
    workload_.poison_outputs();
    const girih::jit::Args args = workload_.args();
    const girih::verify::Buffer memory(kernel.workspace_bytes(args));
    const girih::jit::Workspace workspace{memory.data(), memory.size()};
    kernel.build_lists(args, workspace);
    kernel.launch(args, workspace);
    girih::verify::synchronize();
    workload_.download_outputs();

    Outcome outcome;
    const auto batch = static_cast<std::size_t>(workload_.parameters.batch);
    REQUIRE((expected.size() == 1 || expected.size() == batch));
    for (std::size_t b = 0; b < batch; ++b) {
      check_sequence(static_cast<int>(b), expected[expected.size() == 1 ? 0 : b], outcome);
    }
    if (const std::int64_t touched = workload_.touched_padding(); touched > 0) {
      outcome.first += fmt::format(" {} elements outside the outputs were written", touched);
      outcome.wrong += 1;
    }
    rows_checked += outcome.rows;
    return outcome;
  }

  Case& parameters() { return workload_.parameters; }

 private:
  void check_sequence(int b, const Expected& expected, Outcome& outcome) {
    const int num_heads = workload_.parameters.problem.num_heads;
    std::vector<std::string> failures(expected.rows.size());
    std::atomic<std::int64_t> wrong = 0;
    girih::verify::parallel_for(
        static_cast<std::int64_t>(failures.size()),
        [&](std::int64_t index) {
          const auto i = static_cast<std::size_t>(index);
          for (int h = 0; h < num_heads; ++h) {
            const VisibleRows& visible = expected.of_head(h);
            std::string failure = check_row({b, h, expected.rows[i]}, visible[i]);
            if (failure.empty()) continue;
            ++wrong;
            if (failures[i].empty()) failures[i] = std::move(failure);
          }
        },
        kRowsPerThread);
    outcome.rows += static_cast<std::int64_t>(failures.size()) * num_heads;
    outcome.wrong += wrong;
    for (const std::string& failure : failures) {
      if (outcome.first.empty()) outcome.first = failure;
    }
  }

  // Which column of K a row looks at: different ones for the heads of a class, which may share
  // their KV head.
  int column(int b, int h, int q) const {
    const int head_dim = workload_.parameters.problem.head_dim;
    const auto row = static_cast<std::uint64_t>(b) << 32 | static_cast<std::uint64_t>(q);
    const std::uint64_t hash = (row + seed_ + 1) * 0x9e3779b97f4a7c15;  // its high bits are mixed
    const int first = static_cast<int>((hash >> 40) % static_cast<std::uint64_t>(head_dim));
    return (first + h % kHashes * (head_dim / kHashes)) % head_dim;
  }

  std::uint32_t* plane(int b, int head_kv, int j) {
    const Problem& problem = workload_.parameters.problem;
    const int index = (b * problem.num_heads_kv + head_kv) * problem.head_dim + j;
    return bits_.data() + static_cast<std::int64_t>(index) * words_;
  }

  void fill_q() {
    const Case& c = workload_.parameters;
    const std::uint16_t one = girih::verify::narrow(c.problem.dtype, 1.0f);
    for (int b = 0; b < c.batch; ++b) {
      girih::verify::parallel_for(
          workload_.sequences[static_cast<std::size_t>(b)].seqlen_q,
          [&](std::int64_t index) {
            const int q = static_cast<int>(index);
            for (int h = 0; h < c.problem.num_heads; ++h) {
              std::uint16_t* row = workload_.q_row({b, h, q});
              std::fill_n(row, c.problem.head_dim, std::uint16_t{0});
              row[column(b, h, q)] = one;
            }
          },
          kRowsPerThread);
    }
  }

  void fill_k() {
    const Case& c = workload_.parameters;
    const std::uint16_t one = girih::verify::narrow(c.problem.dtype, 1.0f);
    girih::verify::parallel_for(words_, [&](std::int64_t word) {
      std::mt19937 random(static_cast<unsigned>(seed_ * 31 + static_cast<std::uint64_t>(word)));
      for (int b = 0; b < c.batch; ++b) {
        const int seqlen_k = workload_.sequences[static_cast<std::size_t>(b)].seqlen_k;
        const int first = static_cast<int>(word) * 32;
        for (int g = 0; g < c.problem.num_heads_kv; ++g) {
          for (int j = 0; j < c.problem.head_dim; ++j) {
            const auto bits = static_cast<std::uint32_t>(random());
            plane(b, g, j)[word] = bits;
            for (int i = 0; i < 32 && first + i < seqlen_k; ++i) {
              workload_.k_row(b, first + i, g)[j] = bits >> i & 1 ? one : std::uint16_t{0};
            }
          }
        }
      }
    });
  }

  // Empty when the row is right.
  std::string check_row(girih::verify::Row row, std::span<const std::uint32_t> visible) {
    const Problem& problem = workload_.parameters.problem;
    const std::uint32_t* bits =
        plane(row.b, row.h / problem.group_size(), column(row.b, row.h, row.q));
    std::int64_t num_visible = 0;
    std::int64_t total = 0;  // of 2^bit
    for (std::size_t word = 0; word < visible.size(); ++word) {
      num_visible += std::popcount(visible[word]);
      total += std::popcount(visible[word] & bits[word]);
    }
    total += num_visible;
    const float lse = workload_.lse_at(row);
    const auto failure = [&](const std::string& what) {
      return fmt::format("batch {} head {} row {}: {} ({} keys visible)", row.b, row.h, row.q, what,
                         num_visible);
    };

    const std::uint16_t* out = workload_.out_row(row);
    for (int j = 0; j < problem.width_v(); ++j) {
      const float value = girih::verify::widen(problem.dtype, out[j]);
      if (!std::isfinite(value) || (num_visible == 0 && value != 0)) {
        return failure(fmt::format("out[{}] is {}", j, value));
      }
    }
    if (num_visible == 0) {
      const float empty_lse = workload_.parameters.empty_lse;
      return lse == empty_lse ? "" : failure(fmt::format("lse is {}, not {}", lse, empty_lse));
    }

    // One key changes lse by at least 1 / total; half of that must be well above the spacing of
    // float32, or the comparison would decide nothing.
    const float expected = std::log(static_cast<float>(total));
    const double spacing = static_cast<double>(std::nextafter(expected, HUGE_VALF) - expected);
    if (0.5 / static_cast<double>(total) < 2 * spacing) return failure("float32 cannot tell");
    const double sum = std::exp(static_cast<double>(lse));
    if (std::fabs(sum - static_cast<double>(total)) < 0.5) return "";
    return failure(fmt::format("exp(lse) is {:.3f}, not {}", sum, total));
  }

  girih::verify::Workload workload_;
  int words_;
  std::vector<std::uint32_t> bits_;  // [batch, num_heads_kv, head_dim, words]
  std::uint64_t seed_;
};

Case mask_case(const Problem& problem, int batch, Lengths lengths) {
  Case c;
  c.problem = problem;
  c.batch = batch;
  c.seqlen_q = lengths.q;
  c.seqlen_k = lengths.k;
  return c;
}

void require_bound(const std::vector<Binding>& bindings, const std::vector<Bound>& bound) {
  for (std::size_t i = 0; i < bound.size(); ++i) {
    CHECK_MESSAGE(bound[i].kernel, bindings[i].pattern << ": " << bound[i].message);
  }
}

// All types and widths, with 4, 2 and 1 KV heads for a class' four heads.
const std::vector<Problem> kProblems = {
    make_problem(DType::bfloat16, 128, kHashes, 2),
    make_problem(DType::bfloat16, 64, kHashes, 4),
    make_problem(DType::float16, 128, kHashes, 1),
    make_problem(DType::float16, 64, kHashes, 2),
};

#define CHECK_OUTCOME(outcome, description)                                                      \
  CHECK_MESSAGE((outcome).wrong == 0, (description)                                              \
                                          << ": " << (outcome).wrong << " of " << (outcome).rows \
                                          << " rows wrong: " << (outcome).first)

}  // namespace

TEST_CASE("every atom and its negation shows exactly its keys at every length") {
  const std::vector<oracle::Expr> atoms = every_atom();
  std::vector<Binding> bindings;
  for (const Problem& problem : kProblems) {
    for (const oracle::Expr& atom : atoms) {
      bindings.push_back({pattern_text({atom}, kHashes), problem, {}});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);

  std::mt19937 random(11);
  std::vector<Lengths> lengths = kLengths;
  for (std::size_t i = 0; i < kLengths.size() - 2; ++i) {  // true lengths, short of the maximum
    const auto shorter = [&](int length) {
      return std::max(1, length - static_cast<int>(random() % 21));
    };
    lengths.push_back({shorter(kLengths[i].q), shorter(kLengths[i].k)});
  }
  for (const Lengths& length : lengths) {
    const auto expected_of_atom = [&](std::size_t a, std::size_t p) {
      return Expected({atoms[a]},
                      with_heads(oracle::bottom_right(length.q, length.k), kProblems[p]));
    };
    std::vector<std::vector<Expected>> expected;
    for (std::size_t a = 0; a < atoms.size(); ++a) expected.push_back({expected_of_atom(a, 0)});
    for (std::size_t p = 0; p < kProblems.size(); ++p) {
      const int batch = length.q <= 1024 ? 2 : 1;
      HashedWorkload workload(mask_case(kProblems[p], batch, length), 100 + p);
      for (std::size_t a = 0; a < atoms.size(); ++a) {
        const std::size_t index = p * atoms.size() + a;
        if (!bound[index].kernel) continue;
        if (p > 0 && oracle::depends_on_head(atoms[a])) {
          if (length.q > 2048) continue;  // the oracle would take long
          expected[a] = {expected_of_atom(a, p)};
        }
        const auto outcome = workload.check(*bound[index].kernel, expected[a]);
        CHECK_OUTCOME(outcome, fmt::format("{} {} at {} x {}", bindings[index].pattern,
                                           describe(kProblems[p]), length.q, length.k));
      }
    }
  }
}

namespace {

// Binds every tile that the plan accepts for every problem, and launches each with and without a
// cap on the grid. Returns how many there were.
std::size_t check_tiles(const std::vector<Problem>& problems, const std::vector<TileConfig>& tiles,
                        const std::vector<Lengths>& lengths) {
  const std::vector<oracle::Expr> classes = mixed_classes();
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
      {128, 16, 2, 12, 1}, {128, 176, 2, 12, 1}, {192, 128, 2, 16, 2}, {192, 48, 3, 16, 1}};
  std::vector<Problem> problems;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128})
      problems.push_back(make_problem(dtype, head_dim, kMixedHeads, 8));
  }
  const std::size_t num_bound =
      check_tiles(problems, tiles, {{15, 15}, {113, 203}, {512, 256}, {1023, 1024}, {1024, 1023}});
  CHECK(num_bound >= problems.size() * tiles.size() / 3);
}

TEST_CASE("every width of heads shows exactly the keys of all atoms in one launch") {
  const std::vector<TileConfig> tiles = {
      {}, {.portable = true}, {64, 16, 3, 4}, {64, 64, 2, 4}, {128, 48, 2, 8}};
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
      check_tiles(problems, tiles, {{113, 203}, {512, 256}, {1023, 1024}});
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
  for (const Shape& shape : shapes) {
    for (Problem problem : problems) {
      problem.layout = shape.layout;
      bindings.push_back({pattern_text(classes, kHashes), problem, {}});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);

  std::mt19937_64 random(31);
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    if (!bound[i].kernel) continue;
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
    for (const int max_ctas : {0, 2}) {
      workload.parameters().max_ctas = max_ctas;
      const auto outcome = workload.check(*bound[i].kernel, expected);
      CHECK_OUTCOME(outcome,
                    fmt::format("{}, {} sequences up to {} x {}, max_ctas {}", describe(c.problem),
                                c.batch, c.seqlen_q, c.seqlen_k, max_ctas));
    }
  }
}

TEST_CASE("200 random expressions show exactly their keys") {
  struct RandomCase {
    std::vector<oracle::Expr> classes;
    Case parameters;
  };
  std::mt19937_64 random(2024);
  const auto below = [&](int bound) {
    return static_cast<int>(random() % static_cast<std::uint64_t>(bound));
  };
  std::vector<RandomCase> cases;
  std::vector<Binding> bindings;
  for (int i = 0; i < 200; ++i) {
    RandomCase entry;
    Lengths length = kLengths[static_cast<std::size_t>(below(static_cast<int>(kLengths.size())))];
    if (i % 2 == 0) {
      length = {std::max(1, length.q - below(21)), std::max(1, length.k - below(21))};
    }
    const int num_classes = i % 4 == 0 ? 2 + below(2) : 1;
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
    bindings.push_back({pattern_text(entry.classes, kHashes), problem, {}});
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
    CHECK_OUTCOME(outcome, fmt::format("{} {} at {} x {}, q_start {}, k_start {}, max_ctas {}",
                                       bindings[i].pattern, describe(c.problem), c.seqlen_q,
                                       c.seqlen_k, sizes.q_start, c.k_start, c.max_ctas));
  }
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
      const std::vector<Binding> bindings = {{pattern_text(classes, kHashes), problem, {}}};
      const std::vector<Bound> bound = bind_all(bindings);
      require_bound(bindings, bound);
      if (!bound[0].kernel) continue;
      for (const Lengths length : {Lengths{203, 113}, {700, 1000}}) {
        const Case c = mask_case(problem, 2, length);
        HashedWorkload workload(c, 5);
        const auto outcome =
            workload.check(*bound[0].kernel,
                           {Expected({classes[static_cast<std::size_t>(rank)]}, sizes_of(c)[0])});
        CHECK_OUTCOME(outcome, fmt::format("rank {}, {} at {} x {}", rank, describe(problem),
                                           length.q, length.k));
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
    const std::vector<Bound> bound = bind_all(bindings);
    require_bound(bindings, bound);
    HashedWorkload workload(mask_case(problem, 1, {length, length}), 3);
    for (std::size_t a = 0; a < atoms.size(); ++a) {
      if (!bound[a].kernel) continue;
      const auto outcome = workload.check(
          *bound[a].kernel,
          {Expected({atoms[a]}, with_heads(oracle::bottom_right(length, length), problem), rows)});
      CHECK_OUTCOME(outcome, bindings[a].pattern + " " + describe(problem));
    }
  }
}

TEST_CASE("sanitizer: three classes of heads show exactly their keys") {
  const std::vector<oracle::Expr> classes = {
      dense(), streaming(16, 32),
      negation(strided({.left = 2, .right = 1, .stride = 3, .block = 10}))};
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
  std::vector<Binding> bindings;
  for (const Case& c : cases) bindings.push_back({pattern_text(classes, kHashes), c.problem, {}});
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    if (!bound[i].kernel) continue;
    Case& c = cases[i];
    c.max_ctas = 2;
    HashedWorkload workload(c, i);
    const auto outcome = workload.check(*bound[i].kernel, expected_of(classes, c));
    CHECK_OUTCOME(outcome,
                  fmt::format("{} at {} x {}", describe(c.problem), c.seqlen_q, c.seqlen_k));
  }
}

// --- Run-time inputs ----------------------------------------------------------------------------

namespace {

using girih::verify::BlockForm;
using girih::verify::InputData;

// One of an input's planes as the oracle has it.
oracle::Expr plane_of(const InputData& data, int plane, int q_block, int kv_block) {
  const std::uint8_t* first = data.row(plane, 0);
  const std::int64_t size = std::int64_t{data.num_q_blocks} * data.num_kv_blocks;
  return {Kind::blocks,
          {},
          {},
          {},
          {.name = data.name,
           .q = q_block,
           .kv = kv_block,
           .columns = data.num_kv_blocks,
           .visible = std::vector<char>(first, first + size)}};
}

enum class Sharing { all, kv_heads, heads };

// What is given for an input of a launch whose classes have kHashes heads, one KV head each, and
// see alike. `spare` more blocks than the sequences need lie behind each row and plane.
InputData blocks_for(const Case& c, const std::string& name, int q_block, int kv_block,
                     Sharing sharing, bool shared_by_batch, double density, double skew,
                     BlockForm form, int spare) {
  const int num_classes = c.problem.num_heads_kv;
  const int rows = (c.seqlen_q + q_block - 1) / q_block + spare;
  const int columns = (c.seqlen_k + kv_block - 1) / kv_block + spare;
  const int planes = sharing == Sharing::all ? 1 : num_classes;
  InputData data = girih::verify::random_blocks(name, shared_by_batch ? 1 : c.batch, planes, rows,
                                                columns, density, skew, c.seed);
  data.form = form;
  if (sharing == Sharing::heads) {  // each class's plane for each of its heads
    std::vector<std::uint8_t> visible;
    const auto plane = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
    for (std::size_t p = 0; p < data.visible.size() / plane; ++p) {
      for (int i = 0; i < kHashes; ++i) {
        const auto from = data.visible.begin() + static_cast<std::ptrdiff_t>(p * plane);
        visible.insert(visible.end(), from, from + static_cast<std::ptrdiff_t>(plane));
      }
    }
    data.heads = c.problem.num_heads;
    data.visible = std::move(visible);
  }
  return data;
}

// The classes of every sequence: alone, under causality, and in an expression.
std::vector<std::vector<oracle::Expr>> classes_of(const InputData& data, const Case& c, int q_block,
                                                  int kv_block) {
  std::vector<std::vector<oracle::Expr>> sequences;
  for (int b = 0; b < c.batch; ++b) {
    const auto plane = [&](int head_class) {
      return plane_of(data, data.plane(b, head_class * kHashes, c.problem.num_heads), q_block,
                      kv_block);
    };
    sequences.push_back({plane(0),
                         both(causal(), plane(1)),
                         {Kind::any_of, {}, {sink(3), both(window(100, 50), negation(plane(2)))}}});
  }
  return sequences;
}

void check_blocks(const Case& c, const InputData& data, int q_block, int kv_block,
                  const std::string& description) {
  const auto sequences = classes_of(data, c, q_block, kv_block);
  const std::vector<Binding> bindings = {{pattern_text(sequences[0], kHashes), c.problem, {}}};
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  if (!bound[0].kernel) return;
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < sizes.size(); ++b) expected.emplace_back(sequences[b], sizes[b]);
  Case with_inputs = c;
  with_inputs.inputs = {data};
  HashedWorkload workload(with_inputs, c.seed);
  const auto outcome = workload.check(*bound[0].kernel, expected);
  CHECK_OUTCOME(outcome, fmt::format("{}, {} x {}, {}", description, c.seqlen_q, c.seqlen_k,
                                     describe(c.problem)));
}

Case block_case(int head_dim, int batch, Lengths lengths, std::uint64_t seed) {
  Case c = mask_case(make_problem(DType::bfloat16, head_dim, 3 * kHashes, 3), batch, lengths);
  c.seed = seed;
  return c;
}

}  // namespace

TEST_CASE("block masks of every size, form and sharing show exactly their blocks") {
  constexpr std::pair<int, int> kSizes[] = {{128, 128}, {64, 64},  {128, 64}, {64, 128}, {32, 32},
                                            {16, 16},   {128, 16}, {16, 128}, {32, 64}};
  constexpr Lengths kBlockLengths[] = {
      {1024, 1023}, {128, 217}, {300, 1111}, {700, 333}, {1, 5175}};
  constexpr BlockForm kForms[] = {BlockForm::list, BlockForm::plane_list, BlockForm::table,
                                  BlockForm::bytes, BlockForm::bits};
  constexpr Sharing kSharings[] = {Sharing::all, Sharing::kv_heads, Sharing::heads};
  std::uint64_t turn = 0;
  for (const auto& [q_block, kv_block] : kSizes) {
    for (const Lengths lengths : kBlockLengths) {
      for (int i = 0; i < 3; ++i, ++turn) {
        const BlockForm form = kForms[turn % 5];
        const Sharing sharing = kSharings[i];
        const bool shared_by_batch = turn % 4 == 3;
        const Case c = block_case(turn % 2 == 0 ? 64 : 128, 2, lengths, turn + 1);
        const InputData data = blocks_for(c, "m", q_block, kv_block, sharing, shared_by_batch, 0.3,
                                          turn % 3 == 0 ? 2 : 0, form, static_cast<int>(turn % 3));
        check_blocks(c, data, q_block, kv_block,
                     fmt::format("blocks {} x {}, form {}, sharing {}", q_block, kv_block,
                                 static_cast<int>(form), i));
      }
    }
  }
}

TEST_CASE("block masks of every density, of single blocks and of one full row are exact") {
  std::uint64_t seed = 100;
  for (const double density : {0.0, 0.1, 0.3, 0.7, 1.0}) {
    for (const int block : {64, 128}) {
      const Case c = block_case(128, 2, {2048, 2048}, ++seed);
      check_blocks(c,
                   blocks_for(c, "m", block, block, Sharing::kv_heads, false, density, 0,
                              BlockForm::list, 0),
                   block, block, fmt::format("density {}", density));
    }
  }
  for (const bool full_row : {false, true}) {
    const Case c = block_case(64, 1, {2048, 2048}, ++seed);
    InputData data =
        blocks_for(c, "m", 128, 128, Sharing::kv_heads, false, 0, 0, BlockForm::table, 0);
    for (std::size_t row = 0; row < 3 * 16; ++row) data.visible[row * 16 + row * 7 % 16] = 1;
    if (full_row) std::fill_n(data.visible.begin() + 16 * 5, 16, std::uint8_t{1});
    check_blocks(c, data, 128, 128, full_row ? "one full row" : "single blocks");
  }
}

TEST_CASE("block masks follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(3);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const auto& [q_block, kv_block] : {std::pair{128, 128}, {32, 64}}) {
      Case c = block_case(64, 7, {300, 420}, 500 + static_cast<std::uint64_t>(q_block));
      c.problem.layout = layout;
      if (layout == Layout::thd) {
        c.lengths.q = ragged_lengths(random, c.batch, c.seqlen_q);
        c.lengths.k = ragged_lengths(random, c.batch, c.seqlen_k);
      } else {
        c.lengths.used_k = ragged_lengths(random, c.batch, c.seqlen_k);
        c.lengths.leftpad_k = random_parts(random, c.lengths.used_k);
      }
      check_blocks(
          c,
          blocks_for(c, "m", q_block, kv_block, Sharing::heads, false, 0.4, 0, BlockForm::list, 1),
          q_block, kv_block, "sequences of their own lengths");
    }
  }
}

TEST_CASE("block masks show exactly their blocks at 131072 x 131072") {
  const int length = 1 << 17;
  Case c = mask_case(make_problem(DType::bfloat16, 64, kHashes, 1), 1, {length, length});
  c.seed = 9;
  for (const auto& [q_block, kv_block] : {std::pair{128, 128}, {64, 16}}) {
    const InputData data =
        blocks_for(c, "m", q_block, kv_block, Sharing::all, true, 0.05, 1, BlockForm::list, 0);
    const std::vector<oracle::Expr> classes = {
        both(causal(), plane_of(data, 0, q_block, kv_block))};
    const std::vector<Binding> bindings = {{oracle::text(classes[0]), c.problem, {}}};
    const std::vector<Bound> bound = bind_all(bindings);
    require_bound(bindings, bound);
    if (!bound[0].kernel) continue;
    std::vector<int> rows;
    for (int q = 0; q < length; q += 1021) rows.push_back(q);
    rows.push_back(length - 1);
    Case with_inputs = c;
    with_inputs.inputs = {data};
    HashedWorkload workload(with_inputs, 4);
    const auto outcome = workload.check(
        *bound[0].kernel,
        {Expected(classes, with_heads(oracle::bottom_right(length, length), c.problem), rows)});
    CHECK_OUTCOME(outcome, fmt::format("blocks {} x {}", q_block, kv_block));
  }
}

TEST_CASE(
    "numbers from run-time inputs show exactly their keys, and count as the nearest allowed") {
  Case c = mask_case(make_problem(DType::bfloat16, 64, 2 * kHashes, 2), 2, {300, 420});
  const std::vector<Binding> bindings = {
      {"heads(0-3: causal & (sink($n) | window(left=$w)), else: chunk($n))", c.problem, {}}};
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  if (!bound[0].kernel) return;
  const std::vector<std::int32_t> n = {17, 100, -5, 0};  // [batch, KV heads]
  const std::vector<std::int32_t> w = {30, -9};          // [batch, 1]
  c.inputs = {
      {.kind = girih::InputInfo::Kind::number, .name = "w", .batch = 2, .numbers = w},
      {.kind = girih::InputInfo::Kind::number, .name = "n", .batch = 2, .heads = 2, .numbers = n}};
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < 2; ++b) {
    const oracle::Expr streaming_part = {
        Kind::any_of, {}, {sink(std::max(n[2 * b], 0)), window(std::max(w[b], -1), -1)}};
    expected.emplace_back(
        std::vector{both(causal(), streaming_part), atom(Kind::chunk, {std::max(n[2 * b + 1], 1)})},
        sizes[b]);
  }
  HashedWorkload workload(c, 8);
  CHECK_OUTCOME(workload.check(*bound[0].kernel, expected), "numbers");
}

TEST_CASE("sanitizer: block masks show exactly their blocks") {
  for (const auto& [q_block, kv_block, form] : {std::tuple{128, 128, BlockForm::list},
                                                {16, 32, BlockForm::table},
                                                {64, 64, BlockForm::bytes}}) {
    Case c = block_case(64, 3, {150, 210}, 40 + static_cast<std::uint64_t>(q_block));
    c.problem.layout = Layout::thd;
    c.lengths.q = {150, 0, 129};
    c.lengths.k = {210, 64, 1};
    c.max_ctas = 2;
    check_blocks(c, blocks_for(c, "m", q_block, kv_block, Sharing::heads, false, 0.4, 0, form, 0),
                 q_block, kv_block, "sanitizer");
  }
}
