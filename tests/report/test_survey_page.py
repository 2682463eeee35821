"""The page about data: one file that loads nothing, escapes every name, and shows what was found."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiny_runs import draw_images
from unmask.data.halves import open_halves
from unmask.data.stored import PixelRange
from unmask.data.survey import Survey, SurveyConfig, survey
from unmask.report.survey_page import ROWS_AT_MOST, SHOWN, survey_page
from unmask.report.survey_words import Plan

HOSTILE = "<script>alert(1)<img src=x onerror='alert(2)'>&amp;\">"
PLAN = Plan(crop=(32, 32), rows={"method": "ConMIM", "encoder": HOSTILE})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    folder = draw_images(tmp_path_factory.mktemp("data") / HOSTILE.replace("/", ""), 20, classes=("cold", HOSTILE))
    first = folder / "cold" / "000.png"
    for number in range(9):
        shutil.copy(first, folder / "cold" / f"copy {number}.png")
    with Image.open(folder / "cold" / "002.png") as image:
        image.resize((90, 90), Image.Resampling.BICUBIC).save(folder / "cold" / "again.jpg", quality=90)
    for number in range(ROWS_AT_MOST + 5):
        (folder / HOSTILE / f"bad {number:03d}.jpg").write_bytes(b"no image")
    return survey(open_halves(str(folder)), SurveyConfig(decoded=None))


class Reader(HTMLParser):
    """Elements, words, and whether elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_what_was_found_and_runs_nothing(found: Survey) -> None:
    page = survey_page(found, PLAN)
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    pictures = [attributes for tag, attributes in reader.elements if tag == "img"]
    # All images, eight of ten copies, a pair that looks alike.
    assert len(pictures) == 30 + 8 + 2
    for attributes in pictures:
        source = attributes["src"] or ""
        assert re.match(r"data:image/(png|webp);base64,", source)
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
            assert max(image.size) >= 90
    text = "\n".join(reader.words)
    assert f"Files that cannot be used (205, the first {ROWS_AT_MOST} of them)" in text
    assert "1 of 1 groups. Of each, at most 8 images are shown." in text
    assert "Exact copies" in text
    assert "Images that look nearly alike" in text
    assert "training · 32 x 32 · 000.png" in text
    assert "a run stops at more than 10% (--max-bad-share)." in text
    assert text.count(HOSTILE) > 10
    (chart,) = [attributes for tag, attributes in reader.elements if tag == "svg" and "role" in attributes]
    assert chart["aria-label"] == "Colour images (30)"


def test_an_image_that_is_gone_by_then_is_left_out(tmp_path: Path) -> None:
    folder = draw_images(tmp_path, 5)
    found = survey(open_halves(str(folder)), SurveyConfig())
    (folder / "cold" / "000.png").unlink()
    page = survey_page(found, PLAN)
    assert page.count("<img ") == 4
    assert "4 images, evenly spread over the data" in page


def test_a_refusal_stands_in_place_of_a_plan(tmp_path: Path) -> None:
    found = survey(open_halves(str(draw_images(tmp_path, 2))), SurveyConfig())
    page = survey_page(found, Plan(refusal="5 channels are too many"))
    assert "<small>5 channels are too many</small>" in page
    assert "<summary>What unmask pretrain would do</summary>" not in page


def test_of_many_images_some_are_shown_from_the_first_to_the_last(tmp_path: Path) -> None:
    found = survey(open_halves(str(draw_images(tmp_path, 70, classes=("",), side=8))), SurveyConfig())
    page = survey_page(found, PLAN)
    assert page.count("<img ") == SHOWN
    names = [found.halves.images.path(place) for place in (0, 69)]
    assert all(f'alt="{name}"' in page for name in names)


def test_images_of_many_channels_say_which_are_shown(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(3):
        np.save(tmp_path / f"{number}.npy", generator.integers(0, 4000, (20, 24, 5)).astype(np.uint16))
    halves = open_halves(str(tmp_path)).in_range(PixelRange(low=(0.0,), high=(4000.0,)))
    page = survey_page(survey(halves, SurveyConfig()), PLAN)
    assert "Channels 1, 2 and 3 of 5 are shown as red, green and blue." in page
    assert "Images of 5 channels (3)" in page
    assert page.count("<img ") == 3
