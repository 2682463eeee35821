"""Each extra is in the table with all of its libraries, and what is wrong with one is told in a sentence."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import unmask
from unmask.extras import EXTRAS, install_command, require, trouble

ROOT = Path(unmask.__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
NO_FEATURES = ("dev", "examples")
"""For those who work on this package, and for its examples: no code of the package imports them."""
STATED = {
    extra: [Requirement(line) for line in lines]
    for extra, lines in PROJECT["optional-dependencies"].items()
    if extra not in NO_FEATURES
}


def test_the_table_has_the_extras_of_the_project_and_no_other() -> None:
    assert set(EXTRAS) == set(STATED)
    assert all(extra.use and extra.libraries for extra in EXTRAS.values())


@pytest.mark.parametrize("extra", STATED)
def test_every_library_of_an_extra_has_its_module_in_the_table(extra: str) -> None:
    named = {requirement.name for requirement in STATED[extra]}
    assert named <= set(EXTRAS[extra].libraries.values())
    # What is in the table beyond them comes with one of them.
    for distribution in set(EXTRAS[extra].libraries.values()) - named:
        brought = [
            Requirement(line).name
            for requirement in STATED[extra]
            if requirement.extras
            for line in importlib.metadata.requires(requirement.name) or []
        ]
        assert distribution in brought


@pytest.mark.parametrize("extra", STATED)
def test_the_modules_are_those_of_their_distributions(extra: str) -> None:
    for module, distribution in EXTRAS[extra].libraries.items():
        try:
            files = importlib.metadata.files(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue  # one that tests do without
        assert any(file.parts[0].partition(".")[0] == module for file in files or []), module


def test_a_library_that_is_there_is_given() -> None:
    assert require("lmdb", "LMDB databases need").__name__ == "lmdb"
    assert require("text", "captions need", "tokenizers").__name__ == "tokenizers"


def package(folder: Path, name: str, code: str, *, version: str = "99.0") -> None:
    """A library that is installed in a folder of the path."""
    (folder / f"{name}.py").write_text(code)
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def told(folder: Path, extra: str) -> str:
    """What `require` says in a process that finds the libraries of `folder` before all others."""
    code = f"""
import sys
sys.path.insert(0, {str(folder)!r})
from unmask.extras import require
try:
    require({extra!r}, "databases need", otherwise=", or do without")
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(
        ValueError, match=re.escape("databases need the library lmdb, which is missing: pip install 'unmask[lmdb]'")
    ):
        require("lmdb", "databases need")


def test_a_library_that_misses_another_names_that(tmp_path: Path) -> None:
    package(tmp_path, "lmdb", "import something_it_needs\n")
    assert told(tmp_path, "lmdb") == (
        "databases need the library something_it_needs, which is missing: pip install 'unmask[lmdb]', or do without"
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("raise OSError('libGL.so.1: cannot open shared object file\\nand more')", "libGL.so.1: cannot open shared ob"),
        ("from os import nothing_such", "cannot import name 'nothing_such' from 'os'"),
        ("import os.nothing_such", "No module named 'os.nothing_such'; 'os' is not a package"),
        ("raise AttributeError", "AttributeError"),
    ],
)
def test_a_library_that_is_there_but_broken_says_why(tmp_path: Path, code: str, cause: str) -> None:
    package(tmp_path, "lmdb", code)
    said = told(tmp_path, "lmdb")
    assert said.startswith(f"databases need the library lmdb, which is installed but cannot be loaded ({cause}")
    assert said.endswith("): pip install 'unmask[lmdb]', or do without")
    assert "\n" not in said


@pytest.mark.parametrize("code", ["", "from os import nothing_such"])
def test_a_library_that_is_too_old_says_which_it_must_be(tmp_path: Path, code: str) -> None:
    package(tmp_path, "lmdb", code, version="0.9.2")
    wanted = next(requirement.specifier for requirement in STATED["lmdb"])
    assert told(tmp_path, "lmdb") == (
        f"databases need the library lmdb{wanted}, and 0.9.2 is installed: pip install 'unmask[lmdb]', or do without"
    )


def test_newer_ones_and_previews_will_do(tmp_path: Path) -> None:
    package(tmp_path, "lmdb", "", version="99.0rc1")
    assert told(tmp_path, "lmdb") == ""


def test_what_is_wrong_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trouble("lmdb", "lmdb") is None
    monkeypatch.setitem(sys.modules, "lmdb", None)
    assert trouble("lmdb", "lmdb") == "lmdb, which is missing"
    assert install_command("lmdb") == "pip install 'unmask[lmdb]'"
