// Device memory that frees itself.
#pragma once

#include <cstddef>
#include <optional>

#include "cuda/driver.hpp"

namespace girih::cuda {

/// Memory of the current context. Has an address even without bytes, for a tensor without elements
/// needs one.
class Buffer {
 public:
  /// What it holds is undefined. @throws Error driver when it cannot be had.
  explicit Buffer(std::size_t bytes);
  /// The same, empty when it cannot be had.
  static std::optional<Buffer> if_room(std::size_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  // All of these return when it is done: streams that do not wait for the default one may go on.
  void upload(const void* source, std::size_t bytes, std::size_t offset = 0);
  void download(void* target, std::size_t bytes, std::size_t offset = 0) const;
  void fill(unsigned char byte);

  void* data() const { return reinterpret_cast<void*>(pointer_); }
  CUdeviceptr address() const { return pointer_; }
  std::size_t size() const { return bytes_; }

 private:
  Buffer(CUdeviceptr pointer, std::size_t bytes) : pointer_(pointer), bytes_(bytes) {}

  CUdeviceptr pointer_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace girih::cuda
