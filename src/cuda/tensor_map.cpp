#include "cuda/tensor_map.hpp"

#include <algorithm>

namespace girih::cuda {

static_assert(sizeof(TensorMap) == sizeof(CUtensorMap));

TensorMap encode_tensor_map(const TiledTensor& tensor) {
  constexpr std::int64_t kElementBytes = 2;
  constexpr int kMost = TiledTensor::kMostDimensions;
  cuuint64_t extents[kMost] = {}, strides[kMost] = {};
  cuuint32_t box[kMost] = {}, steps[kMost] = {};
  for (int i = 0; i < tensor.num_dimensions; ++i) {
    const auto at = static_cast<std::size_t>(i);
    extents[i] = static_cast<cuuint64_t>(tensor.extents[at]);
    // The driver counts what lies between elements too.
    box[i] = static_cast<cuuint32_t>(tensor.box[at] * tensor.steps[at]);
    steps[i] = static_cast<cuuint32_t>(tensor.steps[at]);
    if (i == 0) continue;  // which has no stride
    // A dimension of one element is never stepped over, but its stride must be one.
    const bool stepped = tensor.extents[at] != 1;
    strides[i - 1] = static_cast<cuuint64_t>(stepped ? kElementBytes * tensor.strides[at] : 16);
  }
  TensorMap map;
  check(driver().cuTensorMapEncodeTiled(
            reinterpret_cast<CUtensorMap*>(&map), tensor.type,
            static_cast<cuuint32_t>(tensor.num_dimensions), const_cast<void*>(tensor.data), extents,
            strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
            CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "describing a tensor to the copy engine");
  return map;
}

}  // namespace girih::cuda
