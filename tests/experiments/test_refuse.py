"""What this machine's GPU cannot hold is refused before anything is loaded; a GPU is its memory here."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from onpolicy.cli import main
from onpolicy.experiments.forecast import refuse
from onpolicy.experiments.forecast.hardware import Gpu
from onpolicy.experiments.forecast.refuse import refuse_what_cannot_fit
from onpolicy.run.devices import SHARDED
from onpolicy.utils.errors import ConfigError
from tests.runs import write_config

SHAPES = Path(__file__).parent / "shapes"
QWEN = ["generator.name=vllm", "generator.max_tokens=4096", "trainer.micro_batch_tokens=8192"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of 8.7 billion parameters in four layers, which are measured faster than the 36 of Qwen3-8B; a config.json alone."""
    folder = tmp_path_factory.mktemp("big")
    changed = {"num_hidden_layers": 4, "hidden_size": 8192, "intermediate_size": 57344}
    given = json.loads((SHAPES / "qwen3_8b.json").read_text())
    given.pop("layer_types", None)
    (folder / "config.json").write_text(json.dumps(given | changed))
    return folder


@pytest.fixture
def config(tmp_path: Path, big: Path) -> Path:
    return write_config(tmp_path, model={"path": str(big)})


def has(monkeypatch: pytest.MonkeyPatch, gib: float, host: float = 1000.0) -> None:
    monkeypatch.setattr(refuse, "this_gpu", lambda: Gpu(1.0, 1.0, gib))
    monkeypatch.setattr(refuse, "this_host", lambda: host)


def test_a_full_update_of_8b_is_refused_with_what_would_fit(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has(monkeypatch, 80)
    assert main(["train", str(config), *QWEN]) == 2
    said = capsys.readouterr().err
    assert "needs more than the 80 GiB of this GPU: each GPU, training 1" in said and "each GPU, sampling 1" in said
    (fits,) = re.findall(r"it would fit with (.*?)\. `onpolicy forecast`", said)
    assert "trainer.lora_rank=64" in fits.split()
    refuse_what_cannot_fit(config, [*QWEN, *fits.split()])
    assert not (config.parent / "run").exists(), "nothing was begun"


def test_what_fits_is_let_through(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 230)
    refuse_what_cannot_fit(config, QWEN)
    has(monkeypatch, 80)
    refuse_what_cannot_fit(config, [*QWEN, "trainer.lora_rank=64", "teacher={name: frozen}"])
    refuse_what_cannot_fit(config, [*QWEN, "model.path=lab-reasoner"])


def test_where_nothing_fits_it_says_so(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 12)
    with pytest.raises(ConfigError, match="no setting of ours would fit; more GPUs, or a smaller model"):
        refuse_what_cannot_fit(config, QWEN)


def test_what_the_host_cannot_hold_is_refused_too(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights in float32 while it loads, which a copy of the student shares; then an engine asleep, and moments on the host."""
    has(monkeypatch, 230, host=30)
    with pytest.raises(ConfigError, match=r"needs more than the 30 GiB of host memory: while it loads 32, while it"):
        refuse_what_cannot_fit(config, QWEN)
    has(monkeypatch, 230, host=50)
    refuse_what_cannot_fit(config, QWEN)
    with pytest.raises(ConfigError, match=r"50 GiB of host memory: while it loads 32, while it trains 9\d"):
        refuse_what_cannot_fit(config, [*QWEN, "trainer.moments=host"])


def test_a_host_holds_its_own_ranks(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zero3 = [*QWEN, "trainer.name=deepspeed", "trainer.config=deepspeed/zero3"]
    has(monkeypatch, 230, host=140)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)  # vLLM on the CPU leaves one in its process
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match=r"140 GiB of host memory: while it loads 32, while it trains 1[45]\d"):
        refuse_what_cannot_fit(config, zero3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    refuse_what_cannot_fit(config, zero3)


def test_ranks_that_are_about_to_be_started_count(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 80)
    with pytest.raises(ConfigError, match="this GPU"):
        refuse_what_cannot_fit(config, [*QWEN, *SHARDED])
    refuse_what_cannot_fit(config, [*QWEN, *SHARDED], 8)


def test_where_all_gpus_of_the_machine_are_enough_it_says_so(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 80)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match=r"it would fit with trainer\.devices=all\."):
        refuse_what_cannot_fit(config, QWEN)
    has(monkeypatch, 20)
    with pytest.raises(ConfigError, match="no setting of ours would fit"):
        refuse_what_cannot_fit(config, QWEN)


def test_ranks_of_a_launcher_share_what_zero_divides(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has(monkeypatch, 80)
    zero3 = [*QWEN, "trainer.name=deepspeed", "trainer.config=deepspeed/zero3"]
    with pytest.raises(ConfigError, match="this GPU"):
        refuse_what_cannot_fit(config, zero3)
    monkeypatch.setenv("WORLD_SIZE", "8")
    refuse_what_cannot_fit(config, zero3)


def test_nothing_is_asked_without_a_gpu_or_of_what_is_not_ours(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_what_cannot_fit(Path("no such file"), [])
    has(monkeypatch, 1)
    monkeypatch.setattr(refuse, "OURS", "somebody.elses.")
    refuse_what_cannot_fit(config, QWEN)
