// Vertical columns and slashes as atoms read them: for each plane of an input a row of bits for the
// columns, and for each block of query rows one with the windows of keys that its slashes become.
// A block may share a later one's, which has its windows at other keys, and may have more.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

GIRIH_HD uint64 two_words(uint32 low, uint32 high) { return low | uint64{high} << 32; }
GIRIH_HD uint64 two_words(const uint32* words) {  // 8 bytes that are aligned to so many
  return *reinterpret_cast<const uint64*>(words);
}

// A block's windows, words of bits by key: all of the first ones, then those of a row that may be
// another block's, for keys that come later.
struct SlashRow {
  const uint32* words;
  int num_first;
  GIRIH_HD uint32 operator[](int word) const { return word < num_first ? ~0u : words[word]; }
  // Of a word and the next, what the first windows hold.
  GIRIH_HD uint64 first_of_two(int word) const {
    return two_words(word < num_first ? ~0u : 0u, word + 1 < num_first ? ~0u : 0u);
  }
};

// Where a block finds them: `words` from this one of its plane on, an even one.
struct SlashEntry {
  int first_word;
  int num_first;
};

// Of an InputView: the columns, an entry for each block, and rows of windows, one for each block
// there may be, of which those stay empty whose block has another's.
struct SlashPlane {
  static constexpr int kRows = 64;    // query rows of a block, and keys of a window
  static constexpr int kShared = 32;  // blocks that may have one row, from a multiple of that on
  static constexpr int kStep = kRows / 32;  // words, from a block's windows to the next one's

  // Of columns; one word more than there are keys for: words are read in pairs, written by four.
  GIRIH_HD static constexpr int words_per_row(int seqlen_k) {
    return round_up(ceil_div(seqlen_k, 32) + 1, 4);
  }
  // Of windows, whose last block looks at the latest keys.
  GIRIH_HD static constexpr int words_of_windows(int words_per_row) {
    return words_per_row + kStep * kShared;
  }
  // Where in a plane a block's entry is, and its own row; behind the last is the next plane.
  GIRIH_HD static constexpr int entry_at(int words_per_row, int block) {
    return words_per_row + static_cast<int>(sizeof(SlashEntry) / sizeof(uint32)) * block;
  }
  GIRIH_HD static constexpr int64 row_at(int words_per_row, int num_blocks, int block) {
    return entry_at(words_per_row, round_up(num_blocks, 2)) +
           int64{block} * words_of_windows(words_per_row);
  }

  const uint32* columns;
  int row_stride;  // words of the columns

  GIRIH_HD static SlashPlane of(const Geometry& g, int slot) {
    const InputView& view = g.inputs[slot];
    return {view.plane(g.batch, g.local_head), view.row_stride};
  }
  // Behind the keys that the block's last row sees are up to 63 of its last window, and then zeros,
  // as far as a tile of 512 rows reads; behind the last key of the sequence is anything.
  GIRIH_HD SlashRow windows(int block) const {
    const auto entry = *reinterpret_cast<const SlashEntry*>(columns + entry_at(row_stride, block));
    return {columns + entry.first_word, entry.num_first};
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
constexpr int kSlashBlocks = 2;  // of rows, in a query tile of such a kernel
GIRIH_HD constexpr bool gathers_slashes(bool slashes, int block_m, int block_n, int key_box,
                                        bool pack_heads, bool pass_over) {
  return slashes && block_m == kSlashBlocks * SlashPlane::kRows && block_n <= 128 &&
         key_box == kSlashBox && !pack_heads && pass_over;
}

// Which columns of a key tile each block of the query tile's rows sees.
template <int kBlockN>
struct SeenColumns {
  static constexpr int kWords = round_up(ceil_div(kBlockN, 32), 2);
  uint32 seen[kSlashBlocks][kWords];
};

// With the keys of a tile that is no boxes.
template <int kBlockN>
struct GatheredKeys : SeenColumns<kBlockN> {
  int keys[kBlockN];
};

// What blocks of rows see.
struct SlashRows {
  const uint32* columns;
  SlashRow windows[kSlashBlocks];
};

// Keys that are looked through at once, two words of bits a lane but for the last two lanes.
constexpr int kSlashChunk = 30 * 64;
constexpr int kSlashChanges = 32;  // of who sees a key, that are dealt with at once

// Boxes that wait until they fill a key tile lie in rings: fewer than a tile's, and a chunk's.
// Where a run is open, part of a box lies before the chunk.
constexpr int kSlashRing = 128;
static_assert(128 / kSlashBox - 1 + kSlashChunk / kSlashBox < kSlashRing);

// What gathering takes of shared memory behind all else: who sees the keys of visits that were
// found and of K's stages, and single keys of the former and of the tile that is gathered, with
// rings of boxes, for each set of blocks, and of masks, and where the bits are.
constexpr int kGatheredVisits = 8;
GIRIH_HD constexpr int gathered_keys_bytes(int block_n, int num_stages) {
  const int seen = kSlashBlocks * round_up(ceil_div(block_n, 32), 2);
  const int words = (seen + block_n) * (kGatheredVisits + 1) + seen * num_stages +
                    (1 << kSlashBlocks) * kSlashRing;
  return 4 * words + 2 * (kSlashBlocks * kSlashRing + kSlashChanges) +
         static_cast<int>(sizeof(SlashRows));
}

}  // namespace girih
