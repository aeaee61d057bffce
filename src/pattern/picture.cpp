// Draws a mask in characters.
#include "pattern/picture.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "girih/error.hpp"
#include "pattern/interpret.hpp"

namespace girih::pattern {

int cell_size(const Geometry& geometry, int max_columns, int max_rows) {
  if (max_columns < 1 || max_rows < 1) {
    throw Error(Errc::invalid_argument,
                fmt::format("a picture of {} x {} cells: both numbers must be positive",
                            max_columns, max_rows));
  }
  return std::max(
      {1, ceil_div(geometry.seqlen_k, max_columns), ceil_div(geometry.seqlen_q, max_rows)});
}

namespace {

// What a seek calls partial may yet be all or nothing: the first row that shows both decides.
char exact_cell(const Mask& mask, const Geometry& geometry, QueryRows rows, int k0, int k1) {
  bool some_visible = false, some_hidden = false;
  for (int q = rows.begin; q < rows.end; ++q) {
    for (int k = k0; k < k1; k += 32) {
      const uint32 existing = KeyWord{k}.below(k1);
      const uint32 bits = row_bits(mask, geometry, q, k) & existing;
      some_visible = some_visible || bits != 0;
      some_hidden = some_hidden || bits != existing;
      if (some_visible && some_hidden) return '+';
    }
  }
  return some_visible ? '#' : '.';
}

}  // namespace

std::string picture(const Mask& mask, const Geometry& geometry, int max_columns, int max_rows) {
  const int cell = cell_size(geometry, max_columns, max_rows);
  const KeyTiles cells{cell, geometry.seqlen_k};
  if (cells.count() == 0) return {};

  std::string result;
  for (int q = 0; q < geometry.seqlen_q; q += cell) {
    const QueryRows rows{q, std::min(q + cell, geometry.seqlen_q)};
    for (int n = 0; n < cells.count();) {
      const Run run = seek(mask, geometry, rows, cells, n);
      for (; n < run.end; ++n) {
        result += run.kind == TileKind::empty ? '.'
                  : run.kind == TileKind::full
                      ? '#'
                      : exact_cell(mask, geometry, rows, n * cell,
                                   std::min((n + 1) * cell, cells.seqlen_k));
      }
    }
    result += '\n';
  }
  return result;
}

}  // namespace girih::pattern
