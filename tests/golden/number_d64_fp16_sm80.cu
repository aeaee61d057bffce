// Girih 0.1.0: attention forward, fp16, head_dim 64, sm_80.
#include "girih/fwd_sm80.cuh"

namespace girih {
struct Config {
  using Element = Fp16;
  static constexpr int kHeadDim = 64;
  static constexpr int kHeadDimV = 64;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 64;
  static constexpr int kNumStages = 2;
  static constexpr int kNumWarps = 4;
  static constexpr bool kSoftcap = false;
  using Classes = HeadClasses<  //
      Any<Leaf<Causal>, Leaf<Sink, 0x1>>>;
  using Heads = HeadTable<1, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(128, 2)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<1> inputs) {
  girih::FwdSm80<girih::Config>::run(params, heads, inputs.views);
}
