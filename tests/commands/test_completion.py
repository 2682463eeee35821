"""The shells complete what the commands take: with bash itself, and with zsh and fish where they are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from unmask.cli import COMMANDS, main
from unmask.commands.completion import SCRIPTS, Shell
from unmask.commands.completion.lines import Line, all_lines, knobs_of_methods
from unmask.commands.evaluate import PROTOCOLS
from unmask.methods import METHODS
from unmask.recipes import RECIPES

ASK_BASH = """
source ./script
try() {
    COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
    _unmask
    printf '%s|' "${COMPREPLY[@]}"
    echo
}
while IFS= read -r line; do try "$line"; done
"""
ASK_FISH = """
source ./script
while read -l line
    echo (complete -C "$line" | string replace -r '\\t.*' '' | string join '|')
end
"""
EXPECTED = {
    "unmask pretr": ["pretrain"],
    "unmask evaluate few": ["fewshot"],
    "unmask evaluate knn --knn.": ["--knn.k", "--knn.temperature"],
    "unmask pretrain --precision ": ["auto", "bf16", "fp16", "fp32"],
    "unmask pretrain --method cma": ["cmae"],
    "unmask pretrain --method cmae --method.max-s": ["--method.max-shift"],
    "unmask pretrain --recipe dem": ["demo"],
    "unmask pretrain photos --epochs ": [],
    "unmask pretrain ph": ["photos"],
    "unmask export run --to onn": ["onnx"],
    "unmask show simm": ["simmim"],
    "unmask submit --devices 8 -- pretrain --prec": ["--precision"],
    "unmask bench ": ["data", "step"],
    "unmask bench step --patch": ["--patch-size"],
    "unmask completion ": ["bash", "fish", "zsh"],
    "unmask nothing_such ": [],
}


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return all_lines()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    (desk / "photos").mkdir()
    (desk / "my run.json").touch()
    return desk


def answers(shell: Shell, asking: str, asked: list[str], lines: list[Line], desk: Path) -> dict[str, list[str]]:
    """What a shell offers for the beginnings of command lines."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (desk / "script").write_text(SCRIPTS[shell](lines, knobs_of_methods()))
    (desk / "ask").write_text(asking)
    done = subprocess.run([shell, "ask"], input="\n".join([*asked, ""]), cwd=desk, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) >= len(asked)
    return {line: sorted(filter(None, row.split("|"))) for line, row in zip(asked, said, strict=False)}


def test_bash(lines: list[Line], desk: Path) -> None:
    more = {
        # fish would offer what has these letters anywhere.
        "unmask pretrain --method mae --method.max-s": [],
        "unmask evaluate ": sorted(PROTOCOLS),
        "unmask ": sorted(COMMANDS),
        "unmask pretrain --recipe ": sorted(RECIPES),
        "unmask pretrain --precision=b": ["bf16"],
        # Readline replaces what stands behind the colon.
        "unmask pretrain builtin:e": ["emoji"],
        "unmask report my": ["my run.json"],
    }
    expected = EXPECTED | more
    assert answers("bash", ASK_BASH, list(expected), lines, desk) == expected


def test_fish(lines: list[Line], desk: Path) -> None:
    found = answers("fish", ASK_FISH, list(EXPECTED), lines, desk)
    assert {line: [word.rstrip("/") for word in words] for line, words in found.items()} == EXPECTED


@pytest.mark.parametrize("shell", ["zsh"])
def test_zsh_reads_its_script(shell: Shell, lines: list[Line], desk: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip("zsh is not installed")
    (desk / "_unmask").write_text(SCRIPTS[shell](lines, knobs_of_methods()))
    code = """
compdef() { print -r -- "$@" }
source ./_unmask
at='evaluate' last= method=
_unmask_find ''; print -r -- $found
at='pretrain' last=--precision
_unmask_find ''; print -r -- $found
_unmask_meanings bench; print -rl -- $said
"""
    done = subprocess.run([shell, "-f", "-c", code], cwd=desk, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert said[0] == "_unmask unmask"
    assert said[1].split() == list(PROTOCOLS)
    assert said[2].split() == ["auto", "fp32", "bf16", "fp16"]
    assert [row.partition(":")[0] for row in said[3:]] == ["step", "data"]


def test_every_command_and_every_method_is_there(lines: list[Line]) -> None:
    assert {line.words[0] for line in lines} == set(COMMANDS)
    assert all(line.parts or any("--help" in option.flags for option in line.options) for line in lines)
    pretrain = next(line for line in lines if line.words == ("pretrain",))
    flags = {flag: option for option in pretrain.options for flag in option.flags}
    assert {"--out", "--image-size", "--compile", "--no-compile"} <= set(flags)
    assert flags["--compile"].values is None
    assert flags["--out"].values is not None
    assert flags["--out"].values.files
    assert flags["--epochs"].meaning == "Passes over the data."
    knobs = knobs_of_methods()
    assert set(knobs) == set(METHODS)
    assert {"--method.mask.ratio", "--method.mask.exact", "--method.mask.no-exact"} <= set(knobs["conmim"])


def test_knobs_of_a_method_are_options_that_the_command_knows() -> None:
    for option in ("--method.mask.no-exact", "--method.projector.no-out-bias"):
        assert option in knobs_of_methods()["conmim"]
        # The line is read, and the data is what is wrong with it.
        assert main(["pretrain", "/not there", option]) == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "unmask completion needs {bash,zsh,fish}, before the options; see unmask completion --help"),
        (["tcsh"], "cannot be 'tcsh'; choose one of bash, zsh, fish; see unmask completion --help"),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1
