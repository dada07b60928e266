// ---- curves, by uPlot: drawn once they come into sight, their numbers in words for those who do not see them
const plots = new Map();  // metric -> its plot, or null where it was not drawn yet
let steps = [0, 1], scales = new Map(), zoom = null, drawnNames = "";
const HEIGHT = 150;

function ranges() {  // of the steps, and of each scale that metrics share
  let [x0, x1] = [Infinity, -Infinity];
  scales = new Map();
  for (const name of plots.keys()) {
    const key = metric(name).shares ?? name, range = scales.get(key) ?? [Infinity, -Infinity];
    for (const [arm] of shown()) for (const [step, value, low, high] of armSeries(arm, name)) {
      x0 = Math.min(x0, step); x1 = Math.max(x1, step);
      if (zoom && (step < zoom[0] || step > zoom[1])) continue;
      range[0] = Math.min(range[0], low ?? value); range[1] = Math.max(range[1], high ?? value);
    }
    scales.set(key, range);
  }
  steps = x0 < x1 ? [x0, x1] : Number.isFinite(x0) ? [x0 - 1, x0 + 1] : [0, 1];
  for (const [key, [low, high]] of scales) {
    if (low > high) { scales.set(key, [0, 1]); continue; }
    const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1, floor = low >= 0 && low - pad < 0.3 * high ? 0 : low - pad;
    scales.set(key, [low >= 0 ? Math.max(0, floor) : floor, high + pad]);
  }
}
function columns(name) {  // the steps of all arms, and of each arm: values, low, high
  const own = arms.map((arm) => hidden.has(arm.name) ? [] : armSeries(arm, name)), at = new Map([...new Set(own.flat().map((p) => p[0]))].sort((a, b) => a - b).map((step, i) => [step, i]));
  return [[...at.keys()], ...own.flatMap((points) => {
    const three = [0, 1, 2].map(() => new Array(at.size).fill(undefined));
    for (const [step, value, low, high] of points) { const i = at.get(step); three[0][i] = value; three[1][i] = low; three[2][i] = high; }
    return three;
  })];
}
function inWords(name) {
  const each = shown().map(([arm]) => [arm, armSeries(arm, name)]).filter(([, points]) => points.length)
    .map(([arm, points]) => `${arms.length > 1 ? arm.name + ": " : ""}${short(points[0][1])} at step ${points[0][0]}, ${short(points.at(-1)[1])} at step ${points.at(-1)[0]}`);
  const { title, unit } = metric(name);
  return `${title}${unit ? ", " + unit : ""}. ${each.join("; ")}`;
}
function draw(box, name) {
  const y = () => scales.get(metric(name).shares ?? name), tickless = { ticks: { show: false }, font: "11px system-ui, sans-serif", stroke: () => css("--soft"), grid: { stroke: () => css("--grid"), width: 1 } };
  const most = Math.max(0, ...arms.map((arm) => armSeries(arm, name).length)), own = (i, extra) => ({ stroke: () => css(`--run${i % 6}`), spanGaps: true, points: { show: false }, ...extra });
  const plot = new uPlot({
    width: Math.max(120, box.clientWidth), height: HEIGHT, legend: { show: false }, padding: [8, 16, 0, 0],
    cursor: { y: false, points: { size: 6 }, drag: { x: true, y: false, setScale: false }, sync: { key: "steps", setSeries: false, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } }, bind: { dblclick: () => () => { setZoom(null); } } },
    scales: { x: { time: false, range: () => zoom ?? steps }, y: { range: y } },
    axes: [{ ...tickless, size: 22, space: 56, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 1000000] }, { ...tickless, size: 46, space: 30, values: (_, at) => at.map((v) => minus(short(+v.toPrecision(6)))) }],
    series: [{}, ...arms.flatMap((_, i) => [own(i, { width: 1.75, dash: dashOf(i), points: { show: most <= 25, size: 4, fill: () => css(`--run${i % 6}`) } }), own(i, { width: 0 }), own(i, { width: 0 })])],
    bands: arms.map((_, i) => ({ series: [3 * i + 3, 3 * i + 2], fill: () => css(`--run${i % 6}`) + (shown().length > 4 ? "12" : "26") })),
    hooks: { setSelect: [(u) => { if (u.select.width > 8) { const range = [u.select.left, u.select.left + u.select.width].map((v) => Math.round(u.posToVal(v, "x"))); u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false); if (range[0] < range[1]) setZoom(range); } }] },
  }, columns(name), box);
  plot.over.addEventListener("pointermove", (event) => tipAt(event.clientX, event.clientY, atStep(name, plot.posToVal(event.clientX - plot.over.getBoundingClientRect().left, "x"))));
  plot.over.addEventListener("pointerleave", hide);
  return plot;
}
function atStep(name, step) {
  return shown().map(([arm]) => [arm, armSeries(arm, name)]).filter(([, points]) => points.length).map(([arm, points]) => {
    const p = points.reduce((a, b) => Math.abs(b[0] - step) < Math.abs(a[0] - step) ? b : a);
    return `step ${p[0]}  ${minus(short(p[1]))}` + (p[2] === undefined ? "" : `  (${minus(short(p[2]))} to ${minus(short(p[3]))})`) + (arms.length > 1 ? `  ${arm.name}` : "");
  }).join("\n");
}
function walk(event, box, name) {  // arrow keys on a curve
  const all = columns(name)[0], now = +(box.dataset.at ?? -1), to = { ArrowRight: now + 1, ArrowLeft: now < 0 ? all.length - 1 : now - 1, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined || !all.length) return;
  event.preventDefault();
  const i = Math.max(0, Math.min(all.length - 1, to)), plot = plots.get(name), text = atStep(name, all[i]);
  box.dataset.at = i;
  const place = plot ? plot.over.getBoundingClientRect() : box.getBoundingClientRect(), x = plot ? plot.valToPos(all[i], "x") : 0;
  plot?.setCursor({ left: x, top: 10 });
  tipAt(place.left + x, place.top + 20, text);
  say(text);
}
const seen = new IntersectionObserver((entries) => { for (const { isIntersecting, target } of entries) if (isIntersecting) drawBox(target); }, { rootMargin: "400px" });
const sized = new ResizeObserver((entries) => { for (const { target } of entries) { const plot = plots.get(target.dataset.metric); if (plot && target.clientWidth && plot.width !== target.clientWidth) plot.setSize({ width: target.clientWidth, height: HEIGHT }); } });
function drawBox(box) {
  const name = box.dataset.metric;
  if (plots.get(name) || !box.clientWidth) return;
  plots.set(name, draw(box, name));
  seen.unobserve(box);
  sized.observe(box);
}
function figure(name) {
  const { title, unit } = metric(name), box = make("div", { className: "plot", tabIndex: 0, aria: { role: "img", label: inWords(name) }, data: { metric: name } });
  box.addEventListener("keydown", (event) => walk(event, box, name));
  box.addEventListener("blur", hide);
  seen.observe(box);
  return make("figure", {}, make("figcaption", { title: `${title}${unit ? ", " + unit : ""}` }, make("b", { textContent: title }), unit ? make("span", { textContent: " " + unit }) : null), box, make("code", { textContent: name }));
}
function curves() {  // built anew where other metrics are there, else with the new numbers
  const all = names(), moving = all.filter((n) => !constant(n)), still = all.filter((n) => constant(n)), now = JSON.stringify([arms.length, moving, still.map((n) => [n, series(runs.find((r) => series(r, n).length), n)[0][1]])]);
  if (now === drawnNames) {
    ranges();
    for (const [name, plot] of plots) plot?.setData(columns(name));
    for (const box of document.querySelectorAll(".plot")) box.setAttribute("aria-label", inWords(box.dataset.metric));
    return;
  }
  drawnNames = now;
  const open = new Map([...document.querySelectorAll("details.group")].map((d) => [d.dataset.group, d.open]));
  for (const plot of plots.values()) plot?.destroy();
  plots.clear();
  seen.disconnect(); sized.disconnect();
  for (const name of moving) plots.set(name, null);
  ranges();
  $("charts").replaceChildren(...byGroup(all).map(([group, own]) => {
    const drawn = own.filter((n) => plots.has(n)), flat = own.filter((n) => !plots.has(n));
    return make("details", { className: "group", open: open.get(group) ?? (OPEN.has(group) && drawn.length > 0), data: { group } },
      make("summary", {}, make("h3", { textContent: group }), make("span", { textContent: drawn.length ? many(drawn.length, "curve") : "constant" })),
      make("div", { className: "charts" }, ...drawn.map(figure)),
      flat.length ? make("p", { className: "none" }, "the same at every step: ", ...flat.flatMap((n, i) => [i ? ", " : "", `${n} ${short(series(runs.find((r) => series(r, n).length), n)[0][1])}`])) : null);
  }));
  if (!all.length) $("charts").append(note("Nothing is logged yet."));
}
function setZoom(range) { zoom = range; remember("zoom", range ? range.join("-") : ""); curves(); }
function legend() {
  const several = arms.length > 1;
  $("legend").replaceChildren(...(several ? arms.map((arm, i) => make("button", { className: "key", aria: { pressed: String(!hidden.has(arm.name)) }, title: "show or hide", onclick: () => {
    if (hidden.has(arm.name)) hidden.delete(arm.name); else hidden.add(arm.name);
    remember("hide", [...hidden].map((n) => arms.findIndex((a) => a.name === n)).join("."));
    legend(); curves(); table();
  } }, lineOf(i), arm.name)) : []), ...(arms.length < runs.length ? [make("span", { className: "none", textContent: "mean over seeds; band: 95 % t interval, with two seeds their range" })] : []));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { for (const plot of plots.values()) plot?.redraw(false); });
addEventListener("beforeprint", () => { for (const box of document.querySelectorAll("details[open] .plot")) drawBox(box); });
