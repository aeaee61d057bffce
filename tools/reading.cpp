#include "reading.hpp"

#include <fmt/format.h>

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
#include "pattern/picture.hpp"
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

constexpr double kMostSteps = 5e7;  // about a second

// Of `wanted` strata of `count` things, what stands in the middle of the i-th, moved on by `shift`.
int place_in(int i, int wanted, int count, int shift) {
  const std::int64_t middle = (2 * std::int64_t{i} + 1) * count / (2 * std::int64_t{wanted});
  return static_cast<int>((middle + shift) % count);
}

// An odd number, for patterns repeat themselves after powers of two: whatever is so many tiles
// apart has all the remainders.
int odd_at_most(double wanted, int count) {
  return wanted >= count ? count : std::max(static_cast<int>(wanted), 1) | 1;
}

// Query tiles and key tiles that estimates look at.
struct Sample {
  int rows, columns;
};

// What some query tiles, at equal distances, show in all key tiles, or in some of those, and what
// that comes to for the whole matrix.
Counts counts_of(Sample sample, const Mask& mask, const Geometry& geometry, int block_m,
                 int block_n, pattern::Budget& budget) {
  const int all_rows = ceil_div(geometry.seqlen_q, block_m);
  const int all_columns = ceil_div(geometry.seqlen_k, block_n);
  Counts counts;
  pattern::TileCounts sampled;
  double elements = 0;
  const auto look_at = [&](QueryRows rows, Span columns) {
    const Span keys{columns.lo * block_n, std::min(columns.hi * block_n, geometry.seqlen_k)};
    sampled += pattern::count_tiles(mask, geometry, block_m, block_n, rows, columns, budget);
    counts.visible +=
        static_cast<double>(pattern::count_visible(mask, geometry, rows, keys, budget));
    elements += static_cast<double>(rows.end - rows.begin) * (keys.hi - keys.lo);
  };
  for (int i = 0; i < sample.rows && !budget.is_spent(); ++i) {
    const int first = place_in(i, sample.rows, all_rows, 0) * block_m;
    const QueryRows rows{first, std::min(first + block_m, geometry.seqlen_q)};
    counts.sampled_rows += rows.end - rows.begin;
    if (sample.columns == all_columns) {
      look_at(rows, {0, all_columns});
      continue;
    }
    // Other columns in every row, spread as evenly as can be, in step with nothing.
    constexpr double kGoldenRatio = 0.6180339887498949;
    const double part = i * kGoldenRatio - std::floor(i * kGoldenRatio);
    const auto shift = static_cast<int>(part * all_columns / sample.columns);
    for (int j = 0; j < sample.columns && !budget.is_spent(); ++j) {
      const int column = place_in(j, sample.columns, all_columns, shift);
      look_at(rows, {column, column + 1});
    }
  }
  const double tiles = static_cast<double>(all_rows) * all_columns;
  const double factor = tiles / (static_cast<double>(sample.rows) * sample.columns);
  counts.tiles = sampled.each(
      [&](std::int64_t count) { return std::llround(static_cast<double>(count) * factor); });
  counts.visible *= static_cast<double>(geometry.seqlen_q) * geometry.seqlen_k / elements;
  if (sample.columns < all_columns) {
    counts.sampled_keys = std::min(sample.columns * block_n, geometry.seqlen_k);
  }
  return counts;
}

// Whole query tiles, where a few of them do not take long, else parts of some; then as many as may
// be looked at.
Counts estimate(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                double most_steps) {
  constexpr int kFewRows = 17, kRows = 65, kColumns = 17;
  const int all_rows = ceil_div(geometry.seqlen_q, block_m);
  const int all_columns = ceil_div(geometry.seqlen_k, block_n);
  const auto look = [&](Sample sample, pattern::Budget& budget) {
    return counts_of(sample, mask, geometry, block_m, block_n, budget);
  };
  Sample sample{odd_at_most(kFewRows, all_rows), all_columns};
  pattern::Budget pilot(most_steps / 4);
  Counts counts = look(sample, pilot);
  if (pilot.is_spent()) {
    sample = {odd_at_most(kRows, all_rows), odd_at_most(kColumns, all_columns)};
    while (true) {
      pilot = pattern::Budget(sample.rows == 1 ? kMostSteps : most_steps);
      counts = look(sample, pilot);
      if (!pilot.is_spent()) break;
      if (sample.rows == 1 && sample.columns == 1) {
        throw Error(
            Errc::invalid_argument,
            fmt::format("a tile of {} x {} takes too long to look at: take smaller ones, such as "
                        "128 x 64",
                        block_m, block_n));
      }
      sample = {odd_at_most(sample.rows / 4.0, all_rows),
                odd_at_most(sample.columns / 4.0, all_columns)};
    }
  }
  const double times = most_steps / pilot.taken();
  const Sample larger = sample.columns == all_columns
                            ? Sample{odd_at_most(sample.rows * times, all_rows), all_columns}
                            : Sample{sample.rows, odd_at_most(sample.columns * times, all_columns)};
  if (times < 2) return counts;
  pattern::Budget budget(3 * most_steps);  // where those of the first were no measure of the others
  const Counts more = look(larger, budget);
  return budget.is_spent() ? counts : more;
}

}  // namespace

Counts count_or_estimate(const Mask& mask, const Geometry& geometry, int block_m, int block_n,
                         double share) {
  pattern::Budget budget(kMostSteps * share);
  const Span columns{0, ceil_div(geometry.seqlen_k, block_n)};
  Counts counts{.tiles = pattern::count_tiles(mask, geometry, block_m, block_n,
                                              {0, geometry.seqlen_q}, columns, budget)};
  if (!budget.is_spent()) {
    counts.visible = static_cast<double>(pattern::count_visible(mask, geometry, budget));
  }
  return budget.is_spent() ? estimate(mask, geometry, block_m, block_n, kMostSteps * share)
                           : counts;
}

HeadPicture picture_of(const Mask& mask, const Geometry& geometry, double share) {
  pattern::Budget budget(kMostSteps * share);
  std::string exact = pattern::picture(mask, geometry, 64, 32, budget);
  if (!budget.is_spent()) return {std::move(exact), false};
  return {pattern::sampled_picture(mask, geometry, 64, 32), true};
}

std::string sample_text(int sampled_rows, int sampled_keys, int seqlen_q, int seqlen_k) {
  const std::string rows = fmt::format("from {} of {} rows", sampled_rows, seqlen_q);
  return sampled_keys == 0
             ? rows
             : fmt::format("{} and {} of their {} keys", rows, sampled_keys, seqlen_k);
}

namespace {

// Bits of every key for every 64 rows: much more than the lists that say which.
void check_slashes(const verify::InputData& input, const Geometry& geometry) {
  constexpr double kMostBytes = 8.0 * (1 << 30);
  const int blocks = ceil_div(geometry.seqlen_q, SlashPlane::kRows);
  const double words = static_cast<double>(
      SlashPlane::row_at(SlashPlane::words_per_row(geometry.seqlen_k), blocks, blocks));
  const double bytes = 4.0 * input.batch * input.heads * words;
  if (bytes <= kMostBytes) return;
  throw Error(Errc::invalid_argument,
              fmt::format("the windows of '{}' for {} heads and sequences take {:.3g} bytes at "
                          "{} x {}, the limit is {:.3g}: take shorter sequences, or give --fill "
                          "{}=...,heads=1",
                          input.name, std::int64_t{input.batch} * input.heads, bytes,
                          geometry.seqlen_q, geometry.seqlen_k, kMostBytes, input.name));
}

}  // namespace

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
        check_slashes(input, geometry);
        words_.push_back(verify::slash_planes(
            input, std::vector(static_cast<std::size_t>(input.batch), geometry), geometry.seqlen_q,
            geometry.seqlen_k, view));
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
