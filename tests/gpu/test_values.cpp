// Values of the kernels against float64, over the shapes that PATTERNS pins, and the GPU's float64
// reference against the CPU's.
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <set>

#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::Problem;
using girih::Tensor;
using girih::jit::Args;
using girih::verify::Buffer;
using girih::verify::Case;
using girih::verify::GpuReference;
using girih::verify::Report;
using girih::verify::Row;

namespace {

std::string describe_lengths(const Case& c) {
  std::string text;
  for (const auto& [name, numbers] : {std::pair{"q", &c.lengths.q},
                                      {"k", &c.lengths.k},
                                      {"used_k", &c.lengths.used_k},
                                      {"leftpad_k", &c.lengths.leftpad_k}}) {
    if (!numbers->empty()) text += fmt::format(", {} {}", name, fmt::join(*numbers, " "));
  }
  return text;
}

std::string describe_case(const Case& c, const Report& report) {
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
std::string text_of(const std::vector<oracle::Expr>& classes, const Case& c) {
  const int heads_per_class = c.problem.num_heads / static_cast<int>(classes.size());
  REQUIRE(heads_per_class * static_cast<int>(classes.size()) == c.problem.num_heads);
  return pattern_text(classes, heads_per_class);
}

void check_values(const std::string& text, const std::vector<oracle::Expr>& classes, const Case& c,
                  GpuReference& gpu_reference, const girih::TileConfig& tile = {}) {
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

void check_values(const std::vector<oracle::Expr>& classes, const Case& c,
                  GpuReference& gpu_reference, const girih::TileConfig& tile = {}) {
  check_values(text_of(classes, c), classes, c, gpu_reference, tile);
}

// Many cases: what they compile, they compile on all processors before the first is checked.
void check_all(const std::vector<oracle::Expr>& classes, const std::vector<Case>& cases,
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

// Sequences of these lengths, packed.
Case make_packed_case(Problem problem, std::vector<int> q, std::vector<int> k) {
  problem.layout = Layout::thd;
  const auto longest = [](const std::vector<int>& lengths) {
    return *std::max_element(lengths.begin(), lengths.end());
  };
  Case c = make_case(problem, static_cast<int>(q.size()), longest(q), longest(k));
  c.lengths.q = std::move(q);
  c.lengths.k = std::move(k);
  return c;
}

std::vector<oracle::Expr> thirds() { return {dense(), causal(), streaming(16, 64)}; }

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

TEST_CASE("tensors may be slices of larger ones in every layout") {
  std::vector<Case> cases;
  for (const auto& [dtype, head_dim, head_dim_v] : std::vector<std::tuple<DType, int, int>>{
           {DType::bfloat16, 128, 128}, {DType::float16, 80, 48}}) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
      for (const auto& [row_gap, head_gap] : std::vector<std::pair<int, int>>{
               {0, 0},
               {2 * 6 * 128, 0},  // q, k and v in one [batch, seqlen, 3, heads, head_dim]
               {0, 2 * 128},      // in one [batch, seqlen, heads, 3, head_dim]
               {8, 24}}) {
        Case c = make_case(make_problem(dtype, head_dim, 6, 6, head_dim_v, layout), 2, 130, 203);
        c.row_gap = row_gap;
        c.head_gap = head_gap;
        cases.push_back(c);
      }
    }
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("layouts and strides change no bit of the result") {
  const Problem problem = make_problem(DType::bfloat16, 96, 6, 2, 64);
  for (const girih::TileConfig& tile : kKernels) {
    const auto program =
        girih::jit::compile(Pattern::parse(pattern_text(thirds(), 2)), {.tile = tile});
    std::vector<std::uint16_t> first;
    for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
      for (const int gap : {0, 40}) {
        Case c = make_case(problem, 3, 130, 203);
        c.problem.layout = layout;
        c.row_gap = c.head_gap = gap;
        girih::verify::Workload workload(c);
        workload.fill_normal(1);
        workload.poison_outputs();
        program.bind(c.problem).launch(workload.args());
        girih::verify::synchronize();
        workload.download_outputs();
        const std::vector<std::uint16_t> bits = result_bits(workload);
        if (first.empty()) first = bits;
        CAPTURE(describe(c.problem));
        CAPTURE(describe(tile));
        CHECK(bits == first);
        CHECK(workload.touched_padding() == 0);
      }
    }
  }
}

TEST_CASE("packed sequences of three kinds of heads are right at random lengths") {
  const std::vector<Problem> problems = {
      make_problem(DType::bfloat16, 128, 24, 3),  // groups of 8
      make_problem(DType::float16, 64, 24, 1),
      make_problem(DType::bfloat16, 80, 6, 6, 48),
      make_problem(DType::float16, 192, 6, 3, 128),
  };
  std::mt19937_64 random(41);
  std::vector<Case> cases;
  for (const Problem& problem : problems) {
    const std::vector<int> lengths = ragged_lengths(random, 9, 256);
    cases.push_back(make_packed_case(problem, lengths, lengths));
    for (const auto& [longest_q, longest_k] :
         std::vector<std::pair<int, int>>{{113, 203}, {203, 113}, {129, 300}, {20, 64}}) {
      cases.push_back(make_packed_case(problem, ragged_lengths(random, 8, longest_q),
                                       ragged_lengths(random, 8, longest_k)));
    }
    Case roomy = cases.back();  // maxima far larger than the lengths
    roomy.seqlen_q = 5000;
    roomy.seqlen_k = 9000;
    cases.push_back(roomy);
    Case one = make_packed_case(problem, {257}, {384});
    one.q_start = 20;
    one.k_start = 100;
    cases.push_back(one);
    cases.push_back(make_packed_case(problem, std::vector<int>(150, 1), std::vector<int>(150, 77)));
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    cases[i].seed = i + 1;
    if (i % 3 == 1) cases[i].max_ctas = 2;
    if (i % 4 == 1) cases[i].row_gap = 64;
    if (i % 5 == 1) cases[i].empty_lse = HUGE_VALF;
    if (i % 7 == 1) cases[i].with_lse = false;
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("seqused_k and leftpad_k hide keys in every layout") {
  std::mt19937_64 random(43);
  std::vector<Case> cases;
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const Problem& problem :
         {make_problem(DType::bfloat16, 128, 24, 3), make_problem(DType::float16, 80, 6, 6, 48)}) {
      for (const auto& [used, padded] :
           std::vector<std::pair<bool, bool>>{{true, false}, {false, true}, {true, true}}) {
        constexpr int kBatch = 7;
        std::vector<int> keys(kBatch, 260);
        Case c = make_case(problem, kBatch, 113, 260);
        if (layout == Layout::thd) {
          keys = ragged_lengths(random, kBatch, 260);
          c = make_packed_case(problem, ragged_lengths(random, kBatch, 113), keys);
        }
        c.problem.layout = layout;
        if (used) c.lengths.used_k = random_parts(random, keys);
        if (padded) c.lengths.leftpad_k = random_parts(random, keys);
        c.seed = cases.size() + 1;
        c.max_ctas = cases.size() % 2 == 0 ? 0 : 2;
        c.empty_lse = cases.size() % 3 == 0 ? HUGE_VALF : -HUGE_VALF;
        cases.push_back(c);
      }
      Case extreme = make_case(problem, 6, 113, 200);
      extreme.problem.layout = layout;
      extreme.lengths.used_k = {0, 200, 1, 500, -3, 64};  // 500: all of them; -3: none
      extreme.lengths.leftpad_k = {0, 200, 0, 199, 0, 64};
      cases.push_back(extreme);
    }
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("packed sequences longer than the maximum end there, and nothing is written beyond") {
  const std::vector<Problem> problems = {make_problem(DType::bfloat16, 128, 6, 2),
                                         make_problem(DType::float16, 80, 6, 6, 48)};
  std::vector<Case> cases;
  for (const Problem& problem : problems) {
    Case c = make_packed_case(problem, {150, 20, 101, 99}, {200, 120, 10, 121});
    c.seqlen_q = 100;
    c.seqlen_k = 120;
    cases.push_back(c);
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

TEST_CASE("soft caps of some heads, of all and at every scale are right") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> kinds = {dense(), causal(), streaming(16, 64)};
  unsigned turn = 0;
  for (const int head_dim : {64, 128, 256}) {
    for (const float scale : {0.05f, 1.0f, 8.0f}) {  // scores far below the cap, and far above
      const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 203, 300);
      c.softmax_scale = scale;
      c.seed = turn;
      CAPTURE(scale);
      for (const girih::TileConfig& tile : kKernels) {
        if (tile.portable && dtype == DType::float16) continue;
        c.softcaps = {30, 30, 0, 0, 0.5f, 0.5f};
        check_values("heads(0-1: dense with softcap(30), 2-3: causal, 4-5: " +
                         oracle::text(kinds[2]) + " with softcap(0.5))",
                     kinds, c, gpu_reference, tile);
        c.softcaps.assign(6, 50);
        check_values("causal with softcap(50)", {causal()}, c, gpu_reference, tile);
        c.softcaps.clear();  // the program's
        check_values("causal with softcap(5)", {causal()}, c, gpu_reference, tile);
      }
    }
  }
}

namespace {

// Inputs of six heads, two of them KV heads, and what the definitions make of them.
struct Modified {
  girih::verify::InputData slopes, bias, sinks;
  explicit Modified(const Case& c, int heads, float largest_sink)
      : slopes(girih::verify::random_values("s", 1, c.problem.num_heads, 0, 0.3, c.seed)),
        bias(girih::verify::random_values("b", c.batch, heads, c.seqlen_k, 2, c.seed + 1)),
        sinks(girih::verify::random_values("z", 1, c.problem.num_heads, 0, 1, c.seed + 2)) {
    sinks.values[0] = largest_sink;
    sinks.values[1] = -HUGE_VALF;
  }
};

double at(const girih::verify::InputData& data, const Case& c, Row row, int key, int width) {
  const int b = data.batch == 1 ? 0 : row.b;
  const int plane = b * data.heads + row.h * data.heads / c.problem.num_heads;
  return static_cast<double>(data.values[static_cast<std::size_t>(plane * width + key)]);
}

}  // namespace

TEST_CASE("slopes, biases and sinks of some heads and of all are right at every width") {
  GpuReference gpu_reference;
  const std::vector<oracle::Expr> kinds = {dense(), causal(), streaming(16, 64)};
  unsigned turn = 0;
  for (const bool portable : {false, true}) {
    girih::TileConfig tile;
    tile.portable = portable;
    for (const int head_dim : {64, 128, 192, 256}) {
      const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
      Case c = make_case(make_problem(dtype, head_dim, 6, 2), 2, 203, 300);
      c.seed = turn;
      const int bias_heads = turn % 3 == 0 ? 1 : turn % 3 == 1 ? 2 : 6;
      const Modified data(c, bias_heads, turn % 2 == 0 ? 60.0f : 5.0f);
      const int off = 300 - 203;
      const auto alibi = [=](double s, Row row, int key) {
        return s - at(data.slopes, c, row, 0, 1) * std::abs(row.q + off - key);
      };
      const auto bias = [=](double s, Row row, int key) {
        return s + at(data.bias, c, row, key, 300);
      };
      const auto sink = [=](Row row) { return at(data.sinks, c, row, 0, 1); };

      Case all = c;
      all.inputs = {data.slopes, data.bias, data.sinks};
      all.softcaps.assign(6, 20);
      all.changes.score = [=](double s, Row row, int key) {
        return bias(alibi(s, row, key), row, key);
      };
      all.changes.sink_logit = sink;
      check_values("causal with softcap(20), alibi(s), bias(b), sink_logit(z)", {causal()}, all,
                   gpu_reference, tile);

      Case mixed = all;
      mixed.softcaps = {0, 0, 0, 0, 2, 2};
      mixed.changes.score = [=](double s, Row row, int key) {
        return row.h < 2 ? alibi(s, row, key) : row.h < 4 ? s : bias(s, row, key);
      };
      mixed.changes.sink_logit = [=](Row row) {
        return row.h < 2 ? -HUGE_VAL : row.h < 4 ? sink(row) : -HUGE_VAL;
      };
      check_values("heads(0-1: dense with alibi(s), 2-3: causal with sink_logit(z), 4-5: " +
                       oracle::text(kinds[2]) + " with softcap(2), bias(b))",
                   kinds, mixed, gpu_reference, tile);

      Case sinks = c;  // nothing but the sum changes
      sinks.inputs = {data.sinks};
      sinks.changes.sink_logit = sink;
      check_values("causal with sink_logit(z)", {causal()}, sinks, gpu_reference, tile);
    }
  }
}

TEST_CASE("rows that see nothing have the logit of their sink as lse, or what was asked for") {
  GpuReference gpu_reference;
  for (const bool portable : {false, true}) {
    girih::TileConfig tile;
    tile.portable = portable;
    Case c = make_case(make_problem(DType::bfloat16, 64, 6, 2), 1, 300, 100);  // 200 empty rows
    c.empty_lse = HUGE_VALF;
    const Modified data(c, 1, 3);
    c.inputs = {data.sinks};
    c.changes.sink_logit = [=](Row row) { return at(data.sinks, c, row, 0, 1); };
    check_values("causal with sink_logit(z)", {causal()}, c, gpu_reference, tile);
  }
}

TEST_CASE("modifiers follow packed sequences, positions, gathered tiles and packed heads") {
  GpuReference gpu_reference;
  Case packed = make_packed_case(make_problem(DType::bfloat16, 128, 6, 2), {203, 1, 150, 77},
                                 {300, 64, 0, 131});
  const Modified data(packed, 2, 4);
  packed.inputs = {data.slopes, data.bias, data.sinks};
  const std::vector<int> offs = {300 - 203, 64 - 1, 0 - 150, 131 - 77};
  packed.changes.score = [=](double s, Row row, int key) {
    return s -
           at(data.slopes, packed, row, 0, 1) *
               std::abs(row.q + offs[static_cast<std::size_t>(row.b)] - key) +
           at(data.bias, packed, row, key, 300);
  };
  packed.changes.sink_logit = [=](Row row) { return at(data.sinks, packed, row, 0, 1); };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s), bias(b), sink_logit(z)", {causal()}, packed, gpu_reference,
                 tile);
  }

  Case moved = make_case(make_problem(DType::float16, 64, 6, 2), 1, 100, 200);
  moved.q_start = 5000;
  moved.k_start = 4950;
  const Modified other(moved, 6, 4);
  moved.inputs = {other.slopes};
  moved.changes.score = [=](double s, Row row, int key) {
    return s - at(other.slopes, moved, row, 0, 1) * std::abs(row.q + 50 - key);
  };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s)", {causal()}, moved, gpu_reference, tile);
  }

  // Small blocks: key tiles are gathered, and heads of a KV head share a tile.
  for (const bool shared : {false, true}) {
    Case gathered = make_case(make_problem(DType::bfloat16, 64, 6, 2), 1, 256, 256);
    gathered.problem.num_heads = 4;
    gathered.problem.shared_inputs = shared;
    const Modified values(gathered, 4, 4);
    girih::verify::InputData blocks =
        girih::verify::random_blocks("m", 1, 1, 4, 8, 0.5, 0, 3);  // 64 x 32
    gathered.inputs = {blocks, values.slopes, values.bias};
    gathered.changes.score = [=](double s, Row row, int key) {
      return s - at(values.slopes, gathered, row, 0, 1) * std::abs(row.q - key) +
             at(values.bias, gathered, row, key, 256);
    };
    oracle::Expr expr{oracle::Expr::Kind::blocks, {}, {}};
    expr.blocks = {"m", 64, 32, 8, {blocks.visible.begin(), blocks.visible.end()}};
    for (const girih::TileConfig& tile : kKernels) {
      check_values("blocks(m, q=64, kv=32) with alibi(s), bias(b)", {expr}, gathered, gpu_reference,
                   tile);
    }
  }
}

TEST_CASE("sanitizer: slopes, biases and sinks are right") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 64, 6, 2), 2, 113, 203);
  c.max_ctas = 2;
  const Modified data(c, 2, 4);
  c.inputs = {data.slopes, data.bias, data.sinks};
  c.changes.score = [=](double s, Row row, int key) {
    return s - at(data.slopes, c, row, 0, 1) * std::abs(row.q + 90 - key) +
           at(data.bias, c, row, key, 203);
  };
  c.changes.sink_logit = [=](Row row) { return at(data.sinks, c, row, 0, 1); };
  for (const girih::TileConfig& tile : kKernels) {
    check_values("causal with alibi(s), bias(b), sink_logit(z)", {causal()}, c, gpu_reference,
                 tile);
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

namespace {

// Where a launch's tensors are so large that the host has no copies. q, k, v and out hold as many
// elements each; values repeat at a prime distance, so that no wrong row looks like the right one.
class HugeTensors {
 public:
  static constexpr std::size_t kPeriod = 1000003;  // elements

  explicit HugeTensors(std::size_t elements)
      : q_(2 * elements), k_(2 * elements), v_(2 * elements), out_(2 * elements) {
    fill(q_, 1);
    fill(k_, 2);
    fill(v_, 3);
  }

  // Launches `c` on the memory as contiguous tensors of its layout, and compares `rows`.
  Report check(const girih::jit::Kernel& kernel, const Case& c, std::span<const Row> rows,
               const girih::verify::MaskRow& mask_row) {
    const auto sequences = girih::verify::sequences_of(c);
    const bool packed = c.problem.layout == Layout::thd;
    std::vector<int> starts = {0};
    for (const int length : c.lengths.q) starts.push_back(starts.back() + length);
    const std::int64_t batch = packed ? 1 : c.batch;
    const std::int64_t num_rows = packed ? starts.back() : c.seqlen_q;
    const std::int64_t heads = c.problem.num_heads, width = c.problem.head_dim;
    const bool heads_first = c.problem.layout == Layout::bhsd;
    const auto view = [&](const Buffer& buffer) {
      return heads_first ? Tensor::contiguous(buffer.data(), c.problem.dtype,
                                              {batch, heads, num_rows, width})
                         : Tensor::contiguous(buffer.data(), c.problem.dtype,
                                              {batch, num_rows, heads, width});
    };
    Buffer cu_seqlens(starts.size() * sizeof(int));
    cu_seqlens.upload(starts.data(), cu_seqlens.size());
    const Buffer lse(static_cast<std::size_t>(batch * heads * num_rows) * sizeof(float));
    out_.fill(0xff);

    Args args;
    args.q = view(q_);
    args.k = view(k_);
    args.v = view(v_);
    args.out = view(out_);
    args.layout = c.problem.layout;
    args.lse = static_cast<float*>(lse.data());
    if (packed) {
      args.cu_seqlens_q = args.cu_seqlens_k = static_cast<const int*>(cu_seqlens.data());
      args.num_sequences = c.batch;
      args.max_seqlen_q = c.seqlen_q;
      args.max_seqlen_k = c.seqlen_k;
    }
    kernel.launch(args);
    girih::verify::synchronize();

    Tensor by_row = args.out;  // [batch, row, head, width]
    if (heads_first) std::swap(by_row.shape[1], by_row.shape[2]);
    if (heads_first) std::swap(by_row.stride[1], by_row.stride[2]);
    girih::verify::AttentionInputs inputs{by_row, by_row, by_row,
                                          girih::verify::softmax_scale_of(c)};
    inputs.q.data = q_.data();
    inputs.k.data = k_.data();
    inputs.v.data = v_.data();
    for (Tensor* tensor : {&inputs.q, &inputs.k, &inputs.v}) {
      tensor->shape[0] = c.batch;
      tensor->shape[1] = c.seqlen_k;
    }
    for (const girih::verify::Sequence& s : sequences) {
      const std::int64_t start = s.batch * by_row.stride[0] + s.q_row * by_row.stride[1];
      inputs.starts.push_back({start, start, start});
    }
    const auto words = static_cast<std::size_t>(girih::verify::mask_words(c.seqlen_k));
    std::vector<std::uint32_t> masks(rows.size() * words, 0);
    girih::verify::parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t i) {
      const auto index = static_cast<std::size_t>(i);
      mask_row(rows[index], std::span(masks).subspan(index * words, words));
    });
    const auto reference = gpu_reference_(inputs, rows, masks);

    std::vector<girih::verify::RowCheck> checks;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Row row = rows[i];
      const girih::verify::Sequence& s = sequences[static_cast<std::size_t>(row.b)];
      const std::int64_t element = inputs.starts[static_cast<std::size_t>(row.b)].q +
                                   row.q * by_row.stride[1] + row.h * by_row.stride[2];
      std::vector<std::uint16_t> out(static_cast<std::size_t>(width));
      out_.download(out.data(), 2 * out.size(), 2 * static_cast<std::size_t>(element));
      const std::int64_t lse_index = (s.batch * heads + row.h) * num_rows + s.q_row + row.q;
      float got_lse = 0;
      lse.download(&got_lse, sizeof(float), sizeof(float) * static_cast<std::size_t>(lse_index));
      std::int64_t num_visible = 0;
      for (std::size_t word = 0; word < words; ++word) {
        num_visible += std::popcount(masks[i * words + word]);
      }
      checks.push_back(
          girih::verify::check_row(c.problem.dtype, row, num_visible, reference, i, out, &got_lse));
    }
    Report report;
    girih::verify::judge(checks, report);
    return report;
  }

 private:
  // One period of normal values from the host, then doubled on the device.
  static void fill(Buffer& buffer, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> values(kPeriod);
    for (std::uint16_t& value : values) {
      value = girih::verify::narrow(DType::bfloat16, normal(random));
    }
    buffer.upload(values.data(), 2 * kPeriod);
    const auto begin = reinterpret_cast<CUdeviceptr>(buffer.data());
    for (std::size_t done = 2 * kPeriod; done < buffer.size(); done *= 2) {
      girih::cuda::check(
          DRIVER(cuMemcpyDtoD)(begin + done, begin, std::min(done, buffer.size() - done)),
          "cuMemcpyDtoD");
    }
  }

  Buffer q_, k_, v_, out_;
  GpuReference gpu_reference_;
};

}  // namespace

TEST_CASE("tensors of more than 2^31 elements are right, 131072 rows of 136 heads") {
  constexpr int kHeads = 136, kWidth = 128, kRows = 131072;
  std::size_t free_bytes = 0, total_bytes = 0;
  girih::cuda::check(DRIVER(cuMemGetInfo)(&free_bytes, &total_bytes), "cuMemGetInfo");
  constexpr std::size_t kElements = std::size_t{kHeads} * kWidth * kRows;
  if (free_bytes < 9 * kElements) {  // 2 bytes, four tensors, and some
    MESSAGE("left out: needs " << 9 * kElements << " bytes of device memory, free are "
                               << free_bytes);
    return;
  }
  const oracle::Expr expr = streaming(16, 256);
  HugeTensors tensors(kElements);

  const auto problem = [&](Layout layout) {
    return make_problem(DType::bfloat16, kWidth, kHeads, kHeads, 0, layout);
  };
  for (const Case& c : {make_case(problem(Layout::bshd), 1, kRows, kRows),  // far rows
                        make_case(problem(Layout::bshd), 128, 1024, 1024),  // far batch elements
                        make_case(problem(Layout::bhsd), 1, kRows, kRows),  // far heads
                        make_packed_case(problem(Layout::thd), {1001, 125000, 5071},
                                         {1001, 125000, 5071})}) {  // far sequences
    std::vector<Row> rows;
    for (const int h : {0, 67, kHeads - 2, kHeads - 1}) {
      for (const int b : {0, c.batch / 2, c.batch - 1}) {
        const int last = girih::verify::sequences_of(c)[static_cast<std::size_t>(b)].seqlen_q - 1;
        for (const int q : {0, 1, 127, 128, last / 2, last - 128, last - 1, last}) {
          rows.push_back({b, h, q});
        }
      }
    }
    for (const girih::TileConfig& tile : kKernels) {
      const auto kernel =
          girih::jit::compile(Pattern::parse(oracle::text(expr)), c.problem, {.tile = tile});
      const Report report = tensors.check(kernel, c, rows, oracle_mask({expr}, kHeads, c));
      ++kernels_bound;
      rows_checked += report.rows_checked;
      CHECK(report.rows_checked == static_cast<std::int64_t>(rows.size()));
      CHECK_MESSAGE(report.ok(), describe_case(c, report) << ", tile " << describe(tile));
    }
  }
}

TEST_CASE("twenty runs give the same bits") {
  struct Run {
    std::string text;
    Case parameters;
    girih::TileConfig tile;
  };
  std::vector<Run> runs;
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    for (const int head_dim : {64, 128, 256}) {
      const Case c = make_case(make_problem(dtype, head_dim, 16, 8), 2, 1023, 1024);
      const std::string text =
          pattern_text({dense(), causal(), streaming(64, 256), window(9, 9)}, 4);
      runs.push_back({text, c, {}});
      if (dtype == DType::bfloat16) runs.push_back({text, c, kPortable});
    }
  }
  // 64 heads of three kinds, where rows differ much in what they see; and one row that sees all.
  Case c = make_case(make_problem(DType::bfloat16, 128, 64, 16), 1, 2048, 2048);
  for (const double density : {0.0, 0.1, 1.0}) {
    c.inputs = {girih::verify::random_blocks("m", 1, 16, 32, 32, density, 3, 9)};
    if (density == 0) {
      for (int i = 0; i < 16 * 32; ++i) {
        c.inputs[0].visible[static_cast<std::size_t>(32 * i + i % 32)] = 1;
      }
      std::fill_n(c.inputs[0].visible.begin() + 32 * 20, 32, std::uint8_t{1});
    }
    for (const girih::TileConfig& tile : kKernels) {
      runs.push_back({"heads(0-19: causal, 20-39: " + oracle::text(streaming(16, 100)) +
                          ", 40-63: blocks(m, q=64, kv=64))",
                      c, tile});
    }
  }
  for (const auto& [text, parameters, tile] : runs) {
    CAPTURE(text);
    CAPTURE(describe(tile));
    const auto kernel =
        girih::jit::compile(Pattern::parse(text), parameters.problem, {.tile = tile});
    girih::verify::Workload workload(parameters);
    workload.fill_normal(1);
    const girih::jit::Args args = workload.args();
    const Buffer memory(kernel.workspace_bytes(args));
    const girih::jit::Workspace workspace{memory.data(), memory.size()};
    std::vector<std::uint16_t> first;
    for (int run = 0; run < 20; ++run) {
      workload.poison_outputs();
      kernel.build_lists(args, workspace);
      kernel.launch(args, workspace);
      girih::verify::synchronize();
      workload.download_outputs();
      const std::vector<std::uint16_t> bits = gpu_tests::result_bits(workload);
      if (run == 0) first = bits;
      CHECK(bits == first);
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
      for (const girih::TileConfig& tile : kKernels) {
        check_values({dense(), causal(), streaming(16, 32)}, c, gpu_reference, tile);
      }
    }
  }
}

TEST_CASE("sanitizer: values of packed and shortened sequences are right") {
  std::vector<Case> cases;
  Case packed = make_packed_case(make_problem(DType::bfloat16, 64, 6, 2), {70, 0, 33, 1, 50},
                                 {130, 40, 0, 65, 50});
  packed.lengths.used_k = {130, 0, 0, 64, 20};
  packed.lengths.leftpad_k = {7, 0, 0, 63, 30};
  packed.seqlen_q = 200;
  cases.push_back(packed);
  Case batched = make_case(make_problem(DType::float16, 64, 6, 2, 0, Layout::bhsd), 3, 70, 100);
  batched.lengths.used_k = {100, 0, 31};
  batched.lengths.leftpad_k = {99, 0, 1};
  cases.push_back(batched);
  cases.push_back(make_case(make_problem(DType::bfloat16, 80, 6, 2, 48), 2, 70, 100));
  for (Case& c : cases) {
    c.max_ctas = 2;
    c.row_gap = 8;
    c.reference = Case::Reference::cpu;
  }
  for (const girih::TileConfig& tile : kKernels) {
    check_all({dense(), causal(), streaming(16, 32)}, cases, tile);
  }
}

TEST_CASE("sanitizer: the float64 kernel agrees with the CPU on a few rows") {
  GpuReference gpu_reference;
  Case c = make_case(make_problem(DType::bfloat16, 64, 2, 1), 1, 5, 70);
  c.reference = Case::Reference::gpu;
  check_values({causal()}, c, gpu_reference);
}
