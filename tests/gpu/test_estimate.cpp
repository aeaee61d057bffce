// Estimates of columns and slashes on a GPU: the lists against sums in float64, where sums that are
// nearly equal may stand for one another, and what captured and repeated launches give.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "../oracle/estimate.hpp"
#include "girih/estimate.hpp"
#include "operand.hpp"

using namespace gpu_tests;
using girih::jit::EstimateArgs;

namespace {

struct Lists {
  Buffer vertical, slash;
  Lists(std::size_t planes, int num_vertical, int num_slash)
      : vertical(planes * static_cast<std::size_t>(num_vertical) * 4),
        slash(planes * static_cast<std::size_t>(num_slash) * 4) {}
  static std::vector<int> download(const Buffer& buffer) {
    std::vector<int> entries(buffer.size() / 4);
    buffer.download(entries.data(), buffer.size());
    return entries;
  }
};

std::vector<int> plane_of(const std::vector<int>& entries, int plane, int number) {
  const auto at = entries.begin() + static_cast<std::ptrdiff_t>(plane) * number;
  return {at, at + number};
}

// `planes_checked` of the sequences' heads, spread over all.
void check_estimate(std::uint64_t seed, int batch, int seqlen_q, int seqlen_k, int heads,
                    int heads_kv, int head_dim, DType dtype, Layout layout, int num_vertical,
                    int num_slash, int planes_checked) {
  std::mt19937_64 random(seed);
  const Operand q(random, {batch, seqlen_q, heads, head_dim}, layout, dtype, 2.0f);
  const Operand k(random, {batch, seqlen_k, heads_kv, head_dim}, layout, dtype, 1.0f);
  const int planes = batch * heads;
  const Lists first(static_cast<std::size_t>(planes), num_vertical, num_slash);
  const Lists second(static_cast<std::size_t>(planes), num_vertical, num_slash);
  for (const Lists* lists : {&first, &second}) {
    girih::jit::estimate_slashes({.q = q.tensor,
                                  .k = k.tensor,
                                  .layout = layout,
                                  .num_vertical = num_vertical,
                                  .num_slash = num_slash,
                                  .vertical = static_cast<std::int32_t*>(lists->vertical.data()),
                                  .slash = static_cast<std::int32_t*>(lists->slash.data())});
  }
  girih::verify::synchronize();
  ++kernels_bound;
  const std::vector<int> vertical = Lists::download(first.vertical);
  const std::vector<int> slash = Lists::download(first.slash);
  CHECK(vertical == Lists::download(second.vertical));
  CHECK(slash == Lists::download(second.slash));

  const std::string name =
      fmt::format("{} x {}, batch {}, heads {}:{}, head_dim {}, {}, {}", seqlen_q, seqlen_k, batch,
                  heads, heads_kv, head_dim, girih::to_string(dtype), girih::to_string(layout));
  CAPTURE(name);
  for (int i = 0; i < planes_checked; ++i) {
    const int plane = planes_checked == 1 ? planes - 1 : i * (planes - 1) / (planes_checked - 1);
    const int b = plane / heads, h = plane % heads;
    CAPTURE(plane);
    const oracle::Sums sums =
        oracle::estimate_sums(q.head(b, h, std::max(seqlen_q - 64, 0)),
                              k.head(b, h / (heads / heads_kv), 0), 1.0 / std::sqrt(head_dim));
    constexpr double kTolerance = 1e-4;  // of a sum of exponentials in float32
    CHECK(oracle::problem_of(plane_of(vertical, plane, num_vertical), sums.of_keys, 30,
                             kTolerance) == "");
    CHECK(oracle::problem_of(plane_of(slash, plane, num_slash), sums.of_distances, 100,
                             kTolerance) == "");
    rows_checked += std::min({64, seqlen_q, seqlen_k});
  }
}

}  // namespace

TEST_CASE("estimates of columns and slashes take the largest sums of every head") {
  struct Shape {
    int batch, seqlen_q, seqlen_k, heads, heads_kv, head_dim, num_vertical, num_slash;
  };
  constexpr Shape kShapes[] = {
      {1, 2000, 2000, 4, 1, 128, 100, 200},   {2, 1024, 1023, 8, 2, 64, 30, 150},
      {2, 64, 5175, 6, 2, 96, 500, 300},      {1, 700, 333, 2, 1, 256, 400, 50},
      {1, 15, 900, 3, 3, 192, 64, 101},       {3, 1, 1, 2, 2, 16, 3, 3},
      {1, 300, 40000, 8, 8, 128, 1000, 6096}, {1, 100, 8192, 16, 1, 80, 1, 0},
  };
  std::uint64_t turn = 0;
  for (const Shape& s : kShapes) {
    for (const Layout layout : {Layout::bshd, Layout::bhsd}) {
      const DType dtype = turn++ % 4 < 2 ? DType::bfloat16 : DType::float16;
      check_estimate(turn, s.batch, s.seqlen_q, s.seqlen_k, s.heads, s.heads_kv, s.head_dim, dtype,
                     layout, s.num_vertical, s.num_slash, std::min(s.batch * s.heads, 4));
    }
  }
}

TEST_CASE("estimates in a workspace are the same, and one that is none is refused") {
  std::mt19937_64 random(6);
  const int heads = 4, num_vertical = 200, num_slash = 300;
  const Operand q(random, {2, 100, heads, 64}, Layout::bshd, DType::bfloat16, 2.0f);
  const Operand k(random, {2, 2777, heads, 64}, Layout::bshd, DType::bfloat16, 1.0f);
  const Lists expected(2 * heads, num_vertical, num_slash), own(2 * heads, num_vertical, num_slash);
  EstimateArgs args{
      .q = q.tensor, .k = k.tensor, .num_vertical = num_vertical, .num_slash = num_slash};
  const auto estimate = [&](const Lists& lists, girih::jit::Workspace workspace) {
    args.vertical = static_cast<std::int32_t*>(lists.vertical.data());
    args.slash = static_cast<std::int32_t*>(lists.slash.data());
    args.workspace = workspace;
    girih::jit::estimate_slashes(args);
    girih::verify::synchronize();
    ++kernels_bound;
  };
  estimate(expected, {});
  const std::size_t bytes = girih::jit::estimate_workspace_bytes(args);
  CHECK(bytes >= std::size_t{8} * 2777 * 2 * heads);
  const Buffer workspace(bytes);
  estimate(own, {workspace.data(), bytes});
  CHECK(Lists::download(own.vertical) == Lists::download(expected.vertical));
  CHECK(Lists::download(own.slash) == Lists::download(expected.slash));
  const auto refused = [&](girih::jit::Workspace given, const char* mentions) {
    try {
      estimate(own, given);
    } catch (const girih::Error& error) {
      return std::string(error.what()).find(mentions) != std::string::npos;
    }
    return false;
  };
  CHECK(refused({workspace.data(), bytes - 1}, "see estimate_workspace_bytes"));
  CHECK(refused({nullptr, bytes}, "and 0 were given"));
  CHECK(refused({static_cast<char*>(workspace.data()) + 8, bytes}, "not aligned to 16 bytes"));
}

TEST_CASE("estimates give each head the number that it is to have") {
  std::mt19937_64 random(5);
  const int batch = 2, heads = 6, seqlen = 3000, num_vertical = 300, num_slash = 1200;
  const Operand q(random, {batch, 70, heads, 128}, Layout::bshd, DType::bfloat16, 2.0f);
  const Operand k(random, {batch, seqlen, 2, 128}, Layout::bshd, DType::bfloat16, 1.0f);
  const std::vector<int> own[] = {{0, 300, 31, 1, 200, 30}, {1200, 0, 150, 1, 99, 101}};
  const auto estimate = [&](int vertical, int slash, const std::vector<int>& head_vertical,
                            const std::vector<int>& head_slash) {
    const Lists lists(batch * heads, vertical, slash);
    girih::jit::estimate_slashes({.q = q.tensor,
                                  .k = k.tensor,
                                  .num_vertical = vertical,
                                  .num_slash = slash,
                                  .head_vertical = head_vertical,
                                  .head_slash = head_slash,
                                  .vertical = static_cast<std::int32_t*>(lists.vertical.data()),
                                  .slash = static_cast<std::int32_t*>(lists.slash.data())});
    girih::verify::synchronize();
    ++kernels_bound;
    return std::array{Lists::download(lists.vertical), Lists::download(lists.slash)};
  };
  const auto all = estimate(num_vertical, num_slash, own[0], own[1]);
  for (int head = 0; head < heads; ++head) {
    const auto at = static_cast<std::size_t>(head);
    // At least one each, for a buffer of nothing has no address.
    const int number[] = {std::max(own[0][at], 1), std::max(own[1][at], 1)};
    const auto alone = estimate(number[0], number[1], {}, {});
    for (int b = 0; b < batch; ++b) {
      for (std::size_t list = 0; list < 2; ++list) {
        const int width = list == 0 ? num_vertical : num_slash;
        std::vector<int> expected = plane_of(alone[list], b * heads + head, number[list]);
        expected.resize(static_cast<std::size_t>(own[list][at]));
        expected.resize(static_cast<std::size_t>(width), -1);
        CAPTURE(head);
        CHECK(plane_of(all[list], b * heads + head, width) == expected);
      }
      rows_checked += 64;
    }
  }
}

TEST_CASE("estimates of MInference's counts take the largest sums at 131072") {
  check_estimate(1, 1, 128, 1 << 17, 32, 8, 128, DType::bfloat16, Layout::bshd, 1000, 6096, 2);
}

TEST_CASE("sanitizer: estimates of columns and slashes stay within their tensors") {
  check_estimate(2, 2, 100, 1500, 4, 2, 64, DType::bfloat16, Layout::bshd, 40, 120, 2);
  check_estimate(3, 1, 20, 70, 2, 2, 80, DType::float16, Layout::bhsd, 80, 20, 1);
}

TEST_CASE("girih's own estimate is what vertical_slash takes") {
  std::mt19937_64 random(4);
  const int seqlen = 3000, heads = 4;
  const Operand q(random, {1, seqlen, heads, 64}, Layout::bshd, DType::bfloat16, 1.0f);
  const Lists lists(heads, 50, 120);
  EstimateArgs estimate{.q = q.tensor, .k = q.tensor, .num_vertical = 50, .num_slash = 120};
  estimate.vertical = static_cast<std::int32_t*>(lists.vertical.data());
  estimate.slash = static_cast<std::int32_t*>(lists.slash.data());
  girih::jit::estimate_slashes(estimate);
  const auto kernel = girih::jit::compile(
      girih::Pattern::parse("vertical_slash(v)"),
      {.dtype = DType::bfloat16, .head_dim = 64, .num_heads = heads, .num_heads_kv = heads});
  const Buffer out(static_cast<std::size_t>(seqlen) * heads * 64 * 2);
  girih::jit::Args args;
  args.q = args.k = args.v = q.tensor;
  args.out = Tensor::contiguous(out.data(), DType::bfloat16, {1, seqlen, heads, 64});
  args.inputs = {{"v", girih::SlashLists{.vertical = estimate.vertical,
                                         .slash = estimate.slash,
                                         .num_vertical = 50,
                                         .num_slash = 120,
                                         .heads = heads}}};
  const Buffer memory(kernel.workspace_bytes(args));
  CHECK_NOTHROW(kernel.build_lists(args, {memory.data(), memory.size()}, girih::jit::Check::yes));
  ++kernels_bound;
}
