// ---- the page
function configs() {
  $("config").replaceChildren(...runs.map((run, i) => make("details", { open: $("config").children[i]?.open ?? false }, make("summary", { textContent: run.name }), make("pre", { textContent: run.config, tabIndex: 0 }))));
}
function restore() {  // what the address says
  hidden = new Set(recall("hide").split(".").filter(Boolean).map((i) => arms[i]?.name).filter(Boolean));
  const range = recall("zoom").split("-").map(Number);
  zoom = range.length === 2 && range.every(Number.isFinite) && range[0] < range[1] ? range : null;
  $("metric").value = recall("metric");
  if (COLOURS[recall("colour")]) $("colour").value = recall("colour");
  recallFilter();
}
async function drawAll() {
  document.title = runs.map((r) => r.name).join(" · ") || document.title;
  restore();
  cards(); legend(); curves(); table(); configs();
  await Promise.all([listRollouts(), find()]);
}
async function begin() {
  if (!await source.load()) return;
  comparison(data.comparison);
  await drawAll();
  let remembered = null;
  try { remembered = JSON.parse(recall("problem", "null")); } catch { remembered = null; }
  if (Array.isArray(remembered)) await showProblem({ set: String(remembered[0]), problem: String(remembered[1]) }, false);
  if (recall("at")) goTo(recall("at"));
  document.body.classList.add("drawn");
}
setInterval(tick, 1000);
addEventListener("hashchange", async () => { state = new URLSearchParams(location.hash.slice(1)); record = null; await drawAll(); goTo(recall("at")); });
begin();
