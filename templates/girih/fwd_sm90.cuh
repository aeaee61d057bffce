// Attention forward for Hopper (sm_90a): wgmma, the copy engine, warp specialisation.
//
// A CTA stays on its multiprocessor and takes query tiles (block_m rows of one head) until none is
// left. Its first warpgroup produces: warp 2 takes query tiles, describes them and finds the key
// tiles that the mask lets them visit, running ahead into the next query tile; warp 0 starts the
// copies of Q, K and V, but where tiles are pruned warp 3 those of V; warp 1 stores finished
// output. Every other warpgroup consumes: it owns 64 query rows, keeps their scores, probabilities
// and output in registers, and passes over key tiles that only others' rows see. Of two consecutive
// key tiles it multiplies Q * K^T of the second and P * V of the first at once, and does the
// softmax of the second while the latter runs.
//
// Config offers Element (Bf16 or Fp16), kHeadDim and kHeadDimV (multiples of 16), kBlockM (64 a
// warpgroup, two or three of them), kBlockN (a multiple of 16), kNumStages (of K and of V),
// kNumQStages (2 where there is room, else 1), kKeyBox (a divisor of kBlockN, 16 or more: a key
// tile is gathered from boxes of so many keys, which the mask tells apart), kPackHeads (whether
// each consumer warpgroup has the same 64 rows of a query head of its own, all with one key/value
// head, instead of 64 of the head's kBlockM rows), kPassOver (whether warpgroups pass over key
// tiles that only others see, or mask them), kSoftcap (whether some head has one), kPrune where
// heads are pruned (see attn/prune_sm90.cuh), kElaborate where masks take the scheduler many
// registers beside three consumer warpgroups, QueryBrick and KeyBrick where tiles are bricks of a
// grid (attn/bricks_sm90.cuh), kSplits where query tiles may be split (attn/splits_sm90.cuh), Heads
// (a HeadTable) and Classes (HeadClasses).
#pragma once

#include "girih/attn/bricks_sm90.cuh"
#include "girih/attn/document_tiles.cuh"
#include "girih/attn/gather_slash.cuh"
#include "girih/attn/part_of_tile.cuh"
#include "girih/attn/prune_sm90.cuh"
#include "girih/attn/scan.cuh"
#include "girih/attn/schedule.cuh"
#include "girih/attn/scores.cuh"
#include "girih/attn/sequence.cuh"
#include "girih/attn/softmax.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/stmatrix.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/ptx/wgmma.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Whether masks take the scheduler more registers than three consumer warpgroups usually leave it;
// an entry of such a kernel says kElaborate.
template <class Config>
constexpr bool kIsElaborate = requires {
  Config::kElaborate;
};

template <class Config>
struct FwdSm90 {
  using Element = typename Config::Element;
  using Classes = typename DocumentClasses<typename Config::Classes>::Type;
  using Heads = typename Config::Heads;

  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kHeadDimV = Config::kHeadDimV;
  static constexpr int kBlockM = Config::kBlockM;
  static constexpr int kBlockN = Config::kBlockN;
  static constexpr int kNumStages = Config::kNumStages;
  static constexpr int kNumQStages = Config::kNumQStages;
  static constexpr int kNumMmaWarpgroups = kBlockM / 64;
  static constexpr int kNumThreads = 128 * (1 + kNumMmaWarpgroups);
  static constexpr int kKeyFragments = kBlockN / 8;    // n8 of the scores
  static constexpr int kDimFragments = kHeadDimV / 8;  // n8 of the output
  static constexpr int kKeyBox = Config::kKeyBox;
  static constexpr int kBoxes = kBlockN / kKeyBox;
  // Heads of vertical_slash alone visit gathered keys, the others consecutive ones (kBlockN).
  static constexpr bool kGathers = gathers_slashes(SlashClasses<Classes>::kAny, kBlockM, kBlockN,
                                                   kKeyBox, Config::kPackHeads, Config::kPassOver);
  static constexpr int kBoxStep = kGathers ? 1 : kKeyBox;  // keys, that visits count boxes in
  static constexpr int kScanBox = kGathers ? kBlockN : kKeyBox;
  static constexpr int kHeadsPerTile = Config::kPackHeads ? kNumMmaWarpgroups : 1;
  static constexpr int kRowsPerHead = kBlockM / kHeadsPerTile;
  static constexpr bool kPrune = kPrunes<Config>;
  static constexpr bool kBricks = kVisitsBricks<Config>;
  static constexpr bool kDocumentTiles =
      DocumentClasses<typename Config::Classes>::kAll && !Config::kPackHeads && !kPrune;
  static constexpr int kPanels = ceil_div(kHeadDim, kPanelColumns);
  static constexpr int kPanelsV = ceil_div(kHeadDimV, kPanelColumns);
  static constexpr FwdSm90Layout kLayout =
      fwd_sm90_layout(kBlockM, kBlockN, kHeadDim, kHeadDimV, kNumStages, kNumQStages);

  // What setmaxnreg gives each role: together what the kernel has at entry, which is 168 a thread
  // for three warpgroups and 128 for four. What consumers need not have, elaborate masks need for
  // the scheduler's seeks. Scores that are modified need them too, and decisions on tiles; behind
  // these an expression's values are few, for nothing is in flight beside them.
  static constexpr int kFragmentRegisters = fwd_sm90_fragment_registers(kBlockN, kHeadDimV) +
                                            (kNaturalScores<Classes> ? 16 : 0) +
                                            (kPrune                                  ? 24
                                             : ClassModifiers<Classes>::kExpressions ? 20
                                                                                     : 0);
  static constexpr int kConsumerRegisters = kNumMmaWarpgroups == 3
                                                ? (kIsElaborate<Config> ? 152 : 160)
                                            : kFragmentRegisters > kFwdSm90RoomyFragments ? 232
                                            : kFragmentRegisters > 160                    ? 224
                                            : kFragmentRegisters > 144                    ? 216
                                                                                          : 208;
  static constexpr int kProducerRegisters =
      kNumMmaWarpgroups == 3 ? 4 * 128 - 3 * kConsumerRegisters : 3 * 168 - 2 * kConsumerRegisters;

  static_assert(kHeadDim % 16 == 0 && kHeadDimV % 16 == 0, "wgmma sums 16 elements at a time");
  static_assert(kBlockN % 16 == 0 && kBlockN <= 256, "the widths of wgmma");
  static_assert(kBlockM == 128 || kBlockM == 192, "two or three warpgroups own 64 rows each");
  static_assert(kBlockN % kKeyBox == 0 && kKeyBox % 16 == 0 && kBoxes <= 32);
  static_assert(kNumQStages == 1 || kNumQStages == 2);
  static_assert(kNumStages >= 2, "one stage is read while the next one is filled");
  static_assert(!kPrune || (kBlockM == kPruneRows && kBoxes == 1 && !Config::kPackHeads &&
                            !Config::kPassOver),
                "all consumers visit the same key tiles and decide together on each");
  static_assert(!kBricks || (kBoxes == 1 && !Config::kPackHeads && !kPrune && !kGathers));
  static_assert(!SplitsTiles<Config> || (!kPrune && !kGathers && !kBricks));

  using Bricks = BricksSm90<FwdSm90, Config>;
  using Splits = SplitsSm90<FwdSm90>;
  using Scores = float[kKeyFragments][4];
  using Output = float[kDimFragments][4];
  using Probabilities = uint32[kKeyFragments / 2][4];

  // Named barriers: this and the next ones, one a warpgroup. 0 is __syncthreads.
  static constexpr int kWarpgroupBarrier = 1;

  // A position in a ring of stages, and the parity of the phase in which this lap fills the stage.
  template <int kStages>
  struct Ring {
    int stage = 0;
    uint32 parity = 0;
    __device__ __forceinline__ void advance() {
      if (++stage == kStages) {
        stage = 0;
        parity ^= 1;
      }
    }
  };

  // The same for rings of query tiles, whose depths are powers of two, from the tile's number.
  template <int kStages>
  static __device__ __forceinline__ Ring<kStages> ring_at(uint32 count) {
    return {static_cast<int>(count % kStages), count / kStages % 2};
  }

  // A query tile, as the scheduler describes it.
  struct TileOfWork : PrunedTile<kPrune>, BrickTile<Config> {
    int first_row;      // in its sequence; negative when no tile is left
    BoxOrigin queries;  // of the tile
    BoxOrigin keys;     // of the sequence
    Geometry geometry;  // in the first head
    int head_class[kHeadsPerTile];
    const int* numbers[kHeadsPerTile];
    float softcap[kHeadsPerTile];
    float* lse;   // of the sequence and the first head, or null
    uint16* out;  // likewise

    // Of the heads, that of a consumer warpgroup.
    static __device__ __forceinline__ int head_of(int warpgroup) {
      return kHeadsPerTile == 1 ? 0 : warpgroup;
    }
    __device__ __forceinline__ Geometry geometry_of(int warpgroup) const {
      Geometry own = geometry;
      own.head += head_of(warpgroup);
      own.local_head += head_of(warpgroup);
      return own;
    }
    __device__ __forceinline__ int first_row_of(int warpgroup) const {
      return first_row + (kHeadsPerTile == 1 ? 64 * warpgroup : 0);
    }
  };
  struct Work : TileOfWork, PartOfTile<Config> {};  // in this order: masks read the tile
  static constexpr int kNumWorks = 4;

  // A key tile that a query tile visits, as the scheduler finds it. The flags hold a TileKind for
  // each consumer warpgroup, two bits each, and whether the query tile begins or ends here; then a
  // bit for each warpgroup, which says that the mask lets it see the next key tile.
  struct Visit {
    uint32 flags;
    // In steps of kBoxStep keys; those beyond the last show nothing. Of bricks their places,
    // packed.
    int boxes[kBoxes];
  };
  static __device__ __forceinline__ uint32 kind_of(uint32 flags, int warpgroup) {
    return flags >> 2 * warpgroup & 3;
  }
  static __device__ __forceinline__ bool sees_next(uint32 flags, int warpgroup) {
    return (flags >> (kSeesNextBit + warpgroup) & 1) != 0;
  }
  static constexpr uint32 kFirstVisit = 1 << 6;
  static constexpr uint32 kLastVisit = 1 << 7;
  static constexpr int kSeesNextBit = 8;
  static constexpr uint32 kGivenMask = 1 << 11;   // GatheredKeys::seen says who sees what
  static constexpr uint32 kSingleKeys = 1 << 12;  // not boxes: GatheredKeys::keys
  static constexpr uint32 kExtraKeys = 1 << 13;   // no brick: rows behind the grid
  static constexpr uint32 kPartial = static_cast<uint32>(TileKind::partial);

  // How far ahead of the copies key tiles are looked for. More would take the next query tile
  // early, and whoever asked early and still has much to do ends last; but where elaborate masks
  // begin in a row may take as long to find as several key tiles.
  static constexpr int kNumVisits = kGathers ? kGatheredVisits : kIsElaborate<Config> ? 8 : 4;

  // Key tiles that a warpgroup may pass over in a row, for others see them: it holds a stage of V
  // until it has found the next tile to look at, and copies wait for that stage.
  static constexpr int kMostPassed = Config::kPassOver ? kNumStages - 1 : 0;

  // Parts of a query tile that key tiles are looked for separately: where nobody passes over any,
  // the rows of a head need no more than one.
  static constexpr int kScanParts = kMostPassed == 0 && !Config::kPackHeads ? 1 : kNumMmaWarpgroups;
  static constexpr int kRowsPerPart = kScanParts == 1 ? kRowsPerHead : 64;
  using Scan = KeyScan<kScanParts>;

  // Maps that only some kernels have.
  struct OtherMaps {
    const FwdRowMaps* rows;
    const FwdBrickMaps* bricks;
  };

  // A key tile whose V is to be loaded; which one, its K's stage still says.
  struct Pending {
    static constexpr int kNone = -1;
    BoxOrigin keys;    // of the sequence
    int rows = kNone;  // of the sequence, that may be read; or that nothing is pending
    Ring<kNumStages> ring;
  };

  // Key tiles that may be pruned: the consumers' warps vote. One of them is at most kNumStages
  // tiles ahead of another, and kNumVisits ahead of who loads V.
  static constexpr int kNumVotes = 16;
  static_assert(kNumStages < kNumVotes && kNumVisits < kNumVotes);
  using Votes = PruneVotes<kPrune, kNumMmaWarpgroups, kNumVotes>;

  // Barriers, and what the warps tell one another. `full` ends when data has come, `empty` when its
  // readers are done.
  struct Control {
    uint64 work_empty[kNumWorks];
    uint64 visit_full[kNumVisits], visit_empty[kNumVisits];
    uint64 q_full[kNumQStages], q_empty[kNumQStages], out_full[kNumQStages];
    uint64 k_full[kNumStages], k_empty[kNumStages];
    uint64 v_full[kNumStages], v_empty[kNumStages];
    uint64 v_tail;  // a V tile has come whose tail must be cleared
    Visit visits[kNumVisits];
    Visit tiles[kNumStages];  // in K's stages
    Work work[kNumWorks];
    Votes votes;
  };
  static_assert(sizeof(Control) <= kFwdSm90ControlBytes);

  // Lies behind it where keys are gathered.
  struct Gathered {
    GatheredKeys<kBlockN> visits[kNumVisits];
    GatheredKeys<kBlockN> tiles[kNumStages];  // in K's stages
    typename SlashGather<kBlockN>::Staging staging;
  };
  static_assert(!kGathers || sizeof(Gathered) == gathered_keys_bytes(kBlockN, kNumStages));
  static __device__ __forceinline__ Gathered& gathered_of(Control& control) {
    return *reinterpret_cast<Gathered*>(reinterpret_cast<unsigned char*>(&control) +
                                        kFwdSm90ControlBytes);
  }

  static __device__ __forceinline__ void wait(const uint64& barrier, uint32 parity) {
    mbarrier_wait(shared_address(&barrier), parity);
  }
  static __device__ __forceinline__ void arrive(const uint64& barrier) {
    mbarrier_arrive(shared_address(&barrier));
  }

  // A warp is done with something: one lane says so for all. compute-sanitizer's racecheck does not
  // see that __syncwarp orders the reads of the others before that, and tools/gpu_check lets all of
  // them speak for it.
  static constexpr int kSpeakingLanes = 1;
  static __device__ __forceinline__ void release(const uint64& barrier, int lane) {
    __syncwarp();
    if (lane < kSpeakingLanes) arrive(barrier);
  }

  // --- Producing ---

  // Starts the copy of a tile of kRows rows, panel after panel, which `barrier` waits for; by one
  // lane. box_at(i) is where box i of kBoxRows rows starts.
  template <int kRows, int kBoxRows, int kNumPanels, class BoxAt>
  static __device__ __forceinline__ void load_panels(uint32 tile, const TensorMap& map,
                                                     const uint64& barrier, const BoxAt& box_at) {
    mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kRows * kPanelRowBytes);
#pragma unroll
    for (int box = 0; box < kRows / kBoxRows; ++box) {
      const BoxOrigin at = box_at(box);
#pragma unroll
      for (int panel = 0; panel < kNumPanels; ++panel) {
        tma_load(tile + (panel * kRows + box * kBoxRows) * kPanelRowBytes, map,
                 shared_address(&barrier), {panel * kPanelColumns, at.row, at.head, at.batch});
      }
    }
  }

  // The same for the rows of single keys.
  template <int kNumPanels>
  static __device__ __forceinline__ void load_rows(uint32 tile, const TensorMap& map,
                                                   const uint64& barrier, BoxOrigin keys,
                                                   const int* rows) {
    mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kBlockN * kPanelRowBytes);
#pragma unroll 4
    for (int row = 0; row < kBlockN; ++row) {
      const int at = keys.row + rows[row];
#pragma unroll
      for (int panel = 0; panel < kNumPanels; ++panel) {
        tma_load(tile + (panel * kBlockN + row) * kPanelRowBytes, map, shared_address(&barrier),
                 {panel * kPanelColumns, at, keys.head, keys.batch});
      }
    }
  }

  // Whether a block of query rows has a tile to describe, and rows behind it for another one.
  enum Described : int { kNoTile, kLastTile, kMoreTiles };

  // Fills in a query tile, the block's second one if `second`.
  static __device__ __forceinline__ Described describe(Work& work, const FwdParams& params,
                                                       const Heads& heads, const InputView* inputs,
                                                       int tile, bool second = false) {
    const QueryTile at = query_tile<kCausalWindows<Classes>>(params, tile, kHeadsPerTile);
    const Sequence sequence = sequence_of(params, at.batch);
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
    if constexpr (kPrune) {
      work.rule =
          prune_rule(work.numbers[0][Classes::kNumNumbers], work.geometry, first_row, kBlockN);
    }
    if constexpr (kDocumentTiles) return lay_tile(work, second);
    return kLastTile;
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
      work.keys.row += document.lo;
      work.geometry.q_start -= document.lo;
      work.geometry.seqlen_k = document.hi - document.lo;
      work.geometry.inputs = nullptr;  // OwnDocument
    }
    __syncwarp();
  }

  // The scheduler's end of the ring of visits.
  struct Announcer {
    Ring<kNumVisits> ring;
    int passed = 0;  // key tiles in a row that this lane's warpgroup was let pass over
    int seen = 0;    // whether it was given one of this query tile

    // `box`: in lane i box i. Every warpgroup is given at least one key tile of a query tile, were
    // it all masked: the output of rows that see nothing is written as others' is.
    __device__ __forceinline__ void announce(Control& control, uint32 flags, int box) {
      const int lane = fresh_thread_index() % 32;
      if (flags & kFirstVisit) seen = 0;
      bool sees = (flags >> 2 * (lane % kNumMmaWarpgroups) & 3) != 0;
      const bool forced =
          !sees && (kMostPassed == 0 || passed == kMostPassed || ((flags & kLastVisit) && !seen));
      sees |= forced;
      passed = sees ? 0 : passed + 1;
      seen |= sees;
      flags |= __reduce_or_sync(0xffffffff,
                                forced && lane < kNumMmaWarpgroups ? kPartial << 2 * lane : 0);
      wait(control.visit_empty[ring.stage], ring.parity ^ 1);
      Visit& visit = control.visits[ring.stage];
      if (lane == 0) visit.flags = flags;
      if (lane < kBoxes) visit.boxes[lane] = box;
      release(control.visit_full[ring.stage], lane);
      __syncwarp();
      ring.advance();
    }
  };

  // Takes query tiles, describes them and finds the key tiles that they visit; by a warp.
  static __device__ __forceinline__ void schedule(const FwdParams& params, const Heads& heads,
                                                  const InputView* inputs, int* counter,
                                                  Control& control, const SplitMemory* splits) {
    Announcer announcer;
    uint32 count = 0;
    int num_items = 0;
    if constexpr (SplitsTiles<Config>) num_items = Splits::num_items(params, *splits);
    int index = blockIdx.x;  // ~index where the second tile of a block of rows comes next
#pragma unroll 1
    for (int round = 1;; ++round) {
      const bool none_left = index >= params.num_tiles + num_items;
      const Ring<kNumWorks> at = ring_at<kNumWorks>(count);
      Work& work = control.work[at.stage];
      wait(control.work_empty[at.stage], at.parity ^ 1);
      int described = none_left;  // a Described
      if (fresh_thread_index() % 32 == 0) {
        work.first_row = -1;
        int tile = kDocumentTiles && index < 0 ? ~index : index;
        if constexpr (SplitsTiles<Config>) {
          tile = Splits::describe(work, params, *splits, num_items, index);
        }
        if (!none_left && (!SplitsTiles<Config> || tile >= 0)) {
          described = describe(work, params, heads, inputs, tile, index < 0);
        }
      }
      described = __shfl_sync(0xffffffff, described, 0);
      __syncwarp();
      if (kDocumentTiles && (index < 0 || described == kMoreTiles)) index = ~index;
      if (described != kNoTile) {
        ++count;
        if constexpr (kDocumentTiles) {
          if (!none_left) enter_document(work);
        }
        find_visits(control, work, announcer);
        if (none_left) return;
      }
      if (kDocumentTiles && index < 0) {
        --round;
        continue;
      }
      index = take_query_tile(params, num_items, counter, round);
    }
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
      if constexpr (kHeadsPerTile == 1) {
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
      const bool more = scan.next(seek, end, next);
      if (!more || found_boxes == kBoxesFound) {
        if (found_boxes < kBoxesFound) full = 0;
        flags |=
            two_bits_each(of_warpgroups(visible)) + two_bits_each(of_warpgroups(visible & full));
        flags |= more ? of_warpgroups(next.visible) << kSeesNextBit : kLastVisit;
        announcer.announce(control, flags, box);
        if (!more) return;
        flags = 0;
        visible = 0;
        full = Scan::kAllParts;
        found_boxes = 0;
        box = count * kScanBox / kBoxStep;
      }
      put_box(box, next.n);
      visible |= next.visible;
      full &= next.full;
      ++found_boxes;
    }
  }

  // The visits of a head of vertical_slash alone: first the keys at the tile's own rows and beyond,
  // which are masked, then what gathers of those before, which all rows of a warpgroup see alike.
  static __device__ __forceinline__ void gather_visits(Control& control, const Work& work,
                                                       Announcer& announcer) {
    using Gather = SlashGather<kBlockN>;
    using Keys = GatheredKeys<kBlockN>;
    Gathered& gathered = gathered_of(control);
    const int lane = fresh_thread_index() % 32;
    const int seqlen_k = work.geometry.seqlen_k;
    const int own = max(work.geometry.diagonal(work.first_row), 0);
    const int own_end = max(min(own + kBlockM, seqlen_k), own + 1);
    constexpr uint32 kBoth = kPartial | kPartial << 2;

    // A visit is announced when it is known who sees the next one.
    uint32 flags = kFirstVisit | kBoth;
    int box = own + lane * kKeyBox;
#pragma unroll 1
    for (int first = own + kBlockN; first < own_end; first += kBlockN) {
      announcer.announce(control, flags | Gather::kAll << kSeesNextBit, box);
      flags = kBoth;
      box = first + lane * kKeyBox;
    }
    const auto emit = [&](int row, int first, int count) {
      uint32 parts = 0, full = 0;
      uint32 seen[2];
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        seen[part] = gathered.staging.seen(row, first, count, part, lane);
        const uint32 every = KeyWord{32 * lane}.below(kBlockN);
        parts |= __any_sync(0xffffffff, seen[part] != 0) ? 1u << part : 0u;
        full |= __all_sync(0xffffffff, seen[part] == every) ? 1u << part : 0u;
      }
      announcer.announce(control, flags | parts << kSeesNextBit, box);

      const int stage = announcer.ring.stage;
      wait(control.visit_empty[stage], announcer.ring.parity ^ 1);
      Keys& visit = gathered.visits[stage];
      if (lane < Keys::kWords) {
        visit.seen[0][lane] = seen[0];
        visit.seen[1][lane] = seen[1];
      }
      // What is left of the tile repeats the last, masked.
      const bool single = row == Gather::kSingle;
      if (single) {
        const Keys& given = gathered.staging.single;
        for (int i = lane; i < kBlockN; i += 32) visit.keys[i] = given.keys[min(i, count - 1)];
        box = 0;
      } else {
        box = gathered.staging.box(row, first + min(lane, count - 1));
      }
      flags =
          kGivenMask | (single ? kSingleKeys : 0) | (two_bits_each(parts) + two_bits_each(full));
    };
    Gather gather(gathered.staging);
    gather.run(
        SlashPlane::of(work.geometry, work.numbers[0][0]), work.first_row / SlashPlane::kRows,
        work.first_row + SlashPlane::kRows < work.geometry.seqlen_q, min(own, seqlen_k), emit);
    announcer.announce(control, flags | kLastVisit, box);
  }

  // A bit for each warpgroup from one for each part.
  static __device__ __forceinline__ uint32 of_warpgroups(uint32 parts) {
    return kScanParts == 1 ? parts * ((1 << kNumMmaWarpgroups) - 1) : parts;
  }

  static __device__ __forceinline__ uint32 two_bits_each(uint32 bits) {
    return (bits & 1) | (bits & 2) << 1 | (bits & 4) << 2;
  }

  // Starts the copy of a V; with `kept`, of that visit's.
  static __device__ __forceinline__ void load_values(const FwdParams& params,
                                                     const FwdTensorMaps& maps,
                                                     const OtherMaps& others, Control& control,
                                                     unsigned char* shared, const Pending& pending,
                                                     uint32& tail_parity,
                                                     const Visit* kept = nullptr) {
    const int stage = pending.ring.stage;
    const Visit& visit = kept == nullptr ? control.tiles[stage] : *kept;
    unsigned char* tile = shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    if constexpr (kBricks) {
      wait(control.v_empty[stage], pending.ring.parity ^ 1);
      if (elect_one()) {
        Bricks::template load_keys<kPanelsV>(shared_address(tile), others.bricks->v, maps.v,
                                             control.v_full[stage], params.v_strides.head,
                                             pending.keys, visit);
      }
      __syncwarp();
      return;
    }
    if constexpr (kGathers) {
      if (visit.flags & kSingleKeys) {  // of the sequence, all of them
        wait(control.v_empty[stage], pending.ring.parity ^ 1);
        if (elect_one()) {
          load_rows<kPanelsV>(shared_address(tile), others.rows->v, control.v_full[stage],
                              pending.keys, gathered_of(control).tiles[stage].keys);
        }
        __syncwarp();
        return;
      }
    }
    bool whole = true;
#pragma unroll
    for (int i = 0; i < kBoxes; ++i) whole &= rows_of(pending, visit, i) == kKeyBox;
    wait(control.v_empty[stage], pending.ring.parity ^ 1);
    if (elect_one()) {
      load_panels<kBlockN, kKeyBox, kPanelsV>(
          shared_address(tile), maps.v, whole ? control.v_full[stage] : control.v_tail,
          [&](int box) { return box_at(pending.keys, visit, box); });
    }
    __syncwarp();
    if (!whole) {
      wait(control.v_tail, tail_parity);
      tail_parity ^= 1;
#pragma unroll 1
      for (int i = 0; i < kBoxes; ++i) {
        zero_tail(tile + i * kKeyBox * kPanelRowBytes, rows_of(pending, visit, i));
      }
      fence_proxy_async();
      __syncwarp();
      if (elect_one()) arrive(control.v_full[stage]);
      __syncwarp();
    }
  }

  static __device__ __forceinline__ BoxOrigin box_at(BoxOrigin keys, const Visit& visit, int box) {
    keys.row += visit.boxes[box] * kBoxStep;
    return keys;
  }

  // Of a box, that may be read.
  static __device__ __forceinline__ int rows_of(const Pending& pending, const Visit& visit,
                                                int box) {
    return min(max(pending.rows - visit.boxes[box] * kBoxStep, 0), kKeyBox);
  }

  // Rows that are another sequence's, or that nobody has written, become zeros: a probability of 0
  // times NaN would be NaN.
  static __device__ __forceinline__ void zero_tail(unsigned char* box, int rows) {
#pragma unroll 1
    for (uint32 chunk = rows * 8 + fresh_thread_index() % 32; chunk < kKeyBox * 8; chunk += 32) {
#pragma unroll
      for (int panel = 0; panel < kPanelsV; ++panel) {
        *reinterpret_cast<uint4*>(box + panel * kBlockN * kPanelRowBytes + chunk * 16) = {};
      }
    }
  }

  // Loads Q, K and V of what is visited, as soon as stages are free.
  static __device__ __forceinline__ void load(const FwdParams& params, const FwdTensorMaps& maps,
                                              const OtherMaps& others, Control& control,
                                              unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    Ring<kNumVisits> visits;
    Ring<kNumStages> keys;
    // V goes one tile behind K, as it is used; what is due goes next. A kernel that prunes has
    // another warp for it, and nothing pending here.
    Pending pending{}, due{};
    uint32 tail_parity = 0;
    uint32 count = 0;  // of query tiles
    const bool foreign_tails = params.cu_seqlens_k != nullptr || params.seqused_k != nullptr;
    const auto make_due = [&] {
      due = pending;
      pending.rows = Pending::kNone;
      return due.rows != Pending::kNone;
    };
#pragma unroll 1
    while (true) {
      if (!kPrune && due.rows != Pending::kNone) {
        load_values(params, maps, others, control, shared, due, tail_parity);
        due.rows = Pending::kNone;
      }
      const uint64& announced = control.visit_full[visits.stage];
      if (!mbarrier_has_ended(shared_address(&announced), visits.parity)) {
        if (make_due()) continue;
        wait(announced, visits.parity);
      }
      const Visit& visit = control.visits[visits.stage];
      const uint32 flags = visit.flags;
      const Work& work = control.work[count % kNumWorks];
      if (flags & kFirstVisit) {
        const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
        const bool none_left = work.first_row < 0;
        // The output of the tile before needs its last V before it makes room in Q's only stage.
        if ((kNumQStages == 1 || none_left) && make_due()) continue;
        wait(control.q_empty[queries.stage], queries.parity ^ 1);
        if (elect_one()) {
          if (none_left) {
            arrive(control.q_full[queries.stage]);
          } else if constexpr (kBricks) {
            Bricks::template load<typename Config::QueryBrick, kPanels>(
                shared_address(shared) + queries.stage * kLayout.q_stage_bytes, others.bricks->q,
                control.q_full[queries.stage], params.q_strides.head, work.queries, work.origin);
          } else {
            load_panels<kBlockM, kRowsPerHead, kPanels>(
                shared_address(shared) + queries.stage * kLayout.q_stage_bytes, maps.q,
                control.q_full[queries.stage], [&](int head) {
                  BoxOrigin at = work.queries;
                  at.head += head;
                  return at;
                });
          }
        }
        __syncwarp();
        if (none_left) return;
      }

      const BoxOrigin sequence = work.keys;
      const int seqlen_k = work.geometry.seqlen_k;
      wait(control.k_empty[keys.stage], keys.parity ^ 1);
      if constexpr (kGathers) {
        if (flags & kGivenMask) {
          Gathered& gathered = gathered_of(control);
          const auto* from = reinterpret_cast<const uint32*>(&gathered.visits[visits.stage]);
          auto* to = reinterpret_cast<uint32*>(&gathered.tiles[keys.stage]);
          constexpr int kWords = sizeof(GatheredKeys<kBlockN>) / sizeof(uint32);
          for (int i = lane; i < kWords; i += 32) to[i] = from[i];
          __syncwarp();
        }
      }
      const bool elected = elect_one();
      if (kGathers && kSpeakingLanes > 1 && !elected) arrive(control.k_full[keys.stage]);
      if (elected) {
        control.tiles[keys.stage] = visit;
        const uint32 tile =
            shared_address(shared) + kLayout.k_offset + keys.stage * kLayout.k_stage_bytes;
        if constexpr (kBricks) {
          Bricks::template load_keys<kPanels>(tile, others.bricks->k, maps.k,
                                              control.k_full[keys.stage], params.k_strides.head,
                                              sequence, visit);
        } else if (kGathers && (flags & kSingleKeys)) {
          load_rows<kPanels>(tile, others.rows->k, control.k_full[keys.stage], sequence,
                             gathered_of(control).tiles[keys.stage].keys);
        } else {
          load_panels<kBlockN, kKeyBox, kPanels>(
              tile, maps.k, control.k_full[keys.stage],
              [&](int box) { return box_at(sequence, visit, box); });
        }
      }
      release(control.visit_empty[visits.stage], lane);
      visits.advance();
      if (flags & kLastVisit) release(control.work_empty[count++ % kNumWorks], lane);
      make_due();
      // Without keys no row of the tile may be read; else the copy itself makes zeros of what lies
      // beyond the tensor.
      const bool some_foreign = foreign_tails || seqlen_k == 0;
      if constexpr (!kPrune) pending = {sequence, some_foreign ? seqlen_k : 1 << 30, keys};
      keys.advance();
    }
  }

  // Where key tiles are pruned: loads V of those that are kept, as soon as that is known, while K
  // runs ahead. Stages of V hold kept tiles only.
  static __device__ __forceinline__ void load_kept_values(const FwdParams& params,
                                                          const FwdTensorMaps& maps,
                                                          Control& control, unsigned char* shared) {
    const int lane = fresh_thread_index() % 32;
    const bool foreign_tails = params.cu_seqlens_k != nullptr || params.seqused_k != nullptr;
    Ring<kNumVisits> visits;
    Pending pending{};
    uint32 tail_parity = 0;
    uint32 count = 0;  // of query tiles
    uint32 votes = 0;
#pragma unroll 1
    while (true) {
      wait(control.visit_full[visits.stage], visits.parity);
      const Visit visit = control.visits[visits.stage];
      release(control.visit_empty[visits.stage], lane);
      visits.advance();
      const int work_stage = count % kNumWorks;
      const Work& work = control.work[work_stage];
      if (work.first_row < 0) return;
      const int seqlen_k = work.geometry.seqlen_k;
      const bool some_foreign = foreign_tails || seqlen_k == 0;
      pending.keys = work.keys;
      pending.rows = some_foreign ? seqlen_k : 1 << 30;
      const bool may_skip = work.rule.may_skip(visit.boxes[0]);
      if (visit.flags & kLastVisit) {
        ++count;
        release(control.work_empty[work_stage], lane);
      }
      if (may_skip && !control.votes.keep(votes++)) continue;
      load_values(params, maps, {nullptr, nullptr}, control, shared, pending, tail_parity, &visit);
      pending.ring.advance();
    }
  }

  // Stores finished tiles; Q's stage is free once it has been read.
  static __device__ __forceinline__ void store(const FwdParams& params, const FwdTensorMaps& maps,
                                               Control& control, unsigned char* shared) {
    for (uint32 count = 0;; ++count) {
      const Ring<kNumWorks> works = ring_at<kNumWorks>(count);
      const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
      const int stage = queries.stage;
      wait(control.q_full[stage], queries.parity);
      const Work& work = control.work[works.stage];
      if (work.first_row < 0) return;
      wait(control.out_full[stage], queries.parity);
      unsigned char* tile = shared + stage * kLayout.q_stage_bytes;
      if constexpr (kBricks) {
        Bricks::store(work, params.out_strides.row, tile);
      } else if (work.is_part()) {
        // Its consumers have stored it.
      } else if ((params.cu_seqlens_q == nullptr && !kDocumentTiles) ||
                 work.first_row + kRowsPerHead <= work.geometry.seqlen_q) {
        if (elect_one()) {
#pragma unroll
          for (int head = 0; head < kHeadsPerTile; ++head) {
#pragma unroll
            for (int panel = 0; panel < kPanelsV; ++panel) {
              tma_store(
                  maps.out,
                  shared_address(tile) + (panel * kBlockM + head * kRowsPerHead) * kPanelRowBytes,
                  {panel * kPanelColumns, work.queries.row, work.queries.head + head,
                   work.queries.batch});
            }
          }
          tma_store_commit();
          tma_store_wait_read();
        }
      } else {
        constexpr uint32 kChunksPerRow = kHeadDimV / 8;
        const uint32 chunks = (work.geometry.seqlen_q - work.first_row) * kChunksPerRow;
        for (int head = 0; head < kHeadsPerTile; ++head) {
          uint16* const out = work.out + head * params.out_strides.head;
#pragma unroll 1
          for (uint32 index = fresh_thread_index() % 32; index < chunks; index += 32) {
            const int row = index / kChunksPerRow;
            const int chunk = index % kChunksPerRow;
            *reinterpret_cast<uint4*>(out + (work.first_row + row) * params.out_strides.row +
                                      8 * chunk) =
                *reinterpret_cast<const uint4*>(tile +
                                                staged_chunk(head * kRowsPerHead + row, chunk));
          }
        }
      }
      const int lane = fresh_thread_index() % 32;
      release(control.q_empty[stage], lane);
      release(control.work_empty[works.stage], lane);
    }
  }

  // Byte offset of a 16-byte chunk of the output in its staging tile.
  static __device__ __forceinline__ int staged_chunk(int row, int chunk) {
    return chunk / 8 * kBlockM * kPanelRowBytes + row * kPanelRowBytes +
           ((chunk % 8 ^ row % 8) << 4);
  }

  // --- Consuming ---

  // Starts scores = Q * K^T.
  static __device__ __forceinline__ void score(Scores& scores, const RowOperand<kBlockM>& q,
                                               uint32 k_tile) {
    WgmmaSS<Element, kBlockN, kHeadDim>::start(scores, q, RowOperand<kBlockN>(k_tile));
  }

  // Starts output += P * V.
  static __device__ __forceinline__ void accumulate(Output& output,
                                                    const Probabilities& probabilities,
                                                    uint32 v_tile) {
    WgmmaRS<Element, kHeadDimV, kBlockN>::start(output, probabilities,
                                                ColumnOperand<kBlockN>(v_tile));
  }

  // Probabilities as wgmma's A operand: an accumulator is one, element for element.
  static __device__ __forceinline__ void pack_probabilities(Probabilities& packed,
                                                            const Scores& p) {
#pragma unroll
    for (int j = 0; j < kKeyFragments / 2; ++j) {
      packed[j][0] = pack<Element>(p[2 * j][0], p[2 * j][1]);
      packed[j][1] = pack<Element>(p[2 * j][2], p[2 * j][3]);
      packed[j][2] = pack<Element>(p[2 * j + 1][0], p[2 * j + 1][1]);
      packed[j][3] = pack<Element>(p[2 * j + 1][2], p[2 * j + 1][3]);
    }
  }

  // A key tile as a consumer's lane knows it.
  struct Tile {
    uint32 flags;
    int box;  // lane % kBoxes of the visit's

    // The key in a column of the tile; by a whole warp.
    __device__ __forceinline__ int key(int column) const {
      const int first = kBoxes == 1 ? box : __shfl_sync(0xffffffff, box, column / kKeyBox);
      return first * kBoxStep + column % kKeyBox;
    }
  };

  using Mask = TileMask<Config>;

  static __device__ __forceinline__ void cap(Scores& scores, const FwdParams& params,
                                             const Work& work, int warpgroup) {
    if constexpr (Config::kSoftcap) {
      const float softcap = work.softcap[Work::head_of(warpgroup)];
      if (softcap > 0.0f) cap_scores(scores, params.softmax_scale_log2 / softcap);
    }
  }

  // By the modifiers, which make capped scores natural; warp_row counts from the warpgroup's first.
  static __device__ __forceinline__ void modify(Scores& scores, const FwdParams& params,
                                                const Work& work, Tile tile, int warpgroup,
                                                int warp_row, int lane) {
    if constexpr (kNaturalScores<Classes>) {
      const int head = Work::head_of(warpgroup);
      modify_scores<Classes, kKeyBox>(
          scores, natural_scale(params.softmax_scale_log2, work.softcap[head]),
          work.head_class[head], work.numbers[head], work.geometry_of(warpgroup),
          work.first_row_of(warpgroup) + warp_row + lane / 4,
          [&](int column) { return tile.key(column); });
    }
  }

  // use(mask) with what a warp's rows see of the tile, where that is not all of it. `given`: the
  // tile's, or null.
  template <class Use>
  static __device__ __forceinline__ void find_mask(const Work& work, Tile tile,
                                                   const GatheredKeys<kBlockN>* given,
                                                   int warpgroup, int warp_row, int lane,
                                                   const Use& use) {
    if (kind_of(tile.flags, warpgroup) == kPartial) {
      const int head = Work::head_of(warpgroup);
      Mask mask;
      const auto key = [&](int column) { return tile.key(column); };
      const int first_row = work.first_row_of(warpgroup) + warp_row;
      if constexpr (kBricks) {
        const int brick_row = 64 * warpgroup + warp_row;
        const bool hides = mask.evaluate(work, tile.box, tile.flags & kExtraKeys,
                                         work.geometry.seqlen_k, brick_row);
        if (!hides) return;
      } else if (kGathers && (tile.flags & kGivenMask)) {
#pragma unroll
        for (int i = 0; i < mask.kWordsPerLane; ++i) {
          mask.words[i] = given->seen[warpgroup][mask.kLanesPerRow * i + lane / 16];
        }
      } else if constexpr (kHeadsPerTile == 1) {
        mask.template evaluate<Classes, min(kKeyBox, 32)>(work.head_class[0], work.numbers[0],
                                                          work.geometry, first_row, key);
      } else {
        mask.template evaluate<Classes, min(kKeyBox, 32)>(
            work.head_class[head], work.numbers[head], work.geometry_of(warpgroup), first_row, key);
      }
      use(mask);
    }
  }

  static __device__ __forceinline__ void hide(Scores& scores, const Mask& mask, int lane) {
#pragma unroll
    for (int r = 0; r < 2; ++r) mask.apply(scores, 8 * r + lane / 4, r);
  }

  static __device__ __forceinline__ void clear(Output& output) {
#pragma unroll
    for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[d][e] = 0.0f;
    }
  }

  static __device__ __forceinline__ void rescale(Output& output, const float (&shrink)[2]) {
#pragma unroll
    for (int d = 0; d < kDimFragments; ++d) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[d][e] *= shrink[e / 2];
    }
  }

  static __device__ __forceinline__ float finish(const LazySoftmax& softmax, int r,
                                                 const FwdParams& params, const Work& work,
                                                 int warpgroup, float& lse) {
    if constexpr (ClassModifiers<Classes>::kSinks) {
      const int head = Work::head_of(warpgroup);
      const float sink = ClassModifiers<Classes>::sink_logit(
          work.head_class[head], work.numbers[head], work.geometry_of(warpgroup));
      return softmax.finish(r, sink, params.empty_lse, lse);
    }
    return softmax.finish(r, params.empty_lse, lse);
  }

  // Normalises, writes lse, and puts the output where the warpgroup's own rows of Q were.
  static __device__ __forceinline__ void stage_output(unsigned char* staging,
                                                      const FwdParams& params, const Work& work,
                                                      const Output& output,
                                                      const LazySoftmax& softmax) {
    const uint32 thread = fresh_thread_index();
    const int warpgroup = thread / 128 - 1;
    const int first_row = (thread - 128) / 32 * 16;  // the warp's
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_row + 8 * r + thread % 32 / 4;
      float lse;
      factor[r] = finish(softmax, r, params, work, warpgroup, lse);
      if constexpr (SplitsTiles<Config>) {
        if (work.is_part()) {
          Splits::keep(work, output, r, row, factor[r], lse);
          continue;
        }
      }
      const int head_row = work.first_row + row % kRowsPerHead;
      if constexpr (kBricks) {
        const int token = work.token_of(Bricks::neighborhood_of(work), row);
        if (work.lse != nullptr && thread % 4 == 0 && token >= 0) work.lse[token] = lse;
      } else if (work.lse != nullptr && thread % 4 == 0 && head_row < work.geometry.seqlen_q) {
        work.lse[Work::head_of(warpgroup) * params.lse_strides.head + head_row] = lse;
      }
    }
    if constexpr (SplitsTiles<Config>) {
      if (work.is_part()) return;
    }
    // Of two columns of chunks, each lane points to one of 16 rows.
    const uint32 lane_chunk =
        shared_address(staging) + staged_chunk(first_row + thread % 16, thread % 32 / 16);
#pragma unroll
    for (int d = 0; d < kDimFragments; d += 2) {
      const uint32 chunks[4] = {
          pack<Element>(output[d][0] * factor[0], output[d][1] * factor[0]),
          pack<Element>(output[d][2] * factor[1], output[d][3] * factor[1]),
          pack<Element>(output[d + 1][0] * factor[0], output[d + 1][1] * factor[0]),
          pack<Element>(output[d + 1][2] * factor[1], output[d + 1][3] * factor[1])};
      stmatrix_x4((lane_chunk ^ d % 8 << 4) + d / 8 * kBlockM * kPanelRowBytes, chunks);
    }
  }

  // Of scores that no modifier has seen yet.
  static __device__ __forceinline__ float plain_scale_log2(const FwdParams& params, float softcap) {
    if constexpr (Config::kSoftcap) return capped_scale_log2(params.softmax_scale_log2, softcap);
    return params.softmax_scale_log2;
  }

  static __device__ __forceinline__ float score_scale_log2(const FwdParams& params, float softcap) {
    if constexpr (kNaturalScores<Classes>) return kNaturalScaleLog2;
    return plain_scale_log2(params, softcap);
  }

  static __device__ __forceinline__ void consume(const FwdParams& params, Control& control,
                                                 unsigned char* shared_bytes, int warpgroup) {
    const uint32 shared = shared_address(shared_bytes);
    const int lane = threadIdx.x % 32;
    const int warp_row = threadIdx.x / 32 % 4 * 16;
    const auto k_tile = [&](int stage) {
      return shared + kLayout.k_offset + stage * kLayout.k_stage_bytes;
    };
    const auto v_tile = [&](int stage) {
      return shared + kLayout.v_offset + stage * kLayout.v_stage_bytes;
    };
    Ring<kNumStages> keys, values;
    int passed = 0;  // key tiles whose V is to be released after that of `values`
    Tile tile{};
    uint32 count = 0;  // of query tiles
    Scores scores = {};
    Probabilities probabilities = {};
    Output output = {};
    LazySoftmax softmax;
    float shrink[2];
    float scale_log2;

    const auto work = [&]() -> const Work& { return control.work[count % kNumWorks]; };
    const auto start_values = [&] { accumulate(output, probabilities, v_tile(values.stage)); };
    const auto release_values = [&] {
      release(control.v_empty[values.stage], lane);
      values.advance();
    };
    const auto release_passed = [&] {
      for (; passed > 0; --passed) {
        wait(control.v_full[values.stage], values.parity);
        release_values();
      }
    };
    const auto finish_tile = [&](uint32 finished) {
      const int stage = finished % kNumQStages;
      const int work_stage = finished % kNumWorks;
      release_values();
      named_barrier_sync<128>(kWarpgroupBarrier + warpgroup);  // Q's rows have been read
      stage_output(shared_bytes + stage * kLayout.q_stage_bytes, params, control.work[work_stage],
                   output, softmax);
      fence_proxy_async();
      release(control.out_full[stage], lane);
      release(control.work_empty[work_stage], lane);
    };

    const auto read_tile = [&] {
      const Visit& visit = control.tiles[keys.stage];
      return Tile{visit.flags, visit.boxes[lane % kBoxes]};
    };
    // The next key tile that the warpgroup's rows see; false when the query tile has none. Others
    // are passed over: their K is released here, their V in its turn.
    const auto next_tile = [&] {
      while (true) {
        wait(control.k_full[keys.stage], keys.parity);
        tile = read_tile();
        if (kMostPassed == 0 || kind_of(tile.flags, warpgroup) != 0) return true;
        release(control.k_empty[keys.stage], lane);
        keys.advance();
        ++passed;
        if (tile.flags & kLastVisit) return false;
      }
    };
    const auto start_scores = [&] {
      score(scores,
            RowOperand<kBlockM>(shared + count % kNumQStages * kLayout.q_stage_bytes +
                                warpgroup * 64 * kPanelRowBytes),
            k_tile(keys.stage));
    };
    const auto finish_scores = [&](const GatheredKeys<kBlockN>* given) {
      cap(scores, params, work(), warpgroup);
      modify(scores, params, work(), tile, warpgroup, warp_row, lane);
      find_mask(work(), tile, given, warpgroup, warp_row, lane,
                [&](const Mask& mask) { hide(scores, mask, lane); });
    };
    const auto take_scores = [&] {
      pin_registers(scores);
      if constexpr (kGathers) {  // masks lie in K's stages
        finish_scores(&gathered_of(control).tiles[keys.stage]);
      }
      release(control.k_empty[keys.stage], lane);
      keys.advance();
      if constexpr (!kGathers) finish_scores(nullptr);
    };
    const auto next_query_tile = [&] {
      const Ring<kNumQStages> queries = ring_at<kNumQStages>(count);
      wait(control.q_full[queries.stage], queries.parity);
      return work().first_row >= 0 && next_tile();
    };

    for (bool under_way = false;; under_way = true) {
      // From one query tile to the next: its first product beside the last one of this tile, where
      // Q has another stage. Before the first and after the last query tile one of the products is
      // of what happens to lie there, and nobody looks at it: ptxas serialises wgmma under
      // conditions, and code costs compile time.
      if (under_way) {
        ++count;
        wait(control.v_full[values.stage], values.parity);
      }
      bool another;
      if constexpr (kNumQStages == 1) {
        start_values();
        wgmma_wait<0>();
        pin_registers(output);
        if (under_way) finish_tile(count - 1);
        another = next_query_tile();
        start_scores();
      } else {
        another = next_query_tile();
        start_scores();
        start_values();
      }
      wgmma_wait<0>();
      pin_registers(output);
      if (kNumQStages > 1 && under_way) finish_tile(count - 1);
      if (!another) {
        release_passed();
        return;
      }

      clear(output);
      scale_log2 = score_scale_log2(params, work().softcap[Work::head_of(warpgroup)]);
      release_passed();
      take_scores();
      softmax.start(scores, scale_log2);
      pack_probabilities(probabilities, scores);
      while (true) {
        release_passed();
        if ((tile.flags & kLastVisit) || !next_tile()) break;
        bool straight_on;  // to a key tile that the warpgroup sees
        do {
          start_scores();
          tile = read_tile();
          wait(control.v_full[values.stage], values.parity);
          start_values();
          wgmma_wait<1>();
          take_scores();
          softmax.update(scores, scale_log2, shrink);
          pin_registers(scores);
          // The wait and the vote also hold ptxas: it would wait for the output before the softmax,
          // or leave exponentials for after it.
          straight_on = kMostPassed == 0 ? (tile.flags & kLastVisit) == 0
                                         : passed == 0 && sees_next(tile.flags, warpgroup);
          if (straight_on) wait(control.k_full[keys.stage], keys.parity);
          const bool moved = softmax.moved(shrink);
          wgmma_wait<0>();
          pin_registers(output);
          release_values();
          if (moved) rescale(output, shrink);
          pack_probabilities(probabilities, scores);
        } while (straight_on);
      }
    }
  }

  // `inputs`: the pattern's, by slot; null where it has none. `counter` is 0, and is again in the
  // end; launches that may run at once have different ones, or null. `row_maps` where kGathers,
  // `brick_maps` where kBricks, `splits` where SplitsTiles.
  static __device__ __forceinline__ void run(const FwdParams& params, const Heads& heads,
                                             const InputView* inputs, const FwdTensorMaps& maps,
                                             int* counter, const FwdRowMaps* row_maps = nullptr,
                                             const FwdBrickMaps* brick_maps = nullptr,
                                             const SplitMemory* splits = nullptr) {
    extern __shared__ __align__(1024) unsigned char shared[];
    Control& control = *reinterpret_cast<Control*>(shared + kLayout.control_offset);
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    if (threadIdx.x == 0) {
      const auto init = [](const uint64& barrier, int arrivals) {
        mbarrier_init(shared_address(&barrier), arrivals);
      };
      constexpr int kConsumerWarps = 4 * kNumMmaWarpgroups;
      const auto init_releases = [&](const uint64& barrier, int warps) {
        init(barrier, warps * kSpeakingLanes);
      };
      constexpr int kLoadingWarps = kPrune ? 2 : 1;
#pragma unroll 1
      for (int i = 0; i < kNumWorks; ++i) {
        init_releases(control.work_empty[i], kConsumerWarps + kLoadingWarps + 1);
      }
#pragma unroll 1
      for (int i = 0; i < kNumVisits; ++i) {
        init_releases(control.visit_full[i], 1);
        init_releases(control.visit_empty[i], kLoadingWarps);
      }
#pragma unroll 1
      for (int i = 0; i < kNumQStages; ++i) {
        init(control.q_full[i], 1);
        init_releases(control.q_empty[i], 1);
        init_releases(control.out_full[i], kConsumerWarps);
      }
#pragma unroll 1
      for (int i = 0; i < kNumStages; ++i) {
        init(control.k_full[i], kGathers ? kSpeakingLanes : 1);
        init_releases(control.k_empty[i], kConsumerWarps);
        init(control.v_full[i], 1);
        init_releases(control.v_empty[i], kConsumerWarps);
      }
      init(control.v_tail, 1);
      control.votes.init();
      fence_mbarrier_init();
      tma_prefetch_map(maps.q);
      tma_prefetch_map(maps.k);
      tma_prefetch_map(maps.v);
      tma_prefetch_map(maps.out);
    }
    __syncthreads();

    if (warpgroup == 0) {
      shrink_registers<kProducerRegisters>();
      const int warp = __shfl_sync(0xffffffff, fresh_thread_index() / 32, 0);
      if (warp == 0) load(params, maps, {row_maps, brick_maps}, control, shared);
      if (warp == 1) store(params, maps, control, shared);
      if (warp == 2) schedule(params, heads, inputs, counter, control, splits);
      if constexpr (kPrune) {
        if (warp == 3) load_kept_values(params, maps, control, shared);
      }
    } else {
      grow_registers<kConsumerRegisters>();
      if constexpr (kPrune) {
        PrunedConsumer<FwdSm90>{params, control, shared, warpgroup - 1}.run();
      } else {
        consume(params, control, shared, warpgroup - 1);
      }
    }
  }
};

}  // namespace girih
