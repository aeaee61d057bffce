// Stands before templates/girih/ptx/tma.cuh where device code runs on emulated warps: they see what
// others write in order.
#pragma once

namespace girih {

struct BoxOrigin {
  int column;
  int row;
  int head;
  int batch;
};

inline void fence_proxy_async() {}

}  // namespace girih
