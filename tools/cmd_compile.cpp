// girih compile PATTERN: a cubin (or its source, or its PTX) ahead of time, and what it uses. Needs
// no GPU when --arch is given.
#include <fmt/format.h>

#include <map>

#include "common.hpp"
#include "compile/nvrtc.hpp"

namespace girih::tools {
namespace {

std::vector<std::string> warnings_of(const jit::Artifact& artifact) {
  std::vector<std::string> warnings = compiler::performance_warnings(artifact.log);
  if (artifact.info.spill_bytes > 0) {
    warnings.push_back(fmt::format("{} bytes of registers are spilled: try a smaller tile",
                                   artifact.info.spill_bytes));
  }
  if (artifact.info.stack_bytes > 0) {
    warnings.push_back(fmt::format("the kernel uses {} bytes of stack", artifact.info.stack_bytes));
  }
  return warnings;
}

}  // namespace

void add_compile(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern, arch, output;
    std::string emit = "cubin";
    ProblemOptions problem;
    jit::Options jit;
  };
  const auto options = std::make_shared<Options>();

  CLI::App* verb = add_verb(app, context, "compile", "Compile a pattern's kernel ahead of time");
  add_pattern_argument(*verb, options->pattern);
  add_problem_options(*verb, options->problem);
  add_arch_option(*verb, options->arch);
  verb->add_option("-o,--output", options->output, "File for what is made");
  verb->add_option("--emit", options->emit, "What to make: source, ptx or cubin")
      ->check(CLI::IsMember({"source", "ptx", "cubin"}))
      ->capture_default_str();
  add_tile_options(*verb, options->jit.tile);
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context, verb] {
    const Pattern pattern = read_pattern(options->pattern);
    const Problem problem = options->problem.resolve(pattern);
    const std::map<std::string, jit::Emit> emits{
        {"source", jit::Emit::source}, {"ptx", jit::Emit::ptx}, {"cubin", jit::Emit::cubin}};
    const jit::Emit emit = emits.at(options->emit);
    const jit::Artifact artifact =
        jit::build(pattern, problem, resolve_arch(options->arch), options->jit, emit);

    const std::string& made = emit == jit::Emit::source ? artifact.source
                              : emit == jit::Emit::ptx  ? artifact.ptx
                                                        : artifact.cubin;
    if (verb->count("--output") > 0) write_output(options->output, made);
    const bool text_to_stdout = options->output.empty() && emit != jit::Emit::cubin;
    const std::vector<std::string> warnings = warnings_of(artifact);

    if (context.json) {
      Json json{{"pattern", pattern.text()}, {"problem", to_json(problem)}};
      json.update(to_json(artifact.info));
      json["emit"] = options->emit;
      json["bytes"] = made.size();
      json["warnings"] = warnings;
      if (text_to_stdout) json[options->emit] = made;
      return print_json(json);
    }
    if (text_to_stdout) return print(made);

    print(fmt::format("pattern     {}\n", pattern.text()));
    if (emit == jit::Emit::source) {
      print(fmt::format("arch        {}\ntile        {}\nkey         {}\n", artifact.info.arch,
                        to_text(artifact.info.tile), artifact.info.key));
    } else {
      print(to_text(artifact.info));
    }
    for (const std::string& warning : warnings) print(fmt::format("warning     {}\n", warning));
    print(fmt::format("{:<12}{} bytes{}\n", options->emit, made.size(),
                      options->output.empty() ? " (-o FILE writes it)" : " in " + options->output));
  });
}

}  // namespace girih::tools
