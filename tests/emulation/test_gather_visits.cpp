// The visits that the Hopper kernel's scheduler announces of a head of vertical_slash, on emulated
// warps: random rows of bits, query tiles one after the other, and readers in the loaders' places,
// slower and faster than it. Every key before a query tile must be shown once to each block of rows
// that sees it, and no warpgroup may pass over more visits in a row than it has stages for.
#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/schedule_sm90.cuh"

namespace {

using namespace girih;
using emulation::below;
using emulation::cta;

template <int kKeys, int kStages>
struct GatheringConfig {
  using Element = uint16;
  static constexpr int kHeadDim = 64, kHeadDimV = 64;
  static constexpr int kBlockM = 128, kBlockN = kKeys;
  static constexpr int kNumStages = kStages, kNumQStages = 1;
  static constexpr int kKeyBox = kSlashBox;
  static constexpr bool kPackHeads = false, kPassOver = true;
  using Classes = HeadClasses<Leaf<VerticalSlash>>;
  using Heads = HeadTable<1, Classes::kNumNumbers>;
};

// What happened in all runs.
struct Happened {
  int passed_over = 0;  // visits, by a warpgroup
  int masked = 0;       // of tiles of which the other one sees all
  int tiles_of_boxes = 0, tiles_of_parts = 0, tiles_of_single_keys = 0;
  int without_keys = 0, behind_keys = 0;  // query tiles, by where their own rows are
  int at_once = 0, most_at_once = 0;      // looks at visits that were announced together
  int one_by_one = 0;                     // whole tiles for which there was one place
};

template <class Config>
struct Gathering {
  using Scheduler = SchedulerSm90<Config>;
  static_assert(Scheduler::kGathers);
  using Control = typename Scheduler::Control;
  using Gathered = typename Scheduler::Gathered;
  using Visit = typename Scheduler::Visit;
  using Keys = typename Scheduler::Gather::Keys;
  using Announcer = typename Scheduler::Announcer;
  static constexpr int kBlockM = Config::kBlockM, kBlockN = Config::kBlockN;
  static constexpr int kNumVisits = Scheduler::kNumVisits;
  static constexpr int kReaders = 2;

  // A query tile, and a plane of bits that changes at random from key to key: after few keys, or
  // after so many that they fill several key tiles.
  struct QueryTile {
    typename Scheduler::Work work{};
    int num_blocks;  // of its rows
    int own;         // its rows' first key
    int end;         // of the keys before
    std::vector<uint32> bits;
    InputView view;

    explicit QueryTile(std::mt19937& random) {
      static constexpr int kNumbers[] = {0};
      const int first_block = kSlashBlocks * below(random, 3);
      num_blocks = below(random, 4) == 0 ? 1 : kSlashBlocks;
      Geometry& g = work.geometry;
      g.seqlen_q = SlashPlane::kRows * (first_block + num_blocks) - below(random, 64);
      if (num_blocks == kSlashBlocks) g.seqlen_q += below(random, 2) * 100;  // another's rows
      g.seqlen_k = 1 + below(random, 7000);
      work.first_row = SlashPlane::kRows * first_block;
      const int place = below(random, 8);
      g.q_start = place == 0   ? -below(random, 200)
                  : place == 1 ? g.seqlen_k - 100 + below(random, 200)
                               : below(random, g.seqlen_k);
      own = max(g.q_start, 0);
      g.q_start -= work.first_row;
      end = min(own, g.seqlen_k);
      work.numbers[0] = kNumbers;

      const int words = SlashPlane::words_per_row(g.seqlen_k);
      const int all_blocks = first_block + num_blocks;
      const auto row_at = [&](int block) {
        return static_cast<int>(SlashPlane::row_at(words, all_blocks, block));
      };
      bits.assign(static_cast<std::size_t>(row_at(all_blocks)), 0);
      if (below(random, 3) != 0) draw(random, 0, words);
      for (int block = first_block; block < all_blocks; ++block) {
        // Some see all of the first keys.
        const SlashEntry entry{row_at(block), below(random, 4) == 0 ? below(random, words) : 0};
        std::memcpy(&bits[static_cast<std::size_t>(SlashPlane::entry_at(words, block))], &entry,
                    sizeof(entry));
        draw(random, entry.first_word, words);
      }
      view = {bits.data(), 0, 0, words, 1};
      g.inputs = &view;
    }
    QueryTile(const QueryTile&) = delete;
    QueryTile& operator=(const QueryTile&) = delete;

    bool sees(int block, int key) const {
      if (block >= num_blocks) return false;
      const SlashPlane plane = SlashPlane::of(work.geometry, 0);
      const SlashRow windows = plane.windows(work.first_row / SlashPlane::kRows + block);
      return ((plane.columns[key / 32] | windows[key / 32]) >> key % 32 & 1) != 0;
    }

   private:
    void draw(std::mt19937& random, int first_word, int words) {
      const int longest[2] = {1 << below(random, 13), 1 << below(random, 13)};  // unseen, seen
      bool value = below(random, 2) != 0;
      for (int begin = 0, after; begin < 32 * words; begin = after, value = !value) {
        after = min(begin + 1 + below(random, longest[value ? 1 : 0]), 32 * words);
        for (int key = begin; value && key < after; ++key) {
          bits[static_cast<std::size_t>(first_word + key / 32)] |= 1u << key % 32;
        }
      }
    }
  };

  // A visit as a reader finds it.
  struct Read {
    Visit visit;
    Keys keys;
    int ready;  // visits, this one and those behind it
    bool same(const Read& other) const {
      return std::memcmp(&visit, &other.visit, sizeof(Visit)) == 0 &&
             std::memcmp(&keys, &other.keys, sizeof(Keys)) == 0;
    }
    int key(int column) const {
      return (visit.flags & kSingleKeys) != 0
                 ? keys.keys[column]
                 : visit.boxes[column / kSlashBox] + column % kSlashBox;
    }
    bool shows(int warpgroup, int column) const {
      const uint32 kind = kind_of(visit.flags, warpgroup);
      if (kind != kPartial) return kind != 0;
      return (keys.seen[warpgroup][column / 32] >> column % 32 & 1) != 0;
    }
    bool shows_some(int warpgroup) const {
      for (int column = 0; column < kBlockN; ++column) {
        if (shows(warpgroup, column)) return true;
      }
      return false;
    }
    bool shows_whole_tile() const {
      return (visit.flags & kSingleKeys) == 0 &&
             (kind_of(visit.flags, 0) > kPartial || kind_of(visit.flags, 1) > kPartial);
    }
  };

  std::deque<QueryTile> tiles;
  Control* control;
  std::array<Announcer, 32> announcers{};  // a lane's each
  std::array<std::vector<Read>, kReaders> reads{};
  int most_rests;  // of a reader, at a visit
  Happened& happened;

  // Visits that are there from a position of the ring on.
  int num_ready(const Ring<kNumVisits>& ring) const {
    int count = 0;
    while (count < kNumVisits) {
      const Ring<kNumVisits> at = ring.ahead(count);
      if (!has_ended(control->visit_full[at.stage], at.parity)) break;
      ++count;
    }
    return count;
  }

  void rest() {
    for (int rests = below(cta.random(), most_rests + 1); rests > 0; --rests) cta.rest();
  }

  void read(int reader) {
    Ring<kNumVisits> ring;
    const auto look = [&] {
      const int stage = ring.stage;
      return Read{control->visits[stage], Scheduler::gathered_of(*control).visits[stage],
                  num_ready(ring)};
    };
    for (std::size_t query_tiles = 0; query_tiles < tiles.size(); ring.advance()) {
      wait(control->visit_full[ring.stage], ring.parity);
      // The announcer advances behind those that it announces together.
      const int together = num_ready(announcers[0].ring);
      happened.at_once += together > 1;
      happened.most_at_once = max(happened.most_at_once, together);
      Read own = look();
      rest();
      const Read later = look();
      if (!later.same(own)) cta.fail("a visit changes while it is read");
      own.ready = later.ready;
      reads[static_cast<std::size_t>(reader)].push_back(own);
      query_tiles += (own.visit.flags & kLastVisit) != 0;
      arrive(control->visit_empty[ring.stage]);
    }
  }

  void act() {
    const int lane = threadIdx.x % 32, reader = threadIdx.x / 32 - 1;
    if (reader < 0) {
      Announcer& announcer = announcers[static_cast<std::size_t>(lane)];
      for (const QueryTile& tile : tiles) Scheduler::gather_visits(*control, tile.work, announcer);
    } else if (lane == 0) {
      read(reader);
    }
  }

  // Whether the visits of a query tile, from `at` on, are what they should be; `passed` counts how
  // many in a row each warpgroup was let pass over. What is wrong, or nothing.
  std::string check(const QueryTile& tile, std::size_t& at, int (&passed)[kSlashBlocks]) const {
    const int seqlen_k = tile.work.geometry.seqlen_k;
    const int num_own = ceil_div(max(min(kBlockM, seqlen_k - tile.own), 1), kBlockN);
    std::vector<int> times[kSlashBlocks];  // that keys are shown
    for (auto& keys : times) keys.assign(static_cast<std::size_t>(tile.end), 0);
    bool last = false;
    for (int number = 0; !last; ++number, ++at) {
      const Read& read = reads[0][at];
      const uint32 flags = read.visit.flags;
      const bool own = (flags & kGivenMask) == 0;
      last = (flags & kLastVisit) != 0;
      if (((flags & kFirstVisit) != 0) != (number == 0)) return "the wrong visit is the first";
      if (own != (number < num_own)) return "other visits than the first are of own keys";
      if (last && number + 1 < num_own) return "own keys are missing";
      bool useful = own;
      for (int w = 0; w < kSlashBlocks; ++w) {
        const uint32 kind = kind_of(flags, w);
        const bool shows = own || read.shows_some(w);
        useful |= shows;
        if (kind > static_cast<uint32>(TileKind::full) || (own && kind != kPartial)) {
          return "a visit is of another kind than it may be";
        }
        if (kind == 0 && ++passed[w] > Config::kNumStages - 1) return "too many are passed over";
        happened.passed_over += kind == 0;
        if (kind != 0 && !shows) {  // given nevertheless
          if (passed[w] < Config::kNumStages - 1) return "a masked tile is given too early";
          happened.masked += read.shows_whole_tile();
        }
        if (kind != 0) passed[w] = 0;
        const Read& next = reads[0][last ? at : at + 1];
        const bool sees = !last && ((next.visit.flags & kGivenMask) == 0 || next.shows_some(w));
        if (sees_next(flags, w) != sees) return "it is wrong who sees the next visit";
        for (int column = 0; !own && column < kBlockN; ++column) {
          const int key = read.key(column);
          const bool exists = key >= 0 && key < tile.end, shown = read.shows(w, column);
          if (!exists && (shown || (flags & kSingleKeys) != 0)) return "a key is elsewhere";
          if (shown) ++times[w][static_cast<std::size_t>(key)];
        }
      }
      if (!useful) return "a visit shows nothing";
      for (int i = 0; i < Scheduler::kBoxes && (flags & kSingleKeys) == 0; ++i) {
        const int box = read.visit.boxes[i];
        const int own_box = tile.own + number * kBlockN + i * kSlashBox;
        if (own ? box != own_box : box < 0 || box >= tile.end) return "a box is elsewhere";
      }
      if (own) continue;
      ++((flags & kSingleKeys) != 0 ? happened.tiles_of_single_keys
         : read.shows_whole_tile()  ? happened.tiles_of_boxes
                                    : happened.tiles_of_parts);
    }
    for (int w = 0; w < kSlashBlocks; ++w) {
      for (int key = 0; key < tile.end; ++key) {
        if (times[w][static_cast<std::size_t>(key)] != (tile.sees(w, key) ? 1 : 0)) {
          return "a key is shown too often, too rarely or to the wrong block";
        }
      }
    }
    happened.without_keys += tile.end == 0;
    happened.behind_keys += tile.own >= seqlen_k;
    return "";
  }

  std::string check() const {
    const std::vector<Read>& all = reads[0];
    if (reads[1].size() != all.size()) return "a reader finds more visits";
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (!reads[1][i].same(all[i])) return "readers find different visits";
      // Those of the last place and of this one were announced one after the other.
      const auto whole = [&](std::size_t at) {
        return at < all.size() && all[at].shows_whole_tile();
      };
      happened.one_by_one +=
          all[i].ready == kNumVisits && whole(i + kNumVisits - 1) && whole(i + kNumVisits);
    }
    int passed[kSlashBlocks] = {};
    std::size_t at = 0;
    for (const QueryTile& tile : tiles) {
      const std::string wrong = check(tile, at, passed);
      if (!wrong.empty()) return wrong;
    }
    return at == all.size() ? "" : "there are more visits than those of the query tiles";
  }

  static std::string run(unsigned seed, Happened& happened) {
    std::mt19937 random(seed);
    // What nobody has written is anything.
    std::vector<uint64> memory((kFwdSm90ControlBytes + sizeof(Gathered)) / sizeof(uint64) + 1);
    for (uint64& word : memory) word = uint64{random()} << 32 | random();
    emulation::dynamic_shared = reinterpret_cast<unsigned char*>(memory.data());
    Gathering own{.control = reinterpret_cast<Control*>(memory.data()), .happened = happened};
    for (int left = 1 + below(random, 4); left > 0; --left) own.tiles.emplace_back(random);
    own.most_rests = below(random, 2) * (1 << below(random, 8));
    for (int i = 0; i < kNumVisits; ++i) {
      mbarrier_init(shared_address(&own.control->visit_full[i]), 1);
      mbarrier_init(shared_address(&own.control->visit_empty[i]), kReaders);
    }
    const emulation::RandomTurns turns{.seed = seed, .most_turns = 1 << 22};
    const std::string wrong = cta.run(1 + kReaders, turns, [&] { own.act(); });
    return wrong.empty() ? own.check() : wrong;
  }
};

}  // namespace

TEST_CASE_TEMPLATE_DEFINE("visits of gathered keys show each block of rows its keys, whoever waits",
                          Config, gathered_visits) {
  Happened happened;
  for (unsigned seed = 0; seed < 150; ++seed) {
    CAPTURE(seed);
    REQUIRE(Gathering<Config>::run(seed, happened) == "");
  }
  CHECK(happened.passed_over > 1000);
  CHECK(happened.masked > 200);
  CHECK(happened.tiles_of_boxes > 1000);
  CHECK(happened.tiles_of_parts > 500);
  CHECK(happened.tiles_of_single_keys > 500);
  CHECK(happened.without_keys > 10);
  CHECK(happened.behind_keys > 10);
  CHECK(happened.at_once > 500);
  CHECK(happened.most_at_once == Gathering<Config>::kNumVisits);
  CHECK(happened.one_by_one > 50);
}
TEST_CASE_TEMPLATE_INVOKE(gathered_visits, GatheringConfig<112, 3>, GatheringConfig<112, 2>,
                          GatheringConfig<64, 3>, GatheringConfig<64, 5>);
