"""Images of any number of channels as pictures in red, green and blue, all images of a sheet in the same way.

Shape legend: B images, C channels, H x W pixels, S channels that are shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Chosen = tuple[int, ...] | None
"""Channels to show, counted from 0: one, two or three; None leaves the choice to `FalseColour.of`."""

DARK = 0.25
"""Where the 99th percentile of what is shown lies below this, in [0, 1], the picture would be nearly black."""
_LOW, _HIGH = 1, 99
_ENOUGH = 2**20
"""Values of a channel that percentiles are taken of."""


@dataclass(frozen=True)
class FalseColour:
    """Which channels of an image are shown, as which colours, and from which value (black) to which (full).

    One channel is grey, two are green and magenta, which every kind of colour vision tells apart and which together
    make grey, three are red, green and blue. Channels count from 0, values lie in [0, 1].
    """

    channels: tuple[int, ...]
    total: int
    low_S: tuple[float, ...]
    high_S: tuple[float, ...]

    @classmethod
    def of(
        cls, images: Float[Tensor, "B C H W"] | Sequence[Float[Tensor, "C _ _"]], chosen: Chosen = None
    ) -> FalseColour:
        """How these images are shown, with values in [0, 1]; there is at least one.

        Nobody but the user knows what channels mean, so the first three of many are shown. Values are stretched where
        the pictures would be nearly black: from the 1st to the 99th percentile over all images, each channel by itself
        as there is no truth about their proportions, RGB by one stretch, which leaves its hues. Raises ValueError as
        `check_chosen` does.
        """
        total = len(images[0])
        check_chosen(chosen, total)
        channels = tuple(range(min(total, 3))) if chosen is None else chosen
        low_S, high_S = (0.0,) * len(channels), (1.0,) * len(channels)
        values = [_some([image_CHW[channel] for image_CHW in images]) for channel in channels]
        if total == 3 and len(channels) == 3:
            values = [np.concatenate(values)] * 3
        ends = [np.percentile(some, (_LOW, _HIGH)).tolist() for some in values]
        if any(high < DARK for _, high in ends):
            # A channel of a single value has nothing to stretch.
            ends = [(low, high) if high > low else (0.0, 1.0) for low, high in ends]
            low_S, high_S = tuple(low for low, _ in ends), tuple(high for _, high in ends)
        return cls(channels, total, low_S, high_S)

    def __call__(self, images: Float[Tensor, "*B C H W"]) -> Float[Tensor, "*B 3 H W"]:
        """The images in red, green and blue, values in [0, 1]; others than those that this was made for look alike."""
        shown = images[..., list(self.channels), :, :].detach().float().cpu().nan_to_num(0.0)
        low_S11, high_S11 = (torch.tensor(ends)[:, None, None] for ends in (self.low_S, self.high_S))
        shown = ((shown - low_S11) / (high_S11 - low_S11)).clamp(0, 1)
        if len(self.channels) == 2:
            return shown[..., [1, 0, 1], :, :]
        return shown.expand(*shown.shape[:-3], 3, *shown.shape[-2:])

    @property
    def stretched(self) -> bool:
        """Whether black and full are others than 0 and 1."""
        return any(low != 0 for low in self.low_S) or any(high != 1 for high in self.high_S)

    @property
    def sentence(self) -> str:
        """What a reader of the pictures must know of their colours; nothing where they are what they seem."""
        names = [str(channel + 1) for channel in self.channels]
        sentences = []
        if self.total > 1 and len(names) == 1:
            sentences.append(f"Shown is channel {names[0]} of {self.total}.")
        elif len(names) == 2:
            sentences.append(f"Channel {names[0]} of {self.total} is shown in green, channel {names[1]} in magenta.")
        elif self.total > 1 and (self.total, self.channels) != (3, (0, 1, 2)):
            sentences.append(
                f"Channels {names[0]}, {names[1]} and {names[2]} of {self.total} are shown as red, green and blue."
            )
        if self.stretched:
            what = "Each of them" if sentences and len(names) > 1 else "Brightness"
            sentences.append(
                f"{what} is stretched from its {_LOW}st to its {_HIGH}th percentile, without which the pictures would "
                "be nearly black."
            )
        return " ".join(sentences)

    def captioned(self, caption: str) -> str:
        """A caption with that sentence."""
        return f"{caption} {self.sentence}".rstrip()


def check_chosen(chosen: Chosen, total: int) -> None:
    """ValueError for channels that images of `total` channels cannot show."""
    if chosen is not None and not (1 <= len(chosen) <= 3 and all(0 <= channel < total for channel in chosen)):
        asked = " ".join(str(channel + 1) for channel in chosen) or "none"
        raise ValueError(f"pictures show one to three of the channels 1 to {total}, not {asked}")


def _some(planes: list[Tensor]) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Values of the planes, spread evenly, as many as are enough."""
    values = torch.cat([plane_HW.detach().float().cpu().flatten() for plane_HW in planes]).nan_to_num(0.0)
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = values[:: max(1, len(values) // _ENOUGH)].numpy()
    return found
