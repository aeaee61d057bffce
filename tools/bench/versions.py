#!/usr/bin/env python3
"""Versions of the templates, and tiles, beside one another on one GPU, in one process.

    tools/bench/versions.py templates ../other/templates --cases causal32k,blocks32k
    tools/bench/versions.py templates templates:block_m=128,block_n=64,num_stages=5
    tools/bench/versions.py templates ../other/templates --cases causal32k --sustained 2
    ncu --set full tools/bench/versions.py templates --cases blocks8k --once

A version is a folder of templates, and behind a colon options of girih.compile, or partial_keys=1,
with which neighborhoods have no bricks. All kernels are compiled first, side by side; then every
version is launched once a round, in turn, with the L2 cache flushed before, and each round gives a
ratio to the first version's time of that round: the card's clock moves by more than versions
differ. Prints milliseconds (median, least) and the median ratio, above 1 faster than the first
version. Outputs are compared with the first version's.

With --sustained a version's turn is so many seconds of launches, without a pause or a flush, and
the energy of a launch (least, most) is printed, too: at its power limit the card takes as long as
that energy lasts.

Needs PyTorch and libgirih.so (found as tools/python/girih.py says).
"""

import argparse
import concurrent.futures
import ctypes
import math
import pathlib
import re
import statistics
import sys
import time

try:
    import torch
except ImportError:
    torch = None  # --help works without

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))
import girih  # noqa: E402
import peers  # noqa: E402

# name: pattern, heads, KV heads, head_dim, length, density of a random block mask m, which the query
# heads of a KV head share, or of the key tiles that thresholds t keep; or numbers of columns and
# slashes
CASES = {
    "dense16k": ("dense", 16, 16, 128, 16384, None),
    "dense32k": ("dense", 32, 8, 128, 32768, None),
    "causal32k": ("causal", 16, 16, 128, 32768, None),
    "causal32h8": ("causal", 32, 8, 128, 32768, None),
    "alibi32k": ("causal with alibi(a)", 32, 32, 128, 32768, None),
    "d64": ("causal", 32, 32, 64, 16384, None),
    "d64dense": ("dense", 48, 48, 64, 17776, None),
    "d256": ("causal", 8, 8, 256, 16384, None),
    "half": ("heads(0-15: causal, else: %s)" % peers.STREAMING, 32, 32, 128, 32768, None),
    "window4096": ("causal & window(left=4095)", 32, 32, 128, 32768, None),
    "window1024": ("causal & window(left=1023)", 32, 32, 128, 32768, None),
    "window256": ("causal & window(left=255)", 32, 32, 128, 32768, None),
    "blocks50": ("blocks(m, q=128, kv=128)", 32, 32, 128, 32768, 0.5),
    "blocks32k": ("blocks(m, q=128, kv=128)", 32, 32, 128, 32768, 0.25),
    "blocks05": ("blocks(m, q=128, kv=128)", 32, 32, 128, 32768, 0.05),
    "blocks8k": ("blocks(m, q=128, kv=128)", 32, 32, 128, 8192, 0.115),
    "fullrow": ("blocks(m, q=128, kv=128)", 4, 4, 128, 131072, 0.0),
    "blocks64": ("blocks(m, q=64, kv=64)", 32, 32, 128, 32768, 0.25),
    "blocks128x64": ("blocks(m, q=128, kv=64)", 32, 32, 128, 32768, 0.25),
    "blocks32": ("blocks(m, q=64, kv=32)", 32, 32, 128, 32768, 0.25),
    "blocks16": ("blocks(m, q=64, kv=16)", 32, 32, 128, 32768, 0.25),
    "shared64": ("blocks(m, q=64, kv=64)", 32, 8, 128, 32768, 0.25),
    "shared32": ("blocks(m, q=64, kv=32)", 32, 8, 128, 32768, 0.25),
    "shared16": ("blocks(m, q=64, kv=16)", 32, 8, 128, 32768, 0.25),
    "slash0": ("vertical_slash(v)", 32, 8, 128, 131072, (1000, 6096)),
    "slash31": ("vertical_slash(v)", 32, 8, 128, 131072, (30, 800)),
    "documents": ("causal & segments(doc)", 32, 8, 128, 32768, None),
    "image": ("neighborhood(256x256, window=80)", 24, 24, 128, 65536, None),
    "narrow": ("neighborhood(8x4096, window=(1, 99))", 24, 24, 128, 32768, None),
    "dilated": ("neighborhood(256x256, window=40, dilation=2)", 24, 24, 128, 65536, None),
    "dilated3": ("neighborhood(32x64x64, window=(8, 12, 12), dilation=(1, 2, 2))", 24, 24, 128,
                 131072, None),
    "video": ("neighborhood(30x48x80, window=(18, 24, 24))", 24, 24, 128, 115200, None),
    **{"prune%dx%d" % (kv, 100 - 100 * kept): ("causal with prune(t, kv=%d)" % kv, 32, 8, 128, 32768,
                                               kept)
       for kv in (64, 128) for kept in (1.0, 0.5, 0.3, 0.0)},
}


def bind_version(version, pattern, **problem):
    folder, _, texts = version.partition(":")
    pairs = (text.split("=") for text in texts.split(",") if text)
    options = {name: int(value) for name, value in pairs}
    partial_keys = options.pop("partial_keys", 0) != 0
    program = girih.Program(pattern, template_dir=folder, tune="off", **options)
    return program.bind(partial_keys=partial_keys, **problem)


def documents(seqlen):
    """Numbers of documents, of log-normal lengths of 4096 tokens on average, one behind another."""
    lengths = (4096 * math.exp(-0.5) * torch.randn(seqlen).exp()).int() + 1
    return torch.arange(seqlen, dtype=torch.int32).repeat_interleave(lengths)[:seqlen].cuda()


def launches(case, kernels):
    """A call for each kernel, and the tensors that they write; on the same random inputs."""
    pattern, heads, kv_heads, dim, seqlen, density = CASES[case]
    torch.manual_seed(1)
    q, k, v = (torch.randn(1, seqlen, h, dim, device="cuda", dtype=torch.bfloat16)
               for h in (heads, kv_heads, kv_heads))
    arguments = {}
    if "prune" in pattern:
        kv = int(re.search(r"kv=(\d+)", pattern)[1])
        kept = torch.rand(1, seqlen // kv, kv_heads, device="cuda") < density
        k *= torch.where(kept, 1.0, 1 / 16).repeat_interleave(kv, 1).unsqueeze(-1).to(k.dtype)
        thresholds = torch.full((heads, 1), 2.0, device="cuda")  # maxima are about 4, or a 16th
        arguments["inputs"] = {"t": girih.Thresholds(thresholds, kv)}
    elif "alibi" in pattern:
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device="cuda") / heads)
        arguments["inputs"] = {"a": slopes.float()}
    elif "segments" in pattern:
        arguments["inputs"] = {"doc": girih.TokenIndices(documents(seqlen).unsqueeze(0))}
    elif "slash" in pattern:
        arguments["inputs"] = {"v": girih.SlashLists(
            *(entries.expand(1, heads, -1).contiguous()
              for entries in peers.slash_lists(seqlen, *density)))}
    elif density is not None:
        q_block, kv_block = (int(size) for size in re.findall(r"=(\d+)", pattern))
        mask = torch.rand(
            1, kv_heads, seqlen // q_block, seqlen // kv_block, device="cuda") < density
        if density == 0:  # a block a row, and one row of all keys
            mask[..., 0] = mask[:, :, mask.shape[2] // 3] = True
        arguments["inputs"] = {"m": mask}
    calls = []
    for kernel in kernels:
        out = torch.full_like(q, float("nan"))
        own = dict(arguments)
        workspace_bytes = kernel.workspace_bytes(q, k, v, **arguments)
        if workspace_bytes > 0:
            own["workspace"] = q.new_empty(workspace_bytes, dtype=torch.uint8)
            kernel.build_lists(q, k, v, **own)
        calls.append((lambda kernel=kernel, out=out, own=own: kernel(q, k, v, out=out, **own), out))
    return calls


def timed(call, flush, start, end):
    flush.zero_()
    torch.cuda._sleep(200000)  # the host is ahead when the launch's turn comes
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def energy_counter():
    """A function: millijoules that the GPU has taken, by NVML, which counts every few 10 ms."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError as error:
        sys.exit("--sustained reads NVML, a library of the driver: %s" % error)
    nvml.nvmlErrorString.restype = ctypes.c_char_p
    gpu = torch.cuda.get_device_properties(0)
    address = b"%08x:%02x:%02x.0" % (gpu.pci_domain_id, gpu.pci_bus_id, gpu.pci_device_id)
    device, energy = ctypes.c_void_p(), ctypes.c_ulonglong()

    def call(name, *arguments):
        status = getattr(nvml, name)(*arguments)
        if status != 0:
            sys.exit("%s: %s" % (name, nvml.nvmlErrorString(status).decode()))

    def read():
        call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(energy))
        return energy.value

    call("nvmlInit_v2")
    call("nvmlDeviceGetHandleByPciBusId_v2", address, ctypes.byref(device))
    return read


def sustained(call, seconds, energy):
    """Milliseconds and joules of a launch, behind half as long to reach a steady clock; between
    changes of the counter. Some 10 ms of launches are always queued."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    batch = max(1, int(0.01 / (time.perf_counter() - begin)))
    done = [torch.cuda.Event() for _ in range(2)]
    launches = 0

    def change_after(seconds):
        nonlocal launches
        begin, last = time.perf_counter(), energy()
        while True:
            for _ in range(batch):
                call()
            launches += batch
            done[0].record()
            done.reverse()
            done[0].synchronize()
            now = energy()
            if now != last and time.perf_counter() - begin >= seconds:
                return time.perf_counter(), launches, now
            last = now

    before, after = change_after(seconds / 2), change_after(seconds)
    elapsed, number, millijoules = (b - a for a, b in zip(before, after))
    return 1e3 * elapsed / number, 1e-3 * millijoules / number


def positive(text):
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError("%s is no positive number of seconds" % text)
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", metavar="FOLDER[:OPTION=N,...]")
    parser.add_argument("--cases", default=",".join(CASES), help="default: all, %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 15, of --sustained 3")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="one launch each, for a profiler")
    how.add_argument("--sustained", type=positive, metavar="SECONDS",
                     help="turns of so many seconds, and the energy of a launch")
    arguments = parser.parse_args()
    if torch is None or not torch.cuda.is_available():
        parser.error("needs PyTorch and a GPU that it can use")
    cases = arguments.cases.split(",")
    num_rounds = 1 if arguments.once else arguments.rounds or (3 if arguments.sustained else 15)
    num_first = 0 if arguments.once or arguments.sustained else 2  # which do not count
    energy = energy_counter() if arguments.sustained else None

    def bind(pair):
        case, version = pair
        pattern, heads, kv_heads, dim, _, density = CASES[case]
        try:
            return bind_version(version, pattern, dtype="bf16", head_dim=dim, num_heads=heads,
                                num_heads_kv=kv_heads,
                                shared_inputs="(m" in pattern and heads > kv_heads)
        except girih.Error as error:
            return error

    torch.zeros(1, device="cuda")
    pairs = [(case, version) for case in cases for version in arguments.versions]
    with concurrent.futures.ThreadPoolExecutor(14) as pool:
        bound = dict(zip(pairs, pool.map(bind, pairs)))
    flush = torch.empty(128 << 20, device="cuda", dtype=torch.uint8)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for case in cases:
        versions = [version for version in arguments.versions
                    if not isinstance(bound[case, version], girih.Error)]
        for version in set(arguments.versions) - set(versions):
            print("%-12s %s: %s" % (case, version, bound[case, version]))
        calls = launches(case, [bound[case, version] for version in versions])

        def turn(call):
            if arguments.sustained:
                return sustained(call, arguments.sustained, energy)
            return timed(call, flush, start, end), math.nan

        rounds = [[turn(call) for call, _ in calls] for _ in range(num_first + num_rounds)]
        rounds = rounds[num_first:]
        for i, version in enumerate(versions):
            ms, joules = zip(*(turns[i] for turns in rounds))
            ratio = statistics.median(turns[0][0] / turns[i][0] for turns in rounds)
            info = bound[case, version].info
            difference = (calls[i][1].float() - calls[0][1].float()).abs().max().item()
            energies = ""
            if arguments.sustained:
                energies = "  %.3f to %.3f J" % (min(joules), max(joules))
            print("%-12s %-40s %3d x %3d, %d, %d  %8.4f %8.4f ms  %.3f  differs by %.1e%s" % (
                case, version[-40:], info["block_m"], info["block_n"], info["num_stages"],
                info["num_q_stages"], statistics.median(ms), min(ms), ratio, difference, energies),
                flush=True)
        del calls


if __name__ == "__main__":
    main()
