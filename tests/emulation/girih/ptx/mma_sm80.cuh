// Stands before templates/girih/ptx/mma_sm80.cuh where device code runs on emulated warps: the
// layouts of PTX ISA's m16n8k16, summed in float, and of ldmatrix.
#pragma once

#include "girih/ptx/convert.cuh"

namespace girih {

template <class Element>
void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], uint32 b0, uint32 b1) {
  const uint32 own[8] = {a[0], a[1], a[2], a[3], b0, b1, 0, 0};
  const auto& lanes = emulation::publish(own);
  const auto element = [](uint32 word, int column) {
    return __int_as_float(static_cast<int>(column % 2 == 0 ? word << 16 : word & 0xffff0000u));
  };
  const int lane = threadIdx.x % 32;
  for (int e = 0; e < 4; ++e) {
    const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      const int quad = k % 8 / 2;
      const uint32 of_a = lanes[row % 8 * 4 + quad][row / 8 + k / 8 * 2];
      const uint32 of_b = lanes[column * 4 + quad][4 + k / 8];
      d[e] += element(of_a, k) * element(of_b, k);
    }
  }
  emulation::cta.wait(emulation::cta.warp());
}

inline void ldmatrix_x4(uint32 (&r)[4], uint32 shared) {
  const uint32 own[8] = {shared, 0, 0, 0, 0, 0, 0, 0};
  const auto& lanes = emulation::publish(own);
  const int lane = threadIdx.x % 32;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const uint32 row = lanes[8 * matrix + lane / 4][0];
    r[matrix] = *reinterpret_cast<const uint32*>(emulation::shared_memory(row) + lane % 4 * 4);
  }
  emulation::cta.wait(emulation::cta.warp());
}

}  // namespace girih
