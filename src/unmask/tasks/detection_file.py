"""A finished detector: what one can do with it, and the safetensors file that holds it.

    detector = read_detector(Path("detector.safetensors"))
    (found,) = detector.predict([image])        # uint8 [C, H, W] in; boxes, classes, scores out, best first
    for box_4, label, mask_HW in zip(found.boxes_K4, found.labels_K, found.masks()):
        ...                                     # label is a position in detector.classes

Shape legend: B images of a batch, C channels, H x W pixels of the canvas.
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
from jaxtyping import UInt8
from torch import Tensor

from unmask.data.detection import Fit, fit_of, on_canvas
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
from unmask.tasks.detection import Detections, DetectionTask, Detector, DetectorConfig
from unmask.views import normalise, to_float

HEADER = "unmask_detector"
KIND = "detector"
_ENCODER = "encoder."  # before the names of the encoder's tensors
_INSIDE = "rcnn.backbone.encoder."


@dataclass(frozen=True, kw_only=True)
class FinishedDetector:
    """A detector with the classes it knows and the normalisation it was trained with.

    Its methods leave the detector's mode alone, which must be eval; `to` and `read_detector` give it so.
    """

    detector: Detector
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: PixelRange | None = None
    """What becomes black and white of images with more than 8 bits."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width of the canvas, in pixels, into which images are fitted."""
        return self.detector.encoder.image_size

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.detector.encoder.config.channels

    def detect(self, images_BCHW: UInt8[Tensor, "B C H W"], fits: Sequence[Fit]) -> list[Detections]:
        """What is found on canvases on which images lie so, in pixels of the images.

        ValueError where the detector gives numbers that are not finite.
        """
        device = next(self.detector.parameters()).device
        return self.detector.detect(normalise(to_float(images_BCHW.to(device)), self.mean, self.std), fits)

    def predict(self, images: Sequence[UInt8[Tensor, "_ _ _"]]) -> list[Detections]:
        """What is found in each image, one after the other. ValueError for images of other channels."""
        found = []
        for image_CHW in images:
            channels, height, width = image_CHW.shape
            if channels != self.channels:
                raise ValueError(f"the detector takes {self.channels} channels, got an image of {channels}")
            fit = fit_of(height, width, self.canvas)
            size = (fit.shown_height, fit.shown_width)
            resized = F.interpolate(image_CHW[None].cpu(), size=size, mode="bicubic", antialias=True)[0]
            found += self.detect(on_canvas(resized, self.canvas, self.mean)[None], [fit])
        return found

    def to(self, device: torch.device) -> FinishedDetector:
        """The same detector, moved to `device` and set to eval mode."""
        self.detector.to(device).eval()
        return self


def finished_detector(task: DetectionTask) -> FinishedDetector:
    """What a task has learnt so far, sharing its weights. Its mode (train or eval) is left as it is."""
    return FinishedDetector(
        detector=task.detector, classes=task.classes, mean=task.mean, std=task.std, pixel_range=task.pixel_range
    )


def detector_file(found: FinishedDetector, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a detector file. `facts` (data, version, ...) stand beside in the header.

    The encoder's tensors are named "encoder." and what the encoder file calls them.
    """
    detector = found.detector
    header = {
        "format": FORMATS[KIND],
        "read_with": "unmask.tasks.detection_file.read_detector",
        "classes": found.classes,
        "outlines": detector.outlines,
        "mean": found.mean,
        "std": found.std,
        **range_entry(found.pixel_range),
        "encoder": dataclasses.asdict(detector.encoder.config),
        "detector": dataclasses.asdict(detector.config),
        **facts,
    }
    tensors = {_ENCODER + name: value for name, value in detector.encoder.network.state_dict().items()}
    tensors |= {name: value for name, value in detector.state_dict().items() if not name.startswith(_INSIDE)}
    return {name: value.detach().cpu() for name, value in tensors.items()}, {HEADER: json.dumps(header)}


def read_detector(path: Path) -> FinishedDetector:
    """The detector in a file that `detector_file` made. ValueError where it is another kind of file or damaged."""
    tensors, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    try:
        encoder_config = config_of(EncoderConfig, header["encoder"])
        config = config_of(DetectorConfig, header["detector"])
        classes = tuple(str(name) for name in header["classes"])
        mean, std = normalisation_of(header, encoder_config.channels)
        pixel_range = range_of(header)
        outlines = bool(header["outlines"])
    except WRONG_VALUES as error:
        raise ValueError(f"{path} has a damaged header") from error

    def build() -> Detector:
        return Detector(build_encoder(encoder_config, mask_token=False), config, len(classes), outlines=outlines)

    def fill(detector: Detector) -> None:
        inside = {name.removeprefix(_ENCODER): value for name, value in tensors.items() if name.startswith(_ENCODER)}
        outside = {name: value for name, value in tensors.items() if not name.startswith(_ENCODER)}
        detector.encoder.network.load_state_dict(inside)
        kept = {name: value for name, value in detector.state_dict().items() if name.startswith(_INSIDE)}
        detector.load_state_dict(kept | outside)

    detector = described(build, fill, path, "the detector")
    return FinishedDetector(detector=detector.eval(), classes=classes, mean=mean, std=std, pixel_range=pixel_range)
