"""A checkpoint is whole or refused, whatever happened to the disk under it."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unmask.formats import FORMATS
from unmask.optimisation import OptimizerConfig, ParameterRule, build_optimizer
from unmask.training.checkpoint import (
    HEADER,
    HEADER_CHECKSUM,
    Checkpoint,
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    load_module_tensors,
    load_optimizer_tensors,
    module_tensors,
    optimizer_tensors,
    prune_checkpoints,
    save_checkpoint,
    saved_steps,
    write_atomically,
)

CPU = torch.device("cpu")
VALUES = {"step": 12, "elapsed": 1.25, "scaler": {}, "bad_files": {"müll.png": "it is empty"}}


def some_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(16, 12, generator=generator),
        "model.half": torch.randn(3, 4, generator=generator).bfloat16(),
        "model.batches": torch.tensor(7),
        "model.mask": torch.tensor([True, False]),
        "model.none": torch.zeros(0, 3),
        "model.turned": torch.randn(4, 6, generator=generator).T,
    }


def make(path: Path) -> Checkpoint:
    checkpoint = Checkpoint(some_tensors(), VALUES)
    save_checkpoint(path, checkpoint)
    return checkpoint


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert one.values == other.values
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert tensor.dtype == other.tensors[name].dtype
        assert torch.equal(tensor, other.tensors[name])


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path / "new" / "folder", 12)
    saved = make(path)
    assert_same(load_checkpoint(path, CPU), saved)
    assert [entry.name for entry in path.parent.iterdir()] == ["step_000000012.safetensors"]


def test_a_checkpoint_is_as_readable_as_any_new_file(tmp_path: Path) -> None:
    make(tmp_path / "step_000000001.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "step_000000001.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("left", [0, 4, 100, 900, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "step_000000001.safetensors"
    make(path)
    content = path.read_bytes()
    path.write_bytes(content[:left])
    with pytest.raises(CheckpointError, match=r"cannot be read \("):
        load_checkpoint(path, CPU)


def test_a_flipped_byte_in_a_tensor_fails_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "step_000000001.safetensors"
    make(path)
    content = bytearray(path.read_bytes())
    middle = content.index(some_tensors()["model.weight"].numpy().tobytes()) + 300
    content[middle] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"is damaged: 'model\.weight' does not match its checksum"):
        load_checkpoint(path, CPU)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "step_000000001.safetensors"
    make(path)
    return path


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_flipped_bit_goes_unnoticed(
    healthy: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(healthy.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    damaged = healthy.with_name("damaged.safetensors")
    damaged.write_bytes(content)
    try:
        loaded = load_checkpoint(damaged, CPU)
    except CheckpointError:
        return
    # Some bits say nothing: spaces, for example, that fill up the header.
    assert_same(loaded, load_checkpoint(healthy, CPU))


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match=r"foreign\.safetensors is not a checkpoint of unmask"):
        load_checkpoint(tmp_path / "foreign.safetensors", CPU)
    (tmp_path / "words.safetensors").write_text("no tensors, words only")
    with pytest.raises(CheckpointError, match=r"words\.safetensors cannot be read"):
        load_checkpoint(tmp_path / "words.safetensors", CPU)
    with pytest.raises(CheckpointError, match=r"absent\.safetensors cannot be read \(No such file"):
        load_checkpoint(tmp_path / "absent.safetensors", CPU)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "checkpoint", 7)
    make(tmp_path / "step_000000001.safetensors")
    monkeypatch.undo()
    with pytest.raises(
        CheckpointError, match=r"has checkpoint format 7, this version reads 1: a newer unmask wrote it$"
    ):
        load_checkpoint(tmp_path / "step_000000001.safetensors", CPU)


@pytest.mark.parametrize(
    "header",
    ["[" * 100_000, "[]", "3", "{}", '{"format": 1}', '{"format": 1, "crc32": [1], "values": {}}',
     '{"format": 1, "crc32": {}, "values": 7}'],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_a_header_that_says_something_else_is_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "step_000000001.safetensors"
    save_file({"a": torch.ones(2)}, path, {HEADER: header, HEADER_CHECKSUM: str(zlib.crc32(header.encode()))})
    with pytest.raises(CheckpointError, match=r"step_000000001\.safetensors has a damaged header$"):
        load_checkpoint(path, CPU)


REFUSING_DISK = """
import resource, sys
from pathlib import Path
import torch
from unmask.formats import FORMATS
from unmask.training.checkpoint import Checkpoint, CheckpointError, save_checkpoint

limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    save_checkpoint(Path(sys.argv[1]), Checkpoint({"large": torch.ones(100_000)}, {"step": 2}))
except CheckpointError as error:
    print(error)
"""


def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1)
    saved = make(path)
    before = path.read_bytes()
    # The same name again: the file that is replaced must survive, too.
    done = subprocess.run(
        [sys.executable, "-c", REFUSING_DISK, str(path), "200000"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"could not write {path} (")
    assert done.stdout.strip().endswith("earlier checkpoints are intact")
    assert "file too large" in done.stdout.lower()
    assert done.stderr == ""
    assert path.read_bytes() == before
    assert_same(load_checkpoint(path, CPU), saved)
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"could not write .* \((not a directory|file exists)\)"):
        make(tmp_path / "file" / "step_000000001.safetensors")


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 3)
    left = tmp_path / f".{path.name}.part"
    left.mkdir()
    (left / ".tmpXYZ").write_bytes(b"half a checkpoint")
    saved = make(path)
    assert_same(load_checkpoint(path, CPU), saved)
    assert list(tmp_path.iterdir()) == [path]


def test_steps_are_found_in_order_and_foreign_names_ignored(tmp_path: Path) -> None:
    for step in (5, 10_000_000_000, 20):
        make(checkpoint_path(tmp_path, step))
    for name in ("step_5.safetensors", "step_000000007 copy.safetensors", "step_last.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    assert saved_steps(tmp_path) == [5, 20, 10_000_000_000]
    assert saved_steps(tmp_path / "absent") == []


@settings(max_examples=50, deadline=None)
@given(steps=st.sets(st.integers(0, 40), min_size=1), keep_every=st.integers(0, 12), data=st.data())
def test_pruning_keeps_the_newest_and_every_kth(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], keep_every: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("prune")
    newest = data.draw(st.sampled_from(sorted(steps)))
    for step in steps:
        checkpoint_path(folder, step).touch()
    half = folder / ".step_000000041.safetensors.part"
    half.mkdir()
    (half / "step_000000041.safetensors").touch()
    prune_checkpoints(folder, newest, keep_every=keep_every)
    kept = {step for step in steps if step < newest and keep_every and step % keep_every == 0}
    # Whatever lies beyond the newest could not be read when the run went on: it must never be found again.
    assert saved_steps(folder) == sorted(kept | {newest})
    assert not half.exists()


class Net(nn.Module):
    """Parameters, a buffer, and one parameter that is never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def trained_net(steps: int) -> tuple[Net, torch.optim.AdamW]:
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(net, lambda name, parameter: ParameterRule(decay=parameter.ndim > 1), OptimizerConfig())
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    take_steps(net, optimizer, steps)
    return net, optimizer


def take_steps(net: Net, optimizer: torch.optim.AdamW, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net.norm(net.linear(torch.arange(12.0).reshape(4, 3))).pow(3).sum().backward()
        optimizer.step()


def test_a_module_and_its_optimizer_go_on_as_if_never_stopped(tmp_path: Path) -> None:
    net, optimizer = trained_net(3)
    save_checkpoint(tmp_path / "a.safetensors", Checkpoint(module_tensors(net) | optimizer_tensors(optimizer)))
    loaded = load_checkpoint(tmp_path / "a.safetensors", CPU)
    other, other_optimizer = trained_net(0)
    load_module_tensors(other, loaded.tensors)
    load_optimizer_tensors(other_optimizer, loaded.tensors)
    take_steps(net, optimizer, 2)
    take_steps(other, other_optimizer, 2)
    for name, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_tensors_of_another_module_are_refused() -> None:
    tensors = module_tensors(nn.Linear(3, 2))
    for other in (nn.Linear(3, 4), nn.LayerNorm(2), Net()):
        with pytest.raises(CheckpointError, match="of another kind of run or another encoder"):
            load_module_tensors(other, tensors)


def test_writing_atomically_keeps_metadata(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file.safetensors", {"a": torch.ones(2, 3).T}, {"note": json.dumps("ü")})
    assert torch.equal(load_file(tmp_path / "file.safetensors")["a"], torch.ones(3, 2))
