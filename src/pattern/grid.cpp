#include "pattern/grid.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "pattern/atoms.hpp"

namespace girih::pattern {
namespace {

void add_grids(const Mask& mask, std::vector<Grid>& grids) {
  for (const Mask& operand : mask.operands()) add_grids(operand, grids);
  if (mask.op() != Mask::Op::atom) return;
  const AtomInfo& atom = atom_table()[mask.atom_index()];
  if (atom.name != std::string_view(Neighborhood::kInfo.name)) return;
  const int* numbers = mask.numbers().data();
  Grid grid{argument_text(atom.params[0], numbers + Neighborhood::kGrid, num_axes(atom, numbers)),
            Neighborhood(numbers).tokens()};
  if (std::find(grids.begin(), grids.end(), grid) == grids.end()) grids.push_back(std::move(grid));
}

}  // namespace

std::vector<Grid> grids_of(const Mask& mask) {
  std::vector<Grid> grids;
  add_grids(mask, grids);
  return grids;
}

std::vector<Grid> grids_of(const Pattern& pattern) {
  std::vector<Grid> grids;
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    add_grids(head_class.mask, grids);
  }
  return grids;
}

std::string length_problem(std::span<const Grid> grids, int seqlen_q, int seqlen_k) {
  for (const Grid& grid : grids) {
    if (seqlen_q != grid.tokens) {
      return fmt::format(
          "seqlen_q {} does not go with neighborhood({}): it must be the grid's {} tokens",
          seqlen_q, grid.text, grid.tokens);
    }
    if (seqlen_k < grid.tokens) {
      return fmt::format(
          "seqlen_k {} does not go with neighborhood({}): it must be the grid's {} tokens, or more "
          "with extra keys behind them",
          seqlen_k, grid.text, grid.tokens);
    }
  }
  return "";
}

}  // namespace girih::pattern
