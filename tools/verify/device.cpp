#include "verify/device.hpp"

#include <fmt/format.h>

#include <utility>

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

Buffer::Buffer(std::size_t bytes, unsigned char poison) : bytes_(bytes) {
  // The driver refuses to allocate nothing, and a tensor without elements still needs an address.
  cuda::check(cuda::driver().cuMemAlloc(&pointer_, std::max<std::size_t>(bytes, 1)),
              fmt::format("allocating {} bytes of device memory", bytes));
  fill(poison);
}

Buffer::~Buffer() {
  if (pointer_ != 0) cuda::driver().cuMemFree(pointer_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : pointer_(std::exchange(other.pointer_, 0)), bytes_(std::exchange(other.bytes_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(pointer_, other.pointer_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void Buffer::upload(const void* source, std::size_t bytes, std::size_t offset) {
  if (bytes == 0) return;
  cuda::check(cuda::driver().cuMemcpyHtoD(pointer_ + offset, source, bytes), "cuMemcpyHtoD");
}

void Buffer::download(void* target, std::size_t bytes, std::size_t offset) const {
  if (bytes == 0) return;
  cuda::check(cuda::driver().cuMemcpyDtoH(target, pointer_ + offset, bytes), "cuMemcpyDtoH");
}

void Buffer::fill(unsigned char byte) {
  if (bytes_ == 0) return;
  cuda::check(cuda::driver().cuMemsetD8(pointer_, byte, bytes_), "cuMemsetD8");
}

void synchronize() { cuda::check(cuda::driver().cuCtxSynchronize(), "cuCtxSynchronize"); }

Event::Event() {
  cuda::check(cuda::driver().cuEventCreate(&event_, CU_EVENT_DEFAULT), "cuEventCreate");
}

Event::~Event() { cuda::driver().cuEventDestroy(event_); }

}  // namespace girih::verify
