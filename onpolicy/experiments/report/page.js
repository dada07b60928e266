"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs, arms = data.arms;
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => { const e = Object.assign(document.createElement(tag), props); e.append(...children); return e; };
const NS = "http://www.w3.org/2000/svg";
const shape = (tag, attributes) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); return e; };
const colourOf = (i) => `var(--run${i % 6})`, dashOf = (i) => ["none", "5 3", "2 2"][Math.floor(i / 6) % 3];
const short = (v) => v == null ? "–" : Math.abs(v) >= 1000 ? v.toFixed(0) : Math.abs(v) >= 0.01 || v === 0 ? +v.toPrecision(4) + "" : v.toExponential(2);

// ---- which metrics belong together, in the order of interest
const GROUPS = [
  ["Accuracy", (n) => /^eval\/[^/]+\/(avg|pass|maj)@\d+$/.test(n) || n === "reward/mean"],
  ["Length", (n) => /completion_length(\/mean)?$|^rollout\/truncated$|^eval\/[^/]+\/truncated/.test(n)],
  ["Expressed uncertainty: markers per 1,000 tokens", (n) => /^(eval\/[^/]+\/)?epistemic\/[^/]+\/rate_per_1k$/.test(n)],
  ["Expressed uncertainty relative to the reference model", (n) => /^epistemic\/[^/]+\/suppression(\/at_length)?$|\/lead$/.test(n)],
  ["Marker rate by part of the answer and outcome", (n) => /^epistemic\/[^/]+\/rate_per_1k\/(correct|wrong|thinking|answer|easy|hard)$/.test(n)],
  ["Audit of the markers", (n) => n.startsWith("audit/") && !/\/lead$/.test(n)],
  ["Calibration", (n) => /^(eval\/[^/]+\/)?calibration\/[^/]+\/(brier|ece|auroc|auroc_within|gap)$/.test(n)],
  ["Teacher minus student, nats per sampled token", (n) => /^teacher\/[^/]+\/gap$|^epistemic\/gap\/|gap_matched/.test(n)],
  ["Probability mass of the markers", (n) => /^epistemic\/[^/]+\/(mass|mass_gap)\//.test(n)],
  ["Share of the divergence per token class, divided by its share of tokens", (n) => /^epistemic\/divergence_concentration\//.test(n)],
  ["Entropy", (n) => /entropy$|entropy_at$|entropy_around$|fork_rate$/.test(n)],
  ["Environment", (n) => n.startsWith("environment/")],
  ["Contexts", (n) => /^context\/[^/]+\/(share|repeated)$/.test(n)],
  ["Loss", (n) => /^train\/(loss|grad_norm)$|\/(divergence|kl)$/.test(n)],
  ["Schedules", (n) => n.startsWith("schedule/")],
];

function series(run, name) { return run.curves[name] ?? []; }  // [step, value] or [step, value, low, high]

// An arm's points: those of its one run with their own bounds, or the mean over seeds with a 95 % t interval (with two seeds: their range).
const T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
function armSeries(arm, name) {
  const each = arm.runs.map((i) => series(runs[i], name));
  if (each.length === 1) return each[0];
  const at = new Map();
  for (const [step, value] of each.flat()) at.set(step, [...(at.get(step) ?? []), value]);
  return [...at].sort((a, b) => a[0] - b[0]).map(([step, values]) => {
    const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
    const half = T975[Math.min(n - 2, 9)] * Math.sqrt(values.reduce((s, v) => s + (v - mean) ** 2, 0) / (n - 1) / n);
    return n === 1 ? [step, mean] : n === 2 ? [step, mean, Math.min(...values), Math.max(...values)] : [step, mean, mean - half, mean + half];
  });
}

const constant = (name) => new Set(runs.flatMap((run) => series(run, name).map((p) => p[1]))).size === 1;

function chart(name) {
  const W = 270, H = 130, L = 44, R = 8, T = 8, B = 18;
  const lines = arms.map((arm) => armSeries(arm, name)), all = lines.flat();
  const xs = all.map((p) => p[0]), ys = all.flatMap((p) => [p[1], p[2], p[3]]).filter((v) => v !== undefined);
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) { const pad = Math.abs(y0) * 0.1 || 1; y0 -= pad; y1 += pad; }
  if (x0 === x1) { x0 -= 1; x1 += 1; }
  const X = (v) => L + (v - x0) / (x1 - x0) * (W - L - R), Y = (v) => H - B - (v - y0) / (y1 - y0) * (H - T - B);
  const svg = shape("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": name });
  for (const v of [y0, (y0 + y1) / 2, y1]) {
    svg.append(shape("line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v), class: "grid" }));
    const t = shape("text", { x: L - 4, y: Y(v) + 3, "text-anchor": "end" }); t.textContent = short(+v.toPrecision(3)); svg.append(t);
  }
  for (const [v, anchor] of [[x0, "start"], [x1, "end"]]) { const t = shape("text", { x: X(v), y: H - 5, "text-anchor": anchor }); t.textContent = "step " + Math.round(v); svg.append(t); }
  lines.forEach((points, i) => {
    if (!points.length) return;
    if (points.every((p) => p[2] !== undefined)) {
      const band = points.map((p) => `${X(p[0])},${Y(p[3])}`).concat(points.slice().reverse().map((p) => `${X(p[0])},${Y(p[2])}`));
      svg.append(shape("polygon", { points: band.join(" "), fill: colourOf(i), opacity: 0.15 }));
    }
    svg.append(shape("polyline", { points: points.map((p) => `${X(p[0])},${Y(p[1])}`).join(" "), fill: "none", stroke: colourOf(i), "stroke-width": 1.6, "stroke-dasharray": dashOf(i) }));
    if (points.length < 40) for (const p of points) svg.append(shape("circle", { cx: X(p[0]), cy: Y(p[1]), r: 1.8, fill: colourOf(i) }));
  });
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect(), step = x0 + ((event.clientX - box.left) / box.width * W - L) / (W - L - R) * (x1 - x0);
    const near = arms.map((arm, i) => lines[i].length ? [arm.name, lines[i].reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a)] : null).filter(Boolean);
    tip(event, near.map(([n, p]) => `${n}  step ${p[0]}  ${short(p[1])}` + (p[2] === undefined ? "" : `  (${short(p[2])} to ${short(p[3])})`)).join("\n"));
  });
  svg.addEventListener("mouseleave", hide);
  return make("figure", {}, svg, make("figcaption", { textContent: name }));
}

function tip(event, text) { const t = $("tip"); t.textContent = text; t.hidden = false;
  t.style.left = Math.min(event.clientX + 14, innerWidth - t.offsetWidth - 8) + "px"; t.style.top = Math.min(event.clientY + 16, innerHeight - t.offsetHeight - 8) + "px"; }
function hide() { $("tip").hidden = true; }

function curves() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
  for (const [title, belongs] of GROUPS) {
    const chosen = names.filter(belongs), still = chosen.filter(constant), moving = chosen.filter((n) => !constant(n));
    if (!chosen.length) continue;
    const group = make("div", { className: "group" }, make("h3", { textContent: title }), make("div", { className: "charts" }, ...moving.map(chart)));
    if (still.length) group.append(make("p", { className: "none", textContent: "the same at every step: " + still.map((n) => `${n} ${short(runs.map((r) => series(r, n)).flat()[0][1])}`).join(", ") }));
    $("charts").append(group);
  }
}

function summary() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].filter((n) => !/\/(low|high)$|^time\/|^memory\/|word_per_1k/.test(n)).sort();
  const head = make("tr", {}, make("th", { textContent: "metric" }));
  arms.forEach((arm, i) => { for (const what of ["first", "last"]) head.append(make("th", { textContent: arms.length > 1 ? `${arm.name} ${what}` : what, style: `color:${colourOf(i)}` })); });
  const cell = (p) => !p ? "–" : p[2] === undefined ? short(p[1]) : `${short(p[1])} (${short(p[2])} to ${short(p[3])})`;
  const rows = names.map((name) => make("tr", {}, make("td", { textContent: name }), ...arms.flatMap((arm) => { const s = armSeries(arm, name);
    return [s[0], s[s.length - 1]].map((p) => make("td", { textContent: cell(p) })); })));
  $("summary").append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

// ---- the comparison of a sweep: differences from the first arm with their intervals, what the arms cost, and confounds
const signed = (v) => (v < 0 ? "−" : "+") + Math.abs(v).toFixed(3);
function whiskers(d, most) {
  const X = (v) => 60 + v / most * 56, svg = shape("svg", { viewBox: "0 0 120 12", role: "img", class: d.low > 0 || d.high < 0 ? "apart" : "open",
    "aria-label": `${signed(d.difference)}, ${signed(d.low)} to ${signed(d.high)}` });
  svg.append(shape("line", { x1: 60, x2: 60, y1: 0, y2: 12, class: "zero" }), shape("line", { x1: X(d.low), x2: X(d.high), y1: 6, y2: 6, class: "span" }),
    shape("circle", { cx: X(d.difference), cy: 6, r: 3 }));
  return svg;
}
function byArm(rows, columns, column, cell) {
  const factors = [...new Set(rows.map((r) => r.factor))], hasFactors = rows.some((r) => r.factor);
  const ordered = rows.slice().sort((a, b) => factors.indexOf(a.factor) - factors.indexOf(b.factor)), key = (r) => JSON.stringify([r.arm, r.factor]), at = new Map(rows.map((r) => [key(r) + column(r), r]));
  const head = make("tr", {}, make("th", { textContent: "arm", className: "name" }), ...(hasFactors ? [make("th", { className: "name" })] : []), ...columns.map((c) => make("th", { textContent: c })));
  const body = [...new Map(ordered.map((r) => [key(r), r])).values()].map((r) => make("tr", {}, make("td", { textContent: r.arm, className: "name" }),
    ...(hasFactors ? [make("td", { textContent: r.factor, className: "name" })] : []),
    ...columns.map((c) => { const found = at.get(key(r) + c); return make("td", {}, ...(found ? cell(found) : ["–"])); })));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}
function differences(title, rows, reference) {
  if (!rows.length) return [];
  const most = Math.max(...rows.map((d) => Math.max(Math.abs(d.low), Math.abs(d.high)))) || 1;  // null with one seed and one problem, which counts as 0 here
  return [make("h3", { textContent: title }), byArm(rows, [...new Set(rows.map((d) => d.set))], (d) => d.set, (d) => [d.mean.toFixed(3), ...(d.arm === reference ? [] :
    d.low === null ? [make("small", { textContent: signed(d.difference) })] :
      [make("small", { textContent: `${signed(d.difference)} (${signed(d.low)} to ${signed(d.high)})` }), whiskers(d, most)])])];
}
function comparison(found) {
  if (!found) return;
  $("comparison").hidden = document.querySelector('a[href="#comparison"]').hidden = false;
  const first = found.reference, seeds = [...new Set(found.differences.map((d) => d.seeds))].join(" or "), note = (text) => make("p", { className: "none", textContent: text });
  const dear = found.budgets.filter((b) => b.kind === "generated"), spent = Object.entries(found.equal_tokens).map(([factor, n]) => (factor ? factor + ": " : "") + n.toLocaleString("en")).join(", ");
  $("compared").append(
    ...(found.axes.length ? [note("the arms are compared in " + found.axes.join(", "))] : []),
    ...differences("Accuracy; difference from the first arm, 95 % t interval over seeds and problems", found.differences, first),
    ...(seeds ? [note(`seeds per arm: ${seeds}; coloured where the interval excludes zero`)] : []),
    ...[...new Set(found.confounds.map((c) => `arm ${c.arm} differs in ${c.key} as well: ${c.value}, in the first arm ${c.reference}`))].map(note),
    make("h3", { textContent: "Tokens per run, mean over seeds; ×: relative to the first arm" }),
    byArm(found.budgets, [...new Set(found.budgets.map((b) => b.kind))], (b) => b.kind, (b) => [Math.round(b.mean).toLocaleString("en"), ...(b.relative === null ? [] : [make("small", { textContent: `×${b.relative.toFixed(2)}` })])]),
    ...(new Set(dear.map((b) => b.mean)).size > 1 ? differences(`Accuracy when each run had sampled as many tokens (${spent}); difference from the first arm`, found.at_equal_tokens, first) : []),
    ...differences("Accuracy; difference from the reference model, 95 % t interval over seeds and problems", found.from_start));
}

// ---- tokens
const numbers = (text) => { const raw = atob(text), bytes = Uint8Array.from(raw, (c) => c.charCodeAt(0)); return Array.from(new Int16Array(bytes.buffer), (v) => v / 100); };
const rollouts = runs.flatMap((run) => run.rollouts.map((r) => ({ run, r })));
const COLOURS = {
  "u: teacher minus student": { get: (t) => t.u, low: -3, high: 3, diverging: true },
  "student's probability": { get: (t) => t.p, low: 0, high: 1 },
  "teacher's probability": { get: (t) => t.q, low: 0, high: 1 },
  "student's entropy": { get: (t) => t.h, low: 0, high: 3 },
  "teacher's entropy": { get: (t) => t.g, low: 0, high: 3 },
  "loss": { get: (t) => t.loss, low: -1, high: 1, diverging: true },
  "weight": { get: (t) => t.weight, low: 0, high: 2, plain: true },
  "advantage": { get: (t) => t.advantage, low: -2, high: 2, diverging: true, plain: true },
};
function paint(value, c) {
  if (value === undefined || Number.isNaN(value)) return "transparent";
  const x = Math.max(0, Math.min(1, (value - c.low) / (c.high - c.low)));
  if (!c.diverging) return `rgba(11,95,255,${(0.65 * x).toFixed(3)})`;
  const s = 2 * x - 1;
  return s < 0 ? `rgba(217,72,15,${(-0.75 * s).toFixed(3)})` : `rgba(43,138,62,${(0.75 * s).toFixed(3)})`;
}
let tokens = [];
function load() {
  const { r } = rollouts[$("rollout").value], context = $("context").value, scores = r.contexts[context];
  const [p, h] = [numbers(r.logprob), numbers(r.entropy)];
  const [q, g] = scores ? [numbers(scores.logprob), numbers(scores.entropy)] : [[], []];
  const all = (value) => typeof value === "number" ? r.tokens.map(() => value) : numbers(value);
  const terms = Object.entries(r.terms).map(([name, parts]) => [name, Object.fromEntries(Object.entries(parts).map(([what, value]) => [what, all(value)]))]);
  const first = (what, i) => terms.find(([, parts]) => parts[what])?.[1][what][i];
  const bit = (packed) => { const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)); return (i) => bytes[i >> 3] >> (7 - i % 8) & 1; };
  const marks = Object.entries(r.marks).map(([name, packed]) => [name, bit(packed)]), observed = r.observed ? bit(r.observed) : () => 0;
  tokens = r.tokens.map((text, i) => observed(i) ? { text, observed: true, terms: [], classes: [] } : ({ text, u: scores ? q[i] - p[i] : undefined, p: Math.exp(p[i]), q: scores ? Math.exp(q[i]) : undefined, h: h[i], g: g[i],
    loss: terms.reduce((sum, [, parts]) => sum + parts.loss[i], 0), weight: first("token_weight", i), advantage: first("advantage", i),
    terms: terms.map(([name, parts]) => [name, Object.entries(parts).map(([what, values]) => `${what.replace("token_", "")} ${short(values[i])}`).join("   ")]),
    classes: marks.filter(([, marked]) => marked(i)).map(([name]) => name.replace(/[<>]/g, "")) }));
  const inside = tokens.filter((t) => t.u !== undefined), mean = inside.reduce((s, t) => s + t.u, 0) / (inside.length || 1);
  $("facts").textContent = `${r.prompt_id} · step ${r.step} · ${tokens.filter((t) => !t.observed).length} tokens${r.observed ? ` and ${tokens.filter((t) => t.observed).length} from the environment` : ""} · reward ${short(r.reward)} · advantage ${short(r.advantage)} · ${r.finish_reason}` + (inside.length ? ` · mean u ${short(mean)}` : "");
  $("teacher").textContent = r.teacher_prompts[context] ?? "nothing: no teacher scored this rollout in this context";
  $("student").textContent = r.student_prompt;
  draw();
}
function draw() {
  const c = COLOURS[$("colour").value], box = $("text"), followed = new Set(["self_doubt", "hedges", "alternatives", "paper10", rollouts[$("rollout").value].run.followed]);
  box.replaceChildren();
  for (let start = 0; start < tokens.length; start += 400) {
    const block = make("div");
    tokens.slice(start, start + 400).forEach((t, k) => {
      const span = make("span", { textContent: t.text });
      span.dataset.i = start + k; span.style.background = paint(c.get(t), c);
      if (t.classes.some((name) => followed.has(name))) span.className = "mark";
      if (t.observed) span.className = "observed";
      block.append(span);
    });
    box.append(block);
  }
  const bar = make("i"), stops = [0, 0.25, 0.5, 0.75, 1].map((x) => paint(c.low + x * (c.high - c.low), c));
  bar.style.background = `linear-gradient(90deg, ${stops.join(",")})`;
  $("scale").replaceChildren(make("span", { textContent: c.low }), bar, make("span", { textContent: c.high + (c.plain || /probability/.test($("colour").value) ? "" : " nats") }), make("span", { textContent: "· outlined: epistemic markers" + (tokens.some((t) => t.observed) ? " · dotted: from the environment" : "") }));
}
function describe(t) {
  if (t.observed) return `${JSON.stringify(t.text)}\nfrom the environment: read, not sampled, not trained on`;
  const lines = [JSON.stringify(t.text), `student p ${short(t.p)}   entropy ${short(t.h)}`];
  if (t.u !== undefined) lines.push(`teacher p ${short(t.q)}   entropy ${short(t.g)}`, `u ${t.u >= 0 ? "+" : ""}${short(t.u)} nats`);
  for (const [name, value] of t.terms) lines.push(`${name}: ${value}`);
  if (t.classes.length) lines.push("class " + t.classes.join(", "));
  return lines.join("\n");
}
function tokenPage() {
  if (!rollouts.length) { $("tokens").replaceChildren(make("h2", { textContent: "Tokens" }), make("p", { className: "none", textContent: "No rollout was recorded token by token: logging.tokens_every is 0." })); return; }
  rollouts.forEach(({ run, r }, i) => $("rollout").append(make("option", { value: i, textContent: `${runs.length > 1 ? run.name + " · " : ""}step ${r.step} · ${r.prompt_id} · reward ${short(r.reward)} · ${r.tokens.length} tokens` })));
  for (const name of Object.keys(COLOURS)) $("colour").append(make("option", { textContent: name }));
  const contexts = () => { const { r } = rollouts[$("rollout").value], before = $("context").value, known = Object.keys(r.teacher_prompts);
    $("context").replaceChildren(...(known.length ? known : ["–"]).map((v) => make("option", { value: v, textContent: v }))); if (known.includes(before)) $("context").value = before; };
  $("rollout").addEventListener("change", () => { contexts(); load(); });
  $("context").addEventListener("change", load);
  $("colour").addEventListener("change", draw);
  $("text").addEventListener("mousemove", (event) => { const i = event.target.dataset?.i; i === undefined ? hide() : tip(event, describe(tokens[i])); });
  $("text").addEventListener("mouseleave", hide);
  contexts(); load();
}

arms.forEach((arm, i) => { const line = make("i"); const [on, off] = i < 6 ? [1, 0] : dashOf(i).split(" ");
  line.style.background = `repeating-linear-gradient(90deg, ${colourOf(i)} 0 ${on}px, transparent ${on}px ${+on + +off}px)`; $("legend").append(make("span", { className: "key" }, line, arm.name)); });
if (arms.length < runs.length) $("legend").append(make("span", { className: "none", textContent: "mean over seeds; band: 95 % t interval, with two seeds their range" }));
function samples() {
  const rows = runs.flatMap((run) => run.samples.map((s) => make("details", {}, make("summary", { textContent: `${runs.length > 1 ? run.name + " · " : ""}step ${s.step} · reward ${short(s.reward)} · ${s.tokens} tokens · ${s.finish_reason}` + (s.answer === null ? "" : ` · reference answer ${s.answer}`) }),
    make("pre", {}, s.student_prompt, ...(s.turns?.map((turn) => turn.observed ? make("span", { className: "observed", textContent: turn.observed }) : turn.sampled) ?? [s.completion])))));
  $("sample").append(...(rows.length ? rows : [make("p", { className: "none", textContent: "No rollout was recorded: logging.samples is 0." })]));
}
samples();
for (const run of runs) $("config").append(make("details", {}, make("summary", { textContent: run.name }), make("pre", { textContent: run.config })));
comparison(data.comparison); curves(); summary(); tokenPage();
