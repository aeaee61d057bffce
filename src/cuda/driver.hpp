// The CUDA driver API, opened at run time (libcuda.so.1), and its errors as girih::Error.
#pragma once

#include <cuda.h>
#undef cuEventElapsedTime  // to CUDA 13's headers the version of 12.8; the first one does as well

#include <string_view>

namespace girih::cuda {

// Every driver function that Girih or its tools call.
// clang-format off
#define GIRIH_DRIVER_FUNCTIONS(X)                                                     \
  X(cuInit) X(cuDriverGetVersion) X(cuGetErrorName) X(cuGetErrorString)               \
  X(cuDeviceGet) X(cuDeviceGetCount) X(cuDeviceGetName) X(cuDeviceGetAttribute)       \
  X(cuDevicePrimaryCtxRetain) X(cuDevicePrimaryCtxRelease)                            \
  X(cuCtxGetCurrent) X(cuCtxSetCurrent) X(cuCtxGetDevice) X(cuCtxSynchronize)         \
  X(cuLibraryLoadData) X(cuLibraryUnload) X(cuLibraryGetKernel)                       \
  X(cuKernelSetAttribute) X(cuKernelGetFunction) X(cuLaunchKernelEx) X(cuCtxGetId)    \
  X(cuStreamIsCapturing) X(cuStreamSynchronize)                                       \
  X(cuMemAlloc) X(cuMemFree) X(cuMemcpyHtoD) X(cuMemcpyDtoH) X(cuMemsetD8)            \
  X(cuMemAllocAsync) X(cuMemFreeAsync) X(cuMemcpyDtoHAsync) X(cuMemsetD8Async)        \
  X(cuEventCreate) X(cuEventDestroy) X(cuEventRecord) X(cuEventSynchronize)
// clang-format on

struct Api {
#define GIRIH_DECLARE(function) decltype(&::function) function = nullptr;
  GIRIH_DRIVER_FUNCTIONS(GIRIH_DECLARE)
#undef GIRIH_DECLARE
  CUresult (*cuEventElapsedTime)(float*, CUevent, CUevent) = nullptr;
  decltype(&::cuFuncLoad) cuFuncLoad = nullptr;  // null before CUDA 12.4
};

/// The opened, initialised driver. @throws Error no_device, saying what is missing.
const Api& driver();

/// @throws Error driver "<what>: <error name>: <error text>" unless `result` is success.
void check(CUresult result, std::string_view what);

}  // namespace girih::cuda
