// The producer's walk over the key tiles of one query tile: each visited tile once, in order.
#pragma once

#include "girih/shared/smem_layout.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

template <class Classes>
struct KeyWalk {
  QueryRows rows;
  KeyTiles tiles;
  int head_class;
  const int* numbers;           // of the class
  int n = 0;                    // the next tile to look at
  Run run{0, TileKind::empty};  // that it lies in, when n < run.end

  // The next tile that is not empty; kind empty when there is none.
  __device__ __forceinline__ TileDescriptor next(const Geometry& geometry) {
    const int count = tiles.count();
    while (n == run.end && n < count) {
      run = Classes::seek(head_class, numbers, geometry, rows, tiles, n);
      if (run.kind == TileKind::empty) n = run.end;
    }
    if (n >= count) return {0, static_cast<int>(TileKind::empty)};
    return {n++, static_cast<int>(run.kind)};
  }
};

}  // namespace girih
