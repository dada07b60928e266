// ---- rollouts token by token
const numbers = (text) => { const raw = atob(text), bytes = Uint8Array.from(raw, (c) => c.charCodeAt(0)); return Array.from(new Int16Array(bytes.buffer), (v) => v / 100); };
const COLOURS = {
  "u: teacher minus student": { get: (t) => t.u, low: -3, high: 3, diverging: true },
  "student's probability": { get: (t) => t.p, low: 0, high: 1, plain: true },
  "teacher's probability": { get: (t) => t.q, low: 0, high: 1, plain: true },
  "student's entropy": { get: (t) => t.h, low: 0, high: 3 },
  "teacher's entropy": { get: (t) => t.g, low: 0, high: 3 },
  "loss": { get: (t) => t.loss, low: -1, high: 1, diverging: true },
  "weight": { get: (t) => t.weight, low: 0, high: 2, plain: true },
  "advantage": { get: (t) => t.advantage, low: -2, high: 2, diverging: true, plain: true },
};
let rollouts = [], record = null, tokens = [], current = -1;

function paint(value, c) {
  if (value === undefined || Number.isNaN(value)) return "transparent";
  const x = Math.max(0, Math.min(1, (value - c.low) / (c.high - c.low)));
  if (!c.diverging) return `rgba(var(--more), ${(0.6 * x).toFixed(3)})`;
  const s = 2 * x - 1;
  return s < 0 ? `rgba(var(--less), ${(-0.65 * s).toFixed(3)})` : `rgba(var(--more), ${(0.65 * s).toFixed(3)})`;
}
const rollout = () => rollouts.find((r) => keyOf(r) === $("rollout").value);
const keyOf = (r) => `${r.run}.${r.place}`;
async function load() {
  const asked = rollout();
  if (!asked) return;
  const found = await source.rollout(asked.run, asked.place);
  if (!found || asked !== rollout()) return;
  record = found;
  try {
    const before = recall("context") || $("context").value, contexts = Object.keys(record.teacher_prompts);
    $("context").replaceChildren(...(contexts.length ? contexts : ["–"]).map((v) => make("option", { value: v, textContent: v })));
    if (contexts.includes(before)) $("context").value = before;
    unpack();
  } catch (error) {  // of another version, or written by hand: the rest of the page is shown all the same
    for (const id of ["text", "token", "teacher", "student", "scale"]) $(id).replaceChildren();
    tokens = [];
    $("facts").textContent = `this rollout cannot be shown: ${error.message}`;
  }
}
function unpack() {
  const r = record, context = $("context").value, scores = r.contexts[context];
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
  $("facts").textContent = `${r.prompt_id} · step ${r.step} · ${many(tokens.filter((t) => !t.observed).length, "token")}${r.observed ? ` and ${tokens.filter((t) => t.observed).length} from the environment` : ""} · reward ${short(r.reward)} · advantage ${minus(short(r.advantage))} · ${r.finish_reason}` + (inside.length ? ` · mean u ${minus(short(mean))}` : "");
  $("teacher").textContent = r.teacher_prompts[context] ?? "nothing: no teacher scored this rollout in this context";
  $("student").textContent = r.student_prompt;
  colourTokens();
}
function colourTokens() {
  if (!record) return;
  const c = COLOURS[$("colour").value], box = $("text"), followed = new Set(["self_doubt", "hedges", "alternatives", "paper10", runs[rollout().run].followed]);
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
  $("scale").replaceChildren(make("span", { textContent: minus(String(c.low)) }), bar, make("span", { textContent: c.high + (c.plain ? "" : " nats") }), make("span", { textContent: "· outlined: epistemic markers" + (tokens.some((t) => t.observed) ? " · dotted: from the environment" : "") }));
  $("token").textContent = "";
  current = -1;
  if (recall("token") !== "" && tokens[+recall("token")]) pick(+recall("token"), false);
}
function describe(t) {
  if (t.observed) return `${JSON.stringify(t.text)}\nfrom the environment: read, not sampled, not trained on`;
  const lines = [JSON.stringify(t.text), `student p ${short(t.p)}   entropy ${short(t.h)}`];
  if (t.u !== undefined) lines.push(`teacher p ${short(t.q)}   entropy ${short(t.g)}`, `u ${signed(t.u, short)} nats`);
  for (const [name, value] of t.terms) lines.push(`${name}: ${value}`);
  if (t.classes.length) lines.push("class " + t.classes.join(", "));
  return lines.join("\n");
}
const spanOf = (i) => $("text").children[Math.floor(i / 400)]?.children[i % 400];
function pick(i, scroll = true) {  // by touch, click or key: stays until another is picked
  spanOf(current)?.classList.remove("picked");
  current = Math.max(0, Math.min(tokens.length - 1, i));
  const span = spanOf(current);
  span.classList.add("picked");
  if (scroll) span.scrollIntoView({ block: "nearest" });
  $("token").textContent = `token ${current + 1} of ${tokens.length}  ${describe(tokens[current])}`;
  remember("token", current);
}
async function listRollouts() {
  rollouts = await source.rollouts();
  const none = !rollouts.length;
  $("tokens").classList.toggle("empty", none);
  $("tokens").querySelector(".absent")?.remove();
  if (none) { $("tokens").append(make("p", { className: "none absent", textContent: "No rollout was recorded token by token: logging.tokens_every is 0, or its first one is still to come." })); return; }
  const by = new Map(rollouts.map((r) => [keyOf(r), r]));
  options($("rollout"), rollouts.map(keyOf), (k) => { const r = by.get(k); return `${called(r.run)}step ${r.step} · ${r.prompt_id} · reward ${short(r.reward)} · ${r.length} tokens`; });
  if (by.has(recall("rollout"))) $("rollout").value = recall("rollout");
  if (!record || keyOf(rollout()) !== $("tokens").dataset.shown) { $("tokens").dataset.shown = $("rollout").value; await load(); }
}
for (const name of Object.keys(COLOURS)) $("colour").append(make("option", { textContent: name }));
$("rollout").addEventListener("change", () => { remember("token", ""); remember("rollout", $("rollout").value); $("tokens").dataset.shown = $("rollout").value; load(); });
$("context").addEventListener("change", () => { remember("context", $("context").value); unpack(); });
$("colour").addEventListener("change", () => { remember("colour", $("colour").value); colourTokens(); });
$("text").addEventListener("pointermove", (event) => { const i = event.target.dataset?.i; i === undefined || event.pointerType === "touch" ? hide() : tipAt(event.clientX, event.clientY, describe(tokens[i])); });
$("text").addEventListener("pointerleave", hide);
$("text").addEventListener("click", (event) => { const i = event.target.dataset?.i; if (i !== undefined) pick(+i, false); });
$("text").addEventListener("keydown", (event) => {
  const to = { ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + 10, ArrowUp: current - 10, Home: 0, End: tokens.length - 1 }[event.key];
  if (to === undefined || !tokens.length || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  pick(to);
});
