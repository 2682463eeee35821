"""The benchmark of data workers' memory: an archive as asked for, every worker looked at, growth told apart."""

from __future__ import annotations

import sys

import pytest
from benchmarks.worker_memory import Worker, tar_of_photos, watch

from unmask.data.sources import TarSource


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_worker_is_looked_at(tmp_path):
    source = TarSource("photographs", tar_of_photos(tmp_path / "photos.tar", 12))
    assert len(source) == 12
    workers = watch(source, size=32, batch=4, steps=12, workers=2, every=3)
    assert len(workers) == 2
    for worker in workers:
        assert len(worker.anonymous) >= 3
        assert worker.peak >= worker.share > 0
        assert 0 < worker.anonymous[-1] < worker.peak


def test_slope_is_in_mib_for_a_thousand_steps_after_the_warm_up():
    grown = Worker(anonymous=[50.0, 70.0, *(80 + 0.5 * number for number in range(20))])
    assert grown.slope(every=10, warm_up=20) == pytest.approx(50)
    assert Worker(anonymous=[9.0, 20.0, *[30.0] * 9]).slope(every=10, warm_up=20) == pytest.approx(0, abs=1e-9)
