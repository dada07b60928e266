"""A run's model and card, pushed by huggingface_hub itself to a server on this machine that keeps what it is given.

1. the card says what the run's own files say, and its metadata is read back by the hub's library; 2. the model arrives with its card,
without what only resumes the run; 3. no place and no secret is in it, and what is
neither stays as it is; 4. what cannot be pushed is said, and changes nothing there.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from onpolicy.cli import main
from onpolicy.config.load import load
from onpolicy.config.shipped import SHIPPED
from onpolicy.integrations.hub.card import hub_id
from onpolicy.integrations.hub.public import public_config
from onpolicy.utils.credentials import HIDDEN
from tests.runs import metrics, run_here, write_config
from tests.tiny import tiny_model_dir


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload asks for; ``files`` holds what was committed, ``made`` what was created."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse = refuse
        self.made: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer({"siblings": [], "sha": "0" * 40, "id": "me/plain", "modelId": "me/plain"})

    def do_POST(self) -> None:
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.server.refuse:
            self._answer({"error": "you may not"}, 403)
        elif self.path == "/api/repos/create":
            self.server.made.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/me/{json.loads(body)['name']}"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.server.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            self._answer({"commitUrl": f"{self.server.url}/me/plain/commit/1", "commitOid": "1" * 40})
        else:
            self._answer({})

    def log_message(self, *arguments: Any) -> None:
        pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def hub(**options: bool) -> Iterator[Hub]:
    with Hub(**options) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def push(
    folder: Path, server: Hub, monkeypatch: pytest.MonkeyPatch, *arguments: str, token: str | None = "hf_of_a_test"
) -> int:
    """The command, with the address and the token that its library would have read when it was loaded."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no_token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    return main(["push", str(folder), *arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, evaluated before and after, whose guard fires."""
    folder = tmp_path_factory.mktemp("trained")
    tiny_model_dir(folder / "model")
    (folder / "model/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    sets = {"sums": {"name": "file", "path": str(folder / "data.jsonl"), "problems": 4}}
    config = write_config(
        folder, eval={"every": 3, "sets": sets, "samples_per_problem": 2, "pass_at": [2]},
        guards=[{"name": "rises", "metric": "train/lr", "by": -1.0, "warmup": 1}],
        logging={"trackers": ["jsonl"], "name": "plain/seed-0"},
    )  # fmt: skip
    assert run_here(config, f"run_dir={folder / 'run'}") == 0
    return folder / "run"


def test_the_card_says_what_the_run_says(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(trained), "--dry-run"]) == 0
    said = capsys.readouterr().out
    model = trained / "checkpoints/step-000003"
    assert "would be uploaded to plain-seed-0" in said and "model.safetensors" in said and "state.json" not in said
    card, rows = ModelCard.load(model / "README.md"), metrics(trained)
    (result,) = list(card.data.eval_results or [])
    last = rows[-1]["eval/sums/avg@2"]
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("sums", "avg@2", pytest.approx(last))
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert {"onpolicy", "distill", "policy_gradient"} <= set(card.data.tags or ()) and card.data.base_model is None
    first = next(row for row in rows if row["step"] == 0)
    for row in (first, rows[-1]):
        value, low, high = (row[f"eval/sums/avg@2{end}"] for end in ("", "/low", "/high"))
        assert f"{value:.3f} ({low:.3f} to {high:.3f})" in card.text
    lengths = [row["rollout/completion_length/mean"] for row in rows if "rollout/completion_length/mean" in row]
    assert f"**{lengths[0]:.0f} → {lengths[-1]:.0f}**" in card.text
    assert "Trained on 12 problems" in card.text and "by forward_kl" in card.text and "reference_solution" in card.text
    assert re.search(r"- step \d: train/lr rose", card.text) and "| steps | 3 of 3 |" in card.text
    assert "onpolicy train config.yaml" in card.text and "not finished" not in card.text


def test_a_model_arrives_with_its_card_and_nothing_else(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained / "checkpoints/step-000003"
    with hub() as server:
        assert push(trained, server, monkeypatch, "--to", "plain") == 0
        assert f"{server.url}/me/plain" in capsys.readouterr().out
    assert server.tokens == {"Bearer hf_of_a_test"}
    assert server.made[0]["name"] == "plain" and server.made[0]["visibility"] == "private"
    kept = {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert kept <= set(server.files) and not [f for f in server.files if "state" in f or f == "manifest.json"]
    for name in kept:
        assert server.files[name] == (model / name).read_bytes()
    card = server.files["README.md"].decode()
    assert "hf_of_a_test" not in card and str(trained.parent) not in card and "/tmp" not in card
    assert "path: model" in card and "path: data.jsonl" in card  # their last parts


def test_what_cannot_be_pushed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained, run := tmp_path / "run")
    shutil.rmtree(run / "checkpoints/step-000003")
    with hub() as server:

        def refused(folder: Path, token: str | None = "hf_of_a_test") -> str:
            assert push(folder, server, monkeypatch, token=token) == 2
            return capsys.readouterr().err

        assert "is not finished: its last model is that of step 2 of 3" in refused(run)
        assert push(run, server, monkeypatch, "--dry-run") == 0
        assert "not finished: step 2 of 3" in (run / "checkpoints/step-000002/README.md").read_text()
        shutil.rmtree(run / "checkpoints")
        assert "holds no model: expected a whole checkpoint" in refused(run)
        assert "holds no run" in refused(tmp_path)
        assert "no token of the Hugging Face Hub was found" in refused(trained, None)
        assert not server.made and not server.files
    with hub(refuse=True) as server:
        assert push(trained, server, monkeypatch, "--to", "them/plain") == 2
        assert "'them/plain' could not be uploaded" in capsys.readouterr().err


def test_what_is_not_shown(tmp_path: Path) -> None:
    file = write_config(
        tmp_path,
        rewards=[{"name": "tests.runs:length_reward"}],
        environment={},
        logging={"trackers": ["jsonl", {"name": "mlflow", "uri": "http://me:pass@host"}]},
        run_dir="/home/me/runs/a",
    )
    config = load(file)
    config.rewards[0]["judge_api_key"] = "abcd"
    config.teacher["note"] = "see https://me:pass@example.org/a/b with hf_abcdefghij"
    shown = public_config(config)
    assert shown.run_dir is None and shown.logging.trackers == ["jsonl", "tensorboard"]
    assert shown.rewards[0]["judge_api_key"] == HIDDEN and shown.model.path == "model"
    assert shown.teacher["note"] == f"see https://{HIDDEN}@example.org/a/b with {HIDDEN}"
    assert shown.trainer["micro_batch_tokens"] == 200 and config.rewards[0]["judge_api_key"] == "abcd"


def shown_as(tmp_path: Path, **options: Any) -> Any:
    config = load(write_config(tmp_path))
    config.teacher["options"] = options
    return public_config(config).teacher["options"]


@pytest.mark.parametrize("name", ["rlcr", "sdpo_feedback", "sdpo_no_think", "trace"])
def test_a_shipped_config_is_shown_as_it_is(name: str) -> None:
    config = load(SHIPPED / f"{name}.yaml", ("model.path=Qwen/Qwen3-8B", "data.path=lab/sums"))
    kept: dict[str, Any] = {"run_dir": config.run_dir, "logging": config.logging, "distributed": config.distributed}
    assert dataclasses.replace(public_config(config), **kept) == config


@pytest.mark.parametrize(
    "text",
    [
        "</answer>", "/think", r"(?<=\n)\s*/\s*", r"\frac{1}{2}", "a/b, 1/2 and /tmp/x", "//", "/", ".", "~", "/(a|b)/i", "Qwen/Qwen3-8B",
        "/no_think Say 1/2.\nOr ~/x", "https://example.org/home/x", "hf://datasets/a/b", "onpolicy.rollout.hf_generator:make",
    ],
)  # fmt: skip
def test_what_is_no_place_stays(text: str, tmp_path: Path) -> None:
    assert shown_as(tmp_path, stop=text, listed=[text]) == {"stop": text, "listed": [text]}


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("/srv/bob/sums.jsonl", "sums.jsonl"), ("/srv/bob/two words/run (1)", "run (1)"), ("~/sets/", "sets"), ("/sums", "sums"),
        ("file:///srv/bob/sums", "file://sums"), ("path:/srv/bob/own.py", "path:own.py"), ("../../srv/bob/own", "own"),
        (r"C:\Users\bob\own.py", "own.py"), ("sqlite:////srv/bob/a.db", "sqlite:///a.db"), ("/srv/bob/own.py:score", "own.py:score"),
    ],
)  # fmt: skip
def test_a_place_is_shown_by_its_last_part(text: str, last: str, tmp_path: Path) -> None:
    assert shown_as(tmp_path, path=text, data_files=[text]) == {"path": last, "data_files": [last]}
    free = (
        text if text in ("/sums", "/srv/bob/two words/run (1)") else last
    )  # these may be something else, but under the key of a path
    assert shown_as(tmp_path, note=text) == {"note": free}


def test_a_place_that_exists_is_one_whatever_its_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bob/sets (own)").mkdir(parents=True)
    assert shown_as(tmp_path, note=f"{tmp_path}/bob/sets (own)", path="bob/sets (own)", text="bob/sets (own)") == {
        "note": "sets (own)",
        "path": "sets (own)",
        "text": "bob/sets (own)",
    }


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/mine").mkdir(parents=True)
    assert hub_id("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    assert [hub_id(path) for path in ("models/mine", "lab-reasoner", "/data/model", "a/b/c")] == [None] * 4
