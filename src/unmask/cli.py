"""The command line: finds the command and turns its errors into exit codes.

0 done, 1 a check failed or we broke, 2 what the user gave is wrong (one sentence), 69 another process of the same
training was lost, 75 stopped; after both the same command resumes.
Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from unmask.commands import COMMANDS, MODULES
from unmask.errors import Failure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not valid text must not end a run that only wants to print it.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(given)
        sys.stdout.flush()
        return code
    except ValueError as error:
        return _refuse(str(error), 2)
    except Failure as error:
        return _refuse(str(error), error.code)
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has seen enough; leave nothing for the interpreter to flush.
        sys.stdout = None
        return 0


def _run(given: list[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if given[0] in ("-V", "--version"):
        from unmask import __version__

        print(__version__)
        return 0
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see unmask --help"
        raise ValueError(f"unknown command {command!r}; {hint}")
    # Threads that wait by spinning make a step several times slower as soon as anything else runs on the machine; on a
    # quiet one sleeping costs some speed, and the variable is the user's to set. It counts before torch starts threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return int(importlib.import_module(f"unmask.commands.{MODULES.get(command, command)}").run(rest))


def _refuse(sentence: str, code: int) -> int:
    print(f"unmask: {sentence}", file=sys.stderr)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {meaning}" for name, meaning in COMMANDS.items())
    return (
        "usage: unmask COMMAND ...\n\n"
        "A folder of unlabelled images in, a vision encoder out.\n\n"
        f"{rows}\n\n"
        "unmask COMMAND --help tells the rest. Begin with: unmask pretrain photos/"
    )
