"""Image classification on a pre-trained encoder: fine-tuning whole, in part, or only a head.

The recipe is BEiT's and MAE's: layer-wise learning-rate decay, drop path, mixup and cutmix, label smoothing,
RandAugment, random erasing, a norm on the pooled feature. timm's code does mixup, cutmix, erasing and RandAugment.

Shape legend: B images, C channels, H x W pixels, L tokens, D width, K classes, M noisy copies, N train images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from typing_extensions import Doc

from unmask.data.batch import Batch, CropConfig
from unmask.data.randaugment import RandAugment
from unmask.data.seeded import seeded
from unmask.models.encoder import Encoder
from unmask.models.hybrid import HybridEncoder
from unmask.models.pixels import PixelEncoder
from unmask.models.pretrained import Pooling, PretrainedEncoder
from unmask.models.target import ema_update_, frozen_copy
from unmask.models.vit import VitEncoder
from unmask.objectives.consistency import noise_and_consistency
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.tasks.layer_decay import LayerDecay, freeze_below
from unmask.tasks.tuned_encoder import tuned_encoder
from unmask.trainee import Losses, Trainee
from unmask.views import generators, normalise, random_flip, to_float

NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    """Training against Gaussian noise, for certified robustness."""

    sigma: Annotated[float, Doc("Deviation of the noise, of pixel values in [0, 1]; 0: no noise. [DMAE: 0.25]")] = 0.0
    copies: Annotated[int, Doc("Noisy copies of each image. [DMAE: 2]")] = 2
    consistency: Annotated[float, Doc("Weight of the copies' disagreement. [DMAE: lambda 2]")] = 2.0
    entropy: Annotated[float, Doc("Weight of the entropy of their mean prediction. [DMAE: eta 0.5]")] = 0.5

    def __post_init__(self) -> None:
        if self.sigma < 0 or self.copies < 1 or self.consistency < 0 or self.entropy < 0:
            raise ValueError(
                "noise needs a deviation of 0 or more, one copy or more and weights of 0 or more, got "
                f"{self.sigma}, {self.copies}, {self.consistency} and {self.entropy}"
            )


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is built on an encoder and trained. The defaults are MAE's for ViT-B (Touvron's and BEiT's)."""

    head: Annotated[
        Literal["linear", "attentive"],
        Doc("linear: on the pooled feature; attentive: a query attends to all tokens first. [CAE's attentive probe]"),
    ] = "linear"
    pooling: Annotated[Pooling, Doc("Mean of the patches, or the class token. [BEiT, MAE, CMAE, ConMIM: mean]")] = (
        "mean"
    )
    norm: Annotated[
        Literal["fc", "encoder", "batch"],
        Doc(
            "fc: a new layer norm on the pooled feature in place of the encoder's last norm; encoder: only that; "
            "batch: batch norm without affine, as linear probes have it. [BEiT's and MAE's fc_norm]"
        ),
    ] = "fc"
    head_std: Annotated[float, Doc("Deviation of the head's initial weights. [MAE: 2e-5; BEiT: .02 x .001]")] = 2e-5
    tuned_blocks: Annotated[
        int | None, Doc("Train only this many last blocks; 0: the head alone. None: all. [MAE's partial fine-tuning]")
    ] = None
    own_tables: Annotated[
        bool, Doc("Copy a shared table of relative positions into every block first. [BEiT, ConMIM, SimMIM, data2vec]")
    ] = True
    drop_path: Annotated[float, Doc("Stochastic depth of the last block. [.1 for ViT-B; MAE: .2 L, .3 H]")] = 0.1
    layer_decay: Annotated[float, Doc("Learning rate of a layer by the next one's. [.65 for ViT-B; MAE: .75 L, H]")] = (
        0.65
    )
    optimizer: Annotated[OptimizerConfig, Doc("The optimizer and its schedule. [MAE]")] = OptimizerConfig(
        lr=5e-4, lr_batch=256, betas=(0.9, 0.999), weight_decay=0.05, warmup_epochs=5.0, min_lr=1e-6
    )
    mixup: Annotated[float, Doc("Mixup's alpha; 0: none. [.8]")] = 0.8
    cutmix: Annotated[float, Doc("Cutmix's alpha; 0: none. [1.0]")] = 1.0
    mix_probability: Annotated[float, Doc("Share of batches that are mixed by the one or the other. [1.0]")] = 1.0
    smoothing: Annotated[float, Doc("Label smoothing. [.1]")] = 0.1
    randaugment: Annotated[
        str | None, Doc("RandAugment's policy in timm's words; None: none. [rand-m9-mstd0.5-inc1]")
    ] = "rand-m9-mstd0.5-inc1"
    erasing: Annotated[float, Doc("Probability that a rectangle is replaced by noise. [.25]")] = 0.25
    crop_scale: Annotated[tuple[float, float], Doc("Range of the cropped share of the image's area. [(.08, 1)]")] = (
        0.08,
        1.0,
    )
    flip: Annotated[float, Doc("Probability of a horizontal flip. [.5]")] = 0.5
    average: Annotated[
        float | None, Doc("Momentum of averaged weights, which are then the ones judged and kept. [BootMAE: .9998]")
    ] = None
    test_crop: Annotated[
        float | None,
        Doc("Share of the shorter side that the test crop keeps. None: 224 / 256, and all for crops up to 64 pixels."),
    ] = None
    image_height: Annotated[
        int | None, Doc("Height of the crops, in pixels; positions follow. None: the encoder's.")
    ] = None
    image_width: Annotated[int | None, Doc("Width of the crops, in pixels; positions follow. None: the encoder's.")] = (
        None
    )
    checkpointing: Annotated[bool, Doc("Recompute activations in the backward pass, to save memory.")] = False
    noise: Annotated[NoiseConfig, Doc("Training against noise. [DMAE's fine-tuning]")] = NoiseConfig()

    def __post_init__(self) -> None:
        shares = {
            "mix_probability": self.mix_probability,
            "smoothing": self.smoothing,
            "erasing": self.erasing,
            "flip": self.flip,
        }
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        if self.mixup < 0 or self.cutmix < 0:
            raise ValueError(f"mixup and cutmix must be 0 or more, got {self.mixup} and {self.cutmix}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale must be a range within (0, 1], got {low} to {high}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop path must lie in [0, 1), got {self.drop_path}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer decay must lie in (0, 1], got {self.layer_decay}")
        if self.average is not None and not 0 <= self.average < 1:
            raise ValueError(f"the momentum of averaged weights must lie in [0, 1), got {self.average}")
        if self.test_crop is not None and not 0 < self.test_crop <= 1:
            raise ValueError(f"test_crop must lie in (0, 1], got {self.test_crop}")
        if self.head_std <= 0:
            raise ValueError(f"the deviation of the head's weights must be above 0, got {self.head_std}")
        if self.randaugment is not None:
            RandAugment(self.randaugment, (0, 0, 0))  # refuses a policy that timm cannot read
        if self.tuned_blocks is not None and self.tuned_blocks < 0:
            raise ValueError(f"the number of blocks to tune must be 0 or more, got {self.tuned_blocks}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed at all."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


def encoder_to_tune(pretrained: PretrainedEncoder, config: ClassifierConfig) -> Encoder:
    """`tuned_encoder`, of which only what the configuration wants learns."""
    encoder = tuned_encoder(pretrained, config)
    freeze_below(encoder, config.tuned_blocks)
    return encoder


class AttentivePool(nn.Module):
    """One learnt query attends to all tokens; norms on query, keys and values (CAE's attentive probe)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.norm_query, self.norm_key, self.norm_value = (nn.LayerNorm(width, eps=NORM_EPS) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, tokens_BLD: Float[Tensor, "B L D"]) -> Float[Tensor, "B D"]:
        """What the query gathers."""
        query = self.norm_query(self.query.expand(len(tokens_BLD), -1, -1))
        found, _ = self.attention(query, self.norm_key(tokens_BLD), self.norm_value(tokens_BLD), need_weights=False)
        return found[:, 0]


class Classifier(nn.Module):
    """An encoder with a head: normalised images to logits.

    Norm "fc" takes the final norm away from a ViT or a hybrid; other encoders keep what they have. ValueError for
    pooling that the encoder does not allow.
    """

    def __init__(self, encoder: Encoder, config: ClassifierConfig, classes: int) -> None:
        super().__init__()
        if config.head == "linear" and config.pooling == "class" and not encoder.has_class_token:
            raise ValueError("this encoder has no class token; pool by mean")
        self.encoder = encoder
        self.pooling: Pooling = config.pooling
        self.attentive: AttentivePool | None = None
        width = encoder.width
        if config.head == "attentive":
            # Heads of 64 where the width allows it, as in every ViT of the papers.
            self.attentive = AttentivePool(width, width // 64 if width % 64 == 0 else 1)
        self.fc_norm: nn.Module = nn.Identity()
        if config.norm == "batch":
            self.fc_norm = nn.BatchNorm1d(width, eps=NORM_EPS, affine=False)
        elif config.norm == "fc" and isinstance(encoder, VitEncoder | HybridEncoder):
            encoder.remove_norm()
            self.fc_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.head = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits."""
        if self.attentive is not None:
            pooled_BD = self.attentive(self.encoder(images_BCHW))
        else:
            pooled_BD = self.encoder.pool(self._tokens(images_BCHW), self.pooling)
        logits_BK: Tensor = self.head(self.fc_norm(pooled_BD))
        return logits_BK

    def _tokens(self, images_BCHW: Tensor) -> Tensor:
        # An iGPT's features for probes lie in its middle; when it is fine-tuned its last block is read [iGPT, 2.3].
        if isinstance(self.encoder, PixelEncoder):
            return self.encoder.last_tokens(self.encoder.ids(images_BCHW))
        return self.encoder(images_BCHW)


@dataclass(frozen=True)
class LabelledViews:
    """Normalised images, noisy copies one after the other, and the share of each class in each image."""

    images: Float[Tensor, "MB C H W"]
    targets: Float[Tensor, "B K"]


class ClassificationTask(Trainee[Batch, LabelledViews]):
    """Training of a `Classifier`. `targets_NK` (multi-label): which classes each train image has, 0 or 1; its rows
    follow the train source. Without it every image has the one class of its label."""

    def __init__(
        self,
        pretrained: PretrainedEncoder,
        config: ClassifierConfig,
        classes: tuple[str, ...],
        *,
        targets_NK: Float[Tensor, "N K"] | None = None,
    ) -> None:
        super().__init__()
        if config.noise.sigma and targets_NK is not None:
            raise ValueError("training against noise is for images with one class each, not for several")
        self.config = config
        self.classes = classes
        self.mean, self.std = pretrained.mean, pretrained.std
        self.pixel_range = pretrained.pixel_range
        self.classifier = Classifier(encoder_to_tune(pretrained, config), config, len(classes))
        self.average = None if config.average is None else frozen_copy(self.classifier).eval()
        self._targets_NK = targets_NK
        self._rule = LayerDecay(self.classifier.encoder, config.layer_decay)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer and its schedule, as the configuration has them."""
        return self.config.optimizer

    @property
    def crops(self) -> tuple[CropConfig, ...]:
        """The crops that the data workers cut."""
        height, width = self.classifier.encoder.image_size
        return (CropConfig(height=height, width=width, scale=self.config.crop_scale),)

    @property
    def retouch(self) -> RandAugment | None:
        """What the data workers do to every crop."""
        if self.config.randaugment is None:
            return None
        return RandAugment(self.config.randaugment, tuple(round(255 * value) for value in self.mean))

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return self._targets_NK is not None

    @property
    def judged(self) -> Classifier:
        """The classifier that is worth keeping: with averaged weights, where they are averaged."""
        return self.classifier if self.average is None else self.average

    def make_views(self, batch: Batch) -> LabelledViews:
        """Flipped, erased and mixed images with their targets."""
        config = self.config
        host, device = generators(batch.seed, batch.crops[0].device)
        flipped = random_flip(batch.crops[0][:, 0], host, config.flip)
        images = normalise(to_float(flipped), self.mean, self.std)
        targets = self._labels(batch)
        with seeded(int(torch.randint(2**63 - 1, (), generator=host))):
            if config.erasing:
                images = RandomErasing(config.erasing, mode="pixel", device=str(images.device))(images)
            if config.mixes:
                images, targets = self._mixup()(images, targets)
            else:
                targets = self._smoothed(targets)
        if config.noise.sigma:
            images = images.repeat(config.noise.copies, 1, 1, 1)
            noise = torch.randn(images.shape, generator=device, device=images.device)
            # Noise is added to pixels in [0, 1], before normalisation.
            images = images + config.noise.sigma * noise / images.new_tensor(self.std)[:, None, None]
        return LabelledViews(images, targets)

    def _labels(self, batch: Batch) -> Tensor:
        """Class of each image, or what classes it has."""
        if self._targets_NK is not None:
            return self._targets_NK[batch.indices.cpu()].to(batch.crops[0].device)
        assert batch.labels is not None, "the train images have labels"
        return batch.labels

    def _mixup(self) -> Any:
        config = self.config
        return Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mix_probability,
            label_smoothing=config.smoothing,
            num_classes=len(self.classes),
            multi_label=self.several,
        )

    def _smoothed(self, labels: Tensor) -> Tensor:
        """Targets without mixing: towards the uniform distribution, or towards one half where there are many."""
        smoothing = self.config.smoothing
        if self.several:
            return labels * (1 - smoothing) + 0.5 * smoothing
        return F.one_hot(labels, len(self.classes)).float() * (1 - smoothing) + smoothing / len(self.classes)

    def losses(self, views: LabelledViews, progress: float = 0.0) -> Losses:
        """Cross-entropy, summed over classes; binary and averaged over them where an image may have several."""
        logits = self.classifier(views.images)
        noise = self.config.noise
        if noise.sigma:
            copies = logits.unflatten(0, (noise.copies, -1))
            loss = noise_and_consistency(
                copies, views.targets, kl_weight=noise.consistency, entropy_weight=noise.entropy
            )
            return {"noise and consistency": loss}
        if self.several:
            return {"classes": F.binary_cross_entropy_with_logits(logits, views.targets)}
        return {"class": F.cross_entropy(logits, views.targets)}

    def update_target(self, progress: float) -> None:
        """Move the averaged weights."""
        if self.average is not None:
            assert self.config.average is not None
            ema_update_(self.average, self.classifier, self.config.average)
            # As timm's ModelEma, which the authors use: the statistics of batch norm are averaged too.
            for own, other in zip(self.average.buffers(), self.classifier.buffers(), strict=True):
                if own.is_floating_point():
                    own.lerp_(other, 1 - self.config.average)
                else:
                    own.copy_(other)

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        """Layer decay; no weight decay for vectors, positions and class token."""
        return self._rule(name.removeprefix("classifier."), parameter)

    def train(self, mode: bool = True) -> ClassificationTask:
        """As for every module, but what learns nothing stays in eval mode: no drop path, no moving batch norm."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                module.eval()
        return self
