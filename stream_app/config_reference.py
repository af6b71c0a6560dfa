"""Every key of a config as one Markdown page, made from the Structs: ``python -m stream_app.config_reference``.

``docs/configuration.md`` is its output; ``tests/test_docs.py`` says when it is old.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

from learners.models import BUILT_IN
from stream_app.commands.option_flags import field_texts
from stream_app.config import RunConfig

_HEAD: Final = """# Configuration

<!-- Written by `python -m stream_app.config_reference > docs/configuration.md`; change the Structs instead. -->

Every key that a config may hold, by table. A config is TOML. From weak to strong: built-in defaults, the log's own
`LOG/freshet.toml` (written by `import` and `simulate`), `--config FILE`, `--set KEY=VALUE`, flags. Tables lie over one
another key by key; any other value replaces the one below. What is misspelt is refused with the nearest name.

`freshet config show` prints a config as it counts, defaults included; `freshet config validate FILE` checks a file:

```toml
# shop.toml
[replay]
models = ["egin", "small"]

[models.small]
type = "dnn"
dim = 8
```

```console
$ freshet config validate shop.toml
$ freshet config show --config shop.toml --set models.egin.top_k=5
```
"""
_MODELS: Final = """
## `[models.NAME]`

One table per model; `NAME` is free, `type` says which model it is (by default the name). The options of each type follow.
"""
_BOUNDS: Final = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))

__all__ = ["reference"]


def reference() -> str:
    """Return the page."""
    parts = [_HEAD]
    for name, kind in _tables(RunConfig, ""):
        if name:
            parts.append(_section(f"`[{name}]`", kind))
    parts.append(_MODELS)
    for model in sorted(BUILT_IN):
        config = importlib.import_module(BUILT_IN[model]).Config
        for path, kind in _tables(config, f"models.{model}"):
            parts.append(_section(f"`[{path}]`", kind, "###"))
    return "".join(parts)


def _tables(kind: type[msgspec.Struct], path: str) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield a Struct and those inside it with the names of their tables."""
    yield path, kind
    for field in _fields(kind):
        inner, name = field.type, f"{path}.{field.encode_name}".lstrip(".")
        if isinstance(inner, inspect.DictType):
            inner, name = inner.value_type, f"{name}.NAME"
        if isinstance(inner, inspect.StructType):
            yield from _tables(inner.cls, name)


def _section(title: str, kind: type[msgspec.Struct], level: str = "##") -> str:
    texts = field_texts(kind)
    lines = [
        f"\n{level} {title}\n\n{_text((kind.__doc__ or '').partition('Raises:')[0])}\n\n",
        "| key | type | default | |\n|---|---|---|---|\n",
    ]
    for field in _fields(kind):
        text = _text(texts.get(field.name, "")).replace("|", "\\|")
        lines.append(f"| `{field.encode_name}` | {_type(field.type)} | {_default(field)} | {text} |\n")
    return "".join(lines)


def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType), "a Struct is described as one"
    return described.fields


def _type(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType(types=types):
            return " or ".join(_type(each) for each in types if not isinstance(each, inspect.NoneType))
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in sorted(map(str, values)))
        case inspect.VarTupleType(item_type=item) | inspect.ListType(item_type=item):
            return f"list of {_type(item)}"
        case inspect.DictType(value_type=value):
            return f"table of {_type(value)}"
        case inspect.StructType():
            return "table"
        case inspect.IntType() | inspect.FloatType():
            bounds = [f"{sign} {limit}" for name, sign in _BOUNDS if (limit := getattr(kind, name)) is not None]
            return " ".join(["whole number" if isinstance(kind, inspect.IntType) else "number", ", ".join(bounds)]).strip()
        case inspect.BoolType():
            return "`true`, `false`"
        case inspect.StrType():
            return "text"
        case _:
            return "any"


def _default(field: inspect.Field) -> str:
    value: Any = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None:
        return ""
    if isinstance(value, msgspec.Struct):
        return "see there"
    return f"`{msgspec.json.encode(value).decode()}`".replace(",", ", ") if value not in ({}, ()) else "none"


def _text(text: str) -> str:
    """Return a docstring as one line of Markdown."""
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text)
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


if __name__ == "__main__":
    sys.stdout.write(reference())
