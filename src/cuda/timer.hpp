// Times what a stream does, by the GPU's clock.
#pragma once

#include <utility>

#include "cuda/driver.hpp"

namespace girih::cuda {

class Event {
 public:
  Event() { check(driver().cuEventCreate(&event_, CU_EVENT_DEFAULT), "creating an event"); }
  ~Event() { driver().cuEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  CUevent get() const { return event_; }

 private:
  CUevent event_ = nullptr;
};

class Timer {
 public:
  /// Milliseconds of the work that `launch` submits to the stream, after waiting for it.
  template <class Launch>
  double operator()(CUstream stream, Launch&& launch) const {
    check(driver().cuEventRecord(begin_.get(), stream), "recording an event");
    std::forward<Launch>(launch)();
    check(driver().cuEventRecord(end_.get(), stream), "recording an event");
    check(driver().cuEventSynchronize(end_.get()), "waiting for a launch");
    float ms = 0;
    check(driver().cuEventElapsedTime(&ms, begin_.get(), end_.get()), "timing a launch");
    return static_cast<double>(ms);
  }

 private:
  Event begin_, end_;
};

}  // namespace girih::cuda
