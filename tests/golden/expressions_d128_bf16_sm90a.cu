// Girih 0.1.0: attention forward, bf16, head_dim 128, sm_90a.
#define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 80, 128) RS(Bf16, 128, 80)
#include "girih/build_tiles.cuh"
#include "girih/shared/score.cuh"
#include "girih/fwd_sm90.cuh"

namespace girih {
struct Condition_1281c476b26d7797 : ExpressionTensors<int> {
  static constexpr int kNumTensors = 1;
  GIRIH_HD bool operator()(const ElementIndices& at) const {
    return ((element<2, 0x1>(0, at.b, at.q) == element<2, 0x1>(0, at.b, at.k)) || (remainder(subtract(at.p, at.k), 64) < 2));
  }
};

struct Score_d29890e7d15948eb : ExpressionTensors<float> {
  static constexpr int kNumTensors = 1;
  GIRIH_HD float operator()(float score, const ElementIndices& at) const {
    return add(multiply(score, 0.5f), element<2, 0x1>(0, at.local_h, arithmetic_min(subtract(at.p, at.k), 63)));
  }
};
}  // namespace girih

namespace girih {
struct Config {
  using Element = Bf16;
  static constexpr int kHeadDim = 128;
  static constexpr int kHeadDimV = 128;
  static constexpr int kBlockM = 128;
  static constexpr int kBlockN = 80;
  static constexpr int kNumStages = 3;
  static constexpr int kNumQStages = 2;
  static constexpr int kKeyBox = 80;
  static constexpr bool kPackHeads = false;
  static constexpr bool kPassOver = true;
  static constexpr bool kSoftcap = false;
  using Classes = HeadClasses<  //
      All<Leaf<Causal>, Expr<Condition_1281c476b26d7797>>,
      With<Leaf<Causal>, Score<Score_d29890e7d15948eb>>>;
  using Heads = HeadTable<32, Classes::kNumNumbers>;
};
}  // namespace girih

extern "C" __global__ void __launch_bounds__(384, 1)
    girih_fwd(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads,
              const __grid_constant__ girih::InputTable<7> inputs,
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter) {
  girih::FwdSm90<girih::Config>::run(params, heads, inputs.views, maps, counter);
}

extern "C" __global__ void __launch_bounds__(girih::kBuildTilesThreads, girih::kBuildTilesCtas)
    girih_build_tiles(const __grid_constant__ girih::BuildTilesParams build,
                      const __grid_constant__ girih::FwdParams params,
                      const __grid_constant__ girih::InputTable<7> inputs) {
  girih::BuildTiles<girih::Condition_1281c476b26d7797>::run(build, params, inputs.views);
}
