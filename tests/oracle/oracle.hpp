// The tests' own reading of patterns, written from their definitions with naive predicates. It
// includes nothing of the library: an error there cannot hide here.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace oracle {

struct Sizes {
  long long seqlen_q = 0;
  long long seqlen_k = 0;
  long long q_start = 0;  ///< bottom-right alignment: k_start + seqlen_k - seqlen_q
  long long k_start = 0;
};
Sizes bottom_right(long long seqlen_q, long long seqlen_k);

struct Expr {
  enum class Kind { dense, causal, window, sink, all_of, any_of, negation };
  Kind kind = Kind::dense;
  std::vector<long long> numbers;  ///< window: left, right; sink: n
  std::vector<Expr> operands;
};

/// Pattern text; every operand that is not an atom in parentheses.
std::string text(const Expr& expr);

bool visible(const Expr& expr, const Sizes& sizes, long long q, long long k);

/// An expression of at most `depth` levels, with numbers up to about `largest`.
Expr random_expr(std::mt19937_64& random, int depth, long long largest);

}  // namespace oracle
