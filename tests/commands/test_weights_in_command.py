"""`unmask import` and `unmask pretrain --from-weights`, from a checkpoint of others to a run that goes on from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open

from tiny_runs import CommandProcess, draw_images, last_logged_step, quick_options
from unmask.cli import main
from unmask.errors import STOPPED
from unmask.models.pretrained import HEADER, open_encoder

NARROW = ["--method.projector.hidden", "32", "--method.projector.out", "16", "--image-size", "32"]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with MAE's checkpoint of a tiny ViT, in which commands run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=4, img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2
    )
    torch.save({"model": model.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "mae.pth")
    return tmp_path


def imported(*options: str, out: str = "encoder.safetensors") -> int:
    return main(["import", "mae.pth", "--from", "mae", "--heads", "2", "-o", out, *options])


def test_a_file_of_others_becomes_an_encoder_that_can_be_judged(desk: Path) -> None:
    """As a process of its own, as people start it."""
    draw_images(desk / "data")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "unmask",
        "import",
        "mae.pth",
        "--from=mae",
        "--heads=2",
        "-o",
        "new/enc.safetensors",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "used          18 tensors",
        "classifier, after the encoder: model.head.weight",
        "2 heads",
        "optimizer:",
    ):
        assert words in done.stdout
    with safe_open("new/enc.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert header["imported"] == {"from": "mae", "file": "mae.pth", "network": None}
    assert header["method"] == "mae"
    assert main(["evaluate", "knn", "new/enc.safetensors", "data", "--workers", "0", "--no-floors"]) == 0


def test_json_names_every_tensor(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported("--image-size", "64", "--channels", "1", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    names = {f"model.{name}" for name in torch.load("mae.pth", weights_only=True)["model"]}
    assert set(said["used"]) | set(said["left_out"]) == names | {"optimizer.state.0.exp_avg"}
    assert set(said["changed"]) == {"pos_embed", "patch_embed.proj.weight"}
    assert said["encoder"]["image_height"] == 64
    assert len(said["mean"]) == said["encoder"]["channels"] == 1
    again = open_encoder("encoder.safetensors")
    assert again.encoder.image_size == (64, 64)
    # What was imported can be made to fit other images later on.
    assert (
        main(["import", "encoder.safetensors", "--from", "unmask", "--image-size", "32", "-o", "small.safetensors"])
        == 0
    )
    assert open_encoder("small.safetensors").encoder.image_size == (32, 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--from", "mea"], "--from mea is unknown"),
        ([], "say who made mae.pth by --from"),
        (["--from", "mae"], "give --heads"),
        (["--from", "transformers"], "cannot read config.json"),
        (["--from", "unmask"], "is not a readable safetensors file"),
        (["--from", "mae", "--heads", "0"], "must be at least 1"),
        (["--from", "mae", "--heads", "2", "--image-size", "1", "2", "3"], "--image-size takes one number or two"),
        (["--from", "timm:resnet18"], "tensors of the encoder 'resnet18'"),
        (["--network", "both"], "cannot be 'both'"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_leaves_nothing(
    options: list[str], sentence: str, desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(desk.rglob("*"))
    assert main(["import", "mae.pth", "-o", "new/encoder.safetensors", *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
    assert sorted(desk.rglob("*")) == before


def test_a_file_that_is_there_is_not_overwritten(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (desk / "encoder.safetensors").write_text("mine")
    assert imported() == 2
    assert "encoder.safetensors exists" in capsys.readouterr().err
    assert (desk / "encoder.safetensors").read_text() == "mine"


def test_a_file_that_would_run_code_does_not(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("sprung",)

    torch.save({"model": {"a": torch.ones(1)}, "trap": Trap()}, "mae.pth")
    assert imported() == 2
    assert "can run code" in capsys.readouterr().err
    assert not Path("sprung").exists()


def test_a_run_goes_on_from_weights_and_resumes_without_their_file(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_images(desk / "data")
    assert imported() == 0
    begin = ["pretrain", "data", "--from-weights", "encoder.safetensors", *NARROW]
    endless = [*begin, "--out", "run", *quick_options(epochs=1000, every=1)]
    process = CommandProcess(endless, desk)
    process.wait_until(lambda: last_logged_step(Path("run")) >= 2)
    process.signal(signal.SIGTERM)
    assert process.end().code == STOPPED
    assert "18 tensors loaded" in process.printed()
    assert "random: encoder.mask_token, projector" in process.printed()
    start = json.loads(Path("run/config.json").read_text())["start"]
    assert start["weights"] == "encoder.safetensors"
    assert start["random"] == ["encoder.mask_token", "projector"]
    assert len(start["loaded"]) == 18

    steps = last_logged_step(Path("run"))
    Path("encoder.safetensors").unlink()
    process = CommandProcess(endless, desk, name="-again")
    process.wait_until(lambda: last_logged_step(Path("run")) > steps)
    process.signal(signal.SIGTERM)
    assert process.end().code == STOPPED
    assert "resuming run at step" in process.printed()
    assert json.loads(Path("run/config.json").read_text())["start"] == start

    # No new run can begin without the file, and one from a random start is another run.
    capsys.readouterr()
    assert main([*begin, "--out", "new", *quick_options()]) == 2
    assert "no run folder or encoder file encoder.safetensors" in capsys.readouterr().err
    assert not Path("new").exists()
    assert main(["pretrain", "data", *NARROW, "--out", "run", *quick_options(epochs=1000, every=1)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_weights_and_another_encoder_exclude_each_other(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw_images(desk / "data")
    options = ["--from-weights", "x.safetensors", "--encoder", "vit_tiny_patch16_224"]
    assert main(["pretrain", "data", *options, *quick_options()]) == 2
    assert "leave --encoder out" in capsys.readouterr().err
