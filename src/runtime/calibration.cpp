// Thresholds from tile maxima, on the host.
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "girih/shared/prune.cuh"
#include "pattern/atoms.hpp"

namespace girih {
namespace {

// Of all heads and columns, whose sums take 8 bytes each.
constexpr int kMostThresholds = 1 << 24;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kKeepAll = -kInfinity;

[[noreturn]] void refuse(const std::string& message) {
  throw Error(Errc::invalid_argument, message);
}

// Midway between the k-th highest candidate and the next; reorders them.
float threshold_of(std::vector<float>& candidates, int k) {
  if (static_cast<int>(candidates.size()) <= k) return kKeepAll;
  const auto next = candidates.begin() + k;
  std::nth_element(candidates.begin(), next, candidates.end(), std::greater<>());
  return 0.5f * *std::min_element(candidates.begin(), next) + 0.5f * *next;
}

}  // namespace

Calibration::Calibration(const Settings& settings) : settings_(settings) {
  if (settings.num_heads < 1 || settings.num_heads > pattern::kMaxHeads) {
    refuse(
        fmt::format("num_heads {} must be from 1 to {}", settings.num_heads, pattern::kMaxHeads));
  }
  const std::string problem = pattern::prune_problem({.thresholds = "t", .kv = settings.kv});
  if (!problem.empty()) refuse(problem);
  if (settings.kept_tiles < 1 || settings.kept_tiles > kMaxNumber) {
    refuse(fmt::format("kept_tiles {} must be from 1 to {}", settings.kept_tiles, kMaxNumber));
  }
}

void Calibration::add(const float* maxima, const Lengths& lengths) {
  for (const auto& [name, length] :
       {std::pair{"seqlen_q", lengths.seqlen_q}, std::pair{"seqlen_k", lengths.seqlen_k},
        std::pair{"k_start", lengths.k_start}}) {
    if (length < 0 || length > kMaxNumber) {
      refuse(fmt::format("{} {} must be from 0 to {}", name, length, kMaxNumber));
    }
  }
  const int q_start =
      lengths.q_start.value_or(lengths.k_start + lengths.seqlen_k - lengths.seqlen_q);
  if (q_start < -kMaxNumber || q_start > kMaxNumber) {
    refuse(fmt::format("q_start {} must be from {} to {}", q_start, -kMaxNumber, kMaxNumber));
  }
  const int most_columns =
      std::min(ceil_div(kMaxNumber, kPruneRows), kMostThresholds / settings_.num_heads);
  const std::int64_t end = std::int64_t{q_start} + lengths.seqlen_q;
  if (lengths.seqlen_q > 0 && end > std::int64_t{most_columns} * kPruneRows) {
    refuse(
        fmt::format("q_start {} and seqlen_q {} end at position {}, the limit for {} heads is {}: "
                    "calibrate some heads at a time, or count positions from nearer by",
                    q_start, lengths.seqlen_q, end, settings_.num_heads,
                    std::int64_t{most_columns} * kPruneRows));
  }
  const int num_q_tiles = ceil_div(lengths.seqlen_q, kPruneRows);
  const int num_k_tiles = ceil_div(lengths.seqlen_k, settings_.kv);
  if (maxima == nullptr && num_q_tiles > 0 && num_k_tiles > 0) refuse("maxima is null");
  const auto num_heads = static_cast<std::size_t>(settings_.num_heads);
  const std::int64_t tiles_of_head = std::int64_t{num_q_tiles} * num_k_tiles;
  for (std::int64_t i = 0; i < settings_.num_heads * tiles_of_head; ++i) {
    if (maxima[i] < kInfinity) continue;
    refuse(fmt::format(
        "the highest score of head {}, query tile {}, key tile {} is {}: examples "
        "must have finite scores",
        i / tiles_of_head, i % tiles_of_head / num_k_tiles, i % num_k_tiles, maxima[i]));
  }

  std::vector<float> candidates;
  for (int tile = 0; tile < num_q_tiles; ++tile) {
    const int first_row = tile * kPruneRows;
    const int column = max(floor_div(first_row + q_start, kPruneRows), 0);
    if (column >= num_columns_) {
      num_columns_ = column + 1;
      sums_.resize(static_cast<std::size_t>(num_columns_), std::vector<double>(num_heads, 0.0));
      counts_.resize(static_cast<std::size_t>(num_columns_), 0);
    }
    const int before = first_row + q_start - lengths.k_start;  // keys before the first row's own
    const int num_candidates = std::clamp(floor_div(before, settings_.kv), 0, num_k_tiles);
    ++counts_[static_cast<std::size_t>(column)];
    for (std::size_t h = 0; h < num_heads; ++h) {
      const float* row = maxima + (static_cast<std::int64_t>(h) * num_q_tiles + tile) * num_k_tiles;
      candidates.assign(row, row + num_candidates);
      sums_[static_cast<std::size_t>(column)][h] +=
          static_cast<double>(threshold_of(candidates, settings_.kept_tiles));
    }
  }
}

std::vector<float> Calibration::thresholds() const {
  std::vector<float> result;
  for (std::size_t h = 0; h < static_cast<std::size_t>(settings_.num_heads); ++h) {
    float last = kKeepAll;
    for (std::size_t column = 0; column < counts_.size(); ++column) {
      if (counts_[column] > 0) {
        last = static_cast<float>(sums_[column][h] / counts_[column]);
      }
      result.push_back(last);
    }
  }
  return result;
}

}  // namespace girih
