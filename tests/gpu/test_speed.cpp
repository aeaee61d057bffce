// What the library promises about time, asserted. Figures hold for an H100-class GPU and an idle
// host; other GPUs skip the kernel's own speed.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "plan/plan.hpp"
#include "support.hpp"

using namespace girih;
using verify::Case;
using verify::Workload;

namespace {

template <class Work>
double seconds(Work&& work) {
  const auto begin = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Case tiny_case() {
  Case c;
  c.problem = {.head_dim = 64, .num_heads = 1, .num_heads_kv = 1};
  c.seqlen_q = c.seqlen_k = 16;
  return c;
}

// Host microseconds of one launch, while the queue has room.
template <class Launch>
double host_microseconds(Launch&& launch) {
  constexpr int kBatch = 200;
  verify::synchronize();
  return 1e6 * seconds([&] {
           for (int j = 0; j < kBatch; ++j) launch();
         }) /
         kBatch;
}

}  // namespace

TEST_CASE("a launch costs the host little more than the driver's own") {
  Workload workload(tiny_case());
  workload.fill_normal(1);
  const jit::Program program = jit::compile(Pattern::parse("causal"));
  const jit::Args args = workload.args();
  program(args);
  jit::Args other = args;  // a launch that differs from the last one is planned anew
  std::swap(other.k.data, other.v.data);

  const verify::Device device;
  verify::EmptyKernel empty(device.arch());
  const jit::Kernel kernel = program.bind(workload.parameters.problem);
  // In turns, for a host's speed varies.
  std::vector<double> bare_us, bound_us, fresh_us, beyond_bound, beyond_fresh;
  for (int turn = 0; turn < 25; ++turn) {
    bare_us.push_back(host_microseconds([&] { empty.launch(); }));
    bound_us.push_back(host_microseconds([&] { kernel.launch(args); }));
    fresh_us.push_back(host_microseconds(
        [&, turned = false]() mutable { program((turned = !turned) ? other : args); }));
    beyond_bound.push_back(bound_us.back() - bare_us.back());
    beyond_fresh.push_back(fresh_us.back() - bare_us.back());
  }
  verify::synchronize();
  MESSAGE(fmt::format(
      "host time of a launch: bare {:.2f} us, bound kernel {:.2f} us, program with other arguments "
      "each time {:.2f} us",
      median(bare_us), median(bound_us), median(fresh_us)));
  CHECK(median(beyond_fresh) <= 4.0);
  CHECK(median(beyond_bound) <= 1.0);
}

TEST_CASE("kernels in the cache are bound at once") {
  const Problem problem{.head_dim = 64, .num_heads = 3, .num_heads_kv = 1};
  const verify::Device device;
  // Sources that nothing else here asks for, so that the memory cannot have them.
  std::vector<double> disk_ms;
  jit::Options options;
  for (int stages = 2; stages <= 4; ++stages) {
    options.tile = {.block_m = 64, .block_n = 48, .num_stages = stages, .num_warps = 4};
    const Pattern pattern = Pattern::parse("sink(3) | causal & window(left=5)");
    jit::build(pattern, problem, device.arch(), options);
    const jit::Program program(pattern, options);
    disk_ms.push_back(1e3 * seconds([&] { CHECK(program.bind(problem).info().cache_hit); }));
    constexpr int kTimes = 1000;
    const double memory_us = 1e6 * seconds([&] {
                               for (int i = 0; i < kTimes; ++i) program.bind(problem);
                             }) /
                             kTimes;
    MESSAGE(fmt::format("bound from disk in {:.3f} ms, from memory in {:.3f} us", disk_ms.back(),
                        memory_us));
    CHECK(memory_us <= 2.0);
  }
  CHECK(median(disk_ms) <= 2.0);
}

TEST_CASE("closed-form patterns take no memory for their mask") {
  const jit::Program program = jit::compile(
      Pattern::parse("heads(0-3: causal, else: causal & (sink(64) | window(left=9)))"));
  const jit::Kernel kernel = program.bind({.num_heads = 8, .num_heads_kv = 2});
  Case c;
  c.problem = kernel.problem();
  c.seqlen_q = c.seqlen_k = 131072;
  CHECK(kernel.workspace_bytes(Workload(c).args()) == 0);
}

TEST_CASE("the portable and the Hopper kernel are as fast as the best of their kind") {
  const verify::Device device;
  Case c;
  c.problem = {.head_dim = 128, .num_heads = 16, .num_heads_kv = 16};
  c.seqlen_q = c.seqlen_k = 16384;
  Workload workload(c);
  workload.fill_normal(1);
  const jit::Args args = workload.args();
  const auto tflops_of = [&](const TileConfig& tile) {
    jit::Options options;
    options.tile = tile;
    const jit::Kernel kernel = jit::compile(Pattern::parse("dense"), c.problem, options);
    const std::vector<double> ms =
        verify::time_launches({.warmups = 3, .repeats = 15}, [&] { kernel.launch(args); });
    const double tflops = 4.0 * 16 * 16384 * 16384 * 128 / (median(ms) * 1e9);
    MESSAGE(fmt::format("dense, head_dim 128, 16 heads, 16384 by {}: {:.3f} ms, {:.0f} TFLOP/s",
                        kernel.info().kernel, median(ms), tflops));
    return tflops;
  };
  const double portable = tflops_of({.portable = true}), own = tflops_of({});
  if (device.arch() == "sm_90") {
    CHECK(portable >= 240.0);
    CHECK(own >= 550.0);
    CHECK(own >= 1.75 * portable);  // at the same clock; 1.6 where products and softmax take turns
  } else {
    MESSAGE("skipped: the figures are for sm_90");
  }
}

TEST_CASE("block lists of 32 heads and 131072 tokens are built in no time") {
  const verify::Device device;
  Case c;
  c.problem = {.head_dim = 64, .num_heads = 32, .num_heads_kv = 32};
  c.seqlen_q = c.seqlen_k = 131072;
  const jit::Kernel kernel =
      jit::compile(Pattern::parse("causal & blocks(m, q=128, kv=128)"), c.problem);
  for (const auto& [name, form] :
       {std::pair{"lists", verify::BlockForm::list}, {"byte masks", verify::BlockForm::bytes}}) {
    c.inputs = {verify::random_blocks("m", 1, 32, 1024, 1024, 0.1, 0, 1)};
    c.inputs[0].form = form;
    const Workload workload(c);
    const jit::Args args = workload.args();
    const verify::Buffer memory(kernel.workspace_bytes(args));
    const double milliseconds =
        verify::median(verify::time_launches({.repeats = 30, .flush_l2 = true}, [&] {
          kernel.build_lists(args, {memory.data(), memory.size()});
        }));
    MESSAGE(fmt::format("{} are built in {:.3f} ms", name, milliseconds));
    CHECK(milliseconds <= 0.3);
  }
}

TEST_CASE("a row of all keys beside rows of one block does not keep one multiprocessor busy") {
  const verify::Device device;
  constexpr int kBlocks = 1024, kHeads = 4;
  Case c;
  c.problem = {.head_dim = 128, .num_heads = kHeads, .num_heads_kv = kHeads};
  c.seqlen_q = c.seqlen_k = 128 * kBlocks;
  const jit::Kernel kernel = jit::compile(Pattern::parse("blocks(m, q=128, kv=128)"), c.problem);
  // Without a full row, with one, and in a form of which nothing is built, so that none is split.
  double milliseconds[3], build_ms[3] = {};
  for (int i = 0; i < 3; ++i) {
    c.inputs = {verify::random_blocks("m", 1, kHeads, kBlocks, kBlocks, 0.0, 0, 1)};
    std::vector<std::uint8_t>& visible = c.inputs[0].visible;
    for (int row = 0; row < kHeads * kBlocks; ++row) {
      const auto first = visible.begin() + std::int64_t{row} * kBlocks;
      first[row * 7 % kBlocks] = 1;
      if (i > 0 && row % kBlocks == kBlocks / 3) std::fill_n(first, kBlocks, std::uint8_t{1});
    }
    c.inputs[0].form = i < 2 ? verify::BlockForm::list : verify::BlockForm::bits;
    Workload workload(c);
    workload.fill_normal(1);
    const jit::Args args = workload.args();
    const verify::Buffer memory(kernel.workspace_bytes(args));
    const jit::Workspace workspace{memory.data(), memory.size()};
    build_ms[i] = verify::median(verify::time_launches(
        {.warmups = 3, .repeats = 15}, [&] { kernel.build_lists(args, workspace); }));
    milliseconds[i] = verify::median(verify::time_launches(
        {.warmups = 3, .repeats = 15}, [&] { kernel.launch(args, workspace); }));
  }
  MESSAGE(
      fmt::format("{}: rows of one block {:.3f} ms, with a full row {:.3f} ms, not split "
                  "{:.3f} ms; lists built in {:.3f} and {:.3f} ms",
                  kernel.info().kernel, milliseconds[0], milliseconds[1], milliseconds[2],
                  build_ms[0], build_ms[1]));
  if (device.arch() == "sm_90") {
    CHECK(milliseconds[1] <= 0.35 * milliseconds[2]);
    CHECK(milliseconds[1] <= milliseconds[0] + 0.15);
  } else {
    MESSAGE("skipped: only the kernel for sm_90 splits rows");
  }
}

TEST_CASE("what pruning skips saves time, and deciding costs little") {
  const verify::Device device;
  constexpr int kLength = 32768, kHeads = 32, kHeadsKv = 8;
  const auto milliseconds = [](const Workload& workload, const std::string& pattern) {
    const jit::Kernel kernel = jit::compile(Pattern::parse(pattern), workload.parameters.problem);
    const jit::Args args = workload.args();
    return verify::median(
        verify::time_launches({.warmups = 3, .repeats = 15}, [&] { kernel.launch(args); }));
  };
  // Limits are a tenth above what was measured, which is more than was aimed at: see Open figures
  // in tools/bench/RESULTS.md. Scores of some key tiles are a sixteenth of the others', whose
  // maxima are about 4.
  struct Limit {
    int kv, skipped;
    double allowed;
  };
  for (const auto& [kv, skipped, allowed] :
       {Limit{64, 0, 1.49}, Limit{64, 50, 1.29}, Limit{64, 70, 1.19}, Limit{128, 0, 1.31},
        Limit{128, 50, 1.09}, Limit{128, 70, 1.0}}) {
    Case c;
    c.problem = {.head_dim = 128, .num_heads = kHeads, .num_heads_kv = kHeadsKv};
    c.seqlen_q = c.seqlen_k = kLength;
    Workload plain(c);
    plain.fill_normal(1);
    const double causal_ms = milliseconds(plain, "causal");
    verify::InputData thresholds{.kind = InputInfo::Kind::thresholds, .name = "t"};
    thresholds.thresholds = {2.0f};
    thresholds.num_columns = 1;
    thresholds.prune_kv = kv;
    c.inputs = {thresholds};
    Workload workload(c);
    workload.fill_normal(1);
    std::mt19937_64 random(3);
    for (int h = 0; h < kHeadsKv; ++h) {
      for (int n = 0; n < kLength / kv; ++n) {
        if (static_cast<int>(random() % 100) >= skipped) continue;
        for (int i = 0; i < kv; ++i) {
          std::uint16_t* const row = workload.k_row(0, kv * n + i, h);
          for (int j = 0; j < 128; ++j) {
            row[j] =
                verify::narrow(c.problem.dtype, verify::widen(c.problem.dtype, row[j]) * 0.0625f);
          }
        }
      }
    }
    workload.upload_inputs();
    const double pruned_ms = milliseconds(workload, fmt::format("causal with prune(t, kv={})", kv));
    MESSAGE(
        fmt::format("causal, {} heads of {}: {:.3f} ms, with {} % of tiles of {} keys pruned "
                    "{:.3f} ms: {:.2f}",
                    kHeads, kLength, causal_ms, skipped, kv, pruned_ms, pruned_ms / causal_ms));
    if (device.arch() == "sm_90") {
      CHECK(pruned_ms <= allowed * causal_ms);
    } else {
      MESSAGE("skipped: the figures are for sm_90");
    }
  }
}

TEST_CASE("causal documents are not far from dense causal attention's speed on what they see") {
  const verify::Device device;
  constexpr int kLength = 32768, kHeads = 32;
  Case c;
  c.problem = {.head_dim = 128, .num_heads = kHeads, .num_heads_kv = 8};
  c.seqlen_q = c.seqlen_k = kLength;
  Workload plain(c);
  plain.fill_normal(1);
  const jit::Kernel causal = jit::compile(Pattern::parse("causal"), c.problem);

  c.inputs = {verify::random_documents("doc", 1, 1, kLength, kLength, 4096, 1)};
  double visible = 0;
  for (std::size_t q = 0, first = 0; q < kLength; ++q) {
    if (c.inputs[0].numbers[q] != c.inputs[0].numbers[first]) first = q;
    visible += static_cast<double>(q - first + 1);
  }
  Workload packed(c);
  packed.fill_normal(1);
  const jit::Kernel documents = jit::compile(Pattern::parse("causal & segments(doc)"), c.problem);
  const verify::Buffer memory(documents.workspace_bytes(packed.args()));
  const jit::Workspace workspace{memory.data(), memory.size()};
  const double build_ms = verify::median(verify::time_launches(
      {.repeats = 30}, [&] { documents.build_lists(packed.args(), workspace); }));

  // In turns, for the clock falls as the GPU warms up.
  std::vector<double> causal_ms, documents_ms;
  for (int turn = 0; turn < 8; ++turn) {
    const auto time = [](std::vector<double>& each, const auto& launch) {
      for (const double ms : verify::time_launches({.warmups = 1, .repeats = 5}, launch)) {
        each.push_back(ms);
      }
    };
    time(causal_ms, [&] { causal.launch(plain.args()); });
    time(documents_ms, [&] { documents.launch(packed.args(), workspace); });
  }
  const auto tflops = [](double elements, double ms) {
    return 4.0 * kHeads * elements * 128 / (ms * 1e9);
  };
  const double own = tflops(0.5 * kLength * (kLength + 1.0), median(causal_ms));
  const double reached = tflops(visible, median(documents_ms));
  MESSAGE(fmt::format(
      "causal: {:.0f} TFLOP/s; documents, {}: {:.3f} ms, {:.0f} TFLOP/s on visible "
      "elements, {:.2f} of that; built in {:.3f} ms",
      own, documents.info().kernel, median(documents_ms), reached, reached / own, build_ms));
  CHECK(build_ms <= 0.1);
  if (device.arch() == "sm_90") {
    CHECK(reached >= 0.85 * own);
  } else {
    MESSAGE("skipped: the figure is for sm_90");
  }
}

TEST_CASE("neighborhoods in bricks visit few tiles, nearly as fast as dense attention does") {
  const verify::Device device;
  if (device.arch() != "sm_90") {
    MESSAGE("skipped: only the kernel for sm_90 has bricks");
    return;
  }
  const Problem problem{.head_dim = 128, .num_heads = 24, .num_heads_kv = 24};
  const auto milliseconds = [&](const Pattern& pattern, int seqlen) {
    Case c;
    c.problem = problem;
    c.seqlen_q = c.seqlen_k = seqlen;
    Workload workload(c);
    workload.fill_normal(1);
    const jit::Args args = workload.args();
    const jit::Kernel kernel = jit::compile(pattern, problem);
    return verify::median(
        verify::time_launches({.warmups = 3, .repeats = 15}, [&] { kernel.launch(args); }));
  };
  // Speeds are a twentieth below what was measured.
  for (const auto& [text, seqlen, window, most_computed, least_of_dense] :
       {std::tuple{"neighborhood(256x256, window=80)", 256 * 256, 80 * 80, 1.33, 0.89},
        {"neighborhood(256x256, window=40, dilation=2)", 256 * 256, 40 * 40, 1.85, 0.88},
        {"neighborhood(30x48x80, window=(18, 24, 24))", 30 * 48 * 80, 18 * 24 * 24, 1.67, 0.86}}) {
    const Pattern pattern = Pattern::parse(text);
    const plan::Plan plan = plan::make_plan(pattern, problem, plan::Arch::parse(device.arch()));
    REQUIRE(plan.spec.bricks);
    const TileConfig& tile = plan.spec.tile;
    const auto heads = plan::brick_heads(pattern, problem);
    const plan::BrickTiles tiles = plan::count_tiles(heads, *plan.spec.bricks);
    const double computed =
        static_cast<double>(tiles.visited()) * tile.block_m * tile.block_n;  // elements
    const double visible = 24.0 * seqlen * window;
    const double dense_ms = milliseconds(dense(), 32768), ms = milliseconds(pattern, seqlen);
    const double own_dense = 4.0 * 128 * 24 * 32768 * 32768 / (dense_ms * 1e9);
    const double on_tiles = 4.0 * 128 * computed / (ms * 1e9);
    MESSAGE(fmt::format(
        "{}, 24 heads: {:.3f} ms, {:.0f} TFLOP/s on visible elements, {:.0f} on tiles, of which "
        "{:.3f} times as many are visited; dense {:.0f} TFLOP/s: {:.3f} of it",
        text, ms, 4.0 * 128 * visible / (ms * 1e9), on_tiles, computed / visible, own_dense,
        on_tiles / own_dense));
    CHECK(computed <= most_computed * visible);
    CHECK(on_tiles >= least_of_dense * own_dense);
  }
}
