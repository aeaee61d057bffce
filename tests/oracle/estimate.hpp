// Which columns and distances the last 64 queries of a head see most, and which blocks of keys a
// block of queries sees, in double precision and straight from the definitions.
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

struct BlockEstimate {
  int q_block, kv_block;
  int stride;  ///< 0 for blocks' means
  bool causal;
};

/// Logarithms of what each pair of blocks has of the probabilities of a block of queries, each of
/// whose rows of scores has as many as any other: [q_blocks][kv_blocks], NaN where a pair is not
/// visible. `only` is the one block of queries that is looked at, or -1; others are empty.
std::vector<std::vector<double>> block_logarithms(const Matrix& q, const Matrix& k,
                                                  double softmax_scale,
                                                  const BlockEstimate& estimate, int only = -1);

/// The blocks of keys that hold positions of a block of queries, and whether the first is kept.
std::vector<bool> forced_blocks(int seqlen_q, int seqlen_k, const BlockEstimate& estimate,
                                int q_block_index, bool keep_sink);

/// What is wrong with a row of a mask that is to hold the `top_k` largest, or where that is 0 the
/// fewest that have `threshold` of all, the forced ones before all others; empty where nothing is.
/// Logarithms that differ by less than `tolerance` may stand for one another.
std::string problem_of_row(const std::vector<bool>& taken, const std::vector<double>& logarithms,
                           const std::vector<bool>& forced, int top_k, double threshold,
                           double tolerance);

}  // namespace oracle
