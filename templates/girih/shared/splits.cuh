// Query tiles whose visits alone outweigh what each multiprocessor has to do are cut into parts of
// their key tiles; those and other long tiles go first, and a last kernel merges the parts'
// results. Here: where the plan of that lies, and which parts are best. Results are right whatever
// the plan: the parts of a tile are ranges of keys that together are all keys, however long the
// sequences have become since.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

constexpr int kSplitThreads = 256;  // of a CTA that plans or merges; launch bounds ask for two CTAs

// In visits of a key tile. A query tile or a part costs so many beyond its own: describing it, and
// filling and draining the pipeline. Merging costs a launch, about.
constexpr int kSplitTileCost = 3;
constexpr int kMergeCost = 8;
constexpr int kLeastHeavyVisits = 32;  // tiles with no more stay where they are
constexpr int kLeastPartVisits = 8;
constexpr int kMostParts = 64;        // of a tile
constexpr int kMostHeavyTiles = 512;  // there are fewer than two for each multiprocessor

constexpr int kGoesFirst = -1;  // stands for the visits of a tile that does

constexpr int kNoBox = 2147483647;

// What goes first: a part of a tile, which has the boxes of keys from its first one to before the
// first one of the tile's next part, or a whole tile.
struct SplitItem {
  int tile;
  int first_box;
  int slot;  // of the part's result; negative: the whole tile
};

struct SplitTile {
  int tile;
  int first_item;
  int first_slot;
  int num_parts;
  int part_visits;
};

// Begins with what the plan was made for: a launch whose tiles have other numbers goes without.
struct SplitHeader {
  const int* visits;
  int num_tiles, num_m_blocks, heads_per_section, capacity;

  int num_items;
  int num_split_tiles;
  uint64 cost;  // of all tiles
};

// Where everything lies in global memory.
struct SplitMemory {
  SplitHeader* header;  // null: nothing is split
  int* visits;          // [num_tiles], of key tiles
  SplitTile* tiles;     // [kMostHeavyTiles]
  SplitItem* items;     // [capacity + kMostHeavyTiles]; parts of one tile are neighbours
  float* lse;           // [capacity, block_m], natural
  float* out;           // [capacity, block_m, head_dim_v], normalised
  int capacity;         // slots
  int num_sms;
  int most_visits;  // of a tile, possibly

  // A header for this launch, without items.
  GIRIH_HD SplitHeader header_for(const FwdParams& params) const {
    return {visits, params.num_tiles, params.num_m_blocks, params.heads_per_section, capacity, 0, 0,
            0};
  }
  GIRIH_HD bool is_for(const FwdParams& params) const {
    if (header == nullptr) return false;
    const SplitHeader expected = header_for(params);
    return header->visits == expected.visits && header->num_tiles == expected.num_tiles &&
           header->num_m_blocks == expected.num_m_blocks &&
           header->heads_per_section == expected.heads_per_section &&
           header->capacity == expected.capacity;
  }
};

// The steps of planning, each a launch; before the first the header is zero.
enum class SplitPhase : int { count, choose };

// Parts that a launch may have: 0 where no tile can have enough visits. Twice the multiprocessors
// are enough for any tiles.
GIRIH_HD constexpr int split_capacity(int num_sms, int num_tiles, int most_visits) {
  if (most_visits <= kLeastHeavyVisits) return 0;
  const int parts = min(ceil_div(most_visits, kLeastPartVisits), kMostParts);
  return num_tiles > 2 * num_sms / parts ? 2 * num_sms : num_tiles * parts;
}

GIRIH_HD constexpr int split_cost(int visits) { return visits + kSplitTileCost; }

// What each multiprocessor has to do, of a cost of all tiles below 2^48, and at most 2^27. Divided
// in two steps: a division of 64 bits would be a call.
GIRIH_HD constexpr int split_share(uint64 cost, int num_sms) {
  const uint32 high = static_cast<uint32>(cost >> 16), low = static_cast<uint32>(cost & 0xffff);
  const uint32 divisor = static_cast<uint32>(num_sms);
  const uint32 quotient = high / divisor;
  const uint32 rest = (high - quotient * divisor) << 16 | low;
  if (quotient >= 2048) return 1 << 27;
  return static_cast<int>((quotient << 16) + (rest + divisor - 1) / divisor);
}

// Tiles with more visits go first, and may be cut.
GIRIH_HD constexpr int heavy_limit(int share) { return max(share / 2, kLeastHeavyVisits); }

// The sizes of parts to choose from, in visits: from 4/3 of the share down to a fifth of it.
constexpr int kSplitGoals = 32;
GIRIH_HD constexpr int split_goal(int share, int index) {
  return max(8 * share / (6 + index), kLeastPartVisits);
}

// The size of all parts of a tile but the last, which may be smaller.
GIRIH_HD constexpr int part_visits(int visits, int goal) {
  return ceil_div(visits, min(ceil_div(visits, goal), kMostParts));
}
GIRIH_HD constexpr int num_parts(int visits, int goal) {
  return ceil_div(visits, part_visits(visits, goal));
}

// How long a launch takes, about, in visits, whose heavy tiles are cut so: every multiprocessor
// takes one of what goes first after the other, and what they leave is filled by other tiles.
// kNoTime where there is no room for so many parts.
constexpr int kNoTime = 2147483647;
GIRIH_HD constexpr int split_time(const int* visits, int num_heavy, int share, int num_sms,
                                  int capacity, int goal) {
  int num_items = 0, num_slots = 0, longest = 0;
  GIRIH_ROLLED
  for (int i = 0; i < num_heavy; ++i) {
    const int parts = num_parts(visits[i], goal);
    num_items += parts;
    num_slots += parts > 1 ? parts : 0;
    longest = max(longest, part_visits(visits[i], goal));
  }
  if (num_slots > capacity) return kNoTime;
  const int rounds = max(ceil_div(num_items, num_sms), 1);
  return max(rounds * (longest + kSplitTileCost),
             share + ceil_div(num_slots * kSplitTileCost, num_sms));
}

}  // namespace girih
