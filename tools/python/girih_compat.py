"""Functions of other sparse-attention libraries, by their names and with their arguments, on Girih's
kernels. Forward only: gradients, dropout and whatever else is not there raise girih.Error.

    from girih_compat import block_sparse_attn_func          # Block-Sparse-Attention
    from girih_compat import LocalStrideSparseAttention      # S2-Attention (dkernel)
    from girih_compat import block_sparse_flash_attn_func    # BSFA
    from girih_compat import flash_attn_func                 # FlashAttention-2

Each translates its arguments into a pattern's text (the functions named *_pattern, which need
neither a GPU nor PyTorch) and calls girih.attention. A head_dim that is no multiple of 16 is padded
with zeros. Rows that see nothing give 0, with lse = +inf where the library has it so.
"""

import itertools
import math
import sys
import weakref

import girih

try:
    from torch.nn import Module as _Module
except ImportError:  # patterns can be made without it
    _Module = object

__all__ = ["LocalStrideSparseAttention", "block_sparse_attn_func", "block_sparse_flash_attn_func",
           "block_sparse_pattern", "block_streaming_attn_func", "flash_attn_func",
           "flash_attn_qkvpacked_func", "flash_attn_varlen_func", "flash_pattern",
           "local_stride_pattern", "token_streaming_attn_func"]


def _refuse(message):
    raise girih.Error("invalid_argument", message)


def _unsupported(message):
    raise girih.Error("unsupported", message)


def _refuse_dropout(p):
    if p:
        _unsupported("dropout %g is not supported: it must be 0" % p)


# --- Patterns -------------------------------------------------------------------------------------


def _heads_pattern(masks):
    """heads(...) of a mask's text for each head; the mask itself where all have the same."""
    if len(set(masks)) == 1:
        return masks[0]
    sets = {}
    for mask, run in itertools.groupby(range(len(masks)), lambda head: masks[head]):
        run = list(run)
        text = "%d" % run[0] if len(run) == 1 else "%d-%d" % (run[0], run[-1])
        sets.setdefault(mask, []).append(text)
    return "heads(%s)" % ", ".join("%s: %s" % ("+".join(ranges), mask)
                                   for mask, ranges in sets.items())


def _streaming_mask(sink, local, is_causal, exact):
    if not exact:
        return ("block_streaming(sink=%d, local=%d%s)"  # of blocks of 128, the atom's own default
                % (sink, local, "" if is_causal else ", causal=false"))
    if local < 1:
        return "causal & sink(%d)" % sink
    if sink < 1:
        return "causal & window(left=%d)" % (local - 1)
    return "causal & (sink(%d) | window(left=%d))" % (sink, local - 1)


def block_sparse_pattern(head_mask_type, streaming_info=None, is_causal=False,
                         exact_streaming=False):
    """What Block-Sparse-Attention's arguments mean, as a pattern's text.

    head_mask_type: a number for each query head: 0 dense, -1 streaming, 1 the next plane of the
      block mask, which the pattern calls m; a larger n is plane n - 1.
    streaming_info: [sink, local] for each query head, one after the other: tokens with
      exact_streaming, which is causal, and else blocks of 128.

    Returns the text and for each head its plane, None where it has none.
    """
    types = [int(kind) for kind in head_mask_type]
    if not types:
        _refuse("head_mask_type is empty: it must have a number for each query head")
    if exact_streaming and not is_causal:
        _refuse("exact_streaming needs is_causal=True")
    if exact_streaming and streaming_info is None:
        _refuse("exact_streaming needs streaming_info")
    if streaming_info is not None:
        streaming_info = [int(number) for number in streaming_info]
        if len(streaming_info) != 2 * len(types):
            _refuse("streaming_info has %d numbers: %d heads need %d, a sink and a local one each"
                    % (len(streaming_info), len(types), 2 * len(types)))
    elif any(kind < 0 for kind in types):
        _refuse("head_mask_type has -1, but there is no streaming_info")

    masks, planes, ones = [], [], 0
    for head, kind in enumerate(types):
        if kind == 0:
            masks.append("causal" if is_causal else "dense")
        elif kind < 0:
            sink, local = streaming_info[2 * head:2 * head + 2]
            if sink < 0 or local < 0:
                _refuse("streaming_info of head %d is [%d, %d]: both must be 0 or more"
                        % (head, sink, local))
            masks.append(_streaming_mask(sink, local, is_causal, exact_streaming))
        else:
            masks.append("causal & blocks(m, q=128, kv=128)" if is_causal else
                         "blocks(m, q=128, kv=128)")
        ones += kind == 1
        planes.append(None if kind <= 0 else (ones if kind == 1 else kind) - 1)
    return _heads_pattern(masks), planes


def flash_pattern(causal=False, window_size=(-1, -1), softcap=0.0, alibi=False):
    """What FlashAttention's arguments mean, as a pattern's text. Distances of the window are
    inclusive, and below 0 unbounded; a causal one ends at the diagonal, and one that ends there is
    causal, which decides what prune never skips. alibi: the slopes are the input alibi_slopes."""
    left, right = (max(int(size), -1) for size in window_size)
    if causal or right == 0:
        text = "causal" if left < 0 else "causal & window(left=%d)" % left
    else:
        sizes = ["%s=%d" % pair for pair in (("left", left), ("right", right)) if pair[1] >= 0]
        text = "window(%s)" % ", ".join(sizes) if sizes else "dense"
    if not 0 <= softcap < math.inf:
        _refuse("softcap is %s: it must be 0, which is none, or a positive number" % softcap)
    modifiers = ["softcap(%s)" % repr(float(softcap))] if softcap > 0 else []
    modifiers += ["alibi(alibi_slopes)"] if alibi else []
    return text + (" with " + ", ".join(modifiers) if modifiers else "")


def _check_positive(name, count):
    if count != int(count) or count < 1:
        _refuse("%s is %s: it must be a whole number, 1 or more" % (name, count))


def local_stride_pattern(num_heads, block_size, local_blocks, vert_stride, *, homo_head=False,
                         num_dense_heads=0, num_kv_heads=None, head_sliding_offset=0, causal=True,
                         max_seq_len=None, query_heads=None):
    """What the arguments of S2-Attention's LocalStrideSparseAttention mean, as a pattern's text.
    Of a tensor-parallel rank it is the whole model's. Without causality strides count from the
    edges of the local blocks, and heads are alike.

    With num_kv_heads the text counts KV heads, so that K and V must have so many (of a rank, its
    part). query_heads=(first, end) gives a text for these query heads alone, counted from 0, which
    names the mask of each: right for K and V with any heads, repeated ones say."""
    several = isinstance(local_blocks, (tuple, list))
    if several and len(local_blocks) != 2:
        _refuse("local_blocks has %d numbers: it must be one, or a pair" % len(local_blocks))
    for name, count in (("num_heads", num_heads), ("block_size", block_size),
                        ("vert_stride", vert_stride),
                        ("num_kv_heads", 1 if num_kv_heads is None else num_kv_heads)):
        _check_positive(name, count)
    for count in local_blocks if several else (local_blocks,):
        if count != int(count):
            _refuse("local_blocks is %s: it must be whole" % (local_blocks,))
    local = "(%d, %d)" % tuple(local_blocks) if several else "%d" % local_blocks
    if num_kv_heads is not None and num_heads % num_kv_heads != 0:
        _refuse("num_heads %d is not a multiple of num_kv_heads %d" % (num_heads, num_kv_heads))
    if homo_head and num_dense_heads:
        _refuse("num_dense_heads is %d: with homo_head all heads are alike" % num_dense_heads)
    if not causal and max_seq_len is not None:  # no two blocks are farther apart
        vert_stride = min(vert_stride, max(1, -(-max_seq_len // block_size)))
    arguments = ["local=" + local, "stride=%d" % vert_stride, "block=%d" % block_size]
    if query_heads is not None:
        count, step = num_kv_heads or num_heads, max(1, vert_stride // num_heads)
        group = num_heads // count

        def mask(owner):  # of the pattern's heads the one that a query head belongs to
            if owner >= count - num_dense_heads:
                return "causal" if causal else "dense"
            if not causal:
                return "strided(%s, relative=true)" % ", ".join(arguments)
            moved = (0 if homo_head else owner * step) + head_sliding_offset
            offset = ["offset=%d" % (moved % vert_stride)] if moved % vert_stride else []
            return "causal & strided(%s, homo=true)" % ", ".join(arguments + offset)
        return _heads_pattern([mask(head // group) for head in range(*query_heads)])
    if causal and head_sliding_offset:
        arguments.append("offset=%d" % head_sliding_offset)
    if num_kv_heads is not None and num_kv_heads != num_heads:
        arguments.append("heads=kv")
    if causal and homo_head:
        arguments.append("homo=true")
    if num_dense_heads:
        arguments.append("dense_heads=%d" % num_dense_heads)
    if not causal:
        return "strided(%s, relative=true)" % ", ".join(arguments)
    return "causal & strided(%s)" % ", ".join(arguments)


# --- Tensors --------------------------------------------------------------------------------------

_seen = {}  # id of a tensor: a weak reference to it, its version, and what it held


def _host_values(name, values):
    """The numbers of a list or tensor. Those of a tensor on a GPU are copied once, which waits for
    it, and known from then on, as long as the same tensor comes again and is not written to.

    A tensor made under torch.inference_mode() does not tell when it is written to, so it is copied,
    and waited for, in every call; only a capture, which cannot wait, takes its last known numbers:
    it must not have been written to since the call before."""
    if not getattr(values, "is_cuda", False):
        values = values.reshape(-1).tolist() if hasattr(values, "reshape") else list(values)
        return values
    try:
        version = values._version
    except RuntimeError:  # an inference tensor has none: a write to it would not be noticed
        version = None
    key = id(values)
    known = _seen.get(key)
    if known is not None and (known[0]() is not values or known[1] != version):
        known = None
    if known is not None and version is not None:
        return known[2]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_current_stream_capturing():
        if known is not None:
            return known[2]
        _refuse("%s is on the GPU and its numbers are not known yet, which cannot be captured into "
                "a graph: call once with the same tensor before the capture begins, or give a list"
                % name)
    numbers = values.reshape(-1).tolist()
    _seen[key] = (weakref.ref(values, lambda _: _seen.pop(key, None)), version, numbers)
    return numbers


def _planes_of_heads(blockmask, planes):
    """The block mask with a plane for each query head, or one for all. Nothing waits for the GPU."""
    if not _dtype_is_byte(blockmask):
        blockmask = blockmask != 0
    if blockmask.stride()[-1] != 1:
        blockmask = blockmask.contiguous()
    used = {plane for plane in planes if plane is not None}
    if len(used) == 1:
        plane = used.pop()
        return blockmask[:, plane:plane + 1]
    if planes == list(range(blockmask.shape[1])):
        return blockmask
    import torch
    pieces, head = [], 0
    while head < len(planes):
        end = head + 1
        if planes[head] is None:  # its plane is never looked at
            while end < len(planes) and planes[end] is None:
                end += 1
            pieces.append(blockmask[:, :1].expand(-1, end - head, -1, -1))
        else:
            while end < len(planes) and planes[end] == planes[head] + end - head:
                end += 1
            pieces.append(blockmask[:, planes[head]:planes[head] + end - head])
        head = end
    return torch.cat(pieces, dim=1)


def _dtype_is_byte(tensor):
    return str(tensor.dtype).rsplit(".", 1)[-1] in ("bool", "uint8")


def _attend(call, q, k, v, softmax_scale=None, return_lse=False, **arguments):
    """call(q, k, v, ...), with heads padded to a multiple of 16. Returns out and lse or None."""
    width, width_v = q.shape[-1], v.shape[-1]
    scale = width ** -0.5 if softmax_scale is None else softmax_scale
    q, k, v = (x if x.stride()[-1] == 1 else x.contiguous() for x in (q, k, v))
    if width % 16 != 0 or width_v % 16 != 0:
        from torch.nn.functional import pad
        q, k, v = (pad(x, (0, -x.shape[-1] % 16)) for x in (q, k, v))
    result = call(q, k, v, softmax_scale=scale, return_lse=return_lse, **arguments)
    out, lse = result if isinstance(result, tuple) else (result, None)
    return out[..., :width_v], lse


# --- Block-Sparse-Attention -----------------------------------------------------------------------


def _padded_lse(lse, cu_seqlens_q, max_seqlen_q):
    """[heads, total_q] -> [batch, heads, max_seqlen_q], +inf after a sequence's last row."""
    import torch
    starts = cu_seqlens_q[:-1, None].long()
    rows = starts + torch.arange(max_seqlen_q, device=lse.device)
    exists = rows < cu_seqlens_q[1:, None]
    if lse.shape[1] == 0:
        return lse.new_full((rows.shape[0], lse.shape[0], max_seqlen_q), math.inf)
    padded = lse[:, rows.clamp(max=lse.shape[1] - 1)].transpose(0, 1)
    return padded.masked_fill(~exists[:, None], math.inf).contiguous()


def _block_sparse(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info,
                  base_blockmask, max_seqlen_q, max_seqlen_k, p_dropout, softmax_scale, is_causal,
                  exact_streaming, return_attn_probs):
    _refuse_dropout(p_dropout)
    types = _host_values("head_mask_type", head_mask_type)
    if len(types) != q.shape[1]:
        _refuse("head_mask_type has %d numbers: q has %d heads" % (len(types), q.shape[1]))
    if streaming_info is not None:
        streaming_info = _host_values("streaming_info", streaming_info)
    text, planes = block_sparse_pattern(types, streaming_info, is_causal, exact_streaming)

    inputs = {}
    if any(plane is not None for plane in planes):
        if base_blockmask is None:
            _refuse("head_mask_type has block-sparse heads, but there is no base_blockmask")
        ones, available = sum(kind == 1 for kind in types), base_blockmask.shape[1]
        most = max(plane for plane in planes if plane is not None)
        if available != ones or most >= available:
            _refuse("base_blockmask has %d planes: %d heads of head_mask_type are 1, and the last "
                    "plane asked for is number %d" % (available, ones, most))
        inputs["m"] = _planes_of_heads(base_blockmask, planes)
    out, lse = _attend(girih.compile(text), q, k, v, softmax_scale, return_attn_probs, layout="thd",
                       cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k,
                       max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k, inputs=inputs,
                       empty_lse=math.inf)
    if not return_attn_probs:
        return out
    return out, _padded_lse(lse, cu_seqlens_q, max_seqlen_q), q.new_empty(0)


def block_sparse_attn_func(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info,
                           base_blockmask, max_seqlen_q_, max_seqlen_k_, p_dropout,
                           deterministic=False, softmax_scale=None, is_causal=False,
                           exact_streaming=False, return_attn_probs=False):
    """Block-Sparse-Attention's function: dense, streaming and block-sparse heads over packed
    sequences, q [total_q, num_heads, head_dim].

    head_mask_type, streaming_info: see block_sparse_pattern. Lists and tensors on the CPU never
      wait for the GPU; a tensor on the GPU is waited for when it is first seen and after it was
      written to, and one made under torch.inference_mode(), which does not tell, in every call. A
      capture into a graph takes the numbers of the last call before it.
    base_blockmask: [batch, block-sparse heads, ceil(max_seqlen_q / 128), ceil(max_seqlen_k / 128)],
      bool or numbers, where not 0 is visible.

    Returns out, with return_attn_probs (out, lse [batch, num_heads, max_seqlen_q], an empty
    tensor). The result is always deterministic.
    """
    return _block_sparse(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info,
                         base_blockmask, max_seqlen_q_, max_seqlen_k_, p_dropout, softmax_scale,
                         is_causal, exact_streaming, return_attn_probs)


def token_streaming_attn_func(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info,
                              max_seqlen_q_, max_seqlen_k_, deterministic=False, softmax_scale=None,
                              return_attn_probs=False):
    """Block-Sparse-Attention's function: dense and streaming heads, causal, with sinks and local
    keys counted in tokens, the query's own among the local ones."""
    return _block_sparse(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info, None,
                         max_seqlen_q_, max_seqlen_k_, 0.0, softmax_scale, True, True,
                         return_attn_probs)


def block_streaming_attn_func(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info,
                              max_seqlen_q_, max_seqlen_k_, p_dropout, deterministic=False,
                              softmax_scale=None, is_causal=True, return_attn_probs=False):
    """Block-Sparse-Attention's function: dense and streaming heads, with sinks and local keys
    counted in blocks of 128."""
    return _block_sparse(q, k, v, cu_seqlens_q, cu_seqlens_k, head_mask_type, streaming_info, None,
                         max_seqlen_q_, max_seqlen_k_, p_dropout, softmax_scale, is_causal, False,
                         return_attn_probs)


# --- S2-Attention ---------------------------------------------------------------------------------


class LocalStrideSparseAttention(_Module):
    """S2-Attention's module (dkernel): local blocks, and of the others every vert_stride-th, moved
    from head to head. Nothing is built: max_seq_len only limits the keys.

    active_head_range: the query heads of this rank, (first, end), also where num_kv_heads is given.
    num_kv_heads: query heads of one KV head see the same. K and V have so many heads (a rank its
      part), or more, as when they are repeated: up to one for each query head.
    seq_dim: 1, the default, for [batch, seqlen, heads, head_dim], 2 for [batch, heads, seqlen,
      head_dim]. out: a tensor to write to. block_m, block_n and other keywords of dkernel's kernels
      are not needed.
    """

    def __init__(self, num_heads, max_seq_len, block_size, local_blocks, vert_stride, *,
                 homo_head=False, num_dense_heads=0, num_kv_heads=None, active_head_range=None,
                 head_sliding_offset=0, block_m=None, block_n=None, causal=True, seq_dim=None,
                 out=None, d_splits=None, inference=None):
        super().__init__()
        if seq_dim not in (None, 1, 2):
            _refuse("seq_dim %r is not 1 or 2" % (seq_dim,))
        self.layout = "bhsd" if seq_dim == 2 else "bshd"
        _check_positive("block_size", block_size)
        _check_positive("max_seq_len", max_seq_len)
        unit = math.lcm(block_size, block_m or 1, block_n or 1, 64)
        self.max_seq_len = -(-max_seq_len // unit) * unit
        self.pattern = local_stride_pattern(
            num_heads, block_size, local_blocks, vert_stride, homo_head=homo_head,
            num_dense_heads=num_dense_heads, num_kv_heads=num_kv_heads,
            head_sliding_offset=head_sliding_offset, causal=causal, max_seq_len=self.max_seq_len)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.causal, self.out = causal, out
        first, end = 0, num_heads
        if active_head_range is not None and not homo_head:
            first, end = active_head_range
            if not 0 <= first < end <= num_heads:
                _refuse("active_head_range (%d, %d) is not within the %d query heads, in which it "
                        "counts, also where num_kv_heads is given" % (first, end, num_heads))
        elif active_head_range is not None:
            end = None  # as many as there are: all are alike
        self.head_offset = first
        self.rank_heads = None if end is None else end - first
        self.group = num_heads // (num_kv_heads or num_heads)
        if self.rank_heads is None:
            return
        self.query_heads_pattern = local_stride_pattern(
            num_heads, block_size, local_blocks, vert_stride, homo_head=homo_head,
            num_dense_heads=num_dense_heads, num_kv_heads=num_kv_heads,
            head_sliding_offset=head_sliding_offset, causal=causal, max_seq_len=self.max_seq_len,
            query_heads=(first, end))
        # Heads that K may have, so that none of them is shared by query heads of two groups.
        counts = [count for count in range(1, end - first + 1) if (end - first) % count == 0]
        if num_kv_heads is not None:
            counts = [count for count in counts if self._keeps_groups((end - first) // count)]
        self.kv_heads = counts

    def _keeps_groups(self, shared):
        """Whether runs of so many of the rank's query heads, which share a head of K, lie each in
        one KV group of the model."""
        return all(head // self.group == (head + shared - 1) // self.group
                   for head in range(self.head_offset, self.head_offset + self.rank_heads, shared))

    def _check(self, q, k, heads_at, rows_at):
        heads, heads_kv = q.shape[heads_at], k.shape[heads_at]
        if self.rank_heads not in (None, heads):
            _refuse("q has %d heads: this module is for %d" % (heads, self.rank_heads))
        if self.rank_heads is not None and heads_kv not in self.kv_heads:
            of_groups = " in groups of %d" % self.group if self.num_kv_heads is not None else ""
            _refuse("k has %d heads: with query heads %d to %d%s it must have %s"
                    % (heads_kv, self.head_offset, self.head_offset + heads - 1, of_groups,
                       " or ".join(str(count) for count in self.kv_heads)))
        if rows_at is not None and k.shape[rows_at] > self.max_seq_len:
            _refuse("k has %d keys: max_seq_len is %d" % (k.shape[rows_at], self.max_seq_len))

    def _call(self, q, k, v, layout, heads_at):
        """What launches: a rank's kernel where the heads are not all of the model's, and the
        pattern of each query head where K's heads are not the pattern's."""
        if self.rank_heads is None:
            return girih.compile(self.pattern)
        shared = self.rank_heads // k.shape[heads_at]
        if ((self.num_kv_heads is not None and shared != self.group)
                or self.head_offset % shared or self.num_heads % shared):
            return girih.compile(self.query_heads_pattern)
        program = girih.compile(self.pattern)
        if self.rank_heads == self.num_heads:
            return program
        width, width_v = (-(-x.shape[-1] // 16) * 16 for x in (q, v))
        return program.bind(dtype=q.dtype, head_dim=width, head_dim_v=width_v, layout=layout,
                            num_heads=q.shape[heads_at], num_heads_kv=k.shape[heads_at],
                            head_offset=self.head_offset, num_heads_total=self.num_heads,
                            device=getattr(q, "device", None))

    def forward(self, q, k=None, v=None, sm_scale=None, *, cu_seqlen_k=None, cu_seqlen_q=None,
                left_paddings=None, seqlens=None, return_lse=False, split_qkv=None):
        """q, k, v: 4-D, by seq_dim, or packed [tokens, heads, head_dim] with cu_seqlen_k and, unless
        there is one query a sequence or as many as keys, cu_seqlen_q.
        left_paddings, seqlens: [batch], 4-D: so many first keys do not exist, and behind them so
          many do, all where not given; with as many queries as keys or one. Rows of padding give 0.
        split_qkv: what makes q, k and v of q, where k and v are not given, or k and v of k, where v
          is not: a function that returns tensors, views say.
        Returns out, or (out, lse [batch, heads, seqlen_q]) with return_lse.
        """
        if v is None:
            if split_qkv is None:
                _refuse("v is not given: where q, k and v or k and v are packed into one tensor, "
                        "split_qkv must be the function that splits it")
            if k is None:
                q, k, v = split_qkv(q)
            else:
                k, v = split_qkv(k)
        elif k is None:
            _refuse("v is given without k: give both, or neither and split_qkv")
        arguments = {"out": self.out} if self.out is not None else {}
        if not self.causal:
            arguments["q_start"] = 0
        if len(q.shape) == 3:
            return self._packed(q, k, v, sm_scale, cu_seqlen_q, cu_seqlen_k, left_paddings, seqlens,
                                return_lse, arguments)
        heads_at, rows_at = (1, 2) if self.layout == "bhsd" else (2, 1)
        self._check(q, k, heads_at, rows_at)
        if cu_seqlen_k is not None or cu_seqlen_q is not None:
            _refuse("cu_seqlen_k and cu_seqlen_q are for packed tensors of 3 dimensions")
        rows, keys = q.shape[rows_at], k.shape[rows_at]
        padded = left_paddings is not None or seqlens is not None
        if padded and rows not in (1, keys):
            _refuse("%d queries and %d keys: with paddings there is one query, or as many as keys"
                    % (rows, keys))
        if padded and not self.causal:
            _unsupported("paddings need causal=True")
        if left_paddings is not None and seqlens is not None and rows > 1:
            return self._padded_twice(q, k, v, sm_scale, left_paddings, seqlens, return_lse)
        if left_paddings is not None:
            arguments["leftpad_k"] = left_paddings.int()
        if seqlens is not None:  # which count from the first key that exists
            ends = seqlens if left_paddings is None else left_paddings + seqlens
            arguments["seqused_k"] = ends.int()
            if rows == keys and left_paddings is None:
                arguments["q_start"] = 0  # padding follows the queries as it does the keys
        call = self._call(q, k, v, self.layout, heads_at)
        out, lse = _attend(call, q, k, v, sm_scale or None, return_lse, layout=self.layout,
                           **arguments)
        if seqlens is not None and rows == keys and rows > 1:
            import torch
            padding = torch.arange(rows, device=q.device) >= seqlens[:, None]  # [batch, rows]
            shape = [q.shape[0], 1, 1, 1]
            shape[rows_at] = rows
            out.masked_fill_(padding.reshape(shape), 0)
        return (out, lse) if return_lse else out

    if _Module is object:
        __call__ = forward

    def _padded_twice(self, q, k, v, sm_scale, left_paddings, seqlens, return_lse):
        """As many queries as keys, with padding on both sides. No q_start is right for all
        sequences, so they are packed ones, and what lies between two of them is another, whose
        results are thrown away."""
        import torch
        if self.layout == "bhsd":
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        batch, rows = q.shape[:2]
        left, right = (x.long().clamp(max=rows) for x in (left_paddings, left_paddings + seqlens))
        edges = torch.stack((left, right), dim=1) + rows * torch.arange(
            batch, device=q.device)[:, None]
        cu = torch.nn.functional.pad(edges.flatten(), (1, 1))
        cu[-1:].fill_(batch * rows)
        cu = cu.int()
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        out, lse = _attend(self._call(q, k, v, "thd", 1), q, k, v, sm_scale or None, return_lse,
                           layout="thd", cu_seqlens_q=cu, cu_seqlens_k=cu, max_seqlen_q=rows,
                           max_seqlen_k=rows)
        row = torch.arange(rows, device=q.device)
        padding = (row < left[:, None]) | (row >= right[:, None])  # [batch, rows]
        out = out.unflatten(0, (batch, rows)).masked_fill_(padding[:, :, None, None], 0)
        if self.layout == "bhsd":
            out = out.transpose(1, 2)
        if self.out is not None:
            out = self.out.copy_(out)
        if not return_lse:
            return out
        lse = lse.unflatten(1, (batch, rows)).transpose(0, 1)
        return out, lse.masked_fill(padding[:, None], -math.inf).contiguous()

    def _packed(self, q, k, v, sm_scale, cu_seqlen_q, cu_seqlen_k, left_paddings, seqlens,
                return_lse, arguments):
        if cu_seqlen_k is None or left_paddings is not None or seqlens is not None:
            _refuse("packed tensors of 3 dimensions need cu_seqlen_k, and have no left_paddings or "
                    "seqlens")
        self._check(q, k, 1, None)
        batch, longest_q = cu_seqlen_k.shape[0] - 1, q.shape[0]
        if cu_seqlen_q is None and q.shape[0] == batch:  # a query for each sequence
            import torch
            cu_seqlen_q = torch.arange(batch + 1, device=q.device, dtype=torch.int32)
            longest_q = 1
        elif cu_seqlen_q is None and q.shape[0] == k.shape[0]:
            cu_seqlen_q = cu_seqlen_k
        elif cu_seqlen_q is None:
            _refuse("q has %d rows: without cu_seqlen_q there is one a sequence (%d), or as many as "
                    "keys (%d)" % (q.shape[0], batch, k.shape[0]))
        call = self._call(q, k, v, "thd", 1)
        out, lse = _attend(call, q, k, v, sm_scale or None, return_lse, layout="thd",
                           cu_seqlens_q=cu_seqlen_q.int(), cu_seqlens_k=cu_seqlen_k.int(),
                           max_seqlen_q=min(longest_q, self.max_seq_len),
                           max_seqlen_k=min(k.shape[0], self.max_seq_len), **arguments)
        return (out, lse) if return_lse else out


# --- FlashAttention and BSFA ----------------------------------------------------------------------


def _slopes_by_position(lse, slopes, seqlen_q, seqlen_k, cu_seqlens_q, cu_seqlens_k):
    """What FlashAttention-2's lse is under a causal ALiBi: it adds slope * key where we take off
    slope * (position - key), which is the same softmax, and an lse larger by slope * position."""
    import torch
    slopes = slopes if slopes.dim() == 2 else slopes[None]  # [batch or 1, heads]
    if cu_seqlens_q is None:  # [batch, heads, seqlen_q]
        position = torch.arange(seqlen_q, device=lse.device) + (seqlen_k - seqlen_q)
        return lse + slopes[:, :, None] * position
    ends, count = cu_seqlens_q[1:].contiguous(), cu_seqlens_q.shape[0] - 1
    row = torch.arange(lse.shape[1], device=lse.device, dtype=ends.dtype)  # of all sequences
    sequence = torch.searchsorted(ends, row, right=True).clamp(max=count - 1)
    position = row - ends[sequence] + (cu_seqlens_k[1:] - cu_seqlens_k[:-1])[sequence]
    return lse + slopes.expand(count, -1)[sequence].transpose(0, 1) * position


def _flash(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
           return_attn_probs, prune="", **arguments):
    _refuse_dropout(dropout_p)
    if alibi_slopes is not None:
        arguments.setdefault("inputs", {})["alibi_slopes"] = alibi_slopes
    pattern = flash_pattern(causal, window_size, softcap, alibi_slopes is not None)
    if prune:
        pattern += (", " if " with " in pattern else " with ") + prune
    out, lse = _attend(girih.compile(pattern), q, k, v, softmax_scale, return_attn_probs,
                       empty_lse=math.inf, **arguments)
    if not return_attn_probs:
        return out
    cu_q, cu_k = arguments.get("cu_seqlens_q"), arguments.get("cu_seqlens_k")
    seqlen_q, seqlen_k = ((q.shape[1], k.shape[1]) if cu_q is None else
                          (arguments["max_seqlen_q"], arguments["max_seqlen_k"]))
    left, right = window_size
    if alibi_slopes is not None and not 0 <= left < seqlen_k and (causal or right == 0):
        lse = _slopes_by_position(lse, alibi_slopes, seqlen_q, seqlen_k, cu_q, cu_k)
    return out, lse, q.new_empty(0)


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                    softcap=0.0, alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """FlashAttention's function: q [batch, seqlen_q, num_heads, head_dim], k and v with as many
    heads or a divisor; alibi_slopes float32 [num_heads] or [batch, num_heads]. Returns out, with
    return_attn_probs (out, lse [batch, num_heads, seqlen_q], an empty tensor).

    As the library's own, lse under a causal ALiBi without a window counts from the first key: it is
    larger by slope * position than girih.attention's."""
    return _flash(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                  return_attn_probs)


def flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
                           dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1),
                           softcap=0.0, alibi_slopes=None, deterministic=False,
                           return_attn_probs=False, block_table=None):
    """FlashAttention's function for packed sequences: q [total_q, num_heads, head_dim]. Returns
    out, with return_attn_probs (out, lse [num_heads, total_q], an empty tensor)."""
    if block_table is not None:
        _unsupported("block_table is not supported: k and v must not be paged")
    return _flash(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                  return_attn_probs, layout="thd", cu_seqlens_q=cu_seqlens_q,
                  cu_seqlens_k=cu_seqlens_k, max_seqlen_q=max_seqlen_q, max_seqlen_k=max_seqlen_k)


def flash_attn_qkvpacked_func(qkv, dropout_p=0.0, softmax_scale=None, causal=False,
                              window_size=(-1, -1), softcap=0.0, alibi_slopes=None,
                              deterministic=False, return_attn_probs=False):
    """FlashAttention's function for qkv [batch, seqlen, 3, num_heads, head_dim]."""
    return _flash(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], dropout_p, softmax_scale, causal,
                  window_size, softcap, alibi_slopes, return_attn_probs)


def block_sparse_flash_attn_func(q, k, v, block_sparse_threshold, dropout_p=0.0, softmax_scale=None,
                                 causal=False, window_size=(-1, -1), softcap=0.0,
                                 alibi_slopes=None, deterministic=False, return_attn_probs=False,
                                 block_size=128, *, kv=64):
    """BSFA's function.

    block_sparse_threshold: float32 [num_heads, max_blocks], or None or -inf, which keep every
      block. Columns go by position, 128 queries each, which is BSFA's own block index where there
      are as many queries as keys.
    kv: keys of the tiles that it was calibrated for, 64, which BSFA's kernel has, or 128.

    Causality is aligned bottom-right by the true lengths; block_size, to which BSFA pads, does not
    matter. Never skipped are the tiles at the diagonal, or, where the launch is neither causal nor
    has a window that ends at the diagonal, (left, 0), the last one.
    """
    arguments = {}
    if hasattr(block_sparse_threshold, "shape"):
        if len(block_sparse_threshold.shape) != 2 or block_sparse_threshold.shape[0] != q.shape[2]:
            _refuse("block_sparse_threshold has shape %s: it must be [num_heads, max_blocks], here "
                    "with %d heads" % (list(block_sparse_threshold.shape), q.shape[2]))
        arguments = {"prune": "prune(t, kv=%d)" % kv,
                     "inputs": {"t": girih.Thresholds(block_sparse_threshold, kv)}}
    elif block_sparse_threshold is not None and block_sparse_threshold != -math.inf:
        _refuse("block_sparse_threshold is %s: it must be a tensor [num_heads, max_blocks], None or "
                "-inf" % (block_sparse_threshold,))
    return _flash(q, k, v, dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes,
                  return_attn_probs, **arguments)
