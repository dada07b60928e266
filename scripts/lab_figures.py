"""Draws docs/images/lab_*.svg from docs/results/lab/*.json: python scripts/lab_figures.py"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from onpolicy.experiments.analysis.plot import drawing_library, save_drawing
from onpolicy.experiments.lab.frontier import GRID
from onpolicy.experiments.lab.headroom import GRID as COVERAGE_GRID
from onpolicy.experiments.sweep.compare import Difference
from onpolicy.experiments.sweep.dose_response import Response, draw_dose_axis, draw_responses
from onpolicy.experiments.sweep.frontier import FrontierPoint, draw_frontier
from onpolicy.experiments.sweep.grid import read_grid

RESULTS, IMAGES = Path("docs/results/lab"), Path("docs/images")
COLOURS = {
    "distilled": "#0b5fff",
    "moving_teacher": "#862e9c",
    "grpo": "#d9480f",
    "opportunity": "#2b8a3e",
    "sdpo": "#0c8599",
    "sdpo_without_think": "#e8a200",
    "opsd": "#1b1f24",
    "searched": "#2b8a3e",
    "answers": "#868e96",
    "8": "#0b5fff",
    "all": "#d9480f",
}
NAMES = {
    "distilled": "self-distillation, frozen teacher",
    "moving_teacher": "self-distillation, EMA teacher",
    "grpo": "GRPO",
    "opportunity": "self-distillation, protected",
    "sdpo": "SDPO",
    "sdpo_without_think": "SDPO without think",
    "opsd": "OPSD's loss",
    "searched": "fine-tuned on searches",
    "answers": "fine-tuned on answers",
}
RATE = "epistemic/paper10/rate_per_1k"
PROBLEMS = {"all": "all 540"}
"""The problems that a run draws from; its 40 steps of eight visit 320 at most."""
OUT_OF_DOMAIN = {"other_map": 40, "longer": 20, "sums": 40}
"""The problems of each set that lies out of domain (configs/lab/self_distillation.yaml)."""
AXES = {
    "in_domain": ("accuracy, new problems that rest", "on facts which training taught"),
    "out_of_domain": ("accuracy out of domain:", "two maps, longer, sums"),
}
SHOWN = {
    "unprotected": ("self-distillation", "#0b5fff"),
    "protected": ("no loss where hedging was likely", "#2b8a3e"),
    "protected_shuffled": ("no loss at random tokens", "#868e96"),
    "floor_100_mixed_1e-4": ("hedging held, rewards, slower", "#862e9c"),
    "protected_end_mixed_1e-4": ("no loss at hedging, end; rewards", "#0c8599"),
    "grpo_1e-4": ("rewards alone (GRPO), slower", "#d9480f"),
}
"""Arms of the frontier in README's picture."""
BONUSES = {
    "density": ("every word pays", "#d9480f"),
    "floor": ("saturating floor", "#0b5fff"),
    "target": ("target rate", "#862e9c"),
    "recovery": ("self-correction", "#2b8a3e"),
    "calibration": ("true verdicts", "#0c8599"),
    "surprise": ("words the teacher would not say", "#e8a200"),
    "elsewhere": ("its null: other tokens", "#868e96"),
}
"""What pays, by the first word of an arm of bonus.yaml or surprise.yaml."""
BESIDE = {
    "mixed": "beside distillation and rewards",
    "teacher": "inside the teacher's advantage",
    "grpo": "beside rewards alone",
}
DOSE_READ = {
    "out_of_domain": "accuracy out of domain",
    "attempts": "attempts per answer there",
    "eval/out_of_domain/epistemic/rewarded/rate_per_1k": "rewarded words per 1,000 tokens there",
    "unseen": "accuracy, new problems",
}
Curve = list[tuple[int, float, float, float]]
"""Step, mean, lowest and highest over the seeds."""


class Picture:
    """Lines, dots and words."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.parts = width, height, [f'<rect width="{width}" height="{height}" fill="#fff"/>']

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.5, dash: str = "") -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dash}"/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], colour: str) -> None:
        """Between the second and the third of each (x, low, high)."""
        there = [f"{x:.1f},{low:.1f}" for x, low, _ in points]
        back = [f"{x:.1f},{high:.1f}" for x, _, high in reversed(points)]
        self.parts.append(f'<polygon points="{" ".join(there + back)}" fill="{colour}" opacity=".15"/>')

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", colour: str = "#1b1f24", size: int = 12
    ) -> None:
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{html.escape(words)}</text>'
        )

    def save(self, path: Path) -> None:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" font-family="system-ui, sans-serif">'
        path.write_text(head + "\n" + "\n".join(self.parts) + "\n</svg>\n")


class Panel:
    """Axes inside a picture."""

    def __init__(
        self, on: Picture, box: tuple[float, float, float, float], x: tuple[float, float], y: tuple[float, float]
    ) -> None:
        self.on, (self.left, self.top, self.right, self.bottom), self.xs, self.ys = on, box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        up = (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def axes(self, title: str, x_ticks: dict[float, str], y_ticks: Sequence[float], x_title: str) -> None:
        for value in y_ticks:
            x, y = self.at(self.xs[0], value)
            self.on.line([(x, y), (self.right, y)], "#d9dee5", 1)
            self.on.text(x - 6, y + 4, f"{value:g}", "end", "#5b6470", 11)
        for value, word in x_ticks.items():
            x, y = self.at(value, self.ys[0])
            self.on.text(x, y + 16, word, "middle", "#5b6470", 11)
        self.on.text((self.left + self.right) / 2, self.bottom + 34, x_title, "middle", "#5b6470", 11)
        self.on.text(self.left, self.top - 10, title, size=13)


def over_seeds(runs: Sequence[dict[int, float]]) -> Curve:
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    return [(s, fmean(r[s] for r in runs), min(r[s] for r in runs), max(r[s] for r in runs)) for s in steps]


def out_of_domain(run: dict[str, Any]) -> dict[int, float]:
    """Accuracy by step on the sets out of domain together, each problem alike."""
    sets = {name: {int(s): v for s, v in run[f"eval/{name}/avg@4"]} for name in OUT_OF_DOMAIN}
    total = sum(OUT_OF_DOMAIN.values())
    return {s: sum(sets[n][s] * size for n, size in OUT_OF_DOMAIN.items()) / total for s in sets["longer"]}


def protected(curves: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The protected runs, with their accuracy before (the same model as the others') and after training, from decisive.json."""
    before = {c["seed"]: c for c in curves if (c["arm"], c["factor"]) == ("distilled", "8")}
    after = {r["seed"]: r["accuracy"] for r in runs if (r["arm"], r["factor"]) == ("opportunity", "8")}
    return [
        run | {f"eval/{n}/avg@4": [before[s][f"eval/{n}/avg@4"][0], [40, after[s][n]]] for n in OUT_OF_DOMAIN}
        for run in json.loads((RESULTS / "protected.json").read_text())["curves"]
        for s in (run["seed"],)
    ]


def the_effect(runs: Sequence[dict[str, Any]]) -> None:
    """What README shows first: accuracy in and out of domain, length and markers, for three ways of training on eight problems."""
    picture = Picture(960, 318)
    picture.parts = ['<rect width="960" height="318" rx="10" fill="#fff" stroke="#d9dee5"/>']
    whole = lambda name: lambda run: {int(s): v for s, v in run[name]}  # noqa: E731
    shown = (
        ("accuracy on the problems", "it is trained on", whole("group/pass_rate"), (0.4, 1.0), (0.4, 0.6, 0.8, 1)),
        ("accuracy out of domain:", "other map, longer, sums", out_of_domain, (0.2, 1.0), (0.2, 0.4, 0.6, 0.8, 1)),
        ("tokens per answer", "", whole("rollout/completion_length/mean"), (0, 50), (0, 10, 20, 30, 40, 50)),
        ("hedging words", "per 1,000 tokens", whole(RATE), (0, 150), (0, 50, 100, 150)),
    )
    for i, (title, more, read, bounds, ticks) in enumerate(shown):
        left = 48 + i * 236
        panel = Panel(picture, (left, 62, left + 186, 230), (0, 40), bounds)
        panel.axes("", {0: "0", 20: "20", 40: "40"}, ticks, "step")
        picture.text(left - 26, 26, title, size=14)
        picture.text(left - 26, 44, more, size=14)
        for arm in ("grpo", "opportunity", "distilled"):
            curve = over_seeds([read(r) for r in runs if (r["arm"], r["factor"]) == (arm, "8")])
            picture.band(
                [(panel.at(s, 0)[0], panel.at(s, a)[1], panel.at(s, b)[1]) for s, _, a, b in curve], COLOURS[arm]
            )
            picture.line([panel.at(s, mean) for s, mean, _, _ in curve], COLOURS[arm], 2.2)
            for s, mean, _, _ in curve if len(curve) < 10 else ():
                picture.dot(*panel.at(s, mean), COLOURS[arm])
    for x, arm, words in (
        (22, "distilled", "self-distillation, teacher sees the solution"),
        (344, "opportunity", "the same without loss where hedging was likely"),
        (712, "grpo", "GRPO"),
    ):
        picture.line([(x, 290), (x + 22, 290)], COLOURS[arm], 3)
        picture.text(x + 28, 294, words, size=13)
    picture.text(798, 294, "mean and range of 3 seeds", colour="#5b6470", size=11)
    picture.save(IMAGES / "effect.svg")


def curves_over_steps(report: dict[str, Any]) -> None:
    """Length, markers and accuracy at |D| = 8."""
    picture = Picture(960, 300)
    shown = (
        ("tokens per rollout", "rollout/completion_length/mean", (0, 45), (0, 15, 30, 45)),
        ("epistemic markers per 1,000 tokens", RATE, (0, 120), (0, 40, 80, 120)),
        ("accuracy on the problems trained on", "group/pass_rate", (0.5, 1), (0.5, 0.75, 1)),
    )
    for i, (title, metric, bounds, ticks) in enumerate(shown):
        panel = Panel(picture, (50 + i * 310, 40, 310 + i * 310, 230), (0, 40), bounds)
        panel.axes(title, {0: "0", 20: "20", 40: "40"}, ticks, "step")
        for arm in ("distilled", "grpo"):
            curve = over_seeds([dict(c[metric]) for c in report["curves"] if (c["arm"], c["factor"]) == (arm, "8")])
            clip = lambda v: min(max(v, bounds[0]), bounds[1])  # noqa: E731, B023
            picture.band(
                [(panel.at(s, 0)[0], panel.at(s, clip(a))[1], panel.at(s, clip(b))[1]) for s, _, a, b in curve],
                COLOURS[arm],
            )
            picture.line([panel.at(s, clip(mean)) for s, mean, _, _ in curve], COLOURS[arm], 2)
    for i, arm in enumerate(("distilled", "grpo")):
        picture.text(50 + i * 260, 290, f"— {NAMES[arm]}", colour=COLOURS[arm])
    picture.text(620, 290, "mean and range of three seeds, eight problems", colour="#5b6470", size=11)
    picture.save(IMAGES / "lab_steps.svg")


def coverage_curve(
    report: dict[str, Any], arms: Sequence[str], sizes: Mapping[str, str], note: str, path: Path
) -> None:
    """Accuracy after training against the number of problems trained on.

    Args:
        report: with ``from_start``
        arms: that are shown
        sizes: name of a factor -> its number of problems, where the name does not say it
        note: below the axis
        path: where to write
    """
    legend = [*((f"— {NAMES[arm]}", COLOURS[arm]) for arm in arms), ("dashed: reference model", "#5b6470")]
    last_row = (len(legend) - 1) // 4
    picture = Picture(960, 320 + 20 * last_row)
    factors = list(dict.fromkeys(d["factor"] for d in report["from_start"]))
    for i, (name, title) in enumerate((("unseen", "new problems of the family"), ("out_of_domain", "out of domain"))):
        panel = Panel(picture, (60 + i * 460, 40, 470 + i * 460, 240), (-0.3, len(factors) - 0.7), (0, 1))
        ticks: dict[float, str] = dict(enumerate(sizes.get(factor, factor) for factor in factors))
        panel.axes(f"accuracy, {title}", ticks, (0, 0.25, 0.5, 0.75, 1), note)
        rows = [d for d in report["from_start"] if d["set"] == name]
        start = fmean(d["mean"] - d["difference"] for d in rows)
        picture.line([panel.at(-0.3, start), panel.at(len(factors) - 0.7, start)], "#5b6470", 1, "4 4")
        for k, arm in enumerate(arms):
            points = {}
            for d in (d for d in rows if d["arm"] == arm):
                at = factors.index(d["factor"])
                x, before = at + 0.06 * (k - (len(arms) - 1) / 2), d["mean"] - d["difference"]
                picture.line(
                    [panel.at(x, max(before + d["low"], 0.0)), panel.at(x, min(before + d["high"], 1.0))],
                    COLOURS[arm],
                    1.2,
                )
                points[at] = panel.at(x, d["mean"])
            for at in points:
                picture.dot(*points[at], COLOURS[arm])
                if at + 1 in points:  # no line over a size without runs
                    picture.line([points[at], points[at + 1]], COLOURS[arm], 2)
    for i, (words, colour) in enumerate(legend):
        row, column = divmod(i, 4)
        picture.text(60 + column * 225, 305 + 20 * row, words, colour=colour)
    picture.save(path)


def decisive_dots(report: dict[str, Any]) -> None:
    """Every arm out of domain, with the interval of its difference from the reference model."""
    rows = [d for d in report["from_start"] if d["set"] == "out_of_domain"]
    arms = list(dict.fromkeys(d["arm"] for d in rows))
    picture = Picture(960, 90 + 22 * len(arms))
    panel = Panel(picture, (220, 40, 930, 40 + 22 * len(arms)), (0, 1), (0, len(arms)))
    panel.axes("accuracy out of domain after training", {v: f"{v:g}" for v in (0, 0.25, 0.5, 0.75, 1)}, (), "")
    start = fmean(d["mean"] - d["difference"] for d in rows)
    picture.line([panel.at(start, 0), panel.at(start, len(arms))], "#5b6470", 1, "4 4")
    for i, arm in enumerate(arms):
        _, y = panel.at(0, len(arms) - i - 0.5)
        picture.line([(220, y + 11), (930, y + 11)], "#eef1f4", 1)
        picture.text(210, y + 4, arm.replace("_", " "), "end")
        for k, factor in enumerate(("8", "all")):
            for d in (d for d in rows if (d["arm"], d["factor"]) == (arm, factor)):
                before, place = d["mean"] - d["difference"], y - 3 + 6 * k
                picture.line(
                    [
                        (panel.at(max(before + d["low"], 0.0), 0)[0], place),
                        (panel.at(min(before + d["high"], 1.0), 0)[0], place),
                    ],
                    COLOURS[factor],
                    1.5,
                )
                picture.dot(panel.at(d["mean"], 0)[0], place, COLOURS[factor])
    for k, factor in enumerate(("8", "all")):
        picture.text(
            220 + 220 * k, 80 + 22 * len(arms), f"● trained on {_size(factor)} problems", colour=COLOURS[factor]
        )
    picture.text(700, 80 + 22 * len(arms), "dashed: reference model", colour="#5b6470")
    picture.save(IMAGES / "lab_decisive.svg")


def _size(factor: str) -> str:
    return str(PROBLEMS.get(factor, factor))


def frontier(report: dict[str, Any]) -> None:
    """What each arm learns against what it keeps, at every evaluation."""
    axes = read_grid(GRID).frontier
    points = [FrontierPoint(**p | {axis: Difference(**p[axis]) for axis in axes}) for p in report["points"]]
    draw_frontier(points, axes, IMAGES / "lab_frontier.svg", bar=True)


def learned_against_kept(report: dict[str, Any]) -> None:
    """What README shows first: new problems and others by step, and where each way of training ends, with 95 % t intervals."""
    picture = Picture(960, 330)
    picture.parts = ['<rect width="960" height="330" rx="10" fill="#fff" stroke="#d9dee5"/>']
    by_arm = {arm: [p for p in report["points"] if p["arm"] == arm] for arm in SHOWN}
    before = {axis: fmean(p[axis]["mean"] - p[axis]["difference"] for p in by_arm["unprotected"]) for axis in AXES}
    for i, (axis, (title, more)) in enumerate(AXES.items()):
        left = 48 + i * 250
        panel = Panel(picture, (left, 62, left + 200, 230), (0, 300), (0, 1))
        panel.axes("", {0: "0", 150: "150", 300: "300"}, (0, 0.25, 0.5, 0.75, 1), "step")
        picture.text(left - 26, 26, title, size=14)
        picture.text(left - 26, 44, more, size=14)
        for arm, points in by_arm.items():
            curve = [(0, before[axis]), *((p["step"], p[axis]["mean"]) for p in points)]
            picture.line([panel.at(*at) for at in curve], SHOWN[arm][1], 2.2)
    panel = Panel(picture, (590, 62, 930, 230), (-0.1, 0.3), (-0.8, 0.1))
    panel.axes(
        "",
        {-0.1: "-.1", 0: "0", 0.1: "+.1", 0.2: "+.2", 0.3: "+.3"},
        (-0.8, -0.6, -0.4, -0.2, 0),
        "change, new problems",
    )
    picture.text(564, 26, "learned against kept:", size=14)
    picture.text(564, 44, "change out of domain", size=14)
    for arm, points in by_arm.items():
        gain, loss = (points[-1][axis] for axis in AXES)
        x, y = gain["difference"], loss["difference"]
        left, right, low, high = (
            min(max(d[end], axis[0]), axis[1])
            for d, axis in ((gain, panel.xs), (loss, panel.ys))
            for end in ("low", "high")
        )
        picture.line([panel.at(left, y), panel.at(right, y)], SHOWN[arm][1], 1.2)
        picture.line([panel.at(x, low), panel.at(x, high)], SHOWN[arm][1], 1.2)
        picture.dot(*panel.at(x, y), SHOWN[arm][1])
    for i, (arm, (words, shade)) in enumerate(SHOWN.items()):
        x, y = 22 + 320 * (i % 3), 286 + 24 * (i // 3)
        picture.line([(x, y - 4), (x + 22, y - 4)], shade, 3)
        picture.text(x + 28, y, f"{words}, {by_arm[arm][-1]['seeds']} seeds", size=13)
    picture.save(IMAGES / "learned_against_kept.svg")


def doses(report: dict[str, Any]) -> None:
    """What each bonus does over its realised dose: a column for what it stands beside, a row for each reading."""
    path = IMAGES / "lab_doses.svg"
    figure = drawing_library(path)(figsize=(10.5, 2.3 * len(DOSE_READ) + 0.6), layout="constrained")
    grid: Any = figure.subplots(len(DOSE_READ), len(BESIDE), sharey="row", squeeze=False)
    for row, (name, words) in zip(grid, DOSE_READ.items(), strict=True):
        for panel, beside in zip(row, BESIDE, strict=True):
            draw_dose_axis(panel)
            panel.axhline(report["start"][name], color="#5b6470", lw=0.8, ls="--", zorder=0)
            for point in report["points"]:
                bonus, *_, place = point["arm"].split("_")
                if f"_{beside}" in point["arm"]:
                    colour = BONUSES[bonus][1]
                    value, low, high = point["read"][name]
                    if low is not None:
                        panel.plot([point["dose"]] * 2, [low, high], color=colour, lw=1)
                    panel.plot(
                        point["dose"], value, "o", color=colour, mfc="white" if place == "inside" else colour, ms=5
                    )
        row[0].set_ylabel(words, fontsize=8)
    for top, bottom, title in zip(grid[0], grid[-1], BESIDE.values(), strict=True):
        top.set_title(title, fontsize=10)
        bottom.set_xlabel("realised dose, below 0: a penalty", fontsize=8)
    handles = [grid[0][0].plot([], [], "o", color=colour, label=words)[0] for words, colour in BONUSES.values()]
    handles += [grid[0][0].plot([], [], "o", color="#1b1f24", mfc="white", label="inside the normalised reward")[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    save_drawing(figure, path)


def doses_over_seeds(report: dict[str, Any]) -> None:
    """The bonuses beside distillation, at every dose of three seeds; without one, all of them are the same runs."""
    points = [point for point in report["points"] if "_mixed_" in point["arm"]]
    arms = list(dict.fromkeys(point["arm"] for point in points))
    known = lambda values: tuple(math.nan if value is None else value for value in values)  # noqa: E731
    found = [
        Response(
            arm, p["factor"], p["seeds"], p["dose"], {said: known(p["read"][name]) for name, said in DOSE_READ.items()}
        )
        for p in points
        for arm in (arms if p["factor"] == "0" else [p["arm"]])
    ]
    draw_responses(found, list(DOSE_READ.values()), IMAGES / "lab_doses_seeds.svg")


def main() -> None:
    reproduced = json.loads((RESULTS / "reproduce.json").read_text())
    curves_over_steps(reproduced)
    visited = "problems to train on (40 steps visit 320 at most)"
    coverage_curve(reproduced, ("distilled", "moving_teacher", "grpo"), PROBLEMS, visited, IMAGES / "lab_coverage.svg")
    headroom = json.loads((RESULTS / "headroom.json").read_text())
    coverage_curve(
        headroom,
        list(read_grid(COVERAGE_GRID).arms),
        {"all": "all 587"},
        "problems to train on",
        IMAGES / "lab_headroom.svg",
    )
    decisive = json.loads((RESULTS / "decisive.json").read_text())
    decisive_dots(decisive)
    ways = json.loads((RESULTS / "frontier.json").read_text())
    frontier(ways)
    learned_against_kept(ways)
    doses(json.loads((RESULTS / "bonus_screen.json").read_text()))
    doses_over_seeds(json.loads((RESULTS / "bonus.json").read_text()))
    the_effect(reproduced["curves"] + protected(reproduced["curves"], decisive["runs"]))


if __name__ == "__main__":
    main()
