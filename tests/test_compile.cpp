// Templates embedded in the library, and NVRTC: cubins, messages and resource reports.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <thread>

#include "codegen/templates.hpp"
#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "sandbox.hpp"
#include "support/fs.hpp"
#include "support/hash.hpp"
#include "texts.hpp"

using namespace girih;
using codegen::reachable_templates;
using codegen::TemplateFile;
using tests::contains;
using tests::error_of;
using tests::source_dir;
using tests::TemporaryFolder;
namespace fs = std::filesystem;

namespace {

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  REQUIRE(support::write_file_atomically(path, text) == "");
}

std::vector<std::string> names_of(const std::vector<TemplateFile>& files) {
  std::vector<std::string> names;
  for (const TemplateFile& file : files) names.push_back(file.name);
  return names;
}

compiler::Request request_for(const std::string& arch, const std::string& source) {
  compiler::Request request;
  request.arch = arch;
  request.source = source;
  request.options = compiler::default_options();
  return request;
}

const std::string kScale =
    "extern \"C\" __global__ void scale(float* x) {\n"
    "  __shared__ float tile[64];\n"
    "  tile[threadIdx.x] = x[threadIdx.x];\n"
    "  __syncthreads();\n"
    "  x[threadIdx.x] = 2 * tile[63 - threadIdx.x];\n"
    "}\n";

// 128 live values with 32 registers to hold them in.
const std::string kSpills =
    "extern \"C\" __global__ void __launch_bounds__(1024, 2) spills(float* x, int n) {\n"
    "  float a[128];\n"
    "  #pragma unroll\n"
    "  for (int i = 0; i < 128; i++) a[i] = x[i * 1024 + threadIdx.x];\n"
    "  for (int k = 0; k < n; k++) {\n"
    "    #pragma unroll\n"
    "    for (int i = 0; i < 128; i++) a[i] = a[i] * a[(i + 7) % 128] + x[k];\n"
    "  }\n"
    "  #pragma unroll\n"
    "  for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] = a[i];\n"
    "}\n";

}  // namespace

TEST_CASE("the embedded templates are the files on disk, byte for byte") {
  const fs::path root = source_dir() / "templates";
  std::set<std::string> on_disk;
  for (const auto& file : fs::recursive_directory_iterator(root))
    if (file.path().extension() == ".cuh") on_disk.insert(fs::relative(file, root).string());
  REQUIRE(!on_disk.empty());

  std::vector<std::string> embedded;
  for (const codegen::EmbeddedTemplate& t : codegen::embedded_templates()) {
    CAPTURE(t.name);
    embedded.emplace_back(t.name);
    CHECK(support::read_file(root / t.name) == t.text);
  }
  CHECK(embedded == std::vector<std::string>(on_disk.begin(), on_disk.end()));  // sorted, too
}

TEST_CASE("embedding keeps characters that mean something to CMake or C++") {
  if (std::system("cmake --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: there is no cmake on the path");
    return;
  }
  const TemporaryFolder folder;
  const auto embed = [&](const std::string& text) {
    write(folder / "girih/hostile.cuh", text);
    write(folder / "girih/plain.cuh", "// plain\n");
    return std::system(fmt::format("cmake -DROOT={0} '-DFILES=girih/plain.cuh;girih/hostile.cuh' "
                                   "-DOUTPUT={0}/out.cpp -P {1}/tools/embed_templates.cmake "
                                   "> /dev/null 2>&1",
                                   folder.path().string(), source_dir().string())
                           .c_str());
  };

  const std::string hostile =
      "a;b;;[c;d] ]] [[ [=[ ]=] \\; \\\\ \\\n${x} $ENV{HOME} @x@ $<1:y> #[[ \"q\" 'q' %s\t)\" "
      "R\"(raw)\" \n\xc3\xa9 trailing blanks  \n\n;";
  REQUIRE(embed(hostile) == 0);
  const std::string code = support::read_file(folder / "out.cpp").value_or("");
  CHECK(contains(code, "{\"girih/hostile.cuh\", R\"girih(" + hostile + ")girih\"},\n"));
  CHECK(contains(code, "{\"girih/plain.cuh\", R\"girih(// plain\n)girih\"},\n"));

  CHECK(embed("ends )girih\" the literal") != 0);
  CHECK(embed(std::string(60'001, 'x')) != 0);
  CHECK(embed("a\r\n") != 0);  // CMake would turn it into "a\n"
}

TEST_CASE("a source reaches the templates it includes, directly or not, once each") {
  const auto names = names_of(reachable_templates("#include \"girih/shared/atoms.cuh\"\n", {}));
  CHECK(names == std::vector<std::string>{"girih/shared/atom.cuh", "girih/shared/atoms.cuh",
                                          "girih/shared/geometry.cuh",
                                          "girih/shared/input_atoms.cuh", "girih/shared/inputs.cuh",
                                          "girih/shared/platform.cuh", "girih/shared/slash.cuh",
                                          "girih/shared/token_numbers.cuh"});
  CHECK(reachable_templates("int x;\n", {}).empty());

  for (const TemplateFile& file : reachable_templates("#include \"girih/shared/atoms.cuh\"", {})) {
    CHECK(file.text == support::read_file(source_dir() / "templates" / file.name));
    CHECK(file.digest == support::digest(file.text));
  }
}

TEST_CASE("the closure does not depend on the order of includes and survives cycles") {
  const TemporaryFolder folder;
  write(folder / "girih/a.cuh", "#pragma once\n#include \"girih/b.cuh\"\n");
  write(folder / "girih/b.cuh", "#pragma once\n#include \"girih/c.cuh\"\n");
  write(folder / "girih/c.cuh", "#pragma once\n#include \"girih/a.cuh\"\n");
  const std::vector<std::string> all{"girih/a.cuh", "girih/b.cuh", "girih/c.cuh"};
  CHECK(names_of(reachable_templates("#include \"girih/b.cuh\"\n#include \"girih/a.cuh\"\n",
                                     folder.path())) == all);
  CHECK(names_of(reachable_templates("#include \"girih/a.cuh\"\n#include \"girih/b.cuh\"\n",
                                     folder.path())) == all);
}

TEST_CASE("includes are found however they are spaced, and not in comments") {
  const TemporaryFolder folder;
  for (const char* name : {"a", "b", "c", "d", "e", "f"})
    write(folder / (std::string("girih/") + name + ".cuh"), "// nothing\n");
  const std::string source =
      "// #include \"girih/missing.cuh\"\n"
      "/* #include \"girih/missing.cuh\"\n"
      "#include \"girih/missing.cuh\"\n"
      "*/ // this comment does not open another: /*\n"
      "#include \"girih/a.cuh\"  // include \"girih/missing.cuh\"\n"
      "  #  include\t<girih/b.cuh>\r\n"
      "int include; // \"girih/missing.cuh\"\n"
      "#include \"elsewhere/missing.cuh\"\n"
      "#include <cstdint>\n"
      "#include\"girih/c.cuh\" /* ends here */\n"
      "/* one */ /* two\n"
      "*/\n"
      "#if 0\n"
      "#include \"girih/d.cuh\"\n"
      "#endif\n"
      "#include \"girih/e.cuh\"";
  CHECK(names_of(reachable_templates(source, folder.path())) ==
        std::vector<std::string>{"girih/a.cuh", "girih/b.cuh", "girih/c.cuh", "girih/d.cuh",
                                 "girih/e.cuh"});
}

TEST_CASE("a template folder overrides single templates and their digests") {
  const TemporaryFolder folder;
  write(folder / "girih/shared/platform.cuh", "// mine\n");
  const std::string source = "#include \"girih/shared/inputs.cuh\"\n";
  const auto embedded = reachable_templates(source, {});
  const auto overridden = reachable_templates(source, folder.path());
  REQUIRE(embedded.size() == 2);
  REQUIRE(overridden.size() == 2);
  CHECK(overridden[0].digest == embedded[0].digest);
  CHECK(overridden[1].text == "// mine\n");
  CHECK(overridden[1].digest != embedded[1].digest);
}

TEST_CASE("missing templates and template folders are named") {
  const TemporaryFolder folder;
  const Error no_folder = error_of([&] { reachable_templates("", folder.path()); });
  CHECK(no_folder.code() == Errc::invalid_argument);
  CHECK(contains(no_folder.what(), folder.path().string()));

  write(folder / "girih/a.cuh", "#include \"girih/missing.cuh\"\n");
  const Error missing =
      error_of([&] { reachable_templates("#include \"girih/a.cuh\"\n", folder.path()); });
  CHECK(missing.code() == Errc::internal);
  CHECK(std::string(missing.what()) ==
        "there is no template \"girih/missing.cuh\", which girih/a.cuh includes");
}

TEST_CASE("a kernel becomes a cubin for every architecture from sm_80 to sm_120") {
  for (const char* arch : {"sm_80", "sm_89", "sm_90", "sm_90a", "sm_100", "sm_120"}) {
    CAPTURE(arch);
    const compiler::Output output = compiler::compile(request_for(arch, kScale));
    CHECK(output.cubin.substr(0, 4) ==
          "\x7f"
          "ELF");
    CHECK(contains(output.cubin, "scale"));
    CHECK(contains(output.ptx, fmt::format(".target {}\n", arch)));
    CHECK(output.version.starts_with("NVRTC 1"));
    CHECK(output.ms > 0);
    CHECK(output.resources.registers > 0);
    CHECK(output.resources.spill_bytes == 0);
    CHECK(output.resources.stack_bytes == 0);
    CHECK(output.resources.static_shared_bytes == 256);
    CHECK(compiler::performance_warnings(output.log).empty());
  }
}

TEST_CASE("the same source gives the same cubin") {
  CHECK(compiler::compile(request_for("sm_90", kScale)).cubin ==
        compiler::compile(request_for("sm_90", kScale)).cubin);
}

TEST_CASE("headers are given by name and text") {
  compiler::Request request = request_for(
      "sm_80",
      "#include \"girih/one.cuh\"\nextern \"C\" __global__ void f(int* x) { *x = two(); }");
  request.headers = {{"girih/one.cuh", "#include \"girih/two.cuh\"\n"},
                     {"girih/two.cuh", "__device__ int two() { return 0x12345; }\n"}};
  CHECK(contains(compiler::compile(request).ptx, "74565"));
}

TEST_CASE("several threads compile at once") {
  std::vector<std::string> ptx(4);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([&ptx, i] {
      const auto source =
          fmt::format("extern \"C\" __global__ void f(int* x) {{ *x = {}; }}", 7000 + i);
      ptx[static_cast<std::size_t>(i)] = compiler::compile(request_for("sm_80", source)).ptx;
    });
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i)
    CHECK(contains(ptx[static_cast<std::size_t>(i)], std::to_string(7000 + i)));
}

TEST_CASE("a compile error shows file, line and the source around it") {
  compiler::Request request = request_for("sm_80",
                                          "#include \"girih/bad.cuh\"\n"
                                          "// two lines above\n"
                                          "extern \"C\" __global__ void f(int* x) {\n"
                                          "  int y = ;\n"
                                          "  *x = y;\n"
                                          "}\n"
                                          "// too far\n");
  request.headers = {{"girih/bad.cuh", "__device__ int g() { return missing; }\n"}};
  const Error error = error_of([&] { compiler::compile(request); });
  const std::string message = error.what();
  CAPTURE(message);
  CHECK(error.code() == Errc::compile_failed);
  CHECK(contains(message, "could not compile girih.cu for sm_80"));
  CHECK(contains(message, "girih.cu(4): error: expected an expression"));
  CHECK(contains(message,
                 "\ngirih.cu:4\n"
                 "     2 | // two lines above\n"
                 "     3 | extern \"C\" __global__ void f(int* x) {\n"
                 ">    4 |   int y = ;\n"
                 "     5 |   *x = y;\n"
                 "     6 | }\n"));
  CHECK(contains(message, "\ngirih/bad.cuh:1\n>    1 | __device__ int g() { return missing; }\n"));
  CHECK(!contains(message, "too far\n"));
}

TEST_CASE("an error in inline PTX shows the PTX around it") {
  const Error error = error_of([] {
    compiler::compile(request_for(
        "sm_80", "extern \"C\" __global__ void f() { asm volatile(\"bogus.instr;\"); }"));
  });
  const std::string message = error.what();
  CAPTURE(message);
  CHECK(error.code() == Errc::compile_failed);
  CHECK(contains(message, "ptxas application ptx input, line"));
  CHECK(contains(message, " | \tbogus.instr;\n"));
}

TEST_CASE("an architecture that NVRTC does not know is named, with those it does") {
  for (const char* arch : {"sm_70", "sm_999", "sm_80a", "sm_", "90", "banana", ""}) {
    CAPTURE(arch);
    const Error error = error_of([&] { compiler::compile(request_for(arch, kScale)); });
    CHECK(error.code() == Errc::unsupported);
    CHECK(contains(error.what(), fmt::format("cannot compile for {}: it knows sm_", arch)));
    CHECK(contains(error.what(), "sm_80, "));
    CHECK(contains(error.what(), "sm_90"));
  }
}

TEST_CASE("an unknown option is reported and not ignored") {
  compiler::Request request = request_for("sm_80", kScale);
  request.options.push_back("--no-such-option");
  const Error error = error_of([&] { compiler::compile(request); });
  CHECK(error.code() == Errc::compile_failed);
  CHECK(contains(error.what(), "--no-such-option"));
}

TEST_CASE("an explicit NVRTC that is not there is an error and no reason to search") {
  const TemporaryFolder folder;
  write(folder / "libnvrtc.so.13", "not a library");
  for (const fs::path& path : {folder / "missing.so", folder / "libnvrtc.so.13", folder.path()}) {
    compiler::Request request = request_for("sm_80", kScale);
    request.nvrtc_path = path;
    const Error error = error_of([&] { compiler::compile(request); });
    CAPTURE(error.what());
    CHECK(error.code() == Errc::compile_failed);
    CHECK(contains(error.what(), "cannot be opened at " + path.string()));
    CHECK(contains(error.what(), "GIRIH_NVRTC"));
    std::string reason;
    CHECK(!compiler::find_library(path, &reason));
    CHECK(reason == error.what());
  }
}

TEST_CASE("a library that is not NVRTC is refused") {
  const auto libc = [] {  // by its path, wherever it is
    std::string maps = support::read_file("/proc/self/maps").value_or("");
    const std::size_t end = maps.find("libc.so.6") + 9;
    const std::size_t start = maps.rfind(' ', end) + 1;
    return maps.substr(start, end - start);
  }();
  std::string reason;
  CHECK(!compiler::find_library(libc, &reason));
  CHECK(contains(reason, libc + " is not an NVRTC that can be used: it has no nvrtcVersion"));
}

TEST_CASE("NVRTC is found, and found again by its path and by its folder") {
  const auto found = compiler::find_library({});
  REQUIRE(found);
  CHECK(found->path.is_absolute());
  const auto by_path = compiler::find_library(found->path);
  const auto by_folder = compiler::find_library(found->path.parent_path());
  REQUIRE(by_path);
  REQUIRE(by_folder);
  CHECK(by_path->path == found->path);
  CHECK(by_folder->path == found->path);
  CHECK(by_path->version == found->version);
}

TEST_CASE("process that compiles once" * doctest::skip()) {
  CHECK(!compiler::library_loaded());
  CHECK(!compiler::compile(request_for("sm_80", kScale)).cubin.empty());
  CHECK(compiler::library_loaded());
}

TEST_CASE("NVRTC is opened by the first compilation and not before") {
  CHECK(tests::run_test_case("process that compiles once", {}).status == 0);
}

TEST_CASE("resources are those of ptxas") {
  const compiler::Resources clean = compiler::compile(request_for("sm_80", kScale)).resources;
  const compiler::Resources spilled = compiler::compile(request_for("sm_80", kSpills)).resources;
  CHECK(spilled.registers == 32);
  CHECK(spilled.spill_bytes > 0);
  CHECK(spilled.stack_bytes > 0);
  CHECK(spilled.static_shared_bytes == 0);

  SUBCASE("of two kernels, the larger of each number") {
    const auto both = compiler::compile(request_for("sm_80", kScale + kSpills)).resources;
    CHECK(both.registers == std::max(clean.registers, spilled.registers));
    CHECK(both.spill_bytes == spilled.spill_bytes);
    CHECK(both.stack_bytes == spilled.stack_bytes);
    CHECK(both.static_shared_bytes == 256);
  }
}

TEST_CASE("a resource report is read to the number") {
  const compiler::Resources resources = compiler::parse_resources(
      "ptxas info    : 0 bytes gmem\n"
      "ptxas info    : Compiling entry function 'a' for 'sm_80'\n"
      "ptxas info    : Function properties for a\n"
      "ptxas         .     560 bytes stack frame, 1080 bytes spill stores, 1104 bytes spill loads\n"
      "ptxas info    : Used 32 registers, used 1 barriers, 592 bytes cumulative stack size, 256 "
      "bytes smem, 364 bytes cmem[0]\n"
      "ptxas info    : Compile time = 30.331 ms\n"
      "ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n"
      "ptxas info    : Used 168 registers, used 0 barriers, 128 bytes smem");
  CHECK(resources.registers == 168);
  CHECK(resources.spill_bytes == 2184);
  CHECK(resources.stack_bytes == 592);
  CHECK(resources.static_shared_bytes == 256);
  CHECK(compiler::parse_resources("").registers == 0);
}

TEST_CASE("ptxas' remarks about lost performance are found") {
  const compiler::Output output = compiler::compile(
      request_for("sm_90a",
                  "extern \"C\" __global__ void __launch_bounds__(128) f(int* x) {\n"
                  "  asm volatile(\"setmaxnreg.inc.sync.aligned.u32 232;\");\n"
                  "  *x = 1;\n"
                  "}\n"));
  const std::vector<std::string> warnings = compiler::performance_warnings(output.log);
  REQUIRE(warnings.size() == 1);
  CHECK(warnings[0].starts_with("(C7508) Potential Performance Loss: 'setmaxnreg' ignored"));
  CHECK(compiler::performance_warnings("x (C7510) a\nx (C7510) a\nx (C7511) b\n") ==
        std::vector<std::string>{"(C7510) a", "(C7511) b"});
}
