"""ViTDet's feature maps of a plain ViT: attention in windows, and a pyramid made of the last map alone.

Li et al., Exploring Plain Vision Transformer Backbones for Object Detection, 2022; layers as in its code (detectron2).
In all but a few blocks attention sees only a window of the image. We cut the tokens into windows around a whole timm
block: what a block does beside attention concerns each token alone, so this is exact. (Stochastic depth then drops a
window where ViTDet drops an image.) Where ViTDet pads the grid to whole windows we cut windows that differ by a token
a side, so nothing attends to padding. ViTDet has no class token: we leave prefix tokens out once any block has windows,
as they would carry news from one window to the next. Where none has (the grid is one window, or every block is global)
the encoder runs as it was pre-trained, prefix tokens included. As in ViTDet no norm follows the last block. An encoder
that is no ViT gives its last map, without windows.

Shape legend: B images, C channels, H x W pixels, N patches (row-major), D width of the encoder, r x c rows and columns
of a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from unmask.models.encoder import Encoder
from unmask.models.vit import VitEncoder

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sides of the pyramid's maps by the side of the encoder's last map."""
LEVELS = ("0", "1", "2", "3", "pool")
"""torchvision's names of the maps, finest first; the last is every second place of the one before."""


class SimplePyramid(nn.Module):
    """Five maps of `width` channels; for patches of 16 pixels at strides of 4, 8, 16, 32 and 64.

    It takes the encoder over: a ViT's final norm, which has no part in the maps, is removed. `window` is the most
    tokens a side of a window, None for global attention everywhere; `global_count` is how many blocks attend to the
    whole image. Images must have the encoder's size. A frozen encoder takes no gradient and stays in eval mode,
    whatever mode the module around it is in. ValueError for patches that are not square and for numbers below 1.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        width: int = 256,
        window: int | None = 14,
        global_count: int = 4,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        if encoder.patch[0] != encoder.patch[1]:
            raise ValueError(f"the feature pyramid needs square patches, not {encoder.patch[0]}x{encoder.patch[1]}")
        numbers = {
            "a window's side": window,
            "the number of global blocks": global_count,
            "the pyramid's width": width,
        }
        for what, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if isinstance(encoder, VitEncoder):
            encoder.remove_norm()
        self.encoder = encoder
        self.frozen = frozen
        if frozen:
            encoder.requires_grad_(False).eval()
        self.out_channels = width
        self.stages = nn.ModuleList(_stage(encoder.width, width, scale) for scale in SCALES)
        self._global_blocks = global_blocks(encoder.depth, global_count)
        whole = window is None or max(encoder.grid) <= window or len(self._global_blocks) == encoder.depth
        self._window = None if whole else window

    @property
    def strides(self) -> tuple[float, ...]:
        """Pixels from one place to the next in each map."""
        fine = [self.encoder.patch[0] / scale for scale in SCALES]
        return (*fine, 2 * fine[-1])

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> dict[str, Tensor]:
        """The maps [B, width, rows, columns] under the names of `LEVELS`, as torchvision wants them."""
        last_BDrc = self.last_map(images_BCHW)
        maps = [stage(last_BDrc) for stage in self.stages]
        maps.append(F.max_pool2d(maps[-1], kernel_size=1, stride=2))
        return dict(zip(LEVELS, maps, strict=True))

    def last_map(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D r c"]:
        """The encoder's last map."""
        assert images_BCHW.shape[2:] == self.encoder.image_size, "images must have the encoder's size"
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self._last_patches(images_BCHW).transpose(1, 2).unflatten(2, self.encoder.grid)

    def train(self, mode: bool = True) -> SimplePyramid:
        """As for every module, but a frozen encoder stays in eval mode, and so do batch norms of any: few large images
        make a batch, too few for statistics."""
        super().train(mode)
        for module in self.encoder.modules():
            if self.frozen or isinstance(module, nn.BatchNorm2d):
                module.training = False
        return self

    def _last_patches(self, images_BCHW: Tensor) -> Tensor:
        encoder = self.encoder
        if not isinstance(encoder, VitEncoder):
            return encoder.patches(encoder(images_BCHW))
        if self._window is None:
            (last_BLD,) = encoder.block_outputs(images_BCHW, (encoder.depth - 1,))
            return encoder.patches(last_BLD)
        patches_BND = encoder.patches(encoder.embed(images_BCHW))
        for index in range(encoder.depth):
            window = max(encoder.grid) if index in self._global_blocks else self._window
            patches_BND = windowed_block(encoder, index, patches_BND, window)
        return patches_BND


def global_blocks(depth: int, count: int) -> frozenset[int]:
    """The blocks that attend to the whole image: the last of each of `count` equal parts of the depth (ViTDet)."""
    return frozenset(depth * part // count - 1 for part in range(1, count + 1) if depth * part >= count)


def windowed_block(
    encoder: VitEncoder, index: int, patches_BND: Float[Tensor, "B N D"], window: int
) -> Float[Tensor, "B N D"]:
    """Patches of whole images after block `index`, in which each attends to those of its own window alone.

    The grid is cut into as few windows as there can be of at most `window` tokens a side.
    """
    rows, columns = encoder.grid
    grid_BrcD = patches_BND.unflatten(1, (rows, columns))
    places_rc = encoder.prefix + torch.arange(rows * columns, device=patches_BND.device).view(rows, columns)
    bands = []
    for top, bottom, height in _runs(rows, window):
        parts = []
        for left, right, width in _runs(columns, window):
            part = grid_BrcD[:, top:bottom, left:right].unflatten(2, (-1, width)).unflatten(1, (-1, height))
            windows = part.transpose(2, 3)  # [B, windows down, windows across, height, width, D]
            tokens = windows.flatten(0, 2).flatten(1, 2)
            tokens = encoder.run_block(index, tokens, places_rc[:height, :width].flatten())
            part = tokens.view(windows.shape).transpose(2, 3)
            parts.append(part.flatten(3, 4).flatten(1, 2))
        bands.append(torch.cat(parts, dim=2))
    return torch.cat(bands, dim=1).flatten(1, 2)


def _runs(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Start, end and window side of the longer windows of a line of tokens, then of those that are one shorter."""
    count = math.ceil(length / window)
    short, longer = divmod(length, count)
    border = longer * (short + 1)
    if longer:
        yield 0, border, short + 1
    yield border, length, short


def _stage(width: int, out: int, scale: float) -> nn.Sequential:
    """From the last map to one map of the pyramid (detectron2's SimpleFeaturePyramid)."""
    layers: list[nn.Module] = []
    if scale == 4:
        layers += [
            nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2),
            LayerNorm2d(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, kernel_size=2, stride=2),
        ]
        width //= 4
    elif scale == 2:
        layers.append(nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2))
        width //= 2
    elif scale == 0.5:
        # An odd map keeps its last row and column.
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
    layers += [
        nn.Conv2d(width, out, kernel_size=1, bias=False),
        LayerNorm2d(out),
        nn.Conv2d(out, out, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(out),
    ]
    return nn.Sequential(*layers)
