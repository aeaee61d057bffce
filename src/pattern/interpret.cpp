// Evaluates a mask on the host, through the same atoms and the same rules for runs as a kernel.
#include "pattern/interpret.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>

#include "girih/error.hpp"
#include "girih/shared/expression.cuh"
#include "girih/shared/structure.cuh"
#include "pattern/expression.hpp"

namespace girih::pattern {
namespace {

// Whether two heads are alike to an atom: what does not say so does not ask which head it is.
template <class Atom>
bool same_atom_for_heads(const int* numbers, const Geometry& a, const Geometry& b) {
  if constexpr (requires(const Atom& atom) { atom.same_for_heads(a, b); }) {
    return make_atom<Atom>(numbers).same_for_heads(a, b);
  }
  return true;
}

struct AtomFunctions {
  Run (*seek)(const int* numbers, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n);
  uint32 (*row_bits)(const int* numbers, const Geometry& geometry, int q, KeyWord keys);
  bool (*same_for_heads)(const int* numbers, const Geometry& a, const Geometry& b);
};

#define GIRIH_ATOM_FUNCTIONS(Atom) \
  AtomFunctions{Leaf<Atom>::seek, Leaf<Atom>::row_bits, same_atom_for_heads<Atom>},
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

// Looks no further than it must.
Run seek_condition(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                   int n) {
  const int end_key = min((n + 1) * tiles.block_n, geometry.seqlen_k);
  bool visible = false, hidden = false;
  for (int q = rows.begin; q < rows.end; ++q) {
    for (int k = n * tiles.block_n; k < end_key; ++k) {
      (holds(mask, geometry, q, k) ? visible : hidden) = true;
      if (visible && hidden) return {n + 1, TileKind::partial};
    }
  }
  return {n + 1, visible ? TileKind::full : TileKind::empty};
}

Run seek_expression(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                    int n) {
  if (mask.op() == Mask::Op::atom) {
    return functions_of(mask, geometry).seek(mask.numbers().data(), geometry, rows, tiles, n);
  }
  if (mask.op() == Mask::Op::expression) {
    check_tensors_known(mask, geometry);
    return seek_condition(mask, geometry, rows, tiles, n);
  }
  const auto seek_operand = [&](const Mask& operand) {
    return seek_expression(operand, geometry, rows, tiles, n);
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
uint32 bits_of_expression(const Mask& mask, const Geometry& geometry, int q, KeyWord keys) {
  if (mask.op() == Mask::Op::atom) {
    return functions_of(mask, geometry).row_bits(mask.numbers().data(), geometry, q, keys);
  }
  if (mask.op() == Mask::Op::expression) {
    check_tensors_known(mask, geometry);
    uint32 seen = 0;
    for (int i = 0; i < 32 && keys.first_key + i < geometry.seqlen_k; ++i) {
      seen |= holds(mask, geometry, q, keys.first_key + i) ? 1u << i : 0u;
    }
    return seen;
  }
  uint32 bits = bits_of_expression(mask.operands().front(), geometry, q, keys);
  if (mask.op() == Mask::Op::negation) return ~bits;
  for (std::size_t i = 1; i < mask.operands().size(); ++i) {
    const uint32 next = bits_of_expression(mask.operands()[i], geometry, q, keys);
    bits = mask.op() == Mask::Op::all_of ? bits & next : bits | next;
  }
  return bits;
}

// Calls visit(tile, kind) for the key tiles of some rows that are not empty. The last tile is
// full when its existing keys are.
template <class Visit>
void for_each_tile(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                   int begin, int end, Visit&& visit) {
  for (int n = begin; n < end;) {
    const Run run = seek_expression(mask, geometry, rows, tiles, n);
    const int run_end = std::min(run.end, end);
    if (run.kind == TileKind::empty) n = run_end;
    for (; n < run_end; ++n) visit(n, run.kind);
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
  if (q < 0 || q >= geometry.seqlen_q || first_key < 0 || first_key >= geometry.seqlen_k) return 0;
  const KeyWord keys{first_key};
  return bits_of_expression(mask, geometry, q, keys) & keys.below(geometry.seqlen_k);
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
  for_each_tile(mask, geometry, {q, q + 1}, words, 0, words.count(), [&](int n, TileKind kind) {
    const int first_key = 32 * n;
    if (kind == TileKind::full) {
      append(first_key, std::min(first_key + 32, geometry.seqlen_k));
      return;
    }
    uint32 bits = row_bits(mask, geometry, q, first_key);
    for (int k = first_key; bits != 0;) {
      const int zeros = std::countr_zero(bits);
      const int ones = std::countr_one(bits >> zeros);
      k += zeros + ones;
      append(k - ones, k);
      bits = zeros + ones < 32 ? bits >> (zeros + ones) : 0;
    }
  });
  return spans;
}

Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n) {
  return demote_last_tile(seek_expression(mask, geometry, rows, tiles, n), tiles, n);
}

std::int64_t count_visible(const Mask& mask, const Geometry& geometry) {
  // Large tiles settle most of the matrix at once, small ones most of the rest.
  constexpr int kLarge = 64, kSmall = 16;
  const KeyTiles large{kLarge, geometry.seqlen_k}, small{kSmall, geometry.seqlen_k};
  std::int64_t count = 0;
  const auto add_area = [&](QueryRows rows, KeyTiles tiles, int n) {
    const int keys = std::min(tiles.block_n, tiles.seqlen_k - n * tiles.block_n);
    count += std::int64_t{rows.end - rows.begin} * keys;
  };
  const auto add_small = [&](QueryRows rows, int n, TileKind kind) {
    if (kind == TileKind::full) return add_area(rows, small, n);
    constexpr uint32 kColumns = (1u << kSmall) - 1;
    for (int q = rows.begin; q < rows.end; ++q) {
      count += std::popcount(row_bits(mask, geometry, q, n * kSmall) & kColumns);
    }
  };
  const auto add_large = [&](QueryRows rows, int n, TileKind kind) {
    if (kind == TileKind::full) return add_area(rows, large, n);
    const int begin = n * (kLarge / kSmall);
    const int end = std::min(begin + kLarge / kSmall, small.count());
    for (int q = rows.begin; q < rows.end; q += kSmall) {
      const QueryRows few{q, std::min(q + kSmall, rows.end)};
      for_each_tile(mask, geometry, few, small, begin, end,
                    [&](int i, TileKind inner) { add_small(few, i, inner); });
    }
  };
  for (int q = 0; q < geometry.seqlen_q; q += kLarge) {
    const QueryRows rows{q, std::min(q + kLarge, geometry.seqlen_q)};
    for_each_tile(mask, geometry, rows, large, 0, large.count(),
                  [&](int n, TileKind kind) { add_large(rows, n, kind); });
  }
  return count;
}

TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n) {
  TileCounts counts;
  const KeyTiles tiles{block_n, geometry.seqlen_k};
  for (int q = 0; q < geometry.seqlen_q; q += block_m) {
    const QueryRows rows{q, std::min(q + block_m, geometry.seqlen_q)};
    for (int n = 0; n < tiles.count();) {
      const Run run = seek(mask, geometry, rows, tiles, n);
      std::int64_t& count = run.kind == TileKind::full      ? counts.full
                            : run.kind == TileKind::partial ? counts.partial
                                                            : counts.empty;
      count += run.end - n;
      n = run.end;
    }
  }
  return counts;
}

}  // namespace girih::pattern
