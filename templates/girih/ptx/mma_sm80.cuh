// Warp-level matrix instructions (PTX ISA, "mma.sync" m16n8k16 and "ldmatrix").
#pragma once

#include "girih/ptx/convert.cuh"

namespace girih {

// d[16 x 8] = a[16 x 16] * b[16 x 8], plus what d held when `add` (a constant after inlining).
// Lane l holds, of d, row l / 4 columns 2 * (l % 4) and the next (d[0], d[1]) and the same of row
// l / 4 + 8 (d[2], d[3]).
template <class Element>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32 (&a)[4], uint32 b0,
                                             uint32 b1, bool add = true);

template <>
__device__ __forceinline__ void mma_m16n8k16<Bf16>(float (&d)[4], const uint32 (&a)[4], uint32 b0,
                                                   uint32 b1, bool add) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(add ? d[0] : 0.0f),
        "f"(add ? d[1] : 0.0f), "f"(add ? d[2] : 0.0f), "f"(add ? d[3] : 0.0f));
}

template <>
__device__ __forceinline__ void mma_m16n8k16<Fp16>(float (&d)[4], const uint32 (&a)[4], uint32 b0,
                                                   uint32 b1, bool add) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(add ? d[0] : 0.0f),
        "f"(add ? d[1] : 0.0f), "f"(add ? d[2] : 0.0f), "f"(add ? d[3] : 0.0f));
}

// Four 8 x 8 matrices of 16-bit elements; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32 (&r)[4], uint32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32 (&r)[4], uint32 shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

}  // namespace girih
