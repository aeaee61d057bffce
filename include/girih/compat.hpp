// Patterns from other libraries' arguments, by their names and with their meaning: the host's part
// of what girih_compat.py offers Python.
//
//   auto heads = girih::compat::block_sparse_attn({.head_mask_type = {0, 0, 1, -1},
//                                                  .streaming_info = {0, 0, 0, 0, 0, 0, 1, 3},
//                                                  .is_causal = true});
//   auto attention = girih::jit::compile(heads.pattern);  // launched with empty_lse = +infinity
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "girih/pattern.hpp"

namespace girih::compat {

/// Arguments of Block-Sparse-Attention's functions. token_streaming_attn_func has is_causal and
/// exact_streaming, block_streaming_attn_func has is_causal unless told otherwise.
struct BlockSparseAttn {
  /// Of each query head: 0 dense, -1 streaming, 1 the next plane of base_blockmask, a larger n
  /// plane n - 1.
  std::vector<int> head_mask_type;
  /// Two for each query head, its sink and local counts: of tokens with exact_streaming, else of
  /// blocks of 128. Empty where no head streams.
  std::vector<int> streaming_info = {};
  bool is_causal = false;
  bool exact_streaming = false;
};

struct BlockSparseHeads {
  Pattern pattern;  ///< its block mask is the input "m", blocks of 128 x 128
  /// Of each query head the plane of base_blockmask that it sees, -1 where it has none. The input
  /// has a plane for every query head, or one where all that have one share it.
  std::vector<int> planes;
};

/// @throws Error invalid_argument.
BlockSparseHeads block_sparse_attn(const BlockSparseAttn& arguments);

/// Arguments of FlashAttention's functions. Distances are inclusive, below 0 unbounded; a causal
/// window ends at the diagonal, and one that ends there, window_right = 0, is causal.
struct FlashAttn {
  bool causal = false;
  int window_left = -1;
  int window_right = -1;
  float softcap = 0;              ///< 0 is none
  std::string alibi_slopes = {};  ///< the run-time input that holds them; empty: none
};
Pattern flash_attn(const FlashAttn& arguments);

/// Arguments of BSFA's block_sparse_flash_attn_func. Its block_sparse_threshold is the launch's
/// input "t", girih::Thresholds{.heads = num_heads, .num_columns = max_blocks, .kv_block_size =
/// kv}.
struct BlockSparseFlashAttn : FlashAttn {
  int kv = 64;  ///< keys of a tile that thresholds were calibrated for; BSFA's kernel has 64
};
Pattern block_sparse_flash_attn(const BlockSparseFlashAttn& arguments);

/// Arguments of S2-Attention's LocalStrideSparseAttention (dkernel). Of a tensor-parallel rank they
/// are the whole model's; Problem::head_offset says which heads it has.
struct LocalStride {
  int num_heads = 0;
  int block_size = 0;
  int local_blocks = 0;
  int vert_stride = 0;
  bool homo_head = false;
  int num_dense_heads = 0;               ///< of the pattern's heads, the last ones
  std::optional<int> num_kv_heads = {};  ///< given: the pattern's heads are KV heads, K's and V's
  int head_sliding_offset = 0;           ///< vLLM and Phi-3-small have 1
  bool causal = true;                    ///< else launches want q_start = 0
};
/// @throws Error invalid_argument.
Mask local_stride(const LocalStride& arguments);

}  // namespace girih::compat
