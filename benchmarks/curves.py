"""The tables and pictures of docs/ablations.md, from the folders of finished sweeps.

    freshet sweep benchmarks/sweeps/globo_queue.toml --log WORK/globo --out SWEEPS/globo_queue     (and so on)
    python benchmarks/curves.py SWEEPS                       tables, as Markdown
    python benchmarks/curves.py SWEEPS --out docs/images     and a picture per option, drawn in a headless Chromium

The pictures are drawn by the Observable Plot that the run's page carries, and are taken out of the page as SVG.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

LOGS = ("globo", "trivago", "generator")
SWEEPS = ("ablations", "queue", "window", "top_k", "rate")
DEFAULTS: dict[str, Any] = {"queue": {"globo": 20_000.0, "trivago": 1e6, "generator": 1e6}, "top_k": 10.0, "window": 2.0}
RATES = {"rate": 0.001, "table_rate": 0.1, "graph_rate": 0.2}
COLOURS = {"rate": "#0072b2", "table_rate": "#d55e00", "graph_rate": "#009e73"}
TITLES = {"queue": "ids in a queue", "top_k": "items that SimExtract picks", "window": "window, fresh edges"}
PAGE = """<!doctype html><body><script>{libraries}</script><script>
const data = {data};
const colour = (p) => p.colour ?? "#0072b2";
for (const {{name, title, log, label, points, names}} of data) {{
  const svg = Plot.plot({{
    width: 720, height: 230, marginLeft: 70, marginTop: 34, marginBottom: 40, insetLeft: 14, insetRight: 14,
    style: {{fontFamily: "system-ui, sans-serif", fontSize: "12px", background: "#fff"}},
    fx: {{label: null, domain: [...new Set(points.map((p) => p.log))]}},
    x: {{type: log ? "log" : "point", label: title, ticks: names ? [0.3, 1, 3] : log ? 4 : undefined,
      tickFormat: names ? "" : log ? "~s" : undefined}},
    y: {{label: label ?? "AUC, difference to the default", grid: true, tickFormat: "+.4f", nice: true}},
    marks: [
      Plot.ruleY([0], {{stroke: "#666"}}),
      Plot.ruleX(points, {{fx: "log", x: "x", y1: "low", y2: "high", stroke: colour, strokeWidth: 1.6}}),
      Plot.line(points, {{fx: "log", x: "x", y: "value", z: colour, stroke: colour, strokeWidth: 1.6}}),
      Plot.dot(points, {{fx: "log", x: "x", y: "value", r: 4, fill: (p) => (p.default ? "#fff" : colour(p)), stroke: colour,
        strokeWidth: 1.6}}),
      ...(names ?? []).map(({{name, colour}}, i) => Plot.text([name], {{fx: [points.at(-1).log], frameAnchor: "bottom-right",
        textAnchor: "end", fill: colour, dx: -6, dy: -8 - 14 * i}})),
    ],
  }});
  svg.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  svg.setAttribute("id", name);
  document.body.append(svg);
}}
</script></body>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, help="folder of the folders of sweeps, each named as its spec")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    parser.add_argument("--chromium", default="chromium")
    given = parser.parse_args()
    found = {
        (log, name): json.loads(path.read_text())
        for name in SWEEPS
        for log in LOGS
        if (path := given.sweeps / f"{log}_{name}" / "results.json").is_file()
    }
    for (log, name), results in found.items():
        print(f"\n{log}, {name}\n")
        print_table(results)
    if given.out is not None:
        charts = [chart for name in TITLES if (chart := curve(name, found))]
        charts += [chart] if (chart := rate_curves(found)) else []
        for name, svg in drawn(charts, given.chromium).items():
            (given.out / f"egin-{name}.svg").write_text(svg + "\n")


def print_table(results: dict[str, Any]) -> None:
    """Print a sweep as Markdown."""
    print("| variant | AUC | difference, 95% paired | gAUC | log loss | MRR |\n|---|---|---|---|---|---|")
    for name, entry in results["variants"].items():
        auc, gauc, loss, mrr = (entry["figures"][figure]["mean"] for figure in ("auc", "gauc", "log_loss", "mrr"))
        difference = entry.get("difference", {}).get("auc")
        shown = "" if difference is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
        print(f"| {name} | {auc:.4f} | {shown} | {gauc:.4f} | {loss:.4f} | {mrr:.4f} |".replace("0.", "."))


def curve(name: str, found: dict[tuple[str, str], Any]) -> dict[str, Any] | None:
    """Return what is drawn of an option, None where no sweep over it is there."""
    points = []
    for log in LOGS:
        for variant, entry in found.get((log, name), {"variants": {}})["variants"].items():
            default = DEFAULTS[name]
            at = re.fullmatch(rf"{name}=(\d+)", variant)
            if variant == "egin":
                x = default[log] if isinstance(default, dict) else default
                points.append(point(log, x, None))
            elif at is not None and "difference" in entry:
                points.append(point(log, float(at[1]), entry["difference"]["auc"]))
    points.sort(key=lambda each: (LOGS.index(str(each["log"])), each["x"]))
    return {"name": name, "title": TITLES[name], "log": name == "queue", "points": points} if points else None


def point(log: str, x: float, difference: list[float] | None, colour: str | None = None) -> dict[str, Any]:
    """Return a point of a curve; one without a difference is the default."""
    value, low, high = difference or (0.0, 0.0, 0.0)
    return {"log": log, "x": x, "value": value, "low": low, "high": high, "default": difference is None, "colour": colour}


def rate_curves(found: dict[tuple[str, str], Any]) -> dict[str, Any] | None:
    """Return what is drawn of the learning rates: a curve for each, by its ratio to the default."""
    points = []
    for log in LOGS:
        variants = found.get((log, "rate"), {"variants": {}})["variants"]
        for rate, default in RATES.items():
            mine = [point(log, 1.0, None, COLOURS[rate])] if variants else []
            for variant, entry in variants.items():
                name, _, value = variant.partition("=")
                if name == rate:
                    mine.append(point(log, float(value) / default, entry["difference"]["auc"], COLOURS[rate]))
            points += sorted(mine, key=lambda each: each["x"])
    names = [{"name": name, "colour": colour} for name, colour in COLOURS.items()]
    return (
        {"name": "rate", "title": "times the default rate", "log": True, "points": points, "names": names} if points else None
    )


def drawn(charts: list[dict[str, Any]], chromium: str) -> dict[str, str]:
    """Return the SVG of each chart."""
    vendor = files("stream_app.report") / "vendor"
    libraries = "\n".join((vendor / name).read_text() for name in ("d3.min.js", "plot.umd.min.js"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "charts.html"
        page.write_text(PAGE.format(libraries=libraries, data=json.dumps(charts)))
        command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        done = subprocess.run([*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    svgs = re.findall(r"<svg[^>]*\bid=\"(\w+)\".*?</svg>", done.stdout, re.DOTALL)
    bodies = [match.group(0) for match in re.finditer(r"<svg[^>]*\bid=\"\w+\".*?</svg>", done.stdout, re.DOTALL)]
    return dict(zip(svgs, bodies, strict=True))


if __name__ == "__main__":
    main()
