#include "verify/verify.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <unordered_set>

#include "girih/error.hpp"
#include "verify/parallel.hpp"

namespace girih::verify {
namespace {

constexpr std::int64_t kPaddingRows = 256;  // as many as the largest tile has
constexpr std::size_t kLsePadding = 1024;
constexpr std::uint16_t kPoison = 0xffff;

// Rows of one key and the like come out exact from the naive computation too; then the float32
// sums, approximate exponentials and the reciprocal (some 2^-22 each, of values of order one) must
// still fit.
constexpr double kErrorFloor = 1e-6;

// Products of 8- and 11-bit significands are exact in float32. What lse suffers is the rounding of
// their sums (128 terms, 2^-24 each of a partial sum), of the exponentials (2^-22) and of the sum
// of those: some 1e-5, and a little more where scores are large. Longer rows than 10^4 keys, where
// a lost key hides in this, are what the exact mask test is for.
double allowed_lse_error(double lse) { return 1e-4 + 1e-5 * std::fabs(lse); }

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

bool is_finite(DType dtype, std::uint16_t bits) {
  const int exponent_mask = dtype == DType::bfloat16 ? 0x7f80 : 0x7c00;
  return (bits & exponent_mask) != exponent_mask;
}

bool chosen_cpu(const Case& c, std::size_t num_rows) {
  if (c.reference != Case::Reference::automatic) return c.reference == Case::Reference::cpu;
  return static_cast<double>(num_rows) * c.seqlen_k * c.problem.head_dim <= 0x1p27;
}

std::int64_t row_budget(const Case& c) {
  if (c.max_rows > 0) return c.max_rows;
  // 2^38 products take the naive kernel less than a second.
  const double products = static_cast<double>(c.num_rows()) * c.seqlen_k * c.problem.head_dim;
  return products <= 0x1p38 ? c.num_rows() : 4096;
}

std::vector<RowCheck> check_rows(const Workload& workload, std::span<const Row> rows,
                                 const MaskRow& mask_row, bool on_cpu, GpuReference& on_gpu) {
  const Case& c = workload.parameters;
  const auto words = static_cast<std::size_t>(mask_words(c.seqlen_k));
  const auto head_dim = static_cast<std::size_t>(c.problem.head_dim);
  const std::uint32_t last_word = c.seqlen_k % 32 == 0 ? ~0u : (1u << (c.seqlen_k % 32)) - 1;

  // Masks and references of a part at a time: at most 128 MB and 64 MB.
  const std::size_t part_size =
      std::clamp<std::size_t>((std::size_t{1} << 25) / std::max<std::size_t>(words, 1), 1, 65536);
  std::vector<RowCheck> checks(rows.size());
  for (std::size_t begin = 0; begin < rows.size(); begin += part_size) {
    const std::span<const Row> part = rows.subspan(begin, std::min(part_size, rows.size() - begin));
    std::vector<std::uint32_t> masks(part.size() * words, 0);
    std::vector<std::int64_t> num_visible(part.size(), 0);
    parallel_for(static_cast<std::int64_t>(part.size()), [&](std::int64_t index) {
      const auto i = static_cast<std::size_t>(index);
      const std::span<std::uint32_t> mask = std::span(masks).subspan(i * words, words);
      mask_row(part[i].h, part[i].q, mask);
      if (words > 0) mask.back() &= last_word;
      for (const std::uint32_t word : mask) num_visible[i] += std::popcount(word);
    });
    const ReferenceRows reference = on_cpu ? reference_on_cpu(workload.host_inputs(), part, masks)
                                           : on_gpu(workload.device_inputs(), part, masks);
    for (std::size_t i = 0; i < part.size(); ++i) {
      const Row row = part[i];
      const float lse = c.with_lse ? workload.lse_at(row) : 0.0f;
      checks[begin + i] =
          check_row(c.problem.dtype, row, num_visible[i], reference, i,
                    {workload.out.row(row.b, row.q, row.h), head_dim}, c.with_lse ? &lse : nullptr);
    }
  }
  return checks;
}

// Every element of the outputs, in rows that nobody compares as well.
std::int64_t count_not_finite(const Workload& workload) {
  const Case& c = workload.parameters;
  std::int64_t count = 0;
  for (int b = 0; b < c.batch; ++b) {
    for (int q = 0; q < c.seqlen_q; ++q) {
      for (int h = 0; h < c.problem.num_heads; ++h) {
        const std::uint16_t* out = workload.out.row(b, q, h);
        for (int j = 0; j < c.problem.head_dim; ++j) {
          count += !is_finite(c.problem.dtype, out[j]);
        }
        if (!c.with_lse) continue;
        const float lse = workload.lse_at({b, h, q});
        count += std::isnan(lse) || lse == std::numeric_limits<float>::infinity();
      }
    }
  }
  return count;
}

std::vector<double> time_kernel(const jit::Kernel& kernel, const jit::Args& args,
                                jit::Workspace workspace) {
  const auto launch = [&] { kernel.launch(args, workspace); };
  std::vector<double> times = time_launches({}, launch);
  if (median(times) >= 1.0) return times;
  return time_launches({.repeats = 30, .flush_l2 = true}, launch);
}

}  // namespace

PaddedTensor::PaddedTensor(DType dtype, std::array<std::int64_t, 4> shape, std::int64_t row_gap)
    : dtype_(dtype),
      shape_(shape),
      stride_{(shape[1] + kPaddingRows) * (shape[2] * shape[3] + row_gap),
              shape[2] * shape[3] + row_gap, shape[3], 1},
      first_(kPaddingRows * stride_[1]),
      host_(static_cast<std::size_t>(first_ + shape[0] * stride_[0]), kPoison),
      device_(host_.size() * sizeof(std::uint16_t)) {}

std::int64_t PaddedTensor::offset(std::int64_t b, std::int64_t s, std::int64_t h) const {
  return first_ + b * stride_[0] + s * stride_[1] + h * stride_[2];
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
  const std::int64_t row_size = shape_[2] * shape_[3];
  const std::uint64_t mixed_seed = mixed(seed);
  parallel_for(shape_[0] * shape_[1], [&](std::int64_t i) {
    std::uint16_t* target = row(i / shape_[1], i % shape_[1], 0);
    std::uint64_t bits = 0;
    for (std::int64_t j = 0; j < row_size; ++j) {
      const std::int64_t element = i * row_size + j;
      if (j % 4 == 0) bits = mixed(mixed_seed ^ static_cast<std::uint64_t>(element / 4));
      target[j] = table[static_cast<std::uint16_t>(bits >> (j % 4 * 16))];
    }
  });
}

void PaddedTensor::poison() { device_.fill(0xff); }

void PaddedTensor::upload() { device_.upload(host_.data(), device_.size()); }

void PaddedTensor::download() { device_.download(host_.data(), device_.size()); }

std::int64_t PaddedTensor::touched_padding() const {
  std::int64_t count = 0;
  const auto inspect = [&](std::int64_t begin, std::int64_t end) {
    count += (end - begin) - std::count(host_.begin() + begin, host_.begin() + end, kPoison);
  };
  inspect(0, first_);
  for (std::int64_t b = 0; b < shape_[0]; ++b) {
    const std::int64_t begin = offset(b, 0, 0);
    for (std::int64_t s = 0; s < shape_[1]; ++s) {
      const std::int64_t row_begin = begin + s * stride_[1];
      inspect(row_begin + shape_[2] * shape_[3], row_begin + stride_[1]);
    }
    inspect(begin + shape_[1] * stride_[1], begin + stride_[0]);
  }
  return count;
}

Tensor PaddedTensor::view(void* memory) const {
  return {static_cast<std::uint16_t*>(memory) + first_, dtype_, shape_, stride_};
}

Tensor PaddedTensor::host() const { return view(const_cast<std::uint16_t*>(host_.data())); }

Tensor PaddedTensor::device() const { return view(device_.data()); }

Workload::Workload(const Case& c)
    : parameters(c),
      q(c.problem.dtype, {c.batch, c.seqlen_q, c.problem.num_heads, c.problem.head_dim}, c.row_gap),
      k(c.problem.dtype, {c.batch, c.seqlen_k, c.problem.num_heads_kv, c.problem.head_dim},
        c.row_gap),
      v(c.problem.dtype, {c.batch, c.seqlen_k, c.problem.num_heads_kv, c.problem.head_dim},
        c.row_gap),
      out(c.problem.dtype, {c.batch, c.seqlen_q, c.problem.num_heads, c.problem.head_dim},
          c.row_gap),
      lse_device((static_cast<std::size_t>(c.num_rows()) + 2 * kLsePadding) * sizeof(float)),
      lse(static_cast<std::size_t>(c.num_rows()) + 2 * kLsePadding) {}

void Workload::fill_normal(std::uint64_t seed) {
  std::uint64_t tensor_seed = mixed(seed);
  for (PaddedTensor* tensor : {&q, &k, &v}) {
    tensor->fill_normal(tensor_seed++);
    tensor->upload();
  }
}

void Workload::poison_outputs() {
  out.poison();
  lse_device.fill(0xff);
}

void Workload::download_outputs() {
  out.download();
  lse_device.download(lse.data(), lse_device.size());
}

std::int64_t Workload::touched_padding() const {
  const auto touched = [](float value) { return std::bit_cast<std::uint32_t>(value) != ~0u; };
  const auto begin =
      lse.begin() + static_cast<std::ptrdiff_t>(parameters.with_lse ? kLsePadding : lse.size());
  const auto end = parameters.with_lse ? lse.end() - kLsePadding : lse.end();
  return out.touched_padding() + std::count_if(lse.begin(), begin, touched) +
         std::count_if(end, lse.end(), touched);
}

float Workload::lse_at(Row row) const {
  const std::int64_t index =
      (std::int64_t{row.b} * parameters.problem.num_heads + row.h) * parameters.seqlen_q + row.q;
  return lse[kLsePadding + static_cast<std::size_t>(index)];
}

jit::Args Workload::args() const {
  jit::Args args;
  args.q = q.device();
  args.k = k.device();
  args.v = v.device();
  args.out = out.device();
  if (parameters.with_lse) args.lse = static_cast<float*>(lse_device.data()) + kLsePadding;
  args.softmax_scale = parameters.softmax_scale;
  args.q_start = parameters.q_start;
  args.k_start = parameters.k_start;
  args.max_ctas = parameters.max_ctas;
  return args;
}

AttentionInputs Workload::host_inputs() const {
  return {q.host(), k.host(), v.host(), softmax_scale_of(parameters)};
}

AttentionInputs Workload::device_inputs() const {
  return {q.device(), k.device(), v.device(), softmax_scale_of(parameters)};
}

RowCheck check_row(DType dtype, Row row, std::int64_t num_visible, const ReferenceRows& reference,
                   std::size_t index, std::span<const std::uint16_t> out, const float* lse) {
  RowCheck check;
  check.row = row;
  check.num_visible = num_visible;
  for (std::size_t j = 0; j < out.size(); ++j) {
    const double got = static_cast<double>(widen(dtype, out[j]));
    const double expected = reference.out[index * out.size() + j];
    if (!std::isfinite(got) && check.broken.empty()) {
      check.broken = fmt::format("out[{}] is not finite", j);
      check.got = got;
      check.expected = expected;
    }
    if (!check.broken.empty()) continue;
    if (num_visible == 0 && got != 0) {
      check.broken = fmt::format("out[{}] of a row that sees nothing", j);
    }
    const double error = std::fabs(got - expected);
    if (error >= check.error) {
      check.error = error;
      check.got = got;
      check.expected = expected;
    }
    const double naive = static_cast<double>(reference.naive_lowp[index * out.size() + j]);
    check.naive_error = std::max(check.naive_error, std::fabs(naive - expected));
  }
  if (lse != nullptr) {
    check.got_lse = static_cast<double>(*lse);
    check.expected_lse = reference.lse[index];
    if (num_visible == 0) {
      check.lse_error = check.got_lse == check.expected_lse ? 0 : HUGE_VAL;
    } else {
      const double error = std::fabs(check.got_lse - check.expected_lse);
      check.lse_error = std::isnan(error) ? HUGE_VAL : error;
    }
  }
  return check;
}

void judge(std::span<const RowCheck> rows, Report& report) {
  std::vector<std::size_t> order(rows.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return rows[a].num_visible > rows[b].num_visible;
  });

  // Groups, longest rows first: within a factor of two, and large enough that the naive errors'
  // maximum is not a matter of luck.
  constexpr std::size_t kLeastRows = 64;
  const auto magnitude = [&](std::size_t i) {
    return std::bit_width(static_cast<std::uint64_t>(rows[order[i]].num_visible));
  };
  std::vector<double> allowed(rows.size(), 0);
  double closest = -1;
  for (std::size_t begin = 0; begin < order.size();) {
    double error = 0, naive_error = 0;
    std::size_t end = begin;
    while (end < order.size() && rows[order[end]].num_visible > 0 &&
           (magnitude(end) == magnitude(begin) || end - begin < kLeastRows)) {
      error = std::max(error, rows[order[end]].error);
      naive_error = std::max(naive_error, rows[order[end]].naive_error);
      ++end;
    }
    if (end == begin) break;  // what is left sees nothing
    const double limit = 2 * naive_error + kErrorFloor;
    for (std::size_t i = begin; i < end; ++i) allowed[order[i]] = limit;
    if (error / limit > closest) {
      closest = error / limit;
      report.error = error;
      report.allowed_error = limit;
    }
    begin = end;
  }

  constexpr std::size_t kShownFailures = 10;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const RowCheck& check = rows[i];
    const auto fail = [&](std::string what, double got, double expected) {
      if (report.failures.size() < kShownFailures) {
        report.failures.push_back({check.row, std::move(what), got, expected});
      }
    };
    const bool out_wrong = !check.broken.empty() || !(check.error <= allowed[i]);
    const bool lse_wrong = !(
        check.lse_error <= (check.num_visible == 0 ? 0.0 : allowed_lse_error(check.expected_lse)));
    if (out_wrong) {
      fail(check.broken.empty() ? fmt::format("out is off by more than {:.3g}", allowed[i])
                                : check.broken,
           check.got, check.expected);
    }
    if (lse_wrong) fail("lse", check.got_lse, check.expected_lse);
    report.rows_wrong += out_wrong || lse_wrong;
    report.lse_error = std::max(report.lse_error, check.lse_error);
  }
  report.rows_checked += static_cast<std::int64_t>(rows.size());
}

std::vector<Row> select_rows(int batch, int seqlen_q, std::span<const int> class_of_head,
                             std::int64_t max_rows, std::uint64_t seed) {
  const int num_heads = static_cast<int>(class_of_head.size());
  const std::int64_t total = std::int64_t{batch} * num_heads * seqlen_q;
  std::vector<Row> rows;
  if (total <= max_rows) {
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < num_heads; ++h) {
        for (int q = 0; q < seqlen_q; ++q) rows.push_back({b, h, q});
      }
    }
    return rows;
  }

  std::mt19937_64 random(seed);
  const auto below = [&](std::size_t bound) { return static_cast<int>(random() % bound); };
  std::vector<std::vector<int>> heads_of_class;
  for (int h = 0; h < num_heads; ++h) {
    const auto head_class = static_cast<std::size_t>(class_of_head[static_cast<std::size_t>(h)]);
    heads_of_class.resize(std::max(heads_of_class.size(), head_class + 1));
    heads_of_class[head_class].push_back(h);
  }
  std::unordered_set<std::int64_t> taken;
  const auto take = [&](Row row) {
    const std::int64_t index = (std::int64_t{row.b} * num_heads + row.h) * seqlen_q + row.q;
    if (taken.insert(index).second) rows.push_back(row);
  };
  const auto take_in = [&](const std::vector<int>& heads, int q) {
    if (heads.empty()) return;
    take({below(static_cast<std::size_t>(batch)),
          heads[static_cast<std::size_t>(below(heads.size()))], q});
  };

  for (const std::vector<int>& heads : heads_of_class) {
    take_in(heads, 0);
    take_in(heads, seqlen_q - 1);
  }
  std::vector<int> edges;  // beside the first rows of tiles
  for (int edge = 64; edge < seqlen_q; edge += 64) {
    for (int q = edge - 1; q <= std::min(edge + 1, seqlen_q - 1); ++q) edges.push_back(q);
  }
  std::shuffle(edges.begin(), edges.end(), random);
  for (std::size_t i = 0; i < edges.size(); ++i) {
    for (const std::vector<int>& heads : heads_of_class) {
      if (static_cast<std::int64_t>(rows.size()) < max_rows / 2) take_in(heads, edges[i]);
    }
  }
  while (static_cast<std::int64_t>(rows.size()) < max_rows) {
    take({below(static_cast<std::size_t>(batch)), below(class_of_head.size()),
          below(static_cast<std::size_t>(seqlen_q))});
  }
  return rows;
}

int q_start_of(const Case& c) { return c.q_start.value_or(c.k_start + c.seqlen_k - c.seqlen_q); }

float softmax_scale_of(const Case& c) {
  return c.softmax_scale.value_or(1.0f / std::sqrt(static_cast<float>(c.problem.head_dim)));
}

Report verify_attention(const jit::Program& program, const Case& c, const MaskRow& mask_row,
                        GpuReference& gpu_reference) {
  const jit::Kernel kernel = program.bind(c.problem);
  const std::vector<int> class_of_head =
      program.pattern().class_of_head(c.problem.num_heads, c.problem.num_heads_kv);

  Workload workload(c);
  workload.fill_normal(c.seed);
  workload.poison_outputs();
  const std::size_t workspace_bytes = kernel.workspace_bytes(c.batch, c.seqlen_q, c.seqlen_k);
  const Buffer workspace_memory(workspace_bytes);
  const jit::Workspace workspace{workspace_bytes == 0 ? nullptr : workspace_memory.data(),
                                 workspace_bytes};
  kernel.launch(workload.args(), workspace);
  synchronize();
  workload.download_outputs();

  const std::vector<Row> rows =
      select_rows(c.batch, c.seqlen_q, class_of_head, row_budget(c), c.seed);
  const bool on_cpu = chosen_cpu(c, rows.size());

  Report report;
  report.rows_total = c.num_rows();
  report.reference = on_cpu ? "CPU" : "GPU";
  report.kernel = kernel.info();
  judge(check_rows(workload, rows, mask_row, on_cpu, gpu_reference), report);
  report.not_finite = count_not_finite(workload);
  report.touched_padding = workload.touched_padding();
  if (c.timed) report.milliseconds = time_kernel(kernel, workload.args(), workspace);
  return report;
}

}  // namespace girih::verify
