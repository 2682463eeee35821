"""`unmask doctor` as people start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unmask.cli import main
from unmask.commands.doctor import line
from unmask.doctor.findings import Finding
from unmask.extras import EXTRAS


def doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "unmask", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def test_a_whole_installation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--out", str(tmp_path / "runs"), "--data", "builtin:emoji"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["broken"] is False
    found = {finding["what"]: finding for finding in record["findings"]}
    assert {"python", "unmask", "torch", "processors", "memory", "device", "decoders", "decoding", "disk"} <= set(found)
    assert {f"[{extra}]" for extra in EXTRAS} <= set(found)
    assert "builtin:emoji" in found["decoding"]["text"]
    assert all(bool(finding["advice"]) == (finding["state"] != "good") for finding in record["findings"])
    assert list(tmp_path.iterdir()) == []


def test_a_broken_library_is_exit_code_1_and_the_rest_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch_cpu.so: cannot open shared object file')\n")
    for extra in ("transformers", "onnxscript", "imagecorruptions", "datasets", "sqlalchemy", "wandb", "pydicom"):
        (tmp_path / f"{extra}.py").write_text("raise ImportError('made for another NumPy')\n")
    done = doctor(PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    (wrong,) = [row for row in done.stdout.splitlines() if row.startswith("x torch ")]
    assert "cannot be imported (libtorch_cpu.so: cannot open shared object file); pip install 'torch>=" in wrong
    (worse,) = [row for row in done.stdout.splitlines() if row.startswith("! [huggingface] ")]
    assert worse.endswith("cannot be imported (made for another NumPy); pip install 'unmask[huggingface]'")
    assert " disk " not in done.stdout


def test_lines() -> None:
    assert line(Finding(what="disk", state="good", text="fast")) == f"  {'disk':<28} fast"
    assert line(Finding(what="disk", state="bad", text="slow", advice="buy")) == f"! {'disk':<28} slow; buy"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["photos"], "unmask doctor does not know what to do with 'photos'"),
        (["--dat", "x"], "unknown option --dat; did you mean --data?"),
    ],
)
def test_bad_input(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"unmask: {sentence}\n")
