#include "cuda/stream_counters.hpp"

#include <map>
#include <memory>
#include <mutex>

namespace girih::cuda {

const StreamCounters& StreamCounters::of_context(unsigned long long context_id) {
  static std::mutex mutex;
  // Outlives the driver.
  static auto* known = new std::map<unsigned long long, std::unique_ptr<StreamCounters>>;
  const std::lock_guard lock(mutex);
  std::unique_ptr<StreamCounters>& counters = (*known)[context_id];
  if (!counters) counters.reset(new StreamCounters(context_id));
  return *counters;
}

StreamCounters::StreamCounters(unsigned long long context_id) : context_id_(context_id) {
  constexpr std::size_t kBytes = kCount * sizeof(int);
  check(driver().cuMemAlloc(&counters_, kBytes), "taking memory for counters");
  check(driver().cuMemsetD8(counters_, 0, kBytes), "clearing counters");
  check(driver().cuCtxSynchronize(), "clearing counters");
}

bool StreamCounters::is_of_this_context(CUstream stream) const {
  const Api& api = driver();
  CUcontext context = nullptr;
  unsigned long long context_id = 0;
  return api.cuStreamGetCtx(stream, &context) == CUDA_SUCCESS &&
         api.cuCtxGetId(context, &context_id) == CUDA_SUCCESS && context_id == context_id_;
}

int* StreamCounters::of(CUstream stream) const {
  const Api& api = driver();
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  unsigned long long id = 0;
  if (api.cuStreamIsCapturing(stream, &capture) != CUDA_SUCCESS ||
      capture != CU_STREAM_CAPTURE_STATUS_NONE || api.cuStreamGetId(stream, &id) != CUDA_SUCCESS) {
    return nullptr;
  }
  const unsigned long long owner = id + 1;
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::size_t place = (id + i) % kCount;
    unsigned long long found = owners_[place].load(std::memory_order_relaxed);
    // Ids are never used again: whose place there is, its context was right.
    if (found == 0 && !is_of_this_context(stream)) return nullptr;
    if (found == 0) owners_[place].compare_exchange_strong(found, owner);
    if (found == 0 || found == owner) return reinterpret_cast<int*>(counters_) + place;
  }
  return nullptr;
}

}  // namespace girih::cuda
