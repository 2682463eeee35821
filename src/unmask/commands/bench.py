"""`unmask bench step|data`: what this machine makes of a method, what bounds it, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask import __version__
from unmask.bench.advice import Advice, advise_data, advise_step
from unmask.bench.data import DataMeasure, measure_data, open_loader
from unmask.bench.step import StepMeasure, measure_step
from unmask.commands.parse import given, height_and_width, parse
from unmask.config import RunConfig
from unmask.data.pixel_range import in_range, measured_range
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_readable
from unmask.defaults import Wishes, default_batch, default_workers, fit_settings, fitting_channels, processors
from unmask.errors import Failure
from unmask.methods import find_method
from unmask.methods.base import Method, MethodConfig
from unmask.pretrain import build_method
from unmask.training.trainer import PHASES, Precision, TrainingConfig, choose_device

WHAT = {
    "step": "a training step: images/s, where the time goes, memory, share of the possible",
    "data": "the data: images/s from files to batches, and what an image costs a worker",
}


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What both measurements may be told."""

    method_name: Annotated[
        str, tyro.conf.arg(name="method"), Doc("A method of `unmask methods`, or package.module:Class.")
    ] = "conmim"
    encoder: Annotated[str | None, Doc("A timm ViT, for example vit_small_patch16_224.")] = None
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the crops in pixels, or height and width. Default: by data or method.")
    ] = None
    patch_size: Annotated[int | None, Doc("Side of a patch in pixels. Default: by data or method.")] = None
    batch_size: Annotated[int | None, Doc("Images of a batch. Default: 64 on a GPU, 8 on the CPU; by the data.")] = None
    workers: Annotated[int | None, Doc("Processes that decode images. Default: one a processor, at most 8.")] = None
    seconds: Annotated[float, Doc("How long to measure, at least.")] = 5.0
    json: Annotated[bool, Doc("Print one JSON object instead of a table.")] = False
    settings: Annotated[MethodConfig, tyro.conf.arg(name="method"), Doc("Knobs of the method.")]

    def __post_init__(self) -> None:
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds must be a number above 0, got {self.seconds:g}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"--workers must be 0 or more, got {self.workers}")
        height_and_width(self.image_size)  # refused with the rest of the line


@dataclass(frozen=True, kw_only=True)
class BenchStep(BenchOptions):
    """Measure a method's training step on this machine: on made images, or with DATA on what the loader gives."""

    data: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="[DATA]"),
        Doc("Images as for `unmask pretrain`. Default: noise, so that nothing waits for data."),
    ] = None
    device: Annotated[str, Doc("cpu, cuda, cuda:1, mps; auto takes the best there is.")] = "auto"
    precision: Annotated[Precision, Doc("auto: bf16 on GPUs that have it, else fp16; fp32 elsewhere.")] = "auto"
    compile: Annotated[bool, Doc("Compile the losses by torch.compile.")] = False
    steps: Annotated[int | None, Doc("Steps to measure. Default: as many as fit in --seconds, three at least.")] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")


@dataclass(frozen=True, kw_only=True)
class BenchData(BenchOptions):
    """Measure how fast this machine makes batches of DATA for a method, and what an image costs a worker."""

    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATA"), Doc("Images as for `unmask pretrain`.")]


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask bench`."""
    if arguments and arguments[0] in ("-h", "--help"):
        Console(soft_wrap=True).print(_help(), highlight=False, markup=False)
        raise SystemExit(0)
    if not arguments or arguments[0] not in WHAT:
        asked = f", not {arguments[0]!r}" if arguments else ""
        raise ValueError(f"unmask bench measures {' or '.join(WHAT)}{asked}")
    what, rest = arguments[0], arguments[1:]
    settings = find_method(given(rest, "--method") or "conmim").Config()
    console = Console(soft_wrap=True)
    if what == "step":
        _step(parse(BenchStep, rest, command="bench step", default=BenchStep(settings=settings)), console)
    else:
        default = BenchData(data=tyro.MISSING, settings=settings)
        _data(parse(BenchData, rest, command="bench data", default=default), console)
    return 0


def _help() -> str:
    rows = "\n".join(f"  {name}  {meaning}" for name, meaning in WHAT.items())
    return (
        "usage: unmask bench {step,data} ...\n\n"
        "What this machine makes of a method, what bounds it, and what to do about it.\n\n"
        f"{rows}\n\n"
        "unmask bench step --help and unmask bench data --help tell the rest."
    )


def _step(command: BenchStep, console: Console) -> None:
    device = choose_device(command.device)
    source = None if command.data is None else _opened(command.data, command)
    training = TrainingConfig(
        batch_size=_batch_size(command, source, accelerated=device.type != "cpu"),
        workers=_workers(command),
        device=command.device,
        precision=command.precision,
        compile=command.compile,
    )
    method = _method(command, source, training)
    loaded, batches = None, None
    if source is not None:
        loaded = _measured_data(command, source, method, training.batch_size)
        loader = open_loader(
            source,
            method.crops,
            channels=method.config.encoder.channels,
            batch_size=training.batch_size,
            workers=training.workers,
            captions=method.reads_captions,
            pin_memory=device.type == "cuda",
        )
        batches = iter(loader)
    try:
        measure = measure_step(
            method, training, device=device, batches=batches, steps=command.steps, seconds=command.seconds
        )
    except torch.OutOfMemoryError as error:
        raise Failure(
            f"a batch of {training.batch_size} images does not fit into the memory of {device}: "
            "choose a smaller --batch-size"
        ) from error
    advice = advise_step(measure, loaded, processors=processors())
    if command.json:
        derived = {
            "images_per_second": measure.images_per_second,
            "step_images_per_second": measure.step_images_per_second,
            "matrix_share": measure.matrix_share,
        }
        values = {"step": dataclasses.asdict(measure) | derived, "data": loaded and dataclasses.asdict(loaded)}
        _print_json(command, method, values, advice)
        return
    console.print(f"[bold]{'method':<13}[/bold] {find_method(command.method_name).info.title}", highlight=False)
    _print_rows(_step_rows(measure, method, loaded) | _advice_rows(advice), console)


def _data(command: BenchData, console: Console) -> None:
    source = _opened(command.data, command)
    batch = command.batch_size
    if batch is None:
        batch = default_batch(len(source), torch.cuda.is_available())
    method = _method(command, source, TrainingConfig(batch_size=batch, workers=_workers(command)))
    measure = _measured_data(command, source, method, batch)
    advice = advise_data(measure, processors=processors())
    if command.json:
        _print_json(command, method, {"data": dataclasses.asdict(measure)}, advice)
        return
    _print_rows(_data_rows(measure) | _advice_rows(advice), console)


def _opened(data: str, command: BenchOptions) -> Source:
    source = open_source(data)
    channels = fitting_channels(command.settings.encoder.channels, None, source)
    source = in_range(source, measured_range(source, channels=channels))
    first_readable(source, channels=channels)
    return source


def _workers(command: BenchOptions) -> int:
    return default_workers() if command.workers is None else command.workers


def _batch_size(command: BenchOptions, source: Source | None, *, accelerated: bool) -> int:
    if command.batch_size is not None:
        return command.batch_size
    batch = 64 if accelerated else 8
    return batch if source is None else min(batch, len(source))


def _method(command: BenchOptions, source: Source | None, training: TrainingConfig) -> Method:
    """The method as `unmask pretrain` would build it for the data; without, for images of its own size."""
    wishes = Wishes(
        encoder=command.encoder,
        image_size=height_and_width(command.image_size),
        patch_size=command.patch_size,
    )
    settings, _ = fit_settings(command.settings, wishes, source)
    return build_method(RunConfig(data="", method=command.method_name, settings=settings, training=training))


def _measured_data(command: BenchOptions, source: Source, method: Method, batch_size: int) -> DataMeasure:
    return measure_data(
        source,
        method.crops,
        channels=method.config.encoder.channels,
        batch_size=batch_size,
        workers=_workers(command),
        seconds=command.seconds,
        captions=method.reads_captions,
    )


def _step_rows(measure: StepMeasure, method: Method, loaded: DataMeasure | None) -> dict[str, str]:
    rows = {
        "encoder": str(method.config.encoder),
        "device": f"{measure.device}, {measure.precision}{', compiled' if measure.compiled else ''}"
        + (f", {measure.threads} threads" if measure.device == "cpu" else ""),
        "speed": f"{measure.images_per_second:.4g} images/s "
        f"({measure.steps} steps of {measure.batch_size} images, {measure.seconds * 1000:.4g} ms each)",
    }
    if loaded is not None:
        rows["loader alone"] = f"{loaded.images_per_second:.4g} images/s with {loaded.workers} workers"
    for name in ("data", *PHASES):
        if name in measure.phases:
            taken = measure.phases[name]
            rows[f"  {name}"] = f"{taken * 1000:>9.4g} ms  {taken / measure.seconds:>5.1%}"
    rows["peak memory"] = f"{measure.peak_memory / 2**30:.2f} GiB" + (
        " of the whole process" if measure.device == "cpu" else ""
    )
    rows["work"] = f"{measure.flops_per_image / 1e9:.4g} GFLOP an image, forward and backward"
    if measure.matrix_rate is not None and measure.matrix_share is not None:
        rows["matrix rate"] = (
            f"{measure.matrix_share:.0%} of {measure.matrix_rate / 1e9:.4g} GFLOP/s, measured on such matrices"
        )
    return rows


def _data_rows(measure: DataMeasure) -> dict[str, str]:
    one = sum(measure.parts.values())
    return {
        "data": f"{measure.images} images, batches of {measure.batch_size}, crops: {measure.crops}",
        "speed": f"{measure.images_per_second:.4g} images/s with {measure.workers} workers, "
        f"first batch after {measure.first_batch:.2g} s",
        "one process": f"{1 / one:.4g} images/s, for each image",
        **{f"  {name}": f"{seconds * 1000:>9.4g} ms  {seconds / one:>5.1%}" for name, seconds in measure.parts.items()},
        "bad files": str(measure.bad_files),
    }


def _advice_rows(advice: Advice) -> dict[str, str]:
    return {"bound by": advice.bound, "advice": advice.sentence}


def _print_rows(rows: Mapping[str, str], console: Console) -> None:
    width = max(13, *map(len, rows))
    for name, value in rows.items():
        console.print(f"{name:<{width}} {value}", highlight=False, markup=False)


def _print_json(command: BenchOptions, method: Method, values: dict[str, Any], advice: Advice) -> None:
    facts = {
        "unmask": __version__,
        "torch": torch.__version__,
        "processors": processors(),
        "method": command.method_name,
        "encoder": dataclasses.asdict(method.config.encoder),
    }
    sys.stdout.write(json.dumps(facts | values | dataclasses.asdict(advice), allow_nan=False) + "\n")
