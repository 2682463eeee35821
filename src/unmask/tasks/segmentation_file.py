"""A finished segmenter: what one can do with it, and the safetensors file that holds it.

    segmenter = read_segmenter(Path("segmenter.safetensors"))
    (mask,) = segmenter.predict([image])        # uint8 [C, H, W] in, uint8 [H, W] out: positions in segmenter.classes

Shape legend: C channels, H x W pixels, h x w pixels after resizing, K classes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from unmask.data.segmentation_crops import covering_size
from unmask.data.stored import PixelRange
from unmask.formats import FORMATS
from unmask.models.build import build_encoder
from unmask.models.encoder_config import EncoderConfig
from unmask.models.model_file import (
    WRONG_VALUES,
    config_of,
    described,
    header_of,
    normalisation_of,
    range_entry,
    range_of,
    read_tensors,
)
from unmask.tasks.segmentation import SegmentationTask, Segmenter, TestMode, segment, upsampled
from unmask.views import normalise, to_float

HEADER = "unmask_segmenter"
KIND = "segmenter"
_ENCODER = "encoder."  # before the names of the encoder's tensors
_INSIDE = "pyramid.encoder."
_LOGITS_AT_ONCE = 2**26  # 256 MB of float32


@dataclass(frozen=True, kw_only=True)
class FinishedSegmenter:
    """A segmenter with the classes it tells apart, the normalisation it was trained with, and how it looks at images.

    Its methods leave the segmenter's mode alone; `to` and `read_segmenter` give it in eval mode.
    """

    segmenter: Segmenter
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: TestMode
    pixel_range: PixelRange | None = None
    """What becomes black and white of images with more than 8 bits."""

    @property
    def crop(self) -> tuple[int, int]:
        """Height and width of the windows, in pixels, which images are resized to cover."""
        return self.segmenter.encoder.image_size

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.segmenter.encoder.config.channels

    @torch.no_grad()
    def logits(self, image_CHW: UInt8[Tensor, "C H W"]) -> Float[Tensor, "K H W"]:
        """Logits of every pixel of an image at the size at which it is given, float32, where the segmenter is.

        ValueError for other channels, where whole images cannot be tested (see `segment`), and for logits that are not
        finite.
        """
        if len(image_CHW) != self.channels:
            raise ValueError(f"the segmenter takes {self.channels} channels, got an image of {len(image_CHW)}")
        device = self.segmenter.classifier.weight.device
        normalised = normalise(to_float(image_CHW[None].to(device)), self.mean, self.std)
        found = segment(self.segmenter, normalised[0], self.mode)
        if not torch.isfinite(found).all():
            raise ValueError("the segmenter gives logits that are NaN or infinite: its training has diverged")
        return found

    def predict(self, images: Sequence[UInt8[Tensor, "_ _ _"]]) -> list[UInt8[Tensor, "_ _"]]:
        """The class of every pixel of each image, at the image's size, on the CPU.

        Each image is resized so that it just covers `crop`, as test images are, and its logits are resized back.
        """
        found = []
        for image_CHW in images:
            H, W = image_CHW.shape[1:]
            size = covering_size(H, W, self.crop)
            resized = F.interpolate(image_CHW[None].cpu(), size=size, mode="bicubic", antialias=True)[0]
            found.append(best_classes(self.logits(resized), (H, W)))
        return found

    def to(self, device: torch.device) -> FinishedSegmenter:
        """The same segmenter, moved to `device` and set to eval mode."""
        self.segmenter.to(device).eval()
        return self


def best_classes(logits_Khw: Float[Tensor, "K h w"], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    """The class with the highest logit after resizing to `size`, on the CPU; the first one where several are equal.

    A few classes are resized at a time: all of them at the size of a large photo would fill the memory.
    """
    step = max(1, _LOGITS_AT_ONCE // (size[0] * size[1]))
    best_HW = torch.full(size, -torch.inf, device=logits_Khw.device)
    found_HW = torch.zeros(size, dtype=torch.uint8, device=logits_Khw.device)
    for first in range(0, len(logits_Khw), step):
        highest_HW, place_HW = upsampled(logits_Khw[None, first : first + step], size)[0].max(dim=0)
        better_HW = highest_HW > best_HW
        best_HW = torch.where(better_HW, highest_HW, best_HW)
        found_HW = torch.where(better_HW, (place_HW + first).to(torch.uint8), found_HW)
    return found_HW.cpu()


def finished_segmenter(task: SegmentationTask) -> FinishedSegmenter:
    """What a task has learnt so far, sharing its weights. Its mode (train or eval) is left as it is."""
    return FinishedSegmenter(
        segmenter=task.segmenter,
        classes=task.classes,
        mean=task.mean,
        std=task.std,
        mode=task.config.test,
        pixel_range=task.pixel_range,
    )


def segmenter_file(found: FinishedSegmenter, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a segmenter file. `facts` (data, version, ...) stand beside in the header.

    The encoder's tensors are named "encoder." and what the encoder file calls them. What only training needs (the
    auxiliary head) is left out.
    """
    segmenter = found.segmenter
    header = {
        "format": FORMATS[KIND],
        "read_with": "unmask.tasks.segmentation_file.read_segmenter",
        "classes": found.classes,
        "mean": found.mean,
        "std": found.std,
        **range_entry(found.pixel_range),
        "mode": found.mode,
        "encoder": dataclasses.asdict(segmenter.encoder.config),
        "decoder": {"kind": "UperNet of segmentation_models_pytorch", "width": segmenter.decoder_width},
        **facts,
    }
    tensors = {_ENCODER + name: value for name, value in segmenter.encoder.network.state_dict().items()}
    tensors |= {name: value for name, value in segmenter.state_dict().items() if not name.startswith(_INSIDE)}
    return {name: value.detach().cpu() for name, value in tensors.items()}, {HEADER: json.dumps(header)}


def read_segmenter(path: Path) -> FinishedSegmenter:
    """The segmenter in a file that `segmenter_file` made. ValueError where it is another kind of file or damaged."""
    tensors, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    try:
        encoder_config = config_of(EncoderConfig, header["encoder"])
        classes = tuple(str(name) for name in header["classes"])
        mean, std = normalisation_of(header, encoder_config.channels)
        pixel_range = range_of(header)
        decoder_width = int(header["decoder"]["width"])
        mode: TestMode = {"slide": "slide", "whole": "whole"}[header["mode"]]  # type: ignore[assignment]
    except WRONG_VALUES as error:
        raise ValueError(f"{path} has a damaged header") from error

    def build() -> Segmenter:
        return Segmenter(build_encoder(encoder_config, mask_token=False), len(classes), decoder_width=decoder_width)

    def fill(segmenter: Segmenter) -> None:
        inside = {name.removeprefix(_ENCODER): value for name, value in tensors.items() if name.startswith(_ENCODER)}
        outside = {name: value for name, value in tensors.items() if not name.startswith(_ENCODER)}
        segmenter.encoder.network.load_state_dict(inside)
        kept = {name: value for name, value in segmenter.state_dict().items() if name.startswith(_INSIDE)}
        segmenter.load_state_dict(kept | outside)

    segmenter = described(build, fill, path, "the segmenter")
    return FinishedSegmenter(
        segmenter=segmenter.eval(), classes=classes, mean=mean, std=std, mode=mode, pixel_range=pixel_range
    )
