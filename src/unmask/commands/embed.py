"""`unmask embed RUN DATA -o FILE`: the features of all images of DATA in one file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import height_and_width, parse
from unmask.data.sources import open_source
from unmask.defaults import default_workers
from unmask.embedding.embed import EmbedConfig, Embedding, EmbeddingStopped
from unmask.embedding.files import check_name
from unmask.embedding.header import Header
from unmask.embedding.recipe import Extractor, Output
from unmask.errors import STOPPED
from unmask.models.pretrained import open_encoder
from unmask.progress import NowAndThen
from unmask.training.signals import StopRequest
from unmask.training.trainer import choose_device


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Write the features of images to a file: parquet, .npy or .safetensors. The same command again goes on where it
    stopped."""

    run: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="RUN"),
        Doc("A run folder, an encoder.safetensors, or timm:NAME."),
    ]
    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("Images as for `unmask pretrain`: a folder, a list, an archive, shards, hf:NAME, builtin:NAME."),
    ]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"]), Doc("The new file; it ends in .parquet, .npy or .safetensors.")]
    output: Annotated[
        Output, Doc("One feature an image (mean of the patches, or the class token), or the map of all patches.")
    ] = "mean"
    block: Annotated[
        int | None, Doc("Of the tokens after this block of a ViT (0 is the first) and the final norm. Default: last.")
    ] = None
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the images, or height and width. Default: the encoder's own.")
    ] = None
    split: Annotated[
        Literal["all", "train", "test"], Doc("all: as for pre-training, which leaves test images out where it can.")
    ] = "all"
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    workers: Annotated[int | None, Doc("Processes that decode images. Default: one a processor, at most 8.")] = None
    config: Annotated[EmbedConfig, tyro.conf.arg(name="")] = EmbedConfig()
    json: Annotated[bool, Doc("Print one JSON object, the file's header, instead of a summary.")] = False

    def __post_init__(self) -> None:
        size = height_and_width(self.image_size)
        if size is not None and min(size) < 1:
            raise ValueError(f"--image-size must be at least 1 pixel, got {min(size)}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be at least 0, got {self.workers}")


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask embed`."""
    command = parse(Embed, arguments, command="embed")
    check_name(command.out)
    source = open_source(command.data, split=command.split)
    extractor = Extractor(
        open_encoder(command.run).to(choose_device(command.device)),
        output=command.output,
        block=command.block,
        image_size=height_and_width(command.image_size),
    )
    embedding = Embedding(
        extractor,
        source,
        command.out,
        command.config,
        encoder=command.run,
        data=command.data,
        split=command.split,
    )
    console = Console(soft_wrap=True)
    header = embedding.finished()
    if header is not None:
        _tell(command, header, embedding, console, done_before=True)
        return 0
    if not command.json:
        shape = " x ".join(map(str, extractor.shape))
        _say(console, "encoder", f"{command.run}, {command.output} of block {extractor.recipe.block}: {shape} numbers")
        _say(console, "data", f"{command.data} ({len(source)} images)")
    with StopRequest() as request:
        try:
            header = embedding.write(
                workers=default_workers() if command.workers is None else command.workers,
                stop=lambda: request.asked is not None,
                report=_Progress(Console(stderr=True, soft_wrap=True), len(source)),
            )
        except EmbeddingStopped:
            console.print(
                f"stopped by {request.asked}, finished parts are saved; the same command goes on",
                highlight=False,
                markup=False,
            )
            return STOPPED
    _tell(command, header, embedding, console, done_before=False)
    return 0


def _tell(command: Embed, header: Header, embedding: Embedding, console: Console, *, done_before: bool) -> None:
    if command.json:
        console.print(json.dumps({"out": str(command.out), **asdict(header)}), highlight=False, markup=False)
        return
    if header.bad_files:
        _say(console, "bad files", f"{header.bad_files}, left out and listed in {embedding.bad_file}")
    size = command.out.stat().st_size / 1e6
    note = "; nothing was left to do" if done_before else ""
    _say(console, "finished", f"{header.images} images in {command.out}, {size:.1f} MB{note}")


def _say(console: Console, name: str, value: str) -> None:
    console.print(f"{name:<10} {value}", highlight=False, markup=False)


class _Progress:
    """Says now and then how many of `total` images are done, and how fast."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._total = total
        self._began = monotonic()
        self._now_and_then = NowAndThen()

    def __call__(self, seen: int, before: int) -> None:
        """Tell of so many images, unless there was something to read a moment ago."""
        if self._now_and_then.due():
            speed = (seen - before) / (monotonic() - self._began)
            left = (self._total - seen) / speed
            _say(self._console, "images", f"{seen}/{self._total}  {speed:.0f} images/s  {left:.0f} s left")
