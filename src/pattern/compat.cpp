#include "girih/compat.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "girih/error.hpp"

namespace girih::compat {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

Mask streaming(int sink_size, int local, const BlockSparseAttn& arguments) {
  if (!arguments.exact_streaming) {
    return block_streaming({.sink = sink_size, .local = local, .causal = arguments.is_causal});
  }
  if (local < 1) return causal() & sink(sink_size);
  if (sink_size < 1) return causal() & window({.left = local - 1});
  return causal() & (sink(sink_size) | window({.left = local - 1}));
}

// Heads with the same mask are a class, in the order of their first heads.
Pattern pattern_of(const std::vector<Mask>& masks) {
  std::vector<Pattern::HeadClass> classes;
  for (std::size_t h = 0; h < masks.size(); ++h) {
    const int head = static_cast<int>(h);
    auto found = std::find_if(classes.begin(), classes.end(),
                              [&](const auto& existing) { return existing.mask == masks[h]; });
    if (found == classes.end()) found = classes.insert(found, {.heads = {}, .mask = masks[h]});
    std::vector<HeadSet::Range>& ranges = found->heads.ranges;
    if (!ranges.empty() && ranges.back().last == head - 1) {
      ranges.back().last = head;
    } else {
      ranges.push_back({head, head});
    }
  }
  return classes.size() == 1 ? Pattern(masks[0]) : heads(std::move(classes));
}

}  // namespace

BlockSparseHeads block_sparse_attn(const BlockSparseAttn& arguments) {
  const std::vector<int>& types = arguments.head_mask_type;
  const std::vector<int>& info = arguments.streaming_info;
  if (types.empty()) refuse("head_mask_type is empty: it must have a number for each query head");
  if (arguments.exact_streaming && !arguments.is_causal) {
    refuse("exact_streaming needs is_causal");
  }
  if (!info.empty() && info.size() != 2 * types.size()) {
    refuse(
        fmt::format("streaming_info has {} numbers: {} heads need {}, a sink and a local one each",
                    info.size(), types.size(), 2 * types.size()));
  }

  std::vector<Mask> masks;
  std::vector<int> planes;
  int ones = 0;
  for (std::size_t h = 0; h < types.size(); ++h) {
    const int type = types[h];
    if (type == 1) ++ones;
    planes.push_back(type <= 0 ? -1 : (type == 1 ? ones : type) - 1);
    if (type == 0) {
      masks.push_back(arguments.is_causal ? causal() : dense());
    } else if (type > 0) {
      const Mask visible = blocks("m", {.q = 128, .kv = 128});
      masks.push_back(arguments.is_causal ? causal() & visible : visible);
    } else if (info.empty()) {
      refuse(
          fmt::format("head_mask_type of head {} is {}, but there is no streaming_info", h, type));
    } else {
      const int sink_size = info[2 * h], local = info[2 * h + 1];
      if (sink_size < 0 || local < 0) {
        refuse(fmt::format("streaming_info of head {} is [{}, {}]: both must be 0 or more", h,
                           sink_size, local));
      }
      masks.push_back(streaming(sink_size, local, arguments));
    }
  }
  return {pattern_of(masks), std::move(planes)};
}

Pattern flash_attn(const FlashAttn& arguments) {
  const int left = std::max(arguments.window_left, -1);
  const int right = std::max(arguments.window_right, -1);
  // A window that ends at the diagonal is causal, which decides what prune never skips.
  const bool is_causal = arguments.causal || right == 0;
  const Mask mask =
      is_causal ? (left < 0 ? causal() : causal() & window({.left = left}))
                : (left < 0 && right < 0 ? dense() : window({.left = left, .right = right}));
  Modifiers modifiers;
  modifiers.softcap = std::max(arguments.softcap, 0.0f);
  modifiers.alibi = arguments.alibi_slopes;
  return Pattern(mask).with(modifiers);
}

Pattern block_sparse_flash_attn(const BlockSparseFlashAttn& arguments) {
  return flash_attn(arguments).with_prune({.thresholds = "t", .kv = arguments.kv});
}

Mask local_stride(const LocalStride& arguments) {
  if (arguments.num_heads < 1) {
    refuse(fmt::format("num_heads {} must be positive", arguments.num_heads));
  }
  const int num_kv_heads = arguments.num_kv_heads.value_or(arguments.num_heads);
  if (num_kv_heads < 1 || arguments.num_heads % num_kv_heads != 0) {
    refuse(fmt::format("num_heads {} is not a multiple of num_kv_heads {}", arguments.num_heads,
                       num_kv_heads));
  }
  if (arguments.homo_head && arguments.num_dense_heads > 0) {
    refuse(fmt::format("num_dense_heads is {}: with homo_head all heads are alike",
                       arguments.num_dense_heads));
  }
  const Mask mask = strided({.local = arguments.local_blocks,
                             .stride = arguments.vert_stride,
                             .block = arguments.block_size,
                             .offset = arguments.causal ? arguments.head_sliding_offset : 0,
                             .kv_heads = num_kv_heads != arguments.num_heads,
                             .homo = arguments.causal && arguments.homo_head,
                             .dense_heads = arguments.num_dense_heads,
                             .relative = !arguments.causal});
  return arguments.causal ? causal() & mask : mask;
}

}  // namespace girih::compat
