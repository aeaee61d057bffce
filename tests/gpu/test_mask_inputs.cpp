// The exact mask test of what is given at run time: block masks of every size, form and sharing,
// numbers of tokens, and numbers of atoms.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "hashed_workload.hpp"
#include "planes.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Layout;
using girih::TileConfig;
using girih::verify::BlockForm;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

enum class Sharing { all, kv_heads, heads };

// What is given for an input of a launch whose classes have kHashes heads, one KV head each, and
// see alike. `spare` more blocks than the sequences need lie behind each row and plane.
InputData blocks_for(const Case& c, const std::string& name, int q_block, int kv_block,
                     Sharing sharing, bool shared_by_batch, double density, double skew,
                     BlockForm form, int spare) {
  const int num_classes = c.problem.num_heads_kv;
  const int rows = (c.seqlen_q + q_block - 1) / q_block + spare;
  const int columns = (c.seqlen_k + kv_block - 1) / kv_block + spare;
  const int planes = sharing == Sharing::all ? 1 : num_classes;
  InputData data = girih::verify::random_blocks(name, shared_by_batch ? 1 : c.batch, planes, rows,
                                                columns, density, skew, c.seed);
  data.form = form;
  if (sharing == Sharing::heads) {  // each class's plane for each of its heads
    std::vector<std::uint8_t> visible;
    const auto plane = static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns);
    for (std::size_t p = 0; p < data.visible.size() / plane; ++p) {
      for (int i = 0; i < kHashes; ++i) {
        const auto from = data.visible.begin() + static_cast<std::ptrdiff_t>(p * plane);
        visible.insert(visible.end(), from, from + static_cast<std::ptrdiff_t>(plane));
      }
    }
    data.heads = c.problem.num_heads;
    data.visible = std::move(visible);
  }
  return data;
}

// The classes of every sequence: alone, under causality, and in an expression.
std::vector<std::vector<oracle::Expr>> classes_of(const InputData& data, const Case& c, int q_block,
                                                  int kv_block) {
  std::vector<std::vector<oracle::Expr>> sequences;
  for (int b = 0; b < c.batch; ++b) {
    const auto plane = [&](int head_class) {
      return blocks_of(data, data.plane(b, head_class * kHashes, c.problem.num_heads), q_block,
                       kv_block);
    };
    sequences.push_back({plane(0),
                         both(causal(), plane(1)),
                         {Kind::any_of, {}, {sink(3), both(window(100, 50), negation(plane(2)))}}});
  }
  return sequences;
}

// Every class of every sequence in the same expression: one structure.
std::vector<std::vector<oracle::Expr>> alike(const InputData& data, const Case& c, int q_block,
                                             int kv_block, bool under_causal) {
  std::vector<std::vector<oracle::Expr>> sequences(static_cast<std::size_t>(c.batch));
  for (int b = 0; b < c.batch; ++b) {
    for (int head = 0; head < c.problem.num_heads; head += kHashes) {
      const oracle::Expr plane =
          blocks_of(data, data.plane(b, head, c.problem.num_heads), q_block, kv_block);
      sequences[static_cast<std::size_t>(b)].push_back(under_causal ? both(causal(), plane)
                                                                    : plane);
    }
  }
  return sequences;
}

void check_classes(const Case& c, const InputData& data,
                   const std::vector<std::vector<oracle::Expr>>& sequences,
                   const std::string& description, const TileConfig& tile = {}) {
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < sizes.size(); ++b) expected.emplace_back(sequences[b], sizes[b]);
  check_kernels(pattern_text(sequences[0], kHashes), with_input(c, data), {&tile, 1}, expected,
                description);
}

void check_blocks(const Case& c, const InputData& data, int q_block, int kv_block,
                  const std::string& description, const TileConfig& tile = {}) {
  check_classes(c, data, classes_of(data, c, q_block, kv_block), description, tile);
}

// Some rows of one class, in both kernels.
void check_long_rows(const Case& c, const InputData& data, const std::vector<oracle::Expr>& classes,
                     const std::string& description) {
  std::vector<int> rows;
  for (int q = 0; q < c.seqlen_q; q += 1021) rows.push_back(q);
  rows.push_back(c.seqlen_q - 1);
  const std::vector<Expected> expected = {
      Expected(classes, with_heads(oracle::bottom_right(c.seqlen_q, c.seqlen_k), c.problem), rows)};
  check_kernels(oracle::text(classes[0]), with_input(c, data), kKernels, expected, description);
}

Case block_case(int head_dim, int batch, Lengths lengths, std::uint64_t seed) {
  Case c = mask_case(make_problem(DType::bfloat16, head_dim, 3 * kHashes, 3), batch, lengths);
  c.seed = seed;
  return c;
}

}  // namespace

TEST_CASE("block masks of every size, form and sharing show exactly their blocks") {
  constexpr std::pair<int, int> kSizes[] = {{128, 128}, {64, 64},  {128, 64}, {64, 128}, {32, 32},
                                            {16, 16},   {128, 16}, {16, 128}, {32, 64}};
  constexpr Lengths kBlockLengths[] = {
      {1024, 1023}, {128, 217}, {300, 1111}, {700, 333}, {1, 5175}};
  constexpr BlockForm kForms[] = {BlockForm::list, BlockForm::plane_list, BlockForm::table,
                                  BlockForm::bytes, BlockForm::bits};
  constexpr Sharing kSharings[] = {Sharing::all, Sharing::kv_heads, Sharing::heads};
  std::uint64_t turn = 0;
  for (const auto& [q_block, kv_block] : kSizes) {
    for (const Lengths lengths : kBlockLengths) {
      for (int i = 0; i < 3; ++i, ++turn) {
        const BlockForm form = kForms[turn % 5];
        const Sharing sharing = kSharings[i];
        const bool shared_by_batch = turn % 4 == 3;
        const Case c = block_case(turn % 2 == 0 ? 64 : 128, 2, lengths, turn + 1);
        const InputData data = blocks_for(c, "m", q_block, kv_block, sharing, shared_by_batch, 0.3,
                                          turn % 3 == 0 ? 2 : 0, form, static_cast<int>(turn % 3));
        for (const TileConfig& tile : kKernels) {
          if (tile.portable && turn % 4 != 1) continue;  // meets every size, form and sharing
          check_blocks(c, data, q_block, kv_block,
                       fmt::format("blocks {} x {}, form {}, sharing {}", q_block, kv_block,
                                   static_cast<int>(form), i),
                       tile);
        }
      }
    }
  }
}

TEST_CASE("query heads that share their blocks share tiles and see exactly their keys") {
  constexpr std::pair<int, int> kSizes[] = {{64, 64}, {64, 32}, {64, 16}, {32, 16}, {16, 128}};
  constexpr Lengths kLengths[] = {{1024, 1023}, {300, 1111}};
  constexpr int kHeadDims[] = {64, 128, 192, 256};
  std::uint64_t turn = 200;
  for (const auto& [q_block, kv_block] : kSizes) {
    for (const Lengths lengths : kLengths) {
      ++turn;
      Case c = block_case(kHeadDims[turn % 4], 2, lengths, turn);
      c.problem.shared_inputs = true;
      const InputData data = blocks_for(c, "m", q_block, kv_block, Sharing::kv_heads, false, 0.3, 0,
                                        BlockForm::list, 0);
      const std::string description = fmt::format("shared blocks {} x {}", q_block, kv_block);
      for (const TileConfig& tile : kKernels) {
        if (tile.portable && lengths.q == 300) continue;
        check_blocks(c, data, q_block, kv_block, description + " in three expressions", tile);
        check_classes(c, data, alike(data, c, q_block, kv_block, turn % 2 == 0), description, tile);
      }
    }
  }
}

TEST_CASE("a broken promise of shared inputs changes no result") {
  std::uint64_t seed = 300;
  for (const auto& [q_block, kv_block] : {std::pair{64, 64}, {64, 16}}) {
    Case c = block_case(128, 2, {700, 900}, ++seed);
    const InputData data =
        blocks_for(c, "m", q_block, kv_block, Sharing::heads, false, 0.3, 0, BlockForm::table, 0);
    c.problem.num_heads_kv = 1;
    c.problem.shared_inputs = true;
    for (const TileConfig& tile : kKernels) {
      check_classes(c, data, alike(data, c, q_block, kv_block, false),
                    fmt::format("blocks {} x {} of their own", q_block, kv_block), tile);
    }
  }
}

TEST_CASE("key tiles gathered from small blocks show exactly their keys") {
  constexpr std::pair<int, int> kSizes[] = {{128, 16}, {128, 32}, {128, 64}, {64, 16}, {64, 32}};
  constexpr Lengths kLengths[] = {{1024, 1023}, {300, 1111}, {333, 16}};
  std::uint64_t turn = 400;
  for (const auto& [q_block, kv_block] : kSizes) {
    for (const Lengths lengths : kLengths) {
      ++turn;
      const Case c = block_case(turn % 3 == 0 ? 192 : turn % 3 == 1 ? 64 : 128, 2, lengths, turn);
      const InputData data = blocks_for(c, "m", q_block, kv_block, Sharing::heads, turn % 2 == 0,
                                        0.2, 1, BlockForm::bits, 1);
      for (const TileConfig& tile : kKernels) {  // the portable kernel's are not gathered
        if (tile.portable && lengths.q != 300) continue;
        check_classes(c, data, alike(data, c, q_block, kv_block, turn % 2 == 1),
                      fmt::format("gathered blocks {} x {}", q_block, kv_block), tile);
      }
    }
  }
}

TEST_CASE("block masks of every density, of single blocks and of one full row are exact") {
  std::uint64_t seed = 100;
  for (const double density : {0.0, 0.1, 0.3, 0.7, 1.0}) {
    for (const int block : {64, 128}) {
      const Case c = block_case(128, 2, {2048, 2048}, ++seed);
      const InputData data = blocks_for(c, "m", block, block, Sharing::kv_heads, false, density, 0,
                                        BlockForm::list, 0);
      for (const TileConfig& tile : kKernels) {
        check_blocks(c, data, block, block, fmt::format("density {}", density), tile);
      }
    }
  }
  for (const bool full_row : {false, true}) {
    const Case c = block_case(64, 1, {2048, 2048}, ++seed);
    InputData data =
        blocks_for(c, "m", 128, 128, Sharing::kv_heads, false, 0, 0, BlockForm::table, 0);
    for (std::size_t row = 0; row < 3 * 16; ++row) data.visible[row * 16 + row * 7 % 16] = 1;
    if (full_row) std::fill_n(data.visible.begin() + 16 * 5, 16, std::uint8_t{1});
    for (const TileConfig& tile : kKernels) {
      check_blocks(c, data, 128, 128, full_row ? "one full row" : "single blocks", tile);
    }
  }
}

TEST_CASE("block masks follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(3);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const auto& [q_block, kv_block] : {std::pair{128, 128}, {32, 64}}) {
      const Case c = with_ragged_lengths(
          block_case(64, 7, {300, 420}, 500 + static_cast<std::uint64_t>(q_block)), layout, random);
      const InputData data =
          blocks_for(c, "m", q_block, kv_block, Sharing::heads, false, 0.4, 0, BlockForm::list, 1);
      for (const TileConfig& tile : kKernels) {
        check_blocks(c, data, q_block, kv_block, "sequences of their own lengths", tile);
      }
    }
  }
}

TEST_CASE("block masks show exactly their blocks at 131072 x 131072") {
  const int length = 1 << 17;
  Case c = mask_case(make_problem(DType::bfloat16, 64, kHashes, 1), 1, {length, length});
  c.seed = 9;
  for (const auto& [q_block, kv_block] : {std::pair{128, 128}, {64, 16}}) {
    const InputData data =
        blocks_for(c, "m", q_block, kv_block, Sharing::all, true, 0.05, 1, BlockForm::list, 0);
    const std::vector<oracle::Expr> classes = {
        both(causal(), blocks_of(data, 0, q_block, kv_block))};
    check_long_rows(c, data, classes, fmt::format("blocks {} x {}", q_block, kv_block));
  }
}

namespace {

// Three classes of kHashes heads with a KV head each, which an input tells apart. atom(kind, plane)
// reads one of its planes, and stands alone, under causality, and in an expression.
template <class Atom>
void check_three_classes(const Case& c, const InputData& data, const std::string& description,
                         const Kind (&kinds)[3], const Atom& atom, const TileConfig& tile) {
  std::vector<std::vector<oracle::Expr>> sequences;
  for (int b = 0; b < c.batch; ++b) {
    const auto of_class = [&](int head_class) {
      return atom(kinds[head_class], data.plane(b, head_class * kHashes, c.problem.num_heads));
    };
    sequences.push_back(
        {of_class(0),
         both(causal(), of_class(1)),
         {Kind::any_of, {}, {sink(3), both(window(100, 50), negation(of_class(2)))}}});
  }
  check_classes(c, data, sequences, description, tile);
}

void check_indices(const Case& c, const InputData& data, const std::string& description,
                   const TileConfig& tile = {}) {
  check_three_classes(
      c, data, description, {Kind::index_ge, Kind::segments, Kind::index_gt},
      [&](Kind kind, int plane) { return indices_of(kind, data, plane); }, tile);
}

void check_columns(const Case& c, const InputData& data, const std::string& description,
                   const TileConfig& tile = {}) {
  check_three_classes(
      c, data, description, {Kind::columns, Kind::columns, Kind::columns},
      [&](Kind, int plane) { return columns_of(data, plane); }, tile);
}

}  // namespace

TEST_CASE("intervals of rows show exactly the keys that have the row, one or two of them a key") {
  constexpr Lengths kKeyLengths[] = {{1024, 1024}, {128, 217}, {300, 2111}, {700, 333}, {1, 5175}};
  std::uint64_t turn = 0;
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const Lengths lengths : kKeyLengths) {
      for (const int intervals : {1, 2}) {
        const Case c = block_case(head_dim, 2, lengths, ++turn);
        const int most = turn % 3 == 0 ? 9 : turn % 3 == 1 ? 200 : 3000;
        const InputData data =
            girih::verify::random_columns("d", turn % 4 == 3 ? 1 : 2, turn % 5 == 0 ? 1 : 3,
                                          lengths.q, lengths.k, intervals, most, turn);
        for (const TileConfig& tile : kKernels) {
          if (tile.portable && turn / 2 % 2 == 0) continue;
          check_columns(c, data, fmt::format("{} intervals of up to {} rows", intervals, most),
                        tile);
        }
      }
    }
  }
}

TEST_CASE("intervals of rows follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(5);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    const Case c = with_ragged_lengths(block_case(64, 7, {300, 420}, 601), layout, random);
    for (const int intervals : {1, 2}) {
      const InputData data = girih::verify::random_columns("d", 7, 3, 300, 420, intervals, 80, 8);
      for (const TileConfig& tile : kKernels) {
        check_columns(c, data, "intervals in sequences of their own lengths", tile);
      }
    }
  }
}

TEST_CASE("sanitizer: intervals of rows show exactly the keys that have the row") {
  Case c = block_case(64, 3, {150, 210}, 42);
  c.problem.layout = Layout::thd;
  c.lengths.q = {150, 0, 129};
  c.lengths.k = {210, 64, 1};
  c.max_ctas = 2;
  for (const TileConfig& tile : kKernels) {
    check_columns(c, girih::verify::random_columns("d", 3, 3, 150, 210, 2, 40, 12), "sanitizer",
                  tile);
  }
}

TEST_CASE("numbers of tokens show exactly the keys that they allow, in order and in none") {
  constexpr Lengths kTokenLengths[] = {{1024, 1024}, {1024, 1023}, {128, 217}, {300, 2111},
                                       {700, 333},   {1, 5175},    {15, 15}};
  std::uint64_t turn = 0;
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const Lengths lengths : kTokenLengths) {
      for (const int planes : {1, 3, 3 * kHashes}) {
        const Case c = block_case(head_dim, 2, lengths, ++turn);
        const int batch = turn % 4 == 3 ? 1 : c.batch;
        // KV heads have planes of their own where there are 3; else heads, which must see alike.
        InputData data = girih::verify::random_documents("d", batch, planes == 1 ? 1 : 3, lengths.q,
                                                         lengths.k, 60, turn);
        if (turn % 2 == 0) {
          data = girih::verify::random_indices("d", batch, planes == 1 ? 1 : 3, lengths.q,
                                               lengths.k, 1 + static_cast<int>(turn % 7), turn);
        }
        if (planes > 3) {
          const auto each = [&](std::vector<std::int32_t>& numbers, int length) {
            std::vector<std::int32_t> repeated;
            const auto size = static_cast<std::size_t>(length);
            for (std::size_t plane = 0; plane < numbers.size() / size; ++plane) {
              const auto from = numbers.begin() + static_cast<std::ptrdiff_t>(plane * size);
              for (int i = 0; i < kHashes; ++i) {
                repeated.insert(repeated.end(), from, from + length);
              }
            }
            numbers = std::move(repeated);
          };
          each(data.numbers, lengths.q);
          each(data.key_numbers, lengths.k);
          data.heads = planes;
        }
        for (const TileConfig& tile : kKernels) {
          if (tile.portable && turn % 4 > 1) continue;
          check_indices(c, data, fmt::format("indices in {} planes", planes), tile);
        }
      }
    }
  }
}

TEST_CASE("numbers of tokens follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(4);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    const Case c = with_ragged_lengths(block_case(64, 7, {300, 420}, 600), layout, random);
    for (const TileConfig& tile : kKernels) {
      check_indices(c, girih::verify::random_documents("d", 7, 3, 300, 420, 30, 8),
                    "documents in sequences of their own lengths", tile);
      check_indices(c, girih::verify::random_indices("d", 7, 1, 300, 420, 3, 9),
                    "indices in sequences of their own lengths", tile);
    }
  }
}

TEST_CASE("documents show exactly their keys at 131072 x 131072") {
  const int length = 1 << 17;
  Case c = mask_case(make_problem(DType::bfloat16, 128, kHashes, 1), 1, {length, length});
  c.seed = 10;
  const InputData data = girih::verify::random_documents("d", 1, 1, length, length, 4096, 11);
  for (const bool with_causal : {false, true}) {
    const oracle::Expr alone = indices_of(Kind::segments, data, 0);
    const std::vector<oracle::Expr> classes = {with_causal ? both(causal(), alone) : alone};
    check_long_rows(c, data, classes, "documents");
  }
}

TEST_CASE("sanitizer: numbers of tokens show exactly the keys that they allow") {
  Case c = block_case(64, 3, {150, 210}, 41);
  c.problem.layout = Layout::thd;
  c.lengths.q = {150, 0, 129};
  c.lengths.k = {210, 64, 1};
  c.max_ctas = 2;
  for (const TileConfig& tile : kKernels) {
    check_indices(c, girih::verify::random_documents("d", 3, 3, 150, 210, 20, 12), "sanitizer",
                  tile);
    check_indices(c, girih::verify::random_indices("d", 1, 1, 150, 210, 4, 13), "sanitizer", tile);
  }
}

TEST_CASE(
    "numbers from run-time inputs show exactly their keys, and count as the nearest allowed") {
  Case c = mask_case(make_problem(DType::bfloat16, 64, 2 * kHashes, 2), 2, {300, 420});
  const std::vector<std::int32_t> n = {17, 100, -5, 0};  // [batch, KV heads]
  const std::vector<std::int32_t> w = {30, -9};          // [batch, 1]
  c.inputs = {
      {.kind = girih::InputInfo::Kind::number, .name = "w", .batch = 2, .numbers = w},
      {.kind = girih::InputInfo::Kind::number, .name = "n", .batch = 2, .heads = 2, .numbers = n}};
  std::vector<Expected> expected;
  const std::vector<oracle::Sizes> sizes = sizes_of(c);
  for (std::size_t b = 0; b < 2; ++b) {
    const oracle::Expr streaming_part = {
        Kind::any_of, {}, {sink(std::max(n[2 * b], 0)), window(std::max(w[b], -1), -1)}};
    expected.emplace_back(
        std::vector{both(causal(), streaming_part), atom(Kind::chunk, {std::max(n[2 * b + 1], 1)})},
        sizes[b]);
  }
  check_kernels("heads(0-3: causal & (sink($n) | window(left=$w)), else: chunk($n))", c, kKernels,
                expected, "numbers");
}

TEST_CASE("sanitizer: block masks show exactly their blocks") {
  for (const auto& [q_block, kv_block, form] : {std::tuple{128, 128, BlockForm::list},
                                                {16, 32, BlockForm::table},
                                                {64, 64, BlockForm::bytes}}) {
    Case c = block_case(64, 3, {150, 210}, 40 + static_cast<std::uint64_t>(q_block));
    c.problem.layout = Layout::thd;
    c.lengths.q = {150, 0, 129};
    c.lengths.k = {210, 64, 1};
    c.max_ctas = 2;
    const InputData data =
        blocks_for(c, "m", q_block, kv_block, Sharing::heads, false, 0.4, 0, form, 0);
    for (const TileConfig& tile : kKernels) {
      check_blocks(c, data, q_block, kv_block, "sanitizer", tile);
    }
    c.problem.layout = Layout::bshd;
    c.lengths = {};
    c.problem.shared_inputs = true;
    const InputData shared =
        blocks_for(c, "m", q_block, kv_block, Sharing::kv_heads, false, 0.4, 0, form, 0);
    check_classes(c, shared, alike(shared, c, q_block, kv_block, true), "sanitizer, shared");
  }
}
