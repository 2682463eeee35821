"""SimSiam: Exploring Simple Siamese Representation Learning (Chen & He, CVPR 2021, arXiv 2011.10566).

From one view, predict the same network's feature of the other, through which no gradient flows; that alone keeps
features from collapsing.

Shape legend: B samples, D encoder width, E projected width.

Formula:
    z = projector(encoder(view)), p = predictor(z), no gradient through z where it is the target
    loss = - mean cos(p1, z2) / 2 - mean cos(p2, z1) / 2

Where the authors' code differs from the paper, or is not told there:
- the bias before the projector's last batch norm is frozen;
- the predictor keeps its initial learning rate while the rest decays;
- all trainable parameters are decayed (SGD, in the gradient).
The authors train ResNet-50 (`--encoder resnet50`), with hidden layers as wide as its features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor, nn
from typing_extensions import Doc

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.methods.base import Inspection, Method, MethodConfig, MethodInfo, two_crops, two_views
from unmask.methods.siamese import image_feature, second_view
from unmask.models.build import build_encoder
from unmask.models.encoder import Encoder
from unmask.models.heads import MLPHead, MLPHeadConfig
from unmask.objectives.distillation import cosine_distance
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.trainee import Losses
from unmask.views import Views

COLOUR = ColourConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5)


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(MethodConfig):
    """Knobs of SimSiam; defaults are the authors'."""

    crop_scale: Annotated[tuple[float, float], Doc("Share of the image that a crop covers. [code]")] = (0.2, 1.0)
    colour: Annotated[ColourConfig, Doc("Colour of both views. [code]")] = COLOUR
    projector: Annotated[MLPHeadConfig, Doc("Head; its last linear layer has a frozen bias. [code]")] = MLPHeadConfig(
        hidden=2048, out=2048, layers=3, out_bias=True, last_norm=True
    )
    predictor: Annotated[MLPHeadConfig, Doc("Bottleneck that predicts the other view. [code]")] = MLPHeadConfig(
        hidden=512, out=2048, layers=2, out_bias=True
    )
    optimizer: Annotated[OptimizerConfig, Doc("SGD, .05 per 256 images, no warm-up. [code]")] = OptimizerConfig(
        kind="sgd", lr=0.05, lr_batch=256, weight_decay=1e-4, warmup_epochs=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor.out != self.projector.out:
            raise ValueError(
                f"the predictor's output ({self.predictor.out}) must be as wide as the projector's "
                f"({self.projector.out})"
            )


class SimSiam(Method[Views]):
    """Predict the network's own feature of the other view, without gradient through it (Chen & He 2021)."""

    Config: ClassVar[type[MethodConfig]] = SimSiamConfig
    info: ClassVar[MethodInfo] = MethodInfo(
        title="SimSiam",
        idea="From one view, predict the network's own feature of the other, held fixed.",
        paper="arXiv 2011.10566",
        year=2021,
        family="siamese",
        online_input="whole image, two crops",
        target="same encoder, other view, no gradient",
        objective="negative cosine, both directions",
    )

    def __init__(self, config: SimSiamConfig) -> None:
        super().__init__()
        self.config: SimSiamConfig = config
        self.encoder = build_encoder(config.encoder, mask_token=False)
        self.projector = MLPHead(self.encoder.width, config.projector)
        for layer in self.projector.layers[-2:]:
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                layer.bias.requires_grad_(False)  # the batch norm behind it takes it out again
        self.predictor = MLPHead(config.projector.out, config.predictor)

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        return two_crops(self.encoder, self.config)

    def make_views(self, batch: Batch) -> Views:
        return two_views(batch, self.encoder, self.config, (self.config.colour, self.config.colour))

    def losses(self, views: Views, progress: float = 0.0) -> Losses:
        # One view after the other: batch norm must not see both at once.
        projected = [
            self.projector(image_feature(self.encoder, images)) for images in (views.online, second_view(views))
        ]
        predicted = [self.predictor(projection) for projection in projected]
        # The paper's negative cosine is the distance 2 - 2 cos by another scale.
        return {
            "first_to_second": cosine_distance(predicted[0], projected[1]) / 4 - 0.5,
            "second_to_first": cosine_distance(predicted[1], projected[0]) / 4 - 0.5,
        }

    def update_target(self, progress: float) -> None:
        """There is no target network."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return ParameterRule(decay=True, constant_lr=name.startswith("predictor."))

    def exported(self) -> Encoder:
        return self.encoder

    def inspect(self, views: Views) -> Inspection:
        return Inspection()
