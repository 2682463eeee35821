"""The programs in examples/, each as a process of its own: they end with the very weights of `unmask pretrain`, resume,
and what they export is what others' code computes with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import unmask
from tiny_classifiers import CLASSES, tiny_task
from tiny_runs import assert_same_weights, draw_images
from tiny_supervised import write_encoder
from unmask.cli import main
from unmask.pretrain import pretrain
from unmask.run_folder import RunFolder
from unmask.tasks.classifier_file import classifier_file, finished
from unmask.training.checkpoint import write_atomically

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA, BATCH, STEPS = "builtin:emoji", 16, 6


def run(name: str, *arguments: object, folder: Path, launcher: tuple[object, ...] = ()) -> str:
    """What an example prints, started in `folder`."""
    command = [sys.executable, *map(str, launcher), str(EXAMPLES / name), *map(str, arguments)]
    # Offline, and with as many threads as here: sums in another order round otherwise.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def our_own(method: str, steps: int, folder: Path, parts: int = 1) -> Path:
    """The encoder file of `unmask pretrain` for what the examples train: the same settings, data and seed."""
    source = unmask.open_source(DATA)
    wishes = unmask.Wishes(encoder="vit_tiny_patch16_224", image_size=(32, 32), patch_size=8)
    settings, _ = unmask.fit_settings(unmask.METHODS[method].Config(), wishes, source)
    training = unmask.TrainingConfig(
        epochs=steps / (len(source) // BATCH), batch_size=BATCH, parts=parts, workers=0, device="cpu"
    )
    config = unmask.RunConfig(data=DATA, method=method, settings=settings, training=training)
    with pytest.MonkeyPatch.context() as patch:
        # Our trainer multiplies by NumPy where that is quicker on this machine, which rounds otherwise.
        patch.setattr("unmask.training.trainer.gains_by_products", lambda trainee: False)
        pretrain(config, RunFolder(folder), Console(quiet=True))
    return RunFolder(folder).encoder_file


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data2vec: a target that moves after the step, light heads."""
    return our_own("data2vec", STEPS, tmp_path_factory.mktemp("runs") / "data2vec")


def same_file(one: Path, other: Path) -> None:
    assert_same_weights(one, other)
    assert one.read_bytes() == other.read_bytes()  # the header, too


OPTIONS = ("--method", "data2vec", "--steps", STEPS)


def test_the_contract_in_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES.parent / "docs" / "loops.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    exec(block, {})
    assert unmask.open_encoder("encoder.safetensors").method == "simmim"


def test_every_program_has_its_row() -> None:
    programs = {path.name for path in EXAMPLES.glob("*.py")}
    for page in (EXAMPLES / "README.md", EXAMPLES.parent / "docs" / "loops.md"):
        assert set(re.findall(r"^\| [`\[](\w+\.py)", page.read_text(), flags=re.M)) == programs


def test_the_plain_loop_is_our_own_to_the_last_bit(reference: Path, tmp_path: Path) -> None:
    said = run("plain_loop.py", *OPTIONS, "--out", "encoder.safetensors", folder=tmp_path)
    assert f"step {STEPS}/{STEPS} features" in said
    same_file(tmp_path / "encoder.safetensors", reference)


def test_the_plain_loop_moves_a_target_that_goes_before_the_step(tmp_path: Path) -> None:
    run("plain_loop.py", "--method", "sim", "--steps", 2, "--batch-size", BATCH, folder=tmp_path)
    same_file(tmp_path / "encoder.safetensors", our_own("sim", 2, tmp_path / "run"))


def test_accelerate_on_two_ranks_is_our_own_in_two_parts(tmp_path: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    options = ("--method", "data2vec", "--steps", 3, "--cpu")
    said = run("accelerate_loop.py", *options, folder=tmp_path, launcher=launcher)
    assert said.count("step 3/3 features") == 1
    same_file(tmp_path / "encoder.safetensors", our_own("data2vec", 3, tmp_path / "run", parts=2))


def test_lightning_is_our_own_to_the_last_bit_also_when_it_resumes(reference: Path, tmp_path: Path) -> None:
    run("lightning_module.py", *OPTIONS, folder=tmp_path)
    same_file(tmp_path / "encoder.safetensors", reference)
    half = tmp_path / "checkpoints" / "epoch=0-step=5.ckpt"
    run("lightning_module.py", *OPTIONS, "--resume", half, "--out", "resumed.safetensors", folder=tmp_path)
    same_file(tmp_path / "resumed.safetensors", reference)


def test_transformers_trainer_is_our_own_to_the_last_bit_also_when_it_resumes(reference: Path, tmp_path: Path) -> None:
    run("hf_trainer.py", *OPTIONS, "--save-every", STEPS - 1, folder=tmp_path)
    same_file(tmp_path / "encoder.safetensors", reference)
    half = tmp_path / "trainer" / f"checkpoint-{STEPS - 1}"
    run("hf_trainer.py", *OPTIONS, "--resume", half, "--out", "resumed.safetensors", folder=tmp_path)
    same_file(tmp_path / "resumed.safetensors", reference)


def test_timm_fine_tunes_an_export(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder.safetensors")
    assert main(["export", str(encoder), "--to", "timm", "-o", str(tmp_path / "timm-encoder")]) == 0
    for split, images in (("train", 64), ("validation", 16)):
        draw_images(tmp_path / "photos" / split, images)
    said = run("timm_finetune.py", "timm-encoder", "--data", "photos", "--epochs", 4, "--lr", 3e-3, folder=tmp_path)
    scores = [float(score) for score in re.findall(r"top-1 ([\d.]+) %", said)]
    assert len(scores) == 4
    assert scores[-1] >= 90  # red or blue
    model = timm.create_model(f"local-dir:{tmp_path / 'timm-encoder'}", num_classes=2)
    tuned = torch.load(tmp_path / "finetuned.pt", weights_only=True)
    model.load_state_dict(tuned)
    begun, name = unmask.open_encoder(str(encoder)).encoder.network.state_dict(), "blocks.0.attn.qkv.weight"
    assert not torch.equal(tuned[name], begun[name])


def test_the_pipeline_answers_as_our_classifier_does(tmp_path: Path) -> None:
    task = tiny_task().eval()
    write_atomically(tmp_path / "classifier.safetensors", *classifier_file(task, {"data": "photos"}))
    options = ["--to", "transformers", "-o", str(tmp_path / "hf-classifier")]
    assert main(["export", str(tmp_path / "classifier.safetensors"), *options]) == 0
    # Of the classifier's own size, so that nothing is resized.
    images = sorted(draw_images(tmp_path / "photos", 2, classes=("",)).glob("*.png"))
    said = run("transformers_pipeline.py", "hf-classifier", *images, "--top", len(CLASSES), folder=tmp_path)
    lines = said.strip().splitlines()
    assert len(lines) == len(images)
    for line, image in zip(lines, images, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(image).convert("RGB"))).permute(2, 0, 1)
        ours = 100 * finished(task)(pixels[None]).softmax(dim=1)[0]
        theirs = {label: float(score) for label, score in re.findall(r"(\w+) ([\d.]+) %", line)}
        assert theirs == pytest.approx(dict(zip(CLASSES, ours.tolist(), strict=True)), abs=0.011)
