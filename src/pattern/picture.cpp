// Draws a mask in characters, from the exact spans of every row.
#include "pattern/picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

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

std::string picture(const Mask& mask, const Geometry& geometry, int max_columns, int max_rows) {
  const int cell = cell_size(geometry, max_columns, max_rows);
  const int columns = ceil_div(geometry.seqlen_k, cell);
  if (columns == 0) return {};

  std::string result;
  std::vector<std::int64_t> visible_in(columns);  // of the cells of one row of the picture
  for (int q0 = 0; q0 < geometry.seqlen_q; q0 += cell) {
    const int q1 = std::min(q0 + cell, geometry.seqlen_q);
    std::fill(visible_in.begin(), visible_in.end(), 0);
    for (int q = q0; q < q1; ++q) {
      for (const Span& span : row_spans(mask, geometry, q)) {
        for (int c = span.lo / cell; c <= (span.hi - 1) / cell; ++c) {
          visible_in[c] += std::min(span.hi, (c + 1) * cell) - std::max(span.lo, c * cell);
        }
      }
    }
    for (int c = 0; c < columns; ++c) {
      const int width = std::min((c + 1) * cell, geometry.seqlen_k) - c * cell;
      const std::int64_t all = std::int64_t(q1 - q0) * width;
      result += visible_in[c] == 0 ? '.' : visible_in[c] == all ? '#' : '+';
    }
    result += '\n';
  }
  return result;
}

}  // namespace girih::pattern
