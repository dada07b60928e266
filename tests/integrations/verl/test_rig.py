"""That unmodified verl runs on a CPU: its worker in this process, and our rollout server. Its whole entry point: test_runs.py."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import (
    FSDPActorConfig,
    FSDPEngineConfig,
    FSDPOptimizerConfig,
    HFModelConfig,
    TrainingWorkerConfig,
)
from verl.workers.engine_workers import TrainingWorker
from verl.workers.rollout.replica import TokenOutput
from verl.workers.utils.losses import ppo_loss

from tests.integrations.verl.rig.rollout import Server, kept
from tests.tiny import tiny_model_dir

pytestmark = pytest.mark.verl

FP32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
PROMPTS, RESPONSES = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]], [[20, 21, 2], [22, 2], [23, 24, 25], [26, 27, 2]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank; verl opens the process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def worker(model: Path, *, forward_only: bool = False) -> TrainingWorker:
    made = TrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=str(model),
                use_remove_padding=True,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                model_dtype="fp32",
                use_torch_compile=False,
                mixed_precision=FP32,
                forward_only=forward_only,
                use_dynamic_bsz=True,
                max_token_len_per_gpu=16,
                infer_max_token_len_per_gpu=16,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=2),
            checkpoint_config=CheckpointConfig(),
        )
    )
    made.reset()
    return made


def rows() -> TensorDict:
    """Four rollouts as verl's workers get them; more than one micro-batch."""
    ids = [p + r for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    given: dict[str, list[Tensor]] = {
        "input_ids": list(map(torch.tensor, ids)),
        "position_ids": [torch.arange(len(i)) for i in ids],
        "prompts": list(map(torch.tensor, PROMPTS)),
        "responses": list(map(torch.tensor, RESPONSES)),
        "response_mask": [torch.ones(len(r), dtype=torch.long) for r in RESPONSES],
        "loss_mask": [torch.ones(len(r), dtype=torch.long) for r in RESPONSES],
        "old_log_probs": [torch.full((len(r),), -5.5) for r in RESPONSES],
        "advantages": [torch.full((len(r),), sign) for r, sign in zip(RESPONSES, (1.0, -1.0, 0.5, -0.5), strict=True)],
    }
    data = TensorDict(
        {name: torch.nested.as_nested_tensor(value, layout=torch.jagged) for name, value in given.items()},
        batch_size=len(ids),
    )
    tu.assign_non_tensor(data, temperature=1.0, global_batch_size=len(ids), calculate_entropy=True)
    return data


def weights(made: TrainingWorker) -> dict[str, Tensor]:
    found = {
        name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in made.engine.module.named_parameters()
    }
    return {name: p.detach().clone() for name, p in found.items()}


def reference(model: Path) -> list[Tensor]:
    """Log-probabilities of the responses' tokens, by transformers alone."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        with torch.no_grad():
            logp = loaded(input_ids=torch.tensor([prompt + response])).logits[0].log_softmax(-1)
        found.append(logp[len(prompt) - 1 : -1].gather(-1, torch.tensor(response)[:, None])[:, 0])
    return found


@pytest.mark.usefixtures("one_rank")
def test_stock_worker_learns(model: Path) -> None:
    made = worker(model)
    actor = FSDPActorConfig(strategy="fsdp2", rollout_n=1, ppo_mini_batch_size=4, use_dynamic_bsz=True)
    made.set_loss_fn(partial(ppo_loss, actor))
    before = weights(made)
    data = rows()
    tu.assign_non_tensor(data, mini_batch_size=4)
    metrics = tu.get(made.train_mini_batch(data), "metrics")
    assert all(map(math.isfinite, metrics["loss"])) and metrics["grad_norm"][0] > 0
    assert any(not torch.equal(before[name], after) for name, after in weights(made).items())


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("forward_only", [False, True], ids=["actor", "ref"])
def test_stock_worker_scores(model: Path, forward_only: bool) -> None:
    """The packed layout without flash attention, and the reference engine that verl would stream from pinned memory."""
    made = worker(model, forward_only=forward_only)
    data = rows()
    tu.assign_non_tensor(data, compute_loss=False)
    logp = made.infer_batch(data)["log_probs"]
    for own, prompt, right in zip(logp.unbind(), PROMPTS, reference(model), strict=True):
        torch.testing.assert_close(own[len(prompt) - 1 : -1], right, atol=1e-5, rtol=0)


def ask(server: Server, request: str = "r", prompt: list[int] | None = None, **params: Any) -> TokenOutput:
    return asyncio.run(server.generate(request, prompt_ids=prompt or PROMPTS[0], sampling_params=params))


def test_server_samples(model: Path) -> None:
    """Seeds, limits, ends and nuclei; log-probabilities are those of a whole forward pass."""
    server, same = Server(str(model), 12, seed=1), Server(str(model), 12, seed=1)
    first, second = ask(server), ask(server)
    assert [ask(same).token_ids, ask(same).token_ids] == [first.token_ids, second.token_ids]
    assert first.token_ids != second.token_ids
    assert ask(server, seed=3).token_ids == ask(server, seed=3).token_ids
    assert len(ask(server, max_tokens=2).token_ids) <= 2
    greedy = ask(server, temperature=0).token_ids
    assert greedy == ask(server, top_k=1).token_ids == ask(server, top_p=1e-6).token_ids
    server._ends = {greedy[0]}
    assert ask(server, temperature=0).token_ids == greedy[:1]

    assert first.log_probs is not None
    scores = ask(server, prompt=PROMPTS[0] + first.token_ids, max_tokens=1, prompt_logprobs=0).extra_fields
    kept_rows = slice(len(PROMPTS[0]) - 1, -1)
    assert scores["prompt_ids"][kept_rows] == [[token] for token in first.token_ids]
    assert [row[0] for row in scores["prompt_logprobs"][kept_rows]] == pytest.approx(first.log_probs, abs=1e-5)


def test_server_scores_prompts(model: Path) -> None:
    """The best k tokens after each token, best first, and a dummy at the end."""
    ids = PROMPTS[2] + RESPONSES[2]
    found = ask(Server(str(model), 1), prompt=ids, max_tokens=1, prompt_logprobs=3).extra_fields
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)(torch.tensor([ids])).logits[0, :-1]
    right = logits.log_softmax(-1).topk(3)
    assert found["prompt_ids"] == [*right.indices.tolist(), [0, 0, 0]]
    torch.testing.assert_close(torch.tensor(found["prompt_logprobs"][:-1]), right.values, atol=1e-5, rtol=0)


def test_server_after_temperature(model: Path) -> None:
    """``logprobs_mode`` decides what a log-probability is about."""
    raw, processed = (ask(Server(str(model), 4, raw=raw), temperature=2.0) for raw in (True, False))
    assert raw.token_ids == processed.token_ids and raw.log_probs != processed.log_probs


def test_nucleus() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(logits, -1, 0.6).isfinite().tolist() == [True, True, False, False]
    assert kept(logits, 3, 1.0).isfinite().tolist() == [True, True, True, False]


def test_server_aborts(model: Path) -> None:
    """What is under way is handed back as it is; what comes then waits until generation goes on."""
    server = Server(str(model), 64)
    server._ends = set()

    async def run() -> tuple[TokenOutput, bool, TokenOutput]:
        params = {"max_tokens": 64}
        under_way = asyncio.create_task(server.generate("a", prompt_ids=PROMPTS[0], sampling_params=params))
        while not under_way.done() and not server._asked:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        await server.abort_all_requests()
        late = asyncio.create_task(server.generate("b", prompt_ids=PROMPTS[1], sampling_params={"max_tokens": 2}))
        stopped = await under_way
        for _ in range(10):  # more turns than two tokens take
            await asyncio.sleep(0)
        waited = not late.done()
        await server.resume_generation()
        return stopped, waited, await late

    stopped, waited, late = asyncio.run(run())
    assert stopped.stop_reason == "aborted" and 0 < len(stopped.token_ids) < 64
    assert waited and late.stop_reason == "completed" and len(late.token_ids) == 2
