// Values of the kernels against float64, over the shapes that PATTERNS pins, and the GPU's float64
// reference against the CPU's.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <random>

#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Pattern;
using girih::Problem;
using girih::verify::Case;
using girih::verify::GpuReference;
using girih::verify::Report;

namespace {

std::string describe_case(const Case& c, const Report& report) {
  std::string text = fmt::format(
      "{} batch {}, {} x {}, seed {}, max_ctas {}: {} of {} rows wrong against the {}, error "
      "{:.3g} "
      "of {:.3g} allowed, lse {:.3g}, {} not finite, {} written outside",
      describe(c.problem), c.batch, c.seqlen_q, c.seqlen_k, c.seed, c.max_ctas, report.rows_wrong,
      report.rows_checked, report.reference, report.error, report.allowed_error, report.lse_error,
      report.not_finite, report.touched_padding);
  for (const girih::verify::Failure& failure : report.failures) {
    text +=
        fmt::format("\n  batch {} head {} query {}: {}: got {:.9g}, expected {:.9g}", failure.row.b,
                    failure.row.h, failure.row.q, failure.what, failure.got, failure.expected);
  }
  return text;
}

// Classes of consecutive heads; the last class takes what is left over.
void check_values(const std::vector<oracle::Expr>& classes, const Case& c,
                  GpuReference& gpu_reference) {
  const int heads_per_class = c.problem.num_heads / static_cast<int>(classes.size());
  REQUIRE(heads_per_class * static_cast<int>(classes.size()) == c.problem.num_heads);
  const std::string text = pattern_text(classes, heads_per_class);
  CAPTURE(text);
  const girih::jit::Program program = girih::jit::compile(Pattern::parse(text));
  const Report report = girih::verify::verify_attention(
      program, c, oracle_mask(classes, heads_per_class, sizes_of(c)), gpu_reference);
  ++kernels_bound;
  rows_checked += report.rows_checked;
  CHECK_MESSAGE(report.ok(), describe_case(c, report));
  if (c.num_rows() > 0) CHECK(report.rows_checked > 0);
}

// Equal infinities do not differ; NaN differs from everything.
double difference(double a, double b) {
  if (a == b) return 0;
  const double distance = std::fabs(a - b);
  return std::isnan(distance) ? HUGE_VAL : distance;
}

Case make_case(const Problem& problem, int batch, int seqlen_q, int seqlen_k) {
  Case c;
  c.problem = problem;
  c.batch = batch;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  return c;
}

}  // namespace

TEST_CASE("the float64 kernel agrees with the float64 reference on the CPU") {
  GpuReference gpu_reference;
  std::mt19937_64 random(3);
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 96, 128, 256}) {
      for (const int seqlen_k : {1, 31, 1000, 0}) {
        Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 40, seqlen_k);
        c.row_gap = 8;
        girih::verify::Workload workload(c);
        workload.fill_normal(random());
        std::vector<girih::verify::Row> rows;
        const auto words = static_cast<std::size_t>(girih::verify::mask_words(seqlen_k));
        std::vector<std::uint32_t> masks;
        for (int i = 0; i < 200; ++i) {
          rows.push_back({static_cast<int>(random() % 2), static_cast<int>(random() % 6),
                          static_cast<int>(random() % 40)});
          const int kind = i % 4;  // nothing, everything, half of the keys, few keys
          for (std::size_t word = 0; word < words; ++word) {
            const auto bits = static_cast<std::uint32_t>(random());
            masks.push_back(kind == 0   ? 0u
                            : kind == 1 ? ~0u
                            : kind == 2 ? bits
                                        : bits & static_cast<std::uint32_t>(random() & random()));
          }
          if (seqlen_k % 32 != 0) masks.back() &= (1u << (seqlen_k % 32)) - 1;
        }
        const auto cpu = girih::verify::reference_on_cpu(workload.host_inputs(), rows, masks);
        const auto gpu = gpu_reference(workload.device_inputs(), rows, masks);
        double out_error = 0, lse_error = 0, naive_error = 0;
        for (std::size_t i = 0; i < cpu.out.size(); ++i) {
          out_error = std::max(out_error, difference(cpu.out[i], gpu.out[i]));
          naive_error = std::max(naive_error, difference(static_cast<double>(cpu.naive_lowp[i]),
                                                         static_cast<double>(gpu.naive_lowp[i])));
        }
        for (std::size_t i = 0; i < cpu.lse.size(); ++i) {
          lse_error = std::max(lse_error, difference(cpu.lse[i], gpu.lse[i]));
        }
        CAPTURE(head_dim);
        CAPTURE(seqlen_k);
        CHECK(out_error < 1e-12);
        CHECK(lse_error < 1e-12);
        // A unit of the type, where a sum or an exponential rounds the other way.
        CHECK(naive_error <= (dtype == DType::bfloat16 ? 0x1p-5 : 0x1p-8));
        rows_checked += 200;
      }
    }
  }
}

TEST_CASE("values are right for every shape, type, width and number of KV heads") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> patterns = {dense(), causal(), streaming(64, 256),
                                              window(31, 40)};
  const int heads_kv[] = {16, 8, 1};
  unsigned turn = 0;
  for (const auto& [seqlen_q, seqlen_k] : std::vector<std::pair<int, int>>{{1, 1},
                                                                           {15, 15},
                                                                           {1, 300},
                                                                           {113, 203},
                                                                           {512, 256},
                                                                           {1023, 1024},
                                                                           {1024, 1023},
                                                                           {5175, 5175}}) {
    for (const oracle::Expr& expr : patterns) {
      for (int repeat = 0; repeat < 3; ++repeat, ++turn) {
        if (seqlen_q > 5000 && repeat > 0) continue;
        Case c =
            make_case({turn % 2 == 0 ? DType::bfloat16 : DType::float16,
                       turn / 2 % 2 == 0 ? 128 : 64, 16, heads_kv[turn % 3]},
                      seqlen_q > 5000 ? 1 : 1 + static_cast<int>(turn % 3), seqlen_q, seqlen_k);
        c.seed = turn + 1;
        if (turn % 4 == 1) c.softmax_scale = 0.25f;
        if (turn % 5 == 1) c.row_gap = 64;
        if (turn % 7 == 1) c.max_ctas = 2;
        c.with_lse = turn % 6 != 5;
        check_values({expr}, c, gpu_reference);
      }
    }
  }
}

TEST_CASE("heads of three kinds share a launch") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> thirds = {dense(), causal(), streaming(64, 256)};
  for (const int heads_kv : {15, 5, 1}) {
    for (const int head_dim : {64, 128}) {
      const DType dtype = heads_kv == 5 ? DType::float16 : DType::bfloat16;
      for (const int seqlen_q : {203, 1023}) {
        check_values(thirds, make_case(make_problem(dtype, head_dim, 15, heads_kv), 2, seqlen_q, 1024),
                     gpu_reference);
      }
    }
  }
}

TEST_CASE("empty lengths give zeros, minus infinity, or nothing") {
  GpuReference gpu_reference;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128}) {
      const Problem problem = make_problem(dtype, head_dim, 4, 2);
      for (const oracle::Expr& expr : {dense(), causal(), negation(sink(3))}) {
        check_values({expr}, make_case(problem, 2, 100, 0), gpu_reference);
        check_values({expr}, make_case(problem, 2, 0, 100), gpu_reference);
        check_values({expr}, make_case(problem, 2, 0, 0), gpu_reference);
      }
    }
  }
}

TEST_CASE("rows that see nothing are zero in the middle of others") {
  GpuReference gpu_reference;
  for (const oracle::Expr& expr :
       {negation(window(40, -1)), negation(dense()), window(0, 0), sink(0), negation(causal())}) {
    check_values({expr}, make_case(make_problem(DType::bfloat16, 128, 4, 2), 2, 300, 200), gpu_reference);
    check_values({expr}, make_case(make_problem(DType::float16, 64, 4, 2), 2, 200, 300), gpu_reference);
  }
}

TEST_CASE("positions given by the launch move causal, window and sink") {
  GpuReference gpu_reference;
  for (const oracle::Expr& expr : {causal(), window(50, 20), streaming(120, 64), sink(130)}) {
    Case top_left = make_case(make_problem(DType::bfloat16, 128, 4, 2), 1, 256, 512);
    top_left.q_start = 0;
    check_values({expr}, top_left, gpu_reference);

    Case chunk = make_case(make_problem(DType::float16, 64, 4, 2), 2, 256, 512);
    chunk.k_start = 100;
    chunk.q_start = 300;
    check_values({expr}, chunk, gpu_reference);

    Case only_keys = make_case(make_problem(DType::bfloat16, 64, 4, 4), 1, 130, 256);
    only_keys.k_start = 64;
    check_values({expr}, only_keys, gpu_reference);
  }
}

TEST_CASE("the scale of the scores may be zero, small or large") {
  GpuReference gpu_reference;
  for (const float scale : {0.0f, 1e-3f, 1.0f, 4.0f}) {
    for (const oracle::Expr& expr : {causal(), streaming(16, 32)}) {
      Case c = make_case(make_problem(DType::bfloat16, 128, 4, 2), 1, 300, 300);
      c.softmax_scale = scale;
      CAPTURE(scale);
      check_values({expr}, c, gpu_reference);
    }
  }
}

TEST_CASE("half of Llama's KV heads streaming is right at 32768") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 128, 32, 8), 1, 32768, 32768);
  check_values({causal(), streaming(128, 256)}, c, gpu_reference);
}

TEST_CASE("twenty runs give the same bits") {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const Case c = make_case(make_problem(dtype, 128, 16, 8), 2, 1023, 1024);
    const auto kernel = girih::jit::compile(
        Pattern::parse(pattern_text({dense(), causal(), streaming(64, 256), window(9, 9)}, 4)),
        c.problem);
    girih::verify::Workload workload(c);
    workload.fill_normal(1);
    std::vector<std::uint16_t> first_out;
    std::vector<float> first_lse;
    const auto elements = static_cast<std::size_t>(c.batch) * 1023 * 16 * 128;
    for (int run = 0; run < 20; ++run) {
      workload.poison_outputs();
      kernel.launch(workload.args());
      girih::verify::synchronize();
      workload.download_outputs();
      std::vector<std::uint16_t> out;
      out.reserve(elements);
      for (int b = 0; b < c.batch; ++b) {
        const std::uint16_t* begin = workload.out.row(b, 0, 0);
        out.insert(out.end(), begin, begin + elements / static_cast<std::size_t>(c.batch));
      }
      if (run == 0) {
        first_out = out;
        first_lse = workload.lse;
      }
      CHECK(out == first_out);
      CHECK(std::memcmp(workload.lse.data(), first_lse.data(), first_lse.size() * sizeof(float)) ==
            0);
    }
  }
}

TEST_CASE("sanitizer: values of three kinds of heads are right") {
  GpuReference gpu_reference;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128}) {
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 113, 203);
      c.max_ctas = 2;
      c.row_gap = 8;
      c.reference = Case::Reference::cpu;
      check_values({dense(), causal(), streaming(16, 32)}, c, gpu_reference);
    }
  }
}

TEST_CASE("sanitizer: the float64 kernel agrees with the CPU on a few rows") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 64, 2, 1), 1, 5, 70);
  c.reference = Case::Reference::gpu;
  check_values({causal()}, c, gpu_reference);
}
