"""What any version has written, the present one still reads: `tests/kept` holds files of each, which never change.

A new version adds its folder by `python scripts/keep_version.py tests/kept/VERSION`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tiny_runs import read_records
from unmask.cli import main
from unmask.config import load_config
from unmask.data.sources import open_source
from unmask.embedding.files import open_features
from unmask.evaluation.features import extract
from unmask.methods import METHODS
from unmask.models.pretrained import read_encoder
from unmask.models.tokenizers.file import open_tokenizer
from unmask.tasks.classifier_file import read_classifier
from unmask.tasks.detection_file import read_detector
from unmask.tasks.segmentation_file import read_segmenter

KEPT = Path(__file__).parent / "kept"
VERSIONS = sorted(path.name for path in KEPT.iterdir())
RUNS = ("conmim", "mae", "classifier", "tokenizer")


def expected(version: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((KEPT / version / "expected.json").read_text())
    return values


def test_there_are_files_of_a_version() -> None:
    assert VERSIONS


@pytest.mark.parametrize("version", VERSIONS)
def test_the_configuration_of_every_method_is_read_with_all_its_fields(version: str, tmp_path: Path) -> None:
    """A field that is renamed or loses its place makes this fail: then the reader must learn the old name."""
    kept = json.loads((KEPT / version / "methods.json").read_text())
    assert kept
    for name, values in kept.items():
        (tmp_path / "config.json").write_text(json.dumps(values))
        config = load_config(tmp_path / "config.json")
        assert config.method == name
        read = json.loads(json.dumps(config.as_dict()))
        assert_holds(read, values, name)


def assert_holds(read: dict[str, Any], kept: dict[str, Any], where: str) -> None:
    """All that was kept has its value still; there may be more."""
    for key, value in kept.items():
        assert key in read, f"{where}.{key}"
        if isinstance(value, dict):
            assert_holds(read[key], value, f"{where}.{key}")
        else:
            assert read[key] == value, f"{where}.{key}"


@pytest.mark.parametrize("version", VERSIONS)
def test_no_method_has_gone(version: str) -> None:
    assert set(json.loads((KEPT / version / "methods.json").read_text())) <= set(METHODS)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on(
    name: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command resumes it, and every step after the stop is as it was without one.

    To a thousandth: another version of torch may round in another way, and forty steps carry that on.
    """
    folder = tmp_path / version
    shutil.copytree(KEPT / version, folder)
    if name == "tokenizer":
        (folder / "tokenizer.safetensors").unlink()
    monkeypatch.chdir(folder)
    taken = len(read_records(folder / name, "step"))
    command = expected(version)["commands"][name]
    assert main(command) == 0, capsys.readouterr().err
    losses = [record["loss"] for record in read_records(folder / name, "step")]
    known = expected(version)["losses"][name]
    assert 0 < taken < len(known)
    assert losses == pytest.approx(known, rel=1e-3)


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_are_read_whole(version: str) -> None:
    folder = KEPT / version
    encoder = read_encoder(folder / "conmim.safetensors")
    assert encoder.method == "conmim"
    assert encoder.encoder.network.state_dict().keys() == load_file(folder / "conmim.safetensors").keys()
    assert read_classifier(folder / "classifier.safetensors").classes == ("cold", "warm")
    assert read_segmenter(folder / "segmenter.safetensors").classes
    assert read_detector(folder / "detector.safetensors").classes
    assert open_tokenizer(folder / "tokenizer.safetensors").vocabulary == 8


@pytest.mark.parametrize("version", VERSIONS)
def test_an_encoder_gives_the_features_that_it_gave(version: str) -> None:
    folder = KEPT / version
    features_ND = extract(
        read_encoder(folder / "mae.safetensors").features,
        open_source(folder / "images"),
        height=32,
        width=32,
        channels=3,
        batch_size=16,
        workers=0,
    ).x_ND
    torch.testing.assert_close(features_ND[0], torch.tensor(expected(version)["features"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_features_and_shards_are_read(kind: str, version: str) -> None:
    folder = KEPT / version
    file = open_features(folder / f"features.{kind}")
    assert (file.header.images, file.header.method) == (16, "mae")
    np.testing.assert_allclose(file.block(0)[0], expected(version)["features"], rtol=1e-6)
    assert len(open_source(folder / "shards")) == 16
