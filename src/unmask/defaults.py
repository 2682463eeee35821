"""Defaults that follow from the data: image size, patch, batch and workers, where the user says nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from unmask.colour.plan import ColourConfig
from unmask.data.sources import Source
from unmask.data.statistics import first_opened, mean_and_std, median_size
from unmask.methods.base import IMAGENET_MEAN, MethodConfig
from unmask.models.build import fixed_patch, renamed
from unmask.models.encoder_config import EncoderConfig

FULL_SIZE = 224
_USUAL_CHANNELS = (1, 3)
"""Grey and colours, which become one another."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What the user asked for; None leaves the choice to the data."""

    encoder: str | None = None
    image_size: tuple[int, int] | None = None
    patch_size: int | None = None
    channels: int | None = None
    normalisation: str = "imagenet"
    """imagenet, data, or given: as the settings have it, whatever the channels."""
    lr: float | None = None


def default_patch(side: int) -> int:
    """A patch size that cuts a side of `side` pixels into 8 to 20 patches or so: 16, 8 or 4."""
    return 16 if side >= 160 else 8 if side >= 56 else 4


def default_side(median: int, patch: int) -> int:
    """The side of square crops for images of this median side: at most 224, a multiple of two patches."""
    step = 2 * patch
    return max(step * 2, min(FULL_SIZE, step * int(median / step + 0.5)))


def default_batch(samples: int, accelerated: bool) -> int:
    """The largest power of two up to 256 (64 without a GPU) that leaves at least four steps an epoch."""
    return cautious_batch(256 if accelerated else 64, samples)


def cautious_batch(most: int, samples: int) -> int:
    """`most` images, a power of two, or so many fewer that at least four steps an epoch are left.

    Never one image where there are two: neither batch norm nor a contrast within the batch means anything then.
    """
    while most > 2 and most * 4 > samples:
        most //= 2
    return min(most, samples)


def processors() -> int:
    """How many processors there are for us."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """As many decoding processes as there are processors for us, at most 8; for each rank its share of them."""
    return min(8, max(1, processors() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def fitting_channels(usual: int, wish: int | None, source: Source) -> int:
    """How many channels to take: as the user says, or as the images have where they are neither grey nor colours, or
    else the usual number. ValueError where none can be opened."""
    if wish is not None or usual not in _USUAL_CHANNELS:
        return usual if wish is None else wish
    found = first_opened(source).channels
    return usual if found in _USUAL_CHANNELS else found


def fit_settings(settings: MethodConfig, wishes: Wishes, source: Source | None) -> tuple[MethodConfig, list[str]]:
    """A method's settings for this data, and a sentence for everything that was chosen.

    Without data (None) images are of the size asked for, or else of the one that the settings have.
    """
    fitted = settings if source is None else settings.for_source(source)
    notes = [
        f"{name.replace('_', ' ')} {value}, for these images"
        for name, value in vars(fitted).items()
        if value != vars(settings)[name]
    ]
    settings = fitted
    encoder = settings.encoder
    if wishes.patch_size is not None and wishes.patch_size < 1:
        raise ValueError(f"the patch size must be at least 1 pixel, got {wishes.patch_size}")
    if wishes.encoder is not None:
        encoder = renamed(encoder, wishes.encoder, type(settings)().encoder)
    if wishes.channels is not None:
        encoder = replace(encoder, channels=wishes.channels)
    elif source is not None:
        channels = fitting_channels(encoder.channels, None, source)
        if channels != encoder.channels:
            notes.append(f"{channels} channels, as the images have")
        encoder = replace(encoder, channels=channels)
    height, width, patch = _sizes(encoder, wishes, source, notes)
    mean, std = _normalisation(settings, encoder.channels, wishes.normalisation, source, notes)
    settings = replace(
        settings.for_images(height, width),
        encoder=replace(encoder, image_height=height, image_width=width, patch_size=patch),
        mean=mean,
        std=std,
    )
    settings = _without_hue(settings, notes)
    if wishes.lr is not None:
        settings = replace(settings, optimizer=replace(settings.optimizer, lr=wishes.lr, lr_batch=None))
    return settings, notes


def _sizes(
    encoder: EncoderConfig, wishes: Wishes, source: Source | None, notes: list[str]
) -> tuple[int, int, int | None]:
    """Height, width and patch of the crops; no patch for a network whose stride is what it is."""
    stride = fixed_patch(encoder.name)
    if stride is not None and wishes.patch_size not in (None, stride):
        raise ValueError(f"{encoder.name!r} has a stride of {stride} pixels, so its patch size cannot be chosen")
    if wishes.image_size is not None or source is None:
        height, width = wishes.image_size or (encoder.image_height, encoder.image_width)
        patch = wishes.patch_size or encoder.patch_size or default_patch(min(height, width))
        return height, width, patch if stride is None else None
    median = min(median_size(source))
    if stride is not None:
        # Two places a side at least: a map of one place has no neighbours to look at.
        side = max(2 * stride, min(FULL_SIZE, stride * int(median / stride + 0.5)))
        notes.append(f"crops of {side}x{side} pixels, for images of median side {median}")
        return side, side, None
    patch = wishes.patch_size or encoder.patch_size or default_patch(median)
    side = default_side(median, patch)
    notes.append(f"crops of {side}x{side} pixels in patches of {patch}, for images of median side {median}")
    return side, side, patch


def _without_hue(settings: MethodConfig, notes: list[str]) -> MethodConfig:
    """Settings that turn no hue where there is none: it is an angle between red, green and blue."""
    channels = settings.encoder.channels
    turned: dict[str, Any] = {
        name: replace(value, hue=0.0)
        for name, value in vars(settings).items()
        if isinstance(value, ColourConfig) and value.hue and value.jitter_p
    }
    if channels == 3 or not turned:
        return settings
    notes.append(f"no changes of hue, which need red, green and blue, for {channels} channel{'s' * (channels > 1)}")
    return replace(settings, **turned)


def _normalisation(
    settings: MethodConfig, channels: int, wish: str, source: Source | None, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if wish == "given" and len(settings.mean) == channels:
        return settings.mean, settings.std
    if wish == "data" or channels != len(IMAGENET_MEAN):
        if source is None:
            return (0.5,) * channels, (0.25,) * channels
        mean, std = mean_and_std(source, channels=channels)
        notes.append(f"mean {_rounded(mean)} and deviation {_rounded(std)}, computed from the data")
        return _rounded(mean), _rounded(std)
    return settings.mean, settings.std


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(value, 4) for value in values)
