// Stands before templates/girih/attn/bricks_sm90.cuh where device code runs on emulated warps: no
// kernel there visits bricks, and nothing is copied.
#pragma once

namespace girih {

template <class Config>
struct BricksSm90 {};

}  // namespace girih
