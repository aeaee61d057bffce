// A GPU for tools and tests: a context, memory that frees itself, and timing.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "cuda/driver.hpp"

namespace girih::verify {

/// Makes device 0's primary context current for this thread.
/// @throws Error no_device when there is no usable GPU.
class Device {
 public:
  Device();
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  std::string name() const;
  std::string arch() const;    ///< "sm_90"
  std::string driver() const;  ///< highest CUDA version it supports, "13.0"

 private:
  CUdevice device_ = 0;
};

/// Whether a GPU can be used; else `reason` says why not.
bool device_available(std::string* reason = nullptr);

/// Device memory, filled with `poison` bytes (0xff is a NaN in bf16, fp16 and fp32).
class Buffer {
 public:
  explicit Buffer(std::size_t bytes, unsigned char poison = 0xff);
  ~Buffer();
  Buffer(Buffer&&) noexcept;
  Buffer& operator=(Buffer&&) noexcept;

  void upload(const void* source, std::size_t bytes, std::size_t offset = 0);
  void download(void* target, std::size_t bytes, std::size_t offset = 0) const;
  void fill(unsigned char byte);
  void* data() const { return reinterpret_cast<void*>(pointer_); }
  std::size_t size() const { return bytes_; }

 private:
  CUdeviceptr pointer_ = 0;
  std::size_t bytes_ = 0;
};

/// Runs `launch` `warmups` times, then times `repeats` runs with events on the default stream.
/// @return milliseconds of each, sorted.
template <class Launch>
std::vector<double> time_launches(int warmups, int repeats, Launch&& launch);

}  // namespace girih::verify
