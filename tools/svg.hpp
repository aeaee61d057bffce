// A pattern's tiles as an SVG picture.
#pragma once

#include <string>

#include "reading.hpp"

namespace girih::tools {

/// A panel for each group of heads: tiles of block_m x block_n coloured as a kernel visits them
/// (empty, partial, full) and, where the matrix is small, the visible elements inside the partial
/// ones. The same arguments give the same bytes.
/// @throws Error invalid_argument when there are too many tiles to draw, or to find, or none.
std::string svg_picture(const Pattern& pattern, const std::vector<HeadGroup>& groups,
                        const Geometry& geometry, int block_m, int block_n);

}  // namespace girih::tools
