// Launching: arguments that are refused, streams, threads, captures, and handles' lives.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <functional>
#include <future>
#include <limits>
#include <thread>

#include "../texts.hpp"
#include "support.hpp"

using namespace gpu_tests;
using girih::DType;
using girih::Errc;
using girih::Error;
using girih::Layout;
using girih::Pattern;
using girih::Problem;
using girih::jit::Args;
using girih::tests::contains;
using girih::tests::message_of;
using girih::verify::Case;
using girih::verify::Workload;

namespace {

class Stream {
 public:
  Stream() {
    girih::cuda::check(DRIVER(cuStreamCreate)(&stream_, CU_STREAM_NON_BLOCKING), "stream");
  }
  ~Stream() { DRIVER(cuStreamDestroy)(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  CUstream get() const { return stream_; }

 private:
  CUstream stream_ = nullptr;
};

const char* const kPattern = "causal & (sink(16) | window(left=63))";
const Problem kProblem = make_problem(DType::bfloat16, 128, 4, 2);

Case small_case() {
  Case c;
  c.problem = kProblem;
  c.batch = 2;
  c.seqlen_q = 130;
  c.seqlen_k = 200;
  return c;
}

// As they are on the device now.
std::vector<std::uint16_t> results(Workload& workload) {
  workload.download_outputs();
  return result_bits(workload);
}

std::vector<std::uint16_t> results_of_launch(const girih::jit::Kernel& kernel, Workload& workload) {
  workload.poison_outputs();
  kernel.launch(workload.args());
  girih::verify::synchronize();
  return results(workload);
}

struct Fault {
  const char* name;
  std::function<void(Args&)> spoil;
  const char* mentions;  // in the message
};

// Launches with each fault in turn: all are refused, and nothing is written.
void check_refused(const girih::jit::Kernel& kernel, const Case& c, const std::vector<Fault>& bad) {
  Workload workload(c);
  workload.fill_normal(1);
  workload.poison_outputs();
  for (const Fault& entry : bad) {
    CAPTURE(entry.name);
    Args args = workload.args();
    entry.spoil(args);
    try {
      kernel.launch(args);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      const std::string message = error.what();
      CAPTURE(message);
      CHECK(error.code() == Errc::invalid_argument);
      CHECK(message.find(entry.mentions) != std::string::npos);
    }
  }
  girih::verify::synchronize();
  workload.download_outputs();
  CHECK(workload.out.count_written() == 0);
}

void shift(girih::Tensor& tensor, int bytes) {
  tensor.data = static_cast<char*>(tensor.data) + bytes;
}

template <class Value>
void shift(Value*& pointer, int bytes) {
  pointer = reinterpret_cast<Value*>(reinterpret_cast<std::uintptr_t>(pointer) +
                                     static_cast<std::uintptr_t>(bytes));
}

Case packed_case() {
  Case c;
  c.problem = make_problem(DType::bfloat16, 64, 4, 2, 48, Layout::thd);
  c.batch = 3;
  c.seqlen_q = 60;
  c.seqlen_k = 90;
  c.lengths = {{60, 1, 33}, {0, 90, 40}, {0, 77, 40}, {0, 3, 0}};
  return c;
}

}  // namespace

TEST_CASE("arguments that cannot be right are refused before anything is launched") {
  const girih::verify::Buffer memory(64);
  const int* const numbers = static_cast<const int*>(memory.data());
  const std::vector<Fault> bad = {
      {"q is null", [](Args& a) { a.q.data = nullptr; }, "null"},
      {"k is null", [](Args& a) { a.k.data = nullptr; }, "null"},
      {"v is null", [](Args& a) { a.v.data = nullptr; }, "null"},
      {"out is null", [](Args& a) { a.out.data = nullptr; }, "null"},
      {"q is misaligned", [](Args& a) { shift(a.q, 2); }, "16"},
      {"k is misaligned", [](Args& a) { shift(a.k, 8); }, "16"},
      {"v is misaligned", [](Args& a) { shift(a.v, 4); }, "16"},
      {"out is misaligned", [](Args& a) { shift(a.out, 2); }, "16"},
      {"q's row stride", [](Args& a) { a.q.stride[1] += 4; }, "8"},
      {"k's head stride", [](Args& a) { a.k.stride[2] += 1; }, "8"},
      {"v's batch stride", [](Args& a) { a.v.stride[0] += 2; }, "8"},
      {"out's row stride", [](Args& a) { a.out.stride[1] += 4; }, "8"},
      {"q's last stride", [](Args& a) { a.q.stride[3] = 2; }, "stride 2"},
      {"q's dtype", [](Args& a) { a.q.dtype = DType::float16; }, "fp16"},
      {"k's dtype", [](Args& a) { a.k.dtype = DType::float16; }, "fp16"},
      {"out's dtype", [](Args& a) { a.out.dtype = DType::float16; }, "fp16"},
      {"q's heads", [](Args& a) { a.q.shape[2] = 3; }, "3"},
      {"k's heads", [](Args& a) { a.k.shape[2] = 1; }, "1"},
      {"v's heads", [](Args& a) { a.v.shape[2] = 4; }, "4"},
      {"q's head_dim", [](Args& a) { a.q.shape[3] = 64; }, "64"},
      {"v's head_dim", [](Args& a) { a.v.shape[3] = 64; }, "64"},
      {"v is shorter than k", [](Args& a) { a.v.shape[1] -= 1; }, "199"},
      {"out is shorter than q", [](Args& a) { a.out.shape[1] -= 1; }, "129"},
      {"k's batch", [](Args& a) { a.k.shape[0] = 1; }, "1"},
      {"out's batch", [](Args& a) { a.out.shape[0] = 1; }, "1"},
      {"negative seqlen_q", [](Args& a) { a.q.shape[1] = a.out.shape[1] = -1; }, "-1"},
      {"negative seqlen_k", [](Args& a) { a.k.shape[1] = a.v.shape[1] = -5; }, "-5"},
      {"negative batch",
       [](Args& a) { a.q.shape[0] = a.k.shape[0] = a.v.shape[0] = a.out.shape[0] = -2; }, "-2"},
      {"seqlen_k too large",
       [](Args& a) { a.k.shape[1] = a.v.shape[1] = (std::int64_t{1} << 29) + 1; }, "536870913"},
      {"seqlen_q too large", [](Args& a) { a.q.shape[1] = a.out.shape[1] = std::int64_t{1} << 33; },
       "8589934592"},
      {"softmax_scale is NaN", [](Args& a) { a.softmax_scale = std::nanf(""); }, "softmax_scale"},
      {"softmax_scale is infinite",
       [](Args& a) { a.softmax_scale = std::numeric_limits<float>::infinity(); }, "softmax_scale"},
      {"softmax_scale is negative", [](Args& a) { a.softmax_scale = -1.0f; }, "softmax_scale"},
      {"q_start too large", [](Args& a) { a.q_start = 1 << 30; }, "q_start"},
      {"k_start too large", [](Args& a) { a.k_start = 1 << 30; }, "k_start"},
      {"out's row stride is 0", [](Args& a) { a.out.stride[1] = 0; }, "overlap"},
      {"lse is misaligned", [](Args& a) { shift(a.lse, 2); }, "aligned to 4"},
      {"empty_lse is 0", [](Args& a) { a.empty_lse = 0; }, "empty_lse"},
      {"empty_lse is NaN", [](Args& a) { a.empty_lse = std::nanf(""); }, "empty_lse"},
      {"another layout", [](Args& a) { a.layout = Layout::bhsd; }, "bhsd"},
      {"packed", [](Args& a) { a.layout = Layout::thd; }, "thd"},
      {"cu_seqlens_q", [&](Args& a) { a.cu_seqlens_q = numbers; }, "thd"},
      {"cu_seqlens_k", [&](Args& a) { a.cu_seqlens_k = numbers; }, "thd"},
      {"num_sequences", [](Args& a) { a.num_sequences = 2; }, "thd"},
      {"max_seqlen_q", [](Args& a) { a.max_seqlen_q = 130; }, "thd"},
      {"max_seqlen_k", [](Args& a) { a.max_seqlen_k = 200; }, "thd"},
      {"seqused_k is misaligned", [&](Args& a) { shift(a.seqused_k = numbers, 2); }, "seqused_k"},
      {"leftpad_k is misaligned", [&](Args& a) { shift(a.leftpad_k = numbers, 1); }, "leftpad_k"},
  };
  check_refused(girih::jit::compile(Pattern::parse(kPattern), kProblem), small_case(), bad);
}

TEST_CASE("arguments of packed sequences that cannot be right are refused") {
  const std::vector<Fault> bad = {
      {"no cu_seqlens_q", [](Args& a) { a.cu_seqlens_q = nullptr; }, "cu_seqlens"},
      {"no cu_seqlens_k", [](Args& a) { a.cu_seqlens_k = nullptr; }, "cu_seqlens"},
      {"cu_seqlens_q is misaligned", [](Args& a) { shift(a.cu_seqlens_q, 2); }, "cu_seqlens_q"},
      {"cu_seqlens_k is misaligned", [](Args& a) { shift(a.cu_seqlens_k, 1); }, "cu_seqlens_k"},
      {"seqused_k is misaligned", [](Args& a) { shift(a.seqused_k, 2); }, "seqused_k"},
      {"leftpad_k is misaligned", [](Args& a) { shift(a.leftpad_k, 3); }, "leftpad_k"},
      {"negative num_sequences", [](Args& a) { a.num_sequences = -1; }, "num_sequences is -1"},
      {"negative max_seqlen_q", [](Args& a) { a.max_seqlen_q = -2; }, "max_seqlen_q is -2"},
      {"max_seqlen_k too large", [](Args& a) { a.max_seqlen_k = (1 << 29) + 1; }, "536870913"},
      {"two batch elements", [](Args& a) { a.q.shape[0] = 2; }, "[1, total"},
      {"out is shorter than q", [](Args& a) { a.out.shape[1] -= 1; }, "93"},
      {"v is shorter than k", [](Args& a) { a.v.shape[1] -= 1; }, "129"},
      {"another layout", [](Args& a) { a.layout = Layout::bshd; }, "bshd"},
      {"v as wide as k", [](Args& a) { a.v.shape[3] = 64; }, "64"},
      {"out as wide as q", [](Args& a) { a.out.shape[3] = 64; }, "64"},
      {"k as wide as v", [](Args& a) { a.k.shape[3] = 48; }, "48"},
      {"empty_lse is 1", [](Args& a) { a.empty_lse = 1; }, "empty_lse"},
  };
  const Case c = packed_case();
  check_refused(girih::jit::compile(Pattern::parse(kPattern), c.problem), c, bad);
}

TEST_CASE("no sequences are nothing to do") {
  const Case c = packed_case();
  const auto kernel = girih::jit::compile(Pattern::parse(kPattern), c.problem);
  Workload workload(c);
  workload.poison_outputs();
  Args args = workload.args();
  args.num_sequences = 0;
  args.cu_seqlens_q = args.cu_seqlens_k = nullptr;
  CHECK_NOTHROW(kernel.launch(args));
  args = workload.args();
  args.max_seqlen_q = 0;
  CHECK_NOTHROW(kernel.launch(args));
  girih::verify::synchronize();
  workload.download_outputs();
  CHECK(workload.out.count_written() == 0);
}

TEST_CASE("problems that no kernel does are refused when they are bound") {
  const auto program = girih::jit::compile(Pattern::parse(kPattern));
  struct Bad {
    Problem problem;
    const char* mentions;
  };
  for (const Bad& entry :
       std::vector<Bad>{{make_problem(DType::bfloat16, 0, 4, 2), "0"},
                        {make_problem(DType::bfloat16, 17, 4, 2), "17"},
                        {make_problem(DType::bfloat16, 512, 4, 2), "512"},
                        {make_problem(DType::bfloat16, 128, 4, 3), "3"},
                        {make_problem(DType::bfloat16, 128, 0, 1), "0"},
                        {make_problem(DType::bfloat16, 64, 4, 2, 20), "head_dim_v 20"},
                        {make_problem(DType::bfloat16, 64, 4, 2, 272), "head_dim_v 272"},
                        {make_problem(DType::bfloat16, 64, 4, 2, -16), "head_dim_v -16"},
                        {make_problem(DType::bfloat16, 8, 4, 2, 64), "head_dim 8"}}) {
    CAPTURE(describe(entry.problem));
    try {
      program.bind(entry.problem);
      FAIL_CHECK("accepted");
    } catch (const Error& error) {
      const std::string message = error.what();
      CAPTURE(message);
      const bool refused =
          error.code() == Errc::unsupported || error.code() == Errc::invalid_argument;
      CHECK(refused);
      CHECK(message.find(entry.mentions) != std::string::npos);
    }
  }
}

TEST_CASE("a closed-form pattern needs no workspace, and its kernel says what it is") {
  const auto kernel = girih::jit::compile(Pattern::parse(kPattern), kProblem);
  CHECK(kernel.workspace_bytes(Workload(small_case()).args()) == 0);
  CHECK(kernel.problem() == kProblem);
  CHECK(kernel.info().threads > 0);
  CHECK(kernel.info().registers > 0);
  CHECK(kernel.info().spill_bytes == 0);
  CHECK(kernel.info().stack_bytes == 0);
  CHECK(kernel.info().arch.starts_with("sm_"));
}

TEST_CASE("a program binds by itself and a kernel outlives its program") {
  Case strided = small_case();
  strided.problem.head_dim_v = 96;
  strided.problem.layout = Layout::bhsd;
  for (const Case& c : {small_case(), strided, packed_case()}) {
    CAPTURE(describe(c.problem));
    Workload workload(c);
    workload.fill_normal(1);
    const auto kernel = [&] {
      const auto program = girih::jit::compile(Pattern::parse(kPattern));
      return program.bind(c.problem);
    }();
    const auto expected = results_of_launch(kernel, workload);
    CHECK(!expected.empty());

    const auto attention = girih::jit::compile(Pattern::parse(kPattern));
    for (int call = 0; call < 2; ++call) {
      workload.poison_outputs();
      attention(workload.args());
      girih::verify::synchronize();
      CHECK(results(workload) == expected);
    }
  }
}

TEST_CASE("two streams at once, each with its own tensors, do not disturb one another") {
  const auto kernel = girih::jit::compile(Pattern::parse(kPattern), kProblem);
  const Case c = small_case();
  Workload first(c), second(c);
  first.fill_normal(1);
  second.fill_normal(2);
  const auto expected_first = results_of_launch(kernel, first);
  const auto expected_second = results_of_launch(kernel, second);
  CHECK(expected_first != expected_second);

  const Stream stream_of_first, stream_of_second;
  first.poison_outputs();
  second.poison_outputs();
  girih::verify::synchronize();
  for (int i = 0; i < 50; ++i) {
    Args args = first.args();
    args.stream = stream_of_first.get();
    kernel.launch(args);
    args = second.args();
    args.stream = stream_of_second.get();
    kernel.launch(args);
  }
  girih::verify::synchronize();
  CHECK(results(first) == expected_first);
  CHECK(results(second) == expected_second);
}

TEST_CASE("several threads bind and launch one program") {
  const Case c = small_case();
  Workload reference(c);
  reference.fill_normal(9);
  const auto expected =
      results_of_launch(girih::jit::compile(Pattern::parse(kPattern), kProblem), reference);

  const auto attention = girih::jit::compile(Pattern::parse(kPattern));
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  constexpr int kThreads = 8;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      try {
        const girih::verify::Device device;
        Workload workload(c);
        workload.fill_normal(9);
        workload.poison_outputs();
        for (int run = 0; run < 10; ++run) attention(workload.args());
        girih::verify::synchronize();
        right += results(workload) == expected;
      } catch (const std::exception&) {  // not counted as right
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(right == kThreads);
}

TEST_CASE("a thread without a context is told that there is none") {
  const auto program = girih::jit::compile(Pattern::parse(kPattern));
  Errc code = Errc::internal;
  std::string message;
  std::thread([&] {
    try {
      program.bind(kProblem);
    } catch (const Error& error) {
      code = error.code();
      message = error.what();
    }
  }).join();
  CAPTURE(message);
  CHECK(code == Errc::no_device);
  CHECK(message.find("context") != std::string::npos);
}

TEST_CASE("a capture refuses an unbound problem and records a bound one") {
  Workload workload(small_case());
  workload.fill_normal(4);
  const auto attention = girih::jit::compile(Pattern::parse(kPattern));
  const Stream stream;
  Args args = workload.args();
  args.stream = stream.get();

  const auto begin_capture = [&] {
    girih::cuda::check(DRIVER(cuStreamBeginCapture)(stream.get(), CU_STREAM_CAPTURE_MODE_GLOBAL),
                       "begin");
  };
  const auto end_capture = [&] {
    CUgraph graph = nullptr;
    girih::cuda::check(DRIVER(cuStreamEndCapture)(stream.get(), &graph), "end");
    return graph;
  };

  begin_capture();
  std::string message;
  try {
    attention(args);
  } catch (const Error& error) {
    message = error.what();
  }
  DRIVER(cuGraphDestroy)(end_capture());  // a refusal leaves the capture intact
  CAPTURE(message);
  CHECK(message.find("captur") != std::string::npos);

  workload.poison_outputs();
  girih::verify::synchronize();
  attention(args);  // binds
  girih::verify::synchronize();
  const auto expected = results(workload);

  begin_capture();
  CHECK_NOTHROW(attention(args));
  const CUgraph graph = end_capture();
  CUgraphExec executable = nullptr;
  girih::cuda::check(DRIVER(cuGraphInstantiate)(&executable, graph, 0), "instantiate");
  workload.poison_outputs();
  girih::verify::synchronize();
  girih::cuda::check(DRIVER(cuGraphLaunch)(executable, stream.get()), "launch");
  girih::verify::synchronize();
  CHECK(results(workload) == expected);
  DRIVER(cuGraphExecDestroy)(executable);
  DRIVER(cuGraphDestroy)(graph);
}

TEST_CASE("a captured launch may run beside itself and beside others on its stream") {
  girih::verify::Case c = small_case();
  c.seqlen_q = c.seqlen_k = 2000;
  c.max_ctas = 3;  // each takes many query tiles
  Workload workload(c), other(c);
  workload.fill_normal(5);
  other.fill_normal(5);
  const auto kernel = girih::jit::compile(Pattern::parse(kPattern), c.problem);
  const Stream stream, second;
  Args args = workload.args(), direct = other.args();
  args.stream = direct.stream = stream.get();
  kernel.launch(direct);
  girih::verify::synchronize();
  const auto expected = results(other);

  girih::cuda::check(DRIVER(cuStreamBeginCapture)(stream.get(), CU_STREAM_CAPTURE_MODE_GLOBAL),
                     "begin");
  kernel.launch(args);
  CUgraph graph = nullptr;
  girih::cuda::check(DRIVER(cuStreamEndCapture)(stream.get(), &graph), "end");
  CUgraphExec executables[2] = {};
  for (CUgraphExec& executable : executables) {
    girih::cuda::check(DRIVER(cuGraphInstantiate)(&executable, graph, 0), "instantiate");
  }
  for (int repeat = 0; repeat < 20; ++repeat) {
    workload.poison_outputs();
    other.poison_outputs();
    girih::verify::synchronize();
    girih::cuda::check(DRIVER(cuGraphLaunch)(executables[0], second.get()), "launch");
    kernel.launch(direct);
    girih::cuda::check(DRIVER(cuGraphLaunch)(executables[1], stream.get()), "launch");
    girih::verify::synchronize();
    CHECK(results(workload) == expected);
    CHECK(results(other) == expected);
  }
  for (const CUgraphExec executable : executables) DRIVER(cuGraphExecDestroy)(executable);
  DRIVER(cuGraphDestroy)(graph);
}

namespace {

Case listed_case(girih::verify::BlockForm form) {
  Case c = small_case();
  const int rows = (c.seqlen_q + 63) / 64, columns = (c.seqlen_k + 31) / 32;
  c.inputs = {
      girih::verify::random_blocks("m", c.batch, c.problem.num_heads, rows, columns, 0.5, 0, 3)};
  c.inputs[0].form = form;
  return c;
}

constexpr const char* kListed = "causal & blocks(m, q=64, kv=32)";

std::vector<std::uint16_t> downloaded(Workload& workload) {
  girih::verify::synchronize();
  workload.download_outputs();
  return result_bits(workload);
}

}  // namespace

TEST_CASE("a program builds lists by itself, also in a capture, as a kernel does in a workspace") {
  using girih::verify::BlockForm;
  for (const BlockForm form : {BlockForm::list, BlockForm::table, BlockForm::bytes}) {
    Workload workload(listed_case(form));
    workload.fill_normal(5);
    const auto attention = girih::jit::compile(Pattern::parse(kListed));
    const auto kernel = attention.bind(kProblem);
    const Stream stream;
    Args args = workload.args();
    args.stream = stream.get();

    const girih::verify::Buffer memory(kernel.workspace_bytes(args));
    CHECK(memory.size() > 0);
    workload.poison_outputs();
    kernel.build_lists(args, {memory.data(), memory.size()});
    kernel.launch(args, {memory.data(), memory.size()});
    const auto expected = downloaded(workload);

    workload.poison_outputs();
    attention(args);
    CHECK(downloaded(workload) == expected);

    girih::cuda::check(DRIVER(cuStreamBeginCapture)(stream.get(), CU_STREAM_CAPTURE_MODE_GLOBAL),
                       "begin");
    attention(args);
    CUgraph graph = nullptr;
    girih::cuda::check(DRIVER(cuStreamEndCapture)(stream.get(), &graph), "end");
    CUgraphExec executable = nullptr;
    girih::cuda::check(DRIVER(cuGraphInstantiate)(&executable, graph, 0), "instantiate");
    for (int run = 0; run < 2; ++run) {
      workload.poison_outputs();
      girih::verify::synchronize();
      girih::cuda::check(DRIVER(cuGraphLaunch)(executable, stream.get()), "launch");
      CHECK(downloaded(workload) == expected);
    }
    DRIVER(cuGraphExecDestroy)(executable);
    DRIVER(cuGraphDestroy)(graph);
  }
}

TEST_CASE("entries out of range are ignored, and refused where a check is asked for") {
  using girih::verify::BlockForm;
  for (const BlockForm form :
       {BlockForm::list, BlockForm::plane_list, BlockForm::table, BlockForm::bytes}) {
    const Workload workload(listed_case(form));  // lists come with such entries
    const auto kernel = girih::jit::compile(Pattern::parse(kListed), kProblem);
    const Args args = workload.args();
    const girih::verify::Buffer memory(kernel.workspace_bytes(args));
    const girih::jit::Workspace workspace{memory.data(), memory.size()};
    kernel.build_lists(args, workspace);
    std::string message;
    try {
      kernel.build_lists(args, workspace, girih::jit::Check::yes);
    } catch (const Error& error) {
      message = error.what();
    }
    CAPTURE(message);
    const bool refused = message.find("the input 'm' has ") != std::string::npos;
    CHECK(refused == (form != BlockForm::bytes));
  }
}

TEST_CASE("a launch that differs from its thread's last one is planned anew") {
  const auto kernel = girih::jit::compile(Pattern::parse(kPattern), kProblem);
  const auto other = girih::jit::compile(Pattern::parse("causal"), kProblem);
  Workload workload(small_case());
  workload.fill_normal(1);
  Args args = workload.args();
  args.q_start = -5;  // so that some rows see nothing
  const auto launch = [&](const girih::jit::Kernel& launched, const Args& its) {
    workload.poison_outputs();
    launched.launch(its);
    girih::verify::synchronize();
    return results(workload);
  };
  const auto expected = launch(kernel, args);

  const auto check = [&](const girih::jit::Kernel& launched, const Args& changed) {
    // By a thread that has launched nothing before.
    const auto alone = std::async(std::launch::async, [&] {
                         const girih::verify::Device device;
                         return launch(launched, changed);
                       }).get();
    CHECK(alone != expected);
    CHECK(launch(kernel, args) == expected);
    Args refused = changed;
    refused.max_ctas = -1;
    CHECK_THROWS_AS(launched.launch(refused), Error);
    CHECK(launch(launched, changed) == alone);
  };
  check(other, args);
  const std::vector<std::pair<const char*, std::function<void(Args&)>>> changes = {
      {"data of k", [](Args& a) { a.k.data = a.v.data; }},
      {"data of v", [](Args& a) { a.v.data = a.k.data; }},
      {"strides", [](Args& a) { a.q.stride[2] = 0; }},
      {"shapes", [](Args& a) { a.q.shape[1] = a.out.shape[1] = 100; }},
      {"lse", [](Args& a) { a.lse = nullptr; }},
      {"softmax_scale", [](Args& a) { a.softmax_scale = 0.5f; }},
      {"empty_lse", [](Args& a) { a.empty_lse = std::numeric_limits<float>::infinity(); }},
      {"q_start", [](Args& a) { a.q_start = std::nullopt; }},
      {"k_start", [](Args& a) { a.k_start = 7; }},
  };
  for (const auto& [name, change] : changes) {
    CAPTURE(name);
    Args changed = args;
    change(changed);
    check(kernel, changed);
  }
}

TEST_CASE("a launch with other inputs or another workspace than its thread's last one has them") {
  Case c = listed_case(girih::verify::BlockForm::list);
  Workload first(c);
  c.inputs[0] =
      girih::verify::random_blocks("m", c.inputs[0].batch, c.inputs[0].heads,
                                   c.inputs[0].num_q_blocks, c.inputs[0].num_kv_blocks, 0.3, 0, 77);
  Workload second(c);
  first.fill_normal(1);
  second.fill_normal(1);
  std::vector<std::vector<std::uint16_t>> expected(2), again(2);
  for (std::vector<std::vector<std::uint16_t>>* found : {&expected, &again}) {
    // A kernel of its own each time, for one that is gone may leave its place to the next.
    const auto kernel = girih::jit::compile(Pattern::parse(kListed), kProblem);
    const girih::verify::Buffer memory[2] = {
        girih::verify::Buffer(kernel.workspace_bytes(first.args())),
        girih::verify::Buffer(kernel.workspace_bytes(second.args()))};
    for (int i = 0; i < 2; ++i) {
      Workload& workload = i == 0 ? first : second;
      Args args = first.args();  // but for the inputs
      args.inputs = workload.args().inputs;
      first.poison_outputs();
      kernel.build_lists(args, {memory[i].data(), memory[i].size()});
      kernel.launch(args, {memory[i].data(), memory[i].size()});
      girih::verify::synchronize();
      (*found)[static_cast<std::size_t>(i)] = results(first);
    }
    const girih::jit::Workspace of_first{memory[0].data(), memory[0].size()};
    first.poison_outputs();
    kernel.launch(first.args(), of_first);
    girih::verify::synchronize();
    CHECK(results(first) == (*found)[0]);
  }
  CHECK(expected[0] != expected[1]);
  CHECK(again == expected);
}

TEST_CASE("a program that checks its inputs refuses what is out of range, and no capture") {
  girih::jit::Options options;
  options.check_inputs = girih::jit::Check::yes;
  const auto refusal = [](const girih::jit::Program& program, const Args& args) {
    return message_of([&] { program(args); });
  };
  Workload listed(listed_case(girih::verify::BlockForm::list));  // lists come with such entries
  listed.fill_normal(1);
  listed.poison_outputs();
  const girih::jit::Program lists(Pattern::parse(kListed), options);
  CHECK(contains(refusal(lists, listed.args()), "the input 'm' has "));
  girih::verify::synchronize();
  listed.download_outputs();
  CHECK(listed.out.count_written() == 0);

  Case pruned = small_case();
  girih::verify::InputData thresholds{.kind = girih::InputInfo::Kind::thresholds, .name = "t"};
  thresholds.heads = kProblem.num_heads;
  thresholds.num_columns = 2;
  thresholds.prune_kv = 64;
  thresholds.thresholds.assign(2 * static_cast<std::size_t>(kProblem.num_heads), -1.0f);
  pruned.inputs = {thresholds};
  const girih::jit::Program prune(Pattern::parse("causal with prune(t, kv=64)"), options);
  Workload finite(pruned);
  finite.fill_normal(1);
  CHECK_NOTHROW(prune(finite.args()));
  pruned.inputs[0].thresholds[3] = std::numeric_limits<float>::quiet_NaN();
  const Workload nan(pruned);
  CHECK(contains(refusal(prune, nan.args()), "the input 't' is NaN in head 1, column 1"));

  const Stream stream;
  Args args = finite.args();
  args.stream = stream.get();
  girih::cuda::check(
      DRIVER(cuStreamBeginCapture)(stream.get(), CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "capture");
  const std::string message = refusal(prune, args);
  CUgraph graph = nullptr;
  girih::cuda::check(DRIVER(cuStreamEndCapture)(stream.get(), &graph), "capture");
  DRIVER(cuGraphDestroy)(graph);
  CAPTURE(message);
  CHECK(contains(message, "checking run-time inputs cannot be captured"));
}

TEST_CASE("a workspace that lists do not fit in is refused") {
  const Workload workload(listed_case(girih::verify::BlockForm::list));
  const auto kernel = girih::jit::compile(Pattern::parse(kListed), kProblem);
  const Args args = workload.args();
  const girih::verify::Buffer memory(kernel.workspace_bytes(args));
  for (const girih::jit::Workspace& workspace :
       {girih::jit::Workspace{}, girih::jit::Workspace{memory.data(), memory.size() - 1},
        girih::jit::Workspace{static_cast<char*>(memory.data()) + 4, memory.size()}}) {
    for (const bool launch : {false, true}) {
      std::string message;
      try {
        if (launch) {
          kernel.launch(args, workspace);
        } else {
          kernel.build_lists(args, workspace);
        }
      } catch (const Error& error) {
        message = error.what();
      }
      CAPTURE(message);
      CHECK(message.find("workspace") != std::string::npos);
    }
  }
}
