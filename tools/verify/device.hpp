// A GPU for tools and tests: a context, poisoned memory, and timing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "cuda/driver.hpp"
#include "cuda/memory.hpp"
#include "cuda/module.hpp"
#include "cuda/timer.hpp"
#include "girih/shared/params.cuh"
#include "girih/shared/tensor_map.cuh"

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

/// Device memory, filled with 0xff bytes: a NaN in bf16, fp16 and fp32.
struct Buffer : cuda::Buffer {
  explicit Buffer(std::size_t bytes) : cuda::Buffer(bytes) { fill(0xff); }
};

/// Waits for everything the current context has been given. @throws Error driver, also for what
/// went wrong in a kernel.
void synchronize();

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
  std::optional<L2Flush> flush;
  if (timing.flush_l2) flush.emplace();
  for (int i = 0; i < timing.warmups; ++i) launch();
  synchronize();

  const cuda::Timer timer;
  std::vector<double> milliseconds;
  for (int i = 0; i < timing.repeats; ++i) {
    if (flush) {
      (*flush)();
      synchronize();
    }
    milliseconds.push_back(timer(timing.stream, launch));
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds;
}

/// A kernel that does nothing, with as many bytes of parameters as the Hopper kernel of a pattern
/// without inputs: what a launch costs at least.
class EmptyKernel {
 public:
  /// In the current context. @throws Error compile_failed, driver.
  explicit EmptyKernel(const std::string& arch);
  void launch();

 private:
  static constexpr int kBytes = sizeof(FwdParams) + sizeof(FwdTensorMaps) + sizeof(int*);
  cuda::Module module_;
  char bytes_[kBytes] = {};
};

/// The middle of sorted values; 0 when there are none.
inline double median(const std::vector<double>& sorted) {
  return sorted.empty() ? 0.0 : sorted[sorted.size() / 2];
}

}  // namespace girih::verify
