// Runs device code on the host: the threads of a CTA are coroutines, which change places where they
// wait for one another. What it offers of CUDA is what the code under test uses.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __CUDACC__
#define __host__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))

namespace emulation {

/// A random number, at least 0 and less than `bound`.
inline int below(std::mt19937& random, int bound) {
  return static_cast<int>(random() % static_cast<unsigned>(bound));
}

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

// How threads take turns at random.
struct RandomTurns {
  unsigned seed = 0;
  int lanes = 32;          // of every warp, the first ones, that there are
  long most_turns = 0;     // of all warps; as many and threads that have not ended are a failure
  int chance_of_rest = 4;  // one in so many times, where a thread offers to let others go first
};

class Cta {
 public:
  /// Runs body() once in each thread.
  void run(int num_threads, const std::function<void()>& body);

  /// The same in an order that a seed gives; warps are faster or slower for a while. Returns what
  /// went wrong, or nothing. Threads that have not ended by then never do.
  std::string run(int num_warps, const RandomTurns& turns, const std::function<void()>& body);

  Group& warp() { return warps_[static_cast<std::size_t>(thread_in_turn().warp)]; }
  Group& all() { return all_; }
  void wait(Group& group);
  void wait_for_warps(int barrier, int num_warps);  // a named barrier

  /// Waits for others. They ask too whether it holds, so that it may depend on no thread.
  template <class Condition>
  void wait_until(const Condition& holds);

  /// Lets others go first, where the order is random: always, or sometimes.
  void rest();
  void may_rest();

  /// Ends a run in random order; does not return.
  void fail(const std::string& what);

  std::mt19937& random() { return random_; }

 private:
  struct Thread {
    ucontext_t first_context{};
    jmp_buf context{};
    int warp = 0, index = 0;
    bool started = false, ended = false;
    bool (*holds)(const void*) = nullptr;  // what it waits for
    const void* condition = nullptr;
    bool can_go_on() const { return !ended && (holds == nullptr || holds(condition)); }
  };
  static void enter();
  void start(int num_warps, int lanes, const std::function<void()>& body);
  void give_turn(Thread& thread);
  void end_turn();
  bool give_turns(int warp);
  Thread& thread_in_turn() { return threads_[static_cast<std::size_t>(current_)]; }

  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<char[]>> stacks_;  // kept from run to run
  std::vector<Group> warps_;
  Group all_;
  Group named_[16];
  jmp_buf scheduler_{};
  std::function<void()> body_;
  int current_ = 0;
  RandomTurns turns_;
  bool in_random_order_ = false;
  std::mt19937 random_;
  std::string failure_;
};

inline Cta cta;
inline Index thread_index, block_index, grid_size;

inline void Cta::enter() {
  cta.body_();
  cta.thread_in_turn().ended = true;
  cta.end_turn();
}

inline void Cta::start(int num_warps, int lanes, const std::function<void()>& body) {
  constexpr std::size_t kStackBytes = 1 << 16;
  body_ = body;
  threads_ = std::vector<Thread>(static_cast<std::size_t>(num_warps * lanes));
  warps_.assign(static_cast<std::size_t>(num_warps), Group{.size = lanes});
  all_ = {.size = num_warps * lanes};
  std::fill(std::begin(named_), std::end(named_), Group{});
  while (stacks_.size() < threads_.size()) {
    stacks_.push_back(std::make_unique_for_overwrite<char[]>(kStackBytes));
  }
  for (int i = 0; i < num_warps * lanes; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    thread.warp = i / lanes;
    thread.index = thread.warp * 32 + i % lanes;
    getcontext(&thread.first_context);
    thread.first_context.uc_stack.ss_sp = stacks_[static_cast<std::size_t>(i)].get();
    thread.first_context.uc_stack.ss_size = kStackBytes;
    makecontext(&thread.first_context, enter, 0);
  }
}

// Jumps, and not swapcontext, which asks the system for the mask of signals each time.
inline void Cta::give_turn(Thread& thread) {
  current_ = static_cast<int>(&thread - threads_.data());
  thread_index.x = thread.index;
  if (_setjmp(scheduler_) != 0) return;
  if (thread.started) _longjmp(thread.context, 1);
  thread.started = true;
  setcontext(&thread.first_context);
}

inline void Cta::end_turn() {
  if (_setjmp(thread_in_turn().context) == 0) _longjmp(scheduler_, 1);
}

inline void Cta::run(int num_threads, const std::function<void()>& body) {
  in_random_order_ = false;
  start(num_threads / 32, 32, body);
  for (bool some = true; some;) {
    some = false;
    for (Thread& thread : threads_) {
      if (thread.ended) continue;
      some = true;
      if (thread.can_go_on()) give_turn(thread);
    }
  }
}

// To some lanes of a warp, mostly all; false when none of them can go on.
inline bool Cta::give_turns(int warp) {
  const unsigned lanes = static_cast<unsigned>(turns_.lanes), first = random_() % lanes;
  unsigned most = random_() % 4 == 0 ? 1 + random_() % lanes : lanes;
  bool some = false;
  for (unsigned i = 0; i < lanes && most > 0 && failure_.empty(); ++i) {
    Thread& thread = threads_[static_cast<unsigned>(warp) * lanes + (first + i) % lanes];
    if (!thread.can_go_on()) continue;
    give_turn(thread);
    some = true;
    --most;
  }
  return some;
}

inline std::string Cta::run(int num_warps, const RandomTurns& turns,
                            const std::function<void()>& body) {
  in_random_order_ = true;
  turns_ = turns;
  random_.seed(turns.seed);
  failure_.clear();
  start(num_warps, turns.lanes, body);
  // Those are stuck that could not go on since the last turn of any.
  std::vector<unsigned> speeds(static_cast<std::size_t>(num_warps), 1);
  std::vector<char> stuck(static_cast<std::size_t>(num_warps), 0);
  const auto choose = [&] {
    unsigned sum = 0;
    for (std::size_t i = 0; i < speeds.size(); ++i) sum += stuck[i] ? 0 : speeds[i];
    unsigned at = sum == 0 ? 0 : random_() % sum;
    for (std::size_t i = 0; i < speeds.size(); ++i) {
      if (stuck[i]) continue;
      if (at < speeds[i]) return static_cast<int>(i);
      at -= speeds[i];
    }
    return -1;
  };
  for (long turn = 0; turn < turns.most_turns; ++turn) {
    if (random_() % 64 == 0) speeds[random_() % speeds.size()] = 1u << random_() % 7;
    int warp = choose();
    while (warp >= 0 && !give_turns(warp)) {
      stuck[static_cast<std::size_t>(warp)] = 1;
      warp = choose();
    }
    if (!failure_.empty()) return failure_;
    if (warp < 0) {
      const bool ended = std::all_of(threads_.begin(), threads_.end(),
                                     [](const Thread& thread) { return thread.ended; });
      return ended ? "" : "a deadlock";
    }
    std::fill(stuck.begin(), stuck.end(), 0);
  }
  return "more turns than there should be";
}

template <class Condition>
void Cta::wait_until(const Condition& holds) {
  if (holds()) return;
  Thread& own = thread_in_turn();
  own.holds = [](const void* condition) { return (*static_cast<const Condition*>(condition))(); };
  own.condition = &holds;
  end_turn();
  own.holds = nullptr;
}

inline void Cta::rest() {
  if (in_random_order_) end_turn();
}

inline void Cta::may_rest() {
  if (random_() % static_cast<unsigned>(turns_.chance_of_rest) == 0) rest();
}

inline void Cta::fail(const std::string& what) {
  failure_ = what;
  end_turn();
}

inline void Cta::wait(Group& group) {
  if (++group.waiting == group.size) {
    group.waiting = 0;
    ++group.generation;
    return;
  }
  wait_until([&group, before = group.generation] { return group.generation != before; });
}

inline void Cta::wait_for_warps(int barrier, int num_warps) {
  Group& group = named_[barrier];
  group.size = num_warps * warps_[0].size;
  wait(group);
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
inline bool __all_sync(unsigned lanes, bool vote) { return __ballot_sync(lanes, !vote) == 0; }

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
inline int __popcll(unsigned long long word) { return __builtin_popcountll(word); }
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
