"""What the user leaves open follows from the data, and what was chosen is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_runs import draw_images
from unmask.data.decode import decode
from unmask.data.sources import ArraySource, Source, open_source
from unmask.defaults import Wishes, default_batch, default_patch, default_side, default_workers, fit_settings
from unmask.methods import METHODS
from unmask.methods.base import IMAGENET_MEAN, MethodConfig
from unmask.methods.cmae import CMAEConfig
from unmask.methods.supmae import SupMAEConfig


def images_of(sides: Sequence[tuple[int, int]], *, channels: int = 3) -> Source:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*side, channels), dtype=np.uint8) for side in sides]
    return ArraySource("drawn", images, labels=[index % 2 for index in range(len(images))], classes=("even", "odd"))


def fitted(method: str, wishes: Wishes, *sides: tuple[int, int], channels: int = 3) -> tuple[MethodConfig, list[str]]:
    return fit_settings(METHODS[method].Config(), wishes, images_of(sides, channels=channels))


def size_of(settings: MethodConfig) -> tuple[int, int, int | None]:
    return settings.encoder.image_height, settings.encoder.image_width, settings.encoder.patch_size


@pytest.mark.parametrize(
    ("side", "patch"), [(28, 4), (32, 4), (55, 4), (56, 8), (96, 8), (159, 8), (160, 16), (1000, 16)]
)
def test_the_patch_follows_the_image(side: int, patch: int) -> None:
    assert default_patch(side) == patch


@given(median=st.integers(1, 5000))
def test_crops_are_cut_into_whole_pairs_of_patches(median: int) -> None:
    patch = default_patch(median)
    side = default_side(median, patch)
    assert side % (2 * patch) == 0
    assert 4 * patch <= side <= 224
    # Near the images' own size, unless that is too small or too large.
    assert abs(side - min(max(median, 4 * patch), 224)) <= patch


@given(samples=st.integers(1, 3_000_000), accelerated=st.booleans())
def test_a_batch_leaves_four_steps_an_epoch_where_that_can_be(samples: int, accelerated: bool) -> None:
    batch = default_batch(samples, accelerated)
    largest = 256 if accelerated else 64
    assert 1 <= batch <= min(largest, samples)
    assert batch & (batch - 1) == 0
    if samples >= 8:
        assert samples // batch >= 4
        assert batch == largest or samples // (2 * batch) < 4
    else:
        # Alone in its batch an image has nothing to differ from, and batch norm nothing to average.
        assert batch == min(2, samples)


def test_there_is_a_worker_but_not_a_crowd() -> None:
    assert 1 <= default_workers() <= 8


@pytest.mark.parametrize(
    ("median", "size"), [(28, (32, 32, 4)), (64, (64, 64, 8)), (100, (96, 96, 8)), (300, (224, 224, 16))]
)
def test_image_size_and_patch_follow_the_data(median: int, size: tuple[int, int, int]) -> None:
    sides = [(median, median + 40), (median + 10, median), (median, median)]
    settings, notes = fitted("conmim", Wishes(), *sides)
    assert size_of(settings) == size
    assert notes == [f"crops of {size[0]}x{size[1]} pixels in patches of {size[2]}, for images of median side {median}"]


def test_what_the_user_wants_goes_first() -> None:
    data = ((30, 30), (40, 40))
    assert size_of(fitted("mae", Wishes(image_size=(96, 64)), *data)[0]) == (96, 64, 8)
    assert size_of(fitted("mae", Wishes(image_size=(96, 64), patch_size=16), *data)[0]) == (96, 64, 16)
    assert size_of(fitted("mae", Wishes(patch_size=8), *data)[0]) == (32, 32, 8)
    settings, notes = fitted("mae", Wishes(image_size=(64, 64), encoder="vit_tiny_patch16_224"), *data)
    assert settings.encoder.name == "vit_tiny_patch16_224"
    assert notes == []
    own = replace(METHODS["mae"].Config(), encoder=replace(METHODS["mae"].Config().encoder, patch_size=2))
    assert size_of(fit_settings(own, Wishes(), images_of(data))[0])[2] == 2
    for patch in (0, -4):
        with pytest.raises(ValueError, match=f"^the patch size must be at least 1 pixel, got {patch}$"):
            fitted("mae", Wishes(patch_size=patch), *data)


@pytest.mark.parametrize(("side", "shift"), [(32, 4), (64, 9), (112, 16), (224, 31), (448, 62)])
def test_the_shift_of_cmae_scales_with_the_image(side: int, shift: int) -> None:
    for settings in (
        fitted("cmae", Wishes(image_size=(side, side)), (32, 32))[0],
        fitted("cmae", Wishes(image_size=(side, 2 * side)), (32, 32))[0],
    ):
        assert isinstance(settings, CMAEConfig)
        assert settings.max_shift == shift


# Drawn images have no captions.
@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.reads_captions])
def test_a_wished_learning_rate_is_absolute(method: str) -> None:
    settings, _ = fitted(method, Wishes(lr=0.25, image_size=(64, 64)), (32, 32))
    for batch in (8, 4096):
        assert settings.optimizer.peak(batch) == 0.25
    untouched, _ = fitted(method, Wishes(image_size=(64, 64)), (32, 32))
    assert untouched.optimizer == METHODS[method].Config().optimizer


def test_normalisation_is_imagenets_or_the_datas(tmp_path: Path) -> None:
    settings, notes = fitted("mae", Wishes(image_size=(32, 32)), (32, 32))
    assert (settings.mean, notes) == (IMAGENET_MEAN, [])

    source = open_source(draw_images(tmp_path / "data", classes=("", "red")))
    settings, notes = fit_settings(METHODS["mae"].Config(), Wishes(image_size=(32, 32), normalisation="data"), source)
    pixels = np.concatenate([np.asarray(read_pixels(source, index)).reshape(-1, 3) for index in range(len(source))])
    assert settings.mean == tuple(round(value, 4) for value in (pixels / 255).mean(axis=0).tolist())
    assert settings.std == tuple(round(value, 4) for value in (pixels / 255).std(axis=0).tolist())
    assert notes == [f"mean {settings.mean} and deviation {settings.std}, computed from the data"]


def read_pixels(source: Source, index: int) -> np.ndarray:
    data = source.read(index)
    return decode(data, min_size=None, channels=3).pixels_HWC


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_need_statistics_of_their_own(channels: int) -> None:
    wishes = Wishes(channels=channels, image_size=(32, 32))
    settings, notes = fitted("mae", wishes, (32, 32), (20, 30), channels=channels)
    assert settings.encoder.channels == channels
    assert len(settings.mean) == len(settings.std) == channels
    assert all(abs(value - 0.5) < 0.05 for value in settings.mean)
    assert len(notes) == 1


def test_methods_may_look_at_the_data_for_more_than_images() -> None:
    images = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    labelled = ArraySource("drawn", images, labels=[0, 1, 2] * 2, classes=("a", "b", "c"))
    settings, _ = fit_settings(METHODS["supmae"].Config(), Wishes(), labelled)
    assert isinstance(settings, SupMAEConfig)
    assert settings.classes == 3
    with pytest.raises(ValueError, match=r"^SupMAE learns from labels, and drawn has none"):
        fit_settings(METHODS["supmae"].Config(), Wishes(), ArraySource("drawn", images))


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_hue_is_left_out_and_that_is_said_where_there_is_no_rgb(channels: int) -> None:
    wishes = Wishes(channels=channels)
    settings, notes = fitted("conmim", wishes, (32, 32), channels=channels)
    many = "s" if channels > 1 else ""
    assert f"no changes of hue, which need red, green and blue, for {channels} channel{many}" in notes
    usual = METHODS["conmim"].Config().colour
    assert usual.hue > 0
    assert settings.colour == replace(usual, hue=0.0)
    assert fitted("conmim", Wishes(), (32, 32))[0].colour == usual
    _, notes = fitted("mae", wishes, (32, 32), channels=channels)
    assert not any("hue" in note for note in notes)
