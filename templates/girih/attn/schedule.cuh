// The order in which query tiles are started.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

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
__device__ __forceinline__ QueryTile query_tile(const FwdParams& params, uint32 tile,
                                                int heads_per_tile) {
  const uint32 num_heads = params.num_heads / heads_per_tile;  // unsigned: divided faster
  const uint32 num_batch_heads = params.num_batch_heads;
  const uint32 heads_per_section = params.heads_per_section;
  const uint32 tiles_per_section = params.num_m_blocks * heads_per_section;
  const uint32 section = tile / tiles_per_section;
  const uint32 first_head = section * heads_per_section;
  const uint32 section_heads = min(heads_per_section, num_batch_heads - first_head);
  const uint32 rest = tile - section * tiles_per_section;
  const uint32 batch_head = first_head + rest % section_heads;
  const uint32 batch = batch_head / num_heads;
  return {static_cast<int>(params.num_m_blocks - 1 - rest / section_heads),
          static_cast<int>((batch_head - batch * num_heads) * heads_per_tile),
          static_cast<int>(batch)};
}

}  // namespace girih
