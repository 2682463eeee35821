"""Methods by name: ours, near misses, and those of other people's modules."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tiny_runs import tiny_settings
from unmask.methods import METHODS, find_method, name_of


def test_every_known_name_is_found(name: str) -> None:
    assert find_method(name) is METHODS[name]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("conmin", r"^unknown method 'conmin'; did you mean 'conmim'\?$"),
        ("CMAE", r"^unknown method 'CMAE'; did you mean 'cmae'\?$"),
        ("xyz", r"^unknown method 'xyz'; known are conmim, cmae, mae, simmim"),
        ("", r"^unknown method ''; known are conmim, "),
        ("no_such_package:Class", r"^cannot import 'no_such_package' for method 'no_such_package:Class': "),
        (":Class", r"^cannot import '' for method ':Class': "),
        (".relative:Class", r"^cannot import '\.relative' for method '\.relative:Class': "),
        ("json:JSONDecoder", r"^'json:JSONDecoder' is not a class derived from unmask\.Method$"),
        ("json:dumps", r"^'json:dumps' is not a class derived from unmask\.Method$"),
        ("json:nothing", r"^'json:nothing' is not a class derived from unmask\.Method$"),
        ("json:", r"^'json:' is not a class derived from unmask\.Method$"),
    ],
)
def test_names_that_are_no_method_are_refused(wrong: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_method(wrong)


def test_a_method_of_somebody_elses_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_methods.py").write_text("from unmask import MAE\n\n\nclass Mine(MAE):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        found = find_method("their_methods:Mine")
        assert found.__name__ == "Mine"
        assert issubclass(found, METHODS["mae"])
    finally:
        sys.modules.pop("their_methods", None)


def test_the_name_of_a_method_finds_its_class() -> None:
    method = METHODS["simmim"](tiny_settings("simmim"))  # type: ignore[arg-type]
    assert name_of(method) == "simmim"

    class Own(METHODS["simmim"]):  # type: ignore[misc]
        pass

    assert name_of(Own(tiny_settings("simmim"))).endswith(":test_the_name_of_a_method_finds_its_class.<locals>.Own")
