"""`unmask pretrain`, `evaluate` and `report` on a folder of images, as a user meets them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tiny_runs import (
    CommandProcess,
    Ended,
    assert_same_weights,
    draw_images,
    quick_options,
    read_records,
    tiny_options,
)
from unmask import __version__
from unmask.cli import main
from unmask.config import load_config
from unmask.models.pretrained import open_encoder

DATA = "photos ü [bold]"
RUN = Path("runs") / f"conmim-{DATA}"
COMMAND = ["pretrain", DATA, *tiny_options("conmim"), *quick_options(), "--normalisation", "data", "--lr", "0.002"]


@dataclass(frozen=True)
class Done:
    """A finished command line in its own Python, and the folder it ran in."""

    desk: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    desk = tmp_path_factory.mktemp("desk")
    # Nested, with names of another script, and things that are no images.
    draw_images(desk / DATA, 30, classes=("холодно/рано утром", "warm/a/b"))
    (desk / DATA / "notes.txt").write_text("nothing to see")
    (desk / DATA / ".hidden.png").write_bytes(b"")
    ended = subprocess.run(
        [sys.executable, "-m", "unmask", *COMMAND], cwd=desk, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return Done(desk, ended.stdout, ended.stderr)


def run_beside(done: Done, arguments: list[str]) -> Ended:
    """Another command line in the same folder."""
    return CommandProcess(arguments, done.desk).end()


def test_what_was_decided_is_said_before_the_start(done: Done) -> None:
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "method        ConMIM"
    assert re.fullmatch(
        rf"data          {re.escape(DATA)} \(30 images; mean \(.*\) and deviation \(.*\), computed from the data\)",
        lines[1],
    )
    assert lines[2].startswith("encoder       vit_small_patch16_224, ")
    assert "32x32 pixels, patches of 8" in lines[2]
    assert lines[3] == "training      2 epochs, batches of 8, on cpu, 0 workers"
    assert lines[4] == "learning rate 0.002 (absolute), 0.4 epochs of warm-up"
    assert lines[5] == f"out           {RUN}"
    assert re.fullmatch(r"step 6/6  loss \d+\.\d{4}  \d+ images/s  0 s left", lines[6])
    assert lines[7:] == [f"encoder: {RUN}/encoder.safetensors", f"report:  {RUN}/report.html"]


def test_the_run_folder_holds_what_it_should(done: Done) -> None:
    run = done.desk / RUN
    assert {entry.name for entry in run.iterdir()} == {
        "config.json",
        "log.csv",
        "log.jsonl",
        "checkpoints",
        "encoder.safetensors",
        "report.html",
    }
    config = load_config(run / "config.json")
    assert (config.data, config.method) == (DATA, "conmim")
    assert (config.settings.encoder.width, config.training.batch_size) == (32, 8)
    assert [record["step"] for record in read_records(run, "step")] == [1, 2, 3, 4, 5, 6]
    with safe_open(run / "encoder.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["unmask_encoder"])
    assert (header["method"], header["data"]) == ("conmim", DATA)
    encoder = open_encoder(str(run)).to(torch.device("cpu"))
    assert encoder.mean == config.settings.mean
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.isfinite(encoder.features(images)).all()
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Where hidden patches find themselves" in page
    assert "холодно" in page, "the class stands under its images"


def test_the_same_command_again_has_nothing_to_do(done: Done) -> None:
    run = done.desk / RUN
    before = (run / "log.jsonl").read_bytes(), (run / "encoder.safetensors").read_bytes()
    ended = run_beside(done, COMMAND)
    assert (ended.code, ended.err) == (0, "")
    assert "step " not in ended.out
    assert "resuming" not in ended.out
    assert ended.out.splitlines()[-2:] == done.out.splitlines()[-2:]
    assert ((run / "log.jsonl").read_bytes(), (run / "encoder.safetensors").read_bytes()) == before


def test_the_saved_configuration_repeats_the_run(done: Done) -> None:
    ended = run_beside(done, ["pretrain", "--config", f"{RUN}/config.json", "--out", "again"])
    assert (ended.code, ended.err) == (0, "")
    assert_same_weights(done.desk / "again" / "encoder.safetensors", done.desk / RUN / "encoder.safetensors")
    assert load_config(done.desk / "again" / "config.json") == load_config(done.desk / RUN / "config.json")

    # On the way it may be run otherwise, but not compute something else.
    again = ["pretrain", "--config", f"{RUN}/config.json", "--out", "again"]
    assert run_beside(done, [*again, "--log-every", "3", "--workers", "1"]).code == 0
    refused = run_beside(done, [*again, "--lr", "0.5"])
    assert refused.code == 2
    assert refused.err == (
        "unmask: again holds another run (its settings.optimizer.lr is 0.002, not 0.5); choose another --out\n"
    )


@pytest.mark.parametrize("protocol", ["knn", "linear"])
def test_an_evaluation_prints_three_networks_and_logs_them(
    done: Done, protocol: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(done.desk)
    before = len(read_records(RUN, "evaluation"))
    assert main(["evaluate", protocol, str(RUN), DATA, "--workers", "0", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(
        rf"{protocol} of {re.escape(f'{RUN} on {DATA}')}: \d+ training images, \d+ test images", lines[0]
    )
    assert lines[1].split() == ["network", "top-1", "%", "95", "%", "interval", "top-5", "%", "mean", "class", "%"]
    for line, network in zip(lines[2:5], ("raw pixels", "random start", "pre-trained"), strict=True):
        assert re.match(rf"{network} +\d+\.\d +\d+\.\d to \d+\.\d +- +\d+\.\d", line)
    for line, floor in zip(lines[5:], ("random start", "raw pixels"), strict=True):
        assert re.fullmatch(rf"pre-trained [+-]\d+\.\d points against {floor} \(95 % noise .*\): .*", line)
    records = read_records(RUN, "evaluation")[before:]
    assert [(record["name"], record["network"], record["step"]) for record in records] == [
        (protocol, "pixels", 0),
        (protocol, "random", 0),
        (protocol, "pretrained", 6),
    ]
    # Red and blue images are told apart by their pixels.
    assert records[0]["score"]["top1"] == 100.0

    # The page takes the scores in when it is written anew.
    assert main(["report", str(RUN)]) == 0
    assert capsys.readouterr().out == f"{RUN}/report.html\n"
    page = (RUN / "report.html").read_text(encoding="utf-8")
    assert "Not evaluated yet" not in page
    assert f"{records[2]['score']['top1']:.1f} %" in page


def test_an_evaluation_as_json(done: Done, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(done.desk)
    file = f"{RUN}/encoder.safetensors"
    before = (RUN / "log.jsonl").read_bytes()
    assert main(["evaluate", "knn", file, DATA, "--json", "--knn.k", "3", "--workers", "0"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["network"] for record in records] == ["pixels", "random", "pretrained"]
    everything = {"kind", "step", "epoch", "name", "network", "score", "run", "data", "seed", "settings", "version"}
    for record in records:
        assert record.keys() == everything
        assert (record["kind"], record["name"], record["run"], record["data"]) == ("evaluation", "knn", file, DATA)
        assert record["score"].keys() == {"top1", "top5", "mean_class", "interval", "mean_class_interval", "n"}
        assert (record["settings"]["k"], record["settings"]["pooling"]) == (3, "mean")
        assert (record["seed"], record["version"]) == (0, __version__)
    assert (RUN / "log.jsonl").read_bytes() == before, "a file is not a run to take notes in"
    beside = Path("runs") / "evaluations" / f"{RUN.name}-encoder"
    assert read_records(beside, "evaluation") == records

    assert main(["evaluate", "knn", str(RUN), DATA, "--json", "--no-floors", "--workers", "0"]) == 0
    (record,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert record["network"] == "pretrained"


def test_bad_images_among_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_images(tmp_path / "data", 30)
    (data / "cold" / "words.png").write_text("no image")
    arguments = ["pretrain", str(data), *tiny_options("mae"), *quick_options(epochs=4), "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert (tmp_path / "run" / "bad_files.txt").read_text() == (
        f"{data}/cold/words.png\tit is not an image of a known format\n"
    )
    assert "Files that could not be read (1)" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()

    refused = [*arguments[:-1], str(tmp_path / "strict"), "--max-bad-share", "0.01"]
    assert main(refused) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.match(
        r"unmask: 1 of the \d+ files read so far cannot be used \(at most 1% may be bad\), for example .*words\.png: "
        r"it is not an image of a known format$",
        err,
    )
    assert (tmp_path / "strict" / "bad_files.txt").exists()


def test_training_that_breaks_down_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = draw_images(tmp_path / "data")
    arguments = ["pretrain", str(data), *tiny_options("mae"), *quick_options(epochs=4), "--out", str(tmp_path / "run")]
    assert main([*arguments, "--lr", "1e38", "--method.optimizer.warmup-epochs", "0"]) == 1
    out, err = capsys.readouterr()
    assert err.startswith("unmask: ")
    assert err.count("\n") == 1
    assert "try a lower --lr, clipping, or --precision fp32" in err
    assert "Traceback" not in out + err


def test_a_recipe_is_a_configuration_to_start_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_images(tmp_path / "data")
    small = ["--method.encoder.depth", "1", "--method.projector.hidden", "32", "--epochs", "0.5", "--batch-size", "8"]
    assert main(["pretrain", "data", "--recipe", "demo", *small, "--workers", "0", "--device", "cpu"]) == 0
    config = load_config(tmp_path / "runs" / "demo" / "config.json")
    assert (config.data, config.training.epochs, config.settings.encoder.depth) == ("data", 0.5, 1)
    assert config.settings.encoder.image_height == 32


def test_names_that_are_no_text_are_no_obstacle(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "caf\udce9", classes=("", "\udcff"))
    arguments = ["pretrain", str(data), *tiny_options("mae"), *quick_options(), "--out", str(tmp_path / "r\udce9")]
    ended = CommandProcess(arguments, tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert "caf\\udce9 (16 images)" in ended.out
    assert (tmp_path / "r\udce9" / "report.html").exists()
