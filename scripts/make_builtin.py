"""Make the built-in image sets from their sources: `python scripts/make_builtin.py SOURCE`.

SOURCE holds `fluent_emoji_64.tar` (Fluent Emoji at 64 px as `split/category/code.webp`) and the four files of
Fashion-MNIST. The emoji go in as they are; of Fashion-MNIST a subset with equally many images of each class,
in the original order. The same source always gives the same bytes.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unmask.data.idx import idx_file, read_idx

SEED = 0
KEPT = {"train": 10_000, "test": 2_000}
# Images of 8-bit pixels: more bits of literal context and none of position make the file 1 % smaller.
XZ_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 4, "lp": 0, "pb": 0}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    default = Path(__file__).parents[1] / "src" / "unmask" / "data" / "builtin"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(arguments.source / "fluent_emoji_64.tar", arguments.out / "emoji.tar")
    for part, original in (("train", "train"), ("test", "t10k")):
        images = _read(arguments.source, original, "images")
        labels = _read(arguments.source, original, "labels")
        kept = balanced(labels, KEPT[part])
        write_idx(arguments.out / f"fashion-mnist-{part}-images.idx.xz", images[kept])
        write_idx(arguments.out / f"fashion-mnist-{part}-labels.idx.xz", labels[kept])


def _read(folder: Path, part: str, content: str) -> NDArray[np.uint8]:
    file = idx_file(folder, part, content)
    if file is None:
        raise SystemExit(f"{folder} has no {content} of {part}")
    return read_idx(file)


def balanced(labels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Sorted positions of `count` random images, equally many of each class."""
    classes = np.unique(labels)
    generator = np.random.default_rng(SEED)
    each = count // len(classes)
    return np.sort(
        np.concatenate([generator.choice(np.flatnonzero(labels == c), each, replace=False) for c in classes])
    )


def write_idx(file: Path, array: NDArray[np.uint8]) -> None:
    """Write the array as an IDX file compressed with xz."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    file.write_bytes(lzma.compress(header + array.tobytes(), filters=XZ_FILTERS))


if __name__ == "__main__":
    main()
