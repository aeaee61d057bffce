#include "prune.hpp"

#include <algorithm>
#include <functional>
#include <limits>

namespace oracle {
namespace {

constexpr long long kRows = 128;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

long long tiles_of(long long length, long long size) {
  long long count = 0;
  while (count * size < length) ++count;
  return count;
}

}  // namespace

long long num_query_tiles(const Sizes& sizes) { return tiles_of(sizes.seqlen_q, kRows); }

long long num_key_tiles(const Prune& prune, const Sizes& sizes) {
  return tiles_of(sizes.seqlen_k, prune.kv);
}

long long threshold_column(const Sizes& sizes, long long query_tile, long long num_columns) {
  const long long position = query_tile * kRows + sizes.q_start;
  long long column = 0;
  while (column + 1 < num_columns && (column + 1) * kRows <= position) ++column;
  return column;
}

bool never_skipped(const Prune& prune, const Sizes& sizes, long long query_tile,
                   long long key_tile) {
  if (prune.keep_sink && key_tile == 0) return true;
  for (long long key = key_tile * prune.kv; key < (key_tile + 1) * prune.kv; ++key) {
    if (!prune.causal) {
      if (key == std::max(sizes.seqlen_k - 1, 0LL)) return true;
      continue;
    }
    const long long row = key + sizes.k_start - sizes.q_start;  // with this position
    if (query_tile * kRows <= row && row < (query_tile + 1) * kRows) return true;
  }
  return false;
}

bool is_skipped(double maximum, double threshold) { return maximum < threshold; }

std::vector<double> tile_maxima(const Expr& expr, const Prune& prune, const Sizes& sizes,
                                long long query_tile, const Score& score) {
  std::vector<double> maxima(static_cast<std::size_t>(num_key_tiles(prune, sizes)), -kInfinity);
  const long long end = std::min((query_tile + 1) * kRows, sizes.seqlen_q);
  for (long long q = query_tile * kRows; q < end; ++q) {
    for (long long k = 0; k < sizes.seqlen_k; ++k) {
      if (!visible(expr, sizes, q, k)) continue;
      double& maximum = maxima[static_cast<std::size_t>(k / prune.kv)];
      maximum = std::max(maximum, score(q, k));
    }
  }
  return maxima;
}

double calibrated(const Prune& prune, const Sizes& sizes, long long query_tile,
                  const std::vector<double>& maxima, long long k) {
  const long long first_position = query_tile * kRows + sizes.q_start - sizes.k_start;
  std::vector<double> candidates;
  for (std::size_t n = 0; n < maxima.size(); ++n) {
    if ((static_cast<long long>(n) + 1) * prune.kv <= first_position) {
      candidates.push_back(maxima[n]);
    }
  }
  std::sort(candidates.begin(), candidates.end(), std::greater<>());
  if (static_cast<long long>(candidates.size()) <= k) return -kInfinity;
  const auto index = static_cast<std::size_t>(k);
  return (candidates[index - 1] + candidates[index]) / 2;
}

}  // namespace oracle
