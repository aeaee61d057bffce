// Tuning for real: tiles that are measured, records that are written, and a program that finds
// them.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>

#include "../sandbox.hpp"
#include "girih/version.hpp"
#include "plan/plan.hpp"
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
  request.date = "2026-01-31";
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

  fresh.tune = jit::Tune::off;
  CHECK(jit::compile(request.pattern, request.problem, fresh).info().tile_source == "heuristic");
  fresh.tile = {.block_n = 32};
  CHECK(jit::compile(request.pattern, request.problem, fresh).info().tile_source == "given");
}

TEST_CASE("with compilation off a tuned tile that is not cached gives way to the heuristic one") {
  const tests::TemporaryFolder folder;
  const Pattern pattern = Pattern::parse("causal & window(left=77) & !sink(3)");
  const Problem problem{.head_dim = 64, .num_heads = 2, .num_heads_kv = 1};
  const tune::DeviceId device = tools::present_device();
  const plan::Plan plan = plan::make_plan(pattern, problem, plan::Arch::parse(device.arch));
  const TileConfig slow{64, 32, 3, 4};
  REQUIRE(plan.spec.tile != slow);
  const tune::Record record{.device = device,
                            .kernel = tune::kernel_id(plan.spec, problem),
                            .pattern = pattern.text(),
                            .shape = {1, 1024, 1024, 2},
                            .tile = slow,
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
  CHECK(jit::compile(pattern, problem, options).info().tile == slow);
}
