// The page in its order.

function build() {
  const parts = [comparison(), leaderboard(), overTime(), slices(), calibration(), losses(), speed(), queues(), embeddings(), requests(),
    configs()].filter(Boolean);
  const links = parts.map((part) => el("li", {}, el("a", { href: `#${part.id}` }, part.querySelector("h2").textContent)));
  document.getElementById("page").replaceChildren(
    el("header", {}, el("h1", {}, SEVERAL ? "Runs side by side" : `Run ${RUNS[0].name}`), summary(),
      el("nav", { "aria-label": "Parts of this page" }, el("ul", {}, ...links))),
    ...parts,
    el("footer", {}, el("p", {}, "Written by Freshet. Plots: Observable Plot and D3, © Observable and Mike Bostock, ISC licence.")),
  );
  redraw();
}

function configs() {
  const off = MODELS.flatMap((entry) => Object.entries(entry.model.off || {}).map(([part, why]) => ({ entry, part, why })));
  return section("config", "What the run was told",
    off.length ? el("ul", {}, ...off.map(({ entry, part, why }) => el("li", {}, `${entry.label}: ${part} is off, because ${why}`))) : null,
    ...RUNS.map((run) => el("details", {}, el("summary", {}, `${run.name}/config.toml`), el("pre", { tabindex: "0" }, run.config))));
}

build();
let pending = null;
window.addEventListener("resize", () => {
  clearTimeout(pending);
  pending = setTimeout(redraw, 120);
});
