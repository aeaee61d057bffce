#include "plan/bricks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string_view>
#include <tuple>

#include "pattern/atoms.hpp"

namespace girih::plan {
namespace {

bool is_neighborhood(const Mask& mask) {
  return mask.op() == Mask::Op::atom &&
         std::string_view(pattern::atom_table()[mask.atom_index()].name) ==
             Neighborhood::kInfo.name;
}

// Why heads whose neighborhoods have these numbers take no bricks, or "".
std::string reason_against(const std::vector<int>& numbers, const std::vector<int>& first) {
  int long_axes = 0;
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    const int extent = numbers[Neighborhood::kGrid + axis];
    if (extent != first[Neighborhood::kGrid + axis]) return "heads have different grids";
    if (extent > kMostGridExtent) {
      return fmt::format("an axis of {} tokens is longer than {}", extent, kMostGridExtent);
    }
    const int dilation = numbers[Neighborhood::kDilation + axis];
    if (dilation != first[Neighborhood::kDilation + axis]) return "heads have different dilations";
    if (dilation > kMostBrickDilation) {
      return fmt::format("a dilation of {} is greater than {}", dilation, kMostBrickDilation);
    }
    long_axes += extent > 1;
  }
  return long_axes > 1 ? "" : "the grid has one axis of more than one token";
}

// Of an axis: bricks of rows or their parts, and key bricks; summed over the former, the
// latter that are visited, and full.
struct AxisCounts {
  std::int64_t rows = 0, keys = 0, visited = 0, full = 0;
};

AxisCounts count_axis(const Neighborhood& n, int axis, int rows, int keys) {
  AxisCounts counts;
  for (int residue = 0; residue < n.dilation(axis); ++residue) {
    const int length = ceil_div(n.extent(axis) - residue, n.dilation(axis));
    for (int first = 0; first < length; first += rows) {
      Span visible, full;
      view_axis(n, axis, length, first, rows, keys, visible, full);
      ++counts.rows;
      counts.visited += max(visible.hi - visible.lo, 0);
      counts.full += max(full.hi - full.lo, 0);
    }
    counts.keys += ceil_div(length, keys);
  }
  return counts;
}

// Remembers what axes count.
class Counter {
 public:
  explicit Counter(const Neighborhood& n) : n_(n) {}
  AxisCounts of(GridPoint rows, GridPoint keys) {
    AxisCounts product{1, 1, 1, 1};
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      const auto [at, fresh] = known_.try_emplace({axis, rows.on(axis), keys.on(axis)});
      if (fresh) at->second = count_axis(n_, axis, rows.on(axis), keys.on(axis));
      product.rows *= at->second.rows;
      product.keys *= at->second.keys;
      product.visited *= at->second.visited;
      product.full *= at->second.full;
    }
    return product;
  }

 private:
  Neighborhood n_;
  std::map<std::tuple<int, int, int>, AxisCounts> known_;
};

std::vector<GridPoint> boxes_of(int tokens, bool (*suits)(GridPoint)) {
  std::vector<GridPoint> boxes;
  for (int c = 1; c <= min(tokens, kMostBrickExtent); c *= 2) {
    for (int b = 1; tokens % c == 0 && b <= min(tokens / c, kMostBrickExtent); ++b) {
      const GridPoint box{tokens / c / b, b, c};
      if (box.volume() == tokens && suits(box)) boxes.push_back(box);
    }
  }
  return boxes;
}

bool has_places_for(const Neighborhood& n, GridPoint keys) {
  const GridPoint bricks = grid_of(n).bricks_of_group(keys);
  return max(max(bricks.a, bricks.b), bricks.c) <= kMostBricksOnAxis;
}

}  // namespace

std::string reason_against_bricks(const Pattern& pattern, const Problem& problem) {
  if (problem.layout == Layout::thd) return "sequences are packed";
  if (problem.partial_keys) return "launches may give seqused_k or leftpad_k";
  const std::vector<int>* first = nullptr;
  for (const int c : pattern.class_of_head(problem)) {
    const Pattern::HeadClass& head_class = pattern.classes()[c];
    if (!is_neighborhood(head_class.mask)) {
      return fmt::format("heads see '{}', which is not a neighborhood alone",
                         head_class.mask.text());
    }
    Modifiers others = head_class.modifiers;
    others.softcap = 0;
    if (others != Modifiers{}) return "heads have modifiers other than softcap";
    const std::vector<int>& numbers = head_class.mask.numbers();
    if (first == nullptr) first = &numbers;
    const std::string reason = reason_against(numbers, *first);
    if (!reason.empty()) return reason;
  }
  return "";
}

std::vector<BrickHeads> brick_heads(const Pattern& pattern, const Problem& problem) {
  if (!reason_against_bricks(pattern, problem).empty()) return {};
  std::map<std::vector<int>, BrickHeads> windows;
  for (const int c : pattern.class_of_head(problem)) {
    const Mask& mask = pattern.classes()[c].mask;
    ++windows.try_emplace(mask.numbers(), BrickHeads{mask}).first->second.count;
  }
  std::vector<BrickHeads> heads;
  for (const auto& [numbers, own] : windows) heads.push_back(own);
  return heads;
}

BrickTiles count_tiles(std::span<const BrickHeads> heads, const Bricks& bricks, int extra_keys) {
  BrickTiles tiles;
  const GridPoint part = part_of(bricks.queries);
  for (const BrickHeads& head : heads) {
    const Neighborhood n = head.neighborhood();
    Counter counter(n);
    const AxisCounts own = counter.of(bricks.queries, bricks.keys);
    const int block_n = bricks.keys.volume();
    const int whole = extra_keys / block_n, cut = extra_keys % block_n != 0 ? 1 : 0;
    tiles.full += head.count * (own.full + own.rows * whole);
    tiles.partial += head.count * (own.visited - own.full + own.rows * cut);
    tiles.empty += head.count * (own.rows * own.keys - own.visited);
    const std::int64_t seen_by_parts = counter.of(part, bricks.keys).visited;
    tiles.parts +=
        head.count * (static_cast<double>(seen_by_parts) * part.volume() / bricks.queries.volume() +
                      static_cast<double>(own.rows * (whole + cut)));
  }
  return tiles;
}

pattern::TileCounts estimate_row_tiles(std::span<const BrickHeads> heads, int block_m,
                                       int block_n) {
  constexpr int kSamples = 16;
  pattern::TileCounts tiles;
  pattern::Budget unlimited;
  for (const BrickHeads& head : heads) {
    Geometry geometry;
    geometry.seqlen_q = geometry.seqlen_k = head.neighborhood().tokens();
    const int rows = ceil_div(geometry.seqlen_q, block_m), samples = min(rows, kSamples);
    const Span columns{0, ceil_div(geometry.seqlen_k, block_n)};
    pattern::TileCounts counts;
    for (int i = 0; i < samples; ++i) {
      const int first =
          static_cast<int>((2 * i + 1) * std::int64_t{rows} / (2 * samples)) * block_m;
      const QueryRows sample{first, min(first + block_m, geometry.seqlen_q)};
      counts +=
          pattern::count_tiles(head.mask, geometry, block_m, block_n, sample, columns, unlimited);
    }
    tiles +=
        counts.each([&](std::int64_t sampled) { return head.count * sampled * rows / samples; });
  }
  return tiles;
}

std::optional<Bricks> choose_bricks(std::span<const BrickHeads> heads, int block_m, int block_n) {
  if (heads.empty()) return std::nullopt;
  std::vector<Counter> counters;
  std::int64_t dense = 0;
  for (const BrickHeads& head : heads) {
    const Neighborhood n = head.neighborhood();
    counters.emplace_back(n);
    dense +=
        std::int64_t{head.count} * ceil_div(n.tokens(), block_m) * ceil_div(n.tokens(), block_n);
  }
  std::optional<Bricks> best;
  std::pair<std::int64_t, std::int64_t> least{dense, 0};  // tiles, and visits of their parts
  const std::vector<GridPoint> key_boxes = boxes_of(block_n, is_key_brick);
  for (const GridPoint queries : boxes_of(block_m, is_query_brick)) {
    for (const GridPoint keys : key_boxes) {
      if (!has_places_for(heads[0].neighborhood(), keys)) continue;
      std::pair<std::int64_t, std::int64_t> visits{0, 0};
      for (size_t i = 0; i < heads.size(); ++i) {
        visits.first += heads[i].count * counters[i].of(queries, keys).visited;
        if (visits.first > least.first) break;
        visits.second += heads[i].count * counters[i].of(part_of(queries), keys).visited;
      }
      if (visits >= least) continue;
      least = visits;
      best = Bricks{queries, keys};
    }
  }
  return best;
}

std::string to_string(const Neighborhood& neighborhood, GridPoint brick) {
  std::string text;
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (neighborhood.numbers[Neighborhood::kGrid + axis] == 0) continue;
    text += fmt::format("{}{}", text.empty() ? "" : "x", brick.on(axis));
  }
  return text;
}

}  // namespace girih::plan
