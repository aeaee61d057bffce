// An entry of the Hopper kernel, for clangd to open; the tests compile it with NVRTC. It holds
// every atom and every operator.
#define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 128, 128) RS(Bf16, 128, 128)
#include "girih/attn/splits_sm90.cuh"
#include "girih/build_lists.cuh"
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
  static constexpr int kKeyBox = kBlockN;
  static constexpr bool kPackHeads = false;
  static constexpr bool kPassOver = true;
  static constexpr bool kSoftcap = true;
  static constexpr bool kSplits = true;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Any<Leaf<Sink>, Leaf<Window>>>, All<Leaf<Causal>, Leaf<Strided>>,
      Any<Leaf<FirstQueries>, Leaf<LastQueries>, Leaf<LastKeys>, Leaf<BlockWindow>>,
      Any<All<Leaf<Queries>, Leaf<Keys>>, All<Leaf<Causal>, Leaf<Chunk>>>, Leaf<BlockStreaming>,
      Leaf<Dense>, Not<Leaf<Window>>, All<Leaf<Blocks>, Leaf<Window, 0x1>>>;
  using Heads = HeadTable<32, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(girih::FwdSm90<girih::Config>::kNumThreads, 1)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<2> inputs,
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter,
              const __grid_constant__ girih::SplitMemory splits) {
  girih::FwdSm90<girih::Config>::run(params, heads, inputs.views, maps, counter, nullptr, nullptr,
                                     &splits);
}

extern "C" __global__ void __launch_bounds__(girih::kBuildListsThreads)
    girih_build_lists(const __grid_constant__ girih::BuildListsParams params) {
  girih::BuildLists::run(params);
}

extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    girih_plan_splits(const __grid_constant__ girih::FwdParams params,
                      const __grid_constant__ girih::Config::Heads heads,
                      const __grid_constant__ girih::InputTable<2> inputs,
                      const __grid_constant__ girih::SplitMemory splits, girih::SplitPhase phase) {
  girih::FwdSm90<girih::Config>::Splits::plan(params, heads, inputs.views, splits, phase);
}

extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    girih_merge_splits(const __grid_constant__ girih::FwdParams params,
                       const __grid_constant__ girih::SplitMemory splits, int* counter) {
  girih::FwdSm90<girih::Config>::Splits::merge(params, splits, counter);
}
