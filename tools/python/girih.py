"""Sparse attention on CUDA tensors: Girih's C interface through ctypes, in one file.

    import girih
    out = girih.attention(q, k, v, "causal & window(left=4095)")

Takes PyTorch tensors, or anything else with data_ptr(), shape, stride() in elements and dtype
(fp16 or bf16; the last dimension contiguous). Nothing is copied. Work goes to PyTorch's current
stream of the tensors' device; without PyTorch to the default stream of the current context.

libgirih.so is looked for, in this order: the environment variable GIRIH_LIBRARY, the folder of this
file, build/bin of the source tree, the loader's own paths. There is no backward pass.
"""

import contextlib
import ctypes
import functools
import json
import math
import os
import struct
import sys
import threading

__all__ = ["BlockBits", "BlockList", "BlockTable", "ColumnIntervals", "Error", "Kernel", "Program",
           "SlashLists", "Thresholds", "TokenIndices", "Values", "attention", "bind_combine",
           "bind_estimate", "bind_estimate_blocks", "combine", "compile", "estimate_blocks",
           "estimate_slashes", "version"]

_VERSION = "0.1"  # of the interface; the library's first two numbers must be the same


class Error(RuntimeError):
    """What Girih refused or could not do; str() says the value, the limit and the remedy.

    code: invalid_argument, unsupported, compile_failed, cache_io, driver, no_device, jit_disabled,
    internal, or no_library.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def _refuse(message):
    raise Error("invalid_argument", message)


# --- girih.h --------------------------------------------------------------------------------------

_DTYPES = {"float16": 1, "half": 1, "fp16": 1, "bfloat16": 2, "bf16": 2}
_FLOAT32 = 3
_LAYOUTS = {"bshd": 0, "bhsd": 1, "thd": 2}
_JIT = {None: 0, "auto": 1, "off": 2}
_TUNE = {None: 0, "db": 1, "off": 2, "auto": 3}
(_BLOCK_LIST, _BLOCK_TABLE, _BLOCK_MASK, _BLOCK_BITS, _HEAD_NUMBERS, _TOKEN_INDICES,
 _VERTICAL_SLASH, _THRESHOLDS, _VALUES, _COLUMN_INTERVALS) = range(1, 11)
_NO_DEVICE = 6
_GIVEN_SOFTMAX_SCALE, _GIVEN_Q_START = 1, 2

_char_p, _void_p, _size_t = ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t
_int32, _int64 = ctypes.c_int32, ctypes.c_int64


def _int32_of(name, value):
    """An integer that a caller gave; ctypes would take what is left of it in 32 bits."""
    if isinstance(value, int) and not -2**31 <= value < 2**31:
        _refuse("%s is %d: it must be from %d to %d" % (name, value, -2**31, 2**31 - 1))
    return value


class _Struct(ctypes.Structure):
    """A struct of girih.h: knows its size, and everything else starts as zero."""

    def __init_subclass__(cls):
        super().__init_subclass__()
        cls._int32s = frozenset(name for name, kind in cls._fields_ if kind is _int32)

    def __init__(self, **members):
        for name in self._int32s.intersection(members):
            _int32_of(name, members[name])
        super().__init__(size=ctypes.sizeof(self), **members)


class _Options(_Struct):
    _fields_ = [("size", _size_t), ("cache_dir", _char_p), ("cache_layers", _char_p),
                ("nvrtc", _char_p), ("template_dir", _char_p), ("dump_dir", _char_p),
                ("jit", _int32), ("block_m", _int32), ("block_n", _int32), ("num_stages", _int32),
                ("num_warps", _int32), ("tune", _int32), ("num_q_stages", _int32),
                ("portable", _int32), ("check_inputs", _int32)]


class _Problem(_Struct):
    _fields_ = [("size", _size_t), ("dtype", _int32), ("head_dim", _int32),
                ("num_heads", _int32), ("num_heads_kv", _int32), ("head_dim_v", _int32),
                ("layout", _int32), ("head_offset", _int32), ("num_heads_total", _int32),
                ("shared_inputs", _int32), ("partial_keys", _int32)]


class _KernelInfo(_Struct):
    _fields_ = [("size", _size_t), ("arch", _char_p), ("key", _char_p), ("compiler", _char_p),
                ("compile_ms", ctypes.c_double), ("cache_hit", _int32), ("block_m", _int32),
                ("block_n", _int32), ("num_stages", _int32), ("num_warps", _int32),
                ("threads", _int32), ("registers", _int32), ("spill_bytes", _int32),
                ("stack_bytes", _int32), ("shared_bytes", _int32), ("kernel", _char_p),
                ("num_q_stages", _int32), ("reserved", _int32)]


class _Tensor(_Struct):
    _fields_ = [("size", _size_t), ("data", _void_p), ("shape", _int64 * 4),
                ("stride", _int64 * 4), ("dtype", _int32), ("reserved", _int32)]


class _Input(_Struct):
    _fields_ = [("size", _size_t), ("name", _char_p), ("kind", _int32), ("batch", _int32),
                ("heads", _int32), ("num_q_blocks", _int32), ("num_kv_blocks", _int32),
                ("row_capacity", _int32), ("indptr", _void_p), ("counts", _void_p),
                ("indices", _void_p), ("num_indices", _int64), ("plane_stride", _int64),
                ("data", _void_p), ("batch_stride", _int64), ("head_stride", _int64),
                ("row_stride", _int64), ("k_data", _void_p), ("k_batch_stride", _int64),
                ("k_head_stride", _int64), ("k_batch", _int32), ("k_heads", _int32),
                ("num_tokens", _int32), ("k_num_tokens", _int32), ("num_columns", _int32),
                ("kv_block_size", _int32), ("shape", _int64 * 4),
                ("stride", _int64 * 4), ("type", _int32), ("rank", _int32),
                ("second_start", _void_p), ("second_end", _void_p), ("key_stride", _int64)]


class _Args(_Struct):
    _fields_ = [("size", _size_t), ("q", ctypes.POINTER(_Tensor)), ("k", ctypes.POINTER(_Tensor)),
                ("v", ctypes.POINTER(_Tensor)), ("out", ctypes.POINTER(_Tensor)),
                ("lse", _void_p), ("seqused_k", _void_p), ("leftpad_k", _void_p),
                ("cu_seqlens_q", _void_p), ("cu_seqlens_k", _void_p), ("stream", _void_p),
                ("layout", _int32), ("given", ctypes.c_uint32), ("softmax_scale", ctypes.c_float),
                ("empty_lse", ctypes.c_float), ("q_start", _int32), ("k_start", _int32),
                ("num_sequences", _int32), ("max_seqlen_q", _int32), ("max_seqlen_k", _int32),
                ("max_ctas", _int32), ("inputs", ctypes.POINTER(_Input)), ("num_inputs", _int32),
                ("reserved", _int32)]


class _Part(_Struct):
    _fields_ = [("size", _size_t), ("out", ctypes.POINTER(_Tensor)), ("lse", _void_p)]


class _CombineArgs(_Struct):
    _fields_ = [("size", _size_t), ("parts", ctypes.POINTER(_Part)),
                ("out", ctypes.POINTER(_Tensor)), ("lse", _void_p), ("stream", _void_p),
                ("num_parts", _int32), ("layout", _int32), ("empty_lse", ctypes.c_float),
                ("reserved", _int32)]


class _EstimateArgs(_Struct):
    _fields_ = [("size", _size_t), ("q", ctypes.POINTER(_Tensor)), ("k", ctypes.POINTER(_Tensor)),
                ("vertical", _void_p), ("slash", _void_p), ("stream", _void_p),
                ("num_vertical", _int32), ("num_slash", _int32), ("layout", _int32),
                ("given", ctypes.c_uint32), ("softmax_scale", ctypes.c_float),
                ("reserved", _int32), ("head_vertical", ctypes.POINTER(_int32)),
                ("head_slash", ctypes.POINTER(_int32)), ("workspace", _void_p),
                ("workspace_bytes", _size_t)]


class _EstimateBlocksArgs(_Struct):
    _fields_ = [("size", _size_t), ("q", ctypes.POINTER(_Tensor)), ("k", ctypes.POINTER(_Tensor)),
                ("mask", _void_p), ("stream", _void_p), ("layout", _int32),
                ("given", ctypes.c_uint32), ("softmax_scale", ctypes.c_float),
                ("q_block", _int32), ("kv_block", _int32), ("stride", _int32), ("top_k", _int32),
                ("threshold", ctypes.c_float), ("not_causal", _int32), ("keep_sink", _int32)]


_P = ctypes.POINTER
_FUNCTIONS = {  # name: result, arguments
    "girih_version": (_char_p, []),
    "girih_last_error": (_char_p, []),
    "girih_status_name": (_char_p, [_int32]),
    "girih_compile": (_int32, [_char_p, _P(_Options), _P(_void_p)]),
    "girih_program_text": (_char_p, [_void_p]),
    "girih_program_free": (None, [_void_p]),
    "girih_bind": (_int32, [_void_p, _P(_Problem), _P(_void_p)]),
    "girih_kernel_free": (None, [_void_p]),
    "girih_kernel_get_info": (_int32, [_void_p, _P(_KernelInfo)]),
    "girih_workspace_bytes": (_int32, [_void_p, _P(_Args), _P(_size_t)]),
    "girih_build_lists": (_int32, [_void_p, _P(_Args), _void_p, _size_t, _int32]),
    "girih_launch": (_int32, [_void_p, _P(_Args), _void_p, _size_t]),
    "girih_attention": (_int32, [_void_p, _P(_Args)]),
    "girih_combine": (_int32, [_P(_CombineArgs)]),
    "girih_bind_combine": (_int32, [_P(_Options)]),
    "girih_estimate_workspace_bytes": (_int32, [_P(_EstimateArgs), _P(_size_t)]),
    "girih_estimate_slashes": (_int32, [_P(_EstimateArgs)]),
    "girih_bind_estimate": (_int32, [_int32, _int32, _P(_Options)]),
    "girih_estimate_blocks": (_int32, [_P(_EstimateBlocksArgs)]),
    "girih_bind_estimate_blocks": (_int32, [_int32, _int32, _P(_Options)]),
}


# --- The library ----------------------------------------------------------------------------------


def _candidates():
    if os.environ.get("GIRIH_LIBRARY"):
        return [os.environ["GIRIH_LIBRARY"]]  # asked for: nothing else will do
    here = os.path.dirname(os.path.abspath(__file__))
    files = [os.path.join(here, "libgirih.so"),
             os.path.join(here, "..", "..", "build", "bin", "libgirih.so")]
    return [file for file in files if os.path.exists(file)] + ["libgirih.so." + _VERSION]


@functools.lru_cache(maxsize=None)
def _library():
    reasons = []
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            library.girih_version.restype = _char_p
            found = library.girih_version().decode()
        except (OSError, AttributeError) as error:
            reasons.append("%s: %s" % (name, error))
            continue
        if found.split(".")[:2] != _VERSION.split("."):
            reasons.append("%s: is version %s, this file is for %s" % (name, found, _VERSION))
            continue
        for function, (result, arguments) in _FUNCTIONS.items():
            getattr(library, function).restype = result
            getattr(library, function).argtypes = arguments
        return library
    raise Error("no_library", "libgirih.so could not be loaded (%s); build Girih, or set "
                "GIRIH_LIBRARY to the file" % "; ".join(reasons))


def version():
    """The library's version, such as "0.1.0"."""
    return _library().girih_version().decode()


def _check(status):
    if status != 0:
        library = _library()
        raise Error(library.girih_status_name(status).decode(),
                    library.girih_last_error().decode(errors="replace"))


# --- Tensors --------------------------------------------------------------------------------------


def _dtype_name(dtype):
    return str(dtype).rsplit(".", 1)[-1]  # "torch.bfloat16" -> "bfloat16"


def _dtype(name, dtype):
    found = _DTYPES.get(_dtype_name(dtype))
    if found is None:
        _refuse("%s is %s: it must be float16 or bfloat16" % (name, _dtype_name(dtype)))
    return found


def _layout(layout):
    if layout not in _LAYOUTS:
        _refuse("layout %r is not bshd, bhsd or thd" % (layout,))
    return _LAYOUTS[layout]


def _check_device(name, tensor, device):
    if not getattr(tensor, "is_cuda", True):
        _refuse("%s is on the CPU: move it to the GPU" % name)
    if device is not None and getattr(tensor, "device", device) != device:
        _refuse("%s is on %s, but q is on %s" % (name, tensor.device, device))


def _check_text(what, text):
    if not isinstance(text, str):
        _refuse("%s is %r: give text" % (what, text))


def _c_text(what, text):
    _check_text(what, text)
    if "\0" in text:  # which C would take for the end
        _refuse("character %d of %s, %r, is NUL: leave it out" % (text.index("\0") + 1, what, text))
    return text.encode()


def _tensor(name, tensor, layout, device, float32=False):
    """float32: whether it may be of that type."""
    if not hasattr(tensor, "data_ptr"):
        _refuse("%s is %r: it must be a tensor on a GPU" % (name, tensor))
    _check_device(name, tensor, device)
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if layout == "thd" and len(shape) == 3:
        shape, stride = (1,) + shape, (0,) + stride
    if len(shape) != 4:
        _refuse("%s has %d dimensions: layout %s has %s"
                % (name, len(shape), layout, "3" if layout == "thd" else "4"))
    if float32 and _dtype_name(tensor.dtype) == "float32":
        dtype = _FLOAT32
    else:
        dtype = _dtype(name, tensor.dtype)
    return _Tensor(data=tensor.data_ptr(), shape=shape, stride=stride, dtype=dtype)


def _array(name, tensor, dtype, shape, device):
    """The address of a contiguous tensor of this type and shape; None gives None."""
    if tensor is None:
        return None
    _check_device(name, tensor, device)
    if _dtype_name(tensor.dtype) != dtype:
        _refuse("%s is %s: it must be %s" % (name, _dtype_name(tensor.dtype), dtype))
    if tuple(tensor.shape) != tuple(shape):
        _refuse("%s has shape %s: it must be %s" % (name, list(tensor.shape), list(shape)))
    contiguous = 1
    for size, stride in zip(reversed(shape), reversed(tuple(tensor.stride()))):
        if size > 1 and stride != contiguous:
            _refuse("%s is not contiguous" % name)
        contiguous *= max(size, 1)
    return tensor.data_ptr()


# --- Run-time inputs ------------------------------------------------------------------------------


class BlockList:
    """Visible blocks as compressed rows (CSR): row i of a plane, one for each block of queries, has
    the key blocks indices[indptr[i]] up to, without it, indices[indptr[i + 1]], in any order.

    indptr: int32 [batch, heads, num_q_blocks + 1]; without batch, or without both, all share.
    indices: int32 [num_indices], which indptr counts through from plane to plane; or [batch, heads,
      capacity], as many dimensions as indptr has, where each plane's indptr counts from its own.
    num_kv_blocks: of a row, ceil(seqlen_k / kv) or more; indices outside of them are ignored.
    """

    def __init__(self, indptr, indices, num_kv_blocks):
        self.indptr, self.indices, self.num_kv_blocks = indptr, indices, num_kv_blocks

    def _input(self, name, device):
        planes = _planes(name + ".indptr", self.indptr, 1)
        indptr = _array(name + ".indptr", self.indptr, "int32", self.indptr.shape, device)
        shape = tuple(self.indices.shape)
        own = len(shape) > 1  # each plane's
        if own:
            shape = tuple(self.indptr.shape[:-1]) + shape[-1:]
        indices = _array(name + ".indices", self.indices, "int32", shape, device)
        return _Input(kind=_BLOCK_LIST, batch=planes[0], heads=planes[1],
                      num_q_blocks=self.indptr.shape[-1] - 1, num_kv_blocks=self.num_kv_blocks,
                      indptr=indptr, indices=indices, num_indices=math.prod(shape),
                      plane_stride=shape[-1] if own else 0)


class BlockTable:
    """Visible blocks as padded rows: row i of a plane, one for each block of queries, has the first
    num_blocks[i] key blocks of indices[i], in any order.

    num_blocks: int32 [batch, heads, num_q_blocks]; without batch, or without both, all share.
    indices: int32 [batch, heads, num_q_blocks, capacity], one dimension more than num_blocks has.
    num_kv_blocks: of a row, ceil(seqlen_k / kv) or more; the capacity where not given. Indices
      outside of them are ignored.

    These are kv_num_blocks and kv_indices (or full_kv_…) of PyTorch's flex_attention.BlockMask.
    """

    def __init__(self, num_blocks, indices, num_kv_blocks=None):
        self.num_blocks, self.indices, self.num_kv_blocks = num_blocks, indices, num_kv_blocks

    def _input(self, name, device):
        planes = _planes(name + ".num_blocks", self.num_blocks, 1)
        counts = _array(name + ".num_blocks", self.num_blocks, "int32", self.num_blocks.shape,
                        device)
        capacity = self.indices.shape[-1] if len(self.indices.shape) > 0 else 0
        indices = _array(name + ".indices", self.indices, "int32",
                         tuple(self.num_blocks.shape) + (capacity,), device)
        columns = capacity if self.num_kv_blocks is None else self.num_kv_blocks
        return _Input(kind=_BLOCK_TABLE, batch=planes[0], heads=planes[1],
                      num_q_blocks=self.num_blocks.shape[-1], num_kv_blocks=columns,
                      row_capacity=capacity, counts=counts, indices=indices)


class BlockBits:
    """Visible blocks as bits, which are read where they lie: bit j % 32 of word j / 32 of a row.

    words: int32 [batch, heads, num_q_blocks, ceil(num_kv_blocks / 32)], the last dimension
      contiguous; without batch, or without both, all share.
    """

    def __init__(self, words, num_kv_blocks):
        self.words, self.num_kv_blocks = words, num_kv_blocks

    def _input(self, name, device):
        if _dtype_name(self.words.dtype) not in ("int32", "uint32"):
            _refuse("%s.words is %s: it must be int32" % (name, _dtype_name(self.words.dtype)))
        needed = (self.num_kv_blocks + 31) // 32
        if self.words.shape[-1] < needed:
            _refuse("%s.words has rows of %d words: %d blocks take %d"
                    % (name, self.words.shape[-1], self.num_kv_blocks, needed))
        return _rows(name + ".words", self.words, device, kind=_BLOCK_BITS,
                     num_kv_blocks=self.num_kv_blocks)


class TokenIndices:
    """A number for each query and each key, which segments, index_ge and index_gt compare.

    q: int32 [batch, heads, seqlen_q], the last dimension contiguous; without heads (then [batch,
      seqlen_q]), or without both, all share. Packed sequences have a row each, from their own first
      token on.
    k: int32 [batch, heads, seqlen_k], likewise; where not given, q serves the keys as well.
    """

    def __init__(self, q, k=None):
        self.q, self.k = q, k

    def _input(self, name, device):
        batch, heads, tokens, batch_stride, head_stride = _tokens(name + ".q", self.q, device)
        result = _Input(kind=_TOKEN_INDICES, batch=batch, heads=heads, num_tokens=tokens,
                        data=self.q.data_ptr(), batch_stride=batch_stride, head_stride=head_stride)
        if self.k is not None:
            (result.k_batch, result.k_heads, result.k_num_tokens, result.k_batch_stride,
             result.k_head_stride) = _tokens(name + ".k", self.k, device)
            result.k_data = self.k.data_ptr()
        return result


class SlashLists:
    """Columns and slashes of vertical_slash, as MInference has them.

    vertical: int32 [batch, heads, number], keys; without batch, or without both, all share.
    slash: int32 [batch, heads, number], distances from a row back to a key; 0 counts as given.

    Entries stand in any order. Those that are no key or no distance are ignored: pad with -1.
    """

    def __init__(self, vertical, slash):
        self.vertical, self.slash = vertical, slash

    def _input(self, name, device):
        planes = _planes(name + ".vertical", self.vertical, 1)
        vertical = _array(name + ".vertical", self.vertical, "int32", self.vertical.shape, device)
        number = self.slash.shape[-1] if len(self.slash.shape) > 0 else 0
        slash = _array(name + ".slash", self.slash, "int32",
                       tuple(self.vertical.shape[:-1]) + (number,), device)
        return _Input(kind=_VERTICAL_SLASH, batch=planes[0], heads=planes[1], data=vertical,
                      num_tokens=self.vertical.shape[-1], k_data=slash, k_num_tokens=number)


def _read_thresholds(path):
    """The shape, bytes and metadata of a .safetensors file with prune's thresholds."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        _refuse("%s cannot be read: %s" % (path, error.strerror))
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8:8 + length].decode())
        metadata, entry = header["__metadata__"], header["thresholds"]
        shape, (begin, end) = [int(n) for n in entry["shape"]], map(int, entry["data_offsets"])
        kv, rows = int(metadata["kv"]), int(metadata["rows"])
        scale = float(metadata.get("softmax_scale", 0))  # files of old do not say
    except (KeyError, RecursionError, TypeError, ValueError):
        _refuse("%s holds no thresholds of prune: `girih calibrate` writes such files" % path)
    if rows != 128 or kv not in (64, 128):
        _refuse("%s holds thresholds for %d rows and %d keys: 128 rows, and 64 or 128 keys, are "
                "supported" % (path, rows, kv))
    if not 0 <= scale < math.inf:
        _refuse("%s says softmax_scale %s, which must be finite, 0 or more" % (path, scale))
    values = data[8 + length:][begin:end] if 0 <= begin <= end else b""
    if (entry.get("dtype") != "F32" or len(shape) != 2 or min(shape) < 1 or
            len(values) != 4 * shape[0] * shape[1]):
        _refuse("%s has %d bytes of thresholds, which are no float32 %s" % (path, len(values), shape))
    for i, (value,) in enumerate(struct.iter_unpack("<f", values)):
        if value != value:
            _refuse("%s is NaN in head %d, column %d, where it keeps every tile: write -inf if that "
                    "is meant" % (path, i // shape[1], i % shape[1]))
    return shape, values, metadata


class Thresholds:
    """Scores below which prune skips key tiles.

    values: float32, contiguous [heads, num_columns]: for each head (num_heads, num_heads_kv or 1)
      and each 128 positions of queries; those beyond the last column take the last one. -inf and
      NaN keep every tile.
    kv: keys of the tiles that they were calibrated for, 64 or 128, as prune has it.
    softmax_scale: of the scores that they were calibrated for, where that is known: calls with
      another one are refused.
    """

    def __init__(self, values, kv, softmax_scale=None):
        self.values, self.kv, self.softmax_scale = values, kv, softmax_scale

    @classmethod
    def load(cls, path, device="cuda"):
        """What `girih calibrate` wrote, with its kv and softmax_scale: patterns that prune other
        tiles refuse it, and so do calls with another scale. The values become a PyTorch tensor;
        what else the file says is in `metadata`, a dict of strings (pattern, head_dim, ...)."""
        try:
            import torch
        except ImportError:
            raise ImportError("Thresholds.load needs PyTorch, for the tensor that it makes")
        shape, values, metadata = _read_thresholds(path)
        scale = metadata.get("softmax_scale")
        result = cls(torch.frombuffer(bytearray(values), dtype=torch.float32).reshape(shape)
                     .to(device), int(metadata["kv"]), None if scale is None else float(scale))
        result.metadata = metadata
        return result

    def _check_scale(self, name, scale):
        own = self.softmax_scale
        if own is not None and abs(own - scale) > 1e-3 * max(own, scale):
            _refuse("%s holds thresholds for softmax_scale %.8g, but the call has %.8g: give "
                    "softmax_scale=%.8g, or calibrate for the other" % (name, own, scale, own))

    def _input(self, name, device):
        shape = tuple(self.values.shape)
        if len(shape) != 2:
            _refuse("%s.values has %d dimensions: it must have two, [heads, num_columns]"
                    % (name, len(shape)))
        return _Input(kind=_THRESHOLDS, heads=shape[0], num_columns=shape[1],
                      kv_block_size=self.kv,
                      data=_array(name + ".values", self.values, "float32", shape, device))


class Values:
    """A tensor that an expression of the pattern indexes: int32 of expr("t[b][k] > 0"), which a plain
    int32 tensor is not, or float32 of score("s + t[h]"). One to four dimensions, one for each index,
    by their strides; an index outside of one counts as the nearest inside.
    """

    def __init__(self, tensor):
        self.tensor = tensor

    def _input(self, name, device):
        dtype = _dtype_name(self.tensor.dtype)
        if dtype not in ("int32", "float32"):
            _refuse("%s is %s: it must be int32, of expr, or float32, of score" % (name, dtype))
        result = _values(name, self.tensor, device)
        result.type = 1 if dtype == "int32" else 0
        return result


class ColumnIntervals:
    """Which rows see a key: rows q with start <= q < end, or with second_start <= q < second_end.

    start, end: int32 [batch, heads, seqlen_k] with the same strides; without heads (then [batch,
      seqlen_k]), or without both, all share. The last dimension may have any stride, so that bounds
      may lie beside one another: ColumnIntervals(*rows.unbind(-1)). Rows count from a sequence's
      own first one.
    second_start, second_end: likewise, both or neither.

    FlashMask's startend_row_indices are the rows that do not: !columns(...).
    """

    def __init__(self, start, end, second_start=None, second_end=None):
        self.start, self.end = start, end
        self.second_start, self.second_end = second_start, second_end

    def _input(self, name, device):
        batch, heads, tokens, batch_stride, head_stride = _tokens(name + ".start", self.start,
                                                                  device, any_stride=True)
        shape, stride = tuple(self.start.shape), tuple(self.start.stride())
        result = _Input(kind=_COLUMN_INTERVALS, batch=batch, heads=heads, num_tokens=tokens,
                        data=self.start.data_ptr(), batch_stride=batch_stride,
                        head_stride=head_stride, key_stride=stride[-1] if tokens > 1 else 1)
        if (self.second_start is None) != (self.second_end is None):
            _refuse("%s has one of second_start and second_end: give both" % name)
        for member, tensor in (("end", self.end), ("second_start", self.second_start),
                               ("second_end", self.second_end)):
            if tensor is None and member != "end":
                continue
            where = name + "." + member
            _tokens(where, tensor, device, any_stride=True)
            if (tuple(tensor.shape), tuple(tensor.stride())) != (shape, stride):
                _refuse("%s has shape %s and strides %s: they must be start's, %s and %s"
                        % (where, list(tensor.shape), list(tensor.stride()), list(shape),
                           list(stride)))
            setattr(result, "k_data" if member == "end" else member, tensor.data_ptr())
        return result


def _values(name, tensor, device):
    """An input of float32 numbers, in the dimensions that the pattern wants, by their strides."""
    _check_device(name, tensor, device)
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if not 1 <= len(shape) <= 4:
        _refuse("%s has %d dimensions: it must have 1 to 4" % (name, len(shape)))
    if not any(stride):
        _refuse("%s is one number, expanded: call contiguous()" % name)
    return _Input(kind=_VALUES, data=tensor.data_ptr(), rank=len(shape),
                  shape=(_int64 * 4)(*shape), stride=(_int64 * 4)(*stride))


def _tokens(name, tensor, device, any_stride=False):
    """batch, heads, tokens, batch stride and head stride of a row of numbers for each plane."""
    _check_device(name, tensor, device)
    if _dtype_name(tensor.dtype) != "int32":
        _refuse("%s is %s: it must be int32" % (name, _dtype_name(tensor.dtype)))
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if not 1 <= len(shape) <= 3:
        _refuse("%s has %d dimensions: it must have 1 to 3, tokens behind [batch, heads]"
                % (name, len(shape)))
    if shape[-1] > 1 and (stride[-1] < 1 if any_stride else stride[-1] != 1):
        _refuse("%s has stride %d between tokens: it must be 1; call contiguous()"
                % (name, stride[-1]))
    batch, heads = ((1, 1) if len(shape) == 1 else (shape[0], 1) if len(shape) == 2 else shape[:2])
    head_stride = stride[1] if heads > 1 else max(shape[-1], 1)
    batch_stride = stride[0] if batch > 1 else max(heads * head_stride, 1)
    if batch_stride == 0 and head_stride == 0:
        _refuse("%s is one row, expanded: leave out the dimensions" % name)
    return batch, heads, shape[-1], batch_stride, head_stride


def _planes(name, tensor, own):
    """[batch, heads] of a tensor whose last `own` dimensions are a plane's; 1 where they lack."""
    shape = tuple(tensor.shape)
    if not own <= len(shape) <= own + 2:
        _refuse("%s has %d dimensions: it must have %d to %d, a plane's behind [batch, heads]"
                % (name, len(shape), own, own + 2))
    return ((1, 1) + shape[:len(shape) - own])[-2:]


def _rows(name, tensor, device, **members):
    """An input of rows that lie at any distance."""
    batch, heads = _planes(name, tensor, 2)
    _check_device(name, tensor, device)
    shape, stride = tuple(tensor.shape), tuple(tensor.stride())
    if shape[-1] > 1 and stride[-1] != 1:
        _refuse("%s has stride %d between the blocks of a row: it must be 1; call contiguous()"
                % (name, stride[-1]))
    # A dimension of one element is never stepped over.
    steps = [step if size > 1 else 1 for size, step in zip(shape[:-1], stride[:-1])]
    if not any(steps):
        _refuse("%s is one row, expanded: call contiguous()" % name)
    steps = [1] * (3 - len(steps)) + steps
    return _Input(batch=batch, heads=heads, num_q_blocks=shape[-2], data=tensor.data_ptr(),
                  batch_stride=steps[0], head_stride=steps[1], row_stride=steps[2], **members)


def _input(name, value, device):
    """What a launch is given for the input of this name."""
    where = "inputs[%r]" % name
    if isinstance(value, (BlockBits, BlockList, BlockTable, ColumnIntervals, SlashLists, Thresholds,
                          TokenIndices, Values)):
        result = value._input(where, device)
    elif not hasattr(value, "data_ptr"):
        _refuse("%s is %s: it must be a tensor on the GPU, a BlockList, BlockTable, BlockBits, "
                "TokenIndices, SlashLists, Thresholds, ColumnIntervals or Values"
                % (where, type(value).__name__))
    elif _dtype_name(value.dtype) in ("bool", "uint8"):
        result = _rows(where, value, device, kind=_BLOCK_MASK, num_kv_blocks=value.shape[-1])
    elif _dtype_name(value.dtype) == "int32":
        if len(value.shape) > 2:
            _refuse("%s has %d dimensions: numbers of an atom have 0 to 2, [batch, heads]; what expr "
                    "indexes is girih.Values(tensor), documents and the like are TokenIndices"
                    % (where, len(value.shape)))
        batch, heads = _planes(where, value, 0)
        result = _Input(kind=_HEAD_NUMBERS, batch=batch, heads=heads,
                        data=_array(where, value, "int32", value.shape, device))
    elif _dtype_name(value.dtype) == "float32":
        result = _values(where, value, device)
    else:
        _refuse("%s is %s: block masks are bool or uint8, numbers are int32, values float32"
                % (where, _dtype_name(value.dtype)))
    result.name = _c_text("the input's name", name)
    return result


# --- Calls ----------------------------------------------------------------------------------------


def _torch_of(tensor):
    """The torch module, when this is one of its tensors."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(tensor, torch.Tensor) else None


def _allocating(torch, stream):
    """Memory from PyTorch for work on `stream`, which is None for the current one: PyTorch may give
    what is freed to later work of the stream that it was taken for."""
    if torch is None or stream is None:
        return contextlib.ExitStack()  # of nothing
    if not hasattr(stream, "cuda_stream"):
        stream = torch.cuda.ExternalStream(stream)
    return torch.cuda.stream(stream)


def _in_context(torch, device, call):
    """Checks call() with `device` current. A thread that has not used CUDA yet has no context."""
    if torch is None:
        return _check(call())
    with torch.cuda.device(device):
        status = call()
        if status == _NO_DEVICE:
            torch.cuda.mem_get_info(device)  # makes the device's context current
            status = call()
        _check(status)


class _Call:
    """The arguments of one launch, and the tensors that they point into."""

    def __init__(self, q, k, v, *, softmax_scale=None, return_lse=False, layout="bshd", out=None,
                 lse=None, empty_lse=-math.inf, q_start=None, k_start=0, seqused_k=None,
                 leftpad_k=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
                 max_seqlen_k=None, inputs=None, max_ctas=0, stream=None):
        self.args = args = _Args(layout=_layout(layout), k_start=k_start, empty_lse=empty_lse,
                                 max_ctas=max_ctas)
        self.torch = torch = _torch_of(q)
        self.device = device = q.device if torch else None
        self.inputs = inputs = dict(inputs or {})
        if torch and torch.is_grad_enabled():
            tensors = [("q", q), ("k", k), ("v", v)]
            tensors += [("the input %r" % name, getattr(value, "tensor", value))
                        for name, value in inputs.items()]
            for name, tensor in tensors:
                if getattr(tensor, "requires_grad", False):
                    _refuse("%s requires a gradient, and there is no backward pass: use "
                            "torch.no_grad() or detach()" % name)
        q_view = _tensor("q", q, layout, device)
        v_view = _tensor("v", v, layout, device)
        heads_at, rows_at = (1, 2) if layout == "bhsd" else (2, 1)
        heads, rows, batch = q_view.shape[heads_at], q_view.shape[rows_at], q_view.shape[0]

        if layout == "thd":
            if None in (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
                _refuse("layout thd needs cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k")
            batch = args.num_sequences = cu_seqlens_q.shape[0] - 1
        args.max_seqlen_q = _int32_of("max_seqlen_q", max_seqlen_q or 0)
        args.max_seqlen_k = _int32_of("max_seqlen_k", max_seqlen_k or 0)
        for name, array, size in (("cu_seqlens_q", cu_seqlens_q, batch + 1),
                                  ("cu_seqlens_k", cu_seqlens_k, batch + 1),
                                  ("seqused_k", seqused_k, batch),
                                  ("leftpad_k", leftpad_k, batch)):
            setattr(args, name, _array(name, array, "int32", (size,), device))

        if out is None:
            if torch is None:
                _refuse("q is no PyTorch tensor: give out= to be written to")
            with _allocating(torch, stream):
                out = q.new_empty(tuple(q.shape[:-1]) + (v_view.shape[3],))
        lse_shape = (heads, rows) if layout == "thd" else (batch, heads, rows)
        if lse is None and return_lse:
            if torch is None:
                _refuse("q is no PyTorch tensor: give lse= instead of return_lse=True")
            with _allocating(torch, stream):
                lse = q.new_empty(lse_shape, dtype=torch.float32)
        args.lse = _array("lse", lse, "float32", lse_shape, device)
        self.result = out if lse is None else (out, lse)

        args.q, args.v = ctypes.pointer(q_view), ctypes.pointer(v_view)
        args.k = ctypes.pointer(_tensor("k", k, layout, device))
        args.out = ctypes.pointer(_tensor("out", out, layout, device))
        if softmax_scale is not None:
            args.softmax_scale, args.given = softmax_scale, args.given | _GIVEN_SOFTMAX_SCALE
        if q_start is not None:
            args.q_start = _int32_of("q_start", q_start)
            args.given |= _GIVEN_Q_START
        for name, value in inputs.items():
            if isinstance(value, Thresholds):
                value._check_scale("inputs[%r]" % name, q_view.shape[3] ** -0.5
                                   if softmax_scale is None else softmax_scale)
        args.inputs = (_Input * len(inputs))(*(_input(name, value, device)
                                               for name, value in inputs.items()))
        args.num_inputs = len(inputs)
        if stream is None and torch:
            stream = torch.cuda.current_stream(device)
        args.stream = getattr(stream, "cuda_stream", stream)

    def run(self, call):
        _in_context(self.torch, self.device, call)
        return self.result


# --- Programs and kernels -------------------------------------------------------------------------


def _memory(workspace, device):
    """The address and the bytes of a workspace, or of none."""
    if workspace is None:
        return None, 0
    _check_device("workspace", workspace, device)
    return workspace.data_ptr(), workspace.numel() * workspace.element_size()


class Kernel:
    """A compiled kernel for one problem, from Program.bind. Calling it launches it."""

    def __init__(self, handle):
        self._handle = handle
        self._free = _library().girih_kernel_free

    def __del__(self):
        if getattr(self, "_handle", None):
            self._free(self._handle)

    @property
    def info(self):
        """A dict: arch, key, compiler, compile_ms, cache_hit, the tile, registers, bytes."""
        info = _KernelInfo()
        _check(_library().girih_kernel_get_info(self._handle, info))
        values = {name: getattr(info, name) for name, _ in info._fields_[1:]}
        values = {name: value.decode() if isinstance(value, bytes) else value
                  for name, value in values.items()}
        return dict(values, cache_hit=bool(info.cache_hit))

    def workspace_bytes(self, q, k, v, **arguments):
        """Device scratch memory that such a launch needs: 0 unless some of the inputs are block
        lists, tables or masks, TokenIndices, ColumnIntervals or SlashLists, or the pattern has
        expr("..."). BlockBits, numbers, Thresholds and values are read where they lie."""
        return self._workspace_bytes(_Call(q, k, v, **arguments))

    def _workspace_bytes(self, call):
        size = _size_t()
        _check(_library().girih_workspace_bytes(self._handle, call.args, size))
        return size.value

    def build_lists(self, q, k, v, *, workspace, check=False, **arguments):
        """Prepares block lists, tables and masks, TokenIndices, ColumnIntervals and SlashLists among the
        inputs, and the tiles of expr("..."), in `workspace`, a contiguous tensor: once for any number
        of launches with the same ones, and of SlashLists and expressions with the same lengths and
        positions, and the same elements of their tensors. The workspace is this kernel's alone, and
        launches that may run at once need one each: they write to it. check=True waits for that, and
        refuses entries out of range, which are ignored otherwise, and Thresholds with a NaN, which
        keeps every tile otherwise."""
        call = _Call(q, k, v, **arguments)
        memory = _memory(workspace, call.device)
        call.run(lambda: _library().girih_build_lists(self._handle, call.args, *memory, check))

    def __call__(self, q, k, v, *, workspace=None, **arguments):
        """As attention(), without a pattern; never compiles. workspace: that of build_lists; where
        one is needed and none is given, lists are built anew, in memory from PyTorch."""
        call = _Call(q, k, v, **arguments)
        if workspace is None:
            size = self._workspace_bytes(call)
            if size > 0 and (call.torch is None or arguments.get("stream") is not None):
                _refuse("a launch with a stream= of its own, or without PyTorch, needs workspace=: "
                        "%d bytes, see build_lists" % size)
            if size > 0:
                workspace = q.new_empty(size, dtype=call.torch.uint8)
                memory = _memory(workspace, call.device)
                call.run(lambda: _library().girih_build_lists(self._handle, call.args, *memory, 0))
        memory = _memory(workspace, call.device)
        return call.run(lambda: _library().girih_launch(self._handle, call.args, *memory))


class Program:
    """A parsed pattern. Calling it is attention(); compile() makes one."""

    def __init__(self, pattern, **options):
        options = _options(**options)
        self._handle = _void_p()
        self._free = _library().girih_program_free
        _check(_library().girih_compile(_c_text("the pattern", pattern), options, self._handle))

    def __del__(self):
        if getattr(self, "_handle", None):
            self._free(self._handle)

    @property
    def text(self):
        """The pattern's canonical text."""
        return _library().girih_program_text(self._handle).decode()

    def __repr__(self):
        return "girih.compile(%r)" % self.text

    def bind(self, *, dtype, head_dim, num_heads, num_heads_kv=0, head_dim_v=0, layout="bshd",
             head_offset=0, num_heads_total=0, shared_inputs=False, partial_keys=False, device=None):
        """Compiles, or finds in the cache, and loads ahead of time; gives a Kernel.

        dtype: a torch dtype, "bf16" or "fp16". num_heads_kv: as num_heads where not given.
        head_offset, num_heads_total: on a tensor-parallel rank, the model's number of the first
        query head here, and of all of them; launch such a kernel by calling it, for a call of the
        program takes the tensors' heads for the whole model's. shared_inputs: a promise that the query
        heads of one KV head see the same blocks of the inputs, so that they may share a tile; whoever
        breaks it gets right results, slowly. A call of the program sees that in the inputs' shapes.
        partial_keys: says that launches may give seqused_k or leftpad_k, or tensors whose heads lie
            2^31 elements apart; only neighborhoods must know.
        device: PyTorch's current one where not given. Calls of the program for the same problem use the same kernel from then on, also
        while a CUDA graph is captured.
        """
        problem = _Problem(dtype=_dtype("dtype", dtype), head_dim=head_dim, head_dim_v=head_dim_v,
                           num_heads=num_heads, num_heads_kv=num_heads_kv, layout=_layout(layout),
                           head_offset=head_offset, num_heads_total=num_heads_total,
                           shared_inputs=shared_inputs, partial_keys=partial_keys)
        torch, handle = sys.modules.get("torch"), _void_p()
        if torch is not None and not torch.cuda.is_available():
            torch = None  # the library says what is missing
        if torch is not None and device is None:
            device = torch.cuda.current_device()
        _in_context(torch, device, lambda: _library().girih_bind(self._handle, problem, handle))
        return Kernel(handle)

    def __call__(self, q, k, v, **arguments):
        """As attention(), without the pattern."""
        call = _Call(q, k, v, **arguments)
        return call.run(lambda: _library().girih_attention(self._handle, call.args))


def _options(jit=None, tune=None, **options):
    """girih_options of a caller's keywords."""
    if jit not in _JIT:
        _refuse("jit %r is not 'auto' or 'off'" % (jit,))
    if tune not in _TUNE:
        _refuse("tune %r is not 'db', 'auto' or 'off'" % (tune,))
    for name, value in options.items():
        if name not in _OPTION_NAMES:
            raise TypeError("unknown option %r: there are %s"
                            % (name, ", ".join(sorted(_OPTION_NAMES | {"jit", "tune"}))))
        if isinstance(value, (str, os.PathLike)):
            options[name] = os.fsencode(value)
            if b"\0" in options[name]:  # which C would take for the end
                _refuse("%s %r contains NUL: leave it out" % (name, value))
        elif dict(_Options._fields_)[name] is _char_p and value is not None:
            _refuse("%s is %r: it must be a path, as text" % (name, value))
    return _Options(jit=_JIT[jit], tune=_TUNE[tune], **options)


_OPTION_NAMES = {name for name, _ in _Options._fields_} - {"size", "jit", "tune"}
_programs = {}
_programs_lock = threading.Lock()


def compile(pattern, **options):
    """The Program of a pattern's text; the same one when asked again with the same options.

    Options, each with an environment variable for its default: cache_dir, cache_layers ("a:b"),
    jit ("auto" or "off"), tune ("db", "auto" or "off"), nvrtc, template_dir, dump_dir. The tile,
    chosen by Girih where not given: block_m, block_n, num_stages, num_warps, num_q_stages, and
    portable=True for the kernel of every GPU where one has its own. With check_inputs=True calls of
    the Program wait for the GPU and refuse inputs with entries out of range, which are ignored
    otherwise, and thresholds that are NaN. A kernel is compiled at the first call for a problem, or
    by Program.bind.
    """
    _check_text("the pattern", pattern)  # it may be no key
    key = (pattern, tuple(sorted((name, str(value)) for name, value in options.items())))
    with _programs_lock:
        program = _programs.get(key)
        if program is None:
            program = _programs[key] = Program(pattern, **options)
        return program


def attention(q, k, v, pattern="dense", **arguments):
    """softmax(q k^T * softmax_scale) v, over the keys that the pattern lets each query see.

    Shapes, in the default layout="bshd":
      q    [batch, seqlen_q, num_heads, head_dim]
      k    [batch, seqlen_k, num_heads_kv, head_dim]     num_heads_kv divides num_heads
      v    [batch, seqlen_k, num_heads_kv, head_dim_v]
      out  [batch, seqlen_q, num_heads, head_dim_v]      made where not given
      lse  [batch, num_heads, seqlen_q] float32          natural log; given, or made by return_lse
    layout="bhsd": [batch, heads, seqlen, dim], as scaled_dot_product_attention has it.
    layout="thd": packed sequences, [total, heads, dim], and lse [num_heads, total_q]; with
      cu_seqlens_q, cu_seqlens_k  [num_sequences + 1] int32, on the GPU: where sequences start
      max_seqlen_q, max_seqlen_k  integers: no sequence is longer

    softmax_scale: 1 / sqrt(head_dim) where not given.
    seqused_k, leftpad_k: [batch] int32, on the GPU: keys from this one on, or before it, do not
      exist in a sequence.
    q_start, k_start: positions of the first query and key. Where q_start is not given, the last
      query stands at the last key.
    inputs: the run-time data that the pattern names, e.g. {"m": mask, "n": lengths}
      blocks(m, q=128, kv=64): visible blocks. A bool or uint8 tensor [batch, heads, ceil(seqlen_q /
        128), ceil(seqlen_k / 64)], or more, the last dimension contiguous; or a BlockList,
        BlockTable or BlockBits.
      sink($n): numbers, int32, contiguous [batch, heads].
      segments(d), index_ge(d), index_gt(d): TokenIndices(q, k), int32 [batch, heads, seqlen].
      vertical_slash(v): SlashLists(vertical, slash), int32 [batch, heads, number].
      prune(t, kv=64): Thresholds(values, kv=64), float32 [heads, num_columns].
      columns(c): ColumnIntervals(start, end, ...), int32 [batch, heads, seqlen_k].
      alibi(a), sink_logit(z): float32 [batch, heads]; bias(b): float32 [batch, heads, seqlen_k], the
        last dimension contiguous.
      expr("t[b][q] == t[b][k]"): Values(t), int32 with a dimension for each index; score("s + t[h]"):
        float32, the same.
      batch: the number of sequences; heads: num_heads or num_heads_kv. Where either is 1 or left
      out, batch first, all share.
    empty_lse: lse of a row that sees nothing, -inf or inf; its out is 0.
    stream: a torch.cuda.Stream or an address; PyTorch's current stream where not given.

    Returns out, or (out, lse) where lse was given or asked for. Raises girih.Error.
    """
    return compile(pattern)(q, k, v, **arguments)


# --- Merging partial results ----------------------------------------------------------------------


def combine(outs, lses, *, out=None, lse=None, layout="bshd", empty_lse=-math.inf, stream=None):
    """Merges the results of attention over parts of the keys into that over all of them: chunks of
    a ring, ranks of an all-gather, or splits.

        parts = [girih.attention(q, k, v, "causal", q_start=at, k_start=first, return_lse=True)
                 for first, k, v in chunks]
        out, lse = girih.combine(*zip(*parts))

    outs: 1 to 64 tensors of one shape, in the layout's order, fp16, bf16 or float32, not necessarily
      all of one type; the last dimension a multiple of 8.
    lses: for each its lse, float32, as attention() returns it. Rows where it is infinite, of either
      sign, have seen nothing in that part: they count as nothing.
    out: where to write; may be one of outs. Where not given it is made, of their type, float32
      where their types differ.
    lse: where to write; may be one of lses. Made where not given.
    empty_lse: lse of a row that no part has seen, -inf or inf; its out is 0.

    Returns (out, lse). Sums are float32. Raises girih.Error.
    """
    outs, lses = list(outs), list(lses)
    if len(outs) == 0 or len(outs) != len(lses):
        _refuse("%d outs and %d lses: every part has one of each" % (len(outs), len(lses)))
    torch = _torch_of(outs[0])
    device = outs[0].device if torch else None
    if torch and torch.is_grad_enabled() and any(t.requires_grad for t in (*outs, *lses)):
        _refuse("a part requires a gradient, and there is no backward pass: use torch.no_grad() or "
                "detach()")
    views = [_tensor("outs[%d]" % i, part, layout, device, True) for i, part in enumerate(outs)]
    batch, rows, heads = (views[0].shape[i] for i in ((0, 2, 1) if layout == "bhsd" else (0, 1, 2)))
    lse_shape = (heads, rows) if layout == "thd" else (batch, heads, rows)
    if (out is None or lse is None) and torch is None:
        _refuse("the parts are no PyTorch tensors: give out= and lse= to be written to")
    with _allocating(torch, stream):
        if out is None:
            same = all(part.dtype == outs[0].dtype for part in outs)
            out = torch.empty(outs[0].shape, dtype=outs[0].dtype if same else torch.float32,
                              device=device)
        if lse is None:
            lse = torch.empty(lse_shape, dtype=torch.float32, device=device)
    parts = (_Part * len(outs))(*(
        _Part(out=ctypes.pointer(view),
              lse=_array("lses[%d]" % i, part, "float32", lse_shape, device))
        for i, (view, part) in enumerate(zip(views, lses))))
    if stream is None and torch:
        stream = torch.cuda.current_stream(device)
    args = _CombineArgs(parts=parts, num_parts=len(outs), layout=_layout(layout),
                        out=ctypes.pointer(_tensor("out", out, layout, device, True)),
                        lse=_array("lse", lse, "float32", lse_shape, device), empty_lse=empty_lse,
                        stream=getattr(stream, "cuda_stream", stream))
    _in_context(torch, device, lambda: _library().girih_combine(args))
    return out, lse


def _in_device(device, call):
    """In the context of a device; PyTorch's current one where not given."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        torch = None  # the library says what is missing
    if torch is not None and device is None:
        device = torch.cuda.current_device()
    _in_context(torch, device, call)


def bind_combine(device=None, **options):
    """Compiles, or finds in the cache, and loads ahead of time what combine() launches, so that it
    can be captured into a CUDA graph. options: as compile() takes them, without a tile.
    device: PyTorch's current one where not given."""
    options = _options(**options)
    _in_device(device, lambda: _library().girih_bind_combine(options))


def _head_numbers(name, numbers, heads):
    """How many columns or distances each head is to have, as a list of ints; None gives None."""
    if numbers is None:
        return None
    found = list(numbers.tolist() if hasattr(numbers, "tolist") else numbers)
    if len(found) != heads:
        _refuse("%s has %d numbers: it must have one for each of %d query heads"
                % (name, len(found), heads))
    for head, number in enumerate(found):
        if not isinstance(number, int) or not 0 <= number < 2 ** 31:
            _refuse("%s[%d] is %r: it must be an int, 0 or more" % (name, head, number))
    return found


def estimate_slashes(q, k, num_vertical=None, num_slash=None, layout="bshd", softmax_scale=None,
                     lists=None, stream=None, head_vertical=None, head_slash=None):
    """SlashLists of the columns and distances that the last 64 queries see most, as MInference
    estimates them: the first 30 keys and the 100 least distances come before all others. For each
    sequence and query head.

    q, k: as attention() takes them, in layout "bshd" or "bhsd"; head_dim a multiple of 16.
    num_vertical, num_slash: how many, for all heads.
    head_vertical, head_slash: how many for each query head, of up to 256, in a list or tensor of
      ints (one on the GPU is waited for). Rows are then as wide as num_vertical and num_slash say,
      the largest of them where not given, and end with -1.
    softmax_scale: 1 / sqrt(head_dim) where not given.
    lists: SlashLists [batch, heads, num_vertical] and [batch, heads, num_slash] to write to, whose
      rows end with -1 where there are fewer keys. Where not given they are made, with rows no
      longer than there are keys.

    Does not wait for the GPU. Raises girih.Error.
    """
    torch = _torch_of(q)
    device = q.device if torch else None
    of_q, of_k = _tensor("q", q, layout, device), _tensor("k", k, layout, device)
    batch, heads, rows = (0, 1, 2) if layout == "bhsd" else (0, 2, 1)
    shape = (of_q.shape[batch], of_q.shape[heads])
    head_vertical = _head_numbers("head_vertical", head_vertical, shape[1])
    head_slash = _head_numbers("head_slash", head_slash, shape[1])
    widths = []
    for name, number, of_heads in (("vertical", num_vertical, head_vertical),
                                   ("slash", num_slash, head_slash)):
        if number is None and of_heads is None:
            _refuse("give num_%s, or head_%s for each head" % (name, name))
        widths.append(max(of_heads, default=0) if number is None else number)
        if of_heads and max(of_heads) > widths[-1]:
            head = of_heads.index(max(of_heads))
            _refuse("head_%s[%d] is %d: it must be from 0 to num_%s (%d)"
                    % (name, head, of_heads[head], name, widths[-1]))
    num_vertical, num_slash = widths
    if lists is None:
        if torch is None:
            _refuse("q is no PyTorch tensor: give lists= to be written to")
        num_vertical, num_slash = (max(min(number, of_k.shape[rows]), 0)
                                   for number in (num_vertical, num_slash))
        if head_vertical is not None:
            head_vertical = [min(number, num_vertical) for number in head_vertical]
        if head_slash is not None:
            head_slash = [min(number, num_slash) for number in head_slash]
        with _allocating(torch, stream):
            lists = SlashLists(*(torch.empty(shape + (number,), dtype=torch.int32, device=device)
                                 for number in (num_vertical, num_slash)))
    of_torch = stream is None and torch is not None  # then so is the scratch memory
    if of_torch:
        stream = torch.cuda.current_stream(device)
    args = _EstimateArgs(
        q=ctypes.pointer(of_q), k=ctypes.pointer(of_k), layout=_layout(layout),
        num_vertical=num_vertical, num_slash=num_slash,
        vertical=_array("lists.vertical", lists.vertical, "int32", shape + (num_vertical,), device),
        slash=_array("lists.slash", lists.slash, "int32", shape + (num_slash,), device),
        given=0 if softmax_scale is None else _GIVEN_SOFTMAX_SCALE,
        softmax_scale=softmax_scale or 0, stream=getattr(stream, "cuda_stream", stream),
        head_vertical=head_vertical and (_int32 * shape[1])(*head_vertical),
        head_slash=head_slash and (_int32 * shape[1])(*head_slash))
    if of_torch:
        size = _size_t()
        _in_context(torch, device,
                    lambda: _library().girih_estimate_workspace_bytes(args, ctypes.byref(size)))
        workspace = q.new_empty(size.value, dtype=torch.uint8)
        args.workspace, args.workspace_bytes = _memory(workspace, device)
    _in_context(torch, device, lambda: _library().girih_estimate_slashes(args))
    return lists


def bind_estimate(dtype, head_dim, device=None, **options):
    """Compiles, or finds in the cache, and loads ahead of time what estimate_slashes() launches for
    a type and width, so that it can be captured into a CUDA graph. options: as compile() takes
    them, without a tile. device: PyTorch's current one where not given."""
    options = _options(**options)
    dtype = _dtype("dtype", dtype)
    _in_device(device, lambda: _library().girih_bind_estimate(dtype, head_dim, options))


def estimate_blocks(q, k, *, top_k=None, threshold=None, stride=None, q_block=64, kv_block=64,
                    causal=True, keep_sink=False, layout="bshd", softmax_scale=None, mask=None,
                    stream=None):
    """Which blocks of keys each block of queries should see, for blocks(m, q=64, kv=64): a bool
    tensor [batch, num_heads, ceil(seqlen_q / q_block), ceil(seqlen_k / kv_block)].

        m = girih.estimate_blocks(q, k, top_k=100)                          # MInference
        m = girih.estimate_blocks(q, k, stride=16, threshold=0.9, q_block=128, kv_block=128,
                                  keep_sink=True)                           # XAttention

    stride: scores of a pair of blocks are sums along the antidiagonals of stride x stride tokens, 4,
      8 or 16; where not given, that of the blocks' mean query and mean key. Probabilities are those
      of the softmax over a row of scores, added up over the rows of a block of queries.
    top_k, threshold: one of them. Of each row of blocks the top_k with the largest probabilities are
      taken, or the fewest that have this share of them, above 0 and up to 1; of equal ones the
      lowest. Blocks on the diagonal, where it is causal, and the first, with keep_sink, come before
      all others.
    causal: blocks whose first key is behind the last query of the block are never taken; the last
      query stands at the last key.
    q, k: as attention() takes them, in layout "bshd" or "bhsd"; head_dim a multiple of 16. Query
      heads are looked at each by itself.
    softmax_scale: 1 / sqrt(head_dim) where not given.
    mask: bool or uint8, contiguous, to write to; made where not given.

    Does not wait for the GPU. Raises girih.Error.
    """
    torch = _torch_of(q)
    device = q.device if torch else None
    for name, value in (("top_k", top_k), ("threshold", threshold), ("stride", stride)):
        if value == 0:  # which the C interface takes for "not given"
            _refuse("%s is 0: %s" % (name, {"top_k": "it must be 1 or more",
                                            "threshold": "it must be above 0 and at most 1",
                                            "stride": "it must be 4, 8 or 16"}[name]))
    for name, value in (("q_block", q_block), ("kv_block", kv_block)):
        if value not in (64, 128):
            _refuse("%s is %s: it must be 64 or 128" % (name, value))
    of_q, of_k = _tensor("q", q, layout, device), _tensor("k", k, layout, device)
    batch, heads, rows = (0, 1, 2) if layout == "bhsd" else (0, 2, 1)
    shape = (of_q.shape[batch], of_q.shape[heads], -(-of_q.shape[rows] // q_block),
             -(-of_k.shape[rows] // kv_block))
    if mask is None:
        if torch is None:
            _refuse("q is no PyTorch tensor: give mask= to be written to")
        with _allocating(torch, stream):
            mask = torch.empty(shape, dtype=torch.bool, device=device)
    if stream is None and torch:
        stream = torch.cuda.current_stream(device)
    dtype = "bool" if _dtype_name(mask.dtype) == "bool" else "uint8"
    args = _EstimateBlocksArgs(
        q=ctypes.pointer(of_q), k=ctypes.pointer(of_k), layout=_layout(layout),
        mask=_array("mask", mask, dtype, shape, device), q_block=q_block, kv_block=kv_block,
        stride=stride or 0, top_k=top_k or 0, threshold=threshold or 0, not_causal=not causal,
        keep_sink=keep_sink, given=0 if softmax_scale is None else _GIVEN_SOFTMAX_SCALE,
        softmax_scale=softmax_scale or 0, stream=getattr(stream, "cuda_stream", stream))
    _in_context(torch, device, lambda: _library().girih_estimate_blocks(args))
    return mask


def bind_estimate_blocks(dtype, head_dim, device=None, **options):
    """Compiles, or finds in the cache, and loads ahead of time what estimate_blocks() launches for a
    type and width, whatever the blocks, stride and share, so that it can be captured into a CUDA
    graph. options: as compile() takes them, without a tile. device: PyTorch's current one where not
    given."""
    options = _options(**options)
    dtype = _dtype("dtype", dtype)
    _in_device(device, lambda: _library().girih_bind_estimate_blocks(dtype, head_dim, options))
