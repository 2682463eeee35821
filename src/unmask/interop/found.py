"""What a file of others turned out to hold: an encoder's tensors in our names, and what became of every other one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from unmask.methods.base import IMAGENET_MEAN, IMAGENET_STD

Network = Literal["online", "target"]
ImageGrid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What is known of an encoder beside its tensors; None where nobody has said."""

    encoder: str | None = None
    """timm's name of a network of the same kind."""
    heads: int | None = None
    grid: ImageGrid | None = None
    """Rows and columns of patches."""
    position_resize: Literal["antialias", "offset", "scale"] = "antialias"


@dataclass(kw_only=True)
class Found:
    """The tensors of one encoder by their names in `Encoder.network`, with the account of the whole file."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)
    """Our name to theirs: one, or the parts that were joined."""
    changed: dict[str, str] = field(default_factory=dict)
    """Our name to what was done with the tensor."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Their name to the reason."""
    notes: list[str] = field(default_factory=list)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    hints: Hints = Hints()
    method: str | None = None
    network: Network | None = None
    """Which of the file's networks it is; None where it holds one."""

    def put(self, ours: str, value: Tensor, *theirs: str) -> None:
        """Take a tensor, made of those that the file calls `theirs`."""
        self.tensors[ours] = value
        self.sources[ours] = list(theirs)

    def change(self, ours: str, how: str) -> None:
        """Write down what was done with a tensor, after what was done before."""
        self.changed[ours] = f"{self.changed[ours]}; {how}" if ours in self.changed else how

    def drop(self, ours: str, why: str) -> None:
        """Leave a tensor out after all."""
        del self.tensors[ours]
        self.changed.pop(ours, None)
        self.left_out |= dict.fromkeys(self.sources.pop(ours), why)
