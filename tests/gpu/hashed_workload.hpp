// The exact mask test: which keys does each row see, to the last one?
//
// K holds random bits, each row of Q is one-hot, and softmax_scale is ln 2, so that
// exp(lse) = the sum over visible keys of 2^bit: an integer, for which one key more or less is a
// change of 1 or 2. A key exchanged for another one shows in at least one of the four heads that
// look at different bits, with a probability of 15/16 a row. Expected sums are popcounts of the
// oracle's bits.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace gpu_tests {

using girih::Problem;
using girih::verify::Case;

constexpr int kHashes = 4;  // heads of a class
inline const float kLn2 = static_cast<float>(std::log(2.0));

struct Lengths {
  int q, k;
};

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
inline std::vector<Expected> expected_of(const std::vector<oracle::Expr>& exprs, const Case& c) {
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
  // alike where it is given once. Lists may be built with the arguments of another workload, which
  // has the same ones.
  Outcome check(const girih::jit::Kernel& kernel, const std::vector<Expected>& expected,
                const HashedWorkload* builder = nullptr) {
    workload_.poison_outputs();
    const girih::jit::Args args = workload_.args();
    const girih::jit::Args build_args = builder == nullptr ? args : builder->workload_.args();
    const girih::verify::Buffer memory(
        std::max(kernel.workspace_bytes(args), kernel.workspace_bytes(build_args)));
    const girih::jit::Workspace workspace{memory.data(), memory.size()};
    kernel.build_lists(build_args, workspace);
    kernel.launch(args, workspace);
    girih::verify::synchronize();
    workload_.download_outputs();
    workspace_head_.resize(std::min<std::size_t>(memory.size(), 256));
    memory.download(workspace_head_.data(), workspace_head_.size());

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
  // The first bytes of the last check's workspace.
  const std::vector<unsigned char>& workspace_head() const { return workspace_head_; }

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
  std::vector<unsigned char> workspace_head_;
};

inline Case mask_case(const Problem& problem, int batch, Lengths lengths) {
  Case c;
  c.problem = problem;
  c.batch = batch;
  c.seqlen_q = lengths.q;
  c.seqlen_k = lengths.k;
  return c;
}

inline void require_bound(const std::vector<Binding>& bindings, const std::vector<Bound>& bound) {
  for (std::size_t i = 0; i < bound.size(); ++i) {
    CHECK_MESSAGE(bound[i].kernel, bindings[i].pattern << ": " << bound[i].message);
  }
}

#define CHECK_OUTCOME(outcome, description)                                                      \
  CHECK_MESSAGE((outcome).wrong == 0, (description)                                              \
                                          << ": " << (outcome).wrong << " of " << (outcome).rows \
                                          << " rows wrong: " << (outcome).first)

inline Case with_input(Case c, const girih::verify::InputData& data) {
  c.inputs = {data};
  return c;
}

// Binds a pattern for every tile, and checks which keys each kernel shows.
inline void check_kernels(const std::string& pattern, const Case& c,
                          std::span<const girih::TileConfig> tiles,
                          const std::vector<Expected>& expected, const std::string& description) {
  std::vector<Binding> bindings;
  for (const girih::TileConfig& tile : tiles) bindings.push_back({pattern, c.problem, tile});
  const std::vector<Bound> bound = bind_all(bindings);
  require_bound(bindings, bound);
  HashedWorkload workload(c, c.seed);
  for (std::size_t i = 0; i < tiles.size(); ++i) {
    if (!bound[i].kernel) continue;
    const auto outcome = workload.check(*bound[i].kernel, expected);
    CHECK_OUTCOME(outcome, fmt::format("{}, {} x {}, {}, tile {}", description, c.seqlen_q,
                                       c.seqlen_k, describe(c.problem), describe(tiles[i])));
  }
}

}  // namespace gpu_tests
