// The tests' own reading of pruning, from its definition: which key tiles a query tile keeps. It
// includes nothing of the library.
#pragma once

#include <functional>
#include <vector>

#include "oracle.hpp"

namespace oracle {

/// How one head is pruned.
struct Prune {
  long long kv = 64;       ///< keys of a tile
  bool causal = false;     ///< whether that is a conjunct of the head's pattern
  bool keep_sink = false;  ///< never skips the first tile
};

long long num_query_tiles(const Sizes& sizes);  ///< of 128 rows
long long num_key_tiles(const Prune& prune, const Sizes& sizes);

/// The threshold of a query tile among as many as there are columns.
long long threshold_column(const Sizes& sizes, long long query_tile, long long num_columns);

/// Whether geometry alone keeps a tile.
bool never_skipped(const Prune& prune, const Sizes& sizes, long long query_tile,
                   long long key_tile);

/// A tile with this maximum, not one that is never skipped.
bool is_skipped(double maximum, double threshold);

/// The scaled score of a row and a key, after softcap.
using Score = std::function<double(long long q, long long k)>;

/// The highest visible score of each key tile; -inf where nothing is visible.
std::vector<double> tile_maxima(const Expr& expr, const Prune& prune, const Sizes& sizes,
                                long long query_tile, const Score& score);

/// The threshold of a query tile that the k highest of its maxima reach, of the tiles before its
/// own positions; -inf where there are no more than k.
double calibrated(const Prune& prune, const Sizes& sizes, long long query_tile,
                  const std::vector<double>& maxima, long long k);

}  // namespace oracle
