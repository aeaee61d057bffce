// Planning which query tiles are split: one CTA chooses by all tiles' visits, and a warp finds what
// a tile visits, where its parts begin.
#pragma once

#include "girih/attn/scan.cuh"
#include "girih/shared/splits.cuh"

namespace girih {

// Chooses what goes first and the sizes of parts by the visits, which it marks; by one CTA of
// kSplitThreads. Until they are placed, a tile's first part has all keys.
struct ChooseSplits {
  struct Heavy {
    int tile[kMostHeavyTiles];
    int visits[kMostHeavyTiles];
  };
  struct Shared {
    uint64 cost;
    int num_heavy;
    int goal;  // 0: nothing is split
    Heavy found;
    Heavy sorted;  // the longest first
    SplitTile split[kMostHeavyTiles];
  };

  static __device__ void run(const SplitMemory& memory, const FwdParams& params,
                             int boxes_per_visit) {
    __shared__ Shared shared;
    const int thread = threadIdx.x;
    if (thread == 0) {
      shared.cost = 0;
      shared.num_heavy = 0;
    }
    __syncthreads();
    uint64 own_cost = 0;
#pragma unroll 4
    for (int tile = thread; tile < params.num_tiles; tile += kSplitThreads) {
      own_cost += split_cost(memory.visits[tile]);
    }
    atomicAdd(&shared.cost, own_cost);
    __syncthreads();
    const int share = split_share(shared.cost, memory.num_sms);
    find_heavy(shared, memory, params, heavy_limit(share));
    __syncthreads();
    const int num_heavy = min(shared.num_heavy, kMostHeavyTiles);
    sort(shared, num_heavy);
    __syncthreads();
    if (thread < 32) choose_goal(shared, memory, share, num_heavy);
    __syncthreads();
    if (thread == 0) *memory.header = lay_out(shared, memory, params, num_heavy, boxes_per_visit);
    __syncthreads();
    if (shared.goal == 0) return;
    GIRIH_ROLLED
    for (int i = 0; i < num_heavy; ++i) {
      const SplitTile split = shared.split[i];
      if (thread == 0) memory.visits[split.tile] = kGoesFirst;
      for (int part = thread; part < split.num_parts; part += kSplitThreads) {
        memory.items[split.first_item + part] = {
            split.tile, part == 0 ? 0 : kNoBox, split.num_parts > 1 ? split.first_slot + part : -1};
      }
    }
  }

 private:
  static __device__ void find_heavy(Shared& shared, const SplitMemory& memory,
                                    const FwdParams& params, int limit) {
#pragma unroll 4
    for (int tile = threadIdx.x; tile < params.num_tiles; tile += kSplitThreads) {
      const int visits = memory.visits[tile];
      if (visits <= limit) continue;
      const int place = atomicAdd(&shared.num_heavy, 1);
      if (place >= kMostHeavyTiles) continue;
      shared.found.tile[place] = tile;
      shared.found.visits[place] = visits;
    }
  }

  // In whatever order threads came, into one that is always the same.
  static __device__ void sort(Shared& shared, int num_heavy) {
    for (int i = threadIdx.x; i < num_heavy; i += kSplitThreads) {
      const int tile = shared.found.tile[i], visits = shared.found.visits[i];
      int rank = 0;
      GIRIH_ROLLED
      for (int other = 0; other < num_heavy; ++other) {
        const int more = shared.found.visits[other] - visits;
        rank += more > 0 || (more == 0 && shared.found.tile[other] < tile);
      }
      shared.sorted.tile[rank] = tile;
      shared.sorted.visits[rank] = visits;
    }
  }

  // Of the sizes, each lane tries one; by a warp.
  static __device__ void choose_goal(Shared& shared, const SplitMemory& memory, int share,
                                     int num_heavy) {
    const int lane = threadIdx.x % 32;
    static_assert(kSplitGoals == 32);
    const int* const visits = shared.sorted.visits;
    const int goal = split_goal(share, lane);
    const int time = split_time(visits, num_heavy, share, memory.num_sms, memory.capacity, goal);
    const uint32 best = __reduce_min_sync(0xffffffff, static_cast<uint32>(time));
    const int chosen = lowest_bit(__ballot_sync(0xffffffff, static_cast<uint32>(time) == best));
    const bool pays = num_heavy > 0 && time + kMergeCost < visits[0] + kSplitTileCost;
    if (lane == chosen) shared.goal = pays ? goal : 0;
  }

  // Gives parts their places, the longest first; by one thread.
  static __device__ SplitHeader lay_out(Shared& shared, const SplitMemory& memory,
                                        const FwdParams& params, int num_heavy,
                                        int boxes_per_visit) {
    SplitHeader header = memory.header_for(params);
    if (shared.goal == 0) return header;
    int slots = 0;
    GIRIH_ROLLED
    for (int i = 0; i < num_heavy; ++i) {
      const int visits = shared.sorted.visits[i];
      const int parts = num_parts(visits, shared.goal);
      const SplitTile split{shared.sorted.tile[i], header.num_items, slots, parts,
                            part_visits(visits, shared.goal) * boxes_per_visit};
      shared.split[i] = split;
      header.num_items += parts;
      if (parts < 2) continue;
      memory.tiles[header.num_split_tiles++] = split;
      slots += parts;
    }
    return header;
  }
};

// The boxes that a query tile visits, of `count`; by a whole warp, the same in all lanes. With
// `split`, which is the tile's, parts behind the first get their first boxes.
template <class Scan, class Seek>
__device__ __forceinline__ int place_parts(const Seek& seek, int count, const SplitTile* split,
                                           SplitItem* items) {
  const int lane = fresh_thread_index() % 32;
  int boxes = 0;
  Scan scan;
#pragma unroll 1
  while (true) {
    const uint32 found = scan.next_all(seek, count);
    if (found == 0) return boxes;
    if (split != nullptr && (found >> lane & 1) != 0) {
      const int rank = boxes + __popc(found & ((1u << lane) - 1));
      const int part = rank / split->boxes_per_part;
      const bool first =
          part > 0 && part < split->num_parts && rank == part * split->boxes_per_part;
      if (first) items[split->first_item + part].first_box = scan.tile_of(lane);
    }
    boxes += __popc(found);
  }
}

}  // namespace girih
