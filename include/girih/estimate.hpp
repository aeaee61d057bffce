// Which columns and slashes the heads of vertical_slash should see, estimated from the last queries
// as MInference does, on the GPU and without waiting for it:
//
//   girih::jit::estimate_slashes({.q = q, .k = k, .num_vertical = 1000, .num_slash = 6096,
//                                 .vertical = vertical, .slash = slash, .stream = stream});
//   attention({..., .inputs = {{"v", girih::SlashLists{vertical, slash, 1000, 6096, batch,
//   heads}}}});
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "girih/jit.hpp"

namespace girih::jit {

/// Of each sequence and query head, the softmax over the keys of the last 64 queries (of as many as
/// there are), causal, the last query at the last key; added up for each key and for each distance
/// from a query back to a key, the keys and distances with the largest sums. The first 30 keys and
/// the distances below 100 come before all others.
struct EstimateArgs {
  Tensor q;  ///< as Args has it; fp16 or bf16, layout bshd or bhsd, head_dim a multiple of 16
  Tensor k;
  Layout layout = Layout::bshd;
  std::optional<float> softmax_scale = {};  ///< default 1 / sqrt(head_dim); finite and >= 0
  int num_vertical = 0, num_slash = 0;      ///< for each head, or for the one with the most
  /// Empty, or how many each query head is to have, of up to 256: none more than num_vertical and
  /// num_slash, which are then the rows' width.
  std::vector<int> head_vertical = {}, head_slash = {};
  /// Device, contiguous [batch, num_heads, num_vertical] and [batch, num_heads, num_slash]: in
  /// ascending order, -1 behind as many as the head is to have or there are keys. Of equal sums the
  /// lowest are taken.
  std::int32_t* vertical = nullptr;
  std::int32_t* slash = nullptr;
  /// Scratch memory, aligned to 16 bytes; none: it is taken from and given back to the driver's
  /// pool in the order of the stream, which may map memory anew each time.
  Workspace workspace = {};
  CUstream_st* stream = nullptr;
};

/// Scratch memory that these arguments need on the current context's GPU: 8 bytes a key and query
/// head, and somewhat more.
/// @throws Error as estimate_slashes, but never compiles.
std::size_t estimate_workspace_bytes(const EstimateArgs& args);

/// Enqueues the estimate on args.stream. The first call for a type
/// and width in a context compiles the kernels, or finds them in the cache, and loads them, which
/// is refused while the stream is being captured.
/// @throws Error invalid_argument, unsupported before anything is launched; as Program::bind.
void estimate_slashes(const EstimateArgs& args);

/// Does ahead of time what the first call for a type and width does in the current context.
/// @param options tile and tune do not matter here.
/// @throws Error as Program::bind.
void bind_estimate(DType dtype, int head_dim, const Options& options = {});

/// The kernels without a device, as build() makes those of patterns.
Artifact build_estimate(DType dtype, int head_dim, const std::string& arch,
                        const Options& options = {}, Emit emit = Emit::cubin);

}  // namespace girih::jit
