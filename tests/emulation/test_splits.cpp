// Which query tiles are split, and into what, on emulated warps: parts are every visit of a tile
// once, fit their memory, and let no multiprocessor work much longer than the others.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/split_rows.cuh"

namespace {

using namespace girih;

constexpr int kNumSms = 132;

int below(std::mt19937& random, int bound) {
  return static_cast<int>(random() % static_cast<unsigned>(bound));
}

// Memory of a plan.
struct Planned {
  FwdParams params{};
  SplitHeader header{};
  std::vector<int> visits;
  std::vector<SplitTile> tiles;
  std::vector<SplitItem> items;
  SplitMemory memory{};

  Planned(std::vector<int> of_tiles, int most_visits, int num_sms = kNumSms)
      : visits(std::move(of_tiles)), tiles(kMostHeavyTiles) {
    params.num_tiles = params.num_m_blocks = static_cast<int>(visits.size());
    params.heads_per_section = 1;
    memory.capacity = split_capacity(num_sms, params.num_tiles, most_visits);
    items.resize(static_cast<std::size_t>(memory.capacity) + kMostHeavyTiles + 1, {-7, -7, -7});
    memory.header = &header;
    memory.visits = visits.data();
    memory.tiles = tiles.data();
    memory.items = items.data();
    memory.num_sms = num_sms;
  }

  void choose(int boxes_per_visit) {
    emulation::cta.run(kSplitThreads, [&] { ChooseSplits::run(memory, params, boxes_per_visit); });
    REQUIRE(memory.is_for(params));
    REQUIRE(items.back().tile == -7);  // behind the last
    int num_slots = 0;
    for (int i = 0; i < header.num_items; ++i) {
      const SplitItem& item = items[static_cast<std::size_t>(i)];
      REQUIRE(item.slot == (item.slot < 0 ? -1 : num_slots));
      num_slots += item.slot >= 0;
    }
    REQUIRE(num_slots <= memory.capacity);
  }

  int end_of(int item) const {
    const auto i = static_cast<std::size_t>(item);
    const bool last = item + 1 == header.num_items || items[i + 1].tile != items[i].tile;
    return last ? kNoBox : items[i + 1].first_box;
  }
};

// The boxes that the parts of a query tile's rows see.
template <int kParts>
struct Boxes {
  std::vector<bool> seen[kParts];

  Boxes(std::mt19937& random, int count, int percent) {
    for (std::vector<bool>& part : seen) {
      for (int n = 0; n < count; ++n) {
        const bool stays = n > 0 && below(random, 100) < 60;
        part.push_back(stays ? part.back() : below(random, 100) < percent);
      }
    }
  }

  int count() const { return static_cast<int>(seen[0].size()); }
  bool visited(int n) const {
    bool some = false;
    for (const std::vector<bool>& part : seen) some |= part[static_cast<std::size_t>(n)];
    return some;
  }
  Run seek(int part, int n) const {
    const std::vector<bool>& own = seen[part];
    int end = n + 1;
    const bool kind = own[static_cast<std::size_t>(n)];
    while (end < count() && own[static_cast<std::size_t>(end)] == kind) ++end;
    return {end, kind ? TileKind::partial : TileKind::empty};
  }
};

// What a warp visits of boxes from `first` to before `end`.
template <int kParts>
std::vector<int> visited(const Boxes<kParts>& boxes, int first, int end) {
  std::vector<int> found;
  emulation::cta.run(32, [&] {
    KeyScan<kParts> scan;
    scan.next_look = first;
    typename KeyScan<kParts>::Found next;
    const auto seek = [&](int part, int n) { return boxes.seek(part, n); };
    while (scan.next(seek, min(boxes.count(), end), next)) {
      if (threadIdx.x == 0) found.push_back(next.n);
    }
  });
  return found;
}

template <int kParts>
int place(const Boxes<kParts>& boxes, const SplitTile* split, SplitItem* items) {
  int result = 0;
  emulation::cta.run(32, [&] {
    const auto seek = [&](int part, int n) { return boxes.seek(part, n); };
    const int found = place_parts<KeyScan<kParts>>(seek, boxes.count(), split, items);
    if (threadIdx.x == 0) result = found;
  });
  return result;
}

template <int kParts>
void check_parts(std::mt19937& random) {
  const int boxes_per_visit = 1 << below(random, 4);
  const int num_tiles = 1 + below(random, 30);
  const int most_boxes = 300 + below(random, 3000);
  std::vector<Boxes<kParts>> boxes;
  std::vector<int> visits;
  for (int tile = 0; tile < num_tiles; ++tile) {
    const bool long_row = below(random, 4) == 0;
    boxes.emplace_back(random, most_boxes, long_row ? 20 + below(random, 81) : below(random, 3));
    const int found = place(boxes.back(), nullptr, nullptr);
    int expected = 0;
    for (int n = 0; n < boxes.back().count(); ++n) expected += boxes.back().visited(n);
    REQUIRE(found == expected);
    visits.push_back(below(random, 9) == 0 ? kNoRows : ceil_div(found, boxes_per_visit));
  }
  Planned plan(visits, ceil_div(most_boxes, boxes_per_visit));
  if (plan.memory.capacity == 0) return;
  plan.choose(boxes_per_visit);
  std::vector<int> split_of(static_cast<std::size_t>(num_tiles), -1);
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {
    const SplitTile& split = plan.tiles[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(split.tile);
    REQUIRE(split_of[tile] == -1);
    split_of[tile] = i;
    REQUIRE(split.num_parts >= 2);
    REQUIRE(split.num_parts <= kMostParts);

    // Also before its parts are placed, each key is in one.
    std::vector<int> whole;
    for (int part = 0; part < split.num_parts; ++part) {
      const int item = split.first_item + part;
      const int first = plan.items[static_cast<std::size_t>(item)].first_box;
      for (const int n : visited(boxes[tile], first, plan.end_of(item))) whole.push_back(n);
    }
    const std::vector<int> all = visited(boxes[tile], 0, kNoBox);
    REQUIRE(whole == all);

    REQUIRE(place(boxes[tile], &split, plan.items.data()) == static_cast<int>(all.size()));
    std::vector<int> parts;
    for (int part = 0; part < split.num_parts; ++part) {
      const int item = split.first_item + part;
      const SplitItem& first = plan.items[static_cast<std::size_t>(item)];
      REQUIRE(first.tile == split.tile);
      const std::vector<int> own = visited(boxes[tile], first.first_box, plan.end_of(item));
      const auto size = static_cast<std::size_t>(split.boxes_per_part);
      REQUIRE(!own.empty());
      REQUIRE((part + 1 < split.num_parts ? own.size() == size : own.size() <= size));
      parts.insert(parts.end(), own.begin(), own.end());
    }
    REQUIRE(parts == all);
  }
  // Every tile goes once: in parts, first, or in its turn.
  std::vector<int> first(static_cast<std::size_t>(num_tiles), 0);
  for (int i = 0; i < plan.header.num_items; ++i) {
    const SplitItem& item = plan.items[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(item.tile);
    REQUIRE((item.slot >= 0) == (split_of[tile] >= 0));
    ++first[tile];
    if (item.slot < 0) REQUIRE(first[tile] == 1);
  }
  for (std::size_t tile = 0; tile < first.size(); ++tile) {
    REQUIRE(plan.visits[tile] == (first[tile] > 0 ? kGoesFirst : visits[tile]));
  }
}

// When the last multiprocessor is done, in visits: each takes the next work as soon as it is done.
int makespan(std::vector<int> works, int num_sms) {
  std::vector<int> done(static_cast<std::size_t>(num_sms), 0);
  for (const int cost : works) *std::min_element(done.begin(), done.end()) += cost;
  return *std::max_element(done.begin(), done.end());
}

struct Times {
  int split;
  int whole;
  double ideal;
  int num_items;
};
Times times_of(const std::vector<int>& visits, int most_visits) {
  Planned plan(visits, most_visits);
  std::vector<int> whole, split;
  double total = 0;
  for (const int v : visits) {
    whole.push_back(split_cost(v));
    total += split_cost(v);
  }
  plan.choose(1);
  std::vector<int> left = visits;
  int next_split = 0;
  for (int i = 0; i < plan.header.num_items; ++i) {
    const SplitItem& item = plan.items[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(item.tile);
    int part = visits[tile];
    if (item.slot >= 0) {
      if (plan.tiles[static_cast<std::size_t>(next_split)].tile != item.tile) ++next_split;
      part = min(left[tile], plan.tiles[static_cast<std::size_t>(next_split)].boxes_per_part);
    }
    split.push_back(split_cost(part));
    left[tile] -= part;
    REQUIRE(left[tile] >= 0);
  }
  for (std::size_t tile = 0; tile < visits.size(); ++tile) {
    if (plan.visits[tile] == kGoesFirst) {
      REQUIRE(left[tile] == 0);
    } else {
      split.push_back(split_cost(visits[tile]));
    }
  }
  return {makespan(split, kNumSms), makespan(whole, kNumSms), total / kNumSms,
          plan.header.num_items};
}

}  // namespace

TEST_CASE("parts of a split tile are all its visits once, and as many in each but the last") {
  std::mt19937 random(1);
  for (int i = 0; i < 15; ++i) {
    check_parts<1>(random);
    check_parts<2>(random);
    check_parts<3>(random);
  }
}

TEST_CASE("a full row beside rows of one block takes what an even share of all takes") {
  for (const int num_heads : {1, 4, 32}) {
    for (const int blocks : {64, 256, 1024, 4096}) {
      std::vector<int> visits;
      for (int row = 0; row < blocks; ++row) {
        for (int head = 0; head < num_heads; ++head) {
          visits.push_back(row == blocks / 3 ? blocks : 1);
        }
      }
      const Times times = times_of(visits, blocks);
      CAPTURE(num_heads);
      CAPTURE(blocks);
      CAPTURE(times.ideal);
      CAPTURE(times.num_items);
      // A part is not smaller than that.
      const double least = std::max<double>(times.ideal, split_cost(kLeastPartVisits));
      CHECK(times.split <= std::max(1.2 * least, 0.0 + split_cost(kLeastHeavyVisits)));
      CHECK(times.split <= times.whole);
    }
  }
}

TEST_CASE("few tiles of many keys each keep all multiprocessors busy") {
  for (const int num_tiles : {1, 3, 8, 40, 100, 131}) {
    for (const int visits : {64, 256, 1024}) {
      const Times times =
          times_of(std::vector<int>(static_cast<std::size_t>(num_tiles), visits), visits);
      CAPTURE(num_tiles);
      CAPTURE(visits);
      CAPTURE(times.ideal);
      CAPTURE(times.num_items);
      const double least = std::max<double>(times.ideal, split_cost(kLeastPartVisits));
      CHECK(times.split <= std::max(1.35 * least, 0.0 + split_cost(kLeastHeavyVisits)));
    }
  }
}

TEST_CASE("random rows take no longer split than whole, and seldom longer than their share") {
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    const int num_tiles = 1 + below(random, 3000);
    const int most = 33 + below(random, 2000);
    const int heavy_of_thousand = below(random, 100);
    std::vector<int> visits;
    for (int tile = 0; tile < num_tiles; ++tile) {
      const bool heavy = below(random, 1000) < heavy_of_thousand;
      visits.push_back(heavy ? most - below(random, most / 4) : below(random, 4));
    }
    const Times times = times_of(visits, most);
    CAPTURE(num_tiles);
    CAPTURE(most);
    CAPTURE(times.ideal);
    CAPTURE(times.num_items);
    CHECK(times.split <= times.whole + times.ideal / 10 + 2);
    if (times.num_items == 0) {
      CHECK(times.split == times.whole);
      continue;
    }
    CHECK(times.split <= std::max(1.6 * times.ideal, 1.0 * split_cost(kLeastHeavyVisits)) + 8);
  }
}

TEST_CASE("rows of equal length stay whole where there are enough of them") {
  for (const int num_tiles : {kNumSms, 3 * kNumSms, 4096}) {
    const Times times = times_of(std::vector<int>(static_cast<std::size_t>(num_tiles), 200), 200);
    CHECK(times.num_items == 0);
  }
}

TEST_CASE("a plan is for what it was made for, and short sequences have none") {
  Planned plan({500, 1, 1, 1}, 500);
  plan.choose(1);
  CHECK(plan.header.num_items > 1);
  for (int FwdParams::*member :
       {&FwdParams::num_tiles, &FwdParams::num_m_blocks, &FwdParams::heads_per_section}) {
    FwdParams other = plan.params;
    other.*member += 1;
    CHECK_FALSE(plan.memory.is_for(other));
  }
  SplitMemory elsewhere = plan.memory;
  ++elsewhere.visits;
  CHECK_FALSE(elsewhere.is_for(plan.params));
  elsewhere = plan.memory;
  ++elsewhere.capacity;
  CHECK_FALSE(elsewhere.is_for(plan.params));
  elsewhere.header = nullptr;
  CHECK_FALSE(elsewhere.is_for(plan.params));

  CHECK(split_capacity(kNumSms, 5000, kLeastHeavyVisits) == 0);
  CHECK(split_capacity(kNumSms, 5000, kLeastHeavyVisits + 1) == 2 * kNumSms);
  CHECK(split_capacity(kNumSms, 0, 1000) == 0);
  CHECK(split_capacity(kNumSms, 1, 100000) == kMostParts);
  CHECK(split_capacity(kNumSms, 2, 80) == 20);
}

TEST_CASE("samples are of different tiles, and tell short lists from long ones") {
  for (const int num_tiles : {1, 4095, 4096, 5000, 32768, 100001}) {
    const int step = split_sample_step(num_tiles);
    CHECK((step == 1) == (num_tiles < 8 * kSplitSamples));
    int last = -1, rhythm = 0;
    for (int sample = 0; sample < num_tiles / step; ++sample) {
      const int tile = sampled_tile(sample, step);
      REQUIRE(tile > last);
      REQUIRE(tile < num_tiles);
      rhythm += tile % step == 0;
      last = tile;
    }
    if (step > 1) CHECK(rhythm < num_tiles / step / 4);
  }
  SplitHeader header{};
  SplitMemory memory{};
  memory.header = &header;
  memory.num_sms = kNumSms;
  memory.most_visits = 1024;
  memory.sample_step = 64;
  header.sampled_cost = uint64{512} * split_cost(50);  // of 32768 tiles
  CHECK(samples_show_no_heavy_tile(memory));
  header.sampled_cost = uint64{512} * split_cost(1);
  CHECK_FALSE(samples_show_no_heavy_tile(memory));
  header.sampled_cost = uint64{512} * split_cost(50);
  memory.sample_step = 1;
  CHECK_FALSE(samples_show_no_heavy_tile(memory));
}

TEST_CASE("shares of costs of any size are exact up to their limit") {
  std::mt19937_64 random(3);
  for (int i = 0; i < 20000; ++i) {
    const uint64 cost = random() >> (16 + random() % 48);
    const int num_sms = 1 + static_cast<int>(random() % 200);
    const auto divisor = static_cast<uint64>(num_sms);
    const uint64 share = (cost + divisor - 1) / divisor;
    CHECK(static_cast<uint64>(split_share(cost, num_sms)) ==
          (share >= 1u << 27 ? 1u << 27 : share));
  }
}
