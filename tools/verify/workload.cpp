#include "verify/workload.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "runtime/softmax_scale.hpp"
#include "verify/parallel.hpp"

namespace girih::verify {
namespace {

constexpr std::int64_t kPaddingRows = 256;  // as many as the largest tile has
constexpr std::size_t kLsePadding = 1024;
constexpr std::uint16_t kPoison = 0xffff;

std::uint64_t mixed(std::uint64_t x) {  // splitmix64: a bijection with good avalanche
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// The quantiles of the standard normal distribution at (i + 1/2) / 65536: sixteen random bits
// index a normal value.
const std::vector<float>& normal_quantiles() {
  static const std::vector<float> table = [] {
    constexpr int kSize = 1 << 16;
    std::vector<float> values(kSize);
    double x = 0;
    for (int i = kSize / 2 - 1; i >= 0; --i) {  // outwards, each from its neighbour by Newton
      const double probability = (i + 0.5) / kSize;
      for (int step = 0; step < 8; ++step) {
        const double distribution = 0.5 * std::erfc(-x / std::sqrt(2.0));
        const double density = std::exp(-x * x / 2) / std::sqrt(2 * 3.14159265358979323846);
        x -= (distribution - probability) / density;
      }
      values[static_cast<std::size_t>(i)] = static_cast<float>(x);
      values[static_cast<std::size_t>(kSize - 1 - i)] = static_cast<float>(-x);
    }
    return values;
  }();
  return table;
}

bool is_packed(const Case& c) { return c.problem.layout == Layout::thd; }

// The number of sequence b, or what holds where the case gives none.
int number_of(const std::vector<int>& numbers, int b, int otherwise) {
  return numbers.empty() ? otherwise : numbers[static_cast<std::size_t>(b)];
}

// Rows of a tensor's batch element: one sequence's, or all that are packed.
std::int64_t tensor_rows(const Case& c, const std::vector<int>& lengths, int seqlen) {
  if (!is_packed(c)) return seqlen;
  std::int64_t total = 0;
  for (int b = 0; b < c.batch; ++b) total += number_of(lengths, b, seqlen);
  return total;
}

PaddedTensor make_tensor(const Case& c, bool of_queries, int width) {
  const std::int64_t batch = is_packed(c) ? 1 : c.batch;
  const std::int64_t rows = of_queries ? tensor_rows(c, c.lengths.q, c.seqlen_q)
                                       : tensor_rows(c, c.lengths.k, c.seqlen_k);
  const int heads = of_queries ? c.problem.num_heads : c.problem.num_heads_kv;
  return {c.problem.dtype, c.problem.layout, {batch, rows, heads, width}, c.row_gap, c.head_gap};
}

std::vector<int> starts_of(const Case& c, const std::vector<int>& lengths, int seqlen) {
  std::vector<int> starts = {0};
  for (int b = 0; b < c.batch; ++b) starts.push_back(starts.back() + number_of(lengths, b, seqlen));
  return starts;
}

Buffer uploaded(const std::vector<int>& numbers) {
  Buffer buffer(numbers.size() * sizeof(int));
  buffer.upload(numbers.data(), buffer.size());
  return buffer;
}

const int* pointer_to(const std::optional<Buffer>& buffer) {
  return buffer ? static_cast<const int*>(buffer->data()) : nullptr;
}

// From [batch, row, head, width] to the layout's order of dimensions.
Tensor ordered(Tensor tensor, Layout layout) {
  if (layout != Layout::bhsd) return tensor;
  std::swap(tensor.shape[1], tensor.shape[2]);
  std::swap(tensor.stride[1], tensor.stride[2]);
  return tensor;
}

}  // namespace

std::vector<Sequence> sequences_of(const Case& c) {
  std::vector<Sequence> sequences;
  std::int64_t q_row = 0, k_row = 0;  // of the next packed sequence
  for (int b = 0; b < c.batch; ++b) {
    const int rows = number_of(c.lengths.q, b, c.seqlen_q);
    const int keys = number_of(c.lengths.k, b, c.seqlen_k);
    const int padding = number_of(c.lengths.leftpad_k, b, 0);
    const int end = std::min({keys, c.seqlen_k, number_of(c.lengths.used_k, b, keys)});
    Sequence s{};
    s.seqlen_q = std::min(rows, c.seqlen_q);
    s.seqlen_k = std::max(end - padding, 0);
    s.k_start = c.k_start;
    s.q_start = c.q_start.value_or(c.k_start + s.seqlen_k - s.seqlen_q);
    s.batch = is_packed(c) ? 0 : b;
    s.q_row = q_row;
    s.k_row = k_row + padding;
    sequences.push_back(s);
    if (is_packed(c)) {
      q_row += rows;
      k_row += keys;
    }
  }
  return sequences;
}

float softmax_scale_of(const Case& c) {
  return runtime::softmax_scale_of(c.softmax_scale, c.problem.head_dim);
}

PaddedTensor::PaddedTensor(DType dtype, Layout layout, Shape shape, std::int64_t row_gap,
                           std::int64_t head_gap)
    : dtype_(dtype), shape_(shape), device_(0) {
  if (layout == Layout::bhsd) {
    row_stride_ = shape.width + row_gap;
    head_stride_ = (shape.rows + kPaddingRows) * row_stride_ + head_gap;
    batch_stride_ = shape.heads * head_stride_;
  } else {
    head_stride_ = shape.width + head_gap;
    row_stride_ = shape.heads * head_stride_ + row_gap;
    batch_stride_ = (shape.rows + kPaddingRows) * row_stride_;
  }
  first_ = kPaddingRows * row_stride_;
  host_.assign(static_cast<std::size_t>(first_ + shape.batch * batch_stride_), kPoison);
  device_ = Buffer(host_.size() * sizeof(std::uint16_t));
}

std::int64_t PaddedTensor::offset(std::int64_t b, std::int64_t s, std::int64_t h) const {
  return first_ + b * batch_stride_ + s * row_stride_ + h * head_stride_;
}

std::uint16_t* PaddedTensor::row(std::int64_t b, std::int64_t s, std::int64_t h) {
  return host_.data() + offset(b, s, h);
}

const std::uint16_t* PaddedTensor::row(std::int64_t b, std::int64_t s, std::int64_t h) const {
  return host_.data() + offset(b, s, h);
}

void PaddedTensor::fill_normal(std::uint64_t seed) {
  std::vector<std::uint16_t> table;
  for (const float value : normal_quantiles()) table.push_back(narrow(dtype_, value));
  const std::uint64_t mixed_seed = mixed(seed);
  parallel_for(
      shape_.batch * shape_.rows,
      [&](std::int64_t i) {
        for (std::int64_t h = 0; h < shape_.heads; ++h) {
          std::uint16_t* target = row(i / shape_.rows, i % shape_.rows, h);
          const std::int64_t first = (i * shape_.heads + h) * shape_.width;
          std::uint64_t bits = 0;
          for (std::int64_t j = 0; j < shape_.width; ++j) {
            if (j % 4 == 0) bits = mixed(mixed_seed ^ static_cast<std::uint64_t>((first + j) / 4));
            target[j] = table[static_cast<std::uint16_t>(bits >> (j % 4 * 16))];
          }
        }
      },
      16);
}

void PaddedTensor::poison() { device_.fill(0xff); }

void PaddedTensor::upload() { device_.upload(host_.data(), device_.size()); }

void PaddedTensor::download() { device_.download(host_.data(), device_.size()); }

void PaddedTensor::download_row(std::int64_t b, std::int64_t s, std::int64_t h) {
  device_.download(row(b, s, h), sizeof(std::uint16_t) * static_cast<std::size_t>(shape_.width),
                   sizeof(std::uint16_t) * static_cast<std::size_t>(offset(b, s, h)));
}

std::int64_t PaddedTensor::count_written() const {
  return static_cast<std::int64_t>(host_.size()) - std::count(host_.begin(), host_.end(), kPoison);
}

std::int64_t PaddedTensor::count_written_around() const {
  const bool by_heads = head_stride_ > row_stride_;  // each head has its own rows
  const std::int64_t piece = by_heads ? head_stride_ : batch_stride_;
  const std::int64_t used = shape_.rows * row_stride_;
  std::vector<std::uint16_t> around;
  std::int64_t count = 0;
  const auto look = [&](std::int64_t first, std::int64_t size) {
    around.resize(static_cast<std::size_t>(size));
    device_.download(around.data(), around.size() * sizeof(std::uint16_t),
                     static_cast<std::size_t>(first) * sizeof(std::uint16_t));
    count += size - std::count(around.begin(), around.end(), kPoison);
  };
  look(0, first_);
  for (std::int64_t i = 0; i < shape_.batch * (by_heads ? shape_.heads : 1); ++i) {
    look(first_ + i * piece + used, piece - used);
  }
  return count;
}

Tensor PaddedTensor::view(void* memory) const {
  return {static_cast<std::uint16_t*>(memory) + first_,
          dtype_,
          {shape_.batch, shape_.rows, shape_.heads, shape_.width},
          {batch_stride_, row_stride_, head_stride_, 1}};
}

Tensor PaddedTensor::host() const { return view(const_cast<std::uint16_t*>(host_.data())); }

Tensor PaddedTensor::device() const { return view(device_.data()); }

Workload::Workload(const Case& c)
    : parameters(c),
      sequences(sequences_of(c)),
      q(make_tensor(c, true, c.problem.head_dim)),
      k(make_tensor(c, false, c.problem.head_dim)),
      v(make_tensor(c, false, c.problem.width_v())),
      out(make_tensor(c, true, c.problem.width_v())),
      lse_device(0) {
  const PaddedTensor::Shape& rows = out.shape();
  lse.resize(static_cast<std::size_t>(rows.batch * rows.rows * rows.heads) + 2 * kLsePadding);
  lse_device = Buffer(lse.size() * sizeof(float));
  if (is_packed(c)) {
    cu_seqlens_q_ = uploaded(starts_of(c, c.lengths.q, c.seqlen_q));
    cu_seqlens_k_ = uploaded(starts_of(c, c.lengths.k, c.seqlen_k));
  }
  for (const InputData& data : c.inputs) pattern_inputs_.emplace_back(data);
  if (!c.lengths.used_k.empty()) seqused_k_ = uploaded(c.lengths.used_k);
  if (!c.lengths.leftpad_k.empty()) leftpad_k_ = uploaded(c.lengths.leftpad_k);
}

void Workload::fill_normal(std::uint64_t seed) {
  std::uint64_t tensor_seed = mixed(seed);
  for (PaddedTensor* tensor : {&q, &k, &v}) tensor->fill_normal(tensor_seed++);

  std::vector<bool> used(static_cast<std::size_t>(k.shape().batch * k.shape().rows), false);
  for (const Sequence& s : sequences) {
    const auto first = used.begin() + s.batch * k.shape().rows + s.k_row;
    if (s.seqlen_k > 0) std::fill(first, first + s.seqlen_k, true);
  }
  for (std::size_t i = 0; i < used.size(); ++i) {
    if (used[i]) continue;
    const auto row = static_cast<std::int64_t>(i);
    for (PaddedTensor* tensor : {&k, &v}) {
      const PaddedTensor::Shape& shape = tensor->shape();
      for (std::int64_t h = 0; h < shape.heads; ++h) {
        std::fill_n(tensor->row(row / shape.rows, row % shape.rows, h), shape.width, kPoison);
      }
    }
  }
  upload_inputs();
}

void Workload::upload_inputs() {
  for (PaddedTensor* tensor : {&q, &k, &v}) tensor->upload();
}

void Workload::poison_outputs() {
  out.poison();
  lse_device.fill(0xff);
}

void Workload::download_outputs() {
  out.download();
  lse_device.download(lse.data(), lse_device.size());
}

std::int64_t Workload::download_outputs(std::span<const Row> rows) {
  for (const Row& row : rows) {
    const Sequence& s = sequences[static_cast<std::size_t>(row.b)];
    out.download_row(s.batch, s.q_row + row.q, row.h);
  }
  lse_device.download(lse.data(), lse_device.size());
  const auto touched = [](float value) { return std::bit_cast<std::uint32_t>(value) != ~0u; };
  return out.count_written_around() +
         std::count_if(lse.begin(), lse.begin() + kLsePadding, touched) +
         std::count_if(lse.end() - kLsePadding, lse.end(), touched);
}

std::int64_t Workload::touched_padding() const {
  const auto touched = [](float value) { return std::bit_cast<std::uint32_t>(value) != ~0u; };
  std::int64_t count = out.count_written() + std::count_if(lse.begin(), lse.end(), touched);
  for (int b = 0; b < parameters.batch; ++b) {
    const Sequence& s = sequences[static_cast<std::size_t>(b)];
    for (int h = 0; h < parameters.problem.num_heads; ++h) {
      for (int i = 0; i < s.seqlen_q; ++i) {
        const std::uint16_t* row = out_row({b, h, i});
        const std::int64_t width = out.shape().width;
        count -= width - std::count(row, row + width, kPoison);
        if (parameters.with_lse) count -= touched(lse_at({b, h, i}));
      }
    }
  }
  return count;
}

std::int64_t Workload::num_rows() const {
  std::int64_t rows = 0;
  for (const Sequence& s : sequences) rows += s.seqlen_q;
  return rows * parameters.problem.num_heads;
}

int Workload::longest_k() const {
  int longest = 0;
  for (const Sequence& s : sequences) longest = std::max(longest, s.seqlen_k);
  return longest;
}

std::uint16_t* Workload::q_row(Row row) {
  const Sequence& s = sequences[static_cast<std::size_t>(row.b)];
  return q.row(s.batch, s.q_row + row.q, row.h);
}

std::uint16_t* Workload::k_row(int b, int key, int head_kv) {
  const Sequence& s = sequences[static_cast<std::size_t>(b)];
  return k.row(s.batch, s.k_row + key, head_kv);
}

const std::uint16_t* Workload::out_row(Row row) const {
  const Sequence& s = sequences[static_cast<std::size_t>(row.b)];
  return out.row(s.batch, s.q_row + row.q, row.h);
}

float Workload::lse_at(Row row) const {
  const Sequence& s = sequences[static_cast<std::size_t>(row.b)];
  const PaddedTensor::Shape& rows = out.shape();
  const std::int64_t index = (s.batch * rows.heads + row.h) * rows.rows + s.q_row + row.q;
  return lse[kLsePadding + static_cast<std::size_t>(index)];
}

jit::Args Workload::args() const {
  const Layout layout = parameters.problem.layout;
  jit::Args args;
  args.q = ordered(q.device(), layout);
  args.k = ordered(k.device(), layout);
  args.v = ordered(v.device(), layout);
  args.out = ordered(out.device(), layout);
  args.layout = layout;
  if (parameters.with_lse) args.lse = static_cast<float*>(lse_device.data()) + kLsePadding;
  args.softmax_scale = parameters.softmax_scale;
  args.empty_lse = parameters.empty_lse;
  args.q_start = parameters.q_start;
  args.k_start = parameters.k_start;
  args.seqused_k = pointer_to(seqused_k_);
  args.leftpad_k = pointer_to(leftpad_k_);
  if (is_packed(parameters)) {
    args.cu_seqlens_q = pointer_to(cu_seqlens_q_);
    args.cu_seqlens_k = pointer_to(cu_seqlens_k_);
    args.num_sequences = parameters.batch;
    args.max_seqlen_q = parameters.seqlen_q;
    args.max_seqlen_k = parameters.seqlen_k;
  }
  for (const DeviceInput& input : pattern_inputs_) args.inputs.push_back(input.input());
  args.max_ctas = parameters.max_ctas;
  return args;
}

AttentionInputs Workload::inputs(Tensor q_view, Tensor k_view, Tensor v_view) const {
  AttentionInputs result{q_view, k_view, v_view, softmax_scale_of(parameters)};
  for (const Sequence& s : sequences) {
    result.starts.push_back({s.batch * q_view.stride[0] + s.q_row * q_view.stride[1],
                             s.batch * k_view.stride[0] + s.k_row * k_view.stride[1],
                             s.batch * v_view.stride[0] + s.k_row * v_view.stride[1]});
  }
  for (Tensor* tensor : {&result.q, &result.k, &result.v}) tensor->shape[0] = parameters.batch;
  for (Tensor* tensor : {&result.k, &result.v}) tensor->shape[1] = longest_k();
  result.softcaps = parameters.softcaps;
  result.changes = parameters.changes;
  return result;
}

AttentionInputs Workload::host_inputs() const { return inputs(q.host(), k.host(), v.host()); }

AttentionInputs Workload::device_inputs() const {
  return inputs(q.device(), k.device(), v.device());
}

}  // namespace girih::verify
