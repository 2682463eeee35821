"""`unmask tokenizer train`: from images to a file that methods open; stopped, killed and refused as any run."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tiny_runs import CommandProcess, assert_same_weights, draw_images, last_logged_step, read_records
from tiny_tokenizers import tiny_teacher
from unmask.cli import main
from unmask.commands.tokenizer import default_vocabulary
from unmask.models.pretrained import encoder_file
from unmask.models.tokenizers.dvae import DVAE
from unmask.models.tokenizers.file import open_tokenizer
from unmask.models.tokenizers.vq import VQ
from unmask.models.tokenizers.vqkd import VQKD

SMALL = ["--image-size", "16", "24", "--stride", "8", "--vocabulary", "16", "--workers", "0", "--device", "cpu"]
CONV = ["--tokenizer.conv.width", "4", "--tokenizer.conv.blocks", "1"]
QUICK = ["--epochs", "2", "--batch-size", "8", "--log-every", "1"]
VIT = ["--tokenizer.encoder.name", "vit_tiny_patch16_224", "--tokenizer.encoder.width", "24"]
VIT += ["--tokenizer.encoder.depth", "1", "--tokenizer.encoder.heads", "2", "--tokenizer.decoder-depth", "1"]


def train(data: Path, out: Path, *options: str) -> list[str]:
    return ["tokenizer", "train", str(data), "--out", str(out), *SMALL, *QUICK, *options]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """An encoder file."""
    path = tmp_path / "teacher.safetensors"
    tensors, metadata = encoder_file(tiny_teacher().encoder, mean=(0.5,) * 3, std=(0.25,) * 3, facts={})
    save_file(tensors, path, metadata=metadata)
    return path


def test_images_in_tokenizer_out(photo_folder: Path, tmp_path: Path) -> None:
    """In a process of its own, as a user runs it."""
    (photo_folder / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "made" / "tokens.safetensors"
    ended = CommandProcess(train(photo_folder, out, *CONV, "--max-bad-share", "0.5"), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0] == "tokenizer  dvae, 16 codes, teacher none"
    said = dict(line.split(maxsplit=1) for line in lines if line.startswith(("quality:", "tokenizer:", "picture:")))
    quality = said["quality:"]
    assert "codes in use" in quality
    assert "perplexity" in quality
    assert said["tokenizer:"] == str(out)
    tokenizer = open_tokenizer(out)
    assert isinstance(tokenizer, DVAE)
    assert tokenizer.tokens_for(torch.rand(2, 3, 60, 90), (4, 6)).shape == (2, 24)
    with Image.open(said["picture:"]) as image:
        assert image.format == "PNG"
    run = out.with_suffix("")
    steps = read_records(run, "step")
    assert [record["step"] for record in steps] == [1, 2]
    assert set(steps[0]["losses"]) == {"reconstruction", "divergence"}
    assert read_records(run, "quality")[-1]["figures"]["vocabulary"] == 16
    assert "broken.jpg" in (run / "bad_files.txt").read_text()


def test_each_kind_with_its_teacher(photo_folder: Path, teacher: Path, tmp_path: Path) -> None:
    shared = ["--teacher", str(teacher), "--tokenizer.codebook.width", "4"]
    vq, vqkd = tmp_path / "vq.safetensors", tmp_path / "vqkd.safetensors"
    options = ["--kind", "vq", *shared, *CONV, "--tokenizer.perceptual-layers", "2"]
    assert main(train(photo_folder, vq, *options)) == 0
    assert main(train(photo_folder, vqkd, "--kind", "vqkd", *shared, *VIT)) == 0
    assert set(read_records(vq.with_suffix(""), "step")[0]["losses"]) == {"reconstruction", "commitment", "perceptual"}
    assert set(read_records(vqkd.with_suffix(""), "step")[0]["losses"]) == {"distillation", "commitment"}
    assert isinstance(open_tokenizer(vq), VQ)
    opened = open_tokenizer(vqkd)
    assert isinstance(opened, VQKD)
    assert opened.config.teacher_width == 24
    assert vq.with_suffix(".png").exists()
    assert not vqkd.with_suffix(".png").exists()


def test_stopped_and_killed_runs_end_as_unbroken_ones(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data")
    options = ["--kind", "vq", *CONV, "--tokenizer.codebook.restart-after", "3", "--epochs", "20"]
    options += ["--checkpoint-every", "1"]
    unbroken, broken = tmp_path / "unbroken.safetensors", tmp_path / "broken.safetensors"
    assert CommandProcess(train(data, unbroken, *options), tmp_path).end().code == 0
    run = broken.with_suffix("")

    process = CommandProcess(train(data, broken, *options), tmp_path)
    process.wait_until(lambda: last_logged_step(run) >= 5)
    process.signal(signal.SIGINT)
    ended = process.end()
    assert (ended.code, ended.err) == (75, "")
    assert ended.out.splitlines()[-1].startswith("stopped by SIGINT at step ")
    assert ended.out.splitlines()[-1].endswith("all saved; the same command resumes")
    assert not broken.exists()

    stopped = last_logged_step(run)
    process = CommandProcess(train(data, broken, *options), tmp_path)
    process.wait_until(lambda: last_logged_step(run) >= stopped + 5)
    process.signal(signal.SIGKILL)
    assert process.end().code == -signal.SIGKILL

    ended = CommandProcess(train(data, broken, *options), tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert "resuming" in ended.out
    assert_same_weights(unbroken, broken)
    assert unbroken.with_suffix(".png").read_bytes() == broken.with_suffix(".png").read_bytes()
    steps, expected = read_records(run, "step"), read_records(unbroken.with_suffix(""), "step")
    assert [(record["step"], record["losses"]) for record in steps] == [
        (record["step"], record["losses"]) for record in expected
    ]
    # Once more, and with the checkpoints cleared away: nothing is left to do, and the same is said.
    before, said = broken.read_bytes(), ended.out.splitlines()[-3:]
    for _ in range(2):
        again = CommandProcess(train(data, broken, *options), tmp_path).end()
        assert (again.code, again.out.splitlines()[4:]) == (0, said)
        assert broken.read_bytes() == before
        for path in (run / "checkpoints").iterdir():
            path.unlink()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--kind", "vqkd"], "a vqkd tokenizer learns from a teacher; give --teacher RUN or --teacher timm:NAME"),
        (["--kind", "magic"], "--kind cannot be 'magic'; choose one of dvae, vq, vqkd; see unmask tokenizer --help"),
        (["--teacher", "nowhere"], "there is no run folder or encoder file nowhere"),
        (["--image-size", "20"], "image size 20x20 is not divisible by the tokenizer's stride 8"),
        (["--image-size", "1", "2", "3"], "--image-size takes one number or two (height and width), got 3"),
        (["--image-size", "0"], "--image-size must be at least 1 pixel, got 0"),
        (["--stride", "0"], "--stride must be at least 1 pixel, got 0"),
        (["--stride", "6"], "the tokenizer's stride must be a power of two, got 6"),
        (["--vocabulary", "1"], "a vocabulary needs at least 2 codes, got 1"),
        (["--channels", "0"], "images need at least 1 channel, got 0"),
        (["--batch-size", "99"], "a batch of 99 is larger than the data: {data} has 12 images"),
        (["--out", "tokens.pt"], "--out must end in .safetensors, got tokens.pt"),
        (["--device", "abacus"], "unknown device 'abacus'; use auto, cpu, cuda, cuda:1 or mps"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(
    options: list[str], sentence: str, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens.safetensors"
    assert main(train(photo_folder, out, *options)) == 2
    assert capsys.readouterr().err == f"unmask: {sentence.format(data=photo_folder)}\n"
    assert not out.exists()
    assert not out.with_suffix("").exists()


def test_what_lies_there_is_never_overwritten(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tokens.safetensors"
    out.write_text("mine")
    assert main(train(photo_folder, out, *CONV)) == 2
    assert capsys.readouterr().err == f"unmask: {out} exists and is of no run of ours; choose another --out\n"
    assert out.read_text() == "mine"
    out.unlink()
    assert main(train(photo_folder, out, *CONV)) == 0
    capsys.readouterr()
    folder = out.with_suffix("")
    assert main(train(photo_folder, out, *CONV, "--seed", "1")) == 2
    sentence = f"{folder} holds another run (its seed is 0, not 1); choose another --out"
    assert capsys.readouterr().err == f"unmask: {sentence}\n"
    (folder / "config.json").write_text(json.dumps({"format": 1}))
    assert main(train(photo_folder, out, *CONV)) == 2
    assert capsys.readouterr().err == f"unmask: {folder} is not the folder of a tokenizer; choose another --out\n"


def test_the_command_needs_to_know_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenizer"]) == 2
    assert capsys.readouterr().err.startswith("unmask: unmask tokenizer needs {train} and DATA")


@pytest.mark.parametrize(
    ("tokens", "vocabulary"), [(10**9, 8192), (819_200, 8192), (819_199, 4096), (10_000, 64), (5, 16)]
)
def test_small_data_has_a_small_vocabulary(tokens: int, vocabulary: int) -> None:
    assert default_vocabulary(tokens) == vocabulary


def test_sizes_follow_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images of 64 x 64 pixels: tokens of 8 x 8, and few codes for few images."""
    data = draw_images(tmp_path / "data", side=64)
    out = tmp_path / "tokens.safetensors"
    options = ["--workers", "0", "--device", "cpu", *CONV, *QUICK, "--epochs", "1"]
    assert main(["tokenizer", "train", str(data), "--out", str(out), *options]) == 0
    said = capsys.readouterr().out
    assert "16 images; crops of 64x64 pixels, tokens of 8x8; 16 codes" in said
    assert (open_tokenizer(out).stride, open_tokenizer(out).vocabulary) == (8, 16)
