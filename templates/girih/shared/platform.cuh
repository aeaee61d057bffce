// What host and device code share: these headers compile under NVRTC, nvcc and a host compiler,
// and include nothing outside this folder.
#pragma once

// GIRIH_ROLLED stands before a loop whose copies would cost more registers than they save time,
// GIRIH_UNROLLED before one whose counter must be known to the compiler.
#ifdef __CUDACC__
#define GIRIH_HD __host__ __device__ __forceinline__
#define GIRIH_ROLLED _Pragma("unroll 1")
#define GIRIH_UNROLLED _Pragma("unroll")
#else
#define GIRIH_HD inline
#define GIRIH_ROLLED
#define GIRIH_UNROLLED
#endif

namespace girih {

using uint16 = unsigned short;
using uint32 = unsigned int;
using int64 = long long;
using uint64 = unsigned long long;

GIRIH_HD constexpr int min(int a, int b) { return a < b ? a : b; }
GIRIH_HD constexpr int max(int a, int b) { return a < b ? b : a; }
GIRIH_HD constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }  // a >= 0, b > 0

// NVRTC has neither <limits> nor __builtin_huge_valf, and before 12.4 no __builtin_bit_cast.
#ifdef __CUDACC_RTC__
constexpr float kMinusInfinity = -1.0f / 0.0f;
#else
constexpr float kMinusInfinity = -__builtin_huge_valf();
#endif

GIRIH_HD float float_of_bits(uint32 bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}

// a / b of numbers below kMostSmall, in a few instructions: a half more than a is no multiple of b,
// and farther from one than fp32 errs.
constexpr int kMostSmall = 1 << 20;
GIRIH_HD int small_quotient(int a, int b) {
#ifdef __CUDA_ARCH__
  return static_cast<int>(__fdividef(static_cast<float>(a) + 0.5f, static_cast<float>(b)));
#else
  return a / b;
#endif
}

GIRIH_HD constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }

GIRIH_HD constexpr int largest(int a) { return a; }
template <class... Ints>
GIRIH_HD constexpr int largest(int a, Ints... rest) {
  return max(a, largest(rest...));
}

}  // namespace girih
