"""A finished classifier as a file: a safetensors file whose header says how to build and feed it.

timm alone loads it, where timm has the same network with a linear head:

    header = json.loads(safe_open("classifier.safetensors", "pt").metadata()["unmask_classifier"])
    model = timm.create_model(header["timm_name"], **header["timm_arguments"])
    model.load_state_dict(load_file("classifier.safetensors"))

`model(images)` then gives the logits of header["classes"], for images normalised by header["mean"] and header["std"].
Elsewhere "timm_name" is null, and `read_classifier` reads it.

Shape legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from timm.models.beit import Beit
from timm.models.eva import Eva
from torch import Tensor, nn

from unmask.data.stored import PixelRange
from unmask.formats import FORMATS
from unmask.models.build import build_encoder
from unmask.models.convolutional import ConvEncoder
from unmask.models.encoder_config import EncoderConfig, timm_arguments
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
from unmask.models.vit import VitEncoder
from unmask.tasks.classification import ClassificationTask, Classifier, ClassifierConfig
from unmask.views import normalise, to_float

HEADER = "unmask_classifier"
KIND = "classifier"
BUILT_BY = ("head", "pooling", "norm")
"""Fields of `ClassifierConfig` that decide what is built; the rest is about training."""


@dataclass(frozen=True, kw_only=True)
class FinishedClassifier:
    """A classifier in eval mode, with the classes it tells apart and the normalisation it was trained with."""

    classifier: Classifier
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_ratio: float | None
    several: bool
    """Whether an image may have several classes: logits are then of each class alone."""
    pixel_range: PixelRange | None = None
    """What becomes black and white of images with more than 8 bits."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.classifier.encoder.image_size

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.classifier.encoder.config.channels

    @torch.no_grad()
    def __call__(self, images_BCHW: UInt8[Tensor, "B C H W"], /) -> Float[Tensor, "B K"]:
        """Logits of uint8 images, computed where the classifier is, as float32 on the CPU."""
        images = to_float(images_BCHW.to(self._device))
        return self._logits(images)

    @torch.no_grad()
    def noisy_logits(
        self, images_BCHW: UInt8[Tensor, "B C H W"], noise_BCHW: Float[Tensor, "B C H W"], /
    ) -> Float[Tensor, "B K"]:
        """Logits of images with noise, in units of pixel values in [0, 1], added before normalisation; not clipped."""
        images = to_float(images_BCHW.to(self._device)) + noise_BCHW.to(self._device)
        return self._logits(images)

    @property
    def _device(self) -> torch.device:
        return self.classifier.head.weight.device

    def _logits(self, images_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.classifier(normalise(images_BCHW, self.mean, self.std))
        return logits.float().cpu()

    def to(self, device: torch.device) -> FinishedClassifier:
        """The same classifier, moved to `device` and set to eval mode."""
        self.classifier.to(device).eval()
        return self


def finished(task: ClassificationTask) -> FinishedClassifier:
    """What a task has learnt so far, sharing its weights. Its mode (train or eval) is left as it is."""
    return FinishedClassifier(
        classifier=task.judged,
        classes=task.classes,
        mean=task.mean,
        std=task.std,
        crop_ratio=task.config.test_crop,
        several=task.several,
        pixel_range=task.pixel_range,
    )


def classifier_file(task: ClassificationTask, facts: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a classifier file. `facts` (data, version, ...) stand beside in the header."""
    classifier, config = task.judged, task.config
    encoder = classifier.encoder
    name, arguments, prefix = _timm_model(classifier, len(task.classes))
    tensors = {key: value.detach().cpu() for key, value in encoder.network.state_dict().items()}
    for key, value in classifier.state_dict().items():
        if not key.startswith("encoder."):
            renamed = f"{prefix}{key.removeprefix('head')}" if key.startswith("head.") else key
            tensors[renamed] = value.detach().cpu()
    if name is not None and not _timm_agrees(classifier, name, arguments or {}, tensors):
        name, arguments = None, None
    header = {
        "format": FORMATS[KIND],
        "timm_name": name,
        "timm_arguments": arguments,
        "read_with": "timm" if name is not None else f"{__name__}.read_classifier; timm has no such network",
        "classes": task.classes,
        "several": task.several,
        "mean": task.mean,
        "std": task.std,
        **range_entry(task.pixel_range),
        "crop_ratio": config.test_crop,
        "head_prefix": prefix,
        "encoder": dataclasses.asdict(encoder.config),
        "classifier": {field: getattr(config, field) for field in BUILT_BY},
        **facts,
    }
    return tensors, {HEADER: json.dumps(header)}


def _timm_model(classifier: Classifier, classes: int) -> tuple[str | None, dict[str, Any] | None, str]:
    """Name and arguments by which timm alone should build the whole classifier, and what it calls the head.

    None where timm has no such network, head or norm.
    """
    encoder = classifier.encoder
    # The norm of a ViT is said below: after pooling timm has one even where it could not end the encoder without any.
    model_of = timm_arguments(encoder.config) if isinstance(encoder, VitEncoder) else encoder.timm_model
    if model_of is None or classifier.attentive is not None:
        return None, None, "head"
    name, arguments = model_of
    arguments = arguments | {"num_classes": classes}
    if isinstance(encoder, VitEncoder):
        arguments["drop_path_rate"] = 0.0
    if isinstance(encoder, ConvEncoder):
        if not isinstance(classifier.fc_norm, nn.Identity):
            return None, None, "head"
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=classes)
        found = next(key for key, module in model.named_modules() if module is model.get_classifier())
        return name, arguments | {"global_pool": "avg"}, found
    if isinstance(classifier.fc_norm, nn.BatchNorm1d):
        return None, None, "head"
    has_fc_norm = isinstance(classifier.fc_norm, nn.LayerNorm)
    arguments["global_pool"] = "avg" if classifier.pooling == "mean" else "token"
    arguments["use_fc_norm" if isinstance(encoder.network, Beit | Eva) else "fc_norm"] = has_fc_norm
    if isinstance(encoder.network, Eva):
        arguments["use_post_transformer_norm"] = not has_fc_norm
    return name, arguments, "head"


@torch.no_grad()
def _timm_agrees(classifier: Classifier, name: str, arguments: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
    """Whether timm's model takes the tensors and says the same of an image.

    Tried out, because timm's networks differ in what lies between the last map and the head (ConvNeXt norms what is
    pooled, where our encoders norm first), and in their norms.
    """
    own = copy.deepcopy(classifier).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, own.encoder.config.channels, *own.encoder.image_size, generator=generator)
    with torch.random.fork_rng(devices=[]):  # its weights are drawn before they are replaced
        theirs = timm.create_model(name, **arguments)
    try:
        theirs.load_state_dict(tensors)
    except RuntimeError:
        return False
    logits = own(image)
    return bool((theirs.eval()(image) - logits).abs().max() <= 1e-4 * logits.abs().max())


def timm_model_of(path: Path) -> tuple[str | None, dict[str, Any]]:
    """Name and arguments by which timm alone builds the classifier of a file; no name where it has no such network."""
    _, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    name, arguments = header.get("timm_name"), header.get("timm_arguments")
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None, {}
    return name, arguments


def classifier_facts(path: Path) -> dict[str, Any]:
    """What a classifier file's header says of how it was made, as far as it does."""
    _, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    return {name: header[name] for name in ("protocol", "encoder_from", "start", "data", "version") if name in header}


def read_classifier(path: Path) -> FinishedClassifier:
    """The classifier in a file that `classifier_file` made. ValueError where it is another kind of file or damaged."""
    tensors, metadata = read_tensors(path)
    header = header_of(metadata, HEADER, KIND, path)
    try:
        encoder_config = config_of(EncoderConfig, header["encoder"])
        built = ClassifierConfig(**header["classifier"])
        classes = tuple(str(name) for name in header["classes"])
        mean, std = normalisation_of(header, encoder_config.channels)
        pixel_range = range_of(header)
        prefix, several = str(header["head_prefix"]), bool(header["several"])
        crop_ratio = None if header["crop_ratio"] is None else float(header["crop_ratio"])
    except WRONG_VALUES as error:
        raise ValueError(f"{path} has a damaged header") from error

    def build() -> Classifier:
        return Classifier(build_encoder(encoder_config, mask_token=False), built, len(classes))

    def fill(classifier: Classifier) -> None:
        outside = {key for key in classifier.state_dict() if not key.startswith("encoder.")}
        own = {f"{prefix}.weight": "head.weight", f"{prefix}.bias": "head.bias"} | {
            key: key for key in outside if not key.startswith("head.")
        }
        classifier.load_state_dict({own[key]: tensors[key] for key in own}, strict=False)
        classifier.encoder.network.load_state_dict({k: v for k, v in tensors.items() if k not in own})

    classifier = described(build, fill, path, "the classifier")
    return FinishedClassifier(
        classifier=classifier.eval(),
        classes=classes,
        mean=mean,
        std=std,
        crop_ratio=crop_ratio,
        several=several,
        pixel_range=pixel_range,
    )
