// Girih 0.1.0: attention forward, bf16, head_dim 128, sm_90a.
#define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 128, 128) RS(Bf16, 128, 128)
#include "girih/build_lists.cuh"
#include "girih/attn/splits_sm90.cuh"
#include "girih/fwd_sm90.cuh"

namespace girih {
struct Config {
  using Element = Bf16;
  static constexpr int kHeadDim = 128;
  static constexpr int kHeadDimV = 128;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 128;
  static constexpr int kNumStages = 2;
  static constexpr int kNumQStages = 2;
  static constexpr int kKeyBox = 64;
  static constexpr bool kPackHeads = false;
  static constexpr bool kPassOver = true;
  static constexpr bool kSoftcap = false;
  static constexpr bool kSplits = true;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Leaf<Blocks>>,
      Any<Leaf<Sink, 0x1>, Leaf<Window, 0x2>>,
      Leaf<Causal>>;
  using Heads = HeadTable<32, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(384, 1)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<3> inputs,
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter,
              const __grid_constant__ girih::SplitMemory splits) {
  girih::FwdSm90<girih::Config>::run(params, heads, inputs.views, maps, counter, nullptr, nullptr, &splits);
}

extern "C" __global__ void __launch_bounds__(girih::kBuildListsThreads)
    girih_build_lists(const __grid_constant__ girih::BuildListsParams params) {
  girih::BuildLists::run(params);
}

extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    girih_plan_splits(const __grid_constant__ girih::FwdParams params,
                      const __grid_constant__ girih::Config::Heads heads,
                      const __grid_constant__ girih::InputTable<3> inputs,
                      const __grid_constant__ girih::SplitMemory splits,
                      girih::SplitPhase phase) {
  girih::FwdSm90<girih::Config>::Splits::plan(params, heads, inputs.views, splits, phase);
}

extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    girih_merge_splits(const __grid_constant__ girih::FwdParams params,
                       const __grid_constant__ girih::SplitMemory splits, int* counter) {
  girih::FwdSm90<girih::Config>::Splits::merge(params, splits, counter);
}
