// What is to be computed, apart from the pattern: types, widths, heads and, per launch, tensors.
#pragma once

#include <array>
#include <cstdint>

namespace girih {

/// float32 is a type of the tensors of jit::combine alone.
enum class DType : std::uint8_t { float16, bfloat16, float32 };

const char* to_string(DType dtype) noexcept;  ///< "fp16", "bf16", "fp32"
constexpr int bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

/// Order of a tensor's dimensions.
enum class Layout : std::uint8_t {
  bshd,  ///< [batch, seqlen, heads, head_dim]
  bhsd,  ///< [batch, heads, seqlen, head_dim]
  thd,   ///< packed sequences, [1, total, heads, head_dim], with cu_seqlens
};

const char* to_string(Layout layout) noexcept;

/// The part of a problem that a kernel is compiled for. Lengths are arguments of the launch.
struct Problem {
  DType dtype = DType::bfloat16;
  int head_dim = 128;    ///< width of a head of Q and K: a multiple of 16 from 16 to 256
  int num_heads = 1;     ///< query heads
  int num_heads_kv = 1;  ///< key/value heads; divides num_heads
  int head_dim_v = 0;    ///< of V and out, as head_dim is; 0: the same
  Layout layout = Layout::bshd;

  /// On a tensor-parallel rank, where patterns count the whole model's heads: the number of the
  /// first query head here, and how many the model has. Multiples of group_size().
  int head_offset = 0;
  int num_heads_total = 0;  ///< 0: num_heads

  /// A promise that the query heads of one KV head see the same blocks of run-time inputs, so that
  /// they may share a tile; whoever breaks it gets right results, slowly.
  bool shared_inputs = false;

  /// Says that launches may give seqused_k or leftpad_k, or tensors whose heads lie 2^31 elements
  /// apart, which only kernels of neighborhoods must know: their tiles are then tokens in a row,
  /// not bricks of the grid, and visit more.
  bool partial_keys = false;

  int group_size() const { return num_heads / num_heads_kv; }
  int width_v() const { return head_dim_v == 0 ? head_dim : head_dim_v; }
  int heads_total() const { return num_heads_total == 0 ? num_heads : num_heads_total; }
  friend bool operator==(const Problem&, const Problem&) = default;
};

/// What the tuner may turn. Zeros let Girih choose.
struct TileConfig {
  int block_m = 0;  ///< query rows of a tile: num_warps x 16 or num_warps x 32; on Hopper 128, 192
  int block_n = 0;  ///< keys of a tile, a multiple of 16
  int num_stages = 0;  ///< K/V tiles in flight: on Hopper at least 2, else 1 to 4
  int num_warps = 0;   ///< on Hopper 4 for each 64 rows and 4 that load
  /// Q tiles in flight: 1 or 2 in the Hopper kernel; in a kernel's tile 0 is the portable one's.
  int num_q_stages = 0;
  bool portable =
      false;  ///< asks for the kernel of every GPU where one has its own; else no matter

  friend bool operator==(const TileConfig&, const TileConfig&) = default;
};

/// A view of device memory. Strides count elements; the last dimension is contiguous.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::bfloat16;
  std::array<std::int64_t, 4> shape{};
  std::array<std::int64_t, 4> stride{};

  /// A contiguous tensor of this shape.
  static Tensor contiguous(void* data, DType dtype, std::array<std::int64_t, 4> shape) {
    return {data, dtype, shape, {shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1}};
  }
  friend bool operator==(const Tensor&, const Tensor&) = default;
};

}  // namespace girih
