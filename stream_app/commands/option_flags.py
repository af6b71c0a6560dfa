"""Options of an importer or the generator (a Struct) as flags of a verb."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import tyro

METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", bool: "True|False", Path: "FILE"}

__all__ = ["field_texts", "given_flags", "with_flags"]


def with_flags(base: type, options: type[msgspec.Struct], name: str, doc: str) -> type[Any]:
    """Return a dataclass that has the fields of ``base`` and a flag for each option that is simple enough for one.

    A flag that is not given is None, so that :func:`given_flags` can tell.
    """
    texts = field_texts(options)
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(options):
        hint = _simple(get_type_hints(options)[field.name])
        if hint is not None:
            default = field.default if field.default not in (msgspec.NODEFAULT, None, ()) else None
            hint_text = "" if default is None else f"(default: {default})"
            arg = tyro.conf.arg(metavar=_metavar(hint), help=texts.get(field.name, ""), help_behavior_hint=hint_text)
            fields.append((field.name, Annotated[hint, arg], None))
    made = dataclasses.make_dataclass(name, fields, bases=(base,), frozen=True, kw_only=True)
    made.__doc__ = doc
    return made


def given_flags(command: Any, base: type) -> dict[str, Any]:
    """Return the option flags of a command of :func:`with_flags` that were given."""
    own = {field.name for field in dataclasses.fields(base)}
    given = {field.name: getattr(command, field.name) for field in dataclasses.fields(command) if field.name not in own}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items() if value is not None}


def _simple(hint: Any) -> Any:
    """Return the type that a flag for an option has, None where it cannot be one."""
    if get_origin(hint) in (Union, types.UnionType):
        rest = [each for each in get_args(hint) if each is not type(None)]
        return _simple(rest[0]) if len(rest) == 1 else None
    if hint in METAVARS or get_origin(hint) is Literal:
        return hint | None
    if get_origin(hint) is tuple and get_args(hint)[0] in METAVARS:
        return hint | None
    return None


def _metavar(hint: Any) -> str | None:
    for each in get_args(hint):
        if get_origin(each) is Literal:
            return "|".join(map(str, get_args(each)))
        if get_origin(each) is tuple:
            return "VALUE..."
        if each in METAVARS:
            return METAVARS[each]
    return None


def field_texts(options: type) -> dict[str, str]:
    """Return the docstrings of a Struct's fields: the strings that follow them in its source, bases first."""
    found: dict[str, str] = {}
    for each in reversed(options.__mro__):
        if issubclass(each, msgspec.Struct) and each is not msgspec.Struct:
            body = ast.parse(inspect.getsource(each)).body[0]
            assert isinstance(body, ast.ClassDef), "the source of a class"
            found |= dict(_described(body.body))
    return found


def _described(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(described))):
                yield name, inspect.cleandoc(described)
