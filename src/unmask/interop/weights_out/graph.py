"""An encoder as one graph for torch.export and ONNX: images in, features out, nothing of ours needed any more.

Shape legend: B images, C channels, H x W pixels, r x c patches, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from timm.models.beit import Beit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from unmask.interop.weights_out.compare import Difference, difference, normalised
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder import Encoder
from unmask.models.model_file import range_entry
from unmask.models.pixels import PixelEncoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.vit import VitEncoder

Output = Literal["tokens", "mean", "class"]
Inside = Literal["float", "uint8"]
INPUT, OUTPUT = "images", "features"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """What the graph takes and gives."""

    output: Output = "mean"
    normalise: Inside | None = None
    """Which images it normalises itself: values in [0, 1], or bytes. None: it takes normalised ones."""
    any_size: bool = False
    """Whether images may have another height and width: multiples of the patch, at least two of them."""

    def facts(self, pretrained: PretrainedEncoder) -> dict[str, Any]:
        """What whoever uses the file must know."""
        height, width = pretrained.encoder.image_size
        return {
            "input": {None: "normalised by mean and std", "float": "values in [0, 1]", "uint8": "bytes"}[
                self.normalise
            ],
            "output": self.output,
            "channels": pretrained.encoder.config.channels,
            "height": height,
            "width": width,
            "any_size": self.any_size,
            "mean": pretrained.mean,
            "std": pretrained.std,
            **range_entry(pretrained.pixel_range),
            "method": pretrained.method,
        }


class _Features(nn.Module):
    """Images to features, with the normalisation where it is wanted inside."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, pretrained: PretrainedEncoder, graph: Graph) -> None:
        super().__init__()
        self.encoder = pretrained.encoder
        self.graph = graph
        for name, values in (("mean_C11", pretrained.mean), ("std_C11", pretrained.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        if self.graph.normalise == "uint8":
            images = images.float() / 255
        if self.graph.normalise is not None:
            images = (images - self.mean_C11) / self.std_C11
        tokens_BLD = _tokens_of_any_size(self.encoder, images) if self.graph.any_size else self.encoder(images)
        if self.graph.output == "tokens":
            return tokens_BLD
        return self.encoder.pool(tokens_BLD, self.graph.output)


def _tokens_of_any_size(encoder: Encoder, images_BCHW: Tensor) -> Tensor:
    """`encoder(images)` without a question about their size: positions are interpolated in any case, which changes
    nothing at their own size."""
    if isinstance(encoder, ConvEncoder):
        maps_BDrc: Tensor = encoder.network(images_BCHW)
        return maps_BDrc.flatten(2).transpose(1, 2)
    assert isinstance(encoder, VitEncoder)
    vit = encoder.vit
    patches_BDrc = vit.patch_embed.proj(images_BCHW)
    size = patches_BDrc.shape[2:]
    patches = vit.patch_embed.norm(patches_BDrc.flatten(2).transpose(1, 2))
    names = ("cls_token",) if isinstance(vit, Beit) else ("cls_token", "reg_token")
    prefix_1PD = [token for token in (getattr(vit, name) for name in names) if token is not None]
    prefix = torch.cat(prefix_1PD, dim=1) if prefix_1PD else None
    if vit.pos_embed is not None:
        positioned = 0 if not isinstance(vit, Beit) and vit.no_embed_class else encoder.prefix
        of_prefix, of_patches = vit.pos_embed.split([positioned, vit.pos_embed.shape[1] - positioned], dim=1)
        grid_1Drc = of_patches.unflatten(1, encoder.grid).permute(0, 3, 1, 2)
        antialias = encoder.config.position_resize == "antialias"
        grid_1Drc = F.interpolate(grid_1Drc, size=size, mode="bicubic", antialias=antialias)
        patches = patches + grid_1Drc.flatten(2).transpose(1, 2)
        if prefix is not None and positioned:
            prefix = prefix + of_prefix
    tokens = patches if prefix is None else torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1)
    if not isinstance(vit, Beit):
        tokens = vit.norm_pre(tokens)
    return encoder.norm(encoder.further(encoder.blocks, tokens))


def check_graph(encoder: Encoder, graph: Graph) -> None:
    """ValueError for what the graph of this encoder cannot do."""
    name = encoder.config.name
    if isinstance(encoder, PixelEncoder):
        raise ValueError(f"{name!r} looks colours up part by part, which no graph can hold; export to safetensors")
    if graph.output == "class" and not encoder.has_class_token:
        raise ValueError(f"{name!r} has no class token; take --output mean or tokens")
    if graph.any_size and isinstance(encoder, VitEncoder):
        if not _has_absolute_positions(encoder):
            raise ValueError(f"{name!r} has relative positions of one size of image; leave --dynamic-size out")
        if encoder.config.position_resize == "offset":
            raise ValueError(
                f"{name!r} interpolates positions by DINO's rule, which jumps at its own size; leave --dynamic-size out"
            )
    elif graph.any_size and not isinstance(encoder, ConvEncoder):
        raise ValueError(f"{name!r} is made for one size of image; leave --dynamic-size out")


def _has_absolute_positions(encoder: VitEncoder) -> bool:
    """Or none at all: nothing that depends on two places in a grid of one size."""
    tables = [name for name in encoder.network.state_dict() if name.endswith("relative_position_bias_table")]
    return type(encoder.vit) in (VisionTransformer, Beit) and not tables


def dimensions(encoder: Encoder, graph: Graph) -> dict[int, Any]:
    """The sizes of the input that are free."""
    free: dict[int, Any] = {0: Dim("batch", min=1)}
    if graph.any_size:
        (ph, pw) = encoder.patch
        free |= {2: ph * Dim("rows", min=2), 3: pw * Dim("columns", min=2)}
    return free


@torch.no_grad()
def program(pretrained: PretrainedEncoder, graph: Graph, images_BCHW: UInt8[Tensor, "B C H W"]) -> ExportedProgram:
    """The graph, traced with these images."""
    encoder = pretrained.encoder
    given = graph_input(pretrained, graph, images_BCHW)
    # A batch of one would be taken for a constant.
    given = given[:1].expand(2, -1, -1, -1).contiguous()
    if graph.any_size:
        given = _stretched(given, *_sizes(encoder)[0])
    free = (dimensions(encoder, graph),)
    return torch.export.export(_Features(pretrained, graph).eval(), (given,), dynamic_shapes=free, strict=False)


def graph_input(pretrained: PretrainedEncoder, graph: Graph, images_BCHW: UInt8[Tensor, "B C H W"]) -> Tensor:
    """Images as the graph takes them."""
    if graph.normalise == "uint8":
        return images_BCHW
    return images_BCHW.float() / 255 if graph.normalise == "float" else normalised(pretrained, images_BCHW)


def samples(pretrained: PretrainedEncoder, graph: Graph, images_BCHW: Tensor) -> dict[str, Tensor]:
    """By a description, the images that an export must agree on: batches of two sizes, and images of others."""
    found = {f"of a batch of {len(images_BCHW)}": images_BCHW, "of one image": images_BCHW[-1:]}
    if graph.any_size:
        for height, width in _sizes(pretrained.encoder):
            found[f"of {height}x{width} pixels"] = _stretched(images_BCHW[:2], height, width)
    return found


def _sizes(encoder: Encoder) -> tuple[tuple[int, int], ...]:
    """A larger and a smaller size than the encoder's own, of other proportions."""
    (rows, columns), (ph, pw) = encoder.grid, encoder.patch
    return ((rows + 1) * ph, (columns + 3) * pw), (max(2, rows // 2) * ph, max(2, columns // 2 + 1) * pw)


def _stretched(images_BCHW: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(images_BCHW.float(), size=(height, width), mode="nearest").to(images_BCHW.dtype)


def our_features(
    pretrained: PretrainedEncoder, graph: Graph, images_BCHW: UInt8[Tensor, "B C H W"]
) -> Float[Tensor, "B ..."]:
    """What the graph must give, by the encoder itself."""
    with torch.no_grad():
        tokens_BLD = pretrained.encoder(normalised(pretrained, images_BCHW))
        return tokens_BLD if graph.output == "tokens" else pretrained.encoder.pool(tokens_BLD, graph.output)


def compared(run: Any, pretrained: PretrainedEncoder, graph: Graph, images_BCHW: Tensor) -> list[Difference]:
    """Features by `run`, a function of the graph's input, beside ours."""
    return [
        difference(
            f"features {what}", run(graph_input(pretrained, graph, images)), our_features(pretrained, graph, images)
        )
        for what, images in samples(pretrained, graph, images_BCHW).items()
    ]
