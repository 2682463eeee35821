"""`unmask doctor`: what is installed, what this machine can do, and what is missing for which feature."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from typing_extensions import Doc

from unmask import __version__
from unmask.commands.parse import parse
from unmask.doctor.libraries import essential_modules, extra_modules, look_at_libraries

if TYPE_CHECKING:
    # All that computes is imported only once it is known to be whole.
    from unmask.doctor.findings import Finding

SECONDS = 1.0
MARKS = {"good": " ", "missing": "-", "bad": "!", "broken": "x"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Look at this installation and this machine: versions, devices, limits, speed, and what is missing for what.

    Lines marked - are extras that are not installed, those marked ! could be better and say how, and those marked x
    must be mended before anything works; with one of these the exit code is 1.
    """

    data: Annotated[str | None, Doc("Decode these images for a second. Default: made ones.")] = None
    out: Annotated[Path, Doc("Where runs will be written: this disk is measured.")] = Path("runs")
    json: Annotated[bool, Doc("Print one JSON object instead of lines.")] = False


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask doctor`."""
    command = parse(Doctor, arguments, command="doctor")
    console = Console(soft_wrap=True)
    found: list[Finding] = []
    for finding in examine(command):
        found.append(finding)
        if not command.json:
            console.print(line(finding), highlight=False, markup=False)
    broken = any(finding.state == "broken" for finding in found)
    if command.json:
        facts = {"unmask": __version__, "python": platform.python_version(), "broken": broken}
        values = facts | {"findings": [dataclasses.asdict(finding) for finding in found]}
        sys.stdout.write(json.dumps(values) + "\n")
    return int(broken)


def line(finding: Finding) -> str:
    """A finding for people."""
    advice = "" if finding.advice is None else f"; {finding.advice}"
    return f"{MARKS[finding.state]} {finding.what:<28} {finding.text}{advice}"


def examine(command: Doctor) -> Iterator[Finding]:
    """Everything that is found, as soon as it is. ValueError for data that cannot be opened."""
    from unmask.doctor.findings import Finding, about_essential, about_extras

    yield Finding(what="python", state="good", text=f"{platform.python_version()} ({sys.executable})")
    modules = essential_modules()
    if modules:
        yield Finding(what="unmask", state="good", text=__version__)
    else:
        text = f"{__version__}, from a folder and not installed: which versions it needs nobody says"
        yield Finding(what="unmask", state="bad", text=text, advice="pip install -e FOLDER")
    with ThreadPoolExecutor() as pool:
        # Imports take seconds: both kinds at once, in processes of their own.
        extras = pool.submit(look_at_libraries, extra_modules())
        essential = look_at_libraries(modules)
        yield from map(about_essential, essential)
        yield from about_extras(extras.result())
    if all(library.usable for library in essential):
        yield from _measured(command)


def _measured(command: Doctor) -> Iterator[Finding]:
    from unmask.data.sources import open_source
    from unmask.data.statistics import first_readable
    from unmask.defaults import fitting_channels
    from unmask.doctor.findings import about_decoders, about_decoding, about_disk, about_machine
    from unmask.doctor.machine import look_at_machine
    from unmask.doctor.speed import look_at_decoders, measure_decoding, measure_disk

    machine = look_at_machine()
    yield from about_machine(machine)
    yield about_decoders(look_at_decoders())
    source, channels = None, 3
    if command.data is not None:
        source = open_source(command.data)
        channels = fitting_channels(3, None, source)
        first_readable(source, channels=channels)
    yield about_decoding(measure_decoding(source, channels, SECONDS), machine)
    yield about_disk(measure_disk(command.out))
