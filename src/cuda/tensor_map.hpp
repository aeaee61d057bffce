// Tensors as the copy engine knows them.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/driver.hpp"
#include "girih/shared/tensor_map.cuh"

namespace girih::cuda {

/// A tensor of 16-bit elements in boxes. The innermost dimension comes first; strides count
/// elements, and the first is 1.
struct TiledTensor {
  static constexpr int kMostDimensions = 5;
  using PerDimension = std::array<std::int64_t, kMostDimensions>;

  const void* data = nullptr;
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  int num_dimensions = 0;
  PerDimension extents{}, strides{}, box{};
  PerDimension steps{1, 1, 1, 1, 1};  ///< in elements, from one of a box to the next
};

/// Boxes are swizzled in rows of 128 bytes. What one holds beyond the tensor's extents is read as
/// zeros and not written. Takes no lock and no device memory.
/// @throws Error driver when the driver refuses it.
TensorMap encode_tensor_map(const TiledTensor& tensor);

}  // namespace girih::cuda
