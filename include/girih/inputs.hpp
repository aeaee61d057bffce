// Run-time data of patterns: device memory that a launch hands over under the names that the
// pattern's text uses. Nothing is copied to the host, and nothing is waited for.
//
//   attention({.q = q, .k = k, .v = v, .out = out,
//              .inputs = {{"m", girih::BlockMask{.data = mask, .num_q_blocks = 64, ...}}}});
//
// Extents: `batch` is the number of sequences, or 1 where all share; `heads` is the launch's
// num_heads, its num_heads_kv, or 1 where all share. Query block i holds the rows [i * q, i * q +
// q) of a sequence, counted from its own first row, key block j its keys likewise: with blocks(m,
// q=128, kv=64), num_q_blocks = ceil(seqlen_q / 128) and num_kv_blocks = ceil(seqlen_k / 64), or
// more.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <variant>

namespace girih {

/// What a pattern wants under a name; see Pattern::inputs().
struct InputInfo {
  enum class Kind : std::uint8_t {
    blocks,        ///< a BlockList, BlockTable, BlockMask or BlockBits
    number,        ///< HeadNumbers
    indices,       ///< TokenIndices
    slashes,       ///< SlashLists
    thresholds,    ///< Thresholds
    columns,       ///< ColumnIntervals
    head_values,   ///< Values, float32 [batch, heads]
    key_values,    ///< Values, float32 [batch, heads, seqlen_k], the last contiguous
    int_tensor,    ///< Values, int32, that an `expr` indexes
    float_tensor,  ///< Values, float32, that a `score` indexes
  };
  std::string name;
  Kind kind = Kind::number;
  int q_block_size = 0;   ///< tokens; of blocks
  int kv_block_size = 0;  ///< of blocks and thresholds
  int rank = 0;           ///< of tensors: indices in brackets, 1 to 4
  /// Of each dimension of a tensor: bit i where one of b, h, g, q, k, the i-th, indexes it by
  /// itself. The dimension must then have as many elements, or one that all share for b, h and g.
  std::array<std::uint8_t, 4> indexed_by{};

  bool is_tensor() const { return kind == Kind::int_tensor || kind == Kind::float_tensor; }
  /// Whether it says what is visible or skipped, rather than what becomes of scores.
  bool decides_visibility() const {
    return kind != Kind::head_values && kind != Kind::key_values && kind != Kind::float_tensor;
  }
  /// Type and shape in words, for messages.
  std::string description() const;
  friend bool operator==(const InputInfo&, const InputInfo&) = default;
};

/// Visible blocks as compressed rows (CSR), device int32. Row i of plane (b, h) holds the key
/// blocks kv_block_indices[kv_block_indptr[b, h, i]] up to, without it, that of [b, h, i + 1], in
/// any order; indices outside 0 to num_kv_blocks - 1 are ignored.
struct BlockList {
  const std::int32_t* kv_block_indptr = nullptr;   ///< contiguous [batch, heads, num_q_blocks + 1]
  const std::int32_t* kv_block_indices = nullptr;  ///< contiguous [num_indices]
  std::int64_t num_indices = 0;                    ///< nothing is read from there on
  /// 0: indptr counts from the first index of all; else each plane's counts from its own, so many
  /// after the previous plane's.
  std::int64_t plane_stride = 0;
  int batch = 1, heads = 1;
  int num_q_blocks = 0, num_kv_blocks = 0;
  friend bool operator==(const BlockList&, const BlockList&) = default;
};

/// Visible blocks as padded rows, device int32: row i of plane (b, h) holds the first
/// kv_num_blocks[b, h, i] of kv_block_indices[b, h, i, :], in any order (FlexAttention's BlockMask,
/// MInference); indices outside 0 to num_kv_blocks - 1 are ignored.
struct BlockTable {
  const std::int32_t* kv_num_blocks = nullptr;     ///< contiguous [batch, heads, num_q_blocks]
  const std::int32_t* kv_block_indices = nullptr;  ///< contiguous, each row row_capacity long
  int row_capacity = 0;
  int batch = 1, heads = 1;
  int num_q_blocks = 0, num_kv_blocks = 0;
  friend bool operator==(const BlockTable&, const BlockTable&) = default;
};

/// One byte for each block, not 0 where it is visible: torch.bool or uint8.
struct BlockMask {
  const void* data = nullptr;  ///< [batch, heads, num_q_blocks, num_kv_blocks], the last contiguous
  std::int64_t batch_stride = 0, head_stride = 0, row_stride = 0;  ///< all 0: contiguous
  int batch = 1, heads = 1;
  int num_q_blocks = 0, num_kv_blocks = 0;
  friend bool operator==(const BlockMask&, const BlockMask&) = default;
};

/// One bit for each block: bit j % 32 of a row's word j / 32. Used where it lies, without a copy.
struct BlockBits {
  const std::uint32_t* data = nullptr;  ///< [batch, heads, num_q_blocks, words], last contiguous
  std::int64_t batch_stride = 0, head_stride = 0, row_stride = 0;  ///< words; all 0: contiguous
  int batch = 1, heads = 1;
  int num_q_blocks = 0, num_kv_blocks = 0;  ///< a row has ceil(num_kv_blocks / 32) words
  friend bool operator==(const BlockBits&, const BlockBits&) = default;
};

/// Numbers of an atom (`sink($n)`), device int32, contiguous [batch, heads]. What the atom cannot
/// take counts as the nearest number that it can.
struct HeadNumbers {
  const std::int32_t* data = nullptr;
  int batch = 1, heads = 1;
  friend bool operator==(const HeadNumbers&, const HeadNumbers&) = default;
};

/// A number for each token, device int32: any numbers, in any order, but key tiles are passed over
/// where numbers stand in order. Token i is a sequence's own i-th query or key, so that packed
/// sequences (Layout::thd) have a row each.
struct TokenRows {
  const std::int32_t* data = nullptr;  ///< [batch, heads, num_tokens], the last contiguous
  int batch = 1, heads = 1;
  int num_tokens = 0;  ///< seqlen_q or seqlen_k, of the longest sequence, or more
  std::int64_t batch_stride = 0, head_stride = 0;  ///< both 0: contiguous
  friend bool operator==(const TokenRows&, const TokenRows&) = default;
};

/// What `segments`, `index_ge` and `index_gt` compare.
struct TokenIndices {
  TokenRows q;
  TokenRows k = {};  ///< without data: q serves both, where seqlen_q is seqlen_k
  friend bool operator==(const TokenIndices&, const TokenIndices&) = default;
};

/// What `vertical_slash` shows, device int32, in any order. Entries that are no key of the
/// sequence, or no distance from a row of it to a key before it, are ignored: rows may be padded
/// with -1. Distance 0 counts as given. While lists are built, the workspace takes about seqlen_q *
/// (seqlen_k / 512 + 5) bytes for each of the `heads` of every sequence.
struct SlashLists {
  const std::int32_t* vertical = nullptr;  ///< keys, contiguous [batch, heads, num_vertical]
  const std::int32_t* slash = nullptr;     ///< distances, contiguous [batch, heads, num_slash]
  int num_vertical = 0, num_slash = 0;
  int batch = 1, heads = 1;
  friend bool operator==(const SlashLists&, const SlashLists&) = default;
};

/// Where `prune` skips key tiles: below a score, for each head and each 128 positions of queries.
/// Column c holds for the query tile whose first row stands at position 128 * c up to, without it,
/// 128 * (c + 1); beyond the first and last column, theirs. -inf and NaN keep every tile, +inf
/// those only that are never skipped.
struct Thresholds {
  const float* data = nullptr;  ///< device, contiguous [heads, num_columns]
  int heads = 1;                ///< the launch's num_heads, its num_heads_kv, or 1 for all
  int num_columns = 0;
  int kv_block_size = 0;  ///< keys of the tiles that they were calibrated for: prune's kv
  /// Of the scores that they were calibrated for, where that is known: launches with another one
  /// are refused.
  std::optional<float> softmax_scale = {};
  friend bool operator==(const Thresholds&, const Thresholds&) = default;
};

/// Which rows see a key, device int32: rows q of the sequence's own with start[k] <= q < end[k], or
/// with second_start[k] <= q < second_end[k]. FlashMask's masked rows are !columns(...). Key j is a
/// sequence's own j-th. All have the same extents and strides.
struct ColumnIntervals {
  const std::int32_t* start = nullptr;  ///< [batch, heads, num_keys]
  const std::int32_t* end = nullptr;
  const std::int32_t* second_start = nullptr;  ///< null, and second_end too: one interval a key
  const std::int32_t* second_end = nullptr;
  int batch = 1, heads = 1;
  int num_keys = 0;                                ///< seqlen_k, of the longest sequence, or more
  std::int64_t key_stride = 1;                     ///< 2 or 4 where bounds lie beside one another
  std::int64_t batch_stride = 0, head_stride = 0;  ///< both 0: key_stride * num_keys a head
  friend bool operator==(const ColumnIntervals&, const ColumnIntervals&) = default;
};

/// Numbers of a modifier or of an expression, device memory in one to four dimensions: those that
/// the pattern wants. Of a modifier's, leading ones that are left out are shared by all; so is a
/// dimension of extent 1 where it counts batch or heads. An expression's tensors have all of their
/// dimensions, and an index outside of one counts as the nearest inside.
struct Values {
  enum class Type : std::uint8_t { float32, int32 };
  const void* data = nullptr;
  Type type = Type::float32;
  int rank = 0;
  std::array<std::int64_t, 4> shape{};  ///< the first `rank`
  /// In elements. All 0 mean contiguous, not one number for all: copy a tensor expanded in every
  /// dimension, or give it extents of 1.
  std::array<std::int64_t, 4> stride{};

  Values() = default;
  Values(const float* values, std::initializer_list<std::int64_t> extents)
      : Values(values, Type::float32, extents) {}
  Values(const std::int32_t* values, std::initializer_list<std::int64_t> extents)
      : Values(values, Type::int32, extents) {}

  friend bool operator==(const Values&, const Values&) = default;

 private:
  Values(const void* values, Type values_type, std::initializer_list<std::int64_t> extents)
      : data(values), type(values_type) {
    for (const std::int64_t extent : extents) {
      if (rank < 4) shape[static_cast<std::size_t>(rank)] = extent;
      ++rank;  // more than four are refused at the launch
    }
  }
};

/// One input of a launch.
struct Input {
  std::string name;
  std::variant<BlockList, BlockTable, BlockMask, BlockBits, HeadNumbers, TokenIndices, SlashLists,
               Thresholds, ColumnIntervals, Values>
      data;
  friend bool operator==(const Input&, const Input&) = default;
};

}  // namespace girih
