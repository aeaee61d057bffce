// Which query tiles are split, and into what, on emulated warps: parts are every visit of a tile
// once, fit their memory, and let no multiprocessor work much longer than the others.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "warps.hpp"
// The code under test.
#include "girih/attn/splits_sm90.cuh"

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

// What merging asks of a kernel: 64 rows of each of two heads in a tile.
struct PackedKernel {
  struct Work : PartOfTile<true> {};
  using Heads = int;
  using Element = Bf16;
  static constexpr int kBlockM = 128, kHeadDimV = 48, kHeadsPerTile = 2, kRowsPerHead = 64;
};

}  // namespace

TEST_CASE(
    "works are the parts of split tiles and every other tile, and parts merge into their rows") {
  using Splits = SplitsSm90<PackedKernel>;
  constexpr int kHeads = 4, kRows = 250, kDim = PackedKernel::kHeadDimV;
  constexpr int kSlotRows = PackedKernel::kBlockM;
  std::mt19937 random(4);
  std::vector<int> visits(12, 1);           // 3 blocks of rows of 2 packs of heads of 2 sequences
  visits[1] = visits[5] = visits[6] = 300;  // the first has no rows
  visits[9] = 40;
  Planned plan(visits, 300);
  plan.params.num_m_blocks = 3;
  plan.params.num_batch_heads = 4;
  plan.params.heads_per_section = 2;
  plan.choose(1);
  REQUIRE(plan.header.num_split_tiles == 4);

  // Two packed sequences.
  const int cu_seqlens_q[] = {0, 100, kRows};
  FwdParams& params = plan.params;
  params.num_heads = kHeads;
  params.geometry.seqlen_q = 150;
  params.cu_seqlens_q = cu_seqlens_q;
  params.out_strides = {0, kHeads * kDim, kDim};
  params.lse_strides = {0, 1, kRows};
  params.empty_lse = HUGE_VALF;
  std::vector<uint16> out(kRows * kHeads * kDim, 0x7fc0);
  std::vector<float> lse(kHeads * kRows, -7.0f);
  params.out = out.data();
  params.lse = lse.data();

  // Results of parts: random ones, some of which say that a row sees nothing.
  const auto num_slots = static_cast<std::size_t>(plan.memory.capacity);
  std::vector<float> part_lse(num_slots * kSlotRows);
  std::vector<float4> storage(num_slots * kSlotRows * kDim / 4);
  auto* const part_out = reinterpret_cast<float*>(storage.data());
  const auto normal = [&] { return static_cast<float>(below(random, 2001) - 1000) / 250.0f; };
  for (float& value : part_lse) {
    value = below(random, 3) == 0 ? (below(random, 2) == 0 ? HUGE_VALF : -HUGE_VALF) : 9 * normal();
  }
  for (std::size_t i = 0; i < num_slots * kSlotRows * kDim; ++i) part_out[i] = normal();
  plan.memory.lse = part_lse.data();
  plan.memory.out = part_out;
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {  // rows that no part sees
    const SplitTile& split = plan.tiles[static_cast<std::size_t>(i)];
    for (int part = 0; part < split.num_parts; ++part) {
      part_lse[static_cast<std::size_t>((split.first_slot + part) * kSlotRows + 5)] = -HUGE_VALF;
    }
  }

  // Every work once, the parts of a tile with slots of their own.
  const int num_items = Splits::num_items(params, plan.memory);
  REQUIRE(num_items == plan.header.num_items);
  std::vector<int> times(visits.size(), 0);
  std::vector<bool> used(num_slots, false);
  for (int index = 0; index < num_items + params.num_tiles; ++index) {
    PackedKernel::Work work;
    const int tile = Splits::describe(work, plan.memory, num_items, index);
    if (tile < 0) continue;
    const bool heavy = visits[static_cast<std::size_t>(tile)] > 1;
    CHECK(work.is_part() == heavy);
    CHECK((index < num_items) == heavy);
    ++times[static_cast<std::size_t>(tile)];
    if (!heavy) {
      CHECK((work.first_box == 0 && work.end_box == kNoBox));
      continue;
    }
    const auto slot = static_cast<std::size_t>(work.part_lse - part_lse.data()) / kSlotRows;
    CHECK(work.part_out == part_out + slot * kSlotRows * kDim);
    CHECK_FALSE(used[slot]);
    used[slot] = true;
  }
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {
    const SplitTile& split = plan.tiles[static_cast<std::size_t>(i)];
    CHECK(times[static_cast<std::size_t>(split.tile)] == split.num_parts);
  }

  gridDim.x = 2;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulation::cta.run(kSplitThreads, [&] { Splits::merge(params, plan.memory); });
  }

  // The same in double, wherever rows exist, and nothing elsewhere.
  std::vector<bool> merged(kHeads * kRows, false);
  double worst_lse = 0, worst_out = 0;
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {
    const SplitTile& split = plan.tiles[static_cast<std::size_t>(i)];
    const int in_section = split.tile % 6, section = split.tile / 6;
    const int m_block = 2 - in_section / 2, batch_pack = 2 * section + in_section % 2;
    const int batch = batch_pack / 2, pack = batch_pack % 2;
    const int seqlen_q = cu_seqlens_q[batch + 1] - cu_seqlens_q[batch];
    for (int row = 0; row < kSlotRows; ++row) {
      const int q = 64 * m_block + row % 64, head = 2 * pack + row / 64;
      if (q >= seqlen_q) continue;
      const auto slot_row = [&](int part) {
        return static_cast<std::size_t>((split.first_slot + part) * kSlotRows + row);
      };
      double sum = 0;
      double expected[kDim] = {};
      for (int part = 0; part < split.num_parts; ++part) {
        if (std::isinf(part_lse[slot_row(part)])) continue;
        const double weight = std::exp(static_cast<double>(part_lse[slot_row(part)]));
        sum += weight;
        for (int d = 0; d < kDim; ++d) {
          expected[d] +=
              weight *
              static_cast<double>(part_out[slot_row(part) * kDim + static_cast<std::size_t>(d)]);
        }
      }
      const int at = cu_seqlens_q[batch] + q;
      merged[static_cast<std::size_t>(head * kRows + at)] = true;
      const float own_lse = lse[static_cast<std::size_t>(head * kRows + at)];
      if (sum == 0) {
        CHECK(own_lse == HUGE_VALF);
      } else {
        worst_lse = std::max(worst_lse, std::fabs(static_cast<double>(own_lse) - std::log(sum)));
      }
      for (int d = 0; d < kDim; ++d) {
        const uint16 bits = out[static_cast<std::size_t>((at * kHeads + head) * kDim + d)];
        const double value = std::bit_cast<float>(static_cast<uint32>(bits) << 16);
        const double wanted = sum == 0 ? 0 : expected[d] / sum;
        worst_out = std::max(worst_out, std::fabs(value - wanted) - std::fabs(wanted) / 256);
      }
    }
  }
  CHECK(worst_lse < 1e-5);
  CHECK(worst_out < 1e-4);
  std::int64_t touched = 0;
  for (int head = 0; head < kHeads; ++head) {
    for (int at = 0; at < kRows; ++at) {
      if (merged[static_cast<std::size_t>(head * kRows + at)]) continue;
      touched += lse[static_cast<std::size_t>(head * kRows + at)] != -7.0f;
      for (int d = 0; d < kDim; ++d) {
        touched += out[static_cast<std::size_t>((at * kHeads + head) * kDim + d)] != 0x7fc0;
      }
    }
  }
  CHECK(touched == 0);
  CHECK(std::count(merged.begin(), merged.end(), true) > 100);
}

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
