// The Hopper kernel's scheduler, a warp: takes query tiles, describes them and finds the key tiles
// that they visit.
#pragma once

#include "girih/attn/bricks_sm90.cuh"
#include "girih/attn/pipeline_sm90.cuh"
#include "girih/attn/ring.cuh"
#include "girih/attn/scan.cuh"
#include "girih/attn/schedule.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/ptx/warp.cuh"

namespace girih {

template <class Config>
struct SchedulerSm90 : PipelineSm90<Config> {
  using Pipeline = PipelineSm90<Config>;
  using Pipeline::gathered_of;
  using Pipeline::kBlockM, Pipeline::kBlockN, Pipeline::kNumMmaWarpgroups;
  using Pipeline::kBoxes, Pipeline::kBoxStep, Pipeline::kKeyBox, Pipeline::kScanBox;
  using Pipeline::kBricks, Pipeline::kDocumentTiles, Pipeline::kGathers, Pipeline::kPrune;
  using Pipeline::kHeadsPerTile, Pipeline::kRowsPerHead;
  using Pipeline::kMostPassed, Pipeline::kNumVisits, Pipeline::kNumWorks;
  using Pipeline::kTellsBoxes;
  using typename Pipeline::Classes, typename Pipeline::Heads;
  using typename Pipeline::Control, typename Pipeline::Gather, typename Pipeline::Gathered;
  using typename Pipeline::Splits;
  using typename Pipeline::Visit, typename Pipeline::Work;
  using Bricks = BricksSm90<Config>;

  // Parts of a query tile that key tiles are looked for separately: where nobody passes over any,
  // the rows of a head need no more than one.
  static constexpr int kScanParts = kMostPassed == 0 && !Config::kPackHeads ? 1 : kNumMmaWarpgroups;
  static constexpr int kRowsPerPart = kScanParts == 1 ? kRowsPerHead : 64;
  using Scan = KeyScan<kScanParts>;

  // Whether key tiles may begin anywhere: masks and scores depend on distances alone.
  static constexpr bool kWindows =
      kCausalWindows<Classes> && kHeadsPerTile == 1 && !kPrune && !SplitsTiles<Config>;

  // Whether there is a tile to describe, and another one before or behind it in its series, or in
  // its block of query rows.
  enum Described : int { kNoTile, kLastTile, kMoreTiles };

  // Fills in a query tile, of several with one index that behind `taken` others.
  static __device__ __forceinline__ Described describe(Work& work, const FwdParams& params,
                                                       const Heads& heads, const InputView* inputs,
                                                       int tile, int taken = 0) {
    QueryTile at = query_tile<kCausalWindows<Classes>>(params, tile, kHeadsPerTile);
    const Sequence sequence = sequence_of(params, at.batch);
    Described described = kLastTile;
    if constexpr (kPrune) {  // longest first, as series are; the last one may be short
      const int series_behind = params.num_m_blocks - 1 - at.m_block;
      const int end = ceil_div(params.geometry.seqlen_q, kRowsPerHead) -
                      series_behind * params.tiles_per_series;
      const int begin = max(end - params.tiles_per_series, 0);
      const int last = min(end, ceil_div(sequence.geometry.seqlen_q, kRowsPerHead)) - 1;
      at.m_block = last - taken;
      if (at.m_block < begin) return kNoTile;
      if (at.m_block > begin) described = kMoreTiles;
    }
    const int first_row = at.m_block * kRowsPerHead;
    if (first_row >= sequence.geometry.seqlen_q) return kNoTile;

    const int kv_head = at.head / sequence.geometry.group_size;
    work.first_row = first_row;
    work.queries = {0, sequence.q_row + first_row, at.head, sequence.q_batch};
    work.keys = {0, sequence.k_row, kv_head, sequence.k_batch};
    work.geometry = sequence.geometry;
    work.geometry.head += at.head;
    work.geometry.head_kv += kv_head;
    work.geometry.inputs = inputs;
    work.geometry.batch = at.batch;
    work.geometry.local_head = at.head;
#pragma unroll
    for (int i = 0; i < kHeadsPerTile; ++i) {
      const auto& head = heads.rows[Heads::kCapacity == 1 ? 0 : at.head + i];
      work.head_class[i] = Classes::kCount == 1 ? 0 : head.head_class;
      work.numbers[i] = head.numbers;
      work.softcap[i] = head.softcap;
    }
    work.lse = params.lse == nullptr ? nullptr
                                     : params.lse + offset(params.lse_strides, sequence.q_batch,
                                                           sequence.q_row, at.head);
    work.out = static_cast<uint16*>(params.out) +
               offset(params.out_strides, sequence.q_batch, sequence.q_row, at.head);
    if constexpr (kBricks) {
      if (!work.place(Neighborhood(work.numbers[0]), at.m_block)) return kNoTile;
    }
    if constexpr (kPrune) {
      work.rule =
          prune_rule(work.numbers[0][Classes::kNumNumbers], work.geometry, first_row, kBlockN);
    }
    if constexpr (kWindows) begin_at_first_key(work);
    if constexpr (kDocumentTiles) return lay_tile(work, taken > 0);
    return described;
  }

  // Lets key tiles begin with the first key that some row sees, wherever it lies: rows 64 apart
  // then have fewer of them to look at, and to mask.
  static __device__ __forceinline__ void begin_at_first_key(Work& work) {
    const Geometry& geometry = work.geometry;
    const QueryRows rows{work.first_row, min(work.first_row + kRowsPerHead, geometry.seqlen_q)};
    const KeyTiles keys{1, geometry.seqlen_k};
    const Run unseen = Classes::seek(0, work.numbers[0], geometry, rows, keys, 0);
    if (unseen.kind != TileKind::empty || unseen.end >= geometry.seqlen_k) return;
    leave_keys(work, {unseen.end, geometry.seqlen_k});
  }

  // Leaves a tile some of its keys, which it counts from the first of them on. Positions stay.
  static __device__ __forceinline__ void leave_keys(Work& work, Span keys) {
    work.keys.row += keys.lo;
    work.geometry.k_start += keys.lo;
    work.geometry.seqlen_k = keys.hi - keys.lo;
  }

  // Moves a tile from its block's first row to where documents let the block begin. As far as the
  // tile knows, there are no rows behind its own.
  static __device__ __forceinline__ Described lay_tile(Work& work, bool second) {
    const DocumentTiles tiles(work.geometry, work.numbers[0][0]);
    const int end = tiles.template begin<kRowsPerHead>(work.first_row + kRowsPerHead);
    int first_row = tiles.template begin<kRowsPerHead>(work.first_row);
    if (second) first_row += kRowsPerHead;
    work.queries.row += first_row - work.first_row;
    work.first_row = first_row;
    work.geometry.seqlen_q = min(first_row + kRowsPerHead, end);
    return first_row + kRowsPerHead < end ? kMoreTiles : kLastTile;
  }

  // Where all rows of a tile are of a document, makes it the tile's sequence; by a warp.
  static __device__ __forceinline__ void enter_document(Work& work) {
    const DocumentTiles tiles(work.geometry, work.numbers[0][0]);
    const Span document = tiles.template document<kRowsPerHead>(work.first_row);
    __syncwarp();  // all have read what one writes
    if (fresh_thread_index() % 32 == 0 && document.lo < document.hi) {
      leave_keys(work, document);
      work.geometry.inputs = nullptr;  // OwnDocument
    }
    __syncwarp();
  }

  struct NothingToAdd {
    __device__ __forceinline__ void operator()(int) const {}
  };

  // The scheduler's end of the ring of visits.
  struct Announcer {
    Ring<kNumVisits> ring;
    int passed = 0;  // key tiles in a row that this lane's warpgroup was let pass over
    int seen = 0;    // whether it was given one of this query tile

    // `box`: in lane i box i. Every warpgroup is given at least one key tile of a query tile, were
    // it all masked (no box was told, or the mask hides all): the output of rows that see nothing
    // is written as others' is. add(stage) adds what visits of some kernels have besides.
    template <class Add = NothingToAdd>
    __device__ __forceinline__ void announce(Control& control, int lane, uint32 flags, int box,
                                             const Add& add = {}) {
      if (flags & kFirstVisit) seen = 0;
      bool sees = (flags >> 2 * (lane % kNumMmaWarpgroups) & 3) != 0;
      const bool last_chance = ((flags & kLastVisit) != 0) & !seen;  // as what follows: no branch
      const bool must = (kMostPassed == 0) | (passed == kMostPassed) | last_chance;
      const bool forced = must & !sees;
      sees |= must;
      passed = sees ? 0 : passed + 1;
      seen |= sees;
      flags |= (kTellsBoxes ? kWholeBoxes : kPartial) *
               two_bits_each(__ballot_sync(0xffffffff, forced && lane < kNumMmaWarpgroups));
      wait(control.visit_empty[ring.stage], ring.parity ^ 1);
      Visit& visit = control.visits[ring.stage];
      if (lane == 0) visit.flags = flags;
      if (lane < kBoxes) visit.boxes[lane] = box;
      add(ring.stage);
      release(control.visit_full[ring.stage], lane);
      __syncwarp();
      ring.advance();
    }

    // A visit for each lane that has one, in the lanes' order, none of them the query tile's first
    // or last: a key tile that the warpgroups of `sees`, a bit each, see whole and the others not.
    // write(stage, masked) adds the rest; those of `masked` are given the tile nevertheless.
    template <class Write>
    __device__ __forceinline__ void announce_whole(Control& control, int lane, bool has_one,
                                                   uint32 sees, uint32 flags, const Write& write) {
      constexpr int kPeriod = kMostPassed + 1;
      const uint32 all = __ballot_sync(0xffffffff, has_one);
      const uint32 lower_lanes = (1u << lane) - 1;
      uint32 masked = 0;
      int passed_behind = 0;
#pragma unroll
      for (int i = 0; i < kNumMmaWarpgroups; ++i) {
        const bool own = has_one && (sees >> i & 1) != 0;
        const uint32 seeing = __ballot_sync(0xffffffff, own);
        const int passed_ahead = __shfl_sync(0xffffffff, passed, i);
        // Since it was last given one, before this lane's and behind all.
        const auto passed_until = [&](uint32 lanes) {
          const uint32 given = seeing & lanes;
          if (given == 0) return __popc(all & lanes) + passed_ahead;
          return __popc(all & lanes) - __popc(all & (~0u >> __clz(given)));
        };
        if (!own && passed_until(lower_lanes) % kPeriod == kMostPassed) masked |= 1u << i;
        const int behind = passed_until(~0u) % kPeriod;
        if (lane % kNumMmaWarpgroups == i) passed_behind = behind;
      }
      passed = passed_behind;
      flags |= 2 * kPartial * two_bits_each(sees) | kPartial * two_bits_each(masked);

      int rank = __popc(all & lower_lanes);
      int left = __popc(all);
#pragma unroll 1
      while (left > 0) {
        wait(control.visit_empty[ring.stage], ring.parity ^ 1);
        const bool later = rank >= kNumVisits;
        const Ring<kNumVisits> at = ring.ahead(later ? 0 : rank);
        const bool waits =
            has_one && (later || !has_ended(control.visit_empty[at.stage], at.parity ^ 1));
        const uint32 waiting = __ballot_sync(0xffffffff, waits);
        const bool now = has_one && (waiting & (2u << lane) - 1) == 0;
        if (now) {
          control.visits[at.stage].flags = flags;
          write(at.stage, masked);
        }
        const int count = __popc(__ballot_sync(0xffffffff, now));
        if (kSpeakingLanes == 1) {
          if (now) arrive(control.visit_full[at.stage]);
        } else {
          for (int i = 0; i < count; ++i) release(control.visit_full[ring.ahead(i).stage], lane);
        }
        __syncwarp();
        has_one = has_one && !now;
        rank -= count;
        left -= count;
        ring = ring.ahead(count);
      }
    }
  };

  // Takes query tiles, describes them and finds the key tiles that they visit; by a warp.
  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads,
                                             const InputView* inputs, int* counter,
                                             Control& control, const SplitMemory* splits) {
    Announcer announcer;
    uint32 count = 0;
    int num_items = 0;
    if constexpr (SplitsTiles<Config>) num_items = Splits::num_items(params, *splits);
    constexpr bool kMayHaveMore = kDocumentTiles || kPrune;
    int index = blockIdx.x;
#pragma unroll 1
    while (true) {
      const bool none_left = index >= params.num_tiles + num_items;
      const Ring<kNumWorks> at = ring_at<kNumWorks>(count);
      Work& work = control.work[at.stage];
      wait(control.work_empty[at.stage], at.parity ^ 1);
      int described = none_left;  // a Described
      if (fresh_thread_index() % 32 == 0) {
        work.first_row = -1;
        int tile = index;
        if constexpr (SplitsTiles<Config>) {
          tile = Splits::describe(work, params, *splits, num_items, index);
        }
        if (!none_left && (!SplitsTiles<Config> || tile >= 0)) {
          described = describe(work, params, heads, inputs, tile, control.taken);
        }
        const bool more = described == kMoreTiles;
        if constexpr (kPrune) {
          work.order = control.skipped.order_of(work.rule, control.taken, more);
        }
        if constexpr (kMayHaveMore) control.taken = more ? control.taken + 1 : 0;
      }
      described = __shfl_sync(0xffffffff, described, 0);
      __syncwarp();
      if (described != kNoTile) {
        ++count;
        if constexpr (kDocumentTiles) {
          if (!none_left) enter_document(work);
        }
        if constexpr (kPrune) control.skipped.begin(work.order);
        find_visits(control, work, announcer);
        if (none_left) return;
      }
      const bool more = kMayHaveMore && control.taken > 0;
      __syncwarp();  // before the next tile's description changes it
      if (!more) index = take_query_tile(params, num_items, counter, index);
    }
  }

  // By what the series' first query tile skipped.
  static __device__ __forceinline__ bool likely_skipped(const Control& control, const Work& work,
                                                        int n) {
    return control.skipped.contain(n) && work.rule.may_skip(n);
  }

  // Behind the last of the skipped tiles; by a warp.
  static __device__ __forceinline__ bool begins_rest(Work& work) {
    if constexpr (kPrune) {
      const bool begins = work.order == KeyOrder::kSkippedFirst;
      __syncwarp();
      if (begins && fresh_thread_index() % 32 == 0) work.order = KeyOrder::kRest;
      __syncwarp();
      return begins;
    }
    return false;
  }

  // Whether it is a key tile's turn.
  static __device__ __forceinline__ bool is_due(const Control& control, const Work& work, int n) {
    return work.order < KeyOrder::kSkippedFirst ||
           likely_skipped(control, work, n) == (work.order == KeyOrder::kSkippedFirst);
  }

  // A visit is announced when the next one's first box has been found, or that there is none.
  static __device__ __forceinline__ void find_visits(Control& control, Work& work,
                                                     Announcer& announcer) {
    if constexpr (kBricks) return Bricks::find_visits(control, work, announcer);
    if constexpr (kGathers) {
      if (work.first_row >= 0 && SlashClasses<Classes>::contain(work.head_class[0])) {
        gather_visits(control, work, announcer);
        return;
      }
    }
    const KeyTiles boxes{kScanBox, work.geometry.seqlen_k};
    const int count = work.first_row < 0 ? 0 : boxes.count();
    const auto seek = [&](int part, int n) -> Run {
      const int begin = work.first_row_of(part);
      const QueryRows rows{begin, min(begin + kRowsPerPart, work.geometry.seqlen_q)};
      if (rows.begin >= rows.end) return {count, TileKind::empty};
      const int head = Work::head_of(part);
      if constexpr (kPrune) {
        const Run run =
            Classes::seek(work.head_class[0], work.numbers[0], work.geometry, rows, boxes, n);
        const bool later = run.kind != TileKind::empty && !is_due(control, work, n);
        return later ? Run{n + 1, TileKind::empty} : run;
      } else if constexpr (kHeadsPerTile == 1) {
        return Classes::seek(work.head_class[0], work.numbers[0], work.geometry, rows, boxes, n);
      } else {
        return Classes::seek(work.head_class[head], work.numbers[head], work.geometry_of(part),
                             rows, boxes, n);
      }
    };
    const int lane = fresh_thread_index() % 32;
    Scan scan;
    int end = count;
    if constexpr (SplitsTiles<Config>) {
      scan.next_look = work.first_box;
      end = min(end, work.end_box);
    }
    uint32 flags = kFirstVisit;
    uint32 visible = 0, full = Scan::kAllParts;  // by some box, by all
    uint32 partial = 0, told = 0;                // by some box, of each: where kTellsBoxes
    int found_boxes = 0;
    const auto put_box = [&](int& box, int n) {
      if constexpr (kGathers) {
        box = n * kScanBox + lane * kKeyBox;
      } else if (lane == found_boxes) {
        box = n;
      }
    };
    constexpr int kBoxesFound = kBlockN / kScanBox;  // that fill a key tile
    int box = count * kScanBox / kBoxStep;
#pragma unroll 1
    while (true) {
      typename Scan::Found next;
      bool more;
      while (!(more = scan.next(seek, end, next)) && begins_rest(work)) scan = {};
      if (!more || found_boxes == kBoxesFound) {
        if (found_boxes < kBoxesFound) full = 0;
        flags |=
            two_bits_each(of_warpgroups(visible)) + two_bits_each(of_warpgroups(visible & full));
        if constexpr (kTellsBoxes) {
          flags |= kWholeBoxes * two_bits_each(visible & ~full & ~partial) | told << kSeenBoxesBit;
        }
        flags |= more ? of_warpgroups(next.visible) << kSeesNextBit : kLastVisit;
        if constexpr (kPrune) {  // lane 0 has the box, and writes the flags
          flags |= work.rule.may_skip(box) ? kMaySkip : 0;
          flags |= work.order == KeyOrder::kScouts ? kScouted : 0;
          flags |= work.order >= KeyOrder::kSkippedFirst && likely_skipped(control, work, box)
                       ? kLikelySkipped
                       : 0;
        }
        announcer.announce(control, lane, flags, box);
        if (!more) return;
        flags = 0;
        visible = partial = told = 0;
        full = Scan::kAllParts;
        found_boxes = 0;
        box = count * kScanBox / kBoxStep;
      }
      put_box(box, next.n);
      visible |= next.visible;
      full &= next.full;
      if constexpr (kTellsBoxes) {
        partial |= next.visible & ~next.full;
        told |= next.visible << 2 * found_boxes;
      }
      ++found_boxes;
    }
  }

  // The visits of a head of vertical_slash alone: first the keys at the tile's own rows and beyond,
  // which are masked, then what gathers of those before, which all rows of a warpgroup see alike.
  static __device__ __forceinline__ void gather_visits(Control& control, const Work& work,
                                                       Announcer& announcer) {
    using Keys = typename Gather::Keys;
    constexpr int kBlocks = Gather::kBlocks;
    Gathered& gathered = gathered_of(control);
    const int lane = fresh_thread_index() % 32;
    const int seqlen_k = work.geometry.seqlen_k;
    const int own = max(work.geometry.diagonal(work.first_row), 0);
    const int own_end = max(min(own + kBlockM, seqlen_k), own + 1);
    constexpr uint32 kAllPartial = kPartial * two_bits_each(Gather::kAll);

    // A visit is announced when it is known who sees the next one. Of who sees which of its keys a
    // lane has a word.
    uint32 flags = kFirstVisit | kAllPartial;
    int box = own + lane * kKeyBox;
    uint32 seen = 0;
    const int part = min(lane / Keys::kWords, kBlocks), word = lane % Keys::kWords;
    const auto announce = [&](uint32 further_flags) {
      const int own_lane = fresh_thread_index() % 32;  // registers are scarce
      announcer.announce(control, own_lane, flags | further_flags, box, [&](int stage) {
        if (part < kBlocks) gathered.visits[stage].seen[part][word] = seen;
      });
    };
#pragma unroll 1
    for (int first = own + kBlockN; first < own_end; first += kBlockN) {
      announce(Gather::kAll << kSeesNextBit);
      flags = kAllPartial;
      box = first + lane * kKeyBox;
    }
    const auto emit = [&](int row, int first, int count) {
      const uint32 every = part < kBlocks ? KeyWord{32 * word}.below(kBlockN) : 0;
      const uint32 next_seen = gathered.staging.seen(row, first, count, part, word);
      const auto parts_where = [&](bool holds) {
        const uint32 lanes = __ballot_sync(0xffffffff, holds);
        constexpr uint32 kFirst = (1u << Keys::kWords) - 1;
        uint32 found = 0;
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          found |= (lanes & kFirst << i * Keys::kWords) != 0 ? 1u << i : 0u;
        }
        return found;
      };
      const uint32 parts = parts_where(next_seen != 0);
      const uint32 full = Gather::kAll & ~parts_where(next_seen != every);
      announce(parts << kSeesNextBit);
      seen = next_seen;
      // What is left of the tile repeats the last, masked.
      const bool single = row == Gather::kSingle;
      if (single) {
        const int stage = announcer.ring.stage;
        wait(control.visit_empty[stage], announcer.ring.parity ^ 1);
        int* const keys = gathered.visits[stage].keys;
        const Keys& given = gathered.staging.single;
        for (int i = lane; i < kBlockN; i += 32) keys[i] = given.keys[min(i, count - 1)];
        box = 0;
      } else {
        box = gathered.staging.box(row, first + min(lane, count - 1));
      }
      flags =
          kGivenMask | (single ? kSingleKeys : 0) | (two_bits_each(parts) + two_bits_each(full));
    };
    // All but the last of the tiles at once; that one as above.
    const auto emit_tiles = [&](bool fills, int row, int first) {
      const int own_lane = fresh_thread_index() % 32;
      const uint32 parts = fills ? row + 1 : 0;
      const uint32 lanes = __ballot_sync(0xffffffff, fills);
      announce(__shfl_sync(0xffffffff, parts, lowest_bit(lanes)) << kSeesNextBit);
      const int last = 31 - __clz(lanes);
      const uint32 after = lanes & ~((2u << own_lane) - 1);
      const uint32 next_parts =
          __shfl_sync(0xffffffff, parts, after != 0 ? lowest_bit(after) : last);
      announcer.announce_whole(
          control, own_lane, fills && own_lane != last, parts,
          kGivenMask | next_parts << kSeesNextBit, [&](int stage, uint32 masked) {
#pragma unroll 1
            for (int i = 0; i < kBoxes; ++i) {
              control.visits[stage].boxes[i] = gathered.staging.box(row, first + i);
            }
#pragma unroll 1
            for (; masked != 0; masked &= masked - 1) {
              for (uint32& shown : gathered.visits[stage].seen[lowest_bit(masked)]) shown = 0;
            }
          });
      const int last_row = __shfl_sync(0xffffffff, row, last);
      box = gathered.staging.box(last_row,
                                 __shfl_sync(0xffffffff, first, last) + min(own_lane, kBoxes - 1));
      seen = gathered.staging.seen(last_row, 0, kBoxes, part, word);
      flags = kGivenMask | 2 * kPartial * two_bits_each(last_row + 1);
    };
    Gather gather(gathered.staging);
    const int blocks_left = ceil_div(work.geometry.seqlen_q - work.first_row, SlashPlane::kRows);
    gather.run(SlashPlane::of(work.geometry, work.numbers[0][0]),
               work.first_row / SlashPlane::kRows, min(blocks_left, kBlocks), min(own, seqlen_k),
               emit, emit_tiles);
    announce(kLastVisit);
  }

  // A bit for each warpgroup from one for each part.
  static __device__ __forceinline__ uint32 of_warpgroups(uint32 parts) {
    return kScanParts == 1 ? parts * ((1 << kNumMmaWarpgroups) - 1) : parts;
  }
};

}  // namespace girih
