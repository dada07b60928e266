// ---- every kept sample: search, filters, pages
const FIELDS = ["text", "run", "set", "finish", "reward_from", "reward_to", "tokens_from", "tokens_to", "step_from", "step_to", "order"];
const ORDERS = ["newest", "oldest", "longest", "shortest", "highest reward", "lowest reward"];
let page = 0, found = null, looking = 0;
const filter = $("filter");

const asked = () => Object.fromEntries(FIELDS.map((name) => [name, filter.elements[name].value]).filter(([, v]) => v !== ""));
async function find(keep = false) {  // keep: the page was not turned, new samples may have come
  const now = ++looking, query = { ...asked(), page };
  const answer = await source.samples(query);
  if (now !== looking || !answer) return;
  if (keep && found && JSON.stringify(answer) === JSON.stringify(found)) return;
  const open = keep ? new Set([...document.querySelectorAll("#found details[open]")].map((d) => d.dataset.key)) : new Set();
  found = answer;
  options(filter.elements.set, ["", ...answer.sets]);
  options(filter.elements.finish, ["", ...answer.finishes]);
  for (const name of ["set", "finish"]) if (query[name] && filter.elements[name].value !== query[name]) filter.elements[name].value = recall("s_" + name);
  const last = answer.start + answer.rows.length;
  $("matched").textContent = !answer.kept ? "" : (answer.matched === answer.kept ? many(answer.kept, "sample") : `${answer.matched.toLocaleString("en")} of ${many(answer.kept, "sample")}`)
    + (answer.matched > answer.rows.length ? `, ${answer.start + 1} to ${last}` : "") + (answer.whole ? `; the run kept ${answer.whole.toLocaleString("en")}, and onpolicy view shows them all` : "");
  $("found").replaceChildren(...(answer.rows.length ? answer.rows.map((s) => item(s, query.text, open)) : [note(answer.kept ? "No sample is like that." : "No rollout was recorded: logging.samples is 0, or its first one is still to come.")]));
  const turn = (by, text) => make("button", { textContent: text, disabled: by < 0 ? !answer.start : last >= answer.matched, onclick: () => { turnPage(by); } });
  $("pages").replaceChildren(...(answer.matched > answer.per_page ? [turn(-1, "previous"), make("span", { className: "none", textContent: `page ${answer.start / answer.per_page + 1} of ${Math.ceil(answer.matched / answer.per_page)}` }), turn(1, "next")] : []));
}
function turnPage(by) {
  if (!found || found.start + by * found.per_page < 0 || found.start + by * found.per_page >= found.matched) return;
  page += by;
  remember("s_page", page || "");
  find().then(() => { $("found").querySelector("summary")?.focus(); });
}
const same = (s) => `${s.run}/${s.set}/${s.step}/${s.problem}/${s.place}`;
function marked(text, searched) {  // the text, with what was searched for marked
  if (!searched) return [text];
  const out = [], low = text.toLowerCase(), want = searched.toLowerCase();
  if (low.length !== text.length) return [text];  // some letters have another length in lower case
  let from = 0;
  for (let at = low.indexOf(want); at >= 0; at = low.indexOf(want, from)) { out.push(text.slice(from, at), make("mark", { textContent: text.slice(at, at + want.length) })); from = at + want.length; }
  return [...out, text.slice(from)];
}
function bodyOf(s, searched) {
  const written = s.turns?.length ? s.turns.map((turn) => turn.observed ? make("span", { className: "observed", textContent: turn.observed }) : turn.sampled) : marked(s.completion, searched);
  return [s.student_prompt ? make("div", { className: "prompt" }, ...marked(s.student_prompt, searched)) : null, make("div", { className: "completion" }, ...written)];
}
const outcome = (s) => s.reward == null ? "not graded" : `reward ${short(s.reward)}`;
function item(s, searched, open) {
  const key = same(s), pre = make("pre");
  const fill = () => { if (!pre.childNodes.length) pre.append(...bodyOf(s, searched).filter(Boolean)); };
  const box = make("details", { className: "sample", data: { key }, open: open.has(key) }, make("summary", {},
    make("i", { className: s.reward > 0 ? "dot full" : "dot", aria: { hidden: "true" } }), make("span", { className: "what", textContent: `${called(s.run)}step ${s.step} · ${s.set}` + (s.problem ? ` · ${s.problem}` : "") }),
    make("span", { className: "how", textContent: `${outcome(s)} · ${many(s.tokens, "token")} · ${s.finish_reason}` }),
    make("span", { className: "start", textContent: s.completion.slice(0, 200) })),
    make("div", { className: "controls" }, s.answer == null ? null : make("span", { className: "none", textContent: (s.set === "training" ? "reference answer " : "its answer ") + s.answer }),
      s.problem ? make("button", { textContent: "this problem over the steps", onclick: () => showProblem(s) }) : null), pre);
  box.addEventListener("toggle", () => { if (box.open) fill(); });
  if (box.open) fill();
  return box;
}
let later = 0;
filter.addEventListener("input", () => { clearTimeout(later); later = setTimeout(() => { page = 0; remember("s_page", ""); for (const name of FIELDS) remember("s_" + name, name === "order" && filter.elements[name].value === ORDERS[0] ? "" : filter.elements[name].value); find(); }, 150); });
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("reset", () => setTimeout(() => filter.dispatchEvent(new Event("input"))));
function recallFilter() {
  options(filter.elements.order, ORDERS);
  options(filter.elements.run, ["", ...runs.map((_, i) => i)], (v) => v === "" ? "all" : runs[v].name);
  filter.querySelector(".of-run").hidden = runs.length < 2;
  for (const name of FIELDS) {
    const value = recall("s_" + name, name === "order" ? ORDERS[0] : ""), field = filter.elements[name];
    if (value && field.tagName === "SELECT" && ![...field.options].some((o) => o.value === value)) field.append(make("option", { value, textContent: value }));
    field.value = value;
  }
  page = Math.max(0, Math.floor(+recall("s_page", "0")) || 0);
}
