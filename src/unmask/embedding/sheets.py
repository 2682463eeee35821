"""Pictures of what was found: queries with their nearest images, groups of near-duplicates."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from unmask.data.decode import DecodeError, decode
from unmask.data.shard_writing import write_atomically, writing
from unmask.data.source import Source
from unmask.data.sources import open_source
from unmask.embedding.near_duplicates import Group
from unmask.embedding.neighbours import Hit
from unmask.embedding.rows import FeatureFile, Row
from unmask.report.contact_sheet import SIDE, contact_sheet
from unmask.report.pixels import encoded, to_picture
from unmask.report.sheet import Cell, Sheet

GROUP_COLUMNS = 8
GROUP_ROWS = 12
_EMPTY = Cell(image=b"", alt="nothing")


class Pictures:
    """The images that files of features speak of, opened where they were."""

    def __init__(self, files: Sequence[FeatureFile], data: str | None = None) -> None:
        """`data` names the images instead of what the first file says. ValueError where they cannot be opened."""
        self._sources: dict[FeatureFile, Source] = {}
        for place, file in enumerate(files):
            plan = file.header.plan
            spec = data if data is not None and place == 0 else plan.data
            try:
                self._sources[file] = open_source(spec, split=plan.split)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"no pictures can be shown: {error}; give --data") from error

    def of(self, file: FeatureFile, row: Row) -> bytes:
        """One image of a file. ValueError where the data is not what it was."""
        source = self._sources[file]
        if row.index >= len(source) or os.path.basename(source.path(row.index)) != os.path.basename(row.path):
            raise ValueError(f"{source.name} does not hold the images that {file.path} was made of: give --data")
        return picture(source, row.index, file.header.channels)


def picture(source: Source, index: int, channels: int) -> bytes:
    """The whole image, small; empty where it cannot be read."""
    try:
        pixels_HWC = decode(source.read(index), min_size=(SIDE, SIDE), channels=channels).pixels_HWC
    except (OSError, DecodeError):
        return b""
    image_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1).float() / 255
    return encoded(to_picture(image_CHW), exact=True)


def search_sheet(queries: Source, found: Sequence[Sequence[Hit]], pictures: Pictures, channels: int) -> bytes:
    """A row a query: itself, then its nearest images, as PNG."""
    rows = []
    for number, hits in enumerate(found):
        name = queries.path(number)
        first = Cell(image=picture(queries, number, channels), alt="the query", label=os.path.basename(name))
        rows.append((first, *(_cell(hit, pictures) for hit in hits)))
    return contact_sheet(
        Sheet(
            headers=("query", *(str(place + 1) for place in range(max(map(len, found))))),
            rows=tuple(rows),
            caption="Nearest images by the cosine of their features.",
        )
    )


def duplicates_sheet(groups: Sequence[Group], pictures: Pictures, threshold: float) -> bytes:
    """A row a group, the largest first, as PNG. Of large groups the first images."""
    shown = groups[:GROUP_ROWS]
    columns = min(GROUP_COLUMNS, max(len(group.images) for group in shown))
    rows = []
    for group in shown:
        cells = [_cell(hit, pictures) for hit in group.images[:columns]]
        rows.append((*cells, *[_EMPTY] * (columns - len(cells))))
    largest = max(len(group.images) for group in shown)
    cut = f" Of each, at most {columns} images are shown." if largest > columns else ""
    return contact_sheet(
        Sheet(
            headers=("",) * columns,
            rows=tuple(rows),
            caption=f"Groups of images whose cosine reaches {threshold:g}, with that of the most alike.",
            note=f"{len(shown)} of {len(groups)} groups, the largest first.{cut}",
        )
    )


def _cell(hit: Hit, pictures: Pictures) -> Cell:
    header, label = hit.file.header, hit.row.label
    words = [f"{hit.similarity:.4f}", os.path.basename(hit.row.path)]
    if label is not None and header.classes is not None:
        words.insert(1, header.classes[label])
    return Cell(image=pictures.of(hit.file, hit.row), alt=hit.row.path, label="\n".join(words))


def write_sheet(path: Path, content: bytes) -> None:
    """Write a sheet. ValueError where the disk refuses."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
