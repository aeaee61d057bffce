// What tests of values share: a case's kernels against float64, with what is wrong in words.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "support.hpp"

namespace gpu_tests {

using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::Problem;
using girih::verify::Case;
using girih::verify::GpuReference;
using girih::verify::Report;

inline std::string describe_lengths(const Case& c) {
  std::string text;
  for (const auto& [name, numbers] : {std::pair{"q", &c.lengths.q},
                                      {"k", &c.lengths.k},
                                      {"used_k", &c.lengths.used_k},
                                      {"leftpad_k", &c.lengths.leftpad_k}}) {
    if (!numbers->empty()) text += fmt::format(", {} {}", name, fmt::join(*numbers, " "));
  }
  return text;
}

inline std::string describe_case(const Case& c, const Report& report) {
  std::string text = fmt::format(
      "{} batch {}, {} x {}{}, seed {}, max_ctas {}, gaps {} {}: {} of {} rows wrong against the "
      "{}, error {:.3g} of {:.3g} allowed in {}, lse {:.3g}, {} not finite, {} written outside",
      describe(c.problem), c.batch, c.seqlen_q, c.seqlen_k, describe_lengths(c), c.seed, c.max_ctas,
      c.row_gap, c.head_gap, report.rows_wrong, report.rows_checked, report.reference, report.error,
      report.allowed_error, report.closest, report.lse_error, report.not_finite,
      report.touched_padding);
  for (const girih::verify::Failure& failure : report.failures) {
    text +=
        fmt::format("\n  batch {} head {} query {}: {}: got {:.9g}, expected {:.9g}", failure.row.b,
                    failure.row.h, failure.row.q, failure.what, failure.got, failure.expected);
  }
  return text;
}

// Classes of consecutive heads, as many heads each.
inline std::string text_of(const std::vector<oracle::Expr>& classes, const Case& c) {
  const int heads_per_class = c.problem.num_heads / static_cast<int>(classes.size());
  REQUIRE(heads_per_class * static_cast<int>(classes.size()) == c.problem.num_heads);
  return pattern_text(classes, heads_per_class);
}

inline void check_values(const std::string& text, const std::vector<oracle::Expr>& classes,
                         const Case& c, GpuReference& gpu_reference,
                         const girih::TileConfig& tile = {}) {
  const int heads_per_class = c.problem.num_heads / static_cast<int>(classes.size());
  CAPTURE(text);
  girih::jit::Options options;
  options.tile = tile;
  const girih::jit::Program program = girih::jit::compile(Pattern::parse(text), options);
  const Report report = girih::verify::verify_attention(
      program, c, oracle_mask(classes, heads_per_class, c), gpu_reference);
  ++kernels_bound;
  rows_checked += report.rows_checked;
  CHECK_MESSAGE(report.ok(), describe_case(c, report) << ", tile " << describe(tile));
  if (report.rows_total > 0) CHECK(report.rows_checked > 0);
}

inline void check_values(const std::vector<oracle::Expr>& classes, const Case& c,
                         GpuReference& gpu_reference, const girih::TileConfig& tile = {}) {
  check_values(text_of(classes, c), classes, c, gpu_reference, tile);
}

// Many cases: what they compile, they compile on all processors before the first is checked.
inline void check_all(const std::vector<oracle::Expr>& classes, const std::vector<Case>& cases,
                      const girih::TileConfig& tile = {}) {
  std::vector<Binding> bindings;
  std::set<std::string> distinct;
  for (const Case& c : cases) {
    Binding binding{text_of(classes, c), c.problem, tile};
    binding.problem.layout = Layout::bshd;  // a kernel is the same for every layout
    const std::string name = binding.pattern + " " + describe(binding.problem);
    if (distinct.insert(name).second) bindings.push_back(std::move(binding));
  }
  const std::vector<Bound> bound = bind_all(bindings);
  for (std::size_t i = 0; i < bound.size(); ++i) {
    CHECK_MESSAGE(bound[i].kernel, describe(bindings[i].problem) << ": " << bound[i].message);
  }
  GpuReference gpu_reference;
  for (const Case& c : cases) {
    try {
      check_values(classes, c, gpu_reference, tile);
    } catch (const girih::Error& error) {  // the other cases have something to say
      FAIL_CHECK(describe(c.problem) << ": " << error.what());
    }
  }
}

inline Case make_case(const Problem& problem, int batch, int seqlen_q, int seqlen_k) {
  Case c;
  c.problem = problem;
  c.batch = batch;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  return c;
}

// Sequences of these lengths, packed.
inline Case make_packed_case(Problem problem, std::vector<int> q, std::vector<int> k) {
  problem.layout = Layout::thd;
  const auto longest = [](const std::vector<int>& lengths) {
    return *std::max_element(lengths.begin(), lengths.end());
  };
  Case c = make_case(problem, static_cast<int>(q.size()), longest(q), longest(k));
  c.lengths.q = std::move(q);
  c.lengths.k = std::move(k);
  return c;
}

inline std::vector<oracle::Expr> thirds() { return {dense(), causal(), streaming(16, 64)}; }

}  // namespace gpu_tests
