"""girih.py without a GPU: its structs and functions against girih.h, how it finds the library, and
what it says about bad input. CTest sets GIRIH_LIBRARY and CC; where they are unset, the library
beside the source tree and `cc` are used."""

import ctypes
import json
import math
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools" / "python"))
import girih  # noqa: E402

HEADER = ROOT / "include" / "girih" / "girih.h"
CC = shutil.which(os.environ.get("CC", "cc"))
LIBRARY = os.environ.get("GIRIH_LIBRARY", str(ROOT / "build" / "bin" / "libgirih.so"))
STRUCTS = {"girih_options": girih._Options, "girih_problem": girih._Problem,
           "girih_kernel_info": girih._KernelInfo, "girih_tensor": girih._Tensor,
           "girih_input": girih._Input, "girih_args": girih._Args, "girih_part": girih._Part,
           "girih_combine_args": girih._CombineArgs,
           "girih_estimate_args": girih._EstimateArgs,
           "girih_estimate_blocks_args": girih._EstimateBlocksArgs}
CONSTANTS = {
    "GIRIH_OK": 0, "GIRIH_NO_DEVICE": girih._NO_DEVICE,
    "GIRIH_FLOAT16": girih._DTYPES["float16"], "GIRIH_BFLOAT16": girih._DTYPES["bfloat16"],
    "GIRIH_FLOAT32": girih._FLOAT32,
    "GIRIH_BSHD": girih._LAYOUTS["bshd"], "GIRIH_BHSD": girih._LAYOUTS["bhsd"],
    "GIRIH_THD": girih._LAYOUTS["thd"], "GIRIH_JIT_DEFAULT": girih._JIT[None],
    "GIRIH_JIT_AUTO": girih._JIT["auto"], "GIRIH_JIT_OFF": girih._JIT["off"],
    "GIRIH_BLOCK_LIST": girih._BLOCK_LIST, "GIRIH_BLOCK_TABLE": girih._BLOCK_TABLE,
    "GIRIH_BLOCK_MASK": girih._BLOCK_MASK, "GIRIH_BLOCK_BITS": girih._BLOCK_BITS,
    "GIRIH_HEAD_NUMBERS": girih._HEAD_NUMBERS,
    "GIRIH_TOKEN_INDICES": girih._TOKEN_INDICES,
    "GIRIH_VERTICAL_SLASH": girih._VERTICAL_SLASH,
    "GIRIH_THRESHOLDS": girih._THRESHOLDS,
    "GIRIH_GIVEN_SOFTMAX_SCALE": girih._GIVEN_SOFTMAX_SCALE,
    "GIRIH_GIVEN_Q_START": girih._GIVEN_Q_START}


class Fake:
    """Looks like a tensor on a GPU; its memory is never touched."""

    def __init__(self, *shape, dtype="bfloat16", stride=None, address=4096):
        self.shape, self.dtype, self._address = shape, dtype, address
        strides = [1]
        for size in reversed(shape[1:]):
            strides.insert(0, strides[0] * size)
        self._stride = stride or tuple(strides)

    def data_ptr(self):
        return self._address

    def stride(self):
        return self._stride


def run_python(code, folder=None, **variables):
    """Runs `code` with girih.py of `folder` (tools/python otherwise) and these variables alone."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith("GIRIH_")}
    environment.update(variables, PYTHONPATH=str(folder or ROOT / "tools" / "python"),
                       PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([sys.executable, "-c", code], env=environment, text=True,
                          capture_output=True, check=False)


class HeaderTest(unittest.TestCase):
    @unittest.skipIf(CC is None, "there is no C compiler")
    def test_structs_and_constants_are_those_of_the_header(self):
        lines = []
        for name, struct in STRUCTS.items():
            lines.append('printf("%s %%zu\\n", sizeof(%s));' % (name, name))
            for member, _ in struct._fields_:
                lines.append('printf("%s.%s %%zu %%zu\\n", offsetof(%s, %s), sizeof(((%s*)0)->%s));'
                             % (name, member, name, member, name, member))
        for name in CONSTANTS:
            lines.append('printf("%s %%d\\n", (int)%s);' % (name, name))
        program = '#include <girih/girih.h>\n#include <stdio.h>\nint main(void) {\n%s\n}\n'
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "layout.c")
            source.write_text(program % "\n".join(lines))
            subprocess.run([CC, "-std=c99", "-I", str(ROOT / "include"), str(source), "-o",
                            folder + "/layout"], check=True)
            printed = subprocess.run([folder + "/layout"], text=True, capture_output=True,
                                     check=True).stdout.splitlines()
        expected = []
        for name, struct in STRUCTS.items():
            expected.append("%s %d" % (name, ctypes.sizeof(struct)))
            for member, _ in struct._fields_:
                place = getattr(struct, member)
                expected.append("%s.%s %d %d" % (name, member, place.offset, place.size))
        expected += ["%s %d" % constant for constant in CONSTANTS.items()]
        self.assertEqual(printed, expected)

    def test_no_member_and_no_function_is_left_out(self):
        text = re.sub(r"//.*", "", HEADER.read_text())
        declared = re.findall(r"GIRIH_C_API [\w ]+\*?\s?(girih_\w+)\(", text)
        self.assertEqual(sorted(declared), sorted(girih._FUNCTIONS))
        bodies = re.findall(r"typedef struct (girih_\w+) \{(.*?)\}", text, re.DOTALL)
        self.assertEqual(sorted(name for name, _ in bodies), sorted(STRUCTS))
        for name, body in bodies:
            members = re.findall(r"(\w+)(?:\[\d+\])?\s*[,;]", body)
            self.assertEqual(members, [member for member, _ in STRUCTS[name]._fields_], name)


class LibraryTest(unittest.TestCase):
    def test_a_variable_names_the_library(self):
        result = run_python("import girih; print(girih.version())", GIRIH_LIBRARY=LIBRARY)
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        self.assertEqual(result.stdout.strip(), girih.version())

    def test_a_library_beside_the_file_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(ROOT / "tools" / "python" / "girih.py", folder)
            os.symlink(LIBRARY, folder + "/libgirih.so")
            result = run_python("import girih; print(girih.compile('dense').text)", folder)
        self.assertEqual((result.stdout, result.stderr), ("dense\n", ""))

    def test_a_library_that_cannot_be_loaded_is_an_error_that_names_it(self):
        code = ("import girih\ntry: girih.version()\n"
                "except girih.Error as error: print(error.code, error)")
        result = run_python(code, GIRIH_LIBRARY="/nonexistent/libgirih.so")
        self.assertIn("no_library libgirih.so could not be loaded", result.stdout)
        self.assertIn("/nonexistent/libgirih.so", result.stdout)
        result = run_python(code, GIRIH_LIBRARY="libm.so.6")
        self.assertIn("girih_version", result.stdout)

    @unittest.skipIf(CC is None, "there is no C compiler")
    def test_a_library_of_another_version_is_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, "other.c")
            source.write_text('const char* girih_version(void) { return "9.8.7"; }\n')
            library = folder + "/libother.so"
            subprocess.run([CC, "-shared", "-fPIC", str(source), "-o", library], check=True)
            result = run_python("import girih\ntry: girih.version()\n"
                                "except girih.Error as error: print(error)", GIRIH_LIBRARY=library)
        self.assertIn("is version 9.8.7, this file is for 0.1", result.stdout)


class PatternTest(unittest.TestCase):
    def test_a_program_has_the_canonical_text(self):
        program = girih.compile("causal&(sink(4)|window( left=8 ))")
        self.assertEqual(program.text, "causal & (sink(4) | window(left=8))")
        self.assertEqual(repr(program), "girih.compile('causal & (sink(4) | window(left=8))')")

    def test_the_same_text_and_options_give_the_same_program(self):
        self.assertIs(girih.compile("sink(1)"), girih.compile("sink(1)"))
        self.assertIs(girih.compile("sink(1)", jit="off", block_m=64),
                      girih.compile("sink(1)", block_m=64, jit="off"))
        self.assertIsNot(girih.compile("sink(1)"), girih.compile("sink(1)", jit="off"))

    def test_a_mistake_in_a_pattern_is_shown_with_a_caret(self):
        with self.assertRaises(girih.Error) as caught:
            girih.attention(None, None, None, "causal & windw(3)")
        self.assertEqual(caught.exception.code, "invalid_argument")
        self.assertRegex(str(caught.exception), r"causal & windw\(3\)\n +\^")
        with self.assertRaisesRegex(girih.Error, "character 7 of the pattern, .* is NUL"):
            girih.compile("causal\0 & segments(d)")
        for pattern in (None, 3, b"causal", ["causal"]):
            with self.assertRaisesRegex(girih.Error, "the pattern is .*: give text"):
                girih.compile(pattern)

    def test_what_is_no_tensor_is_refused(self):
        with self.assertRaisesRegex(girih.Error, "q is None: it must be a tensor"):
            girih.attention(None, None, None, "causal")

    def test_unknown_options_are_refused(self):
        with self.assertRaisesRegex(TypeError, "cachedir.*cache_dir.*jit.*tune"):
            girih.compile("causal", cachedir="/tmp")
        with self.assertRaisesRegex(girih.Error, "jit 'on' is not"):
            girih.compile("causal", jit="on")
        with self.assertRaisesRegex(girih.Error, "tune 'on' is not 'db', 'auto' or 'off'"):
            girih.compile("causal", tune="on")
        with self.assertRaisesRegex(girih.Error, "cache_dir is 5: it must be a path"):
            girih.compile("causal", cache_dir=5)
        with self.assertRaisesRegex(girih.Error, "nvrtc 'a.0b' contains NUL".replace("0", "x00")):
            girih.compile("causal", nvrtc="a\0b")
        with self.assertRaisesRegex(girih.Error, "block_m is 4294967360: it must be from"):
            girih.compile("causal", block_m=2**32 + 64)


class ArgumentTest(unittest.TestCase):
    q = Fake(2, 16, 4, 64)
    kv = Fake(2, 32, 2, 64)

    def refused(self, message, *tensors, code="invalid_argument", **arguments):
        q, k, v = tensors or (self.q, self.kv, self.kv)
        arguments.setdefault("out", q)
        with self.assertRaisesRegex(girih.Error, message) as caught:
            girih.attention(q, k, v, "causal", **arguments)
        self.assertEqual(caught.exception.code, code)

    def test_good_arguments_fail_for_want_of_a_context_alone(self):
        for layout, q, kv in (("bshd", self.q, self.kv),
                              ("bhsd", Fake(2, 4, 16, 64), Fake(2, 2, 32, 64))):
            lse = Fake(2, 4, 16, dtype="float32")
            lengths = Fake(2, dtype="int32")
            self.refused("CUDA", q, kv, kv, code="no_device", layout=layout, lse=lse,
                         seqused_k=lengths, leftpad_k=lengths, softmax_scale=0.0, q_start=0)
        self.refused("CUDA", Fake(7, 4, 64), Fake(9, 2, 64), Fake(9, 2, 64), code="no_device",
                     layout="thd", lse=Fake(4, 7, dtype="float32"),
                     cu_seqlens_q=Fake(4, dtype="int32"), cu_seqlens_k=Fake(4, dtype="int32"),
                     max_seqlen_q=3, max_seqlen_k=4)
        with self.assertRaisesRegex(girih.Error, "CUDA") as caught:
            girih.compile("causal").bind(dtype="bf16", head_dim=64, num_heads=4)
        self.assertEqual(caught.exception.code, "no_device")

    def test_bad_tensors_are_refused(self):
        kv = self.kv
        self.refused("layout 'bsdh' is not", layout="bsdh")
        self.refused("q is float32: it must be float16 or", Fake(2, 16, 4, 64, dtype="float32"), kv,
                     kv)
        self.refused("k has 3 dimensions: layout bshd has 4", self.q, Fake(2, 32, 64), kv)
        self.refused("give out=", out=None)
        self.refused("give lse=", return_lse=True)
        cpu = Fake(2, 32, 2, 64)
        cpu.is_cuda = False
        self.refused("k is on the CPU", self.q, cpu, kv)

    def test_bad_arrays_are_refused(self):
        self.refused("seqused_k is int64: it must be int32", seqused_k=Fake(2, dtype="int64"))
        self.refused(r"leftpad_k has shape \[3\]: it must be \[2\]",
                     leftpad_k=Fake(3, dtype="int32"))
        self.refused("seqused_k is not contiguous",
                     seqused_k=Fake(2, dtype="int32", stride=(2,)))
        self.refused(r"lse has shape \[2, 16, 4\]: it must be \[2, 4, 16\]",
                     lse=Fake(2, 16, 4, dtype="float32"))
        self.refused("layout thd needs cu_seqlens_q", Fake(7, 4, 64), Fake(9, 2, 64),
                     Fake(9, 2, 64), layout="thd")

    def test_numbers_beyond_32_bits_are_refused(self):
        self.refused("q_start is 4294967296: it must be from", q_start=2**32)
        self.refused("k_start is -4294967295: it must be from", k_start=1 - 2**32)

    def test_every_argument_of_a_launch_can_be_given(self):
        call = girih._Call(self.q, self.kv, self.kv, out=self.q, softmax_scale=0.5, q_start=-3,
                           k_start=5, empty_lse=float("inf"), max_ctas=2, stream=77,
                           lse=Fake(2, 4, 16, dtype="float32", address=512),
                           seqused_k=Fake(2, dtype="int32", address=1024),
                           leftpad_k=Fake(2, dtype="int32", address=2048))
        args = call.args
        self.assertEqual((args.softmax_scale, args.q_start, args.given), (0.5, -3, 3))
        self.assertEqual((args.k_start, args.empty_lse, args.max_ctas), (5, float("inf"), 2))
        self.assertEqual((args.lse, args.seqused_k, args.leftpad_k, args.stream),
                         (512, 1024, 2048, 77))
        self.assertEqual(list(args.q.contents.stride), [16 * 4 * 64, 4 * 64, 64, 1])
        self.assertEqual(list(args.k.contents.shape), [2, 32, 2, 64])


class InputTest(unittest.TestCase):
    """What becomes of a launch's inputs; the library checks their extents."""

    q = Fake(2, 16, 4, 64)
    kv = Fake(2, 32, 2, 64)

    def made(self, value, name="m"):
        """The members of girih_input that are not zero, without name and size."""
        call = girih._Call(self.q, self.kv, self.kv, out=self.q, inputs={name: value})
        self.assertEqual(call.args.num_inputs, 1)
        made = call.args.inputs[0]
        self.assertEqual((made.name, made.size), (name.encode(), ctypes.sizeof(girih._Input)))
        values = {member: getattr(made, member) for member, _ in made._fields_}
        values = {member: list(value) if isinstance(value, ctypes.Array) else value
                  for member, value in values.items()}
        return {member: value for member, value in values.items()
                if value and value != [0] * 4 and member not in ("name", "size")}

    def refused(self, message, value, name="m"):
        with self.assertRaisesRegex(girih.Error, message) as caught:
            self.made(value, name)
        self.assertEqual(caught.exception.code, "invalid_argument")

    def test_a_bool_or_byte_tensor_is_a_block_mask_with_its_strides(self):
        for dtype in ("bool", "uint8", "torch.bool"):
            self.assertEqual(self.made(Fake(2, 4, 3, 5, dtype=dtype, stride=(700, 90, 20, 1))),
                             dict(kind=3, batch=2, heads=4, num_q_blocks=3, num_kv_blocks=5,
                                  data=4096, batch_stride=700, head_stride=90, row_stride=20))
        shared = self.made(Fake(4, 3, 5, dtype="bool"))
        self.assertEqual((shared["batch"], shared["heads"], shared["head_stride"]), (1, 4, 15))
        one_plane = self.made(Fake(3, 5, dtype="bool"))
        self.assertEqual((one_plane["batch"], one_plane["heads"], one_plane["row_stride"]),
                         (1, 1, 5))
        # Expanded over the heads: a stride of 0 is one, where a dimension of one element has none.
        expanded = self.made(Fake(1, 4, 3, 5, dtype="bool", stride=(0, 0, 5, 1)))
        self.assertNotIn("head_stride", expanded)
        self.assertEqual(expanded["row_stride"], 5)

    def test_bad_block_masks_are_refused(self):
        self.refused(r"inputs\['m'\] has 1 dimensions: it must have 2 to 4", Fake(5, dtype="bool"))
        self.refused("has 5 dimensions", Fake(1, 2, 4, 3, 5, dtype="bool"))
        self.refused(r"inputs\['m'\] has stride 3 between the blocks of a row: it must be 1",
                     Fake(3, 5, dtype="bool", stride=(1, 3)))
        self.refused(r"is one row, expanded: call contiguous\(\)",
                     Fake(2, 4, 3, 5, dtype="bool", stride=(0, 0, 0, 1)))
        self.refused(r"inputs\['m'\] is int64: block masks are bool or uint8, numbers are int32",
                     Fake(3, 5, dtype="int64"))
        self.refused(r"inputs\['m'\] is list: it must be a tensor on the GPU", [True])
        cpu = Fake(3, 5, dtype="bool")
        cpu.is_cuda = False
        self.refused(r"inputs\['m'\] is on the CPU", cpu)

    def test_an_int32_tensor_is_numbers(self):
        numbers = dict(kind=5, data=4096)
        self.assertEqual(self.made(Fake(dtype="int32")), dict(numbers, batch=1, heads=1))
        self.assertEqual(self.made(Fake(4, dtype="int32")), dict(numbers, batch=1, heads=4))
        self.assertEqual(self.made(Fake(2, 1, dtype="int32")), dict(numbers, batch=2, heads=1))
        self.refused(r"has 3 dimensions: .* what expr indexes is girih.Values\(tensor\)",
                     Fake(2, 4, 3, dtype="int32"))
        self.refused(r"inputs\['n'\] is not contiguous", Fake(2, 4, dtype="int32", stride=(1, 2)),
                     name="n")

    def test_a_block_list_counts_through_all_planes_or_in_each(self):
        indptr = Fake(2, 4, 4, dtype="int32", address=512)
        self.assertEqual(self.made(girih.BlockList(indptr, Fake(77, dtype="int32"), 9)),
                         dict(kind=1, batch=2, heads=4, num_q_blocks=3, num_kv_blocks=9, indptr=512,
                              indices=4096, num_indices=77))
        own = self.made(girih.BlockList(indptr, Fake(2, 4, 20, dtype="int32"), 9))
        self.assertEqual((own["num_indices"], own["plane_stride"]), (160, 20))
        shared = self.made(girih.BlockList(Fake(4, dtype="int32"), Fake(7, dtype="int32"), 9))
        self.assertEqual((shared["batch"], shared["heads"], shared["num_q_blocks"]), (1, 1, 3))
        self.refused(r"inputs\['m'\]\.indptr is int64: it must be int32",
                     girih.BlockList(Fake(4, dtype="int64"), Fake(7, dtype="int32"), 9))
        self.refused(r"\.indices is not contiguous",
                     girih.BlockList(indptr, Fake(7, dtype="int32", stride=(2,)), 9))
        self.refused(r"\.indices has shape \[2, 3, 20\]: it must be \[2, 4, 20\]",
                     girih.BlockList(indptr, Fake(2, 3, 20, dtype="int32"), 9))
        self.refused(r"\.indptr has 4 dimensions: it must have 1 to 3",
                     girih.BlockList(Fake(1, 2, 4, 4, dtype="int32"), Fake(7, dtype="int32"), 9))

    def test_a_block_table_has_its_capacity_and_columns(self):
        counts = Fake(2, 1, 3, dtype="int32", address=512)
        table = Fake(2, 1, 3, 6, dtype="int32")
        made = dict(kind=2, batch=2, heads=1, num_q_blocks=3, num_kv_blocks=6, row_capacity=6,
                    counts=512, indices=4096)
        self.assertEqual(self.made(girih.BlockTable(counts, table)), made)
        self.assertEqual(self.made(girih.BlockTable(counts, table, 40)),
                         dict(made, num_kv_blocks=40))
        self.refused(r"\.indices has shape \[3, 6\]: it must be \[2, 1, 3, 6\]",
                     girih.BlockTable(counts, Fake(3, 6, dtype="int32")))
        self.refused(r"\.num_blocks is int64",
                     girih.BlockTable(Fake(3, dtype="int64"), Fake(3, 6, dtype="int32")))

    def test_block_bits_are_words_by_their_strides(self):
        self.assertEqual(self.made(girih.BlockBits(Fake(4, 3, 2, dtype="int32"), 33)),
                         dict(kind=4, batch=1, heads=4, num_q_blocks=3, num_kv_blocks=33, data=4096,
                              batch_stride=1, head_stride=6, row_stride=2))
        self.refused(r"\.words has rows of 1 words: 33 blocks take 2",
                     girih.BlockBits(Fake(3, 1, dtype="int32"), 33))
        self.refused(r"\.words is bool: it must be int32",
                     girih.BlockBits(Fake(3, 1, dtype="bool"), 32))

    def test_token_indices_have_a_row_for_each_sequence_and_head(self):
        made = dict(kind=6, batch=2, heads=4, num_tokens=16, data=4096, batch_stride=64,
                    head_stride=16)
        self.assertEqual(self.made(girih.TokenIndices(Fake(2, 4, 16, dtype="int32"))), made)
        by_sequence = Fake(2, 32, dtype="int32", address=512, stride=(100, 1))
        self.assertEqual(self.made(girih.TokenIndices(Fake(2, 4, 16, dtype="int32"), by_sequence)),
                         dict(made, k_data=512, k_batch=2, k_heads=1, k_num_tokens=32,
                              k_batch_stride=100, k_head_stride=32))
        shared = self.made(girih.TokenIndices(Fake(16, dtype="int32")))
        self.assertEqual((shared["batch"], shared["heads"], shared["num_tokens"]), (1, 1, 16))
        expanded = self.made(girih.TokenIndices(Fake(2, 4, 16, dtype="int32", stride=(0, 16, 1))))
        self.assertNotIn("batch_stride", expanded)
        self.assertEqual(expanded["head_stride"], 16)

    def test_slash_lists_have_a_row_for_each_sequence_and_head(self):
        made = dict(kind=7, batch=2, heads=4, num_tokens=30, data=4096, k_data=512, k_num_tokens=9)
        slash = Fake(2, 4, 9, dtype="int32", address=512)
        self.assertEqual(
            self.made(girih.SlashLists(Fake(2, 4, 30, dtype="int32"), slash)), made)
        shared = self.made(girih.SlashLists(Fake(30, dtype="int32"), Fake(9, dtype="int32")))
        self.assertEqual((shared["batch"], shared["heads"], shared["num_tokens"]), (1, 1, 30))
        self.refused(r"inputs\['m'\]\.vertical is int64: it must be int32",
                     girih.SlashLists(Fake(30, dtype="int64"), Fake(9, dtype="int32")))
        self.refused(r"\.slash has shape \[2, 4, 9\]: it must be \[4, 9\]",
                     girih.SlashLists(Fake(4, 30, dtype="int32"), slash))

    def test_a_float32_tensor_is_values_in_its_own_dimensions(self):
        made = self.made(Fake(2, 4, 16, dtype="float32", stride=(64, 16, 1)))
        self.assertEqual((made["kind"], made["rank"], made["data"]), (9, 3, 4096))
        self.assertEqual(made["shape"], [2, 4, 16, 0])
        self.assertEqual(made["stride"], [64, 16, 1, 0])
        self.refused("has 5 dimensions: it must have 1 to 4", Fake(1, 1, 1, 1, 1, dtype="float32"))
        self.refused(r"is one number, expanded: call contiguous\(\)",
                     Fake(2, 4, dtype="float32", stride=(0, 0)))

    def test_what_expressions_index_has_its_own_type_and_dimensions(self):
        made = self.made(girih.Values(Fake(2, 16, dtype="int32", stride=(64, 1))))
        self.assertEqual(made, dict(kind=9, rank=2, type=1, data=4096, shape=[2, 16, 0, 0],
                                    stride=[64, 1, 0, 0]))
        self.assertNotIn("type", self.made(girih.Values(Fake(16, dtype="float32"))))
        self.refused(r"inputs\['m'\] is int64: it must be int32, of expr, or float32, of score",
                     girih.Values(Fake(16, dtype="int64")))
        self.refused("has 5 dimensions", girih.Values(Fake(1, 1, 1, 1, 1, dtype="int32")))

    def test_column_intervals_lie_apart_or_beside_one_another(self):
        start, end = Fake(2, 4, 16, dtype="int32"), Fake(2, 4, 16, dtype="int32", address=512)
        made = dict(kind=10, batch=2, heads=4, num_tokens=16, data=4096, batch_stride=64,
                    head_stride=16, key_stride=1, k_data=512)
        self.assertEqual(self.made(girih.ColumnIntervals(start, end)), made)
        beside = [Fake(4, 16, dtype="int32", stride=(64, 4), address=4096 + 4 * i)
                  for i in range(4)]
        made = self.made(girih.ColumnIntervals(*beside))
        self.assertEqual((made["key_stride"], made["batch"], made["heads"]), (4, 4, 1))
        self.assertEqual((made["second_start"], made["second_end"]), (4104, 4108))
        self.refused("has one of second_start and second_end",
                     girih.ColumnIntervals(start, end, start))
        self.refused(r"\.end has shape \[2, 4, 8\]",
                     girih.ColumnIntervals(start, Fake(2, 4, 8, dtype="int32")))
        self.refused(r"\.start is int64: it must be int32",
                     girih.ColumnIntervals(Fake(16, dtype="int64"), end))

    def test_bad_token_indices_are_refused(self):
        self.refused(r"inputs\['m'\]\.q is int64: it must be int32",
                     girih.TokenIndices(Fake(2, 16, dtype="int64")))
        self.refused(r"\.k has 4 dimensions: it must have 1 to 3",
                     girih.TokenIndices(Fake(16, dtype="int32"), Fake(1, 2, 4, 16, dtype="int32")))
        self.refused(r"\.q has stride 2 between tokens: it must be 1",
                     girih.TokenIndices(Fake(2, 16, dtype="int32", stride=(32, 2))))
        self.refused(r"\.q is one row, expanded: leave out the dimensions",
                     girih.TokenIndices(Fake(2, 4, 16, dtype="int32", stride=(0, 0, 1))))
        cpu = Fake(16, dtype="int32")
        cpu.is_cuda = False
        self.refused(r"inputs\['m'\]\.k is on the CPU",
                     girih.TokenIndices(Fake(16, dtype="int32"), cpu))

    def test_thresholds_have_a_row_for_each_head(self):
        made = self.made(girih.Thresholds(Fake(4, 16, dtype="float32"), 64))
        self.assertEqual(made, dict(kind=8, heads=4, num_columns=16, kv_block_size=64, data=4096))
        self.refused(r"inputs\['m'\]\.values is float16: it must be float32",
                     girih.Thresholds(Fake(4, 16, dtype="float16"), 64))
        self.refused(r"\.values has 3 dimensions: it must have two",
                     girih.Thresholds(Fake(1, 4, 16, dtype="float32"), 64))
        self.refused(r"\.values is not contiguous",
                     girih.Thresholds(Fake(4, 16, dtype="float32", stride=(32, 1)), 64))

    def test_thresholds_are_read_from_files_of_calibrate(self):
        values = struct.pack("<6f", -math.inf, 1.5, 2, 3, 4, 5)
        def file(name, metadata, dtype="F32", shape=(2, 3), data=values):
            header = json.dumps({"__metadata__": metadata, "thresholds": {
                "dtype": dtype, "shape": shape, "data_offsets": [0, len(data)]}}).encode()
            path = os.path.join(folder, name)
            with open(path, "wb") as out:
                out.write(struct.pack("<Q", len(header)) + header + data)
            return path
        good = {"kv": "64", "rows": "128", "pattern": "causal"}
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(girih._read_thresholds(file("a", good)), ([2, 3], values, good))
            scaled = dict(good, softmax_scale="0.125")
            self.assertEqual(girih._read_thresholds(file("i", scaled)), ([2, 3], values, scaled))
            for path, message in [
                    (file("j", dict(good, softmax_scale="x")), "holds no thresholds of prune"),
                    (file("k", dict(good, softmax_scale="nan")), "says softmax_scale nan, which"),
                    (file("l", dict(good, softmax_scale="-1")), "says softmax_scale -1.0, which"),
                    (file("b", {"kv": "64"}), "holds no thresholds of prune"),
                    (file("c", dict(good, kv="96")), "128 rows and 96 keys"),
                    (file("d", dict(good, rows="64")), "64 rows and 64 keys"),
                    (file("e", good, dtype="F16"), "are no float32"),
                    (file("f", good, shape=(2, 4)), "has 24 bytes of thresholds"),
                    (file("g", good, shape=(6,)), "are no float32"),
                    (file("m", good, shape=(-2, -3)), "are no float32"),
                    (file("n", good, data=values[:16] + struct.pack("<2f", math.nan, 1)),
                     "is NaN in head 1, column 1"),
                    (os.path.join(folder, "none"), "none cannot be read: No such file"),
                    (folder, "cannot be read: Is a directory")]:
                with self.assertRaisesRegex(girih.Error, message):
                    girih._read_thresholds(path)
            with open(os.path.join(folder, "h"), "wb") as out:
                out.write(b"short")
            with self.assertRaisesRegex(girih.Error, "holds no thresholds of prune"):
                girih._read_thresholds(os.path.join(folder, "h"))

    def test_thresholds_of_another_softmax_scale_are_refused(self):
        values = Fake(4, 16, dtype="float32")
        def call(own, given, width=64):
            q = Fake(2, 8, 4, width)
            return girih._Call(q, q, q, out=q, softmax_scale=given,
                               inputs={"t": girih.Thresholds(values, 64, own)})
        for own, given in ((None, 0.3), (0.125, None), (0.125, 0.125), (0.3, 0.3), (0, 0),
                           (0.08838835, 0.088388346), (0.125, 0.12501)):
            call(own, given)
        call(0.08838834764, None, 128)
        for own, given, has in ((0.25, None, "0.125"), (0.125, 0.3, "0.3"), (0.125, 0, "0")):
            with self.assertRaisesRegex(
                    girih.Error, r"inputs\['t'\] holds thresholds for softmax_scale %s, but the "
                    "call has %s: give softmax_scale=%s" % (own, has, own)):
                call(own, given)

    def test_inputs_outlive_the_call_and_stand_in_any_order(self):
        mask, numbers = Fake(3, 5, dtype="bool"), Fake(dtype="int32", address=512)
        call = girih._Call(self.q, self.kv, self.kv, out=self.q, inputs={"m": mask, "n": numbers})
        self.assertEqual([call.args.inputs[i].name for i in range(2)], [b"m", b"n"])
        self.assertEqual([call.args.inputs[i].kind for i in range(2)], [3, 5])
        self.assertIs(call.inputs["m"], mask)
        none = girih._Call(self.q, self.kv, self.kv, out=self.q)
        self.assertEqual(none.args.num_inputs, 0)

    def test_good_inputs_reach_the_library(self):
        with self.assertRaisesRegex(girih.Error, "CUDA") as caught:
            girih.attention(self.q, self.kv, self.kv, "causal & blocks(m, q=16, kv=16) | sink($n)",
                            out=self.q, inputs={"m": Fake(1, 2, dtype="bool"),
                                                "n": Fake(2, 1, dtype="int32")})
        self.assertEqual(caught.exception.code, "no_device")


class CombineTest(unittest.TestCase):
    outs = [Fake(2, 16, 4, 64, address=4096), Fake(2, 16, 4, 64, dtype="float32", address=8192)]
    lses = [Fake(2, 4, 16, dtype="float32", address=256),
            Fake(2, 4, 16, dtype="float32", address=512)]

    def refused(self, message, outs=None, lses=None, code="invalid_argument", **arguments):
        arguments.setdefault("out", self.outs[0])
        arguments.setdefault("lse", self.lses[0])
        with self.assertRaisesRegex(girih.Error, message) as caught:
            girih.combine(outs or self.outs, lses or self.lses, **arguments)
        self.assertEqual(caught.exception.code, code)

    def test_good_parts_fail_for_want_of_a_context_alone(self):
        self.refused("CUDA", code="no_device")
        self.refused("CUDA", code="no_device", out=Fake(2, 16, 4, 64, dtype="float16", address=512),
                     empty_lse=float("inf"))
        bhsd = [Fake(2, 4, 16, 64)] * 64
        self.refused("CUDA", bhsd, self.lses * 32, code="no_device", layout="bhsd", out=bhsd[0])
        packed = Fake(9, 4, 64)
        self.refused("CUDA", [packed], [Fake(4, 9, dtype="float32")], code="no_device",
                     layout="thd", out=packed, lse=Fake(4, 9, dtype="float32"))
        with self.assertRaisesRegex(girih.Error, "CUDA") as caught:
            girih.bind_combine(jit="off")
        self.assertEqual(caught.exception.code, "no_device")

    def test_bad_parts_are_refused(self):
        self.refused("2 outs and 1 lses", lses=self.lses[:1])
        self.refused("65 parts: combine takes 1 to 64", self.outs[:1] * 65, self.lses[:1] * 65)
        self.refused(r"outs\[1\] is int32", [self.outs[0], Fake(2, 16, 4, 64, dtype="int32")])
        self.refused(r"parts\[1\].out has shape \[2, 15, 4, 64\]",
                     [self.outs[0], Fake(2, 15, 4, 64)])
        self.refused(r"lses\[1\] has shape \[2, 16, 4\]: it must be \[2, 4, 16\]",
                     lses=[self.lses[0], Fake(2, 16, 4, dtype="float32")])
        self.refused("lse is bfloat16: it must be float32", lse=Fake(2, 4, 16))
        self.refused("give out= and lse=", out=None)
        self.refused("in place they must be the same tensor",
                     out=Fake(2, 16, 4, 64, dtype="float16", address=4096))
        self.refused("layout 'dhsb' is not", layout="dhsb")
        with self.assertRaisesRegex(girih.Error, "tune 'on' is not"):
            girih.bind_combine(tune="on")


class EstimateTest(unittest.TestCase):
    q, k = Fake(2, 300, 8, 64), Fake(2, 5000, 2, 64)

    def refused(self, message, code="invalid_argument", **arguments):
        lists = girih.SlashLists(Fake(2, 8, 50, dtype="int32"), Fake(2, 8, 100, dtype="int32"))
        arguments = {"q": self.q, "k": self.k, "num_vertical": 50, "num_slash": 100,
                     "lists": lists, **arguments}
        with self.assertRaisesRegex(girih.Error, message) as caught:
            girih.estimate_slashes(**arguments)
        self.assertEqual(caught.exception.code, code)

    def test_good_arguments_fail_for_want_of_a_context_alone(self):
        self.refused("CUDA", "no_device")
        self.refused("CUDA", "no_device", softmax_scale=0.1)
        with self.assertRaisesRegex(girih.Error, "CUDA") as caught:
            girih.bind_estimate("bfloat16", 128, jit="off")
        self.assertEqual(caught.exception.code, "no_device")

    def test_bad_arguments_are_refused(self):
        self.refused("take bshd or bhsd", "unsupported", layout="thd", q=Fake(9, 8, 64),
                     k=Fake(9, 8, 64), lists=girih.SlashLists(Fake(1, 8, 50, dtype="int32"),
                                                              Fake(1, 8, 100, dtype="int32")))
        self.refused("pad to 80", "unsupported", q=Fake(2, 300, 8, 72), k=Fake(2, 5000, 2, 72))
        self.refused("k is fp16, but q is bf16", k=Fake(2, 5000, 2, 64, dtype="float16"))
        self.refused("num_heads 8 is not a multiple of num_heads_kv 3", k=Fake(2, 5000, 3, 64))
        self.refused(r"lists\.vertical has shape \[2, 8, 50\]: it must be \[2, 8, 51\]",
                     num_vertical=51)
        self.refused("give lists=", lists=None)
        with self.assertRaisesRegex(girih.Error, "dtype is int8"):
            girih.bind_estimate("int8", 128)

    def test_heads_may_have_numbers_of_their_own(self):
        few, many = list(range(43, 51)), Fake(8, dtype="int64")
        many.tolist = lambda: list(range(93, 101))
        for widths in ((50, 100), (None, None)):
            self.refused("CUDA", "no_device", head_vertical=few, head_slash=many,
                         num_vertical=widths[0], num_slash=widths[1])
        self.refused(r"head_vertical\[7\] is 50: it must be from 0 to num_vertical \(49\)",
                     head_vertical=few, num_vertical=49)
        self.refused(r"head_slash\[7\] is -1: it must be an int", head_slash=few[:7] + [-1])
        self.refused("head_slash has 7 numbers: it must have one for each of 8", head_slash=few[:7])
        self.refused("give num_slash, or head_slash", num_slash=None)
        self.refused(r"lists\.slash has shape \[2, 8, 100\]: it must be \[2, 8, 50\]",
                     num_slash=None, head_slash=few)


class EstimateBlocksTest(unittest.TestCase):
    q, k = Fake(2, 300, 8, 64), Fake(2, 5000, 2, 64)

    def refused(self, message, code="invalid_argument", **arguments):
        arguments = {"q": self.q, "k": self.k, "top_k": 10, "mask": Fake(2, 8, 5, 79, dtype="bool"),
                     **arguments}
        with self.assertRaisesRegex(girih.Error, message) as caught:
            girih.estimate_blocks(**arguments)
        self.assertEqual(caught.exception.code, code)

    def test_good_arguments_fail_for_want_of_a_context_alone(self):
        self.refused("CUDA", "no_device")
        self.refused("CUDA", "no_device", mask=Fake(2, 8, 5, 79, dtype="uint8"))
        self.refused("CUDA", "no_device", top_k=None, threshold=0.9, stride=16, q_block=128,
                     mask=Fake(2, 8, 3, 79, dtype="bool"), softmax_scale=0.1)
        self.refused("CUDA", "no_device", layout="bhsd", q=Fake(2, 8, 300, 64),
                     k=Fake(2, 2, 5000, 64), causal=False, keep_sink=True)
        with self.assertRaisesRegex(girih.Error, "CUDA") as caught:
            girih.bind_estimate_blocks("bfloat16", 128, jit="off")
        self.assertEqual(caught.exception.code, "no_device")

    def test_bad_arguments_are_refused(self):
        self.refused("both top_k and threshold are given", threshold=0.5)
        self.refused("neither top_k nor threshold is given", top_k=None)
        self.refused("top_k is 0: it must be 1 or more", top_k=0)
        self.refused("top_k is -3: it must be 1 or more", top_k=-3)
        for threshold in (0, -0.5, 1.5, float("nan")):
            self.refused("threshold is .*: it must be above 0 and at most 1", top_k=None,
                         threshold=threshold)
        self.refused("stride is 0", stride=0)
        self.refused("stride is 5: it must be 4, 8 or 16", stride=5)
        self.refused("q_block is 96: it must be 64 or 128", q_block=96)
        self.refused("kv_block is 0: it must be 64 or 128", kv_block=0)
        self.refused("take bshd or bhsd", "unsupported", layout="thd", q=Fake(9, 8, 64),
                     k=Fake(9, 8, 64), mask=Fake(1, 8, 1, 1, dtype="bool"))
        self.refused("pad to 80", "unsupported", q=Fake(2, 300, 8, 72), k=Fake(2, 5000, 2, 72))
        self.refused("num_heads 8 is not a multiple of num_heads_kv 3", k=Fake(2, 5000, 3, 64))
        self.refused(r"mask has shape \[2, 8, 5, 78\]: it must be \[2, 8, 5, 79\]",
                     mask=Fake(2, 8, 5, 78, dtype="bool"))
        self.refused("mask is int32: it must be uint8", mask=Fake(2, 8, 5, 79, dtype="int32"))
        self.refused("give mask=", mask=None)
        with self.assertRaisesRegex(girih.Error, "dtype is int8"):
            girih.bind_estimate_blocks("int8", 128)


if __name__ == "__main__":
    unittest.main()
