"""girih.py and the C interface under it on a GPU, with PyTorch: every layout, kernels bound ahead of
time, threads, streams, graphs, and what is refused. tools/gpu_check runs it."""

import json
import math
import pathlib
import struct
import sys
import tempfile
import threading
import unittest

import torch

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"
sys.path[:0] = [str(TOOLS / "python"), str(TOOLS / "examples")]
import girih  # noqa: E402
from seer_map import seer_map  # noqa: E402

PATTERN = "heads(0-1: causal, else: causal & (sink(3) | window(left=20)))"


def visible(seqlen_q, seqlen_k):
    """PATTERN for 4 heads, as [heads, seqlen_q, seqlen_k]."""
    p = torch.arange(seqlen_q, device="cuda")[:, None] + seqlen_k - seqlen_q
    k = torch.arange(seqlen_k, device="cuda")
    streaming = (k <= p) & ((k < 3) | (k >= p - 20))
    return torch.stack([k <= p, k <= p, streaming, streaming])


def reference(q, k, v, mask, scale=None):
    """out [batch, seqlen_q, heads, dim] and lse [batch, heads, seqlen_q] in float32."""
    q, k, v = (x.float().transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * (scale or 1 / math.sqrt(q.shape[-1]))
    scores = scores.masked_fill(~mask, -math.inf)
    lse = torch.logsumexp(scores, -1)
    out = torch.nan_to_num(torch.softmax(scores, -1)) @ v
    return out.transpose(1, 2), lse


def tensors(batch=2, seqlen_q=70, seqlen_k=100, dim=64, dim_v=64, dtype=torch.bfloat16):
    torch.manual_seed(1)
    make = lambda *shape: torch.randn(shape, device="cuda", dtype=dtype)  # noqa: E731
    return (make(batch, seqlen_q, 4, dim), make(batch, seqlen_k, 2, dim),
            make(batch, seqlen_k, 2, dim_v))


class AttentionTest(unittest.TestCase):
    def close(self, actual, expected):
        torch.testing.assert_close(actual.float(), expected, rtol=1e-2, atol=1e-2)

    def test_bshd_and_bhsd_with_lse_match_the_dense_mask(self):
        for dtype in (torch.bfloat16, torch.float16):
            q, k, v = tensors(dim_v=96, dtype=dtype)
            out, lse = girih.attention(q, k, v, PATTERN, return_lse=True)
            expected, expected_lse = reference(q, k, v, visible(70, 100))
            self.assertEqual((out.dtype, out.shape), (dtype, (2, 70, 4, 96)))
            self.close(out, expected)
            torch.testing.assert_close(lse, expected_lse, rtol=1e-3, atol=1e-3)
            again = girih.attention(*(x.transpose(1, 2).contiguous() for x in (q, k, v)), PATTERN,
                                    layout="bhsd")
            self.assertTrue(torch.equal(again.transpose(1, 2), out))

    def test_packed_sequences_match_one_at_a_time(self):
        lengths_q, lengths_k = [5, 33, 1], [20, 33, 64]
        pairs = [tensors(1, q, k) for q, k in zip(lengths_q, lengths_k)]
        packed = [torch.cat([pair[i][0] for pair in pairs]) for i in range(3)]
        starts = [torch.tensor([0] + lengths, device="cuda").cumsum(0).int()
                  for lengths in (lengths_q, lengths_k)]
        out, lse = girih.attention(*packed, PATTERN, layout="thd", cu_seqlens_q=starts[0],
                                   cu_seqlens_k=starts[1], max_seqlen_q=33, max_seqlen_k=64,
                                   return_lse=True)
        row = 0
        for q, k, v in pairs:
            expected, expected_lse = reference(q, k, v, visible(q.shape[1], k.shape[1]))
            rows = slice(row, row + q.shape[1])
            self.close(out[rows], expected[0])
            torch.testing.assert_close(lse[:, rows], expected_lse[0], rtol=1e-3, atol=1e-3)
            row += q.shape[1]

    def test_residues_of_a_dilated_axis_are_heads_of_a_view(self):
        q, k, v = tensors(seqlen_q=120, seqlen_k=120)
        whole = girih.attention(q, k, v, "neighborhood(120, window=9, dilation=3)")
        views = (x.view(2, 40, 3 * x.shape[2], 64) for x in (q, k, v))
        groups = girih.attention(*views, "neighborhood(40, window=9)")
        self.close(groups.view(whole.shape), whole.float())

    def test_options_of_a_launch_reach_the_kernel(self):
        q, k, v = tensors()
        used = torch.tensor([100, 60], device="cuda", dtype=torch.int32)
        out = girih.attention(q, k, v, "dense", seqused_k=used, softmax_scale=0.3, max_ctas=2)
        exists = torch.arange(100, device="cuda") < used[:, None, None, None]
        self.close(out, reference(q, k, v, exists, 0.3)[0])
        out = girih.attention(q, k, v, "dense", leftpad_k=100 - used)
        exists = torch.arange(100, device="cuda") >= 100 - used[:, None, None, None]
        self.close(out, reference(q, k, v, exists)[0])

        # At q_start = -1 the first query precedes every key.
        into, lse = torch.full_like(q, math.nan), torch.empty(2, 4, 70, device="cuda")
        result = girih.attention(q, k, v, "causal", q_start=-1, empty_lse=math.inf, out=into,
                                 lse=lse)
        self.assertIs(result[0], into)
        self.assertEqual(into[:, 0].abs().max().item(), 0)
        self.assertTrue((lse[:, :, 0] == math.inf).all())
        mask = torch.arange(100, device="cuda") <= torch.arange(70, device="cuda")[:, None] - 1
        self.close(into, reference(q, k, v, mask)[0])

    def test_a_bound_kernel_says_what_it_uses_and_launches(self):
        q, k, v = tensors()
        kernel = girih.compile(PATTERN).bind(dtype=q.dtype, head_dim=64, num_heads=4,
                                             num_heads_kv=2)
        major, minor = torch.cuda.get_device_capability()
        self.assertTrue(kernel.info["arch"].startswith("sm_%d%d" % (major, minor)))
        self.assertGreater(kernel.info["registers"], 0)
        self.assertGreater(kernel.info["block_m"], 0)
        self.assertEqual(kernel.workspace_bytes(q, k, v), 0)
        self.assertTrue(torch.equal(kernel(q, k, v), girih.attention(q, k, v, PATTERN)))
        with self.assertRaisesRegex(girih.Error, "bound for"):
            kernel(*(x.half() for x in (q, k, v)))
        with self.assertRaisesRegex(girih.Error, "head_dim 60"):
            girih.compile(PATTERN).bind(dtype="fp16", head_dim=60, num_heads=4)

    def test_a_thread_without_a_context_gets_one(self):
        q, k, v = tensors()
        into, results = torch.empty_like(q), []
        thread = threading.Thread(
            target=lambda: results.append(girih.attention(q, k, v, PATTERN, out=into)))
        thread.start()
        thread.join()
        self.assertEqual(len(results), 1)
        self.assertTrue(torch.equal(into, girih.attention(q, k, v, PATTERN)))

    def test_work_goes_to_the_current_stream_and_into_graphs(self):
        q, k, v = tensors(seqlen_q=90)
        expected = girih.attention(q, k, v, PATTERN)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            out = girih.attention(q, k, v, PATTERN)
        stream.synchronize()
        self.assertTrue(torch.equal(out, expected))
        stream.wait_stream(torch.cuda.current_stream())
        for given in (stream, stream.cuda_stream):  # whose memory the result is, too
            out, lse = girih.attention(q, k, v, PATTERN, stream=given, return_lse=True)
            stream.synchronize()
            self.assertTrue(torch.equal(out, expected))
            self.assertEqual(lse.shape, (q.shape[0], q.shape[2], q.shape[1]))

        graph, out = torch.cuda.CUDAGraph(), torch.zeros_like(q)
        with torch.cuda.graph(graph):
            girih.attention(q, k, v, PATTERN, out=out)
        self.assertEqual(out.abs().max().item(), 0)
        graph.replay()
        self.assertTrue(torch.equal(out, expected))

    def test_what_cannot_be_done_is_refused(self):
        q, k, v = tensors()
        with self.assertRaisesRegex(girih.Error, "q is on the CPU"):
            girih.attention(q.cpu(), k, v, "causal")
        with self.assertRaisesRegex(girih.Error, "no backward pass"):
            girih.attention(q.requires_grad_(), k, v, "causal")
        slopes = torch.ones(1, 4, device="cuda", requires_grad=True)
        with self.assertRaisesRegex(girih.Error, "the input 'a' requires a gradient"):
            girih.attention(q.detach(), k, v, "causal with alibi(a)", inputs={"a": slopes})
        with torch.no_grad():
            girih.attention(q, k, v, "causal")
        with self.assertRaisesRegex(girih.Error, "v has shape"):
            girih.attention(q.detach(), k, v[:, 1:], "causal")


MIXED = ("heads(0-3: dense, 4-7: causal & blocks(m, q=64, kv=32), "
         "else: causal & (sink($n) | window(left=40)))")


class TokenIndicesTest(unittest.TestCase):
    """Documents packed in a sequence, and tokens in an order of their own."""

    def test_documents_and_indices_match_the_dense_mask(self):
        q, k, v = tensors(seqlen_q=300, seqlen_k=300)
        ids = (torch.rand(2, 300, device="cuda") < 0.02).cumsum(1).int()
        other = torch.randint(0, 5, (2, 2, 300), device="cuda", dtype=torch.int32)  # by KV head
        causal = torch.ones(300, 300, device="cuda", dtype=torch.bool).tril()
        same = (ids[:, None, :, None] == ids[:, None, None, :]).expand(2, 4, 300, 300)
        of_heads = other.repeat_interleave(2, dim=1)
        allowed = ids[:, None, :, None] >= of_heads[:, :, None, :]
        indices = girih.TokenIndices
        for pattern, given, mask in (
                ("causal & segments(d)", indices(ids), same & causal),
                ("segments(d)", indices(ids, ids.clone()), same),
                ("index_ge(d)", indices(ids, other), allowed),
                ("causal & !index_gt(d)", indices(other, ids[:, None]),
                 (of_heads[..., None] <= ids[:, None, None, :]) & causal)):
            out = girih.attention(q, k, v, pattern, inputs={"d": given})
            expected, _ = reference(q, k, v, mask)
            torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)

    def test_conditions_and_scores_read_tensors_by_their_indices(self):
        q, k, v = tensors()
        ids = torch.randint(0, 3, (2, 100), device="cuda", dtype=torch.int32)
        far = torch.randn(4, 12, device="cuda")
        rows, keys = torch.arange(70, device="cuda")[:, None], torch.arange(100, device="cuda")
        p = rows + 30
        same = (ids[:, None, 30:, None] == ids[:, None, None, :]).expand(2, 4, 70, 100)
        pattern = 'expr("ids[b][p] == ids[b][k]") & causal'
        out = girih.attention(q, k, v, pattern, inputs={"ids": girih.Values(ids)})
        expected, _ = reference(q, k, v, same & (keys <= p))
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)

        heads = lambda x: x.float().transpose(1, 2)  # noqa: E731
        scores = heads(q) @ heads(k).repeat_interleave(2, dim=1).transpose(2, 3) / 8
        scores = scores * 0.5 + far[:, ((p - keys) // 8).clamp(0, 11)]
        scores = scores.masked_fill(keys > p, -math.inf)
        expected = torch.softmax(scores, -1) @ heads(v).repeat_interleave(2, dim=1)
        out, lse = girih.attention(q, k, v, 'causal with score("s * 0.5 + far[h][(p - k) / 8]")',
                                   inputs={"far": far}, return_lse=True)
        torch.testing.assert_close(out.float(), expected.transpose(1, 2), rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(lse, torch.logsumexp(scores, -1), rtol=1e-3, atol=1e-3)
        with self.assertRaisesRegex(girih.Error, "unknown name 'x'"):
            girih.attention(q, k, v, 'expr("k < x")')
        with self.assertRaisesRegex(girih.Error, "the pattern wants int32"):
            girih.attention(q, k, v, pattern, inputs={"ids": girih.Values(far)})

    def test_intervals_of_rows_are_flashmask(self):
        q, k, v = tensors()
        rows, keys = torch.arange(70, device="cuda")[:, None], torch.arange(100, device="cuda")
        bounds = torch.randint(0, 80, (2, 2, 100, 4), device="cuda", dtype=torch.int32)
        start, end, second_start, second_end = bounds.unbind(-1)
        inside = lambda a, b: (a[..., None, :] <= rows) & (rows < b[..., None, :])  # noqa: E731
        one = inside(start, end).repeat_interleave(2, dim=1)
        two = one | inside(second_start, second_end).repeat_interleave(2, dim=1)
        causal = keys <= rows + 30
        columns = girih.ColumnIntervals
        for pattern, given, mask in (
                ("columns(c)", columns(start.contiguous(), end.contiguous()), one),
                ("columns(c)", columns(start, end, second_start, second_end), two),
                ("causal & !columns(c)", columns(start, end, second_start, second_end),
                 ~two & causal)):
            out = girih.attention(q, k, v, pattern, inputs={"c": given})
            expected, _ = reference(q, k, v, mask)
            torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)

    def test_slopes_biases_and_sinks_are_float32_tensors(self):
        q, k, v = tensors()
        slopes = torch.rand(4, device="cuda")
        bias = torch.randn(2, 2, 100, device="cuda")
        sinks = torch.randn(4, device="cuda")
        p, keys = torch.arange(70, device="cuda")[:, None] + 30, torch.arange(100, device="cuda")
        heads = lambda x: x.float().transpose(1, 2)  # noqa: E731
        scores = heads(q) @ heads(k).repeat_interleave(2, dim=1).transpose(2, 3) / 8
        scores = scores - slopes[:, None, None] * (p - keys).abs()
        scores = scores + bias.repeat_interleave(2, dim=1)[:, :, None, :]
        scores = scores.masked_fill(keys > p, -math.inf)
        column = sinks[None, :, None, None].expand(2, 4, 70, 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
        expected = (weights @ heads(v).repeat_interleave(2, dim=1)).transpose(1, 2)
        out, lse = girih.attention(q, k, v, "causal with alibi(s), bias(b), sink_logit(z)",
                                   inputs={"s": slopes, "b": bias, "z": sinks}, return_lse=True)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(lse, torch.logsumexp(torch.cat([scores, column], -1), -1),
                                   rtol=1e-3, atol=1e-3)
        with self.assertRaisesRegex(girih.Error, "at least seqlen_k, 100"):
            girih.attention(q, k, v, "causal with bias(b)", inputs={"b": bias[..., :99]})

    def test_thresholds_of_a_file_prune_as_those_of_a_tensor(self):
        q, k, v = tensors(1, 300, 640)
        pattern = "causal with prune(t, kv=64)"
        values = torch.full((4, 5), 3.7)  # about what the highest of 128 x 64 scores is
        header = json.dumps({
            "__metadata__": {"kv": "64", "rows": "128", "pattern": "causal",
                             "softmax_scale": "0.125"},
            "thresholds": {"dtype": "F32", "shape": [4, 5], "data_offsets": [0, 80]}}).encode()
        with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
            file.write(struct.pack("<Q", len(header)) + header + values.numpy().tobytes())
            file.flush()
            loaded = girih.Thresholds.load(file.name)
        self.assertEqual((loaded.kv, loaded.metadata["pattern"]), (64, "causal"))
        self.assertEqual(loaded.softmax_scale, 0.125)
        with self.assertRaisesRegex(girih.Error, "for softmax_scale 0.125, but the call has 0.5"):
            girih.attention(q, k, v, pattern, inputs={"t": loaded}, softmax_scale=0.5)
        out = girih.attention(q, k, v, pattern, inputs={"t": loaded})
        given = girih.Thresholds(values.cuda(), 64)
        self.assertTrue(torch.equal(out, girih.attention(q, k, v, pattern, inputs={"t": given})))
        whole = girih.attention(q, k, v, "causal")
        self.assertGreater((out.float() - whole.float()).abs().max().item(), 0.02)
        with self.assertRaisesRegex(girih.Error, "prunes tiles of 128"):
            girih.attention(q, k, v, "causal with prune(t, kv=128)", inputs={"t": loaded})
        kernel = girih.compile(pattern).bind(dtype="bf16", head_dim=64, num_heads=4, num_heads_kv=2)
        kernel.build_lists(q, k, v, workspace=None, check=True, inputs={"t": loaded})
        loaded.values[3, 2] = math.nan
        with self.assertRaisesRegex(girih.Error, "NaN in head 3, column 2"):
            kernel.build_lists(q, k, v, workspace=None, check=True, inputs={"t": loaded})

    def test_indices_that_do_not_fit_are_refused(self):
        q, k, v = tensors()
        ids = torch.zeros(2, 70, device="cuda", dtype=torch.int32)
        with self.assertRaisesRegex(girih.Error, "are 70 and 100: give k"):
            girih.attention(q, k, v, "segments(d)", inputs={"d": girih.TokenIndices(ids)})
        with self.assertRaisesRegex(girih.Error, "'d' has 70 numbers a row in k"):
            girih.attention(q, k, v, "segments(d)", inputs={"d": girih.TokenIndices(ids, ids)})


def slash_mask(vertical, slash, seqlen_q, seqlen_k):
    """The dense mask of one head, by the definition."""
    mask = torch.zeros(seqlen_q, seqlen_k, dtype=torch.bool)
    distances = sorted({0, *slash}, reverse=True)
    offset = seqlen_k - seqlen_q
    for first in range(0, seqlen_q, 64):
        row, ranges = first + offset, []
        for distance in distances:
            if distance >= row + 64:
                continue
            end = max(row + 64 - distance, 64)
            if not ranges or end > ranges[-1][1] + 64:
                ranges.append([end - 64, end])
            elif end > ranges[-1][1]:
                ranges[-1][1] += 64
        for begin, end in ranges:
            mask[first:first + 64, begin:end] = True
        mask[first:first + 64, [key for key in vertical if 0 <= key < seqlen_k]] = True
    return mask & torch.ones(seqlen_q, seqlen_k, dtype=torch.bool).tril(offset)


class SlashListsTest(unittest.TestCase):
    def test_columns_and_slashes_match_the_dense_mask(self):
        q, k, v = tensors(seqlen_q=300, seqlen_k=500)
        vertical = torch.randint(-1, 500, (2, 4, 20), dtype=torch.int32)
        slash = torch.randint(0, 400, (2, 4, 6), dtype=torch.int32)
        mask = torch.stack([torch.stack([slash_mask(vertical[b, h].tolist(), slash[b, h].tolist(),
                                                    300, 500) for h in range(4)])
                            for b in range(2)]).cuda()
        lists = girih.SlashLists(vertical.cuda(), slash.cuda())
        out = girih.attention(q, k, v, "vertical_slash(v)", inputs={"v": lists})
        expected, _ = reference(q, k, v, mask)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


    def test_estimates_find_what_the_last_queries_see(self):
        q = torch.zeros(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.zeros(1, 1024, 2, 64, device="cuda", dtype=torch.bfloat16)
        q[..., 0] = 8
        k[:, 400, 0, 0] = 8  # a column for the first two heads
        row = torch.arange(960, 1024, device="cuda")
        q[0, row, 2:, 1 + row - 960 - (row - 960) // 63 * 63] = 64
        k[0, row - 300, 1, 1 + row - 960 - (row - 960) // 63 * 63] = 64  # a diagonal for the others
        for layout in ("bshd", "bhsd"):
            tensors_of = [x if layout == "bshd" else x.transpose(1, 2) for x in (q, k)]
            lists = girih.estimate_slashes(*tensors_of, 31, 101, layout=layout)
            self.assertEqual((lists.vertical.shape, lists.slash.shape), ((1, 4, 31), (1, 4, 101)))
            for head in range(4):
                vertical, slash = lists.vertical[0, head].tolist(), lists.slash[0, head].tolist()
                self.assertTrue(set(range(30)) < set(vertical))
                self.assertTrue(set(range(100)) < set(slash))
                if head < 2:
                    self.assertIn(400, vertical)
                else:
                    self.assertIn(300, slash)
        few = girih.estimate_slashes(q[:, :10], k[:, :50], 1000, 6096)
        self.assertEqual((few.vertical.shape, few.slash.shape), ((1, 4, 50), (1, 4, 50)))

    def test_estimates_are_those_of_pytorch_in_float64(self):
        torch.manual_seed(5)
        q, k = (torch.randn(2, 5000, heads, 128, device="cuda", dtype=torch.bfloat16)
                for heads in (8, 2))
        lists = girih.estimate_slashes(2 * q, k, 300, 700)
        for b in range(2):
            sums = reference_sums(2 * q[b], k[b])
            for of, entries, forced in ((sums[0], lists.vertical, 30), (sums[1], lists.slash, 100)):
                of[:, :forced] = float("inf")
                taken = torch.zeros_like(of, dtype=torch.bool)
                taken.scatter_(1, entries[b].long(), True)
                self.assertTrue((taken.sum(1) == entries.shape[2]).all())
                least = of.masked_fill(~taken, float("inf")).amin(1)
                most = of.masked_fill(taken, 0).amax(1)
                self.assertTrue((most <= least * 1.0001).all())

    def test_heads_may_have_numbers_of_their_own(self):
        torch.manual_seed(6)
        q, k = (torch.randn(2, 700, heads, 64, device="cuda", dtype=torch.bfloat16)
                for heads in (4, 2))
        vertical, slash = [0, 31, 500, 40], torch.tensor([300, 0, 101, 900])
        lists = girih.estimate_slashes(q, k, head_vertical=vertical, head_slash=slash)
        self.assertEqual((lists.vertical.shape, lists.slash.shape), ((2, 4, 500), (2, 4, 700)))
        for head in range(4):
            number = (vertical[head], min(int(slash[head]), 700))
            alone = girih.estimate_slashes(q, k, *number)
            for entries, own, count in zip((lists.vertical, lists.slash),
                                           (alone.vertical, alone.slash), number):
                self.assertTrue(torch.equal(entries[:, head, :count], own[:, head]))
                self.assertTrue((entries[:, head, count:] == -1).all())

    def test_estimates_can_be_captured(self):
        q, k = (torch.randn(1, 2000, 4, 64, device="cuda", dtype=torch.float16) for _ in range(2))
        girih.bind_estimate(torch.float16, 64)
        expected = girih.estimate_slashes(q, k, 50, 150)
        lists = girih.SlashLists(*(torch.zeros(1, 4, number, device="cuda", dtype=torch.int32)
                                   for number in (50, 150)))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            girih.estimate_slashes(q, k, 50, 150, lists=lists)
        graph.replay()
        torch.cuda.synchronize()
        self.assertTrue(torch.equal(lists.vertical, expected.vertical))
        self.assertTrue(torch.equal(lists.slash, expected.slash))

    def test_estimated_blocks_hold_what_queries_see(self):
        q = torch.zeros(1, 1024, 4, 64, device="cuda", dtype=torch.bfloat16)
        k = torch.zeros(1, 1024, 2, 64, device="cuda", dtype=torch.bfloat16)
        q[..., 0] = 16
        k[:, 320:384, 0, 0] = 16  # block 5 for the first two heads
        k[:, 704:768, 1, 0] = 16  # block 11 for the others
        first, second = torch.eye(16, dtype=torch.bool), torch.eye(16, dtype=torch.bool)
        first[5:, 5] = second[11:, 11] = True
        first, second = first.cuda(), second.cuda()
        for layout in ("bshd", "bhsd"):
            tensors_of = [x if layout == "bshd" else x.transpose(1, 2) for x in (q, k)]
            for stride in (None, 8):
                mask = girih.estimate_blocks(*tensors_of, threshold=0.5, stride=stride,
                                             layout=layout)
                self.assertEqual((mask.dtype, mask.shape), (torch.bool, (1, 4, 16, 16)))
                for head, expected in enumerate((first, first, second, second)):
                    late = 6 if head < 2 else 12
                    self.assertTrue(torch.equal(mask[0, head, late:], expected[late:]))
        wide = girih.estimate_blocks(q[:, :1000], k, top_k=1, q_block=128, kv_block=128,
                                     keep_sink=True)
        self.assertEqual(wide.shape, (1, 4, 8, 8))
        # Rows stand at 24 to 151, 152 to 279 and so on: in two blocks of keys each.
        self.assertEqual(wide[0, 0].sum(1).tolist(), [2, 3, 3, 3, 3, 3, 3, 2])

    def test_attention_takes_estimated_blocks(self):
        torch.manual_seed(6)
        q, k, v = tensors(seqlen_q=500, seqlen_k=700)
        all_blocks = girih.estimate_blocks(q, k, threshold=1.0)
        some_blocks = girih.estimate_blocks(q, k, top_k=4, q_block=128)
        rows = torch.arange(500, device="cuda")
        keys = torch.arange(700, device="cuda")
        seen = keys <= rows[:, None] + 200
        for mask, q_block in ((all_blocks, 64), (some_blocks, 128)):
            out = girih.attention(q, k, v, "causal & blocks(m, q=%d, kv=64)" % q_block,
                                  inputs={"m": mask})
            dense = mask[:, :, rows // q_block][..., keys // 64] & seen
            torch.testing.assert_close(out.float(), reference(q, k, v, dense)[0], rtol=1e-2,
                                       atol=1e-2)
        self.assertTrue(torch.equal(all_blocks[:, :, rows // 64][..., keys // 64] & seen,
                                    seen.expand(2, 4, -1, -1)))
        self.assertEqual(some_blocks.sum(3).unique().tolist(), [4])

    def test_estimates_of_blocks_are_those_of_pytorch_in_float64(self):
        torch.manual_seed(7)
        q, k = (3 * torch.randn(2, 1500, heads, 128, device="cuda", dtype=torch.bfloat16)
                for heads in (8, 2))
        for stride in (None, 16):
            values = reference_blocks(q, k, stride)
            mask = girih.estimate_blocks(q, k, threshold=0.6, stride=stride)
            forced = torch.eye(24, device="cuda", dtype=torch.bool)
            most = values.masked_fill(mask | forced, 0).amax(3)
            least = values.masked_fill(~mask | forced, math.inf).amin(3)
            self.assertTrue((most <= least * 1.001).all())
            share = (values * mask).sum(3) / values.sum(3)
            self.assertTrue((share >= 0.6 * 0.999).all())
            fewer = share - torch.where(least < math.inf, least, math.inf) / values.sum(3)
            self.assertTrue((fewer <= 0.6 * 1.001).all())

    def test_estimates_of_blocks_can_be_captured(self):
        q, k = (torch.randn(1, 2000, 4, 64, device="cuda", dtype=torch.float16) for _ in range(2))
        girih.bind_estimate_blocks(torch.float16, 64)
        for arguments in ({"top_k": 7}, {"threshold": 0.5, "stride": 8}):
            expected = girih.estimate_blocks(q, k, **arguments)
            mask = torch.zeros(1, 4, 32, 32, device="cuda", dtype=torch.uint8)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                girih.estimate_blocks(q, k, mask=mask, **arguments)
            graph.replay()
            torch.cuda.synchronize()
            self.assertTrue(torch.equal(mask.bool(), expected))

    def test_seer_map_is_the_largest_of_every_tile(self):
        torch.manual_seed(8)
        q, k, v = (torch.randn(2, 1500, heads, 64, device="cuda", dtype=torch.bfloat16)
                   for heads in (4, 2, 2))
        out, tiles = seer_map(q, k, v, rows_at_once=256)
        causal = torch.ones(1500, 1500, device="cuda", dtype=torch.bool).tril()
        keys = k.float().repeat_interleave(2, 2).permute(0, 2, 3, 1)
        scores = q.float().transpose(1, 2) @ keys / 8
        seen = scores.masked_fill(~causal, -math.inf).softmax(3)
        expected = torch.zeros(2, 4, 24, 24, device="cuda")
        for row in range(24):
            for column in range(row + 1):
                tile = seen[:, :, 64 * row:64 * row + 64, 64 * column:64 * column + 64]
                expected[:, :, row, column] = tile.amax((2, 3))
        expected /= expected.sum(3, keepdim=True)
        torch.testing.assert_close(tiles, expected, rtol=5e-3, atol=1e-5)
        torch.testing.assert_close(out.float(), reference(q, k, v, causal)[0], rtol=1e-2,
                                   atol=1e-2)


def reference_blocks(q, k, stride, block=64):
    """What blocks of `block` queries see of blocks of keys, in float64: [batch, heads, q, kv]."""
    groups = stride or block

    def padded(x, heads):
        x = x.double().repeat_interleave(heads // x.shape[2], 2).transpose(1, 2)
        return torch.nn.functional.pad(x, (0, 0, 0, -x.shape[2] % groups)).unflatten(2, (-1, groups))

    heads, scale = q.shape[2], q.shape[3] ** -0.5
    q_groups, k_groups = padded(q, heads), padded(k, heads)
    if stride is None:
        tokens = (q.shape[1] - torch.arange(q_groups.shape[2], device="cuda") * block).clamp(max=block)
        q_rows, k_rows = (x.sum(3) / tokens[:, None] for x in (q_groups, k_groups))
    else:
        q_rows, k_rows = q_groups.flip(3).flatten(3), k_groups.flatten(3) / stride
    scores = q_rows @ k_rows.transpose(2, 3) * scale
    future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    seen = scores.masked_fill(future, -math.inf).softmax(3)
    each = block // groups
    seen = torch.nn.functional.pad(seen, (0, -seen.shape[3] % each, 0, -seen.shape[2] % each))
    return seen.unflatten(3, (-1, each)).sum(4).unflatten(2, (-1, each)).sum(3)


def reference_sums(q, k):
    """What the last 64 queries of each head see of every key, and at every distance, in float64:
    [heads, keys] each. q, k: [seqlen, heads, head_dim]."""
    rows = min(64, len(q), len(k))
    distance = (torch.arange(len(k) - rows, len(k), device="cuda")[:, None]
                - torch.arange(len(k), device="cuda"))
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1).permute(1, 2, 0)
    scores = q[len(q) - rows:].double().transpose(0, 1) @ keys * q.shape[2] ** -0.5
    seen = scores.masked_fill_(distance < 0, float("-inf")).softmax(2)
    diagonals = torch.zeros_like(seen[:, 0]).index_add_(
        1, distance.clamp(min=0).flatten(), seen.flatten(1))
    return seen.sum(1), diagonals


class InputTest(unittest.TestCase):
    """A third of the heads each dense, block-sparse and streaming, as Block-Sparse-Attention mixes
    them, with everything that comes at run time in each of its forms."""

    batch, seqlen_q, seqlen_k, heads, heads_kv = 2, 200, 330, 12, 6
    rows, columns = 4, 11  # of 64 x 32

    def setUp(self):
        torch.manual_seed(2)
        make = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        self.q = make(self.batch, self.seqlen_q, self.heads, 64)
        self.k, self.v = (make(self.batch, self.seqlen_k, self.heads_kv, 64) for _ in range(2))
        self.blocks = torch.rand(self.batch, self.heads_kv, self.rows, self.columns,
                                 device="cuda") < 0.4
        self.sinks = torch.tensor([[3], [150]], device="cuda", dtype=torch.int32)

    def expected(self, blocks, sinks):
        """scaled_dot_product_attention under MIXED as a dense mask; rows without a key are 0."""
        expand = lambda x: x.expand(self.batch, *x.shape[-3:])  # noqa: E731
        blocks = expand(blocks).repeat_interleave(self.heads // blocks.shape[-3], dim=1)
        tokens = blocks.repeat_interleave(64, dim=2).repeat_interleave(32, dim=3)
        tokens = tokens[:, :, :self.seqlen_q, :self.seqlen_k]
        p = (torch.arange(self.seqlen_q, device="cuda") + self.seqlen_k - self.seqlen_q)[:, None]
        k = torch.arange(self.seqlen_k, device="cuda")
        streaming = (k <= p) & ((k < sinks[..., None, None]) | (k >= p - 40))
        mask = torch.ones(self.batch, self.heads, self.seqlen_q, self.seqlen_k, dtype=torch.bool,
                          device="cuda")
        mask[:, 4:8] = tokens[:, 4:8] & (k <= p)
        mask[:, 8:] = streaming
        q, k, v = (x.transpose(1, 2).float() for x in (self.q, self.k, self.v))
        k, v = (x.repeat_interleave(self.heads // self.heads_kv, dim=1) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.masked_fill(~mask.any(-1, keepdim=True), 0).transpose(1, 2)

    def check(self, out, blocks=None, sinks=None):
        blocks = self.blocks if blocks is None else blocks
        expected = self.expected(blocks, self.sinks if sinks is None else sinks)
        torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)

    def attention(self, m, n=None, **arguments):
        inputs = {"m": m, "n": self.sinks if n is None else n}
        return girih.attention(self.q, self.k, self.v, MIXED, inputs=inputs, **arguments)

    def lists(self, blocks):
        """The key blocks of every row of every plane, each row in random order."""
        return [row.nonzero()[:, 0][torch.randperm(int(row.sum()), device="cuda")].int()
                for row in blocks.reshape(-1, blocks.shape[-1])]

    def test_block_masks_match_the_dense_mask(self):
        for blocks in (self.blocks, self.blocks[:1], self.blocks[0], self.blocks[:, :1]):
            self.check(self.attention(blocks), blocks)
        self.check(self.attention(self.blocks.to(torch.uint8) * 255))
        wide = torch.ones(self.batch, self.heads_kv, 6, 40, device="cuda", dtype=torch.bool)
        wide[:, :, :4, :11] = self.blocks
        self.check(self.attention(wide))
        self.check(self.attention(wide[:, :, :4, :11]))  # not contiguous
        by_head = self.blocks.repeat_interleave(2, dim=1)
        self.assertTrue(torch.equal(self.attention(by_head), self.attention(self.blocks)))

    def test_block_lists_match_the_dense_mask(self):
        lists = self.lists(self.blocks)
        counts = torch.tensor([len(row) for row in lists], device="cuda")
        indices = torch.cat(lists)
        ends = counts.cumsum(0).reshape(self.batch, self.heads_kv, self.rows)
        begin = ends[..., :1] - counts.reshape(ends.shape)[..., :1]
        indptr = torch.cat([begin, ends], -1).int()
        self.check(self.attention(girih.BlockList(indptr, indices, self.columns)))

        capacity = self.rows * self.columns
        own = torch.full((self.batch, self.heads_kv, capacity), -7, device="cuda",
                         dtype=torch.int32)
        flat = indptr.reshape(-1, self.rows + 1).tolist()
        for plane, bounds in zip(own.reshape(-1, capacity), flat):
            plane[:bounds[-1] - bounds[0]] = indices[bounds[0]:bounds[-1]]
        self.check(self.attention(girih.BlockList((indptr - begin).int(), own, self.columns)))

    def test_block_tables_and_bits_match_the_dense_mask(self):
        counts = self.blocks.sum(-1).int()
        table = torch.full(self.blocks.shape, 99, device="cuda", dtype=torch.int32)
        for row, indices in zip(table.reshape(-1, self.columns), self.lists(self.blocks)):
            row[:len(indices)] = indices
        self.check(self.attention(girih.BlockTable(counts, table)))
        weights = 2 ** torch.arange(self.columns, device="cuda")
        words = (self.blocks * weights).sum(-1, keepdim=True).int()
        self.check(self.attention(girih.BlockBits(words, self.columns)))

    def test_numbers_are_shared_or_by_sequence_and_head(self):
        for numbers in (torch.tensor(9), torch.tensor([[5], [70]]), torch.full((1, 6), 33),
                        torch.full((12,), 2)):
            numbers = numbers.to("cuda", torch.int32)
            shared = numbers.reshape(-1, 1) if numbers.numel() < 6 else numbers.reshape(-1)[:1]
            self.check(self.attention(self.blocks, numbers), sinks=shared)

    def test_a_bound_kernel_builds_its_lists_once(self):
        kernel = girih.compile(MIXED).bind(dtype=self.q.dtype, head_dim=64, num_heads=self.heads,
                                           num_heads_kv=self.heads_kv)
        tensors = self.q, self.k, self.v
        inputs = {"m": self.blocks, "n": self.sinks}
        size = kernel.workspace_bytes(*tensors, inputs=inputs)
        self.assertGreater(size, 0)
        workspace = torch.empty(size, device="cuda", dtype=torch.uint8)
        kernel.build_lists(*tensors, inputs=inputs, workspace=workspace)
        for _ in range(2):
            self.check(kernel(*tensors, inputs=inputs, workspace=workspace))
        self.check(kernel(*tensors, inputs=inputs))  # lists are built for this call
        with self.assertRaisesRegex(girih.Error, "bytes of workspace, and 8 were given"):
            kernel(*tensors, inputs=inputs, workspace=workspace[:8])

        counts = torch.full((self.rows,), 2, device="cuda", dtype=torch.int32)
        table = torch.tensor([[0, self.columns]] * self.rows, device="cuda", dtype=torch.int32)
        outside = {"m": girih.BlockTable(counts, table, self.columns), "n": self.sinks}
        kernel.build_lists(*tensors, inputs=outside, workspace=workspace)
        with self.assertRaisesRegex(girih.Error, "'m' has 4 entries out of range"):
            kernel.build_lists(*tensors, inputs=outside, workspace=workspace, check=True)

    def test_what_does_not_fit_the_pattern_is_refused(self):
        with self.assertRaisesRegex(girih.Error, "the input 'n' is missing"):
            girih.attention(self.q, self.k, self.v, MIXED, inputs={"m": self.blocks})
        with self.assertRaisesRegex(girih.Error, "'m' was given numbers"):
            self.attention(self.sinks)
        with self.assertRaisesRegex(girih.Error, "'m' has num_kv_blocks 10"):
            self.attention(self.blocks[..., :10].contiguous())
        with self.assertRaisesRegex(girih.Error, "'m' has heads 5"):
            self.attention(self.blocks[:, :5])
        with self.assertRaisesRegex(girih.Error, "is on the CPU"):
            self.attention(self.blocks.cpu())


class CombineTest(unittest.TestCase):
    def parts(self, **arguments):
        """PATTERN over three chunks of the keys."""
        q, k, v = tensors()
        chunks = [(0, 40), (40, 41), (41, 100)]
        return [girih.attention(q, k[:, a:b], v[:, a:b], PATTERN, q_start=30, k_start=a,
                                return_lse=True, **arguments) for a, b in chunks]

    def check(self, out, lse):
        expected, expected_lse = reference(*tensors(), visible(70, 100))
        torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(lse, expected_lse, rtol=1e-3, atol=1e-3)

    def test_chunks_of_the_keys_merge_into_the_whole(self):
        parts = self.parts()
        out, lse = girih.combine(*zip(*parts))
        self.assertEqual((out.dtype, out.shape), (torch.bfloat16, (2, 70, 4, 64)))
        self.check(out, lse)
        outs = [part.transpose(1, 2).contiguous() for part, _ in parts]
        again, _ = girih.combine(outs, [lse for _, lse in parts], layout="bhsd")
        self.assertTrue(torch.equal(again.transpose(1, 2), out))
        # A part without rows that count changes nothing; types may differ.
        nothing = torch.full((2, 70, 4, 64), math.nan, device="cuda", dtype=torch.float16)
        more, _ = girih.combine([*(part for part, _ in parts), nothing],
                                [*(lse for _, lse in parts), torch.full_like(lse, math.inf)])
        self.assertEqual(more.dtype, torch.float32)
        self.assertTrue(torch.equal(more.bfloat16(), out))

    def test_an_accumulator_takes_one_part_after_the_other_in_place(self):
        parts = self.parts()
        out, lse = parts[0][0].float(), parts[0][1].clone()
        for part, part_lse in parts[1:]:
            result = girih.combine([out, part], [lse, part_lse], out=out, lse=lse)
            self.assertIs(result[0], out)
        self.check(out, lse)

    def test_a_merge_goes_into_a_graph_once_it_is_bound(self):
        girih.bind_combine()
        parts = self.parts()
        expected, _ = girih.combine(*zip(*parts))
        out, lse = torch.zeros_like(expected), torch.zeros_like(parts[0][1])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            girih.combine(*zip(*parts), out=out, lse=lse)
        self.assertEqual(out.abs().max().item(), 0)
        graph.replay()
        self.assertTrue(torch.equal(out, expected))

    def test_gradients_are_refused(self):
        (out, lse), *_ = self.parts()
        with self.assertRaisesRegex(girih.Error, "no backward pass"):
            girih.combine([out.requires_grad_()], [lse])


class MergedLaunchesTest(unittest.TestCase):
    """Systems whose attention is two launches, over keys that are given apart, and their merge."""

    def close(self, out, lse, scores, v):
        """scores [batch, heads, rows, keys] of all keys, v [batch, keys, heads, dim]."""
        expected = torch.softmax(scores, -1) @ v.float().transpose(1, 2)
        torch.testing.assert_close(out.float(), expected.transpose(1, 2), rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(lse, torch.logsumexp(scores, -1), rtol=1e-3, atol=1e-3)

    def scores(self, q, k):
        return q.float().transpose(1, 2) @ k.float().permute(0, 2, 3, 1) / math.sqrt(q.shape[-1])

    def test_bifurcated_attention_reads_a_shared_prompt_once(self):
        torch.manual_seed(2)
        make = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        answers, prompt, own = 5, 300, 40
        for rows in (1, 7):  # of each answer, at its end
            q = make(answers, rows, 4, 64)
            k0, v0 = (make(1, prompt, 2, 64).expand(answers, -1, -1, -1) for _ in range(2))
            k1, v1 = (make(answers, own, 2, 64) for _ in range(2))
            self.assertEqual(k0.stride(0), 0)
            parts = [girih.attention(q, k0, v0, "dense", return_lse=True),
                     girih.attention(q, k1, v1, "causal", return_lse=True)]
            out, lse = girih.combine(*zip(*parts))
            k, v = (torch.cat(x, dim=1).repeat_interleave(2, dim=2)
                    for x in ((k0, k1), (v0, v1)))
            row = torch.arange(rows, device="cuda")[:, None] + prompt + own - rows
            hidden = torch.arange(prompt + own, device="cuda") > row
            self.close(out, lse, self.scores(q, k).masked_fill(hidden, -math.inf), v)

    def test_hyper_attention_samples_keys_of_other_buckets(self):
        torch.manual_seed(3)
        make = lambda: torch.randn(2, 300, 4, 64, device="cuda", dtype=torch.float16)  # noqa: E731
        q, k, v = make(), make(), make()  # every head sorted by its own buckets
        bucket = torch.randint(0, 9, (2, 4, 300), device="cuda", dtype=torch.int32).sort().values
        sampled = torch.randint(0, 300, (2, 4, 64), device="cuda")  # with replacement
        index = sampled.transpose(1, 2)[..., None].expand(-1, -1, -1, 64)
        some_k, some_v = k.gather(1, index), v.gather(1, index)
        own, own_lse = girih.attention(q, k, v, "segments(bucket)", return_lse=True,
                                       inputs={"bucket": girih.TokenIndices(bucket)})
        of_sampled = bucket.gather(2, sampled)
        rest, rest_lse = girih.attention(
            q, some_k, some_v, "!segments(bucket)", return_lse=True,
            inputs={"bucket": girih.TokenIndices(bucket, of_sampled)})
        out, lse = girih.combine([own, rest], [own_lse, rest_lse + math.log(300 / 64)])
        inside = self.scores(q, k).masked_fill(bucket[..., None] != bucket[:, :, None], -math.inf)
        others = (self.scores(q, some_k) + math.log(300 / 64)).masked_fill(
            bucket[..., None] == of_sampled[:, :, None], -math.inf)
        self.close(out, lse, torch.cat([inside, others], -1), torch.cat([v, some_v], 1))


if __name__ == "__main__":
    unittest.main()
