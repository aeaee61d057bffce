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
__device__ __forceinline__ QueryTile query_tile(const FwdParams& params, int tile,
                                                int heads_per_tile) {
  const int tiles_per_section = params.num_m_blocks * params.heads_per_section;
  const int section = tile / tiles_per_section;
  const int first_head = section * params.heads_per_section;
  const int section_heads = min(params.heads_per_section, params.num_batch_heads - first_head);
  const int rest = tile - section * tiles_per_section;
  const int batch_head = first_head + rest % section_heads;
  const int num_heads = params.num_heads / heads_per_tile;
  return {params.num_m_blocks - 1 - rest / section_heads, batch_head % num_heads * heads_per_tile,
          batch_head / num_heads};
}

}  // namespace girih
