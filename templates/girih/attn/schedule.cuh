// The order in which query tiles are started.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

struct QueryTile {
  int m_block;
  int head;
  int batch;
};

// Heads go in sections whose K and V fit the L2 cache together. Within a section the last rows,
// which see most keys under causal masks, come first (longest processing time first), so that the
// short tiles fill the gaps at the end. Heads of different kinds are not ranked: at one m_block the
// tiles of a streaming head start beside those of a dense one and end sooner.
__device__ __forceinline__ QueryTile query_tile(const FwdParams& params, int tile) {
  const int tiles_per_section = params.num_m_blocks * params.heads_per_section;
  const int section = tile / tiles_per_section;
  const int first_head = section * params.heads_per_section;
  const int section_heads = min(params.heads_per_section, params.num_batch_heads - first_head);
  const int rest = tile - section * tiles_per_section;
  const int batch_head = first_head + rest % section_heads;
  return {params.num_m_blocks - 1 - rest / section_heads, batch_head % params.num_heads,
          batch_head / params.num_heads};
}

}  // namespace girih
