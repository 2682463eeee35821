"""An encoder for images of another size, patches of another size, or other channels, with what that changed.

Shape legend: C channels, p side of a patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor

from unmask.models.build import build_encoder
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder import Encoder
from unmask.models.hybrid import HybridEncoder
from unmask.models.vit import VitEncoder


def resized(
    encoder: Encoder,
    *,
    image_size: tuple[int, int] | None = None,
    patch_size: int | None = None,
    channels: int | None = None,
) -> tuple[Encoder, dict[str, str]]:
    """The encoder with what is asked for, and by name of a tensor in `Encoder.network` how it was changed.

    Images keep their size where none is given, so smaller patches mean more of them. ValueError for what the network
    does not have or cannot change.
    """
    changed: dict[str, str] = {}
    size = image_size or (encoder.config.image_height, encoder.config.image_width)
    encoder = _with_patches(encoder, patch_size, channels, changed)
    if size == (encoder.config.image_height, encoder.config.image_width):
        return encoder, changed
    old_grid, before = encoder.grid, {name: value.clone() for name, value in encoder.network.state_dict().items()}
    encoder.set_image_size(*size)
    new_grid = encoder.grid
    grids = f"from {old_grid[0]}x{old_grid[1]} to {new_grid[0]}x{new_grid[1]} patches"
    for name, value in encoder.network.state_dict().items():
        if value.shape != before[name].shape:
            fixed = (name == "pos_embed" and encoder.config.position == "sincos") or isinstance(encoder, HybridEncoder)
            changed[name] = f"fixed positions computed anew, {grids}" if fixed else f"positions interpolated {grids}"
    return encoder, changed


def _with_patches(encoder: Encoder, patch_size: int | None, channels: int | None, changed: dict[str, str]) -> Encoder:
    """The same grid of other patches."""
    config = encoder.config
    old = config.channels
    if patch_size is not None and patch_size < 1:
        raise ValueError(f"the patch size must be at least 1 pixel, got {patch_size}")
    if channels is not None and channels < 1:
        raise ValueError(f"images must have at least 1 channel, got {channels}")
    patch = encoder.patch[0] if patch_size is None else patch_size
    channels = old if channels is None else channels
    if patch == encoder.patch[0] and channels == old:
        return encoder
    if patch != encoder.patch[0] and not isinstance(encoder, VitEncoder):
        raise ValueError(f"the patches of {config.name!r} cannot be changed, as its stages are made for them")
    name = _first_layer(encoder)
    state = encoder.network.state_dict()
    weight = state[name]
    if channels != old:
        weight = _for_channels(weight, encoder, old, channels)
        changed[name] = f"from {old} to {channels} channels, " + (
            "their sum" if channels == 1 else "repeated and scaled"
        )
    if patch != encoder.patch[0]:
        weight = resample_patch_embed(weight, [patch, patch])
        how = f"from patches of {encoder.patch[0]} to {patch} pixels, resampled"
        changed[name] = f"{changed[name]}; {how}" if name in changed else how
    rows, columns = encoder.grid
    sizes: dict[str, Any] = {"channels": channels}
    if isinstance(encoder, VitEncoder):
        sizes |= {"patch_size": patch, "image_height": rows * patch, "image_width": columns * patch}
    found = build_encoder(replace(config, **sizes), mask_token=False)
    found.network.load_state_dict(state | {name: weight})
    return found


def _first_layer(encoder: Encoder) -> str:
    """Name of the weight that reads the image."""
    if isinstance(encoder, VitEncoder):
        return "patch_embed.proj.weight"
    if isinstance(encoder, HybridEncoder):
        return "stages.0.embed.proj.weight"
    if isinstance(encoder, ConvEncoder):
        first = cast(Any, encoder.network).pretrained_cfg["first_conv"]
        if isinstance(first, str):
            return f"{first}.weight"
    raise ValueError(f"{encoder.config.name!r} reads no channels that could be changed")


def _for_channels(weight: Tensor, encoder: Encoder, old: int, new: int) -> Tensor:
    if not isinstance(encoder, HybridEncoder):
        return adapt_input_conv(new, weight, base_chans=old)
    # There it is a linear layer of row, column, channel.
    stride = encoder.patch[0] // 4
    convolution = weight.unflatten(1, (stride, stride, old)).permute(0, 3, 1, 2)
    return adapt_input_conv(new, convolution, base_chans=old).permute(0, 2, 3, 1).flatten(1)


def for_channels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Means or deviations of other channels, as the weights of channels are repeated; their average for one."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[channel % len(values)] for channel in range(channels))
