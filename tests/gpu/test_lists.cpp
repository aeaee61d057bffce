// What Kernel::build_lists makes of run-time inputs on a GPU, word by word, against the definitions
// of the inputs: bits of blocks, of columns and slashes, numbers of tokens with their ranges, and
// tiles of conditions. Lengths are no multiples of anything, lists hold entries twice and out of
// range, and memory that is not written is poisoned.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <climits>
#include <cstdint>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "runtime/inputs.hpp"
#include "support.hpp"
#include "verify/inputs.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::SlashPlane;
using girih::Tensor;
using girih::verify::Buffer;

namespace {

using Words = std::vector<std::uint32_t>;
using Ints = std::vector<std::int32_t>;

struct Shape {
  int batch, seqlen_q, seqlen_k, heads, heads_kv;
};
constexpr Shape kShapes[] = {
    {2, 333, 1777, 8, 2}, {1, 2309, 1100, 4, 4}, {3, 1, 1, 2, 1}, {2, 1025, 4099, 6, 2}};

std::string name_of(const Shape& s) {
  return fmt::format("batch {}, {} x {}, heads {}:{}", s.batch, s.seqlen_q, s.seqlen_k, s.heads,
                     s.heads_kv);
}

std::size_t at(std::int64_t index) { return static_cast<std::size_t>(index); }
int blocks(int length, int size) { return (length + size - 1) / size; }

// Device memory with these numbers; one more, for memory of nothing has no address.
struct Uploaded : Buffer {
  explicit Uploaded(const Ints& numbers) : Buffer(4 * (numbers.size() + 1)) {
    if (!numbers.empty()) upload(numbers.data(), 4 * numbers.size());
  }
  std::int32_t* ints() const { return static_cast<std::int32_t*>(data()); }
};

class Random {
 public:
  explicit Random(std::uint64_t seed) : random_(seed) {}
  int below(int bound) { return static_cast<int>(random_() % static_cast<unsigned>(bound)); }
  bool one_in(int n) { return below(n) == 0; }
  // As many numbers from `least` to `most`.
  Ints numbers(std::int64_t count, int least, int most) {
    Ints result(at(count));
    for (std::int32_t& number : result) number = least + below(most - least + 1);
    return result;
  }

 private:
  std::mt19937_64 random_;
};

// The part of a pattern's only input in the workspace, once the lists are built.
Words built(const std::string& text, const Shape& s, decltype(girih::Input::data) input,
            const int* seqused_k = nullptr) {
  const auto kernel = girih::jit::compile(girih::Pattern::parse(text),
                                          make_problem(DType::bfloat16, 64, s.heads, s.heads_kv));
  const auto bytes = [&](int length, int heads) {
    return at(std::int64_t{2} * s.batch * length * heads * 64);
  };
  const Buffer rows(bytes(s.seqlen_q, s.heads)), keys(bytes(s.seqlen_k, s.heads_kv));
  girih::jit::Args args;
  args.q = args.out =
      Tensor::contiguous(rows.data(), DType::bfloat16, {s.batch, s.seqlen_q, s.heads, 64});
  args.k = args.v =
      Tensor::contiguous(keys.data(), DType::bfloat16, {s.batch, s.seqlen_k, s.heads_kv, 64});
  args.seqused_k = seqused_k;
  args.inputs = {{"m", std::move(input)}};
  const Buffer workspace(kernel.workspace_bytes(args));
  kernel.build_lists(args, {workspace.data(), workspace.size()});
  girih::verify::synchronize();
  ++kernels_bound;
  Words words((workspace.size() - girih::runtime::kWorkspaceHeadBytes) / 4);
  workspace.download(words.data(), 4 * words.size(), girih::runtime::kWorkspaceHeadBytes);
  return words;
}

bool bit_of(const Words& words, std::int64_t first, int bit) {
  return (words[at(first + bit / 32)] >> bit % 32 & 1) != 0;
}

// --- Blocks

// Planes of a source that tells sequences and heads apart, or not.
struct Planes {
  int batch, heads;
  int count() const { return batch * heads; }
};
std::vector<Planes> planes_of(const Shape& s) {
  return {{s.batch, s.heads}, {s.batch, s.heads_kv}, {1, s.heads}, {1, 1}};
}

// Every word of every row: rows[plane * num_rows + row] holds the visible blocks.
void check_rows(const Words& words, const std::vector<std::set<int>>& rows, int num_columns) {
  const int words_per_row = blocks(num_columns, 32);
  REQUIRE(words.size() >= rows.size() * at(words_per_row));
  std::int64_t wrong = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    Words expected(at(words_per_row), 0);
    for (const int column : rows[row]) {
      if (0 <= column && column < num_columns) expected[at(column / 32)] |= 1u << column % 32;
    }
    const auto first = words.begin() + static_cast<std::ptrdiff_t>(row * expected.size());
    wrong += !std::equal(expected.begin(), expected.end(), first);
    ++rows_checked;
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("built lists: bits of compressed and padded rows of blocks") {
  Random random(1);
  for (const Shape& s : kShapes) {
    const int sizes[][2] = {{128, 64}, {64, 16}, {16, 128}};
    for (const auto& [size_q, size_kv] : sizes) {
      for (const Planes planes : planes_of(s)) {
        CAPTURE(name_of(s));
        CAPTURE(planes.heads);
        const int num_rows = blocks(s.seqlen_q, size_q) + random.below(3);
        const int num_columns = blocks(s.seqlen_k, size_kv) + random.below(40);
        const int all_rows = planes.count() * num_rows;
        const std::string text = fmt::format("blocks(m, q={}, kv={})", size_q, size_kv);
        const auto entries = [&](int count) {  // some twice, some out of range
          return random.numbers(count, -2, num_columns + 1);
        };

        // Padded: counts beyond their table's width, and negative ones, end with it.
        const int capacity = random.below(2 * num_columns + 1) + 1;
        const Ints counts = random.numbers(all_rows, -1, capacity + 1);
        const Ints table = entries(all_rows * capacity);
        std::vector<std::set<int>> expected(at(all_rows));
        for (int row = 0; row < all_rows; ++row) {
          const int count = std::clamp(counts[at(row)], 0, capacity);
          const auto first = table.begin() + std::int64_t{row} * capacity;
          expected[at(row)].insert(first, first + count);
        }
        const Uploaded counts_there(counts), table_there(table);
        check_rows(built(text, s,
                         girih::BlockTable{.kv_num_blocks = counts_there.ints(),
                                           .kv_block_indices = table_there.ints(),
                                           .row_capacity = capacity,
                                           .batch = planes.batch,
                                           .heads = planes.heads,
                                           .num_q_blocks = num_rows,
                                           .num_kv_blocks = num_columns}),
                   expected, num_columns);

        // Compressed: counted through all planes, or in each; some rows end before they begin, and
        // the last beyond the list.
        for (const bool own : {false, true}) {
          Ints indptr;
          int next = 0, most = 0;
          for (int plane = 0; plane < planes.count(); ++plane) {
            if (own) next = 0;
            for (int row = 0; row < num_rows; ++row) {
              indptr.push_back(next);
              next = random.one_in(8) ? std::max(next - 2, 0) : next + random.below(num_columns);
            }
            indptr.push_back(next);
            most = std::max(most, *std::max_element(indptr.begin(), indptr.end()));
          }
          const int stride = own ? most : 0;
          const Ints list = entries(own ? most * planes.count() : most);
          indptr.back() += 5;
          for (int row = 0; row < all_rows; ++row) {
            const int plane = row / num_rows;
            const auto from = indptr.begin() + row + plane;
            std::set<int>& visible = expected[at(row)];
            visible.clear();
            for (std::int64_t i = std::int64_t{plane} * stride + from[0];
                 i < std::int64_t{plane} * stride + from[1]; ++i) {
              if (i < static_cast<std::int64_t>(list.size())) visible.insert(list[at(i)]);
            }
          }
          const Uploaded indptr_there(indptr), list_there(list);
          check_rows(built(text, s,
                           girih::BlockList{.kv_block_indptr = indptr_there.ints(),
                                            .kv_block_indices = list_there.ints(),
                                            .num_indices = static_cast<std::int64_t>(list.size()),
                                            .plane_stride = stride,
                                            .batch = planes.batch,
                                            .heads = planes.heads,
                                            .num_q_blocks = num_rows,
                                            .num_kv_blocks = num_columns}),
                     expected, num_columns);
        }
      }
    }
  }
}

TEST_CASE("built lists: bits of byte masks, by any strides") {
  Random random(2);
  for (const Shape& s : kShapes) {
    for (const Planes planes : planes_of(s)) {
      for (const bool strided : {false, true}) {
        CAPTURE(name_of(s));
        CAPTURE(planes.heads);
        const int num_rows = blocks(s.seqlen_q, 64) + random.below(2);
        const int num_columns = blocks(s.seqlen_k, 32) + random.below(3);
        // Planes of a head lie before those of a sequence, and rows are longer than they need be.
        const std::int64_t row_stride = num_columns + (strided ? 5 : 0);
        const std::int64_t plane = num_rows * row_stride;
        const std::int64_t head_stride = plane * (strided ? planes.batch : 1);
        const std::int64_t batch_stride = strided ? plane : plane * planes.heads;
        std::vector<unsigned char> bytes(at(plane * planes.count()));
        for (unsigned char& byte : bytes) {
          const int value = random.below(6);
          byte = static_cast<unsigned char>(value < 3 ? 0 : value == 3 ? 128 : value);
        }
        std::vector<std::set<int>> expected;
        for (int b = 0; b < planes.batch; ++b) {
          for (int h = 0; h < planes.heads; ++h) {
            for (int row = 0; row < num_rows; ++row) {
              expected.emplace_back();
              for (int column = 0; column < num_columns; ++column) {
                const std::int64_t index =
                    b * batch_stride + h * head_stride + row * row_stride + column;
                if (bytes[at(index)] != 0) expected.back().insert(column);
              }
            }
          }
        }
        Buffer there(bytes.size());
        there.upload(bytes.data(), bytes.size());
        girih::BlockMask mask{.data = there.data(),
                              .batch = planes.batch,
                              .heads = planes.heads,
                              .num_q_blocks = num_rows,
                              .num_kv_blocks = num_columns};
        if (strided) {
          mask.batch_stride = batch_stride;
          mask.head_stride = head_stride;
          mask.row_stride = row_stride;
        }
        check_rows(built("blocks(m, q=64, kv=32)", s, mask), expected, num_columns);
      }
    }
  }
}

// --- Columns and slashes

namespace {

// The keys in windows of a block of 64 rows at the first row's position, by the distances, the
// farthest first: each wants 64 keys.
std::vector<std::pair<int, int>> windows_of(const std::set<int, std::greater<>>& distances,
                                            int position) {
  std::vector<std::pair<int, int>> ranges;
  for (const int distance : distances) {
    if (distance >= position + 64) continue;
    const int end = std::max(position + 64 - distance, 64);
    if (ranges.empty() || end > ranges.back().second + 64) {
      ranges.emplace_back(end - 64, end);
    } else if (end > ranges.back().second) {
      ranges.back().second += 64;
    }
  }
  return ranges;
}

// Sequences have `lengths` keys.
void check_slashes(const Words& words, const Shape& s, const Planes& planes, const Ints& lengths,
                   const Ints& vertical, const Ints& slash, int num_vertical, int num_slash) {
  const int num_blocks = blocks(s.seqlen_q, 64);
  const int words_per_row = SlashPlane::words_per_row(s.seqlen_k);
  const std::int64_t plane_words = SlashPlane::row_at(words_per_row, num_blocks, num_blocks);
  REQUIRE(static_cast<std::int64_t>(words.size()) >= plane_words * s.batch * planes.heads);
  std::int64_t wrong = 0;
  for (int b = 0; b < s.batch; ++b) {
    const int length = lengths[at(b)];
    for (int h = 0; h < planes.heads; ++h) {
      const int source = (planes.batch == 1 ? 0 : b * planes.heads) + h;
      const std::int64_t plane = plane_words * (b * planes.heads + h);
      const auto columns = vertical.begin() + std::int64_t{source} * num_vertical;
      const std::set<int> visible(columns, columns + num_vertical);
      for (int key = 0; key < length; ++key) {
        wrong += bit_of(words, plane, key) != (visible.count(key) > 0);
      }

      std::set<int, std::greater<>> distances = {0};
      for (int i = 0; i < num_slash; ++i) {
        const int distance = slash[at(std::int64_t{source} * num_slash + i)];
        if (distance >= 0) distances.insert(distance);
      }
      const SlashPlane plane_there{words.data() + plane, words_per_row};
      for (int block = 0; block < num_blocks; ++block) {
        const int position = 64 * block + length - s.seqlen_q;
        // Behind the keys that its rows may see are zeros, as many as a tile of 512 rows reads.
        const int written = std::clamp(position + 64 + 512, 0, length);
        Words expected(at(blocks(written, 32)), 0);
        for (const auto& [begin, end] : windows_of(distances, position)) {
          for (int key = begin; key < std::min(end, written); ++key) {
            expected[at(key / 32)] |= 1u << key % 32;
          }
        }
        const girih::SlashRow row = plane_there.windows(block);
        for (int key = 0; key < written; key += 32) {
          const std::uint32_t differing = expected[at(key / 32)] ^ row[key / 32];
          wrong += (differing & girih::KeyWord{key}.below(written)) != 0;
        }
        ++rows_checked;
      }
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("built lists: a bit for each key and block of 64 rows of columns and slashes") {
  Random random(3);
  for (const Shape& s : kShapes) {
    for (const Planes planes : planes_of(s)) {
      for (const bool ragged : {false, true}) {
        CAPTURE(name_of(s));
        CAPTURE(planes.heads);
        const int num_vertical = random.below(std::min(s.seqlen_k, 300) + 1);
        const int num_slash = random.below(random.one_in(2) ? 20 : std::min(s.seqlen_k, 900) + 1);
        const Ints vertical = random.numbers(planes.count() * num_vertical, -2, s.seqlen_k + 3);
        Ints slash = random.numbers(planes.count() * num_slash, -2, s.seqlen_k + 100);
        for (std::int32_t& distance : slash) {  // half of them near
          if (random.one_in(2)) distance = random.below(200);
        }
        Ints lengths(at(s.batch), s.seqlen_k);
        if (ragged) lengths = random.numbers(s.batch, 1, s.seqlen_k);
        const Uploaded vertical_there(vertical), slash_there(slash), lengths_there(lengths);
        const Words words = built("vertical_slash(m)", s,
                                  girih::SlashLists{.vertical = vertical_there.ints(),
                                                    .slash = slash_there.ints(),
                                                    .num_vertical = num_vertical,
                                                    .num_slash = num_slash,
                                                    .batch = planes.batch,
                                                    .heads = planes.heads},
                                  ragged ? lengths_there.ints() : nullptr);
        check_slashes(words, s, planes, lengths, vertical, slash, num_vertical, num_slash);
      }
    }
  }
}

// --- Numbers of tokens

namespace {

// One side of a plane: its numbers, padded to 1024, then the least and the largest of every 32 that
// exist, then of every 1024.
void check_side(const Words& words, std::int64_t first, int num_spans, const Ints& numbers) {
  const auto number = [&](std::int64_t index) {
    return static_cast<std::int32_t>(words[at(first + index)]);
  };
  const int length = static_cast<int>(numbers.size());
  std::int64_t wrong = 0;
  for (int i = 0; i < length; ++i) wrong += number(i) != numbers[at(i)];
  std::int64_t ranges = std::int64_t{1024} * num_spans;
  for (const int size : {32, 1024}) {
    const int count = num_spans * 1024 / size;
    for (int i = 0; i < count; ++i) {
      int least = INT_MAX, most = INT_MIN;  // of none
      for (int token = i * size; token < std::min((i + 1) * size, length); ++token) {
        least = std::min(least, numbers[at(token)]);
        most = std::max(most, numbers[at(token)]);
      }
      wrong += number(ranges + 2 * i) != least || number(ranges + 2 * i + 1) != most;
    }
    ranges += 2 * count;
  }
  CHECK(wrong == 0);
  rows_checked += length;
}

// Numbers of tokens [batch, heads, length] with `spare` more behind each row, `step` apart; or
// contiguous.
struct Tokens {
  Planes planes;
  int length;
  int row;  // numbers there are of a head
  int step;
  Ints numbers;
  Uploaded there;

  Tokens(Random& random, Planes p, int tokens, int spare, int distance)
      : planes(p),
        length(tokens),
        row(tokens + spare),
        step(distance),
        numbers(random.numbers(std::int64_t{p.count()} * row * step, -1000000000, 1000000000)),
        there(numbers) {}

  // Of a plane that sequence b and the h-th of `heads` heads have.
  Ints plane(int b, int h, int heads, int offset = 0) const {
    const int own = (planes.batch == 1 ? 0 : b) * planes.heads + h / (heads / planes.heads);
    Ints result;
    for (int i = 0; i < length; ++i) {
      result.push_back(numbers[at((std::int64_t{own} * row + i) * step + offset)]);
    }
    return result;
  }
};

std::int64_t words_of_side(int num_spans) {
  return std::int64_t{girih::TokenNumbers::kWordsPerSpan} * num_spans;
}
std::int64_t words_of_plane(int num_spans) {  // of indices
  return std::int64_t{girih::TokenNumbers::kIndexWordsPerSpan} * num_spans;
}

// Numbers of tokens as they come: in order, in order but for what fills a row up, in none.
enum class TokenOrder { documents, padded_documents, ascending, shuffled_documents, none };

Ints ordered_numbers(Random& random, int count, TokenOrder order) {
  const int longest = 1 + random.below(1 + random.below(4 * count));
  Ints result;
  for (int number = 5 - random.below(10); static_cast<int>(result.size()) < count; ++number) {
    const int run = order == TokenOrder::ascending ? random.below(3) : 1 + random.below(longest);
    const int own = order == TokenOrder::shuffled_documents ? random.below(7)
                    : order == TokenOrder::none             ? random.below(1000) - 500
                                                            : number;
    const int length = order == TokenOrder::none ? 1 : run;
    result.resize(std::min(result.size() + at(length), at(count)), own);
  }
  if (order == TokenOrder::padded_documents) {
    std::fill(result.end() - random.below(count), result.end(), 0);
  }
  return result;
}

}  // namespace

TEST_CASE("built lists: numbers of tokens, with the least and largest of every 32 and 1024") {
  Random random(4);
  for (const Shape& s : kShapes) {
    const std::pair<Planes, Planes> sources[] = {{{s.batch, s.heads}, {1, s.heads_kv}},
                                                 {{1, 1}, {s.batch, s.heads_kv}},
                                                 {{1, 1}, {1, 1}},
                                                 {{s.batch, s.heads_kv}, {s.batch, s.heads}}};
    for (const auto& [of_q, of_k] : sources) {
      CAPTURE(name_of(s));
      CAPTURE(of_q.heads);
      CAPTURE(of_k.heads);
      const Tokens q(random, of_q, s.seqlen_q, 0, 1), k(random, of_k, s.seqlen_k, 7, 1);
      girih::TokenIndices indices{.q = {.data = q.there.ints(),
                                        .batch = of_q.batch,
                                        .heads = of_q.heads,
                                        .num_tokens = s.seqlen_q},
                                  .k = {.data = k.there.ints(),
                                        .batch = of_k.batch,
                                        .heads = of_k.heads,
                                        .num_tokens = s.seqlen_k,
                                        .batch_stride = std::int64_t{of_k.heads} * k.row,
                                        .head_stride = k.row}};
      const Words words = built("segments(m)", s, indices);
      const int heads = std::max(of_q.heads, of_k.heads);
      const int num_spans = blocks(std::max(s.seqlen_q, s.seqlen_k), 1024);
      const std::int64_t side = words_of_side(num_spans);
      for (int b = 0; b < std::max(of_q.batch, of_k.batch); ++b) {
        for (int h = 0; h < heads; ++h) {
          const std::int64_t plane = words_of_plane(num_spans) * (b * heads + h);
          REQUIRE(static_cast<std::int64_t>(words.size()) >= plane + 2 * side);
          check_side(words, plane, num_spans, q.plane(b, h, heads));
          check_side(words, plane + side, num_spans, k.plane(b, h, heads));
        }
      }
    }
  }
}

TEST_CASE("built lists: what rows and blocks of rows see of the keys by their numbers") {
  Random random(6);
  constexpr Shape kOwnShapes[] = {{2, 333, 1777, 4, 2},
                                  {1, 2309, 1100, 2, 2},
                                  {3, 1, 1, 2, 1},
                                  {1, 65, 70001, 1, 1},
                                  {1, 40000, 40000, 1, 1}};
  for (const Shape& s : kOwnShapes) {
    for (const TokenOrder order :
         {TokenOrder::documents, TokenOrder::padded_documents, TokenOrder::ascending,
          TokenOrder::shuffled_documents, TokenOrder::none}) {
      CAPTURE(name_of(s));
      CAPTURE(static_cast<int>(order));
      girih::verify::InputData data{.kind = girih::InputInfo::Kind::indices, .name = "m"};
      data.batch = s.batch;
      data.heads = s.heads_kv;
      data.seqlen_q = s.seqlen_q;
      data.seqlen_k = s.seqlen_k;
      for (int plane = 0; plane < data.batch * data.heads; ++plane) {
        const Ints k = ordered_numbers(random, s.seqlen_k, order);
        Ints q = ordered_numbers(random, s.seqlen_q, order);
        if (s.seqlen_q <= s.seqlen_k && random.one_in(2)) {  // the last tokens' own
          q.assign(k.end() - s.seqlen_q, k.end());
        }
        data.numbers.insert(data.numbers.end(), q.begin(), q.end());
        data.key_numbers.insert(data.key_numbers.end(), k.begin(), k.end());
      }
      const Uploaded q(data.numbers), k(data.key_numbers);
      const auto rows = [&](const Uploaded& numbers, int tokens) {
        return girih::TokenRows{
            .data = numbers.ints(), .batch = data.batch, .heads = data.heads, .num_tokens = tokens};
      };
      const Words words = built("segments(m) & (index_ge(m) | index_gt(m))", s,
                                girih::TokenIndices{rows(q, s.seqlen_q), rows(k, s.seqlen_k)});
      int num_spans = 0;
      const Words expected = girih::verify::number_planes(data, num_spans);
      REQUIRE(words.size() >= expected.size());
      std::int64_t wrong = 0;
      for (int plane = 0; plane < data.batch * data.heads; ++plane) {
        for (int comparison = 0; comparison < girih::TokenNumbers::kNumComparisons; ++comparison) {
          const auto count_wrong = [&](std::int64_t first, int count) {
            first += plane * words_of_plane(num_spans);
            for (int i = 0; i < count; ++i)
              wrong += words[at(first + i)] != expected[at(first + i)];
          };
          count_wrong(girih::TokenNumbers::intervals(num_spans, comparison), 2 * s.seqlen_q);
          count_wrong(girih::TokenNumbers::seen_keys(num_spans, comparison),
                      4 * blocks(s.seqlen_q, 32));
        }
      }
      CHECK(wrong == 0);
      rows_checked += std::int64_t{data.batch} * data.heads * s.seqlen_q;
    }
  }
}

TEST_CASE("built lists: intervals of columns, one or two a key, apart or beside one another") {
  Random random(5);
  for (const Shape& s : kShapes) {
    for (const Planes planes : planes_of(s)) {
      for (const int sides : {2, 4}) {
        CAPTURE(name_of(s));
        CAPTURE(planes.heads);
        const Tokens bounds(random, planes, s.seqlen_k, random.below(5), sides);
        const auto side_at = [&](int side) { return bounds.there.ints() + side; };
        const Words words =
            built("columns(m)", s,
                  girih::ColumnIntervals{.start = side_at(0),
                                         .end = side_at(1),
                                         .second_start = sides == 4 ? side_at(2) : nullptr,
                                         .second_end = sides == 4 ? side_at(3) : nullptr,
                                         .batch = planes.batch,
                                         .heads = planes.heads,
                                         .num_keys = bounds.row,
                                         .key_stride = sides});
        const int num_spans = blocks(s.seqlen_k, 1024);
        const std::int64_t side_words = words_of_side(num_spans);
        for (int b = 0; b < planes.batch; ++b) {
          for (int h = 0; h < planes.heads; ++h) {
            for (int side = 0; side < 4; ++side) {
              const std::int64_t first = side_words * (4 * (b * planes.heads + h) + side);
              REQUIRE(static_cast<std::int64_t>(words.size()) >= first + side_words);
              const Ints expected = side < sides ? bounds.plane(b, h, planes.heads, side)
                                                 : Ints(at(s.seqlen_k), 0);  // [0, 0): no row
              check_side(words, first, num_spans, expected);
            }
          }
        }
      }
    }
  }
}

// --- Tiles of conditions

TEST_CASE(
    "built lists: in which tiles of 64 x 64 a condition holds for some elements, and for all") {
  Random random(6);
  for (const Shape& s : kShapes) {
    const int rows = blocks(s.seqlen_q, 64), columns = blocks(s.seqlen_k, 64);
    struct Reach {
      const char* text;
      Planes planes;
    };
    const Reach reaches[] = {{"m[b][h][q][k] > 0", {s.batch, s.heads}},
                             {"m[b][g][q][k] > 0", {s.batch, s.heads_kv}},
                             {"m[0][0][q][k] > 0", {1, 1}}};
    for (const Reach& reach : reaches) {
      CAPTURE(name_of(s));
      CAPTURE(reach.text);
      // Of every tile all elements, none, some of them, or all but one.
      const std::int64_t plane_size = std::int64_t{s.seqlen_q} * s.seqlen_k;
      Ints tensor(at(plane_size * reach.planes.count()));
      for (int plane = 0; plane < reach.planes.count(); ++plane) {
        for (int tile = 0; tile < rows * columns; ++tile) {
          const int kind = random.below(5);
          const int first_row = 64 * (tile / columns), first_key = 64 * (tile % columns);
          const int end_row = std::min(first_row + 64, s.seqlen_q);
          const int end_key = std::min(first_key + 64, s.seqlen_k);
          for (int q = first_row; q < end_row; ++q) {
            for (int k = first_key; k < end_key; ++k) {
              tensor[at(plane * plane_size + std::int64_t{q} * s.seqlen_k + k)] =
                  kind == 0 ? random.below(3) - 1 : kind % 2;
            }
          }
          if (kind > 2) {  // one that differs
            const int q = first_row + random.below(end_row - first_row);
            const int k = first_key + random.below(end_key - first_key);
            tensor[at(plane * plane_size + std::int64_t{q} * s.seqlen_k + k)] = 1 - kind % 2;
          }
        }
      }
      const Uploaded there(tensor);
      const Words words = built(fmt::format("expr(\"{}\")", reach.text), s,
                                girih::Values(there.ints(), {reach.planes.batch, reach.planes.heads,
                                                             s.seqlen_q, s.seqlen_k}));
      const int words_per_row = blocks(columns, 32);
      std::int64_t wrong = 0;
      for (int plane = 0; plane < reach.planes.count(); ++plane) {
        for (int row = 0; row < rows; ++row) {
          Words some(at(words_per_row), 0), all(at(words_per_row), 0);
          for (int column = 0; column < columns; ++column) {
            bool any = false, every = true;
            for (int q = 64 * row; q < std::min(64 * (row + 1), s.seqlen_q); ++q) {
              for (int k = 64 * column; k < std::min(64 * (column + 1), s.seqlen_k); ++k) {
                const bool holds =
                    tensor[at(plane * plane_size + std::int64_t{q} * s.seqlen_k + k)] > 0;
                any |= holds;
                every &= holds;
              }
            }
            const std::uint32_t bit = 1u << column % 32;
            if (any) some[at(column / 32)] |= bit;
            if (every) all[at(column / 32)] |= bit;
          }
          // A row's words of some, then of all.
          const std::int64_t first = std::int64_t{2} * words_per_row * (plane * rows + row);
          REQUIRE(static_cast<std::int64_t>(words.size()) >= first + 2 * words_per_row);
          wrong += !std::equal(some.begin(), some.end(), words.begin() + first);
          wrong += !std::equal(all.begin(), all.end(), words.begin() + first + words_per_row);
          ++rows_checked;
        }
      }
      CHECK(wrong == 0);
    }
  }
}
