// Values in tensors of every layout: with gaps, packed, shortened and padded sequences, and beyond
// 2^31 elements.
#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <span>
#include <tuple>
#include <vector>

#include "compile/nvrtc.hpp"
#include "cuda/module.hpp"
#include "support/env.hpp"
#include "values.hpp"

using namespace gpu_tests;
using girih::Tensor;
using girih::jit::Args;
using girih::verify::Buffer;
using girih::verify::Row;

TEST_CASE("tensors may be slices of larger ones in every layout") {
  std::vector<Case> cases;
  for (const auto& [dtype, head_dim, head_dim_v] : std::vector<std::tuple<DType, int, int>>{
           {DType::bfloat16, 128, 128}, {DType::float16, 80, 48}}) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
      for (const auto& [row_gap, head_gap] : std::vector<std::pair<int, int>>{
               {0, 0},
               {2 * 6 * 128, 0},  // q, k and v in one [batch, seqlen, 3, heads, head_dim]
               {0, 2 * 128},      // in one [batch, seqlen, heads, 3, head_dim]
               {8, 24}}) {
        Case c = make_case(make_problem(dtype, head_dim, 6, 6, head_dim_v, layout), 2, 130, 203);
        c.row_gap = row_gap;
        c.head_gap = head_gap;
        cases.push_back(c);
      }
    }
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("layouts and strides change no bit of the result") {
  const Problem problem = make_problem(DType::bfloat16, 96, 6, 2, 64);
  for (const girih::TileConfig& tile : kKernels) {
    const auto program =
        girih::jit::compile(Pattern::parse(pattern_text(thirds(), 2)), {.tile = tile});
    std::vector<std::uint16_t> first;
    for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
      for (const int gap : {0, 40}) {
        Case c = make_case(problem, 3, 130, 203);
        c.problem.layout = layout;
        c.row_gap = c.head_gap = gap;
        girih::verify::Workload workload(c);
        workload.fill_normal(1);
        workload.poison_outputs();
        program.bind(c.problem).launch(workload.args());
        girih::verify::synchronize();
        workload.download_outputs();
        const std::vector<std::uint16_t> bits = result_bits(workload);
        if (first.empty()) first = bits;
        CAPTURE(describe(c.problem));
        CAPTURE(describe(tile));
        CHECK(bits == first);
        CHECK(workload.touched_padding() == 0);
      }
    }
  }
}

TEST_CASE("packed sequences of three kinds of heads are right at random lengths") {
  const std::vector<Problem> problems = {
      make_problem(DType::bfloat16, 128, 24, 3),  // groups of 8
      make_problem(DType::float16, 64, 24, 1),
      make_problem(DType::bfloat16, 80, 6, 6, 48),
      make_problem(DType::float16, 192, 6, 3, 128),
  };
  std::mt19937_64 random(41);
  std::vector<Case> cases;
  for (const Problem& problem : problems) {
    const std::vector<int> lengths = ragged_lengths(random, 9, 256);
    cases.push_back(make_packed_case(problem, lengths, lengths));
    for (const auto& [longest_q, longest_k] :
         std::vector<std::pair<int, int>>{{113, 203}, {203, 113}, {129, 300}, {20, 64}}) {
      cases.push_back(make_packed_case(problem, ragged_lengths(random, 8, longest_q),
                                       ragged_lengths(random, 8, longest_k)));
    }
    Case roomy = cases.back();  // maxima far larger than the lengths
    roomy.seqlen_q = 5000;
    roomy.seqlen_k = 9000;
    cases.push_back(roomy);
    Case one = make_packed_case(problem, {257}, {384});
    one.q_start = 20;
    one.k_start = 100;
    cases.push_back(one);
    cases.push_back(make_packed_case(problem, std::vector<int>(150, 1), std::vector<int>(150, 77)));
  }
  for (std::size_t i = 0; i < cases.size(); ++i) {
    cases[i].seed = i + 1;
    if (i % 3 == 1) cases[i].max_ctas = 2;
    if (i % 4 == 1) cases[i].row_gap = 64;
    if (i % 5 == 1) cases[i].empty_lse = HUGE_VALF;
    if (i % 7 == 1) cases[i].with_lse = false;
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

TEST_CASE("seqused_k and leftpad_k hide keys in every layout") {
  std::mt19937_64 random(43);
  std::vector<Case> cases;
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const Problem& problem :
         {make_problem(DType::bfloat16, 128, 24, 3), make_problem(DType::float16, 80, 6, 6, 48)}) {
      for (const auto& [used, padded] :
           std::vector<std::pair<bool, bool>>{{true, false}, {false, true}, {true, true}}) {
        constexpr int kBatch = 7;
        std::vector<int> keys(kBatch, 260);
        Case c = make_case(problem, kBatch, 113, 260);
        if (layout == Layout::thd) {
          keys = ragged_lengths(random, kBatch, 260);
          c = make_packed_case(problem, ragged_lengths(random, kBatch, 113), keys);
        }
        c.problem.layout = layout;
        if (used) c.lengths.used_k = random_parts(random, keys);
        if (padded) c.lengths.leftpad_k = random_parts(random, keys);
        c.seed = cases.size() + 1;
        c.max_ctas = cases.size() % 2 == 0 ? 0 : 2;
        c.empty_lse = cases.size() % 3 == 0 ? HUGE_VALF : -HUGE_VALF;
        cases.push_back(c);
      }
      Case extreme = make_case(problem, 6, 113, 200);
      extreme.problem.layout = layout;
      extreme.lengths.used_k = {0, 200, 1, 500, -3, 64};  // 500: all of them; -3: none
      extreme.lengths.leftpad_k = {0, 200, 0, 199, 0, 64};
      cases.push_back(extreme);
    }
  }
  for (const girih::TileConfig& tile : kKernels) {
    check_all(thirds(), cases, tile);
    check_all({both(causal(), window(40, -1))}, cases, tile);  // key tiles begin anywhere
  }
}

TEST_CASE("packed sequences longer than the maximum end there, and nothing is written beyond") {
  const std::vector<Problem> problems = {make_problem(DType::bfloat16, 128, 6, 2),
                                         make_problem(DType::float16, 80, 6, 6, 48)};
  std::vector<Case> cases;
  for (const Problem& problem : problems) {
    Case c = make_packed_case(problem, {150, 20, 101, 99}, {200, 120, 10, 121});
    c.seqlen_q = 100;
    c.seqlen_k = 120;
    cases.push_back(c);
  }
  for (const girih::TileConfig& tile : kKernels) check_all(thirds(), cases, tile);
}

namespace {

// Where a launch's tensors are so large that the host has no copies. q, k, v and out hold as many
// elements each; values repeat at a prime distance, so that no wrong row looks like the right one.
class HugeTensors {
 public:
  static constexpr std::size_t kPeriod = 1000003;  // elements

  explicit HugeTensors(std::size_t elements)
      : q_(2 * elements), k_(2 * elements), v_(2 * elements), out_(2 * elements) {
    fill(q_, 1);
    fill(k_, 2);
    fill(v_, 3);
  }

  // Launches `c` on the memory as contiguous tensors of its layout, and compares `rows`.
  Report check(const girih::jit::Kernel& kernel, const Case& c, std::span<const Row> rows,
               const girih::verify::MaskRow& mask_row) {
    const auto sequences = girih::verify::sequences_of(c);
    const bool heads_first = c.problem.layout == Layout::bhsd;
    const Launched launched = launch(kernel, c);
    const Args& args = launched.args;
    const Buffer& lse = launched.lse;
    const std::int64_t heads = c.problem.num_heads, width = c.problem.head_dim;
    const std::int64_t num_rows = args.out.shape[heads_first ? 2 : 1];

    Tensor by_row = args.out;  // [batch, row, head, width]
    if (heads_first) std::swap(by_row.shape[1], by_row.shape[2]);
    if (heads_first) std::swap(by_row.stride[1], by_row.stride[2]);
    girih::verify::AttentionInputs inputs{by_row, by_row, by_row,
                                          girih::verify::softmax_scale_of(c)};
    inputs.q.data = q_.data();
    inputs.k.data = k_.data();
    inputs.v.data = v_.data();
    for (Tensor* tensor : {&inputs.q, &inputs.k, &inputs.v}) {
      tensor->shape[0] = c.batch;
      tensor->shape[1] = c.seqlen_k;
    }
    for (const girih::verify::Sequence& s : sequences) {
      const std::int64_t start = s.batch * by_row.stride[0] + s.q_row * by_row.stride[1];
      inputs.starts.push_back({start, start, start});
    }
    const auto words = static_cast<std::size_t>(girih::verify::mask_words(c.seqlen_k));
    std::vector<std::uint32_t> masks(rows.size() * words, 0);
    girih::verify::parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t i) {
      const auto index = static_cast<std::size_t>(i);
      mask_row(rows[index], std::span(masks).subspan(index * words, words));
    });
    const auto reference = gpu_reference_(inputs, rows, masks);

    std::vector<girih::verify::RowCheck> checks;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Row row = rows[i];
      const girih::verify::Sequence& s = sequences[static_cast<std::size_t>(row.b)];
      const std::int64_t element = inputs.starts[static_cast<std::size_t>(row.b)].q +
                                   row.q * by_row.stride[1] + row.h * by_row.stride[2];
      std::vector<std::uint16_t> out(static_cast<std::size_t>(width));
      out_.download(out.data(), 2 * out.size(), 2 * static_cast<std::size_t>(element));
      const std::int64_t lse_index = (s.batch * heads + row.h) * num_rows + s.q_row + row.q;
      float got_lse = 0;
      lse.download(&got_lse, sizeof(float), sizeof(float) * static_cast<std::size_t>(lse_index));
      std::int64_t num_visible = 0;
      for (std::size_t word = 0; word < words; ++word) {
        num_visible += std::popcount(masks[i * words + word]);
      }
      checks.push_back(
          girih::verify::check_row(c.problem.dtype, row, num_visible, reference, i, out, &got_lse));
    }
    Report report;
    girih::verify::judge(checks, report);
    return report;
  }

  // Launches so often, and all that is written must be the first launch's bits.
  void check_repeats(const girih::jit::Kernel& kernel, const Case& c) {
    std::vector<std::uint64_t> first;
    for (int run = 0; run < kRepeats; ++run) {
      const Launched launched = launch(kernel, c);
      const std::vector<std::uint64_t> fingerprints = {fingerprint(out_),
                                                       fingerprint(launched.lse)};
      if (run == 0) first = fingerprints;
      CHECK_MESSAGE(fingerprints == first, "launch " << run << " differs from the first");
    }
  }

 private:
  struct Launched {
    Args args;
    Buffer cu_seqlens, lse;
  };

  Launched launch(const girih::jit::Kernel& kernel, const Case& c) {
    const bool packed = c.problem.layout == Layout::thd;
    std::vector<int> starts = {0};
    for (const int length : c.lengths.q) starts.push_back(starts.back() + length);
    const std::int64_t batch = packed ? 1 : c.batch;
    const std::int64_t num_rows = packed ? starts.back() : c.seqlen_q;
    const std::int64_t heads = c.problem.num_heads, width = c.problem.head_dim;
    const bool heads_first = c.problem.layout == Layout::bhsd;
    const auto view = [&](const Buffer& buffer) {
      return heads_first ? Tensor::contiguous(buffer.data(), c.problem.dtype,
                                              {batch, heads, num_rows, width})
                         : Tensor::contiguous(buffer.data(), c.problem.dtype,
                                              {batch, num_rows, heads, width});
    };
    Launched launched{{},
                      Buffer(starts.size() * sizeof(int)),
                      Buffer(static_cast<std::size_t>(batch * heads * num_rows) * sizeof(float))};
    launched.cu_seqlens.upload(starts.data(), launched.cu_seqlens.size());
    out_.fill(0xff);

    Args& args = launched.args;
    args.q = view(q_);
    args.k = view(k_);
    args.v = view(v_);
    args.out = view(out_);
    args.layout = c.problem.layout;
    args.lse = static_cast<float*>(launched.lse.data());
    if (packed) {
      args.cu_seqlens_q = args.cu_seqlens_k = static_cast<const int*>(launched.cu_seqlens.data());
      args.num_sequences = c.batch;
      args.max_seqlen_q = c.seqlen_q;
      args.max_seqlen_k = c.seqlen_k;
    }
    kernel.launch(args);
    girih::verify::synchronize();
    return launched;
  }

  // One period of normal values from the host, then doubled on the device.
  static void fill(Buffer& buffer, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<std::uint16_t> values(kPeriod);
    for (std::uint16_t& value : values) {
      value = girih::verify::narrow(DType::bfloat16, normal(random));
    }
    buffer.upload(values.data(), 2 * kPeriod);
    const auto begin = reinterpret_cast<CUdeviceptr>(buffer.data());
    for (std::size_t done = 2 * kPeriod; done < buffer.size(); done *= 2) {
      girih::cuda::check(
          DRIVER(cuMemcpyDtoD)(begin + done, begin, std::min(done, buffer.size() - done)),
          "cuMemcpyDtoD");
    }
  }

  // Of memory too large for the host: what its words and their places are hashed to, added up.
  std::uint64_t fingerprint(const Buffer& buffer) {
    if (!hash_) {
      girih::compiler::Request request;
      request.source = kHashSource;
      request.program_name = "girih_test_hash.cu";
      request.arch = girih::verify::Device().arch();
      request.options = girih::compiler::default_options();
      if (const auto nvrtc = girih::support::env("NVRTC")) request.nvrtc_path = *nvrtc;
      hash_ = std::make_unique<girih::cuda::Module>(girih::compiler::compile(request).cubin,
                                                    "add_hashes");
    }
    Buffer sum(sizeof(std::uint64_t));
    sum.fill(0);
    CUdeviceptr words = buffer.address(), target = sum.address();
    auto num_words = static_cast<long long>(buffer.size() / sizeof(std::uint64_t));
    void* arguments[] = {&words, &num_words, &target};
    CUlaunchConfig config{};
    config.gridDimX = 1024;
    config.gridDimY = config.gridDimZ = 1;
    config.blockDimX = 256;
    config.blockDimY = config.blockDimZ = 1;
    girih::cuda::check(
        girih::cuda::driver().cuLaunchKernelEx(&config, hash_->function(), arguments, nullptr),
        "launching add_hashes");
    girih::verify::synchronize();
    std::uint64_t result = 0;
    sum.download(&result, sizeof result);
    return result;
  }

  static constexpr const char* kHashSource = R"(
    typedef unsigned long long uint64;
    extern "C" __global__ void add_hashes(const uint64* words, long long num_words, uint64* sum) {
      uint64 own = 0;
      for (long long i = blockIdx.x * 256LL + threadIdx.x; i < num_words; i += gridDim.x * 256LL) {
        uint64 hash = (words[i] ^ i * 0x9e3779b97f4a7c15) * 0xbf58476d1ce4e5b9;
        own += (hash ^ hash >> 32) * 0x94d049bb133111eb;
      }
      atomicAdd(sum, own);
    })";

  Buffer q_, k_, v_, out_;
  GpuReference gpu_reference_;
  std::unique_ptr<girih::cuda::Module> hash_;
};

}  // namespace

TEST_CASE("tensors of more than 2^31 elements are right, and repeat: 131072 rows of 136 heads") {
  constexpr int kHeads = 136, kWidth = 128, kRows = 131072;
  std::size_t free_bytes = 0, total_bytes = 0;
  girih::cuda::check(DRIVER(cuMemGetInfo)(&free_bytes, &total_bytes), "cuMemGetInfo");
  constexpr std::size_t kElements = std::size_t{kHeads} * kWidth * kRows;
  if (free_bytes < 9 * kElements) {  // 2 bytes, four tensors, and some
    MESSAGE("left out: needs " << 9 * kElements << " bytes of device memory, free are "
                               << free_bytes);
    return;
  }
  const oracle::Expr expr = streaming(16, 256);
  HugeTensors tensors(kElements);

  const auto problem = [&](Layout layout) {
    return make_problem(DType::bfloat16, kWidth, kHeads, kHeads, 0, layout);
  };
  for (const Case& c : {make_case(problem(Layout::bshd), 1, kRows, kRows),  // far rows
                        make_case(problem(Layout::bshd), 128, 1024, 1024),  // far batch elements
                        make_case(problem(Layout::bhsd), 1, kRows, kRows),  // far heads
                        make_packed_case(problem(Layout::thd), {1001, 125000, 5071},
                                         {1001, 125000, 5071})}) {  // far sequences
    std::vector<Row> rows;
    for (const int h : {0, 67, kHeads - 2, kHeads - 1}) {
      for (const int b : {0, c.batch / 2, c.batch - 1}) {
        const int last = girih::verify::sequences_of(c)[static_cast<std::size_t>(b)].seqlen_q - 1;
        for (const int q : {0, 1, 127, 128, last / 2, last - 128, last - 1, last}) {
          rows.push_back({b, h, q});
        }
      }
    }
    for (const girih::TileConfig& tile : kKernels) {
      const auto kernel =
          girih::jit::compile(Pattern::parse(oracle::text(expr)), c.problem, {.tile = tile});
      const Report report = tensors.check(kernel, c, rows, oracle_mask({expr}, kHeads, c));
      ++kernels_bound;
      rows_checked += report.rows_checked;
      CHECK(report.rows_checked == static_cast<std::int64_t>(rows.size()));
      CHECK_MESSAGE(report.ok(), describe_case(c, report) << ", tile " << describe(tile));
      if (c.batch == 1 && c.problem.layout == Layout::bshd) tensors.check_repeats(kernel, c);
    }
  }
}

TEST_CASE("sanitizer: values of packed and shortened sequences are right") {
  std::vector<Case> cases;
  Case packed = make_packed_case(make_problem(DType::bfloat16, 64, 6, 2), {70, 0, 33, 1, 50},
                                 {130, 40, 0, 65, 50});
  packed.lengths.used_k = {130, 0, 0, 64, 20};
  packed.lengths.leftpad_k = {7, 0, 0, 63, 30};
  packed.seqlen_q = 200;
  cases.push_back(packed);
  Case batched = make_case(make_problem(DType::float16, 64, 6, 2, 0, Layout::bhsd), 3, 70, 100);
  batched.lengths.used_k = {100, 0, 31};
  batched.lengths.leftpad_k = {99, 0, 1};
  cases.push_back(batched);
  cases.push_back(make_case(make_problem(DType::bfloat16, 80, 6, 2, 48), 2, 70, 100));
  for (Case& c : cases) {
    c.max_ctas = 2;
    c.row_gap = 8;
    c.reference = Case::Reference::cpu;
  }
  for (const girih::TileConfig& tile : kKernels) {
    check_all({dense(), causal(), streaming(16, 32)}, cases, tile);
  }
}
