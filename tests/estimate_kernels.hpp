// What kernels that estimate must be, whatever they estimate.
#pragma once

#include <doctest/doctest.h>

#include <initializer_list>
#include <string>

#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "girih/estimate.hpp"
#include "sandbox.hpp"

namespace girih::tests {

/// `build` makes them as jit::build_estimate does: of fp16 at one of the widths, of bf16 else.
template <class Build>
void check_estimate_kernels(const Build& build, const std::string& kernel,
                            std::initializer_list<int> head_dims, int fp16_head_dim) {
  const TemporaryFolder folder;
  jit::Options options;
  options.mode = jit::Mode::automatic;
  options.cache_dir = folder / "cache";
  options.cache_layers.emplace();
  for (const char* arch : {"sm_80", "sm_90"}) {
    for (const int head_dim : head_dims) {
      CAPTURE(arch);
      CAPTURE(head_dim);
      const DType dtype = head_dim == fp16_head_dim ? DType::float16 : DType::bfloat16;
      const jit::Artifact made = build(dtype, head_dim, arch, options);
      CHECK(made.info.kernel == kernel);
      CHECK(made.info.arch == arch);
      CHECK(made.info.spill_bytes == 0);
      CHECK(made.info.stack_bytes == 0);
      CHECK(made.info.registers <= 255);
      CHECK(compiler::performance_warnings(made.log).empty());
    }
  }
  // Hopper's own instructions are not used.
  CHECK(build(DType::bfloat16, 128, "sm_90a", options).info.cache_hit);
  CHECK_THROWS_WITH_AS(build(DType::bfloat16, 20, "sm_80", options),
                       "head_dim 20 is not supported by estimates: multiples of 16 from 16 to 256 "
                       "are; pad to 32",
                       Error);
}

}  // namespace girih::tests
