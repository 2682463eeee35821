"""Any checkpoint file as a tree of tensors, read without running code.

torch's own reader builds tensors and plain containers and nothing else. Checkpoints of others also hold what their
training scripts left in them (options, counters, configurations). Such objects of known packages become empty
stand-ins: the reader lets a name of a class be given a class of ours instead, so nothing of theirs is imported or
called. A file that names anything else (`os.system`, say) is refused.
"""

from __future__ import annotations

import os
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.errors import in_short
from unmask.models.model_file import read_tensors

KNOWN = {
    "addict",
    "apex",
    "argparse",
    "collections",
    "deepspeed",
    "easydict",
    "enum",
    "fairseq",
    "mmcv",
    "mmengine",
    "mmpretrain",
    "mmselfsup",
    "numpy",
    "omegaconf",
    "pathlib",
    "pytorch_lightning",
    "timm",
    "torch",
    "typing",
    "yacs",
}
"""Packages whose objects training scripts leave in checkpoints; here they are stand-ins without content."""
KNOWN_BUILT_IN = {"dict", "float", "frozenset", "getattr", "int", "list", "object", "set", "slice", "str", "tuple"}
DICTIONARIES = {"defaultdict", "CfgNode", "ConfigDict", "Dict", "EasyDict", "AttributeDict"}
"""Classes of theirs that are dictionaries: the reader fills them by keys."""
Leaves = dict[tuple[str, ...], Tensor]


class _StandIn:
    """In place of any object that is no tensor; takes whatever it is given and keeps nothing."""

    def __new__(cls, *_: object, **__: object) -> _StandIn:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _dictionary(*_: object) -> OrderedDict[str, Any]:
    """In place of a dictionary of their own kind."""
    return OrderedDict()


class _DictionaryStandIn:
    """The same where the file makes it by its class."""

    def __new__(cls, *_: object) -> OrderedDict[str, Any]:  # type: ignore[misc]
        return OrderedDict()


def read_leaves(path: Path) -> Leaves:
    """All tensors of a checkpoint by their place: ("model", "blocks.0.norm1.weight"). ValueError with one sentence
    where there is none, where it cannot be read, and where it could only be read by running code."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the checkpoint file itself")
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        return {(name,): value for name, value in read_tensors(path)[0].items()}
    leaves = dict(_leaves(_read_torch(path), ()))
    if not leaves:
        raise ValueError(f"{path} holds no tensors")
    return leaves


def _read_torch(path: Path) -> Any:
    """What torch.save wrote, with stand-ins for all that is neither a tensor nor plain."""
    zipped = zipfile.is_zipfile(path)
    try:
        named = _names_of_classes(path, zipped)
    # Anything at all can be in a file that is no checkpoint.
    except Exception as error:
        raise ValueError(f"{path} is neither a safetensors file nor one of torch.save") from error
    unknown = sorted(name for name in named if not _is_known(name))
    if unknown:
        raise ValueError(
            f"{path} holds objects ({', '.join(map(in_short, unknown[:3]))}) that unmask does not load, because "
            "loading such objects can run code; save its tensors alone, where you trust it: "
            "torch.save(checkpoint['model'], 'weights.pth')"
        )
    stand_ins: list[Any] = [(_stand_in(name), name) for name in named]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    # torch has no one error for damaged files.
    except Exception as error:
        raise ValueError(f"{path} is damaged, or cannot be read without running code") from error


def _names_of_classes(path: Path, zipped: bool) -> set[str]:
    """Full names of all classes and functions that a file mentions beyond those that torch always reads."""
    if zipped:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(os.fspath(path)))
    # The older format: a magic number, a version, facts about the machine, then the object, one after the other.
    found = set()
    with path.open("rb") as file:
        for _ in range(4):
            for operation, argument, _ in pickletools.genops(file):
                if operation.name == "GLOBAL":
                    # Written for Python 2, in whose names the reader translates them back.
                    name = str(argument).replace(" ", ".").replace("__builtin__.", "builtins.")
                    found.add("builtins.int" if name == "builtins.long" else name)
    # torch's own are not among those that we may give a stand-in: it looks for its own first.
    return {name for name in found if not name.startswith(("torch.", "collections.OrderedDict", "_codecs."))}


def _is_known(name: str) -> bool:
    package, _, rest = name.partition(".")
    return rest in KNOWN_BUILT_IN if package == "builtins" else package in KNOWN


def _stand_in(name: str) -> Any:
    last = name.rpartition(".")[2]
    if last == "defaultdict":
        return _dictionary
    return _DictionaryStandIn if last in DICTIONARIES else _StandIn


def _leaves(tree: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Every tensor in nested dictionaries and lists, with its place."""
    if isinstance(tree, Tensor):
        yield place, tree.detach()
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*place, str(key)))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _leaves(value, (*place, str(index)))
