"""Facts to plain words: what is good says so, and all else says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unmask.doctor.findings import (
    Finding,
    about_decoders,
    about_decoding,
    about_disk,
    about_essential,
    about_extras,
    about_machine,
)
from unmask.doctor.libraries import Library, extra_modules
from unmask.doctor.machine import Device, Machine
from unmask.doctor.speed import Decoders, Decoding, Disk

GB = 10**9
HERE = Library(name="torch", version="2.15.0", wanted=">=2.15", too_old=False, trouble=None)
GPU = Device(name="cuda:0 H100", kind="cuda", memory=80 * GB, free=79 * GB, bf16=True)
MACHINE = Machine(
    system="Linux x86_64",
    processors=16,
    all_processors=32,
    share=None,
    memory=64 * GB,
    available=60 * GB,
    threads=16,
    variables={},
    devices=(),
    cuda=None,
    nvidia=False,
    shared=8 * GB,
    open_files=4096,
    open_files_possible=65536,
    compiled=None,
)
DISK = Disk(folder="runs", free=100 * GB, write=4e8, read=9e8, sync=0.003)
DECODING = Decoding(data="made", images_per_second=300.0, seconds_to_read=0.0001, bad_files=0)


def of(machine: Machine, what: str) -> Finding:
    (finding,) = [finding for finding in about_machine(machine) if finding.what == what]
    return finding


def test_a_good_machine() -> None:
    found = [*about_machine(MACHINE), *about_machine(replace(MACHINE, devices=(GPU,), cuda="13.0", nvidia=True))]
    found += [about_disk(DISK), about_decoding(DECODING, MACHINE)]
    assert {finding.state for finding in found} == {"good"}
    assert all(finding.advice is None for finding in found)
    assert found[0].text == "16 of 32 for this process"
    assert about_disk(DISK).text == "100.0 GB free in runs, writes 400 MB/s, reads 900 MB/s, safe after 3.0 ms"
    assert "300 images/s a process, about 4800 on all processors" in about_decoding(DECODING, MACHINE).text
    assert of(replace(MACHINE, devices=(GPU,)), "device").text == "cuda:0 H100, 79.0 GB of 80.0 GB free, bf16"


@pytest.mark.parametrize(
    ("change", "what", "text", "advice"),
    [
        ({"share": 2.5}, "processors", "take the time of 2.5 only", "give --workers 2 and set OMP_NUM_THREADS=2"),
        ({"threads": 64}, "threads", "64 of torch", "set OMP_NUM_THREADS=16"),
        (
            {"threads": 1, "variables": {"OMP_NUM_THREADS": "1"}},
            "threads",
            "1 of torch (OMP_NUM_THREADS=1)",
            "or unset it",
        ),
        ({"variables": {"OMP_WAIT_POLICY": "ACTIVE"}}, "threads", "OMP_WAIT_POLICY=ACTIVE", "unset OMP_WAIT_POLICY"),
        ({"available": GB}, "memory", "1.0 GB of 64.0 GB are free", "--batch-size"),
        ({"nvidia": True}, "device", "torch is built without CUDA", "pytorch.org"),
        ({"nvidia": True, "cuda": "13.0"}, "device", "torch (built for CUDA 13.0) cannot use it", "the GPU's driver"),
        ({"devices": (replace(GPU, trouble="no kernel image"),)}, "device", "cannot compute: no kernel", "nvidia-smi"),
        ({"devices": (replace(GPU, free=5 * GB),)}, "device", "5.0 GB of 80.0 GB free", "another process"),
        ({"shared": 64 * 10**6}, "shared memory", "64 MB free in /dev/shm", "--shm-size=8g"),
        ({"open_files": 256}, "open files", "256 at a time", "ulimit -n 65536"),
        ({"compiled": "x is not writable"}, "compiled loops", "by every process: x is not", "NUMBA_CACHE_DIR"),
    ],
)
def test_what_is_bad_says_what_to_do(change: dict[str, object], what: str, text: str, advice: str) -> None:
    found = of(replace(MACHINE, **change), what)  # type: ignore[arg-type]
    assert found.state == "bad"
    assert text in found.text
    assert found.advice is not None
    assert advice in found.advice


def test_threads_of_one_machine_with_a_gpu_may_be_few() -> None:
    assert of(replace(MACHINE, threads=1, devices=(GPU,)), "threads").state == "good"


def test_a_gpu_without_bf16() -> None:
    old = replace(GPU, bf16=False)
    assert of(replace(MACHINE, devices=(old,)), "device").text.endswith("no bf16: --precision auto takes fp16")


def test_no_shared_memory_where_the_system_has_none() -> None:
    assert "shared memory" not in {finding.what for finding in about_machine(replace(MACHINE, shared=None))}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": None}, "is not installed"),
        ({"version": "1.0", "too_old": True}, "1.0 is not >=2.15"),
        ({"trouble": "libcudart.so: cannot open"}, "2.15.0 cannot be imported (libcudart.so: cannot open)"),
    ],
)
def test_nothing_goes_without_an_essential_library(change: dict[str, object], text: str) -> None:
    assert about_essential(HERE) == Finding(what="torch", state="good", text="2.15.0")
    broken = about_essential(replace(HERE, **change))  # type: ignore[arg-type]
    assert broken == Finding(what="torch", state="broken", text=text, advice="pip install 'torch>=2.15'")


def test_an_extra_is_missing_or_broken_by_its_worst_library() -> None:
    all_here = [replace(HERE, name=name) for name in extra_modules()]
    assert {finding.state for finding in about_extras(all_here)} == {"good"}
    for change, state in (({"version": None}, "missing"), ({"trouble": "no"}, "bad"), ({"too_old": True}, "bad")):
        some = [replace(one, **change) if one.name == "onnxruntime" else one for one in all_here]  # type: ignore[arg-type]
        worse = [finding for finding in about_extras(some) if finding.state != "good"]
        assert [(finding.what, finding.state) for finding in worse] == [("[onnx]", state)]
        assert worse[0].advice == "pip install 'unmask[onnx]'"
        assert "onnxruntime" in worse[0].text


def test_disks() -> None:
    unwritable = replace(DISK, write=None, trouble="nothing can be written (permission denied)")
    assert about_disk(unwritable).text == "100.0 GB free in runs; nothing can be written (permission denied)"
    assert "--out" in str(about_disk(unwritable).advice)
    assert "make room" in str(about_disk(replace(DISK, free=GB)).advice)
    assert "--checkpoint-every" in str(about_disk(replace(DISK, sync=0.5)).advice)


def test_decoding() -> None:
    assert "unmask data" in str(about_decoding(replace(DECODING, bad_files=3), MACHINE).advice)
    assert "unmask shard" in str(about_decoding(replace(DECODING, seconds_to_read=0.003), MACHINE).advice)


def test_decoders() -> None:
    whole = Decoders(simplejpeg="works", pillow={"JPEG": "3.0"}, missing=())
    assert about_decoders(whole) == Finding(
        what="decoders", state="good", text="simplejpeg works, Pillow with JPEG 3.0"
    )
    assert about_decoders(replace(whole, missing=("WebP",))).state == "bad"
    assert about_decoders(replace(whole, simplejpeg="decodes wrongly")).state == "broken"
