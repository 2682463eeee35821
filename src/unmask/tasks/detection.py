"""Detection and instance segmentation on a pre-trained encoder: Mask R-CNN on ViTDet's simple feature pyramid.

Faster and Mask R-CNN are torchvision's; sizes and heads are those of ViTDet (Li et al. 2022) in detectron2: two
convolutions before the proposals, four with layer norms and a linear layer for the boxes, four with layer norms for the
outlines. What differs from it: torchvision's smooth L1 on boxes where detectron2 has plain L1, anchors that stand in
the middle of their places and are smaller on small canvases, and vectors without weight decay.

Where torchvision's own parts would harm we set others. Anchors and the outputs of the heads are float32 under autocast:
in bfloat16 the corners of boxes would be off by up to four pixels of a thousand. The pyramid's strides are told to it,
as it guesses powers of two. Outlines are put back into the image by the exact inverse of how training cuts them out.

Shape legend: B images, C channels, H x W pixels of the canvas, K things, M x M cells of an outline within its box, A
anchors, h x w pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper
from typing_extensions import Doc

from unmask.data.detection import DetectionBatch, Fit, JitterConfig, Target
from unmask.models.encoder import Encoder
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.simple_pyramid import LEVELS, SimplePyramid
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.tasks.layer_decay import LayerDecay
from unmask.tasks.tuned_encoder import tuned_encoder
from unmask.trainee import Losses, Trainee
from unmask.views import normalise, to_float

WARMUP_STEPS = 250
POOLED = LEVELS[:4]
"""The maps that boxes are cut from; the coarsest is for proposals alone."""
_BOX_CELLS, _MASK_CELLS = 7, 14
_ROI_PATCHES = 14
"""A box of this many patches a side is cut from the map that has the encoder's own stride. [FPN: 224 at stride 16]"""


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """How a detector is built on an encoder, and how it chooses what it shows."""

    outlines: Annotated[bool, Doc("Mask R-CNN, which finds outlines too, where the data has them.")] = True
    window: Annotated[
        int | None, Doc("Most tokens a side of an attention window; None: attention to all everywhere. [ViTDet: 14]")
    ] = 14
    global_blocks: Annotated[int, Doc("Blocks that attend to the whole image, evenly spread. [ViTDet: 4]")] = 4
    pyramid_width: Annotated[
        int | None,
        Doc("Channels of the pyramid and the heads; None: a third of the encoder's, 32 to 256. [ViTDet: 256]"),
    ] = None
    box_width: Annotated[int | None, Doc("Width of the boxes' linear layer; None: 4 x the pyramid's. [1024]")] = None
    anchors: Annotated[
        tuple[float, ...] | None,
        Doc(
            "Sides of the anchors of the five maps, in pixels; None: the stride of each map times an eighth of the "
            "grid's longer side, at least four and at most eight strides. [eight: 32 to 512]"
        ),
    ] = None
    ratios: Annotated[tuple[float, ...], Doc("Height by width of the anchors of each map.")] = (0.5, 1.0, 2.0)
    proposals: Annotated[
        int | None,
        Doc(
            "Proposals an image in which things are looked for; twice as many of each map are sifted. None: as many as "
            "the canvas has pixels a side, 100 to 1000. [1000]"
        ),
    ] = None
    proposal_samples: Annotated[int, Doc("Anchors an image that the proposals learn from. [256]")] = 256
    box_samples: Annotated[
        int | None,
        Doc(
            "Proposals an image that boxes and outlines learn from. None: half as many as the canvas has pixels a "
            "side, 64 to 512. [512]"
        ),
    ] = None
    score_threshold: Annotated[float, Doc("Least score of what is shown. [.05]")] = 0.05
    overlap: Annotated[float, Doc("Of two boxes of a class that overlap by more (IoU) one stays. [.5]")] = 0.5
    detections: Annotated[int, Doc("Most things shown in one image. [100]")] = 100

    def __post_init__(self) -> None:
        numbers = {
            "window": self.window,
            "global_blocks": self.global_blocks,
            "pyramid_width": self.pyramid_width,
            "box_width": self.box_width,
            "proposals": self.proposals,
            "proposal_samples": self.proposal_samples,
            "box_samples": self.box_samples,
            "detections": self.detections,
        }
        for name, value in numbers.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, share in {"score_threshold": self.score_threshold, "overlap": self.overlap}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share}")
        if self.anchors is not None and (len(self.anchors) != len(LEVELS) or min(self.anchors) <= 0):
            raise ValueError(f"anchors must be {len(LEVELS)} sides above 0, one for each map, got {self.anchors}")
        if not self.ratios or min(self.ratios) <= 0:
            raise ValueError(f"ratios must be one number above 0 or more, got {self.ratios}")


@dataclass(frozen=True, kw_only=True)
class DetectionConfig:
    """How a detector is built on an encoder and trained. The defaults are ViTDet's for ViT-B on COCO, batches of 64."""

    detector: Annotated[DetectorConfig, Doc("What stands on the encoder.")] = DetectorConfig()
    frozen_encoder: Annotated[
        bool, Doc("Train the pyramid and the heads alone, the encoder staying as it is: a probe of its features.")
    ] = False
    own_tables: Annotated[
        bool, Doc("Copy a shared table of relative positions into every block first. [as BEiT fine-tunes]")
    ] = True
    drop_path: Annotated[float, Doc("Stochastic depth of the last block. [.1 B, .4 L, .5 H]")] = 0.1
    layer_decay: Annotated[float, Doc("Learning rate of a layer by the next one's. [.7 B, .8 L, .9 H]")] = 0.7
    optimizer: Annotated[
        OptimizerConfig,
        Doc(
            "The optimizer and its schedule. The rate does not follow the batch. [AdamW; 250 of 184k steps, .14 of 100 "
            "epochs, warm up; a tenth after 89 % of them, and, which is left out here, a hundredth after 96 %]"
        ),
    ] = OptimizerConfig(
        lr=1e-4,
        lr_batch=None,
        betas=(0.9, 0.999),
        weight_decay=0.1,
        warmup_epochs=0.14,
        warmup_start=1e-3,
        decay="step",
        step_at=0.889,
    )
    jitter: Annotated[JitterConfig, Doc("How training canvases are cut.")] = JitterConfig()
    image_height: Annotated[
        int | None, Doc("Height of the canvas, in pixels; positions follow. None: the encoder's. [1024]")
    ] = None
    image_width: Annotated[
        int | None, Doc("Width of the canvas, in pixels; positions follow. None: the encoder's. [1024]")
    ] = None
    checkpointing: Annotated[bool, Doc("Recompute activations in the backward pass, to save memory.")] = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop path must lie in [0, 1), got {self.drop_path}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer decay must lie in (0, 1], got {self.layer_decay}")


def warmed_up(config: DetectionConfig, steps_per_epoch: int) -> DetectionConfig:
    """The same with a warm-up of ViTDet's 250 steps, which the optimizer's settings count in epochs."""
    return replace(config, optimizer=replace(config.optimizer, warmup_epochs=WARMUP_STEPS / steps_per_epoch))


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one image, on the CPU, best first."""

    boxes_K4: Annotated[Float[Tensor, "K 4"], Doc("Left, top, right and bottom, in pixels of the original image.")]
    labels_K: Annotated[Int64[Tensor, " K"], Doc("Positions in the detector's classes.")]
    scores_K: Annotated[Float[Tensor, " K"], Doc("How sure the detector is, in [0, 1].")]
    shapes_KMM: Annotated[
        Float[Tensor, "K M M"] | None, Doc("How sure it is of each part of a box; None for a detector of boxes.")
    ]
    height: Annotated[int, Doc("Height of the image, in pixels.")]
    width: Annotated[int, Doc("Width of the image, in pixels.")]

    def masks(self) -> Iterator[Bool[Tensor, "h w"]]:
        """The pixels of one thing after the other: all of them at once would fill the memory for large photos.

        Not torchvision's `paste_masks_in_image`, which cuts corners to whole pixels.
        """
        assert self.shapes_KMM is not None
        for box_4, shape_MM in zip(self.boxes_K4, self.shapes_KMM, strict=True):
            yield put_back(shape_MM, box_4, self.height, self.width) >= 0.5


def put_back(shape_MM: Float[Tensor, "M M"], box_4: Float[Tensor, " 4"], height: int, width: int) -> Tensor:
    """What fills a box, in the image it belongs to [height, width]; 0 in pixels whose middle is outside the box.

    The inverse of torchvision's `project_masks_on_boxes`, for which a pixel's value stands at its top left corner.
    """
    left, top, right, bottom = box_4.tolist()
    columns = torch.arange(max(0, round(left)), min(width, round(right)))
    rows = torch.arange(max(0, round(top)), min(height, round(bottom)))
    across = 2 * (columns - left) / (right - left) - 1
    down = 2 * (rows - top) / (bottom - top) - 1
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
    inside = F.grid_sample(shape_MM[None, None], grid[None], align_corners=False, padding_mode="border")[0, 0]
    whole = torch.zeros(height, width)
    whole[rows[:, None], columns] = inside
    return whole


class Anchors(nn.Module):
    """Boxes of one side and several ratios around the middle of every place of every map, in float32.

    torchvision's have the type of the maps, and strides that are wrong where a map's size is odd.
    """

    cells: Tensor

    def __init__(self, sides: Sequence[float], ratios: Sequence[float], strides: Sequence[float]) -> None:
        super().__init__()
        root = torch.tensor(ratios).sqrt()
        unit = torch.stack([-1 / root, -root, 1 / root, root], dim=1) / 2
        self.register_buffer("cells", torch.tensor(sides)[:, None, None] * unit, persistent=False)
        self.strides = tuple(strides)

    def forward(self, images: ImageList, maps: list[Tensor]) -> list[Float[Tensor, "A 4"]]:
        """For each image all anchors, as torchvision's RPN orders them: by map, row, column and ratio."""
        found = []
        for map_BCrc, cells_R4, stride in zip(maps, self.cells, self.strides, strict=True):
            rows, columns = map_BCrc.shape[2:]
            down, across = (stride * (torch.arange(n, device=cells_R4.device) + 0.5) for n in (rows, columns))
            middles = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1).repeat(1, 1, 2)
            found.append((middles[:, :, None] + cells_R4).flatten(0, 2))
        return [torch.cat(found)] * len(images.image_sizes)


class InFloat32(nn.Module):
    """A head whose outputs, one or several, are float32 under autocast too."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Any) -> Any:
        """What the head gives, in its order."""
        return _as_float32(self.head(features))


def _as_float32(found: Any) -> Any:
    return found.float() if isinstance(found, Tensor) else tuple(_as_float32(part) for part in found)


class Detector(nn.Module):
    """torchvision's Faster R-CNN, or Mask R-CNN for outlines, on the simple pyramid of an encoder.

    Images are canvases of the encoder's size, normalised. New weights are drawn from torch's global state.
    """

    def __init__(
        self, encoder: Encoder, config: DetectorConfig, classes: int, *, outlines: bool, frozen_encoder: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.outlines = outlines
        width = config.pyramid_width or min(256, max(32, round(encoder.width / 3)))
        pyramid = SimplePyramid(
            encoder,
            width=width,
            window=config.window,
            global_count=config.global_blocks,
            frozen=frozen_encoder,
        )
        box_width = config.box_width or 4 * width
        side = max(encoder.image_size)
        proposals = config.proposals or min(1000, max(100, side))
        labels = classes + 1  # torchvision's class 0 is the background
        boxes = FastRCNNPredictor(box_width, labels)
        nn.init.normal_(boxes.cls_score.weight, std=0.01)  # [detectron2]
        nn.init.normal_(boxes.bbox_pred.weight, std=0.001)
        for layer in (boxes.cls_score, boxes.bbox_pred):
            nn.init.zeros_(layer.bias)
        parts: dict[str, Any] = {
            # Only counted here; the anchors themselves are ours, see below.
            "rpn_anchor_generator": AnchorGenerator(((1,),) * len(LEVELS), (config.ratios,) * len(LEVELS)),
            "rpn_head": InFloat32(RPNHead(width, len(config.ratios), conv_depth=2)),
            "rpn_batch_size_per_image": config.proposal_samples,
            "rpn_pre_nms_top_n_train": 2 * proposals,
            "rpn_pre_nms_top_n_test": proposals,
            "rpn_post_nms_top_n_train": proposals,
            "rpn_post_nms_top_n_test": proposals,
            "box_roi_pool": _pool(_BOX_CELLS, pyramid),
            "box_head": FastRCNNConvFCHead(
                (width, _BOX_CELLS, _BOX_CELLS), [width] * 4, [box_width], norm_layer=LayerNorm2d
            ),
            "box_predictor": InFloat32(boxes),
            "box_batch_size_per_image": config.box_samples or min(512, max(64, side // 2)),
            "box_score_thresh": config.score_threshold,
            "box_nms_thresh": config.overlap,
            "box_detections_per_img": config.detections,
        }
        self.rcnn: FasterRCNN = (
            MaskRCNN(
                pyramid,
                mask_roi_pool=_pool(_MASK_CELLS, pyramid),
                mask_head=MaskRCNNHeads(width, [width] * 4, 1, norm_layer=LayerNorm2d),
                mask_predictor=InFloat32(MaskRCNNPredictor(width, width, labels)),
                **parts,
            )
            if outlines
            else FasterRCNN(pyramid, **parts)
        )
        # Fewer strides than four and most things meet no anchor; eight on a small canvas and small things meet none.
        reach = min(8.0, max(4.0, max(encoder.grid) / 8))
        sides = config.anchors or tuple(reach * stride for stride in pyramid.strides)
        self.rcnn.rpn.anchor_generator = Anchors(sides, config.ratios, pyramid.strides)

    @property
    def pyramid(self) -> SimplePyramid:
        """The encoder with its pyramid, torchvision's backbone."""
        assert isinstance(self.rcnn.backbone, SimplePyramid)
        return self.rcnn.backbone

    @property
    def encoder(self) -> Encoder:
        """The encoder inside the pyramid."""
        return self.pyramid.encoder

    def forward(self, images_BCHW: Float[Tensor, "B C H W"], targets: Sequence[Target]) -> Losses:
        """torchvision's losses, to be minimised as a sum; for training mode.

        Which anchors and proposals are learnt from follows from torch's global state.
        """
        assert self.training, "losses are for training; detect() is for eval mode"
        height, width = images_BCHW.shape[2:]
        images = ImageList(images_BCHW, [(height, width)] * len(images_BCHW))
        wanted = [_for_torchvision(target) for target in targets]
        maps = self.pyramid(images_BCHW)
        proposals, first = self.rcnn.rpn(images, maps, wanted)
        _, second = self.rcnn.roi_heads(maps, proposals, images.image_sizes, wanted)
        losses: Losses = first | second
        return losses

    @torch.no_grad()
    def detect(self, images_BCHW: Float[Tensor, "B C H W"], fits: Sequence[Fit]) -> list[Detections]:
        """What is found in each image, in pixels of its original; for eval mode.

        ValueError where the detector gives numbers that are not finite.
        """
        assert not self.training, "detect() is for eval mode"
        maps = self.pyramid(images_BCHW)
        if not bool(torch.isfinite(maps[LEVELS[-1]]).all()):
            raise ValueError("the detector gives numbers that are NaN or infinite: its training has diverged")
        # Boxes end where the image ends, not where the canvas does.
        images = ImageList(images_BCHW, [(fit.shown_height, fit.shown_width) for fit in fits])
        proposals, _ = self.rcnn.rpn(images, maps, None)
        found, _ = self.rcnn.roi_heads(maps, proposals, images.image_sizes, None)
        return [_in_original(one, fit) for one, fit in zip(found, fits, strict=True)]


def _pool(cells: int, pyramid: SimplePyramid) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign(POOLED, output_size=cells, sampling_ratio=2)
    # Left alone it guesses scales from the maps' sizes as powers of two, which is wrong for patches of 14.
    pool.scales = [1 / stride for stride in pyramid.strides[: len(POOLED)]]
    size = _ROI_PATCHES * pyramid.encoder.patch[0]
    pool.map_levels = initLevelMapper(0, len(POOLED) - 1, canonical_scale=size, canonical_level=2)
    return pool


def _for_torchvision(target: Target) -> dict[str, Tensor]:
    wanted = {"boxes": target.boxes_K4, "labels": target.labels_K + 1}
    return wanted if target.masks_KHW is None else wanted | {"masks": target.masks_KHW}


def _in_original(found: dict[str, Tensor], fit: Fit) -> Detections:
    down, across = fit.height / fit.shown_height, fit.width / fit.shown_width
    boxes_K4 = found["boxes"].float().cpu() * torch.tensor([across, down, across, down])
    return Detections(
        boxes_K4=boxes_K4,
        labels_K=found["labels"].cpu() - 1,
        scores_K=found["scores"].float().cpu(),
        shapes_KMM=found["masks"][:, 0].float().cpu() if "masks" in found else None,
        height=fit.height,
        width=fit.width,
    )


def detector_on(pretrained: PretrainedEncoder, config: DetectionConfig, classes: int, *, outlines: bool) -> Detector:
    """A detector with new heads on a copy of the encoder, which gets drop path, tables of its own and its size.

    ValueError for an image size that the patches do not divide, and for drop path where the network has none.
    """
    encoder = tuned_encoder(pretrained, config)
    return Detector(
        encoder,
        config.detector,
        classes,
        outlines=outlines and config.detector.outlines,
        frozen_encoder=config.frozen_encoder,
    )


@dataclass(frozen=True)
class DetectionViews:
    """Normalised canvases and their things."""

    images: Float[Tensor, "B C H W"]
    targets: tuple[Target, ...]


class DetectionTask(Trainee[DetectionBatch, DetectionViews]):
    """Training of a `Detector` on canvases of the encoder's image size. `outlines`: whether the data has any."""

    def __init__(
        self, pretrained: PretrainedEncoder, config: DetectionConfig, classes: tuple[str, ...], *, outlines: bool
    ) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.mean, self.std = pretrained.mean, pretrained.std
        self.pixel_range = pretrained.pixel_range
        self.detector = detector_on(pretrained, config, len(classes), outlines=outlines)
        self._rule = LayerDecay(self.detector.encoder, config.layer_decay)

    @property
    def optimizer_config(self) -> OptimizerConfig:
        """The optimizer and its schedule, as the configuration has them."""
        return self.config.optimizer

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvases, in pixels."""
        return self.detector.encoder.image_size

    def make_views(self, batch: DetectionBatch) -> DetectionViews:
        """Normalised canvases; all that is random was done where they were cut."""
        return DetectionViews(normalise(to_float(batch.images), self.mean, self.std), batch.targets)

    def losses(self, views: DetectionViews, progress: float = 0.0) -> Losses:
        """torchvision's losses: of the proposals (objectness, box), of the things (class, box, outline)."""
        return self.detector(views.images, views.targets)

    def update_target(self, progress: float) -> None:
        """There is no target."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        """Layer decay; no weight decay for vectors, positions and class token."""
        return self._rule(name, parameter)
