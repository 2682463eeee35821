"""A step holds the same samples whatever the workers, ranks and restarts, and no bad file goes unnoticed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from spoilt_files import spoil_share
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.batch import Batch, CropConfig
from unmask.data.loader import CropLoader, EvalLoader, WorkerDied, step_seed
from unmask.data.sources import ArraySource, Source, open_source

CROPS = (CropConfig(height=16, width=12, count=2), CropConfig(height=8, width=8))


def numbered(count: int) -> Source:
    """Images whose every pixel is their position."""
    images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 9, 9, 1))
    return ArraySource("numbered", images)


def crop_loader(
    source: Source,
    *,
    batch_size: int = 4,
    total_steps: int = 7,
    start_step: int = 0,
    seed: int = 5,
    workers: int = 0,
    channels: int = 3,
    parts: int = 1,
    mine: range | None = None,
    max_bad_share: float = 0.1,
) -> CropLoader:
    return CropLoader(
        source,
        CROPS,
        batch_size=batch_size,
        total_steps=total_steps,
        start_step=start_step,
        seed=seed,
        workers=workers,
        channels=channels,
        parts=parts,
        mine=mine,
        max_bad_share=max_bad_share,
    )


def assert_equal(one: list[Batch], other: list[Batch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.seed == b.seed
        assert torch.equal(a.indices, b.indices)
        assert all(torch.equal(x, y) for x, y in zip(a.crops, b.crops, strict=True))
        assert all(torch.equal(x, y) for x, y in zip(a.boxes, b.boxes, strict=True))


def test_batches_have_the_shapes_asked_for(photo_folder: Path) -> None:
    loader = crop_loader(open_source(photo_folder))
    batches = list(loader)
    assert len(loader) == len(batches) == 7
    assert loader.steps_per_epoch == 3
    for batch in batches:
        assert [c.shape for c in batch.crops] == [(4, 2, 3, 16, 12), (4, 1, 3, 8, 8)]
        assert [c.dtype for c in batch.crops] == [torch.uint8, torch.uint8]
        assert [b.shape for b in batch.boxes] == [(4, 2, 6), (4, 1, 6)]
        assert batch.indices.dtype == torch.int64
    assert len({batch.seed for batch in batches}) == 7
    assert loader.bad_files == {}


def test_every_epoch_holds_each_image_once_in_a_new_order() -> None:
    batches = list(crop_loader(numbered(12), total_steps=9, channels=1))
    epochs = [torch.cat([b.indices for b in batches[i : i + 3]]).tolist() for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    for batch in batches:
        assert (batch.crops[0].flatten(1) == batch.indices[:, None]).all()


def test_the_last_images_of_an_epoch_that_fill_no_batch_are_left_out() -> None:
    loader = crop_loader(numbered(11), total_steps=4, channels=1)
    assert loader.steps_per_epoch == 2
    batches = list(loader)
    assert len({i for b in batches[:2] for i in b.indices.tolist()}) == 8
    assert len({i for b in batches[2:] for i in b.indices.tolist()}) == 8


def test_workers_and_restarts_change_nothing(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    expected = list(crop_loader(source))
    assert_equal(list(crop_loader(source, workers=2)), expected)
    assert_equal(list(crop_loader(source, workers=1, start_step=4)), expected[4:])
    assert list(crop_loader(source, start_step=7)) == []


def test_another_seed_gives_other_crops_and_orders(photo_folder: Path) -> None:
    one, other = (list(crop_loader(open_source(photo_folder), seed=seed)) for seed in (5, 6))
    assert any(not torch.equal(a.indices, b.indices) for a, b in zip(one, other, strict=True))
    assert all(a.seed != b.seed for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("parts", "ranks"), [(2, 2), (3, 3), (6, 6), (6, 1), (6, 2), (6, 3)])
def test_ranks_share_the_parts_of_a_batch(photo_folder: Path, parts: int, ranks: int) -> None:
    source = open_source(photo_folder)
    alone = list(crop_loader(source, batch_size=6))
    share = parts // ranks
    loaders = [
        crop_loader(source, batch_size=6 // parts, parts=parts, mine=range(rank * share, (rank + 1) * share))
        for rank in range(ranks)
    ]
    assert all(len(loader) == 7 * share for loader in loaders)
    batches = [list(loader) for loader in loaders]
    for step, whole in enumerate(alone):
        found = [part for rank in batches for part in rank[step * share : (step + 1) * share]]
        assert torch.equal(torch.cat([part.indices for part in found]), whole.indices)
        for group in range(len(CROPS)):
            assert torch.equal(torch.cat([part.crops[group] for part in found]), whole.crops[group])
        assert [part.seed for part in found] == [step_seed(5, step, part) for part in range(parts)]


def test_parts_of_a_batch_never_reach_into_the_next_epoch() -> None:
    # 7 images make one step of 2 parts of 3 an epoch: the seventh is left out, as it is of one part of 6.
    loader = crop_loader(numbered(7), batch_size=3, parts=2, total_steps=4)
    seen = [batch.indices.tolist() for batch in loader]
    assert loader.steps_per_epoch == 1
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert len({*first, *second}) == 6


def test_step_seeds_differ_and_fit_a_generator() -> None:
    seeds = {step_seed(seed, step, part) for seed in range(3) for step in range(50) for part in range(3)}
    assert len(seeds) == 450
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_is_replaced_and_reported(photo_folder: Path, workers: int) -> None:
    before = list(crop_loader(open_source(photo_folder)))
    bad = photo_folder / "cold" / "00.png"
    bad.write_bytes(b"")
    loader = crop_loader(open_source(photo_folder), workers=workers)
    batches = list(loader)
    assert loader.bad_files == {str(bad): "the file is empty"}
    assert all(len(batch.indices) == 4 and 0 not in batch.indices for batch in batches)
    # What else is in the batch stays as it was.
    for a, b in zip(before, batches, strict=True):
        same = a.indices != 0
        assert torch.equal(a.crops[0][same], b.crops[0][same])
    assert_equal(list(crop_loader(open_source(photo_folder))), batches)


def test_a_file_that_vanished_is_a_bad_file(photo_folder: Path) -> None:
    source = open_source(photo_folder)
    (photo_folder / "warm" / "11.jpg").unlink()
    loader = crop_loader(source)
    assert len(list(loader)) == 7
    assert loader.bad_files == {str(photo_folder / "warm" / "11.jpg"): "No such file or directory"}


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_files_end_the_run(photo_folder: Path, workers: int) -> None:
    for name in ("00.png", "02.jpg", "04.png"):
        (photo_folder / "cold" / name).write_text("no image")
    loader = crop_loader(open_source(photo_folder), workers=workers)
    sentence = r"^3 of the 12 files read so far cannot be used \(at most 10% may be bad\), for example .*: it is"
    with pytest.raises(TooManyBadFiles, match=sentence):
        list(loader)
    assert len(list(crop_loader(open_source(photo_folder), workers=workers, max_bad_share=0.25))) == 7


def test_few_files_seen_are_not_judged() -> None:
    images: list[NDArray[np.uint8]] = [np.zeros((4, 4, 3), np.uint8)] * 60
    order = list(crop_loader(ArraySource("some", images), batch_size=5, total_steps=12))
    for index in order[0].indices.tolist()[:2]:
        images[index] = np.zeros((4, 4, 2), np.uint8)
    loader = crop_loader(ArraySource("some", images), batch_size=5, total_steps=12)
    assert len(list(loader)) == 12
    assert len(loader.bad_files) == 2


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_nothing_but_bad_files_ends_the_run(photo_folder: Path, share: float) -> None:
    for file in photo_folder.rglob("*.*"):
        file.write_text("no image")
    with pytest.raises(TooManyBadFiles, match="it is not an image of a known format"):
        list(crop_loader(open_source(photo_folder), max_bad_share=share))


def tiny_files(folder: Path, count: int = 100) -> list[Path]:
    """PNG files; every tenth is a JPEG in truth, which is no reason to leave it out."""
    folder.mkdir()
    files = []
    for number in range(count):
        files.append(folder / f"{number:03d}.png")
        Image.new("RGB", (8, 8), (number, 0, 77)).save(files[-1], "JPEG" if number % 10 == 3 else "PNG")
    return files


@pytest.mark.parametrize(
    ("share", "workers"), [(0.01, 0), (0.1, 0), (0.5, 0), (0.5, 1), (0.9, 0), (0.99, 0), (1.0, 0), (1.0, 1)]
)
def test_any_share_of_bad_files_is_counted_and_ends_well(tmp_path: Path, share: float, workers: int) -> None:
    """Cut short, empty, wrong bytes, mislabelled, bombs: replaced and listed as long as there is a good one."""
    bad = {str(file) for file in spoil_share(tiny_files(tmp_path / "data"), share)}

    def epoch(limit: float) -> tuple[CropLoader, list[Batch], bool]:
        source = open_source(tmp_path / "data")
        loader = crop_loader(source, batch_size=10, total_steps=10, workers=workers, max_bad_share=limit)
        batches: list[Batch] = []
        try:
            batches.extend(loader)
        except TooManyBadFiles:
            return loader, batches, True
        return loader, batches, False

    patient, batches, stopped = epoch(1.0)
    assert all(len(batch.indices) == 10 for batch in batches)
    used = {f"{tmp_path}/data/{index:03d}.png" for batch in batches for index in batch.indices.tolist()}
    assert not used & bad
    if stopped:
        # An image without a good one among 32 that could stand in for it.
        assert share >= 0.9
        assert patient.bad_files.keys() <= bad
    else:
        assert share < 1
        assert patient.bad_files.keys() == bad
        assert len(batches) == 10
    assert not [reason for reason in patient.bad_files.values() if len(reason) > 200 or "\n" in reason]
    strict, _, stopped = epoch(share / 2)
    assert stopped
    assert strict.bad_files
    assert strict.bad_files.keys() <= bad


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match="a batch of 8 images is larger than numbered, which has 7: choose a smaller"):
        crop_loader(numbered(7), parts=2)
    with pytest.raises(ValueError, match="the batch size must be at least 1, not 0"):
        crop_loader(numbered(7), batch_size=0)


class Deadly(Source):
    """A source whose reader dies, as one does that the system kills for its memory."""

    name = "deadly"
    labels = None
    classes = None

    def __len__(self) -> int:
        return 8

    def path(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> bytes:
        os.kill(os.getpid(), signal.SIGKILL)
        return b""


def test_a_dead_worker_is_explained() -> None:
    with pytest.raises(RuntimeError, match=r"a data worker died, most likely because memory .* ran out: use fewer"):
        list(crop_loader(Deadly(), workers=1))
    with pytest.raises(RuntimeError, match="a data worker died"):
        list(EvalLoader(Deadly(), height=8, width=8, batch_size=2, workers=1))


def test_a_worker_that_dies_with_batches_in_hand_is_explained() -> None:
    """What it has made is still to be fetched from it, which fails in ways of its own; nothing else is interrupted."""
    batches = iter(crop_loader(numbered(40), total_steps=40, workers=1, channels=1))
    next(batches)
    (worker,) = multiprocessing.active_children()
    time.sleep(0.2)  # some batches are made and wait
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    # Whatever the run does meanwhile, a checkpoint perhaps, it does to the end.
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        pass
    with pytest.raises(WorkerDied, match=r"^a data worker died, most likely because memory .* use fewer workers"):
        list(batches)


SCRIPT = """
import signal, sys
from unmask.data.batch import CropConfig
from unmask.data.loader import CropLoader
from unmask.data.sources import open_source

asked = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda *_: asked.append(1))
crops = (CropConfig(height=8, width=8),)
loader = CropLoader(open_source(sys.argv[1]), crops, batch_size=4, total_steps=40, seed=0, workers=2)
batches = iter(loader)
next(batches)
next(batches)
print("ready", flush=True)
sys.stdin.readline()
rest = sum(1 for _ in batches) if sys.argv[2] == "finish" else len([next(batches) for _ in range(5)])
print(len(asked) > 0, rest)
"""


@pytest.mark.parametrize(("end", "rest"), [("finish", 38), ("leave", 5)])
def test_workers_outlive_signals_and_leave_with_the_main_process(photo_folder: Path, end: str, rest: int) -> None:
    command = [sys.executable, "-c", SCRIPT, str(photo_folder), end]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, text=True, start_new_session=True, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.killpg(process.pid, number)
        output, errors = process.communicate("go on\n", timeout=60)
    assert (process.returncode, output.split(), errors) == (0, ["True", str(rest)], "")


def evaluation(source: Source, workers: int = 0) -> tuple[EvalLoader, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    loader = EvalLoader(source, height=20, width=24, channels=3, batch_size=5, workers=workers)
    return loader, iter(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_everything_in_order(photo_folder: Path, workers: int) -> None:
    loader, batches = evaluation(open_source(photo_folder), workers)
    found = list(batches)
    assert torch.cat([indices for _, indices in found]).tolist() == list(range(12))
    assert [images.shape for images, _ in found] == [(5, 3, 20, 24), (5, 3, 20, 24), (2, 3, 20, 24)]
    assert all(images.dtype == torch.uint8 and images.is_contiguous() for images, _ in found)
    assert loader.bad_files == {}


def test_evaluation_leaves_bad_files_out(photo_folder: Path) -> None:
    for file in (photo_folder / "cold").iterdir():
        file.write_bytes(b"")
    loader, batches = evaluation(open_source(photo_folder))
    found = list(batches)
    assert torch.cat([indices for _, indices in found]).tolist() == list(range(6, 12))
    assert set(loader.bad_files) == {str(file) for file in (photo_folder / "cold").iterdir()}


def test_evaluation_of_nothing_readable_is_an_error(photo_folder: Path) -> None:
    for file in photo_folder.rglob("*.*"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no readable image in .*photos"):
        list(evaluation(open_source(photo_folder))[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_belong_to_the_images_really_used(workers: int) -> None:
    """A broken image is replaced by another, whose label then counts."""
    images = [np.full((9, 9, 3), index, dtype=np.uint8) for index in range(30)]
    images[3] = np.zeros((0, 0, 3), dtype=np.uint8)
    source = ArraySource("numbered", images, labels=[index % 7 for index in range(30)], classes=tuple("abcdefg"))
    batches = list(crop_loader(source, workers=workers, total_steps=7, max_bad_share=0.5))
    for batch in batches:
        assert batch.labels is not None
        assert batch.labels.dtype == torch.int64
        assert torch.equal(batch.labels, batch.indices % 7)
        assert torch.equal(batch.labels, batch.crops[1][:, 0, 0, 4, 4].long() % 7)
        moved = batch.to(torch.device("meta"))
        assert moved.labels is not None
        assert moved.labels.device.type == moved.crops[0].device.type == "meta"


def test_without_classes_there_are_no_labels() -> None:
    (batch,) = crop_loader(numbered(30), total_steps=1)
    assert batch.labels is None
    assert batch.to(torch.device("cpu")).labels is None
