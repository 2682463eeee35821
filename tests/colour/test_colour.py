"""Colour: the same numbers as torchvision on tensors, nearly the same pictures as its PIL pipeline."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as on_pictures
import torchvision.transforms.v2.functional as on_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from unmask.colour import pixels
from unmask.colour.apply import apply_colour
from unmask.colour.groups import change_in_groups
from unmask.colour.pixels import change_pixels_
from unmask.colour.plan import ColourConfig, ColourParameters, ColourPlan, sample_colour

CONMIM = ColourConfig(
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=0.3,
    solarise_p=0.2,
)
ALWAYS = replace(CONMIM, jitter_p=1.0, grey_p=0.0, blur_p=1.0, solarise_p=1.0)
EVERY_JITTER = ("brightness", "contrast", "saturation", "hue")


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Byte-valued random images with the awkward colours: black, white, greys, primaries, equal channels."""
    images_BCHW = torch.randint(256, (batch, channels, height, width), generator=_generator(seed)).float() / 255
    images_BCHW[:, :, 0, 0], images_BCHW[:, :, 0, 1], images_BCHW[:, :, 1, 0] = 0, 1, 0.4
    images_BCHW[:, 0, 1, 1], images_BCHW[:, 1:, 1, 1] = 1, 0
    images_BCHW[:, 0, 2] = images_BCHW[:, -1, 2]
    images_BCHW[:, 0, 3] = images_BCHW[:, channels // 2, 3]
    return images_BCHW


def _pictures(batch: int, size: int) -> Tensor:
    """Smooth images with some texture, as photographs have."""
    coarse = F.interpolate(torch.rand(batch, 3, 5, 5, generator=_generator(1)), size=size, mode="bicubic")
    fine = torch.rand(batch, 3, size, size, generator=_generator(2)) - 0.5
    return ((coarse + 0.1 * fine).clamp(0, 1) * 255).round() / 255


def _nothing(batch: int) -> ColourParameters:
    return sample_colour(ColourConfig(), batch, _generator())


def _jitter(order: list[int], factors: list[list[float]]) -> ColourParameters:
    batch = len(factors)
    return replace(
        _nothing(batch),
        jitter_B=torch.ones(batch, dtype=torch.bool),
        order_BJ=torch.tensor([order] * batch),
        factors_BJ=torch.tensor(factors),
    )


def _torchvision(image_CHW: Tensor, parameters: ColourParameters, sample: int) -> Tensor:
    """The authors' pipeline on one tensor image, from torchvision's functions."""
    adjust = (
        on_tensors.adjust_brightness,
        on_tensors.adjust_contrast,
        on_tensors.adjust_saturation,
        on_tensors.adjust_hue,
    )
    if parameters.jitter_B[sample]:
        for operation in parameters.order_BJ[sample].tolist():
            image_CHW = adjust[operation](image_CHW, parameters.factors_BJ[sample, operation].item())
    if parameters.grey_B[sample]:
        image_CHW = on_tensors.rgb_to_grayscale(image_CHW, num_output_channels=3)
    if parameters.blur_B[sample]:
        kernel = 2 * parameters.blur_radius + 1
        image_CHW = on_tensors.gaussian_blur(image_CHW, [kernel] * 2, [parameters.sigma_B[sample].item()] * 2)
    if parameters.solarise_B[sample]:
        image_CHW = on_tensors.solarize(image_CHW, parameters.solarise_threshold)
    return image_CHW


def _pil(image: Image.Image, parameters: ColourParameters, sample: int) -> Image.Image:
    """The authors' pipeline on one picture of bytes."""
    adjust = (
        on_pictures.adjust_brightness,
        on_pictures.adjust_contrast,
        on_pictures.adjust_saturation,
        on_pictures.adjust_hue,
    )
    if parameters.jitter_B[sample]:
        for operation in parameters.order_BJ[sample].tolist():
            image = adjust[operation](image, parameters.factors_BJ[sample, operation].item())
    if parameters.grey_B[sample]:
        image = on_pictures.to_grayscale(image, num_output_channels=3)
    if parameters.blur_B[sample]:
        image = image.filter(ImageFilter.GaussianBlur(radius=parameters.sigma_B[sample].item()))
    if parameters.solarise_B[sample]:
        image = ImageOps.solarize(image)
    return image


@pytest.mark.parametrize("operation", range(4), ids=EVERY_JITTER)
@given(values=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_each_jitter_operation_is_torchvisions(operation, values):
    low, high = ((0.0, 2.5), (0.0, 2.5), (0.0, 2.5), (-0.5, 0.5))[operation]
    neutral = [1.0, 1.0, 1.0, 0.0]
    factors = [[*neutral[:operation], low + (high - low) * v, *neutral[operation + 1 :]] for v in values]
    images_BCHW = _images(len(values), 3, 9, 7)
    parameters = _jitter([0, 1, 2, 3], factors)
    expected = [_torchvision(image, parameters, sample) for sample, image in enumerate(images_BCHW)]
    torch.testing.assert_close(apply_colour(images_BCHW, parameters), torch.stack(expected), atol=1e-5, rtol=0)


def test_greyscale_and_solarisation_are_torchvisions():
    images_BCHW = _images(3, 3, 8, 6)
    flags_B = torch.tensor([True, False, True])
    grey = apply_colour(images_BCHW, replace(_nothing(3), grey_B=flags_B))
    solarised = apply_colour(images_BCHW, replace(_nothing(3), solarise_B=flags_B))
    for sample in (0, 2):
        expected = on_tensors.rgb_to_grayscale(images_BCHW[sample], num_output_channels=3)
        torch.testing.assert_close(grey[sample], expected, atol=1e-6, rtol=0)
        assert torch.equal(solarised[sample], on_tensors.solarize(images_BCHW[sample], 128 / 255))
    assert torch.equal(grey[1], images_BCHW[1])
    assert torch.equal(solarised[1], images_BCHW[1])


def test_solarisation_inverts_bytes_from_128_as_pil_does():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    solarised = apply_colour(ramp.float() / 255, replace(_nothing(1), solarise_B=torch.tensor([True])))
    picture = ImageOps.solarize(on_pictures.to_pil_image(ramp[0]))
    assert torch.equal((solarised[0] * 255).round().byte(), on_pictures.pil_to_tensor(picture))


@given(sigmas=st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5), channels=st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_blur_is_torchvisions_with_a_sigma_for_each_sample(sigmas, channels):
    batch = len(sigmas)
    images_BCHW = _images(batch, channels, 9, 12)
    parameters = replace(_nothing(batch), blur_B=torch.ones(batch, dtype=torch.bool), sigma_B=torch.tensor(sigmas))
    assert parameters.blur_radius == 6
    expected = [_torchvision(image, parameters, sample) for sample, image in enumerate(images_BCHW)]
    torch.testing.assert_close(apply_colour(images_BCHW, parameters), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (6, 40)])
def test_blur_of_images_smaller_than_its_kernel_keeps_flat_images_flat(size):
    flat_BCHW = torch.tensor([0.2, 0.7]).view(2, 1, 1, 1).expand(2, 3, *size)
    blurred = apply_colour(flat_BCHW, replace(_nothing(2), blur_B=torch.ones(2, dtype=torch.bool)))
    torch.testing.assert_close(blurred, flat_BCHW.contiguous())


@pytest.mark.parametrize("seed", range(3))
def test_the_whole_chain_is_torchvisions(seed):
    batch = 24
    images_BCHW = _images(batch, 3, 16, 12, seed)
    parameters = sample_colour(CONMIM, batch, _generator(seed))
    actual = apply_colour(images_BCHW, parameters)
    expected = torch.stack([_torchvision(image, parameters, b) for b, image in enumerate(images_BCHW)])
    difference = (actual - expected).abs()
    # Solarisation jumps by 1/255 at its threshold, where the last bit of what came before decides.
    at_threshold = (expected - 127.5 / 255).abs() < 1 / 255
    assert difference[~at_threshold].max() < 1e-5
    assert difference.max() < 1.01 / 255
    assert (difference > 1e-5).float().mean() < 0.001


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_jitter_follows_the_order_of_its_parameters(order):
    images_BCHW = _images(2, 3, 8, 8)
    parameters = _jitter(order, [[1.4, 0.6, 1.2, 0.1], [0.6, 1.4, 0.8, -0.1]])
    expected = torch.stack([_torchvision(image, parameters, b) for b, image in enumerate(images_BCHW)])
    torch.testing.assert_close(apply_colour(images_BCHW, parameters), expected, atol=1e-5, rtol=0)


def test_pictures_are_those_of_the_pil_pipeline_within_the_rounding_of_bytes():
    batch, size = 24, 48
    images_BCHW = _pictures(batch, size)
    parameters = sample_colour(CONMIM, batch, _generator(3))
    actual = apply_colour(images_BCHW, parameters) * 255
    errors = []
    for sample, image in enumerate(images_BCHW):
        picture = _pil(on_pictures.to_pil_image((image * 255).round().byte()), parameters, sample)
        errors.append((actual[sample] - on_pictures.pil_to_tensor(picture)).abs().mean().item())
    # Of 255: PIL cuts values to bytes after each of up to seven operations, and its hue has 256 steps.
    assert max(errors) < 2.5
    assert sum(errors) / batch < 1.6


@given(data=st.data(), channels=st.sampled_from([1, 2, 3, 4, 8]), batch=st.integers(1, 11))
@settings(max_examples=30, deadline=None)
def test_a_sample_does_not_depend_on_its_neighbours(data, channels, batch):
    images_BCHW = _images(batch, channels, 7, 10)
    parameters = sample_colour(CONMIM, batch, _generator(data.draw(st.integers(0, 1000))))
    together = apply_colour(images_BCHW, parameters)
    sample = data.draw(st.integers(0, batch - 1))
    own = {
        field.name: value[sample : sample + 1] if isinstance(value, Tensor) else value
        for field in fields(parameters)
        for value in [vars(parameters)[field.name]]
    }
    alone = apply_colour(images_BCHW[sample : sample + 1], ColourParameters(**own))
    torch.testing.assert_close(together[sample : sample + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
@pytest.mark.parametrize(
    "config", [CONMIM, replace(ALWAYS, hue=0.5, grey_p=0.3, saturation=1.5)], ids=["conmim", "most"]
)
def test_a_device_that_changes_groups_makes_what_compiled_loops_make_one_by_one(config, channels):
    images_BCHW = _images(40, channels, 14, 10)
    plan = ColourPlan.of(sample_colour(config, 40, _generator(5)), channels=channels)
    plan = plan.then(ColourPlan.of(sample_colour(config, 40, _generator(6)), channels=channels))
    together, alone = change_in_groups(images_BCHW, plan), images_BCHW.clone()
    change_pixels_(alone, plan)
    difference = (together - alone).abs()
    assert (difference > 1e-5).float().mean() < 0.002  # solarisation jumps where the last bit decides
    assert difference.max() < 1.01 / 255


def test_threads_change_nothing():
    images_BCHW = _images(5, 3, 300, 200)
    plan = ColourPlan.of(sample_colour(ALWAYS, 5, _generator(5)), channels=3)
    made = []
    threads = torch.get_num_threads()
    for count in (1, 3):
        torch.set_num_threads(count)
        try:
            made.append(images_BCHW.clone())
            change_pixels_(made[-1], plan)
        finally:
            torch.set_num_threads(threads)
    assert torch.equal(*made)
    assert not torch.equal(made[0], images_BCHW)


@pytest.mark.parametrize("shift", [-0.5, -1 / 3, -0.25, -1 / 6, 1 / 12, 1 / 6, 0.3, 1 / 3, 0.5])
def test_hue_is_exact_where_its_cases_meet(shift):
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    images_BCHW = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 8, 8)
    expected = on_tensors.adjust_hue(images_BCHW, shift)
    actual = apply_colour(images_BCHW, _jitter([0, 1, 2, 3], [[1.0, 1.0, 1.0, shift]]))
    torch.testing.assert_close(actual, expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("channels", [2, 4, 5, 13])
def test_without_three_channels_grey_is_the_mean_over_them_and_hue_is_skipped(channels):
    images_BCHW = _images(3, channels, 8, 6)
    assert apply_colour(images_BCHW, _jitter([3, 2, 0, 1], [[1.0, 1.0, 1.0, 0.2]] * 3)) is images_BCHW
    mean_B111, mean_B1HW = images_BCHW.mean(dim=(1, 2, 3), keepdim=True), images_BCHW.mean(dim=1, keepdim=True)
    contrast = apply_colour(images_BCHW, _jitter([0, 1, 2, 3], [[1.0, 0.5, 1.0, 0.2]] * 3))
    torch.testing.assert_close(contrast, (images_BCHW + mean_B111) / 2)
    for factor in (0.25, 1.5):
        saturated = apply_colour(images_BCHW, _jitter([2, 1, 0, 3], [[1.0, 1.0, factor, 0.2]] * 3))
        expected = (factor * images_BCHW + (1 - factor) * mean_B1HW).clamp(0, 1)
        torch.testing.assert_close(saturated, expected)
    grey = apply_colour(images_BCHW, replace(_nothing(3), grey_B=torch.tensor([True, False, True])))
    torch.testing.assert_close(grey[::2], mean_B1HW[::2].expand(-1, channels, -1, -1).contiguous())
    assert torch.equal(grey[1], images_BCHW[1])


def test_one_channel_has_no_colour_to_change():
    images_BCHW = _images(3, 1, 8, 6)
    no_change = replace(_jitter([3, 2, 0, 1], [[1.0, 1.0, 1.5, 0.2]] * 3), grey_B=torch.ones(3, dtype=torch.bool))
    assert apply_colour(images_BCHW, no_change) is images_BCHW


def test_the_default_config_changes_nothing():
    images_BCHW = _images(6, 3, 8, 8)
    assert apply_colour(images_BCHW, _nothing(6)) is images_BCHW
    without_strength = sample_colour(ColourConfig(jitter_p=1.0), 6, _generator())
    assert without_strength.jitter_B.all()
    assert apply_colour(images_BCHW, without_strength) is images_BCHW


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_input_is_left_alone_and_its_type_kept(dtype):
    images_BCHW = _images(9, 3, 8, 8).to(dtype)
    before = images_BCHW.clone()
    coloured = apply_colour(images_BCHW, sample_colour(ALWAYS, 9, _generator()))
    assert torch.equal(images_BCHW, before)
    assert coloured.dtype == dtype
    assert coloured.shape == before.shape
    assert not torch.equal(coloured, before)


def test_memory_layout_does_not_matter():
    images_BCHW = _images(5, 3, 8, 6)
    parameters = sample_colour(ALWAYS, 5, _generator())
    other_layout = images_BCHW.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(apply_colour(other_layout, parameters), apply_colour(images_BCHW, parameters))


def test_parameters_have_the_promised_shares_and_ranges():
    batch = 20_000
    parameters = sample_colour(replace(CONMIM, brightness=1.5), batch, _generator())
    for flags_B, share in (
        (parameters.jitter_B, 0.8),
        (parameters.grey_B, 0.2),
        (parameters.blur_B, 0.3),
        (parameters.solarise_B, 0.2),
    ):
        assert flags_B.float().mean().item() == pytest.approx(share, abs=0.02)
    lows, highs = parameters.factors_BJ.aminmax(dim=0)
    torch.testing.assert_close(lows, torch.tensor([0.0, 0.6, 0.8, -0.1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(highs, torch.tensor([2.5, 1.4, 1.2, 0.1]), atol=1e-3, rtol=0)
    assert lows[0] >= 0
    assert parameters.sigma_B.min() >= 0.1
    assert parameters.sigma_B.max() <= 2.0
    orders, counts = parameters.order_BJ.unique(dim=0, return_counts=True)
    assert len(orders) == 24
    assert counts.float().div(batch).sub(1 / 24).abs().max() < 0.008  # five standard errors


def test_parameters_are_a_function_of_the_generator_alone():
    before = torch.get_rng_state()
    first = sample_colour(CONMIM, 16, _generator(1))
    again = sample_colour(CONMIM, 16, _generator(1))
    other = sample_colour(CONMIM, 16, _generator(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.factors_BJ, again.factors_BJ)
    assert torch.equal(first.order_BJ, again.order_BJ)
    assert not torch.equal(first.factors_BJ, other.factors_BJ)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"brightness": -0.1}, "brightness must be a number of at least 0, got -0.1"),
        ({"contrast": math.nan}, "contrast must be a number of at least 0, got nan"),
        ({"saturation": math.inf}, "saturation must be a number of at least 0, got inf"),
        ({"hue": 0.6}, "hue must lie between 0 and 0.5, got 0.6"),
        ({"jitter_p": 1.1}, "jitter_p must lie between 0 and 1, got 1.1"),
        ({"grey_p": -1.0}, "grey_p must lie between 0 and 1, got -1.0"),
        (
            {"blur_sigma": (0.0, 2.0)},
            "blur_sigma must be a range of positive numbers, low to high, got 0.0 to 2.0",
        ),
        (
            {"blur_sigma": (2.0, 1.0)},
            "blur_sigma must be a range of positive numbers, low to high, got 2.0 to 1.0",
        ),
        ({"solarise_threshold": 128.0}, "solarise_threshold must lie between 0 and 1, got 128.0"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        ColourConfig(**changes)


def test_loops_are_compiled_where_no_cache_can_be_written(monkeypatch):
    compile_ = pixels.njit
    asked = []

    def refusing(cache=False, **options):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(**options)

    monkeypatch.setattr(pixels, "njit", refusing)
    half = pixels._compiled(lambda value: value / 2)
    assert half(3.0) == 1.5
    assert half.nopython_signatures  # compiled, not called as it stands
    assert asked == [True, False]
