"""Semantic segmentation on a pre-trained encoder: UperNet on four maps of its features, as BEiT does on ADE20K.

UperNet (Xiao et al. 2018) is segmentation_models_pytorch's, the auxiliary head torchvision's. Where these differ from
mmsegmentation's, which BEiT used: the decoder norms each map (layer norm over its channels) before it enters, and the
auxiliary head is a quarter of the encoder's width wide, not 256.

Shape legend: B images, C channels, H x W pixels, K classes, h x w pixels of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from segmentation_models_pytorch.base.initialization import initialize_decoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models.segmentation.fcn import FCNHead
from typing_extensions import Doc

from unmask.data.annotated import IGNORE
from unmask.data.segmentation_crops import SegmentationBatch, SegmentationCropConfig
from unmask.models.block_pyramid import BlockPyramid
from unmask.models.encoder import Encoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.vit import VitEncoder
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.tasks.layer_decay import LayerDecay
from unmask.tasks.tuned_encoder import tuned_encoder
from unmask.trainee import Losses, Trainee
from unmask.views import normalise, to_float

TestMode = Literal["slide", "whole"]

WIDEST_DECODER = 512
AUXILIARY_MAP = 2
_DROPOUT = 0.1  # before both classifiers [BEiT, mmsegmentation]
_WINDOWS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """How a segmenter is built on an encoder and trained.

    The defaults are BEiT's for a self-supervised ViT-B on ADE20K (upernet_beit_base_12_512_slide_160k_ade20k_pt.py).
    Others, all with batches of 16 images: BEiT after intermediate fine-tuning, rate 3e-5 and layer decay .9 (base),
    2e-5 and .95 (large); MAE in mmsegmentation, 1e-4 and .65.
    """

    decoder_width: Annotated[
        int | None,
        Doc(
            "Channels of the decoder; None: two thirds of the encoder's width, 512 at most (512 for a base ViT, 256 "
            "for a small one). [mmsegmentation: 512; BEiT: the encoder's width]"
        ),
    ] = None
    auxiliary: Annotated[
        float, Doc("Weight of the loss of a small head on the third map, for training alone; 0: none. [BEiT: .4]")
    ] = 0.4
    frozen_encoder: Annotated[
        bool, Doc("Train the pyramid and the decoder alone, the encoder staying as it is: a probe of its features.")
    ] = False
    own_tables: Annotated[
        bool, Doc("Copy a shared table of relative positions into every block first. [BEiT: use_rel_pos_bias]")
    ] = True
    drop_path: Annotated[float, Doc("Stochastic depth of the last block. [BEiT: .1 base, .2 large]")] = 0.1
    layer_decay: Annotated[float, Doc("Learning rate of a layer by the next one's. [BEiT: .65]")] = 0.65
    optimizer: Annotated[
        OptimizerConfig,
        Doc("The optimizer and its schedule. [BEiT: 1500 of 160k steps of 16 images warm up, 1.2 of 127 epochs]"),
    ] = OptimizerConfig(
        lr=7e-4,
        lr_batch=16,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        warmup_epochs=1.2,
        warmup_start=1e-6,
        decay="linear",
    )
    crops: Annotated[SegmentationCropConfig, Doc("How training crops are cut.")] = SegmentationCropConfig()
    image_height: Annotated[
        int | None, Doc("Height of crops and windows, in pixels; positions follow. None: the encoder's. [BEiT: 512]")
    ] = None
    image_width: Annotated[
        int | None, Doc("Width of crops and windows, in pixels; positions follow. None: the encoder's. [BEiT: 512]")
    ] = None
    test: Annotated[
        TestMode, Doc("slide: windows of the crop's size, a third of it overlapping; whole: the image at once. [slide]")
    ] = "slide"
    checkpointing: Annotated[bool, Doc("Recompute activations in the backward pass, to save memory.")] = False

    def __post_init__(self) -> None:
        if self.decoder_width is not None and self.decoder_width < 1:
            raise ValueError(f"the decoder's width must be at least 1, got {self.decoder_width}")
        if self.auxiliary < 0:
            raise ValueError(f"the weight of the auxiliary loss must be 0 or more, got {self.auxiliary}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop path must lie in [0, 1), got {self.drop_path}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer decay must lie in (0, 1], got {self.layer_decay}")


class Segmenter(nn.Module):
    """Pyramid, UperNet decoder and a linear classifier of every place: normalised images to logits of every pixel."""

    def __init__(self, encoder: Encoder, classes: int, *, decoder_width: int, frozen_encoder: bool = False) -> None:
        """Weights of the decoder are drawn from torch's global state, as the library draws them."""
        super().__init__()
        self.decoder_width = decoder_width
        self.pyramid = BlockPyramid(encoder, frozen=frozen_encoder)
        # The library counts maps from the full image on and leaves the first two out.
        self.decoder = UPerNetDecoder((0, 0, *self.pyramid.widths), decoder_channels=decoder_width)
        initialize_decoder(self.decoder)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classifier = nn.Conv2d(decoder_width, classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    @property
    def encoder(self) -> Encoder:
        """The encoder inside the pyramid."""
        return self.pyramid.encoder

    @property
    def classes(self) -> int:
        """Number K of classes."""
        return self.classifier.out_channels

    def decode(self, maps: tuple[Tensor, ...], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
        """Logits at `size` of what the pyramid gives."""
        features = self.decoder([maps[0], maps[0], *maps])
        return upsampled(self.classifier(self.dropout(features)), size)

    def forward(self, images_BCHW: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """Logits of every pixel. ValueError for sizes that the encoder cannot take; `segment` takes any."""
        height, width = images_BCHW.shape[2:]
        return self.decode(self.pyramid(images_BCHW), (height, width))


def upsampled(logits_BKhw: Float[Tensor, "B K h w"], size: tuple[int, int]) -> Float[Tensor, "B K H W"]:
    """Logits resized to `size`, bilinearly. [mmsegmentation: align_corners=False]"""
    return F.interpolate(logits_BKhw, size=size, mode="bilinear", align_corners=False)


def segmenter_on(pretrained: PretrainedEncoder, config: SegmentationConfig, classes: int) -> Segmenter:
    """A segmenter with a new decoder on a copy of the encoder, which gets drop path, tables of its own and its size.

    ValueError for an image size that the patches do not divide, and for drop path where the network has none.
    """
    encoder = tuned_encoder(pretrained, config)
    decoder_width = config.decoder_width or usual_decoder_width(encoder.width)
    return Segmenter(encoder, classes, decoder_width=decoder_width, frozen_encoder=config.frozen_encoder)


def usual_decoder_width(encoder_width: int) -> int:
    """Channels of the decoder where none are asked for: two thirds of the encoder's width, 512 at most."""
    return min(WIDEST_DECODER, round(encoder_width * 2 / 3))


@dataclass(frozen=True)
class SegmentationViews:
    """Normalised crops, and the class of every pixel."""

    images: Float[Tensor, "B C H W"]
    masks: UInt8[Tensor, "B H W"]


class SegmentationTask(Trainee[SegmentationBatch, SegmentationViews]):
    """Training of a `Segmenter` on crops of the encoder's image size."""

    def __init__(self, pretrained: PretrainedEncoder, config: SegmentationConfig, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.mean, self.std = pretrained.mean, pretrained.std
        self.pixel_range = pretrained.pixel_range
        self.segmenter = segmenter_on(pretrained, config, len(classes))
        width = self.segmenter.pyramid.widths[AUXILIARY_MAP]
        self.auxiliary: nn.Module | None = FCNHead(width, len(classes)) if config.auxiliary else None
        self._rule = LayerDecay(self.segmenter.encoder, config.layer_decay)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer and its schedule, as the configuration has them."""
        return self.config.optimizer

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the crops, in pixels."""
        return self.segmenter.encoder.image_size

    def make_views(self, batch: SegmentationBatch) -> SegmentationViews:
        """Normalised crops; all that is random was done where they were cut."""
        return SegmentationViews(normalise(to_float(batch.images), self.mean, self.std), batch.masks)

    def losses(self, views: SegmentationViews, progress: float = 0.0) -> Losses:
        """Cross-entropy of the pixels that count, of the segmenter and of the auxiliary head.

        ValueError for a batch of one image: the decoder norms maps of one place by the batch.
        """
        if len(views.images) < 2 and self.training:
            raise ValueError("a segmenter is trained on batches (or their parts) of 2 images or more, got 1")
        size = views.images.shape[2], views.images.shape[3]
        maps = self.segmenter.pyramid(views.images)
        targets = views.masks.long()
        losses = {"segmentation": pixel_loss(self.segmenter.decode(maps, size), targets)}
        if self.auxiliary is not None:
            logits = upsampled(self.auxiliary(maps[AUXILIARY_MAP]), size)
            losses["auxiliary"] = self.config.auxiliary * pixel_loss(logits, targets)
        return losses

    def update_target(self, progress: float) -> None:
        """There is no target."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        """Layer decay; no weight decay for vectors, positions and class token."""
        return self._rule(name, parameter)


def pixel_loss(logits_BKHW: Float[Tensor, "B K H W"], targets_BHW: Int64[Tensor, "B H W"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the pixels that are not `IGNORE`; 0 where none is.

    mmsegmentation's mean is over all pixels, so that a crop with few that count has a small loss there.
    """
    total = F.cross_entropy(logits_BKHW.float(), targets_BHW, ignore_index=IGNORE, reduction="sum")
    return total / (targets_BHW != IGNORE).sum().clamp(min=1)


@torch.no_grad()
def segment(
    segmenter: Segmenter, image_CHW: Float[Tensor, "C H W"], mode: TestMode = "slide"
) -> Float[Tensor, "K H W"]:
    """Logits of every pixel of a normalised image of any size, on its device, in float32.

    slide: mean of the logits of windows of the encoder's image size, two thirds of it apart, the last ones moved back
    into the image. whole: all at once, at a size that need not be the encoder's. Either way an image that is too small,
    or no multiple of the patch, is padded at the bottom and right with zeros, the mean colour.
    [BEiT's test_cfg: crop 512, stride 341; mmsegmentation's slide_inference]

    ValueError for "whole" where the encoder's positions hold for one size only.
    """
    H, W = image_CHW.shape[1:]
    h, w = segmenter.encoder.image_size
    if mode == "whole":
        (ph, pw) = segmenter.encoder.patch
        padded_1CHW = _padded(image_CHW, -(-H // ph) * ph, -(-W // pw) * pw)[None]
        if padded_1CHW.shape[2:] != (h, w):
            _require_any_size(segmenter.encoder)
        return segmenter(padded_1CHW)[0, :, :H, :W].float()
    padded_CHW = _padded(image_CHW, max(H, h), max(W, w))
    corners = [(top, left) for top in _starts(padded_CHW.shape[1], h) for left in _starts(padded_CHW.shape[2], w)]
    sums_KHW = padded_CHW.new_zeros(segmenter.classes, *padded_CHW.shape[1:], dtype=torch.float32)
    counts_HW = torch.zeros_like(sums_KHW[0])
    for chosen in _groups(corners, _WINDOWS_AT_ONCE):
        windows = torch.stack([padded_CHW[:, top : top + h, left : left + w] for top, left in chosen])
        for (top, left), logits_Khw in zip(chosen, segmenter(windows).float(), strict=True):
            sums_KHW[:, top : top + h, left : left + w] += logits_Khw
            counts_HW[top : top + h, left : left + w] += 1
    return (sums_KHW / counts_HW)[:, :H, :W]


def _starts(length: int, window: int) -> list[int]:
    """Where windows start along a side, two thirds of a window apart, the last one ending where the side ends."""
    stride = max(1, 2 * window // 3)
    count = max(0, length - window + stride - 1) // stride + 1
    return [min(number * stride, length - window) for number in range(count)]


def _groups(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(corners), size):
        yield corners[start : start + size]


def _padded(image_CHW: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image_CHW, (0, width - image_CHW.shape[2], 0, height - image_CHW.shape[1]))


def _require_any_size(encoder: Encoder) -> None:
    if isinstance(encoder, VitEncoder) and not isinstance(encoder.vit, VisionTransformer):
        height, width = encoder.image_size
        raise ValueError(
            f"the positions of {encoder.config.name!r} hold for images of {height}x{width} alone: test with sliding "
            "windows, not with whole images"
        )
