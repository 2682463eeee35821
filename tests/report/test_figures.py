"""Pixels are where they should be, for any channels and any size."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unmask.report import (
    Sheet,
    attention_sheet,
    masked_image,
    neighbour_sheet,
    pasted_image,
    pick_queries,
    position_score,
    reconstruction_sheet,
    similarity_sheet,
)
from unmask.report.figures import QUERY_COLOURS, WHITE
from unmask.report.pixels import SHOWN_AT_LEAST, SHOWN_AT_MOST, enlarged, outlined, to_picture


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def one_hot(places: list[int], patches: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(places), patches).bool()


@settings(max_examples=20, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch=st.integers(1, 4),
    channels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_exactly_the_hidden_patches_turn_grey_or_are_pasted(
    rows: int, columns: int, patch: int, channels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, channels, rows * patch, columns * patch, generator=generator)
    mask = torch.rand(2, rows * columns, generator=generator) < 0.5
    masked = masked_image(images, mask, (rows, columns))
    pasted = pasted_image(images, -images - 1, mask, (rows, columns))
    for b in range(2):
        for n in range(rows * columns):
            top, left = n // columns * patch, n % columns * patch
            spot = (b, slice(None), slice(top, top + patch), slice(left, left + patch))
            assert torch.equal(masked[spot], torch.full_like(images[spot], 0.5) if mask[b, n] else images[spot])
            assert torch.equal(pasted[spot], -images[spot] - 1 if mask[b, n] else images[spot])


def test_a_mask_that_does_not_fit_its_grid_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="a mask over 9 patches does not fit a grid of 2 x 4"):
        masked_image(torch.zeros(1, 3, 8, 8), torch.zeros(1, 9, dtype=torch.bool), (2, 4))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_channels_become_colours_or_grey(channels: int) -> None:
    image = torch.linspace(-0.5, 1.5, channels)[:, None, None].expand(channels, 2, 3)
    picture = to_picture(image)
    assert picture.shape == (2, 3, 3)
    shown = {1: [0, 0, 0], 2: [255, 0, 255]}.get(channels, (image[:3, 0, 0].clamp(0, 1) * 255).round().tolist())
    assert picture[1, 2].tolist() == shown


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_shown_sizes_are_bounded_and_small_images_grow_by_a_whole_factor(height: int, width: int) -> None:
    picture = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
    shown = enlarged(picture)
    assert min(SHOWN_AT_LEAST, max(height, width)) <= max(shown.shape[:2])
    assert max(shown.shape[:2]) <= max(SHOWN_AT_MOST, 2 * SHOWN_AT_LEAST)
    if max(height, width) <= SHOWN_AT_MOST:
        factor = shown.shape[0] // height
        assert shown.shape == (height * factor, width * factor, 3)
        assert np.array_equal(shown[::factor, ::factor], picture)


@pytest.mark.parametrize("patch", range(12))
def test_an_outline_frames_its_patch_and_leaves_inner_patches_alone(patch: int) -> None:
    grid, side = (3, 4), 40
    picture = np.zeros((3 * side, 4 * side, 3), dtype=np.uint8)
    framed = outlined(picture, patch, grid, (255, 0, 0))
    ys, xs = np.nonzero(framed[..., 0] == 255)
    row, column = divmod(patch, 4)
    # Around the patch, moved inwards at the border of the image.
    assert max(row * side - 3, 0) == ys.min()
    assert ys.max() == min((row + 1) * side + 2, 3 * side - 1)
    assert max(column * side - 3, 0) == xs.min()
    assert xs.max() == min((column + 1) * side + 2, 4 * side - 1)
    centre = framed[row * side + 8 : (row + 1) * side - 8, column * side + 8 : (column + 1) * side - 8]
    assert not centre.any()


def test_reconstruction_rows_show_what_their_headings_say() -> None:
    original, reconstruction = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    sheet = reconstruction_sheet(original, reconstruction, one_hot([0, 3], 4), (2, 2))
    assert sheet.headers == ("original", "masked", "reconstructed", "pasted in")
    corners = [[[int(p[0, 0, 0]), int(p[-1, -1, 0])] for p in (pixels(c.image) for c in row)] for row in sheet.rows]
    assert corners[0] == [[0, 0], [128, 0], [255, 255], [255, 0]]
    assert corners[1] == [[0, 0], [0, 128], [255, 255], [0, 255]]
    assert sheet.note.startswith("25.0")


def test_similarity_maps_frame_the_true_place_and_say_whether_it_was_found() -> None:
    patches, grid, side = 16, (4, 4), 48
    mask = one_hot([5], patches) | one_hot([10], patches)
    probability = torch.full((1, patches, patches), 0.01)
    probability[0, 5, 5] = 0.85
    probability[0, 10, 0] = 0.70
    view = torch.zeros(1, 3, 32, 32)
    sheet = similarity_sheet(view, view, mask, probability, torch.tensor([[5, 10]]), grid)
    masked, _, found, missed = sheet.rows[0]
    assert (found.mark, missed.mark) == ("right", "wrong")
    assert found.label.startswith("85.0")
    assert missed.label.startswith("1.0")
    assert "50.0" in sheet.note
    assert "row 3, column 3" in missed.alt
    assert "row 1, column 1" in missed.alt

    def frame_start(cell: bytes, colour: tuple[int, int, int]) -> tuple[int, int]:
        ys, xs = np.nonzero((pixels(cell) == colour).all(axis=-1))
        return int(ys.min()), int(xs.min())

    for cell in (masked.image, found.image):
        assert frame_start(cell, QUERY_COLOURS[0]) == (side - 3, side - 3)
    for cell in (masked.image, missed.image):
        assert frame_start(cell, QUERY_COLOURS[1]) == (2 * side - 3, 2 * side - 3)
    assert frame_start(missed.image, WHITE) == (0, 0)
    # The brightest patch is the most probable one.
    light = pixels(missed.image).astype(int).sum(axis=-1)
    assert light[side // 2, side // 2] > light[side // 2, 3 * side + side // 2]


def test_more_queries_than_colours_are_refused() -> None:
    view, mask = torch.zeros(1, 3, 32, 32), torch.ones(1, 16, dtype=torch.bool)
    with pytest.raises(ValueError, match="at most 6 queries an image can be told apart, not 7"):
        similarity_sheet(view, view, mask, torch.ones(1, 16, 16), torch.arange(7)[None], (4, 4))


def test_position_score_counts_hidden_patches_only() -> None:
    mask = one_hot([0], 4) | one_hot([1], 4)
    probability = torch.zeros(1, 4, 4)
    probability[0, 0, 0] = probability[0, 1, 3] = probability[0, 2, 2] = 1
    score = position_score(probability, mask)
    assert (score.share, score.chance, score.patches) == (0.5, 0.25, 2)
    with pytest.raises(ValueError, match="no patch is hidden"):
        position_score(probability, torch.zeros(1, 4, dtype=torch.bool))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), queries=st.integers(1, 6))
def test_queries_are_distinct_and_hidden(seed: int, queries: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 3, 16, 16, generator=generator)
    mask = torch.rand(3, 16, generator=generator) < 0.5
    mask[:, :queries] = True
    picked = pick_queries(images, mask, (4, 4), queries)
    assert mask.gather(1, picked).all()
    assert all(len(set(row)) == queries for row in picked.tolist())


def test_queries_prefer_detail() -> None:
    images = torch.full((1, 1, 8, 8), 0.5)
    images[0, 0, 4:, 4:] = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    assert pick_queries(images, torch.ones(1, 4, dtype=torch.bool), (2, 2), 1).tolist() in ([[3]], [[2]])
    mask = torch.tensor([[True, False, False, True]])
    assert pick_queries(images, mask, (2, 2), 1).tolist() == [[3]]
    with pytest.raises(ValueError, match="3 queries an image were asked for, but an image has fewer"):
        pick_queries(images, mask, (2, 2), 3)


def test_attention_shows_the_mean_and_some_heads() -> None:
    attention = torch.zeros(1, 3, 4)
    attention[0, :, 1] = torch.tensor([0.1, 0.2, 0.9])
    sheet = attention_sheet(torch.zeros(1, 2, 8, 8), attention, (2, 2), heads=2)
    assert sheet.headers == ("image", "mean of heads", "head 1", "head 3")
    for cell in sheet.rows[0][1:]:
        light = pixels(cell.image).astype(int).sum(axis=-1)
        assert light[0, -1] > light[0, 0] == light[-1, 0] == light[-1, -1]
    assert len(attention_sheet(torch.zeros(1, 1, 8, 8), attention, (2, 2), heads=9).headers) == 5


def neighbours(labels: tuple[list[str], list[list[str]]] | None) -> Sheet:
    images = torch.zeros(2, 3, 8, 8)
    around = torch.ones(2, 2, 3, 8, 8)
    if labels is None:
        return neighbour_sheet(images, around)
    return neighbour_sheet(images, around, query_labels=labels[0], neighbour_labels=labels[1])


def test_neighbours_are_marked_by_their_labels() -> None:
    sheet = neighbours((["a", "b"], [["a", "b"], ["b", "b"]]))
    assert [[cell.mark for cell in row] for row in sheet.rows] == [
        ["none", "right", "wrong"],
        ["none", "right", "right"],
    ]
    assert sheet.note == "3 of 4 neighbours have their query's label."
    assert pixels(sheet.rows[0][0].image).max() == 0
    assert pixels(sheet.rows[0][1].image).min() == 255


def test_neighbours_without_labels_are_not_judged() -> None:
    sheet = neighbours(None)
    assert {cell.mark for row in sheet.rows for cell in row} == {"none"}
    assert (sheet.note, "tick" in sheet.caption) == ("", False)


def test_labels_that_do_not_fit_are_one_sentence() -> None:
    with pytest.raises(ValueError, match="2 queries with 2 neighbours each need as many labels"):
        neighbours((["a", "b"], [["a"], ["b", "b"]]))
    with pytest.raises(ValueError, match="for the queries and for their neighbours, or for neither"):
        neighbour_sheet(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 3, 4, 4), query_labels=["a"])


def test_large_images_are_kept_small() -> None:
    noise = torch.rand(1, 3, 600, 400, generator=torch.Generator().manual_seed(0))
    image = neighbour_sheet(noise, noise[:, None]).rows[0][0].image
    assert pixels(image).shape == (320, 213, 3)
    assert len(image) < 120_000
