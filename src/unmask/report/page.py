"""One run as one HTML page that needs nothing else: no network, no script, no font, no second file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Annotated, Any

from typing_extensions import Doc

from unmask.report.charts import Chart
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
from unmask.report.summary import Accuracy, Fact, Score, Table
from unmask.report.text import DASH, SPACE, interval, percent, points

BAD_FILES_NAMED = 50


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
    return document(
        page.run,
        lambda links: _head(page, links),
        (
            Section(
                name="curves", title="Learning curves", kind="charts", content="".join(map(chart_html, page.charts))
            ),
            Section(name="pictures", title="Pictures", kind="figures", content="".join(map(figure_html, page.figures))),
            Section(name="details", title="Details", kind="details", content=_details(page)),
        ),
    )


def _head(page: Page, links: str) -> str:
    about = (("Method", page.method, page.idea), ("Encoder", page.encoder, ""), ("Data", page.data, ""))
    entries = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in about
    )
    return (
        f"{header(links, page.run, page.verdict, entries)}"
        f'<section class="tiles" aria-label="Results">{"".join(_accuracy(tile) for tile in page.accuracies)}'
        f"{fact_tiles(page.facts)}</section>"
        f"{warning_list(page.warnings, none='Nothing wrong was seen during training.')}"
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


def _details(page: Page) -> str:
    folds = [fold(table.title, table_html(table)) for table in page.tables if table.rows]
    if page.bad_files:
        names = "".join(f"<li>{escape(name)}</li>" for name in page.bad_files[:BAD_FILES_NAMED])
        more = len(page.bad_files) - BAD_FILES_NAMED
        rest = f"<p>and {more:,} more, named in bad_files.txt</p>" if more > 0 else ""
        folds.append(fold(f"Files that could not be read ({len(page.bad_files):,})", f"<ul>{names}</ul>{rest}"))
    folds.append(fold("Configuration", settings_html(page.config)))
    folds.append(fold("Versions", settings_html(page.versions)))
    return "".join(folds)
