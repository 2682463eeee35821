"""`methods`, `recipes` and `show` tell all there is to know without reading the source."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from unmask.cli import main
from unmask.commands.show import knobs
from unmask.methods import METHODS
from unmask.recipes import RECIPES


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def leaves(config: Any, prefix: str = "") -> dict[str, object]:
    """Every value of a configuration by the name of its option."""
    found: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        found |= leaves(value, f"{name}.") if dataclasses.is_dataclass(value) else {name: value}
    return found


@pytest.mark.parametrize("width", ["60", "200"])
@pytest.mark.parametrize("method", METHODS)
def test_show_has_every_knob(
    method: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    out = printed(["show", method], capsys)
    assert out.startswith(f"{METHODS[method].info.title}  {METHODS[method].info.paper}\n")
    assert "Shape legend" in out
    entries = re.findall(r"\n--method\.(\S+)  (.+) = (.*)\n    (.+)\n", out)
    expected = leaves(METHODS[method].Config())
    assert [name for name, *_ in entries] == list(expected)
    for name, kind, default, meaning in entries:
        value = expected[name]
        assert default == (" ".join(map(str, value)) if isinstance(value, tuple) else str(value))
        assert kind.startswith(("str", "int", "float", "bool", "tuple[", "Literal[")), name
        assert len(meaning) > 10
    assert any(re.search(r" \[.+\]$", meaning) for *_, meaning in entries), "sources are shown"


@pytest.mark.parametrize("method", METHODS)
def test_every_knob_says_what_it_means(method: str) -> None:
    for knob in knobs(METHODS[method].Config()):
        assert knob.meaning.endswith((".", "!", ")")), knob
        assert knob.meaning[0] not in "[ ", knob


def test_methods_are_listed_with_what_tells_them_apart(capsys: pytest.CaptureFixture[str]) -> None:
    entries = re.split(r"\n(?=\S)", printed(["methods"], capsys).strip())
    assert [entry.split()[0] for entry in entries] == list(METHODS)
    for entry, method in zip(entries, METHODS.values(), strict=True):
        info = method.info
        for words in (info.title, info.family, f"{info.paper} ({info.year})", info.idea):
            assert words in entry
        assert f"online: {info.online_input}; target: {info.target}; objective: {info.objective}" in entry
        assert entry.endswith("agrees with its authors' code (unmask verify)")


def test_recipes_tell_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(["recipes"], capsys)
    for name in RECIPES:
        assert f"\n{name}\n" in f"\n{out}"
        assert f"unmask pretrain --recipe {name}" in out
