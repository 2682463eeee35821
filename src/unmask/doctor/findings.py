"""What facts about libraries, machine and speed mean, in plain words: pure functions of the facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from unmask.doctor.libraries import Library
from unmask.extras import EXTRAS, install_command

if TYPE_CHECKING:
    # These import torch, and what is wrong with torch must be told too.
    from unmask.doctor.machine import Device, Machine
    from unmask.doctor.speed import Decoders, Decoding, Disk

GB = 10**9
MB = 10**6
SHARED_A_WORKER = 64 * MB
FEW_FILES = 1024
SLOW_SYNC = 0.2
LITTLE_ROOM = 5 * GB
LITTLE_MEMORY = 2 * GB

State = Literal["good", "missing", "bad", "broken"]
"""missing: an extra that is not installed; bad: works, but worse than it could; broken: nothing works before it is
mended."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of what was found."""

    what: str
    state: State
    text: str
    advice: str | None = None
    """What to do about it; for all but good ones."""


def about_extras(libraries: Sequence[Library]) -> Iterator[Finding]:
    """A line for each extra, of all libraries that extras need."""
    by_name = {library.name: library for library in libraries}
    for extra, stated in EXTRAS.items():
        yield _about_extra(extra, [by_name[name] for name in stated.libraries.values()])


def about_essential(library: Library) -> Finding:
    """A library without which nothing works."""
    mend = f"pip install '{library.name}{library.wanted or ''}'"
    if library.usable:
        return Finding(what=library.name, state="good", text=str(library.version))
    return Finding(what=library.name, state="broken", text=_wrong(library), advice=mend)


def _about_extra(extra: str, libraries: Sequence[Library]) -> Finding:
    use = EXTRAS[extra].use
    wrong = [library for library in libraries if not library.usable]
    if not wrong:
        versions = ", ".join(f"{library.name} {library.version}" for library in libraries)
        return Finding(what=f"[{extra}]", state="good", text=f"{use}: {versions}")
    told = ", ".join(f"{library.name} {_wrong(library)}" for library in wrong)
    # What nobody has installed nobody misses; what is there and does not work is another thing.
    state: State = "missing" if all(library.version is None for library in wrong) else "bad"
    return Finding(what=f"[{extra}]", state=state, text=f"{use}: {told}", advice=install_command(extra))


def _wrong(library: Library) -> str:
    if library.version is None:
        return "is not installed"
    if library.too_old:
        return f"{library.version} is not {library.wanted}"
    return f"{library.version} cannot be imported ({library.trouble})"


def about_machine(machine: Machine) -> Iterator[Finding]:
    """Processors, memory, devices and limits."""
    yield _about_processors(machine)
    yield from _about_threads(machine)
    low = machine.available < LITTLE_MEMORY
    yield Finding(
        what="memory",
        state="bad" if low else "good",
        text=f"{machine.available / GB:.1f} GB of {machine.memory / GB:.1f} GB are free for this process",
        advice="end other processes, or give the container more; a smaller --batch-size needs less" if low else None,
    )
    yield from map(_about_device, machine.devices)
    if not machine.devices:
        yield _without_device(machine)
    if machine.shared is not None:
        yield _about_shared(machine.shared, machine.processors)
    yield _about_open_files(machine)
    if machine.compiled is None:
        yield Finding(what="compiled loops", state="good", text="are kept between runs")
    else:
        yield Finding(
            what="compiled loops",
            state="bad",
            text=f"are made anew by every process: {machine.compiled}",
            advice="set NUMBA_CACHE_DIR to a folder that can be written",
        )


def _about_processors(machine: Machine) -> Finding:
    count, share = machine.processors, machine.share
    text = f"{count} of {machine.all_processors} for this process"
    if share is not None and share < count - 0.5:
        return Finding(
            what="processors",
            state="bad",
            text=f"{text}, but the container may take the time of {share:g} only",
            advice=f"give --workers {max(1, int(share))} and set OMP_NUM_THREADS={max(1, int(share))}",
        )
    return Finding(what="processors", state="good", text=text)


def _about_threads(machine: Machine) -> Iterator[Finding]:
    told = ", ".join(f"{name}={value}" for name, value in machine.variables.items())
    text = f"{machine.threads} of torch{f' ({told})' if told else ''}"
    usable = machine.processors if machine.share is None else max(1, min(machine.processors, int(machine.share)))
    wait = machine.variables.get("OMP_WAIT_POLICY", "passive").lower()
    if machine.threads > usable:
        advice = f"set OMP_NUM_THREADS={usable}: more threads than processors wait for each other"
    elif not machine.devices and 2 * machine.threads <= usable:
        advice = f"set OMP_NUM_THREADS={usable}, or unset it: training on the CPU leaves processors idle"
    elif wait == "active":
        advice = "unset OMP_WAIT_POLICY: threads that wait by spinning take the processors from the workers"
    else:
        yield Finding(what="threads", state="good", text=text)
        return
    yield Finding(what="threads", state="bad", text=text, advice=advice)


def _about_device(device: Device) -> Finding:
    if device.trouble is not None:
        return Finding(
            what="device",
            state="bad",
            text=f"{device.name} cannot compute: {device.trouble}",
            advice="look at nvidia-smi for who holds it, and install the torch that fits it (pytorch.org)",
        )
    free = "" if device.free is None else f", {device.free / GB:.1f} GB of {(device.memory or 0) / GB:.1f} GB free"
    kind = "bf16" if device.bf16 else "no bf16" + (": --precision auto takes fp16" if device.kind == "cuda" else "")
    if device.free is not None and device.memory is not None and device.free < device.memory / 2:
        return Finding(
            what="device",
            state="bad",
            text=f"{device.name}{free}, {kind}",
            advice="another process holds most of its memory: look at nvidia-smi",
        )
    return Finding(what="device", state="good", text=f"{device.name}{free}, {kind}")


def _without_device(machine: Machine) -> Finding:
    if not machine.nvidia:
        return Finding(what="device", state="good", text="no GPU: all runs on the processors, small images go well")
    if machine.cuda is None:
        text, advice = "there is an NVIDIA GPU, but torch is built without CUDA", "install it from pytorch.org for CUDA"
    else:
        text = f"there is an NVIDIA GPU, but torch (built for CUDA {machine.cuda}) cannot use it"
        advice = "renew the GPU's driver, or look whether CUDA_VISIBLE_DEVICES or the container hides it"
    return Finding(what="device", state="bad", text=text, advice=advice)


def _about_shared(free: int, processors: int) -> Finding:
    workers = min(8, processors)
    text = f"{free / MB:.0f} MB free in /dev/shm, through which workers hand over batches"
    if free >= workers * SHARED_A_WORKER:
        return Finding(what="shared memory", state="good", text=text)
    return Finding(
        what="shared memory",
        state="bad",
        text=f"{text}: too little for {workers} of them",
        advice="start the container with --shm-size=8g (or --ipc=host), or give --workers 0",
    )


def _about_open_files(machine: Machine) -> Finding:
    text = f"{machine.open_files} at a time"
    if machine.open_files >= FEW_FILES:
        return Finding(what="open files", state="good", text=text)
    return Finding(
        what="open files",
        state="bad",
        text=f"{text}: many workers and shards need more",
        advice=f"ulimit -n {max(FEW_FILES, min(machine.open_files_possible, 65536))}",
    )


def about_decoders(decoders: Decoders) -> Finding:
    """What decodes images."""
    text = f"simplejpeg {decoders.simplejpeg}, Pillow with " + ", ".join(
        f"{name} {version}" for name, version in decoders.pillow.items()
    )
    if decoders.simplejpeg != "works":
        return Finding(what="decoders", state="broken", text=text, advice="pip install --force-reinstall simplejpeg")
    if decoders.missing:
        names = " and ".join(decoders.missing)
        return Finding(
            what="decoders",
            state="bad",
            text=f"{text}, without {names}",
            advice=f"pip install --force-reinstall pillow: its own wheels read {names}",
        )
    return Finding(what="decoders", state="good", text=text)


def about_decoding(decoding: Decoding, machine: Machine) -> Finding:
    """How fast images become crops."""
    rate = decoding.images_per_second
    text = (
        f"{rate:.0f} images/s a process, about {rate * machine.processors:.0f} on all processors ({decoding.data}, "
        "crops of 224)"
    )
    if decoding.bad_files:
        return Finding(
            what="decoding",
            state="bad",
            text=f"{text}; {decoding.bad_files} files could not be used",
            advice="unmask data DATA names them",
        )
    if decoding.seconds_to_read * rate > 0.5:
        return Finding(
            what="decoding",
            state="bad",
            text=f"{text}; most of the time goes into reading files",
            advice="put the data on a nearer disk, or make shards of it: unmask shard DATA OUT",
        )
    return Finding(what="decoding", state="good", text=text)


def about_disk(disk: Disk) -> Finding:
    """The disk where runs are written."""
    room = f"{disk.free / GB:.1f} GB free in {disk.folder}"
    if disk.trouble is not None or disk.write is None or disk.read is None or disk.sync is None:
        return Finding(
            what="disk",
            state="bad",
            text=f"{room}; {disk.trouble}",
            advice="give --out a folder that can be written",
        )
    speed = f"writes {disk.write / MB:.0f} MB/s, reads {disk.read / MB:.0f} MB/s, safe after {disk.sync * 1000:.1f} ms"
    text = f"{room}, {speed}"
    if disk.free < LITTLE_ROOM:
        return Finding(what="disk", state="bad", text=text, advice="make room, or give --out on another disk")
    if disk.sync > SLOW_SYNC:
        return Finding(
            what="disk",
            state="bad",
            text=text,
            advice="a slow disk: give a larger --checkpoint-every, or another --out",
        )
    return Finding(what="disk", state="good", text=text)
