// Pruning: a key tile whose highest score is below a threshold takes no part in the softmax. Here
// is what is known before scores are: which tiles of a query tile may be skipped, and below what.
// Kernels and the host's reference compile this.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

constexpr int kPruneRows = 128;  // of a query tile

// The last number of a head's row in the head table.
struct PruneWord {
  static constexpr int kNone = -1;  // the head is not pruned

  GIRIH_HD static constexpr int make(int slot, bool causal, bool keep_sink) {
    return slot | (causal ? kCausalBit : 0) | (keep_sink ? kKeepSinkBit : 0);
  }
  GIRIH_HD static constexpr int slot(int word) { return word & (kCausalBit - 1); }
  GIRIH_HD static constexpr bool causal(int word) { return (word & kCausalBit) != 0; }
  GIRIH_HD static constexpr bool keep_sink(int word) { return (word & kKeepSinkBit) != 0; }

 private:
  static constexpr int kCausalBit = 1 << 8;
  static constexpr int kKeepSinkBit = 1 << 9;
};

// Of a query tile.
struct PruneRule {
  static constexpr float kKeepAll = kMinusInfinity;

  float threshold;  // in scaled scores
  int first_kept;   // key tiles [first_kept, end_kept) are never skipped,
  int end_kept;
  int num_sink_tiles;  // nor are the first so many

  GIRIH_HD bool may_skip(int n) const {
    return threshold > kKeepAll && n >= num_sink_tiles && (n < first_kept || n >= end_kept);
  }
};

// The rule of the query tile that begins with `first_row`. Thresholds lie by head and position: a
// view's row_stride is how many positions there are, and tiles beyond the first and last position
// take that one's. A threshold that is NaN keeps every tile, as -inf does.
GIRIH_HD PruneRule prune_rule(int word, const Geometry& geometry, int first_row, int block_n) {
  PruneRule rule{PruneRule::kKeepAll, 0, 0, 0};
  if (word == PruneWord::kNone) return rule;
  const InputView& view = geometry.inputs[PruneWord::slot(word)];
  const int position = floor_div(first_row + geometry.q_start, kPruneRows);
  const int column = min(max(position, 0), view.row_stride - 1);
  rule.threshold = float_of_bits(view.plane(geometry.batch, geometry.local_head)[column]);
  rule.num_sink_tiles = PruneWord::keep_sink(word) ? 1 : 0;
  if (PruneWord::causal(word)) {
    const int diagonal = geometry.diagonal(first_row);
    rule.first_kept = floor_div(diagonal, block_n);
    rule.end_kept = floor_div(diagonal + kPruneRows - 1, block_n) + 1;
  } else {
    rule.first_kept = max(geometry.seqlen_k - 1, 0) / block_n;
    rule.end_kept = rule.first_kept + 1;
  }
  return rule;
}

}  // namespace girih
