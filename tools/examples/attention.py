"""A mixed pattern on PyTorch tensors, compared with PyTorch's attention under a dense mask."""
import pathlib
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
import girih

torch.manual_seed(0)
q, k, v = (torch.randn(2, 1000, heads, 128, device="cuda", dtype=torch.bfloat16)
           for heads in (8, 2, 2))
out = girih.attention(q, k, v, "heads(0-3: causal, else: causal & (sink(64) | window(left=255)))")

row, key = torch.arange(1000, device="cuda")[:, None], torch.arange(1000, device="cuda")
causal = key <= row
streaming = causal & ((key < 64) | (key >= row - 255))
expected = torch.nn.functional.scaled_dot_product_attention(
    *(x.transpose(1, 2).float() for x in (q, k, v)),
    attn_mask=torch.stack([causal] * 4 + [streaming] * 4), enable_gqa=True).transpose(1, 2)
torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)
print("largest difference: %.4f" % (out - expected).abs().max().item())
