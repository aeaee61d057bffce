// A whole host program over the CUDA driver API: allocates tensors, binds a pattern to a problem,
// launches, reads back, and compares every row with a naive loop.
#include <cuda.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "girih/girih.hpp"

namespace {

constexpr int kBatch = 1, kSeqlen = 300, kHeads = 4, kHeadsKv = 2, kHeadDim = 64;
constexpr int kSink = 4, kLeft = 63;

void check(CUresult result, const char* what) {
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(what) + " failed: CUDA error " + std::to_string(result));
  }
}

std::uint16_t to_bf16(float value) {  // rounds to nearest, ties to even; no NaN comes here
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float to_float(std::uint16_t value) {
  const std::uint32_t bits = std::uint32_t{value} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// A bf16 tensor [kBatch, kSeqlen, heads, kHeadDim] on the host and on the device.
struct DeviceTensor {
  int heads;
  std::vector<std::uint16_t> host;
  CUdeviceptr device = 0;

  explicit DeviceTensor(int num_heads)
      : heads(num_heads), host(std::size_t{kBatch} * kSeqlen * num_heads * kHeadDim) {
    check(cuMemAlloc(&device, host.size() * sizeof(host[0])), "cuMemAlloc");
  }
  ~DeviceTensor() { cuMemFree(device); }
  DeviceTensor(const DeviceTensor&) = delete;
  DeviceTensor& operator=(const DeviceTensor&) = delete;

  void fill(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (std::uint16_t& value : host) value = to_bf16(normal(random));
    check(cuMemcpyHtoD(device, host.data(), host.size() * sizeof(host[0])), "cuMemcpyHtoD");
  }
  void read_back() {
    check(cuMemcpyDtoH(host.data(), device, host.size() * sizeof(host[0])), "cuMemcpyDtoH");
  }
  girih::Tensor view() const {
    return girih::Tensor::contiguous(reinterpret_cast<void*>(device), girih::DType::bfloat16,
                                     {kBatch, kSeqlen, heads, kHeadDim});
  }
  float at(int row, int head, int dim) const {
    return to_float(host[(static_cast<std::size_t>(row) * heads + head) * kHeadDim + dim]);
  }
};

// What the pattern below says, for one row of one head.
std::vector<float> naive_row(const DeviceTensor& q, const DeviceTensor& k, const DeviceTensor& v,
                             int row, int head) {
  const int head_kv = head / (kHeads / kHeadsKv);
  std::vector<float> out(kHeadDim);
  float sum = 0;
  for (int key = 0; key <= row; ++key) {
    if (key >= kSink && key < row - kLeft) continue;
    float score = 0;
    for (int d = 0; d < kHeadDim; ++d) score += q.at(row, head, d) * k.at(key, head_kv, d);
    const float weight = std::exp(score / std::sqrt(static_cast<float>(kHeadDim)));
    sum += weight;
    for (int d = 0; d < kHeadDim; ++d) out[d] += weight * v.at(key, head_kv, d);
  }
  for (float& value : out) value /= sum;
  return out;
}

int run() {
  check(cuInit(0), "cuInit");
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUstream stream = nullptr;
  check(cuDeviceGet(&device, 0), "cuDeviceGet");
  check(cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
  check(cuCtxSetCurrent(context), "cuCtxSetCurrent");
  check(cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), "cuStreamCreate");

  DeviceTensor q(kHeads), k(kHeadsKv), v(kHeadsKv), out(kHeads);
  std::mt19937 random(0);
  q.fill(random);
  k.fill(random);
  v.fill(random);

  // Once, ahead of time: plans, compiles or finds in the cache, loads.
  const girih::Pattern pattern =
      girih::causal() & (girih::sink(kSink) | girih::window({.left = kLeft}));
  const girih::jit::Program attention = girih::jit::compile(pattern);
  const girih::jit::Kernel kernel =
      attention.bind({.head_dim = kHeadDim, .num_heads = kHeads, .num_heads_kv = kHeadsKv});
  std::printf("%s\n%s, %d registers, %s\n", pattern.text().c_str(), kernel.info().arch.c_str(),
              kernel.info().registers, kernel.info().cache_hit ? "from the cache" : "compiled");

  // As often as needed: only launches.
  kernel.launch({.q = q.view(), .k = k.view(), .v = v.view(), .out = out.view(), .stream = stream});
  check(cuStreamSynchronize(stream), "cuStreamSynchronize");

  out.read_back();
  int wrong = 0;
  for (int row = 0; row < kSeqlen; ++row) {
    for (int head = 0; head < kHeads; ++head) {
      const std::vector<float> expected = naive_row(q, k, v, row, head);
      for (int d = 0; d < kHeadDim; ++d) {
        const float error = std::abs(out.at(row, head, d) - expected[d]);
        if (!(error <= 0.02f)) ++wrong;  // a NaN is wrong too
      }
    }
  }
  std::printf("%d rows, %d wrong elements\n", kSeqlen * kHeads, wrong);
  cuStreamDestroy(stream);
  return wrong == 0 ? 0 : 1;
}

}  // namespace

int main() {
  try {
    return run();
  } catch (const std::exception& error) {  // also girih::Error
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
