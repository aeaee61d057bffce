// Matrix instructions of a warpgroup (PTX ISA, "wgmma"): 64 rows times N columns, 16-bit elements,
// fp32 accumulators. All 128 threads issue them, and they run asynchronously: between wgmma_fence()
// and wgmma_wait() their registers must not be touched.
//
// Lane l of warp w holds, of an accumulator d, rows 16 * w + l / 4 (d[j][0], d[j][1]) and 8 more
// (d[j][2], d[j][3]), columns 8 * j + 2 * (l % 4) and the next: mma.sync's layout, side by side.
#pragma once

#include "girih/ptx/convert.cuh"

namespace girih {

// Orders earlier accesses to registers before the wgmma that follow.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending of the latest groups are under way.
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving accesses to these registers across: a wait names none of them.
template <int kFragments>
__device__ __forceinline__ void pin_registers(float (&d)[kFragments][4]) {
#pragma unroll
  for (int j = 0; j < kFragments; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(d[j][e])::"memory");
  }
}

template <int kFragments>
__device__ __forceinline__ void pin_registers(uint32 (&a)[kFragments][4]) {
#pragma unroll
  for (int j = 0; j < kFragments; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) asm volatile("" : "+r"(a[j][e])::"memory");
  }
}

// Wgmma<Element, N>::multiply(d, a, b, add): d = a * b, plus what d held when `add`.
// a: 64 x 16 from shared memory, each row contiguous; b: 16 x N, each column contiguous.
// Wgmma<Element, N>::multiply_transposed(d, a, b): d += a * b.
// a: 64 x 16 from registers (mma.sync's A fragment); b: 16 x N, each row contiguous.
template <class Element, int kN>
struct Wgmma;

#define GIRIH_WGMMA_R16 "%0, %1, %2, %3, %4, %5, %6, %7"
#define GIRIH_WGMMA_R32 GIRIH_WGMMA_R16 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define GIRIH_WGMMA_R48 GIRIH_WGMMA_R32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define GIRIH_WGMMA_R64 GIRIH_WGMMA_R48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define GIRIH_WGMMA_R80 GIRIH_WGMMA_R64 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define GIRIH_WGMMA_R96 GIRIH_WGMMA_R80 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define GIRIH_WGMMA_R112 GIRIH_WGMMA_R96 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define GIRIH_WGMMA_R128 GIRIH_WGMMA_R112 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define GIRIH_WGMMA_R144 GIRIH_WGMMA_R128 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define GIRIH_WGMMA_R160 GIRIH_WGMMA_R144 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define GIRIH_WGMMA_R176 GIRIH_WGMMA_R160 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define GIRIH_WGMMA_R192 GIRIH_WGMMA_R176 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define GIRIH_WGMMA_R208 GIRIH_WGMMA_R192 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define GIRIH_WGMMA_R224 GIRIH_WGMMA_R208 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define GIRIH_WGMMA_R240 GIRIH_WGMMA_R224 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define GIRIH_WGMMA_R256 GIRIH_WGMMA_R240 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define GIRIH_WGMMA_F(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define GIRIH_WGMMA_D16 GIRIH_WGMMA_F(0), GIRIH_WGMMA_F(1)
#define GIRIH_WGMMA_D32 GIRIH_WGMMA_D16, GIRIH_WGMMA_F(2), GIRIH_WGMMA_F(3)
#define GIRIH_WGMMA_D48 GIRIH_WGMMA_D32, GIRIH_WGMMA_F(4), GIRIH_WGMMA_F(5)
#define GIRIH_WGMMA_D64 GIRIH_WGMMA_D48, GIRIH_WGMMA_F(6), GIRIH_WGMMA_F(7)
#define GIRIH_WGMMA_D80 GIRIH_WGMMA_D64, GIRIH_WGMMA_F(8), GIRIH_WGMMA_F(9)
#define GIRIH_WGMMA_D96 GIRIH_WGMMA_D80, GIRIH_WGMMA_F(10), GIRIH_WGMMA_F(11)
#define GIRIH_WGMMA_D112 GIRIH_WGMMA_D96, GIRIH_WGMMA_F(12), GIRIH_WGMMA_F(13)
#define GIRIH_WGMMA_D128 GIRIH_WGMMA_D112, GIRIH_WGMMA_F(14), GIRIH_WGMMA_F(15)
#define GIRIH_WGMMA_D144 GIRIH_WGMMA_D128, GIRIH_WGMMA_F(16), GIRIH_WGMMA_F(17)
#define GIRIH_WGMMA_D160 GIRIH_WGMMA_D144, GIRIH_WGMMA_F(18), GIRIH_WGMMA_F(19)
#define GIRIH_WGMMA_D176 GIRIH_WGMMA_D160, GIRIH_WGMMA_F(20), GIRIH_WGMMA_F(21)
#define GIRIH_WGMMA_D192 GIRIH_WGMMA_D176, GIRIH_WGMMA_F(22), GIRIH_WGMMA_F(23)
#define GIRIH_WGMMA_D208 GIRIH_WGMMA_D192, GIRIH_WGMMA_F(24), GIRIH_WGMMA_F(25)
#define GIRIH_WGMMA_D224 GIRIH_WGMMA_D208, GIRIH_WGMMA_F(26), GIRIH_WGMMA_F(27)
#define GIRIH_WGMMA_D240 GIRIH_WGMMA_D224, GIRIH_WGMMA_F(28), GIRIH_WGMMA_F(29)
#define GIRIH_WGMMA_D256 GIRIH_WGMMA_D240, GIRIH_WGMMA_F(30), GIRIH_WGMMA_F(31)

// I0 to I4: the operand numbers that follow the accumulator's N / 2.
#define GIRIH_WGMMA(ELEMENT, TYPE, N, I0, I1, I2, I3, I4)                                        \
  template <>                                                                                    \
  struct Wgmma<ELEMENT, N> {                                                                     \
    using Accumulator = float[N / 8][4];                                                         \
    static __device__ __forceinline__ void multiply(Accumulator& d, uint64 a, uint64 b,          \
                                                    bool add) {                                  \
      asm volatile(                                                                              \
          "{\n"                                                                                  \
          ".reg .pred add;\n"                                                                    \
          "setp.ne.b32 add, %" #I2                                                               \
          ", 0;\n"                                                                               \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GIRIH_WGMMA_R##N  \
          "}, %" #I0 ", %" #I1                                                                   \
          ", add, 1, 1, 0, 0;\n"                                                                 \
          "}\n"                                                                                  \
          : GIRIH_WGMMA_D##N                                                                     \
          : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                         \
    }                                                                                            \
    static __device__ __forceinline__ void multiply_transposed(Accumulator& d,                   \
                                                               const uint32 (&a)[4], uint64 b) { \
      asm volatile(                                                                              \
          "{\n"                                                                                  \
          "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" GIRIH_WGMMA_R##N  \
          "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3 "}, %" #I4                                   \
          ", 1, 1, 1, 1;\n"                                                                      \
          "}\n"                                                                                  \
          : GIRIH_WGMMA_D##N                                                                     \
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                 \
    }                                                                                            \
  };
#define GIRIH_WGMMA_BOTH(N, ...)            \
  GIRIH_WGMMA(Bf16, "bf16", N, __VA_ARGS__) \
  GIRIH_WGMMA(Fp16, "f16", N, __VA_ARGS__)

GIRIH_WGMMA_BOTH(16, 8, 9, 10, 11, 12)
GIRIH_WGMMA_BOTH(32, 16, 17, 18, 19, 20)
GIRIH_WGMMA_BOTH(48, 24, 25, 26, 27, 28)
GIRIH_WGMMA_BOTH(64, 32, 33, 34, 35, 36)
GIRIH_WGMMA_BOTH(80, 40, 41, 42, 43, 44)
GIRIH_WGMMA_BOTH(96, 48, 49, 50, 51, 52)
GIRIH_WGMMA_BOTH(112, 56, 57, 58, 59, 60)
GIRIH_WGMMA_BOTH(128, 64, 65, 66, 67, 68)
GIRIH_WGMMA_BOTH(144, 72, 73, 74, 75, 76)
GIRIH_WGMMA_BOTH(160, 80, 81, 82, 83, 84)
GIRIH_WGMMA_BOTH(176, 88, 89, 90, 91, 92)
GIRIH_WGMMA_BOTH(192, 96, 97, 98, 99, 100)
GIRIH_WGMMA_BOTH(208, 104, 105, 106, 107, 108)
GIRIH_WGMMA_BOTH(224, 112, 113, 114, 115, 116)
GIRIH_WGMMA_BOTH(240, 120, 121, 122, 123, 124)
GIRIH_WGMMA_BOTH(256, 128, 129, 130, 131, 132)

#undef GIRIH_WGMMA
#undef GIRIH_WGMMA_BOTH

}  // namespace girih
