#include "runtime/cubin.hpp"

#include <fmt/format.h>

#include <map>
#include <optional>

#include "cache/disk_cache.hpp"
#include "girih/error.hpp"
#include "girih/version.hpp"
#include "support/fs.hpp"
#include "support/log.hpp"

namespace girih::runtime {

// --- Source -> key -> cubin ---------------------------------------------------------------------

Source make_source(Emitted emitted, const Settings& settings) {
  Source source{std::move(emitted), {}, {}, {}};
  source.templates = codegen::reachable_templates(source.text, settings.template_dir);
  for (const codegen::TemplateFile& file : source.templates) {
    source.manifest.emplace_back(file.name, file.digest);
  }
  source.key = cache::make_key({.generator_version = GIRIH_VERSION,
                                .arch = source.arch,
                                .source = source.text,
                                .manifest = source.manifest,
                                .options = compiler::default_options()});
  return source;
}

compiler::Output compile_source(const Source& source, const Settings& settings) {
  compiler::Request request;
  request.source = source.text;
  for (const codegen::TemplateFile& file : source.templates) {
    request.headers.push_back({file.name, file.text});
  }
  request.arch = source.key.arch;
  request.options = compiler::default_options();
  request.nvrtc_path = settings.nvrtc;
  compiler::Output output = compiler::compile(request);
  for (const std::string& warning : compiler::performance_warnings(output.log)) {
    support::log(support::LogLevel::warn, warning);
  }
  return output;
}

cache::Entry make_entry(const Source& source, const compiler::Output& output) {
  return {.key = source.key.hex,
          .arch = source.key.arch,
          .generator_version = GIRIH_VERSION,
          .pattern = source.pattern,
          .source = source.text,
          .manifest = source.manifest,
          .options = compiler::default_options(),
          .symbol = source.symbol,
          .registers = output.resources.registers,
          .spill_bytes = output.resources.spill_bytes,
          .stack_bytes = output.resources.stack_bytes,
          .shared_bytes = source.shared_bytes,
          .threads = source.threads,
          .compile_ms = output.ms,
          .compiler = output.version,
          .cubin = output.cubin};
}

namespace {

// GIRIH_DUMP: what was compiled, for a person to read.
void dump(const std::filesystem::path& directory, const cache::Entry& entry,
          const std::string& log) {
  const std::filesystem::path base = directory / fmt::format("{}.{}", entry.arch, entry.key);
  const std::pair<const char*, const std::string*> files[] = {
      {".cu", &entry.source}, {".cubin", &entry.cubin}, {".log", &log}};
  std::error_code ignored;  // the write below says what is wrong
  std::filesystem::create_directories(directory, ignored);
  for (const auto& [extension, text] : files) {
    std::filesystem::path path = base;
    path += extension;
    const std::string problem = support::write_file_atomically(path, *text);
    if (!problem.empty()) {
      support::log_once(support::LogLevel::warn, "dump",
                        fmt::format("cannot write {}: {}", path.string(), problem));
    }
  }
}

// Compiles, publishes and dumps.
Obtained make_cubin(const Source& source, const Settings& settings) {
  if (settings.mode == jit::Mode::off) {
    throw Error(Errc::jit_disabled,
                fmt::format("no cached kernel for '{}' on {} (key {}) and compilation is off: "
                            "unset GIRIH_JIT, or run {} and --arch {} into this cache",
                            source.pattern, source.key.arch, source.key.hex, source.warmed_by,
                            source.key.arch));
  }
  compiler::Output output = compile_source(source, settings);
  support::log(support::LogLevel::info,
               fmt::format("compiled {} for {} in {:.0f} ms (key {})", source.pattern,
                           source.key.arch, output.ms, source.key.hex));
  Obtained made{make_entry(source, output), false, std::move(output.log)};
  cache::DiskCache(settings.cache).put(source.key, made.entry);
  if (settings.dump_dir) dump(*settings.dump_dir, made.entry, made.log);
  return made;
}

}  // namespace

Obtained obtain_cubin(const Source& source, const Settings& settings) {
  const cache::DiskCache disk(settings.cache);
  std::optional<cache::Entry> entry = disk.get(source.key);
  if (!entry && settings.mode == jit::Mode::automatic) {
    const cache::DiskCache::Lock lock = disk.lock(source.key);
    entry = disk.get(source.key);  // another process may have made it meanwhile
    if (!entry) return make_cubin(source, settings);
  }
  if (!entry) return make_cubin(source, settings);
  support::log(support::LogLevel::debug, fmt::format("found {} in the cache", source.key.hex));
  if (settings.dump_dir) dump(*settings.dump_dir, *entry, "");
  return {std::move(*entry), true, ""};
}

// --- Cubin -> driver ----------------------------------------------------------------------------

std::shared_ptr<Loaded> loaded_slot(const cache::Key& key) {
  static std::mutex mutex;
  static auto* slots = new std::map<std::string, std::shared_ptr<Loaded>>;  // outlives the driver
  const std::lock_guard lock(mutex);
  std::shared_ptr<Loaded>& slot = (*slots)[key.arch + "/" + key.hex];
  if (!slot) slot = std::make_shared<Loaded>();
  return slot;
}

unsigned long long current_context_id() {
  const cuda::Api& api = cuda::driver();
  CUcontext context = nullptr;
  unsigned long long id = 0;
  if (api.cuCtxGetCurrent(&context) != CUDA_SUCCESS || context == nullptr) return 0;
  return api.cuCtxGetId(context, &id) == CUDA_SUCCESS ? id : 0;
}

bool load(Loaded& loaded, const Source& source, const Settings& settings) {
  if (loaded.module) return true;
  Obtained obtained = obtain_cubin(source, settings);
  const auto hand_over = [&] {
    loaded.module = std::make_unique<cuda::Module>(obtained.entry.cubin, obtained.entry.symbol);
  };
  try {
    hand_over();
  } catch (const Error& error) {
    if (!obtained.hit) throw;
    if (settings.mode == jit::Mode::off) {
      throw Error(Errc::jit_disabled,
                  fmt::format("the driver refuses the cached kernel {}, made by {} ({}), and "
                              "compilation is off: unset GIRIH_JIT, or make the cache with a "
                              "compiler that is not newer than the driver",
                              source.key.hex, obtained.entry.compiler, error.what()));
    }
    support::log(support::LogLevel::warn,
                 fmt::format("the driver refuses the cached kernel {}, made by {} ({}): compiling "
                             "it again",
                             source.key.hex, obtained.entry.compiler, error.what()));
    obtained = make_cubin(source, settings);
    hand_over();
  }
  loaded.entry = std::move(obtained.entry);
  std::string().swap(loaded.entry.cubin);  // the driver has its own copy; clear() would keep it
  return obtained.hit;
}

jit::KernelInfo info_of(const cache::Entry& entry, bool hit, const char* kernel) {
  return {.arch = entry.arch,
          .kernel = kernel,
          .key = entry.key,
          .tile = {},
          .tile_source = "",
          .registers = entry.registers,
          .spill_bytes = entry.spill_bytes,
          .stack_bytes = entry.stack_bytes,
          .shared_bytes = entry.shared_bytes,
          .threads = entry.threads,
          .compile_ms = entry.compile_ms,
          .cache_hit = hit,
          .compiler = entry.compiler};
}

jit::Artifact make_artifact(const Source& source, const Settings& settings, jit::Emit emit,
                            const char* kernel) {
  jit::Artifact artifact;
  artifact.source = source.text;
  artifact.info.arch = source.arch;
  artifact.info.kernel = kernel;
  artifact.info.key = source.key.hex;
  artifact.info.shared_bytes = source.shared_bytes;
  artifact.info.threads = source.threads;
  if (emit == jit::Emit::source) return artifact;
  if (emit == jit::Emit::ptx) {
    compiler::Output output = compile_source(source, settings);
    artifact.info = info_of(make_entry(source, output), false, kernel);
    artifact.ptx = std::move(output.ptx);
    artifact.log = std::move(output.log);
    return artifact;
  }
  Obtained obtained = obtain_cubin(source, settings);
  artifact.info = info_of(obtained.entry, obtained.hit, kernel);
  artifact.cubin = std::move(obtained.entry.cubin);
  artifact.log = std::move(obtained.log);
  return artifact;
}

void prepare(Loaded& loaded, const Device& device, int dynamic_shared_bytes) {
  if (loaded.prepared.contains(device.context_id)) return;
  loaded.module->prepare(device.handle, dynamic_shared_bytes);
  loaded.prepared.insert(device.context_id);
}

Device current_device() {
  const cuda::Api& api = cuda::driver();
  Device device;
  device.context_id = current_context_id();
  if (device.context_id == 0) {
    throw Error(Errc::no_device,
                "this thread has no current CUDA context: make one current first (cudaSetDevice "
                "and any runtime call, or cuDevicePrimaryCtxRetain and cuCtxSetCurrent)");
  }
  cuda::check(api.cuCtxGetDevice(&device.handle), "asking for the current device");
  const auto attribute = [&](CUdevice_attribute which) {
    int value = 0;
    cuda::check(api.cuDeviceGetAttribute(&value, which, device.handle), "asking for an attribute");
    return value;
  };
  const int major = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
  const int minor = attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
  device.arch = plan::Arch::parse(fmt::format("sm_{}{}", major, minor));
  device.l2_bytes = attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
  char name[256] = {};
  cuda::check(api.cuDeviceGetName(name, sizeof(name), device.handle), "asking for a device's name");
  device.id = {name, device.arch.name(), attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)};
  return device;
}

void refuse_while_capturing(CUstream stream, std::string_view what, std::string_view remedy) {
  CUstreamCaptureStatus capture = CU_STREAM_CAPTURE_STATUS_NONE;
  const CUresult asked = cuda::driver().cuStreamIsCapturing(stream, &capture);
  if (asked == CUDA_ERROR_STREAM_CAPTURE_IMPLICIT || capture != CU_STREAM_CAPTURE_STATUS_NONE) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} cannot be captured into a graph: {} before the capture begins",
                            what, remedy));
  }
}

}  // namespace girih::runtime
