// A GPU for tools and tests: a context, memory that frees itself, and timing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "cuda/driver.hpp"

namespace girih::verify {

/// Makes device 0's primary context current for this thread, and what was current before it
/// current again at the end.
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
  CUcontext previous_ = nullptr;
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

/// Waits for everything the current context has been given. @throws Error driver, also for what
/// went wrong in a kernel.
void synchronize();

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  CUevent get() const { return event_; }

 private:
  CUevent event_ = nullptr;
};

struct Timing {
  int warmups = 3;
  int repeats = 15;
  bool flush_l2 = false;  ///< before each timed run: for launches of less than a millisecond
  CUstream stream = nullptr;
};

/// Writes more bytes than an L2 cache holds, on the default stream.
class L2Flush {
 public:
  L2Flush() : buffer_(std::size_t{256} << 20) {}
  void operator()() { buffer_.fill(0); }

 private:
  Buffer buffer_;
};

/// Runs `launch` `warmups` times, then times `repeats` runs with events on `stream`, to which
/// `launch` must submit its work.
/// @return milliseconds of each, sorted.
template <class Launch>
std::vector<double> time_launches(const Timing& timing, Launch&& launch) {
  const cuda::Api& api = cuda::driver();
  std::optional<L2Flush> flush;
  if (timing.flush_l2) flush.emplace();
  for (int i = 0; i < timing.warmups; ++i) launch();
  synchronize();

  const Event begin, end;
  std::vector<double> milliseconds;
  for (int i = 0; i < timing.repeats; ++i) {
    if (flush) {
      (*flush)();
      synchronize();
    }
    cuda::check(api.cuEventRecord(begin.get(), timing.stream), "cuEventRecord");
    launch();
    cuda::check(api.cuEventRecord(end.get(), timing.stream), "cuEventRecord");
    cuda::check(api.cuEventSynchronize(end.get()), "cuEventSynchronize");
    float elapsed = 0;
    cuda::check(api.cuEventElapsedTime(&elapsed, begin.get(), end.get()), "cuEventElapsedTime");
    milliseconds.push_back(elapsed);
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds;
}

/// The middle of sorted values; 0 when there are none.
inline double median(const std::vector<double>& sorted) {
  return sorted.empty() ? 0.0 : sorted[sorted.size() / 2];
}

}  // namespace girih::verify
