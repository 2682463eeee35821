"""`methods`, `recipes` and `show` tell all there is to know without reading the source."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.cli import main
from unmask.commands.methods import cost, proof, recipes_of
from unmask.commands.show import knobs
from unmask.methods import METHODS
from unmask.methods.measured import GoldenResult, Measured, StepCost, read_measured, write_measured
from unmask.recipes import RECIPES
from unmask.recipes.finetuning import FINETUNING


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
    measured = read_measured()
    for entry, (name, method) in zip(entries, METHODS.items(), strict=True):
        info = method.info
        for words in (info.title, info.family, f"{info.paper} ({info.year})", info.idea):
            assert words in entry
        known = measured.get(name, Measured())
        recipe = next(iter(recipes_of(name)), "none; the defaults are the authors' settings")
        assert entry.split("\n    ")[2:] == [
            f"online: {info.online_input}; target: {info.target}; objective: {info.objective}",
            f"proof: {proof(name, known)}",
            f"step: {cost(known)}",
            f"recipe: {recipe}",
        ]


def test_what_was_measured_belongs_to_methods_that_exist() -> None:
    assert set(read_measured()) <= set(METHODS)


GOLDEN = GoldenResult(
    cases=("one", "two"), agreeing=2, largest_difference=7.684e-14, command="unmask verify", date="2026-01-01"
)
STEP = StepCost(
    relative=1.7,
    encoder="vit_small_patch16_224",
    batch_size=16,
    device="cpu",
    threads=2,
    torch="2.15",
    command="python benchmarks/step.py",
    date="2026-01-01",
)


def test_measurements_in_words() -> None:
    assert proof("mae", Measured(golden=GOLDEN)) == (
        "agrees with its authors' code in 2 golden cases, largest difference 7.7e-14"
    )
    single = replace(GOLDEN, cases=("one",), agreeing=1)
    assert "in 1 golden case, largest" in proof("mae", Measured(golden=single))
    assert "in 1 of 2 golden cases, largest" in proof("mae", Measured(golden=replace(GOLDEN, agreeing=1)))
    nothing = replace(GOLDEN, agreeing=0, largest_difference=None)
    assert proof("mae", Measured(golden=nothing)) == "agrees with its authors' code in 0 of 2 golden cases"
    assert cost(Measured(step=STEP)) == "1.70 × MAE's (vit_small_patch16_224, 16 images, cpu)"


def test_what_was_not_measured_says_so() -> None:
    assert proof("mae", Measured()) == "not measured (unmask verify does)"
    assert proof("elsewhere", Measured()) == "tested against its formulas"
    assert cost(Measured()) == "not measured"


def test_measurements_are_kept_in_a_file(tmp_path: Path) -> None:
    both = {
        "mae": Measured(golden=GOLDEN, step=STEP),
        "cmae": Measured(golden=replace(GOLDEN, largest_difference=None)),
    }
    write_measured(both, tmp_path / "measured.json")
    assert read_measured(tmp_path / "measured.json") == both
    assert json.loads((tmp_path / "measured.json").read_text())["mae"]["step"]["relative"] == 1.7


def test_recipes_belong_to_their_method() -> None:
    assert recipes_of("conmim")[0] == "demo"
    assert sum(len(recipes_of(name)) for name in METHODS) == len(RECIPES)


def test_recipes_of_fine_tuning_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    _, told = printed(["recipes"], capsys).split("Fine-tuning, by `unmask evaluate finetune RUN DATA --recipe NAME`:")
    for name in FINETUNING:
        assert f"unmask evaluate finetune RUN IMAGENET --recipe {name} --device cuda" in told


def test_recipes_tell_their_command(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(["recipes"], capsys)
    for name in RECIPES:
        assert f"\n{name}\n" in f"\n{out}"
        assert re.search(rf"unmask pretrain (IMAGENET/train )?--recipe {name}\b", out)
