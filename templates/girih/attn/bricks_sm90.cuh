// What is different in a Hopper kernel whose tiles are bricks of a grid (shared/bricks.cuh): how Q,
// K and V come, who announces visits, and where the output goes.
#pragma once

#include "girih/attn/bricks.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/tile/load_tma.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Config visits bricks.
template <class Config>
struct BricksSm90 : PipelineSm90<Config> {
  using Pipeline = PipelineSm90<Config>;
  using Pipeline::kBlockM, Pipeline::kBlockN, Pipeline::kHeadDimV;
  using Pipeline::staged_chunk;
  using typename Pipeline::Control, typename Pipeline::Visit, typename Pipeline::Work;
  using Rows = typename Config::QueryBrick;
  using Keys = typename Config::KeyBrick;

  static_assert(Rows::box().volume() == kBlockM && is_query_brick(Rows::box()));
  static_assert(Keys::box().volume() == kBlockN && is_key_brick(Keys::box()));

  // Starts the copy of a brick that begins at a token, panel after panel, by one lane.
  template <class Brick, int kNumPanels>
  static __device__ __forceinline__ void load(uint32 tile, const TensorMap& map,
                                              const uint64& barrier, int64 head_stride,
                                              BoxOrigin sequence, GridPoint token) {
    constexpr int kPanelBytes = Brick::box().volume() * kPanelRowBytes;
    mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kPanelBytes);
    const int column = sequence.head * static_cast<int>(head_stride);
#pragma unroll
    for (int panel = 0; panel < kNumPanels; ++panel) {
      tma_load_grid(tile + panel * kPanelBytes, map, shared_address(&barrier),
                    {column + panel * kPanelColumns, token.c, token.b, token.a, sequence.batch});
    }
  }

  // Of a visited key tile, where its brick begins in the grid.
  static __device__ __forceinline__ GridPoint first_token(const Work& work, const Visit& visit) {
    return work.group.token(scaled(unpack_place(visit.boxes[0]), Keys::box()));
  }

  // Likewise the copy of a visited key tile; behind the grid keys are consecutive rows of `rows`.
  template <int kNumPanels>
  static __device__ __forceinline__ void load_keys(uint32 tile, const TensorMap& bricks,
                                                   const TensorMap& rows, const uint64& barrier,
                                                   int64 head_stride, BoxOrigin sequence,
                                                   const Visit& visit, GridPoint token) {
    if (visit.flags & kExtraKeys) {
      sequence.row += visit.boxes[0];
      load_panels<kBlockN, kBlockN, kNumPanels>(tile, rows, barrier, [&](int) { return sequence; });
    } else {
      load<Keys, kNumPanels>(tile, bricks, barrier, head_stride, sequence, token);
    }
  }

  // Announces the visits of a query tile that has its place, each when it is known who sees the
  // next one; by a warp.
  template <class Announcer>
  static __device__ __forceinline__ void find_visits(Control& control, Work& work,
                                                     Announcer& announcer) {
    if (work.first_row < 0) {
      announcer.announce(control, fresh_thread_index() % 32, kFirstVisit | kLastVisit, 0);
      return;
    }
    const Neighborhood n(work.numbers[0]);
    work.find_spans(n);
    BrickWalk<Config> walk(n, work, work.geometry.seqlen_k);
    uint32 flags = kFirstVisit;
#pragma unroll 1
    for (bool more = true; more; flags = 0) {
      flags |= two_bits_each(walk.seen) + two_bits_each(walk.seen & walk.full);
      if (walk.behind_grid()) flags |= kExtraKeys;
      const int place = walk.place();
      more = walk.advance();
      flags |= more ? walk.seen << kSeesNextBit : kLastVisit;
      announcer.announce(control, fresh_thread_index() % 32, flags, place);
    }
  }

  // Writes the staged output of the rows that the grid has; by a warp.
  static __device__ __forceinline__ void store(const Work& work, int64 row_stride,
                                               const unsigned char* tile) {
    constexpr uint32 kChunksPerRow = kHeadDimV / 8;
#pragma unroll 1
    for (uint32 index = fresh_thread_index() % 32; index < kBlockM * kChunksPerRow; index += 32) {
      const int row = index / kChunksPerRow, chunk = index % kChunksPerRow;
      const int token = work.token_of(row);
      if (token < 0) continue;
      *reinterpret_cast<uint4*>(work.out + token * row_stride + 8 * chunk) =
          *reinterpret_cast<const uint4*>(tile + staged_chunk(row, chunk));
    }
  }
};

}  // namespace girih
