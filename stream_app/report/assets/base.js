"use strict";
// What all parts of the page share: the data, how things are named and coloured, how elements are made.

const DATA = JSON.parse(document.getElementById("data").textContent);
const RUNS = DATA.runs;
const SEVERAL = RUNS.length > 1;

// Okabe and Ito's colours, told apart with any kind of colour vision; dashes tell them apart in grey too.
const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#222222", "#8a7a00"];
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2", "1 3", "14 3 3 3"];
const BEST = { key: "best possible", label: "best possible", colour: "#666666", dash: "1 4" };

// One entry per model of each run: {key, label, run, name, model, colour, dash}.
const MODELS = RUNS.flatMap((run) =>
  Object.entries(run.models).map(([name, model]) => ({ run, name, model, key: SEVERAL ? `${run.name}/${name}` : name })),
).map((entry, i) => ({
  ...entry,
  label: entry.key,
  colour: COLOURS[i % COLOURS.length],
  dash: DASHES[(i + Math.floor(i / COLOURS.length)) % DASHES.length],
}));

function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function section(id, title, ...children) {
  const there = children.flat().filter(Boolean);
  if (!there.length) return null;
  return el("section", { id }, el("h2", {}, title), ...there);
}

const note = (text) => el("p", { class: "note" }, text);

function fixed(value, digits = 4) {
  return value === null || value === undefined || Number.isNaN(value) ? "–" : value.toFixed(digits);
}

function signed(value, digits = 4) {
  return value === null || value === undefined ? "–" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`;
}

function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

function short(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size >= 1000 ? whole(value) : size >= 1 || size === 0 ? `${+value.toFixed(3)}` : `${+value.toPrecision(3)}`;
}

function utc(ms) {
  return ms === null || ms === undefined ? "–" : new Date(ms).toISOString().replace("T", " ").slice(0, 16);
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

// A table: columns are [title, cell of a row, is a number].
function table(columns, rows, caption = null) {
  const cell = (tag, content, number, scope) => el(tag, { class: number ? "number" : null, scope }, content);
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || "table" },
    el(
      "table",
      {},
      caption && el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...columns.map(([title, , number]) => cell("th", title, number, "col")))),
      el(
        "tbody",
        {},
        ...rows.map((row) =>
          el("tr", {}, ...columns.map(([, of, number], i) => (i ? cell("td", of(row), number) : cell("th", of(row), number, "row")))),
        ),
      ),
    ),
  );
}

function swatch({ colour, dash }) {
  const holder = el("span", { class: "swatch", "aria-hidden": "true" });
  const line = d3.create("svg").attr("width", 30).attr("height", 10).attr("viewBox", "0 0 30 10");
  line.append("line").attr("x1", 1).attr("x2", 29).attr("y1", 5).attr("y2", 5);
  line.select("line").attr("stroke", colour).attr("stroke-width", 2.5).attr("stroke-dasharray", dash || null);
  holder.append(line.node());
  return holder;
}

const named = (entry) => el("span", { class: "named" }, swatch(entry), ` ${entry.label}`);
const legend = (entries) => el("ul", { class: "legend" }, ...entries.map((entry) => el("li", {}, named(entry))));
