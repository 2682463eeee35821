"""`unmask evaluate robustness`, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tiny_classifiers import TINY, tiny_pretrained, tiny_task
from tiny_runs import CommandProcess, draw_images
from tiny_supervised import run as train_run
from tiny_supervised import supervised, write_encoder
from unmask.cli import main
from unmask.commands.evaluate.robustness import draw
from unmask.data import corruption
from unmask.data.sources import labelled, open_source
from unmask.evaluation.classifier import judge, matched_labels
from unmask.evaluation.kept import KeptParts
from unmask.evaluation.linear import LinearConfig
from unmask.evaluation.metrics import Score, wilson_interval
from unmask.evaluation.probe import fit_probe
from unmask.evaluation.robustness import CorruptionScore, RobustnessConfig, RobustnessScore, robustness, shifted
from unmask.models.pretrained import encoder_file, open_encoder
from unmask.run_folder import RunFolder
from unmask.supervised.run import final_score
from unmask.tasks.classifier_file import classifier_file, read_classifier

WORKERS = ["--workers", "0", "--device", "cpu"]
QUICK = [
    *("--corruptions", "contrast", "pixelate"),
    *("--severities", "1", "5", "--images", "6", "--linear.epochs", "2"),
    *WORKERS,
]
CONFIG = RobustnessConfig(corruptions=("contrast", "pixelate"), severities=(1, 5), images=6)
PROBE = LinearConfig(epochs=2)


def write_classifier(path: Path, *, classes: tuple[str, ...] = ("cold", "warm"), several: bool = False) -> Path:
    targets = torch.zeros(4, len(classes)) if several else None
    tensors, metadata = classifier_file(tiny_task(classes=classes, targets_NK=targets), {})
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled photos, an encoder, a fine-tuned classifier, sets of other images, and what is of no use."""
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "photos" / "train", 24)
    draw_images(desk / "photos" / "val", 8)
    draw_images(desk / "flat", 8, classes=("",))
    draw_images(desk / "alone" / "train", 8, classes=("only",))
    draw_images(desk / "alone" / "val", 4, classes=("only",))
    draw_images(desk / "cartoons", 6)
    draw_images(desk / "sketches", 4, classes=("cold", "hot"))
    write_encoder(desk / "bare.safetensors")
    encoder = tiny_pretrained(replace(TINY, channels=2)).encoder
    tensors, metadata = encoder_file(encoder, mean=(0.5,) * 2, std=(0.2,) * 2, facts={})
    save_file(tensors, desk / "two.safetensors", metadata=metadata)
    write_classifier(desk / "others.safetensors", classes=("cold", "hot", "mild"))
    write_classifier(desk / "several.safetensors", several=True)
    train_run(supervised(desk / "photos", desk / "bare.safetensors"), desk / "tuned")
    for name, severities in {"pixelate": (1, 5), "noise/shot_noise": (5,)}.items():
        for severity in severities:
            for kind in ("cold", "warm"):
                folder = desk / "stored" / name / str(severity) / kind
                folder.mkdir(parents=True)
                for number in range(3):
                    pixels = np.random.default_rng(severity + number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                    pixels[..., 2 if kind == "warm" else 0] //= 1 + 5 // severity
                    Image.fromarray(pixels).save(folder / f"{number}.png")
    return desk


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the desk, so that what one test keeps another does not find."""
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def records_of(log: Path, name: str) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record for record in records if record.get("name") == name]


def as_json(values: object) -> Any:
    return json.loads(json.dumps(values))


def test_a_probe_under_corruption(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "robustness", "bare.safetensors", "photos", *QUICK], capsys)
    (folder,) = Path("runs/evaluations").glob("*-bare")
    drawing = folder / "robustness-photos" / "robustness.svg"
    probe = fit_probe(open_encoder("bare.safetensors"), labelled("photos")[0], PROBE, 0, workers=0)
    expected = robustness(probe, labelled("photos")[1], CONFIG, workers=0)
    cells = {(cell.corruption, cell.severity): cell.score.top1 for cell in expected.cells}
    assert expected.clean is not None
    assert lines[0] == "robustness of bare.safetensors on photos: 2 corruptions, 6 test images"
    assert lines[1].split() == ["corruption", "mean", "top-1", "%", "1", "5"]
    for line, name in zip(lines[2:4], ("contrast", "pixelate"), strict=True):
        figures = [100 - expected.errors[name], cells[name, 1], cells[name, 5]]
        assert line.split() == [name, *(f"{figure:.1f}" for figure in figures)]
    assert lines[4].split() == [
        "all",
        *(f"{figure:.1f}" for figure in (expected.mean, *dict(expected.curve[1:]).values())),
    ]
    low, high = expected.clean.interval
    assert expected.relative is not None
    assert lines[5:] == [
        f"clean: {expected.clean.top1:.1f} % ({low:.1f} to {high:.1f}), {expected.relative:.0f} % of it is left under "
        "corruption",
        f"curve: {drawing}",
        "note: severities are made for photos of 224 pixels; on 32 they are much stronger, so compare classifiers of "
        "one image size only",
    ]
    assert ElementTree.parse(drawing).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    (record,) = records_of(folder / "log.jsonl", "robustness")
    assert record["score"] == as_json(expected.as_dict())
    assert (record["network"], record["run"], record["data"]) == ("pretrained", "bare.safetensors", "photos")
    assert record["settings"]["corruptions"] == ["contrast", "pixelate"]
    assert record["settings"]["probe"]["lr"] == probe.lr
    assert (record["settings"]["images"], record["settings"]["seed"]) == (6, 0)


def test_cells_that_are_known_are_not_looked_at_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "robustness", "tuned", "photos", *QUICK]
    lines = said_by(command, capsys)
    file = Path("tuned/robustness-photos/cells.jsonl")
    whole = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["result"]["corruption"], line["result"]["severity"]) for line in whole] == [
        ("contrast", 1),
        ("contrast", 5),
        ("pixelate", 1),
        ("pixelate", 5),
    ]
    # A mark in the first cell is taken over; the last cell, which a kill has cut, is looked at again.
    marked = whole[0] | {"result": whole[0]["result"] | {"top1": 12.5}}
    kept = [json.dumps(line) for line in (marked, *whole[1:])]
    file.write_text("\n".join(kept)[:-20])
    again = said_by(command, capsys)
    assert again[2].split() == [
        "contrast",
        f"{(12.5 + whole[1]['result']['top1']) / 2:.1f}",
        "12.5",
        lines[2].split()[3],
    ]
    assert again[3] == lines[3]
    assert json.loads(file.read_text().splitlines()[-1]) == whole[3]

    # Other corruptions of the same settings join them, other settings do not find them.
    more = [*command, "--corruptions", "contrast", "brightness"]
    assert said_by(more, capsys)[2].split()[2] == "12.5"
    assert len(file.read_text().splitlines()) == 4 + 1 + 2
    for change in (["--seed", "1"], ["--images", "5"]):
        assert said_by([*command, *change], capsys)[2].split()[2] != "12.5"
    write_classifier(Path("tuned/classifier.safetensors"))  # other weights
    assert said_by(command, capsys)[2].split()[2] != "12.5"


def test_a_signal_stops_after_a_cell_and_the_same_command_resumes(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "robustness", "tuned", "photos", *QUICK]
    whole = KeptParts.add

    def add(self: KeptParts, result: dict[str, Any]) -> None:
        whole(self, result)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(KeptParts, "add", add)
        before = signal.getsignal(signal.SIGTERM)
        assert main(command) == 75
        assert signal.getsignal(signal.SIGTERM) == before
    out, err = capsys.readouterr()
    assert (out, err) == ("stopped by SIGTERM after 1 of 4 corruptions, all saved; the same command resumes\n", "")
    assert not records_of(Path("tuned/log.jsonl"), "robustness")

    looked_at: list[str] = []
    apply = corruption.Corruption.__call__

    def watched(self: corruption.Corruption, image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        looked_at.append(f"{self.name} {self.severity}")
        return apply(self, image, generator)

    monkeypatch.setattr(corruption.Corruption, "__call__", watched)
    lines = said_by(command, capsys)
    assert {name: looked_at.count(name) for name in looked_at} == {
        "contrast 1": 2,  # the rehearsals
        "contrast 5": 6,
        "pixelate 1": 2 + 6,
        "pixelate 5": 6,
    }
    (record,) = records_of(Path("tuned/log.jsonl"), "robustness")
    classifier = read_classifier(Path("tuned/classifier.safetensors"))
    expected = robustness(classifier, labelled("photos")[1], CONFIG, workers=0)
    assert record["score"] == as_json(expected.as_dict())
    assert lines[4].split()[1] == f"{expected.mean:.1f}"


def test_a_fine_tuned_classifier_is_judged_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = final_score(RunFolder(Path("tuned")))
    by_folder = said_by(["evaluate", "robustness", "tuned", "photos", *QUICK], capsys)
    by_file = said_by(["evaluate", "robustness", "tuned/classifier.safetensors", "photos", *QUICK], capsys)
    assert by_folder[2:6] == by_file[2:6]
    (record,) = records_of(Path("tuned/log.jsonl"), "robustness")
    assert "probe" not in record["settings"]
    assert (record["network"], record["step"]) == ("pretrained", 12)

    # The log of the run now holds more than its own scores; its own is still found, and its page written.
    assert final_score(RunFolder(Path("tuned"))) == before
    assert said_by(["report", "tuned"], capsys) == ["tuned/report.html"]


def test_a_classifier_from_the_random_start_is_logged_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(supervised(here / "photos", here / "bare.safetensors"), start="random")
    train_run(config, Path("from scratch"))
    said_by(["evaluate", "robustness", "from scratch", "photos", *QUICK], capsys)
    (record,) = records_of(Path("from scratch/log.jsonl"), "robustness")
    assert record["network"] == "random"


def test_shifted_sets_stand_beside_the_test_images(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "robustness", "others.safetensors", "sketches", *WORKERS]
    lines = said_by([*command, "--shifted", "sketches", "cartoons/../sketches"], capsys)
    classifier = read_classifier(Path("others.safetensors"))
    test = labelled("sketches")[1]
    clean = judge(
        classifier, test, matched_labels(classifier.classes, test), torch.arange(3), batch_size=9, workers=0
    ).score
    other = shifted(classifier, open_source("sketches"), workers=0).score
    assert lines[0] == "robustness of others.safetensors: only the classes that a set has are chosen from"
    assert re.split(r"  +", lines[1]) == ["images", "number", "top-1 %", "95 % interval", "classes"]
    interval = "{:.1f} to {:.1f}".format(*wilson_interval(round(clean.top1 * clean.n / 100), clean.n))
    assert re.split(r"  +", lines[2]) == ["sketches, test", str(len(test)), f"{clean.top1:.1f}", interval, "3"]
    assert re.split(r"  +", lines[3].strip())[:3] == ["sketches", "4", f"{other.top1:.1f}"]
    assert lines[3].split()[-1] == "2"
    assert len(lines) == 5
    (log,) = Path("runs/evaluations").glob("*-others/log.jsonl")
    records = records_of(log, "shifted sketches")
    assert len(records) == 2
    assert records[0]["score"] == as_json(other.as_dict() | {"clean": clean.as_dict(), "bad_files": []})
    assert records[0]["settings"]["shifted"] == "sketches"


def test_stored_corruptions_are_read_as_they_lie(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "robustness", "tuned", "photos", "--stored", "stored", *WORKERS]
    lines = said_by(command, capsys)
    assert lines[0] == "robustness of tuned on photos: 2 corruptions stored in stored, 6 test images each"
    assert lines[1].split() == ["corruption", "mean", "top-1", "%", "1", "5"]
    assert [line.split()[0] for line in lines[2:5]] == ["shot_noise", "pixelate", "all"]
    assert lines[2].split()[2] == "-"
    assert lines[6] == "curve: tuned/robustness-photos/stored-stored.svg"
    (record,) = records_of(Path("tuned/log.jsonl"), "robustness")
    assert record["settings"]["stored"] == "stored"
    assert record["score"]["mce"] is None
    assert said_by(command, capsys) == lines


def test_unreadable_images_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/val/cold/words.png").write_text("no image")
    Path("cartoons/cold/words.png").write_text("no image")
    lines = said_by(["evaluate", "robustness", "tuned", "photos", *QUICK, "--images", "0"], capsys)
    assert lines[0].endswith(", 8 test images")
    assert lines[6] == "1 image could not be read, for example photos/val/cold/words.png"
    lines = said_by(["evaluate", "robustness", "tuned", "photos", *WORKERS, "--shifted", "cartoons"], capsys)
    assert lines[-1] == "2 images could not be read, for example photos/val/cold/words.png"


def test_in_a_process_of_its_own_as_json(here: Path) -> None:
    command = ["evaluate", "robustness", "tuned", "photos", *QUICK, "--json"]
    ended = CommandProcess([*command, "--workers", "1"], here).end()
    assert (ended.code, ended.err) == (0, "")
    (record,) = (json.loads(line) for line in ended.out.splitlines())
    assert record["score"].keys() >= {"clean", "mean", "relative", "mce", "errors", "curve", "cells"}
    assert [record] == records_of(Path("tuned/log.jsonl"), "robustness")


def test_the_drawing_has_a_line_for_each_kind() -> None:
    score = Score(top1=90.0, top5=None, mean_class=90.0, interval=(0, 100), mean_class_interval=(0, 100), n=10)

    def cell(name: str, severity: int, top1: float) -> CorruptionScore:
        return CorruptionScore(name, severity, replace(score, top1=top1))

    several = RobustnessScore(score, (cell("snow", 1, 80.0), cell("snow", 3, 60.0), cell("pixelate", 1, 70.0)))
    titles = re.findall(r"<title>(.*?)</title>", draw(several))
    assert [title for title in titles if " at " not in title] == ["all", "weather", "digital"]
    assert "all: 75 at 1" in titles
    assert "weather: 60 at 3" in titles
    assert "digital: 90 at 0" in titles
    one = re.findall(r"<title>(.*?)</title>", draw(RobustnessScore(score, several.cells[:2])))
    assert [title for title in one if " at " not in title] == ["all"]


# ---------------------------------------------------------------------------------------------- mistakes

CASES: dict[str, tuple[list[str], str]] = {
    "no labels": (
        ["tuned", "flat", *QUICK],
        "the training images of flat have no labels: put them into one folder a class",
    ),
    "one class": (["tuned", "alone", *QUICK], "alone has only one class, only: there is nothing to tell apart"),
    "several labels": (
        ["tuned", "several.csv", *QUICK],
        "robustness is of images with one class each, not of a CSV of several",
    ),
    "a classifier of other classes": (
        ["others.safetensors", "photos", *QUICK],
        "the classifier does not know these classes of photos: warm",
    ),
    "a classifier of several classes": (
        ["several.safetensors", "photos", *QUICK],
        "several.safetensors finds several classes in an image; robustness is of classifiers that give it one",
    ),
    "channels that have no corruption": (
        ["two.safetensors", "photos", *QUICK],
        "the common corruptions are made for grey and colour images, not for 2 channels",
    ),
    "channels that image files do not have": (
        ["two.safetensors", "photos", *WORKERS, "--shifted", "cartoons"],
        "no readable image in photos, for example photos/val/warm/007.png: it has 3 channels, and 2 are wanted",
    ),
    "an unknown corruption": (
        ["tuned", "photos", *QUICK, "--corruptions", "rain"],
        "rain is none of the common corruptions: " + ", ".join(corruption.CORRUPTIONS),
    ),
    "an unknown severity": (
        ["tuned", "photos", *QUICK, "--severities", "6"],
        "a corruption has a severity from 1 to 5, not 6",
    ),
    "fewer than no images": (
        ["tuned", "photos", *QUICK, "--images", "-1"],
        "robustness needs at least one image and one image a batch, got -1 and 128",
    ),
    "a set of other classes": (
        ["tuned", "photos", *WORKERS, "--shifted", "cartoons", "sketches"],
        "the classifier does not know these classes of sketches: hot",
    ),
    "a set without labels": (
        ["tuned", "photos", *WORKERS, "--shifted", "flat"],
        "the images of flat have no labels; put each class in a folder of its own",
    ),
    "a set that is not there": (["tuned", "photos", *WORKERS, "--shifted", "absent"], "absent does not exist"),
    "stored corruptions that are not there": (
        ["tuned", "photos", *WORKERS, "--stored", "absent"],
        "absent does not exist",
    ),
    "a folder of other things": (
        ["tuned", "photos", *WORKERS, "--stored", "cartoons"],
        "cartoons is not laid out as ImageNet-C: it has none of the folders asked for, like gaussian_noise/1/CLASS",
    ),
    "no encoder": (["absent", "photos", *QUICK], "there is no run folder or encoder file absent"),
    "an unfinished run": (
        ["unfinished", "photos", *QUICK],
        "unfinished holds no encoder.safetensors; is the run finished?",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(
    case: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    Path("unfinished").mkdir(exist_ok=True)
    arguments, sentence = CASES[case]
    assert main(["evaluate", "robustness", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"unmask: {sentence}\n")
    assert not Path("runs").exists(), "what is refused leaves nothing behind"


@pytest.mark.parametrize("run", ["tuned", "bare.safetensors"])
def test_without_the_extra_one_sentence_says_how_to_get_it(
    run: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    forget: Callable[[], None] = corruption._library.cache_clear
    forget()
    try:
        assert main(["evaluate", "robustness", run, "photos", *QUICK]) == 2
    finally:
        forget()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "unmask: the common corruptions need the library imagecorruptions, which is missing: "
        "pip install 'unmask[robustness]'\n"
    )
