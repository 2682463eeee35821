"""The loader is measured as it is, and its parts on one process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tiny_runs import draw_images
from unmask.bench import data as bench_data
from unmask.bench.data import DataMeasure, measure_data
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.batch import Batch, CropConfig
from unmask.data.dataset import Sample
from unmask.data.pixel_range import PixelRange, in_range
from unmask.data.sources import ArraySource, open_source

CROPS = (CropConfig(height=16, width=16, count=2), CropConfig(height=8, width=8))


def measured(folder: Path, *, workers: int = 0, batch_size: int = 4) -> DataMeasure:
    return measure_data(
        open_source(str(folder)),
        CROPS,
        channels=3,
        batch_size=batch_size,
        workers=workers,
        seconds=0.01,
        captions=False,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_is_measured(tmp_path: Path, workers: int) -> None:
    measure = measured(draw_images(tmp_path, 10), workers=workers)
    assert (measure.images, measure.batch_size, measure.workers, measure.bad_files) == (10, 4, workers, 0)
    assert measure.crops == "2 of 16x16, 1 of 8x8"
    assert measure.images_per_second > 0
    assert measure.first_batch > 0
    assert list(measure.parts) == ["read", "decode and crop", "collate"]
    assert all(seconds > 0 for seconds in measure.parts.values())
    # Drawing pixels costs more than reading a file that was just written.
    assert measure.parts["decode and crop"] > measure.parts["read"]


def test_bad_files_are_counted_and_too_many_refused(tmp_path: Path) -> None:
    folder = draw_images(tmp_path, 30, classes=("",))
    (folder / "000.png").write_bytes(b"nothing")
    assert measured(folder, batch_size=30).bad_files == 1
    for number in range(20):
        (folder / f"{number:03d}.png").write_bytes(b"nothing")
    with pytest.raises(TooManyBadFiles):
        measured(folder)


def test_the_parts_are_those_of_images_in_their_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the range of the source no image of real numbers beyond 0 to 1 can be read."""
    images = np.random.default_rng(0).uniform(200, 900, (8, 16, 16, 3)).astype(np.float32)
    source = in_range(ArraySource("real", images), PixelRange(low=(200.0,), high=(900.0,)))
    collate, sizes = bench_data.collate_samples, []

    def collating(samples: list[Sample]) -> Batch:
        sizes.append(len(samples))
        return collate(samples)

    monkeypatch.setattr(bench_data, "collate_samples", collating)
    measure_data(source, CROPS, channels=3, batch_size=4, workers=0, seconds=0.01, captions=False)
    assert sizes == [4, 4]  # all images whose parts are measured
