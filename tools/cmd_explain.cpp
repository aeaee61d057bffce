// girih explain PATTERN: whether there is a kernel and why not, what it would be, whether it is
// cached, and which tiles it visits. Compiles nothing; needs no GPU when --arch is given.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cache/disk_cache.hpp"
#include "common.hpp"
#include "fill.hpp"
#include "pattern/grid.hpp"
#include "pattern/interpret.hpp"
#include "plan/plan.hpp"
#include "reading.hpp"
#include "runtime/settings.hpp"
#include "runtime/tile_choice.hpp"
#include "tune/tune_on_gpu.hpp"
#include "verify/device.hpp"

namespace girih::tools {
namespace {

// Which of the tile's numbers were given, or where it comes from when none was.
std::string tile_origin(const TileConfig& given, const std::string& otherwise) {
  std::vector<const char*> names;
  for (const auto& [name, value] : {std::pair{"block_m", given.block_m},
                                    {"block_n", given.block_n},
                                    {"stages", given.num_stages},
                                    {"warps", given.num_warps},
                                    {"q_stages", given.num_q_stages},
                                    {"portable", given.portable ? 1 : 0}}) {
    if (value != 0) names.push_back(name);
  }
  if (names.empty()) return otherwise;
  if (given.block_m && given.block_n && given.num_stages && given.num_warps) return "given";
  return fmt::format("{} given, the rest heuristic", fmt::join(names, ", "));
}

// The present GPU where it is one of these, else one without a name: of its records, those of
// others are hints.
tune::DeviceId device_of(const plan::Arch& arch) {
  if (verify::device_available()) {
    tune::DeviceId device = present_device();
    if (device.arch == arch.name()) return device;
  }
  return {.name = "", .arch = arch.name(), .num_sms = 0};
}

// What a bind would take: the first choice, unless its kernel would have to be compiled and must
// not be.
runtime::TileChoice choice_of(const Pattern& pattern, const Problem& problem,
                              const plan::Arch& arch, const jit::Options& options) {
  const runtime::Settings settings = runtime::resolve(options);
  const auto choices =
      runtime::tile_choices({pattern, problem, arch, device_of(arch)}, options.tile, settings);
  if (settings.mode == jit::Mode::automatic) return choices.front();
  for (const runtime::TileChoice& choice : choices) {
    jit::Options own = options;
    own.tile = choice.tile;
    const jit::KernelInfo info =
        jit::build(pattern, problem, arch.name(), own, jit::Emit::source).info;
    if (cache::DiskCache(settings.cache).find({info.arch, info.key})) return choice;
  }
  return choices.back();
}

Json json_of(const tune::Record& record) {
  return {{"device", record.device.name},
          {"pattern", record.pattern},
          {"batch", record.shape.batch},
          {"seqlen_q", record.shape.seqlen_q},
          {"seqlen_k", record.shape.seqlen_k},
          {"num_heads", record.shape.num_heads},
          {"ms", record.ms},
          {"date", record.date}};
}

std::string text_of_record(const Json& record) {
  return fmt::format(
      "            {:.4g} ms for {}, batch {}, {} queries, {} keys, {} heads on {}, {}\n",
      record["ms"].get<double>(), record["pattern"].get<std::string>(), record["batch"].get<int>(),
      record["seqlen_q"].get<int>(), record["seqlen_k"].get<int>(), record["num_heads"].get<int>(),
      record["device"].get<std::string>(), record["date"].get<std::string>());
}

// Of a mask, in one head of so many masks.
Counts counts_of(const Mask& mask, const Geometry& geometry, const plan::Plan& plan,
                 std::size_t num_masks) {
  const TileConfig& tile = plan.spec.tile;
  if (!plan.spec.bricks) {
    return count_or_estimate(mask, geometry, tile.block_m, tile.block_n,
                             1.0 / static_cast<double>(num_masks));
  }
  const plan::BrickHeads head{mask, 1};
  const plan::BrickTiles tiles = plan::count_tiles(std::span(&head, 1), *plan.spec.bricks,
                                                   geometry.seqlen_k - plan.grid.extents.volume());
  return {.tiles = tiles, .visible = static_cast<double>(pattern::count_visible(mask, geometry))};
}

// Of a pattern with neighborhoods, whose query tiles are tokens in a row.
std::string why_no_bricks(const Pattern& pattern, const Problem& problem, const plan::Plan& plan) {
  if (plan.spec.family != plan::KernelFamily::fwd_sm90)
    return "only the kernel for Hopper has them";
  const std::string reason = plan::reason_against_bricks(pattern, problem);
  return reason.empty() ? "tokens in a row take no longer, as far as tiles tell" : reason;
}

Json classes_json(const Pattern& pattern, const Problem& problem, const plan::Plan& plan,
                  const std::optional<Geometry>& geometry) {
  Json classes = Json::array();
  const std::vector<HeadGroup> groups =
      head_groups(pattern, problem, geometry.value_or(geometry_of(0, 0, problem)));
  for (const auto& [mask, heads, own, pattern_class] : groups) {
    Json json{{"heads", ranges_text(heads)},
              {"num_heads", heads.size()},
              {"mask", mask.text()},
              {"structure", plan::structure_of(pattern.classes()[pattern_class])}};
    if (geometry) {
      const Counts counts = counts_of(mask, own, plan, groups.size());
      json["tiles"] = {{"full", counts.tiles.full},
                       {"partial", counts.tiles.partial},
                       {"empty", counts.tiles.empty}};
      json["visible"] = std::llround(counts.visible);
      if (counts.sampled_rows > 0) json["sampled_rows"] = counts.sampled_rows;
      if (counts.sampled_keys > 0) json["sampled_keys"] = counts.sampled_keys;
    }
    classes.push_back(std::move(json));
  }
  return classes;
}

// Tiles of all heads, and what share of the computed elements is visible.
Json total_tiles(const Json& classes, const TileConfig& tile) {
  std::int64_t full = 0, partial = 0, empty = 0;
  double visible = 0;
  bool estimated = false;
  for (const Json& entry : classes) {
    const std::int64_t heads = entry["num_heads"];
    estimated |= heads > 0 && entry.contains("sampled_rows");
    full += heads * entry["tiles"]["full"].get<std::int64_t>();
    partial += heads * entry["tiles"]["partial"].get<std::int64_t>();
    empty += heads * entry["tiles"]["empty"].get<std::int64_t>();
    visible += static_cast<double>(heads) * entry["visible"].get<double>();
  }
  const double computed = static_cast<double>(full + partial) * tile.block_m * tile.block_n;
  return {{"full", full},
          {"partial", partial},
          {"empty", empty},
          {"estimated", estimated},
          {"visible_of_computed", computed > 0 ? visible / computed : 0}};
}

std::string text_of(const Json& report, const Problem& problem) {
  const auto text = [](const Json& json) { return json.get<std::string>(); };
  std::string result =
      fmt::format("pattern     {}\nproblem     {}\n", text(report["pattern"]), to_text(problem));
  if (!report["supported"]) {
    return result + fmt::format("supported   no, on {}: {}\n", text(report["asked_arch"]),
                                text(report["reason"]));
  }
  const Json &tile = report["tile"], &cache = report["cache"];
  result +=
      fmt::format("supported   yes, by {} for {}\n", text(report["kernel"]), text(report["arch"]));
  result +=
      fmt::format("tile        {} x {}, {} stages, {} warps ({})\n", tile["block_m"].get<int>(),
                  tile["block_n"].get<int>(), tile["num_stages"].get<int>(),
                  tile["num_warps"].get<int>(), text(report["tile_origin"]));
  if (report.contains("bricks")) {
    const Json& bricks = report["bricks"];
    result += fmt::format("            bricks of the grid: {} queries, {} keys, dilation {}\n",
                          text(bricks["queries"]), text(bricks["keys"]), text(bricks["dilation"]));
  }
  if (report.contains("no_bricks")) {
    result += fmt::format("            no bricks of the grid: {}\n", text(report["no_bricks"]));
  }
  if (report.contains("record")) result += text_of_record(report["record"]);
  result += fmt::format(
      "CTA         {} threads, {} bytes of shared memory{}\n", report["threads"].get<int>(),
      report["shared_bytes"].get<int>(),
      cache["hit"] ? fmt::format(", {} registers a thread", report["registers"].get<int>()) : "");
  for (const Json& entry : report["classes"]) {
    result += fmt::format("heads       {}: {}\n            {}\n", text(entry["heads"]),
                          text(entry["mask"]), text(entry["structure"]));
    if (!entry.contains("tiles")) continue;
    const Json& tiles = entry["tiles"];
    result += fmt::format(
        "            tiles: {} full, {} partial, {} empty{}\n", tiles["full"].get<std::int64_t>(),
        tiles["partial"].get<std::int64_t>(), tiles["empty"].get<std::int64_t>(),
        entry.contains("sampled_rows")
            ? ", estimated " + sample_text(entry["sampled_rows"], entry.value("sampled_keys", 0),
                                           report["seqlen_q"], report["seqlen_k"])
            : "");
  }
  for (const Json& input : report["inputs"]) {
    result += fmt::format("input       {}: {}\n", text(input["name"]), text(input["wants"]));
  }
  if (report.contains("tiles")) {
    const Json& tiles = report["tiles"];
    result += fmt::format(
        "tiles       {} full, {} partial, {} empty over all heads{}; of the elements computed, "
        "{:.1f} % are visible\n",
        tiles["full"].get<std::int64_t>(), tiles["partial"].get<std::int64_t>(),
        tiles["empty"].get<std::int64_t>(), tiles["estimated"].get<bool>() ? ", estimated" : "",
        100 * tiles["visible_of_computed"].get<double>());
  }
  result +=
      fmt::format("kernel      {} structure{}, {}\n", report["structures"].size(),
                  report["structures"].size() == 1 ? "" : "s",
                  report["head_capacity"] == 1
                      ? "one class of heads"
                      : fmt::format("a table of {} heads", report["head_capacity"].get<int>()));
  result += fmt::format("key         {}\n", text(report["key"]));
  result +=
      cache["hit"]
          ? fmt::format("cache       hit: {} (compiled in {:.0f} ms by {})\n", text(cache["path"]),
                        cache["compile_ms"].get<double>(), text(cache["compiler"]))
          : fmt::format(
                "cache       miss in {}\n",
                cache["folders"].empty()
                    ? "no folder: there is no cache"
                    : fmt::format(
                          "{}", fmt::join(cache["folders"].get<std::vector<std::string>>(), ", ")));
  return result;
}

}  // namespace

void add_explain(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern, arch;
    ProblemOptions problem;
    FillOptions fill;
    jit::Options jit;
    std::optional<int> seqlen_q, seqlen_k;
  };
  const auto options = std::make_shared<Options>();

  CLI::App* verb =
      add_verb(app, context, "explain",
               "Say what kernel a problem gets, or why none, and whether it is cached");
  add_pattern_argument(*verb, options->pattern);
  add_problem_options(*verb, options->problem);
  add_arch_option(*verb, options->arch);
  verb->add_option("--seqlen-q", options->seqlen_q,
                   "Query rows, to count tiles; default: a grid's tokens, or the keys");
  verb->add_option("--seqlen-k", options->seqlen_k, "Keys, to count tiles; default: the rows");
  add_fill_options(*verb, options->fill);
  verb->add_option("--seed", options->fill.seed, "Of the data of --fill")->capture_default_str();
  add_tile_options(*verb, options->jit.tile);
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context] {
    const Pattern pattern = read_pattern(options->pattern);
    const Problem problem = options->problem.resolve(pattern);
    const std::string arch = resolve_arch(options->arch);
    std::optional<Geometry> geometry;
    std::optional<HostInputs> inputs;
    const std::vector<pattern::Grid> grids = pattern::grids_of(pattern);
    if (!grids.empty() && !options->seqlen_q) options->seqlen_q = grids.front().tokens;
    if (options->seqlen_q || options->seqlen_k) {
      if (options->seqlen_q) check_range("--seqlen-q", *options->seqlen_q, 0, kMaxNumber);
      if (options->seqlen_k) check_range("--seqlen-k", *options->seqlen_k, 0, kMaxNumber);
      const int seqlen_q = options->seqlen_q.value_or(options->seqlen_k.value_or(0));
      const int seqlen_k = options->seqlen_k.value_or(seqlen_q);
      geometry = geometry_of(seqlen_q, seqlen_k, problem);
      inputs.emplace(read_fills(options->fill, pattern, problem, 1, seqlen_q, seqlen_k),
                     problem.num_heads, *geometry);
      geometry->inputs = inputs->views();
    } else if (!options->fill.fills.empty()) {
      throw Error(Errc::invalid_argument,
                  "--fill makes data to count tiles with: give --seqlen-q or --seqlen-k as well");
    }

    Json report{{"pattern", pattern.text()},
                {"problem", to_json(problem)},
                {"asked_arch", arch},
                {"supported", true}};
    try {
      const plan::Arch parsed = plan::Arch::parse(arch);
      const runtime::TileChoice choice = choice_of(pattern, problem, parsed.plain(), options->jit);
      jit::Options jit = options->jit;
      jit.tile = choice.tile;
      const jit::Artifact artifact = jit::build(pattern, problem, arch, jit, jit::Emit::source);
      const plan::Plan plan = plan::make_plan(pattern, problem, parsed, jit.tile);
      const jit::KernelInfo& info = artifact.info;
      report["arch"] = info.arch;
      report["kernel"] = info.kernel;
      report["tile"] = to_json(info.tile);
      report["tile_origin"] = tile_origin(options->jit.tile, choice.source);
      if (choice.record) report["record"] = json_of(*choice.record);
      report["threads"] = info.threads;
      report["shared_bytes"] = info.shared_bytes;
      if (plan.spec.bricks) {
        const std::vector<plan::BrickHeads> heads = plan::brick_heads(pattern, problem);
        const Neighborhood grid = heads.front().neighborhood();
        report["bricks"] = {{"queries", plan::to_string(grid, plan.spec.bricks->queries)},
                            {"keys", plan::to_string(grid, plan.spec.bricks->keys)},
                            {"dilation", plan::to_string(grid, plan.grid.dilation)}};
      } else if (!grids.empty()) {
        report["no_bricks"] = why_no_bricks(pattern, problem, plan);
      }
      report["classes"] = classes_json(pattern, problem, plan, geometry);
      if (geometry) {
        report["seqlen_q"] = geometry->seqlen_q;
        report["seqlen_k"] = geometry->seqlen_k;
        report["tiles"] = total_tiles(report["classes"], info.tile);
      }
      report["inputs"] = Json::array();
      for (const InputInfo& input : pattern.inputs()) {
        report["inputs"].push_back({{"name", input.name}, {"wants", input.description()}});
      }
      report["structures"] = plan.spec.structures;
      report["head_capacity"] = plan.spec.head_capacity;
      report["key"] = info.key;

      const cache::DiskCacheOptions disk = runtime::resolve(options->jit).cache;
      const auto found = cache::DiskCache(disk).find({info.arch, info.key});
      Json folders = Json::array();
      for (const cache::Folder& folder : cache::folders_of(disk)) {
        folders.push_back(folder.path.string());
      }
      report["cache"] = {{"hit", found.has_value()}, {"folders", folders}};
      if (found) {
        report["registers"] = found->entry.registers;
        report["cache"]["path"] = found->path.string();
        report["cache"]["compile_ms"] = found->entry.compile_ms;
        report["cache"]["compiler"] = found->entry.compiler;
      }
    } catch (const Error& error) {
      if (error.code() != Errc::unsupported) throw;
      report["supported"] = false;
      report["reason"] = error.what();
      context.exit_code = kUnsupported;
    }
    if (context.json) return print_json(report);
    print(text_of(report, problem));
  });
}

}  // namespace girih::tools
