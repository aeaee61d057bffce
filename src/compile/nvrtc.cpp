// Finds, opens and calls NVRTC. Nothing here runs before the first compilation, and no other file
// includes nvrtc.h, which is used for its types only.
#include "compile/nvrtc.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <glob.h>
#include <nvrtc.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>

#include "girih/error.hpp"

namespace girih::compiler {
namespace {

namespace fs = std::filesystem;

// --- Finding and opening the library -----------------------------------------------------------

// clang-format off
#define GIRIH_NVRTC_FUNCTIONS(X)                                         \
  X(nvrtcVersion) X(nvrtcGetErrorString)                                 \
  X(nvrtcGetNumSupportedArchs) X(nvrtcGetSupportedArchs)                 \
  X(nvrtcCreateProgram) X(nvrtcDestroyProgram) X(nvrtcCompileProgram)    \
  X(nvrtcGetProgramLogSize) X(nvrtcGetProgramLog)                        \
  X(nvrtcGetCUBINSize) X(nvrtcGetCUBIN) X(nvrtcGetPTXSize) X(nvrtcGetPTX)
// clang-format on

struct Nvrtc {
#define GIRIH_DECLARE(function) decltype(&::function) function = nullptr;
  GIRIH_NVRTC_FUNCTIONS(GIRIH_DECLARE)
#undef GIRIH_DECLARE
  int major = 0;
  int minor = 0;
  fs::path path;

  std::string version() const { return fmt::format("NVRTC {}.{}", major, minor); }
  bool at_least(int a, int b) const { return std::tie(major, minor) >= std::tie(a, b); }
};

constexpr const char* kFileNames[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"};

/// Where toolkits and Python packages put NVRTC, as patterns for glob, the likeliest first.
std::vector<std::string> usual_folders() {
  std::vector<std::string> patterns;
  const auto add = [&](const char* variable, const char* below) {
    if (const char* value = std::getenv(variable); value != nullptr && *value != '\0')
      patterns.push_back(fmt::format("{}/{}", value, below));
  };
  constexpr const char* kToolkit = "{lib64,lib}";
  constexpr const char* kPackages =  // of Python: the wheels of CUDA 13, then those of CUDA 12
      "lib/python3*/{site,dist}-packages/nvidia/{cu13,cuda_nvrtc}/lib";
  add("CUDA_HOME", kToolkit);
  add("CUDA_PATH", kToolkit);
  patterns.push_back("/usr/local/cuda/lib64");
  add("VIRTUAL_ENV", kPackages);
  add("CONDA_PREFIX", "lib");
  add("CONDA_PREFIX", kPackages);
  add("HOME", fmt::format(".local/{}", kPackages).c_str());
  patterns.push_back(fmt::format("/usr/local/{}", kPackages));
  patterns.push_back("/usr/lib/python3/dist-packages/nvidia/{cu13,cuda_nvrtc}/lib");
  patterns.push_back(fmt::format("/opt/{{venv,*/venv,*/.venv}}/{}", kPackages));
  return patterns;
}

std::vector<std::string> existing_folders(const std::vector<std::string>& patterns) {
  std::vector<std::string> folders;
  for (const std::string& pattern : patterns) {
    glob_t found{};
    if (::glob(pattern.c_str(), GLOB_BRACE | GLOB_NOSORT, nullptr, &found) == 0)
      folders.insert(folders.end(), found.gl_pathv, found.gl_pathv + found.gl_pathc);
    ::globfree(&found);
  }
  return folders;
}

/// NVRTC looks for its builtins by the loader's path only, where they need not be; once they are
/// loaded it finds them.
void preload_builtins(const Nvrtc& nvrtc) {
  const std::string name = fmt::format("libnvrtc-builtins.so.{}.{}", nvrtc.major, nvrtc.minor);
  ::dlopen((nvrtc.path.parent_path() / name).c_str(), RTLD_LAZY | RTLD_LOCAL);
}

/// @throws Error compile_failed when an opened library is not a usable NVRTC.
Nvrtc bind(void* handle, const std::string& file) {
  Nvrtc nvrtc;
  const auto resolve = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(::dlsym(handle, name));
    if (function == nullptr)
      throw Error(Errc::compile_failed,
                  fmt::format("{} is not an NVRTC that can be used: it has no {}", file, name));
  };
#define GIRIH_RESOLVE(function) resolve(nvrtc.function, #function);
  GIRIH_NVRTC_FUNCTIONS(GIRIH_RESOLVE)
#undef GIRIH_RESOLVE

  nvrtc.nvrtcVersion(&nvrtc.major, &nvrtc.minor);
  if (!nvrtc.at_least(12, 1))  // the first with kernel parameters of more than 4096 bytes
    throw Error(Errc::compile_failed, fmt::format("{} is NVRTC {}.{}; 12.1 or later is needed",
                                                  file, nvrtc.major, nvrtc.minor));

  Dl_info info{};
  nvrtc.path = file;
  if (::dladdr(reinterpret_cast<void*>(nvrtc.nvrtcVersion), &info) != 0) {
    std::error_code error;
    nvrtc.path = fs::canonical(info.dli_fname, error);
    if (error) nvrtc.path = info.dli_fname;
  }
  preload_builtins(nvrtc);
  return nvrtc;
}

Nvrtc open_explicit(const fs::path& path) {
  std::vector<std::string> files;
  std::error_code ignored;
  if (fs::is_directory(path, ignored))
    for (const char* name : kFileNames) files.push_back((path / name).string());
  else
    files.push_back(fs::absolute(path, ignored).string());  // a bare name is not for the loader

  std::string reason;
  for (const std::string& file : files) {
    if (void* handle = ::dlopen(file.c_str(), RTLD_LAZY | RTLD_LOCAL); handle != nullptr)
      return bind(handle, file);
    reason += fmt::format("\n  {}", ::dlerror());
  }
  throw Error(Errc::compile_failed,
              fmt::format("NVRTC cannot be opened at {}, which was asked for (GIRIH_NVRTC or an "
                          "option): name the library or its folder, or leave it unset to have it "
                          "searched for{}",
                          path.string(), reason));
}

Nvrtc open_anywhere() {
  const std::vector<std::string> patterns = usual_folders();
  std::vector<std::string> files(std::begin(kFileNames), std::end(kFileNames));
  for (const std::string& folder : existing_folders(patterns))
    for (const char* name : kFileNames) files.push_back(fmt::format("{}/{}", folder, name));

  std::string unusable;
  const auto try_open = [&](const std::string& file, int flags) -> std::optional<Nvrtc> {
    void* const handle = ::dlopen(file.c_str(), RTLD_LAZY | flags);
    if (handle == nullptr) return std::nullopt;
    try {
      return bind(handle, file);
    } catch (const Error& error) {
      unusable += fmt::format("\n  {}", error.what());
      return std::nullopt;
    }
  };
  for (const char* name :
       kFileNames)  // loaded already, PyTorch's say; an old one is in nobody's way
    if (auto nvrtc = try_open(name, RTLD_NOLOAD)) return *nvrtc;
  for (const std::string& file : files)
    if (auto nvrtc = try_open(file, RTLD_LOCAL)) return *nvrtc;
  throw Error(Errc::compile_failed,
              fmt::format("NVRTC, CUDA's run-time compiler, was not found. Install it (Debian and "
                          "Ubuntu: cuda-nvrtc-13-0 from NVIDIA's repository; pip: "
                          "nvidia-cuda-nvrtc), or set GIRIH_NVRTC to libnvrtc.so or its folder. "
                          "Looked for {} in\n  the loader's path\n  {}{}",
                          fmt::join(kFileNames, ", "), fmt::join(patterns, "\n  "), unusable));
}

struct OpenedLibraries {
  std::mutex mutex;
  std::map<std::string, std::unique_ptr<const Nvrtc>> by_request;  // never closed
};
OpenedLibraries& opened_libraries() {
  static OpenedLibraries& kLibraries = *new OpenedLibraries;  // outlives static destructors
  return kLibraries;
}

/// @throws Error compile_failed
const Nvrtc& open(const std::optional<fs::path>& request) {
  OpenedLibraries& opened = opened_libraries();
  const std::lock_guard guard(opened.mutex);
  std::unique_ptr<const Nvrtc>& nvrtc = opened.by_request[request ? request->string() : ""];
  if (!nvrtc) nvrtc = std::make_unique<Nvrtc>(request ? open_explicit(*request) : open_anywhere());
  return *nvrtc;
}

/// A program of NVRTC, destroyed with this.
class NvrtcProgram {
 public:
  NvrtcProgram(const Nvrtc& nvrtc, const Request& request) : nvrtc_(nvrtc) {
    std::vector<const char*> texts, names;
    for (const Header& header : request.headers) {
      texts.push_back(header.text.c_str());
      names.push_back(header.name.c_str());
    }
    check(nvrtc.nvrtcCreateProgram(&program_, request.source.c_str(), request.program_name.c_str(),
                                   static_cast<int>(names.size()), texts.data(), names.data()),
          "nvrtcCreateProgram");
  }
  ~NvrtcProgram() { nvrtc_.nvrtcDestroyProgram(&program_); }
  NvrtcProgram(const NvrtcProgram&) = delete;
  NvrtcProgram& operator=(const NvrtcProgram&) = delete;

  nvrtcResult compile(const std::vector<std::string>& options) {
    std::vector<const char*> texts;
    for (const std::string& option : options) texts.push_back(option.c_str());
    return nvrtc_.nvrtcCompileProgram(program_, static_cast<int>(texts.size()), texts.data());
  }
  std::string log() const { return text(nvrtc_.nvrtcGetProgramLogSize, nvrtc_.nvrtcGetProgramLog); }
  std::string ptx() const { return text(nvrtc_.nvrtcGetPTXSize, nvrtc_.nvrtcGetPTX); }
  std::string cubin() const { return bytes(nvrtc_.nvrtcGetCUBINSize, nvrtc_.nvrtcGetCUBIN); }

 private:
  void check(nvrtcResult result, const char* what) const {
    if (result != NVRTC_SUCCESS)
      throw Error(Errc::compile_failed, fmt::format("{}: {} failed: {}", nvrtc_.version(), what,
                                                    nvrtc_.nvrtcGetErrorString(result)));
  }
  std::string bytes(auto get_size, auto get) const {
    std::size_t size = 0;
    check(get_size(program_, &size), "reading a result's size");
    std::string result(size, '\0');
    if (size > 0) check(get(program_, result.data()), "reading a result");
    return result;
  }
  std::string text(auto get_size, auto get) const {  // without NVRTC's final NUL
    std::string result = bytes(get_size, get);
    while (!result.empty() && result.back() == '\0') result.pop_back();
    return result;
  }

  const Nvrtc& nvrtc_;
  nvrtcProgram program_ = nullptr;
};

// --- Messages ----------------------------------------------------------------------------------

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    lines.push_back(text.substr(0, text.find('\n')));
    text.remove_prefix(std::min(lines.back().size() + 1, text.size()));
  }
  return lines;
}

/// The number that `text` starts with, or -1.
int leading_number(std::string_view text) {
  int number = -1;
  std::from_chars(text.data(), text.data() + text.size(), number);
  return number;
}

struct Location {
  std::string_view file;
  int line;
  friend bool operator==(const Location&, const Location&) = default;
};
constexpr std::string_view kPtx = "ptx";  // stands for the PTX that ptxas refused

/// Of "girih.cu(3): error: ..." and "ptxas application ptx input, line 23; error   : ...".
std::optional<Location> error_location(std::string_view line) {
  constexpr std::string_view kPtxas = "ptxas application ptx input, line ";
  if (line.find("error") == line.npos) return std::nullopt;
  if (line.starts_with(kPtxas)) return Location{kPtx, leading_number(line.substr(kPtxas.size()))};
  const std::size_t close = line.find("): ");
  const std::size_t open = line.rfind('(', close);
  if (close == line.npos || open == line.npos) return std::nullopt;
  if (!line.substr(close + 3).starts_with("error") &&
      !line.substr(close + 3).starts_with("catastrophic error"))
    return std::nullopt;
  return Location{line.substr(0, open), leading_number(line.substr(open + 1))};
}

/// The line and its two neighbours on either side, numbered.
std::string excerpt(const Location& location, std::string_view text) {
  const std::vector<std::string_view> lines = split_lines(text);
  const int count = static_cast<int>(lines.size());
  std::string out = fmt::format("\n{}:{}\n", location.file, location.line);
  for (int n = std::max(location.line - 2, 1); n <= std::min(location.line + 2, count); ++n)
    out += fmt::format("{} {:4} | {}\n", n == location.line ? '>' : ' ', n,
                       lines[static_cast<std::size_t>(n - 1)]);
  return out;
}

/// Source lines around the first errors of a log.
std::string excerpts(const Request& request, const NvrtcProgram& program, std::string_view log) {
  constexpr std::size_t kMost = 5;
  std::vector<Location> shown;
  std::string out;
  for (const std::string_view line : split_lines(log)) {
    const auto location = error_location(line);
    if (!location || std::find(shown.begin(), shown.end(), *location) != shown.end()) continue;
    if (shown.size() == kMost) break;
    shown.push_back(*location);
    if (location->file == request.program_name) out += excerpt(*location, request.source);
    if (location->file == kPtx) out += excerpt(*location, program.ptx());
    for (const Header& header : request.headers)
      if (location->file == header.name) out += excerpt(*location, header.text);
  }
  return out;
}

// --- Compiling ---------------------------------------------------------------------------------

std::vector<int> supported_archs(const Nvrtc& nvrtc) {
  int count = 0;
  nvrtc.nvrtcGetNumSupportedArchs(&count);
  std::vector<int> archs(static_cast<std::size_t>(count));
  if (count > 0) nvrtc.nvrtcGetSupportedArchs(archs.data());
  return archs;
}

[[noreturn]] void throw_unknown_arch(const Nvrtc& nvrtc, const std::string& arch) {
  throw Error(Errc::unsupported,
              fmt::format("{} ({}) cannot compile for {}: it knows sm_{}, some with a suffix such "
                          "as sm_90a; ask for one of these or install another NVRTC",
                          nvrtc.version(), nvrtc.path.string(), arch,
                          fmt::join(supported_archs(nvrtc), ", sm_")));
}

void check_arch(const Nvrtc& nvrtc, const std::string& arch) {
  constexpr std::string_view kPrefix = "sm_";
  const int number =
      arch.starts_with(kPrefix) ? leading_number(std::string_view(arch).substr(3)) : -1;
  const std::vector<int> known = supported_archs(nvrtc);
  if (std::find(known.begin(), known.end(), number) == known.end()) throw_unknown_arch(nvrtc, arch);
}

/// Without what this version does not know yet; none of it changes what is computed.
std::vector<std::string> options_for(const Nvrtc& nvrtc, const Request& request) {
  std::vector<std::string> options{"--gpu-architecture=" + request.arch};
  for (const std::string& option : request.options) {
    const bool known = option == "--no-cache"  ? nvrtc.at_least(12, 9)
                       : option == "--minimal" ? nvrtc.at_least(12, 4)
                                               : true;
    if (known) options.push_back(option);
  }
  return options;
}

/// The number before `unit` in a line such as "Used 32 registers, 560 bytes stack frame", or 0.
int number_before(std::string_view line, std::string_view unit) {
  const std::size_t end = line.find(unit);
  if (end == line.npos) return 0;
  const std::size_t before = line.find_last_not_of("0123456789", end - 1);
  return std::max(leading_number(line.substr(before == line.npos ? 0 : before + 1)), 0);
}

}  // namespace

const std::vector<std::string>& default_options() {
  // --no-cache: from 12.9 on NVRTC otherwise opens the driver, to use its cache of compilations.
  // --minimal: leaves out textures and the runtime's API, which nothing here uses, and their time.
  // --modify-stack-limit=false: NVRTC would raise the process's stack limit.
  static const std::vector<std::string> kOptions = {
      "--std=c++20", "--no-cache", "--minimal", "--modify-stack-limit=false", "--ptxas-options=-v"};
  return kOptions;
}

Output compile(const Request& request) {
  const Nvrtc& nvrtc = open(request.nvrtc_path);
  check_arch(nvrtc, request.arch);
  NvrtcProgram program(nvrtc, request);

  using Clock = std::chrono::steady_clock;
  const Clock::time_point start = Clock::now();
  const nvrtcResult result = program.compile(options_for(nvrtc, request));
  const Clock::time_point end = Clock::now();

  Output output;
  output.log = program.log();
  output.version = nvrtc.version();
  output.ms = std::chrono::duration<double, std::milli>(end - start).count();
  if (result != NVRTC_SUCCESS) {
    // A suffix that the architecture does not have ("sm_80a") is refused in either of two ways.
    for (const char* option : {"--gpu-architecture", "--nv_arch"})
      if (output.log.find(option) != output.log.npos) throw_unknown_arch(nvrtc, request.arch);
    throw Error(Errc::compile_failed,
                fmt::format("{} ({}) could not compile {} for {}: {}\n{}{}", output.version,
                            nvrtc.path.string(), request.program_name, request.arch,
                            nvrtc.nvrtcGetErrorString(result), output.log,
                            excerpts(request, program, output.log)));
  }
  output.cubin = program.cubin();
  output.ptx = program.ptx();
  output.resources = parse_resources(output.log);
  return output;
}

std::vector<std::string> performance_warnings(const std::string& log) {
  std::vector<std::string> warnings;
  for (const std::string_view line : split_lines(log)) {
    const std::size_t code = line.find("(C75");
    if (code == line.npos) continue;
    std::string warning(line.substr(code));
    if (std::find(warnings.begin(), warnings.end(), warning) == warnings.end())
      warnings.push_back(std::move(warning));
  }
  return warnings;
}

Resources parse_resources(const std::string& log) {
  Resources most;
  const auto raise = [](int& largest, int value) { largest = std::max(largest, value); };
  for (const std::string_view line : split_lines(log)) {
    raise(most.registers, number_before(line, " registers"));
    raise(most.spill_bytes,
          number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads"));
    raise(most.stack_bytes, number_before(line, " bytes stack frame"));
    raise(most.stack_bytes, number_before(line, " bytes cumulative stack size"));
    raise(most.static_shared_bytes, number_before(line, " bytes smem"));
  }
  return most;
}

std::optional<Library> find_library(const std::optional<fs::path>& nvrtc_path,
                                    std::string* reason) {
  try {
    const Nvrtc& nvrtc = open(nvrtc_path);
    return Library{nvrtc.version(), nvrtc.path};
  } catch (const Error& error) {
    if (reason != nullptr) *reason = error.what();
    return std::nullopt;
  }
}

bool library_loaded() {
  OpenedLibraries& opened = opened_libraries();
  const std::lock_guard guard(opened.mutex);
  return std::any_of(opened.by_request.begin(), opened.by_request.end(),
                     [](const auto& entry) { return entry.second != nullptr; });
}

}  // namespace girih::compiler
