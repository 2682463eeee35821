"""Features as plain arrays: .npy with names and header in files beside it, or all in one .safetensors file."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from unmask.data.paths import PathTable
from unmask.embedding.header import KEY, Header, read_header
from unmask.embedding.rows import Blocks, FeatureFile, Row, even_starts

_DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
_BLOCK_BYTES = 1 << 24
_HEADER = ("index", "path", "label", "class")


def names_file(path: Path) -> Path:
    """Where the names of an .npy file's images are."""
    return path.with_name(f"{path.name}.csv")


def header_file(path: Path) -> Path:
    """Where an .npy file's header is."""
    return path.with_name(f"{path.name}.json")


def write_npy(path: Path, header: Header, blocks: Blocks) -> None:
    """The features alone, as NumPy has them; see `write_names` for all else."""
    with path.open("wb") as file:
        kind = np.lib.format.dtype_to_descr(_DTYPES[header.plan.precision])
        shape = (header.images, *header.shape)
        np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
        for block in blocks():
            file.write(np.ascontiguousarray(block.features).data)


def write_names(path: Path, header: Header, blocks: Blocks) -> None:
    """A CSV with a line for each image: index, path, label and class (empty where there is none)."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEADER)
        for block in blocks():
            for row in block.rows:
                name = "" if row.label is None or header.classes is None else header.classes[row.label]
                writer.writerow((row.index, row.path, "" if row.label is None else row.label, name))


def write_safetensors(path: Path, header: Header, blocks: Blocks) -> None:
    """Tensors features, index, label (where the data has any) and paths: UTF-8, each path followed by a NUL byte.

    The library would want all of it in memory at once, so the file is written here, as its format says: the length of
    a JSON header in 8 bytes, the header, the tensors one behind the other.
    """
    images = header.images
    wide = {"index": np.empty(images, np.int64)}
    if header.classes is not None:
        wide["label"] = np.empty(images, np.int64)
    kind = _DTYPES[header.plan.precision]
    sizes = {name: array.nbytes for name, array in wide.items()}
    sizes["features"] = images * int(np.prod(header.shape)) * kind.itemsize
    room = len(_safetensors_header(header, sizes | {"paths": 1 << 62}))
    with path.open("wb") as file:
        file.seek(8 + room + sum(array.nbytes for array in wide.values()))
        done = 0
        paths: list[bytes] = []
        for block in blocks():
            rows = slice(done, done + len(block.rows))
            done = rows.stop
            wide["index"][rows] = [row.index for row in block.rows]
            if "label" in wide:
                wide["label"][rows] = [-1 if row.label is None else row.label for row in block.rows]
            paths.append(b"".join(row.path.encode("utf-8", "backslashreplace") + b"\0" for row in block.rows))
            file.write(np.ascontiguousarray(block.features).data)
        for names in paths:
            file.write(names)
        sizes["paths"] = sum(map(len, paths))
        # Spaces behind the header belong to the format; so it can be written when all sizes are known.
        content = _safetensors_header(header, sizes).ljust(room)
        file.seek(0)
        file.write(len(content).to_bytes(8, "little") + content)
        for array in wide.values():
            file.write(array.data)


def _safetensors_header(header: Header, sizes: dict[str, int]) -> bytes:
    """The JSON header of a file that holds these tensors, in this order, in a multiple of 8 bytes."""
    images, end = header.images, 0
    kinds = {"features": ("F16" if header.plan.precision == "fp16" else "F32", [images, *header.shape])}
    described: dict[str, Any] = {"__metadata__": {KEY: header.as_json()}}
    for name, size in sizes.items():
        dtype, shape = kinds.get(name, ("U8", [size]) if name == "paths" else ("I64", [images]))
        described[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    content = json.dumps(described).encode()
    return content.ljust(-(-len(content) // 8) * 8)


class NpyFeatures(FeatureFile):
    """Features in an .npy file."""

    def __init__(self, path: Path) -> None:
        """ValueError where it is no such file, or those beside it are missing."""
        self.path = path
        beside = header_file(path)
        self.header = read_header(beside.read_bytes() if beside.exists() else None, beside)
        try:
            self._features: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is not a readable .npy file") from error
        if not names_file(path).exists():
            raise ValueError(f"{names_file(path)} is missing, which names the images of {path}")
        self.starts = _starts(path, self.header, self._features.shape, self._features.dtype)

    def block(self, number: int) -> NDArray[Any]:
        return np.asarray(self._features[self.starts[number] : self.starts[number + 1]])

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        wanted, found = set(numbers), {}
        try:
            with names_file(self.path).open(encoding="utf-8", newline="") as file:
                for number, line in enumerate(csv.DictReader(file)):
                    if number in wanted:
                        label = int(line["label"]) if line["label"] else None
                        found[number] = Row(index=int(line["index"]), path=line["path"], label=label)
            return [found[number] for number in numbers]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(f"{names_file(self.path)} is damaged") from error


class SafetensorsFeatures(FeatureFile):
    """Features in a .safetensors file."""

    def __init__(self, path: Path) -> None:
        """ValueError where it is no such file."""
        self.path = path
        try:
            self._file = safe_open(path, framework="np")
            self.header = read_header((self._file.metadata() or {}).get(KEY), path)
            self._features = self._file.get_slice("features")
            self._paths = PathTable(self._file.get_tensor("paths"))
            self._index: NDArray[np.int64] = self._file.get_tensor("index")
            self._labels = None if self.header.classes is None else self._file.get_tensor("label")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a readable safetensors file of features") from error
        dtype = {"F32": _DTYPES["fp32"], "F16": _DTYPES["fp16"]}.get(self._features.get_dtype())
        self.starts = _starts(path, self.header, tuple(self._features.get_shape()), dtype)
        if not len(self) == len(self._paths) == len(self._index):
            raise ValueError(f"{path} is not what its header says")

    def block(self, number: int) -> NDArray[Any]:
        values: NDArray[Any] = self._features[self.starts[number] : self.starts[number + 1]]
        return values

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        return [
            Row(
                index=int(self._index[number]),
                path=self._paths[number].decode("utf-8", "backslashreplace"),
                label=None if self._labels is None else int(self._labels[number]),
            )
            for number in numbers
        ]


def _starts(path: Path, header: Header, shape: tuple[int, ...], dtype: Any) -> list[int]:
    """Where blocks of bounded size begin. ValueError where the array is not the header's."""
    if shape != (header.images, *header.shape) or dtype != _DTYPES.get(header.plan.precision):
        raise ValueError(f"{path} is not what its header says")
    bytes_each = int(np.prod(header.shape)) * _DTYPES[header.plan.precision].itemsize
    return even_starts(header.images, max(1, min(header.plan.part_size, _BLOCK_BYTES // max(1, bytes_each))))
