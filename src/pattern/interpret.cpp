// Evaluates a mask on the host, through the same atoms and the same rules for runs as a kernel.
#include "pattern/interpret.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include "girih/error.hpp"
#include "girih/shared/expression.cuh"
#include "girih/shared/structure.cuh"
#include "pattern/expression.hpp"

namespace girih::pattern {
namespace {

// Of evaluating an expression for an element.
double element_steps(const Mask& mask) { return mask.expression()->num_nodes() / 3.0; }

// Whether two heads are alike to an atom: what does not say so does not ask which head it is.
template <class Atom>
bool same_atom_for_heads(const int* numbers, const Geometry& a, const Geometry& b) {
  if constexpr (requires(const Atom& atom) { atom.same_for_heads(a, b); }) {
    return make_atom<Atom>(numbers).same_for_heads(a, b);
  }
  return true;
}

// What a seek costs beyond that of a closed form: some atoms go through the lines of a grid, or
// through rows of blocks.
template <class Atom>
double seek_steps(const int* numbers, QueryRows rows) {
  const double num_rows = rows.end - rows.begin;
  if constexpr (std::is_same_v<Atom, Neighborhood>) {
    return 1 + num_rows / Neighborhood(numbers).extent(kMaxAxes - 1);
  } else if constexpr (std::is_same_v<Atom, Blocks> || std::is_same_v<Atom, VerticalSlash>) {
    return 1 + num_rows / 64;
  }
  return 1;
}

struct AtomFunctions {
  Run (*seek)(const int* numbers, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n);
  uint32 (*row_bits)(const int* numbers, const Geometry& geometry, int q, KeyWord keys);
  bool (*same_for_heads)(const int* numbers, const Geometry& a, const Geometry& b);
  double (*seek_steps)(const int* numbers, QueryRows rows);
};

#define GIRIH_ATOM_FUNCTIONS(Atom)                                                 \
  AtomFunctions{Leaf<Atom>::seek, Leaf<Atom>::row_bits, same_atom_for_heads<Atom>, \
                seek_steps<Atom>},
constexpr AtomFunctions kAtomFunctions[] = {GIRIH_ATOMS(GIRIH_ATOM_FUNCTIONS)};
#undef GIRIH_ATOM_FUNCTIONS

// The first run-time input of an atom whose data is not known, or "".
std::string unknown_input(const Mask& atom, const Geometry& geometry) {
  for (std::size_t i = 0; i < atom.inputs().size(); ++i) {
    const bool number = atom_table()[atom.atom_index()].params[i].kind != ParamKind::input;
    const bool known = !number && geometry.inputs != nullptr;
    if (!known && !atom.inputs()[i].empty()) return atom.inputs()[i];
  }
  return "";
}

// The functions of an atom whose numbers are all known.
const AtomFunctions& functions_of(const Mask& atom, const Geometry& geometry) {
  const std::string unknown = unknown_input(atom, geometry);
  if (!unknown.empty()) {
    throw Error(Errc::invalid_argument,
                fmt::format("what {} shows depends on the run-time input {}: give it",
                            quote(atom.text()), quote(unknown)));
  }
  return kAtomFunctions[atom.atom_index()];
}

// Refuses an expression whose tensors are not all known.
void check_tensors_known(const Mask& mask, const Geometry& geometry) {
  if (geometry.inputs != nullptr || mask.expression()->tensors().empty()) return;
  throw Error(Errc::invalid_argument,
              fmt::format("what {} shows depends on the run-time input {}: give it",
                          quote(mask.text()), quote(mask.inputs()[1])));
}

// Whether an expression, whose numbers are the places of its tensors, holds for an element.
bool holds(const Mask& mask, const Geometry& geometry, int q, int k) {
  const ElementIndices at(geometry, q, k);
  const ExpressionPoint point{.b = at.b,
                              .h = at.h,
                              .g = at.g,
                              .q = at.q,
                              .k = at.k,
                              .p = at.p,
                              .Sq = at.Sq,
                              .Sk = at.Sk,
                              .local_h = at.local_h,
                              .local_g = at.local_g};
  const auto element = [&](int tensor, std::span<const int> indices) {
    const TensorView& view =
        TensorView::at(geometry.inputs, mask.numbers()[static_cast<std::size_t>(tensor) + 1]);
    const int offset = view.offset(indices.data(), static_cast<int>(indices.size()));
    return static_cast<double>(static_cast<const std::int32_t*>(view.data)[offset]);
  };
  return mask.expression()->evaluate(point, element) != 0;
}

// Looks no further than it must, and than the budget allows.
Run seek_condition(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                   int n, Budget& budget) {
  const int end_key = min((n + 1) * tiles.block_n, geometry.seqlen_k);
  const double steps = element_steps(mask);
  bool visible = false, hidden = false;
  for (int q = rows.begin; q < rows.end && !budget.is_spent(); ++q) {
    for (int k = n * tiles.block_n; k < end_key; ++k) {
      budget.take(steps);
      (holds(mask, geometry, q, k) ? visible : hidden) = true;
      if (visible && hidden) return {n + 1, TileKind::partial};
    }
  }
  return {n + 1, visible ? TileKind::full : TileKind::empty};
}

Run seek_expression(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                    int n, Budget& budget) {
  if (mask.op() == Mask::Op::atom) {
    const AtomFunctions& atom = functions_of(mask, geometry);
    budget.take(atom.seek_steps(mask.numbers().data(), rows));
    return atom.seek(mask.numbers().data(), geometry, rows, tiles, n);
  }
  if (mask.op() == Mask::Op::expression) {
    check_tensors_known(mask, geometry);
    return seek_condition(mask, geometry, rows, tiles, n, budget);
  }
  const auto seek_operand = [&](const Mask& operand) {
    return seek_expression(operand, geometry, rows, tiles, n, budget);
  };
  Run run = seek_operand(mask.operands().front());
  if (mask.op() == Mask::Op::negation) return negation(run);
  for (std::size_t i = 1; i < mask.operands().size(); ++i) {
    const Run next = seek_operand(mask.operands()[i]);
    run = mask.op() == Mask::Op::all_of ? all_of(run, next) : any_of(run, next);
  }
  return run;
}

// Bits of keys that do not exist mean nothing.
uint32 bits_of_expression(const Mask& mask, const Geometry& geometry, int q, KeyWord keys,
                          Budget& budget) {
  if (mask.op() == Mask::Op::atom) {
    budget.take(1);
    return functions_of(mask, geometry).row_bits(mask.numbers().data(), geometry, q, keys);
  }
  if (mask.op() == Mask::Op::expression) {
    check_tensors_known(mask, geometry);
    uint32 seen = 0;
    budget.take(32 * element_steps(mask));
    for (int i = 0; i < 32 && keys.first_key + i < geometry.seqlen_k; ++i) {
      seen |= holds(mask, geometry, q, keys.first_key + i) ? 1u << i : 0u;
    }
    return seen;
  }
  uint32 bits = bits_of_expression(mask.operands().front(), geometry, q, keys, budget);
  if (mask.op() == Mask::Op::negation) return ~bits;
  for (std::size_t i = 1; i < mask.operands().size(); ++i) {
    const uint32 next = bits_of_expression(mask.operands()[i], geometry, q, keys, budget);
    bits = mask.op() == Mask::Op::all_of ? bits & next : bits | next;
  }
  return bits;
}

// Of some rows' key tiles [begin, end): calls full(keys) for runs of full ones, however long, and
// partial(tile) for each partial one. The last tile is full when its existing keys are.
template <class Full, class Partial>
void for_each_tile(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                   int begin, int end, Budget& budget, Full&& full, Partial&& partial) {
  for (int n = begin; n < end && !budget.is_spent();) {
    const Run run = seek_expression(mask, geometry, rows, tiles, n, budget);
    const int run_end = std::min(run.end, end);
    if (run.kind == TileKind::full) {
      full(Span{n * tiles.block_n, std::min(run_end * tiles.block_n, tiles.seqlen_k)});
    }
    for (; n < run_end && run.kind == TileKind::partial; ++n) partial(n);
    n = run_end;
  }
}

}  // namespace

bool same_for_heads(const Mask& mask, const Geometry& a, const Geometry& b) {
  if (mask.op() == Mask::Op::atom) {
    return !unknown_input(mask, a).empty() ||
           kAtomFunctions[mask.atom_index()].same_for_heads(mask.numbers().data(), a, b);
  }
  if (const Expression* const condition = mask.expression()) {
    return (!condition->mentions("h") || a.head == b.head) &&
           (!condition->mentions("g") || a.head_kv == b.head_kv);
  }
  return std::all_of(mask.operands().begin(), mask.operands().end(),
                     [&](const Mask& operand) { return same_for_heads(operand, a, b); });
}

uint32 row_bits(const Mask& mask, const Geometry& geometry, int q, int first_key) {
  Budget unlimited;
  return row_bits(mask, geometry, q, first_key, unlimited);
}

uint32 row_bits(const Mask& mask, const Geometry& geometry, int q, int first_key, Budget& budget) {
  if (q < 0 || q >= geometry.seqlen_q || first_key < 0 || first_key >= geometry.seqlen_k) return 0;
  const KeyWord keys{first_key};
  return bits_of_expression(mask, geometry, q, keys, budget) & keys.below(geometry.seqlen_k);
}

bool visible(const Mask& mask, const Geometry& geometry, int q, int k) {
  return (row_bits(mask, geometry, q, k) & 1) != 0;
}

std::vector<Span> row_spans(const Mask& mask, const Geometry& geometry, int q) {
  std::vector<Span> spans;
  if (q < 0 || q >= geometry.seqlen_q) return spans;
  const auto append = [&](int lo, int hi) {
    if (!spans.empty() && spans.back().hi == lo) {
      spans.back().hi = hi;
    } else {
      spans.push_back({lo, hi});
    }
  };
  const KeyTiles words{32, geometry.seqlen_k};
  Budget unlimited;
  const auto append_bits = [&](int n) {
    const int first_key = 32 * n;
    uint32 bits = row_bits(mask, geometry, q, first_key);
    for (int k = first_key; bits != 0;) {
      const int zeros = std::countr_zero(bits);
      const int ones = std::countr_one(bits >> zeros);
      k += zeros + ones;
      append(k - ones, k);
      bits = zeros + ones < 32 ? bits >> (zeros + ones) : 0;
    }
  };
  for_each_tile(
      mask, geometry, {q, q + 1}, words, 0, words.count(), unlimited,
      [&](Span keys) { append(keys.lo, keys.hi); }, append_bits);
  return spans;
}

Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n) {
  Budget unlimited;
  return seek(mask, geometry, rows, tiles, n, unlimited);
}

Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n,
         Budget& budget) {
  return demote_last_tile(seek_expression(mask, geometry, rows, tiles, n, budget), tiles, n);
}

namespace {

bool is_neighborhood(const Mask& mask) {
  return mask.op() == Mask::Op::atom &&
         atom_table()[mask.atom_index()].name == std::string_view(Neighborhood::kInfo.name);
}

// Of a neighborhood's axis by itself: the elements of a sequence of its coordinates.
std::int64_t count_on_axis(const int* numbers, int axis, Budget& budget) {
  const Neighborhood::Number fields[] = {Neighborhood::kGrid, Neighborhood::kWindow,
                                         Neighborhood::kStride, Neighborhood::kDilation,
                                         Neighborhood::kCausal};
  constexpr int kNoAxis[] = {0, 1, 1, 1, 0};
  std::vector<Number> own(static_cast<std::size_t>(Neighborhood::kInfo.num_numbers()), 0);
  for (std::size_t field = 0; field < std::size(fields); ++field) {
    for (int other = 0; other < kMaxAxes; ++other) {
      const bool kept = other == kMaxAxes - 1;  // neighbours in memory, which are counted fast
      own[static_cast<std::size_t>(fields[field] + other)] =
          kept ? numbers[fields[field] + axis] : kNoAxis[field];
    }
  }
  const int extent = std::max(numbers[Neighborhood::kGrid + axis], 1);
  const Mask alone = Mask::atom(Neighborhood::kInfo.name, own);
  return count_visible(alone, {extent, extent, 0, 0}, {0, extent}, {0, extent}, budget);
}

}  // namespace

std::int64_t count_visible(const Mask& mask, const Geometry& geometry) {
  Budget unlimited;
  return count_visible(mask, geometry, unlimited);
}

std::int64_t count_visible(const Mask& mask, const Geometry& geometry, Budget& budget) {
  if (is_neighborhood(mask)) {
    const int* const numbers = mask.numbers().data();
    const int tokens = Neighborhood(numbers).tokens();
    if (geometry.seqlen_q == tokens && geometry.seqlen_k >= tokens) {
      std::int64_t in_grid = 1;
      for (int axis = 0; axis < kMaxAxes; ++axis) {
        if (numbers[Neighborhood::kGrid + axis] > 0) {
          in_grid *= count_on_axis(numbers, axis, budget);
        }
      }
      return in_grid + std::int64_t{tokens} * (geometry.seqlen_k - tokens);
    }
  }
  return count_visible(mask, geometry, {0, geometry.seqlen_q}, {0, geometry.seqlen_k}, budget);
}

std::int64_t count_visible(const Mask& mask, const Geometry& geometry, QueryRows of_rows,
                           Span of_keys, Budget& budget) {
  // Large tiles settle most of the matrix at once, small ones most of the rest.
  constexpr int kLarge = 64, kSmall = 16;
  const KeyTiles large{kLarge, geometry.seqlen_k}, small{kSmall, geometry.seqlen_k};
  std::int64_t count = 0;
  const auto add_area = [&](QueryRows rows, Span keys) {
    const int num_keys = std::min(keys.hi, of_keys.hi) - std::max(keys.lo, of_keys.lo);
    count += std::int64_t{rows.end - rows.begin} * std::max(num_keys, 0);
  };
  const auto add_bits = [&](QueryRows rows, int n) {
    const KeyWord word{n * kSmall};
    const uint32 counted =
        word.below(std::min(word.first_key + kSmall, of_keys.hi)) & ~word.below(of_keys.lo);
    for (int q = rows.begin; counted != 0 && q < rows.end; ++q) {
      count += std::popcount(row_bits(mask, geometry, q, word.first_key, budget) & counted);
    }
  };
  const auto add_small_tiles = [&](QueryRows rows, int n) {
    const int begin = n * (kLarge / kSmall);
    const int end = std::min(begin + kLarge / kSmall, small.count());
    for (int q = rows.begin; q < rows.end; q += kSmall) {
      const QueryRows few{q, std::min(q + kSmall, rows.end)};
      for_each_tile(
          mask, geometry, few, small, begin, end, budget, [&](Span keys) { add_area(few, keys); },
          [&](int i) { add_bits(few, i); });
    }
  };
  const int begin = of_keys.lo / kLarge, end = ceil_div(of_keys.hi, kLarge);
  for (int q = of_rows.begin; q < of_rows.end && !budget.is_spent(); q += kLarge) {
    const QueryRows rows{q, std::min(q + kLarge, of_rows.end)};
    for_each_tile(
        mask, geometry, rows, large, begin, end, budget, [&](Span keys) { add_area(rows, keys); },
        [&](int n) { add_small_tiles(rows, n); });
  }
  return count;
}

TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n) {
  Budget unlimited;
  const int columns = KeyTiles{block_n, geometry.seqlen_k}.count();
  return count_tiles(mask, geometry, block_m, block_n, {0, geometry.seqlen_q}, {0, columns},
                     unlimited);
}

TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                       QueryRows of_rows, Span columns, Budget& budget) {
  TileCounts counts;
  const KeyTiles tiles{block_n, geometry.seqlen_k};
  for (int q = of_rows.begin; q < of_rows.end && !budget.is_spent(); q += block_m) {
    const QueryRows rows{q, std::min(q + block_m, of_rows.end)};
    for (int n = columns.lo; n < columns.hi && !budget.is_spent();) {
      const Run run = seek(mask, geometry, rows, tiles, n, budget);
      const int end = std::min(run.end, columns.hi);
      counts.add(run.kind, end - n);
      n = end;
    }
  }
  return counts;
}

}  // namespace girih::pattern
