"""The page about a run shows what its method can show, at any stage of the run, and never fails for lack of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from method_facts import FACTS
from tiny_runs import draw_images, tiny_config
from unmask.config import RunConfig
from unmask.methods import METHODS
from unmask.pretrain import pretrain
from unmask.run_folder import RunFolder
from unmask.run_report import write_report
from unmask.training.checkpoint import checkpoint_path

OWN = {
    "conmim": "Where hidden patches find themselves",
    "mae": "Reconstruction",
    "simmim": "Reconstruction",
    "cmae": "Reconstruction",
}


def run(config: RunConfig, path: Path) -> RunFolder:
    folder = RunFolder(path)
    pretrain(config, folder, Console(quiet=True))
    return folder


class Outline(HTMLParser):
    """The headings of a page, its warnings, and how many pictures follow each heading."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: dict[str, int] = {}
        self.tags: set[str] = set()
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._inside = tag
        if tag == "img" and self.headings:
            self.headings[list(self.headings)[-1]] += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("h3", "summary"):
            self.headings.setdefault(data, 0)


def outline_of(folder: RunFolder) -> tuple[Outline, str]:
    path = write_report(folder)
    assert path == folder.report_file
    page = path.read_text(encoding="utf-8")
    return Outline(page), page


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("report") / "data")


@pytest.mark.parametrize("method", METHODS)
def test_the_page_shows_what_the_method_predicts(method: str, data: Path, tmp_path: Path) -> None:
    folder = run(tiny_config(method, data), tmp_path / "my run")
    outline, page = outline_of(folder)
    own = [title for title in sorted(set(OWN.values())) if title in outline.headings]
    # Pictures of what is predicted are of hidden patches.
    assert len(own) == int(FACTS[method].pictures and FACTS[method].hides_patches)
    assert method not in OWN or own == [OWN[method]]
    assert {"Attention", "Nearest neighbours"} <= outline.headings.keys()
    assert all(outline.headings[title] > 5 for title in (*own, "Attention", "Nearest neighbours"))
    assert {"Learning rate", "Gradient norm", "Effective rank", "Configuration", "Health"} <= outline.headings.keys()
    assert escape(METHODS[method].info.idea) in page
    assert "Not evaluated yet: `unmask evaluate knn RUN DATA` on labelled images says" in page
    assert "There are no pictures" not in page


def test_an_unfinished_run_has_a_page_too(data: Path, tmp_path: Path) -> None:
    finished = run(tiny_config("mae", data, checkpoint_every=2, keep_every=2), tmp_path / "run")
    finished.encoder_file.unlink()
    checkpoint_path(finished.checkpoints, 4).unlink()
    outline, _ = outline_of(finished)
    assert outline.headings["Reconstruction"] > 5
    assert outline.headings["Nearest neighbours"] > 5

    # Just begun: no checkpoint, and a random start must not pass for the trained network.
    shutil.rmtree(finished.checkpoints)
    outline, page = outline_of(finished)
    assert "There are no pictures: the run has no checkpoint." in page
    assert "img" not in outline.tags
    finished.log_file.unlink()
    _, page = outline_of(finished)
    assert "There are no pictures" in page


def test_missing_data_are_a_sentence_instead_of_pictures(data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    folder = run(tiny_config("conmim", moved), tmp_path / "run")
    shutil.rmtree(moved)
    outline, page = outline_of(folder)
    assert f"There are no pictures: {moved} does not exist." in page
    assert "img" not in outline.tags
    assert {"Learning rate", "Configuration"} <= outline.headings.keys()

    # The folder is there again, but nothing in it can be read.
    moved.mkdir()
    (moved / "broken.png").write_text("no image")
    _, page = outline_of(folder)
    assert re.search(r"There are no pictures: .*broken\.png: it is not an image of a known format", page)


def test_a_damaged_checkpoint_is_a_sentence_instead_of_pictures(data: Path, tmp_path: Path) -> None:
    folder = run(tiny_config("mae", data), tmp_path / "run")
    checkpoint_path(folder.checkpoints, 4).write_text("nothing")
    _, page = outline_of(folder)
    assert "There are no pictures: checkpoint" in page


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)<!--&amp;"
    data = draw_images(tmp_path / hostile, 25, classes=(f"{hostile} one", "<img src=x onerror=alert(2)>"))
    (data / f"{hostile} one" / "<b onclick=alert(3)>.png").write_text("no image")
    folder = run(tiny_config("mae", data, epochs=3, max_bad_share=0.5), tmp_path / "<i>run")
    outline, page = outline_of(folder)
    assert "script" not in outline.tags
    assert "<script" not in page
    assert "onerror=alert(2)>" not in page
    assert "<b onclick" not in page
    assert "&lt;b onclick=alert(3)&gt;.png" in page
    assert "&lt;i&gt;run" in page


def test_bad_files_are_counted_and_named(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 25)
    for name in ("one.png", "two ü.png"):
        (data / "cold" / name).write_text("no image")
    folder = run(tiny_config("mae", data, epochs=3, max_bad_share=0.5), tmp_path / "run")
    outline, page = outline_of(folder)
    assert "Files that could not be read (2)" in outline.headings
    assert "cold/two ü.png\tit is not an image of a known format" in page


def test_steps_left_out_and_jumps_of_the_loss_are_told(data: Path, tmp_path: Path) -> None:
    folder = run(tiny_config("mae", data), tmp_path / "run")
    assert "Nothing wrong was seen during training." in outline_of(folder)[1]
    folder.append({"kind": "left out", "step": 2, "number": 2, "reason": "loss 'contrast' is nan, samples 5, 11"})
    folder.append({"kind": "spike", "step": 3, "loss": 9.0, "warning": "the loss jumped from about 1 to 9"})
    kept = folder.left_out(2)
    kept.parent.mkdir()
    kept.hardlink_to(checkpoint_path(folder.checkpoints, 4))
    outline, page = outline_of(folder)
    assert "Steps left out (1)" in outline.headings
    assert "<td>5, 11</td>" in page
    assert "One step was left out of the training, because loss &#x27;contrast&#x27; is nan (step 2)." in page
    assert "At step 3 the loss jumped from about 1 to 9." in page
    assert f"`unmask replay {folder.path}` takes a step that was left out again" in page


def test_scores_of_evaluations_are_the_verdict(data: Path, tmp_path: Path) -> None:
    folder = run(tiny_config("mae", data), tmp_path / "run")
    for network, top1 in (("pixels", 40.0), ("random", 55.5), ("pretrained", 70.0)):
        score = {"top1": top1, "top5": None, "mean_class": top1, "interval": [top1 - 5, top1 + 5], "n": 100}
        folder.append(
            {"kind": "evaluation", "step": 4, "epoch": 2.0, "name": "knn", "network": network, "score": score}
        )
    _, page = outline_of(folder)
    assert "70.0 %, 14.5 points above the random start and 30.0 above raw pixels." in page


def test_few_and_grey_images_are_enough(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 2)
    config = tiny_config("mae", data, batch_size=2)
    grey = replace(config.settings, encoder=replace(config.settings.encoder, channels=1), mean=(0.5,), std=(0.5,))
    outline, _ = outline_of(run(replace(config, settings=grey), tmp_path / "run"))
    assert outline.headings["Reconstruction"] > 0


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a run folder: it has no config\.json$"):
        write_report(RunFolder(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_a_sentence(data: Path, tmp_path: Path) -> None:
    folder = run(tiny_config("mae", data), tmp_path / "run")
    folder.report_file.mkdir()
    with pytest.raises(ValueError, match=r"^cannot write .*report\.html \(is a directory\)$"):
        write_report(folder)
