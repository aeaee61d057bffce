// Uses the C++ library as a project outside it does: a pattern's text, and a kernel's source.
#include <girih/girih.hpp>
#include <iostream>

int main() {
  const girih::Pattern pattern = girih::Pattern::parse("causal&(sink(4)|window(left=63))");
  const girih::Problem problem{.head_dim = 64, .num_heads = 8, .num_heads_kv = 2};
  const girih::jit::Artifact artifact =
      girih::jit::build(pattern, problem, "sm_90", {}, girih::jit::Emit::source);
  std::cout << pattern.text() << '\n' << GIRIH_VERSION << '\n';
  return artifact.source.find("__global__") == std::string::npos ? 1 : 0;
}
