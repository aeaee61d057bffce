// What every kernel goes through, whatever it computes: its source gets a key, the key a cubin from
// the cache or from NVRTC, and the cubin goes into the driver, once in a process.
#pragma once

#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache/entry.hpp"
#include "cache/key.hpp"
#include "codegen/templates.hpp"
#include "compile/nvrtc.hpp"
#include "cuda/module.hpp"
#include "plan/arch.hpp"
#include "runtime/settings.hpp"
#include "tune/tuning_db.hpp"

namespace girih::runtime {

// --- Source -> key -> cubin

/// What is emitted, and what its cache entry says beside that.
struct Emitted {
  std::string arch;
  std::string text;
  std::string symbol;
  std::string pattern;    ///< that asked for it, or what the kernel is
  std::string warmed_by;  ///< the command that makes the entry, for a message
  int shared_bytes = 0;   ///< dynamic
  int threads = 0;
};

/// A kernel before it is compiled: its source and its name in the cache.
struct Source : Emitted {
  std::vector<codegen::TemplateFile> templates;
  std::vector<std::pair<std::string, std::string>> manifest;
  cache::Key key;
};

Source make_source(Emitted emitted, const Settings& settings);

/// @throws Error compile_failed, unsupported.
compiler::Output compile_source(const Source& source, const Settings& settings);

cache::Entry make_entry(const Source& source, const compiler::Output& output);

struct Obtained {
  cache::Entry entry;
  bool hit = false;
  std::string log;  ///< of a compilation
};

/// From the cache, or compiled and published there. @throws Error jit_disabled, compile_failed.
Obtained obtain_cubin(const Source& source, const Settings& settings);

// --- Cubin -> driver

/// A cubin in the driver, shared by every kernel of this process that has the same key.
struct Loaded {
  std::mutex mutex;  ///< held while one thread obtains it; the others wait for that
  std::unique_ptr<cuda::Module> module;
  cache::Entry entry;
  std::set<unsigned long long> prepared;  ///< ids of contexts; see prepare()
};

/// The same for the same key.
std::shared_ptr<Loaded> loaded_slot(const cache::Key& key);

/// Gets the cubin into the driver, unless it is there, with loaded.mutex held. A cached one that
/// the driver refuses, made by a newer compiler say, is compiled again.
/// @return whether no compilation was needed.
bool load(Loaded& loaded, const Source& source, const Settings& settings);

// --- Answers

/// Of a kernel that has no tile.
jit::KernelInfo info_of(const cache::Entry& entry, bool hit, const char* kernel);

/// A kernel without a device, up to `emit`.
jit::Artifact make_artifact(const Source& source, const Settings& settings, jit::Emit emit,
                            const char* kernel);

// --- Devices and streams

/// The id of the current context, unique in this process; 0 when there is none.
unsigned long long current_context_id();

struct Device {
  CUdevice handle = 0;
  unsigned long long context_id = 0;
  plan::Arch arch;
  tune::DeviceId id;
  int l2_bytes = 0;
};

/// Of the current context. @throws Error no_device where there is none.
Device current_device();

/// Makes what is loaded ready in the device's context, once, with loaded.mutex held.
void prepare(Loaded& loaded, const Device& device, int dynamic_shared_bytes);

/// @throws Error invalid_argument "<what> cannot be captured into a graph: <remedy> before the
/// capture begins" where the stream is being captured.
void refuse_while_capturing(CUstream stream, std::string_view what, std::string_view remedy);

}  // namespace girih::runtime
