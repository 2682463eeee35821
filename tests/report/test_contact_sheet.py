"""A contact sheet shows every picture where it belongs, whatever its shape and however long its name."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unmask.report.contact_sheet import SIDE, contact_sheet
from unmask.report.pixels import encoded
from unmask.report.sheet import Cell, Sheet

RED, BLUE = (200, 0, 0), (0, 0, 200)


def cell(colour: tuple[int, int, int], height: int, width: int, label: str = "") -> Cell:
    return Cell(image=encoded(np.full((height, width, 3), colour, np.uint8), exact=True), alt="a colour", label=label)


def centres(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero((pixels == colour).all(axis=2))
    return int(rows.min()), int(columns.min()), int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_pictures_keep_their_shape_and_place() -> None:
    long = "a/very/long/path/to/an/image/" * 4 + "面-001.png"
    sheet = Sheet(
        headers=("query", "1", "2"),
        rows=((cell(RED, 10, 20), cell(BLUE, 400, 100, f"0.99\n{long}"), Cell(image=b"", alt="nothing")),),
        caption="One caption. " * 20,
        note="A note.",
    )
    with Image.open(io.BytesIO(contact_sheet(sheet))) as page:
        assert page.format == "PNG"
        pixels = np.asarray(page.convert("RGB"))
    red, blue = centres(pixels, RED), centres(pixels, BLUE)
    assert red[2:] == (SIDE // 2, SIDE)  # twice as wide as high
    assert blue[2:] == (SIDE, SIDE // 4)
    assert abs(red[0] + red[2] // 2 - (blue[0] + blue[2] // 2)) <= 1  # side by side, each in the middle of its cell
    assert red[1] + SIDE < blue[1]
    last = pixels[:, -SIDE:]
    assert not ((last == RED).all(axis=2) | (last == BLUE).all(axis=2)).any()
    below = pixels[blue[0] + SIDE + 2 :, blue[1] - 60 : blue[1] + 80]
    assert (below < 128).any()  # words


def test_hits_and_misses_have_frames() -> None:
    image = cell(BLUE, 8, 8).image
    rows = ((Cell(image=image, alt="a", mark="right"), Cell(image=image, alt="b", mark="wrong")),)
    with Image.open(io.BytesIO(contact_sheet(Sheet(headers=("", ""), rows=rows, caption="")))) as page:
        found = {colour for _, colour in page.convert("RGB").getcolors(1 << 16) or ()}
    assert {(0x2E, 0x7D, 0x32), (0xC6, 0x28, 0x28)} <= found
