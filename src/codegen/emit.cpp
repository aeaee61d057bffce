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

}  // namespace

std::string emit(const plan::KernelSpec& spec) {
  const TileConfig& tile = spec.tile;
  const std::string inputs_parameter =
      spec.num_inputs == 0
          ? ""
          : fmt::format(",\n              const __grid_constant__ girih::InputTable<{}> inputs",
                        spec.num_inputs);
  const std::string build_lists =
      spec.builds_lists ? fmt::format(kBuildLists, kBuildListsSymbol) : "";
  return fmt::format(R"(// Girih {version}: attention forward, {dtype}, head_dim {head_dim}, {arch}.
{build_lists_include}#include "girih/fwd_sm80.cuh"

namespace girih {{
struct Config {{
  using Element = {element};
  static constexpr int kHeadDim = {head_dim};
  static constexpr int kHeadDimV = {head_dim_v};
  static constexpr int kBlockM = {block_m};
  static constexpr int kBlockN = {block_n};
  static constexpr int kNumStages = {num_stages};
  static constexpr int kNumWarps = {num_warps};
  static constexpr bool kSoftcap = {softcap};
  using Classes = HeadClasses<  //
      {structures}>;
  using Heads = HeadTable<{head_capacity}, Classes::kNumNumbers>;
}};
}}  // namespace girih

extern "C" __global__ void __launch_bounds__({threads}, {min_ctas})
    {symbol}(const __grid_constant__ girih::FwdParams params,
              const __grid_constant__ girih::Config::Heads heads{inputs_parameter}) {{
  girih::FwdSm80<girih::Config>::run(params, heads, {inputs});
}}
{build_lists})",
                     fmt::arg("version", GIRIH_VERSION), fmt::arg("dtype", to_string(spec.dtype)),
                     fmt::arg("head_dim", spec.head_dim), fmt::arg("head_dim_v", spec.head_dim_v),
                     fmt::arg("softcap", spec.softcap), fmt::arg("arch", spec.arch.name()),
                     fmt::arg("element", spec.dtype == DType::bfloat16 ? "Bf16" : "Fp16"),
                     fmt::arg("block_m", tile.block_m), fmt::arg("block_n", tile.block_n),
                     fmt::arg("num_stages", tile.num_stages), fmt::arg("num_warps", tile.num_warps),
                     fmt::arg("structures", fmt::join(spec.structures, ",\n      ")),
                     fmt::arg("head_capacity", spec.head_capacity),
                     fmt::arg("threads", 32 * tile.num_warps),
                     fmt::arg("inputs_parameter", inputs_parameter),
                     fmt::arg("inputs", spec.num_inputs > 0 ? "inputs.views" : "nullptr"),
                     fmt::arg("build_lists_include",
                              spec.builds_lists ? "#include \"girih/build_lists.cuh\"\n" : ""),
                     fmt::arg("build_lists", build_lists),
                     fmt::arg("min_ctas", spec.min_ctas_per_sm), fmt::arg("symbol", kKernelSymbol));
}

}  // namespace girih::codegen
