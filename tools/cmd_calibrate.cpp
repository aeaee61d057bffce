// girih calibrate PATTERN: thresholds of prune from examples of Q and K in files. Tile maxima are
// found on the GPU where there is one, else on the CPU.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "common.hpp"
#include "fill.hpp"
#include "girih/prune.hpp"
#include "girih/shared/prune.cuh"
#include "reading.hpp"
#include "runtime/softmax_scale.hpp"
#include "tensor_file.hpp"
#include "verify/device.hpp"
#include "verify/parallel.hpp"
#include "verify/reference.hpp"

namespace girih::tools {
namespace {

// Q and K of one file each, rounded to what kernels take, and data for the masks' inputs.
struct Example {
  std::vector<std::uint16_t> q, k;
  Tensor q_view, k_view;  // of the host's copy
  int batch, seqlen_q, seqlen_k;
  Problem problem;
  std::vector<verify::InputData> inputs;
};

// [batch, seqlen, heads, head_dim] by layout; a file of three dimensions has no batch.
Tensor view_of(const std::string& source, const FileTensor& file, std::vector<std::uint16_t>& bits,
               DType dtype) {
  std::vector<std::int64_t> shape = file.shape;
  if (shape.size() == 3) shape.insert(shape.begin(), 1);
  if (shape.size() != 4) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} has {} dimensions: it must have 4, in the order of --layout, or the "
                    "last 3 of them",
                    source, shape.size()));
  }
  for (const std::int64_t extent : shape) {
    if (extent >= 1 && extent <= kMaxNumber) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("{} has a dimension of {}: each must be from 1 to {}", source, extent,
                            kMaxNumber));
  }
  bits.reserve(file.values.size());
  for (const float value : file.values) {
    bits.push_back(verify::narrow(dtype, value));
    if (std::isfinite(verify::widen(dtype, bits.back()))) continue;
    throw Error(
        Errc::invalid_argument,
        std::isfinite(value)
            ? fmt::format("{} holds {}, more than {} can: give --dtype bf16", source, value,
                          to_string(dtype))
            : fmt::format("{} holds {} at element {}: examples must be finite; leave out what no "
                          "token owns, as padding",
                          source, value, bits.size() - 1));
  }
  return Tensor::contiguous(bits.data(), dtype, {shape[0], shape[1], shape[2], shape[3]});
}

Example read_example(const std::string& q_source, const std::string& k_source, DType dtype,
                     Layout layout) {
  Example example{};
  example.q_view = view_of(q_source, read_tensor(q_source), example.q, dtype);
  example.k_view = view_of(k_source, read_tensor(k_source), example.k, dtype);
  const std::size_t row = layout == Layout::bhsd ? 2 : 1, head = layout == Layout::bhsd ? 1 : 2;
  const auto& q = example.q_view.shape;
  const auto& k = example.k_view.shape;
  if (q[0] != k[0] || q[3] != k[3] || q[head] % k[head] != 0) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("{} is {}x{}x{}x{} and {} {}x{}x{}x{}: batch and head_dim must be equal, "
                    "and the heads of Q a multiple of K's",
                    q_source, q[0], q[1], q[2], q[3], k_source, k[0], k[1], k[2], k[3]));
  }
  example.batch = static_cast<int>(q[0]);
  example.seqlen_q = static_cast<int>(q[row]);
  example.seqlen_k = static_cast<int>(k[row]);
  example.problem = {.dtype = dtype,
                     .head_dim = static_cast<int>(q[3]),
                     .num_heads = static_cast<int>(q[head]),
                     .num_heads_kv = static_cast<int>(k[head]),
                     .layout = layout};
  return example;
}

// [batch, num_heads, num_q_tiles, num_k_tiles]
std::vector<float> maxima_on_gpu(const jit::TileMaxima& tile_maxima, const Example& example,
                                 std::optional<float> softmax_scale, std::size_t count) {
  const auto uploaded = [](const std::vector<std::uint16_t>& bits) {
    verify::Buffer buffer(bits.size() * sizeof(bits[0]));
    buffer.upload(bits.data(), buffer.size());
    return buffer;
  };
  const verify::Buffer q = uploaded(example.q), k = uploaded(example.k);
  const verify::Buffer maxima(count * sizeof(float));
  jit::TileMaximaArgs args{.q = example.q_view,
                           .k = example.k_view,
                           .layout = example.problem.layout,
                           .maxima = static_cast<float*>(maxima.data()),
                           .softmax_scale = softmax_scale};
  args.q.data = q.data();
  args.k.data = k.data();
  const std::vector<verify::DeviceInput> inputs(example.inputs.begin(), example.inputs.end());
  for (const verify::DeviceInput& input : inputs) args.inputs.push_back(input.input());
  tile_maxima(args);
  verify::synchronize();
  std::vector<float> result(count);
  maxima.download(result.data(), maxima.size());
  return result;
}

std::vector<float> maxima_on_cpu(const Pattern& pattern, int kv, const Example& example,
                                 float softmax_scale, std::size_t count) {
  const Problem& problem = example.problem;
  const std::vector<int> class_of_head = pattern.class_of_head(problem);
  const bool heads_first = problem.layout == Layout::bhsd;
  const auto row_of = [&](const Tensor& tensor, int b, int row, int head) {
    return static_cast<const std::uint16_t*>(tensor.data) + b * tensor.stride[0] +
           row * tensor.stride[heads_first ? 2 : 1] + head * tensor.stride[heads_first ? 1 : 2];
  };
  const int num_q_tiles = ceil_div(example.seqlen_q, kPruneRows);
  const int num_k_tiles = ceil_div(example.seqlen_k, kv);
  verify::Case example_case;
  example_case.problem = problem;
  example_case.batch = example.batch;
  example_case.seqlen_q = example.seqlen_q;
  example_case.seqlen_k = example.seqlen_k;
  example_case.inputs = example.inputs;
  const verify::MaskRow mask_row = reading_of(pattern, example_case);
  std::vector<float> result(count, -std::numeric_limits<float>::infinity());
  const std::int64_t planes = std::int64_t{example.batch} * problem.num_heads;
  verify::parallel_for(planes * num_q_tiles, [&](std::int64_t item) {
    const int tile = static_cast<int>(item % num_q_tiles);
    const int h = static_cast<int>(item / num_q_tiles % problem.num_heads);
    const int b = static_cast<int>(item / num_q_tiles / problem.num_heads);
    const auto& head_class =
        pattern.classes()[static_cast<std::size_t>(class_of_head[static_cast<std::size_t>(h)])];
    const float softcap = head_class.modifiers.softcap;
    float* const maxima = result.data() + item * num_k_tiles;
    std::vector<float> q(static_cast<std::size_t>(problem.head_dim));
    std::vector<std::uint32_t> visible(
        static_cast<std::size_t>(verify::mask_words(example.seqlen_k)));
    for (int row = tile * kPruneRows; row < min((tile + 1) * kPruneRows, example.seqlen_q); ++row) {
      const std::uint16_t* const q_bits = row_of(example.q_view, b, row, h);
      for (std::size_t j = 0; j < q.size(); ++j) q[j] = verify::widen(problem.dtype, q_bits[j]);
      std::fill(visible.begin(), visible.end(), 0u);
      mask_row({b, h, row}, visible);
      for (std::size_t word = 0; word < visible.size(); ++word) {
        for (std::uint32_t bits = visible[word]; bits != 0; bits &= bits - 1) {
          const int key = 32 * static_cast<int>(word) + std::countr_zero(bits);
          const std::uint16_t* const k = row_of(example.k_view, b, key, h / problem.group_size());
          float score = 0;
          for (std::size_t j = 0; j < q.size(); ++j) {
            score += q[j] * verify::widen(problem.dtype, k[j]);
          }
          score *= softmax_scale;
          if (softcap > 0) score = softcap * std::tanh(score / softcap);
          maxima[key / kv] = std::max(maxima[key / kv], score);
        }
      }
    }
  });
  return result;
}

// Keys of a tile: what the pattern's prune says, where it says so, else --kv.
int kv_of(const Pattern& pattern, int given, bool is_given) {
  for (const Pattern::HeadClass& head_class : pattern.classes()) {
    const Prune& prune = head_class.modifiers.prune;
    if (prune.thresholds.empty()) continue;
    if (!is_given || prune.kv == given) return prune.kv;  // pruned classes have tiles alike
    throw Error(Errc::invalid_argument,
                fmt::format("--kv {} contradicts the pattern, which prunes tiles of {} keys: leave "
                            "--kv out, or write kv={}",
                            given, prune.kv, given));
  }
  return given;
}

// Every file that is read: of Q, of K, of thresholds in fills, and the pattern's.
std::vector<std::string> files_read(const std::vector<std::string>& q,
                                    const std::vector<std::string>& k, const FillOptions& fill,
                                    const std::string& pattern) {
  std::vector<std::string> files{pattern.starts_with('@') ? pattern.substr(1) : pattern};
  for (const std::string& source : q) files.push_back(file_of(source));
  for (const std::string& source : k) files.push_back(file_of(source));
  for (const std::string& text : fill.fills) {
    const std::size_t at = text.find("=@");
    if (at != text.npos) files.push_back(text.substr(at + 2, text.find(',', at) - at - 2));
  }
  return files;
}

}  // namespace

void add_calibrate(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern, output, dtype = "bf16";
    std::vector<std::string> q, k;
    int kept_tiles = 0, kv = 64;
    std::optional<float> softmax_scale;
    Layout layout = Layout::bshd;
    FillOptions fill;
    bool cpu = false;
    jit::Options jit;
  };
  const auto options = std::make_shared<Options>();
  CLI::App* verb =
      add_verb(app, context, "calibrate", "Find prune's thresholds in examples of Q and K");
  add_pattern_argument(*verb, options->pattern);
  verb->add_option("--q", options->q,
                   "Files of Q, FILE.npy or FILE.safetensors:NAME, the same number of each")
      ->required()
      ->delimiter(',');
  verb->add_option("--k", options->k, "Files of K, as many")->required()->delimiter(',');
  verb->add_option("--kept-tiles", options->kept_tiles,
                   "Key tiles that each 128 queries should keep beside their own")
      ->required();
  verb->add_option("--kv", options->kv,
                   "Keys of a tile, 64 or 128; default: as the pattern prunes, or 64");
  verb->add_option("--softmax-scale", options->softmax_scale, "Default: 1 / sqrt(head_dim)");
  verb->add_option("--dtype", options->dtype, "What values are rounded to, bf16 or fp16")
      ->capture_default_str();
  add_layout_option(*verb, options->layout, "bshd or bhsd");
  add_fill_options(*verb, options->fill);
  verb->add_option("--seed", options->fill.seed,
                   "Of the data of --fill for the first file; the next ones have the next seeds")
      ->capture_default_str();
  verb->add_flag("--cpu", options->cpu, "Find maxima on the CPU, as without a GPU");
  verb->add_option("-o,--output", options->output, "The .safetensors file for what is found")
      ->required();
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context, verb] {
    const float given_scale = options->softmax_scale.value_or(1);
    if (!std::isfinite(given_scale) || given_scale < 0) {  // as a launch refuses it
      throw Error(Errc::invalid_argument,
                  fmt::format("--softmax-scale {} must be finite and not negative", given_scale));
    }
    const Pattern pattern = read_pattern(options->pattern);
    options->kv = kv_of(pattern, options->kv, verb->count("--kv") > 0);
    const DType dtype = parse_dtype(options->dtype);
    if (options->q.size() != options->k.size()) {
      throw Error(Errc::invalid_argument,
                  fmt::format("--q names {} files and --k {}: an example has one of each",
                              options->q.size(), options->k.size()));
    }
    if (options->layout == Layout::thd) {
      throw Error(Errc::invalid_argument, "--layout thd is not supported here: bshd and bhsd are");
    }
    check_output(options->output,
                 files_read(options->q, options->k, options->fill, options->pattern));
    const jit::TileMaxima tile_maxima(pattern, options->kv, options->jit);
    const bool gpu = !options->cpu && verify::device_available();
    std::optional<verify::Device> device;
    if (gpu) device.emplace();

    std::optional<Calibration> calibration;
    Problem problem;
    float scale = 1;
    int examples = 0;
    for (std::size_t i = 0; i < options->q.size(); ++i) {
      Example example = read_example(options->q[i], options->k[i], dtype, options->layout);
      if (i == 0) {
        problem = example.problem;
        scale = runtime::softmax_scale_of(options->softmax_scale, problem.head_dim);
        pattern.class_of_head(problem);  // refuses heads that the pattern does not have
        calibration.emplace(
            Calibration::Settings{problem.num_heads, options->kv, options->kept_tiles});
      }
      if (example.problem != problem) {
        throw Error(Errc::invalid_argument,
                    fmt::format("{} has {}, but {} {}: examples must be alike", options->q[i],
                                to_text(example.problem), options->q[0], to_text(problem)));
      }
      FillOptions fill = options->fill;
      fill.seed += i;
      example.inputs = read_fills(fill, tile_maxima.pattern(), problem, example.batch,
                                  example.seqlen_q, example.seqlen_k);
      const std::size_t plane = static_cast<std::size_t>(problem.num_heads) *
                                static_cast<std::size_t>(ceil_div(example.seqlen_q, kPruneRows)) *
                                static_cast<std::size_t>(ceil_div(example.seqlen_k, options->kv));
      const std::size_t count = plane * static_cast<std::size_t>(example.batch);
      const std::vector<float> maxima =
          gpu ? maxima_on_gpu(tile_maxima, example, options->softmax_scale, count)
              : maxima_on_cpu(tile_maxima.pattern(), options->kv, example, scale, count);
      for (int b = 0; b < example.batch; ++b, ++examples) {
        calibration->add(maxima.data() + static_cast<std::size_t>(b) * plane,
                         {.seqlen_q = example.seqlen_q, .seqlen_k = example.seqlen_k});
      }
    }
    const FileTensor thresholds{{problem.num_heads, calibration->num_columns()},
                                calibration->thresholds()};
    const auto kept = std::count_if(thresholds.values.begin(), thresholds.values.end(),
                                    [](float value) { return std::isinf(value); });
    std::vector<std::pair<std::string, std::string>> metadata = {
        {"pattern", pattern.text()},
        {"kv", fmt::format("{}", options->kv)},
        {"kept_tiles", fmt::format("{}", options->kept_tiles)},
        {"rows", fmt::format("{}", kPruneRows)},
        {"head_dim", fmt::format("{}", problem.head_dim)},
        {"softmax_scale", fmt::format("{}", scale)},
        {"dtype", to_string(dtype)},
        {"examples", fmt::format("{}", examples)},
        {"girih", GIRIH_VERSION}};
    if (!options->fill.fills.empty()) {
      metadata.emplace_back("fill", fmt::format("{}", fmt::join(options->fill.fills, " ")));
      metadata.emplace_back("seed", fmt::format("{}", options->fill.seed));
    }
    write_output(options->output, safetensors_bytes("thresholds", thresholds, metadata));
    if (context.json) {
      print_json({{"pattern", pattern.text()},
                  {"output", options->output},
                  {"num_heads", problem.num_heads},
                  {"num_columns", calibration->num_columns()},
                  {"kv", options->kv},
                  {"kept_tiles", options->kept_tiles},
                  {"examples", examples},
                  {"keep_all", kept},
                  {"on", gpu ? "GPU" : "CPU"}});
    } else {
      print(
          fmt::format("{}: thresholds of {} heads at {} positions, for tiles of {} keys, from {} "
                      "examples on the {}; {} keep every tile\n",
                      options->output, problem.num_heads, calibration->num_columns(), options->kv,
                      examples, gpu ? "GPU" : "CPU", kept));
    }
  });
}

}  // namespace girih::tools
