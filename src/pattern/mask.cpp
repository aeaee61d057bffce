// Masks as values: construction from C++, the operators and their limits, canonical text.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "girih/error.hpp"
#include "girih/pattern.hpp"
#include "pattern/atoms.hpp"
#include "pattern/expression.hpp"

namespace girih {
namespace {

using pattern::atom_table;

// An operand of & that is an alternative stands in parentheses, and so does any operator under !.
bool needs_parentheses(Mask::Op outer, Mask::Op inner) {
  if (outer == Mask::Op::all_of) return inner == Mask::Op::any_of;
  if (outer == Mask::Op::negation) return inner == Mask::Op::all_of || inner == Mask::Op::any_of;
  return false;
}

// The deepest atom's number of enclosing parentheses and `!` in canonical text.
int nesting(const Mask& mask) {
  int deepest = 0;
  for (const Mask& operand : mask.operands()) {
    const int parentheses = needs_parentheses(mask.op(), operand.op()) ? 1 : 0;
    deepest = std::max(deepest, parentheses + nesting(operand));
  }
  return deepest + (mask.op() == Mask::Op::negation ? 1 : 0);
}

int count_atoms(const Mask& mask) {
  if (mask.operands().empty()) return 1;
  int count = 0;
  for (const Mask& operand : mask.operands()) count += count_atoms(operand);
  return count;
}

bool has_expressions(const Mask& mask) {
  return mask.op() == Mask::Op::expression ||
         std::any_of(mask.operands().begin(), mask.operands().end(), has_expressions);
}

void check_limits(const Mask& mask) {
  if (nesting(mask) > pattern::kMaxNesting) {
    throw Error(Errc::invalid_argument,
                fmt::format("the mask is nested deeper than {} levels of parentheses and '!'",
                            pattern::kMaxNesting));
  }
  const int atoms = count_atoms(mask);
  if (atoms > pattern::kMaxAtoms) {
    throw Error(Errc::invalid_argument,
                fmt::format("the mask has more than {} atoms", pattern::kMaxAtoms));
  }
  constexpr int kLongestAtom = 320;  // bytes of text, with what joins it to the next
  const bool many = atoms > static_cast<int>(pattern::kMaxTextBytes) / kLongestAtom;
  if ((many || has_expressions(mask)) && mask.text().size() > pattern::kMaxTextBytes) {
    throw Error(Errc::invalid_argument,
                fmt::format("the mask's text is longer than {} bytes: use fewer atoms",
                            pattern::kMaxTextBytes));
  }
}

// A single parameter goes without its name; parameters at their default are left out.
std::string atom_text(const AtomInfo& info, const std::vector<int>& numbers,
                      const std::vector<std::string>& inputs) {
  std::string arguments;
  const int num_params = info.num_params();
  const int num_axes = pattern::num_axes(info, numbers.data());
  for (int i = 0, number = 0; i < num_params; number += info.params[i++].num_numbers()) {
    const AtomParam& param = info.params[i];
    const int* next = numbers.data() + number;
    const std::string input = inputs.empty() ? "" : inputs[number];
    const auto is_fallback = [&](int value) { return value == param.fallback; };
    if (input.empty() && std::all_of(next, next + param.num_numbers(), is_fallback)) continue;
    if (!arguments.empty()) arguments += ", ";
    if (param.kind == ParamKind::input) {
      arguments += input;
      continue;
    }
    if (num_params > 1 && param.kind != ParamKind::grid) {
      arguments += fmt::format("{}=", param.name);
    }
    arguments += input.empty() ? pattern::argument_text(param, next, num_axes) : '$' + input;
  }
  return arguments.empty() ? info.name : fmt::format("{}({})", info.name, arguments);
}

}  // namespace

Number input(std::string name) {
  const std::string problem = pattern::input_name_problem(name);
  if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
  Number number(0);
  number.input = std::move(name);
  return number;
}

Mask Mask::atom(std::string_view name, std::vector<Number> numbers) {
  const auto refuse = [](const std::string& message) {
    throw Error(Errc::invalid_argument, message);
  };
  const int index = pattern::find_atom(name);
  if (index < 0) refuse(pattern::unknown_atom(name));
  const AtomInfo& info = atom_table()[index];
  if (static_cast<int>(numbers.size()) != info.num_numbers()) {
    refuse(
        fmt::format("{} takes {} numbers, not {}", info.name, info.num_numbers(), numbers.size()));
  }

  Mask mask;
  mask.atom_ = index;
  for (Number& number : numbers) {
    mask.numbers_.push_back(number.input.empty() ? number.value : 0);
    if (number.input.empty()) continue;
    mask.inputs_.resize(numbers.size());
    mask.inputs_[mask.numbers_.size() - 1] = std::move(number.input);
  }
  for (int i = 0, first = 0; i < info.num_params(); first += info.params[i++].num_numbers()) {
    const AtomParam& param = info.params[i];
    std::string input, problem;  // of any of the parameter's numbers
    for (int j = first; j < first + param.num_numbers() && !mask.inputs_.empty(); ++j) {
      if (!mask.inputs_[j].empty()) input = mask.inputs_[j];
    }
    if (!input.empty()) {
      problem = pattern::input_name_problem(input);
      if (problem.empty() && param.kind != ParamKind::input) {
        problem = pattern::input_problem(info, param);
      }
    } else if (param.kind == ParamKind::input) {
      problem = pattern::missing(info, param);
    } else {
      problem = pattern::argument_problem(info, param, mask.numbers_.data() + first);
    }
    if (!problem.empty()) refuse(problem);
  }
  const std::string conflict = pattern::conflict(index, mask.numbers_.data());
  if (!conflict.empty()) refuse(conflict);
  return mask;
}

Mask Mask::join(Op op, Mask a, Mask b) {
  Mask result;
  result.op_ = op;
  for (Mask* side : {&a, &b}) {
    if (side->op_ == op) {
      std::move(side->operands_.begin(), side->operands_.end(),
                std::back_inserter(result.operands_));
    } else {
      result.operands_.push_back(std::move(*side));
    }
  }
  check_limits(result);
  return result;
}

Mask operator&(Mask a, Mask b) { return Mask::join(Mask::Op::all_of, std::move(a), std::move(b)); }

Mask operator|(Mask a, Mask b) { return Mask::join(Mask::Op::any_of, std::move(a), std::move(b)); }

Mask operator!(Mask a) {
  if (a.op_ == Mask::Op::negation) return Mask(std::move(a.operands_.front()));
  Mask result;
  result.op_ = Mask::Op::negation;
  result.operands_.push_back(std::move(a));
  check_limits(result);
  return result;
}

bool operator==(const Mask& a, const Mask& b) {
  const bool same_expression = a.expression_ == nullptr || b.expression_ == nullptr
                                   ? a.expression_ == b.expression_
                                   : *a.expression_ == *b.expression_;
  return same_expression && a.op_ == b.op_ && a.atom_ == b.atom_ && a.numbers_ == b.numbers_ &&
         a.inputs_ == b.inputs_ && a.operands_ == b.operands_;
}

Mask Mask::with_inputs(const std::function<int(const std::string& name)>& value) const {
  Mask result = *this;
  for (Mask& operand : result.operands_) operand = operand.with_inputs(value);
  for (std::size_t i = 0; i < inputs_.size(); ++i) {
    if (inputs_[i].empty()) continue;
    result.numbers_[i] = value(inputs_[i]);
    if (op_ == Op::expression) continue;
    const AtomParam& param = atom_table()[atom_].params[i];
    if (param.kind == ParamKind::input) continue;
    result.numbers_[i] = std::clamp(result.numbers_[i], param.least, param.most);
    result.inputs_[i].clear();
  }
  const bool none_left = std::all_of(result.inputs_.begin(), result.inputs_.end(),
                                     [](const std::string& name) { return name.empty(); });
  if (none_left && op_ != Op::expression) result.inputs_.clear();
  return result;
}

std::string Mask::text() const {
  if (op_ == Op::atom) return atom_text(atom_table()[atom_], numbers_, inputs_);
  if (op_ == Op::expression) return fmt::format("expr(\"{}\")", expression_->text());
  std::string result = op_ == Op::negation ? "!" : "";
  for (const Mask& operand : operands_) {
    if (&operand != &operands_.front()) result += op_ == Op::all_of ? " & " : " | ";
    const bool parentheses = needs_parentheses(op_, operand.op_);
    if (parentheses) result += '(';
    result += operand.text();
    if (parentheses) result += ')';
  }
  return result;
}

Mask dense() { return Mask::atom("dense"); }
Mask causal() { return Mask::atom("causal"); }
Mask window(WindowBounds bounds) { return Mask::atom("window", {bounds.left, bounds.right}); }
Mask sink(Number n) { return Mask::atom("sink", {std::move(n)}); }
Mask last_keys(Number n) { return Mask::atom("last_keys", {std::move(n)}); }
Mask first_queries(Number n) { return Mask::atom("first_queries", {std::move(n)}); }
Mask last_queries(Number n) { return Mask::atom("last_queries", {std::move(n)}); }
Mask queries(int begin, int end) { return Mask::atom("queries", {begin, end}); }
Mask keys(int begin, int end) { return Mask::atom("keys", {begin, end}); }
Mask chunk(Number n) { return Mask::atom("chunk", {std::move(n)}); }
Mask dilated(Number d) { return Mask::atom("dilated", {std::move(d)}); }

Mask block_window(BlockWindowBounds bounds) {
  return Mask::atom("block_window", {bounds.left, bounds.right, bounds.block});
}

Mask block_streaming(StreamingBlocks blocks) {
  return Mask::atom("block_streaming",
                    {blocks.sink, blocks.local, blocks.block, blocks.causal ? 1 : 0});
}

Mask strided(const StridedBlocks& blocks) {
  constexpr int kAbsent = -1;
  const StridedBlocks::Local local = blocks.local.value_or(StridedBlocks::Local{kAbsent, kAbsent});
  std::vector<Number> numbers = {local.left,
                                 local.right,
                                 blocks.stride,
                                 blocks.block,
                                 blocks.offset,
                                 blocks.kv_heads ? 1 : 0,
                                 blocks.step.value_or(kAutomatic),
                                 blocks.homo ? 1 : 0,
                                 blocks.dense_heads,
                                 blocks.relative ? 1 : 0};
  if (blocks.ranges.size() > kMaxPieces) {
    throw Error(Errc::invalid_argument,
                fmt::format("strided: {} ranges are too many: at most {} are allowed",
                            blocks.ranges.size(), kMaxPieces));
  }
  const std::size_t count = numbers.size() + 2 * kMaxPieces;
  for (const StridedBlocks::Range& range : blocks.ranges) {
    numbers.insert(numbers.end(), {range.end, range.stride});
  }
  numbers.resize(count, 0);
  return Mask::atom("strided", std::move(numbers));
}

Mask neighborhood(const GridNeighborhood& neighborhood) {
  const int num_axes = static_cast<int>(neighborhood.grid.size());
  if (num_axes < 1 || num_axes > kMaxAxes) {
    throw Error(Errc::invalid_argument,
                fmt::format("neighborhood: a grid has 1 to {} axes, not {}", kMaxAxes, num_axes));
  }
  const AtomInfo& info = atom_table()[pattern::find_atom("neighborhood")];
  for (const int extent : neighborhood.grid) {  // 0 would be an axis that is not there
    if (pattern::bounds(info.params[0], 0).contains(extent)) continue;
    throw Error(Errc::invalid_argument,
                pattern::out_of_range(info, info.params[0], 0, fmt::format("{}", extent)));
  }
  std::vector<Number> numbers(kMaxAxes - num_axes, Number(0));
  numbers.insert(numbers.end(), neighborhood.grid.begin(), neighborhood.grid.end());
  const AtomParam* param = info.params;
  for (const PerAxis* given :
       {&neighborhood.window, &neighborhood.stride, &neighborhood.dilation, &neighborhood.causal}) {
    std::vector<Number> entries(given->values.begin(), given->values.end());
    const std::string problem = pattern::spread_over_axes(info, *++param, num_axes, entries);
    if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
    numbers.insert(numbers.end(), entries.begin(), entries.end());
  }
  return Mask::atom(info.name, std::move(numbers));
}

Mask blocks(std::string name, BlockSizes sizes) {
  return Mask::atom("blocks", {input(std::move(name)), sizes.q, sizes.kv});
}

Mask vertical_slash(std::string name) {
  return Mask::atom("vertical_slash", {input(std::move(name))});
}
Mask segments(std::string name) { return Mask::atom("segments", {input(std::move(name))}); }
Mask columns(std::string name) { return Mask::atom("columns", {input(std::move(name))}); }
Mask index_ge(std::string name) { return Mask::atom("index_ge", {input(std::move(name))}); }
Mask index_gt(std::string name) { return Mask::atom("index_gt", {input(std::move(name))}); }

}  // namespace girih
