// Tile maxima on the GPU against the oracle's, and thresholds calibrated from them.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "../oracle/prune.hpp"
#include "girih/prune.hpp"
#include "planes.hpp"
#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::InputInfo;
using girih::Layout;
using girih::Pattern;
using girih::verify::Buffer;
using girih::verify::Case;
using girih::verify::GpuReference;
using girih::verify::InputData;
using girih::verify::Report;
using girih::verify::Row;
using girih::verify::Workload;

namespace {

Case case_of(DType dtype, int head_dim, int seqlen_q, int seqlen_k, int batch) {
  Case c;
  c.problem = make_problem(dtype, head_dim, 4, 2);
  c.batch = batch;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  c.seed = static_cast<std::uint64_t>(seqlen_q + 7 * seqlen_k + head_dim);
  return c;
}

// What the oracle says of sequence b and query head h.
using Reading = std::function<oracle::Expr(int b, int h)>;

void check_maxima(const Case& c, int kv, const std::string& text, const Reading& reading) {
  CAPTURE(text);
  CAPTURE(describe(c.problem));
  Workload workload(c);
  workload.fill_normal(c.seed);
  const oracle::Prune prune{kv, true, false};
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  const int num_heads = c.problem.num_heads;
  const long long q_tiles = oracle::num_query_tiles(sizes[0]);
  const long long k_tiles = oracle::num_key_tiles(prune, sizes[0]);
  std::vector<float> maxima(static_cast<std::size_t>(c.batch * num_heads * q_tiles * k_tiles));
  const Buffer memory(maxima.size() * sizeof(float));
  const girih::jit::TileMaxima tile_maxima(Pattern::parse(text), kv);
  const girih::jit::Args args = workload.args();
  tile_maxima({.q = args.q,
               .k = args.k,
               .layout = args.layout,
               .maxima = static_cast<float*>(memory.data()),
               .inputs = args.inputs});
  ++kernels_bound;
  girih::verify::synchronize();
  memory.download(maxima.data(), memory.size());
  const double scale = static_cast<double>(girih::verify::softmax_scale_of(c));
  std::size_t at = 0;
  for (int b = 0; b < c.batch; ++b) {
    for (int h = 0; h < num_heads; ++h) {
      const double cap = static_cast<double>(c.softcaps[static_cast<std::size_t>(h)]);
      const auto score = [&](long long q, long long k) {
        const std::uint16_t* q_row = workload.q_row({b, h, static_cast<int>(q)});
        const std::uint16_t* k_row =
            workload.k_row(b, static_cast<int>(k), h / c.problem.group_size());
        double sum = 0;
        for (int j = 0; j < c.problem.head_dim; ++j) {
          sum += static_cast<double>(girih::verify::widen(c.problem.dtype, q_row[j])) *
                 static_cast<double>(girih::verify::widen(c.problem.dtype, k_row[j]));
        }
        return cap > 0 ? cap * std::tanh(scale * sum / cap) : scale * sum;
      };
      const oracle::Expr expr = reading(b, h);
      const oracle::Sizes of_head = in_head(sizes[static_cast<std::size_t>(b)], h);
      for (long long tile = 0; tile < q_tiles; ++tile) {
        for (const double expected : oracle::tile_maxima(expr, prune, of_head, tile, score)) {
          const auto got = static_cast<double>(maxima[at++]);
          if (std::isinf(expected)) {
            REQUIRE(got == expected);
          } else {
            REQUIRE(std::fabs(got - expected) < 1e-4);
          }
        }
      }
    }
  }
  rows_checked += std::int64_t{c.batch} * num_heads * c.seqlen_q;
}

}  // namespace

TEST_CASE("tile maxima are the highest visible scores") {
  const std::vector<oracle::Expr> classes = {causal(), streaming(40, 90)};
  const std::string text = fmt::format("heads(0-1: {} with softcap(1.5), 2-3: {})",
                                       oracle::text(classes[0]), oracle::text(classes[1]));
  for (const auto& [seqlen_q, seqlen_k] :
       {std::pair{512, 512}, {300, 1111}, {700, 333}, {1, 200}}) {
    for (const int head_dim : {64, 128, 256}) {
      for (const int kv : {64, 128}) {
        Case c = case_of(head_dim == 64 ? DType::float16 : DType::bfloat16, head_dim, seqlen_q,
                         seqlen_k, 2);
        if (head_dim == 128) c.problem.layout = Layout::bhsd;
        c.softcaps = {1.5f, 1.5f, 0, 0};
        check_maxima(c, kv, text,
                     [&](int, int h) { return classes[static_cast<std::size_t>(h / 2)]; });
      }
    }
  }
}

TEST_CASE("tile maxima are the highest scores that run-time masks show") {
  // Only masks' inputs are given: alibi does not count.
  const std::string text =
      "heads(0: causal & blocks(m, q=64, kv=32) with softcap(1.5), 1: vertical_slash(v), "
      "2: causal & segments(d) & expr(\"k % 7 != t[b]\") with alibi(a), "
      "3: columns(c) | causal & sink($n))";
  for (const auto& [seqlen_q, seqlen_k] : {std::pair{512, 512}, {300, 1111}}) {
    for (const int head_dim : {64, 128}) {
      for (const int kv : {64, 128}) {
        Case c = case_of(DType::bfloat16, head_dim, seqlen_q, seqlen_k, 2);
        if (head_dim == 128) c.problem.layout = Layout::bhsd;
        c.softcaps = {1.5f, 0, 0, 0};
        const InputData m = girih::verify::random_blocks("m", 2, 1, (seqlen_q + 63) / 64,
                                                         (seqlen_k + 31) / 32, 0.3, 1, c.seed);
        const InputData v = girih::verify::random_slashes("v", 2, 1, seqlen_k, 40, 110, c.seed);
        const InputData d =
            girih::verify::random_documents("d", 2, 1, seqlen_q, seqlen_k, 100, c.seed);
        const InputData t{
            .kind = InputInfo::Kind::int_tensor, .name = "t", .numbers = {2, 5}, .shape = {2}};
        const InputData columns =
            girih::verify::random_columns("c", 2, 1, seqlen_q, seqlen_k, 1, 90, c.seed);
        const InputData n{
            .kind = InputInfo::Kind::number, .name = "n", .batch = 2, .numbers = {40, 200}};
        c.inputs = {n, columns, t, d, v, m};
        const std::vector<std::int32_t>& of_keys =
            d.key_numbers.empty() ? d.numbers : d.key_numbers;
        check_maxima(c, kv, text, [&](int b, int h) {
          const auto number = [b](const std::vector<std::int32_t>& numbers, long long each,
                                  long long i) {
            return numbers[static_cast<std::size_t>(b * each + i)];
          };
          if (h == 0) {
            return both(causal(),
                        condition("", [&, b](const oracle::Sizes&, long long q, long long k) {
                          return m.row(b, static_cast<int>(q / 64))[k / 32] != 0;
                        }));
          }
          if (h == 1) {
            return slashes_of(v, b, sizes_of(c)[static_cast<std::size_t>(b)], all_rows(seqlen_q));
          }
          if (h == 2) {
            return both(causal(), condition("", [&, b, number](const oracle::Sizes& sizes,
                                                               long long q, long long k) {
                          return number(d.numbers, sizes.seqlen_q, q) ==
                                     number(of_keys, sizes.seqlen_k, k) &&
                                 k % 7 != t.numbers[static_cast<std::size_t>(b)];
                        }));
          }
          return condition(
              "", [&, b, number](const oracle::Sizes& sizes, long long q, long long k) {
                const bool in_interval = number(columns.bounds, 2 * sizes.seqlen_k, 2 * k) <= q &&
                                         q < number(columns.bounds, 2 * sizes.seqlen_k, 2 * k + 1);
                return in_interval ||
                       oracle::visible(both(causal(), sink(n.numbers[static_cast<std::size_t>(b)])),
                                       sizes, q, k);
              });
        });
      }
    }
  }
}

TEST_CASE("what is calibrated keeps as many tiles as it was asked for") {
  constexpr int kKept = 5;
  GpuReference gpu_reference;
  Case c = case_of(DType::bfloat16, 128, 1536, 1536, 1);
  Workload workload(c);
  workload.fill_normal(c.seed);
  const girih::jit::Args args = workload.args();
  const int tiles = 1536 / 64;
  std::vector<float> maxima(static_cast<std::size_t>(4 * 12 * tiles));
  const Buffer memory(maxima.size() * sizeof(float));
  girih::jit::TileMaxima(girih::causal(), 64)(
      {.q = args.q, .k = args.k, .maxima = static_cast<float*>(memory.data())});
  girih::verify::synchronize();
  memory.download(maxima.data(), memory.size());
  girih::Calibration calibration({.num_heads = 4, .kv = 64, .kept_tiles = kKept});
  calibration.add(maxima.data(), {.seqlen_q = 1536, .seqlen_k = 1536});
  InputData data{.kind = InputInfo::Kind::thresholds, .name = "t"};
  data.heads = 4;
  data.thresholds = calibration.thresholds();
  data.num_columns = calibration.num_columns();
  data.prune_kv = 64;
  c.inputs = {data};
  // Of the example itself just those tiles are kept, and the rows' own.
  const auto mask = [&](Row row, std::span<std::uint32_t> words) {
    set_visible_bits(causal(), in_head(sizes_of(c)[0], row.h), row.q, words);
    const float* of_tile = maxima.data() + (row.h * 12 + row.q / 128) * tiles;
    for (int n = 0; n < row.q / 128 * 2; ++n) {
      const auto higher = std::count_if(of_tile, of_tile + row.q / 128 * 2,
                                        [&](float other) { return other > of_tile[n]; });
      if (higher < kKept) continue;
      words[static_cast<std::size_t>(2 * n)] = words[static_cast<std::size_t>(2 * n + 1)] = 0;
    }
  };
  const girih::jit::Program program =
      girih::jit::compile(Pattern::parse("causal with prune(t, kv=64)"));
  const Report report = girih::verify::verify_attention(program, c, mask, gpu_reference);
  rows_checked += report.rows_checked;
  CHECK(report.ok());
  CHECK(report.rows_checked > 0);
}

TEST_CASE("sanitizer: tile maxima are the highest visible scores") {
  const std::vector<oracle::Expr> classes = {causal(), streaming(40, 90)};
  const std::string text = fmt::format("heads(0-1: {} with softcap(1.5), 2-3: {})",
                                       oracle::text(classes[0]), oracle::text(classes[1]));
  for (const int kv : {64, 128}) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      Case c = case_of(DType::bfloat16, 64, 150, 210, 2);
      c.problem.layout = layout;
      c.softcaps = {1.5f, 1.5f, 0, 0};
      check_maxima(c, kv, text,
                   [&](int, int h) { return classes[static_cast<std::size_t>(h / 2)]; });
    }
  }
}
