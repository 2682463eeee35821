"""Images that look the same are found, others are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unmask.data.likeness import Likeness, likeness, look_alike

COINS = Path(__file__).parents[1] / "data_files" / "coins" / "train" / "images" / "upper.jpg"


def cuts(count: int, side: int = 96) -> list[Image.Image]:
    """Different pieces of a photograph."""
    generator = np.random.default_rng(0)
    with Image.open(COINS) as opened:
        photo = opened.convert("RGB")
    corners = [
        (int(generator.integers(photo.width - side)), int(generator.integers(photo.height - side)))
        for _ in range(count)
    ]
    return [photo.crop((left, top, left + side, top + side)) for left, top in corners]


def saved_again(image: Image.Image, scale: float, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC).save(
        buffer, "JPEG", quality=quality
    )
    return Image.open(buffer)


def of(image: Image.Image) -> Likeness:
    return likeness(np.asarray(image))


@pytest.mark.parametrize(("scale", "quality"), [(1, 60), (0.5, 90), (1.5, 80), (0.75, 50)])
def test_an_image_that_was_saved_again_is_found(scale: float, quality: int) -> None:
    originals = cuts(4)
    found = look_alike([*map(of, originals), *(of(saved_again(image, scale, quality)) for image in originals)])
    assert found == [[place, place + 4] for place in range(4)]


def test_a_mirrored_a_brighter_and_a_recoloured_image_are_others() -> None:
    image = cuts(1)[0]
    pixels_HWC = np.asarray(image)
    brighter_HWC = np.minimum(pixels_HWC.astype(np.int16) + 40, 255).astype(np.uint8)
    tinted_HWC = pixels_HWC.copy()
    tinted_HWC[:, :, 0] //= 2
    others = [pixels_HWC[:, ::-1].copy(), brighter_HWC, tinted_HWC]
    assert look_alike([of(image), *map(likeness, others)]) == []


def test_a_group_is_what_looks_like_its_first_image() -> None:
    """A slow change from one image to another makes no single chain of all."""
    first, last = (np.asarray(image).astype(np.float32) for image in cuts(2))
    steps = [((1 - share) * first + share * last).astype(np.uint8) for share in np.linspace(0, 1, 41)]
    groups = look_alike([likeness(step_HWC) for step_HWC in steps])
    assert len(groups) > 1
    assert max(map(len, groups)) < len(steps)
    assert len({place for group in groups for place in group}) == sum(map(len, groups))


def test_images_of_one_colour_and_of_other_channels_are_not_compared() -> None:
    plain = np.full((40, 60, 3), 90, dtype=np.uint8)
    assert likeness(plain).hash is None
    grey = np.asarray(cuts(1)[0].convert("L"))[:, :, None]
    assert look_alike([likeness(plain), likeness(plain), likeness(grey), likeness(np.repeat(grey, 5, axis=2))]) == []


def test_any_size_and_number_of_channels() -> None:
    generator = np.random.default_rng(1)
    for shape in ((1, 1, 1), (3, 200, 2), (7, 5, 13), (300, 40, 3)):
        found = likeness(generator.integers(0, 256, shape, dtype=np.uint8))
        assert found.thumb_HWC.shape == (8, 8, shape[2])
    assert look_alike([]) == []
