// Patterns from other libraries' arguments: the same text as girih_compat.py gives, and what is
// visible as those libraries document it.
#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <vector>

#include "girih/compat.hpp"
#include "girih/error.hpp"
#include "texts.hpp"

using namespace girih;
using compat::BlockSparseAttn;
using compat::LocalStride;
using tests::contains;

namespace {

std::string refusal(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    CHECK(error.code() == Errc::invalid_argument);
    return error.what();
  }
  return "(accepted)";
}

std::string block_sparse_text(const BlockSparseAttn& arguments) {
  const std::string text = compat::block_sparse_attn(arguments).pattern.text();
  CHECK(Pattern::parse(text).text() == text);
  return text;
}

std::string token_streaming_text(int sink_size, int local) {
  return block_sparse_text({.head_mask_type = {-1},
                            .streaming_info = {sink_size, local},
                            .is_causal = true,
                            .exact_streaming = true});
}

}  // namespace

TEST_CASE("compat: every kind of Block-Sparse-Attention's heads has its mask and its plane") {
  const compat::BlockSparseHeads made =
      compat::block_sparse_attn({.head_mask_type = {1, 1, 0, 0, 0, -1, 0, -1},
                                 .streaming_info = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 0, 0, 2, 5},
                                 .is_causal = true});
  CHECK(made.pattern.text() ==
        "heads(0-1: causal & blocks(m, q=128, kv=128), 2-4+6: causal, "
        "5: block_streaming(sink=1, local=3), 7: block_streaming(sink=2, local=5))");
  CHECK(made.planes == std::vector<int>{0, 1, -1, -1, -1, -1, -1, -1});
  REQUIRE(made.pattern.inputs().size() == 1);
  CHECK(made.pattern.inputs()[0].q_block_size == 128);
  CHECK(made.pattern.class_of_head(8, 2) == std::vector<int>{0, 0, 1, 1, 1, 2, 1, 3});
}

TEST_CASE("compat: one kind for all heads is one mask, and larger numbers name planes") {
  CHECK(block_sparse_text({.head_mask_type = {0, 0}}) == "dense");
  CHECK(block_sparse_text({.head_mask_type = {0, 0}, .is_causal = true}) == "causal");
  CHECK(block_sparse_text({.head_mask_type = {1, 1}}) == "blocks(m, q=128, kv=128)");
  CHECK(compat::block_sparse_attn({.head_mask_type = {2, 1, 0, 1}}).planes ==
        std::vector<int>{1, 0, -1, 1});
}

TEST_CASE("compat: streaming heads count tokens with the query's own, or blocks") {
  CHECK(token_streaming_text(64, 256) == "causal & (sink(64) | window(left=255))");
  CHECK(token_streaming_text(0, 3) == "causal & window(left=2)");
  CHECK(token_streaming_text(5, 0) == "causal & sink(5)");
  CHECK(token_streaming_text(0, 0) == "causal & sink(0)");
  CHECK(block_sparse_text({.head_mask_type = {-1}, .streaming_info = {1, 3}}) ==
        "block_streaming(sink=1, local=3, causal=false)");
}

TEST_CASE("compat: FlashAttention's windows are inclusive and end at the diagonal") {
  const auto text = [](const compat::FlashAttn& arguments) {
    return compat::flash_attn(arguments).text();
  };
  CHECK(text({}) == "dense");
  CHECK(text({.causal = true, .window_right = 5}) == "causal");
  CHECK(text({.causal = true, .window_left = 128, .window_right = 7}) ==
        "causal & window(left=128)");
  CHECK(text({.window_left = 4, .window_right = 5}) == "window(left=4, right=5)");
  CHECK(text({.window_left = 3, .window_right = -7}) == "window(left=3)");
  CHECK(text({.window_right = 0}) == "causal");
  CHECK(text({.window_left = 9, .window_right = 0}) == "causal & window(left=9)");
  CHECK(text({.causal = true, .window_left = 9, .softcap = 30}) ==
        "causal & window(left=9) with softcap(30)");
  CHECK(text({.causal = true, .softcap = 30, .alibi_slopes = "slopes"}) ==
        "causal with softcap(30), alibi(slopes)");
  CHECK(text({.alibi_slopes = "s"}) == "dense with alibi(s)");
}

TEST_CASE("compat: BSFA's arguments are FlashAttention's, pruned by tiles of 64 keys") {
  compat::BlockSparseFlashAttn arguments;
  arguments.causal = true;
  arguments.softcap = 30;
  CHECK(compat::block_sparse_flash_attn(arguments).text() ==
        "causal with softcap(30), prune(t, kv=64)");
  arguments.kv = 128;
  arguments.softcap = 0;
  CHECK(compat::block_sparse_flash_attn(arguments).text() == "causal with prune(t, kv=128)");
  arguments.causal = false;
  arguments.window_right = 0;
  CHECK(compat::block_sparse_flash_attn(arguments).text() == "causal with prune(t, kv=128)");
  arguments.kv = 32;
  CHECK_THROWS_WITH_AS(compat::block_sparse_flash_attn(arguments).text(),
                       "prune: kv = 32 is not supported: tiles of 64 and 128 keys are", Error);
}

TEST_CASE("compat: S2-Attention's arguments are strided blocks") {
  const auto text = [](const LocalStride& arguments) {
    return compat::local_stride(arguments).text();
  };
  const LocalStride phi{.num_heads = 32, .block_size = 64, .local_blocks = 16, .vert_stride = 8};
  CHECK(text(phi) == "causal & strided(local=16, stride=8, block=64)");
  LocalStride other = phi;
  other.num_kv_heads = 8;
  other.head_sliding_offset = 1;
  CHECK(text(other) == "causal & strided(local=16, stride=8, block=64, offset=1, heads=kv)");
  other = phi;
  other.num_dense_heads = 2;
  CHECK(text(other) == "causal & strided(local=16, stride=8, block=64, dense_heads=2)");
  other = phi;
  other.homo_head = true;
  other.num_kv_heads = 32;
  CHECK(text(other) == "causal & strided(local=16, stride=8, block=64, homo=true)");
  other.causal = false;
  CHECK(text(other) == "strided(local=16, stride=8, block=64, relative=true)");
  other = phi;
  other.vert_stride = 10000;  // as good as none
  CHECK(text(other) == "causal & strided(local=16, stride=10000, block=64)");
  other.vert_stride = 2000000;
  CHECK_THROWS_WITH_AS(compat::local_stride(other),
                       "strided: stride = 2000000 is out of range: 1 to 1048576 are allowed",
                       Error);
}

TEST_CASE("compat: arguments that do not fit together are refused") {
  const auto block_sparse = [](BlockSparseAttn arguments) {
    return refusal([&] { compat::block_sparse_attn(arguments); });
  };
  CHECK(contains(block_sparse({}), "head_mask_type is empty"));
  CHECK(contains(block_sparse({.head_mask_type = {0, -1}}),
                 "head_mask_type of head 1 is -1, but there is no streaming_info"));
  CHECK(contains(block_sparse({.head_mask_type = {0, -1}, .streaming_info = {1, 3}}),
                 "streaming_info has 2 numbers: 2 heads need 4"));
  CHECK(contains(block_sparse({.head_mask_type = {-1}, .streaming_info = {1, -3}}),
                 "streaming_info of head 0 is [1, -3]"));
  CHECK(contains(block_sparse({.head_mask_type = {0}, .exact_streaming = true}),
                 "exact_streaming needs is_causal"));

  const auto local_stride = [](LocalStride arguments) {
    return refusal([&] { compat::local_stride(arguments); });
  };
  CHECK(contains(local_stride({}), "num_heads 0"));
  const LocalStride good{.num_heads = 8, .block_size = 64, .local_blocks = 4, .vert_stride = 4};
  LocalStride bad = good;
  bad.num_kv_heads = 3;
  CHECK(contains(local_stride(bad), "num_heads 8 is not a multiple of num_kv_heads 3"));
  bad = good;
  bad.homo_head = true;
  bad.num_dense_heads = 1;
  CHECK(contains(local_stride(bad), "with homo_head all heads are alike"));
  bad = good;
  bad.vert_stride = 0;
  CHECK(contains(local_stride(bad), "stride"));
}
