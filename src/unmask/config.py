"""The configuration of a run: what `config.json` holds, read and written strictly."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin, runtime_checkable

import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn

from unmask.data.stored import PixelRange
from unmask.errors import in_short
from unmask.formats import FORMATS, objection
from unmask.interop.start import Start
from unmask.methods import METHODS, find_method, is_known
from unmask.methods.base import MethodConfig
from unmask.training.trainer import TrainingConfig

KIND = "run configuration"
OPTIONAL = ("start", "pixel_range")
"""Keys that a configuration has only where they say something."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a pre-training run. Two runs with equal configurations end with equal weights."""

    data: str
    method: str
    settings: MethodConfig
    training: TrainingConfig
    start: Start | None = None
    """The weights that the encoder begins from; None for a random start, of which config.json says nothing."""
    pixel_range: PixelRange | None = None
    """What becomes black and white of images with more than 8 bits; None, unwritten, where they have 8."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        values = {"format": FORMATS[KIND], **dataclasses.asdict(self)}
        for name in OPTIONAL:
            if values[name] is None:
                del values[name]
        return values


@runtime_checkable
class Configuration(Protocol):
    """What defines a run of any kind."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        ...


def read_values(path: Path) -> dict[str, Any]:
    """The JSON object in a file, of a format that this version reads. ValueError with one sentence."""
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read configuration {path}: {(error.strerror or 'error').lower()}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or "format" not in values:
        raise ValueError(f"{path} is not a run configuration")
    refused = objection(KIND, values["format"])
    if refused is not None:
        raise ValueError(f"{path} {refused}")
    return values


def save_config(config: Configuration, path: Path) -> None:
    """Write config.json."""
    path.write_text(json.dumps(config.as_dict(), indent=2) + "\n")


def load_config(path: Path) -> RunConfig:
    """Read config.json. ValueError, with one sentence, for anything that is not exactly a RunConfig."""
    values = read_values(path)
    missing = [key for key in ("data", "method", "settings", "training") if key not in values]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]!r}")
    unknown = set(values) - {"format", "data", "method", "settings", "training", *OPTIONAL}
    if unknown:
        raise ValueError(f"{path}: unknown key {in_short(min(unknown))}")
    name = values["method"]
    if not isinstance(name, str) or not is_known(name):
        # A configuration file must not make us import code; --method module:Class on the command line may, and has.
        raise ValueError(f"{path} names method {in_short(name)}, which is not one of {', '.join(METHODS)}")
    if not isinstance(values["data"], str):
        raise ValueError(f"{path}: data must be text, got {in_short(values['data'])}")
    return RunConfig(
        data=values["data"],
        method=name,
        settings=structure(values["settings"], find_method(name).Config, "settings"),
        training=structure(values["training"], TrainingConfig, "training"),
        start=structure(values["start"], Start, "start") if "start" in values else None,
        pixel_range=structure(values["pixel_range"], PixelRange, "pixel_range") if "pixel_range" in values else None,
    )


def structure(values: dict[str, Any], cls: type[T], where: str) -> T:
    """A configuration dataclass from plain values; unknown keys fail with the nearest known name."""
    converter = cattrs.Converter(forbid_extra_keys=True)

    def strict(kind: type) -> Any:
        from_fields: Any = make_dict_structure_fn(kind, converter, _cattrs_forbid_extra_keys=True)

        def from_object(value: Any, _: Any) -> Any:
            if not isinstance(value, dict):
                raise ValueError(f"expected an object with the fields of {kind.__name__}, got {in_short(value)}")
            return from_fields(value, kind)

        return from_object

    converter.register_structure_hook_factory(dataclasses.is_dataclass, strict)
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(int, _whole)
    converter.register_structure_hook(bool, _truth)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook_func(_is_choice, _choice)
    try:
        return converter.structure(values, cls)
    except (ClassValidationError, ValueError) as error:
        raise ValueError(_sentence(error, where)) from error


def _number(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {in_short(value)}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"expected a number of usual size, got {in_short(value)}") from error


def _whole(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {in_short(value)}")
    return value


def _truth(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {in_short(value)}")
    return value


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {in_short(value)}")
    return value


def _is_choice(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _choice(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise ValueError(f"expected one of {', '.join(map(str, get_args(kind)))}, got {in_short(value)}")
    return value


def _sentence(error: BaseException, where: str) -> str:
    """The first trouble in a tree of errors, in one sentence."""
    if isinstance(error, ForbiddenExtraKeysError):
        key = min(error.extra_fields)
        known = [field.name for field in dataclasses.fields(error.cl)]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"{where}: unknown key {in_short(key)}; {hint}"
    if isinstance(error, BaseExceptionGroup):
        inner = error.exceptions[0]
        note = next((note for note in getattr(inner, "__notes__", []) if hasattr(note, "name")), None)
        return _sentence(inner, f"{where}.{note.name}" if note is not None else where)
    if isinstance(error, KeyError):
        return f"{where} is missing"
    if isinstance(error, TypeError):
        # cattrs asks a tuple's value for its length or its items.
        return f"{where}: expected a list"
    return f"{where}: {error}"
