"""What `import unmask` offers, and that the suite runs with shapes and types enforced."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import unmask
from unmask.models.heads import MLPHeadConfig
from unmask.objectives.contrastive import patch_infonce
from unmask.schedule import Schedule


@pytest.mark.parametrize("name", unmask.__all__)
def test_everything_offered_can_be_imported(name: str) -> None:
    found = getattr(unmask, name)
    assert found is not None
    if isinstance(found, type):
        home = importlib.import_module(found.__module__)
        assert vars(home)[name] is found


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'unmask' has no attribute 'ConMIN'$"):
        _ = unmask.ConMIN
    with pytest.raises(ImportError):
        exec("from unmask import ConMIN", {})


def test_nothing_is_offered_twice() -> None:
    assert len(set(unmask.__all__)) == len(unmask.__all__)


def test_what_type_checkers_see_is_what_there_is() -> None:
    """The imports under TYPE_CHECKING name the same things as the lazy table."""
    source = importlib.import_module("unmask").__loader__.get_source("unmask")  # type: ignore[union-attr]
    lazy = vars(unmask)["_HOMES"]
    seen = {}
    for line in source.split("if TYPE_CHECKING:")[1].splitlines():
        words = line.split()
        if words[:1] == ["from"] and "import" in words:
            assert words[3] == words[5], line
            seen[words[3]] = words[1]
    assert seen == lazy


def test_the_page_of_what_is_offered_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change of a signature, a field or a default shows there, to be noticed by who makes it and who reads it."""
    root = Path(__file__).parents[1]
    monkeypatch.syspath_prepend(str(root / "scripts"))
    page = importlib.import_module("make_api").page()
    assert page == (root / "docs" / "api.md").read_text(encoding="utf8"), "run: python scripts/make_api.py"


def test_the_version_is_the_packages() -> None:
    done = subprocess.run([sys.executable, "-m", "unmask", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == unmask.__version__


def test_shapes_are_enforced_in_this_suite() -> None:
    features, mask_BN = torch.zeros(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool)
    with pytest.raises(TypeCheckError):
        patch_infonce(features, features[:, :4], mask_BN, 0.1)
    with pytest.raises(TypeCheckError):
        patch_infonce(features, features, mask_BN.float(), 0.1)


def test_types_of_settings_are_enforced_in_this_suite_and_int_stands_for_float() -> None:
    with pytest.raises(TypeCheckError):
        MLPHeadConfig(hidden="wide")  # type: ignore[arg-type]
    assert Schedule(start=1).at(0) == 1
