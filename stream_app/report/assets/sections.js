// The parts of the page between the leaderboard and single requests.

function overTime() {
  const charts = [
    timeChart("AUC over event time", seriesLines("auc"), { format: fixed }),
    timeChart("Log loss over event time", seriesLines("log_loss"), { format: fixed }),
    timeChart("gAUC (within a request) over event time", seriesLines("gauc"), { format: fixed }),
    timeChart("Calibration (predicted / observed) over event time", seriesLines("calibration"), { format: fixed }),
  ];
  const counts = RUNS.map((run) => run.moments.filter((each) => each.kind === "checkpoint").length);
  const restarts = d3.sum(RUNS, (run) => run.moments.filter((each) => each.kind === "restart").length);
  const text = `Dotted ticks: checkpoints (${d3.sum(counts)}); black lines: restarts (${restarts}). ` +
    "Each point is a window of event time, or several next to each other.";
  return section("time", "Over time", note(text), legend(MODELS), el("div", { class: "grid" }, ...charts.filter(Boolean)));
}

// Statistics that models give while they learn, one chart per name of the group.
function statCharts(prefix, titles = {}) {
  const names = new Set();
  for (const { run, name } of MODELS) {
    Object.keys(run.series[name] || {}).filter((each) => each.startsWith(prefix)).forEach((each) => names.add(each));
  }
  return [...names].sort().map((name) => timeChart(titles[name] || name, seriesLines(name).map(whereKnown), {})).filter(Boolean);
}

function losses() {
  const titles = { "loss.click": "Click loss", "loss.i2i": "Graph loss item to item", "loss.q2q": "Graph loss query to query",
    "loss.q2i": "Graph loss query to item" };
  const charts = statCharts("loss.", titles);
  const learning = MODELS.filter(({ run, name }) => Object.keys(run.series[name] || {}).some((each) => each.startsWith("loss.")));
  return charts.length ? section("losses", "Parts of the loss", legend(learning), el("div", { class: "grid" }, ...charts)) : null;
}

function calibration() {
  const rows = MODELS.map((entry) => ({ entry, points: entry.model.reliability.filter(([weight]) => weight >= 20) }))
    .filter(({ points }) => points.length);
  if (!rows.length) return null;
  const all = rows.flatMap(({ entry, points }) => points.map(([weight, predicted, observed]) => ({ entry, weight, predicted, observed })));
  const low = Math.max(1e-5, Math.min(d3.min(all, (row) => row.predicted), d3.min(all, (row) => row.observed || 1)));
  const draw = (width) => {
    const side = Math.min(width, 460);
    return plot(side, {
      height: Math.round(side * 0.85),
      x: { type: "log", domain: [low, 1], label: "predicted probability", grid: true, ticks: 5, tickFormat: (v) => `${+v.toPrecision(2)}` },
      y: { type: "log", domain: [low, 1], label: "observed share of clicks", grid: true, ticks: 5, tickFormat: (v) => `${+v.toPrecision(2)}` },
      r: { range: [1.5, 7] },
      marks: [
        Plot.line([[low, low], [1, 1]], { stroke: "#666", strokeDasharray: "4 3" }),
        ...rows.map(({ entry, points }) => Plot.line(points.filter(([, , observed]) => observed > 0), { x: ([, x]) => x, y: ([, , y]) => y,
          stroke: entry.colour, strokeWidth: 1.8, strokeDasharray: entry.dash || null })),
        Plot.dot(all.filter((row) => row.observed > 0), { x: "predicted", y: "observed", r: "weight", fill: (row) => row.entry.colour,
          fillOpacity: 0.75 }),
        Plot.tip(all.filter((row) => row.observed > 0), Plot.pointer({ x: "predicted", y: "observed", title: (row) =>
          `${row.entry.label}\npredicted ${short(row.predicted)}\nobserved ${short(row.observed)}\n${whole(row.weight)} impressions` })),
      ],
      color: { type: "identity" },
    });
  };
  const numbers = () => table(
    [["model", (row) => row.entry.label], ["predicted", (row) => short(row.predicted), true],
      ["observed", (row) => short(row.observed), true], ["impressions", (row) => whole(row.weight), true]], all, "Calibration");
  return section("calibration", "Calibration",
    note("Well calibrated lies on the dashed line: of the impressions scored p, a share p was clicked. Larger dots hold more impressions."),
    legend(rows.map(({ entry }) => entry)), figure("Reliability", draw, numbers, { wide: true }));
}

const DIMENSIONS = {
  item: "By item: cold (shown fewer than 100 times before) or known",
  user: "By user: cold (fewer than 5 entries of history) or known",
  position: "By position",
  domain: "By domain",
  hour: "By hour of the day (UTC)",
  query: "By how often the query came by before",
};

function slices() {
  const dimensions = [...new Set(RUNS.flatMap((run) => Object.keys(run.slices)))];
  dimensions.sort((a, b) => (a === "hour") - (b === "hour")); // the tallest last, so that the two columns come out alike
  const charts = dimensions.map((dimension) => {
    const values = [...new Set(RUNS.flatMap((run) => Object.keys(run.slices[dimension] || {})))];
    // An object gives keys like "10" before those like "09".
    if (values.every((value) => value !== "" && Number.isFinite(+value))) values.sort((a, b) => a - b);
    if (values.length < 2) return null;
    const found = (entry, value) => entry.run.slices[dimension]?.[value]?.models[entry.name];
    const of = (entry) => values.map((value) => ({ category: value, value: found(entry, value)?.auc }))
      .filter((row) => row.value !== null && row.value !== undefined);
    const numbers = () => {
      const rows = values.flatMap((value) => MODELS.map((entry) => ({ value, entry, figures: found(entry, value) })))
        .filter((row) => row.figures);
      const figure = (name, digits) => [name.replace("_", " "), (row) => fixed(row.figures[name], digits), true];
      return table([["slice", (row) => row.value], ["model", (row) => row.entry.label], figure("auc"), figure("gauc"), figure("log_loss"),
        figure("ne"), figure("calibration", 3), ["impressions", (row) => whole(row.figures.impressions), true],
        ["clicks", (row) => whole(row.figures.positives), true]], rows, DIMENSIONS[dimension] || `By ${dimension}`);
    };
    return dotChart(`${DIMENSIONS[dimension] || `By ${dimension}`}`, values, { entries: MODELS, of }, { xLabel: "AUC", numbers });
  }).filter(Boolean);
  return charts.length ? section("slices", "AUC by slice", symbols(), el("div", { class: "columns" }, ...charts)) : null;
}

// A legend of the symbols that dot charts use.
function symbols() {
  const shapes = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond, d3.symbolCross, d3.symbolStar];
  return el("ul", { class: "legend" }, ...MODELS.map((entry, i) => {
    const svg = d3.create("svg").attr("width", 14).attr("height", 14).attr("viewBox", "-7 -7 14 14");
    svg.append("path").attr("d", d3.symbol(shapes[i % 6], 50)()).attr("stroke", entry.colour).attr("stroke-width", 2)
      .attr("fill", i % 2 ? "#fff" : entry.colour);
    return el("li", {}, el("span", { class: "swatch", "aria-hidden": "true" }, svg.node()), ` ${entry.label}`);
  }));
}

function speed() {
  const charts = [
    timeChart("Impressions learned per second of model time", seriesLines("impressions_per_s").map(whereKnown), { log: true, format: whole }),
    wallChart(),
    momentChart("lag", "Behind the newest sample, seconds of event time"),
    momentChart("delay", "Age of the newest learned sample by the wall clock, seconds"),
  ].filter(Boolean);
  return charts.length ? section("speed", "Throughput and lag", legend(MODELS), el("div", { class: "grid" }, ...charts)) : null;
}

// What a trainer noted of its lag at its checkpoints, against wall time.
function momentChart(key, title) {
  const lines = RUNS.map((run, i) => ({ run, colour: COLOURS[i % COLOURS.length], dash: DASHES[i % DASHES.length],
    moments: run.moments.filter((each) => each[key] !== undefined) })).filter(({ moments }) => moments.length > 1);
  if (!lines.length) return null;
  const draw = (width) => plot(width, {
    x: { label: "wall time of the run, s", grid: true }, y: { label: null, grid: true, zero: true, tickFormat: compact },
    marks: lines.flatMap(({ moments, colour, dash }) => [
      Plot.line(moments, { x: "seconds", y: key, stroke: colour, strokeDasharray: dash || null, strokeWidth: 1.8 }),
      Plot.dot(moments, { x: "seconds", y: key, fill: colour, r: 2.5, tip: true }),
    ]),
  });
  const rows = lines.flatMap(({ run, moments }) => moments.map((each) => ({ ...each, name: run.name })));
  const numbers = () => table([["run", (row) => row.name], ["wall seconds", (row) => short(row.seconds), true],
    ["seconds behind", (row) => short(row[key]), true]], rows, title);
  return figure(title, draw, numbers);
}

// Requests learned against wall time, from the moments of the run: flat where it waited.
function wallChart() {
  const lines = RUNS.map((run, i) => ({ run, colour: COLOURS[i % COLOURS.length], dash: DASHES[i % DASHES.length] }))
    .filter(({ run }) => run.moments.length > 1);
  if (!lines.length) return null;
  const draw = (width) => plot(width, {
    x: { label: "wall time of the run, s", grid: true }, y: { label: null, grid: true, zero: true, tickFormat: compact },
    marks: lines.flatMap(({ run, colour, dash }) => [
      Plot.line(run.moments, { x: "seconds", y: "requests", stroke: colour, strokeDasharray: dash || null, strokeWidth: 1.8 }),
      Plot.dot(run.moments, { x: "seconds", y: "requests", fill: colour, r: 2.5, tip: true }),
    ]),
  });
  const rows = lines.flatMap(({ run }) => run.moments.map((each) => ({ ...each, name: run.name })));
  const numbers = () => table([["run", (row) => row.name], ["what", (row) => row.kind], ["event time", (row) => (row.ts > 0 ? utc(row.ts) : "–")],
    ["requests", (row) => whole(row.requests), true], ["wall seconds", (row) => short(row.seconds), true]], rows, "Moments of the run");
  return figure("Requests learned over wall time", draw, numbers);
}

function queues() {
  const titles = { "queue.item.fill": "Ids in the item queue", "queue.item.age": "Mean age in the item queue (pushes)",
    "queue.query.fill": "Ids in the query queue", "queue.query.age": "Mean age in the query queue (pushes)" };
  const charts = [...statCharts("queue.", titles), ...statCharts("edges.", { "edges.i2i": "Edges item to item, per request", "edges.q2q": "Edges query to query, per request",
    "edges.q2i": "Edges query to item, per request" }), ...statCharts("ccl.", { "ccl.drift": "Drift of queued keys: cosine with the same entries encoded now (1: none)",
      "ccl.filled": "Keys in CCL's queue", "ccl.waiting": "Pairs that wait for CCL's encoder" })];
  const shown = MODELS.filter(({ run, name }) => Object.keys(run.series[name] || {}).some((each) => /^(queue|edges|ccl)\./.test(each)));
  return charts.length ? section("queues", "Queues and edges", legend(shown),
    el("div", { class: "grid" }, ...charts)) : null;
}

function embeddings() {
  const found = MODELS.flatMap((entry) => Object.entries(entry.model.embeddings || {}).map(([tableName, likeness]) =>
    ({ entry, tableName, likeness, title: `${entry.label}, ${tableName === "item" ? "vectors of the click loss" : "graph vectors"}` })));
  if (!found.length) {
    const why = !RUNS[0].has_category ? "Off: the log has no categories." : RUNS[0].finished
      ? "Off: no model of this run has item vectors that were learned often enough." : "Written at the end of the run.";
    return section("embeddings", "What embeddings know of categories", note(why));
  }
  const columns = [["vectors", (row) => row.title], ["within a category", (row) => fixed(row.likeness.within, 3), true],
    ["between categories", (row) => fixed(row.likeness.between, 3), true],
    ["difference", (row) => (row.likeness.within === null || row.likeness.between === null ? "–"
      : signed(row.likeness.within - row.likeness.between, 3)), true],
    ["items", (row) => whole(row.likeness.items), true]];
  const pictures = found.filter(({ likeness }) => likeness.matrix.length > 1).map(matrixFigure);
  return section("embeddings", "What embeddings know of categories",
    note("Average cosine of item vectors over all pairs of a sample of items that were learned at least ten times (EGIN, Table 5). " +
      "The pictures show some items, those of one category next to each other and framed (Figure 4)."),
    table(columns, found, "Average cosine"), el("div", { class: "grid" }, ...pictures));
}

function matrixFigure({ title, likeness }) {
  const { matrix, categories } = likeness;
  const cells = matrix.flatMap((row, y) => row.map((value, x) => ({ x, y, value })));
  const frames = d3.groups(categories.map((category, i) => ({ category, i })), (each) => each.category)
    .map(([category, members]) => ({ category, from: members[0].i - 0.5, to: members[members.length - 1].i + 0.5 }));
  const draw = (width) => {
    const side = Math.min(width, 420);
    return plot(side, {
      height: side, marginLeft: 12, marginBottom: 12, marginTop: 8,
      x: { type: "linear", domain: [-0.5, matrix.length - 0.5], axis: null },
      y: { type: "linear", domain: [matrix.length - 0.5, -0.5], axis: null },
      color: diverging(),
      marks: [
        Plot.rect(cells, { x1: (c) => c.x - 0.5, x2: (c) => c.x + 0.5, y1: (c) => c.y - 0.5, y2: (c) => c.y + 0.5, fill: "value",
          shapeRendering: "crispEdges" }),
        Plot.rect(frames, { x1: "from", x2: "to", y1: "from", y2: "to", stroke: "#000", fill: "none", strokeWidth: 1.2 }),
        Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: (c) =>
          `${categories[c.y]}, ${categories[c.x]}\ncosine ${fixed(c.value, 3)}` })),
      ],
    });
  };
  const numbers = () => table([["category", (i) => categories[i]], ...matrix.map((_, j) => [`${j + 1}`, (i) => fixed(matrix[i][j], 2), true])],
    d3.range(matrix.length), title);
  const made = figure(title, draw, numbers);
  made.querySelector(".plot").after(scaleLegend());
  return made;
}

// From blue over white to vermilion: two of Okabe and Ito's.
const diverging = () => ({ type: "diverging", domain: [-1, 1], interpolate: d3.piecewise(["#0072B2", "#f7f7f7", "#D55E00"]) });

function scaleLegend() {
  return el("div", { class: "scale" }, "cosine −1 ", el("span", { class: "ramp", "aria-hidden": "true" }), " +1");
}
