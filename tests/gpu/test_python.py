"""girih.py and the C interface under it on a GPU, with PyTorch: every layout, kernels bound ahead of
time, threads, streams, graphs, and what is refused. tools/gpu_check runs it."""

import math
import pathlib
import sys
import threading
import unittest

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools" / "python"))
import girih  # noqa: E402

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
        size = kernel.workspace_bytes(2, 70, 100)
        workspace = torch.empty(size, device="cuda", dtype=torch.uint8)
        self.assertTrue(torch.equal(kernel(q, k, v, workspace=workspace),
                                    girih.attention(q, k, v, PATTERN)))
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
        with torch.no_grad():
            girih.attention(q, k, v, "causal")
        with self.assertRaisesRegex(girih.Error, "v has shape"):
            girih.attention(q.detach(), k, v[:, 1:], "causal")


if __name__ == "__main__":
    unittest.main()
