// A mask as text: one character a cell, a cell being a square of tokens.
#pragma once

#include <string>

#include "girih/pattern.hpp"
#include "girih/shared/geometry.cuh"

namespace girih::pattern {

/// Tokens along a side of a cell: the least for which the whole matrix fits.
/// @throws Error invalid_argument unless max_columns and max_rows are positive.
int cell_size(const Geometry& geometry, int max_columns = 64, int max_rows = 32);

/// At most `max_columns` x `max_rows` cells; '#' every element visible, '+' some, '.' none. Cells
/// are exact (not what a kernel would visit). Lines end in '\n'. Empty when there is no query or no
/// key.
std::string picture(const Mask& mask, const Geometry& geometry, int max_columns = 64,
                    int max_rows = 32);

}  // namespace girih::pattern
