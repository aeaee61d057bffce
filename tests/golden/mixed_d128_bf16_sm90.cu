// Girih 0.1.0: attention forward, bf16, head_dim 128, sm_90.
#include "girih/fwd_sm80.cuh"

namespace girih {
struct Config {
  using Element = Bf16;
  static constexpr int kHeadDim = 128;
  static constexpr int kHeadDimV = 128;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 64;
  static constexpr int kNumStages = 2;
  static constexpr int kNumWarps = 4;
  static constexpr bool kSoftcap = false;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Any<Leaf<Sink>, Leaf<Window>>>,
      Leaf<Causal>>;
  using Heads = HeadTable<32, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(128, 2)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads) {
  girih::FwdSm80<girih::Config>::run(params, heads, nullptr);
}
