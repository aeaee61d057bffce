// Merging partial results without a GPU: its arguments and every refusal, the order in which it
// works through results, and its kernel for every architecture.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "compile/nvrtc.hpp"
#include "girih/error.hpp"
#include "runtime/combine.hpp"
#include "sandbox.hpp"
#include "texts.hpp"

using namespace girih;
using jit::CombineArgs;
using runtime::combine_params;
using tests::contains;
using tests::TemporaryFolder;

namespace {

// Memory that nobody reads or writes.
void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }
float* lse_at(std::uintptr_t address) { return reinterpret_cast<float*>(address); }

Tensor tensor(std::uintptr_t address, DType dtype = DType::bfloat16) {
  return Tensor::contiguous(at(address), dtype, {2, 7, 3, 96});
}

CombineArgs good_args() {
  CombineArgs args;
  args.parts = {{tensor(0x1000), lse_at(0x100)}, {tensor(0x2000, DType::float32), lse_at(0x200)}};
  args.out = tensor(0x3000, DType::float16);
  args.lse = lse_at(0x300);
  return args;
}

std::string refusal(const CombineArgs& args) {
  try {
    combine_params(args);
  } catch (const Error& error) {
    CHECK(error.code() == Errc::invalid_argument);
    return error.what();
  }
  return "(accepted)";
}

}  // namespace

TEST_CASE("combine: parts of all types reach the kernel with their strides") {
  CombineArgs args = good_args();
  args.parts[0].out.stride = {4000, 504, 128, 1};
  const CombineParams params = combine_params(args);
  CHECK(params.num_parts == 2);
  CHECK(params.parts[0].out == at(0x1000));
  CHECK(params.parts[0].lse == lse_at(0x100));
  CHECK(params.parts[0].type == CombineType::bfloat16);
  CHECK(params.parts[0].strides.batch == 4000);
  CHECK(params.parts[0].strides.row == 504);
  CHECK(params.parts[0].strides.head == 128);
  CHECK(params.parts[1].type == CombineType::float32);
  CHECK(params.out == at(0x3000));
  CHECK(params.out_type == CombineType::float16);
  CHECK(params.out_strides.row == 3 * 96);
  CHECK(params.lse == lse_at(0x300));
  CHECK(params.num_results == 2 * 7 * 3);
  CHECK(params.seqlen == 7);
  CHECK(params.num_heads == 3);
  CHECK(params.num_vectors == 12);
  CHECK(params.log_lanes_per_row == 4);
  CHECK(params.heads_innermost);
  CHECK(params.empty_lse == -INFINITY);

  // The same memory by its other name.
  args.layout = Layout::bhsd;
  for (Tensor* t : {&args.parts[0].out, &args.parts[1].out, &args.out}) {
    std::swap(t->shape[1], t->shape[2]);
    std::swap(t->stride[1], t->stride[2]);
  }
  const CombineParams swapped = combine_params(args);
  CHECK(!swapped.heads_innermost);
  CHECK(swapped.seqlen == 7);
  CHECK(swapped.num_heads == 3);
  CHECK(swapped.parts[0].strides.row == 504);
  CHECK(swapped.parts[0].strides.head == 128);
}

TEST_CASE("combine: every result is worked on once, in the order of memory") {
  CombineParams params{};
  params.seqlen = 5;
  params.num_heads = 3;
  params.num_results = 2 * 5 * 3;
  const Strides bshd{5 * 3 * 8, 3 * 8, 8}, bhsd{5 * 3 * 8, 8, 5 * 8};
  for (const bool heads_innermost : {true, false}) {
    CAPTURE(heads_innermost);
    params.heads_innermost = heads_innermost;
    std::set<int64> lses;
    for (int i = 0; i < params.num_results; ++i) {
      const CombineParams::Place place = params.place(i);
      CHECK(element_at(heads_innermost ? bshd : bhsd, place) == 8 * i);
      const int64 lse = params.lse_at(place);
      CHECK(lse == (place.batch * 3 + place.head) * 5 + place.row);
      lses.insert(lse);
    }
    CHECK(lses.size() == 30);
    CHECK(*lses.rbegin() == 29);
  }
}

TEST_CASE("combine: enough lanes share a row, and never more than a warp has") {
  for (const auto& [num_vectors, lanes] :
       {std::pair{1, 1}, {2, 2}, {3, 4}, {8, 8}, {12, 16}, {16, 16}, {32, 32}, {33, 32}}) {
    CAPTURE(num_vectors);
    CHECK((1 << combine_log_lanes(num_vectors)) == lanes);
  }
}

TEST_CASE("combine: arguments that cannot be right are refused, and say what to do") {
  struct Fault {
    const char* name;
    std::function<void(CombineArgs&)> spoil;
    const char* mentions;
  };
  const std::vector<Fault> bad = {
      {"no parts", [](CombineArgs& a) { a.parts.clear(); }, "0 parts: combine takes 1 to 64"},
      {"65 parts", [](CombineArgs& a) { a.parts.resize(65, a.parts[0]); }, "merge more in turns"},
      {"a part's shape", [](CombineArgs& a) { a.parts[1].out.shape[1] = 6; },
       "parts[1].out has shape [2, 6, 3, 96], expected [2, 7, 3, 96]"},
      {"a part is null", [](CombineArgs& a) { a.parts[0].out.data = nullptr; },
       "parts[0].out is null"},
      {"a part has no lse", [](CombineArgs& a) { a.parts[1].lse = nullptr; },
       "parts[1].lse is null"},
      {"a part's lse is misaligned", [](CombineArgs& a) { a.parts[0].lse = lse_at(0x102); },
       "parts[0].lse at 0x102 is not aligned to 4"},
      {"a part is misaligned", [](CombineArgs& a) { a.parts[0].out.data = at(0x1008); },
       "parts[0].out at 0x1008 is not aligned to 16"},
      {"a part's row stride", [](CombineArgs& a) { a.parts[0].out.stride[1] += 4; },
       "multiple of 8 elements"},
      {"a wide part's row stride", [](CombineArgs& a) { a.parts[1].out.stride[1] += 2; },
       "multiple of 4 elements"},
      {"a part's last stride", [](CombineArgs& a) { a.parts[0].out.stride[3] = 2; }, "stride 2"},
      {"out is null", [](CombineArgs& a) { a.out.data = nullptr; }, "out is null"},
      {"out overlaps itself", [](CombineArgs& a) { a.out.stride[1] = 0; }, "overlap"},
      {"lse is misaligned", [](CombineArgs& a) { a.lse = lse_at(0x301); }, "lse at 0x301"},
      {"a width of 100", [](CombineArgs& a) { a.out.shape[3] = 100; },
       "head_dim_v 100 is not a multiple of 8"},
      {"no heads", [](CombineArgs& a) { a.out.shape[2] = 0; }, "num_heads is 0"},
      {"a negative length", [](CombineArgs& a) { a.out.shape[1] = -1; }, "seqlen_q is -1"},
      {"too many results", [](CombineArgs& a) { a.out.shape[0] = 1 << 28; }, "split the batch"},
      {"two batches, packed", [](CombineArgs& a) { a.layout = Layout::thd; }, "[1, total"},
      {"empty_lse is 0", [](CombineArgs& a) { a.empty_lse = 0; }, "empty_lse 0"},
      {"in place, another type", [](CombineArgs& a) { a.out = tensor(0x1000, DType::float16); },
       "parts[0].out lies where out does"},
      {"in place, other strides",
       [](CombineArgs& a) {
         a.out = tensor(0x1000);
         a.out.stride[0] += 8;
       },
       "in place they must be the same tensor"},
  };
  CHECK(refusal(good_args()) == "(accepted)");
  for (const Fault& fault : bad) {
    CAPTURE(fault.name);
    CombineArgs args = good_args();
    fault.spoil(args);
    const std::string message = refusal(args);
    CAPTURE(message);
    CHECK(contains(message, fault.mentions));
  }
}

TEST_CASE("combine: the result may lie where a part does, and parts may share memory") {
  CombineArgs args = good_args();
  args.out = args.parts[0].out;
  args.lse = const_cast<float*>(args.parts[0].lse);
  CHECK(refusal(args) == "(accepted)");
  args.parts[1].out = args.parts[0].out;
  CHECK(refusal(args) == "(accepted)");
  args.parts[1].out.stride[1] = 0;  // only read: one row for all
  args.parts[1].out.data = at(0x2000);
  CHECK(refusal(args) == "(accepted)");
}

TEST_CASE("combine: without rows there is nothing to do, and no memory to check") {
  CombineArgs args;
  args.out = Tensor::contiguous(nullptr, DType::bfloat16, {2, 0, 3, 64});
  args.parts = {{args.out, nullptr}};
  CHECK(combine_params(args).num_results == 0);
}

TEST_CASE("combine: one kernel for each architecture, without spills or stack") {
  const TemporaryFolder folder;
  jit::Options options;
  options.mode = jit::Mode::automatic;
  options.cache_dir = folder / "cache";
  options.cache_layers.emplace();
  for (const char* arch : {"sm_80", "sm_90", "sm_120"}) {
    CAPTURE(arch);
    const jit::Artifact made = jit::build_combine(arch, options);
    CHECK(made.info.kernel == "combine");
    CHECK(made.info.arch == arch);
    CHECK(!made.info.cache_hit);
    CHECK(made.info.spill_bytes == 0);
    CHECK(made.info.stack_bytes == 0);
    CHECK(made.info.registers > 16);
    CHECK(made.info.registers <= 64);  // four CTAs and more fit
    CHECK(compiler::performance_warnings(made.log).empty());
    const jit::Artifact found = jit::build_combine(arch, options);
    CHECK(found.info.cache_hit);
    CHECK(found.cubin == made.cubin);
  }
  // Hopper's own instructions are of no use here.
  CHECK(jit::build_combine("sm_90a", options).info.cache_hit);

  options.mode = jit::Mode::off;
  options.cache_dir = folder / "empty";
  try {
    jit::build_combine("sm_80", options);
    FAIL_CHECK("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == Errc::jit_disabled);
    CHECK(contains(error.what(), "run `girih warm --combine` and --arch sm_80"));
  }
}
