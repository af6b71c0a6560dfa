"""SEMI with and without CCL: a small world of two domains, Globo's device groups as a stand-in, curves over CCL's options.

    python -m benchmarks.semi shared --seeds 5          gain of CCL by the shared part of users' interests
    python -m benchmarks.semi models                    SEMI against the other sequence models
    python -m benchmarks.semi curves --pictures docs/images
    python -m benchmarks.semi budget --seeds 1          what CCL costs and brings
    python -m benchmarks.semi globo --data DIR

Differences are over seeds, each seed a pair (same log, CCL on and off), with a 95% t interval.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

SEMI: dict[str, Any] = {"type": "semi", "dim": 8, "hidden": [64], "feed_forward": 64}
CCL = {"ccl": "on", "ccl_batch": 128, "ccl_min_sessions": [2, 4], "ccl_capacity": 2_048}
OTHERS = ("bst", "cross_bst", "dien", "din", "dnn", "youtube_dnn")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
CURVES: Mapping[str, Sequence[Any]] = {
    "ccl_capacity": (128, 512, 2_048, 8_192),
    "ccl_momentum": (0.0, 0.9, 0.99, 0.999),
    "ccl_temperature": (0.1, 0.3, 0.7, 2.0, 5.0),
    "ccl_min_sessions": ([1, 4], [2, 4], [3, 4], [5, 4]),
}

Result = dict[str, Any]


def half_width(differences: Sequence[float]) -> float:
    """Return half of the 95% t interval of paired differences; 0 of a single one."""
    n = len(differences)
    return T_95[n - 1] * statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0


def interval(differences: Sequence[float]) -> str:
    """Return mean and 95% t interval of paired differences."""
    mean, half = statistics.mean(differences), half_width(differences)
    if not half:
        return f"{mean:+.4f}"
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def pairs_table(title: str, results: Sequence[Result], base: str, names: Sequence[str]) -> None:
    print(f"\n| {title} | AUC | HR@3 of 300 | AUC against {base} | HR@3 against {base} |\n|---|---|---|---|---|")
    for name in names:
        cells = []
        for figure in ("auc", "hr@3_drawn"):
            values = [result["models"][name].get(figure) for result in results]
            cells.append("-" if None in values else f"{statistics.mean(values):.4f}")
        for figure in ("auc", "hr@3_drawn"):
            both = [(result["models"][name].get(figure), result["models"][base].get(figure)) for result in results]
            same = name == base or any(None in pair for pair in both)
            cells.append("" if same else interval([one - other for one, other in both]))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    best = [result["best_auc"] for result in results if "best_auc" in result]
    if best:
        print(f"| best possible | {statistics.mean(best):.4f} | | | |", flush=True)


def shared(options: argparse.Namespace) -> None:
    given = {"semi": SEMI, "semi+ccl": {**SEMI, **CCL}}
    for part in options.shared:
        title = f"shared = {part}, {options.seeds} seeds"
        pairs_table(title, worlds(given, options, part), "semi", list(given))


def models(options: argparse.Namespace) -> None:
    given: dict[str, Mapping[str, Any]] = {"semi": SEMI, "semi+ccl": {**SEMI, **CCL}}
    for domain in ("video", "product"):
        given |= {f"semi {domain}": {**SEMI, "domains": domain}, f"semi {domain}+ccl": {**SEMI, **CCL, "domains": domain}}
    given |= {name: {"type": name, "dim": SEMI["dim"], "hidden": SEMI["hidden"]} for name in OTHERS}
    pairs_table(f"shared = 1, {options.seeds} seeds", worlds(given, options, 1.0), "semi", list(given))


def curves(options: argparse.Namespace) -> None:
    from benchmarks.curves import drawn

    charts = []
    for name, values in CURVES.items():
        given = {str(value): {**SEMI, **CCL, name: value} for value in values}
        results = worlds({"semi": SEMI, **given}, options, 1.0)
        pairs_table(name, results, "semi", ["semi", *given])
        charts.append(chart(name, values, results))
    if options.pictures is not None:
        for name, svg in drawn(charts, "chromium").items():
            (options.pictures / f"semi-{name}.svg").write_text(svg + "\n")


def chart(name: str, values: Sequence[Any], results: Sequence[Result]) -> dict[str, Any]:
    """Return the gain in AUC over one option, as :func:`benchmarks.curves.drawn` takes it."""
    points = []
    for value in values:
        gains = [result["models"][str(value)]["auc"] - result["models"]["semi"]["auc"] for result in results]
        half = half_width(gains)
        mean = statistics.mean(gains)
        x = value[0] if isinstance(value, list) else value
        points.append({"log": "", "x": x, "value": mean, "low": mean - half, "high": mean + half, "default": False})
    return {"name": name, "title": f"{name} (0: without CCL)", "log": name == "ccl_capacity", "points": points}


def budget(options: argparse.Namespace) -> None:
    print("\n| CCL | its share of the CPU time | steps | AUC |\n|---|---|---|---|")
    given = {"off": SEMI, **{f"1 in {every}": {**SEMI, **CCL, "ccl_every": every} for every in (1, 8, 32)}}
    for name, model in given.items():
        result = worlds({"semi": model}, options, 1.0)[0]["models"]["semi"]
        said = result["ccl"] or {"time_share": 0.0, "steps": 0}
        print(f"| {name} | {said['time_share']:.2f} | {said['steps']:,} | {result['auc']:.4f} |", flush=True)


def worlds(given: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, part: float) -> list[Result]:
    """Replay a world per seed with the models."""
    from benchmarks.semi_world import world_results

    return [world_results(given, options.requests, part, seed) for seed in range(options.seeds)]


def globo(options: argparse.Namespace) -> None:
    from benchmarks.semi_globo import globo_results

    given = {"semi": SEMI, "semi+ccl": {**SEMI, **CCL, "ccl_min_sessions": [2, 2]}}
    given |= {name: {"type": name, "dim": SEMI["dim"], "hidden": SEMI["hidden"]} for name in ("din", "bst")}
    results = [globo_results(options.data, given, options.requests, seed) for seed in range(options.seeds)]
    pairs_table(f"Globo, device groups 1 and 3, {options.seeds} seeds", results, "semi", list(given))


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "shared": shared,
    "models": models,
    "curves": curves,
    "budget": budget,
    "globo": globo,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=COMMANDS)
    parser.add_argument("--data", type=Path, help="folder of the real logs, for globo")
    parser.add_argument("--pictures", type=Path, help="folder for the curves as SVG; needs chromium")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--shared", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--requests", type=int, default=10_000, help="of a world, or of globo at most")
    options = parser.parse_args()
    if options.experiment == "globo" and options.data is None:
        parser.error("globo needs --data DIR, the folder of the real logs")
    COMMANDS[options.experiment](options)


if __name__ == "__main__":
    main()
