#include "runtime/tile_choice.hpp"

#include <fmt/format.h>

#include "girih/version.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "support/log.hpp"

namespace girih::runtime {
namespace {

// The cache's own folder has the last word on what it and its layers have records of.
std::vector<tune::Record> records_of(const Settings& settings) {
  std::vector<tune::Record> records;
  const auto add = [&](const std::filesystem::path& folder) {
    const auto more = tune::read_records(tune::tuning_file(folder));
    records.insert(records.end(), more->begin(), more->end());
  };
  const auto& layers = settings.cache.layers;
  for (auto layer = layers.rbegin(); layer != layers.rend(); ++layer) add(*layer);
  if (!settings.cache.directory.empty()) add(settings.cache.directory);
  return records;
}

}  // namespace

std::vector<TileChoice> tile_choices(const TileQuery& query, const TileConfig& requested,
                                     const Settings& settings) {
  if (requested != TileConfig{}) return {{requested, "given"}};
  const TileChoice heuristic{{}, "heuristic"};
  if (settings.tune == jit::Tune::off) return {heuristic};
  const std::vector<tune::Record> records = records_of(settings);
  if (records.empty()) return {heuristic};

  const auto& [pattern, problem, arch, device, bucket] = query;
  const plan::Plan plan = plan::make_plan(pattern, problem, arch);
  const auto choice =
      tune::choose(records, {.device = device,
                             .kernel = tune::kernel_id(plan, problem),
                             .pattern = pattern.text(),
                             .girih_version = GIRIH_VERSION,
                             .bucket = bucket,
                             .candidates = plan::candidate_tiles(plan, problem, arch)});
  if (!choice) return {heuristic};

  const tune::Record& record = choice->record;
  const bool elsewhere = choice->match == tune::Choice::Match::other_device;
  support::log(elsewhere ? support::LogLevel::info : support::LogLevel::debug,
               fmt::format("tile {} x {}, {} stages, {} warps for {}: measured on {} on {}{}",
                           record.tile.block_m, record.tile.block_n, record.tile.num_stages,
                           record.tile.num_warps, pattern.text(), record.device.name, record.date,
                           elsewhere ? ", a hint where this GPU has no record" : ""));
  const TileChoice tuned{record.tile, elsewhere ? "tuned on another GPU" : "tuned", record,
                         choice->match == tune::Choice::Match::exact};
  if (record.tile == plan.spec.tile) return {tuned};
  return {tuned, heuristic};
}

}  // namespace girih::runtime
