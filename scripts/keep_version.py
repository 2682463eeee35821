"""Write what this version of unmask writes, a file of every kind: later versions must still read it.

    python scripts/keep_version.py tests/kept/0.2.0

Run it once, for a version that goes out; `tests/test_kept_versions.py` reads the folders of all versions. They are
never changed afterwards. `expected.json` has the commands that go on with the stopped runs, and what they come to.
Everything is as small as it can be (under a MiB together) and made by the real commands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from unmask.errors import STOPPED

SIDE = 32
# A ViT of one narrow block, for images of 32 x 32 pixels in 16 patches.
ENCODER = {"patch-size": 8, "width": 16, "depth": 1, "heads": 2}
HEAD = {"hidden": 16, "out": 16}
DECODER = {"width": 16, "depth": 1, "heads": 2}
CONV = {"width": 4, "blocks": 1}
DETECTOR = {"pyramid-width": 8, "box-width": 8, "proposals": 8, "proposal-samples": 8, "box-samples": 8}
QUICK = ["--batch-size", "4", "--workers", "0", "--log-every", "1", "--device", "cpu"]
EPOCHS = 10  # 40 steps: time enough to be stopped among them


def main() -> None:
    """Make the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that does not exist yet, named by the version")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True)
    draw_images(out / "images")
    long = ["--epochs", str(EPOCHS), *QUICK]
    small = ["images", "--image-size", str(SIDE), *options("method.encoder", ENCODER), *long]
    commands = {
        "conmim": ["pretrain", *small, "--method", "conmim", *options("method.projector", HEAD), "--out", "conmim"],
        "mae": ["pretrain", *small, "--method", "mae", *options("method.decoder", DECODER), "--out", "mae"],
        "classifier": ["evaluate", "finetune", "mae.safetensors", "images", *long, "--out", "classifier"],
        "tokenizer": [
            *("tokenizer", "train", "images", "--vocabulary", "8", *options("tokenizer.conv", CONV)),
            *("--image-size", str(SIDE), *long, "--out", "tokenizer.safetensors"),
        ],
    }
    losses = {name: stopped_and_finished(out, name, command) for name, command in commands.items()}
    dense = ["mae.safetensors", "builtin:scenes", "--image-size", "32", "--epochs", "0.1", *QUICK]
    narrow = ["--task.decoder-width", "8", "--task.auxiliary", "0"]
    unmask(out, "evaluate", "segment", *dense, *narrow, "--out", "segmenter")
    unmask(out, "evaluate", "detect", *dense, *options("task.detector", DETECTOR), "--out", "detector")
    for name in ("segmenter", "detector"):
        (out / name / f"{name}.safetensors").rename(out / f"{name}.safetensors")
        shutil.rmtree(out / name)
    for kind in ("npy", "safetensors", "parquet"):
        unmask(out, "embed", "mae.safetensors", "images", "--workers", "0", "--device", "cpu", "-o", f"features.{kind}")
    unmask(out, "shard", "images", "shards")
    features = np.load(out / "features.npy", allow_pickle=False)[0].tolist()
    facts = {"commands": commands, "losses": losses, "features": features}
    (out / "methods.json").write_text(json.dumps(default_configurations(), indent=1) + "\n")
    (out / "expected.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(out / "runs")  # scores beside encoders
    for page in (*out.rglob("*.html"), out / "tokenizer.png"):
        page.unlink()


def options(name: str, values: dict[str, int]) -> list[str]:
    """Fields of one part of a configuration, as on the command line."""
    return [part for field, value in values.items() for part in (f"--{name}.{field}", str(value))]


def unmask(folder: Path, *arguments: str) -> None:
    """Run a command in the folder."""
    subprocess.run([sys.executable, "-m", "unmask", *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)


def stopped_and_finished(out: Path, name: str, command: list[str]) -> list[float]:
    """Leave the run `name` as it is when it is stopped in the middle, and beside it the file that it ends with.

    Returns the losses of all steps, in their order.
    """
    log = out / name / "log.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "unmask", *command], cwd=out, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 3):
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == STOPPED, f"{name} was not stopped among its steps; try again"
    aside = out / f"{name}.stopped"
    shutil.copytree(out / name, aside)
    unmask(out, *command)
    records = [json.loads(line) for line in log.read_text().splitlines()]
    product = out / name / ("classifier.safetensors" if name == "classifier" else "encoder.safetensors")
    if product.exists():
        product.rename(out / f"{name}.safetensors")
    shutil.rmtree(out / name)
    aside.rename(out / name)
    return [record["loss"] for record in records if record["kind"] == "step"]


def draw_images(folder: Path) -> None:
    """Sixteen images in two classes, smooth ones that take little room."""
    generator = np.random.default_rng(0)
    for number in range(16):
        kind = number % 2
        coarse = generator.integers(0, 256, (2, 2, 3), dtype=np.uint8)
        coarse[:, :, 2 * kind] //= 4
        file = folder / ("warm", "cold")[kind] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file)


def default_configurations() -> dict[str, object]:
    """What config.json says of every method's defaults: all of its fields."""
    from unmask.config import RunConfig
    from unmask.methods import METHODS
    from unmask.training.trainer import TrainingConfig

    training = TrainingConfig(batch_size=8, workers=0)
    return {
        name: RunConfig(data="images", method=name, settings=cls.Config(), training=training).as_dict()
        for name, cls in METHODS.items()
    }


if __name__ == "__main__":
    main()
