"""`unmask shard DATA OUT`: any images as tar shards with an index, to be read from this disk or over a network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import parse
from unmask.data.huggingface import STREAM_PREFIX, Stream
from unmask.data.shard_folder import BAD_FILES, Done, Plan, ShardFolder
from unmask.data.sharding import (
    Job,
    Stopped,
    images_for,
    names_checksum,
    shuffled,
    write_source,
    write_stream,
)
from unmask.data.sources import open_source
from unmask.defaults import default_workers
from unmask.errors import STOPPED
from unmask.progress import NowAndThen
from unmask.training.signals import StopRequest

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(MB|GB)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Write images as tar shards, which are read fast in any order. The same command again goes on where it stopped."""

    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("Images as for `unmask pretrain`, or hf-stream:NAME for a data set that can only be streamed."),
    ]
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="OUT"), Doc("A new folder for the shards.")]
    shard_size: Annotated[str, Doc("Images of a shard (1000), or about how many bytes (200MB, 1GB).")] = "200MB"
    split: Annotated[
        Literal["all", "train", "test"], Doc("all: as for pre-training, which leaves test images out where it can.")
    ] = "all"
    seed: Annotated[int, Doc("Seed of the one shuffle, so that each shard is a random sample of all images.")] = 0
    keep_order: Annotated[bool, Doc("Do not shuffle.")] = False
    workers: Annotated[int | None, Doc("Processes that write. Default: one a processor, at most 8.")] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"--seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        read_size(self.shard_size)


def read_size(text: str) -> tuple[int | None, float | None]:
    """A size of shards in images or in megabytes; one of them is None. ValueError for what is neither."""
    match = _SIZE.fullmatch(text.strip())
    number = 0.0 if match is None else float(match[1])
    if match is not None and match[2] is None and number.is_integer() and number >= 1:
        return int(number), None
    if match is not None and match[2] is not None and number > 0:
        return None, number * (1000 if match[2].upper() == "GB" else 1)
    raise ValueError(f"--shard-size takes a number of images (1000) or of bytes (200MB, 1GB), not {text!r}")


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask shard`."""
    command = parse(Shard, arguments, command="shard")
    _refuse_inside(command.data, command.out)
    console = Console(soft_wrap=True)
    folder = ShardFolder(command.out)
    with StopRequest() as request:
        try:
            write = _write_stream if command.data.startswith(STREAM_PREFIX) else _write_source
            write(command, folder, console, request)
        except Stopped:
            console.print(
                f"stopped by {request.asked}, finished shards are saved; the same command goes on",
                highlight=False,
                markup=False,
            )
            return STOPPED
    return 0


def _refuse_inside(data: str, out: Path) -> None:
    """Shards inside the folder that they are made of would be part of it the next time."""
    folder = Path(data).expanduser()
    if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{out} lies inside {data}: choose an OUT outside of the images")


def _write_source(command: Shard, folder: ShardFolder, console: Console, request: StopRequest) -> None:
    source = open_source(command.data, split=command.split)
    images, megabytes = read_size(command.shard_size)
    if images is None:
        assert megabytes is not None
        images = images_for(source, megabytes)
    plan = _plan(command, images, None, names_checksum(source))
    job = Job(source, source.captions(), shuffled(len(source), plan.seed), images, folder)
    if folder.claim(plan):
        _check_finished(folder, console)
        return
    _say(console, "data", f"{command.data} ({len(source)} images)")
    _say(console, "out", f"{folder.path}, {job.shards} shards of {images} images")
    workers = default_workers() if command.workers is None else command.workers

    done = write_source(
        job,
        workers,
        stop=lambda: request.asked is not None,
        report=_Progress(console, job.shards),
    )
    _finish(folder, plan, done, source.classes, console)


def _write_stream(command: Shard, folder: ShardFolder, console: Console, request: StopRequest) -> None:
    if command.split != "all":
        raise ValueError(f"a stream has no --split; name its part in brackets: {command.data}[{command.split}]")
    images, megabytes = read_size(command.shard_size)
    plan = _plan(command, images, megabytes, "")
    stream = Stream(command.data, seed=plan.seed)
    if folder.claim(plan):
        _check_finished(folder, console)
        return
    _say(console, "data", command.data)
    _say(console, "out", f"{folder.path}, shards of {command.shard_size}")
    done = write_stream(
        folder,
        stream,
        images=images,
        megabytes=megabytes,
        stop=lambda: request.asked is not None,
        report=_Progress(console, None),
    )
    _finish(folder, plan, done, stream.classes, console)


def _plan(command: Shard, images: int | None, megabytes: float | None, names: str) -> Plan:
    return Plan(
        data=command.data.rstrip("/") or command.data,
        split=command.split,
        seed=None if command.keep_order else command.seed,
        images=images,
        megabytes=megabytes,
        names=names,
    )


def _check_finished(folder: ShardFolder, console: Console) -> None:
    """Nothing is left to write; say whether all is as it was. ValueError where a shard has changed."""
    damaged = folder.damaged()
    if damaged:
        raise ValueError(
            f"{folder.path / damaged[0]} is missing or damaged; remove {folder.path} and write the shards again"
        )
    images, shards = folder.totals()
    _say(console, "finished", f"{images} images in {shards} shards, all whole; nothing was left to do")


def _finish(
    folder: ShardFolder, plan: Plan, done: list[Done], classes: tuple[str, ...] | None, console: Console
) -> None:
    bad = {name: reason for shard in done for name, reason in shard.bad.items()}
    if not any(shard.images for shard in done):
        folder.give_up()
        why = "".join(f", for example {name}: {reason}" for name, reason in list(bad.items())[:1])
        raise ValueError(f"no readable image in {plan.data}{why}")
    folder.finish(plan, done, classes)
    if bad:
        _say(console, "bad files", f"{len(bad)}, left out and listed in {folder.path / BAD_FILES}")
    images, shards = folder.totals()
    _say(console, "finished", f"{images} images in {shards} shards")


class _Progress:
    """Says now and then how many shards are finished, of `total` where that is known."""

    def __init__(self, console: Console, total: int | None) -> None:
        self._console = console
        self._total = total
        self._now_and_then = NowAndThen()

    def __call__(self, count: int) -> None:
        """Tell of so many shards, unless there was something to read a moment ago."""
        if self._now_and_then.due():
            _say(self._console, "shards", f"{count}{'' if self._total is None else f'/{self._total}'} finished")


def _say(console: Console, name: str, value: str) -> None:
    console.print(f"{name:<10} {value}", highlight=False, markup=False)
