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

// Of rows and of words of 32 keys every so-many-th is looked at, and the last; the first that shows
// both visible and hidden elements decides.
char cell_of(const Mask& mask, const Geometry& geometry, QueryRows rows, int k0, int k1,
             int row_step, int key_step, Budget& budget) {
  bool some_visible = false, some_hidden = false;
  const int last_q = rows.end - 1, last_k = k0 + (k1 - 1 - k0) / 32 * 32;
  for (int q = rows.begin; q < rows.end && !budget.is_spent();
       q = q < last_q ? std::min(q + row_step, last_q) : rows.end) {
    for (int k = k0; k < k1; k = k < last_k ? std::min(k + key_step, last_k) : k1) {
      const uint32 existing = KeyWord{k}.below(k1);
      const uint32 bits = row_bits(mask, geometry, q, k, budget) & existing;
      some_visible = some_visible || bits != 0;
      some_hidden = some_hidden || bits != existing;
      if (some_visible && some_hidden) return '+';
    }
  }
  return some_visible ? '#' : '.';
}

}  // namespace

std::string picture(const Mask& mask, const Geometry& geometry, int max_columns, int max_rows) {
  Budget unlimited;
  return picture(mask, geometry, max_columns, max_rows, unlimited);
}

std::string picture(const Mask& mask, const Geometry& geometry, int max_columns, int max_rows,
                    Budget& budget) {
  const int cell = cell_size(geometry, max_columns, max_rows);
  const KeyTiles cells{cell, geometry.seqlen_k};
  if (cells.count() == 0) return {};

  std::string result;
  for (int q = 0; q < geometry.seqlen_q && !budget.is_spent(); q += cell) {
    const QueryRows rows{q, std::min(q + cell, geometry.seqlen_q)};
    for (int n = 0; n < cells.count() && !budget.is_spent();) {
      const Run run = seek(mask, geometry, rows, cells, n, budget);
      for (; n < run.end; ++n) {
        result += run.kind == TileKind::empty ? '.'
                  : run.kind == TileKind::full
                      ? '#'
                      // Partial by a seek may yet be all or nothing.
                      : cell_of(mask, geometry, rows, n * cell,
                                std::min((n + 1) * cell, cells.seqlen_k), 1, 32, budget);
      }
    }
    result += '\n';
  }
  return result;
}

std::string sampled_picture(const Mask& mask, const Geometry& geometry, int max_columns,
                            int max_rows) {
  constexpr int kRows = 16, kWords = 8;  // of a cell
  const int cell = cell_size(geometry, max_columns, max_rows);
  const KeyTiles cells{cell, geometry.seqlen_k};
  Budget unlimited;
  std::string result;
  for (int q = 0; q < geometry.seqlen_q; q += cell) {
    const QueryRows rows{q, std::min(q + cell, geometry.seqlen_q)};
    for (int n = 0; n < cells.count(); ++n) {
      result += cell_of(mask, geometry, rows, n * cell, std::min((n + 1) * cell, cells.seqlen_k),
                        ceil_div(cell, kRows), 32 * ceil_div(cell, 32 * kWords), unlimited);
    }
    if (cells.count() > 0) result += '\n';
  }
  return result;
}

}  // namespace girih::pattern
