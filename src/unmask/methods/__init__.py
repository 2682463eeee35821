"""The methods, one file each, and the one table that names them."""

from __future__ import annotations

import difflib
import importlib
import sys

from unmask.methods.base import Method
from unmask.methods.beit import BEiT
from unmask.methods.beit_v2 import BEiTv2
from unmask.methods.bootmae import BootMAE
from unmask.methods.byol import BYOL
from unmask.methods.cae import CAE
from unmask.methods.can import CAN
from unmask.methods.cim import CIM
from unmask.methods.cmae import CMAE
from unmask.methods.conmim import ConMIM
from unmask.methods.convmae import ConvMAE
from unmask.methods.data2vec import Data2Vec
from unmask.methods.dino import DINO
from unmask.methods.dmae import DMAE
from unmask.methods.extrema import ExtreMA
from unmask.methods.ibot import IBOT
from unmask.methods.igpt import IGPT
from unmask.methods.m3ae import M3AE
from unmask.methods.mae import MAE
from unmask.methods.maskfeat import MaskFeat
from unmask.methods.mc_beit import McBEiT
from unmask.methods.mim import MIM
from unmask.methods.mixmask import MixMask
from unmask.methods.mocov3 import MoCoV3
from unmask.methods.msn import MSN
from unmask.methods.peco import PeCo
from unmask.methods.sim import SIM
from unmask.methods.simclr import SimCLR
from unmask.methods.simmim import SimMIM
from unmask.methods.simsiam import SimSiam
from unmask.methods.splitmask import SplitMask
from unmask.methods.supmae import SupMAE
from unmask.methods.tec import TEC

METHODS: dict[str, type[Method]] = {
    "conmim": ConMIM,
    "cmae": CMAE,
    "mae": MAE,
    "simmim": SimMIM,
    "data2vec": Data2Vec,
    "maskfeat": MaskFeat,
    "bootmae": BootMAE,
    "dmae": DMAE,
    "supmae": SupMAE,
    "convmae": ConvMAE,
    "beit": BEiT,
    "cae": CAE,
    "beit_v2": BEiTv2,
    "mc_beit": McBEiT,
    "peco": PeCo,
    "igpt": IGPT,
    "simclr": SimCLR,
    "mocov3": MoCoV3,
    "byol": BYOL,
    "simsiam": SimSiam,
    "mixmask": MixMask,
    "sim": SIM,
    "extrema": ExtreMA,
    "can": CAN,
    "tec": TEC,
    "splitmask": SplitMask,
    "cim": CIM,
    "mim": MIM,
    "dino": DINO,
    "ibot": IBOT,
    "msn": MSN,
    "m3ae": M3AE,
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


def name_of(method: Method) -> str:
    """The name by which `find_method` finds the class of a method."""
    kind = type(method)
    ours = (name for name, known in METHODS.items() if known is kind)
    return next(ours, f"{kind.__module__}:{kind.__qualname__}")


def is_known(name: str) -> bool:
    """Whether `find_method` finds this method without importing anything: one of ours, or one imported before."""
    module_name, _, class_name = name.partition(":")
    module = sys.modules.get(module_name)
    found = None if module is None else vars(module).get(class_name)
    return name in METHODS or (isinstance(found, type) and issubclass(found, Method))


def _import_method(name: str) -> type[Method]:
    module_name, _, class_name = name.partition(":")
    try:
        found = vars(importlib.import_module(module_name)).get(class_name)
    except (ImportError, TypeError, ValueError) as error:
        raise ValueError(f"cannot import {module_name!r} for method {name!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"{name!r} is not a class derived from unmask.Method")
    return found
