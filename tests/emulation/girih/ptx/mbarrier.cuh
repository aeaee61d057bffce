// Stands before templates/girih/ptx/mbarrier.cuh where device code runs on emulated warps: phases
// end after their arrivals, and nothing counts bytes.
#pragma once

#include "girih/shared/platform.cuh"

namespace emulation {

// What lies in a barrier's 64 bits.
struct Mbarrier {
  unsigned phase;
  unsigned short missing, arrivals;  // of this phase; of each

  static Mbarrier at(unsigned barrier) {
    return std::bit_cast<Mbarrier>(*reinterpret_cast<const girih::uint64*>(shared_memory(barrier)));
  }
  void store(unsigned barrier) const {
    *reinterpret_cast<girih::uint64*>(shared_memory(barrier)) = std::bit_cast<girih::uint64>(*this);
  }

  bool exists() const { return missing > 0 && missing <= arrivals; }  // other bits may look so too

  // As on the device, whether the phase of that parity has ended cannot be told from whether the
  // one before the last has.
  bool has_ended(unsigned parity) const { return phase % 2 != parity; }
};

}  // namespace emulation

namespace girih {

inline void mbarrier_init(uint32 barrier, int arrivals) {
  const auto all = static_cast<unsigned short>(arrivals);
  emulation::Mbarrier{0, all, all}.store(barrier);
}

inline void mbarrier_arrive(uint32 barrier) {
  emulation::cta.may_rest();
  auto state = emulation::Mbarrier::at(barrier);
  if (--state.missing == 0) {
    state.missing = state.arrivals;
    ++state.phase;
  }
  state.store(barrier);
  emulation::cta.may_rest();
}

inline bool mbarrier_has_ended(uint32 barrier, uint32 parity) {
  const auto state = emulation::Mbarrier::at(barrier);
  if (!state.exists()) emulation::cta.fail("what is no barrier is asked whether it has ended");
  return state.has_ended(parity);
}
inline void mbarrier_wait(uint32 barrier, uint32 parity) {
  emulation::cta.may_rest();
  emulation::cta.wait_until([&] { return emulation::Mbarrier::at(barrier).has_ended(parity); });
}

template <int kThreads>
void named_barrier_sync(int barrier) {
  emulation::cta.wait_for_warps(barrier, kThreads / 32);
}

}  // namespace girih
