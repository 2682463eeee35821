"""What a source of images holds as one HTML page: pictures of it, copies side by side, values, damage, defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from unmask.data.decode import DecodeError
from unmask.data.statistics import LEVELS
from unmask.data.survey import Group, Survey, spread_over
from unmask.report.charts import Chart, line_chart
from unmask.report.false_colour import FalseColour
from unmask.report.parts import (
    Figure,
    Section,
    chart_html,
    document,
    fact_tiles,
    figure_html,
    fold,
    header,
    settings_html,
    table_html,
    warning_list,
)
from unmask.report.pixels import SHOWN_AT_MOST, shown
from unmask.report.sheet import Cell, Sheet
from unmask.report.summary import Fact, Table
from unmask.report.survey_words import Plan, fact_rows, looked_at, warnings
from unmask.report.text import count

SHOWN = 64
COLUMNS = 8
MIN_COLUMNS = 4
GROUPS_SHOWN = 12
ROWS_AT_MOST = 200
"""Rows of a folded table; files and groups beyond these are in the list and in the JSON that the command writes."""
_BINS = 64


def survey_page(survey: Survey, plan: Plan) -> str:
    """The page as HTML. Reads some dozens of the images again."""
    rows = fact_rows(survey)
    name = survey.halves.pretraining.name
    return document(
        name,
        lambda links: _head(links, name, survey, plan),
        (
            Section(name="pictures", title="Pictures", kind="figures", content=_pictures(survey)),
            Section(name="values", title="Values of the pixels", kind="charts", content=_charts(survey)),
            Section(name="details", title="Details", kind="details", content=_details(survey, plan, rows)),
        ),
    )


def _head(links: str, name: str, survey: Survey, plan: Plan) -> str:
    rows = fact_rows(survey)
    chosen = [*plan.rows.values()]
    entries = "".join(
        f"<div><dt>{title}</dt><dd>{escape(words)}<small>{escape(more)}</small></dd></div>"
        for title, words, more in (
            ("Looked at", looked_at(survey), f"{rows['files']}; {rows['sizes']}"),
            ("Pixels", rows.get("pixels", "nothing was decoded"), f"mean {rows['mean']}" if "mean" in rows else ""),
            (
                "unmask pretrain would choose",
                ", ".join(chosen[:2]) or "nothing",
                plan.rows.get("training", plan.refusal),
            ),
        )
    )
    facts = tuple(
        Fact(name=title, value=value)
        for title, value in (
            ("images", count(len(survey.halves.images))),
            ("classes", count(len(survey.halves.class_counts)) if survey.halves.class_counts else "none"),
            ("median size", _median_size(survey)),
            ("bad files", count(len(survey.bad))),
            ("exact copies", count(survey.copies(exact=True))),
            ("look alike", count(survey.copies(exact=False))),
        )
    )
    return (
        f"{header(links, name, _sentence(rows['images']), entries)}"
        f'<section class="tiles" aria-label="Facts">{fact_tiles(facts)}</section>'
        f"{warning_list(warnings(survey, plan), none='Nothing was found that stands in the way of training.')}"
    )


def _sentence(images: str) -> str:
    return f"Images: {images}."


def _median_size(survey: Survey) -> str:
    height, width = np.median(survey.sizes_N2, axis=0)
    return f"{width:g} x {height:g}"


def _pictures(survey: Survey) -> str:
    figures = [_overview(survey)]
    for exact, title, caption in (
        (True, "Exact copies", "Files with the same bytes, a row a group, the largest groups first."),
        (
            False,
            "Images that look nearly alike",
            "A row a group: files that were saved again in another size, quality or format, and whatever else has the "
            "same coarse shapes and colours. Features tell more: unmask embed, then unmask duplicates.",
        ),
    ):
        groups = [group for group in survey.groups if group.exact == exact]
        if groups:
            figures.append(_group_figure(survey, groups, title, caption))
    return "".join(map(figure_html, figures))


def _overview(survey: Survey) -> Figure:
    places = [survey.shown[place] for place in spread_over(len(survey.shown), SHOWN)]
    shots = [shot for place in places if (shot := _shot(survey, place)) is not None]
    columns = min(COLUMNS, max(1, len(shots)))
    rows = [shots[start : start + columns] for start in range(0, len(shots), columns)]
    caption = (
        f"{count(len(shots))} images, evenly spread over the data in its order, whole and upright, each with its size "
        "(width x height) and name."
    )
    return Figure(title="Images", sheets={"": _sheet(columns, rows, caption)})


def _group_figure(survey: Survey, groups: Sequence[Group], title: str, caption: str) -> Figure:
    shown_groups = groups[:GROUPS_SHOWN]
    largest = max(len(group.positions) for group in shown_groups)
    columns = min(COLUMNS, max(MIN_COLUMNS, largest))
    rows = []
    for group in shown_groups:
        shots = [_shot(survey, place, half=True) for place in group.positions[:columns]]
        rows.append([*shots, *[None] * (columns - len(shots))])
    note = f"{len(shown_groups)} of {count(len(groups))} groups."
    cut = f" Of each, at most {columns} images are shown." if largest > columns else ""
    return Figure(title=title, sheets={"": _sheet(columns, rows, caption, note + cut)})


@dataclass(frozen=True)
class _Shot:
    """A cell to be, with its image [C, H, W] in [0, 1]."""

    image_CHW: Tensor
    alt: str
    label: str


def _shot(survey: Survey, place: int, *, half: bool = False) -> _Shot | None:
    """One image with its size, its name and, where it matters, its half; None where it cannot be read any more."""
    source = survey.halves.images
    try:
        opened = source.open(place)
        pixels_HWC = opened.decode(min_size=(SHOWN_AT_MOST, SHOWN_AT_MOST), channels=opened.channels).pixels_HWC
    except (OSError, DecodeError):
        return None
    path = source.path(place)
    words = [f"{opened.width} x {opened.height}", os.path.basename(path)]
    if half and survey.halves.judged:
        words.insert(0, "training" if place < survey.halves.training else "test")
    image_CHW = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float() / 255
    return _Shot(image_CHW, path, " · ".join(words))


def _sheet(columns: int, rows: Sequence[Sequence[_Shot | None]], caption: str, note: str = "") -> Sheet:
    """The images in rows; all of one number of channels in the same colours, so that those look alike that are."""
    images: dict[int, list[Tensor]] = {}
    for shot in (shot for row in rows for shot in row if shot is not None):
        images.setdefault(len(shot.image_CHW), []).append(shot.image_CHW)
    colours = {channels: FalseColour.of(some) for channels, some in images.items()}

    def cell(shot: _Shot | None) -> Cell:
        if shot is None:
            return Cell(image=b"", alt="")
        picture = shown(colours[len(shot.image_CHW)](shot.image_CHW))
        return Cell(image=picture, alt=shot.alt, label=shot.label)

    for colour in colours.values():
        caption = colour.captioned(caption)
    return Sheet(headers=("",) * columns, rows=tuple(tuple(map(cell, row)) for row in rows), caption=caption, note=note)


def _charts(survey: Survey) -> str:
    charts = []
    for channels, values in survey.values.items():
        shares_CB = values.shares_CL.reshape(channels, _BINS, LEVELS // _BINS).sum(axis=2)
        lines = {
            name: [((place + 0.5) / _BINS, 100 * float(share)) for place, share in enumerate(shares_CB[channel])]
            for name, channel in _channel_names(channels).items()
        }
        what = {1: "Grey images", 3: "Colour images"}.get(channels, f"Images of {channels} channels")
        title = f"{what} ({count(values.count)})"
        svg = line_chart(lines, title=title, x_label="value, from black to white", y_label="% of the pixels")
        mean, std = values.mean_and_std
        told = ", ".join(
            f"{name} {mean[channel]:.3f} ± {std[channel]:.3f}" for name, channel in _channel_names(channels).items()
        )
        charts.append(
            Chart(
                title=title,
                svg=svg,
                caption=f"How often each value occurs, by channel, in {_BINS} steps. Mean and deviation: {told}.",
            )
        )
    return "".join(map(chart_html, charts))


def _channel_names(channels: int) -> dict[str, int]:
    """Channels by name, in the order in which a chart's colours are those of the channels."""
    if channels == 1:
        return {"grey": 0}
    if channels == 3:
        return {"blue": 2, "red": 0, "green": 1}
    return {f"channel {channel + 1}": channel for channel in range(channels)}


def _details(survey: Survey, plan: Plan, rows: Mapping[str, str]) -> str:
    name = survey.halves.images.path
    folds = [fold("All facts", settings_html(rows))]
    if plan.rows:
        folds.append(fold("What unmask pretrain would do", settings_html(plan.rows)))
    bad = [(note.path, note.reason) for note in survey.bad]
    groups = [
        ("same" if group.exact else "nearly the same", ", ".join(map(name, group.positions))) for group in survey.groups
    ]
    classes = [(each, count(training), count(testing)) for each, training, testing in survey.halves.class_counts]
    for title, headers, found in (
        ("Files that cannot be used", ("file", "why"), bad),
        ("Copies", ("", "images"), groups),
        ("Classes", ("class", "images for training", "for testing"), classes),
    ):
        if found:
            more = f", the first {ROWS_AT_MOST} of them" if len(found) > ROWS_AT_MOST else ""
            table = Table(title="", headers=headers, rows=tuple(found[:ROWS_AT_MOST]))
            folds.append(fold(f"{title} ({count(len(found))}{more})", table_html(table)))
    return "".join(folds)
