"""The configuration of a supervised run is read as it was written, and strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.config import save_config
from unmask.optimisation import OptimizerConfig
from unmask.run_folder import first_difference
from unmask.supervised.config import (
    SETTINGS,
    TITLES,
    LabelBudget,
    SupervisedConfig,
    is_supervised,
    load_supervised,
)
from unmask.tasks.classification import ClassifierConfig, NoiseConfig
from unmask.training.trainer import TrainingConfig

CONFIG = SupervisedConfig(
    protocol="finetune",
    encoder="runs/one",
    start="random",
    data="photos ü",
    budget=LabelBudget(share=0.1),
    settings=ClassifierConfig(
        tuned_blocks=2,
        randaugment=None,
        crop_scale=(0.3, 0.9),
        average=0.99,
        image_height=64,
        noise=NoiseConfig(sigma=0.25),
        optimizer=OptimizerConfig(lr=1e-3, lr_batch=None, betas=(0.9, 0.99)),
    ),
    training=TrainingConfig(epochs=3.5, batch_size=8, workers=2, seed=4),
)


@pytest.mark.parametrize("protocol", SETTINGS)
def test_what_is_written_is_read_again(protocol: Any, tmp_path: Path) -> None:
    settings: Any = CONFIG.settings if SETTINGS[protocol] is ClassifierConfig else SETTINGS[protocol]()
    config = replace(CONFIG, protocol=protocol, settings=settings)
    path = tmp_path / "config.json"
    save_config(config, path)
    assert load_supervised(path) == config
    assert first_difference(json.loads(path.read_text()), config.as_dict()) is None
    assert is_supervised(json.loads(path.read_text()))
    assert protocol in TITLES


def test_a_pre_training_run_is_none() -> None:
    assert not is_supervised({"format": 1, "method": "mae"})


def _set(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    return change


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (_set("more", value=1), "{path}: unknown key 'more'"),
    "unknown setting": (
        _set("settings", "mixups", value=1),
        "settings: unknown key 'mixups'; did you mean 'mixup'?",
    ),
    "unknown knob of the optimizer": (
        _set("settings", "optimizer", "lrs", value=1),
        "settings.optimizer: unknown key 'lrs'; did you mean 'lr'?",
    ),
    "text for a number": (
        _set("settings", "mixup", value="much"),
        "settings.mixup: expected a number, got 'much'",
    ),
    "a fraction for a count": (
        _set("settings", "tuned_blocks", value=1.5),
        "settings.tuned_blocks: expected a whole number, got 1.5",
    ),
    "a number for a truth": (
        _set("settings", "own_tables", value=1),
        "settings.own_tables: expected true or false, got 1",
    ),
    "an unknown choice": (
        _set("settings", "head", value="deep"),
        "settings.head: expected one of linear, attentive, got 'deep'",
    ),
    "a value out of range": (
        _set("settings", "smoothing", value=3),
        "settings: smoothing must lie in [0, 1], got 3.0",
    ),
    "a policy that timm cannot read": (
        _set("settings", "randaugment", value="wild"),
        "settings: timm knows no RandAugment policy 'wild'; an example is rand-m9-mstd0.5-inc1",
    ),
    "two budgets": (
        _set("budget", "shots", value=2),
        "budget: give a share of the labels or a number of images of each class, not both",
    ),
    "no object": (_set("training", value=3), "training: expected an object with the fields of TrainingConfig, got 3"),
    "unknown protocol": (
        _set("protocol", value="pretrain"),
        f"{{path}} names protocol 'pretrain', which is not one of {', '.join(SETTINGS)}",
    ),
    "no name for a protocol": (
        _set("protocol", value=["finetune"]),
        f"{{path}} names protocol ['finetune'], which is not one of {', '.join(SETTINGS)}",
    ),
    "settings of another protocol": (_set("protocol", value="segment"), "settings: unknown key "),
    "unknown start": (_set("start", value="warm"), "{path}: start must be 'pretrained' or 'random', got 'warm'"),
    "encoder that is no text": (_set("encoder", value=None), "{path}: encoder must be text, got None"),
    "data that are no text": (_set("data", value=["a"]), "{path}: data must be text, got ['a']"),
    "missing key": (lambda values: values.pop("budget"), "{path} lacks 'budget'"),
    "another format": (
        _set("format", value=2),
        "{path} has run configuration format 2, this version reads 1: a newer unmask wrote it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_exactly_a_configuration_is_refused(case: str, tmp_path: Path) -> None:
    change, sentence = WRONG[case]
    values = CONFIG.as_dict()
    change(values)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r".") as caught:
        load_supervised(path)
    expected = sentence.replace("{path}", str(path))
    assert str(caught.value) == expected or (expected.endswith(" ") and str(caught.value).startswith(expected))


def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=f"^cannot read configuration {path}: no such file or directory$"):
        load_supervised(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=f"^{path} is not valid JSON: "):
        load_supervised(path)


@given(st.one_of(st.none(), st.floats(0, 1, exclude_min=True)), st.one_of(st.none(), st.integers(1, 50)))
def test_a_budget_is_one_of_two(share: float | None, shots: int | None) -> None:
    if share is not None and shots is not None:
        with pytest.raises(ValueError, match=r"not both$"):
            LabelBudget(share=share, shots=shots)
        return
    budget = LabelBudget(share=share, shots=shots)
    assert bool(str(budget)) == (share is not None or shots is not None)


def test_a_budget_in_words() -> None:
    assert str(LabelBudget()) == ""
    assert str(LabelBudget(share=0.01)) == "1%"
    assert str(LabelBudget(share=0.125)) == "12.5%"
    assert str(LabelBudget(shots=5)) == "5-shot"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^the share of the labels must lie in \(0, 1\], got " + f"{share}$"):
        LabelBudget(share=share)


def test_no_shots_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^there must be at least one image of each class, got 0$"):
        LabelBudget(shots=0)
