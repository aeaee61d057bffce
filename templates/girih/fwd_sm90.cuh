// Attention forward for Hopper (sm_90a): wgmma, the copy engine, warp specialisation.
//
// A CTA stays on its multiprocessor and takes query tiles (block_m rows of one head) until none is
// left. Its first warpgroup produces: warp 2 takes query tiles, describes them and finds the key
// tiles that the mask lets them visit, mostly running ahead into the next query tile
// (attn/schedule_sm90.cuh); warp 0 starts the copies of Q and K, warp 3 those of V, for either may
// consist of many boxes; warp 1 stores finished output (attn/copy_sm90.cuh).
// Every other warpgroup consumes (attn/consume_sm90.cuh; attn/prune_sm90.cuh where tiles are
// pruned): it owns 64 query rows, keeps their scores, probabilities and output in registers
// (attn/fragments_sm90.cuh), and passes over key tiles that only others' rows see. Of two
// consecutive key tiles it multiplies Q * K^T of the second and P * V of the first at once, and
// masks the second and begins its softmax (attn/lazy_softmax.cuh) while the latter runs. How these
// tell one another what to do is in attn/pipeline_sm90.cuh.
//
// Config offers Element (Bf16 or Fp16), kHeadDim and kHeadDimV (multiples of 16), kBlockM (64 a
// warpgroup, two or three of them), kBlockN (a multiple of 16), kNumStages (of K and of V),
// kNumQStages (2 where there is room, else 1), kKeyBox (a divisor of kBlockN, 16 or more: a key
// tile is gathered from boxes of so many keys, which a visit's flags or the mask tell apart),
// kPackHeads (whether each consumer warpgroup has the same 64 rows of a query head of its own, all
// with one key/value head, instead of 64 of the head's kBlockM rows), kPassOver (whether warpgroups
// pass over key tiles that only others see, or mask them), kSoftcap (whether some head has one),
// kPrune where heads are pruned (see attn/prune_sm90.cuh), kElaborate where masks take the
// scheduler many registers beside three consumer warpgroups, QueryBrick and KeyBrick where tiles
// are bricks of a grid (attn/bricks_sm90.cuh), kSplits where query tiles may be split
// (attn/splits_sm90.cuh), Heads (a HeadTable) and Classes (HeadClasses).
#pragma once

#include "girih/attn/consume_sm90.cuh"
#include "girih/attn/copy_sm90.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/prune_sm90.cuh"
#include "girih/attn/ring.cuh"
#include "girih/attn/schedule_sm90.cuh"
#include "girih/attn/scores.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"

namespace girih {

template <class Config>
struct FwdSm90 : PipelineSm90<Config> {
  using Pipeline = PipelineSm90<Config>;
  using Pipeline::kBlockN, Pipeline::kHeadDimV, Pipeline::kLayout, Pipeline::kNumMmaWarpgroups;
  using Pipeline::kGathers, Pipeline::kPrune;
  using Pipeline::kNumQStages, Pipeline::kNumStages, Pipeline::kNumVisits, Pipeline::kNumWorks;
  using typename Pipeline::Classes, typename Pipeline::Control, typename Pipeline::Heads;
  using Copies = CopiesSm90<Config>;

  // What setmaxnreg gives each role: together what the kernel has at entry, which is 168 a thread
  // for three warpgroups and 128 for four. What consumers need not have, elaborate masks need for
  // the scheduler's seeks, and heads of columns and slashes, alone or below `causal`, always do.
  // Scores that are modified need them too, and decisions on tiles; behind these an expression's
  // values are few, for nothing is in flight beside them.
  static constexpr int kFragmentRegisters = fwd_sm90_fragment_registers(kBlockN, kHeadDimV) +
                                            (!kNaturalScores<Classes> ? 0
                                             : Config::kSoftcap       ? 20
                                                                      : 16) +
                                            (kPrune                                  ? 24
                                             : ClassModifiers<Classes>::kExpressions ? 20
                                                                                     : 0);
  static constexpr bool kSlashes = SlashClasses<Classes>::kAny;
  static constexpr int kConsumerRegisters =
      kNumMmaWarpgroups == 3 ? (kIsElaborate<Config> || kFragmentRegisters <= 120 ? 152 : 160)
      : kFragmentRegisters > kFwdSm90RoomyFragments && !kSlashes ? 232
      : kFragmentRegisters >= 160                                ? 224
      : kFragmentRegisters > 144                                 ? 216
                                                                 : 208;
  static constexpr int kProducerRegisters =
      kNumMmaWarpgroups == 3 ? 4 * 128 - 3 * kConsumerRegisters : 3 * 168 - 2 * kConsumerRegisters;

  // `inputs`: the pattern's, by slot; null where it has none. `counter` is 0, and is again in the
  // end; launches that may run at once have different ones, or null. `row_maps` where kGathers,
  // `brick_maps` where kBricks, `splits` where SplitsTiles.
  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads,
                                             const InputView* inputs, const FwdTensorMaps& maps,
                                             int* counter, const FwdRowMaps* row_maps = nullptr,
                                             const FwdBrickMaps* brick_maps = nullptr,
                                             const SplitMemory* splits = nullptr) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Control& control = *reinterpret_cast<Control*>(shared + kLayout.control_offset);
    const bool produces = __shfl_sync(0xffffffff, threadIdx.x / 128, 0) == 0;
    if (threadIdx.x == 0) {
      const auto init = [](const uint64& barrier, int arrivals) {
        mbarrier_init(shared_address(&barrier), arrivals);
      };
      constexpr int kConsumerWarps = 4 * kNumMmaWarpgroups;
      const auto init_releases = [&](const uint64& barrier, int warps) {
        init(barrier, warps * kSpeakingLanes);
      };
      constexpr int kLoadingWarps = 2;
#pragma unroll 1
      for (int i = 0; i < kNumWorks; ++i) {
        init_releases(control.work_empty[i], kConsumerWarps + kLoadingWarps + 1);
      }
#pragma unroll 1
      for (int i = 0; i < kNumVisits; ++i) {
        init_releases(control.visit_full[i], 1);
        init_releases(control.visit_empty[i], kLoadingWarps);
      }
#pragma unroll 1
      for (int i = 0; i < kNumQStages; ++i) {
        init(control.q_full[i], 1);
        init_releases(control.q_empty[i], 1);
        init_releases(control.out_full[i], kConsumerWarps);
      }
#pragma unroll 1
      for (int i = 0; i < kNumStages; ++i) {
        init(control.k_full[i], kGathers ? kSpeakingLanes : 1);
        init_releases(control.k_empty[i], kConsumerWarps);
        init(control.v_full[i], 1);
        init_releases(control.v_empty[i], kConsumerWarps);
      }
      init(control.v_tail, 1);
      control.taken = 0;
      control.votes.init();
      control.skipped.init();
      fence_mbarrier_init();
      tma_prefetch_map(maps.q);
      tma_prefetch_map(maps.k);
      tma_prefetch_map(maps.v);
      tma_prefetch_map(maps.out);
    }
    __syncthreads();

    if (produces) {
      shrink_registers<kProducerRegisters>();
      const int warp = __shfl_sync(0xffffffff, fresh_thread_index() / 32, 0);
      if (warp == 0) Copies::load(params, maps, {row_maps, brick_maps}, control, shared);
      if (warp == 1) Copies::store(params, maps, control, shared);
      if (warp == 2) SchedulerSm90<Config>::run(params, heads, inputs, counter, control, splits);
      if (warp == 3) {
        Copies::load_values(params, maps, {row_maps, brick_maps}, control, shared);
      }
    } else {
      grow_registers<kConsumerRegisters>();
      // Found only here: from the kernel's beginning on it would be spilled.
      const int warpgroup = __shfl_sync(0xffffffff, fresh_thread_index() / 128, 0) - 1;
      if constexpr (kPrune) {
        PrunedConsumer<Config>{{}, params, control, shared, warpgroup}.run();
      } else {
        ConsumerSm90<Config>::run(params, control, shared, warpgroup);
      }
    }
  }
};

}  // namespace girih
