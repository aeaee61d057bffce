#include "plan/plan.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <initializer_list>
#include <map>

#include "girih/error.hpp"
#include "girih/shared/params.cuh"
#include "girih/shared/prune.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/tensor_map.cuh"
#include "pattern/atoms.hpp"
#include "pattern/expression.hpp"
#include "pattern/grid.hpp"
#include "pattern/interpret.hpp"
#include "pattern/places.hpp"
#include "plan/brick_tiles.hpp"
#include "plan/tiles.hpp"
#include "plan/tiles_sm90.hpp"
#include "support/hash.hpp"

namespace girih::plan {
namespace {

constexpr int kMaxParamBytes = 32764;  // of a kernel, from driver and NVRTC 12.1 on

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

std::vector<std::string> reasons_against(const Problem& problem, const Arch& arch) {
  std::vector<std::string> reasons;
  const auto check_width = [&](const char* name, int width) {
    if (width % 16 == 0 && width >= 16 && width <= 256) return;
    const std::string remedy =
        width < 256 ? fmt::format("; pad to {}", (width + 15) / 16 * 16) : "";
    reasons.push_back(
        fmt::format("{} {} is not supported on {}: multiples of 16 from 16 to 256 are{}", name,
                    width, arch.name(), remedy));
  };
  if (problem.dtype == DType::float32) {
    reasons.push_back("dtype fp32 is not supported: fp16 and bf16 are");
  }
  check_width("head_dim", problem.head_dim);
  if (problem.head_dim_v != 0) check_width("head_dim_v", problem.head_dim_v);
  return reasons;
}

// Up to so many keys a row small tiles won, by 3 to 30 %: of the portable kernel at narrow heads,
// and of Hopper's (tools/bench/NOTES.md). That is worth another kernel to a model whose layers lie
// on both sides; no other number chooses.
constexpr int kFewKeys = 512;
constexpr int kSomeKeys = 6144;

// What a row costs beyond its keys, about, in keys: the first tile and the edges of a window.
constexpr int kFixedKeys = 640;

// Over some rows of a long sequence, for lengths are not known here, and where they are short a
// wrong tile costs little. Weighted by work: one dense head outweighs many narrow ones. Takes some
// microseconds a class.
KeysPerRow keys_per_row(const Pattern& pattern, const Problem& problem) {
  const auto of_mask = [](const InputInfo& input) { return input.decides_visibility(); };
  if (std::any_of(pattern.inputs().begin(), pattern.inputs().end(), of_mask)) {
    return KeysPerRow::many;  // what they hold is not known here
  }
  if (!pattern::conditions_of(pattern).empty()) return KeysPerRow::many;  // would take long

  constexpr int kSeqlen = 16384, kRows = 16;
  const auto& classes = pattern.classes();
  std::vector<double> heads(classes.size());
  for (const int c : pattern.class_of_head(problem)) {
    ++heads[c];
  }

  Geometry geometry;
  geometry.group_size = problem.group_size();
  geometry.num_heads = problem.heads_total();
  double work = 0, weighted = 0;
  for (size_t c = 0; c < classes.size(); ++c) {
    if (heads[c] == 0) continue;
    // A grid says how long sequences are; its rows are many spans, and alike.
    const std::vector<pattern::Grid> grids = pattern::grids_of(classes[c].mask);
    const int seqlen = grids.empty() ? kSeqlen : grids.front().tokens;
    const int rows = grids.empty() ? kRows : 4;
    const int step = max(seqlen / rows - 1, 1);  // odd, lest all stand at one place in a block
    geometry.seqlen_q = geometry.seqlen_k = seqlen;
    for (int row = step; row < seqlen; row += step) {
      double keys = 0;
      for (const Span& span : pattern::row_spans(classes[c].mask, geometry, row)) {
        keys += span.hi - span.lo;
      }
      const double cost = heads[c] * (keys + kFixedKeys);
      work += cost;
      weighted += cost * keys;
    }
  }
  return weighted <= kFewKeys * work    ? KeysPerRow::few
         : weighted <= kSomeKeys * work ? KeysPerRow::some
                                        : KeysPerRow::many;
}

bool has_many_atoms(const std::vector<std::string>& structures) {
  constexpr int kFewAtoms = 6;  // mixtures of so many were compiled without spills
  int atoms = 0;
  for (const std::string& structure : structures) {
    for (size_t at = 0; (at = structure.find("Leaf<", at)) != structure.npos; ++at) ++atoms;
  }
  return atoms > kFewAtoms;
}

bool has_token_indices(const std::vector<std::string>& structures) {
  return any_contains(structures, {"Leaf<Segments", "Leaf<Index"});
}

// Of all heads alike, and nothing beside them but `causal`: masks that take hardly more registers
// than closed forms do.
bool has_token_indices_alone(const std::vector<std::string>& structures) {
  if (structures.size() != 1) return false;
  constexpr std::array kAtoms = {"Leaf<Segments>", "Leaf<IndexGe>", "Leaf<IndexGt>"};
  return std::any_of(kAtoms.begin(), kAtoms.end(), [&](const char* atom) {
    const std::string& structure = structures[0];
    return structure == atom || structure == fmt::format("All<Leaf<Causal>, {}>", atom) ||
           structure == fmt::format("All<{}, Leaf<Causal>>", atom);
  });
}

// Many atoms, or one other than these whose code needs many registers.
bool is_otherwise_elaborate(const std::vector<std::string>& structures) {
  return has_many_atoms(structures) ||
         any_contains(structures,
                      {"Leaf<Strided", "Leaf<Neighborhood", "Leaf<Blocks", "Leaf<VerticalSlash",
                       "Leaf<Columns", "Expr<", "Score<", ", 0x"});  // an input
}

bool modifies_scores(const std::vector<std::string>& structures) {
  return any_contains(structures, {", Alibi", ", Bias", ", Score<"});
}

PatternTraits traits_of(const Pattern& pattern, const Problem& problem, const KernelSpec& spec) {
  const bool documents = has_token_indices_alone(spec.structures);
  const bool token_indices = has_token_indices(spec.structures) && !documents;
  const bool otherwise_elaborate = is_otherwise_elaborate(spec.structures);
  PatternTraits traits{.keys = keys_per_row(pattern, problem),
                       .softcap = spec.softcap,
                       .scores = modifies_scores(spec.structures),
                       .score_expressions = spec.has_scores(),
                       .elaborate = token_indices || otherwise_elaborate,
                       .token_indices = token_indices && !otherwise_elaborate,
                       .documents = documents,
                       .neighborhoods = any_contains(spec.structures, {"Leaf<Neighborhood>"}),
                       .strided = any_contains(spec.structures, {"Leaf<Strided"})};
  const bool alone = spec.structures.size() == 1 && spec.structures[0] == "Leaf<Neighborhood>";
  traits.mixed_neighborhoods = traits.neighborhoods && !alone;
  for (const std::string& structure : spec.structures) {  // as kIsVerticalSlash has it
    traits.slashes |=
        structure == "Leaf<VerticalSlash>" || structure == "All<Leaf<Causal>, Leaf<VerticalSlash>>";
  }
  traits.mixed_slashes = traits.slashes && spec.structures.size() > 1;
  for (const InputInfo& input : pattern.inputs()) {
    if (input.kind == InputInfo::Kind::thresholds && spec.prune) {
      traits.prune_kv = input.kv_block_size;
    }
    if (input.kind != InputInfo::Kind::blocks) continue;
    const auto finest = [](int so_far, int size) { return so_far == 0 ? size : min(so_far, size); };
    traits.q_block_size = finest(traits.q_block_size, input.q_block_size);
    traits.kv_block_size = finest(traits.kv_block_size, input.kv_block_size);
  }
  return traits;
}

// Whether causality is a conjunct: then rows see nothing behind the diagonal, whatever else.
bool is_causal(const Mask& mask) {
  if (mask.op() == Mask::Op::all_of) {
    return std::any_of(mask.operands().begin(), mask.operands().end(), is_causal);
  }
  return mask.op() == Mask::Op::atom && mask == causal();
}

int prune_word_of(const Pattern::HeadClass& head_class, const std::vector<InputInfo>& inputs) {
  const Prune& prune = head_class.modifiers.prune;
  if (prune.thresholds.empty()) return PruneWord::kNone;
  return PruneWord::make(pattern::find_input(inputs, prune.thresholds), is_causal(head_class.mask),
                         prune.keep_sink);
}

// The type of an expression, by its code: patterns that differ in names of tensors share kernels.
std::string type_of(const pattern::Expression& expression, bool of_scores = false) {
  return (of_scores ? "Score_" : "Condition_") + support::digest(expression.code()).substr(0, 16);
}

KernelSpec::Expression entry_of(const pattern::Expression& expression, bool of_scores) {
  return {.of_scores = of_scores,
          .name = type_of(expression, of_scores),
          .num_tensors = static_cast<int>(expression.tensors().size()),
          .code = expression.code()};
}

pattern::Expression score_of(const Modifiers& modifiers) {
  return pattern::parse_expression(modifiers.score, pattern::ExpressionUse::score);
}

void add_expressions(const Mask& mask, std::vector<KernelSpec::Expression>& expressions) {
  for (const Mask& operand : mask.operands()) add_expressions(operand, expressions);
  if (mask.expression() != nullptr) expressions.push_back(entry_of(*mask.expression(), false));
}

void add_expressions(const Pattern::HeadClass& head_class,
                     std::vector<KernelSpec::Expression>& expressions) {
  add_expressions(head_class.mask, expressions);
  if (!head_class.modifiers.score.empty()) {
    expressions.push_back(entry_of(score_of(head_class.modifiers), true));
  }
}

// Sorted, each once.
template <class Value>
void make_set(std::vector<Value>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

// NVRTC's time grows faster than what is computed at every element (tools/bench/NOTES.md).
constexpr int kMostScoreCost = 400;

// Every structure has code of its own for its heads' scores.
void check_score_cost(const Pattern& pattern, const std::vector<int>& classes) {
  std::map<std::string, std::string> score_of_structure;
  for (const int c : classes) {
    const Pattern::HeadClass& head_class = pattern.classes()[c];
    score_of_structure.emplace(structure_of(head_class), head_class.modifiers.score);
  }
  int cost = 0;
  for (const auto& [structure, score] : score_of_structure) {
    if (score.empty()) continue;
    cost += pattern::parse_expression(score, pattern::ExpressionUse::score).cost();
  }
  if (cost <= kMostScoreCost) return;
  throw Error(
      Errc::unsupported,
      fmt::format("score expressions of cost {} are not supported in a kernel: the limit is {}, "
                  "some ten seconds of compiling, where log counts 56, a quotient 32, or 48 of "
                  "whole numbers and 4 by a constant, tanh 44, sqrt 40, exp 32, exp2 12, each "
                  "index of a tensor 8, a sum 1; read from a tensor what does not depend on s, or "
                  "give heads with different scores or masks launches of their own",
                  cost, kMostScoreCost));
}

// What the kernel that finds tiles is told. Expressions that only classes without heads have are
// not among the kernel's, and nobody asks for their tiles.
void plan_tiles(const std::vector<const pattern::Expression*>& conditions,
                const std::vector<InputInfo>& inputs, Plan& plan) {
  for (const pattern::Expression* expression : conditions) {
    ConditionTiles tiles;
    tiles.condition = -1;
    for (size_t i = 0; i < plan.spec.expressions.size(); ++i) {
      if (plan.spec.expressions[i].name == type_of(*expression)) {
        tiles.condition = static_cast<int>(i);
      }
    }
    for (const pattern::Expression::Tensor& tensor : expression->tensors()) {
      tiles.places.push_back(pattern::place_of(inputs, pattern::find_input(inputs, tensor.name)));
    }
    tiles.by_batch = expression->mentions("b");
    tiles.by_length =
        expression->mentions("p") || expression->mentions("Sq") || expression->mentions("Sk");
    tiles.by_head = expression->mentions("h");
    tiles.by_head_kv = expression->mentions("g");
    plan.tiles.push_back(std::move(tiles));
  }
}

// Fills in the pattern's part of the plan: structures and head table.
void plan_heads(const Pattern& pattern, const Problem& problem, Plan& plan) {
  std::vector<std::string> structures;
  std::vector<std::vector<int>> numbers;
  const std::vector<const pattern::Expression*> conditions = pattern::conditions_of(pattern);
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    structures.push_back(structure_of(head_class));
    numbers.push_back(numbers_of(head_class, pattern.inputs(), conditions));
  }
  const std::vector<int> class_of_head = pattern.class_of_head(problem);

  // Only classes that some head has count: HeadClasses::kNumNumbers knows no others.
  std::vector<std::string>& distinct = plan.spec.structures;
  size_t most_numbers = 0;
  std::vector<int> used_classes = class_of_head;
  make_set(used_classes);
  check_score_cost(pattern, used_classes);
  for (const int c : used_classes) {
    distinct.push_back(structures[c]);
    add_expressions(pattern.classes()[c], plan.spec.expressions);
    most_numbers = std::max(most_numbers, numbers[c].size());
    plan.spec.softcap = plan.spec.softcap || pattern.classes()[c].modifiers.softcap > 0;
    plan.spec.prune = plan.spec.prune || !pattern.classes()[c].modifiers.prune.thresholds.empty();
  }
  make_set(distinct);
  make_set(plan.spec.expressions);
  plan_tiles(conditions, pattern.inputs(), plan);

  const auto row_of = [&](int pattern_class) {
    const auto found =
        std::lower_bound(distinct.begin(), distinct.end(), structures[pattern_class]);
    const float softcap = pattern.classes()[pattern_class].modifiers.softcap;
    std::vector<int> row{static_cast<int>(found - distinct.begin()), std::bit_cast<int>(softcap)};
    row.insert(row.end(), numbers[pattern_class].begin(), numbers[pattern_class].end());
    if (plan.spec.prune) {
      row.resize(2 + most_numbers);
      row.push_back(prune_word_of(pattern.classes()[pattern_class], pattern.inputs()));
    }
    row.resize(2 + std::max<size_t>(most_numbers + plan.spec.prune, 1));  // as HeadTable::Row
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

  plan.spec.num_inputs = pattern::num_places(pattern.inputs(), static_cast<int>(conditions.size()));
  for (const InputInfo& input : pattern.inputs()) {
    plan.spec.builds_lists |= input.kind == InputInfo::Kind::blocks;
    plan.spec.builds_numbers |=
        input.kind == InputInfo::Kind::indices || input.kind == InputInfo::Kind::columns;
    plan.spec.builds_slashes |= input.kind == InputInfo::Kind::slashes;
  }

  const size_t bytes = plan.head_table.size() * sizeof(int) + sizeof(FwdParams) +
                       plan.spec.num_inputs * sizeof(InputView) + sizeof(FwdTensorMaps) +
                       std::max(sizeof(FwdRowMaps), sizeof(FwdBrickMaps)) +
                       2 * alignof(FwdTensorMaps);
  if (bytes > kMaxParamBytes) {
    throw Error(Errc::unsupported,
                fmt::format("{} heads with up to {} numbers each take {} bytes of kernel "
                            "parameters, more than {}: split the heads over several launches",
                            problem.num_heads, most_numbers, bytes, kMaxParamBytes));
  }
}

// Rows of run-time lists may differ by any factor. A logit without a value would join the sum of
// every part, decisions on tiles are votes on the whole row's, and gathered keys have no order that
// parts could be ranges of.
bool may_split(const KernelSpec& spec) {
  const bool sinks =
      std::any_of(spec.structures.begin(), spec.structures.end(),
                  [](const std::string& text) { return text.find(", SinkLogit") != text.npos; });
  return spec.builds_lists && !sinks && !spec.prune && !spec.gathers && !spec.bricks;
}

}  // namespace

const char* to_string(KernelFamily family) {
  return family == KernelFamily::fwd_sm90 ? "fwd_sm90" : "fwd_sm80";
}

bool any_contains(const std::vector<std::string>& structures,
                  std::initializer_list<std::string_view> parts) {
  return std::any_of(structures.begin(), structures.end(), [&](const std::string& structure) {
    return std::any_of(parts.begin(), parts.end(), [&](std::string_view part) {
      return structure.find(part) != structure.npos;
    });
  });
}

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
    case Mask::Op::expression:
      return fmt::format("Expr<{}>", type_of(*mask.expression()));
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

std::vector<int> numbers_of(const Mask& mask, const std::vector<InputInfo>& inputs,
                            const std::vector<const pattern::Expression*>& conditions) {
  std::vector<int> numbers = mask.numbers();
  for (size_t i = 0; i < mask.inputs().size(); ++i) {
    if (mask.inputs()[i].empty()) continue;
    numbers[i] = pattern::place_of(inputs, pattern::find_input(inputs, mask.inputs()[i]));
  }
  if (mask.op() == Mask::Op::expression) {
    const auto own = std::find_if(
        conditions.begin(), conditions.end(),
        [&](const pattern::Expression* condition) { return *condition == *mask.expression(); });
    numbers[0] = pattern::place_of_tiles(inputs, static_cast<int>(own - conditions.begin()));
  }
  for (const Mask& operand : mask.operands()) {
    const std::vector<int> inner = numbers_of(operand, inputs, conditions);
    numbers.insert(numbers.end(), inner.begin(), inner.end());
  }
  return numbers;
}

namespace {

// A modifier of a head class as a C++ type, and the names of the inputs that it reads.
struct ModifierType {
  std::string type;
  std::vector<std::string> inputs;
};

std::vector<ModifierType> modifier_types(const Modifiers& modifiers) {
  std::vector<ModifierType> types;
  if (!modifiers.alibi.empty()) types.push_back({"Alibi", {modifiers.alibi}});
  if (!modifiers.bias.empty()) types.push_back({"Bias", {modifiers.bias}});
  if (!modifiers.score.empty()) {
    const pattern::Expression score = score_of(modifiers);
    types.push_back({fmt::format("Score<{}>", type_of(score, true)), {}});
    for (const pattern::Expression::Tensor& tensor : score.tensors()) {
      types.back().inputs.push_back(tensor.name);
    }
  }
  if (!modifiers.sink_logit.empty()) types.push_back({"SinkLogit", {modifiers.sink_logit}});
  return types;
}

}  // namespace

std::string structure_of(const Pattern::HeadClass& head_class) {
  std::string structure = structure_of(head_class.mask);
  const std::vector<ModifierType> types = modifier_types(head_class.modifiers);
  if (types.empty()) return structure;
  for (const ModifierType& type : types) structure += fmt::format(", {}", type.type);
  return fmt::format("With<{}>", structure);
}

std::vector<int> numbers_of(const Pattern::HeadClass& head_class,
                            const std::vector<InputInfo>& inputs,
                            const std::vector<const pattern::Expression*>& conditions) {
  std::vector<int> numbers = numbers_of(head_class.mask, inputs, conditions);
  for (const ModifierType& type : modifier_types(head_class.modifiers)) {
    for (const std::string& name : type.inputs) {
      numbers.push_back(pattern::place_of(inputs, pattern::find_input(inputs, name)));
    }
  }
  return numbers;
}

Plan make_plan(const Pattern& pattern, const Problem& problem, const Arch& arch,
               const TileConfig& requested) {
  check_problem(problem);
  const auto refuse_for = [](const std::vector<std::string>& reasons) {
    if (reasons.empty()) return;
    throw Error(Errc::unsupported, fmt::format("{}", fmt::join(reasons, "; ")));
  };
  refuse_for(reasons_against(problem, arch));
  Plan plan;
  plan_heads(pattern, problem, plan);
  plan.traits = traits_of(pattern, problem, plan.spec);
  const PatternTraits& traits = plan.traits;
  TileConfig tile = choose_tile(arch, problem, traits, requested);
  const std::vector<BrickHeads> brick_heads = plan::brick_heads(pattern, problem);
  plan.spec.bricks = plan_bricks(brick_heads, arch, problem, traits, requested, tile);
  std::vector<std::string> reasons =
      reasons_against_request(requested, tile, problem, traits, arch);
  if (traits.prune_kv > 0) {
    const bool own_choice = requested == TileConfig{.portable = requested.portable};
    if (!reasons.empty() && traits.prune_kv > 64) {
      reasons.push_back("prune with kv=128 needs key tiles of 128: calibrate for kv=64");
    } else if (!reasons.empty() && own_choice) {
      reasons.push_back(
          fmt::format("prune needs tiles of {} x {}: narrower heads leave them room, or sm_80, "
                      "sm_90 and sm_100",
                      kPruneRows, traits.prune_kv));
    }
    const std::vector<std::string> more = reasons_against_prune(tile, traits.prune_kv);
    reasons.insert(reasons.end(), more.begin(), more.end());
  }
  refuse_for(reasons);

  plan.spec.family = family_of(tile);
  const bool hopper = plan.spec.family == KernelFamily::fwd_sm90;
  plan.spec.arch = hopper ? Arch{arch.number, "a"} : arch.plain();
  plan.spec.dtype = problem.dtype;
  plan.spec.head_dim = problem.head_dim;
  plan.spec.head_dim_v = problem.width_v();
  plan.spec.tile = tile;
  if (hopper) {
    plan.spec.elaborate = traits.elaborate && tile.block_m == 192;
    plan.spec.pack_heads = packs_heads(problem, traits, tile.block_m);
    plan.spec.key_box = key_box(tile, problem, traits, arch);
    plan.spec.gathers = gathers(tile, problem, traits, arch);
    const int width = std::max(problem.head_dim, problem.width_v());
    // A loop without that decision is 1 to 2 % faster, and warpgroups that share a row of blocks
    // see the same tiles anyway.
    plan.spec.pass_over = !plan.spec.prune &&  // whose warpgroups decide on each tile together
                          (plan.spec.gathers || !shares_blocks(problem, traits, tile.block_m) ||
                           plan.spec.structures.size() > 1 || width > kWidestWithSpareRegisters);
    if (plan.spec.bricks) {
      plan.grid = grid_of(brick_heads[0].neighborhood());
      plan.spec.pass_over =
          width > kWidestWithSpareRegisters || passes_over(brick_heads, *plan.spec.bricks);
    }
    plan.spec.splits = may_split(plan.spec);
  }
  plan.threads = 32 * tile.num_warps;
  plan.shared_bytes = shared_bytes(tile, problem);
  if (plan.spec.gathers) {
    plan.shared_bytes += gathered_keys_bytes(tile.block_n, tile.num_stages);
  }
  const int fitting_ctas = arch.shared_bytes_per_sm() / (plan.shared_bytes + 1024);
  plan.spec.min_ctas_per_sm =
      hopper ? 1 : std::clamp(fitting_ctas, 1, warps_per_sm(tile, problem) / tile.num_warps);
  return plan;
}

Plan make_tile_maxima_plan(const Pattern& pattern, const Problem& problem, const Arch& arch,
                           int kv) {
  Problem narrow = problem;
  narrow.head_dim_v = 16;  // nobody reads V: the least room for it
  Plan plan =
      make_plan(pattern, narrow, arch, {.block_m = kPruneRows, .block_n = kv, .portable = true});
  plan.spec.tile_maxima = true;
  return plan;
}

}  // namespace girih::plan
