// What is visible and which tiles are visited where a pattern has run-time inputs: block masks
// against the oracle's naive predicate, and numbers that are read when the kernel runs.
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

using namespace girih::tests;
using girih::Geometry;
using girih::InputView;
using girih::KeyTiles;
using girih::KeyWord;
using girih::Mask;
using girih::QueryRows;
using girih::Run;
using girih::Span;
using girih::uint32;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kBatch = 2, kHeads = 4;  // of a launch

uint32 random_word(std::mt19937_64& random) { return static_cast<uint32>(random()); }

// Run-time inputs as a launch hands them over. Whatever one sequence and head does not see is
// noise: other planes, bits behind the last column, words between the rows.
class Inputs {
 public:
  explicit Inputs(std::mt19937_64& random) : random_(random) {}

  /// A block mask for sequence `batch` and query head `head`, with more blocks than it needs.
  oracle::Expr add_blocks(const oracle::Sizes& sizes, int batch, int head) {
    static constexpr int kSizes[] = {16, 32, 64, 128};
    static constexpr int kPercent[] = {0, 3, 30, 70, 97, 100};
    oracle::Blocks blocks{.name = "m" + std::to_string(views_.size()),
                          .q = one_of(random_, kSizes),
                          .kv = one_of(random_, kSizes)};
    const int rows =
        static_cast<int>((sizes.seqlen_q + blocks.q - 1) / blocks.q) + below(random_, 3);
    const int columns =
        static_cast<int>((sizes.seqlen_k + blocks.kv - 1) / blocks.kv) + below(random_, 40);
    blocks.columns = columns;
    const int percent = one_of(random_, kPercent);
    for (int i = 0; i < rows * columns; ++i)
      blocks.visible.push_back(below(random_, 100) < percent);

    InputView view;
    view.row_stride = girih::ceil_div(columns, 32) + below(random_, 2);
    view.heads_per_plane = 1 << below(random_, 3);  // 4: one plane for all heads
    view.head_stride = rows * view.row_stride + below(random_, 5);
    const int planes = kHeads / view.heads_per_plane;
    view.batch_stride = below(random_, 2) * planes * view.head_stride;
    std::vector<uint32>& words = noise(kBatch * planes * view.head_stride);
    view.data = words.data();
    auto* const plane = const_cast<uint32*>(view.plane(batch, head));
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < columns; ++j) {
        uint32& word = plane[i * view.row_stride + j / 32];
        const bool visible = blocks.visible[static_cast<std::size_t>(i * columns + j)] != 0;
        word = (word & ~(1u << j % 32)) | (visible ? 1u << j % 32 : 0u);
      }
    }
    views_.push_back(view);
    return {Kind::blocks, {}, {}, {}, std::move(blocks)};
  }

  /// A number for sequence `batch` and query head `head`. @return its slot
  int add_number(int value, int batch, int head) {
    InputView view;
    view.heads_per_plane = 1 << below(random_, 3);
    view.head_stride = 1;
    const int planes = kHeads / view.heads_per_plane;
    view.batch_stride = below(random_, 2) * planes;
    view.data = noise(kBatch * planes).data();
    *const_cast<uint32*>(view.plane(batch, head)) = static_cast<uint32>(value);
    views_.push_back(view);
    return static_cast<int>(views_.size()) - 1;
  }

  const InputView* views() const { return views_.data(); }

  /// The mask of an expression, with the slots of the inputs that it names.
  static Mask mask(const oracle::Expr& expr) {
    return Mask::parse(oracle::text(expr)).with_inputs([](const std::string& name) {
      return std::stoi(name.substr(1));
    });
  }

 private:
  std::vector<uint32>& noise(std::int64_t count) {
    words_.emplace_back(static_cast<std::size_t>(count));
    for (uint32& word : words_.back()) word = random_word(random_);
    return words_.back();
  }

  std::mt19937_64& random_;
  std::deque<std::vector<uint32>> words_;
  std::vector<InputView> views_;
};

// Makes some of an expression's atoms block masks, and at least one.
void put_blocks(oracle::Expr& expr, std::mt19937_64& random, Inputs& inputs, const Case& c,
                bool& some) {
  for (oracle::Expr& operand : expr.operands) put_blocks(operand, random, inputs, c, some);
  if (!expr.operands.empty() || (some && below(random, 3) != 0)) return;
  expr = inputs.add_blocks(c.sizes, c.batch, c.local_head);
  some = true;
}

// A case with block masks in an expression of at most `depth` levels.
Case block_case(std::mt19937_64& random, int depth, Inputs& inputs) {
  Case c = random_case(random, depth);
  if (below(random, 4) == 0) {  // several words of columns
    c.sizes = oracle::bottom_right(c.sizes.seqlen_q, 500 + below(random, 900));
    c.block_n = 16 << below(random, 4);
  }
  c.batch = below(random, kBatch);
  c.local_head = below(random, kHeads);
  bool some = false;
  put_blocks(c.expr, random, inputs, c, some);
  c.inputs = inputs.views();
  return c;
}

bool rows_agree(const Case& c, const Mask& mask) {
  const Geometry geometry = c.geometry();
  std::int64_t wrong = 0, count = 0;
  for (int q = 0; q < geometry.seqlen_q; ++q) {
    std::vector<char> in_spans(static_cast<std::size_t>(geometry.seqlen_k), 0);
    for (const Span& span : girih::pattern::row_spans(mask, geometry, q)) {
      std::fill(in_spans.begin() + span.lo, in_spans.begin() + span.hi, 1);
    }
    for (int k = 0; k < geometry.seqlen_k; ++k) {
      const bool expected = oracle::visible(c.expr, c.sizes, q, k);
      count += expected;
      wrong += expected != girih::pattern::visible(mask, geometry, q, k);
      wrong += expected != (in_spans[static_cast<std::size_t>(k)] != 0);
    }
  }
  return wrong == 0 && count == girih::pattern::count_visible(mask, geometry);
}

}  // namespace

// --- Block masks ---------------------------------------------------------------------------------

TEST_CASE("block masks show exactly their blocks, alone and in expressions") {
  std::mt19937_64 random(21);
  for (int i = 0; i < 3000; ++i) {
    Inputs inputs(random);
    const Case c = block_case(random, 1 + i % 4, inputs);
    if (rows_agree(c, Inputs::mask(c.expr))) continue;
    FAIL(c.words());
  }
}

TEST_CASE("seeks of block masks alone are exact") {
  std::mt19937_64 random(22);
  Tightness tightness;
  for (int i = 0; i < 8000; ++i) {
    Inputs inputs(random);
    const Case c = block_case(random, 1, inputs);
    const Mask mask = Inputs::mask(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
      if (tightness.inexact != 0) {
        INFO(c.words(), ", row ", q0);
        REQUIRE(tightness.inexact == 0);
      }
    }
  }
  CHECK(tightness.walked.visited == tightness.truth.visited);
  CHECK(tightness.walked.partial == tightness.truth.partial);
  CHECK(tightness.truth.visited > 2 * tightness.truth.partial);
}

TEST_CASE("seeks of expressions with block masks are sound and tight") {
  std::mt19937_64 random(23);
  Tightness tightness;
  for (int i = 0; i < 4000; ++i) {
    Inputs inputs(random);
    const Case c = block_case(random, 2 + i % 3, inputs);
    const Mask mask = Inputs::mask(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  MESSAGE("tiles visited / needed: ", tightness.visited());
  CHECK(tightness.visited() <= 1.05);
}

TEST_CASE("tiles as large as blocks, or smaller, are partial only where another atom cuts them") {
  std::mt19937_64 random(24);
  const oracle::Sizes sizes = oracle::bottom_right(1024, 2048);
  for (int i = 0; i < 200; ++i) {
    Inputs inputs(random);
    const oracle::Expr blocks = inputs.add_blocks(sizes, 0, 0);
    Case c{blocks, sizes, static_cast<int>(blocks.blocks.q), static_cast<int>(blocks.blocks.kv)};
    c.block_m >>= below(random, 2);
    c.block_n >>= below(random, 2);
    c.inputs = inputs.views();
    const auto counts = [&](const oracle::Expr& expr) {
      return girih::pattern::count_tiles(Inputs::mask(expr), c.geometry(), c.block_m, c.block_n);
    };
    INFO(c.words());
    CHECK(counts(blocks).partial == 0);
    const auto causal = counts({Kind::all_of, {}, {{Kind::causal, {}, {}}, blocks}});
    CHECK(causal.partial <=
          girih::pattern::count_tiles(girih::causal(), c.geometry(), c.block_m, c.block_n).partial);
  }
}

TEST_CASE("heads share what a block mask shows where they read the same plane") {
  std::vector<uint32> words(64, 1);
  InputView view;
  view.data = words.data();
  view.head_stride = 16;
  view.row_stride = 1;
  view.heads_per_plane = 2;
  const Mask mask = Mask::parse("causal & blocks(m0, q=128, kv=128)");
  Geometry a{64, 64, 0, 0};
  a.inputs = &view;
  Geometry b = a;
  b.local_head = 1;
  CHECK(girih::pattern::same_for_heads(mask, a, b));
  b.local_head = 2;
  CHECK_FALSE(girih::pattern::same_for_heads(mask, a, b));
  a.inputs = b.inputs = nullptr;  // nothing is known: nothing tells them apart
  CHECK(girih::pattern::same_for_heads(mask, a, b));
}

// --- Numbers -------------------------------------------------------------------------------------

namespace {

// Compares Leaf<Atom, kFromInputs> with the same atom whose numbers are known: the nearest that it
// takes to what the inputs hold.
template <class Atom, uint32 kFromInputs>
void compare_numbers(std::mt19937_64& random) {
  using Leaf = girih::Leaf<Atom, kFromInputs>;
  for (int round = 0; round < 60; ++round) {
    Inputs inputs(random);
    Geometry g{1 + below(random, 300), 1 + below(random, 300), 0, 0};
    g.q_start = g.seqlen_k - g.seqlen_q;
    g.batch = below(random, kBatch);
    g.local_head = below(random, kHeads);
    std::vector<int> known, handed_over;
    for (int i = 0; i < Leaf::kNumNumbers; ++i) {
      const girih::AtomParam& param = Atom::kInfo.params[i];
      const int most = std::min(param.most, 300);
      static constexpr int kFar[] = {INT_MIN, -2, -1, 0, INT_MAX};
      const int any = below(random, 2) == 0 ? one_of(random, kFar) : below(random, 300);
      const bool from_input = (kFromInputs >> i & 1) != 0;
      known.push_back(std::clamp(any, param.least, from_input ? param.most : most));
      handed_over.push_back(from_input ? inputs.add_number(any, g.batch, g.local_head)
                                       : known.back());
    }
    g.inputs = inputs.views();

    const KeyTiles tiles{16 << below(random, 4), g.seqlen_k};
    const int block_m = 16 << below(random, 4);
    bool equal = true;
    for (int q = 0; q < g.seqlen_q; q += block_m) {
      const QueryRows rows{q, std::min(q + block_m, g.seqlen_q)};
      for (int n = 0; n < tiles.count(); ++n) {
        const Run a = Leaf::seek(handed_over.data(), g, rows, tiles, n);
        const Run b = girih::Leaf<Atom>::seek(known.data(), g, rows, tiles, n);
        equal = equal && a.end == b.end && a.kind == b.kind;
      }
      for (int k = 0; k < g.seqlen_k; k += 16) {
        equal = equal && Leaf::row_bits(handed_over.data(), g, q, KeyWord{k}) ==
                             girih::Leaf<Atom>::row_bits(known.data(), g, q, KeyWord{k});
      }
    }
    CAPTURE(Atom::kInfo.name);
    REQUIRE(equal);
  }
}

}  // namespace

TEST_CASE(
    "numbers that inputs hold are those of the sequence and head, within what an atom takes") {
  std::mt19937_64 random(25);
  compare_numbers<girih::Sink, 0x1>(random);
  compare_numbers<girih::LastKeys, 0x1>(random);
  compare_numbers<girih::FirstQueries, 0x1>(random);
  compare_numbers<girih::LastQueries, 0x1>(random);
  compare_numbers<girih::Chunk, 0x1>(random);
  compare_numbers<girih::Window, 0x1>(random);
  compare_numbers<girih::Window, 0x2>(random);
  compare_numbers<girih::Window, 0x3>(random);
  compare_numbers<girih::BlockWindow, 0x7>(random);
  compare_numbers<girih::BlockWindow, 0x2>(random);
  compare_numbers<girih::BlockStreaming, 0x7>(random);
  compare_numbers<girih::BlockStreaming, 0x1>(random);
}

TEST_CASE("static structures read their inputs as the interpreter does") {
  using girih::All;
  using girih::Any;
  using girih::Leaf;
  using girih::Not;
  using Structure =
      Any<All<Leaf<girih::Causal>, Leaf<girih::Blocks>, Not<Leaf<girih::Window, 0x2>>>,
          Leaf<girih::Sink, 0x1>>;
  using Classes = girih::HeadClasses<Structure, Leaf<girih::Blocks>>;
  std::mt19937_64 random(26);
  for (int round = 0; round < 300; ++round) {
    Inputs inputs(random);
    const oracle::Sizes sizes =
        oracle::bottom_right(1 + below(random, 300), 1 + below(random, 600));
    Case c{inputs.add_blocks(sizes, 1, 2), sizes, 16 << below(random, 4), 16 << below(random, 4)};
    c.batch = 1;
    c.local_head = 2;
    const int right = below(random, 100), sink = below(random, 50);
    const int right_slot = inputs.add_number(right, 1, 2),
              sink_slot = inputs.add_number(sink, 1, 2);
    c.inputs = inputs.views();
    const Geometry g = c.geometry();
    const Mask blocks = Inputs::mask(c.expr);
    const Mask mask = (girih::causal() & blocks & !girih::window({.left = 9, .right = right})) |
                      girih::sink(sink);
    const std::vector<int>& numbers = blocks.numbers();
    const int handed_over[] = {numbers[0], numbers[1], numbers[2], 9, right_slot, sink_slot};
    REQUIRE(Structure::kNumNumbers == std::size(handed_over));

    bool equal = true;
    const KeyTiles tiles{c.block_n, g.seqlen_k};
    for (const auto& [head_class, same] : {std::pair(0, &mask), {1, &blocks}}) {
      for (int q = 0; q < g.seqlen_q; q += c.block_m) {
        const QueryRows rows{q, std::min(q + c.block_m, g.seqlen_q)};
        for (int n = 0; n < tiles.count(); ++n) {
          const Run a = Classes::seek(head_class, handed_over, g, rows, tiles, n);
          const Run b = girih::pattern::seek(*same, g, rows, tiles, n);
          equal = equal && a.end == b.end && a.kind == b.kind;
        }
        for (int k = 0; k < g.seqlen_k; k += 16) {
          equal = equal && Classes::row_bits(head_class, handed_over, g, q, KeyWord{k}) ==
                               girih::pattern::row_bits(*same, g, q, k);
        }
      }
    }
    INFO(c.words());
    REQUIRE(equal);
  }
}
