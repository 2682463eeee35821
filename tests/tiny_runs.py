"""Runs so small that a test can afford many: drawn images, tiny encoders, commands in processes of their own."""

from __future__ import annotations

import atexit
import dataclasses
import json
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from method_facts import FACTS
from unmask.cli import main
from unmask.commands.show import knobs
from unmask.config import RunConfig
from unmask.methods import METHODS
from unmask.methods.base import MethodConfig
from unmask.models.build import fixed_patch
from unmask.models.cross_decoder import CrossDecoderConfig
from unmask.models.decoder import DecoderConfig
from unmask.models.encoder_config import EncoderConfig
from unmask.models.heads import MLPHeadConfig
from unmask.training.trainer import TrainingConfig

SIDE = 32
FILES = {"tokenizer", "teacher"}  # settings that name a file which a method cannot do without
PATIENCE = 120.0  # seconds for a process to get somewhere; only a hanging one needs them
# Imported once, for all processes: what a run imports late would cost each of them most of a second.
PRELOADED = [
    "unmask.commands.pretrain",
    "unmask.commands.evaluate.trained",
    "unmask.run_report",
    "unmask.colour.pixels",
    "tiny_runs",
]


def half_written(run: Path) -> bool:
    """Whether a checkpoint is being written, or was when its writer was killed."""
    return any((run / "checkpoints").glob(".step_*.part/*"))


def freeze_while_saving(process: CommandProcess, run: Path, pause: Callable[[], float]) -> None:
    """Freeze the process again and again until it stands in the middle of writing a checkpoint; `pause` gives seconds
    between two attempts."""
    for _ in range(5000):
        process.signal(signal.SIGSTOP)
        if half_written(run):
            return
        process.signal(signal.SIGCONT)
        time.sleep(pause())


def draw_images(folder: Path, count: int = 16, *, classes: Sequence[str] = ("cold", "warm"), side: int = SIDE) -> Path:
    """PNG images in turn of each class, red or blue ones, one folder a class (a class "" lies in `folder` itself).

    Captions of all images lie beside them, for the method that reads such.
    """
    generator = np.random.default_rng(0)
    captions = ["image,caption"]
    for number in range(count):
        kind = number % len(classes)
        coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        coarse[:, :, 0 if kind else 2] //= 4
        file = folder / classes[kind] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(file)
        captions.append(f"{file.relative_to(folder)},a {'red' if kind else 'blue'} picture of number {number % 4}")
    (folder / "captions.csv").write_text("\n".join(captions) + "\n", errors="surrogateescape")
    return folder


def tiny_settings(method: str) -> MethodConfig:
    """A method's own settings with everything as narrow as can be, for images of 32 x 32 pixels in 16 patches."""
    settings = METHODS[method].Config().for_images(SIDE, SIDE)
    narrow: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, EncoderConfig):
            if fixed_patch(value.name) is not None:  # a network whose sizes nobody can set
                value = replace(value, name="vit_tiny_patch16_224")
            narrow[field.name] = replace(value, patch_size=8, width=32, depth=1, heads=2)
        elif isinstance(value, DecoderConfig | CrossDecoderConfig):
            narrow[field.name] = replace(value, width=32, depth=1, heads=2)
        elif isinstance(value, MLPHeadConfig):
            narrow[field.name] = replace(value, hidden=32, out=16)
    settings = replace(settings, **narrow | FACTS[method].changes)
    prepare = FACTS[method].prepare
    if prepare is None or not FILES & set(vars(settings)):
        return settings
    with torch.random.fork_rng(devices=[]):
        return prepare(settings, _things())


@cache
def _things() -> Path:
    """A folder for the files that methods need beforehand; it lives as long as the tests."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def tiny_options(method: str) -> list[str]:
    """The same on the command line."""
    usual = {knob.name: knob.default for knob in knobs(METHODS[method].Config())}
    options = ["--method", method, "--image-size", str(SIDE)]
    for knob in knobs(tiny_settings(method)):
        by_image_size = knob.name.startswith("encoder.image-") or knob.name == "max-shift"
        if knob.default != usual[knob.name] and not by_image_size:
            options += [f"--method.{knob.name}", knob.default]
    return options


def quick_options(*, epochs: float = 2, workers: int = 0, every: int = 1000) -> list[str]:
    """Few steps of 8 images, every one in the log."""
    figures = {"epochs": epochs, "batch-size": 8, "workers": workers, "log-every": 1, "checkpoint-every": every}
    return [part for name, value in figures.items() for part in (f"--{name}", str(value))] + ["--device", "cpu"]


def tiny_config(method: str, data: Path, **training: Any) -> RunConfig:
    """A run of 2 epochs with batches of 8, every step in the log; `training` changes that."""
    usual: dict[str, Any] = {"epochs": 2, "batch_size": 8, "workers": 0, "device": "cpu", "log_every": 1}
    return RunConfig(
        data=str(data), method=method, settings=tiny_settings(method), training=TrainingConfig(**usual | training)
    )


def read_records(run: Path, kind: str) -> list[dict[str, Any]]:
    """The lines of one kind in a run's log."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


def assert_same_weights(one: Path, other: Path) -> None:
    """Two safetensors files hold the same tensors, bit for bit."""
    first, second = load_file(one), load_file(other)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@dataclass(frozen=True)
class Ended:
    """What is left of a process; the code is negative where a signal ended it."""

    code: int
    out: str
    err: str


class CommandProcess:
    """`unmask ARGUMENTS` in a process of its own, forked from one that has torch imported already.

    It runs in `folder`; what it prints goes to two files there, whose names end in `name`. With `largest_file` no file
    may grow beyond so many bytes, as on a full disk.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        *,
        largest_file: int | None = None,
        environment: dict[str, str] | None = None,
        name: str = "",
    ) -> None:
        self._streams = (folder / f"stdout{name}.txt", folder / f"stderr{name}.txt")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._process = context.Process(
            target=_command, args=(list(arguments), folder, self._streams, largest_file, environment or {})
        )
        self._process.start()

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Return as soon as `reached()`; fail where the process ends first."""
        deadline = time.monotonic() + PATIENCE
        while not reached():
            assert self._process.is_alive(), f"the process ended too early: {self.end()}"
            assert time.monotonic() < deadline, "the process hangs"
            time.sleep(0.001)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to its workers, as a terminal does."""
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)

    def allow_any_file(self) -> None:
        """Lift the limit of `largest_file`: the disk has room again."""
        assert self._process.pid is not None
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, unlimited)

    def printed(self) -> str:
        """What it has printed so far."""
        return self._streams[0].read_text() if self._streams[0].exists() else ""

    def end(self) -> Ended:
        """Wait for the end."""
        self._process.join(PATIENCE)
        assert self._process.exitcode is not None, "the process hangs"
        out, err = (path.read_text() for path in self._streams)
        return Ended(self._process.exitcode, out, err)


def _command(
    arguments: list[str],
    folder: Path,
    streams: tuple[Path, Path],
    largest_file: int | None,
    environment: dict[str, str],
) -> None:
    os.setpgid(0, 0)
    os.environ.update(environment)
    os.chdir(folder)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    for path, stream in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    torch.set_num_threads(1)
    # Data workers start as in a process that was not made by a fork server.
    multiprocessing.set_start_method("fork", force=True)
    code = main(arguments)
    sys.stdout.flush()
    sys.exit(code)


class RankProcesses:
    """`unmask ARGUMENTS` in several processes that train together, as torchrun would start them."""

    def __init__(self, arguments: Sequence[str], folder: Path, ranks: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = [
            CommandProcess(
                arguments,
                folder,
                name=f"-{rank}",
                environment={
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                    "LOCAL_WORLD_SIZE": str(ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                },
            )
            for rank in range(ranks)
        ]

    def end(self) -> list[Ended]:
        """Wait for the end of all."""
        return [process.end() for process in self.ranks]


def last_logged_step(run: Path) -> int:
    """The newest step in the log of a run that is still writing it."""
    if not (run / "log.jsonl").exists():
        return 0
    for line in reversed((run / "log.jsonl").read_text().splitlines()):
        # The very last line may be half-written.
        if line.startswith('{"kind": "step"') and line.endswith("}"):
            return int(json.loads(line)["step"])
    return 0
