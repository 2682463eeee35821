"""A pre-trained encoder that another one learns from: fixed, without noise, on the student's grid of patches.

Shape legend: B images, C channels, H x W pixels, N patches, L tokens, h heads, Q queries, D width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from unmask.models.attention import RecordAttention
from unmask.models.build import build_vit
from unmask.models.pretrained import open_encoder
from unmask.models.vit import VitEncoder
from unmask.views import normalise


class FrozenTeacher(nn.Module):
    """The encoder of a run folder, of an encoder file, or of timm ("timm:NAME"), as a teacher of patches.

    It sees the student's images at the size at which it has as many patches, normalised as it was trained. It has no
    stochastic depth, so train and eval mode are the same; none of its parameters takes a gradient. ValueError where
    there is no such encoder, where it is no ViT, and where it takes other channels than the student's images have.
    """

    def __init__(self, spec: str, *, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        found = open_encoder(spec)
        if not isinstance(found.encoder, VitEncoder):
            raise ValueError(f"the teacher {spec} is not a ViT, so its patches cannot be taught")
        if found.encoder.config.channels != channels:
            raise ValueError(f"the teacher {spec} takes {found.encoder.config.channels} channels, not {channels}")
        self.encoder = build_vit(replace(found.encoder.config, drop_path=0.0), mask_token=False)
        self.encoder.network.load_state_dict(found.encoder.network.state_dict())
        height, width = self.encoder.patch
        if self.encoder.grid != grid:
            self.encoder.set_image_size(grid[0] * height, grid[1] * width)
        self.encoder.requires_grad_(False)
        self.mean, self.std = found.mean, found.std

    @property
    def width(self) -> int:
        """Width D of its tokens."""
        return self.encoder.width

    @property
    def heads(self) -> int:
        """Attention heads of its last block."""
        return int(self.encoder.vit.blocks[-1].attn.num_heads)

    def prepared(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Images in [0, 1] as the teacher was trained to see them."""
        size = self.encoder.image_size
        if images_BCHW.shape[2:] != size:
            images_BCHW = F.interpolate(images_BCHW, size=size, mode="bicubic", antialias=True)
        return normalise(images_BCHW, self.mean, self.std)

    @torch.no_grad()
    def look(
        self, images_BCHW: Float[Tensor, "B C H W"], blocks: int
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B h L L"]]:
        """Of images in [0, 1]: the mean of the patch tokens that the last `blocks` blocks give, before the final norm,
        and the last block's attention before its softmax, queries first."""
        depth = self.encoder.depth
        with RecordAttention() as record:
            outputs = self.encoder.block_outputs(self.prepared(images_BCHW), tuple(range(depth - blocks, depth)))
        features_BND = torch.stack([self.encoder.patches(output) for output in outputs]).mean(dim=0)
        return features_BND, record.logits()


def salient_patches(
    attention_BhLL: Float[Tensor, "B h L L"], *, prefix: int, has_class_token: bool, count: int
) -> Int64[Tensor, "B Q"]:
    """The `count` patches to which the class token (without one: all patches together) attends most, over all heads."""
    queries = slice(0, 1) if has_class_token else slice(prefix, None)
    attended_BN = attention_BhLL[:, :, queries, prefix:].mean(dim=(1, 2))
    return attended_BN.topk(min(count, attended_BN.shape[1]), dim=1).indices
