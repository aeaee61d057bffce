// Vertical columns and slashes as atoms read them: for each plane of an input a row of bits for the
// columns, then one for each block of query rows with the windows of keys that its slashes become.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

// Rows of an InputView: the columns, then the windows of block 0, 1 and so on.
struct SlashPlane {
  static constexpr int kRows = 64;  // query rows of a block, and keys of a window

  // One word more than there are keys for: words are read in pairs, and written by four.
  GIRIH_HD static constexpr int words_per_row(int seqlen_k) {
    return round_up(ceil_div(seqlen_k, 32) + 1, 4);
  }

  // Nobody in a block of rows sees keys from here on; may be negative.
  GIRIH_HD static int keys_seen(const Geometry& g, int block) {
    const int last_row = min((block + 1) * kRows, g.seqlen_q) - 1;
    return min(g.seqlen_k, g.diagonal(last_row) + 1);
  }
  // Words of a block's windows from there on are anything. Before them are zeros for the keys that
  // other blocks of its query tile see: a tile of up to 512 rows reads as many for all of them.
  GIRIH_HD static int words_written(const Geometry& g, int block, int words_per_row) {
    constexpr int kWordsBeyond = 512 / 32;
    const int words = ceil_div(max(keys_seen(g, block), 0), 32) + kWordsBeyond;
    return min(round_up(words, 4), words_per_row);
  }

  const uint32* columns;
  int row_stride;  // words

  GIRIH_HD static SlashPlane of(const Geometry& g, int slot) {
    const InputView& view = g.inputs[slot];
    return {view.plane(g.batch, g.local_head), view.row_stride};
  }
  GIRIH_HD const uint32* windows(int block) const {
    return columns + int64{block + 1} * row_stride;
  }
};

// The windows of a block of query rows whose first one's diagonal is `diagonal`, by its distances
// from key to row, the farthest first: each distance wants the 64 keys that end where it leads
// from behind the block's last row, but no key below 0. One that touches the window before becomes
// 64 more keys of that one, which may then reach up to 63 keys beyond what was wanted.
struct SlashWindows {
  int reach;  // the diagonal behind the block's last row
  int bound;  // distances from here on are done

  GIRIH_HD explicit SlashWindows(int diagonal)
      : reach(diagonal + SlashPlane::kRows), bound(reach) {}

  // The next one, in ascending order and apart from the one before; false when there is none.
  // largest_below(bound) is the largest distance below a bound, which may be negative, or -1.
  template <class LargestBelow>
  GIRIH_HD bool next(LargestBelow& largest_below, Span& window) {
    int distance = largest_below(bound);
    if (distance < 0) return false;
    window.hi = end_for(distance);
    window.lo = window.hi - SlashPlane::kRows;
    while (true) {
      bound = reach - window.hi;
      distance = largest_below(bound);
      if (distance < 0 || end_for(distance) > window.hi + SlashPlane::kRows) return true;
      window.hi += SlashPlane::kRows;
    }
  }

 private:
  GIRIH_HD int end_for(int distance) const { return max(reach - distance, SlashPlane::kRows); }
};

// --- Gathering, by the Hopper kernel ---

// Keys of a window that are copied together.
constexpr int kSlashBox = 16;

// Whether a kernel gathers what heads of vertical_slash alone see: `slashes` says that there are
// such heads, key_box which keys it copies together. Others visit tiles of consecutive keys.
GIRIH_HD constexpr bool gathers_slashes(bool slashes, int block_m, int block_n, int key_box,
                                        bool pack_heads, bool pass_over) {
  return slashes && block_m == 2 * SlashPlane::kRows && block_n <= 128 && key_box == kSlashBox &&
         !pack_heads && pass_over;
}

// A key tile whose columns are seen by one block of the query tile's rows, or by the other, or
// both, or nobody; `keys` of a tile that is no boxes.
template <int kBlockN>
struct GatheredKeys {
  static constexpr int kWords = round_up(ceil_div(kBlockN, 32), 2);
  uint32 seen[2][kWords];
  int keys[kBlockN];
};

// Keys that are looked through at once, a word of bits a lane.
constexpr int kSlashChunk = 32 * 32;
constexpr int kSlashChanges = 32;  // of who sees a key, that are dealt with at once

// Boxes that wait until they fill a key tile, with what is added to these at once, in each row of
// them and in that of boxes with masks.
GIRIH_HD constexpr int most_slash_boxes(int block_n) {
  return round_up(block_n / kSlashBox + kSlashChunk / kSlashBox, 2);
}
GIRIH_HD constexpr int most_masked_boxes(int block_n) {
  return block_n / kSlashBox + kSlashChanges;
}

// What gathering takes of shared memory behind all else: tiles of visits that were found, of K's
// stages, and of single keys that are gathered, with rows of boxes and the plane of bits.
constexpr int kGatheredVisits = 4;
GIRIH_HD constexpr int gathered_keys_bytes(int block_n, int num_stages) {
  const int tile = 2 * round_up(ceil_div(block_n, 32), 2) + block_n;
  const int boxes = 3 * most_slash_boxes(block_n) + 2 * most_masked_boxes(block_n);
  return 4 * (tile * (kGatheredVisits + num_stages + 1) + boxes) + 2 * kSlashChanges +
         static_cast<int>(sizeof(SlashPlane));
}

}  // namespace girih
