// Girih 0.1.0: attention forward, bf16, head_dim 128, sm_90a.
#define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 80, 128) RS(Bf16, 128, 80)
#include "girih/build_numbers.cuh"
#include "girih/fwd_sm90.cuh"

namespace girih {
struct Config {
  using Element = Bf16;
  static constexpr int kHeadDim = 128;
  static constexpr int kHeadDimV = 128;
  static constexpr int kBlockM = 192;
  static constexpr int kBlockN = 80;
  static constexpr int kNumStages = 3;
  static constexpr int kNumQStages = 2;
  static constexpr int kKeyBox = 80;
  static constexpr bool kPackHeads = false;
  static constexpr bool kPassOver = true;
  static constexpr bool kSoftcap = false;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Leaf<Segments>>>;
  using Heads = HeadTable<1, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(512, 1)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<1> inputs,
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter) {
  girih::FwdSm90<girih::Config>::run(params, heads, inputs.views, maps, counter);
}

extern "C" __global__ void __launch_bounds__(girih::kBuildNumbersThreads)
    girih_build_numbers(const __grid_constant__ girih::BuildNumbersParams params) {
  girih::BuildNumbers<girih::Segments>::run(params);
}
