// Girih 0.1.0: attention forward, bf16, head_dim 128, sm_90a.
#define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 112, 128) RS(Bf16, 128, 112)
#include "girih/build_slash.cuh"
#include "girih/fwd_sm90.cuh"

namespace girih {
struct Config {
  using Element = Bf16;
  static constexpr int kHeadDim = 128;
  static constexpr int kHeadDimV = 128;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 112;
  static constexpr int kNumStages = 3;
  static constexpr int kNumQStages = 1;
  static constexpr int kKeyBox = 16;
  static constexpr bool kPackHeads = false;
  static constexpr bool kPassOver = true;
  static constexpr bool kSoftcap = false;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Any<Leaf<Sink>, Leaf<Window>>>,
      Leaf<VerticalSlash>>;
  using Heads = HeadTable<32, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(384, 1)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<1> inputs,
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter,
              const __grid_constant__ girih::FwdRowMaps row_maps) {
  girih::FwdSm90<girih::Config>::run(params, heads, inputs.views, maps, counter, &row_maps);
}

extern "C" __global__ void __launch_bounds__(girih::kBuildSlashThreads)
    girih_build_slash(const __grid_constant__ girih::BuildSlashParams build,
                      const __grid_constant__ girih::FwdParams params) {
  girih::BuildSlash::run(build, params);
}
