// What the GPU tests share: the oracle's masks as bits, patterns as text, kernels bound by several
// threads, and a count of what was checked.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "../oracle/oracle.hpp"
#include "girih/error.hpp"
#include "girih/jit.hpp"
#include "verify/device.hpp"
#include "verify/parallel.hpp"
#include "verify/verify.hpp"

namespace gpu_tests {

inline std::atomic<std::int64_t> rows_checked = 0;
inline std::atomic<std::int64_t> kernels_bound = 0;

constexpr std::int64_t kRowsPerThread = 64;  // fewer do not pay for starting one

// --- Expressions

inline oracle::Expr dense() { return {oracle::Expr::Kind::dense, {}, {}}; }
inline oracle::Expr causal() { return {oracle::Expr::Kind::causal, {}, {}}; }
inline oracle::Expr window(long long left, long long right) {
  return {oracle::Expr::Kind::window, {left, right}, {}};
}
inline oracle::Expr sink(long long n) { return {oracle::Expr::Kind::sink, {n}, {}}; }
inline oracle::Expr negation(oracle::Expr expr) {
  return {oracle::Expr::Kind::negation, {}, {std::move(expr)}};
}
inline oracle::Expr streaming(long long sink_size, long long local) {
  return {oracle::Expr::Kind::all_of,
          {},
          {causal(), {oracle::Expr::Kind::any_of, {}, {sink(sink_size), window(local - 1, -1)}}}};
}

/// Classes of consecutive heads, `heads_per_class` each; one class is a pattern for all heads.
inline std::string pattern_text(const std::vector<oracle::Expr>& classes, int heads_per_class) {
  if (classes.size() == 1) return oracle::text(classes[0]);
  std::string text = "heads(";
  int head = 0;
  for (const oracle::Expr& expr : classes) {
    if (head > 0) text += ", ";
    text += std::to_string(head) + "-" + std::to_string(head + heads_per_class - 1) + ": " +
            oracle::text(expr);
    head += heads_per_class;
  }
  return text + ")";
}

/// The positions that a launch has unless it says otherwise.
inline oracle::Sizes sizes_of(const girih::verify::Case& c) {
  return {c.seqlen_q, c.seqlen_k, girih::verify::q_start_of(c), c.k_start};
}

inline void set_visible_bits(const oracle::Expr& expr, const oracle::Sizes& sizes, long long q,
                             std::span<std::uint32_t> words) {
  for (long long k = 0; k < sizes.seqlen_k; ++k) {
    if (oracle::visible(expr, sizes, q, k)) {
      words[static_cast<std::size_t>(k / 32)] |= 1u << (k % 32);
    }
  }
}

/// The oracle's reading of classes of consecutive heads.
inline girih::verify::MaskRow oracle_mask(std::vector<oracle::Expr> classes, int heads_per_class,
                                          oracle::Sizes sizes) {
  return [=](int h, int q, std::span<std::uint32_t> words) {
    const std::size_t index =
        classes.size() == 1 ? 0 : static_cast<std::size_t>(h / heads_per_class);
    set_visible_bits(classes[index], sizes, q, words);
  };
}

/// Chosen rows of the oracle's mask, as bits.
class VisibleRows {
 public:
  VisibleRows(const oracle::Expr& expr, const oracle::Sizes& sizes, const std::vector<int>& rows)
      : words_(
            static_cast<std::size_t>(girih::verify::mask_words(static_cast<int>(sizes.seqlen_k)))),
        bits_(rows.size() * words_) {
    girih::verify::parallel_for(
        static_cast<std::int64_t>(rows.size()),
        [&](std::int64_t i) {
          const auto index = static_cast<std::size_t>(i);
          set_visible_bits(expr, sizes, rows[index],
                           std::span(bits_).subspan(index * words_, words_));
        },
        kRowsPerThread);
  }
  std::span<const std::uint32_t> operator[](std::size_t index) const {
    return std::span(bits_).subspan(index * words_, words_);
  }

 private:
  std::size_t words_;
  std::vector<std::uint32_t> bits_;
};

// --- Kernels

struct Binding {
  std::string pattern;
  girih::Problem problem;
  girih::TileConfig tile;
};

struct Bound {
  std::optional<girih::jit::Kernel> kernel;
  girih::Errc code = girih::Errc::internal;
  std::string message;  ///< why there is no kernel
};

/// Binds on all processors, for each new structure is a run of the compiler.
inline std::vector<Bound> bind_all(const std::vector<Binding>& bindings) {
  std::vector<Bound> result(bindings.size());
  girih::verify::parallel_for(static_cast<std::int64_t>(bindings.size()), [&](std::int64_t i) {
    const Binding& binding = bindings[static_cast<std::size_t>(i)];
    Bound& bound = result[static_cast<std::size_t>(i)];
    try {
      const girih::verify::Device device;  // a context is current per thread
      girih::jit::Options options;
      options.tile = binding.tile;
      bound.kernel =
          girih::jit::compile(girih::Pattern::parse(binding.pattern), binding.problem, options);
      ++kernels_bound;
    } catch (const girih::Error& error) {
      bound.code = error.code();
      bound.message = error.what();
    }
  });
  return result;
}

inline std::string describe(const girih::Problem& problem) {
  return std::string(girih::to_string(problem.dtype)) + " d" + std::to_string(problem.head_dim) +
         " heads " + std::to_string(problem.num_heads) + ":" + std::to_string(problem.num_heads_kv);
}

inline std::string describe(const girih::TileConfig& tile) {
  return std::to_string(tile.block_m) + "x" + std::to_string(tile.block_n) + " stages " +
         std::to_string(tile.num_stages) + " warps " + std::to_string(tile.num_warps);
}

}  // namespace gpu_tests
