"""`unmask replay RUN`: a step that was left out, once more, with everything watched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from torchvision.utils import make_grid, save_image
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.replay import Replay, replay
from unmask.report.log import of_kind, read_log
from unmask.run_folder import RunFolder
from unmask.training.trainer import choose_device

SHOWN = 8
COLUMNS = 8


@dataclass(frozen=True, kw_only=True)
class ReplayCommand:
    """Take a step of a run again, without applying it: which image, which layer, which loss was not finite."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN"), Doc("Folder of a run of pre-training.")]
    step: Annotated[int | None, Doc("Number of the step. Default: the last one that was left out.")] = None
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask replay`: 1 where the step is not finite."""
    console = Console(soft_wrap=True)
    command = parse(ReplayCommand, arguments, command="replay")
    folder = RunFolder(command.run)
    folder.config()
    step = _last_left_out(folder) if command.step is None else command.step
    found = replay(folder, step, choose_device(command.device))
    picture = folder.left_out(step).with_suffix(".png")
    picture.parent.mkdir(exist_ok=True)
    shown = 3 if found.crops_BCHW.shape[1] >= 3 else 1
    save_image(make_grid(found.crops_BCHW[:, :shown], COLUMNS) / 255, picture)
    for sentence in told(found):
        console.print(sentence, highlight=False, markup=False)
    console.print(f"images:  {picture}", highlight=False, markup=False)
    return 1 if found.broken else 0


def _last_left_out(folder: RunFolder) -> int:
    records = of_kind(read_log(folder.log_file), "left out") if folder.log_file.exists() else []
    if not records:
        raise ValueError(f"no step of {folder.path} was left out; name one by --step")
    return int(records[-1]["number"])


def told(found: Replay) -> list[str]:
    """What was found, in lines."""
    lines = [f"step {found.step}, with the weights of step {found.began_at} and the steps from there"]
    if found.weights:
        lines.append(f"weights that were not finite before it: {_some(found.weights)}")
    for number, part in enumerate(found.parts):
        figures = ", ".join(f"{name} {value:.6g}" for name, value in part.losses.items())
        lines.append(f"part {number}: {figures}; images {_some(part.images)}")
        if part.layer is not None:
            lines.append(f"part {number}: the first output that is not finite is that of {part.layer}")
    if found.gradients:
        lines.append(f"gradients that are not finite: {_some(found.gradients)}")
    if not found.broken:
        lines.append("all is finite this time")
    return lines


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
