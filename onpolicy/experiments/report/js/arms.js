// ---- runs, and the arms of which they are repetitions
const data = JSON.parse($("data").textContent);
let runs = [], arms = [];
let hidden = new Set();
const shown = () => arms.map((arm, i) => [arm, i]).filter(([arm]) => !hidden.has(arm.name));

const series = (run, name) => run.curves[name] ?? [];  // [step, value] or [step, value, low, high]

// An arm's points: those of its one run with their own bounds, or the mean over seeds with a 95 % t interval (with two seeds: their range).
const T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
let pooled = new Map();
function armSeries(arm, name) {
  const each = arm.runs.map((i) => series(runs[i], name));
  if (each.length === 1) return each[0];
  const key = name + "\n" + arm.name;
  if (!pooled.has(key)) pooled.set(key, pool(each));
  return pooled.get(key);
}
function pool(each) {
  const at = new Map();
  for (const points of each) for (const [step, value] of points) at.set(step, [...(at.get(step) ?? []), value]);
  return [...at].sort((a, b) => a[0] - b[0]).map(([step, values]) => {
    const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
    const half = T975[Math.min(n - 2, 9)] * Math.sqrt(values.reduce((s, v) => s + (v - mean) ** 2, 0) / (n - 1) / n);
    return n === 1 ? [step, mean] : n === 2 ? [step, mean, Math.min(...values), Math.max(...values)] : [step, mean, mean - half, mean + half];
  });
}
function constant(name) {
  let first;
  for (const run of runs) for (const [, value] of series(run, name)) { if (first === undefined) first = value; else if (value !== first) return false; }
  return true;
}
const names = () => [...new Set(runs.flatMap((run) => Object.keys(run.curves)))];
const called = (run) => runs.length > 1 ? runs[run].name + " · " : "";

function append(run, rows) {  // what was logged since
  for (const [step, values] of rows) for (const [name, value] of Object.entries(values)) {
    const metric = name.replace(/\/(low|high)$/, "");
    if (metric !== name && metric in values) continue;
    const low = values[name + "/low"], high = values[name + "/high"];
    (run.curves[name] ??= []).push(low === undefined || high === undefined ? [step, value] : [step, value, low, high]);
  }
  pooled = new Map();
}
