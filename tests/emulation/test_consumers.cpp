// The protocol of consumers that do not prune, on emulated warps: random query tiles, visits that
// some warpgroups pass over, and orders of turns, with the producer's warps as fwd_sm90 has them.
// Nobody may wait for ever, no product whose result is used may read what is being overwritten, and
// every warp must use the key tiles that its warpgroup sees, in order. The softmax is the real one,
// so that outputs also tell what was done to them while a product was under way.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "pipeline.hpp"
// The code under test.
#include "girih/attn/consume_sm90.cuh"
#include "girih/shared/atoms.cuh"

namespace {

using namespace girih;
using emulation::below;
using emulation::Content;
using emulation::content_at;
using emulation::cta;

constexpr int kMostWarpgroups = 3;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kScale = 0.5f;  // of scores, to be natural
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct KeyTile {
  int query_tile;
  bool first, last;
  uint32 kinds[kMostWarpgroups];        // of TileKind
  uint32 sees_next;                     // a bit each
  bool hides_all[4 * kMostWarpgroups];  // from a warp, where the tile is partial
  float raises[4 * kMostWarpgroups];    // a warp's natural scores
  float value;                          // of all its keys
};

struct Schedule {
  int num_queries = 0;
  std::vector<KeyTile> keys;
  bool in_step = false;  // whether warps of a warpgroup wait for one another's products
};

// Warpgroups pass over `most_passed` visits in a row at most, and see at least one of a query tile.
Schedule draw_schedule(std::mt19937& random, int warpgroups, int most_passed) {
  Schedule schedule;
  schedule.in_step = below(random, 2) == 0;
  schedule.num_queries = 1 + below(random, 5);
  const int chance_of_passing =
      std::array{0, 20, 50, 90}[static_cast<std::size_t>(below(random, 4))];
  const int chance_of_raise = std::array{0, 5, 50}[static_cast<std::size_t>(below(random, 3))];
  int passed[kMostWarpgroups] = {};
  for (int q = 0; q < schedule.num_queries; ++q) {
    const int length = 1 + below(random, below(random, 6) == 0 ? 40 : 9);
    bool seen[kMostWarpgroups] = {};
    for (int i = 0; i < length; ++i) {
      KeyTile tile{};
      tile.query_tile = q;
      tile.first = i == 0;
      tile.last = i + 1 == length;
      tile.value = static_cast<float>(below(random, 2001) - 1000) / 1000;
      for (int w = 0; w < warpgroups; ++w) {
        const bool must = passed[w] == most_passed || (tile.last && !seen[w]);
        const bool passes = !must && below(random, 100) < chance_of_passing;
        const TileKind kind = below(random, 3) == 0 ? TileKind::partial : TileKind::full;
        tile.kinds[w] = passes ? 0 : static_cast<uint32>(kind);
        passed[w] = passes ? passed[w] + 1 : 0;
        seen[w] |= !passes;
      }
      for (int warp = 0; warp < 4 * warpgroups; ++warp) {
        tile.hides_all[warp] = below(random, 5) == 0;
        if (below(random, 100) < chance_of_raise) {
          tile.raises[warp] = static_cast<float>(below(random, 7) * 8 - 16);
        }
      }
      schedule.keys.push_back(tile);
    }
  }
  // It is not always known in time who sees the next one.
  for (std::size_t i = 0; i + 1 < schedule.keys.size(); ++i) {
    KeyTile& tile = schedule.keys[i];
    for (int w = 0; w < warpgroups && !tile.last; ++w) {
      const bool told = schedule.keys[i + 1].kinds[w] != 0 && below(random, 8) != 0;
      tile.sees_next |= told ? 1u << w : 0u;
    }
  }
  return schedule;
}

// What is known of a consumer's thread.
struct Consumer {
  std::size_t products = 0;        // begun
  int scored = Content::kNothing;  // whose scores it has
  int packed = Content::kNothing;  // whose probabilities it has
  std::vector<int> used;           // whose V it has multiplied
};

// FragmentsSm90 as far as consumers use it. Its scores have fewer fragments than kBlockN keys have.
template <int kWarpgroups, int kStages, int kQStages, bool kPassOver>
struct ConsumingKernel {
  static constexpr int kConsumers = 4 * kWarpgroups;
  static constexpr int kBlockM = 64 * kWarpgroups, kBlockN = 64, kNumStages = kStages;
  static constexpr int kNumQStages = kQStages, kNumVisits = 4, kNumWorks = 4;
  static constexpr int kBoxes = 1;
  static constexpr bool kGathers = false, kTellsBoxes = false;
  static constexpr int kMostPassed = kPassOver ? kNumStages - 1 : 0;
  static constexpr int kKeyFragments = 4, kEarlyFragments = 2;
  static constexpr float kAhead = kPassOver ? 64 : 0;
  static constexpr int kWarpgroupBarrier = 1;
  static constexpr FwdSm90Layout kLayout =
      fwd_sm90_layout(kBlockM, kBlockN, 64, 64, kNumStages, kNumQStages);

  using Classes = HeadClasses<Leaf<Dense>>;
  using Scores = float[kKeyFragments][4];
  using Probabilities = float[kKeyFragments][4];
  using Output = float[1][4];

  struct Work {
    int first_row;
    float softcap[1];
    static int head_of(int) { return 0; }
  };
  struct Visit {
    uint32 flags;
    int boxes[1];
  };
  struct Tile {
    uint32 flags;
    int box;
  };
  struct Mask {
    bool hides_all;  // or every second column of the first fragment
  };
  struct Gather {
    struct Seen {};
  };
  struct Control {
    uint64 work_empty[kNumWorks];
    uint64 visit_full[kNumVisits], visit_empty[kNumVisits];
    uint64 q_full[kNumQStages], q_empty[kNumQStages], out_full[kNumQStages];
    uint64 k_full[kNumStages], k_empty[kNumStages];
    uint64 v_full[kNumStages], v_empty[kNumStages];
    Visit visits[kNumVisits];
    Visit tiles[kNumStages];
    Work work[kNumWorks];
  };
  static int& gathered_of(Control&);  // nothing is gathered

  struct Run {
    const Schedule& schedule;
    unsigned char* shared;
    Control& control;
    int lanes;
    emulation::Products products{kWarpgroups, lanes, schedule.in_step};
    emulation::CopyEngine copies{};
    FwdParams params{};
    std::array<Consumer, 32 * kConsumers> threads{};
    std::vector<float> averages{};  // [query tile][thread][r], of values
  };
  static inline Run* run = nullptr;

  static int thread() { return threadIdx.x - 128; }
  static Consumer& own() { return run->threads[static_cast<std::size_t>(thread())]; }
  static const KeyTile& key_tile(int number) {
    return run->schedule.keys[static_cast<std::size_t>(number)];
  }

  // What a mask hides would be the highest of all.
  static float score_of(int number, int thread, int j, int e) {
    if (hidden(number, thread, j, e)) return 1000;
    return -4.0f + 3.5f * emulation::noise(number, thread, j * 4 + e) +
           key_tile(number).raises[thread / 32] / kScale;
  }
  static bool hidden(int number, int thread, int j, int e) {
    const KeyTile& tile = key_tile(number);
    if (tile.kinds[thread / 128] != static_cast<uint32>(TileKind::partial)) return false;
    return tile.hides_all[thread / 32] || (j == 0 && e % 2 == 1);
  }

  // Products of which nothing may be used are of what happens to lie there.
  static constexpr int kOfAnything = -1;
  static void begin(int what, std::function<void()> end) {
    run->products.begin(own().products++, what, std::move(end));
  }

  static void score(Scores& scores, const RowOperand<kBlockM>& q, uint32 k_tile) {
    Content &queries = content_at(q.low << 4), &keys = content_at(k_tile);
    const Content q_then = queries, k_then = keys;
    const bool of_anything = q_then.tile == Content::kNothing || k_then.tile == Content::kNothing ||
                             q_then.tile != key_tile(k_then.tile).query_tile;
    for (auto& fragment : scores) {
      for (float& score : fragment) score = kNaN;
    }
    own().scored = Content::kNothing;
    begin(of_anything ? kOfAnything : 2 * k_then.tile, [&, q_then, k_then, of_anything] {
      if (of_anything) return;
      if (!(keys == k_then)) cta.fail("K is overwritten while a product reads it");
      if (!(queries == q_then)) cta.fail("Q is overwritten while a product reads it");
      for (int j = 0; j < kKeyFragments; ++j) {
        for (int e = 0; e < 4; ++e) scores[j][e] = score_of(k_then.tile, thread(), j, e);
      }
      own().scored = k_then.tile;
    });
  }

  static void accumulate(Output& output, const Probabilities& probabilities, uint32 v_tile,
                         bool adds) {
    Content& values = content_at(v_tile);
    const Content then = values;
    const int packed = own().packed;
    const std::array before{output[0][0], output[0][1], output[0][2], output[0][3]};
    for (float& sum : output[0]) sum = kNaN;
    if (packed == Content::kNothing) return begin(kOfAnything, [] {});
    if (then.tile != packed) cta.fail("P * V of another tile's V");
    begin(2 * packed + 1, [&, then, packed, before, adds] {
      if (!(values == then)) cta.fail("V is overwritten while a product reads it");
      if (own().packed != packed) cta.fail("P is overwritten while a product reads it");
      for (int e = 0; e < 4; ++e) {
        output[0][e] = adds ? before[static_cast<std::size_t>(e)] : 0.0f;
        for (const auto& fragment : probabilities) {
          output[0][e] += fragment[e] * key_tile(packed).value;
        }
      }
      own().used.push_back(packed);
    });
  }

  static void pack_fragment(Probabilities& packed, int j, const float (&p)[4]) {
    std::memcpy(packed[j], p, sizeof p);
    own().packed = own().scored;
  }

  static void cap(Scores&, const FwdParams&, const Work&, int) {}
  static void modify(Scores&, const FwdParams&, const Work&, Tile, int, int, int) {}
  static void hide_boxes(Scores&, Tile, int) {}
  template <class Use>
  static void find_mask(const Work&, Tile tile, const typename Gather::Seen*, int warpgroup, int,
                        int, const Use& use) {
    const KeyTile& scored = key_tile(own().scored);
    if (kind_of(tile.flags, warpgroup) != scored.kinds[warpgroup]) cta.fail("another tile's mask");
    if (kind_of(tile.flags, warpgroup) == kPartial) use(Mask{scored.hides_all[thread() / 32]});
  }
  static void hide(Scores& scores, const Mask& mask, int) {
    for (int j = 0; j < kKeyFragments; ++j) {
      for (int e = 0; e < 4; ++e) {
        if (mask.hides_all || (j == 0 && e % 2 == 1)) scores[j][e] = kMinusInfinity;
      }
    }
  }
  static float score_scale_log2(const FwdParams& params, float) {
    return params.softmax_scale_log2;
  }
  static void rescale(Output& output, const float (&shrink)[2]) {
    for (int e = 0; e < 4; ++e) output[0][e] *= shrink[e / 2];
  }

  // Each thread's part of a row alone, which needs no other's.
  static void stage_output(unsigned char* staging, const FwdParams&, const Work& work,
                           const Output& output, const OnlineSoftmax& softmax) {
    const auto query_tile = static_cast<std::size_t>(work.first_row / kBlockM);
    const auto at = (query_tile * 32 * kConsumers + static_cast<std::size_t>(thread())) * 2;
    for (std::size_t r = 0; r < 2; ++r) {
      const float sum = softmax.row_sum[r];
      run->averages[at + r] = sum == 0 ? 0 : (output[0][2 * r] + output[0][2 * r + 1]) / sum;
    }
    reinterpret_cast<Content*>(staging + thread() / 128 * 64 * kPanelRowBytes)
        ->set(Content::kNothing);
  }

  static void schedule() {
    emulation::Announcer<ConsumingKernel> announcer(run->control);
    for (const KeyTile& tile : run->schedule.keys) {
      if (tile.first) announcer.describe(tile.query_tile * kBlockM);
      uint32 flags = (tile.first ? kFirstVisit : 0) | (tile.last ? kLastVisit : 0) |
                     tile.sees_next << kSeesNextBit;
      for (int w = 0; w < kWarpgroups; ++w) flags |= tile.kinds[w] << 2 * w;
      announcer.announce({flags, {0}});
    }
    announcer.end();
  }

  static void act() {
    using emulation::load_queries_and_keys, emulation::load_values, emulation::store_output;
    const int warp = threadIdx.x / 32;
    if (warp >= 4 && warp < 4 + kConsumers) {
      ConsumerSm90<ConsumingKernel>::run(run->params, run->control, run->shared, warp / 4 - 1);
    } else if (threadIdx.x % 32 == 0) {
      if (warp == 0) load_queries_and_keys<ConsumingKernel>(run->control, run->shared, run->copies);
      if (warp == 1) store_output<ConsumingKernel>(run->control, run->copies);
      if (warp == 2) schedule();
      if (warp == 3) {
        load_values<ConsumingKernel>(run->control, run->shared, run->copies,
                                     [](const Visit&, int, const auto& copy) { copy(); });
      }
      if (warp == 4 + kConsumers) run->copies.run();
    }
  }
};

// What happened in all runs.
struct Seen {
  int used = 0, passed_over = 0, last_passed_over = 0, most_passed_over = 0;
};

// What the threads' own parts of rows average to.
template <class Kernel>
bool averages_are_right(const typename Kernel::Run& run) {
  const Schedule& schedule = run.schedule;
  const auto num_queries = static_cast<std::size_t>(schedule.num_queries);
  for (int thread = 0; thread < 32 * Kernel::kConsumers; ++thread) {
    if (thread % 32 >= run.lanes) continue;
    for (int r = 0; r < 2; ++r) {
      std::vector<double> sums(num_queries), weights(num_queries);
      for (std::size_t i = 0; i < schedule.keys.size(); ++i) {
        const KeyTile& tile = schedule.keys[i];
        if (tile.kinds[thread / 128] == 0) continue;
        const auto q = static_cast<std::size_t>(tile.query_tile);
        for (int element = 0; element < 2 * Kernel::kKeyFragments; ++element) {
          const int j = element / 2, e = 2 * r + element % 2;
          if (Kernel::hidden(static_cast<int>(i), thread, j, e)) continue;
          const double weight =
              std::exp(double{Kernel::score_of(static_cast<int>(i), thread, j, e)} * kScale);
          sums[q] += weight * tile.value;
          weights[q] += weight;
        }
      }
      for (std::size_t q = 0; q < num_queries; ++q) {
        const auto at = (q * 32 * Kernel::kConsumers + static_cast<std::size_t>(thread)) * 2;
        const double right = weights[q] == 0 ? 0 : sums[q] / weights[q];
        const double average = run.averages[at + static_cast<std::size_t>(r)];
        if (!(std::abs(average - right) < 1e-4)) return false;
      }
    }
  }
  return true;
}

// Returns what went wrong, or nothing.
template <class Kernel>
std::string run_once(unsigned seed, Seen& seen) {
  using Control = typename Kernel::Control;
  constexpr auto kLayout = Kernel::kLayout;
  constexpr int kConsumers = Kernel::kConsumers;
  alignas(1024) static unsigned char shared[kLayout.bytes];
  emulation::clear_stages<Kernel>(shared);
  emulation::dynamic_shared = shared;
  Control& control = *new (shared + kLayout.control_offset) Control{};
  emulation::init_barriers<Kernel>(control);
  for (auto& products : emulation::products) products.clear();

  std::mt19937 random(seed);
  const Schedule schedule = draw_schedule(random, kConsumers / 4, Kernel::kMostPassed);
  emulation::RandomTurns turns;
  turns.seed = seed;
  turns.lanes = seed % 8 == 0 ? 32 : 4;
  turns.most_turns = 1000000;
  turns.chance_of_rest = 1 + below(random, 8);
  typename Kernel::Run run{schedule, shared, control, turns.lanes};
  run.params.softmax_scale_log2 = kScale * kLog2E;
  run.averages.resize(static_cast<std::size_t>(schedule.num_queries) * 32 * kConsumers * 2);
  Kernel::run = &run;
  const std::string wrong = cta.run(4 + kConsumers + 1, turns, Kernel::act);
  if (!wrong.empty()) return wrong;

  if (!emulation::barriers_are_at_rest(control)) return "a barrier waits for more";
  for (int thread = 0; thread < 32 * kConsumers; ++thread) {
    if (thread % 32 >= turns.lanes) continue;
    std::vector<int> sees;
    for (std::size_t i = 0; i < schedule.keys.size(); ++i) {
      if (schedule.keys[i].kinds[thread / 128] != 0) sees.push_back(static_cast<int>(i));
    }
    if (run.threads[static_cast<std::size_t>(thread)].used != sees) {
      return "a warp uses other tiles than its warpgroup sees";
    }
  }
  if (!averages_are_right<Kernel>(run)) return "an output is wrong";

  for (int w = 0; w < kConsumers / 4; ++w) {
    int in_a_row = 0;
    for (const KeyTile& tile : schedule.keys) {
      const bool passes = tile.kinds[w] == 0;
      in_a_row = passes ? in_a_row + 1 : 0;
      ++(passes ? seen.passed_over : seen.used);
      seen.last_passed_over += passes && tile.last;
      seen.most_passed_over = std::max(seen.most_passed_over, in_a_row);
    }
  }
  return "";
}

template <int kWarpgroupsOfTile, int kNumStages, int kNumQStages, bool kPassesOver>
using Kernel = ConsumingKernel<kWarpgroupsOfTile, kNumStages, kNumQStages, kPassesOver>;

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("warpgroups use the key tiles that they see, whoever is first", Config,
                          consumers) {
  Seen seen;
  for (unsigned seed = 0; seed < 96; ++seed) {
    CAPTURE(seed);
    REQUIRE(run_once<Config>(seed, seen) == "");
  }
  CHECK(seen.used > 1000);
  CHECK(seen.most_passed_over == Config::kMostPassed);
  if (Config::kMostPassed > 0) {
    CHECK(seen.passed_over > 300);
    CHECK(seen.last_passed_over > 30);
  }
}
TEST_CASE_TEMPLATE_INVOKE(consumers, Kernel<2, 2, 2, true>, Kernel<2, 2, 1, true>,
                          Kernel<2, 3, 2, true>, Kernel<2, 3, 2, false>, Kernel<3, 3, 2, true>,
                          Kernel<3, 5, 1, true>, Kernel<3, 2, 1, false>);
