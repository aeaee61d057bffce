// The committed entries of templates/girih/check compiled, by NVRTC and nvcc, also in other shapes;
// and which instructions each kernel has.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "codegen/emit.hpp"
#include "codegen/templates.hpp"
#include "compile/nvrtc.hpp"
#include "compiled.hpp"
#include "girih/jit.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"
#include "texts.hpp"

using namespace girih;
using tests::check_compiled;
using tests::Compiled;
using tests::holds_symbol;
using tests::source_dir;
using tests::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

// What a committed entry is written for, by its name.
std::string arch_of(const fs::path& entry) {
  return entry.filename().string().ends_with("_sm90.cu") ? "sm_90a" : "sm_80";
}

Compiled compile_entry(const std::string& what, const std::string& source,
                       const std::string& arch) {
  compiler::Request request;
  request.source = source;
  for (const codegen::TemplateFile& header : codegen::reachable_templates(source, std::nullopt)) {
    request.headers.push_back({header.name, header.text});
  }
  request.arch = arch;
  request.options = compiler::default_options();
  const compiler::Output output = compiler::compile(request);
  return {.what = what,
          .error = "",
          .resources = output.resources,
          .log = output.log,
          .cubin = output.cubin,
          .builds_lists = true,
          .splits = source.find("kSplits") != source.npos};
}

}  // namespace

TEST_CASE("committed entries compile with NVRTC") {
  int count = 0;
  for (const auto& file : fs::directory_iterator(source_dir() / "templates" / "girih" / "check")) {
    ++count;
    check_compiled(compile_entry(file.path().string(), support::read_file(file.path()).value_or(""),
                                 arch_of(file.path())));
  }
  CHECK(count > 0);
}

TEST_CASE(
    "the Hopper kernel multiplies with wgmma and copies whole boxes, the portable one neither") {
  const TemporaryFolder folder;
  jit::Options options;
  options.mode = jit::Mode::automatic;
  options.cache_dir = folder / "cache";
  options.cache_layers.emplace();
  const auto ptx = [&] {
    return jit::build(causal(), {.head_dim = 128}, "sm_90", options, jit::Emit::ptx).ptx;
  };
  const std::string hopper = ptx();
  options.tile.portable = true;
  const std::string portable = ptx();
  for (const char* instruction : {"wgmma.mma_async", "cp.async.bulk.tensor", "setmaxnreg"}) {
    CHECK(hopper.find(instruction) != hopper.npos);
    CHECK(portable.find(instruction) == portable.npos);
  }
  CHECK(portable.find("mma.sync") != portable.npos);

  // Warps of a warpgroup go different ways between products, which they must do together.
  CHECK(tests::count_of(hopper, "wgmma.fence") == 4);
}

TEST_CASE("the Hopper kernel compiles at every width without spills or serialised wgmma") {
  struct Shape {
    int head_dim, head_dim_v, block_m, block_n, num_q_stages;
    bool softcap;
  };
  constexpr Shape kShapes[] = {{64, 64, 128, 128, 2, true},   {96, 96, 128, 128, 2, true},
                               {192, 192, 128, 96, 1, true},  {192, 128, 128, 128, 1, true},
                               {256, 256, 128, 64, 1, false}, {256, 256, 128, 48, 1, true},
                               {64, 64, 128, 16, 2, true}};
  const fs::path path = source_dir() / "templates" / "girih" / "check" / "fwd_sm90.cu";
  const std::string committed = support::read_file(path).value_or("");
  for (const Shape& shape : kShapes) {
    std::string source = committed;
    const std::string products = "#define GIRIH_PRODUCTS(SS, RS) ";
    const std::size_t named = source.find(products);
    REQUIRE(named != source.npos);
    source.replace(named, source.find('\n', named) - named,
                   products + fmt::format("SS(Bf16, {0}, {1}) RS(Bf16, {2}, {0})", shape.block_n,
                                          shape.head_dim, shape.head_dim_v));
    const auto set = [&](const std::string& name, const std::string& value) {
      const std::size_t begin = source.find(name + " = ");
      REQUIRE(begin != source.npos);
      source.replace(begin, source.find(';', begin) - begin, name + " = " + value);
    };
    set("kHeadDim", std::to_string(shape.head_dim));
    set("kHeadDimV", std::to_string(shape.head_dim_v));
    set("kBlockM", std::to_string(shape.block_m));
    set("kBlockN", std::to_string(shape.block_n));
    set("kNumQStages", std::to_string(shape.num_q_stages));
    set("kSoftcap", shape.softcap ? "true" : "false");
    check_compiled(compile_entry(fmt::format("head_dim {}, {}, tile {} x {}", shape.head_dim,
                                             shape.head_dim_v, shape.block_m, shape.block_n),
                                 source, "sm_90a"));
  }
}

TEST_CASE("committed entries compile with nvcc") {
  if (std::system("nvcc --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: there is no nvcc on the path");
    return;
  }
  const TemporaryFolder folder;
  for (const auto& file : fs::directory_iterator(source_dir() / "templates" / "girih" / "check")) {
    const fs::path cubin = folder / "entry.cubin", log = folder / "log";
    const int status =
        std::system(fmt::format("nvcc -cubin -arch={} -std=c++20 -I'{}' -o '{}' '{}' > '{}' 2>&1",
                                arch_of(file.path()), (source_dir() / "templates").string(),
                                cubin.string(), file.path().string(), log.string())
                        .c_str());
    INFO(support::read_file(log).value_or(""));
    REQUIRE(status == 0);
    CHECK(support::read_file(log) == "");  // not even a warning
    CHECK(holds_symbol(support::read_file(cubin).value_or(""), codegen::kKernelSymbol));
    fs::remove(cubin);
  }
}
