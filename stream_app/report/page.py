"""The page: one HTML file with everything in it, so that it opens without a network and can be sent to somebody.

Plots are drawn in the page by Observable Plot on D3 (both ISC, vendored with their licences in ``vendor/``): 490 KB, SVG that
prints and scales, marks for lines, cells, dots and links. Plotly's smallest bundle is three times as large, uPlot draws
lines only, and Bokeh would bring a Python dependency of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="Freshet">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<main id="page"><noscript>This page draws its plots with JavaScript, which is switched off here.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>
{libraries}
</script>
<script>
{script}
</script>
</body>
</html>
"""
SCRIPTS = ("base.js", "charts.js", "leaderboard.js", "sections.js", "requests.js", "page.js")

__all__ = ["page"]


def page(runs: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any] | None = None) -> str:
    """Return the page of one run, or of several side by side.

    Args:
        runs: as :func:`stream_app.report.run_data.read_run` returns them; names differ.
        comparison: as :func:`stream_app.report.compare.compare` returns it, where there are several.
    """
    here = files("stream_app.report")
    # In a script element only `</` and `<!--` can end or change what follows; JSON may write `<` otherwise.
    data = msgspec.json.encode({"runs": runs, "comparison": comparison}).decode().replace("<", "\\u003c")
    libraries = "\n".join((here / "vendor" / name).read_text() for name in ("d3.min.js", "plot.umd.min.js"))
    script = "\n".join((here / "assets" / name).read_text() for name in SCRIPTS)
    names = ", ".join(str(run["name"]) for run in runs)
    title = f"Freshet: {names}".replace("&", "&amp;").replace("<", "&lt;")
    style = (here / "assets" / "page.css").read_text()
    return TEMPLATE.format(title=title, style=style, data=data, libraries=libraries, script=script)
