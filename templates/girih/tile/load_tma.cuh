// Copies of tensors' rows into tiles of panels, by the copy engine.
#pragma once

#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/tma.cuh"
#include "girih/tile/smem_descriptor.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Starts the copy of a tile of kRows rows, panel after panel, which `barrier` waits for; by one
// lane. box_at(i) is where box i of kBoxRows rows starts.
template <int kRows, int kBoxRows, int kNumPanels, class BoxAt>
__device__ __forceinline__ void load_panels(uint32 tile, const TensorMap& map,
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
template <int kRows, int kNumPanels>
__device__ __forceinline__ void load_rows(uint32 tile, const TensorMap& map, const uint64& barrier,
                                          BoxOrigin keys, const int* rows) {
  mbarrier_arrive_expect(shared_address(&barrier), kNumPanels * kRows * kPanelRowBytes);
#pragma unroll 4
  for (int row = 0; row < kRows; ++row) {
    const int at = keys.row + rows[row];
#pragma unroll
    for (int panel = 0; panel < kNumPanels; ++panel) {
      tma_load(tile + (panel * kRows + row) * kPanelRowBytes, map, shared_address(&barrier),
               {panel * kPanelColumns, at, keys.head, keys.batch});
    }
  }
}

}  // namespace girih
