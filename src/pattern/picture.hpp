// A mask as text: one character a cell, a cell being a square of tokens.
#pragma once

#include <string>

#include "girih/pattern.hpp"
#include "girih/shared/geometry.cuh"
#include "pattern/interpret.hpp"

namespace girih::pattern {

/// Tokens along a side of a cell: the least for which the whole matrix fits.
/// @throws Error invalid_argument unless max_columns and max_rows are positive.
int cell_size(const Geometry& geometry, int max_columns = 64, int max_rows = 32);

/// At most `max_columns` x `max_rows` cells; '#' every element visible (not what a kernel would
/// visit), '+' some, '.' none. Lines end in '\n'. Empty when there is no query or no key.
std::string picture(const Mask& mask, const Geometry& geometry, int max_columns = 64,
                    int max_rows = 32);
std::string picture(const Mask& mask, const Geometry& geometry, int max_columns, int max_rows,
                    Budget& budget);

/// Its cells by some rows, and some 32 keys in a row, at equal distances.
std::string sampled_picture(const Mask& mask, const Geometry& geometry, int max_columns,
                            int max_rows);

}  // namespace girih::pattern
