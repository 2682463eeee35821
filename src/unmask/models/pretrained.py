"""An encoder with what one must know to use it: a safetensors file whose header says how to build and feed it.

timm alone loads such a file:

    header = json.loads(safe_open("encoder.safetensors", "pt").metadata()["unmask_encoder"])
    model = timm.create_model(header["timm_name"], **header["timm_arguments"])
    model.load_state_dict(load_file("encoder.safetensors"))

`model(images)` is then the mean of the patch tokens after the final norm, for images normalised by the header's
"mean" and "std". Images of more than 8 bits become 8 by the header's "pixel_range", where it has one. For a network
that gives maps (ResNet, ConvNeXt) it is the last map [B, D, rows, columns], whose mean over rows and columns is the
feature. ConvMAE's hybrid is not in timm: its header names none ("timm_name" is null), and
`read_encoder` reads it.

Shape legend: B images, C channels, H x W pixels, D width, r x c patches.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unmask.data.stored import PixelRange
from unmask.formats import FORMATS
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.model_file import (
    WRONG_VALUES,
    config_of,
    described,
    header_of,
    normalisation_of,
    range_entry,
    range_of,
    read_tensors,
)
from unmask.models.vit import VitEncoder
from unmask.ranks import whole
from unmask.views import normalise, to_float

HEADER = "unmask_encoder"
KIND = "encoder"
Pooling = Literal["mean", "class"]


@dataclass(frozen=True, kw_only=True)
class PretrainedEncoder:
    """An encoder, the normalisation it was trained with, and where it comes from."""

    encoder: Encoder
    mean: tuple[float, ...]
    std: tuple[float, ...]
    origin: str
    method: str | None = None
    """Name of the method that trained it, where that is known."""
    pixel_range: PixelRange | None = None
    """What becomes black and white of images with more than 8 bits; None: the ends of their type."""

    @torch.no_grad()
    def features(
        self, images_BCHW: UInt8[Tensor, "B C H W"], pooling: Pooling = "mean", block: int | None = None
    ) -> Float[Tensor, "B D"]:
        """Pooled float32 features of uint8 images, computed where the encoder is, returned on the CPU.

        `block`: of the tokens after this block of a ViT (0 is the first) and the final norm; None: the last one's.
        """
        return self.encoder.pool(self._tokens(images_BCHW, block), pooling).float().cpu()

    @torch.no_grad()
    def maps(self, images_BCHW: UInt8[Tensor, "B C H W"], block: int | None = None) -> Float[Tensor, "B D r c"]:
        """The patch tokens as a map; all else as for `features`."""
        patches_BND = self.encoder.patches(self._tokens(images_BCHW, block))
        rows = images_BCHW.shape[2] // self.encoder.patch[0]
        return patches_BND.transpose(1, 2).unflatten(2, (rows, -1)).float().cpu()

    def _tokens(self, images_BCHW: Tensor, block: int | None) -> Tensor:
        device = next(self.encoder.parameters()).device
        images = normalise(to_float(images_BCHW.to(device)), self.mean, self.std)
        if block is None:
            return self.encoder(images)
        if not isinstance(self.encoder, VitEncoder):
            raise ValueError(f"{self.encoder.config.name!r} is no ViT, of which a block could be chosen; leave it out")
        if not 0 <= block < self.encoder.depth:
            raise ValueError(f"block {block} is not there: the encoder's blocks are 0 to {self.encoder.depth - 1}")
        return self.encoder.norm(self.encoder.block_outputs(images, (block,))[0])

    def to(self, device: torch.device) -> PretrainedEncoder:
        """The same encoder, moved to `device` and set to eval mode."""
        self.encoder.to(device).eval()
        return self


def encoder_file(
    encoder: Encoder,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    facts: dict[str, Any],
    pixel_range: PixelRange | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of an encoder file. `facts` (method, version, ...) stand beside in the header."""
    name, arguments = encoder.timm_model or (None, None)
    header = {
        "format": FORMATS[KIND],
        "timm_name": name,
        "timm_arguments": arguments,
        "read_with": "timm" if name is not None else "unmask.open_encoder; timm has no such network",
        "mean": mean,
        "std": std,
        **range_entry(pixel_range),
        "encoder": dataclasses.asdict(encoder.config),
        **facts,
    }
    state = {key: whole(value.detach()).cpu() for key, value in encoder.network.state_dict().items()}
    return state, {HEADER: json.dumps(header)}


def read_encoder(path: Path) -> PretrainedEncoder:
    """The encoder in a file that `encoder_file` made. ValueError where it is another kind of file or damaged."""
    tensors, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    try:
        config = config_of(EncoderConfig, header["encoder"])
        mean, std = normalisation_of(header, config.channels)
        pixel_range = range_of(header)
    except WRONG_VALUES as error:
        raise ValueError(f"{path} has a damaged header") from error
    encoder = described(
        lambda: build_encoder(config, mask_token=False),
        lambda made: made.network.load_state_dict(tensors),
        path,
        "the encoder",
    )
    method = header.get("method")
    return PretrainedEncoder(
        encoder=encoder,
        mean=mean,
        std=std,
        origin=str(path),
        method=method if isinstance(method, str) else None,
        pixel_range=pixel_range,
    )


def timm_encoder(name: str) -> PretrainedEncoder:
    """A network with timm's released weights, downloaded by timm. ValueError where timm has none or cannot get them."""
    encoder = build_encoder(EncoderConfig(name=name), mask_token=False)
    if encoder.timm_model is None:
        raise ValueError(f"timm has no weights for {name!r}")
    _, arguments = encoder.timm_model
    try:
        model: Any = timm.create_model(name, pretrained=True, **arguments)
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"timm could not load weights for {name!r} ({reason})") from error
    encoder.network.load_state_dict(model.state_dict())
    cfg = model.pretrained_cfg
    return PretrainedEncoder(encoder=encoder, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]), origin=f"timm:{name}")


def open_encoder(spec: str) -> PretrainedEncoder:
    """The encoder of a run folder, of an encoder file, or of timm ("timm:NAME")."""
    if spec.startswith("timm:"):
        return timm_encoder(spec.removeprefix("timm:"))
    path = Path(spec)
    if not path.exists():
        raise ValueError(f"there is no run folder or encoder file {spec}")
    if path.is_dir():
        if not (path / "encoder.safetensors").exists():
            raise ValueError(f"{spec} holds no encoder.safetensors; is the run finished?")
        path = path / "encoder.safetensors"
    return read_encoder(path)
