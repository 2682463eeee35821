"""Features in a parquet file: a row an image, a row group a part, so that whatever reads tables reads them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unmask.embedding.header import KEY, Header, read_header
from unmask.embedding.rows import Blocks, FeatureFile, Row
from unmask.extras import require


def library() -> Any:
    """The library pyarrow. ValueError where it is missing."""
    return require(
        "parquet", "parquet files need", "pyarrow", "pyarrow.parquet", otherwise=", or write .npy or .safetensors"
    )


def write_parquet(path: Path, header: Header, blocks: Blocks) -> None:
    """Columns index, path, label and class (where the data has any) and feature, a list of fixed length."""
    arrow = library()
    size = int(np.prod(header.shape))
    kind = arrow.float16() if header.plan.precision == "fp16" else arrow.float32()
    fields = [("index", arrow.int64()), ("path", arrow.string())]
    if header.classes is not None:
        fields += [("label", arrow.int64()), ("class", arrow.string())]
    schema = arrow.schema([*fields, ("feature", arrow.list_(kind, size))]).with_metadata({KEY: header.as_json()})
    # Nothing is gained by compressing floats, or by looking for those that occur twice.
    names = [name for name, _ in fields]
    compression = dict.fromkeys(names, "zstd") | {"feature.list.element": "none"}
    with arrow.parquet.ParquetWriter(path, schema, compression=compression, use_dictionary=["path"]) as writer:
        for block in blocks():
            columns: dict[str, Any] = {
                "index": [row.index for row in block.rows],
                "path": [row.path for row in block.rows],
            }
            if header.classes is not None:
                columns["label"] = [row.label for row in block.rows]
                columns["class"] = [None if row.label is None else header.classes[row.label] for row in block.rows]
            flat = arrow.array(block.features.reshape(-1), type=kind)
            columns["feature"] = arrow.FixedSizeListArray.from_arrays(flat, size)
            writer.write_table(arrow.table(columns, schema=schema), row_group_size=max(1, len(block.rows)))


class ParquetFeatures(FeatureFile):
    """Features in a parquet file; a block is a row group."""

    def __init__(self, path: Path) -> None:
        """ValueError where it is no such file."""
        arrow = library()
        try:
            self._file = arrow.parquet.ParquetFile(path, memory_map=True)
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path} is not a readable parquet file") from error
        self.path = path
        metadata = self._file.schema_arrow.metadata or {}
        self.header = read_header(metadata.get(KEY.encode()), path)
        groups = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        self.starts = [0, *np.cumsum(groups, dtype=np.int64).tolist()]
        wanted = {"index", "path", "feature"} | ({"label"} if self.header.classes is not None else set())
        if len(self) != self.header.images or not wanted <= set(self._file.schema_arrow.names):
            raise ValueError(f"{path} is not what its header says")

    def block(self, number: int) -> NDArray[Any]:
        column = self._read(number, ["feature"])["feature"].combine_chunks()
        values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        rows = self.starts[number + 1] - self.starts[number]
        if values.size != rows * np.prod(self.header.shape):
            raise ValueError(f"{self.path} is not what its header says")
        return values.reshape(rows, *self.header.shape)

    def rows(self, numbers: Sequence[int]) -> list[Row]:
        columns = ["index", "path"] + (["label"] if self.header.classes is not None else [])
        wanted = np.asarray(numbers, dtype=np.int64)
        found: dict[int, Row] = {}
        for group, (first, end) in enumerate(pairwise(self.starts)):
            inside = np.unique(wanted[(wanted >= first) & (wanted < end)])
            if not len(inside):
                continue
            table = self._read(group, columns)
            for number in inside.tolist():
                values = {name: table[name][number - first].as_py() for name in columns}
                found[number] = Row(index=values["index"], path=values["path"], label=values.get("label"))
        return [found[number] for number in numbers]

    def _read(self, group: int, columns: list[str]) -> Any:
        try:
            return self._file.read_row_group(group, columns=columns)
        except (library().ArrowException, OSError) as error:
            raise ValueError(f"{self.path} is damaged") from error
