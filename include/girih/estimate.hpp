// What heads should see, estimated from Q and K on the GPU and without waiting for it. Columns and
// slashes for vertical_slash, from the last queries as MInference has them:
//
//   girih::jit::estimate_slashes({.q = q, .k = k, .num_vertical = 1000, .num_slash = 6096,
//                                 .vertical = vertical, .slash = slash, .stream = stream});
//   attention({..., .inputs = {{"v", girih::SlashLists{vertical, slash, 1000, 6096, batch,
//   heads}}}});
//
// And blocks, from their means as MInference has them, or from antidiagonals as XAttention does:
//
//   girih::jit::estimate_blocks({.q = q, .k = k, .stride = 16, .threshold = 0.9f, .mask = mask});
//   attention({..., .inputs = {{"m", girih::BlockMask{.data = mask, .batch = batch, .heads = heads,
//   .num_q_blocks = (seqlen_q + 63) / 64, .num_kv_blocks = (seqlen_k + 63) / 64}}}});
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

/// Of each sequence and query head, which blocks of keys each block of queries should see.
///
/// Scores of a pair of blocks, without a stride: that of the mean query and the mean key, a
/// probability in the softmax over the blocks of a row. With stride s: the sum of scores along the
/// antidiagonal of every s x s tokens, divided by s, gives probabilities in the softmax over the
/// keys' groups of s tokens; a pair's value is the sum of those in it. Causal, the last query at
/// the last key: a block or group of keys counts where its first key is not behind the last query
/// of the block or group, as a whole.
///
/// Of each row of blocks are taken, whatever their values, those on the diagonal, which hold
/// positions of the block's own queries (causal alone), and with keep_sink the first, where it is
/// visible; then others, those with the largest values first. Of equal values the lowest blocks
/// are taken.
struct EstimateBlocksArgs {
  Tensor q;  ///< as Args has it; fp16 or bf16, layout bshd or bhsd, head_dim a multiple of 16
  Tensor k;
  Layout layout = Layout::bshd;
  std::optional<float> softmax_scale = {};  ///< default 1 / sqrt(head_dim); finite and >= 0
  int q_block = 64, kv_block = 64;          ///< tokens: 64 or 128
  std::optional<int> stride = {};           ///< 4, 8 or 16; blocks' means where not given
  /// One of these: how many blocks of each row, 1 or more; or the fewest that have this share of
  /// the row's probabilities, above 0 and up to 1, which is all that are visible.
  std::optional<int> top_k = {};
  std::optional<float> threshold = {};
  bool causal = true;
  bool keep_sink = false;
  /// Device, a byte of 0 or 1 for each block, contiguous [batch, num_heads, num_q_blocks,
  /// num_kv_blocks]: as a BlockMask has it.
  std::uint8_t* mask = nullptr;
  CUstream_st* stream = nullptr;
};

/// Enqueues the estimate on args.stream, in one launch, or two for means. Scratch memory is taken
/// from and given back to the driver's pool in the order of the stream: 512 bytes a block of keys
/// for each multiprocessor; for means also 6 bytes for each of their elements. The first call for a
/// type and width in a context compiles the kernels, or finds them in the cache, and loads them,
/// which is refused while the stream is being captured.
/// @throws Error invalid_argument, unsupported before anything is launched; as Program::bind.
void estimate_blocks(const EstimateBlocksArgs& args);

/// Does ahead of time what the first call for a type and width does in the current context, for all
/// sizes of blocks, strides and shares.
/// @param options tile and tune do not matter here.
/// @throws Error as Program::bind.
void bind_estimate_blocks(DType dtype, int head_dim, const Options& options = {});

/// The kernels without a device, as build() makes those of patterns.
Artifact build_estimate_blocks(DType dtype, int head_dim, const std::string& arch,
                               const Options& options = {}, Emit emit = Emit::cubin);

}  // namespace girih::jit
