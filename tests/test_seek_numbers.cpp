// What is visible and which tiles are visited where atoms compare numbers of tokens: against the
// oracle's naive predicates, for numbers in order and in none.
#include <doctest/doctest.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "girih/shared/structure.cuh"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "seek.hpp"
#include "verify/inputs.hpp"

using namespace girih::tests;
using girih::Geometry;
using girih::InputView;
using girih::KeyTiles;
using girih::Mask;
using girih::QueryRows;
using girih::Run;
using girih::TileKind;
using girih::TokenNumbers;
using girih::uint32;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kBatch = 2, kHeads = 4;  // of a launch
constexpr Kind kAtoms[] = {Kind::segments, Kind::index_ge, Kind::index_gt};

enum class Order { documents, ascending, none };
constexpr Order kOrders[] = {Order::documents, Order::ascending, Order::none};

std::vector<std::int32_t> numbers(std::mt19937_64& random, int count, Order order) {
  std::vector<std::int32_t> result(static_cast<std::size_t>(count));
  const int document = 1 + below(random, 120);  // 1 / the probability that another one begins
  const int range = 1 + below(random, 60);
  int number = below(random, 20) - 10;
  for (std::int32_t& each : result) {
    if (order == Order::documents) number += below(random, document) == 0 ? 1 : 0;
    if (order == Order::ascending) number += below(random, 4);
    if (order == Order::none) number = below(random, range) - range / 2;
    each = number;
  }
  if (order == Order::none && below(random, 4) == 0) {
    result[static_cast<std::size_t>(below(random, count))] = INT_MAX;
    result[static_cast<std::size_t>(below(random, count))] = INT_MIN;
  }
  return result;
}

// Inputs as a launch hands them over. Other planes than the one that a case sees hold other
// numbers, and so do tokens that a sequence does not have.
class Inputs {
 public:
  explicit Inputs(std::mt19937_64& random) : random_(random) {}

  oracle::Expr add(Kind kind, const oracle::Sizes& sizes, int batch, int head, Order order) {
    const int shared_heads = 1 << below(random_, 3);  // 4: one plane for all heads
    InputData data{.kind = girih::InputInfo::Kind::indices, .name = "d"};
    data.batch = 1 + below(random_, 2);
    data.heads = kHeads / shared_heads;
    data.seqlen_q = static_cast<int>(sizes.seqlen_q) + below(random_, 3) * below(random_, 70);
    data.seqlen_k = static_cast<int>(sizes.seqlen_k) + below(random_, 3) * below(random_, 1100);
    const bool same = data.seqlen_q == data.seqlen_k && below(random_, 2) == 0;
    for (int plane = 0; plane < data.batch * data.heads; ++plane) {
      const auto q = numbers(random_, data.seqlen_q, order);
      data.numbers.insert(data.numbers.end(), q.begin(), q.end());
      if (same) continue;
      const auto k = numbers(random_, data.seqlen_k, order);
      data.key_numbers.insert(data.key_numbers.end(), k.begin(), k.end());
    }

    InputView view;
    words_.push_back(girih::verify::number_planes(data, view.row_stride));
    view.data = words_.back().data();
    view.head_stride = TokenNumbers::kIndexWordsPerSpan * view.row_stride;
    view.batch_stride = data.batch == 1 ? 0 : data.heads * view.head_stride;
    view.heads_per_plane = shared_heads;
    views_.push_back(view);

    const auto row = [](const std::vector<std::int32_t>& from, int plane, int size) {
      const auto first = from.begin() + std::ptrdiff_t{plane} * size;
      return std::vector<long long>(first, first + size);
    };
    const int plane = data.plane(batch, head, kHeads);
    oracle::Expr expr{kind, {}, {}};
    expr.indices = {"i" + std::to_string(views_.size() - 1),
                    row(data.numbers, plane, data.seqlen_q),
                    row(same ? data.numbers : data.key_numbers, plane, data.seqlen_k)};
    return expr;
  }

  const InputView* views() const { return views_.data(); }

  static Mask mask(const oracle::Expr& expr) {
    return Mask::parse(oracle::text(expr)).with_inputs([](const std::string& name) {
      return std::stoi(name.substr(1));
    });
  }

 private:
  std::mt19937_64& random_;
  std::deque<std::vector<uint32>> words_;
  std::vector<InputView> views_;
};

void put_atoms(oracle::Expr& expr, std::mt19937_64& random, Inputs& inputs, const Case& c,
               bool& some) {
  for (oracle::Expr& operand : expr.operands) put_atoms(operand, random, inputs, c, some);
  if (!expr.operands.empty() || (some && below(random, 3) != 0)) return;
  expr =
      inputs.add(one_of(random, kAtoms), c.sizes, c.batch, c.local_head, one_of(random, kOrders));
  some = true;
}

// A case with numbers of tokens in an expression of at most `depth` levels.
Case number_case(std::mt19937_64& random, int depth, Inputs& inputs) {
  Case c = random_case(random, depth);
  if (below(random, 8) == 0) {  // several spans of keys
    c.sizes = oracle::bottom_right(c.sizes.seqlen_q, 900 + below(random, 2500));
    c.block_n = 16 << below(random, 4);
  }
  c.batch = below(random, kBatch);
  c.local_head = below(random, kHeads);
  bool some = false;
  put_atoms(c.expr, random, inputs, c, some);
  c.inputs = inputs.views();
  return c;
}

Geometry long_geometry(const InputView* views, int length) {
  Geometry geometry{length, length, 0, 0};
  geometry.inputs = views;
  return geometry;
}

}  // namespace

TEST_CASE("numbers of tokens show exactly the keys that they allow, alone and in expressions") {
  std::mt19937_64 random(31);
  for (int i = 0; i < 2000; ++i) {
    Inputs inputs(random);
    const Case c = number_case(random, 1 + i % 4, inputs);
    const Mask mask = Inputs::mask(c.expr);
    const Geometry geometry = c.geometry();
    std::int64_t wrong = 0, count = 0;
    for (int q = 0; q < geometry.seqlen_q; ++q) {
      for (int k = 0; k < geometry.seqlen_k; ++k) {
        const bool expected = oracle::visible(c.expr, c.sizes, q, k);
        const uint32 word = girih::pattern::row_bits(mask, geometry, q, k / 16 * 16);
        count += expected;
        wrong += expected != ((word >> k % 16 & 1) != 0);
      }
    }
    if (wrong == 0 && count == girih::pattern::count_visible(mask, geometry)) continue;
    FAIL(c.words());
  }
}

TEST_CASE("seeks of expressions with numbers of tokens are sound") {
  std::mt19937_64 random(32);
  Tightness tightness;
  for (int i = 0; i < 4000; ++i) {
    Inputs inputs(random);
    const Case c = number_case(random, 1 + i % 3, inputs);
    const Mask mask = Inputs::mask(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  CHECK(tightness.truth.visited > 0);
}

TEST_CASE("seeks are exact where tiles hold whole blocks of numbers") {
  std::mt19937_64 random(33);
  static constexpr int kTiles[] = {32, 64, 96, 128, 160};
  constexpr int kLength = 400;
  Tightness tightness;
  for (int i = 0; i < 600; ++i) {
    const Kind kind = one_of(random, kAtoms);
    // Which numbers occur between the least and the largest, ranges do not say: for segments,
    // documents have them all.
    const Order order = kind == Kind::segments ? Order::documents : one_of(random, kOrders);
    InputData data{.kind = girih::InputInfo::Kind::indices, .name = "d"};
    data.seqlen_q = data.seqlen_k = kLength;
    data.numbers = numbers(random, kLength, order);
    data.key_numbers = kind == Kind::segments ? data.numbers : numbers(random, kLength, order);
    InputView view;
    const std::vector<uint32> words = girih::verify::number_planes(data, view.row_stride);
    view.data = words.data();

    Case c{{kind, {}, {}},
           oracle::bottom_right(kLength, kLength),
           one_of(random, kTiles),
           one_of(random, kTiles)};
    c.expr.indices = {"i0",
                      {data.numbers.begin(), data.numbers.end()},
                      {data.key_numbers.begin(), data.key_numbers.end()}};
    c.inputs = &view;
    const Mask mask = Inputs::mask(c.expr);
    for (int q0 = 0; q0 < kLength; q0 += c.block_m) check_row_of_tiles(c, mask, q0, tightness);
    INFO(c.words());
    REQUIRE(tightness.inexact == 0);
  }
  CHECK(tightness.walked.visited == tightness.truth.visited);
  CHECK(tightness.truth.visited > tightness.truth.partial);
  CHECK(tightness.truth.partial > 0);
}

TEST_CASE("keys of other documents are passed over in a few seeks") {
  constexpr int kLength = 32768, kTile = 128;
  const InputData data = girih::verify::random_documents("i0", 1, 1, kLength, kLength, 4096, 5);
  InputView view;
  const std::vector<uint32> words = girih::verify::number_planes(data, view.row_stride);
  view.data = words.data();
  const Geometry geometry = long_geometry(&view, kLength);
  const Mask mask =
      Mask::parse("causal & segments(i0)").with_inputs([](const std::string&) { return 0; });
  const KeyTiles tiles{kTile, kLength};
  std::int64_t visited = 0, partial = 0, seeks = 0, needed = 0;
  for (int q = 0; q < kLength; q += kTile) {
    for (int n = 0; n < tiles.count(); ++seeks) {
      const Run run = girih::pattern::seek(mask, geometry, {q, q + kTile}, tiles, n);
      if (run.kind != TileKind::empty) visited += run.end - n;
      if (run.kind == TileKind::partial) partial += run.end - n;
      n = run.end;
    }
    int first = q;  // of the first row's document
    while (first > 0 && data.numbers[static_cast<std::size_t>(first - 1)] ==
                            data.numbers[static_cast<std::size_t>(q)]) {
      --first;
    }
    needed += q / kTile + 1 - first / kTile;
  }
  CHECK(visited == needed);
  CHECK(partial <= 3 * (kLength / kTile));  // where a document begins, ends, and the diagonal
  CHECK(seeks <= needed / 4 + 6 * (kLength / kTile));
}

TEST_CASE("keys between two parts of a document are passed over in a few seeks") {
  constexpr int kLength = 65536, kTile = 64, kPart = 3000;
  InputData data{.kind = girih::InputInfo::Kind::indices, .name = "i0"};
  data.seqlen_q = data.seqlen_k = kLength;
  data.numbers.assign(kLength, 0);  // document 0, others, and what fills the sequence up
  for (int token = kPart; token < kLength - kPart; ++token) {
    data.numbers[static_cast<std::size_t>(token)] = token / kPart;
  }
  InputView view;
  const std::vector<uint32> words = girih::verify::number_planes(data, view.row_stride);
  view.data = words.data();
  const Geometry geometry = long_geometry(&view, kLength);
  const Mask mask = Mask::parse("segments(i0)").with_inputs([](const std::string&) { return 0; });
  const KeyTiles tiles{kTile, kLength};
  int seeks = 0, visited = 0;
  for (int n = 0; n < tiles.count(); ++seeks) {
    const Run run = girih::pattern::seek(mask, geometry, {0, kTile}, tiles, n);
    if (run.kind != TileKind::empty) visited += run.end - n;
    n = run.end;
  }
  CHECK(visited == 2 * ((kPart + kTile - 1) / kTile));
  // Of 8 spans a seek, but for tiles up to a span's border and of the last part.
  CHECK(seeks <= kLength / 8192 + 3 * 1024 / kTile + 4);
}

TEST_CASE("documents that --fill makes have the mean that was asked for, and keys end as queries") {
  const InputData data = girih::verify::random_documents("d", 2, 3, 1000, 50000, 100, 7);
  CHECK(data.numbers.size() == 2 * 3 * 1000);
  REQUIRE(data.key_numbers.size() == 2 * 3 * 50000);
  for (std::size_t plane = 0; plane < 6; ++plane) {
    const auto k_end = data.key_numbers.begin() + static_cast<std::ptrdiff_t>(50000 * (plane + 1));
    CHECK(std::equal(k_end - 1000, k_end,
                     data.numbers.begin() + static_cast<std::ptrdiff_t>(1000 * plane)));
    CHECK(std::is_sorted(k_end - 50000, k_end));
    const double documents = *(k_end - 1) + 1;
    CHECK(50000 / documents > 75);
    CHECK(50000 / documents < 133);
  }
  CHECK(girih::verify::random_documents("d", 1, 1, 64, 64, 5, 1).key_numbers.empty());
}

TEST_CASE("heads share what numbers of tokens show where they read the same plane") {
  std::vector<uint32> words(2 * TokenNumbers::kIndexWordsPerSpan, 0);
  InputView view;
  view.data = words.data();
  view.row_stride = 1;
  view.head_stride = TokenNumbers::kIndexWordsPerSpan;
  view.heads_per_plane = 2;
  Geometry a = long_geometry(&view, 64), b = a;
  for (const char* text : {"segments(d)", "index_ge(d)", "!index_gt(d)"}) {
    const Mask mask = Mask::parse(text).with_inputs([](const std::string&) { return 0; });
    b.local_head = 1;
    CHECK(girih::pattern::same_for_heads(mask, a, b));
    b.local_head = 2;
    CHECK_FALSE(girih::pattern::same_for_heads(mask, a, b));
  }
}
