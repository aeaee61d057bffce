#include "verify/device.hpp"

#include <fmt/format.h>

#include "compile/nvrtc.hpp"
#include "girih/error.hpp"

namespace girih::verify {
namespace {

CUdevice first_device() {
  const cuda::Api& api = cuda::driver();
  int count = 0;
  cuda::check(api.cuDeviceGetCount(&count), "cuDeviceGetCount");
  if (count == 0) {
    throw Error(Errc::no_device,
                "the CUDA driver is loaded but shows no GPU: look at nvidia-smi and "
                "CUDA_VISIBLE_DEVICES");
  }
  CUdevice device = 0;
  cuda::check(api.cuDeviceGet(&device, 0), "cuDeviceGet");
  return device;
}

}  // namespace

Device::Device() : device_(first_device()) {
  const cuda::Api& api = cuda::driver();
  CUcontext context = nullptr;
  cuda::check(api.cuCtxGetCurrent(&previous_), "cuCtxGetCurrent");
  cuda::check(api.cuDevicePrimaryCtxRetain(&context, device_), "cuDevicePrimaryCtxRetain");
  const CUresult result = api.cuCtxSetCurrent(context);
  if (result != CUDA_SUCCESS) {
    api.cuDevicePrimaryCtxRelease(device_);
    cuda::check(result, "cuCtxSetCurrent");
  }
}

Device::~Device() {
  cuda::driver().cuCtxSetCurrent(previous_);
  cuda::driver().cuDevicePrimaryCtxRelease(device_);
}

std::string Device::name() const {
  char name[256] = {};
  cuda::check(cuda::driver().cuDeviceGetName(name, sizeof(name), device_), "cuDeviceGetName");
  return name;
}

std::string Device::arch() const {
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    cuda::check(cuda::driver().cuDeviceGetAttribute(&value, which, device_),
                "cuDeviceGetAttribute");
    return value;
  };
  return fmt::format("sm_{}{}", attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
                     attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR));
}

std::string Device::driver() const {
  int version = 0;
  cuda::check(cuda::driver().cuDriverGetVersion(&version), "cuDriverGetVersion");
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

bool device_available(std::string* reason) {
  try {
    Device{};
    return true;
  } catch (const Error& error) {
    if (reason != nullptr) *reason = error.what();
    return false;
  }
}

void synchronize() { cuda::check(cuda::driver().cuCtxSynchronize(), "cuCtxSynchronize"); }

static std::string empty_kernel(const std::string& arch, int bytes) {
  compiler::Request request;
  request.source = fmt::format(
      "struct Bytes {{ char data[{}]; }};\n"
      "extern \"C\" __global__ void empty(const __grid_constant__ Bytes bytes) {{}}\n",
      bytes);
  request.arch = arch;
  request.options = compiler::default_options();
  return compiler::compile(request).cubin;
}

EmptyKernel::EmptyKernel(const std::string& arch) : module_(empty_kernel(arch, kBytes), "empty") {
  CUdevice device = 0;
  cuda::check(cuda::driver().cuCtxGetDevice(&device), "cuCtxGetDevice");
  module_.prepare(device, 0);
}

void EmptyKernel::launch() {
  CUlaunchConfig config{};
  config.gridDimX = config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = 128;
  config.blockDimY = config.blockDimZ = 1;
  void* parameters[] = {bytes_};
  cuda::check(cuda::driver().cuLaunchKernelEx(&config, module_.function(), parameters, nullptr),
              "launching an empty kernel");
}

}  // namespace girih::verify
