// What the warps of the Hopper kernel share: its constants, how they describe query tiles and key
// tiles to one another, and the barriers that they wait for. Whatever is a part of the kernel
// inherits from it, and begins with what it uses of it.
#pragma once

#include "girih/attn/bricks.cuh"
#include "girih/attn/document_tiles.cuh"
#include "girih/attn/gather_slash.cuh"
#include "girih/attn/part_of_tile.cuh"
#include "girih/attn/prune.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/shared/params.cuh"
#include "girih/shared/smem_layout.cuh"
#include "girih/shared/structure.cuh"
#include "girih/tile/smem_descriptor.cuh"

namespace girih {

// Whether masks take the scheduler more registers than three consumer warpgroups usually leave it;
// an entry of such a kernel says kElaborate.
template <class Config>
constexpr bool kIsElaborate = requires {
  Config::kElaborate;
};

// Flags of a visit: a TileKind for each consumer warpgroup, or kWholeBoxes, two bits each, and
// whether the query tile begins or ends here; then a bit for each warpgroup, which says that the
// mask lets it see the next key tile.
constexpr uint32 kFirstVisit = 1 << 6;
constexpr uint32 kLastVisit = 1 << 7;
constexpr int kSeesNextBit = 8;
constexpr uint32 kGivenMask = 1 << 11;      // SeenColumns says what those see who see a part
constexpr uint32 kSingleKeys = 1 << 12;     // not boxes: GatheredKeys::keys
constexpr uint32 kExtraKeys = 1 << 13;      // no brick: rows behind the grid
constexpr uint32 kMaySkip = 1 << 14;        // the consumers vote on it
constexpr uint32 kScouted = 1 << 15;        // what they decide is noted
constexpr uint32 kLikelySkipped = 1 << 16;  // not where kTellsBoxes
constexpr int kSeenBoxesBit = 16;           // from here on, where kTellsBoxes
constexpr uint32 kPartial = static_cast<uint32>(TileKind::partial);
constexpr uint32 kWholeBoxes = 3;  // of each of the tile's boxes a warpgroup sees all or nothing

__device__ __forceinline__ uint32 kind_of(uint32 flags, int warpgroup) {
  return flags >> 2 * warpgroup & 3;
}
__device__ __forceinline__ bool sees_next(uint32 flags, int warpgroup) {
  return (flags >> (kSeesNextBit + warpgroup) & 1) != 0;
}
__device__ __forceinline__ constexpr uint32 two_bits_each(uint32 bits) {
  return (bits & 1) | (bits & 2) << 1 | (bits & 4) << 2;
}

template <class Config>
struct PipelineSm90 {
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
  static constexpr int kKeyBox = Config::kKeyBox;
  static constexpr int kBoxes = kBlockN / kKeyBox;
  // Heads of vertical_slash alone visit gathered keys, the others consecutive ones (kBlockN).
  static constexpr bool kGathers = gathers_slashes(SlashClasses<Classes>::kAny, kBlockM, kBlockN,
                                                   kKeyBox, Config::kPackHeads, Config::kPassOver);
  static constexpr int kBoxStep = kGathers ? 1 : kKeyBox;  // keys, that visits count boxes in
  static constexpr int kScanBox = kGathers ? kBlockN : kKeyBox;
  // Whether flags tell who sees which of a visit's boxes, two bits a box: warpgroups may differ.
  static constexpr bool kTellsBoxes = kBoxes > 1 && kBoxes <= 8 && kNumMmaWarpgroups == 2 &&
                                      Config::kPassOver && !Config::kPackHeads && !kGathers;
  static constexpr int kHeadsPerTile = Config::kPackHeads ? kNumMmaWarpgroups : 1;
  static constexpr int kRowsPerHead = kBlockM / kHeadsPerTile;
  static constexpr bool kPrune = kPrunes<Config>;
  static constexpr bool kBricks = kVisitsBricks<Config>;
  static constexpr bool kDocumentTiles =
      DocumentClasses<typename Config::Classes>::kAll && !Config::kPackHeads && !kPrune;
  static constexpr FwdSm90Layout kLayout =
      fwd_sm90_layout(kBlockM, kBlockN, kHeadDim, kHeadDimV, kNumStages, kNumQStages);

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

  using Splits = SplitsSm90<PipelineSm90>;

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

  // A key tile that a query tile visits, as the scheduler finds it.
  struct Visit {
    uint32 flags;
    // In steps of kBoxStep keys; those beyond the last show nothing. Of bricks their places,
    // packed.
    int boxes[kBoxes];
  };

  // How far ahead of V's copies, the later ones, key tiles are looked for. More would take the next
  // query tile early, and whoever asked early and still has much to do ends last; but where
  // elaborate masks or lists begin in a row may take as long to find as several key tiles, and
  // gathering tells of many at once.
  static constexpr int kNumVisits = kGathers                                      ? kGatheredVisits
                                    : kIsElaborate<Config> || SplitsTiles<Config> ? 8
                                                                                  : 4;

  // Key tiles that a warpgroup may pass over in a row, for others see them: it holds a stage of V
  // until it has found the next tile to look at, and copies wait for that stage.
  static constexpr int kMostPassed = Config::kPassOver ? kNumStages - 1 : 0;

  // Key tiles that may be pruned: the consumers' warps vote. One of them is at most kNumStages
  // tiles ahead of another, as is who loads V, which may be kNumVisits behind.
  static constexpr int kNumVotes = 16;
  static_assert(kNumStages < kNumVotes && kNumVisits < kNumVotes);
  using Votes = PruneVotes<kPrune, kNumMmaWarpgroups, kNumVotes>;

  // Named barriers: this and the next ones, one a warpgroup. 0 is __syncthreads.
  static constexpr int kWarpgroupBarrier = 1;

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
    int taken;  // the scheduler's: of several query tiles with one index, while there are more
    Votes votes;
    SkippedTiles<kPrune> skipped;
  };
  static_assert(sizeof(Control) <= kFwdSm90ControlBytes);

  // Lies behind it where keys are gathered.
  using Gather = SlashGather<kBlockN>;
  struct Gathered {
    typename Gather::Keys visits[kNumVisits];
    typename Gather::Seen tiles[kNumStages];  // in K's stages
    typename Gather::Staging staging;
  };
  static_assert(!kGathers || sizeof(Gathered) == gathered_keys_bytes(kBlockN, kNumStages));
  static __device__ __forceinline__ Gathered& gathered_of(Control& control) {
    return *reinterpret_cast<Gathered*>(reinterpret_cast<unsigned char*>(&control) +
                                        kFwdSm90ControlBytes);
  }

  // Byte offset of a 16-byte chunk of the output in its staging tile.
  static __device__ __forceinline__ int staged_chunk(int row, int chunk) {
    return chunk / 8 * kBlockM * kPanelRowBytes + row * kPanelRowBytes +
           ((chunk % 8 ^ row % 8) << 4);
  }
};

}  // namespace girih
