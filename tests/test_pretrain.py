"""From a configuration to a finished encoder, through stops, damaged checkpoints and bad files."""

from __future__ import annotations

import io
import json
import math
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from spoilt_files import bomb
from tiny_runs import assert_same_weights, draw_images, read_records, tiny_config
from unmask.config import RunConfig
from unmask.data.bad_files import TooManyBadFiles
from unmask.methods import METHODS
from unmask.methods.mae import MAE
from unmask.models.pretrained import open_encoder
from unmask.pretrain import Outcome, build_method, pretrain
from unmask.run_folder import RunFolder
from unmask.trainee import Losses
from unmask.training.checkpoint import CheckpointError, checkpoint_path, load_checkpoint, saved_steps
from unmask.training.trainer import NonFiniteLoss, Trainer
from unmask.training.watch import Watch
from unmask.views import Views


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen images: two steps of eight an epoch."""
    return draw_images(tmp_path / "data")


def run(config: RunConfig, path: Path) -> tuple[Outcome, str]:
    """The outcome of a run, and what was said meanwhile."""
    said = io.StringIO()
    outcome = pretrain(config, RunFolder(path), Console(file=said, soft_wrap=True))
    return outcome, said.getvalue()


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int, total: int) -> None:
    """Send SIGTERM in the middle of a step (counted from 1) of MAE."""

    def update_target(self: MAE, progress: float) -> None:
        if round(progress * total) == step - 1:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MAE, "update_target", update_target)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_ends_where_an_unbroken_one_ends(method: str, data: Path, tmp_path: Path) -> None:
    settings = tiny_config(method, data).settings
    fast = replace(settings, optimizer=replace(settings.optimizer, lr=0.01, lr_batch=None))
    config = replace(tiny_config(method, data, epochs=3, checkpoint_every=2, keep_every=2), settings=fast)
    outcome, _ = run(config, tmp_path / "whole")
    assert outcome == Outcome("finished", 6)
    assert saved_steps(tmp_path / "whole" / "checkpoints") == [2, 4, 6]

    # As if killed in step 5, whose line is in the log already.
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    (tmp_path / "killed" / "encoder.safetensors").unlink()
    for step in (4, 6):
        checkpoint_path(tmp_path / "killed" / "checkpoints", step).unlink()
    outcome, said = run(config, tmp_path / "killed")
    assert outcome == Outcome("finished", 6)
    assert f"resuming {tmp_path / 'killed'} at step 2\n" in said

    assert_same_weights(tmp_path / "killed" / "encoder.safetensors", tmp_path / "whole" / "encoder.safetensors")
    last = [checkpoint_path(tmp_path / name / "checkpoints", 6) for name in ("killed", "whole")]
    assert_same_weights(*last)
    start = build_method(config).exported().network.state_dict()
    trained = load_file(tmp_path / "whole" / "encoder.safetensors")
    assert any(not torch.equal(start[name], tensor) for name, tensor in trained.items()), "something was learnt"
    steps = read_records(tmp_path / "killed", "step")
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in steps] == [
        record["loss"] for record in read_records(tmp_path / "whole", "step")
    ]


def test_a_stop_comes_at_the_end_of_the_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("mae", data, epochs=3)
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3, 6)
        outcome, _ = run(config, tmp_path / "run")
    assert outcome == Outcome("stopped", 3, "SIGTERM")
    assert saved_steps(tmp_path / "run" / "checkpoints") == [3]
    assert run(config, tmp_path / "run")[0] == Outcome("finished", 6)
    assert_same_weights(tmp_path / "run" / "encoder.safetensors", tmp_path / "whole" / "encoder.safetensors")


def test_a_stop_in_the_last_step_is_too_late(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_step(monkeypatch, 4, 4)
    assert run(tiny_config("mae", data), tmp_path / "run")[0] == Outcome("finished", 4)
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def test_a_stop_before_the_first_step_is_a_stop_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("mae", data)
    run(config, tmp_path / "whole")

    def asked_while_being_built(self: MAE) -> Any:
        signal.raise_signal(signal.SIGINT)
        return self.encoder

    with monkeypatch.context() as patch:
        patch.setattr(MAE, "exported", asked_while_being_built)
        outcome, _ = run(config, tmp_path / "run")
    assert outcome == Outcome("stopped", 0, "SIGINT")
    assert run(config, tmp_path / "run")[0] == Outcome("finished", 4)
    assert_same_weights(tmp_path / "run" / "encoder.safetensors", tmp_path / "whole" / "encoder.safetensors")


def test_a_finished_run_is_not_run_again(data: Path, tmp_path: Path) -> None:
    config = tiny_config("mae", data)
    run(config, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    outcome, said = run(config, tmp_path / "run")
    assert (outcome, said) == (Outcome("finished", 4), "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before

    # Not even where the checkpoints were cleared away to save room.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    outcome, said = run(config, tmp_path / "run")
    assert (outcome, said) == (Outcome("finished", 4), "")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    config = tiny_config("mae", data, epochs=3, checkpoint_every=2, keep_every=2)
    run(config, path)
    whole = load_file(path / "encoder.safetensors")
    (path / "encoder.safetensors").unlink()
    newest = checkpoint_path(checkpoints, 6)
    newest.write_bytes(newest.read_bytes()[:-1])

    with monkeypatch.context() as patch:
        stop_in_step(patch, 5, 6)
        outcome, said = run(config, path)
    assert outcome == Outcome("stopped", 5, "SIGTERM")
    assert f"warning: checkpoint {newest} cannot be read (" in said
    assert "; going back to the checkpoint before it\n" in said
    # The damaged one must not outlive this, or the next start would go back once more.
    assert saved_steps(checkpoints) == [2, 4, 5]

    outcome, said = run(config, path)
    assert outcome == Outcome("finished", 6)
    assert "warning" not in said
    assert f"resuming {path} at step 5\n" in said
    ended = load_file(path / "encoder.safetensors")
    assert all(torch.equal(ended[name], tensor) for name, tensor in whole.items())
    assert [record["step"] for record in read_records(path, "step")] == [1, 2, 3, 4, 5, 6]


def test_without_a_good_checkpoint_the_run_does_not_begin_anew(data: Path, tmp_path: Path) -> None:
    config = tiny_config("mae", data)
    run(config, tmp_path / "run")
    path = checkpoint_path(tmp_path / "run" / "checkpoints", 4)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"^checkpoint {path} cannot be read "):
        run(config, tmp_path / "run")
    assert len(read_records(tmp_path / "run", "step")) == 4


def test_data_that_changed_meanwhile_are_refused(data: Path, tmp_path: Path) -> None:
    config = tiny_config("mae", data)
    run(config, tmp_path / "run")
    draw_images(data, 20)
    sentence = f"^{data} now has 20 images, but this run began with 16; restore the data or choose another --out$"
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 17}, "^a batch of 17 is larger than the data: .* has 16 images$"),
        ({"device": "cuda:9"}, "^device 'cuda:9' is not available on this machine$"),
        ({"data": "absent"}, "^absent does not exist$"),
        ({"unit": 3}, "^a grid of 4x4 patches does not divide into squares of 3x3 patches$"),
        ({"width": 33}, "^encoder width 33 is not divisible by its 2 heads$"),
    ],
)
def test_what_cannot_work_leaves_no_folder(changes: dict[str, Any], sentence: str, data: Path, tmp_path: Path) -> None:
    config = tiny_config("conmim", data)
    settings = config.settings
    if "unit" in changes:
        config = replace(config, settings=replace(settings, mask=replace(settings.mask, unit=changes["unit"])))
    elif "width" in changes:
        config = replace(config, settings=replace(settings, encoder=replace(settings.encoder, width=changes["width"])))
    elif "data" in changes:
        config = replace(config, data=changes["data"])
    else:
        config = replace(config, training=replace(config.training, **changes))
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def spoil(data: Path) -> dict[str, str]:
    """Put three bad files among the images; their names with a part of the reason."""
    good = sorted(data.rglob("*.png"))[0].read_bytes()
    (data / "cold" / "words ü.png").write_text("no image at all")
    (data / "cold" / "half.png").write_bytes(good[: len(good) // 2])
    (data / "warm" / "bomb.png").write_bytes(bomb(60_000))
    return {
        "cold/half.png": "it cannot be decoded",
        "cold/words ü.png": "it is not an image of a known format",
        "warm/bomb.png": "it has ",
    }


def listed(path: Path) -> dict[str, str]:
    lines = (path / "bad_files.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("\t", 1) for line in lines)


def test_bad_files_among_good_ones_are_listed(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 29)
    bad = spoil(data)
    outcome, _ = run(tiny_config("mae", data, epochs=2, max_bad_share=0.2), tmp_path / "run")
    assert outcome.kind == "finished"
    found = listed(tmp_path / "run")
    assert found.keys() == {f"{data}/{name}" for name in bad}
    for name, reason in bad.items():
        assert found[f"{data}/{name}"].startswith(reason)


def test_too_many_bad_files_stop_the_run_and_are_listed(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", 29)
    bad = spoil(data)
    with pytest.raises(TooManyBadFiles, match=r"files read so far cannot be used \(at most 2% may be bad\)"):
        run(tiny_config("mae", data, epochs=4, max_bad_share=0.02), tmp_path / "run")
    found = listed(tmp_path / "run")
    assert found
    assert found.keys() <= {f"{data}/{name}" for name in bad}


def test_a_run_begins_at_the_random_start_that_its_seed_means(data: Path, tmp_path: Path) -> None:
    config = tiny_config("mae", data)
    still = replace(config.settings, optimizer=replace(config.settings.optimizer, lr=0.0, lr_batch=None))
    config = replace(config, settings=still)
    run(config, tmp_path / "run")
    torch.rand(5)  # torch's own state must not matter
    start = build_method(config).exported().vit.state_dict()
    for name, tensor in load_file(tmp_path / "run" / "encoder.safetensors").items():
        assert torch.equal(tensor, start[name]), name
    other = build_method(replace(config, training=replace(config.training, seed=1)))
    assert any(not torch.equal(start[name], tensor) for name, tensor in other.exported().vit.state_dict().items())


def test_a_seed_means_a_run(data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(tiny_config("mae", data, seed=seed), tmp_path / name)
    losses = {
        name: [record["loss"] for record in read_records(tmp_path / name, "step")] for name in ("one", "same", "other")
    }
    assert losses["one"] == losses["same"] != losses["other"]


def test_a_batch_in_parts_is_still_one_step(data: Path, tmp_path: Path) -> None:
    outcome, _ = run(tiny_config("mae", data, parts=4), tmp_path / "run")
    assert outcome == Outcome("finished", 4)
    assert [record["epoch"] for record in read_records(tmp_path / "run", "step")] == [0.5, 1.0, 1.5, 2.0]


def test_a_loss_that_is_not_finite_ends_the_run(data: Path, tmp_path: Path) -> None:
    config = tiny_config("mae", data, epochs=4, checkpoint_every=1)
    wild = replace(
        config.settings,
        optimizer=replace(config.settings.optimizer, lr=1e38, lr_batch=None, warmup_epochs=0.0, decay="step"),
    )
    with pytest.raises(NonFiniteLoss, match=r"^after step 1 features hold NaN or infinite values, .* a lower --lr"):
        run(replace(config, settings=wild), tmp_path / "run")
    assert saved_steps(tmp_path / "run" / "checkpoints") == []
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_figures_read_late_make_no_other_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("mae", data, epochs=4, log_every=3, checkpoint_every=5)
    run(config, tmp_path / "at once")
    # As on a GPU, which a step does not wait for.
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    run(config, tmp_path / "late")
    runs = [
        [{name: record[name] for name in ("step", "losses", "lr", "grad_norm")} for record in records]
        for records in (read_records(tmp_path / name, "step") for name in ("at once", "late"))
    ]
    assert runs[0] == runs[1]
    assert [record["step"] for record in runs[0]] == [3, 6, 8]
    assert_same_weights(*(tmp_path / name / "encoder.safetensors" for name in ("at once", "late")))


@pytest.mark.parametrize("every", [{"log_every": 5}, {"checkpoint_every": 5}], ids=["log", "checkpoint"])
def test_a_broken_step_read_late_makes_no_other_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: dict[str, int]
) -> None:
    healthy = MAE.losses

    def losses(self: MAE, views: Views, progress: float = 0.0) -> Losses:
        broken = math.nan if round(progress * 40) == 7 else 1.0
        return {name: loss * broken for name, loss in healthy(self, views, progress).items()}

    monkeypatch.setattr(MAE, "losses", losses)
    monkeypatch.setattr(Trainer, "reading_is_free", False)
    monkeypatch.setattr("unmask.pretrain.HEALTH_CHECKS", 1)
    config = tiny_config("mae", data, epochs=20, **{"log_every": 40, "checkpoint_every": 40} | every)
    outcome, said = run(config, tmp_path / "late")
    assert outcome == Outcome("finished", 40)
    (record,) = read_records(tmp_path / "late", "left out")
    assert (record["number"], record["step"]) == (7, 10)
    assert "warning: step 7 is left out: loss 'reconstruction' is nan, samples " in said
    monkeypatch.undo()
    monkeypatch.setattr(MAE, "losses", losses)
    run(config, tmp_path / "at once")
    assert_same_weights(*(tmp_path / name / "encoder.safetensors" for name in ("at once", "late")))


def test_nobody_is_watched_once_the_last_step_is_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the first rank would be ended in the middle of its report, because the others have left."""
    folder = RunFolder(tmp_path / "run")
    ended = []
    monkeypatch.setattr(Watch, "end", lambda watch: ended.append(folder.encoder_file.exists()))
    for _ in range(2):  # a run that was finished before is left as quickly
        pretrain(tiny_config("mae", data), folder, Console(quiet=True))
    assert ended == [True, True]


def break_steps(monkeypatch: pytest.MonkeyPatch, broken: set[int], *, poisons: bool = False) -> None:
    """Losses of these steps of 40 are NaN; of later ones too where the weights have seen one (`poisons`)."""
    healthy = MAE.losses

    def losses(self: MAE, views: Views, progress: float = 0.0) -> Losses:
        if round(progress * 40) in broken:
            if poisons:
                with torch.no_grad():
                    self.decoder.head.bias[0] = math.nan
            return {name: loss * math.nan for name, loss in healthy(self, views, progress).items()}
        return healthy(self, views, progress)

    monkeypatch.setattr(MAE, "losses", losses)


def test_a_step_that_is_not_finite_is_left_out_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {7, 9})
    config = tiny_config("mae", data, epochs=20)
    outcome, said = run(config, tmp_path / "run")
    assert outcome == Outcome("finished", 40)
    assert [record["number"] for record in read_records(tmp_path / "run", "left out")] == [7, 9]
    assert [record["step"] for record in read_records(tmp_path / "run", "step")] == [
        step for step in range(1, 41) if step not in (8, 10)
    ]
    assert said.count("is left out") == 2
    # What the two steps found is kept, and is what they would have begun with again.
    assert RunFolder(tmp_path / "run").steps_left_out() == [7, 9]


@pytest.mark.parametrize("broken", [7, 8, 9])
def test_weights_that_are_spoilt_come_back_from_the_last_checkpoint(
    broken: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a checkpoint would be due (step 10) before anybody knows that they are spoilt: it is not written."""
    break_steps(monkeypatch, {broken}, poisons=True)
    config = tiny_config("mae", data, epochs=20, checkpoint_every=5, max_nonfinite=3)
    monkeypatch.setattr("unmask.pretrain.HEALTH_CHECKS", 1)
    outcome, said = run(config, tmp_path / "run")
    assert outcome == Outcome("finished", 40)
    # The step itself, and the two after it with the weights that it has spoilt.
    left_out = read_records(tmp_path / "run", "left out")
    assert [record["number"] for record in left_out] == [broken, broken + 1, broken + 2]
    assert [record.get("back") for record in left_out] == [None, None, 5]
    assert ("step 10 is not saved: its weights are not finite" in said) == (broken != 7)
    assert "the weights of step 5 come back, and the batches since then are left out" in said
    assert read_records(tmp_path / "run", "step")[-1]["step"] == 40


def test_a_run_that_breaks_down_again_and_again_ends(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, set(range(12, 41)))
    config = tiny_config("mae", data, epochs=20, checkpoint_every=5)
    monkeypatch.setattr("unmask.pretrain.HEALTH_CHECKS", 1)
    with pytest.raises(NonFiniteLoss, match=r"^loss 'reconstruction' is nan at step 23, samples .* is intact"):
        run(config, tmp_path / "run")
    # Three times three in a row were left out, then three more.
    numbers = [record["number"] for record in read_records(tmp_path / "run", "left out")]
    assert numbers == list(range(12, 23))


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_steps(monkeypatch, {0, 1, 2})
    with pytest.raises(NonFiniteLoss, match=r"^loss 'reconstruction' is nan at step 2, samples"):
        run(tiny_config("mae", data, epochs=20), tmp_path / "run")


def test_labelled_data_are_evaluated_on_the_way(data: Path, tmp_path: Path) -> None:
    _, said = run(tiny_config("mae", data, evaluate_every=1), tmp_path / "run")
    records = read_records(tmp_path / "run", "evaluation")
    assert [(record["step"], record["network"]) for record in records] == [
        (0, "random"),
        (2, "pretrained"),
        (4, "pretrained"),
    ]
    assert all(record["name"] == "knn" and 0 <= record["score"]["top1"] <= 100 for record in records)
    assert "epoch 2: kNN top-1 " in said
    # Looking at it changes nothing.
    run(tiny_config("mae", data), tmp_path / "unseen")
    assert_same_weights(tmp_path / "run" / "encoder.safetensors", tmp_path / "unseen" / "encoder.safetensors")


def test_images_without_labels_are_not_evaluated(tmp_path: Path) -> None:
    data = draw_images(tmp_path / "data", classes=("",))
    run(tiny_config("mae", data, evaluate_every=1), tmp_path / "run")
    assert read_records(tmp_path / "run", "evaluation") == []


def test_the_log_tells_every_step_and_the_health(data: Path, tmp_path: Path) -> None:
    config = tiny_config("cmae", data, epochs=3, log_every=4)
    run(config, tmp_path / "run")
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == [4, 6], "every fourth, and the last"
    for record in steps:
        assert record["losses"].keys() == {"reconstruction", "contrast"}
        assert sum(record["losses"].values()) == pytest.approx(record["loss"])
        assert record["epoch"] == record["step"] / 2
        assert record["lr"] == config.settings.optimizer.at((record["step"] - 1) / 6, batch_size=8, epochs=3)
        assert all(math.isfinite(record[key]) for key in ("grad_norm", "images_per_second", "time"))
    health = [record for record in records if record["kind"] == "health"]
    assert [record["step"] for record in health] == list(range(7))
    assert health[0]["figures"].keys() == {
        "feature_std",
        "effective_rank",
        "positive_similarity",
        "negative_similarity",
    }


def test_the_encoder_file_says_where_it_comes_from(data: Path, tmp_path: Path) -> None:
    config = tiny_config("conmim", data)
    run(config, tmp_path / "run")
    encoder = open_encoder(str(tmp_path / "run"))
    assert (encoder.mean, encoder.std) == (config.settings.mean, config.settings.std)
    assert encoder.encoder.config == config.settings.encoder
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert encoder.to(torch.device("cpu")).features(images).shape == (2, 32)
    # What is exported is the target, as its authors do.
    saved = load_checkpoint(checkpoint_path(tmp_path / "run" / "checkpoints", 4), torch.device("cpu")).tensors
    name, tensor = next(iter(load_file(tmp_path / "run" / "encoder.safetensors").items()))
    assert torch.equal(saved[f"model.target_encoder.vit.{name}"], tensor)
