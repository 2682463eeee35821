"""Whoever lacks an extra gets one sentence with what to install, exit code 2, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tiny_runs import draw_images, tiny_options
from tiny_supervised import write_encoder
from unmask.cli import main
from unmask.data import corruption
from unmask.extras import EXTRAS, install_command


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "data")
    write_encoder(desk / "encoder.safetensors")
    np.save(desk / "features.npy", np.zeros((2, 2), np.float32))
    (desk / "some.lmdb").mkdir()
    (desk / "some.lmdb" / "data.mdb").touch()
    return desk


PRETRAIN = ["--epochs", "1", "--batch-size", "8", "--workers", "0", "--device", "cpu", "--out", "new"]
LINES = {
    "captions": ("text", ["pretrain", "data", *tiny_options("m3ae"), *PRETRAIN]),
    "transformers": ("transformers", ["export", "encoder.safetensors", "--to", "transformers", "-o", "new"]),
    "onnx": ("onnx", ["export", "encoder.safetensors", "--to", "onnx", "-o", "new"]),
    "onnx file": ("onnx", ["export", "encoder.safetensors", "--to", "onnx", "-o", "new.onnx"]),
    "robustness": (
        "robustness",
        ["evaluate", "robustness", "encoder.safetensors", "data", "--device", "cpu", "--workers", "0"],
    ),
    "http": ("remote", ["pretrain", "https://host.invalid/index.json", *PRETRAIN]),
    "s3": ("remote", ["pretrain", "s3://bucket/index.json", *PRETRAIN]),
    "lmdb": ("lmdb", ["pretrain", "some.lmdb", *PRETRAIN]),
    "hf": ("huggingface", ["pretrain", "hf:some/name", *PRETRAIN]),
    "hf shard": ("huggingface", ["shard", "hf-stream:some/name", "new"]),
    "embed": ("parquet", ["embed", "encoder.safetensors", "data", "-o", "new.parquet"]),
    "duplicates": ("parquet", ["duplicates", "new.parquet"]),
    "submit": ("slurm", ["submit", "--", "pretrain", "data", *PRETRAIN]),
    "submit local": ("slurm", ["submit", "--cluster", "local", "--", "pretrain", "data", *PRETRAIN]),
    "wandb": ("wandb", ["pretrain", "data", *PRETRAIN, "--log", "wandb"]),
    "mlflow": ("mlflow", ["pretrain", "data", *PRETRAIN, "--log", "mlflow"]),
    "trackio": ("trackio", ["pretrain", "data", *PRETRAIN, "--log", "trackio"]),
}


@pytest.mark.parametrize("name", LINES)
def test_one_sentence_and_nothing_written(
    name: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extra, line = LINES[name]
    for module in EXTRAS[extra].libraries:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(desk)
    monkeypatch.setattr(corruption, "_library", corruption._library.__wrapped__)
    before = sorted(desk.rglob("*"))
    assert main(line) == 2
    err = capsys.readouterr().err
    assert err.startswith("unmask: ")
    assert err.count("\n") == 1
    assert "which is missing" in err
    assert install_command(extra) in err
    assert sorted(desk.rglob("*")) == before


def test_every_extra_is_tried() -> None:
    # DICOM files are read one by one, in workers: tests/data/test_dicom.py.
    assert {extra for extra, _ in LINES.values()} == set(EXTRAS) - {"medical"}
