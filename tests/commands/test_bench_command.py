"""`unmask bench`: real processes, text and JSON, one sentence for what makes no sense."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tiny_runs import CommandProcess, Ended, draw_images, tiny_options
from unmask.cli import main

QUICK = ["--seconds", "0.01", "--batch-size", "4", "--workers", "0"]
STEP = [*tiny_options("conmim"), *QUICK, "--steps", "1", "--device", "cpu"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_images(tmp_path / "data")


def run(folder: Path, *arguments: str) -> Ended:
    return CommandProcess(["bench", *arguments], folder).end()


def test_a_step_on_made_images_is_told(tmp_path: Path) -> None:
    ended = run(tmp_path, "step", *STEP)
    assert (ended.code, ended.err) == (0, "")
    for line in (
        r"method +ConMIM",
        r"device +cpu, float32, \d+ threads",
        r"speed +[\d.e+]+ images/s \(1 steps of 4 images, [\d.e+]+ ms each\)",
        r"  views +[\d.e-]+ ms +\d+\.\d%",
        r"  forward +[\d.e-]+ ms +\d+\.\d%",
        r"  backward +[\d.e-]+ ms +\d+\.\d%",
        r"  optimizer +[\d.e-]+ ms +\d+\.\d%",
        r"  target +[\d.e-]+ ms +\d+\.\d%",
        r"peak memory +\d+\.\d\d GiB of the whole process",
        r"work +[\d.e-]+ GFLOP an image, forward and backward",
        r"matrix rate +\d+% of [\d.e+]+ GFLOP/s, measured on such matrices",
        r"bound by +\w+.*",
        r"advice +\w+.*",
    ):
        assert re.search(rf"^{line}$", ended.out, flags=re.M), line
    assert "loader" not in ended.out.replace("the loader is the bottleneck", "")


def test_a_step_on_images_of_a_folder_waits_for_them(data: Path, tmp_path: Path) -> None:
    ended = run(tmp_path, "step", str(data), *STEP, "--json")
    assert (ended.code, ended.err) == (0, "")
    told = json.loads(ended.out)
    assert list(told["step"]["phases"]) == ["data", "views", "forward", "backward", "optimizer", "target"]
    assert told["step"]["step_images_per_second"] > told["step"]["images_per_second"] > 0
    assert told["data"]["images"] == 16
    assert told["method"] == "conmim"
    assert told["encoder"]["width"] == 32
    assert told["bound"]
    assert told["sentence"]


@pytest.mark.parametrize("json_asked", [False, True])
def test_data_are_measured(data: Path, tmp_path: Path, json_asked: bool) -> None:
    ended = run(tmp_path, "data", str(data), *tiny_options("cmae"), *QUICK, *["--json"] * json_asked)
    assert (ended.code, ended.err) == (0, "")
    if json_asked:
        told = json.loads(ended.out)
        assert told["data"]["parts"].keys() == {"read", "decode and crop", "collate"}
        assert told["data"]["images_per_second"] > 0
    else:
        for line in (
            r"data +16 images, batches of 4",
            r"speed +[\d.e+]+ images/s with 0 workers",
            r"  read +[\d.e-]+ ms",
        ):
            assert re.search(rf"^{line}", ended.out, flags=re.M), line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "unmask bench measures step or data"),
        (["speed"], "unmask bench measures step or data, not 'speed'"),
        (["data"], "unmask bench data needs DATA"),
        (["data", "nowhere"], "nowhere"),
        (["step", "nowhere"], "nowhere"),
        (["step", "--method", "conmin"], "conmin"),
        (["step", "--steps", "0"], "--steps must be at least 1, got 0"),
        (["step", "--seconds", "0"], "--seconds must be a number above 0, got 0"),
        (["step", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["step", "--workers", "-1"], "--workers must be 0 or more, got -1"),
        (["step", "--image-size", "1", "2", "3"], "--image-size takes one number or two"),
        (["step", "--device", "cuda:99"], "device 'cuda:99' is not available on this machine"),
        (["step", "--encoder", "vit_tiny_patch17_224"], "vit_tiny_patch17_224"),
        (["step", "--method", "beit"], "tokenizer"),
        (["step", "--stepz", "1"], "unknown option --stepz; did you mean --steps?"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("unmask: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_batch_larger_than_the_data_is_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "data", str(data), *tiny_options("mae"), "--batch-size", "17"]) == 2
    assert "a batch of 17 images is larger than" in capsys.readouterr().err


def test_help_tells_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    said = capsys.readouterr().out
    assert "step" in said
    assert "data" in said
