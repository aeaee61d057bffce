// Runs device code on the host: the threads of a CTA are coroutines, which change places where they
// wait for one another. What it offers of CUDA is what the code under test uses.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <iterator>
#include <vector>

#define __CUDACC__
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace emulation {

struct Index {
  int x = 0;
};

// Threads that wait for one another, and what each of a warp hands to the others.
struct Group {
  int size = 0;
  int waiting = 0;
  long generation = 0;
  unsigned slots[32] = {};
  unsigned published[32][8] = {};
};

class Cta {
 public:
  /// Runs body() once in each thread.
  void run(int num_threads, const std::function<void()>& body);

  Group& warp() { return warps_[static_cast<std::size_t>(current_ / 32)]; }
  Group& all() { return all_; }
  void wait(Group& group);

 private:
  struct Thread {
    ucontext_t context{};
    std::vector<char> stack;
    bool ended = false;
  };
  static void enter();

  std::vector<Thread> threads_;
  std::vector<Group> warps_;
  Group all_;
  ucontext_t scheduler_{};
  std::function<void()> body_;
  int current_ = 0;
};

inline Cta cta;
inline Index thread_index, block_index, grid_size;

inline void Cta::enter() {
  cta.body_();
  Thread& own = cta.threads_[static_cast<std::size_t>(cta.current_)];
  own.ended = true;
  swapcontext(&own.context, &cta.scheduler_);
}

inline void Cta::run(int num_threads, const std::function<void()>& body) {
  constexpr std::size_t kStackBytes = 1 << 16;
  body_ = body;
  threads_ = std::vector<Thread>(static_cast<std::size_t>(num_threads));
  warps_.assign(static_cast<std::size_t>(num_threads / 32), Group{.size = 32});
  all_ = {.size = num_threads};
  for (Thread& thread : threads_) {
    thread.stack.resize(kStackBytes);
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.context, enter, 0);
  }
  for (bool some = true; some;) {
    some = false;
    for (int i = 0; i < num_threads; ++i) {
      Thread& thread = threads_[static_cast<std::size_t>(i)];
      if (thread.ended) continue;
      some = true;
      current_ = thread_index.x = i;
      swapcontext(&scheduler_, &thread.context);
    }
  }
}

inline void Cta::wait(Group& group) {
  const long generation = group.generation;
  if (++group.waiting == group.size) {
    group.waiting = 0;
    ++group.generation;
    return;
  }
  while (group.generation == generation) {
    Thread& own = threads_[static_cast<std::size_t>(current_)];
    swapcontext(&own.context, &scheduler_);
  }
}

template <class Read>
unsigned exchange(unsigned own, Read&& read) {
  Group& warp = cta.warp();
  warp.slots[thread_index.x % 32] = own;
  cta.wait(warp);
  const unsigned result = read(warp.slots);
  cta.wait(warp);
  return result;
}

// What all lanes of a warp show one another; valid until they wait again.
inline const unsigned (&publish(const unsigned (&own)[8]))[32][8] {
  Group& warp = cta.warp();
  std::copy(std::begin(own), std::end(own), warp.published[thread_index.x % 32]);
  cta.wait(warp);
  return warp.published;
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define gridDim emulation::grid_size

inline void __syncwarp() { emulation::cta.wait(emulation::cta.warp()); }
inline void __syncthreads() { emulation::cta.wait(emulation::cta.all()); }

inline unsigned __ballot_sync(unsigned, bool vote) {
  return emulation::exchange(vote ? 1 : 0, [](const unsigned* votes) {
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane) ballot |= votes[lane] << lane;
    return ballot;
  });
}
inline bool __any_sync(unsigned lanes, bool vote) { return __ballot_sync(lanes, vote) != 0; }

template <class T>  // int or unsigned
T __shfl_sync(unsigned, T value, int source) {
  return static_cast<T>(emulation::exchange(
      static_cast<unsigned>(value), [&](const unsigned* values) { return values[source % 32]; }));
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  const int source = threadIdx.x % 32 - delta;
  const unsigned own = static_cast<unsigned>(value);
  return static_cast<T>(emulation::exchange(
      own, [&](const unsigned* values) { return source < 0 ? own : values[source]; }));
}

inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline std::size_t __cvta_generic_to_shared(const void* pointer) {
  return std::bit_cast<std::size_t>(pointer);
}

namespace emulation {

// Dynamic shared memory, whose addresses the code under test holds in 32 bits.
inline unsigned char* dynamic_shared = nullptr;
inline unsigned char* shared_memory(unsigned address) {
  return dynamic_shared +
         (address - static_cast<unsigned>(__cvta_generic_to_shared(dynamic_shared)));
}

}  // namespace emulation

inline float __shfl_xor_sync(unsigned, float value, int lanes) {
  const int source = (threadIdx.x % 32) ^ lanes;
  return std::bit_cast<float>(emulation::exchange(
      std::bit_cast<unsigned>(value), [&](const unsigned* values) { return values[source]; }));
}

struct alignas(16) uint4 {
  unsigned x = 0, y = 0, z = 0, w = 0;
};
struct uint2 {
  unsigned x = 0, y = 0;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
struct alignas(16) float4 {
  float x = 0, y = 0, z = 0, w = 0;
};
struct float2 {
  float x = 0, y = 0;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
using std::isinf;

template <class Join>
int reduce(int value, Join&& join) {
  return static_cast<int>(
      emulation::exchange(static_cast<unsigned>(value), [&](const unsigned* values) {
        int result = static_cast<int>(values[0]);
        for (int lane = 1; lane < 32; ++lane) {
          result = join(result, static_cast<int>(values[lane]));
        }
        return static_cast<unsigned>(result);
      }));
}
inline int __reduce_min_sync(unsigned, int value) {
  return reduce(value, [](int a, int b) { return a < b ? a : b; });
}
inline int __reduce_max_sync(unsigned, int value) {
  return reduce(value, [](int a, int b) { return a < b ? b : a; });
}

inline int __popc(unsigned word) { return __builtin_popcount(word); }
inline int __clz(unsigned word) { return word == 0 ? 32 : __builtin_clz(word); }

template <class T>
T atomicOr(T* address, T value) {
  const T before = *address;
  *address |= value;
  return before;
}
template <class T>
T atomicAdd(T* address, T value) {
  const T before = *address;
  *address += value;
  return before;
}
template <class T>
T atomicMax(T* address, T value) {
  const T before = *address;
  *address = std::max(before, value);
  return before;
}
template <class T>
T atomicMin(T* address, T value) {
  const T before = *address;
  *address = std::min(before, value);
  return before;
}

inline unsigned __reduce_min_sync(unsigned, unsigned value) {
  return emulation::exchange(value, [](const unsigned* values) {
    unsigned least = values[0];
    for (int lane = 1; lane < 32; ++lane) least = values[lane] < least ? values[lane] : least;
    return least;
  });
}
