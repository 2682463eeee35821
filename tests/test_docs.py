"""docs/methods says what the code says: pages and pictures are made from it, and are those of this very code."""

from __future__ import annotations

import importlib
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from unmask.cli import COMMANDS, main
from unmask.methods import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "methods"
STALE = "docs/methods is not what the code says now; run: python scripts/make_docs.py"


@pytest.fixture(scope="module")
def scripts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        yield


@pytest.fixture(scope="module")
def make_docs(scripts: None) -> ModuleType:
    return importlib.import_module("make_docs")


@pytest.fixture(scope="module")
def docs_text(scripts: None) -> ModuleType:
    return importlib.import_module("docs_text")


def written(name: str) -> str:
    file = DOCS / name
    assert file.exists(), STALE
    return file.read_text(encoding="utf8")


def words(text: str) -> list[str]:
    """Letters and numbers alone: what escaping, lists, headings and fences leave untouched."""
    return re.findall(r"\w+", text.replace("```text", "").replace("_", " "))


@pytest.mark.parametrize("name", METHODS)
def test_pages_are_up_to_date(name: str, make_docs: ModuleType) -> None:
    assert written(f"{name}.md") == make_docs.page(name), STALE


@pytest.mark.parametrize("name", METHODS)
def test_pictures_are_up_to_date(name: str, make_docs: ModuleType, tmp_path: Path) -> None:
    assert written(f"{name}.svg") == make_docs.picture(name, tmp_path), STALE


def test_the_table_is_up_to_date_and_nothing_else_is_there(make_docs: ModuleType) -> None:
    assert written("index.md") == make_docs.index(), STALE
    expected = {"index.md"} | {f"{name}{end}" for name in METHODS for end in (".md", ".svg")}
    assert {file.name for file in DOCS.iterdir()} == expected, STALE


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_the_docstring_word_by_word(name: str) -> None:
    doc = sys.modules[METHODS[name].__module__].__doc__ or ""
    page = words(written(f"{name}.md"))
    paragraphs = [words(re.sub(r"^Formula:", "", part)) for part in re.split(r"\n\s*\n|:\n", doc)]
    text = " ".join(page)
    # A link to the paper stands behind its number, so the title is compared without it.
    missing = [part for part in paragraphs if " ".join(part) not in text and "arXiv" not in part]
    assert missing == []


@pytest.mark.parametrize("name", METHODS)
def test_pictures_are_whole(name: str) -> None:
    root = ET.fromstring(written(f"{name}.svg"))
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "gets gradients" in shown
    assert any(text and text.startswith("B × ") for text in shown)
    assert f"![Data flow of a training step of {METHODS[name].info.title}]({name}.svg)" in written(f"{name}.md")


def test_command_lines_of_the_pages_work(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line for name in METHODS for line in re.findall(r"^unmask .*$", written(f"{name}.md"), flags=re.M)}
    assert {f"unmask pretrain DATA --method {name} --out RUN" for name in METHODS} <= lines
    for command in {line.split()[1] for line in lines}:
        assert command in COMMANDS
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out
        options = {option for line in lines if line.split()[1] == command for option in re.findall(r"--[a-z-]+", line)}
        assert all(option in text for option in options)


def test_the_script_writes_all_and_removes_what_is_no_more(
    make_docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone.md").write_text("old")
    (tmp_path / "notes.txt").write_text("kept")
    monkeypatch.setattr(make_docs, "METHODS", {"simmim": METHODS["simmim"]})
    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--out", str(tmp_path)])
    make_docs.main()
    assert {file.name for file in tmp_path.iterdir()} == {"index.md", "simmim.md", "simmim.svg", "notes.txt"}
    assert (tmp_path / "simmim.svg").read_text() == written("simmim.svg")


DOCSTRING = """Toy: A Title (arXiv 1234.56789).

First idea.

Formula:
    a = b

    c = sum_i d_i * e
        / f

Second idea.

Shape legend: B samples.

Where the authors' code differs from the paper (the code wins):
- one, p*p values;
  still one;
- two.
More of it.
"""


def test_a_docstring_is_taken_apart(docs_text: ModuleType) -> None:
    told = docs_text.explanation(DOCSTRING)
    assert told.title == "Toy: A Title (arXiv 1234.56789)."
    assert told.paragraphs == ("First idea.", "Second idea.")
    assert told.formula == "    a = b\n\n    c = sum_i d_i * e\n        / f"
    assert docs_text.prose_and_code(told.formula) == "```text\na = b\n\nc = sum_i d_i * e\n    / f\n```"
    assert told.legend == "Shape legend: B samples."
    assert told.differences_title == "Where the authors' code differs from the paper (the code wins)"
    assert docs_text.markdown(told.differences) == "- one, p\\*p values;\n  still one;\n- two.\n\nMore of it."


def test_a_docstring_may_have_none_of_it(docs_text: ModuleType) -> None:
    told = docs_text.explanation("Toy.\n\nIdea.")
    assert (told.title, told.paragraphs, told.formula) == ("Toy.", ("Idea.",), "")
    assert told.differences == told.legend == ""


def test_a_formula_may_be_told_in_words_and_lines(docs_text: ModuleType) -> None:
    told = docs_text.explanation("Toy.\n\nFormula: with x the input,\n    y = x * x\nwhere * is a product.\n\nMore.")
    assert told.paragraphs == ("More.",)
    words = "with x the input,\n\n```text\ny = x * x\n```\n\nwhere \\* is a product."
    assert docs_text.prose_and_code(told.formula) == words


def test_a_recipe_shows_its_command(docs_text: ModuleType) -> None:
    text = "Cheap.\n\nunmask pretrain A\n\nCost: 1 h."
    assert docs_text.prose_and_code(text) == "Cheap.\n\n```text\nunmask pretrain A\n```\n\nCost: 1 h."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p*p*C < 2 ~ x", "p\\*p\\*C \\< 2 \\~ x"),
        ("tokens_BLD and vit_ and `a*b_`", "tokens_BLD and vit\\_ and `a*b_`"),
        ("so:\n- one\n- two\nend", "so:\n\n- one\n- two\n\nend"),
    ],
)
def test_markdown_shows_the_same_letters(text: str, expected: str, docs_text: ModuleType) -> None:
    assert docs_text.markdown(text) == expected


def test_papers_are_linked_and_cells_stay_cells(docs_text: ModuleType) -> None:
    assert docs_text.linked("see arXiv 2205.09616.") == "see [arXiv 2205.09616](https://arxiv.org/abs/2205.09616)."
    assert docs_text.table(("a", "b"), [["x | y", "z\nw"]]) == "| a | b |\n| --- | --- |\n| x \\| y | z w |"


def test_the_code_on_the_page_about_images_runs() -> None:
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, "docs/images.md", "exec"), {})
