// girih source PATTERN: the CUDA entry that would be compiled.
#include "common.hpp"

namespace girih::tools {

void add_source(CLI::App& app, Context& context) {
  struct Options {
    std::string pattern, arch;
    ProblemOptions problem;
    jit::Options jit;
  };
  const auto options = std::make_shared<Options>();

  CLI::App* verb = add_verb(app, context, "source", "Print the emitted CUDA source");
  add_pattern_argument(*verb, options->pattern);
  add_problem_options(*verb, options->problem);
  add_arch_option(*verb, options->arch);
  add_tile_options(*verb, options->jit.tile);
  add_jit_options(*verb, options->jit);

  verb->callback([options, &context] {
    const Pattern pattern = read_pattern(options->pattern);
    const Problem problem = options->problem.resolve(pattern);
    const jit::Artifact artifact =
        jit::build(pattern, problem, resolve_arch(options->arch), options->jit, jit::Emit::source);
    if (!context.json) return print(artifact.source);
    print_json({{"pattern", pattern.text()},
                {"problem", to_json(problem)},
                {"arch", artifact.info.arch},
                {"key", artifact.info.key},
                {"tile", to_json(artifact.info.tile)},
                {"source", artifact.source}});
  });
}

}  // namespace girih::tools
