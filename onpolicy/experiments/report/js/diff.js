// ---- what differs between two texts, word by word: the longest common sequence
const MOST_CELLS = 6e6;
function differing(one, other) {  // [[kind, text]]: kind is same, less (in the first alone) or more (in the second alone)
  const a = one.split(/(\s+)/).filter((w) => w !== ""), b = other.split(/(\s+)/).filter((w) => w !== "");
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const out = [], add = (kind, words) => { if (!words.length) return; if (out.length && out.at(-1)[0] === kind) out.at(-1)[1] += words.join(""); else out.push([kind, words.join("")]); };
  const x = a.slice(start, a.length - end), y = b.slice(start, b.length - end);
  add("same", a.slice(0, start));
  if (x.length * y.length > MOST_CELLS) { add("less", x); add("more", y); }
  else {
    const wide = y.length + 1, long = new Uint16Array((x.length + 1) * wide);
    for (let i = x.length - 1; i >= 0; i--) for (let j = y.length - 1; j >= 0; j--)
      long[i * wide + j] = x[i] === y[j] ? long[(i + 1) * wide + j + 1] + 1 : Math.max(long[(i + 1) * wide + j], long[i * wide + j + 1]);
    for (let i = 0, j = 0; i < x.length || j < y.length;) {
      if (i < x.length && j < y.length && x[i] === y[j]) { add("same", [x[i]]); i++; j++; }
      else if (j === y.length || i < x.length && long[(i + 1) * wide + j] >= long[i * wide + j + 1]) add("less", [x[i++]]);
      else add("more", [y[j++]]);
    }
  }
  add("same", a.slice(a.length - end));
  return out;
}
function side(parts, kind) {  // one of the two texts, with what the other lacks marked
  return parts.filter(([k]) => k === "same" || k === kind).map(([k, text]) => k === "same" ? text : make(kind === "less" ? "del" : "ins", { textContent: text }));
}
