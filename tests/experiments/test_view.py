"""``onpolicy view``: a real server on loopback, asked as a page asks it, while the run folder changes under it.

1. whole curves first, then only what is new; 2. a run that resumes is read again, whatever its file's size; a cut line waits, one that
cannot be read is counted; 3. folders that are empty, missing or gone; 4. every kept sample, searched, filtered, in pages, also of a
large file; 5. other hosts' pages, other methods and odd requests get nothing, and no path is opened; 6. ports and misspelt folders;
7. a browser follows a run.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from onpolicy.cli import main
from onpolicy.experiments.report.curves import MOST_POINTS
from onpolicy.experiments.report.page import write_report
from onpolicy.experiments.view.server import PER_PAGE, ViewServer
from onpolicy.experiments.view.view_command import PORT, found_runs, listening
from onpolicy.utils.errors import ConfigError
from tests.browser import Browser
from tests.experiments.test_report import drawn, evaluated, fake_run


@contextmanager
def served(*runs: Path) -> Iterator[ViewServer]:
    server = ViewServer(runs, 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: ViewServer, path: str, **parameters: Any) -> Any:
    with urllib.request.urlopen(f"{server.address.rstrip('/')}{path}?{urlencode(parameters)}", timeout=60) as answer:
        return json.loads(answer.read())


def refused(server: ViewServer, path: str, method: str = "GET", **headers: str) -> int:
    request = urllib.request.Request(server.address.rstrip("/") + path, headers=headers, method=method)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=60)
    body = raised.value.read().decode()
    raised.value.close()
    assert "<" not in body, "no markup"
    return raised.value.code


def write(run: Path, steps: Sequence[int], **metrics: float) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "reward/mean": step / 10} | metrics) + "\n" for step in steps)


def new_run(folder: Path, steps: int = 20) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"steps: {steps}\nepistemic: {{lexicon: hedges}}\n")
    return folder


def at(whole: Any) -> str:
    return ",".join(run["cursor"] for run in whole["runs"])


def test_only_what_is_new_is_sent(tmp_path: Path) -> None:
    run, other = new_run(tmp_path / "run"), new_run(tmp_path / "other", steps=3)
    write(run, range(1, 4))
    write(other, range(1, 4))
    with served(run, other) as server:
        whole = ask(server, "/runs")
        assert whole["runs"][0]["curves"] == {"reward/mean": [[1, 0.1], [2, 0.2], [3, 0.3]]}
        assert [r["condition"]["state"] for r in whole["runs"]] == ["stopped", "finished"]
        assert whole["runs"][0]["condition"]["steps"] == 20 and whole["runs"][0]["followed"] == "hedges"
        told = ask(server, "/poll", at=at(whole))
        assert [r["rows"] for r in told["runs"]] == [[], []] and not told["anew"]
        write(run, [4], **{"train/loss": 1 / 3, "train/grad_norm": math.nan})
        (run / "log.txt").write_text(
            "step    4\nguard, step 4: reward/mean fell from 1 to 0, below 30% of where it began\n"
        )
        told = ask(server, "/poll", at=at(whole))
        assert [r["rows"] for r in told["runs"]] == [[[4, {"reward/mean": 0.4, "train/loss": 0.333333}]], []]
        assert told["runs"][0]["condition"]["step"] == 4 and told["runs"][0]["condition"]["guard"]["step"] == 4
        assert ask(server, "/poll", at=at(told))["runs"][0]["rows"] == []
        assert ask(server, "/poll", at="7.0,0.0")["anew"] and ask(server, "/poll", at="x")["anew"]


def test_a_run_that_resumes_is_read_again(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write(run, range(1, 11))
    with served(run) as server:
        whole = ask(server, "/runs")
        rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "new").write_text("".join(rows[:5]))
        os.replace(run / "new", run / "metrics.jsonl")  # as a resuming run writes it
        assert ask(server, "/poll", at=at(whole))["anew"]
        whole = ask(server, "/runs")
        assert whole["runs"][0]["condition"]["step"] == 5 and len(whole["runs"][0]["curves"]["reward/mean"]) == 5
        with (run / "metrics.jsonl").open("r+") as file:  # in place, and by the next look as long as before
            file.write("".join(row.replace('"step": 5', '"step": 9') for row in rows[:5]))
        assert ask(server, "/poll", at=at(whole))["anew"]
        assert ask(server, "/runs")["runs"][0]["condition"]["step"] == 9
        (run / "metrics.jsonl").unlink()
        told = ask(server, "/poll", at=at(ask(server, "/runs")))
        assert told["runs"][0]["condition"]["state"] == "waiting" and told["runs"][0]["condition"]["step"] is None


def test_a_cut_line_waits_and_an_unreadable_one_is_counted(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write(run, [1])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    with served(run) as server:
        whole = ask(server, "/runs")
        assert whole["runs"][0]["condition"]["step"] == 1
        with (run / "metrics.jsonl").open("a") as file:
            file.write('ard/mean": 0.7}\nnot json\n[1]\n{"no": "step"}\n')
        told = ask(server, "/poll", at=at(whole))
        assert told["runs"][0]["rows"] == [[2, {"reward/mean": 0.7}]]
        assert told["runs"][0]["condition"]["unreadable"] == 3


def test_a_folder_without_a_run_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with served(tmp_path / "empty", tmp_path / "later") as server:
        whole = ask(server, "/runs")
        assert [r["condition"]["state"] for r in whole["runs"]] == ["waiting", "gone"]
        assert ask(server, "/samples")["kept"] == 0 and ask(server, "/rollouts") == []
        write(new_run(tmp_path / "later"), [1])
        told = ask(server, "/poll", at=at(whole))
        assert told["runs"][1]["rows"] == [[1, {"reward/mean": 0.1}]]
        shutil.rmtree(tmp_path / "later")
        assert ask(server, "/poll", at=at(whole))["runs"][1]["condition"]["state"] == "gone"


def test_ten_thousand_steps_are_thinned_and_then_cheap(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", steps=10_000)
    write(run, range(1, 10_001), **{f"m/{i}": 0.123456789 for i in range(40)})
    with served(run) as server:
        whole = ask(server, "/runs")
        assert len(whole["runs"][0]["curves"]["reward/mean"]) <= MOST_POINTS
        assert len(json.dumps(whole)) < 600_000 < (run / "metrics.jsonl").stat().st_size
        write(run, [10_001])
        began = time.process_time()
        assert [row[0] for row in ask(server, "/poll", at=at(whole))["runs"][0]["rows"]] == [10_001]
        assert time.process_time() - began < 0.1


def test_every_sample_is_found(tmp_path: Path) -> None:
    run = evaluated(new_run(tmp_path / "run"), range(0, 60, 20), 4)
    (run / "eval/step-half").mkdir()
    other = fake_run(tmp_path / "other", rollouts=1, tokens=50)
    rows = [
        {"step": s, "prompt_id": f"q{s % 3}#{s}", "student_prompt": "ask", "completion": f"Straße {s}", "answer": "4", "reward": s % 2,
         "finish_reason": "stop" if s % 5 else "length", "tokens": 10 * s}
        for s in range(30)
    ]  # fmt: skip
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def found(**query: Any) -> Any:
        return ask(server, "/samples", **query)

    with served(run, other) as server:
        everything = found()
        assert everything["kept"] == everything["matched"] == 30 + 3 * 4 * 2 + 9
        assert everything["sets"] == ["new", "training"] and everything["finishes"] == ["length", "stop"]
        assert [s["step"] for s in found(set="training", run=0)["rows"]] == list(range(29, 9, -1))
        assert [s["step"] for s in found(set="training", run=0, page=1)["rows"]] == list(range(9, -1, -1)), (
            "and the rest"
        )
        assert found(page=9)["rows"] == [] and found(page="-1")["start"] == found(page="x")["start"] == 0
        assert found(run=1)["matched"] == 9 and found(run=7)["matched"] == everything["matched"]
        assert found(text="STRASSE 7")["matched"] == 1 and found(text="q1", reward_from=1)["matched"] == 5
        assert (
            found(set="training", run=0, reward_to=0)["matched"] == 15
            and found(finish="length", run=0)["matched"] == 6 + 12
        )
        assert {s["tokens"] for s in found(run=0, set="training", tokens_from=100, tokens_to=120)["rows"]} == {
            100,
            110,
            120,
        }
        assert (
            found(step_from=40, step_to="nan", set="new")["matched"] == 0
            and found(step_from=40, set="new")["matched"] == 8
        )
        assert found(reward_from=0, set="new")["matched"] == 12, "what was not graded has no reward"
        assert [s["tokens"] for s in found(run=0, order="longest", set="training")["rows"][:2]] == [290, 280]
        (one,) = found(text="Straße 7")["rows"]
        assert (one["problem"], one["place"], one["run"], one["student_prompt"]) == ("q1", 0, 0, "ask")
        over = ask(server, "/problem", set="new", problem="p2")
        assert [(s["step"], s["place"]) for s in over["rows"]] == [(s, k) for s in (0, 20, 40) for k in (0, 1)]
        assert [s["step"] for s in ask(server, "/problem", set="training", problem="q1")["rows"]] == list(
            range(1, 30, 3)
        )
        with (run / "samples.jsonl").open("a") as file:
            file.write(
                json.dumps({"step": 30, "completion": "new", "reward": None, "tokens": 1, "finish_reason": "stop"})
                + "\n"
            )
        assert found(text="new", set="training")["rows"][0]["step"] == 30, "those that came since too"
        (listed,) = ask(server, "/rollouts")
        assert (listed["run"], listed["place"], listed["length"]) == (1, 0, 50)
        assert len(ask(server, "/rollout", run=1, place=0)["tokens"]) == 50
        for odd in (
            {"run": 1, "place": 5},
            {"run": 1, "place": "-1"},
            {"run": 9, "place": 0},
            {"run": 1, "place": "9" * 5000},
            {},
        ):
            assert refused(server, f"/rollout?{urlencode(odd)}") == 404


def test_numbers_that_are_none_are_shown_as_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    write(run, [1], loss=math.nan)
    row = {"step": 1, "prompt_id": "p", "completion": "so", "reward": math.nan, "advantage": math.inf, "tokens": 1}
    (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    with served(run) as server:
        (sample,) = ask(server, "/samples")["rows"]
        assert (sample["reward"], sample["advantage"], sample["completion"]) == (None, None, "so")
    write_report([run], run / "report.html")
    data = re.search(r'id="data">(.*?)</script>', (run / "report.html").read_text())
    assert (
        data and json.loads(data[1])["runs"][0]["name"] == "run" and "NaN" not in data[1] and "Infinity" not in data[1]
    )


def test_a_large_file_of_samples_is_not_held(tmp_path: Path) -> None:
    run, text = new_run(tmp_path / "run"), "word " * 600
    with (run / "samples.jsonl").open("w") as file:
        for step in range(10_000):
            row = {
                "step": step,
                "prompt_id": f"p{step % 7}",
                "completion": f"{text}{step}",
                "reward": 0.0,
                "tokens": 600,
            }
            file.write(json.dumps(row) + "\n")
    with served(run) as server:
        first = ask(server, "/samples")
        assert first["kept"] == 10_000 and len(first["rows"]) == PER_PAGE and len(json.dumps(first)) < 100_000
        assert ask(server, "/samples", text="word 4321")["matched"] == 1
        held = sum(len(str(vars(e))) for e in server.followed.runs[0].samples.entries())
        assert held < 10_000 * 400 < (run / "samples.jsonl").stat().st_size / 5


def test_only_its_own_page_is_answered(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rollouts=1, tokens=5)
    (tmp_path / "secret.txt").write_text("secret")
    with served(run) as server:
        assert server.server_address[0] == "127.0.0.1"
        for host in (
            "evil.example",
            f"evil.example:{server.server_port}",
            "127.0.0.1",
            f"127.0.0.1:{server.server_port + 1}",
            "",
        ):
            assert refused(server, "/runs", Host=host) == 421, host
        for host in ("localhost", "[::1]"):
            with urllib.request.urlopen(
                urllib.request.Request(f"{server.address}runs", headers={"Host": f"{host}:{server.server_port}"})
            ) as answer:
                assert answer.status == 200
        for site in ("cross-site", "same-site"):
            assert refused(server, "/runs", **{"Sec-Fetch-Site": site}) == 403
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            assert refused(server, "/runs", method) == 501
        for path in (
            "/../secret.txt",
            "/secret.txt",
            f"/{tmp_path}/secret.txt",
            "/runs/..%2fsecret.txt",
            "/config.yaml",
            "/runs/",
        ):
            assert refused(server, path) == 404, path
        assert refused(server, "/samples?" + "&".join(f"a{i}=1" for i in range(99))) == 400
        assert ask(server, "/samples", set="../../secret.txt", text="\0", finish="<b>")["matched"] == 0
        with urllib.request.urlopen(server.address) as answer:
            page, headers = answer.read().decode(), answer.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert (
            headers["X-Content-Type-Options"] == "nosniff" and headers["Cross-Origin-Resource-Policy"] == "same-origin"
        )
        assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page) and "sampled text" not in page


def test_ports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fake_run(tmp_path / "run", rollouts=0, tokens=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port: {port} on 127.0.0.1 is taken; expected a free one"):
            listening([run], port)
    with pytest.raises(ConfigError, match="--port: got 99999, expected a number from 1 to 65535"):
        listening([run], 99999)
    first, second = (
        listening([run], None),
        listening([run], None),
    )  # the first has its port unless something else runs here
    assert second.server_port not in (PORT, first.server_port)
    assert f"port {PORT} is taken" in capsys.readouterr().out
    first.server_close()
    second.server_close()


def test_which_folders_are_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [fake_run(new_parent(tmp_path / "sweep" / arm) / "seed-0", rollouts=0, tokens=1) for arm in ("a", "b")]
    assert found_runs([tmp_path / "sweep"]) == runs and found_runs([tmp_path / "sweep", runs[0]]) == runs
    assert found_runs(runs[:1]) == runs[:1]
    (tmp_path / "empty").mkdir()
    assert found_runs([tmp_path / "empty"]) == [tmp_path / "empty"]
    assert found_runs([tmp_path / "later"], wait=True) == [tmp_path / "later"]
    assert main(["view", str(tmp_path / "swep")]) == 2
    said = capsys.readouterr().err
    assert "swep' is not there; expected a run folder, with metrics.jsonl in it" in said
    assert f"Did you mean {str(tmp_path / 'sweep')!r}?" in said and "--wait" in said
    assert (
        main(["view", str(runs[0] / "config.yaml")]) == 2
        and "is a file; expected a run folder" in capsys.readouterr().err
    )


def new_parent(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@drawn
@pytest.mark.process
def test_a_browser_follows_a_run(tmp_path: Path) -> None:
    run = evaluated(new_run(tmp_path / "run"), range(0, 20, 10), 2)
    text = lambda element: f"document.querySelector('{element}').textContent"  # noqa: E731
    with served(run) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.address, until="document.body.classList.contains('drawn')")
        assert browser.value(text(".card .state")).startswith("waiting for the first step")
        write(run, [1, 2])
        browser.wait(f"{text('.card .step')} === 'step 2 of 20'")
        browser.wait("document.querySelectorAll('.plot canvas').length === 1")
        assert "0.1 at step 1, 0.2 at step 2" in browser.value(
            "document.querySelector('.plot').getAttribute('aria-label')"
        )
        assert re.search(r"^stopped · last written \d+ s ago$", browser.value(text(".card .state")))
        write(run, [3])
        browser.wait("document.querySelector('.plot').getAttribute('aria-label').includes('0.3 at step 3')")
        rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "new").write_text(rows[0])
        os.replace(run / "new", run / "metrics.jsonl")
        browser.wait(f"{text('.card .step')} === 'step 1 of 20'")
        write(run, range(2, 21))
        browser.wait(f"{text('.card .state')}.startsWith('finished')")
        assert browser.value(text("#matched")) == "8 samples" and browser.value(text("#live")) == "live"
        assert browser.console == []
