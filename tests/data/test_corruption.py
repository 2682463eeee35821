"""Common corruptions: reproducible anywhere, on images of any size, grey or in colour, and nothing else changes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import cv2
import imagecorruptions
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unmask.data import corruption as module
from unmask.data.corruption import CORRUPTIONS, Corruption, rehearse
from unmask.data.loader import EvalLoader
from unmask.data.sources import ArraySource

DRAWING = set(CORRUPTIONS) - {*("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")}


def _image(channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    """A smooth image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[:channels].contiguous()


def _generator(index: int = 0) -> np.random.Generator:
    return np.random.default_rng(index)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).square().mean().sqrt())


def _correlation(one: Tensor, other: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def test_the_names_are_the_librarys_common_ones_in_its_order() -> None:
    assert list(CORRUPTIONS) == imagecorruptions.get_corruption_names("common")


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_is_a_function_of_seed_severity_and_generator_alone(name: str) -> None:
    image = _image()
    first = Corruption(name, 2, seed=5)(image, _generator())
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    assert _distance(first, image) > 0.5
    np.random.seed(1)
    assert torch.equal(Corruption(name, 2, seed=5)(image, _generator()), first)
    assert not torch.equal(Corruption(name, 4, seed=5)(image, _generator()), first)
    other_seed = Corruption(name, 2, seed=6)(image, _generator())
    other_index = Corruption(name, 2, seed=5)(image, _generator(1))
    assert torch.equal(other_seed, first) == torch.equal(other_index, first) == (name not in DRAWING)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"frost"}))
def test_the_highest_severity_is_stronger_than_the_lowest(name: str) -> None:
    """By the mean distance to the clean image, from the first to the last; those of elastic transform are no steps."""
    image = _image(height=96, width=96)
    mildest, strongest = (
        np.mean([_distance(Corruption(name, severity)(image, _generator(draw)), image) for draw in range(16)])
        for severity in (1, 5)
    )
    assert strongest > 1.15 * mildest


def test_more_frost_hides_more_of_the_image() -> None:
    """Frost of any severity is as bright, but less shines through."""
    image = _image(height=96, width=96)
    mild, strong = (
        np.mean([_correlation(Corruption("frost", severity)(image, _generator(draw)), image) for draw in range(16)])
        for severity in (1, 5)
    )
    assert strong < 0.95 * mild


@pytest.mark.parametrize("name", sorted(DRAWING - {"impulse_noise", "glass_blur"}))
def test_it_is_the_librarys_own_corruption(name: str) -> None:
    image, corruption = _image(height=40, width=48), Corruption(name, 3, seed=2)
    np.random.seed(corruption._seed(_generator()))
    expected = imagecorruptions.corrupt(image.permute(1, 2, 0).numpy(), severity=3, corruption_name=name)
    assert torch.equal(corruption(image, _generator()), torch.from_numpy(expected).permute(2, 0, 1))


def test_nothing_global_changes() -> None:
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    for name in CORRUPTIONS:
        Corruption(name, 1)(_image(), _generator())
    assert np.array_equal(np.random.random(3), expected)
    assert cv2.getNumThreads() == 2
    cv2.setNumThreads(before)


def test_an_error_in_the_library_leaves_numpys_generator_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        np.random.random(5)
        raise RuntimeError("broken")

    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    monkeypatch.setattr(module, "_library", lambda: fail)
    with pytest.raises(RuntimeError, match="broken"):
        Corruption("fog", 1)(_image(), _generator())
    assert np.array_equal(np.random.random(3), expected)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 20), (1, 1), (33, 64)])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_any_size_keep_it(name: str, height: int, width: int) -> None:
    assert Corruption(name, 5)(_image(1, height, width), _generator()).shape == (1, height, width)


def test_a_small_image_is_corrupted_enlarged() -> None:
    """28 pixels darken and lose contrast as 32 would: a flat image of mean 100 at contrast 0.05 stays flat."""
    image = _image(height=28, width=28)
    found = Corruption("contrast", 5)(image, _generator())
    means = image.double().mean(dim=(1, 2))
    assert float(found.double().std(dim=(1, 2)).max()) < 6
    torch.testing.assert_close(found.double().mean(dim=(1, 2)), means, atol=2.0, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_noise_has_the_papers_strength_in_grey_too(channels: int) -> None:
    """0.08 of the range at severity 1, independent in every pixel."""
    grey = torch.full((channels, 64, 64), 128, dtype=torch.uint8)
    noise = Corruption("gaussian_noise", 1)(grey, _generator()).double() - 127.5
    assert float(noise.std()) == pytest.approx(0.08 * 255, rel=0.05)
    assert float(noise.mean()) == pytest.approx(0, abs=1)


def test_severities_draw_apart() -> None:
    grey = torch.full((1, 64, 64), 128, dtype=torch.uint8)
    one, other = (Corruption("gaussian_noise", severity)(grey, _generator()) for severity in (1, 2))
    assert abs(_correlation(one, other)) < 0.1


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_other_numbers_of_channels_are_refused(channels: int) -> None:
    image = torch.zeros(channels, 32, 32, dtype=torch.uint8)
    sentence = f"^the common corruptions are made for grey and colour images, not for {channels} channels$"
    with pytest.raises(ValueError, match=sentence):
        Corruption("fog", 1)(image, _generator())
    with pytest.raises(ValueError, match=sentence):
        rehearse(("fog",), channels=channels, height=32, width=32)


def test_a_black_image_is_rehearsed_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    rehearse(CORRUPTIONS, channels=1, height=32, width=32)
    assert not recwarn.list


def test_wrong_names_and_severities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^rain is none of the common corruptions: gaussian_noise, shot_noise, .*$"):
        Corruption("rain", 1)
    with pytest.raises(ValueError, match=r"^a corruption has a severity from 1 to 5, not 6$"):
        Corruption("fog", 6)


@pytest.fixture
def unloaded() -> Iterator[None]:
    """The library is looked for anew, before and after."""
    module._library.cache_clear()
    yield
    module._library.cache_clear()


@pytest.mark.usefixtures("unloaded")
def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    sentence = (
        r"^the common corruptions need the library imagecorruptions, which is missing: "
        r"pip install 'unmask\[robustness\]'$"
    )
    with pytest.raises(ValueError, match=sentence):
        Corruption("fog", 1)(_image(), _generator())


def _loaded(corruption: Corruption | None, *, workers: int, batch_size: int) -> Tensor:
    source = ArraySource("grey", [_image(seed=seed).permute(1, 2, 0).numpy() for seed in range(5)])
    loader = EvalLoader(source, height=32, width=32, batch_size=batch_size, workers=workers, retouch=corruption)
    return torch.cat([images for images, _ in loader])


@pytest.mark.parametrize("name", ["impulse_noise", "glass_blur", "defocus_blur", "snow"])
def test_workers_corrupt_every_image_as_the_main_process_does(name: str) -> None:
    corruption = Corruption(name, 3, seed=1)
    alone = _loaded(corruption, workers=0, batch_size=5)
    assert torch.equal(_loaded(corruption, workers=2, batch_size=2), alone)
    clean = _loaded(None, workers=0, batch_size=5)
    assert all(_distance(one, other) > 0.5 for one, other in zip(alone, clean, strict=True))


def test_equal_images_at_other_places_are_corrupted_differently() -> None:
    source = ArraySource("grey", [_image().permute(1, 2, 0).numpy()] * 3)
    loader = EvalLoader(source, height=32, width=32, batch_size=3, workers=0, retouch=Corruption("gaussian_noise", 1))
    ((images, _),) = loader
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
