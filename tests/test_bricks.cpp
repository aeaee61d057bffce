// Bricks of grids as tiles: which are chosen and how many tiles they visit, against brute force;
// who gets them; what the copy engine is told of a tensor.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "codegen/emit.hpp"
#include "girih/error.hpp"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "plan/bricks.hpp"
#include "plan/plan.hpp"
#include "plans.hpp"
#include "runtime/arguments.hpp"
#include "runtime/tensors.hpp"

using namespace girih;
using plan::Bricks;
using plan::BrickTiles;
using tests::plan_for;

namespace {

constexpr const char* kImage = "neighborhood(256x256, window=80)";
constexpr const char* kVideo = "neighborhood(30x48x80, window=(18, 24, 24))";

std::vector<plan::BrickHeads> heads_of(const std::string& pattern, const Problem& problem = {}) {
  return plan::brick_heads(Pattern::parse(pattern), problem);
}

double computed_of_visible(const std::string& pattern, int block_m, int block_n, double visible) {
  const auto heads = heads_of(pattern);
  const auto bricks = plan::choose_bricks(heads, block_m, block_n);
  REQUIRE(bricks);
  const auto visited = static_cast<double>(plan::count_tiles(heads, *bricks).visited());
  return visited * block_m * block_n / visible;
}

// By the definition, pair by pair.
BrickTiles count_by_pairs(const std::vector<oracle::Axis>& axes, const Bricks& bricks) {
  const oracle::Expr expr{oracle::Expr::Kind::neighborhood, {}, {}, {}, {}, axes};
  const int tokens = static_cast<int>(oracle::grid_tokens(expr));
  const oracle::Sizes sizes = oracle::bottom_right(tokens, tokens);
  // Numbers of the bricks that some token is in.
  const auto bricks_of_tokens = [&](GridPoint box) {
    std::map<std::array<long long, 6>, std::size_t> numbers;
    std::vector<std::size_t> of_tokens;
    for (int token = 0; token < tokens; ++token) {
      std::array<long long, 6> brick{};  // residues, and of the places that have them
      int rest = token;
      for (int i = static_cast<int>(axes.size()) - 1, axis = 2; i >= 0; --i, --axis) {
        const auto at = static_cast<std::size_t>(axis);
        const oracle::Axis& own = axes[static_cast<std::size_t>(i)];
        const long long x = rest % own.extent;
        rest /= static_cast<int>(own.extent);
        brick[at] = x % own.dilation;
        brick[3 + at] = x / own.dilation / box.on(axis);
      }
      of_tokens.push_back(numbers.try_emplace(brick, numbers.size()).first->second);
    }
    return std::pair{of_tokens, numbers.size()};
  };
  const auto [row_bricks, queries] = bricks_of_tokens(bricks.queries);
  const auto [key_bricks, keys] = bricks_of_tokens(bricks.keys);
  std::vector<std::int64_t> pairs(queries * keys), rows(queries);
  for (int q = 0; q < tokens; ++q) {
    const std::size_t row_brick = row_bricks[static_cast<std::size_t>(q)];
    ++rows[row_brick];
    for (int k = 0; k < tokens; ++k) {
      if (!oracle::visible(expr, sizes, q, k)) continue;
      ++pairs[row_brick * keys + key_bricks[static_cast<std::size_t>(k)]];
    }
  }
  BrickTiles tiles;
  for (std::size_t i = 0; i < queries; ++i) {
    for (std::size_t j = 0; j < keys; ++j) {
      const std::int64_t seen = pairs[i * keys + j];
      const std::int64_t all = rows[i] * bricks.keys.volume();
      ++(seen == 0 ? tiles.empty : seen == all ? tiles.full : tiles.partial);
    }
  }
  return tiles;
}

}  // namespace

TEST_CASE("tiles of bricks are counted as by the definition") {
  std::mt19937_64 random(5);
  const std::vector<Bricks> choices = {{{1, 16, 8}, {1, 8, 16}},
                                       {{8, 4, 4}, {6, 4, 4}},
                                       {{2, 8, 8}, {4, 4, 4}},
                                       {{4, 4, 8}, {1, 4, 32}}};
  for (int i = 0; i < 60; ++i) {
    oracle::Expr expr = oracle::random_neighborhood(random, 700);
    if (i % 3 == 0) {
      for (oracle::Axis& axis : expr.axes) axis.dilation = 1;
    }
    const auto heads = heads_of(oracle::text(expr));
    if (heads.empty()) continue;  // one axis
    for (const Bricks& bricks : choices) {
      const BrickTiles counted = plan::count_tiles(heads, bricks);
      const BrickTiles expected = count_by_pairs(expr.axes, bricks);
      INFO(oracle::text(expr), ", ", bricks.queries.a, "x", bricks.queries.b, "x",
           bricks.queries.c);
      REQUIRE(counted.full == expected.full);
      REQUIRE(counted.partial == expected.partial);
      REQUIRE(counted.empty == expected.empty);
      CHECK(counted.parts <= static_cast<double>(counted.visited()));
    }
  }
}

TEST_CASE("no other box visits fewer tiles than the bricks that are chosen") {
  for (const std::string& pattern :
       {std::string(kImage), std::string(kVideo), std::string("neighborhood(56x56, window=7)"),
        std::string("neighborhood(9x64x64, window=(3, 16, 16), stride=(1, 4, 4))"),
        std::string("neighborhood(71x90, window=11, dilation=(2, 3))")}) {
    const auto heads = heads_of(pattern);
    for (const int block_n : {64, 96, 128}) {
      const auto chosen = plan::choose_bricks(heads, 128, block_n);
      REQUIRE(chosen);
      CHECK(chosen->queries.volume() == 128);
      CHECK(chosen->keys.volume() == block_n);
      const std::int64_t visited = plan::count_tiles(heads, *chosen).visited();
      for (int qa = 1; qa <= 128; ++qa) {
        for (int qb = 1; qb <= 128; ++qb) {
          const GridPoint queries{qa, qb, 128 / qa / qb};
          if (queries.volume() != 128 || !is_query_brick(queries)) continue;
          for (int ka = 1; ka <= block_n; ++ka) {
            for (int kb = 1; kb <= block_n; ++kb) {
              const GridPoint keys{ka, kb, block_n / ka / kb};
              if (keys.volume() != block_n || !is_key_brick(keys)) continue;
              CHECK(plan::count_tiles(heads, {queries, keys}).visited() >= visited);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("bricks of an image and of a video compute little more than is visible") {
  const double image = 65536.0 * 80 * 80, video = 115200.0 * 18 * 24 * 24;
  CHECK(computed_of_visible(kImage, 128, 128, image) == doctest::Approx(1.294).epsilon(0.001));
  CHECK(computed_of_visible(kImage, 128, 64, image) == doctest::Approx(1.216).epsilon(0.001));
  CHECK(computed_of_visible(kVideo, 128, 128, video) == doctest::Approx(1.776).epsilon(0.001));
  CHECK(computed_of_visible(kVideo, 128, 96, video) == doctest::Approx(1.505).epsilon(0.001));
  // More than with 128 rows, but faster (tools/bench/NOTES.md).
  CHECK(computed_of_visible(kImage, 192, 64, image) == doctest::Approx(1.322).epsilon(0.001));
  CHECK(computed_of_visible(kVideo, 192, 80, video) == doctest::Approx(1.664).epsilon(0.001));
  // What the plan takes.
  const plan::Plan image_plan = plan_for(kImage), video_plan = plan_for(kVideo);
  CHECK(image_plan.spec.tile == TileConfig{192, 64, 4, 16, 2});
  CHECK(image_plan.spec.bricks == Bricks{{1, 24, 8}, {1, 8, 8}});
  CHECK(image_plan.spec.pass_over);  // a warpgroup's 64 rows see fewer
  CHECK(image_plan.grid.extents == GridPoint{1, 256, 256});
  CHECK(video_plan.spec.tile == TileConfig{192, 80, 3, 16, 2});
  CHECK(video_plan.spec.bricks == Bricks{{6, 8, 4}, {5, 4, 4}});
  CHECK(video_plan.spec.pass_over);
  CHECK_FALSE(plan_for(kVideo, {}, "sm_90", {.block_m = 128}).spec.pass_over);
}

TEST_CASE("a dilation group has the bricks of its own grid, without dilation") {
  const std::string dilated = "neighborhood(12x128x64, window=(3, 20, 9), dilation=(3, 2, 1))";
  const std::string group = "neighborhood(4x64x64, window=(3, 20, 9))";
  const plan::Plan plan = plan_for(dilated), own = plan_for(group);
  REQUIRE(plan.spec.bricks);
  CHECK(codegen::emit(plan.spec) == codegen::emit(own.spec));
  CHECK(plan.grid.extents == GridPoint{12, 128, 64});
  CHECK(plan.grid.dilation == GridPoint{3, 2, 1});
  const Bricks& bricks = *plan.spec.bricks;
  CHECK(plan.grid.num_bricks(bricks.queries) == 6 * own.grid.num_bricks(bricks.queries));
  const BrickTiles tiles = plan::count_tiles(heads_of(dilated), bricks);
  const BrickTiles of_group = plan::count_tiles(heads_of(group), bricks);
  CHECK(tiles.visited() == 6 * of_group.visited());
  CHECK(tiles.full == 6 * of_group.full);
  CHECK(tiles.empty == 6 * of_group.empty + 30 * (of_group.visited() + of_group.empty));
}

TEST_CASE("what tiles of bricks are for, and what keeps tokens in a row") {
  const auto bricks = [](const std::string& pattern, const Problem& problem = {},
                         const TileConfig& tile = {}) {
    return plan_for(pattern, problem, "sm_90", tile).spec.bricks.has_value();
  };
  const Problem heads{.num_heads = 4, .num_heads_kv = 2};
  CHECK(bricks("neighborhood(13x21, window=5)"));
  CHECK(bricks("neighborhood(5x9x11, window=3, stride=(1, 3, 2), causal=(true, false, false))"));
  CHECK(bricks("neighborhood(64x64, window=9) with softcap(30)"));
  CHECK(bricks("neighborhood(128x128, window=9, dilation=(1, 8))"));
  CHECK(bricks("heads(0: neighborhood(64x64, window=9), else: neighborhood(64x64, window=(20, 3)))",
               heads));
  CHECK(bricks(kImage, {.head_dim = 256}));
  CHECK(bricks(kImage, {.layout = Layout::bhsd}));
  CHECK(bricks(kImage, {}, {.block_m = 192}));
  CHECK(bricks(kImage, {}, {.block_n = 64}));
  CHECK(plan_for(kImage, {}, "sm_90", {.block_n = 64}).spec.tile.block_n == 64);

  CHECK_FALSE(bricks("neighborhood(4096, window=99)"));
  CHECK_FALSE(bricks("neighborhood(1x4096x1, window=(1, 99, 1))"));
  CHECK_FALSE(bricks("neighborhood(128x128, window=9, dilation=(1, 9))"));
  CHECK_FALSE(bricks("neighborhood(16x16, window=3, dilation=4)"));  // groups of 16 tokens
  // Groups of one long axis: a brick's other places would be empty.
  CHECK_FALSE(bricks("neighborhood(8x4096, window=(1, 99), dilation=(8, 1))"));
  CHECK_FALSE(bricks("neighborhood(4x4096, window=(1, 999), dilation=(4, 1))"));
  CHECK_FALSE(
      bricks("heads(0: neighborhood(128x128, window=9, dilation=2), "
             "else: neighborhood(128x128, window=9, dilation=(2, 1)))",
             heads));
  CHECK_FALSE(bricks("neighborhood(64x64, window=64)"));  // all is visible
  CHECK_FALSE(bricks("neighborhood(2x70000, window=(1, 99))"));
  CHECK_FALSE(bricks("neighborhood(64x64, window=9) | sink(1)"));
  CHECK_FALSE(bricks("neighborhood(64x64, window=9) with alibi(s)"));
  CHECK_FALSE(bricks("neighborhood(64x64, window=9) with sink_logit(z)"));
  CHECK_FALSE(bricks("heads(0: neighborhood(64x64, window=9), else: causal)", heads));
  CHECK_FALSE(bricks(
      "heads(0: neighborhood(64x64, window=9), else: neighborhood(32x128, window=9))", heads));
  CHECK_FALSE(bricks(kImage, {.layout = Layout::thd}));
  CHECK_FALSE(bricks(kImage, {.partial_keys = true}));
  CHECK_FALSE(bricks(kImage, {}, {.portable = true}));
  CHECK_FALSE(plan_for(kImage, {}, "sm_100").spec.bricks.has_value());
}

TEST_CASE("tiles of tokens in a row are estimated, and counted where they are few") {
  const Geometry geometry;
  for (const std::string& text :
       {std::string("neighborhood(13x21, window=(5, 8))"),
        std::string("neighborhood(5x9x11, window=3, causal=(true, false, false))"),
        std::string("neighborhood(40x50, window=7, dilation=(2, 3))")}) {
    const Pattern pattern = Pattern::parse(text);
    const auto heads = heads_of(text, {.num_heads = 3, .num_heads_kv = 3});
    const int tokens = heads.at(0).neighborhood().tokens();
    const pattern::TileCounts tiles = plan::estimate_row_tiles(heads, 128, 64);
    Geometry own = geometry;
    own.seqlen_q = own.seqlen_k = tokens;
    const pattern::TileCounts counted =
        pattern::count_tiles(pattern.classes()[0].mask, own, 128, 64);
    CHECK(tiles.full == 3 * counted.full);
    CHECK(tiles.partial == 3 * counted.partial);
    CHECK(tiles.empty == 3 * counted.empty);
  }
  const auto image = heads_of(kImage);
  const pattern::TileCounts tiles = plan::estimate_row_tiles(image, 128, 128);
  CHECK(tiles.visited() + tiles.empty == 512 * 512);
  // 81 lines or 80 of 256 pixels, where windows do not end at the image's borders.
  CHECK(static_cast<double>(tiles.visited()) == doctest::Approx(512 * 160).epsilon(0.02));
}

TEST_CASE("tokens in a row stay where windows are so long that they do as well") {
  // By what was measured of both (tools/bench/NOTES.md).
  const auto bricks = [](const char* text) { return plan_for(text).spec.bricks.has_value(); };
  for (const char* text :
       {"neighborhood(8x4096, window=(1, 99))", "neighborhood(256x256, window=(1, 64))",
        "neighborhood(512x64, window=(7, 64))", "neighborhood(64x64, window=(9, 64))"}) {
    CAPTURE(text);
    CHECK_FALSE(bricks(text));
  }
  for (const char* text :
       {"neighborhood(8x4096, window=(3, 99))", "neighborhood(512x64, window=(7, 48))",
        "neighborhood(256x256, window=(2, 32))",
        "neighborhood(8x4096, window=(1, 99), dilation=(1, 2))"}) {
    CAPTURE(text);
    CHECK(bricks(text));
  }
}

TEST_CASE("bricks lie where a visit has a place for them") {
  // 2048 and 1024 bricks of the longest lines.
  CHECK_FALSE(plan::choose_bricks(heads_of("neighborhood(64x65535, window=(9, 99))"), 128, 128));
  const auto dilated =
      plan::choose_bricks(heads_of("neighborhood(64x65535, window=(9, 99), dilation=2)"), 128, 128);
  REQUIRE(dilated);
  CHECK(dilated->keys.c == 32);
}

TEST_CASE("a kernel of bricks names them, and others know nothing of them") {
  const std::string source = codegen::emit(plan_for(kVideo).spec);
  for (const char* part :
       {"  using QueryBrick = BrickOf<6, 8, 4>;\n", "  using KeyBrick = BrickOf<5, 4, 4>;\n",
        "const __grid_constant__ girih::FwdBrickMaps brick_maps)",
        "run(params, heads, nullptr, maps, counter, nullptr, &brick_maps)"}) {
    CHECK(source.find(part) != source.npos);
  }
  const std::string row_major = codegen::emit(plan_for(kVideo, {.partial_keys = true}).spec);
  CHECK(row_major.find("rick") == row_major.npos);
  // Windows are numbers: two grids that want the same bricks share a kernel.
  CHECK(codegen::emit(plan_for("neighborhood(264x256, window=80)").spec) ==
        codegen::emit(plan_for(kImage).spec));
}

TEST_CASE("a visit holds every place of a brick that the plan allows") {
  for (const GridPoint place :
       {GridPoint{0, 0, 0}, {1023, 0, 1023}, {1, 1023, 2}, {1023, 1023, 1023}}) {
    CHECK(unpack_place(pack_place(place)) == place);
  }
}

namespace {

Tensor tensor_of(Layout layout, int batch, int tokens, int heads, int head_dim) {
  const auto shape = runtime::shape_of(runtime::dims_of(layout), batch, tokens, heads, head_dim);
  static std::uint16_t data;
  return Tensor::contiguous(&data, DType::bfloat16, shape);
}

}  // namespace

TEST_CASE("boxes of a tensor over a grid hold a brick's tokens of one head") {
  const DilatedGrid grid{{5, 9, 11}, {1, 3, 2}};
  const GridPoint brick{6, 4, 4};
  for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
    Problem problem{.head_dim = 128, .num_heads = 3, .num_heads_kv = 3, .layout = layout};
    const Tensor tensor = tensor_of(layout, 2, grid.extents.volume() + 7, 3, 128);
    const runtime::Dims dims = runtime::dims_of(layout);
    const cuda::TiledTensor tiled = runtime::tensor_over_grid(
        tensor, tensor.data, runtime::strides_of(tensor, dims), problem, grid, brick);
    CHECK(tiled.num_dimensions == 5);
    CHECK(tiled.box == cuda::TiledTensor::PerDimension{64, 4, 4, 6, 1});
    CHECK(tiled.steps == cuda::TiledTensor::PerDimension{1, 2, 3, 1, 1});
    CHECK(tiled.extents[1] == 11);
    CHECK(tiled.extents[2] == 9);
    CHECK(tiled.extents[3] == 5);
    CHECK(tiled.extents[4] == 2);
    CHECK(tiled.strides[0] == 1);
    // Element by element: where the engine finds a head's column of a token.
    const auto address = [&](std::array<std::int64_t, 4> index) {
      std::int64_t sum = 0;
      for (std::size_t i = 0; i < 4; ++i) sum += index[i] * tensor.stride[i];
      return sum;
    };
    const std::int64_t head_stride = tensor.stride[static_cast<std::size_t>(dims.head)];
    for (int b = 0; b < 2; ++b) {
      for (int head = 0; head < 3; ++head) {
        for (int token = 0; token < grid.extents.volume(); ++token) {
          const GridPoint at = place_in(grid.extents, token);
          const int column = 64 + token % 64;
          std::array<std::int64_t, 4> index{};
          index[static_cast<std::size_t>(dims.batch)] = b;
          index[static_cast<std::size_t>(dims.row)] = token;
          index[static_cast<std::size_t>(dims.head)] = head;
          index[runtime::kDim] = column;
          const std::int64_t first = head * head_stride + column;
          CHECK(first < tiled.extents[0]);
          CHECK(first + at.c * tiled.strides[1] + at.b * tiled.strides[2] +
                    at.a * tiled.strides[3] + b * tiled.strides[4] ==
                address(index));
        }
      }
    }
  }
}

TEST_CASE("tensors over a grid that the copy engine cannot take are refused") {
  const Problem problem{.head_dim = 64, .num_heads = 2, .num_heads_kv = 2};
  const GridPoint once{1, 1, 1}, brick{2, 8, 8};
  const DilatedGrid grid{{4, 8, 8}, once};
  const Tensor tensor = tensor_of(Layout::bshd, 1, 256, 2, 64);
  const auto refusal = [&](const Strides& strides) -> std::string {
    try {
      Tensor strided = tensor;
      strided.stride = {strides.batch, strides.row, strides.head, 1};
      runtime::tensor_over_grid(strided, tensor.data, strides, problem, grid, brick);
    } catch (const Error& error) {
      CHECK(error.code() == Errc::invalid_argument);
      return error.what();
    }
    return "";
  };
  const std::int64_t far = std::int64_t{1} << 32;
  CHECK(refusal({0, 128, 64}) == "");
  CHECK(refusal({0, 128, far})
            .find("a tensor has stride 4294967296 between its 2 heads: the "
                  "kernel for Hopper that visits bricks of a grid takes heads "
                  "within 2^31 elements; bind with problem.partial_keys") == 0);
  const std::string of_tokens = refusal({0, far * 2, 64});
  CHECK(of_tokens.find("has stride 8589934592 between tokens") != std::string::npos);
  CHECK(of_tokens.find("4x8x8 grid takes at most 8589934591; bind") != std::string::npos);
  CHECK(refusal({0, far * 2 - 8, 64}) == "");
  // A product that no int64 holds; and a grid of one plane, which nobody steps over.
  const auto over = [&](const GridPoint& axes, std::int64_t row) {
    return runtime::tensor_over_grid(tensor, tensor.data, {0, row, 64}, problem, {axes, once},
                                     brick);
  };
  CHECK_THROWS_AS(over({2, 65535, 65535}, far * 32), Error);
  CHECK(over({1, 65535, 8192}, 8192).strides[2] == 8192 * 8192);
  CHECK(refusal({0, -128, 64})
            .find("a tensor has stride -128 between tokens: the kernel for Hopper "
                  "takes strides from 0 to 549755813880 elements; bind the "
                  "portable one") != std::string::npos);

  jit::Args args;
  args.q = args.k = args.v = args.out = tensor;
  CHECK_FALSE(runtime::is_too_far_for_bricks(args));
  for (Tensor* given : {&args.q, &args.k, &args.v, &args.out}) {
    given->stride[2] = (std::int64_t{1} << 31) - 64;
    CHECK(runtime::is_too_far_for_bricks(args) == (given != &args.out));
    given->stride[2] -= 8;
    CHECK_FALSE(runtime::is_too_far_for_bricks(args));
    given->stride[2] = std::numeric_limits<std::int64_t>::max();
    CHECK(runtime::is_too_far_for_bricks(args) == (given != &args.out));
    given->shape[2] = 1;  // whose stride is never stepped over
    CHECK_FALSE(runtime::is_too_far_for_bricks(args));
    *given = tensor;
  }
  CHECK_NOTHROW(runtime::refuse_partial_keys(args));
  int lengths = 0;
  args.leftpad_k = &lengths;
  try {
    runtime::refuse_partial_keys(args);
    FAIL("leftpad_k was taken");
  } catch (const Error& error) {
    CHECK(std::string(error.what()) ==
          "leftpad_k was given, but the kernel visits bricks of a whole grid: bind with "
          "problem.partial_keys, or the portable kernel (tile.portable)");
  }
}
