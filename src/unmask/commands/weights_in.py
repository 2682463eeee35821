"""`unmask import FILE --from NAME -o encoder.safetensors`: weights of others as an encoder of ours."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask import __version__
from unmask.commands.parse import height_and_width, parse
from unmask.interop.weights_in import SOURCES, Imported, Wanted, import_weights
from unmask.models.encoder import Encoder
from unmask.models.pretrained import encoder_file
from unmask.models.vit import VitEncoder
from unmask.training.checkpoint import write_atomically

SHOWN = 3
"""Names of a group that are printed; --json has all."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """Read an encoder that others have trained: the file that a finished run leaves. No code in it is run."""

    file: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(metavar="FILE"),
        Doc("A checkpoint, a folder of Hugging Face transformers, an encoder.safetensors, or timm:NAME."),
    ]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"]), Doc("The new encoder file.")]
    source: Annotated[
        str | None,
        tyro.conf.arg(name="from", metavar="NAME"),
        Doc(f"Who made the file: {', '.join(SOURCES)} or timm:NAME. Folders of transformers say it themselves."),
    ] = None
    network: Annotated[
        Literal["online", "target"] | None,
        Doc("Which of a file's networks. Default: the one that the authors evaluate."),
    ] = None
    encoder: Annotated[
        str | None, Doc("timm's name of a network of the same kind, where tensors do not tell it (resnet50).")
    ] = None
    heads: Annotated[int | None, Doc("Attention heads. Default: by the name or the usual width; no tensor tells.")] = (
        None
    )
    grid: Annotated[tuple[int, int] | None, Doc("Rows and columns of the file's patches, where it is no square.")] = (
        None
    )
    image_size: Annotated[
        tuple[int, ...] | None, Doc("Side of the images, or height and width: positions are interpolated.")
    ] = None
    patch_size: Annotated[int | None, Doc("Side of a patch in pixels: the patch embedding is resampled.")] = None
    channels: Annotated[int | None, Doc("Channels of the images: the first layer's are summed or repeated.")] = None
    channel_order: Annotated[
        Literal["rgb", "bgr"] | None, Doc("Order that the file's network sees. Default: its authors' (bgr for CMAE).")
    ] = None
    mean: Annotated[tuple[float, ...] | None, Doc("Mean of each channel, of values in [0, 1].")] = None
    std: Annotated[tuple[float, ...] | None, Doc("Deviation of each channel.")] = None
    json: Annotated[bool, Doc("Print one JSON object, with every tensor's name, instead of a summary.")] = False

    def __post_init__(self) -> None:
        sizes = [*(height_and_width(self.image_size) or ()), *(self.grid or ())]
        if any(size < 1 for size in sizes) or (self.heads is not None and self.heads < 1):
            raise ValueError("--image-size, --grid and --heads must be at least 1")


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask import`."""
    command = parse(Import, arguments, command="import")
    if command.out.exists():
        raise ValueError(f"{command.out} exists; choose another --out, or remove it first")
    imported = import_weights(command.file, _wanted(command))
    encoder = imported.encoder
    facts = {
        "method": encoder.method,
        "version": __version__,
        "imported": {"from": imported.source, "file": Path(command.file).name, "network": imported.network},
    }
    tensors, metadata = encoder_file(encoder.encoder, mean=encoder.mean, std=encoder.std, facts=facts)
    write_atomically(command.out, tensors, metadata)
    console = Console(soft_wrap=True)
    if command.json:
        console.print(
            json.dumps({**imported.as_dict(), "out": str(command.out)}), highlight=False, markup=False, soft_wrap=True
        )
        return 0
    for line in summary(imported):
        console.print(line, highlight=False, markup=False)
    console.print(f"{'encoder file':<13} {command.out}", highlight=False, markup=False)
    return 0


def _wanted(command: Import) -> Wanted:
    return Wanted(
        source=command.source,
        network=command.network,
        encoder=command.encoder,
        heads=command.heads,
        grid=command.grid,
        bgr=None if command.channel_order is None else command.channel_order == "bgr",
        mean=command.mean,
        std=command.std,
        image_size=height_and_width(command.image_size),
        patch_size=command.patch_size,
        channels=command.channels,
    )


def summary(imported: Imported) -> list[str]:
    """What was read and what became of every tensor, in lines for people."""
    encoder, config = imported.encoder, imported.encoder.encoder.config
    rows = {
        "source": imported.source + ("" if imported.network is None else f", the {imported.network} network"),
        "encoder": f"{config}, {config.channels} channels{_kind(encoder.encoder)}",
        "normalisation": f"mean {_numbers(encoder.mean)}, deviation {_numbers(encoder.std)}",
        "used": f"{len(imported.used)} tensors",
    }
    lines = [f"{name:<13} {value}" for name, value in rows.items()]
    for title, table in (("changed", imported.changed), ("left out", imported.left_out)):
        lines.append(f"{title:<13} {len(table)} tensors")
        lines += [f"  {how}: {names}" for how, names in _groups(table)]
    return lines + [f"{'note':<13} {note}" for note in imported.notes]


def _kind(encoder: Encoder) -> str:
    config = encoder.config
    heads = encoder.vit.blocks[0].attn.num_heads if isinstance(encoder, VitEncoder) else config.heads
    facts = [] if heads is None else [f"{heads} heads"]
    facts += [] if config.position == "native" else [f"positions {config.position}"]
    facts += [] if config.class_token is None else ["no class token"]
    facts += [] if config.final_norm else ["no final norm"]
    facts += ["layer scale"] if config.layer_scale else []
    return "".join(f", {fact}" for fact in facts)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _groups(table: Mapping[str, str]) -> list[tuple[str, str]]:
    """Reasons with the number of their tensors and the first names."""
    names: dict[str, list[str]] = defaultdict(list)
    for name, how in table.items():
        names[how].append(name)
    return [
        (how, f"{', '.join(group[:SHOWN])}{f' and {len(group) - SHOWN} more' if len(group) > SHOWN else ''}")
        for how, group in names.items()
    ]
