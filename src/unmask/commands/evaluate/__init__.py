"""`unmask evaluate PROTOCOL RUN DATA`: what is the encoder worth?"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence

from rich.console import Console

PROTOCOLS = {
    "knn": ("features", "weighted nearest neighbours on frozen features"),
    "linear": (
        "features",
        "a linear probe on frozen features; --full for MAE's whole protocol",
    ),
    "attentive": ("trained", "CAE's attentive probe: a query attends to the frozen tokens"),
    "partial": ("partial", "only the last blocks are trained; a curve over their number"),
    "finetune": ("trained", "the whole encoder is trained with a classifier on top"),
    "fewshot": ("fewshot", "few labels: logistic regression and nearest class means on frozen features"),
    "robustness": ("robustness", "common corruptions of your images, or shifted test sets"),
    "certified": ("certified", "accuracy that no small change of the pixels can take away"),
    "segment": ("segment", "UperNet: a class for every pixel"),
    "detect": ("detect", "Mask R-CNN: things with boxes and outlines"),
    "unlabelled": ("unlabelled", "measures that need no label, to choose a checkpoint"),
    "all": ("everything", "what the data allows, in one table"),
}
"""Every protocol: the module that runs it, and what it is."""


def run(arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate`."""
    names = ", ".join(PROTOCOLS)
    if arguments and arguments[0] in ("-h", "--help"):
        Console(soft_wrap=True).print(_help(), highlight=False, markup=False)
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"unmask evaluate needs PROTOCOL, RUN and DATA, before the options; protocols are {names}")
    protocol, rest = arguments[0], arguments[1:]
    if protocol not in PROTOCOLS:
        near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {names}"
        raise ValueError(f"unknown protocol {protocol!r}; {hint}")
    module = importlib.import_module(f"unmask.commands.evaluate.{PROTOCOLS[protocol][0]}")
    return int(module.run(protocol, rest))


def _help() -> str:
    width = max(map(len, PROTOCOLS))
    rows = "\n".join(f"  {name:<{width}}  {meaning}" for name, (_, meaning) in PROTOCOLS.items())
    return (
        "usage: unmask evaluate PROTOCOL RUN DATA ...\n\n"
        "What is an encoder worth? RUN is a run folder, an encoder.safetensors, or timm:NAME.\n\n"
        f"{rows}\n\n"
        "unmask evaluate PROTOCOL --help tells the rest."
    )
