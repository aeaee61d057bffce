// Descriptions of tensors for the copy engine: made by the driver on the host, passed by value.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// Opaque: the driver's CUtensorMap.
struct alignas(128) TensorMap {
  unsigned long long opaque[16];
};

// Dimensions of each: head_dim, rows, heads, batch. Boxes are 64 columns (128 bytes, swizzled)
// wide and, from q to out, block_m, block_n, block_n and block_m rows high.
struct FwdTensorMaps {
  TensorMap q;
  TensorMap k;
  TensorMap v;
  TensorMap out;
};

// The same tensors in boxes of one row.
struct FwdRowMaps {
  TensorMap k;
  TensorMap v;
};

// q, k and v over a grid (shared/bricks.cuh), in boxes of 64 columns of a brick. Dimensions are the
// columns of all heads, the grid's axes from the last to the first, and batch.
struct FwdBrickMaps {
  TensorMap q;
  TensorMap k;
  TensorMap v;
};

}  // namespace girih
