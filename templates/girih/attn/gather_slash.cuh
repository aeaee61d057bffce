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

  // Each lane looks through so many keys by itself: with fewer there are more windows cut, each of
  // which takes one more box; with more a key tile's boxes lie so far apart that query tiles at a
  // time read other keys, and these no longer stay in L2.
  static constexpr int kKeysOfLane = 64;

  // What was gathered so far, in shared memory, in rows: boxes that the first block sees, the
  // second or both; boxes of which they see parts; single keys.
  enum Row : int { kMasked = 3, kSingle = 4 };
  struct Staging {
    SlashPlane plane;  // registers are scarce
    int boxes[kMasked][most_slash_boxes(kBlockN)];
    int masked[most_masked_boxes(kBlockN)];
    uint32 masked_bits[most_masked_boxes(kBlockN)];  // of the first block, the second
    Keys single;

    // Of a tile of `count` boxes from number `first` on, or of so many single keys: what a block
    // sees of the 32 columns that belong to a lane.
    __device__ __forceinline__ uint32 seen(int row, int first, int count, int part,
                                           int lane) const {
      if (row == kSingle) return lane < Keys::kWords ? single.seen[part][lane] : 0;
      if (row < kMasked) {
        return KeyWord{32 * lane}.below((row + 1 >> part & 1) != 0 ? count * kSlashBox : 0);
      }
      uint32 bits = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (2 * lane + i >= count) continue;
        bits |= (masked_bits[first + 2 * lane + i] >> part * kSlashBox & 0xffff) << i * kSlashBox;
      }
      return bits;
    }
    __device__ __forceinline__ int box(int row, int number) const {
      return row == kMasked ? masked[number] : boxes[row][number];
    }
  };
  Staging& staging;
  uint32 num_boxes = 0;  // a byte for each row of boxes
  int num_single = 0;

  __device__ __forceinline__ explicit SlashGather(Staging& own) : staging(own) { clear_single(); }

  // The keys below `end`, of the first block of rows and, where it exists, the next one.
  // emit(row, first, count)
  // takes what a row of the staging holds: so many boxes from that one on, or so many single keys.
  // All lanes call it together.
  template <class Emit>
  __device__ __forceinline__ void run(const SlashPlane& plane, int first_block, bool second_exists,
                                      int end, const Emit& emit) {
    if (fresh_thread_index() % 32 == 0) staging.plane = plane;
    __syncwarp();
#pragma unroll 1
    for (int begin = 0; begin < end; begin += 32 * kKeysOfLane) {
      int key = begin + static_cast<int>(fresh_thread_index() % 32) * kKeysOfLane;
      const int lane_end = min(key + kKeysOfLane, end);
#pragma unroll 1
      while (__any_sync(0xffffffff, key < lane_end)) {
        uint32 in_first = 0, in_second = 0;  // of the 32 keys from `key` on
        if (key < lane_end) {
          const uint32 existing = KeyWord{key}.below(lane_end);
          in_first = bits_at(staging.plane.windows(first_block), key) & existing;
          if (second_exists) {
            in_second = bits_at(staging.plane.windows(first_block + 1), key) & existing;
          }
        }
        key += add_run(key, in_first, in_second);
        __syncwarp();
        // In turns: whoever sees none of several tiles in a row is given one nevertheless.
#pragma unroll 1
        for (bool some = true; some;) {
          some = false;
#pragma unroll 1
          for (int row = 0; row <= kMasked; ++row) {
            if (boxes_of(row) < kBoxes) continue;
            some = true;
            num_boxes -= static_cast<uint32>(kBoxes) << 8 * row;
            emit(row, boxes_of(row), kBoxes);
            __syncwarp();
          }
        }
      }
      const int columns_end = min(begin + 32 * kKeysOfLane, end);
#pragma unroll 1
      for (int word = begin / 32; 32 * word < columns_end; word += 32) {
        add_columns(first_block, second_exists, word + fresh_thread_index() % 32, columns_end,
                    emit);
      }
    }

#pragma unroll 1
    for (int row = 0; row <= kSingle; ++row) {
      const int count = row == kSingle ? num_single : boxes_of(row);
      if (count > 0) emit(row, 0, count);
    }
  }

 private:
  __device__ __forceinline__ int boxes_of(int row) const {
    return static_cast<int>(num_boxes >> 8 * row & 0xff);
  }

  // 32 bits of a row of them.
  __device__ __forceinline__ static uint32 bits_at(const uint32* row, int key) {
    const uint64 words = row[key / 32] | static_cast<uint64>(row[key / 32 + 1]) << 32;
    return static_cast<uint32>(words >> key % 32);
  }

  // Of the keys that a lane looks at, those from the first one on that the same blocks see: as many
  // boxes as they fill, and where they end in these 32 keys one for the rest, with what follows.
  // Returns how many keys are done.
  __device__ __forceinline__ int add_run(int key, uint32 in_first, uint32 in_second) {
    static_assert(kSlashBox == 16);
    const uint32 before_lane = (1u << fresh_thread_index() % 32) - 1;
    const uint32 parts = (in_first & 1) | (in_second & 1) << 1;
    const uint32 others = (in_first ^ (0u - (parts & 1))) | (in_second ^ (0u - (parts >> 1)));
    const int length = others == 0 ? 32 : lowest_bit(others);
    const int boxes = parts == 0 ? 0 : length / kSlashBox;
    const bool rest = parts != 0 && length % kSlashBox != 0;

#pragma unroll
    for (int row = 0; row < kMasked; ++row) {
      const bool own = parts == static_cast<uint32>(row + 1);
      const uint32 some = __ballot_sync(0xffffffff, own && boxes > 0);
      const uint32 two = __ballot_sync(0xffffffff, own && boxes > 1);
      if (own && boxes > 0) {
        int* const to = staging.boxes[row] + boxes_of(row) + __popc(some & before_lane) +
                        __popc(two & before_lane);
        to[0] = key;
        if (boxes > 1) to[1] = key + kSlashBox;
      }
      num_boxes += static_cast<uint32>(__popc(some) + __popc(two)) << 8 * row;
    }
    const uint32 rests = __ballot_sync(0xffffffff, rest);
    if (rest) {
      const int to = boxes_of(kMasked) + __popc(rests & before_lane);
      const int shift = boxes * kSlashBox;  // 0 or 16
      staging.masked[to] = key + shift;
      staging.masked_bits[to] = (in_first >> shift & 0xffff) | (in_second >> shift & 0xffff)
                                                                   << kSlashBox;
    }
    num_boxes += static_cast<uint32>(__popc(rests)) << 8 * kMasked;
    return parts == 0 ? length : kSlashBox * (boxes + (rest ? 1 : 0));
  }

  // The columns of a word that lie outside of windows.
  template <class Emit>
  __device__ __forceinline__ void add_columns(int first_block, bool second_exists, int word,
                                              int end, const Emit& emit) {
    const uint32 existing = KeyWord{32 * word}.below(end);
    const uint32 column = existing == 0 ? 0 : staging.plane.columns[word] & existing;
    uint32 alone = 0, alone_second = 0;
    if (column != 0) {
      alone = column & ~staging.plane.windows(first_block)[word];
      if (second_exists) alone_second = column & ~staging.plane.windows(first_block + 1)[word];
    }
#pragma unroll 1
    for (uint32 left = alone | alone_second; __any_sync(0xffffffff, left != 0); left &= left - 1) {
      const int bit = left != 0 ? lowest_bit(left) : 0;
      const uint32 seen = (alone >> bit & 1) | (alone_second >> bit & 1) << 1;
      add_single(32 * word + bit, left != 0 ? seen : 0, emit);
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
