"""`unmask evaluate {finetune,attentive} RUN DATA`: a classifier trained on the encoder."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from rich.console import Console
from typing_extensions import Doc

from unmask.commands.evaluate.training import (
    PREFIX,
    Plan,
    TrainedOptions,
    finish,
    with_size,
)
from unmask.commands.parse import given, parse
from unmask.models.pretrained import open_encoder
from unmask.optimisation import OptimizerConfig
from unmask.recipes.finetuning import FINETUNING, FinetuneRecipe, mae
from unmask.supervised.config import LabelBudget
from unmask.supervised.defaults import LIGHT
from unmask.tasks.classification import ClassifierConfig


@dataclass(frozen=True, kw_only=True)
class Finetune(TrainedOptions):
    """Train the whole encoder with a classifier on top. DATA may be a CSV of images with several labels each."""

    recipe: Annotated[
        str | None,
        Doc("A method's recipe for ImageNet-1k, with its epochs and batch. Default: by RUN's method, fitted to DATA."),
    ] = None
    budget: Annotated[LabelBudget, tyro.conf.arg(name="")] = LabelBudget()
    settings: Annotated[ClassifierConfig, PREFIX, Doc("Knobs of the classifier and its training.")]


@dataclass(frozen=True, kw_only=True)
class Attentive(TrainedOptions):
    """Freeze the encoder; a learnt query attends to its tokens, and a linear classifier reads what it gathers."""

    budget: Annotated[LabelBudget, tyro.conf.arg(name="")] = LabelBudget()
    settings: Annotated[ClassifierConfig, PREFIX, Doc("Knobs of the classifier and its training.")]


ATTENTIVE = ClassifierConfig(
    head="attentive",
    norm="batch",
    tuned_blocks=0,
    own_tables=False,
    drop_path=0.0,
    layer_decay=1.0,
    # The head is CAE's; AdamW with this rate is ours, because LARS at their batch of thousands suits no small set.
    optimizer=OptimizerConfig(lr=1e-3, lr_batch=None, betas=(0.9, 0.999), weight_decay=0.05, warmup_epochs=5.0),
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.0,
    randaugment=None,
    erasing=0.0,
    head_std=0.02,
)


def run(protocol: str, arguments: Sequence[str]) -> int:
    """The exit code of `unmask evaluate finetune` and `unmask evaluate attentive`."""
    if protocol == "attentive":
        default = Attentive(run=tyro.MISSING, data=tyro.MISSING, settings=ATTENTIVE)
        probe = parse(Attentive, arguments, command="evaluate attentive", default=default)
        settings = with_size(probe.settings, probe)
        return finish(probe, Plan(protocol="attentive", settings=settings, usual_batch=256, budget=probe.budget))
    name, recipe = recipe_for(arguments)
    defaults = Finetune(run=tyro.MISSING, data=tyro.MISSING, settings=recipe.settings)
    command = parse(Finetune, arguments, command="evaluate finetune", default=defaults)
    exact = command.recipe is not None
    plan = Plan(
        protocol="finetune",
        settings=with_size(command.settings, command),
        usual_batch=recipe.batch_size,
        epochs=recipe.epochs if exact else None,
        batch_size=recipe.batch_size if exact else None,
        budget=command.budget,
        fit_augmentation=None if exact else recipe.settings,
        asked=named_fields(arguments),
    )
    Console(soft_wrap=True, stderr=command.json).print(f"{'recipe':<13} {name}", highlight=False, markup=False)
    return finish(command, plan)


def recipe_for(arguments: Sequence[str]) -> tuple[str, FinetuneRecipe]:
    """The recipe that the line asks for, else that of RUN's method, else MAE's; with its name in words.

    ValueError for a recipe that is unknown.
    """
    asked = given(arguments, "--recipe")
    if asked is not None:
        if asked not in FINETUNING:
            near = difflib.get_close_matches(asked, FINETUNING, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FINETUNING)}"
            raise ValueError(f"unknown recipe {asked!r} for fine-tuning; {hint}")
        return asked, FINETUNING[asked]()
    method = _method_of_run(arguments)
    if method in FINETUNING:
        return f"{method}'s, fitted to these data", FINETUNING[method]()
    return "MAE's, fitted to these data", mae()


def _method_of_run(arguments: Sequence[str]) -> str | None:
    """The method that trained RUN, as far as that is known: RUN is the first word of the line that is an encoder."""
    for word in arguments:
        if word.startswith("timm:"):
            break
        if not word.startswith("-"):
            try:
                return open_encoder(word).method
            except ValueError:
                continue  # an option's value; what is wrong with RUN itself is said later, in its place
    return None


def named_fields(arguments: Sequence[str]) -> frozenset[str]:
    """The fields of the augmentation that the line names, as `--task.FIELD`."""
    return frozenset(
        name for name in LIGHT if any(given(arguments, f"--task.{way}") for way in (name, name.replace("_", "-")))
    )
