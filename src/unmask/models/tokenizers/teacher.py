"""What a tokenizer learns from another network: features to imitate (VQ-KD), a distance to judge by (PeCo).

The teacher sees every image at its own size, so that any encoder teaches any tokenizer of the same channels.

Shape legend: B images, C channels, H x W pixels, N patches of the teacher, n tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.conv import map_of, rows_of
from unmask.models.vit import VitEncoder
from unmask.views import normalise


@torch.no_grad()
def teacher_patches(
    teacher: PretrainedEncoder, images_BCHW: Float[Tensor, "B C H W"], grid: tuple[int, int]
) -> Float[Tensor, "B n D"]:
    """The teacher's patch tokens after its final norm, one for each place of `grid`; a teacher with another grid has
    its map of features resized (bilinear)."""
    encoder = teacher.encoder
    tokens_BND = encoder.patches(encoder(_for_teacher(teacher, images_BCHW))).float()
    if encoder.grid == grid:
        return tokens_BND
    map_BDhw = F.interpolate(map_of(tokens_BND, encoder.grid), size=grid, mode="bilinear", antialias=True)
    return rows_of(map_BDhw)


def perceptual_distance(
    teacher: PretrainedEncoder,
    one_BCHW: Float[Tensor, "B C H W"],
    other_BCHW: Float[Tensor, "B C H W"],
    layers: int,
) -> Float[Tensor, ""]:
    """Mean squared distance of the two images' normalised patch features, over patches and `layers` blocks of the
    teacher that are evenly spaced and end with its last; the gradient flows into the second images."""
    encoder = teacher.encoder
    if not isinstance(encoder, VitEncoder):
        raise ValueError(f"a perceptual loss needs a ViT, which {teacher.origin} is not")
    if not 1 <= layers <= encoder.depth:
        raise ValueError(f"{teacher.origin} has {encoder.depth} blocks, so {layers} of them cannot be compared")
    blocks = tuple(encoder.depth * (layer + 1) // layers - 1 for layer in range(layers))
    with torch.no_grad():
        ones = encoder.block_outputs(_for_teacher(teacher, one_BCHW), blocks)
    others = encoder.block_outputs(_for_teacher(teacher, other_BCHW), blocks)
    distances = [
        (_directions(encoder, one) - _directions(encoder, other)).square().sum(dim=-1).mean()
        for one, other in zip(ones, others, strict=True)
    ]
    return torch.stack(distances).mean()


def _directions(encoder: VitEncoder, tokens_BLD: Tensor) -> Tensor:
    return F.normalize(encoder.patches(tokens_BLD).float(), dim=-1)


def _for_teacher(teacher: PretrainedEncoder, images_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] as the teacher was trained to see them."""
    channels = teacher.encoder.config.channels
    if images_BCHW.shape[1] != channels:
        raise ValueError(f"the teacher {teacher.origin} takes {channels} channels, not {images_BCHW.shape[1]}")
    size = teacher.encoder.image_size
    if images_BCHW.shape[2:] != size:
        images_BCHW = F.interpolate(images_BCHW, size=size, mode="bicubic", antialias=True)
    return normalise(images_BCHW, teacher.mean, teacher.std)
