// fuzz_parse COUNT [SEED]: parses COUNT mutated pattern texts. Whatever is accepted must print and
// parse back to itself; whatever is refused must be an Error of kind invalid_argument. The first
// violation is printed and ends the program with status 1.
#include <fmt/format.h>

#include <array>
#include <cctype>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "girih/error.hpp"
#include "girih/pattern.hpp"

namespace {

using Random = std::mt19937_64;

std::size_t below(Random& random, std::size_t bound) { return random() % bound; }

template <class Container>
auto one_of(Random& random, const Container& values) {
  return values[below(random, std::size(values))];
}

constexpr std::string_view kTexts[] = {
    "dense",
    "causal & (sink(64) | window(left=255))",
    "window(left=3, right=4) | !causal & sink(n=0)",
    "!(causal & !(window(1, 2) | sink(3) & dense))",
    "heads(0-15: causal, 16+18-20: sink(4) | window(left=7), else: dense)",
    "kv_heads(0: dense, 1-7: causal & (sink(128) | window(left=255)))",
    "# a comment\nheads(\n  else: causal,  # all\n  3: !!dense\n)\n",
    "((((causal)))) & sink(536870912) & window(right=-1)",
    "queries(-4..10) & keys(0..3) | first_queries(2) | last_queries(n=3) | last_keys(1)",
    "causal & (chunk(64) | block_window(left=1, block=16)) & block_streaming(1, 2, causal=false)",
    "strided(local=(3, 0), stride=8, block=64, offset=-1, heads=kv, step=2, dense_heads=1)",
    "strided(block=2, ranges=[(-1, 2), (4, 1), (inf, 8)], homo=true)",
    "strided(2, 3, block=4, relative=true) with softcap(30.5)",
    "neighborhood(30x48x80, window=(18, 24, 24), stride=(1, 8, 8), causal=(true, false, false))",
    "neighborhood(256, window=80, dilation=3, causal=true) | dilated(4) & causal",
    "causal & blocks(m, q=128, kv=64) | sink($prefix) & window(left=$w, right=$w)",
    "heads(0-3: blocks(m, q=16, kv=16), 4: blocks(m, q=16, kv=16) & chunk($n), else: sink($n))",
    "block_window(left=$l, block=$b) | !block_streaming($s, $l, causal=false) | last_keys($_1)",
    "heads(0: causal with softcap(1e-3), 1-3: dense, else: sink(1) with softcap(50))",
    "expr(\"doc[b][q] == doc[b][k] && (k <= p || !(k % 7 >= 2))\") & causal | expr(\"k<p\")",
    "causal with softcap(3), score(\"s * 0.5 + far[h][min(p - k, 63)] - (k < 2 ? 1.5 : t[q])\")",
    "heads(0: causal with softcap(2), prune(t, kv=64, keep_sink=true), else: dense with prune(u, "
    "kv=64))",
};

constexpr std::string_view kWords[] = {
    "dense",
    "causal",
    "window",
    "sink",
    "heads",
    "kv_heads",
    "else",
    "with",
    "softcap",
    "last_keys",
    "first_queries",
    "queries",
    "keys",
    "chunk",
    "block_window",
    "block_streaming",
    "strided",
    "dilated",
    "neighborhood",
    "4x4",
    "(3, 3)",
    "local",
    "stride",
    "block",
    "ranges",
    "relative",
    "homo",
    "step",
    "kv",
    "false",
    "..",
    "3..8",
    "(2, 1)",
    "[(1, 2), (inf, 3)]",
    "1e-3",
    "true",
    "inf",
    "left",
    "right",
    "n",
    "&",
    "|",
    "!",
    "(",
    ")",
    ",",
    ":",
    "+",
    "-",
    "=",
    "$",
    "$w",
    "$m",
    "m",
    "q",
    "input",
    "blocks(m, q=128, kv=64)",
    "blocks(w, q=16, kv=32)",
    "sink($m)",
    "\"s\"",
    "expr",
    "score",
    "expr(\"k <= p\")",
    "[k]",
    "&&",
    "%",
    "?",
    "\"",
    "#",
    "\n",
    "1.5",
    "4x4",
    "-1",
    "0",
    "1",
    "64",
    "255",
    "blocks",
    "\xe2\x88\xa7",
    "\xff",
    "536870912",
    "536870913",
    "2147483648",
    "-9223372036854775808",
    "99999999999999999999999999",
};

std::vector<std::string> tokens(std::string_view text) {
  std::vector<std::string> result;
  bool in_word = false;
  for (const char c : text) {
    const bool word = std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
    if (!word || !in_word) result.emplace_back();
    result.back() += c;
    in_word = word;
  }
  return result;
}

std::string mutated_tokens(Random& random, std::string_view text) {
  std::vector<std::string> parts = tokens(text);
  for (std::size_t i = 1 + below(random, 4); i > 0 && !parts.empty(); --i) {
    const std::size_t at = below(random, parts.size());
    switch (below(random, 4)) {
      case 0:
        parts[at] = one_of(random, kWords);
        break;
      case 1:
        parts.insert(parts.begin() + at, std::string(one_of(random, kWords)));
        break;
      case 2:
        parts.erase(parts.begin() + at);
        break;
      default:
        std::swap(parts[at], parts[below(random, parts.size())]);
        break;
    }
  }
  std::string result;
  for (const std::string& part : parts) result += part;
  return result;
}

std::string mutated_bytes(Random& random, std::string text) {
  for (std::size_t i = 1 + below(random, 4); i > 0 && !text.empty(); --i) {
    const std::size_t at = below(random, text.size());
    const char byte = static_cast<char>(below(random, 256));  // NUL and non-ASCII among them
    switch (below(random, 4)) {
      case 0:
        text[at] = byte;
        break;
      case 1:
        text.insert(at, 1, byte);
        break;
      case 2:
        text.erase(at, 1 + below(random, 8));
        break;
      default:
        text[at] = static_cast<char>(text[at] ^ (1 << below(random, 8)));
        break;
    }
  }
  return text;
}

std::string spliced(Random& random, std::string_view a, std::string_view b) {
  return std::string(a.substr(0, below(random, a.size() + 1))) +
         std::string(b.substr(below(random, b.size() + 1)));
}

std::string nested(Random& random, const std::string& text) {
  constexpr std::string_view kOpen[] = {"(", "!", "!(", "causal & (", "heads(0: "};
  const std::string_view open = one_of(random, kOpen);
  // Around the limit of 64 levels, and now and then far beyond it.
  const std::size_t levels = below(random, below(random, 50) == 0 ? 30000 : 70);
  std::string result;
  for (std::size_t i = 0; i < levels; ++i) result += open;
  result += text;
  if (open.back() == '(' || below(random, 2) == 0) result.append(levels, ')');
  return result;
}

std::string repeated(Random& random, const std::string& text) {
  constexpr std::string_view kJoints[] = {"&", " | ", ",", "+", " "};
  const std::string_view joint = one_of(random, kJoints);
  std::string result = text;
  // Now and then beyond the limits of 1024 atoms and 64 KiB.
  for (std::size_t i = below(random, below(random, 100) == 0 ? 3000 : 8); i > 0; --i) {
    result += joint;
    result += text;
  }
  return result;
}

std::string random_text(Random& random) {
  std::string text(one_of(random, kTexts));
  for (std::size_t i = below(random, 3); i > 0; --i) {
    switch (below(random, 8)) {
      case 0:
        text = nested(random, text);
        break;
      case 1:
        text = repeated(random, text);
        break;
      case 2:
        text = spliced(random, text, one_of(random, kTexts));
        break;
      case 3:
      case 4:
        text = mutated_bytes(random, std::move(text));
        break;
      default:
        text = mutated_tokens(random, text);
        break;
    }
  }
  return text;
}

enum class Outcome { accepted, rejected };

// @throws std::logic_error on a violation.
Outcome check(const std::string& text) {
  using girih::Pattern;
  try {
    const Pattern pattern = Pattern::parse(text);
    const std::string printed = pattern.text();
    Pattern again = girih::dense();
    try {
      again = Pattern::parse(printed);
    } catch (const girih::Error& error) {
      throw std::logic_error("the canonical text is refused: " + std::string(error.what()));
    }
    if (!(again == pattern)) throw std::logic_error("the canonical text means something else");
    if (again.text() != printed) throw std::logic_error("the canonical text is no fixed point");
    try {
      const std::vector<int> classes = pattern.class_of_head(32, 8);
      for (const int c : classes) {
        if (c < 0 || c >= static_cast<int>(pattern.classes().size())) {
          throw std::logic_error("a head has no class");
        }
      }
    } catch (const girih::Error& error) {
      if (error.code() != girih::Errc::invalid_argument) throw std::logic_error(error.what());
    }
    return Outcome::accepted;
  } catch (const girih::Error& error) {
    if (error.code() != girih::Errc::invalid_argument) {
      throw std::logic_error("refused with another code: " + std::string(error.what()));
    }
    if (std::string_view(error.what()).size() > 1000) {
      throw std::logic_error("the message is too long to read");
    }
    return Outcome::rejected;
  }
}

std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    result += c == '\\'            ? "\\\\"
              : std::isprint(byte) ? std::string(1, c)
                                   : fmt::format("\\x{:02x}", byte);
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    fmt::print(stderr, "usage: fuzz_parse COUNT [SEED]\n");
    return 2;
  }
  const long count = std::atol(argv[1]);
  Random random(argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1);
  long accepted = 0;
  for (long i = 0; i < count; ++i) {
    const std::string text = random_text(random);
    try {
      accepted += check(text) == Outcome::accepted;
    } catch (const std::exception& violation) {
      fmt::print("input {}: {}\n{}\n", i, violation.what(), escaped(text));
      return 1;
    }
  }
  fmt::print("{} inputs, {} accepted, {} rejected\n", count, accepted, count - accepted);
  return 0;
}
