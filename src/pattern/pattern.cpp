// Patterns as values: masks for sets of heads, canonical text, and which head has which mask.
#include "girih/pattern.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "girih/error.hpp"
#include "girih/problem.hpp"
#include "pattern/atoms.hpp"
#include "pattern/expression.hpp"
#include "pattern/places.hpp"

namespace girih {
namespace {

std::string set_text(const HeadSet& set) {
  if (set.rest) return "else";
  std::string text;
  for (const HeadSet::Range& range : set.ranges) {
    if (!text.empty()) text += '+';
    text += range.first == range.last ? fmt::format("{}", range.first)
                                      : fmt::format("{}-{}", range.first, range.last);
  }
  return text;
}

void check_set(const HeadSet& set) {
  if (set.rest != set.ranges.empty()) {
    throw Error(Errc::invalid_argument,
                "a set of heads is either 'else' or one or more ranges such as 0-3+8");
  }
  for (const HeadSet::Range& range : set.ranges) {
    if (0 <= range.first && range.first <= range.last && range.last <= kMaxNumber) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("heads {}-{} are not a range: 0 <= first <= last <= {} is needed",
                            range.first, range.last, kMaxNumber));
  }
}

void check_softcap(float softcap) {
  if (softcap > 0 && std::isfinite(softcap)) return;
  throw Error(Errc::invalid_argument, pattern::softcap_out_of_range(fmt::format("{}", softcap)));
}

void check_prune(const Prune& prune) {
  const std::string problem = pattern::prune_problem(prune);
  if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
}

// Heads of a launch have their key tiles in common.
void check_prune_tiles(const std::vector<Pattern::HeadClass>& classes) {
  int kv = 0;
  for (const Pattern::HeadClass& head_class : classes) {
    const int own = head_class.modifiers.prune.kv;
    if (kv != 0 && own != 0 && own != kv) {
      throw Error(
          Errc::invalid_argument,
          fmt::format("some heads are pruned by tiles of {} keys and some by {}: launch them "
                      "apart, or calibrate for the same",
                      kv, own));
    }
    kv = own != 0 ? own : kv;
  }
}

// And makes their text canonical.
void check_modifiers(Modifiers& modifiers) {
  if (!modifiers.score.empty()) {
    modifiers.score =
        pattern::parse_expression(modifiers.score, pattern::ExpressionUse::score).text();
  }
  if (modifiers.softcap != 0) check_softcap(modifiers.softcap);
  if (modifiers.prune != Prune()) check_prune(modifiers.prune);
  for (const std::string* name : {&modifiers.alibi, &modifiers.bias, &modifiers.sink_logit}) {
    const std::string problem = name->empty() ? "" : pattern::input_name_problem(*name);
    if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
  }
}

// " with softcap(30), alibi(slopes)", in the order in which they are applied.
std::string modifiers_text(const Modifiers& modifiers) {
  std::string text;
  const auto add = [&](const std::string& modifier) {
    text += (text.empty() ? " with " : ", ") + modifier;
  };
  if (modifiers.softcap > 0) add(fmt::format("softcap({})", modifiers.softcap));
  if (const Prune& prune = modifiers.prune; !prune.thresholds.empty()) {
    add(fmt::format("prune({}, kv={}{})", prune.thresholds, prune.kv,
                    prune.keep_sink ? ", keep_sink=true" : ""));
  }
  if (!modifiers.alibi.empty()) add(fmt::format("alibi({})", modifiers.alibi));
  if (!modifiers.bias.empty()) add(fmt::format("bias({})", modifiers.bias));
  if (!modifiers.score.empty()) add(fmt::format("score(\"{}\")", modifiers.score));
  if (!modifiers.sink_logit.empty()) add(fmt::format("sink_logit({})", modifiers.sink_logit));
  return text;
}

// Adds an input that a pattern wants. @return why that cannot be, or "".
std::string add_input(InputInfo wanted, std::vector<InputInfo>& inputs) {
  const int found = pattern::find_input(inputs, wanted.name);
  if (found < 0) {
    if (inputs.size() == pattern::kMaxInputs) {
      return fmt::format("the input {} is one more than the {} run-time inputs a pattern can have",
                         pattern::quote(wanted.name), pattern::kMaxInputs);
    }
    inputs.push_back(std::move(wanted));
  } else if (wanted.is_tensor() && inputs[found].kind == wanted.kind &&
             inputs[found].rank == wanted.rank) {
    for (std::size_t i = 0; i < wanted.indexed_by.size(); ++i) {
      inputs[found].indexed_by[i] |= wanted.indexed_by[i];
    }
  } else if (inputs[found] != wanted) {
    return fmt::format("the input {} is used as {} and as {}: give the two different names",
                       pattern::quote(wanted.name), inputs[found].description(),
                       wanted.description());
  }
  return "";
}

// Those that an expression indexes.
std::string add_tensors(const pattern::Expression& expression, InputInfo::Kind kind,
                        std::vector<InputInfo>& inputs) {
  for (const pattern::Expression::Tensor& tensor : expression.tensors()) {
    InputInfo wanted{.name = tensor.name, .kind = kind, .rank = tensor.rank};
    wanted.indexed_by = tensor.indexed_by;
    const std::string problem = add_input(std::move(wanted), inputs);
    if (!problem.empty()) return problem;
  }
  return "";
}

void check_classes(std::vector<Pattern::HeadClass>& classes) {
  if (classes.empty()) {
    throw Error(Errc::invalid_argument, "a pattern by heads needs at least one set of heads");
  }
  bool rest = false;
  for (Pattern::HeadClass& head_class : classes) {
    check_set(head_class.heads);
    check_modifiers(head_class.modifiers);
    if (rest && head_class.heads.rest) {
      throw Error(Errc::invalid_argument, "'else' stands twice: a pattern has one remainder");
    }
    rest = rest || head_class.heads.rest;
  }
  check_prune_tiles(classes);
}

void check_length(const Pattern& pattern) {
  if (pattern.text().size() > pattern::kMaxTextBytes) {
    throw Error(Errc::invalid_argument,
                fmt::format("the pattern's text is longer than {} bytes: use fewer classes",
                            pattern::kMaxTextBytes));
  }
}

// The class of each of `count` heads, in the pattern's unit.
std::vector<int> classes_of_all(const Pattern& pattern, int count) {
  const char* head = pattern.head_unit() == Pattern::HeadUnit::kv ? "kv head" : "head";
  const std::vector<Pattern::HeadClass>& classes = pattern.classes();
  constexpr int kNone = -1;
  std::vector<int> class_of(count, kNone);
  int rest = kNone;
  for (int c = 0; c < static_cast<int>(classes.size()); ++c) {
    const HeadSet& set = classes[c].heads;
    if (set.rest) rest = c;
    for (const HeadSet::Range& range : set.ranges) {
      if (range.last >= count) {
        throw Error(
            Errc::invalid_argument,
            fmt::format("{} {} in set {} does not exist: there are {}, numbered 0-{}", head,
                        max(range.first, count), pattern::quote(set_text(set)), count, count - 1));
      }
      for (int h = range.first; h <= range.last; ++h) {
        if (class_of[h] != kNone) {
          throw Error(Errc::invalid_argument,
                      fmt::format("{} {} is covered twice: by set {} and by set {}", head, h,
                                  pattern::quote(set_text(classes[class_of[h]].heads)),
                                  pattern::quote(set_text(set))));
        }
        class_of[h] = c;
      }
    }
  }
  for (int h = 0; h < count; ++h) {
    if (class_of[h] != kNone) continue;
    if (rest == kNone) {
      throw Error(Errc::invalid_argument,
                  fmt::format("{} {} of {} is covered by no set: name it, or add 'else: MASK'",
                              head, h, count));
    }
    class_of[h] = rest;
  }
  return class_of;
}

}  // namespace

int pattern::find_input(std::span<const InputInfo> inputs, std::string_view name) {
  const auto found = std::find_if(inputs.begin(), inputs.end(),
                                  [&](const InputInfo& input) { return input.name == name; });
  return found == inputs.end() ? -1 : static_cast<int>(found - inputs.begin());
}

std::string pattern::add_inputs(const Mask& mask, std::vector<InputInfo>& inputs) {
  for (const Mask& operand : mask.operands()) {
    const std::string problem = add_inputs(operand, inputs);
    if (!problem.empty()) return problem;
  }
  if (mask.op() == Mask::Op::expression) {
    return add_tensors(*mask.expression(), InputInfo::Kind::int_tensor, inputs);
  }
  for (std::size_t i = 0; i < mask.inputs().size(); ++i) {
    if (mask.inputs()[i].empty()) continue;
    InputInfo wanted{.name = mask.inputs()[i]};
    const AtomParam& param = atom_table()[mask.atom_index()].params[i];
    if (param.kind == ParamKind::input && param.form == InputForm::indices) {
      wanted.kind = InputInfo::Kind::indices;
    } else if (param.kind == ParamKind::input && param.form == InputForm::slashes) {
      wanted.kind = InputInfo::Kind::slashes;
    } else if (param.kind == ParamKind::input && param.form == InputForm::columns) {
      wanted.kind = InputInfo::Kind::columns;
    } else if (param.kind == ParamKind::input) {
      wanted.kind = InputInfo::Kind::blocks;
      wanted.q_block_size = mask.numbers()[1];
      wanted.kv_block_size = mask.numbers()[2];
    }
    const std::string problem = add_input(std::move(wanted), inputs);
    if (!problem.empty()) return problem;
  }
  return "";
}

std::string pattern::add_inputs(const Modifiers& modifiers, std::vector<InputInfo>& inputs) {
  using Kind = InputInfo::Kind;
  if (const Prune& prune = modifiers.prune; !prune.thresholds.empty()) {
    const std::string problem = add_input(
        {.name = prune.thresholds, .kind = Kind::thresholds, .kv_block_size = prune.kv}, inputs);
    if (!problem.empty()) return problem;
  }
  const auto add_values = [&](const std::string& name, Kind kind) {
    return name.empty() ? "" : add_input({.name = name, .kind = kind}, inputs);
  };
  std::string problem = add_values(modifiers.alibi, Kind::head_values);
  if (problem.empty()) problem = add_values(modifiers.bias, Kind::key_values);
  if (problem.empty() && !modifiers.score.empty()) {
    problem = add_tensors(parse_expression(modifiers.score, ExpressionUse::score),
                          Kind::float_tensor, inputs);
  }
  if (problem.empty()) problem = add_values(modifiers.sink_logit, Kind::head_values);
  return problem;
}

// "[batch, seqlen_q or seqlen_k, any]"
static std::string shape_text(const InputInfo& tensor) {
  static constexpr const char* kExtents[] = {"batch", "num_heads", "num_heads_kv", "seqlen_q",
                                             "seqlen_k"};
  std::string text;
  for (int i = 0; i < tensor.rank; ++i) {
    std::string extent;
    for (std::size_t v = 0; v < std::size(kExtents); ++v) {
      if ((tensor.indexed_by[static_cast<std::size_t>(i)] >> v & 1) == 0) continue;
      extent += (extent.empty() ? "" : " or ") + std::string(kExtents[v]);
    }
    text += (i == 0 ? "[" : ", ") + (extent.empty() ? "any" : extent);
  }
  return text + "]";
}

std::string InputInfo::description() const {
  if (kind == Kind::number) return "int32 [batch, heads]";
  if (kind == Kind::columns) return "int32 starts and ends [batch, heads, seqlen_k]";
  if (is_tensor()) return (kind == Kind::int_tensor ? "int32 " : "float32 ") + shape_text(*this);
  if (kind == Kind::head_values) return "float32 [batch, heads]";
  if (kind == Kind::key_values) return "float32 [batch, heads, seqlen_k]";
  if (kind == Kind::indices) {
    return "int32 [batch, heads, seqlen_q] for queries and [batch, heads, seqlen_k] for keys";
  }
  if (kind == Kind::slashes) {
    return "int32 [batch, heads, num_vertical] for columns and [batch, heads, num_slash] for "
           "distances";
  }
  if (kind == Kind::thresholds) {
    return fmt::format("thresholds for tiles of {} keys, float32 [heads, ceil(seqlen_k / 128)]",
                       kv_block_size);
  }
  return fmt::format("blocks [batch, heads, ceil(seqlen_q / {}), ceil(seqlen_k / {})]",
                     q_block_size, kv_block_size);
}

Pattern::Pattern(Mask mask) {
  classes_.push_back({HeadSet(), std::move(mask), {}});
  find_inputs();
}

void Pattern::find_inputs() {
  inputs_.clear();
  for (const HeadClass& head_class : classes_) {
    std::string problem = pattern::add_inputs(head_class.mask, inputs_);
    if (problem.empty()) problem = pattern::add_inputs(head_class.modifiers, inputs_);
    if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
  }
  if (pattern::conditions_of(*this).size() > pattern::kMaxConditions) {
    throw Error(Errc::invalid_argument,
                fmt::format("the pattern has more than {} different expr(...): join some by && "
                            "and ||",
                            pattern::kMaxConditions));
  }
}

Pattern heads(std::vector<Pattern::HeadClass> classes) {
  check_classes(classes);
  Pattern pattern(classes.front().mask);
  pattern.classes_ = std::move(classes);
  pattern.per_head_ = true;
  pattern.find_inputs();
  check_length(pattern);
  return pattern;
}

Pattern kv_heads(std::vector<Pattern::HeadClass> classes) {
  Pattern pattern = heads(std::move(classes));
  pattern.unit_ = Pattern::HeadUnit::kv;
  check_length(pattern);
  return pattern;
}

Pattern Pattern::with_softcap(float softcap) const {
  check_softcap(softcap);
  Pattern result = *this;
  for (HeadClass& head_class : result.classes_) head_class.modifiers.softcap = softcap;
  check_length(result);
  return result;
}

Pattern Pattern::with_prune(const Prune& prune) const {
  check_prune(prune);
  Pattern result = *this;
  for (HeadClass& head_class : result.classes_) head_class.modifiers.prune = prune;
  result.find_inputs();
  check_length(result);
  return result;
}

Pattern Pattern::with(const Modifiers& modifiers) const {
  Modifiers checked = modifiers;
  check_modifiers(checked);
  Pattern result = *this;
  for (HeadClass& head_class : result.classes_) head_class.modifiers = checked;
  result.find_inputs();
  check_length(result);
  return result;
}

std::string Pattern::text() const {
  const auto masked = [](const HeadClass& head_class) {
    return head_class.mask.text() + modifiers_text(head_class.modifiers);
  };
  if (!per_head_) return masked(classes_.front());
  std::string text;
  for (const HeadClass& head_class : classes_) {
    text += text.empty() ? (unit_ == HeadUnit::kv ? "kv_heads(" : "heads(") : ", ";
    text += set_text(head_class.heads) + ": " + masked(head_class);
  }
  return text + ')';
}

std::vector<int> Pattern::class_of_head(const Problem& problem) const {
  return class_of_head(problem.num_heads, problem.num_heads_kv, problem.head_offset,
                       problem.num_heads_total);
}

std::vector<int> Pattern::class_of_head(int num_heads, int num_heads_kv, int head_offset,
                                        int num_heads_total) const {
  const auto refuse = [](const std::string& message) {
    throw Error(Errc::invalid_argument, message);
  };
  if (num_heads < 1 || num_heads_kv < 1 || num_heads % num_heads_kv != 0) {
    refuse(
        fmt::format("num_heads {} and num_heads_kv {}: both must be positive, and num_heads a "
                    "multiple of num_heads_kv",
                    num_heads, num_heads_kv));
  }
  const int total = num_heads_total == 0 ? num_heads : num_heads_total;
  if (total > pattern::kMaxHeads) {
    refuse(fmt::format("{} heads are more than {}", total, pattern::kMaxHeads));
  }
  const int group_size = num_heads / num_heads_kv;
  if (head_offset < 0 || total < num_heads || head_offset > total - num_heads) {
    refuse(
        fmt::format("head_offset {} with num_heads {} does not fit num_heads_total {}: heads "
                    "head_offset to head_offset + num_heads - 1 must be among them",
                    head_offset, num_heads, total));
  }
  if (head_offset % group_size != 0 || total % group_size != 0) {
    refuse(
        fmt::format("head_offset {} and num_heads_total {} must be multiples of the {} query "
                    "heads that share a key/value head",
                    head_offset, total, group_size));
  }
  if (!per_head_) return std::vector<int>(num_heads, 0);

  const bool kv = unit_ == HeadUnit::kv;
  const std::vector<int> class_of = classes_of_all(*this, kv ? total / group_size : total);
  std::vector<int> result(num_heads);
  for (int h = 0; h < num_heads; ++h) {
    result[h] = class_of[kv ? (head_offset + h) / group_size : head_offset + h];
  }
  return result;
}

}  // namespace girih
