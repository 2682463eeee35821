"""Images in several files, one a channel: `planes:FOLDER`, as satellites and microscopes write them.

The files of an image lie in a folder of its own, named by their channels (`tile_01/B02.tif`, `tile_01/B03.tif`), or
beside those of others, with a word for the channel in their names (`A01_w1.png`, `A01_w2.png`).
Shape legend: C channels, H x W pixels.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from unmask.data.decode import DecodeError, OpenImage, open_image
from unmask.data.decode_errors import check_size
from unmask.data.index import index_folder
from unmask.data.layout import Split, arrange
from unmask.data.paths import PathTable
from unmask.data.source import Source, select
from unmask.data.stored import StoredPixels

PLANES_PREFIX = "planes:"
_WORDS = (b"channel", b"ch", b"w", b"band", b"b", b"c")
"""What stands before a channel's number in a name, the likelier word first."""
_LOOKED_AT = 2000
"""Names by which the word is chosen."""
_NUMBERS = re.compile(rb"(\d+)")


@dataclass(frozen=True)
class Plane:
    """A file as its name tells: of which image, and which channel of it."""

    image: bytes
    channel: bytes


class PlaneSource(Source):
    """Images of one file a channel; those that lack a channel cannot be read."""

    kind = "images of a file a channel"

    def __init__(self, name: str, root: Path, images: dict[bytes, dict[bytes, bytes]]) -> None:
        """`images`: the files of each image by their channel, relative to `root`. ValueError where they do not have at
        least two channels in common."""
        self.name = name
        self.labels = None
        self.classes = None
        self.paths = PathTable.of(images)
        self._root = os.fsencode(root)
        channels = channels_of(images)
        if len(channels) < 2:
            raise ValueError(
                f"{name} holds no images of several files each: the files of an image lie in a folder of their own, or "
                "their names differ by a channel, as in A01_w1.png and A01_w2.png"
            )
        self._names = tuple(channel.decode("utf-8", "backslashreplace") for channel in channels)
        self.channel_names = self._names
        self._files = [tuple(images[image].get(channel) for channel in channels) for image in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return os.path.join(self._root, self.paths[index]).decode("utf-8", "backslashreplace")

    def read(self, index: int) -> NDArray[Any]:
        """All planes of an image, [H, W, C]; what a file marks as not measured is not a number."""
        files = self._files[index]
        missing = [name for name, file in zip(self._names, files, strict=True) if file is None]
        if missing:
            raise DecodeError(f"it lacks {_listed('plane', missing)} of {len(files)}")
        return joined([self._plane(name, file) for name, file in zip(self._names, files, strict=True) if file])

    def _plane(self, name: str, file: bytes) -> NDArray[Any]:
        try:
            with open(os.path.join(self._root, file), "rb") as opened:
                return one_channel(open_image(opened.read()))
        except DecodeError as error:
            raise DecodeError(f"its plane {name}: {error}") from error


def one_channel(opened: OpenImage) -> NDArray[Any]:
    """The values [H, W] of a file of one channel, as stored. DecodeError for one of several."""
    if opened.channels != 1:
        raise DecodeError(f"it has {opened.channels} channels, and 1 is wanted")
    if not isinstance(opened.content, StoredPixels):
        return opened.decode(min_size=None, channels=1).pixels_HWC[:, :, 0]
    values_HW, measured_HW = opened.content.values_HWC[:, :, 0], opened.content.measured()[:, :, 0]
    return values_HW if measured_HW.all() else np.where(measured_HW, values_HW.astype(np.float32), np.nan)


def joined(planes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Planes [H, W] as one image [H, W, C], of a type that holds them all, resized to the largest of them."""
    height, width = max((plane.shape for plane in planes), key=lambda shape: shape[0] * shape[1])
    kind = np.result_type(*planes)
    check_size(height, width, len(planes) * kind.itemsize)
    image_HWC = np.empty((height, width, len(planes)), dtype=kind)
    for channel, plane in enumerate(planes):
        image_HWC[:, :, channel] = plane if plane.shape == (height, width) else _resized(plane, height, width)
    return image_HWC


def _resized(plane_HW: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    plane_11HW = torch.from_numpy(plane_HW.astype(np.float64))[None, None]
    # Linear: it stays within the values that were there.
    found_HW = F.interpolate(plane_11HW, (height, width), mode="bilinear", antialias=True)[0, 0].numpy()
    return np.rint(found_HW) if plane_HW.dtype.kind in "ui" else found_HW


def open_planes(spec: str, split: Split) -> Source:
    """The images of a split of `planes:FOLDER`, laid out like any folder. ValueError where there is none."""
    root = Path(spec.removeprefix(PLANES_PREFIX)).expanduser()
    if not root.is_dir():
        raise ValueError(f"{spec}: there is no folder {root}")
    try:
        files = index_folder(root)
    except OSError as error:
        raise ValueError(f"{spec} cannot be read: {error.strerror}") from error
    if not len(files):
        raise ValueError(f"{spec} holds no image")
    base = PlaneSource(spec, root, grouped(files))
    return select(base, arrange(base.paths, split), spec, split)


def grouped(files: Sequence[bytes]) -> dict[bytes, dict[bytes, bytes]]:
    """The files of each image by their channel."""
    word = channel_word(list(islice(files, _LOOKED_AT)))
    images: dict[bytes, dict[bytes, bytes]] = {}
    for file in files:
        plane = plane_of(file, word)
        images.setdefault(plane.image, {})[plane.channel] = file
    return images


def channel_word(files: Sequence[bytes]) -> bytes | None:
    """The word before the channel's number in most of these names: of several the one without which fewest images are
    left. None where the files of an image lie in its folder, named by their channels."""
    found: dict[bytes, int] = {}
    for word in _WORDS:
        planes = [plane_of(file, word) for file in files]
        named = sum(plane.image != os.path.dirname(file) for plane, file in zip(planes, files, strict=True))
        if 2 * named > len(files):
            found[word] = len({plane.image for plane in planes})
    return min(found, key=lambda word: found[word]) if found else None


def plane_of(file: bytes, word: bytes | None) -> Plane:
    """Image and channel of a file: its name without the channel's word and number, and these; or its folder and its
    name, where it has no such word, or nothing else."""
    folder, name = os.path.split(file)
    stem = os.path.splitext(name)[0]
    if word is not None:
        matches = list(re.finditer(rb"(?i)(?:^|[_\-. ])(" + word + rb"\d+[a-z]?)(?=$|[_\-. ])", stem))
        if matches:
            last = matches[-1]
            rest = (stem[: last.start()] + stem[last.end() :]).strip(b"_-. ")
            if rest:
                return Plane(os.path.join(folder, rest), last[1])
    return Plane(folder, stem)


def channels_of(images: dict[bytes, dict[bytes, bytes]]) -> tuple[bytes, ...]:
    """The channels that at least half of the images have, in natural order (B2 before B10, B8 before B8A)."""
    counts = Counter(channel for planes in images.values() for channel in planes)
    return tuple(sorted((name for name, count in counts.items() if 2 * count >= len(images)), key=natural))


def natural(name: bytes) -> list[tuple[int, bytes]]:
    """What to sort by: numbers within a name count as numbers."""
    parts = _NUMBERS.split(name.lower())
    return [(int(part), b"") if place % 2 else (0, part) for place, part in enumerate(parts)]


def _listed(what: str, names: Sequence[str]) -> str:
    return f"the {what}{'s' if len(names) > 1 else ''} {', '.join(names)}"
