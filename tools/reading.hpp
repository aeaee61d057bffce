// The host's reading of a pattern: whom a class of heads holds, what its rows see, how much that
// is.
#pragma once

#include "common.hpp"
#include "girih/shared/geometry.cuh"
#include "verify/verify.hpp"

namespace girih::tools {

/// Of one sequence, aligned bottom-right.
Geometry geometry_of(int seqlen_q, int seqlen_k);
/// Of every sequence of a case, which are equally long.
Geometry geometry_of(const verify::Case& c);

/// The query heads of each of the pattern's classes, ascending.
/// @throws Error invalid_argument when a head is covered never or twice.
std::vector<std::vector<int>> heads_of_classes(const Pattern& pattern, const Problem& problem);

/// The rows of a case as bits. @throws as heads_of_classes.
verify::MaskRow reading_of(const Pattern& pattern, const verify::Case& c);

/// Floating-point operations of the visible elements, all heads and sequences.
double visible_flop(const Pattern& pattern, const verify::Case& c);

}  // namespace girih::tools
