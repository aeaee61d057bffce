// Kernels that are loaded: their launches, and what runs before them.
#include "runtime/kernel.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "codegen/emit.hpp"
#include "cuda/module.hpp"
#include "cuda/stream_counters.hpp"
#include "girih/error.hpp"
#include "girih/shared/prune.cuh"
#include "pattern/places.hpp"
#include "runtime/arguments.hpp"
#include "runtime/inputs.hpp"
#include "runtime/softmax_scale.hpp"
#include "runtime/splits.hpp"
#include "runtime/tensors.hpp"
#include "runtime/tile_order.hpp"

namespace girih::jit {
namespace {

// As many distances as the last block of rows of any sequence can have, whole or not.
int num_distances(const FwdParams& params) {
  const Geometry& longest = params.geometry;
  const int keys = params.bottom_right ? longest.seqlen_k : longest.diagonal(longest.seqlen_q);
  return max(keys, 0) + SlashPlane::kRows - 1;
}

bool is_ragged(const FwdParams& params) {
  return params.cu_seqlens_q != nullptr || params.cu_seqlens_k != nullptr ||
         params.seqused_k != nullptr || params.leftpad_k != nullptr;
}

[[noreturn]] void refuse_launch(CUresult result, CUdevice bound) {
  CUdevice current = bound;
  if (cuda::driver().cuCtxGetDevice(&current) == CUDA_SUCCESS && current != bound) {
    throw Error(Errc::invalid_argument,
                fmt::format("the kernel was bound on device {}, but device {} is current: bind "
                            "again there",
                            bound, current));
  }
  cuda::check(result, "launching attention");
  throw Error(Errc::internal, "a failed launch reported success");
}

// What a launch hands its kernel.
struct Launch {
  FwdParams params;
  std::array<InputView, pattern::kMaxPlaces> views;
  SplitMemory splits;
  FwdTensorMaps maps = {};  // this and the others of the Hopper kernel
  FwdRowMaps row_maps = {};
  FwdBrickMaps brick_maps = {};
};

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> last = 0;
  return ++last;
}

}  // namespace

struct Kernel::Impl {
  const std::uint64_t number = next_number();  // no other kernel of this process has it
  Problem problem;
  KernelInfo info;
  std::vector<int> head_table;
  std::vector<InputInfo> inputs;
  std::vector<plan::ConditionTiles> tiles;
  std::vector<pattern::Grid> grids;
  std::shared_ptr<runtime::Loaded> loaded;
  CUfunction function = nullptr;
  CUfunction build_lists = nullptr;    // null where the pattern has no lists
  CUfunction build_numbers = nullptr;  // or no indices of tokens
  CUfunction build_slash = nullptr;    // or no columns and slashes
  CUfunction build_tiles = nullptr;    // or no expressions
  CUfunction plan_splits = nullptr;    // or where no tiles are split
  CUfunction merge_splits = nullptr;
  const cuda::StreamCounters* counters = nullptr;  // of the Hopper kernel's context; else null
  CUdevice device = 0;
  std::int64_t section_bytes = 0;
  int num_sms = 0;
  runtime::QueryTileShape query_tile;
  int key_box = 0;  // of the Hopper kernel
  bool gathers = false;
  bool in_series = false;  // whether its CTAs take query tiles in series
  runtime::SplitShape split_shape;
  std::optional<plan::Bricks> bricks;  // that its tiles are
  DilatedGrid grid{};                  // that they are of
  int maxima_tile_keys = 0;            // of a kernel of tile maxima

  FwdParams params_of(const Args& args) const {
    FwdParams params = runtime::forward_params(args, problem, grids);
    if (maxima_tile_keys > 0) {
      const Geometry& geometry = params.geometry;
      const std::int64_t head = std::int64_t{ceil_div(geometry.seqlen_q, kPruneRows)} *
                                ceil_div(geometry.seqlen_k, maxima_tile_keys);
      params.lse_strides = {problem.num_heads * head, 0, head};
    }
    return params;
  }

  runtime::InputPlan plan_inputs(const Args& args, const FwdParams& params,
                                 Workspace workspace) const {
    return runtime::plan_inputs(
        inputs, args.inputs,
        {.num_heads = problem.num_heads,
         .num_heads_kv = problem.num_heads_kv,
         .batch = params.num_batch_heads / problem.num_heads,
         .seqlen_q = params.geometry.seqlen_q,
         .seqlen_k = params.geometry.seqlen_k,
         .num_distances = num_distances(params),
         .ragged = is_ragged(params),
         .softmax_scale = runtime::softmax_scale_of(args.softmax_scale, problem.head_dim)},
        workspace.data, tiles);
  }

  void build_numbers_of(runtime::InputPlan& plan, CUstream stream) const {
    for (auto& [input, build] : plan.numbers) {
      const auto start = [&](BuildNumbersParams::Phase phase, std::int64_t ctas) {
        constexpr std::int64_t kMostCtas = 1 << 16;
        build.phase = phase;
        void* parameters[] = {&build};
        launch(build_numbers, static_cast<int>(std::min(ctas, kMostCtas)), kBuildNumbersThreads, 0,
               stream, parameters);
      };
      start(BuildNumbersParams::Phase::numbers, build.num_spans_of_sides());
      if (build.num_row_blocks > 0) {
        start(BuildNumbersParams::Phase::seen_keys, build.num_blocks_of_rows());
      }
    }
  }

  void build_slashes_of(runtime::InputPlan& plan, FwdParams& params, int* ignored,
                        CUstream stream) const {
    for (auto& [input, build] : plan.slashes) {
      if (ignored != nullptr) build.num_ignored = ignored + input;
      using Phase = BuildSlashParams::Phase;
      for (const Phase phase : {Phase::collect, Phase::link, Phase::windows}) {
        build.phase = phase;
        constexpr int64 kMostCtas = 1 << 16;
        void* parameters[] = {&build, &params};
        launch(build_slash, static_cast<int>(std::min(build_slash_ctas(build), kMostCtas)),
               kBuildSlashThreads, 0, stream, parameters);
      }
    }
  }

  // Of the Hopper kernel, at most.
  int num_ctas(const Args& args) const {
    return args.max_ctas > 0 ? std::min(args.max_ctas, num_sms) : num_sms;
  }

  FwdParams ordered(FwdParams params) const {
    if (bricks) {  // rows of bricks, which overlap the grid's end, one brick after the other
      params.geometry.seqlen_q = grid.num_bricks(bricks->queries) * query_tile.rows;
    }
    runtime::plan_order(params, problem, query_tile, section_bytes);
    return params;
  }

  // Whether lists are built, and query tiles split by what they show.
  bool splits_with(const runtime::InputPlan& plan) const {
    return plan_splits != nullptr && !plan.lists.empty();
  }

  runtime::SplitPlan splits_of(const FwdParams& ordered_params, const runtime::InputPlan& plan,
                               Workspace workspace) const {
    if (!splits_with(plan)) return {.memory = {}, .workspace_bytes = plan.workspace_bytes};
    return runtime::plan_splits(split_shape, ordered_params, plan.workspace_bytes, workspace.data);
  }

  void plan_splits_of(FwdParams& params, runtime::InputPlan& plan, SplitMemory memory,
                      Workspace workspace, CUstream stream) const {
    // What an earlier plan left there is none.
    const auto address = reinterpret_cast<CUdeviceptr>(workspace.data);
    cuda::check(cuda::driver().cuMemsetD8Async(address + runtime::kSplitHeaderOffset, 0,
                                               sizeof(SplitHeader), stream),
                "clearing the workspace");
    if (memory.header == nullptr) return;
    constexpr int kWarps = kSplitThreads / 32;
    const int for_tiles = std::min(ceil_div(params.num_tiles, kWarps), 8 * num_sms);
    for (const SplitPhase phase : {SplitPhase::count, SplitPhase::choose}) {
      SplitPhase current = phase;
      void* parameters[] = {&params, const_cast<int*>(head_table.data()), plan.views.data(),
                            &memory, &current};
      launch(plan_splits, phase == SplitPhase::count ? for_tiles : 1, kSplitThreads, 0, stream,
             parameters);
    }
  }

  // A CTA for 64 rows and 32 tiles of keys.
  void build_tiles_of(runtime::InputPlan& plan, FwdParams& params, CUstream stream) const {
    for (BuildTilesParams& build : plan.tiles) {
      constexpr std::int64_t kMostCtas = 1 << 16;
      const std::int64_t words =
          std::int64_t{build.num_planes} * build.num_rows * build.words_per_row;
      void* parameters[] = {&build, &params, plan.views.data()};
      launch(build_tiles, static_cast<int>(std::min(words, kMostCtas)), kBuildTilesThreads, 0,
             stream, parameters);
    }
  }

  void launch(CUfunction kernel, int num_ctas, int threads, int shared_bytes, CUstream stream,
              void** parameters) const {
    CUlaunchConfig config{};
    config.gridDimX = num_ctas;
    config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = threads;
    config.blockDimY = config.blockDimZ = 1;
    config.sharedMemBytes = shared_bytes;
    config.hStream = stream;
    const CUresult result = cuda::driver().cuLaunchKernelEx(&config, kernel, parameters, nullptr);
    if (result != CUDA_SUCCESS) refuse_launch(result, device);
  }

  Launch plan_launch(const Args& args, Workspace workspace) const;
  Launch& planned(const Args& args, Workspace workspace) const;

  // Waits once for what the stream does to all of them.
  void check_thresholds(const runtime::InputPlan& plan, CUstream stream) const {
    struct Copy {
      const std::string& name;
      int num_columns;
      std::vector<float> values;
    };
    std::vector<Copy> copies;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      if (inputs[i].kind != InputInfo::Kind::thresholds) continue;
      const InputView& view =
          plan.views[static_cast<std::size_t>(pattern::place_of(inputs, static_cast<int>(i)))];
      if (view.data == nullptr) continue;  // a launch of no rows
      const auto num_columns = static_cast<int>(view.row_stride);
      const int heads = problem.num_heads / view.heads_per_plane;
      std::vector<float> values(static_cast<std::size_t>(std::int64_t{heads} * num_columns));
      cuda::check(
          cuda::driver().cuMemcpyDtoHAsync(values.data(), reinterpret_cast<CUdeviceptr>(view.data),
                                           values.size() * sizeof(float), stream),
          "reading thresholds to check them");
      copies.push_back({inputs[i].name, num_columns, std::move(values)});
    }
    if (copies.empty()) return;
    cuda::check(cuda::driver().cuStreamSynchronize(stream), "reading thresholds to check them");
    for (const Copy& copy : copies) {
      runtime::check_thresholds(copy.name, copy.values, copy.num_columns);
    }
  }
};

Kernel::Kernel(std::shared_ptr<const Impl> impl) : impl_(std::move(impl)) {}
const Problem& Kernel::problem() const { return impl_->problem; }
const KernelInfo& Kernel::info() const { return impl_->info; }

std::size_t Kernel::workspace_bytes(const Args& args) const {
  const FwdParams params = impl_->params_of(args);
  const runtime::InputPlan inputs = impl_->plan_inputs(args, params, {});
  return impl_->splits_of(impl_->ordered(params), inputs, {}).workspace_bytes;
}

static void check_workspace(const Workspace& workspace, std::size_t needed) {
  runtime::check_workspace(workspace.data, workspace.bytes, needed, "Kernel::workspace_bytes");
}

void Kernel::build_lists(const Args& args, Workspace workspace, Check check) const {
  const Impl& impl = *impl_;
  if (check == Check::yes) {
    runtime::refuse_while_capturing(args.stream, "checking run-time inputs", "check them");
  }
  FwdParams params = impl.params_of(args);
  runtime::InputPlan plan = impl.plan_inputs(args, params, workspace);
  FwdParams ordered = impl.ordered(params);
  const runtime::SplitPlan splits = impl.splits_of(ordered, plan, workspace);
  check_workspace(workspace, splits.workspace_bytes);
  if (check == Check::yes) impl.check_thresholds(plan, args.stream);
  impl.build_numbers_of(plan, args.stream);
  impl.build_tiles_of(plan, params, args.stream);
  if (plan.lists.empty() && plan.slashes.empty()) return;

  const auto counts = reinterpret_cast<CUdeviceptr>(workspace.data);
  if (check == Check::yes) {
    cuda::check(
        cuda::driver().cuMemsetD8Async(counts, 0, runtime::kIgnoredCountsBytes, args.stream),
        "clearing the workspace");
  }
  int* const counted = static_cast<int*>(workspace.data);  // of each input
  impl.build_slashes_of(plan, params, check == Check::yes ? counted : nullptr, args.stream);
  for (auto& [input, build] : plan.lists) {
    if (check == Check::yes) build.num_ignored = counted + input;
    const std::int64_t num_rows = std::int64_t{build.num_planes} * build.num_rows;
    constexpr int kRowsPerCta = kBuildListsThreads / 32;
    constexpr std::int64_t kMostCtas = 1 << 16;
    const std::int64_t num_ctas = std::min((num_rows + kRowsPerCta - 1) / kRowsPerCta, kMostCtas);
    if (num_ctas == 0) continue;
    void* parameters[] = {&build};
    impl.launch(impl.build_lists, static_cast<int>(num_ctas), kBuildListsThreads, 0, args.stream,
                parameters);
  }
  if (impl.splits_with(plan)) {
    impl.plan_splits_of(ordered, plan, splits.memory, workspace, args.stream);
  }
  if (check == Check::no) return;

  std::array<int, pattern::kMaxInputs> ignored{};
  cuda::check(cuda::driver().cuStreamSynchronize(args.stream), "building block lists");
  cuda::check(cuda::driver().cuMemcpyDtoH(ignored.data(), counts, runtime::kIgnoredCountsBytes),
              "reading back the check of block lists");
  for (const auto& [input, build] : plan.lists) {
    if (ignored[input] == 0) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("the input '{}' has {} entries out of range: key blocks must be from 0 "
                            "to {}, and rows lie within the list",
                            impl.inputs[input].name, ignored[input], build.num_columns - 1));
  }
  for (const auto& [input, build] : plan.slashes) {
    if (ignored[input] == 0) continue;
    throw Error(Errc::invalid_argument,
                fmt::format("the input '{}' has {} entries out of range: columns must be from 0 to "
                            "{} and distances from 0 to {}; pad rows with -1",
                            impl.inputs[input].name, ignored[input], build.seqlen_k - 1,
                            build.num_distances - 1));
  }
}

Launch Kernel::Impl::plan_launch(const Args& args, Workspace workspace) const {
  FwdParams params = params_of(args);
  const runtime::InputPlan plan = plan_inputs(args, params, workspace);
  if (bricks) runtime::refuse_partial_keys(args);
  params = ordered(params);
  if (in_series) runtime::group_into_series(params, num_ctas(args));
  const runtime::SplitPlan splits = splits_of(params, plan, workspace);
  check_workspace(workspace, splits.workspace_bytes);
  Launch launch{.params = params, .views = plan.views, .splits = splits.memory};
  if (counters == nullptr || params.num_tiles == 0) return launch;
  launch.maps = runtime::tensor_maps(args, params, problem, query_tile.rows, key_box);
  if (gathers) launch.row_maps = runtime::row_maps(args, params, problem);
  if (bricks) launch.brick_maps = runtime::brick_maps(args, params, problem, grid, *bricks);
  return launch;
}

// Planning takes a microsecond: a launch that repeats its thread's last is only compared with it.
Launch& Kernel::Impl::planned(const Args& args, Workspace workspace) const {
  struct Last {
    std::uint64_t kernel = 0;  // none
    Args args;
    Workspace workspace;
    Launch launch;
  };
  // A pointer, for it may be asked for behind the owner's end: by another destructor of the thread.
  static thread_local Last* last = nullptr;
  struct Owner {
    ~Owner() { delete std::exchange(last, nullptr); }
  };
  static thread_local Owner owner;
  if (last == nullptr) last = new Last;
  if (last->kernel != number || last->workspace != workspace || last->args != args) {
    last->kernel = 0;
    last->launch = plan_launch(args, workspace);
    last->args = args;
    last->workspace = workspace;
    last->kernel = number;
  }
  return last->launch;
}

void Kernel::launch(const Args& args, Workspace workspace) const {
  const Impl& impl = *impl_;
  Launch& launch = impl.planned(args, workspace);
  const int num_works = launch.params.num_tiles + launch.splits.capacity;  // at most
  if (launch.params.num_tiles == 0) return;

  int num_ctas = args.max_ctas > 0 ? std::min(args.max_ctas, num_works) : num_works;
  void* parameters[7] = {&launch.params, const_cast<int*>(impl.head_table.data())};
  int count = 2;
  if (!impl.inputs.empty() || !impl.tiles.empty()) parameters[count++] = launch.views.data();
  int* counter = nullptr;
  if (impl.counters != nullptr) {  // the Hopper kernel: a CTA takes one tile after the other
    num_ctas = std::min(num_ctas, impl.num_sms);
    counter = impl.counters->of(args.stream);
    parameters[count++] = &launch.maps;
    parameters[count++] = &counter;
    if (impl.gathers) parameters[count++] = &launch.row_maps;
    if (impl.bricks) parameters[count++] = &launch.brick_maps;
    if (impl.plan_splits != nullptr) parameters[count++] = &launch.splits;
  }
  impl.launch(impl.function, num_ctas, impl.info.threads, impl.info.shared_bytes, args.stream,
              parameters);
  if (launch.splits.header == nullptr) return;
  void* merge_parameters[] = {&launch.params, &launch.splits, &counter};
  impl.launch(impl.merge_splits, 2 * impl.num_sms, kSplitThreads, 0, args.stream, merge_parameters);
}

void launch_with_pool(const Pattern& pattern, const Kernel& kernel, const Args& args, Check check) {
  const bool prepares = !pattern.inputs().empty() || !pattern::conditions_of(pattern).empty();
  const std::size_t bytes = prepares ? kernel.workspace_bytes(args) : 0;
  if (bytes == 0) {
    if (check == Check::yes) kernel.build_lists(args, {}, check);  // of thresholds
    return kernel.launch(args);
  }
  const cuda::Api& api = cuda::driver();
  CUdeviceptr memory = 0;
  cuda::check(api.cuMemAllocAsync(&memory, bytes, args.stream),
              fmt::format("taking {} bytes of workspace from the memory pool", bytes));
  const auto give_back = [&] { return api.cuMemFreeAsync(memory, args.stream); };
  try {
    const Workspace workspace{reinterpret_cast<void*>(memory), bytes};
    kernel.build_lists(args, workspace, check);
    kernel.launch(args, workspace);
  } catch (...) {
    give_back();
    throw;
  }
  cuda::check(give_back(), "giving the workspace back to the memory pool");
}

Kernel load_kernel(const Pattern& pattern, const plan::Plan& plan, const Problem& problem,
                   const runtime::Device& device, const runtime::Source& source,
                   std::string tile_source, const runtime::Settings& settings) {
  auto impl = std::make_shared<Kernel::Impl>();
  impl->problem = problem;
  impl->head_table = plan.head_table;
  impl->inputs = pattern.inputs();
  impl->tiles = plan.tiles;
  impl->grids = pattern::grids_of(pattern);
  impl->device = device.handle;
  impl->section_bytes = runtime::section_bytes(plan.spec.structures, device.l2_bytes);
  impl->num_sms = device.id.num_sms;
  const int heads = plan.spec.pack_heads ? plan.spec.tile.block_m / 64 : 1;
  impl->query_tile = {plan.spec.tile.block_m / heads, heads};
  impl->key_box = plan.spec.key_box;
  impl->gathers = plan.spec.gathers;
  impl->bricks = plan.spec.bricks;
  impl->grid = plan.grid;
  if (plan.spec.tile_maxima) impl->maxima_tile_keys = plan.spec.tile.block_n;
  if (plan.spec.family == plan::KernelFamily::fwd_sm90) {
    impl->counters = &cuda::StreamCounters::of_context(device.context_id);
    impl->in_series = plan.spec.prune;
  }
  impl->loaded = runtime::loaded_slot(source.key);
  runtime::Loaded& loaded = *impl->loaded;
  const std::lock_guard lock(loaded.mutex);
  const bool hit = runtime::load(loaded, source, settings);
  runtime::prepare(loaded, device, plan.shared_bytes);
  impl->function = loaded.module->function();
  if (plan.spec.builds_lists) impl->build_lists = loaded.module->load(codegen::kBuildListsSymbol);
  if (plan.spec.builds_numbers) {
    impl->build_numbers = loaded.module->load(codegen::kBuildNumbersSymbol);
  }
  if (plan.spec.builds_slashes) impl->build_slash = loaded.module->load(codegen::kBuildSlashSymbol);
  if (plan.spec.builds_tiles()) impl->build_tiles = loaded.module->load(codegen::kBuildTilesSymbol);
  if (plan.spec.splits) {
    impl->plan_splits = loaded.module->load(codegen::kPlanSplitsSymbol);
    impl->merge_splits = loaded.module->load(codegen::kMergeSplitsSymbol);
    impl->split_shape = {plan.spec.tile.block_m, plan.spec.tile.block_n, plan.spec.head_dim_v,
                         impl->num_sms};
  }
  impl->info = runtime::info_of(loaded.entry, hit, plan::to_string(plan.spec.family));
  impl->info.tile = plan.spec.tile;
  impl->info.tile_source = std::move(tile_source);
  return Kernel(std::move(impl));
}

}  // namespace girih::jit
