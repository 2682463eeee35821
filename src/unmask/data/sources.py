"""Where images come from: a folder, a list of files, an archive, shards, a database, or what ships with the package.

`open_source` finds the right kind for what a user typed; `labelled` gives the two labelled halves an
evaluation needs.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from unmask.data.arrays import ArraySource, is_array_file, open_arrays
from unmask.data.captions import Captions, caption_file, read_captions
from unmask.data.huggingface import PREFIX, STREAM_PREFIX, open_huggingface
from unmask.data.idx import IDX_SUFFIXES, idx_file, read_idx
from unmask.data.index import EXTENSIONS, index_folder, is_image_name
from unmask.data.layout import Layout, Split, arrange, hashed_test_mask
from unmask.data.lmdb import is_database, open_lmdb
from unmask.data.paths import PathTable
from unmask.data.planes import PLANES_PREFIX, open_planes
from unmask.data.remote import is_url
from unmask.data.shard_table import INDEX_FILE
from unmask.data.shards import has_shards, open_shards
from unmask.data.source import Selection, Source, select
from unmask.data.zips import open_zip

__all__ = (
    "ArraySource",
    "FileSource",
    "Selection",
    "Source",
    "TarSource",
    "captions_of",
    "labelled",
    "open_source",
)

BUILTIN_FOLDER = Path(__file__).parent / "builtin"
BUILTIN = ("builtin:emoji", "builtin:fashion-mnist")
# fmt: off
FASHION_CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)
# fmt: on


class FileSource(Source):
    """Image files named relative to a folder."""

    kind = "image files"

    def __init__(self, name: str, root: Path, paths: Sequence[bytes]) -> None:
        self.name = name
        self.labels = None
        self.classes = None
        self._root = os.fsencode(root)
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> str:
        return os.path.join(self._root, self._paths[index]).decode("utf-8", "backslashreplace")

    def read(self, index: int) -> bytes:
        with open(os.path.join(self._root, self._paths[index]), "rb") as file:
            return file.read()

    def captions(self) -> Captions | None:
        folder = Path(os.fsdecode(self._root))
        file = caption_file(folder)
        return None if file is None else read_captions(file, self._paths)


class TarSource(Source):
    """Images in an uncompressed tar archive, read in place by their offsets."""

    kind = "a tar archive"

    def __init__(self, name: str, archive: Path) -> None:
        """Lists the archive once. Raises tarfile.TarError or OSError when it is none."""
        self.name = name
        self.labels = None
        self.classes = None
        self._archive = archive
        with tarfile.open(archive, "r:") as tar:
            members = {
                member.name.removeprefix("./").encode("utf-8", "surrogateescape"): member
                for member in tar
                if member.isreg() and is_image_name(os.path.basename(os.fsencode(member.name)))
            }
        self.paths = PathTable.of(members)
        self._offsets = np.array([members[path].offset_data for path in self.paths], dtype=np.int64)
        self._sizes = np.array([members[path].size for path in self.paths], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        return f"{self.name}/{self.paths[index].decode('utf-8', 'backslashreplace')}"

    def read(self, index: int) -> bytes:
        # Opened for each image: a handle shared by forked workers would share its position, too.
        with open(self._archive, "rb") as file:
            file.seek(int(self._offsets[index]))
            return file.read(int(self._sizes[index]))


def open_source(spec: str | Path, *, split: Split = "all") -> Source:
    """The images a user means by `spec`.

    - a folder: all images below it, with captions where it holds a `captions.csv` or `captions.jsonl`. With
      `train/` beside `val/`, `test/`, `valid/` or `validation/`, "train"
      and "all" are the images in `train/` (pre-training must not see test images); otherwise "all" is
      everything and a hash of each image's relative path sends about a fifth to "test". Classes are the
      first-level folders;
    - a folder with the files of MNIST or Fashion-MNIST (`train-images-idx3-ubyte`, gzipped or not, and so
      on);
    - a `.txt` list: one path a line, relative to the list, optionally a tab and a label;
    - a `.tar` or `.zip` archive, laid out like a folder;
    - tar shards (`unmask.data.shards`): a folder of them, `shards/train-{000000..000127}.tar`, the `index.json` of
      `unmask shard`, or any of these as a URL (`https://`, `s3://` ...);
    - a `.npy` or `.npz` file with all images (`unmask.data.arrays`); one image a `.npy` file is a folder;
    - `planes:FOLDER`: a file a channel (`unmask.data.planes`);
    - an LMDB database with image files as values: a `.lmdb` file or folder, or one that holds `data.mdb`;
    - `hf:PATH`, `hf:NAME` or `hf:NAME[part]`: a data set of Hugging Face, on this disk or from their hub;
    - `builtin:emoji`, `builtin:fashion-mnist`.

    Raises ValueError with one sentence when there is no image to be had.
    """
    text = str(spec)
    if text.startswith("builtin:"):
        return _open_builtin(text, split)
    if text.startswith(PREFIX):
        return open_huggingface(text, split)
    if text.startswith(PLANES_PREFIX):
        return open_planes(text, split)
    if text.startswith(STREAM_PREFIX):
        raise ValueError(
            f"{text} can only be read from its beginning: make shards of it first, by unmask shard {text} OUT"
        )
    if is_url(text):
        return open_shards(text, split)
    path = Path(text).expanduser()
    if path.is_dir():
        if idx_file(path, "train", "images") is not None:
            return _open_idx(text, path, split)
        return open_lmdb(text, path, split) if is_database(path) else _open_folder(text, path, split)
    if not path.exists():
        if "{" in text and path.suffix.lower() == ".tar":
            return open_shards(text, split)
        raise ValueError(f"{text} does not exist")
    if path.suffix.lower() == ".tar":
        return _open_tar(text, path, split)
    if path.suffix.lower() == ".txt":
        return _open_list(text, path, split)
    if path.suffix.lower() == ".zip":
        return open_zip(text, path, split)
    if is_array_file(path):
        return open_arrays(text, path, split)
    if is_database(path):
        return open_lmdb(text, path, split)
    if path.name == INDEX_FILE:
        return open_shards(text, split)
    raise ValueError(
        f"{text} is neither a folder of images, nor a .txt list of image files, nor a .tar or .zip archive, "
        "nor a .npy or .npz file"
    )


def labelled(spec: str | Path) -> tuple[Source, Source]:
    """The training and the test images of `spec`, with labels that mean the same classes in both.

    Raises ValueError when the images have no classes, only one, or other classes in training than in testing.
    """
    train, test = open_source(spec, split="train"), open_source(spec, split="test")
    for half, part in (("training", train), ("test", test)):
        if part.labels is None or part.classes is None:
            raise ValueError(f"the {half} images of {spec} have no labels: put them into one folder a class")
    assert train.classes is not None
    assert test.classes is not None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[0]
        raise ValueError(f"{spec} has not the same classes for training and testing: {odd} is only in one of them")
    if len(train.classes) < 2:
        raise ValueError(f"{spec} has only one class, {train.classes[0]}: there is nothing to tell apart")
    return train, test


def captions_of(source: Source) -> Captions | None:
    """The captions of all images of a source, at least one each; None where it has none.

    ValueError where only some images have one.
    """
    captions = source.captions()
    if captions is None:
        return None
    without = [index for index, several in enumerate(captions) if not several]
    if without:
        raise ValueError(
            f"{len(without)} of the {len(captions)} images of {source.name} have no caption, for example "
            f"{source.path(without[0])}"
        )
    return captions


def _open_folder(spec: str, folder: Path, split: Split) -> Source:
    try:
        paths = index_folder(folder)
    except OSError as error:
        raise ValueError(f"{spec} cannot be read: {error.strerror}") from error
    if not len(paths):
        if has_shards(folder):
            return open_shards(spec, split)
        kinds = ", ".join(extension.decode().removeprefix(".") for extension in EXTENSIONS)
        raise ValueError(f"{spec} holds no image (no file ending in {kinds})")
    return select(FileSource(spec, folder, paths), arrange(paths, split), spec, split)


def _open_tar(spec: str, archive: Path, split: Split) -> Source:
    try:
        base = TarSource(spec, archive)
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{spec} cannot be read as an uncompressed tar archive: {error}") from error
    if not len(base):
        raise ValueError(f"{spec} holds no image")
    return select(base, arrange(base.paths, split), spec, split)


def _open_list(spec: str, file: Path, split: Split) -> Source:
    """A list is not sorted: its order is the user's. Labels are the sorted distinct words after the tab."""
    names: list[bytes] = []
    words: list[bytes] = []
    try:
        content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise ValueError(f"{spec} cannot be read: {error.strerror}") from error
    for line in content.split(b"\n"):
        name, tab, word = line.rstrip(b"\r").partition(b"\t")
        if name.strip():
            names.append(name)
            if tab:
                words.append(word.strip())
    if not names:
        raise ValueError(f"{spec} lists no image")
    if words and len(words) != len(names):
        raise ValueError(f"{spec} has a label on {len(words)} of its {len(names)} lines: label all of them or none")
    labels, classes = None, None
    if words:
        known, labels = np.unique(np.array(words, dtype=object), return_inverse=True)
        labels = labels.astype(np.int64)
        classes = tuple(word.decode("utf-8", "backslashreplace") for word in known)
    indices = np.arange(len(names))
    if split != "all":
        hidden = hashed_test_mask(names, labels)
        indices = np.flatnonzero(hidden if split == "test" else ~hidden)
    layout = Layout(indices, None if labels is None else labels[indices], classes)
    return select(FileSource(spec, file.parent, names), layout, spec, split)


def _open_idx(spec: str, folder: Path, split: Split) -> Source:
    part = "t10k" if split == "test" else "train"
    images, labels = idx_file(folder, part, "images"), idx_file(folder, part, "labels")
    if images is None or labels is None:
        raise ValueError(f"{spec} lacks the images or the labels of {part} (IDX files, {' or '.join(IDX_SUFFIXES)})")
    values = read_idx(labels)
    return ArraySource(
        f"{spec}/{part}",
        read_idx(images),
        labels=values,
        classes=tuple(str(label) for label in range(int(values.max(initial=0)) + 1)),
    )


def _open_builtin(spec: str, split: Split) -> Source:
    if spec == "builtin:emoji":
        return _open_tar(spec, BUILTIN_FOLDER / "emoji.tar", split)
    if spec == "builtin:fashion-mnist":
        part = "test" if split == "test" else "train"
        return ArraySource(
            f"{spec}/{part}",
            read_idx(BUILTIN_FOLDER / f"fashion-mnist-{part}-images.idx.xz"),
            labels=read_idx(BUILTIN_FOLDER / f"fashion-mnist-{part}-labels.idx.xz"),
            classes=FASHION_CLASSES,
        )
    raise ValueError(f"{spec} is not built in: choose one of {', '.join(BUILTIN)}")
