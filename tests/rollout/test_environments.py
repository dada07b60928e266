"""Rollouts of several turns, with real generators.

1. prompt, replies and observed tokens are the conversation as the template writes it, sampled tokens are marked, and their
log-probabilities are the model's own in that context; 2. a rollout depends on its seed and not on what is sampled beside it; prompts that
are not interactive are sampled as without an environment; 3. an environment that raises, waits, computes, sleeps, answers with no text or
leaves the problem costs its own rollouts, with the reason, and the others are what they are without it; 4. where no room is left the
rollout ends as one that was cut, and is graded; 5. a conversation that is written in another way begins a new segment; 6. where all
fail, or the generator does, the call raises; 7. groups are told of as they are whole; versions stand at their tokens.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from onpolicy.data.rendering import Renderer
from onpolicy.protocols import Environment
from onpolicy.rollout.environments import EnvironmentBroken, EnvironmentGenerator, Rules
from onpolicy.rollout.hf_generator import HFGenerator
from onpolicy.types import EnvironmentOutcome, Message, Prompt, Rollout, RolloutGroup, Sampling
from tests.data.test_next_turn import FORGETS
from tests.rollout.conversations import (
    Asks,
    AsksTwice,
    GivesUp,
    KeepsWhatBelongsToALoop,
    NeverAsks,
    Retries,
    Says,
    Shortens,
    Silent,
    as_said,
    talk,
)
from tests.rollout.test_generators import arguments, by_the_model, fresh, restart
from tests.runs import ROOT
from tests.tiny import byte_tokenizer

SAMPLING = Sampling(group_size=3, max_tokens=90)
WINDOW = 256


@pytest.fixture(params=["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def generator(request: pytest.FixtureRequest, model_dir: Path) -> Iterator[Any]:
    found = HFGenerator(**arguments(model_dir)) if request.param == "hf" else request.getfixturevalue("vllm")
    report = found.on_progress
    yield found
    found.on_progress = report


@pytest.fixture
def hf(model_dir: Path) -> HFGenerator:
    return HFGenerator(**arguments(model_dir))


def with_environment(
    generator: Any, environment: Environment, notes: list[str] | None = None, **rules: Any
) -> EnvironmentGenerator:
    own = Rules(**{"renderer": generator.renderer, "window": WINDOW, "timeout": 30.0, **rules})
    return EnvironmentGenerator(generator, lambda: environment, own, (notes if notes is not None else []).append)


def held(
    generator: EnvironmentGenerator, prompts: Sequence[Prompt], sampling: Sampling = SAMPLING
) -> list[RolloutGroup]:
    return generator.generate(prompts, seed=7, sampling=sampling)


def replies(rollout: Rollout) -> list[list[int]]:
    """The sampled tokens, by turn."""
    found: list[list[int]] = [[]]
    for token, sampled in zip(rollout.completion_ids, rollout.sampled_mask or [True] * 999, strict=False):
        if not sampled and found[-1]:
            found.append([])
        elif sampled:
            found[-1].append(token)
    return found


def tokens_of(groups: Sequence[RolloutGroup]) -> list[Any]:
    """Log-probabilities depend on the batch, in their last bits."""
    return [[replace(r, rollout_logprobs=(0.0,) * len(r.completion_ids)) for r in group.rollouts] for group in groups]


SHORT = replace(SAMPLING, max_tokens=200)


def test_the_tokens_are_the_conversation(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    model, tokenizer = fresh(model_dir), byte_tokenizer()
    end = tokenizer.eos_token_id
    groups = held(with_environment(generator, Asks(turns=3)), [talk("a"), talk("bb")], SHORT)
    turns = []
    for group in groups:
        for rollout in group.rollouts:
            said = replies(rollout)
            text = f"<|im_start|>user\n{group.prompt.messages[0]['content']}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer.encode(text, add_special_tokens=False)
            for turn, reply in enumerate(said):
                between = f"\n<|im_start|>user\nAgain ({turn}).<|im_end|>\n<|im_start|>assistant\n"
                last = turn == len(said) - 1
                ids += reply + ([] if last else tokenizer.encode(between, add_special_tokens=False))
                assert last or reply[-1] == end
            assert [*rollout.prompt_ids, *rollout.completion_ids] == ids
            gaps = by_the_model(model, rollout) - torch.tensor(rollout.rollout_logprobs)
            mask = torch.tensor(rollout.sampled_mask or [True] * len(gaps))
            assert gaps[mask].abs().max() < 1e-5
            assert rollout.text == tokenizer.decode([i for reply in said for i in reply], skip_special_tokens=True)
            assert rollout.outcome is not None and rollout.outcome.turns == len(said)
            turns.append(len(said))
    assert max(turns) == 3, "else nothing was continued"


def test_a_rollout_depends_on_its_seed_alone(generator: Any, model_dir: Path) -> None:
    restart(generator, model_dir)
    plain = Prompt(id="plain", messages=({"role": "user", "content": "x"},))
    own = with_environment(generator, Asks())
    together = held(own, [talk("a"), plain, talk("b"), talk("c")])
    assert [g.prompt.id for g in together] == ["a", "plain", "b", "c"]
    assert tokens_of(held(own, [talk("b")])) == tokens_of([together[2]])
    assert tokens_of(generator.generate([plain], seed=7, sampling=SAMPLING)) == tokens_of([together[1]])
    assert together[1].rollouts[0].outcome is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("raises", "KeyError: 'no such tool'"),
        ("exits", "SystemExit: 3"),
        ("interrupts", "KeyboardInterrupt: "),
        ("waits", "it said nothing for 2 seconds"),
        ("will_not_end", "it said nothing for 2 seconds"),
        (
            "forgets_the_problem",
            "EpisodeError: the environment's conversation does not begin with the problem's messages",
        ),
    ],
)
def test_what_goes_wrong_costs_its_own_rollouts(
    hf: HFGenerator, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onpolicy.rollout.hold.CANCEL_SECONDS", 0.5)
    notes: list[str] = []
    own = with_environment(hf, Asks(), notes, timeout=2.0)
    fine = held(with_environment(hf, Asks()), [talk("a"), talk("b")], SHORT)
    groups = held(own, [talk("a"), talk("bad", fault=fault), talk("b")], SHORT)
    assert tokens_of([groups[0], groups[2]]) == tokens_of(fine)
    outcomes = [r.outcome for r in groups[1].rollouts]
    assert {o.failure for o in outcomes if o is not None} == {reason}
    assert all(r.failed and r.finish_reason == "abort" and r.num_sampled > 0 for r in groups[1].rollouts)
    assert notes == [f"environment: 3 of 9 rollouts failed and are left out: {reason} (3)"]


@pytest.mark.parametrize("fault", ["computes", "computes_in_a_task", "sleeps"])
def test_one_that_holds_the_thread_is_left_behind(hf: HFGenerator, fault: str) -> None:
    notes: list[str] = []
    fine = held(with_environment(hf, Asks()), [talk("a"), talk("b")], SHORT)
    one = replace(SHORT, group_size=1)
    groups = held(
        with_environment(hf, Asks(), notes, timeout=1.0), [talk("a"), talk("bad", fault=fault), talk("b")], one
    )
    assert tokens_of([groups[0], groups[2]]) == [rollouts[:1] for rollouts in tokens_of(fine)]
    assert groups[1].rollouts[0].failed and groups[1].rollouts[0].completion_ids == ()
    assert notes == ["environment: 1 of 3 rollouts failed and are left out: it held its thread for 1 seconds (1)"]


def test_where_all_fail_the_reasons_are_raised(hf: HFGenerator) -> None:
    with pytest.raises(
        EnvironmentBroken, match="all 3 rollouts failed: EpisodeError: the environment answered with no text"
    ):
        held(with_environment(hf, Silent()), [talk("a")], SHORT)
    with pytest.raises(EnvironmentBroken, match="it never asked the student"):
        held(with_environment(hf, NeverAsks()), [talk("a")])
    with pytest.raises(EnvironmentBroken, match="EpisodeError: the environment asked for two replies at a time"):
        held(with_environment(hf, AsksTwice()), [talk("a")])


def test_an_episode_that_cannot_be_told_ends_the_call(hf: HFGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **named: Any) -> Any:
        raise ValueError("no such tokens")

    monkeypatch.setattr("onpolicy.rollout.episode.Episode.rollout", fails)
    with pytest.raises(ValueError, match="no such tokens"):
        held(with_environment(hf, Asks()), [talk("a")])


def test_a_generator_that_fails_ends_the_call(hf: HFGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error")

    own = with_environment(hf, Asks())
    monkeypatch.setattr(hf, "_complete", fails)
    with pytest.raises(RuntimeError, match="CUDA error"):
        held(own, [talk("a")])


def test_what_belongs_to_a_loop_may_be_kept_from_call_to_call(hf: HFGenerator) -> None:
    notes: list[str] = []
    own = with_environment(hf, KeepsWhatBelongsToALoop(), notes)
    first = held(own, [talk("a"), talk("b")], SHORT)
    with ThreadPoolExecutor(2) as threads:  # as rollouts that are sampled ahead
        both = list(threads.map(lambda _: held(own, [talk("a"), talk("b")], SHORT), range(2)))
    assert notes == [] and [tokens_of(groups) for groups in both] == [tokens_of(first)] * 2
    before = threading.active_count()
    for _ in range(3):
        held(own, [talk("a")], SHORT)
    assert threading.active_count() == before
    assert own._loop is not None
    own._loop.close()
    assert not own._loop._thread.is_alive()


def test_calls_side_by_side_go_on_where_one_leaves_the_loop(hf: HFGenerator) -> None:
    notes: list[str] = []
    own = with_environment(hf, Asks(), notes, timeout=1.0)
    one = replace(SHORT, group_size=1)
    fine = tokens_of(held(own, [talk("a"), talk("b")], one))
    with ThreadPoolExecutor(2) as threads:
        good = threads.submit(held, own, [talk("a"), talk("b")], one)
        bad = threads.submit(held, own, [talk("a"), talk("bad", fault="computes")], one)
        assert tokens_of(good.result()) == fine and tokens_of(bad.result())[0] == fine[0]
    assert bad.result()[1].rollouts[0].failed and len(notes) == 1
    assert own._counts == {}


def test_a_reply_that_is_not_waited_for_did_not_happen(hf: HFGenerator) -> None:
    restarted = held(with_environment(hf, Retries()), [talk("a")], SHORT)
    ends = {(r.outcome.failure.partition(":")[0], r.outcome.turns) for r in restarted[0].rollouts if r.outcome}
    assert ("", 2) in ends and ends <= {("", 2), ("NoRoomLeft", 1)}, "the first reply may have taken all room"
    (group,) = held(with_environment(hf, GivesUp()), [talk("a")], SHORT)
    for rollout in group.rollouts:
        assert rollout.segments == (rollout,) and rollout.num_sampled == len(rollout.completion_ids) > 0
        assert rollout.outcome is not None and rollout.outcome.turns == 1


def test_nothing_is_sampled_any_more_when_the_call_returns(hf: HFGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, whole = [0], hf._complete

    def counted(*arguments: Any) -> None:
        under_way[0] += 1
        time.sleep(0.2)
        whole(*arguments)
        under_way[0] -= 1

    monkeypatch.setattr(hf, "_complete", counted)
    held(with_environment(hf, GivesUp()), [talk("a")], SHORT)
    assert under_way == [0]


def test_reasons_are_each_segments_own(hf: HFGenerator) -> None:
    (group,) = held(with_environment(hf, Shortens()), [talk("a")], replace(SHORT, group_size=6))
    rollouts = [r for r in group.rollouts if r.earlier]
    assert rollouts
    for rollout in rollouts:
        for segment in rollout.segments:
            ended = segment.completion_ids[-1] in hf.renderer.eos_ids
            assert segment.finish_reason == ("stop" if ended else "length")


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ({"reward": float("nan")}, "its reward is nan, expected a finite number"),
        ({"reward": "one"}, "its reward is 'one', expected a finite number"),
        ({"reward": 1.0, "metrics": {"speed": None}}, "its metric 'speed' is None, expected a finite number"),
    ],
)
def test_an_outcome_that_is_none(hf: HFGenerator, outcome: dict[str, Any], reason: str) -> None:
    with pytest.raises(EnvironmentBroken, match=re.escape(reason)):
        held(with_environment(hf, Says(**outcome)), [talk("a")])


def test_without_room_it_ends_as_one_that_was_cut(hf: HFGenerator) -> None:
    for limits in ({"max_tokens": 60}, {}):
        sampling = replace(SAMPLING, **limits)  # type: ignore[arg-type]
        (group,) = held(with_environment(hf, Asks(turns=20), window=WINDOW if limits else 120), [talk("a")], sampling)
        for rollout in group.rollouts:
            assert rollout.finish_reason == "length" and not rollout.failed
            assert rollout.outcome is not None and rollout.outcome.reward is not None
            assert len(rollout.completion_ids) <= sampling.max_tokens
            assert len(rollout.prompt_ids) + len(rollout.completion_ids) <= (WINDOW if limits else 120)
            assert (rollout.sampled_mask or (True,))[-1], "it ends with what was sampled"


class Forgets(Asks):
    """Before its third question it drops the first turn."""

    async def run(self, prompt: Prompt, student: Any) -> Any:
        messages: list[Message] = list(prompt.messages)
        for turn in range(3):
            kept = messages if turn < 2 else [*prompt.messages, *messages[-2:]]
            reply = await student.reply(kept, as_said)
            messages = [*kept, reply, {"role": "user", "content": f"Again ({turn})."}]
        return EnvironmentOutcome(reward=1.0)


def test_a_conversation_that_is_cut_begins_a_segment(hf: HFGenerator) -> None:
    (group,) = held(with_environment(hf, Forgets()), [talk("a")], replace(SHORT, group_size=8))
    held_whole = [r for r in group.rollouts if not r.failed]
    assert held_whole and {len(r.segments) for r in held_whole} == {2}
    for rollout in held_whole:
        (first,) = rollout.earlier
        said = hf.renderer.completion_text(replies(first)[1])
        assert [m["content"] for m in rollout.history] == [said, "Again (1)."]
        assert len(replies(first)) == 2 and len(replies(rollout)) == 1


class Thinks(Asks):
    """Writes thinking into each reply, which the template leaves out once it has asked again."""

    async def run(self, prompt: Prompt, student: Any) -> Any:
        return await super().run(prompt, _Thoughtful(student))


class _Thoughtful:
    def __init__(self, student: Any) -> None:
        self._student = student

    async def reply(self, messages: Sequence[Message], read: Any) -> Message:
        def think(reply: Any) -> Message:
            return {"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{reply.text}"}

        found: Message = await self._student.reply(messages, think)
        return found


def test_segments(model_dir: Path) -> None:
    renderer = Renderer(byte_tokenizer(FORGETS))
    hf = HFGenerator(**{**arguments(model_dir), "renderer": renderer})
    (group,) = held(with_environment(hf, Thinks(turns=3)), [talk("a")], replace(SAMPLING, max_tokens=30))
    segments = [r.segments for r in group.rollouts]
    assert max(map(len, segments)) == 3
    model = fresh(model_dir)
    for rollout in group.rollouts:
        history: list[Message] = []
        for turn, segment in enumerate(rollout.segments):
            assert list(segment.history) == history
            assert segment.prompt_ids == renderer.prompt_ids([*group.prompt.messages, *history])
            assert segment.sampled_mask == () and segment.outcome is (rollout.outcome if segment is rollout else None)
            assert (by_the_model(model, segment) - torch.tensor(segment.rollout_logprobs)).abs().max() < 1e-5
            history += [
                {"role": "assistant", "content": f"<think>\nhm\n</think>\n\n{segment.text}"},
                {"role": "user", "content": f"Again ({turn})."},
            ]
        assert rollout.whole_text == "".join(s.text for s in rollout.segments)
        assert rollout.num_written == sum(len(s.completion_ids) for s in rollout.segments)


def test_groups_are_told_of_and_versions_stand_at_their_tokens(hf: HFGenerator, model_dir: Path) -> None:
    seen: list[str] = []
    own = with_environment(hf, Asks())

    def tell(place: int, group: RolloutGroup) -> None:
        seen.append(f"{place}{group.prompt.id}")

    own.generate([talk("a"), talk("b")], seed=7, sampling=SAMPLING, on_group=tell)
    assert sorted(seen) == ["0a", "1b"]

    calls = hf.generate

    def newer(*arguments: Any, **named: Any) -> Any:
        found = calls(*arguments, **named)
        hf.update_weights(fresh(model_dir).state_dict().items(), version=hf.policy_version + 1)
        return found

    hf.generate = newer  # type: ignore[method-assign]
    begun = hf.policy_version
    (group,) = held(own, [talk("a")], SHORT)
    longest = max(group.rollouts, key=lambda r: len(replies(r)))
    assert longest.policy_version == begun and set(longest.select_sampled(longest.token_versions)) == {begun, begun + 1}


def test_the_one_in_the_docs_runs(model_dir: Path) -> None:
    hf = HFGenerator(**{**arguments(model_dir), "max_model_len": 1024})
    text = (ROOT / "docs/environments.md").read_text()
    names: dict[str, Any] = {}
    exec(text.partition("```python\n")[2].partition("```")[0], names)
    prompts = names["numbers"](size=2)
    groups = held(with_environment(hf, names["guess"](), window=1024), prompts, replace(SHORT, max_tokens=700))
    outcomes = [r.outcome for g in groups for r in g.rollouts]
    assert {o.failure for o in outcomes if o is not None} == {""}
    assert all(o is not None and (o.reward or "The number was" in o.feedback) for o in outcomes)
    assert max(o.turns for o in outcomes if o is not None) > 1
