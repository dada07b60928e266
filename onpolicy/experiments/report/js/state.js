// ---- what is looked at stands in the address, so that a link leads to it again
let state = new URLSearchParams(location.hash.slice(1));
const recall = (key, otherwise = "") => state.get(key) ?? otherwise;
function remember(key, value) {
  if (value === "" || value === null || value === undefined) state.delete(key); else state.set(key, value);
  history.replaceState(null, "", "#" + state);
}
function goTo(id) {
  const section = $(id);
  if (!section || section.hidden) return;
  section.scrollIntoView({ block: "start" });
  const head = section.querySelector("h2");
  if (head) { head.tabIndex = -1; head.focus({ preventScroll: true }); }
}
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", (event) => {
  event.preventDefault();
  remember("at", link.dataset.to);
  goTo(link.dataset.to);
});
document.querySelector(".skip").addEventListener("click", (event) => { event.preventDefault(); $("main").focus(); });
