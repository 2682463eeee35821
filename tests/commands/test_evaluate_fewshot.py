"""`unmask evaluate fewshot`, as a user meets it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from scipy.stats import ttest_rel

from tiny_classifiers import TINY, tiny_pretrained
from tiny_runs import CommandProcess, draw_images, read_records, tiny_config
from tiny_supervised import write_encoder
from unmask.cli import main
from unmask.commands.evaluate.fewshot import verdict
from unmask.data.sources import labelled
from unmask.evaluate import Gain, gain
from unmask.evaluation.fewshot import FewShotConfig, FewShotResult, few_shot
from unmask.evaluation.metrics import Score
from unmask.evaluation.protocols import encoder_features
from unmask.models.pretrained import encoder_file, open_encoder
from unmask.pretrain import pretrain
from unmask.run_folder import RunFolder

QUICK = [
    "--shares",
    "0.5",
    "--shots",
    "1",
    "3",
    "--seeds",
    "2",
    "--cs",
    "1",
    "100",
    "--workers",
    "0",
    "--device",
    "cpu",
]
CONFIG = FewShotConfig(shares=(0.5,), shots=(1, 3), seeds=2, cs=(1.0, 100.0))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "photos" / "train", 24)
    draw_images(desk / "photos" / "val", 10)
    draw_images(desk / "flat", 8, classes=("",))
    draw_images(desk / "alone" / "train", 8, classes=("only",))
    draw_images(desk / "alone" / "val", 4, classes=("only",))
    pretrain(tiny_config("mae", desk / "photos" / "train"), RunFolder(desk / "run"), Console(quiet=True))
    write_encoder(desk / "bare.safetensors")
    for name, config in (("two", replace(TINY, channels=2)), ("token-free", replace(TINY, class_token=False))):
        encoder = tiny_pretrained(config).encoder
        tensors, metadata = encoder_file(encoder, mean=(0.5,) * config.channels, std=(0.2,) * config.channels, facts={})
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


def test_a_table_of_budgets_beside_the_floors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "fewshot", "run", "photos", *QUICK], capsys)
    assert lines[0] == (
        "fewshot of run on photos: labels drawn from 24 training images, 2 draws of them, 10 test images"
    )
    assert re.split(r"  +", lines[1]) == [
        "budget",
        "labels",
        "top-1 % by",
        "raw pixels",
        "random start",
        "pre-trained",
        "gain",
    ]
    assert [line.split()[:4] for line in lines[2:4]] == [["50", "%", "12", "logistic"], ["50", "%", "12", "simpleshot"]]
    assert [line.split()[:3] for line in lines[4:8]] == [
        [budget, labels, classifier]
        for budget, labels in (("1-shot", "2"), ("3-shot", "6"))
        for classifier in ("logistic", "simpleshot")
    ]
    for line in lines[2:8]:
        assert re.search(r"(logistic|simpleshot)( +\d+\.\d ± \d+\.\d){3} +[+-]\d+\.\d ± \d+\.\d$", line)
    for line, floor in zip(lines[8:], ("random start", "raw pixels"), strict=True):
        said = rf"pre-trained is above {floor} beyond the spread of the draws \(95 %\) in \d of 6 rows"
        assert re.match(said, line)

    # Every figure, and what is needed to repeat it, stands in the log.
    records = read_records(Path("run"), "evaluation")
    assert [record["network"] for record in records] == ["pixels"] * 6 + ["random"] * 6 + ["pretrained"] * 6
    assert {(record["name"], record["run"], record["data"], record["seed"]) for record in records} == {
        ("fewshot", "run", "photos", 0)
    }
    assert records[0]["settings"] == {
        "shares": [0.5],
        "shots": [1, 3],
        "seeds": 2,
        "classifiers": ["logistic", "simpleshot"],
        "normalisation": "CL2N",
        "cs": [1.0, 100.0],
        "default_c": 10.0,
        "folds": 5,
        "pooling": "mean",
    }
    encoder = open_encoder("run")
    encoder.encoder.eval()
    features = [encoder_features(encoder, half, workers=0) for half in labelled("photos")]
    expected = few_shot(features[0], features[1], CONFIG, 0)
    assert [record["score"] for record in records[12:]] == json.loads(
        json.dumps([result.as_dict() for result in expected])
    )
    for line, result in zip(lines[2:8], expected, strict=True):
        assert result.top1 is not None
        assert re.findall(r"(\d+\.\d) ±", line)[2] == f"{result.top1.mean:.1f}"

    # The page of the run is written all the same.
    assert said_by(["report", "run"], capsys) == ["run/report.html"]


def test_a_budget_that_the_data_cannot_give_is_left_out(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(
        ["evaluate", "fewshot", "bare.safetensors", "photos", *QUICK, "--no-floors", "--shots", "2", "13"], capsys
    )
    assert lines[1].split() == ["budget", "labels", "top-1", "%", "by", "pre-trained"]
    assert lines[6].split() == ["13-shot", "-", "logistic", "-"]
    assert lines[8:] == ["13-shot: left out, 13 images of every class are asked for, but the smallest class has 12"]


def test_one_draw_has_no_spread(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "fewshot", "run", "photos", *QUICK, "--seeds", "1"], capsys)
    assert "1 draw of them" in lines[0]
    assert "±" not in "".join(lines)
    assert lines[-1] == "one draw says nothing about the spread: draw twice at least (--seeds)"


def test_in_a_process_of_its_own_as_json(desk: Path) -> None:
    ended = CommandProcess(["evaluate", "fewshot", "bare.safetensors", "photos", *QUICK, "--json"], desk).end()
    assert (ended.code, ended.err) == (0, "")
    records = [json.loads(line) for line in ended.out.splitlines()]
    assert [record["network"] for record in records] == ["pixels"] * 6 + ["random"] * 6 + ["pretrained"] * 6
    assert {record["score"]["budget"] for record in records} == {"50 %", "1-shot", "3-shot"}
    # Results about a file stand beside others of their kind.
    (log,) = (desk / "runs" / "evaluations").glob("*-bare/log.jsonl")
    assert [json.loads(line) for line in log.read_text().splitlines()][-18:] == records


CASES = {
    "no labels": (
        ["run", "flat", *QUICK],
        "the training images of flat have no labels: put them into one folder a class",
    ),
    "one class": (["run", "alone", *QUICK], "alone has only one class, only: there is nothing to tell apart"),
    "several labels": (
        ["run", "several.csv", *QUICK],
        "few labels are of images with one class each; a CSV of several is for the linear probe",
    ),
    "channels that image files do not have": (
        ["two.safetensors", "photos", *QUICK],
        "no readable image in photos, for example photos/train/warm/023.png: it has 3 channels, and 2 are wanted",
    ),
    "no budget that can be given": (
        ["run", "photos", *QUICK, "--shares", "--shots", "50"],
        "no budget of labels can be given: 50 images of every class are asked for, but the smallest class has 12",
    ),
    "no budget": (
        ["run", "photos", *QUICK, "--shares", "--shots"],
        "few-shot evaluation needs a share of the labels or a number of shots",
    ),
    "no class token": (
        ["token-free.safetensors", "photos", *QUICK, "--pooling", "class", "--no-floors"],
        "this encoder has no class token; pool by mean",
    ),
    "no encoder": (["absent", "photos"], "there is no run folder or encoder file absent"),
    "unknown option": (["run", "photos", "--shot", "3"], "unknown option --shot; did you mean --shots?"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(case: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, sentence = CASES[case]
    assert main(["evaluate", "fewshot", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"unmask: {sentence}\n")


# ---------------------------------------------------------------------------------------------- gains


def result(top1s: list[float], budget: str = "1-shot") -> FewShotResult:
    scores = tuple(
        Score(top1=top1, top5=None, mean_class=top1, interval=(0, 100), mean_class_interval=(0, 100), n=10)
        for top1 in top1s
    )
    return FewShotResult(budget=budget, classifier="logistic", labels=2, scores=scores)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=9), st.randoms())
def test_a_gain_is_the_paired_interval_of_students_t(pairs: list[tuple[int, int]], random: object) -> None:
    one, other = ([value / 10 for value in values] for values in zip(*pairs, strict=True))
    found = gain(result(one), result(other))
    assert found is not None
    assert found.half is not None
    assert found.mean == pytest.approx(np.mean(one) - np.mean(other))
    if len(set(np.round(np.subtract(one, other), 6))) > 1:
        interval = ttest_rel(one, other).confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((interval.low, interval.high))


def test_a_gain_knows_whether_it_is_beyond_the_spread() -> None:
    assert gain(result([]), result([])) is None
    assert gain(result([50.0]), result([40.0])) == Gain(10.0, None)
    assert Gain(10.0, None).verdict == "within"
    assert Gain(3.0, 2.9).verdict == "above"
    assert Gain(3.0, 3.0).verdict == "within"
    assert Gain(-3.0, 2.9).verdict == "below"


def test_the_verdict_names_the_rows_where_nothing_is_won() -> None:
    good, bad, other = [80.0, 82.0], [40.0, 42.0], [30.0, 90.0]
    trained = [result(good, "1-shot"), result(bad, "2-shot"), result(other, "5-shot"), result([], "9-shot")]
    floor = [result(bad, "1-shot"), result(good, "2-shot"), result(bad, "5-shot"), result([], "9-shot")]
    start = "pre-trained is above a floor beyond the spread of the draws (95 %)"
    assert verdict(trained, floor, "a floor") == (
        f"{start} in 1 of 3 rows; below it: 2-shot by logistic; within the spread: 5-shot by logistic"
    )
    assert verdict(trained[:1], floor[:1], "a floor") == f"{start} in 1 of 1 rows"
    assert verdict(trained[1:2], floor[1:2], "a floor") == f"{start} in 0 of 1 rows; below it: all"
