// The catalogue of published patterns, tools/examples/patterns: each file holds a pattern, and
// above it what it is, the command that draws it, and what that prints. Written anew by
//   UPDATE_GOLDEN=1 build/bin/girih_tests --test-case='*catalogue*'
#include <cstdlib>
#include <sstream>

#include "program.hpp"

namespace {

using namespace girih::tests;

constexpr std::string_view kCommand = "# $ girih ";

struct Entry {
  std::string comment;                 // lines, up to and with the command's
  std::vector<std::string> arguments;  // of the command, from the source folder
  std::string printed;
  std::string pattern;
};

Entry parse(const std::string& text) {
  Entry entry;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("#")) {
      if (!line.empty()) entry.pattern += line + "\n";
    } else if (!entry.arguments.empty()) {
      entry.printed += (line.size() > 2 ? line.substr(2) : "") + "\n";
    } else {
      entry.comment += line + "\n";
      if (!line.starts_with(kCommand)) continue;
      std::istringstream words(line.substr(kCommand.size()));
      for (std::string word; words >> word;) entry.arguments.push_back(word);
    }
  }
  return entry;
}

std::vector<std::string> from_source_folder(std::vector<std::string> arguments) {
  arguments.at(1) = (source_dir() / arguments.at(1)).string();
  return arguments;
}

}  // namespace

TEST_CASE(
    "every pattern of the catalogue is drawn as its file says, has a kernel, and is in the "
    "README") {
  const fs::path source = source_dir();
  const std::string readme = read(source / "README.md");
  const bool update = std::getenv("UPDATE_GOLDEN") != nullptr;
  int entries = 0;
  for (const auto& file : fs::directory_iterator(source / "tools" / "examples" / "patterns")) {
    const std::string name = file.path().filename().string();
    CAPTURE(name);
    const Entry entry = parse(read(file.path()));
    REQUIRE(entry.arguments.size() >= 2);
    CHECK(entry.arguments[0] == "show");
    CHECK(entry.arguments[1] == "tools/examples/patterns/" + name);

    const Result drawn = Program().run(from_source_folder(entry.arguments));
    INFO(drawn.err);
    REQUIRE(drawn.exit_code == 0);
    if (update) {
      std::string text = entry.comment;
      std::istringstream lines(drawn.out);
      for (std::string line; std::getline(lines, line);)
        text += line.empty() ? "#\n" : "# " + line + "\n";
      write(file.path(), text + "\n" + entry.pattern);
    } else {
      CHECK(entry.printed == drawn.out);
    }

    std::vector<std::string> compile{"compile", entry.arguments[1], "--emit",
                                     "source",  "--arch",           "sm_90a"};
    for (std::size_t i = 2; i + 1 < entry.arguments.size(); i += 2) {
      if (!entry.arguments[i].ends_with("heads")) continue;
      compile.insert(compile.end(), {entry.arguments[i], entry.arguments[i + 1]});
    }
    const Result compiled = Program().run(from_source_folder(compile));
    INFO(compiled.err);
    CHECK(compiled.exit_code == 0);
    CHECK(contains(compiled.out, "girih_fwd"));

    CHECK(contains(readme, "](tools/examples/patterns/" + name + ")"));
    ++entries;
  }
  CHECK(entries >= 30);
}
