#include "cuda/module.hpp"

#include <fmt/format.h>

namespace girih::cuda {

Module::Module(const std::string& cubin, const std::string& symbol) {
  const Api& api = driver();
  check(api.cuLibraryLoadData(&library_, cubin.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        "loading a cubin");
  const CUresult result = api.cuLibraryGetKernel(&kernel_, library_, symbol.c_str());
  if (result != CUDA_SUCCESS) {
    api.cuLibraryUnload(library_);
    check(result, fmt::format("finding {} in a cubin", symbol));
  }
}

// An unload that fails means that the driver is shutting down: nothing is left to free.
Module::~Module() { driver().cuLibraryUnload(library_); }

void Module::prepare(CUdevice device, int dynamic_shared_bytes) const {
  const Api& api = driver();
  check(api.cuKernelSetAttribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                 dynamic_shared_bytes, kernel_, device),
        fmt::format("allowing a kernel {} bytes of shared memory", dynamic_shared_bytes));
  load(kernel_);
}

CUfunction Module::load(const std::string& symbol) const {
  CUkernel kernel = nullptr;
  check(driver().cuLibraryGetKernel(&kernel, library_, symbol.c_str()),
        fmt::format("finding {} in a cubin", symbol));
  load(kernel);
  return reinterpret_cast<CUfunction>(kernel);
}

void Module::load(CUkernel kernel) {
  const Api& api = driver();
  CUfunction loaded = nullptr;
  check(api.cuKernelGetFunction(&loaded, kernel), "loading a kernel into the current context");
  if (api.cuFuncLoad != nullptr) {
    check(api.cuFuncLoad(loaded), "loading a kernel into the current context");
  }
}

}  // namespace girih::cuda
