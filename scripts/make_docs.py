"""Write `docs/methods/`: a page and a picture of every method, made from its code, and a table of all.

    python scripts/make_docs.py            docs/methods of this checkout
    python scripts/make_docs.py --out DIR  somewhere else
    python scripts/make_docs.py --methods mae cmae

Words come from the module's docstring and the documentation of its configuration, pictures from watching one real call
of `losses`, figures from `measured.json`. The same code always gives the same bytes; a test compares them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import tempfile
import warnings
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from docs_text import code, explanation, linked, markdown, prose_and_code, table

from unmask.cli import COMMANDS
from unmask.commands.methods import NO_RECIPE, cost, proof, recipes_of
from unmask.commands.show import knobs
from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.methods.base import Method, MethodConfig
from unmask.methods.measured import Measured, read_measured
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.pretrained import encoder_file
from unmask.models.tokenizers.base import TokenizerConfig
from unmask.models.tokenizers.dvae import DVAEConfig
from unmask.models.tokenizers.file import build_tokenizer, tokenizer_file
from unmask.recipes import RECIPES
from unmask.report.flow_draw import draw_flow
from unmask.report.flow_trace import trace_flow, with_parameters
from unmask.training.checkpoint import write_atomically

ROOT = Path(__file__).resolve().parents[1]
# Few, so that watching is quick, and no size of anything else.
BATCH_SIZE = 5
PROGRESS = 0.5
CAPTION = (
    "*One training step with the default configuration, drawn from a real call: what comes out of each part, for a "
    "batch of B images. Solid blue parts and lines get gradients; dashed ones get none.*"
)
KNOBS = "Every field of the configuration, as an option of `unmask pretrain`; in brackets, where a default comes from."

# Blocks of the networks that are watched, where one is not enough (a mean over the last six layers, say); None: as many
# as they have, for networks that are no transformers.
DEPTHS: dict[str, int | None] = {"data2vec": 6, "m3ae": 4, "mixmask": None, "tec": 3}
# Tokenizers of methods that predict codes, where they are not what `unmask tokenizer train` makes by default.
TOKENIZERS: dict[str, TokenizerConfig] = {}

T = TypeVar("T", bound=Any)
Config = TypeVar("Config", bound=MethodConfig)


def main() -> None:
    """Write all pages, and remove pages of methods that are no more."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "methods")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="METHOD")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.methods:
            (arguments.out / f"{name}.md").write_text(page(name), encoding="utf8")
            (arguments.out / f"{name}.svg").write_text(picture(name, Path(folder)), encoding="utf8")
    (arguments.out / "index.md").write_text(index(), encoding="utf8")
    for old in arguments.out.iterdir():
        if old.suffix in (".md", ".svg") and old.stem not in (*METHODS, "index"):
            old.unlink()


def index() -> str:
    """The table of all methods."""
    measured = read_measured()
    rows = []
    for name, method in METHODS.items():
        info, known = method.info, measured.get(name, Measured())
        words = (info.family, linked(info.paper), str(info.year), info.online_input, info.target, info.objective)
        rows.append([f"[{info.title}]({name}.md) `{name}`", *words, proof(name, known), cost(known)])
    header = ("method", "family", "paper", "year", "online input", "target", "objective", "proof", "cost of a step")
    return (
        "# Methods\n\n"
        "Each page is made from the method's own code: what it does, what flows where, where the authors' code and "
        "their paper differ, every knob.\n\n"
        f"{table(header, rows)}\n"
    )


def page(name: str) -> str:
    """The Markdown page of one method."""
    method = METHODS[name]
    info, known = method.info, read_measured().get(name, Measured())
    told = explanation(importlib.import_module(method.__module__).__doc__ or "")
    facts = {
        "name": code(name),
        "family": info.family,
        "paper": f"{linked(info.paper)} ({info.year})",
        "online input": info.online_input,
        "target": info.target,
        "objective": info.objective,
        "proof": proof(name, known),
        "cost of a step": cost(known),
    }
    parts = [
        f"# {info.title}",
        markdown(info.idea),
        f"![Data flow of a training step of {info.title}]({name}.svg)",
        CAPTION,
        *(linked(markdown(paragraph)) for paragraph in (told.title, *told.paragraphs)),
    ]
    if told.formula:
        parts += ["## Formula", prose_and_code(told.formula)]
    if told.legend:
        parts.append(markdown(told.legend))
    if told.differences:
        parts += [f"## {markdown(told.differences_title)}", linked(markdown(told.differences))]
    parts += ["## At a glance", table(("", ""), [[f"**{what}**", said] for what, said in facts.items()])]
    parts += ["## Run it", f"```\n{command_lines(name)}\n```", *recipes(name)]
    parts += [
        "## Knobs",
        KNOBS,
        options(name),
    ]
    return "\n\n".join(parts) + "\n"


def command_lines(name: str) -> str:
    """What one types to use the method, as far as the command line goes."""
    lines = {
        "pretrain": f"unmask pretrain DATA --method {name} --out RUN",
        "evaluate": "unmask evaluate knn RUN LABELLED_DATA",
        "export": "unmask export RUN --to timm",
        "show": f"unmask show {name}",
    }
    return "\n".join(line for command, line in lines.items() if command in COMMANDS)


def recipes(name: str) -> list[str]:
    """The recipes for a method, in their own words."""
    found = recipes_of(name)
    if not found:
        return [f"Recipe: {NO_RECIPE}."]
    return [f"### Recipe `{recipe}`\n\n{prose_and_code(inspect.getdoc(RECIPES[recipe]) or '')}" for recipe in found]


def options(name: str) -> str:
    """The configuration as a table, the method's own fields first."""
    rows = [
        [
            code(f"--method.{knob.name}"),
            code(knob.type),
            code(knob.default),
            markdown(knob.meaning + (f" [{knob.source}]" if knob.source else "")),
        ]
        for knob in sorted(knobs(METHODS[name].Config()), key=lambda knob: "." in knob.name)
    ]
    return table(("option", "type", "default", "meaning"), rows)


def picture(name: str, folder: Path) -> str:
    """The drawing of one step of a method; `folder` takes files that it needs."""
    cls: Any = METHODS[name]
    with torch.random.fork_rng(devices=[]):
        config = completed(cls.Config(), TOKENIZERS.get(name, DVAEConfig()), folder)
        method: Method[Any] = cls(shrunken(config, DEPTHS.get(name, 1)))
        flow = trace_flow(method, noise_batch(method), progress=PROGRESS)
        # Only counted: what is loaded into it goes nowhere, which torch would say of every tensor.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            full: Method[Any] = cls(config)
    return draw_flow(with_parameters(flow, full), title=f"Data flow of a training step of {cls.info.title}")


def completed(config: Config, tokenizer: TokenizerConfig, folder: Path) -> Config:
    """The configuration with files for what it needs and has not: a tokenizer of codes, a pre-trained teacher."""
    given = {field.name: getattr(config, field.name) for field in fields(config)}
    changes: dict[str, Any] = {}
    if "tokenizer" in given and given["tokenizer"] is None:
        changes["tokenizer"] = str(folder / f"{tokenizer.vocabulary}-{type(tokenizer).__name__}.safetensors")
        write_atomically(Path(changes["tokenizer"]), *tokenizer_file(build_tokenizer(tokenizer), {}))
    if "teacher" in given and given["teacher"] is None:
        changes["teacher"] = str(folder / "teacher.safetensors")
        encoder = build_encoder(EncoderConfig(), mask_token=False)
        write_atomically(Path(changes["teacher"]), *encoder_file(encoder, mean=config.mean, std=config.std, facts={}))
    return replace(config, **changes)


def shrunken(config: T, depth: int | None) -> T:
    """The same configuration a few blocks deep, with narrow hidden layers: nothing that a picture shows changes."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = shrunken(value, depth)
        elif field.name == "depth" and depth is not None:
            changes[field.name] = depth
        elif field.name == "hidden":
            changes[field.name] = 32
    return replace(config, **changes)


def noise_batch(method: Method[Any], size: int = BATCH_SIZE) -> Batch:
    """A batch of noise that has all that a method can ask for: crops, where they were cut, labels and captions."""
    generator = torch.Generator().manual_seed(0)
    crops, boxes = [], []
    for crop in method.crops:
        shape = (size, crop.count, method.config.encoder.channels, crop.height, crop.width)
        crops.append(torch.randint(256, shape, dtype=torch.uint8, generator=generator))
        corner_BV2 = torch.randint(40, (size, crop.count, 2), generator=generator)
        extent_BV2 = torch.randint(30, 60, (size, crop.count, 2), generator=generator)
        boxes.append(torch.cat([corner_BV2, extent_BV2, torch.full_like(corner_BV2, 100)], dim=2).float())
    return Batch(
        crops=tuple(crops),
        boxes=tuple(boxes),
        indices=torch.arange(size),
        seed=0,
        labels=torch.arange(size) % 3,
        texts=tuple(f"a picture of thing number {index}" for index in range(size)),
    )


if __name__ == "__main__":
    main()
