"""`unmask evaluate unlabelled`, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from tiny_classifiers import TINY, tiny_pretrained
from tiny_runs import CommandProcess, draw_images, read_records, tiny_config
from unmask.cli import main
from unmask.data.sources import open_source
from unmask.evaluation.augmented import ViewConfig, view_features
from unmask.evaluation.unlabelled import measure_unlabelled
from unmask.models.pretrained import PretrainedEncoder, encoder_file, open_encoder
from unmask.pretrain import build_method, exported_encoder, pretrain
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import saved_steps

QUICK = ["--views", "3", "--images", "10", "--workers", "0", "--device", "cpu"]
VIEWS = ViewConfig(views=3, images=10)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "flat", 16, classes=("",))
    draw_images(desk / "one", 1, classes=("",))
    config = tiny_config("mae", desk / "flat", epochs=3, checkpoint_every=2, keep_every=2)
    fast = replace(config.settings, optimizer=replace(config.settings.optimizer, lr=0.01, lr_batch=None))
    pretrain(replace(config, settings=fast), RunFolder(desk / "run"), Console(quiet=True))
    for name, encoder in (("two", replace(TINY, channels=2)), ("token-free", replace(TINY, class_token=False))):
        channels = encoder.channels
        tensors, metadata = encoder_file(
            tiny_pretrained(encoder).encoder, mean=(0.5,) * channels, std=(0.2,) * channels, facts={}
        )
        save_file(tensors, desk / f"{name}.safetensors", metadata=metadata)
    return desk


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def measured(encoder: PretrainedEncoder, *, seed: int = 0) -> dict[str, float | int | None]:
    encoder.to(torch.device("cpu"))
    features = view_features(
        encoder.features, open_source("flat"), VIEWS, height=32, width=32, channels=3, seed=seed, workers=0
    )
    return measure_unlabelled(features).as_dict()


def test_measures_of_an_encoder_beside_its_random_start(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "unlabelled", "run", "flat", *QUICK], capsys)
    assert lines[0] == "unlabelled of run on flat: 3 views each of 10 images"
    assert re.split(r"  +", lines[1]) == [
        "network",
        "RankMe",
        "LiDAR",
        "alpha-ReQ",
        "uniformity",
        "alignment",
        "spread",
    ]
    for line, network in zip(lines[2:4], ("random start", "pre-trained"), strict=True):
        assert re.fullmatch(rf"{network}( +-?\d+\.\d+){{6}}", line)
    assert lines[4].startswith("better: larger RankMe")
    assert len(lines) == 5
    random, trained = read_records(Path("run"), "evaluation")[-2:]
    assert (random["name"], random["network"], random["step"]) == ("unlabelled", "random", 0)
    assert (trained["name"], trained["network"], trained["step"]) == ("unlabelled", "pretrained", 6)
    start = exported_encoder(build_method(RunFolder(Path("run")).config()), "start")
    assert random["score"] == measured(start)
    assert trained["score"] == measured(open_encoder("run")) != random["score"]
    assert trained["settings"] == {
        "images": 10,
        "views": 3,
        "crop_scale": [0.2, 1.0],
        "flip": 0.5,
        "pooling": "mean",
    }
    assert re.findall(r"-?\d+\.\d+", lines[3])[:2] == [f"{trained['score'][key]:.1f}" for key in ("rankme", "lidar")]
    assert said_by(["report", "run"], capsys) == ["run/report.html"]


def test_every_checkpoint_has_a_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert saved_steps(Path("run/checkpoints")) == [2, 4, 6]
    lines = said_by(["evaluate", "unlabelled", "run", "flat", *QUICK, "--checkpoints"], capsys)
    assert [line.partition("  ")[0] for line in lines[2:6]] == ["random start", "step 2", "step 4", "step 6"]
    records = read_records(Path("run"), "evaluation")[-4:]
    assert [(record["network"], record["step"], record["epoch"]) for record in records] == [
        ("random", 0, 0.0),
        ("pretrained", 2, 1.0),
        ("pretrained", 4, 2.0),
        ("pretrained", 6, 3.0),
    ]
    assert records[0]["score"] == measured(exported_encoder(build_method(RunFolder(Path("run")).config()), "start"))
    assert records[3]["score"] == measured(open_encoder("run")), "the last checkpoint is the finished encoder"
    assert len({json.dumps(record["score"]) for record in records}) == 4
    best = {
        name: max(records[1:], key=lambda record: record["score"][key])["step"]
        for name, key in (("RankMe", "rankme"), ("LiDAR", "lidar"))
    }
    assert lines[-1] == f"best of the 3 checkpoints: step {best['RankMe']} by RankMe and step {best['LiDAR']} by LiDAR"


def test_a_run_need_not_be_finished_nor_all_its_checkpoints_good(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "under way"
    shutil.copytree("run", run)
    (run / "encoder.safetensors").unlink()
    steps = sorted((run / "checkpoints").iterdir())
    steps[0].write_bytes(steps[0].read_bytes()[:1000])
    steps[2].unlink()
    arguments = ["evaluate", "unlabelled", str(run), "flat", *QUICK, "--checkpoints"]
    lines = said_by([*arguments, "--no-floors"], capsys)
    assert [line.partition("  ")[0] for line in lines[1:3]] == ["network", "step 4"]
    assert len(lines) == 4

    steps[1].unlink()
    assert main(arguments) == 2
    assert re.fullmatch(
        r"unmask: checkpoint .*step_000000002\.safetensors cannot be read \(.*\)\n", capsys.readouterr().err
    )
    steps[0].unlink()
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"unmask: {run} has no checkpoint\n"


def test_in_a_process_of_its_own_as_json(desk: Path) -> None:
    command = ["evaluate", "unlabelled", "token-free.safetensors", "flat", *QUICK, "--json", "--seed", "3"]
    ended = CommandProcess(command, desk).end()
    assert (ended.code, ended.err) == (0, "")
    random, trained = (json.loads(line) for line in ended.out.splitlines())
    assert (random["network"], trained["network"], trained["seed"]) == ("random", "pretrained", 3)
    assert trained["score"].keys() == {
        "rankme",
        "alpha_req",
        "lidar",
        "uniformity",
        "alignment",
        "feature_std",
        "images",
        "views",
    }
    (log,) = (desk / "runs" / "evaluations").glob("*-token-free/log.jsonl")
    assert [json.loads(line) for line in log.read_text().splitlines()] == [random, trained]


CASES = {
    "one image": (
        ["run", "one", *QUICK],
        "views are compared with each other and so are images: at least two of both are needed, got 3 views of 1 "
        "images",
    ),
    "one view": (
        ["run", "flat", *QUICK, "--views", "1"],
        "measures without labels compare at least two views of at least two images, got 1 of 10",
    ),
    "no images": (["run", "absent", *QUICK], "absent does not exist"),
    "channels that image files do not have": (
        ["two.safetensors", "flat", *QUICK],
        "no readable image in flat, for example flat/015.png: it has 3 channels, and 2 are wanted",
    ),
    "no class token": (
        ["token-free.safetensors", "flat", *QUICK, "--pooling", "class"],
        "this encoder has no class token; pool by mean",
    ),
    "checkpoints of a file": (
        ["run/encoder.safetensors", "flat", *QUICK, "--checkpoints"],
        "run/encoder.safetensors is not a run folder: it has no config.json",
    ),
    "no encoder": (["absent", "flat"], "there is no run folder or encoder file absent"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = CASES[case]
    assert main(["evaluate", "unlabelled", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"unmask: {sentence}\n")
