// ---- elements, numbers, colours
const $ = (id) => document.getElementById(id);
const make = (tag, props = {}, ...children) => {
  const { aria = {}, data: own = {}, ...rest } = props, e = Object.assign(document.createElement(tag), rest);
  for (const [k, v] of Object.entries(aria)) e.setAttribute(k === "role" ? k : "aria-" + k, v);
  Object.assign(e.dataset, own);
  e.append(...children.filter((c) => c !== null && c !== undefined));
  return e;
};
const NS = "http://www.w3.org/2000/svg";
const shape = (tag, attributes) => { const e = document.createElementNS(NS, tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); return e; };
const note = (text) => make("p", { className: "none", textContent: text });
const options = (select, values, label = (v) => v || "all") => {
  const before = select.value, known = values.map(String);
  if (known.join("\n") === [...select.options].map((o) => o.value).join("\n")) return;
  select.replaceChildren(...known.map((v) => make("option", { value: v, textContent: label(v) })));
  if (known.includes(before)) select.value = before;
};

const short = (v) => v == null ? "–" : Math.abs(v) >= 1e6 ? v.toExponential(2) : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en")
  : Math.abs(v) >= 0.001 || v === 0 ? +v.toPrecision(4) + "" : v.toExponential(2);
const brief = (v) => v == null ? "–" : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : Math.abs(v) >= 100 ? v.toFixed(0)
  : Math.abs(v) >= 10 ? v.toFixed(1) : Math.abs(v) >= 1 ? v.toFixed(2) : Math.abs(v) >= 5e-4 || v === 0 ? v.toFixed(3) : v.toExponential(1);
const minus = (text) => text.replace(/^-/, "−");
const signed = (v, show = (x) => x.toFixed(3)) => (v < 0 ? "−" : "+") + show(Math.abs(v));
const many = (n, one, more = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
function ago(seconds) {
  const s = Math.max(0, seconds);
  return s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
}

// six colours, then the same ones dashed
const DASHES = [[], [7, 4], [2, 3]];
const colourOf = (i) => `var(--run${i % 6})`, dashOf = (i) => DASHES[Math.floor(i / 6) % 3];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function lineOf(i) {  // as a legend shows it
  const svg = shape("svg", { viewBox: "0 0 22 6", width: 22, height: 6, "aria-hidden": "true" }), line = shape("line", { x1: 0, x2: 22, y1: 3, y2: 3, "stroke-width": 2.5, "stroke-dasharray": dashOf(i).join(" ") });
  line.style.stroke = colourOf(i);
  svg.append(line);
  return svg;
}

// ---- what hovers beside the pointer, and what a screen reader is told
function tipAt(x, y, text) {
  const t = $("tip");
  t.textContent = text;
  t.hidden = false;
  t.style.left = Math.max(4, Math.min(x + 14, innerWidth - t.offsetWidth - 8)) + "px";
  t.style.top = Math.max(4, y + 16 + t.offsetHeight > innerHeight ? y - t.offsetHeight - 12 : y + 16) + "px";
}
function hide() { $("tip").hidden = true; }
function say(text) { $("said").textContent = text; }
