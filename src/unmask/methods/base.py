"""What every method is: a module that turns a batch into named losses, and says how it wants to be trained.

Shape legend: B samples, C channels, H x W pixels, N patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Generic

from jaxtyping import Bool, Float
from torch import Tensor
from typing_extensions import Doc, TypeVar

from unmask.colour.plan import ColourConfig
from unmask.data.batch import Batch, CropConfig
from unmask.data.sources import Source
from unmask.masking import MaskConfig, masked_count, sample_mask
from unmask.models.encoder import Encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.optimisation import OptimizerConfig
from unmask.trainee import Trainee
from unmask.views import Views, generators, independent_view, shared_crop_views

V = TypeVar("V", bound=Views, default=Any)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What all methods' configurations share."""

    encoder: Annotated[EncoderConfig, Doc("The encoder that is pre-trained.")] = EncoderConfig()
    crop_scale: Annotated[tuple[float, float], Doc("Range of the share of the image's area that a crop covers.")] = (
        0.2,
        1.0,
    )
    mean: Annotated[tuple[float, ...], Doc("Mean of each channel, of values in [0, 1]. [ImageNet]")] = IMAGENET_MEAN
    std: Annotated[tuple[float, ...], Doc("Deviation of each channel. [ImageNet]")] = IMAGENET_STD
    optimizer: Annotated[OptimizerConfig, Doc("The optimizer and its schedule.")] = OptimizerConfig()

    def __post_init__(self) -> None:
        channels = self.encoder.channels
        for what, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ValueError(f"{what} has {len(values)} values for images of {channels} channels")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop scale must be a range within (0, 1], got {low} to {high}")

    def for_images(self, height: int, width: int) -> MethodConfig:
        """This configuration for images of another size. Methods whose views count pixels scale them here too."""
        return replace(self, encoder=replace(self.encoder, image_height=height, image_width=width))

    def for_source(self, source: Source) -> MethodConfig:
        """This configuration for the images of `source`. Methods that learn from more than images look for it here, and
        raise ValueError where it is missing."""
        return self


@dataclass(frozen=True, kw_only=True)
class MaskedMethodConfig(MethodConfig):
    """What methods share that hide patches by one mask an image."""

    mask: Annotated[MaskConfig, Doc("Which patches are hidden.")] = MaskConfig()


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A row of the table of methods."""

    title: str
    idea: str
    paper: str
    year: int
    family: str
    online_input: str
    target: str
    objective: str


@dataclass(frozen=True)
class Inspection:
    """What a method can show of itself for some views, for pictures.

    reconstruction_BCHW: normalised pixels for all patches. similarity_BNN: for ConMIM, probability that the query at
    the first position belongs to the key at the second. Either is None where the method has no such thing, and both
    are for methods that compare whole images.
    """

    reconstruction_BCHW: Float[Tensor, "B C H W"] | None = None
    similarity_BNN: Float[Tensor, "B N N"] | None = None


class Method(Trainee[Batch, V], ABC, Generic[V]):
    """A self-supervised method: its networks, its views (of type V), its losses and when its target moves."""

    info: ClassVar[MethodInfo]
    reads_captions: ClassVar[bool] = False
    """Whether batches must hold `texts`."""
    Config: ClassVar[type[MethodConfig]]
    config: MethodConfig

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer and its schedule, as the method's configuration has them."""
        return self.config.optimizer

    @property
    @abstractmethod
    def crops(self) -> tuple[CropConfig, ...]:
        """The crops that the data workers cut for this method."""

    @abstractmethod
    def exported(self) -> Encoder:
        """The encoder that is worth keeping: the one that the authors fine-tune."""

    @abstractmethod
    def inspect(self, views: V) -> Inspection:
        """What pictures of this method show; call it in eval mode without gradients."""


def only_crop(batch: Batch) -> Tensor:
    """The uint8 crops [B, C, H, W] of a batch that holds one crop of each image."""
    if len(batch.crops) != 1 or batch.crops[0].shape[1] != 1:
        raise ValueError("this method takes one crop of each image; give it Batch.of(images)")
    return batch.crops[0][:, 0]


def one_crop(encoder: Encoder, config: MethodConfig) -> tuple[CropConfig, ...]:
    """The one crop of each image, of the encoder's size, that methods with a single geometry take."""
    height, width = encoder.image_size
    return (CropConfig(height=height, width=width, scale=config.crop_scale),)


def check_size(images_BCHW: Tensor, encoder: Encoder) -> None:
    """Refuse images that are not of the encoder's size."""
    (height, width), (H, W) = encoder.image_size, images_BCHW.shape[-2:]
    if (height, width) != (H, W):
        raise ValueError(f"this method was built for images of {height}x{width} pixels, got {H}x{W}")


def two_crops(encoder: Encoder, config: MethodConfig) -> tuple[CropConfig, ...]:
    """Two independent crops of each image, of the encoder's size, that Siamese methods take."""
    height, width = encoder.image_size
    return (CropConfig(height=height, width=width, count=2, scale=config.crop_scale),)


def crop_pair(batch: Batch, encoder: Encoder) -> Tensor:
    """The uint8 crops [B, 2, C, H, W] of a batch that holds two crops of each image, of the encoder's size."""
    if len(batch.crops) != 1 or batch.crops[0].shape[1] != 2:
        raise ValueError("this method takes two crops of each image, one group [B, 2, C, H, W]")
    check_size(batch.crops[0], encoder)
    return batch.crops[0]


def two_views(
    batch: Batch, encoder: Encoder, config: MethodConfig, colours: tuple[ColourConfig, ColourConfig]
) -> Views:
    """Two independent crops of each image, flipped and coloured apart: view 1 is `online`, view 2 is `target`."""
    pair_B2CHW = crop_pair(batch, encoder)
    host, _ = generators(batch.seed, pair_B2CHW.device)
    first, second = (
        independent_view(crop_BCHW, colour=colour, mean=config.mean, std=config.std, generator=host)
        for crop_BCHW, colour in zip(pair_B2CHW.unbind(dim=1), colours, strict=True)
    )
    return Views(online=first, target=second)


def shared_views(
    batch: Batch,
    encoder: Encoder,
    config: MaskedMethodConfig,
    colour: ColourConfig | None,
    *,
    online_colour: ColourConfig | None = None,
) -> Views:
    """Views of one geometry: flipped crops for the online network, the same ones coloured for the target, and masks.

    `colour` None: there is no target view. `online_colour` perturbs the picture that the online network sees, and the
    target's before its own colour (BEiT, data2vec: one perturbed image for both).
    """
    images_BCHW = only_crop(batch)
    check_size(images_BCHW, encoder)
    host, device = generators(batch.seed, images_BCHW.device)
    online, target = shared_crop_views(
        images_BCHW, colour=colour, online_colour=online_colour, mean=config.mean, std=config.std, generator=host
    )
    mask_BN = sample_mask(config.mask, len(images_BCHW), encoder.grid, generator=device, device=images_BCHW.device)
    return Views(online=online, target=target, mask_BN=mask_BN, hidden=masked_count(config.mask, encoder.grid))


def check_mask(mask_BN: Bool[Tensor, "B N"] | None) -> Bool[Tensor, "B N"]:
    """The mask of views that must have one."""
    if mask_BN is None:
        raise ValueError("this method needs views with a mask")
    return mask_BN
