"""What features are made by: encoder, block, output, size of the images. The same recipe makes comparable features.

Shape legend: B images, C channels, H x W pixels, D width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import Doc

from unmask.models.model_file import range_entry
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.vit import VitEncoder

Output = Literal["mean", "class", "dense"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides over the values of features, but for rounding."""

    checksum: Annotated[str, Doc("SHA-256 of the encoder's tensors, its configuration and its normalisation.")]
    output: Annotated[Output, Doc("Mean of the patches, class token, or maps of all patches.")]
    block: Annotated[int | None, Doc("The ViT block behind which features are taken, 0 the first; None: no ViT.")]
    image_size: Annotated[tuple[int, int], Doc("Height and width of the images, in pixels.")]


class Extractor:
    """An encoder set to one kind of features."""

    def __init__(
        self,
        encoder: PretrainedEncoder,
        *,
        output: Output = "mean",
        block: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        """The encoder is changed where it takes images of another size. ValueError for what it cannot give."""
        inner = encoder.encoder
        checksum = encoder_checksum(encoder)  # positions change with the size
        if image_size is not None and image_size != inner.image_size:
            inner.set_image_size(*image_size)
        self.encoder = encoder
        self.recipe = Recipe(
            checksum=checksum,
            output=output,
            block=inner.depth - 1 if block is None and isinstance(inner, VitEncoder) else block,
            image_size=inner.image_size,
        )
        # What this encoder does not have is refused before there is any work done.
        blank_1CHW = torch.zeros(1, inner.config.channels, *inner.image_size, dtype=torch.uint8)
        self.shape: tuple[int, ...] = tuple(self(blank_1CHW).shape[1:])

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.encoder.encoder.config.channels

    def __call__(self, images_BCHW: UInt8[Tensor, "B C H W"], /) -> Tensor:
        """Features [B, *shape] of uint8 images, float32 on the CPU."""
        if self.recipe.output == "dense":
            return self.encoder.maps(images_BCHW, self.recipe.block)
        return self.encoder.features(images_BCHW, self.recipe.output, self.recipe.block)


def encoder_checksum(encoder: PretrainedEncoder) -> str:
    """SHA-256 of all that makes an encoder give its features, wherever it lies."""
    facts = {"config": asdict(encoder.encoder.config), "mean": encoder.mean, "std": encoder.std}
    facts |= range_entry(encoder.pixel_range)
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(encoder.encoder.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
