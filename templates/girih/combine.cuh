// Merges partial results of attention, each over a part of the keys, by their log-sum-exps. What
// bounds it is memory: a few lanes share a row, and every lane merges vectors of 8 elements.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

constexpr int kCombineThreads = 256;
constexpr int kCombineVector = 8;     // elements
constexpr int kMaxCombineParts = 64;  // their parameters take 3 kB

enum class CombineType : int { float16, bfloat16, float32 };

// One partial result: [batch, seqlen, num_heads, head_dim_v] by its strides, and its lse.
struct CombinePart {
  const void* out;
  const float* lse;
  Strides strides;
  CombineType type;
};

struct CombineParams {
  CombinePart parts[kMaxCombineParts];
  int num_parts;

  void* out;   // may be a part's, with that part's strides and type
  float* lse;  // contiguous [batch, num_heads, seqlen], as the parts' are; may be a part's, or null
  Strides out_strides;
  CombineType out_type;

  int num_results;  // batch * seqlen * num_heads
  int seqlen;
  int num_heads;
  bool heads_innermost;   // order in which results are worked on: that of memory
  int num_vectors;        // head_dim_v / kCombineVector
  int log_lanes_per_row;  // lanes share a row: 1 to 32, a power of two
  float empty_lse;        // of a row that no part has seen: -inf or +inf

  struct Place {
    int batch, row, head;
  };
  GIRIH_HD Place place(int result) const {
    if (heads_innermost) {
      const int position = result / num_heads;
      return {position / seqlen, position % seqlen, result % num_heads};
    }
    const int plane = result / seqlen;
    return {plane / num_heads, result % seqlen, plane % num_heads};
  }
  GIRIH_HD int64 lse_at(Place at) const {
    return (int64{at.batch} * num_heads + at.head) * seqlen + at.row;
  }
};

GIRIH_HD int64 element_at(const Strides& strides, CombineParams::Place at) {
  return at.batch * strides.batch + at.row * strides.row + at.head * strides.head;
}

// The lanes of a warp that share a row of so many vectors.
GIRIH_HD constexpr int combine_log_lanes(int num_vectors) {
  int log_lanes = 0;
  while (log_lanes < 5 && (1 << log_lanes) < num_vectors) ++log_lanes;
  return log_lanes;
}

}  // namespace girih

#ifdef __CUDACC__

#include "girih/ptx/convert.cuh"

namespace girih {

struct Combine {
  static constexpr int kWarps = kCombineThreads / 32;

  // A part that has seen nothing says so by an infinite lse of either sign; its out is not read.
  static __device__ __forceinline__ bool is_empty(float lse) { return isinf(lse); }

  static __device__ __forceinline__ void load(const void* data, CombineType type, int64 element,
                                              float (&x)[kCombineVector]) {
    if (type == CombineType::float32) {
      const auto* vectors =
          reinterpret_cast<const float4*>(static_cast<const float*>(data) + element);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float4 vector = vectors[i];
        x[4 * i] = vector.x;
        x[4 * i + 1] = vector.y;
        x[4 * i + 2] = vector.z;
        x[4 * i + 3] = vector.w;
      }
      return;
    }
    const uint4 vector =
        *reinterpret_cast<const uint4*>(static_cast<const uint16*>(data) + element);
    const uint32 words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (type == CombineType::bfloat16) {
        unpack<Bf16>(words[i], x[2 * i], x[2 * i + 1]);
      } else {
        unpack<Fp16>(words[i], x[2 * i], x[2 * i + 1]);
      }
    }
  }

  static __device__ __forceinline__ void store(void* data, CombineType type, int64 element,
                                               const float (&x)[kCombineVector]) {
    if (type == CombineType::float32) {
      auto* vectors = reinterpret_cast<float4*>(static_cast<float*>(data) + element);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        vectors[i] = make_float4(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
      }
      return;
    }
    uint32 words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = type == CombineType::bfloat16 ? pack<Bf16>(x[2 * i], x[2 * i + 1])
                                               : pack<Fp16>(x[2 * i], x[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(static_cast<uint16*>(data) + element) =
        make_uint4(words[0], words[1], words[2], words[3]);
  }

  // What weights are relative to, and what they sum up to.
  struct Total {
    float highest;
    float sum;
    __device__ __forceinline__ float weight(float lse) const { return expf(lse - highest); }
  };
  static __device__ __forceinline__ Total total_of(const CombineParams& p, int64 lse_at) {
    Total total{__int_as_float(0xff800000), 0.0f};  // -inf
    for (int i = 0; i < p.num_parts; ++i) {
      const float lse = p.parts[i].lse[lse_at];
      if (!is_empty(lse)) total.highest = fmaxf(total.highest, lse);
    }
    for (int i = 0; i < p.num_parts; ++i) {
      const float lse = p.parts[i].lse[lse_at];
      if (!is_empty(lse)) total.sum += total.weight(lse);
    }
    return total;
  }

  static __device__ __forceinline__ void merge(const CombineParams& p, CombineParams::Place at,
                                               int64 lse_at, const Total& total, int vector) {
    float merged[kCombineVector] = {};
    for (int i = 0; i < p.num_parts; ++i) {
      const CombinePart& part = p.parts[i];
      const float lse = part.lse[lse_at];
      if (is_empty(lse)) continue;
      const float weight = total.weight(lse);
      float x[kCombineVector];
      load(part.out, part.type, element_at(part.strides, at) + vector * kCombineVector, x);
#pragma unroll
      for (int e = 0; e < kCombineVector; ++e) merged[e] += weight * x[e];
    }
    const float factor = total.sum == 0.0f ? 0.0f : 1.0f / total.sum;
#pragma unroll
    for (int e = 0; e < kCombineVector; ++e) merged[e] *= factor;
    store(p.out, p.out_type, element_at(p.out_strides, at) + vector * kCombineVector, merged);
  }

  static __device__ void run(const CombineParams& p) {
    const int lane = threadIdx.x % 32;
    const int warp = blockIdx.x * kWarps + threadIdx.x / 32;
    const int lanes_per_row = 1 << p.log_lanes_per_row;
    const int rows_per_warp = 32 >> p.log_lanes_per_row;
    const int64 step = int64{gridDim.x} * kWarps * rows_per_warp;
    for (int64 first = int64{warp} * rows_per_warp; first < p.num_results; first += step) {
      const int64 result = first + (lane >> p.log_lanes_per_row);
      const bool exists = result < p.num_results;
      const CombineParams::Place at = p.place(exists ? static_cast<int>(result) : 0);
      const int64 lse_at = p.lse_at(at);
      Total total{};
      if (exists) {
        total = total_of(p, lse_at);
        for (int v = lane & (lanes_per_row - 1); v < p.num_vectors; v += lanes_per_row) {
          merge(p, at, lse_at, total, v);
        }
      }
      __syncwarp();  // in place, the lse that follows is one that the row's other lanes have read
      if (exists && p.lse != nullptr && (lane & (lanes_per_row - 1)) == 0) {
        p.lse[lse_at] = total.sum == 0.0f ? p.empty_lse : total.highest + logf(total.sum);
      }
    }
  }
};

}  // namespace girih

#endif  // __CUDACC__
