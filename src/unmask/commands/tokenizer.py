"""`unmask tokenizer train DATA`: an image tokenizer for the BEiT family."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.parse import height_and_width, parse
from unmask.data.pixel_range import in_range, measured_range
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_opened, first_readable, median_size
from unmask.defaults import FULL_SIZE, default_batch, default_patch, default_workers, fitting_channels
from unmask.errors import STOPPED
from unmask.models.pretrained import PretrainedEncoder, open_encoder
from unmask.models.tokenizers.base import TokenizerConfig
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.models.tokenizers.vq import VQConfig
from unmask.models.tokenizers.vqkd import VQKDConfig
from unmask.optimisation import OptimizerConfig
from unmask.tokenizer_training.config import KINDS, OPTIMIZERS, Kind, TokenizerOptions, TokenizerTrainingConfig
from unmask.tokenizer_training.train import final_quality, train_tokenizer, work_folder
from unmask.training.trainer import choose_device

FULL_VOCABULARY = 8192
TOKENS_PER_CODE = 100
LARGEST_GRID = 14


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Train an image tokenizer on unlabelled images. The same command again resumes a run that was stopped."""

    action: Annotated[tyro.conf.Positional[Literal["train"]], Doc("train: from images to a tokenizer file.")]
    data: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="DATA"),
        Doc("A folder of images (any nesting), a .txt list, a .tar, builtin:emoji or builtin:fashion-mnist."),
    ]
    kind: Annotated[
        Kind, Doc("dvae: DALL-E's, for BEiT. vq: PeCo's, better with a teacher. vqkd: BEiT v2's, needs a teacher.")
    ] = "dvae"
    out: Annotated[Path | None, Doc("The file, ending in .safetensors. Default: runs/KIND-DATA.safetensors.")] = None
    teacher: Annotated[
        str | None, Doc("A run folder, an encoder.safetensors or timm:NAME: judges (vq) or is imitated (vqkd).")
    ] = None
    vocabulary: Annotated[
        int | None, Doc("Number of codes. Default: 8192, or fewer so that each names 100 tokens an epoch.")
    ] = None
    stride: Annotated[int | None, Doc("Side of a token in pixels. Default: 16, 8 or 4, by kind and image size.")] = None
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the crops in pixels, or height and width. Default: by the data.")
    ] = None
    channels: Annotated[
        int | None, Doc("Channels of the images. Default: 3, or the images' own number if it is neither 1 nor 3.")
    ] = None
    lr: Annotated[float | None, Doc("Peak learning rate, absolute. Default: by the kind's rule.")] = None
    batch_size: Annotated[int | None, Doc("Images of one optimizer step. Default: by data and device.")] = None
    workers: Annotated[int | None, Doc("Processes that decode images. Default: one a processor, at most 8.")] = None
    options: Annotated[TokenizerOptions, tyro.conf.arg(name="")] = TokenizerOptions()
    optimizer: Annotated[OptimizerConfig, Doc("The optimizer and its schedule.")]
    tokenizer: Annotated[TokenizerConfig, Doc("Knobs of the tokenizer.")]


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask tokenizer`."""
    kind = _kind(arguments)
    default = Tokenizer(
        action=tyro.MISSING, data=tyro.MISSING, kind=kind, optimizer=OPTIMIZERS[kind], tokenizer=KINDS[kind]()
    )
    command = parse(Tokenizer, arguments, command="tokenizer", default=default)
    teacher = None if command.teacher is None else open_encoder(command.teacher)
    config, notes = resolve(command, teacher)
    out = command.out or Path("runs") / f"{config.kind}-{_stem(config.data)}.safetensors"
    folder = work_folder(out)
    console = Console(soft_wrap=True)
    rows = {
        "tokenizer": f"{config.kind}, {config.tokenizer.vocabulary} codes, teacher {config.teacher or 'none'}",
        "data": f"{config.data} ({'; '.join(notes)})",
        "training": f"{config.epochs:g} epochs, batches of {config.batch_size}, on {choose_device(config.device)}",
        "out": f"{out}, log and checkpoints in {folder.path}",
    }
    for name, value in rows.items():
        console.print(f"{name:<10} {value}", highlight=False, markup=False)
    outcome = train_tokenizer(config, teacher, out, console)
    if outcome.kind == "stopped":
        console.print(
            f"stopped by {outcome.signal} at step {outcome.step}, all saved; the same command resumes", highlight=False
        )
        return STOPPED
    quality = final_quality(folder)
    lines = [f"quality:   {quality}", f"tokenizer: {out}"]
    if quality.pixels:
        lines.append(f"picture:   {out.with_suffix('.png')}")
    warning = quality.warning()
    if warning is not None:
        lines.append(f"warning:   {warning}")
    console.print("\n".join(lines), highlight=False, markup=False)
    return 0


def _kind(arguments: Sequence[str]) -> Kind:
    """The kind before the line is parsed: the knobs depend on it. What is no kind, parsing refuses."""
    asked = ""
    for position, argument in enumerate(arguments):
        if argument == "--kind" and position + 1 < len(arguments):
            asked = arguments[position + 1]
        elif argument.startswith("--kind="):
            asked = argument.partition("=")[2]
    return next((kind for kind in KINDS if kind == asked), "dvae")


def _stem(data: str) -> str:
    return Path(data.removeprefix("builtin:")).resolve().name or "data"


def resolve(command: Tokenizer, teacher: PretrainedEncoder | None) -> tuple[TokenizerTrainingConfig, list[str]]:
    """The full configuration of a run, and a sentence for everything that was chosen for the data."""
    data = command.data.rstrip("/") or command.data
    source = open_source(data)
    notes = [f"{len(source)} images"]
    channels = fitting_channels(command.tokenizer.channels, command.channels, source)
    if channels < 1:
        raise ValueError(f"images need at least 1 channel, got {channels}")
    if channels != (command.channels or command.tokenizer.channels):
        notes.append(f"{channels} channels, as the images have")
    pixel_range = measured_range(source, channels=channels)
    if pixel_range is not None:
        notes.append(f"values {pixel_range} of {first_opened(source).dtype} become 0 to 255, from the data")
    source = in_range(source, pixel_range)
    first_readable(source, channels=channels)
    height, width, stride = _sizes(command, source, notes)
    vocabulary = command.vocabulary
    if vocabulary is None:
        vocabulary = command.tokenizer.vocabulary
        if vocabulary == FULL_VOCABULARY:
            vocabulary = default_vocabulary(len(source) * (height // stride) * (width // stride))
            notes.append(f"{vocabulary} codes")
    batch = command.batch_size
    if batch is None:
        batch = default_batch(len(source), choose_device(command.options.device).type != "cpu")
    optimizer = command.optimizer
    if command.lr is not None:
        optimizer = replace(optimizer, lr=command.lr, lr_batch=None)
    settings = replace(command.tokenizer, vocabulary=vocabulary)
    config = TokenizerTrainingConfig(
        **{field.name: getattr(command.options, field.name) for field in dataclasses.fields(TokenizerOptions)},
        data=data,
        pixel_range=pixel_range,
        kind=command.kind,
        tokenizer=_fitted(settings, channels, (height, width), stride, teacher),
        teacher=command.teacher,
        optimizer=optimizer,
        image_height=height,
        image_width=width,
        batch_size=batch,
        workers=default_workers() if command.workers is None else command.workers,
    )
    return config, notes


def default_vocabulary(tokens: int) -> int:
    """The largest power of two up to 8192, and from 16 on, of which each code names 100 of so many tokens."""
    vocabulary = FULL_VOCABULARY
    while vocabulary > 16 and vocabulary * TOKENS_PER_CODE > tokens:
        vocabulary //= 2
    return vocabulary


def _sizes(command: Tokenizer, source: Source, notes: list[str]) -> tuple[int, int, int]:
    """Height and width of the crops and the stride, in pixels."""
    size = height_and_width(command.image_size)
    if size is not None and min(size) < 1:
        raise ValueError(f"--image-size must be at least 1 pixel, got {min(size)}")
    if command.stride is not None and command.stride < 1:
        raise ValueError(f"--stride must be at least 1 pixel, got {command.stride}")
    side = min(size) if size is not None else min(FULL_SIZE, *median_size(source))
    stride = command.stride or _given_stride(command.tokenizer)
    if stride is None:
        # BEiT's tokens are finer than its patches: it shows its tokenizer smaller images.
        stride = min(default_patch(side), 8 if command.kind == "dvae" else 16)
    if size is not None:
        return *size, stride
    side = max(2 * stride, min(LARGEST_GRID * stride, side // stride * stride))
    notes.append(f"crops of {side}x{side} pixels, tokens of {stride}x{stride}")
    return side, side, stride


def _given_stride(settings: TokenizerConfig) -> int | None:
    """The stride that the user gave by --tokenizer.conv.stride or --tokenizer.encoder.patch-size."""
    if isinstance(settings, VQKDConfig):
        return settings.encoder.patch_size
    assert isinstance(settings, DVAEConfig | VQConfig)
    plain = type(settings)().conv.stride
    return settings.conv.stride if settings.conv.stride != plain else None


def _fitted(
    settings: TokenizerConfig, channels: int, size: tuple[int, int], stride: int, teacher: PretrainedEncoder | None
) -> TokenizerConfig:
    """The tokenizer's settings for images of these channels and this size, and for its teacher."""
    if isinstance(settings, VQKDConfig):
        encoder = replace(
            settings.encoder, channels=channels, image_height=size[0], image_width=size[1], patch_size=stride
        )
        width = settings.teacher_width if teacher is None else teacher.encoder.width
        return replace(settings, channels=channels, encoder=encoder, teacher_width=width)
    assert isinstance(settings, DVAEConfig | VQConfig)
    return replace(settings, channels=channels, conv=replace(settings.conv, stride=stride))
