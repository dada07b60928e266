"""Prints the tables of lab.md and frontier.md, and one of paper.md, from docs/results/lab/*.json: python scripts/lab_tables.py"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from onpolicy.experiments.sweep.confirmation import Resamples
from onpolicy.utils.stats import QUANTILES, detectable_difference, two_way_t_ci

RESULTS = Path("docs/results/lab")
MAIN = ("unprotected", "protected", "reversal_markers", "floor_100_mixed_1e-4", "protected_end_mixed_1e-4", "grpo_1e-4")
"""Arms of the frontier with most seeds."""
HEADLINE = {
    "unprotected": "self-distillation: the teacher sees the solution",
    "floor_100_mixed_1e-4": "the target's hedging held at the model's own, and rewards; a third of the rate",
    "protected_end_mixed_1e-4": "no loss where hedging or an end was likely, and rewards; a third of the rate",
    "protected_end_mixed_1e-4_like_entropy": "control: no loss at tokens of similar entropy, and rewards; the same rate",
    "grpo_1e-4": "rewards alone (GRPO), a third of the rate",
}
"""Arms of the confirmation that README names."""
SETS = ("unseen", "other_map", "longer", "sums")
KINDS = {"unseen": "new problems", "map_a": "one map", "map_b": "the other", "longer": "three hops", "sums": "sums"}
"""Sets of the frontier."""
REWARDS = "`grpo_1e-4`"
"""With which each arm's pass@16 is compared."""
PARTS = (
    ("rewards", "floor_100_mixed_1e-4", "floor_100_1e-4"),
    ("rewards", "protected_end_mixed_1e-4", "protected_end_1e-4"),
    ("rewards and a third of the rate", "mixed_1e-4", "unprotected"),
    ("the target", "floor_100_mixed_1e-4", "mixed_1e-4"),
    ("the weights", "protected_end_mixed_1e-4", "mixed_1e-4"),
    ("distillation", "floor_100_mixed_1e-4", "grpo_1e-4"),
    ("distillation", "protected_end_mixed_1e-4", "grpo_1e-4"),
)
"""Part, an arm with it, the same arm without it."""
OUTSIDE = ("map_a", "map_b", "longer", "sums")
"""Sets of the frontier that count as one, each problem alike."""
ELSEWHERE: dict[str, tuple[str, dict[str, str]]] = {
    "on programs": ("frontier_programs", {"grpo_1e-4": "grpo_3e-5"}),
    "with a larger reasoner": ("frontier_large", {}),
}
"""Where the frontier's arms were run again: the file, and the arms that have another name there: a third of the loss's rate."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for row in rows:
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    print()


def crossed(corner: str, columns: Mapping[str, str], found: Mapping[tuple[str, str], str]) -> None:
    """A table with a row for each arm.

    Args:
        corner: over the arms
        columns: factor -> head of its column
        found: (arm, factor) -> cell; a pair that is missing has an empty one
    """
    table(
        (corner, *columns.values()),
        (
            (f"`{arm}`", *(found.get((arm, factor), "") for factor in columns))
            for arm in dict.fromkeys(arm for arm, _ in found)
        ),
    )


def difference_ci(d: dict[str, Any]) -> str:
    """A difference with its 95 % t interval over seeds and problems."""
    return f"{d['difference']:+.2f} ({d['low']:+.2f} to {d['high']:+.2f})"


def contexts(report: dict[str, Any]) -> None:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for rows in report["contexts"]:
        for row in rows:
            by_name.setdefault(row["context"], []).append(row)
    mean = lambda rows, measure: fmean(row["mean"][measure]["mean"] for row in rows)  # noqa: E731
    tells = lambda rows: f"{fmean(row['gain']['with_context']['mean'] for row in rows):.1f}" if rows[0]["gain"] else "0"  # noqa: E731
    table(
        ("context", "accuracy", "tokens", "markers per 1k", "markers per response (paper's count)", "tells, nats"),
        (
            (name, f"{mean(r, 'score'):.3f}", f"{mean(r, 'tokens'):.1f}", f"{mean(r, 'rate/paper10'):.0f}",
             f"{mean(r, 'paper_count'):.2f}", tells(r))
            for name, r in by_name.items()
        ),
    )  # fmt: skip


def claims(report: dict[str, Any]) -> None:
    table(
        ("", "claim", "measured", "95 %", "the paper", "here"),
        (
            (c["letter"], c["text"], f"{c['value']:+.3g}", f"{c['low']:+.2g} to {c['high']:+.2g}",
             "> 0" if c["positive"] else "< 0", c["verdict"])
            for c in report["claims"]
        ),
    )  # fmt: skip


def off_policy(report: dict[str, Any]) -> None:
    found = {(d["arm"], d["set"]): d for d in report["off_policy"]}
    table(
        ("fine-tuned on", *SETS),
        ((arm, *(f"{found[arm, s]['mean']:.2f}" for s in SETS)) for arm in dict.fromkeys(arm for arm, _ in found)),
    )


def arms(report: dict[str, Any], factor: str) -> None:
    start = {(d["arm"], d["set"]): d for d in report["from_start"] if d["factor"] == factor}
    number = lambda found, what, digits=2: f"{found[what]:.{digits}f}" if what in found else "–"  # noqa: E731
    rows = []
    for a in (a for a in report["arms"] if a["factor"] == factor):
        out = a["sets"]["out_of_domain"]
        rows.append(
            (
                a["arm"].replace("_", " "),
                f"{a['pressure']['paper10'] * 1e9:+.1f}" if a["pressure"] else "–",
                f"{a['accuracy_on_trained']:.2f}",
                number(a["sets"]["unseen"], "accuracy"),
                number(out, "accuracy"),
                difference_ci(start[a["arm"], "out_of_domain"]),
                number(out, "pass@4"),
                number(out, "tokens", 0),
                number(out, "rewarded_per_1k", 0),
                number(out, "held_out_per_1k", 0),
                number(out, "corrected"),
                number(out, "harmed"),
                f"{number(out, 'self_doubt_precision')} / {number(out, 'self_doubt_recall')}",
                f"{a['sampled_tokens'] / 1000:.0f}k",
            )
        )
    table(
        ("arm", "pressure × 10⁹", "accuracy: trained on", "same family", "out of domain", "minus reference model", "pass@4", "tokens",
         "protected words per 1k",
         "held-out words per 1k", "corrected", "harmed", "doubt: precision / recall", "sampled"),
        rows,
    )  # fmt: skip


def controls(report: dict[str, Any]) -> None:
    found = [d for d in report["against_controls"] if d["set"] in ("unseen", "out_of_domain")]
    keys = list(dict.fromkeys((d["arm"], d["control"]) for d in found))
    cells = {(d["arm"], d["control"], d["factor"], d["set"]): difference_ci(d) for d in found}
    table(
        ("arm", "minus its control", "new, eight", "out of domain, eight", "new, all", "out of domain, all"),
        (
            (arm.replace("_", " "), control.replace("_", " "),
             *(cells[arm, control, factor, name] for factor in ("8", "all") for name in ("unseen", "out_of_domain")))
            for arm, control in keys
        ),
    )  # fmt: skip


def equal_tokens(report: dict[str, Any]) -> None:
    differences = report["against_unprotected_at_equal_tokens"]
    found = {(d["arm"], d["factor"]): d for d in differences if d["set"] == "out_of_domain"}
    budgets = {factor: f"{tokens / 1000:.0f}k tokens" for factor, tokens in report["equal_tokens"].items()}
    table(
        ("arm", f"out of domain minus unprotected, eight problems, {budgets['8']}", f"all problems, {budgets['all']}"),
        (
            (arm.replace("_", " "), difference_ci(found[arm, "8"]), difference_ci(found[arm, "all"]))
            for arm in dict.fromkeys(a for a, _ in found)
        ),
    )


PROGRAM_SETS = {"unseen": "new programs", "longer": "longer programs", "search": "searches"}


def sound(report: dict[str, Any]) -> None:
    """What the reasoner of the interpreter's task does before anything trains it."""
    tried = report["retries"]
    table(
        ("measured", "the reasoner", "the shipped one"),
        [
            *(
                (f"accuracy on `{family}`", f"{found:.3f}", f"{report['shipped'][family]:.3f}" if family in report["shipped"] else "–")
                for family, found in report["alone"].items()
            ),
            ("the answer is shown: given at once", f"{report['answer_given']:.3f}", "–"),
            (f"an error is shown: right up to the step that it names ({tried['failed']} retries)", f"{tried['followed']:.3f}", "–"),
            (
                f"the same, right to the end ({tried['one_wrong']} retries, of attempts with one wrong step)",
                f"{tried['all_right']:.3f}",
                "–",
            ),
        ],
    )  # fmt: skip


def start(report: dict[str, Any]) -> None:
    """What the reasoner that knows part of two tasks does before anything trains it."""

    def by(measured: dict[str, Any], what: str) -> str:
        found = measured.get("by_knowledge", {}).get(what)
        return f"{found['accuracy']:.2f} / {found['pass@16']:.2f}" if found else ""

    def said(measured: dict[str, Any], what: str) -> str:
        found = [measured[how][what] for how in ("stated", "stated_with_solution") if how in measured]
        return " / ".join(f"{p:.2f}" for p in found)

    kinds = ("known", "faint", "unknown")
    table(
        ("task", "accuracy", "verdicts", "tokens", "with the solution", *kinds, *(f"{kind}: stated" for kind in kinds)),
        (
            (
                f"`{family}`", f"{m['accuracy']:.3f}", f"{m['verdicts']:.3f}", f"{m['tokens']:.1f}",
                f"{m['with_solution']['accuracy']:.3f}" if "with_solution" in m else "",
                *(by(m, what) for what in kinds), *(said(m, what) for what in kinds),
            )
            for family, m in report.items()
        ),
    )  # fmt: skip


def helps_or_harms(report: dict[str, Any]) -> None:
    """The table of docs/paper.md: accuracy minus the reference model's."""
    found = {(d["arm"], d["factor"], d["set"]): d for d in report["from_start"]}
    table(
        ("the teacher sees", "programs trained on", *PROGRAM_SETS.values()),
        (
            (arm, factor, *(difference_ci(found[arm, factor, name]) for name in PROGRAM_SETS))
            for arm, factor in dict.fromkeys((arm, factor) for arm, factor, _ in found)
        ),
    )


def program_arms(report: dict[str, Any]) -> None:
    """The table of docs/lab.md: where each arm ends, and its difference from the arm that sees the answer."""
    against = {(d["arm"], d["factor"], d["set"]): d for d in report["against_answer"] if d["arm"] != "answer"}
    rows = []
    for a in report["arms"]:
        for name, said in PROGRAM_SETS.items():
            start, end = a["start"][name], a["end"][name]
            key = a["arm"], a["factor"], name
            rows.append(
                (
                    a["arm"], a["factor"], said, f"{start['accuracy']:.3f}", f"{end['accuracy']:.3f}",
                    difference_ci(against[key]) if key in against else "–",
                    f"{start['tokens']:.1f}", f"{end['tokens']:.1f}",
                )
            )  # fmt: skip
    table(
        ("the teacher sees", "programs trained on", "set", "accuracy, reference model", "accuracy", "minus `answer`",
         "tokens, reference model", "tokens"),
        rows,
    )  # fmt: skip


def coverage(report: dict[str, Any]) -> None:
    """The tables of docs/frontier.md: what each arm learns and loses by the number of problems that it is trained on."""
    for name, said in (("unseen", "new problems"), ("out_of_domain", "out of domain")):
        found = {(d["arm"], d["factor"]): difference_ci(d) for d in report["from_start"] if d["set"] == name}
        crossed(f"{said}, by problems trained on", {factor: factor for _, factor in found}, found)


def trained_on(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: accuracy on the problems trained on at the first step, the first evaluation and the last step; tokens
    of the last."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in report["trained_on"]:
        found.setdefault((row["arm"], row["factor"]), []).append(row)
    told = {
        key: ", ".join(f"{rows[i]['accuracy']:.2f}" for i in (0, 1, -1)) + f"; {rows[-1]['tokens']:.0f}"
        for key, rows in found.items()
    }
    crossed("on the problems trained on", {factor: factor for _, factor in told}, told)


def by_step(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: new problems / out of domain at each evaluation, trained on all problems."""
    found = {
        (p["arm"], str(p["step"])): " / ".join(
            f"{p[axis]['difference']:+.2f}" for axis in ("in_domain", "out_of_domain")
        )
        for p in report["points"]
        if p["factor"] == "all"
    }
    crossed("trained on all problems", {step: f"step {step}" for _, step in found}, found)


def claims_again(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: claims that docs/lab.md measures where nothing is to be learned, measured again."""
    told = lambda c: f"{c['value']:+.3g} ({c['low']:+.2g} to {c['high']:+.2g})"  # noqa: E731
    before, again = _by_text(json.loads((RESULTS / "reproduce.json").read_text())), _by_text(report)
    table(
        ("", "claim", "the paper", "nothing to learn", "there", "something to learn", "here"),
        (
            (old["letter"], text, "> 0" if old["positive"] else "< 0", told(old), old["verdict"], told(again[text]), again[text]["verdict"])
            for text, old in before.items()
            if text in again
        ),
    )  # fmt: skip


def new_claims(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: the claims that are not in ``claims_again``."""
    before = _by_text(json.loads((RESULTS / "reproduce.json").read_text()))
    claims({"claims": [c for text, c in _by_text(report).items() if text not in before]})


def _by_text(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The claims by their text, without what was measured."""
    return {c["text"].split(" (worst at")[0]: c for c in report["claims"]}


def frontier(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: where each arm ended, with as many seeds as have finished."""
    arms = {point["arm"]: f"`{point['arm']}`" for point in report["points"]}
    ends(report, arms, ("arm", "seeds", "new problems", "out of domain", "sampled"))


def main_arms(report: dict[str, Any]) -> None:
    """The first table of docs/frontier.md: the main arms' ends, and what separates them from unprotected distillation."""
    against = {(d["arm"], d["set"]): difference_ci(d) for d in report["differences"]}
    ends(
        report,
        {arm: f"`{arm}`" for arm in MAIN},
        (
            "arm",
            "seeds",
            "new problems",
            "out of domain",
            "sampled",
            "new problems minus `unprotected`",
            "out of domain minus `unprotected`",
        ),
        lambda arm: [against[arm, "unseen"], against[arm, "out_of_domain"]],
    )


def confirmed(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: what ten other seeds say of the chosen arms."""

    def told(value: dict[str, float], form: str = "+.2f") -> str:
        return f"{value['value']:{form}} ({value['low']:{form}} to {value['high']:{form}})"

    table(
        ("arm", "seeds", "gain kept", "loss kept", "minus its control", "minus rewards alone", "pass@16", "p", "verdict"),
        (
            (
                f"`{c['arm']}`", str(c["seeds"]), told(c["gain_kept"], ".2f"), told(c["loss_kept"], ".2f"),
                *(told(own) for own in c["beats"].values()), told(c["pass_at_samples"]), f"{c['holm']:.2g}", c["verdict"],
            )
            for c in report["confirmed"]
        ),
    )  # fmt: skip


def by_kind(kept: Sequence[dict[str, Any]]) -> None:
    """The table of docs/frontier.md: accuracy / pass@16 on each set at the first and the last step, mean over seeds; and pass@16 on new
    problems minus that of rewards alone, with its 95 % t interval over seeds and problems."""
    shared, *runs = kept
    found: dict[str, list[dict[str, float]]] = {}
    solved: dict[str, list[list[bool]]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):  # paired
        arm = f"`{run['arm']}`"
        for name, row in (("before training", run["rows"][0]), (arm, run["rows"][-1])):
            found.setdefault(name, []).append(dict(zip(shared["metrics"], row, strict=True)))
        right, _ = run["right"][max(run["right"], key=int)]["unseen"]
        solved.setdefault(arm, []).append([count > 0 for count in right])
    mean = lambda rows, name, what: fmean(row[f"eval/{name}/{what}"] for row in rows)  # noqa: E731

    def ahead(arm: str) -> str:
        if arm not in solved or arm == REWARDS:
            return ""
        difference = np.array(solved[arm], float) - np.array(solved[REWARDS], float)
        low, high = two_way_t_ci(difference)
        return difference_ci({"difference": difference.mean(), "low": low, "high": high})

    table(
        ("arm", *KINDS.values(), f"new problems: pass@16 minus {REWARDS}"),
        (
            (
                arm,
                *(f"{mean(rows, name, 'avg@16'):.2f} / {mean(rows, name, 'pass@16'):.2f}" for name in KINDS),
                ahead(arm),
            )
            for arm, rows in found.items()
        ),
    )


def solved(
    runs: Sequence[dict[str, Any]], arm: str, sets: Sequence[str], step: str, read: Callable[[int, int], float]
) -> np.ndarray:
    """[seeds, problems of the sets]: `read` of a problem's right answers and its answers, at that step of the arm's runs."""
    right = [run["right"][step] for run in sorted(runs, key=lambda run: run["seed"]) if run["arm"] == arm]  # paired
    return np.array([[read(count, own[name][1]) for name in sets for count in own[name][0]] for own in right])


def rate(count: int, samples: int) -> float:
    return count / samples


def any_right(count: int, samples: int) -> float:
    return float(count > 0)


READ: dict[str, tuple[tuple[str, ...], Callable[[int, int], float]]] = {
    "new problems": (("unseen",), rate),
    "new problems, pass@16": (("unseen",), any_right),
    "out of domain": (OUTSIDE, rate),
}
"""What the tables of parts and of power compare: sets, and what is read of each of their problems."""


def losses(kept: Sequence[dict[str, Any]]) -> None:
    """The table of docs/frontier.md: each arm's loss out of domain over that of the first arm, percentile bootstrap over seeds and
    problems."""
    _, *runs = kept
    arms, last = dict.fromkeys(run["arm"] for run in runs), max(runs[0]["right"], key=int)
    change = {arm: solved(runs, arm, OUTSIDE, last, rate) - solved(runs, arm, OUTSIDE, "0", rate) for arm in arms}
    first = next(iter(arms))
    resamples = Resamples(len(change[first]))
    shares = {arm: resamples.means(change[arm]) / resamples.means(change[first]) for arm in arms}
    table(
        ("arm", f"loss out of domain, over that of `{first}`"),
        (
            (f"`{arm}`", f"{share[0]:.2f} ({low:.2f} to {high:.2f})")
            for arm, share in shares.items()
            for low, high in [np.quantile(share[1:], QUANTILES)]
        ),
    )


def parts(kept: Sequence[dict[str, Any]]) -> None:
    """The table of docs/frontier.md: what each part adds, paired by seed and problem, with 95 % t intervals over both."""
    _, *runs = kept
    last = max(runs[0]["right"], key=int)

    def told(having: str, without: str, sets: Sequence[str], read: Callable[[int, int], float]) -> str:
        difference = solved(runs, having, sets, last, read) - solved(runs, without, sets, last, read)
        low, high = two_way_t_ci(difference)
        return difference_ci({"difference": difference.mean(), "low": low, "high": high})

    table(
        ("part", "with it", "without it", *READ),
        (
            (part, f"`{having}`", f"`{without}`", *(told(having, without, *what) for what in READ.values()))
            for part, having, without in PARTS
        ),
    )


def power(kept: Sequence[dict[str, Any]]) -> None:
    """The table of docs/frontier.md: the difference between main arms that five and ten seeds of the confirmation would find in 80 % of
    repetitions, smallest and largest over the arms that each is compared with."""
    _, *runs = kept
    last, arms = max(runs[0]["right"], key=int), {run["arm"] for run in runs}.intersection(MAIN)

    def found(base: str, seeds: int, sets: Sequence[str], read: Callable[[int, int], float]) -> str:
        of = {arm: solved(runs, arm, sets, last, read)[:seeds] for arm in arms}
        sizes = [detectable_difference(of[arm] - of[base]) for arm in arms - {base}]
        return f"{min(sizes):.2f} to {max(sizes):.2f}"

    bases = (MAIN[0], REWARDS.strip("`"))
    table(
        ("minus", "seeds", *READ),
        (
            (f"`{base}`", str(seeds), *(found(base, seeds, *what) for what in READ.values()))
            for base in bases
            for seeds in (5, 10)
        ),
    )


def orders(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: whether the arms that both have stand in the same order elsewhere, by where each ended."""
    ended = lambda found: {p["arm"]: p for p in found["points"]}  # noqa: E731
    here, rows = ended(report), []
    for where, (file, renamed) in ELSEWHERE.items():
        there = ended(json.loads((RESULTS / f"{file}.json").read_text()))
        pairs = [(here[arm], there[renamed.get(arm, arm)]) for arm in here if renamed.get(arm, arm) in there]
        for axis, said in (("in_domain", "new problems"), ("out_of_domain", "out of domain")):
            found = kendalltau(*([own[axis]["difference"] for own in side] for side in zip(*pairs, strict=True)))
            rows.append((f"{where}, {said}", str(len(pairs)), f"{found.statistic:+.2f}", f"{found.pvalue:.2g}"))
    table(("the order of arms", "arms", "Kendall's tau", "p"), rows)


def headline(report: dict[str, Any]) -> None:
    """The table of README: what the confirmed arms and their controls learn and lose."""
    ends(
        report,
        HEADLINE,
        ("trained for 300 steps", "seeds", "new problems", "other kinds of problems", "sampled tokens"),
    )


def ends(
    report: dict[str, Any],
    arms: Mapping[str, str],
    head: Sequence[str],
    more: Callable[[str], Sequence[str]] = lambda arm: (),
) -> None:
    """A row for each of the arms, called as given: its last point, and more cells about it."""
    last = {point["arm"]: point for point in report["points"]}
    table(
        head,
        (
            (
                words, str(last[arm]["seeds"]), difference_ci(last[arm]["in_domain"]), difference_ci(last[arm]["out_of_domain"]),
                f"{last[arm]['tokens'] / 1000:.0f}k", *more(arm),
            )
            for arm, words in arms.items()
        ),
    )  # fmt: skip


def guesses(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: how likely an answer, or an end without one, is after failed attempts."""
    table(
        ("", "ends, nothing left to try", "answers there", "goes on there", "answers after one failure, another map",
         "after three", "after three, sums"),
        (
            (
                f"`{model}`", f"{own['route-c-2']['3']['ends']:.2f}", f"{own['route-c-2']['3']['answers']:.2f}",
                f"{own['route-c-2']['3']['goes_on']:.2f}", f"{own['route-b-2']['1']['answers']:.2f}",
                f"{own['route-b-2']['3']['answers']:.2f}",
                f"{own['sums-4']['3']['answers']:.2f}",
            )
            for model, own in report["after_failures"].items()
        ),
    )  # fmt: skip


def bonuses(report: dict[str, Any]) -> None:
    """The table of docs/frontier.md: each bonus at each weight. Rewarded words and attempts are those of answers out of domain."""
    read = ("unseen", "out_of_domain", "eval/out_of_domain/epistemic/rewarded/rate_per_1k", "attempts")

    def told(point: dict[str, Any]) -> str:
        new, out, rate, attempts = (point["read"][name][0] for name in read)
        return f"{point['dose']:+.2f}: {new:.2f}, {out:.2f}, {rate:.0f}, {attempts:.1f}"

    found = {(p["arm"], p["factor"]): told(p) for p in report["points"]}
    factors = sorted({factor for _, factor in found}, key=float)
    crossed("arm", {factor: f"weight {factor}" for factor in factors}, found)


if __name__ == "__main__":
    reproduced = json.loads((RESULTS / "reproduce.json").read_text())
    contexts(reproduced)
    claims(reproduced)
    off_policy(reproduced)
    decisive = json.loads((RESULTS / "decisive.json").read_text())
    for problems in ("8", "all"):
        print(f"trained on {problems} problems\n")
        arms(decisive, problems)
    controls(decisive)
    equal_tokens(decisive)
    sound(json.loads((RESULTS / "soundness.json").read_text()))
    for name in ("start", "start_large"):
        start(json.loads((RESULTS / f"{name}.json").read_text()))
    headroom = json.loads((RESULTS / "headroom.json").read_text())
    for told_of in (coverage, trained_on, by_step, claims_again, new_claims):
        told_of(headroom)
    for name in ("frontier", "frontier_added", "frontier_recipe_5", "frontier_programs", "frontier_large"):
        frontier(json.loads((RESULTS / f"{name}.json").read_text()))
    confirmation = json.loads((RESULTS / "confirmation.json").read_text())
    frontier(confirmation)
    confirmed(confirmation)
    confirmation_runs = [json.loads(line) for line in (RESULTS / "confirmation_runs.jsonl").read_text().splitlines()]
    by_kind(confirmation_runs)
    power(confirmation_runs)
    frontier(json.loads((RESULTS / "frontier_parts.json").read_text()))
    parts_runs = [json.loads(line) for line in (RESULTS / "frontier_parts_runs.jsonl").read_text().splitlines()]
    parts(parts_runs)
    losses(parts_runs)
    known = json.loads((RESULTS / "frontier.json").read_text())
    main_arms(known)
    orders(known)
    guesses(json.loads((RESULTS / "guesses.json").read_text()))
    for name in ("bonus_screen", "bonus"):
        bonuses(json.loads((RESULTS / f"{name}.json").read_text()))
    headline(confirmation)
    told = json.loads((RESULTS / "feedback.json").read_text())
    helps_or_harms(told)
    program_arms(told)
