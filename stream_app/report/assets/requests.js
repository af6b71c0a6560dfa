// One request, chosen in the page: what the models looked at.

function requests() {
  const all = RUNS.flatMap((run) => run.examples.map((example) => ({ run, example })));
  if (!all.length) return null;
  const title = ({ run, example }) => `${SEVERAL ? `${run.name}: ` : ""}${utc(example.ts)}, user ${example.user}, ` +
    `${example.n_candidates} candidates`;
  const chooser = el("select", { id: "request" }, ...all.map((one, i) => el("option", { value: i }, title(one))));
  const place = el("div", { id: "looked-at", "aria-live": "polite" });
  const show = () => {
    const { run, example } = all[+chooser.value];
    forget(place);
    place.replaceChildren(...oneRequest(run, example).filter(Boolean));
    redraw();
  };
  chooser.addEventListener("change", show);
  queueMicrotask(show);
  return section("requests", "What the models looked at",
    note("Some requests, drawn by the run's seed; scores and likenesses with the weights as they were when this page was written, " +
      "not those that scored the request. An id whose name the run could not know is shown by the first digits of its hash."),
    el("p", {}, el("label", { for: "request" }, "Request "), chooser), place);
}

// Figures that leave the page are drawn no more.
function forget(place) {
  for (let i = FIGURES.length - 1; i >= 0; i--) if (place.contains(FIGURES[i].plot)) FIGURES.splice(i, 1);
}

function oneRequest(run, example) {
  const models = MODELS.filter((entry) => entry.run === run && example.models[entry.name]);
  return [scoresTable(example, models), ...models.flatMap((entry) => looks(entry, example))];
}

function scoresTable(example, models) {
  const { item, category, label, position } = example.candidates;
  const rows = d3.range(item.length);
  const mark = (i) => (label[i] > 0 ? el("strong", {}, `${item[i]} ✓`) : item[i]);
  const columns = [["candidate", (i) => mark(i)], ["position", (i) => (position[i] < 0 ? "–" : position[i]), true]];
  if (category.some(Boolean)) columns.push(["category", (i) => category[i] || "–"]);
  columns.push(["clicked", (i) => (label[i] > 0 ? "yes" : "no")]);
  for (const entry of models) {
    const scores = example.models[entry.name].scores;
    const best = d3.maxIndex(scores);
    columns.push([entry.name, (i) => el("span", { class: i === best ? "top" : null }, fixed(scores[i])), true]);
  }
  const query = example.query ? `, query ${example.query}` : "";
  return table(columns, rows, `Candidates${query}; each model's highest score is framed`);
}

const LOOKS = {
  i2i: "candidates and the history's items: cosine of graph vectors",
  q2q: "the query and the history's queries: cosine of graph vectors",
  q2i: "the query and the history's items: cosine of graph vectors",
};

function looks(entry, example) {
  const found = example.models[entry.name];
  const parts = found.looks.filter((look) => look.values.length && look.values[0].length).map((look) => lookFigure(entry, example, look));
  if (found.links.length) parts.push(linksFigure(entry, example, found));
  if (!parts.length) return found.looks.length ? [el("h3", {}, entry.label), note("The history is empty.")] : [];
  return [el("h3", {}, named(entry)), el("div", { class: "grid" }, ...parts)];
}

// A name that fits beside an axis.
function brief(name) {
  return name.length > 9 ? `${name.slice(0, 8)}…` : name;
}

function lookFigure(entry, example, look) {
  const entries = example.sequences[look.sequence];
  const { item, label } = example.candidates;
  const ofCandidates = look.values.length === item.length && !look.name.startsWith("q2");
  const rowName = (y) => (ofCandidates ? `${brief(item[y])}${label[y] > 0 ? " ✓" : ""}` : "query");
  const cells = look.values.flatMap((row, y) => row.map((value, x) => ({ x, y, value })));
  const picked = look.picked.flatMap((row, y) => row.map((x, rank) => ({ x, y, rank })));
  const attention = look.name.startsWith("attention");
  const most = d3.max(cells, (cell) => Math.abs(cell.value)) || 1;
  const ages = entries.age_s;
  const draw = (width) => plot(width, {
    height: 76 + look.values.length * Math.max(13, Math.min(22, 240 / look.values.length)),
    marginLeft: 14 + 7 * d3.max(look.values, (_, y) => rowName(y).length), marginBottom: 46,
    x: { type: "band", domain: d3.range(ages.length), label: "history, newest at the right →", tickSize: 0, padding: 0.04,
      tickFormat: (x) => (x === ages.length - 1 || x === 0 ? `${duration(ages[x])} ago` : "") },
    y: { type: "band", domain: d3.range(look.values.length), label: null, tickFormat: rowName, tickSize: 0, padding: 0.06 },
    color: attention ? { ...diverging(), domain: [-most, most] } : diverging(),
    marks: [
      Plot.cell(cells, { x: "x", y: "y", fill: "value" }),
      Plot.dot(picked, { x: "x", y: "y", r: 2.6, fill: "#000", stroke: "#fff", strokeWidth: 0.8 }),
      Plot.tip(cells, Plot.pointer({ x: "x", y: "y", title: (c) =>
        `${rowName(c.y)}\n${entries.ids[c.x]}, ${duration(ages[c.x])} before\n${attention ? "weight" : "cosine"} ${fixed(c.value, 3)}` })),
    ],
  });
  const numbers = () => table([["entry", (x) => entries.ids[x]], ["before", (x) => duration(ages[x])],
    ...look.values.map((row, y) => [rowName(y), (x) => `${fixed(row[x], 3)}${look.picked[y]?.includes(x) ? " •" : ""}`, true])],
    d3.range(ages.length), look.name);
  const what = attention ? `${look.name}: weight of each entry per candidate` : `${look.name}: ${LOOKS[look.name] || ""}`;
  const dots = look.picked.some((row) => row.length) ? "; dots are the picked top-k" : "";
  return figure(`${what}${dots}`, draw, numbers);
}

// Nodes in order of time, items below and queries above, edges as arcs and lines.
function linksFigure(entry, example, found) {
  const nodes = new Map();
  const click = entry.run.series && Object.keys(example.sequences).find((name) => name !== "query");
  const place = ([kind, where, index]) => {
    const key = `${kind} ${where} ${index}`;
    if (!nodes.has(key)) {
      const past = where === "history" ? example.sequences[kind === "query" ? "query" : click] : null;
      const at = past ? index - (past.n - past.ids.length) : -1;
      const id = past ? past.ids[at] : kind === "query" ? example.query : example.candidates.item[index];
      const age = past && at >= 0 ? past.age_s[at] : 0;
      nodes.set(key, { kind, where, id, age, old: past && at < 0, rank: past ? -1e6 + index : index });
    }
    return nodes.get(key);
  };
  const links = found.links.map(([kind, first, second]) => ({ kind, first: place(first), second: place(second) }));
  const order = [...nodes.values()].sort((a, b) => b.age - a.age || a.rank - b.rank);
  order.forEach((node, i) => { node.x = i; node.y = node.kind; });
  const colour = { i2i: COLOURS[0], q2q: COLOURS[1], q2i: COLOURS[2] };
  const counts = Object.entries(found.edges).map(([kind, n]) => `${n} ${kind}`).join(", ");
  const draw = (width) => plot(width, {
    height: 210, marginLeft: 60, marginTop: 46, marginBottom: 46,
    x: { type: "point", domain: order.map((node) => node.x), axis: null, padding: 0.6 },
    y: { type: "point", domain: order.some((node) => node.kind === "query") ? ["query", "item"] : ["item"], label: null, tickSize: 0 },
    marks: [
      ...["i2i", "q2q", "q2i"].map((kind, i) => {
        const some = links.filter((link) => link.kind === kind);
        const ends = { x1: (l) => l.first.x, y1: (l) => l.first.y, x2: (l) => l.second.x, y2: (l) => l.second.y, stroke: colour[kind],
          strokeWidth: 1.4, strokeDasharray: DASHES[i] || null };
        return kind === "q2i" ? Plot.link(some, ends) : Plot.arrow(some, { ...ends, bend: kind === "i2i" ? -38 : 38, headLength: 0 });
      }),
      Plot.dot(order, { x: "x", y: "y", r: 5, stroke: "#000", fill: (node) => (node.where === "history" ? "#fff" : "#000"),
        symbol: (node) => (node.kind === "query" ? "square" : "circle") }),
      Plot.tip(order, Plot.pointer({ x: "x", y: "y", title: (node) => `${node.kind} ${node.id || "(older than shown)"}\n` +
        (node.where === "history" ? `${duration(node.age)} before` : "of this request") })),
    ],
  });
  const numbers = () => table([["edge", (l) => l.kind], ["from", (l) => `${l.first.kind} ${l.first.id || "older"}`],
    ["to", (l) => `${l.second.kind} ${l.second.id || "older"}`]], links, "Edges");
  return figure(`Edges that learning this request adds (${counts}); filled: of this request, oldest at the left`, draw, numbers);
}
