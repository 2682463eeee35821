"""The page about a supervised run holds its score and its pictures, and takes no name for markup."""

from __future__ import annotations

import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tiny_classifiers import BARE
from tiny_runs import draw_images, read_records
from tiny_supervised import run, stop_in_step, supervised, write_encoder
from unmask.run_folder import RunFolder
from unmask.supervised.config import TITLES, LabelBudget
from unmask.supervised.report import IDEAS, write_supervised_report
from unmask.supervised.run import final_score

EVIL = ("<script>alert(1)", "b<img src=x onerror=alert(2)>")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    """A finished run on classes, a folder and a bad file whose names are markup."""
    folder = tmp_path_factory.mktemp("evil")
    data = folder / "<blink>data"
    draw_images(data / "train", 16, classes=EVIL)
    draw_images(data / "val", 12, classes=EVIL)
    (data / "train" / EVIL[0] / "<b>bad.png").write_text("no image")
    # The first step is at a rate of zero: what it leaves has not learnt yet.
    settings = replace(BARE, optimizer=replace(BARE.optimizer, warmup_epochs=1.0))
    config = supervised(data, encoder, settings, epochs=4, evaluate_every=0.25, max_bad_share=0.5)
    run(replace(config, budget=LabelBudget(share=0.99)), folder / "run")
    return folder / "run"


class Tags(HTMLParser):
    """Names of all elements and attributes of a page, and what its scripts say."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.scripts: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self._inside = tag

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)


def page_of(path: Path) -> str:
    written = write_supervised_report(RunFolder(path))
    assert written == path / "report.html"
    return written.read_text(encoding="utf-8")


def test_the_page_holds_score_pictures_and_configuration(evil: Path) -> None:
    page = page_of(evil)
    score = final_score(RunFolder(evil))
    first = read_records(evil, "evaluation")[0]["score"]
    assert first["top1"] < score["top1"] == 100, "or the page could show either"
    low, high = score["interval"]
    assert f"top-1 {score['top1']:.1f} % (95 % interval {low:.1f} to {high:.1f}) on 12 test images." in page
    assert "Test images and what the classifier says" in page
    assert "100.0\u00a0% of these are right." in page
    assert page.count("data:image/png;base64,") >= 12
    assert "Fine-tuning" in page
    assert IDEAS["finetune"] in page
    assert "99% of the labels" in page
    assert "as pre-trained" in page
    assert "layer_decay" in page
    assert "Files that could not be read (1)" in page
    assert "There are no pictures" not in page


def test_a_step_left_out_is_told(evil: Path, tmp_path: Path) -> None:
    shutil.copytree(evil, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.append({"kind": "left out", "step": 2, "number": 2, "reason": "loss '<u>class' is nan, samples 5, 11"})
    page = page_of(folder.path)
    assert "One step was left out of the training, because loss &#x27;&lt;u&gt;class&#x27; is nan (step 2)." in page
    assert "Steps left out (1)" in page


def test_no_name_is_taken_for_markup(evil: Path) -> None:
    page = page_of(evil)
    for name in ("<script>alert(1)", "<img src=x", "<blink>data", "<b>bad"):
        assert name not in page
    for name in (
        "&lt;script&gt;alert(1)",
        "b&lt;img src=x onerror=alert(2)&gt;",
        "&lt;blink&gt;data",
        "&lt;b&gt;bad.png",
    ):
        assert name in page
    parser = Tags()
    parser.feed(page)
    assert "alt" in parser.attributes
    assert not any(name.startswith("on") for name in parser.attributes)
    assert "blink" not in parser.tags
    assert not any("alert" in script for script in parser.scripts)


def test_a_run_that_is_not_finished_says_so(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = draw_images(tmp_path / "data", 16)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 2, 6)
        run(supervised(data, encoder), tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "Not scored yet: the run is not finished." in page
    assert "Test images and what the classifier says" in page
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    page = page_of(tmp_path / "run")
    assert "There are no pictures: the run has no checkpoint." in page
    assert "Test images and what the classifier says" not in page


def test_without_the_data_there_are_no_pictures(encoder: Path, tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 16)
    run(replace(supervised(data, encoder, replace(BARE, average=0.5)), start="random"), tmp_path / "run")
    shutil.rmtree(data)
    page = page_of(tmp_path / "run")
    assert f"There are no pictures: {data} does not exist." in page
    assert "at its random start" in page
    assert "top-1 " in page


def test_a_folder_that_is_no_such_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot read configuration .*config\.json: no such file or directory$"):
        write_supervised_report(RunFolder(tmp_path))
    assert IDEAS.keys() == TITLES.keys()
