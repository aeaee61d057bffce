"""What SeerAttention's gate is trained to say: of each tile of the attention map its largest
probability, and each row of tiles divided by its sum. Girih gives the rows' lse; scores exist for a
few rows of tiles at a time."""
import math
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
import girih


@torch.no_grad()
def seer_map(q, k, v, block=64, rows_at_once=1024):
    """out [batch, seqlen, heads, dim_v] of causal attention, and the map [batch, heads,
    ceil(seqlen / block), ceil(seqlen / block)] in float32. q, k, v as girih.attention takes them,
    of equal lengths."""
    (batch, seqlen, heads, dim), device = q.shape, q.device
    if k.shape[1] != seqlen or rows_at_once % block != 0:
        raise ValueError("q has %d tokens and k has %d, which must be as many; rows_at_once %d must "
                         "be a multiple of block %d" % (seqlen, k.shape[1], rows_at_once, block))
    out, lse = girih.attention(q, k, v, "causal", return_lse=True)
    keys = k.float().repeat_interleave(heads // k.shape[2], 2).permute(0, 2, 3, 1)
    blocks = -(-seqlen // block)
    result = torch.zeros(batch, heads, blocks, blocks, device=device)
    for first in range(0, seqlen, rows_at_once):
        rows = torch.arange(first, min(first + rows_at_once, seqlen), device=device)
        seen = int(rows[-1]) + 1
        scores = q[:, rows].float().transpose(1, 2) @ keys[..., :seen] / math.sqrt(dim)
        probabilities = (scores - lse[:, :, rows, None]).exp_()
        probabilities.masked_fill_(torch.arange(seen, device=device) > rows[:, None], 0)
        padded = torch.nn.functional.pad(probabilities, (0, -seen % block, 0, -len(rows) % block))
        tiles = padded.unflatten(3, (-1, block)).amax(4).unflatten(2, (-1, block)).amax(3)
        at = first // block
        result[:, :, at:at + tiles.shape[2], :tiles.shape[3]] = tiles / tiles.sum(3, keepdim=True)
    return out, result


if __name__ == "__main__":
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 3000, heads, 128, device="cuda", dtype=torch.bfloat16)
               for heads in (8, 2, 2))
    out, tiles = seer_map(q, k, v)
    gate = tiles.topk(8, 3).indices                             # what a gate would pick
    mask = torch.zeros_like(tiles, dtype=torch.bool).scatter_(3, gate, True)
    mask |= torch.eye(tiles.shape[2], device="cuda", dtype=torch.bool)
    sparse = girih.attention(q, k, v, "causal & blocks(m, q=64, kv=64)", inputs={"m": mask})
    print("%d x %d tiles; %.3f of the blocks taken, mean difference %.4f"
          % (*tiles.shape[2:], mask.tril().float().mean().item() * 2,
             (out - sparse).abs().float().mean().item()))
