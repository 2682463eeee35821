"""What a long evaluation has found is taken up again where the settings are the same, whatever cut it short."""

from __future__ import annotations

from pathlib import Path

import pytest

from unmask.evaluation.kept import KeptParts

SETTINGS = {"weights": "abc", "radii": (0.0, 0.5), "seed": 0}


def test_results_come_back_in_their_order(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path / "new" / "parts.jsonl", SETTINGS)
    assert kept.read() == []
    kept.add({"index": 3, "share": 0.1})
    kept.add({"index": 1, "share": None})
    assert kept.read() == [{"index": 3, "share": 0.1}, {"index": 1, "share": None}]
    assert KeptParts(kept.path, dict(SETTINGS)).read() == kept.read()


def test_results_of_other_settings_stay_apart(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    one, other = KeptParts(path, SETTINGS), KeptParts(path, SETTINGS | {"seed": 1})
    one.add({"index": 0})
    other.add({"index": 1})
    one.add({"index": 2})
    assert one.read() == [{"index": 0}, {"index": 2}]
    assert other.read() == [{"index": 1}]
    assert KeptParts(path, SETTINGS | {"more": None}).read() == []


def test_a_line_that_was_cut_short_costs_nothing_but_itself(tmp_path: Path) -> None:
    kept = KeptParts(tmp_path / "parts.jsonl", SETTINGS)
    for index in range(3):
        kept.add({"name": "é", "index": index})
    whole = kept.path.read_bytes()
    last = whole.rindex(b'{"settings"')
    # Everywhere: within a character, too, and just before the end of the line.
    for end in range(last, len(whole)):
        kept.path.write_bytes(whole[:end])
        kept.add({"name": "é", "index": 9})
        expected = [0, 1, 2, 9] if end == len(whole) - 1 else [0, 1, 9]
        assert [result["index"] for result in kept.read()] == expected


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    path.write_text('[]\nnull\n\n{"settings": 3}\n{}\n')
    assert KeptParts(path, SETTINGS).read() == []


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    kept = KeptParts(tmp_path / "folder", SETTINGS)
    with pytest.raises(ValueError, match=r"^cannot read .*/folder \(is a directory\)$"):
        kept.read()
    with pytest.raises(ValueError, match=r"^cannot write .*/folder \(is a directory\)$"):
        kept.add({})
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"^cannot write .*/parts.jsonl \((not a directory|file exists)\)$"):
        KeptParts(tmp_path / "file" / "parts.jsonl", SETTINGS).add({})
