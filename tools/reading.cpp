#include "reading.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "girih/shared/arithmetic.cuh"
#include "girih/shared/atoms.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/token_numbers.cuh"
#include "pattern/atoms.hpp"
#include "pattern/grid.hpp"
#include "pattern/places.hpp"

namespace girih::tools {
namespace {

// A mask as one head of one sequence sees it: numbers from inputs are read, where there are any.
Mask resolved(const Mask& mask, const Pattern& pattern, const Geometry& geometry) {
  if (geometry.inputs == nullptr || pattern.inputs().empty()) return mask;
  return mask.with_inputs([&](const std::string& name) {
    const int slot = pattern::find_input(pattern.inputs(), name);
    const InputInfo& input = pattern.inputs()[static_cast<std::size_t>(slot)];
    if (input.kind != InputInfo::Kind::number) return pattern::place_of(pattern.inputs(), slot);
    return static_cast<int>(*geometry.inputs[slot].plane(geometry.batch, geometry.local_head));
  });
}

// From the geometry of the problem's first head.
Geometry in_head(Geometry geometry, int h) {
  geometry.head += h;
  geometry.head_kv += h / geometry.group_size;
  geometry.local_head = h;
  return geometry;
}

}  // namespace

namespace {

constexpr double kMostWork = 5e7;  // about a second

// Query tiles at equal distances, so many that counting takes as long as it may.
std::vector<QueryRows> sample_of(const Mask& mask, const Geometry& geometry, int block_m,
                                 double share) {
  const int count = ceil_div(geometry.seqlen_q, block_m);
  const double part = kMostWork * share / pattern::counting_work(mask, geometry);
  const int wanted = std::max(static_cast<int>(count * part), 1);
  std::vector<QueryRows> sample;
  for (int i = 0; i < wanted; ++i) {
    const auto tile = static_cast<int>((2 * std::int64_t{i} + 1) * count / (2 * wanted));
    sample.push_back({tile * block_m, std::min((tile + 1) * block_m, geometry.seqlen_q)});
  }
  return sample;
}

}  // namespace

bool takes_long(const Mask& mask, const Geometry& geometry, double share) {
  return pattern::counting_work(mask, geometry) > kMostWork * share;
}

Counts count_or_estimate(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                         double share) {
  if (!takes_long(mask, geometry, share)) {
    return {.tiles = pattern::count_tiles(mask, geometry, block_m, block_n),
            .visible = static_cast<double>(pattern::count_visible(mask, geometry))};
  }
  Counts counts;
  for (const QueryRows& rows : sample_of(mask, geometry, block_m, share)) {
    const pattern::TileCounts own = pattern::count_tiles(mask, geometry, block_m, block_n, rows);
    counts.tiles.full += own.full;
    counts.tiles.partial += own.partial;
    counts.tiles.empty += own.empty;
    counts.visible += static_cast<double>(pattern::count_visible(mask, geometry, rows));
    counts.sampled_rows += rows.end - rows.begin;
  }
  const double factor = static_cast<double>(geometry.seqlen_q) / counts.sampled_rows;
  for (std::int64_t* number : {&counts.tiles.full, &counts.tiles.partial, &counts.tiles.empty}) {
    *number = std::llround(static_cast<double>(*number) * factor);
  }
  counts.visible *= factor;
  return counts;
}

HostInputs::HostInputs(const std::vector<verify::InputData>& data, int num_heads,
                       const Geometry& geometry) {
  for (const verify::InputData& input : data) {
    InputView view;
    switch (input.kind) {
      case InputInfo::Kind::blocks:
        words_.push_back(verify::bit_rows(input));
        view.row_stride = ceil_div(input.num_kv_blocks, 32);
        view.head_stride = std::int64_t{input.num_q_blocks} * view.row_stride;
        break;
      case InputInfo::Kind::indices:
        words_.push_back(verify::number_planes(input, view.row_stride));
        view.head_stride = std::int64_t{TokenNumbers::kIndexWordsPerSpan} * view.row_stride;
        break;
      case InputInfo::Kind::slashes:
        words_.push_back(verify::slash_planes(
            input, std::vector(static_cast<std::size_t>(input.batch), geometry), geometry.seqlen_q,
            geometry.seqlen_k));
        view.row_stride = SlashPlane::words_per_row(geometry.seqlen_k);
        view.head_stride =
            (1 + std::int64_t{ceil_div(geometry.seqlen_q, SlashPlane::kRows)}) * view.row_stride;
        break;
      case InputInfo::Kind::thresholds:
        words_.emplace_back();
        for (const float threshold : input.thresholds) {
          words_.back().push_back(std::bit_cast<std::uint32_t>(threshold));
        }
        view.row_stride = input.num_columns;
        view.head_stride = input.num_columns;
        break;
      case InputInfo::Kind::columns:
        words_.push_back(verify::number_planes(input, view.row_stride));
        view.head_stride =
            Columns::kSides * std::int64_t{TokenNumbers::kWordsPerSpan} * view.row_stride;
        break;
      case InputInfo::Kind::number:
        words_.emplace_back(input.numbers.begin(), input.numbers.end());
        view.row_stride = 1;
        view.head_stride = 1;
        break;
      case InputInfo::Kind::head_values:
      case InputInfo::Kind::key_values:
        words_.emplace_back();
        for (const float value : input.values) {
          words_.back().push_back(std::bit_cast<std::uint32_t>(value));
        }
        view.head_stride = std::max(input.seqlen_k, 1);
        break;
      case InputInfo::Kind::int_tensor:
        words_.emplace_back(input.numbers.begin(), input.numbers.end());
        break;
      case InputInfo::Kind::float_tensor:  // of scores
        words_.emplace_back();
        break;
    }
    view.data = words_.back().data();
    view.batch_stride = input.batch == 1 ? 0 : input.heads * view.head_stride;
    view.heads_per_plane = num_heads / input.heads;
    views_.push_back(view);
  }
  add_tensors(data);
}

// Behind the others: see pattern/places.hpp.
void HostInputs::add_tensors(const std::vector<verify::InputData>& data) {
  std::vector<InputInfo> inputs;
  for (const verify::InputData& input : data) {
    inputs.push_back({.name = input.name, .kind = input.kind});
  }
  views_.resize(static_cast<std::size_t>(pattern::num_places(inputs, 0)));
  for (std::size_t i = 0; i < data.size(); ++i) {
    if (!inputs[i].is_tensor()) continue;
    TensorView tensor{};
    tensor.data = words_[i].data();
    int stride = 1;
    for (std::size_t d = data[i].shape.size(); d-- > 0;) {
      tensor.extents[d] = data[i].shape[d];
      tensor.strides[d] = stride;
      stride *= data[i].shape[d];
    }
    const int place = pattern::place_of(inputs, static_cast<int>(i));
    void* const view = &views_[static_cast<std::size_t>(place)];
    std::memcpy(view, &tensor, sizeof(tensor));
  }
}

Geometry geometry_of(int seqlen_q, int seqlen_k, const Problem& problem) {
  return {.seqlen_q = seqlen_q,
          .seqlen_k = seqlen_k,
          .q_start = seqlen_k - seqlen_q,
          .head = problem.head_offset,
          .head_kv = problem.head_offset / problem.group_size(),
          .group_size = problem.group_size(),
          .num_heads = problem.heads_total()};
}

Geometry geometry_of(const verify::Case& c) {
  Geometry geometry = geometry_of(c.seqlen_q, c.seqlen_k, c.problem);
  geometry.q_start = c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q);
  geometry.k_start = c.k_start;
  return geometry;
}

void check_lengths(const Pattern& pattern, const Geometry& geometry) {
  const std::string problem =
      pattern::length_problem(pattern::grids_of(pattern), geometry.seqlen_q, geometry.seqlen_k);
  if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
}

std::vector<HeadGroup> head_groups(const Pattern& pattern, const Problem& problem,
                                   const Geometry& geometry) {
  check_lengths(pattern, geometry);
  const std::vector<int> classes = pattern.class_of_head(problem);
  std::vector<HeadGroup> groups;
  for (std::size_t c = 0; c < pattern.classes().size(); ++c) {
    const Mask& class_mask = pattern.classes()[c].mask;
    const std::size_t first_group = groups.size();
    for (int h = 0; h < problem.num_heads; ++h) {
      if (classes[static_cast<std::size_t>(h)] != static_cast<int>(c)) continue;
      const Geometry own = in_head(geometry, h);
      const Mask mask = resolved(class_mask, pattern, own);
      const auto alike = [&](const HeadGroup& group) {
        return group.mask == mask && pattern::same_for_heads(mask, group.geometry, own);
      };
      const auto group = std::find_if(groups.begin() + static_cast<std::ptrdiff_t>(first_group),
                                      groups.end(), alike);
      if (group != groups.end()) {
        group->heads.push_back(own.head);
      } else {
        groups.push_back({mask, {own.head}, own, c});
      }
    }
    if (groups.size() == first_group) groups.push_back({class_mask, {}, geometry, c});
  }
  return groups;
}

verify::MaskRow reading_of(const Pattern& pattern, const verify::Case& c) {
  const auto inputs = std::make_shared<HostInputs>(c.inputs, c.problem.num_heads, geometry_of(c));
  Geometry first = geometry_of(c);
  first.inputs = inputs->views();
  check_lengths(pattern, first);
  return [pattern, inputs, first, classes_of_heads = pattern.class_of_head(c.problem)](
             verify::Row row, std::span<std::uint32_t> words) {
    const auto head_class =
        static_cast<std::size_t>(classes_of_heads[static_cast<std::size_t>(row.h)]);
    Geometry geometry = in_head(first, row.h);
    geometry.batch = row.b;
    const Mask mask = resolved(pattern.classes()[head_class].mask, pattern, geometry);
    for (const Span span : pattern::row_spans(mask, geometry, row.q)) {
      for (int key = span.lo; key < span.hi; ++key) {
        words[static_cast<std::size_t>(key / 32)] |= 1u << (key % 32);
      }
    }
  };
}

verify::PrunedReading reading_of_pruned(const Pattern& pattern, verify::Case& c) {
  verify::PrunedReading reading{.mask = reading_of(pattern, c)};
  const bool skips =
      std::any_of(c.inputs.begin(), c.inputs.end(), [](const verify::InputData& input) {
        return input.skip > 0 || std::any_of(input.thresholds.begin(), input.thresholds.end(),
                                             [](float value) { return value > -HUGE_VALF; });
      });
  if (!skips) return reading;
  verify::Case plain = c;
  plain.inputs.clear();
  verify::Workload workload(plain);
  workload.fill_normal(c.seed);
  return prune_reading(pattern, c, workload.host_inputs(), reading.mask);
}

double visible_flop(const Pattern& pattern, const verify::Case& c) {
  Geometry geometry = geometry_of(c);
  const HostInputs inputs(c.inputs, c.problem.num_heads, geometry);
  geometry.inputs = inputs.views();
  const bool alike = pattern.inputs().empty() && pattern::conditions_of(pattern).empty();
  const int different = alike ? 1 : c.batch;  // sequences
  double elements = 0;
  for (geometry.batch = 0; geometry.batch < different; ++geometry.batch) {
    for (const HeadGroup& group : head_groups(pattern, c.problem, geometry)) {
      if (group.heads.empty()) continue;
      elements += static_cast<double>(group.heads.size()) *
                  static_cast<double>(pattern::count_visible(group.mask, group.geometry));
    }
  }
  return 2.0 * c.batch / different * elements * (c.problem.head_dim + c.problem.width_v());
}

}  // namespace girih::tools
