// ---- the data of a report: all in the page
const PER_PAGE = 20;
const clock = () => Date.now() / 1000;
const between = (v, low, high) => v == null ? low === undefined && high === undefined : (low === undefined || v >= +low) && (high === undefined || v <= +high);
const inOrder = {
  "newest": (a, b) => b.step - a.step, "oldest": (a, b) => a.step - b.step, "longest": (a, b) => b.tokens - a.tokens, "shortest": (a, b) => a.tokens - b.tokens,
  "highest reward": (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity), "lowest reward": (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity),
};
const kept = () => runs.flatMap((run, i) => run.samples.map((s) => ({ set: "training", problem: "", place: 0, ...s, run: i })));
const source = {
  async load() { ({ runs, arms } = data); return true; },
  async samples(q) {
    const all = kept(), holds = (s) => !q.text || [s.problem, s.student_prompt, s.answer, s.completion].some((v) => v != null && String(v).toLowerCase().includes(q.text.toLowerCase()));
    const chosen = all.filter((s) => (q.run === undefined || s.run === +q.run) && (!q.set || s.set === q.set) && (!q.finish || s.finish_reason === q.finish) && between(s.reward, q.reward_from, q.reward_to)
      && between(s.tokens, q.tokens_from, q.tokens_to) && between(s.step, q.step_from, q.step_to) && holds(s)).sort(inOrder[q.order] ?? inOrder.newest);
    const start = q.page * PER_PAGE, whole = runs.reduce((sum, r) => sum + (r.kept ?? 0), 0), distinct = (of) => [...new Set(all.map(of))].sort();
    return { kept: all.length, whole: whole > all.length ? whole : 0, matched: chosen.length, start, per_page: PER_PAGE, sets: distinct((s) => s.set), finishes: distinct((s) => s.finish_reason), rows: chosen.slice(start, start + PER_PAGE) };
  },
  async problem(set, name) { const rows = kept().filter((s) => s.set === set && s.problem === name).sort(inOrder.oldest); return { matched: rows.length, rows }; },
  async rollouts() { return runs.flatMap((run, i) => run.rollouts.map((r, place) => ({ run: i, place, step: r.step, prompt_id: r.prompt_id, reward: r.reward, length: r.tokens.length }))); },
  async rollout(run, place) { return runs[run].rollouts[place]; },
};
