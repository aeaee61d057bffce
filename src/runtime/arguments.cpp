#include "runtime/arguments.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <utility>

#include "cuda/tensor_map.hpp"
#include "runtime/softmax_scale.hpp"
#include "runtime/tensors.hpp"

namespace girih::runtime {
namespace {

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

FwdParams forward_params(const jit::Args& args, const Problem& problem,
                         std::span<const pattern::Grid> grids) {
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
    if (tensor.dtype != problem.dtype) {
      refuse(fmt::format("{} is {}, but the kernel was bound for {}", name, to_string(tensor.dtype),
                         to_string(problem.dtype)));
    }
    check_tensor(name, tensor, dims, shape_of(dims, batch, rows, heads, width), written);
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
  const float scale_log2 = softmax_scale_log2_of(args.softmax_scale, problem.head_dim);
  const std::int64_t seqlen_q = packed ? args.max_seqlen_q : rows_q;
  const std::int64_t seqlen_k = packed ? args.max_seqlen_k : rows_k;
  const std::int64_t q_start = args.q_start ? *args.q_start : args.k_start + seqlen_k - seqlen_q;
  check_range("k_start", args.k_start, 0);
  check_range("q_start", q_start, -kMaxNumber);
  const std::string problem_with_grid =
      pattern::length_problem(grids, static_cast<int>(seqlen_q), static_cast<int>(seqlen_k));
  if (!problem_with_grid.empty()) refuse(problem_with_grid);
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
  params.softmax_scale_log2 = scale_log2;
  params.empty_lse = args.empty_lse;
  return params;
}

namespace {

// The copy engine's stride of a dimension must be below 2^40 bytes.
constexpr std::int64_t kStrideEnd = std::int64_t{1} << 39;

void check_strides(const Strides& strides) {
  for (const auto& [stride, between] :
       {std::pair{strides.batch, "sequences"}, {strides.row, "tokens"}, {strides.head, "heads"}}) {
    if (stride >= 0 && stride < kStrideEnd) continue;
    refuse(
        fmt::format("a tensor has stride {} between {}: the kernel for Hopper takes strides from 0 "
                    "to {} elements; bind the portable one (tile.portable)",
                    stride, between, kStrideEnd - 8));
  }
}

constexpr int kBoxColumns = 64;

CUtensorMapDataType type_of(const Problem& problem) {
  return problem.dtype == DType::bfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                          : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
}

TensorMap map_of(const Tensor& tensor, const void* data, const Strides& strides, int box_rows,
                 const Problem& problem, const Dims& dims) {
  check_strides(strides);
  return cuda::encode_tensor_map({.data = data,
                                  .type = type_of(problem),
                                  .num_dimensions = 4,
                                  .extents = {tensor.shape[kDim], tensor.shape[dims.row],
                                              tensor.shape[dims.head], tensor.shape[dims.batch]},
                                  .strides = {1, strides.row, strides.head, strides.batch},
                                  .box = {kBoxColumns, box_rows, 1, 1}});
}

}  // namespace

FwdTensorMaps tensor_maps(const jit::Args& args, const FwdParams& params, const Problem& problem,
                          int query_rows, int key_rows) {
  const Dims dims = dims_of(args.layout);
  const auto map = [&](const Tensor& tensor, const void* data, const Strides& strides,
                       int box_rows) {
    return map_of(tensor, data, strides, box_rows, problem, dims);
  };
  // Without keys a row is read and masked: of tensors that are as wide and have memory.
  const bool keys = args.k.shape[dims.row] > 0;
  return {.q = map(args.q, params.q, params.q_strides, query_rows),
          .k = keys ? map(args.k, params.k, params.k_strides, key_rows)
                    : map(args.q, params.q, params.q_strides, key_rows),
          .v = keys ? map(args.v, params.v, params.v_strides, key_rows)
                    : map(args.out, params.out, params.out_strides, key_rows),
          .out = map(args.out, params.out, params.out_strides, query_rows)};
}

namespace {

// Heads are columns of one tensor over a grid (shared/bricks.cuh), whose extent is an int.
bool heads_are_far(const Tensor& tensor, const Dims& dims) {
  const std::int64_t others = tensor.shape[dims.head] - 1;
  if (others < 1) return false;
  return tensor.stride[dims.head] > (std::numeric_limits<int>::max() - tensor.shape[kDim]) / others;
}

}  // namespace

cuda::TiledTensor tensor_over_grid(const Tensor& tensor, const void* data, const Strides& strides,
                                   const Problem& problem, const DilatedGrid& grid,
                                   const GridPoint& brick) {
  check_strides(strides);
  const Dims dims = dims_of(problem.layout);
  if (heads_are_far(tensor, dims)) {
    refuse(
        fmt::format("a tensor has stride {} between its {} heads: the kernel for Hopper that "
                    "visits bricks of a grid takes heads within 2^31 elements; bind with "
                    "problem.partial_keys, whose tiles are tokens in a row, or give a tensor whose "
                    "heads lie nearer to one another",
                    strides.head, tensor.shape[dims.head]));
  }
  const auto& [a, b, c] = grid.extents;
  // Planes of the grid; of one plane or line nobody steps over it.
  const std::int64_t tokens = std::int64_t{a > 1 ? b : 1} * c;
  const std::int64_t row_end = (kStrideEnd + tokens - 1) / tokens;  // a product could overflow
  if (strides.row >= row_end) {
    refuse(fmt::format(
        "a tensor has stride {} between tokens: the kernel for Hopper that visits bricks of a "
        "{}x{}x{} grid takes at most {}; bind the portable one (tile.portable), or give a tensor "
        "whose tokens lie nearer to one another",
        strides.row, a, b, c, row_end - 1));
  }
  const std::int64_t columns = (tensor.shape[dims.head] - 1) * strides.head + tensor.shape[kDim];
  const std::int64_t line = strides.row * c;
  return {.data = data,
          .type = type_of(problem),
          .num_dimensions = 5,
          .extents = {columns, c, b, a, tensor.shape[dims.batch]},
          .strides = {1, strides.row, line, a > 1 ? line * b : line, strides.batch},
          .box = {kBoxColumns, brick.c, brick.b, brick.a, 1},
          .steps = {1, grid.dilation.c, grid.dilation.b, grid.dilation.a, 1}};
}

bool is_too_far_for_bricks(const jit::Args& args) {
  const Dims dims = dims_of(args.layout);
  return heads_are_far(args.q, dims) || heads_are_far(args.k, dims) || heads_are_far(args.v, dims);
}

FwdBrickMaps brick_maps(const jit::Args& args, const FwdParams& params, const Problem& problem,
                        const DilatedGrid& grid, const plan::Bricks& bricks) {
  const auto map = [&](const Tensor& tensor, const void* data, const Strides& strides,
                       const GridPoint& brick) {
    return cuda::encode_tensor_map(tensor_over_grid(tensor, data, strides, problem, grid, brick));
  };
  return {.q = map(args.q, params.q, params.q_strides, bricks.queries),
          .k = map(args.k, params.k, params.k_strides, bricks.keys),
          .v = map(args.v, params.v, params.v_strides, bricks.keys)};
}

void refuse_partial_keys(const jit::Args& args) {
  if (args.seqused_k == nullptr && args.leftpad_k == nullptr) return;
  refuse(
      fmt::format("{} was given, but the kernel visits bricks of a whole grid: bind with "
                  "problem.partial_keys, or the portable kernel (tile.portable)",
                  args.seqused_k != nullptr ? "seqused_k" : "leftpad_k"));
}

FwdRowMaps row_maps(const jit::Args& args, const FwdParams& params, const Problem& problem) {
  const Dims dims = dims_of(args.layout);
  const bool keys = args.k.shape[dims.row] > 0;  // else none is read
  return {.k = map_of(keys ? args.k : args.q, keys ? params.k : params.q,
                      keys ? params.k_strides : params.q_strides, 1, problem, dims),
          .v = map_of(keys ? args.v : args.out, keys ? params.v : params.out,
                      keys ? params.v_strides : params.out_strides, 1, problem, dims)};
}

}  // namespace girih::runtime
