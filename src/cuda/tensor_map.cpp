#include "cuda/tensor_map.hpp"

#include <algorithm>

namespace girih::cuda {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

TensorMap encode_tensor_map(const TiledTensor& tensor, int box_rows) {
  constexpr std::int64_t kElementBytes = 2;
  // A dimension of one element is never stepped over, but its stride must be one.
  const auto stride_bytes = [](std::int64_t stride, std::int64_t extent) {
    return static_cast<cuuint64_t>(extent == 1 ? 16 : kElementBytes * stride);
  };
  const cuuint64_t extents[] = {
      static_cast<cuuint64_t>(tensor.columns), static_cast<cuuint64_t>(tensor.rows),
      static_cast<cuuint64_t>(tensor.heads), static_cast<cuuint64_t>(tensor.batch)};
  const cuuint64_t strides[] = {stride_bytes(tensor.row_stride, tensor.rows),
                                stride_bytes(tensor.head_stride, tensor.heads),
                                stride_bytes(tensor.batch_stride, tensor.batch)};
  const cuuint32_t box[] = {64, static_cast<cuuint32_t>(box_rows), 1, 1};
  const cuuint32_t steps[] = {1, 1, 1, 1};
  TensorMap map;
  check(driver().cuTensorMapEncodeTiled(
            reinterpret_cast<CUtensorMap*>(&map), tensor.type, 4, const_cast<void*>(tensor.data),
            extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "describing a tensor to the copy engine");
  return map;
}

const TensorMap& TensorMapMemory::get(const TiledTensor& tensor, int box_rows) {
  if (box_rows != box_rows_ || !(tensor == tensor_)) {
    box_rows_ = 0;
    map_ = encode_tensor_map(tensor, box_rows);
    tensor_ = tensor;
    box_rows_ = box_rows;
  }
  return map_;
}

}  // namespace girih::cuda
