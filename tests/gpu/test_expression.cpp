// Conditions and scores of patterns' texts on the GPU: the exact mask test of expr("..."), values
// of score("..."), kept tiles, and inputs that are refused before anything is launched.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "hashed_workload.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::InputInfo;
using girih::Layout;
using girih::Pattern;
using girih::TileConfig;
using girih::verify::InputData;
using girih::verify::Row;
using Kind = oracle::Expr::Kind;

namespace {

using Holds = std::function<bool(const oracle::Sizes&, long long, long long)>;

// The key at the row's position.
long long diagonal(const oracle::Sizes& s, long long q) { return q + s.q_start - s.k_start; }

int element(const InputData& tensor, std::vector<long long> indices) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const long long extent = tensor.shape[i];
    at = at * static_cast<std::size_t>(extent) +
         static_cast<std::size_t>(std::clamp(indices[i], 0LL, extent - 1));
  }
  return tensor.numbers[at];
}

InputData int_tensor(std::string name, std::vector<int> shape, int count, std::uint64_t seed) {
  InputInfo wanted{.name = std::move(name), .kind = InputInfo::Kind::int_tensor};
  InputData data;
  std::size_t size = 1;
  for (const int extent : shape) size *= static_cast<std::size_t>(extent);
  wanted.rank = 1;
  data = girih::verify::random_int_tensor(wanted, {.free = static_cast<int>(size)}, count, seed);
  data.shape = std::move(shape);
  return data;
}

// Documents along the last dimension.
InputData documents(std::string name, int batch, int tokens, double mean, std::uint64_t seed) {
  InputInfo wanted{.name = std::move(name), .kind = InputInfo::Kind::int_tensor, .rank = 2};
  wanted.indexed_by = {1, 16};
  return girih::verify::document_tensor(wanted, {.batch = batch, .seqlen_k = tokens}, mean, seed);
}

// Three classes of a rank's heads by what every sequence sees, b first; each rank has the same.
using Classes = std::function<std::vector<oracle::Expr>(int b)>;

void check_classes(const Case& c, const Classes& classes, const std::string& description,
                   const TileConfig& tile = {}) {
  std::vector<oracle::Expr> model;
  for (int head = 0; head < c.problem.heads_total(); head += c.problem.num_heads) {
    std::ranges::copy(classes(0), std::back_inserter(model));
  }
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < sizes.size(); ++b) {
    expected.emplace_back(classes(static_cast<int>(b)), sizes[b]);
  }
  check_kernels(pattern_text(model, kHashes), c, {&tile, 1}, expected, description);
}

Case case_of(const Problem& problem, int batch, Lengths lengths, std::vector<InputData> inputs,
             std::uint64_t seed) {
  Case c = mask_case(problem, batch, lengths);
  c.inputs = std::move(inputs);
  c.seed = seed;
  return c;
}

// Without inputs; each is alone, under causality, and in an expression.
Classes closed(const std::string& text, const Holds& holds, bool by_head = false) {
  return [=](int) -> std::vector<oracle::Expr> {
    const oracle::Expr own = condition(text, holds, by_head);
    return {own,
            both(causal(), own),
            {Kind::any_of, {}, {sink(3), both(window(100, 50), negation(own))}}};
  };
}

const std::vector<TileConfig> kTiles = {
    {}, {.portable = true}, {64, 64, 2, 4}, {128, 128, 2, 8}, {128, 80, 2, 12, 2}};

}  // namespace

TEST_CASE("conditions over indices show exactly their elements on both kernels") {
  struct Closed {
    const char* text;
    Holds holds;
    bool by_head = false;
  };
  const std::vector<Closed> all = {
      {"k <= p", [](const auto& s, auto q, auto k) { return k <= diagonal(s, q); }},
      {"q / 64 == k / 64 || k < 5",
       [](const auto&, auto q, auto k) { return q / 64 == k / 64 || k < 5; }},
      {"(p - k) % 7 == 0 && k <= p",
       [](const auto& s, auto q, auto k) {
         return k <= diagonal(s, q) && (diagonal(s, q) - k) % 7 == 0;
       }},
      {"k >= Sk - 100 || q < Sq / 3",
       [](const auto& s, auto q, auto k) { return k >= s.seqlen_k - 100 || q < s.seqlen_q / 3; }},
      {"(k / 32 + h) % 4 == 0 || g == 1 && k < q",
       [](const auto& s, auto q, auto k) {
         return (k / 32 + s.head) % 4 == 0 || (s.head / s.group_size == 1 && k < q);
       },
       true},
      {"k * 0.5 <= q && tanh(k * 0.0) < 0.5",
       [](const auto&, auto q, auto k) { return k <= 2 * q; }},
      {"1 < 0", [](const auto&, auto, auto) { return false; }},
      {"0 < 1", [](const auto&, auto, auto) { return true; }},
  };
  std::uint64_t turn = 0;
  for (const Closed& one : all) {
    for (const Lengths lengths :
         {Lengths{1024, 1023}, {128, 217}, {300, 1111}, {700, 333}, {1, 5175}}) {
      const TileConfig tile = kTiles[turn % kTiles.size()];
      const int head_dim = tile == kTiles[4] ? 128 : turn % 2 == 0 ? 64 : 128;
      const Problem problem = make_problem(DType::bfloat16, head_dim, 3 * kHashes, 3);
      check_classes(case_of(problem, 2, lengths, {}, ++turn),
                    closed(one.text, one.holds, one.by_head), one.text, tile);
    }
  }
  for (const int head_dim : {192, 256}) {
    for (const bool portable : {false, true}) {
      const Problem problem = make_problem(DType::float16, head_dim, 3 * kHashes, 3);
      check_classes(case_of(problem, 2, {300, 333}, {}, ++turn), closed(all[1].text, all[1].holds),
                    all[1].text, {.portable = portable});
    }
  }
}

TEST_CASE("conditions over tensors show exactly their elements, in every sequence and head") {
  std::uint64_t turn = 60;
  for (const Lengths lengths : {Lengths{1024, 1024}, {300, 1111}, {130, 64}, {2048, 2048}}) {
    for (const bool portable : {false, true}) {
      const Problem problem =
          make_problem(DType::bfloat16, turn % 2 == 0 ? 64 : 128, 3 * kHashes, 3);
      const int tokens = std::max(lengths.q, lengths.k);
      const InputData doc = documents("doc", 2, tokens, 300, ++turn);
      const InputData limit = int_tensor("limit", {2, 1}, 400, turn + 1);  // all heads share
      const InputData own = int_tensor("own", {3 * kHashes, 8}, 3, turn + 2);
      const InputData far = int_tensor("far", {40}, 2, turn + 3);
      const Case c = case_of(problem, 2, lengths, {doc, limit, own, far}, turn);
      const Classes classes = [&](int b) -> std::vector<oracle::Expr> {
        return {condition("doc[b][q] == doc[b][k] && (k <= p || k < limit[b][h])",
                          [=](const auto& s, auto q, auto k) {
                            return element(doc, {b, q}) == element(doc, {b, k}) &&
                                   (k <= diagonal(s, q) || k < element(limit, {b, 0}));
                          }),
                both(causal(), condition(
                                   "own[h][k / 128] > 0",
                                   [=](const auto& s, auto, auto k) {
                                     return element(own, {s.head, k / 128}) > 0;
                                   },
                                   true)),
                {Kind::any_of,
                 {},
                 {sink(3),
                  negation(condition("far[(p - k) / 16] == 0", [=](const auto& s, auto q, auto k) {
                    return element(far, {(diagonal(s, q) - k) / 16}) == 0;
                  }))}}};
      };
      check_classes(c, classes, "tensors", {.portable = portable});
    }
  }
}

TEST_CASE("conditions follow packed and shortened sequences, and moved positions") {
  const Problem packed_problem = make_problem(DType::bfloat16, 128, 3 * kHashes, 3, 0, Layout::thd);
  const Holds last = [](const auto& s, auto q, auto k) {
    return k <= diagonal(s, q) && k >= s.seqlen_k - 150;
  };
  for (const bool portable : {false, true}) {
    Case packed = case_of(packed_problem, 4, {203, 300}, {}, 5);
    packed.lengths.q = {203, 1, 150, 77};
    packed.lengths.k = {300, 64, 0, 131};
    check_classes(packed, closed("k <= p && k >= Sk - 150", last), "packed, by length",
                  {.portable = portable});
    check_classes(
        packed,
        closed("k / 50 <= q / 50", [](const auto&, auto q, auto k) { return k / 50 <= q / 50; }),
        "packed, one plane for all", {.portable = portable});
    check_classes(packed,
                  [](int b) {
                    const oracle::Expr own =
                        condition("(k + b) % 3 != 0",
                                  [b](const auto&, auto, auto k) { return (k + b) % 3 != 0; });
                    return std::vector<oracle::Expr>{own, own, own};
                  },
                  "packed, by sequence", {.portable = portable});

    Case used = case_of(make_problem(DType::float16, 64, 3 * kHashes, 3), 3, {200, 400}, {}, 6);
    used.lengths.used_k = {400, 0, 131};
    used.lengths.leftpad_k = {17, 0, 64};
    check_classes(used, closed("k <= p && k >= Sk - 150", last), "shortened",
                  {.portable = portable});

    Case moved = case_of(make_problem(DType::float16, 64, 3 * kHashes, 3), 1, {100, 200}, {}, 7);
    moved.q_start = 5000;
    moved.k_start = 4950;
    check_classes(
        moved, closed("k <= p", [](const auto& s, auto q, auto k) { return k <= diagonal(s, q); }),
        "moved", {.portable = portable});
  }
}

TEST_CASE("a rank's conditions count the model's heads, and its tensors its own") {
  Problem problem = make_problem(DType::bfloat16, 64, 3 * kHashes, 3);
  problem.head_offset = 3 * kHashes;
  problem.num_heads_total = 9 * kHashes;
  const InputData own = int_tensor("own", {3 * kHashes}, 200, 3);
  const Case c = case_of(problem, 2, {300, 300}, {own}, 8);
  const int offset = problem.head_offset;
  for (const TileConfig& tile : kKernels) {
    check_classes(
        c,
        [=](int) {
          const oracle::Expr expr = condition(
              "k < own[h] + h",
              [=](const auto& s, auto, auto k) {
                return k < element(own, {s.head - offset}) + s.head;
              },
              true);
          return std::vector<oracle::Expr>{expr, both(causal(), expr), negation(expr)};
        },
        "a rank", tile);
  }
}

TEST_CASE("conditions of 131072 tokens pass over their empty tiles and show exactly the others") {
  const Problem problem = make_problem(DType::bfloat16, 128, kHashes, 1);
  const int length = 131072;
  const oracle::Expr expr =
      condition("k <= p && (p - k < 500 || k < 4)", [](const auto& s, auto q, auto k) {
        return k <= diagonal(s, q) && (diagonal(s, q) - k < 500 || k < 4);
      });
  std::vector<int> rows;
  for (int q = 0; q < length; q += 997) rows.push_back(q);
  rows.push_back(length - 1);
  const Case c = case_of(problem, 1, {length, length}, {}, 9);
  check_kernels(oracle::text(expr), c, kKernels, {Expected({expr}, sizes_of(c)[0], rows)},
                "131072 tokens");
}

TEST_CASE("a program finds tiles by itself, and launches with kept tiles give the same bits") {
  Case c = case_of(make_problem(DType::bfloat16, 64, 8, 2), 2, {300, 500},
                   {documents("doc", 2, 500, 90, 4)}, 10);
  const auto program = girih::jit::compile(
      Pattern::parse("causal & expr(\"doc[b][q] == doc[b][k]\") | expr(\"k < 2\")"));
  girih::verify::Workload workload(c);
  workload.fill_normal(1);
  const girih::jit::Args args = workload.args();
  const auto kernel = program.bind(c.problem);
  const std::size_t bytes = kernel.workspace_bytes(args);
  CHECK(bytes > 0);
  const girih::verify::Buffer memory(bytes);
  const girih::jit::Workspace workspace{memory.data(), memory.size()};
  kernel.build_lists(args, workspace);
  std::vector<std::uint16_t> first;
  for (int run = 0; run < 4; ++run) {
    workload.poison_outputs();
    if (run < 3) kernel.launch(args, workspace);
    if (run == 3) program(args);
    girih::verify::synchronize();
    workload.download_outputs();
    const std::vector<std::uint16_t> bits = result_bits(workload);
    if (run == 0) first = bits;
    CHECK(bits == first);
  }
  CHECK_THROWS_AS(kernel.launch(args), girih::Error);  // without the tiles
  girih::jit::Args wrong = args;
  wrong.inputs.clear();
  CHECK_THROWS_AS(program(wrong), girih::Error);
}

// --- Scores -------------------------------------------------------------------------------------

namespace {

InputData float_tensor(std::string name, std::vector<int> shape, double deviation,
                       std::uint64_t seed) {
  InputInfo wanted{.name = std::move(name), .kind = InputInfo::Kind::float_tensor, .rank = 1};
  int size = 1;
  for (const int extent : shape) size *= extent;
  InputData data = girih::verify::random_float_tensor(wanted, {.free = size}, deviation, seed);
  data.shape = std::move(shape);
  return data;
}

double value_at(const InputData& tensor, std::vector<long long> indices) {
  std::size_t at = 0;
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const long long extent = tensor.shape[i];
    at = at * static_cast<std::size_t>(extent) +
         static_cast<std::size_t>(std::clamp(indices[i], 0LL, extent - 1));
  }
  return static_cast<double>(tensor.values[at]);
}

void check_scores(const std::string& text, const std::vector<oracle::Expr>& classes, const Case& c,
                  girih::verify::GpuReference& gpu_reference, const TileConfig& tile = {}) {
  CAPTURE(text);
  girih::jit::Options options;
  options.tile = tile;
  const girih::jit::Program program = girih::jit::compile(Pattern::parse(text), options);
  const int heads_per_class = c.problem.num_heads / static_cast<int>(classes.size());
  const girih::verify::Report report = girih::verify::verify_attention(
      program, c, oracle_mask(classes, heads_per_class, c), gpu_reference);
  ++kernels_bound;
  rows_checked += report.rows_checked;
  std::string failures;
  for (const girih::verify::Failure& failure : report.failures) {
    failures +=
        fmt::format("\n  batch {} head {} query {}: {}: got {:.9g}, expected {:.9g}", failure.row.b,
                    failure.row.h, failure.row.q, failure.what, failure.got, failure.expected);
  }
  CHECK_MESSAGE(report.ok(), describe(c.problem)
                                 << ": " << report.rows_wrong << " of " << report.rows_checked
                                 << " rows wrong, error " << report.error << " of "
                                 << report.allowed_error << " allowed in " << report.closest
                                 << ", lse " << report.lse_error << failures);
  CHECK(report.rows_checked > 0);
}

}  // namespace

TEST_CASE("scores of some heads and of all are right at every width, on both kernels") {
  girih::verify::GpuReference gpu_reference;
  unsigned turn = 0;
  for (const bool portable : {false, true}) {
    const TileConfig tile{.portable = portable};
    for (const int head_dim : {64, 128, 192, 256}) {
      const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
      Case c = mask_case(make_problem(dtype, head_dim, 6, 2), 2, {203, 300});
      c.seed = turn;
      const InputData scale = float_tensor("scale", {6}, 0.5, turn);
      const InputData far = float_tensor("far", {2, 1, 32}, 2, turn + 1);  // heads share
      const int off = 300 - 203;
      const auto of_far = [=](double s, Row row, int key) {
        const int bucket = std::min(std::abs(row.q + off - key) / 8, 31);
        return s * value_at(scale, {row.h}) + value_at(far, {row.b, row.h, bucket});
      };
      Case all = c;
      all.inputs = {scale, far};
      all.changes.score = of_far;
      check_scores("causal with score(\"s * scale[h] + far[b][h][min(abs(p - k) / 8, 31)]\")",
                   {causal()}, all, gpu_reference, tile);

      // After softcap, ALiBi and bias, whatever the text's order; beside heads without any.
      const InputData slopes = girih::verify::alibi_slopes("a", 6);
      Case mixed = c;
      mixed.inputs = {slopes};
      mixed.softcaps = {20, 20, 20, 0, 0, 0};
      mixed.changes.score = [=](double s, Row row, int key) {
        if (row.h >= 3) return s;
        s -= static_cast<double>(slopes.values[static_cast<std::size_t>(row.h)]) *
             std::abs(row.q + off - key);
        return key % 3 == 0 ? std::tanh(s) * 2 : std::max(s, -1.0) + row.h;
      };
      check_scores(
          "heads(0-2: causal with score(\"k % 3 == 0 ? tanh(s) * 2 : max(s, -1) + h\"), alibi(a), "
          "softcap(20), 3-5: dense)",
          {causal(), dense()}, mixed, gpu_reference, tile);

      // Beside conditions.
      Case both_kinds = c;
      both_kinds.inputs = {scale};
      both_kinds.changes.score = [=](double s, Row row, int key) {
        return std::exp(std::min(s, 2.0)) - std::sqrt(std::abs(s)) +
               value_at(scale, {(key + row.q) % 6});
      };
      check_scores(
          "expr(\"q / 50 >= k / 50\") with score(\"exp(min(s, 2)) - sqrt(abs(s)) + scale[(k + q) % "
          "6]\")",
          {condition("q / 50 >= k / 50",
                     [](const auto&, auto q, auto k) { return q / 50 >= k / 50; })},
          both_kinds, gpu_reference, tile);
    }
  }
}

TEST_CASE("scores follow packed sequences, positions and a rank's heads") {
  girih::verify::GpuReference gpu_reference;
  Case packed = mask_case(make_problem(DType::bfloat16, 128, 6, 2, 0, Layout::thd), 4, {203, 300});
  packed.lengths.q = {203, 1, 150, 77};
  packed.lengths.k = {300, 64, 0, 131};
  const InputData own = float_tensor("own", {4, 6}, 1, 3);
  packed.inputs = {own};
  packed.problem.head_offset = 6;
  packed.problem.num_heads_total = 18;
  const std::vector<int> offs = {300 - 203, 64 - 1, 0 - 150, 131 - 77};
  const std::vector<int> keys = {300, 64, 0, 131};
  packed.changes.score = [=](double s, Row row, int key) {
    const auto b = static_cast<std::size_t>(row.b);
    return s + value_at(own, {row.b, row.h}) * (row.q + offs[b] - key) / keys[b] +
           0.25 * (row.h + 6) - row.b;
  };
  for (const TileConfig& tile : kKernels) {
    check_scores("causal with score(\"s + own[b][h] * (p - k) / Sk + 0.25 * h - b\")", {causal()},
                 packed, gpu_reference, tile);
  }

  Case moved = mask_case(make_problem(DType::float16, 64, 6, 2), 1, {100, 200});
  moved.q_start = 5000;
  moved.k_start = 4950;
  moved.changes.score = [](double s, Row row, int key) {
    return s - 0.125 * std::abs(row.q + 50 - key) + (row.q >= 50 ? 1 : 0);
  };
  for (const TileConfig& tile : kKernels) {
    check_scores("causal with score(\"s - 0.125 * abs(p - k) + (q >= Sq / 2 ? 1 : 0)\")",
                 {causal()}, moved, gpu_reference, tile);
  }
}

TEST_CASE("sanitizer: scores over tensors are right") {
  girih::verify::GpuReference gpu_reference;
  Case c = mask_case(make_problem(DType::bfloat16, 64, 6, 2), 2, {113, 203});
  c.max_ctas = 2;
  const InputData far = float_tensor("far", {6, 5}, 1, 3);
  c.inputs = {far};
  c.changes.score = [=](double s, Row row, int key) {
    return s + value_at(far, {row.h, (row.q + 90 - key) / 16});
  };
  for (const bool portable : {false, true}) {
    check_scores("causal with score(\"s + far[h][(p - k) / 16]\")", {causal()}, c, gpu_reference,
                 {.portable = portable});
  }
}

TEST_CASE("sanitizer: conditions over tensors show exactly their elements") {
  const InputData doc = documents("doc", 2, 203, 40, 2);
  const InputData far = int_tensor("far", {3}, 2, 3);
  Case c =
      case_of(make_problem(DType::bfloat16, 64, 3 * kHashes, 3), 2, {113, 203}, {doc, far}, 11);
  c.max_ctas = 2;
  for (const bool portable : {false, true}) {
    check_classes(c,
                  [=](int b) {
                    const oracle::Expr expr =
                        condition("doc[b][q] == doc[b][k] || far[(q - k) / 8] > 0",
                                  [=](const auto&, auto q, auto k) {
                                    return element(doc, {b, q}) == element(doc, {b, k}) ||
                                           element(far, {(q - k) / 8}) > 0;
                                  });
                    return std::vector<oracle::Expr>{expr, both(causal(), expr), negation(expr)};
                  },
                  "sanitizer", {.portable = portable});
  }
}
