// The program as a process: what it prints, and how it ends when the input or the machine is bad.
#include <sys/resource.h>

#include "program.hpp"

using namespace girih::tests;

namespace {

const std::vector<std::string> kCompile{"compile", "causal", "--arch", "sm_80"};

}  // namespace

TEST_CASE("program: show counts what is visible, over all heads") {
  const Program program;
  CHECK(program.json({"show", "causal", "--seqlen-q", "4", "--seqlen-k", "4"})["density"] == 0.625);
  const Json two = program.json(
      {"show", "heads(0: causal, 1: dense)", "--heads", "2", "--seqlen-q", "4", "--seqlen-k", "4"});
  CHECK(two["density"] == 0.8125);
  CHECK(two["classes"][0]["density"] == 0.625);
  CHECK(two["classes"][0]["heads"] == "0");
  CHECK(two["classes"][1]["visible"] == 16);
  CHECK(two["pattern"] == "heads(0: causal, 1: dense)");
  CHECK(program.json({"show", "causal", "--seqlen-q", "0"})["density"] == 0);
}

TEST_CASE("program: show counts the tiles that a kernel visits") {
  const Json tiles = Program().json({"show", "causal", "--seqlen-q", "4096", "--seqlen-k", "4096",
                                     "--block-m", "128", "--block-n", "64"})["classes"][0]["tiles"];
  // Query tile i sees 2 i whole tiles and crosses the diagonal in two.
  CHECK(tiles["full"] == 992);
  CHECK(tiles["partial"] == 64);
  CHECK(tiles["empty"] == 992);
}

TEST_CASE("program: show draws each class and names its heads") {
  const Result result =
      Program().run({"show", "kv_heads(0: causal, else: causal & sink(64))", "--heads", "8",
                     "--kv-heads", "2", "--seqlen-q", "256", "--seqlen-k", "256"});
  CHECK(result.exit_code == 0);
  CHECK(contains(result.out, "heads 0-3: causal\n"));
  CHECK(contains(result.out, "heads 4-7: causal & sink(64)\n"));
  CHECK(contains(result.out, "#"));
  CHECK(contains(result.out, "density"));
}

TEST_CASE("program: show groups the heads that see the same") {
  const Program program;
  const std::string pattern = "causal & strided(local=1, stride=3, block=16, dense_heads=1)";
  const Json report =
      program.json({"show", pattern, "--heads", "8", "--seqlen-q", "256", "--seqlen-k", "256"});
  std::vector<std::string> heads;
  for (const Json& group : report["classes"]) heads.push_back(group["heads"]);
  CHECK(heads == std::vector<std::string>{"0+3+6", "1+4", "2+5", "7"});
  CHECK(report["classes"][0]["visible"] != report["classes"][1]["visible"]);

  // The same heads on the second of two ranks, by their numbers in the model.
  const Json rank = program.json({"show", pattern, "--heads", "4", "--head-offset", "4",
                                  "--heads-total", "8", "--seqlen-q", "256", "--seqlen-k", "256"});
  REQUIRE(rank["classes"].size() == 4);
  CHECK(rank["classes"][0]["heads"] == "4");
  CHECK(rank["classes"][0]["picture"] == report["classes"][1]["picture"]);
  CHECK(rank["classes"][2]["heads"] == "6");
  CHECK(rank["classes"][2]["picture"] == report["classes"][0]["picture"]);
  CHECK(rank["classes"][3]["visible"] == 256 * 257 / 2);

  check_refused({"show", "causal", "--heads", "4", "--head-offset", "2"}, 2, "invalid_argument",
                {"head_offset 2"});
  check_refused(kCompile + std::vector<std::string>{"--heads", "4", "--heads-total", "2"}, 2,
                "invalid_argument", {"num_heads_total 2"});
}

TEST_CASE("program: explain names a neighborhood's bricks and counts their tiles") {
  const Program program;
  const std::vector<std::string> arguments = {
      "explain", "neighborhood(256x256, window=80)", "--arch", "sm_90a", "--heads", "2"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), arguments.begin(), arguments.end());
    return more;
  };
  const Json report = program.json(with({"--seqlen-q", "65536"}));
  CHECK(report["bricks"] == Json{{"queries", "24x8"}, {"keys", "8x8"}, {"dilation", "1x1"}});
  const std::int64_t full = report["tiles"]["full"], partial = report["tiles"]["partial"];
  CHECK(full + partial + report["tiles"]["empty"].get<std::int64_t>() == 2 * 352 * 1024);
  CHECK(report["tiles"]["visible_of_computed"].get<double>() ==
        doctest::Approx(1 / 1.322).epsilon(0.001));
  // Behind the grid 200 keys: for each of 352 bricks three whole tiles and a part of one.
  const Json more = program.json(with({"--seqlen-q", "65536", "--seqlen-k", "65736"}));
  CHECK(more["tiles"]["full"] == full + 2 * 352 * 3);
  CHECK(more["tiles"]["partial"] == partial + 2 * 352);
  CHECK(program.run(with({})).out.find(
            "bricks of the grid: 24x8 queries, 8x8 keys, dilation 1x1\n") != std::string::npos);
  const Json dilated = program.json(
      {"explain", "neighborhood(256x128, window=40, dilation=(2, 3))", "--arch", "sm_90a"});
  CHECK(dilated["bricks"]["dilation"] == "2x3");
  CHECK_FALSE(program.json(with({"--portable"})).contains("bricks"));
}

TEST_CASE("program: show takes a neighborhood's lengths from its grid") {
  const Program program;
  const std::string pattern = "neighborhood(6x8, window=3)";
  const Json report = program.json({"show", pattern});
  CHECK(report["seqlen_q"] == 48);
  CHECK(report["seqlen_k"] == 48);
  CHECK(report["classes"][0]["visible"] == 48 * 9);
  CHECK(program.json({"show", pattern, "--seqlen-k", "50"})["classes"][0]["visible"] == 48 * 11);
  check_refused({"show", pattern, "--seqlen-q", "47"}, 2, "invalid_argument",
                {"seqlen_q 47 does not go with neighborhood(6x8)", "48 tokens"});
  check_refused({"explain", pattern, "--arch", "sm_80", "--seqlen-q", "48", "--seqlen-k", "40"}, 2,
                "invalid_argument", {"seqlen_k 40 does not go with neighborhood(6x8)"});
}

TEST_CASE("program: a pattern comes from an argument, a file or stdin") {
  const Program program;
  const fs::path file = program.folder() / "p.girih";
  write(file, "# a comment, not a pattern\n  causal &\n\n  sink(4)\n");
  for (const std::string& argument : {file.string(), "@" + file.string()}) {
    CHECK(program.json({"show", argument})["pattern"] == "causal & sink(4)");
  }
  const Result piped = program.run({"show", "-", "--json"}, "dense\n");
  CHECK(Json::parse(piped.out)["pattern"] == "dense");
  check_refused({"show", "@/nonexistent"}, 2, "invalid_argument", {"/nonexistent"});
  for (const std::string none : {"nope.girih", "a/b", "./no pe", "/nonexistent"}) {
    check_refused({"show", none}, 2, "invalid_argument", {"there is no file '" + none + "'"});
  }
  const std::string folder = program.folder().path().string();
  check_refused({"show", folder}, 2, "invalid_argument", {"'" + folder + "' is a folder"});
  write(file, " # nothing\n");
  check_refused({"show", file.string()}, 2, "invalid_argument",
                {"there is no pattern in '" + file.string() + "'"});
  check_refused({"show", "expr(\"k / 2 <\")"}, 2, "invalid_argument", {"^"});

  // Text that is a pattern is no file's name.
  const fs::path here = fs::current_path();
  write(program.folder() / "causal", "dense");
  write(program.folder() / "streaming", "causal & sink(4)");
  fs::current_path(folder);
  const Result text = program.run({"show", "causal", "--json"});
  const Result named = program.run({"show", "@causal", "--json"});
  const Result path = program.run({"show", "streaming", "--json"});
  fs::current_path(here);
  for (const Result& result : {text, named, path}) CHECK(result.exit_code == 0);
  CHECK(Json::parse(text.out)["pattern"] == "causal");
  CHECK(Json::parse(named.out)["pattern"] == "dense");
  CHECK(Json::parse(path.out)["pattern"] == "causal & sink(4)");

  // A comment ends with its line, wherever it begins; messages count a file's own lines.
  write(file, "causal   # decoders\r\n# all\n& window(left=3)  # near\n");
  CHECK(program.json({"show", file.string()})["pattern"] == "causal & window(left=3)");
  write(file, "causal & expr(\"k < 9\n  # of both\n  && q < 9\")\n");
  CHECK(program.json({"show", file.string()})["pattern"] == "causal & expr(\"k < 9 && q < 9\")");
  write(file, "# one\ncausal  # two\n  & sunk(4)\n");
  check_refused({"show", file.string()}, 2, "invalid_argument", {"3:5: ", "sunk", "^"});
}

TEST_CASE("program: env reports versions, folders and every variable") {
  Program program;
  program.set("GIRIH_LOG", "info");
  const Json report = program.json({"env"});
  CHECK(report["version"].is_string());
  CHECK(report["cache"]["directory"] == (program.folder() / "cache").string());
  CHECK(report["cache"]["writable"] == true);
  CHECK(report["driver"]["devices"].is_array());
  bool log_seen = false;
  for (const Json& variable : report["variables"]) {
    CHECK(!variable["meaning"].get<std::string>().empty());
    if (variable["name"] == "GIRIH_LOG") log_seen = variable["value"] == "info";
  }
  CHECK(log_seen);
  const Result text = program.run({"env"});
  CHECK(text.exit_code == 0);
  CHECK(contains(text.out, "GIRIH_CACHE_DIR"));
}

TEST_CASE("program: env says why the cache's folder is not used") {
  Program program;
  const fs::path folder = program.folder() / "cache";
  fs::create_directory(folder);
  fs::permissions(folder, fs::perms::owner_all | fs::perms::group_all);
  CHECK(program.json({"env"})["cache"]["writable"] == true);  // it was named
  CHECK_FALSE(program.json({"env"})["cache"].contains("reason"));
  fs::permissions(folder, fs::perms::all);
  const Json cache = program.json({"env"})["cache"];
  CHECK(cache["writable"] == false);
  CHECK(contains(cache["reason"], "everyone can write to it (chmod o-w)"));
  CHECK(contains(program.run({"env"}).out, "everyone can write to it (chmod o-w)"));

  // The per-user folder, which nobody names, is trusted less.
  program.set("GIRIH_CACHE_DIR", "");
  program.set("XDG_CACHE_HOME", folder.string());
  fs::permissions(folder, fs::perms::owner_all);
  fs::create_directory(folder / "girih");
  fs::permissions(folder / "girih", fs::perms::owner_all | fs::perms::group_all);
  CHECK(contains(program.json({"env"})["cache"]["reason"], "its group can write to it"));
}

TEST_CASE("program: compile writes what it made and reports its resources") {
  if (!nvrtc_found()) return;
  const Program program;
  const fs::path cubin = program.folder() / "kernel.cubin";
  const Json report = program.json({"compile", "causal & (sink(64) | window(left=255))",
                                    "--head-dim", "128", "--dtype", "bf16", "--heads", "32",
                                    "--kv-heads", "8", "--arch", "sm_90a", "-o", cubin.string()});
  CHECK(report["arch"].get<std::string>().starts_with("sm_90"));
  CHECK(report["registers"] > 0);
  CHECK(report["spill_bytes"] == 0);
  CHECK(report["stack_bytes"] == 0);
  CHECK(report["shared_bytes"] > 0);
  CHECK(report["compile_ms"] > 0);
  CHECK(report["cache_hit"] == false);
  CHECK(report["warnings"].empty());
  const std::string bytes = read(cubin);
  CHECK(bytes.starts_with("\177ELF"));
  CHECK(report["bytes"] == bytes.size());

  const Result ptx = program.run(kCompile + std::vector<std::string>{"--emit", "ptx"});
  CHECK(contains(ptx.out, ".target sm_80"));
  const Result source = program.run({"source", "causal", "--arch", "sm_80"});
  CHECK(contains(source.out, "extern \"C\""));
  CHECK(program.run(kCompile + std::vector<std::string>{"--emit", "source"}).out == source.out);
}

TEST_CASE("program: a second process finds the kernel without NVRTC") {
  if (!nvrtc_found()) return;
  Program program;
  CHECK(program.json(kCompile)["cache_hit"] == false);
  program.set("GIRIH_NVRTC", "/nonexistent");
  const Json second = program.json(kCompile);
  CHECK(second["cache_hit"] == true);
  CHECK(second["registers"] > 0);
}

TEST_CASE("program: without NVRTC and with an empty cache nothing can be compiled") {
  Program program;
  program.set("GIRIH_NVRTC", "/nonexistent");
  check_refused(kCompile, 4, "compile_failed", {"/nonexistent"}, program);
}

TEST_CASE("program: a miss while compiling is off says so") {
  Program program;
  program.set("GIRIH_JIT", "off");
  check_refused(kCompile, 6, "jit_disabled", {"GIRIH_JIT"}, program);
}

TEST_CASE("program: a missing cache folder is made") {
  if (!nvrtc_found()) return;
  const Program program;
  const fs::path folder = program.folder() / "a" / "b";
  const std::vector<std::string> arguments =
      kCompile + std::vector<std::string>{"--cache-dir", folder.string()};
  CHECK(program.json(arguments)["cache_hit"] == false);
  CHECK(fs::is_directory(folder));
  CHECK(program.json(arguments)["cache_hit"] == true);
}

TEST_CASE("program: an unwritable cache folder costs a warning, not the kernel") {
  if (!nvrtc_found()) return;
  const Program program;
  write(program.folder() / "file", "");  // below a file no folder can be made, not even by root
  const fs::path folder = program.folder() / "file" / "cache";
  const Result result =
      program.run(kCompile + std::vector<std::string>{"--cache-dir", folder.string()});
  CHECK(result.exit_code == 0);
  CHECK(contains(result.err, "warning"));
  CHECK(contains(result.err, folder.string()));
}

TEST_CASE("program: an unknown GIRIH_ variable is warned about once") {
  Program program;
  program.set("GIRIH_CASHE_DIR", "/tmp");
  const Result result = program.run({"source", "causal", "--arch", "sm_80"});
  CHECK(result.exit_code == 0);
  const std::size_t first = result.err.find("GIRIH_CASHE_DIR");
  REQUIRE(first != std::string::npos);
  CHECK(result.err.find("GIRIH_CASHE_DIR", first + 1) == std::string::npos);
  CHECK(contains(result.err, "GIRIH_CACHE_DIR"));
}

TEST_CASE("program: wrong usage") {
  const Program program;
  CHECK(program.run({"--help"}).exit_code == 0);
  CHECK(contains(program.run({"--version"}).out, "girih "));
  check_refused({"show"}, 2, "invalid_argument", {"PATTERN"});
  check_refused({"expalin", "causal"}, 2, "invalid_argument",
                {"'expalin' is no verb; did you mean explain?"});
  check_refused({"cache", "lst"}, 2, "invalid_argument", {"'lst' is no verb; did you mean ls?"});
  check_refused({"explain", "causal", "--arch", "sm_80", "--seqlen-k", "-1"}, 2, "invalid_argument",
                {"--seqlen-k -1"});
  check_refused({"show", "causal", "--colour"}, 2, "invalid_argument", {"--colour"});
  check_refused({"show", "causal", "--seqlen-q", "-1"}, 2, "invalid_argument", {"-1"});
  check_refused({"show", "causal", "--block-n", "0"}, 2, "invalid_argument", {"--block-n 0"});
  check_refused(kCompile + std::vector<std::string>{"--dtype", "fp8"}, 2, "invalid_argument",
                {"fp8", "bf16"});
  check_refused(kCompile + std::vector<std::string>{"--jit", "maybe"}, 2, "invalid_argument",
                {"maybe", "off"});
  if (!nvrtc_found()) return;
  check_refused(kCompile + std::vector<std::string>{"-o", "/nonexistent/file"}, 2,
                "invalid_argument", {"/nonexistent/file"});
}

TEST_CASE("program: a message that cannot be written changes no exit code") {
  Program program;
  program.send_errors_to("/dev/full");
  CHECK(program.run({"show", "causl"}).exit_code == 2);
  CHECK(program.run({"show"}).exit_code == 2);
  CHECK(program.json({"show", "causl"}, 2)["error"]["code"] == "invalid_argument");
  program.set("GIRIH_CASHE_DIR", "/tmp");
  CHECK(program.run({"show", "causal"}).exit_code == 0);
}

TEST_CASE("program: a result is written whole or not at all, and errors have their reasons") {
  const Program program;
  const fs::path svg = program.folder() / "a.svg";
  const auto show = [](const std::string& file) {
    return Arguments{"show", "causal", "--seqlen-q", "64", "--seqlen-k", "64", "--svg", file};
  };
  check_refused(show("/dev/full"), 2, "invalid_argument", {"/dev/full", "No space left on device"});
  check_refused(show(program.folder().path().string()), 2, "invalid_argument", {"Is a directory"});

  write(svg, "old");
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 600;  // more than the message has, and less than the picture
  setrlimit(RLIMIT_FSIZE, &small);
  const Result result = program.run(show(svg.string()));
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(result.exit_code == 2);
  CHECK(contains(result.err, "File too large"));
  CHECK(read(svg) == "old");

  fs::create_symlink("a.svg", program.folder() / "link");
  CHECK(program.run(show((program.folder() / "link").string())).exit_code == 0);
  CHECK(fs::is_symlink(program.folder() / "link"));
  CHECK(contains(read(svg), "</svg>"));
  CHECK(contains(program.run(show("/dev/null")).out, "density"));
}

TEST_CASE("program: numbers are whole texts, read in tens, and refused by name") {
  const Program program;
  const auto refused = [&](const Arguments& arguments, const std::vector<std::string>& parts) {
    check_refused(arguments, 2, "invalid_argument", parts, program);
  };
  const Arguments show{"show", "causal", "--seqlen-k", "16"};
  for (const std::string bad : {"", " 4", "4 ", "0x10", "1e3", "4.5", "four", "+4"}) {
    refused(show + Arguments{"--seqlen-q", bad},
            {"--seqlen-q: '" + bad + "' is no whole number", "2147483647"});
  }
  refused(show + Arguments{"--seqlen-q", "4294967300"},
          {"--seqlen-q: '4294967300' is out of range: give -2147483648 to 2147483647"});
  refused(show + Arguments{"--heads", ""}, {"--heads: '' is no whole number"});
  refused(show + Arguments{"--seed", "-1"}, {"--seed: '-1'", "0 to 18446744073709551615"});
  refused(kCompile + Arguments{"--block-m", ""}, {"--block-m: ''"});
  refused({"warm", "--pattern", "causal", "--arch", "sm_80", "--head-dim", "64,x", "--dry-run"},
          {"--head-dim: 'x' is no whole number"});
  refused({"calibrate", "causal", "--q", "q", "--k", "k", "--kept-tiles", "2", "-o", "x",
           "--softmax-scale", "1,5"},
          {"--softmax-scale: '1,5' is no number"});
  refused({"cache", "prune", "--max-bytes", "-1"}, {"--max-bytes: '-1' is no size", "500MB"});
  refused({"cache", "prune", "--max-bytes", ""}, {"--max-bytes: '' is no size"});
  refused({"cache", "prune", "--older-than", ""}, {"--older-than: '' is no number"});
  CHECK(program.json(show + Arguments{"--seqlen-q", "010"})["seqlen_q"] == 10);
  CHECK(program.run({"cache", "prune", "--max-bytes", "09MB"}).exit_code == 0);
  CHECK(program.json({"warm", "--pattern", "causal", "--arch", "sm_80", "--head-dim", "064,128",
                      "--dry-run"})["kernels"][0]["problem"]["head_dim"] == 64);
}

TEST_CASE("program: patterns that are not patterns") {
  check_refused({"show", "causal & sunk(4)"}, 2, "invalid_argument", {"sunk", "^"});
  check_refused({"show", "causal & (sink(4)"}, 2, "invalid_argument", {")", "^"});
  check_refused({"show", ""}, 2, "invalid_argument", {});
}

TEST_CASE("program: heads covered never, twice, or not countable") {
  check_refused({"show", "heads(0-2: causal)", "--heads", "4"}, 2, "invalid_argument", {"head 3"});
  check_refused({"show", "heads(0-2: causal, 2-3: dense)", "--heads", "4"}, 2, "invalid_argument",
                {"head 2"});
  check_refused({"show", "heads(0-2: causal, else: dense)"}, 2, "invalid_argument", {"--heads"});
  check_refused({"show", "causal", "--heads", "6", "--kv-heads", "4"}, 2, "invalid_argument",
                {"6", "4"});
  check_refused(kCompile + std::vector<std::string>{"--heads", "6", "--kv-heads", "4"}, 2,
                "invalid_argument", {"6", "4"});
  check_refused({"show", "causal", "--heads", "0"}, 2, "invalid_argument", {"0"});
}

TEST_CASE("program: head dims without a kernel") {
  check_refused(kCompile + std::vector<std::string>{"--head-dim", "0"}, 2, "invalid_argument",
                {"head_dim 0"});
  for (const std::string head_dim : {"17", "512"}) {
    check_refused(kCompile + std::vector<std::string>{"--head-dim", head_dim}, 3, "unsupported",
                  {"head_dim " + head_dim, "16", "256"});
  }
}

TEST_CASE("program: architectures without a kernel") {
  check_refused({"compile", "causal", "--arch", "foo"}, 2, "invalid_argument", {"foo"});
  check_refused({"compile", "causal", "--arch", "sm_70"}, 3, "unsupported", {"sm_70", "sm_80"});
  if (!nvrtc_found()) return;
  // Well formed and newer than any: whether it exists is for NVRTC to say.
  check_refused({"compile", "causal", "--arch", "sm_999"}, 3, "unsupported", {"sm_999", "sm_90"});
}

TEST_CASE("program: without a GPU, what needs one says so") {
  if (!Program().json({"env"})["driver"]["devices"].empty()) {
    MESSAGE("skipped: there is a GPU");
    return;
  }
  check_refused({"verify", "causal", "--seqlen-q", "16", "--seqlen-k", "16"}, 5, "no_device", {});
  check_refused({"compile", "causal"}, 5, "no_device", {"--arch"});
}

TEST_CASE("an output without a name is refused, not left out") {
  const std::string why = "cannot write ''";
  check_refused({"show", "causal", "--svg", ""}, 2, "invalid_argument", {why});
  check_refused({"compile", "causal", "--arch", "sm_80", "--emit", "source", "-o", ""}, 2,
                "invalid_argument", {why});
}

TEST_CASE("verbs that bind take the twins of GIRIH_JIT and GIRIH_TUNE") {
  for (const char* verb : {"compile", "source", "explain", "verify", "tune"}) {
    CAPTURE(verb);
    check_refused({verb, "causal", "--jit", "maybe"}, 2, "invalid_argument",
                  {"--jit 'maybe' is not known: auto and off are"});
  }
  for (const char* verb : {"compile", "source", "explain", "verify", "bench"}) {
    CAPTURE(verb);
    check_refused({verb, "causal", "--tune", "maybe"}, 2, "invalid_argument",
                  {"--tune 'maybe' is not known"});
  }
  // It measures tiles, and asks no record.
  check_refused({"tune", "causal", "--tune", "db"}, 2, "invalid_argument",
                {"were not expected: db --tune"});
  // bench times compilations with --jit.
  Program program;
  program.set("GIRIH_JIT", "off");
  check_refused({"bench", "causal", "--jit"}, 2, "invalid_argument", {"GIRIH_JIT"}, program);
}

TEST_CASE("bench refuses bad input before it looks for a GPU") {
  check_refused({"bench", "causal", "--batch", "0"}, 2, "invalid_argument", {"--batch 0"});
  check_refused({"bench", "causal", "--seqlen-q", "0"}, 2, "invalid_argument", {"--seqlen-q 0"});
  check_refused({"bench", "causal", "--repeats", "0"}, 2, "invalid_argument", {"--repeats 0"});
  check_refused({"bench", "heads(0: causal)", "--heads", "2"}, 2, "invalid_argument", {"head 1"});
  if (!Program().json({"env"})["driver"]["devices"].empty()) return;
  check_refused({"bench", "causal"}, 5, "no_device", {});
  check_refused({"warm", "--pattern", "causal"}, 5, "no_device", {"--arch"});
  check_refused({"explain", "causal"}, 5, "no_device", {"--arch"});
}
