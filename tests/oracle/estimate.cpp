#include "estimate.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

namespace oracle {

Sums estimate_sums(const Matrix& q, const Matrix& k, double softmax_scale) {
  const std::size_t rows = std::min({std::size_t{64}, q.size(), k.size()});
  Sums sums{std::vector<double>(k.size()), std::vector<double>(k.size())};
  for (std::size_t i = 0; i < rows; ++i) {
    const std::vector<float>& query = q[q.size() - rows + i];
    const std::size_t position = k.size() - rows + i;
    std::vector<double> scores;
    for (std::size_t key = 0; key <= position; ++key) {
      double dot = 0;
      for (std::size_t d = 0; d < query.size(); ++d) dot += double{query[d]} * double{k[key][d]};
      scores.push_back(dot * softmax_scale);
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double& score : scores) sum += score = std::exp(score - most);
    for (std::size_t key = 0; key <= position; ++key) {
      sums.of_keys[key] += scores[key] / sum;
      sums.of_distances[position - key] += scores[key] / sum;
    }
  }
  return sums;
}

std::string problem_of(const std::vector<int>& selected, const std::vector<double>& sums,
                       int forced, double tolerance) {
  std::vector<double> values = sums;
  for (std::size_t i = 0; i < values.size() && i < static_cast<std::size_t>(forced); ++i) {
    values[i] = std::numeric_limits<double>::infinity();
  }
  const std::size_t expected = std::min(selected.size(), values.size());
  std::vector<bool> is_selected(values.size());
  int last = -1;
  for (std::size_t i = 0; i < selected.size(); ++i) {
    const int entry = selected[i];
    if (i >= expected) {
      if (entry != -1) return "entry " + std::to_string(i) + " should be -1";
      continue;
    }
    if (entry <= last) return "entry " + std::to_string(i) + " does not ascend";
    if (static_cast<std::size_t>(entry) >= values.size()) {
      return "entry " + std::to_string(i) + " does not exist";
    }
    is_selected[static_cast<std::size_t>(entry)] = true;
    last = entry;
  }
  double least = std::numeric_limits<double>::infinity(), most = -1;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (is_selected[i]) least = std::min(least, values[i]);
    if (!is_selected[i]) most = std::max(most, values[i]);
  }
  if (most > least * (1 + tolerance)) {
    return "a sum of " + std::to_string(most) + " was left out, and one of " +
           std::to_string(least) + " was taken";
  }
  return "";
}

namespace {

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// Of tokens [first, first + count), as far as they exist.
std::vector<double> mean(const Matrix& rows, int first, int count) {
  const int end = std::min(first + count, static_cast<int>(rows.size()));
  std::vector<double> sum(rows[0].size());
  for (int row = first; row < end; ++row) {
    for (std::size_t d = 0; d < sum.size(); ++d) sum[d] += double{rows[row][d]} / (end - first);
  }
  return sum;
}

std::vector<double> wide(const std::vector<float>& row) { return {row.begin(), row.end()}; }

// Along the antidiagonal of the stride x stride tokens that begin there.
double antidiagonal(const Matrix& q, const Matrix& k, int first_q, int first_k, int stride) {
  double sum = 0;
  for (int i = 0; i < stride; ++i) {
    const int row = first_q + i, key = first_k + stride - 1 - i;
    if (row >= static_cast<int>(q.size()) || key >= static_cast<int>(k.size())) continue;
    sum += dot(wide(q[row]), wide(k[key])) / stride;
  }
  return sum;
}

}  // namespace

std::vector<std::vector<double>> block_logarithms(const Matrix& q, const Matrix& k,
                                                  double softmax_scale, const BlockEstimate& of,
                                                  int only) {
  const int seqlen_q = static_cast<int>(q.size()), seqlen_k = static_cast<int>(k.size());
  const bool means = of.stride == 0;
  const int q_step = means ? of.q_block : of.stride, k_step = means ? of.kv_block : of.stride;
  const int num_kv_blocks = (seqlen_k + of.kv_block - 1) / of.kv_block;
  std::vector<std::vector<double>> key_means;
  for (int key = 0; means && key < seqlen_k; key += k_step) {
    key_means.push_back(mean(k, key, k_step));
  }
  std::vector<std::vector<double>> result;
  for (int block = 0; block * of.q_block < seqlen_q; ++block) {
    result.emplace_back();
    if (only >= 0 && block != only) continue;
    std::vector<double> values(num_kv_blocks, std::numeric_limits<double>::quiet_NaN());
    const int end = std::min((block + 1) * of.q_block, seqlen_q);
    for (int row = block * of.q_block; row < end; row += q_step) {
      const int last = std::min(row + q_step, seqlen_q) - 1 + seqlen_k - seqlen_q;
      const std::vector<double> q_mean = means ? mean(q, row, q_step) : std::vector<double>();
      std::vector<double> scores;
      for (int key = 0; key < seqlen_k && !(of.causal && key > last); key += k_step) {
        const double score =
            means ? dot(q_mean, key_means[scores.size()]) : antidiagonal(q, k, row, key, of.stride);
        scores.push_back(score * softmax_scale);
      }
      if (scores.empty()) continue;
      const double most = *std::max_element(scores.begin(), scores.end());
      double sum = 0;
      for (const double score : scores) sum += std::exp(score - most);
      for (std::size_t i = 0; i < scores.size(); ++i) {
        double& value = values[i * k_step / of.kv_block];
        const double own = scores[i] - most - std::log(sum);
        // Sums of one are kept as logarithms, whatever they are.
        if (std::isnan(value)) {
          value = own;
        } else {
          const double larger = std::max(value, own), smaller = std::min(value, own);
          value = larger + std::log1p(std::exp(smaller - larger));
        }
      }
    }
    result.back() = values;
  }
  return result;
}

std::vector<bool> forced_blocks(int seqlen_q, int seqlen_k, const BlockEstimate& of, int block,
                                bool keep_sink) {
  std::vector<bool> forced((seqlen_k + of.kv_block - 1) / of.kv_block);
  const int end = std::min((block + 1) * of.q_block, seqlen_q);
  if (keep_sink && (!of.causal || end - 1 + seqlen_k - seqlen_q >= 0)) forced[0] = true;
  for (int row = block * of.q_block; of.causal && row < end; ++row) {
    const int position = row + seqlen_k - seqlen_q;
    if (position >= 0) forced[position / of.kv_block] = true;
  }
  return forced;
}

std::string problem_of_row(const std::vector<bool>& taken, const std::vector<double>& logarithms,
                           const std::vector<bool>& forced, int top_k, double threshold,
                           double tolerance) {
  double least = std::numeric_limits<double>::infinity(), most = -least;
  double total = 0, sum = 0;
  int visible = 0, number = 0, number_forced = 0;
  for (std::size_t i = 0; i < logarithms.size(); ++i) {
    const std::string name = "block " + std::to_string(i);
    if (std::isnan(logarithms[i])) {
      if (taken[i]) return name + " is not visible";
      continue;
    }
    if (forced[i] && !taken[i]) return name + " is forced";
    ++visible;
    number += taken[i];
    number_forced += forced[i];
    total += std::exp(logarithms[i]);
    if (taken[i]) sum += std::exp(logarithms[i]);
    if (taken[i] && !forced[i]) least = std::min(least, logarithms[i]);
    if (!taken[i]) most = std::max(most, logarithms[i]);
  }
  if (most > least + tolerance) {
    return "a logarithm of " + std::to_string(most) + " was left out, and one of " +
           std::to_string(least) + " was taken";
  }
  if (top_k > 0) {
    const int expected = std::max(std::min(top_k, visible), number_forced);
    if (number == expected) return "";
    return std::to_string(number) + " blocks instead of " + std::to_string(expected);
  }
  const std::string sums = std::to_string(sum) + " of " + std::to_string(total);
  if (sum < threshold * total * (1 - tolerance)) return sums + " does not reach the threshold";
  if (number > number_forced && sum - std::exp(least) > threshold * total * (1 + tolerance)) {
    return sums + " reaches the threshold without the last block, too";
  }
  return "";
}

}  // namespace oracle
