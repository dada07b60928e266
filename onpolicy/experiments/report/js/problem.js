// ---- the same problem over the steps: a line for each, and two of its samples side by side
let problem = null;
async function showProblem(sample, scroll = true) {
  remember("problem", JSON.stringify([sample.set, sample.problem]));
  const answer = await source.problem(sample.set, sample.problem), box = $("problem");
  if (!answer?.rows.length) { closeProblem(); return; }
  const rows = answer.rows.sort((a, b) => a.run - b.run || a.step - b.step), own = rows.map(same), first = rows.findIndex((s) => s.run === (sample.run ?? rows[0].run));
  const right = Math.max(0, sample.step === undefined ? rows.findLastIndex((s) => s.run === rows[first].run) : own.indexOf(same(sample)));
  const pickOf = (key, otherwise) => { const i = own.indexOf(recall(key)); return i < 0 ? otherwise : i; };
  problem = { rows, left: pickOf("left", first === right ? 0 : first), right: sample.step === undefined ? pickOf("right", right) : right };
  const choose = (which) => make("label", {}, which === "left" ? "from " : "to ", make("select", { id: "pick-" + which, onchange: (event) => { problem[which] = +event.target.value; compare(); } },
    ...rows.map((s, i) => make("option", { value: i, textContent: `${called(s.run)}step ${s.step}${s.place ? `, answer ${s.place + 1}` : ""} · ${outcome(s)} · ${s.tokens} tokens` }))));
  box.replaceChildren(
    make("div", { className: "bar" }, make("h3", { textContent: sample.problem }), make("span", { className: "none", textContent: `${sample.set} · ${many(answer.matched, "sample")}` }), make("button", { className: "quiet", textContent: "close", onclick: closeProblem })),
    make("div", { className: "wide" }, overSteps(rows)), make("div", { className: "controls" }, choose("left"), choose("right")), make("div", { className: "both" }));
  box.hidden = false;
  compare();
  if (scroll) { box.scrollIntoView({ block: "start" }); box.focus({ preventScroll: true }); }
}
function closeProblem() { $("problem").hidden = true; problem = null; for (const key of ["problem", "left", "right"]) remember(key, ""); }
function overSteps(rows) {
  const at = new Map();
  rows.forEach((s, i) => { const key = `${s.run} ${s.step}`; at.set(key, [...(at.get(key) ?? []), i]); });
  const mean = (own, of) => { const v = own.map((i) => of(rows[i])).filter((x) => x != null); return v.length ? short(v.reduce((a, b) => a + b, 0) / v.length) : "–"; };
  const head = ["step", "samples", "mean reward", "mean tokens"];
  return make("table", { className: "steps" }, make("thead", {}, make("tr", {}, ...head.map((h) => make("th", { scope: "col", textContent: h })))), make("tbody", {}, ...[...at.values()].map((own) => make("tr", {},
    make("td", {}, make("button", { className: "quiet", textContent: `${called(rows[own[0]].run)}${rows[own[0]].step}`, title: "compare with this step", onclick: () => { problem.right = own[0]; compare(); } })),
    make("td", { textContent: own.length }), make("td", { textContent: mean(own, (s) => s.reward) }), make("td", { textContent: mean(own, (s) => s.tokens) })))));
}
function compare() {
  const { rows, left, right } = problem, parts = differing(rows[left].completion, rows[right].completion);
  $("pick-left").value = left; $("pick-right").value = right;
  remember("left", same(rows[left])); remember("right", same(rows[right]));
  const pane = (i, kind) => make("div", {}, make("h4", { textContent: `${called(rows[i].run)}step ${rows[i].step} · ${outcome(rows[i])} · ${many(rows[i].tokens, "token")} · ${rows[i].finish_reason}` }), make("pre", {}, ...side(parts, kind)));
  $("problem").querySelector(".both").replaceChildren(pane(left, "less"), pane(right, "more"));
}
