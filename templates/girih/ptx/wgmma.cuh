// Matrix instructions of a warpgroup (PTX ISA, "wgmma"): 64 rows times N columns, 16-bit elements,
// fp32 accumulators. All 128 threads issue them, and they run asynchronously: until wgmma_wait()
// their registers must not be touched.
//
// Lane l of warp w holds, of an accumulator d, rows 16 * w + l / 4 (d[j][0], d[j][1]) and 8 more
// (d[j][2], d[j][3]), columns 8 * j + 2 * (l % 4) and the next: mma.sync's layout, side by side.
#pragma once

#include "girih/ptx/convert.cuh"

namespace girih {

// Waits until at most kPending of the latest products are under way.
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

// Products that sum K elements, 16 a step.
// WgmmaSS<Element, N, K>::start(d, a, b): d = a * b.
// a: 64 x K from shared memory, each row contiguous; b: K x N, each column contiguous.
// WgmmaRS<Element, N, K>::start(d, a, b, adds): d = a * b, or d += a * b if `adds`.
// a: 64 x K from registers (mma.sync's A fragments); b: K x N, each row contiguous.
// What lies in shared memory is a descriptor, and offset(k) is added to it for step k.
//
// A product is one `asm`, from the fence to the commit, since each statement that holds the
// accumulators costs compile time; what is written to them before stays before the fence. It finds
// b's descriptors itself, one beside each step: all of them ahead would take registers.
template <class Element, int kN, int kK>
struct WgmmaSS;
template <class Element, int kN, int kK>
struct WgmmaRS;

// Operands 0 to N / 2 - 1 of a statement are the accumulators, 128 and 129 b, 130 whether the first
// step adds, and step k has five from 131 + 5 * k on: zeros in the gaps let all products number
// them alike.
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

#define GIRIH_WGMMA_ZEROS "n"(0), "n"(0), "n"(0), "n"(0), "n"(0), "n"(0), "n"(0), "n"(0),
#define GIRIH_WGMMA_PAD256
#define GIRIH_WGMMA_PAD240 GIRIH_WGMMA_PAD256 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD224 GIRIH_WGMMA_PAD240 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD208 GIRIH_WGMMA_PAD224 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD192 GIRIH_WGMMA_PAD208 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD176 GIRIH_WGMMA_PAD192 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD160 GIRIH_WGMMA_PAD176 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD144 GIRIH_WGMMA_PAD160 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD128 GIRIH_WGMMA_PAD144 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD112 GIRIH_WGMMA_PAD128 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD96 GIRIH_WGMMA_PAD112 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD80 GIRIH_WGMMA_PAD96 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD64 GIRIH_WGMMA_PAD80 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD48 GIRIH_WGMMA_PAD64 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD32 GIRIH_WGMMA_PAD48 GIRIH_WGMMA_ZEROS
#define GIRIH_WGMMA_PAD16 GIRIH_WGMMA_PAD32 GIRIH_WGMMA_ZEROS

// X of every step of a product that sums K elements: its number and operands.
// clang-format off
#define GIRIH_WGMMA_K16(X, N, T) X(N, T, 0, 131, 132, 133, 134, 135)
#define GIRIH_WGMMA_K32(X, N, T) GIRIH_WGMMA_K16(X, N, T) X(N, T, 1, 136, 137, 138, 139, 140)
#define GIRIH_WGMMA_K48(X, N, T) GIRIH_WGMMA_K32(X, N, T) X(N, T, 2, 141, 142, 143, 144, 145)
#define GIRIH_WGMMA_K64(X, N, T) GIRIH_WGMMA_K48(X, N, T) X(N, T, 3, 146, 147, 148, 149, 150)
#define GIRIH_WGMMA_K80(X, N, T) GIRIH_WGMMA_K64(X, N, T) X(N, T, 4, 151, 152, 153, 154, 155)
#define GIRIH_WGMMA_K96(X, N, T) GIRIH_WGMMA_K80(X, N, T) X(N, T, 5, 156, 157, 158, 159, 160)
#define GIRIH_WGMMA_K112(X, N, T) GIRIH_WGMMA_K96(X, N, T) X(N, T, 6, 161, 162, 163, 164, 165)
#define GIRIH_WGMMA_K128(X, N, T) GIRIH_WGMMA_K112(X, N, T) X(N, T, 7, 166, 167, 168, 169, 170)
#define GIRIH_WGMMA_K144(X, N, T) GIRIH_WGMMA_K128(X, N, T) X(N, T, 8, 171, 172, 173, 174, 175)
#define GIRIH_WGMMA_K160(X, N, T) GIRIH_WGMMA_K144(X, N, T) X(N, T, 9, 176, 177, 178, 179, 180)
#define GIRIH_WGMMA_K176(X, N, T) GIRIH_WGMMA_K160(X, N, T) X(N, T, 10, 181, 182, 183, 184, 185)
#define GIRIH_WGMMA_K192(X, N, T) GIRIH_WGMMA_K176(X, N, T) X(N, T, 11, 186, 187, 188, 189, 190)
#define GIRIH_WGMMA_K208(X, N, T) GIRIH_WGMMA_K192(X, N, T) X(N, T, 12, 191, 192, 193, 194, 195)
#define GIRIH_WGMMA_K224(X, N, T) GIRIH_WGMMA_K208(X, N, T) X(N, T, 13, 196, 197, 198, 199, 200)
#define GIRIH_WGMMA_K240(X, N, T) GIRIH_WGMMA_K224(X, N, T) X(N, T, 14, 201, 202, 203, 204, 205)
#define GIRIH_WGMMA_K256(X, N, T) GIRIH_WGMMA_K240(X, N, T) X(N, T, 15, 206, 207, 208, 209, 210)
// clang-format on

#define GIRIH_WGMMA_STEP(N, T, A, OFFSET, OPTIONS)                                \
  "add.s32 low, %128, %" #OFFSET                                                  \
  ";\n"                                                                           \
  "cvt.u64.u32 b, low;\n"                                                         \
  "or.b64 b, b, %129;\n"                                                          \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." T "." T " {" GIRIH_WGMMA_R##N \
      "}, " A ", b, adds, " OPTIONS                                               \
      ";\n"                                                                       \
      "setp.eq.u32 adds, 0, 0;\n"
#define GIRIH_WGMMA_SS(N, T, k, A, OFFSET, I2, I3, I4) \
  GIRIH_WGMMA_STEP(N, T, "%" #A, OFFSET, "1, 1, 0, 0")
#define GIRIH_WGMMA_SS_OPERANDS(N, T, k, I0, I1, I2, I3, I4) \
  "l"(a.at(A::offset(k))), "n"(B::offset(k)), "n"(0), "n"(0), "n"(0),
#define GIRIH_WGMMA_RS(N, T, k, A0, A1, A2, A3, OFFSET) \
  GIRIH_WGMMA_STEP(N, T, "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}", OFFSET, "1, 1, 1")
#define GIRIH_WGMMA_RS_OPERANDS(N, T, k, I0, I1, I2, I3, I4) \
  "r"(a[k][0]), "r"(a[k][1]), "r"(a[k][2]), "r"(a[k][3]), "n"(B::offset(k)),

#define GIRIH_WGMMA_Bf16 "bf16"
#define GIRIH_WGMMA_Fp16 "f16"

// Lists of operands have a comma behind each, and a zero at the end.
#define GIRIH_WGMMA_START(PRODUCT, ELEMENT, N, K, ADDS)                                 \
  asm volatile(                                                                         \
      "{\n.reg .b32 low;\n.reg .b64 b;\n.reg .pred adds;\nsetp.ne.b32 adds, %130, 0;\n" \
      "wgmma.fence.sync.aligned;\n" GIRIH_WGMMA_K##K(                                   \
          PRODUCT, N, GIRIH_WGMMA_##ELEMENT) "wgmma.commit_group.sync.aligned;\n}\n"    \
      : GIRIH_WGMMA_D##N                                                                \
      : GIRIH_WGMMA_PAD##N "r"(b.low), "n"(B::kHigh), ADDS,                             \
        GIRIH_WGMMA_K##K(PRODUCT##_OPERANDS, N, ) "n"(0)                                \
      : "memory")

#define GIRIH_DEFINE_WGMMA_SS(ELEMENT, N, K)                                                     \
  template <>                                                                                    \
  struct WgmmaSS<ELEMENT, N, K> {                                                                \
    template <class A, class B>                                                                  \
    static __device__ __forceinline__ void start(float (&d)[N / 8][4], const A& a, const B& b) { \
      GIRIH_WGMMA_START(GIRIH_WGMMA_SS, ELEMENT, N, K, "n"(0));                                  \
    }                                                                                            \
  };

#define GIRIH_DEFINE_WGMMA_RS(ELEMENT, N, K)                                               \
  template <>                                                                              \
  struct WgmmaRS<ELEMENT, N, K> {                                                          \
    template <class B>                                                                     \
    static __device__ __forceinline__ void start(float (&d)[N / 8][4],                     \
                                                 const uint32 (&a)[K / 16][4], const B& b, \
                                                 bool adds) {                              \
      GIRIH_WGMMA_START(GIRIH_WGMMA_RS, ELEMENT, N, K, "r"(static_cast<int>(adds)));       \
    }                                                                                      \
  };

// The entry names its kernel's products before it includes this, for all that there can be would
// take long to read: #define GIRIH_PRODUCTS(SS, RS) SS(Bf16, 80, 128) RS(Bf16, 128, 80)
#ifndef GIRIH_PRODUCTS
#error "an entry defines GIRIH_PRODUCTS before it includes anything"
#endif
GIRIH_PRODUCTS(GIRIH_DEFINE_WGMMA_SS, GIRIH_DEFINE_WGMMA_RS)

}  // namespace girih
