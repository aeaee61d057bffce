// Tiles: the one that each kernel takes for a problem and a pattern, those that it cannot have, and
// every refusal with its message.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <string>
#include <vector>

#include "girih/shared/slash.cuh"
#include "plan/plan.hpp"
#include "plan/tiles.hpp"
#include "plans.hpp"
#include "texts.hpp"

using namespace girih;
using plan::Arch;
using plan::KeysPerRow;
using plan::make_plan;
using plan::Plan;
using tests::error_of;
using tests::plan_for;

TEST_CASE("keys of vertical_slash are gathered in tiles that leave room for it, by all who may") {
  const Arch arch = Arch::parse("sm_90");
  int without_room = 0;
  for (const char* others : {"vertical_slash(v)", "causal", "blocks(m, q=64, kv=16)",
                             "blocks(m, q=64, kv=32)", "blocks(m, q=128, kv=128)"}) {
    const Pattern pattern =
        Pattern::parse(fmt::format("heads(0: vertical_slash(v), else: {})", others));
    for (const int head_dim : {64, 128, 192}) {
      const Problem problem{.head_dim = head_dim, .num_heads = 4, .num_heads_kv = 4};
      const Plan own = make_plan(pattern, problem, arch);
      CHECK(own.spec.gathers);
      for (const TileConfig& tile : plan::candidate_tiles(own, problem, arch)) {
        const Plan plan = make_plan(pattern, problem, arch, tile);
        CAPTURE(plan.spec.structures.size());
        CHECK(plan.shared_bytes <= arch.shared_bytes_per_cta());
        if (plan.spec.family != plan::KernelFamily::fwd_sm90) continue;
        // What the kernel makes of it (attn/pipeline_sm90.cuh).
        CHECK(plan.spec.gathers == gathers_slashes(true, tile.block_m, tile.block_n,
                                                   plan.spec.key_box, plan.spec.pack_heads,
                                                   plan.spec.pass_over));
        without_room += tile.block_m == 128 && tile.block_n <= 128 && !plan.spec.gathers;
      }
    }
  }
  CHECK(without_room > 0);
  // A class without heads is no reason for anything.
  const Plan alone = plan_for("heads(0-3: vertical_slash(v), else: blocks(m, q=128, kv=128))",
                              {.head_dim = 128, .num_heads = 4, .num_heads_kv = 4});
  CHECK(alone.spec.gathers);
  CHECK(alone.spec.pass_over);
}

TEST_CASE("Hopper's tile is the largest that its registers and shared memory hold") {
  const auto tile = [](const char* pattern, int head_dim, int head_dim_v = 0) {
    return plan_for(pattern, {.head_dim = head_dim, .head_dim_v = head_dim_v}, "sm_90").spec.tile;
  };
  CHECK(tile("causal", 64) == TileConfig{192, 128, 3, 16, 2});
  CHECK(tile("causal", 96) == TileConfig{192, 96, 2, 16, 2});
  CHECK(tile("causal", 128) == TileConfig{192, 80, 3, 16, 2});
  CHECK(tile("causal", 192) == TileConfig{128, 112, 2, 12, 1});
  CHECK(tile("causal", 192, 128) == TileConfig{128, 128, 2, 12, 1});
  CHECK(tile("causal", 256) == TileConfig{128, 64, 2, 12, 1});
  // Masks of much code, and soft caps, leave fewer registers.
  const char* strided = "causal & strided(local=16, stride=8, block=64)";
  const char* capped = "causal & strided(local=16, stride=8, block=64) with softcap(30)";
  CHECK(tile("causal with softcap(30)", 64) == TileConfig{128, 128, 3, 12, 2});
  CHECK(tile(strided, 64) == TileConfig{128, 128, 3, 12, 2});
  CHECK(tile(strided, 192) == TileConfig{128, 96, 2, 12, 1});
  CHECK(tile("neighborhood(64x64, window=64)", 192) == TileConfig{128, 96, 2, 12, 1});
  CHECK(tile("neighborhood(64x64, window=64) | sink(1)", 192).block_n == 80);
  CHECK(tile("neighborhood(64x64, window=64) | sink(1)", 256).block_n == 32);
  CHECK(tile(strided, 256) == TileConfig{128, 48, 2, 12, 2});
  CHECK(tile(strided, 240).block_n == 64);
  CHECK(tile(capped, 256) == TileConfig{128, 48, 2, 12, 2});
  CHECK(tile("causal with softcap(30)", 256) == TileConfig{128, 64, 2, 12, 1});
  CHECK(tile("causal & segments(d)", 64) == TileConfig{192, 112, 3, 16, 2});
  CHECK(tile("causal & segments(d)", 128) == tile("causal", 128));
  // Short rows do not fill 128 keys: at most 6144 of them, at narrow heads 512.
  CHECK(tile("causal & window(left=1023)", 128) == TileConfig{192, 64, 4, 16, 2});
  CHECK(tile("causal & window(left=8191)", 128) == tile("causal", 128));
  CHECK(tile("causal & window(left=1023)", 64) == tile("causal", 64));
  CHECK(tile("causal & window(left=127)", 64) == TileConfig{192, 64, 5, 16, 2});
  CHECK(tile("causal & window(left=127)", 192) == tile("causal", 192));
  // Nor are tiles longer than a run-time mask's blocks, down to 64 keys; smaller ones are gathered.
  CHECK(tile("blocks(m, q=128, kv=128)", 128) == TileConfig{128, 128, 2, 12, 2});
  CHECK(tile("blocks(m, q=64, kv=64)", 128) == TileConfig{128, 64, 5, 12, 2});
  CHECK(tile("blocks(m, q=16, kv=16)", 128) == TileConfig{128, 128, 2, 12, 2});
  CHECK(tile("blocks(m, q=64, kv=32)", 192) == TileConfig{128, 64, 2, 12, 2});
  CHECK(tile("blocks(m, q=128, kv=128)", 192) == TileConfig{128, 64, 2, 12, 2});
  // Columns and slashes are gathered, with three stages where heads are not wide.
  CHECK(tile("vertical_slash(v)", 64) == TileConfig{128, 128, 3, 12, 2});
  CHECK(tile("vertical_slash(v)", 128) == TileConfig{128, 112, 3, 12, 1});
  CHECK(tile("vertical_slash(v)", 256) == TileConfig{128, 64, 2, 12, 1});
  CHECK(tile("heads(0: vertical_slash(v), else: blocks(m, q=128, kv=128))", 128) ==
        TileConfig{128, 128, 2, 12, 2});
  CHECK(tile("heads(0: vertical_slash(v), else: blocks(m, q=64, kv=64))", 64) ==
        TileConfig{128, 64, 5, 12, 2});

  const Plan plan = plan_for("causal", {.head_dim = 128}, "sm_90");
  CHECK(plan.threads == 512);
  CHECK(plan.shared_bytes == 2 * 192 * 256 + 2 * 3 * 80 * 256 + 3072);
  CHECK(plan.spec.min_ctas_per_sm == 1);
}

TEST_CASE("tiles that Hopper's kernel cannot have are refused with every reason") {
  const auto message = [](const TileConfig& tile, const char* arch = "sm_90") {
    return std::string(error_of([&] { plan_for("causal", {}, arch, tile); }).what());
  };
  CHECK(message({64, 64, 2, 12, 1}) ==
        "block_m 64 is not supported by the Hopper kernel: 128 and 192 are");
  CHECK(message({128, 40, 1, 4, 3}) ==
        "num_warps 4 is not supported with block_m 128: 12 is; "
        "block_n 40 is not supported: multiples of 16 from 16 to 256 are; "
        "num_stages 1 is not supported: 2 to 8 are; num_q_stages 3 is not supported: 1 and 2 are");
  CHECK(message({192, 256, 4, 16, 2}) ==
        "block_m 192 x block_n 256 at head_dim_v 128 takes 256 registers a thread for scores, "
        "probabilities and output, more than 128: take a smaller block_n; "
        "block_m 192 x block_n 256 with 4 stages and 2 of Q takes 625664 bytes of shared memory, "
        "more than the 232448 of sm_90: take smaller blocks or fewer stages");
  CHECK(message({.num_q_stages = 2}, "sm_89") ==
        "num_q_stages 2 is not supported on sm_89: only Hopper's kernel, for sm_90, has Q tiles in "
        "flight; leave it 0");
}

TEST_CASE(
    "the portable kernel's default tiles fit every architecture, eight warps a multiprocessor") {
  struct Limits {
    const char* arch;
    int kib_per_cta;
    int kib_per_sm;
  };
  // CUDA C++ Programming Guide, "Compute Capabilities"; an unknown one gets the least of them.
  for (const Limits& limits :
       {Limits{"sm_80", 163, 164}, Limits{"sm_86", 99, 100}, Limits{"sm_89", 99, 100},
        Limits{"sm_90", 227, 228}, Limits{"sm_100", 227, 228}, Limits{"sm_120", 99, 100},
        Limits{"sm_130", 99, 100}}) {
    CAPTURE(limits.arch);
    const Arch arch = Arch::parse(limits.arch);
    CHECK(arch.shared_bytes_per_cta() == limits.kib_per_cta * 1024);
    CHECK(arch.shared_bytes_per_sm() == limits.kib_per_sm * 1024);
    for (int head_dim = 16; head_dim <= 256; head_dim += 16) {
      CAPTURE(head_dim);
      const Plan plan = plan_for("causal", {.head_dim = head_dim}, limits.arch, {.portable = true});
      const TileConfig& tile = plan.spec.tile;
      const int tiles_bytes =
          2 * ((head_dim + 63) / 64 * 64) *                     // rows take whole 128 bytes
          (tile.block_m + 2 * tile.num_stages * tile.block_n);  // Q, and K with V
      CHECK(plan.shared_bytes >= tiles_bytes);
      CHECK(plan.shared_bytes <= tiles_bytes + 1024);
      CHECK(plan.shared_bytes <= limits.kib_per_cta * 1024);
      CHECK(plan.threads == 32 * tile.num_warps);
      const int ctas = plan.spec.min_ctas_per_sm;
      if (head_dim <= 128) CHECK(ctas * tile.num_warps == 8);
      // The system takes 1 KiB of each CTA's shared memory.
      CHECK(ctas * (plan.shared_bytes + 1024) <= limits.kib_per_sm * 1024);
    }
  }
}

TEST_CASE("as many CTAs a multiprocessor are claimed as memory and registers allow") {
  const auto ctas = [](const char* arch, const TileConfig& tile) {
    return plan_for("causal", {.head_dim = 128}, arch, tile).spec.min_ctas_per_sm;
  };
  CHECK(ctas("sm_90", {128, 64, 2, 4}) == 2);  // 96 KiB each
  CHECK(ctas("sm_86", {128, 64, 2, 4}) == 1);  // one fits in 100 KiB
  CHECK(ctas("sm_90", {128, 64, 4, 4}) == 1);  // 160 KiB
  CHECK(ctas("sm_90", {128, 16, 2, 8}) == 1);  // 256 threads may take every register
  CHECK(ctas("sm_90", {64, 16, 2, 4}) == 2);   // four would fit
  const TileConfig narrow{64, 64, 2, 4};       // half of the registers do
  CHECK(plan_for("causal", {.head_dim = 64}, "sm_90", narrow).spec.min_ctas_per_sm == 4);
  CHECK(plan_for("causal", {.head_dim = 64}, "sm_86", narrow).spec.min_ctas_per_sm == 2);
}

TEST_CASE("a requested tile is taken, and its zeros are filled in") {
  const TileConfig whole{64, 48, 3, 4};
  CHECK(plan_for("causal", {}, "sm_90", whole).spec.tile == whole);

  CHECK(plan_for("causal", {}, "sm_90", {.portable = true}).spec.tile == TileConfig{128, 64, 2, 4});
  // A third stage leaves two CTAs no room for 64 keys; eight warps have 16 rows each.
  CHECK(plan_for("causal", {}, "sm_90", {.num_stages = 3, .portable = true}).spec.tile ==
        TileConfig{128, 32, 3, 4});
  CHECK(plan_for("causal", {}, "sm_90", {.block_n = 64}).spec.tile ==
        TileConfig{192, 64, 4, 16, 2});
  CHECK(plan_for("causal", {}, "sm_90", {.num_stages = 2}).spec.tile ==
        TileConfig{192, 80, 2, 16, 2});
  CHECK(plan_for("vertical_slash(v)", {}, "sm_90", {.num_stages = 2}).spec.tile ==
        TileConfig{128, 128, 2, 12, 2});
  CHECK(plan_for("causal", {}, "sm_86", {.num_warps = 8}).spec.tile == TileConfig{128, 64, 2, 8});
}

TEST_CASE("narrow heads whose rows see few keys get a small portable tile on sm_90") {
  const TileConfig wide{128, 128, 2, 4}, small{64, 64, 2, 4};
  const auto tile = [](const char* pattern, int head_dim = 64, const char* arch = "sm_90") {
    return plan_for(pattern, {.head_dim = head_dim, .num_heads = 8, .num_heads_kv = 8}, arch,
                    {.portable = true})
        .spec.tile;
  };
  CHECK(tile("causal & window(left=127)") == small);
  CHECK(tile("causal & window(left=511)") == small);
  CHECK(tile("causal & window(left=512)") == wide);
  CHECK(tile("causal & (sink(128) | window(left=255))", 32) == small);
  CHECK(tile("window(left=200, right=300)") == small);
  CHECK(tile("causal") == wide);
  CHECK(tile("dense & sink(512)") == small);
  // One dense head makes most of the work.
  CHECK(tile("heads(0: causal, else: causal & window(left=127))") == wide);
  CHECK(tile("heads(0: causal & window(left=5), else: causal & window(left=127))") == small);
  // A class without heads is no reason for anything.
  CHECK(tile("heads(0-7: window(left=1, right=1), else: dense)") == small);

  CHECK(tile("causal & window(left=127)", 128) == tile("causal", 128));
  CHECK(tile("causal & window(left=127)", 64, "sm_80") == tile("causal", 64, "sm_80"));
  CHECK(plan_for("window(left=9)", {.head_dim = 64}, "sm_90", wide).spec.tile == wide);
  CHECK(plan_for("window(left=9)", {.head_dim = 64}, "sm_90").traits.keys == KeysPerRow::many);
  CHECK(plan_for("window(left=9, right=9)", {}, "sm_90").traits.keys == KeysPerRow::few);
  CHECK(plan_for("window(left=999, right=999)", {}, "sm_90").traits.keys == KeysPerRow::some);
  // Short rows cost more than their keys: one long head beside 31 short ones is half of the work.
  const Problem heads{.head_dim = 128, .num_heads = 32, .num_heads_kv = 32};
  CHECK(plan_for("heads(0: causal, else: causal & (sink(64) | window(left=255)))", heads, "sm_90")
            .traits.keys == KeysPerRow::some);
}

TEST_CASE("tiles without a kernel are refused with every reason") {
  struct Case {
    TileConfig tile;
    std::string message;
  };
  const std::string more_warps = ": take more warps or a smaller block_n";
  for (const Case& bad : std::vector<Case>{
           {{128, 64, 2, 2}, "num_warps 2 is not supported: 4 and 8 are"},
           {{128, 64, 2, -4}, "num_warps -4 is not supported: 4 and 8 are"},
           {{128, 64, 2, 16}, "num_warps 16 is not supported: 4 and 8 are"},
           {{96, 64, 2, 4}, "block_m 96 is not supported with 4 warps: 64 and 128 are"},
           {{-64, 64, 2, 4}, "block_m -64 is not supported with 4 warps: 64 and 128 are"},
           {{130, 64, 2, 8}, "block_m 130 is not supported with 8 warps: 128 and 256 are"},
           {{64, 64, 2, 8}, "block_m 64 is not supported with 8 warps: 128 and 256 are"},
           {{128, 8, 2, 4}, "block_n 8 is not supported: multiples of 16 from 16 to 256 are"},
           {{128, -16, 2, 4}, "block_n -16 is not supported: multiples of 16 from 16 to 256 are"},
           {{128, 40, 2, 4}, "block_n 40 is not supported: multiples of 16 from 16 to 256 are"},
           {{128, 272, 2, 4}, "block_n 272 is not supported: multiples of 16 from 16 to 256 are"},
           {{128, 64, -1, 4}, "num_stages -1 is not supported: 1 to 4 are"},
           {{128, 64, 5, 4}, "num_stages 5 is not supported: 1 to 4 are"},
           {{96, 40, 9, 4},
            "block_m 96 is not supported with 4 warps: 64 and 128 are; "
            "block_n 40 is not supported: multiples of 16 from 16 to 256 are; "
            "num_stages 9 is not supported: 1 to 4 are"},
           {{128, 80, 2, 4},
            "block_m 128 x block_n 80 with 4 warps at head_dim_v 128 takes 208 registers a thread "
            "for scores and output, more than 192" +
                more_warps},
           {{256, 256, 4, 8},
            "block_m 256 x block_n 256 with 8 warps at head_dim_v 128 takes 384 registers a thread "
            "for scores and output, more than 192" +
                more_warps +
                "; block_m 256 x block_n 256 with 4 stages takes 590080 bytes of shared memory, "
                "more than the 232448 of sm_90: take smaller blocks or fewer stages"}}) {
    TileConfig portable = bad.tile;
    portable.portable = true;
    const Error error = error_of([&] { plan_for("causal", {.head_dim = 128}, "sm_90", portable); });
    CHECK(error.code() == Errc::unsupported);
    CHECK(error.what() == bad.message);
  }
}

TEST_CASE("a tile that neither of Hopper's two kernels has is refused with the limits of both") {
  const auto message = [](const TileConfig& tile) {
    return std::string(error_of([&] { plan_for("causal", {}, "sm_90a", tile); }).what());
  };
  const std::string remedy = "; give a tile that one of them takes, or leave it out";
  CHECK(message({.block_m = 96}) ==
        "Hopper's kernel: block_m 96 is not supported by the Hopper kernel: 128 and 192 are; the "
        "portable kernel: block_m 96 is not supported with 4 warps: 64 and 128 are" +
            remedy);
  CHECK(message({.num_stages = 9}) ==
        "Hopper's kernel: num_stages 9 is not supported: 2 to 8 are; the portable kernel: "
        "num_stages 9 is not supported: 1 to 4 are" +
            remedy);
  CHECK(message({.block_m = 128, .block_n = 128, .num_stages = 8}) ==
        "Hopper's kernel: block_m 128 x block_n 128 with 8 stages and 1 of Q takes 560128 bytes of "
        "shared memory, more than the 232448 of sm_90a: take smaller blocks or fewer stages; the "
        "portable kernel: num_stages 8 is not supported: 1 to 4 are" +
            remedy);
  // What both say is said once, and nothing of what was not asked for.
  for (const int block_n : {7, 24}) {
    for (const int num_q_stages : {0, 1}) {
      CHECK(
          message({.block_n = block_n, .num_q_stages = num_q_stages}) ==
          fmt::format("block_n {} is not supported: multiples of 16 from 16 to 256 are", block_n));
    }
  }
}

TEST_CASE("a tile can be too large for one architecture and right for another") {
  const TileConfig tile{128, 128, 2, 8};
  CHECK(plan_for("causal", {.head_dim = 128}, "sm_90", tile).spec.tile == tile);
  const Error error = error_of([&] { plan_for("causal", {.head_dim = 128}, "sm_86", tile); });
  CHECK(error.code() == Errc::unsupported);
  CHECK(error.what() ==
        std::string("block_m 128 x block_n 128 with 2 stages takes 164096 bytes of shared memory, "
                    "more than the 101376 of sm_86: take smaller blocks or fewer stages"));
}
