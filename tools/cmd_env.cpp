// girih env: what Girih finds on this machine, and every variable that it reads.
#include <fmt/format.h>
#include <unistd.h>

#include "cache/disk_cache.hpp"
#include "common.hpp"
#include "compile/nvrtc.hpp"
#include "cuda/driver.hpp"
#include "runtime/settings.hpp"
#include "support/env.hpp"

namespace girih::tools {
namespace {

// {"found": false, "reason": ...} where there is none.
Json nvrtc_report() {
  std::string reason;
  std::optional<std::filesystem::path> path;
  if (const auto value = support::env("NVRTC")) path = *value;
  const auto library = compiler::find_library(path, &reason);
  if (!library) return {{"found", false}, {"reason", reason}};
  return {{"found", true}, {"version", library->version}, {"path", library->path.string()}};
}

Json driver_report() {
  Json report{{"found", false}, {"devices", Json::array()}};
  try {
    const cuda::Api& api = cuda::driver();
    int version = 0, count = 0;
    cuda::check(api.cuDriverGetVersion(&version), "cuDriverGetVersion");
    report["found"] = true;
    report["version"] = fmt::format("{}.{}", version / 1000, version % 1000 / 10);
    cuda::check(api.cuDeviceGetCount(&count), "cuDeviceGetCount");
    for (int ordinal = 0; ordinal < count; ++ordinal) {
      CUdevice device = 0;
      char name[256] = "";
      int major = 0, minor = 0;
      cuda::check(api.cuDeviceGet(&device, ordinal), "cuDeviceGet");
      cuda::check(api.cuDeviceGetName(name, sizeof name, device), "cuDeviceGetName");
      cuda::check(
          api.cuDeviceGetAttribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device),
          "cuDeviceGetAttribute");
      cuda::check(
          api.cuDeviceGetAttribute(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device),
          "cuDeviceGetAttribute");
      report["devices"].push_back({{"name", name}, {"arch", fmt::format("sm_{}{}", major, minor)}});
    }
  } catch (const Error& error) {
    report["reason"] = error.what();
  }
  return report;
}

// Whether files can be made in `folder`, or, where it does not exist yet, in the nearest folder
// above it that does.
bool writable(std::filesystem::path folder) {
  std::error_code error;
  folder = std::filesystem::absolute(folder, error);
  while (!std::filesystem::exists(folder, error) && folder.has_relative_path()) {
    folder = folder.parent_path();
  }
  return std::filesystem::is_directory(folder, error) && access(folder.c_str(), W_OK | X_OK) == 0;
}

Json cache_report() {
  const auto named = support::env("CACHE_DIR");
  const std::filesystem::path folder =
      named ? std::filesystem::path(*named) : cache::default_directory();
  const std::string distrust = cache::distrust_of({.path = folder, .strict = !named});
  std::error_code error;
  Json report{{"directory", folder.string()},
              {"exists", !folder.empty() && std::filesystem::is_directory(folder, error)},
              {"writable", !folder.empty() && distrust.empty() && writable(folder)},
              {"layers", Json::array()}};
  if (!distrust.empty()) report["reason"] = distrust;
  for (const std::filesystem::path& layer :
       runtime::split_paths(support::env("CACHE_LAYERS").value_or(""))) {
    report["layers"].push_back(layer.string());
  }
  return report;
}

Json variables_report() {
  Json report = Json::array();
  for (const support::Variable& variable : support::known_variables()) {
    const char* value = std::getenv(std::string(variable.name).c_str());
    report.push_back({{"name", variable.name},
                      {"value", value != nullptr ? Json(value) : Json()},
                      {"meaning", variable.meaning}});
  }
  return report;
}

void print_text(const Json& report) {
  const auto text = [](const Json& json, const char* key) {
    return json.value(key, std::string());
  };
  const Json &nvrtc = report["nvrtc"], &driver = report["driver"], &cache = report["cache"];
  print(fmt::format("girih     {}\n", text(report, "version")));
  print(nvrtc["found"]
            ? fmt::format("compiler  {} ({})\n", text(nvrtc, "version"), text(nvrtc, "path"))
            : fmt::format("compiler  no NVRTC: {}\n", text(nvrtc, "reason")));
  print(driver["found"] ? fmt::format("driver    CUDA {}\n", text(driver, "version"))
                        : fmt::format("driver    none: {}\n", text(driver, "reason")));
  for (const Json& device : driver["devices"]) {
    print(fmt::format("device    {} ({})\n", text(device, "name"), text(device, "arch")));
  }
  const std::string folder = text(cache, "directory");
  print(folder.empty() ? "cache     none: set GIRIH_CACHE_DIR, XDG_CACHE_HOME or HOME\n"
                       : fmt::format("cache     {} ({}{})\n", folder,
                                     cache.contains("reason") ? text(cache, "reason")
                                     : cache["writable"]      ? "writable"
                                                              : "not writable",
                                     cache["exists"] ? "" : ", not made yet"));
  for (const Json& layer : cache["layers"]) {
    print(fmt::format("layer     {}\n", layer.get<std::string>()));
  }
  print("\n");
  for (const Json& variable : report["variables"]) {
    print(fmt::format("{:<20} {}\n{:<20}   {}\n", text(variable, "name"),
                      variable["value"].is_null() ? "not set" : "= " + text(variable, "value"), "",
                      text(variable, "meaning")));
  }
}

}  // namespace

void add_env(CLI::App& app, Context& context) {
  CLI::App* verb = add_verb(app, context, "env", "Show what Girih finds on this machine");
  verb->callback([&context] {
    const Json report{{"version", GIRIH_VERSION},
                      {"nvrtc", nvrtc_report()},
                      {"driver", driver_report()},
                      {"cache", cache_report()},
                      {"variables", variables_report()}};
    if (context.json) {
      print_json(report);
    } else {
      print_text(report);
    }
  });
}

}  // namespace girih::tools
