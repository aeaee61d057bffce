// The tuner on a GPU that does not exist, the records on disk, and which tile a bind then takes.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <fstream>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "girih/error.hpp"
#include "girih/version.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "program.hpp"
#include "runtime/settings.hpp"
#include "runtime/tile_choice.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"
#include "tune/tuner.hpp"
#include "tune/tuning_db.hpp"

using namespace girih;
using tests::TemporaryFolder;
using tune::Choice;
using tune::Record;

namespace {

namespace fs = std::filesystem;

const tune::DeviceId kDevice{"Imaginary 9000", "sm_90", 132};
const Pattern kPattern = causal() & (sink(128) | window({.left = 255}));
const Problem kProblem{.head_dim = 128, .num_heads = 32, .num_heads_kv = 8};
const plan::Arch kArch = plan::Arch::parse("sm_90");

// Of kPattern and kProblem on kDevice.
Record record_of(const TileConfig& tile, double ms,
                 const tune::Shape& shape = {1, 8192, 8192, 32}) {
  return {.device = kDevice,
          .kernel = tune::kernel_id(plan::make_plan(kPattern, kProblem, kArch), kProblem),
          .pattern = kPattern.text(),
          .shape = shape,
          .tile = tile,
          .ms = ms,
          .p10 = ms * 0.99,
          .p90 = ms * 1.01,
          .repeats = 15,
          .girih_version = GIRIH_VERSION,
          .driver = "13.0",
          .date = "2026-01-31"};
}

std::vector<TileConfig> tiles_of(const Problem& problem, const plan::Arch& arch) {
  return plan::candidate_tiles(plan::make_plan(kPattern, problem, arch).spec.tile, problem, arch);
}
std::vector<TileConfig> tiles() { return tiles_of(kProblem, kArch); }

tune::Query query(const std::optional<tune::Bucket>& bucket = std::nullopt) {
  return {.device = kDevice,
          .kernel = record_of({}, 1).kernel,
          .pattern = kPattern.text(),
          .girih_version = GIRIH_VERSION,
          .bucket = bucket,
          .candidates = tiles()};
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A GPU whose tiles take `ms` of pretended time, the first of the candidates 1 ms.
struct FictionalGpu {
  double now = 0;
  int measured = 0;
  std::map<int, double> ms;  // by the candidate's index
  std::set<int> broken, spilling, wrong;
  std::vector<TileConfig> candidates;
  std::vector<int> order;  // of measurements
  std::atomic<int> compiled = 0;

  int index(const TileConfig& tile) const {
    return static_cast<int>(std::find(candidates.begin(), candidates.end(), tile) -
                            candidates.begin());
  }
  tune::Callbacks callbacks() {
    return {.compile =
                [this](const TileConfig& tile) {
                  ++compiled;
                  if (broken.contains(index(tile))) {
                    throw Error(Errc::compile_failed, "the compiler says no");
                  }
                  return tune::Compiled{spilling.contains(index(tile)) ? 8 : 0, 0};
                },
            .check = [this](const TileConfig& tile) -> std::string {
              return wrong.contains(index(tile)) ? "row 7 is wrong" : "";
            },
            .measure =
                [this](const TileConfig& tile) {
                  const int i = index(tile);
                  order.push_back(i);
                  const double each = ms.contains(i) ? ms[i] : 1.0;
                  // Every launch a little slower than the one before: never settled.
                  std::vector<double> values;
                  for (int k = 0; k < 3; ++k) {
                    now += each * 1e-3;
                    values.push_back(each * (1 + noise * (measured++ % 7)));
                  }
                  return values;
                },
            .clock = [this] { return now; }};
  }
  double noise = 0;
};

}  // namespace

// --- Candidates ----------------------------------------------------------------------------------

TEST_CASE("every candidate tile has a plan, and the heuristic one comes first") {
  for (const char* name : {"sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}) {
    const plan::Arch arch = plan::Arch::parse(name);
    for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
      CAPTURE(name);
      CAPTURE(head_dim);
      const Problem problem{.head_dim = head_dim};
      const TileConfig own = plan::make_plan(causal(), problem, arch).spec.tile;
      const auto candidates = plan::candidate_tiles(own, problem, arch);
      REQUIRE(!candidates.empty());
      CHECK(candidates.front() == own);
      std::set<std::tuple<int, int, int, int, int>> distinct;
      for (const TileConfig& tile : candidates) {
        const plan::Plan plan = plan::make_plan(causal(), problem, arch, tile);
        CHECK(plan.spec.tile == tile);
        CHECK(plan.shared_bytes <= arch.shared_bytes_per_cta());
        distinct.insert(
            {tile.block_m, tile.block_n, tile.num_stages, tile.num_warps, tile.num_q_stages});
      }
      CHECK(distinct.size() == candidates.size());
      const auto smaller = [](const TileConfig& a, const TileConfig& b) {
        return std::tie(a.block_m, a.block_n, a.num_stages, a.num_warps) <
               std::tie(b.block_m, b.block_n, b.num_stages, b.num_warps);
      };
      CHECK(std::is_sorted(candidates.begin() + 1, candidates.end(), smaller));
      // Shared memory and registers hold few tiles of wide heads.
      if (arch.number == 90) CHECK(candidates.size() >= (head_dim <= 128 ? 24 : 4));
    }
  }
}

TEST_CASE("a wide V narrows the candidates") {
  const Problem narrow{.head_dim = 64}, wide{.head_dim = 64, .head_dim_v = 256};
  CHECK(tiles_of(wide, kArch).size() < tiles_of(narrow, kArch).size());
}

// --- Records -------------------------------------------------------------------------------------

TEST_CASE("records are read as they were written") {
  const TemporaryFolder folder;
  const fs::path file = tune::tuning_file(folder / "new" / "cache");
  CHECK(tune::read_records(file)->empty());
  std::vector<Record> records{record_of({128, 64, 2, 4}, 1.25), record_of({64, 64, 2, 4}, 1.5)};
  records[1].pattern = "a \"quoted\" \\ pattern\nof two lines";
  REQUIRE(tune::append_records(file, records) == "");
  CHECK(*tune::read_records(file) == records);
  CHECK(fs::status(folder / "new" / "cache").permissions() == fs::perms::owner_all);

  const std::vector<Record> more{record_of({64, 32, 3, 4}, 2)};
  REQUIRE(tune::append_records(file, more) == "");
  records.push_back(more[0]);
  CHECK(*tune::read_records(file) == records);  // not what was remembered
  const std::string text = *support::read_file(file);
  CHECK(text.starts_with("{\"girih_tuning\":1}\n{\"device\":"));
  CHECK(std::count(text.begin(), text.end(), '\n') == 4);
  CHECK(tune::append_records(file, {}) == "");
  CHECK(*support::read_file(file) == text);
}

TEST_CASE("process that reads damaged tuning records" * doctest::skip()) {
  const auto records = tune::read_records(std::getenv("GIRIH_TEST_FILE"));
  CHECK(records->size() == 2);
}

TEST_CASE("a torn or bad line is skipped with its number, and the next append starts a new one") {
  const TemporaryFolder folder;
  const fs::path file = folder / "tuning.jsonl";
  const Record good = record_of({128, 64, 2, 4}, 1);
  Record bad = good;
  bad.tile.num_warps = 0;
  const std::string line = tune::to_line(good);
  write(file, "{\"girih_tuning\":1}\n" + tune::to_line(bad) + "\n\nnot json\n" + line + "\n" +
                  line.substr(0, line.size() / 2));
  REQUIRE(tune::append_records(file, {{good}}) == "");
  const auto ended = tests::run_test_case("process that reads damaged tuning records",
                                          {"GIRIH_TEST_FILE=" + file.string(), "GIRIH_LOG"});
  CHECK(ended.status == 0);
  CAPTURE(ended.err);
  for (const int number : {2, 4, 6}) {
    CHECK(ended.err.find(fmt::format("{}:{}: not a tuning record", file.string(), number)) !=
          std::string::npos);
  }
  CHECK(ended.err.find("num_warps 0 is not from 1") != std::string::npos);
  CHECK(ended.err.find(":5:") == std::string::npos);
}

TEST_CASE("times that are none and types that are none make no record") {
  const std::string line = tune::to_line(record_of({128, 64, 2, 4}, 1.5));
  std::string problem;
  REQUIRE(tune::from_line(line, problem));
  const auto refused = [&](const std::string& from, const std::string& to, const char* why) {
    std::string changed = line;
    const std::size_t at = changed.find(from);
    REQUIRE(at != std::string::npos);
    changed.replace(at, from.size(), to);
    CAPTURE(changed);
    CHECK(!tune::from_line(changed, problem));
    CHECK(problem.find(why) != std::string::npos);
  };
  refused("\"ms\":1.5", "\"ms\":-1.5", "ms -1.5 is no time");
  refused("\"ms\":1.5", "\"ms\":\"fast\"", "type");
  refused("\"ms\":1.5,", "", "ms");
  refused("bf16", "fp8", "dtype 'fp8' is not known");
  refused("\"block_m\":128", "\"block_m\":1e99", "block_m");
  refused("\"block_m\":128", "\"block_m\":128.5", "block_m 128.5 is not");
}

TEST_CASE("a file of another format is neither read nor written") {
  const TemporaryFolder folder;
  const fs::path file = folder / "tuning.jsonl";
  const std::string text =
      "{\"girih_tuning\":2}\n" + tune::to_line(record_of({128, 64, 2, 4}, 1)) + "\n";
  write(file, text);
  CHECK(tune::read_records(file)->empty());
  CHECK(tune::append_records(file, {{record_of({128, 64, 2, 4}, 1)}}) ==
        "format 2 is not known, 1 is");
  CHECK(*support::read_file(file) == text);
}

TEST_CASE("processes that append at once lose no record") {
  const TemporaryFolder folder;
  const fs::path file = folder / "tuning.jsonl";
  constexpr int kProcesses = 4, kAppends = 50;
  std::vector<pid_t> children;
  for (int process = 0; process < kProcesses; ++process) {
    children.push_back(tests::start_child([&] {
      for (int i = 0; i < kAppends; ++i) {
        const std::vector<Record> two{record_of({64, 32, 2, 4}, 1 + process),
                                      record_of({64, 64, 2, 4}, 1 + i)};
        if (!tune::append_records(file, two).empty()) return 1;
      }
      return 0;
    }));
  }
  for (const pid_t child : children) CHECK(tests::wait_for(child) == 0);
  const auto records = tune::read_records(file);
  CHECK(records->size() == 2 * kProcesses * kAppends);
  const std::string text = *support::read_file(file);
  CHECK(std::count(text.begin(), text.end(), '\n') == 1 + 2 * kProcesses * kAppends);
  CHECK(text.find("girih_tuning", 10) == std::string::npos);  // one header
  for (std::size_t i = 0; i + 1 < records->size(); i += 2) {  // one append is one piece
    CHECK((*records)[i].tile.block_n == 32);
    CHECK((*records)[i + 1].tile.block_n == 64);
  }
}

TEST_CASE("records that cannot be written say why") {
  const TemporaryFolder folder;
  write(folder / "file", "");
  CHECK(tune::append_records(folder / "file" / "tuning.jsonl", {{record_of({128, 64, 2, 4}, 1)}}) ==
        "Not a directory");
}

// --- Choosing ------------------------------------------------------------------------------------

TEST_CASE("buckets are powers of two, and their distance is not that of products") {
  const tune::Bucket bucket = tune::bucket_of({2, 100, 16384, 24});
  CHECK(bucket == tune::Bucket{6, 14, 5});
  CHECK(tune::bucket_of({1, 16383, 1, 1}) == tune::Bucket{13, 0, 0});
  const auto a = tune::bucket_of({1, 128, 8192, 1}), b = tune::bucket_of({1, 8192, 128, 1});
  CHECK(a.work() == b.work());
  CHECK(tune::distance(a, b) == 12);
  CHECK(tune::distance(a, a) == 0);
}

TEST_CASE("without a record there is no choice") { CHECK(!tune::choose({}, query())); }

TEST_CASE("the bucket asked for wins over the nearest, and that over others") {
  const auto t = tiles();
  const std::vector<Record> records{record_of(t[3], 1, {1, 1024, 1024, 32}),
                                    record_of(t[4], 1, {1, 8192, 8192, 32}),
                                    record_of(t[5], 1, {1, 65536, 65536, 32})};
  const auto chosen = [&](const tune::Shape& shape) {
    return *tune::choose(records, query(tune::bucket_of(shape)));
  };
  CHECK(chosen({1, 8192, 8192, 32}).record.tile == t[4]);
  CHECK(chosen({1, 8192, 8192, 32}).match == Choice::Match::exact);
  CHECK(chosen({1, 10000, 9000, 40}).match == Choice::Match::exact);
  CHECK(chosen({1, 512, 1024, 32}).record.tile == t[3]);
  CHECK(chosen({1, 512, 1024, 32}).match == Choice::Match::nearest);
  CHECK(chosen({4, 131072, 131072, 32}).record.tile == t[5]);
  // Unknown lengths: the largest work decides.
  CHECK(tune::choose(records, query())->record.tile == t[5]);
  CHECK(tune::choose(records, query())->match == Choice::Match::exact);
}

TEST_CASE("the fastest tile of a shape is chosen, and the first one within 1 percent of it") {
  const auto t = tiles();
  std::vector<Record> records{record_of(t[0], 1.02), record_of(t[4], 1.0), record_of(t[5], 1.01)};
  CHECK(tune::choose(records, query())->record.tile == t[4]);
  records[0].ms = 1.009;
  CHECK(tune::choose(records, query())->record.tile == t[0]);
  // A later record of a tile takes the place of an earlier one.
  records.push_back(record_of(t[4], 0.8));
  CHECK(tune::choose(records, query())->record.tile == t[4]);
  records.push_back(record_of(t[4], 2.0));
  CHECK(tune::choose(records, query())->record.tile == t[0]);
}

TEST_CASE("times of different shapes or patterns are not compared") {
  const auto t = tiles();
  // One bucket: the shorter shape was tuned earlier and is no reason to take its tile.
  std::vector<Record> records{record_of(t[3], 1.0, {1, 8192, 8192, 32}),
                              record_of(t[4], 1.4, {1, 10000, 10000, 32}),
                              record_of(t[5], 1.5, {1, 10000, 10000, 32})};
  CHECK(tune::choose(records, query())->record.tile == t[4]);
  // The same structure with other numbers, tuned later, gives way to the query's own text.
  records.push_back(record_of(t[6], 0.1));
  records.back().pattern = "causal & (sink(4) | window(left=15))";
  CHECK(tune::choose(records, query())->record.tile == t[4]);
  records.erase(records.begin(), records.begin() + 3);
  CHECK(tune::choose(records, query())->record.tile == t[6]);
}

TEST_CASE("records of another kernel, version or tile space are left out") {
  const auto t = tiles();
  const auto left_out = [&](auto change) {
    Record record = record_of(t[3], 1);
    change(record);
    CHECK(!tune::choose({{record}}, query()));
  };
  left_out([](Record& r) { r.kernel.dtype = DType::float16; });
  left_out([](Record& r) { r.kernel.head_dim = 64; });
  left_out([](Record& r) { r.kernel.head_dim_v = 64; });
  left_out([](Record& r) { r.kernel.group_size = 1; });
  left_out([](Record& r) { r.kernel.structures = "Leaf<Causal>"; });
  left_out([](Record& r) { r.kernel.keys = plan::KeysPerRow::many; });
  left_out([](Record& r) { r.girih_version = "0.0.1"; });
  left_out([](Record& r) { r.tile = {512, 512, 2, 4}; });
}

TEST_CASE(
    "a record of another GPU is a hint, of the same architecture and where there is no other") {
  const auto t = tiles();
  Record other = record_of(t[3], 0.1);
  other.device.name = "Imaginary 9001";
  std::vector<Record> records{other};
  REQUIRE(tune::choose(records, query()));
  CHECK(tune::choose(records, query())->match == Choice::Match::other_device);
  CHECK(tune::choose(records, query())->record.tile == t[3]);

  records.push_back(record_of(t[4], 5, {1, 64, 64, 32}));  // far away and slow, but this GPU's
  CHECK(tune::choose(records, query(tune::bucket_of(other.shape)))->record.tile == t[4]);

  Record part = record_of(t[3], 1);
  part.device.num_sms = 66;  // a part of this GPU
  CHECK(tune::choose({{part}}, query())->match == Choice::Match::other_device);

  other.device.arch = "sm_80";
  CHECK(!tune::choose({{other}}, query()));
}

// --- The tuner -----------------------------------------------------------------------------------

TEST_CASE("the tuner finds the fastest of those that compile, keep their registers and are right") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  gpu.ms = {{2, 0.5}, {3, 0.4}, {4, 0.3}, {5, 0.8}, {6, 5.0}};
  gpu.broken = {2};
  gpu.spilling = {3};
  gpu.wrong = {4};
  const tune::Outcome outcome =
      tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 10, .num_threads = 4});
  CHECK(gpu.compiled == static_cast<int>(gpu.candidates.size()));
  REQUIRE(outcome.timings.size() == gpu.candidates.size());
  CHECK(outcome.best == 5);
  CHECK(outcome.timings[5].median() == 0.8);
  CHECK(outcome.timings[2].dropped == "the compiler says no");
  CHECK(outcome.timings[3].dropped == "spills 8 bytes, 0 bytes of stack");
  CHECK(outcome.timings[4].dropped == "row 7 is wrong");
  for (const int dropped : {2, 3, 4}) {
    CHECK(outcome.timings[static_cast<std::size_t>(dropped)].ms.empty());
    CHECK(std::count(gpu.order.begin(), gpu.order.end(), dropped) == 0);
  }
  CHECK(outcome.timings[6].ms.size() == 3);  // hopeless
  CHECK(outcome.timings[0].ms.size() == 9);  // settled, and what others are compared with
}

TEST_CASE("tiles are measured in turns") {
  FictionalGpu gpu;
  const auto all = tiles();
  gpu.candidates.assign(all.begin(), all.begin() + 3);
  tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 10});
  CHECK(gpu.order == std::vector{0, 1, 2, 0, 1, 2, 0, 1, 2});
}

TEST_CASE("noisy tiles are measured until the budget or the limit of launches ends it") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  gpu.noise = 0.05;
  const tune::Outcome outcome =
      tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 1000, .max_repeats = 30});
  for (const tune::Timing& timing : outcome.timings) CHECK(timing.ms.size() == 30);

  FictionalGpu slow;
  slow.candidates = tiles();
  slow.noise = 0.05;
  const double budget = 0.1;  // 100 launches of pretended 1 ms
  const tune::Outcome cut =
      tune::tune(slow.candidates, slow.callbacks(), {.budget_seconds = budget});
  CHECK(slow.now >= budget);
  CHECK(slow.now <= budget + 0.004);  // one measurement more
  CHECK(cut.best >= 0);
}

TEST_CASE("a budget too small for every tile measures the heuristic one first") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  const tune::Outcome outcome =
      tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 0.001});
  CHECK(outcome.best == 0);
  CHECK(outcome.timings[1].ms.empty());
  CHECK(outcome.timings[1].dropped.empty());
  const tune::Outcome none = tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 0});
  CHECK(none.best == -1);
}

TEST_CASE("no compilation begins after its time, and the heuristic tile's is the first") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  tune::Callbacks callbacks = gpu.callbacks();
  callbacks.compile = [&](const TileConfig&) {
    gpu.now += 1;
    ++gpu.compiled;
    return tune::Compiled{};
  };
  const tune::Outcome outcome =
      tune::tune(gpu.candidates, callbacks, {.budget_seconds = 10, .compile_seconds = 2.5});
  CHECK(gpu.compiled == 3);
  for (std::size_t i = 0; i < gpu.candidates.size(); ++i) {
    CHECK(outcome.timings[i].ms.empty() == (i >= 3));
    CHECK(outcome.timings[i].dropped.empty() == (i < 3));
  }
  CHECK(outcome.timings[3].dropped == "not compiled: there was no time left");
}

TEST_CASE("checking counts against the budget") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  tune::Callbacks callbacks = gpu.callbacks();
  callbacks.check = [&](const TileConfig&) {
    gpu.now += 1;
    return std::string();
  };
  const tune::Outcome outcome = tune::tune(gpu.candidates, callbacks, {.budget_seconds = 2.5});
  CHECK(outcome.timings[2].ms.size() == 3);
  CHECK(outcome.timings[3].ms.empty());
}

TEST_CASE("records hold what was timed") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  gpu.broken = {0};
  gpu.ms = {{2, 0.5}};
  const tune::Outcome outcome = tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 10});
  const Record common = record_of({}, 7);
  const std::vector<Record> records = tune::records_of(outcome, common);
  REQUIRE(records.size() == gpu.candidates.size() - 1);
  CHECK(records[0].tile == gpu.candidates[1]);
  CHECK(records[1].tile == gpu.candidates[2]);
  CHECK(records[1].ms == 0.5);
  CHECK(records[1].p90 == 0.5);
  CHECK(records[1].repeats == 9);
  CHECK(records[1].kernel == common.kernel);
  CHECK(records[1].shape == common.shape);
  std::string problem;
  CHECK(tune::from_line(tune::to_line(records[1]), problem) == records[1]);
}

TEST_CASE("within 1 percent of the fastest the heuristic tile stays") {
  for (const auto& [ms, best] : {std::pair{0.995, 0}, std::pair{0.98, 3}}) {
    FictionalGpu gpu;
    gpu.candidates = tiles();
    gpu.ms[3] = ms;
    CHECK(tune::tune(gpu.candidates, gpu.callbacks(), {.budget_seconds = 10}).best == best);
  }
}

TEST_CASE("a launch that fails or takes no time drops its tile") {
  FictionalGpu gpu;
  gpu.candidates = tiles();
  gpu.ms = {{1, -1.0}, {2, std::nan("")}};
  tune::Callbacks callbacks = gpu.callbacks();
  callbacks.measure = [measure = callbacks.measure, &gpu](const TileConfig& tile) {
    if (gpu.index(tile) == 3) throw Error(Errc::driver, "the GPU fell off the bus");
    return measure(tile);
  };
  const tune::Outcome outcome = tune::tune(gpu.candidates, callbacks, {.budget_seconds = 10});
  CHECK(outcome.timings[1].dropped == "a launch took -1 ms");
  CHECK(!outcome.timings[2].dropped.empty());
  CHECK(outcome.timings[3].dropped == "the GPU fell off the bus");
  CHECK(outcome.best == 0);
}

// --- Binding -------------------------------------------------------------------------------------

namespace {

runtime::Settings settings_in(const fs::path& folder) {
  runtime::Settings settings;
  settings.cache.directory = folder;
  return settings;
}

std::vector<runtime::TileChoice> choices_in(const runtime::Settings& settings,
                                            const TileConfig& requested = {},
                                            const tune::DeviceId& device = kDevice) {
  return runtime::tile_choices({kPattern, kProblem, kArch, device}, requested, settings);
}

}  // namespace

TEST_CASE("a bind takes the measured tile, and the heuristic one where that cannot be had") {
  const TemporaryFolder folder;
  const auto t = tiles();
  runtime::Settings settings = settings_in(folder.path());
  REQUIRE(choices_in(settings).size() == 1);
  CHECK(choices_in(settings)[0].tile == TileConfig{});
  CHECK(choices_in(settings)[0].source == "heuristic");

  REQUIRE(tune::append_records(tune::tuning_file(folder.path()),
                               {{record_of(t[0], 2), record_of(t[5], 1)}}) == "");
  const auto tuned = choices_in(settings);
  REQUIRE(tuned.size() == 2);
  CHECK(tuned[0].tile == t[5]);
  CHECK(tuned[0].source == "tuned");
  CHECK(tuned[1].source == "heuristic");

  REQUIRE(choices_in(settings, {.block_n = 32}).size() == 1);
  CHECK(choices_in(settings, {.block_n = 32})[0].source == "given");
  CHECK(choices_in(settings, {.block_n = 32})[0].tile == TileConfig{.block_n = 32});

  const auto elsewhere = choices_in(settings, {}, {"Imaginary 9001", "sm_90", 132});
  REQUIRE(elsewhere.size() == 2);
  CHECK(elsewhere[0].source == "tuned on another GPU");

  settings.tune = jit::Tune::off;
  REQUIRE(choices_in(settings).size() == 1);
  CHECK(choices_in(settings)[0].source == "heuristic");
}

TEST_CASE("a bind takes a measured tile of either kernel") {
  for (const plan::KernelFamily family :
       {plan::KernelFamily::fwd_sm80, plan::KernelFamily::fwd_sm90}) {
    CAPTURE(plan::to_string(family));
    const auto t = tiles();
    const auto tile = std::find_if(t.begin() + 1, t.end(), [&](const TileConfig& other) {
      return plan::family_of(other) == family;
    });
    REQUIRE(tile != t.end());
    const TemporaryFolder folder;
    REQUIRE(tune::append_records(tune::tuning_file(folder.path()), {{record_of(*tile, 1)}}) == "");
    const auto choices = choices_in(settings_in(folder.path()));
    REQUIRE(choices.size() == 2);
    const plan::Plan plan = plan::make_plan(kPattern, kProblem, kArch, choices[0].tile);
    CHECK(plan.spec.tile == *tile);
    CHECK(plan.spec.family == family);
  }
}

TEST_CASE("a measured heuristic tile needs no second try") {
  const TemporaryFolder folder;
  const auto t = tiles();
  REQUIRE(tune::append_records(tune::tuning_file(folder.path()), {{record_of(t[0], 1)}}) == "");
  const auto choices = choices_in(settings_in(folder.path()));
  REQUIRE(choices.size() == 1);
  CHECK(choices[0].tile == t[0]);
  CHECK(choices[0].source == "tuned");
}

TEST_CASE("records of cache layers count, and the own folder has the last word") {
  const TemporaryFolder own, layer;
  const auto t = tiles();
  runtime::Settings settings = settings_in(own.path());
  settings.cache.layers = {layer.path()};
  REQUIRE(tune::append_records(tune::tuning_file(layer.path()),
                               {{record_of(t[3], 1), record_of(t[4], 2)}}) == "");
  CHECK(choices_in(settings)[0].tile == t[3]);
  REQUIRE(tune::append_records(tune::tuning_file(own.path()), {{record_of(t[3], 3)}}) == "");
  CHECK(choices_in(settings)[0].tile == t[4]);
}

TEST_CASE("a choice says whether its record is of the lengths asked for") {
  const TemporaryFolder folder;
  const runtime::Settings settings = settings_in(folder.path());
  const auto t = tiles();
  const Record record = record_of(t[5], 1, {1, 8192, 8192, 32});
  REQUIRE(tune::append_records(tune::tuning_file(folder.path()), {{record}}) == "");
  const auto first = [&](const tune::Shape& shape, const tune::DeviceId& device = kDevice) {
    return runtime::tile_choices({kPattern, kProblem, kArch, device, tune::bucket_of(shape)}, {},
                                 settings)
        .front();
  };
  CHECK(first({1, 8192, 8192, 32}).exact);
  CHECK(first({1, 9000, 9000, 32}).exact);
  CHECK(first({1, 9000, 9000, 32}).record == record);
  CHECK(!first({1, 4096, 8192, 32}).exact);
  CHECK(first({1, 4096, 8192, 32}).tile == t[5]);
  CHECK(!first({1, 8192, 8192, 32}, {"Imaginary 9001", "sm_90", 132}).exact);
}

TEST_CASE("GIRIH_TUNE is db, auto or off, and an option wins") {
  const auto with = [](const char* value) {
    ::setenv("GIRIH_TUNE", value, 1);
    struct Restore {
      ~Restore() { ::unsetenv("GIRIH_TUNE"); }
    } restore;
    return runtime::resolve({}).tune;
  };
  CHECK(with("db") == jit::Tune::db);
  CHECK(with("") == jit::Tune::db);
  CHECK(with("off") == jit::Tune::off);
  CHECK(with("auto") == jit::Tune::automatic);
  CHECK_THROWS_WITH_AS(with("on"), "GIRIH_TUNE=on is not known: db, auto and off are", Error);
  ::setenv("GIRIH_TUNE", "auto", 1);
  jit::Options options;
  options.tune = jit::Tune::off;
  CHECK(runtime::resolve(options).tune == jit::Tune::off);
  ::unsetenv("GIRIH_TUNE");
}

// --- The program
// -----------------------------------------------------------------------------------

TEST_CASE("program: explain shows the record that a tile comes from") {
  using namespace girih::tests;
  const Program program;
  const std::string folder = (program.folder() / "cache").string();
  const auto t = tiles();
  REQUIRE(tune::append_records(tune::tuning_file(folder),
                               {{record_of(t[0], 2.0), record_of(t[5], 1.25)}}) == "");
  const std::vector<std::string> explain{"explain", kPattern.text(), "--heads", "32", "--kv-heads",
                                         "8",       "--arch",        "sm_90"};
  // No test machine has this GPU.
  const Json report = program.json(explain);
  CHECK(report["tile_origin"] == "tuned on another GPU");
  CHECK(report["tile"]["block_m"] == t[5].block_m);
  CHECK(report["tile"]["block_n"] == t[5].block_n);
  CHECK(report["record"]["ms"] == 1.25);
  CHECK(report["record"]["device"] == kDevice.name);
  CHECK(report["key"] != program.json(explain + std::vector<std::string>{"--tune", "off"})["key"]);
  const Result text = program.run(explain);
  CHECK(contains(text.out, "(tuned on another GPU)"));
  CHECK(contains(text.out, "1.25 ms for " + kPattern.text() +
                               ", batch 1, 8192 queries, 8192 keys, 32 heads on " + kDevice.name));

  const auto origin = [&](const std::vector<std::string>& more) {
    return program.json(explain + more)["tile_origin"].get<std::string>();
  };
  CHECK(origin({"--tune", "off"}) == "heuristic");
  CHECK(origin({"--tune", "auto"}) == "tuned on another GPU");
  CHECK(origin({"--head-dim", "64"}) == "heuristic");
  CHECK(origin({"--block-n", "32"}) == "block_n given, the rest heuristic");
  CHECK(origin({"--jit", "off"}) == "heuristic");  // neither is cached
}

TEST_CASE("program: tune refuses what is no shape or no time, and needs a GPU") {
  using namespace girih::tests;
  for (const char* shape :
       {"16384", "1x2", "1x2x3x4", "0x1x1", "1x1x", "1xax1", "1x1x99999999999"}) {
    check_refused({"tune", "causal", "--shapes", shape}, 2, "invalid_argument",
                  {shape, "1x16384x16384"});
  }
  for (const char* budget : {"soon", "0", "-3s", "5h", "nan"}) {
    check_refused({"tune", "causal", "--budget=" + std::string(budget)}, 2, "invalid_argument",
                  {budget, "60s"});
  }
  check_refused({"tune", "causal", "--layout", "dhsb"}, 2, "invalid_argument", {"dhsb", "bhsd"});
  check_refused({"verify", "causal", "--tune", "on"}, 2, "invalid_argument",
                {"on", "db, auto and off"});
  if (!Program().json({"env"})["driver"]["devices"].empty()) {
    MESSAGE("skipped: there is a GPU");
    return;
  }
  check_refused({"tune", "causal", "--shapes", "1x64x64,2x32x64"}, 5, "no_device", {});
}
