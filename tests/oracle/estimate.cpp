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

}  // namespace oracle
