// Tensors as the copy engine knows them.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/driver.hpp"
#include "girih/shared/tensor_map.cuh"

namespace girih::cuda {

/// A tensor of 16-bit elements, [batch, heads, rows, columns]; strides in elements, of which that
/// of a column is 1.
struct TiledTensor {
  const void* data = nullptr;
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  std::int64_t columns = 0, rows = 0, heads = 0, batch = 0;
  std::int64_t row_stride = 0, head_stride = 0, batch_stride = 0;

  bool operator==(const TiledTensor&) const = default;
};

/// For boxes of 64 columns and so many rows, swizzled. What a box holds beyond the tensor's rows
/// and columns is read as zeros and not written. Takes no lock and no device memory.
/// @throws Error driver when the driver refuses it.
TensorMap encode_tensor_map(const TiledTensor& tensor, int box_rows);

/// The same, from the last one of a thread when it was for this: encoding takes 0.15 us, and most
/// launches repeat their tensors.
class TensorMapMemory {
 public:
  /// @throws Error driver as encode_tensor_map().
  const TensorMap& get(const TiledTensor& tensor, int box_rows);

 private:
  TiledTensor tensor_;
  int box_rows_ = 0;  // 0: holds none
  TensorMap map_;
};

}  // namespace girih::cuda
