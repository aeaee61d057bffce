// Stands before templates/girih/ptx/wgmma.cuh where device code runs on emulated warps: products
// are what the test says they are, and end while their threads wait for them.
#pragma once

#include "girih/ptx/convert.cuh"

namespace emulation {

// What ends the products that a thread has begun, the oldest first.
inline std::vector<std::function<void()>> products[32 * 32];

}  // namespace emulation

namespace girih {

template <int kPending>
void wgmma_wait() {
  auto& own = emulation::products[threadIdx.x];
  while (own.size() > kPending) {
    for (unsigned rests = emulation::cta.random()() % 4; rests > 0; --rests) emulation::cta.rest();
    own.front()();
    own.erase(own.begin());
  }
}

template <int kFragments>
void pin_registers(float (&)[kFragments][4]) {}

}  // namespace girih
