// ---- a card as a picture: drawn from the same facts, in the colours that are on the screen
function drawPicture(arm, i) {
  const facts = headlineOf(arm), p = progress(arm), scale = 2, pad = 36, gap = 20, columns = Math.min(facts.length, 5), wide = 1200, each = (wide - 2 * pad - (columns - 1) * gap) / columns;
  const rows = Math.ceil(facts.length / columns), canvas = make("canvas", { width: wide * scale, height: (150 + rows * 128) * scale }), at = canvas.getContext("2d"), tall = canvas.height / scale;
  at.scale(scale, scale);
  at.fillStyle = css("--ground"); at.fillRect(0, 0, wide, tall);
  at.strokeStyle = css("--line"); at.lineWidth = 1; at.strokeRect(0.5, 0.5, wide - 1, tall - 1);
  const write = (text, x, y, size, colour, weight = 400, most = wide) => { at.font = `${weight} ${size}px system-ui, sans-serif`; at.fillStyle = css(colour); at.fillText(cut(at, text, most), x, y); };
  at.strokeStyle = css(`--run${i % 6}`); at.lineWidth = 4; at.setLineDash(dashOf(i)); at.beginPath(); at.moveTo(pad, 52); at.lineTo(pad + 34, 52); at.stroke(); at.setLineDash([]);
  write(arm.name, pad + 48, 60, 26, "--ink", 600, wide - 380);
  at.textAlign = "right"; write(p.text, wide - pad, 60, 18, "--soft", 400); at.textAlign = "left";
  write([p.state, new Date(clock() * 1000).toISOString().slice(0, 16).replace("T", " ") + " UTC"].filter(Boolean).join(" · "), pad, 94, 16, "--soft");
  facts.forEach((f, k) => {
    const x = pad + k % columns * (each + gap), y = 148 + Math.floor(k / columns) * 128;
    write(f.label, x, y, 15, "--soft", 400, each);
    write(f.value + (f.unit ? " " : ""), x, y + 38, f.small ? 24 : 34, "--ink", 600, each);
    if (f.unit) write(f.unit, x + at.measureText(f.value + " ").width, y + 38, 15, "--soft", 400, each);
    let below = y + 62;
    if (f.interval) { write(f.interval, x, below, 15, "--soft", 400, each); below += 21; }
    for (const line of wrapped(at, f.note, each, f.interval ? 1 : 3)) { write(line, x, below, 15, "--soft", 400, each); below += 20; }
  });
  return canvas;
}
function cut(at, text, most) {
  if (at.measureText(text).width <= most) return text;
  let n = text.length;
  while (n > 1 && at.measureText(text.slice(0, n) + "…").width > most) n--;
  return text.slice(0, n) + "…";
}
function wrapped(at, text, most, lines) {
  at.font = "400 15px system-ui, sans-serif";
  const out = [""];
  for (const word of text.split(" ")) {
    const longer = out.at(-1) ? out.at(-1) + " " + word : word;
    if (at.measureText(longer).width <= most || !out.at(-1)) out[out.length - 1] = longer;
    else if (out.length < lines) out.push(word);
    else { out[out.length - 1] += "…"; break; }
  }
  return out;
}
function savePicture(arm, i) {
  drawPicture(arm, i).toBlob((blob) => {
    const place = URL.createObjectURL(blob), link = make("a", { href: place, download: arm.name.replace(/[^\w.-]+/g, "_") + ".png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(place), 10000);
    say("saved");
  });
}
