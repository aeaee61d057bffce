// What the GPU tests share: the oracle's masks as bits, patterns as text, kernels bound by several
// threads, and a count of what was checked.
#pragma once

#include <dlfcn.h>
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <utility>
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

constexpr girih::TileConfig kPortable{.portable = true};
/// The kernel that the plan takes on this GPU, and the one for every GPU.
constexpr girih::TileConfig kKernels[] = {{}, kPortable};

// --- Expressions

inline oracle::Expr dense() { return {oracle::Expr::Kind::dense, {}, {}}; }
inline oracle::Expr causal() { return {oracle::Expr::Kind::causal, {}, {}}; }
inline oracle::Expr window(long long left, long long right) {
  return {oracle::Expr::Kind::window, {left, right}, {}};
}
inline oracle::Expr sink(long long n) { return {oracle::Expr::Kind::sink, {n}, {}}; }
inline oracle::Expr atom(oracle::Expr::Kind kind, std::vector<long long> numbers) {
  return {kind, std::move(numbers), {}};
}
inline oracle::Expr strided(oracle::Strided blocks) {
  return {oracle::Expr::Kind::strided, {}, {}, std::move(blocks)};
}
inline oracle::Expr neighborhood(std::vector<oracle::Axis> axes) {
  return {oracle::Expr::Kind::neighborhood, {}, {}, {}, {}, std::move(axes)};
}
/// expr("text"), which holds where `holds` says so.
inline oracle::Expr condition(
    std::string text,
    std::function<bool(const oracle::Sizes& sizes, long long q, long long k)> holds,
    bool by_head = false) {
  oracle::Expr expr{oracle::Expr::Kind::condition, {}, {}};
  expr.condition = {std::move(text), std::move(holds), by_head};
  return expr;
}
inline oracle::Expr both(oracle::Expr a, oracle::Expr b) {
  return {oracle::Expr::Kind::all_of, {}, {std::move(a), std::move(b)}};
}
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

/// In the first of a problem's heads.
inline oracle::Sizes with_heads(oracle::Sizes sizes, const girih::Problem& problem) {
  sizes.head = problem.head_offset;
  sizes.num_heads = problem.heads_total();
  sizes.group_size = problem.group_size();
  return sizes;
}

inline oracle::Sizes in_head(oracle::Sizes sizes, int h) {
  sizes.head += h;
  return sizes;
}

/// Of each sequence of a case, in its first head.
inline std::vector<oracle::Sizes> sizes_of(const girih::verify::Case& c) {
  std::vector<oracle::Sizes> sizes;
  for (const girih::verify::Sequence& s : girih::verify::sequences_of(c)) {
    sizes.push_back(with_heads({s.seqlen_q, s.seqlen_k, s.q_start, s.k_start}, c.problem));
  }
  return sizes;
}

inline void set_visible_bits(const oracle::Expr& expr, const oracle::Sizes& sizes, long long q,
                             std::span<std::uint32_t> words) {
  for (long long k = 0; k < sizes.seqlen_k; ++k) {
    if (oracle::visible(expr, sizes, q, k)) {
      words[static_cast<std::size_t>(k / 32)] |= 1u << (k % 32);
    }
  }
}

inline std::vector<int> all_rows(long long seqlen_q) {
  std::vector<int> rows(static_cast<std::size_t>(seqlen_q));
  for (int q = 0; q < seqlen_q; ++q) rows[static_cast<std::size_t>(q)] = q;
  return rows;
}

/// The oracle's reading of classes of consecutive heads.
inline girih::verify::MaskRow oracle_mask(std::vector<oracle::Expr> classes, int heads_per_class,
                                          const girih::verify::Case& c) {
  return [classes = std::move(classes), heads_per_class, sizes = sizes_of(c)](
             girih::verify::Row row, std::span<std::uint32_t> words) {
    const std::size_t index =
        classes.size() == 1 ? 0 : static_cast<std::size_t>(row.h / heads_per_class);
    set_visible_bits(classes[index], in_head(sizes[static_cast<std::size_t>(row.b)], row.h), row.q,
                     words);
  };
}

/// Chosen rows of the oracle's mask of one sequence, as bits.
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

// --- Problems, lengths and results

inline girih::Problem make_problem(girih::DType dtype, int head_dim, int num_heads,
                                   int num_heads_kv, int head_dim_v = 0,
                                   girih::Layout layout = girih::Layout::bshd) {
  return {.dtype = dtype,
          .head_dim = head_dim,
          .num_heads = num_heads,
          .num_heads_kv = num_heads_kv,
          .head_dim_v = head_dim_v,
          .layout = layout};
}

/// `count` lengths up to 20 short of `longest`, among them 0 and 1.
inline std::vector<int> ragged_lengths(std::mt19937_64& random, int count, int longest) {
  std::vector<int> lengths;
  for (int i = 0; i < count; ++i) {
    const int length = std::max(0, longest - static_cast<int>(random() % 21));
    lengths.push_back(i % 6 == 2 ? 0 : i % 6 == 4 ? 1 : length);
  }
  std::shuffle(lengths.begin(), lengths.end(), random);
  return lengths;
}

/// A number from 0 to `bounds[b]`, ends included and frequent, for every sequence.
inline std::vector<int> random_parts(std::mt19937_64& random, const std::vector<int>& bounds) {
  std::vector<int> parts;
  for (const int bound : bounds) {
    const int part = static_cast<int>(random() % (static_cast<std::uint64_t>(bound) + 1));
    const auto kind = random() % 6;
    parts.push_back(kind == 0 ? 0 : kind == 1 ? bound : part);
  }
  return parts;
}

/// Sequences of their own lengths: packed ones, or such as are shortened and padded.
inline girih::verify::Case with_ragged_lengths(girih::verify::Case c, girih::Layout layout,
                                               std::mt19937_64& random) {
  c.problem.layout = layout;
  if (layout == girih::Layout::thd) {
    c.lengths.q = ragged_lengths(random, c.batch, c.seqlen_q);
    c.lengths.k = ragged_lengths(random, c.batch, c.seqlen_k);
  } else {
    c.lengths.used_k = ragged_lengths(random, c.batch, c.seqlen_k);
    c.lengths.leftpad_k = random_parts(random, c.lengths.used_k);
  }
  return c;
}

/// The rows of out and lse of all sequences and heads, as they were downloaded.
inline std::vector<std::uint16_t> result_bits(const girih::verify::Workload& workload) {
  const girih::verify::Case& c = workload.parameters;
  std::vector<std::uint16_t> bits;
  bits.reserve(static_cast<std::size_t>(workload.num_rows() * (c.problem.width_v() + 2)));
  for (int b = 0; b < c.batch; ++b) {
    for (int q = 0; q < workload.sequences[static_cast<std::size_t>(b)].seqlen_q; ++q) {
      for (int h = 0; h < c.problem.num_heads; ++h) {
        const std::uint16_t* row = workload.out_row({b, h, q});
        bits.insert(bits.end(), row, row + c.problem.width_v());
        const auto lse = std::bit_cast<std::uint32_t>(workload.lse_at({b, h, q}));
        bits.push_back(static_cast<std::uint16_t>(lse >> 16));
        bits.push_back(static_cast<std::uint16_t>(lse));
      }
    }
  }
  return bits;
}

// --- Launches that repeat

constexpr int kRepeats = 20;

/// Out and lse of one launch, where there was something else before it: in the outputs, and in the
/// workspace that its lists are built in.
inline std::vector<std::uint16_t> bits_of_launch(const girih::jit::Kernel& kernel,
                                                 girih::verify::Workload& workload,
                                                 girih::verify::Buffer& memory) {
  workload.poison_outputs();
  memory.fill(0xff);
  const girih::jit::Args args = workload.args();
  const girih::jit::Workspace workspace{memory.data(), memory.size()};
  kernel.build_lists(args, workspace);
  kernel.launch(args, workspace);
  girih::verify::synchronize();
  workload.download_outputs();
  return result_bits(workload);
}

/// Launches so often, and each time all bits must be those of the first, which it returns.
inline std::vector<std::uint16_t> check_repeats(const girih::jit::Kernel& kernel,
                                                girih::verify::Workload& workload,
                                                girih::verify::Buffer& memory) {
  const std::vector<std::uint16_t> first = bits_of_launch(kernel, workload, memory);
  for (int run = 1; run < kRepeats; ++run) {
    const std::vector<std::uint16_t> bits = bits_of_launch(kernel, workload, memory);
    std::int64_t different = 0;
    for (std::size_t i = 0; i < bits.size(); ++i) different += bits[i] != first[i];
    CHECK_MESSAGE(different == 0, "launch " << run << " differs from the first in " << different
                                            << " of " << bits.size() << " halves of words");
  }
  // Rows that no launch has written would be alike, too.
  const std::int64_t elements = workload.num_rows() * workload.out.shape().width;
  CHECK(workload.touched_padding() == 0);
  CHECK(workload.out.count_written() == elements);
  rows_checked += workload.num_rows();
  return first;
}

// --- Driver functions that Girih itself has no use for

template <class Function>
Function driver_symbol(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(library != nullptr);
  void* const symbol = dlsym(library, name);
  REQUIRE_MESSAGE(symbol != nullptr, name);
  return reinterpret_cast<Function>(symbol);
}
#define GIRIH_TEST_STRING_OF(name) #name
#define GIRIH_TEST_STRING(name) GIRIH_TEST_STRING_OF(name)  // cuda.h renames some functions
#define DRIVER(function) \
  gpu_tests::driver_symbol<decltype(&::function)>(GIRIH_TEST_STRING(function))

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
  return fmt::format("{} {} d{}:{} heads {}:{}", girih::to_string(problem.layout),
                     girih::to_string(problem.dtype), problem.head_dim, problem.width_v(),
                     problem.num_heads, problem.num_heads_kv);
}

inline std::string describe(const girih::TileConfig& tile) {
  return std::to_string(tile.block_m) + "x" + std::to_string(tile.block_n) + " stages " +
         std::to_string(tile.num_stages) + " warps " + std::to_string(tile.num_warps) +
         (tile.num_q_stages > 0 ? " Q stages " + std::to_string(tile.num_q_stages) : "") +
         (tile.portable ? " portable" : "");
}

}  // namespace gpu_tests
