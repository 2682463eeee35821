"""Files of features by the end of their name: how each kind is written, found finished, and opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from unmask.data.shard_writing import write_atomically, writing
from unmask.disk import flush_folder
from unmask.embedding.arrays import (
    NpyFeatures,
    SafetensorsFeatures,
    header_file,
    names_file,
    write_names,
    write_npy,
    write_safetensors,
)
from unmask.embedding.header import Header
from unmask.embedding.parquet import ParquetFeatures, library, write_parquet
from unmask.embedding.rows import Blocks, FeatureFile

_WRITERS: dict[str, Callable[[Path, Header, Blocks], None]] = {
    ".parquet": write_parquet,
    ".npy": write_npy,
    ".safetensors": write_safetensors,
}
_READERS: dict[str, Callable[[Path], FeatureFile]] = {
    ".parquet": ParquetFeatures,
    ".npy": NpyFeatures,
    ".safetensors": SafetensorsFeatures,
}


def is_feature_name(path: Path | str) -> bool:
    """Whether a name ends like a file of features."""
    return Path(path).suffix.lower() in _READERS


def check_name(path: Path) -> None:
    """ValueError where no file of features can have this name, or the library for it is missing."""
    if not is_feature_name(path):
        raise ValueError(f"{path} must end in {', '.join(_WRITERS)}: that is the kind of file")
    if path.suffix.lower() == ".parquet":
        library()


def write_features(path: Path, header: Header, blocks: Blocks) -> None:
    """Write a file of features: `path` is there when all of it is. ValueError where the disk refuses."""
    kind = path.suffix.lower()
    with writing(path):
        if kind == ".npy":
            _written_aside(names_file(path), header, blocks, write_names)
            write_atomically(header_file(path), header.as_json().encode() + b"\n")
        _written_aside(path, header, blocks, _WRITERS[kind])


def _written_aside(path: Path, header: Header, blocks: Blocks, write: Callable[[Path, Header, Blocks], None]) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        write(aside, header, blocks)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def open_features(path: Path) -> FeatureFile:
    """A file of features. ValueError where it is none."""
    check_name(path)
    if not path.exists():
        raise ValueError(f"there is no file of features {path}")
    return _READERS[path.suffix.lower()](path)


def open_comparable(paths: Sequence[Path]) -> list[FeatureFile]:
    """Files of features that may be compared with each other, one feature an image.

    ValueError where they come from different encoders, blocks, outputs or image sizes, or hold maps.
    """
    files = [open_features(path) for path in paths]
    first = files[0].header.plan.recipe
    for file in files:
        recipe = file.header.plan.recipe
        if recipe.output == "dense":
            raise ValueError(f"{file.path} holds maps, and one feature an image is needed: embed with --output mean")
        if recipe.checksum != first.checksum:
            raise ValueError(
                f"{files[0].path} and {file.path} come from different encoders ({files[0].header.encoder}, "
                f"{file.header.encoder}): their features cannot be compared"
            )
        for name, value in vars(recipe).items():
            if value != vars(first)[name]:
                raise ValueError(
                    f"{files[0].path} and {file.path} cannot be compared: {name.replace('_', ' ')} "
                    f"{vars(first)[name]} and {value}"
                )
    return files
