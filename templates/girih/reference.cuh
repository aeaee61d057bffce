// Attention of single rows in float64, one CTA a row: what fast kernels are checked against where
// the CPU would be too slow. It knows no patterns: which keys a row sees arrives as bits. Beside
// the result it computes the row as a naive implementation in the tensors' own precision would,
// which says how much error that precision costs anyway.
//
// The host includes this header for the parameters.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

constexpr int kReferenceThreads = 256;
constexpr int kReferenceMaxHeadDim = kReferenceThreads;

struct ReferenceRow {
  int b;
  int h;  // query head
  int q;
};

struct ReferenceStrides {  // in elements; multiples of 8
  int64 row;
  int64 head;
};

// Where the first row of a sequence lies in each tensor, in elements; multiples of 8.
struct ReferenceStart {
  int64 q;
  int64 k;
  int64 v;
};

struct ReferenceParams {
  const uint16* q;  // of a sequence [seqlen_q, num_heads, head_dim], by its start and strides
  const uint16* k;  // [seqlen_k, num_heads_kv, head_dim]
  const uint16* v;  // [seqlen_k, num_heads_kv, head_dim_v]
  ReferenceStrides q_strides, k_strides, v_strides;
  const ReferenceStart* starts;  // [batch]
  const float* softcaps;         // [num_heads], 0 for none; or null
  const ReferenceRow* rows;      // [num_rows]
  const uint32* masks;        // [num_rows, mask_words]: bit k % 32 of word k / 32; zeros after the
                              // last key
  double* probabilities;      // [gridDim.x, seqlen_k], scratch
  float* probabilities_lowp;  // [gridDim.x, seqlen_k], scratch
  double* out;                // [num_rows, head_dim_v]
  double* lse;                // [num_rows]
  float* naive_lowp;          // [num_rows, head_dim_v]
  int num_rows;
  int seqlen_k;  // of the longest sequence
  int mask_words;
  int head_dim;    // a multiple of 8, at most kReferenceMaxHeadDim
  int head_dim_v;  // likewise
  int group_size;
  int is_bfloat16;  // else float16
  float softmax_scale;
};

#ifdef __CUDACC__

__device__ inline float reference_widen(uint16 bits, bool is_bfloat16) {
  if (is_bfloat16) return __uint_as_float(static_cast<uint32>(bits) << 16);
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Rounded to the tensors' type, to nearest even. Finite values only.
__device__ inline float reference_round(float value, bool is_bfloat16) {
  if (is_bfloat16) {
    const uint32 bits = __float_as_uint(value);
    return __uint_as_float((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
  }
  uint16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return reference_widen(bits, false);
}

// The same result in every thread. All threads of the CTA take part.
template <class Value, class Combine>
__device__ Value block_reduce(Value value, Combine combine) {
  __shared__ Value partial[kReferenceThreads];
  const int thread = threadIdx.x;
  partial[thread] = value;
  __syncthreads();
  for (int width = kReferenceThreads / 2; width > 0; width /= 2) {
    if (thread < width) {
      partial[thread] = combine(partial[thread], partial[thread + width]);
    }
    __syncthreads();
  }
  const Value result = partial[0];
  __syncthreads();
  return result;
}

struct alignas(16) ReferenceVector {
  uint16 element[8];
};

__device__ inline void reference_attend(const ReferenceParams& p, int item) {
  __shared__ double q_row[kReferenceMaxHeadDim];
  __shared__ double columns[kReferenceThreads];
  __shared__ float columns_lowp[kReferenceThreads];

  const bool is_bfloat16 = p.is_bfloat16 != 0;
  const int thread = threadIdx.x;
  const ReferenceRow row = p.rows[item];
  const int head_kv = row.h / p.group_size;
  const uint32* mask = p.masks + static_cast<int64>(item) * p.mask_words;
  const ReferenceStart start = p.starts[row.b];
  const uint16* q = p.q + start.q + row.q * p.q_strides.row + row.h * p.q_strides.head;
  const uint16* k = p.k + start.k + head_kv * p.k_strides.head;
  const uint16* v = p.v + start.v + head_kv * p.v_strides.head;
  const float softcap = p.softcaps == nullptr ? 0.0f : p.softcaps[row.h];
  double* probabilities = p.probabilities + static_cast<int64>(blockIdx.x) * p.seqlen_k;
  float* probabilities_lowp = p.probabilities_lowp + static_cast<int64>(blockIdx.x) * p.seqlen_k;
  double* out = p.out + static_cast<int64>(item) * p.head_dim_v;
  float* naive_lowp = p.naive_lowp + static_cast<int64>(item) * p.head_dim_v;

  for (int column = thread; column < p.head_dim; column += kReferenceThreads) {
    q_row[column] = reference_widen(q[column], is_bfloat16);
  }
  __syncthreads();

  // Scores. A thread always meets the same keys, so that only the last phase needs a barrier.
  const double minus_infinity = __longlong_as_double(0xfff0000000000000ll);
  double largest = minus_infinity;
  for (int key = thread; key < p.seqlen_k; key += kReferenceThreads) {
    if (!(mask[key / 32] >> (key % 32) & 1)) continue;
    double score = 0;
    for (int column = 0; column < p.head_dim; column += 8) {
      const ReferenceVector part =
          *reinterpret_cast<const ReferenceVector*>(k + key * p.k_strides.row + column);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        score += q_row[column + i] * reference_widen(part.element[i], is_bfloat16);
      }
    }
    probabilities[key] = score;
    largest = score > largest ? score : largest;
  }
  largest = block_reduce(largest, [](double a, double b) { return a > b ? a : b; });
  if (largest == minus_infinity) {  // the row sees nothing
    for (int column = thread; column < p.head_dim_v; column += kReferenceThreads) {
      out[column] = 0;
      naive_lowp[column] = 0;
    }
    if (thread == 0) p.lse[item] = minus_infinity;
    return;
  }

  // Softmax, and the same from rounded scores. Scaling and capping keep the scores' order.
  const auto scaled = [&](double score) {
    const double s = p.softmax_scale * score;
    return softcap > 0 ? softcap * tanh(s / softcap) : s;
  };
  const auto scaled_lowp = [&](double score) {
    const float s = reference_round(static_cast<float>(score), is_bfloat16) * p.softmax_scale;
    return softcap > 0 ? softcap * tanhf(s / softcap) : s;
  };
  const double origin = scaled(largest);
  const float origin_lowp = scaled_lowp(largest);
  double sum = 0;
  float sum_lowp = 0;
  for (int key = thread; key < p.seqlen_k; key += kReferenceThreads) {
    if (!(mask[key / 32] >> (key % 32) & 1)) continue;
    const double score = probabilities[key];
    probabilities[key] = exp(scaled(score) - origin);
    probabilities_lowp[key] = expf(scaled_lowp(score) - origin_lowp);
    sum += probabilities[key];
    sum_lowp += probabilities_lowp[key];
  }
  sum = block_reduce(sum, [](double a, double b) { return a + b; });
  sum_lowp = block_reduce(sum_lowp, [](float a, float b) { return a + b; });
  for (int key = thread; key < p.seqlen_k; key += kReferenceThreads) {
    if (!(mask[key / 32] >> (key % 32) & 1)) continue;
    probabilities[key] /= sum;
    probabilities_lowp[key] = reference_round(probabilities_lowp[key] / sum_lowp, is_bfloat16);
  }
  if (thread == 0) p.lse[item] = origin + log(sum);
  __syncthreads();

  // Values: a thread has one column, and groups of threads share the keys.
  const int num_groups = kReferenceThreads / p.head_dim_v;
  const int group = thread / p.head_dim_v;
  const int column = thread % p.head_dim_v;
  double sum_of_values = 0;
  float sum_of_values_lowp = 0;
  const auto add = [&](int key) {
    const float value = reference_widen(v[key * p.v_strides.row + column], is_bfloat16);
    sum_of_values += probabilities[key] * value;
    sum_of_values_lowp += probabilities_lowp[key] * value;
  };
  if (group < num_groups) {
    for (int word = group; word < p.mask_words; word += num_groups) {
      uint32 bits = mask[word];
      if (bits == 0xffffffffu) {
#pragma unroll 8
        for (int i = 0; i < 32; ++i) add(word * 32 + i);
      } else {
        for (; bits != 0; bits &= bits - 1) add(word * 32 + __ffs(static_cast<int>(bits)) - 1);
      }
    }
  }
  columns[thread] = sum_of_values;
  columns_lowp[thread] = sum_of_values_lowp;
  __syncthreads();
  if (group == 0) {
    for (int other = 1; other < num_groups; ++other) {
      sum_of_values += columns[other * p.head_dim_v + column];
      sum_of_values_lowp += columns_lowp[other * p.head_dim_v + column];
    }
    out[column] = sum_of_values;
    naive_lowp[column] = reference_round(sum_of_values_lowp, is_bfloat16);
  }
}

__device__ inline void reference_rows(const ReferenceParams& params) {
  for (int item = blockIdx.x; item < params.num_rows; item += gridDim.x) {
    reference_attend(params, item);
    __syncthreads();  // shared and scratch memory serve the next row
  }
}

#endif  // __CUDACC__

}  // namespace girih
