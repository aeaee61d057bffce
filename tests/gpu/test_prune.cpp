// Pruned heads on both kernels: which key tiles are kept, what out and lse are over those, and what
// pruning gains.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "decisions.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::Pattern;
using girih::TileConfig;
using girih::verify::GpuReference;
using girih::verify::Report;

namespace {

// Returns how many tiles were skipped.
std::int64_t check_pruned(Case c, const std::vector<HeadClass>& classes, double fraction,
                          const TileConfig& tile, GpuReference& gpu_reference) {
  for (const HeadClass& head_class : classes) {
    for (int i = 0; i < c.problem.num_heads / static_cast<int>(classes.size()); ++i) {
      c.softcaps.push_back(head_class.softcap);
    }
  }
  const Decisions decisions(c, classes, fraction);
  c.inputs.push_back(decisions.input());
  const std::string text = text_of(classes, c.problem.num_heads);
  const std::string what = fmt::format("{}, {}, {} x {}, {} of {} tiles skipped, by {}", text,
                                       describe(c.problem), c.seqlen_q, c.seqlen_k,
                                       decisions.skipped(), decisions.skippable(), describe(tile));
  CAPTURE(what);
  if (fraction > 0.2 && decisions.skippable() > 20) CHECK(decisions.skipped() > 0);
  if (fraction < 0.8 && decisions.skippable() > 20) {
    CHECK(decisions.skipped() < decisions.skippable());
  }
  girih::jit::Options options;
  options.tile = tile;
  const girih::jit::Program program = girih::jit::compile(Pattern::parse(text), options);
  const Report report =
      girih::verify::verify_attention(program, c, decisions.mask(), gpu_reference);
  ++kernels_bound;
  rows_checked += report.rows_checked;
  std::string failures;
  for (const girih::verify::Failure& failure : report.failures) {
    failures +=
        fmt::format("\n  batch {} head {} query {}: {}: got {:.9g}, expected {:.9g}", failure.row.b,
                    failure.row.h, failure.row.q, failure.what, failure.got, failure.expected);
  }
  CHECK_MESSAGE(report.ok(), fmt::format("{} of {} rows wrong, {} not finite, {} written outside{}",
                                         report.rows_wrong, report.rows_checked, report.not_finite,
                                         report.touched_padding, failures));
  CHECK(report.rows_checked > 0);
  return decisions.skipped();
}

Case case_of(DType dtype, int head_dim, int seqlen_q, int seqlen_k, int batch = 1) {
  Case c;
  c.problem = make_problem(dtype, head_dim, 4, 2);
  c.batch = batch;
  c.seqlen_q = seqlen_q;
  c.seqlen_k = seqlen_k;
  c.seed = static_cast<std::uint64_t>(seqlen_q + 7 * seqlen_k + head_dim);
  return c;
}

HeadClass causal_class(int kv, bool keep_sink = false) {
  return {causal(), true, {kv, true, keep_sink}};
}
HeadClass dense_class(int kv, bool keep_sink = false) {
  return {dense(), true, {kv, false, keep_sink}};
}

}  // namespace

TEST_CASE("pruned heads keep the right tiles at every width") {
  GpuReference gpu_reference;
  unsigned turn = 0;
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const int kv : {64, 128}) {
      if (kv == 128 && head_dim > 128) continue;
      for (const double fraction : {0.0, 0.5, 0.8, 1.0}) {
        for (const TileConfig& tile : kKernels) {
          const DType dtype = ++turn % 2 == 0 ? DType::bfloat16 : DType::float16;
          Case square = case_of(dtype, head_dim, 1024, 1024);
          square.max_ctas = turn / 2 % 2 == 0 ? 0 : 2;  // which take query tiles in series
          check_pruned(square, {causal_class(kv)}, fraction, tile, gpu_reference);
          check_pruned(case_of(dtype, head_dim, 640, 1024), {dense_class(kv, turn % 3 == 0)},
                       fraction, tile, gpu_reference);
        }
      }
    }
  }
}

TEST_CASE("pruning is anchored at positions, whatever the lengths") {
  GpuReference gpu_reference;
  for (const auto& [seqlen_q, seqlen_k] : {std::pair{1023, 1024},
                                           {1024, 1023},
                                           {700, 333},
                                           {128, 217},
                                           {300, 1111},
                                           {1, 1000},
                                           {517, 1920}}) {
    for (const int kv : {64, 128}) {
      for (const TileConfig& tile : kKernels) {
        Case causal_case = case_of(DType::bfloat16, 128, seqlen_q, seqlen_k, 2);
        Case dense_case = case_of(DType::bfloat16, 64, seqlen_q, seqlen_k, 2);
        (kv == 64 ? causal_case : dense_case).max_ctas = 2;
        check_pruned(causal_case, {causal_class(kv, true)}, 0.6, tile, gpu_reference);
        check_pruned(dense_case, {dense_class(kv)}, 0.6, tile, gpu_reference);
      }
    }
  }
  for (const TileConfig& tile : kKernels) {  // a chunk of a sequence
    Case c = case_of(DType::bfloat16, 128, 300, 900);
    c.q_start = 1100;
    c.k_start = 333;
    check_pruned(c, {causal_class(64)}, 0.5, tile, gpu_reference);
    c.q_start = 0;
    c.k_start = 0;
    check_pruned(c, {dense_class(128)}, 0.5, tile, gpu_reference);
  }
}

TEST_CASE("packed sequences are pruned, and their tails stay out") {
  GpuReference gpu_reference;
  for (const TileConfig& tile : kKernels) {
    for (const int kv : {64, 128}) {
      Case c = case_of(DType::bfloat16, 128, 900, 1000, 5);
      c.problem.layout = Layout::thd;
      c.lengths.q = {900, 0, 333, 1, 640};
      c.lengths.k = {1000, 77, 333, 500, 641};
      c.max_ctas = kv == 64 ? 0 : 2;
      check_pruned(c, {causal_class(kv), dense_class(kv)}, 0.6, tile, gpu_reference);
      Case used = case_of(DType::float16, 64, 600, 900, 3);
      used.lengths.used_k = {900, 555, 0};
      check_pruned(used, {causal_class(kv), dense_class(kv)}, 0.6, tile, gpu_reference);
    }
  }
}

// Here and there one is kept that the first query tile of a series skipped.
TEST_CASE("query tiles in series keep the right tiles, of which nearly all are skipped") {
  GpuReference gpu_reference;
  for (const int kv : {64, 128}) {
    for (const int max_ctas : {1, 5}) {
      Case c = case_of(DType::bfloat16, 64, 4096, 4096);
      c.max_ctas = max_ctas;
      CHECK(check_pruned(c, {causal_class(kv)}, 0.95, {}, gpu_reference) > 1000);
    }
  }
}

TEST_CASE("pruned heads stand beside others, in expressions and under a softcap") {
  GpuReference gpu_reference;
  const HeadClass streaming_class{streaming(70, 300), true, {64, true, false}};
  const HeadClass band{window(200, 150), true, {64, false, false}};
  HeadClass capped = causal_class(64);
  capped.softcap = 2;
  HeadClass other = dense_class(64);
  other.pruned = false;
  HeadClass ahead{negation(causal()), true, {64, false, true}};
  for (const TileConfig& tile : kKernels) {
    const Case c = case_of(DType::bfloat16, 128, 1000, 1000);
    check_pruned(c, {causal_class(64), other}, 0.5, tile, gpu_reference);
    check_pruned(c, {capped, dense_class(64)}, 0.7, tile, gpu_reference);
    check_pruned(c, {streaming_class, band, capped, ahead}, 0.5, tile, gpu_reference);
    check_pruned(c, {streaming_class, other}, 1.0, tile, gpu_reference);
    Case wrapped = case_of(DType::bfloat16, 128, 1500, 1500);
    wrapped.max_ctas = 2;  // so that every ring goes round
    check_pruned(wrapped, {causal_class(64), band}, 0.5, tile, gpu_reference);
  }
  if (girih::verify::Device().arch() != "sm_90") return;
  for (int num_stages = 2; num_stages <= 4; ++num_stages) {
    for (const int num_q_stages : {1, 2}) {
      Case c = case_of(DType::bfloat16, 64, 1500, 1500);
      c.max_ctas = 3;
      check_pruned(c, {causal_class(64), dense_class(64)}, 0.7,
                   {.num_stages = num_stages, .num_q_stages = num_q_stages}, gpu_reference);
    }
  }
}

TEST_CASE("pruned heads have sinks, and stand beside heads with slopes and biases") {
  GpuReference gpu_reference;
  HeadClass sunk = causal_class(64), capped = dense_class(64), sloping = causal_class(64);
  sunk.others = "sink_logit(z)";
  capped.softcap = 2;
  sloping.pruned = false;
  sloping.others = "alibi(a), bias(b)";
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const TileConfig& tile : kKernels) {
      Case c = case_of(DType::bfloat16, head_dim, 700, 900, 2);
      c.inputs = {girih::verify::random_values("z", 1, 4, 0, 2.0, 5)};
      check_pruned(c, {sunk}, 0.6, tile, gpu_reference);
      c.inputs.push_back(girih::verify::alibi_slopes("a", 4));
      c.inputs.push_back(girih::verify::random_values("b", 2, 4, 900, 1.0, 6));
      check_pruned(c, {capped, sloping, sunk, causal_class(64)}, 0.6, tile, gpu_reference);
    }
  }
}

TEST_CASE("prune beside alibi, biases and scores") {
  GpuReference gpu_reference;
  HeadClass sloping = causal_class(64), biased = dense_class(64), scored = causal_class(64, true),
            all = causal_class(64), streaming_class{streaming(70, 300), true, {64, true, false}};
  sloping.others = "alibi(a)";
  biased.softcap = 2;
  biased.others = "bias(b)";
  scored.others = "score(\"s * 0.5 - (q + 3 * k) % 5 + w[k]\")";
  all.softcap = 3;
  all.others = "alibi(a), bias(b), score(\"k % 7 == 0 ? s * 2 : s - w[k]\"), sink_logit(z)";
  streaming_class.others = "bias(b), sink_logit(z)";
  HeadClass plain = dense_class(64);
  plain.pruned = false;
  const auto wide = [](HeadClass head_class) {
    head_class.prune.kv = 128;
    return head_class;
  };
  for (const int head_dim : {64, 128, 160, 192, 256}) {
    for (const TileConfig& tile : kKernels) {
      Case c = case_of(DType::bfloat16, head_dim, 700, 900, 2);
      InputData weights{.kind = InputInfo::Kind::float_tensor, .name = "w"};
      weights.shape = {900};
      for (int k = 0; k < 900; ++k) weights.values.push_back(static_cast<float>(k % 11) - 5.0f);
      // Biases large enough to change decisions, if they counted.
      c.inputs = {girih::verify::alibi_slopes("a", 4)};
      check_pruned(c, {sloping}, 0.6, tile, gpu_reference);
      c.inputs = {girih::verify::random_values("b", 2, 4, 900, 4.0, 6)};
      check_pruned(c, {biased}, 0.6, tile, gpu_reference);
      c.inputs = {weights};
      check_pruned(c, {scored}, 0.6, tile, gpu_reference);
      if (head_dim <= 128) check_pruned(c, {wide(scored)}, 0.6, tile, gpu_reference);
      c.inputs = {weights, girih::verify::alibi_slopes("a", 4),
                  girih::verify::random_values("b", 2, 4, 900, 4.0, 6),
                  girih::verify::random_values("z", 1, 4, 0, 2.0, 5)};
      check_pruned(c, {all}, 0.6, tile, gpu_reference);
      check_pruned(c, {sloping, biased, all, scored}, 0.5, tile, gpu_reference);
      c.inputs.erase(c.inputs.begin());
      check_pruned(c, {streaming_class, sloping, plain, causal_class(64)}, 0.7, tile,
                   gpu_reference);
      if (head_dim <= 128) {
        c.max_ctas = 3;  // so that every ring goes round
        c.inputs.erase(c.inputs.begin());
        check_pruned(c, {wide(streaming_class), wide(biased)}, 0.5, tile, gpu_reference);
      }
    }
  }
}

TEST_CASE("pruned heads that load nothing ahead keep the right tiles") {
  GpuReference gpu_reference;
  const TileConfig one_stage{.num_stages = 1, .num_warps = 8, .portable = true};
  HeadClass biased = causal_class(64), whole = dense_class(64);
  biased.others = "bias(b)";
  whole.pruned = false;
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const double fraction : {0.0, 0.6, 1.0}) {
      Case c = case_of(head_dim == 128 ? DType::float16 : DType::bfloat16, head_dim, 700, 900, 2);
      check_pruned(c, {causal_class(64)}, fraction, one_stage, gpu_reference);
      check_pruned(c, {dense_class(64, true), whole}, fraction, one_stage, gpu_reference);
      if (head_dim <= 192) {
        check_pruned(c, {causal_class(128), dense_class(128)}, fraction, one_stage, gpu_reference);
      }
      c.max_ctas = 3;
      c.inputs = {girih::verify::random_values("b", 2, 4, 900, 4.0, 6)};
      check_pruned(c, {biased, whole}, fraction, one_stage, gpu_reference);
    }
  }
  Case ragged = case_of(DType::bfloat16, 256, 900, 1000, 5);  // with sequences that see nothing
  ragged.problem.layout = Layout::thd;
  ragged.lengths.q = {900, 0, 333, 1, 640};
  ragged.lengths.k = {1000, 77, 0, 500, 641};
  check_pruned(ragged, {causal_class(64), dense_class(64)}, 0.6, one_stage, gpu_reference);
  check_pruned(case_of(DType::bfloat16, 192, 700, 900), {causal_class(128)}, 0.6, {},
               gpu_reference);  // of 128 keys, only one stage has room
}

TEST_CASE(
    "thresholds that are NaN are refused where a check is asked for, and keep all tiles else") {
  Case c = case_of(DType::bfloat16, 64, 500, 1000);
  InputData data{.kind = InputInfo::Kind::thresholds, .name = "t"};
  data.heads = 4;
  data.num_columns = 8;
  data.prune_kv = 64;
  for (const bool wrong : {false, true}) {
    data.thresholds.assign(4 * 8, -1.5f);
    if (wrong) data.thresholds[2 * 8 + 5] = std::nanf("");
    c.inputs = {data};
    const Workload workload(c);
    const girih::jit::Kernel kernel =
        girih::jit::compile(Pattern::parse("causal with prune(t, kv=64)"), c.problem);
    const girih::jit::Args args = workload.args();
    CHECK_NOTHROW(kernel.build_lists(args, {}));
    std::string message;
    try {
      kernel.build_lists(args, {}, girih::jit::Check::yes);
    } catch (const girih::Error& error) {
      message = error.what();
    }
    CHECK(message == (wrong
                          ? "the input 't' is NaN in head 2, column 5, where it keeps every tile: "
                            "write -inf if that is meant"
                          : ""));
  }
}

TEST_CASE("pruned neighborhoods have tokens in a row for tiles, beside others or alone") {
  GpuReference gpu_reference;
  const HeadClass pruned{neighborhood({{30, 11, 1, 1}, {40, 15, 2, 1}}), true, {64, false, false}};
  HeadClass whole = pruned;
  whole.pruned = false;
  for (const TileConfig& tile : kKernels) {
    for (const int head_dim : {64, 128}) {
      Case c = case_of(DType::bfloat16, head_dim, 1200, 1200);
      check_pruned(c, {pruned}, 0.5, tile, gpu_reference);
      c.seqlen_k = 1300;  // more keys behind the grid
      c.max_ctas = 3;
      check_pruned(c, {pruned, whole, causal_class(64), dense_class(64)}, 0.6, tile, gpu_reference);
    }
  }
}

TEST_CASE("pruned columns and slashes are not gathered, beside others or alone") {
  GpuReference gpu_reference;
  Case c = case_of(DType::bfloat16, 128, 1400, 1500);
  const InputData lists = girih::verify::random_slashes("v", 1, 1, c.seqlen_k, 60, 130, 3);
  c.inputs = {lists};
  oracle::Expr slashes{oracle::Expr::Kind::vertical_slash, {}, {}};
  slashes.slash.name = "v";
  slashes.slash.columns.insert(lists.vertical.begin(), lists.vertical.end());
  slashes.slash.distances.insert(lists.slash.begin(), lists.slash.end());
  slashes.slash.distances.insert(0);
  std::vector<int> rows;
  for (int q = 0; q < c.seqlen_q; q += 64) rows.push_back(q);
  slashes.slash.remember(sizes_of(c).front(), rows);
  const HeadClass alone{slashes, true, {64, false, true}};
  const HeadClass in_mask{both(causal(), slashes), true, {64, true, false}};
  HeadClass whole = alone;
  whole.pruned = false;
  for (const TileConfig& tile : kKernels) {
    check_pruned(c, {alone}, 0.5, tile, gpu_reference);
    check_pruned(c, {in_mask, whole, alone, causal_class(64)}, 0.6, tile, gpu_reference);
    Case wrapped = c;
    wrapped.max_ctas = 3;
    check_pruned(wrapped, {whole, in_mask}, 0.6, tile, gpu_reference);
  }
}

// Where biased, tiles below the threshold have the highest scores behind the bias, and those that
// are kept the lowest: a decision that counted it would be another.
TEST_CASE("a tile whose maximum is the threshold is kept, whatever its bias, and NaN keeps all") {
  constexpr int kTiles = 24, kLength = 64 * kTiles;
  const auto bias_of = [](int maximum, float threshold) {
    return static_cast<float>(maximum) < threshold ? 8.0f : -8.0f;
  };
  for (const auto& [tile, biased] : {std::pair{kKernels[0], false},
                                     {kKernels[0], true},
                                     {kKernels[1], false},
                                     {kKernels[1], true}}) {
    Case c = case_of(DType::bfloat16, 64, 200, kLength);
    c.problem.num_heads = c.problem.num_heads_kv = 2;
    c.softmax_scale = 1.0f;
    for (const float threshold : {3.0f, 3.5f, 0.0f, -1.0f, -1.5f, -kInfinity, std::nanf("")}) {
      InputData data{.kind = InputInfo::Kind::thresholds, .name = "t"};
      data.thresholds = {threshold};
      data.num_columns = 1;
      data.prune_kv = 64;
      c.inputs = {data};
      std::mt19937_64 random(9);
      std::vector<std::vector<int>> highest(2), place(2);
      for (std::size_t h = 0; h < 2; ++h) {
        for (int n = 0; n < kTiles; ++n) {
          highest[h].push_back(static_cast<int>(random() % 7) - 1);
          place[h].push_back(static_cast<int>(random() % 64));
        }
      }
      if (biased) {
        InputData bias{.kind = InputInfo::Kind::key_values, .name = "b"};
        bias.heads = 2;
        bias.seqlen_k = kLength;
        for (std::size_t h = 0; h < 2; ++h) {
          for (std::size_t k = 0; k < kLength; ++k) {
            bias.values.push_back(bias_of(highest[h][k / 64], threshold));
          }
        }
        c.inputs.push_back(bias);
      }
      Workload workload(c);
      workload.fill_normal(1);
      // Scores are what a key's first element holds: -2 but for one in each tile.
      for (int h = 0; h < 2; ++h) {
        for (int q = 0; q < c.seqlen_q; ++q) {
          std::uint16_t* row = workload.q_row({0, h, q});
          std::fill_n(row, 64, std::uint16_t{0});
          row[0] = girih::verify::narrow(c.problem.dtype, 1.0f);
        }
        for (int n = 0; n < kTiles; ++n) {
          const auto head = static_cast<std::size_t>(h), at = static_cast<std::size_t>(n);
          for (int i = 0; i < 64; ++i) {
            const int score = i == place[head][at] ? highest[head][at] : -2;
            workload.k_row(0, 64 * n + i, h)[0] =
                girih::verify::narrow(c.problem.dtype, static_cast<float>(score));
          }
        }
      }
      workload.upload_inputs();
      workload.poison_outputs();
      girih::jit::Options options;
      options.tile = tile;
      const girih::jit::Kernel kernel =
          girih::jit::compile(Pattern::parse(biased ? "dense with prune(t, kv=64), bias(b)"
                                                    : "dense with prune(t, kv=64)"),
                              c.problem, options);
      kernel.launch(workload.args());
      girih::verify::synchronize();
      workload.download_outputs();
      for (int h = 0; h < 2; ++h) {
        double sum = 0;
        for (int n = 0; n < kTiles; ++n) {
          const int maximum = highest[static_cast<std::size_t>(h)][static_cast<std::size_t>(n)];
          const bool skipped = n < kTiles - 1 && static_cast<float>(maximum) < threshold;
          const double factor =
              biased ? std::exp(static_cast<double>(bias_of(maximum, threshold))) : 1.0;
          if (!skipped) sum += factor * (std::exp(maximum) + 63 * std::exp(-2.0));
        }
        for (int q = 0; q < c.seqlen_q; ++q) {
          const double lse = static_cast<double>(workload.lse_at({0, h, q}));
          CAPTURE(threshold);
          CAPTURE(biased);
          REQUIRE(lse == doctest::Approx(std::log(sum)).epsilon(1e-5));
          ++rows_checked;
        }
      }
    }
  }
}

TEST_CASE("twenty runs of a pruned kernel give the same bits") {
  for (const auto& [kv, seqlen, skipped] : {std::tuple{64, 2048, 0.6}, {128, 4096, 0.95}}) {
    const HeadClass head_class = causal_class(kv);
    Case c = case_of(DType::bfloat16, kv, seqlen, seqlen);
    c.max_ctas = 4;  // a CTA has some twenty query tiles, in series, whose votes go round
    const Decisions decisions(c, {head_class}, skipped);
    c.inputs = {decisions.input()};
    Workload workload(c);
    workload.fill_normal(c.seed);
    for (const TileConfig& tile : kKernels) {
      girih::jit::Options options;
      options.tile = tile;
      const girih::jit::Kernel kernel =
          girih::jit::compile(Pattern::parse(head_class.text()), c.problem, options);
      girih::verify::Buffer memory(kernel.workspace_bytes(workload.args()));
      check_repeats(kernel, workload, memory);
    }
  }
}

TEST_CASE("sanitizer: pruned heads keep the right tiles") {
  GpuReference gpu_reference;
  HeadClass biased = causal_class(64);
  biased.others = "bias(b)";
  std::vector<std::pair<std::vector<HeadClass>, Case>> cases;
  for (const int kv : {64, 128}) {
    // So many that a CTA decides on more tiles than there are places for votes.
    const int keys = kv == 64 ? 500 : 900;
    const DType dtype = kv == 64 ? DType::bfloat16 : DType::float16;
    const std::vector<HeadClass> classes = {causal_class(kv), dense_class(kv, true)};
    cases.push_back({classes, case_of(dtype, 64, 300, keys)});
    Case packed = case_of(dtype, 64, 300, keys, 3);
    packed.problem.layout = Layout::thd;
    packed.lengths.q = {300, 0, 1};
    packed.lengths.k = {keys, 64, 0};
    cases.push_back({classes, packed});
  }
  cases.push_back({{biased}, case_of(DType::bfloat16, 64, 300, 500)});
  cases.back().second.inputs = {girih::verify::random_values("b", 1, 4, 500, 4.0, 6)};

  std::vector<Binding> bindings;  // to compile on all processors
  for (const auto& [classes, c] : cases) {
    if (c.problem.layout == Layout::thd) continue;  // has the same kernels
    for (const TileConfig& tile : kKernels) {
      bindings.push_back({text_of(classes, c.problem.num_heads), c.problem, tile});
    }
  }
  const std::vector<Bound> bound = bind_all(bindings);
  for (const Bound& one : bound) CHECK_MESSAGE(one.kernel, one.message);
  for (auto& [classes, c] : cases) {
    c.max_ctas = 2;
    c.reference = Case::Reference::cpu;
    for (const TileConfig& tile : kKernels) {
      CHECK(check_pruned(c, classes, 0.5, tile, gpu_reference) > 0);
    }
  }
}
