"""The methods, one file each, and the one table that names them."""

from __future__ import annotations

import difflib
import importlib

from unmask.methods.base import Method
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.mae import MAE
from unmask.methods.simmim import SimMIM

METHODS: dict[str, type[Method]] = {
    "conmim": ConMIM,
    "cmae": CMAE,
    "mae": MAE,
    "simmim": SimMIM,
}


def find_method(name: str) -> type[Method]:
    """The method called `name`; an unknown one is refused with the nearest known name.

    `package.module:Class` names a method outside this package.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" in name:
        return _import_method(name)
    near = difflib.get_close_matches(name.lower(), METHODS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(METHODS)}"
    raise ValueError(f"unknown method {name!r}; {hint}")


def _import_method(name: str) -> type[Method]:
    module_name, _, class_name = name.partition(":")
    try:
        found = vars(importlib.import_module(module_name)).get(class_name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot import {module_name!r} for method {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{name!r} is not a class derived from unmask.Method")
    return found
