"""Captions beside images: what is read, what is refused, and which caption a batch holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.batch import CropConfig
from unmask.data.loader import CropLoader
from unmask.data.sources import captions_of, open_source

CROPS = (CropConfig(height=8, width=8),)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of six images, without captions."""
    for index in range(6):
        path = tmp_path / ("left" if index < 3 else "right") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((12, 12, 3), 40 * index, dtype=np.uint8)).save(path)
    return tmp_path


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


def _write(folder: Path, *, several: bool = False) -> None:
    lines = [f'{name},"no. {index}, plain"' for index, name in enumerate(_names(folder))]
    if several:
        lines += [f"./{name},other words for {index}" for index, name in enumerate(_names(folder))]
    (folder / "captions.csv").write_text("image,caption\n" + "\n".join(reversed(lines)) + "\n")


def test_captions_follow_their_images(folder: Path) -> None:
    assert captions_of(open_source(folder)) is None
    assert captions_of(open_source("builtin:emoji")) is None
    _write(folder, several=True)
    source = open_source(folder)
    captions = captions_of(source)
    assert captions == tuple((f"other words for {index}", f"no. {index}, plain") for index in range(6))
    assert captions_of(source.subset([4, 1])) == (captions[4], captions[1])


def test_lines_of_json_say_the_same(folder: Path) -> None:
    lines = [json.dumps({"image": name, "caption": [f"größer {name}", "b"]}) for name in _names(folder)]
    (folder / "captions.jsonl").write_text("\ufeff" + "\n\n".join(lines), encoding="utf8")
    assert captions_of(open_source(folder)) == tuple((f"größer {name}", "b") for name in _names(folder))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("captions.csv", b"", r"captions\.csv has no column 'image': its first line must name 'image' and 'caption'$"),
        ("captions.csv", b"image,text\n", r"captions\.csv has no column 'caption': its first line must name"),
        ("captions.csv", b"image,caption\n", r"captions\.csv holds no caption$"),
        ("captions.csv", b"image,caption\nleft/0.png\n", r"captions\.csv, line 2, has too few columns$"),
        (
            "captions.csv",
            b"image,caption\nleft/0.png,a, b\n",
            r"line 2, has too many columns: put a caption with commas",
        ),
        ("captions.csv", b'image,caption\nleft/0.png,"a\n', r"captions\.csv, line \d, is not CSV: "),
        ("captions.csv", b"image,caption\nleft/9.png,a\n", r"line 2, names 'left/9\.png', which is not an image in "),
        ("captions.csv", b"image,caption\nleft/0.png, \n", r"line 2, has an empty caption for 'left/0\.png'$"),
        (
            "captions.csv",
            b"image,caption\nleft/0.png,\xff\n",
            r"captions\.csv is not UTF-8 text: byte 25 cannot be read$",
        ),
        (
            "captions.csv",
            b"image,caption\nleft/0.png,a\n",
            r"^5 of the 6 images of .* have no caption, for example .*1\.png$",
        ),
        ("captions.jsonl", b"", r"captions\.jsonl holds no caption$"),
        ("captions.jsonl", b"{]\n", r"captions\.jsonl, line 1, is not JSON: "),
        (
            "captions.jsonl",
            b"[1]\n",
            r"line 1, is no object with 'image' \(text\) and 'caption' \(text, or a list of texts\)$",
        ),
        ("captions.jsonl", b'{"image": "left/0.png", "caption": []}', r"line 1, is no object with 'image'"),
        ("captions.jsonl", b"[" * 100_000, r"captions\.jsonl, line 1, is not JSON: "),
        (
            "captions.jsonl",
            b'{"image": "\\ud800.png", "caption": "a"}',
            r"line 1, names '\\ud800\.png', which is not an image in ",
        ),
    ],
)
def test_a_file_that_is_not_captions_is_refused(folder: Path, name: str, content: bytes, sentence: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        captions_of(open_source(folder))


def test_two_files_are_refused(folder: Path) -> None:
    _write(folder)
    (folder / "captions.jsonl").write_text("{}")
    with pytest.raises(ValueError, match=r"has both captions\.csv and captions\.jsonl: keep one of them$"):
        captions_of(open_source(folder))


def _texts(folder: Path, *, seed: int = 0, start: int = 0, workers: int = 0) -> list[tuple[list[int], tuple[str, ...]]]:
    loader = CropLoader(
        open_source(folder),
        CROPS,
        batch_size=3,
        total_steps=8,
        start_step=start,
        seed=seed,
        workers=workers,
        captions=True,
    )
    found = []
    for batch in loader:
        assert batch.texts is not None
        found.append((batch.indices.tolist(), batch.texts))
    return found


def test_a_batch_holds_one_caption_of_each_image_chosen_by_the_seed(folder: Path) -> None:
    _write(folder, several=True)
    captions = captions_of(open_source(folder))
    assert captions is not None
    batches = _texts(folder)
    for indices, texts in batches:
        assert all(text in captions[index] for index, text in zip(indices, texts, strict=True))
    # Both captions of an image come up in some epoch; workers and a resumption change nothing; another seed does.
    assert len({text for _, texts in batches for text in texts}) > 6
    assert _texts(folder, workers=1) == batches
    assert _texts(folder, start=5) == batches[5:]
    assert _texts(folder, seed=1) != batches


def test_texts_are_only_there_where_they_are_asked_for(folder: Path) -> None:
    _write(folder)
    (batch,) = CropLoader(open_source(folder), CROPS, batch_size=6, total_steps=1, seed=0, workers=0)
    assert batch.texts is None
    (folder / "captions.csv").unlink()
    (batch,) = CropLoader(open_source(folder), CROPS, batch_size=6, total_steps=1, seed=0, workers=0, captions=True)
    assert batch.texts is None
