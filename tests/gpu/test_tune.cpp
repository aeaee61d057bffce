// Tuning for real: tiles that are measured, records that are written, and a program that finds
// them.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../sandbox.hpp"
#include "girih/version.hpp"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "support.hpp"
#include "tune/tune_on_gpu.hpp"

using namespace girih;

TEST_CASE("two shapes are tuned in five seconds, and the next program takes the fastest tile") {
  const tests::TemporaryFolder folder;
  const oracle::Expr expr = gpu_tests::streaming(64, 256);
  tools::TuneRequest request{.pattern = Pattern::parse(oracle::text(expr))};
  request.problem = {.head_dim = 128, .num_heads = 16, .num_heads_kv = 4};
  request.options.cache_dir = folder.path();
  request.budget_seconds = 2.5;
  const std::filesystem::path file = tools::tuning_file_of(request.options);

  TileConfig best;
  for (const int seqlen : {2048, 8192}) {
    verify::Case& c = request.parameters;
    c.problem = request.problem;
    c.seqlen_q = c.seqlen_k = seqlen;
    request.mask_row = gpu_tests::oracle_mask({expr}, 0, c);
    const tools::TuneResult result = tools::tune_on_gpu(request);
    std::size_t wrong = 0;
    for (const tune::Timing& timing : result.outcome.timings) {
      if (timing.dropped.empty() || timing.dropped.starts_with("spills")) continue;
      ++wrong;
      MESSAGE(fmt::format("{}: {}", gpu_tests::describe(timing.tile), timing.dropped));
    }
    CHECK(wrong == 0);
    CHECK(result.records.size() >= 12);
    REQUIRE(result.outcome.best >= 0);
    const tune::Timing& fastest =
        result.outcome.timings[static_cast<std::size_t>(result.outcome.best)];
    const tune::Timing& heuristic = result.outcome.timings.front();
    MESSAGE(fmt::format("{}: {} tiles measured; {} takes {:.4f} ms, the heuristic {} {:.4f} ms",
                        seqlen, result.records.size(), gpu_tests::describe(fastest.tile),
                        fastest.median(), gpu_tests::describe(heuristic.tile), heuristic.median()));
    REQUIRE(tune::append_records(file, result.records) == "");
    best = fastest.tile;  // of the larger shape in the end
  }

  jit::Options fresh;
  fresh.cache_dir = folder.path();
  const jit::KernelInfo tuned = jit::compile(request.pattern, request.problem, fresh).info();
  CHECK(tuned.tile_source == "tuned");
  CHECK(tuned.tile == best);

  // What another GPU claims is no match for this one's own records.
  const std::vector<tune::Record> records = *tune::read_records(file);
  tune::Record claim = *std::find_if(records.begin(), records.end(),
                                     [&](const tune::Record& r) { return r.tile != best; });
  claim.device.name = "Imaginary 9000";
  claim.ms = claim.p10 = claim.p90 = 1e-3;
  claim.shape.batch = 64;
  REQUIRE(tune::append_records(file, {{claim}}) == "");
  CHECK(jit::compile(request.pattern, request.problem, fresh).info().tile == best);

  fresh.tune = jit::Tune::off;
  CHECK(jit::compile(request.pattern, request.problem, fresh).info().tile_source == "heuristic");
  fresh.tile = {.block_n = 32};
  CHECK(jit::compile(request.pattern, request.problem, fresh).info().tile_source == "given");
}

TEST_CASE("without records the plan's tile is nearly the fastest for models' shapes") {
  struct Shape {
    std::string name;
    std::vector<oracle::Expr> classes;
    int heads_per_class;
    Problem problem;
    int seqlen;
  };
  const auto windowed = [](int left) {
    return oracle::Expr{
        oracle::Expr::Kind::all_of, {}, {gpu_tests::causal(), gpu_tests::window(left, -1)}};
  };
  const Problem llama{.head_dim = 128, .num_heads = 32, .num_heads_kv = 8};
  const Shape shapes[] = {
      {"Llama-3.1-8B", {gpu_tests::causal()}, 32, llama, 16384},
      {"the same, half of the heads streaming",
       {gpu_tests::causal(), gpu_tests::streaming(128, 256)},
       16,
       llama,
       16384},
      {"Mistral-7B", {windowed(4095)}, 32, llama, 32768},
      {"Gemma-2-9B",
       {windowed(4095)},
       16,
       {.head_dim = 256, .num_heads = 16, .num_heads_kv = 8},
       8192},
      {"gpt-oss", {windowed(127)}, 64, {.head_dim = 64, .num_heads = 64, .num_heads_kv = 8}, 16384},
      {"CogVideoX-5B",
       {gpu_tests::dense()},
       48,
       {.head_dim = 64, .num_heads = 48, .num_heads_kv = 48},
       17776},
      {"Wan2.1-1.3B",
       {gpu_tests::dense()},
       12,
       {.head_dim = 128, .num_heads = 12, .num_heads_kv = 12},
       32760}};
  const bool measured_on = tools::present_device().arch == "sm_90";
  for (const Shape& shape : shapes) {
    CAPTURE(shape.name);
    tools::TuneRequest request{
        .pattern = Pattern::parse(gpu_tests::pattern_text(shape.classes, shape.heads_per_class))};
    request.problem = shape.problem;
    request.budget_seconds = 3;
    verify::Case& c = request.parameters;
    c.problem = shape.problem;
    c.seqlen_q = c.seqlen_k = shape.seqlen;
    request.mask_row = gpu_tests::oracle_mask(shape.classes, shape.heads_per_class, c);
    // The card's clock moves by more than tiles differ: a second look decides.
    double ratio = 2;
    for (int look = 0; look < 2 && ratio > 1.03; ++look) {
      const tools::TuneResult result = tools::tune_on_gpu(request);
      // At head_dim 256 there are no more than four.
      CHECK(result.records.size() >= std::min<std::size_t>(12, result.outcome.timings.size()));
      REQUIRE(result.outcome.best >= 0);
      const tune::Timing* fastest = nullptr;
      for (const tune::Timing& timing : result.outcome.timings) {
        if (timing.ms.empty()) continue;
        if (fastest == nullptr || timing.median() < fastest->median()) fastest = &timing;
      }
      const tune::Timing& own = result.outcome.timings.front();
      ratio = own.median() / fastest->median();
      MESSAGE(fmt::format("{}: {} tiles; {} {:.4f} ms, the fastest {} {:.4f} ms: {:.3f}",
                          shape.name, result.records.size(), gpu_tests::describe(own.tile),
                          own.median(), gpu_tests::describe(fastest->tile), fastest->median(),
                          ratio));
    }
    if (measured_on) CHECK(ratio <= 1.03);
  }
  if (!measured_on) MESSAGE("skipped: the limit is for sm_90");
}

TEST_CASE("with compilation off a tuned tile that is not cached gives way to the heuristic one") {
  const Pattern pattern = Pattern::parse("causal & window(left=77) & !sink(3)");
  const Problem problem{.head_dim = 64, .num_heads = 2, .num_heads_kv = 1};
  const tune::DeviceId device = tools::present_device();
  const plan::Arch arch = plan::Arch::parse(device.arch);
  const plan::Plan plan = plan::make_plan(pattern, problem, arch);

  // One of each kernel that the device has.
  std::vector<TileConfig> tuned;
  for (const TileConfig& tile : plan::candidate_tiles(plan.spec.tile, problem, arch)) {
    const auto alike = [&](const TileConfig& other) {
      return plan::family_of(other) == plan::family_of(tile);
    };
    if (tile != plan.spec.tile && std::none_of(tuned.begin(), tuned.end(), alike)) {
      tuned.push_back(tile);
    }
  }
  REQUIRE(tuned.size() == (plan.spec.family == plan::KernelFamily::fwd_sm90 ? 2 : 1));

  for (const TileConfig& tile : tuned) {
    CAPTURE(gpu_tests::describe(tile));
    const tests::TemporaryFolder folder;
    const tune::Record record{.device = device,
                              .kernel = tune::kernel_id(plan, problem),
                              .pattern = pattern.text(),
                              .shape = {1, 1024, 1024, 2},
                              .tile = tile,
                              .ms = 1,
                              .p10 = 1,
                              .p90 = 1,
                              .repeats = 1,
                              .girih_version = GIRIH_VERSION,
                              .driver = "",
                              .date = ""};
    jit::Options options;
    options.cache_dir = folder.path();
    options.cache_layers.emplace();
    REQUIRE(tune::append_records(tools::tuning_file_of(options), {{record}}) == "");
    jit::build(pattern, problem, device.arch, options);  // the heuristic one

    options.mode = jit::Mode::off;
    const jit::KernelInfo info = jit::compile(pattern, problem, options).info();
    CHECK(info.tile_source == "heuristic");
    CHECK(info.tile == plan.spec.tile);

    options.mode = jit::Mode::automatic;
    CHECK(jit::compile(pattern, problem, options).info().tile == tile);
  }
}

// --- Tune::automatic -----------------------------------------------------------------------------

namespace {

verify::Case case_of(int seqlen) {
  verify::Case c;
  c.problem = {.head_dim = 64, .num_heads = 4, .num_heads_kv = 2};
  c.seqlen_q = c.seqlen_k = seqlen;
  return c;
}

std::vector<std::uint16_t> results(verify::Workload& workload) {
  verify::synchronize();
  workload.download_outputs();
  return gpu_tests::result_bits(workload);
}

}  // namespace

TEST_CASE("with automatic tuning the first launch of a length measures tiles, and no later one") {
  const tests::TemporaryFolder folder;
  const Pattern pattern = Pattern::parse("causal & (sink(7) | window(left=199))");
  jit::Options options;
  options.cache_dir = folder.path();
  options.cache_layers.emplace();
  options.tune = jit::Tune::automatic;
  const std::filesystem::path file = tools::tuning_file_of(options);
  const auto num_records = [&] { return tune::read_records(file)->size(); };

  verify::Workload workload(case_of(2000));
  workload.fill_normal(1);
  const jit::Args args = workload.args();
  const Problem& problem = workload.parameters.problem;
  const jit::Program program = jit::compile(pattern, options);
  workload.poison_outputs();
  program(args);
  const auto measured = results(workload);
  CHECK(workload.touched_padding() == 0);
  const std::size_t first = num_records();
  CHECK(first >= 12);
  for (const tune::Record& record : *tune::read_records(file)) {
    CHECK(record.shape == tune::Shape{1, 2000, 2000, 4});
    CHECK(record.device == tools::present_device());
  }

  program(args);
  CHECK(num_records() == first);
  jit::compile(pattern, options)(args);  // another program finds the records
  CHECK(num_records() == first);
  verify::Workload alike(case_of(1100));  // the same powers of two
  alike.fill_normal(2);
  program(alike.args());
  CHECK(num_records() == first);

  // The launch was the fastest tile's, which is also what a bind now takes.
  options.tune = jit::Tune::db;
  const jit::Kernel fastest = jit::compile(pattern, problem, options);
  CHECK(fastest.info().tile_source == "tuned");
  CHECK(fastest.info().cache_hit);
  workload.poison_outputs();
  fastest.launch(args);
  CHECK(results(workload) == measured);

  verify::Workload longer(case_of(5000));
  longer.fill_normal(3);
  program(longer.args());
  const std::size_t second = num_records();
  CHECK(second >= first + 12);

  // Nothing is measured for what was bound, without a compiler, or for a tile that was asked for.
  options.tune = jit::Tune::automatic;
  verify::Workload other(case_of(300));
  other.fill_normal(4);
  const jit::Program bound = jit::compile(pattern, options);
  bound.bind(problem);
  bound(other.args());
  jit::Options given = options;
  given.tile = {.block_n = 32};
  jit::compile(pattern, given)(other.args());
  options.mode = jit::Mode::off;
  jit::compile(pattern, options)(other.args());
  CHECK(num_records() == second);
}

TEST_CASE("automatic tuning takes packed sequences and arguments that are wrong") {
  const tests::TemporaryFolder folder;
  jit::Options options;
  options.cache_dir = folder.path();
  options.tune = jit::Tune::automatic;
  verify::Case c = case_of(700);
  c.problem.layout = Layout::thd;
  c.batch = 3;
  c.lengths.q = c.lengths.k = {700, 0, 133};
  c.with_lse = false;
  verify::Workload workload(c);
  workload.fill_normal(1);
  const jit::Program program = jit::compile(causal(), options);
  jit::Args args = workload.args();
  args.softmax_scale = -1.0f;
  CHECK_THROWS_AS(program(args), Error);
  const std::filesystem::path file = tools::tuning_file_of(options);
  CHECK(tune::read_records(file)->empty());

  program(workload.args());
  const auto records = tune::read_records(file);
  CHECK(records->size() >= 12);
  CHECK(records->front().shape == tune::Shape{3, 700, 700, 4});
  CHECK(results(workload).size() == (700 + 133) * 4 * (64 + 2));
  CHECK(workload.touched_padding() == 0);
}

TEST_CASE("without memory for a second output automatic tuning goes on with the plan's tile") {
  const tests::TemporaryFolder folder;
  jit::Options options;
  options.cache_dir = folder.path();
  options.tune = jit::Tune::automatic;
  verify::Case c = case_of(32768);
  c.problem = {.head_dim = 64, .num_heads = 32, .num_heads_kv = 1};
  verify::Workload workload(c);  // 128 MiB of output
  workload.fill_normal(1);
  const jit::Program program = jit::compile(Pattern::parse("causal & window(left=40)"), options);
  {
    const auto allocate = DRIVER(cuMemAlloc);
    std::vector<CUdeviceptr> memory;
    for (const std::size_t mib : {1024, 64}) {
      for (CUdeviceptr pointer = 0; allocate(&pointer, mib << 20) == CUDA_SUCCESS;) {
        memory.push_back(pointer);
      }
    }
    CHECK_NOTHROW(program(workload.args()));
    CHECK_NOTHROW(verify::synchronize());
    for (const CUdeviceptr pointer : memory) DRIVER(cuMemFree)(pointer);
  }
  CHECK(tune::read_records(tools::tuning_file_of(options))->empty());
  program(workload.args());  // the lengths are bound, memory or not
  CHECK(tune::read_records(tools::tuning_file_of(options))->empty());
}
