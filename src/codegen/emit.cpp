#include "codegen/emit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "girih/version.hpp"

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
  girih::BuildNumbers::run(params);
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
                       const __grid_constant__ girih::SplitMemory splits) {{
  girih::FwdSm90<girih::Config>::Splits::merge(params, splits);
}}
)";

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
              const __grid_constant__ girih::FwdTensorMaps maps, int* counter{rows_parameter}) {{
  girih::FwdSm90<girih::Config>::run(params, heads, {inputs}, maps, counter{rows});
}}
)";

std::string config_of(const plan::KernelSpec& spec) {
  const TileConfig& tile = spec.tile;
  const bool sm90 = spec.family == plan::KernelFamily::fwd_sm90;
  return fmt::format(kConfig, fmt::arg("element", spec.dtype == DType::bfloat16 ? "Bf16" : "Fp16"),
                     fmt::arg("head_dim", spec.head_dim), fmt::arg("head_dim_v", spec.head_dim_v),
                     fmt::arg("block_m", tile.block_m), fmt::arg("block_n", tile.block_n),
                     fmt::arg("num_stages", tile.num_stages),
                     fmt::arg("last_name", sm90 ? "kNumQStages" : "kNumWarps"),
                     fmt::arg("last_value", sm90 ? tile.num_q_stages : tile.num_warps),
                     fmt::arg("hopper", sm90 ? fmt::format(kHopperConfig, spec.key_box,
                                                           spec.pack_heads, spec.pass_over)
                                             : ""),
                     fmt::arg("softcap", spec.softcap),
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
      fmt::arg("rows_parameter",
               spec.gathers  ? ",\n              const __grid_constant__ girih::FwdRowMaps row_maps"
               : spec.splits ? ",\n              const __grid_constant__ girih::SplitMemory splits"
                             : ""),
      fmt::arg("rows", spec.gathers  ? ", &row_maps"
                       : spec.splits ? ", nullptr, &splits"
                                     : ""),
      fmt::arg("inputs", spec.num_inputs > 0 ? "inputs.views" : "nullptr"));
}

}  // namespace

std::string emit(const plan::KernelSpec& spec) {
  std::string source = fmt::format("// Girih {}: {}, {}, head_dim {}, {}.\n", GIRIH_VERSION,
                                   spec.tile_maxima ? "tile maxima" : "attention forward",
                                   to_string(spec.dtype), spec.head_dim, spec.arch.name());
  if (spec.builds_lists) source += "#include \"girih/build_lists.cuh\"\n";
  if (spec.builds_numbers) source += "#include \"girih/build_numbers.cuh\"\n";
  if (spec.builds_slashes) source += "#include \"girih/build_slash.cuh\"\n";
  source += fmt::format("#include \"girih/{}.cuh\"\n", plan::to_string(spec.family));
  source += config_of(spec) + kernel_of(spec);
  if (spec.builds_lists) source += fmt::format(kBuildLists, kBuildListsSymbol);
  if (spec.builds_numbers) source += fmt::format(kBuildNumbers, kBuildNumbersSymbol);
  if (spec.builds_slashes) source += fmt::format(kBuildSlash, kBuildSlashSymbol);
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

}  // namespace girih::codegen
