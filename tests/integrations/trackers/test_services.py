"""Trackers of other projects, with the packages themselves and no server.

1. metrics, config, group and samples arrive, and a run that is resumed goes on as the same one, no step twice; 2. two runs whose folders
have one name stay two; 3. a run that begins anew in its folder is another one; 4. a service that cannot be reached stops a run that
begins, with the reason, and not one that goes on; 5. no secret arrives.
"""

from __future__ import annotations

import importlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runs import metrics, run_here, write_config

pytestmark = pytest.mark.process  # wandb asks uname and git
Shown = dict[str, Any]
"""Of a run: ``name``, ``group``, ``config`` (its learning rate), ``loss`` (step -> value) and ``samples`` (step -> columns)."""


def records(content: bytes) -> Iterator[bytes]:
    """Of a file in LevelDB's log format: blocks of 32 KiB, in which each part of a record has its length and its place."""
    at, whole = 7, b""  # behind what says whose file it is
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, place = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if place in (1, 4):  # all of it, or its last part
            yield whole
            whole = b""


def in_wandb(home: Path, runs: Path) -> dict[str, Shown]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, Shown] = {}
    for file in sorted(runs.glob("**/offline-run-*/*.wandb")):
        shown: Shown = {}
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                run = record.run
                shown = found.setdefault(run.run_id, {"loss": {}, "samples": {}})
                config = {item.key: json.loads(item.value_json) for item in run.config.update}
                shown |= {"name": run.display_name, "group": run.run_group, "lr": config["trainer"]["lr"]}
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                if "train/loss" in items:
                    assert items["_step"] not in shown["loss"]
                    shown["loss"][items["_step"]] = items["train/loss"]
                if table := items.get("samples/path") or items.get("samples", {}).get("path"):
                    assert items["_step"] not in shown["samples"]
                    shown["samples"][items["_step"]] = json.loads((file.parent / "files" / table).read_text())[
                        "columns"
                    ]
    return found


def in_trackio(home: Path, runs: Path) -> dict[str, Shown]:
    from trackio.sqlite_storage import SQLiteStorage

    found = {}
    for record in SQLiteStorage.get_run_records("onpolicy"):
        name, id_ = str(record["name"]), str(record["id"])
        rows = SQLiteStorage.get_logs("onpolicy", name, run_id=id_)
        losses = [row for row in rows if "train/loss" in row]
        config = SQLiteStorage.get_run_config("onpolicy", name, run_id=id_)
        assert config is not None
        found[id_] = {
            "name": name.rpartition(" ")[0],
            "group": config["_Group"],
            "lr": config["trainer"]["lr"],
            "loss": {row["step"]: row["train/loss"] for row in losses},
            "samples": {row["step"]: list(row["samples"]["_value"][0]) for row in rows if "samples" in row},
        }
        assert len(losses) == len(found[id_]["loss"])
        assert sum("samples" in row for row in rows) == len(found[id_]["samples"])
    return found


def in_mlflow(home: Path, runs: Path) -> dict[str, Shown]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment = client.get_experiment_by_name("onpolicy")
    assert experiment is not None
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        id_ = run.info.run_id
        history = client.get_metric_history(id_, "train/loss")
        tables = [file.path for file in client.list_artifacts(id_, "samples")]
        read = {int(t[-11:-5]): json.loads(Path(client.download_artifacts(id_, t)).read_text()) for t in tables}
        assert "objective" in Path(client.download_artifacts(id_, "config.yaml")).read_text()
        assert run.info.status == "FINISHED"
        found[id_] = {
            "name": run.info.run_name,
            "group": run.data.tags["onpolicy.group"],
            "lr": float(run.data.params["trainer.lr"]),
            "loss": {m.step: m.value for m in history},
            "samples": {step: table["columns"] for step, table in read.items()},
        }
        assert len(history) == len(found[id_]["loss"])
    return found


SERVICES: dict[str, Callable[[Path, Path], dict[str, Shown]]] = {
    "wandb": in_wandb,
    "trackio": in_trackio,
    "mlflow": in_mlflow,
}


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracker's name; what it sends is kept below the test's folder."""
    name = str(request.param)
    pytest.importorskip(name, reason=f"{name} is not installed (make test-trackers)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'home.db'}")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps files, without a server
    if name == "trackio":
        from trackio import sqlite_storage, utils

        for module in (sqlite_storage, utils):  # TRACKIO_DIR is read when it is imported
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "home")
    return name


def shown_in(service: str, folder: Path) -> dict[str, Shown]:
    return SERVICES[service](folder / "home", folder / "out")


def run(folder: Path, service: str, arm: str, *overrides: str) -> Path:
    """A run as a sweep starts it, whose folder has the name that all runs of a seed have."""
    run_dir = folder / "out" / arm / "seed-0"
    own = (f"run_dir={run_dir}", f"logging.name={arm}/seed-0", f"logging.group={arm}")
    config = write_config(folder, logging={"trackers": ["jsonl", service], "tokens_every": 2}, steps=2)
    assert run_here(config, *own, *overrides) == 0
    return run_dir


def test_a_run_arrives_goes_on_as_one_and_is_no_other_run(service: str, tmp_path: Path) -> None:
    first = run(tmp_path, service, "plain")
    shutil.rmtree(first / "checkpoints/step-000002")  # as if it had been killed before its second checkpoint
    run(tmp_path, service, "plain", "steps=4")
    run(tmp_path, service, "other", "steps=1")
    found = {shown["name"]: shown for shown in shown_in(service, tmp_path).values()}
    assert sorted(found) == ["other/seed-0", "plain/seed-0"] and len(shown_in(service, tmp_path)) == 2
    for arm, steps in (("plain", 4), ("other", 1)):
        shown, logged = found[f"{arm}/seed-0"], metrics(tmp_path / "out" / arm / "seed-0")
        assert shown["group"] == arm and shown["lr"] == pytest.approx(1e-3)
        assert shown["loss"] == pytest.approx({int(row["step"]): row["train/loss"] for row in logged})
        assert list(shown["loss"]) == list(range(1, steps + 1))
    samples = found["plain/seed-0"]["samples"]
    assert sorted(samples) == [1, 2, 4] and {"completion", "teacher_prompts", "reward"} <= set(samples[1])


def test_a_run_that_begins_anew_is_another_one(service: str, tmp_path: Path) -> None:
    first = run(tmp_path, service, "plain")
    shutil.rmtree(first / "checkpoints")
    run(tmp_path, service, "plain")
    found = shown_in(service, tmp_path)
    assert [sorted(shown["loss"]) for shown in found.values()] == [[1, 2], [1, 2]]


def test_an_mlflow_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed (make test-trackers)")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = write_config(tmp_path, steps=1)
    tracked = ("logging.trackers=[jsonl, {name: mlflow, uri: 'http://127.0.0.1:9'}]", f"run_dir={tmp_path / 'run'}")
    assert run_here(config, *tracked) == 2
    assert "logging.trackers[1]: mlflow could not be opened" in capsys.readouterr().err
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    capsys.readouterr()
    assert run_here(config, *tracked, "steps=2") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "logging.trackers[1] failed" in said and "the run goes on without its numbers" in said
    assert len(metrics(tmp_path / "run")) == 2


def test_no_secret_arrives(service: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "out/plain/seed-0"
    run_dir.mkdir(parents=True)
    secrets = ("qwfp-arst", "zxcd-vbkh", "hf_AbCdEfGhIjKlMnOp")
    grader = {
        "api_key": secrets[0],
        "url": f"https://bob:{secrets[1]}@host.org",
        "note": [f"with {secrets[2]}"],
        "kind": "mild-oolong",
    }
    config = {"objective": [], "trainer": {"lr": 1e-3}, "logging": {"group": "plain"}, "grader": grader}
    (run_dir / "config.yaml").write_text(json.dumps(config))
    tracker = getattr(importlib.import_module(f"onpolicy.run.trackers.{service}"), service)(run_dir, -1)
    tracker.log(1, {"train/loss": 1.0})
    tracker.log_samples(1, [{"completion": "4"}])
    tracker.close()
    assert len(shown_in(service, tmp_path)) == 1
    sent = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != run_dir / "config.yaml")
    assert b"mild-oolong" in sent and not [secret for secret in secrets if secret.encode() in sent]
