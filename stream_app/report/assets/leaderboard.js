// Who is best, by how much, and whether that is more than chance.

function difference(entry) {
  const all = SEVERAL ? DATA.comparison.differences[entry.key] : entry.model.difference;
  return all && all.auc;
}

function firstLabel() {
  return SEVERAL ? DATA.comparison.first : Object.keys(RUNS[0].models)[0];
}

function leaderboardTable() {
  const rows = [...MODELS].sort((a, b) => (b.model.figures.auc ?? -1) - (a.model.figures.auc ?? -1));
  const figure = (name, digits) => (entry) => fixed(entry.model.figures[name], digits);
  const columns = [
    ["model", (entry) => named(entry)],
    ["AUC", figure("auc"), true],
  ];
  if (MODELS.some(difference)) {
    columns.push([`AUC − ${firstLabel()}`, (entry) => {
      const found = difference(entry);
      if (!found) return entry.key === firstLabel() ? "" : "–";
      const [value, low, high] = found;
      const mark = low > 0 ? " better" : high < 0 ? " worse" : "";
      return el("span", { class: `difference${mark}` }, `${signed(value)} [${signed(low)}, ${signed(high)}]`);
    }, true]);
  }
  columns.push(
    ["gAUC", figure("gauc"), true], ["by user", figure("gauc_user"), true], ["log loss", figure("log_loss"), true],
    ["NE", figure("ne"), true], ["MRR", figure("mrr"), true], ["calibration", figure("calibration", 3), true],
    ["impressions/s", (entry) => whole(entry.model.impressions_per_s), true],
  );
  const bests = RUNS.filter((run) => run.best).slice(0, SEVERAL && !DATA.comparison.same_requests ? 0 : 1);
  for (const run of bests) {
    const model = { figures: run.best, impressions_per_s: null };
    rows.push({ ...BEST, model, run });
  }
  return table(columns, rows, "Figures over all scored requests, best AUC first");
}

function differenceChart() {
  const rows = MODELS.map((entry) => ({ entry, found: difference(entry) })).filter(({ found }) => found && found[1] !== null);
  if (!rows.length) return null;
  const labels = rows.map(({ entry }) => entry.label);
  const draw = (width) =>
    plot(width, {
      height: 60 + 30 * rows.length,
      marginLeft: Math.min(170, 24 + 7 * d3.max(labels, (label) => label.length)),
      x: { label: `AUC minus that of ${firstLabel()} (95% interval)`, grid: true, nice: true, zero: true, tickFormat: (v) => short(v) },
      y: { type: "band", domain: labels, label: null },
      marks: [
        Plot.ruleX([0], { stroke: "#000" }),
        Plot.link(rows, { x1: ({ found }) => found[1], x2: ({ found }) => found[2], y1: ({ entry }) => entry.label,
          y2: ({ entry }) => entry.label, stroke: ({ entry }) => entry.colour, strokeWidth: 3 }),
        Plot.dot(rows, { x: ({ found }) => found[0], y: ({ entry }) => entry.label, fill: ({ entry }) => entry.colour, r: 5 }),
      ],
      color: { type: "identity" },
    });
  return figure(`Difference to ${firstLabel()}`, draw);
}

function leaderboard() {
  const run = RUNS[0];
  const scored = whole(run.scored.impressions);
  const about = SEVERAL
    ? "Each run's figures are over the requests that it scored."
    : `Scored ${run.evaluation === "delayed" ? "when shown, learned when labels were final" : "just before learning"}; ` +
      `${scored} impressions count. Intervals: paired bootstrap over users.`;
  return section("leaderboard", "Leaderboard", note(about), leaderboardTable(), differenceChart());
}

function comparison() {
  if (!SEVERAL) return null;
  const shown = (value) => (value === null ? "not set" : typeof value === "object"
    ? `${whole(value.requests)} requests, ${utc(value.first_ts)} to ${utc(value.last_ts)}, ${value.fingerprint}`
    : typeof value === "number" && value > 1e11 ? utc(value) : String(value).slice(0, 16));
  const columns = [
    ["", (check) => check.name],
    ["", (check) => el("strong", { class: check.same ? "same" : "differs" }, check.same ? "yes" : "no")],
    ...RUNS.map((run, i) => [run.name, (check) => shown(check.values[i])]),
  ];
  const verdict = DATA.comparison.same_requests
    ? "All runs were scored on the same requests, so their differences are paired."
    : "The runs were not scored on the same requests: compare their figures with care, differences are not paired.";
  return section("same", "The same samples?", el("p", {}, verdict),
    el("div", { class: "wraps" }, table(columns, DATA.comparison.checks, "What the runs share")));
}

function summary() {
  const facts = RUNS.map((run) => [
    run.name,
    run.finished ? "finished" : "still running when this was written",
    `${whole(run.requests)} requests learned`,
    `event time up to ${utc(run.ts)}`,
    `${duration(run.seconds)} of wall time`,
    `seed ${run.seed}`,
    `log ${run.log}`,
  ]);
  return el("ul", { class: "facts" }, ...facts.map(([name, ...rest]) => el("li", {}, el("strong", {}, name), `: ${rest.join(", ")}`)));
}
