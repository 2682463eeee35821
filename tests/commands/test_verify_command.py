"""`unmask verify` agrees with the authors' numbers, and says so when it does not."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import unmask.commands.verify
from unmask.cli import main
from unmask.commands.verify import CHECKOUT_CASES
from unmask.interop.authors import AUTHORS
from unmask.interop.golden import find_cases

GOLDEN = Path(__file__).parents[1] / "golden"
KEYS = {"case", "method", "agrees", "loss_error", "grad_error", "norm_error"}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """The two smallest cases, to be altered."""
    for name in ("mae", "simmim"):
        for suffix in (".json", ".safetensors"):
            shutil.copy(GOLDEN / f"{name}{suffix}", tmp_path)
    return tmp_path


def test_what_stands_in_a_case_is_no_markup(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = json.loads((cases / "mae.json").read_text())
    (cases / "mae.json").write_text(json.dumps(case | {"method": "[/red]mae"}))
    (cases / "simmim.json").unlink()
    assert main(["verify", str(cases)]) == 1
    assert "[/red]mae" in capsys.readouterr().out


def verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = main(["verify", str(folder), "--json"])
    out, err = capsys.readouterr()
    assert err == ""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads(out, parse_constant=refuse)
    assert found.keys() == {"cases"}
    return code, found["cases"]


def alter_tensor(folder: Path, name: str, tensor: str, *, plus: float) -> None:
    file = folder / f"{name}.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors[tensor] = tensors[tensor] + plus
    save_file(tensors, file, metadata=metadata)


def test_without_a_folder_the_cases_of_the_checkout_are_verified(
    cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert CHECKOUT_CASES.samefile(GOLDEN)
    assert [case.stem for case in find_cases(CHECKOUT_CASES)] == sorted(path.stem for path in GOLDEN.glob("*.json"))
    # Every one is replayed in tests/interop/test_golden.py; two are enough to see that the command does so.
    monkeypatch.setattr(unmask.commands.verify, "CHECKOUT_CASES", cases)
    assert main(["verify", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["cases"]
    assert [case["case"] for case in found] == ["mae", "simmim"]
    for case in found:
        assert case.keys() >= KEYS
        assert case["agrees"] is True
        assert case["method"] in AUTHORS
        assert 0 <= case["loss_error"] < 1e-9
        assert 0 <= case["grad_error"] < 1e-8
        assert 0 <= case["norm_error"] < 1e-8


def test_an_altered_case_differs(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(cases, capsys)[0] == 0
    alter_tensor(cases, "mae", "losses", plus=1e-6)
    code, (mae, simmim) = verify(cases, capsys)
    assert code == 1
    assert (mae["case"], mae["agrees"]) == ("mae", False)
    assert 1e-9 < mae["loss_error"] < 1e-4
    assert mae["grad_error"] < 1e-8
    assert (simmim["case"], simmim["agrees"]) == ("simmim", True)


def test_a_number_that_is_none_differs_and_is_still_json(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alter_tensor(cases, "mae", "losses", plus=math.nan)
    code, (mae, simmim) = verify(cases, capsys)
    assert code == 1
    assert (mae["agrees"], mae["loss_error"]) == (False, None)
    assert simmim["agrees"] is True


def test_a_case_that_cannot_be_replayed_differs(cases: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cases / "mae.safetensors").write_bytes(b"nothing")
    values = json.loads((cases / "simmim.json").read_text())
    (cases / "simmim.json").write_text(json.dumps({**values, "method": "zzz"}))
    code, (mae, simmim) = verify(cases, capsys)
    assert code == 1
    assert mae["agrees"] is simmim["agrees"] is False
    assert mae["reason"].startswith("unreadable: ")
    assert simmim["reason"] == "unknown method"
    assert mae["loss_error"] is None


def test_the_table_for_people(cases: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    alter_tensor(cases, "simmim", "losses", plus=1e-3)
    assert main(["verify", str(cases)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    header, mae, simmim, *caption = out.splitlines()
    assert header.split() == ["case", "method", "loss", "gradient", "final", "norm", "prediction", "verdict"]
    assert mae.split()[:2] == ["mae", "mae"]
    assert mae.rstrip().endswith("agrees")
    assert simmim.rstrip().endswith("differs")
    assert "losses agree to 1e-09, the rest to 1e-08" in " ".join(caption)
