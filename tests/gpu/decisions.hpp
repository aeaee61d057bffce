// Which key tiles of pruned heads are kept: the maxima of a case's tiles in float64, and thresholds
// that stand midway between them, for sums in another order differ.
#pragma once

#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "../oracle/prune.hpp"
#include "support.hpp"

namespace gpu_tests {

using girih::InputInfo;
using girih::verify::Case;
using girih::verify::InputData;
using girih::verify::Row;
using girih::verify::Workload;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kMargin = 1e-3;  // between a threshold and every maximum; scores are off by 1e-5

// Classes of consecutive heads, as many heads each.
struct HeadClass {
  oracle::Expr expr;
  bool pruned = true;
  oracle::Prune prune = {};
  float softcap = 0;
  std::string others = {};  // modifiers that do not change what prune looks at

  std::string text() const {
    std::string modifiers;
    if (softcap > 0) modifiers = fmt::format("softcap({})", softcap);
    if (pruned) {
      modifiers += fmt::format("{}prune(t, kv={}, keep_sink={})", modifiers.empty() ? "" : ", ",
                               prune.kv, prune.keep_sink);
    }
    if (!others.empty()) modifiers += (modifiers.empty() ? "" : ", ") + others;
    return oracle::text(expr) + (modifiers.empty() ? "" : " with " + modifiers);
  }
};

inline std::string text_of(const std::vector<HeadClass>& classes, int num_heads) {
  if (classes.size() == 1) return classes[0].text();
  const int each = num_heads / static_cast<int>(classes.size());
  std::string text;
  int head = 0;
  for (const HeadClass& head_class : classes) {
    text += fmt::format("{}{}-{}: {}", text.empty() ? "heads(" : ", ", head, head + each - 1,
                        head_class.text());
    head += each;
  }
  return text + ")";
}

// The maxima of a case's tiles in float64, thresholds between them, and what these keep.
class Decisions {
 public:
  // About `fraction` of the tiles that may be skipped are below the thresholds.
  Decisions(const Case& c, std::vector<HeadClass> classes, double fraction)
      : classes_(std::move(classes)), sizes_(sizes_of(c)), num_heads_(c.problem.num_heads) {
    find_maxima(c);
    num_columns_ = 1;
    for (const oracle::Sizes& sizes : sizes_) {
      num_columns_ = std::max(num_columns_, static_cast<int>(sizes.q_start + sizes.seqlen_q) / 128);
    }
    for (int h = 0; h < num_heads_; ++h) {
      for (int column = 0; column < num_columns_; ++column) {
        thresholds_.push_back(threshold_between(maxima_of(h, column), fraction));
      }
    }
    count();
  }

  InputData input() const {
    InputData data{.kind = InputInfo::Kind::thresholds, .name = "t"};
    data.heads = num_heads_;
    data.thresholds = thresholds_;
    data.num_columns = num_columns_;
    data.prune_kv = static_cast<int>(kv());
    return data;
  }

  girih::verify::MaskRow mask() const {
    return [this](Row row, std::span<std::uint32_t> words) {
      const oracle::Sizes sizes = sizes_of_head(row.b, row.h);
      const HeadClass& head_class = class_of(row.h);
      set_visible_bits(head_class.expr, sizes, row.q, words);
      for (long long n = 0; n < oracle::num_key_tiles(head_class.prune, sizes); ++n) {
        if (!is_skipped(row.b, row.h, row.q / 128, n)) continue;
        for (long long k = n * kv(); k < std::min((n + 1) * kv(), sizes.seqlen_k); ++k) {
          words[static_cast<std::size_t>(k / 32)] &= ~(1u << (k % 32));
        }
      }
    };
  }

  std::int64_t skipped() const { return skipped_; }
  std::int64_t skippable() const { return skippable_; }

 private:
  const HeadClass& class_of(int h) const {
    return classes_[static_cast<std::size_t>(h) * classes_.size() /
                    static_cast<std::size_t>(num_heads_)];
  }
  long long kv() const { return classes_[0].prune.kv; }
  oracle::Sizes sizes_of_head(int b, int h) const {
    return in_head(sizes_[static_cast<std::size_t>(b)], h);
  }
  const std::vector<double>& maxima(int b, int h, long long tile) const {
    return maxima_[static_cast<std::size_t>(b)][static_cast<std::size_t>(h)]
                  [static_cast<std::size_t>(tile)];
  }
  bool is_skippable(int b, int h, long long tile, long long n) const {
    return class_of(h).pruned &&
           !oracle::never_skipped(class_of(h).prune, sizes_of_head(b, h), tile, n) &&
           maxima(b, h, tile)[static_cast<std::size_t>(n)] > -HUGE_VAL;
  }
  float threshold(int b, int h, long long tile) const {
    const auto column = oracle::threshold_column(sizes_of_head(b, h), tile, num_columns_);
    return thresholds_[static_cast<std::size_t>(h * num_columns_ + column)];
  }
  bool is_skipped(int b, int h, long long tile, long long n) const {
    return is_skippable(b, h, tile, n) &&
           oracle::is_skipped(maxima(b, h, tile)[static_cast<std::size_t>(n)],
                              static_cast<double>(threshold(b, h, tile)));
  }

  void find_maxima(const Case& c) {
    Workload workload(c);
    workload.fill_normal(c.seed);
    struct Item {
      int b, h;
      long long tile;
    };
    std::vector<Item> items;
    for (int b = 0; b < c.batch; ++b) {
      maxima_.emplace_back(static_cast<std::size_t>(num_heads_));
      for (int h = 0; h < num_heads_; ++h) {
        const long long tiles = oracle::num_query_tiles(sizes_of_head(b, h));
        maxima_.back()[static_cast<std::size_t>(h)].resize(static_cast<std::size_t>(tiles));
        for (long long tile = 0; tile < tiles; ++tile) items.push_back({b, h, tile});
      }
    }
    const auto width = static_cast<std::size_t>(c.problem.head_dim);
    const double scale = static_cast<double>(girih::verify::softmax_scale_of(c));
    girih::verify::parallel_for(static_cast<std::int64_t>(items.size()), [&](std::int64_t i) {
      const auto [b, h, tile] = items[static_cast<std::size_t>(i)];
      const HeadClass& head_class = class_of(h);
      if (!head_class.pruned) return;
      const double cap = static_cast<double>(head_class.softcap);
      const auto score = [&](long long q, long long k) {
        const std::uint16_t* q_row = workload.q_row({b, h, static_cast<int>(q)});
        const std::uint16_t* k_row =
            workload.k_row(b, static_cast<int>(k), h / c.problem.group_size());
        double sum = 0;
        for (std::size_t j = 0; j < width; ++j) {
          sum += static_cast<double>(girih::verify::widen(c.problem.dtype, q_row[j])) *
                 static_cast<double>(girih::verify::widen(c.problem.dtype, k_row[j]));
        }
        return cap > 0 ? cap * std::tanh(scale * sum / cap) : scale * sum;
      };
      maxima_[static_cast<std::size_t>(b)][static_cast<std::size_t>(h)]
             [static_cast<std::size_t>(tile)] = oracle::tile_maxima(
                 head_class.expr, head_class.prune, sizes_of_head(b, h), tile, score);
    });
  }

  // Of the tiles that a threshold decides on, in ascending order.
  std::vector<double> maxima_of(int h, int column) const {
    std::vector<double> result;
    for (int b = 0; b < static_cast<int>(sizes_.size()); ++b) {
      const oracle::Sizes sizes = sizes_of_head(b, h);
      for (long long tile = 0; tile < oracle::num_query_tiles(sizes); ++tile) {
        if (oracle::threshold_column(sizes, tile, num_columns_) != column) continue;
        for (long long n = 0; n < oracle::num_key_tiles(class_of(h).prune, sizes); ++n) {
          if (class_of(h).pruned && is_skippable(b, h, tile, n)) {
            result.push_back(maxima(b, h, tile)[static_cast<std::size_t>(n)]);
          }
        }
      }
    }
    std::sort(result.begin(), result.end());
    return result;
  }

  static float threshold_between(const std::vector<double>& sorted, double fraction) {
    if (fraction <= 0 || sorted.empty()) return -kInfinity;
    if (fraction >= 1) return kInfinity;
    for (auto i = static_cast<std::size_t>(fraction * static_cast<double>(sorted.size()));
         i < sorted.size(); ++i) {
      if (i > 0 && sorted[i] - sorted[i - 1] > 2.5 * kMargin) {
        return static_cast<float>((sorted[i] + sorted[i - 1]) / 2);
      }
    }
    return kInfinity;
  }

  void count() {
    for (int b = 0; b < static_cast<int>(sizes_.size()); ++b) {
      for (int h = 0; h < num_heads_; ++h) {
        const oracle::Sizes sizes = sizes_of_head(b, h);
        for (long long tile = 0; tile < oracle::num_query_tiles(sizes); ++tile) {
          for (long long n = 0; n < oracle::num_key_tiles(class_of(h).prune, sizes); ++n) {
            if (!class_of(h).pruned || !is_skippable(b, h, tile, n)) continue;
            ++skippable_;
            skipped_ += is_skipped(b, h, tile, n);
            const double maximum = maxima(b, h, tile)[static_cast<std::size_t>(n)];
            REQUIRE(std::fabs(maximum - static_cast<double>(threshold(b, h, tile))) > kMargin);
          }
        }
      }
    }
  }

  std::vector<HeadClass> classes_;
  std::vector<oracle::Sizes> sizes_;
  int num_heads_;
  int num_columns_ = 0;
  std::vector<std::vector<std::vector<std::vector<double>>>> maxima_;  // b, h, query, key tile
  std::vector<float> thresholds_;
  std::int64_t skipped_ = 0, skippable_ = 0;
};

}  // namespace gpu_tests
