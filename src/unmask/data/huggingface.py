"""Images in data sets of the library datasets (Hugging Face): on this disk, or from their hub.

Images stay encoded until a worker decodes them. The library runs no code that comes with a data set since its version
4, and nothing here asks it to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unmask.data.layout import TEST_FOLDERS, Layout, Split, hashed_test_mask
from unmask.data.source import Source, select
from unmask.extras import require

PREFIX = "hf:"
STREAM_PREFIX = "hf-stream:"
_SPEC = re.compile(r"(?P<where>.+?)(\[(?P<part>[\w.-]+)\])?")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_KINDS = {".parquet": "parquet", ".arrow": "arrow"}


class HuggingFaceSource(Source):
    """The images of a map-style data set; classes are those of its first column of class labels."""

    kind = "a data set of Hugging Face"

    def __init__(self, name: str, rows: Any) -> None:
        """ValueError where no column holds images."""
        image, label = columns(name, rows.features)
        self.name = name
        self.labels = None
        self.classes = None
        if label is not None:
            labels = np.asarray(rows.with_format("numpy")[label][:], dtype=np.int64)
            # Hidden labels are -1: such images have none.
            if len(labels) and labels.min() >= 0:
                self.labels = labels
                self.classes = tuple(rows.features[label].names)
        self._image = image
        self._rows = encoded(rows.select_columns([image]), image)

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, index: int) -> str:
        return f"{self.name}/{index}"

    def read(self, index: int) -> bytes:
        return image_bytes(self._rows[index][self._image])

    def layout(self, split: Split) -> Layout:
        """The images of a split: all, or sent to one side or the other by a hash of their positions."""
        indices = np.arange(len(self))
        if split != "all":
            hidden = hashed_test_mask([b"%d" % index for index in range(len(self))], self.labels)
            indices = np.flatnonzero(hidden if split == "test" else ~hidden)
        return Layout(indices, None if self.labels is None else self.labels[indices], self.classes)


def library() -> Any:
    """The library datasets. ValueError where it is missing."""
    return require("huggingface", "data sets of Hugging Face need")


def columns(name: str, features: Any) -> tuple[str, str | None]:
    """The first column of images, and the first of class labels if there is one. ValueError without images."""
    datasets = library()
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise ValueError(f"{name} has no column of images: its columns are {', '.join(features) or 'none'}")
    labels = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return images[0], labels[0] if labels else None


def encoded(rows: Any, column: str) -> Any:
    """The same rows with their images as bytes."""
    return rows.cast_column(column, library().Image(decode=False))


def image_bytes(value: Any) -> bytes:
    """The bytes of an image that was not decoded: in the row itself, or in the file that it names. Raises OSError."""
    if value is None:
        raise OSError("it is missing")
    content = value["bytes"]
    if content is not None:
        return bytes(content)
    with open(value["path"], "rb") as file:
        return file.read()


def open_huggingface(spec: str, split: Split) -> Source:
    """The images of a split that `hf:WHERE` or `hf:WHERE[PART]` means.

    WHERE is a folder that `save_to_disk` wrote, a folder of parquet or arrow files, one such file, or a name on the
    hub. PART is the set's own name of a part; without it, "train" and "all" are its part train where it has one.
    ValueError, with one sentence, where there is no image to be had.
    """
    match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
    if match is None:
        raise ValueError(f"{spec} names no data set: write hf:PATH, hf:NAME or hf:NAME[part]")
    library()
    with said_in_one_sentence(spec):
        parts = _parts(match["where"])
        rest: Split = split
        if match["part"] is not None:
            if match["part"] not in parts:
                raise ValueError(f"{spec} has no such part: it has {', '.join(parts) or 'none'}")
            rows = parts[match["part"]]
        elif len(parts) == 1:
            (rows,) = parts.values()
        else:
            test = next((name for name in ("test", *TEST_FOLDERS) if name in parts), None)
            wanted = test if split == "test" else "train"
            if wanted not in parts:
                raise ValueError(f"{spec} has the parts {', '.join(parts)}: choose one by {spec}[PART]")
            rows, rest = parts[wanted], "all"
        source = HuggingFaceSource(spec, rows)
    if not len(source):
        raise ValueError(f"{spec} holds no image")
    return source if rest == "all" else select(source, source.layout(rest), spec, rest)


def _parts(where: str) -> dict[str, Any]:
    """The parts of a data set by their names."""
    datasets = library()
    path = Path(where).expanduser()
    if path.is_file() and path.suffix in _KINDS:
        return {"train": _rows_of([path])}
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            found = datasets.load_from_disk(str(path))
            return dict(found) if isinstance(found, datasets.DatasetDict) else {"train": found}
        files = sorted(file for file in path.iterdir() if file.suffix in _KINDS)
        parts = {
            folder.name: _rows_of(inside)
            for folder in sorted(path.iterdir())
            if folder.is_dir() and (inside := sorted(f for f in folder.iterdir() if f.suffix in _KINDS))
        }
        if files:
            return _named_parts(files)
        if parts:
            return parts
        raise ValueError("it holds neither what save_to_disk writes nor a parquet or arrow file")
    if path.exists() or _HUB_NAME.fullmatch(where) is None:
        raise ValueError("there is no such file or folder, and it is no name on the hub")
    found = datasets.load_dataset(where)
    return dict(found)


def _named_parts(files: list[Path]) -> dict[str, Any]:
    """Files by the first word of their names (`train-0.parquet`), all together where one of these is no part's name."""
    words = [re.split(r"[-_.]", file.name)[0] for file in files]
    if not {"train", *TEST_FOLDERS}.issuperset(words):
        return {"train": _rows_of(files)}
    return {
        word: _rows_of([file for file, own in zip(files, words, strict=True) if own == word])
        for word in dict.fromkeys(words)
    }


def _rows_of(files: list[Path]) -> Any:
    """Arrow files are mapped where they lie; parquet files are unpacked into the library's cache once."""
    datasets = library()
    if all(file.suffix == ".arrow" for file in files):
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    if not all(file.suffix == ".parquet" for file in files):
        raise ValueError("it mixes parquet and arrow files")
    return datasets.Dataset.from_parquet([str(file) for file in files])


class Stream:
    """A data set that is read from its beginning to its end only: names, images, labels and no captions."""

    def __init__(self, spec: str, *, seed: int | None) -> None:
        """`seed` shuffles within a window of 10,000 images, None keeps the order. ValueError as `open_huggingface`."""
        match = _SPEC.fullmatch(spec.removeprefix(STREAM_PREFIX))
        if match is None:
            raise ValueError(f"{spec} names no data set: write hf-stream:PATH, hf-stream:NAME or hf-stream:NAME[part]")
        datasets = library()
        self.name = spec
        with said_in_one_sentence(spec):
            where = Path(match["where"]).expanduser()
            if where.exists():
                rows = _parts(match["where"])[match["part"] or "train"].to_iterable_dataset()
            else:
                rows = datasets.load_dataset(match["where"], split=match["part"] or "train", streaming=True)
            if rows.features is None:
                raise ValueError("it does not say what its columns are")
            self._image, self._label = columns(spec, rows.features)
            self.classes = None if self._label is None else tuple(rows.features[self._label].names)
            rows = encoded(rows, self._image)
            self._rows = rows if seed is None else rows.shuffle(seed=seed, buffer_size=10_000)

    def __iter__(self) -> Iterator[tuple[Any, int | None]]:
        """What `image_bytes` takes, and the label, of one image after another."""
        with said_in_one_sentence(self.name):
            for row in self._rows:
                yield row[self._image], None if self._label is None else row[self._label]


@contextmanager
def said_in_one_sentence(spec: str) -> Iterator[None]:
    """Make one sentence of whatever the library raises, which is nearly anything and of many lines."""
    try:
        yield
    except Exception as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if isinstance(error, ValueError) and text.startswith(spec):
            raise
        raise ValueError(f"{spec} cannot be read: {text.rstrip('.')}") from error
