// Which columns and distances the last 64 queries of a head see most, in double precision and
// straight from the definition.
#pragma once

#include <string>
#include <vector>

namespace oracle {

/// Rows of one head: [rows][head_dim].
using Matrix = std::vector<std::vector<float>>;

struct Sums {
  std::vector<double> of_keys;       ///< [seqlen_k]
  std::vector<double> of_distances;  ///< [seqlen_k]
};

/// The probabilities of the last queries, which stand at the last keys' positions, added up.
Sums estimate_sums(const Matrix& q, const Matrix& k, double softmax_scale);

/// What is wrong with a list that is to hold the `number` entries of the largest sums in ascending
/// order, the first `forced` ones before all others, and -1 behind them; empty where nothing is.
/// Sums that differ by less than `tolerance` of themselves may stand for one another.
std::string problem_of(const std::vector<int>& selected, const std::vector<double>& sums,
                       int forced, double tolerance);

}  // namespace oracle
