"""Views come of every readable image once, are the same for the same seed, and differ as they should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unmask.data.sources import ArraySource
from unmask.evaluation import augmented
from unmask.evaluation.augmented import ViewConfig, view_features

SIDE = 12


def flat(count: int) -> ArraySource:
    """Image i has the value i all over."""
    return ArraySource("flat", np.arange(count, dtype=np.uint8)[:, None, None, None].repeat(SIDE, 1).repeat(SIDE, 2))


def noisy(count: int) -> ArraySource:
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return ArraySource("noisy", images)


class Broken(ArraySource):
    """Every third image cannot be read."""

    def read(self, index: int) -> np.ndarray:
        if index % 3 == 0:
            raise OSError(5, "broken")
        return super().read(index)


def pixels(images_BCHW: Tensor) -> Tensor:
    return images_BCHW.flatten(1).float()


def seen(source: ArraySource, config: ViewConfig, *, seed: int = 0, workers: int = 0, channels: int = 3) -> Tensor:
    return view_features(pixels, source, config, height=8, width=8, channels=channels, seed=seed, workers=workers)


def test_every_image_is_seen_once_in_all_its_views() -> None:
    views_NVD = seen(flat(37), ViewConfig(views=3), channels=1)
    assert views_NVD.shape == (37, 3, 64)
    assert torch.equal(views_NVD, views_NVD[:, :1, :1].expand_as(views_NVD))
    assert sorted(views_NVD[:, 0, 0].tolist()) == list(range(37))


def test_few_of_many_are_spread_over_the_data() -> None:
    views_NVD = seen(flat(40), ViewConfig(images=4, views=2), channels=1)
    assert sorted(views_NVD[:, 0, 0].tolist()) == [0, 10, 20, 30]


def test_an_unreadable_image_is_left_out_and_none_counts_twice() -> None:
    source = Broken("broken", flat(30)._images)
    views_NVD = seen(source, ViewConfig(views=2), channels=1)
    assert sorted(views_NVD[:, 0, 0].tolist()) == [index for index in range(30) if index % 3]


def test_the_seed_decides_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ViewConfig(views=4)
    torch.manual_seed(1)
    first = seen(noisy(9), config)
    torch.manual_seed(2)
    assert torch.equal(seen(noisy(9), config), first)
    assert torch.equal(seen(noisy(9), config, workers=2), first)
    monkeypatch.setattr(augmented, "VIEWS_AT_ONCE", 1)
    assert torch.equal(seen(noisy(9), config), first)
    assert not torch.equal(seen(noisy(9), config, seed=1), first)


def test_views_of_one_image_differ_by_crop_and_flip() -> None:
    views_NVD = seen(noisy(5), ViewConfig(views=4))
    for views_VD in views_NVD:
        assert len({tuple(view.tolist()) for view in views_VD}) == 4
    whole = ViewConfig(views=6, crop_scale=(1.0, 1.0), flip=0.0)
    straight = seen(noisy(5), whole)
    assert torch.equal(straight, straight[:, :1].expand_as(straight))
    flipped = seen(noisy(5), ViewConfig(views=6, crop_scale=(1.0, 1.0), flip=1.0))
    assert torch.equal(flipped.unflatten(2, (3, 8, 8)).flip(4), straight.unflatten(2, (3, 8, 8)))


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^no readable image in x, for example x/0: broken$"):
        seen(Broken("x", flat(1)._images), ViewConfig(), channels=1)
    with pytest.raises(ValueError, match=r"at least two views of at least two images, got 1 of 1000$"):
        ViewConfig(views=1)
    with pytest.raises(ValueError, match=r"^crop scale must be a range within \(0, 1\], got 0.5 to 0.2$"):
        ViewConfig(crop_scale=(0.5, 0.2))
    with pytest.raises(ValueError, match=r"^flip must lie in \[0, 1\], got 2$"):
        ViewConfig(flip=2)
