// Stands before templates/girih/ptx/convert.cuh where device code runs on emulated warps.
#pragma once

#include <bit>
#include <cmath>

#include "girih/shared/platform.cuh"

namespace girih {

struct Bf16 {};

inline float exp2_approx(float x) { return std::exp2(x); }
inline float reciprocal_approx(float x) { return 1.0f / x; }

// Finite floats, rounded to nearest even.
template <class Element>
uint32 pack(float lo, float hi) {
  const auto half = [](float x) {
    const uint32 bits = std::bit_cast<uint32>(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return half(lo) | half(hi) << 16;
}

template <class Element>
void unpack(uint32 word, float& lo, float& hi) {
  lo = std::bit_cast<float>(word << 16);
  hi = std::bit_cast<float>(word & 0xffff0000u);
}

}  // namespace girih
