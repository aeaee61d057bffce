// What a consumer warpgroup of the Hopper kernel has in registers, the scores and probabilities of
// its rows for a key tile and their output, and every step that it takes with them. In which order
// it takes them is in attn/consume_sm90.cuh and attn/prune_sm90.cuh.
#pragma once

#include "girih/attn/bricks_sm90.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/scores.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/ptx/convert.cuh"
#include "girih/ptx/stmatrix.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

template <class Config>
struct FragmentsSm90 : PipelineSm90<Config> {
  using Pipeline = PipelineSm90<Config>;
  using Pipeline::kBlockM, Pipeline::kBlockN, Pipeline::kHeadDim, Pipeline::kHeadDimV;
  using Pipeline::kBoxes, Pipeline::kBoxStep, Pipeline::kKeyBox;
  using Pipeline::kBricks, Pipeline::kGathers;
  using Pipeline::kHeadsPerTile, Pipeline::kRowsPerHead;
  using Pipeline::kTellsBoxes, Pipeline::staged_chunk;
  using typename Pipeline::Classes, typename Pipeline::Element, typename Pipeline::Gather;
  using typename Pipeline::Splits, typename Pipeline::Work;
  using Bricks = BricksSm90<Config>;

  static constexpr int kKeyFragments = kBlockN / 8;    // n8 of the scores
  static constexpr int kDimFragments = kHeadDimV / 8;  // n8 of the output

  // Fragments whose probabilities are found while P * V of the tile before still runs, to hide its
  // end; three warpgroups hide that for one another. Each takes four registers.
  static constexpr bool kManyEarly = Pipeline::kNumMmaWarpgroups == 2 && kKeyFragments >= 4 &&
                                     6 * kKeyFragments + 4 * kDimFragments <= 160;
  static constexpr int kEarlyFragments = kManyEarly ? 4 : 2;

  // By how much origins are ahead of scores, in base 2, where a modifier makes these rise from tile
  // to tile, so that origins would follow at each. Probabilities of fp16 must not be lower.
  static constexpr float kAhead =
      ClassModifiers<Classes>::kRising && Element::kHasExponentsOfFloat ? 64.0f : 0.0f;

  using Scores = float[kKeyFragments][4];
  using Output = float[kDimFragments][4];
  using Probabilities = uint32[kKeyFragments / 2][4];

  // Starts scores = Q * K^T.
  static __device__ __forceinline__ void score(Scores& scores, const RowOperand<kBlockM>& q,
                                               uint32 k_tile) {
    WgmmaSS<Element, kBlockN, kHeadDim>::start(scores, q, RowOperand<kBlockN>(k_tile));
  }

  // Starts output = P * V, or output += P * V if `adds`.
  static __device__ __forceinline__ void accumulate(Output& output,
                                                    const Probabilities& probabilities,
                                                    uint32 v_tile, bool adds) {
    WgmmaRS<Element, kHeadDimV, kBlockN>::start(output, probabilities,
                                                ColumnOperand<kBlockN>(v_tile), adds);
  }

  static __device__ __forceinline__ void pack_fragment(Probabilities& packed, int j,
                                                       const float (&p)[4]) {
    girih::pack_fragment<Element>(packed, j, p);
  }

  // A key tile as a consumer's lane knows it.
  struct Tile {
    uint32 flags;
    int box;  // lane % kBoxes of the visit's

    // The key in a column of the tile, or some key of it if there is none; by a whole warp.
    __device__ __forceinline__ int key(int column) const {
      if constexpr (kBoxes == 1) return box * kBoxStep + (column < kKeyBox ? column : 0);
      const int first = __shfl_sync(0xffffffff, box, column / kKeyBox);
      return first * kBoxStep + column % kKeyBox;
    }
  };

  using Mask = TileMask<Config>;

  static __device__ __forceinline__ void cap(Scores& scores, const FwdParams& params,
                                             const Work& work, int warpgroup) {
    if constexpr (Config::kSoftcap) {
      const float softcap = work.softcap[Work::head_of(warpgroup)];
      if (softcap > 0.0f) cap_scores(scores, params.softmax_scale_log2 / softcap);
    }
  }

  // By the modifiers, which make capped scores natural; warp_row counts from the warpgroup's first.
  static __device__ __forceinline__ void modify(Scores& scores, const FwdParams& params,
                                                const Work& work, Tile tile, int warpgroup,
                                                int warp_row, int lane) {
    if constexpr (kNaturalScores<Classes>) {
      const int head = Work::head_of(warpgroup);
      modify_scores<Classes, kKeyBox>(
          scores, natural_scale(params.softmax_scale_log2, work.softcap[head]),
          work.head_class[head], work.numbers[head], work.geometry_of(warpgroup),
          work.first_row_of(warpgroup) + warp_row + lane / 4,
          [&](int column) { return tile.key(column); });
    }
  }

  // use(mask) with what a warp's rows see of the tile, where that is not all of it. `given`: the
  // tile's, or null.
  template <class Use>
  static __device__ __forceinline__ void find_mask(const Work& work, Tile tile,
                                                   const typename Gather::Seen* given,
                                                   int warpgroup, int warp_row, int lane,
                                                   const Use& use) {
    if (kind_of(tile.flags, warpgroup) == kPartial) {
      const int head = Work::head_of(warpgroup);
      Mask mask;
      const auto key = [&](int column) { return tile.key(column); };
      const int first_row = work.first_row_of(warpgroup) + warp_row;
      if constexpr (kBricks) {
        const int brick_row = 64 * warpgroup + warp_row;
        const bool hides = mask.evaluate(work, tile.box, tile.flags & kExtraKeys,
                                         work.geometry.seqlen_k, brick_row);
        if (!hides) return;
      } else if (kGathers && (tile.flags & kGivenMask)) {
#pragma unroll
        for (int i = 0; i < mask.kWordsPerLane; ++i) {
          mask.words[i] = given->seen[warpgroup][mask.kLanesPerRow * i + lane / 16];
        }
      } else if constexpr (kHeadsPerTile == 1) {
        mask.template evaluate<Classes, min(kKeyBox, 32)>(work.head_class[0], work.numbers[0],
                                                          work.geometry, first_row, key);
      } else {
        mask.template evaluate<Classes, min(kKeyBox, 32)>(
            work.head_class[head], work.numbers[head], work.geometry_of(warpgroup), first_row, key);
      }
      use(mask);
    }
  }

  // Hides boxes that the warpgroup does not see, where it sees all or nothing of each.
  static __device__ __forceinline__ void hide_boxes(Scores& scores, Tile tile, int warpgroup) {
    if (kind_of(tile.flags, warpgroup) != kWholeBoxes) return;
    const uint32 seen = tile.flags >> (kSeenBoxesBit + warpgroup);
#pragma unroll
    for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (!(seen >> 2 * (8 * j / kKeyBox) & 1)) scores[j][e] = kMinusInfinity;
      }
    }
  }

  static __device__ __forceinline__ void hide(Scores& scores, const Mask& mask, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) mask.apply(scores, 8 * r + lane / 4, r);
  }

  static __device__ __forceinline__ void clear(Output& output) {
#pragma unroll
    for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[d][e] = 0.0f;
    }
  }

  static __device__ __forceinline__ void rescale(Output& output, const float (&shrink)[2]) {
#pragma unroll
    for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[d][e] *= shrink[e / 2];
    }
  }

  static __device__ __forceinline__ float finish(const OnlineSoftmax& softmax, int r,
                                                 const FwdParams& params, const Work& work,
                                                 int warpgroup, float& lse) {
    if constexpr (ClassModifiers<Classes>::kSinks) {
      const int head = Work::head_of(warpgroup);
      const float sink = ClassModifiers<Classes>::sink_logit(
          work.head_class[head], work.numbers[head], work.geometry_of(warpgroup));
      return softmax.finish(r, sink, params.empty_lse, lse);
    }
    return softmax.finish(r, params.empty_lse, lse);
  }

  // Normalises, writes lse, and puts the output where the warpgroup's own rows of Q were.
  static __device__ __forceinline__ void stage_output(unsigned char* staging,
                                                      const FwdParams& params, const Work& work,
                                                      const Output& output,
                                                      const OnlineSoftmax& softmax) {
    const uint32 thread = fresh_thread_index();
    const int warpgroup = thread / 128 - 1;
    const int first_row = (thread - 128) / 32 * 16;  // the warp's
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 8 * r + thread % 32 / 4;
      float lse;
      factor[r] = finish(softmax, r, params, work, warpgroup, lse);
      if constexpr (SplitsTiles<Config>) {
        if (work.is_part()) {
          Splits::keep(work, output, r, row, factor[r], lse);
          continue;
        }
      }
      const int head_row = work.first_row + row % kRowsPerHead;
      if constexpr (kBricks) {
        const int token = work.token_of(row);
        if (work.lse != nullptr && thread % 4 == 0 && token >= 0) work.lse[token] = lse;
      } else if (work.lse != nullptr && thread % 4 == 0 && head_row < work.geometry.seqlen_q) {
        work.lse[Work::head_of(warpgroup) * params.lse_strides.head + head_row] = lse;
      }
    }
    if constexpr (SplitsTiles<Config>) {
      if (work.is_part()) return;
    }
    // Of two columns of chunks, each lane points to one of 16 rows.
    const uint32 lane_chunk =
        shared_address(staging) + staged_chunk(first_row + thread % 16, thread % 32 / 16);
#pragma unroll
    for (int d = 0; d < kDimFragments; d += 2) {
      const uint32 chunks[4] = {
          pack<Element>(output[d][0] * factor[0], output[d][1] * factor[0]),
          pack<Element>(output[d][2] * factor[1], output[d][3] * factor[1]),
          pack<Element>(output[d + 1][0] * factor[0], output[d + 1][1] * factor[0]),
          pack<Element>(output[d + 1][2] * factor[1], output[d + 1][3] * factor[1])};
      stmatrix_x4((lane_chunk ^ d % 8 << 4) + d / 8 * kBlockM * kPanelRowBytes, chunks);
    }
  }

  // Of scores that no modifier has seen yet.
  static __device__ __forceinline__ float plain_scale_log2(const FwdParams& params, float softcap) {
    if constexpr (Config::kSoftcap) return capped_scale_log2(params.softmax_scale_log2, softcap);
    return params.softmax_scale_log2;
  }

  static __device__ __forceinline__ float score_scale_log2(const FwdParams& params, float softcap) {
    if constexpr (kNaturalScores<Classes>) return kNaturalScaleLog2;
    return plain_scale_log2(params, softcap);
  }
};

}  // namespace girih
