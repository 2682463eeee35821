"""What the contract test must know of each method: one row a method, in the order of METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unmask.methods.base import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Facts:
    """How one method differs from the others in ways that its contract allows."""

    cancelled: frozenset[str] = frozenset()
    """Trainable parameters whose gradient is zero in theory: biases that the next batch norm takes out again."""
    fixed: tuple[str, ...] = ()
    """Ends of the names of parameters that are fixed by design, beside targets and sin-cos positions."""
    has_target: bool = False
    """Whether there is a target network (parameters named target_X, twins of X) that follows by `momentum`."""
    second_view: bool = False
    """Whether the views hold a target image."""
    hides_patches: bool = True
    """Whether the views hold a mask of patches."""
    exported: str = "encoder"
    """Name of the module that is exported."""
    pictures: bool = True
    """Whether it paints patches or places them."""
    fall: float = 0.85
    """Share of its first value to which every loss falls in 30 steps on 64 emoji."""
    may_rise: frozenset[str] = frozenset()
    """Losses that are held at a level by others rather than lowered (a term for entropy), with the reason beside."""
    lr: float = 2e-3
    """Learning rate of those steps."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the tiny configuration that shrinking alone does not make small."""
    prepare: Callable[[MethodConfig, Path], MethodConfig] | None = None
    """What must be made beforehand in a folder (a tokenizer, a teacher), and the configuration that names it."""


FACTS: dict[str, Facts] = {
    # The final norm's bias moves all tokens alike, and the projector has no bias before its batch norm.
    "conmim": Facts(
        cancelled=frozenset({"encoder.vit.norm.bias"}),
        has_target=True,
        second_view=True,
        exported="target_encoder",
    ),
    # Biases before the heads' batch norms, and what only adds a constant to the decoded mean feature.
    "cmae": Facts(
        cancelled=frozenset(
            {
                "feature_decoder.norm.bias",
                "feature_decoder.head.bias",
                "projector.layers.0.bias",
                "predictor.layers.0.bias",
            }
        ),
        has_target=True,
        second_view=True,
    ),
    "mae": Facts(),
    "simmim": Facts(),
}
