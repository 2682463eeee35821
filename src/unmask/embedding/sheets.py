"""Pictures of what was found: queries with their nearest images, groups of near-duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unmask.data.decode import DecodeError
from unmask.data.pixel_range import in_range
from unmask.data.shard_writing import write_atomically, writing
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.embedding.near_duplicates import Group
from unmask.embedding.neighbours import Hit
from unmask.embedding.rows import FeatureFile, Row
from unmask.report.contact_sheet import SIDE, contact_sheet
from unmask.report.false_colour import FalseColour
from unmask.report.pixels import encoded, to_picture
from unmask.report.sheet import Cell, Sheet

GROUP_COLUMNS = 8
GROUP_ROWS = 12


@dataclass(frozen=True)
class _Shot:
    """A cell to be, with its image [C, H, W] in [0, 1]; None leaves the place empty."""

    image: Tensor | None
    alt: str
    label: str = ""


_EMPTY = _Shot(None, "nothing")


class Pictures:
    """The images that files of features speak of, opened where they were."""

    def __init__(self, files: Sequence[FeatureFile], data: str | None = None) -> None:
        """`data` names the images instead of what the first file says. ValueError where they cannot be opened."""
        self._sources: dict[FeatureFile, Source] = {}
        for place, file in enumerate(files):
            plan = file.header.plan
            spec = data if data is not None and place == 0 else plan.data
            try:
                source = open_source(spec, split=plan.split)  # type: ignore[arg-type]
                self._sources[file] = in_range(source, file.header.pixel_range)
            except ValueError as error:
                raise ValueError(f"no pictures can be shown: {error}; give --data") from error

    def of(self, file: FeatureFile, row: Row) -> Tensor | None:
        """One image of a file. ValueError where the data is not what it was."""
        source = self._sources[file]
        if row.index >= len(source) or os.path.basename(source.path(row.index)) != os.path.basename(row.path):
            raise ValueError(f"{source.name} does not hold the images that {file.path} was made of: give --data")
        return picture(source, row.index, file.header.channels)


def picture(source: Source, index: int, channels: int) -> Tensor | None:
    """The whole image [C, H, W], small, values in [0, 1]; None where it cannot be read."""
    try:
        pixels_HWC = source.open(index).decode(min_size=(SIDE, SIDE), channels=channels).pixels_HWC
    except (OSError, DecodeError):
        return None
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255


def search_sheet(queries: Source, found: Sequence[Sequence[Hit]], pictures: Pictures, channels: int) -> bytes:
    """A row a query: itself, then its nearest images, as PNG."""
    rows = []
    for number, hits in enumerate(found):
        name = queries.path(number)
        first = _Shot(picture(queries, number, channels), "the query", os.path.basename(name))
        rows.append([first, *(_shot(hit, pictures) for hit in hits)])
    headers = ("query", *(str(place + 1) for place in range(max(map(len, found)))))
    return _drawn(headers, rows, "Nearest images by the cosine of their features.")


def duplicates_sheet(groups: Sequence[Group], pictures: Pictures, threshold: float) -> bytes:
    """A row a group, the largest first, as PNG. Of large groups the first images."""
    shown = groups[:GROUP_ROWS]
    columns = min(GROUP_COLUMNS, max(len(group.images) for group in shown))
    rows = []
    for group in shown:
        shots = [_shot(hit, pictures) for hit in group.images[:columns]]
        rows.append([*shots, *[_EMPTY] * (columns - len(shots))])
    largest = max(len(group.images) for group in shown)
    cut = f" Of each, at most {columns} images are shown." if largest > columns else ""
    return _drawn(
        ("",) * columns,
        rows,
        f"Groups of images whose cosine reaches {threshold:g}, with that of the most alike.",
        f"{len(shown)} of {len(groups)} groups, the largest first.{cut}",
    )


def _shot(hit: Hit, pictures: Pictures) -> _Shot:
    header, label = hit.file.header, hit.row.label
    words = [f"{hit.similarity:.4f}", os.path.basename(hit.row.path)]
    if label is not None and header.classes is not None:
        words.insert(1, header.classes[label])
    return _Shot(pictures.of(hit.file, hit.row), hit.row.path, "\n".join(words))


def _drawn(headers: tuple[str, ...], rows: Sequence[Sequence[_Shot]], caption: str, note: str = "") -> bytes:
    """The sheet as PNG, all images in the same colours, so that those that are alike look alike."""
    images = [shot.image for row in rows for shot in row if shot.image is not None]
    colours = FalseColour.of(images) if images else None

    def cell(shot: _Shot) -> Cell:
        if shot.image is None or colours is None:
            return Cell(image=b"", alt=shot.alt, label=shot.label)
        image = encoded(to_picture(colours(shot.image)), exact=True)
        return Cell(image=image, alt=shot.alt, label=shot.label)

    return contact_sheet(
        Sheet(
            headers=headers,
            rows=tuple(tuple(cell(shot) for shot in row) for row in rows),
            caption=caption if colours is None else colours.captioned(caption),
            note=note,
        )
    )


def write_sheet(path: Path, content: bytes) -> None:
    """Write a sheet. ValueError where the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
