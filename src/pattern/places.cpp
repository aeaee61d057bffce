#include "pattern/places.hpp"

#include <algorithm>

#include "pattern/expression.hpp"

namespace girih::pattern {
namespace {

int num_tensors(std::span<const InputInfo> inputs) {
  return static_cast<int>(std::count_if(inputs.begin(), inputs.end(),
                                        [](const InputInfo& input) { return input.is_tensor(); }));
}

void add_conditions(const Mask& mask, std::vector<const Expression*>& conditions) {
  for (const Mask& operand : mask.operands()) add_conditions(operand, conditions);
  if (mask.op() != Mask::Op::expression) return;
  const bool known =
      std::any_of(conditions.begin(), conditions.end(),
                  [&](const Expression* other) { return *other == *mask.expression(); });
  if (!known) conditions.push_back(mask.expression());
}

}  // namespace

int place_of(std::span<const InputInfo> inputs, int i) {
  if (!inputs[static_cast<std::size_t>(i)].is_tensor()) return i;
  return static_cast<int>(inputs.size()) +
         2 * num_tensors(inputs.first(static_cast<std::size_t>(i)));
}

int place_of_tiles(std::span<const InputInfo> inputs, int i) {
  return static_cast<int>(inputs.size()) + 2 * num_tensors(inputs) + i;
}

int num_places(std::span<const InputInfo> inputs, int num_conditions) {
  return place_of_tiles(inputs, num_conditions);
}

std::vector<const Expression*> conditions_of(const Pattern& pattern) {
  std::vector<const Expression*> conditions;
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    add_conditions(head_class.mask, conditions);
  }
  return conditions;
}

}  // namespace girih::pattern
