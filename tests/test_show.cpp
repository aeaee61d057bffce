// The verbs that say what a pattern makes visible and which kernel there would be: show, also as
// SVG and with the inputs of --fill, and explain.
#include <regex>

#include "program.hpp"

using namespace girih::tests;

namespace {

const Arguments kSquare{"--seqlen-q", "256", "--seqlen-k", "256"};

Arguments filled(const std::string& verb, const std::string& pattern,
                 const std::vector<std::string>& fills) {
  Arguments arguments{verb};
  for (const std::string& fill : fills) arguments = arguments + Arguments{"--fill", fill};
  return arguments + Arguments{pattern};
}

}  // namespace

TEST_CASE("explain estimates from some rows what would take long to count, and says so") {
  const Program program;
  // Every other key up to the row's own.
  const Arguments condition{"explain", "expr(\"k <= p && (p - k) % 2 == 0\")", "--arch", "sm_90a"};
  const Arguments far{"--seqlen-q", "262144"};
  const Json report = program.json(condition + far);
  const Json& own = report["classes"][0];
  const int rows = own["sampled_rows"];
  CHECK(rows > 0);
  CHECK(rows < 262144 / 10);
  const int keys = own["sampled_keys"];
  CHECK(keys < 262144 / 10);
  CHECK(report["tiles"]["estimated"] == true);
  CHECK(own["visible"].get<double>() == doctest::Approx(262144.0 * 262144 / 4).epsilon(0.05));
  const Json& tile = report["tile"];
  const double tiles = 262144.0 / tile["block_m"].get<int>() * 262144 / tile["block_n"].get<int>();
  CHECK(report["tiles"]["partial"].get<double>() == doctest::Approx(tiles / 2).epsilon(0.05));
  CHECK(report["tiles"]["empty"].get<double>() == doctest::Approx(tiles / 2).epsilon(0.05));
  const std::string text = program.run(condition + far).out;
  CHECK(text.find(", estimated from " + std::to_string(rows) + " of 262144 rows and " +
                  std::to_string(keys) + " of their 262144 keys") != text.npos);
  CHECK(text.find("over all heads, estimated;") != text.npos);

  const Json counted = program.json(condition + Arguments{"--seqlen-q", "512"});
  CHECK_FALSE(counted["classes"][0].contains("sampled_rows"));
  CHECK(counted["tiles"]["estimated"] == false);
  CHECK(counted["classes"][0]["visible"] == 512 * 514 / 4);
}

TEST_CASE("show estimates what would take long to count, and says so") {
  const Program program;
  const Arguments far{"--seqlen-q", "131072", "--seqlen-k", "131072"};
  const Arguments condition{"show", "expr(\"k <= p && (p - k) % 2 == 0\")"};
  const Json report = program.json(condition + far);
  const Json& own = report["classes"][0];
  CHECK(own["sampled_rows"] > 0);
  CHECK(own["density"].get<double>() == doctest::Approx(0.25).epsilon(0.05));
  const std::string text = program.run(condition + far).out;
  CHECK(contains(text, ", all estimated: from " + own["sampled_rows"].dump() +
                           " of 131072 rows and " + own["sampled_keys"].dump() +
                           " of their 131072 keys, cells from some of their elements"));
  // As 32 times 32 cells have it when all elements are looked at.
  const Json small =
      program.json(condition + Arguments{"--seqlen-q", "1024", "--seqlen-k", "1024"});
  CHECK_FALSE(small["classes"][0].contains("sampled_rows"));
  CHECK(own["picture"] == small["classes"][0]["picture"]);
}

TEST_CASE("no atom makes show count for minutes") {
  struct Case {
    const char* pattern;
    Arguments fill;
    double density, partial;  // partial tiles of all
  };
  const Program program;
  for (const Case& c :
       {Case{"dilated(2)", {}, 0.5, 1}, Case{"index_ge(d)", {"--fill", "d=random:8"}, 36.0 / 64, 1},
        Case{"causal & strided(local=16, stride=4, block=16)", {}, 1.0 / 8, 0.5}}) {
    CAPTURE(c.pattern);
    const Json report = program.json(
        Arguments{"show", c.pattern, "--seqlen-q", "524288", "--seqlen-k", "524288"} + c.fill);
    const Json& own = report["classes"][0];
    CHECK(own["sampled_rows"].get<int>() < 524288 / 2);
    CHECK(own["density"].get<double>() == doctest::Approx(c.density).epsilon(0.02));
    const double tiles = 524288.0 / 128 * 524288 / 64;
    CHECK(own["tiles"]["partial"].get<double>() ==
          doctest::Approx(c.partial * tiles).epsilon(0.02));
  }
}

TEST_CASE("lengths that no count is made for are estimated whatever the tile") {
  const Program program;
  const Arguments far{"--seqlen-q", "500000000", "--seqlen-k", "500000000"};
  CHECK(program.json(Arguments{"show", "dense"} + far)["density"] == 1);
  CHECK(program.json(Arguments{"show", "causal"} + far)["density"].get<double>() ==
        doctest::Approx(0.5).epsilon(0.001));
  check_refused(
      Arguments{"show", "expr(\"k <= p\")", "--block-m", "500000000", "--block-n", "500000000"} +
          far,
      2, "invalid_argument", {"a tile of 500000000 x 500000000 takes too long"});
  check_refused(
      {"show", "expr(\"k <= p\")", "--seqlen-q", "262144", "--seqlen-k", "262144", "--block-m",
       "4096", "--block-n", "4096", "--svg", (program.folder() / "picture.svg").string()},
      2, "invalid_argument", {"the tiles of", "take too long", "leave --svg out"});
  CHECK_FALSE(fs::exists(program.folder() / "picture.svg"));
}

TEST_CASE("data of --fill that would not fit is refused before it is made") {
  const auto refused = [](const std::string& pattern, const std::string& fill, Arguments more) {
    check_refused(Arguments{"show", pattern, "--fill", fill} + more, 2, "invalid_argument",
                  {"--fill " + fill, "than the 4294967296 bytes that are made"});
  };
  const Arguments far{"--seqlen-q", "500000000", "--seqlen-k", "500000000"};
  refused("blocks(m, q=16, kv=16)", "m=random:0.1", far);
  refused("segments(d)", "d=documents:100", far + Arguments{"--heads", "64"});
  refused("columns(c)", "c=rows:5:2", far);
  refused("vertical_slash(v)", "v=random:500000000:500000000,heads=q", {"--heads", "2"});
  check_refused({"show", "vertical_slash(v)", "--fill", "v=random:10:10", "--heads", "8",
                 "--seqlen-q", "1048576", "--seqlen-k", "1048576"},
                2, "invalid_argument", {"the windows of 'v' for 8 heads", "heads=1"});
  refused("causal with bias(b)", "b=normal:1", far + Arguments{"--heads", "64"});
}

TEST_CASE("explain says why a neighborhood has no bricks") {
  const Program program;
  const auto reason = [&](const std::string& pattern, Arguments more = {}) -> std::string {
    const Json report = program.json(Arguments{"explain", pattern, "--arch", "sm_90a"} + more);
    CHECK(report.contains("bricks") != report.contains("no_bricks"));
    return report.contains("no_bricks") ? report["no_bricks"].get<std::string>() : "";
  };
  CHECK(reason("neighborhood(64x64, window=9)") == "");
  CHECK(reason("neighborhood(64x64, window=9) with softcap(2)") == "");
  CHECK(reason("neighborhood(4096, window=9)") == "the grid has one axis of more than one token");
  CHECK(reason("neighborhood(64x64, window=9, dilation=2)") == "");
  CHECK(reason("neighborhood(64x64, window=7, dilation=9)") == "a dilation of 9 is greater than 8");
  CHECK(reason("heads(0: neighborhood(64x64, window=9), "
               "1: neighborhood(64x64, window=9, dilation=(1, 2)))",
               {"--heads", "2"}) == "heads have different dilations");
  CHECK(reason("neighborhood(64x64, window=9) & causal") ==
        "heads see 'neighborhood(64x64, window=9) & causal', which is not a neighborhood alone");
  CHECK(reason("neighborhood(64x64, window=9) with alibi(a)") ==
        "heads have modifiers other than softcap");
  CHECK(reason("heads(0: neighborhood(64x64, window=9), 1: neighborhood(32x128, window=9))",
               {"--heads", "2"}) == "heads have different grids");
  CHECK(reason("neighborhood(64x64, window=9)", {"--portable"}) ==
        "only the kernel for Hopper has them");
  CHECK(reason("neighborhood(8x4096, window=(1, 99))") ==
        "tokens in a row take no longer, as far as tiles tell");
  const std::string text =
      program.run({"explain", "neighborhood(4096, window=9)", "--arch", "sm_90a"}).out;
  CHECK(text.find("            no bricks of the grid: the grid has one axis") != text.npos);
}

TEST_CASE("explain says what kernel there would be, and where its numbers come from") {
  const Program program;
  const Arguments explain{"explain",    "kv_heads(0: causal, else: causal & sink(64))",
                          "--heads",    "8",
                          "--kv-heads", "2",
                          "--arch",     "sm_90a"};
  const Json report = program.json(explain + Arguments{"--seqlen-k", "1024"});
  CHECK(report["supported"] == true);
  CHECK(report["arch"] == "sm_90a");
  CHECK(report["kernel"] == "fwd_sm90");
  CHECK(report["tile_origin"] == "heuristic");
  CHECK(report["threads"] > 0);
  CHECK(report["shared_bytes"] > 0);
  CHECK(report["structures"].size() == 2);
  CHECK(report["classes"][0]["heads"] == "0-3");
  CHECK(report["classes"][1]["structure"] == "All<Leaf<Causal>, Leaf<Sink>>");
  CHECK(report["cache"]["hit"] == false);
  CHECK(report["cache"]["folders"][0] == (program.folder() / "cache").string());
  CHECK(report["key"].get<std::string>().size() == 32);
  CHECK(report["seqlen_q"] == 1024);

  const Json of_dense =
      program.json({"explain", "dense", "--heads", "3", "--arch", "sm_80", "--seqlen-q", "1024",
                    "--block-m", "64", "--block-n", "32", "--stages", "2", "--warps", "4"});
  CHECK(of_dense["tile_origin"] == "given");
  CHECK(of_dense["tile"]["block_n"] == 32);
  CHECK(of_dense["tiles"]["full"] == 3 * 16 * 32);
  CHECK(of_dense["tiles"]["visible_of_computed"] == 1);

  const Result text = program.run(explain + Arguments{"--block-n", "32"});
  CHECK(text.exit_code == 0);
  CHECK(contains(text.out, "(block_n given, the rest heuristic)"));
  CHECK(contains(text.out, "cache       miss in " + (program.folder() / "cache").string()));
  CHECK(!contains(text.out, "tiles"));
}

TEST_CASE("explain finds the kernel that compile made, in the folder where it is") {
  if (!nvrtc_found()) return;
  const Program program;
  const std::string layer = (program.folder() / "layer").string();
  const Json made = program.json({"compile", "causal", "--arch", "sm_80", "--cache-dir", layer});
  const Json report =
      program.json({"explain", "causal", "--arch", "sm_80", "--cache-layer", layer});
  CHECK(report["key"] == made["key"]);
  CHECK(report["cache"]["hit"] == true);
  CHECK(report["cache"]["path"].get<std::string>().starts_with(layer));
  CHECK(report["registers"] == made["registers"]);
  CHECK(report["cache"]["compiler"] == made["compiler"]);
}

TEST_CASE("explain says why there is no kernel") {
  const Program program;
  CHECK(program.json({"explain", "causal", "--head-dim", "192", "--head-dim-v", "128", "--arch",
                      "sm_90"})["problem"]["head_dim_v"] == 128);
  const Json report = program.json({"explain", "causal", "--head-dim", "17", "--arch", "sm_80"}, 3);
  CHECK(report["supported"] == false);
  CHECK(contains(report["reason"], "head_dim 17"));
  const Result result = program.run({"explain", "causal", "--arch", "sm_70"});
  CHECK(result.exit_code == 3);
  CHECK(contains(result.out, "supported   no"));
  CHECK(contains(result.out, "sm_80"));
  check_refused({"explain", "causal", "--arch", "sm_80", "--seqlen-q", "-1"}, 2, "invalid_argument",
                {"--seqlen-q -1"});
  check_refused({"explain", "heads(0: causal, 2: dense)", "--heads", "3", "--arch", "sm_80"}, 2,
                "invalid_argument", {"head 1"});
}

TEST_CASE("show --svg draws a panel a class, the same bytes every time") {
  const Program program;
  const fs::path first = program.folder() / "first.svg", second = program.folder() / "second.svg";
  for (const fs::path& file : {first, second}) {
    CHECK(program
              .run({"show", "heads(0-2: causal, else: causal & sink(64))", "--heads", "4",
                    "--seqlen-q", "256", "--seqlen-k", "256", "--block-m", "64", "--block-n", "64",
                    "--svg", file.string()})
              .exit_code == 0);
  }
  const std::string svg = read(first);
  CHECK(svg == read(second));
  CHECK(svg.starts_with("<svg xmlns"));
  CHECK(svg.ends_with("</svg>\n"));
  CHECK(count_of(svg, "<g class=\"panel\"") == 2);
  CHECK(contains(svg, ">heads 0-2</text>"));
  CHECK(contains(svg, ">head 3</text>"));
  CHECK(contains(svg, ">causal &amp; sink(64)</text>"));
  CHECK(contains(svg, "6 full, 4 partial, 6 empty tiles; density 0.5020"));
  CHECK(contains(svg, "3 full, 1 partial, 12 empty tiles"));
  for (const char* label : {"full tile", "partial tile", "visible in a partial tile",
                            "empty, never visited", "keys", "queries", "256"}) {
    INFO(label);
    CHECK(contains(svg, ">" + std::string(label) + "</text>"));
  }
  // Every element that is opened is closed, and no & or < stands for itself.
  CHECK(count_of(svg, "<g ") == count_of(svg, "</g>"));
  CHECK(count_of(svg, "<text") == count_of(svg, "</text>"));
  CHECK(!std::regex_search(svg, std::regex("&(?!amp;|lt;|gt;)")));
}

TEST_CASE("the areas of a picture's tiles are those of its counts") {
  const Program program;
  const fs::path file = program.folder() / "picture.svg";
  // 380 pixels a side, 95 a tile of 512: too many rows to draw elements.
  CHECK(program
            .run({"show", "causal", "--seqlen-q", "2048", "--seqlen-k", "2048", "--block-m", "512",
                  "--block-n", "512", "--svg", file.string()})
            .exit_code == 0);
  const std::string svg = read(file);
  const auto area = [&](const std::string& name) {
    const std::regex path("<path class=\"" + name + "\" d=\"([^\"]*)\"");
    const std::regex rectangle("M([0-9.]+) ([0-9.]+)H([0-9.]+)V([0-9.]+)H[0-9.]+Z");
    std::smatch found;
    double sum = 0;
    if (!std::regex_search(svg, found, path)) return sum;
    const std::string data = found[1];
    for (std::sregex_iterator it(data.begin(), data.end(), rectangle), end; it != end; ++it) {
      const std::smatch& r = *it;
      sum += (std::stod(r[3]) - std::stod(r[1])) * (std::stod(r[4]) - std::stod(r[2]));
    }
    return sum / (95 * 95);
  };
  CHECK(area("full") == doctest::Approx(6));
  CHECK(area("partial") == doctest::Approx(4));
  CHECK(area("visible") == 0);
}

TEST_CASE("a picture that cannot be drawn says so") {
  const Program program;
  const std::string file = (program.folder() / "picture.svg").string();
  check_refused({"show", "causal", "--seqlen-q", "0", "--svg", file}, 2, "invalid_argument",
                {"nothing to draw"}, program);
  check_refused({"show", "causal", "--seqlen-q", "100000", "--seqlen-k", "100000", "--block-m",
                 "16", "--block-n", "16", "--svg", file},
                2, "invalid_argument", {"39062500 tiles", "--block-m"}, program);
  check_refused({"show", "causal", "--svg", "/nonexistent/picture.svg"}, 2, "invalid_argument",
                {"/nonexistent/picture.svg"}, program);
}

TEST_CASE("show draws block masks that --fill makes, the same ones for the same seed") {
  const Program program;
  const auto show = [&](const std::string& fill, const Arguments& more = {}) {
    return program.json(filled("show", "causal & blocks(m, q=64, kv=64)", {fill}) + kSquare + more);
  };
  CHECK(show("m=random:1")["density"] ==
        program.json(Arguments{"show", "causal"} + kSquare)["density"]);
  CHECK(show("m=random:0")["density"] == 0);
  const Json half = show("m=random:0.5");
  CHECK(half["density"] > 0);
  CHECK(half["density"] < 0.5);
  CHECK(half["pattern"] == "causal & blocks(m, q=64, kv=64)");
  CHECK(half == show("m=random:0.5"));
  CHECK(half == show("m=random:0.5,as=bits,batch=all"));  // how it reaches a kernel is no matter
  CHECK(half != show("m=random:0.5", {"--seed", "2"}));
  CHECK(half != show("m=random:0.5:3"));

  const Json tiles =
      program.json(filled("show", "blocks(m, q=64, kv=64)", {"m=random:0.5"}) + kSquare +
                   Arguments{"--block-m", "64", "--block-n", "64"})["classes"][0]["tiles"];
  CHECK(tiles["partial"] == 0);
  CHECK(tiles["full"].get<int>() + tiles["empty"].get<int>() == 16);
}

TEST_CASE("show draws columns and slashes that --fill makes") {
  const Program program;
  const auto density = [&](const std::string& fill) {
    return program.json(filled("show", "vertical_slash(v)", {fill}) + kSquare)["density"]
        .get<double>();
  };
  const double causal = program.json(Arguments{"show", "causal"} + kSquare)["density"];
  CHECK(density("v=random:0:0") < density("v=random:10:0"));
  CHECK(density("v=random:10:0") < causal);
  CHECK(density("v=random:0:100") <= causal);
  const Json heads = program.json(filled("show", "vertical_slash(v)", {"v=random:0:0,heads=q"}) +
                                  kSquare + Arguments{"--heads", "3"});
  CHECK(heads["classes"].size() == 3);  // each with a plane of its own
  CHECK(heads["density"] == density("v=random:0:0"));
}

TEST_CASE("show draws documents and indices that --fill makes") {
  const Program program;
  const auto show = [&](const std::string& pattern, const std::string& fill) {
    return program.json(filled("show", pattern, {fill}) + kSquare);
  };
  const double causal = show("causal & segments(d)", "d=documents:1000000000")["density"];
  CHECK(causal == program.json(Arguments{"show", "causal"} + kSquare)["density"]);
  const double documents = show("causal & segments(d)", "d=documents:20")["density"];
  CHECK(documents > 0.01);
  CHECK(documents < 0.3);
  CHECK(show("segments(d)", "d=random:1")["density"] == 1);
  CHECK(show("index_gt(d)", "d=random:1")["density"] == 0);
  const double half = show("segments(d)", "d=random:2")["density"];
  CHECK(half > 0.45);
  CHECK(half < 0.55);
}

TEST_CASE("show draws intervals of rows that --fill makes, and needs no values of modifiers") {
  const Program program;
  const auto density = [&](const std::string& pattern, const std::vector<std::string>& fills) {
    return program.json(filled("show", pattern, fills) + kSquare)["density"].get<double>();
  };
  const double few = density("columns(c)", {"c=rows:8"});
  CHECK(few > 0.005);
  CHECK(few < 0.05);
  CHECK(density("columns(c)", {"c=rows:8:2"}) > few);
  CHECK(density("!columns(c)", {"c=rows:8"}) == doctest::Approx(1 - few));
  const double causal = density("causal", {});
  CHECK(density("causal with alibi(s), bias(b)", {}) == causal);
  CHECK(density("causal with alibi(s)", {"s=slopes"}) == causal);
  CHECK(density("causal with bias(b)", {"b=normal:3,heads=1"}) == causal);
}

TEST_CASE("show groups heads by what their run-time inputs make them see") {
  const Program program;
  const auto heads = [&](const std::string& fill) {
    std::vector<std::string> result;
    const Json report = program.json(filled("show", "blocks(m, q=16, kv=16)", {fill}) + kSquare +
                                     Arguments{"--heads", "4", "--kv-heads", "2"});
    for (const Json& group : report["classes"]) result.push_back(group["heads"]);
    return result;
  };
  CHECK(heads("m=random:0.5") == std::vector<std::string>{"0", "1", "2", "3"});
  CHECK(heads("m=random:0.5,heads=q") == heads("m=random:0.5"));
  CHECK(heads("m=random:0.5,heads=kv") == std::vector<std::string>{"0-1", "2-3"});
  CHECK(heads("m=random:0.5,heads=1") == std::vector<std::string>{"0-3"});

  const Json numbers =
      program.json(filled("show", "heads(0: sink($n), else: window(left=$w) & chunk($zero))",
                          {"zero=0", "n=64,heads=1", "w=-7"}) +
                   kSquare + Arguments{"--heads", "3"});
  REQUIRE(numbers["classes"].size() == 2);
  CHECK(numbers["classes"][0]["mask"] == "sink(64)");
  CHECK(numbers["classes"][0]["density"] == 0.25);
  CHECK(numbers["classes"][1]["mask"] == "window & chunk(1)");  // the nearest that the atoms take
  CHECK(numbers["classes"][1]["visible"] == 256);
}

TEST_CASE("explain counts tiles with the inputs that --fill makes, and names what a launch needs") {
  const Program program;
  const std::string pattern = "heads(0: blocks(m, q=128, kv=64), else: sink($n))";
  const Arguments more{"--heads", "4", "--kv-heads", "2", "--arch", "sm_80"};
  const Json report =
      program.json(filled("explain", pattern, {"m=random:1", "n=64"}) + more +
                   Arguments{"--seqlen-q", "256", "--block-m", "64", "--block-n", "64"});
  CHECK(report["classes"][0]["tiles"]["full"] == 16);
  CHECK(report["classes"][0]["structure"] == "Leaf<Blocks>");
  CHECK(report["classes"][1]["mask"] == "sink(64)");
  CHECK(report["classes"][1]["structure"] == "Leaf<Sink, 0x1>");
  CHECK(report["tiles"]["full"] == 16 + 3 * 4);
  CHECK(report["inputs"][0]["name"] == "m");
  CHECK(report["inputs"][1]["wants"] == "int32 [batch, heads]");

  // Without lengths nothing is counted, and no data is needed.
  const Result text = program.run(Arguments{"explain", pattern} + more);
  CHECK(text.exit_code == 0);
  CHECK(contains(text.out, "heads       1-3: sink($n)\n"));
  CHECK(contains(text.out, "input       m: blocks [batch, heads, ceil(seqlen_q / 128), "));
  CHECK(!contains(text.out, "tiles"));
  CHECK(program.json(Arguments{"explain", "causal", "--arch", "sm_80"})["inputs"].empty());
}

TEST_CASE("what --fill cannot make is refused with how to write it") {
  const std::string form =
      "; write NAME=random:DENSITY[:SKEW] for blocks, NAME=INTEGER for a number, "
      "NAME=documents:MEAN (of log-normal lengths) or NAME=random:COUNT (unsorted) for indices of "
      "tokens, NAME=random:COLUMNS:DISTANCES for columns and slashes, NAME=keep (every tile), "
      "NAME=skip:SHARE (of the tiles that may be) or NAME=@FILE (that girih calibrate wrote) for "
      "thresholds, NAME=rows:MOST[:INTERVALS] for columns, NAME=normal:DEVIATION or "
      "NAME=slopes (ALiBi's) for values of heads and keys (not given: normal:1), "
      "NAME=random:COUNT or NAME=documents:MEAN for int32 tensors of expressions, "
      "NAME=normal:DEVIATION for float32 ones, and then [,heads=1|kv|q][,batch=1|all]"
      "[,as=list|plane_list|table|bytes|bits][,extent=NUMBER, of dimensions of tensors that are "
      "indexed by more than a name]";
  const auto refused = [&](const std::string& pattern, const std::vector<std::string>& fills,
                           const std::string& why) {
    check_refused(filled("show", pattern, fills) + kSquare, 2, "invalid_argument",
                  {"--fill " + fills.back() + ": " + why + form});
  };
  const std::string blocks = "blocks(m, q=64, kv=64)", number = "sink($n)";
  refused(blocks, {"m=random:0.5", "m=random:0.5"}, "this input is given twice");
  refused(blocks, {"n=random:0.5"}, "the pattern has no such input");
  refused("causal", {"m=random:0.5"}, "the pattern has no such input");
  refused(blocks, {"m"}, "it has no '='");
  refused(blocks, {"m="}, "'' does not describe blocks");
  refused(blocks, {"m=3"}, "'3' does not describe blocks");
  refused(blocks, {"m=random"}, "'random' does not describe blocks");
  refused(blocks, {"m=random:0.1:1:1"}, "'random:0.1:1:1' does not describe blocks");
  refused(blocks, {"m=random:1.5"}, "'1.5' is no number from 0 to 1");
  refused(blocks, {"m=random:nan"}, "'nan' is no number from 0 to 1");
  refused(blocks, {"m=random:0.5x"}, "'0.5x' is no number from 0 to 1");
  refused(blocks, {"m=random:0.5:-1"}, "'-1' is no number from 0 to 100");
  refused(blocks, {"m=random:0.5,heads=2"}, "'heads=2' cannot be read");
  refused(blocks, {"m=random:0.5,batch=3"}, "'batch=3' cannot be read");
  refused(blocks, {"m=random:0.5,as=csr"}, "'csr' is no form of blocks");
  refused(blocks, {"m=random:0.5,"}, "'' cannot be read");
  refused(number, {"n=random:0.5"}, "'random:0.5' is no number from -536870912 to 536870912");
  refused(number, {"n=536870913"}, "'536870913' is no number from -536870912 to 536870912");
  refused(number, {"n=3,as=bits"}, "'as=bits' cannot be read");
  const std::string slashes = "vertical_slash(v)";
  refused(slashes, {"v=3"}, "'3' does not describe columns and slashes");
  refused(slashes, {"v=random:3"}, "'random:3' does not describe columns and slashes");
  refused(slashes, {"v=random:3:-1"}, "'-1' is no number from 0 to 536870912");
  const std::string documents = "segments(d)";
  refused(documents, {"d=3"}, "'3' does not describe indices of tokens");
  refused(documents, {"d=documents"}, "'documents' does not describe indices of tokens");
  refused(documents, {"d=documents:0.5"}, "'0.5' is no number from 1 to 1000000000");
  refused(documents, {"d=random:0"}, "'0' is no number from 1 to 536870912");
  refused(documents, {"d=random:4,as=list"}, "'as=list' cannot be read");
  const std::string condition = "expr(\"t[k] > 0\")", score = "causal with score(\"s + t[k]\")";
  refused(condition, {"t=normal:1"}, "'normal:1' does not describe int32 [seqlen_k]");
  refused(condition, {"t=random:0"}, "'0' is no number from 1 to 536870912");
  refused(condition, {"t=random:3,extent=0"}, "'0' is no number from 1 to 536870912");
  refused(score, {"t=random:3"}, "'random:3' does not describe float32 [seqlen_k]");
  refused("columns(c)", {"c=rows"}, "'rows' does not describe intervals of rows");
  refused("columns(c)", {"c=rows:0"}, "'0' is no number from 1 to 536870912");
  refused("columns(c)", {"c=rows:9:3"}, "'3' is no number from 1 to 2");
  refused("causal with bias(b)", {"b=slopes"}, "'slopes' does not describe values");
  refused("causal with alibi(s)", {"s=normal"}, "'normal' does not describe values");
  refused("causal with alibi(s)", {"s=normal:-1"}, "'-1' is no number from 0 to 1000000000");

  check_refused({"show", blocks}, 2, "invalid_argument",
                {"the input 'm' is missing: the pattern wants blocks [batch, heads, ceil(seqlen_q "
                 "/ 64), ceil(seqlen_k / 64)]; give --fill NAME=random:"});
  check_refused({"show", number}, 2, "invalid_argument",
                {"the input 'n' is missing: the pattern wants int32 [batch, heads]; give --fill"});
  check_refused({"explain", blocks, "--arch", "sm_80", "--seqlen-q", "64"}, 2, "invalid_argument",
                {"the input 'm' is missing"});
  check_refused({"explain", blocks, "--arch", "sm_80", "--fill", "m=random:1"}, 2,
                "invalid_argument", {"give --seqlen-q or --seqlen-k as well"});
  check_refused({"verify", blocks}, 2, "invalid_argument", {"the input 'm' is missing"});
  check_refused({"bench", blocks}, 2, "invalid_argument", {"the input 'm' is missing"});
}
