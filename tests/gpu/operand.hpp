// Tensors of random numbers for tests that compute something else than attention of them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "../oracle/estimate.hpp"
#include "support.hpp"

namespace gpu_tests {

using girih::DType;
using girih::Layout;
using girih::Tensor;
using girih::verify::Buffer;

struct Extents {
  int batch, rows, heads, head_dim;
};

// A contiguous tensor of random numbers, on both sides.
struct Operand {
  Extents extents;
  Layout layout;
  DType dtype;
  std::vector<float> values;
  Buffer buffer;
  Tensor tensor;

  Operand(std::mt19937_64& random, const Extents& e, Layout order, DType type, float deviation)
      : extents(e),
        layout(order),
        dtype(type),
        buffer(static_cast<std::size_t>(e.batch) * e.rows * e.heads * e.head_dim * 2) {
    std::normal_distribution<float> normal(0.0f, deviation);
    std::vector<std::uint16_t> bits;
    for (std::size_t i = 0; i < buffer.size() / 2; ++i) {
      bits.push_back(girih::verify::narrow(type, normal(random)));
      values.push_back(girih::verify::widen(type, bits.back()));
    }
    buffer.upload(bits.data(), buffer.size());
    tensor = Tensor::contiguous(
        buffer.data(), type,
        order == Layout::bhsd ? std::array<std::int64_t, 4>{e.batch, e.heads, e.rows, e.head_dim}
                              : std::array<std::int64_t, 4>{e.batch, e.rows, e.heads, e.head_dim});
  }

  oracle::Matrix head(int b, int h, int first_row) const {
    oracle::Matrix rows;
    for (int row = first_row; row < extents.rows; ++row) {
      const std::int64_t index = layout == Layout::bhsd
                                     ? (std::int64_t{b} * extents.heads + h) * extents.rows + row
                                     : (std::int64_t{b} * extents.rows + row) * extents.heads + h;
      const auto at = values.begin() + index * extents.head_dim;
      rows.emplace_back(at, at + extents.head_dim);
    }
    return rows;
  }
};

}  // namespace gpu_tests
