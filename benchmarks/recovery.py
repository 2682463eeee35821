"""Recovery: every fault that a run is promised to outlive, done for real, and the seconds until it is outlived.

The runs are tiny (32x32 pixels, one block, batches of 8 images, a checkpoint every third step) so that many fit into
minutes; what is done to them is not: real processes get real signals, real files lose bytes, a real server stops
answering. "Kept" counts the tries of which all that was promised was true: exit code, sentence, files left, and where a
run finishes, weights and log bit for bit as those of a run that nothing disturbed.

Seconds are those of a command whose Python has torch imported already; where imports are in the time the row says so,
and the row of `python -m unmask` tells what they add. A command that is started again is past where it was when the log
has a step that it did not have before the fault. The command fails where a promise was broken, and says which.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from benchmarks.faults import damaged, figures, killed, ranks
from benchmarks.faults.runs import Reference, Tally
from benchmarks.harness import Table, facts, publish

COLUMNS = ("fault", "promise", "kept", "median s", "largest s", "seconds until")
SEED = 0


def measure(arguments: argparse.Namespace, folder: Path) -> list[Tally]:
    """All faults, one after the other."""
    chance = random.Random(SEED)
    tallies: list[Tally] = []

    def take(name: str, fault: Callable[[], list[Tally]]) -> None:
        began = perf_counter()
        found = fault()
        tallies.extend(found)
        kept = ", ".join(f"{tally.kept} of {tally.tries}" for tally in found)
        print(f"{name}: kept {kept} ({perf_counter() - began:.0f} s)", flush=True)

    times = arguments.times
    alone = Reference(_made(folder / "alone"), killed.steps_needed(min(killed.GROUP, arguments.kills)))
    take("kills", lambda: killed.kill_again_and_again(alone, arguments.kills, chance))
    take("fresh starts", lambda: killed.fresh_starts(alone, arguments.fresh))
    take("signals", lambda: killed.stop_by_signals(alone, times))
    take("second launch", lambda: killed.start_twice(alone, times))
    take("full disk", lambda: killed.fill_the_disk(alone, times))
    take("workers", lambda: killed.kill_workers(alone, times))
    take("checkpoints", lambda: damaged.damaged_checkpoints(alone, arguments.places, chance))
    take("resumed", lambda: damaged.resume_from_damaged(alone, times, chance))
    take("not finite", lambda: figures.not_finite(alone, times))
    take("bad files", lambda: damaged.bad_images(_made(folder / "images"), arguments.images, times))
    take("shards", lambda: damaged.lost_shards(_made(folder / "shards"), min(times, 2)))
    two = Reference(_made(folder / "two"), killed.steps_needed(min(ranks.GROUP, arguments.rank_kills)), ranks=2)
    take("ranks killed", lambda: ranks.kill_ranks(two, arguments.rank_kills, chance))
    take("ranks frozen", lambda: ranks.freeze_ranks(two, times))
    take("launcher", lambda: ranks.launcher_restarts(two, arguments.fresh))
    return tallies


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def tables(tallies: list[Tally], steps: int, seconds: float) -> list[Table]:
    """One row a fault, and what all of them were together."""
    done = sum(tally.tries for tally in tallies)
    kept = sum(tally.kept for tally in tallies)
    caption = (
        f"{done} faults, {kept} of them outlived as promised; {steps:,} steps soaked, "
        f"in {seconds / 60:.1f} minutes. Bad files are {damaged.kinds_of_damage()}, all alike."
    )
    return [Table(caption, COLUMNS, tuple(tally.row() for tally in tallies))]


def main() -> None:
    """Do all faults and publish; fail where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of a run of one process")
    parser.add_argument("--rank-kills", type=int, default=10, help="of a run of two ranks")
    parser.add_argument("--times", type=int, default=3, help="each other fault")
    parser.add_argument("--fresh", type=int, default=3, help="starts that import everything")
    parser.add_argument("--places", type=int, default=200, help="damages of a checkpoint, of each kind")
    parser.add_argument("--images", type=int, default=500, help="files of which some are bad")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tallies = measure(arguments, Path(folder))
    publish(
        "recovery",
        tables(tallies, Reference.steps_taken, perf_counter() - began),
        out=arguments.out,
        facts=facts(seed=SEED),
        raw={tally.fault: {"seconds": tally.seconds, "broken": tally.broken} for tally in tallies},
    )
    broken = [sentence for tally in tallies for sentence in tally.broken]
    if broken:
        raise SystemExit("\n".join(["broken promises:", *broken]))


if __name__ == "__main__":
    main()
