// How much the last 64 queries of every sequence and head see of each key, and at each distance:
// the sums of their probabilities, in two launches. `rows` finds what makes scores probabilities,
// a part of the keys a warp; `sums` computes the scores again. Keys are the rows of the products
// and queries the columns, so that a warp has all that queries give a key. Heads of one KV head
// stand in a CTA and read the same keys at about the same time.
#pragma once

#include "girih/shared/params.cuh"

namespace girih {

constexpr int kEstimateThreads = 256;
constexpr int kEstimateRows = 64;      // queries
constexpr int kEstimateTileKeys = 32;  // that a warp multiplies at once

// Of a row's scores over some keys, by powers of two: the sum of exp2(score - reference).
struct SoftmaxPart {
  float reference, sum;
};

struct EstimateParams {
  enum class Phase : int { rows, sums };
  Phase phase;

  const void* q;  // [batch, seqlen_q, num_heads, head_dim], by its strides
  const void* k;  // [batch, seqlen_k, num_heads_kv, head_dim]
  Strides q_strides, k_strides;
  int seqlen_q, seqlen_k;
  int num_planes;  // batch * num_heads
  int num_heads;
  int group_size;
  float softmax_scale_log2;  // more than 0

  int heads_per_cta;   // a divisor of group_size and of a CTA's warps
  int keys_per_part;   // a multiple of kEstimateTileKeys
  int num_parts;       // of seqlen_k
  SoftmaxPart* parts;  // [num_planes, num_parts, kEstimateRows]
  float* sums;         // [num_planes, 2, sums_stride]: of keys, of distances
  int sums_stride;

  GIRIH_HD int parts_per_cta() const { return kEstimateThreads / 32 / heads_per_cta; }
  GIRIH_HD int ctas_per_group() const { return ceil_div(num_parts, parts_per_cta()); }
  GIRIH_HD int num_ctas() const { return num_planes / heads_per_cta * ctas_per_group(); }
};

// Of queries in shared memory: 16 bytes of two rows and four columns meet no bank twice.
GIRIH_HD constexpr int estimate_row_bytes(int head_dim) { return round_up(2 * head_dim, 128) + 64; }

// A warp's: for each key of 8, what 64 distances sum up to.
constexpr int kEstimateDistanceStride = 72;  // floats: no bank conflicts
constexpr int kEstimateWarpBytes = 4 * 8 * kEstimateDistanceStride;

GIRIH_HD constexpr int estimate_shared_bytes(int head_dim, int heads_per_cta) {
  return heads_per_cta * kEstimateRows * estimate_row_bytes(head_dim) +
         kEstimateThreads / 32 * kEstimateWarpBytes;
}

}  // namespace girih

#ifdef __CUDACC__

#include "girih/ptx/mma_sm80.cuh"
#include "girih/ptx/prefetch.cuh"

namespace girih {

template <class Element, int kHeadDim>
struct EstimateSlash {
  static constexpr int kQueryFragments = kEstimateRows / 8;
  static constexpr int kRowBytes = estimate_row_bytes(kHeadDim);
  static constexpr int kPieces = kHeadDim / 32;     // of a row, 8 elements a lane
  static constexpr bool kHalf = kHeadDim % 32 > 0;  // a last piece with 4 elements a lane
  static constexpr int kPiecesHeld = 4;             // at most, in registers
  static constexpr int kPiecesAhead = min(kPieces, kPiecesHeld);  // loaded a tile before
  static constexpr int kTilesAhead = 4;  // of what is multiplied, that are fetched into L2
  static constexpr float kNoReference = -1e30f;
  static constexpr float kHeadroom = 16.0f;  // scores may exceed their reference by so much

  // Element e of fragment [u][n]: key 16 * u + 8 * (e / 2) + lane / 4, query 8 * n + 2 * (lane % 4)
  // + e % 2.
  using Scores = float[2][kQueryFragments][4];
  using OfQueries = float[kQueryFragments][2];
  // A lane's pieces of the keys 8 * i + lane / 4 of a tile.
  using KeyPieces = uint4[max(kPiecesAhead, 1)][4];

  // What a warp works on.
  struct Part {
    int plane, index;
    int begin, end;      // keys
    const uint16* keys;  // of the KV head
    const unsigned char* queries;
    float* distances;  // shared memory
    bool fetches;      // for all heads of the CTA
  };

  // The key at the position of the first of the 64 queries; negative where there are fewer keys.
  static __device__ int first_diagonal(const EstimateParams& p) {
    return p.seqlen_k - kEstimateRows;
  }

  // A lane's elements of the i-th key; those of no key are the last one's.
  static __device__ const uint16* key_row(const EstimateParams& p, const Part& part, int first_key,
                                          int i) {
    const int lane = threadIdx.x % 32;
    const int key = min(first_key + 8 * i + lane / 4, p.seqlen_k - 1);
    return part.keys + key * p.k_strides.row + 8 * (lane % 4);
  }

  static __device__ void load_ahead(const EstimateParams& p, const Part& part, int first_key,
                                    KeyPieces& keys) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint16* const row = key_row(p, part, first_key, i);
#pragma unroll
      for (int piece = 0; piece < kPiecesAhead; ++piece) {
        keys[piece][i] = *reinterpret_cast<const uint4*>(row + 32 * piece);
      }
    }
  }

  // A tile's scores, of keys whose first pieces have been loaded; then loads those of the next
  // tile. Which element of a row stands where in a step of 16 does not matter, as long as keys and
  // queries agree: a lane's lie side by side.
  static __device__ void score(const EstimateParams& p, const Part& part, int first_key,
                               KeyPieces& keys, Scores& scores) {
    const int lane = threadIdx.x % 32;
    if (part.fetches) {
      const int key = first_key + kTilesAhead * kEstimateTileKeys + lane;
      if (key < part.end) {
#pragma unroll
        for (int at = 0; at < kHeadDim; at += 64) {
          prefetch_l2(part.keys + key * p.k_strides.row + at);
        }
      }
    }
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
      for (int n = 0; n < kQueryFragments; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[u][n][e] = 0.0f;
      }
    }
    const unsigned char* const queries = part.queries + lane / 4 * kRowBytes + 16 * (lane % 4);
#pragma unroll
    for (int first = 0; first < kPieces; first += kPiecesHeld) {
      if (first > 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint16* const row = key_row(p, part, first_key, i) + 32 * first;
#pragma unroll
          for (int piece = 0; piece < kPiecesHeld; ++piece) {
            if (first + piece >= kPieces) continue;
            keys[piece][i] = *reinterpret_cast<const uint4*>(row + 32 * piece);
          }
        }
      }
#pragma unroll
      for (int piece = 0; piece < kPiecesHeld; ++piece) {
        if (first + piece >= kPieces) continue;
        const uint4(&k)[4] = keys[piece];
#pragma unroll
        for (int n = 0; n < kQueryFragments; ++n) {
          const uint4 q =
              *reinterpret_cast<const uint4*>(queries + 8 * n * kRowBytes + 64 * (first + piece));
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const uint32 low[4] = {k[2 * u].x, k[2 * u + 1].x, k[2 * u].y, k[2 * u + 1].y};
            mma_m16n8k16<Element>(scores[u][n], low, q.x, q.y);
          }
#pragma unroll
          for (int u = 0; u < 2; ++u) {
            const uint32 high[4] = {k[2 * u].z, k[2 * u + 1].z, k[2 * u].w, k[2 * u + 1].w};
            mma_m16n8k16<Element>(scores[u][n], high, q.z, q.w);
          }
        }
      }
    }
    if constexpr (kHalf) {
      uint2 k[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const uint16* const row = key_row(p, part, first_key, i) - 4 * (lane % 4);
        k[i] = *reinterpret_cast<const uint2*>(row + 32 * kPieces);
      }
#pragma unroll
      for (int n = 0; n < kQueryFragments; ++n) {
        const uint2 q = *reinterpret_cast<const uint2*>(queries - 8 * (lane % 4) +
                                                        8 * n * kRowBytes + 64 * kPieces);
#pragma unroll
        for (int u = 0; u < 2; ++u) {
          const uint32 a[4] = {k[2 * u].x, k[2 * u + 1].x, k[2 * u].y, k[2 * u + 1].y};
          mma_m16n8k16<Element>(scores[u][n], a, q.x, q.y);
        }
      }
    }
    load_ahead(p, part, first_key + kEstimateTileKeys, keys);
    if (first_key + kEstimateTileKeys - 1 > first_diagonal(p)) hide_future(p, first_key, scores);
  }

  // Keys behind a query, which are also those that there are not.
  static __device__ void hide_future(const EstimateParams& p, int first_key, Scores& scores) {
    const int lane = threadIdx.x % 32;
    const int distance = first_diagonal(p) + 2 * (lane % 4) - first_key - lane / 4;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
#pragma unroll
      for (int n = 0; n < kQueryFragments; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (distance + 8 * n + e % 2 < 16 * u + e / 2 * 8) {
            scores[u][n][e] = __int_as_float(0xff800000);  // -inf
          }
        }
      }
    }
  }

  // --- Rows ---

  static __device__ void find_rows(const EstimateParams& p, const Part& part) {
    OfQueries reference, sum;
    for_queries([&](int n, int e) {
      reference[n][e] = kNoReference;
      sum[n][e] = 0.0f;
    });
    const float scale = p.softmax_scale_log2;
    KeyPieces keys;
    load_ahead(p, part, part.begin, keys);
#pragma unroll 1
    for (int first_key = part.begin; first_key < part.end; first_key += kEstimateTileKeys) {
      Scores scores;
      score(p, part, first_key, keys, scores);
      const auto most = [&](int n, int e) {
        return scale * fmaxf(fmaxf(scores[0][n][e], scores[0][n][e + 2]),
                             fmaxf(scores[1][n][e], scores[1][n][e + 2]));
      };
      bool exceeded = false;
      for_queries([&](int n, int e) { exceeded |= most(n, e) > reference[n][e] + kHeadroom; });
      if (__any_sync(0xffffffff, exceeded)) {
        for_queries([&](int n, int e) { rebase(reference[n][e], sum[n][e], most(n, e)); });
      }
      for_queries([&](int n, int e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          sum[n][e] += exp2_approx(fmaf(scores[i / 2][n][e + i % 2 * 2], scale, -reference[n][e]));
        }
      });
    }

    const int lane = threadIdx.x % 32;
    SoftmaxPart* const parts =
        p.parts + (int64{part.plane} * p.num_parts + part.index) * kEstimateRows;
    for_queries([&](int n, int e) {
      for (int lanes = 4; lanes < 32; lanes *= 2) {  // that have other keys
        const float other = __shfl_xor_sync(0xffffffff, reference[n][e], lanes);
        const float other_sum = __shfl_xor_sync(0xffffffff, sum[n][e], lanes);
        rebase(reference[n][e], sum[n][e], other);
        sum[n][e] += other_sum * exp2_approx(other - reference[n][e]);
      }
      if (lane < 4) parts[8 * n + 2 * lane + e] = {reference[n][e], sum[n][e]};
    });
  }

  // Raises a sum's reference to a score.
  static __device__ void rebase(float& reference, float& sum, float score) {
    const float raised = fmaxf(reference, score);
    sum *= exp2_approx(reference - raised);
    reference = raised;
  }

  // --- Sums ---

  // The logarithm of a query's sum of exp2, over all parts; +inf where there is no such query.
  static __device__ float row_sum(const EstimateParams& p, int plane, int query) {
    if (query < kEstimateRows - min(p.seqlen_q, p.seqlen_k)) return __int_as_float(0x7f800000);
    const SoftmaxPart* const parts = p.parts + int64{plane} * p.num_parts * kEstimateRows + query;
    float reference = kNoReference, sum = 0.0f;
#pragma unroll 4
    for (int i = 0; i < p.num_parts; ++i) {
      const SoftmaxPart part = parts[int64{i} * kEstimateRows];
      rebase(reference, sum, part.reference);
      sum += part.sum * exp2_approx(part.reference - reference);
    }
    return reference + log2f(sum);
  }

  // Adds up probabilities of a tile's keys, and those of equal distance within a lane: by[i] is for
  // 8 * (i - 3) + 2 * (lane % 4) + e - lane / 4 beyond the distance of the first query to the
  // tile's first key. Those from kDone on are complete behind this tile.
  static constexpr int kDistanceFragments = kQueryFragments + 3;
  static constexpr int kDone = kDistanceFragments - 4;

  static __device__ void find_sums(const EstimateParams& p, const Part& part) {
    const int lane = threadIdx.x % 32;
    float* const of_keys = p.sums + int64{part.plane} * 2 * p.sums_stride;
    float* const of_distances = of_keys + p.sums_stride;
    OfQueries row_sums;
    for (int i = lane; i < kEstimateRows; i += 32) part.distances[i] = row_sum(p, part.plane, i);
    __syncwarp();
    for_queries([&](int n, int e) { row_sums[n][e] = part.distances[8 * n + 2 * (lane % 4) + e]; });
    __syncwarp();
    for (int i = lane; i < 8 * kEstimateDistanceStride; i += 32) part.distances[i] = 0.0f;
    __syncwarp();

    const float scale = p.softmax_scale_log2;
    float by[kDistanceFragments][2] = {};
    int place = 0;  // of the complete distances, of two
    // Distances that are complete in this part have keys in the two tiles before, too.
    const int begin = max(part.begin - kEstimateRows, 0);
    KeyPieces keys;
    load_ahead(p, part, begin, keys);
#pragma unroll 1
    for (int first_key = begin; first_key < part.end; first_key += kEstimateTileKeys) {
      Scores scores;
      score(p, part, first_key, keys, scores);
      float of_key[4] = {};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        for_queries([&](int n, int e) {
          const float probability =
              exp2_approx(fmaf(scores[i / 2][n][e + i % 2 * 2], scale, -row_sums[n][e]));
          of_key[i] += probability;
          by[n - i + 3][e] += probability;
        });
        of_key[i] += __shfl_xor_sync(0xffffffff, of_key[i], 1);
        of_key[i] += __shfl_xor_sync(0xffffffff, of_key[i], 2);
      }
      const bool own = first_key >= part.begin;
      const int key = first_key + 8 * (lane % 4) + lane / 4;
      const float of_own = lane % 4 == 0   ? of_key[0]
                           : lane % 4 == 1 ? of_key[1]
                           : lane % 4 == 2 ? of_key[2]
                                           : of_key[3];
      if (own && key < p.seqlen_k) of_keys[key] = of_own;

#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float* const to = part.distances + lane / 4 * kEstimateDistanceStride + 32 * place + 8 * i +
                          2 * (lane % 4);
        to[0] = by[kDone + i][0];
        to[1] = by[kDone + i][1];
      }
      __syncwarp();
      float sum = 0.0f;
#pragma unroll
      for (int row = 0; row < 8; ++row) {
        sum += part.distances[row * kEstimateDistanceStride + (32 * place + lane + row) % 64];
      }
      __syncwarp();
      const int distance = p.seqlen_k - kEstimateTileKeys - first_key + lane;
      if (own && 0 <= distance) of_distances[distance] = sum;
      place ^= 1;
#pragma unroll
      for (int i = kDistanceFragments - 1; i >= 0; --i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) by[i][e] = i < 4 ? 0.0f : by[max(i - 4, 0)][e];
      }
    }
  }

  template <class Body>
  static __device__ __forceinline__ void for_queries(const Body& body) {
#pragma unroll
    for (int n = 0; n < kQueryFragments; ++n) {
      body(n, 0);
      body(n, 1);
    }
  }

  // --- Both ---

  static __device__ void load_queries(const EstimateParams& p, int first_plane,
                                      unsigned char* shared) {
    constexpr int kChunks = kHeadDim / 8;
    const int rows = p.heads_per_cta * kEstimateRows;
    for (int i = threadIdx.x; i < rows * kChunks; i += kEstimateThreads) {
      const int row = i / kChunks, chunk = i % kChunks;
      const int plane = first_plane + row / kEstimateRows;
      const int query = p.seqlen_q - kEstimateRows + row % kEstimateRows;
      uint4 elements{};
      if (query >= 0) {
        const auto* q = static_cast<const uint16*>(p.q) + plane / p.num_heads * p.q_strides.batch +
                        plane % p.num_heads * p.q_strides.head + query * p.q_strides.row;
        elements = *reinterpret_cast<const uint4*>(q + 8 * chunk);
      }
      *reinterpret_cast<uint4*>(shared + row * kRowBytes + 16 * chunk) = elements;
    }
    __syncthreads();
  }

  static __device__ void run(const EstimateParams& p, unsigned char* shared) {
    const int warp = threadIdx.x / 32;
    const int group = blockIdx.x / p.ctas_per_group();
    const int first_part = blockIdx.x % p.ctas_per_group() * p.parts_per_cta();
    const int head = warp % p.heads_per_cta;
    load_queries(p, group * p.heads_per_cta, shared);

    Part part;
    part.plane = group * p.heads_per_cta + head;
    part.index = first_part + warp / p.heads_per_cta;
    if (part.index >= p.num_parts) return;
    part.begin = part.index * p.keys_per_part;
    part.end = min(part.begin + p.keys_per_part, p.seqlen_k);
    part.keys = static_cast<const uint16*>(p.k) + part.plane / p.num_heads * p.k_strides.batch +
                part.plane % p.num_heads / p.group_size * p.k_strides.head;
    part.queries = shared + head * kEstimateRows * kRowBytes;
    part.distances = reinterpret_cast<float*>(shared + p.heads_per_cta * kEstimateRows * kRowBytes +
                                              warp * kEstimateWarpBytes);
    part.fetches = head == 0;
    if (p.phase == EstimateParams::Phase::rows) {
      find_rows(p, part);
    } else {
      find_sums(p, part);
    }
  }
};

}  // namespace girih

#endif  // __CUDACC__
