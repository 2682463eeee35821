"""`unmask pretrain DATA`: from a folder of images to an encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.markup import escape
from typing_extensions import Doc

from unmask.bench.fitting import largest_batch, parts_that_fit
from unmask.commands.parse import given, height_and_width, parse
from unmask.config import RunConfig, load_config
from unmask.data.pixel_range import PixelRange, has_wide_images, in_range, measured_range
from unmask.data.planes import PLANES_PREFIX
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_opened, first_readable
from unmask.defaults import (
    Wishes,
    cautious_batch,
    default_batch,
    default_workers,
    fit_settings,
    fitting_channels,
)
from unmask.errors import STOPPED
from unmask.interop.start import Start, start_settings
from unmask.methods import find_method
from unmask.methods.base import MethodConfig
from unmask.models.pretrained import open_encoder
from unmask.pretrain import begun_from, build_method, pretrain
from unmask.ranks import from_all_ranks, rank, world_size
from unmask.recipes import find_recipe
from unmask.run_folder import RunFolder
from unmask.training.distributed import joined, launch, launched, own_device
from unmask.training.trainer import TrainingConfig, TrainingOptions, choose_device
from unmask.training.watch import Watch

MOST_IMAGES = 2**16
"""Of a batch that is chosen by memory alone: no published run has more."""


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Pre-train an encoder on unlabelled images. The same command again resumes a run that was stopped."""

    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("A folder of images or shards, a .txt list, .tar, .zip, .lmdb, hf:NAME, URL of shards, or builtin:emoji."),
    ]
    out: Annotated[Path | None, Doc("Run folder. Default: runs/METHOD-DATA.")] = None
    method_name: Annotated[
        str, tyro.conf.arg(name="method"), Doc("A method of `unmask methods`, or package.module:Class.")
    ] = "conmim"
    recipe: Annotated[str | None, Doc("Start from a ready-made configuration of `unmask recipes`.")] = None
    config: Annotated[Path | None, Doc("Start from the config.json of another run.")] = None
    encoder: Annotated[str | None, Doc("A timm ViT, for example vit_small_patch16_224.")] = None
    from_weights: Annotated[
        str | None,
        tyro.conf.arg(metavar="FILE"),
        Doc(
            "Go on from an encoder: a run folder, an encoder file (also of `unmask import`) or timm:NAME. It decides "
            "the network; heads and decoders begin at random."
        ),
    ] = None
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the crops in pixels, or height and width. Default: by the data.")
    ] = None
    patch_size: Annotated[int | None, Doc("Side of a patch in pixels. Default: 16, 8 or 4 by the image size.")] = None
    channels: Annotated[
        int | None, Doc("Channels of the images. Default: 3, or the images' own number if it is neither 1 nor 3.")
    ] = None
    pixel_range: Annotated[
        tuple[float, float] | Literal["data", "full"] | None,
        tyro.conf.arg(metavar="{LOW HIGH|data|full}"),
        Doc(
            "Values that become black and white in images of more than 8 bits: two numbers; data: all but 0.1 %% at "
            "either end of the images' own, by channel; full: the ends of their type. Default: data, or those of "
            "--from-weights."
        ),
    ] = None
    normalisation: Annotated[
        Literal["imagenet", "data"],
        Doc("Mean and deviation of the channels: ImageNet's, or computed from the data."),
    ] = "imagenet"
    lr: Annotated[float | None, Doc("Peak learning rate, absolute. Default: by the method's rule.")] = None
    batch_size: Annotated[
        int | Literal["auto"] | None,
        Doc(
            "Images of one optimizer step. auto: as many as fit into memory, a power of two; with a recipe its own "
            "number, in as many parts as need be. Default: by data and device."
        ),
    ] = None
    accumulate: Annotated[
        int | None,
        Doc(
            "Parts of its share of a batch that a device takes one after the other, to save memory. Default: 1, or "
            "what a begun run needs on so many devices."
        ),
    ] = None
    devices: Annotated[int, Doc("Devices of this machine that train together, a process each (as torchrun does).")] = 1
    shard: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        Doc("Each device holds a share of all weights only: for encoders that do not fit on one."),
    ] = False
    restarts: Annotated[int, Doc("Times that all of them start again where one is killed or hangs.")] = 3
    patience: Annotated[float, Doc("Seconds without progress after which a device counts as hanging.")] = 600.0
    workers: Annotated[
        int | None, Doc("Processes of each device that decode images. Default: one a processor, at most 8.")
    ] = None
    options: Annotated[TrainingOptions, tyro.conf.arg(name="")] = TrainingOptions()
    settings: Annotated[MethodConfig, tyro.conf.arg(name="method"), Doc("Knobs of the method.")]


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask pretrain`."""
    command, base = read(arguments)
    check(command)
    if command.devices > 1 and not launched():
        return launch(command.devices, ["pretrain", *arguments], restarts=command.restarts, say=_say)
    with joined(choose_device(command.options.device), command.patience) as watch:
        return _run(command, base, Console(soft_wrap=True, quiet=rank() > 0), watch)


def _run(command: Pretrain, base: RunConfig | None, console: Console, watch: Watch) -> int:
    """What each of the processes does."""
    folder = RunFolder(command.out or Path("runs") / default_name(command))
    config, notes = resolve(command, base, folder)
    describe(config, folder, notes, console)
    outcome = pretrain(config, folder, console, watch, shard=command.shard)
    if outcome.kind == "stopped":
        console.print(
            f"stopped by {outcome.signal} at step {outcome.step}, all saved; the same command resumes",
            highlight=False,
        )
        return STOPPED
    if rank() > 0:
        return 0
    # Only now: matplotlib takes longer to import than the whole command line, and nothing before needs it.
    from unmask.run_report import write_report

    page = write_report(folder)
    console.print(f"encoder: {folder.encoder_file}\nreport:  {page}", highlight=False, markup=False)
    return 0


def _say(sentence: str) -> None:
    Console(soft_wrap=True).print(sentence, highlight=False, markup=False)


def read(arguments: Sequence[str]) -> tuple[Pretrain, RunConfig | None]:
    """What a command line says, and the configuration that it begins with. ValueError where it makes no sense."""
    base = _base(arguments)
    return parse(Pretrain, arguments, command="pretrain", default=_defaults(arguments, base)), base


def check(command: Pretrain) -> None:
    """ValueError for options that cannot be."""
    if command.batch_size == "auto" and command.accumulate is not None:
        raise ValueError("--batch-size auto chooses the parts of a batch itself: leave --accumulate out")
    for name, value in (("--devices", command.devices), ("--accumulate", command.accumulate)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if command.shard and command.batch_size == "auto":
        raise ValueError("--batch-size auto tries whole networks on one device: leave it out with --shard")
    if command.shard and command.devices == 1 and not launched():
        raise ValueError("--shard spreads the weights over several devices: use it with --devices or torchrun")
    if command.from_weights is not None and command.encoder is not None:
        raise ValueError("--from-weights says which network the encoder is: leave --encoder out")
    if command.restarts < 0:
        raise ValueError(f"--restarts must be 0 or more, got {command.restarts}")
    if command.patience <= 0:
        raise ValueError(f"--patience must be above 0, got {command.patience:g}")
    visible = torch.cuda.device_count()
    if choose_device(command.options.device).type == "cuda" and command.devices > visible:
        raise ValueError(f"--devices {command.devices} is more than this machine has: {visible}")


def _base(arguments: Sequence[str]) -> RunConfig | None:
    """The configuration that --config or --recipe begins with."""
    file, recipe = given(arguments, "--config"), given(arguments, "--recipe")
    if file is not None and recipe is not None:
        raise ValueError("--config and --recipe exclude each other")
    if file is not None:
        return load_config(Path(file))
    return None if recipe is None else find_recipe(recipe)()


def _defaults(arguments: Sequence[str], base: RunConfig | None) -> Pretrain:
    """What the options are where the user gives none."""
    asked = given(arguments, "--method")
    if base is None:
        name = asked or "conmim"
        return Pretrain(data=tyro.MISSING, method_name=name, settings=find_method(name).Config())
    if asked is not None and asked != base.method:
        raise ValueError(f"the configuration is of method {base.method!r}, not {asked!r}")
    options = {field.name: getattr(base.training, field.name) for field in dataclasses.fields(TrainingOptions)}
    return Pretrain(
        data=base.data or tyro.MISSING,
        method_name=base.method,
        settings=base.settings,
        options=TrainingOptions(**options),
        batch_size=base.training.batch_size,
        workers=base.training.workers,
        from_weights=None if base.start is None else base.start.weights,
    )


def resolve(command: Pretrain, base: RunConfig | None, folder: RunFolder) -> tuple[RunConfig, list[str]]:
    """The full configuration of a run, and a sentence for everything that was chosen for data and machine."""
    data = _data(command)
    source = open_source(data)
    command = _for_weights(command, base, folder)
    channels = fitting_channels(command.settings.encoder.channels, command.channels, source)
    pixel_range, notes = _range(command, base, folder, source, channels)
    source = in_range(source, pixel_range)
    first_readable(source, channels=channels)
    settings, more = _settings(command, source, fit_to_data=base is None)
    notes += more
    batch = command.batch_size
    if batch is None or batch == "auto":
        batch = default_batch(len(source), choose_device(command.options.device).type != "cpu")
    training = TrainingConfig(
        **{field.name: getattr(command.options, field.name) for field in dataclasses.fields(TrainingOptions)},
        batch_size=batch,
        workers=default_workers() if command.workers is None else command.workers,
        parts=_parts(command, base, folder),
    )
    start = None if command.from_weights is None else Start(weights=command.from_weights)
    config = RunConfig(
        data=data,
        method=command.method_name,
        settings=settings,
        training=training,
        start=start,
        pixel_range=pixel_range,
    )
    if command.batch_size == "auto":
        asked = None if base is None else base.training.batch_size
        config = replace(config, training=_fitting(config, asked, len(source), folder, notes))
    named = [] if source.channel_names is None else [f"planes {', '.join(source.channel_names)}"]
    return config, [f"{len(source)} images", *named, *notes]


def _for_weights(command: Pretrain, base: RunConfig | None, folder: RunFolder) -> Pretrain:
    """The command with the encoder and normalisation of the weights that it begins from.

    Where the run has begun already its own configuration tells them, and the weights may be gone.
    """
    if command.from_weights is None:
        return command
    begun = begun_from(folder, command.from_weights)
    if begun is None:
        weights = open_encoder(command.from_weights)
        encoder, mean, std = weights.encoder.config, weights.mean, weights.std
    else:
        encoder, mean, std = begun.settings.encoder, begun.settings.mean, begun.settings.std
    usual = type(command.settings)() if base is None else base.settings
    own = (command.settings.mean, command.settings.std) != (usual.mean, usual.std)
    return replace(command, settings=start_settings(command.settings, usual, encoder, None if own else (mean, std)))


def _range(
    command: Pretrain, base: RunConfig | None, folder: RunFolder, source: Source, channels: int
) -> tuple[PixelRange | None, list[str]]:
    """What becomes black and white of images with more than 8 bits, and a sentence about it.

    Where the user says nothing: what the run has begun with, what its configuration or its weights have, or else what
    the data has.
    """
    asked, chosen, origin = command.pixel_range, None, "from the data"
    if isinstance(asked, tuple):
        if not has_wide_images(source):
            raise ValueError(f"the images of {source.name} have 8 bits: leave --pixel-range out")
        chosen, origin = PixelRange(low=asked[:1], high=asked[1:]), "as asked for"
    elif asked is None and folder.config_file.exists():
        chosen, origin = folder.config().pixel_range, "as the run has begun"
    elif asked is None and base is not None and base.pixel_range is not None:
        chosen, origin = base.pixel_range, "as configured"
    elif asked is None and command.from_weights is not None:
        chosen, origin = open_encoder(command.from_weights).pixel_range, "as the weights have it"
    if chosen is None and asked != "full" and not (asked is None and folder.config_file.exists()):
        chosen, origin = measured_range(source, channels=channels), "from the data"
    if chosen is None:
        return None, []
    return chosen, [f"values {chosen} of {first_opened(source).dtype} become 0 to 255, {origin}"]


def _data(command: Pretrain) -> str:
    # The same folder with and without a slash behind it is the same run.
    return command.data.rstrip("/") or command.data


def _parts(command: Pretrain, base: RunConfig | None, folder: RunFolder) -> int:
    """Parts of a batch: those of a run that has begun, whatever the number of devices; or what the devices take."""
    if command.accumulate is not None:
        return world_size() * command.accumulate
    begun = _begun(folder).get("parts")
    if begun is not None:
        return int(begun)
    wanted = 1 if base is None else base.training.parts
    return wanted if wanted % world_size() == 0 else wanted * world_size()


def _begun(folder: RunFolder) -> dict[str, Any]:
    """How a run that has begun is trained; empty where there is none yet."""
    training: dict[str, Any] = folder.values().get("training", {}) if folder.config_file.exists() else {}
    return training


def _fitting(config: RunConfig, asked: int | None, samples: int, folder: RunFolder, notes: list[str]) -> TrainingConfig:
    """The run's training with a batch that fits into memory: of `asked` images, in parts, or as many as there may be.

    A run that has begun keeps what it has.
    """
    begun = _begun(folder)
    if {"batch_size", "parts"} <= begun.keys():
        batch, parts = begun["batch_size"], begun["parts"]
        notes.append("batches as the run has begun with")
    else:
        most = max(1, (cautious_batch(MOST_IMAGES, samples) if asked is None else asked) // world_size())
        fits = largest_batch(
            lambda: build_method(config),
            replace(config.training, parts=1, compile=False),
            own_device(choose_device(config.training.device)),
            # Of what was asked for the next power of two: where that fits, so does what was asked for.
            most=1 << (most - 1).bit_length(),
        )
        largest = min(from_all_ranks(fits))
        batch = largest * world_size() if asked is None else asked
        if batch % world_size():
            raise ValueError(f"a batch of {batch} cannot be shared equally by {world_size()} devices")
        parts = world_size() * parts_that_fit(batch // world_size(), largest)
        notes.append(f"a step of {batch // parts} images fits into memory")
        if parts > world_size():
            notes.append(
                f"batches of {batch} in {parts} parts: batch norm and contrasts between images see one part at a time"
            )
    return replace(config.training, batch_size=batch, parts=parts)


def _settings(command: Pretrain, source: Source, *, fit_to_data: bool) -> tuple[MethodConfig, list[str]]:
    encoder = command.settings.encoder
    size = height_and_width(command.image_size)
    plain = type(encoder)()
    if size is None and (encoder.image_height, encoder.image_width) != (
        plain.image_height,
        plain.image_width,
    ):
        # Given by --method.encoder.image-height, by --config or by --recipe.
        size = (encoder.image_height, encoder.image_width)
    if size is None and not fit_to_data:
        size = (encoder.image_height, encoder.image_width)
    own = command.from_weights is not None and command.normalisation == "imagenet"  # the weights' own
    wishes = Wishes(
        encoder=command.encoder,
        image_size=size,
        patch_size=command.patch_size,
        channels=command.channels,
        normalisation="given" if own else command.normalisation,
        lr=command.lr,
    )
    return fit_settings(command.settings, wishes, source)


def default_name(command: Pretrain) -> str:
    """Name of the run folder when the user gives none: the same command always means the same folder."""
    if command.recipe is not None:
        return command.recipe
    stem = Path(_data(command).removeprefix("builtin:").removeprefix(PLANES_PREFIX)).resolve().name or "data"
    return f"{command.method_name.rpartition(':')[2].lower()}-{stem}"


def describe(config: RunConfig, folder: RunFolder, notes: list[str], console: Console) -> None:
    """Print what is about to happen, and how it was decided."""
    for name, value in described(config, folder, notes).items():
        console.print(f"[bold]{name:<13}[/bold] {escape(value)}", highlight=False)


def described(config: RunConfig, folder: RunFolder, notes: list[str]) -> dict[str, str]:
    """What is about to happen, and how it was decided, in words by their headings."""
    training, settings = config.training, config.settings
    optimizer = settings.optimizer
    peak = optimizer.peak(training.batch_size)
    rule = "absolute" if optimizer.lr_batch is None else f"{optimizer.lr:g} per {optimizer.lr_batch} images"
    warmup = min(optimizer.warmup_epochs, training.epochs / 5)
    return {
        "method": find_method(config.method).info.title,
        "data": f"{config.data} ({'; '.join(notes)})",
        "encoder": str(settings.encoder),
        "training": f"{training.epochs:g} epochs, batches of {training.batch_size}"
        f"{f' in {training.parts} parts' if training.parts > 1 else ''}, "
        f"on {f'{world_size()} x ' if world_size() > 1 else ''}{choose_device(training.device)}, "
        f"{training.workers} workers{' each' if world_size() > 1 else ''}",
        "learning rate": f"{peak:.3g} ({rule}), {warmup:g} epochs of warm-up",
        "out": str(folder.path),
    }
