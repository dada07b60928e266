// ---- the keyboard
const KEYS = [
  ["/", "search the samples"], ["j, k", "next, previous sample; Enter opens it"], ["n, p", "next, previous page of samples"], ["[, ]", "previous, next sample of a problem in its right half"],
  ["c, f, t, s", "to curves, first and last, tokens, samples"], ["← → ↑ ↓", "on the tokens or a curve: from one to the next"], ["z", "zoom out"], ["Esc", "close what is open"], ["?", "this list"],
];
function showKeys() {
  $("keys").replaceChildren(make("h3", { textContent: "Keyboard" }), make("dl", {}, ...KEYS.flatMap(([key, what]) => [make("dt", {}, make("kbd", { textContent: key })), make("dd", { textContent: what })])),
    make("form", { method: "dialog" }, make("button", { textContent: "close" })));
  $("keys").showModal();
}
function nextSample(by) {
  const all = [...document.querySelectorAll("#found summary")], now = all.indexOf(document.activeElement);
  all[Math.max(0, Math.min(all.length - 1, now < 0 ? (by > 0 ? 0 : all.length - 1) : now + by))]?.focus();
}
const SECTIONS = { c: "curves", f: "table", t: "tokens", s: "samples" };
document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") { hide(); if (typing) event.target.blur(); else if (problem && !$("keys").open) closeProblem(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const action = { "/": () => { goTo("samples"); filter.elements.text.focus(); }, j: () => nextSample(1), k: () => nextSample(-1), n: () => turnPage(1), p: () => turnPage(-1), z: () => setZoom(null), "?": showKeys,
    "[": () => stepProblem(-1), "]": () => stepProblem(1) }[event.key];
  if (action) { event.preventDefault(); action(); }
  else if (SECTIONS[event.key]) { event.preventDefault(); remember("at", SECTIONS[event.key]); goTo(SECTIONS[event.key]); }
});
function stepProblem(by) { if (problem) { problem.right = Math.max(0, Math.min(problem.rows.length - 1, problem.right + by)); compare(); } }
$("help").addEventListener("click", showKeys);
