// Naive predicates, one a definition, and random expressions over them.
#include "oracle.hpp"

#include <algorithm>

namespace oracle {
namespace {

using Kind = Expr::Kind;

// --- Definitions. / and % round down.

long long quotient(long long a, long long b) {
  long long result = a / b;
  while (result * b > a) --result;
  return result;
}

long long remainder(long long a, long long b) { return a - quotient(a, b) * b; }

bool block_streaming(const std::vector<long long>& numbers, const Sizes& sizes, long long q,
                     long long k) {
  const long long sink = numbers[0], local = numbers[1], block = numbers[2];
  const long long offset = sizes.q_start - sizes.k_start;  // Sk - Sq, bottom-right
  const long long j = quotient(k, block);
  if (numbers[3] == 0) {
    const long long blocks = quotient(sizes.seqlen_k + block - 1, block);
    return j < sink || blocks - local <= j;
  }
  const long long end = quotient(q, block) + 1 + quotient(offset + block - 1, block);
  return (j < sink || (end - local <= j && j < end)) && k <= q + offset;
}

bool strided(const Strided& s, const Sizes& sizes, long long p, long long key) {
  const long long i = quotient(p, s.block), j = quotient(key, s.block);
  long long h = s.kv_heads ? sizes.head / sizes.group_size : sizes.head;
  const long long owners = s.kv_heads ? sizes.num_heads / sizes.group_size : sizes.num_heads;
  if (s.homo) h = 0;
  if (h >= owners - s.dense_heads) return true;
  if (s.relative) {
    const long long left = std::max(i - j - s.left + 1, 0LL);
    const long long right = std::max(j - i - s.right + 1, 0LL);
    return remainder(left + right, s.stride) == 0;
  }
  const auto on_stride = [&](long long stride) {
    const long long step = s.step.value_or(std::max(1LL, stride / sizes.num_heads));
    return remainder(j + h * step + s.offset, stride) == 0;
  };
  for (std::size_t r = 0; r < s.ranges.size(); ++r) {
    const bool last = r + 1 == s.ranges.size();
    if (last || i - j < s.ranges[r].first) return on_stride(s.ranges[r].second);
  }
  return (-s.right < i - j && i - j < s.left) || on_stride(s.stride);
}

// On one axis, row coordinate q and key coordinate k.
bool near_on_axis(const Axis& axis, long long q, long long k) {
  const long long d = axis.dilation, w = axis.window, s = axis.stride;
  if (q % d != k % d) return false;
  const long long length = (axis.extent - q % d + d - 1) / d;
  const long long i = q / d, j = k / d;
  if (axis.causal) {
    const long long leader = std::min(i / s * s + s - 1, length - 1);
    return std::max(leader - (w - 1), 0LL) <= j && j <= i;
  }
  const long long leader = std::min(i / s * s + s / 2, length - 1);
  const long long right = w / 2 + w % 2 - 1;
  long long start = std::max(leader - w / 2, 0LL);
  if (leader + right >= length) start += length - right - leader - 1;
  return start <= j && j < start + w;
}

bool neighborhood(const Expr& expr, long long q, long long k) {
  const long long tokens = grid_tokens(expr);
  if (k >= tokens) return true;
  if (q >= tokens) return false;  // there is no such row: a launch has as many as the grid
  for (std::size_t i = expr.axes.size(); i-- > 0;) {
    const long long extent = expr.axes[i].extent;
    if (!near_on_axis(expr.axes[i], q % extent, k % extent)) return false;
    q /= extent;
    k /= extent;
  }
  return true;
}

// --- Text

std::string neighborhood_text(const std::vector<Axis>& axes) {
  std::string grid, window, stride, dilation, causal;
  for (const Axis& axis : axes) {
    const bool first = &axis == &axes.front();
    grid += (first ? "" : "x") + std::to_string(axis.extent);
    window += (first ? "" : ", ") + std::to_string(axis.window);
    stride += (first ? "" : ", ") + std::to_string(axis.stride);
    dilation += (first ? "" : ", ") + std::to_string(axis.dilation);
    causal += std::string(first ? "" : ", ") + (axis.causal ? "true" : "false");
  }
  return "neighborhood(" + grid + ", window=(" + window + "), stride=(" + stride + "), dilation=(" +
         dilation + "), causal=(" + causal + "))";
}

std::string strided_text(const Strided& s) {
  const auto number = [](long long value) { return std::to_string(value); };
  std::string result = "strided(block=" + number(s.block);
  if (s.ranges.empty()) {
    result += s.left == s.right ? ", local=" + number(s.left)
                                : ", local=(" + number(s.left) + ", " + number(s.right) + ")";
    result += ", stride=" + number(s.stride);
  } else {
    result += ", ranges=[";
    for (std::size_t r = 0; r < s.ranges.size(); ++r) {
      result += r == 0 ? "(" : ", (";
      result += r + 1 == s.ranges.size() ? "inf" : number(s.ranges[r].first);
      result += ", " + number(s.ranges[r].second) + ")";
    }
    result += "]";
  }
  if (s.offset != 0) result += ", offset=" + number(s.offset);
  if (s.kv_heads) result += ", heads=kv";
  if (s.step) result += ", step=" + number(*s.step);
  if (s.homo) result += ", homo=true";
  if (s.dense_heads != 0) result += ", dense_heads=" + number(s.dense_heads);
  if (s.relative) result += ", relative=true";
  return result + ")";
}

// --- Random expressions

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

long long random_block(std::mt19937_64& random, long long largest) {
  return 1 + random_number(random, std::max(largest / 4, 1LL));
}

std::vector<long long> random_range(std::mt19937_64& random, long long least, long long largest) {
  const auto number = [&] { return least + random_number(random, largest - least); };
  const long long a = number(), b = number();
  return {std::min(a, b), std::max(a, b)};
}

Strided random_strided(std::mt19937_64& random, long long largest) {
  constexpr long long kMostStride = 12;
  Strided s;
  s.block = random_block(random, largest);
  const long long blocks = largest / s.block + 1;
  const auto local = [&] { return random_number(random, std::min(blocks, largest)); };
  s.left = s.right = local();
  if (below(random, 2) == 0) s.right = local();
  s.stride = 1 + below(random, kMostStride);
  if (below(random, 4) == 0) s.dense_heads = below(random, 4);
  s.kv_heads = below(random, 3) == 0;
  if (below(random, 5) == 0 && s.left + s.right > 0) {
    s.relative = true;
    return s;
  }
  if (below(random, 2) == 0) s.offset = below(random, 2 * kMostStride) - kMostStride / 2;
  if (below(random, 4) == 0) {
    s.homo = true;
    s.dense_heads = 0;
  } else if (below(random, 2) == 0) {
    s.step = below(random, 3 * kMostStride) - kMostStride;
  }
  if (below(random, 3) == 0) {
    long long end = below(random, 4) - 2;
    for (long long count = below(random, 4); count > 0; --count) {
      s.ranges.emplace_back(end, 1 + below(random, kMostStride));
      end += 1 + below(random, 4);
    }
    s.ranges.emplace_back(0, 1 + below(random, kMostStride));
  }
  return s;
}

// Of block `block` of 64 rows, by the text of the definition.
std::vector<char> window_keys(const VerticalSlash& slash, const Sizes& sizes, long long block) {
  const long long p0 = 64 * block + sizes.q_start - sizes.k_start;
  std::vector<std::pair<long long, long long>> ranges;
  for (const long long d : slash.distances) {  // descending
    if (d >= p0 + 64) continue;
    const long long e = std::max(p0 + 64 - d, 64LL);
    if (ranges.empty() || e > ranges.back().second + 64) {
      ranges.emplace_back(e - 64, e);
    } else if (e > ranges.back().second) {
      ranges.back().second += 64;
    }
  }
  std::vector<char> keys(static_cast<std::size_t>(sizes.seqlen_k), 0);
  for (const auto& [begin, end] : ranges) {
    for (long long k = begin; k < std::min(end, sizes.seqlen_k); ++k) keys[std::size_t(k)] = 1;
  }
  return keys;
}

}  // namespace

void VerticalSlash::remember(const Sizes& sizes, const std::vector<int>& rows) {
  for (const int row : rows) {
    if (windows.count(row / 64) == 0) windows[row / 64] = window_keys(*this, sizes, row / 64);
  }
}

Sizes bottom_right(long long seqlen_q, long long seqlen_k) {
  return {seqlen_q, seqlen_k, seqlen_k - seqlen_q, 0};
}

std::string text(const Expr& expr) {
  const auto number = [&](std::size_t i) { return std::to_string(expr.numbers[i]); };
  switch (expr.kind) {
    case Kind::dense:
      return "dense";
    case Kind::causal:
      return "causal";
    case Kind::window:
      return "window(left=" + number(0) + ", right=" + number(1) + ")";
    case Kind::sink:
      return "sink(n=" + number(0) + ")";
    case Kind::last_keys:
      return "last_keys(" + number(0) + ")";
    case Kind::first_queries:
      return "first_queries(" + number(0) + ")";
    case Kind::last_queries:
      return "last_queries(n=" + number(0) + ")";
    case Kind::queries:
      return "queries(" + number(0) + ".." + number(1) + ")";
    case Kind::keys:
      return "keys(" + number(0) + " .. " + number(1) + ")";
    case Kind::chunk:
      return "chunk(" + number(0) + ")";
    case Kind::block_window:
      return "block_window(left=" + number(0) + ", right=" + number(1) + ", block=" + number(2) +
             ")";
    case Kind::block_streaming:
      return "block_streaming(sink=" + number(0) + ", local=" + number(1) + ", block=" + number(2) +
             ", causal=" + (expr.numbers[3] != 0 ? "true" : "false") + ")";
    case Kind::strided:
      return strided_text(expr.strided);
    case Kind::dilated:
      return "dilated(" + number(0) + ")";
    case Kind::neighborhood:
      return neighborhood_text(expr.axes);
    case Kind::blocks:
      return "blocks(" + expr.blocks.name + ", q=" + std::to_string(expr.blocks.q) +
             ", kv=" + std::to_string(expr.blocks.kv) + ")";
    case Kind::segments:
      return "segments(" + expr.indices.name + ")";
    case Kind::index_ge:
      return "index_ge(" + expr.indices.name + ")";
    case Kind::index_gt:
      return "index_gt(" + expr.indices.name + ")";
    case Kind::vertical_slash:
      return "vertical_slash(" + expr.slash.name + ")";
    case Kind::columns:
      return "columns(" + expr.columns.name + ")";
    case Kind::condition:
      return "expr(\"" + expr.condition.text + "\")";
    case Kind::all_of:
    case Kind::any_of:
    case Kind::negation:
      break;
  }
  std::string result = expr.kind == Kind::negation ? "!" : "";
  const char* separator = "";
  for (const Expr& operand : expr.operands) {
    const std::string inner = text(operand);
    result += separator;
    result += operand.operands.empty() ? inner : "(" + inner + ")";
    separator = expr.kind == Kind::all_of ? " & " : " | ";
  }
  return result;
}

bool visible(const Expr& expr, const Sizes& sizes, long long q, long long k) {
  if (q < 0 || q >= sizes.seqlen_q || k < 0 || k >= sizes.seqlen_k) return false;
  const long long p = q + sizes.q_start;
  const long long key = k + sizes.k_start;
  const std::vector<long long>& n = expr.numbers;
  const auto holds = [&](const Expr& operand) { return visible(operand, sizes, q, k); };
  switch (expr.kind) {
    case Kind::dense:
      return true;
    case Kind::causal:
      return key <= p;
    case Kind::window:
      return (n[0] == -1 || p - n[0] <= key) && (n[1] == -1 || key <= p + n[1]);
    case Kind::sink:
      return key < n[0];
    case Kind::last_keys:
      return k >= sizes.seqlen_k - n[0];
    case Kind::first_queries:
      return q < n[0];
    case Kind::last_queries:
      return q >= sizes.seqlen_q - n[0];
    case Kind::queries:
      return n[0] <= p && p < n[1];
    case Kind::keys:
      return n[0] <= key && key < n[1];
    case Kind::chunk:
      return p >= 0 && quotient(p, n[0]) == quotient(key, n[0]);
    case Kind::block_window: {
      const long long i = quotient(p, n[2]), j = quotient(key, n[2]);
      return (n[0] == -1 || i - n[0] <= j) && (n[1] == -1 || j <= i + n[1]);
    }
    case Kind::block_streaming:
      return block_streaming(n, sizes, q, k);
    case Kind::strided:
      return strided(expr.strided, sizes, p, key);
    case Kind::dilated:
      return remainder(p - key, n[0]) == 0;
    case Kind::neighborhood:
      return neighborhood(expr, q, k);
    case Kind::blocks: {
      const long long index = q / expr.blocks.q * expr.blocks.columns + k / expr.blocks.kv;
      return expr.blocks.visible[static_cast<std::size_t>(index)] != 0;
    }
    case Kind::segments:
      return expr.indices.q.at(std::size_t(q)) == expr.indices.k.at(std::size_t(k));
    case Kind::index_ge:
      return expr.indices.q.at(std::size_t(q)) >= expr.indices.k.at(std::size_t(k));
    case Kind::index_gt:
      return expr.indices.q.at(std::size_t(q)) > expr.indices.k.at(std::size_t(k));
    case Kind::vertical_slash: {
      if (k > q + sizes.q_start - sizes.k_start) return false;
      if (expr.slash.columns.count(k) != 0) return true;
      const auto known = expr.slash.windows.find(q / 64);
      if (known != expr.slash.windows.end()) return known->second.at(std::size_t(k)) != 0;
      return window_keys(expr.slash, sizes, q / 64).at(std::size_t(k)) != 0;
    }
    case Kind::columns:
      for (const auto& [first, behind] : expr.columns.rows.at(std::size_t(k))) {
        if (first <= q && q < behind) return true;
      }
      return false;
    case Kind::condition:
      return expr.condition.holds(sizes, q, k);
    case Kind::all_of:
      return std::all_of(expr.operands.begin(), expr.operands.end(), holds);
    case Kind::any_of:
      return std::any_of(expr.operands.begin(), expr.operands.end(), holds);
    case Kind::negation:
      return !holds(expr.operands[0]);
  }
  return false;
}

bool depends_on_head(const Expr& expr) {
  return expr.kind == Kind::strided || expr.condition.by_head ||
         std::any_of(expr.operands.begin(), expr.operands.end(), depends_on_head);
}

Expr random_atom(std::mt19937_64& random, Kind kind, long long largest) {
  const auto number = [&] { return random_number(random, largest); };
  const auto bound = [&] { return random_bound(random, largest); };
  switch (kind) {
    case Kind::window: {
      const long long left = bound();
      return {kind, {left, bound()}, {}};
    }
    case Kind::sink:
    case Kind::last_keys:
    case Kind::first_queries:
    case Kind::last_queries:
      return {kind, {number()}, {}};
    case Kind::queries:
      return {kind, random_range(random, -largest, largest), {}};
    case Kind::keys:
      return {kind, random_range(random, 0, largest), {}};
    case Kind::chunk:
      return {kind, {random_block(random, largest)}, {}};
    case Kind::block_window: {
      const long long block = random_block(random, largest);
      const long long left = random_bound(random, largest / block);
      return {kind, {left, random_bound(random, largest / block), block}, {}};
    }
    case Kind::block_streaming: {
      const long long block = random_block(random, largest);
      const long long sink = random_number(random, std::min(largest / block, 3LL));
      return {kind,
              {sink, random_number(random, largest / block), block, below(random, 3) == 0 ? 0 : 1},
              {}};
    }
    case Kind::strided:
      return {kind, {}, {}, random_strided(random, largest)};
    case Kind::dilated:
      return {kind, {1 + random_number(random, std::max(largest / 3, 1LL))}, {}};
    case Kind::neighborhood:
      return random_neighborhood(random, largest);
    default:
      return {kind, {}, {}};
  }
}

long long grid_tokens(const Expr& neighborhood) {
  long long tokens = 1;
  for (const Axis& axis : neighborhood.axes) tokens *= axis.extent;
  return tokens;
}

Expr random_neighborhood(std::mt19937_64& random, long long largest) {
  Expr expr{Expr::Kind::neighborhood, {}, {}};
  const long long count = 1 + below(random, 3);
  for (long long i = 0; i < count; ++i) {
    long long longest = std::max(largest / grid_tokens(expr), 1LL);
    if (i + 1 < count) longest = std::max(std::min(longest / 3, 12LL), 1LL);
    Axis axis;
    axis.extent = 1 + below(random, longest);
    if (below(random, 3) == 0) axis.dilation = 1 + below(random, std::min(axis.extent, 4LL));
    axis.window = 1 + below(random, axis.extent / axis.dilation);
    if (below(random, 2) == 0) axis.stride = 1 + below(random, axis.window);
    axis.causal = below(random, 3) == 0;
    expr.axes.push_back(axis);
  }
  return expr;
}

Expr random_expr(std::mt19937_64& random, int depth, long long largest) {
  if (depth <= 1 || below(random, 5) == 0) {
    constexpr Kind kFrequent[] = {Kind::causal, Kind::causal, Kind::causal, Kind::window,
                                  Kind::window, Kind::window, Kind::sink,   Kind::sink};
    const long long choice = below(random, kNumAtoms + std::size(kFrequent));
    return random_atom(
        random, choice < kNumAtoms ? static_cast<Kind>(choice) : kFrequent[choice - kNumAtoms],
        largest);
  }
  if (below(random, 4) == 0) {
    return {Kind::negation, {}, {random_expr(random, depth - 1, largest)}};
  }
  Expr expr{below(random, 2) == 0 ? Kind::all_of : Kind::any_of, {}, {}};
  const long long count = 2 + below(random, 2);
  for (long long i = 0; i < count; ++i) {
    expr.operands.push_back(random_expr(random, depth - 1, largest));
  }
  return expr;
}

}  // namespace oracle
