"""The weight sync that preflight tries.

1. the change that is tried goes back to the last bit: a run is the same with and without preflight, whatever is trained and
however it is sharded; 2. a generator that keeps any kind of tensor as it was is refused, and the tensors are named: experts, tied
heads, adapters; one that only rounds passes; 3. refused is one that breaks when weights are loaded again, or that cannot load them;
with staleness too; 4. ranks that are lost before the first checkpoint leave no changed weights in the generator;
5. with real vLLM dense models pass, and a mixture of experts is refused if vLLM does not take its experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from onpolicy.data.rendering import Renderer
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.run.assemble import own_logprobs
from onpolicy.run.recovery import Recovery
from onpolicy.run.sync_trial import SyncError, SyncTrial
from onpolicy.trainer.reversible import ReversibleChange, make_change, reversible_change, undo_change
from onpolicy.types import Prompt, RolloutGroup, Sampling
from onpolicy.utils.faults import RoleLost
from tests.runs import metrics, run_here, start, write_config
from tests.tiny import byte_tokenizer, example, tiny_model_dir
from tests.trainer.test_lora import adapted_trainer


class Faulty(HFGenerator):
    """Keeps the tensors whose names end in ``keeps`` as they were; from load number ``breaks`` on all weights are wrong."""

    keeps, breaks, loads = "", 0, 0

    def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        self.loads += 1
        own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        given = [(n, own[n] if self.keeps and n.endswith(self.keeps) else t) for n, t in weights]
        if self.breaks and self.loads >= self.breaks:
            given = [(n, t.flip(0)) for n, t in given]
        super().update_weights(given, version=version)


def faulty(
    *, renderer: Renderer, model: str, sampling: Sampling, max_model_len: int, keeps: str = "", breaks: int = 0
) -> Faulty:
    generator = Faulty(renderer=renderer, model=model, sampling=sampling, max_model_len=max_model_len)
    generator.keeps, generator.breaks = keeps, breaks
    return generator


def unable(*, renderer: Renderer, model: str, sampling: Sampling, max_model_len: int) -> Faulty:
    class Unable(Faulty):
        def update_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> None:
            raise KeyError("experts.w13_weight")

    return Unable(renderer=renderer, model=model, sampling=sampling, max_model_len=max_model_len)


LORA = ["trainer.lora_rank=4", "teacher={name: frozen}"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("qwen3", []),
        ("qwen3_moe", []),
        ("opt", []),
        ("qwen3_moe", LORA),
        ("qwen3", [*LORA, "trainer.lora_targets=[embed_tokens, q_proj]"]),
    ],
)
def test_a_run_is_the_same_with_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, options: list[str]
) -> None:
    tiny_model_dir(tmp_path / "model", family)
    config = write_config(tmp_path)
    assert run_here(config, f"run_dir={tmp_path / 'with'}", "steps=2", *options) == 0
    assert "changed weights reach the generator" in " ".join(capsys.readouterr().out.split())
    assert run_here(config, f"run_dir={tmp_path / 'without'}", "steps=2", "preflight.enabled=false", *options) == 0
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")


@pytest.mark.process
@pytest.mark.deepspeed
def test_a_run_over_zero_3_is_the_same_with_and_without(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 3}}')
    options = ["steps=2", "trainer.name=deepspeed", f"trainer.config={tmp_path / 'zero.json'}"]
    said, _ = start(config, f"run_dir={tmp_path / 'with'}", *options).communicate()
    assert "changed weights reach the generator" in " ".join(said.split())
    start(config, f"run_dir={tmp_path / 'without'}", "preflight.enabled=false", *options).communicate()
    assert metrics(tmp_path / "with") == metrics(tmp_path / "without")


def test_a_change_goes_back_to_the_last_bit() -> None:
    """Zeros, subnormal numbers, scalars and the largest float included; everything that can change does."""
    one = adapted_trainer("qwen3_next", None, rank=0)
    parameters = dict(one.student.named_parameters())
    norm = parameters["model.layers.0.input_layernorm.weight"]
    bias = parameters["model.layers.0.linear_attn.dt_bias"]
    with torch.no_grad():
        norm[:3] = torch.tensor([torch.finfo().max, 1e-45, -0.0])
        bias[:] = torch.tensor([torch.finfo().max, -0.0])
    one.student.model.scalar = torch.nn.Parameter(torch.tensor(0.3))
    before = {n: p.detach().clone() for n, p in one.student.named_parameters()}
    change = one.apply(reversible_change)
    one.apply(make_change, change)
    same = {n for n, p in one.student.named_parameters() if torch.equal(p, before[n])}
    assert same == {"model.layers.0.input_layernorm.weight"}, "1e-45 has no half"
    one.apply(undo_change, change)
    for name, parameter in one.student.named_parameters():
        assert torch.equal(parameter.view(torch.int32), before[name].view(torch.int32)), name


def refused(folder: Path, family: str, generator: dict[str, Any], *options: str) -> int:
    tiny_model_dir(folder / "model", family)
    config = write_config(folder, generator={"group_size": 3, "max_tokens": 8, **generator})
    return run_here(config, f"run_dir={folder / 'run'}", *options)


@pytest.mark.parametrize(
    ("family", "keeps", "named", "options"),
    [
        ("qwen3", "lm_head.weight", "model.embed_tokens.weight", []),
        ("llama", "embed_tokens.weight", "model.embed_tokens.weight", []),
        ("qwen3", "q_norm.weight", "model.layers.*.self_attn.q_norm.weight", []),
        ("qwen3", "mlp.down_proj.weight", "model.layers.*.mlp.down_proj.weight", []),
        ("qwen3_moe", "mlp.experts.gate_up_proj", "model.layers.*.mlp.experts.gate_up_proj", []),
        ("mixtral", "mlp.experts.down_proj", "model.layers.*.mlp.experts.down_proj", []),
        ("qwen3", "q_proj.weight", "model.layers.*.self_attn.q_proj", LORA),
        ("qwen3_moe", "mlp.experts.down_proj", "model.layers.*.mlp.experts", LORA),
        ("qwen3_moe", "mlp.gate.weight", "model.layers.*.mlp.gate", LORA),
        ("llama", "lm_head.weight", "lm_head", [*LORA, "trainer.lora_targets=[lm_head]"]),
        ("qwen3", "mlp.down_proj.weight", "model.layers.*.mlp.down_proj.weight", ["generator.max_staleness=1"]),
    ],
)
def test_tensors_that_a_generator_keeps_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str, keeps: str, named: str, options: list[str]
) -> None:
    assert refused(tmp_path, family, {"name": "tests.run.test_sync_trial:faulty", "keeps": keeps}, *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "generator.name: after a sync of changed weights the generator's log-probs differ" in said
    assert f"it keeps the old {named}. This generator" in said and "e.g. transformers" in said


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_generator_that_breaks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], breaks: int) -> None:
    """With the first weights that it loads, or when the weights are back."""
    assert refused(tmp_path, "qwen3", {"name": "tests.run.test_sync_trial:faulty", "breaks": breaks}) == 2
    assert "a sync of unchanged weights does so too" in " ".join(capsys.readouterr().err.split())


class Rounding:
    """Trainer and generator of a model whose change costs 4 nats a token; the generator is off by ``off``, with the change or without."""

    policy_version, sampling = 0, Sampling(group_size=1, max_tokens=4)

    def __init__(self, off: tuple[float, float]) -> None:
        self.off, self.changed = off, False

    def apply(self, function: Any, *arguments: Any) -> Any:
        if function is reversible_change:
            return ReversibleChange(("all.weight",), ())
        if function is own_logprobs:
            return [[-6.0 if self.changed else -2.0] * e.rollout.num_sampled for e in arguments[0]]
        self.changed = function is make_change
        return None

    def weights(self) -> bool:
        return self.changed

    def reset_version(self) -> None:
        pass

    def update_weights(self, weights: bool, *, version: int) -> None:
        self.loaded = weights

    def generate(self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling) -> list[RolloutGroup]:
        logprob = -6.0 + self.off[0] if self.loaded else -2.0 + self.off[1]
        rollout = replace(example([3], [4, 5]).rollout, rollout_logprobs=(logprob, logprob))
        return [RolloutGroup(prompt=prompt, rollouts=(rollout,)) for prompt in prompts]


@pytest.mark.parametrize(
    ("off", "allowed"), [((0.15, 0.01), None), ((0.2, 0.01), "0.175"), ((0.01, 0.1), "0.05"), ((4.0, 0.0), "0.175")]
)
def test_rounding_is_told_from_old_weights(off: tuple[float, float], allowed: str | None) -> None:
    """A model in bfloat16 is off by more where it is less sure: .03 nats become .06 when the weights of SmolLM2-135M are changed."""
    both: Any = Rounding(off)
    run: Any = SimpleNamespace(trainer=both, generator=both, step=0, config=SimpleNamespace(seed=0))
    trial = SyncTrial(run, [example([3], [4])], tolerance=0.05)
    if allowed is None:
        assert trial.check() == pytest.approx(off, abs=1e-6)
        return
    with pytest.raises(SyncError, match=rf"preflight\.logprob_tolerance=0\.05 allows {allowed} here"):
        trial.check()


def test_a_generator_that_cannot_load_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(tmp_path, "qwen3", {"name": "tests.run.test_sync_trial:unable"}) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "cannot load this model's weights again (KeyError: 'experts.w13_weight')" in said


def test_ranks_that_are_lost_leave_no_changed_weights() -> None:
    """Before the first checkpoint there is nothing to resume, but the generator may have weights that were being tried."""
    done: list[Any] = []
    run: Any = SimpleNamespace(
        step=0,
        config=SimpleNamespace(distributed=SimpleNamespace(max_restarts=1)),
        checkpoints=SimpleNamespace(latest=lambda: None),
        report_failed_save=lambda wait: None,
        log=SimpleNamespace(faults=SimpleNamespace(record=lambda *_: None), reopen=lambda step: None),
        generator=SimpleNamespace(
            reset_version=lambda: done.append("reset"),
            update_weights=lambda weights, version: done.append((weights, version)),
        ),
        sampler=SimpleNamespace(cancel=lambda: None),
        trainer=SimpleNamespace(restart=lambda: done.append("restart"), weights=lambda: "reference model"),
        resume=lambda: False,
        timer=SimpleNamespace(pop=dict),
    )
    Recovery(run).go_back(RoleLost("rank 1 of 2 died"))
    assert done == ["reset", "restart", ("reference model", 0)]


@pytest.mark.vllm
def test_vllm_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dense model passes. A mixture of experts is refused, with staleness too, as long as this vLLM breaks it."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 32,
    }
    experts = Qwen3MoeConfig(
        **shape, vocab_size=264, num_key_value_heads=1, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128,
        max_position_embeddings=1024, initializer_range=0.15, eos_token_id=2,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(experts).save_pretrained(tmp_path / "experts")
    byte_tokenizer().save_pretrained(tmp_path / "experts")
    config = write_config(tmp_path, generator={"name": "vllm", "group_size": 3, "max_tokens": 8})
    assert run_here(config, f"run_dir={tmp_path / 'dense'}", "steps=1") == 0
    assert "changed weights reach the generator" in " ".join(capsys.readouterr().out.split())
    code = run_here(
        config, f"model.path={tmp_path / 'experts'}", f"run_dir={tmp_path / 'run'}", "generator.max_staleness=1"
    )
    if code:
        assert "after a sync of changed weights" in " ".join(capsys.readouterr().err.split())
    else:
        assert max(row["rollout/logprob_gap"] for row in metrics(tmp_path / "run")) < 1e-4
