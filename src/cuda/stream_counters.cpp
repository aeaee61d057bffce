#include "cuda/stream_counters.hpp"

#include <map>
#include <memory>
#include <mutex>

namespace girih::cuda {

const StreamCounters& StreamCounters::of_context(unsigned long long context_id) {
  static std::mutex mutex;
  // Outlives the driver.
  static auto* known = new std::map<unsigned long long, std::unique_ptr<StreamCounters>>;
  {
    const std::lock_guard lock(mutex);
    if (const auto found = known->find(context_id); found != known->end()) return *found->second;
  }
  // Waits for what the context does, and must not keep others waiting. Of two made at once, which
  // takes two threads' first kernels, one is forgotten with its 4 KB.
  std::unique_ptr<StreamCounters> made(new StreamCounters(context_id));
  const std::lock_guard lock(mutex);
  return *known->try_emplace(context_id, std::move(made)).first->second;
}

StreamCounters::StreamCounters(unsigned long long context_id) : context_id_(context_id) {
  constexpr std::size_t kBytes = kCount * sizeof(int);
  check(driver().cuMemAlloc(&counters_, kBytes), "taking memory for counters");
  check(driver().cuMemsetD8(counters_, 0, kBytes), "clearing counters");
  check(driver().cuCtxSynchronize(), "clearing counters");
}

int* StreamCounters::of(CUstream stream) const {
  const Api& api = driver();
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  CUcontext context = nullptr;
  unsigned long long context_id = 0, id = 0;
  if (api.cuStreamIsCapturing(stream, &capture) != CUDA_SUCCESS ||
      capture != CU_STREAM_CAPTURE_STATUS_NONE ||
      api.cuStreamGetCtx(stream, &context) != CUDA_SUCCESS ||
      api.cuCtxGetId(context, &context_id) != CUDA_SUCCESS || context_id != context_id_ ||
      api.cuStreamGetId(stream, &id) != CUDA_SUCCESS) {
    return nullptr;
  }
  const unsigned long long owner = id + 1;
  for (std::size_t i = 0; i < kCount; ++i) {
    const std::size_t place = (id + i) % kCount;
    unsigned long long found = owners_[place].load(std::memory_order_relaxed);
    if (found == 0) owners_[place].compare_exchange_strong(found, owner);
    if (found == 0 || found == owner) return reinterpret_cast<int*>(counters_) + place;
  }
  return nullptr;
}

}  // namespace girih::cuda
