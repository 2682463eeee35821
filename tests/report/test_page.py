"""The page is one file, escapes everything, and says what it was given."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from unmask.report import Page, render_page

VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Collects elements with their attributes, and fails where elements do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(page: Page) -> Reader:
    reader = Reader()
    reader.feed(render_page(page))
    reader.close()
    assert reader.open == []
    return reader


def bare() -> Page:
    return Page(run="r", method="m", idea="i", encoder="e", data="d", verdict="v", config={}, versions={})


def test_hostile_text_stays_text(page: Page) -> None:
    reader = read(page)
    assert "script" not in {tag for tag, _ in reader.elements}
    assert not [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert not [a for tag, a in reader.elements if tag == "img" and not str(a["src"]).startswith("data:image/")]
    text = "".join(reader.words)
    # Title, heading, method, idea, data, verdict, warning, figure, sheet, labels, settings, versions, files.
    assert text.count("""<script>alert("1")</script>""") > 60


def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    html = render_page(page)
    assert not re.search(r"https?://|//[a-z]|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", html))
    reader = read(page)
    policy = next(a["content"] for tag, a in reader.elements if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    for _, attributes in reader.elements:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))


def test_every_picture_has_words(page: Page) -> None:
    reader = read(page)
    assert all(attributes["alt"] for tag, attributes in reader.elements if tag == "img")
    drawings = [a for tag, a in reader.elements if tag == "svg" and a.get("class") == "chart"]
    assert drawings
    assert all(a["aria-label"] and a["role"] == "img" for a in drawings)
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("figure") == tags.count("figcaption") == len(page.charts) + len(page.figures)


def test_the_head_says_before_after_and_floor(page: Page) -> None:
    html = render_page(page)
    assert "55.2\N{NO-BREAK SPACE}%" in html
    assert '<span class="gain">+15.2\N{NO-BREAK SPACE}points</span>' in html
    for words in ("52.2\N{EN DASH}58.2", "random start", "raw pixels", "123,456", "9\N{NO-BREAK SPACE}min"):
        assert words in html


def test_warnings_are_listed_or_quietly_absent(page: Page) -> None:
    assert "The features are narrow" in render_page(page)
    assert "One step was left out of the training, because loss &lt;script&gt;" in render_page(page)
    assert "At step 9 the loss jumped&lt;script&gt;" in render_page(page)
    assert "Nothing wrong was seen" not in render_page(page)
    quiet = render_page(replace(page, warnings=()))
    assert "Nothing wrong was seen during training." in quiet
    assert 'class="warnings"' not in quiet


def test_a_bare_run_has_a_page_without_empty_sections() -> None:
    html = render_page(bare())
    assert 'id="curves"' not in html
    assert 'id="pictures"' not in html
    assert "could not be read" not in html
    assert '<dl class="facts">' not in html
    read(bare())


def test_details_are_folded_and_complete(page: Page) -> None:
    reader = read(page)
    assert all("open" not in attributes for tag, attributes in reader.elements if tag == "details")
    assert "Files that could not be read (60)" in reader.words
    assert "and 10 more, named in bad_files.txt" in reader.words
    assert "0.1, none, yes" in reader.words


@pytest.mark.parametrize(("count", "more"), [(50, False), (51, True)])
def test_fifty_bad_files_are_named(count: int, more: bool) -> None:
    html = render_page(replace(bare(), bad_files=[f"{number}.jpg" for number in range(count)]))
    assert "49.jpg" in html
    assert "50.jpg" not in html
    assert ("and 1 more" in html) == more
