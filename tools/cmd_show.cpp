// girih show PATTERN: pictures of what its heads see, how much that is, and which tiles a kernel
// would visit. Needs neither a GPU nor NVRTC.
#include <fmt/format.h>

#include <cmath>

#include "common.hpp"
#include "fill.hpp"
#include "reading.hpp"
#include "svg.hpp"

namespace girih::tools {
namespace {

// Of heads that see the same.
struct GroupReport {
  std::string mask;
  std::vector<int> heads;
  Counts counts;  // in each of them
  HeadPicture picture;
};

std::vector<GroupReport> reports_of(std::vector<HeadGroup> groups, int block_m, int block_n) {
  std::vector<GroupReport> reports;
  const double share = 1.0 / static_cast<double>(groups.size());
  for (HeadGroup& group : groups) {
    reports.push_back(
        {.mask = group.mask.text(),
         .heads = std::move(group.heads),
         .counts = count_or_estimate(group.mask, group.geometry, block_m, block_n, share),
         .picture = picture_of(group.mask, group.geometry, share)});
  }
  return reports;
}

// Behind counts: which of them, and of the picture's cells, are estimates.
std::string estimate_text(const GroupReport& report, const Geometry& geometry) {
  const std::string cells = "cells from some of their elements";
  if (report.counts.sampled_rows == 0) return report.picture.sampled ? "; " + cells : "";
  const std::string text = sample_text(report.counts.sampled_rows, report.counts.sampled_keys,
                                       geometry.seqlen_q, geometry.seqlen_k);
  return report.picture.sampled ? fmt::format(", all estimated: {}, {}", text, cells)
                                : fmt::format(", estimated {}", text);
}

// Of `visible` elements in `heads` heads; a matrix without elements has density 0.
double density(double visible, double heads, const Geometry& geometry) {
  const double elements = heads * geometry.seqlen_q * geometry.seqlen_k;
  return elements > 0 ? visible / elements : 0;
}

}  // namespace

void add_show(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern, svg;
    ProblemOptions problem;
    FillOptions fill;
    int seqlen_q = 1024, seqlen_k = 1024;
    int block_m = 128, block_n = 64;
  };
  const auto options = std::make_shared<Options>();

  CLI::App* verb = add_verb(app, context, "show", "Draw a pattern and count what it makes visible");
  add_pattern_argument(*verb, options->pattern);
  add_length_options(*verb, options->seqlen_q, options->seqlen_k);
  verb->add_option("--block-m", options->block_m, "Query rows of a tile")->capture_default_str();
  verb->add_option("--block-n", options->block_n, "Keys of a tile")->capture_default_str();
  add_head_options(*verb, options->problem);
  add_fill_options(*verb, options->fill);
  options->fill.has_head_dim = false;
  verb->add_option("--seed", options->fill.seed, "Of the data of --fill")->capture_default_str();
  verb->add_option("--svg", options->svg, "File for a picture of the tiles, a panel a class");

  verb->callback([options, &context, verb] {
    check_range("--seqlen-q", options->seqlen_q, 0, kMaxNumber);
    check_range("--seqlen-k", options->seqlen_k, 0, kMaxNumber);
    check_range("--block-m", options->block_m, 1, kMaxNumber);
    check_range("--block-n", options->block_n, 1, kMaxNumber);
    const Pattern pattern = read_pattern(options->pattern);
    default_to_grid(*verb, pattern, options->seqlen_q, options->seqlen_k);
    const Problem problem = options->problem.resolve(pattern);
    Geometry geometry = geometry_of(options->seqlen_q, options->seqlen_k, problem);
    const HostInputs inputs(
        read_fills(options->fill, pattern, problem, 1, options->seqlen_q, options->seqlen_k),
        problem.num_heads, geometry);
    geometry.inputs = inputs.views();
    const std::vector<HeadGroup> groups = head_groups(pattern, problem, geometry);
    if (verb->count("--svg") > 0) {
      write_output(options->svg,
                   svg_picture(pattern, groups, geometry, options->block_m, options->block_n));
    }
    const std::vector<GroupReport> reports = reports_of(groups, options->block_m, options->block_n);
    double visible = 0;
    for (const GroupReport& report : reports) {
      visible += report.counts.visible * static_cast<double>(report.heads.size());
    }
    const double total_density = density(visible, problem.num_heads, geometry);

    if (context.json) {
      Json json{{"pattern", pattern.text()},
                {"seqlen_q", geometry.seqlen_q},
                {"seqlen_k", geometry.seqlen_k},
                {"num_heads", problem.num_heads},
                {"num_heads_kv", problem.num_heads_kv},
                {"block_m", options->block_m},
                {"block_n", options->block_n},
                {"density", total_density},
                {"classes", Json::array()}};
      for (const GroupReport& report : reports) {
        json["classes"].push_back({{"mask", report.mask},
                                   {"heads", ranges_text(report.heads)},
                                   {"num_heads", report.heads.size()},
                                   {"visible", std::llround(report.counts.visible)},
                                   {"density", density(report.counts.visible, 1, geometry)},
                                   {"tiles",
                                    {{"full", report.counts.tiles.full},
                                     {"partial", report.counts.tiles.partial},
                                     {"empty", report.counts.tiles.empty}}},
                                   {"picture", report.picture.cells}});
        Json& json_class = json["classes"].back();
        if (report.counts.sampled_rows > 0) {
          json_class["sampled_rows"] = report.counts.sampled_rows;
        }
        if (report.counts.sampled_keys > 0) {
          json_class["sampled_keys"] = report.counts.sampled_keys;
        }
        if (report.picture.sampled) json_class["sampled_picture"] = true;
      }
      return print_json(json);
    }
    for (const GroupReport& report : reports) {
      print(fmt::format(
          "{} {}: {}\n{}density {:.4f}; tiles of {} x {}: {} full, {} partial, {} empty{}\n\n",
          report.heads.size() == 1 ? "head" : "heads", ranges_text(report.heads), report.mask,
          report.picture.cells, density(report.counts.visible, 1, geometry), options->block_m,
          options->block_n, report.counts.tiles.full, report.counts.tiles.partial,
          report.counts.tiles.empty, estimate_text(report, geometry)));
    }
    print(fmt::format("{}\n{} queries, {} keys, heads: {}; density {:.4f}\n", pattern.text(),
                      geometry.seqlen_q, geometry.seqlen_k, problem.num_heads, total_density));
  });
}

}  // namespace girih::tools
