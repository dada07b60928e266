"""Draws docs/images/lab_*.svg from docs/results/lab/*.json: python scripts/lab_figures.py"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

RESULTS, IMAGES = Path("docs/results/lab"), Path("docs/images")
COLOURS = {"distilled": "#0b5fff", "moving_teacher": "#862e9c", "grpo": "#d9480f", "8": "#0b5fff", "all": "#d9480f"}
NAMES = {
    "distilled": "self-distillation, frozen teacher",
    "moving_teacher": "self-distillation, EMA teacher",
    "grpo": "GRPO",
}
RATE = "epistemic/paper10/rate_per_1k"
PROBLEMS = {"all": 320}
"""40 steps of eight problems visit this many of the 540, once each."""


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
            runs = [dict(c[metric]) for c in report["curves"] if (c["arm"], c["factor"]) == (arm, "8")]
            steps = sorted(set.intersection(*(set(map(int, r)) for r in runs)))
            values = [[r[s] for r in runs] for s in steps]
            clip = lambda v: min(max(v, bounds[0]), bounds[1])  # noqa: E731, B023
            edges = [
                (panel.at(s, 0)[0], panel.at(s, clip(min(v)))[1], panel.at(s, clip(max(v)))[1])
                for s, v in zip(steps, values, strict=True)
            ]
            picture.band(edges, COLOURS[arm])
            picture.line([panel.at(s, clip(fmean(v))) for s, v in zip(steps, values, strict=True)], COLOURS[arm], 2)
    for i, arm in enumerate(("distilled", "grpo")):
        picture.text(50 + i * 260, 290, f"— {NAMES[arm]}", colour=COLOURS[arm])
    picture.text(620, 290, "mean and range of three seeds, eight problems", colour="#5b6470", size=11)
    picture.save(IMAGES / "lab_steps.svg")


def coverage_curve(report: dict[str, Any]) -> None:
    """Accuracy after training against the number of problems trained on."""
    picture = Picture(960, 320)
    factors = list(dict.fromkeys(d["factor"] for d in report["from_start"]))
    for i, (name, title) in enumerate((("unseen", "new problems of the family"), ("out_of_domain", "out of domain"))):
        panel = Panel(picture, (60 + i * 460, 40, 470 + i * 460, 240), (-0.3, len(factors) - 0.7), (0, 1))
        panel.axes(
            f"accuracy, {title}", dict(enumerate(map(_size, factors))), (0, 0.25, 0.5, 0.75, 1), "problems trained on"
        )
        rows = [d for d in report["from_start"] if d["set"] == name]
        start = fmean(d["mean"] - d["difference"] for d in rows)
        picture.line([panel.at(-0.3, start), panel.at(len(factors) - 0.7, start)], "#5b6470", 1, "4 4")
        for k, arm in enumerate(("distilled", "moving_teacher", "grpo")):
            points = []
            for d in (d for d in rows if d["arm"] == arm):
                x = factors.index(d["factor"]) + 0.06 * (k - 1)
                before = d["mean"] - d["difference"]
                picture.line(
                    [panel.at(x, max(before + d["low"], 0.0)), panel.at(x, min(before + d["high"], 1.0))],
                    COLOURS[arm],
                    1.2,
                )
                points.append(panel.at(x, d["mean"]))
            picture.line(points, COLOURS[arm], 2)
            for x, y in points:
                picture.dot(x, y, COLOURS[arm])
    for i, arm in enumerate(("distilled", "moving_teacher", "grpo")):
        picture.text(60 + i * 240, 305, f"— {NAMES[arm]}", colour=COLOURS[arm])
    picture.text(760, 305, "dashed: reference model", colour="#5b6470")
    picture.save(IMAGES / "lab_coverage.svg")


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


if __name__ == "__main__":
    reproduced = json.loads((RESULTS / "reproduce.json").read_text())
    curves_over_steps(reproduced)
    coverage_curve(reproduced)
    decisive_dots(json.loads((RESULTS / "decisive.json").read_text()))
