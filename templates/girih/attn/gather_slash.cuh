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
  using Keys = GatheredKeys<kBlockN>;
  static constexpr int kBoxes = kBlockN / kSlashBox;
  static constexpr uint32 kAll = 3;  // both blocks

  // What was gathered so far, in shared memory, in rows: boxes that the first block sees, the
  // second or both; boxes of which they see parts; single keys.
  enum Row : int { kMasked = 3, kSingle = 4 };
  struct Staging {
    SlashRows rows;                 // registers are scarce
    uint16 changes[kSlashChanges];  // keys of a chunk, and from bit kChangeBits on who sees them
    int boxes[kSingle][kSlashRing];
    uint32 masks[kSlashRing];  // of kMasked: of the first block, the second
    Keys single;

    // Of a tile of `count` boxes from number `first` on, or of so many single keys: what a block
    // sees of the 32 columns of a word. Part 2 sees nothing.
    __device__ __forceinline__ uint32 seen(int row, int first, int count, int part,
                                           int word) const {
      if (row < kMasked) {  // one of 1, 2 and 3 as bits of parts
        return KeyWord{32 * word}.below((row + 1 >> part & 1) * count * kSlashBox);
      }
      if (part == 2) return 0;
      if (row == kSingle) return single.seen[part][word];
      uint32 bits = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * word + i >= count) continue;
        const uint32 mask = masks[(first + 2 * word + i) % kSlashRing];
        bits |= (mask >> part * kSlashBox & 0xffff) << i * kSlashBox;
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
  uint32 first_boxes = 0, num_boxes = 0;
  int num_single = 0;

  __device__ __forceinline__ explicit SlashGather(Staging& own) : staging(own) { clear_single(); }

  // The keys below `end`, of the first block of rows and, where it exists, the next one, in runs
  // that the same blocks have in windows, from one change to the next.
  // emit(row, first, count) takes what a row of the staging holds: so many boxes from that one on,
  // or so many single keys. All lanes call it together.
  template <class Emit>
  __device__ __forceinline__ void run(const SlashPlane& plane, int first_block, bool second_exists,
                                      int end, const Emit& emit) {
    if (fresh_thread_index() % 32 == 0) {
      staging.rows.columns = plane.columns;
      staging.rows.windows[0] = plane.windows(first_block);
      if (second_exists) staging.rows.windows[1] = plane.windows(first_block + 1);
    }
    __syncwarp();
    Stretch open{0, 0};
    Words ahead = words_at(second_exists, 0, end);
#pragma unroll 1
    for (int chunk = 0; chunk <= end; chunk += kSlashChunk) {  // runs end at `end`
      const Words words = existing_of(ahead, chunk, end);
      ahead = words_at(second_exists, chunk + kSlashChunk, end);
      uint32 changes = changes_of(words, open.parts);
#pragma unroll 1
      for (bool more = true; more;) {
        more = __any_sync(0xffffffff, changes != 0);
        if (more) {
          const int count = list_changes(words, changes);
          add_runs(chunk, count, second_exists, end, open);
        } else if (open.parts != 0) {
          add_open_run(open, chunk + kSlashChunk);
        }
        emit_full(emit);
      }
      add_columns(words, chunk, second_exists, emit);
    }

#pragma unroll 1
    for (uint32 row = 0; row <= kSingle; ++row) {
      const int count = row == kSingle ? num_single : byte_of(num_boxes, row);
      const int first = row == kSingle ? 0 : byte_of(first_boxes, row);
      if (count > 0) emit(static_cast<int>(row), first, count);
    }
  }

 private:
  static constexpr int kChangeBits = 10;
  static_assert(kSlashChunk == 1 << kChangeBits && kSlashChanges == 32);  // one a lane

  // Keys that the same blocks have in windows, from the first one that is in no box yet.
  struct Stretch {
    int begin;
    uint32 parts;  // the blocks
  };

  // A lane's 32 keys of a chunk: those in windows of the blocks, and columns.
  struct Words {
    uint32 in_first, in_second, columns;
  };

  // As they lie in memory, which nobody waits for here.
  __device__ __forceinline__ Words words_at(bool second_exists, int chunk, int end) const {
    const int word = chunk / 32 + static_cast<int>(fresh_thread_index() % 32);
    Words words{};
    if (32 * word < end) {
      const SlashRows& rows = staging.rows;
      words.in_first = rows.windows[0][word];
      if (second_exists) words.in_second = rows.windows[1][word];
      words.columns = rows.columns[word];
    }
    return words;
  }

  // Without keys from `end` on.
  __device__ __forceinline__ static Words existing_of(const Words& words, int chunk, int end) {
    const int lane = fresh_thread_index() % 32;
    const uint32 existing = KeyWord{chunk + 32 * lane}.below(end);
    return {words.in_first & existing, words.in_second & existing, words.columns & existing};
  }

  __device__ __forceinline__ static int byte_of(uint32 bytes, uint32 row) {
    return static_cast<int>(bytes >> 8 * row & 0xff);
  }
  static constexpr uint32 kEachByte = 0x01010101;

  // A box's bits of a row of them.
  __device__ __forceinline__ static uint32 bits_at(const SlashRow& row, int key) {
    static_assert(kSlashBox == 16);
    const uint64 words = row[key / 32] | static_cast<uint64>(row[key / 32 + 1]) << 32;
    return static_cast<uint32>(words >> key % 32) & 0xffff;
  }

  // The keys that other blocks see than the key before; `parts` see the one before the chunk.
  __device__ __forceinline__ static uint32 changes_of(const Words& words, uint32 parts) {
    uint32 before =
        __shfl_up_sync(0xffffffff, words.in_first >> 31 | words.in_second >> 31 << 1, 1);
    if (fresh_thread_index() % 32 == 0) before = parts;
    return (words.in_first ^ (words.in_first << 1 | (before & 1))) |
           (words.in_second ^ (words.in_second << 1 | before >> 1));
  }

  // Moves the first of all lanes' changes to the staging, in order. Returns how many these are.
  __device__ __forceinline__ int list_changes(const Words& words, uint32& changes) {
    const int lane = fresh_thread_index() % 32;
    const int sum = sum_up_to_lane(__popc(changes));
    int rank = sum - __popc(changes);
#pragma unroll 1
    for (; changes != 0 && rank < kSlashChanges; changes &= changes - 1) {
      const int bit = lowest_bit(changes);
      const uint32 parts = (words.in_first >> bit & 1) | (words.in_second >> bit & 1) << 1;
      staging.changes[rank++] = static_cast<uint16>(32 * lane + bit | parts << kChangeBits);
    }
    __syncwarp();
    return min(__shfl_sync(0xffffffff, sum, 31), kSlashChanges);
  }

  // The runs that end at the listed changes, one a lane: as many boxes as they fill, and one with
  // masks for the rest, with what follows. The run after the last change is open then.
  __device__ __forceinline__ void add_runs(int chunk, int count, bool second_exists, int end,
                                           Stretch& open) {
    const int lane = fresh_thread_index() % 32;
    const uint32 change = lane < count ? staging.changes[lane] : 0u;
    const uint32 change_before = __shfl_up_sync(0xffffffff, change, 1);
    const auto key_of = [&](uint32 at) { return chunk + static_cast<int>(at & (kSlashChunk - 1)); };
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
    const uint32 own = length == 0 ? 0u : whole << 8 * row | (rest ? 1u << 8 * kMasked : 0u);
    const uint32 sum = sum_up_to_lane(own);
    const uint32 places = first_boxes + num_boxes + sum - own;
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
      const uint32 to = (places >> 8 * kMasked) % kSlashRing;
      const int key = begin + static_cast<int>(whole * kSlashBox);
      uint32 bits = bits_at(staging.rows.windows[0], key);
      if (second_exists) bits |= bits_at(staging.rows.windows[1], key) << kSlashBox;
      const uint32 existing = KeyWord{key}.below(end) & 0xffff;
      staging.boxes[kMasked][to] = key;
      staging.masks[to] = bits & (existing | existing << kSlashBox);
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
    num_boxes += boxes << 8 * row;
    open.begin += boxes * kSlashBox;
    __syncwarp();
  }

  // Boxes that fill tiles, the rows in turns: whoever sees none of several tiles one after the
  // other is given one nevertheless.
  template <class Emit>
  __device__ __forceinline__ void emit_full(const Emit& emit) {
    constexpr uint32 kTile = kBoxes;
    uint32 row = 0;
#pragma unroll 1
    while (true) {
      // The highest bit of a row's byte says that its boxes fill a tile.
      const uint32 full = (num_boxes + (0x80 - kTile) * kEachByte) & 0x80 * kEachByte;
      if (full == 0) break;
      const uint32 rest = full >> 8 * row << 8 * row;
      row = static_cast<uint32>(lowest_bit(rest != 0 ? rest : full)) / 8;
      emit(static_cast<int>(row), byte_of(first_boxes, row), kBoxes);
      num_boxes -= kTile << 8 * row;
      first_boxes = (first_boxes + (kTile << 8 * row)) & (kSlashRing - 1) * kEachByte;
      row = (row + 1) % uint32{kSingle};
    }
    __syncwarp();
  }

  // The columns of a chunk that lie outside of windows.
  template <class Emit>
  __device__ __forceinline__ void add_columns(const Words& words, int chunk, bool second_exists,
                                              const Emit& emit) {
    const uint32 alone = words.columns & ~words.in_first;
    const uint32 alone_second = second_exists ? words.columns & ~words.in_second : 0;
    const int first_key = chunk + 32 * static_cast<int>(fresh_thread_index() % 32);
#pragma unroll 1
    for (uint32 left = alone | alone_second; __any_sync(0xffffffff, left != 0); left &= left - 1) {
      const int bit = left != 0 ? lowest_bit(left) : 0;
      const uint32 seen = (alone >> bit & 1) | (alone_second >> bit & 1) << 1;
      add_single(first_key + bit, left != 0 ? seen : 0, emit);
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
        if (parts & 1) atomicOr(&single.seen[0][place / 32], 1u << place % 32);
        if (parts & 2) atomicOr(&single.seen[1][place / 32], 1u << place % 32);
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
    if (lane < Keys::kWords) staging.single.seen[0][lane] = staging.single.seen[1][lane] = 0;
    __syncwarp();
  }
};

}  // namespace girih
