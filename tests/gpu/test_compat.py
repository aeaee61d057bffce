"""girih_compat.py on a GPU: every function against the dense mask that its library documents, with
PyTorch in float32. tools/gpu_check runs it."""

import math
import pathlib
import sys
import unittest

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "python"))
import girih  # noqa: E402
import girih_compat as compat  # noqa: E402

BLOCK = 128


def reference(q, k, v, mask, scale=None, softcap=0.0):
    """One sequence: q [seqlen_q, heads, dim], mask [heads, seqlen_q, seqlen_k]; rows that see
    nothing give 0 and lse +inf. Returns out and lse [heads, seqlen_q]."""
    q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * (scale or 1 / math.sqrt(q.shape[-1]))
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores, -1)
    out = torch.nan_to_num(torch.softmax(scores, -1)) @ v
    return out.transpose(0, 1), lse.masked_fill(lse == -math.inf, math.inf)


def rows_and_keys(seqlen_q, seqlen_k):
    return (torch.arange(seqlen_q, device="cuda")[:, None],
            torch.arange(seqlen_k, device="cuda")[None])


def causal_mask(seqlen_q, seqlen_k):
    q, k = rows_and_keys(seqlen_q, seqlen_k)
    return k <= q + seqlen_k - seqlen_q


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(shape, device="cuda", dtype=dtype)


class CompatTest(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(4)

    def close(self, actual, expected):
        torch.testing.assert_close(actual.float(), expected, rtol=1e-2, atol=1.5e-2)

    def close_lse(self, actual, expected):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3)


class BlockSparseTest(CompatTest):
    lengths_q, lengths_k = [300, 113, 128, 517], [300, 203, 1, 300]
    types = [0, 1, -1, 1, 0, -1, 1, -1]
    info = [0, 0, 0, 0, 1, 3, 0, 0, 0, 0, 0, 2, 0, 0, 2, 1]

    def setUp(self):
        super().setUp()
        self.cu_q, self.cu_k = (torch.tensor([0] + x, device="cuda").cumsum(0).int()
                                for x in (self.lengths_q, self.lengths_k))
        self.q = normal(sum(self.lengths_q), 8, 64)
        self.k, self.v = (normal(sum(self.lengths_k), 2, 64) for _ in range(2))
        self.blockmask = torch.rand(4, 3, 5, 3, device="cuda") < 0.5
        self.limits = max(self.lengths_q), max(self.lengths_k)

    def mask(self, b, causal, exact, info=None):
        """Of one sequence, by the rules of Block-Sparse-Attention."""
        info = self.info if info is None else info
        seqlen_q, seqlen_k = self.lengths_q[b], self.lengths_k[b]
        q, k = rows_and_keys(seqlen_q, seqlen_k)
        offset = seqlen_k - seqlen_q
        base = (k <= q + offset) if causal else torch.ones_like(k <= q)
        masks, plane = [], 0
        for head, kind in enumerate(self.types):
            sink, local = info[2 * head:2 * head + 2]
            if kind == 0:
                masks.append(base)
            elif kind == 1:
                masks.append(base & self.blockmask[b, plane][q // BLOCK, k // BLOCK])
                plane += 1
            elif exact:
                masks.append(base & ((k < sink) | (k > q + offset - local)))
            else:
                last = q // BLOCK + 1 - (-offset // BLOCK) if causal else -(-seqlen_k // BLOCK)
                j = k // BLOCK
                masks.append(base & ((j < sink) | ((j >= last - local) & (j < last))))
        return torch.stack(masks)

    def check(self, result, causal, exact, info=None, scale=None):
        out, lse, probabilities = result
        self.assertEqual((out.dtype, out.shape), (self.q.dtype, self.q.shape))
        self.assertEqual((lse.dtype, lse.shape), (torch.float32, (4, 8, self.limits[0])))
        self.assertEqual(probabilities.shape, (0,))
        for b in range(4):
            rows, keys = (slice(int(cu[b]), int(cu[b + 1])) for cu in (self.cu_q, self.cu_k))
            expected, expected_lse = reference(self.q[rows], self.k[keys], self.v[keys],
                                               self.mask(b, causal, exact, info), scale)
            self.close(out[rows], expected)
            self.close_lse(lse[b, :, :self.lengths_q[b]], expected_lse)
            self.assertTrue((lse[b, :, self.lengths_q[b]:] == math.inf).all())

    def call(self, causal, exact, types=None, info=None, blockmask=None, **named):
        return compat.block_sparse_attn_func(
            self.q, self.k, self.v, self.cu_q, self.cu_k, self.types if types is None else types,
            info or self.info,
            self.blockmask if blockmask is None else blockmask, *self.limits, 0.0,
            is_causal=causal, exact_streaming=exact, **named)

    def test_heads_of_three_kinds_follow_the_rules_of_the_library(self):
        for causal, exact in ((True, True), (True, False), (False, False)):
            self.check(self.call(causal, exact, return_attn_probs=True), causal, exact)
        self.check(self.call(True, False, return_attn_probs=True, softmax_scale=0.3), True, False,
                   scale=0.3)
        info = [64, 100] * 8
        self.check(self.call(True, True, info=info, return_attn_probs=True), True, True, info)
        plain = self.call(True, False, blockmask=self.blockmask.float())
        self.assertTrue(torch.equal(plain, self.call(True, False)))

    def test_numbers_on_the_gpu_are_waited_for_once(self):
        types = torch.tensor(self.types, device="cuda", dtype=torch.int32)
        info = torch.tensor(self.info, device="cuda", dtype=torch.int32)
        call = lambda: compat.block_sparse_attn_func(  # noqa: E731
            self.q, self.k, self.v, self.cu_q, self.cu_k, types, info, self.blockmask,
            *self.limits, 0.0, is_causal=True)
        first = call()
        self.assertTrue(torch.equal(first, self.call(True, False)))
        torch.cuda.set_sync_debug_mode("error")
        try:
            again = call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self.assertTrue(torch.equal(again, first))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call()
        graph.replay()
        self.assertTrue(torch.equal(captured, first))
        types[1] = 0  # written to: head 1 is dense, and there is a plane too many
        with self.assertRaisesRegex(girih.Error, "base_blockmask has 3 planes: 2 heads"):
            call()
        with torch.inference_mode():  # which keeps no count of what is written to such a tensor
            types = torch.tensor(self.types, device="cuda", dtype=torch.int32)
            self.assertTrue(torch.equal(call(), first))
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = call()
            graph.replay()
            self.assertTrue(torch.equal(captured, first))
            types[1] = 0
            with self.assertRaisesRegex(girih.Error, "base_blockmask has 3 planes: 2 heads"):
                call()
        fresh = torch.tensor(self.types, device="cuda", dtype=torch.int32)
        graph = torch.cuda.CUDAGraph()
        with self.assertRaisesRegex(girih.Error, "head_mask_type .* cannot be captured"):
            with torch.cuda.graph(graph):
                self.call(True, False, types=fresh)

    def test_tensors_and_block_masks_may_be_views(self):
        self.q = normal(sum(self.lengths_q), 3, 8, 64)[:, 1]
        kv = normal(sum(self.lengths_k), 2, 4, 64)
        self.k, self.v = kv[:, 0, 1:3], kv[:, 1, 1:3]
        blocks = torch.rand(3, 4, 7, 6, device="cuda") < 0.5
        self.blockmask = blocks.transpose(0, 1)[:, :, 1:6, ::2]
        for tensor in (self.q, self.k, self.v, self.blockmask):
            self.assertFalse(tensor.is_contiguous())
        for causal, exact in ((True, True), (True, False), (False, False)):
            self.check(self.call(causal, exact, return_attn_probs=True), causal, exact)
        self.types = [1, 0, 0, 1, 0, 0, 1, 0]
        self.check(self.call(True, False, return_attn_probs=True), True, False)
        self.types = [0] * 5 + [1] + [0] * 2
        self.blockmask = self.blockmask[:, 1:2]
        self.check(self.call(True, False, return_attn_probs=True), True, False)

    def test_streaming_functions_are_the_same_without_block_masks(self):
        self.types = [0, -1] * 4
        for call, causal, exact, named in (
                (compat.token_streaming_attn_func, True, True, {}),
                (compat.block_streaming_attn_func, True, False, {}),
                (compat.block_streaming_attn_func, False, False, {"is_causal": False})):
            info = [10, 40] * 8 if exact else [1, 2] * 8
            dropout = () if exact else (0.0,)
            result = call(self.q, self.k, self.v, self.cu_q, self.cu_k, self.types, info,
                          *self.limits, *dropout, return_attn_probs=True, **named)
            self.check(result, causal, exact, info)

    def test_all_block_sparse_heads_and_a_single_one_find_their_planes(self):
        for types in ([1] * 8, [0] * 5 + [1] + [0] * 2):
            self.types = types
            self.blockmask = torch.rand(4, sum(types), 5, 3, device="cuda") < 0.5
            self.check(self.call(True, False, return_attn_probs=True), True, False)


class FlashTest(CompatTest):
    def test_windows_softcaps_and_lengths_match_the_dense_mask(self):
        for seqlen_q, seqlen_k in ((70, 100), (100, 70), (1, 64)):
            q, k, v = normal(2, seqlen_q, 4, 64), *(normal(2, seqlen_k, 2, 64) for _ in range(2))
            i, j = rows_and_keys(seqlen_q, seqlen_k)
            p = i + seqlen_k - seqlen_q
            for causal, (left, right), softcap, scale in (
                    (False, (-1, -1), 0.0, None), (True, (-1, -1), 0.0, 0.2),
                    (True, (20, -1), 5.0, None), (False, (7, 9), 0.0, None),
                    (False, (-1, 3), 0.0, None), (True, (5, 30), 0.0, None)):
                mask = torch.ones_like(j <= p)
                if left >= 0:
                    mask &= j >= p - left
                if right >= 0:
                    mask &= j <= p + right
                if causal:
                    mask &= j <= p
                out, lse, probabilities = compat.flash_attn_func(
                    q, k, v, softmax_scale=scale, causal=causal, window_size=(left, right),
                    softcap=softcap, return_attn_probs=True)
                self.assertEqual((lse.shape, probabilities.numel()), ((2, 4, seqlen_q), 0))
                for b in range(2):
                    expected = reference(q[b], k[b], v[b], mask.expand(4, -1, -1), scale, softcap)
                    self.close(out[b], expected[0])
                    self.close_lse(lse[b], expected[1])

    def test_slopes_of_all_sequences_and_of_each_are_alibi(self):
        q, k, v = normal(2, 70, 4, 64), normal(2, 100, 2, 64), normal(2, 100, 2, 64)
        i, j = rows_and_keys(70, 100)
        distance = (i + 30 - j).abs()
        heads = lambda x: x.float().transpose(1, 2)  # noqa: E731
        scores = heads(q) @ heads(k).repeat_interleave(2, dim=1).transpose(2, 3) / 8
        for slopes in (torch.rand(4, device="cuda"), torch.rand(2, 4, device="cuda")):
            biased = scores - slopes.expand(2, 4)[..., None, None] * distance
            weights = torch.softmax(biased.masked_fill(j > i + 30, -math.inf), -1)
            expected = weights @ heads(v).repeat_interleave(2, dim=1)
            out = compat.flash_attn_func(q, k, v, causal=True, alibi_slopes=slopes)
            self.close(out, expected.transpose(1, 2))

    def test_lse_under_slopes_is_the_librarys(self):
        """It adds slope * key where a launch is causal without a window, else takes off
        slope * |position - key|."""
        lengths_q, lengths_k = [70, 1, 33], [100, 64, 20]
        cu_q, cu_k = (torch.tensor([0] + x, device="cuda").cumsum(0).int()
                      for x in (lengths_q, lengths_k))
        q, k, v = normal(104, 4, 64), normal(184, 2, 64), normal(184, 2, 64)
        for slopes in (torch.rand(4, device="cuda"), torch.rand(3, 4, device="cuda")):
            for causal, window, by_key in ((True, (-1, -1), True), (False, (-1, 0), True),
                                           (True, (100, -1), True), (True, (30, -1), False),
                                           (False, (-1, -1), False)):
                _, packed, _ = compat.flash_attn_varlen_func(
                    q, k, v, cu_q, cu_k, 70, 100, causal=causal, window_size=window,
                    alibi_slopes=slopes, return_attn_probs=True)
                for b in range(3):
                    rows, keys = (slice(int(cu[b]), int(cu[b + 1])) for cu in (cu_q, cu_k))
                    i, j = rows_and_keys(lengths_q[b], lengths_k[b])
                    p = i + lengths_k[b] - lengths_q[b]
                    of_head = slopes.expand(3, 4)[b, :, None, None]
                    scores = torch.einsum("qhd,khd->hqk", q[rows].float(),
                                          k[keys].float().repeat_interleave(2, dim=1)) / 8
                    scores = scores + of_head * (j if by_key else -(p - j).abs())
                    hidden = torch.zeros_like(j <= p)
                    if causal or window[1] == 0:
                        hidden |= j > p
                    if window[0] >= 0:
                        hidden |= j < p - window[0]
                    expected = torch.logsumexp(scores.masked_fill(hidden, -math.inf), -1)
                    expected = expected.masked_fill(expected == -math.inf, math.inf)
                    self.close_lse(packed[:, rows], expected)
                    if b > 0:
                        continue
                    _, lse, _ = compat.flash_attn_func(
                        q[None, rows], k[None, keys], v[None, keys], causal=causal,
                        window_size=window, alibi_slopes=slopes.expand(3, 4)[:1],
                        return_attn_probs=True)
                    self.close_lse(lse[0], expected)

    def test_packed_tensors_and_sequences_are_the_same_attention(self):
        qkv = normal(2, 90, 3, 4, 64)
        expected = compat.flash_attn_func(*qkv.unbind(2), causal=True)
        self.assertTrue(torch.equal(compat.flash_attn_qkvpacked_func(qkv, causal=True), expected))
        self.assertTrue(torch.equal(
            compat.block_sparse_flash_attn_func(*qkv.unbind(2), None, causal=True), expected))
        cu = torch.tensor([0, 90, 180], device="cuda", dtype=torch.int32)
        packed = [x.flatten(0, 1) for x in qkv.unbind(2)]
        out, lse, _ = compat.flash_attn_varlen_func(*packed, cu, cu, 90, 90, causal=True,
                                                    return_attn_probs=True)
        self.close(out.unflatten(0, (2, 90)), expected.float())
        self.assertEqual(lse.shape, (4, 180))

    def test_heads_of_any_width_are_padded(self):
        q, k, v = (normal(1, 50, 2, 40, dtype=torch.float16) for _ in range(3))
        out = compat.flash_attn_func(q, k, v, causal=True)
        self.assertEqual(out.shape, q.shape)
        self.close(out[0], reference(q[0], k[0], v[0], causal_mask(50, 50).expand(2, -1, -1))[0])

    def test_what_is_not_there_is_refused(self):
        q = normal(1, 16, 2, 64).requires_grad_()
        with self.assertRaisesRegex(girih.Error, "no backward pass"):
            compat.flash_attn_func(q, q, q)

    def test_thresholds_skip_key_tiles(self):
        for kv, causal, window in ((64, True, (-1, -1)), (64, False, (-1, -1)),
                                   (128, True, (-1, -1)), (64, False, (-1, 0)),
                                   (64, False, (300, 0)), (128, False, (200, 0))):
            seqlen, heads = 640, 4
            q, k, v = (normal(1, seqlen, heads, 64) for _ in range(3))
            scores = torch.einsum("qhd,khd->hqk", q[0].double(), k[0].double()) / 8
            named = {"causal": causal, "window_size": window, "kv": kv}
            causal = causal or window[1] == 0
            visible = (causal_mask(seqlen, seqlen) if causal
                       else torch.ones(seqlen, seqlen, dtype=torch.bool, device="cuda"))
            if window[0] >= 0:
                rows, keys = rows_and_keys(seqlen, seqlen)
                visible = visible & (keys >= rows - window[0])
            tiles = scores.masked_fill(~visible, -math.inf).unflatten(1, (-1, 128))
            maxima = tiles.unflatten(3, (-1, kv)).amax((2, 4))  # [heads, query tiles, key tiles]
            before = torch.arange(seqlen // kv, device="cuda")
            candidates = (before[None] < torch.arange(seqlen // 128, device="cuda")[:, None]
                          * (128 // kv)) if causal else (before[None] < seqlen // kv - 1)
            candidates = candidates.expand(seqlen // 128, -1)
            threshold = torch.full((heads, seqlen // 128), -math.inf, device="cuda")
            for h in range(heads):
                for t in range(seqlen // 128):
                    ordered = maxima[h, t][candidates[t]].sort().values
                    if ordered.numel() > 1:
                        i = ordered.numel() // 2
                        threshold[h, t] = (ordered[i - 1] + ordered[i]) / 2
            skipped = candidates[None] & (maxima < threshold[..., None])
            self.assertTrue(bool(skipped.any()))
            kept = ~skipped.repeat_interleave(128, 1).repeat_interleave(kv, 2) & visible
            out, lse, _ = compat.block_sparse_flash_attn_func(
                q, k, v, threshold, return_attn_probs=True, **named)
            expected = reference(q[0], k[0], v[0], kept)
            self.close(out[0], expected[0])
            self.close_lse(lse[0], expected[1])


class LocalStrideTest(CompatTest):
    def mask(self, seqlen_q, seqlen_k, *, heads=4, group=1, local=2, stride=3, block=16,
             homo=False, dense_heads=0, offset=0):
        """[heads, seqlen_q, seqlen_k], causal, by the rules of dkernel."""
        q, k = rows_and_keys(seqlen_q, seqlen_k)
        p = q + seqlen_k - seqlen_q
        i, j = p // block, k // block
        step = max(1, stride // heads)
        masks = []
        for head in range(heads):
            h = 0 if homo else head // group
            visible = (i - j < local) | ((j + h * step + offset) % stride == 0)
            if h >= heads // group - dense_heads:
                visible = torch.ones_like(visible)
            masks.append(visible & (k <= p))
        return torch.stack(masks)

    def check(self, out, q, k, v, mask):
        for b in range(q.shape[0]):
            self.close(out[b], reference(q[b], k[b], v[b], mask)[0])

    def test_patterns_of_every_head_match_the_dense_mask(self):
        q, k, v = normal(2, 200, 4, 64), *(normal(2, 200, 2, 64) for _ in range(2))
        for named, expected in (
                ({}, {}), ({"num_kv_heads": 2}, {"group": 2}), ({"homo_head": True}, {"homo": True}),
                ({"num_dense_heads": 1}, {"dense_heads": 1}),
                ({"num_kv_heads": 2, "num_dense_heads": 1, "head_sliding_offset": 1},
                 {"group": 2, "dense_heads": 1, "offset": 1})):
            module = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3, **named)
            mask = self.mask(200, 200, **expected)
            self.check(module(q, k, v), q, k, v, mask)
            swapped = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3, seq_dim=2, **named)
            out, lse = swapped(*(x.transpose(1, 2) for x in (q, k, v)), return_lse=True)
            self.check(out.transpose(1, 2), q, k, v, mask)
            self.close_lse(lse[0], reference(q[0], k[0], v[0], mask)[1])
            # One query at the end of the keys, as in decoding.
            self.check(module(q[:, -1:], k, v), q[:, -1:], k, v, mask[:, -1:])

    def test_tensors_may_be_views(self):
        qkv = normal(2, 200, 3, 4, 64)
        mask = self.mask(200, 200)
        module = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3)
        self.check(module(*qkv.unbind(2)), *qkv.unbind(2), mask)
        padded = normal(2, 260, 3, 4, 96)[:, 20:220, :, :, :64]
        self.check(module(*padded.unbind(2)), *padded.unbind(2), mask)
        across = qkv.transpose(3, 4).contiguous().transpose(3, 4)  # head_dim is not the last
        self.check(module(*across.unbind(2)), *across.unbind(2), mask)

    def test_wide_strides_move_by_more_than_a_block_from_head_to_head(self):
        q, k, v = normal(1, 250, 4, 64), *(normal(1, 250, 2, 64) for _ in range(2))
        for named, group in (({}, 1), ({"num_kv_heads": 2}, 2)):
            module = compat.LocalStrideSparseAttention(4, 256, 16, 1, 9, **named)
            mask = self.mask(250, 250, local=1, stride=9, group=group)
            self.check(module(q, k, v), q, k, v, mask)

    def test_without_causality_strides_count_from_the_local_blocks(self):
        q, k, v = (normal(1, 16 * 8, 2, 64) for _ in range(3))
        module = compat.LocalStrideSparseAttention(2, 128, 16, 2, 3, homo_head=True, causal=False)
        rows = ["11001001", "11100100", "01110010", "00111001", "10011100", "01001110", "00100111",
                "10010011"]
        golden = torch.tensor([[int(c) for c in row] for row in rows], device="cuda").bool()
        mask = golden.repeat_interleave(16, 0).repeat_interleave(16, 1).expand(2, -1, -1)
        self.check(module(q, k, v), q, k, v, mask)

    def test_ranks_have_their_part_of_the_query_heads(self):
        q, k, v = normal(1, 120, 8, 64), *(normal(1, 120, 4, 64) for _ in range(2))
        whole = compat.LocalStrideSparseAttention(8, 128, 16, 2, 6, num_kv_heads=4)(q, k, v)
        for first, end in ((0, 4), (4, 8), (2, 4), (3, 4)):
            part = compat.LocalStrideSparseAttention(8, 128, 16, 2, 6, num_kv_heads=4,
                                                     active_head_range=(first, end))
            of_rank = slice(first // 2, (end + 1) // 2)
            out = part(q[:, :, first:end], k[:, :, of_rank], v[:, :, of_rank])
            self.close(out, whole[:, :, first:end].float())

    def test_k_and_v_may_be_repeated_for_each_query_head(self):
        q, k, v = normal(1, 120, 8, 64), *(normal(1, 120, 4, 64) for _ in range(2))
        named = {"num_kv_heads": 4, "num_dense_heads": 1, "head_sliding_offset": 1}
        module = compat.LocalStrideSparseAttention(8, 128, 16, 2, 6, **named)
        mask = self.mask(120, 120, heads=8, group=2, stride=6, dense_heads=1, offset=1)
        repeated = [x.repeat_interleave(2, dim=2) for x in (k, v)]
        self.check(module(q, *repeated), q, *repeated, mask)
        # Which need not be copies: every query head has its own.
        k, v = normal(1, 120, 8, 64), normal(1, 120, 8, 64)
        self.check(module(q, k, v), q, k, v, mask)
        part = compat.LocalStrideSparseAttention(8, 128, 16, 2, 6, active_head_range=(3, 6),
                                                 **named)
        q, k, v = (x[:, :, 3:6] for x in (q, k, v))
        self.check(part(q, k, v), q, k, v, mask[3:6])

    def test_packed_tensors_are_split(self):
        module = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3)
        q, k, v = (normal(2, 100, 4, 64) for _ in range(3))
        expected = module(q, k, v)
        out = module(torch.cat((q, k, v), dim=2), split_qkv=lambda x: x.chunk(3, dim=2))
        self.assertTrue(torch.equal(out, expected))
        out = module(q, torch.cat((k, v), dim=2), split_qkv=lambda x: x.chunk(2, dim=2))
        self.assertTrue(torch.equal(out, expected))

    def test_sequences_may_be_padded_on_both_sides(self):
        left = torch.tensor([0, 30, 100, 17], device="cuda")
        lengths = torch.tensor([60, 70, 0, 1], device="cuda")
        for seq_dim in (1, 2):
            module = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3, num_kv_heads=2,
                                                       seq_dim=seq_dim)
            q, k, v = normal(4, 100, 4, 64), *(normal(4, 100, 2, 64) for _ in range(2))
            for b, (first, n) in enumerate(zip(left.tolist(), lengths.tolist())):
                for x in (q, k, v):  # what lies there is never looked at
                    x[b, :first], x[b, first + n:] = math.nan, math.nan
            swap = (lambda x: x.transpose(1, 2)) if seq_dim == 2 else (lambda x: x)
            out, lse = module(*map(swap, (q, k, v)), left_paddings=left, seqlens=lengths,
                              return_lse=True)
            out = swap(out)
            self.assertEqual((out.shape, lse.shape), (q.shape, (4, 4, 100)))
            q = q.nan_to_num()
            last = swap(module(*map(swap, (q[:, :1], k, v)), left_paddings=left, seqlens=lengths))
            for b, (first, n) in enumerate(zip(left.tolist(), lengths.tolist())):
                rows = slice(first, first + n)
                outside = torch.ones(100, dtype=torch.bool, device="cuda")
                outside[rows] = False
                self.assertTrue((out[b, outside] == 0).all())
                self.assertTrue((lse[b][:, outside] == -math.inf).all())
                if n == 0:
                    continue
                mask = self.mask(n, n, group=2)
                expected, expected_lse = reference(q[b, rows], k[b, rows], v[b, rows], mask)
                self.close(out[b, rows], expected)
                self.close_lse(lse[b, :, rows], expected_lse)
                self.close(last[b], reference(q[b, :1], k[b, rows], v[b, rows], mask[:, -1:])[0])

    def test_padded_and_packed_sequences_count_from_their_first_token(self):
        module = compat.LocalStrideSparseAttention(4, 256, 16, 2, 3)
        lengths = torch.tensor([60, 100], device="cuda")
        q, k, v = (normal(2, 100, 4, 64) for _ in range(3))
        cu = torch.tensor([0, 60, 160], device="cuda", dtype=torch.int32)
        right = module(q, k, v, seqlens=lengths)
        for b, n in enumerate((60, 100)):
            mask = self.mask(n, n)
            self.check(right[b:b + 1, :n], q[b:b + 1, :n], k[b:b + 1, :n], v[b:b + 1, :n], mask)
            self.assertEqual(right[b, n:].abs().sum().item(), 0)
            left = module(q, k, v, left_paddings=100 - lengths)
            self.check(left[b:b + 1, 100 - n:], q[b:b + 1, 100 - n:], k[b:b + 1, 100 - n:],
                       v[b:b + 1, 100 - n:], mask)
            self.assertEqual(left[b, :100 - n].abs().sum().item(), 0)
            last = module(q[:, :1], k, v, seqlens=lengths)
            self.check(last[b:b + 1], q[b:b + 1, :1], k[b:b + 1, :n], v[b:b + 1, :n], mask[:, -1:])
        packed = [torch.cat([x[0, :60], x[1]]) for x in (q, k, v)]
        out = module(*packed, cu_seqlen_k=cu)
        self.close(out[:60], right[0, :60].float())
        self.close(out[60:], right[1].float())
        decoded = module(q[:, 0], packed[1], packed[2], cu_seqlen_k=cu)
        self.close(decoded, module(q[:, :1], k, v, seqlens=lengths)[:, 0].float())


if __name__ == "__main__":
    unittest.main()
