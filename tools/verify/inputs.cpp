#include "verify/inputs.hpp"

#include <algorithm>
#include <cmath>
#include <random>

namespace girih::verify {

InputData random_blocks(std::string name, int batch, int heads, int num_q_blocks, int num_kv_blocks,
                        double density, double skew, std::uint64_t seed) {
  InputData data{.name = std::move(name),
                 .batch = batch,
                 .heads = heads,
                 .num_q_blocks = num_q_blocks,
                 .num_kv_blocks = num_kv_blocks};
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  const std::int64_t rows = std::int64_t{batch} * heads * num_q_blocks;
  data.visible.reserve(static_cast<std::size_t>(rows * num_kv_blocks));
  for (std::int64_t row = 0; row < rows; ++row) {
    const double own = skew > 0 ? density * (1 + skew) * std::pow(uniform(), skew) : density;
    for (int j = 0; j < num_kv_blocks; ++j) data.visible.push_back(uniform() < own ? 1 : 0);
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
