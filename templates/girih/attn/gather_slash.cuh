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
    int boxes[kMasked][kBoxes];
    Keys given[2];  // kMasked, whose boxes begin at `keys`, and kSingle
  };
  Staging& staging;
  uint32 num_boxes = 0;  // a byte for each row of boxes
  int num_masked = 0;
  int num_single = 0;

  __device__ __forceinline__ explicit SlashGather(Staging& own) : staging(own) {
    clear_seen(kMasked);
    clear_seen(kSingle);
  }

  // The keys below `end`, of the first block of rows and, where it exists, the next one.
  // emit(row, count) takes what a row of the staging holds: so many boxes or single keys. All lanes
  // call it together.
  template <class Emit>
  __device__ __forceinline__ void run(const SlashPlane& plane, int first_block, bool second_exists,
                                      int end, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
    const uint32* const first = plane.windows(first_block);
    const uint32* const second = second_exists ? plane.windows(first_block + 1) : nullptr;
    uint32 last_bits = 0;  // of the words before: the first block's, the second's
    int begin = 0;         // of the run of keys that the same blocks have in windows
    uint32 parts = 0;
#pragma unroll 1
    for (int first_word = 0; 32 * first_word <= end; first_word += 32) {  // runs end at `end`
      const int word = first_word + lane;
      const uint32 existing = KeyWord{32 * word}.below(end);
      uint32 in_first = 0, in_second = 0, column = 0;
      if (existing != 0) {
        in_first = first[word] & existing;
        if (second_exists) in_second = second[word] & existing;
        column = plane.columns[word] & existing;
      }
      uint32 before = __shfl_up_sync(0xffffffff, in_first >> 31 | in_second >> 31 << 1, 1);
      if (lane == 0) before = last_bits;
      last_bits = __shfl_sync(0xffffffff, in_first >> 31 | in_second >> 31 << 1, 31);
      uint32 changes = (in_first ^ (in_first << 1 | (before & 1))) |
                       (in_second ^ (in_second << 1 | before >> 1));
#pragma unroll 1
      for (uint32 changing; (changing = __ballot_sync(0xffffffff, changes != 0)) != 0;) {
        const int source = lowest_bit(changing);
        const int bit = lowest_bit(__shfl_sync(0xffffffff, changes, source));
        const int run_end = 32 * (first_word + source) + bit;
        if (parts != 0 && begin < run_end) {
          begin = add_boxes(begin, run_end, parts, emit);
          if (begin < run_end) {  // the rest, and what of the next run fits
            const uint32 below_end = KeyWord{begin}.below(end);
            add_masked(begin, bits_at(first, begin) & below_end,
                       second_exists ? bits_at(second, begin) & below_end : 0, emit);
            begin += kSlashBox;
          }
        }
        begin = max(begin, run_end);
        const uint32 here = (in_first >> bit & 1) | (in_second >> bit & 1) << 1;
        parts = __shfl_sync(0xffffffff, here, source);
        if (lane == source) changes &= changes - 1;
      }

      const uint32 alone = column & ~in_first;
      const uint32 alone_second = second_exists ? column & ~in_second : 0;
#pragma unroll 1
      for (uint32 left = alone | alone_second; __any_sync(0xffffffff, left != 0);
           left &= left - 1) {
        const int bit = left != 0 ? lowest_bit(left) : 0;
        const uint32 seen = (alone >> bit & 1) | (alone_second >> bit & 1) << 1;
        add_single(32 * word + bit, left != 0 ? seen : 0, emit);
      }
    }

#pragma unroll 1
    for (int row = 0; row <= kSingle; ++row) {
      const int count = row == kSingle ? num_single : row == kMasked ? num_masked : boxes_of(row);
      if (count > 0) emit(row, count);
    }
  }

 private:
  __device__ __forceinline__ int boxes_of(int row) const {
    return static_cast<int>(num_boxes >> 8 * row & 0xff);
  }

  // A box's bits from key `key` on.
  __device__ __forceinline__ static uint32 bits_at(const uint32* row, int key) {
    static_assert(kSlashBox == 16);
    const uint64 words = row[key / 32] | static_cast<uint64>(row[key / 32 + 1]) << 32;
    return static_cast<uint32>(words >> key % 32) & 0xffff;
  }

  // Of the keys [begin, end), which windows of the blocks `parts` hold, as many as fill boxes.
  // Returns where they end.
  template <class Emit>
  __device__ __forceinline__ int add_boxes(int begin, int end, uint32 parts, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
    const int row = static_cast<int>(parts) - 1;
    int gathered = boxes_of(row);
    num_boxes -= static_cast<uint32>(gathered) << 8 * row;
#pragma unroll 1
    for (int left = (end - begin) / kSlashBox; left > 0;) {
      const int taken = min(left, kBoxes - gathered);
      if (lane < taken) staging.boxes[row][gathered + lane] = begin + lane * kSlashBox;
      begin += taken * kSlashBox;
      left -= taken;
      gathered += taken;
      if (gathered == kBoxes) {
        __syncwarp();
        emit(row, kBoxes);
        __syncwarp();
        gathered = 0;
      }
    }
    num_boxes += static_cast<uint32>(gathered) << 8 * row;
    __syncwarp();
    return begin;
  }

  // The box from key `key` on, of which the blocks see these bits.
  template <class Emit>
  __device__ __forceinline__ void add_masked(int key, uint32 of_first, uint32 of_second,
                                             const Emit& emit) {
    Keys& masked = staging.given[0];
    if (fresh_thread_index() % 32 == 0) {
      masked.keys[num_masked] = key;
      masked.seen[0][num_masked / 2] |= of_first << num_masked % 2 * kSlashBox;
      masked.seen[1][num_masked / 2] |= of_second << num_masked % 2 * kSlashBox;
    }
    __syncwarp();
    if (++num_masked == kBoxes) {
      emit(kMasked, kBoxes);
      __syncwarp();
      clear_seen(kMasked);
      num_masked = 0;
    }
  }

  // A key of each lane, which the blocks `parts` see.
  template <class Emit>
  __device__ __forceinline__ void add_single(int key, uint32 parts, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
    Keys& single = staging.given[1];
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
        emit(kSingle, kBlockN);
        __syncwarp();
        clear_seen(kSingle);
        num_single = 0;
      }
    }
  }

  __device__ __forceinline__ void clear_seen(int row) {
    const int lane = fresh_thread_index() % 32;
    Keys& keys = staging.given[row - kMasked];
    if (lane < Keys::kWords) keys.seen[0][lane] = keys.seen[1][lane] = 0;
    __syncwarp();
  }
};

}  // namespace girih
