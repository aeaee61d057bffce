// The order in which query tiles are started.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/params.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

// Whether all heads have a causal window and nothing else.
template <class Classes>
constexpr bool kCausalWindows = false;
template <>
constexpr bool kCausalWindows<HeadClasses<All<Leaf<Causal>, Leaf<Window>>>> = true;

struct QueryTile {
  int m_block;
  int head;
  int batch;
};

// A tile may hold the same rows of several query heads with one KV head; then "head" below is such
// a pack.
//
// Heads go in sections whose K and V fit the L2 cache together. Within a section the last rows,
// which see most keys under causal masks, come first (longest processing time first), so that the
// short tiles fill the gaps at the end. Heads of different kinds are not ranked: at one m_block the
// tiles of a streaming head start beside those of a dense one and end sooner.
// Where the Hopper kernel prunes, a tile below is a series of tiles_per_series tiles of a head,
// which a CTA takes one after the other (KeyOrder). Where all heads have a causal window
// (kShortLast), only the first rows of a sequence are short: they come last, behind all sections,
// where sequences are long.
template <bool kShortLast = false>
__device__ __forceinline__ QueryTile query_tile(const FwdParams& params, uint32 tile,
                                                int heads_per_tile) {
  const uint32 num_heads = params.num_heads / heads_per_tile;  // unsigned: divided faster
  const uint32 num_batch_heads = params.num_batch_heads;
  const uint32 num_m_blocks = params.num_m_blocks;
  // Of each head: few, for their order ignores who shares keys.
  const uint32 num_last = kShortLast ? min(num_m_blocks / 16, 8u) : 0;
  const uint32 num_first_tiles = (num_m_blocks - num_last) * num_batch_heads;
  const bool last = kShortLast && tile >= num_first_tiles;
  if (last) tile -= num_first_tiles;
  const uint32 heads_per_section =
      last ? num_batch_heads : static_cast<uint32>(params.heads_per_section);
  const uint32 end_m_block = last ? num_last : num_m_blocks;
  const uint32 tiles_per_section = (last ? num_last : num_m_blocks - num_last) * heads_per_section;
  const uint32 section = tile / tiles_per_section;
  const uint32 first_head = section * heads_per_section;
  const uint32 section_heads = min(heads_per_section, num_batch_heads - first_head);
  const uint32 rest = tile - section * tiles_per_section;
  const uint32 batch_head = first_head + rest % section_heads;
  const uint32 batch = batch_head / num_heads;
  return {static_cast<int>(end_m_block - 1 - rest / section_heads),
          static_cast<int>((batch_head - batch * num_heads) * heads_per_tile),
          static_cast<int>(batch)};
}

// The query tile of a CTA behind the one with an index. The first ones are the CTAs' by number, the
// others go to whoever asks next; without a counter they go round, back and forth, so that
// neither the order of their lengths nor a rhythm of heads favours some CTAs. Who takes the last
// tile leaves the counter as the next launch needs it.
__device__ __forceinline__ int take_query_tile(const FwdParams& params, int num_items, int* counter,
                                               int index) {
  if (counter == nullptr) {
    const int round = index / gridDim.x + 1;
    const int place = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    return round * gridDim.x + place;
  }
  int taken = 0;
  if (fresh_thread_index() % 32 == 0) {
    taken = atomicAdd(counter, 1);
    if (taken == params.num_tiles + num_items - 1) *counter = 0;
  }
  return gridDim.x + __shfl_sync(0xffffffff, taken, 0);
}

}  // namespace girih
