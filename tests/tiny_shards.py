"""Tar shards of a few drawn images, and a web server that can be as unreliable as a test needs."""

from __future__ import annotations

import io
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from unmask.data.sources import Source


def picture(number: int, side: int = 8, kind: str = "PNG") -> bytes:
    """An image file of one colour, another for each number."""
    content = io.BytesIO()
    Image.new("RGB", (side, side), (number % 256, number // 256, 77)).save(content, kind)
    return content.getvalue()


def colour_of(content: bytes | np.ndarray) -> int:
    """The number of a picture."""
    assert isinstance(content, bytes)
    red, green, _ = Image.open(io.BytesIO(content)).getpixel((0, 0))  # type: ignore[misc]
    return int(red) + 256 * int(green)


class Numbers(Dataset[int]):
    """The numbers of a source's pictures, as data workers read them."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> int:
        return colour_of(self.source.read(index))


def write_tar(path: Path, members: Mapping[str, bytes], *, kind: int = tarfile.GNU_FORMAT) -> Path:
    """A tar archive of these files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 3, images: int = 4, *, stem: str = "train") -> list[Path]:
    """Shards of numbered pictures with a class of two and a caption each."""
    written = []
    for shard in range(shards):
        members = {}
        for number in range(shard * images, (shard + 1) * images):
            members[f"{number:06d}.png"] = picture(number)
            members[f"{number:06d}.cls"] = str(number % 2).encode()
            members[f"{number:06d}.txt"] = f"number {number}".encode()
        written.append(write_tar(folder / f"{stem}-{shard:06d}.tar", members))
    return written


class Behaviour:
    """What a server does wrong, by the name of a file, and how often each was asked for."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        """So many next answers are an error of the server."""
        self.gone: set[str] = set()
        self.stalling: set[str] = set()
        """After half of the file nothing comes any more."""
        self.cut: set[str] = set()
        """After half of the file the connection is closed."""
        self.asked: Counter[str] = Counter()
        self.url = ""
        self.ending = threading.Event()


@contextmanager
def served(folder: Path) -> Iterator[Behaviour]:
    """A server of a folder's files at `url`, which ends with a slash."""
    behaviour = Behaviour()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].rpartition("/")[2]
            behaviour.asked[name] += 1
            if behaviour.failures[name] > 0:
                behaviour.failures[name] -= 1
                self.send_error(503)
            elif name in behaviour.gone:
                self.send_error(404)
            elif name in behaviour.stalling | behaviour.cut:
                content = (folder / name).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                if name in behaviour.stalling:
                    behaviour.ending.wait(20)
            else:
                super().do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    behaviour.url = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield behaviour
    finally:
        behaviour.ending.set()
        server.shutdown()
        server.server_close()
        thread.join()
