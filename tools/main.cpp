// The `girih` program: one verb a file, errors and exit codes here.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <new>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "common.hpp"
#include "support/env.hpp"

namespace {

using namespace girih;
using namespace girih::tools;

int report(const char* code, std::string_view message, int exit_code, bool json) {
  print_error(fmt::format("girih: error: {}\n", message));
  if (json) print_json({{"error", {{"code", code}, {"message", message}}}});
  return exit_code;
}

// Of the verb that the command line names, or the verb's own: what is wrong with it; else empty.
std::string verb_problem(CLI::App& app, int argc, char** argv) {
  CLI::App* level = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const std::vector<CLI::App*> verbs = level->get_subcommands([](CLI::App*) { return true; });
    if (verbs.empty() || word.starts_with('-')) return {};
    const auto distance = [&](const CLI::App* verb) {
      return support::edit_distance(word, verb->get_name());
    };
    level = *std::min_element(
        verbs.begin(), verbs.end(),
        [&](const CLI::App* a, const CLI::App* b) { return distance(a) < distance(b); });
    if (level->get_name() != word) {
      return fmt::format("'{}' is no verb; did you mean {}? girih --help lists all", word,
                         level->get_name());
    }
  }
  return {};
}

int run(CLI::App& app, Context& context, int argc, char** argv) {
  // The parser sets context.json only when the whole command line is right.
  const bool json = std::any_of(argv, argv + argc,
                                [](std::string_view argument) { return argument == "--json"; });
  try {
    const std::string problem = verb_problem(app, argc, argv);
    if (!problem.empty()) throw Error(Errc::invalid_argument, problem);
    app.parse(argc, argv);
    return context.exit_code;
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& error) {
    return report(
        to_string(Errc::invalid_argument),
        fmt::format("{} (girih --help, or girih VERB --help, lists what there is)", error.what()),
        kUsage, json);
  } catch (const Error& error) {
    return report(to_string(error.code()), error.what(), exit_code(error.code()), json);
  } catch (const std::bad_alloc&) {
    return report(to_string(Errc::invalid_argument),
                  "this machine has not enough memory for that: take shorter sequences, or fewer "
                  "heads or sequences",
                  kUsage, json);
  } catch (const std::exception& error) {
    return report(to_string(Errc::internal), error.what(), kFailure, json);
  }
}

// Why `text` is not the whole of a number from `least` to `most`; else it is written plainly, so
// that the parser, to which a leading 0 means octal, reads the same.
template <class Value>
std::string number_problem(std::string& text, Value least, Value most) {
  Value value{};
  const char* const end = text.data() + text.size();
  const auto [behind, error] = std::from_chars(text.data(), end, value);
  constexpr bool whole = std::is_integral_v<Value>;
  if (behind != end || error == std::errc::invalid_argument) {
    return fmt::format("'{}' is no {}: give one in digits{}", text,
                       whole ? "whole number" : "number",
                       whole ? fmt::format(", from {} to {}", least, most) : ", such as 0.5");
  }
  if (error != std::errc() || value < least || value > most) {
    return fmt::format("'{}' is out of range: give {} to {}", text, least, most);
  }
  if (whole) text = fmt::format("{}", value);
  return {};
}

// Every option that takes numbers, in every verb, takes nothing but numbers. The parser knows them
// by their types.
void read_numbers_strictly(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    if (type == "INT" && option->check_lname("rows")) {  // the only ones of 64 bits
      using Limits = std::numeric_limits<std::int64_t>;
      option->transform(CLI::Validator(
          [](std::string& text) { return number_problem(text, Limits::min(), Limits::max()); },
          ""));
    } else if (type == "INT") {
      using Limits = std::numeric_limits<int>;
      option->transform(CLI::Validator(
          [](std::string& text) { return number_problem(text, Limits::min(), Limits::max()); },
          ""));
    } else if (type == "UINT") {
      using Limits = std::numeric_limits<std::uint64_t>;
      option->transform(CLI::Validator(
          [](std::string& text) { return number_problem(text, Limits::min(), Limits::max()); },
          ""));
    } else if (type == "FLOAT") {
      constexpr double kInfinity = std::numeric_limits<double>::infinity();
      option->transform(CLI::Validator(
          [](std::string& text) { return number_problem(text, -kInfinity, kInfinity); }, ""));
    }
  }
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) {
    read_numbers_strictly(*verb);
  }
}

// A stream that the caller closed must stay one that cannot be written: without this, the next file
// that is opened, an entry of the cache, would get its number and the log's lines.
void occupy_closed_streams() {
  for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; ++stream) {
    if (::fcntl(stream, F_GETFD) == -1) ::open("/dev/null", O_RDONLY);
  }
}

}  // namespace

int main(int argc, char** argv) {
  occupy_closed_streams();
  support::warn_about_unknown_variables();

  CLI::App app("Sparse-attention kernels, made at run time.", "girih");
  app.set_version_flag("--version", "girih " GIRIH_VERSION);
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failure, 2 usage, 3 unsupported, 4 compile failed, 5 no usable "
      "device,\n"
      "6 cache miss while compiling is off, 130 interrupted.");
  Context context;
  add_compile(app, context);
  add_warm(app, context);
  add_show(app, context);
  add_source(app, context);
  add_explain(app, context);
  add_verify(app, context);
  add_tune(app, context);
  add_calibrate(app, context);
  add_bench(app, context);
  add_cache(app, context);
  add_import(app, context);
  add_env(app, context);
  read_numbers_strictly(app);

  const int code = run(app, context, argc, argv);
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {
    print_error("girih: error: the result could not be written to stdout\n");
    return kFailure;
  }
  return code;
}
