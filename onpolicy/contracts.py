"""What a plug-in must keep to, as checks that run on toy inputs: for our built-ins, and for a user's own function.

    from onpolicy.contracts import check_divergence
    check_divergence(my_divergence)          # raises ContractError and says which rule is broken

``onpolicy check`` runs them on every divergence, support and term that a config names.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor

from onpolicy.annotation.routes import share_of
from onpolicy.config.load import ConfigSource, load
from onpolicy.config.problems import Problems, collected
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.losses.comparison import Distributions
from onpolicy.losses.supports import Entries, restrict
from onpolicy.rewards.base import RewardInput, name_of, score
from onpolicy.types import AskModel, LossInputs, Prompt, Reply, Rollout, RolloutGroup, TeacherScores, TermOutput
from onpolicy.utils.errors import ConfigError


class ContractError(ConfigError):
    """A plug-in breaks a rule that the framework relies on."""


def check_divergence(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``[B, T, K]`` twice -> ``[B, T]``, finite, 0 at equality, with a gradient to the student."""
    student, teacher = _distributions()
    value = _call("divergence", function, student, teacher)
    _require(
        isinstance(value, Tensor) and value.shape == student.shape[:-1],
        function,
        "must return one number per token, [B, T]",
    )
    _require(bool(value.isfinite().all()), function, "must be finite")
    same = _call("divergence", function, student.detach(), student.detach())
    _require(
        bool(same.abs().max() < 1e-4),
        function,
        f"must be 0 where student and teacher agree, got {float(same.abs().max()):.3g}",
    )
    _require(value.requires_grad, function, "must carry a gradient to the student")


def check_support(function: Callable[[Tensor, Tensor], Entries]) -> None:
    """``[B, T, V]`` twice -> entries ``[B, T, k]`` on which both sum to one."""
    student, teacher = _distributions()
    entries = _call("support", function, student, teacher)
    _require(isinstance(entries, Entries), function, "must return onpolicy.losses.supports.Entries")
    if entries.ids is not None:
        right_shape = entries.ids.dim() == 3 and entries.ids.shape[:2] == student.shape[:2]
        _require(right_shape, function, "must choose the same number of entries for each token, [B, T, k]")
        ordered = entries.ids.sort(-1).values
        once = (
            bool((ordered[..., 1:] != ordered[..., :-1]).all())
            and ordered.min() >= 0
            and ordered.max() < student.shape[-1]
        )
        _require(bool(once), function, "must choose ids of the vocabulary, each once")
    for side, logprobs in (("student", student), ("teacher", teacher)):
        total = restrict(logprobs, entries).exp().sum(-1)
        _require(
            bool((total - 1).abs().max() < 1e-4),
            function,
            f"the {side}'s probabilities must sum to one, got {total.flatten()[0].item():.4f}",
        )


def check_target(function: Callable[[Tensor, Distributions], Tensor]) -> None:
    """``[B, T, V]`` and all distributions -> ``[B, T, V]`` that sums to one."""
    student, teacher = _distributions()
    seen = Distributions(
        student.detach(), AnyName(lambda: teacher.roll(1, -1)), student.detach().roll(2, -1), torch.zeros(2, 3, dtype=torch.long),
        AnyName(lambda: torch.tensor([1, 4])),
    )  # fmt: skip
    target = _call("target", function, teacher, seen)
    right_shape = isinstance(target, Tensor) and target.shape == teacher.shape
    _require(right_shape, function, "must return one distribution per token, [B, T, V]")
    total = target.exp().sum(-1)
    _require(
        bool((total - 1).abs().max() < 1e-4),
        function,
        f"its probabilities must sum to one, got {total.flatten()[0].item():.4f}",
    )


def check_term(function: Callable[..., TermOutput]) -> None:
    """LossInputs -> TermOutput with one number per token, not masked, summed or divided."""
    inputs = _loss_inputs()
    output = _call("term", function, inputs)
    _require(isinstance(output, TermOutput), function, f"must return a TermOutput, got {type(output).__name__}")
    _require(
        output.per_token.shape == inputs.logprobs.shape, function, "per_token must have one number per token, [B, T]"
    )
    _require(output.per_token.requires_grad, function, "per_token must carry a gradient to the student")
    for name, values in output.metrics.items():
        _require(
            values.shape == inputs.logprobs.shape, function, f"metric {name!r} must have one number per token, [B, T]"
        )


def check_reward(function: Callable[..., Any], sample: RewardInput | None = None) -> None:
    """Anything ``onpolicy.rewards.base`` can call, giving a number or None for each sample."""
    sample = sample or RewardInput(
        id="contract rollout 0", prompt=[{"role": "user", "content": "2 + 2?"}], completion="#### 4", final="#### 4",
        num_tokens=4, answer="4", fields={"answer": "4", "data_source": "contract", "extra_info": {}},
    )  # fmt: skip
    values = score(function, [sample, sample])
    _require(len(values) == 2, function, "must give one value per sample")


def check_context(function: Callable[..., Any]) -> None:
    """(group, index, rewards) -> messages that end with the user's turn, or with what the assistant's turn begins with; or None."""
    group = _group(2)
    for rewards in ([0.0, 0.0], [1.0, 1.0], [1.0, 0.0]):
        for index in range(2):
            messages = _answered(_call("context", function, group, index, rewards), group.prompt)
            if messages is None:
                continue
            good = all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages)
            _require(bool(messages) and good, function, "must return messages with a role and a content")
            _require(
                messages[-1]["role"] == "user" or (messages[-1]["role"] == "assistant" and len(messages) > 1),
                function,
                "must end with the user's turn, or with what the assistant's turn after it begins with: the completion is the assistant's",
            )


def _group(size: int) -> RolloutGroup:
    """A problem and so many equal rollouts."""
    prompt = Prompt(
        id="contract",
        messages=({"role": "user", "content": "2 + 2?"},),
        fields={"answer": "4", "solution": "2 + 2 = 4"},
    )
    rollout = Rollout(
        prompt_ids=(1,), completion_ids=(2,), rollout_logprobs=(-1.0,), text="4", finish_reason="stop", policy_version=0
    )
    return RolloutGroup(prompt=prompt, rollouts=(rollout,) * size)


def _answered(result: Any, prompt: Prompt) -> Any:
    """The end of a context that asks, each request answered with the next best thing."""
    if not isinstance(result, GeneratorType):
        return result
    reply: Any = None
    try:
        while True:
            request = result.send(reply)
            reply = (Reply("4", 1.0, "4"),) * request.samples if isinstance(request, AskModel) else prompt
    except StopIteration as stop:
        return stop.value


def check_route(function: Callable[..., float]) -> None:
    """(scores of the group, index), and rollouts or is_privileged where it has such parameters, -> a share between 0 and 1."""
    for scores in ([1.0, 0.0, 0.5], [1.0], [0.0, 0.0]):
        share = _call("route", functools.partial(share_of, function), scores, 0, _group(len(scores)).rollouts)
        _require(
            isinstance(share, int | float) and 0.0 <= share <= 1.0,
            function,
            f"must give a share from 0 to 1, got {share!r}",
        )


def check_credit(function: Callable[[Sequence[float]], Sequence[float]]) -> None:
    """One advantage per reward; none where all rewards are equal."""
    for rewards in ([1.0, 0.0, 0.5], [1.0]):
        _require(
            len(_call("credit", function, rewards)) == len(rewards), function, "must give one advantage per reward"
        )
    _require(max(map(abs, function([1.0, 1.0]))) < 1e-6, function, "must give 0 where all rewards are equal")


def check_advantage(function: Callable[..., Tensor]) -> None:
    """LossInputs -> advantages [B, T], finite, without gradient."""
    inputs = _loss_inputs()
    advantages = _call("advantage", function, inputs)
    right_shape = isinstance(advantages, Tensor) and advantages.shape == inputs.logprobs.shape
    _require(right_shape, function, "must return one number per token, [B, T]")
    _require(bool(advantages.isfinite().all()), function, "must be finite")
    _require(not advantages.requires_grad, function, "must carry no gradient")


def check_token_weights(function: Callable[..., Tensor]) -> None:
    """(LossInputs, mask [B, T]) -> weights [B, T], finite and not negative, without gradient."""
    inputs = _loss_inputs()
    weights = _call("token_weights", function, inputs, inputs.sampled_mask)
    _require(
        isinstance(weights, Tensor) and weights.shape == inputs.logprobs.shape,
        function,
        "must return one weight per token, [B, T]",
    )
    _require(bool(weights.isfinite().all() and (weights >= 0).all()), function, "must be finite and not negative")
    _require(not weights.requires_grad, function, "must carry no gradient")


def gives_single_rollouts_nothing(credit: Callable[[Sequence[float]], Sequence[float]]) -> bool:
    """Whether the advantage of a rollout without siblings is 0, whatever its reward."""
    return all(credit([reward])[0] == 0 for reward in (0.0, 0.5, 1.0))


def reads_siblings(context: Callable[..., Any]) -> bool:
    """Whether what a context shows for a rollout depends on the others of its group."""
    alone, group = _group(1), _group(2)
    shown = [
        [_answered(context(g, 0, rewards[: len(g.rollouts)]), g.prompt) for g in (alone, group)]
        for rewards in ([0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0])
    ]
    return any(one != other for one, other in shown)


def learns_from_advantages_alone(term: Callable[..., TermOutput]) -> bool:
    """Whether a term is 0 wherever advantages are, and not elsewhere."""
    inputs = _loss_inputs()
    some = torch.tensor([[1.0, -1.0, 0.5], [-0.5, 1.0, -1.0]])
    with_advantages, without = (
        _call("term", term, replace(inputs, advantages=values)).per_token for values in (some, torch.zeros_like(some))
    )
    return bool(with_advantages.any()) and not bool(without.any())


CHECKS: dict[str, Callable[[Callable[..., Any]], None]] = {
    "divergence": check_divergence,
    "support": check_support,
    "target": check_target,
    "token_weights": check_token_weights,
    "route": check_route,
    "advantage": check_advantage,
    "term": check_term,
    "reward": check_reward,
    "context": check_context,
    "credit": check_credit,
}


def check_config(
    source: ConfigSource, overrides: Sequence[str] = (), problems: Problems | None = None
) -> ResolvedConfig:
    """What can be checked of a config on any machine: names, keys, types, values, and the plug-ins' contracts.

    Raises:
        ConfigError: with every problem of the config, if ``problems`` is not given.
    """
    with collected(problems) as found:
        resolved = resolve(load(source, overrides, found), found)
        keep_to_contracts(resolved, found)
        return resolved


def keep_to_contracts(resolved: ResolvedConfig, problems: Problems | None = None) -> None:
    """Runs the checks on what a config names for the loss, options bound: a beta of 1 or a k of 0 is found before any model is
    loaded.

    Args:
        problems: where problems are reported; what has one already is left out

    Raises:
        ContractError: with the key of the plug-in.
    """
    with collected(problems) as found:
        for term in resolved.objective:
            if not found.sound(key := term.plugin.key):
                continue
            for kind in ("divergence", "support", "target", "token_weights", "advantage"):
                if kind in term.plugin.options:
                    _report(found, f"{key}.{kind}", CHECKS[kind], term.plugin.options[kind])
            _report(found, f"{key}.route", check_route, term.settings.route)
            if term.settings.select is not None:
                _report(found, f"{key}.select", CHECKS["token_weights"], term.settings.select.bind())
            _report(found, key, check_term, term.plugin.bind())
        _report(found, resolved.credit.key, check_credit, resolved.credit.bind())
        _report(found, resolved.teacher.key, lambda make: make(), resolved.teacher.bind())


def _report(
    problems: Problems, key: str, check: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]
) -> None:
    """A term whose divergence broke a rule is not checked itself: it would only fail for the same reason."""
    if not problems.sound(key):
        return
    try:
        check(function)
    except ValueError as error:
        problems.add(ContractError(f"{key}: {error}"))


def _distributions() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 7, generator=random).requires_grad_()
    return student.log_softmax(-1), torch.randn(2, 3, 7, generator=random).log_softmax(-1)


class AnyName(defaultdict[Any, Any]):
    """Whatever name is asked for is there."""

    def __contains__(self, name: object) -> bool:
        return True


def _loss_inputs() -> LossInputs:
    """Two rows of three tokens, with any context, comparison, lexicon and span a term may ask for."""
    random = torch.Generator().manual_seed(0)
    draw = lambda: -torch.rand(2, 3, generator=random)  # noqa: E731
    logprobs = draw().requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    contexts: Mapping[str, TeacherScores] = AnyName(
        lambda: TeacherScores(logprobs=draw(), entropy=draw().abs(), mask=mask)
    )
    return LossInputs(
        logprobs=logprobs, entropy=draw().abs(), old_logprobs=logprobs.detach(), rollout_logprobs=draw(), ref_logprobs=draw(),
        ref_entropy=draw().abs(),
        advantages=draw(), sampled_mask=mask, teacher=contexts, divergences=AnyName(lambda: draw().abs().requires_grad_()),
        marker_mass=AnyName(draw), spans=AnyName(lambda: mask),
    )  # fmt: skip


def _call(kind: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except Exception as error:
        raise ContractError(f"{kind} {name_of(function)}: {error or type(error).__name__}") from error


def _require(kept: bool, function: Callable[..., Any], rule: str) -> None:
    if not kept:
        raise ContractError(f"{name_of(function)}: {rule}")
