// The host's reading of a mask: what is visible, row by row and tile by tile. It evaluates the
// same atoms (templates/girih/shared) that the kernels use.
#pragma once

#include <cstdint>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/shared/geometry.cuh"
#include "pattern/atoms.hpp"  // atom_table()

namespace girih::pattern {

/// Whether a mask shows the heads of two geometries, which differ in nothing else, the same. A
/// run-time input without data is taken to hold the same for both.
bool same_for_heads(const Mask& mask, const Geometry& a, const Geometry& b);

/// The keys [first_key, first_key + 32) that row q sees, lowest bit first; 0 outside the sequence.
uint32 row_bits(const Mask& mask, const Geometry& geometry, int q, int first_key);

/// Whether row q sees key k; false outside the sequence.
bool visible(const Mask& mask, const Geometry& geometry, int q, int k);

/// The keys that row q sees, clipped to the sequence: sorted, disjoint, not adjacent.
std::vector<Span> row_spans(const Mask& mask, const Geometry& geometry, int q);

/// The run of key tiles that tile n starts for these rows, last-tile rule included: exactly what
/// a kernel's walk does, but for expressions, which kernels judge by blocks of 64 rows and keys.
Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n);

/// Visible elements of the whole matrix.
std::int64_t count_visible(const Mask& mask, const Geometry& geometry);

struct TileCounts {
  std::int64_t full = 0;
  std::int64_t partial = 0;
  std::int64_t empty = 0;
};
/// What a kernel with these tiles visits.
TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n);

}  // namespace girih::pattern
