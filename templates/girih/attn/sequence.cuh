// One sequence of a batch: its lengths, and where its rows lie.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

struct Sequence {
  Geometry geometry;
  int q_batch;  // index into the batch dimension: 0 where sequences are packed
  int q_row;    // of its first query in that batch element
  int k_batch;
  int k_row;
};

// Lengths beyond the longest that the launch was told of count as that: nothing is read outside
// the tensors as long as cu_seqlens stay within them.
__device__ __forceinline__ Sequence sequence_of(const FwdParams& params, int batch) {
  Sequence sequence{params.geometry, batch, 0, batch, 0};
  Geometry& geometry = sequence.geometry;
  if (params.cu_seqlens_q != nullptr) {
    sequence.q_batch = 0;
    sequence.q_row = params.cu_seqlens_q[batch];
    geometry.seqlen_q = min(geometry.seqlen_q, params.cu_seqlens_q[batch + 1] - sequence.q_row);
  }
  if (params.cu_seqlens_k != nullptr) {
    sequence.k_batch = 0;
    sequence.k_row = params.cu_seqlens_k[batch];
    geometry.seqlen_k = min(geometry.seqlen_k, params.cu_seqlens_k[batch + 1] - sequence.k_row);
  }
  if (params.seqused_k != nullptr) {
    geometry.seqlen_k = min(geometry.seqlen_k, params.seqused_k[batch]);
  }
  if (params.leftpad_k != nullptr) {
    const int padding = max(params.leftpad_k[batch], 0);
    sequence.k_row += padding;
    geometry.seqlen_k -= padding;
  }
  geometry.seqlen_q = max(geometry.seqlen_q, 0);
  geometry.seqlen_k = max(geometry.seqlen_k, 0);
  if (params.bottom_right) {
    geometry.q_start = geometry.k_start + geometry.seqlen_k - geometry.seqlen_q;
  }
  return sequence;
}

__device__ __forceinline__ int64 offset(const Strides& strides, int batch, int row, int head) {
  return batch * strides.batch + row * strides.row + head * strides.head;
}

}  // namespace girih
