"""From an encoder and labelled images to a finished classifier, through stops and mistakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score

from tiny_classifiers import BARE, TINY, tiny_pretrained
from tiny_runs import assert_same_weights, draw_images, read_records, tiny_config
from tiny_supervised import FULL, run, stop_in_step, supervised, write_encoder
from unmask import __version__
from unmask.data.bad_files import TooManyBadFiles
from unmask.data.sources import labelled
from unmask.models.pretrained import open_encoder
from unmask.pretrain import build_method, pretrain
from unmask.run_folder import RunFolder
from unmask.run_loop import Outcome
from unmask.supervised.config import LabelBudget, SupervisedConfig, load_supervised
from unmask.supervised.protocols import build
from unmask.supervised.run import final_score, start_encoder
from unmask.tasks.classifier_file import HEADER, read_classifier
from unmask.training.checkpoint import checkpoint_path, load_checkpoint, saved_steps
from unmask.training.trainer import NonFiniteLoss

ATTENTIVE = replace(BARE, head="attentive", norm="batch", tuned_blocks=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen images for training (batches of four: four steps an epoch), six for testing."""
    folder = tmp_path_factory.mktemp("labelled") / "data"
    draw_images(folder / "train", 18)
    draw_images(folder / "val", 6)
    for half in ("train", "val"):
        (folder / half / "captions.csv").unlink()
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")


def right_answers(file: Path, data: Path) -> list[bool]:
    """Which test images a classifier file gets right, found without our loaders and scores."""
    classifier = read_classifier(file)
    found = []
    for path in sorted((data / "val").rglob("*.png")):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        best = int(classifier(pixels[None])[0].argmax())
        found.append(classifier.classes[best] == path.parent.name)
    return found


@pytest.mark.parametrize(("protocol", "settings"), [("finetune", FULL), ("attentive", ATTENTIVE)])
def test_a_run_from_end_to_end(protocol: Any, settings: Any, data: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(supervised(data, encoder, settings, epochs=3), protocol=protocol)
    outcome, said = run(config, tmp_path / "run")
    assert outcome == Outcome("finished", 12)
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {
        "config.json",
        "log.csv",
        "log.jsonl",
        "checkpoints",
        "classifier.safetensors",
    }
    assert load_supervised(tmp_path / "run" / "config.json") == config
    steps = read_records(tmp_path / "run", "step")
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert steps[-1]["epoch"] == 3.0
    (record,) = read_records(tmp_path / "run", "evaluation")
    assert (record["name"], record["network"], record["step"]) == (protocol, "pretrained", 12)
    right = right_answers(tmp_path / "run" / "classifier.safetensors", data)
    assert record["score"]["top1"] == pytest.approx(100 * sum(right) / len(right))
    assert record["score"]["n"] == len(right) == 6
    assert final_score(RunFolder(tmp_path / "run")) == record["score"]
    assert f"epoch 3: top-1 {record['score']['top1']:.1f} %" in said

    with safe_open(tmp_path / "run" / "classifier.safetensors", "pt") as file:
        header = json.loads(file.metadata()[HEADER])
    expected = {"protocol": protocol, "start": "pretrained", "data": str(data), "version": __version__}
    assert expected.items() <= header.items()
    assert header["encoder_from"] == str(encoder)
    assert header["classes"] == ["cold", "warm"]
    # What is kept is what the checkpoint holds: the averaged weights, where there are any.
    saved = load_checkpoint(checkpoint_path(tmp_path / "run" / "checkpoints", 12), torch.device("cpu")).tensors
    part = "classifier" if settings.average is None else "average"
    kept = load_file(tmp_path / "run" / "classifier.safetensors")
    assert torch.equal(kept["head.weight"], saved[f"model.{part}.head.weight"])
    assert torch.equal(kept["blocks.0.attn.qkv.weight"], saved[f"model.{part}.encoder.vit.blocks.0.attn.qkv.weight"])
    same = torch.equal(kept["blocks.0.attn.qkv.weight"], load_file(encoder)["blocks.0.attn.qkv.weight"])
    assert same == (protocol == "attentive")


def test_classes_that_differ_by_colour_are_learnt(data: Path, encoder: Path, tmp_path: Path) -> None:
    run(supervised(data, encoder, replace(BARE, average=0.5), epochs=8), tmp_path / "run")
    losses = [record["loss"] for record in read_records(tmp_path / "run", "step")]
    assert sum(losses[-4:]) < sum(losses[:4]) / 2
    assert final_score(RunFolder(tmp_path / "run"))["top1"] == 100.0


@pytest.mark.parametrize("settings", [FULL, replace(ATTENTIVE, randaugment="rand-m9")], ids=["finetune", "attentive"])
def test_a_stopped_or_killed_run_ends_where_an_unbroken_one_ends(
    settings: Any, data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = supervised(data, encoder, settings, checkpoint_every=3, keep_every=3)
    assert run(config, tmp_path / "whole")[0] == Outcome("finished", 8)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 5, 8)
        outcome, _ = run(config, tmp_path / "stopped")
    assert outcome == Outcome("stopped", 5, "SIGTERM")
    assert saved_steps(tmp_path / "stopped" / "checkpoints") == [3, 5]
    assert not (tmp_path / "stopped" / "classifier.safetensors").exists()

    # As if killed in step 8, whose line and score are in the log already.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "classifier.safetensors").unlink()
    checkpoint_path(tmp_path / "killed" / "checkpoints", 8).unlink()

    for name, step in (("stopped", 5), ("killed", 6)):
        path = tmp_path / name
        outcome, said = run(config, path)
        assert outcome == Outcome("finished", 8)
        assert f"resuming {path} at step {step}\n" in said
        assert_same_weights(path / "classifier.safetensors", tmp_path / "whole" / "classifier.safetensors")
        last = [checkpoint_path(tmp_path / which / "checkpoints", 8) for which in (name, "whole")]
        assert_same_weights(*last)
        for kind in ("step", "evaluation"):
            ours, theirs = read_records(path, kind), read_records(tmp_path / "whole", kind)
            keys = ("step", "loss", "lr", "grad_norm", "score")
            assert [[record.get(key) for key in keys] for record in ours] == [
                [record.get(key) for key in keys] for record in theirs
            ]


def test_a_finished_run_is_not_run_again(data: Path, encoder: Path, tmp_path: Path) -> None:
    config = supervised(data, encoder)
    run(config, tmp_path / "run")

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}

    before = files()
    assert run(config, tmp_path / "run") == (Outcome("finished", 8), "")
    assert files() == before
    # A kill between the last checkpoint and the file is made good.
    (tmp_path / "run" / "classifier.safetensors").unlink()
    assert run(config, tmp_path / "run") == (Outcome("finished", 8), "")
    assert files() == before
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run(config, tmp_path / "run") == (Outcome("finished", 8), "")
    assert files() == before


def test_another_configuration_in_the_same_folder_is_refused(data: Path, encoder: Path, tmp_path: Path) -> None:
    config = supervised(data, encoder)
    run(config, tmp_path / "run")
    others = {
        "its settings.mixup is 0.0, not 0.8": replace(config, settings=replace(BARE, mixup=0.8)),
        "its training.seed is 0, not 1": replace(config, training=replace(config.training, seed=1)),
        "its protocol is finetune, not attentive": replace(config, protocol="attentive"),
        "its budget.shots is None, not 8": replace(config, budget=LabelBudget(shots=8)),
        "its start is pretrained, not random": replace(config, start="random"),
    }
    for difference, other in others.items():
        with pytest.raises(ValueError, match=r".") as caught:
            run(other, tmp_path / "run")
        assert str(caught.value) == f"{tmp_path / 'run'} holds another run ({difference}); choose another --out"
    # How it is executed may change.
    again = replace(config, training=replace(config.training, log_every=5, workers=0, evaluate_every=1.0))
    assert run(again, tmp_path / "run")[0] == Outcome("finished", 8)


def test_data_that_changed_meanwhile_are_refused(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw_images(tmp_path / "data", 16)
    config = supervised(data, encoder)
    with monkeypatch.context() as patch:
        stop_in_step(patch, 1, 6)
        run(config, tmp_path / "run")
    before = len(labelled(str(data))[0])
    draw_images(data, 24)
    after = len(labelled(str(data))[0])
    sentence = (
        f"^{data} now has {after} images, but this run began with {before}; restore the data or choose another --out$"
    )
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run")


def refused(config: SupervisedConfig, path: Path) -> str:
    """The sentence of a refusal that leaves nothing behind."""
    with pytest.raises(ValueError, match=r".") as caught:
        run(config, path)
    assert not path.exists()
    return str(caught.value)


def test_what_cannot_work_leaves_no_folder(data: Path, encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    fine = supervised(data, encoder)
    assert (
        refused(supervised(data, encoder, batch_size=19), path)
        == "a batch of 19 is larger than the data: there are 18 train images"
    )
    odd = "cannot all be paired: choose an even batch (and even parts of it), or switch mixing off by --task.mixup 0 "
    for batch, parts, part in ((7, 1, 7), (6, 2, 3), (9, 3, 3)):
        config = supervised(data, encoder, replace(BARE, cutmix=1.0), batch_size=batch, parts=parts)
        assert refused(config, path) == f"mixup pairs images, and {part} {odd}--task.cutmix 0"
    assert (
        refused(supervised(data, encoder, replace(BARE, norm="batch"), parts=4), path)
        == "batch norm before the head needs batches (and parts of them) of 2 images or more"
    )
    assert (
        refused(supervised(data, encoder, replace(BARE, image_height=36)), path)
        == "image height 36 is not divisible by the patch size 8"
    )
    assert (
        refused(supervised(data, encoder, device="cuda:9"), path) == "device 'cuda:9' is not available on this machine"
    )
    assert refused(replace(fine, data="absent"), path) == "absent does not exist"
    assert refused(replace(fine, encoder="absent"), path) == "there is no run folder or encoder file absent"
    assert (
        refused(replace(fine, budget=LabelBudget(shots=10)), path)
        == "10 images of every class are asked for, but the smallest class has 9"
    )
    assert (
        refused(replace(fine, budget=LabelBudget(shots=1)), path)
        == "a batch of 4 is larger than the data: there are 2 train images"
    )


def test_images_that_the_encoder_cannot_take_are_refused_before_training(data: Path, tmp_path: Path) -> None:
    trained = tiny_pretrained()
    other = tiny_pretrained(replace(TINY, channels=1)).encoder
    four = replace(trained, encoder=other, mean=(0.5,) * 4, std=(0.2,) * 4)
    with pytest.raises(ValueError, match=r"^no readable image in .*: it has 3 channels, and 4 are wanted$"):
        build(supervised(data, tmp_path), four)
    broken = tmp_path / "data"
    draw_images(broken / "train", 8)
    for name in ("cold", "warm"):
        (broken / "val" / name).mkdir(parents=True)
        (broken / "val" / name / "1.png").write_text("no image")
    with pytest.raises(ValueError, match=r"^no readable image in .*1\.png: it is not an image of a known format$"):
        build(supervised(broken, tmp_path), trained)


def test_classes_must_be_the_same_in_both_halves_and_two_at_least(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw_images(data / "train", 8)
    draw_images(data / "val", 8, classes=("cold", "hot"))
    sentence = refused(supervised(data, encoder), tmp_path / "run")
    assert sentence == f"{data} has not the same classes for training and testing: hot is only in one of them"
    draw_images(tmp_path / "one", 8, classes=("only",))
    sentence = refused(supervised(tmp_path / "one", encoder), tmp_path / "run")
    assert sentence == f"{tmp_path / 'one'} has only one class, only: there is nothing to tell apart"


def test_bad_files_among_good_ones_are_listed_and_too_many_stop_the_run(encoder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    draw_images(data / "train", 20)
    draw_images(data / "val", 4)
    (data / "train" / "cold" / "words.png").write_text("no image")
    (data / "val" / "cold" / "words.png").write_text("no image")
    config = supervised(data, encoder, max_bad_share=0.2)
    assert run(config, tmp_path / "run")[0].kind == "finished"
    assert (tmp_path / "run" / "bad_files.txt").read_text() == (
        f"{data}/train/cold/words.png\tit is not an image of a known format\n"
    )
    assert final_score(RunFolder(tmp_path / "run"))["n"] == 4
    strict = replace(config, training=replace(config.training, max_bad_share=0.01, epochs=4))
    with pytest.raises(TooManyBadFiles, match=r"^1 of the \d+ files read so far cannot be used"):
        run(strict, tmp_path / "strict")


def test_scores_on_the_way_change_nothing(data: Path, encoder: Path, tmp_path: Path) -> None:
    settings = replace(FULL, norm="batch")
    _, said = run(supervised(data, encoder, settings, evaluate_every=0.5), tmp_path / "seen")
    run(supervised(data, encoder, settings), tmp_path / "unseen")
    assert_same_weights(tmp_path / "seen" / "classifier.safetensors", tmp_path / "unseen" / "classifier.safetensors")
    records = read_records(tmp_path / "seen", "evaluation")
    assert [record["step"] for record in records] == [2, 4, 6, 8]
    assert said.count("top-1") == 4
    assert final_score(RunFolder(tmp_path / "seen")) == final_score(RunFolder(tmp_path / "unseen"))


def test_a_seed_means_a_run(data: Path, encoder: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        torch.rand(3)  # torch's own state must not matter
        run(supervised(data, encoder, FULL, seed=seed), tmp_path / name)
    losses = {
        name: [record["loss"] for record in read_records(tmp_path / name, "step")] for name in ("one", "same", "other")
    }
    assert losses["one"] == losses["same"] != losses["other"]
    assert_same_weights(tmp_path / "one" / "classifier.safetensors", tmp_path / "same" / "classifier.safetensors")


def test_a_batch_in_parts_is_still_one_step(data: Path, encoder: Path, tmp_path: Path) -> None:
    outcome, _ = run(supervised(data, encoder, parts=2, epochs=1), tmp_path / "parts")
    assert outcome == Outcome("finished", 4)
    run(supervised(data, encoder, epochs=1), tmp_path / "whole")
    parts, whole = ([record["loss"] for record in read_records(tmp_path / name, "step")] for name in ("parts", "whole"))
    # Without anything that is drawn but crops, two halves give the gradient of the whole.
    assert parts == pytest.approx(whole, rel=1e-3)


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, encoder: Path, tmp_path: Path) -> None:
    wild = replace(BARE, optimizer=replace(BARE.optimizer, lr=1e38))
    with pytest.raises(NonFiniteLoss, match="try a lower --lr"):
        run(supervised(data, encoder, wild), tmp_path / "run")
    assert not (tmp_path / "run" / "classifier.safetensors").exists()


def test_both_starts_are_those_of_the_pre_training_run(data: Path, tmp_path: Path) -> None:
    made = tiny_config("conmim", data / "train")
    pretrain(made, RunFolder(tmp_path / "made"), Console(quiet=True))
    config = replace(supervised(data, tmp_path / "made"), start="random")
    found = start_encoder(config).encoder.network.state_dict()
    expected = build_method(made).exported().network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    trained = start_encoder(replace(config, start="pretrained")).encoder.network.state_dict()
    kept = open_encoder(str(tmp_path / "made")).encoder.network.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in trained.items())
    assert any(not torch.equal(value, trained[name]) for name, value in found.items())
    run(config, tmp_path / "run")
    (record,) = read_records(tmp_path / "run", "evaluation")
    assert record["network"] == "random"


def test_few_labels_are_the_only_ones_seen(data: Path, encoder: Path, tmp_path: Path) -> None:
    config = replace(supervised(data, encoder, epochs=3), budget=LabelBudget(shots=2))
    outcome, _ = run(config, tmp_path / "run")
    assert outcome == Outcome("finished", 3), "four images are one step an epoch"


def test_images_of_several_classes(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    draw_images(folder, 36, classes=("",))
    generator = np.random.default_rng(0)
    rows = ["image,labels,split", "missing.png,a,val"]
    targets: dict[str, list[int]] = {}
    for number in range(36):
        row = [int(value) for value in generator.random(3) < 0.5]
        words = ";".join(name for name, has in zip("abc", row, strict=True) if has)
        rows.append(f"{number:03d}.png,{words},{'train' if number < 24 else 'val'}")
        targets[f"{number:03d}.png"] = row
    csv = folder / "labels.csv"
    csv.write_text("\n".join(rows) + "\n")
    settings = replace(FULL, drop_path=0.0, smoothing=0.1)
    outcome, said = run(supervised(csv, encoder, settings), tmp_path / "run")
    assert outcome == Outcome("finished", 12)
    (record,) = read_records(tmp_path / "run", "evaluation")
    classifier = read_classifier(tmp_path / "run" / "classifier.safetensors")
    assert (classifier.several, classifier.classes) == (True, ("a", "b", "c"))
    files = [f"{number:03d}.png" for number in range(24, 36)]
    images = torch.stack(
        [torch.from_numpy(np.array(Image.open(folder / name).convert("RGB"))).permute(2, 0, 1) for name in files]
    )
    truth = np.array([targets[name] for name in files])
    expected = average_precision_score(truth, classifier(images).sigmoid().numpy(), average=None)
    assert record["score"]["ap"] == pytest.approx([100 * value for value in expected])
    assert record["score"]["n"] == 12, "without the file that is not there"
    assert record["score"]["mean_ap"] == pytest.approx(100 * float(np.mean(expected)))
    assert f"epoch 2: mAP {record['score']['mean_ap']:.1f} %" in said

    config = replace(supervised(csv, encoder), budget=LabelBudget(share=0.5))
    assert refused(config, tmp_path / "few") == "a budget of labels is for images with one class each, not for several"
