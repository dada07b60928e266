"""A sweep's report: the page holds what was compared, and a browser draws it above the curves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from onpolicy.experiments.report.page import write_report
from onpolicy.experiments.sweep.compare import Confound, SweepComparison, compare
from tests.experiments.test_report import browse, drawn, fake_run


def sweep_of(folder: Path, arms: dict[str, tuple[int, float]]) -> tuple[list[Path], SweepComparison]:
    """Two factors and two seeds of runs whose last evaluation has so much right, at so many tokens a step."""
    runs = []
    for place, (arm, (tokens, right)) in enumerate(arms.items()):
        for factor in ("8", "all"):
            for seed in (0, 1):
                run = fake_run(folder / f"{place}-{factor}-{seed}", rollouts=1, tokens=20, lr=place, seed=seed)
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                spent = {"rollout/sampled_tokens": tokens, "rollout/tokens": tokens, "teacher/tokens": 3 * tokens}
                (run / "metrics.jsonl").write_text("".join(json.dumps(row | spent) + "\n" for row in rows))
                for step, share in ((0, 0.5), (8, right + 0.1 * seed)):
                    (run / f"eval/step-{step:06d}").mkdir(parents=True)
                    lines = [json.dumps({"id": str(i), "right": [share]}) + "\n" for i in range(3)]
                    (run / f"eval/step-{step:06d}/new.jsonl").write_text("".join(lines))
                runs.append((arm, factor, seed, run))
    told = [Confound(list(arms)[-1], factor, "trainer.lr", "1e-06", "0.001") for factor in ("8", "all")]
    return [run for *_, run in runs], compare(runs, axes=["objective"], confounds=told)


def section(dom: str) -> str:
    found = re.search(r'<section id="comparison".*?</section>', dom, re.DOTALL)
    assert found is not None
    return found.group()


def test_the_page_holds_the_comparison(tmp_path: Path) -> None:
    runs, found = sweep_of(tmp_path, {"plain": (10, 0.5), "</script>": (20, 0.75)})
    write_report(runs, tmp_path / "report.html", found.plain())
    page = (tmp_path / "report.html").read_text()
    data: Any = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(data.group(1))["comparison"] == found.plain()
    assert [d["arm"] for d in found.plain()["differences"]] == ["plain", "</script>"] * 2
    write_report(runs, tmp_path / "report.html", found.plain(), ["a", "a", "b", "b", "a", "a", "c", "c"])
    assert '"arms":[{"name":"a (4 seeds)","runs":[0,1,4,5]},' in (tmp_path / "report.html").read_text()
    write_report(runs[:1], tmp_path / "one.html")
    assert '"comparison":null' in (tmp_path / "one.html").read_text()


@drawn
@pytest.mark.process
def test_a_browser_draws_the_comparison(tmp_path: Path) -> None:
    runs, found = sweep_of(tmp_path, {"plain": (10, 0.5), "<b>floor</b>": (20, 0.75)})
    write_report(runs, tmp_path / "report.html", found.plain())
    dom = section(browse(tmp_path / "report.html", "--dump-dom"))
    assert "hidden" not in dom.partition(">")[0] and dom.count("<table") == 4 and dom.count("<svg") == 2 + 2 + 4
    assert "&lt;b&gt;floor&lt;/b&gt; differs in trainer.lr as well: 1e-06, in the first arm 0.001" in dom
    assert dom.count("differs in trainer.lr") == 1, "with both factors alike: once"
    assert "compared in objective" in dom and "+0.250 (+0.250 to +0.250)" in dom and "×2.00" in dom
    assert "had sampled as many tokens (8: 90, all: 90)" in dom
    write_report(runs[:1], tmp_path / "report.html")
    assert "hidden" in section(browse(tmp_path / "report.html", "--dump-dom")).partition(">")[0]
