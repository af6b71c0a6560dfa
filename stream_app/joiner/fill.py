"""Columns of a request that metadata completes: what the impression does not say, the newest version by its ``ts`` does."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from msgspec.structs import replace

from .decode import int64s
from .metadata import version_at
from .pending import Request, Version
from .store import State


def filled(request: Request, state: State) -> Request:
    """Return the request with its missing categories, domains and features filled in.

    category: the candidate's, else its item's. domain: likewise, else the request's. Features: likewise, or the user's.
    """
    changes: dict[str, object] = {}
    if not request.complete:
        if state.header.has_items:
            changes |= _from_items(request, state)
        elif request.domain:
            changes["domains"] = _or(request.domains, request.domain)
    if request.request_features and state.header.has_users:
        version = version_at(state.profile(request.user), request.ts)
        if version is not None:
            changes["request_features"] = tuple(map(_value_or, request.request_features, version.features))
    return replace(request, **changes) if changes else request


def only_candidate(request: Request, place: int) -> Request:
    """Return the request with the candidate at ``place`` alone."""
    wide = slice(8 * place, 8 * place + 8)
    narrow = slice(4 * place, 4 * place + 4)
    features = tuple(column[wide] if len(column) == 8 * request.n else column[narrow] for column in request.candidate_features)
    return replace(
        request,
        n=1,
        items=request.items[wide],
        categories=request.categories[wide],
        domains=request.domains[wide],
        positions=request.positions[narrow],
        truth=request.truth[narrow],
        candidate_features=features,
    )


def _from_items(request: Request, state: State) -> dict[str, object]:
    n, ts = request.n, request.ts
    numbers = int64s(n)
    categories = list(numbers.unpack(request.categories))
    domains = list(numbers.unpack(request.domains))
    versions = [version_at(state.item(item), ts) for item in numbers.unpack(request.items)]
    for place, version in enumerate(versions):
        if version is not None:
            categories[place] = categories[place] or version.category
            domains[place] = domains[place] or version.domain
        domains[place] = domains[place] or request.domain
    changes: dict[str, object] = {"categories": numbers.pack(*categories), "domains": numbers.pack(*domains)}
    if request.candidate_features:
        changes["candidate_features"] = tuple(
            _filled_column(column, at, n, versions) for at, column in enumerate(request.candidate_features)
        )
    return changes


def _filled_column(column: bytes, at: int, n: int, versions: Sequence[Version | None]) -> bytes:
    numbers = struct.Struct(f"<{n}{'q' if len(column) == 8 * n else 'f'}")
    values = [
        value if version is None else _value_or(value, version.features[at])
        for value, version in zip(numbers.unpack(column), versions, strict=True)
    ]
    return numbers.pack(*values)


def _value_or(value: float | int, other: float | int) -> float | int:
    """Return ``value``, or ``other`` where it is missing (0 for an id, NaN for a float)."""
    missing = value == 0 if isinstance(value, int) else value != value
    return other if missing else value


def _or(ids: bytes, other: int) -> bytes:
    if not any(ids):
        return int64s(1).pack(other) * (len(ids) // 8)
    numbers = int64s(len(ids) // 8)
    return numbers.pack(*[number or other for number in numbers.unpack(ids)])
