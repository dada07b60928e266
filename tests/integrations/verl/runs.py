"""Whole runs of verl's own entry point, as small as they get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import tiny_model_dir

ROOT = Path(__file__).resolve().parents[3]


def write_data(path: Path, rows: int = 8, task: str = "") -> Path:
    """Sums in verl's format, after a text that says what to do, with worked solutions."""
    table = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": f"{task}{i} + {i % 3}?"}],
            "reward_model": {"ground_truth": str(i + i % 3), "style": "rule"},
            "extra_info": {"index": i, "solution": f"{i} + {i % 3} = {i + i % 3}"},
        }
        for i in range(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table), path)
    return path


def smallest(folder: Path, *, ranks: int = 1) -> dict[str, Any]:
    """Overrides under which verl runs here; the folder gets a model and data where it has none."""
    model = folder / "model"
    if not model.exists():
        tiny_model_dir(model)
    data = folder / "data.parquet"
    if not data.exists():
        write_data(data)
    return {
        "data.train_files": str(data),
        "data.val_files": str(data),
        "data.train_batch_size": 4,
        "data.val_batch_size": 4,
        "data.val_max_samples": 4,
        "data.max_prompt_length": 256,
        "data.max_response_length": 8,
        "data.dataloader_num_workers": 0,
        "actor_rollout_ref.model.path": str(model),
        "actor_rollout_ref.model.use_remove_padding": True,
        "actor_rollout_ref.model.enable_gradient_checkpointing": False,
        "+actor_rollout_ref.model.override_config.attn_implementation": "sdpa",
        "actor_rollout_ref.rollout.name": "transformers",
        "actor_rollout_ref.rollout.n": 2,
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "actor_rollout_ref.rollout.tensor_model_parallel_size": 1,
        "actor_rollout_ref.rollout.agent.num_workers": 1,
        "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz": True,
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": 512,
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.ref.strategy": "fsdp2",
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 512,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 4,
        "actor_rollout_ref.actor.optim.lr": 1e-3,
        **{
            f"actor_rollout_ref.{who}.fsdp_config.{key}": value
            for who in ("actor", "ref")
            for key, value in (("model_dtype", "fp32"), ("use_torch_compile", False))
        },
        **{
            f"+actor_rollout_ref.{who}.fsdp_config.mixed_precision": "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"
            for who in ("actor", "ref")
        },
        "reward.num_workers": 1,
        "trainer.n_gpus_per_node": ranks,
        "trainer.nnodes": 1,
        "trainer.device": "cpu",
        "trainer.total_epochs": 10,
        "trainer.total_training_steps": 2,
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.resume_mode": "disable",
        "trainer.default_local_dir": str(folder / "checkpoints"),
        "trainer.logger": "[console,file]",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "+ray_kwargs.ray_init.address": "local",  # never a cluster that happens to run here
        "ray_kwargs.ray_init.num_cpus": 24,
        "+ray_kwargs.ray_init.num_gpus": ranks,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "hydra.run.dir": str(folder / "hydra"),
    }


def environment(folder: Path) -> dict[str, str]:
    """What each of a run's processes needs to know, beside what it inherits."""
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "tests.integrations.verl.rig",
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "OMP_NUM_THREADS": "1",
        "HYDRA_FULL_ERROR": "1",
        "RAY_prestart_worker_first_driver": "0",  # else one idle process for each of the cores that it is told of
    }


def for_workers(folder: Path) -> dict[str, str]:
    """The same for Ray's workers: of its own accord verl hands on only variables that it knows."""
    return {f"++ray_kwargs.ray_init.runtime_env.env_vars.{k}": f"'{v}'" for k, v in environment(folder).items()}


def main_ppo(
    overrides: Mapping[str, Any],
    folder: Path,
    *,
    config: Path | None = None,
    command: tuple[str, ...] = ("-m", "verl.trainer.main_ppo"),
) -> list[dict[str, Any]]:
    """What ``logged`` reads of a whole run.

    Args:
        overrides: in hydra's syntax
        folder: where it runs and logs
        config: a YAML file in the place of verl's own
    """
    where = ["--config-dir", str(config.parent), "--config-name", config.stem] if config else []
    log = folder / "metrics.jsonl"
    log.unlink(missing_ok=True)
    output = run([sys.executable, *command, *where, *words(overrides, folder)], folder)
    assert log.exists(), output[-6000:]
    return logged(folder)


def logged(folder: Path) -> list[dict[str, Any]]:
    """The metrics of every step that verl logged in the folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{"step": row["step"], **row["data"]} for row in map(json.loads, lines)]


def run(command: list[str], folder: Path) -> str:
    """Its output; everything it has started is ended with it."""
    status, output = _run(command, folder)
    if (
        status and "timed out during startup" in output
    ):  # Ray's node, once in some hundred starts, before verl has done anything
        status, output = _run(command, folder)
    assert status == 0, f"status {status}\n{output[-8000:]}"
    return output


def told_to_stop(command: list[str], folder: Path, lines: int) -> tuple[int, str]:
    """The status of a run that is told to stop once it has logged so many lines, and its output."""
    log = folder / "metrics.jsonl"

    def stop(process: subprocess.Popen[bytes]) -> None:
        while not log.exists() or log.read_text().count("\n") < lines:
            assert process.poll() is None, (folder / "output.log").read_text()[-8000:]
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)

    return _run(command, folder, stop)


def _run(
    command: list[str], folder: Path, meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda process: None
) -> tuple[int, str]:
    with (folder / "output.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment(folder),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            meanwhile(process)
            status = process.wait()
        finally:
            end(process.pid)
            process.wait()
    return status, (folder / "output.log").read_text()


def end(session: int) -> None:
    """Kills what is left of a session and waits until it is gone: to die takes a killed process a moment."""
    for _ in range(100):
        left = [process.pid for process in psutil.process_iter() if _belongs(process, session)]
        if not left:
            return
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def _belongs(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False


def words(overrides: Mapping[str, Any], folder: Path) -> list[str]:
    """The overrides, and what the folder's workers need to know, in hydra's syntax."""
    given = {**for_workers(folder), **overrides}
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]
