// What a forward kernel is launched with: two parameters, FwdParams and a HeadTable.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

// Distances in elements; a row's head_dim elements are contiguous.
struct Strides {
  int64 batch;
  int64 row;
  int64 head;
};

struct FwdParams {
  const void* q;  // [batch, seqlen_q, num_heads, head_dim], by its strides
  const void* k;  // [batch, seqlen_k, num_heads_kv, head_dim]
  const void* v;
  void* out;   // as q
  float* lse;  // [batch, num_heads, seqlen_q], or null
  Strides q_strides, k_strides, v_strides, out_strides;

  Geometry geometry;
  int num_heads;
  int group_size;  // num_heads / num_heads_kv

  float softmax_scale;
  float softmax_scale_log2;  // softmax_scale * log2(e)

  // Tiles in launch order: see attn/schedule.cuh.
  int num_m_blocks;
  int num_batch_heads;  // batch * num_heads
  int heads_per_section;
  int num_tiles;
};

// For each head its class, then the numbers of its mask. One row serves every head when all have
// the same mask.
template <int kHeads, int kNumNumbers>
struct HeadTable {
  static constexpr int kCapacity = kHeads;
  int rows[kCapacity][1 + kNumNumbers];
};

}  // namespace girih
