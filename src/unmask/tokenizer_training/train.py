"""Training of a tokenizer, from a configuration to a finished file, by the one loop of `unmask.run_loop`.

Beside the file FILE.safetensors lies the folder FILE with config.json, log.jsonl, checkpoints/ and bad_files.txt, and,
for tokenizers that paint, FILE.png. Shape legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from unmask import __version__
from unmask.data.batch import Batch, CropConfig
from unmask.data.loader import CropLoader, EvalLoader
from unmask.data.pixel_range import in_range
from unmask.data.sources import Source, open_source
from unmask.data.statistics import first_readable
from unmask.loggers.outlets import check_trackers
from unmask.models.pretrained import PretrainedEncoder
from unmask.models.tokenizers.base import Lesson, PaintingTokenizer, TrainableTokenizer
from unmask.models.tokenizers.file import build_tokenizer, tokenizer_file
from unmask.optimisation import OptimizerConfig, ParameterRule
from unmask.report.log import of_kind, read_log
from unmask.run_folder import RunFolder
from unmask.run_loop import Job, Outcome, RunState, run_loop
from unmask.tokenizer_training.config import TokenizerTrainingConfig
from unmask.tokenizer_training.quality import Quality, measure, sheet
from unmask.trainee import Losses, Trainee
from unmask.training.checkpoint import write_atomically
from unmask.training.signals import StopRequest
from unmask.training.trainer import Trainer, choose_device, choose_precision
from unmask.views import random_flip, to_float

QUALITY_IMAGES = 512
QUALITY_CHECKS = 5
SHEET_IMAGES = 32


class TokenizerTrainee(Trainee[Batch, tuple[Tensor, torch.Generator]]):
    """A tokenizer that learns, from its teacher if it has one. The teacher is frozen and no part of the module.

    Views are images [B, C, H, W] in [0, 1] and the generator, on the CPU, of all that the losses draw.
    """

    def __init__(
        self, tokenizer: TrainableTokenizer, optimizer: OptimizerConfig, teacher: PretrainedEncoder | None
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.optimizer = optimizer
        self.teacher = teacher

    @property
    def optimizer_config(self) -> OptimizerConfig:
        return self.optimizer

    def make_views(self, batch: Batch) -> tuple[Tensor, torch.Generator]:
        assert batch.seed is not None, "a loader's batches carry their seed"
        generator = torch.Generator().manual_seed(batch.seed)
        return to_float(random_flip(batch.crops[0][:, 0], generator)), generator

    def losses(self, views: tuple[Tensor, torch.Generator], progress: float = 0.0) -> Losses:
        images_BCHW, generator = views
        return self.tokenizer.losses(images_BCHW, Lesson(progress, generator, self.teacher))

    def update_target(self, progress: float) -> None:
        """A codebook moves in the forward pass."""

    def rule(self, name: str, parameter: Tensor) -> ParameterRule:
        return self.tokenizer.rule(name.removeprefix("tokenizer."), parameter)


def work_folder(out: Path) -> RunFolder:
    """Where the log and the checkpoints of a tokenizer file lie. ValueError for a file with another ending."""
    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}")
    return RunFolder(out.with_suffix(""))


def train_tokenizer(
    config: TokenizerTrainingConfig, teacher: PretrainedEncoder | None, out: Path, console: Console
) -> Outcome:
    """Train the tokenizer of `config` and write it to `out`, from the newest checkpoint beside it if there is one.

    ValueError for whatever the user gave that cannot work; NonFiniteLoss where training breaks down.
    """
    training = config.training
    check_trackers(training.log)
    device = choose_device(training.device)
    if choose_precision(training.precision, device) == torch.float16:
        # GPUs without bf16 are old; whether tokenizers learn in fp16 was never tried.
        training = replace(training, precision="fp32")
    source = in_range(open_source(config.data), config.pixel_range)
    with StopRequest() as stop:
        first_readable(source, channels=config.tokenizer.channels)
        torch.manual_seed(training.seed)
        tokenizer = build_tokenizer(config.tokenizer)
        assert isinstance(tokenizer, TrainableTokenizer)
        stride, height, width = tokenizer.stride, config.image_height, config.image_width
        if height < stride or width < stride or height % stride or width % stride:
            raise ValueError(f"image size {height}x{width} is not divisible by the tokenizer's stride {stride}")
        if training.batch_size > len(source):
            raise ValueError(
                f"a batch of {training.batch_size} is larger than the data: {config.data} has {len(source)} images"
            )
        if teacher is not None:
            teacher.to(device).encoder.requires_grad_(False)
        trainee = TokenizerTrainee(tokenizer, config.optimizer, teacher)
        trainer = Trainer(trainee, training, steps_per_epoch=len(source) // training.batch_size, device=device)
        folder = work_folder(out)
        _claim(folder, out, config)
        return run_loop(_TokenizerJob(config, trainee, source, out, device), trainer, folder, console, stop)


def final_quality(folder: RunFolder) -> Quality:
    """The last figures in the log of a finished run."""
    return Quality(**of_kind(read_log(folder.log_file), "quality")[-1]["figures"])


def _claim(folder: RunFolder, out: Path, config: TokenizerTrainingConfig) -> None:
    """As `RunFolder.claim`, and the file that the run will write must not be of somebody else."""
    if folder.config_file.exists():
        if "tokenizer" not in folder.values():
            raise ValueError(f"{folder.path} is not the folder of a tokenizer; choose another --out")
    elif out.exists():
        raise ValueError(f"{out} exists and is of no run of ours; choose another --out")
    folder.claim(config)


class _TokenizerJob(Job[Batch]):
    word = "training"

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        trainee: TokenizerTrainee,
        source: Source,
        out: Path,
        device: torch.device,
    ) -> None:
        self.config = config
        self.trainee = trainee
        self.source = source
        self.out = out
        self.device = device
        self.images_BCHW = self._sample()

    @property
    def data(self) -> str:
        return self.config.data

    @property
    def samples(self) -> int:
        return len(self.source)

    def finished_before(self) -> bool:
        return self.out.exists()

    def batches(self, first: int, last: int, mine: range) -> CropLoader:
        config = self.config
        crop = CropConfig(height=config.image_height, width=config.image_width, scale=config.crop_scale)
        return CropLoader(
            self.source,
            (crop,),
            batch_size=config.batch_size,
            total_steps=last,
            start_step=first,
            seed=config.seed,
            workers=config.workers,
            channels=config.tokenizer.channels,
            pin_memory=self.device.type == "cuda",
            max_bad_share=config.max_bad_share,
        )

    def begin(self, run: RunState) -> None:
        """Nothing is measured before training: a new codebook is empty."""

    def due(self, run: RunState, *, done: bool) -> bool:
        return done or run.trainer.step % -(-run.trainer.total_steps // QUALITY_CHECKS) == 0

    def look(self, run: RunState, *, done: bool) -> None:
        quality = measure(self.trainee.tokenizer, self.images_BCHW, self.trainee.teacher)
        warning = quality.warning()
        run.log("quality", figures=quality.as_dict(), warnings=[] if warning is None else [warning])
        run.say(f"step {run.trainer.step}: {quality}")
        if warning is not None and not done:
            run.say(f"warning: {warning}")

    def values(self) -> dict[str, Any]:
        return {}

    def restore(self, values: dict[str, Any]) -> None:
        """Nothing but the trainer's state lasts from step to step."""

    def finish(self, run: RunState) -> Callable[[], object]:
        return partial(self._write, run.folder.path)

    def _write(self, folder: Path) -> None:
        tokenizer = self.trainee.tokenizer
        write_atomically(self.out, *tokenizer_file(tokenizer, {"version": __version__, "data": self.config.data}))
        if isinstance(tokenizer, PaintingTokenizer):
            aside = folder / ".sheet.part"
            aside.write_bytes(sheet(tokenizer, self.images_BCHW[:SHEET_IMAGES]))
            aside.replace(self.out.with_suffix(".png"))

    def _sample(self) -> Tensor:
        """Central crops [B, C, H, W] in [0, 1] of images spread over the data, the same ones for the whole run."""
        count = min(QUALITY_IMAGES, len(self.source))
        # In an order of its own, so that the first of them are no neighbours.
        spread = np.random.default_rng(self.config.seed).permutation(len(self.source))[:count]
        loader = EvalLoader(
            self.source.subset(spread),
            height=self.config.image_height,
            width=self.config.image_width,
            channels=self.config.tokenizer.channels,
            batch_size=count,
            workers=0,
        )
        return to_float(torch.cat([images for images, _ in loader]))
