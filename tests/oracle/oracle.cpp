// Naive predicates, one a definition, and random expressions over them.
#include "oracle.hpp"

#include <algorithm>

namespace oracle {
namespace {

long long below(std::mt19937_64& random, long long bound) {  // the same on every platform
  return static_cast<long long>(random() % static_cast<unsigned long long>(bound));
}

// Small numbers as often as large ones: borders are where errors are.
long long random_number(std::mt19937_64& random, long long largest) {
  return below(random, 3) == 0 ? std::min(below(random, 4), largest) : below(random, largest + 1);
}

long long random_bound(std::mt19937_64& random, long long largest) {
  return below(random, 3) == 0 ? -1 : random_number(random, largest);
}

Expr random_atom(std::mt19937_64& random, long long largest) {
  switch (below(random, 8)) {
    case 0:
      return {Expr::Kind::dense, {}, {}};
    case 1:
    case 2:
      return {Expr::Kind::causal, {}, {}};
    case 3:
    case 4:
      return {Expr::Kind::sink, {random_number(random, largest)}, {}};
    default:
      return {
          Expr::Kind::window, {random_bound(random, largest), random_bound(random, largest)}, {}};
  }
}

}  // namespace

Sizes bottom_right(long long seqlen_q, long long seqlen_k) {
  return {seqlen_q, seqlen_k, seqlen_k - seqlen_q, 0};
}

std::string text(const Expr& expr) {
  const auto number = [&](int i) { return std::to_string(expr.numbers[i]); };
  switch (expr.kind) {
    case Expr::Kind::dense:
      return "dense";
    case Expr::Kind::causal:
      return "causal";
    case Expr::Kind::window:
      return "window(left=" + number(0) + ", right=" + number(1) + ")";
    case Expr::Kind::sink:
      return "sink(n=" + number(0) + ")";
    default:
      break;
  }
  std::string result = expr.kind == Expr::Kind::negation ? "!" : "";
  const char* separator = "";
  for (const Expr& operand : expr.operands) {
    const std::string inner = text(operand);
    result += separator;
    result += operand.operands.empty() ? inner : "(" + inner + ")";
    separator = expr.kind == Expr::Kind::all_of ? " & " : " | ";
  }
  return result;
}

bool visible(const Expr& expr, const Sizes& sizes, long long q, long long k) {
  if (q < 0 || q >= sizes.seqlen_q || k < 0 || k >= sizes.seqlen_k) return false;
  const long long p = q + sizes.q_start;
  const long long key = k + sizes.k_start;
  const auto holds = [&](const Expr& operand) { return visible(operand, sizes, q, k); };
  switch (expr.kind) {
    case Expr::Kind::dense:
      return true;
    case Expr::Kind::causal:
      return key <= p;
    case Expr::Kind::window: {
      const long long left = expr.numbers[0], right = expr.numbers[1];
      return (left == -1 || p - left <= key) && (right == -1 || key <= p + right);
    }
    case Expr::Kind::sink:
      return key < expr.numbers[0];
    case Expr::Kind::all_of:
      return std::all_of(expr.operands.begin(), expr.operands.end(), holds);
    case Expr::Kind::any_of:
      return std::any_of(expr.operands.begin(), expr.operands.end(), holds);
    case Expr::Kind::negation:
      return !holds(expr.operands[0]);
  }
  return false;
}

Expr random_expr(std::mt19937_64& random, int depth, long long largest) {
  if (depth <= 1 || below(random, 5) == 0) return random_atom(random, largest);
  if (below(random, 4) == 0) {
    return {Expr::Kind::negation, {}, {random_expr(random, depth - 1, largest)}};
  }
  Expr expr{below(random, 2) == 0 ? Expr::Kind::all_of : Expr::Kind::any_of, {}, {}};
  const long long count = 2 + below(random, 2);
  for (long long i = 0; i < count; ++i) {
    expr.operands.push_back(random_expr(random, depth - 1, largest));
  }
  return expr;
}

}  // namespace oracle
