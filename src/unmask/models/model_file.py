"""What all our model files share: tensors and a JSON header in one safetensors file, read without running code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

T = TypeVar("T")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. ValueError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a readable safetensors file") from error


def header_of(metadata: dict[str, str], name: str, form: int, path: Path, what: str) -> dict[str, Any]:
    """The JSON object under `name` in a file's metadata, of format `form`.

    ValueError where it is missing ("is not `what` written by unmask"), damaged, or of another format.
    """
    if name not in metadata:
        raise ValueError(f"{path} is not {what} written by unmask (its header is missing)")
    try:
        header: dict[str, Any] = json.loads(metadata[name])
        written = header["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has a damaged header") from error
    if written != form:
        # "an encoder" -> "encoder"
        raise ValueError(f"{path} has {what.partition(' ')[2]} format {written}, this version reads {form}")
    return header


def config_of(cls: type[T], values: dict[str, Any]) -> T:
    """A flat configuration from JSON, which has no tuples. Raises what a wrong value raises."""
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
