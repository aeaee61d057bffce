// What a compiled kernel must be.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include "codegen/emit.hpp"
#include "compile/nvrtc.hpp"

namespace girih::tests {

/// A name in a symbol table: whole, between zeros.
inline bool holds_symbol(const std::string& cubin, const std::string& symbol) {
  const std::string zero(1, '\0');
  return cubin.find(zero + symbol + zero) != cubin.npos;
}

/// A cubin, and what else is to be in it.
struct Compiled {
  std::string what;
  std::string error;  // empty when it was compiled
  compiler::Resources resources;
  std::string log;
  std::string cubin;
  bool builds_lists = false;    // whether there is a second kernel,
  bool builds_numbers = false;  // or one for indices and columns,
  bool builds_slashes = false;  // or one for slashes
  bool builds_tiles = false;    // or one for expressions
  bool splits = false;          // whether there are two more for split query tiles
};

/// Without spills, stack or lost performance, with the kernels that it should hold.
inline void check_compiled(const Compiled& compiled) {
  INFO(compiled.what);
  CHECK(compiled.error == "");
  CHECK(compiled.resources.registers > 32);  // the report was understood
  CHECK(compiled.resources.registers <= 255);
  CHECK(compiled.resources.spill_bytes == 0);
  CHECK(compiled.resources.stack_bytes == 0);
  CHECK(compiler::performance_warnings(compiled.log).empty());
  CHECK(holds_symbol(compiled.cubin, codegen::kKernelSymbol));
  CHECK(holds_symbol(compiled.cubin, codegen::kBuildListsSymbol) == compiled.builds_lists);
  CHECK(holds_symbol(compiled.cubin, codegen::kBuildNumbersSymbol) == compiled.builds_numbers);
  CHECK(holds_symbol(compiled.cubin, codegen::kBuildSlashSymbol) == compiled.builds_slashes);
  CHECK(holds_symbol(compiled.cubin, codegen::kBuildTilesSymbol) == compiled.builds_tiles);
  CHECK(holds_symbol(compiled.cubin, codegen::kPlanSplitsSymbol) == compiled.splits);
  CHECK(holds_symbol(compiled.cubin, codegen::kMergeSplitsSymbol) == compiled.splits);
}

}  // namespace girih::tests
