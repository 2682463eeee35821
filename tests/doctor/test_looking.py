"""The facts are those of this machine, and looking leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from unmask.data.sources import open_source
from unmask.doctor.libraries import essential_modules, extra_modules, import_apart, look_at_libraries
from unmask.doctor.machine import container_share, look_at_machine
from unmask.doctor.speed import look_at_decoders, measure_decoding, measure_disk


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    machine = look_at_machine()
    assert 1 <= machine.processors <= machine.all_processors
    assert 0 < machine.available <= machine.memory
    assert machine.variables["OMP_WAIT_POLICY"] == "passive"
    assert machine.open_files > 0


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "odd\n"}, None),
        ({}, None),
    ],
)
def test_the_time_that_a_container_may_take(files: dict[str, str], share: float | None, tmp_path: Path) -> None:
    for name, text in files.items():
        file = tmp_path / "sys" / "fs" / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert container_share(tmp_path) == share


def test_a_folder_that_is_not_writable_keeps_no_compiled_loops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "new"))
    assert look_at_machine().compiled is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", "/proc/new")
    assert look_at_machine().compiled == "/proc/new is not writable"


def test_the_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    disk = measure_disk(tmp_path / "to be" / "made")
    assert disk.folder == str(tmp_path)
    assert disk.trouble is None
    assert disk.write is not None
    assert disk.read is not None
    assert disk.sync is not None
    assert min(disk.write, disk.read, disk.sync, disk.free) > 0
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_nothing() -> None:
    disk = measure_disk(Path("/proc/1"))
    assert disk.write is None
    assert disk.trouble


def test_decoding_of_made_and_of_own_images(tmp_path: Path) -> None:
    assert measure_decoding(None, 3, 0.01).images_per_second > 0
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(tmp_path / f"{number}.png")
    own = measure_decoding(open_source(tmp_path), 3, 0.01)
    assert own.data == str(tmp_path)
    assert own.bad_files == 0
    assert look_at_decoders().simplejpeg == "works"


def test_what_is_imported_apart_may_do_what_it_likes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = {
        "well": "print('hello')",
        "not_there": "import nothing_such",
        "ends": "import os; os._exit(3)",
        "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "leaves": "raise SystemExit",
        "last": "",
    }
    for name, code in codes.items():
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    told = dict(zip(codes, import_apart(list(codes)), strict=True))
    assert told == {
        "well": None,
        "not_there": "No module named 'nothing_such'",
        "ends": "its import ends the process",
        "crashes": "ended by SIGILL",
        "leaves": "its import ends the process",
        "last": None,
    }


def test_libraries_and_their_versions() -> None:
    modules = {name: module for name, module in essential_modules().items() if name in ("pillow", "simplejpeg")}
    found = look_at_libraries(modules | {"no-such-library": "no_such_library"})
    assert [library.usable for library in found] == [True, True, False]
    assert found[0].wanted is not None
    assert {"torch", "tyro", "numpy"} <= set(essential_modules())
    assert {"lmdb", "imagecorruptions-imaug", "aiohttp"} <= set(extra_modules())
