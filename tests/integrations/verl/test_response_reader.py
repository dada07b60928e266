"""What agent-loop workers read is what the driver would read, to the last bit; what they have not read the driver does."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

import onpolicy
from onpolicy.annotation.build import build_annotator, build_rewards
from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import span_names
from onpolicy.integrations.verl.agent_loop import add_read
from onpolicy.integrations.verl.response_reader import READ, STAMP_BYTES, ResponseReader
from onpolicy.integrations.verl.row_annotator import RowAnnotator
from onpolicy.integrations.verl.rows import columns, grouped, rollout_group
from onpolicy.integrations.verl.scoring import score_rows
from onpolicy.types import Example, Metrics
from tests.tiny import byte_tokenizer

pytestmark = pytest.mark.verl

RENDERER = Renderer(byte_tokenizer())
TEXTS = (
    "<think>Wait, maybe it is 3. Hmm, let me check: 1 + 1 = 2.</think>\n\nSo it is \\boxed{2}. <confidence>0.7</confidence>",
    "Perhaps \\boxed{3}, or maybe not. Alternatively it might be 4. Therefore it seems likely that there is no end to",
    "Clearly 1 + 1 = 2. Wait. I'm not sure, I think. Überlegung: näïve \u2192 \\boxed{2}",
)


def resolved(*changes: str) -> ResolvedConfig:
    given = ["model.path=m", "data.path=d", "rewards=[math_answer,{name: density, weight: 0.1}]"]
    return load_resolved("sdpo", [*given, "contexts.teacher.keep_thinking=true", *changes])


def output(draw: random.Random) -> AgentLoopOutput:
    text = draw.choice(TEXTS) + " so" * draw.randrange(4)
    ids = [*RENDERER.tokenizer.encode(text, add_special_tokens=False), 2]
    observed = range(3, 3 + draw.choice([0, 5]))
    return AgentLoopOutput(
        prompt_ids=list(RENDERER.prompt_ids([{"role": "user", "content": "1 + 1?"}])),
        response_ids=ids,
        response_mask=[int(t not in observed) for t in range(len(ids))],
        response_logprobs=[-draw.random() for _ in ids],
        metrics=AgentLoopMetrics(),
    )


def step(reader: ResponseReader | None, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of three groups, one among the other, as the driver gets them from verl."""
    draw, rows = random.Random(seed), []
    for number in range(12):
        prompt = {
            "uid": str(number % 3),
            "raw_prompt": [{"role": "user", "content": "1 + 1?"}],
            "reward_model": {"ground_truth": "2"},
            "extra_info": {"index": number % 3, "solution": "1 + 1 = 2"},
        }
        one = output(draw)
        one.extra_fields["reward_extra_info"] = {"math_answer": float(draw.random() < 0.5), "density": draw.random()}
        if reader is not None:
            add_read(one, prompt, reader)
        rows.append({**prompt, **one.as_dict(), "rm_scores": torch.zeros(len(one.response_ids))})
    return rows


def annotator(method: ResolvedConfig) -> RowAnnotator:
    return RowAnnotator(method, RENDERER, max_teacher_prompt_tokens=4096)


def annotated(by: RowAnnotator, rows: Sequence[dict[str, Any]]) -> tuple[list[Example], Metrics]:
    """Of rows that all stand for a rollout."""
    found, metrics = by.annotate(rows)
    return [example for example in found if example is not None], metrics


def read_by_the_annotator(method: ResolvedConfig, rows: Sequence[dict[str, Any]]) -> tuple[list[Example], Metrics]:
    """The plain form: decoded, scored and read one after the other."""
    sets, rewards = grouped(rows), build_rewards(method)
    groups = [
        score_rows(
            rollout_group(own := [rows[i] for i in numbers], RENDERER, max_tokens=method.generator.settings.max_tokens),
            own,
            rewards,
            RENDERER.final_answer_text,
            right=method.correctness_name,
        )
        for numbers in sets
    ]
    found, metrics = build_annotator(
        method, RENDERER, max_teacher_prompt_tokens=4096, queries=None
    ).annotate(groups, version=0)  # fmt: skip
    by_row = dict(zip((i for numbers in sets for i in numbers), found, strict=True))
    return [by_row[i] for i in range(len(rows))], metrics


def in_columns(method: ResolvedConfig, examples: Sequence[Example]) -> dict[str, list[list[float]]]:
    found = columns(
        examples,
        [len(e.rollout.completion_ids) for e in examples],
        contexts=tuple(method.contexts),
        terms=method.term_names,
        spans=span_names(method),
    )
    return {name: [row.tolist() for row in rows] for name, rows in found.items()}


@pytest.mark.parametrize("seed", range(3))
def test_examples_and_metrics_are_those_of_the_driver_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = resolved()
    rows = step(ResponseReader(method, RENDERER), seed)
    expected, their_metrics = read_by_the_annotator(method, rows)
    alone, alone_metrics = annotated(annotator(method), step(None, seed))
    joined = annotator(method)
    monkeypatch.setattr(ResponseReader, "read", None)  # nothing is left for the driver to read
    found, metrics = annotated(joined, rows)
    assert found == expected == alone
    assert metrics == their_metrics == alone_metrics and metrics["epistemic/self_doubt/rate_per_1k"] > 0
    assert any(e.spans["<self_doubt>"] for e in found) and any(e.rollout.sampled_mask for e in found)
    assert in_columns(method, found) == in_columns(method, expected)


def test_the_bits_of_a_column_are_the_spans() -> None:
    method = resolved()
    (example, *_), _ = annotated(annotator(method), step(None))
    (marks, *_) = in_columns(method, [example])["onpolicy_spans"]
    for bit, name in enumerate(span_names(method)):
        assert [bool(int(m) >> bit & 1) for m in marks] == list(example.spans[name]), name


def test_what_was_read_otherwise_is_read_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method = resolved()
    ours = ResponseReader(method, RENDERER)
    (row, *_) = step(ours)
    assert ours.unpack(row) is not None
    longer = {**row, "responses": torch.cat([row["responses"], row["responses"][:1]])}
    reward = {**row, "extra_fields": {"reward_extra_info": {}}}
    others = [resolved("epistemic.lexicons=[hedges]"), resolved("epistemic.lexicon=hedges")]
    thinks = Renderer(byte_tokenizer(), thinking_tags=["<scratch>", "</scratch>"])
    read_elsewhere = [step(ResponseReader(other, RENDERER))[0] for other in others] + [
        step(ResponseReader(method, thinks))[0]
    ]
    monkeypatch.setattr(onpolicy, "__version__", "0.0.1")
    read_elsewhere.append(step(ResponseReader(method, RENDERER))[0])
    monkeypatch.undo()
    for changed in (longer, reward, {**row, "rollout_log_probs": row["rollout_log_probs"] / 2}, *read_elsewhere):
        assert ours.unpack(changed) is None
    joined = annotator(method)
    rows = step(ours)
    rows[4]["extra_fields"].pop(READ)
    rows[7]["extra_fields"][READ] = read_elsewhere[0]["extra_fields"][READ]
    assert joined.annotate(rows) == annotator(method).annotate(step(ours))
    assert capsys.readouterr().out.count("agent_loop_manager_class") == 1


def test_a_row_that_cannot_be_read_is_left_to_the_driver() -> None:
    method, one = resolved(), output(random.Random(0))
    image = {"uid": "a", "raw_prompt": [{"role": "user", "content": [{"type": "image"}]}]}
    add_read(one, image, ResponseReader(method, RENDERER))
    assert READ not in one.extra_fields
    with pytest.raises(ValueError, match="a part of type 'image'"):
        annotator(method).annotate([{**image, **one.as_dict(), "rm_scores": torch.zeros(1)}])


def test_a_read_row_is_small_and_holds_no_tensor() -> None:
    (row, *_) = step(ResponseReader(resolved(), RENDERER))
    packed = row["extra_fields"][READ]
    assert len(packed) < 8 * len(row["responses"]) + 2500
    assert b"torch" not in packed and pickle.loads(packed[STAMP_BYTES:]).text == RENDERER.completion_text(
        row["responses"][row["response_mask"].bool()].tolist()
    )
