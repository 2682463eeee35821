"""A sheet of pictures as one picture: cells in rows, words under each, the caption on top."""

from __future__ import annotations

import io
from functools import cache

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from unmask.report.sheet import Cell, Sheet

SIDE = 160
_GAP = 12
_TEXT = 12
_INK = "#1c1c1c"
_QUIET = "#6b6b6b"
_PAPER = "#ffffff"
_GROUND = "#f1f1ef"
_FRAMES = {"none": None, "right": "#2e7d32", "wrong": "#c62828"}


def contact_sheet(sheet: Sheet) -> bytes:
    """The sheet as a PNG. A cell without a picture stays empty."""
    columns = len(sheet.headers)
    width = columns * (SIDE + _GAP) + _GAP
    heading = _wrapped(sheet.caption, _font(14), width - 2 * _GAP) + _wrapped(sheet.note, _font(14), width - 2 * _GAP)
    label_height = max((len(_lines(cell)) for row in sheet.rows for cell in row), default=0) * (_TEXT + 4)
    top = _GAP + 20 * len(heading) + (_TEXT + 12 if any(sheet.headers) else _GAP)
    cell_height = SIDE + 6 + label_height + _GAP
    page = Image.new("RGB", (width, top + cell_height * len(sheet.rows) + _GAP), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(heading):
        draw.text((_GAP, _GAP + 20 * number), line, fill=_INK, font=_font(14))
    for column, header in enumerate(sheet.headers):
        draw.text((_GAP + column * (SIDE + _GAP), top - _TEXT - 8), header, fill=_QUIET, font=_font(_TEXT))
    for number, row in enumerate(sheet.rows):
        for column, cell in enumerate(row):
            _draw_cell(page, draw, cell, _GAP + column * (SIDE + _GAP), top + number * cell_height)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _draw_cell(page: Image.Image, draw: ImageDraw.ImageDraw, cell: Cell, left: int, top: int) -> None:
    if not cell.image:
        return
    draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill=_GROUND)
    with Image.open(io.BytesIO(cell.image)) as opened:
        picture = opened.convert("RGB")
    # Small pictures keep square pixels, as on the page.
    smooth = max(picture.size) > SIDE // 2
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    picture = picture.resize(size, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    page.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
    frame = _FRAMES[cell.mark]
    if frame is not None:
        draw.rectangle((left - 2, top - 2, left + SIDE + 1, top + SIDE + 1), outline=frame, width=3)
    for number, line in enumerate(_lines(cell)):
        draw.text((left, top + SIDE + 6 + number * (_TEXT + 4)), line, fill=_INK, font=_font(_TEXT))


def _lines(cell: Cell) -> list[str]:
    """The words under a picture, each line as far as it fits; of long ones the end, where file names differ."""
    return [_shortened(line) for line in cell.label.split("\n") if line]


def _shortened(line: str) -> str:
    font = _font(_TEXT)
    if font.getlength(line) <= SIDE:
        return line
    while line and font.getlength("…" + line) > SIDE:
        line = line[1:]
    return "…" + line


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that comes with matplotlib and knows most alphabets."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
