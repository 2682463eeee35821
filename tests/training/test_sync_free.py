"""A training step waits for nothing on a GPU: proved without one, on torch's meta device.

Tensors there have shapes and no values, so whatever reads a value, or needs one to know a shape, raises. Everything
else is the real thing: batches on the host, the move to the device, views, losses, backward, clipping, optimizer,
target. (AdamW is torch's plain one there, not the fused one, which reads nothing either.) Copies from the host that
wait for the device are seen too.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tiny_runs import tiny_config
from unmask.data.batch import Batch
from unmask.methods import METHODS
from unmask.training.trainer import Trainer

META = torch.device("meta")

# Methods whose step still waits for the device, and where. A method that no longer does fails here: strike it out.
READS = {
    "data2vec": "blockwise masks ask whether all are finished",
    "maskfeat": "the head takes hidden tokens by a boolean index",
    "bootmae": "blockwise masks ask whether all are finished",
    "beit": "blockwise masks ask whether all are finished",
    "cae": "blockwise masks ask whether all are finished",
    "beit_v2": "blockwise masks ask whether all are finished",
    "mc_beit": "blockwise masks ask whether all are finished",
    "peco": "blockwise masks ask whether all are finished",
    "igpt": "asks whether its palette was placed",
    "sim": "blockwise masks ask whether all are finished",
    "cim": "blockwise masks ask whether all are finished",
    "ibot": "takes hidden tokens by a boolean index",
    "m3ae": "transformers' text network looks whether anything is padded",
}
# Methods that copy something from the host in such a way that the host waits for all that is queued on the device.
COPIES: dict[str, str] = {}


class BlockingCopies(TorchDispatchMode):
    """Where, in our code, something was copied between host and device without `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(named or {}))
        if operation in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source: Tensor = arguments[operation is torch.ops.aten.copy_.default]
            waits = not ((named or {}).get("non_blocking") or (len(arguments) > 2 and arguments[2]))
            if waits and source.device != result.device:
                ours = [frame for frame in traceback.extract_stack() if f"{Path('src') / 'unmask'}" in frame.filename]
                self.found.add(f"{Path(ours[-1].filename).name}: {ours[-1].line}")
        return result


@pytest.fixture(autouse=True)
def meta_is_like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no generators and no autocast for the meta device, which draws nothing and computes nothing."""
    generator, autocast = torch.Generator, torch.autocast

    class Generator:
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator("cpu")

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda device, *given, **named: nullcontext() if device == "meta" else autocast(device, *given, **named),
    )


def trainer_and_batch(method: str, **changes: Any) -> tuple[Trainer, Batch]:
    config = tiny_config(method, Path("nowhere"))
    torch.manual_seed(0)
    trainer = Trainer(
        METHODS[method](replace(config.settings, **changes)), config.training, steps_per_epoch=4, device=META
    )
    crops = trainer.trainee.crops
    count = config.training.batch_size
    batch = Batch(
        crops=tuple(
            torch.randint(0, 256, (count, crop.count, 3, crop.height, crop.width), dtype=torch.uint8) for crop in crops
        ),
        boxes=tuple(
            torch.tensor([0, 0, crop.height, crop.width, crop.height, crop.width]).float().expand(count, crop.count, 6)
            for crop in crops
        ),
        indices=torch.arange(count),
        seed=3,
        labels=torch.arange(count) % 2,
        texts=tuple(f"picture {index}" for index in range(count)),
    )
    return trainer, batch


def known(exceptions: dict[str, str]) -> list[Any]:
    """All methods; those with an exception must fail."""
    return [
        pytest.param(name, marks=pytest.mark.xfail(reason=exceptions[name], strict=True) if name in exceptions else ())
        for name in METHODS
    ]


@pytest.mark.parametrize("method", known(READS))
def test_a_step_reads_nothing_from_the_device(method: str) -> None:
    trainer, batch = trainer_and_batch(method)
    # In the second step the optimizer has its state.
    for _ in range(2):
        trainer.take_step([batch])
    assert trainer.step == 2


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_cheaper_forms_of_conmim_neither_read_nor_wait(share: float) -> None:
    trainer, batch = trainer_and_batch("conmim", projected="needed", query_share=share)
    with BlockingCopies() as copies:
        trainer.take_step([batch])
    assert copies.found == set()


@pytest.mark.parametrize("method", known(COPIES))
def test_no_copy_makes_the_host_wait(method: str) -> None:
    trainer, batch = trainer_and_batch(method)
    with BlockingCopies() as copies:
        try:
            trainer.take_step([batch])
        except (RuntimeError, NotImplementedError):
            # What a step reads is the other test's business; what it copied until then counts.
            assert method in READS
    assert copies.found == set()


def test_the_guard_sees_reads_and_copies() -> None:
    values = torch.zeros(3, device=META)
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(values.sum())
    with pytest.raises((RuntimeError, NotImplementedError)):
        values[values > 0]
    with BlockingCopies() as copies:
        Batch.of(torch.zeros(2, 3, 4, 4, dtype=torch.uint8)).to(META)
    assert copies.found == set()


def test_figures_are_read_when_they_are_settled() -> None:
    trainer, batch = trainer_and_batch("simclr")
    trainer.take_step([batch])
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.settle()
    # A checkpoint would need them, too.
    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer.state({})
