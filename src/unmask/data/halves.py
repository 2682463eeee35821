"""All images that a user's DATA holds, those of the test half too, as one source that knows which half each is of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.data.pixel_range import PixelRange, in_range
from unmask.data.source import Source
from unmask.data.sources import captions_of, labelled, open_source


class Joined(Source):
    """Several sources one after the other."""

    def __init__(self, name: str, parts: tuple[Source, ...]) -> None:
        self.name = name
        self.labels = None
        self.classes = None
        self._parts = parts
        self._starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def path(self, index: int) -> str:
        part, place = self._place(index)
        return part.path(place)

    def read(self, index: int) -> bytes | NDArray[Any]:
        part, place = self._place(index)
        return part.read(place)

    def _place(self, index: int) -> tuple[Source, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._parts[part], index - int(self._starts[part])


@dataclass(frozen=True)
class Told:
    """How many images have captions, and how many texts these are; `trouble` says why they cannot be used."""

    images: int = 0
    texts: int = 0
    trouble: str = ""


@dataclass(frozen=True)
class Halves:
    """What DATA means to pre-training and to an evaluation.

    `pretraining` are the images that `unmask pretrain` takes, `images` those and the ones of the test half. Of `images`
    the first `training` are the training half and the rest the test half, where there are halves. `refusal` says why
    an evaluation that needs labels cannot be; it is empty where it can.
    """

    pretraining: Source
    images: Source
    training: int
    class_counts: tuple[tuple[str, int, int], ...]
    refusal: str
    captions: Told

    @property
    def judged(self) -> bool:
        """Whether something is learnt from one half and judged on the other: there are labels, or test images apart."""
        return self.testing > 0 and (self.apart or bool(self.class_counts))

    def in_range(self, pixel_range: PixelRange | None) -> Halves:
        """The same, with images of more than 8 bits read in this range."""
        return replace(self, images=in_range(self.images, pixel_range))

    @property
    def testing(self) -> int:
        """How many images the test half has; 0 where there are no halves."""
        return len(self.images) - self.training

    @property
    def apart(self) -> bool:
        """Whether pre-training leaves the test half out."""
        return len(self.images) > len(self.pretraining)


def open_halves(spec: str) -> Halves:
    """Open all that `spec` holds. ValueError, with one sentence, where there is no image to be had."""
    pretraining = open_source(spec)
    refusal = ""
    halves: tuple[Source, ...]
    try:
        halves = labelled(spec)
    except ValueError as error:
        refusal = str(error)
        try:
            halves = open_source(spec, split="train"), open_source(spec, split="test")
        except ValueError:
            halves = (pretraining,)  # too few images to be parted, or none for testing
    names = Counter[str](), Counter[str]()
    for counted, half in zip(names, halves, strict=False):
        if half.labels is not None and half.classes is not None:
            numbers = np.bincount(half.labels, minlength=len(half.classes)).tolist()
            counted.update(dict(zip(half.classes, numbers, strict=True)))
    return Halves(
        pretraining=pretraining,
        images=Joined(pretraining.name, halves),
        training=len(halves[0]),
        class_counts=tuple((name, names[0][name], names[1][name]) for name in sorted(names[0] | names[1])),
        refusal=refusal,
        captions=_captions(pretraining),
    )


def _captions(source: Source) -> Told:
    try:
        captions = captions_of(source)
    except ValueError as error:
        return Told(trouble=str(error))
    return Told() if captions is None else Told(len(captions), sum(map(len, captions)))
