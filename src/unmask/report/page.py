"""One run as one HTML page that needs nothing else: no network, no script, no font, no second file.

All text is escaped where it is put in, because file names, labels and settings are written by others. A
content security policy forbids the page to load or run anything, should a mistake ever be made here.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Annotated, Any

from typing_extensions import Doc

from unmask.report.charts import Chart
from unmask.report.sheet import Cell, Sheet
from unmask.report.summary import Accuracy, Fact, Score, Table
from unmask.report.text import DASH, SPACE, interval, percent, points

BAD_FILES_NAMED = 50
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Sheets of one kind under one heading; the caption of the first serves for all."""

    title: Annotated[str, Doc("Heading.")]
    sheets: Annotated[Mapping[str, Sheet], Doc("Sheets side by side, by name; a single one needs no name.")]


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that a run's page says."""

    run: Annotated[str, Doc("Name of the run.")]
    method: Annotated[str, Doc("Full name of the method.")]
    idea: Annotated[str, Doc("The method's idea in one line.")]
    encoder: Annotated[str, Doc("The encoder, in words.")]
    data: Annotated[str, Doc("What it was trained on, in words.")]
    verdict: Annotated[str, Doc("What the run is worth, in one or two sentences.")]
    accuracies: Annotated[Sequence[Accuracy], Doc("Tiles with before, after and floor.")] = ()
    facts: Annotated[Sequence[Fact], Doc("Small tiles.")] = ()
    warnings: Annotated[Sequence[str], Doc("What was seen to go wrong, in plain sentences.")] = ()
    charts: Annotated[Sequence[Chart], Doc("Learning curves.")] = ()
    figures: Annotated[Sequence[Figure], Doc("Pictures.")] = ()
    tables: Annotated[Sequence[Table], Doc("Tables, folded; those without rows are left out.")] = ()
    config: Annotated[Mapping[str, Any], Doc("The run's settings as read from config.json.")]
    bad_files: Annotated[Sequence[str], Doc("Names of all the files that could not be read.")] = ()
    versions: Annotated[Mapping[str, str], Doc("Version by package.")]


def render_page(page: Page) -> str:
    """The page as HTML."""
    style = (files("unmask.report") / "style.css").read_text(encoding="utf-8")
    sections = [
        ("curves", "Learning curves", "".join(_chart(chart) for chart in page.charts), "charts"),
        ("pictures", "Pictures", "".join(_figure(figure) for figure in page.figures), "figures"),
        ("details", "Details", _details(page), "details"),
    ]
    present = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name, _, _, _ in present)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2><div class="{kind}">{content}</div></section>'
        for name, title, content, kind in present
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(page.run)} · unmask</title><style>{style}</style></head>"
        f"<body><main>{_head(page, links)}{body}</main></body></html>\n"
    )


def _head(page: Page, links: str) -> str:
    about = (("Method", page.method, page.idea), ("Encoder", page.encoder, ""), ("Data", page.data, ""))
    entries = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in about
    )
    facts = "".join(f"<div><dt>{escape(fact.name)}</dt><dd>{escape(fact.value)}</dd></div>" for fact in page.facts)
    facts = f'<dl class="facts">{facts}</dl>' if facts else ""
    return (
        f'<header><nav aria-label="Sections"><span class="brand">unmask</span>{links}</nav>'
        f'<h1>{escape(page.run)}</h1><p class="verdict">{escape(page.verdict)}</p>'
        f'<dl class="about">{entries}</dl></header>'
        f'<section class="tiles" aria-label="Results">{"".join(_accuracy(tile) for tile in page.accuracies)}'
        f"{facts}</section>{_warnings(page.warnings)}"
    )


def _accuracy(accuracy: Accuracy) -> str:
    rows = "".join(
        _score_row(name, score, kind)
        for name, score, kind in (
            ("pre-trained", accuracy.pretrained, "after"),
            ("random start", accuracy.random, "before"),
            ("raw pixels", accuracy.pixels, "floor"),
        )
        if score is not None
    )
    best = accuracy.pretrained or accuracy.random or accuracy.pixels
    large = percent(best.value) if best is not None else DASH
    gain = ""
    if accuracy.pretrained is not None and accuracy.random is not None:
        difference = accuracy.pretrained.value - accuracy.random.value
        kind = "gain" if difference > 0 else "loss"
        gain = f'<span class="{kind}">{points(difference)}</span>'
    return (
        f'<article class="score"><h3>{escape(accuracy.name)}</h3><p class="large">{large}{gain}</p>'
        '<table><thead><tr><td></td><td class="place" aria-hidden="true"><span>0</span><span>100</span></td>'
        f'<th scope="col">%</th><th scope="col">95{SPACE}% interval</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></article>"
    )


def _score_row(name: str, score: Score, kind: str) -> str:
    low, value, high = (min(max(end, 0.0), 100.0) for end in (score.low, score.value, score.high))
    track = (
        f'<span class="track"><i style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        f'<b style="left:{value:.2f}%"></b></span>'
    )
    return (
        f'<tr class="{kind}"><th scope="row">{name}</th><td class="place" aria-hidden="true">{track}</td>'
        f"<td>{score.value:.1f}</td><td>{interval(score.low, score.high)}</td></tr>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return '<p class="quiet">Nothing wrong was seen during training.</p>'
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in warnings)
    return f'<aside class="warnings" aria-label="Warnings"><h2>Worth a look</h2><ul>{items}</ul></aside>'


def _chart(chart: Chart) -> str:
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f"<figure><h3>{escape(chart.title)}</h3>{chart.svg}{caption}</figure>"


def _figure(figure: Figure) -> str:
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
    kind = "png" if cell.image.startswith(b"\x89PNG") else "webp"
    source = f"data:image/{kind};base64,{base64.b64encode(cell.image).decode()}"
    sign = {"none": "", "right": '<b aria-label="right">✓</b> ', "wrong": '<b aria-label="wrong">✕</b> '}[cell.mark]
    words = f'<span title="{escape(cell.label)}">{sign}{escape(cell.label)}</span>' if cell.label or sign else ""
    return f'<div class="cell {cell.mark}"><img src="{source}" alt="{escape(cell.alt)}">{words}</div>'


def _details(page: Page) -> str:
    folds = [_fold(table.title, _table(table)) for table in page.tables if table.rows]
    if page.bad_files:
        names = "".join(f"<li>{escape(name)}</li>" for name in page.bad_files[:BAD_FILES_NAMED])
        more = len(page.bad_files) - BAD_FILES_NAMED
        rest = f"<p>and {more:,} more, named in bad_files.txt</p>" if more > 0 else ""
        folds.append(_fold(f"Files that could not be read ({len(page.bad_files):,})", f"<ul>{names}</ul>{rest}"))
    folds.append(_fold("Configuration", f'<table class="settings">{"".join(_settings(page.config, 0))}</table>'))
    folds.append(_fold("Versions", f'<table class="settings">{"".join(_settings(page.versions, 0))}</table>'))
    return "".join(folds)


def _fold(title: str, content: str) -> str:
    return f'<details><summary>{escape(title)}</summary><div class="scroll">{content}</div></details>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in table.headers)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


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
