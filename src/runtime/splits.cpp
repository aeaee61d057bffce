#include "runtime/splits.hpp"

namespace girih::runtime {

SplitPlan plan_splits(const SplitShape& shape, const FwdParams& params,
                      std::size_t workspace_bytes_of_inputs, void* workspace) {
  SplitPlan plan;
  plan.workspace_bytes = workspace_bytes_of_inputs;
  const int most_visits = ceil_div(params.geometry.seqlen_k, shape.block_n);
  const int capacity = split_capacity(shape.num_sms, params.num_tiles, most_visits);
  if (capacity == 0) return plan;

  char* const base = static_cast<char*>(workspace);
  const auto reserve = [&]<class T>(T*& place, std::size_t count) {
    constexpr std::size_t kAlignment = 256;
    const std::size_t begin = plan.workspace_bytes;
    plan.workspace_bytes += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    place = base == nullptr ? nullptr : reinterpret_cast<T*>(base + begin);
  };
  SplitMemory& memory = plan.memory;
  const auto rows = static_cast<std::size_t>(capacity) * static_cast<std::size_t>(shape.block_m);
  reserve(memory.visits, static_cast<std::size_t>(params.num_tiles));
  reserve(memory.tiles, kMostHeavyTiles);
  reserve(memory.items, static_cast<std::size_t>(capacity) + kMostHeavyTiles);
  reserve(memory.lse, rows);
  reserve(memory.out, rows * static_cast<std::size_t>(shape.head_dim_v));
  if (base != nullptr) memory.header = reinterpret_cast<SplitHeader*>(base + kSplitHeaderOffset);
  memory.capacity = capacity;
  memory.num_sms = shape.num_sms;
  memory.most_visits = most_visits;
  return plan;
}

}  // namespace girih::runtime
