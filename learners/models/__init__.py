"""One model per file, one registry.

A model's file holds its frozen config and a ``build`` function. Models from outside come in through the entry-point group
``freshet.models``: ``NAME = "package.module"``, a module of the same shape.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import TYPE_CHECKING, Any

import msgspec

from learners.learner import Learner
from learners.samples import SampleSchema

if TYPE_CHECKING:  # brings Numba in, which listing models does without
    from learners.vectors import VectorStore

ENTRY_POINTS = "freshet.models"
BUILT_IN: Mapping[str, str] = {
    name: f"learners.models.{name}"
    for name in (
        "bst",
        "covisitation",
        "cross_bst",
        "dien",
        "din",
        "dnn",
        "egin",
        "last_clicked",
        "popularity",
        "semi",
        "trend",
        "youtube_dnn",
    )
}

__all__ = ["BUILT_IN", "ENTRY_POINTS", "ModelContext", "ModelError", "build", "config_of", "names"]


class ModelError(ValueError):
    """A model that is not there, or options that it does not take."""


class ModelContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is told about the run that it stands in."""

    schema: SampleSchema
    name: str = ""
    """Name in the run, by default the type's; part of every random draw."""
    seed: int = 0
    device: str = "cpu"
    live: bool = False
    """Whether it learns beside a live stream, where what a step costs may decide how often it comes; a replay repeats."""
    ignored_features: tuple[str, ...] = ()
    """Request or candidate features that only the evaluation may see."""
    vectors: VectorStore | None = None
    """Pre-extracted vectors of items, filled beside the samples; None where the run has none."""


def names() -> list[str]:
    """Return the types of model that can be built here, without importing them."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def _module(kind: str) -> ModuleType:
    if kind in BUILT_IN:
        return importlib.import_module(BUILT_IN[kind])
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == kind:
            module = point.load()
            if not hasattr(module, "Config") or not hasattr(module, "build"):
                raise ModelError(f"model {kind!r} from {point.value!r} needs a Config and a build(config, context)")
            assert isinstance(module, ModuleType)
            return module
    near = difflib.get_close_matches(kind, names(), 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ModelError(f"no model {kind!r}: {hint}there are {', '.join(names())}")


def config_of(kind: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """Check a model's options.

    Raises:
        ModelError: there is no such model, or it does not take an option, or not that value.
    """
    config_type: type[msgspec.Struct] = _module(kind).Config
    try:
        return msgspec.convert(dict(options), type=config_type)
    except msgspec.ValidationError as error:
        fields = ", ".join(config_type.__struct_fields__)
        raise ModelError(f"model {kind!r}: {error}; its options are {fields}") from error


def build(kind: str, options: Mapping[str, Any], context: ModelContext) -> Learner:
    """Build a learner.

    Args:
        kind: type of model, one of :func:`names`.
        options: values for its config; what is not given keeps its default.
        context: schema of the samples, seed, device.

    Raises:
        ModelError: as :func:`config_of`.
    """
    learner: Learner = _module(kind).build(config_of(kind, options), context)
    learner.name = context.name or kind
    return learner
