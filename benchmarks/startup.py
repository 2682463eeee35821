"""Start-up: from the command to its first word, and from `unmask pretrain FOLDER` to the end of the first step.

Every entry is a fresh process, and entries take turns. The yardstick is what no training by torch and timm can do
without, in the same run: `import torch, timm` and an optimizer (which imports torch's compiler). FOLDER holds 10,000
JPEG files of 500x375 pixels; the encoder is a ViT-Tiny for 32x32 pixels in patches of 8, with each method's own batch,
on the CPU. "Configured" is when the run folder is claimed (imports, index, checks, networks), "looked at" when the
encoder's health at its random start is known, "first step" when its loss is in the log.

Python's bytecode is cached, as after the first start of any installed package; the very first start, which must compile
it, is told apart. Seconds of the processor are those of the main process up to that moment.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
from PIL import Image

from benchmarks.harness import Table, facts, publish

LEAST = "import torch, timm; torch.optim.AdamW(torch.nn.Linear(1, 1).parameters()).zero_grad()"
"""What every training run by torch and timm does before anything else."""
YARDSTICK = "torch, timm and an optimizer"
FIRST_STEP = "first step"
_POLL_SECONDS = 0.005

Seconds = tuple[float, float]
"""Wall clock and processor."""


def photo_folder(folder: Path, count: int, *, different: int = 50) -> Path:
    """`count` JPEG files of ImageNet's usual size, 1,000 a folder; links to `different` ones."""
    generator = np.random.default_rng(0)
    contents = []
    for _ in range(min(count, different)):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
    for number in range(count):
        place = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number < different:
            place.write_bytes(contents[number])
        else:
            place.hardlink_to(folder / "000" / f"{number % different:06d}.jpg")
    return folder


def until_done(command: Sequence[str], environment: Mapping[str, str]) -> Seconds:
    """Seconds of a process from its start to its end."""
    began = perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return wall, usage.ru_utime + usage.ru_stime


def until_first_step(command: Sequence[str], run: Path, environment: Mapping[str, str]) -> dict[str, Seconds]:
    """Seconds of `unmask pretrain` from its start to each sign of life in its run folder; then ends it."""
    seen: dict[str, Seconds] = {}
    began = perf_counter()
    # In a session of its own, so that its data workers end with it.
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while FIRST_STEP not in seen:
            code = process.poll()
            now = perf_counter() - began, _processor_seconds(process.pid)
            for sign in _signs(run) - set(seen):
                seen[sign] = now
            if code is not None and FIRST_STEP not in seen:
                raise subprocess.CalledProcessError(code, command)
            sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()
    return seen


def _signs(run: Path) -> set[str]:
    signs = {"configured"} if (run / "config.json").exists() else set()
    log = run / "log.jsonl"
    # The last line may still be in the making.
    lines = log.read_text().splitlines(keepends=True) if log.exists() else []
    kinds = {json.loads(line)["kind"] for line in lines if line.endswith("\n")}
    return signs | ({"looked at"} if "health" in kinds else set()) | ({FIRST_STEP} if "step" in kinds else set())


def _processor_seconds(pid: int) -> float:
    """Of a process that still runs or was not waited for, by Linux's table; NaN elsewhere."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def environment(bytecode: Path) -> dict[str, str]:
    """This process's environment, with bytecode cached in a folder."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def measure(methods: Sequence[str], images: int, rounds: int, folder: Path) -> dict[str, list[Seconds]]:
    """Seconds of every entry, round by round; the first round, without bytecode, is under names of its own."""
    photos = photo_folder(folder / "photos", images)
    seconds: dict[str, list[Seconds]] = {}
    variables = environment(folder / "bytecode")
    python = [sys.executable, "-c"]
    unmask = [sys.executable, "-m", "unmask"]
    plain = {
        "python": [*python, "pass"],
        "unmask --help": [*unmask, "--help"],
        "import torch": [*python, "import torch"],
        YARDSTICK: [*python, LEAST],
        "unmask methods": [*unmask, "methods"],
        "unmask pretrain --help": [*unmask, "pretrain", "--help"],
    }
    tiny = ["--encoder", "vit_tiny_patch16_224", "--image-size", "32", "--patch-size", "8", "--device", "cpu"]
    for turn in range(rounds + 1):
        note = "" if turn else " (very first start)"
        for name, command in plain.items():
            seconds.setdefault(name + note, []).append(until_done(command, variables))
        for method in methods:
            run = folder / f"{method}-{turn}"
            command = [*unmask, "pretrain", str(photos), "--method", method, *tiny, "--out", str(run)]
            signs = until_first_step([*command, "--log-every", "1"], run, variables)
            for sign, value in signs.items():
                seconds.setdefault(f"unmask pretrain --method {method}: {sign}{note}", []).append(value)
    return seconds


def tables(seconds: Mapping[str, Sequence[Seconds]], images: int) -> list[Table]:
    """Medians, and how many times the yardstick each is."""
    least = statistics.median(wall for wall, _ in seconds[YARDSTICK])
    rows = []
    for name, values in seconds.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        rows.append((name, wall, cpu, wall / least))
    columns = ("from the start to", "seconds", "processor seconds", f"times {YARDSTICK}")
    return [Table(f"Start-up; {images:,} images for `unmask pretrain`.", columns, tuple(rows))]


def main() -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["conmim", "cmae", "mae"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(arguments.methods, arguments.images, arguments.rounds, Path(folder))
    publish(
        "startup",
        tables(seconds, arguments.images),
        out=arguments.out,
        facts=facts(seed=0, images=arguments.images, rounds=arguments.rounds),
        raw=seconds,
    )


if __name__ == "__main__":
    main()
