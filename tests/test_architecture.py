"""The rules of the house: imports in one direction, nothing heavy too early, everything documented."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import FunctionType, ModuleType

import pytest
from typing_extensions import Doc

import unmask

ROOT = Path(unmask.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Left to right: a room imports only from rooms before it. The package's own __init__ imports lazily and from all.
ORDER = (
    "errors",
    "extras",
    "json_lines",
    "formats",
    "disk",
    "ranks",
    "data",
    "masking",
    "colour",
    "views",
    "schedule",
    "bert_adamw",
    "optimisation",
    "trainee",
    "models",
    "objectives",
    "methods",
    "tasks",
    "training",
    "loggers",
    "evaluation",
    "interop",
    "report",
    "embedding",
    "config",
    "recipes",
    "defaults",
    "progress",
    "run_folder",
    "run_loop",
    "pretrain",
    "supervised",
    "evaluate",
    "study",
    "run_report",
    "model_card",
    "replay",
    "tokenizer_training",
    "bench",
    "doctor",
    "commands",
    "cli",
    "__main__",
)
# RunConfig is the sum of parts that are documented where they are defined.
WITHOUT_DOC = {"RunConfig"}


def _module_name(path: Path) -> str:
    parts = ["unmask", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> Iterator[str]:
    """Full names of modules of ours that a file imports anywhere, in functions too."""
    names = {_module_name(file) for file in FILES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "unmask")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            if module.split(".")[0] == "unmask":
                for alias in node.names:
                    submodule = f"{module}.{alias.name}"
                    yield submodule if submodule in names else module


def _room(module: str) -> str:
    return module.split(".")[1]


def _modules() -> list[ModuleType]:
    return [importlib.import_module(_module_name(path)) for path in FILES if path.name != "__main__.py"]


def _classes() -> list[type]:
    """Every class that is defined in our modules."""
    return [
        found
        for module in _modules()
        for found in vars(module).values()
        if isinstance(found, type) and found.__module__ == module.__name__
    ]


def test_every_room_has_its_place() -> None:
    rooms = {_room(_module_name(path)) for path in FILES if path.parent != ROOT or path.name != "__init__.py"}
    assert rooms == set(ORDER)


def test_imports_go_from_right_to_left_only() -> None:
    wrong = []
    for path in FILES:
        importer = _module_name(path)
        if importer == "unmask":
            continue
        for imported in _imports(path):
            # `from unmask import __version__` reaches no room.
            if imported != "unmask" and ORDER.index(_room(imported)) > ORDER.index(_room(importer)):
                wrong.append(f"{importer} imports {imported}")
    assert wrong == []


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {_module_name(path): set(_imports(path)) for path in FILES if path != ROOT / "__init__.py"}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "code",
    [
        "import unmask",
        "import unmask.cli",
        "from unmask.cli import main; main(['--help'])",
        "from unmask.cli import main; main(['--version'])",
        "from unmask.cli import main; main(['pretrian'])",
    ],
)
def test_nothing_heavy_is_imported_before_a_command_needs_it(code: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'matplotlib', 'tyro', 'rich', 'cattrs', 'jaxtyping'}"
    check = f"{code}; import sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_importing_a_module_only_defines_things() -> None:
    """No statement at the top of a module does anything: no call for its effect, no loop, no condition."""
    defining = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.ClassDef)
    doing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in FILES
        for node in ast.parse(path.read_text(encoding="utf8")).body
        if not isinstance(node, defining)
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        and path.name != "__main__.py"
    ]
    assert doing == []


def test_only_the_command_line_prints() -> None:
    printing = {
        str(path.relative_to(ROOT))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"cli.py"}


def _public_functions(owner: ModuleType | type, module: str) -> Iterator[str]:
    """Names of public functions, methods and properties defined in `owner` that have no docstring of their own or of
    the base class whose method they fill in."""
    for name, found in vars(owner).items():
        if name.startswith("_"):
            continue
        if isinstance(found, classmethod | staticmethod):
            found = found.__func__
        if isinstance(found, property):
            found = found.fget
        if isinstance(found, FunctionType) and found.__module__ == module and not inspect.getdoc(getattr(owner, name)):
            yield f"{module}.{found.__qualname__}"


def test_everything_public_is_documented() -> None:
    missing = []
    for module in _modules():
        if not (module.__doc__ or "").strip():
            missing.append(module.__name__)
        missing += _public_functions(module, module.__name__)
    for cls in _classes():
        if not cls.__name__.startswith("_"):
            doc = vars(cls).get("__doc__") or ""
            # A dataclass without a docstring gets its signature for one.
            if not doc.strip() or doc.startswith(f"{cls.__name__}("):
                missing.append(f"{cls.__module__}.{cls.__qualname__}")
            missing += _public_functions(cls, cls.__module__)
    assert missing == []


CONFIGS = [cls for cls in _classes() if cls.__name__.endswith("Config")]


@pytest.mark.parametrize("cls", CONFIGS, ids=lambda cls: cls.__name__)
def test_configurations_are_frozen_keyword_only_and_every_field_says_what_it_means(cls: type) -> None:
    assert dataclasses.is_dataclass(cls)
    parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
    assert parameters.frozen
    assert all(field.kw_only for field in dataclasses.fields(cls))
    if cls.__name__ in WITHOUT_DOC:
        return
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        said = [note.documentation for note in typing.get_args(hints[field.name])[1:] if isinstance(note, Doc)]
        assert len(said) == 1, field.name
        assert said[0].strip().endswith((".", ".]", "]")), said[0]


def test_there_are_configurations_to_check() -> None:
    names = {cls.__name__ for cls in CONFIGS}
    assert {"EncoderConfig", "ConMIMConfig", "CMAEConfig", "TrainingConfig", "MaskConfig", "ColourConfig"} <= names


def test_every_field_of_a_method_names_its_source_or_its_meaning_in_one_line() -> None:
    for cls in CONFIGS:
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, hint in hints.items():
            notes = [note for note in typing.get_args(hint)[1:] if isinstance(note, Doc)]
            assert all("\n" not in note.documentation for note in notes), (cls.__name__, name)
