// Charts on Observable Plot: a figure draws itself as wide as it stands, again when that changes, with its numbers beside.

const FIGURES = [];

// `draw(width)` returns an SVG; `numbers()` a table, made when somebody opens it.
function figure(title, draw, numbers = null, { wide = false } = {}) {
  const plot = el("div", { class: "plot" });
  const parts = [el("figcaption", {}, title), plot];
  if (numbers) {
    const details = el("details", {}, el("summary", {}, "as a table"));
    details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(numbers()));
    parts.push(details);
  }
  const made = el("figure", { class: wide ? "wide" : null }, ...parts);
  FIGURES.push({ title, plot, draw, width: 0 });
  return made;
}

function redraw() {
  for (const one of FIGURES) {
    const width = Math.floor(one.plot.clientWidth);
    if (!one.plot.isConnected || width === one.width || width < 40) continue;
    one.width = width;
    const drawn = one.draw(width);
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", one.title);
    one.plot.replaceChildren(drawn);
  }
}

// Tick labels that stay narrow: 12k, 3.4M, 0.125.
const compact = (value) => (Math.abs(value) >= 10000 ? d3.format("~s")(value) : short(value));

// 24 hours, the day at midnight: "Jun 15" or "18:00".
const whenLabel = (at) => (at.getUTCHours() || at.getUTCMinutes() ? d3.utcFormat("%H:%M")(at) : d3.utcFormat("%b %-d")(at));

const STYLE = { fontSize: "12px", fontFamily: "inherit", color: "#1a1a1a", background: "#ffffff", overflow: "visible" };

function plot(width, options) {
  const height = options.height || Math.round(Math.min(300, Math.max(190, width * 0.5)));
  const labelled = options.x && options.x.label;
  const x = labelled ? { labelOffset: 38, ...options.x } : options.x; // room for what hangs below the line: g, p, y
  return Plot.plot({ width, height, marginLeft: 52, marginRight: 14, marginBottom: labelled ? 44 : 34, style: STYLE, ...options, x });
}

// Points that no line reaches: without a value before and after.
function alone(points) {
  const known = (i) => points[i] !== undefined && points[i][1] !== null && points[i][1] !== undefined;
  return points.filter((_, i) => known(i) && !known(i - 1) && !known(i + 1));
}

// Lines over event time. `lines` are [{entry, points: [[ms, value]]}].
function timeChart(title, lines, { yLabel, moments = true, zero = false, log = false, format = short } = {}) {
  const shown = lines.filter(({ points }) => points.some(([, value]) => value !== null));
  if (!shown.length) return null;
  const rows = shown.flatMap(({ entry, points }) =>
    points.map(([ms, value]) => ({ at: new Date(ms), value, label: entry.label })).filter((row) => row.value !== null),
  );
  const marked = moments ? RUNS.flatMap((run) => run.moments.map((each) => ({ ...each, at: new Date(each.ts) }))) : [];
  const span = d3.extent(rows, (row) => row.at);
  const inside = marked.filter((each) => each.ts > 0 && each.at >= span[0] && each.at <= span[1]);
  const draw = (width) =>
    plot(width, {
      x: { type: "utc", label: null, ticks: Math.max(2, Math.floor(width / 110)), tickFormat: whenLabel },
      y: { type: log ? "log" : "linear", label: yLabel || null, grid: true, zero: zero && !log, nice: !log, ticks: 5, tickFormat: compact },
      marks: [
        Plot.tickX(inside.filter((each) => each.kind === "checkpoint"), { x: "at", y: null, stroke: "#999", inset: 0, strokeWidth: 0.8,
          strokeDasharray: "1 3" }),
        Plot.ruleX(inside.filter((each) => each.kind === "restart"), { x: "at", stroke: "#000", strokeWidth: 1.6 }),
        Plot.text(inside.filter((each) => each.kind === "restart"), { x: "at", text: () => "restart", frameAnchor: "top-left",
          dx: 4, dy: -2, textAnchor: "start", fill: "#000" }),
        ...shown.map(({ entry, points }) =>
          Plot.line(points, { x: ([ms]) => new Date(ms), y: ([, value]) => value ?? NaN, stroke: entry.colour, strokeWidth: 1.8,
            strokeDasharray: entry.dash || null, curve: "linear" }),
        ),
        ...shown.map(({ entry, points }) =>
          Plot.dot(alone(points), { x: ([ms]) => new Date(ms), y: ([, value]) => value, fill: entry.colour })),
        Plot.tip(rows, Plot.pointer({ x: "at", y: "value", title: (row) => `${row.label}\n${utc(+row.at)}\n${format(row.value)}` })),
      ],
    });
  const numbers = () => {
    const times = [...new Set(rows.map((row) => +row.at))].sort((a, b) => a - b);
    const found = new Map(rows.map((row) => [`${row.label} ${+row.at}`, row.value]));
    return table(
      [["until (UTC)", (ms) => utc(ms)], ...shown.map(({ entry }) => [entry.label, (ms) => format(found.get(`${entry.label} ${ms}`)), true])],
      times,
      title,
    );
  };
  return figure(title, draw, numbers);
}

function seriesLines(name, models = MODELS) {
  return models
    .map((entry) => ({ entry, series: entry.run.series[entry.name] }))
    .filter(({ series }) => series && series[name])
    .map(({ entry, series }) => ({ entry, points: series.ts.map((ms, i) => [ms, series[name][i]]) }));
}

// Statistics come once in so many steps, most windows have none: lines go from one to the next.
const whereKnown = ({ entry, points }) => ({ entry, points: points.filter(([, value]) => value !== null && value !== undefined) });

// Dots of several models per row of a list of categories.
function dotChart(title, values, rows, { xLabel, numbers, reference = null }) {
  const draw = (width) =>
    plot(width, {
      height: 62 + values.length * Math.max(18, 9 * Math.min(MODELS.length, 3)),
      marginLeft: Math.min(150, 24 + 7 * d3.max(values, (value) => value.length)),
      x: { label: xLabel, grid: true, nice: true, ticks: Math.max(3, Math.floor(width / 90)), tickFormat: (v) => short(v) },
      y: { type: "band", domain: values, label: null },
      symbol: { legend: false },
      marks: [
        reference === null ? null : Plot.ruleX([reference], { stroke: "#666", strokeDasharray: "4 3" }),
        Plot.ruleY(values, { stroke: "#eee" }),
        ...rows.entries.map((entry, i) =>
          Plot.dot(rows.of(entry), { x: "value", y: "category", stroke: entry.colour, fill: i % 2 ? "#fff" : entry.colour, strokeWidth: 2,
            r: 4.5, symbol: ["circle", "square", "triangle", "diamond", "cross", "star"][i % 6] }),
        ),
        Plot.tip(rows.entries.flatMap((entry) => rows.of(entry).map((row) => ({ ...row, label: entry.label }))),
          Plot.pointer({ x: "value", y: "category", title: (row) => `${row.category}, ${row.label}\n${short(row.value)}` })),
      ].filter(Boolean),
    });
  return figure(title, draw, numbers);
}
