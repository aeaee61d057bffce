// Stands before templates/girih/ptx/mbarrier.cuh where device code runs on emulated warps: declared
// for code that no test runs there.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

void mbarrier_init(uint32 barrier, int arrivals);
void mbarrier_arrive(uint32 barrier);
void mbarrier_wait(uint32 barrier, uint32 parity);

}  // namespace girih
