// Values of the kernels against float64, over the shapes that PATTERNS pins, and the GPU's float64
// reference against the CPU's.
#include <doctest/doctest.h>

#include <cmath>
#include <optional>
#include <random>

#include "values.hpp"

using namespace gpu_tests;
using girih::Tensor;
using girih::jit::Args;
using girih::verify::Buffer;

namespace {

// Equal infinities do not differ; NaN differs from everything.
double difference(double a, double b) {
  if (a == b) return 0;
  const double distance = std::fabs(a - b);
  return std::isnan(distance) ? HUGE_VAL : distance;
}

}  // namespace

TEST_CASE("the float64 kernel agrees with the float64 reference on the CPU") {
  GpuReference gpu_reference;
  std::mt19937_64 random(3);
  const std::pair<int, int> widths[] = {{64, 64}, {96, 48}, {128, 128}, {256, 16}, {16, 256}};
  const Layout layouts[] = {Layout::bshd, Layout::bhsd, Layout::thd};
  unsigned turn = 0;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const auto& [head_dim, head_dim_v] : widths) {
      for (const int seqlen_k : {1, 31, 1000, 0}) {
        Case c = make_case(make_problem(dtype, head_dim, 6, 2, head_dim_v, layouts[++turn % 3]), 2,
                           40, seqlen_k);
        c.row_gap = 8;
        c.head_gap = turn % 2 == 0 ? 16 : 0;
        if (c.problem.layout == Layout::thd) c.lengths.k = {seqlen_k, seqlen_k / 2};
        if (turn % 4 == 3) c.lengths.leftpad_k = {seqlen_k / 3, 0};
        if (turn % 5 == 3) c.softcaps = {0.0f, 1.0f, 30.0f, 0.25f, 5.0f, 0.0f};
        girih::verify::Workload workload(c);
        workload.fill_normal(random());
        std::vector<girih::verify::Row> rows;
        const auto words =
            static_cast<std::size_t>(girih::verify::mask_words(workload.longest_k()));
        std::vector<std::uint32_t> masks;
        for (int i = 0; i < 200; ++i) {
          rows.push_back({static_cast<int>(random() % 2), static_cast<int>(random() % 6),
                          static_cast<int>(random() % 40)});
          const auto sequence = static_cast<std::size_t>(rows.back().b);
          const int last = workload.sequences[sequence].seqlen_k;
          const int kind = i % 4;  // nothing, everything, half of the keys, few keys
          for (std::size_t word = 0; word < words; ++word) {
            const auto bits = static_cast<std::uint32_t>(random());
            const auto few = bits & static_cast<std::uint32_t>(random() & random());
            const int keys = std::clamp(last - static_cast<int>(word) * 32, 0, 32);
            const std::uint32_t existing = keys == 32 ? ~0u : (1u << keys) - 1;
            masks.push_back(existing & (kind == 0 ? 0u : kind == 1 ? ~0u : kind == 2 ? bits : few));
          }
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
        CAPTURE(describe(c.problem));
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
            make_case(make_problem(turn % 2 == 0 ? DType::bfloat16 : DType::float16,
                                   turn / 2 % 2 == 0 ? 128 : 64, 16, heads_kv[turn % 3]),
                      seqlen_q > 5000 ? 1 : 1 + static_cast<int>(turn % 3), seqlen_q, seqlen_k);
        c.seed = turn + 1;
        if (turn % 4 == 1) c.softmax_scale = 0.25f;
        if (turn % 5 == 1) c.row_gap = 64;
        if (turn % 7 == 1) c.max_ctas = 2;
        c.with_lse = turn % 6 != 5;
        for (const girih::TileConfig& tile : kKernels) {
          check_values({expr}, c, gpu_reference, tile);
        }
      }
    }
  }
}

TEST_CASE("the first rows of causal windows come last") {
  GpuReference gpu_reference;
  const oracle::Expr wide = both(causal(), window(300, -1));
  Case c = make_case(make_problem(DType::bfloat16, 128, 4, 2), 2, 4000, 4000);
  check_values({wide}, c, gpu_reference);
  check_values({wide, both(causal(), window(40, 5))}, c, gpu_reference);
  c.max_ctas = 3;
  c.problem = make_problem(DType::bfloat16, 64, 4, 2, 0, Layout::thd);
  c.lengths.q = {4000, 3300};
  c.lengths.k = {3900, 4000};
  check_values({wide}, c, gpu_reference);
}

TEST_CASE("heads of three kinds share a launch") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> kinds = {dense(), causal(), streaming(64, 256)};
  for (const int heads_kv : {15, 5, 1}) {
    for (const int head_dim : {64, 128}) {
      const DType dtype = heads_kv == 5 ? DType::float16 : DType::bfloat16;
      for (const int seqlen_q : {203, 1023}) {
        const Case c = make_case(make_problem(dtype, head_dim, 15, heads_kv), 2, seqlen_q, 1024);
        for (const girih::TileConfig& tile : kKernels) check_values(kinds, c, gpu_reference, tile);
      }
    }
  }
}

TEST_CASE("values are right at every head_dim") {
  std::vector<Case> cases, portable;  // the portable kernel's types take turns
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    const int turn = head_dim / 16;
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      if (dtype == DType::float16 && turn % 4 == 2) continue;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 113, 203);
      c.seed = static_cast<std::uint64_t>(head_dim);
      c.row_gap = turn % 2 == 0 ? 8 : 0;
      const bool is_turn = (dtype == DType::bfloat16) == (turn % 2 == 0);
      cases.push_back(c);
      if (is_turn) portable.push_back(c);
      c.seqlen_q = 300;
      c.seqlen_k = 260;
      c.max_ctas = 2;
      cases.push_back(c);
      if (is_turn) portable.push_back(c);
    }
  }
  check_all(thirds(), cases);
  check_all(thirds(), portable, kPortable);
}

TEST_CASE("V may be wider or narrower than Q and K") {
  const std::pair<int, int> widths[] = {{64, 128}, {128, 64}, {192, 128}, {96, 256}, {16, 256},
                                        {256, 16}, {80, 48},  {48, 80},   {32, 16},  {240, 256}};
  std::vector<Case> cases;
  for (const auto& [head_dim, head_dim_v] : widths) {
    const bool even = cases.size() % 4 == 0;
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      const DType dtype = even ? DType::bfloat16 : DType::float16;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2, head_dim_v, layout), 2, 113, 203);
      c.seed = cases.size() + 1;
      c.max_ctas = layout == Layout::bhsd ? 2 : 0;
      cases.push_back(c);
    }
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("rows that see nothing have the lse that was asked for") {
  std::vector<Case> cases;
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const float empty_lse : {HUGE_VALF, -HUGE_VALF}) {
      Case c = make_case(make_problem(DType::bfloat16, 128, 6, 2, 0, layout), 2, 300, 200);
      c.empty_lse = empty_lse;
      cases.push_back(c);
      c.seqlen_k = 0;
      cases.push_back(c);
    }
  }
  for (const girih::TileConfig& tile : kKernels) {
    check_all({causal(), negation(dense()), negation(window(40, -1))}, cases, tile);
  }
}

TEST_CASE("empty lengths give zeros, minus infinity, or nothing") {
  GpuReference gpu_reference;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128}) {
      const Problem problem = make_problem(dtype, head_dim, 4, 2);
      for (const oracle::Expr& expr : {dense(), causal(), negation(sink(3))}) {
        for (const girih::TileConfig& tile : kKernels) {
          if (tile.portable && (dtype == DType::bfloat16) == (head_dim == 64)) continue;
          check_values({expr}, make_case(problem, 2, 100, 0), gpu_reference, tile);
          check_values({expr}, make_case(problem, 2, 0, 100), gpu_reference, tile);
          check_values({expr}, make_case(problem, 2, 0, 0), gpu_reference, tile);
        }
      }
    }
  }
}

TEST_CASE("rows that see nothing are zero in the middle of others") {
  GpuReference gpu_reference;
  for (const oracle::Expr& expr :
       {negation(window(40, -1)), negation(dense()), window(0, 0), sink(0), negation(causal())}) {
    for (const girih::TileConfig& tile : kKernels) {
      check_values({expr}, make_case(make_problem(DType::bfloat16, 128, 4, 2), 2, 300, 200),
                   gpu_reference, tile);
      check_values({expr}, make_case(make_problem(DType::float16, 64, 4, 2), 2, 200, 300),
                   gpu_reference, tile);
    }
  }
}

TEST_CASE("positions given by the launch move causal, window and sink") {
  GpuReference gpu_reference;
  for (const oracle::Expr& expr : {causal(), window(50, 20), streaming(120, 64), sink(130)}) {
    for (const girih::TileConfig& tile : kKernels) {
      Case top_left = make_case(make_problem(DType::bfloat16, 128, 4, 2), 1, 256, 512);
      top_left.q_start = 0;
      check_values({expr}, top_left, gpu_reference, tile);

      Case chunk = make_case(make_problem(DType::float16, 64, 4, 2), 2, 256, 512);
      chunk.k_start = 100;
      chunk.q_start = 300;
      check_values({expr}, chunk, gpu_reference, tile);

      Case only_keys = make_case(make_problem(DType::float16, 64, 4, 4), 1, 130, 256);
      only_keys.k_start = 64;
      check_values({expr}, only_keys, gpu_reference, tile);
    }
  }
}

TEST_CASE("the scale of the scores may be zero, small or large") {
  GpuReference gpu_reference;
  for (const float scale : {0.0f, 1e-3f, 1.0f, 4.0f}) {
    for (const oracle::Expr& expr : {causal(), streaming(16, 32)}) {
      Case c = make_case(make_problem(DType::bfloat16, 128, 4, 2), 1, 300, 300);
      c.softmax_scale = scale;
      CAPTURE(scale);
      for (const girih::TileConfig& tile : kKernels) check_values({expr}, c, gpu_reference, tile);
    }
  }
}

TEST_CASE("tensor-parallel ranks give the bits of the whole launch") {
  const oracle::Expr s2 =
      both(causal(), strided({.left = 2, .right = 2, .stride = 6, .block = 16}));
  // Ranks whose heads are of one kind may have other tiles than the whole launch, and sums depend
  // on how many keys a tile has.
  const Case c = make_case(make_problem(DType::bfloat16, 64, 12, 4), 1, 200, 300);
  std::optional<girih::jit::Program> program;
  girih::verify::Workload workload(c);
  workload.fill_normal(1);
  const auto result_of = [&](int num_ranks) {
    workload.poison_outputs();
    Problem problem = c.problem;
    problem.num_heads /= num_ranks;
    problem.num_heads_kv /= num_ranks;
    problem.num_heads_total = c.problem.num_heads;
    for (int rank = 0; rank < num_ranks; ++rank) {
      problem.head_offset = rank * problem.num_heads;
      Args args = workload.args();
      const auto take_heads = [&](Tensor& tensor, int count) {
        tensor.data = static_cast<std::uint16_t*>(tensor.data) + rank * count * tensor.stride[2];
        tensor.shape[2] = count;
      };
      take_heads(args.q, problem.num_heads);
      take_heads(args.k, problem.num_heads_kv);
      take_heads(args.v, problem.num_heads_kv);
      take_heads(args.out, problem.num_heads);
      args.lse += problem.head_offset * c.seqlen_q;
      program->bind(problem).launch(args);
    }
    girih::verify::synchronize();
    workload.download_outputs();
    CHECK(workload.touched_padding() == 0);
    return result_bits(workload);
  };
  for (const bool portable : {false, true}) {
    CAPTURE(portable);
    program = girih::jit::compile(Pattern::parse(pattern_text({s2, causal()}, 6)),
                                  {.tile = {.block_n = 64, .portable = portable}});
    const std::vector<std::uint16_t> whole = result_of(1);
    CHECK(result_of(2) == whole);
    CHECK(result_of(4) == whole);
  }
}

TEST_CASE("half of Llama's KV heads streaming is right at 32768") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 128, 32, 8), 1, 32768, 32768);
  for (const girih::TileConfig& tile : kKernels) {
    check_values({causal(), streaming(128, 256)}, c, gpu_reference, tile);
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
      for (const girih::TileConfig& tile : kKernels) {
        check_values({dense(), causal(), streaming(16, 32)}, c, gpu_reference, tile);
      }
    }
  }
}

TEST_CASE("sanitizer: the float64 kernel agrees with the CPU on a few rows") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 64, 2, 1), 1, 5, 70);
  c.reference = Case::Reference::gpu;
  check_values({causal()}, c, gpu_reference);
}
