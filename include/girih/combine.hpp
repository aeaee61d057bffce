// Merging partial results: attention over parts of the keys, each launched by itself (chunks of a
// ring, ranks of an all-gather, splits), becomes attention over all of them.
//
//   kernel.launch({.q = q, .k = k0, .v = v0, .out = out0, .lse = lse0, .q_start = n, .k_start =
//   0}); kernel.launch({.q = q, .k = k1, .v = v1, .out = out1, .lse = lse1, .q_start = n, .k_start
//   = m}); girih::jit::combine({.parts = {{out0, lse0}, {out1, lse1}}, .out = out0, .lse = lse0});
#pragma once

#include <limits>
#include <string>
#include <vector>

#include "girih/jit.hpp"

namespace girih::jit {

/// Attention over a part of the keys, as a launch writes it. Rows whose lse is infinite, of either
/// sign, have seen nothing there: they count as nothing, and their out is not read.
struct Part {
  Tensor out;  ///< fp16, bf16 or fp32, whatever the other parts are
  const float* lse = nullptr;
};

/// Arguments of one merge: out = sum of exp(part.lse - lse) * part.out, and lse the logarithm of
/// the sum of exp(part.lse). Tensors are device memory aligned to 16 bytes with strides of whole 16
/// bytes, their last dimension contiguous and a multiple of 8. Each lse is natural and contiguous
/// [batch, num_heads, seqlen_q]; thd: [num_heads, total_q]. All in float32; `out` is rounded last.
struct CombineArgs {
  std::vector<Part> parts;  ///< 1 to 64
  Tensor out;               ///< fp16, bf16 or fp32; may be one of the parts' tensors
  float* lse = nullptr;     ///< may be one of the parts', or null
  Layout layout = Layout::bshd;
  /// Of a row that no part has seen, whose out is 0; or +infinity.
  float empty_lse = -std::numeric_limits<float>::infinity();
  CUstream_st* stream = nullptr;
};

/// Enqueues one merge on args.stream. The first call in a context compiles the kernel, or finds it
/// in the cache, and loads it, which is refused while the stream is being captured.
/// @throws Error invalid_argument before anything is launched; as Program::bind; driver.
void combine(const CombineArgs& args);

/// Does ahead of time what the first call of combine does in the current context.
/// @param options tile and tune do not matter here.
/// @throws Error as Program::bind.
void bind_combine(const Options& options = {});

/// The kernel without a device, as build() makes those of patterns.
Artifact build_combine(const std::string& arch, const Options& options = {},
                       Emit emit = Emit::cubin);

}  // namespace girih::jit
