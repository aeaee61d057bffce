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

  // What was gathered so far; in shared memory.
  struct Staging {
    int boxes[kAll][kBoxes];  // of what the first block, the second and both see
    Keys single;
  };
  Staging& staging;
  uint32 num_boxes = 0;  // a byte for each row of staging.boxes
  int num_single = 0;

  __device__ __forceinline__ explicit SlashGather(Staging& own) : staging(own) { clear_seen(); }

  // The keys below `end`, of the first block of rows and, where it exists, the next one.
  // emit(columns, parts, count) takes what the staging holds: `count` boxes that `parts` see, a
  // bit for each block, or as many single keys. All lanes call it together.
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
      const uint32 alone = column & ~in_first;
      const uint32 alone_second = second_exists ? column & ~in_second : 0;
      uint32 columns = alone | alone_second;
      // One step a run, then one for a column of each word: what follows is long and appears once.
#pragma unroll 1
      while (true) {
        int key;
        uint32 seen;
        const uint32 changing = __ballot_sync(0xffffffff, changes != 0);
        if (changing != 0) {
          const int source = lowest_bit(changing);
          const int bit = lowest_bit(__shfl_sync(0xffffffff, changes, source));
          const int run_end = 32 * (first_word + source) + bit;
          if (parts != 0) begin = add_boxes(begin, run_end, parts, emit);
          key = begin + lane;
          seen = key < run_end ? parts : 0;
          begin = run_end;
          const uint32 here = (in_first >> bit & 1) | (in_second >> bit & 1) << 1;
          parts = __shfl_sync(0xffffffff, here, source);
          if (lane == source) changes &= changes - 1;
        } else if (__any_sync(0xffffffff, columns != 0)) {
          const int bit = columns != 0 ? lowest_bit(columns) : 0;
          key = 32 * word + bit;
          seen = columns != 0 ? (alone >> bit & 1) | (alone_second >> bit & 1) << 1 : 0;
          columns &= columns - 1;
        } else {
          break;
        }
        add_single(key, seen, emit);
      }
    }

#pragma unroll 1
    for (uint32 row = 1; row <= kAll + 1; ++row) {
      const bool single = row > kAll;
      const int count = single ? num_single : boxes_of(row);
      if (count > 0) emit(single, row & kAll, count);
    }
  }

 private:
  __device__ __forceinline__ int boxes_of(uint32 parts) const {
    return static_cast<int>(num_boxes >> 8 * (parts - 1) & 0xff);
  }

  // Of the keys [begin, end), which windows of the blocks `parts` hold, as many as fill boxes.
  // Returns where they end.
  template <class Emit>
  __device__ __forceinline__ int add_boxes(int begin, int end, uint32 parts, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
    int gathered = boxes_of(parts);
    num_boxes -= static_cast<uint32>(gathered) << 8 * (parts - 1);
#pragma unroll 1
    for (int left = (end - begin) / kSlashBox; left > 0;) {
      const int taken = min(left, kBoxes - gathered);
      if (lane < taken) staging.boxes[parts - 1][gathered + lane] = begin + lane * kSlashBox;
      begin += taken * kSlashBox;
      left -= taken;
      gathered += taken;
      if (gathered == kBoxes) {
        __syncwarp();
        emit(false, parts, kBoxes);
        __syncwarp();
        gathered = 0;
      }
    }
    num_boxes += static_cast<uint32>(gathered) << 8 * (parts - 1);
    __syncwarp();
    return begin;
  }

  // A key of each lane, which the blocks `parts` see.
  template <class Emit>
  __device__ __forceinline__ void add_single(int key, uint32 parts, const Emit& emit) {
    const int lane = fresh_thread_index() % 32;
#pragma unroll 1
    for (uint32 adding; (adding = __ballot_sync(0xffffffff, parts != 0)) != 0;) {
      const int place = num_single + __popc(adding & ((1u << lane) - 1));
      if (parts != 0 && place < kBlockN) {
        staging.single.keys[place] = key;
        if (parts & 1) atomicOr(&staging.single.seen[0][place / 32], 1u << place % 32);
        if (parts & 2) atomicOr(&staging.single.seen[1][place / 32], 1u << place % 32);
        parts = 0;
      }
      num_single = min(num_single + __popc(adding), kBlockN);
      __syncwarp();
      if (num_single == kBlockN) {
        emit(true, kAll, kBlockN);
        __syncwarp();
        clear_seen();
        num_single = 0;
      }
    }
  }

  __device__ __forceinline__ void clear_seen() {
    const int lane = fresh_thread_index() % 32;
    if (lane < Keys::kWords) staging.single.seen[0][lane] = staging.single.seen[1][lane] = 0;
    __syncwarp();
  }
};

}  // namespace girih
