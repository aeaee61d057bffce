// NVRTC, opened at run time: source text in, cubin out. Knows no pattern, no cache and no driver.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace girih::compiler {

struct Header {
  std::string name;  ///< as it is included: "girih/fwd_sm80.cuh"
  std::string text;
};

struct Request {
  std::string source;
  std::string program_name = "girih.cu";  ///< shown in messages; fixed, for it can reach the cubin
  std::vector<Header> headers;
  std::string arch;                                 ///< "sm_90", "sm_90a"
  std::vector<std::string> options;                 ///< besides the architecture
  std::optional<std::filesystem::path> nvrtc_path;  ///< a library or its folder
};

/// ptxas' report; of several kernels and functions the largest of each number.
struct Resources {
  int registers = 0;
  int spill_bytes = 0;  ///< stores + loads
  int stack_bytes = 0;
  int static_shared_bytes = 0;
};

struct Output {
  std::string cubin;
  std::string ptx;
  std::string log;
  Resources resources;
  double ms = 0;        ///< of nvrtcCompileProgram alone
  std::string version;  ///< "NVRTC 13.0"
};

/// The options every kernel is compiled with; part of the cache key.
const std::vector<std::string>& default_options();

/// Thread-safe. Options that this NVRTC is too old for are left out.
/// @throws Error compile_failed: NVRTC is missing (the message lists where it was looked for and
/// what to do) or refused the source (its log, with the source lines around each error);
/// unsupported: it does not know the architecture (the message lists those it does).
Output compile(const Request& request);

/// ptxas' remarks that mean lost performance, "(C7510) Potential Performance Loss: ...": serialised
/// wgmma, ignored setmaxnreg, injected waits. Each once, in the log's order.
std::vector<std::string> performance_warnings(const std::string& log);

Resources parse_resources(const std::string& log);

struct Library {
  std::string version;         ///< "NVRTC 13.0"
  std::filesystem::path path;  ///< of the file that was opened
};
/// Opens NVRTC if it can be: the path that is given and no other, or else a copy that the process
/// has loaded, or else where the loader, CUDA toolkits and Python packages put it.
/// @return empty when there is none; then `reason` says why.
std::optional<Library> find_library(const std::optional<std::filesystem::path>& nvrtc_path,
                                    std::string* reason = nullptr);

/// Whether this process has opened NVRTC.
bool library_loaded();

}  // namespace girih::compiler
