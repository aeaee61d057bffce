// Attention forward for Hopper (sm_90a): wgmma, the copy engine, warp specialisation.
//
// A CTA stays on its multiprocessor and takes query tiles (block_m rows of one head) until none is
// left. The first warpgroup produces: its warp 0 walks the key tiles that the mask lets the query
// tile see and starts the copies of Q, K and V, running ahead into the next query tile; its warp 1
// stores finished output. Each other warpgroup consumes: it owns 64 query rows, keeps their scores,
// probabilities and output in registers, and knows of a key tile its descriptor only. Of two
// consecutive key tiles it multiplies Q * K^T of the second and P * V of the first at once and does
// the softmax of the second meanwhile; warpgroups take turns at issuing, so that one's softmax
// hides behind the other's products.
//
// Config offers Element (Bf16 or Fp16), kHeadDim and kHeadDimV (multiples of 16), kBlockM (64 a
// warpgroup), kBlockN (a multiple of 16), kNumStages (of K and of V), kNumQStages, kSoftcap
// (whether some head has one), Heads (a HeadTable) and Classes (HeadClasses).
#pragma once

#include "girih/attn/schedule.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/attn/walk.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

#ifndef DEV_PINGPONG
#define DEV_PINGPONG (Config::kHeadDim <= 128)
#endif
#ifndef DEV_OVERLAP
#define DEV_OVERLAP 1
#endif
#ifndef DEV_DYNAMIC
#define DEV_DYNAMIC 1
#endif

namespace girih {

template <class Config>
struct FwdSm90 {
  using Element = typename Config::Element;
  using Classes = typename Config::Classes;
  using Heads = typename Config::Heads;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kHeadDimV = Config::kHeadDimV;
  static constexpr int kBlockM = Config::kBlockM;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kNumStages = Config::kNumStages;
  static constexpr int kNumQStages = Config::kNumQStages;
  static constexpr int kNumMmaWarpgroups = kBlockM / 64;
  static constexpr int kNumThreads = 128 * (1 + kNumMmaWarpgroups);
  static constexpr int kKeyFragments = kBlockN / 8;    // n8 of the scores
  static constexpr int kDimFragments = kHeadDimV / 8;  // n8 of the output
  static constexpr int kPanels = ceil_div(kHeadDim, kPanelColumns);
  static constexpr int kPanelsV = ceil_div(kHeadDimV, kPanelColumns);
  static constexpr FwdSm90Layout kLayout =
      fwd_sm90_layout(kBlockM, kBlockN, kHeadDim, kHeadDimV, kNumStages, kNumQStages);

  // What setmaxnreg gives each role: together no more than the kernel has at entry.
  static constexpr int kFragmentRegisters = kHeadDimV / 2 + kBlockN / 2 + kBlockN / 4;
  static constexpr int kConsumerRegisters = kNumMmaWarpgroups == 3     ? 160
                                            : kFragmentRegisters > 180 ? 240
                                                                       : 232;
  static constexpr int kProducerRegisters = kNumMmaWarpgroups == 3     ? 32
                                            : kFragmentRegisters > 180 ? 24
                                                                       : 40;

  static_assert(kHeadDim % 16 == 0 && kHeadDimV % 16 == 0, "wgmma sums 16 elements at a time");
  static_assert(kBlockN % 16 == 0 && kBlockN <= 256, "the widths of wgmma");
  static_assert(kBlockM % 64 == 0, "a warpgroup owns 64 rows");

  using Scores = float[kKeyFragments][4];
  using Output = float[kDimFragments][4];
  using Probabilities = uint32[kKeyFragments / 2][4];

  // Named barriers; 0 is __syncthreads.
  enum NamedBarrier {
    kTurn = 1,                              // and the next ones: a warpgroup's turn to issue
    kWarpgroup = kTurn + kNumMmaWarpgroups  // and the next ones: among a warpgroup's warps
  };

  // A position in a ring of stages, which also counts laps modulo 2: the parity of the phase in
  // which this lap fills the stage.
  template <int kStages>
  struct Ring {
    int slot = 0;
    __device__ __forceinline__ int stage() const { return slot < kStages ? slot : slot - kStages; }
    __device__ __forceinline__ uint32 parity() const { return slot < kStages ? 0 : 1; }
    __device__ __forceinline__ void advance() { slot = slot == 2 * kStages - 1 ? 0 : slot + 1; }
  };

  // A query tile, as the producer tells it.
  struct Work {
    int first_row;  // in its sequence; negative when no tile is left
    BoxOrigin queries;  // of the tile
    BoxOrigin keys;     // of the sequence
    Geometry geometry;
    int head_class;
    const int* numbers;
    float softcap;
    float* lse;   // of the sequence and head, or null
    uint16* out;  // likewise
  };

  // What the producer keeps between copies: in shared memory, for it has few registers.
  struct Producer {
    static constexpr int kNoValues = -1;
    KeyWalk<Classes> walk;
    TileDescriptor tile;  // whose K is to be loaded next; empty when the walk is over
    TileDescriptor next;  // the one after it
    BoxOrigin values;     // the tile whose V is to be loaded next
    int values_rows;      // its rows that may be read; kNoValues: there is no such tile
    Ring<kNumStages> values_ring;
    uint32 tail_parity;
  };

  struct Control {
    uint64 q_full[kNumQStages], q_empty[kNumQStages], out_full[kNumQStages];
    uint64 k_full[kNumStages], k_empty[kNumStages];
    uint64 v_full[kNumStages], v_empty[kNumStages];
    uint64 v_tail;
    Producer producer;
    TileDescriptor tiles[kNumStages];
    Work work[kNumQStages];
  };
  static_assert(sizeof(Control) <= kFwdSm90ControlBytes);

  static __device__ __forceinline__ void wait(const uint64& barrier, uint32 parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  static __device__ __forceinline__ void arrive(const uint64& barrier) {
    mbarrier_arrive(shared_address(&barrier));
  }

  // --- Producing ---

  // Starts the copy of kRows rows, panel after panel, which `barrier` waits for; by one lane.
  template <int kRows, int kNumPanels>
  static __device__ __forceinline__ void load_panels(uint32 tile, const TensorMap& map,
                                                     const uint64& barrier, BoxOrigin at) {
    mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kRows * kPanelRowBytes);
#pragma unroll
    for (int panel = 0; panel < kNumPanels; ++panel) {
      tma_load(tile + panel * kRows * kPanelRowBytes, map, shared_address(&barrier),
               {panel * kPanelColumns, at.row, at.head, at.batch});
    }
  }

  // Fills in the query tile `index`; false when it has no rows. By one lane.
  static __device__ __forceinline__ bool describe(Work& work, const FwdParams& params,
                                                  const Heads& heads, int index) {
    const QueryTile at = query_tile(params, index);
    const Sequence sequence = sequence_of(params, at.batch);
    const auto& head = heads.rows[Heads::kCapacity == 1 ? 0 : at.head];
    work.first_row = at.m_block * kBlockM;
    work.geometry = sequence.geometry;
    work.queries = {0, sequence.q_row + work.first_row, at.head, sequence.q_batch};
    work.keys = {0, sequence.k_row, at.head / params.group_size, sequence.k_batch};
    work.head_class = Classes::kCount == 1 ? 0 : head.head_class;
    work.numbers = head.numbers;
    work.softcap = head.softcap;
    work.lse = params.lse == nullptr ? nullptr
                                     : params.lse + offset(params.lse_strides, sequence.q_batch,
                                                           sequence.q_row, at.head);
    work.out = static_cast<uint16*>(params.out) +
               offset(params.out_strides, sequence.q_batch, sequence.q_row, at.head);
    return work.first_row < work.geometry.seqlen_q;
  }

  // Rows that see nothing still walk one tile, all masked: their output is written as others' is.
  static __device__ __forceinline__ TileDescriptor first_visited(KeyWalk<Classes>& walk,
                                                                 const Geometry& geometry) {
    const TileDescriptor tile = walk.next(geometry);
    if (tile.kind != static_cast<int>(TileKind::empty)) return tile;
    return {0, static_cast<int>(TileKind::partial)};
  }

  // Starts the copy of K of the next tile, then looks for the one after it. By one lane.
  static __device__ __forceinline__ void load_keys(const FwdTensorMaps& maps, Control& control,
                                                   uint32 shared, const Work& work, int stage) {
    Producer& producer = control.producer;
    const TileDescriptor tile = producer.tile;
    const TileDescriptor next = producer.next;
    BoxOrigin at = work.keys;
    at.row += tile.n_block * kBlockN;
    control.tiles[stage] = {tile.n_block, tile.kind | (next.kind == 0 ? kLastTile : 0)};
    load_panels<kBlockN, kPanels>(shared + kLayout.k_offset + stage * kLayout.k_stage_bytes, maps.k,
                                  control.k_full[stage], at);
    producer.tile = next;
    producer.next = producer.walk.next(work.geometry);
  }

  // Starts the copy of V of the tile whose K came last but one. V goes one tile behind K, as it is
  // used.
  static __device__ __forceinline__ void load_values(const FwdTensorMaps& maps, Control& control,
                                                     unsigned char* shared) {
    Producer& producer = control.producer;
    if (producer.values_rows == Producer::kNoValues) return;
    const int stage = producer.values_ring.stage();
    unsigned char* tile = shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    const bool whole = producer.values_rows >= kBlockN;
    wait(control.v_empty[stage], producer.values_ring.parity() ^ 1);
    if (elect_one()) {
      load_panels<kBlockN, kPanelsV>(shared_address(tile), maps.v,
                                     whole ? control.v_full[stage] : control.v_tail,
                                     producer.values);
    }
    __syncwarp();
    if (!whole) zero_tail(control, tile, stage);
    if (elect_one()) producer.values_rows = Producer::kNoValues;
    __syncwarp();
  }

  // Rows that are another sequence's, or that nobody has written, become zeros: a probability of 0
  // times NaN would be NaN.
  static __device__ __forceinline__ void zero_tail(Control& control, unsigned char* tile,
                                                   int stage) {
    Producer& producer = control.producer;
    wait(control.v_tail, producer.tail_parity);
    for (int panel = 0; panel < kPanelsV; ++panel) {
      for (int chunk = producer.values_rows * 8 + threadIdx.x % 32; chunk < kBlockN * 8;
           chunk += 32) {
        *reinterpret_cast<uint4*>(tile + panel * kBlockN * kPanelRowBytes + chunk * 16) = {};
      }
    }
    fence_proxy_async();
    __syncwarp();
    if (elect_one()) {
      producer.tail_parity ^= 1;
      arrive(control.v_full[stage]);
    }
  }

  static __device__ __forceinline__ void produce(const FwdParams& params, const Heads& heads,
                                                 const FwdTensorMaps& maps, int* counter,
                                                 Control& control, unsigned char* shared) {
    Producer& producer = control.producer;
    Ring<kNumStages> keys;
    Ring<kNumQStages> queries;
    for (int index = blockIdx.x;; index = next_tile(params, counter)) {
      load_values(maps, control, shared);
      const int stage = queries.stage();
      Work& work = control.work[stage];
      wait(control.q_empty[stage], queries.parity() ^ 1);
      if (index >= params.num_tiles) {
        if (elect_one()) {
          work.first_row = -1;
          arrive(control.q_full[stage]);
        }
        return;
      }
      bool has_rows = false;
      if (elect_one()) {
        has_rows = describe(work, params, heads, index);
        if (has_rows) {
          producer.walk = {{work.first_row, min(work.first_row + kBlockM, work.geometry.seqlen_q)},
                           {kBlockN, work.geometry.seqlen_k},
                           work.head_class,
                           work.numbers};
          producer.tile = first_visited(producer.walk, work.geometry);
          load_panels<kBlockM, kPanels>(shared_address(shared) + stage * kLayout.q_stage_bytes,
                                        maps.q, control.q_full[stage], work.queries);
          producer.next = producer.walk.next(work.geometry);
        }
      }
      if (!__any_sync(0xffffffff, has_rows)) continue;

      while (producer.tile.kind != 0) {
        wait(control.k_empty[keys.stage()], keys.parity() ^ 1);
        int rows = kBlockN;
        if (params.cu_seqlens_k != nullptr || params.seqused_k != nullptr) {
          rows = work.geometry.seqlen_k - producer.tile.n_block * kBlockN;
        }
        BoxOrigin at = work.keys;
        at.row += producer.tile.n_block * kBlockN;
        __syncwarp();
        if (elect_one()) {
          load_keys(maps, control, shared_address(shared), work, keys.stage());
        }
        __syncwarp();
        load_values(maps, control, shared);
        if (elect_one()) {
          producer.values = at;
          producer.values_rows = rows;
          producer.values_ring = keys;
        }
        __syncwarp();
        keys.advance();
      }
      queries.advance();
    }
  }

  // The index of the CTA's next query tile: those of the grid's first tiles are their CTAs'.
  // Whoever takes the last one leaves the counter as the next launch needs it.
  static __device__ __forceinline__ int next_tile(const FwdParams& params, int* counter) {
    int taken = 0;
    if (threadIdx.x % 32 == 0) {
      taken = atomicAdd(counter, 1);
      if (taken == params.num_tiles - 1) *counter = 0;
    }
    return gridDim.x + __shfl_sync(0xffffffff, taken, 0);
  }

  // Stores finished tiles; Q's stage is free once it has been read.
  static __device__ __forceinline__ void store(const FwdParams& params, const FwdTensorMaps& maps,
                                               Control& control, unsigned char* shared) {
    for (Ring<kNumQStages> queries;; queries.advance()) {
      const int stage = queries.stage();
      wait(control.q_full[stage], queries.parity());
      const Work& work = control.work[stage];
      if (work.first_row < 0) return;
      wait(control.out_full[stage], queries.parity());
      unsigned char* tile = shared + stage * kLayout.q_stage_bytes;
      if (params.cu_seqlens_q == nullptr || work.first_row + kBlockM <= work.geometry.seqlen_q) {
        if (elect_one()) {
#pragma unroll
          for (int panel = 0; panel < kPanelsV; ++panel) {
            tma_store(
                maps.out, shared_address(tile) + panel * kBlockM * kPanelRowBytes,
                {panel * kPanelColumns, work.queries.row, work.queries.head, work.queries.batch});
          }
          tma_store_commit();
          tma_store_wait_read();
          arrive(control.q_empty[stage]);
        }
      } else {
        constexpr int kChunksPerRow = kHeadDimV / 8;
        const int rows = work.geometry.seqlen_q - work.first_row;
        for (int index = threadIdx.x % 32; index < rows * kChunksPerRow; index += 32) {
          const int row = index / kChunksPerRow;
          const int chunk = index % kChunksPerRow;
          *reinterpret_cast<uint4*>(work.out + (work.first_row + row) * params.out_strides.row +
                                    8 * chunk) =
              *reinterpret_cast<const uint4*>(tile + staged_chunk(row, chunk));
        }
        __syncwarp();
        if (elect_one()) arrive(control.q_empty[stage]);
      }
      __syncwarp();
    }
  }

  // Byte offset of a 16-byte chunk of the output in its staging tile.
  static __device__ __forceinline__ int staged_chunk(int row, int chunk) {
    return chunk / 8 * kBlockM * kPanelRowBytes + row * kPanelRowBytes +
           ((chunk % 8 ^ row % 8) << 4);
  }

  // --- Consuming ---

  // Starts scores = Q * K^T.
  static __device__ __forceinline__ void score(Scores& scores, const RowOperand<kBlockM>& q,
                                               uint32 k_tile) {
    const RowOperand<kBlockN> k(k_tile);
    pin_registers(scores);
    wgmma_fence();
#pragma unroll
    for (int d = 0; d < kHeadDim / 16; ++d) {
      Wgmma<Element, kBlockN>::multiply(scores, q.step(d), k.step(d), d > 0);
    }
    wgmma_commit();
  }

  // Starts output += P * V.
  static __device__ __forceinline__ void accumulate(Output& output, Probabilities& probabilities,
                                                    uint32 v_tile) {
    const ColumnOperand<kBlockN> v(v_tile);
    pin_registers(output);
    pin_registers(probabilities);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < kBlockN / 16; ++k) {
      Wgmma<Element, kHeadDimV>::multiply_transposed(output, probabilities[k], v.step(k));
    }
    wgmma_commit();
  }

  // Probabilities as wgmma's A operand: an accumulator is one, element for element.
  static __device__ __forceinline__ void pack_probabilities(Probabilities& packed,
                                                            const Scores& p) {
#pragma unroll
    for (int j = 0; j < kKeyFragments / 2; ++j) {
      packed[j][0] = pack<Element>(p[2 * j][0], p[2 * j][1]);
      packed[j][1] = pack<Element>(p[2 * j][2], p[2 * j][3]);
      packed[j][2] = pack<Element>(p[2 * j + 1][0], p[2 * j + 1][1]);
      packed[j][3] = pack<Element>(p[2 * j + 1][2], p[2 * j + 1][3]);
    }
  }

  // Softcap and mask.
  static __device__ __forceinline__ void modify(Scores& scores, const FwdParams& params,
                                                const Work& work, TileDescriptor tile,
                                                int warp_row, int lane) {
    if constexpr (Config::kSoftcap) {
      if (work.softcap > 0.0f) cap_scores(scores, params.softmax_scale_log2 / work.softcap);
    }
    if (tile.kind & static_cast<int>(TileKind::partial)) {
      WarpMask<16, kBlockN> mask;
      mask.template evaluate<Classes>(work.head_class, work.numbers, work.geometry,
                                      work.first_row + warp_row,
                                      tile.n_block * kBlockN);
#pragma unroll
      for (int r = 0; r < 2; ++r) mask.apply(scores, 8 * r + lane / 4, r);
    }
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

  // Normalises, writes lse, and puts the output where the warpgroup's own rows of Q were.
  static __device__ __forceinline__ void stage_output(unsigned char* staging,
                                                      const FwdParams& params, const Work& work,
                                                      const Output& output,
                                                      const OnlineSoftmax& softmax) {
    const int thread = fresh_thread_index();
    const float scale = score_scale(params, work).natural;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = (thread - 128) / 32 * 16 + 8 * r + thread % 32 / 4;
      float lse;
      const float factor = softmax.finish(r, scale, params.empty_lse, lse);
      if (work.lse != nullptr && thread % 4 == 0 && work.first_row + row < work.geometry.seqlen_q) {
        work.lse[work.first_row + row] = lse;
      }
#pragma unroll
      for (int d = 0; d < kDimFragments; ++d) {
        *reinterpret_cast<uint32*>(staging + staged_chunk(row, d) + 4 * (thread % 4)) =
            pack<Element>(output[d][2 * r] * factor, output[d][2 * r + 1] * factor);
      }
    }
  }

  static __device__ __forceinline__ ScoreScale score_scale(const FwdParams& params,
                                                           const Work& work) {
    const ScoreScale scale{params.softmax_scale, params.softmax_scale_log2};
    if constexpr (Config::kSoftcap) return capped_scale(scale, work.softcap);
    return scale;
  }

  static __device__ __forceinline__ void consume(const FwdParams& params, Control& control,
                                                 unsigned char* shared_bytes, int warpgroup) {
    const uint32 shared = shared_address(shared_bytes);
    const int lane = threadIdx.x % 32;
    const int warp_row = 64 * warpgroup + threadIdx.x / 32 % 4 * 16;
    const auto take_turn = [&] {
      if (DEV_PINGPONG) named_barrier_sync<256>(kTurn + warpgroup);
    };
    const auto pass_turn = [&] {
      if (DEV_PINGPONG)
        named_barrier_arrive<256>(kTurn + (warpgroup + 1 == kNumMmaWarpgroups ? 0 : warpgroup + 1));
    };
    if (warpgroup == kNumMmaWarpgroups - 1) pass_turn();
    const auto k_tile = [&](int stage) {
      return shared + kLayout.k_offset + stage * kLayout.k_stage_bytes;
    };
    const auto v_tile = [&](int stage) {
      return shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    };
    const auto release = [&](const uint64& barrier) {
      if (lane == 0) arrive(barrier);
    };

    Ring<kNumStages> keys, values;
    Ring<kNumQStages> queries;
    Scores scores;
    Probabilities probabilities;
    Output output;
    OnlineSoftmax softmax;
    float shrink[2];

    const auto start_values = [&] {
      wait(control.v_full[values.stage()], values.parity());
      accumulate(output, probabilities, v_tile(values.stage()));
    };
    const auto finish_values = [&] {
      wgmma_wait<0>();
      pin_registers(output);
      release(control.v_empty[values.stage()]);
      values.advance();
    };
    const auto finish_tile = [&](int stage) {
      named_barrier_sync<128>(kWarpgroup + warpgroup);  // no warp reads these rows of Q any more
      stage_output(shared_bytes + stage * kLayout.q_stage_bytes, params, control.work[stage],
                   output, softmax);
      fence_proxy_async();
      __syncwarp();
      release(control.out_full[stage]);
    };

    TileDescriptor tile{};
    const auto await_keys = [&] { wait(control.k_full[keys.stage()], keys.parity()); };
    const auto start_scores = [&] {
      tile = control.tiles[keys.stage()];
      score(scores,
            RowOperand<kBlockM>(shared + queries.stage() * kLayout.q_stage_bytes +
                                warpgroup * 64 * kPanelRowBytes),
            k_tile(keys.stage()));
    };
    const auto finish_scores = [&] {
      pin_registers(scores);
      release(control.k_empty[keys.stage()]);
      keys.advance();
      modify(scores, params, control.work[queries.stage()], tile, warp_row, lane);
      softmax.update(scores, score_scale(params, control.work[queries.stage()]).log2, shrink);
      pin_registers(scores);
    };
    const auto more = [&] {
      wait(control.q_full[queries.stage()], queries.parity());
      return control.work[queries.stage()].first_row >= 0;
    };

    if (!more()) return;
    await_keys();
    start_scores();
    wgmma_wait<0>();
    for (;;) {
      clear(output);
      softmax = {};
      finish_scores();
      pack_probabilities(probabilities, scores);
      if (!(tile.kind & kLastTile)) await_keys();
      while (!(tile.kind & kLastTile)) {
        take_turn();
        start_scores();
        start_values();
        pass_turn();
        wgmma_wait<1>();
        finish_scores();
        if (!(tile.kind & kLastTile)) await_keys();
        finish_values();
        if (__any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
          rescale(output, shrink);
        }
        pack_probabilities(probabilities, scores);
      }

      // On to the next query tile: its first product beside the last one of this, where Q's next
      // stage is another.
      const int finished = queries.stage();
      queries.advance();
      if constexpr (kNumQStages == 1) {
        start_values();
        finish_values();
        finish_tile(finished);
        if (!more()) return;
        await_keys();
        start_scores();
        wgmma_wait<0>();
      } else {
        const bool another = more();
        if (another) {
          await_keys();
          start_scores();
          start_values();
          wgmma_wait<0>();
        } else {
          start_values();
          wgmma_wait<0>();
        }
        finish_values();
        finish_tile(finished);
        if (!another) return;
      }
    }
  }

  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads,
                                             const FwdTensorMaps& maps, int* counter) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Control& control = *reinterpret_cast<Control*>(shared + kLayout.control_offset);
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    const int warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
      const auto init = [](const uint64& barrier, int arrivals) {
        mbarrier_init(shared_address(&barrier), arrivals);
      };
      constexpr int kConsumerWarps = 4 * kNumMmaWarpgroups;
      for (int i = 0; i < kNumQStages; ++i) {
        init(control.q_full[i], 1);
        init(control.q_empty[i], 1);
        init(control.out_full[i], kConsumerWarps);
      }
      for (int i = 0; i < kNumStages; ++i) {
        init(control.k_full[i], 1);
        init(control.k_empty[i], kConsumerWarps);
        init(control.v_full[i], 1);
        init(control.v_empty[i], kConsumerWarps);
      }
      init(control.v_tail, 1);
      control.producer.values_rows = Producer::kNoValues;
      control.producer.tail_parity = 0;
      fence_mbarrier_init();
      tma_prefetch_map(maps.q);
      tma_prefetch_map(maps.k);
      tma_prefetch_map(maps.v);
      tma_prefetch_map(maps.out);
    }
    __syncthreads();

    if (warpgroup == 0) {
      shrink_registers<kProducerRegisters>();
      if (warp == 0) produce(params, heads, maps, counter, control, shared);
      if (warp == 1) store(params, maps, control, shared);
    } else {
      grow_registers<kConsumerRegisters>();
      consume(params, control, shared, warpgroup - 1);
    }
  }
};

}  // namespace girih
