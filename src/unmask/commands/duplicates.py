"""`unmask duplicates FILE...`: groups of images that are nearly the same, within a file of features or over several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.commands.search import as_dict, told
from unmask.embedding.files import open_comparable
from unmask.embedding.near_duplicates import Group, near_duplicates
from unmask.embedding.sheets import Pictures, duplicates_sheet, write_sheet
from unmask.progress import DoneOfTotal


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Find groups of images with nearly the same features, in files of `unmask embed`. All are compared with all."""

    files: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="FILE"),
        Doc("Files of features (.parquet, .npy, .safetensors) of one encoder."),
    ]
    threshold: Annotated[float, Doc("Cosine from which on two images count as nearly the same; equal ones have 1.")] = (
        0.98
    )
    sheet: Annotated[Path | None, Doc("Also draw the largest groups, as this PNG.")] = None
    data: Annotated[str | None, Doc("The images of the (first) file, for the sheet, where they have moved.")] = None
    json: Annotated[bool, Doc("Print one JSON object a group instead of a list.")] = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"--threshold must lie in (0, 1], got {self.threshold}")


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask duplicates`."""
    command = parse(Duplicates, arguments, command="duplicates")
    if not command.files:
        raise ValueError(
            "duplicates needs a file of features (.parquet, .npy, .safetensors), as unmask embed writes it"
        )
    files = open_comparable(command.files)
    pictures = None if command.sheet is None else Pictures(files, command.data)
    groups = near_duplicates(
        files,
        command.threshold,
        DoneOfTotal(Console(stderr=True, soft_wrap=True), lambda done, total: f"compared  {done / total:.0%}"),
    )
    console = Console(soft_wrap=True)
    images = sum(map(len, files))
    for group in groups:
        if command.json:
            console.print(json.dumps({"images": [as_dict(hit) for hit in group.images]}), highlight=False, markup=False)
            continue
        console.print(f"{len(group.images)} images", highlight=False, markup=False)
        for hit in group.images:
            console.print(f"      {told(hit)}", highlight=False, markup=False)
    if command.sheet is not None and pictures is not None and groups:
        write_sheet(command.sheet, duplicates_sheet(groups, pictures, command.threshold))
    if not command.json:
        for line in _summary(groups, images, command):
            console.print(line, highlight=False, markup=False)
    return 0


def _summary(groups: Sequence[Group], images: int, command: Duplicates) -> list[str]:
    threshold = f"cosine {command.threshold:g} or more"
    if not groups:
        return [f"no two of {images} images are nearly the same ({threshold})"]
    grouped = sum(len(group.images) for group in groups)
    lines = [f"{len(groups)} groups hold {grouped} of {images} images ({threshold})"]
    if len(groups[0].images) > max(2, images // 10):
        lines.append(
            f"the largest one holds {len(groups[0].images)}: this encoder gives many different images nearly the same "
            "feature, so raise --threshold"
        )
    return [*lines, *([] if command.sheet is None else [f"sheet {command.sheet}"])]
