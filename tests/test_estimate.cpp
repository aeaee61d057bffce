// Estimates of columns and slashes: what becomes of their arguments, and the kernels without a GPU.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "estimate_kernels.hpp"
#include "girih/error.hpp"
#include "girih/estimate.hpp"
#include "runtime/estimate.hpp"

using namespace girih;
using namespace girih::tests;
using jit::EstimateArgs;
using runtime::estimate_plan;
using runtime::EstimatePlan;

namespace {

void* at(std::uintptr_t address) { return reinterpret_cast<void*>(address); }
std::int32_t* list_at(std::uintptr_t address) { return static_cast<std::int32_t*>(at(address)); }

EstimateArgs good_args() {
  EstimateArgs args;
  args.q = Tensor::contiguous(at(0x1000), DType::bfloat16, {2, 300, 8, 128});
  args.k = Tensor::contiguous(at(0x2000), DType::bfloat16, {2, 70000, 2, 128});
  args.num_vertical = 500;
  args.num_slash = 700;
  args.vertical = list_at(0x3000);
  args.slash = list_at(0x4004);
  return args;
}

std::string refusal(const EstimateArgs& args) {
  try {
    estimate_plan(args, 132);
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

}  // namespace

TEST_CASE("estimate: heads of one KV head share a CTA, and CTAs the keys") {
  const EstimatePlan plan = estimate_plan(good_args(), 132);
  const EstimateParams& p = plan.estimate;
  CHECK(p.num_planes == 16);
  CHECK(p.group_size == 4);
  CHECK(p.heads_per_cta == 4);
  CHECK(p.q_strides.batch == 300 * 8 * 128);
  CHECK(p.k_strides.row == 2 * 128);
  CHECK(p.num_parts == 65);        // of two for each of 33 CTAs of 4 groups of heads
  CHECK(p.keys_per_part == 1088);  // 34 tiles
  CHECK(p.num_ctas() == 4 * 33);
  CHECK(p.num_parts * p.keys_per_part >= p.seqlen_k);
  CHECK(plan.shared_bytes == estimate_shared_bytes(128, 4));
  CHECK(plan.sums_bytes == 16u * 2 * 70000 * 4);
  CHECK(plan.parts_bytes == 16u * 65 * 64 * 8);
  CHECK(plan.workspace_bytes() == plan.sums_bytes + plan.parts_bytes);
  CHECK(plan.select.count == 70000);
  CHECK(plan.select.lists[0].out == list_at(0x3000));
  CHECK(plan.select.num_heads == 8);
  CHECK(plan.select.lists[0].width == 500);
  CHECK(plan.select.lists[0].forced == 30);
  CHECK(plan.select.lists[1].width == 700);
  CHECK(plan.select.lists[1].forced == 100);
  CHECK(p.softmax_scale_log2 == doctest::Approx(1.4426950408889634 / std::sqrt(128.0)));

  EstimateArgs args = good_args();
  args.q.shape[2] = 6;  // three heads a KV head
  CHECK(estimate_plan(args, 132).estimate.heads_per_cta == 1);
  args = good_args();
  args.q.shape[3] = args.k.shape[3] = 256;
  CHECK(estimate_plan(args, 132).estimate.heads_per_cta == 2);
  args = good_args();
  args.k.shape[1] = 100;  // a CTA for each group of heads is enough
  CHECK(estimate_plan(args, 132).estimate.num_parts == 1);
  args.k.shape[1] = 0;
  CHECK(estimate_plan(args, 132).estimate.num_parts == 0);
}

TEST_CASE("estimate: each head may have a number of its own") {
  EstimateArgs args = good_args();
  args.head_slash = {0, 700, 1, 2, 3, 4, 5, 6};
  const SelectParams select = estimate_plan(args, 132).select;
  for (int plane = 0; plane < 16; ++plane) {
    CHECK(select.number(0, plane) == 500);
    CHECK(select.number(1, plane) == args.head_slash[static_cast<std::size_t>(plane % 8)]);
  }
}

TEST_CASE("estimate: shared memory of every width fits every GPU") {
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    CHECK(estimate_shared_bytes(head_dim, runtime::most_estimate_heads(head_dim)) <= 99 * 1024);
  }
}

TEST_CASE("estimate: arguments that cannot be right are refused, and say what to do") {
  struct Fault {
    const char* name;
    std::function<void(EstimateArgs&)> spoil;
    std::string mentions;
  };
  const std::vector<Fault> bad = {
      {"packed", [](EstimateArgs& a) { a.layout = Layout::thd; }, "take bshd or bhsd"},
      {"a width of 100", [](EstimateArgs& a) { a.q.shape[3] = 100; }, "pad to 112"},
      {"a width of 272", [](EstimateArgs& a) { a.q.shape[3] = 272; }, "16 to 256"},
      {"q in float32", [](EstimateArgs& a) { a.q.dtype = DType::float32; }, "q is fp32"},
      {"k of another type", [](EstimateArgs& a) { a.k.dtype = DType::float16; },
       "k is fp16, but q is bf16"},
      {"k of another width", [](EstimateArgs& a) { a.k.shape[3] = 64; }, "k has shape"},
      {"another batch", [](EstimateArgs& a) { a.k.shape[0] = 1; }, "k has shape"},
      {"heads that are no groups", [](EstimateArgs& a) { a.q.shape[2] = 7; },
       "num_heads 7 is not a multiple of num_heads_kv 2"},
      {"no heads", [](EstimateArgs& a) { a.k.shape[2] = 0; }, "num_heads_kv is 0"},
      {"q is null", [](EstimateArgs& a) { a.q.data = nullptr; }, "q is null"},
      {"k is misaligned", [](EstimateArgs& a) { a.k.data = at(0x2008); }, "aligned to 16 bytes"},
      {"a negative number", [](EstimateArgs& a) { a.num_slash = -1; }, "num_slash is -1"},
      {"vertical is null", [](EstimateArgs& a) { a.vertical = nullptr; }, "vertical is null"},
      {"slash is misaligned", [](EstimateArgs& a) { a.slash = list_at(0x4002); },
       "slash at 0x4002"},
      {"a negative scale", [](EstimateArgs& a) { a.softmax_scale = -1.0f; }, "not negative"},
      {"a number for some heads",
       [](EstimateArgs& a) {
         a.head_slash = {1, 2, 3};
       },
       "head_slash has 3 numbers: it must have num_heads (8) of them"},
      {"a head with more than a row holds",
       [](EstimateArgs& a) { a.head_vertical = {0, 1, 2, 501, 4, 5, 6, 7}; },
       "head_vertical[3] is 501: it must be from 0 to num_vertical (500)"},
      {"a head with a negative number",
       [](EstimateArgs& a) { a.head_slash = {0, 1, 2, 3, 4, 5, 6, -1}; }, "head_slash[7] is -1"},
      {"numbers of too many heads",
       [](EstimateArgs& a) {
         a.q.shape[2] = 258;
         a.head_slash.assign(258, 1);
       },
       "at most 256"},
      {"too many heads", [](EstimateArgs& a) { a.q.shape[0] = a.k.shape[0] = 1 << 28; },
       "split the batch"},
  };
  CHECK(refusal(good_args()) == "(accepted)");
  for (const Fault& fault : bad) {
    CAPTURE(fault.name);
    EstimateArgs args = good_args();
    fault.spoil(args);
    const std::string message = refusal(args);
    CAPTURE(message);
    CHECK(message.find(fault.mentions) != std::string::npos);
  }
  EstimateArgs none = good_args();
  none.num_vertical = 0;
  none.vertical = nullptr;
  CHECK(refusal(none) == "(accepted)");
}

TEST_CASE("estimate: kernels for each type and width, without spills or stack") {
  check_estimate_kernels([](const auto&... of) { return jit::build_estimate(of...); }, "estimate",
                         {16, 64, 80, 128, 192, 256}, 64);
}
