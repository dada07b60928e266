"""The report: what is kept of a rollout, what the page holds, and that a browser draws it.

1. a record says what the trainer computes, token by token; 2. numbers survive packing; 3. nothing a model wrote can leave the page's data;
4. ten rollouts of 20,000 tokens stay under 5.2 MB; 5. a run keeps rollouts as asked and resumes; 6. folders that hold no run are named;
7. headless Chromium draws headline, curves and tokens without a word on its console, intervals over seeds, and 20,000 tokens on paper;
8. the library that draws the curves is as it was published; 9. sets in domain, guards and how far a run is are told as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.cli import main
from onpolicy.data.alignment import TokenAlignment
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.report.condition import condition_of, guard_of, in_domain
from onpolicy.experiments.report.curves import MOST_POINTS, Columns, curves_of
from onpolicy.experiments.report.page import embedded, write_report
from onpolicy.experiments.report.samples import SampleIndex, some_samples
from onpolicy.run.run_dir import logged
from onpolicy.run.run_lock import exclusive
from onpolicy.run.token_trace import bits, packed, token_record, unpacked
from onpolicy.trainer.teacher_rules import frozen
from tests.browser import CHROMIUM, Browser
from tests.runs import run_here, write_config
from tests.tiny import byte_tokenizer, random_examples
from tests.trainer.test_teacher import distill_term, trainer


def test_a_record_says_what_the_trainer_computes() -> None:
    one, renderer = trainer(frozen(), distill_term()), Renderer(byte_tokenizer())
    example = random_examples(1, with_teacher=1.0)[0]
    record = token_record(one, renderer, example)
    inputs = one.inputs(one.batching.batch([example]))
    length = len(example.rollout.completion_ids)
    assert len(record["tokens"]) == length
    assert unpacked(record["logprob"]) == pytest.approx(inputs.logprobs[0].tolist(), abs=0.006)
    assert unpacked(record["contexts"]["teacher"]["logprob"]) == pytest.approx(
        inputs.teacher["teacher"].logprobs[0].tolist(), abs=0.006
    )
    (divergence,) = inputs.divergences.values()
    assert record["terms"]["distill"]["token_weight"] == 1.0, "the same for all tokens: one number"
    assert unpacked(record["terms"]["distill"]["loss"]) == pytest.approx(divergence[0].tolist(), abs=0.006)
    assert record["teacher_prompts"]["teacher"] == renderer.decode(example.teacher_prompt_ids["teacher"])


def test_numbers_survive_packing() -> None:
    values = torch.tensor([0.0, -1.234, 327.0, 5e6, -5e6, float("nan")])
    assert unpacked(packed(values)) == pytest.approx([0.0, -1.23, 327.0, 327.67, -327.67, 0.0])


def test_pieces_are_the_text() -> None:
    renderer = Renderer(byte_tokenizer())
    ids = renderer.tokenizer.encode("é ½ is ok<|im_end|>")
    pieces = TokenAlignment(renderer).split(ids)
    assert "".join(pieces) == "é ½ is ok<|im_end|>" and pieces[:3] == ["é", "", " "] and pieces[-1] == "<|im_end|>"


def test_nothing_a_model_wrote_can_leave_the_data() -> None:
    evil = "</script><img src=x onerror=alert(1)>\u2028"
    text = embedded({"a": evil})
    assert "<" not in text and "\u2028" not in text and json.loads(text) == {"a": evil}


def fake_run(folder: Path, *, rollouts: int, tokens: int, lr: float = 0.1, seed: int = 0) -> Path:
    """A run folder of the size of a large one."""
    folder.mkdir()
    draw = random.Random(0)
    words = [" the", " wait", ",", " x", "=", "12", " maybe", "\n", "</script>", " Hmm"]
    numbers = lambda: packed(torch.tensor([draw.gauss(0, 2) for _ in range(tokens)]))  # noqa: E731
    (folder / "config.yaml").write_text(f"seed: {seed}\nlr: {lr}\n")
    (folder / "metrics.jsonl").write_text(
        "".join(
            json.dumps(
                {"step": s, "reward/mean": s / 9 + seed, "policy/entropy": 1.0}
                | ({"train/grad_norm": math.nan} if s == 3 else {})
            )
            + "\n"
            for s in range(9)
        )
    )
    sample = {
        "step": 0,
        "student_prompt": "q",
        "completion": " sampled text",
        "answer": None,
        "reward": 1.0,
        "finish_reason": "stop",
        "tokens": 3,
    }
    (folder / "samples.jsonl").write_text(
        "".join(json.dumps({**sample, "step": s, "extra": 1}) + "\n" for s in range(9))
    )
    with (folder / "tokens.jsonl").open("w") as file:
        for step in range(rollouts):
            teacher = {"logprob": numbers(), "entropy": numbers()}
            record = {
                "step": step, "prompt_id": "p", "reward": 1.0, "advantage": 0.5, "finish_reason": "stop", "logprob": numbers(),
                "entropy": numbers(), "tokens": draw.choices(words, k=tokens), "contexts": {"teacher": teacher},
                "terms": {"distill": {"loss": numbers(), "token_weight": numbers(), "advantage": 0.5}},
                "marks": {f"<{name}>": bits([i % 2 == 1 for i in range(tokens)]) for name in
                          ("self_doubt", "hedges", "alternatives", "boosters", "neutral", "paper10", "number", "operator", "style")},
                "student_prompt": "q", "teacher_prompts": {"teacher": "q s"},
            }  # fmt: skip
            file.write(json.dumps(record) + "\n")
    return folder


def test_ten_rollouts_of_twenty_thousand_tokens_stay_small(tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    write_report([fake_run(tmp_path / "run", rollouts=10, tokens=20_000)], output)
    assert output.stat().st_size < 5.2e6


def long_run(folder: Path, *, steps: int, seed: int, names: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    draw = random.Random(seed)
    metrics = [f"epistemic/some_lexicon/measure_{i}/rate_per_1k" for i in range(names)]
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {
                "step": step,
                **{name: draw.gauss(0, 1) / 3 for name in metrics},
                "train/loss": 50.0 if step == 1234 else draw.random(),
            }
            if step % 50 == 0:
                row |= {"eval/set/avg@4": step / steps, "eval/set/avg@4/low": 0.0, "eval/set/avg@4/high": 1.0}
            file.write(json.dumps(row) + "\n")
    return folder


def test_five_thousand_steps_stay_small(tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    assert write_report([long_run(tmp_path / "run", steps=5000, seed=0, names=200)], output) == {"run": 5000}
    assert output.stat().st_size < 4e6, "the log has 40 MB"


def test_a_thinned_curve_keeps_its_ends_and_its_extremes(tmp_path: Path) -> None:
    logs = [logged(long_run(tmp_path / str(seed), steps=5000, seed=seed, names=1)) for seed in (0, 1)]
    alone, (one, other) = curves_of([Columns(logs[0])])[0], curves_of([Columns(rows) for rows in logs])
    loss = alone["train/loss"]
    assert len(loss) <= MOST_POINTS and [1234, 50.0] in loss and [loss[0][0], loss[-1][0]] == [1, 5000]
    values = [row["train/loss"] for row in logs[0]]
    assert min(v for _, v in loss) == pytest.approx(min(values), rel=1e-5)
    assert [p[0] for p in one["train/loss"]] == [p[0] for p in other["train/loss"]], (
        "seeds are compared at the same steps"
    )
    assert (
        alone["eval/set/avg@4"] == [[s, s / 5000, 0.0, 1.0] for s in range(50, 5001, 50)]
        and "eval/set/avg@4/low" not in alone
    )
    short = curves_of([Columns(logs[0][:300])])[0]["train/loss"]
    assert short == [[row["step"], float(f"{row['train/loss']:.6g}")] for row in logs[0][:300]], "short ones are whole"


def test_a_run_keeps_tokens_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_config(tmp_path)
    for steps in ("steps=2", "steps=3"):
        assert run_here(config, f"run_dir={tmp_path / 'run'}", "logging.tokens_every=2", steps) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/tokens.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    assert "run: 3 steps" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page), "nothing is loaded from elsewhere"
    assert main(["report", str(tmp_path)]) == 2 and "holds no run" in capsys.readouterr().err


def browse(page: Path, *flags: str) -> str:
    """The page as Chromium leaves it; fails on anything it says on its console."""
    assert CHROMIUM is not None
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
              f"--user-data-dir={page.parent / 'profile'}", "--enable-logging=stderr", "--virtual-time-budget=5000"]  # fmt: skip
    done = subprocess.run([CHROMIUM, *common, *flags, f"file://{page}"], capture_output=True, text=True)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    return done.stdout


drawn = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not drawn")


@drawn
@pytest.mark.process
def test_a_browser_draws_it(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / name, rollouts=3, tokens=2_000, lr=lr) for name, lr in (("one", 0.1), ("two", 0.2))]
    write_report(runs, tmp_path / "report.html")
    dom = browse(tmp_path / "report.html", "--dump-dom")
    assert dom.count("<canvas") == 1 and "the same at every step: policy/entropy 1" in dom
    assert "Training reward, mean. one: 0 at step 0, 0.8889 at step 8; two: 0 at step 0, 0.8889 at step 8" in dom
    assert dom.count('<article class="card') == 2 and "+0.889 since step 0" in dom and "none fired" in dom
    assert dom.count('class="start"> sampled text<') == 18, "every step of both runs"
    assert dom.count('class="mark"') == 1000 and "&lt;/script&gt;" in dom and "two · step 2" in dom


@drawn
@pytest.mark.process
def test_seeds_are_one_arm_with_an_interval(tmp_path: Path) -> None:
    runs = [fake_run(tmp_path / f"sdpo-{seed}", rollouts=1, tokens=50, seed=seed) for seed in (0, 1, 2)]
    other = fake_run(tmp_path / "grpo", rollouts=1, tokens=50, lr=0.2, seed=5)
    write_report([*runs, other], tmp_path / "report.html")
    dom = browse(tmp_path / "report.html", "--dump-dom")
    assert dom.count('<button class="key"') == 2 and "sdpo (3 seeds)" in dom
    # means 1 over seeds 0, 1, 2 at the first step; sd 1, so 1 -+ 4.303 / sqrt(3)
    assert "<td>1<small>−1.484 to 3.484</small></td>" in dom and "mean over seeds" in dom


@drawn
@pytest.mark.process
def test_it_prints(tmp_path: Path) -> None:
    write_report([fake_run(tmp_path / "run", rollouts=1, tokens=20_000)], tmp_path / "report.html")
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "page.pdf").stat().st_size > 100_000


def test_names_of_runs(tmp_path: Path) -> None:
    from onpolicy.experiments.report.run_data import names_of

    paths: list[Any] = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "other"]
    assert names_of(paths) == ["a/run", "b/run", f"{tmp_path.name}/other"]
    cells: list[Any] = [tmp_path / arm / "8" / f"seed-{s}" for arm in ("plain", "floor") for s in (0, 1)]
    assert names_of(cells) == ["plain/8/seed-0", "plain/8/seed-1", "floor/8/seed-0", "floor/8/seed-1"]
    assert names_of([tmp_path, tmp_path]) == [str(tmp_path)] * 2
    one = tmp_path / "sdpo" / "all" / "seed-0"
    assert names_of([one]) == ["sdpo/all/seed-0"], "the seed alone says nothing"


PUBLISHED = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}
"""SHA-256 of the files of uPlot 1.6.32 as npm has them."""


def test_the_library_is_as_published() -> None:
    folder = Path(__file__).parents[2] / "onpolicy/experiments/report/vendor"
    assert {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in PUBLISHED} == PUBLISHED
    assert "1.6.32" in (folder / "README.md").read_text()


def test_the_sets_in_domain_are_those_of_the_training_data() -> None:
    sets = {"same": {"name": "lab", "family": "a", "split": "test"}, "other": {"name": "lab", "family": "b"}}
    assert in_domain({"data": {"name": "lab", "family": "a", "split": "train"}, "eval": {"sets": sets}}) == ["same"]
    assert in_domain({"data": {"path": "train.parquet"}, "eval": {"sets": {"x": {"path": "x.parquet"}}}}) == []
    assert in_domain({"data": None, "eval": {"sets": sets}}) == [] and in_domain({"eval": "odd"}) == []


def test_how_far_a_run_is(tmp_path: Path) -> None:
    run, guards = (
        fake_run(tmp_path / "run", rollouts=0, tokens=1),
        [(3, "length fell"), (5, "entropy fell"), (9, "late")],
    )
    found = condition_of(run, 8, {"steps": 20}, guards)
    assert [found[k] for k in ("state", "step", "steps")] == ["stopped", 8, 20]
    assert found["guard"] == {"step": 3, "reason": "length fell", "more": 1}, "step 9 is still to come"
    assert found["written"] == (run / "metrics.jsonl").stat().st_mtime
    assert (
        condition_of(run, 8, {"steps": 8}, [])["state"] == "finished" and condition_of(run, 8, {}, [])["guard"] is None
    )
    assert condition_of(run, None, {"steps": 8}, guards)["state"] == "waiting"
    assert condition_of(tmp_path / "none", None, {}, [])["state"] == "gone"
    with exclusive(run, print):
        assert condition_of(run, 8, {"steps": 20}, [])["state"] == "running"
        assert condition_of(run, None, {"steps": 20}, [])["state"] == "starting"
    assert guard_of(b"guard, step 12: reward/mean fell from 1 to 0 [stop]\n") == (
        12,
        "reward/mean fell from 1 to 0 [stop]",
    )
    assert guard_of(b"step 12  guard, step 3: no") is None


@pytest.mark.process
def test_another_process_is_seen_to_train_there(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rollouts=0, tokens=1)
    code = "import sys; from pathlib import Path; from onpolicy.run.run_lock import exclusive\n"
    code += "with exclusive(Path(sys.argv[1]), print): print('there', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"there\n"
    assert condition_of(run, 8, {"steps": 20}, [])["state"] == "running"
    process.stdin.close()
    process.wait()
    assert condition_of(run, 8, {"steps": 20}, [])["state"] == "stopped", "the file of the lock is still there"
    process.stdout.close()


def evaluated(folder: Path, steps: range, problems: int) -> Path:
    """A run with two answers to each problem at each step."""
    for step in steps:
        (folder / f"eval/step-{step:06d}").mkdir(parents=True)
        rows = [
            {"id": f"p{i}", "rewards": [1.0, None], "right": [True, None], "answers": ["4", None], "lengths": [step, 2],
             "truncated": [False, True], "completions": [f"so it is 4, at {step}", "hmm"]}
            for i in range(problems)
        ]  # fmt: skip
        (folder / f"eval/step-{step:06d}/new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_page_takes_a_bounded_share_of_the_samples(tmp_path: Path) -> None:
    index = SampleIndex(evaluated(fake_run(tmp_path / "run", rollouts=0, tokens=1), range(0, 100, 10), 50))
    index.update()
    assert sum(1 for _ in index.entries()) == 9 + 10 * 50 * 2
    chosen = some_samples(index, 60, 10**6)
    assert sum(s["set"] == "training" for s in chosen) == 9
    steps = [s["step"] for s in chosen if s["problem"] == "p0"]
    assert steps == [0, 20, 40, 50, 70, 90] and len(chosen) == 9 + 60, "the same problems at steps spread over all"
    assert len(some_samples(index, 60, 100)) < 12 < len(some_samples(index, 60, 300)), (
        "and no more text than there is room for"
    )


@drawn
@pytest.mark.process
def test_a_report_is_searched_and_read_by_keyboard(tmp_path: Path) -> None:
    run = evaluated(fake_run(tmp_path / "run", rollouts=2, tokens=300), range(0, 30, 10), 3)
    write_report([run], tmp_path / "report.html")
    shown = "document.body.classList.contains('drawn')"
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"file://{tmp_path}/report.html", width=390, dark=True, until=shown)
        assert browser.value("document.documentElement.scrollWidth") == 390, "nothing sticks out of a narrow window"
        for key in ("/", *"so it"):
            browser.key(key)
        browser.wait("document.getElementById('matched').textContent.startsWith('9 of 18 samples')")
        browser.key("Escape")
        for key in ("j", "j", "k", "Enter"):
            browser.key(key)
        browser.wait("document.querySelector('#found details[open] mark').textContent === 'so it'")
        browser.value("document.querySelector('#found details[open] button').click()")
        browser.wait("document.querySelectorAll('#problem del, #problem ins').length === 2")
        assert "s_text=so+it" in browser.value("location.hash") and "problem=" in browser.value("location.hash")
        address = browser.value("location.href")
        browser.value("document.getElementById('text').focus()")
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            browser.key(key)
        assert browser.value("document.getElementById('token').textContent").startswith("token 12 of 300")
        told = browser.read_aloud()
        assert ("image", "Training reward, mean. 0 at step 0, 0.8889 at step 8") in told
        assert any(role == "article" and name == "run" for role, name in told)
        browser.open(address, until="!document.getElementById('problem').hidden")
        browser.wait("document.querySelectorAll('#problem del, #problem ins').length === 2")
        assert browser.value("document.getElementById('filter').elements.text.value") == "so it", "the link holds it"
        assert browser.console == []
