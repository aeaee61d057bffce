// The host's reading of a mask: what is visible, row by row and tile by tile. It evaluates the
// same atoms (templates/girih/shared) that the kernels use.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/shared/geometry.cuh"
#include "pattern/atoms.hpp"  // atom_table()

namespace girih::pattern {

/// How much work a reading may take, in steps of some 20 ns: calls of an atom, elements of an
/// expression. By steps and not by a clock, so that everyone gets the same answer. A function whose
/// budget is spent stops, and what it returns means nothing.
class Budget {
 public:
  explicit Budget(double steps = std::numeric_limits<double>::infinity()) : steps_(steps) {}
  void take(double steps) { taken_ += steps; }
  double taken() const { return taken_; }
  bool is_spent() const { return taken_ > steps_; }

 private:
  double steps_, taken_ = 0;
};

/// Whether a mask shows the heads of two geometries, which differ in nothing else, the same. A
/// run-time input without data is taken to hold the same for both.
bool same_for_heads(const Mask& mask, const Geometry& a, const Geometry& b);

/// The keys [first_key, first_key + 32) that row q sees, lowest bit first; 0 outside the sequence.
uint32 row_bits(const Mask& mask, const Geometry& geometry, int q, int first_key);
uint32 row_bits(const Mask& mask, const Geometry& geometry, int q, int first_key, Budget& budget);

/// Whether row q sees key k; false outside the sequence.
bool visible(const Mask& mask, const Geometry& geometry, int q, int k);

/// The keys that row q sees, clipped to the sequence: sorted, disjoint, not adjacent.
std::vector<Span> row_spans(const Mask& mask, const Geometry& geometry, int q);

/// The run of key tiles that tile n starts for these rows, last-tile rule included: exactly what
/// a kernel's walk does, but for expressions, which kernels judge by blocks of 64 rows and keys.
Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n);
Run seek(const Mask& mask, const Geometry& geometry, QueryRows rows, KeyTiles tiles, int n,
         Budget& budget);

/// Visible elements of the whole matrix; of a neighborhood alone by its axes.
std::int64_t count_visible(const Mask& mask, const Geometry& geometry);
std::int64_t count_visible(const Mask& mask, const Geometry& geometry, Budget& budget);
/// Those of some rows, and of some of their keys.
std::int64_t count_visible(const Mask& mask, const Geometry& geometry, QueryRows rows, Span keys,
                           Budget& budget);

struct TileCounts {
  std::int64_t full = 0;
  std::int64_t partial = 0;
  std::int64_t empty = 0;
  std::int64_t visited() const { return full + partial; }

  void add(TileKind kind, std::int64_t tiles) {
    (kind == TileKind::full ? full : kind == TileKind::partial ? partial : empty) += tiles;
  }
  TileCounts& operator+=(const TileCounts& others) {
    full += others.full;
    partial += others.partial;
    empty += others.empty;
    return *this;
  }
  /// Each of the counts as `of` makes it.
  template <class Of>
  TileCounts each(const Of& of) const {
    return {.full = of(full), .partial = of(partial), .empty = of(empty)};
  }
};
/// What a kernel with these tiles visits.
TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n);
/// Of some rows, in tiles that begin with the first of them, and some key tiles.
TileCounts count_tiles(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                       QueryRows rows, Span columns, Budget& budget);

}  // namespace girih::pattern
