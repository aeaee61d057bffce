// What a query tile of two blocks of rows sees of vertical_slash before its own rows' keys,
// gathered into key tiles of which every key is seen by the same blocks: boxes of consecutive keys
// from windows, which begin at any key, and single keys, of columns outside windows and of what of
// a window fills no box. A tile of single keys may hold keys of one block alone. By a warp.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

template <class Structure>
constexpr bool kIsVerticalSlash = false;
template <>
constexpr bool kIsVerticalSlash<Leaf<VerticalSlash>> = true;
template <>
constexpr bool kIsVerticalSlash<All<Leaf<Causal>, Leaf<VerticalSlash>>> = true;  // the same keys

// Which head classes are vertical_slash alone; its input is their first number.
template <class Classes>
struct SlashClasses {};
template <class... Structures>
struct SlashClasses<HeadClasses<Structures...>> {
  static constexpr bool kAny = (kIsVerticalSlash<Structures> || ...);
  __device__ static __forceinline__ bool contain(int head_class) {
    bool found = false;
    int index = 0;
    ((head_class == index++ ? void(found = kIsVerticalSlash<Structures>) : void()), ...);
    return found;
  }
};

template <int kBlockN>
struct SlashGather {
  static constexpr int kBlocks = kSlashBlocks;
  using Seen = SeenColumns<kBlockN>;
  using Keys = GatheredKeys<kBlockN>;
  static constexpr int kBoxes = kBlockN / kSlashBox;
  static constexpr uint32 kAll = (1u << kBlocks) - 1;  // a bit a block

  // What was gathered so far, in shared memory, in rows: boxes that some of the blocks see whole, a
  // row for each set of them, whose bits are the row's number plus 1; boxes of which they see
  // parts; single keys.
  enum Row : int { kMasked = kAll, kSingle = kAll + 1 };
  struct Staging {
    SlashRows rows;                 // registers are scarce
    uint16 changes[kSlashChanges];  // keys of a chunk, and from bit kChangeBits on who sees them
    int boxes[kSingle][kSlashRing];
    uint16 masks[kBlocks][kSlashRing];  // of kMasked
    Keys single;

    // Of a tile of `count` boxes from number `first` on, or of so many single keys: what a block
    // sees of the 32 columns of a word. Part kBlocks sees nothing.
    __device__ __forceinline__ uint32 seen(int row, int first, int count, int part,
                                           int word) const {
      if (row < kMasked) {
        return KeyWord{32 * word}.below((row + 1 >> part & 1) * count * kSlashBox);
      }
      if (part == kBlocks) return 0;
      if (row == kSingle) return single.seen[part][word];
      uint32 bits = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * word + i >= count) continue;
        bits |= uint32{masks[part][(first + 2 * word + i) % kSlashRing]} << i * kSlashBox;
      }
      return bits;
    }
    __device__ __forceinline__ int box(int row, uint32 number) const {
      return boxes[row][number % kSlashRing];
    }
  };
  Staging& staging;
  // Of each row of boxes a byte: where in its ring the first one is, and how many there are.
  // Neither number nor their sum carries into the next byte.
  static_assert(kSlashRing == 0x80);
  using Bytes = uint32;
  static_assert(kSingle <= sizeof(Bytes));
  Bytes first_boxes = 0, num_boxes = 0;
  int num_single = 0;

  __device__ __forceinline__ explicit SlashGather(Staging& own) : staging(own) { clear_single(); }

  // The keys below `end`, of so many blocks of rows as exist from the first on, in runs that the
  // same blocks have in windows, from one change to the next.
  // emit(row, first, count) takes what a row of the staging holds: so many boxes from that one on,
  // or so many single keys. emit_tiles(fills, row, first) takes a tile of each lane that has one,
  // of boxes that the row's blocks see whole. All lanes call them together.
  template <class Emit, class EmitTiles>
  __device__ __forceinline__ void run(const SlashPlane& plane, int first_block, int num_blocks,
                                      int end, const Emit& emit, const EmitTiles& emit_tiles) {
    if (fresh_thread_index() % 32 == 0) {
      staging.rows.columns = plane.columns;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        if (block < num_blocks) staging.rows.windows[block] = plane.windows(first_block + block);
      }
    }
    __syncwarp();
    Stretch open{0, 0};
    Words ahead = words_at(num_blocks, 0, end);
#pragma unroll 1
    for (int chunk = 0; chunk <= end; chunk += kSlashChunk) {  // runs end at `end`
      const Words words = existing_of(ahead, num_blocks, chunk, end);
      ahead = words_at(num_blocks, chunk + kSlashChunk, end);
      uint64 changes = changes_of(words, open.parts);
#pragma unroll 1
      for (bool more = true; more;) {
        more = __any_sync(0xffffffff, changes != 0);
        if (more) {
          const int count = list_changes(words, changes);
          add_runs(chunk, count, num_blocks, end, open);
        } else if (open.parts != 0) {
          add_open_run(open, chunk + kSlashChunk);
        }
        emit_full(emit, emit_tiles);
      }
      add_columns(words, chunk, num_blocks, emit);
    }

#pragma unroll 1
    for (uint32 row = 0; row <= kSingle; ++row) {
      const int count = row == kSingle ? num_single : byte_of(num_boxes, row);
      const int first = row == kSingle ? 0 : byte_of(first_boxes, row);
      if (count > 0) emit(static_cast<int>(row), first, count);
    }
  }

 private:
  static constexpr int kChangeBits = 11;
  static_assert(kSlashChunk <= 1 << kChangeBits && kSlashChanges == 32);  // one a lane

  // Keys that the same blocks have in windows, from the first one that is in no box yet.
  struct Stretch {
    int begin;
    uint32 parts;  // the blocks
  };

  // A lane's 64 keys of a chunk: those in windows of the blocks, and columns. The last lanes have
  // none.
  static constexpr int kLaneKeys = 64;
  struct Words {
    uint64 windows[kBlocks];
    uint64 columns;

    // The blocks in whose windows a key is.
    __device__ __forceinline__ uint32 parts_at(int bit) const {
      uint32 parts = 0;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        parts |= static_cast<uint32>(windows[block] >> bit & 1) << block;
      }
      return parts;
    }
  };
  __device__ __forceinline__ static int first_key_of_lane(int chunk) {
    return chunk + kLaneKeys * static_cast<int>(fresh_thread_index() % 32);
  }

  // As they lie in memory, without first windows: what is done with them would wait for it.
  __device__ __forceinline__ Words words_at(int num_blocks, int chunk, int end) const {
    const int key = first_key_of_lane(chunk);
    Words words{};
    if (key < min(end, chunk + kSlashChunk)) {
      const SlashRows& rows = staging.rows;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        if (block < num_blocks) {
          words.windows[block] = two_words(rows.windows[block].words + key / 32);
        }
      }
      words.columns = two_words(rows.columns + key / 32);
    }
    return words;
  }

  // With first windows, and without keys from `end` on.
  __device__ __forceinline__ Words existing_of(const Words& words, int num_blocks, int chunk,
                                               int end) const {
    const int key = first_key_of_lane(chunk);
    const uint64 existing = two_words(KeyWord{key}.below(end), KeyWord{key + 32}.below(end));
    Words left;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const uint64 first =
          block < num_blocks ? staging.rows.windows[block].first_of_two(key / 32) : 0;
      left.windows[block] = (words.windows[block] | first) & existing;
    }
    left.columns = words.columns & existing;
    return left;
  }

  __device__ __forceinline__ static int byte_of(Bytes bytes, uint32 row) {
    return static_cast<int>(bytes >> 8 * row & 0xff);
  }
  static constexpr Bytes kEachByte = 0x01010101;

  // A box's bits of a row of them.
  __device__ __forceinline__ static uint32 bits_at(const SlashRow& row, int key) {
    static_assert(kSlashBox == 16);
    return static_cast<uint32>(two_words(row[key / 32], row[key / 32 + 1]) >> key % 32) & 0xffff;
  }

  // The keys that other blocks see than the key before; `parts` see the one before the chunk.
  __device__ __forceinline__ static uint64 changes_of(const Words& words, uint32 parts) {
    uint32 before = __shfl_up_sync(0xffffffff, words.parts_at(63), 1);
    const int lane = fresh_thread_index() % 32;
    if (lane == 0) before = parts;
    if (lane >= kSlashChunk / kLaneKeys) return 0;
    uint64 changes = 0;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const uint64 window = words.windows[block];
      changes |= window ^ (window << 1 | (before >> block & 1));
    }
    return changes;
  }

  // Moves the first of all lanes' changes to the staging, in order. Returns how many these are.
  __device__ __forceinline__ int list_changes(const Words& words, uint64& changes) {
    const int lane = fresh_thread_index() % 32;
    const int sum = sum_up_to_lane(__popcll(changes));
    int rank = sum - __popcll(changes);
#pragma unroll 1
    for (; changes != 0 && rank < kSlashChanges; changes &= changes - 1) {
      const int bit = lowest_bit(changes);
      staging.changes[rank++] =
          static_cast<uint16>(kLaneKeys * lane + bit | words.parts_at(bit) << kChangeBits);
    }
    __syncwarp();
    return min(__shfl_sync(0xffffffff, sum, 31), kSlashChanges);
  }

  // The runs that end at the listed changes, one a lane: as many boxes as they fill, and one with
  // masks for the rest, with what follows. The run after the last change is open then.
  __device__ __forceinline__ void add_runs(int chunk, int count, int num_blocks, int end,
                                           Stretch& open) {
    const int lane = fresh_thread_index() % 32;
    const uint32 change = lane < count ? staging.changes[lane] : 0u;
    const uint32 change_before = __shfl_up_sync(0xffffffff, change, 1);
    const auto key_of = [&](uint32 at) {
      return chunk + static_cast<int>(at % (1 << kChangeBits));
    };
    const int run_begin = lane == 0 ? open.begin : key_of(change_before);
    const int run_end = key_of(change);
    uint32 parts = lane == 0 ? open.parts : change_before >> kChangeBits;
    if (lane >= count) parts = 0;
    const int wanted_end = parts == 0 ? run_begin : run_end;

    // A run begins where the boxes of those before end: mostly no more than one reaches into the
    // next.
    int begin = run_begin;
    int boxes_end;
    uint32 length;
#pragma unroll 1
    while (true) {
      length = static_cast<uint32>(max(wanted_end - begin, 0));
      boxes_end = begin + static_cast<int>((length + kSlashBox - 1) / kSlashBox * kSlashBox);
      const int before = __shfl_up_sync(0xffffffff, boxes_end, 1);
      const int moved = lane == 0 || lane >= count ? begin : max(run_begin, before);
      if (!__any_sync(0xffffffff, moved != begin)) break;
      begin = moved;
    }
    const uint32 whole = length / kSlashBox;
    const bool rest = length % kSlashBox != 0;
    const uint32 row = parts - 1;
    const Bytes own = length == 0
                          ? Bytes{0}
                          : Bytes{whole} << 8 * row | (rest ? Bytes{1} << 8 * kMasked : Bytes{0});
    const Bytes sum = sum_up_to_lane(own);
    const Bytes places = first_boxes + num_boxes + sum - own;
    constexpr uint32 kBoxesOfWindow = SlashPlane::kRows / kSlashBox;
#pragma unroll 1
    for (uint32 first = 0; first < whole; first += kBoxesOfWindow) {
#pragma unroll
      for (uint32 i = first; i < first + kBoxesOfWindow; ++i) {
        if (i >= whole) continue;
        staging.boxes[row][(byte_of(places, row) + i) % kSlashRing] = begin + i * kSlashBox;
      }
    }
    if (rest) {
      const uint32 to = byte_of(places, kMasked) % kSlashRing;
      const int key = begin + static_cast<int>(whole * kSlashBox);
      const uint32 existing = KeyWord{key}.below(end);
      staging.boxes[kMasked][to] = key;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const uint32 bits =
            block < num_blocks ? bits_at(staging.rows.windows[block], key) & existing : 0;
        staging.masks[block][to] = static_cast<uint16>(bits);
      }
    }
    num_boxes += __shfl_sync(0xffffffff, sum, 31);
    open.begin = __shfl_sync(0xffffffff, max(run_end, boxes_end), count - 1);
    open.parts = __shfl_sync(0xffffffff, change >> kChangeBits, count - 1);
    __syncwarp();
  }

  // As many boxes as the open run fills before `chunk_end`.
  __device__ __forceinline__ void add_open_run(Stretch& open, int chunk_end) {
    const uint32 row = open.parts - 1;
    const uint32 boxes = static_cast<uint32>(max(chunk_end - open.begin, 0)) / kSlashBox;
    const uint32 first = byte_of(first_boxes + num_boxes, row);
#pragma unroll 1
    for (uint32 i = fresh_thread_index() % 32; i < boxes; i += 32) {
      staging.boxes[row][(first + i) % kSlashRing] = open.begin + i * kSlashBox;
    }
    num_boxes += Bytes{boxes} << 8 * row;
    open.begin += boxes * kSlashBox;
    __syncwarp();
  }

  // Boxes that fill tiles: those that are seen whole in turns, for who sees none of several tiles
  // one after the other is given one nevertheless.
  template <class Emit, class EmitTiles>
  __device__ __forceinline__ void emit_full(const Emit& emit, const EmitTiles& emit_tiles) {
    constexpr uint32 kTurns = 32 / kSingle;
    const uint32 lane = fresh_thread_index() % 32;
    const uint32 row = lane % kSingle, turn = lane / kSingle;
#pragma unroll 1
    while (true) {
      const uint32 tiles = row < kMasked ? byte_of(num_boxes, row) / kBoxes : 0;
      if (!__any_sync(0xffffffff, tiles > 0)) break;
      emit_tiles(turn < tiles, static_cast<int>(row),
                 byte_of(first_boxes, row) + static_cast<int>(turn * kBoxes));
      const Bytes taken = (tiles < kTurns ? tiles : kTurns) * kBoxes;
      take(sum_of_lanes(turn == 0 ? taken << 8 * row : Bytes{0}));
    }
#pragma unroll 1
    while (byte_of(num_boxes, kMasked) >= kBoxes) {
      emit(kMasked, byte_of(first_boxes, kMasked), kBoxes);
      take(Bytes{kBoxes} << 8 * kMasked);
    }
    __syncwarp();
  }

  // So many boxes of each row, from the first ones on.
  __device__ __forceinline__ void take(Bytes taken) {
    num_boxes -= taken;
    first_boxes = (first_boxes + taken) & (kSlashRing - 1) * kEachByte;
  }

  // The columns of a chunk that lie outside of windows.
  template <class Emit>
  __device__ __forceinline__ void add_columns(const Words& words, int chunk, int num_blocks,
                                              const Emit& emit) {
    const uint32 existing = (1u << num_blocks) - 1;
    const int first_key = first_key_of_lane(chunk);
    uint64 in_all = words.windows[0];
#pragma unroll
    for (int block = 1; block < kBlocks; ++block) {
      if (block < num_blocks) in_all &= words.windows[block];
    }
#pragma unroll 1
    for (uint64 left = words.columns & ~in_all; __any_sync(0xffffffff, left != 0);
         left &= left - 1) {
      const int bit = left != 0 ? lowest_bit(left) : 0;
      add_single(first_key + bit, left != 0 ? existing & ~words.parts_at(bit) : 0, emit);
    }
  }

  // A key of each lane, which the blocks `parts` see.
  template <class Emit>
  __device__ __forceinline__ void add_single(int key, uint32 parts, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
    Keys& single = staging.single;
#pragma unroll 1
    for (uint32 adding; (adding = __ballot_sync(0xffffffff, parts != 0)) != 0;) {
      const int place = num_single + __popc(adding & ((1u << lane) - 1));
      if (parts != 0 && place < kBlockN) {
        single.keys[place] = key;
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
          if (parts >> block & 1) atomicOr(&single.seen[block][place / 32], 1u << place % 32);
        }
        parts = 0;
      }
      num_single = min(num_single + __popc(adding), kBlockN);
      __syncwarp();
      if (num_single == kBlockN) {
        emit(kSingle, 0, kBlockN);
        __syncwarp();
        clear_single();
        num_single = 0;
      }
    }
  }

  __device__ __forceinline__ void clear_single() {
    const int lane = fresh_thread_index() % 32;
    if (lane < kBlocks * Keys::kWords) (&staging.single.seen[0][0])[lane] = 0;
    __syncwarp();
  }
};

}  // namespace girih
