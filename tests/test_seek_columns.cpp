// What is visible and which tiles are visited where keys say which rows see them: against the
// oracle's naive predicate.
#include <doctest/doctest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "girih/shared/structure.cuh"
#include "oracle/oracle.hpp"
#include "pattern/interpret.hpp"
#include "seek.hpp"
#include "verify/inputs.hpp"

using namespace girih::tests;
using girih::Columns;
using girih::Geometry;
using girih::InputView;
using girih::KeyTiles;
using girih::Mask;
using girih::Run;
using girih::TileKind;
using girih::TokenNumbers;
using girih::uint32;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

constexpr int kBatch = 2, kHeads = 4;  // of a launch

// One input of a launch, of which a case sees one plane.
struct Input {
  InputData data;
  std::vector<uint32> words;
  InputView view;

  Input(std::mt19937_64& random, const oracle::Sizes& sizes) {
    const int heads_per_plane = 1 << below(random, 3);
    const int seqlen_k = static_cast<int>(sizes.seqlen_k) + below(random, 3) * below(random, 1100);
    const int most = 1 + below(random, 1 + below(random, 2000));
    data = girih::verify::random_columns("d", 1 + below(random, kBatch), kHeads / heads_per_plane,
                                         static_cast<int>(sizes.seqlen_q), seqlen_k,
                                         1 + below(random, 2), most, random());
    words = girih::verify::number_planes(data, view.row_stride);
    view.data = words.data();
    view.head_stride =
        std::int64_t{Columns::kSides} * TokenNumbers::kWordsPerSpan * view.row_stride;
    view.batch_stride = data.batch == 1 ? 0 : data.heads * view.head_stride;
    view.heads_per_plane = heads_per_plane;
  }

  oracle::Expr atom(int batch, int head) const {
    oracle::Expr expr{Kind::columns, {}, {}};
    expr.columns.name = "d";
    const std::int32_t* bound = data.bounds.data() + std::int64_t{data.plane(batch, head, kHeads)} *
                                                         data.seqlen_k * 2 * data.num_intervals;
    for (int k = 0; k < data.seqlen_k; ++k) {
      expr.columns.rows.emplace_back();
      for (int i = 0; i < data.num_intervals; ++i, bound += 2) {
        expr.columns.rows.back().emplace_back(bound[0], bound[1]);
      }
    }
    return expr;
  }
};

void put_atoms(oracle::Expr& expr, std::mt19937_64& random, const oracle::Expr& atom, bool& some) {
  for (oracle::Expr& operand : expr.operands) put_atoms(operand, random, atom, some);
  if (!expr.operands.empty() || (some && below(random, 3) != 0)) return;
  expr = atom;
  some = true;
}

// Expressions of at most `depth` levels with the input at some places.
Case column_case(std::mt19937_64& random, int depth) {
  Case c = random_case(random, depth);
  if (below(random, 8) == 0) {  // several spans of keys
    c.sizes = oracle::bottom_right(c.sizes.seqlen_q, 900 + below(random, 2500));
    c.block_n = 16 << below(random, 4);
  }
  c.batch = below(random, kBatch);
  c.local_head = below(random, kHeads);
  return c;
}

Mask mask_of(const oracle::Expr& expr) {
  return Mask::parse(oracle::text(expr)).with_inputs([](const std::string&) { return 0; });
}

}  // namespace

TEST_CASE("a key's intervals show it exactly to their rows, alone and in expressions") {
  std::mt19937_64 random(41);
  for (int i = 0; i < 1500; ++i) {
    Case c = column_case(random, 1 + i % 4);
    const Input input(random, c.sizes);
    bool some = false;
    put_atoms(c.expr, random, input.atom(c.batch, c.local_head), some);
    c.inputs = &input.view;
    const Mask mask = mask_of(c.expr);
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

TEST_CASE("seeks of expressions with intervals of rows are sound") {
  std::mt19937_64 random(42);
  Tightness tightness;
  for (int i = 0; i < 3000; ++i) {
    Case c = column_case(random, 1 + i % 3);
    const Input input(random, c.sizes);
    bool some = false;
    put_atoms(c.expr, random, input.atom(c.batch, c.local_head), some);
    c.inputs = &input.view;
    const Mask mask = mask_of(c.expr);
    for (int q0 = 0; q0 < c.sizes.seqlen_q; q0 += c.block_m) {
      check_row_of_tiles(c, mask, q0, tightness);
    }
  }
  CHECK(tightness.truth.visited > 0);
}

// FlashMask's causal documents: a key is masked from its document's end on.
TEST_CASE("keys of other documents are passed over in a few seeks") {
  constexpr int kLength = 32768, kTile = 128, kDocument = 4096;
  InputData data{.kind = girih::InputInfo::Kind::columns, .name = "d"};
  data.seqlen_q = data.seqlen_k = kLength;
  data.num_intervals = 1;
  for (int k = 0; k < kLength; ++k) {
    data.bounds.push_back((k / kDocument + 1) * kDocument);
    data.bounds.push_back(kLength);
  }
  InputView view;
  const std::vector<uint32> words = girih::verify::number_planes(data, view.row_stride);
  view.data = words.data();
  Geometry geometry{kLength, kLength, 0, 0};
  geometry.inputs = &view;
  const Mask mask =
      Mask::parse("causal & !columns(d)").with_inputs([](const std::string&) { return 0; });
  const KeyTiles tiles{kTile, kLength};
  std::int64_t visited = 0, partial = 0, seeks = 0;
  for (int q = 0; q < kLength; q += kTile) {
    for (int n = 0; n < tiles.count(); ++seeks) {
      const Run run = girih::pattern::seek(mask, geometry, {q, q + kTile}, tiles, n);
      if (run.kind != TileKind::empty) visited += run.end - n;
      if (run.kind == TileKind::partial) partial += run.end - n;
      n = run.end;
    }
  }
  constexpr int kTilesOfDocument = kDocument / kTile;
  CHECK(visited == kLength / kDocument * kTilesOfDocument * (kTilesOfDocument + 1) / 2);
  CHECK(partial == kLength / kTile);  // the diagonal alone
  CHECK(seeks <= 6 * (kLength / kTile));
}
