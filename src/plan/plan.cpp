#include "plan/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>

#include "girih/error.hpp"
#include "girih/shared/params.cuh"
#include "girih/shared/smem_layout.cuh"
#include "pattern/atoms.hpp"
#include "pattern/interpret.hpp"

namespace girih::plan {
namespace {

constexpr int kMaxFragmentRegisters = 192;  // of 255; the rest is for everything else
constexpr int kMaxParamBytes = 32764;       // of a kernel, from CUDA 12.1 on

int shared_bytes(const TileConfig& tile, const Problem& problem) {
  return fwd_sm80_layout(tile.block_m, tile.block_n, problem.head_dim, problem.width_v(),
                         tile.num_stages)
      .bytes;
}

// Registers of a thread that hold scores and output: a 16 x 8 fragment takes four.
int fragment_registers(const TileConfig& tile, const Problem& problem) {
  const int row_fragments = tile.block_m / tile.num_warps / 16;
  return row_fragments * (tile.block_n + problem.width_v()) / 2;
}

TileConfig complete(const TileConfig& requested, const TileConfig& fallback) {
  return {.block_m = requested.block_m ? requested.block_m : fallback.block_m,
          .block_n = requested.block_n ? requested.block_n : fallback.block_n,
          .num_stages = requested.num_stages ? requested.num_stages : fallback.num_stages,
          .num_warps = requested.num_warps ? requested.num_warps : fallback.num_warps};
}

bool rows_divide(const TileConfig& tile) {
  return tile.block_m == 16 * tile.num_warps || tile.block_m == 32 * tile.num_warps;
}

// The tile that is used: of the candidates, completed with what was requested, the first that fits,
// two CTAs a multiprocessor where that is possible, for they hide each other's barriers and
// softmax. A warp with 32 query rows reads each key fragment half as often as two with 16. The
// order was measured on sm_90 (tools/bench/NOTES.md).
//
// Tiles larger than the blocks of a run-time mask compute what is not visible, or must be masked:
// they are not taken, down to 64 rows and 32 keys, below which tiles are slower than that.
TileConfig choose_tile(const Arch& arch, const Pattern& pattern, const Problem& problem,
                       const TileConfig& requested) {
  int most_rows = 128, most_keys = 128;
  for (const InputInfo& input : pattern.inputs()) {
    if (input.kind != InputInfo::Kind::blocks) continue;
    most_rows = std::min(most_rows, std::max(input.q_block_size, 64));
    most_keys = std::min(most_keys, std::max(input.kv_block_size, 32));
  }
  static constexpr TileConfig kCandidates[] = {{128, 128, 2, 4}, {128, 64, 2, 4}, {128, 32, 2, 4},
                                               {128, 64, 2, 8},  {128, 32, 2, 8}, {64, 64, 2, 4},
                                               {64, 32, 2, 4},   {64, 16, 2, 4}};
  for (const TileConfig& candidate : kCandidates) {
    // 128 keys at once pay where the exponentials weigh most; only there were they measured.
    if (candidate.block_n == 128 && (arch.number != 90 || problem.width_v() > 64)) continue;
    if (candidate.block_m > most_rows || candidate.block_n > most_keys) continue;
    const TileConfig tile = complete(requested, candidate);
    if (!rows_divide(tile)) continue;
    const int ctas = std::max(8 / tile.num_warps, 1);  // eight warps have all the registers
    const int bytes = ctas * (shared_bytes(tile, problem) + 1024);
    if (bytes <= arch.shared_bytes_per_sm() &&
        fragment_registers(tile, problem) <= kMaxFragmentRegisters) {
      return tile;
    }
  }
  return complete(requested, kCandidates[std::size(kCandidates) - 1]);
}

void check_problem(const Problem& problem) {
  const auto refuse = [](const std::string& message) {
    throw Error(Errc::invalid_argument, message);
  };
  if (problem.head_dim < 1) {
    refuse(fmt::format("head_dim {} must be positive", problem.head_dim));
  }
  if (problem.head_dim_v < 0) {
    refuse(fmt::format("head_dim_v {} must be positive, or 0 for head_dim", problem.head_dim_v));
  }
  if (problem.num_heads < 1 || problem.num_heads_kv < 1) {
    refuse(fmt::format("num_heads {} and num_heads_kv {} must be positive", problem.num_heads,
                       problem.num_heads_kv));
  }
  if (problem.num_heads > pattern::kMaxHeads) {
    refuse(fmt::format("num_heads {} is more than {}", problem.num_heads, pattern::kMaxHeads));
  }
  if (problem.num_heads % problem.num_heads_kv != 0) {
    refuse(
        fmt::format("num_heads {} is not a multiple of num_heads_kv {}: every key/value head "
                    "serves the same number of query heads",
                    problem.num_heads, problem.num_heads_kv));
  }
}

std::vector<std::string> reasons_against(const Problem& problem, const Arch& arch,
                                         const TileConfig& tile) {
  std::vector<std::string> reasons;
  const auto check_width = [&](const char* name, int width) {
    if (width % 16 == 0 && width >= 16 && width <= 256) return;
    const std::string remedy =
        width < 256 ? fmt::format("; pad to {}", (width + 15) / 16 * 16) : "";
    reasons.push_back(
        fmt::format("{} {} is not supported on {}: multiples of 16 from 16 to 256 are{}", name,
                    width, arch.name(), remedy));
  };
  check_width("head_dim", problem.head_dim);
  if (problem.head_dim_v != 0) check_width("head_dim_v", problem.head_dim_v);
  if (!reasons.empty()) return reasons;
  if (tile.num_warps != 4 && tile.num_warps != 8) {
    reasons.push_back(fmt::format("num_warps {} is not supported: 4 and 8 are", tile.num_warps));
    return reasons;
  }
  if (!rows_divide(tile)) {
    reasons.push_back(fmt::format("block_m {} is not supported with {} warps: {} and {} are",
                                  tile.block_m, tile.num_warps, 16 * tile.num_warps,
                                  32 * tile.num_warps));
  }
  if (tile.block_n < 16 || tile.block_n > 256 || tile.block_n % 16 != 0) {
    reasons.push_back(fmt::format("block_n {} is not supported: multiples of 16 from 16 to 256 are",
                                  tile.block_n));
  }
  if (tile.num_stages < 2 || tile.num_stages > 4) {
    reasons.push_back(fmt::format("num_stages {} is not supported: 2 to 4 are", tile.num_stages));
  }
  if (!reasons.empty()) return reasons;

  const int fragments = fragment_registers(tile, problem);
  if (fragments > kMaxFragmentRegisters) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} with {} warps at head_dim_v {} takes {} registers a thread for "
        "scores and output, more than {}: take more warps or a smaller block_n",
        tile.block_m, tile.block_n, tile.num_warps, problem.width_v(), fragments,
        kMaxFragmentRegisters));
  }
  const int bytes = shared_bytes(tile, problem);
  if (bytes > arch.shared_bytes_per_cta()) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} with {} stages takes {} bytes of shared memory, more than the {} "
        "of {}: take smaller blocks or fewer stages",
        tile.block_m, tile.block_n, tile.num_stages, bytes, arch.shared_bytes_per_cta(),
        arch.name()));
  }
  return reasons;
}

// Fills in the pattern's part of the plan: structures and head table.
void plan_heads(const Pattern& pattern, const Problem& problem, Plan& plan) {
  std::vector<std::string> structures;
  std::vector<std::vector<int>> numbers;
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    structures.push_back(structure_of(head_class.mask));
    numbers.push_back(numbers_of(head_class.mask, pattern.inputs()));
  }
  const std::vector<int> class_of_head = pattern.class_of_head(
      problem.num_heads, problem.num_heads_kv, problem.head_offset, problem.num_heads_total);

  // Only classes that some head has count: HeadClasses::kNumNumbers knows no others.
  std::vector<std::string>& distinct = plan.spec.structures;
  size_t most_numbers = 0;
  for (const int c : class_of_head) {
    distinct.push_back(structures[c]);
    most_numbers = std::max(most_numbers, numbers[c].size());
    plan.spec.softcap = plan.spec.softcap || pattern.classes()[c].modifiers.softcap > 0;
  }
  std::sort(distinct.begin(), distinct.end());
  distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());

  const auto row_of = [&](int pattern_class) {
    const auto found =
        std::lower_bound(distinct.begin(), distinct.end(), structures[pattern_class]);
    const float softcap = pattern.classes()[pattern_class].modifiers.softcap;
    std::vector<int> row{static_cast<int>(found - distinct.begin()), std::bit_cast<int>(softcap)};
    row.insert(row.end(), numbers[pattern_class].begin(), numbers[pattern_class].end());
    row.resize(2 + std::max<size_t>(most_numbers, 1));  // as HeadTable::Row
    return row;
  };
  // A per-head pattern keeps its table even where all heads happen to be alike, so that a model's
  // layers share a kernel.
  plan.spec.head_capacity =
      pattern.per_head() ? std::max(32, static_cast<int>(std::bit_ceil(class_of_head.size()))) : 1;
  for (int head = 0; head < plan.spec.head_capacity; ++head) {
    const bool exists = head < static_cast<int>(class_of_head.size());
    const std::vector<int> row = row_of(class_of_head[exists ? head : 0]);
    plan.head_table.insert(plan.head_table.end(), row.begin(), row.end());
  }

  plan.spec.num_inputs = static_cast<int>(pattern.inputs().size());
  for (const InputInfo& input : pattern.inputs()) {
    plan.spec.builds_lists |= input.kind == InputInfo::Kind::blocks;
  }

  const size_t bytes = plan.head_table.size() * sizeof(int) + sizeof(FwdParams) +
                       pattern.inputs().size() * sizeof(InputView);
  if (bytes > kMaxParamBytes) {
    throw Error(Errc::unsupported,
                fmt::format("{} heads with up to {} numbers each take {} bytes of kernel "
                            "parameters, more than {}: split the heads over several launches",
                            problem.num_heads, most_numbers, bytes, kMaxParamBytes));
  }
}

}  // namespace

std::string structure_of(const Mask& mask) {
  std::vector<std::string> operands;
  for (const Mask& operand : mask.operands()) operands.push_back(structure_of(operand));
  switch (mask.op()) {
    case Mask::Op::all_of:
      return fmt::format("All<{}>", fmt::join(operands, ", "));
    case Mask::Op::any_of:
      return fmt::format("Any<{}>", fmt::join(operands, ", "));
    case Mask::Op::negation:
      return fmt::format("Not<{}>", operands[0]);
    case Mask::Op::atom:
      break;
  }
  const AtomInfo& atom = pattern::atom_table()[mask.atom_index()];
  unsigned from_inputs = 0;
  for (size_t i = 0; i < mask.inputs().size(); ++i) {
    const bool number = atom.params[i].kind != ParamKind::input && !mask.inputs()[i].empty();
    from_inputs |= number ? 1u << i : 0u;
  }
  return from_inputs == 0 ? fmt::format("Leaf<{}>", atom.type)
                          : fmt::format("Leaf<{}, {:#x}>", atom.type, from_inputs);
}

std::vector<int> numbers_of(const Mask& mask, const std::vector<InputInfo>& inputs) {
  std::vector<int> numbers = mask.numbers();
  for (size_t i = 0; i < mask.inputs().size(); ++i) {
    if (mask.inputs()[i].empty()) continue;
    const auto same_name = [&](const InputInfo& input) { return input.name == mask.inputs()[i]; };
    const auto found = std::find_if(inputs.begin(), inputs.end(), same_name);
    numbers[i] = static_cast<int>(found - inputs.begin());
  }
  for (const Mask& operand : mask.operands()) {
    const std::vector<int> inner = numbers_of(operand, inputs);
    numbers.insert(numbers.end(), inner.begin(), inner.end());
  }
  return numbers;
}

Plan make_plan(const Pattern& pattern, const Problem& problem, const Arch& arch,
               const TileConfig& requested) {
  check_problem(problem);
  const TileConfig tile = choose_tile(arch, pattern, problem, requested);
  const std::vector<std::string> reasons = reasons_against(problem, arch, tile);
  if (!reasons.empty()) throw Error(Errc::unsupported, fmt::format("{}", fmt::join(reasons, "; ")));

  Plan plan;
  plan.spec.arch = arch.plain();
  plan.spec.dtype = problem.dtype;
  plan.spec.head_dim = problem.head_dim;
  plan.spec.head_dim_v = problem.width_v();
  plan.spec.tile = tile;
  plan.threads = 32 * tile.num_warps;
  plan.shared_bytes = shared_bytes(tile, problem);
  const int fitting_ctas = arch.shared_bytes_per_sm() / (plan.shared_bytes + 1024);
  plan.spec.min_ctas_per_sm = std::clamp(fitting_ctas, 1, 8 / tile.num_warps);
  plan_heads(pattern, problem, plan);
  return plan;
}

}  // namespace girih::plan
