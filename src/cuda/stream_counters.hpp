// Counters in device memory, one for each stream of a context. Launches on one stream run one after
// the other, so that a kernel which leaves its counter at zero finds it so.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "cuda/driver.hpp"

namespace girih::cuda {

class StreamCounters {
 public:
  /// Those of the current context, whose id is given; made on first use, and kept until the process
  /// ends. @throws Error driver when there is no memory.
  static const StreamCounters& of_context(unsigned long long context_id);

  /// Null where a counter of the stream's own cannot be had: while it is captured, for graphs may
  /// run at once with anything; where it is of another context; and where there have been too many
  /// streams. Takes no lock.
  int* of(CUstream stream) const;

 private:
  explicit StreamCounters(unsigned long long context_id);

  static constexpr std::size_t kCount = 1024;

  unsigned long long context_id_;
  CUdeviceptr counters_ = 0;
  /// Ids of streams, plus 1; 0 is free. A stream's place follows from its id, or is the next free.
  mutable std::array<std::atomic<unsigned long long>, kCount> owners_{};
};

}  // namespace girih::cuda
