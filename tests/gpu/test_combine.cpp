// Merging partial results on a GPU: against float64, in place, and as ring and all-gather sequence
// parallelism on one device, where merged chunks must equal the one launch over all keys.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <random>

#include "girih/combine.hpp"
#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::Problem;
using girih::Tensor;
using girih::jit::Args;
using girih::jit::CombineArgs;
using girih::verify::Buffer;
using girih::verify::Case;
using girih::verify::Workload;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Extents {
  int batch, rows, heads, width;
  std::size_t num_rows() const { return static_cast<std::size_t>(batch) * rows * heads; }
  std::size_t num_elements() const { return num_rows() * width; }
};

std::array<std::int64_t, 4> shape_of(Layout layout, const Extents& e) {
  if (layout == Layout::bhsd) return {e.batch, e.heads, e.rows, e.width};
  return {e.batch, e.rows, e.heads, e.width};
}

// Where row (b, s, h) begins in a contiguous tensor.
std::size_t row_at(Layout layout, const Extents& e, int b, int s, int h) {
  const int index =
      layout == Layout::bhsd ? (b * e.heads + h) * e.rows + s : (b * e.rows + s) * e.heads + h;
  return static_cast<std::size_t>(index) * e.width;
}
std::size_t lse_at(const Extents& e, int b, int s, int h) {
  return (static_cast<std::size_t>(b) * e.heads + h) * e.rows + s;
}

// A contiguous tensor and its lse; memory starts as NaN.
struct Result {
  Result(DType type, Layout layout, const Extents& extents)
      : dtype(type),
        out(extents.num_elements() * girih::bytes_of(type)),
        lse(extents.num_rows() * sizeof(float)),
        view(Tensor::contiguous(out.data(), type, shape_of(layout, extents))) {}

  float* lse_data() const { return static_cast<float*>(lse.data()); }

  // Rounds `values` to the type, as they are uploaded.
  void upload(std::vector<float>& values, const std::vector<float>& lses) {
    if (dtype == DType::float32) {
      out.upload(values.data(), values.size() * sizeof(float));
    } else {
      std::vector<std::uint16_t> bits;
      for (float& value : values) {
        bits.push_back(girih::verify::narrow(dtype, value));
        value = girih::verify::widen(dtype, bits.back());
      }
      out.upload(bits.data(), bits.size() * sizeof(std::uint16_t));
    }
    lse.upload(lses.data(), lses.size() * sizeof(float));
  }
  std::vector<float> download() const {
    std::vector<float> values(out.size() / girih::bytes_of(dtype));
    if (dtype == DType::float32) {
      out.download(values.data(), out.size());
      return values;
    }
    std::vector<std::uint16_t> bits(values.size());
    out.download(bits.data(), out.size());
    std::transform(bits.begin(), bits.end(), values.begin(),
                   [&](std::uint16_t b) { return girih::verify::widen(dtype, b); });
    return values;
  }
  std::vector<float> download_lse() const {
    std::vector<float> values(lse.size() / sizeof(float));
    lse.download(values.data(), lse.size());
    return values;
  }

  DType dtype;
  Buffer out, lse;
  Tensor view;
};

// Relative to 1 and above: half a unit in the last place of the type, and the sums' float32.
double rounding(DType dtype) {
  return (dtype == DType::float32 ? 0.0 : dtype == DType::float16 ? 0x1p-11 : 0x1p-8) + 1e-5;
}

struct Merge {
  Extents extents;
  Layout layout;
  std::vector<DType> types;  // of the parts
  DType out_type;
  bool in_place;  // into the last part, whose type out_type then is
};

void check_merge(const Merge& merge, std::mt19937_64& random) {
  const Extents& e = merge.extents;
  const std::size_t n = merge.types.size();
  std::normal_distribution<float> normal;
  std::vector<std::vector<float>> values(n), lses(n);
  std::deque<Result> parts;
  CombineArgs args;
  args.layout = merge.layout;
  for (std::size_t i = 0; i < n; ++i) {
    values[i].resize(e.num_elements());
    lses[i].resize(e.num_rows());
    for (float& value : values[i]) value = normal(random);
    for (float& lse : lses[i]) {
      const auto kind = random() % 6;
      lse = kind == 0 ? -kInfinity : kind == 1 ? kInfinity : 4 * normal(random) + 20;
    }
    for (int b = 0; b < e.batch; ++b) {  // what has seen nothing may hold anything
      for (int s = 0; s < e.rows; ++s) {
        for (int h = 0; h < e.heads; ++h) {
          if (!std::isinf(lses[i][lse_at(e, b, s, h)])) continue;
          std::fill_n(
              values[i].begin() + static_cast<std::ptrdiff_t>(row_at(merge.layout, e, b, s, h)),
              e.width, std::nanf(""));
        }
      }
    }
    parts.emplace_back(merge.types[i], merge.layout, e).upload(values[i], lses[i]);
    args.parts.push_back({parts.back().view, parts.back().lse_data()});
  }
  Result own(merge.out_type, merge.layout, e);
  Result& merged = merge.in_place ? parts.back() : own;
  args.out = merged.view;
  args.lse = merged.lse_data();
  girih::jit::combine(args);
  girih::verify::synchronize();

  const std::vector<float> out = merged.download(), lse = merged.download_lse();
  int wrong = 0;
  for (int b = 0; b < e.batch; ++b) {
    for (int s = 0; s < e.rows; ++s) {
      for (int h = 0; h < e.heads; ++h) {
        const std::size_t at = lse_at(e, b, s, h), row = row_at(merge.layout, e, b, s, h);
        double highest = -kInfinity, sum = 0;
        const auto exists = [&](std::size_t i) { return !std::isinf(lses[i][at]); };
        for (std::size_t i = 0; i < n; ++i) {
          if (exists(i)) highest = std::max(highest, double{lses[i][at]});
        }
        for (std::size_t i = 0; i < n; ++i) {
          if (exists(i)) sum += std::exp(lses[i][at] - highest);
        }
        const double expected_lse = sum == 0 ? -kInfinity : highest + std::log(sum);
        if (!(lse[at] == expected_lse || std::fabs(lse[at] - expected_lse) < 1e-4)) ++wrong;
        for (int column = 0; column < e.width; ++column) {
          double expected = 0;
          for (std::size_t i = 0; i < n; ++i) {
            if (!exists(i)) continue;
            expected += std::exp(lses[i][at] - highest) / sum * values[i][row + column];
          }
          const double error = std::fabs(out[row + column] - expected);
          if (!(error <= rounding(merge.out_type) * std::max(1.0, std::fabs(expected)))) ++wrong;
        }
        ++rows_checked;
      }
    }
  }
  CHECK_MESSAGE(wrong == 0, fmt::format("{} numbers wrong of {} parts, {} {} x {} x {} x {}{}",
                                        wrong, n, to_string(merge.layout), e.batch, e.rows, e.heads,
                                        e.width, merge.in_place ? ", in place" : ""));
}

DType any_type(std::mt19937_64& random) {
  constexpr DType kTypes[] = {DType::float16, DType::bfloat16, DType::float32};
  return kTypes[random() % 3];
}

void check_random_merges(int count, int longest) {
  std::mt19937_64 random(3);
  const auto up_to = [&](int n) { return 1 + static_cast<int>(random() % n); };
  for (int i = 0; i < count; ++i) {
    constexpr Layout kLayouts[] = {Layout::bshd, Layout::bhsd, Layout::thd};
    Merge merge{};
    merge.layout = kLayouts[i % 3];
    merge.extents = {merge.layout == Layout::thd ? 1 : up_to(3), up_to(longest), up_to(9),
                     8 * up_to(40)};
    for (int part = up_to(i % 7 == 0 ? 64 : 5); part > 0; --part) {
      merge.types.push_back(any_type(random));
    }
    merge.in_place = i % 2 == 0;
    merge.out_type = merge.in_place ? merge.types.back() : any_type(random);
    check_merge(merge, random);
  }
}

// --- Sequence parallelism: every rank has a chunk of the queries, of the keys, or of the heads

const char* const kChunkedPattern =
    "heads(0-1: causal, 2-3: causal & (sink(40) | window(left=99)), "
    "4-5: causal & strided(local=2, stride=3, block=16), else: window(left=70, right=30))";

Tensor chunk_of(Tensor tensor, int first_row, int num_rows) {
  tensor.data = static_cast<std::uint16_t*>(tensor.data) + first_row * tensor.stride[1];
  tensor.shape[1] = num_rows;
  return tensor;
}

Tensor heads_of(Tensor tensor, int first_head, int num_heads) {
  tensor.data = static_cast<std::uint16_t*>(tensor.data) + first_head * tensor.stride[2];
  tensor.shape[2] = num_heads;
  return tensor;
}

struct Ranks {
  int sequence;  // ranks that share the queries and keys
  int tensor;    // ranks that share the heads
};

// As many launches as a ring makes, each merged into an accumulator of float32 or into the results
// of the first; or all of a rank's merged at once, as after an all-gather.
enum class Way { ring, ring_of_results, all_gather };

void check_parallel(const Ranks& ranks, Way way, DType dtype, const girih::TileConfig& tile = {}) {
  Case c;
  c.problem = make_problem(dtype, 64, 8, 4, 96);
  c.batch = 2;
  c.seqlen_q = c.seqlen_k = 300;
  Workload workload(c);
  workload.fill_normal(5);
  workload.poison_outputs();
  const girih::jit::Program program =
      girih::jit::compile(Pattern::parse(kChunkedPattern), {.tile = tile});
  const Args whole = workload.args();
  program.bind(c.problem).launch(whole);
  girih::verify::synchronize();
  workload.download_outputs();

  Problem problem = c.problem;
  problem.num_heads /= ranks.tensor;
  problem.num_heads_kv /= ranks.tensor;
  problem.num_heads_total = c.problem.num_heads;
  const auto begin_of = [&](int rank) { return c.seqlen_q * rank / ranks.sequence; };
  const double allowed = dtype == DType::bfloat16 ? 0.04 : 0.005;  // |out| is up to 4, rounded 3 x
  int wrong = 0;
  for (int head_rank = 0; head_rank < ranks.tensor; ++head_rank) {
    problem.head_offset = head_rank * problem.num_heads;
    const girih::jit::Kernel kernel = program.bind(problem);
    for (int rank = 0; rank < ranks.sequence; ++rank) {
      const int first = begin_of(rank), count = begin_of(rank + 1) - first;
      const Extents e{c.batch, count, problem.num_heads, problem.width_v()};
      Result accumulator(way == Way::ring ? DType::float32 : dtype, Layout::bshd, e);
      std::deque<Result> parts;
      CombineArgs merge;
      merge.out = accumulator.view;
      merge.lse = accumulator.lse_data();
      for (int step = 0; step < ranks.sequence; ++step) {
        const int owner = (rank + step) % ranks.sequence;  // of the keys that arrive
        const int first_key = begin_of(owner), num_keys = begin_of(owner + 1) - first_key;
        Args args = whole;
        args.q = heads_of(chunk_of(whole.q, first, count), problem.head_offset, problem.num_heads);
        for (Tensor* tensor : {&args.k, &args.v}) {
          *tensor = heads_of(chunk_of(*tensor, first_key, num_keys),
                             head_rank * problem.num_heads_kv, problem.num_heads_kv);
        }
        args.q_start = first;
        args.k_start = first_key;
        Result& part = parts.emplace_back(dtype, Layout::bshd, e);
        args.out = part.view;
        args.lse = part.lse_data();
        kernel.launch(args);
        if (way == Way::all_gather || step == 0)
          merge.parts.push_back({part.view, part.lse_data()});
        if (way == Way::all_gather) continue;
        if (step > 0) {
          merge.parts = {{accumulator.view, accumulator.lse_data()}, {part.view, part.lse_data()}};
        }
        girih::jit::combine(merge);
      }
      if (way == Way::all_gather) girih::jit::combine(merge);
      girih::verify::synchronize();

      const std::vector<float> out = accumulator.download(), lse = accumulator.download_lse();
      for (int b = 0; b < e.batch; ++b) {
        for (int s = 0; s < e.rows; ++s) {
          for (int h = 0; h < e.heads; ++h) {
            const girih::verify::Row row{b, problem.head_offset + h, first + s};
            const std::uint16_t* expected = workload.out_row(row);
            if (!(std::fabs(lse[lse_at(e, b, s, h)] - workload.lse_at(row)) < 2e-3)) ++wrong;
            for (int column = 0; column < e.width; ++column) {
              const float got = out[row_at(Layout::bshd, e, b, s, h) + column];
              if (!(std::fabs(got - girih::verify::widen(dtype, expected[column])) < allowed)) {
                ++wrong;
              }
            }
            ++rows_checked;
          }
        }
      }
    }
  }
  CHECK_MESSAGE(
      wrong == 0,
      fmt::format("{} numbers wrong with {} sequence and {} tensor ranks, {}, tile {}", wrong,
                  ranks.sequence, ranks.tensor, girih::to_string(dtype), describe(tile)));
}

}  // namespace

TEST_CASE("combine: random parts of every type, layout and width match float64") {
  check_random_merges(60, 150);
}

TEST_CASE("combine: one part alone is copied to the bit, also where its lse is large") {
  const Extents e{2, 40, 3, 72};
  Result part(DType::bfloat16, Layout::bshd, e), merged(DType::bfloat16, Layout::bshd, e);
  std::mt19937_64 random(9);
  std::normal_distribution<float> normal;
  std::vector<float> values(e.num_elements()), lses(e.num_rows());
  for (float& value : values) value = 100 * normal(random);
  for (float& lse : lses) lse = 1e5f * normal(random);
  part.upload(values, lses);
  girih::jit::combine(
      {.parts = {{part.view, part.lse_data()}}, .out = merged.view, .lse = merged.lse_data()});
  girih::verify::synchronize();
  CHECK(merged.download() == values);
  CHECK(merged.download_lse() == lses);
}

TEST_CASE("combine: rows that no part has seen are zero, with the lse that was asked for") {
  const Extents e{1, 9, 2, 64};
  for (const float empty_lse : {-kInfinity, kInfinity}) {
    Result a(DType::float16, Layout::bshd, e), b(DType::float16, Layout::bshd, e);
    Result merged(DType::float16, Layout::bshd, e);
    std::vector<float> values(e.num_elements(), std::nanf(""));
    a.upload(values, std::vector<float>(e.num_rows(), kInfinity));
    b.upload(values, std::vector<float>(e.num_rows(), -kInfinity));
    girih::jit::combine({.parts = {{a.view, a.lse_data()}, {b.view, b.lse_data()}},
                         .out = merged.view,
                         .lse = merged.lse_data(),
                         .empty_lse = empty_lse});
    girih::verify::synchronize();
    CHECK(merged.download() == std::vector<float>(e.num_elements(), 0.0f));
    CHECK(merged.download_lse() == std::vector<float>(e.num_rows(), empty_lse));
  }
}

TEST_CASE("combine: a NaN in a part that counts is not hidden") {
  const Extents e{1, 4, 1, 64};
  Result a(DType::float32, Layout::bshd, e), b(DType::float32, Layout::bshd, e);
  Result merged(DType::float32, Layout::bshd, e);
  std::vector<float> values(e.num_elements(), 1.0f), lses(e.num_rows(), 2.0f);
  a.upload(values, lses);
  lses[1] = std::nanf("");
  values[2 * e.width + 5] = std::nanf("");
  b.upload(values, lses);
  girih::jit::combine({.parts = {{a.view, a.lse_data()}, {b.view, b.lse_data()}},
                       .out = merged.view,
                       .lse = merged.lse_data()});
  girih::verify::synchronize();
  const std::vector<float> out = merged.download();
  CHECK(out[0] == 1.0f);
  CHECK(std::isnan(out[e.width]));
  CHECK(std::isnan(merged.download_lse()[1]));
  CHECK(std::isnan(out[2 * e.width + 5]));
  CHECK(out[2 * e.width + 6] == 1.0f);
}

TEST_CASE("chunks of a ring, merged one after the other, give what one launch gives") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int ranks : {1, 2, 3, 7}) check_parallel({ranks, 1}, Way::ring, dtype);
    check_parallel({4, 1}, Way::ring_of_results, dtype);
  }
  check_parallel({3, 1}, Way::ring, DType::bfloat16, kPortable);
  check_parallel({4, 1}, Way::ring_of_results, DType::float16, kPortable);
}

TEST_CASE("gathered chunks, merged at once, give what one launch gives on every tensor rank") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    check_parallel({3, 2}, Way::all_gather, dtype);
    check_parallel({8, 1}, Way::all_gather, dtype);
    check_parallel({2, 4}, Way::ring, dtype);
  }
  check_parallel({3, 2}, Way::all_gather, DType::float16, kPortable);
  check_parallel({2, 4}, Way::ring, DType::bfloat16, kPortable);
}

TEST_CASE("sanitizer: random parts are merged") { check_random_merges(8, 20); }
