// ---- the data of a view: asked from the server that gave the page, every two seconds what is new
const EVERY = 2000;
let ahead = 0, marks = "";  // the server's clock, and what was written of samples and tokens when last seen
const clock = () => Date.now() / 1000 + ahead;
async function ask(path, parameters = {}) {
  try {
    const answer = await fetch(path + "?" + new URLSearchParams(parameters), { cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(60000) });
    if (!answer.ok) return null;
    const found = await answer.json();
    connected(true);
    return found;
  } catch { connected(false); return null; }
}
function connected(yes) {
  $("live").className = yes ? "on" : "off";
  const text = yes ? "live" : "onpolicy view has ended, or cannot be reached; trying again";
  if ($("live").textContent !== text) $("live").textContent = text;
}
const source = {
  async load() {
    const answer = await ask("/runs");
    if (!answer) return false;
    ({ runs, arms } = answer);
    ahead = answer.now - Date.now() / 1000;
    marks = runs.map((r) => r.mark).join();
    pooled = new Map();
    return true;
  },
  async poll() {  // what has to be drawn: nothing, the curves, the samples, or all anew
    if (!runs.length) return await source.load() ? "anew" : "";
    const answer = await ask("/poll", { at: runs.map((r) => r.cursor).join() });
    if (!answer) return "";
    ahead = answer.now - Date.now() / 1000;
    const now = answer.runs.map((r) => r.mark).join(), others = now !== marks;
    if (answer.anew) return await source.load() ? "anew" : "";
    answer.runs.forEach((told, i) => { append(runs[i], told.rows); Object.assign(runs[i], { condition: told.condition, cursor: told.cursor, mark: told.mark }); });
    marks = now;
    return (answer.runs.some((r) => r.rows.length) ? "curves " : "state ") + (others ? "samples" : "");
  },
  samples: (query) => ask("/samples", query),
  problem: (set, problem) => ask("/problem", { set, problem }),
  rollouts: async () => await ask("/rollouts") ?? rollouts,
  rollout: (run, place) => ask("/rollout", { run, place }),
};
async function follow() {
  if (!document.hidden) {
    const what = await source.poll();
    if (what === "anew") await drawAll();
    else if (what) {
      cards();
      if (what.includes("curves")) { curves(); table(); }
      if (what.includes("samples")) { await find(true); await listRollouts(); configs(); }
    }
  }
  setTimeout(follow, EVERY);
}
setTimeout(follow, EVERY);
