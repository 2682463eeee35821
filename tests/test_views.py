"""Views: shared geometry, windows, normalisation, and the two view builders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unmask.colour.plan import ColourConfig
from unmask.views import (
    Views,
    denormalise,
    flip,
    generators,
    normalise,
    normalise_,
    pixel_shift_views,
    random_flip,
    random_shift,
    shared_crop_views,
    to_float,
    window,
)

PLAIN = ColourConfig()
STRONG = ColourConfig(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=1.0,
    grey_p=0.2,
    blur_p=0.5,
    solarise_p=0.2,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _crops(batch: int, channels: int, height: int, width: int) -> Tensor:
    return torch.randint(256, (batch, channels, height, width), dtype=torch.uint8, generator=_generator(9))


def _same(view: Tensor, expected: Tensor) -> bool:
    """Equal but for the last bit: views are multiplied by 1 / std."""
    return torch.allclose(view, expected, atol=0, rtol=1e-6)


def test_flip_mirrors_the_flagged_samples_only():
    crops_BCHW = _crops(3, 2, 4, 5)
    flipped = flip(crops_BCHW, torch.tensor([True, False, True]))
    assert torch.equal(flipped[0], crops_BCHW[0].flip(-1))
    assert torch.equal(flipped[1], crops_BCHW[1])
    assert torch.equal(flipped[2], crops_BCHW[2].flip(-1))


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_random_flip_has_the_promised_share(p):
    ramps_BCHW = torch.arange(3).expand(2000, 1, 1, 3)
    share = (random_flip(ramps_BCHW, _generator(), p)[:, 0, 0, 0] == 2).float().mean().item()
    assert share == pytest.approx(p, abs=0.05)


@given(data=st.data(), batch=st.integers(1, 5), channels=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_windows_are_slices(data, batch, channels):
    H, W = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    height, width = data.draw(st.integers(1, H)), data.draw(st.integers(1, W))
    corner = st.tuples(st.integers(0, H - height), st.integers(0, W - width))
    corners = data.draw(st.lists(corner, min_size=batch, max_size=batch))
    crops_BCHW = _crops(batch, channels, H, W)
    cut = window(crops_BCHW, torch.tensor(corners), height, width)
    assert cut.shape == (batch, channels, height, width)
    for sample, (top, left) in enumerate(corners):
        assert torch.equal(cut[sample], crops_BCHW[sample, :, top : top + height, left : left + width])


def test_windows_outside_the_image_are_refused():
    crops_BCHW = _crops(1, 3, 6, 8)
    with pytest.raises(ValueError, match="images of 6x8 pixels do not hold a window of 7x7"):
        window(crops_BCHW, torch.tensor([[0, 0]]), 7, 7)
    for corner in ([3, 0], [0, 5], [-1, 0]):
        with pytest.raises(ValueError, match=r"offsets must lie within 0\.\.2 rows and 0\.\.4 columns"):
            window(crops_BCHW, torch.tensor([corner]), 4, 4)


def test_shifts_cover_both_ends_evenly():
    shift_B2 = random_shift(8000, 31, _generator())
    for axis in range(2):
        counts = shift_B2[:, axis].bincount(minlength=32)
        assert len(counts) == 32
        assert counts.min() > 150  # 250 expected
    correlation = torch.corrcoef(shift_B2.T.double())[0, 1].item()
    assert abs(correlation) < 0.05


def test_to_float_is_a_division_by_255():
    byte_values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_float(byte_values), byte_values.float() / 255)
    assert torch.equal(to_float(byte_values, torch.float64), byte_values.double() / 255)


def test_normalise_rounds_its_statistics_to_float32_first():
    images_BCHW = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=_generator())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean_C11 = torch.tensor(mean, dtype=torch.float32).double()[:, None, None]
    std_C11 = torch.tensor(std, dtype=torch.float32).double()[:, None, None]
    before = images_BCHW.clone()
    normalised = normalise(images_BCHW, mean, std)
    assert torch.equal(images_BCHW, before)
    assert torch.equal(normalised, (images_BCHW - mean_C11) / std_C11)
    torch.testing.assert_close(denormalise(normalised, mean, std), images_BCHW)
    assert normalise_(images_BCHW, mean, std) is images_BCHW
    assert torch.equal(images_BCHW, normalised)


def test_denormalised_predictions_are_pictures():
    picture = denormalise(torch.tensor([-9.0, 0.0, 9.0]).view(1, 1, 1, 3), (0.5,), (0.25,))
    assert picture.flatten().tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("mean", "std"), [((0.5,), (0.5,) * 3), ((0.5,) * 3, (0.5,) * 4)])
def test_statistics_of_another_number_of_channels_are_refused(mean, std):
    with pytest.raises(ValueError, match=f"3 channels need 3 means and stds, got {len(mean)} and {len(std)}"):
        normalise(torch.zeros(1, 3, 2, 2), mean, std)


def test_generators_repeat_under_a_seed_and_differ_from_each_other():
    before = torch.get_rng_state()
    draws = [[torch.rand(4, generator=g).tolist() for g in generators(5, "cpu")] for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]
    assert draws[0] != [torch.rand(4, generator=g).tolist() for g in generators(6, "cpu")]
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_without_a_seed_follow_torchs_global_state():
    torch.manual_seed(11)
    first = [torch.rand(4, generator=g).tolist() for _ in range(2) for g in generators(None, "cpu")]
    torch.manual_seed(11)
    assert first == [torch.rand(4, generator=g).tolist() for _ in range(2) for g in generators(None, "cpu")]
    assert first[0] != first[2]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 6, 6), (3, 6, 9), (4, 9, 6)])
def test_shared_crop_views_share_the_flip(channels, height, width):
    crops_BCHW = _crops(16, channels, height, width)
    mean, std = (0.4,) * channels, (0.2,) * channels
    online, target = shared_crop_views(crops_BCHW, colour=PLAIN, mean=mean, std=std, generator=_generator())
    assert target is not None
    assert torch.equal(online, target)
    assert online.data_ptr() != target.data_ptr()
    plain = normalise(to_float(crops_BCHW), mean, std)
    mirrored = [_same(view, image.flip(-1)) for view, image in zip(online, plain, strict=True)]
    straight = [_same(view, image) for view, image in zip(online, plain, strict=True)]
    assert all(one != other for one, other in zip(mirrored, straight, strict=True))
    assert 2 < sum(mirrored) < 14


def test_colour_touches_the_target_only():
    crops_BCHW = _crops(8, 3, 8, 8)
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    online, target = shared_crop_views(crops_BCHW, colour=STRONG, generator=_generator(), **statistics)
    uncoloured, nothing = shared_crop_views(crops_BCHW, colour=None, generator=_generator(), **statistics)
    assert nothing is None
    assert torch.equal(online, uncoloured)
    assert target is not None
    assert ((online - target).abs().amax(dim=(1, 2, 3)) > 0.01).all()
    assert target.min() >= -1 - 1e-5
    assert target.max() <= 1 + 1e-5


@pytest.mark.parametrize(("channels", "size"), [(1, (5, 5)), (3, (5, 8)), (4, (8, 5))])
def test_pixel_shift_views_are_windows_of_one_flipped_master(channels, size):
    height, width = size
    master_BCHW = _crops(40, channels, height + 3, width + 3)
    mean, std = (0.4,) * channels, (0.2,) * channels
    online, target = pixel_shift_views(
        master_BCHW, size=size, max_shift=3, colour=PLAIN, mean=mean, std=std, generator=_generator()
    )
    floats = normalise(to_float(master_BCHW), mean, std)
    seen = set()
    for sample, image_CHW in enumerate(floats):
        flipped = not _same(online[sample], image_CHW[:, :height, :width])
        master_CHW = image_CHW.flip(-1) if flipped else image_CHW
        assert _same(online[sample], master_CHW[:, :height, :width])
        found = [
            (top, left)
            for top in range(4)
            for left in range(4)
            if _same(target[sample], master_CHW[:, top : top + height, left : left + width])
        ]
        assert len(found) == 1
        seen.add((flipped, *found[0]))
    assert {flipped for flipped, _, _ in seen} == {True, False}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == {0, 1, 2, 3}


def test_pixel_shift_colour_touches_the_target_only():
    master_BCHW = _crops(8, 3, 10, 10)
    arguments = {"size": (8, 8), "max_shift": 2, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    online, target = pixel_shift_views(master_BCHW, colour=STRONG, generator=_generator(), **arguments)
    plain_online, plain_target = pixel_shift_views(master_BCHW, colour=None, generator=_generator(), **arguments)
    assert torch.equal(online, plain_online)
    assert ((target - plain_target).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_without_a_shift_both_windows_are_the_corner():
    online, target = pixel_shift_views(
        _crops(4, 3, 8, 8),
        size=(8, 8),
        max_shift=0,
        colour=None,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        generator=_generator(),
    )
    assert torch.equal(online, target)


def test_a_master_too_small_for_its_shift_is_refused():
    with pytest.raises(
        ValueError, match="a master crop of 8x9 pixels does not hold a 8x8 view shifted by up to 1 pixels"
    ):
        pixel_shift_views(
            _crops(1, 3, 8, 9),
            size=(8, 8),
            max_shift=1,
            colour=None,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            generator=_generator(),
        )


def test_views_are_a_function_of_the_generator_alone():
    crops_BCHW = _crops(6, 3, 8, 8)
    before_crops, before_state = crops_BCHW.clone(), torch.get_rng_state()
    statistics = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    runs = [
        (
            *shared_crop_views(crops_BCHW, colour=STRONG, generator=_generator(seed), **statistics),
            *pixel_shift_views(
                crops_BCHW, size=(6, 6), max_shift=2, colour=STRONG, generator=_generator(seed), **statistics
            ),
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), before_state)
    assert torch.equal(crops_BCHW, before_crops)
    for first, again, other in zip(*runs, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("batch", [1, 4])
def test_views_on_a_device_ask_it_for_nothing(batch: int):
    # The meta device holds no values: whatever would have to read one, and so wait for a GPU, raises here.
    crops_BCHW = _crops(batch, 3, 12, 12).to("meta")
    arguments = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    for seed in range(4):
        shared = shared_crop_views(
            crops_BCHW, colour=STRONG, online_colour=STRONG, generator=_generator(seed), **arguments
        )
        shifted = pixel_shift_views(
            crops_BCHW, size=(10, 10), max_shift=2, colour=STRONG, generator=_generator(seed), **arguments
        )
        assert [view.device.type for view in (*shared, *shifted)] == ["meta"] * 4
        assert shifted[0].shape == (batch, 3, 10, 10)


def test_views_need_only_an_online_image():
    views = Views(torch.zeros(2, 3, 4, 4))
    assert views.target is None
    assert views.mask_BN is None
