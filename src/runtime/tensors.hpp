// Tensors of a launch: where a layout has its dimensions, and the checks that they all pass.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "girih/problem.hpp"
#include "girih/shared/params.cuh"

namespace girih::runtime {

/// Where a layout has its dimensions.
struct Dims {
  int batch, row, head;
  const char* text;  ///< "[batch, seqlen, heads, head_dim]"
};
constexpr int kDim = 3;  ///< of a head's elements, in every layout
Dims dims_of(Layout layout);

using Shape = std::array<std::int64_t, 4>;
Shape shape_of(const Dims& dims, std::int64_t batch, std::int64_t rows, std::int64_t heads,
               std::int64_t width);

/// @throws Error invalid_argument, always.
[[noreturn]] void refuse(const std::string& message);

/// Shape, alignment and strides; of what is written, that no two elements share an address. Formats
/// text only when it throws.
/// @throws Error invalid_argument naming the tensor, the value and what it should be.
void check_tensor(const char* name, const Tensor& tensor, const Dims& dims, const Shape& shape,
                  bool written);

/// @throws Error invalid_argument unless `value` is from `least` to kMaxNumber.
void check_range(const char* name, std::int64_t value, std::int64_t least);

/// @throws Error invalid_argument.
void check_aligned_to_4(const char* name, const void* pointer);
/// @param asked what says how many bytes are needed.
void check_workspace(const void* data, std::size_t bytes, std::size_t needed, const char* asked);

/// A dimension of one element is never stepped over, whatever stride it was given.
Strides strides_of(const Tensor& tensor, const Dims& dims);

}  // namespace girih::runtime
