"""What pages are made of: the frame of a document, and words, charts, pictures and tables as HTML.

All text is escaped where it is put in, because file names, labels and settings are written by others. A
content security policy forbids a page to load or run anything, should a mistake ever be made here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Annotated, Any

from typing_extensions import Doc

from unmask.report.charts import Chart
from unmask.report.sheet import Cell, Sheet
from unmask.report.summary import Fact, Table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Sheets of one kind under one heading; the caption of the first serves for all."""

    title: Annotated[str, Doc("Heading.")]
    sheets: Annotated[Mapping[str, Sheet], Doc("Sheets side by side, by name; a single one needs no name.")]


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading, which the page's head links to."""

    name: Annotated[str, Doc("One word, the link's.")]
    title: Annotated[str, Doc("Heading.")]
    kind: Annotated[str, Doc("How it is laid out: charts, figures or details.")]
    content: Annotated[str, Doc("HTML; a section without any is left out.")]


def document(title: str, head: Callable[[str], str], sections: Sequence[Section]) -> str:
    """A page of its own; `head` makes what stands above the sections, around the links to them."""
    style = (files("unmask.report") / "style.css").read_text(encoding="utf-8")
    present = [section for section in sections if section.content]
    links = "".join(f'<a href="#{section.name}">{section.name.capitalize()}</a>' for section in present)
    body = "".join(
        f'<section id="{section.name}"><h2>{section.title}</h2><div class="{section.kind}">{section.content}</div>'
        "</section>"
        for section in present
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)} · unmask</title><style>{style}</style></head>"
        f"<body><main>{head(links)}{body}</main></body></html>\n"
    )


def header(links: str, title: str, verdict: str, entries: str) -> str:
    """Links, title, the verdict in a sentence or two, and `entries`: `<div>` elements of a description list."""
    return (
        f'<header><nav aria-label="Sections"><span class="brand">unmask</span>{links}</nav>'
        f'<h1>{escape(title)}</h1><p class="verdict">{escape(verdict)}</p>'
        f'<dl class="about">{entries}</dl></header>'
    )


def fact_tiles(facts: Sequence[Fact]) -> str:
    """Small tiles; nothing where there are none."""
    tiles = "".join(f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd></div>" for fact in facts)
    return f'<dl class="facts">{tiles}</dl>' if tiles else ""


def warning_list(warnings: Sequence[str], *, none: str) -> str:
    """What is worth a look, as a list; the sentence `none` where nothing is."""
    if not warnings:
        return f'<p class="quiet">{escape(none)}</p>'
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in warnings)
    return f'<aside class="warnings" aria-label="Warnings"><h2>Worth a look</h2><ul>{items}</ul></aside>'


def chart_html(chart: Chart) -> str:
    """A chart with its words."""
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f"<figure><h3>{escape(chart.title)}</h3>{chart.svg}{caption}</figure>"


def figure_html(figure: Figure) -> str:
    """Pictures with their words."""
    sheets = "".join(_sheet(name, sheet) for name, sheet in figure.sheets.items())
    caption = next((sheet.caption for sheet in figure.sheets.values()), "")
    kind = "figure several" if len(figure.sheets) > 1 else "figure"
    return (
        f'<figure class="{kind}"><h3>{escape(figure.title)}</h3><div class="sheets">{sheets}</div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _sheet(name: str, sheet: Sheet) -> str:
    headers = "".join(f"<span>{escape(header)}</span>" for header in sheet.headers)
    cells = "".join(_cell(cell) for row in sheet.rows for cell in row)
    title = f"<h4>{escape(name)}</h4>" if name else ""
    note = f'<p class="note">{escape(sheet.note)}</p>' if sheet.note else ""
    columns = len(sheet.headers)
    return (
        f'<div class="sheet" style="--columns:{columns}">{title}{note}'
        f'<div class="cells"><div class="heads">{headers}</div>{cells}</div></div>'
    )


def _cell(cell: Cell) -> str:
    if not cell.image:
        return '<div class="cell"></div>'
    kind = "png" if cell.image.startswith(b"\x89PNG") else "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(cell.image).decode()}"
    sign = {"none": "", "right": '<b aria-label="right">✓</b> ', "wrong": '<b aria-label="wrong">✕</b> '}[cell.mark]
    words = f'<span title="{escape(cell.label)}">{sign}{escape(cell.label)}</span>' if cell.label or sign else ""
    return f'<div class="cell {cell.mark}"><img src="{source}" alt="{escape(cell.alt)}">{words}</div>'


def fold(title: str, content: str) -> str:
    """What a reader opens by a click; `content` is HTML."""
    return f'<details><summary>{escape(title)}</summary><div class="scroll">{content}</div></details>'


def table_html(table: Table) -> str:
    """A plain table."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in table.headers)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def settings_html(settings: Mapping[str, Any]) -> str:
    """A table of names and values."""
    return f'<table class="settings">{"".join(_settings(settings, 0))}</table>'


def _settings(settings: Mapping[str, Any], depth: int) -> list[str]:
    """One row a setting; what is nested gets a row for its name and is set in below it."""
    rows: list[str] = []
    for name, value in settings.items():
        head = f'<th scope="row" style="--depth:{depth}">{escape(str(name))}</th>'
        if isinstance(value, Mapping) and value:
            rows.append(f'<tr class="group">{head}<td></td></tr>')
            rows += _settings(value, depth + 1)
        else:
            rows.append(f"<tr>{head}<td>{escape(_value(value))}</td></tr>")
    return rows


def _value(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_value(item) for item in value) or "none"
    return str(value)
