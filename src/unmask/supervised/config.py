"""The configuration of a supervised run: what its `config.json` holds, read and written strictly."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from typing_extensions import Doc

from unmask.config import KIND, read_values, structure
from unmask.errors import in_short
from unmask.formats import FORMATS
from unmask.tasks.classification import ClassifierConfig
from unmask.tasks.detection import DetectionConfig
from unmask.tasks.segmentation import SegmentationConfig
from unmask.training.trainer import TrainingConfig

Protocol = Literal["finetune", "partial", "attentive", "certified", "segment", "detect"]
Start = Literal["pretrained", "random"]
Settings = ClassifierConfig | SegmentationConfig | DetectionConfig

SETTINGS: dict[Protocol, type[Settings]] = {
    "finetune": ClassifierConfig,
    "partial": ClassifierConfig,
    "attentive": ClassifierConfig,
    "certified": ClassifierConfig,
    "segment": SegmentationConfig,
    "detect": DetectionConfig,
}
TITLES: dict[Protocol, str] = {
    "finetune": "Fine-tuning",
    "partial": "Partial fine-tuning",
    "attentive": "Attentive probe",
    "certified": "Fine-tuning against noise",
    "segment": "Semantic segmentation",
    "detect": "Detection",
}


@dataclass(frozen=True, kw_only=True)
class LabelBudget:
    """How many labelled images are trained on; without either, all."""

    share: Annotated[float | None, Doc("Share of the labelled images, by class, for example 0.01 or 0.1.")] = None
    shots: Annotated[int | None, Doc("Labelled images of each class.")] = None

    def __post_init__(self) -> None:
        if self.share is not None and self.shots is not None:
            raise ValueError("give a share of the labels or a number of images of each class, not both")
        if self.share is not None and not 0 < self.share <= 1:
            raise ValueError(f"the share of the labels must lie in (0, 1], got {self.share}")
        if self.shots is not None and self.shots < 1:
            raise ValueError(f"there must be at least one image of each class, got {self.shots}")

    def __str__(self) -> str:
        """In words, also part of a folder's name; empty for all labels."""
        if self.share is not None:
            return f"{100 * self.share:g}%"
        return "" if self.shots is None else f"{self.shots}-shot"


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Everything that defines a supervised run. Two runs with equal configurations end with equal weights."""

    protocol: Annotated[Protocol, Doc("What is trained.")]
    encoder: Annotated[str, Doc("A run folder, an encoder file, or timm:NAME.")]
    start: Annotated[Start, Doc("The encoder as pre-trained, or at its random start.")]
    data: Annotated[str, Doc("The labelled images.")]
    budget: Annotated[LabelBudget, Doc("How many labels are used.")] = LabelBudget()
    settings: Annotated[Settings, Doc("The task's own settings.")]
    training: Annotated[TrainingConfig, Doc("How long and on what it is trained.")]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as in config.json."""
        values: dict[str, Any] = json.loads(json.dumps({"format": FORMATS[KIND], **dataclasses.asdict(self)}))
        return values


def is_supervised(values: dict[str, Any]) -> bool:
    """Whether the values of a config.json are of a supervised run."""
    return "protocol" in values


def load_supervised(path: Path) -> SupervisedConfig:
    """Read config.json. ValueError, with one sentence, for anything that is not exactly a SupervisedConfig."""
    values = read_values(path)
    fields = {field.name for field in dataclasses.fields(SupervisedConfig)}
    missing, unknown = fields - set(values), set(values) - fields - {"format"}
    if missing:
        raise ValueError(f"{path} lacks {min(missing)!r}")
    if unknown:
        raise ValueError(f"{path}: unknown key {in_short(min(unknown))}")
    protocol = values["protocol"]
    if not isinstance(protocol, str) or protocol not in SETTINGS:
        raise ValueError(f"{path} names protocol {in_short(protocol)}, which is not one of {', '.join(SETTINGS)}")
    if values["start"] not in ("pretrained", "random"):
        raise ValueError(f"{path}: start must be 'pretrained' or 'random', got {in_short(values['start'])}")
    for key in ("encoder", "data"):
        if not isinstance(values[key], str):
            raise ValueError(f"{path}: {key} must be text, got {in_short(values[key])}")
    return SupervisedConfig(
        protocol=protocol,
        encoder=values["encoder"],
        start=values["start"],
        data=values["data"],
        budget=structure(values["budget"], LabelBudget, "budget"),
        settings=structure(values["settings"], SETTINGS[protocol], "settings"),
        training=structure(values["training"], TrainingConfig, "training"),
    )
