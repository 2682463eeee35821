"""`unmask evaluate certified`, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import save_file

from tiny_classifiers import TINY, tiny_pretrained, tiny_task
from tiny_runs import CommandProcess, draw_images
from tiny_supervised import run as train_run
from tiny_supervised import supervised, write_encoder
from unmask.cli import main
from unmask.commands.evaluate.certified import draw, reach
from unmask.data.sources import labelled
from unmask.evaluation import certified as module
from unmask.evaluation.certified import CertifiedConfig, CertifiedImage, CertifiedScore, certify
from unmask.evaluation.kept import KeptParts
from unmask.models.pretrained import encoder_file
from unmask.run_folder import RunFolder
from unmask.supervised.config import load_supervised
from unmask.supervised.run import final_score
from unmask.tasks.classifier_file import classifier_file, read_classifier

QUICK = [
    *("--n", "30", "--n0", "5", "--alpha", "0.05", "--images", "4", "--radii", "0", "0.1", "0.25"),
    *("--workers", "0", "--device", "cpu"),
]
TRAINED = [*QUICK, "--epochs", "2", "--batch-size", "4", "--log-every", "1"]
CONFIG = CertifiedConfig(n=30, n0=5, alpha=0.05, images=4, radii=(0.0, 0.1, 0.25))


def write_classifier(path: Path, *, classes: tuple[str, ...], several: bool = False) -> None:
    targets = torch.zeros(4, len(classes)) if several else None
    tensors, metadata = classifier_file(tiny_task(classes=classes, targets_NK=targets), {})
    save_file(tensors, path, metadata=metadata)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled photos, an encoder, a classifier fine-tuned without noise, and what is of no use."""
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "photos" / "train", 16)
    draw_images(desk / "photos" / "val", 8)
    draw_images(desk / "flat", 8, classes=("",))
    draw_images(desk / "alone" / "train", 8, classes=("only",))
    draw_images(desk / "alone" / "val", 4, classes=("only",))
    write_encoder(desk / "bare.safetensors")
    encoder = tiny_pretrained(replace(TINY, channels=2)).encoder
    tensors, metadata = encoder_file(encoder, mean=(0.5,) * 2, std=(0.2,) * 2, facts={})
    save_file(tensors, desk / "two.safetensors", metadata=metadata)
    write_classifier(desk / "others.safetensors", classes=("cold", "hot", "mild"))
    write_classifier(desk / "several.safetensors", classes=("cold", "warm"), several=True)
    train_run(supervised(desk / "photos", desk / "bare.safetensors"), desk / "tuned")
    return desk


@pytest.fixture
def here(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the desk, so that what one test keeps another does not find."""
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.fixture
def no_looking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here on no image may be certified."""

    def certify_image(*arguments: object, **named: object) -> CertifiedImage:
        raise AssertionError("this image was certified before")

    with monkeypatch.context() as patch:
        patch.setattr(module, "certify_image", certify_image)
        yield


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def records_of(log: Path) -> list[dict[str, Any]]:
    """What was certified, by the log: records with radii."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    return [record for record in records if record.get("name") == "certified" and "radii" in record["score"]]


def as_json(values: object) -> Any:
    return json.loads(json.dumps(values))


def test_an_encoder_is_trained_against_noise_and_certified(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "certified", "bare.safetensors", "photos", *TRAINED, "--sigma", "0.5"]
    lines = said_by(command, capsys)
    (place,) = Path("runs/evaluations").glob("*-bare")
    folder = place / "certified-photos-sigma-0.5"
    settings = load_supervised(folder / "config.json").settings
    assert (settings.noise.sigma, settings.noise.copies, settings.noise.consistency, settings.noise.entropy) == (
        0.5,
        2,
        2.0,
        0.5,
    )
    assert (settings.mixup, settings.cutmix, settings.randaugment, settings.erasing) == (0.0, 0.0, None, 0.0)
    config = replace(CONFIG, sigma=0.5)
    expected = certify(read_classifier(folder / "classifier.safetensors"), labelled("photos")[1], config, workers=0)
    start = next(place for place, line in enumerate(lines) if line.startswith("certifying"))
    assert lines[start] == ("certifying pre-trained: 4 images, 35 noisy copies each: 140 passes through the network")
    assert lines[start + 1] == (
        "certified of bare.safetensors on photos: 4 test images, noise 0.5, 30 copies of each, a certificate is wrong "
        "with probability 0.05"
    )
    assert re.split(r"  +", lines[start + 2]) == ["radius", "pre-trained %", "95 % interval"]
    for line, radius, accuracy, (low, high) in zip(
        lines[start + 3 :], ("0", "0.1", "0.25"), expected.accuracy, expected.intervals, strict=False
    ):
        assert re.split(r"  +", line.strip()) == [radius, f"{accuracy:.1f}", f"{low:.1f} to {high:.1f}"]
    assert lines[start + 6 :] == [
        f"pre-trained: average certified radius {expected.mean_radius:.3f}, abstained {expected.abstained:.1f} %, "
        f"accuracy of the smoothed classifier {expected.predicted:.1f} %",
        f"curve:  {folder}/certified-photos.svg",
        f"model:  {folder}/classifier.safetensors",
        f"report: {folder}/report.html",
    ]
    assert ElementTree.parse(folder / "certified-photos.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    (record,) = records_of(place / "log.jsonl")
    assert record["score"] == as_json(expected.as_dict())
    wanted = {"sigma": 0.5, "n": 30, "n0": 5, "alpha": 0.05, "images": 4, "every": 1, "seed": 0, "device": "cpu"}
    assert record["settings"].items() >= wanted.items()
    kept = [json.loads(line)["result"] for line in (folder / "certified-photos.jsonl").read_text().splitlines()]
    assert [CertifiedImage(**values) for values in kept] == list(expected.images)


def test_what_was_certified_is_not_certified_again(
    here: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    command = ["evaluate", "certified", "bare.safetensors", "photos", *TRAINED]
    lines = said_by(command, capsys)
    more = said_by([*command, "--images", "8", "--copies-at-once", "7"], capsys)
    assert any("8 images, 4 of them done before, 35 noisy copies each: 140 passes" in line for line in more)
    request.getfixturevalue("no_looking")
    again = said_by(command, capsys)
    assert again[-5:] == lines[-5:]
    assert any("4 images, 4 of them done before, 35 noisy copies each: 0 passes" in line for line in again)
    # The trained run is a classifier like any other, and what was kept beside it is found there too.
    (folder,) = Path("runs/evaluations").glob("*-bare/certified-photos-sigma-0.25")
    of_classifier = said_by(["evaluate", "certified", str(folder), "photos", *QUICK], capsys)
    assert of_classifier[-2].startswith("pre-trained: average") or of_classifier[-3].startswith("pre-trained: average")
    table = [line for line in lines if re.match(r"0(\.\d+)? ", line)]
    assert [line for line in of_classifier if re.match(r"0(\.\d+)? ", line)] == table
    # Its own score is still its own, with the certificates behind it in its log.
    assert len(records_of(folder / "log.jsonl")) == 1
    assert "top1" in final_score(RunFolder(folder))
    assert said_by(command, capsys)[-5:] == lines[-5:]
    assert said_by(["report", str(folder)], capsys) == [f"{folder}/report.html"]

    with pytest.raises(AssertionError, match="this image was certified before"):
        main([*command, "--n", "31"])


def test_a_signal_stops_after_an_image_and_the_same_command_resumes(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["evaluate", "certified", "tuned", "photos", *QUICK]
    whole = KeptParts.add

    def add(self: KeptParts, result: dict[str, Any]) -> None:
        whole(self, result)
        if result["index"] == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(KeptParts, "add", add)
        assert main(command) == 75
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-1] == "stopped by SIGINT after 2 of 4 images, all saved; the same command resumes"
    said_by(command, capsys)
    (record,) = records_of(Path("tuned/log.jsonl"))
    expected = certify(read_classifier(Path("tuned/classifier.safetensors")), labelled("photos")[1], CONFIG, workers=0)
    assert record["score"] == as_json(expected.as_dict())


def test_a_classifier_that_is_finished_is_only_certified(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "certified", "tuned", "photos", *QUICK], capsys)
    assert lines[0] == ("note: nothing says that this classifier was trained against noise; without, little is proved")
    assert lines[1].startswith("certifying pre-trained: 4 images")
    assert not list(Path("tuned").glob("certified-*/"))
    by_file = said_by(["evaluate", "certified", "tuned/classifier.safetensors", "photos", *QUICK], capsys)
    assert by_file[3:-1] == lines[3:-1]


def test_a_classifier_is_certified_with_the_noise_that_it_was_trained_with(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = supervised(here / "photos", here / "bare.safetensors").settings
    noisy = replace(settings, noise=replace(settings.noise, sigma=0.75))
    train_run(supervised(here / "photos", here / "bare.safetensors", noisy), Path("noisy"))
    lines = said_by(["evaluate", "certified", "noisy", "photos", *QUICK], capsys)
    assert "noise 0.75" in lines[1]
    lines = said_by(["evaluate", "certified", "noisy", "photos", *QUICK, "--sigma", "0.1"], capsys)
    assert "noise 0.1" in lines[1]


def test_strong_noise_is_trained_with_less_weight_of_the_entropy(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "certified", "bare.safetensors", "photos", *TRAINED, "--sigma", "1", "--images", "1"]
    said_by([*command, "--out", "strong"], capsys)
    said_by([*command, "--out", "own", "--task.noise.entropy", "0.5"], capsys)
    weights = [load_supervised(Path(out) / "config.json").settings.noise.entropy for out in ("strong", "own")]
    assert weights == [0.1, 0.5]


def test_the_random_start_stands_beside(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "certified", "bare.safetensors", "photos", *TRAINED, "--floors"], capsys)
    header = next(line for line in lines if line.startswith("radius"))
    assert re.split(r"  +", header) == ["radius", "random start %", "95 % interval", "pre-trained %", "95 % interval"]
    assert any(
        re.fullmatch(r"pre-trained at radius 0\.1: [+-]\d+\.\d points against random start \(.*\): .*", line)
        for line in lines
    )
    (place,) = Path("runs/evaluations").glob("*-bare")
    assert [record["network"] for record in records_of(place / "log.jsonl")] == ["random", "pretrained"]
    titles = re.findall(
        r"<title>(.*?)</title>", (place / "certified-photos-sigma-0.25/certified-photos.svg").read_text()
    )
    assert titles == ["random start", "pre-trained"]


def test_radii_that_nothing_can_prove_have_no_row(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "certified", "tuned", "photos", *QUICK, "--radii", "0", "0.2", "3"], capsys)
    end = 0.25 * NormalDist().inv_cdf(0.05 ** (1 / 30))
    assert [line.split()[0] for line in lines if re.match(r"\d\S* +\d+\.\d ", line)] == ["0", "0.2"]
    assert f"30 copies prove radii up to {end:.2f} at most" in lines
    (record,) = records_of(Path("tuned/log.jsonl"))
    assert record["score"]["radii"] == [0.0, 0.2, 3.0]
    assert record["score"]["accuracy"][2] == 0.0


def test_an_unreadable_image_is_named_and_hinders_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("photos/val/cold/000.png").write_text("no image")
    command = ["evaluate", "certified", "tuned", "photos", *QUICK]
    lines = said_by(command, capsys)
    assert "1 image could not be read, for example photos/val/cold/000.png" in lines
    assert lines[2].startswith("certified of tuned on photos: 3 test images")
    again = said_by(command, capsys)
    assert again[2:] == lines[2:]


def test_in_a_process_of_its_own_as_json(here: Path) -> None:
    command = ["evaluate", "certified", "bare.safetensors", "photos", *TRAINED, "--json", "--out", "run"]
    ended = CommandProcess(command, here).end()
    assert ended.code == 0, ended.err
    trained, certified = (json.loads(line) for line in ended.out.splitlines())
    assert (trained["name"], certified["name"]) == ("certified", "certified")
    assert "top1" in trained["score"]
    assert certified["score"]["n"] == 4
    assert certified["settings"]["classifier"] == "run/classifier.safetensors"
    assert "certifying pre-trained" in ended.err


def test_the_curve_is_the_share_that_keeps_its_class() -> None:
    config = CertifiedConfig(sigma=0.5, n=1000, alpha=0.001)
    end = reach(config)
    assert end == pytest.approx(0.5 * NormalDist().inv_cdf(0.001 ** (1 / 1000)))
    images = [
        CertifiedImage(index=place, label=0, guess=guess, hits=900, certified=True, radius=radius, predicted=guess)
        for place, (guess, radius) in enumerate([(0, 0.5 * end), (0, end), (1, end), (0, 0.0)])
    ]
    svg = draw({"pretrained": CertifiedScore.of(images, config)}, config)
    path = next(found for found in re.findall(r'<path d="(M[^"]*)"', svg) if found.count("L") > 50 and "Z" not in found)
    heights = [float(point.split()[1]) for point in re.split("[ML]", path)[1:]]
    # 75 % at radius 0, 50 % up to half of the reach, 25 % to its end; y grows downwards.
    steps = [heights[0], *(after for before, after in pairwise(heights) if after != before)]
    assert len(steps) == 3
    assert steps[1] - steps[0] == pytest.approx(steps[2] - steps[1], abs=0.2)
    assert heights.index(steps[2]) / len(heights) == pytest.approx(0.5, abs=0.02)


CASES: dict[str, tuple[list[str], str]] = {
    "no labels": (
        ["tuned", "flat", *QUICK],
        "the training images of flat have no labels: put them into one folder a class",
    ),
    "one class": (["tuned", "alone", *QUICK], "alone has only one class, only: there is nothing to tell apart"),
    "several labels": (
        ["tuned", "several.csv", *QUICK],
        "certificates are of images with one class each, not of a CSV of several",
    ),
    "a classifier of other classes": (
        ["others.safetensors", "photos", *QUICK],
        "the classifier does not know these classes of photos: warm",
    ),
    "a classifier of several classes": (
        ["several.safetensors", "photos", *QUICK],
        "several.safetensors finds several classes in an image; a certificate is of classifiers that give it one",
    ),
    "channels that image files do not have": (
        ["two.safetensors", "photos", *TRAINED],
        "no readable image in photos, for example photos/train/warm/015.png: it has 3 channels, and 2 are wanted",
    ),
    "no noise": (["tuned", "photos", *QUICK, "--sigma", "0"], "the noise needs a deviation above 0, got sigma = 0.0"),
    "noise of training alone": (
        ["bare.safetensors", "photos", *TRAINED, "--task.noise.sigma", "0.5"],
        "--sigma is the noise of training and of certifying alike; leave --task.noise.sigma out",
    ),
    "training of what is finished": (
        ["tuned", "photos", *QUICK, "--epochs", "3"],
        "tuned is a finished classifier, so nothing is trained: leave --epochs out",
    ),
    "floors of what is finished": (
        ["tuned", "photos", *QUICK, "--floors"],
        "tuned is a finished classifier, so nothing is trained: leave --floors out",
    ),
    "labels for what is finished": (
        ["tuned", "photos", *QUICK, "--shots", "2"],
        "tuned is a finished classifier, so nothing is trained: leave --share and --shots out",
    ),
    "settings of what is finished": (
        ["tuned", "photos", *QUICK, "--task.layer-decay", "0.5"],
        "tuned is a finished classifier, so nothing is trained: leave --task.FIELD out",
    ),
    "no radius": (
        ["tuned", "photos", *QUICK, "--radii", "-1"],
        "the radii to certify must be 0 or more, and at least one, got (-1.0,)",
    ),
    "no copies": (
        ["tuned", "photos", *QUICK, "--n", "0"],
        "n0, n, every, images and the batch size of a certification must all be at least 1",
    ),
    "no encoder": (["absent", "photos", *QUICK], "there is no run folder or encoder file absent"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(
    case: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    arguments, sentence = CASES[case]
    assert main(["evaluate", "certified", *arguments]) == 2
    _, err = capsys.readouterr()
    assert err == f"unmask: {sentence}\n"
    assert not list(Path("runs").rglob("*.jsonl")), "what is refused leaves nothing behind"
