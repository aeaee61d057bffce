// Where things lie in shared memory: one description for the host's planner and the kernels.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// A tile's row takes a multiple of 128 bytes, so that the swizzle of tile/swizzle.cuh applies.
GIRIH_HD constexpr int row_pitch_bytes(int head_dim) { return round_up(2 * head_dim, 128); }

// What a producer tells the consumers of a K/V stage. kind is a TileKind; empty ends the walk.
struct TileDescriptor {
  int n_block;
  int kind;
};

// fwd_sm80: Q (where the epilogue stages the output), then the K stages, then the V stages, then
// the producer's state.
struct FwdSm80Layout {
  int k_stage_bytes;
  int v_stage_bytes;
  int k_offset;
  int v_offset;
  int producer_offset;
  int bytes;
};
constexpr int kFwdSm80ProducerBytes = 256;

GIRIH_HD constexpr FwdSm80Layout fwd_sm80_layout(int block_m, int block_n, int head_dim,
                                                 int head_dim_v, int num_stages) {
  FwdSm80Layout layout{};
  layout.k_stage_bytes = block_n * row_pitch_bytes(head_dim);
  layout.v_stage_bytes = block_n * row_pitch_bytes(head_dim_v);
  layout.k_offset = block_m * max(row_pitch_bytes(head_dim), row_pitch_bytes(head_dim_v));
  layout.v_offset = layout.k_offset + num_stages * layout.k_stage_bytes;
  layout.producer_offset = layout.v_offset + num_stages * layout.v_stage_bytes;
  layout.bytes = layout.producer_offset + kFwdSm80ProducerBytes;
  return layout;
}

// fwd_sm90: Q tiles (where the epilogue stages the output), K stages, V stages, then barriers and
// descriptors. Tiles consist of 128-byte panels, a multiple of 8 rows high.
struct FwdSm90Layout {
  int q_stage_bytes;
  int k_stage_bytes;
  int v_stage_bytes;
  int k_offset;
  int v_offset;
  int control_offset;
  int bytes;
};
constexpr int kFwdSm90ControlBytes = 3072;

// Registers of a consumer's thread that hold scores, probabilities and output; and up to how many
// of them the producer has registers for any pattern's seeks.
GIRIH_HD constexpr int fwd_sm90_fragment_registers(int block_n, int head_dim_v) {
  return (block_n + head_dim_v) / 2 + block_n / 4;
}
constexpr int kFwdSm90RoomyFragments = 176;

GIRIH_HD constexpr FwdSm90Layout fwd_sm90_layout(int block_m, int block_n, int head_dim,
                                                 int head_dim_v, int num_stages, int num_q_stages) {
  FwdSm90Layout layout{};
  layout.k_stage_bytes = block_n * row_pitch_bytes(head_dim);
  layout.v_stage_bytes = block_n * row_pitch_bytes(head_dim_v);
  layout.q_stage_bytes = block_m * max(row_pitch_bytes(head_dim), row_pitch_bytes(head_dim_v));
  layout.k_offset = num_q_stages * layout.q_stage_bytes;
  layout.v_offset = layout.k_offset + num_stages * layout.k_stage_bytes;
  layout.control_offset = layout.v_offset + num_stages * layout.v_stage_bytes;
  layout.bytes = layout.control_offset + kFwdSm90ControlBytes;
  return layout;
}

}  // namespace girih
