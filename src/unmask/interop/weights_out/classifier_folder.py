"""A finished classifier as a folder that timm or transformers load as it is, with the names of its classes.

timm has most of our classifiers: the header of the file says which of its networks one is. In transformers the only
head on the normed mean of the patches is BEiT's. A plain ViT is a BEiT as well, but for the bias of its keys: that adds
the same to all of a query's logits, so attention does not change without it.

Shape legend: B images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.beit import Beit
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unmask.extras import require
from unmask.interop.huggingface import CONFIG, PREPROCESSOR
from unmask.interop.weights_out.compare import Difference, difference, normalised, real_images
from unmask.interop.weights_out.export import IMAGES, Card, WantedExport, check_wish, put_in_place
from unmask.interop.weights_out.shared import margin
from unmask.interop.weights_out.timm_folder import data_facts
from unmask.interop.weights_out.transformers_folder import (
    Model,
    beit_model,
    check_plain,
    common_settings,
    positioned,
    preprocessor,
    processed,
    quietly,
    their_tensors,
    write_json,
)
from unmask.models.model_file import read_tensors
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.vit import VitEncoder
from unmask.tasks.classifier_file import FinishedClassifier, read_classifier, timm_model_of
from unmask.training.checkpoint import write_atomically


def export_classifier(path: Path, wanted: WantedExport, card: Card) -> list[Difference]:
    """Write the classifier of a file as a folder for timm or transformers, and return how far its logits are from ours;
    `card` makes its README.md.

    ValueError for what the library cannot hold and for a place that is taken; Failure for logits that differ. After
    either nothing is left.
    """
    if wanted.to not in ("timm", "transformers"):
        raise ValueError(f"a classifier is exported to timm or transformers, not {wanted.to}")
    check_wish(wanted)
    finished = read_classifier(path).to(torch.device("cpu"))
    images_BCHW = real_images(finished.classifier.encoder, wanted.data, IMAGES, finished.pixel_range)

    def write(folder: Path) -> list[Difference]:
        if wanted.to == "timm":
            return _write_timm(path, finished, images_BCHW, folder)
        return _write_transformers(finished, images_BCHW, folder)

    return put_in_place(wanted, write, card)


def _as_pretrained(finished: FinishedClassifier) -> PretrainedEncoder:
    return PretrainedEncoder(
        encoder=finished.classifier.encoder,
        mean=finished.mean,
        std=finished.std,
        origin="a classifier",
        pixel_range=finished.pixel_range,
    )


def _crop_ratio(finished: FinishedClassifier) -> float:
    return margin(finished.classifier.encoder) if finished.crop_ratio is None else finished.crop_ratio


@torch.no_grad()
def _write_timm(path: Path, finished: FinishedClassifier, images: Tensor, folder: Path) -> list[Difference]:
    name, arguments = timm_model_of(path)
    if name is None:
        raise ValueError("timm has no network with such a head; keep the classifier as it is, which unmask reads")
    pretrained, classes = _as_pretrained(finished), list(finished.classes)
    values = {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": finished.classifier.encoder.width,
        "label_names": classes,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": data_facts(pretrained, name, _crop_ratio(finished)) | {"num_classes": len(classes)},
    }
    write_json(folder / CONFIG, values)
    tensors, _ = read_tensors(path)
    write_atomically(folder / "model.safetensors", tensors, {"format": "pt"})
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return [difference("logits", model(normalised(pretrained, images)), finished(images))]


@torch.no_grad()
def _write_transformers(finished: FinishedClassifier, images: Tensor, folder: Path) -> list[Difference]:
    library = require("transformers", "--to transformers needs")
    encoder, pretrained = finished.classifier.encoder, _as_pretrained(finished)
    model = _beit_classifier(finished)
    labels = {
        "id2label": {str(number): name for number, name in enumerate(finished.classes)},
        "label2id": {name: number for number, name in enumerate(finished.classes)},
        "problem_type": "multi_label_classification" if finished.several else "single_label_classification",
    }
    values = {"architectures": [model.architecture], "model_type": model.kind, "dtype": "float32"}
    write_json(folder / CONFIG, values | model.settings | labels)
    write_json(folder / PREPROCESSOR, preprocessor(pretrained, _crop_ratio(finished)))
    head = finished.classifier.head
    tensors = {f"beit.{name}": value for name, value in their_tensors(model, encoder).items()}
    tensors |= {f"classifier.{name}": value for name, value in head.state_dict().items()}
    write_atomically(folder / "model.safetensors", tensors, {"format": "pt"})
    place = os.fspath(folder)
    with quietly(library):
        theirs: Any = library.AutoModelForImageClassification.from_pretrained(place, trust_remote_code=False).eval()
    return [difference("logits", theirs(processed(library, place, images)).logits, finished(images))]


def _beit_classifier(finished: FinishedClassifier) -> Model:
    """The BeitForImageClassification that computes the same. ValueError where there is none."""
    classifier, encoder = finished.classifier, finished.classifier.encoder
    normed_mean = classifier.pooling == "mean" and isinstance(classifier.fc_norm, nn.LayerNorm)
    if classifier.attentive is not None or not normed_mean or not isinstance(encoder, VitEncoder):
        raise ValueError(
            "transformers has no classifier but on the normed mean of a ViT's patches (--task.pooling mean --task.norm "
            "fc); export to timm instead"
        )
    if type(encoder.vit) is Beit:
        model = beit_model(encoder)
    elif type(encoder.vit) is VisionTransformer and not _has_more(encoder.vit):
        check_plain(encoder, Block, encoder.vit.blocks)
        model = _plain_as_beit(encoder)
    else:
        raise ValueError(
            "transformers has no such classifier of a network with registers or rotations; export to timm instead"
        )
    pooler = {f"pooler.layernorm.{name}": value for name, value in classifier.fc_norm.state_dict().items()}
    return Model(
        kind="beit",
        architecture="BeitForImageClassification",
        settings=model.settings | {"use_mean_pooling": True},
        tensors=model.tensors | pooler,
    )


def _has_more(vit: VisionTransformer) -> bool:
    """What a BEiT has not."""
    return vit.reg_token is not None or not isinstance(vit.norm_pre, nn.Identity)


def _plain_as_beit(encoder: VitEncoder) -> Model:
    tensors = {}
    for name, value in positioned(encoder).items():
        if not name.endswith("attn.k.bias"):
            tensors[name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")] = value
    first: Any = encoder.vit.blocks[0]
    scaled = any(name.endswith("gamma_1") for name in tensors)
    if first.attn.qkv.bias is None:
        zeros = {
            f"blocks.{b}.attn.{part}.bias": torch.zeros(encoder.width) for b in range(encoder.depth) for part in "qv"
        }
        tensors |= zeros
    settings = common_settings(encoder) | {
        "intermediate_size": first.mlp.fc1.out_features,
        "use_absolute_position_embeddings": True,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": False,
        "layer_scale_init_value": 0.1 if scaled else 0.0,
        "drop_path_rate": 0.0,
    }
    return Model(kind="beit", architecture="BeitModel", settings=settings, tensors=tensors)
