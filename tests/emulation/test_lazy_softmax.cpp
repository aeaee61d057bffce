// The softmax of Hopper's consumers, on an emulated warp: streams of key tiles whose scores stay,
// creep, leap and fall, with keys, rows and whole tiles that are hidden, against a softmax in
// doubles. Between tiles, too, what is multiplied with V must be finite and fit fp16, and a tile
// that a row does not see must change no bit of it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/lazy_softmax.cuh"

namespace {

using namespace girih;
using emulation::below;
using emulation::cta;

constexpr int kRows = 16;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kScales[] = {1.0f, kLog2E, 0.088f * kLog2E};  // the first one makes exact products
constexpr float kEmptyLse = -123.0f;

// How a row's scores go from tile to tile, in base 2.
enum Way {
  kSteady,
  kLow,
  kHigh,
  kLowest,    // finite, all keys alike
  kCreeping,  // by less than the headroom
  kEdging,    // by the headroom, all keys alike
  kRising,    // by more
  kLeaping,   // by so much that a probability is infinite
  kFalling,
  kWild,
  kPeaks,  // in one lane
  kMixed,  // rows have different ones
  kNumWays = kMixed
};

float between(std::mt19937& random, float low, float high) {
  return low + (high - low) * static_cast<float>(below(random, 1 << 20)) / (1 << 20);
}

struct KeyTile {
  std::vector<float> scores[kRows];  // of keys
  std::vector<float> values;
  bool row_sees(int row) const {
    return std::any_of(scores[row].begin(), scores[row].end(),
                       [](float score) { return score != kMinusInfinity; });
  }
  float highest(int row) const { return *std::max_element(scores[row].begin(), scores[row].end()); }
};

struct Stream {
  float scale_log2;
  std::vector<KeyTile> tiles;
  int poisoned = -1;        // the row with a score that has no softmax
  float sinks[kRows] = {};  // natural
};

KeyTile hidden_tile(int num_keys) {
  KeyTile tile;
  for (auto& row : tile.scores) row.assign(static_cast<std::size_t>(num_keys), kMinusInfinity);
  tile.values.assign(static_cast<std::size_t>(num_keys), 1.0f);
  return tile;
}

void draw_row(Stream& stream, int row, int way, std::mt19937& random) {
  const float noise = way == kEdging ? 0.0f : between(random, 0.1f, 3.0f);
  float level = way == kLow    ? -5000 * kLog2E
                : way == kHigh ? 5000 * kLog2E
                               : static_cast<float>(below(random, 41) - 20);
  std::normal_distribution<float> normal;
  for (KeyTile& tile : stream.tiles) {
    for (float& score : tile.scores[row]) {
      // A power of two, so that the product is exact, for what is subtracted from it is as high.
      score = way == kLowest ? -0x1p123f : (level + noise * normal(random)) / stream.scale_log2;
    }
    if (way == kPeaks && below(random, 2) == 0) {
      const auto key = random() % tile.scores[row].size();
      tile.scores[row][key] += between(random, 10, 3000) / stream.scale_log2;
    }
    level += way == kCreeping  ? between(random, 0, 7.5f)
             : way == kEdging  ? 8
             : way == kRising  ? between(random, 8, 64)
             : way == kLeaping ? static_cast<float>(below(random, 2)) * between(random, 129, 1000)
             : way == kFalling ? -between(random, 1000, 4000)
             : way == kWild    ? between(random, -2000, 2000)
                               : 0;
  }
}

void hide_some(Stream& stream, int row, std::mt19937& random) {
  const int how = below(random, 6);
  const int first_seen = 1 + below(random, 4);
  for (std::size_t i = 0; i < stream.tiles.size(); ++i) {
    const bool all = how == 1   ? true
                     : how == 2 ? static_cast<int>(i) < first_seen
                     : how == 3 ? below(random, 2) == 0
                                : false;
    for (float& score : stream.tiles[i].scores[row]) {
      const bool single = how == 4 ? below(random, 8) == 0 : how == 5 && below(random, 64) != 0;
      if (all || single) score = kMinusInfinity;
    }
  }
}

Stream draw_stream(int num_keys, int way, std::mt19937& random) {
  Stream stream;
  stream.scale_log2 = kScales[below(random, std::size(kScales))];
  stream.tiles.resize(static_cast<std::size_t>(1 + below(random, 12)), hidden_tile(num_keys));
  for (KeyTile& tile : stream.tiles) {
    for (float& value : tile.values) value = between(random, -1, 1);
  }
  const bool hides = below(random, 3) != 0;
  for (int row = 0; row < kRows; ++row) {
    draw_row(stream, row, way == kMixed ? below(random, kNumWays) : way, random);
    if (hides) hide_some(stream, row, random);
    stream.sinks[row] = below(random, 4) == 0 ? kMinusInfinity : between(random, -30, 30);
  }
  return stream;
}

// A row's part of FragmentsSm90: what P * V sums up is one number, and V's of a key too.
template <int kFragments>
struct OneValue {
  static constexpr int kKeyFragments = kFragments, kEarlyFragments = kFragments == 16 ? 4 : 2;
  static constexpr float kAhead = kFragments == 10 ? 64 : 0;
  using Scores = float[kKeyFragments][4];
  using Probabilities = float[kKeyFragments][4];
  using Output = double[2];  // this thread's part of each row

  static void rescale(Output& output, const float (&shrink)[2]) {
    for (int r = 0; r < 2; ++r) output[r] *= shrink[r];
  }
  static void pack_fragment(Probabilities& packed, int j, const float (&p)[4]) {
    std::memcpy(packed[j], p, sizeof p);
  }
};

// What a thread knows of a row.
struct RowState {
  double output = 0;
  float origin = 0, row_sum = 0;
  bool same(const RowState& other, bool but_for_sign = false) const {
    RowState a = *this, b = other;
    if (but_for_sign) {
      a.row_sum = std::abs(a.row_sum);
      b.row_sum = std::abs(b.row_sum);
    }
    return std::memcmp(&a, &b, sizeof a) == 0;
  }
};

struct RowEnd {
  float factor = 0, lse = 0;
  float sink_factor = 0, sink_lse = 0;
  bool same(const RowEnd& other) const { return std::memcmp(this, &other, sizeof other) == 0; }
};

struct Thread {
  std::vector<std::array<RowState, 2>> states;  // after each tile
  RowEnd ends[2];
};
using Threads = std::array<Thread, 32>;

// What happened in all runs, by warps.
struct Seen {
  int straight = 0, followed = 0;
  int infinite = 0;  // recovered after another tile than the first
  int stayed = 0;    // rows, where another one followed
};

// `tries`: whether the first tile is tried before origins follow, as later ones are.
template <int kFragments>
std::string run(const Stream& stream, bool tries, unsigned seed, Threads& threads, Seen& seen) {
  using Softmax = LazySoftmax<OneValue<kFragments>>;
  constexpr float kHighestSum = 2 * kFragments * 256.0f;

  const auto act = [&] {
    const int lane = threadIdx.x % 32;
    const auto row_of = [&](int r) { return lane / 4 + 8 * r; };
    const auto key_of = [&](int j, int e) {
      return static_cast<std::size_t>(8 * j + 2 * (lane % 4) + e % 2);
    };
    typename Softmax::Scores scores;
    typename Softmax::Probabilities probabilities;
    typename Softmax::Output output = {};
    Softmax softmax;
    for (int r = 0; r < 2; ++r) {  // as another query tile left it
      softmax.origin[r] = 1e6f;
      softmax.row_sum[r] = 1e3f;
    }
    softmax.reset();
    Thread& own = threads[static_cast<std::size_t>(lane)];
    own.states.clear();
    const auto state = [&] {
      std::array<RowState, 2> rows;
      for (std::size_t r = 0; r < 2; ++r) {
        rows[r] = {output[r] + 0.0, softmax.origin[r], softmax.row_sum[r] + 0.0f};  // no -0
      }
      return rows;
    };

    // Whether a row's sums are too high, of some of its threads; within what floats err either.
    struct Height {
      bool surely, perhaps;
    };
    const auto height_of = [&](int r) {
      double sum = 0;
      for (int i = 0; i < 2 * kFragments; ++i) {
        const double score = scores[i / 2][2 * r + i % 2] * stream.scale_log2;
        sum += std::exp2(score - static_cast<double>(softmax.origin[r]));
      }
      const auto of_row = [&](bool own) {
        return (__ballot_sync(0xffffffff, own) >> lane / 4 * 4 & 0xf) != 0;
      };
      const bool surely = of_row(!(sum < kHighestSum * 1.01));
      return Height{surely, of_row(!(sum < kHighestSum * 0.99))};
    };

    const auto check_row = [&](const KeyTile& tile, int r, const RowState& before,
                               const Height& height, bool followed) {
      const RowState after = state()[static_cast<std::size_t>(r)];
      const int row = row_of(r);
      if (__shfl_xor_sync(0xffffffff, after.origin, 1) != after.origin ||
          __shfl_xor_sync(0xffffffff, after.origin, 2) != after.origin) {
        cta.fail("lanes of a row have different origins");
      }
      if (row == stream.poisoned) return;
      if (!tile.row_sees(row) && !after.same(before)) cta.fail("a hidden tile changes a row");
      for (int i = 0; i < 2 * kFragments; ++i) {
        const float p = probabilities[i / 2][2 * r + i % 2];
        if (!(p >= 0 && p <= (after.origin != before.origin ? 1.01f : kHighestSum))) {
          cta.fail("a probability is too high, or none");
        }
      }
      if (!std::isfinite(after.row_sum)) cta.fail("a row's sum is not finite");
      const bool moved = after.origin != before.origin;
      if (moved != height.surely && moved != height.perhaps && tile.row_sees(row)) {
        cta.fail("an origin moves without need, or stays where it must move");
      }
      const float highest = tile.highest(row) * stream.scale_log2;
      const float above = after.origin - highest - OneValue<kFragments>::kAhead;
      if (moved && !(std::abs(above) <= 1e-6f * std::abs(after.origin))) {
        cta.fail("an origin is not where the highest score wants it");
      }
      if (followed && !moved && lane % 4 == 0) ++seen.stayed;
    };

    for (std::size_t i = 0; i < stream.tiles.size(); ++i) {
      const KeyTile& tile = stream.tiles[i];
      for (int j = 0; j < kFragments; ++j) {
        for (int e = 0; e < 4; ++e) {
          scores[j][e] = tile.scores[row_of(e / 2)][key_of(j, e)];
          probabilities[j][e] = kNaN;
        }
      }
      const auto before = state();
      bool must_follow = true;
      Height heights[2] = {{true, true}, {true, true}};
      if (i > 0 || tries) {
        typename Softmax::Early early;
        std::fill_n(&early.p[0][0], sizeof early.p / sizeof(float), kNaN);
        early.sum[0] = early.sum[1] = kNaN;
        softmax.find_early(early, scores, stream.scale_log2);
        must_follow = softmax.find_late(probabilities, early, scores, stream.scale_log2);
        const auto after = state();
        // The sign of a sum is told to follow().
        if (must_follow && !(after[0].same(before[0], true) && after[1].same(before[1], true))) {
          cta.fail("a tile that is tried once more is in a row already");
        }
        for (int r = 0; r < 2; ++r) heights[r] = height_of(r);
        if (!must_follow && __any_sync(0xffffffff, heights[0].surely || heights[1].surely)) {
          cta.fail("a sum is too high and origins do not follow");
        }
        if (must_follow && !__any_sync(0xffffffff, heights[0].perhaps || heights[1].perhaps)) {
          cta.fail("origins follow without need");
        }
        const bool infinite =
            std::any_of(&probabilities[0][0], &probabilities[0][0] + kFragments * 4,
                        [](float p) { return std::isinf(p); });
        if (__any_sync(0xffffffff, infinite && i > 0) && lane == 0) ++seen.infinite;
      }
      const bool begun = i > 0 || tries;  // else the output is another query tile's still
      if (!begun) output[0] = output[1] = kNaN;
      if (must_follow) softmax.follow(probabilities, output, begun, scores, stream.scale_log2);
      if (!begun) output[0] = output[1] = 0;
      if (lane == 0) ++(must_follow ? seen.followed : seen.straight);
      for (int j = 0; j < kFragments; ++j) {
        for (int e = 0; e < 4; ++e) {
          output[e / 2] += static_cast<double>(probabilities[j][e]) *
                           static_cast<double>(tile.values[key_of(j, e)]);
        }
      }
      for (int r = 0; r < 2; ++r) {
        check_row(tile, r, before[static_cast<std::size_t>(r)], heights[r], must_follow);
      }
      own.states.push_back(state());
    }
    for (int r = 0; r < 2; ++r) {
      RowEnd& end = own.ends[r];
      end.factor = softmax.finish(r, kEmptyLse, end.lse);
      end.sink_factor = softmax.finish(r, stream.sinks[row_of(r)], kEmptyLse, end.sink_lse);
    }
  };

  emulation::RandomTurns turns;
  turns.seed = seed;
  turns.most_turns = 1000000;
  return cta.run(1, turns, act);
}

// Compares rows with a softmax in doubles. Returns what is wrong, or nothing.
std::string check_results(const Stream& stream, const Threads& threads) {
  const double scale = static_cast<double>(stream.scale_log2), ln2 = std::log(2.0);
  for (int row = 0; row < kRows; ++row) {
    double highest = -HUGE_VAL, sum = 0, output = 0;
    for (const KeyTile& tile : stream.tiles) {
      highest = std::max(highest, static_cast<double>(tile.highest(row)) * scale);
    }
    const bool empty = highest == -HUGE_VAL;
    for (const KeyTile& tile : stream.tiles) {
      for (std::size_t key = 0; !empty && key < tile.values.size(); ++key) {
        const double score = static_cast<double>(tile.scores[row][key]) * scale;
        const double p = std::exp2(score - highest);
        sum += p;
        output += p * static_cast<double>(tile.values[key]);
      }
    }
    const double lse = empty ? -HUGE_VAL : highest * ln2 + std::log(sum);
    const double sink = static_cast<double>(stream.sinks[row]), most = std::max(lse, sink);
    const double sink_lse = most + std::log(std::exp(lse - most) + std::exp(sink - most));
    // Floats that are multiplied and subtracted: what a score is off by grows with it.
    const double error = 1e-5 + (empty ? 0 : std::abs(highest)) * 0x1p-21;
    const double output_error = std::min(error, 1e-2);

    double found = 0;
    for (int lane = 0; lane < 4; ++lane) {
      const Thread& thread = threads[static_cast<std::size_t>(row % 8 * 4 + lane)];
      found += thread.states.back()[static_cast<std::size_t>(row / 8)].output;
    }
    for (int lane = 0; lane < 4; ++lane) {
      const RowEnd& end = threads[static_cast<std::size_t>(row % 8 * 4 + lane)].ends[row / 8];
      const double factor = static_cast<double>(end.factor);
      const double sink_factor = static_cast<double>(end.sink_factor);
      if (row == stream.poisoned) {
        if (!std::isnan(end.lse) || !std::isnan(factor * found)) return "a row is not poisoned";
        continue;
      }
      if (empty) {
        if (end.factor != 0 || end.lse != kEmptyLse || found != 0) return "a row is not empty";
        if (end.sink_factor != 0) return "a row with a sink only is not empty";
      } else {
        if (!(std::abs(found * factor - output / sum) < output_error)) return "an output is wrong";
        if (!(std::abs(static_cast<double>(end.lse) - lse) < error)) return "an lse is wrong";
      }
      const bool none = most == -HUGE_VAL;
      const double share = none ? 0 : std::exp(lse - sink_lse);
      if (!empty && !(std::abs(found * sink_factor - output / sum * share) < output_error)) {
        return "an output beside a sink is wrong";
      }
      const double right = none ? static_cast<double>(kEmptyLse) : sink_lse;
      if (!(std::abs(static_cast<double>(end.sink_lse) - right) < error)) {
        return "an lse with a sink is wrong";
      }
    }
  }
  return "";
}

// Whether every bit is the same but for what tiles left that only `b` has, at places of `added`.
bool are_same(const Threads& a, const Threads& b, const std::vector<bool>& added) {
  for (std::size_t lane = 0; lane < 32; ++lane) {
    std::size_t of_a = 0;
    for (std::size_t i = 0; i < added.size(); ++i) {
      if (added[i]) continue;
      for (std::size_t r = 0; r < 2; ++r) {
        if (!a[lane].states[of_a][r].same(b[lane].states[i][r])) return false;
      }
      ++of_a;
    }
    for (int r = 0; r < 2; ++r) {
      if (!a[lane].ends[r].same(b[lane].ends[r])) return false;
    }
  }
  return true;
}

// Calls use(stream, seed, random) with streams that go all ways, each of a seed of its own.
template <class Use>
void draw_often(int num_keys, int num_seeds, const Use& use) {
  for (int way = 0; way <= kMixed; ++way) {
    for (int i = 0; i < num_seeds; ++i) {
      const unsigned seed = static_cast<unsigned>((i * 16 + way) * 256 + num_keys);
      CAPTURE(num_keys);
      CAPTURE(way);
      CAPTURE(seed);
      std::mt19937 random(seed);
      use(draw_stream(num_keys, way, random), seed, random);
    }
  }
}

template <int kFragments>
void run_all(Seen& seen) {
  draw_often(8 * kFragments, 16, [&](const Stream& stream, unsigned seed, std::mt19937&) {
    Threads threads, tried;
    REQUIRE(run<kFragments>(stream, false, seed, threads, seen) == "");
    REQUIRE(check_results(stream, threads) == "");
    REQUIRE(run<kFragments>(stream, true, seed, tried, seen) == "");
    REQUIRE(are_same(threads, tried, std::vector<bool>(stream.tiles.size())));
  });
}

template <int kFragments>
void add_hidden_tiles() {
  Seen seen;
  draw_often(8 * kFragments, 4, [&](const Stream& stream, unsigned seed, std::mt19937& random) {
    Stream longer = stream;
    longer.tiles.clear();
    std::vector<bool> added;
    const auto add_some = [&] {
      while (below(random, 2) == 0) {
        longer.tiles.push_back(hidden_tile(8 * kFragments));
        added.push_back(true);
      }
    };
    for (const KeyTile& tile : stream.tiles) {
      add_some();
      longer.tiles.push_back(tile);
      added.push_back(false);
    }
    add_some();
    for (const bool tries : {false, true}) {
      Threads before, after;
      REQUIRE(run<kFragments>(stream, tries, seed, before, seen) == "");
      REQUIRE(run<kFragments>(longer, tries, seed, after, seen) == "");
      REQUIRE(are_same(before, after, added));
    }
  });
}

template <int kFragments>
void poison_rows() {
  Seen seen;
  draw_often(8 * kFragments, 4, [&](Stream stream, unsigned seed, std::mt19937& random) {
    stream.poisoned = below(random, kRows);
    KeyTile& tile = stream.tiles[random() % stream.tiles.size()];
    auto& scores = tile.scores[stream.poisoned];
    const float poison = below(random, 3) == 0 ? kInfinity : kNaN;
    if (below(random, 4) == 0) {
      std::fill(scores.begin(), scores.end(), poison);
    } else {
      scores[random() % scores.size()] = poison;
    }
    for (const bool tries : {false, true}) {
      Threads threads;
      REQUIRE(run<kFragments>(stream, tries, seed, threads, seen) == "");
      REQUIRE(check_results(stream, threads) == "");
    }
  });
}

// What is behind a sequence's last row is anything.
template <int kFragments>
void change_another_row() {
  Seen seen;
  draw_often(8 * kFragments, 8, [&](Stream stream, unsigned seed, std::mt19937& random) {
    stream.poisoned = below(random, kRows);
    Threads before, after;
    REQUIRE(run<kFragments>(stream, false, seed, before, seen) == "");
    for (KeyTile& tile : stream.tiles) {
      const float other = below(random, 2) == 0 ? kNaN : between(random, -1e4f, 1e4f);
      for (float& score : tile.scores[stream.poisoned]) score = other;
    }
    REQUIRE(run<kFragments>(stream, false, seed, after, seen) == "");
    for (std::size_t lane = 0; lane < 32; ++lane) {
      for (std::size_t r = 0; r < 2; ++r) {
        if (static_cast<int>(lane / 4 + 8 * r) == stream.poisoned) continue;
        for (std::size_t i = 0; i < stream.tiles.size(); ++i) {
          REQUIRE(before[lane].states[i][r].same(after[lane].states[i][r]));
        }
        REQUIRE(before[lane].ends[r].same(after[lane].ends[r]));
      }
    }
  });
}

}  // namespace

TEST_CASE("a softmax whose origins follow scores lazily is one, whichever way scores go") {
  Seen seen;
  run_all<2>(seen);
  run_all<8>(seen);
  run_all<10>(seen);
  run_all<16>(seen);
  CHECK(seen.straight > 500);
  CHECK(seen.followed > 500);
  CHECK(seen.infinite > 100);
  CHECK(seen.stayed > 1000);
}

TEST_CASE("key tiles of which a warp sees nothing change no bit of its softmax") {
  add_hidden_tiles<2>();
  add_hidden_tiles<8>();
  add_hidden_tiles<10>();
  add_hidden_tiles<16>();
}

TEST_CASE("what a warp's other rows see changes no bit of a row's softmax") {
  change_another_row<2>();
  change_another_row<10>();
  change_another_row<16>();
}

TEST_CASE("a score that has no softmax poisons no other row") {
  poison_rows<8>();
  poison_rows<10>();
  poison_rows<16>();
}
