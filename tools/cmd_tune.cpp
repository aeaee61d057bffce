// girih tune PATTERN: measures the tiles that fit on this GPU and records the times for later
// binds.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>

#include "common.hpp"
#include "fill.hpp"
#include "progress.hpp"
#include "reading.hpp"
#include "tune/tune_on_gpu.hpp"
#include "verify/device.hpp"

namespace girih::tools {
namespace {

// "2x1024x4096": batch, seqlen_q, seqlen_k.
verify::Case parse_shape(const std::string& text) {
  std::vector<int> numbers;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int number = 0;
    const auto [after, error] = std::from_chars(at, end, number);
    if (error != std::errc() || number < 1 || number > kMaxNumber) break;
    numbers.push_back(number);
    at = after;
    if (at == end || *at != 'x') break;
    ++at;
  }
  if (at != end || numbers.size() != 3 || numbers[0] > 65535) {
    throw Error(Errc::invalid_argument,
                fmt::format("--shapes '{}' is no shape: write BATCHxSEQLEN_QxSEQLEN_K, each at "
                            "least 1, such as 1x16384x16384",
                            text));
  }
  verify::Case c;
  c.batch = numbers[0];
  c.seqlen_q = numbers[1];
  c.seqlen_k = numbers[2];
  return c;
}

// "60s", "90" or "5m", in seconds.
double parse_duration(const std::string& text) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, value);
  const std::string_view unit(after, static_cast<std::size_t>(end - after));
  const bool known = unit.empty() || unit == "s" || unit == "m";
  if (error != std::errc() || !known || !(value > 0 && value <= 1e6)) {
    throw Error(
        Errc::invalid_argument,
        fmt::format("--budget '{}' is no time: write seconds or minutes, such as 60s or 5m", text));
  }
  return unit == "m" ? 60 * value : value;
}

std::string text_of(const verify::Case& c) {
  return fmt::format("{}x{}x{}", c.batch, c.seqlen_q, c.seqlen_k);
}

Json json_of(const verify::Case& c, const tune::Outcome& outcome) {
  Json timings = Json::array();
  for (const tune::Timing& timing : outcome.timings) {
    Json json{{"tile", to_json(timing.tile)}};
    if (!timing.ms.empty()) {
      json.update({{"ms", timing.median()},
                   {"p10", timing.quantile(0.1)},
                   {"p90", timing.quantile(0.9)},
                   {"repeats", timing.ms.size()}});
    }
    if (!timing.dropped.empty()) json["dropped"] = timing.dropped;
    timings.push_back(std::move(json));
  }
  Json json{{"batch", c.batch},
            {"seqlen_q", c.seqlen_q},
            {"seqlen_k", c.seqlen_k},
            {"measured", std::count_if(outcome.timings.begin(), outcome.timings.end(),
                                       [](const auto& timing) { return !timing.ms.empty(); })},
            {"timings", std::move(timings)}};
  if (outcome.best >= 0) {
    json["best"] = to_json(outcome.timings[static_cast<std::size_t>(outcome.best)].tile);
  }
  return json;
}

std::string table_of(const verify::Case& c, const tune::Outcome& outcome) {
  std::vector<const tune::Timing*> order;
  for (const tune::Timing& timing : outcome.timings) order.push_back(&timing);
  std::stable_sort(order.begin(), order.end(), [](const tune::Timing* a, const tune::Timing* b) {
    if (a->ms.empty() || b->ms.empty()) return !a->ms.empty() && b->ms.empty();
    return a->median() < b->median();
  });
  const tune::Timing& heuristic = outcome.timings.front();
  std::string text = fmt::format("{}\n  {:<28} {:>10} {:>8} {:>8} {:>14}\n", text_of(c), "tile",
                                 "ms", "spread", "repeats", "vs heuristic");
  for (const tune::Timing* timing : order) {
    text += fmt::format("  {:<28} ", to_text(timing->tile));
    if (timing->ms.empty()) {
      text += timing->dropped.empty() ? "not measured: the budget is used up" : timing->dropped;
    } else {
      const std::string compared =
          timing == &heuristic ? "heuristic"
          : heuristic.ms.empty()
              ? "-"
              : fmt::format("{:+.1f} %", 100 * (timing->median() / heuristic.median() - 1));
      text += fmt::format("{:>10.4f} {:>6.1f} % {:>8} {:>14}", timing->median(),
                          100 * timing->spread(), timing->ms.size(), compared);
    }
    const bool best = timing - outcome.timings.data() == outcome.best;
    text += best ? "  <- best\n" : "\n";
  }
  return text;
}

struct TuneOptions {
  std::string pattern;
  std::vector<std::string> shapes{"1x16384x16384"};
  std::string budget = "60s";
  ProblemOptions problem;
  FillOptions fill;
  std::optional<float> softmax_scale;
  Layout layout = Layout::bshd;
  jit::Options jit;
};

void run_tune(const TuneOptions& options, Context& context) {
  std::vector<verify::Case> cases;
  for (const std::string& shape : options.shapes) cases.push_back(parse_shape(shape));
  const double budget = parse_duration(options.budget);
  TuneRequest request{.pattern = read_pattern(options.pattern), .options = options.jit};
  request.problem = options.problem.resolve(request.pattern);
  request.problem.layout = options.layout;
  request.budget_seconds = budget / static_cast<double>(cases.size());
  const std::filesystem::path file = tuning_file_of(options.jit);

  const verify::Device device;
  Progress progress("tune", cases.size());
  Json shapes = Json::array();
  std::string text =
      fmt::format("pattern     {}\ndevice      {}\n", request.pattern.text(), device.name());
  std::size_t num_records = 0;
  for (verify::Case& c : cases) {
    c.problem = request.problem;
    c.softmax_scale = options.softmax_scale;
    FillOptions fill = options.fill;
    fill.softmax_scale = verify::softmax_scale_of(c);
    c.inputs = read_fills(fill, request.pattern, request.problem, c.batch, c.seqlen_q, c.seqlen_k);
    request.mask_row = reading_of_pruned(request.pattern, c).mask;
    request.parameters = c;
    const TuneResult result = tune_on_gpu(request);
    if (result.outcome.best < 0) context.exit_code = kFailure;
    // At once, so that an interrupt loses no more than one shape.
    if (const std::string problem = tune::append_records(file, result.records); !problem.empty()) {
      throw Error(Errc::cache_io, fmt::format("cannot write {}: {}", file.string(), problem));
    }
    num_records += result.records.size();
    shapes.push_back(json_of(c, result.outcome));
    text += table_of(c, result.outcome);
    progress.step(text_of(c));
  }
  if (context.json) {
    return print_json({{"pattern", request.pattern.text()},
                       {"device", device.name()},
                       {"problem", to_json(request.problem)},
                       {"file", file.string()},
                       {"records", num_records},
                       {"shapes", shapes}});
  }
  print(text + fmt::format("{} records written to {}\n", num_records, file.string()));
}

}  // namespace

void add_tune(CLI::App& app, Context& context) {
  const auto options = std::make_shared<TuneOptions>();
  CLI::App* verb = add_verb(app, context, "tune",
                            "Measure the tiles that fit on this GPU; later binds use the best");
  add_pattern_argument(*verb, options->pattern);
  verb->add_option("--shapes", options->shapes, "BATCHxSEQLEN_QxSEQLEN_K, separated by commas")
      ->delimiter(',')
      ->capture_default_str();
  verb->add_option("--budget", options->budget,
                   "Time for checking and measuring, shared by the shapes; compiling comes on top")
      ->capture_default_str();
  add_problem_options(*verb, options->problem);
  add_layout_option(*verb, options->layout);
  verb->add_option("--softmax-scale", options->softmax_scale, "Default: 1 / sqrt(head_dim)");
  add_fill_options(*verb, options->fill);
  verb->add_option("--seed", options->fill.seed, "Of the data of --fill")->capture_default_str();
  add_compile_options(*verb, options->jit);
  add_mode_option(*verb, options->jit);
  options->jit.tune = jit::Tune::off;  // records to come need none
  verb->callback([options, &context] { run_tune(*options, context); });
}

}  // namespace girih::tools
