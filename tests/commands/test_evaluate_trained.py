"""`unmask evaluate finetune` and `attentive`, as a user meets them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tiny_runs import (
    CommandProcess,
    assert_same_weights,
    draw_images,
    last_logged_step,
    quick_options,
    read_records,
    tiny_config,
)
from tiny_supervised import write_encoder
from unmask import __version__
from unmask.cli import main
from unmask.commands.evaluate.shared import data_stem, results_folder
from unmask.commands.evaluate.trained import ATTENTIVE, recipe_for
from unmask.pretrain import pretrain
from unmask.recipes.finetuning import FINETUNING
from unmask.run_folder import RunFolder
from unmask.supervised.config import LabelBudget, load_supervised
from unmask.tasks.classification import ClassifierConfig
from unmask.tasks.classifier_file import read_classifier
from unmask.training.checkpoint import saved_steps

QUICK = [
    part
    for name, value in {"epochs": 2, "batch-size": 4, "workers": 0, "log-every": 1, "device": "cpu"}.items()
    for part in (f"--{name}", str(value))
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with labelled images (18 and 6), a table of several classes an image, and a run of ConMIM."""
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "photos" / "train", 18)
    draw_images(desk / "photos" / "val", 6)
    rows = []
    for number, kind in enumerate(["cold", "warm"] * 9):
        beside, half = "odd" if number % 4 > 1 else "even", "val" if number > 11 else "train"
        rows.append(f"photos/train/{kind}/{number:03d}.png,{kind};{beside},{half}")
    (desk / "several.csv").write_text("\n".join(["image,labels,split", *rows]))
    pretrain(tiny_config("conmim", desk / "photos" / "train"), RunFolder(desk / "run"), Console(quiet=True))
    write_encoder(desk / "bare.safetensors")
    return desk


@pytest.fixture
def here(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(desk)
    return desk


def said_by(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a command prints which succeeds and complains of nothing."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_finetune_says_what_it_does_and_leaves_a_classifier(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "finetune", "run", "photos", *QUICK]
    lines = said_by(command, capsys)
    assert lines[:7] == [
        "recipe        conmim's, fitted to these data",
        "encoder       run, as pre-trained",
        "data          photos",
        "training      2 epochs, batches of 4, on cpu, 0 workers",
        "learning rate 0.00025",
        "augmentation  crops, flips",
        "out           run/finetune-photos",
    ]
    assert re.fullmatch(r"step 8/8  loss \d+\.\d{4}  \d+ images/s  0 s left", lines[7])
    assert re.fullmatch(r"epoch 2: top-1 \d+\.\d %", lines[8])
    assert lines[9] == "finetune of run on photos: 6 test images"
    assert lines[10].split() == ["network", "top-1", "%", "95", "%", "interval"]
    assert re.fullmatch(r"pre-trained +\d+\.\d +\d+\.\d to \d+\.\d", lines[11])
    assert lines[12:] == [
        "model:  run/finetune-photos/classifier.safetensors",
        "report: run/finetune-photos/report.html",
    ]
    folder = Path("run/finetune-photos")
    classifier = read_classifier(folder / "classifier.safetensors")
    assert classifier.classes == ("cold", "warm")
    config = load_supervised(folder / "config.json")
    assert (config.protocol, config.encoder, config.data, config.start) == ("finetune", "run", "photos", "pretrained")
    recipe = FINETUNING["conmim"]().settings
    assert config.settings.layer_decay == recipe.layer_decay
    assert config.settings.optimizer.warmup_epochs == recipe.optimizer.warmup_epochs
    # 4e-3 for 1024 images, by the square root.
    assert config.settings.optimizer.peak(4) == pytest.approx(4e-3 * (4 / 1024) ** 0.5)

    # What is needed to repeat it stands in the log of RUN.
    record = read_records(Path("run"), "evaluation")[-1]
    assert (record["name"], record["network"], record["run"], record["data"]) == (
        "finetune",
        "pretrained",
        "run",
        "photos",
    )
    assert (record["step"], record["seed"], record["version"]) == (4, 0, __version__)
    assert record["settings"] == config.as_dict() | {"folder": "run/finetune-photos"}
    assert record["score"] == read_records(folder, "evaluation")[-1]["score"]

    # The same command again trains nothing and says the same.
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.name != "report.html"}
    again = said_by(command, capsys)
    assert again == lines[:7] + lines[9:]
    assert {path: path.read_bytes() for path in before} == before

    # Its page, and that of the pre-training run.
    assert said_by(["report", "run/finetune-photos"], capsys) == ["run/finetune-photos/report.html"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"top-1 {record['score']['top1']:.1f} %" in page
    assert said_by(["report", "run"], capsys) == ["run/report.html"]
    assert "Fine-tuned accuracy" in Path("run/report.html").read_text(encoding="utf-8")


def test_attentive_in_a_process_of_its_own(desk: Path) -> None:
    ended = CommandProcess(["evaluate", "attentive", "run", "photos", *QUICK, "--json"], desk).end()
    assert ended.code == 0, ended.err
    (record,) = [json.loads(line) for line in ended.out.splitlines()]
    assert (record["kind"], record["name"], record["network"]) == ("evaluation", "attentive", "pretrained")
    assert record == read_records(desk / "run", "evaluation")[-1]
    assert "encoder       run, as pre-trained" in ended.err
    assert "Traceback" not in ended.err
    settings = load_supervised(desk / "run" / "attentive-photos" / "config.json").settings
    assert isinstance(settings, ClassifierConfig)
    assert (settings.head, settings.tuned_blocks, settings.norm) == ("attentive", 0, "batch")
    assert settings.optimizer.weight_decay == ATTENTIVE.optimizer.weight_decay
    classifier = read_classifier(desk / "run" / "attentive-photos" / "classifier.safetensors")
    assert classifier.classifier.attentive is not None


def test_floors_train_the_random_start_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "finetune", "run", "photos", *QUICK, "--floors", "--out", "floored"]
    lines = said_by(command, capsys)
    assert "out           floored-random-start" in lines
    assert "encoder       run, at its random start" in lines
    table = lines.index("finetune of run on photos: 6 test images") + 2
    assert re.match(r"random start +\d+\.\d +\d+\.\d to \d+\.\d", lines[table])
    assert re.match(r"pre-trained +\d+\.\d +\d+\.\d to \d+\.\d", lines[table + 1])
    assert re.fullmatch(
        r"pre-trained [+-]\d+\.\d points against random start \(95 % noise of the test set: ±\d+\.\d\): "
        r"(clearly better|clearly worse|within the noise)",
        lines[table + 2],
    )
    assert lines[-2] == "model:  floored/classifier.safetensors"
    assert load_supervised(Path("floored-random-start/config.json")).start == "random"
    records = read_records(Path("run"), "evaluation")[-2:]
    assert [(record["network"], record["settings"]["folder"]) for record in records] == [
        ("random", "floored-random-start"),
        ("pretrained", "floored"),
    ]
    assert [record["step"] for record in records] == [0, 4]
    assert main([*command, "--json"]) == 0
    assert [json.loads(line)["network"] for line in capsys.readouterr().out.splitlines()] == ["random", "pretrained"]


@pytest.mark.parametrize(
    ("option", "folder", "budget", "steps"),
    [
        (["--share", "0.25"], "run/finetune-photos-25pct", LabelBudget(share=0.25), 2),
        (["--shots", "2"], "run/finetune-photos-2-shot", LabelBudget(shots=2), 2),
    ],
)
def test_few_labels(
    option: list[str], folder: str, budget: LabelBudget, steps: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said_by(["evaluate", "finetune", "run", "photos", *QUICK, *option], capsys)
    assert f"data          photos, {budget} of the labels" in lines
    assert f"out           {folder}" in lines
    assert load_supervised(Path(folder) / "config.json").budget == budget
    assert len(read_records(Path(folder), "step")) == steps


def test_another_image_size(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (option, size) in enumerate(
        {
            ("--image-size", "48"): (48, 48),
            ("--image-size", "48", "64"): (48, 64),
            ("--task.image-width", "40"): (32, 40),
        }.items()
    ):
        said_by(
            ["evaluate", "finetune", "bare.safetensors", "photos", *QUICK, *option, "--out", f"size{number}"], capsys
        )
        assert read_classifier(Path(f"size{number}/classifier.safetensors")).image_size == size


def test_a_recipe_by_name_is_taken_as_it_is(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "finetune", "run", "photos", "--recipe", "bootmae", *QUICK, "--out", "recipe"], capsys)
    assert lines[0] == "recipe        bootmae"
    config = load_supervised(Path("recipe/config.json"))
    assert config.settings == FINETUNING["bootmae"]().settings, "augmentation is full, the rate scales in proportion"
    assert "learning rate 9.77e-06" in lines
    assert "augmentation  crops, flips, rand-m9-mstd0.5-inc1, erasing 0.25, mixup 0.8, cutmix 1" in lines
    # Without a batch of one's own it is the recipe's, which these images do not fill.
    assert main(["evaluate", "finetune", "run", "photos", "--recipe", "bootmae", "--out", "more"]) == 2
    assert "a batch of 2048 is larger than the data: there are 18 train images" in capsys.readouterr().err


def test_the_recipe_is_that_of_the_method_wherever_run_stands(here: Path) -> None:
    conmim, mae = ("conmim's, fitted to these data", "MAE's, fitted to these data")
    assert recipe_for(["run", "photos"])[0] == conmim
    assert recipe_for(["--epochs", "2", "--out", "photos", "run", "photos"])[0] == conmim
    assert recipe_for(["--json", "run/encoder.safetensors", "photos"])[0] == conmim
    assert recipe_for(["run", "photos"])[1] == FINETUNING["conmim"]()
    assert recipe_for(["bare.safetensors", "photos"])[0] == "mae's, fitted to these data"
    for words in ([], ["--help"], ["absent", "photos"], ["timm:vit_tiny_patch16_224", "run"]):
        assert recipe_for(words) == (mae, FINETUNING["mae"]())
    assert recipe_for(["run", "photos", "--recipe=cae"]) == ("cae", FINETUNING["cae"]())


def test_what_the_user_sets_is_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it is what the recipe has, and a short run would do without."""
    options = ["--task.mixup", "0.8", "--task.crop-scale", "0.08", "1", "--task.erasing", "0.1", "--lr", "0.003"]
    lines = said_by(["evaluate", "finetune", "run", "photos", *QUICK, *options, "--out", "mine"], capsys)
    assert "augmentation  crops, flips, erasing 0.1, mixup 0.8" in lines
    assert "learning rate 0.003" in lines
    settings = load_supervised(Path("mine/config.json")).settings
    assert isinstance(settings, ClassifierConfig)
    assert (settings.mixup, settings.cutmix, settings.erasing, settings.randaugment) == (0.8, 0.0, 0.1, None)
    assert settings.crop_scale == (0.08, 1.0)
    assert (settings.optimizer.lr, settings.optimizer.lr_batch) == (0.003, None)


def test_defaults_follow_the_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["evaluate", "finetune", "run", "photos", "--workers", "0", "--image-size", "36", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "training      400 epochs, batches of 4, on cpu, 0 workers" in out
    assert not Path("run/finetune-photos-36").exists()


def test_results_of_a_bare_encoder_go_to_a_folder_of_their_own(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "finetune", "bare.safetensors", "photos/", *QUICK], capsys)
    folder = Path("runs/evaluations") / f"{here.name}-bare"
    assert f"out           {folder}/finetune-photos" in lines
    record = read_records(folder, "evaluation")[-1]
    assert (record["run"], record["step"], record["data"]) == ("bare.safetensors", 0, "photos/")
    # Slashes behind the names do not make another run of it.
    said_by(["evaluate", "finetune", "run/", "photos/", *QUICK], capsys)
    said_by(["evaluate", "finetune", "run", "photos", *QUICK], capsys)


def test_images_of_several_classes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said_by(["evaluate", "finetune", "run", "several.csv", *QUICK], capsys)
    assert "out           run/finetune-several" in lines
    assert any(re.fullmatch(r"epoch 2: mAP \d+\.\d %", line) for line in lines)
    assert "finetune of run on several.csv: 6 test images" in lines
    record = read_records(Path("run"), "evaluation")[-1]
    assert record["score"].keys() == {"mean_ap", "ap", "micro_f1", "macro_f1", "interval", "n"}
    assert read_classifier(Path("run/finetune-several/classifier.safetensors")).several

    lines = said_by(["evaluate", "linear", "run", "several.csv", "--workers", "0", "--device", "cpu"], capsys)
    assert lines[0] == "linear of run on several.csv: 12 training images, 6 test images"
    assert lines[1].split() == ["network", "mAP", "%", "95", "%", "interval", "micro", "F1", "%", "macro", "F1", "%"]
    assert re.match(r"pre-trained +\d+\.\d +\d+\.\d to \d+\.\d +\d+\.\d +\d+\.\d", lines[4])
    last = read_records(Path("run"), "evaluation")[-1]
    assert (last["name"], last["network"]) == ("linear", "pretrained")
    assert f"{last['score']['mean_ap']:.1f}" in lines[4]


def test_a_stopped_evaluation_goes_on_by_the_same_command(desk: Path, tmp_path: Path) -> None:
    options = ["--lr", "0.003", "--task.average", "0.9", "--task.mixup", "0.8", *quick_options(epochs=20, every=1)]
    command = ["evaluate", "finetune", str(desk / "run"), str(desk / "photos"), *options]
    whole = CommandProcess([*command, "--out", str(tmp_path / "whole")], tmp_path).end()
    assert (whole.code, whole.err) == (0, "")
    process = CommandProcess([*command, "--out", str(tmp_path / "stopped")], tmp_path)
    process.wait_until(lambda: last_logged_step(tmp_path / "stopped") >= 3)
    process.signal(signal.SIGTERM)
    stopped = process.end()
    assert (stopped.code, stopped.err) == (75, "")
    (step,) = saved_steps(tmp_path / "stopped" / "checkpoints")
    assert 3 <= step < 40
    assert stopped.out.splitlines()[-1] == f"stopped by SIGTERM at step {step}, all saved; the same command resumes"
    assert not (tmp_path / "stopped" / "classifier.safetensors").exists()
    before = len(read_records(desk / "run", "evaluation"))
    ended = CommandProcess([*command, "--out", str(tmp_path / "stopped")], tmp_path).end()
    assert (ended.code, ended.err) == (0, "")
    assert f"resuming {tmp_path / 'stopped'} at step {step}" in ended.out
    assert len(read_records(desk / "run", "evaluation")) == before + 1
    assert_same_weights(tmp_path / "stopped" / "classifier.safetensors", tmp_path / "whole" / "classifier.safetensors")
    ours, theirs = (read_records(tmp_path / name, "step") for name in ("stopped", "whole"))
    assert [record["loss"] for record in ours] == [record["loss"] for record in theirs]


@pytest.mark.parametrize("command", [["finetune"], ["attentive"], ["linear"], ["knn"], []])
def test_help_names_the_options(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *command, "--help"])
    assert not ended.value.code
    out, err = capsys.readouterr()
    assert err == ""
    wanted: dict[str, list[str]] = {
        "finetune": [
            "--recipe",
            "--share",
            "--shots",
            "--floors",
            "--image-size",
            "--task.mixup",
            "--task.noise.sigma",
        ],
        "attentive": ["--share", "--task.pooling", "--epochs", "--json"],
        "linear": ["--full", "--linear.epochs", "--pooling"],
        "knn": ["--knn.k"],
        "": ["finetune", "attentive", "knn", "linear"],
    }
    for option in wanted["".join(command)]:
        assert option in out, option
    if command:
        assert out.startswith(f"usage: unmask evaluate {command[0]} ")


def test_where_results_go(here: Path) -> None:
    assert results_folder("run").path == Path("run")
    assert results_folder("timm:vit_small_patch16_224").path == Path("runs/evaluations/timm-vit_small_patch16_224")
    assert results_folder("run/encoder.safetensors").path == Path("runs/evaluations/run-encoder")
    names: dict[str, Any] = {
        "photos": "photos",
        "photos/": "photos",
        "builtin:fashion-mnist": "fashion-mnist",
        "several.csv": "several",
        ".": here.name,
    }
    assert {data: data_stem(data) for data in names} == names
