"""Data sets of Hugging Face on this disk, in every form that the library writes; none of them runs code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_shards import colour_of, picture
from unmask.data.huggingface import HuggingFaceSource, Stream, image_bytes
from unmask.data.sources import Source, labelled, open_source

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def rows(first: int, count: int, *, label: str | None = "label") -> Any:
    features = {"text": datasets.Value("string"), "photo": datasets.Image()}
    values: dict[str, Any] = {
        "text": ["words"] * count,
        "photo": [{"bytes": picture(number), "path": None} for number in range(first, first + count)],
    }
    if label is not None:
        features[label] = datasets.ClassLabel(names=["even", "odd"])
        values[label] = [number % 2 for number in range(first, first + count)]
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def numbers(source: Source) -> list[int]:
    return [colour_of(source.read(index)) for index in range(len(source))]


def save(folder: Path, form: str) -> Path:
    if form == "save_to_disk":
        rows(0, 8).save_to_disk(str(folder))
    elif form == "parquet file":
        folder.mkdir()
        rows(0, 8).to_parquet(str(folder / "x.parquet"))
        return folder / "x.parquet"
    elif form == "parquet files":
        folder.mkdir()
        rows(0, 4).to_parquet(str(folder / "0.parquet"))
        rows(4, 4).to_parquet(str(folder / "1.parquet"))
    elif form == "arrow files":
        rows(0, 4).save_to_disk(str(folder / "0"))
        rows(4, 4).save_to_disk(str(folder / "1"))
        for part in "01":
            (folder / part / "data-00000-of-00001.arrow").rename(folder / f"{part}.arrow")
            for rest in (folder / part).iterdir():
                rest.unlink()
            (folder / part).rmdir()
    return folder


@pytest.mark.parametrize("form", ["save_to_disk", "parquet file", "parquet files", "arrow files"])
def test_every_form(tmp_path: Path, form: str) -> None:
    source = open_source(f"hf:{save(tmp_path / 'set', form)}")
    assert numbers(source) == list(range(8))
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1] * 4
    assert source.classes == ("even", "odd")
    assert source.path(3).endswith("/3")
    train, test = (open_source(source.name, split=split) for split in ("train", "test"))
    assert sorted(numbers(train) + numbers(test)) == list(range(8))


@pytest.mark.parametrize("form", ["save_to_disk", "files", "folders"])
def test_parts(tmp_path: Path, form: str) -> None:
    parts = {"train": rows(0, 6), "validation": rows(6, 4)}
    if form == "save_to_disk":
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    for name, part in parts.items():
        if form != "save_to_disk":
            file = f"{name}-00000-of-00001.parquet" if form == "files" else f"{name}/0.parquet"
            (tmp_path / "set" / file).parent.mkdir(parents=True, exist_ok=True)
            part.to_parquet(str(tmp_path / "set" / file))
    train, test = labelled(f"hf:{tmp_path}/set")
    assert numbers(train) == numbers(open_source(f"hf:{tmp_path}/set")) == list(range(6))
    assert numbers(test) == numbers(open_source(f"hf:{tmp_path}/set[validation]")) == [6, 7, 8, 9]
    with pytest.raises(ValueError, match=r"set\[tests\] has no such part: it has train, validation"):
        open_source(f"hf:{tmp_path}/set[tests]")


def test_images_in_files_of_their_own_and_missing_ones(tmp_path: Path) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / name).write_bytes(picture(7))
    photos = [{"bytes": None, "path": str(tmp_path / name)} for name in ("0.png", "1.png")]
    features = datasets.Features({"photo": datasets.Image(decode=False)})
    source = HuggingFaceSource("mine", datasets.Dataset.from_dict({"photo": [*photos, None]}, features=features))
    (tmp_path / "1.png").unlink()
    assert source.labels is None
    assert colour_of(source.read(0)) == 7
    with pytest.raises(OSError, match="No such file"):
        source.read(1)
    with pytest.raises(OSError, match="it is missing"):
        source.read(2)


def test_hidden_labels_are_none(tmp_path: Path) -> None:
    rows(0, 4).map(lambda row: row | {"label": -1}).save_to_disk(str(tmp_path / "set"))
    assert open_source(f"hf:{tmp_path}/set").labels is None


def test_code_beside_the_data_is_not_run(tmp_path: Path) -> None:
    """The library's old way: a script that has the folder's name."""
    folder = save(tmp_path / "set", "parquet files")
    (folder / "set.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(3)")
    assert numbers(open_source(f"hf:{folder}")) == list(range(8))
    for file in folder.glob("*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"cannot be read: it holds neither what save_to_disk writes nor a parquet"):
        open_source(f"hf:{folder}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("seed", [None, 3])
def test_a_stream(tmp_path: Path, seed: int | None) -> None:
    folder = save(tmp_path / "set", "parquet files")
    found = [(colour_of(image_bytes(value)), label) for value, label in Stream(f"hf-stream:{folder}", seed=seed)]
    assert sorted(found) == [(number, number % 2) for number in range(8)]
    assert (found == sorted(found)) == (seed is None)
    again = [(colour_of(image_bytes(value)), label) for value, label in Stream(f"hf-stream:{folder}", seed=seed)]
    assert again == found
    with pytest.raises(ValueError, match="can only be read from its beginning: make shards of it first"):
        open_source(f"hf-stream:{folder}")


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("hf:", "hf: names no data set: write hf:PATH, hf:NAME or hf:NAME"),
        ("hf:nobody/nothing", "hf:nobody/nothing cannot be read: "),
        ("hf:/no/such/folder", "hf:/no/such/folder cannot be read: there is no such file or folder, and it is no name"),
        ("hf:{folder}/words", "hf:{folder}/words has no column of images: its columns are text"),
        ("hf:{folder}/damaged", "hf:{folder}/damaged cannot be read: "),
        ("hf:{folder}/empty", "hf:{folder}/empty holds no image"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, where: str, sentence: str) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "words"))
    (tmp_path / "empty").mkdir()
    schema = rows(0, 1).features.arrow_schema
    with pyarrow.OSFile(str(tmp_path / "empty" / "x.arrow"), "wb") as file, pyarrow.ipc.new_stream(file, schema):
        pass
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "x.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="^" + sentence.format(folder=tmp_path)) as raised:
        open_source(where.format(folder=tmp_path))
    assert "\n" not in str(raised.value)


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"need the library datasets, which is missing: pip install 'unmask\[hugg"):
        open_source("hf:x")
