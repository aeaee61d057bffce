// A cubin in the driver: loaded without a context, launched in the stream's.
#pragma once

#include <string>

#include "cuda/driver.hpp"

namespace girih::cuda {

class Module {
 public:
  /// @throws Error driver when the driver refuses the cubin or it lacks the symbol.
  Module(const std::string& cubin, const std::string& symbol);
  ~Module();
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  /// Allows so much dynamic shared memory on `device` and loads the code into the current context,
  /// so that the first launch there does neither.
  void prepare(CUdevice device, int dynamic_shared_bytes) const;

  /// Another kernel of the cubin, loaded into the current context, as cuLaunchKernelEx takes it.
  /// @throws Error driver when there is none.
  CUfunction load(const std::string& symbol) const;

  /// The kernel, as cuLaunchKernelEx takes it.
  CUfunction function() const { return reinterpret_cast<CUfunction>(kernel_); }

 private:
  static void load(CUkernel kernel);

  CUlibrary library_ = nullptr;
  CUkernel kernel_ = nullptr;
};

}  // namespace girih::cuda
