"""Canvases show what their boxes and outlines say, whatever the jitter, and are the same in every process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import masks_to_boxes

from unmask.data.annotated import DetectionSource, Things
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.decode import DecodeError
from unmask.data.detection import (
    DetectionBatch,
    DetectionDataset,
    DetectionTestLoader,
    Fit,
    JitterConfig,
    Target,
    detection_loader,
    fit_of,
    open_things,
)
from unmask.data.sources import ArraySource

MEAN = (0.2, 0.4, 0.6)
FILL = torch.tensor([51, 102, 153], dtype=torch.uint8)
COLOURS = np.array([[255, 0, 0], [0, 255, 0], [255, 255, 0]], dtype=np.uint8)


class Rectangles(ArraySource, DetectionSource):
    """Black images with a red, a green and a yellow rectangle, and a crowd of white pixels along the top."""

    classes: tuple[str, ...] = ("red", "green", "yellow", "white")

    def __init__(self, sizes: list[tuple[int, int]], *, outlines: bool = True, bad: tuple[int, ...] = ()) -> None:
        generator = np.random.default_rng(0)
        self.has_masks = outlines
        self._things, images = [], []
        for height, width in sizes:
            image = np.zeros((height, width, 3), dtype=np.uint8)
            image[:2] = 255
            boxes = []
            for place, colour in enumerate(COLOURS):
                # Side by side, so that none hides another.
                left = width * place // 3 + int(generator.integers(0, width // 8 + 1))
                right = int(generator.integers(left + 1, width * (place + 1) // 3 + 1))
                top = int(generator.integers(2, height - 1))
                bottom = int(generator.integers(top + 1, height + 1))
                image[top:bottom, left:right] = colour
                boxes.append((left, top, right, bottom))
            boxes.append((0, 0, width, 2))
            masks = np.zeros((4, height, width), dtype=np.bool_)
            for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
                mask[top:bottom, left:right] = True
            images.append(image)
            self._things.append(
                Things(
                    boxes_K4=np.array(boxes, dtype=np.float32),
                    labels_K=np.arange(4),
                    masks_KHW=masks if outlines else None,
                    crowd_K=np.array([False, False, False, True]),
                )
            )
        super().__init__("rectangles", images)
        self._bad = bad

    def read(self, index: int) -> NDArray[np.uint8]:
        if index in self._bad:
            raise DecodeError("it is bad")
        return super().read(index)

    def things(self, index: int) -> Things:
        return self._things[index]


def sample(
    source: DetectionSource, canvas: tuple[int, int], config: JitterConfig, key: tuple[int, int] = (0, 0)
) -> Any:
    pair = DetectionDataset(source, canvas, config, mean=MEAN, seed=5)[key].pair
    assert pair is not None
    return pair


def equal(first: Target, second: Target) -> bool:
    pairs = [(first.boxes_K4, second.boxes_K4), (first.labels_K, second.labels_K), (first.masks_KHW, second.masks_KHW)]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(6, 70),
    width=st.integers(12, 70),
    canvas=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    scale=st.floats(0.1, 2.0),
    flip=st.sampled_from([0.0, 1.0]),
    epoch=st.integers(0, 10),
)
def test_outlines_lie_on_what_they_outline_and_boxes_around_them(
    height: int, width: int, canvas: tuple[int, int], scale: float, flip: float, epoch: int
) -> None:
    source = Rectangles([(height, width)])
    config = JitterConfig(scale=(scale, scale), flip=flip)
    image, target = sample(source, canvas, config, (epoch, 0))
    assert image.shape == (3, *canvas)
    assert target.masks_KHW.shape == (len(target.labels_K), *canvas)
    assert target.masks_KHW.dtype == torch.uint8
    assert set(target.labels_K.tolist()) <= {0, 1, 2}, "the crowd is left out"
    np.testing.assert_array_equal(
        target.boxes_K4, masks_to_boxes(target.masks_KHW) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    )
    pixels = image.permute(1, 2, 0).float()
    for label, mask in zip(target.labels_K.tolist(), target.masks_KHW.bool(), strict=True):
        inner = eroded(mask)
        if inner.any() and scale * min(canvas[0] / height, canvas[1] / width) >= 1:
            distance = (pixels[inner] - torch.from_numpy(COLOURS[label]).float()).abs().mean()
            assert distance < 30, "inside an outline is the thing's own colour"
    # Wholly red, green or yellow pixels are inside the outline of that colour, where that was kept.
    for label, mask in zip(target.labels_K.tolist(), target.masks_KHW.bool(), strict=True):
        same = (pixels - torch.from_numpy(COLOURS[label]).float()).abs().amax(dim=2) < 8
        assert bool((mask | ~eroded(same)).all())


def eroded(mask: Tensor) -> Tensor:
    """What is left without a rim of a pixel."""
    padded = torch.nn.functional.pad(mask[None, None].float(), (1, 1, 1, 1))
    return -torch.nn.functional.max_pool2d(-padded, 3, stride=1)[0, 0] > 0


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(6, 70), st.integers(12, 70)),
    canvas=st.tuples(st.integers(8, 80), st.integers(8, 80)),
    scale=st.floats(0.1, 2.0),
    flip=st.sampled_from([0.0, 1.0]),
)
def test_boxes_without_outlines_are_the_same_up_to_rounding(
    size: tuple[int, int], canvas: tuple[int, int], scale: float, flip: float
) -> None:
    config = JitterConfig(scale=(scale, scale), flip=flip)
    first_image, outlined = sample(Rectangles([size]), canvas, config)
    second_image, plain = sample(Rectangles([size], outlines=False), canvas, config)
    assert torch.equal(first_image, second_image)
    assert plain.masks_KHW is None
    edges = dict(zip(plain.labels_K.tolist(), plain.boxes_K4, strict=True))
    assert set(outlined.labels_K.tolist()) <= set(edges)
    for label, box in zip(outlined.labels_K.tolist(), outlined.boxes_K4, strict=True):
        assert (edges[label] - box).abs().max() <= 1.0
    for box in plain.boxes_K4:
        assert (box[2:] - box[:2]).min() >= 1
        assert box.min() >= 0
        assert box[2] <= canvas[1]
        assert box[3] <= canvas[0]


def test_a_small_image_stands_at_the_top_left_on_the_mean_colour_and_a_large_one_is_cut() -> None:
    source = Rectangles([(30, 60)])
    image, _ = sample(source, (40, 40), JitterConfig(scale=(0.5, 0.5)))
    assert (image[:, 10:] == FILL[:, None, None]).all()
    assert (image[:, :, 20:] == FILL[:, None, None]).all()
    assert not (image[:, :10, :20] == FILL[:, None, None]).all(dim=0).any()
    seen = set()
    for epoch in range(12):
        image, _ = sample(source, (40, 40), JitterConfig(scale=(2.0, 2.0)), (epoch, 0))
        assert not (image == FILL[:, None, None]).all(dim=0).any()
        seen.add(image.numpy().tobytes())
    assert len(seen) > 5


def test_small_outlines_are_not_moved_to_a_side() -> None:
    source = Rectangles([(40, 40)])
    mask = np.zeros((1, 40, 40), dtype=np.bool_)
    mask[0, 17:23, 17:23] = True
    source._things[0] = Things(
        boxes_K4=np.array([[17, 17, 23, 23]], dtype=np.float32),
        labels_K=np.array([0]),
        masks_KHW=mask,
        crowd_K=np.array([False]),
    )
    _, target = sample(source, (40, 40), JitterConfig(scale=(0.25, 0.25), flip=0.0))
    np.testing.assert_array_equal(target.boxes_K4, [[4, 4, 6, 6]])


def test_flipping_mirrors_image_and_things() -> None:
    source = Rectangles([(30, 40)])
    straight, mirrored = (sample(source, (30, 40), JitterConfig(scale=(1.0, 1.0), flip=flip)) for flip in (0.0, 1.0))
    assert torch.equal(straight[0].flip(-1), mirrored[0])
    assert torch.equal(straight[1].masks_KHW.flip(-1), mirrored[1].masks_KHW)
    boxes = straight[1].boxes_K4
    flipped = torch.stack([40 - boxes[:, 2], boxes[:, 1], 40 - boxes[:, 0], boxes[:, 3]], dim=1)
    assert torch.equal(flipped, mirrored[1].boxes_K4)
    both = {
        sample(source, (30, 40), JitterConfig(scale=(1.0, 1.0)), (epoch, 0))[0].numpy().tobytes() for epoch in range(20)
    }
    assert len(both) == 2


def test_scales_are_uniform_between_their_ends() -> None:
    source = Rectangles([(100, 100)])
    sides = []
    for epoch in range(300):
        image, _ = sample(source, (200, 200), JitterConfig(scale=(0.1, 1.0), flip=0.0), (epoch, 0))
        shown = ~(image == FILL[:, None, None]).all(dim=0)
        sides.append(int(shown.any(dim=1).sum()))
    assert 20 <= min(sides) < 30
    assert 190 < max(sides) <= 200
    assert np.mean(sides) == pytest.approx(110, abs=6)


def test_a_canvas_can_be_without_things() -> None:
    source = Rectangles([(50, 50)])
    found = [sample(source, (10, 10), JitterConfig(scale=(0.1, 0.1)), (epoch, 0))[1] for epoch in range(5)]
    for target in found:
        assert target.boxes_K4.shape == (len(target.labels_K), 4)
        assert target.masks_KHW is not None
    empty = Target(boxes_K4=torch.zeros(0, 4), labels_K=torch.zeros(0, dtype=torch.int64), masks_KHW=None)
    assert equal(empty.to(torch.device("cpu")), empty)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_are_taken_too(channels: int) -> None:
    source = Rectangles([(30, 40)])
    pair = DetectionDataset(source, (16, 24), JitterConfig(), mean=(0.5,) * channels, seed=0)[0, 0].pair
    assert pair is not None
    assert pair[0].shape == (channels, 16, 24)


SIZES = [(20 + n, 40 - n) for n in range(8)]


def batches(workers: int, first: int = 0, seed: int = 3, bad: tuple[int, ...] = ()) -> list[DetectionBatch]:
    loader = detection_loader(
        Rectangles(SIZES, bad=bad),
        (32, 48),
        JitterConfig(),
        mean=MEAN,
        first=first,
        last=5,
        batch_size=3,
        seed=seed,
        workers=workers,
        max_bad_share=0.5,
    )
    return list(loader)


def same(first: list[DetectionBatch], second: list[DetectionBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.indices, b.indices)
        and a.seed == b.seed
        and all(map(equal, a.targets, b.targets))
        for a, b in zip(first, second, strict=True)
    )


def test_batches_are_the_same_with_workers_and_after_a_restart() -> None:
    whole = batches(0)
    assert same(whole, batches(2))
    assert same(whole[3:], batches(0, first=3))
    assert not same(whole, batches(0, seed=4))
    assert [batch.size for batch in whole] == [3] * 5
    assert whole[0].images.shape == (3, 3, 32, 48)
    assert len(whole[0].targets) == 3
    # Two steps an epoch: no image twice in it.
    assert len({int(index) for batch in whole[:2] for index in batch.indices}) == 6


def test_bad_images_are_replaced_and_told() -> None:
    loader = detection_loader(
        Rectangles(SIZES, bad=(1, 4)),
        (32, 48),
        JitterConfig(),
        mean=MEAN,
        first=0,
        last=8,
        batch_size=2,
        seed=0,
        workers=0,
        max_bad_share=0.5,
    )
    found = {int(index) for batch in loader for index in batch.indices}
    assert found == {0, 2, 3, 5, 6, 7}
    assert loader.bad_files == {"rectangles/1": "it is bad", "rectangles/4": "it is bad"}
    with pytest.raises(TooManyBadFiles):
        batches(0, bad=tuple(range(8)))


def test_whole_images_are_as_large_as_the_canvas_holds_them() -> None:
    loader = DetectionTestLoader(Rectangles(SIZES, bad=(2,)), (32, 64), mean=MEAN, batch_size=3, workers=0)
    found = list(loader)
    assert [batch.indices for batch in found] == [(0, 1), (3, 4, 5), (6, 7)]
    assert loader.bad_files == {"rectangles/2": "it is bad"}
    for batch in found:
        for place, index in enumerate(batch.indices):
            height, width = SIZES[index]
            fit = batch.fits[place]
            assert (fit.height, fit.width) == (height, width)
            assert fit.shown_height == 32 or fit.shown_width == 64
            assert fit.shown_height / height == pytest.approx(fit.shown_width / width, rel=0.05)
            shown = ~(batch.images[place] == FILL[:, None, None]).all(dim=0)
            assert shown[: fit.shown_height, : fit.shown_width].float().mean() > 0.9
            assert not shown[fit.shown_height :].any()
            assert not shown[:, fit.shown_width :].any()
            assert batch.things[place].crowd_K.tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match=r"^no readable image in rectangles$"):
        list(DetectionTestLoader(Rectangles(SIZES[:1], bad=(0,)), (32, 64), mean=MEAN, batch_size=3, workers=0))


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    canvas=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
)
def test_a_fit_is_inside_the_canvas_and_touches_it(height: int, width: int, canvas: tuple[int, int]) -> None:
    fit = fit_of(height, width, canvas)
    assert isinstance(fit, Fit)
    assert 1 <= fit.shown_height <= canvas[0]
    assert 1 <= fit.shown_width <= canvas[1]
    assert fit.shown_height == canvas[0] or fit.shown_width == canvas[1]


def test_things_that_do_not_fit_their_image_make_it_a_bad_file() -> None:
    class Wrong(Rectangles):
        def things(self, index: int) -> Things:
            return self._things[1 - index]

    with pytest.raises(DecodeError, match=r"^what is marked in it does not fit into its 40 x 30 pixels$"):
        open_things(Wrong([(30, 40), (30, 50)]), 0)
    with pytest.raises(DecodeError, match=r"^what is marked in it does not fit into its 40 x 30 pixels$"):
        open_things(Wrong([(30, 40), (60, 40)], outlines=False), 0)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^the jitter's scale must be a range above 0, got 0 to 1$"):
        JitterConfig(scale=(0, 1))
    with pytest.raises(ValueError, match=r"^flip must lie in \[0, 1\], got 2$"):
        JitterConfig(flip=2)
