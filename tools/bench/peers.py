#!/usr/bin/env python3
"""Girih beside its peers on one GPU, in one process: cuDNN and FlashAttention-2 through PyTorch's
scaled_dot_product_attention, and FlexAttention, compiled, with explicit block lists.

    tools/bench/peers.py --quick
    tools/bench/peers.py --rows F1,F4,fit --json peers.json

Rows, all bf16, batch 1, random normal inputs; "own dense" is Girih on a full (F8, F9, prune: causal)
mask of the same shape, timed before and after the others in each round:

  F1, F2  dense causal, dense full, against cuDNN
  F3      other head dims, full and causal, against cuDNN; a limit holds for either mask
  F4, F5  random 128 x 128 blocks, a list a head: over own dense, against FlexAttention; also below
          the diagonal of a causal mask, which has no limits
  F6      64 x 64 blocks: a list a head, one for 4 heads that share K and V; key blocks of 32 and 16
  F7      128 x 128 blocks, short lists
  F8      half of the heads causal, half streaming: time over own dense causal
  F9      causal windows: TFLOP/s over own dense causal
  F10     MInference's vertical-slash heads, three layers of its Llama-3.1-8B configuration: time
          over own dense causal times the visible share; of the time that this saves, what the
          estimate of their lists and building them takes
  F11     the portable kernel
  F12     one causal head beside 31 streaming ones: time over what its tiles take in a dense launch
  prune   key tiles of 64 and 128 below a threshold, as many in a hundred: time over own dense causal
  fit     time = a + b * k over the number k of blocks in every row

Every output is compared, Girih's poisoned with NaN before: sampled rows of each head with a float64
reference, and all rows with each peer's. Compared things are timed in turn, one of each a round:
medians of 15 CUDA-event timings, of 30 where one takes less than 1 ms, the L2 cache flushed before
each. TFLOP/s count visible elements. cuDNN and FA2 get tensors in the layout that each is faster
with, FlexAttention contiguous [batch, heads, seqlen, dim].

Needs PyTorch and libgirih.so (found as tools/python/girih.py says). Exits with 1 if an output
differs or a Girih kernel fails, not if a limit is missed.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

try:
    import torch
except ImportError:
    torch = None  # --help works without

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import girih  # noqa: E402

TILE = 128  # rows and keys of the tiles that F12 and the fit count
TOLERANCE = 0.02  # of |actual - expected| / |expected| of a row; bf16 rounding gives 0.005
STREAMING = "causal & (sink(64) | window(left=255))"


# --- Masks: the pattern's text, and what it should mean, written a second time --------------------


class Mask:
    """pattern, inputs: for Girih. visible(head, rows): bool [rows, keys]. count: of all heads."""

    def __init__(self, pattern, visible, count, inputs=None, grid=None):
        self.pattern, self.visible, self.count = pattern, visible, count
        self.inputs, self.grid = inputs, grid
        self.causal = "causal" in pattern


SEES = {  # what a row sees
    "dense": lambda row, key: (row >= 0) & (key >= 0),
    "causal": lambda row, key: key <= row,
    STREAMING: lambda row, key: (key <= row) & ((key < 64) | (key >= row - 255)),
}


def closed_form(pattern, seqlen, *classes):
    """classes: (number of heads, what a row of them sees), in the order of heads."""
    keys = torch.arange(seqlen, device="cuda", dtype=torch.int32)
    count = sum(heads * sum(sees(rows[:, None], keys).sum().item() for rows in keys.split(1024))
                for heads, sees in classes)

    def visible(head, rows):
        for heads, sees in classes:
            if head < heads:
                return sees(rows.int()[:, None], keys)
            head -= heads

    return Mask(pattern, visible, count)


def tiles_visited(seqlen, sees):
    """Tiles of one head in which anything is visible."""
    keys = torch.arange(seqlen, device="cuda", dtype=torch.int32)
    return sum(sees(rows[:, None], keys).view(TILE, -1, TILE).any(2).any(0).sum().item()
               for rows in keys.split(TILE))


def block_lists(grid, heads, q=128, kv=128, below_diagonal=False):
    """grid: bool [planes, query blocks, key blocks]; heads / planes neighbours share a plane."""
    pattern = "blocks(m, q=%d, kv=%d)" % (q, kv)
    count = grid.sum().item() * q * kv
    if below_diagonal:
        pattern = "causal & " + pattern
        count -= grid.shape[0] * grid.shape[1] * q * (q - 1) // 2  # the diagonal, always in grid
    planes, rows, columns = grid.shape
    ends = grid.sum(2).flatten().cumsum(0).view(planes, rows)
    starts = torch.cat([ends.new_zeros(1), ends[:-1, -1]])
    indptr = torch.cat([starts[:, None], ends], 1).int().contiguous()[None]
    indices = grid.nonzero()[:, 2].int().contiguous()

    def visible(head, rows):
        seen = grid[head * planes // heads][rows // q].repeat_interleave(kv, 1)
        keys = torch.arange(seen.shape[1], device="cuda")
        return seen & (keys <= rows[:, None]) if below_diagonal else seen

    return Mask(pattern, visible, count * heads // planes, grid=grid,
                inputs={"m": girih.BlockList(indptr, indices, columns)})


def slash_lists(seqlen, num_vertical, num_slash):
    """Keys and distances: the first and nearest ones, then uniform and log-uniform ones."""
    vertical = torch.randint(seqlen, (num_vertical,), device="cuda", dtype=torch.int32)
    exponent = torch.rand(num_slash, device="cuda", dtype=torch.float64)
    slash = (100 * (seqlen / 100) ** exponent).int()
    for entries, first in ((vertical, 30), (slash, 100)):
        entries[:first] = torch.arange(min(first, len(entries)), device="cuda")
    return vertical, slash.clamp_(max=seqlen - 1)


def slash_blocks(seqlen, vertical, slash):
    """bool [blocks of 64 rows, keys]: what the last of a block's rows sees, and keys behind it."""
    first = torch.arange(0, seqlen, 64, device="cuda")  # of each block's rows
    edges = torch.zeros(len(first), seqlen + 129, device="cuda", dtype=torch.int8)
    ends = torch.full_like(first, -1000)
    for distance in sorted({0, *slash.tolist()}, reverse=True):
        end = (first + 64 - distance).clamp_(min=64)
        exists = first + 64 > distance
        apart, beyond = end > ends + 64, end > ends
        begin = torch.where(apart, end - 64, ends)[:, None]
        grows = (exists & beyond)[:, None]
        edges.scatter_add_(1, begin.clamp(min=0), grows.to(torch.int8))
        edges.scatter_add_(1, (begin + 64).clamp_(min=0), -grows.to(torch.int8))
        ends = torch.where(grows[:, 0], begin[:, 0] + 64, ends)
    seen = edges[:, :seqlen].cumsum(1, dtype=torch.int8) > 0
    seen[:, vertical.long()] = True
    return seen


def vertical_slash(seqlen, classes):
    """classes: (heads, columns, slashes); the heads of a class have the same lists."""
    seen, given, count = [], [], 0
    own = torch.arange(seqlen, device="cuda")
    for heads, num_vertical, num_slash in classes:
        lists = slash_lists(seqlen, num_vertical, num_slash)
        blocks = slash_blocks(seqlen, *lists)
        # Of a block's rows, those from a key's own on see it.
        seeing = (own[::64, None] + 64 - own).clamp_(0, 64)
        count += heads * (blocks * seeing).sum().item()
        seen += [blocks] * heads
        given += [lists] * heads
        del seeing
    padded = [torch.nn.utils.rnn.pad_sequence(entries, batch_first=True, padding_value=-1)[None]
              for entries in zip(*given)]

    def visible(head, rows):
        return seen[head][rows // 64] & (own <= rows[:, None])

    return Mask("vertical_slash(v)", visible, count,
                inputs={"v": girih.SlashLists(*(x.contiguous() for x in padded))})


def random_grid(planes, rows, columns, density):
    """Each block with this probability, and at least one a row."""
    grid = torch.rand(planes, rows, columns, device="cuda") < density
    one = torch.randint(columns, (planes, rows, 1), device="cuda")
    return grid.scatter_(2, one, grid.gather(2, one) | ~grid.any(2, keepdim=True))


def fixed_grid(planes, rows, columns, number):
    """So many random blocks in every row."""
    chosen = torch.rand(planes, rows, columns, device="cuda").topk(number, 2).indices
    return torch.zeros(planes, rows, columns, device="cuda", dtype=torch.bool).scatter_(
        2, chosen, True)


def random_tensors(seqlen, heads, dim=128, kv_heads=None):
    """q, k, v as [1, seqlen, heads, dim]."""
    return [torch.randn(1, seqlen, h, dim, device="cuda", dtype=torch.bfloat16)
            for h in (heads, kv_heads or heads, kv_heads or heads)]


# --- What is timed --------------------------------------------------------------------------------


class Contender:
    """run() launches once and gives the output as [1, seqlen, heads, dim]."""

    def __init__(self, name, qkv, mask, run, out=None):
        self.name, self.qkv, self.mask, self.run, self.out = name, qkv, mask, run, out
        self.compile_s = self.setup_ms = self.tile = None
        self.events, self.error = [], None
        self.flop = 4 * mask.count * qkv[0].shape[3]

    def finish(self):
        """Reads the timings of a measurement that is over."""
        self.times = [start.elapsed_time(stop) for start, stop in self.events]
        self.ms, self.events = statistics.median(self.times), []
        self.tflops = self.flop / self.ms * 1e-9


def events_of(run, times=1, lead=300_000):
    """`lead`: cycles in which the host gets ahead; 300,000 are 0.2 ms."""
    pairs = []
    for _ in range(times):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda._sleep(lead)
        pair[0].record()
        run()
        pair[1].record()
        pairs.append(pair)
    return pairs


def median_ms(run, times=15):
    """For figures beside the table, and to choose; an idle card takes some 50 ms to its clock."""
    heated = time.perf_counter()
    while time.perf_counter() - heated < 0.05:
        run()
        torch.cuda.synchronize()
    pairs = events_of(run, times, lead=2_000_000)  # for calls of several launches, and allocations
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in pairs)


def girih_on(cache_dir, qkv, mask, name="girih", **tile):
    q, k, v = qkv
    kernel = girih.compile(mask.pattern, cache_dir=cache_dir, **tile).bind(
        dtype=q.dtype, head_dim=q.shape[3], num_heads=q.shape[2], num_heads_kv=k.shape[2],
        shared_inputs=mask.grid is not None and mask.grid.shape[0] == k.shape[2] < q.shape[2])
    out, workspace = torch.empty_like(q), None
    arguments = {"inputs": mask.inputs, "out": out}
    size = kernel.workspace_bytes(q, k, v, **arguments)
    if size > 0:
        workspace = torch.empty(size, device="cuda", dtype=torch.uint8)
        arguments["workspace"] = workspace
    result = Contender(name, qkv, mask, lambda: kernel(q, k, v, **arguments), out)
    if size > 0:
        result.setup_ms = median_ms(lambda: kernel.build_lists(q, k, v, **arguments))
    info = kernel.info
    result.compile_s = None if info["cache_hit"] else info["compile_ms"] / 1000
    result.tile = {field: info[field] for field in ("kernel", "block_m", "block_n", "num_stages",
                                                    "num_q_stages", "num_warps", "registers")}
    return result


def sdpa_on(backend, qkv, mask, name):
    """cuDNN or FA2; on views of the tensors or on copies [batch, heads, seqlen, dim]."""
    from torch.nn.attention import sdpa_kernel

    def on(q, k, v):
        def run():
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=mask.causal).transpose(1, 2)
        return run

    views = [x.transpose(1, 2) for x in qkv]
    return Contender(name, qkv, mask, min((on(*views), on(*(x.contiguous() for x in views))),
                                          key=median_ms))


class Flex:
    """FlexAttention; compiled once for a shape, whatever the lists."""

    def __init__(self):
        from torch.nn.attention import flex_attention
        self.module = flex_attention
        self.compiled = torch.compile(flex_attention.flex_attention, dynamic=False)

    @staticmethod
    def diagonal(b, h, q_idx, kv_idx):
        return q_idx >= kv_idx

    def __call__(self, qkv, mask):
        torch.cuda.synchronize()
        start = time.perf_counter()
        whole, part = mask.grid[None], torch.zeros_like(mask.grid[None])
        if mask.causal:  # only the blocks on the diagonal need mask_mod
            part = torch.eye(whole.shape[2], device="cuda", dtype=torch.bool).expand_as(whole)
            whole = whole & ~part
        lists = []
        for blocks in (part, whole):
            lists += [blocks.sum(3, dtype=torch.int32),
                      blocks.byte().argsort(dim=3, descending=True, stable=True).int()]
        block_mask = self.module.BlockMask.from_kv_blocks(
            *lists, BLOCK_SIZE=128, mask_mod=self.diagonal if mask.causal else None)
        torch.cuda.synchronize()
        setup_ms = (time.perf_counter() - start) * 1000
        q, k, v = (x.transpose(1, 2).contiguous() for x in qkv)
        result = Contender("flex", qkv, mask, lambda: self.compiled(
            q, k, v, block_mask=block_mask).transpose(1, 2))
        start = time.perf_counter()
        result.run()
        torch.cuda.synchronize()
        result.compile_s, result.setup_ms = time.perf_counter() - start, setup_ms
        return result


# --- Checking and timing --------------------------------------------------------------------------


def reference(qkv, mask):
    """(head, rows, their output in float64) for each head: the first, the last, random ones."""
    q, k, v = qkv
    _, seqlen, heads, dim = q.shape
    result = []
    for head in range(heads):
        rows = torch.randint(seqlen, (16,), device="cuda")
        rows[0], rows[1] = 0, seqlen - 1
        keys, values = (x[0, :, head * x.shape[2] // heads].double() for x in (k, v))
        scores = q[0, rows, head].double() @ keys.T / math.sqrt(dim)
        scores.masked_fill_(~mask.visible(head, rows), -math.inf)
        result.append((head, rows, scores.softmax(1) @ values))
    return result


def largest_error(pairs):
    """The largest |actual - expected| / |expected| of a row; NaN stays NaN."""
    errors = [((actual.double() - expected.double()).norm(dim=1)
               / expected.double().norm(dim=1)).max() for actual, expected in pairs]
    return torch.stack(errors).max().item()


def is_wrong(error):
    return not error <= TOLERANCE


class Bench:
    """The run: options, what was found out, and what could not be."""

    def __init__(self, quick, cache_dir):
        self.quick, self.cache_dir = quick, cache_dir
        self.flush = torch.empty(64 << 20, device="cuda", dtype=torch.int32)  # 256 MB
        self.records, self.fits, self.failures, self.wrong = [], [], [], False
        self.flex, self.no_flex = None, False

    def _try(self, what, make, *arguments, **named):
        try:
            result = make(*arguments, **named)
            result.run()
            torch.cuda.synchronize()
            return result
        except Exception as error:  # of any library; the others go on
            lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
            self.failures.append("%s: %s" % (what, lines[0][:200]))
            print("%s:\n%s" % (what, traceback.format_exc()), file=sys.stderr)
            return None

    def girih(self, qkv, mask, name="girih", **tile):
        result = self._try("girih, %s" % mask.pattern, girih_on, self.cache_dir, qkv, mask, name,
                           **tile)
        self.wrong |= result is None
        return result

    def sdpa(self, qkv, mask):
        from torch.nn.attention import SDPBackend
        return [self._try("%s, %s" % (name, mask.pattern), sdpa_on, backend, qkv, mask, name)
                for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION),
                                      ("FA2", SDPBackend.FLASH_ATTENTION))]

    def flex_on(self, qkv, mask):
        if self.no_flex:
            return None
        result = self._try("FlexAttention, %s" % mask.pattern, lambda: self._flex()(qkv, mask))
        self.no_flex |= result is None
        return result

    def _flex(self):
        self.flex = self.flex or Flex()
        return self.flex

    def measure(self, contenders, dense=None):
        """Checks, then times in turn; `dense`, one of them, before and after the others."""
        order = [c for c in contenders if c is not None]
        by_mask = collections.defaultdict(list)
        for contender in order:
            by_mask[id(contender.mask)].append(contender)
        for group in by_mask.values():
            self._check(group)
        if dense is not None:
            order = [dense] + [c for c in order if c is not dense] + [dense]
        heated = time.perf_counter()
        while time.perf_counter() - heated < 0.3:
            slow = [(c, events_of(c.run)) for c in order]
            torch.cuda.synchronize()
        shortest = min(pairs[0][0].elapsed_time(pairs[0][1]) for _, pairs in slow)
        for _ in range(15 if shortest >= 1 else 30):
            for contender in order:
                self.flush.zero_()
                contender.events += events_of(contender.run)
        torch.cuda.synchronize()
        for contender in set(order):
            contender.finish()

    def _check(self, group):
        expected, own = reference(group[0].qkv, group[0].mask), None
        for contender in group:
            if contender.out is not None:
                contender.out.fill_(math.nan)
            out = contender.run()
            contender.error = largest_error((out[0, rows, head], rows_out)
                                            for head, rows, rows_out in expected)
            if contender.out is not None and own is None:
                own = contender
            elif own is not None and not is_wrong(contender.error):
                error = largest_error((own.out[0, :, head], out[0, :, head])
                                      for head in range(out.shape[2]))
                if is_wrong(error) or error > own.error:
                    own.error = error
        for contender in group:
            if is_wrong(contender.error):
                self.wrong = True
                self.failures.append("%s, %s: WRONG, a row is off by %.3g of itself"
                                     % (contender.name, contender.mask.pattern, contender.error))

    def record(self, row, case, own, against, value, must=None, aim=None, lower=False):
        """value(own, against): what the limits are for; against may be None where it is not
        needed."""
        if own is None:
            self.records.append({"row": row, "case": case, "verdict": "FAILED"})
            return
        entry = {"row": row, "case": case, "pattern": own.mask.pattern, "ms": own.ms,
                 "tflops": own.tflops, "compile_s": own.compile_s, "lists_ms": own.setup_ms,
                 "error": own.error, "tile": own.tile, "times_ms": own.times, "must": must,
                 "aim": aim, "lower_is_better": lower, "value": None, "verdict": "no peer"}
        if against is not None:
            entry["against"] = {"name": against.name, "ms": against.ms, "tflops": against.tflops,
                                "compile_s": against.compile_s, "lists_ms": against.setup_ms,
                                "error": against.error, "times_ms": against.times}
            if against.name.startswith("own"):
                entry["against"].update(ms_before=statistics.median(against.times[::2]),
                                        ms_after=statistics.median(against.times[1::2]))
            each = len(against.times) // len(own.times)
            entry["against"]["ratio_in_rounds"] = statistics.median(
                sum(against.times[i * each:(i + 1) * each]) / each / ms
                for i, ms in enumerate(own.times))
        if value is not None and (against is not None or value is tflops):
            entry["value"] = result = value(own, against)
            meets = [limit is not None and (result <= limit if lower else result >= limit)
                     for limit in (must, aim)]
            entry["verdict"] = ("aim met" if meets[1] else "must met" if meets[0]
                                else "MISSED" if must is not None else "")
        if is_wrong(own.error):
            entry["verdict"] = "WRONG"
        self.records.append(entry)


def faster(own, against):
    return against.ms / own.ms


def share(own, against):
    return own.tflops / against.tflops


def tflops(own, _):
    return own.tflops


# --- Rows -----------------------------------------------------------------------------------------


def against_sdpa(bench, row, pattern, shapes):
    """shapes: length, heads, head_dim, must and aim against cuDNN."""
    for seqlen, heads, dim, must, aim in shapes:
        qkv = random_tensors(seqlen, heads, dim)
        mask = closed_form(pattern, seqlen, (heads, SEES[pattern]))
        own, (cudnn, fa2) = bench.girih(qkv, mask), bench.sdpa(qkv, mask)
        bench.measure([own, cudnn, fa2])
        case = "%s d %d H %d %dk" % (pattern, dim, heads, seqlen >> 10)
        bench.record(row, case, own, cudnn, faster, must, aim)
        bench.record(row, case, own, fa2, faster)


def f1(bench):
    shapes = (16384, 16, 128, 1.10, 1.20), (32768, 16, 128, 1.10, 1.20)
    against_sdpa(bench, "F1", "causal", shapes[:2 - bench.quick])


def f2(bench):
    shapes = (16384, 16, 128, 1.02, 1.10), (32768, 16, 128, 1.02, 1.10)
    against_sdpa(bench, "F2", "dense", shapes[:2 - bench.quick])


def f3(bench):
    for pattern in ("dense", "causal"):
        against_sdpa(bench, "F3", pattern,
                     ((16384, 32, 64, 1.12, 1.22), (16384, 16, 96, 1.10, 1.25),
                      (16384, 8, 192, 0.97, 1.05), (16384, 8, 256, 0.95, 1.03)))


def own_dense(bench, pattern, qkv):
    _, seqlen, heads, _ = qkv[0].shape
    return bench.girih(qkv, closed_form(pattern, seqlen, (heads, SEES[pattern])),
                       "own " + pattern)


def block_rows(bench, seqlen, limits, below_diagonal=False):
    """limits: density, then must and aim over own dense and against FlexAttention."""
    qkv, n = random_tensors(seqlen, 32), seqlen // 128
    dense, rows = own_dense(bench, "causal" if below_diagonal else "dense", qkv), []
    for density, *rest in limits:
        grid = random_grid(32, n, n, density)
        if below_diagonal:
            grid = grid.tril(-1) | torch.eye(n, device="cuda", dtype=torch.bool)
        mask = block_lists(grid, 32, below_diagonal=below_diagonal)
        rows.append((density, bench.girih(qkv, mask), bench.flex_on(qkv, mask), rest))
    bench.measure([dense] + [c for row in rows for c in row[1:3]], dense)
    case = "%s 128x128 %dk density %%.3g" % ("causal" if below_diagonal else "blocks",
                                             seqlen >> 10)
    over, beside = ("F7", "F7") if seqlen == 8192 else ("F4", "F5")
    for density, listed, _, rest in rows:
        bench.record(over, case % density, listed, dense, share, *rest[:2])
    for density, listed, flex, rest in rows:
        bench.record(beside, case % density, listed, flex, faster, *rest[2:])


def f4_f5(bench):
    block_rows(bench, 32768, ((0.5, 0.93, 0.97, 1.45, 1.65), (0.25, 0.93, 0.97, 1.45, 1.65),
                              (0.1, 0.90, 0.95, 1.45, 1.65), (0.05, 0.85, 0.92, 1.45, 1.65)))
    if not bench.quick:
        none = (None,) * 4
        block_rows(bench, 32768, ((0.5,) + none, (0.1,) + none), below_diagonal=True)


def f6(bench):
    seqlen, heads = 32768, 32
    qkv, shared_qkv = random_tensors(seqlen, heads), random_tensors(seqlen, heads, kv_heads=8)
    dense, shared_dense = (own_dense(bench, "dense", x) for x in (qkv, shared_qkv))

    def lists(qkv, planes, kv):
        grid = random_grid(planes, seqlen // 64, seqlen // kv, 0.25)
        return bench.girih(qkv, block_lists(grid, heads, 64, kv))

    each, shared = lists(qkv, 32, 64), lists(shared_qkv, 8, 64)
    narrow = {kv: lists(qkv, 32, kv) for kv in (32, 16)}
    shared_narrow = {kv: lists(shared_qkv, 8, kv) for kv in (32, 16)}
    bench.measure([each, *narrow.values(), dense], dense)
    bench.measure([shared, *shared_narrow.values(), shared_dense], shared_dense)
    bench.record("F6", "64x64, a list a head", each, dense, tflops, 350, 430)
    bench.record("F6", "64x64, a list for 4 heads", shared, shared_dense, share, 0.85, 0.93)
    for kv, listed in narrow.items():
        bench.record("F6", "64x%d, a list a head" % kv, listed, dense, tflops, None, 300)
    for kv, listed in shared_narrow.items():
        bench.record("F6", "64x%d, a list for 4 heads" % kv, listed, shared_dense, tflops, None, 300)


def f7(bench):
    block_rows(bench, 8192, ((0.115, None, None, 1.6, 2.2),))


def f8(bench):
    for seqlen, must, aim in ((32768, 0.535, 0.520), (131072, 0.515, 0.506))[:2 - bench.quick]:
        qkv = random_tensors(seqlen, 32)
        mask = closed_form("heads(0-15: causal, else: %s)" % STREAMING, seqlen,
                           (16, SEES["causal"]), (16, SEES[STREAMING]))
        dense, mixed = own_dense(bench, "causal", qkv), bench.girih(qkv, mask)
        bench.measure([mixed, dense], dense)
        bench.record("F8", "half streaming %dk" % (seqlen >> 10), mixed, dense,
                     lambda own, dense: own.ms / dense.ms, must, aim, lower=True)


def f9(bench):
    qkv = random_tensors(32768, 32)
    dense, rows = own_dense(bench, "causal", qkv), []
    for size, *limits in ((4096, 0.92, 0.96), (1024, 0.74, 0.82), (256, 0.40, 0.50)):
        mask = closed_form("causal & window(left=%d)" % (size - 1), 32768, (
            32, lambda row, key, size=size: (key <= row) & (key > row - size)))
        rows.append((size, bench.girih(qkv, mask), limits))
    bench.measure([dense] + [windowed for _, windowed, _ in rows], dense)
    for size, windowed, limits in rows:
        bench.record("F9", "causal window %d 32k" % size, windowed, dense, share, *limits)


MINFERENCE = {  # layer of its Llama-3.1-8B configuration: (heads, columns, slashes)
    0: ((25, 1000, 6096), (4, 30, 800), (3, 3500, 100)),
    10: ((20, 1000, 6096), (6, 500, 700), (4, 100, 800), (1, 30, 800), (1, 3500, 100)),
    31: ((16, 30, 800), (9, 100, 800), (3, 500, 700), (2, 1000, 6096), (2, 3500, 100)),
}


def f10(bench):
    seqlen = 131072
    qkv = random_tensors(seqlen, 32, kv_heads=8)
    dense = own_dense(bench, "causal", qkv)
    for layer in (0, 31) if bench.quick else MINFERENCE:
        torch.manual_seed(1)
        mask = vertical_slash(seqlen, MINFERENCE[layer])
        share_visible = mask.count / (32 * seqlen * (seqlen + 1) // 2)
        listed = bench.girih(qkv, mask)
        bench.measure([listed, dense], dense)
        bench.record("F10", "MInference layer %d 128k, %.3f" % (layer, share_visible), listed,
                     dense,
                     lambda own, dense, share=share_visible: own.ms / (dense.ms * share),
                     1.35, 1.15, lower=True)
        most = [max(numbers) for numbers in list(zip(*MINFERENCE[layer]))[1:]]
        estimate_ms = median_ms(lambda: girih.estimate_slashes(*qkv[:2], *most))
        bench.record("F10", "estimate %.2f ms + lists of saved" % estimate_ms, listed, dense,
                     lambda own, dense, ms=estimate_ms: (ms + own.setup_ms) / (dense.ms - own.ms),
                     0.1, lower=True)


def f11(bench):
    qkv = random_tensors(16384, 16)
    mask = closed_form("dense", 16384, (16, SEES["dense"]))
    portable, (_, fa2) = bench.girih(qkv, mask, portable=True), bench.sdpa(qkv, mask)
    bench.measure([portable, fa2])
    bench.record("F11", "portable dense d 128 H 16 16k", portable, fa2, tflops, 240, 330)


def f12(bench):
    seqlen = 32768
    qkv = random_tensors(seqlen, 32)
    few, many = SEES[STREAMING], SEES["causal"]
    mask = closed_form("heads(0: causal, else: %s)" % STREAMING, seqlen, (1, many), (31, few))
    dense, skewed = own_dense(bench, "dense", qkv), bench.girih(qkv, mask)
    bench.measure([skewed, dense], dense)
    visited = tiles_visited(seqlen, many) + 31 * tiles_visited(seqlen, few)
    share_of_tiles = visited / (32 * (seqlen // TILE) ** 2)
    bench.record("F12", "1 causal, 31 streaming 32k", skewed, dense,
                 lambda own, dense: own.ms / (dense.ms * share_of_tiles), 1.25, 1.08, lower=True)


def pruned(bench):
    seqlen, heads = 32768, 32
    keys = torch.arange(seqlen, device="cuda")
    for kv in (64, 128):
        for percent, must in ((0, 1.12), (50, 0.85), (70, 0.75)):
            # Scores of skipped tiles are a sixteenth of the others', whose maxima are about 4.
            qkv = random_tensors(seqlen, heads)
            low = torch.rand(heads, seqlen // kv, device="cuda") < percent / 100
            qkv[1] *= torch.where(low.repeat_interleave(kv, 1).T[None, :, :, None], 0.0625, 1.0)

            def visible(head, rows, low=low, kv=kv):
                own = rows[:, None] // 128 == keys // 128  # the diagonal's tiles
                return (keys <= rows[:, None]) & (own | ~low[head][keys // kv])

            # Of a kept tile's keys, rows from the next query tile on see all.
            first = keys // 128 * 128
            later = (seqlen - first - 128).expand(heads, -1)
            count = (heads * (seqlen // 128) * 128 * 129 // 2
                     + (later * ~low.repeat_interleave(kv, 1)).sum().item())
            mask = Mask("causal with prune(t, kv=%d)" % kv, visible, count,
                        inputs={"t": girih.Thresholds(torch.full((1, 1), 2.0, device="cuda"), kv)})
            dense, own = own_dense(bench, "causal", qkv), bench.girih(qkv, mask)
            bench.measure([own, dense], dense)
            bench.record("prune", "%d %% of tiles of %d keys 32k" % (percent, kv), own, dense,
                         lambda own, dense: own.ms / dense.ms, must, lower=True)


def fit(bench):
    """Least squares of relative errors, so that short lists count as much as long ones."""
    sms = torch.cuda.get_device_properties(0).multi_processor_count
    for seqlen in (8192,) if bench.quick else (8192, 32768):
        qkv, n = random_tensors(seqlen, 32), seqlen // TILE
        lengths = (1, 2, 4, 8, 16, 32, 64)
        lists = [bench.girih(qkv, block_lists(fixed_grid(32, n, n, k), 32)) for k in lengths]
        if None in lists:
            continue
        bench.measure(lists)
        us = [c.ms * 1000 * sms / (32 * n) for c in lists]  # a query tile, on its SM
        s = [sum(k ** power / t ** 2 for k, t in zip(lengths, us)) for power in range(3)]
        r = [sum(k ** power / t for k, t in zip(lengths, us)) for power in range(2)]
        b = (s[0] * r[1] - s[1] * r[0]) / (s[0] * s[2] - s[1] ** 2)
        a = (r[0] - s[1] * b) / s[0]
        worst = max(abs(a + b * k - t) / t for k, t in zip(lengths, us))
        bench.fits.append({"seqlen": seqlen, "a_us": a, "b_us": b, "worst": worst,
                           "us": dict(zip(lengths, us)), "tile": lists[0].tile})


ROWS = {"F1": f1, "F2": f2, "F3": f3, "F4": f4_f5, "F5": f4_f5, "F6": f6, "F7": f7, "F8": f8,
        "F9": f9, "F10": f10, "F11": f11, "F12": f12, "prune": pruned, "fit": fit}


# --- The report -----------------------------------------------------------------------------------


def machine():
    """Name, driver and clocks as nvidia-smi has them now."""
    fields = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        text = subprocess.run(["nvidia-smi", "--query-gpu=" + fields, "--format=csv,noheader",
                               "--id=" + str(torch.cuda.current_device())],
                              capture_output=True, text=True, check=True, timeout=20).stdout
        return dict(zip(fields.split(","), text.strip().split(", ")))
    except (OSError, subprocess.SubprocessError):
        return {"name": torch.cuda.get_device_name(), "driver_version": "unknown"}


def shown(value, digits):
    return "" if value is None else "%.*f" % (digits, value)


def print_table(bench):
    line = "%-4s %-34s %8s %7s  %-10s %8s %7s %7s %6s %6s  %-8s %7s %7s %7s %7s"
    print(line % ("row", "case", "ms", "TFLOP/s", "against", "ms", "TFLOP/s", "value", "must",
                  "aim", "verdict", "compile", "lists", "peer's", "error"))
    print(line % (("",) * 11 + ("s", "ms", "1st, s", "")))
    for r in bench.records:
        if r["verdict"] == "FAILED":
            print("%-4s %-34s FAILED" % (r["row"], r["case"]))
            continue
        peer = r.get("against", {})
        digits = 0 if (r["value"] or 0) > 50 else 3
        sign = "<=" if r["lower_is_better"] else ""
        print(line % (
            r["row"], r["case"], shown(r["ms"], 3), shown(r["tflops"], 1), peer.get("name", ""),
            shown(peer.get("ms"), 3), shown(peer.get("tflops"), 1), shown(r["value"], digits),
            *(limit and sign + "%.4g" % limit or "" for limit in (r["must"], r["aim"])),
            r["verdict"], shown(r["compile_s"], 2), shown(r["lists_ms"], 3),
            shown(peer.get("compile_s"), 1), "%.4f" % r["error"]))
    for f in bench.fits:
        print("fit %dk: a = %.2f us, b = %.3f us per query tile and SM (off by at most %.1f %%); %s"
              % (f["seqlen"] >> 10, f["a_us"], f["b_us"], f["worst"] * 100,
                 ", ".join("k %d: %.2f" % item for item in f["us"].items())))
    for failure in bench.failures:
        print(failure)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer lengths: less than 2 minutes "
                        "on an H100, instead of less than 8")
    parser.add_argument("--rows", default=",".join(ROWS), metavar="F1,F4",
                        help="of " + ", ".join(ROWS))
    parser.add_argument("--json", metavar="FILE", help="everything measured, each timing too")
    parser.add_argument("--cache-dir", metavar="DIR", help="of kernels and tuning records; an "
                        "empty one where not given, so that all compiles are cold")
    options = parser.parse_args()
    chosen = {name.lower() for name in options.rows.split(",")}
    unknown = chosen - {name.lower() for name in ROWS}
    if unknown:
        parser.error("no row %s: there are %s" % (", ".join(sorted(unknown)), ", ".join(ROWS)))
    if torch is None or not torch.cuda.is_available():
        parser.error("needs PyTorch and a GPU that it can use")

    torch.set_grad_enabled(False)
    begun, start = time.perf_counter(), machine()
    report = {"date": time.strftime("%Y-%m-%d %H:%M:%S"), "girih": girih.version(),
              "torch": torch.__version__, "cuda": torch.version.cuda,
              "cudnn": torch.backends.cudnn.version(), "quick": options.quick, "machine": start}
    square = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    report["matmul_tflops"] = 2 * 8192 ** 3 / median_ms(lambda: square @ square, 15) * 1e-9
    print("%s; girih %s, torch %s, CUDA %s, cuDNN %s" % (
        ", ".join("%s %s" % item for item in start.items()), report["girih"], report["torch"],
        report["cuda"], report["cudnn"]))
    print("a bf16 matrix product of 8192 x 8192: %.0f TFLOP/s" % report["matmul_tflops"])
    with tempfile.TemporaryDirectory() as empty:
        bench = Bench(options.quick, options.cache_dir or empty)
        for run in dict.fromkeys(run for name, run in ROWS.items() if name.lower() in chosen):
            torch.manual_seed(0)
            try:
                run(bench)
            except (Exception, KeyboardInterrupt) as error:  # the other rows go on; or the report
                bench.wrong = True
                bench.failures.append("%s: %s" % (run.__name__, traceback.format_exc()))
                if isinstance(error, KeyboardInterrupt):
                    break
            torch.cuda.empty_cache()
            print("%4.0f s  %s" % (time.perf_counter() - begun, run.__name__), file=sys.stderr)
        report.update(machine_after=machine(), seconds=time.perf_counter() - begun,
                      rows=bench.records, fits=bench.fits, failures=bench.failures)
    print_table(bench)
    after = report["machine_after"]
    print("%.0f s; at the end %s" % (report["seconds"], ", ".join(
        "%s %s" % (name, after[name]) for name in list(after)[2:])))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1))
    return 1 if bench.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
