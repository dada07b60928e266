"""Conversations on verl are those of the embedded trainer.

1. the agent loop's rows hold the rollouts that the embedded loop makes of the same replies, segments included, through rewards, examples,
metrics and a worker's batch; 2. an environment that fails costs one row in which nothing was sampled, with the reason, and the others
are what they are without it; where all fail the run ends; 3. what verl's servers do not give ends the conversation's prompt alone; 4. a
prompt goes into the file and comes out as it was; 5. rows of a run are in as many updates as its prompts make.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import verl  # noqa: F401 first, as it imports the rig and our plug-in in its own order
import yaml
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.workers.rollout.replica import TokenOutput

from onpolicy.annotation.build import build_annotator, local_scorer
from onpolicy.cli import main
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.errors import DataError
from onpolicy.data.rendering import Renderer
from onpolicy.integrations.verl import environment_agent
from onpolicy.integrations.verl.agent_loop import add_read
from onpolicy.integrations.verl.command import check, compose
from onpolicy.integrations.verl.conversation_rows import CONVERSATION, has_failed, segment_of
from onpolicy.integrations.verl.environment_agent import EnvironmentAgentLoop, conversations
from onpolicy.integrations.verl.names import ENVIRONMENT
from onpolicy.integrations.verl.problems import PROBLEM, problem_as_json, problem_from_json, write_problems
from onpolicy.integrations.verl.response_reader import ResponseReader
from onpolicy.integrations.verl.reward_manager import OnpolicyRewardManager
from onpolicy.integrations.verl.row_annotator import RowAnnotator
from onpolicy.integrations.verl.rows import columns, grouped, rollout_group, train_batch
from onpolicy.integrations.verl.settings import method, prepare
from onpolicy.integrations.verl.update_sizes import UpdatesOfPrompts
from onpolicy.rollout.environments import EnvironmentBroken, EnvironmentGenerator, Rules
from onpolicy.rollout.request import continued_prompt, max_tokens
from onpolicy.trainer.collate import collate
from onpolicy.types import Prompt, Rollout, RolloutGroup, Sampling
from onpolicy.utils.errors import ConfigError
from tests.data.test_next_turn import FORGETS
from tests.integrations.verl.runs import ROOT, smallest
from tests.rollout.conversations import talk
from tests.tiny import CHATML, byte_tokenizer

pytestmark = pytest.mark.verl

HERE = "tests.rollout.conversations"
LONGEST, PROMPT = 120, 200


def reply_to(prompt_ids: Sequence[int], room: int, number: int) -> tuple[list[int], list[float]]:
    """A reply that follows from what was asked and of which rollout of a group it is, and its log-probabilities: a few letters and the
    end, unless there is no room."""
    digest = hashlib.sha256(repr([number, *prompt_ids]).encode()).digest()
    text = "".join(chr(97 + byte % 26) for byte in digest[: 3 + digest[0] % 9])
    tokenizer = byte_tokenizer()
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id][:room]
    return ids, [-((token * 7 + place) % 50) / 8 for place, token in enumerate(ids)]


@pytest.fixture(autouse=True)
def environments_end() -> Iterator[None]:
    yield
    while environment_agent._shared:
        environment_agent._shared.popitem()[1][1].episodes.close()


class Servers:
    """verl's client of its rollout servers."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.pause, self.under_way = 0.0, 0

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: Mapping[str, Any], **named: Any
    ) -> TokenOutput:
        self.asked.append({"session": request_id, **sampling_params})
        self.under_way += 1
        await asyncio.sleep(self.pause or 0.001 * (len(prompt_ids) % 3))
        self.under_way -= 1
        ids, logprobs = reply_to(prompt_ids, sampling_params["max_tokens"], sampling_params["seed"])
        version = len(self.asked)
        told = {"min_global_steps": version, "max_global_steps": version}
        return TokenOutput(token_ids=ids, log_probs=logprobs, stop_reason="completed", extra_fields=told)


class Generator:
    """The embedded trainer's, with the same replies."""

    def __init__(self, renderer: Renderer, sampling: Sampling, window: int) -> None:
        self.renderer, self.sampling, self.window, self.policy_version = renderer, sampling, window, 0
        self.on_progress: Callable[..., None] = lambda *counts: None

    def generate(
        self, prompts: Sequence[Prompt], *, seed: int, sampling: Sampling, on_group: Any
    ) -> list[RolloutGroup]:
        groups = [RolloutGroup(prompt=prompt, rollouts=(self._rollout(prompt, sampling),)) for prompt in prompts]
        for place, group in enumerate(groups):
            on_group(place, group)
        return groups

    def _rollout(self, prompt: Prompt, sampling: Sampling) -> Rollout:
        longest = max_tokens(prompt, sampling)
        asked = continued_prompt(self.renderer, prompt, self.window - longest)
        ids, logprobs = reply_to(asked, longest, int(prompt.id.rpartition("#")[2].partition(".")[0]))
        return Rollout(
            prompt_ids=asked,
            completion_ids=tuple(ids),
            rollout_logprobs=tuple(logprobs),
            text=self.renderer.completion_text(ids),
            finish_reason="stop" if ids[-1] in self.renderer.eos_ids else "length",
            policy_version=0,
        )

    def rest(self) -> None: ...

    def close(self) -> None: ...


def write_method(folder: Path, environment: Any) -> Path:
    """A config with an environment, as a user writes one."""
    onpolicy = {
        "environment": environment,
        "rewards": [{"name": "environment"}, {"name": "tests.runs:length_reward", "weight": 0.1}],
        "contexts": {
            "teacher": {"name": "instruction", "template": "{question}\n\nSay more letters."},
            "told": {"name": "feedback", "threshold": 1000.0},
        },
        "objective": [
            "policy_gradient",
            {"name": "distill", "divergence": "forward_kl", "context": "teacher"},
            {"name": "teacher_advantage", "context": "told"},
        ],
    }
    search = ["pkg://onpolicy.integrations.verl.config", "pkg://verl.trainer.config"]
    path = folder / "method.yaml"
    path.write_text(
        yaml.safe_dump({"defaults": ["onpolicy_ppo", "_self_"], "hydra": {"searchpath": search}, "onpolicy": onpolicy})
    )
    return path


def words(folder: Path, *, n: int = 2) -> list[str]:
    """Overrides of a run as small as they get."""
    given = smallest(folder) | {
        "data.max_prompt_length": PROMPT,
        "data.max_response_length": LONGEST,
        "actor_rollout_ref.rollout.n": n,
    }
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in given.items()]


def write_problems_of(folder: Path, **options: Any) -> Path:
    """A parquet file of ``talks``, written by the command."""
    source = {"name": f"{HERE}:talks", **options}
    config = {
        "model": {"path": "some/model"},
        "data": source,
        "environment": f"{HERE}:asks",
        "eval": {"sets": {"two": {**source, "problems": 2}}},
        "objective": ["policy_gradient"],
        "rewards": ["environment"],
    }
    (folder / "embedded.yaml").write_text(yaml.safe_dump(config))
    assert main(["verl", "data", str(folder / "embedded.yaml"), "--output", str(folder / "problems.parquet")]) == 0
    return folder / "problems.parquet"


class Side:
    """A config of verl's with an environment, and what its agent loops make of prompts."""

    def __init__(self, folder: Path, environment: Any, *, template: str | None = None, n: int = 2) -> None:
        self.config = compose(write_method(folder, environment), words(folder, n=n))
        self.resolved: ResolvedConfig = method(self.config)
        prepare(self.config, self.resolved, "sync")
        self.tokenizer, self.n, self.servers = byte_tokenizer(template or CHATML), n, Servers()
        self.shared = conversations(self.config, self.tokenizer)
        self.reader = ResponseReader(self.resolved, self.shared.renderer)

    async def session(self, prompt: Prompt, number: int) -> list[dict[str, Any]]:
        """The rows of one rollout, as the driver gets them."""
        asked = {
            "uid": prompt.id,
            "session_id": number,
            "global_steps": 4,
            "raw_prompt": [{"role": m["role"], "content": m["content"]} for m in prompt.messages],
            PROBLEM: problem_as_json("data", prompt),
        }
        loop = EnvironmentAgentLoop(
            trainer_config=DictConfigWrap(self.config),
            server_manager=self.servers,
            tokenizer=self.tokenizer,
            processor=None,
            dataset_cls=None,
            data_config=DictConfigWrap(self.config.data),
        )
        found = await loop.run({"temperature": 1.0, "logprobs": True, "seed": number}, **asked)
        told = await self.scored(found, asked)
        for one in found:
            if not has_failed({"extra_fields": one.extra_fields}):
                add_read(one, asked, self.reader)
            one.reward_score = told["reward_score"]
            one.extra_fields["reward_extra_info"] = told["reward_extra_info"]
        return [{**asked, **one.as_dict()} for one in found]

    async def scored(self, found: Sequence[AgentLoopOutput], asked: Mapping[str, Any]) -> dict[str, Any]:
        """As verl asks its reward workers."""
        manager = OnpolicyRewardManager(self.config, self.tokenizer, None)
        manager.loop = asyncio.get_running_loop()
        prompts, responses = [[torch.tensor(ids) for ids in both] for both in zip(
            *((one.prompt_ids, one.response_ids) for one in found), strict=True
        )]  # fmt: skip
        pad = torch.nn.utils.rnn.pad_sequence
        data = [
            SimpleNamespace(
                batch={"prompts": pad(prompts, batch_first=True)[i], "responses": pad(responses, batch_first=True)[i]},
                non_tensor_batch={
                    **asked,
                    PROBLEM: np.str_(asked[PROBLEM]),
                    "tool_extra_fields": one.extra_fields,
                    "prompt_len": np.int64(len(one.prompt_ids)),
                    "response_len": np.int64(len(one.response_ids)),
                },
            )
            for i, one in enumerate(found)
        ]
        answer: dict[str, Any] = await manager.run_single(data)  # type: ignore[arg-type]
        return answer

    def rows(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Those of a step, all sampled at the same time."""

        async def all_of_them() -> list[list[dict[str, Any]]]:
            return await asyncio.gather(*(self.session(prompt, i) for prompt in prompts for i in range(self.n)))

        return [row for rows in asyncio.run(all_of_them()) for row in rows]

    def embedded(self, prompts: Sequence[Prompt], notes: list[str] | None = None) -> list[RolloutGroup]:
        """What the embedded trainer's generator makes of them."""
        environment, sampling = self.resolved.environment, self.resolved.generator.settings
        assert environment is not None
        rules = Rules(self.shared.renderer, self.shared.window, environment.settings.timeout)
        inner: Any = Generator(self.shared.renderer, sampling, self.shared.window)
        said = [] if notes is None else notes
        own = EnvironmentGenerator(inner, environment.plugin.bind(), rules, said.append)
        try:
            return own.generate(prompts, seed=0, sampling=sampling)
        finally:
            own.close()

    def groups(self, rows: Sequence[Mapping[str, Any]]) -> list[RolloutGroup]:
        """The driver's."""
        return [
            rollout_group([rows[i] for i in numbers], self.shared.renderer, max_tokens=LONGEST)
            for numbers in grouped(rows)
        ]


TALKS = [talk("a"), talk("bb"), talk("ccc")]
SEGMENTS = {"name": "tests.rollout.test_environments:Thinks", "turns": 3}
CASES = {
    "turns": ({"name": f"{HERE}:asks", "turns": 3}, None),
    "cut": ({"name": f"{HERE}:asks", "turns": 30}, None),
    "segments": (SEGMENTS, FORGETS),
    "begins anew": (f"{HERE}:Shortens", None),
}


@pytest.mark.parametrize("case", CASES)
def test_rows_are_the_embedded_trainers_rollouts(tmp_path: Path, case: str) -> None:
    environment, template = CASES[case]
    side = Side(tmp_path, environment, template=template)
    rows, expected = side.rows(TALKS), side.embedded(TALKS)
    assert side.groups(rows) == expected
    rollouts = [r for group in expected for r in group.rollouts]
    assert all(r.outcome is not None and not r.failed and r.outcome.turns > 1 for r in rollouts)
    assert len(rows) == sum(len(r.segments) for r in rollouts)
    several = {"segments", "begins anew"}
    assert (len(rows) > len(rollouts)) == (case in several) and (case != "cut" or rollouts[0].finish_reason == "length")
    placed = iter(rows)
    for rollout in rollouts:
        for segment in rollout.segments:
            row = next(placed)
            sampled = list(segment.sampled_mask or [True] * len(segment.completion_ids))
            assert row["prompts"].tolist() == list(segment.prompt_ids)
            assert row["responses"].tolist() == list(segment.completion_ids)
            assert row["response_mask"].tolist() == list(map(int, sampled))
            assert row["rollout_log_probs"].tolist() == pytest.approx(list(segment.rollout_logprobs))
            assert row["rm_scores"].sum() == pytest.approx(row["extra_fields"]["reward_extra_info"]["environment"] + 0.1 * (
                row["extra_fields"]["reward_extra_info"]["tests.runs:length_reward"]))  # fmt: skip
    sessions = {segment_of(row).session for row in rows}  # type: ignore[union-attr]
    assert len(sessions) == len(rollouts) and {asked["session"] for asked in side.servers.asked} == sessions
    assert all(row["extra_fields"]["min_global_steps"] < row["extra_fields"]["max_global_steps"] for row in rows)


@pytest.mark.parametrize("case", ["turns", "segments"])
def test_examples_metrics_and_batches_are_the_embedded_trainers(tmp_path: Path, case: str) -> None:
    environment, template = CASES[case]
    side = Side(tmp_path, environment, template=template)
    rows, renderer = side.rows([*TALKS, talk("bad", fault="raises")]), side.shared.renderer
    expected = [*side.embedded(TALKS), side.groups(rows)[-1]]
    assert all(rollout.failed for rollout in expected[-1].rollouts)
    scored = local_scorer(side.resolved, renderer).score(expected)
    limit: Any = {"max_teacher_prompt_tokens": 400}
    theirs, metrics = build_annotator(side.resolved, renderer, queries=None, **limit).annotate(scored, version=0)
    mixed = [*rows[1::2], *rows[::2]]
    found, told = RowAnnotator(side.resolved, renderer, **limit).annotate(mixed)
    again = dict(zip((id(row) for row in mixed), found, strict=True))
    in_order = [again[id(row)] for row in rows]
    assert [e is None for e in in_order] == [has_failed(row) for row in rows] and in_order[-1] is None
    kept = [e for e in in_order if e is not None]
    # groups are numbered as they are met
    assert [replace(e, group_id=0) for e in kept] == [replace(e, group_id=0) for e in theirs]
    assert told == pytest.approx(metrics) and told["environment/failed"] == told["rollout/not_graded"] == 0.25
    assert {e.advantage for e in kept} != {0.0} and {"teacher", "told"} == {
        c for e in kept for c in e.teacher_prompt_ids
    }
    assert (told["environment/segments"] > 1) == (case == "segments")
    names = {"contexts": ("teacher", "told"), "terms": side.resolved.term_names, "spans": ()}
    ours = train_batch(as_data(rows, in_order, **names), **names)
    theirs_batch = collate(theirs, contexts=names["contexts"], routes=names["terms"], spans=())
    real = [i for i, e in enumerate(in_order) if e is not None]
    width = theirs_batch.completion_ids.shape[1]
    for f in fields(theirs_batch):
        one, other = getattr(theirs_batch, f.name), getattr(ours, f.name)
        for a, b in (
            []
            if f.name == "examples"
            else [(one[n], other[n]) for n in one]
            if isinstance(one, dict)
            else [(one, other)]
        ):
            b = b[real]
            torch.testing.assert_close(b[:, :width] if b.dim() > 1 else b, a)
    assert not ours.sampled_mask[-1].any() and not ours.routes[names["terms"][0]][-1].any()


def as_data(rows: Sequence[Mapping[str, Any]], examples: Sequence[Any], **names: Any) -> TensorDict:
    """A micro-batch as a worker gets it."""
    mine = columns(examples, [len(row["responses"]) for row in rows], **names)
    masks = [row["response_mask"] for row in rows]
    given = {
        "responses": [row["responses"] for row in rows],
        "response_mask": masks,
        "rollout_log_probs": [row["rollout_log_probs"] for row in rows],
        "advantages": [m.float() * (e.advantage if e else 0.0) for e, m in zip(examples, masks, strict=True)],
        **mine,
    }
    return TensorDict(
        {n: torch.nested.as_nested_tensor(r, layout=torch.jagged) for n, r in given.items()}, batch_size=len(rows)
    )


FAULTS = {
    "raises": "KeyError: 'no such tool'",
    "exits": "SystemExit: 3",
    "waits": "it said nothing for 2 seconds",
    "will_not_end": "it said nothing for 2 seconds",
    "computes": "it held its thread for 2 seconds",
    "sleeps": "it held its thread for 2 seconds",
    "forgets_the_problem": "EpisodeError: the environment's conversation does not begin with the problem's messages",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_costs_its_own_rollouts(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onpolicy.rollout.hold.CANCEL_SECONDS", 0.5)
    side = Side(tmp_path, {"name": f"{HERE}:asks", "timeout": 2.0}, n=1)
    rows = side.rows([TALKS[0], talk("bad", fault=fault), TALKS[1]])
    first, bad, last = side.groups(rows)
    assert [first, last] == side.embedded(TALKS[:2])
    (lost,) = bad.rollouts
    assert lost.outcome is not None and lost.outcome.failure == FAULTS[fault] and lost.finish_reason == "abort"
    row = rows[1]
    assert row["response_mask"].tolist() == [0] and len(row["prompts"]) == 1 and row["rm_scores"].tolist() == [0.0]
    told = row["extra_fields"]["reward_extra_info"]
    assert told["environment"] is None and told["environment/failed"] == 1.0
    assert row["extra_fields"]["min_global_steps"] >= 0
    capsys.readouterr()
    found, metrics = RowAnnotator(side.resolved, side.shared.renderer, max_teacher_prompt_tokens=400).annotate(rows)
    assert [e is None for e in found] == [False, True, False]
    assert metrics["environment/failed"] == pytest.approx(1 / 3) and metrics["rollout/aborted"] == pytest.approx(1 / 3)
    assert f"environment: 1 of 3 rollouts failed and are left out: {FAULTS[fault]} (1)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ("Silent", "EpisodeError: the environment answered with no text"),
        ("NeverAsks", "it never asked the student"),
        ("AsksTwice", "EpisodeError: the environment asked for two replies at a time"),
    ],
)
def test_where_all_fail_the_run_ends_with_the_reasons(tmp_path: Path, environment: str, reason: str) -> None:
    side = Side(tmp_path, f"{HERE}:{environment}")
    rows = side.rows(TALKS)
    assert all(row["extra_fields"]["min_global_steps"] >= 0 for row in rows)
    with pytest.raises(EnvironmentBroken, match=f"all 6 rollouts failed: {reason}"):
        RowAnnotator(side.resolved, side.shared.renderer, max_teacher_prompt_tokens=400).annotate(rows)


def test_without_room_for_a_reply_the_rollout_is_lost(tmp_path: Path) -> None:
    """The problem itself has none; what is cut later is graded (above)."""
    long = Prompt(id="long", messages=({"role": "user", "content": "x" * 400},), interactive=True)
    side = Side(tmp_path, {"name": f"{HERE}:asks"}, n=1)
    (lost,) = side.groups(side.rows([long]))[0].rollouts
    assert lost.failed and lost.outcome is not None and lost.outcome.failure == "it never asked the student"
    with pytest.raises(EnvironmentBroken, match="it never asked the student"):
        side.embedded([long])


def test_a_rollout_is_there_when_nothing_is_sampled_for_it_any_more(tmp_path: Path) -> None:
    """Whoever has it may put the servers to sleep; this environment does not wait for its second reply."""
    side = Side(tmp_path, f"{HERE}:GivesUpLater", n=1)
    side.servers.pause = 1.0

    async def one() -> int:
        await side.session(TALKS[0], 0)
        return side.servers.under_way

    assert asyncio.run(one()) == 0 and len(side.servers.asked) == 2


def test_a_problem_that_is_not_interactive_has_one_turn(tmp_path: Path) -> None:
    side = Side(tmp_path, {"name": f"{HERE}:asks"}, n=1)
    rows = side.rows([replace(TALKS[0], interactive=False), TALKS[1]])
    plain, talked = (group.rollouts[0] for group in side.groups(rows))
    assert plain.outcome is None and all(plain.sampled_mask or [True]) and plain.finish_reason == "stop"
    assert CONVERSATION not in rows[0]["extra_fields"] and talked.outcome is not None and talked.outcome.turns == 2


def test_a_server_that_gives_nothing_is_no_ones_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """verl is told of it, whose affair its servers are."""
    side = Side(tmp_path, {"name": f"{HERE}:asks"}, n=1)

    async def nothing(self: Servers, request_id: str, **named: Any) -> TokenOutput:
        return TokenOutput(token_ids=[], log_probs=[], stop_reason="aborted")

    monkeypatch.setattr(Servers, "generate", nothing)
    with pytest.raises(RuntimeError, match=r"verl's server sampled nothing for 'a#0\.0': aborted"):
        side.rows(TALKS[:1])


def test_problems_go_into_a_file_and_come_out_as_they_were(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_problems_of(tmp_path, faults={"p1": "raises"}, problems=3)
    assert f"{path}: 3 problems, 3 of them conversations with the environment" in capsys.readouterr().out
    rows = pq.read_table(path).to_pylist()
    asked_of = [talk("p0"), talk("p1", fault="raises"), talk("p2")]
    expected = [
        replace(p, fields={**p.fields, "problem_id": p.id}) for p in asked_of
    ]  # as the embedded trainer has them
    assert [problem_from_json(row[PROBLEM]) for row in rows] == expected
    assert rows[1]["prompt"] == [{"role": "user", "content": "Question p1?"}] and rows[2]["extra_info"] == {"index": 2}
    called = {
        "type": "function",
        "function": {"name": "get", "parameters": {"properties": {"key": {"enum": ["a", 1]}}}},
    }
    asked: Any = {"role": "user", "content": "Value of ä?", "tools": [called]}
    prompt = Prompt(
        id="x/1",
        messages=({"role": "system", "content": ""}, asked),
        fields={"answer": "4", "row": {"info": {"n": 1.5, "none": None}, "list": [1, "2", [True]]}},
        completion_prefix_ids=(4, 5),
        max_tokens=9,
        interactive=True,
    )
    assert problem_from_json(problem_as_json("data", prompt)) == prompt
    for field, value in {"image": b"png", "names": {1: "one"}, "score": float("nan")}.items():
        with pytest.raises(DataError, match=rf"data: problem 'x/1' has under fields\.{field} what JSON cannot hold"):
            problem_as_json("data", replace(prompt, fields={field: value}))


def test_a_set_for_evaluation_is_written_by_its_name(tmp_path: Path) -> None:
    write_problems_of(tmp_path)
    write_problems(tmp_path / "embedded.yaml", [], tmp_path / "two.parquet", "two")
    assert len(pq.read_table(tmp_path / "two.parquet")) == 2
    with pytest.raises(
        ConfigError, match=r"--set: 'tow' is not under eval.sets, expected one of two. Did you mean 'two'\?"
    ):
        write_problems(tmp_path / "embedded.yaml", [], tmp_path / "two.parquet", "tow")


def test_check_makes_the_environment_and_looks_for_its_problems(tmp_path: Path) -> None:
    own, fine = write_problems_of(tmp_path), words(tmp_path)
    given = [*fine, f"data.train_files={own}", f"data.val_files=[{own}]"]
    config = check(write_method(tmp_path, {"name": f"{HERE}:asks", "turns": 3}), given)
    assert config.onpolicy.environment.turns == 3
    with pytest.raises(ConfigError) as caught:  # verl's own rows
        check(tmp_path / "method.yaml", fine)
    assert [p.partition(":")[0] for p in caught.value.problems] == ["data.train_files", "data.val_files"]
    assert f"has no column {PROBLEM!r}, from which onpolicy.environment knows its problems" in str(caught.value)
    with pytest.raises(ConfigError, match=r"onpolicy.environment: '.*breaks' cannot be made: KeyError: 'no server'"):
        check(write_method(tmp_path, "tests.integrations.verl.test_environment_agent:breaks"), given)
    with pytest.raises(ConfigError, match=r"environment\.name: "):
        check(write_method(tmp_path, "no_such"), given)
    table = pq.read_table(own)
    pq.write_table(table.append_column("agent_name", [["tool_agent"] * len(table)]), tmp_path / "agents.parquet")
    plain = [problem_as_json("data", replace(talk("p"), interactive=False))] * len(table)
    pq.write_table(table.drop_columns([PROBLEM]).append_column(PROBLEM, [plain]), tmp_path / "plain.parquet")
    others = [*fine, f"data.train_files={tmp_path / 'agents.parquet'}", f"data.val_files={tmp_path / 'plain.parquet'}"]
    with pytest.raises(ConfigError) as caught:
        check(write_method(tmp_path, f"{HERE}:asks"), others)
    first, second = caught.value.problems
    assert "'agent_name', by which verl would run agent loops of its own" in first
    assert "has no problem that an environment takes part in" in second


def test_the_configs_of_page_and_example_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As far as they do without the library, of which both `check` and `data` say how it is installed."""
    page = (ROOT / "docs" / "environments.md").read_text().partition("## On verl")[2]
    (tmp_path / "page.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    given = words(tmp_path)
    needed = [
        word
        for word in given
        if word.split("=")[0] in ("data.train_files", "data.val_files", "actor_rollout_ref.model.path")
    ]
    for path in (tmp_path / "page.yaml", ROOT / "examples" / "lookup_on_verl.yaml"):
        config = compose(path, needed)
        resolved = method(config)
        embedded = yaml.safe_load((ROOT / "examples" / "lookup.yaml").read_text())
        assert config.onpolicy == {name: embedded[name] for name in ("environment", "rewards", "objective")}
        assert resolved.generator.settings.max_tokens == embedded["generator"]["max_tokens"]
        assert resolved.generator.settings.group_size == embedded["generator"]["group_size"]
        assert config.data.train_batch_size == config.actor_rollout_ref.actor.ppo_mini_batch_size
    if importlib.util.find_spec("verifiers") is None:
        with pytest.raises(
            ConfigError, match=r"onpolicy\.environment: needs the package verifiers, which is not installed: pip"
        ):
            check(path, needed)
        assert (
            main(["verl", "data", "examples/lookup.yaml", "--output", str(tmp_path / "x.parquet"), "model.path=x"]) == 2
        )
        assert "data: needs the package verifiers" in capsys.readouterr().err


def breaks() -> Any:
    raise KeyError("no server")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent", "default_agent_loop: got 'tool_agent', which has no effect"),
        ("distillation.enabled=true", "onpolicy.environment: a served teacher scores the last segment of a conversation alone"),
        ("+onpolicy.environment.timeout=0", "environment.timeout: got 0"),
        ("+onpolicy.environment.turnz=1", "turnz"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(tmp_path: Path, override: str, expected: str) -> None:
    path = write_method(tmp_path, {"name": f"{HERE}:asks"})
    config = compose(path, words(tmp_path))
    prepare(config, method(config), "sync")
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == ENVIRONMENT
    with pytest.raises(ConfigError, match=re.escape(expected)):
        method(compose(path, [*words(tmp_path), override]))


class Counted:
    """verl's part of a trainer."""

    def _balance_batch(self, batch: Any) -> int:
        return self._get_required_batch_multiple(2)

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        return dp_size * 100


class OurTrainer(UpdatesOfPrompts, Counted):
    def __init__(self, config: Any, resolved: ResolvedConfig) -> None:
        self.config, self.resolved = config, resolved


def test_a_step_has_as_many_updates_as_its_prompts_make(tmp_path: Path) -> None:
    config = compose(write_method(tmp_path, {"name": f"{HERE}:asks"}), words(tmp_path))
    resolved = method(config)
    trainer = OurTrainer(config, resolved)
    for prompts, updates in ((4, 1), (8, 2)):  # of mini-batches of four prompts
        keys = [f"{uid}_{session}_{k}" for uid in range(prompts) for session in range(2) for k in range(3)]
        assert trainer._balance_batch(SimpleNamespace(keys=keys)) == 2 * updates  # type: ignore[arg-type]
        assert trainer._is_one_update(len(keys)) == (updates == 1)
        assert trainer._layout(len(keys)).updates == updates
    without = OurTrainer(config, replace(resolved, environment=None))
    assert without._balance_batch(SimpleNamespace(keys=keys)) == 200
    assert without._is_one_update(8) and not without._is_one_update(9) and without._layout(16).updates == 2
