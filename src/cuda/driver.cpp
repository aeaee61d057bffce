#include "cuda/driver.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <mutex>
#include <string>

#include "girih/error.hpp"

namespace girih::cuda {
namespace {

Api open_driver() {
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    throw Error(Errc::no_device,
                fmt::format("there is no CUDA driver: libcuda.so.1 could not be opened ({}); "
                            "install the NVIDIA driver, or compile ahead with `girih compile "
                            "--arch`, which needs none",
                            reason ? reason : "unknown reason"));
  }
  Api api;
// cuda.h renames functions to their current version (cuMemAlloc_v2); the symbol must follow.
#define GIRIH_NAME(symbol) #symbol
#define GIRIH_LOAD(function)                                                                     \
  api.function = reinterpret_cast<decltype(api.function)>(dlsym(library, GIRIH_NAME(function))); \
  if (api.function == nullptr) {                                                                 \
    throw Error(Errc::no_device, "the CUDA driver is too old: it has no " GIRIH_NAME(            \
                                     function) "; Girih needs CUDA 12.1 (driver 530) or newer"); \
  }
  GIRIH_DRIVER_FUNCTIONS(GIRIH_LOAD)
  GIRIH_LOAD(cuEventElapsedTime)
#undef GIRIH_LOAD
#undef GIRIH_NAME
  api.cuFuncLoad = reinterpret_cast<decltype(api.cuFuncLoad)>(dlsym(library, "cuFuncLoad"));
  const CUresult result = api.cuInit(0);
  if (result != CUDA_SUCCESS) {
    const char* text = nullptr;
    api.cuGetErrorString(result, &text);
    throw Error(Errc::no_device,
                fmt::format("the CUDA driver found no usable device: {} (code {})",
                            text ? text : "unknown error", static_cast<int>(result)));
  }
  return api;
}

}  // namespace

const Api& driver() {
  static const Api api = open_driver();  // tried again by the next caller when it throws
  return api;
}

void check(CUresult result, std::string_view what) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  const char* text = nullptr;
  driver().cuGetErrorName(result, &name);
  driver().cuGetErrorString(result, &text);
  throw Error(Errc::driver, fmt::format("{}: {}: {}", what, name ? name : "unknown error",
                                        text ? text : "no description"));
}

}  // namespace girih::cuda
