// The protocol of consumers that prune, on emulated warps: random query tiles, votes and orders of
// turns, with the producer's warps as fwd_sm90 has them. Nobody may wait for ever, no product may
// read what is being overwritten, and every warp must use the tiles that are kept, in order. The
// softmax is the real one, so that outputs also tell a rescaling or packing at a wrong time.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "pipeline.hpp"
// The code under test.
#include "girih/attn/prune_sm90.cuh"
#include "girih/shared/atoms.cuh"

namespace {

using namespace girih;
using emulation::below;
using emulation::Content;
using emulation::content_at;
using emulation::cta;

constexpr int kConsumers = 8;  // warps
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kScale = 0.5f;  // of scores, to be natural

struct KeyTile {
  int query_tile;
  int box;
  bool last;
  bool partial;
  bool may_skip, likely_skipped;
  bool reaches[kConsumers];
  bool kept;
  float bias;   // what a modifier adds to natural scores
  float value;  // of all its keys
  float peak;   // how far above the threshold
};

struct QueryTile {
  PruneRule rule;
  int rows;
};

// What the tests draw from a seed.
struct Schedule {
  std::vector<QueryTile> queries;
  std::vector<KeyTile> keys;
  bool in_step = false;  // whether warps of a warpgroup wait for one another's products

  std::vector<int> kept() const {
    std::vector<int> numbers;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (keys[i].kept) numbers.push_back(static_cast<int>(i));
    }
    return numbers;
  }
};

// Warp of the consumers.
bool row_exists(const QueryTile& query, int warp, int lane, int r) {
  return 16 * warp + lane / 4 + 8 * r < query.rows;
}

Schedule draw_schedule(std::mt19937& random) {
  Schedule schedule;
  schedule.in_step = below(random, 2) == 0;
  constexpr int kBoxes = 64;
  const bool guesses = below(random, 8) == 0;  // trusts them, for few tiles are kept
  const int wanted =
      guesses ? 2 : std::array{0, 10, 30, 60, 100}[static_cast<std::size_t>(below(random, 5))];
  const int num_queries = guesses ? 2 : 1 + below(random, 5);
  for (int q = 0; q < num_queries; ++q) {
    QueryTile query{};
    query.rows = below(random, 3) == 0 ? 1 + below(random, 128) : 128;
    query.rule.threshold =
        below(random, 10) == 0 ? PruneRule::kKeepAll : (below(random, 2) == 0 ? 0.75f : -0.1f);
    query.rule.num_sink_tiles = below(random, 2);
    query.rule.first_kept = below(random, kBoxes);
    query.rule.end_kept = query.rule.first_kept + below(random, 12);
    const int length = 1 + below(random, guesses ? 200 : below(random, 6) == 0 ? 40 : 9);
    for (int i = 0; i < length; ++i) {
      KeyTile tile{};
      tile.query_tile = q;
      tile.box = below(random, kBoxes);
      tile.last = i + 1 == length;
      tile.partial = below(random, 3) == 0;
      tile.may_skip = query.rule.may_skip(tile.box);
      tile.likely_skipped = tile.may_skip && below(random, 4) != 0;
      tile.bias = static_cast<float>(below(random, 5)) / 4;
      tile.value = static_cast<float>(below(random, 2001) - 1000) / 1000;
      tile.peak = below(random, 8) == 0 ? 15 : 0.25f;
      // All warps, those of one warpgroup, one warp, or each for itself.
      const bool wants = below(random, 100) < wanted;
      const int who = below(random, 4), whom = below(random, kConsumers);
      tile.kept = !tile.may_skip;
      for (int warp = 0; warp < kConsumers; ++warp) {
        const bool own = who == 0   ? wants
                         : who == 1 ? wants && warp / 4 == whom / 4
                         : who == 2 ? wants && warp == whom
                                    : below(random, 400) < wanted;
        tile.reaches[warp] = own && row_exists(query, warp, 0, 0);
        tile.kept |= tile.reaches[warp];
      }
      schedule.keys.push_back(tile);
    }
    schedule.queries.push_back(query);
  }
  return schedule;
}

// What is known of a consumer's thread.
struct Consumer {
  std::size_t products = 0;        // begun
  int packed = Content::kNothing;  // whose probabilities it has
  std::vector<int> scored, used;   // whose K and whose V it has multiplied
};

// FragmentsSm90 as far as consumers use it. Its scores have fewer fragments than kBlockN keys have.
template <int kKeys, int kStages, bool kModified>
struct PruningKernel {
  static constexpr int kConsumers = ::kConsumers;
  static constexpr int kBlockM = 128, kBlockN = kKeys, kNumStages = kStages, kNumWorks = 4;
  static constexpr int kNumQStages = kStages % 4 < 2 ? 1 : 2;
  static constexpr int kNumVisits = kStages < 4 ? 3 : 7;
  static constexpr int kKeyFragments = 4, kEarlyFragments = 2;
  static constexpr float kAhead = kModified ? 64 : 0;
  static constexpr bool kModifies = kModified;
  static constexpr int kWarpgroupBarrier = 1;
  static constexpr FwdSm90Layout kLayout =
      fwd_sm90_layout(kBlockM, kBlockN, 64, 64, kNumStages, kNumQStages);

  using Classes = std::conditional_t<kModified, HeadClasses<With<Leaf<Dense>, Alibi>>,
                                     HeadClasses<Leaf<Dense>>>;
  using Scores = float[kKeyFragments][4];
  using Probabilities = float[kKeyFragments][4];
  using Output = float[1][4];

  struct Work {
    PruneRule rule;
    int first_row;
    Geometry geometry;
    float softcap[1];
    int first_row_of(int warpgroup) const { return first_row + 64 * warpgroup; }
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
    bool hides;  // every second column of the first fragment
  };

  // The fewest votes that numbers and phases can be told apart in: one warp is at most kNumStages
  // ahead of another, as is who loads V, which may be kNumVisits behind.
  static constexpr int kNumVotes = kNumVisits + 1;
  static_assert(kNumStages < kNumVotes);
  using Votes = PruneVotes<true, 2, kNumVotes>;
  struct Control {
    uint64 work_empty[kNumWorks];
    uint64 visit_full[kNumVisits], visit_empty[kNumVisits];
    uint64 q_full[kNumQStages], q_empty[kNumQStages], out_full[kNumQStages];
    uint64 k_full[kNumStages], k_empty[kNumStages];
    uint64 v_full[kNumStages], v_empty[kNumStages];
    Visit visits[kNumVisits];
    Visit tiles[kNumStages];
    Work work[kNumWorks];
    Votes votes;
  };

  struct Run {
    const Schedule& schedule;
    unsigned char* shared;
    Control& control;
    int lanes;
    emulation::Products products{2, lanes, schedule.in_step};
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

  // What no row has, or a mask hides, would reach any threshold.
  static float score_of(int number, int thread, int j, int e) {
    constexpr float kHigh = 50;
    const KeyTile& tile = key_tile(number);
    const QueryTile& query = run->schedule.queries[static_cast<std::size_t>(tile.query_tile)];
    const int warp = thread / 32, lane = thread % 32;
    if (!row_exists(query, warp, lane, e / 2)) return kHigh;
    if (tile.partial && hidden(j, e)) return kHigh;
    if (tile.reaches[warp] && query.rule.threshold > PruneRule::kKeepAll) {
      int rows = 0;  // of the warp's first ones, that exist and have a lane
      while (rows < run->lanes / 4 && row_exists(query, warp, 4 * rows, 0)) ++rows;
      const int at =
          static_cast<int>(emulation::noise(number, warp, 0) * static_cast<float>(16 * rows));
      if (lane == at / 16 * 4 + at % 4 && e == 0 && j == at / 4 % 4) {
        return (query.rule.threshold + tile.peak) / kScale;
      }
    }
    return -4.0f + 3.5f * emulation::noise(number, thread, j * 4 + e);
  }
  static bool hidden(int j, int e) { return j == 0 && e % 2 == 1; }

  static void begin(int what, std::function<void()> end) {
    run->products.begin(own().products++, what, std::move(end));
  }

  static void score(Scores& scores, const RowOperand<kBlockM>& q, uint32 k_tile) {
    Content &queries = content_at(q.low << 4), &keys = content_at(k_tile);
    const Content q_then = queries, k_then = keys;
    if (k_then.tile == Content::kNothing) cta.fail("Q * K^T without K");
    if (q_then.tile != key_tile(k_then.tile).query_tile) cta.fail("Q * K^T of another's Q");
    for (auto& fragment : scores) {
      for (float& score : fragment) score = std::numeric_limits<float>::quiet_NaN();
    }
    begin(2 * k_then.tile, [&, q_then, k_then] {
      if (!(keys == k_then)) cta.fail("K is overwritten while a product reads it");
      if (!(queries == q_then)) cta.fail("Q is overwritten while a product reads it");
      for (int j = 0; j < kKeyFragments; ++j) {
        for (int e = 0; e < 4; ++e) scores[j][e] = score_of(k_then.tile, thread(), j, e);
      }
      own().scored.push_back(k_then.tile);
    });
  }

  static void accumulate(Output& output, const Probabilities& probabilities, uint32 v_tile, bool) {
    Content& values = content_at(v_tile);
    const Content then = values;
    const int packed = own().packed;
    if (then.tile != packed) cta.fail("P * V of another tile's V");
    begin(2 * packed + 1, [&, then, packed] {
      if (!(values == then)) cta.fail("V is overwritten while a product reads it");
      if (own().packed != packed) cta.fail("P is overwritten while a product reads it");
      for (const auto& fragment : probabilities) {
        for (int e = 0; e < 4; ++e) output[0][e] += fragment[e] * key_tile(packed).value;
      }
      own().used.push_back(packed);
    });
  }

  static void pack_fragment(Probabilities& packed, int j, const float (&p)[4]) {
    std::memcpy(packed[j], p, sizeof p);
    own().packed = own().scored.back();
  }

  static void cap(Scores&, const FwdParams&, const Work&, int) {}

  template <class Use>
  static void find_mask(const Work&, Tile tile, const void*, int, int, int, const Use& use) {
    if (tile.flags & kPartial) use(Mask{true});
  }
  static void hide(Scores& scores, const Mask& mask, int) {
    for (int j = 0; j < kKeyFragments; ++j) {
      for (int e = 0; e < 4; ++e) {
        if (mask.hides && hidden(j, e)) scores[j][e] = kMinusInfinity;
      }
    }
  }

  // Makes scores natural; what is hidden it shows.
  static float modified(const KeyTile& tile, float score) {
    return std::isinf(score) ? 1.0f : score * kScale + tile.bias;
  }
  static void modify(Scores& scores, const FwdParams&, const Work&, Tile, int, int, int) {
    if constexpr (kModified) {
      for (auto& fragment : scores) {
        for (float& score : fragment) score = modified(key_tile(own().scored.back()), score);
      }
    }
  }
  static float plain_scale_log2(const FwdParams& params, float) {
    return params.softmax_scale_log2;
  }
  static float score_scale_log2(const FwdParams& params, float softcap) {
    return kModified ? kLog2E : plain_scale_log2(params, softcap);
  }

  static void clear(Output& output) {
    for (float& sum : output[0]) sum = 0.0f;
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
    auto* rows = reinterpret_cast<Content*>(staging + thread() / 128 * 64 * kPanelRowBytes);
    rows->set(Content::kNothing);
  }

  static void schedule() {
    emulation::Announcer<PruningKernel> announcer(run->control);
    bool first = true;
    for (const KeyTile& tile : run->schedule.keys) {
      if (first) {
        const QueryTile& query = run->schedule.queries[static_cast<std::size_t>(tile.query_tile)];
        Work& work = announcer.describe(tile.query_tile * kBlockM);
        work.rule = query.rule;
        work.geometry.seqlen_q = work.first_row + query.rows;
      }
      announcer.announce({(first ? kFirstVisit : 0) | (tile.last ? kLastVisit : 0) |
                              (tile.partial ? kPartial : 0) | (tile.may_skip ? kMaySkip : 0) |
                              (tile.likely_skipped ? kLikelySkipped : 0),
                          {tile.box}});
      first = tile.last;
    }
    announcer.end();
  }

  static void load_values() {
    KeptValues kept;
    emulation::load_values<PruningKernel>(run->control, run->shared, run->copies,
                                          [&](const Visit& visit, int number, const auto& copy) {
                                            kept.next(run->control.votes,
                                                      (visit.flags & kFirstVisit) != 0,
                                                      (visit.flags & kMaySkip) != 0, copy);
                                            if (kept.kept != key_tile(number).kept) {
                                              cta.fail("who loads V takes a vote for another");
                                            }
                                          });
  }

  static void act() {
    const int warp = threadIdx.x / 32;
    if (warp >= 4 && warp < 4 + kConsumers) {
      PrunedConsumer<PruningKernel>{{}, run->params, run->control, run->shared, warp / 4 - 1}.run();
    } else if (threadIdx.x % 32 == 0) {
      if (warp == 0) {
        emulation::load_queries_and_keys<PruningKernel>(run->control, run->shared, run->copies);
      }
      if (warp == 1) emulation::store_output<PruningKernel>(run->control, run->copies);
      if (warp == 2) schedule();
      if (warp == 3) load_values();
      if (warp == 4 + kConsumers) run->copies.run();
    }
  }
};

// What happened in all runs.
struct Seen {
  int kept = 0, skipped = 0;
  int last_skipped = 0;
  int scored_again = 0, last_scored_again = 0;  // as the other warpgroup wanted the tile
  int trusted_in_vain = 0;  // kept, though likely skipped, behind as many that were
};

// What the threads' own parts of rows average to.
template <class Kernel>
bool averages_are_right(const typename Kernel::Run& run) {
  const Schedule& schedule = run.schedule;
  for (int thread = 0; thread < 32 * kConsumers; ++thread) {
    if (thread % 32 >= run.lanes) continue;
    for (int r = 0; r < 2; ++r) {
      std::vector<double> sums(schedule.queries.size()), weights(schedule.queries.size());
      for (std::size_t i = 0; i < schedule.keys.size(); ++i) {
        const KeyTile& tile = schedule.keys[i];
        if (!tile.kept) continue;
        const auto q = static_cast<std::size_t>(tile.query_tile);
        for (int element = 0; element < 2 * Kernel::kKeyFragments; ++element) {
          const int j = element / 2, e = 2 * r + element % 2;
          if (tile.partial && Kernel::hidden(j, e)) continue;
          const float score = Kernel::score_of(static_cast<int>(i), thread, j, e);
          const double weight = std::exp(score * kScale + (Kernel::kModifies ? tile.bias : 0.0f));
          sums[q] += weight * tile.value;
          weights[q] += weight;
        }
      }
      for (std::size_t q = 0; q < sums.size(); ++q) {
        const auto at = (q * 32 * kConsumers + static_cast<std::size_t>(thread)) * 2;
        const double right = weights[q] == 0 ? 0 : sums[q] / weights[q];
        const double average = run.averages[at + static_cast<std::size_t>(r)];
        if (!row_exists(schedule.queries[q], thread / 32, thread % 32, r)) continue;
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
  static_assert(sizeof(Control) <= kFwdSm90ControlBytes);
  alignas(1024) static unsigned char shared[kLayout.bytes];
  emulation::clear_stages<Kernel>(shared);
  emulation::dynamic_shared = shared;
  Control& control = *new (shared + kLayout.control_offset) Control{};
  emulation::init_barriers<Kernel>(control);
  control.votes.init();
  for (auto& products : emulation::products) products.clear();

  std::mt19937 random(seed);
  const Schedule schedule = draw_schedule(random);
  emulation::RandomTurns turns;
  turns.seed = seed;
  turns.lanes = seed % 8 == 0 ? 32 : 4;
  turns.most_turns = 1000000;
  turns.chance_of_rest = 1 + below(random, 8);
  typename Kernel::Run run{schedule, shared, control, turns.lanes};
  run.params.softmax_scale_log2 = kScale * kLog2E;
  run.averages.resize(schedule.queries.size() * 32 * kConsumers * 2);
  Kernel::run = &run;
  const std::string wrong = cta.run(4 + kConsumers + 1, turns, Kernel::act);
  if (!wrong.empty()) return wrong;

  using emulation::are_whole;
  const auto& votes = control.votes.all;
  if (!emulation::barriers_are_at_rest(control) || !are_whole(votes[0]) || !are_whole(votes[1]) ||
      !emulation::are_even(votes[0], votes[1])) {
    return "a barrier waits for more";
  }
  const std::vector<int> kept = schedule.kept();
  for (int thread = 0; thread < 32 * kConsumers; ++thread) {
    if (thread % 32 >= turns.lanes) continue;
    if (run.threads[thread].used != kept) return "a warp uses other tiles than those kept";
  }
  if (!averages_are_right<Kernel>(run)) return "an output is wrong";

  seen.kept += static_cast<int>(kept.size());
  seen.skipped += static_cast<int>(schedule.keys.size() - kept.size());
  int skipped = 0;
  bool begins = true;
  for (const KeyTile& tile : schedule.keys) {
    seen.last_skipped += tile.last && !tile.kept;
    if (!tile.kept) {
      ++skipped;
    } else if (begins && tile.likely_skipped) {
      seen.trusted_in_vain += skipped >= static_cast<int>(PrunedConsumer<Kernel>::kTrusted);
      skipped = 0;
    }
    begins = tile.last || !tile.kept;
  }
  for (const int first : {0, 128}) {
    std::vector<int> scored(schedule.keys.size());
    for (const int tile : run.threads[first].scored) ++scored[static_cast<std::size_t>(tile)];
    for (std::size_t i = 0; i < scored.size(); ++i) {
      seen.scored_again += scored[i] > 1;
      seen.last_scored_again += scored[i] > 1 && schedule.keys[i].last;
    }
  }
  return "";
}

template <int kKeys, int kStages>
void run_often(unsigned num_seeds, Seen& seen) {
  for (unsigned seed = 0; seed < num_seeds; ++seed) {
    CAPTURE(kKeys);
    CAPTURE(kStages);
    CAPTURE(seed);
    REQUIRE(run_once<PruningKernel<kKeys, kStages, kStages % 2 == 1>>(seed, seen) == "");
  }
}

template <int kKeys>
Seen run_all(unsigned num_seeds) {
  Seen seen;
  run_often<kKeys, 2>(num_seeds, seen);
  run_often<kKeys, 3>(num_seeds, seen);
  run_often<kKeys, 4>(num_seeds, seen);
  run_often<kKeys, 5>(num_seeds, seen);
  CHECK(seen.kept > 1000);
  CHECK(seen.skipped > 1000);
  CHECK(seen.last_skipped > 50);
  return seen;
}

constexpr unsigned kSeeds = 64;  // for each depth of the rings

}  // namespace

TEST_CASE("warpgroups that go on before the other has voted use the kept tiles, whoever is first") {
  for (const Seen& seen : {run_all<128>(kSeeds), run_all<64>(kSeeds)}) {
    CHECK(seen.scored_again > 100);
    CHECK(seen.last_scored_again > 20);
    CHECK(seen.trusted_in_vain > 20);
  }
}

// A wait for V that some of the warps leave out shows once in a thousand runs or two.
TEST_CASE("with two stages every warp waits for what it skips") {
  Seen seen;
  run_often<128, 2>(40 * kSeeds, seen);
  CHECK(seen.skipped > 1000);
}
