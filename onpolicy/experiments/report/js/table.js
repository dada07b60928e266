// ---- the first and the last step in numbers, and what changed between them
const LEFT_OUT = /\/(low|high)$|^time\/|^memory\/|word_per_1k/;
function table() {
  const searched = $("metric").value.trim().toLowerCase(), own = shown();
  const chosen = names().filter((n) => searched ? n.toLowerCase().includes(searched) || metric(n).title.toLowerCase().includes(searched) : !LEFT_OUT.test(n));
  const cell = (p) => make("td", {}, p ? minus(short(p[1])) : "–", p?.[2] === undefined ? null : make("small", { textContent: `${minus(short(p[2]))} to ${minus(short(p[3]))}` }));
  const change = (a, b) => { const d = a && b && a[0] !== b[0] ? b[1] - a[1] : null, less = d !== null && Math.abs(d) < 1e-9 * Math.max(Math.abs(a[1]), Math.abs(b[1]));
    return make("td", { className: d === null || d === 0 || less ? "change none" : "change", textContent: d === null ? "–" : d === 0 || less ? "0" : signed(d, short) }); };
  const head = [make("tr", {}, make("th", { textContent: "metric", scope: "col" }), ...own.flatMap(() => ["first", "last", "change"].map((what) => make("th", { scope: "col", textContent: what }))))];
  if (arms.length > 1) head.unshift(make("tr", { className: "arms" }, make("td"), ...own.map(([arm, i]) => make("th", { scope: "colgroup", colSpan: 3 }, lineOf(i), " ", arm.name))));
  const body = byGroup(chosen).flatMap(([group, metrics]) => [make("tr", { className: "group" }, make("th", { colSpan: 1 + 3 * own.length, scope: "rowgroup", textContent: group })),
    ...metrics.map((name) => make("tr", {}, make("th", { scope: "row" }, metric(name).title, metric(name).unit ? make("span", { textContent: " " + metric(name).unit }) : null, make("code", { textContent: name })),
      ...own.flatMap(([arm]) => { const [first, last] = ends(armSeries(arm, name)); return [cell(first), cell(last), change(first, last)]; })))]);
  $("summary").replaceChildren(body.length ? make("table", {}, make("thead", {}, ...head), make("tbody", {}, ...body)) : note(searched ? "No metric of that name." : "Nothing is logged yet."));
}
$("metric").addEventListener("input", () => { remember("metric", $("metric").value); table(); });
