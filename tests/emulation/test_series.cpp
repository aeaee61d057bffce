// The series in which the Hopper kernel's scheduler takes query tiles where key tiles are pruned,
// on emulated warps: random launches and decisions, and readers in the places of the loaders and
// the consumers, slower and faster than it.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstring>
#include <iterator>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "series.hpp"
// The code under test.
#include "girih/attn/schedule_sm90.cuh"

namespace {

using namespace girih;
using emulation::below;
using emulation::cta;
using series::Checker, series::Happened, series::Problem, series::Taken;

template <int kKeys>
struct PruningConfig {
  using Element = uint16;
  static constexpr int kHeadDim = 64, kHeadDimV = 64;
  static constexpr int kBlockM = kPruneRows, kBlockN = kKeys, kKeyBox = kKeys;
  static constexpr int kNumStages = 3, kNumQStages = 1;
  static constexpr bool kPackHeads = false, kPassOver = false, kPrune = true;
  using Classes = series::Classes;
  using Heads = series::Heads;
};

template <class Config>
struct Launch {
  using Scheduler = SchedulerSm90<Config>;
  using Control = typename Scheduler::Control;
  using Visit = typename Scheduler::Visit;
  using Work = typename Scheduler::Work;
  static constexpr int kNumVisits = Scheduler::kNumVisits, kNumWorks = Scheduler::kNumWorks;
  static constexpr int kReaders = 3;

  const Problem& problem;
  Control& control;
  int* counter;
  std::array<int, kReaders> most_rests{};  // at a visit or query tile
  std::vector<Taken> taken{};
  uint32 num_loaded = 0;  // query tiles whose visits have been read
  bool none_left = false;

  void rest(std::size_t reader) {
    for (int rests = below(cta.random(), most_rests[reader] + 1); rests > 0; --rests) cta.rest();
  }

  // In the place of who loads K.
  void load_keys() {
    Ring<kNumVisits> ring;
    for (;; ring.advance()) {
      wait(control.visit_full[ring.stage], ring.parity);
      const Work& work = control.work[num_loaded % kNumWorks];
      if (work.first_row < 0) break;
      if (taken.size() == num_loaded) {
        taken.push_back({work.geometry, work.first_row, work.queries, work.keys, {}});
      }
      const Visit visit = control.visits[ring.stage];
      taken.back().visits.push_back({visit.flags, visit.boxes[0]});
      rest(0);
      if (std::memcmp(&visit, &control.visits[ring.stage], sizeof(Visit)) != 0 ||
          work.first_row != taken.back().first_row) {
        cta.fail("a visit changes while it is read");
      }
      arrive(control.visit_empty[ring.stage]);
      if (visit.flags & kLastVisit) arrive(control.work_empty[num_loaded++ % kNumWorks]);
    }
    none_left = true;
  }

  // In that of who loads V, as copy_sm90.cuh has it: decisions come when visits are free again.
  void load_values() {
    Ring<kNumVisits> ring;
    for (uint32 count = 0;; ring.advance()) {
      wait(control.visit_full[ring.stage], ring.parity);
      const Visit visit = control.visits[ring.stage];
      const uint64& work_empty = control.work_empty[count % kNumWorks];
      const Work& work = control.work[count % kNumWorks];
      if (work.first_row < 0) return;
      const bool skipped = (visit.flags & kMaySkip) != 0 &&
                           problem.skips(work.geometry.batch, work.geometry.local_head,
                                         work.first_row, visit.boxes[0]);
      const bool last = (visit.flags & kLastVisit) != 0;
      if (last) {
        ++count;
        arrive(work_empty);
      }
      arrive(control.visit_empty[ring.stage]);
      rest(1);
      if (visit.flags & kScouted) control.skipped.note(visit.boxes[0], skipped, last);
    }
  }

  // In that of consumers and of who stores their output.
  void use() {
    for (uint32 count = 0;; ++count) {
      cta.wait_until([&] { return none_left || num_loaded > count; });
      if (num_loaded == count) return;
      rest(2);
      arrive(control.work_empty[count % kNumWorks]);
    }
  }

  void act() {
    const int warp = threadIdx.x / 32;
    if (warp == 0) {
      Scheduler::run(problem.params, problem.heads, &problem.view, counter, control, nullptr);
    } else if (threadIdx.x % 32 == 0) {
      if (warp == 1) load_keys();
      if (warp == 2) load_values();
      if (warp == 3) use();
    }
  }

  static void init_barriers(Control& control) {
    for (const uint64& barrier : control.work_empty) mbarrier_init(shared_address(&barrier), 3);
    for (const uint64& barrier : control.visit_full) mbarrier_init(shared_address(&barrier), 1);
    for (const uint64& barrier : control.visit_empty) mbarrier_init(shared_address(&barrier), 2);
    control.taken = 0;
    control.skipped.init();
  }

  // Whether so many phases have, and none has begun.
  static bool have_ended(std::span<const uint64> barriers, std::size_t phases) {
    for (const uint64& barrier : barriers) {
      phases -= emulation::Mbarrier::at(shared_address(&barrier)).phase;
    }
    return emulation::are_whole(barriers) && phases == 0;
  }

  // The CTA that is blockIdx.x.
  static std::string run_cta(std::mt19937& random, const Problem& problem, int* counter,
                             Checker& checker, Happened& happened) {
    // What nobody has written is anything.
    std::vector<uint64> memory(sizeof(Control) / sizeof(uint64) + 1);
    for (uint64& word : memory) word = uint64{random()} << 32 | random();
    emulation::dynamic_shared = reinterpret_cast<unsigned char*>(memory.data());
    Launch own{problem, *reinterpret_cast<Control*>(memory.data()), counter};
    init_barriers(own.control);
    for (int& rests : own.most_rests) rests = below(random, 2) * (1 << below(random, 7));
    const auto seed = static_cast<unsigned>(random());
    const emulation::RandomTurns turns{.seed = seed, .most_turns = 1 << 23};
    std::string wrong = cta.run(1 + kReaders, turns, [&] { own.act(); });
    const int scouts_before = checker.num_scouts();
    std::size_t visits = 0;
    for (const Taken& tile : own.taken) {
      if (wrong.empty()) wrong = checker.check(tile);
      visits += tile.visits.size();
    }
    if (!wrong.empty()) return wrong;
    if (checker.within_series()) return "a series is not taken to its end";
    // Nobody says that they have read the visit that ends the walk.
    const auto scouts = static_cast<std::size_t>(checker.num_scouts() - scouts_before);
    const Control& c = own.control;
    if (!have_ended(c.work_empty, own.taken.size()) || !have_ended(c.visit_full, visits + 1) ||
        !have_ended(c.visit_empty, visits) || !have_ended({&c.skipped.noted, 1}, scouts)) {
      return "a barrier has had other phases";
    }
    happened.busy_ctas += !own.taken.empty();
    return "";
  }

  static std::string run(unsigned seed, Happened& happened) {
    std::mt19937 random(seed);
    const Problem problem(random, Config::kBlockN);
    Checker checker(problem, happened);
    int own_counter = 0;
    int* const counter = below(random, 2) == 0 ? &own_counter : nullptr;
    gridDim.x = below(random, 2) == 0 ? 1 : 3;
    std::string wrong;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x && wrong.empty(); ++blockIdx.x) {
      wrong = run_cta(random, problem, counter, checker, happened);
    }
    blockIdx.x = 0;
    if (!wrong.empty()) return wrong;
    if (own_counter != 0) return "the counter is not 0 again";
    return checker.all_once() ? "" : "a query tile is taken twice or never";
  }
};

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("query tiles of a series visit first what its scout skipped", Config,
                          series_of_query_tiles) {
  Happened happened;
  for (unsigned seed = 0; seed < 500; ++seed) {
    CAPTURE(seed);
    REQUIRE(Launch<Config>::run(seed, happened) == "");
  }
  CHECK(happened.skipped_and_rest > 500);
  CHECK(happened.only_skipped > 50);
  CHECK(happened.only_rest > 300);
  CHECK(happened.many_key_tiles > 30);
  CHECK(happened.keep_all > 100);
  CHECK(happened.scouts_keep_all > 200);
  CHECK(happened.last_skipped > 30);
  CHECK(happened.masked > 500);
  CHECK(happened.masked_skipped > 5);
  CHECK(happened.short_series > 200);
  CHECK(happened.busy_ctas > 700);
}
TEST_CASE_TEMPLATE_INVOKE(series_of_query_tiles, PruningConfig<64>, PruningConfig<128>);

TEST_CASE("what a series' scout skipped is told apart among as many key tiles as there are bits") {
  using Skipped = SkippedTiles<true>;
  constexpr int kTiles = Skipped::kTiles;
  static Skipped skipped;
  emulation::dynamic_shared = reinterpret_cast<unsigned char*>(&skipped);
  std::fill(std::begin(skipped.words), std::end(skipped.words), ~0u);
  skipped.init();
  emulation::cta.run(32, [] { skipped.begin(KeyOrder::kScouts); });
  for (int n = 0; n < kTiles; ++n) REQUIRE_FALSE(skipped.contain(n));

  const std::set<int> noted{0, 31, 32, 1000, kTiles - 1};
  skipped.note(1, false, false);
  for (const int n : noted) skipped.note(n == 1000 ? n + 3 * kTiles : n, true, false);
  for (int n = 0; n < kTiles; ++n) {
    CAPTURE(n);
    REQUIRE(skipped.contain(n) == (noted.count(n) != 0));
    REQUIRE(skipped.contain(n + kTiles) == skipped.contain(n));
  }
  CHECK_FALSE(has_ended(skipped.noted, 0));
  skipped.note(5, false, true);
  CHECK(has_ended(skipped.noted, 0));
  CHECK_FALSE(skipped.contain(5));
}
