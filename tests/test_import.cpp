// The verb that turns files of other projects into patterns.
#include "program.hpp"

using namespace girih::tests;

namespace {

std::string data_file(const std::string& name) {
  return (source_dir() / "tests" / "data" / name).string();
}

}  // namespace

TEST_CASE("import duo makes the heads of the highest gates full") {
  const Program program;
  const std::string file = data_file("gates.tsv");
  // Eight gates 0.1 ... 0.9 without 0.5: half of them are 0.6 and more.
  const Json half = program.json({"import", "duo", file, "--layer", "0", "--sparsity", "0.5"});
  CHECK(half["threshold"] == 0.6);
  CHECK(half["full_heads_of_all_layers"] == 4);
  CHECK(half["heads_of_all_layers"] == 8);
  CHECK(half["full_heads"] == 2);
  CHECK(half["pattern"] == "kv_heads(0+3: causal, else: causal & (sink(128) | window(left=255)))");
  const Json by_threshold = program.json({"import", "duo", file, "--layer", "1", "--threshold",
                                          "0.65", "--sink", "4", "--recent", "1"});
  CHECK(by_threshold["pattern"] ==
        "kv_heads(0-1+3: causal & (sink(4) | window(left=0)), else: causal)");
  const auto pattern_at = [&](const std::string& sparsity, const Arguments& more = {}) {
    return program.json(Arguments{"import", "duo", file, "--layer", "0", "--sparsity", sparsity} +
                        more)["pattern"];
  };
  CHECK(pattern_at("0") == "causal");
  CHECK(pattern_at("1") == "causal & (sink(128) | window(left=255))");
  CHECK(pattern_at("1", {"--recent", "0"}) == "causal & sink(128)");
  CHECK(pattern_at("1", {"--sink", "0"}) == "causal & window(left=255)");
}

TEST_CASE("the text that import duo prints is a pattern file") {
  const Program program;
  const Result imported =
      program.run({"import", "duo", data_file("gates.tsv"), "--layer", "0", "--sparsity", "0.5"});
  CHECK(contains(imported.out, "# DuoAttention, layer 0 of 2, 4 KV heads"));
  CHECK(contains(imported.out, "4 of 8 heads of all layers"));
  const Result shown =
      program.run({"show", "-", "--heads", "8", "--kv-heads", "4", "--json"}, imported.out);
  CHECK(shown.exit_code == 0);
  CHECK(Json::parse(shown.out)["classes"][0]["heads"] == "0-1+6-7");
}

TEST_CASE("import duo refuses what are not gates") {
  const Program program;
  const std::string file = data_file("gates.tsv");
  const auto refused = [&](const Arguments& arguments, const std::vector<std::string>& parts) {
    check_refused(Arguments{"import", "duo"} + arguments, 2, "invalid_argument", parts, program);
  };
  refused({file, "--layer", "2", "--sparsity", "0.5"}, {"--layer 2", "0 to 1"});
  refused({file, "--layer", "-1", "--sparsity", "0.5"}, {"--layer -1"});
  refused({file, "--layer", "0"}, {"--sparsity", "--threshold"});
  refused({file, "--layer", "0", "--sparsity", "0.5", "--threshold", "1"}, {"either"});
  refused({file, "--layer", "0", "--sparsity", "1.5"}, {"--sparsity 1.5", "0 to 1"});
  refused({file, "--layer", "0", "--sparsity", "1", "--sink", "0", "--recent", "0"}, {"nothing"});
  refused({file, "--layer", "0", "--threshold", "nan"}, {"--threshold nan"});
  refused({"/nonexistent", "--layer", "0", "--sparsity", "1"}, {"/nonexistent"});
  const fs::path bad = program.folder() / "bad.tsv";
  const auto refused_text = [&](const std::string& text, const std::vector<std::string>& parts) {
    write(bad, text);
    refused({bad.string(), "--layer", "0", "--sparsity", "1"}, parts);
  };
  refused_text("1\t2\n3\n", {"line 2", "1 columns", "2"});
  refused_text("1\tx\n", {"line 1", "column 2"});
  refused_text("1\tnan\n", {"line 1", "column 2"});
  refused_text("\n", {"no gates"});
}

TEST_CASE("import minference names each head's kind and sizes") {
  const Program program;
  const std::string file = data_file("patterns.json");
  const Json report = program.json({"import", "minference", file, "--layer", "0"});
  CHECK(report["num_heads"] == 11);
  CHECK(report["num_layers"] == 2);
  CHECK(report["pattern"] ==
        "heads(0-1+7-8: vertical_slash(vs), "
        "2-4: causal & (sink(128) | window(left=1023)), 5: causal & sink(64), "
        "6: causal & window(left=255), else: causal & blocks(top, q=64, kv=64))");
  CHECK(report["heads"][1]["vertical_size"] == 30);
  CHECK(report["heads"][1]["slash_size"] == 800);
  CHECK(report["heads"][10]["kind"] == "block_sparse");
  const Result text = program.run({"import", "minference", file, "--layer", "0"});
  CHECK(contains(text.out, "#   vertical_and_slash 100 800: heads 0+7-8\n"));
  CHECK(contains(text.out, "#   vertical_and_slash 30 800: heads 1\n"));
  const Json streaming = program.json({"import", "minference", file, "--layer", "1"});
  CHECK(streaming["pattern"] == "causal & (sink(128) | window(left=1023))");
}

TEST_CASE("import minference refuses other files") {
  const Program program;
  const fs::path bad = program.folder() / "bad.json";
  const auto refused = [&](const std::string& text, const std::vector<std::string>& parts) {
    write(bad, text);
    check_refused({"import", "minference", bad.string(), "--layer", "0"}, 2, "invalid_argument",
                  parts, program);
  };
  refused("{", {bad.string(), "MInference's format"});
  refused("{}", {bad.string(), "no list of layers"});
  refused("[]", {"no list of layers"});
  refused("[{}]", {"no heads"});
  refused("[{\"0\": [\"stream_llm\", 1]}]", {"head 0 must be [kind, vertical, slash, score]"});
  refused("[[]]", {"members are heads"});
  refused("[{\"0\": 3}]", {"head 0 must be ["});
  refused("[{\"0\": [\"stream_llm\", 4294967297, 3, 3]}]",
          {"head 0's vertical size 4294967297 must be a whole number from 0"});
  refused("[{\"0\": [\"stream_llm\", 1, 2.9, 3]}]", {"head 0's slash size 2.9 must be"});
  refused("[{\"0\": [\"stream_llm\", true, 2, 3]}]", {"head 0's vertical size true must be"});
  refused("[{\"0\": [7, 1, 2, 3]}]", {"head 0's kind 7 must be a text"});
  refused("[{\"0\": [\"stream_llm\", 1, 2, \"3\"]}]", {"its score a number"});
  refused("[{\"0\": [\"stream_llm\", 1, 2, 3], \"00\": [\"stream_llm\", 1, 2, 3]}]",
          {"head 0 is there twice"});
  refused("[{\"0\": [\"other\", 1, 2, 0.5]}]", {"'other' is not known", "vertical_and_slash"});
  refused("[{\"zero\": [\"stream_llm\", 1, 2, 0.5]}]", {"'zero' is no head number"});
  refused("[{\"1\": [\"stream_llm\", 1, 2, 0.5]}]", {"head 0 is missing"});
  refused("[{\"0\": [\"stream_llm\", -1, 2, 0.5]}]", {"-1"});
  refused("[{\"0\": [\"stream_llm\", 0, 0, 0.5]}]", {"sees nothing"});
  check_refused({"import", "minference", data_file("patterns.json"), "--layer", "2"}, 2,
                "invalid_argument", {"--layer 2", "0 to 1"});
  check_refused({"import"}, 2, "invalid_argument", {});
}
