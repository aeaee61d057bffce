// Which key tiles a query tile visits, found by a warp: each lane looks at one key tile for some of
// the rows. A seek is long; 32 at once take as long as one.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/structure.cuh"

namespace girih {

// The query tile's rows come in kParts parts, which may see different key tiles.
template <int kParts>
struct KeyScan {
  static constexpr int kTiles = 32 / kParts;  // looked at together
  static constexpr uint32 kAllParts = (1u << kParts) - 1;

  int next_look = 0;   // the first tile that was not looked at yet
  int looked_at = 0;   // where the last look began
  uint32 visible = 0;  // what it found and was not visited yet: bit kParts * i + part
  uint32 full = 0;

  // A visited tile: which parts see some of it, and which all of it; a bit each.
  struct Found {
    int n;
    uint32 visible;
    uint32 full;
  };

  // The next of `count` tiles that some part sees; by a whole warp, the same in all lanes. False
  // when there is none. seek(part, n) is the run of tiles that tile n starts for a part.
  template <class Seek>
  __device__ __forceinline__ bool next(const Seek& seek, int count, Found& found) {
    while (visible == 0) {
      if (next_look >= count) return false;
      look(seek, count);
    }
    const int i = lowest_bit(visible) / kParts;
    found = {looked_at + i, visible >> kParts * i & kAllParts, full >> kParts * i & kAllParts};
    visible &= ~(kAllParts << kParts * i);
    return true;
  }

 private:
  template <class Seek>
  __device__ __forceinline__ void look(const Seek& seek, int count) {
    const int lane = fresh_thread_index() % 32;
    const int n = next_look + lane / kParts;
    Run run{count, TileKind::empty};
    if (lane < kTiles * kParts && n < count) run = seek(lane % kParts, n);
    const bool sees = run.kind != TileKind::empty;
    visible = __ballot_sync(0xffffffff, sees);
    full = __ballot_sync(0xffffffff, run.kind == TileKind::full);
    // Where the last tile starts empty runs for all parts, it goes on behind the shortest.
    const bool counts = lane >= (kTiles - 1) * kParts && lane < kTiles * kParts;
    const int end = !counts ? count : sees ? n + 1 : run.end;
    looked_at = next_look;
    next_look = __reduce_min_sync(0xffffffff, end);
  }
};

}  // namespace girih
