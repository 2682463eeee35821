"""Files that go bad: checkpoints, images, shards behind a server that does not answer."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from time import perf_counter

import torch

from benchmarks.faults.runs import (
    EVERY,
    CommandProcess,
    Reference,
    Tally,
    expect,
    kill,
    last_logged_step,
    wait_past,
)
from spoilt_files import DAMAGES, spoil_share
from tiny_runs import draw_images, tiny_options
from tiny_shards import served
from unmask.run_folder import RunFolder
from unmask.training.checkpoint import CheckpointError, checkpoint_path, load_checkpoint, saved_steps

CPU = torch.device("cpu")
PATIENT = {0.01: 0.1, 0.1: 0.2, 0.5: 0.7, 1.0: 1.0}
"""A --max-bad-share that lets a run go on, by the share of its files that are bad."""
STRICT = 0.1
"""The default."""


def damaged_checkpoints(reference: Reference, places: int, chance: random.Random) -> list[Tally]:
    """The newest of a run's checkpoints cut short, or one of its bits turned, anywhere in the file; then read."""
    promise = "noticed; the one before it is read, with a warning"
    run = reference.folder / "damaged"
    reference.finish(run, "--keep-every", str(EVERY))
    checkpoints = run / "checkpoints"
    before, newest = saved_steps(checkpoints)[-2:]
    file = checkpoint_path(checkpoints, newest)
    whole = file.read_bytes()
    good = load_checkpoint(file, CPU)
    tallies = []
    for name, damage in {"cut short": _cut, "with one bit turned": _turn_a_bit}.items():
        tally = Tally(f"newest checkpoint {name}, anywhere", promise, "the other is read")
        tallies.append(tally)
        for _ in range(places):
            file.write_bytes(damage(whole, chance))
            with tally.attempt():
                began = perf_counter()
                found, troubles = RunFolder(run).newest_checkpoint(CPU)
                tally.seconds.append(perf_counter() - began)
                expect(found is not None, "there is none")
                assert found is not None
                if troubles:
                    expect(found.values["step"] == before and len(troubles) == 1, f"it says {troubles}")
                else:
                    same = all(torch.equal(tensor, good.tensors[key]) for key, tensor in found.tensors.items())
                    expect(same and found.values == good.values, "the damage was not noticed")
    alone = Tally("the only checkpoint damaged", "refused with a sentence", "")
    for step in saved_steps(checkpoints)[:-1]:
        checkpoint_path(checkpoints, step).unlink()
    for _ in range(places):
        file.write_bytes(chance.choice([_cut, _turn_a_bit])(whole, chance))
        with alone.attempt():
            try:
                RunFolder(run).newest_checkpoint(CPU)
            except CheckpointError as error:
                expect(str(file) in str(error) and "\n" not in str(error), f"it says {error}")
            else:
                raise AssertionError("a damaged checkpoint was read")
    return [*tallies, alone]


def _cut(whole: bytes, chance: random.Random) -> bytes:
    return whole[: chance.randrange(len(whole))]


def _turn_a_bit(whole: bytes, chance: random.Random) -> bytes:
    turned = bytearray(whole)
    turned[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
    return bytes(turned)


def resume_from_damaged(reference: Reference, times: int, chance: random.Random) -> list[Tally]:
    """The same in a run that is stopped and started again."""
    tally = Tally("the same, and the run started again", "goes on from the one before", "past where it was")
    run = reference.folder / "resumed"
    for number in range(times):
        before = last_logged_step(run)
        (process,) = reference.start(run, "--keep-every", str(EVERY))
        wait_past(process, run, before + 2 * EVERY)
        kill(process)
        newest = max(saved_steps(run / "checkpoints"))
        file = checkpoint_path(run / "checkpoints", newest)
        file.write_bytes((_cut if number % 2 else _turn_a_bit)(file.read_bytes(), chance))
        reached = last_logged_step(run)
        reference.count(before, run)
        with tally.attempt():
            began = perf_counter()
            (process,) = reference.start(run, "--keep-every", str(EVERY))
            wait_past(process, run, reached)
            tally.seconds.append(perf_counter() - began)
            expect("going back to the checkpoint before it" in process.printed(), f"it says {process.printed()}")
        kill(process)
        reference.count(reached, run)
    with tally.closing():
        reference.check_finishes(run)
    return [tally]


def bad_images(folder: Path, images: int, times: int) -> list[Tally]:
    """Files that are bad in each of the ways of `DAMAGES` alike: few of them, many, all."""
    good = draw_images(folder / "good", images)
    tallies = []
    for share, limit in PATIENT.items():
        for allowed in dict.fromkeys((limit, STRICT)):
            if share == STRICT == allowed:
                continue  # by chance a little more of the first files are bad, or not
            goes_on = share < min(1.0, allowed)
            promise = (
                "goes on; each bad file is listed, no other" if goes_on else "stops with a sentence; those met listed"
            )
            tally = Tally(f"{share:.0%} of the files bad, --max-bad-share {allowed:g}", promise, "ended")
            for number in range(times):
                data = folder / f"bad-{share}-{allowed}-{number}"
                shutil.copytree(good, data)
                bad = {str(file) for file in spoil_share(sorted(data.rglob("*.png")), share, number)}
                with tally.attempt():
                    _train_on_bad(data, bad, allowed, tally, goes_on=goes_on)
            tallies.append(tally)
    return tallies


def _train_on_bad(data: Path, bad: set[str], allowed: float, tally: Tally, *, goes_on: bool) -> None:
    run = data.with_name(f"{data.name}-run")
    began = perf_counter()
    ended = CommandProcess([*_pretrain(str(data), run, batch=20), "--max-bad-share", str(allowed)], data.parent).end()
    tally.seconds.append(perf_counter() - began)
    file = run / "bad_files.txt"
    listed = {line.partition("\t")[0] for line in file.read_text().splitlines()} if file.exists() else set()
    if goes_on:
        expect(ended.code == 0, f"it does not finish: {ended}")
        expect(
            listed == bad, f"{len(listed)} are listed, {len(listed & bad)} of them are among the {len(bad)} bad ones"
        )
    else:
        expect(ended.code == 2 and ended.err.count("\n") == 1, f"it says {ended}")
        expect(not run.exists() or (listed and listed <= bad), f"of {len(listed)} listed files not all are bad")


def _pretrain(data: str, run: Path, *, batch: int) -> list[str]:
    """Two epochs of MAE."""
    figures = {"epochs": 2, "batch-size": batch, "workers": 0, "log-every": 1, "device": "cpu", "out": run}
    options = [part for name, value in figures.items() for part in (f"--{name}", str(value))]
    return ["pretrain", data, *tiny_options("mae"), *options]


def lost_shards(folder: Path, times: int) -> list[Tally]:
    """Shards behind a web server that does not have one of them any more, or answers by errors for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    images = draw_images(folder / "images", 40)
    made = CommandProcess(
        ["shard", str(images), str(folder / "shards"), "--shard-size", "10", "--workers", "1"], folder
    ).end()
    expect(made.code == 0, f"shards cannot be written: {made}")
    tallies = {
        "gone": Tally("a shard vanishes", "its images, no others, are listed as lost; the run goes on", "ended"),
        "twice": Tally("the server fails twice", "waits, asks again, nothing is lost", "ended"),
        "long": Tally("the server fails for long", "stops past the share, the shard named", "ended"),
        "again": Tally("... and answers again", "the same command finishes", "ended"),
    }
    with served(folder / "shards") as server:
        for number in range(times):
            shard = sorted(path.name for path in (folder / "shards").glob("*.tar"))[number % 4]
            for trouble, tally in tallies.items():
                server.gone = {shard} if trouble == "gone" else set()
                server.failures[shard] = {"twice": 2, "long": 1000}.get(trouble, 0)
                run = folder / f"{'long' if trouble == 'again' else trouble}-{number}"
                with tally.attempt():
                    _train_on_shards(server.url, shard, run, tally, trouble)
    return list(tallies.values())


def _train_on_shards(url: str, shard: str, run: Path, tally: Tally, trouble: str) -> None:
    command = [*_pretrain(url, run, batch=8), "--max-bad-share", "0.5" if trouble == "gone" else str(STRICT)]
    began = perf_counter()
    ended = CommandProcess(command, run.parent, environment={"XDG_CACHE_HOME": f"{run}-cache"}).end()
    tally.seconds.append(perf_counter() - began)
    file = run / "bad_files.txt"
    bad = file.read_text().splitlines() if file.exists() else []
    named = [line for line in bad if f"{shard}/" in line and "could not be fetched" in line]
    if trouble == "long":
        expect(ended.code == 2 and shard in ended.err and ended.err.count("\n") == 1, f"it says {ended}")
        expect(bad and named == bad, f"it lists {bad}")
        return
    expect(ended.code == 0, f"it does not finish: {ended}")
    lost = {"gone": 10, "twice": 0}.get(trouble, len(bad))
    expect(len(bad) == lost and named == bad, f"{len(bad)} files are listed, {lost} are lost: {bad}")


def kinds_of_damage() -> str:
    """In words."""
    return ", ".join(DAMAGES)
