"""Images of many channels and bits, from the folder to the encoder and everything that reads images with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tiny_runs import draw_images, quick_options, tiny_options
from unmask.cli import main
from unmask.commands.pretrain import read, resolve
from unmask.config import load_config, save_config
from unmask.data.pixel_range import PixelRange, measured_range
from unmask.data.sources import open_source
from unmask.embedding.transformer import UnmaskFeatures
from unmask.models.pretrained import read_encoder
from unmask.run_folder import RunFolder
from unmask.tasks.classifier_file import read_classifier

OPTIONS = [*tiny_options("mae"), *quick_options(epochs=1)]


def draw_tiles(folder: Path, count: int = 16, channels: int = 5) -> Path:
    """Tiles of 12 bits, one class with broad stripes, one with narrow ones."""
    generator = np.random.default_rng(0)
    for number in range(count):
        wave = 400 * (np.sin(np.arange(36) / (1 + number % 2 * 4))[:, None, None] + 1)
        tile = wave + 200 * np.arange(1, channels + 1) + generator.normal(0, 20, (36, 40, channels))
        file = folder / ("narrow", "broad")[number % 2] / f"{number:02d}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, tile.astype(np.uint16))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on such tiles, in a folder beside them."""
    folder = tmp_path_factory.mktemp("wide")
    assert main(["pretrain", str(draw_tiles(folder / "tiles")), *OPTIONS, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_range_is_measured_told_and_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = RunFolder(run).config()
    assert config.settings.encoder.channels == 5
    assert config.pixel_range is not None
    assert config.pixel_range.low == pytest.approx([140 + 200 * channel for channel in range(5)], abs=40)
    assert config.pixel_range.high == pytest.approx([1060 + 200 * channel for channel in range(5)], abs=40)
    assert read_encoder(run / "encoder.safetensors").pixel_range == config.pixel_range
    # The same command finds the same run.
    assert main(["pretrain", str(run.parent / "tiles"), *OPTIONS, "--out", str(run)]) == 0
    out = capsys.readouterr().out.replace("\n", " ")
    assert f"values {config.pixel_range} of uint16 become 0 to 255, as the run has begun" in out
    assert "5 channels, as the images have" in out


def test_everything_reads_images_in_the_range_of_the_encoder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles, features = str(run.parent / "tiles"), run.parent / "features.npy"
    assert main(["evaluate", "knn", str(run), tiles, "--workers", "0", "--json"]) == 0
    scores = {
        record["network"]: record["score"]["top1"] for record in map(json.loads, capsys.readouterr().out.splitlines())
    }
    assert scores["pixels"] == 100
    assert main(["embed", str(run), tiles, "-o", str(features), "--workers", "0", "--device", "cpu"]) == 0
    files = sorted((run.parent / "tiles").rglob("*.npy"))
    found = UnmaskFeatures(str(run), device="cpu").fit_transform(files)
    stored = np.load(features, allow_pickle=False)
    assert np.allclose(np.sort(stored, axis=0), np.sort(found, axis=0), atol=1e-5)
    arrays = [np.load(file, allow_pickle=False) for file in files]
    assert np.allclose(UnmaskFeatures(str(run), device="cpu").fit_transform(arrays), found, atol=1e-5)
    # An image without contrast in the wrong range would give the same features as any other.
    assert found.std(axis=0).max() > 1e-3


def test_exports_keep_the_range(run: Path) -> None:
    copy = run.parent / "copy.safetensors"
    assert main(["export", str(run), "--to", "safetensors", "--out", str(copy)]) == 0
    assert read_encoder(copy).pixel_range == read_encoder(run / "encoder.safetensors").pixel_range


def test_images_of_other_channels_are_refused_with_the_reason(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = draw_tiles(run.parent / "other", channels=4)
    capsys.readouterr()
    assert main(["evaluate", "knn", str(run), str(other), "--workers", "0"]) == 2
    err = capsys.readouterr().err
    assert "it has 4 channels, and 5 are wanted" in err
    assert len(err.splitlines()) == 1


def test_fine_tuning_takes_the_range_along(run: Path) -> None:
    tiles = str(run.parent / "tiles")
    options = ["--device", "cpu", "--workers", "0", "--epochs", "1", "--batch-size", "4", "--no-floors"]
    assert main(["evaluate", "finetune", str(run), tiles, *options]) == 0
    (file,) = run.rglob("classifier.safetensors")
    assert read_classifier(file).pixel_range == RunFolder(run).config().pixel_range


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("7", "3"), "a range of pixel values must go up, not from 7 to 3"),
        (("0", "100"), "the images of data have 8 bits: leave --pixel-range out"),
    ],
)
def test_ranges_that_cannot_be_are_refused(
    options: tuple[str, ...],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    data = draw_tiles(tmp_path / "tiles") if options[0] == "7" else draw_images(tmp_path / "data")
    assert main(["pretrain", data.name, *OPTIONS, "--pixel-range", *options, "--out", "run"]) == 2
    assert capsys.readouterr().err == f"unmask: {said}\n"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("asked", "kept"),
    [(("0", "4095"), PixelRange(low=(0,), high=(4095,))), (("full",), None), (("data",), "measured"), ((), "measured")],
)
def test_a_range_may_be_given(asked: tuple[str, ...], kept: PixelRange | str | None, tmp_path: Path) -> None:
    tiles = draw_tiles(tmp_path / "tiles", count=8)
    command, base = read([str(tiles), *OPTIONS, *(("--pixel-range", *asked) if asked else ())])
    config, _ = resolve(command, base, RunFolder(tmp_path / "run"))
    if kept == "measured":
        kept = measured_range(open_source(tiles), channels=5)
    assert config.pixel_range == kept
    save_config(config, tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    again, base = read([str(tiles), "--config", str(tmp_path / "config.json"), "--device", "cpu"])
    assert kept is None or resolve(again, base, RunFolder(tmp_path / "run"))[0].pixel_range == kept
