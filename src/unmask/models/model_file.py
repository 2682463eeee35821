"""What all our model files share: tensors and a JSON header in one safetensors file, read without running code."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from unmask.data.stored import PixelRange
from unmask.formats import objection

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
WRONG_VALUES = (AttributeError, ValueError, KeyError, TypeError, OverflowError)
"""What a value of another type or size in a header provokes where it is read."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    # Beside its own error safetensors lets through what torch says of odd types and shapes.
    except Exception as error:
        raise ValueError(f"{path} is not a readable safetensors file") from error


def header_of(metadata: dict[str, str], name: str, kind: str, path: Path) -> dict[str, Any]:
    """The JSON object under `name` in a file's metadata, for this kind of file (see `unmask.formats`).

    ValueError where it is missing, damaged, or of a format that this version does not read.
    """
    if name not in metadata:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"{path} is not {article} {kind} written by unmask (its header is missing)")
    try:
        header: dict[str, Any] = json.loads(metadata[name])
        written = header["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} has a damaged header") from error
    refused = objection(kind, written)
    if refused is not None:
        raise ValueError(f"{path} {refused}")
    return header


def config_of(cls: type[T], values: dict[str, Any]) -> T:
    """A flat configuration from JSON, which has no tuples. Raises what a wrong value raises."""
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def normalisation_of(header: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel. Raises what a wrong value raises."""
    mean, std = (tuple(float(value) for value in header[key]) for key in ("mean", "std"))
    if not len(mean) == len(std) == channels or not all(map(math.isfinite, mean + std)):
        raise ValueError("mean and std are not those of the image's channels")
    return mean, std


def range_of(header: dict[str, Any]) -> PixelRange | None:
    """What becomes black and white of images with more than 8 bits. Raises what a wrong value raises."""
    values = header.get("pixel_range")
    if values is None:
        return None
    return PixelRange(low=tuple(map(float, values["low"])), high=tuple(map(float, values["high"])))


def range_entry(pixel_range: PixelRange | None) -> dict[str, Any]:
    """The same for a header to be written; nothing where there is none."""
    return {} if pixel_range is None else {"pixel_range": asdict(pixel_range)}


def filled(build: Callable[[], M], fill: Callable[[M], object]) -> M:
    """The module that `build` makes, after `fill` has put the tensors of a file into it. Raises what either raises.

    Both are tried first on torch's meta device, which takes no memory: a header can speak of a network of any size,
    and only where the file holds its tensors is there anything to take memory for.
    """
    with torch.device("meta"), warnings.catch_warnings():
        # Nothing is copied there, as torch says of every tensor.
        warnings.simplefilter("ignore", UserWarning)
        fill(build())
    module = build()
    fill(module)
    return module


def described(build: Callable[[], M], fill: Callable[[M], object], path: Path, what: str) -> M:
    """The same for a file of ours. ValueError where there is no such network, or the file does not hold it."""
    try:
        return filled(build, fill)
    except ValueError:
        raise  # a sentence of ours: an unknown name, sizes that do not go together
    # What absurd sizes provoke in timm and torch can be nearly anything.
    except Exception as error:
        raise ValueError(f"{path} does not hold {what} that its header describes") from error
