#include "verify/inputs.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <span>

#include "girih/error.hpp"
#include "girih/shared/atoms.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/token_numbers.cuh"

namespace girih::verify {
namespace {

// 53 random bits as a number from 0 to 1.
double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

double normal(std::mt19937_64& random) {  // by Box and Muller
  constexpr double kPi = 3.14159265358979323846;
  const double radius = std::sqrt(-2 * std::log(1 - uniform(random)));
  return radius * std::cos(2 * kPi * uniform(random));
}

InputData indices_for(std::string name, int batch, int heads, int seqlen_q, int seqlen_k) {
  InputData data{.kind = InputInfo::Kind::indices, .name = std::move(name)};
  data.batch = batch;
  data.heads = heads;
  data.seqlen_q = seqlen_q;
  data.seqlen_k = seqlen_k;
  return data;
}

// One side of a plane, written by its definition.
void lay_out(std::span<const std::int32_t> tokens, int num_spans, std::uint32_t* side) {
  std::copy(tokens.begin(), tokens.end(), side);
  const auto put_ranges = [&](int size, std::uint32_t* words) {
    for (std::size_t begin = 0; begin < tokens.size(); begin += static_cast<std::size_t>(size)) {
      const auto part =
          tokens.subspan(begin, std::min(static_cast<std::size_t>(size), tokens.size() - begin));
      const auto [least, most] = std::minmax_element(part.begin(), part.end());
      *words++ = static_cast<std::uint32_t>(*least);
      *words++ = static_cast<std::uint32_t>(*most);
    }
  };
  put_ranges(TokenNumbers::kBlock, side + TokenNumbers::block_ranges(num_spans));
  put_ranges(TokenNumbers::kSpan, side + TokenNumbers::span_ranges(num_spans));
}

// What rows with a number see of the keys, of whose blocks the ranges are known; written by its
// definition.
template <class Atom>
SeenKeys seen_keys(std::int32_t row, std::span<const std::int32_t> keys,
                   std::span<const NumberRange> blocks) {
  const auto visible = [&](NumberRange range) {
    return Atom::kind({row, row}, range) != TileKind::empty;
  };
  const auto sees = [&](int key) { return Atom::sees(row, keys[static_cast<std::size_t>(key)]); };
  const auto first = std::find_if(blocks.begin(), blocks.end(), visible);
  if (first == blocks.end()) return kNoKeys;
  const auto last = std::find_if(blocks.rbegin(), blocks.rend(), visible);

  const int num_keys = static_cast<int>(keys.size());
  const auto keys_of = [&](std::ptrdiff_t block) {
    const int begin = static_cast<int>(block) * TokenNumbers::kBlock;
    return Span{begin, std::min(begin + TokenNumbers::kBlock, num_keys)};
  };
  const Span begin = keys_of(first - blocks.begin());
  const Span end = keys_of(blocks.rend() - last - 1);
  SeenKeys seen{{begin.lo, end.hi}, kNoKeys.core};
  while (seen.hull.hi > end.lo && !sees(seen.hull.hi - 1)) --seen.hull.hi;
  if (seen.hull.hi == end.lo) seen.hull.hi = end.hi;
  while (seen.hull.lo < begin.hi && !sees(seen.hull.lo)) ++seen.hull.lo;
  if (seen.hull.lo == begin.hi) {
    seen.hull.lo = begin.lo;
    return seen;
  }
  seen.core = {seen.hull.lo, seen.hull.lo};
  while (seen.core.hi < num_keys && sees(seen.core.hi)) ++seen.core.hi;
  return seen;
}

// Likewise of all rows and blocks of rows, behind the sides of a plane.
template <class Atom>
void put_seen_keys(std::span<const std::int32_t> rows, std::span<const std::int32_t> keys,
                   int num_spans, std::uint32_t* plane) {
  constexpr std::size_t kBlock = TokenNumbers::kBlock;
  std::vector<NumberRange> blocks(ceil_div(static_cast<int>(keys.size()), kBlock), kNoNumbers);
  for (std::size_t k = 0; k < keys.size(); ++k) {
    blocks[k / kBlock] = blocks[k / kBlock].joined({keys[k], keys[k]});
  }
  std::map<std::int32_t, SeenKeys> of_number;
  std::uint32_t* intervals = plane + TokenNumbers::intervals(num_spans, Atom::kComparison);
  std::uint32_t* of_blocks = plane + TokenNumbers::seen_keys(num_spans, Atom::kComparison);
  for (std::size_t begin = 0; begin < rows.size(); begin += kBlock) {
    SeenKeys all{};
    for (std::size_t row = begin; row < std::min(begin + kBlock, rows.size()); ++row) {
      const auto [found, is_new] = of_number.try_emplace(rows[row]);
      SeenKeys& seen = found->second;
      if (is_new) seen = seen_keys<Atom>(rows[row], keys, blocks);
      all = row == begin ? seen : all.joined(seen);
      const bool empty = seen.hull.lo >= seen.hull.hi;
      const Span interval = empty ? Span{0, 0} : seen.is_exact() ? seen.core : kNoInterval;
      *intervals++ = static_cast<std::uint32_t>(interval.lo);
      *intervals++ = static_cast<std::uint32_t>(interval.hi);
    }
    for (const int bound : {all.hull.lo, all.hull.hi, all.core.lo, all.core.hi}) {
      *of_blocks++ = static_cast<std::uint32_t>(bound);
    }
  }
}

}  // namespace

InputData random_documents(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                           double mean, std::uint64_t seed) {
  InputData data = indices_for(std::move(name), batch, heads, seqlen_q, seqlen_k);
  std::mt19937_64 random(seed);
  constexpr double kSigma = 1;
  const auto length = [&] {
    return std::max(std::exp(std::log(mean) - kSigma * kSigma / 2 + kSigma * normal(random)), 1.0);
  };
  const int longest = std::max(seqlen_q, seqlen_k);
  for (int plane = 0; plane < batch * heads; ++plane) {
    std::vector<std::int32_t> all;
    for (int document = 0; static_cast<int>(all.size()) < longest; ++document) {
      const auto end = static_cast<double>(all.size()) + length();
      all.resize(static_cast<std::size_t>(std::min(end, static_cast<double>(longest))), document);
    }
    data.numbers.insert(data.numbers.end(), all.end() - seqlen_q, all.end());
    data.key_numbers.insert(data.key_numbers.end(), all.end() - seqlen_k, all.end());
  }
  if (seqlen_q == seqlen_k) data.key_numbers.clear();
  return data;
}

InputData random_indices(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                         int count, std::uint64_t seed) {
  InputData data = indices_for(std::move(name), batch, heads, seqlen_q, seqlen_k);
  std::mt19937_64 random(seed);
  const auto fill = [&](std::vector<std::int32_t>& numbers, int tokens) {
    numbers.resize(static_cast<std::size_t>(batch) * static_cast<std::size_t>(heads) *
                   static_cast<std::size_t>(tokens));
    for (std::int32_t& number : numbers) {
      number = static_cast<std::int32_t>(random() % static_cast<unsigned>(count));
    }
  };
  fill(data.numbers, seqlen_q);
  fill(data.key_numbers, seqlen_k);
  return data;
}

InputData random_columns(std::string name, int batch, int heads, int seqlen_q, int seqlen_k,
                         int num_intervals, int most, std::uint64_t seed) {
  InputData data = indices_for(std::move(name), batch, heads, seqlen_q, seqlen_k);
  data.kind = InputInfo::Kind::columns;
  data.num_intervals = num_intervals;
  std::mt19937_64 random(seed);
  const auto below = [&](int bound) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(bound));
  };
  for (int i = 0; i < batch * heads * seqlen_k; ++i) {
    const auto at = static_cast<std::int32_t>(std::int64_t{i % seqlen_k} * seqlen_q / seqlen_k);
    for (int j = 0; j < num_intervals; ++j) {
      const std::int32_t start = at + below(most + 1) - most / 2;
      data.bounds.push_back(start);
      data.bounds.push_back(below(16) == 0 ? start - below(3) : start + below(most) + 1);
    }
  }
  return data;
}

InputData random_values(std::string name, int batch, int heads, int seqlen_k, double deviation,
                        std::uint64_t seed) {
  InputData data = indices_for(std::move(name), batch, heads, 0, seqlen_k);
  data.kind = seqlen_k == 0 ? InputInfo::Kind::head_values : InputInfo::Kind::key_values;
  data.values.resize(static_cast<std::size_t>(batch) * static_cast<std::size_t>(heads) *
                     static_cast<std::size_t>(std::max(seqlen_k, 1)));
  std::mt19937_64 random(seed);
  for (float& value : data.values) value = static_cast<float>(deviation * normal(random));
  return data;
}

static InputData tensor_for(const InputInfo& wanted, const TensorExtents& extents) {
  const int indexed[] = {extents.batch, extents.num_heads, extents.num_heads_kv, extents.seqlen_q,
                         extents.seqlen_k};
  InputData data{.kind = wanted.kind, .name = wanted.name};
  for (int i = 0; i < wanted.rank; ++i) {
    int extent = 0;
    for (std::size_t v = 0; v < std::size(indexed); ++v) {
      if ((wanted.indexed_by[static_cast<std::size_t>(i)] >> v & 1) != 0)
        extent = std::max(extent, indexed[v]);
    }
    data.shape.push_back(std::max(extent == 0 ? extents.free : extent, 1));
  }
  return data;
}

// Kernels take as many.
static std::size_t num_elements(const InputData& tensor) {
  constexpr std::size_t kMost = 0x7fffffff;
  std::size_t count = 1;
  for (const int extent : tensor.shape) {
    count *= static_cast<std::size_t>(extent);
    if (count <= kMost) continue;
    throw Error(
        Errc::invalid_argument,
        fmt::format("the tensor '{}' of [{}] would have more than {} elements: take shorter "
                    "sequences, or index fewer dimensions by q and k",
                    tensor.name, fmt::join(tensor.shape, ", "), kMost));
  }
  return count;
}

InputData random_int_tensor(const InputInfo& wanted, const TensorExtents& extents, int count,
                            std::uint64_t seed) {
  InputData data = tensor_for(wanted, extents);
  std::mt19937_64 random(seed);
  data.numbers.resize(num_elements(data));
  for (std::int32_t& number : data.numbers) {
    number = static_cast<std::int32_t>(random() % static_cast<unsigned>(count));
  }
  return data;
}

InputData document_tensor(const InputInfo& wanted, const TensorExtents& extents, double mean,
                          std::uint64_t seed) {
  InputData data = tensor_for(wanted, extents);
  const int tokens = data.shape.back();
  const int rows = static_cast<int>(num_elements(data)) / tokens;
  data.numbers = random_documents(wanted.name, rows, 1, tokens, tokens, mean, seed).numbers;
  return data;
}

InputData random_float_tensor(const InputInfo& wanted, const TensorExtents& extents,
                              double deviation, std::uint64_t seed) {
  InputData data = tensor_for(wanted, extents);
  std::mt19937_64 random(seed);
  data.values.resize(num_elements(data));
  for (float& value : data.values) value = static_cast<float>(deviation * normal(random));
  return data;
}

InputData alibi_slopes(std::string name, int heads) {
  InputData data = indices_for(std::move(name), 1, heads, 0, 0);
  data.kind = InputInfo::Kind::head_values;
  for (int h = 0; h < heads; ++h) data.values.push_back(std::exp2(-8.0f * (h + 1) / heads));
  return data;
}

// Bound `i` of the keys of all planes.
static std::vector<std::int32_t> bounds_of(const InputData& columns, int i) {
  std::vector<std::int32_t> result;
  const auto step = static_cast<std::size_t>(2 * columns.num_intervals);
  for (auto at = static_cast<std::size_t>(i); at < columns.bounds.size(); at += step) {
    result.push_back(columns.bounds[at]);
  }
  return result;
}

static std::vector<std::uint32_t> column_planes(const InputData& columns, int& num_spans) {
  num_spans = ceil_div(columns.seqlen_k, TokenNumbers::kSpan);
  const auto side = static_cast<std::size_t>(TokenNumbers::kWordsPerSpan * num_spans);
  const auto planes = static_cast<std::size_t>(columns.batch * columns.heads);
  const auto keys = static_cast<std::size_t>(columns.seqlen_k);
  std::vector<std::uint32_t> words(Columns::kSides * planes * side, 0);
  for (int i = 0; i < 2 * columns.num_intervals; ++i) {
    const std::vector<std::int32_t> bounds = bounds_of(columns, i);
    for (std::size_t plane = 0; plane < planes; ++plane) {
      lay_out(std::span(bounds).subspan(plane * keys, keys), num_spans,
              words.data() + (Columns::kSides * plane + static_cast<std::size_t>(i)) * side);
    }
  }
  return words;
}

std::vector<std::uint32_t> number_planes(const InputData& indices, int& num_spans) {
  if (indices.kind == InputInfo::Kind::columns) return column_planes(indices, num_spans);
  num_spans = ceil_div(std::max(indices.seqlen_q, indices.seqlen_k), TokenNumbers::kSpan);
  const auto spans = static_cast<std::size_t>(num_spans);
  const std::size_t side = TokenNumbers::kWordsPerSpan * spans;
  const std::size_t plane_words = TokenNumbers::kIndexWordsPerSpan * spans;
  const auto planes = static_cast<std::size_t>(indices.batch * indices.heads);
  std::vector<std::uint32_t> words(planes * plane_words, 0);
  const auto row = [](const std::vector<std::int32_t>& numbers, std::size_t plane, int tokens) {
    const auto size = static_cast<std::size_t>(tokens);
    return std::span(numbers).subspan(plane * size, size);
  };
  const bool shared = indices.key_numbers.empty();
  for (std::size_t plane = 0; plane < planes; ++plane) {
    std::uint32_t* first = words.data() + plane * plane_words;
    const auto rows = row(indices.numbers, plane, indices.seqlen_q);
    const auto keys = row(shared ? indices.numbers : indices.key_numbers, plane, indices.seqlen_k);
    lay_out(rows, num_spans, first);
    lay_out(keys, num_spans, first + side);
    put_seen_keys<Segments>(rows, keys, num_spans, first);
    put_seen_keys<IndexGe>(rows, keys, num_spans, first);
    put_seen_keys<IndexGt>(rows, keys, num_spans, first);
  }
  return words;
}

InputData random_slashes(std::string name, int batch, int heads, int seqlen_k, int num_vertical,
                         int num_slash, std::uint64_t seed) {
  constexpr int kFirstKeys = 30, kNearest = 100;
  InputData data{.kind = InputInfo::Kind::slashes, .name = std::move(name)};
  data.batch = batch;
  data.heads = heads;
  data.num_vertical = num_vertical;
  data.num_slash = num_slash;
  std::mt19937_64 random(seed);
  const double log_ratio = std::log(std::max(seqlen_k, kNearest) / double{kNearest});
  for (int plane = 0; plane < batch * heads; ++plane) {
    for (int i = 0; i < num_vertical; ++i) {
      const double key = i < kFirstKeys ? i : std::floor(uniform(random) * seqlen_k);
      data.vertical.push_back(key < seqlen_k ? static_cast<std::int32_t>(key) : -1);
    }
    for (int i = 0; i < num_slash; ++i) {
      const double distance =
          i < kNearest ? i : std::floor(kNearest * std::exp(uniform(random) * log_ratio));
      data.slash.push_back(distance < seqlen_k ? static_cast<std::int32_t>(distance) : -1);
    }
  }
  return data;
}

std::vector<std::uint32_t> slash_planes(const InputData& slashes,
                                        const std::vector<Geometry>& sequences, int seqlen_q,
                                        int seqlen_k, InputView& view) {
  const int words = SlashPlane::words_per_row(seqlen_k);
  const int blocks = ceil_div(seqlen_q, SlashPlane::kRows);
  std::vector<std::uint32_t> planes;
  const auto entries = [](const std::vector<std::int32_t>& list, int plane, int count) {
    return std::span(list).subspan(
        static_cast<std::size_t>(plane) * static_cast<std::size_t>(count),
        static_cast<std::size_t>(count));
  };
  const auto row_at = [&](int block) { return SlashPlane::row_at(words, blocks, block); };
  view.row_stride = words;
  view.head_stride = row_at(blocks);
  view.batch_stride = slashes.heads * view.head_stride;
  planes.resize(sequences.size() * static_cast<std::size_t>(view.batch_stride));
  auto columns = planes.begin();
  for (std::size_t b = 0; b < sequences.size(); ++b) {
    const Geometry& geometry = sequences[b];
    for (int h = 0; h < slashes.heads; ++h) {
      const int plane = (slashes.batch == 1 ? 0 : static_cast<int>(b)) * slashes.heads + h;
      for (const std::int32_t key : entries(slashes.vertical, plane, slashes.num_vertical)) {
        if (key >= 0 && key < seqlen_k) columns[key / 32] |= 1u << key % 32;
      }
      std::vector<int> distances{0};
      for (const std::int32_t distance : entries(slashes.slash, plane, slashes.num_slash)) {
        if (distance >= 0) distances.push_back(distance);
      }
      std::sort(distances.begin(), distances.end());
      const auto largest_below = [&](int bound) {
        const auto above = std::lower_bound(distances.begin(), distances.end(), bound);
        return above == distances.begin() ? -1 : *(above - 1);
      };
      for (int block = 0; block < blocks; ++block) {
        const SlashEntry entry{static_cast<int>(row_at(block)), 0};  // its own row
        std::memcpy(&columns[SlashPlane::entry_at(words, block)], &entry, sizeof(entry));
        const auto row = columns + row_at(block);
        const int first_row = block * SlashPlane::kRows;
        const int last_row = min(first_row + SlashPlane::kRows, geometry.seqlen_q) - 1;
        const int end = min(geometry.seqlen_k, geometry.diagonal(last_row) + 1);
        SlashWindows windows(geometry.diagonal(first_row));
        for (Span window{}; windows.next(largest_below, window);) {
          const Span keys{window.lo, min(window.hi, end)};
          for (int key = keys.lo / 32 * 32; key < keys.hi; key += 32) {
            row[key / 32] |= KeyWord{key}.inside(keys, geometry.seqlen_k);
          }
        }
      }
      columns += view.head_stride;
    }
  }
  return planes;
}

InputData random_blocks(std::string name, int batch, int heads, int num_q_blocks, int num_kv_blocks,
                        double density, double skew, std::uint64_t seed) {
  InputData data{.name = std::move(name),
                 .batch = batch,
                 .heads = heads,
                 .num_q_blocks = num_q_blocks,
                 .num_kv_blocks = num_kv_blocks};
  std::mt19937_64 random(seed);
  const std::int64_t rows = std::int64_t{batch} * heads * num_q_blocks;
  data.visible.reserve(static_cast<std::size_t>(rows * num_kv_blocks));
  for (std::int64_t row = 0; row < rows; ++row) {
    const double own = skew > 0 ? density * (1 + skew) * std::pow(uniform(random), skew) : density;
    for (int j = 0; j < num_kv_blocks; ++j) data.visible.push_back(uniform(random) < own ? 1 : 0);
  }
  return data;
}

std::vector<std::uint32_t> bit_rows(const InputData& blocks) {
  const auto words = static_cast<std::size_t>((blocks.num_kv_blocks + 31) / 32);
  const auto columns = static_cast<std::size_t>(blocks.num_kv_blocks);
  const std::size_t rows = static_cast<std::size_t>(blocks.batch) *
                           static_cast<std::size_t>(blocks.heads) *
                           static_cast<std::size_t>(blocks.num_q_blocks);
  std::vector<std::uint32_t> bits(rows * words, 0);
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t j = 0; j < columns; ++j) {
      if (blocks.visible[row * columns + j] != 0) bits[row * words + j / 32] |= 1u << (j % 32);
    }
  }
  return bits;
}

template <class T>
const T* DeviceInput::upload(const std::vector<T>& values) {
  buffers_.emplace_back(std::max<std::size_t>(values.size() * sizeof(T), 4));
  if (!values.empty()) buffers_.back().upload(values.data(), values.size() * sizeof(T));
  return static_cast<const T*>(buffers_.back().data());
}

DeviceInput::DeviceInput(const InputData& data) {
  input_.name = data.name;
  const int batch = data.batch, heads = data.heads;
  if (data.kind == InputInfo::Kind::number) {
    input_.data = HeadNumbers{.data = upload(data.numbers), .batch = batch, .heads = heads};
    return;
  }
  if (data.kind == InputInfo::Kind::thresholds) {
    input_.data = Thresholds{.data = upload(data.thresholds),
                             .heads = heads,
                             .num_columns = data.num_columns,
                             .kv_block_size = data.prune_kv};
    return;
  }
  if (data.kind == InputInfo::Kind::columns) {  // one interval apart, two beside one another
    const auto side = [&](int i) { return upload(bounds_of(data, i)); };
    ColumnIntervals columns{.batch = batch, .heads = heads, .num_keys = data.seqlen_k};
    if (data.num_intervals == 1) {
      columns.start = side(0);
      columns.end = side(1);
    } else {
      columns.start = upload(data.bounds);
      columns.end = columns.start + 1;
      columns.second_start = columns.start + 2;
      columns.second_end = columns.start + 3;
      columns.key_stride = 4;
    }
    input_.data = columns;
    return;
  }
  if (data.kind == InputInfo::Kind::head_values) {
    input_.data = Values(upload(data.values), {batch, heads});
    return;
  }
  if (data.kind == InputInfo::Kind::key_values) {
    input_.data = Values(upload(data.values), {batch, heads, data.seqlen_k});
    return;
  }
  if (!data.shape.empty()) {
    Values values;
    const bool integers = data.kind == InputInfo::Kind::int_tensor;
    values.type = integers ? Values::Type::int32 : Values::Type::float32;
    values.data = integers ? static_cast<const void*>(upload(data.numbers)) : upload(data.values);
    values.rank = static_cast<int>(data.shape.size());
    std::copy(data.shape.begin(), data.shape.end(), values.shape.begin());
    input_.data = values;
    return;
  }
  if (data.kind == InputInfo::Kind::indices) {
    TokenIndices indices{
        {.data = upload(data.numbers), .batch = batch, .heads = heads, .num_tokens = data.seqlen_q},
        {}};
    if (!data.key_numbers.empty()) {
      indices.k = {.data = upload(data.key_numbers),
                   .batch = batch,
                   .heads = heads,
                   .num_tokens = data.seqlen_k};
    }
    input_.data = indices;
    return;
  }
  if (data.kind == InputInfo::Kind::slashes) {
    input_.data = SlashLists{.vertical = upload(data.vertical),
                             .slash = upload(data.slash),
                             .num_vertical = data.num_vertical,
                             .num_slash = data.num_slash,
                             .batch = batch,
                             .heads = heads};
    return;
  }
  const int rows = data.num_q_blocks, columns = data.num_kv_blocks;
  if (data.form == BlockForm::bytes) {
    input_.data = BlockMask{.data = upload(data.visible),
                            .batch = batch,
                            .heads = heads,
                            .num_q_blocks = rows,
                            .num_kv_blocks = columns};
    return;
  }
  if (data.form == BlockForm::bits) {
    input_.data = BlockBits{.data = upload(bit_rows(data)),
                            .batch = batch,
                            .heads = heads,
                            .num_q_blocks = rows,
                            .num_kv_blocks = columns};
    return;
  }

  // Some rows name a block that does not exist, or one block twice; both must change nothing.
  std::mt19937 random(1);
  const int num_planes = batch * heads;
  const int capacity = columns + 2;
  std::vector<std::int32_t> table, counts, indices, indptr;
  std::size_t longest_plane = 0;
  for (int plane = 0; plane < num_planes; ++plane) {
    const std::size_t plane_begin = indices.size();
    const auto counted_from = data.form == BlockForm::plane_list ? plane_begin : 0;
    indptr.push_back(static_cast<std::int32_t>(plane_begin - counted_from));
    for (int i = 0; i < rows; ++i) {
      std::vector<std::int32_t> row;
      for (int j = 0; j < columns; ++j) {
        if (data.row(plane, i)[j] != 0) row.push_back(j);
      }
      if (i % 3 == 1) row.push_back(i % 2 == 0 ? -1 : columns);
      if (i % 5 == 2) row.push_back(row.empty() ? columns + 7 : row.front());
      std::shuffle(row.begin(), row.end(), random);
      indices.insert(indices.end(), row.begin(), row.end());
      indptr.push_back(static_cast<std::int32_t>(indices.size() - counted_from));
      counts.push_back(static_cast<std::int32_t>(row.size()));
      row.resize(static_cast<std::size_t>(capacity), 0);  // what follows does not count
      table.insert(table.end(), row.begin(), row.end());
    }
    longest_plane = std::max(longest_plane, indices.size() - plane_begin);
  }
  if (data.form == BlockForm::table) {
    input_.data = BlockTable{.kv_num_blocks = upload(counts),
                             .kv_block_indices = upload(table),
                             .row_capacity = capacity,
                             .batch = batch,
                             .heads = heads,
                             .num_q_blocks = rows,
                             .num_kv_blocks = columns};
    return;
  }
  std::int64_t plane_stride = 0;
  if (data.form == BlockForm::plane_list) {
    plane_stride = static_cast<std::int64_t>(longest_plane);
    std::vector<std::int32_t> spread(longest_plane * static_cast<std::size_t>(num_planes), 0);
    auto from = indices.begin();
    for (int plane = 0; plane < num_planes; ++plane) {
      const auto last = static_cast<std::size_t>((plane + 1) * (rows + 1) - 1);
      const auto to = spread.begin() + static_cast<std::ptrdiff_t>(plane) * plane_stride;
      std::copy_n(from, indptr[last], to);
      from += indptr[last];
    }
    indices = std::move(spread);
  }
  const auto num_indices = static_cast<std::int64_t>(indices.size());
  input_.data = BlockList{.kv_block_indptr = upload(indptr),
                          .kv_block_indices = upload(indices),
                          .num_indices = num_indices,
                          .plane_stride = plane_stride,
                          .batch = batch,
                          .heads = heads,
                          .num_q_blocks = rows,
                          .num_kv_blocks = columns};
}

}  // namespace girih::verify
