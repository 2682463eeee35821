"""The page about a supervised run: curves, scores, pictures of test images with what the model says of them."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from unmask import __version__
from unmask.report import (
    Figure,
    Page,
    accuracies,
    evaluation_table,
    learning_charts,
    left_out_table,
    read_log,
    render_page,
    run_facts,
    run_warnings,
)
from unmask.report.false_colour import Chosen, check_chosen
from unmask.report.headline import headline
from unmask.run_folder import RunFolder
from unmask.supervised.config import TITLES, SupervisedConfig, load_supervised
from unmask.supervised.protocols import build
from unmask.supervised.run import build_subject, own_scores, start_encoder
from unmask.training.checkpoint import load_module_tensors

IDEAS = {
    "finetune": "The whole encoder is trained with a classifier on top.",
    "partial": "Only the last blocks are trained, with a classifier on top.",
    "attentive": "The encoder is frozen; a learnt query attends to its tokens, and a linear classifier reads that.",
    "certified": "The encoder is trained to keep its answer under Gaussian noise, which makes it provable.",
    "segment": "A class for every pixel, by UperNet on the encoder.",
    "detect": "Things with boxes and outlines, by Mask R-CNN on the encoder.",
}


def write_supervised_report(folder: RunFolder, chosen: Chosen = None) -> Path:
    """Write `report.html` of a supervised run, finished or not; returns its path.

    `chosen` names the channels that pictures show (see `FalseColour`). ValueError where the folder holds no such run or
    cannot be written, and for channels that its images do not have.
    """
    config = load_supervised(folder.config_file)
    if chosen is not None:
        check_chosen(chosen, start_encoder(config).encoder.config.channels)
    records = read_log(folder.log_file) if folder.log_file.exists() else []
    step, _ = folder.last_step()
    figures, trouble = _figures(config, folder, chosen)
    scores = own_scores(folder, records)
    page = Page(
        run=folder.path.name,
        method=TITLES[config.protocol],
        idea=IDEAS[config.protocol],
        encoder=f"{config.encoder}, {'as pre-trained' if config.start == 'pretrained' else 'at its random start'}",
        data=f"{config.data}{f', {config.budget} of the labels' if str(config.budget) else ''}",
        verdict=_verdict(scores),
        accuracies=accuracies(records),
        facts=run_facts(records, step * config.training.batch_size),
        warnings=(*run_warnings(records), *trouble),
        charts=learning_charts(records),
        figures=figures,
        tables=(evaluation_table(records), left_out_table(records)),
        config=json.loads(folder.config_file.read_text()),
        bad_files=folder.bad_files.read_text(encoding="utf-8", errors="replace").splitlines()
        if folder.bad_files.exists()
        else (),
        versions={"unmask": __version__, "python": platform.python_version()}
        | {name: version(name) for name in ("torch", "torchvision", "timm")},
    )
    return folder.write_report(render_page(page))


def _verdict(scores: list[dict[str, Any]]) -> str:
    if not scores:
        return "Not scored yet: the run is not finished."
    name, value, interval = headline(scores[-1])
    within = "" if interval is None else f" (95 % interval {interval[0]:.1f} to {interval[1]:.1f})"
    return f"{name} {value:.1f} %{within} on {scores[-1]['n']} test images."


def _figures(config: SupervisedConfig, folder: RunFolder, chosen: Chosen) -> tuple[list[Figure], list[str]]:
    """Pictures of what the model says, or a sentence why there are none."""
    try:
        checkpoint, _ = folder.newest_checkpoint(torch.device("cpu"))
        if checkpoint is None:
            return [], ["There are no pictures: the run has no checkpoint."]
        subject = build_subject(config, start_encoder(config), build)
        load_module_tensors(subject.trainee, checkpoint.tensors)
        return subject.figures(chosen), []
    except ValueError as error:
        return [], [f"There are no pictures: {error}."]
