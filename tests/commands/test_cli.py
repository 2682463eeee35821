"""Help costs nothing and tells all; an interruption is no accident."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from unmask import __version__
from unmask.cli import COMMANDS, main
from unmask.commands.pretrain import Pretrain, resolve
from unmask.data.loader import WorkerDied
from unmask.methods.conmim import ConMIMConfig
from unmask.run_folder import RunFolder

LIGHT = """
import sys
from unmask.cli import main
assert main(sys.argv[1:]) == int(sys.argv[1] == "zzz") * 2
heavy = {"torch", "numpy", "timm", "rich", "tyro", "unmask.config"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"], []])
def test_help_names_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("usage: unmask COMMAND ...")
    for command, meaning in COMMANDS.items():
        assert f"  {command}" in out
        assert meaning in out


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--version", "-V"):
        assert main([option]) == 0
        assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("argument", ["--help", "--version", "zzz"])
def test_nothing_heavy_is_imported_before_a_command_needs_it(argument: str) -> None:
    subprocess.run([sys.executable, "-c", LIGHT, argument], check=True, capture_output=True)


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert help_of(command, capsys).startswith(f"usage: unmask {command} ")


def test_the_help_of_pretrain_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    out = help_of("pretrain", capsys)
    assert "DATA" in out
    options = "method recipe config encoder image-size patch-size epochs batch-size lr device seed workers out"
    more = "checkpoint-every keep-every log-every accumulate precision compile evaluate-every max-bad-share"
    for option in f"{options} {more} method.temperature method.mask.ratio method.encoder.depth".split():
        assert f"--{option} " in out or f"--{option}, " in out, option


def test_the_help_of_pretrain_is_that_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--method", "cmae", "--help"])
    out = capsys.readouterr().out
    assert "--method.max-shift" in out
    assert "--method.export" not in out


class Interrupted(ModuleType):
    """A command during which somebody presses Ctrl-C."""

    def run(self, arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt


def test_an_interruption_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "unmask.commands.methods", Interrupted("unmask.commands.methods"))
    assert main(["methods"]) == 130
    assert capsys.readouterr().err == "unmask: interrupted\n"

    # The seconds in which torch is imported are the likeliest.
    def interrupted_import(name: str) -> ModuleType:
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, "import_module", interrupted_import)
    assert main(["methods"]) == 130


def test_help_goes_quietly_into_a_closed_pipe() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "unmask", "--help"], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_slash_behind_a_folder_names_the_same_run(photo_folder: Path, tmp_path: Path) -> None:
    settings, folder = ConMIMConfig(), RunFolder(tmp_path)
    with_slash, _ = resolve(Pretrain(data=f"{photo_folder}/", settings=settings), None, folder)
    without, _ = resolve(Pretrain(data=str(photo_folder), settings=settings), None, folder)
    assert with_slash == without


def test_a_failure_of_ours_is_one_sentence_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: list[str]) -> int:
        raise WorkerDied("a data worker died")

    monkeypatch.setattr("unmask.commands.verify.run", fail)
    assert main(["verify"]) == 1
    assert capsys.readouterr().err == "unmask: a data worker died\n"
