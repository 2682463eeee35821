"""Write `docs/api.md`: all that `import unmask` offers, with signatures, fields and defaults, from the code itself.

    python scripts/make_api.py

What stands there is what a later version keeps; a test compares the page with the code, so that no change of it goes
unnoticed.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import typing
from pathlib import Path
from types import FunctionType
from typing import Any

from docs_text import code, markdown, table
from typing_extensions import Doc

import unmask

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
BEGIN = """# What `import unmask` offers

This page is made from the code by `python scripts/make_api.py`. What stands here, and the options of the commands, is
what [versions](versions.md) are about; everything else in the package may change at any time.
"""
# Defaults that are objects without a short form of their own.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf8")


def page() -> str:
    """The whole page."""
    parts = [BEGIN]
    for name in unmask.__all__:
        if name != "__version__":
            parts.append(entry(name, getattr(unmask, name)))
    return "\n".join(parts)


def entry(name: str, thing: Any) -> str:
    """One name: where it lives, how it is called, what it is."""
    title = f"## `unmask.{name}`\n"
    if isinstance(thing, dict):
        rows = [[code(key), code(f"{value.__module__}.{value.__qualname__}")] for key, value in thing.items()]
        return f"{title}\n{table(('name', 'class'), rows)}\n"
    home = f"From `{thing.__module__}`. {markdown(summary(thing))}\n"
    if inspect.isfunction(thing):
        return f"{title}\n```python\n{signature(name, thing)}\n```\n\n{home}"
    parts = [title, home]
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    if fields:
        hints = typing.get_type_hints(thing, include_extras=True)
        rows = [
            [code(field.name), code(plain_type(str(field.type))), default(field), said_of(hints[field.name])]
            for field in fields
        ]
        parts.append(table(("field", "type", "default", "meaning"), rows) + "\n")
    elif not inspect.isabstract(thing):
        parts.append(f"```python\n{signature(name, thing)}\n```\n")
    members = [[code(text), markdown(said)] for text, said in public_members(thing)]
    if members:
        parts.append(table(("member", "what it is"), members) + "\n")
    return "\n".join(parts)


def signature(name: str, thing: Any, *, lines: bool = True) -> str:
    """As it is called; with `lines`, one parameter a line where it is long."""
    found = inspect.signature(thing)
    parameters: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        parameters.append(written(parameter))
    end = "" if found.return_annotation is found.empty else f" -> {found.return_annotation}"
    short = f"{name}({', '.join(parameters)}){end}"
    if len(short) <= 100 or not lines:
        return short
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){end}"


def written(parameter: inspect.Parameter) -> str:
    """A parameter with its type and its default."""
    annotated = parameter.annotation is not parameter.empty
    text = f"{parameter.name}: {parameter.annotation}" if annotated else parameter.name
    if parameter.default is parameter.empty:
        return text
    return f"{text} = {_ADDRESS.sub('', repr(parameter.default))}"


def summary(thing: Any) -> str:
    """The first paragraph of what it says of itself."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def plain_type(annotation: str) -> str:
    """The type alone, without what is said about it."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Annotated":
        assert isinstance(node.slice, ast.Tuple)
        return ast.unparse(node.slice.elts[0])
    return ast.unparse(node)


def said_of(hint: Any) -> str:
    """What the documentation beside a field's type says."""
    return next(
        (markdown(part.documentation) for part in getattr(hint, "__metadata__", ()) if isinstance(part, Doc)), ""
    )


def default(field: dataclasses.Field[Any]) -> str:
    """The default, shortly; nothing where it must be given."""
    if field.default is not dataclasses.MISSING:
        text = repr(field.default)
        return code(text if len(text) <= 60 else f"{type(field.default).__name__}(...)")
    return "" if field.default_factory is dataclasses.MISSING else code("{}")


def public_members(cls: type) -> list[tuple[str, str]]:
    """Public methods, class methods and properties that are written in this package."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        if not base.__module__.startswith("unmask"):
            continue
        for name, member in vars(base).items():
            inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
            if name.startswith("_"):
                continue
            if isinstance(inner, property):
                found[name] = (name, summary(inner))
            elif isinstance(inner, FunctionType):
                called = getattr(cls, name) if inner is not member else inner
                found[name] = (signature(name, called, lines=False), summary(inner))
    return list(found.values())


if __name__ == "__main__":
    main()
