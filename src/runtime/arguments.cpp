#include "runtime/arguments.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>

#include "cuda/tensor_map.hpp"
#include "girih/error.hpp"

namespace girih::runtime {
namespace {

constexpr int kAlignment = 16;  // bytes, of every tensor: cp.async and 16-byte stores
constexpr int kStrideMultiple = kAlignment / 2;  // elements
constexpr double kLog2E = 1.4426950408889634;

// Where a layout has its dimensions.
struct Dims {
  int batch, row, head;
  const char* text;
};
constexpr int kDim = 3;  // of a head's elements, in every layout

Dims dims_of(Layout layout) {
  switch (layout) {
    case Layout::bhsd:
      return {0, 2, 1, "[batch, heads, seqlen, head_dim]"};
    case Layout::thd:
      return {0, 1, 2, "[1, total, heads, head_dim]"};
    case Layout::bshd:
      break;
  }
  return {0, 1, 2, "[batch, seqlen, heads, head_dim]"};
}

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

using Shape = std::array<std::int64_t, 4>;

Shape shape_of(const Dims& dims, std::int64_t batch, std::int64_t rows, int heads, int width) {
  Shape shape{};
  shape[dims.batch] = batch;
  shape[dims.row] = rows;
  shape[dims.head] = heads;
  shape[kDim] = width;
  return shape;
}

// No two elements at one address: every dimension steps over all that lies within it.
void check_disjoint(const char* name, const Tensor& tensor) {
  std::array<int, kDim> order{0, 1, 2};
  const auto step = [&](int dim) { return std::abs(tensor.stride[dim]); };
  std::sort(order.begin(), order.end(), [&](int a, int b) { return step(a) < step(b); });
  std::int64_t extent = tensor.shape[kDim];
  for (const int dim : order) {
    if (tensor.shape[dim] == 1) continue;
    if (step(dim) < extent) {
      refuse(
          fmt::format("{} has stride {} in dimension {}: its elements would overlap, for {} lie "
                      "within one step",
                      name, tensor.stride[dim], dim, extent));
    }
    extent += step(dim) * (tensor.shape[dim] - 1);
  }
}

void check_tensor(const char* name, const Tensor& tensor, const Dims& dims, const Shape& shape,
                  DType dtype, bool written) {
  if (tensor.dtype != dtype) {
    refuse(fmt::format("{} is {}, but the kernel was bound for {}", name, to_string(tensor.dtype),
                       to_string(dtype)));
  }
  if (tensor.shape != shape) {
    refuse(fmt::format("{} has shape [{}], expected [{}] ({})", name, fmt::join(tensor.shape, ", "),
                       fmt::join(shape, ", "), dims.text));
  }
  if (shape[dims.batch] == 0 || shape[dims.row] == 0) return;  // nothing is read or written
  if (tensor.data == nullptr) refuse(fmt::format("{} is null", name));
  if (reinterpret_cast<std::uintptr_t>(tensor.data) % kAlignment != 0) {
    refuse(fmt::format("{} at {} is not aligned to {} bytes", name, tensor.data, kAlignment));
  }
  if (tensor.stride[kDim] != 1) {
    refuse(fmt::format("{} has stride {} between the elements of a head: it must be 1", name,
                       tensor.stride[kDim]));
  }
  for (int dim = 0; dim < kDim; ++dim) {
    if (shape[dim] == 1) continue;  // never stepped over
    if (tensor.stride[dim] % kStrideMultiple != 0) {
      refuse(
          fmt::format("{} has stride {} in dimension {}: it must be a multiple of {} elements "
                      "({} bytes)",
                      name, tensor.stride[dim], dim, kStrideMultiple, kAlignment));
    }
  }
  if (written) check_disjoint(name, tensor);
}

void check_range(const char* name, std::int64_t value, std::int64_t least) {
  if (value < least || value > kMaxNumber) {
    refuse(fmt::format("{} is {}: it must be from {} to {}", name, value, least, kMaxNumber));
  }
}

void check_aligned_to_4(const char* name, const void* pointer) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % 4 != 0) {
    refuse(fmt::format("{} at {} is not aligned to 4 bytes", name, pointer));
  }
}

// A dimension of one element is never stepped over, whatever stride it was given.
Strides strides_of(const Tensor& tensor, const Dims& dims) {
  const auto stride = [&](int dim) { return tensor.shape[dim] == 1 ? 0 : tensor.stride[dim]; };
  return {stride(dims.batch), stride(dims.row), stride(dims.head)};
}

// Packed sequences have what the others must not have, and the other way round.
void check_sequences(const jit::Args& args) {
  if (args.layout != Layout::thd) {
    if (args.cu_seqlens_q || args.cu_seqlens_k || args.num_sequences || args.max_seqlen_q ||
        args.max_seqlen_k) {
      refuse(
          fmt::format("cu_seqlens_q, cu_seqlens_k, num_sequences, max_seqlen_q and max_seqlen_k "
                      "are for layout thd; this one is {}",
                      to_string(args.layout)));
    }
    return;
  }
  check_range("num_sequences", args.num_sequences, 0);
  check_range("max_seqlen_q", args.max_seqlen_q, 0);
  check_range("max_seqlen_k", args.max_seqlen_k, 0);
  if (args.num_sequences > 0 && (!args.cu_seqlens_q || !args.cu_seqlens_k)) {
    refuse("layout thd needs cu_seqlens_q and cu_seqlens_k, device arrays of num_sequences + 1");
  }
}

}  // namespace

Problem problem_of(const jit::Args& args) {
  const auto as_int = [](const char* name, std::int64_t value) {
    check_range(name, value, 1);
    return static_cast<int>(value);
  };
  const Dims dims = dims_of(args.layout);
  const int head_dim = as_int("q's head_dim", args.q.shape[kDim]);
  const int head_dim_v = as_int("v's head_dim", args.v.shape[kDim]);
  return {.dtype = args.q.dtype,
          .head_dim = head_dim,
          .num_heads = as_int("q's number of heads", args.q.shape[dims.head]),
          .num_heads_kv = as_int("k's number of heads", args.k.shape[dims.head]),
          .head_dim_v = head_dim_v == head_dim ? 0 : head_dim_v,
          .layout = args.layout};
}

FwdParams forward_params(const jit::Args& args, const Problem& problem) {
  if (args.layout != problem.layout) {
    refuse(fmt::format("the tensors are {}, but the kernel was bound for {}",
                       to_string(args.layout), to_string(problem.layout)));
  }
  const Dims dims = dims_of(args.layout);
  const bool packed = args.layout == Layout::thd;
  check_sequences(args);
  const std::int64_t batch = packed ? 1 : args.q.shape[dims.batch];
  const std::int64_t rows_q = args.q.shape[dims.row];
  const std::int64_t rows_k = args.k.shape[dims.row];
  check_range("the batch", batch, 0);
  check_range("seqlen_q", rows_q, 0);
  check_range("seqlen_k", rows_k, 0);
  const auto check = [&](const char* name, const Tensor& tensor, std::int64_t rows, int heads,
                         int width, bool written) {
    check_tensor(name, tensor, dims, shape_of(dims, batch, rows, heads, width), problem.dtype,
                 written);
  };
  check("q", args.q, rows_q, problem.num_heads, problem.head_dim, false);
  check("k", args.k, rows_k, problem.num_heads_kv, problem.head_dim, false);
  check("v", args.v, rows_k, problem.num_heads_kv, problem.width_v(), false);
  check("out", args.out, rows_q, problem.num_heads, problem.width_v(), true);
  check_aligned_to_4("lse", args.lse);
  check_aligned_to_4("seqused_k", args.seqused_k);
  check_aligned_to_4("leftpad_k", args.leftpad_k);
  check_aligned_to_4("cu_seqlens_q", args.cu_seqlens_q);
  check_aligned_to_4("cu_seqlens_k", args.cu_seqlens_k);
  if (!std::isinf(args.empty_lse)) {
    refuse(fmt::format("empty_lse {} must be -infinity or +infinity", args.empty_lse));
  }
  const float scale = args.softmax_scale.value_or(
      static_cast<float>(1.0 / std::sqrt(static_cast<double>(problem.head_dim))));
  if (!std::isfinite(scale) || scale < 0.0f) {
    refuse(fmt::format("softmax_scale {} must be finite and not negative", scale));
  }
  const std::int64_t seqlen_q = packed ? args.max_seqlen_q : rows_q;
  const std::int64_t seqlen_k = packed ? args.max_seqlen_k : rows_k;
  const std::int64_t q_start = args.q_start ? *args.q_start : args.k_start + seqlen_k - seqlen_q;
  check_range("k_start", args.k_start, 0);
  check_range("q_start", q_start, -kMaxNumber);
  if (args.max_ctas < 0) refuse(fmt::format("max_ctas {} must not be negative", args.max_ctas));

  FwdParams params{};
  params.q = args.q.data;
  params.k = args.k.data;
  params.v = args.v.data;
  params.out = args.out.data;
  params.lse = args.lse;
  params.q_strides = strides_of(args.q, dims);
  params.k_strides = strides_of(args.k, dims);
  params.v_strides = strides_of(args.v, dims);
  params.out_strides = strides_of(args.out, dims);
  params.lse_strides = {problem.num_heads * rows_q, 1, rows_q};
  params.cu_seqlens_q = args.cu_seqlens_q;
  params.cu_seqlens_k = args.cu_seqlens_k;
  params.seqused_k = args.seqused_k;
  params.leftpad_k = args.leftpad_k;
  params.geometry.seqlen_q = static_cast<int>(seqlen_q);
  params.geometry.seqlen_k = static_cast<int>(seqlen_k);
  params.geometry.q_start = static_cast<int>(q_start);
  params.geometry.k_start = args.k_start;
  params.geometry.head = problem.head_offset;
  params.geometry.head_kv = problem.head_offset / problem.group_size();
  params.geometry.group_size = problem.group_size();
  params.geometry.num_heads = problem.heads_total();
  params.bottom_right = !args.q_start;
  params.num_heads = problem.num_heads;
  params.num_batch_heads = static_cast<int>(std::min<std::int64_t>(
      (packed ? args.num_sequences : batch) * std::int64_t{problem.num_heads},
      std::numeric_limits<int>::max()));
  // Masked scores are -inf: a factor of zero would make them NaN.
  params.softmax_scale_log2 = std::clamp(static_cast<float>(scale * kLog2E), 1e-30f, 1e30f);
  params.empty_lse = args.empty_lse;
  return params;
}

FwdTensorMaps tensor_maps(const jit::Args& args, const FwdParams& params, const Problem& problem,
                          int query_rows, int key_rows) {
  static thread_local cuda::TensorMapMemory memory[4];  // of q, k, v and out
  const Dims dims = dims_of(args.layout);
  const auto map = [&](int place, const Tensor& tensor, const void* data, const Strides& strides,
                       int box_rows) {
    for (const std::int64_t stride : {strides.batch, strides.row, strides.head}) {
      constexpr std::int64_t kEnd = std::int64_t{1} << 39;  // 2^40 bytes
      if (stride >= 0 && stride < kEnd) continue;
      refuse(
          fmt::format("a tensor has stride {}: the kernel for Hopper takes strides from 0 to {}; "
                      "bind the portable one (tile.portable)",
                      stride, kEnd - 8));
    }
    return memory[place].get(
        {.data = data,
         .type = problem.dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
         .columns = tensor.shape[kDim],
         .rows = tensor.shape[dims.row],
         .heads = tensor.shape[dims.head],
         .batch = tensor.shape[dims.batch],
         .row_stride = strides.row,
         .head_stride = strides.head,
         .batch_stride = strides.batch},
        box_rows);
  };
  // Without keys a row is read and masked: of tensors that are as wide and have memory.
  const bool keys = args.k.shape[dims.row] > 0;
  return {.q = map(0, args.q, params.q, params.q_strides, query_rows),
          .k = keys ? map(1, args.k, params.k, params.k_strides, key_rows)
                    : map(1, args.q, params.q, params.q_strides, key_rows),
          .v = keys ? map(2, args.v, params.v, params.v_strides, key_rows)
                    : map(2, args.out, params.out, params.out_strides, key_rows),
          .out = map(3, args.out, params.out, params.out_strides, query_rows)};
}

}  // namespace girih::runtime
