// The means of blocks of queries and of keys, a CTA a block of a head. A mean is a sum of two
// elements, high and low, whose products are added up as those of tokens are: a block of queries
// becomes the tokens high, high, low, and one of keys high, low, high.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

constexpr int kPoolThreads = 128;
constexpr int kMeanTokens = 3;

struct PoolBlocksParams {
  struct Operand {
    const void* data;  // [batch, num_tokens, num_heads, head_dim], by its strides
    Strides strides;
    int num_tokens;
    int num_heads;
    int block;       // tokens
    int num_blocks;  // of num_tokens
    void* means;     // [batch, num_heads, num_blocks, kMeanTokens, head_dim]
  };
  Operand q, k;
  int batch;

  GIRIH_HD int num_ctas(const Operand& of) const { return batch * of.num_heads * of.num_blocks; }
};

}  // namespace girih

#ifdef __CUDACC__

#include "girih/ptx/convert.cuh"

namespace girih {

template <class Element, int kHeadDim>
struct PoolBlocks {
  static constexpr int kChunks = kHeadDim / 8;  // of 16 bytes
  static constexpr int kTokensAtOnce = kPoolThreads / kChunks;

  static __device__ void run(const PoolBlocksParams& p) {
    const int of_queries = p.num_ctas(p.q);
    const bool is_query = blockIdx.x < of_queries;
    pool(is_query ? p.q : p.k, is_query ? blockIdx.x : blockIdx.x - of_queries, is_query);
  }

 private:
  static __device__ void pool(const PoolBlocksParams::Operand& of, int index, bool is_query) {
    __shared__ float sums[kTokensAtOnce][kHeadDim];
    const int plane = index / of.num_blocks, first = index % of.num_blocks * of.block;
    const int tokens = min(of.block, of.num_tokens - first);
    const int own = static_cast<int>(threadIdx.x) / kChunks, chunk = threadIdx.x % kChunks;
    if (own < kTokensAtOnce) {
      const uint16* const data = static_cast<const uint16*>(of.data) +
                                 plane / of.num_heads * of.strides.batch +
                                 plane % of.num_heads * of.strides.head + 8 * chunk;
      float sum[8] = {};
#pragma unroll 4
      for (int token = own; token < tokens; token += kTokensAtOnce) {
        const uint4 elements =
            *reinterpret_cast<const uint4*>(data + (first + token) * of.strides.row);
        const uint32 words[4] = {elements.x, elements.y, elements.z, elements.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float low, high;
          unpack<Element>(words[i], low, high);
          sum[2 * i] += low;
          sum[2 * i + 1] += high;
        }
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) sums[own][8 * chunk + i] = sum[i];
    }
    __syncthreads();

    const int pair = static_cast<int>(threadIdx.x);
    if (pair >= kHeadDim / 2) return;
    float mean[2] = {};
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) {
      mean[0] += sums[i][2 * pair];
      mean[1] += sums[i][2 * pair + 1];
    }
    const float count = static_cast<float>(tokens);
    mean[0] /= count;
    mean[1] /= count;
    const uint32 high = pack<Element>(mean[0], mean[1]);
    float rounded[2];
    unpack<Element>(high, rounded[0], rounded[1]);
    const uint32 low = pack<Element>(mean[0] - rounded[0], mean[1] - rounded[1]);
    uint32* const out =
        static_cast<uint32*>(of.means) + int64{index} * kMeanTokens * (kHeadDim / 2) + pair;
    out[0] = high;
    out[kHeadDim / 2] = is_query ? high : low;
    out[kHeadDim] = is_query ? low : high;
  }
};

}  // namespace girih

#endif  // __CUDACC__
