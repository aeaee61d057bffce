// Stands before templates/girih/ptx/cp_async.cuh where device code runs on emulated warps: copies
// are done at once.
#pragma once

#include <cstring>

#include "girih/shared/platform.cuh"

namespace girih {

inline void cp_async_16(uint32 shared, const void* global, bool exists) {
  unsigned char* const to = emulation::shared_memory(shared);
  if (exists) {
    std::memcpy(to, global, 16);
  } else {
    std::memset(to, 0, 16);
  }
}

inline void cp_async_commit() {}

template <int kPending>
void cp_async_wait() {}

}  // namespace girih
