#include "verify/pruning.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "girih/error.hpp"
#include "verify/parallel.hpp"

namespace girih::verify {
namespace {

constexpr int kRows = 128;                // of a query tile
constexpr double kMargin = 1e-3;          // kernels' scores are off by some 1e-5
constexpr double kMostProducts = 2.2e12;  // a minute or two of sixteen cores
constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool has_causal_conjunct(const Mask& mask) {
  if (mask == causal()) return true;
  if (mask.op() != Mask::Op::all_of) return false;
  return std::any_of(mask.operands().begin(), mask.operands().end(), has_causal_conjunct);
}

// The rows of Q or K, widened: [batch, heads, seqlen, head_dim].
class Rows {
 public:
  Rows(const AttentionInputs& tensors, const Tensor& tensor, int seqlen,
       int64 ReferenceStart::*start)
      : seqlen_(seqlen), heads_(static_cast<int>(tensor.shape[2])), width_(tensors.head_dim()) {
    const auto batch = static_cast<int>(tensors.q.shape[0]);
    const std::size_t sequences =
        tensors.starts.empty() ? static_cast<std::size_t>(batch) : tensors.starts.size();
    values_.reserve(sequences * static_cast<std::size_t>(heads_) *
                    static_cast<std::size_t>(seqlen) * static_cast<std::size_t>(width_));
    for (std::size_t b = 0; b < sequences; ++b) {
      for (int h = 0; h < heads_; ++h) {
        for (int row = 0; row < seqlen; ++row) {
          const auto* bits = static_cast<const std::uint16_t*>(tensor.data) +
                             tensors.start(static_cast<int>(b)).*start + row * tensor.stride[1] +
                             h * tensor.stride[2];
          for (int j = 0; j < width_; ++j) values_.push_back(widen(tensor.dtype, bits[j]));
        }
      }
    }
  }
  const float* row(int b, int row, int head) const {
    return values_.data() + ((std::int64_t{b} * heads_ + head) * seqlen_ + row) * width_;
  }

 private:
  int seqlen_, heads_, width_;
  std::vector<float> values_;
};

// Products of such values are exact in float64; `width` is a multiple of 8.
double dot(const float* a, const float* b, int width) {
  double sums[8] = {};
  for (int j = 0; j < width; j += 8) {
    for (int i = 0; i < 8; ++i) {
      sums[i] += static_cast<double>(a[j + i]) * static_cast<double>(b[j + i]);
    }
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// The decisions of a case: one maximum for each sequence, head, query tile and key tile.
class Decisions {
 public:
  Decisions(const Pattern& pattern, const Case& c)
      : pattern_(pattern),
        class_of_head_(pattern.class_of_head(c.problem)),
        num_heads_(c.problem.num_heads),
        batch_(c.batch),
        seqlen_q_(c.seqlen_q),
        seqlen_k_(c.seqlen_k),
        q_start_(c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q)),
        k_start_(c.k_start) {
    for (const Pattern::HeadClass& head_class : pattern.classes()) {
      causal_.push_back(has_causal_conjunct(head_class.mask));
      if (head_class.modifiers.prune.kv > 0) kv_ = head_class.modifiers.prune.kv;
    }
    q_tiles_ = (seqlen_q_ + kRows - 1) / kRows;
    k_tiles_ = (seqlen_k_ + kv_ - 1) / kv_;
    maxima_.assign(
        static_cast<std::size_t>(std::int64_t{batch_} * num_heads_ * q_tiles_ * k_tiles_),
        -HUGE_VAL);
    for (const InputData& input : c.inputs) {
      if (input.kind == InputInfo::Kind::thresholds) thresholds_.push_back(input);
    }
  }

  void find_maxima(const AttentionInputs& tensors, const MaskRow& mask) {
    double pruned_heads = 0;
    for (int h = 0; h < num_heads_; ++h) pruned_heads += prune_of(h) != nullptr;
    const double products =
        pruned_heads * batch_ * seqlen_q_ * static_cast<double>(seqlen_k_) * tensors.head_dim();
    if (products > kMostProducts) {
      throw Error(
          Errc::unsupported,
          fmt::format("what is pruned of {} heads, batch {} and {} x {} scores takes {:.2g} "
                      "products on the CPU, more than {:.2g}: take fewer heads or shorter "
                      "sequences, or --fill {}=keep",
                      pruned_heads, batch_, seqlen_q_, seqlen_k_, products, kMostProducts,
                      thresholds_.front().name));
    }
    const Rows queries(tensors, tensors.q, seqlen_q_, &ReferenceStart::q);
    const Rows keys(tensors, tensors.k, seqlen_k_, &ReferenceStart::k);
    parallel_for(std::int64_t{batch_} * num_heads_ * q_tiles_, [&](std::int64_t item) {
      const int tile = static_cast<int>(item % q_tiles_);
      const int h = static_cast<int>(item / q_tiles_ % num_heads_);
      const int b = static_cast<int>(item / q_tiles_ / num_heads_);
      if (prune_of(h) == nullptr) return;
      const double cap = static_cast<double>(modifiers_of(h).softcap);
      const double scale = static_cast<double>(tensors.softmax_scale);
      double* const maxima = maxima_.data() + item * k_tiles_;
      std::vector<std::uint32_t> words(static_cast<std::size_t>(mask_words(tensors.seqlen_k())));
      for (int q = tile * kRows; q < std::min((tile + 1) * kRows, seqlen_q_); ++q) {
        std::fill(words.begin(), words.end(), 0);
        mask({b, h, q}, words);
        const float* const query = queries.row(b, q, h);
        for (int k = 0; k < seqlen_k_; ++k) {
          if (!(words[static_cast<std::size_t>(k / 32)] >> (k % 32) & 1)) continue;
          double score = dot(query, keys.row(b, k, h / tensors.group_size()), tensors.head_dim());
          score *= scale;
          if (cap > 0) score = cap * std::tanh(score / cap);
          maxima[k / kv_] = std::max(maxima[k / kv_], score);
        }
      }
    });
  }

  // Makes thresholds that no maximum is near, of each plane and column of each input.
  std::int64_t settle(std::vector<InputData>& inputs) {
    std::int64_t moved = 0;
    for (InputData& input : inputs) {
      if (input.kind != InputInfo::Kind::thresholds) continue;
      std::vector<std::vector<double>> decided(input.thresholds.size());
      for_each_tile([&](int b, int h, int tile, int, double maximum) {
        if (prune_of(h)->thresholds == input.name) {
          decided[index_of(input, b, h, tile)].push_back(maximum);
        }
      });
      for (std::size_t i = 0; i < decided.size(); ++i) {
        std::sort(decided[i].begin(), decided[i].end());
        const float before = input.thresholds[i];
        if (input.skip > 0 && !decided[i].empty()) {
          const auto place =
              static_cast<std::size_t>(input.skip * static_cast<double>(decided[i].size()));
          input.thresholds[i] =
              place < decided[i].size() ? static_cast<float>(decided[i][place]) : kInfinity;
        }
        input.thresholds[i] = away_from(decided[i], input.thresholds[i]);
        moved += input.skip == 0 && !std::isnan(before) && input.thresholds[i] != before;
      }
    }
    thresholds_.clear();
    for (const InputData& input : inputs) {
      if (input.kind == InputInfo::Kind::thresholds) thresholds_.push_back(input);
    }
    return moved;
  }

  bool is_skipped(int b, int h, int tile, int n) const {
    if (!may_be_skipped(h, tile, n)) return false;
    const auto input = std::find_if(thresholds_.begin(), thresholds_.end(), [&](const auto& data) {
      return data.name == prune_of(h)->thresholds;
    });
    const float threshold = input->thresholds[index_of(*input, b, h, tile)];
    return maximum_at(b, h, tile, n) < static_cast<double>(threshold);  // never of NaN
  }

  // body(b, h, tile, n, maximum) for the tiles that may be skipped and are not hidden.
  template <class Body>
  void for_each_tile(const Body& body) const {
    for (int b = 0; b < batch_; ++b) {
      for (int h = 0; h < num_heads_; ++h) {
        if (prune_of(h) == nullptr) continue;
        for (int tile = 0; tile < q_tiles_; ++tile) {
          for (int n = 0; n < k_tiles_; ++n) {
            const double maximum = maximum_at(b, h, tile, n);
            if (may_be_skipped(h, tile, n) && maximum > -HUGE_VAL) body(b, h, tile, n, maximum);
          }
        }
      }
    }
  }

  void hide_skipped(Row row, std::span<std::uint32_t> words) const {
    if (prune_of(row.h) == nullptr) return;
    for (int n = 0; n < k_tiles_; ++n) {
      if (!is_skipped(row.b, row.h, row.q / kRows, n)) continue;
      for (int word = n * kv_ / 32; word < (n + 1) * kv_ / 32; ++word) {
        if (word < static_cast<int>(words.size())) words[static_cast<std::size_t>(word)] = 0;
      }
    }
  }

 private:
  const Modifiers& modifiers_of(int h) const {
    const int own = class_of_head_[static_cast<std::size_t>(h)];
    return pattern_.classes()[static_cast<std::size_t>(own)].modifiers;
  }
  const Prune* prune_of(int h) const {
    const Prune& prune = modifiers_of(h).prune;
    return prune.thresholds.empty() ? nullptr : &prune;
  }

  // Never skipped are the tiles of the rows' own positions, or that of the last key, and the sink.
  bool may_be_skipped(int h, int tile, int n) const {
    if (prune_of(h)->keep_sink && n == 0) return false;
    const int first = n * kv_, end = first + kv_;
    if (!causal_[static_cast<std::size_t>(class_of_head_[static_cast<std::size_t>(h)])]) {
      return std::max(seqlen_k_ - 1, 0) < first || std::max(seqlen_k_ - 1, 0) >= end;
    }
    const int own = tile * kRows + q_start_ - k_start_;  // key at the first row's position
    return own + kRows <= first || own >= end;
  }

  static std::size_t index_of_column(const InputData& input, std::int64_t position) {
    const std::int64_t column =
        position < 0 ? 0 : std::min<std::int64_t>(position / kRows, input.num_columns - 1);
    return static_cast<std::size_t>(column);
  }
  std::size_t index_of(const InputData& input, int b, int h, int tile) const {
    return static_cast<std::size_t>(input.plane(b, h, num_heads_)) *
               static_cast<std::size_t>(input.num_columns) +
           index_of_column(input, std::int64_t{tile} * kRows + q_start_);
  }

  double maximum_at(int b, int h, int tile, int n) const {
    const std::int64_t row = (std::int64_t{b} * num_heads_ + h) * q_tiles_ + tile;
    return maxima_[static_cast<std::size_t>(row * k_tiles_ + n)];
  }

  // The threshold, or where a maximum is near, one from the next gap above that is wide enough.
  static float away_from(const std::vector<double>& sorted, float threshold) {
    if (std::isnan(threshold) || std::isinf(threshold)) return threshold;
    const auto value = static_cast<double>(threshold);
    auto above = std::lower_bound(sorted.begin(), sorted.end(), value - kMargin);
    if (above == sorted.end() || *above > value + kMargin) return threshold;
    for (; above + 1 != sorted.end(); ++above) {
      if (above[1] - above[0] > 2.5 * kMargin) {
        return static_cast<float>((above[0] + above[1]) / 2);
      }
    }
    return static_cast<float>(*above + 1);
  }

  Pattern pattern_;
  std::vector<int> class_of_head_;
  std::vector<bool> causal_;  // of classes
  int num_heads_, batch_, seqlen_q_, seqlen_k_, q_start_, k_start_;
  int kv_ = 64, q_tiles_ = 0, k_tiles_ = 0;
  std::vector<double> maxima_;
  std::vector<InputData> thresholds_;
};

}  // namespace

PrunedReading prune_reading(const Pattern& pattern, Case& c, const AttentionInputs& tensors,
                            const MaskRow& mask) {
  const auto decisions = std::make_shared<Decisions>(pattern, c);
  decisions->find_maxima(tensors, mask);
  PrunedReading reading;
  reading.moved = decisions->settle(c.inputs);
  decisions->for_each_tile([&](int b, int h, int tile, int n, double) {
    ++reading.tiles;
    reading.skipped += decisions->is_skipped(b, h, tile, n);
  });
  reading.mask = [decisions, mask](Row row, std::span<std::uint32_t> words) {
    mask(row, words);
    decisions->hide_skipped(row, words);
  };
  return reading;
}

}  // namespace girih::verify
