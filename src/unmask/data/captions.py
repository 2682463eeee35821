"""What is written beside images: a file of captions in their folder.

`captions.csv` has a line of column names with `image` and `caption` among them; `captions.jsonl` has one object a line,
with the keys `image` and `caption` (text, or a list of texts). Images are named relative to the folder; several lines
about one image give it several captions.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from unmask.data.paths import as_path
from unmask.errors import in_short

CAPTION_FILES = ("captions.csv", "captions.jsonl")
Captions = tuple[tuple[str, ...], ...]


def caption_file(folder: Path) -> Path | None:
    """The file of captions in a folder, if it has one. ValueError where it has two."""
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(CAPTION_FILES)}: keep one of them")
    return found[0] if found else None


def read_captions(file: Path, images: Sequence[bytes]) -> Captions:
    """The captions of each of these images, in their order in the file; none for an image that it does not name.

    `images` are names relative to the file's folder. ValueError, with one sentence, for a file that cannot be read as
    such, or that names an image that is not there.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: byte {error.start} cannot be read") from error
    places = {name: place for place, name in enumerate(images)}
    found: list[list[str]] = [[] for _ in images]
    rows = 0
    for where, name, caption in _rows_of_csv(file, text) if file.suffix == ".csv" else _rows_of_jsonl(file, text):
        path = as_path(os.path.normpath(name))
        place = None if path is None else places.get(path)
        if place is None:
            raise ValueError(f"{where} names {in_short(name)}, which is not an image in {file.parent}")
        if not caption.strip():
            raise ValueError(f"{where} has an empty caption for {in_short(name)}")
        found[place].append(caption.strip())
        rows += 1
    if not rows:
        raise ValueError(f"{file} holds no caption")
    return tuple(tuple(several) for several in found)


def _rows_of_csv(file: Path, text: str) -> Iterator[tuple[str, str, str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for column in ("image", "caption"):
            if column not in (reader.fieldnames or ()):
                raise ValueError(f"{file} has no column {column!r}: its first line must name 'image' and 'caption'")
        for row in reader:
            where = f"{file}, line {reader.line_num},"
            if row["image"] is None or row["caption"] is None:
                raise ValueError(f"{where} has too few columns")
            if None in row:
                raise ValueError(f"{where} has too many columns: put a caption with commas between quotes")
            yield where, row["image"], row["caption"]
    except csv.Error as error:
        raise ValueError(f"{file}, line {reader.line_num}, is not CSV: {error}") from error


def _rows_of_jsonl(file: Path, text: str) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number},"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        image, given = (row.get("image"), row.get("caption")) if isinstance(row, dict) else (None, None)
        captions = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if not isinstance(image, str) or not captions or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{where} is no object with 'image' (text) and 'caption' (text, or a list of texts)")
        for caption in captions:
            yield where, image, caption
