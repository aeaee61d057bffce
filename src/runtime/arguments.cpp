#include "runtime/arguments.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <cstdint>

#include "girih/error.hpp"

namespace girih::runtime {
namespace {

constexpr int kAlignment = 16;  // bytes, of every tensor: cp.async and 16-byte stores
constexpr int kStrideMultiple = kAlignment / 2;  // elements
constexpr double kLog2E = 1.4426950408889634;

// Dimensions of a bshd tensor.
enum Dim { kBatch, kRow, kHead, kDim };

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

void check_tensor(const char* name, const Tensor& tensor, const std::array<std::int64_t, 4>& shape,
                  DType dtype, bool written) {
  if (tensor.dtype != dtype) {
    refuse(fmt::format("{} is {}, but the kernel was bound for {}", name, to_string(tensor.dtype),
                       to_string(dtype)));
  }
  if (tensor.shape != shape) {
    refuse(fmt::format("{} has shape [{}], expected [{}] ([batch, seqlen, heads, head_dim])", name,
                       fmt::join(tensor.shape, ", "), fmt::join(shape, ", ")));
  }
  if (shape[kBatch] == 0 || shape[kRow] == 0) return;  // nothing is read or written
  if (tensor.data == nullptr) refuse(fmt::format("{} is null", name));
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment != 0) {
    refuse(fmt::format("{} at {} is not aligned to {} bytes", name, tensor.data, kAlignment));
  }
  if (tensor.stride[kDim] != 1) {
    refuse(fmt::format("{} has stride {} between the elements of a head: it must be 1", name,
                       tensor.stride[kDim]));
  }
  for (int dim = kBatch; dim < kDim; ++dim) {
    if (shape[dim] == 1) continue;  // never stepped over
    if (tensor.stride[dim] % kStrideMultiple != 0) {
      refuse(
          fmt::format("{} has stride {} in dimension {}: it must be a multiple of {} elements "
                      "({} bytes)",
                      name, tensor.stride[dim], dim, kStrideMultiple, kAlignment));
    }
    if (written && tensor.stride[dim] == 0) {
      refuse(fmt::format("{} has stride 0 in dimension {}: its elements would overlap", name, dim));
    }
  }
}

void check_range(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least || value > kMaxNumber) {
    refuse(fmt::format("{} is {}: it must be from {} to {}", name, value, least, kMaxNumber));
  }
}

Strides strides_of(const Tensor& tensor) {
  return {tensor.stride[kBatch], tensor.stride[kRow], tensor.stride[kHead]};
}

}  // namespace

Problem problem_of(const jit::Args& args) {
  const auto as_int = [](const char* name, std::int64_t value) {
    check_range(name, value, 1);
    return static_cast<int>(value);
  };
  return {.dtype = args.q.dtype,
          .head_dim = as_int("q's head_dim", args.q.shape[kDim]),
          .num_heads = as_int("q's number of heads", args.q.shape[kHead]),
          .num_heads_kv = as_int("k's number of heads", args.k.shape[kHead])};
}

FwdParams forward_params(const jit::Args& args, const Problem& problem) {
  const std::int64_t batch = args.q.shape[kBatch];
  const std::int64_t seqlen_q = args.q.shape[kRow];
  const std::int64_t seqlen_k = args.k.shape[kRow];
  check_range("the batch", batch, 0);
  check_range("seqlen_q", seqlen_q, 0);
  check_range("seqlen_k", seqlen_k, 0);
  const std::array<std::int64_t, 4> q_shape{batch, seqlen_q, problem.num_heads, problem.head_dim};
  const std::array<std::int64_t, 4> k_shape{batch, seqlen_k, problem.num_heads_kv,
                                            problem.head_dim};
  check_tensor("q", args.q, q_shape, problem.dtype, false);
  check_tensor("k", args.k, k_shape, problem.dtype, false);
  check_tensor("v", args.v, k_shape, problem.dtype, false);
  check_tensor("out", args.out, q_shape, problem.dtype, true);
  if (reinterpret_cast<std::uintptr_t>(args.lse) % alignof(float) != 0) {
    refuse(fmt::format("lse at {} is not aligned to {} bytes", static_cast<void*>(args.lse),
                       alignof(float)));
  }
  const float scale = args.softmax_scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim))));
  if (!std::isfinite(scale) || scale < 0.0f) {
    refuse(fmt::format("softmax_scale {} must be finite and not negative", scale));
  }
  const std::int64_t q_start = args.q_start ? *args.q_start : args.k_start + seqlen_k - seqlen_q;
  check_range("k_start", args.k_start, 0);
  check_range("q_start", q_start, -kMaxNumber);

  FwdParams params{};
  params.q = args.q.data;
  params.k = args.k.data;
  params.v = args.v.data;
  params.out = args.out.data;
  params.lse = args.lse;
  params.q_strides = strides_of(args.q);
  params.k_strides = strides_of(args.k);
  params.v_strides = strides_of(args.v);
  params.out_strides = strides_of(args.out);
  params.geometry = {static_cast<int>(seqlen_q), static_cast<int>(seqlen_k),
                     static_cast<int>(q_start), args.k_start};
  params.num_heads = problem.num_heads;
  params.group_size = problem.group_size();
  params.softmax_scale = scale;
  params.softmax_scale_log2 = static_cast<float>(scale * kLog2E);
  return params;
}

}  // namespace girih::runtime
