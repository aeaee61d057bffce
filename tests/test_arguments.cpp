// The arguments of a launch: parameters, defaults, and every refusal.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "girih/error.hpp"
#include "girih/jit.hpp"
#include "runtime/arguments.hpp"
#include "runtime/softmax_scale.hpp"
#include "texts.hpp"
#include "verify/workload.hpp"

using namespace girih;
using tests::contains;
using tests::error_of;

namespace {

constexpr int kMost = 1 << 29;  // of lengths and positions

/// Memory that is never read: only its address is looked at.
alignas(16) std::array<unsigned char, 64> memory;

constexpr Problem kLaunched{
    .dtype = DType::float16, .head_dim = 64, .num_heads = 4, .num_heads_kv = 2};

/// Two sequences of 5 queries and 7 keys.
jit::Args valid_args() {
  const auto tensor = [](std::array<std::int64_t, 4> shape) {
    return Tensor::contiguous(memory.data(), DType::float16, shape);
  };
  jit::Args args;
  args.q = tensor({2, 5, 4, 64});
  args.k = tensor({2, 7, 2, 64});
  args.v = tensor({2, 7, 2, 64});
  args.out = tensor({2, 5, 4, 64});
  return args;
}

using Change = std::function<void(jit::Args&)>;

FwdParams params_with(const Change& change) {
  jit::Args args = valid_args();
  change(args);
  return runtime::forward_params(args, kLaunched);
}

std::string refusal(const Change& change) {
  const Error error = error_of([&] { params_with(change); });
  CHECK(error.code() == Errc::invalid_argument);
  return error.what();
}

}  // namespace

TEST_CASE("the problem of tensors is their type, width and heads") {
  CHECK(runtime::problem_of(valid_args()) == kLaunched);
}

TEST_CASE("tensors that pose no problem are refused") {
  const auto problem_refusal = [](const Change& change) {
    jit::Args args = valid_args();
    change(args);
    const Error error = error_of([&] { runtime::problem_of(args); });
    CHECK(error.code() == Errc::invalid_argument);
    return std::string(error.what());
  };
  const std::string range = ": it must be from 1 to 536870912";
  CHECK(problem_refusal([](auto& a) { a.q.shape[3] = 0; }) == "q's head_dim is 0" + range);
  CHECK(problem_refusal([](auto& a) { a.q.shape[3] = std::int64_t{1} << 40; }) ==
        "q's head_dim is 1099511627776" + range);
  CHECK(problem_refusal([](auto& a) { a.q.shape[2] = -4; }) == "q's number of heads is -4" + range);
  CHECK(problem_refusal([](auto& a) { a.k.shape[2] = 0; }) == "k's number of heads is 0" + range);
}

TEST_CASE("arguments become parameters, with defaults") {
  float lse[1];
  jit::Args args = valid_args();
  args.lse = lse;
  args.k_start = 100;
  args.k.stride = {9000, 136, 64, 1};
  const FwdParams params = runtime::forward_params(args, kLaunched);
  CHECK(params.q == memory.data());
  CHECK(params.k == memory.data());
  CHECK(params.v == memory.data());
  CHECK(params.out == memory.data());
  CHECK(params.lse == lse);
  CHECK(params.q_strides.batch == 5 * 4 * 64);
  CHECK(params.q_strides.row == 4 * 64);
  CHECK(params.q_strides.head == 64);
  CHECK(params.k_strides.batch == 9000);
  CHECK(params.k_strides.row == 136);
  CHECK(params.k_strides.head == 64);
  CHECK(params.v_strides.row == 2 * 64);
  CHECK(params.out_strides.batch == 5 * 4 * 64);
  CHECK(params.geometry.seqlen_q == 5);
  CHECK(params.geometry.seqlen_k == 7);
  CHECK(params.geometry.k_start == 100);
  CHECK(params.geometry.q_start == 102);  // the last query stands where the last key does
  CHECK(params.num_heads == 4);
  CHECK(params.geometry.head == 0);
  CHECK(params.geometry.head_kv == 0);
  CHECK(params.geometry.group_size == 2);
  CHECK(params.geometry.num_heads == 4);
  CHECK(params.softmax_scale_log2 ==
        doctest::Approx(0.125 * std::log2(std::exp(1.0))));  // 1 / sqrt(64)
}

TEST_CASE("a rank's heads are numbered as the model's") {
  const jit::Args args = valid_args();
  Problem problem = kLaunched;
  problem.head_offset = 6;
  problem.num_heads_total = 12;
  const FwdParams params = runtime::forward_params(args, problem);
  CHECK(params.geometry.head == 6);
  CHECK(params.geometry.head_kv == 3);
  CHECK(params.geometry.num_heads == 12);
}

TEST_CASE("given positions and scales are taken") {
  const FwdParams params = params_with([](auto& a) {
    a.q_start = -3;
    a.k_start = kMost;
    a.softmax_scale = 2.5f;
    a.max_ctas = 2;
  });
  CHECK(params.geometry.q_start == -3);
  CHECK(params.geometry.k_start == kMost);
  CHECK(params.softmax_scale_log2 == doctest::Approx(2.5 * std::log2(std::exp(1.0))));
  // Even 0: then every visible key counts the same, and a masked score stays -inf.
  const FwdParams zero = params_with([](auto& a) { a.softmax_scale = 0.0f; });
  CHECK(zero.softmax_scale_log2 > 0.0f);
  CHECK(zero.softmax_scale_log2 <= 1e-20f);
}

TEST_CASE("launches, references and calibrated files have one default scale, to the last bit") {
  for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
    verify::Case c;
    c.problem.head_dim = head_dim;
    const float scale = verify::softmax_scale_of(c);
    CHECK(scale == runtime::softmax_scale_of({}, head_dim));
    const float of_launch = runtime::softmax_scale_log2_of({}, head_dim);
    CHECK(of_launch == runtime::softmax_scale_log2_of(scale, head_dim));
  }
}

TEST_CASE("a tensor of another type is refused by name") {
  for (const auto& [name, tensor] :
       {std::pair{"q", &jit::Args::q}, std::pair{"k", &jit::Args::k}, std::pair{"v", &jit::Args::v},
        std::pair{"out", &jit::Args::out}}) {
    CHECK(refusal([&](auto& a) { (a.*tensor).dtype = DType::bfloat16; }) ==
          fmt::format("{} is bf16, but the kernel was bound for fp16", name));
  }
}

TEST_CASE("a tensor of another shape is refused by name") {
  const std::string order = " ([batch, seqlen, heads, head_dim])";
  CHECK(refusal([](auto& a) { a.q.shape[2] = 8; }) ==
        "q has shape [2, 5, 8, 64], expected [2, 5, 4, 64]" + order);
  CHECK(refusal([](auto& a) { a.q.shape[3] = 128; }) ==
        "q has shape [2, 5, 4, 128], expected [2, 5, 4, 64]" + order);
  CHECK(refusal([](auto& a) { a.k.shape[0] = 3; }) ==
        "k has shape [3, 7, 2, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.k.shape[2] = 4; }) ==
        "k has shape [2, 7, 4, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.v.shape[1] = 8; }) ==
        "v has shape [2, 8, 2, 64], expected [2, 7, 2, 64]" + order);
  CHECK(refusal([](auto& a) { a.out.shape[1] = 7; }) ==
        "out has shape [2, 7, 4, 64], expected [2, 5, 4, 64]" + order);
}

TEST_CASE("null and misaligned tensors are refused by name") {
  for (const auto& [name, tensor] :
       {std::pair{"q", &jit::Args::q}, std::pair{"k", &jit::Args::k}, std::pair{"v", &jit::Args::v},
        std::pair{"out", &jit::Args::out}}) {
    CHECK(refusal([&](auto& a) { (a.*tensor).data = nullptr; }) == fmt::format("{} is null", name));
    CHECK(refusal([&](auto& a) { (a.*tensor).data = memory.data() + 8; }) ==
          fmt::format("{} at {} is not aligned to 16 bytes", name,
                      static_cast<void*>(memory.data() + 8)));
    CHECK_NOTHROW(params_with([&](auto& a) { (a.*tensor).data = memory.data() + 16; }));
  }
}

TEST_CASE("strides that 16-byte copies cannot follow are refused") {
  CHECK(refusal([](auto& a) { a.q.stride[3] = 2; }) ==
        "q has stride 2 between the elements of a head: it must be 1");
  CHECK(refusal([](auto& a) { a.v.stride[3] = 0; }) ==
        "v has stride 0 between the elements of a head: it must be 1");
  const std::string multiple = ": it must be a multiple of 8 elements (16 bytes)";
  CHECK(refusal([](auto& a) { a.q.stride[0] = 1284; }) ==
        "q has stride 1284 in dimension 0" + multiple);
  CHECK(refusal([](auto& a) { a.k.stride[1] = 129; }) ==
        "k has stride 129 in dimension 1" + multiple);
  CHECK(refusal([](auto& a) { a.out.stride[2] = 65; }) ==
        "out has stride 65 in dimension 2" + multiple);
  for (const int dim : {0, 1, 2}) {
    CHECK(refusal([&](auto& a) { a.out.stride[dim] = 0; }) ==
          fmt::format("out has stride 0 in dimension {}: its elements would overlap, for 64 lie "
                      "within one step",
                      dim));
    // An input that repeats itself is fine.
    CHECK_NOTHROW(params_with([&](auto& a) { a.q.stride[dim] = a.k.stride[dim] = 0; }));
  }
}

TEST_CASE("a dimension of one element may have any stride") {
  jit::Args args = valid_args();
  for (Tensor* tensor : {&args.q, &args.k, &args.v, &args.out}) {
    tensor->shape[0] = 1;
    tensor->stride[0] = 3;
  }
  CHECK_NOTHROW(runtime::forward_params(args, kLaunched));
}

TEST_CASE("sequences without tokens need no memory") {
  const auto empty = [](int dim, std::initializer_list<Tensor jit::Args::*> tensors) {
    return params_with([&](auto& a) {
      for (const auto tensor : tensors) {
        (a.*tensor).shape[dim] = 0;
        (a.*tensor).data = nullptr;
        (a.*tensor).stride = {};
      }
    });
  };
  CHECK(empty(1, {&jit::Args::k, &jit::Args::v}).geometry.seqlen_k == 0);
  CHECK(empty(1, {&jit::Args::k, &jit::Args::v}).geometry.q_start == -5);
  CHECK(empty(1, {&jit::Args::q, &jit::Args::out}).geometry.seqlen_q == 0);
  CHECK_NOTHROW(empty(0, {&jit::Args::q, &jit::Args::k, &jit::Args::v, &jit::Args::out}));
}

TEST_CASE("lengths beyond the numbers' limit are refused") {
  const std::string range = ": it must be from 0 to 536870912";
  const auto resize = [](int dim, std::int64_t to, std::initializer_list<Tensor jit::Args::*> of) {
    const std::vector<Tensor jit::Args::*> tensors(of);
    return [=](jit::Args& a) {
      for (const auto tensor : tensors) (a.*tensor).shape[dim] = to;
    };
  };
  const auto queries = {&jit::Args::q, &jit::Args::out};
  const auto keys = {&jit::Args::k, &jit::Args::v};
  const auto all = {&jit::Args::q, &jit::Args::k, &jit::Args::v, &jit::Args::out};
  CHECK(refusal(resize(1, kMost + 1, queries)) == "seqlen_q is 536870913" + range);
  CHECK(refusal(resize(1, -1, queries)) == "seqlen_q is -1" + range);
  CHECK(refusal(resize(1, kMost + 1, keys)) == "seqlen_k is 536870913" + range);
  CHECK(refusal(resize(1, std::int64_t{1} << 40, keys)) == "seqlen_k is 1099511627776" + range);
  CHECK(refusal(resize(0, -2, all)) == "the batch is -2" + range);
  CHECK(refusal(resize(0, std::int64_t{1} << 32, all)) == "the batch is 4294967296" + range);
  CHECK(params_with(resize(1, kMost, keys)).geometry.seqlen_k == kMost);
}

TEST_CASE("a neighborhood's grid says how many queries there are, and the least number of keys") {
  const auto launch = [](const std::string& pattern, const Change& change) -> std::string {
    jit::Args args = valid_args();
    change(args);
    try {
      runtime::forward_params(args, kLaunched, pattern::grids_of(Pattern::parse(pattern)));
    } catch (const Error& error) {
      CHECK(error.code() == Errc::invalid_argument);
      return error.what();
    }
    return "";
  };
  const Change none = [](jit::Args&) {};
  CHECK(launch("neighborhood(5, window=3)", none) == "");
  CHECK(launch("heads(0: causal, else: !neighborhood(1x5, window=1) | sink(1))", none) == "");
  CHECK(launch("neighborhood(2x3, window=2) & causal", none) ==
        "seqlen_q 5 does not go with neighborhood(2x3): it must be the grid's 6 tokens");
  CHECK(launch("heads(0: neighborhood(5, window=2), else: neighborhood(4, window=2))", none) ==
        "seqlen_q 5 does not go with neighborhood(4): it must be the grid's 4 tokens");
  const Change few_keys = [](jit::Args& args) { args.k.shape[1] = args.v.shape[1] = 4; };
  CHECK(launch("neighborhood(5, window=3)", few_keys) ==
        "seqlen_k 4 does not go with neighborhood(5): it must be the grid's 5 tokens, or more with "
        "extra keys behind them");
}

TEST_CASE("positions beyond the numbers' limit are refused") {
  CHECK(refusal([](auto& a) { a.k_start = -1; }) ==
        "k_start is -1: it must be from 0 to 536870912");
  CHECK(refusal([](auto& a) { a.k_start = kMost + 1, a.q_start = 0; }) ==
        "k_start is 536870913: it must be from 0 to 536870912");
  const std::string range = ": it must be from -536870912 to 536870912";
  CHECK(refusal([](auto& a) { a.q_start = kMost + 1; }) == "q_start is 536870913" + range);
  CHECK(refusal([](auto& a) { a.q_start = -kMost - 1; }) == "q_start is -536870913" + range);
  // The default follows from k_start, and may leave the range with it.
  CHECK(refusal([](auto& a) { a.k_start = kMost; }) == "q_start is 536870914" + range);
  CHECK(refusal([](auto& a) { a.k_start = std::numeric_limits<int>::max(); }) ==
        "k_start is 2147483647: it must be from 0 to 536870912");
  CHECK(params_with([](auto& a) { a.q_start = -kMost; }).geometry.q_start == -kMost);
}

TEST_CASE("scales that are no finite factor are refused") {
  for (const auto& [scale, text] :
       {std::pair{std::numeric_limits<float>::quiet_NaN(), "nan"}, std::pair{-0.5f, "-0.5"},
        std::pair{std::numeric_limits<float>::infinity(), "inf"},
        std::pair{-std::numeric_limits<float>::infinity(), "-inf"}}) {
    CHECK(refusal([&](auto& a) { a.softmax_scale = scale; }) ==
          fmt::format("softmax_scale {} must be finite and not negative", text));
  }
}

TEST_CASE("a misaligned lse and a negative cap of CTAs are refused") {
  void* const odd = memory.data() + 2;
  CHECK(refusal([&](auto& a) { a.lse = static_cast<float*>(odd); }) ==
        fmt::format("lse at {} is not aligned to 4 bytes", odd));
  CHECK(refusal([](auto& a) { a.max_ctas = -1; }) == "max_ctas -1 must not be negative");
}
