// Documents packed in a sequence, several query tiles long: Hopper's query tiles then end where
// documents do, and have them for their sequences (attn/document_tiles.cuh). Short ones, and
// numbers of tokens in expressions, are in test_mask_inputs.cpp.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <random>
#include <vector>

#include "hashed_workload.hpp"
#include "planes.hpp"
#include "values.hpp"

using namespace gpu_tests;
using girih::verify::InputData;
using Kind = oracle::Expr::Kind;

namespace {

// Alone or under causality, in every head.
void check_documents(const Case& c, const InputData& data, const std::string& description) {
  for (const bool under_causal : {false, true}) {
    std::vector<Expected> expected;
    const std::vector<oracle::Sizes> sizes = sizes_of(c);
    std::string text;
    for (int b = 0; b < c.batch; ++b) {
      std::vector<oracle::Expr> classes;
      for (int head = 0; head < c.problem.num_heads; head += kHashes) {
        const oracle::Expr documents =
            indices_of(Kind::segments, data, data.plane(b, head, c.problem.num_heads));
        classes.push_back(under_causal ? both(causal(), documents) : documents);
      }
      text = oracle::text(classes[0]);
      expected.emplace_back(std::move(classes), sizes[static_cast<std::size_t>(b)]);
    }
    check_kernels(text, with_input(c, data), kKernels, expected, description);
  }
}

// Of three KV heads, which may have documents of their own.
Case documents_case(int head_dim, int batch, Lengths lengths, std::uint64_t seed) {
  Case c = mask_case(make_problem(DType::bfloat16, head_dim, 3 * kHashes, 3), batch, lengths);
  c.seed = seed;
  return c;
}

}  // namespace

TEST_CASE("documents of several query tiles show exactly their keys") {
  std::uint64_t seed = 500;
  for (const int head_dim : {64, 128, 192, 256}) {
    for (const Lengths lengths : {Lengths{1500, 1500}, {1100, 1700}, {1700, 1100}, {577, 577}}) {
      const int planes = seed % 2 == 0 ? 1 : 3;
      const Case c = documents_case(head_dim, 2, lengths, ++seed);
      check_documents(c,
                      girih::verify::random_documents("d", 2, planes, lengths.q, lengths.k,
                                                      seed % 3 == 0 ? 300 : 700, seed),
                      fmt::format("documents in {} planes", planes));
    }
  }
}

TEST_CASE("documents follow the sequences of packed, shortened and padded batches") {
  std::mt19937_64 random(6);
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    Case c = with_ragged_lengths(documents_case(128, 5, {1300, 1500}, 600), layout, random);
    for (const int max_ctas : {0, 3}) {
      c.max_ctas = max_ctas;
      check_documents(c, girih::verify::random_documents("d", 5, 3, 1300, 1500, 400, 8),
                      "documents in sequences of their own lengths");
    }
  }
}

TEST_CASE("values of documents are right in every layout, with lse and without") {
  GpuReference gpu_reference;
  unsigned turn = 0;
  for (const Layout layout : {Layout::bshd, Layout::bhsd, Layout::thd}) {
    for (const auto& [seqlen_q, seqlen_k] : {std::pair{1500, 1500}, {1200, 1800}}) {
      for (const bool under_causal : {false, true}) {
        Case c = make_case(make_problem(turn % 2 == 0 ? DType::bfloat16 : DType::float16,
                                        turn % 3 == 0 ? 64 : 128, 6, 2, 0, layout),
                           2, seqlen_q, seqlen_k);
        if (layout == Layout::thd) {
          c.lengths.q = {seqlen_q, 700};
          c.lengths.k = {seqlen_k, 1000};
        }
        c.seed = ++turn;
        c.with_lse = turn % 4 != 3;
        if (turn % 3 == 1) c.max_ctas = 2;
        const InputData data =
            girih::verify::random_documents("d", 1, 1, seqlen_q, seqlen_k, 450, turn);
        c.inputs = {data};
        const oracle::Expr documents = indices_of(Kind::segments, data, 0);
        const oracle::Expr expr = under_causal ? both(causal(), documents) : documents;
        for (const girih::TileConfig& tile : kKernels) check_values({expr}, c, gpu_reference, tile);
      }
    }
  }
}

TEST_CASE("sanitizer: documents of several query tiles") {
  Case c = documents_case(64, 2, {500, 600}, 700);
  c.problem.layout = Layout::thd;
  c.lengths.q = {500, 300};
  c.lengths.k = {600, 450};
  c.max_ctas = 2;
  check_documents(c, girih::verify::random_documents("d", 2, 1, 500, 600, 900, 3), "sanitizer");
}
