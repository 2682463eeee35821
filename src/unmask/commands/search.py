"""`unmask search FILE QUERY...`: the images of a file of features that are nearest to others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.data.pixel_range import in_range
from unmask.data.source import Source
from unmask.embedding.files import is_feature_name, open_comparable
from unmask.embedding.images import GivenSource
from unmask.embedding.neighbours import Hit, nearest
from unmask.embedding.queries import query_extractor, query_features
from unmask.embedding.sheets import Pictures, search_sheet, write_sheet
from unmask.training.trainer import choose_device


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the images whose features are nearest to those of a query, by cosine, in files of `unmask embed`."""

    things: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="FILE... QUERY..."),
        Doc("Files of features (.parquet, .npy, .safetensors) of one encoder, then images to search for."),
    ]
    encoder: Annotated[
        str | None, Doc("The encoder of the files, where it is not any more where it was: a run folder or a file.")
    ] = None
    top: Annotated[int, Doc("How many images to find for each query.")] = 10
    sheet: Annotated[Path | None, Doc("Also draw queries and what was found, as this PNG.")] = None
    data: Annotated[str | None, Doc("The images of the (first) file, for the sheet, where they have moved.")] = None
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    json: Annotated[bool, Doc("Print one JSON object a query instead of a table.")] = False

    def __post_init__(self) -> None:
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, got {self.top}")


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask search`."""
    command = parse(Search, arguments, command="search")
    names = [thing for thing in command.things if is_feature_name(thing)]
    asked = [thing for thing in command.things if not is_feature_name(thing)]
    if not names:
        raise ValueError("search needs a file of features (.parquet, .npy, .safetensors), as unmask embed writes it")
    if not asked:
        raise ValueError("there is nothing to search for: give one image or more behind the file of features")
    files = open_comparable([Path(name) for name in names])
    pictures = None if command.sheet is None else Pictures(files, command.data)
    queries: Source = GivenSource("queries", asked)
    extractor = query_extractor(files[0], command.encoder, choose_device(command.device))
    queries = in_range(queries, extractor.encoder.pixel_range)
    found = nearest(files, query_features(extractor, queries), command.top)
    console = Console(soft_wrap=True)
    for query, hits in zip(asked, found, strict=True):
        if command.json:
            line = json.dumps({"query": query, "hits": [as_dict(hit) for hit in hits]})
            console.print(line, highlight=False, markup=False)
            continue
        console.print(query, highlight=False, markup=False)
        for place, hit in enumerate(hits, 1):
            console.print(f"{place:>4}  {told(hit)}", highlight=False, markup=False)
    if command.sheet is not None and pictures is not None:
        write_sheet(command.sheet, search_sheet(queries, found, pictures, extractor.channels))
        if not command.json:
            console.print(f"sheet {command.sheet}", highlight=False, markup=False)
    return 0


def told(hit: Hit) -> str:
    """An image that was found as a line for people: similarity, name, class."""
    name = class_name(hit)
    return f"{hit.similarity:.4f}  {hit.row.path}" + ("" if name is None else f"  ({name})")


def class_name(hit: Hit) -> str | None:
    """The name of the image's class, where it has one."""
    classes = hit.file.header.classes
    return None if hit.row.label is None or classes is None else classes[hit.row.label]


def as_dict(hit: Hit) -> dict[str, Any]:
    """An image that was found as plain values."""
    return {
        "path": hit.row.path,
        "index": hit.row.index,
        "label": hit.row.label,
        "class": class_name(hit),
        "similarity": hit.similarity,
        "file": str(hit.file.path),
    }
