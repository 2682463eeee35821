"""Libraries that only some features need: which, for what, and one sentence where one is missing, too old or broken.

None of them is imported before its feature is asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional part of the installation: `pip install 'unmask[NAME]'`."""

    use: str
    """What it is for, for people."""
    libraries: Mapping[str, str]
    """The modules that are imported, each with the name of its distribution."""


EXTRAS = {
    "text": Extra(use="captions (method m3ae)", libraries={"transformers": "transformers", "tokenizers": "tokenizers"}),
    "transformers": Extra(
        use="encoders as transformers loads them (export --to transformers)",
        libraries={"transformers": "transformers"},
    ),
    "onnx": Extra(
        use="encoders as ONNX (export --to onnx)",
        libraries={"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    ),
    "robustness": Extra(
        use="common corruptions (evaluate robustness)", libraries={"imagecorruptions": "imagecorruptions-imaug"}
    ),
    "remote": Extra(
        use="shards behind URLs, http(s) and s3",
        libraries={"fsspec": "fsspec", "aiohttp": "aiohttp", "s3fs": "s3fs"},
    ),
    "lmdb": Extra(use="LMDB databases as data", libraries={"lmdb": "lmdb"}),
    "huggingface": Extra(use="data sets of Hugging Face (hf:...)", libraries={"datasets": "datasets"}),
    "parquet": Extra(use="features as parquet files (embed)", libraries={"pyarrow": "pyarrow"}),
    "medical": Extra(use="medical images in DICOM files as data", libraries={"pydicom": "pydicom"}),
    "slurm": Extra(use="jobs on a SLURM cluster (submit)", libraries={"submitit": "submitit"}),
    "wandb": Extra(use="figures to Weights & Biases (--log wandb)", libraries={"wandb": "wandb"}),
    "mlflow": Extra(
        use="figures to MLflow (--log mlflow)",
        libraries={"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
    ),
    "trackio": Extra(use="figures to trackio (--log trackio)", libraries={"trackio": "trackio"}),
}


def install_command(extra: str) -> str:
    """What to type for an extra."""
    return f"pip install 'unmask[{extra}]'"


def require(extra: str, need: str, *modules: str, otherwise: str = "") -> ModuleType:
    """Import `modules` of an extra (default: all of its libraries) and give the first.

    ValueError where one cannot be had, as a sentence: `need` ("LMDB databases need") begins it, and `otherwise` (", or
    write .npy") ends it.
    """
    names = modules or tuple(EXTRAS[extra].libraries)
    for name in names:
        if (wrong := trouble(extra, name)) is not None:
            raise ValueError(f"{need} the library {wrong}: {install_command(extra)}{otherwise}")
    return importlib.import_module(names[0])


def trouble(extra: str, module: str) -> str | None:
    """What is wrong with a library of an extra, with its name in front; None where it can be imported."""
    distribution = EXTRAS[extra].libraries[module.partition(".")[0]]
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        # A part of a library that is there is not what pip calls missing.
        if "." not in missing:
            return f"{missing}, which is missing"
        cause: Exception = error
    except Exception as error:
        # What others' code does while it is imported: a library of the system that lacks, another NumPy than its own.
        cause = error
    else:
        return _too_old(distribution)
    return _too_old(distribution) or f"{module}, which is installed but cannot be loaded ({in_a_line(cause)})"


def in_a_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def essentials() -> list[str]:
    """The distributions that this package cannot do without; none where it is run from a folder."""
    return [name for name, requirement in _asked() if requirement.marker is None]


@cache
def fits(distribution: str) -> bool:
    """Whether the version that is installed, if any, is one that this package asks for."""
    wanted, here = minimum(distribution), installed(distribution)
    return wanted is None or here is None or wanted.contains(here, prereleases=True)


def _too_old(distribution: str) -> str | None:
    if fits(distribution):
        return None
    return f"{distribution}{minimum(distribution)}, and {installed(distribution)} is installed"


def installed(distribution: str) -> str | None:
    """The version of a distribution that is installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def minimum(distribution: str) -> SpecifierSet | None:
    """The versions of a distribution that this package asks for; None where it asks for none in particular."""
    return {name: requirement.specifier for name, requirement in _asked()}.get(distribution.lower())


@cache
def _asked() -> tuple[tuple[str, Requirement], ...]:
    """What this package states of others, by their names in small letters."""
    # Only here: commands that need no extra start without it.
    from packaging.requirements import Requirement

    try:
        stated = importlib.metadata.requires("unmask") or []
    except importlib.metadata.PackageNotFoundError:
        # Run from a folder and not installed: nothing states versions.
        return ()
    asked = map(Requirement, stated)
    # The extra dev is this package with its extras.
    return tuple((requirement.name.lower(), requirement) for requirement in asked if requirement.name != "unmask")
