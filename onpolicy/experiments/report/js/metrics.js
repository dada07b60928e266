// ---- what metrics are called, in which unit, and which of them belong together, in the order of interest
const words = (name) => name.replace(/_/g, " ");
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const K = "per 1,000 tokens";
// group, which metrics, their title, their unit; those of a group with the same unit share their scale, unless the unit ends in "…"
const RULES = [
  ["Accuracy", /^eval\/([^/]+)\/avg@(\d+)$/, (m) => `${words(m[1])}`, "share right"],
  ["Accuracy", /^eval\/([^/]+)\/pass@(\d+)$/, (m) => `${words(m[1])}, any of ${m[2]} right`, "share of problems"],
  ["Accuracy", /^eval\/([^/]+)\/maj@(\d+)$/, (m) => `${words(m[1])}, majority of ${m[2]} right`, "share of problems"],
  ["Accuracy", /^reward\/mean$/, () => "Training reward", "mean…"],
  ["Length", /^rollout\/completion_length\/mean$/, () => "Training completions", "tokens"],
  ["Length", /^eval\/([^/]+)\/completion_length$/, (m) => words(m[1]), "tokens"],
  ["Length", /^rollout\/truncated$/, () => "Training, cut at the limit", "share cut"],
  ["Length", /^eval\/([^/]+)\/truncated$/, (m) => `${words(m[1])}, cut at the limit`, "share cut"],
  ["Expressed uncertainty", /^epistemic\/([^/]+)\/rate_per_1k$/, (m) => `Markers: ${words(m[1])}`, K],
  ["Expressed uncertainty", /^eval\/([^/]+)\/epistemic\/([^/]+)\/rate_per_1k$/, (m) => `${words(m[1])}: ${words(m[2])}`, K],
  ["Uncertainty against the reference model", /^epistemic\/([^/]+)\/suppression$/, (m) => `Suppression: ${words(m[1])}`, "log ratio…"],
  ["Uncertainty against the reference model", /^epistemic\/([^/]+)\/suppression\/at_length$/, (m) => `Suppression at equal length: ${words(m[1])}`, "log ratio…"],
  ["Uncertainty against the reference model", /^(.+)\/lead$/, (m) => `Lead: ${words(m[1].split("/").at(-1))}`, "steps…"],
  ["Markers by part of the answer and outcome", /^epistemic\/([^/]+)\/rate_per_1k\/(correct|incorrect|wrong|thinking|answer|easy|hard)$/, (m) => `${capital(words(m[1]))}, ${m[2]}`, K],
  ["Audit of the markers", /^audit\/(.+)$/, (m) => capital(words(m[1]).replace("/", ": ")), "…"],
  ["Calibration", /^(?:eval\/([^/]+)\/)?calibration\/([^/]+)\/(brier|ece|auroc|auroc_within|gap)$/, (m) => `${m[1] ? words(m[1]) + ": " : ""}${words(m[2])}, ${{ brier: "Brier score", ece: "calibration error", auroc: "AUROC", auroc_within: "AUROC within problems", gap: "gap" }[m[3]]}`, (m) => m[3]],
  ["Teacher minus student", /^teacher\/([^/]+)\/gap$/, (m) => `Gap, ${words(m[1])}`, "nats per token"],
  ["Teacher minus student", /^epistemic\/gap\/([^/]+)\/(.+)$/, (m) => `Gap on ${words(m[2])}, ${words(m[1])}`, "nats per token"],
  ["Teacher minus student", /^(.*gap_matched.*)$/, (m) => capital(words(m[1].split("/").slice(1).join(", "))), "nats per token"],
  ["Probability mass of the markers", /^epistemic\/([^/]+)\/(mass|mass_gap)\/(.+)$/, (m) => `${capital(words(m[1]))}, ${m[2] === "mass" ? "" : "gap, "}${words(m[3])}`, "probability…"],
  ["Divergence by token class", /^epistemic\/divergence_concentration\/([^/]+)\/(.+)$/, (m) => `${capital(words(m[2]))}, ${words(m[1])}`, "share of divergence / share of tokens"],
  ["Entropy", /^policy\/entropy$/, () => "Policy", "nats per token"],
  ["Entropy", /^teacher\/([^/]+)\/entropy$/, (m) => `Teacher, ${words(m[1])}`, "nats per token"],
  ["Entropy", /^epistemic\/([^/]+)\/(entropy_at|entropy_around)$/, (m) => `${m[2] === "entropy_at" ? "At" : "Around"} markers: ${words(m[1])}`, "nats per token"],
  ["Entropy", /^epistemic\/fork_rate$/, () => "Forks", "share of tokens"],
  ["Entropy", /^(.*entropy)$/, (m) => capital(words(m[1].split("/").join(", "))), "nats per token"],
  ["Environment", /^environment\/(.+)$/, (m) => capital(words(m[1])), "…"],
  ["Contexts", /^context\/([^/]+)\/(share|repeated)$/, (m) => `${capital(words(m[1]))}, ${m[2] === "share" ? "rollouts that have it" : "repeated by the answer"}`, "share"],
  ["Loss", /^train\/loss$/, () => "Loss", "nats…"],
  ["Loss", /^train\/grad_norm$/, () => "Gradient norm", "…"],
  ["Loss", /^(.+)\/(divergence|kl)$/, (m) => `${m[2] === "kl" ? "KL" : "Divergence"}, ${words(m[1])}`, "nats per token"],
  ["Schedules", /^schedule\/(.+)$/, (m) => capital(words(m[1])), "…"],
];
const OTHER = "Everything else";
const OPEN = new Set(["Accuracy", "Length", "Expressed uncertainty"]);
const ORDER = [...new Set(RULES.map(([group]) => group)), OTHER];
const known = new Map();

function metric(name) {  // { group, title, unit, shares }: shares is the key of its scale
  if (!known.has(name)) {
    for (const [group, pattern, title, unit] of RULES) {
      const m = pattern.exec(name);
      if (!m) continue;
      const given = typeof unit === "function" ? unit(m) : unit;
      known.set(name, { group, title: capital(title(m)), unit: given === "brier" || given === "ece" || given.startsWith("auroc") || given === "gap" ? "" : given.replace("…", ""), shares: given.endsWith("…") ? null : `${group} ${given}` });
      break;
    }
    if (!known.has(name)) known.set(name, { group: OTHER, title: capital(words(name.split("/").slice(-2).join(", "))), unit: /^time\//.test(name) ? "s" : /_gib$/.test(name) ? "GiB" : "", shares: null });
  }
  return known.get(name);
}
const outside = (name) => { const set = /^eval\/([^/]+)\//.exec(name)?.[1]; return set === undefined ? 0 : runs.some((r) => r.in_domain?.includes(set)) ? 1 : 2; };
function byGroup(chosen) {  // sets in domain first, then as the run logs them
  const order = new Map(chosen.map((name, i) => [name, i]));
  return ORDER.map((group) => [group, chosen.filter((n) => metric(n).group === group).sort((a, b) => rank(a) - rank(b) || outside(a) - outside(b) || order.get(a) - order.get(b))]).filter(([, own]) => own.length);
}
const rank = (name) => RULES.findIndex(([, pattern]) => pattern.test(name));
