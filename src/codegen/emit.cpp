#include "codegen/emit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>
#include <vector>

#include "girih/version.hpp"
#include "pattern/atoms.hpp"

namespace girih::codegen {

namespace {

// The kernel that prepares run-time lists, beside the one that reads them.
constexpr const char* kBuildLists = R"(
extern "C" __global__ void __launch_bounds__(girih::kBuildListsThreads)
    {}(const __grid_constant__ girih::BuildListsParams params) {{
  girih::BuildLists::run(params);
}}
)";

// Likewise for numbers of tokens.
constexpr const char* kBuildNumbers = R"(
extern "C" __global__ void __launch_bounds__(girih::kBuildNumbersThreads)
    {}(const __grid_constant__ girih::BuildNumbersParams params) {{
  girih::BuildNumbers<{}>::run(params);
}}
)";

// Likewise for columns and slashes, whose windows depend on the sequences' lengths.
constexpr const char* kBuildSlash = R"(
extern "C" __global__ void __launch_bounds__(girih::kBuildSlashThreads)
    {}(const __grid_constant__ girih::BuildSlashParams build,
                      const __grid_constant__ girih::FwdParams params) {{
  girih::BuildSlash::run(build, params);
}}
)";

// Likewise for the tiles of expressions, which depend on the sequences' lengths.
constexpr const char* kBuildTiles = R"(
extern "C" __global__ void __launch_bounds__(girih::kBuildTilesThreads, girih::kBuildTilesCtas)
    {}(const __grid_constant__ girih::BuildTilesParams build,
                      const __grid_constant__ girih::FwdParams params,
                      const __grid_constant__ girih::InputTable<{}> inputs) {{
  girih::BuildTiles<{}>::run(build, params, inputs.views);
}}
)";

constexpr const char* kCondition = R"(
struct {} : ExpressionTensors<int> {{
  static constexpr int kNumTensors = {};
  GIRIH_HD bool operator()(const ElementIndices& at) const {{
    return {};
  }}
}};
)";

constexpr const char* kScore = R"(
struct {} : ExpressionTensors<float> {{
  static constexpr int kNumTensors = {};
  GIRIH_HD float operator()(float score, const ElementIndices& at) const {{
    return {};
  }}
}};
)";

constexpr const char* kCombine = R"(
extern "C" __global__ void __launch_bounds__(girih::kCombineThreads)
    {}(const __grid_constant__ girih::CombineParams params) {{
  girih::Combine::run(params);
}}
)";

// Plans which query tiles are split, and merges their parts.
constexpr const char* kSplitKernels = R"(
extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    {}(const __grid_constant__ girih::FwdParams params,
                      const __grid_constant__ girih::Config::Heads heads,
                      const __grid_constant__ girih::InputTable<{}> inputs,
                      const __grid_constant__ girih::SplitMemory splits,
                      girih::SplitPhase phase) {{
  girih::FwdSm90<girih::Config>::Splits::plan(params, heads, inputs.views, splits, phase);
}}

extern "C" __global__ void __launch_bounds__(girih::kSplitThreads, 2)
    {}(const __grid_constant__ girih::FwdParams params,
                       const __grid_constant__ girih::SplitMemory splits, int* counter) {{
  girih::FwdSm90<girih::Config>::Splits::merge(params, splits, counter);
}}
)";

constexpr const char* kEstimate = R"(#include "girih/estimate_slash.cuh"
#include "girih/select_largest.cuh"

extern "C" __global__ void __launch_bounds__(girih::kEstimateThreads)
    {estimate}(const __grid_constant__ girih::EstimateParams params) {{
  extern __shared__ __align__(16) unsigned char shared[];
  girih::EstimateSlash<girih::{element}, {head_dim}>::run(params, shared);
}}

extern "C" __global__ void __launch_bounds__(girih::kSelectThreads)
    {select}(const __grid_constant__ girih::SelectParams params) {{
  girih::SelectLargest::run(params);
}}
)";

constexpr const char* kEstimateBlocks = R"(#include "girih/estimate_blocks.cuh"
#include "girih/pool_blocks.cuh"

extern "C" __global__ void __launch_bounds__(girih::kPoolThreads)
    {pool}(const __grid_constant__ girih::PoolBlocksParams params) {{
  girih::PoolBlocks<girih::{element}, {head_dim}>::run(params);
}}

extern "C" __global__ void __launch_bounds__(girih::kEstimateBlocksThreads, 1)
    {estimate}(const __grid_constant__ girih::EstimateBlocksParams params) {{
  extern __shared__ __align__(128) unsigned char shared[];
  girih::EstimateBlocks<girih::{element}, {head_dim}, {num_stages}>::run(params, shared);
}}
)";

// The products that ptx/wgmma.cuh is to define: Q * K^T and P * V.
constexpr const char* kProducts =
    "#define GIRIH_PRODUCTS(SS, RS) SS({0}, {1}, {2}) RS({0}, {3}, {1})\n";

// What the two families' entries have in common.
constexpr const char* kConfig = R"(
namespace girih {{
struct Config {{
  using Element = {element};
  static constexpr int kHeadDim = {head_dim};
  static constexpr int kHeadDimV = {head_dim_v};
  static constexpr int kBlockM = {block_m};
  static constexpr int kBlockN = {block_n};
  static constexpr int kNumStages = {num_stages};
  static constexpr int {last_name} = {last_value};{hopper}
  static constexpr bool kSoftcap = {softcap};{prune}{splits}
  using Classes = HeadClasses<  //
      {structures}>;
  using Heads = HeadTable<{head_capacity}, Classes::kNumNumbers{prune_number}>;
}};
}}  // namespace girih
)";

constexpr const char* kHopperConfig = R"(
  static constexpr int kKeyBox = {};
  static constexpr bool kPackHeads = {};
  static constexpr bool kPassOver = {};)";

constexpr const char* kElaborateConfig = R"(
  static constexpr bool kElaborate = true;)";

constexpr const char* kBricksConfig = R"(
  using QueryBrick = BrickOf<{}, {}, {}>;
  using KeyBrick = BrickOf<{}, {}, {}>;)";

constexpr const char* kPruneConfig = R"(
  static constexpr bool kPrune = true;)";

constexpr const char* kSplitsConfig = R"(
  static constexpr bool kSplits = true;)";

constexpr const char* kTileMaximaConfig = R"(
  static constexpr bool kTileMaxima = true;)";

constexpr const char* kFwdSm80 = R"(
extern "C" __global__ void __launch_bounds__({threads}, {min_ctas})
    {symbol}(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads{inputs_parameter}) {{
  girih::FwdSm80<girih::Config>::run(params, heads, {inputs});
}}
)";

constexpr const char* kFwdSm90 = R"(
extern "C" __global__ void __launch_bounds__({threads}, {min_ctas})
    {symbol}(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads{inputs_parameter},
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter{other_parameter}) {{
  girih::FwdSm90<girih::Config>::run(params, heads, {inputs}, maps, counter{other_argument});
}}
)";

std::string expressions_of(const plan::KernelSpec& spec) {
  std::string source;
  for (const plan::KernelSpec::Expression& expression : spec.expressions) {
    source += fmt::format(fmt::runtime(expression.of_scores ? kScore : kCondition), expression.name,
                          expression.num_tensors, expression.code);
  }
  return source.empty() ? "" : "\nnamespace girih {" + source + "}  // namespace girih\n";
}

std::string build_tiles_of(const plan::KernelSpec& spec) {
  std::vector<std::string> conditions;
  for (const plan::KernelSpec::Expression& expression : spec.expressions) {
    if (!expression.of_scores) conditions.push_back("girih::" + expression.name);
  }
  return fmt::format(kBuildTiles, kBuildTilesSymbol, spec.num_inputs, fmt::join(conditions, ", "));
}

std::string hopper_config_of(const plan::KernelSpec& spec) {
  const std::string config =
      fmt::format(kHopperConfig, spec.key_box, spec.pack_heads, spec.pass_over) +
      (spec.elaborate ? kElaborateConfig : "");
  if (!spec.bricks) return config;
  const GridPoint &queries = spec.bricks->queries, &keys = spec.bricks->keys;
  return config +
         fmt::format(kBricksConfig, queries.a, queries.b, queries.c, keys.a, keys.b, keys.c);
}

// What only some kernels of fwd_sm90 have: the parameter, and the argument of run().
struct OnlySome {
  const char* parameter = "";
  const char* argument = "";
};

OnlySome only_some_of(const plan::KernelSpec& spec) {
  if (spec.gathers) {
    return {",\n              const __grid_constant__ girih::FwdRowMaps row_maps", ", &row_maps"};
  }
  if (spec.bricks) {
    return {",\n              const __grid_constant__ girih::FwdBrickMaps brick_maps",
            ", nullptr, &brick_maps"};
  }
  if (spec.splits) {
    return {",\n              const __grid_constant__ girih::SplitMemory splits",
            ", nullptr, nullptr, &splits"};
  }
  return {};
}

const char* element_of(DType dtype) { return dtype == DType::bfloat16 ? "Bf16" : "Fp16"; }

std::string config_of(const plan::KernelSpec& spec) {
  const TileConfig& tile = spec.tile;
  const bool sm90 = spec.family == plan::KernelFamily::fwd_sm90;
  return fmt::format(
      kConfig, fmt::arg("element", element_of(spec.dtype)), fmt::arg("head_dim", spec.head_dim),
      fmt::arg("head_dim_v", spec.head_dim_v), fmt::arg("block_m", tile.block_m),
      fmt::arg("block_n", tile.block_n), fmt::arg("num_stages", tile.num_stages),
      fmt::arg("last_name", sm90 ? "kNumQStages" : "kNumWarps"),
      fmt::arg("last_value", sm90 ? tile.num_q_stages : tile.num_warps),
      fmt::arg("hopper", sm90 ? hopper_config_of(spec) : ""), fmt::arg("softcap", spec.softcap),
      fmt::arg("prune", spec.prune         ? kPruneConfig
                        : spec.tile_maxima ? kTileMaximaConfig
                                           : ""),
      fmt::arg("splits", spec.splits ? kSplitsConfig : ""),
      fmt::arg("prune_number", spec.prune ? " + 1" : ""),
      fmt::arg("structures", fmt::join(spec.structures, ",\n      ")),
      fmt::arg("head_capacity", spec.head_capacity));
}

std::string kernel_of(const plan::KernelSpec& spec) {
  const std::string inputs_parameter =
      spec.num_inputs == 0
          ? ""
          : fmt::format(",\n              const __grid_constant__ girih::InputTable<{}> inputs",
                        spec.num_inputs);
  return fmt::format(
      fmt::runtime(spec.family == plan::KernelFamily::fwd_sm90 ? kFwdSm90 : kFwdSm80),
      fmt::arg("threads", 32 * spec.tile.num_warps), fmt::arg("min_ctas", spec.min_ctas_per_sm),
      fmt::arg("symbol", kKernelSymbol), fmt::arg("inputs_parameter", inputs_parameter),
      fmt::arg("other_parameter", only_some_of(spec).parameter),
      fmt::arg("other_argument", only_some_of(spec).argument),
      fmt::arg("inputs", spec.num_inputs > 0 ? "inputs.views" : "nullptr"));
}

// The atoms that compare numbers of rows and keys.
std::string compared_atoms(const plan::KernelSpec& spec) {
  std::vector<std::string> atoms;
  for (const AtomInfo& atom : pattern::atom_table()) {
    if (atom.params[0].kind != ParamKind::input || atom.params[0].form != InputForm::indices) {
      continue;
    }
    const bool occurs = plan::any_contains(spec.structures, {fmt::format("Leaf<{}>", atom.type)});
    if (occurs) atoms.push_back(fmt::format("girih::{}", atom.type));
  }
  return fmt::format("{}", fmt::join(atoms, ", "));
}

}  // namespace

std::string emit(const plan::KernelSpec& spec) {
  std::string source = fmt::format("// Girih {}: {}, {}, head_dim {}, {}.\n", GIRIH_VERSION,
                                   spec.tile_maxima ? "tile maxima" : "attention forward",
                                   to_string(spec.dtype), spec.head_dim, spec.arch.name());
  if (spec.family == plan::KernelFamily::fwd_sm90) {
    source += fmt::format(kProducts, element_of(spec.dtype), spec.tile.block_n, spec.head_dim,
                          spec.head_dim_v);
  }
  if (spec.builds_lists) source += "#include \"girih/build_lists.cuh\"\n";
  if (spec.builds_numbers) source += "#include \"girih/build_numbers.cuh\"\n";
  if (spec.builds_slashes) source += "#include \"girih/build_slash.cuh\"\n";
  if (spec.builds_tiles()) source += "#include \"girih/build_tiles.cuh\"\n";
  if (spec.has_scores()) source += "#include \"girih/shared/score.cuh\"\n";
  if (spec.splits) source += "#include \"girih/attn/splits_sm90.cuh\"\n";
  source += fmt::format("#include \"girih/{}.cuh\"\n", plan::to_string(spec.family));
  source += expressions_of(spec) + config_of(spec) + kernel_of(spec);
  if (spec.builds_lists) source += fmt::format(kBuildLists, kBuildListsSymbol);
  if (spec.builds_numbers) {
    source += fmt::format(kBuildNumbers, kBuildNumbersSymbol, compared_atoms(spec));
  }
  if (spec.builds_slashes) source += fmt::format(kBuildSlash, kBuildSlashSymbol);
  if (spec.builds_tiles()) source += build_tiles_of(spec);
  if (spec.splits) {
    source += fmt::format(kSplitKernels, kPlanSplitsSymbol, spec.num_inputs, kMergeSplitsSymbol);
  }
  return source;
}

std::string emit_combine(const plan::Arch& arch) {
  return fmt::format("// Girih {}: merging partial results, {}.\n#include \"girih/combine.cuh\"\n",
                     GIRIH_VERSION, arch.name()) +
         fmt::format(kCombine, kCombineSymbol);
}

std::string emit_estimate(const plan::Arch& arch, DType dtype, int head_dim) {
  return fmt::format("// Girih {}: estimate of columns and slashes, {}, head_dim {}, {}.\n",
                     GIRIH_VERSION, to_string(dtype), head_dim, arch.name()) +
         fmt::format(kEstimate, fmt::arg("estimate", kEstimateSymbol),
                     fmt::arg("select", kSelectSymbol), fmt::arg("element", element_of(dtype)),
                     fmt::arg("head_dim", head_dim));
}

std::string emit_estimate_blocks(const plan::Arch& arch, DType dtype, int head_dim,
                                 int num_stages) {
  return fmt::format("// Girih {}: estimate of blocks, {}, head_dim {}, {}.\n", GIRIH_VERSION,
                     to_string(dtype), head_dim, arch.name()) +
         fmt::format(kEstimateBlocks, fmt::arg("pool", kPoolBlocksSymbol),
                     fmt::arg("estimate", kEstimateBlocksSymbol),
                     fmt::arg("element", element_of(dtype)), fmt::arg("head_dim", head_dim),
                     fmt::arg("num_stages", num_stages));
}

}  // namespace girih::codegen
