// What tools/quickstart runs: a pattern by heads at Llama-3.1-8B's shape, with dense causal beside
// it. On a GPU both are launched, checked and timed; without one they are drawn, compiled for two
// architectures, and the CPU reference is run. The last line's form is fixed.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>

#include "common.hpp"
#include "pattern/interpret.hpp"
#include "pattern/picture.hpp"
#include "verify/device.hpp"
#include "verify/reference.hpp"
#include "verify/verify.hpp"

namespace {

using namespace girih;
using tools::print;

constexpr Problem kLlama{
    .dtype = DType::bfloat16, .head_dim = 128, .num_heads = 32, .num_heads_kv = 8};

// What the last line reports.
struct Totals {
  int kernels = 0;
  std::int64_t rows_checked = 0;
  std::int64_t rows_wrong = 0;
  double milliseconds = 0;  // of the mixed pattern: its kernel's, or the CPU reference's
};

Geometry square(int seqlen) { return {.seqlen_q = seqlen, .seqlen_k = seqlen}; }

// The mask of each query head.
std::vector<Mask> masks_of_heads(const Pattern& pattern, const Problem& problem) {
  std::vector<Mask> masks;
  for (const int head_class : pattern.class_of_head(problem)) {
    masks.push_back(pattern.classes()[static_cast<std::size_t>(head_class)].mask);
  }
  return masks;
}

// Sums up all heads.
double count_visible(const Pattern& pattern, const Problem& problem, const Geometry& geometry) {
  std::vector<double> of_class;
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    of_class.push_back(static_cast<double>(pattern::count_visible(head_class.mask, geometry)));
  }
  double sum = 0;
  for (const int head_class : pattern.class_of_head(problem)) {
    sum += of_class[static_cast<std::size_t>(head_class)];
  }
  return sum;
}

void set_visible(const Mask& mask, const Geometry& geometry, int q,
                 std::span<std::uint32_t> words) {
  for (const Span span : pattern::row_spans(mask, geometry, q)) {
    for (int k = span.lo; k < span.hi; ++k) words[static_cast<std::size_t>(k / 32)] |= 1u << k % 32;
  }
}

// --- With a GPU

verify::Report check(const jit::Program& program, const verify::Case& parameters,
                     verify::GpuReference& reference, Totals& totals) {
  const Geometry geometry = square(parameters.seqlen_q);
  const std::vector<Mask> masks = masks_of_heads(program.pattern(), parameters.problem);
  const verify::Report report = verify::verify_attention(
      program, parameters,
      [&](verify::Row row, std::span<std::uint32_t> words) {
        set_visible(masks[static_cast<std::size_t>(row.h)], geometry, row.q, words);
      },
      reference);
  print(fmt::format("{:>6} x {:<6} {} of {} rows compared with float64 on the {}: {}\n",
                    parameters.seqlen_q, parameters.seqlen_k, report.rows_checked,
                    report.rows_total, report.reference,
                    report.ok() ? "all right" : fmt::format("{} WRONG", report.rows_wrong)));
  totals.rows_checked += report.rows_checked;
  // Trouble outside the compared rows counts as one more.
  totals.rows_wrong += report.ok() ? 0 : std::max<std::int64_t>(report.rows_wrong, 1);
  return report;
}

Totals run_on_gpu(const Pattern& mixed) {
  constexpr int kSeqlen = 32768;
  const verify::Device device;
  print(
      fmt::format("{} ({}), driver for CUDA {}\n", device.name(), device.arch(), device.driver()));
  verify::GpuReference reference;
  Totals totals;
  std::string times;
  for (const auto& [name, pattern] : {std::pair<const char*, Pattern>{"mixed", mixed},
                                      std::pair<const char*, Pattern>{"dense causal", causal()}}) {
    print(fmt::format("\n{}: {}\n", name, pattern.text()));
    const jit::Program program = jit::compile(pattern);
    print(tools::to_text(program.bind(kLlama).info()));
    ++totals.kernels;

    verify::Case parameters;
    parameters.problem = kLlama;
    parameters.seqlen_q = parameters.seqlen_k = 1024;
    check(program, parameters, reference, totals);
    parameters.seqlen_q = parameters.seqlen_k = kSeqlen;
    parameters.max_rows = 4096;
    parameters.timed = true;
    const double ms = verify::median(check(program, parameters, reference, totals).milliseconds);

    const double visible = count_visible(pattern, kLlama, square(kSeqlen));
    const double elements = static_cast<double>(kLlama.num_heads) * kSeqlen * kSeqlen;
    times += fmt::format("{:<13} {:>9.3f} ms {:>9.4f} {:>9.1f} TFLOP/s\n", name, ms,
                         visible / elements, 4 * visible * kLlama.head_dim / ms * 1e-9);
    if (pattern == mixed) totals.milliseconds = ms;
  }
  print(fmt::format("\n{} x {}       median   density   of the visible elements\n{}", kSeqlen,
                    kSeqlen, times));
  return totals;
}

// --- Without a GPU

// The exact mask test on the CPU: with q one-hot, bits in K and a scale of ln 2, a row's lse is
// the logarithm of a sum of ones and twos over the keys that it sees.
void check_reference(const Pattern& pattern, const Problem& problem, Totals& totals) {
  const int seqlen = 512;
  const Geometry geometry = square(seqlen);
  const auto width = static_cast<std::size_t>(problem.head_dim);
  const auto heads = static_cast<std::size_t>(problem.num_heads);
  const auto heads_kv = static_cast<std::size_t>(problem.num_heads_kv);
  const auto length = static_cast<std::size_t>(seqlen);
  std::mt19937 random(1);
  const std::uint16_t one = verify::narrow(problem.dtype, 1);
  std::vector<std::uint16_t> q(length * heads * width), k(length * heads_kv * width);
  for (std::uint16_t& element : k) element = random() % 2 == 0 ? 0 : one;
  std::vector<std::uint16_t> v = k;

  const std::vector<Mask> masks = masks_of_heads(pattern, problem);
  std::vector<verify::Row> rows;
  std::vector<std::uint32_t> words;
  std::vector<double> expected;
  for (int h = 0; h < problem.num_heads; ++h) {
    const Mask& mask = masks[static_cast<std::size_t>(h)];
    for (int row = 0; row < seqlen; row += 16) {
      const auto index = static_cast<std::size_t>(row);
      const auto head = static_cast<std::size_t>(h);
      const std::size_t column = random() % width;
      q[(index * heads + head) * width + column] = one;
      rows.push_back({0, h, row});
      words.resize(rows.size() * static_cast<std::size_t>(verify::mask_words(seqlen)));
      set_visible(mask, geometry, row,
                  std::span(words).last(static_cast<std::size_t>(verify::mask_words(seqlen))));
      const std::size_t head_kv = head / static_cast<std::size_t>(problem.group_size());
      double sum = 0;
      for (std::size_t key = 0; key < length; ++key) {
        if (!pattern::visible(mask, geometry, row, static_cast<int>(key))) continue;
        sum += k[(key * heads_kv + head_kv) * width + column] == one ? 2 : 1;
      }
      expected.push_back(std::log(sum));
    }
  }

  const auto tensor = [&](std::vector<std::uint16_t>& data, int num_heads) {
    return Tensor::contiguous(data.data(), problem.dtype, {1, seqlen, num_heads, problem.head_dim});
  };
  const verify::AttentionInputs inputs{
      .q = tensor(q, problem.num_heads),
      .k = tensor(k, problem.num_heads_kv),
      .v = tensor(v, problem.num_heads_kv),
      .softmax_scale = std::log(2.0f),
  };
  const auto begin = std::chrono::steady_clock::now();
  const verify::ReferenceRows reference = verify::reference_on_cpu(inputs, rows, words);
  const std::chrono::duration<double, std::milli> elapsed =
      std::chrono::steady_clock::now() - begin;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    // The scale is the nearest float32 to ln 2, 3e-8 beside it.
    totals.rows_wrong += !(std::abs(reference.lse[i] - expected[i]) <= 1e-6);
  }
  totals.rows_checked += static_cast<std::int64_t>(rows.size());
  totals.milliseconds = elapsed.count();
  print(fmt::format(
      "CPU reference, {} x {}: {} rows, which keys each sees: {}\n", seqlen, seqlen, rows.size(),
      totals.rows_wrong == 0 ? "all right" : fmt::format("{} WRONG", totals.rows_wrong)));
}

Totals run_without_gpu(const Pattern& mixed, const std::string& reason) {
  print(fmt::format("No GPU was found ({}): compiling only.\n\n", reason));
  for (const Pattern::HeadClass& head_class : mixed.classes()) {
    print(fmt::format("{}\n{}\n", head_class.mask.text(),
                      pattern::picture(head_class.mask, square(2048), 32, 16)));
  }
  Totals totals;
  for (const char* arch : {"sm_80", "sm_90a"}) {
    for (const Pattern& pattern : {mixed, Pattern(causal())}) {
      const jit::Artifact artifact = jit::build(pattern, kLlama, arch);
      print(fmt::format("{}\n{}\n", pattern.text(), tools::to_text(artifact.info)));
      ++totals.kernels;
    }
  }
  check_reference(mixed, kLlama, totals);
  return totals;
}

int run(const std::string& file) {
  const Pattern mixed = tools::read_pattern("@" + file);
  print(fmt::format("Llama-3.1-8B: {} heads, {} KV heads, head_dim {}, {}\n{}\n", kLlama.num_heads,
                    kLlama.num_heads_kv, kLlama.head_dim, to_string(kLlama.dtype), mixed.text()));
  std::string reason;
  const Totals totals =
      verify::device_available(&reason) ? run_on_gpu(mixed) : run_without_gpu(mixed, reason);
  print(fmt::format("girih: kernels compiled {}, rows checked {}, {:.3f} ms\n", totals.kernels,
                    totals.rows_checked, totals.milliseconds));
  return totals.rows_wrong == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    tools::print_error("usage: girih_quickstart PATTERN_FILE\n");
    return tools::kUsage;
  }
  try {
    return run(argv[1]);
  } catch (const Error& error) {
    tools::print_error(fmt::format("girih: error: {}\n", error.what()));
    return tools::exit_code(error.code());
  }
}
