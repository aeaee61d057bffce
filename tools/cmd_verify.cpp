// girih verify PATTERN: runs its kernel on random inputs and compares rows with a float64
// reference. Exit code 0 only when every checked row is right.
#include <fmt/format.h>

#include "common.hpp"
#include "fill.hpp"
#include "reading.hpp"
#include "verify/device.hpp"
#include "verify/verify.hpp"

namespace girih::tools {
namespace {

Json report_json(const verify::Report& report, double milliseconds, double tflops) {
  Json failures = Json::array();
  for (const verify::Failure& failure : report.failures) {
    failures.push_back({{"batch", failure.row.b},
                        {"head", failure.row.h},
                        {"query", failure.row.q},
                        {"what", failure.what},
                        {"got", fmt::format("{}", failure.got)},  // JSON knows no infinity
                        {"expected", fmt::format("{}", failure.expected)}});
  }
  return {{"ok", report.ok()},
          {"rows", report.rows_total},
          {"rows_checked", report.rows_checked},
          {"rows_wrong", report.rows_wrong},
          {"error", report.error},
          {"allowed_error", report.allowed_error},
          {"closest", report.closest},
          {"lse_error", report.lse_error},
          {"not_finite", report.not_finite},
          {"touched_padding", report.touched_padding},
          {"reference", report.reference},
          {"ms", milliseconds},
          {"tflops", tflops},
          {"failures", failures},
          {"kernel", to_json(report.kernel)}};
}

std::string report_text(const verify::Report& report, double milliseconds, double tflops) {
  std::string text = to_text(report.kernel);
  for (const verify::Failure& failure : report.failures) {
    text += fmt::format(
        "wrong       batch {}, head {}, query {}: {}: got {:.9g}, expected {:.9g}\n", failure.row.b,
        failure.row.h, failure.row.q, failure.what, failure.got, failure.expected);
  }
  if (report.not_finite > 0) {
    text +=
        fmt::format("wrong       {} elements of the outputs are not finite\n", report.not_finite);
  }
  if (report.touched_padding > 0) {
    text += fmt::format("wrong       {} elements outside the outputs were written\n",
                        report.touched_padding);
  }
  text += fmt::format(
      "error       {:.3g} (allowed {:.3g}, of {}), lse {:.3g}\n"
      "time        {:.4f} ms, {:.1f} TFLOP/s on visible elements\n"
      "{} of {} rows checked against float64 on the {}: {}\n",
      report.error, report.allowed_error, report.closest.empty() ? "no row" : report.closest,
      report.lse_error, milliseconds, tflops, report.rows_checked, report.rows_total,
      report.reference,
      report.rows_wrong > 0 ? fmt::format("{} wrong", report.rows_wrong)
      : report.ok()         ? "all right"
                            : "right, but see above");
  return text;
}

}  // namespace

void add_verify(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern;
    ProblemOptions problem;
    FillOptions fill;
    Layout layout = Layout::bshd;
    jit::Options jit;
    verify::Case parameters;
  };
  const auto options = std::make_shared<Options>();
  verify::Case& c = options->parameters;
  c.seqlen_q = c.seqlen_k = 1024;
  c.timed = true;

  CLI::App* verb = add_verb(app, context, "verify",
                            "Run a pattern's kernel on random inputs and check its rows");
  add_pattern_argument(*verb, options->pattern);
  verb->add_option("--batch", c.batch, "Sequences")->capture_default_str();
  add_length_options(*verb, c.seqlen_q, c.seqlen_k);
  add_problem_options(*verb, options->problem);
  add_layout_option(*verb, options->layout);
  verb->add_option("--softmax-scale", c.softmax_scale, "Default: 1 / sqrt(head_dim)");
  verb->add_option("--q-start", c.q_start,
                   "Position of the first query; default: k-start + seqlen-k - seqlen-q");
  verb->add_option("--k-start", c.k_start, "Position of the first key")->capture_default_str();
  add_fill_options(*verb, options->fill);
  verb->add_option("--seed", c.seed, "Of the inputs and of the choice of rows")
      ->capture_default_str();
  verb->add_option("--rows", c.max_rows, "Rows to check; 0: all where that is cheap, else 4096")
      ->capture_default_str();
  verb->add_option("--max-ctas", c.max_ctas, "Cap on the grid; 0: none")->capture_default_str();
  add_tile_options(*verb, options->jit.tile);
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context, verb] {
    verify::Case& parameters = options->parameters;
    check_range("--batch", parameters.batch, 1, 65535);
    check_range("--seqlen-q", parameters.seqlen_q, 0, kMaxNumber);
    check_range("--seqlen-k", parameters.seqlen_k, 0, kMaxNumber);
    check_range("--k-start", parameters.k_start, -kMaxNumber, kMaxNumber);
    check_range("--q-start", parameters.q_start.value_or(0), -kMaxNumber, kMaxNumber);
    check_range("--rows", parameters.max_rows, 0, std::int64_t{1} << 40);
    check_range("--max-ctas", parameters.max_ctas, 0, kMaxNumber);
    const Pattern pattern = read_pattern(options->pattern);
    default_to_grid(*verb, pattern, parameters.seqlen_q, parameters.seqlen_k);
    parameters.problem = options->problem.resolve(pattern);
    parameters.problem.layout = options->layout;

    options->fill.seed = parameters.seed;
    options->fill.softmax_scale = verify::softmax_scale_of(parameters);
    parameters.inputs = read_fills(options->fill, pattern, parameters.problem, parameters.batch,
                                   parameters.seqlen_q, parameters.seqlen_k);
    reading_of(pattern, parameters);  // refuses uncovered heads

    const verify::Device device;
    const verify::PrunedReading reading = reading_of_pruned(pattern, parameters);
    const jit::Program program = jit::compile(pattern, options->jit);
    verify::GpuReference gpu_reference;
    const verify::Report report =
        verify::verify_attention(program, parameters, reading.mask, gpu_reference);
    if (!report.ok()) context.exit_code = kFailure;

    const double milliseconds = verify::median(report.milliseconds);
    const double tflops =
        milliseconds > 0 ? visible_flop(pattern, parameters) / milliseconds * 1e-9 : 0;
    if (context.json) {
      Json json{{"pattern", pattern.text()},       {"device", device.name()},
                {"batch", parameters.batch},       {"seqlen_q", parameters.seqlen_q},
                {"seqlen_k", parameters.seqlen_k}, {"problem", to_json(parameters.problem)}};
      if (reading.tiles > 0) {
        json["pruning"] = {{"tiles", reading.tiles},
                           {"skipped", reading.skipped},
                           {"thresholds_moved", reading.moved}};
      }
      json.update(report_json(report, milliseconds, tflops));
      return print_json(json);
    }
    const std::string pruning =
        reading.tiles == 0
            ? ""
            : fmt::format(
                  "pruning     {} of {} tiles that may be are skipped; {} thresholds were "
                  "moved away from a tile's highest score\n",
                  reading.skipped, reading.tiles, reading.moved);
    print(fmt::format("pattern     {}\ndevice      {}\n", pattern.text(), device.name()) + pruning +
          report_text(report, milliseconds, tflops));
  });
}

}  // namespace girih::tools
