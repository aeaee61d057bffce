"""girih_compat.py without a GPU: what other libraries' arguments become as patterns, which numbers
are copied from the GPU and how often, and what is refused. CTest sets GIRIH_LIBRARY."""

import gc
import math
import pathlib
import sys
import types
import unittest
import unittest.mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "python"))
import girih  # noqa: E402
import girih_compat as compat  # noqa: E402


class Fake:
    """Looks like a tensor on a GPU; its memory is never touched."""

    is_cuda = True

    def __init__(self, *shape, dtype="bfloat16", values=None):
        self.shape, self.dtype, self.values = shape, dtype, values
        self._version, self.copies = 0, 0

    def data_ptr(self):
        return 4096

    def stride(self):
        return tuple(math.prod(self.shape[i + 1:]) for i in range(len(self.shape)))

    def __getitem__(self, planes):
        self.planes = planes
        return self

    def reshape(self, _):
        return self

    def tolist(self):
        self.copies += 1
        return list(self.values)


class CompatTest(unittest.TestCase):
    def refused(self, message, call, *arguments, code="invalid_argument", **named):
        with self.assertRaisesRegex(girih.Error, message) as caught:
            call(*arguments, **named)
        self.assertEqual(caught.exception.code, code)

    def parses(self, text, canonical=None):
        self.assertEqual(girih.compile(text).text, canonical or text)


class BlockSparsePatternTest(CompatTest):
    def pattern(self, *arguments, **named):
        text, planes = compat.block_sparse_pattern(*arguments, **named)
        self.parses(text)
        return text, planes

    def test_every_kind_of_head_has_its_mask_and_its_plane(self):
        blocks = "causal & blocks(m, q=128, kv=128)"
        self.assertEqual(
            self.pattern([1, 1, 0, 0, 0, -1, 0, -1], [0, 0] * 5 + [1, 3, 0, 0, 2, 5], True),
            ("heads(0-1: %s, 2-4+6: causal, 5: block_streaming(sink=1, local=3), "
             "7: block_streaming(sink=2, local=5))" % blocks,
             [0, 1, None, None, None, None, None, None]))

    def test_one_kind_for_all_heads_is_one_mask(self):
        self.assertEqual(self.pattern([0, 0]), ("dense", [None, None]))
        self.assertEqual(self.pattern([0, 0], None, True), ("causal", [None, None]))
        self.assertEqual(self.pattern([1, 1]), ("blocks(m, q=128, kv=128)", [0, 1]))

    def test_a_number_above_one_names_a_plane_and_is_not_counted(self):
        self.assertEqual(self.pattern([2, 1, 0, 1])[1], [1, 0, None, 1])

    def test_token_streaming_counts_tokens_and_the_query_itself(self):
        text = lambda sink, local: self.pattern([-1], [sink, local], True, True)[0]  # noqa: E731
        self.assertEqual(text(64, 256), "causal & (sink(64) | window(left=255))")
        self.assertEqual(text(0, 3), "causal & window(left=2)")
        self.assertEqual(text(5, 0), "causal & sink(5)")
        self.assertEqual(text(0, 0), "causal & sink(0)")
        self.assertEqual(text(1, 1), "causal & (sink(1) | window(left=0))")

    def test_block_streaming_without_causality_is_the_peers_own(self):
        self.assertEqual(self.pattern([-1], [1, 3])[0],
                         "block_streaming(sink=1, local=3, causal=false)")

    def test_arguments_that_do_not_fit_are_refused(self):
        pattern = compat.block_sparse_pattern
        self.refused("there is no streaming_info", pattern, [0, -1])
        self.refused("has 2 numbers: 2 heads need 4", pattern, [0, -1], [1, 3])
        self.refused(r"of head 1 is \[-1, 3\]", pattern, [0, -1], [1, 3, -1, 3])
        self.refused("needs is_causal", pattern, [-1], [1, 3], False, True)
        self.refused("exact_streaming needs streaming_info", pattern, [0], None, True, True)
        self.refused("head_mask_type is empty", pattern, [])


class OtherPatternsTest(CompatTest):
    def test_windows_of_flash_attention_are_inclusive_and_end_at_the_diagonal(self):
        cases = [((False,), "dense"), ((True,), "causal"),
                 ((True, (128, -1)), "causal & window(left=128)"),
                 ((True, (128, 7)), "causal & window(left=128)"),
                 ((True, (-1, 5)), "causal"), ((True, (0, 0)), "causal & window(left=0)"),
                 ((False, (4, 5)), "window(left=4, right=5)"),
                 # One that ends at the diagonal is causal, as the library has it.
                 ((False, (-1, 0)), "causal"), ((False, (9, 0)), "causal & window(left=9)"),
                 ((False, (0, 0)), "causal & window(left=0)"),
                 ((False, (3, -7)), "window(left=3)")]
        for arguments, text in cases:
            self.assertEqual(compat.flash_pattern(*arguments), text)
            self.parses(text)
        self.parses(compat.flash_pattern(True, (9, -1), 30.0),
                    "causal & window(left=9) with softcap(30)")
        self.parses(compat.flash_pattern(False, (-1, -1), 2.5e-5),
                    "dense with softcap(2.5e-05)")
        self.parses(compat.flash_pattern(True, (-1, -1), 30.0, True),
                    "causal with softcap(30), alibi(alibi_slopes)")
        for softcap in (-1.0, math.nan, math.inf):
            self.refused("softcap is", compat.flash_pattern, True, (-1, -1), softcap)

    def test_local_strides_are_those_of_dkernel(self):
        pattern = compat.local_stride_pattern
        cases = [(pattern(32, 64, 16, 8), "causal & strided(local=16, stride=8, block=64)"),
                 (pattern(32, 64, 16, 8, num_kv_heads=8, head_sliding_offset=1),
                  "causal & strided(local=16, stride=8, block=64, offset=1, heads=kv)"),
                 (pattern(8, 64, 10, 3, num_dense_heads=2),
                  "causal & strided(local=10, stride=3, block=64, dense_heads=2)"),
                 (pattern(8, 16, 4, 4, homo_head=True, num_kv_heads=8),
                  "causal & strided(local=4, stride=4, block=16, homo=true)"),
                 (pattern(2, 64, 4, 8, causal=False),
                  "strided(local=4, stride=8, block=64, relative=true)"),
                 (pattern(2, 64, (4, 2), 8, causal=False, head_sliding_offset=3),
                  "strided(local=(4, 2), stride=8, block=64, relative=true)"),
                 (pattern(8, 64, 4, 10000), "causal & strided(local=4, stride=10000, block=64)"),
                 # A stride beyond the last block is any such stride.
                 (pattern(1, 32, 4, 10000, causal=False, max_seq_len=2048),
                  "strided(local=4, stride=64, block=32, relative=true)")]
        for text, expected in cases:
            self.assertEqual(text, expected)
            self.parses(text)
        self.refused("vert_stride is 0", pattern, 8, 64, 4, 0)
        self.refused("block_size is 0", pattern, 8, 0, 4, 4)
        self.refused("num_kv_heads is 0", pattern, 8, 64, 4, 4, num_kv_heads=0)
        self.refused("local_blocks has 3 numbers", pattern, 8, 64, (1, 2, 3), 4)
        self.refused("local_blocks is 1.5: it must be whole", pattern, 8, 64, 1.5, 4)
        self.refused("block_size is 0", compat.LocalStrideSparseAttention, 8, 1024, 0, 4, 4)
        self.refused("num_heads 8 is not a multiple of num_kv_heads 3", pattern, 8, 64, 4, 4,
                     num_kv_heads=3)
        self.refused("with homo_head all heads are alike", pattern, 8, 64, 4, 4, homo_head=True,
                     num_dense_heads=1)


class HostValuesTest(CompatTest):
    def test_a_tensor_on_the_gpu_is_copied_once_until_it_is_written_to(self):
        tensor = Fake(3, dtype="int32", values=[0, 1, -1])
        for _ in range(3):
            self.assertEqual(compat._host_values("t", tensor), [0, 1, -1])
        self.assertEqual(tensor.copies, 1)
        tensor.values, tensor._version = [1, 1, 1], 1
        self.assertEqual(compat._host_values("t", tensor), [1, 1, 1])
        self.assertEqual(tensor.copies, 2)

    def test_an_inference_tensor_is_copied_in_every_call_and_captured_as_last_known(self):
        class Inference(Fake):  # whose writes nothing counts
            _version = property(lambda self: self.counted())

            def __init__(self, *shape, **named):
                Fake.__init__(self, *shape, **named)

            def counted(self):
                raise RuntimeError("Inference tensors do not track version counter.")

            @_version.setter
            def _version(self, _):
                pass

        capturing = []
        torch = types.SimpleNamespace(cuda=types.SimpleNamespace(
            is_current_stream_capturing=lambda: bool(capturing)))
        with unittest.mock.patch.dict(sys.modules, {"torch": torch}):
            tensor, fresh = (Inference(2, dtype="int32", values=[0, 1]) for _ in range(2))
            self.assertEqual(compat._host_values("t", tensor), [0, 1])
            tensor.values = [1, 1]
            self.assertEqual(compat._host_values("t", tensor), [1, 1])
            capturing.append(True)
            self.assertEqual(compat._host_values("t", tensor), [1, 1])
            self.assertEqual(tensor.copies, 2)
            self.refused("t is on the GPU .* call once with the same tensor before the capture",
                         compat._host_values, "t", fresh)
            self.assertEqual(fresh.copies, 0)
            counted = Fake(2, dtype="int32", values=[0, 1])
            self.refused("cannot be captured", compat._host_values, "t", counted)
            capturing.clear()
            compat._host_values("t", counted)
            capturing.append(True)
            self.assertEqual(compat._host_values("t", counted), [0, 1])
            counted._version = 1  # what is known is old
            self.refused("cannot be captured", compat._host_values, "t", counted)

    def test_what_is_forgotten_is_not_mistaken_for_another_tensor(self):
        tensor = Fake(1, dtype="int32", values=[0])
        compat._host_values("t", tensor)
        key = id(tensor)
        self.assertIn(key, compat._seen)
        del tensor
        gc.collect()
        self.assertNotIn(key, compat._seen)

    def test_lists_and_tensors_on_the_cpu_are_read_each_time(self):
        self.assertEqual(compat._host_values("t", (1, 0)), [1, 0])
        tensor = Fake(1, dtype="int32", values=[7])
        tensor.is_cuda = False
        for copies in (1, 2):
            self.assertEqual(compat._host_values("t", tensor), [7])
            self.assertEqual(tensor.copies, copies)


class RefusalTest(CompatTest):
    q, k = Fake(9, 4, 64), Fake(20, 2, 64)
    cu = Fake(3, dtype="int32")

    def block_sparse(self, types, streaming_info=None, blockmask=None, dropout=0.0, **named):
        return compat.block_sparse_attn_func(self.q, self.k, self.k, self.cu, self.cu, types,
                                             streaming_info, blockmask, 5, 12, dropout, **named)

    def test_block_sparse_arguments_that_do_not_fit_are_refused(self):
        self.refused("dropout 0.17 is not supported", self.block_sparse, [0] * 4, dropout=0.17,
                     code="unsupported")
        self.refused("head_mask_type has 3 numbers: q has 4 heads", self.block_sparse, [0] * 3)
        self.refused("there is no base_blockmask", self.block_sparse, [0, 1, 1, 0])
        mask = Fake(2, 3, 1, 1, dtype="bool")
        self.refused("base_blockmask has 3 planes: 2 heads", self.block_sparse, [0, 1, 1, 0], None,
                     mask)
        self.refused("the last plane asked for is number 4", self.block_sparse, [1, 1, 1, 5], None,
                     mask)
        self.refused("needs is_causal", self.block_sparse, [-1] * 4, [1, 3] * 4,
                     exact_streaming=True)
        for call in (compat.token_streaming_attn_func,
                     lambda *a: compat.block_streaming_attn_func(*a, 0.0)):
            self.refused("there is no base_blockmask", call, self.q, self.k, self.k, self.cu,
                         self.cu, [1, 0, 0, 0], [1, 3] * 4, 5, 12)

    def test_good_arguments_get_as_far_as_outputs_which_pytorch_makes(self):
        message = "q is no PyTorch tensor: give out="
        self.refused(message, self.block_sparse, [0, 0, -1, -1], [1, 3] * 4, is_causal=True)
        self.refused(message, self.block_sparse, [0, 1, 0, 0], None,
                     Fake(2, 1, 1, 1, dtype="bool"))
        q, k = Fake(2, 16, 4, 64), Fake(2, 32, 2, 64)
        self.refused(message, compat.flash_attn_func, q, k, k, causal=True, window_size=(3, 0),
                     softcap=5.0, alibi_slopes=Fake(4, dtype="float32"))
        self.refused(message, compat.flash_attn_varlen_func, self.q, self.k, self.k, self.cu,
                     self.cu, 5, 12, causal=True)
        self.refused(message, compat.block_sparse_flash_attn_func, q, k, k, None, causal=True)
        self.refused(message, compat.block_sparse_flash_attn_func, q, k, k, -math.inf)

    def test_what_is_not_there_is_unsupported(self):
        q, k = Fake(2, 16, 4, 64), Fake(2, 32, 2, 64)
        slopes = Fake(4, dtype="float32")
        self.refused("dropout", compat.flash_attn_func, q, k, k, 0.1, code="unsupported")
        self.refused("block_table", compat.flash_attn_varlen_func, self.q, self.k, self.k, self.cu,
                     self.cu, 5, 12, block_table=slopes, code="unsupported")

    def test_thresholds_are_taken_and_checked(self):
        q, k = Fake(2, 16, 4, 64), Fake(2, 32, 2, 64)
        call = compat.block_sparse_flash_attn_func
        self.refused("block_sparse_threshold is 0.5: it must be a tensor", call, q, k, k, 0.5)
        for shape in ((4,), (2, 8), (1, 4, 8)):
            self.refused("here with 4 heads", call, q, k, k,
                         Fake(*shape, dtype="float32"))
        good = Fake(4, 8, dtype="float32")
        self.refused("kv is 64 or 128, found '32'", call, q, k, k, good, kv=32)
        for kv in (64, 128):
            self.refused("q is no PyTorch tensor: give out=", call, q, k, k, good, causal=True,
                         softcap=5.0, kv=kv)

    def test_a_local_stride_module_checks_its_tensors(self):
        module = compat.LocalStrideSparseAttention(4, 100, 16, 2, 3, num_kv_heads=2)
        self.assertEqual(module.pattern,
                         "causal & strided(local=2, stride=3, block=16, heads=kv)")
        self.assertEqual(module.max_seq_len, 128)
        q, k = Fake(2, 32, 4, 64), Fake(2, 32, 2, 64)
        self.refused("q is no PyTorch tensor: give out=", module, q, k, k)
        self.refused("q has 2 heads: this module is for 4", module, k, k, k)
        self.refused("q is no PyTorch tensor: give out=", module, q, q, q)  # K repeated
        for heads in (1, 3, 8):
            self.refused("k has %d heads: with query heads 0 to 3 in groups of 2 it must have "
                         "2 or 4" % heads, module, q, Fake(2, 32, heads, 64), k)
        self.refused("k has 129 keys: max_seq_len is 128", module, q, Fake(2, 129, 2, 64), k)
        self.refused("v is not given: .* split_qkv must be the function", module, q)
        self.refused("v is not given", module, q, k)
        self.refused("v is given without k", module, q, None, k)
        pads = Fake(2, dtype="int32")
        self.refused("16 queries and 32 keys", module, Fake(2, 16, 4, 64), k, k, seqlens=pads)
        self.refused("packed tensors of 3 dimensions need cu_seqlen_k", module, self.q, self.k,
                     self.k)
        self.refused("without cu_seqlen_q", module, self.q, self.k, self.k, cu_seqlen_k=self.cu)
        self.refused("seq_dim 3", compat.LocalStrideSparseAttention, 4, 100, 16, 2, 3, seq_dim=3)

    def test_packed_tensors_are_split_by_the_callers_function(self):
        module = compat.LocalStrideSparseAttention(4, 100, 16, 2, 3, num_kv_heads=2)
        q, k, v = Fake(2, 32, 4, 64), Fake(2, 32, 2, 64), Fake(2, 32, 2, 64)
        packed = object()
        for arguments, made in (((packed,), (q, k, v)), ((q, packed), (k, v))):
            def split(given, made=made):
                self.assertIs(given, packed)
                return made
            with unittest.mock.patch.object(compat, "_attend", return_value=("out", "lse")) as call:
                self.assertEqual(module(*arguments, split_qkv=split, return_lse=True),
                                 ("out", "lse"))
            for passed, expected in zip(call.call_args.args[1:4], (q, k, v)):
                self.assertIs(passed, expected)

    def test_a_ranks_heads_are_query_heads(self):
        make = lambda *heads, **named: compat.LocalStrideSparseAttention(  # noqa: E731
            32, 8192, 64, 16, 8, num_kv_heads=8, active_head_range=heads, **named)
        module = make(8, 16)
        self.assertEqual((module.head_offset, module.rank_heads), (8, 8))
        self.assertEqual(module.kv_heads, [2, 4, 8])
        k = Fake(1, 64, 2, 64)
        self.refused("q has 32 heads: this module is for 8", module, Fake(1, 64, 32, 64), k, k)
        # A rank may have a part of a group, or parts of several, as long as K's heads go with them.
        self.assertEqual(make(8, 10).kv_heads, [1, 2])
        self.assertEqual(make(2, 6).kv_heads, [2, 4])
        self.assertEqual(make(3, 8).kv_heads, [5])
        self.refused("k has 1 heads: with query heads 2 to 5 in groups of 4 it must have 2 or 4",
                     make(2, 6), Fake(1, 64, 4, 64), Fake(1, 64, 1, 64), Fake(1, 64, 1, 64))
        self.refused(r"active_head_range \(4, 33\) is not within the 32 query heads", make, 4, 33)
        self.refused(r"active_head_range \(8, 8\)", make, 8, 8)
        alike = compat.LocalStrideSparseAttention(32, 8192, 64, 16, 8, homo_head=True,
                                                  active_head_range=(0, 4))
        self.assertEqual((alike.head_offset, alike.rank_heads), (0, None))

    def test_a_rank_launches_its_own_kernel_or_the_pattern_of_its_query_heads(self):
        def launched(module, heads, heads_kv):
            q, k = Fake(1, 64, heads, 64), Fake(1, 64, heads_kv, 64)
            programs, bound = [], []

            class Program:
                def __init__(self, text):
                    programs.append(text)

                def bind(self, **named):
                    bound.append((named["num_heads"], named["num_heads_kv"], named["head_offset"],
                                  named["num_heads_total"]))

            with unittest.mock.patch.object(girih, "compile", Program):
                module._check(q, k, 2, 1)
                module._call(q, k, k, "bshd", 2)
            return programs[0], bound

        make = compat.LocalStrideSparseAttention
        of_groups = "causal & strided(local=2, stride=3, block=16, heads=kv)"
        whole = make(8, 128, 16, 2, 3, num_kv_heads=4)
        self.assertEqual(launched(whole, 8, 4), (of_groups, []))
        part = make(8, 128, 16, 2, 3, num_kv_heads=4, active_head_range=(2, 6))
        self.assertEqual(launched(part, 4, 2), (of_groups, [(4, 2, 2, 8)]))
        of_each = ("heads(0-1: causal & strided(local=2, stride=3, block=16, offset=1, homo=true), "
                   "2-3: causal & strided(local=2, stride=3, block=16, offset=2, homo=true))")
        self.assertEqual(launched(part, 4, 4), (of_each, []))
        self.parses(of_each)
        half = make(8, 128, 16, 2, 3, num_kv_heads=4, active_head_range=(3, 4))
        self.assertEqual(launched(half, 1, 1), (
            "causal & strided(local=2, stride=3, block=16, offset=1, homo=true)", []))
        # Without num_kv_heads K's heads are free, but a kernel's rank begins at a whole group.
        free = make(8, 128, 16, 2, 3, active_head_range=(2, 4))
        self.assertEqual(launched(free, 2, 1)[1], [(2, 1, 2, 8)])
        odd = make(8, 128, 16, 2, 3, active_head_range=(1, 3))
        self.assertEqual(launched(odd, 2, 1)[1], [])

    def test_both_ways_to_write_a_pattern_say_the_same(self):
        """The pattern of KV heads, and that of each query head, by what dkernel computes."""
        for num_kv_heads, dense, offset, stride, causal in (
                (None, 0, 0, 3, True), (4, 0, 0, 3, True), (2, 1, 2, 5, True), (8, 3, 1, 20, True),
                (4, 4, 0, 3, True), (4, 0, 0, 3, False), (4, 1, 0, 3, False)):
            text = compat.local_stride_pattern(
                8, 16, 2, stride, num_kv_heads=num_kv_heads, num_dense_heads=dense,
                head_sliding_offset=offset, causal=causal, query_heads=(1, 8))
            self.parses(text)
            count, step = num_kv_heads or 8, max(1, stride // 8)
            full, expected = ("causal" if causal else "dense"), []
            for head in range(1, 8):
                owner = head // (8 // count)
                moved = (owner * step + offset) % stride
                sparse = ("causal & strided(local=2, stride=%d, block=16%s, homo=true)"
                          % (stride, ", offset=%d" % moved if moved else "")) if causal else (
                         "strided(local=2, stride=%d, block=16, relative=true)" % stride)
                expected.append(full if owner >= count - dense else sparse)
            self.assertEqual(text, compat._heads_pattern(expected))
        alike = compat.local_stride_pattern(8, 16, 2, 3, homo_head=True, query_heads=(0, 8))
        self.assertEqual(alike, "causal & strided(local=2, stride=3, block=16, homo=true)")


if __name__ == "__main__":
    unittest.main()
