// The verbs that fill the cubin cache and look after it: warm and cache.
#include <signal.h>

#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "program.hpp"

using namespace girih::tests;

namespace {

// Names of the entries below a folder, and their contents but for how long they took to compile.
std::map<std::string, std::string> entries_below(const fs::path& folder) {
  std::map<std::string, std::string> entries;
  for (const auto& file : fs::recursive_directory_iterator(folder)) {
    if (file.path().extension() != ".girih") continue;
    const std::string bytes = read(file.path());
    entries[fs::relative(file.path(), folder).string()] = bytes.substr(bytes.find("\177ELF"));
  }
  return entries;
}

Json cache_entries(const Program& program) {
  return program.json({"cache", "ls"})["folders"][0]["entries"];
}

const Arguments kTwoKernels{"warm",       "--pattern", "causal", "--pattern", "causal & sink(4)",
                            "--head-dim", "64",        "--arch", "sm_80"};

}  // namespace

TEST_CASE("warm compiles a cross product once, and then finds all of it") {
  if (!nvrtc_found()) return;
  const Program program;
  const Arguments warm{"warm",
                       "--pattern",
                       "causal & sink(4)",
                       "--pattern",
                       "heads(0-1: causal, else: dense)",
                       "--heads",
                       "4",
                       "--head-dim",
                       "64",
                       "--dtype",
                       "bf16,fp16",
                       "--arch",
                       "sm_80,sm_90a,sm_90",
                       "--jobs",
                       "2"};
  const Json planned = program.json(warm + Arguments{"--dry-run"});
  CHECK(planned["specs"] == 12);
  CHECK(planned["miss"] == 8);  // kernels for sm_90a and sm_90 are the same
  CHECK(cache_entries(program).empty());

  const Result first = program.run(warm);
  CHECK(first.exit_code == 0);
  CHECK(contains(first.out, "12 specs: 8 kernels compiled, 0 were cached, 0 failed"));
  CHECK(count_of(first.err, "girih: warm: ") == 8);
  CHECK(contains(first.err, " 8/8 compiled "));
  CHECK(contains(first.err, "left"));
  CHECK(cache_entries(program).size() == 8);

  const Json again = program.json(warm);
  CHECK(again["compiled"] == 0);
  CHECK(again["hit"] == 8);
  CHECK(again["kernels"].size() == 8);
  CHECK(again["kernels"][0]["status"] == "hit");
  CHECK(again["kernels"][0]["compile_ms"] > 0);
}

TEST_CASE("two jobs warm the same cache as one, and one that is not needed is compiled once") {
  if (!nvrtc_found()) return;
  const Program program;
  std::vector<std::map<std::string, std::string>> caches;
  for (const char* jobs : {"1", "2"}) {
    const fs::path folder = program.folder() / jobs;
    // Other numbers in the same structure make no other kernel.
    const Json report =
        program.json(kTwoKernels + Arguments{"--pattern", "causal & sink(64)", "--jobs", jobs,
                                             "--cache-dir", folder.string()});
    CHECK(report["specs"] == 3);
    CHECK(report["compiled"] == 2);
    caches.push_back(entries_below(folder));
  }
  CHECK(caches[0].size() == 2);
  CHECK(caches[0] == caches[1]);
}

TEST_CASE("what warm made serves a process that may not compile") {
  if (!nvrtc_found()) return;
  Program program;
  CHECK(program.run(kTwoKernels).exit_code == 0);
  program.set("GIRIH_JIT", "off");
  program.set("GIRIH_NVRTC", "/nonexistent");
  CHECK(program.json({"compile", "causal", "--head-dim", "64", "--arch", "sm_80"})["cache_hit"] ==
        true);
  CHECK(program.json(kTwoKernels)["hit"] == 2);
}

TEST_CASE("warm compiles what merges partial results, alone or beside patterns") {
  if (!nvrtc_found()) return;
  const Program program;
  const Arguments combine{"warm", "--combine", "--arch", "sm_80,sm_90a"};
  const Json made = program.json(combine);
  CHECK(made["compiled"] == 2);
  CHECK(made["kernels"][1]["combine"] == true);
  CHECK(made["kernels"][1]["arch"] == "sm_90");  // Hopper's own instructions are of no use to it
  const Json more = program.json({"warm", "--combine", "--pattern", "causal", "--head-dim", "64",
                                  "--arch", "sm_80", "--dry-run"});
  CHECK(more["hit"] == 1);
  CHECK(more["miss"] == 1);
}

TEST_CASE("warm compiles what estimates columns, slashes and blocks for every type and width") {
  if (!nvrtc_found()) return;
  const Program program;
  const Json made = program.json(
      {"warm", "--estimate", "--arch", "sm_90a", "--head-dim", "64,128", "--dtype", "fp16"});
  CHECK(made["compiled"] == 4);
  CHECK(made["kernels"][0]["estimate"]["of"] == "columns and slashes");
  CHECK(made["kernels"][1]["estimate"]["of"] == "blocks");
  CHECK(made["kernels"][2]["estimate"]["head_dim"] == 128);
  CHECK(made["kernels"][2]["arch"] == "sm_90");
  CHECK(program.json({"warm", "--estimate", "--arch", "sm_90", "--dry-run"})["miss"] == 2);
}

TEST_CASE("warm reads JSON lines; what a line leaves out the options give") {
  const Program program;
  const fs::path file = program.folder() / "specs.jsonl";
  write(file,
        "# kernels of a model\n\n"
        "{\"pattern\": \"causal\"}\n"
        "{\"pattern\": [\"dense\", \"sink(2)\"], \"head_dim\": [64, 128], \"dtype\": \"fp16\", "
        "\"arch\": \"sm_90\"}\n"
        "  {\"pattern\": \"kv_heads(0: causal, else: dense)\", \"heads\": 8, \"kv_heads\": 2, "
        "\"block_n\": 32, \"head_offset\": 8, \"heads_total\": 16}\n");
  const Arguments warm{"warm", file.string(), "--arch", "sm_80", "--head-dim", "64", "--dry-run"};
  const Json report = program.json(warm);
  CHECK(report["specs"] == 6);
  CHECK(report["miss"] == 6);
  const Json& kernels = report["kernels"];
  CHECK(kernels[0]["pattern"] == "causal");
  CHECK(kernels[0]["arch"] == "sm_80");
  CHECK(kernels[0]["problem"]["head_dim"] == 64);
  CHECK(kernels[4]["pattern"] == "sink(2)");
  CHECK(kernels[4]["problem"]["head_dim"] == 128);
  CHECK(kernels[4]["problem"]["dtype"] == "fp16");
  CHECK(kernels[4]["arch"] == "sm_90a");
  CHECK(kernels[5]["problem"]["num_heads_kv"] == 2);
  CHECK(kernels[5]["problem"]["head_offset"] == 8);
  CHECK(kernels[5]["problem"]["num_heads_total"] == 16);

  const Result piped =
      program.run({"warm", "-", "--arch", "sm_80", "--dry-run", "--json"}, read(file));
  CHECK(Json::parse(piped.out)["specs"] == 6);
}

TEST_CASE("warm does what it can and lists what it cannot") {
  if (!nvrtc_found()) return;
  const Program program;
  const Arguments warm{"warm",  "--pattern", "causal",     "--head-dim",
                       "64,17", "--arch",    "sm_80,sm_70"};
  const Result result = program.run(warm);
  CHECK(result.exit_code == 3);  // all failures are of this kind
  CHECK(contains(result.out, "head_dim 17"));
  CHECK(contains(result.out, "sm_70 is not supported"));
  CHECK(contains(result.out, "4 specs: 1 kernels compiled, 0 were cached, 3 failed"));
  const Json report = program.json(warm, 3);
  CHECK(report["failed"] == 3);
  CHECK(report["hit"] == 1);
  CHECK(report["kernels"][3]["error"]["code"] == "unsupported");

  Program without;
  without.set("GIRIH_NVRTC", "/nonexistent");
  CHECK(without.json(warm, 1)["failed"] == 4);  // of two kinds
}

TEST_CASE("a kernel that cannot be written to the cache is not warmed") {
  if (!nvrtc_found()) return;
  const Program program;
  write(program.folder() / "file", "");
  const fs::path folder = program.folder() / "file" / "cache";
  const Json report = program.json(
      {"warm", "--pattern", "causal", "--arch", "sm_80", "--cache-dir", folder.string()}, 1);
  CHECK(report["failed"] == 1);
  CHECK(report["kernels"][0]["error"]["code"] == "cache_io");
}

TEST_CASE("an interrupted warm publishes what it began and goes on where it ended") {
  if (!nvrtc_found()) return;
  const Program program;
  Arguments warm{"warm",   "--head-dim",  "64",     "--dtype", "bf16,fp16",
                 "--arch", "sm_80,sm_90", "--jobs", "1"};
  const pid_t child = program.start(warm + Arguments{"--pattern", "causal"});
  for (int i = 0; i < 3000 && !contains(program.errors_so_far(), " 1/4 "); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  ::kill(child, SIGINT);
  const Result result = program.end(child);
  CHECK(result.exit_code == 130);
  CHECK(contains(result.err, "the same command goes on from here"));
  const Json left = program.json(warm + Arguments{"--pattern", "causal", "--dry-run"});
  CHECK(left["hit"] >= 1);
  CHECK(left["miss"] >= 1);
  CHECK(program.json({"cache", "verify"})["checked"] == left["hit"]);
  const Json rest = program.json(warm + Arguments{"--pattern", "causal"});
  CHECK(rest["hit"] == left["hit"]);
  CHECK(rest["compiled"] == left["miss"]);
}

TEST_CASE("warm goes on behind a line that it does not understand, and fails in the end") {
  const Program program;
  const fs::path file = program.folder() / "specs.jsonl";
  write(file,
        "{\"pattern\": \"causal\"}\n{\"patern\": \"causal\"}\nnonsense\n"
        "{\"pattern\": [\"dense\", \"sunk(1)\"]}\n{\"pattern\": \"sink(4)\"}\n");
  const Arguments warm{"warm", file.string(), "--arch", "sm_80", "--dry-run"};
  const Json report = program.json(warm, 2);
  CHECK(report["specs"] == 2);  // a line counts whole or not at all
  CHECK(report["miss"] == 2);
  CHECK(report["failed"] == 0);
  CHECK(report["kernels"][1]["line"] == file.string() + ":5");
  CHECK(report["bad_lines"].size() == 3);
  CHECK(report["bad_lines"][0]["line"] == file.string() + ":2");
  CHECK(report["bad_lines"][0]["error"]["code"] == "invalid_argument");
  const Result result = program.run(warm);
  CHECK(result.exit_code == 2);
  CHECK(contains(result.err, "girih: error: " + file.string() + ":2: 'patern' is not known"));
  CHECK(contains(result.err, "girih: error: " + file.string() +
                                 ":3: a line must be one JSON object: parse error at "));
  CHECK(contains(result.out, "failed  " + file.string() + ":4\n"));
  CHECK(contains(result.out, "0 impossible, 3 lines not understood; "));

  // With failures of another kind, which name their lines as well.
  write(file, "{}\n{\"pattern\": \"causal\", \"head_dim\": 17}\n");
  const Result mixed = program.run(warm);
  CHECK(mixed.exit_code == 1);
  CHECK(contains(mixed.out, "failed  " + file.string() + ":2: sm_80 bf16, head_dim 17"));
  CHECK(contains(mixed.out, "1 impossible, 1 lines not understood; "));
}

TEST_CASE("warm says what is wrong with a line") {
  const Program program;
  const fs::path file = program.folder() / "specs.jsonl";
  const auto refused = [&](const std::string& text, std::vector<std::string> parts) {
    write(file, text);
    const Result result = program.run({"warm", file.string(), "--arch", "sm_80"});
    CHECK(result.exit_code == 2);
    for (std::string& part : parts) {
      if (part.starts_with("line ")) part = file.string() + ":" + part.substr(5) + ": ";
      INFO(result.err, "expected: ", part);
      CHECK(contains(result.err, part));
    }
  };
  const auto refused_whole = [&](const std::string& text, const std::vector<std::string>& parts) {
    write(file, text);
    check_refused({"warm", file.string(), "--arch", "sm_80"}, 2, "invalid_argument", parts,
                  program);
  };
  refused("{}", {"line 1", "no \"pattern\""});
  refused("[1]", {"line 1", "no JSON object"});
  refused("{\"pattern\": \"causal\"", {"line 1"});
  refused("{\"pattern\": \"sunk(1)\"}", {"line 1", "sunk"});
  refused("{\"pattern\": \"-\"}", {"line 1", "not stdin"});
  for (const std::string bad : {"\"wide\"", "64.9", "4294967360", "true", "[64, 64.5]", "null",
                                "18446744073709551615", "1e300"}) {
    refused("{\"pattern\": \"causal\", \"head_dim\": " + bad + "}",
            {"line 1", "head_dim ", "must be a whole number from "});
  }
  refused("{\"pattern\": \"causal\", \"head_dim\": []}", {"head_dim is an empty list"});
  refused("{\"pattern\": \"causal\", \"block_m\": 64.5}", {"block_m 64.5 must be"});
  refused("{\"pattern\": \"causal\", \"heads\": \"8\"}", {"heads \"8\" must be"});
  refused("{\"pattern\": \"causal\", \"portable\": 1}", {"portable 1 must be true or false"});
  refused("{\"pattern\": 7}", {"pattern 7 must be a text"});
  refused("{\"pattern\": \"causal\", \"arch\": [80]}", {"arch 80 must be a text"});
  refused("{\"pattern\": \"causal\", \"dtype\": \"fp8\"}", {"line 1", "fp8"});
  refused("{\"pattern\": \"heads(0: causal, else: dense)\"}", {"line 1", "--heads"});
  check_refused({"warm", "--arch", "sm_80"}, 2, "invalid_argument", {"FILE", "--pattern"});
  refused_whole("", {file.string(), "names no kernels"});
  refused_whole("# none\n\n", {file.string(), "names no kernels"});
  check_refused({"warm", "/nonexistent"}, 2, "invalid_argument",
                {"/nonexistent", "No such file or directory"});
  check_refused({"warm", "/"}, 2, "invalid_argument", {"'/'", "Is a directory"});
  check_refused({"warm", "-"}, 2, "invalid_argument", {"'-' names no kernels"});
  check_refused(kTwoKernels + Arguments{"--jobs", "0"}, 2, "invalid_argument", {"--jobs 0"});
}

TEST_CASE("cache lists, checks, repairs and prunes") {
  if (!nvrtc_found()) return;
  const Program program;
  const std::string folder = (program.folder() / "cache").string();
  CHECK(program.run({"cache", "path"}).out == folder + "\n");
  CHECK(contains(program.run({"cache", "ls"}).out, folder + ": 0 kernels"));
  CHECK(program.run({"cache", "verify"}).exit_code == 0);

  CHECK(program.run(kTwoKernels).exit_code == 0);
  const Json entries = cache_entries(program);
  REQUIRE(entries.size() == 2);
  std::set<std::string> patterns;
  for (const Json& entry : entries) {
    patterns.insert(entry["pattern"]);
    CHECK(entry["arch"] == "sm_80");
    CHECK(entry["compile_ms"] > 0);
    CHECK(entry["bytes"] == fs::file_size(entry["path"].get<std::string>()));
    CHECK(entry["seconds_since_use"] < 600);
  }
  CHECK(patterns == std::set<std::string>{"causal", "causal & sink(4)"});
  const std::string table = program.run({"cache", "ls"}).out;
  CHECK(contains(table, entries[0]["key"]));
  CHECK(contains(table, ": 2 kernels"));

  const std::string victim = entries[0]["path"];
  std::string bytes = read(victim);
  bytes[bytes.size() / 2] ^= 1;
  write(victim, bytes);
  const Json report = program.json({"cache", "verify"}, 1);
  CHECK(report["checked"] == 2);
  CHECK(report["damaged"].size() == 1);
  CHECK(report["damaged"][0]["path"] == victim);
  CHECK(contains(report["damaged"][0]["problem"], "checksum"));
  CHECK(report["damaged"][0]["put_aside"] == false);
  CHECK(contains(program.run({"cache", "ls"}).out, "DAMAGED"));
  CHECK(program.json({"cache", "verify", "--repair"}, 1)["damaged"][0]["put_aside"] == true);
  CHECK(program.json({"cache", "verify"})["checked"] == 1);
  CHECK(fs::exists(victim + ".bad"));

  const Json planned = program.json({"cache", "prune", "--all", "--dry-run"});
  CHECK(planned["removed"] == 1);
  CHECK(cache_entries(program).size() == 1);
  const Json kept = program.json({"cache", "prune", "--max-bytes", "1GB"});
  CHECK(kept["removed"] == 0);
  CHECK(kept["put_aside_removed"] == 1);
  CHECK(program.json({"cache", "prune", "--older-than", "1"})["kept"] == 1);
  CHECK(program.json({"cache", "prune", "--max-bytes", "100"})["removed"] == 1);
  CHECK(cache_entries(program).empty());
}

TEST_CASE("cache looks only into folders that are there, where they are named") {
  const Program program;
  write(program.folder() / "file", "");
  const std::string file = (program.folder() / "file").string();
  const std::string none = (program.folder() / "none").string();
  const std::vector<Arguments> verbs{
      {"cache", "ls"}, {"cache", "verify"}, {"cache", "prune", "--all"}};
  for (const Arguments& verb : verbs) {
    for (const std::string option : {"--cache-dir", "--cache-layer"}) {
      check_refused(verb + Arguments{option, none}, 2, "invalid_argument",
                    {option + " '" + none + "' does not exist"}, program);
      check_refused(verb + Arguments{option, file}, 2, "invalid_argument",
                    {option + " '" + file + "' is not a folder"}, program);
    }
    CHECK(program.run(verb).exit_code == 0);  // a cache that is not made yet
    Program other;
    other.set("GIRIH_CACHE_DIR", file);
    check_refused(verb, 1, "cache_io", {file, "it is not a folder"}, other);
  }
}

TEST_CASE("a cache layer that is named is to be there, whatever reads it") {
  const Program program;
  write(program.folder() / "file", "");
  const std::string file = (program.folder() / "file").string();
  const std::string none = (program.folder() / "none").string();
  const std::vector<Arguments> verbs{
      {"compile", "causal"}, {"explain", "causal"}, {"warm", "causal", "--dry-run"}};
  for (const Arguments& verb : verbs) {
    check_refused(verb + Arguments{"--arch", "sm_80", "--cache-layer", none}, 2, "invalid_argument",
                  {"--cache-layer '" + none + "' does not exist"}, program);
    check_refused(verb + Arguments{"--arch", "sm_80", "--cache-layer", file}, 2, "invalid_argument",
                  {"--cache-layer '" + file + "' is not a folder"}, program);
  }
}

TEST_CASE("cache refuses to guess") {
  check_refused({"cache", "prune"}, 2, "invalid_argument",
                {"--max-bytes", "--older-than", "--all"});
  check_refused({"cache", "prune", "--older-than", "-1"}, 2, "invalid_argument",
                {"--older-than -1"});
  check_refused({"cache"}, 2, "invalid_argument", {});
  const Program program;
  fs::create_directory(program.folder() / "cache");
  fs::create_directory(program.folder() / "cache" / "v1");
  fs::permissions(program.folder() / "cache", fs::perms::all);
  fs::create_directories(program.folder() / "cache" / "v1" / "sm_80" / "00");
  write(program.folder() / "cache" / "v1" / "sm_80" / "00" / (std::string(30, '0') + ".girih"), "");
  check_refused({"cache", "ls"}, 1, "cache_io", {"everyone can write to it"}, program);
}
