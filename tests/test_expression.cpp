// Expressions of patterns: their canonical text, what they mean, what is printed for a compiler,
// and every refusal, those of hostile texts above all.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "pattern/expression.hpp"
#include "texts.hpp"

using girih::pattern::Expression;
using girih::pattern::ExpressionPoint;
using girih::pattern::ExpressionProblem;
using girih::pattern::ExpressionUse;
using girih::tests::contains;

namespace {

constexpr ExpressionUse kScore = ExpressionUse::score, kMask = ExpressionUse::mask;

std::string canonical(const std::string& text, ExpressionUse use = kScore) {
  return Expression::parse(text, use).text();
}

// "AT: MESSAGE"
std::string refusal(const std::string& text, ExpressionUse use = kScore) {
  try {
    Expression::parse(text, use);
  } catch (const ExpressionProblem& problem) {
    CHECK(problem.at <= text.size());
    return std::to_string(problem.at) + ": " + problem.message;
  }
  return "(accepted)";
}

double value(const std::string& text, ExpressionUse use = kScore, const ExpressionPoint& at = {}) {
  return Expression::parse(text, use).evaluate(at, [](int tensor, std::span<const int> indices) {
    double sum = 1000.0 * tensor;
    for (const int index : indices) sum = 10 * sum + index;
    return sum;
  });
}

}  // namespace

TEST_CASE("an expression's text is canonical: as few parentheses as C needs, one blank") {
  for (const char* text : {"s",
                           "s * 2.0",
                           "s + table[h][p - k]",
                           "-s",
                           "s - (s - 1.0)",
                           "s - 1.0 - 2.0",
                           "(s + 1.0) * 2.0",
                           "s / (2.0 * 3.0)",
                           "- -s",
                           "-(s + 1.0)",
                           "k <= p ? s : -1e+30",
                           "k <= p && (q < 3 || !(k == 2)) ? s : 0.0",
                           "(k < 1 ? s : 2.0) + 1.0",
                           "k < 1 ? s : k < 2 ? 1.0 : 2.0",
                           "max(s, min(1.0, 2.0))",
                           "tanh(s / 30.0) * 30.0",
                           "exp2(s) + log2(s)",
                           "t[b][h][q][k]",
                           "t[int(s)]",
                           "abs(p - k) % 7 / 3 * s"}) {
    CHECK(canonical(text) == text);
  }
  CHECK(canonical("((s))*(2.)") == "s * 2.0");
  CHECK(canonical(" s+\tt [ (k) ]\n") == "s + t[k]");
  CHECK(canonical("+s*1e3f") == "s * 1000.0");
  CHECK(canonical("float((k))") == "float(k)");
  CHECK(canonical("float(s) + int(k)") == "s + k");
  CHECK(canonical("s * (float(k) / Sk)") == "s * (float(k) / Sk)");
  CHECK(canonical("float(k) / 2 == float(q) / 2", kMask) == "float(k) / 2 == float(q) / 2");
  CHECK(canonical("(k)") == "k");
  CHECK(canonical("q / 64 == k / 64", kMask) == "q / 64 == k / 64");
  CHECK(canonical("doc[b][q]==doc[b][k]&&k<=p", kMask) == "doc[b][q] == doc[b][k] && k <= p");
}

TEST_CASE("random expressions print, parse and print the same, and mean the same") {
  std::mt19937_64 random(1);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  const auto number = [&](auto&& self, int depth, bool integer) -> std::string {
    const auto inner = [&](bool of_integers) {
      return "(" + self(self, depth - 1, of_integers) + ")";
    };
    static constexpr const char* kIntegers[] = {"b", "h", "g", "q", "k", "p", "Sq", "Sk", "7", "0"};
    if (depth == 0)
      return integer || below(3) == 0 ? kIntegers[below(10)] : below(2) ? "s" : "0.75";
    switch (below(7)) {
      case 0:
        return "-" + inner(integer);
      case 1:
        return inner(integer) + (below(2) ? " + " : " - ") + inner(integer);
      case 2:
        return inner(integer) + (below(2) ? " * " : " / ") + inner(integer);
      case 3:
        return (below(2) ? "min" : "max") + ("(" + self(self, depth - 1, integer) + ", ") +
               self(self, depth - 1, integer) + ")";
      case 4:
        return "(" + inner(true) + (below(2) ? " < " : " != ") + inner(true) + " ? " +
               inner(integer) + " : " + inner(integer) + ")";
      case 5:
        return integer ? "abs" + inner(true) : "t[" + inner(true) + "]";
      default:
        if (!integer) return "float" + inner(true);
        return below(2) ? inner(true) + " % " + inner(true) : "int" + inner(false);
    }
  };
  for (int i = 0; i < 3000; ++i) {
    const std::string text = number(number, 1 + i % 4, false);
    const Expression once = Expression::parse(text, kScore);
    CAPTURE(text);
    REQUIRE(canonical(once.text()) == once.text());
    REQUIRE(Expression::parse(once.text(), kScore).code() == once.code());
    const ExpressionPoint at{below(3),  below(9), below(5), below(99),         below(99),
                             below(99), 99,       99,       0.5 * below(9) - 2};
    const double a = value(text, kScore, at), b = value(once.text(), kScore, at);
    REQUIRE((a == b || (std::isnan(a) && std::isnan(b))));
  }
}

TEST_CASE("whole numbers are C's int32, wrap, and what is divided by zero is zero") {
  CHECK(value("-7 / 2") == -3);
  CHECK(value("-7 % 2") == -1);
  CHECK(value("7 / 0") == 0);
  CHECK(value("7 % 0") == 0);
  CHECK(value("2147483647 + 1") == -2147483648.0);
  CHECK(value("(-2147483647 - 1) / -1") == -2147483648.0);
  CHECK(value("abs(-2147483647 - 1)") == -2147483648.0);
  CHECK(value("65536 * 65536") == 0);
  CHECK(value("7 / 2.0") == 3.5);
  CHECK(value("int(2.9)") == 2);
  CHECK(value("int(-2.9)") == -2);
  CHECK(value("int(1e30)") == 2147483647);
  CHECK(value("3 < 4 ? 1 : 2.5") == 1);
  CHECK(value("1 + 2 * 3 - 4") == 3);
  CHECK(value("10 - 3 - 2") == 5);
  CHECK(value("k <= p", kMask, {.k = 3, .p = 3}) == 1);
  CHECK(value("k <= p", kMask, {.k = 4, .p = 3}) == 0);
  CHECK(value("t[k][h]", kScore, {.h = 9, .k = 3, .local_h = 2}) == 32);
  CHECK(value("t[k] + u[h]", kScore, {.h = 9, .k = 3, .local_h = 2}) == 3 + 10002);
  // Conditions are float32's, to the last bit.
  CHECK(value("0.1 * k == 0.3", kMask, {.k = 3}) == 1);
  CHECK(value("16777216 + 1.0 == 16777216.0", kMask) == 1);
  CHECK(value("min(h, 5) * s", kScore, {.h = 9, .s = 0.5}) == 2.5);
}

TEST_CASE("code for a compiler is printed from the tree alone") {
  const auto code = [](const std::string& text, ExpressionUse use = kScore) {
    return Expression::parse(text, use).code();
  };
  CHECK(code("s * 2 + bias[h][p - k]") ==
        "add(multiply(score, static_cast<float>(2)), element<2, 0x1>(0, at.local_h, subtract(at.p, "
        "at.k)))");
  CHECK(code("k <= p ? tanh(s) : -1.5") ==
        "((at.k <= at.p) ? arithmetic_tanh(score) : negate(1.5f))");
  CHECK(code("!(doc[q] == doc[k])", kMask) == "!((element<1>(0, at.q) == element<1>(0, at.k)))");
  CHECK(Expression::parse("a[k] + b1[q][k] + a[h]", kScore).tensors() ==
        std::vector<Expression::Tensor>{{"a", 1, {16 | 2}}, {"b1", 2, {8, 16}}});
}

TEST_CASE("what is no expression is refused at the character") {
  CHECK(refusal("") == "0: expected a number, a name or '(', found the end of the expression");
  CHECK(refusal("s +") == "3: expected a number, a name or '(', found the end of the expression");
  CHECK(refusal("s s") == "2: expected an operator or the end, found 's'");
  CHECK(refusal("(s") == "2: expected ')', found the end of the expression");
  CHECK(refusal("s)") == "1: this ')' closes nothing");
  CHECK(contains(refusal("s + slope"), "4: unknown name 'slope': b, h, g, q, k, p, Sq, Sk, s and"));
  CHECK(contains(refusal("threadIdx.x"), "9: unexpected character (byte 0x2e)"));
  CHECK(contains(refusal("sin(s)"), "0: unknown function 'sin': there are min, max, abs"));
  CHECK(contains(refusal("min(s)"), "5: min takes 2 numbers: expected ',', found ')'"));
  CHECK(contains(refusal("min(s, s, s)"), "8: min takes two numbers, this is one more"));
  CHECK(contains(refusal("abs(k < 1)"), "4: a condition is no number"));
  CHECK(contains(refusal("s[k]"), "1: s is a number, not a tensor"));
  CHECK(contains(refusal("t[s]"), "2: an index is a whole number: write int(...)"));
  CHECK(contains(refusal("t[k] + t[k][q]"), "7: 't' has 2 indices here and 1 before"));
  CHECK(contains(refusal("t[k][k][k][k][k]"), "13: 't' has more than 4 indices"));
  CHECK(contains(refusal("k ? s : 0.0"), "0: a number is no condition"));
  CHECK(contains(refusal("s & 1"), "2: '&' is no operator here: write &&"));
  CHECK(contains(refusal("s = 1"), "2: '=' is no operator here: write =="));
  CHECK(contains(refusal("s % 2"), "2: % takes whole numbers"));
  CHECK(contains(refusal("k < p"), "0: a condition is no number"));
  CHECK(contains(refusal("2147483648"), "0: '2147483648' is out of range for int32"));
  CHECK(contains(refusal("1e99"), "0: '1e99' is out of range for float32"));
  CHECK(contains(refusal("1.2.3"), "0: '1.2.3' is no number"));
  CHECK(contains(refusal("0x10"), "0: '0x10' is no number"));
  CHECK(contains(refusal("k", kMask), "0: a mask is a condition such as k <= p"));
  CHECK(contains(refusal("s < 1.0", kMask), "0: a mask does not know the score s"));
  std::string many;
  for (int i = 0; i < 17; ++i) many += (i ? " + t" : "t") + std::to_string(i) + "[k]";
  CHECK(contains(refusal(many), "is one more than the 16 run-time inputs"));
}

TEST_CASE("the canonical text of what nests as deep as it may is accepted") {
  const auto repeated = [](const char* text, int count) {
    std::string result;
    for (int i = 0; i < count; ++i) result += text;
    return result;
  };
  // A level each, beside that of the whole.
  for (const auto& [open, close] :
       {std::pair{"-", ""}, {"- + ", ""}, {"(", ")"}, {"k < 1 ? ", " : s"}, {"k < 1 ? s : ", ""}}) {
    const bool two = std::string(open) == "- + ";
    const int most = two ? 31 : 63;
    CAPTURE(open);
    const std::string deepest = repeated(open, most) + "s" + repeated(close, most);
    const std::string text = canonical(deepest);
    CHECK(canonical(text) == text);
    CHECK(contains(refusal(repeated(open, most + 1) + "s" + repeated(close, most + 1)),
                   "nested deeper than 64 levels"));
  }
  const std::string text = canonical(repeated("!", 62) + "(k < 1)", kMask);
  CHECK(canonical(text, kMask) == text);
  CHECK(canonical("-(-s)") == "- -s");
  CHECK(canonical("k < 1 ? (k < 2 ? s : 1) : -(-2)") == "k < 1 ? k < 2 ? s : 1 : - -2");
}

TEST_CASE("what costs a compiler time counts by its kind") {
  const auto cost = [](const std::string& text) { return Expression::parse(text, kScore).cost(); };
  CHECK(cost("s") == 0);
  CHECK(cost("s * 0.5 + 1") == 3);  // 1 becomes a float
  CHECK(cost("tanh(s) + tanh(s)") == 2 * 44 + 1);
  CHECK(cost("log(s)") > cost("exp(s)"));
  CHECK(cost("t[b][h][q][k]") == 4 * cost("t[k]"));
  CHECK(cost("s / 3") > cost("t[k / 3]"));
  CHECK(cost("t[k / q]") > cost("s / 3"));
}

TEST_CASE("hostile texts end in a refusal, soon, and never in code") {
  const std::string depth(10 * 1024, '(');
  CHECK(contains(refusal(depth), "nested deeper than 64 levels"));
  CHECK(contains(refusal(std::string(10 * 1024, '-') + "s"), "nested deeper than 64 levels"));
  CHECK(contains(refusal(std::string(10 * 1024, '!') + "(k<1)"), "nested deeper than 64 levels"));
  std::string choices, sum = "s", indices = "k";
  for (int i = 0; i < 2000; ++i) {
    choices += "k<1?s:";
    sum += "+s";
    indices = i < 100 ? "int(t[" + indices + "])" : indices;
  }
  CHECK(contains(refusal(choices + "s"), "nested deeper than 64 levels"));
  CHECK(contains(refusal(sum), "more than 512 operations, numbers and names"));
  CHECK(contains(refusal(indices), "nested deeper than 64 levels"));
  for (const char* text : {"s\"); asm(\"trap;\"); (\"",
                           "s; asm(\"trap;\")",
                           "\"; asm(\"",
                           "s // comment",
                           "s /* */ + 1",
                           "s \\\n+ 1",
                           "#include",
                           "s{}",
                           "s'a'",
                           "$s",
                           "s@k",
                           "`s`",
                           "s->x",
                           "s::x",
                           "s.x",
                           "\xc3\xa9",
                           "*s",
                           "&s",
                           "~k",
                           "k ^ 1",
                           "k << 3",
                           "s += 1",
                           "asm(s)",
                           "sizeof(s)",
                           "new int",
                           "R\"(s)\""}) {
    CAPTURE(text);
    CHECK(refusal(text) != "(accepted)");
  }
  CHECK(refusal(std::string("s\0+1", 4)) == "1: unexpected character (byte 0x00)");

  // Whatever is accepted has printed nothing but names that were checked, numbers and operators.
  std::mt19937_64 random(2);
  const std::string alphabet = "skqph tu01.7eE+-*/%<>=!&|?:()[],\"'\\;#{}\n$@";
  int accepted = 0;
  for (int i = 0; i < 100000; ++i) {
    std::string text = i % 2 == 0 ? "" : "s+t[k]*(q<k?1:2)";
    for (int j = 0; j < 1 + i % 9; ++j) {
      const std::size_t at = random() % (text.size() + 1);
      const char c = alphabet[random() % alphabet.size()];
      if (i % 3 == 0 && at < text.size()) {
        text[at] = c;
      } else {
        text.insert(at, 1, c);
      }
    }
    for (const ExpressionUse use : {kScore, kMask}) {
      try {
        const Expression expression = Expression::parse(text, use);
        ++accepted;
        CHECK(canonical(expression.text(), use) == expression.text());
        CHECK(expression.code().find_first_of("\"'\\;#{}\n$@") == std::string::npos);
      } catch (const ExpressionProblem& problem) {
        CHECK(problem.at <= text.size());
        CHECK_FALSE(problem.message.empty());
      }
    }
  }
  CHECK(accepted > 1000);
}
