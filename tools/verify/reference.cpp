#include "verify/reference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "codegen/templates.hpp"
#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "support/env.hpp"
#include "verify/device.hpp"
#include "verify/parallel.hpp"

namespace girih::verify {
namespace {

std::uint16_t narrow_bfloat16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

std::uint16_t narrow_float16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
  const auto with_sign = [sign](std::uint32_t magnitude) {
    return static_cast<std::uint16_t>(sign | magnitude);
  };
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return with_sign(0x7e00);
  if (magnitude >= 65520.0f) return with_sign(0x7c00);  // halfway from 65504 to 2^16, and more
  if (magnitude < 0x1p-14f) {  // subnormal: units of 2^-24; 1024 of them are the first normal
    return with_sign(static_cast<std::uint32_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const std::uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return with_sign((rounded >> 13) - (112 << 10));  // exponent bias 127 becomes 15
}

float widen_float16(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int fraction = bits & 1023;
  float magnitude;
  if (exponent == 31) {
    magnitude = fraction == 0 ? std::numeric_limits<float>::infinity()
                              : std::numeric_limits<float>::quiet_NaN();
  } else if (exponent == 0) {
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

const std::uint16_t* row_of(const Tensor& tensor, std::int64_t start, std::int64_t s,
                            std::int64_t h) {
  return static_cast<const std::uint16_t*>(tensor.data) + start + s * tensor.stride[1] +
         h * tensor.stride[2];
}

// A score that enters the exponential, in either precision.
template <class Value>
Value capped(Value score, float softcap) {
  const auto cap = static_cast<Value>(softcap);
  return softcap > 0 ? cap * std::tanh(score / cap) : score;
}

void attend(const AttentionInputs& inputs, Row row, std::span<const std::uint32_t> mask,
            std::span<double> out, double& lse, std::span<float> naive_lowp) {
  const DType dtype = inputs.q.dtype;
  const int head_kv = row.h / inputs.group_size();
  const ReferenceStart start = inputs.start(row.b);
  const auto rounded = [dtype](double value) {
    return widen(dtype, narrow(dtype, static_cast<float>(value)));
  };

  std::vector<float> q(static_cast<std::size_t>(inputs.head_dim()));
  const std::uint16_t* q_bits = row_of(inputs.q, start.q, row.q, row.h);
  std::transform(q_bits, q_bits + q.size(), q.begin(),
                 [dtype](std::uint16_t bits) { return widen(dtype, bits); });

  std::vector<int> keys;
  std::vector<double> scores;
  for (int key = 0; key < inputs.seqlen_k(); ++key) {
    if (!(mask[static_cast<std::size_t>(key / 32)] >> (key % 32) & 1)) continue;
    const std::uint16_t* k = row_of(inputs.k, start.k, key, head_kv);
    double score = 0;
    for (std::size_t j = 0; j < q.size(); ++j) {
      score += static_cast<double>(q[j]) * static_cast<double>(widen(dtype, k[j]));
    }
    keys.push_back(key);
    scores.push_back(score);
  }
  std::fill(out.begin(), out.end(), 0.0);
  std::fill(naive_lowp.begin(), naive_lowp.end(), 0.0f);
  const double sink = inputs.changes.sink_logit ? inputs.changes.sink_logit(row)
                                                : -std::numeric_limits<double>::infinity();
  lse = sink;
  if (keys.empty()) return;

  const float softcap =
      inputs.softcaps.empty() ? 0.0f : inputs.softcaps[static_cast<std::size_t>(row.h)];
  std::vector<float> scores_lowp(keys.size());
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto changed = [&](double score) {
      return inputs.changes.score ? inputs.changes.score(score, row, keys[i]) : score;
    };
    const float lowp = capped(rounded(scores[i]) * inputs.softmax_scale, softcap);
    scores_lowp[i] = static_cast<float>(changed(static_cast<double>(lowp)));
    scores[i] = changed(capped(static_cast<double>(inputs.softmax_scale) * scores[i], softcap));
  }
  const double origin = std::max(*std::max_element(scores.begin(), scores.end()), sink);
  const float origin_lowp =
      std::max(*std::max_element(scores_lowp.begin(), scores_lowp.end()), static_cast<float>(sink));
  std::vector<double> probabilities(keys.size());
  std::vector<float> probabilities_lowp(keys.size());
  double sum = std::exp(sink - origin);
  float sum_lowp = std::exp(static_cast<float>(sink) - origin_lowp);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    probabilities[i] = std::exp(scores[i] - origin);
    probabilities_lowp[i] = std::exp(scores_lowp[i] - origin_lowp);
    sum += probabilities[i];
    sum_lowp += probabilities_lowp[i];
  }
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const double probability = probabilities[i] / sum;
    const float probability_lowp = rounded(probabilities_lowp[i] / sum_lowp);
    const std::uint16_t* v = row_of(inputs.v, start.v, keys[i], head_kv);
    for (std::size_t j = 0; j < out.size(); ++j) {
      const float value = widen(dtype, v[j]);
      out[j] += probability * static_cast<double>(value);
      naive_lowp[j] += probability_lowp * value;
    }
  }
  for (float& value : naive_lowp) value = rounded(value);
  lse = origin + std::log(sum);
}

ReferenceRows space_for(std::size_t num_rows, int head_dim_v) {
  const std::size_t elements = num_rows * static_cast<std::size_t>(head_dim_v);
  return {std::vector<double>(elements), std::vector<double>(num_rows),
          std::vector<float>(elements)};
}

ReferenceStrides strides_of(const Tensor& tensor) { return {tensor.stride[1], tensor.stride[2]}; }

constexpr const char* kReferenceSource = R"(#include "girih/reference.cuh"

extern "C" __global__ void __launch_bounds__(girih::kReferenceThreads)
girih_reference(const __grid_constant__ girih::ReferenceParams params) {
  girih::reference_rows(params);
}
)";

template <class Value>
Buffer uploaded(std::span<const Value> values) {
  Buffer buffer(values.size_bytes());
  buffer.upload(values.data(), values.size_bytes());
  return buffer;
}

}  // namespace

ReferenceStart AttentionInputs::start(int b) const {
  if (!starts.empty()) return starts[static_cast<std::size_t>(b)];
  return {b * q.stride[0], b * k.stride[0], b * v.stride[0]};
}

std::uint16_t narrow(DType dtype, float value) {
  return dtype == DType::bfloat16 ? narrow_bfloat16(value) : narrow_float16(value);
}

float widen(DType dtype, std::uint16_t bits) {
  if (dtype == DType::bfloat16) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  static const std::vector<float> table = [] {  // the CPU reference lives on this conversion
    std::vector<float> values(1 << 16);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = widen_float16(static_cast<std::uint16_t>(i));
    }
    return values;
  }();
  return table[bits];
}

ReferenceRows reference_on_cpu(const AttentionInputs& inputs, std::span<const Row> rows,
                               std::span<const std::uint32_t> masks) {
  const auto head_dim_v = static_cast<std::size_t>(inputs.head_dim_v());
  const auto words = static_cast<std::size_t>(mask_words(inputs.seqlen_k()));
  ReferenceRows result = space_for(rows.size(), inputs.head_dim_v());
  parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t index) {
    const auto i = static_cast<std::size_t>(index);
    attend(inputs, rows[i], masks.subspan(i * words, words),
           std::span(result.out).subspan(i * head_dim_v, head_dim_v), result.lse[i],
           std::span(result.naive_lowp).subspan(i * head_dim_v, head_dim_v));
  });
  return result;
}

std::string compile_reference(const std::string& arch) {
  compiler::Request request;
  request.source = kReferenceSource;
  request.program_name = "girih_reference.cu";
  request.arch = arch;
  request.options = compiler::default_options();
  for (codegen::TemplateFile& file :
       codegen::reachable_templates(request.source, support::env("TEMPLATE_DIR"))) {
    request.headers.push_back({std::move(file.name), std::move(file.text)});
  }
  if (const auto nvrtc = support::env("NVRTC")) request.nvrtc_path = *nvrtc;
  return compiler::compile(request).cubin;
}

ReferenceRows GpuReference::operator()(const AttentionInputs& inputs, std::span<const Row> rows,
                                       std::span<const std::uint32_t> masks) {
  ReferenceRows result = space_for(rows.size(), inputs.head_dim_v());
  if (rows.empty()) return result;
  for (const int width : {inputs.head_dim(), inputs.head_dim_v()}) {
    if (width % 8 == 0 && width <= kReferenceMaxHeadDim) continue;
    throw Error(Errc::unsupported,
                fmt::format("head_dim {} is not supported by the reference kernel: multiples of 8 "
                            "up to {} are; use the CPU reference",
                            width, kReferenceMaxHeadDim));
  }
  if (!module_) {
    module_ = std::make_unique<cuda::Module>(compile_reference(Device().arch()), "girih_reference");
  }

  // As many CTAs as fill a large GPU, fewer where their scratch memory would pass a GB.
  const auto seqlen_k = static_cast<std::size_t>(inputs.seqlen_k());
  const std::size_t scratch_elements_limit =
      (std::size_t{1} << 30) / (sizeof(double) + sizeof(float));
  const std::size_t num_ctas =
      std::clamp<std::size_t>(scratch_elements_limit / std::max<std::size_t>(seqlen_k, 1), 1,
                              std::min<std::size_t>(rows.size(), 1056));
  const Buffer probabilities(num_ctas * seqlen_k * sizeof(double));
  const Buffer probabilities_lowp(num_ctas * seqlen_k * sizeof(float));
  const Buffer out(result.out.size() * sizeof(double));
  const Buffer lse(result.lse.size() * sizeof(double));
  const Buffer naive_lowp(result.naive_lowp.size() * sizeof(float));
  std::vector<ReferenceStart> starts;
  for (int b = 0; b < inputs.q.shape[0]; ++b) starts.push_back(inputs.start(b));
  const Buffer device_starts = uploaded(std::span<const ReferenceStart>(starts));
  const Buffer device_softcaps = uploaded(std::span<const float>(inputs.softcaps));
  const Buffer device_rows = uploaded(rows);
  const Buffer device_masks = uploaded(masks);

  ReferenceParams params{
      .q = static_cast<const uint16*>(inputs.q.data),
      .k = static_cast<const uint16*>(inputs.k.data),
      .v = static_cast<const uint16*>(inputs.v.data),
      .q_strides = strides_of(inputs.q),
      .k_strides = strides_of(inputs.k),
      .v_strides = strides_of(inputs.v),
      .starts = static_cast<const ReferenceStart*>(device_starts.data()),
      .softcaps =
          inputs.softcaps.empty() ? nullptr : static_cast<const float*>(device_softcaps.data()),
      .rows = static_cast<const Row*>(device_rows.data()),
      .masks = static_cast<const uint32*>(device_masks.data()),
      .probabilities = static_cast<double*>(probabilities.data()),
      .probabilities_lowp = static_cast<float*>(probabilities_lowp.data()),
      .out = static_cast<double*>(out.data()),
      .lse = static_cast<double*>(lse.data()),
      .naive_lowp = static_cast<float*>(naive_lowp.data()),
      .num_rows = static_cast<int>(rows.size()),
      .seqlen_k = inputs.seqlen_k(),
      .mask_words = mask_words(inputs.seqlen_k()),
      .head_dim = inputs.head_dim(),
      .head_dim_v = inputs.head_dim_v(),
      .group_size = inputs.group_size(),
      .is_bfloat16 = inputs.q.dtype == DType::bfloat16,
      .softmax_scale = inputs.softmax_scale,
  };
  void* arguments[] = {&params};
  CUlaunchConfig config{};
  config.gridDimX = static_cast<unsigned>(num_ctas);
  config.gridDimY = config.gridDimZ = 1;
  config.blockDimX = kReferenceThreads;
  config.blockDimY = config.blockDimZ = 1;
  cuda::check(cuda::driver().cuLaunchKernelEx(&config, module_->function(), arguments, nullptr),
              "launching the reference kernel");
  synchronize();

  out.download(result.out.data(), out.size());
  lse.download(result.lse.data(), lse.size());
  naive_lowp.download(result.naive_lowp.data(), naive_lowp.size());
  return result;
}

}  // namespace girih::verify
