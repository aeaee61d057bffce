// Tiles that are bricks of a grid, on emulated warps: the visits of every query brick and their
// masks, applied and put back in the grid's order, must be what the definition says of every row.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/bricks.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/shared/atoms.cuh"
#include "oracle/oracle.hpp"

namespace {

using namespace girih;

template <class Query, class Key>
struct Config {
  using QueryBrick = Query;
  using KeyBrick = Key;
  static constexpr int kBlockM = Query::box().volume();
  static constexpr int kBlockN = Key::box().volume();
};

std::vector<int> numbers_of(const std::vector<oracle::Axis>& axes) {
  std::vector<int> numbers = {0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0};
  for (std::size_t i = 0; i < axes.size(); ++i) {
    const std::size_t axis = 3 - axes.size() + i;
    numbers[axis] = static_cast<int>(axes[i].extent);
    numbers[3 + axis] = static_cast<int>(axes[i].window);
    numbers[6 + axis] = static_cast<int>(axes[i].stride);
    numbers[9 + axis] = static_cast<int>(axes[i].dilation);
    numbers[12 + axis] = axes[i].causal;
  }
  return numbers;
}

template <class Config>
struct Visit {
  int place;
  bool behind_grid;
  uint32 seen, full;
  std::vector<bool> sees = std::vector<bool>(Config::kBlockM * Config::kBlockN);  // row after row
  bool hides[Config::kBlockM / 16];
};

// None of a brick without rows.
template <class Config>
std::vector<Visit<Config>> visits_of(const Neighborhood& n, BrickTile<Config>& tile, int brick,
                                     int seqlen_k) {
  std::vector<Visit<Config>> visits;
  emulation::cta.run(32, [&] {
    const int lane = threadIdx.x;
    static bool has_rows;
    if (lane == 0) has_rows = tile.place(n, brick);
    __syncwarp();
    if (!has_rows) return;
    tile.find_spans(n);
    BrickWalk<Config> walk(n, tile, seqlen_k);
    constexpr std::size_t kTooMany = 10000;
    std::size_t count = 0;
    for (bool more = true; more && count < kTooMany; more = walk.advance()) {
      if (lane == 0) visits.push_back({walk.place(), walk.behind_grid(), walk.seen, walk.full});
      __syncwarp();
      Visit<Config>& visit = visits[count++];
      for (int first = 0; first < Config::kBlockM; first += 16) {
        TileMask<Config> mask;
        visit.hides[first / 16] =
            mask.evaluate(tile, visit.place, visit.behind_grid, seqlen_k, first);
        float scores[Config::kBlockN / 8][4] = {};
        for (int r = 0; r < 2; ++r) {
          const int row = 8 * r + lane / 4;
          mask.apply(scores, row, r);
          for (int i = 0; i < Config::kBlockN / 4; ++i) {
            const int key = i / 2 * 8 + lane % 4 * 2 + i % 2;
            visit.sees[static_cast<std::size_t>((first + row) * Config::kBlockN + key)] =
                scores[i / 2][2 * r + i % 2] == 0.0f;
          }
        }
      }
      __syncwarp();
    }
  });
  return visits;
}

// Of a key tile, its tokens: -1 where there is none.
template <class Config>
std::vector<int> tokens_of(const Neighborhood& n, const BrickTile<Config>& tile,
                           const Visit<Config>& visit, int seqlen_k) {
  std::vector<int> tokens;
  for (int i = 0; i < Config::kBlockN; ++i) {
    if (visit.behind_grid) {
      tokens.push_back(visit.place + i < seqlen_k ? visit.place + i : -1);
      continue;
    }
    using Keys = typename Config::KeyBrick;
    // As the copy engine steps.
    const GridPoint first = tile.group.token(scaled(unpack_place(visit.place), Keys::box()));
    const GridPoint at = sum(first, scaled(place_in(Keys::box(), i), grid_of(n).dilation));
    const bool inside = at.a < n.extent(0) && at.b < n.extent(1) && at.c < n.extent(2);
    tokens.push_back(inside ? (at.a * n.extent(1) + at.b) * n.extent(2) + at.c : -1);
  }
  return tokens;
}

// Empty where all is well.
template <class Config>
std::string failure_of(const std::vector<oracle::Axis>& axes, int extra) {
  const oracle::Expr expr{oracle::Expr::Kind::neighborhood, {}, {}, {}, {}, axes};
  const std::vector<int> numbers = numbers_of(axes);
  const Neighborhood n(numbers.data());
  const int seqlen_k = n.tokens() + extra;
  const oracle::Sizes sizes = oracle::bottom_right(n.tokens(), seqlen_k);
  std::vector<int> times(static_cast<std::size_t>(n.tokens()));  // that a row was met
  const int bricks = grid_of(n).num_bricks(Config::QueryBrick::box());
  for (int brick = 0; brick < bricks; ++brick) {
    BrickTile<Config> tile;
    const auto visits = visits_of<Config>(n, tile, brick, seqlen_k);
    const std::string place = oracle::text(expr) + ", brick " + std::to_string(brick);
    std::vector<std::vector<int>> keys;
    for (const auto& visit : visits) keys.push_back(tokens_of(n, tile, visit, seqlen_k));
    // Of each visit and part, how many pairs of rows and keys are seen, and are not.
    std::vector<std::vector<int>> seen(visits.size(), {0, 0, 0}), hidden = seen;
    for (int row = 0; row < Config::kBlockM; ++row) {
      const int token = visits.empty() ? -1 : tile.token_of(row);
      if (token < 0) continue;
      ++times[static_cast<std::size_t>(token)];
      std::vector<int> sees(static_cast<std::size_t>(seqlen_k));
      const int part = row / kBrickPartRows;
      for (std::size_t v = 0; v < visits.size(); ++v) {
        const Visit<Config>& visit = visits[v];
        for (int i = 0; i < Config::kBlockN; ++i) {
          const bool bit = visit.sees[static_cast<std::size_t>(row * Config::kBlockN + i)];
          const int key = keys[v][static_cast<std::size_t>(i)];
          const bool counts = (visit.seen >> part & 1) != 0;
          const bool all = (visit.full >> part & 1) != 0;
          if (bit && key < 0) return place + ": a key that does not exist is seen";
          if (bit && !counts) return place + ": a tile that some row sees is passed over";
          if (!bit && all) return place + ": a tile counts as full that is not";
          if (!bit && !visit.hides[row / 16]) return place + ": a mask that hides is left out";
          if (bit) ++sees[static_cast<std::size_t>(key)];
          ++(bit ? seen : hidden)[v][static_cast<std::size_t>(part)];
        }
      }
      for (int k = 0; k < seqlen_k; ++k) {
        const int expected = oracle::visible(expr, sizes, token, k) ? 1 : 0;
        if (sees[static_cast<std::size_t>(k)] == expected) continue;
        return place + ", row " + std::to_string(token) + ": key " + std::to_string(k) +
               " is seen " + std::to_string(sees[static_cast<std::size_t>(k)]) + " times, not " +
               std::to_string(expected);
      }
    }
    for (std::size_t v = 0; v < visits.size(); ++v) {
      for (std::size_t part = 0; part < Config::kBlockM / kBrickPartRows; ++part) {
        const int some = seen[v][part], others = hidden[v][part];
        if (some + others == 0) continue;  // no row
        if ((visits[v].seen >> part & 1) != (some > 0 ? 1u : 0u)) {
          return place + ": a tile that no row sees is visited";
        }
        if ((visits[v].full >> part & 1) != (others == 0 ? 1u : 0u)) {
          return place + ": a full tile counts as partial";
        }
      }
    }
  }
  for (const int count : times) {
    if (count != 1) return oracle::text(expr) + ": a row is not in one brick";
  }
  return "";
}

oracle::Axis random_axis(std::mt19937& random, int most, int most_dilation) {
  const auto below = [&](int bound) {
    return static_cast<int>(random() % static_cast<unsigned>(bound));
  };
  oracle::Axis axis;
  axis.extent = 1 + below(most);
  axis.dilation = 1 + below(std::min(static_cast<int>(axis.extent), most_dilation));
  axis.window = 1 + below(static_cast<int>(axis.extent / axis.dilation));
  const int kind = below(3);
  axis.stride = kind == 0 ? axis.window : kind == 1 ? 1 + below(static_cast<int>(axis.window)) : 1;
  axis.causal = below(3) == 0;
  return axis;
}

template <class Config>
void check_random(unsigned seed, int most_a, int most_b, int most_c, int most_dilation = 1) {
  std::mt19937 random(seed);
  const auto axis = [&](int most) { return random_axis(random, most, most_dilation); };
  for (int i = 0; i < 12; ++i) {
    std::vector<oracle::Axis> axes = {axis(most_b), axis(most_c)};
    if (i % 4 != 0) axes.insert(axes.begin(), axis(most_a));
    const int extra = i % 3 == 0 ? static_cast<int>(random() % 200) : 0;
    REQUIRE(failure_of<Config>(axes, extra) == "");
  }
}

}  // namespace

namespace {

template <class Query>
struct KernelConfig : Config<Query, BrickOf<4, 2, 2>> {
  using Element = uint16;
  static constexpr int kHeadDim = 64, kHeadDimV = 64;
  static constexpr int kNumStages = 8, kNumQStages = 2, kKeyBox = 16;
  static constexpr bool kPackHeads = false, kPassOver = true, kElaborate = true;
  using Classes = HeadClasses<Leaf<Neighborhood>>;
  using Heads = HeadTable<1, Classes::kNumNumbers>;
};

template <class Query>
constexpr std::size_t kControlBytes = sizeof(typename PipelineSm90<KernelConfig<Query>>::Control);

}  // namespace

TEST_CASE("the description of any query brick fits, with as many stages as there may be") {
  int most = 0;
  for (const int rows : {128, 192}) {
    for (int a = 1; a <= kMostBrickExtent; ++a) {
      for (int b = 1; b <= kMostBrickExtent; ++b) {
        const GridPoint box{a, b, rows / a / b};
        if (box.volume() == rows && is_query_brick(box)) most = std::max(most, a + b + box.c);
      }
    }
  }
  using Longest = BrickOf<1, 6, 32>;
  CHECK(most == BrickTile<KernelConfig<Longest>>::kNumSpans);
  CHECK(kControlBytes<Longest> <= kFwdSm90ControlBytes);
  CHECK(kControlBytes<Longest> > kControlBytes<BrickOf<6, 8, 4>>);
}

TEST_CASE("bricks show every row exactly its keys, and visit nothing else") {
  check_random<Config<BrickOf<1, 16, 8>, BrickOf<1, 8, 16>>>(1, 3, 40, 30);
  check_random<Config<BrickOf<8, 4, 4>, BrickOf<6, 4, 4>>>(2, 14, 9, 11);
  check_random<Config<BrickOf<8, 1, 16>, BrickOf<5, 1, 16>>>(3, 11, 5, 40);
  check_random<Config<BrickOf<1, 4, 32>, BrickOf<1, 7, 16>>>(4, 2, 21, 40);
  check_random<Config<BrickOf<12, 4, 4>, BrickOf<5, 4, 4>>>(5, 14, 9, 11);
  check_random<Config<BrickOf<4, 4, 8>, BrickOf<4, 8, 4>>>(6, 9, 13, 12);
  check_random<Config<BrickOf<2, 32, 2>, BrickOf<11, 1, 16>>>(7, 13, 40, 17);
  check_random<Config<BrickOf<6, 8, 4>, BrickOf<1, 2, 32>>>(8, 9, 12, 40);
  check_random<Config<BrickOf<6, 8, 4>, BrickOf<5, 4, 4>>>(9, 9, 12, 11);
  check_random<Config<BrickOf<1, 24, 8>, BrickOf<1, 8, 8>>>(10, 3, 40, 30);
  // Planes that no fragment of eight keys ends with, lines shorter than what a lane has of one.
  check_random<Config<BrickOf<8, 4, 4>, BrickOf<4, 5, 4>>>(11, 9, 12, 11);
  check_random<Config<BrickOf<8, 8, 2>, BrickOf<4, 8, 2>>>(12, 9, 12, 7);
  check_random<Config<BrickOf<8, 8, 2>, BrickOf<8, 3, 2>>>(13, 9, 12, 7);
  check_random<Config<BrickOf<8, 8, 1>, BrickOf<4, 8, 1>>>(14, 9, 12, 3);
  check_random<Config<BrickOf<16, 4, 1>, BrickOf<8, 4, 1>>>(15, 12, 9, 3);
  // More bits than a word of 32 has.
  check_random<Config<BrickOf<1, 16, 8>, BrickOf<1, 9, 16>>>(16, 3, 20, 40);
  check_random<Config<BrickOf<8, 2, 8>, BrickOf<4, 8, 8>>>(17, 9, 12, 20);
}

TEST_CASE("bricks of dilation groups show every row exactly its keys, and visit nothing else") {
  check_random<Config<BrickOf<1, 16, 8>, BrickOf<1, 8, 16>>>(21, 3, 70, 50, 2);
  check_random<Config<BrickOf<8, 4, 4>, BrickOf<6, 4, 4>>>(22, 20, 12, 14, 3);
  check_random<Config<BrickOf<6, 8, 4>, BrickOf<5, 4, 4>>>(23, 12, 18, 16, 4);
  check_random<Config<BrickOf<1, 24, 8>, BrickOf<1, 8, 8>>>(24, 3, 80, 60, 8);
  check_random<Config<BrickOf<2, 32, 2>, BrickOf<11, 1, 16>>>(25, 23, 40, 17, 8);
  // Of the groups of 16 places on the first axis all bricks behind the first have no rows, and
  // these groups end with other windows than the first.
  using Flat = Config<BrickOf<1, 16, 8>, BrickOf<1, 8, 16>>;
  CHECK(failure_of<Flat>({{33, 9, 1, 2}, {20, 7, 1, 1}}, 0) == "");
  CHECK(failure_of<Flat>({{33, 16, 1, 2}, {32, 32, 1, 1}}, 0) == "");
}
