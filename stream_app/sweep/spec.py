"""The spec of a sweep (TOML), and the plan that it makes: a resolved config per variant and seed.

::

    log = "shop"
    seeds = [0, 1, 2]

    [replay]                        # [join], [replay] and [models.*] as in freshet.toml: what all variants share
    models = ["egin"]

    [[variant]]                     # the first one is what the others are compared with
    name = "egin"

    [[variant]]
    name = "no graph"
    models.egin.graph = false

    [grid]                          # every combination is a variant
    models.egin.top_k = [1, 5, 10]
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from stream_app.config import ConfigError, Layer, RunConfig, resolve
from stream_app.launch import with_defaults
from stream_app.log_config import joined_layers

__all__ = ["PlannedRun", "SweepError", "SweepSpec", "Variant", "plan", "read_spec"]

_MOST_VARIANTS: Final = 200


class SweepError(ValueError):
    """A sweep that cannot be run as asked."""


class Variant(NamedTuple):
    """A name and what it changes: tables as in ``freshet.toml``."""

    name: str
    changes: Mapping[str, Any]

    @property
    def slug(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w.+=-]+", "-", self.name).strip("-.") or "variant"


class SweepSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a sweep is told."""

    log: str | None = None
    """Folder of the log, from where the command runs; ``--log`` counts over it."""
    seeds: tuple[int, ...] = (0,)
    """Each variant runs once per seed."""
    join: dict[str, Any] = {}
    replay: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}
    variant: tuple[dict[str, Any], ...] = ()
    """Tables with a name and what they change."""
    grid: dict[str, Any] = {}
    """Dotted keys with lists of values."""

    def variants(self) -> list[Variant]:
        """Return the named variants, then those of the grid.

        Raises:
            SweepError: there is none, a name is missing or comes twice, or the grid holds no lists.
        """
        found = [_named(number, table) for number, table in enumerate(self.variant, 1)] + _grid(self.grid)
        if not found:
            raise SweepError("the sweep has no variants: add [[variant]] tables with a name, or a [grid] of keys with lists")
        if len(found) > _MOST_VARIANTS:
            raise SweepError(f"[grid] makes {len(found)} variants, {_MOST_VARIANTS} at most: leave values out")
        slugs: dict[str, str] = {}
        for each in found:
            if each.slug in slugs:
                raise SweepError(f"variants {slugs[each.slug]!r} and {each.name!r} would share a folder: name them otherwise")
            slugs[each.slug] = each.name
        return found


class PlannedRun(NamedTuple):
    """One run of a sweep."""

    variant: Variant
    seed: int
    config: RunConfig
    """Resolved, but for ``log`` and ``replay.threads``."""

    @property
    def key(self) -> str:
        """Name of the run's files."""
        return f"{self.variant.slug}.{self.seed}"


def read_spec(path: Path) -> SweepSpec:
    """Read a spec.

    Raises:
        SweepError: it is not there, not TOML, or holds what no spec has.
    """
    try:
        spec = msgspec.toml.decode(path.read_bytes(), type=SweepSpec)
    except FileNotFoundError:
        raise SweepError(f"there is no sweep spec {str(path)!r}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        known = ", ".join(SweepSpec.__struct_fields__)
        raise SweepError(f"{path}: no sweep spec: {error}; a spec has {known}") from error
    if not spec.seeds or len(set(spec.seeds)) < len(spec.seeds):
        raise SweepError(f"{path}: seeds = {list(spec.seeds)}: at least one, each once")
    return spec


def plan(spec: SweepSpec, log: Path) -> list[PlannedRun]:
    """Return the runs, all variants of the first seed first.

    Raises:
        ConfigError: an option of the spec or a variant is unknown or of a wrong value; the message names which.
        ModelError: a model does not take an option.
        SweepError: there is no variant.
    """
    below = joined_layers(log)
    shared = Layer(
        "the sweep's spec", {name: getattr(spec, name) for name in ("join", "replay", "models") if getattr(spec, name)}
    )
    runs = []
    for seed, variant in itertools.product(spec.seeds, spec.variants()):
        layers = [
            *below,
            shared,
            Layer(f"variant {variant.name!r}", variant.changes),
            Layer("seeds", {"replay": {"seed": seed}}),
        ]
        try:
            runs.append(PlannedRun(variant, seed, with_defaults(resolve(layers))))
        except ConfigError:
            raise
        except ValueError as error:
            raise SweepError(f"variant {variant.name!r}: {error}") from error
    return runs


def _named(number: int, table: Mapping[str, Any]) -> Variant:
    name = table.get("name")
    if not isinstance(name, str) or not name:
        raise SweepError(f"[[variant]] number {number} needs a name, found {name!r}")
    changes = {key: value for key, value in table.items() if key != "name"}
    if wrong := set(changes) - {"join", "replay", "models"}:
        raise SweepError(
            f"variant {name!r}: unknown key {sorted(wrong)[0]!r}; write changes as join.KEY, replay.KEY or models.NAME.KEY"
        )
    return Variant(name, changes)


def _grid(grid: Mapping[str, Any]) -> list[Variant]:
    """Return every combination; the names say what differs."""
    axes = list(_axes(grid, ""))
    if not axes:
        return []
    found = []
    for values in itertools.product(*(values for _, values in axes)):
        chosen = [(key, value) for (key, _), value in zip(axes, values, strict=True)]
        name = ", ".join(f"{key.rpartition('.')[2]}={_shown(value)}" for key, value in chosen)
        changes: dict[str, Any] = {}
        for key, value in chosen:
            _set(changes, key.split("."), value)
        found.append(Variant(name, changes))
    return found


def _axes(grid: Mapping[str, Any], prefix: str) -> list[tuple[str, list[Any]]]:
    found: list[tuple[str, list[Any]]] = []
    for key, value in grid.items():
        if isinstance(value, Mapping):
            found += _axes(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value:
            found.append((prefix + key, value))
        else:
            raise SweepError(f"[grid] {prefix}{key} = {value!r}: a list of values is needed")
    return found


def _set(table: dict[str, Any], parts: Sequence[str], value: Any) -> None:
    for part in parts[:-1]:
        table = table.setdefault(part, {})
    table[parts[-1]] = value


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
