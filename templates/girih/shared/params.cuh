// What a forward kernel is launched with: FwdParams, a HeadTable, where the pattern has inputs an
// InputTable, and for fwd_sm90 tensor maps and a counter.
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
  const void* v;  // [batch, seqlen_k, num_heads_kv, head_dim_v]
  void* out;      // [batch, seqlen_q, num_heads, head_dim_v]
  float* lse;     // [batch, num_heads, seqlen_q] or [num_heads, total_q], or null
  Strides q_strides, k_strides, v_strides, out_strides;
  Strides lse_strides;  // row is 1

  // Device arrays, each may be null. Sequence b has rows [cu_seqlens_q[b], cu_seqlens_q[b + 1]) of
  // a packed q, keys likewise; of its keys the first leftpad_k[b] and those from seqused_k[b] on
  // do not exist.
  const int* cu_seqlens_q;  // [batch + 1]
  const int* cu_seqlens_k;  // [batch + 1]
  const int* seqused_k;     // [batch]
  const int* leftpad_k;     // [batch]

  // Of every sequence, in the first of these heads; the longest lengths where the arrays shorten
  // some.
  Geometry geometry;
  bool bottom_right;  // each sequence's q_start follows from its lengths
  int num_heads;

  float softmax_scale_log2;  // softmax_scale * log2(e)
  float empty_lse;           // of a row that sees nothing: -inf or +inf

  // Tiles in launch order: see attn/schedule.cuh. Where the Hopper kernel prunes they are counted
  // in series of so many of a head; elsewhere that is 1.
  int tiles_per_series;
  int num_m_blocks;
  int num_batch_heads;  // batch * num_heads
  int heads_per_section;
  int num_tiles;
};

// For each head its class, its softcap (0: none) and the numbers of its mask. One row serves every
// head when all have the same.
template <int kHeads, int kNumNumbers>
struct HeadTable {
  static constexpr int kCapacity = kHeads;
  struct Row {
    int head_class;
    float softcap;
    int numbers[max(kNumNumbers, 1)];
  };
  Row rows[kHeads];
};

}  // namespace girih
