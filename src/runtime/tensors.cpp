#include "runtime/tensors.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>

#include "girih/error.hpp"

namespace girih::runtime {
namespace {

constexpr int kAlignment = 16;  // bytes, of every tensor: cp.async and 16-byte stores

// No two elements at one address: every dimension steps over all that lies within it.
void check_disjoint(const char* name, const Tensor& tensor) {
  std::array<int, kDim> order{0, 1, 2};
  const auto step = [&](int dim) { return std::abs(tensor.stride[dim]); };
  std::sort(order.begin(), order.end(), [&](int a, int b) { return step(a) < step(b); });
  std::int64_t extent = tensor.shape[kDim];
  for (const int dim : order) {
    if (tensor.shape[dim] == 1) continue;
    if (step(dim) < extent) {
      refuse(
          fmt::format("{} has stride {} in dimension {}: its elements would overlap, for {} lie "
                      "within one step",
                      name, tensor.stride[dim], dim, extent));
    }
    extent += step(dim) * (tensor.shape[dim] - 1);
  }
}

}  // namespace

Dims dims_of(Layout layout) {
  switch (layout) {
    case Layout::bhsd:
      return {0, 2, 1, "[batch, heads, seqlen, head_dim]"};
    case Layout::thd:
      return {0, 1, 2, "[1, total, heads, head_dim]"};
    case Layout::bshd:
      break;
  }
  return {0, 1, 2, "[batch, seqlen, heads, head_dim]"};
}

void refuse(const std::string& message) { throw Error(Errc::invalid_argument, message); }

Shape shape_of(const Dims& dims, std::int64_t batch, std::int64_t rows, std::int64_t heads,
               std::int64_t width) {
  Shape shape{};
  shape[dims.batch] = batch;
  shape[dims.row] = rows;
  shape[dims.head] = heads;
  shape[kDim] = width;
  return shape;
}

void check_tensor(const char* name, const Tensor& tensor, const Dims& dims, const Shape& shape,
                  bool written) {
  if (tensor.shape != shape) {
    refuse(fmt::format("{} has shape [{}], expected [{}] ({})", name, fmt::join(tensor.shape, ", "),
                       fmt::join(shape, ", "), dims.text));
  }
  if (shape[dims.batch] == 0 || shape[dims.row] == 0) return;  // nothing is read or written
  if (tensor.data == nullptr) refuse(fmt::format("{} is null", name));
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment != 0) {
    refuse(fmt::format("{} at {} is not aligned to {} bytes", name, tensor.data, kAlignment));
  }
  if (tensor.stride[kDim] != 1) {
    refuse(fmt::format("{} has stride {} between the elements of a head: it must be 1", name,
                       tensor.stride[kDim]));
  }
  const int stride_multiple = kAlignment / bytes_of(tensor.dtype);
  for (int dim = 0; dim < kDim; ++dim) {
    if (shape[dim] == 1) continue;  // never stepped over
    if (tensor.stride[dim] % stride_multiple != 0) {
      refuse(
          fmt::format("{} has stride {} in dimension {}: it must be a multiple of {} elements "
                      "({} bytes)",
                      name, tensor.stride[dim], dim, stride_multiple, kAlignment));
    }
  }
  if (written) check_disjoint(name, tensor);
}

void check_range(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least || value > kMaxNumber) {
    refuse(fmt::format("{} is {}: it must be from {} to {}", name, value, least, kMaxNumber));
  }
}

void check_aligned_to_4(const char* name, const void* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 4 != 0) {
    refuse(fmt::format("{} at {} is not aligned to 4 bytes", name, pointer));
  }
}

void check_workspace(const void* data, std::size_t bytes, std::size_t needed, const char* asked) {
  if (needed == 0) return;
  if (data == nullptr || bytes < needed) {
    refuse(fmt::format("these arguments need {} bytes of workspace, and {} were given: see {}",
                       needed, data == nullptr ? 0 : bytes, asked));
  }
  if (reinterpret_cast<std::uintptr_t>(data) % 16 != 0) {
    refuse(fmt::format("the workspace at {} is not aligned to 16 bytes", data));
  }
}

Strides strides_of(const Tensor& tensor, const Dims& dims) {
  const auto stride = [&](int dim) { return tensor.shape[dim] == 1 ? 0 : tensor.stride[dim]; };
  return {stride(dims.batch), stride(dims.row), stride(dims.head)};
}

}  // namespace girih::runtime
