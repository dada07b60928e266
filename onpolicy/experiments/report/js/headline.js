// ---- the headline: how good, how long, how unsure, what raised an alarm, how far
const ACCURACY = /^eval\/([^/]+)\/avg@\d+$/;
const ends = (points) => points.length ? [points[0], points.at(-1)] : [null, null];

// Accuracy over several sets, weighted by their problems; their intervals as if the sets were independent.
function overSets(arm, chosen) {
  const parts = chosen.map((name) => [armSeries(arm, name), armSeries(arm, name.replace(/avg@\d+$/, "problems"))[0]?.[1] ?? 1]).filter(([points]) => points.length);
  const at = (pick) => {
    if (!parts.length) return null;
    const step = pick(parts[0][0])[0], whole = parts.reduce((s, [, n]) => s + n, 0), points = parts.map(([p]) => p.find((x) => x[0] === step));
    if (points.some((p) => !p)) return null;
    const mean = points.reduce((s, p, i) => s + p[1] * parts[i][1] / whole, 0);
    if (points.some((p) => p[2] === undefined)) return [step, mean];
    const side = (to) => Math.sqrt(points.reduce((s, p, i) => s + ((p[to] - p[1]) * parts[i][1] / whole) ** 2, 0));
    return [step, mean, mean - side(2), mean + side(3)];
  };
  return [at((p) => p[0]), at((p) => p.at(-1))];
}
function measured(label, [first, last], unit = "") {
  if (!last) return null;
  const moved = first && first[0] !== last[0] ? last[1] === first[1] ? `as at step ${first[0]}` : `${signed(last[1] - first[1], brief)} since step ${first[0]}` : `at step ${last[0]}`;
  const interval = last[2] === undefined ? "" : `${minus(brief(last[2]))} to ${minus(brief(last[3]))}`;
  return { label, value: minus(brief(last[1])), unit, interval, note: moved };
}
function accuracies(arm) {
  const own = names().filter((n) => ACCURACY.test(n) && arm.runs.some((i) => series(runs[i], n).length)), of = (n) => ACCURACY.exec(n)[1];
  if (!own.length) return [measured("Training reward", ends(armSeries(arm, "reward/mean")))];
  const inside = own.filter((n) => (runs[arm.runs[0]].in_domain ?? []).includes(of(n))), outside = own.filter((n) => !inside.includes(n));
  const sets = (label, chosen) => { const found = measured(label, overSets(arm, chosen)); return found && { ...found, sets: chosen.map((n) => words(of(n))).join(", ") }; };
  if (inside.length && outside.length) return [sets("Accuracy in domain", inside), sets("Accuracy out of domain", outside)];
  return own.length > 3 ? [sets("Accuracy", own)] : own.map((n) => sets(`Accuracy, ${words(of(n))}`, [n]));
}
function progress(arm) {
  const each = arm.runs.map((i) => runs[i].condition).filter(Boolean), step = (c) => c.step === null ? 0 : c.step;
  if (!each.length) { const last = Math.max(...arm.runs.flatMap((i) => Object.values(runs[i].curves).map((p) => p.at(-1)[0]))); return { text: `step ${last}`, share: 1, state: "", written: null }; }
  const [least, most, steps] = [Math.min(...each.map(step)), Math.max(...each.map(step)), Math.max(...each.map((c) => c.steps ?? 0))];
  const found = ["running", "starting", "unknown", "stopped", "waiting", "gone", "finished"].find((s) => each.some((c) => c.state === s)) ?? "", number = each.filter((c) => c.state === found).length;
  const state = { unknown: "", starting: "starting", waiting: "waiting for the first step", gone: "the folder is not there" }[found] ?? found;
  return {
    text: `step ${least === most ? most : `${least} to ${most}`}` + (steps ? ` of ${steps}` : ""), share: steps ? Math.min(1, most / steps) : 1, kind: found,
    state: each.length > 1 && number < each.length ? `${number} of ${each.length} ${state}` : state,
    written: Math.max(...each.map((c) => c.written ?? 0)) || null, unreadable: each.reduce((s, c) => s + (c.unreadable ?? 0), 0),
  };
}
function firstGuard(arm) {
  const fired = arm.runs.map((i) => runs[i].condition?.guard).filter(Boolean).sort((a, b) => a.step - b.step);
  if (!arm.runs.some((i) => runs[i].condition)) return null;
  if (!fired.length) return { label: "First guard", value: "none fired", small: true, note: "" };
  const more = fired.reduce((s, g) => s + g.more, fired.length - 1), [name, ...rest] = fired[0].reason.split(" ");
  return { label: "First guard", value: `step ${fired[0].step}`, small: true, note: `${metricTitle(name)} ${rest.join(" ").replace(/, (below|by more than) .*/, "")}` + (more ? `; ${many(more, "alarm")} since` : "") };
}
const metricTitle = (name) => { const m = name.includes("/") ? metric(name) : null; return m && m.group !== OTHER ? m.title : name; };
function headlineOf(arm) {
  const lexicon = runs[arm.runs[0]].followed, rate = armSeries(arm, `epistemic/${lexicon}/rate_per_1k`);
  return [
    ...accuracies(arm), measured("Length", ends(armSeries(arm, "rollout/completion_length/mean")), "tokens"),
    measured(`Uncertainty: ${words(lexicon)}`, ends(rate), "per 1,000"), firstGuard(arm),
  ].filter(Boolean);
}

const written = (p) => p.written === null ? "" : `last written ${ago(clock() - p.written)}`;
const stateLine = (p) => [p.state, p.kind === "gone" ? "" : written(p), p.unreadable ? many(p.unreadable, "unreadable line") : ""].filter(Boolean).join(" · ");
function cards() {
  const facts = arms.map(headlineOf), alike = new Set(facts.map((own) => own.map((f) => f.label).join())).size === 1;
  $("cards").className = arms.length > 3 ? "rows" + (alike ? " alike" : "") : arms.length > 1 ? "several" : "";
  $("cards").replaceChildren(...arms.map((arm, i) => {
    const p = progress(arm), bar = make("i");
    bar.style.width = `${(100 * p.share).toFixed(1)}%`;
    const save = make("button", { className: "quiet", textContent: "PNG", title: "save this card as a picture", aria: { label: `save ${arm.name} as PNG` }, onclick: () => savePicture(arm, i) });
    return make("article", { className: `card ${p.kind ?? ""}`, aria: { label: arm.name } },
      make("div", { className: "top" }, lineOf(i), make("h2", { textContent: arm.name }), make("span", { className: "step", textContent: p.text }), save),
      make("div", { className: "progress", aria: { hidden: "true" } }, bar),
      make("p", { className: "state", textContent: stateLine(p), data: { arm: i } }),
      make("dl", {}, ...facts[i].map((f) => make("div", { className: f.small ? "small" : "" }, make("dt", { textContent: f.label }),
        make("dd", {}, make("strong", { textContent: f.value }), f.unit ? make("span", { className: "unit", textContent: " " + f.unit }) : null,
          f.interval ? make("span", { className: "interval", textContent: f.interval, title: "95 % interval" }) : null,
          make("span", { className: "since", textContent: f.note, title: f.sets ? `over ${f.sets}` : f.note }))))));
  }));
}
function tick() {  // how long ago, between two looks
  for (const line of document.querySelectorAll(".card .state")) { const text = stateLine(progress(arms[line.dataset.arm])); if (line.textContent !== text) line.textContent = text; }
}
