"""config.json holds a run exactly, and whatever is not exactly a run is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny_runs import tiny_config
from unmask.config import RunConfig, load_config, save_config, structure
from unmask.methods import METHODS, find_method
from unmask.optimisation import OptimizerConfig
from unmask.recipes import RECIPES
from unmask.training.trainer import TrainingConfig

OPTIMIZER_VALUES = st.fixed_dictionaries(
    {
        "lr": st.floats(0, 10),
        "lr_batch": st.none() | st.integers(1, 10_000),
        "betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        "weight_decay": st.floats(0, 1),
        "decay": st.sampled_from(["cosine", "step"]),
        "clip": st.none() | st.floats(0.01, 100),
    }
)
TRAINING_VALUES = st.fixed_dictionaries(
    {
        "epochs": st.floats(0.01, 5000),
        "seed": st.integers(0, 2**63 - 1),
        "device": st.text(max_size=8),
        "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
        "compile": st.booleans(),
        "batch_size": st.integers(1, 9999),
        "workers": st.integers(0, 64),
    }
)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_survives_its_file(method: str, tmp_path: Path) -> None:
    own = RunConfig(
        data="photos ü/\udcff",
        method=method,
        settings=METHODS[method].Config(),
        training=TrainingConfig(batch_size=8, workers=1),
    )
    for config in (own, tiny_config(method, tmp_path, seed=5)):
        save_config(config, tmp_path / "config.json")
        assert load_config(tmp_path / "config.json") == config


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name: str, tmp_path: Path) -> None:
    save_config(RECIPES[name](), tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == RECIPES[name]()


@settings(max_examples=40, deadline=None)
@given(optimizer=OPTIMIZER_VALUES, training=TRAINING_VALUES, data=st.text())
def test_any_values_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, optimizer: dict[str, Any], training: dict[str, Any], data: str
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.json"
    config = RunConfig(
        data=data,
        method="mae",
        settings=replace(METHODS["mae"].Config(), optimizer=OptimizerConfig(**optimizer)),
        training=TrainingConfig(**training),
    )
    save_config(config, file)
    assert load_config(file) == config


def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(values: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """A copy with one value put in (or, for Ellipsis, taken out)."""
    copy = dict(values)
    if len(path) > 1:
        copy[path[0]] = changed(copy[path[0]], path[1:], value)
    elif value is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = value
    return copy


def plain(method: str = "conmim") -> dict[str, Any]:
    """What config.json of a tiny run holds."""
    found: dict[str, Any] = json.loads(json.dumps(tiny_config(method, Path("photos")).as_dict()))
    return found


def refusal(values: object, folder: Path) -> str:
    """The sentence with which a file of these values is refused."""
    file = folder / "config.json"
    file.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(ValueError, match=r"\S") as error:
        load_config(file)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    sentence = refusal(changed(plain(), ("settings", "temprature"), 0.2), tmp_path)
    assert sentence == "settings: unknown key 'temprature'; did you mean 'temperature'?"
    sentence = refusal(changed(plain(), ("settings", "encoder", "dept"), 2), tmp_path)
    assert sentence == "settings.encoder: unknown key 'dept'; did you mean 'depth'?"
    sentence = refusal(changed(plain(), ("training", "zzz"), 2), tmp_path)
    assert sentence.startswith("training: unknown key 'zzz'; known are epochs, seed, ")
    sentence = refusal(changed(plain(), ("extra",), 2), tmp_path)
    assert sentence.endswith("config.json: unknown key 'extra'")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("training", "epochs"), "ten", "training.epochs: expected a number, got 'ten'"),
        (("training", "epochs"), True, "training.epochs: expected a number, got True"),
        (("training", "batch_size"), 8.5, "training.batch_size: expected a whole number, got 8.5"),
        (("training", "compile"), "yes", "training.compile: expected true or false, got 'yes'"),
        (("training", "device"), 3, "training.device: expected text, got 3"),
        (("training", "batch_size"), ..., "training.batch_size is missing"),
        (("training", "batch_size"), 0, "training: batch_size must be a number above 0, got 0"),
        (("settings", "mask", "ratio"), 1.5, "settings.mask: mask ratio must lie strictly between 0 and 1, got 1.5"),
        (
            ("settings", "optimizer", "decay"),
            "x",
            "settings.optimizer.decay: expected one of cosine, step, linear, got 'x'",
        ),
        (("settings", "optimizer", "betas"), 0.9, "settings.optimizer.betas: expected a list"),
        (("settings", "optimizer", "betas"), [0.9, "x"], "settings.optimizer.betas: expected a number, got 'x'"),
        (("settings", "mean"), [0.5], "settings: mean has 1 values for images of 3 channels"),
        (("settings", "encoder", "depth"), "one", "settings.encoder.depth: expected a whole number, got 'one'"),
        (("settings", "encoder"), 3, "settings.encoder: expected an object with the fields of EncoderConfig, got 3"),
        (("settings",), [1, 2], "settings: expected an object with the fields of ConMIMConfig, got [1, 2]"),
        (("training",), None, "training: expected an object with the fields of TrainingConfig, got None"),
    ],
)
def test_a_value_of_another_type_is_refused(
    path: tuple[str, ...], value: object, sentence: str, tmp_path: Path
) -> None:
    assert refusal(changed(plain(), path, value), tmp_path) == sentence


def test_every_value_is_checked(tmp_path: Path) -> None:
    """No field of any configuration takes an object without complaint: each field of each class once."""
    tried = set()
    for method in METHODS:
        config, values = tiny_config(method, Path("photos")), plain(method)
        for path in leaves({key: values[key] for key in ("settings", "training")}):
            owner: Any = config
            for name in path[:-1]:
                owner = getattr(owner, name)
            place = next(kind for kind in type(owner).__mro__ if path[-1] in vars(kind).get("__annotations__", {}))
            if (place, path[-1]) not in tried:
                tried.add((place, path[-1]))
                assert refusal(changed(values, path, {"odd": 1}), tmp_path).startswith(".".join(path)), path
    assert len(tried) > 200


def test_a_method_of_ones_own_is_read_where_the_command_has_imported_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file makes nobody import code; but a run that was started by --method module:Class reads its own file."""
    (tmp_path / "own_method_of_test.py").write_text(
        "from unmask.methods.conmim import ConMIM\nclass Own(ConMIM):\n    pass\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    values = changed(plain(), ("method",), "own_method_of_test:Own")
    assert "which is not one of conmim" in refusal(values, tmp_path)
    assert "own_method_of_test" not in sys.modules
    try:
        found = find_method("own_method_of_test:Own")
        (tmp_path / "config.json").write_text(json.dumps(values))
        config = load_config(tmp_path / "config.json")
        assert config.method == "own_method_of_test:Own"
        assert find_method(config.method) is found
        for other in ("own_method_of_test:Other", "own_method_of_test:None", "own_method_of_test:", "os:path"):
            assert "which is not one of" in refusal(changed(values, ("method",), other), tmp_path)
    finally:
        sys.modules.pop("own_method_of_test", None)


def test_what_is_no_run_at_all_is_refused(tmp_path: Path) -> None:
    assert re.search("config.json is not valid JSON: ", refusal('{"format": 1,', tmp_path))
    others: tuple[object, ...] = ([], {}, 5, {"formats": 1})
    for other in others:
        assert refusal(other, tmp_path).endswith("config.json is not a run configuration")
    for written, more in ((2, ": a newer unmask wrote it"), (0, ""), ("1", ""), (None, "")):
        sentence = f"config.json has run configuration format {written!r}, this version reads 1{more}"
        assert refusal({"format": written}, tmp_path).endswith(sentence)
    for key in ("data", "method", "settings", "training"):
        assert refusal(changed(plain(), (key,), ...), tmp_path).endswith(f"config.json lacks '{key}'")
    sentence = refusal(changed(plain(), ("method",), "package.module:Class"), tmp_path)
    assert "names method 'package.module:Class', which is not one of conmim, cmae, mae, simmim" in sentence
    assert refusal(changed(plain(), ("data",), 5), tmp_path).endswith("config.json: data must be text, got 5")
    with pytest.raises(ValueError, match=r"^cannot read configuration .*absent\.json: no such file or directory$"):
        load_config(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"^cannot read configuration .*: is a directory$"):
        load_config(tmp_path)
    (tmp_path / "image.json").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ValueError, match=r"image\.json is not valid JSON"):
        load_config(tmp_path / "image.json")


def test_nothing_in_a_file_is_too_deep_too_large_or_too_long(tmp_path: Path) -> None:
    assert refusal("[" * 100_000, tmp_path).startswith(f"{tmp_path / 'config.json'} is not valid JSON: ")
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    for value in (deep, "x" * 5000, {"key": ["y" * 5000] * 50}, 10**400):
        assert len(refusal(changed(plain(), ("training", "epochs"), value), tmp_path)) < 700
    assert len(refusal(changed(plain(), ("method",), deep), tmp_path)) < 700
    sentence = refusal(changed(plain(), ("training", "epochs"), 10**400), tmp_path)
    assert sentence.startswith("training.epochs: expected a number of usual size, got 1000")


def test_whole_numbers_may_stand_for_numbers() -> None:
    made = structure(dataclasses.asdict(OptimizerConfig()) | {"lr": 1}, OptimizerConfig, "optimizer")
    assert made == replace(OptimizerConfig(), lr=1.0)
    assert isinstance(made.lr, float)
