// Pruning without a GPU: the rule of a query tile against the oracle, patterns that say it, and
// what plans make of them.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "girih/shared/prune.cuh"
#include "oracle/prune.hpp"
#include "pattern/atoms.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "plans.hpp"
#include "texts.hpp"
#include "verify/pruning.hpp"

using namespace girih;
using tests::contains;
using tests::message_of;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

plan::Plan plan_for(const std::string& pattern, int head_dim = 128,
                    const std::string& arch = "sm_90", const TileConfig& tile = {}) {
  const Problem problem{.head_dim = head_dim, .num_heads = 4, .num_heads_kv = 2};
  return tests::plan_for(pattern, problem, arch, tile);
}

InputView view_of(const std::vector<float>& thresholds, int num_columns) {
  InputView view;
  view.data = reinterpret_cast<const uint32*>(thresholds.data());
  view.head_stride = num_columns;
  view.row_stride = num_columns;
  return view;
}

}  // namespace

TEST_CASE("the rule of a query tile is the oracle's") {
  std::mt19937_64 random(5);
  const auto below = [&](int bound) { return static_cast<int>(random() % bound); };
  for (int turn = 0; turn < 3000; ++turn) {
    const int num_heads = 1 + below(3), num_columns = 1 + below(6), slot = below(3);
    std::vector<float> thresholds(static_cast<std::size_t>(num_heads * num_columns));
    for (float& threshold : thresholds) threshold = static_cast<float>(below(1000)) - 500.0f;
    std::vector<InputView> views(3);
    views[static_cast<std::size_t>(slot)] = view_of(thresholds, num_columns);

    Geometry geometry;
    geometry.seqlen_q = 1 + below(500);
    geometry.seqlen_k = below(8) == 0 ? 0 : below(700);
    geometry.k_start = below(2) == 0 ? 0 : below(300);
    geometry.q_start = geometry.k_start +
                       (below(3) == 0 ? below(900) - 450 : geometry.seqlen_k - geometry.seqlen_q);
    geometry.inputs = views.data();
    geometry.local_head = below(num_heads);
    const oracle::Sizes sizes{geometry.seqlen_q, geometry.seqlen_k, geometry.q_start,
                              geometry.k_start};
    const oracle::Prune prune{below(2) == 0 ? 64 : 128, below(2) == 0, below(2) == 0};
    const int word = PruneWord::make(slot, prune.causal, prune.keep_sink);
    for (int tile = 0; tile < oracle::num_query_tiles(sizes); ++tile) {
      const PruneRule rule = prune_rule(word, geometry, 128 * tile, static_cast<int>(prune.kv));
      const auto column = oracle::threshold_column(sizes, tile, num_columns);
      REQUIRE(rule.threshold ==
              thresholds[static_cast<std::size_t>(geometry.local_head * num_columns + column)]);
      for (int n = 0; n < oracle::num_key_tiles(prune, sizes); ++n) {
        REQUIRE(rule.may_skip(n) == !oracle::never_skipped(prune, sizes, tile, n));
      }
    }
  }
}

TEST_CASE("no tile is skipped below -inf or NaN, nor in heads that are not pruned") {
  for (const float threshold : {-kInfinity, std::nanf(""), kInfinity, -1e30f}) {
    const std::vector<float> thresholds{threshold};
    const InputView view = view_of(thresholds, 1);
    Geometry geometry;
    geometry.seqlen_q = geometry.seqlen_k = 1024;
    geometry.inputs = &view;
    const PruneRule rule = prune_rule(PruneWord::make(0, true, false), geometry, 512, 64);
    const bool keeps_all = std::isnan(threshold) || threshold == -kInfinity;
    CHECK(rule.may_skip(0) == !keeps_all);
    CHECK_FALSE(rule.may_skip(8));
    CHECK_FALSE(prune_rule(PruneWord::kNone, geometry, 512, 64).may_skip(0));
  }
}

TEST_CASE("prune is read, printed and compared") {
  for (const char* text :
       {"causal with prune(t, kv=64)", "dense with prune(t, kv=128)",
        "causal & window(left=9) with softcap(30), prune(t, kv=64, keep_sink=true)",
        "heads(0-3: causal with prune(a, kv=64), else: dense)",
        "heads(0: causal with prune(a, kv=64), 1: dense with prune(b, kv=64, "
        "keep_sink=true))"}) {
    const Pattern pattern = Pattern::parse(text);
    CHECK(pattern.text() == text);
    CHECK(Pattern::parse(pattern.text()) == pattern);
  }
  const Pattern written =
      Pattern::parse("causal with prune( t ,keep_sink=false, kv = 64), softcap(2)");
  CHECK(written.text() == "causal with softcap(2), prune(t, kv=64)");
  CHECK(written == Pattern(causal()).with_softcap(2).with_prune({.thresholds = "t", .kv = 64}));
  CHECK(written != Pattern::parse("causal with softcap(2), prune(t, kv=128)"));
  CHECK(Pattern::parse("causal with sink_logit(z), bias(b), prune(t, kv=64), alibi(a), softcap(2)")
            .text() == "causal with softcap(2), prune(t, kv=64), alibi(a), bias(b), sink_logit(z)");
  const InputInfo wanted{
      .name = "t", .kind = InputInfo::Kind::thresholds, .q_block_size = 0, .kv_block_size = 64};
  REQUIRE(written.inputs().size() == 1);
  CHECK(written.inputs()[0] == wanted);
  CHECK(wanted.description() ==
        "thresholds for tiles of 64 keys, float32 [heads, ceil(seqlen_k / 128)]");
}

TEST_CASE("prune that makes no sense is refused at its place") {
  const struct {
    const char* text;
    const char* message;
  } cases[] = {
      {"causal with prune", "expected '(' after prune, found the end of the text"},
      {"causal with prune()", "prune takes the name of its thresholds, found ')'"},
      {"causal with prune(3)", "prune takes the name of its thresholds, found '3'"},
      {"causal with prune(t)", "prune needs the keys of its tiles: kv=64 or kv=128"},
      {"causal with prune(t, 64)", "prune takes a name, kv and keep_sink, found '64'"},
      {"causal with prune(t, kv=32)", "prune: kv is 64 or 128, found '32'"},
      {"causal with prune(t, kv=64, kv=64)", "kv is given twice"},
      {"causal with prune(t, kv 64)", "expected '=' after kv, found '64'"},
      {"causal with prune(t, kv=64, keep_sink=1)", "keep_sink takes true or false, found '1'"},
      {"causal with prune(t, kv=64), prune(t, kv=64)", "prune is given twice"},
      {"causal with prune(t, kv=64", "expected ')', found the end of the text"},
      {"causal & blocks(t, q=64, kv=64) with prune(t, kv=64)", "the input 't' is used as"},
      {"causal with alibi(t), prune(t, kv=64)", "the input 't' is used as"},
      {"heads(0: causal with prune(t, kv=64), 1: causal with prune(t, kv=128))",
       "the input 't' is used as"},
      {"heads(0: causal with prune(t, kv=64), 1: causal with prune(u, kv=128))",
       "pruned by tiles of 64 keys and some by 128"},
  };
  for (const auto& [text, message] : cases) {
    const std::string found = message_of([&] { Pattern::parse(text); });
    CHECK_MESSAGE(contains(found, message), text << ": " << found);
  }
  CHECK(contains(message_of([] { Pattern(causal()).with_prune({.thresholds = "t", .kv = 96}); }),
                 "kv = 96 is not supported: tiles of 64 and 128 keys are"));
  CHECK(message_of([] { Pattern(causal()).with_prune({.thresholds = "", .kv = 64}); }) !=
        "(nothing was thrown)");
}

TEST_CASE("a pruned head's tile is what is decided on") {
  for (const char* arch : {"sm_80", "sm_90"}) {
    for (const int kv : {64, 128}) {
      const plan::Plan plan = plan_for(fmt::format("causal with prune(t, kv={})", kv), 128, arch);
      CHECK(plan.spec.prune);
      CHECK(plan.spec.tile.block_m == 128);
      CHECK(plan.spec.tile.block_n == kv);
      CHECK_FALSE((plan.spec.family == plan::KernelFamily::fwd_sm90 && plan.spec.pass_over));
      const Problem problem{.head_dim = 128, .num_heads = 4, .num_heads_kv = 2};
      for (const TileConfig& tile : plan::candidate_tiles(plan, problem, plan::Arch::parse(arch))) {
        CHECK(tile.block_m == 128);
        CHECK(tile.block_n == kv);
      }
    }
  }
  // Small blocks neither pack heads nor gather key tiles.
  const Problem packed{.head_dim = 128, .num_heads = 4, .num_heads_kv = 2, .shared_inputs = true};
  const plan::Plan blocks =
      plan::make_plan(Pattern::parse("causal & blocks(m, q=64, kv=32) with prune(t, kv=64)"),
                      packed, plan::Arch::parse("sm_90"));
  CHECK_FALSE(blocks.spec.pack_heads);
  CHECK(blocks.spec.key_box == 64);
  CHECK_FALSE(plan_for("causal").spec.prune);

  CHECK(contains(
      message_of([] { plan_for("causal with prune(t, kv=64)", 128, "sm_90", {.block_m = 192}); }),
      "block_m 192 is not supported with prune, which decides for 128 rows"));
  CHECK(contains(
      message_of([] { plan_for("causal with prune(t, kv=64)", 128, "sm_90", {.block_n = 128}); }),
      "block_n 128 is not supported with prune(..., kv=64)"));
  for (const char* arch : {"sm_80", "sm_90"}) {
    CHECK(contains(message_of([&] { plan_for("causal with prune(t, kv=128)", 256, arch); }),
                   "calibrate for kv=64"));
  }
  CHECK(contains(message_of([] { plan_for("causal with prune(t, kv=64)", 208, "sm_89"); }),
                 "; prune needs tiles of 128 x 64: narrower heads leave them room"));
}

TEST_CASE("pruned kernels visit tokens in a row: neither bricks nor what is gathered") {
  const auto spec_of = [](const std::string& text) {
    return plan::make_plan(Pattern::parse(text), {.num_heads = 4, .num_heads_kv = 4},
                           plan::Arch::parse("sm_90a"), {})
        .spec;
  };
  const std::string hood = "neighborhood(30x40, window=(11, 15))", slash = "vertical_slash(v)";
  CHECK(spec_of(hood).bricks.has_value());
  CHECK_FALSE(spec_of(hood + " with prune(t, kv=64)").bricks.has_value());
  CHECK_FALSE(spec_of("heads(0: " + hood + ", else: causal with prune(t, kv=64))").bricks);
  CHECK(spec_of(slash).gathers);
  CHECK_FALSE(spec_of(slash + " with prune(t, kv=64)").gathers);
  CHECK_FALSE(spec_of("heads(0: " + slash + ", else: causal with prune(t, kv=64))").gathers);
}

TEST_CASE("what changes scores behind prune's decision stands beside it, or in other heads") {
  for (const char* arch : {"sm_80", "sm_90"}) {
    const plan::Plan beside = plan_for(
        "causal with prune(t, kv=64), alibi(a), bias(b), score(\"s * 2.0\"), sink_logit(z)", 128,
        arch);
    CHECK(beside.spec.prune);
    REQUIRE(beside.spec.structures.size() == 1);
    CHECK(contains(beside.spec.structures[0], "With<Leaf<Causal>, Alibi, Bias, Score<Score_"));
    CHECK(beside.spec.tile.block_m == 128);
    CHECK(beside.spec.tile.block_n == 64);
    CHECK(beside.spec.tile.num_warps >= 8);
    REQUIRE(beside.head_table.size() == 2 + 3 + 1);
    CHECK(beside.head_table[5] == PruneWord::make(0, true, false));
    const plan::Plan plan =
        plan_for("heads(0: causal with prune(t, kv=64), else: causal with alibi(a))", 128, arch);
    CHECK(plan.spec.prune);
    CHECK(plan.spec.structures ==
          std::vector<std::string>{"Leaf<Causal>", "With<Leaf<Causal>, Alibi>"});
    CHECK(plan.spec.tile.block_n == 64);
  }
  const plan::Plan plan =
      plan_for("heads(0: causal with prune(t, kv=64), sink_logit(z), else: causal)");
  CHECK(plan.spec.structures ==
        std::vector<std::string>{"Leaf<Causal>", "With<Leaf<Causal>, SinkLogit>"});
  CHECK(plan.head_table[2] == 1);  // the sink's place among the inputs; behind it the word
  CHECK(plan.head_table[3] == PruneWord::make(0, true, false));
}

TEST_CASE("where registers or shared memory do not hold pruned heads otherwise, they go slower") {
  // Hopper's consumers hold an expression beside output of 160, not of 192.
  const std::string score = "causal with prune(t, kv=64), score(\"s * 2.0\")";
  CHECK(plan_for(score, 160).spec.family == plan::KernelFamily::fwd_sm90);
  CHECK(plan_for(score, 192).spec.family == plan::KernelFamily::fwd_sm80);
  CHECK(plan_for("causal with prune(t, kv=64), alibi(a)", 192).spec.family ==
        plan::KernelFamily::fwd_sm90);
  const auto stages = [](int kv, int head_dim, const char* arch) {
    return plan_for(fmt::format("causal with prune(t, kv={})", kv), head_dim, arch)
        .spec.tile.num_stages;
  };
  CHECK(stages(64, 192, "sm_80") == 2);
  CHECK(stages(64, 256, "sm_80") == 1);
  CHECK(stages(128, 128, "sm_80") == 2);
  CHECK(stages(128, 192, "sm_80") == 1);
  CHECK(stages(64, 128, "sm_89") == 2);
  CHECK(stages(64, 192, "sm_89") == 1);
  CHECK(stages(128, 128, "sm_89") == 1);
  CHECK(message_of([&] { stages(64, 256, "sm_89"); }) != "(nothing was thrown)");
  CHECK(contains(message_of([&] { stages(128, 192, "sm_89"); }), "calibrate for kv=64"));
  // A tile that somebody asks for may have one stage, pruned or not.
  CHECK(plan_for("causal", 64, "sm_90", {.num_stages = 1, .portable = true}).spec.tile.num_stages ==
        1);
}

TEST_CASE("the head table says how each head is pruned") {
  const plan::Plan plan = plan_for(
      "heads(0: causal & sink(5) with prune(a, kv=64), 1: sink(7), "
      "2: !causal with prune(b, kv=64, keep_sink=true), 3: causal with prune(b, kv=64))");
  const int width = 2 + 1 + 1;  // class, softcap, one number, the word
  REQUIRE(plan.head_table.size() == static_cast<std::size_t>(plan.spec.head_capacity * width));
  const auto word = [&](std::size_t head) { return plan.head_table[head * width + 3]; };
  CHECK(word(0) == PruneWord::make(0, true, false));
  CHECK(word(1) == PruneWord::kNone);
  CHECK(word(2) == PruneWord::make(1, false, true));
  CHECK(word(3) == PruneWord::make(1, true, false));
  CHECK(plan.head_table[2] == 5);
  CHECK(PruneWord::slot(word(2)) == 1);
  CHECK(PruneWord::keep_sink(word(2)));
  CHECK_FALSE(PruneWord::causal(word(2)));

  const std::string source = codegen::emit(plan.spec);
  CHECK(contains(source, "kPrune = true"));
  CHECK(contains(source, "Classes::kNumNumbers + 1>"));
  CHECK_FALSE(contains(codegen::emit(plan_for("causal").spec), "Prune"));
}

// Scores are a query's first element times a key's, so that the oracle finds them by itself.
TEST_CASE("what verify takes for skipped is what the oracle does, away from thresholds") {
  std::mt19937_64 random(11);
  const auto below = [&](int bound) { return static_cast<int>(random() % bound); };
  std::int64_t tiles = 0, skipped = 0, moved = 0;
  for (int turn = 0; turn < 40; ++turn) {
    const bool causal = below(2) == 0, keep_sink = below(2) == 0;
    const int kv = below(2) == 0 ? 64 : 128;
    const float softcap = below(2) == 0 ? 0.0f : 2.0f;
    verify::Case c;
    c.problem = {.head_dim = 16, .num_heads = 2, .num_heads_kv = 1};
    c.batch = 2;
    c.seqlen_q = 1 + below(500);
    c.seqlen_k = 1 + below(900);
    c.k_start = below(2) == 0 ? 0 : below(300);
    if (below(3) == 0) c.q_start = below(900);
    const Pattern pattern = Pattern::parse(
        fmt::format("{} with {}prune(t, kv={}, keep_sink={}), bias(b)", causal ? "causal" : "dense",
                    softcap > 0 ? "softcap(2), " : "", kv, keep_sink));
    verify::InputData input{.kind = InputInfo::Kind::thresholds, .name = "t"};
    input.heads = 2;
    input.num_columns = 1 + below(6);
    input.prune_kv = kv;
    if (turn % 2 == 0) input.skip = 0.5;
    for (int i = 0; i < 2 * input.num_columns; ++i) {
      // 4 is the highest score of some tiles.
      input.thresholds.push_back(below(3) == 0 ? 4.0f : static_cast<float>(below(4000)) * 0.001f);
    }
    c.inputs = {input};

    std::vector<std::uint16_t> q(static_cast<std::size_t>(2 * c.seqlen_q * 2 * 16));
    std::vector<std::uint16_t> k(static_cast<std::size_t>(2 * c.seqlen_k * 16));
    std::vector<double> firsts_q, firsts_k;
    for (auto* bits : {&q, &k}) {
      for (std::size_t i = 0; i < bits->size(); i += 16) {
        const int shift = bits == &q ? 0 : static_cast<int>(i / 16 / 64 % 3);
        const float value = std::ldexp(static_cast<float>(below(256) - 128), -6 - shift);
        (*bits)[i] = verify::narrow(DType::bfloat16, value);
        (bits == &q ? firsts_q : firsts_k).push_back(static_cast<double>(value));
      }
    }
    verify::AttentionInputs tensors;
    tensors.q = Tensor::contiguous(q.data(), DType::bfloat16, {2, c.seqlen_q, 2, 16});
    tensors.k = Tensor::contiguous(k.data(), DType::bfloat16, {2, c.seqlen_k, 1, 16});
    tensors.v = tensors.k;
    tensors.softmax_scale = 1;
    const int q_start = c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q);
    const verify::MaskRow mask = [&](verify::Row row, std::span<std::uint32_t> words) {
      for (int key = 0; key < c.seqlen_k; ++key) {
        if (causal && key + c.k_start > row.q + q_start) continue;
        words[static_cast<std::size_t>(key / 32)] |= 1u << (key % 32);
      }
    };
    const verify::PrunedReading reading = prune_reading(pattern, c, tensors, mask);
    tiles += reading.tiles;
    skipped += reading.skipped;
    moved += reading.moved;

    const oracle::Sizes sizes{c.seqlen_q, c.seqlen_k, q_start, c.k_start};
    const oracle::Prune prune{kv, causal, keep_sink};
    oracle::Expr expr{causal ? oracle::Expr::Kind::causal : oracle::Expr::Kind::dense, {}, {}};
    for (int b = 0; b < 2; ++b) {
      for (int h = 0; h < 2; ++h) {
        for (int tile = 0; tile < oracle::num_query_tiles(sizes); ++tile) {
          const auto score = [&](long long row, long long key) {
            const double product =
                firsts_q[static_cast<std::size_t>((b * c.seqlen_q + row) * 2 + h)] *
                firsts_k[static_cast<std::size_t>(b * c.seqlen_k + key)];
            return softcap > 0 ? 2 * std::tanh(product / 2) : product;
          };
          const std::vector<double> maxima = oracle::tile_maxima(expr, prune, sizes, tile, score);
          const auto column = oracle::threshold_column(sizes, tile, input.num_columns);
          const auto threshold = static_cast<double>(
              c.inputs[0].thresholds[static_cast<std::size_t>(h * input.num_columns + column)]);
          const int row = std::min(128 * tile + 127, c.seqlen_q - 1);
          std::vector<std::uint32_t> words(
              static_cast<std::size_t>(verify::mask_words(c.seqlen_k)));
          reading.mask({b, h, row}, words);
          for (std::size_t n = 0; n < maxima.size(); ++n) {
            const bool kept = oracle::never_skipped(prune, sizes, tile, static_cast<int>(n)) ||
                              !oracle::is_skipped(maxima[n], threshold);
            if (maxima[n] > -HUGE_VAL &&
                !oracle::never_skipped(prune, sizes, tile, static_cast<int>(n))) {
              REQUIRE(std::fabs(maxima[n] - threshold) > 0.9e-3);
            }
            for (int key = static_cast<int>(n) * kv;
                 key < std::min(static_cast<int>(n + 1) * kv, c.seqlen_k); ++key) {
              const bool sees = kept && oracle::visible(expr, sizes, row, key);
              REQUIRE((words[static_cast<std::size_t>(key / 32)] >> (key % 32) & 1) == sees);
            }
          }
        }
      }
    }
  }
  CHECK(skipped > 50);
  CHECK(skipped < tiles);
  CHECK(moved > 0);

  verify::Case large;
  large.problem = {.head_dim = 128, .num_heads = 32, .num_heads_kv = 8};
  large.seqlen_q = large.seqlen_k = 131072;
  verify::InputData input{.kind = InputInfo::Kind::thresholds, .name = "t"};
  input.thresholds = {1};
  input.num_columns = 1;
  large.inputs = {input};
  verify::AttentionInputs tensors;
  tensors.q = Tensor::contiguous(nullptr, DType::bfloat16, {1, 131072, 32, 128});
  tensors.k = Tensor::contiguous(nullptr, DType::bfloat16, {1, 131072, 8, 128});
  CHECK(contains(message_of([&] {
                   prune_reading(Pattern::parse("causal with prune(t, kv=64)"), large, tensors,
                                 [](verify::Row, std::span<std::uint32_t>) {});
                 }),
                 "take fewer heads or shorter sequences, or --fill t=keep"));
}
