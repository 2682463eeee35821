"""The report of a run: its log, its pictures, one self-contained HTML page."""

from unmask.report.charts import Chart, line_chart
from unmask.report.curves import learning_charts
from unmask.report.figures import (
    PositionScore,
    attention_sheet,
    masked_image,
    pasted_image,
    pick_queries,
    position_score,
    reconstruction_sheet,
    similarity_sheet,
)
from unmask.report.log import read_log
from unmask.report.neighbour_sheet import neighbour_sheet
from unmask.report.page import Page, render_page
from unmask.report.parts import Figure
from unmask.report.sheet import Cell, Sheet
from unmask.report.summary import (
    Accuracy,
    Fact,
    Score,
    Table,
    accuracies,
    evaluation_table,
    health_table,
    left_out_table,
    run_facts,
    run_warnings,
)

__all__ = [
    "Accuracy",
    "Cell",
    "Chart",
    "Fact",
    "Figure",
    "Page",
    "PositionScore",
    "Score",
    "Sheet",
    "Table",
    "accuracies",
    "attention_sheet",
    "evaluation_table",
    "health_table",
    "learning_charts",
    "left_out_table",
    "line_chart",
    "masked_image",
    "neighbour_sheet",
    "pasted_image",
    "pick_queries",
    "position_score",
    "read_log",
    "reconstruction_sheet",
    "render_page",
    "run_facts",
    "run_warnings",
    "similarity_sheet",
]
