"""A tokenizer that needs no training: the nearest of many random directions in the space of a patch's pixels.

Shape legend: B images, N patches, K values of a patch, V codes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

PATCHES_AT_ONCE = 4096  # their cosines with 8192 codes take 128 MiB


class RandomCodebook(nn.Module):
    """`vocabulary` random unit vectors for patches of `values` numbers, decided by `seed`."""

    codes_VK: Tensor

    def __init__(self, vocabulary: int, values: int, *, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("codes_VK", F.normalize(torch.randn(vocabulary, values, generator=generator), dim=-1))

    @torch.no_grad()
    def ids(self, patches_BNK: Float[Tensor, "B N K"]) -> Int64[Tensor, "B N"]:
        """The code with the largest cosine, for each patch; the first code for a patch of zeros."""
        with torch.autocast(patches_BNK.device.type, enabled=False):
            rows = patches_BNK.flatten(0, 1).to(self.codes_VK.dtype)
            # A patch's length does not change which cosine is largest.
            found = [(part @ self.codes_VK.T).argmax(dim=-1) for part in rows.split(PATCHES_AT_ONCE)]
        return torch.cat(found).unflatten(0, patches_BNK.shape[:2])
