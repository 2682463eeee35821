"""Whatever a user gets wrong is one sentence on stderr and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import save_file
from torch import zeros

from tiny_runs import draw_images, quick_options, tiny_config, tiny_options
from tiny_supervised import write_encoder
from unmask.cli import main
from unmask.commands.evaluate import PROTOCOLS
from unmask.config import save_config
from unmask.methods import METHODS
from unmask.pretrain import pretrain
from unmask.recipes.finetuning import FINETUNING
from unmask.run_folder import RunFolder

TINY = [*tiny_options("conmim"), *quick_options()]
SEE = "; see unmask pretrain --help"
FINETUNE = ["evaluate", "finetune", "finished", "data", *quick_options()]
SEE_FINETUNE = "; see unmask evaluate finetune --help"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the command lines below speak of."""
    desk = tmp_path_factory.mktemp("desk")
    draw_images(desk / "data")
    draw_images(desk / "flat", classes=("",))
    draw_images(desk / "one class", classes=("", "only"))
    for path in sorted((desk / "one class").glob("*.png")):
        path.unlink()
    (desk / "empty").mkdir()
    (desk / "words").mkdir()
    (desk / "words" / "notes.txt").write_text("no image")
    (desk / "broken").mkdir()
    for number in range(9):
        (desk / "broken" / f"{number}.jpg").write_bytes(b"no image")
    (desk / "thesis").mkdir()
    (desk / "thesis" / "thesis.tex").write_text("years of work")
    save_file({"weight": zeros(2)}, desk / "foreign.safetensors")
    rows = [f"data/{kind}/{number:03d}.png,{kind}" for number, kind in enumerate(["cold", "warm"] * 8)]
    (desk / "several.csv").write_text("\n".join(["image,labels", *rows]))

    config = tiny_config("mae", Path("data"))
    save_config(config, desk / "good.json")
    (desk / "half.json").write_text('{"format": 1')
    values = config.as_dict()
    odd = {**values, "settings": {**values["settings"], "crop_scal": [0.5, 1]}}
    (desk / "odd.json").write_text(json.dumps(odd))
    wrong = {**values, "training": {**values["training"], "epochs": "ten"}}
    (desk / "wrong.json").write_text(json.dumps(wrong))

    write_encoder(desk / "maps.safetensors", "resnet18")
    RunFolder(desk / "unfinished").claim(config)
    finished = RunFolder(desk / "finished")
    pretrain(tiny_config("mae", desk / "data"), finished, Console(quiet=True))
    return desk


CASES: dict[str, tuple[list[str], str]] = {
    # What is not there, or not what it should be.
    "missing folder": (["pretrain", "absent", *TINY], "absent does not exist"),
    "empty folder": (
        ["pretrain", "empty", *TINY],
        "empty holds no image (no file ending in jpg, jpeg, png, webp, tif, tiff, bmp, npy, dcm)",
    ),
    "folder without images": (
        ["pretrain", "words", *TINY],
        "words holds no image (no file ending in jpg, jpeg, png, webp, tif, tiff, bmp, npy, dcm)",
    ),
    "folder without readable images": (
        ["pretrain", "broken", *TINY],
        "no readable image in broken, for example broken/8.jpg: it is not an image of a known format",
    ),
    "channels that image files do not have": (
        ["pretrain", "data", *TINY, "--channels", "2"],
        "no readable image in data, for example data/warm/015.png: it has 3 channels, and 2 are wanted",
    ),
    "a file that is no data": (
        ["pretrain", "good.json"],
        "good.json is neither a folder of images, nor a .txt list of image files, nor a .tar or .zip archive, "
        "nor a .npy or .npz file",
    ),
    "shards that are not there": (
        ["pretrain", "data-{000..003}.tar"],
        "data-{000..003}.tar means 4 shards, of which data-000.tar (and 3 more) does not exist",
    ),
    "data set that is not there": (
        ["pretrain", "hf:./absent"],
        "hf:./absent cannot be read: there is no such file or folder, and it is no name on the hub",
    ),
    "stream for a run": (
        ["pretrain", "hf-stream:photos"],
        "hf-stream:photos can only be read from its beginning: make shards of it first, by unmask shard "
        "hf-stream:photos OUT",
    ),
    "kind of URL that nobody knows": (["pretrain", "htp://x/y.tar"], "htp://x/y.tar cannot be read: "),
    "shards of nothing": (["shard", "absent", "out"], "absent does not exist"),
    "shards inside of their images": (
        ["shard", "data", "data/shards"],
        "data/shards lies inside data: choose an OUT outside of the images",
    ),
    "shards into a folder of other things": (
        ["shard", "data", "thesis"],
        "thesis exists and holds no shards of this command; choose another OUT",
    ),
    "look at nothing": (["data", "empty"], "empty holds no image (no file ending in "),
    "look at a folder of no images": (
        ["data", "broken"],
        "no readable image in broken, for example broken/1.jpg: it is not an image of a known format",
    ),
    "look at no image": (
        ["data", "data", "--sample", "0"],
        "--sample must be at least 1, or all; got 0; see unmask data --help",
    ),
    "page that is no page": (
        ["data", "data", "--out", "page.pdf"],
        "--out writes a page: page.pdf must end in .html; see unmask data --help",
    ),
    "unknown built-in": (
        ["pretrain", "builtin:emojis"],
        "builtin:emojis is not built in: choose one of builtin:emoji, builtin:fashion-mnist",
    ),
    # Names.
    "unknown command": (["pretrian", "data"], "unknown command 'pretrian'; did you mean 'pretrain'?"),
    "unheard-of command": (["zzz"], "unknown command 'zzz'; see unmask --help"),
    "unknown method": (["pretrain", "data", "--method", "conmm"], "unknown method 'conmm'; did you mean 'conmim'?"),
    "unheard-of method": (
        ["pretrain", "data", "--method=zzz"],
        f"unknown method 'zzz'; known are {', '.join(METHODS)}",
    ),
    "method that cannot be imported": (
        ["pretrain", "data", "--method", "no_such_module:Mine"],
        "cannot import 'no_such_module' for method 'no_such_module:Mine': No module named 'no_such_module'",
    ),
    "class that is no method": (
        ["pretrain", "data", "--method", "pathlib:Path"],
        "'pathlib:Path' is not a class derived from unmask.Method",
    ),
    "unknown option": (["pretrain", "data", "--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
    "unknown option of the method": (
        ["pretrain", "data", "--method.tempratur", "0.2"],
        "unknown option --method.tempratur; did you mean --method.temperature?",
    ),
    "option of another method": (
        ["pretrain", "data", "--method", "mae", "--method.temperature", "0.2"],
        "unknown option --method.temperature; did you mean --method.",
    ),
    "unheard-of option": (["methods", "--zzz"], "unknown option --zzz; see unmask methods --help"),
    "unknown recipe": (["pretrain", "--recipe", "dem"], "unknown recipe 'dem'; did you mean 'demo'?"),
    "unknown encoder": (
        ["pretrain", "data", *TINY, "--encoder", "vit_smal"],
        "timm knows no model named 'vit_smal'; near names: ",
    ),
    "encoder that is no ViT": (
        ["pretrain", "data", "--method", "mae", "--encoder", "resnet18"],
        "'resnet18' cannot leave patches out or replace them; choose a ViT for methods that hide patches",
    ),
    "unknown device": (
        ["pretrain", "data", *TINY, "--device", "gpu"],
        "unknown device 'gpu'; use auto, cpu, cuda, cuda:1 or mps",
    ),
    "absent device": (
        ["pretrain", "data", *TINY, "--device", "cuda:77"],
        "device 'cuda:77' is not available on this machine",
    ),
    # Values.
    "a word for a number": (["pretrain", "data", "--epochs", "ten"], f"--epochs takes a number, not 'ten'{SEE}"),
    "a fraction for a count": (
        ["pretrain", "data", "--batch-size", "8.5"],
        f"--batch-size takes a whole number or auto, not '8.5'{SEE}",
    ),
    "one word of two numbers": (
        ["pretrain", "data", "--method.crop-scale", "0.5", "x"],
        f"--method.crop-scale takes two numbers, not '0.5 x'{SEE}",
    ),
    "no value": (["pretrain", "data", "--epochs"], f"--epochs needs a value{SEE}"),
    "one value of two": (
        ["pretrain", "data", "--method.crop-scale", "0.5"],
        f"--method.crop-scale needs 2 values{SEE}",
    ),
    "unknown choice": (
        ["pretrain", "data", "--precision", "fp8"],
        f"--precision cannot be 'fp8'; choose one of auto, fp32, bf16, fp16{SEE}",
    ),
    "missing DATA": (["pretrain"], f"unmask pretrain needs DATA, before the options{SEE}"),
    "swallowed DATA": (
        ["pretrain", "--image-size", "32", "data", "--epochs", "1"],
        f"unmask pretrain needs DATA, before the options{SEE}",
    ),
    "something more": (["pretrain", "data", "more", *TINY], "unmask pretrain does not know what to do with 'more'"),
    "mask ratio out of range": (
        ["pretrain", "data", *TINY, "--method.mask.ratio", "1.5"],
        f"mask ratio must lie strictly between 0 and 1, got 1.5{SEE}",
    ),
    "mask unit that does not divide the grid": (
        ["pretrain", "data", *TINY, "--method.mask.unit", "3"],
        "a grid of 4x4 patches does not divide into squares of 3x3 patches",
    ),
    "mask that would hide everything": (
        ["pretrain", "data", *TINY, "--method.mask.ratio", "0.99"],
        "a mask ratio of 0.99 would hide 4 of 4 squares of patches; at least one must be hidden and one visible",
    ),
    "image size that patches do not divide": (
        ["pretrain", "data", *TINY, "--image-size", "36"],
        "image height 36 is not divisible by the patch size 8",
    ),
    "three image sizes": (
        ["pretrain", "data", *TINY, "--image-size", "32", "32", "32"],
        "--image-size takes one number or two (height and width), got 3",
    ),
    "no patch": (["pretrain", "data", *TINY, "--patch-size", "0"], "the patch size must be at least 1 pixel, got 0"),
    "batch larger than the data": (
        ["pretrain", "data", *TINY, "--batch-size", "64"],
        "a batch of 64 is larger than the data: data has 16 images",
    ),
    "batch in unequal parts": (
        ["pretrain", "data", *TINY, "--accumulate", "0"],
        "--accumulate must be at least 1, got 0",
    ),
    "no devices": (
        ["pretrain", "data", *TINY, "--devices", "0"],
        "--devices must be at least 1, got 0",
    ),
    "fewer than no restarts": (
        ["pretrain", "data", *TINY, "--restarts", "-1"],
        "--restarts must be 0 or more, got -1",
    ),
    "no patience": (
        ["pretrain", "data", *TINY, "--patience", "0"],
        "--patience must be above 0, got 0",
    ),
    "waiting backwards": (
        ["pretrain", "data", *TINY, "--wait-for-disk", "-1"],
        "wait_for_disk must be a number of 0 or more, got -1.0",
    ),
    "unequal parts": (
        ["pretrain", "data", *TINY, "--accumulate", "3"],
        "a batch of 8 cannot be cut into 3 equal parts",
    ),
    "endless training": (
        ["pretrain", "data", *TINY, "--epochs", "inf"],
        "epochs must be a number above 0, got inf",
    ),
    "no training": (["pretrain", "data", *TINY, "--epochs", "0"], "epochs must be a number above 0, got 0.0"),
    "huge seed": (
        ["pretrain", "data", *TINY, "--seed", "99999999999999999999"],
        "seed must be a whole number from 0 to 2^63 - 1, got 99999999999999999999",
    ),
    "labels that are not there": (
        ["pretrain", "flat", "--method", "supmae", *quick_options()],
        "SupMAE learns from labels, and flat has none: put its images into one folder a class, or choose method mae",
    ),
    "classes that are one": (
        ["pretrain", "one class", "--method", "supmae", *quick_options()],
        "SupMAE tells classes apart, and one class has only one, only",
    ),
    # Where to write.
    "folder of another run": (
        ["pretrain", "data", *TINY, "--out", "finished"],
        "finished holds another run (its data is ",
    ),
    "folder of other things": (
        ["pretrain", "data", *TINY, "--out", "thesis"],
        "thesis exists and is not a run folder; choose another --out",
    ),
    "a file for a folder": (
        ["pretrain", "data", *TINY, "--out", "good.json"],
        "good.json exists and is not a run folder; choose another --out",
    ),
    "a folder in a file": (
        ["pretrain", "data", *TINY, "--out", "good.json/run"],
        "cannot make the run folder good.json/run (not a directory)",
    ),
    # Configurations.
    "missing configuration": (
        ["pretrain", "--config", "absent.json"],
        "cannot read configuration absent.json: no such file or directory",
    ),
    "configuration cut short": (["pretrain", "--config", "half.json"], "half.json is not valid JSON: "),
    "configuration with an unknown key": (
        ["pretrain", "--config", "odd.json"],
        "settings: unknown key 'crop_scal'; did you mean 'crop_scale'?",
    ),
    "configuration with a wrong type": (
        ["pretrain", "--config=wrong.json"],
        "training.epochs: expected a number, got 'ten'",
    ),
    "configuration of another method": (
        ["pretrain", "--config", "good.json", "--method", "conmim"],
        "the configuration is of method 'mae', not 'conmim'",
    ),
    "configuration and recipe": (
        ["pretrain", "--config", "good.json", "--recipe", "demo"],
        "--config and --recipe exclude each other",
    ),
    # The other commands.
    "evaluation without anything": (
        ["evaluate"],
        f"unmask evaluate needs PROTOCOL, RUN and DATA, before the options; protocols are {', '.join(PROTOCOLS)}",
    ),
    "evaluation with the options first": (
        ["evaluate", "--json", "knn", "finished", "data"],
        f"unmask evaluate needs PROTOCOL, RUN and DATA, before the options; protocols are {', '.join(PROTOCOLS)}",
    ),
    "evaluation of what is not there": (
        ["evaluate", "knn", "absent", "data"],
        "there is no run folder or encoder file absent",
    ),
    "evaluation of an unfinished run": (
        ["evaluate", "knn", "unfinished", "data"],
        "unfinished holds no encoder.safetensors; is the run finished?",
    ),
    "evaluation of a foreign file": (
        ["evaluate", "linear", "foreign.safetensors", "data"],
        "foreign.safetensors is not an encoder written by unmask (its header is missing)",
    ),
    "evaluation of an image": (
        ["evaluate", "knn", "data/cold/000.png", "data"],
        "data/cold/000.png is not a readable safetensors file",
    ),
    "evaluation on images without labels": (
        ["evaluate", "knn", "finished", "flat"],
        "the training images of flat have no labels: put them into one folder a class",
    ),
    "evaluation on one class": (
        ["evaluate", "knn", "finished", "one class"],
        "one class has only one class, only: there is nothing to tell apart",
    ),
    "evaluation on nothing": (["evaluate", "knn", "finished", "absent"], "absent does not exist"),
    "unknown evaluation": (
        ["evaluate", "kmm", "finished", "data"],
        f"unknown protocol 'kmm'; choose one of {', '.join(PROTOCOLS)}",
    ),
    "misspelt evaluation": (
        ["evaluate", "finetun", "finished", "data"],
        "unknown protocol 'finetun'; did you mean 'finetune'?",
    ),
    "evaluation on an absent device": (
        ["evaluate", "knn", "finished", "data", "--device", "cuda:77"],
        "device 'cuda:77' is not available on this machine",
    ),
    "full kNN": (
        ["evaluate", "knn", "finished", "data", "--full"],
        "unknown option --full; see unmask evaluate knn --help",
    ),
    "kNN of several classes an image": (
        ["evaluate", "knn", "finished", "several.csv"],
        "kNN is for images with one class each; a CSV of several is for the linear probe",
    ),
    "full linear probe of several classes an image": (
        ["evaluate", "linear", "finished", "several.csv", "--full"],
        "--full is for images with one class each; leave it out for a CSV",
    ),
    "no neighbour": (
        ["evaluate", "knn", "finished", "data", "--knn.k", "0"],
        "kNN needs at least one neighbour, got k = 0; see unmask evaluate knn --help",
    ),
    # Fine-tuning.
    "fine-tuning on nothing said": (
        ["evaluate", "finetune", "finished"],
        f"unmask evaluate finetune needs DATA, before the options{SEE_FINETUNE}",
    ),
    "fine-tuning of what is not there": (
        ["evaluate", "finetune", "absent", "data"],
        "there is no run folder or encoder file absent",
    ),
    "fine-tuning of an unfinished run": (
        ["evaluate", "finetune", "unfinished", "data"],
        "unfinished holds no encoder.safetensors; is the run finished?",
    ),
    "fine-tuning on images without labels": (
        ["evaluate", "finetune", "finished", "flat"],
        "the training images of flat have no labels: put them into one folder a class",
    ),
    "fine-tuning on one class": (
        ["evaluate", "attentive", "finished", "one class"],
        "one class has only one class, only: there is nothing to tell apart",
    ),
    "unknown recipe of fine-tuning": (
        [*FINETUNE, "--recipe", "conmin"],
        "unknown recipe 'conmin' for fine-tuning; did you mean 'conmim'?",
    ),
    "unheard-of recipe of fine-tuning": (
        [*FINETUNE, "--recipe=zzz"],
        f"unknown recipe 'zzz' for fine-tuning; known are {', '.join(FINETUNING)}",
    ),
    "unknown option of the task": (
        [*FINETUNE, "--task.mixu", "0.5"],
        "unknown option --task.mixu; did you mean --task.mixup?",
    ),
    "smoothing out of range": (
        [*FINETUNE, "--task.smoothing", "2"],
        f"smoothing must lie in [0, 1], got 2.0{SEE_FINETUNE}",
    ),
    "policy that timm cannot read": (
        [*FINETUNE, "--task.randaugment", "rand-wild"],
        f"timm knows no RandAugment policy 'rand-wild'; an example is rand-m9-mstd0.5-inc1{SEE_FINETUNE}",
    ),
    "more train images in a batch than there are": (
        [*FINETUNE, "--batch-size", "64"],
        "a batch of 64 is larger than the data: there are ",
    ),
    "a recipe's batch on few images": (
        ["evaluate", "finetune", "finished", "data", "--recipe", "mae"],
        "a batch of 1024 is larger than the data: there are ",
    ),
    "odd batch with mixup": (
        [*FINETUNE, "--batch-size", "5", "--task.mixup", "0.8"],
        "mixup pairs images, and 5 cannot all be paired: choose an even batch (and even parts of it), or switch mixing "
        "off by --task.mixup 0 --task.cutmix 0",
    ),
    "one image for batch norm": (
        ["evaluate", "attentive", "finished", "data", "--batch-size", "1"],
        "batch norm before the head needs batches (and parts of them) of 2 images or more",
    ),
    "no batch": ([*FINETUNE, "--batch-size", "0"], "batch_size must be a number above 0, got 0"),
    "less than a batch": ([*FINETUNE, "--batch-size", "-4"], "batch_size must be a number above 0, got -4"),
    "no fine-tuning": ([*FINETUNE, "--epochs", "0"], "epochs must be a number above 0, got 0.0"),
    "rate below zero": ([*FINETUNE, "--lr", "-1"], "lr must be 0 or more, got -1.0"),
    "huge seed of fine-tuning": (
        [*FINETUNE, "--share", "0.5", "--seed", "99999999999999999999"],
        f"seed must be a whole number from 0 to 2^63 - 1, got 99999999999999999999{SEE_FINETUNE}",
    ),
    "size that patches do not divide": (
        [*FINETUNE, "--image-size", "36"],
        "image height 36 is not divisible by the patch size 8",
    ),
    "no size": ([*FINETUNE, "--image-size", "0"], "image height 0 is not divisible by the patch size 8"),
    "three sizes for fine-tuning": (
        [*FINETUNE, "--image-size", "32", "32", "32"],
        "--image-size takes one number or two (height and width), got 3",
    ),
    "two budgets of labels": (
        [*FINETUNE, "--share", "0.5", "--shots", "2"],
        "give a share of the labels or a number of images of each class, not both",
    ),
    "share of labels out of range": (
        [*FINETUNE, "--share", "5"],
        "the share of the labels must lie in (0, 1], got 5.0",
    ),
    "more shots than images": (
        [*FINETUNE, "--shots", "99"],
        "99 images of every class are asked for, but the smallest class has ",
    ),
    "budget of several classes an image": (
        ["evaluate", "finetune", "finished", "several.csv", "--shots", "2"],
        "a budget of labels is for images with one class each, not for several",
    ),
    "class token that is not there": (
        ["evaluate", "finetune", "maps.safetensors", "data", *quick_options(), "--task.pooling", "class"],
        "this encoder has no class token; pool by mean",
    ),
    "fine-tuning on an absent device": (
        [*FINETUNE, "--device", "cuda:77"],
        "device 'cuda:77' is not available on this machine",
    ),
    "fine-tuning into a folder of other things": (
        [*FINETUNE, "--out", "thesis"],
        "thesis exists and is not a run folder; choose another --out",
    ),
    "fine-tuning into another run": ([*FINETUNE, "--out", "finished"], "finished holds another run (its "),
    "report of nothing": (["report"], "unmask report needs RUN, before the options; see unmask report --help"),
    "report of what is not there": (["report", "absent"], "absent is not a run folder: it has no config.json"),
    "report of another folder": (["report", "data"], "data is not a run folder: it has no config.json"),
    "unknown method to show": (["show", "cmea"], "unknown method 'cmea'; did you mean 'cmae'?"),
    "no method to show": (["show"], "unmask show needs METHOD, before the options; see unmask show --help"),
    "too much for a list": (["methods", "mae"], "unmask methods does not know what to do with 'mae'"),
    "cases that are not there": (["verify", "absent"], "there is no folder absent"),
    "no cases": (["verify", "empty"], "empty holds no golden cases (pairs of NAME.json and NAME.safetensors)"),
}


def tree(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_one_sentence(
    case: str, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    monkeypatch.setenv("COLUMNS", "60")  # a narrow terminal must not break a sentence
    arguments, sentence = CASES[case]
    before = tree(desk)
    code = main(arguments)
    out, err = capsys.readouterr()
    assert code == 2, out + err
    assert err.count("\n") == 1
    if sentence.endswith((" ", ".")):
        # The rest is not ours to decide.
        assert err.startswith(f"unmask: {sentence}")
    else:
        assert err == f"unmask: {sentence}\n"
    assert "Traceback" not in out + err
    assert tree(desk) == before


def test_every_method_says_the_same(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk)
    for method in METHODS:
        options = [*tiny_options(method), *quick_options()]
        for wrong in (["--method.mask.unit", "3"], ["--batch-size", "99"], ["--method.encoder.heads", "5"]):
            assert main(["pretrain", "data", *options, *wrong]) == 2
        assert not Path("runs").exists()
