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
using emulation::below;

constexpr int kNumSms = 132;
int split_tiles_seen = 0;

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
    memory.most_visits = most_visits;
    for (const int v : visits) header.cost += static_cast<uint64>(split_cost(v));
  }

  void choose() {
    emulation::cta.run(kSplitThreads, [&] { ChooseSplits::run(memory, params); });
    check();
  }

  // Parts have slots of their own, and tiles that go first are marked.
  void check() const {
    REQUIRE(memory.is_for(params) == (header.num_items > 0));
    REQUIRE(items.back().tile == -7);  // behind the last
    std::vector<int> slots;
    for (int i = 0; i < header.num_items; ++i) {
      const SplitItem& item = items[static_cast<std::size_t>(i)];
      REQUIRE(visits[static_cast<std::size_t>(item.tile)] == kGoesFirst);
      if (item.slot >= 0) slots.push_back(item.slot);
    }
    std::sort(slots.begin(), slots.end());
    for (std::size_t i = 0; i < slots.size(); ++i) REQUIRE(slots[i] == static_cast<int>(i));
    REQUIRE(static_cast<int>(slots.size()) <= memory.capacity);
  }

  int end_of(int item) const {
    const auto i = static_cast<std::size_t>(item);
    const bool last = item + 1 == header.num_items || items[i + 1].tile != items[i].tile;
    return last ? kNoBox : items[i + 1].first_box;
  }
};

struct SplittingConfig {
  static constexpr bool kSplits = true;
};

// What planning asks of a kernel. Head i has class i % 4; packs are of class 0 alone.
template <int kHeads, int kBox>
struct ListKernel {
  struct Work : PartOfTile<SplittingConfig> {};
  using Element = Bf16;
  using Classes = HeadClasses<Leaf<Blocks>, All<Leaf<Causal>, Leaf<Blocks>>,
                              With<Any<Leaf<Window>, Leaf<Blocks>>, Alibi>, Leaf<Causal>>;
  using Heads = HeadTable<4, Classes::kNumNumbers>;
  static constexpr int kBlockM = 128, kBlockN = 128, kScanBox = kBox, kHeadDimV = 64;
  static constexpr int kHeadsPerTile = kHeads, kRowsPerHead = kBlockM / kHeads;
};

struct Blocking {
  int q, kv;
};

// Random lists of two sequences and four heads, planned and compared with what every tile's rows
// list, column by column.
template <class Kernel>
void check_lists(std::mt19937& random, Blocking size) {
  constexpr int kHeads = 4, kBatch = 2, kPack = Kernel::kHeadsPerTile;
  const int seqlen_q = 1 + below(random, 3000), seqlen_k = 4200 + below(random, 60000);
  const int rows = ceil_div(seqlen_q, size.q), columns = ceil_div(seqlen_k, size.kv);
  const int words = ceil_div(columns, 32) + 1;
  std::vector<uint32> bits(static_cast<std::size_t>(kBatch * kHeads * rows * words));
  for (int row = 0; row < kBatch * kHeads * rows; ++row) {
    const int percent = below(random, 12) == 0 ? 50 + below(random, 51) : below(random, 2);
    for (int i = 0; i < 32 * words; ++i) {  // bits behind the last column mean nothing
      if (below(random, 100) < percent) {
        bits[static_cast<std::size_t>(row * words + i / 32)] |= 1u << i % 32;
      }
    }
  }
  InputView view{bits.data(), int64{kHeads} * rows * words, int64{rows} * words, words, kPack};
  const int used_k[] = {seqlen_k, below(random, seqlen_k)};
  const int cu_seqlens_q[] = {0, seqlen_q, seqlen_q + below(random, seqlen_q)};

  FwdParams params{};
  params.geometry.seqlen_q = seqlen_q;
  params.geometry.seqlen_k = seqlen_k;
  params.bottom_right = true;
  params.cu_seqlens_q = cu_seqlens_q;
  params.seqused_k = used_k;
  params.num_heads = kHeads;
  params.num_batch_heads = params.heads_per_section = kBatch * kHeads / kPack;
  params.num_m_blocks = ceil_div(seqlen_q, Kernel::kRowsPerHead);
  params.num_tiles = params.num_m_blocks * params.num_batch_heads;
  typename Kernel::Heads heads{};
  for (int head = 0; head < kHeads; ++head) {
    const int of = kPack > 1 ? 0 : head;
    heads.rows[head].head_class = of;
    int* const numbers = heads.rows[head].numbers + (of == 2 ? 2 : 0);
    if (of < 3) numbers[0] = 0, numbers[1] = size.q, numbers[2] = size.kv;
  }

  Planned plan(std::vector<int>(static_cast<std::size_t>(params.num_tiles), 123456789),
               ceil_div(seqlen_k, Kernel::kBlockN));
  if (plan.memory.capacity == 0) return;
  plan.params = params;
  plan.header = {};
  const auto run = [&](SplitPhase phase, int num_ctas) {
    gridDim.x = num_ctas;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      emulation::cta.run(kSplitThreads, [&] {
        SplitsSm90<Kernel>::plan(params, heads, &view, plan.memory, phase);
      });
    }
    blockIdx.x = 0;
  };
  run(SplitPhase::count, 3);

  // The columns that each tile lists, in order.
  std::vector<std::vector<int>> listed;
  uint64 cost = 0;
  for (int tile = 0; tile < params.num_tiles; ++tile) {
    const int m_block = params.num_m_blocks - 1 - tile / params.num_batch_heads;
    const int head = tile % params.num_batch_heads * kPack % kHeads;
    const int batch = tile % params.num_batch_heads * kPack / kHeads;
    const int own_q = cu_seqlens_q[batch + 1] - cu_seqlens_q[batch], own_k = used_k[batch];
    const int first = m_block * Kernel::kRowsPerHead;
    std::vector<int>& own = listed.emplace_back();
    const int end = std::min(first + Kernel::kRowsPerHead, own_q);
    if (first < end) {
      const int plane = batch * kHeads + head / kPack;
      const bool causal = heads.rows[head].head_class == 1;
      const int last_key = causal ? std::min(own_k, end + own_k - own_q) - 1 : own_k - 1;
      for (int c = 0; c * size.kv <= last_key && heads.rows[head].head_class < 3; ++c) {
        bool any = false;
        for (int row = first / size.q; row <= (end - 1) / size.q; ++row) {
          const auto word = static_cast<std::size_t>((plane * rows + row) * words + c / 32);
          any |= (bits[word] >> c % 32 & 1) != 0;
        }
        if (any) own.push_back(c);
      }
      const int keys = heads.rows[head].head_class == 3  // causal, without a list
                           ? std::clamp(end + own_k - own_q, 0, own_k)
                           : static_cast<int>(own.size()) * size.kv;
      cost += static_cast<uint64>(split_cost(ceil_div(keys, Kernel::kBlockN)));
    }
    REQUIRE(plan.visits[static_cast<std::size_t>(tile)] ==
            ceil_div(static_cast<int>(own.size()) * size.kv, Kernel::kBlockN));
  }
  REQUIRE(plan.header.cost == cost);

  const std::vector<int> visits = plan.visits;
  run(SplitPhase::choose, 1);
  plan.check();
  std::vector<int> split_of(visits.size(), -1);
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {
    const SplitTile& split = plan.tiles[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(split.tile);
    REQUIRE(split_of[tile] == -1);
    split_of[tile] = i;
    REQUIRE(split.num_parts >= 2);
    REQUIRE(split.num_parts <= kMostParts);
    const std::vector<int>& own = listed[tile];
    const int size_of_part = std::max(split.part_visits * Kernel::kBlockN / size.kv, 1);
    for (int part = 0; part < split.num_parts; ++part) {
      const SplitItem& item = plan.items[static_cast<std::size_t>(split.first_item + part)];
      REQUIRE(item.tile == split.tile);
      REQUIRE(item.slot == split.first_slot + part);
      const auto first = static_cast<std::size_t>(part * size_of_part);
      REQUIRE(first < own.size());
      REQUIRE(item.first_box == (part == 0 ? 0 : own[first] * size.kv / Kernel::kScanBox));
    }
    REQUIRE(static_cast<int>(own.size()) <= split.num_parts * size_of_part);
  }
  // Every tile goes once: in parts, first, or in its turn.
  std::vector<int> first(visits.size(), 0);
  for (int i = 0; i < plan.header.num_items; ++i) {
    const SplitItem& item = plan.items[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(item.tile);
    REQUIRE((item.slot >= 0) == (split_of[tile] >= 0));
    ++first[tile];
    if (item.slot < 0) REQUIRE(first[tile] == 1);
  }
  for (std::size_t tile = 0; tile < first.size(); ++tile) {
    REQUIRE(plan.visits[tile] == (first[tile] > 0 ? kGoesFirst : visits[tile]));
    if (split_of[tile] >= 0) {
      REQUIRE(first[tile] == plan.tiles[static_cast<std::size_t>(split_of[tile])].num_parts);
    }
  }
  split_tiles_seen += plan.header.num_split_tiles;
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
  plan.choose();
  std::vector<int> left = visits;
  std::vector<int> part_visits(visits.size(), 0);
  for (int i = 0; i < plan.header.num_split_tiles; ++i) {
    const SplitTile& tile = plan.tiles[static_cast<std::size_t>(i)];
    part_visits[static_cast<std::size_t>(tile.tile)] = tile.part_visits;
  }
  for (int i = 0; i < plan.header.num_items; ++i) {
    const SplitItem& item = plan.items[static_cast<std::size_t>(i)];
    const auto tile = static_cast<std::size_t>(item.tile);
    const int part = item.slot < 0 ? visits[tile] : min(left[tile], part_visits[tile]);
    split.push_back(split_cost(part));
    left[tile] -= part;
    REQUIRE(left[tile] >= 0);
  }
  // They come in any order; the longest last is worst.
  std::sort(split.begin(), split.end());
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
  struct Work : PartOfTile<SplittingConfig> {};
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
  plan.choose();
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
    const int tile = Splits::describe(work, params, plan.memory, num_items, index);
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
  int counter = 7;
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
    emulation::cta.run(kSplitThreads, [&] { Splits::merge(params, plan.memory, &counter); });
  }
  CHECK(counter == 0);

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

TEST_CASE("parts of a split tile begin where as many blocks are listed in each but the last") {
  std::mt19937 random(1);
  split_tiles_seen = 0;
  for (int i = 0; i < 6; ++i) {
    check_lists<ListKernel<1, 128>>(random, {128, 128});
    check_lists<ListKernel<1, 32>>(random, {128, 32});
    check_lists<ListKernel<1, 64>>(random, {64, 128});
    check_lists<ListKernel<1, 128>>(random, {16, 64});
    check_lists<ListKernel<2, 16>>(random, {64, 16});
    check_lists<ListKernel<2, 64>>(random, {32, 64});
  }
  CHECK(split_tiles_seen > 50);
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
  plan.choose();
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
