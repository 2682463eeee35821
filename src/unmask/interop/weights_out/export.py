"""One way out for every format: written aside, loaded again and compared, then put in place as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from unmask.disk import flush_folder
from unmask.errors import Failure
from unmask.interop.weights_out.compare import Difference, check, real_images
from unmask.interop.weights_out.encoder_copy import write_encoder
from unmask.interop.weights_out.graph import Graph
from unmask.interop.weights_out.onnx_file import is_large, write_onnx
from unmask.interop.weights_out.timm_folder import write_timm
from unmask.interop.weights_out.torch_export_file import write_torch_export
from unmask.interop.weights_out.transformers_folder import write_transformers
from unmask.models.pretrained import PretrainedEncoder

Target = Literal["timm", "transformers", "onnx", "torch-export", "safetensors"]
FILES: dict[Target, str] = {"onnx": "model.onnx", "torch-export": "model.pt2", "safetensors": "encoder.safetensors"}
"""The file of those formats that are one, by its name in a folder."""
GRAPHS = ("onnx", "torch-export")
IMAGES = 8
"""Images that an export must agree on."""
CARD = "README.md"
Card = Callable[[list[Difference]], str]


@dataclass(frozen=True, kw_only=True)
class WantedExport:
    """What is written, and how exact it must be."""

    to: Target
    out: Path
    """A folder, or for a format of one file that file by its ending."""
    graph: Graph = Graph()
    """For ONNX and torch.export."""
    data: str | None = None
    """The images to compare with; None: built-in ones."""
    tolerance: float = 1e-4
    """Largest difference by the largest feature."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the header of an encoder file says beside what every one says."""

    @property
    def is_folder(self) -> bool:
        """Whether a folder is written, with a model card."""
        return self.to not in FILES or self.out.suffix != Path(FILES[self.to]).suffix

    @property
    def file(self) -> str:
        """Name of the one file, within the folder or alone."""
        return FILES[self.to] if self.is_folder else self.out.name


def export(pretrained: PretrainedEncoder, wanted: WantedExport, card: Card) -> list[Difference]:
    """Write the export and return how far its features are from ours; `card` makes the README.md of a folder.

    ValueError for what the format cannot hold and for a place that is taken; Failure for features that differ. After
    either nothing is left.
    """
    check_wish(wanted)
    if wanted.to == "onnx" and not wanted.is_folder and is_large(pretrained.encoder):
        raise ValueError(f"an encoder this large needs two files as ONNX; give a folder as --out, not {wanted.out}")
    pretrained = pretrained.to(torch.device("cpu"))
    images_BCHW = real_images(pretrained.encoder, wanted.data, IMAGES, pretrained.pixel_range)
    return put_in_place(wanted, lambda aside: _write(pretrained, wanted, images_BCHW, aside), card)


def put_in_place(wanted: WantedExport, write: Callable[[Path], list[Difference]], card: Card) -> list[Difference]:
    """What `write` makes in a folder aside, checked and with its card; whatever fails, nothing is left."""
    with _aside(wanted.out) as aside:
        found = write(aside)
        check(found, wanted.tolerance)
        if wanted.is_folder:
            (aside / CARD).write_text(card(found), encoding="utf-8", errors="backslashreplace")
            made = aside
        else:
            made = aside / wanted.file
        wanted.out.parent.mkdir(parents=True, exist_ok=True)
        made.rename(wanted.out)
        flush_folder(wanted.out.parent)
    return found


def check_wish(wanted: WantedExport) -> None:
    """ValueError for a place that is taken, and for options that do not go together."""
    out = wanted.out
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists; choose another --out, or remove it first")
    if out.name in ("", ".", ".."):
        raise ValueError(f"{out} is no name for an export; choose another --out")
    if not 0 < wanted.tolerance < 1:
        raise ValueError(f"--tolerance must lie between 0 and 1, got {wanted.tolerance}")
    if wanted.to not in GRAPHS and wanted.graph != Graph():
        raise ValueError(f"--output, --normalise and --dynamic-size are for {' and '.join(GRAPHS)}, not {wanted.to}")


def _write(pretrained: PretrainedEncoder, wanted: WantedExport, images: torch.Tensor, aside: Path) -> list[Difference]:
    if wanted.to == "timm":
        return write_timm(pretrained, images, aside)
    if wanted.to == "transformers":
        return write_transformers(pretrained, images, aside)
    path = aside / wanted.file
    if wanted.to == "onnx":
        return write_onnx(pretrained, wanted.graph, images, path)
    if wanted.to == "torch-export":
        return write_torch_export(pretrained, wanted.graph, images, path)
    return write_encoder(pretrained, wanted.facts, images, path)


@contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder on the same disk as `out`, gone at the end; folders above `out` that are missing stay so for now."""
    above = out.absolute().parent
    while not above.exists():
        above = above.parent
    aside = above / f".{out.name}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
    except OSError as error:
        raise Failure(f"could not write {out} ({(error.strerror or str(error)).lower()})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
