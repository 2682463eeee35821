"""Classifier files: what is written is read again and says the same, by us and by timm alone; the rest is refused."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiny_classifiers import BARE, CLASSES, MEAN, NETWORKS, STD, TINY, batch_of, tiny_task
from unmask import __version__
from unmask.models.encoder_config import EncoderConfig
from unmask.tasks import classifier_file as module
from unmask.tasks.classification import ClassificationTask, ClassifierConfig
from unmask.tasks.classifier_file import HEADER, classifier_file, finished, read_classifier
from unmask.training.trainer import Trainer, TrainingConfig

SEVERAL = torch.ones(3, len(CLASSES))
KINDS: dict[str, tuple[ClassifierConfig, EncoderConfig, bool, bool]] = {
    # The configuration, the encoder, whether images may have several classes, whether timm has such a network.
    "fc norm": (BARE, TINY, False, True),
    "class token": (replace(BARE, pooling="class"), TINY, False, True),
    "the encoder's norm": (replace(BARE, norm="encoder"), TINY, False, True),
    "class token under the encoder's norm": (replace(BARE, norm="encoder", pooling="class"), TINY, False, True),
    "sin-cos": (BARE, NETWORKS["sincos"], False, True),
    "tables of their own": (BARE, NETWORKS["relative"], False, True),
    "a shared table": (replace(BARE, own_tables=False), NETWORKS["relative"], False, True),
    "beit": (replace(BARE, norm="encoder"), NETWORKS["beit"], False, True),
    "eva02": (BARE, NETWORKS["eva02"], False, True),
    "eva02, the encoder's norm": (replace(BARE, norm="encoder", pooling="class"), NETWORKS["eva02"], False, True),
    "norms with an epsilon of their own": (BARE, replace(TINY, name="vit_base_patch16_clip_224"), False, True),
    "no final norm": (BARE, replace(TINY, final_norm=False), False, True),
    "no norm at all": (replace(BARE, norm="encoder"), replace(TINY, final_norm=False), False, False),
    "resnet18": (BARE, NETWORKS["resnet18"], False, True),
    "convnext": (BARE, NETWORKS["convnext_atto"], False, False),
    "mobilenet": (BARE, EncoderConfig(name="mobilenetv3_small_050", image_height=64, image_width=64), False, False),
    "efficientnet": (BARE, EncoderConfig(name="efficientnet_b0", image_height=64, image_width=64), False, True),
    "convmae": (BARE, NETWORKS["convmae"], False, False),
    "igpt": (BARE, NETWORKS["igpt"], False, False),
    "attentive": (replace(BARE, head="attentive", norm="batch", tuned_blocks=0), TINY, False, False),
    "attentive on maps": (replace(BARE, head="attentive", norm="batch"), NETWORKS["resnet18"], False, False),
    "batch norm head": (replace(BARE, norm="batch"), TINY, False, False),
    "several classes": (BARE, TINY, True, True),
    "another size": (replace(BARE, image_height=48, image_width=64), TINY, False, True),
    "another size, sin-cos": (replace(BARE, image_height=48), NETWORKS["sincos"], False, True),
    "another size, tables": (replace(BARE, image_height=48), NETWORKS["relative"], False, True),
    "another size, convmae": (replace(BARE, image_height=64), NETWORKS["convmae"], False, False),
    "another size, igpt": (replace(BARE, image_height=16), NETWORKS["igpt"], False, False),
    "averaged": (replace(BARE, average=0.5, drop_path=0.2), TINY, False, True),
    "averaged, batch norm": (replace(BARE, average=0.5), NETWORKS["resnet18"], False, True),
    "one channel": (BARE, replace(TINY, channels=1), False, True),
}


def trained(kind: str) -> ClassificationTask:
    """A task after two steps, so that norms have moved and averages differ."""
    config, encoder, several, _ = KINDS[kind]
    task = tiny_task(replace(config, test_crop=0.9), encoder, targets_NK=SEVERAL if several else None)
    trainer = Trainer(
        task, TrainingConfig(epochs=2, batch_size=4, workers=0), steps_per_epoch=1, device=torch.device("cpu")
    )
    batch = batch_of(task.classifier.encoder.image_size, channels=len(task.mean))
    batch = replace(batch, indices=torch.tensor([0, 1, 2, 0]))
    for step in range(2):
        trainer.train_step([replace(batch, seed=step)])
    return task


def write(path: Path, task: ClassificationTask) -> Path:
    tensors, metadata = classifier_file(task, {"protocol": "finetune", "version": __version__})
    save_file(tensors, path, metadata=metadata)
    return path


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    assert isinstance(header, dict)
    return header


def pictures(task: ClassificationTask) -> Tensor:
    return batch_of(task.classifier.encoder.image_size, 3, channels=len(task.mean)).crops[0][:, 0]


def floats(images_BCHW: Tensor) -> Tensor:
    """Normalised images, computed another way."""
    channels = images_BCHW.shape[1]
    mean, std = (torch.tensor(values[:channels], dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return ((images_BCHW.double() / 255 - mean) / std).float()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read_again_and_by_timm_alone(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.enable_grad():
        task = trained(kind)
    path = write(tmp_path / "classifier.safetensors", task)
    task.eval()
    images = pictures(task)
    expected = task.judged(floats(images))
    assert expected.std() > 0.01

    read = read_classifier(path)
    assert not any(part.training for part in read.classifier.modules())
    several, by_timm = KINDS[kind][2:]
    assert (read.classes, read.several, read.crop_ratio) == (CLASSES, several, 0.9)
    assert (read.mean, read.std) == (task.mean, task.std)
    assert (read.image_size, read.channels) == (task.classifier.encoder.image_size, len(task.mean))
    torch.testing.assert_close(read(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read(images), finished(task)(images), rtol=0, atol=0)
    ours, again = task.judged.state_dict(), read.classifier.state_dict()
    assert ours.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in ours.items())

    header = header_of(path)
    assert (header["timm_name"] is not None) == by_timm
    if not by_timm:
        assert header["timm_arguments"] is None
        assert header["read_with"] == "unmask.tasks.classifier_file.read_classifier; timm has no such network"
        return
    assert header["read_with"] == "timm"
    monkeypatch.chdir(tmp_path)
    # The lines are those of the module's docstring, run as they stand there.
    documented = textwrap.dedent((module.__doc__ or "").split(":\n\n", 1)[1].split("\n\n`model(images)`")[0])
    assert len(documented.strip().splitlines()) == 3
    names: dict[str, Any] = {"json": json, "safe_open": safe_open, "load_file": load_file, "timm": timm}
    exec(documented, names)
    torch.testing.assert_close(names["model"].eval()(floats(images)), expected, rtol=1e-4, atol=1e-4)
    assert names["header"]["classes"] == list(CLASSES)


@pytest.mark.parametrize("kind", ["averaged", "resnet18"])
def test_writing_leaves_the_task_as_it_is(kind: str, tmp_path: Path) -> None:
    task = trained(kind).train()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    modes = [part.training for part in task.modules()]
    torch.manual_seed(0)
    state = torch.get_rng_state()
    write(tmp_path / "classifier.safetensors", task)
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert [part.training for part in task.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_averaged_weights_are_the_ones_kept(tmp_path: Path) -> None:
    task = trained("averaged")
    found = load_file(write(tmp_path / "classifier.safetensors", task))
    assert task.average is not None
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(found[name], task.average.encoder.network.state_dict()[name])
    assert not torch.equal(found[name], task.classifier.encoder.network.state_dict()[name])


def test_the_header_says_what_the_classifier_is(tmp_path: Path) -> None:
    header = header_of(write(tmp_path / "classifier.safetensors", trained("several classes")))
    assert (header["format"], header["protocol"], header["version"]) == (1, "finetune", __version__)
    assert (header["classes"], header["several"], header["crop_ratio"]) == (list(CLASSES), True, 0.9)
    assert (header["mean"], header["std"]) == (list(MEAN), list(STD))
    assert header["classifier"] == {"head": "linear", "pooling": "mean", "norm": "fc"}
    assert header["timm_name"] == "vit_tiny_patch16_224"
    assert header["timm_arguments"]["drop_path_rate"] == 0.0


@torch.no_grad()
@pytest.mark.parametrize("kind", ["fc norm", "resnet18", "attentive"])
def test_noise_is_added_before_normalisation(kind: str) -> None:
    with torch.enable_grad():
        task = trained(kind).eval()
    classifier, images = finished(task), pictures(task)
    logits = classifier(images)
    assert (logits.dtype, logits.device.type, tuple(logits.shape)) == (torch.float32, "cpu", (3, len(CLASSES)))
    torch.testing.assert_close(classifier.noisy_logits(images, torch.zeros(images.shape)), logits, rtol=0, atol=0)
    noise = torch.randn(images.shape)
    expected = task.classifier(floats(images) + noise / torch.tensor(STD)[:, None, None])
    torch.testing.assert_close(classifier.noisy_logits(images, noise), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits, atol=1e-3)


def test_a_finished_classifier_needs_no_gradient_and_goes_into_eval_mode() -> None:
    task = trained("fc norm").train()
    classifier = finished(task)
    images = pictures(task)
    assert task.training, "a look at the task does not change its mode"
    assert not classifier(images).requires_grad
    assert not classifier.noisy_logits(images, torch.zeros(images.shape)).requires_grad
    classifier.to(torch.device("cpu"))
    assert not any(part.training for part in classifier.classifier.modules())
    half = finished(task)
    half.classifier.to(torch.float64)
    assert isinstance(half.classifier.head, nn.Linear)


# What is refused.


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("file") / "classifier.safetensors", trained("fc norm"))


def spoilt(
    file: Path,
    folder: Path,
    *,
    header: Callable[[dict[str, Any]], Any] = lambda header: header,
    tensors: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors,
) -> Path:
    path = folder / "classifier.safetensors"
    changed = header(header_of(file))
    text = changed if isinstance(changed, str) else json.dumps(changed)
    save_file(tensors(load_file(file)), path, metadata={HEADER: text})
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "{not json",
        "[]",
        "null",
        {"encoder": None},
        {"encoder": {"no_such_knob": 1}},
        {"encoder": {"patch_size": 0}},
        {"classifier": None},
        {"classifier": {"head": "linear", "norms": "fc"}},
        {"classes": None},
        {"classes": 3},
        {"mean": None},
        {"std": "wide"},
        {"crop_ratio": "all"},
    ],
)
def test_a_damaged_header_is_refused(damage: str | dict[str, Any], file: Path, tmp_path: Path) -> None:
    path = spoilt(file, tmp_path, header=lambda header: damage if isinstance(damage, str) else header | damage)
    with pytest.raises(ValueError, match=f"^{path} has a damaged header$"):
        read_classifier(path)


@pytest.mark.parametrize(
    "key", ["encoder", "classifier", "classes", "mean", "std", "head_prefix", "several", "crop_ratio"]
)
def test_a_header_without_a_needed_entry_is_refused(key: str, file: Path, tmp_path: Path) -> None:
    path = spoilt(file, tmp_path, header=lambda header: {name: header[name] for name in header if name != key})
    with pytest.raises(ValueError, match=f"^{path} has a damaged header$"):
        read_classifier(path)


def test_another_format_is_refused(file: Path, tmp_path: Path) -> None:
    path = spoilt(file, tmp_path, header=lambda header: header | {"format": 2})
    sentence = f"{path} has classifier format 2, this version reads 1: a newer unmask wrote it"
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        read_classifier(path)


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "change",
    [
        _without("head.weight"),
        _without("fc_norm.bias"),
        _without("blocks.1.attn.qkv.weight"),
        lambda tensors: tensors | {"extra": torch.zeros(1)},
        lambda tensors: tensors | {"head.bias": torch.zeros(99)},
        lambda tensors: tensors | {"pos_embed": torch.zeros(1, 5, 48)},
    ],
)
def test_tensors_that_the_header_does_not_describe_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], file: Path, tmp_path: Path
) -> None:
    path = spoilt(file, tmp_path, tensors=change)
    with pytest.raises(ValueError, match=f"^{path} does not hold the classifier that its header describes$"):
        read_classifier(path)


@pytest.mark.parametrize(
    "changes",
    [{"classes": ["one", "two"]}, {"classifier": {"head": "attentive", "pooling": "mean", "norm": "fc"}}],
)
def test_a_header_of_another_classifier_is_refused(changes: dict[str, Any], file: Path, tmp_path: Path) -> None:
    path = spoilt(file, tmp_path, header=lambda header: header | changes)
    with pytest.raises(ValueError, match=f"^{path} does not hold the classifier that its header describes$"):
        read_classifier(path)


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"is not a classifier written by unmask \(its header is missing\)$"):
        read_classifier(tmp_path / "foreign.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:-50])
    for path in (cut, tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"^{path} is not a readable safetensors file$"):
            read_classifier(path)
