// Planning which query tiles are split, by the bits of block lists alone: what else hides or shows
// keys changes how even the parts are, nothing else.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/modifiers.cuh"
#include "girih/shared/splits.cuh"

namespace girih {

// Where in a structure's numbers those of its first block list are; -1 where it has none.
template <class Structure>
constexpr int kListAt = -1;
template <uint32 kFromInputs>
constexpr int kListAt<Leaf<Blocks, kFromInputs>> = 0;
template <class... Operands>
GIRIH_HD constexpr int list_among() {
  int found = -1, numbers = 0;
  ((found = found < 0 && kListAt<Operands> >= 0 ? numbers + kListAt<Operands> : found,
    numbers += Operands::kNumNumbers),
   ...);
  return found;
}
template <class... Operands>
constexpr int kListAt<All<Operands...>> = list_among<Operands...>();
template <class... Operands>
constexpr int kListAt<Any<Operands...>> = list_among<Operands...>();
template <class Mask, class... Modifiers>
constexpr int kListAt<With<Mask, Modifiers...>> = kListAt<Mask>;

// Whether it shows nothing behind the diagonal.
template <class Structure>
constexpr bool kEndsAtDiagonal = false;
template <>
constexpr bool kEndsAtDiagonal<Leaf<Causal>> = true;
template <class... Operands>
constexpr bool kEndsAtDiagonal<All<Operands...>> = (kEndsAtDiagonal<Operands> || ...);
template <class Mask, class... Modifiers>
constexpr bool kEndsAtDiagonal<With<Mask, Modifiers...>> = kEndsAtDiagonal<Mask>;

// The columns of a block list that some row of a query tile may see.
struct TileColumns {
  BitRows rows{};  // as many columns as may be visible; without a list none
  int kv_block = 1;
  bool is_listed = false;
  int num_keys = 0;  // that causality alone lets it see

  // Of the rows of a head, by its class and numbers.
  template <class... Structures>
  static __device__ TileColumns of(HeadClasses<Structures...>, int head_class, const int* numbers,
                                   const Geometry& g, QueryRows rows) {
    int list_at = -1;
    bool ends_at_diagonal = false;
    int index = 0;
    ((head_class == index++
          ? void((list_at = kListAt<Structures>, ends_at_diagonal = kEndsAtDiagonal<Structures>))
          : void()),
     ...);
    TileColumns columns;
    if (rows.begin >= rows.end) return columns;
    columns.num_keys =
        ends_at_diagonal ? min(max(g.diagonal(rows.end - 1) + 1, 0), g.seqlen_k) : g.seqlen_k;
    columns.is_listed = list_at >= 0;
    if (!columns.is_listed) return columns;
    const Blocks blocks(numbers + list_at);
    columns.rows = blocks.bit_rows(g, rows);
    columns.kv_block = blocks.kv_block;
    columns.rows.num_columns =
        min(columns.rows.num_columns, ceil_div(columns.num_keys, blocks.kv_block));
    return columns;
  }

  // How many there are; by a whole warp, the same in all lanes. With `split`, which is the tile's,
  // its parts behind the first begin where they have visits of block_n keys, in boxes.
  __device__ int walk(const SplitTile* split, SplitItem* items, int block_n, int box) const {
    const int lane = threadIdx.x % 32;
    const int step = split == nullptr ? 1 : max(split->part_visits * block_n / kv_block, 1);
    int total = 0;
#pragma unroll 1
    for (int first = 0; 32 * first < rows.num_columns; first += 32) {
      const int w = first + lane;
      uint32 word = 0;
#pragma unroll 1
      for (int row = 0; row < rows.num_rows && 32 * w < rows.num_columns; ++row) {
        word |= rows.first_row[int64{row} * rows.row_stride + w];
      }
      word &= KeyWord{32 * w}.below(rows.num_columns);
      const int end = sum_up_to_lane(__popc(word));
      if (split != nullptr) {
        int rank = total + end - __popc(word);
        int part = ceil_div(rank, step);
#pragma unroll 1
        for (; word != 0 && part < split->num_parts; word &= word - 1, ++rank) {
          if (rank < part * step) continue;
          const int column = 32 * w + lowest_bit(word);
          if (part > 0) items[split->first_item + part].first_box = column * kv_block / box;
          ++part;
        }
      }
      total += __shfl_sync(0xffffffff, end, 31);
    }
    return total;
  }
};

// Chooses what goes first and the sizes of parts by the visits, which it marks; by one CTA of
// kSplitThreads. Until they are placed, a tile's first part has all keys.
struct ChooseSplits {
  struct Shared {
    int num_heavy, num_items, num_slots, num_split_tiles;
    int goal;  // 0: nothing is split
    int tile[kMostHeavyTiles];
    int visits[kMostHeavyTiles];
  };

  // False where nothing is split.
  static __device__ bool run(const SplitMemory& memory, const FwdParams& params) {
    __shared__ Shared shared;
    const int thread = threadIdx.x;
    const int share = split_share(memory.header->cost, memory.num_sms);
    const int limit = heavy_limit(share);
    if (limit >= memory.most_visits) return false;
    if (thread == 0) {
      shared.num_heavy = shared.num_items = shared.num_slots = shared.num_split_tiles = 0;
    }
    __syncthreads();
#pragma unroll 4
    for (int tile = thread; tile < params.num_tiles; tile += kSplitThreads) {
      const int visits = memory.visits[tile];
      if (visits <= limit) continue;
      const int place = atomicAdd(&shared.num_heavy, 1);
      if (place >= kMostHeavyTiles) continue;
      shared.tile[place] = tile;
      shared.visits[place] = visits;
    }
    __syncthreads();
    const int num_heavy = min(shared.num_heavy, kMostHeavyTiles);
    if (thread < 32) choose_goal(shared, memory, share, num_heavy);
    __syncthreads();
    const int goal = shared.goal;
    if (goal == 0) return false;
#pragma unroll 1
    for (int i = thread; i < num_heavy; i += kSplitThreads) {
      const int tile = shared.tile[i], visits = shared.visits[i];
      const int parts = num_parts(visits, goal);
      const int first_item = atomicAdd(&shared.num_items, parts);
      const int first_slot = parts > 1 ? atomicAdd(&shared.num_slots, parts) : -1;
      memory.visits[tile] = kGoesFirst;
      memory.items[first_item] = {tile, 0, first_slot};
#pragma unroll 1
      for (int part = 1; part < parts; ++part) {
        memory.items[first_item + part] = {tile, kNoBox, first_slot + part};
      }
      if (parts > 1) {
        memory.tiles[atomicAdd(&shared.num_split_tiles, 1)] = {tile, first_item, first_slot, parts,
                                                               part_visits(visits, goal)};
      }
    }
    __syncthreads();
    if (thread == 0) {
      SplitHeader header = memory.header_for(params);
      header.num_items = shared.num_items;
      header.num_split_tiles = shared.num_split_tiles;
      *memory.header = header;
    }
    __syncthreads();
    return true;
  }

 private:
  // Of the sizes, each lane tries one; by a warp.
  static __device__ void choose_goal(Shared& shared, const SplitMemory& memory, int share,
                                     int num_heavy) {
    const int lane = threadIdx.x % 32;
    static_assert(kSplitGoals == 32);
    int longest = 0;
#pragma unroll 1
    for (int i = lane; i < num_heavy; i += 32) longest = max(longest, shared.visits[i]);
    longest = __reduce_max_sync(0xffffffff, longest);
    const int goal = split_goal(share, lane);
    const int time =
        split_time(shared.visits, num_heavy, share, memory.num_sms, memory.capacity, goal);
    const int best = __reduce_min_sync(0xffffffff, time);
    const int chosen = lowest_bit(__ballot_sync(0xffffffff, time == best));
    if (lane == chosen) shared.goal = time < split_cost(longest) - kMergeCost ? goal : 0;
  }
};

}  // namespace girih
