"""What CCL brings SEMI, on the generator's two domains with item vectors; SEMI against the other sequence models.

    python benchmarks/semi.py                            all but globo, seeds 0 to 4
    python benchmarks/semi.py --quick                    the same, small and of one seed: does it run
    python benchmarks/semi.py shared --shared 0 0.5 1    gain of CCL by the shared part of users' interests
    python benchmarks/semi.py replayed                   the same gain by a replay alone: one pass, ccl_pretrain_until
    python benchmarks/semi.py models                     SEMI against the others, AUC and HR@3 of 300
    python benchmarks/semi.py curves --out docs/images   over K, momentum, tau and the least session; pictures need chromium
    python benchmarks/semi.py budget                     CCL beside the click model: its share of the time, and the gain
    python benchmarks/semi.py globo --data DIR           device groups of a real log as a stand-in for domains

Differences are paired by seed (the same log and the same first parameters), with a 95% t interval. The stream is that of
benchmarks/semi_stream.py. *cosine* is what item vectors alone tell after CCL, before any label: the AUC of the cosine of the
target and the mean of the user's products. *retrieval* is where the own products of users that CCL never saw rank among those
of others.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.curves import drawn
from benchmarks.semi_globo import globo_results
from benchmarks.semi_stream import replayed_results, simulated, stream_results

SEMI: dict[str, Any] = {"type": "semi", "dim": 8, "hidden": [64], "feed_forward": 64, "heads": 1, "rate": 3e-3}
CCL: dict[str, Any] = {
    "ccl": "pretrain", "ccl_batch": 64, "ccl_min_sessions": [3, 3], "ccl_capacity": 1_024, "ccl_momentum": 0.99,
    "ccl_temperature": 3.0, "ccl_rate": 3e-3, "steps": 200,
}  # fmt: skip
BESIDE = {**{k: v for k, v in CCL.items() if k != "steps"}, "ccl": "on", "ccl_batch": 32}
DEFAULT = "ccl, then semi"
OTHERS = ("bst", "cross_bst", "dien", "din", "dnn", "youtube_dnn")
WORLD: dict[str, Any] = {
    "requests": 60_000, "pages": 4_000, "categories": 300, "vector_dim": 64, "vector_noise": 2.0, "dim": 4, "video_late": 0.0,
}  # fmt: skip
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
CURVES: Mapping[str, Sequence[Any]] = {
    "ccl_capacity": (64, 256, 1_024, 4_096),
    "ccl_momentum": (0.0, 0.9, 0.99, 0.999),
    "ccl_temperature": (0.2, 0.7, 3.0, 10.0),
    "ccl_min_sessions": ([1, 1], [3, 3], [6, 6], [10, 10]),
}
TITLES = {
    "ccl_capacity": "K, keys of a dictionary", "ccl_momentum": "m, momentum of the key encoders", "ccl_temperature": "tau",
    "ccl_min_sessions": "entries that each of a pair's sessions has at least",
}  # fmt: skip
Result = dict[str, Any]


def half_width(differences: Sequence[float]) -> float:
    """Return half of the 95% t interval of paired differences; 0 of a single one."""
    n = len(differences)
    return T_95[n - 1] * statistics.stdev(differences) / math.sqrt(n) if n > 1 else 0.0


def interval(differences: Sequence[float]) -> str:
    """Return mean and 95% t interval of paired differences."""
    mean, half = statistics.mean(differences), half_width(differences)
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]" if half else f"{mean:+.4f}"


def pairs_table(title: str, results: Sequence[Result], base: str, figures: Sequence[str]) -> None:
    """Print each model's mean figures and their paired differences to the base."""
    heads = [*figures, *(f"{figure} against {base}" for figure in figures)]
    print(f"\n| {title} | {' | '.join(heads)} |\n|{'---|' * (1 + len(heads))}")
    for name in results[0]["models"]:
        own, other = ([[figure_of(r, each, f) for r in results] for f in figures] for each in (name, base))
        cells = [f"{statistics.mean(values):.4f}" for values in own]
        pairs = zip(own, other, strict=True)
        cells += ["" if name == base else interval([x - y for x, y in zip(*both, strict=True)]) for both in pairs]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    if best := [result["best_auc"] for result in results if "best_auc" in result]:
        print(f"| best possible | {statistics.mean(best):.4f} |{' |' * (len(heads) - 1)}", flush=True)


def figure_of(result: Result, model: str, figure: str) -> float:
    """Return a figure of a model; ``cold`` is the AUC of users with fewer than 5 entries."""
    if figure == "cold":
        cold = result["slices"]["user"]["cold"]["models"][model]["auc"]
        return math.nan if cold is None else float(cold)
    return float(result["models"][model][figure])


def probes(results: Sequence[Result]) -> None:
    """Print what CCL learned, as means over seeds."""
    for name in results[0]["models"]:
        said = [result["models"][name]["probe"] for result in results]
        each = {figure: statistics.mean(one[figure] for one in said) for figure in said[0]}
        if each:
            print(f"{name}: {', '.join(f'{figure} {value:.4f}' for figure, value in each.items())}", flush=True)


def shared(options: argparse.Namespace) -> None:
    given = {"semi": SEMI, "ccl, then semi": {**SEMI, **CCL}, "semi aligned": {**SEMI, "aligned": True}}
    for part in options.shared:
        results = streams(given, options, part)
        pairs_table(f"shared = {part}, {options.seeds} seeds", results, "semi", ["auc", "cold"])
        probes(results)


def replayed(options: argparse.Namespace) -> None:
    once = {**SEMI, **{k: v for k, v in CCL.items() if k != "steps"}}
    given = {"semi": {**once, "ccl_rate": 1e-12}, DEFAULT: once}  # no rate, no change: both begin the clicks at one time
    for part in options.shared:
        results = []
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            results.append(replayed_results(simulated(part, seed, **options.world), given))
            found = results[-1]["models"]
            print(f"shared = {part}, seed {seed}: {found[DEFAULT]['ccl']['steps']} steps of CCL", file=sys.stderr, flush=True)
        pairs_table(f"shared = {part}, one pass, {options.seeds} seeds", results, "semi", ["auc", "cold"])


def models(options: argparse.Namespace) -> None:
    given: dict[str, Mapping[str, Any]] = {"semi": SEMI, "ccl, then semi": {**SEMI, **CCL}}
    for domain in ("video", "product"):
        given |= {f"semi {domain}": {**SEMI, "domains": domain}, f"ccl, semi {domain}": {**SEMI, **CCL, "domains": domain}}
    given |= {name: {"type": name, **{k: SEMI[k] for k in ("dim", "hidden", "rate")}} for name in OTHERS}
    results = streams(given, options, 1.0, hr_share=0.1)
    pairs_table(f"shared = 1, {options.seeds} seeds", results, "semi", ["auc", "hr@3_drawn"])


def curves(options: argparse.Namespace) -> None:
    given: dict[str, Mapping[str, Any]] = {"semi": SEMI, DEFAULT: {**SEMI, **CCL}}
    for name, values in CURVES.items():
        given |= {variant(name, v): {**SEMI, **CCL, name: v} for v in values if v != CCL[name]}
    results = streams(given, options, 1.0)
    pairs_table(f"curves, {options.seeds} seeds", results, "semi", ["auc"])
    probes(results)
    if options.out is not None:
        charts = [chart(name, values, results) for name, values in CURVES.items()]
        for name, svg in drawn(charts, "chromium").items():
            (options.out / f"semi-{name.removeprefix('ccl_')}.svg").write_text(svg + "\n")


def variant(name: str, value: Any) -> str:
    """Return the name in the run of CCL with one option changed."""
    return DEFAULT if value == CCL[name] else f"{name} {value}"


def chart(name: str, values: Sequence[Any], results: Sequence[Result]) -> dict[str, Any]:
    """Return gains over SEMI without CCL by one option, as :func:`benchmarks.curves.drawn` takes them."""
    points = []
    for panel, figure in (("item vectors alone: cosine", "cosine"), ("the click model", "auc")):
        for value in values:
            ends = [
                [{**r["models"][each], **r["models"][each]["probe"]} for r in results]
                for each in (variant(name, value), "semi")
            ]
            gains = [one[figure] - other[figure] for one, other in zip(*ends, strict=True)]
            mean, half = statistics.mean(gains), half_width(gains)
            x = value[0] if isinstance(value, list) else value
            point = {"log": panel, "x": x, "value": mean, "low": mean - half, "high": mean + half}
            points.append({**point, "default": value == CCL[name]})
    log = name in ("ccl_capacity", "ccl_temperature")
    return {"name": name, "title": TITLES[name], "log": log, "label": "AUC, difference to no CCL", "points": points}


def budget(options: argparse.Namespace) -> None:
    every = {f"1 in {n}": {**SEMI, **BESIDE, "ccl_every": n} for n in (1, 4, 16)}
    given = {"semi": SEMI, **every, "before": {**SEMI, **CCL}}
    results = streams(given, options, 1.0)
    pairs_table(f"steps of CCL per click step, {options.seeds} seeds", results, "semi", ["auc"])
    for name in every:
        said = [result["models"][name]["ccl"] for result in results]
        steps, share = (statistics.mean(each[figure] for each in said) for figure in ("steps", "time_share"))
        print(f"{name}: {steps:.0f} steps of CCL, {share:.2f} of the CPU time")


def streams(
    given: Mapping[str, Mapping[str, Any]], options: argparse.Namespace, part: float, hr_share: float = 0.0
) -> list[Result]:
    """Replay a stream per seed with the models."""
    found = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        models = {name: {**model, **({"steps": options.steps} if "steps" in model else {})} for name, model in given.items()}
        found.append(stream_results(simulated(part, seed, **options.world), models, hr_share))
        reached = ", ".join(f"{name} {figures['auc']:.4f}" for name, figures in found[-1]["models"].items())
        print(f"shared = {part}, seed {seed}: {reached}", file=sys.stderr, flush=True)
    return found


def globo(options: argparse.Namespace) -> None:
    ids = {**SEMI, "rate": 1e-3}
    given = {"semi": ids, "semi+ccl": {**ids, **BESIDE, "ccl_min_sessions": [2, 2]}}
    given |= {name: {"type": name, "dim": SEMI["dim"], "hidden": SEMI["hidden"]} for name in ("din", "bst")}
    requests = 1_500 if options.quick else 10_000
    results = [globo_results(options.data, given, requests, seed) for seed in range(options.seeds)]
    pairs_table(f"Globo, device groups 1 and 3, {options.seeds} seeds", results, "semi", ["auc", "hr@3_drawn"])


COMMANDS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "shared": shared, "replayed": replayed, "models": models, "curves": curves, "budget": budget, "globo": globo,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", choices=[*COMMANDS, "all"], default="all")
    parser.add_argument("--data", type=Path, help="folder of the real logs, for globo")
    parser.add_argument("--out", type=Path, help="folder for the curves as SVG")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="options were chosen on seeds from 100 on")
    parser.add_argument("--shared", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--pages", type=int, default=WORLD["pages"], help="that are learned from")
    parser.add_argument("--quick", action="store_true", help="a tenth of the log, one seed, few steps: does it run")
    options = parser.parse_args()
    options.world, options.steps = {**WORLD, "pages": options.pages}, CCL["steps"]
    if options.quick:
        options.world = {**WORLD, "requests": WORLD["requests"] // 10, "pages": WORLD["pages"] // 10}
        options.seeds, options.steps = 1, 10
    names = [name for name in COMMANDS if name != "globo"] if "all" in options.experiments else options.experiments
    if "globo" in names and options.data is None:
        parser.error("globo needs --data DIR, the folder of the real logs")
    for name in names:
        COMMANDS[name](options)


if __name__ == "__main__":
    main()
