"""``onpolicy export-inspect``: a run's evaluations as logs of Inspect, for ``inspect view`` and ``inspect_ai.log.read_eval_log``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from onpolicy.config.resolve import load_resolved
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.digest import digest
from onpolicy.run.evaluation_files import ProblemResult, evaluated_steps, evaluation_folder, read_results
from onpolicy.run.loading import chosen_prompts, grading, section_prompts
from onpolicy.run.run_dir import logged
from onpolicy.types import Message, Metrics, Prompt
from onpolicy.utils.errors import ConfigError, UserError
from onpolicy.utils.ready import NotInstalled, extra, is_installed, project_version

VERDICTS: Mapping[bool | None, str] = {True: "C", False: "I", None: "N"}
"""As Inspect has them: correct, incorrect, no answer."""


def export_inspect(folder: Path, output: Path | None) -> None:
    """Writes a log for each set and step of a run's evaluations, with a sample of Inspect for each problem and each of its epochs.

    Args:
        folder: the run's
        output: folder of the logs; None: ``inspect`` in the run's

    Raises:
        UserError: Inspect is not installed, or the folder holds no evaluations.
    """
    if not is_installed("inspect_ai"):
        raise NotInstalled(
            f"export-inspect: needs the package inspect_ai, which is not installed: {extra('inspect')}, or read eval/ in the run "
            "folder, one line of JSON a problem"
        )
    if not (folder / "config.yaml").is_file() or not evaluated_steps(folder):
        raise ConfigError(
            f"{str(folder)!r} holds no evaluations of a run: expected config.yaml, and eval/step-N with a file for each set"
        )
    from inspect_ai.log import write_eval_log

    output, resolved = output or folder / "inspect", load_resolved(folder / "config.yaml")
    output.mkdir(parents=True, exist_ok=True)
    metrics = {int(row["step"]): row for row in logged(folder)}
    written = 0
    for name in resolved.eval_sets:
        prompts = _prompts(resolved, name)
        for step in evaluated_steps(folder):
            results = read_results(file := evaluation_folder(folder, step) / f"{name}.jsonl")
            if results:
                log = _log(resolved, name, step, file, list(results.values()), prompts, metrics.get(step, {}))
                write_eval_log(log, str(output / f"{name}-step-{step:06d}.eval"))
                written += 1
    print(f"{output}: {written} logs; to read them: inspect view --log-dir {output}")


def _prompts(resolved: ResolvedConfig, name: str) -> dict[str, Prompt]:
    """By digest; empty, with a line that says why, where the problems cannot be read any more."""
    section, key = resolved.eval_sets[name], f"eval.sets.{name}"
    try:
        return {digest(p): p for p in chosen_prompts(section, section_prompts(section, key), key)}
    except UserError as error:
        print(f"{key}: the log has no questions ({error})")
        return {}


def _log(
    resolved: ResolvedConfig,
    name: str,
    step: int,
    file: Path,
    results: Sequence[ProblemResult],
    prompts: Mapping[str, Prompt],
    metrics: Metrics,
) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalMetric, EvalResults, EvalScore, EvalSpec, EvalStats

    config, epochs = resolved.config, max(len(result.completions) for result in results)
    graders = [plugin.name for plugin in grading(resolved)] or ["correct"]
    ended = datetime.fromtimestamp(file.stat().st_mtime, UTC).isoformat(timespec="seconds")
    begin = f"eval/{name}/"
    shown = {n.removeprefix(begin): v for n, v in metrics.items() if n.startswith(begin)}
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=ended,
            task=f"{name} step {step}",
            dataset=EvalDataset(name=name, samples=len(results), sample_ids=[result.id for result in results]),
            model=f"onpolicy/{config.model.path}",
            config=EvalConfig(epochs=epochs),
            metadata={"step": step, "onpolicy": project_version(), "sampling": dict(vars(config.eval), sets=None)},
        ),
        results=EvalResults(
            total_samples=len(results) * epochs,
            completed_samples=sum(len(result.completions) for result in results),
            scores=[
                EvalScore(
                    name=graders[0],
                    scorer=graders[0],
                    metrics={what: EvalMetric(name=what, value=value) for what, value in shown.items()},
                )
            ],
        ),
        stats=EvalStats(started_at=ended, completed_at=ended),
        samples=[sample for r in results for sample in _samples(r, prompts.get(r.digest), graders, config.model.path)],
    )


def _samples(result: ProblemResult, prompt: Prompt | None, graders: Sequence[str], model: str) -> Iterator[Any]:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageAssistant, ModelOutput
    from inspect_ai.scorer import Score

    asked = [_message(message) for message in prompt.messages] if prompt else []
    target = "" if prompt is None or prompt.fields.get("answer") is None else str(prompt.fields["answer"])
    for i, text in enumerate(result.completions):
        verdicts = {graders[0]: result.right[i], **{name: own[i] for name, own in result.graded.items()}}
        yield EvalSample(
            id=result.id,
            epoch=i + 1,
            input=list(asked) or result.id,
            target=target,
            messages=[*asked, ChatMessageAssistant(content=text)],
            output=ModelOutput.from_content(model, text, stop_reason="max_tokens" if result.truncated[i] else "stop"),
            scores={
                name: Score(value=VERDICTS[verdict], answer=result.answers[i]) for name, verdict in verdicts.items()
            },
            metadata={"reward": result.rewards[i], "tokens": result.lengths[i]},
        )


def _message(message: Message) -> Any:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds: dict[str, Any] = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    return kinds.get(str(message["role"]), ChatMessageUser)(content=str(message["content"]))
