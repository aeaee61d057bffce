// Evaluates a mask on the host, through the same atoms and the same rules for runs as a kernel.
#include "pattern/interpret.hpp"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "girih/shared/structure.cuh"

namespace girih::pattern {
namespace {

struct AtomFunctions {
  Span (*span)(const int* numbers, const Geometry& geometry, int q);
  Run (*seek)(const int* numbers, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n);
};

template <class Atom>
Span atom_span(const int* numbers, const Geometry& geometry, int q) {
  return make_atom<Atom>(numbers).span(geometry, q);
}

#define GIRIH_ATOM_FUNCTIONS(Atom) AtomFunctions{atom_span<Atom>, Leaf<Atom>::seek},
constexpr AtomFunctions kAtomFunctions[] = {GIRIH_ATOMS(GIRIH_ATOM_FUNCTIONS)};
#undef GIRIH_ATOM_FUNCTIONS

Span span_of(const Mask& atom, const Geometry& geometry, int q) {
  return kAtomFunctions[atom.atom_index()].span(atom.numbers().data(), geometry, q);
}

bool evaluate(const Mask& mask, const Geometry& geometry, int q, int k) {
  const auto holds = [&](const Mask& operand) { return evaluate(operand, geometry, q, k); };
  const std::vector<Mask>& operands = mask.operands();
  switch (mask.op()) {
    case Mask::Op::atom:
      return span_of(mask, geometry, q).contains(k);
    case Mask::Op::all_of:
      return std::all_of(operands.begin(), operands.end(), holds);
    case Mask::Op::any_of:
      return std::any_of(operands.begin(), operands.end(), holds);
    case Mask::Op::negation:
      break;
  }
  return !holds(operands.front());
}

// --- Rows: sorted, disjoint, non-adjacent spans within [0, seqlen_k) ---

using Spans = std::vector<Span>;

Spans complement(const Spans& spans, int seqlen_k) {
  Spans result;
  int lo = 0;
  for (const Span& span : spans) {
    if (lo < span.lo) result.push_back({lo, span.lo});
    lo = span.hi;
  }
  if (lo < seqlen_k) result.push_back({lo, seqlen_k});
  return result;
}

// Of spans in any order.
Spans merged(Spans spans) {
  std::sort(spans.begin(), spans.end(), [](Span a, Span b) { return a.lo < b.lo; });
  Spans result;
  for (const Span& span : spans) {
    if (result.empty() || result.back().hi < span.lo) {
      result.push_back(span);
    } else {
      result.back().hi = std::max(result.back().hi, span.hi);
    }
  }
  return result;
}

// The keys of row q that `mask` shows, or, with `hidden`, those that it hides. An intersection is
// what no operand hides.
Spans spans_of(const Mask& mask, const Geometry& geometry, int q, bool hidden) {
  if (mask.op() == Mask::Op::negation) {
    return spans_of(mask.operands().front(), geometry, q, !hidden);
  }
  Spans spans;
  bool inverted = false;  // `spans` are the hidden keys
  if (mask.op() == Mask::Op::atom) {
    const Span span = span_of(mask, geometry, q);
    const Span clipped{std::max(span.lo, 0), std::min(span.hi, geometry.seqlen_k)};
    if (clipped.lo < clipped.hi) spans.push_back(clipped);
  } else {
    inverted = mask.op() == Mask::Op::all_of;
    for (const Mask& operand : mask.operands()) {
      const Spans more = spans_of(operand, geometry, q, inverted);
      spans.insert(spans.end(), more.begin(), more.end());
    }
    spans = merged(std::move(spans));
  }
  return inverted == hidden ? spans : complement(spans, geometry.seqlen_k);
}

// --- Tiles ---

Run seek_expression(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles,
                    int n) {
  if (mask.op() == Mask::Op::atom) {
    return kAtomFunctions[mask.atom_index()].seek(mask.numbers().data(), geometry, rows, tiles, n);
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

}  // namespace

bool visible(const Mask& mask, const Geometry& geometry, int q, int k) {
  return 0 <= q && q < geometry.seqlen_q && 0 <= k && k < geometry.seqlen_k &&
         evaluate(mask, geometry, q, k);
}

std::vector<Span> row_spans(const Mask& mask, const Geometry& geometry, int q) {
  if (q < 0 || q >= geometry.seqlen_q) return {};
  return spans_of(mask, geometry, q, false);
}

Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n) {
  return demote_last_tile(seek_expression(mask, geometry, rows, tiles, n), tiles, n);
}

std::int64_t count_visible(const Mask& mask, const Geometry& geometry) {
  std::int64_t count = 0;
  for (int q = 0; q < geometry.seqlen_q; ++q) {
    for (const Span& span : row_spans(mask, geometry, q)) count += span.hi - span.lo;
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
