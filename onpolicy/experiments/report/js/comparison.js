// ---- the comparison of a sweep: differences from the first arm with their intervals, what the arms cost, and confounds
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
  $("comparison").hidden = document.querySelector('a[data-to="comparison"]').hidden = false;
  const first = found.reference, seeds = [...new Set(found.differences.map((d) => d.seeds))].join(" or ");
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
