#include "cuda/memory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace girih::cuda {

// The driver refuses to allocate nothing.
static CUresult allocate(CUdeviceptr& pointer, std::size_t bytes) {
  return driver().cuMemAlloc(&pointer, std::max<std::size_t>(bytes, 1));
}

Buffer::Buffer(std::size_t bytes) : bytes_(bytes) {
  check(allocate(pointer_, bytes), fmt::format("allocating {} bytes of device memory", bytes));
}

std::optional<Buffer> Buffer::if_room(std::size_t bytes) {
  CUdeviceptr pointer = 0;
  if (allocate(pointer, bytes) != CUDA_SUCCESS) return std::nullopt;
  return Buffer(pointer, bytes);
}

Buffer::~Buffer() {
  if (pointer_ != 0) driver().cuMemFree(pointer_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : pointer_(std::exchange(other.pointer_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(pointer_, other.pointer_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Buffer::upload(const void* source, std::size_t bytes, std::size_t offset) {
  if (bytes == 0) return;
  check(driver().cuMemcpyHtoD(pointer_ + offset, source, bytes), "cuMemcpyHtoD");
  check(driver().cuStreamSynchronize(nullptr), "cuMemcpyHtoD");
}

void Buffer::download(void* target, std::size_t bytes, std::size_t offset) const {
  if (bytes == 0) return;
  check(driver().cuMemcpyDtoH(target, pointer_ + offset, bytes), "cuMemcpyDtoH");
}

void Buffer::fill(unsigned char byte) {
  if (bytes_ == 0) return;
  check(driver().cuMemsetD8(pointer_, byte, bytes_), "cuMemsetD8");
  check(driver().cuStreamSynchronize(nullptr), "cuMemsetD8");
}

}  // namespace girih::cuda
