// Thresholds of prune: as a launch's input, and as calibration finds them in tile maxima.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "girih/prune.hpp"
#include "oracle/prune.hpp"
#include "runtime/inputs.hpp"
#include "texts.hpp"

using namespace girih;
using tests::contains;
using tests::message_of;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

}  // namespace

TEST_CASE("thresholds are views by head and position") {
  const Pattern pattern = Pattern::parse("causal with prune(t, kv=64)");
  const runtime::InputExtents extents{
      .num_heads = 8, .num_heads_kv = 2, .batch = 3, .seqlen_q = 500, .seqlen_k = 1000};
  const float some[64] = {};
  const auto plan_of = [&](const Thresholds& thresholds) {
    const std::vector<Input> given{{.name = "t", .data = thresholds}};
    return runtime::plan_inputs(pattern.inputs(), given, extents, nullptr);
  };
  const Thresholds right{.data = some, .heads = 8, .num_columns = 8, .kv_block_size = 64};
  for (const int heads : {1, 2, 8}) {
    Thresholds thresholds = right;
    thresholds.heads = heads;
    const runtime::InputPlan plan = plan_of(thresholds);
    CHECK(plan.workspace_bytes == 0);
    CHECK(plan.views[0].batch_stride == 0);
    CHECK(plan.views[0].row_stride == 8);
    for (int h = 0; h < 8; ++h) {
      CHECK(reinterpret_cast<const float*>(plan.views[0].plane(2, h)) == some + h * heads / 8 * 8);
    }
  }
  const auto refused = [&](auto change, const char* message) {
    Thresholds thresholds = right;
    change(thresholds);
    const std::string found = message_of([&] { plan_of(thresholds); });
    CHECK_MESSAGE(contains(found, message), found);
  };
  refused([](Thresholds& t) { t.kv_block_size = 128; },
          "holds thresholds for tiles of 128 keys, but the pattern prunes tiles of 64");
  Thresholds scaled = right;
  scaled.softmax_scale = 0.25f;
  plan_of(scaled);  // nobody knows the launch's
  runtime::InputExtents launch = extents;
  const auto message_of_scales = [&](std::optional<float> own, float scale) {
    scaled.softmax_scale = own;
    launch.softmax_scale = scale;
    const std::vector<Input> given{{.name = "t", .data = scaled}};
    return message_of([&] { runtime::plan_inputs(pattern.inputs(), given, launch, nullptr); });
  };
  for (const auto& [own, scale] : {std::pair<std::optional<float>, float>{{}, 0.5f},
                                   {0.25f, 0.25f},
                                   {0.25f, 0.25001f},
                                   {0.0f, 0.0f}}) {
    CHECK(message_of_scales(own, scale) == "(nothing was thrown)");
  }
  CHECK(contains(message_of_scales(0.25f, 0.5f),
                 "the input 't' holds thresholds for softmax_scale 0.25, but the launch has 0.5: "
                 "launch with softmax_scale 0.25"));
  CHECK(contains(message_of_scales(0.25f, 0), "but the launch has 0:"));
  refused([](Thresholds& t) { t.heads = 3; }, "has heads 3: it must be 1");
  refused([](Thresholds& t) { t.num_columns = 0; }, "has num_columns 0: it must be from 1");
  refused([](Thresholds& t) { t.data = nullptr; }, "has no data");
  const std::vector<Input> wrong{{.name = "t", .data = HeadNumbers{}}};
  CHECK(
      contains(message_of([&] { runtime::plan_inputs(pattern.inputs(), wrong, extents, nullptr); }),
               "was given numbers, but the pattern wants thresholds for tiles of 64 keys"));
}

TEST_CASE("a check names the head and the column of a threshold that is NaN") {
  const std::vector<float> fine{-kInfinity, 0, 3, kInfinity};
  CHECK_NOTHROW(runtime::check_thresholds("t", fine, 2));
  std::vector<float> wrong(18, -kInfinity);  // [6, 3]
  wrong[17] = std::nanf("");
  CHECK(
      message_of([&] { runtime::check_thresholds("t", wrong, 3); }) ==
      "the input 't' is NaN in head 5, column 2, where it keeps every tile: write -inf if that is "
      "meant");
}

TEST_CASE("thresholds of one example are the oracle's") {
  std::mt19937_64 random(8);
  const auto below = [&](int bound) { return static_cast<int>(random() % bound); };
  for (int turn = 0; turn < 400; ++turn) {
    const oracle::Prune prune{below(2) == 0 ? 64 : 128, true, false};
    const int num_heads = 1 + below(3), kept = 1 + below(6),
              k_start = below(2) == 0 ? 0 : below(300);
    oracle::Sizes sizes{1 + below(900), 1 + below(1500), 0, k_start};
    const bool shifted = below(3) == 0;
    sizes.q_start = shifted ? below(1000) : k_start + sizes.seqlen_k - sizes.seqlen_q;
    const auto num_q_tiles = static_cast<std::size_t>(oracle::num_query_tiles(sizes));
    const auto num_k_tiles = static_cast<std::size_t>(oracle::num_key_tiles(prune, sizes));
    std::vector<float> maxima(static_cast<std::size_t>(num_heads) * num_q_tiles * num_k_tiles);
    for (float& maximum : maxima) {
      maximum = below(9) == 0 ? -kInfinity : static_cast<float>(below(40)) / 4;
    }
    Calibration calibration({num_heads, static_cast<int>(prune.kv), kept});
    Calibration::Lengths lengths{
        static_cast<int>(sizes.seqlen_q), static_cast<int>(sizes.seqlen_k), {}, k_start};
    if (shifted) lengths.q_start = static_cast<int>(sizes.q_start);
    calibration.add(maxima.data(), lengths);
    const std::vector<float> thresholds = calibration.thresholds();
    const int num_columns = calibration.num_columns();
    REQUIRE(thresholds.size() == static_cast<std::size_t>(num_heads * num_columns));
    for (std::size_t h = 0; h < static_cast<std::size_t>(num_heads); ++h) {
      for (std::size_t tile = 0; tile < num_q_tiles; ++tile) {
        const float* row = maxima.data() + (h * num_q_tiles + tile) * num_k_tiles;
        const auto of_tile = [&](std::size_t t) {
          return oracle::threshold_column(sizes, static_cast<long long>(t), num_columns);
        };
        // Before the first position, tiles share a column.
        if (of_tile(tile) == 0 && num_q_tiles > 1 && sizes.q_start < 0) continue;
        const double expected = oracle::calibrated(prune, sizes, static_cast<long long>(tile),
                                                   {row, row + num_k_tiles}, kept);
        const auto at =
            h * static_cast<std::size_t>(num_columns) + static_cast<std::size_t>(of_tile(tile));
        REQUIRE(static_cast<double>(thresholds[at]) == expected);
      }
    }
  }
}

TEST_CASE("thresholds are averaged over examples, and go on where none was seen") {
  Calibration calibration({.num_heads = 1, .kv = 128, .kept_tiles = 1});
  const std::vector<float> first{0, 0, 0, 9, 0, 0, 8, 4, 0};  // [3, 3]: two tiles before the last
  const std::vector<float> second{0, 0, 0, 9, 0, 0, 7, 3, 0};
  calibration.add(first.data(), {.seqlen_q = 384, .seqlen_k = 384});
  calibration.add(second.data(), {.seqlen_q = 384, .seqlen_k = 384});
  CHECK(calibration.thresholds() == std::vector<float>{-kInfinity, -kInfinity, 5.5f});
  // One row at position 639: four tiles before it, and columns 3 was never seen.
  const std::vector<float> later{1, 2, 3, 4, 5};
  calibration.add(later.data(), {.seqlen_q = 1, .seqlen_k = 640});
  CHECK(calibration.num_columns() == 5);
  CHECK(calibration.thresholds() == std::vector<float>{-kInfinity, -kInfinity, 5.5f, 5.5f, 3.5f});
  // Equal maxima on both sides of the cut are both kept: the threshold is theirs.
  const std::vector<float> equal{6, 6, 2, 1, 0};
  Calibration ties({.num_heads = 1, .kv = 128, .kept_tiles = 1});
  ties.add(equal.data(), {.seqlen_q = 1, .seqlen_k = 640});
  CHECK(ties.thresholds().back() == 6.0f);
  // One example that keeps all makes all keep all.
  const std::vector<float> hidden(5, -kInfinity);
  ties.add(hidden.data(), {.seqlen_q = 1, .seqlen_k = 640});
  CHECK(ties.thresholds().back() == -kInfinity);
}

TEST_CASE("calibration and tile maxima refuse what makes no sense") {
  CHECK(contains(message_of([] { Calibration({.kv = 32}); }), "kv = 32 is not supported"));
  CHECK(
      contains(message_of([] { Calibration({.kept_tiles = 0}); }), "kept_tiles 0 must be from 1"));
  CHECK(contains(message_of([] { Calibration({.num_heads = 0}); }), "num_heads 0 must be from 1"));
  Calibration calibration({});
  CHECK(contains(message_of([&] { calibration.add(nullptr, {.seqlen_q = 1, .seqlen_k = 1}); }),
                 "maxima is null"));
  const float one = 0, wrong[] = {1, 2, std::nanf(""), 3};
  CHECK(
      contains(message_of([&] { Calibration({}).add(wrong, {.seqlen_q = 128, .seqlen_k = 256}); }),
               "head 0, query tile 0, key tile 2 is nan: examples must have finite scores"));
  Calibration spared({});  // nothing of what was refused remains
  const float infinite[] = {1, 2, 3, kInfinity};
  CHECK(contains(message_of([&] { spared.add(infinite, {.seqlen_q = 128, .seqlen_k = 256}); }),
                 "key tile 3 is inf"));
  CHECK(spared.num_columns() == 0);
  CHECK(contains(message_of([&] { calibration.add(&one, {.seqlen_q = -1, .seqlen_k = 1}); }),
                 "seqlen_q -1 must be from 0"));
  // Rows without keys need no maxima, and have columns nevertheless.
  const auto at = [](Calibration& of, int q_start, int seqlen_q) {
    return message_of([&] { of.add(nullptr, {.seqlen_q = seqlen_q, .q_start = q_start}); });
  };
  CHECK(contains(at(calibration, 1 << 29, 1),
                 "end at position 536870913, the limit for 1 heads is "
                 "536870912: calibrate some heads at a time"));
  Calibration many({.num_heads = 1 << 16});
  CHECK(contains(at(many, 200 * 128, 56 * 128 + 1), "the limit for 65536 heads is 32768"));
  CHECK(at(many, 200 * 128, 56 * 128) == "(nothing was thrown)");
  CHECK(many.num_columns() == 256);
  CHECK(contains(message_of([] { jit::TileMaxima(causal(), 96); }), "kv = 96 is not supported"));
}

TEST_CASE("of modifiers, tile maxima know softcaps alone") {
  const Problem problem{.head_dim = 64, .num_heads = 4, .num_heads_kv = 4};
  const auto source = [&](const std::string& text) {
    return jit::build_tile_maxima(Pattern::parse(text), 64, problem, "sm_80").source;
  };
  CHECK(source("heads(0: causal with softcap(30), prune(t, kv=64), sink_logit(l), "
               "1: causal with score(\"s * 0.5\"), else: dense with alibi(a), bias(b))") ==
        source("heads(0: causal with softcap(30), 1: causal, else: dense)"));
  CHECK(source("causal with score(\"s * 0.5 + t[q]\")") == source("causal"));
  CHECK(source("causal with softcap(30), sink_logit(l)") == source("causal with softcap(30)"));
}

TEST_CASE("tile maxima want the inputs of masks alone") {
  const jit::TileMaxima tile_maxima(
      Pattern::parse("kv_heads(0: causal & segments(d) with alibi(a), prune(t, kv=64), "
                     "else: blocks(m, q=64, kv=64) with softcap(3), bias(b))"),
      64);
  CHECK(tile_maxima.pattern().text() ==
        "kv_heads(0: causal & segments(d), else: blocks(m, q=64, kv=64) with softcap(3))");
  REQUIRE(tile_maxima.pattern().inputs().size() == 2);
  CHECK(tile_maxima.pattern().inputs()[0].name == "d");
  CHECK(tile_maxima.pattern().inputs()[1].name == "m");
}

TEST_CASE("tile maxima take queries that overlap") {
  alignas(16) static unsigned char memory[16];
  jit::TileMaximaArgs args{
      .q = Tensor::contiguous(memory, DType::bfloat16, {2, 128, 4, 64}),
      .k = Tensor::contiguous(memory, DType::bfloat16, {2, 128, 4, 64}),
  };
  args.q.stride[0] = 0;  // the same for both sequences
  const jit::TileMaxima tile_maxima(causal(), 64);
  CHECK(contains(message_of([&] { tile_maxima(args); }), "maxima is null"));
}
