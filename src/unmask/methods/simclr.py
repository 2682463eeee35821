"""SimCLR: A Simple Framework for Contrastive Learning of Visual Representations (Chen et al., ICML 2020,
arXiv 2002.05709).

Two views of an image must find each other among all views of the batch.

Shape legend: B samples, D encoder width, E projected width.

Formula:
    z = projector(encoder(view)), for both views; s(a, b) = cos(a, b) / temperature
    loss = mean over the 2B views i of  -log( exp s(i, partner of i) / sum over j != i of exp s(i, j) )

No official PyTorch code exists; the golden case is lightly's loss and head, checked against solo-learn's. The paper
trains by LARS with batches of 4096; here AdamW, as the case does. Negatives are those of each rank alone (`gathered`
changes that).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import (
    Inspection,
    Method,
    MethodConfig,
    MethodInfo,
    two_crops,
    two_views,
)
from unmask.methods.siamese import image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.objectives.contrastive import ntxent
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses, one_dimensional
from unmask.views import Views

COLOUR = ColourConfig(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter_p=0.8, grey_p=0.2, blur_p=0.5)


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """Knobs of SimCLR."""

    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [paper]")] = (0.08, 1.0)
    colour: Annotated[ColourConfig, Doc("Colour of both views. [paper, strength 1]")] = COLOUR
    projector: Annotated[MLPHeadConfig, Doc("Head on the class token. [lightly: batch norm after both layers]")] = (
        MLPHeadConfig(hidden=2048, out=128, layers=2, last_norm=True, last_affine=True)
    )
    temperature: Annotated[float, Doc("Temperature of NT-Xent. [paper]")] = 0.1
    gathered: Annotated[
        bool, Doc("Whether the images of all ranks are negatives, or those of each rank alone. [lightly: alone]")
    ] = False
    optimizer: Annotated[OptimizerConfig, Doc("AdamW in place of LARS. [ours]")] = OptimizerConfig(
        lr=1.5e-4, lr_batch=256, betas=(0.9, 0.999), weight_decay=0.05, warmup_epochs=10
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class SimCLR(Method[Views]):
    """Two views of an image must find each other in the batch (Chen et al. 2020)."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SimCLR",
        idea="Two views of an image must find each other among all views of the batch.",
        paper="arXiv 2002.05709",
        year=2020,
        family="siamese",
        online_input="whole image, two crops",
        target="the other view; other images as negatives",
        objective="NT-Xent",
    )

    def __init__(self, config: SimCLRConfig) -> None:
        super().__init__()
        self.config: SimCLRConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        self.projector = MLPHead(self.encoder.width, config.projector)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return two_views(batch, self.encoder, self.config, (self.config.colour, self.config.colour))

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        # One view after the other: batch norm must not see both at once.
        first_BE, second_BE = (
            self.projector(image_feature(self.encoder, images)) for images in (views.online, second_view(views))
        )
        return {"contrast": ntxent(first_BE, second_BE, self.config.temperature, gathered=self.config.gathered)}

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=not one_dimensional(name, parameter))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
