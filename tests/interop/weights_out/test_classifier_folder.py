"""Classifiers as folders that timm and transformers load by themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers

from tiny_classifiers import BARE, CLASSES, NETWORKS, tiny_task
from unmask.cli import main
from unmask.interop.weights_out.classifier_folder import export_classifier
from unmask.interop.weights_out.compare import Difference, real_images
from unmask.interop.weights_out.export import Target, WantedExport
from unmask.tasks.classification import ClassificationTask
from unmask.tasks.classifier_file import classifier_file, finished
from unmask.training.checkpoint import write_atomically
from unmask.views import normalise, to_float

SCALED = replace(NETWORKS["vit"], layer_scale=0.1)
REGISTERS = replace(NETWORKS["vit"], name="vit_base_patch14_reg4_dinov2")


def written(task: ClassificationTask, folder: Path) -> Path:
    path = folder / "classifier.safetensors"
    write_atomically(path, *classifier_file(task.eval(), {"data": "photos", "protocol": "finetune"}))
    return path


def exported(task: ClassificationTask, to: Target, folder: Path) -> list[Difference]:
    return export_classifier(written(task, folder), WantedExport(to=to, out=folder / "out"), lambda _: "card")


@pytest.mark.parametrize(
    "encoder",
    [NETWORKS["vit"], NETWORKS["sincos"], NETWORKS["relative"], NETWORKS["beit"], SCALED],
    ids=["learned", "sincos", "relative", "beit", "layer scale"],
)
def test_transformers_gives_our_logits(encoder: Any, tmp_path: Path) -> None:
    task = tiny_task(encoder=encoder)
    (found,) = exported(task, "transformers", tmp_path)
    assert found.what == "logits"
    assert found.relative < 1e-5
    # Beside our own check, the line that users write.
    model, told = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "out", output_loading_info=True, trust_remote_code=False
    )
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images_BCHW = real_images(task.classifier.encoder, None, 3)
    with torch.no_grad():
        theirs = model.eval()(normalise(to_float(images_BCHW), task.mean, task.std)).logits
    torch.testing.assert_close(theirs, finished(task)(images_BCHW), rtol=1e-4, atol=1e-5)
    assert model.config.id2label == dict(enumerate(CLASSES))


def test_several_classes_an_image_are_said_so(tmp_path: Path) -> None:
    task = tiny_task(targets_NK=torch.zeros(4, len(CLASSES)))
    exported(task, "transformers", tmp_path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["problem_type"] == "multi_label_classification"


@pytest.mark.parametrize(
    ("encoder", "config"),
    [
        (NETWORKS["vit"], BARE),
        (NETWORKS["vit"], replace(BARE, pooling="class", norm="encoder")),
        (REGISTERS, BARE),
        (NETWORKS["eva02"], BARE),
        (NETWORKS["resnet18"], BARE),
    ],
    ids=["mean", "class token", "registers", "rotary", "convolutions"],
)
def test_timm_gives_our_logits(encoder: Any, config: Any, tmp_path: Path) -> None:
    task = tiny_task(replace(config, test_crop=0.9), encoder)
    (found,) = exported(task, "timm", tmp_path)
    assert found.relative < 1e-5
    model: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images_BCHW = real_images(task.classifier.encoder, None, 3)
    with torch.no_grad():
        theirs = model(normalise(to_float(images_BCHW), task.mean, task.std))
    torch.testing.assert_close(theirs, finished(task)(images_BCHW), rtol=1e-4, atol=1e-5)
    assert tuple(model.pretrained_cfg["label_names"]) == CLASSES
    assert timm.data.resolve_model_data_config(model)["crop_pct"] == 0.9


@pytest.mark.parametrize(
    ("encoder", "config", "to", "sentence"),
    [
        ("vit", replace(BARE, pooling="class"), "transformers", "normed mean of a ViT's patches"),
        ("vit", replace(BARE, norm="encoder"), "transformers", "normed mean of a ViT's patches"),
        ("vit", replace(BARE, head="attentive"), "transformers", "normed mean of a ViT's patches"),
        ("eva02", BARE, "transformers", "registers or rotations; export to timm"),
        ("resnet18", BARE, "transformers", "export to timm"),
        ("vit", replace(BARE, head="attentive"), "timm", "timm has no network with such a head"),
        ("vit", BARE, "onnx", "a classifier is exported to timm or transformers, not onnx"),
    ],
)
def test_what_others_lack_is_refused(encoder: str, config: Any, to: Target, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        exported(tiny_task(config, NETWORKS[encoder]), to, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.safetensors"]


def test_the_command_takes_a_run_folder_and_writes_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tiny_task(), tmp_path)
    assert main(["export", str(tmp_path), "--to", "timm", "-o", str(tmp_path / "out"), "--license", "mit"]) == 0
    assert "logits" in capsys.readouterr().out
    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert "license: mit" in card
    assert "| classes | bird, cat, dog, eel, fox, gnu, hen |" in card
    assert "| data | photos |" in card
    assert main(["export", str(tmp_path), "--to", "onnx", "-o", str(tmp_path / "again.onnx")]) == 2
    assert capsys.readouterr().err == "unmask: a classifier is exported to timm or transformers, not onnx\n"
