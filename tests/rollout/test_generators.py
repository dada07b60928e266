"""Generators, real ones: transformers, and vLLM on whatever this machine has.

1. sampled log-probs are the model's own, for vLLM before and after three weight syncs, to 1e-5; 2. a rollout depends on
its seed, not on what is sampled beside it; 3. greedy vLLM and greedy transformers say the same; 4. the end token is part of
the completion, and the reason for ending is right; 5. weights that are not newer are refused, versions travel with the
rollouts; 6. training speed survives vLLM in the same process; 7. sampling follows temperature, top-k and top-p; 8. a group is told of while
others are sampled.
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from onpolicy.data.rendering import Renderer
from onpolicy.rollout.hf_generator import HFGenerator, sample
from onpolicy.rollout.weight_version import StaleWeights
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from tests.tiny import byte_tokenizer

SAMPLING = Sampling(group_size=3, max_tokens=12)
PROMPTS = [Prompt(id=str(i), messages=({"role": "user", "content": "x" * (3 * i + 1)},)) for i in range(4)]


def arguments(model_dir: Path) -> dict[str, Any]:
    return {"renderer": Renderer(byte_tokenizer()), "model": str(model_dir), "sampling": SAMPLING, "max_model_len": 256}


@pytest.fixture(scope="module")
def hf(model_dir: Path) -> HFGenerator:
    return HFGenerator(**arguments(model_dir))


@pytest.fixture(params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def generator(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@torch.no_grad()
def by_the_model(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.completion_ids]])
    logp = model(input_ids=ids).logits[0].float().log_softmax(-1)
    start = len(rollout.prompt_ids)
    return torch.stack([logp[start + t - 1, token] for t, token in enumerate(rollout.completion_ids)])


def largest_gap(model: PreTrainedModel, groups: Any) -> float:
    rollouts = [r for group in groups for r in group.rollouts]
    return max(float((by_the_model(model, r) - torch.tensor(r.rollout_logprobs)).abs().max()) for r in rollouts)


def fresh(model_dir: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


def restart(generator: Any, model_dir: Path) -> None:
    generator.update_weights(fresh(model_dir).state_dict().items(), version=generator.policy_version + 1)


def test_log_probs_are_the_models_before_and_after_three_syncs(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    model = fresh(model_dir)
    assert largest_gap(model, generator.generate(PROMPTS, seed=0)) < 1e-5
    for step in range(1, 4):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        stale = generator.generate(PROMPTS, seed=step)
        assert largest_gap(model, stale) > 1e-3, "before the sync the engine must still have the old weights"
        generator.update_weights(model.state_dict().items(), version=generator.policy_version + 1)
        groups = generator.generate(PROMPTS, seed=step)
        assert largest_gap(model, groups) < 1e-5
        assert {r.policy_version for g in groups for r in g.rollouts} == {generator.policy_version}


def test_a_rollout_depends_on_its_seed_and_not_on_its_neighbours(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    together = generator.generate(PROMPTS, seed=7)
    again = generator.generate(PROMPTS, seed=7)
    alone = generator.generate(PROMPTS[2:3], seed=7)
    ids = lambda groups: [r.completion_ids for g in groups for r in g.rollouts]  # noqa: E731
    assert ids(together) == ids(again)
    assert ids(together[2:3]) == ids(alone)
    assert ids(together) != ids(generator.generate(PROMPTS, seed=8))
    assert len(set(ids(alone))) > 1, "siblings must differ"


def test_a_group_is_told_of_as_soon_as_it_is_whole(generator: Any, model_dir: Path) -> None:
    """The first prompt's rollouts never end, the others' soon: they are told of while it is sampled."""
    restart(generator, model_dir)
    ends, size = generator.renderer.eos_ids, fresh(model_dir).config.vocab_size
    soon = tuple(i for i in range(size) if i not in (*ends, 70))
    prompts = [replace(p, banned_token_ids=soon if i else tuple(ends)) for i, p in enumerate(PROMPTS)]
    sampled, thread = [0], threading.get_ident()
    seen: list[tuple[int, RolloutGroup, int]] = []

    def on_group(place: int, group: RolloutGroup) -> None:
        assert threading.get_ident() == thread
        seen.append((place, group, sampled[0]))

    before, generator.on_progress = generator.on_progress, lambda done, total, tokens: sampled.__setitem__(0, tokens)
    groups = generator.generate(prompts, seed=0, sampling=Sampling(group_size=2, max_tokens=100), on_group=on_group)
    generator.on_progress = before
    assert sorted(place for place, *_ in seen) == [0, 1, 2, 3] and seen[-1][0] == 0
    assert all(groups[place] is group for place, group, _ in seen)
    in_all = sum(r.num_sampled for g in groups for r in g.rollouts)
    assert seen[0][2] < seen[-1][2] < in_all, "tokens at that time"


def test_an_answer_that_is_begun_goes_on(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    greedy = Sampling(group_size=1, max_tokens=12, temperature=0)
    whole = [g.rollouts[0] for g in generator.generate(PROMPTS, seed=0, sampling=greedy)]
    completion_prefix_ids = [
        replace(p, completion_prefix_ids=r.completion_ids[:5]) for p, r in zip(PROMPTS, whole, strict=True)
    ]
    rest = [
        g.rollouts[0] for g in generator.generate(completion_prefix_ids, seed=0, sampling=replace(greedy, max_tokens=7))
    ]
    for one, other in zip(whole, rest, strict=True):
        assert other.completion_ids == one.completion_ids[5:]
        assert other.prompt_ids == (*one.prompt_ids, *one.completion_ids[:5])
        assert other.rollout_logprobs == pytest.approx(one.rollout_logprobs[5:], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_do_not_come(generator: Any, model_dir: Path, temperature: float) -> None:
    restart(generator, model_dir)
    sampling = replace(SAMPLING, temperature=temperature)
    free = generator.generate(PROMPTS, seed=0, sampling=sampling)
    common = tuple({r.completion_ids[0] for g in free for r in g.rollouts})
    held = generator.generate([replace(p, banned_token_ids=common) for p in PROMPTS], seed=0, sampling=sampling)
    drawn = [set(r.completion_ids) for g in held for r in g.rollouts]
    assert not set(common) & set.union(*drawn)
    assert largest_gap(fresh(model_dir), held) < 1e-5, "log-probs stay those of the model, without the ban"


def test_shape_of_what_comes_back(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    progress: list[tuple[int, int, int]] = []
    generator.on_progress = lambda done, total, tokens: progress.append((done, total, tokens))
    groups = generator.generate(PROMPTS, seed=1, sampling=Sampling(group_size=8, max_tokens=40))
    assert [g.prompt.id for g in groups] == ["0", "1", "2", "3"] and all(len(g.rollouts) == 8 for g in groups)
    assert progress[-1] == (32, 32, sum(r.num_sampled for g in groups for r in g.rollouts))
    assert progress == sorted(progress) and len({done for done, *_ in progress}) > 2, (
        "each rollout counts as soon as it ends"
    )
    for rollout in (r for g in groups for r in g.rollouts):
        ended = rollout.completion_ids[-1] in generator.renderer.eos_ids
        assert rollout.finish_reason == ("stop" if ended else "length")
        assert ended or len(rollout.completion_ids) == 40
        assert not set(rollout.completion_ids[:-1]) & set(generator.renderer.eos_ids)
        assert "<|im_end|>" not in rollout.text
    assert {r.finish_reason for g in groups for r in g.rollouts} == {"stop", "length"}, "the test must see both"


def test_stale_weights_are_refused(generator: Any, model_dir: Path) -> None:
    version = generator.policy_version
    with pytest.raises(StaleWeights, match=f"version {version}"):
        generator.update_weights(fresh(model_dir).state_dict().items(), version=version)
    assert generator.policy_version == version


def test_log_probs_of_given_tokens(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    tokens = [5, 9, 40, 41, 7]
    logp = fresh(model_dir)(input_ids=torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
    expected = [float(logp[i, token]) for i, token in enumerate(tokens[1:])]
    assert generator.logprobs(tokens) == pytest.approx(expected, abs=1e-5)


def test_missing_tensors_are_named(hf: HFGenerator, model_dir: Path) -> None:
    with pytest.raises(ValueError, match=r"tensors are missing, e\.g\. '"):
        hf.update_weights(list(fresh(model_dir).state_dict().items())[:3], version=hf.policy_version + 1)


@pytest.mark.vllm
def test_greedy_vllm_and_greedy_transformers_say_the_same(vllm: Any, hf: HFGenerator, model_dir: Path) -> None:
    restart(vllm, model_dir)
    restart(hf, model_dir)
    greedy = Sampling(group_size=1, max_tokens=20, temperature=0.0)
    ours, theirs = hf.generate(PROMPTS, seed=0, sampling=greedy), vllm.generate(PROMPTS, seed=0, sampling=greedy)
    assert [g.rollouts[0].completion_ids for g in ours] == [g.rollouts[0].completion_ids for g in theirs]


@pytest.mark.vllm
def test_vllm_leaves_the_trainer_its_threads(vllm: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        before = os.sched_getaffinity(0), torch.get_num_threads()
        vllm.generate(PROMPTS[:1], seed=0)
        assert (os.sched_getaffinity(0), torch.get_num_threads()) == before
        assert len(os.sched_getaffinity(0)) == os.cpu_count() or os.cpu_count() is None
    finally:
        torch.set_num_threads(threads)


def test_sampling_by_hand() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def drawn(**settings: Any) -> set[int]:
        chances = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return set(sample(logits.expand(300, -1), Sampling(**settings), chances).tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0, 1} and drawn(top_p=0.45) == {0}
    assert drawn(temperature=0.0) == {0} and drawn(temperature=0.05) == {0}


def test_tokens_come_as_often_as_they_should() -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf, 2.0]]).expand(20_000, -1)
    chances = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = sample(logits, Sampling(temperature=0.5), chances).bincount(minlength=4) / 20_000
    assert found.tolist() == pytest.approx((logits[0] / 0.5).softmax(-1).tolist(), abs=0.01) and found[2] == 0
    edges = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert sample(torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1), Sampling(), edges).tolist() == [1, 1]


@pytest.mark.parametrize("field", ["temperature", "top_p", "group_size", "max_tokens", "top_k"])
def test_impossible_sampling_is_refused_by_key(field: str) -> None:
    with pytest.raises(ValueError, match=rf"generator\.{field}: got -1"):
        Sampling(**{field: -1})


@pytest.mark.vllm
def test_more_prompts_than_fit_one_batch_of_vllm(vllm: Any, model_dir: Path) -> None:
    """A prompt prefilled in parts would make vLLM wind back a seeded generator, which fails on a CPU."""
    restart(vllm, model_dir)
    prompts = [
        Prompt(id=f"long {i}", messages=({"role": "user", "content": f"{i} " + "abcdefgh " * 20},)) for i in range(60)
    ]
    sampling = replace(SAMPLING, group_size=2, max_tokens=2)
    groups = vllm.generate(prompts, seed=0, sampling=sampling)
    assert sum(len(r.prompt_ids) for g in groups for r in g.rollouts) > 16_384
    assert largest_gap(fresh(model_dir), groups[:3]) < 1e-5


def test_groups_of_one_problem_in_a_step_differ(generator: Any) -> None:
    """The first one is what it would be alone."""
    again = [replace(PROMPTS[1], occurrence=n) for n in range(3)]
    groups = generator.generate([*again, PROMPTS[2]], seed=7)
    texts = [r.completion_ids for g in groups[:3] for r in g.rollouts]
    assert len(set(texts)) == len(texts) == 3 * SAMPLING.group_size
    assert list(texts[: SAMPLING.group_size]) == [
        r.completion_ids for r in generator.generate([PROMPTS[1]], seed=7)[0].rollouts
    ]
