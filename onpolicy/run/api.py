"""The Python interface: what the commands do, with values instead of files and exceptions instead of exit codes.

``onpolicy.train`` and the other names of ``onpolicy`` lead here (docs/python.md). An error that is meant for users is a
``UserError`` with the text that the command line prints.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.config.load import ConfigSource, load
from onpolicy.config.registry import options_of
from onpolicy.config.resolve import load_resolved, resolve
from onpolicy.config.schema import SHARED_FIELDS, Config
from onpolicy.data import sources
from onpolicy.losses.objective import Objective
from onpolicy.run.check_run import check_run
from onpolicy.run.evaluate_command import run_evaluation
from onpolicy.run.launch import TrainResult, run_training
from onpolicy.run.run_dir import default_folder
from onpolicy.trainer import build as trainer_build
from onpolicy.types import Metrics
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError

Rows = Iterable[Mapping[str, Any]]
"""Problems as dictionaries with the usual columns; a ``datasets.Dataset`` is one."""
RewardSource = Callable[..., Any] | str | Mapping[str, Any]
"""A function, a ``functools.partial`` of one, or an entry as it stands under ``rewards`` in a config."""


def train(
    config: ConfigSource,
    overrides: Sequence[str] = (),
    *,
    data: Rows | None = None,
    rewards: Sequence[RewardSource] | None = None,
) -> TrainResult:
    """Trains as ``onpolicy train`` does; with the ``run_dir`` of an earlier run it resumes that run.

    Args:
        config: name, file, mapping or config
        overrides: ``key=value``
        data: problems to train on instead of the config's source; they are written into the run folder
        rewards: instead of the config's; the first one decides which answers are correct, unless ``correctness`` names another

    Raises:
        UserError: what the command line would print.
    """
    name, settings = _named(config), _with_rewards(load(config, overrides), rewards)
    if data is not None:
        folder = Path(settings.run_dir) if settings.run_dir else default_folder(name)
        source = _written(data, folder / "data.jsonl", settings.data, "data")
        settings = dataclasses.replace(settings, run_dir=str(folder), data=source)
    return run_training(check_run(settings), name)


def evaluate(
    config: ConfigSource,
    overrides: Sequence[str] = (),
    *,
    sets: Mapping[str, Rows] | None = None,
    rewards: Sequence[RewardSource] | None = None,
) -> Metrics:
    """Evaluates as ``onpolicy eval`` does, and returns every metric, e.g. ``eval/<set>/avg@4``.

    Args:
        config: name, file, mapping or config; ``model.path`` is the model
        overrides: ``key=value``
        sets: name -> problems, instead of those under ``eval.sets``; they are written into the folder of the evaluation
        rewards: instead of the config's; the first one decides which answers are correct

    Raises:
        UserError: what the command line would print.
    """
    name, settings = _named(config), _with_rewards(load(config, overrides), rewards)
    if sets is not None:
        folder = Path(settings.run_dir) if settings.run_dir else default_folder(name.with_name(f"eval-{name.name}"))
        written = {
            key: _written(rows, folder / "sets" / f"{key}.jsonl", {}, f"sets[{key!r}]") for key, rows in sets.items()
        }
        settings = dataclasses.replace(
            settings,
            run_dir=str(folder),
            eval=dataclasses.replace(settings.eval, sets=written),
            data=settings.data if settings.data.get("name") else next(iter(written.values())),  # a config needs some
        )
    return run_evaluation(resolve(settings), name)[1]


def build_objective(config: ConfigSource, overrides: Sequence[str] = ()) -> Objective:
    """The loss of a config: its terms with their divergences, targets, token weights and denominators.

    Raises:
        ConfigError: with every problem of the config.
    """
    return trainer_build.build_objective(load_resolved(config, overrides))


def _named(config: ConfigSource) -> Path:
    """What names the run folder, and is printed."""
    return Path(config) if isinstance(config, str | Path) else Path("python")


def _with_rewards(config: Config, rewards: Sequence[RewardSource] | None) -> Config:
    if rewards is None:
        return config
    return dataclasses.replace(config, rewards=[_reward(source) for source in rewards])


def _reward(source: RewardSource) -> str | dict[str, Any]:
    """The entry under ``rewards`` that finds the function again, here and in other processes."""
    if isinstance(source, str | Mapping):
        return source if isinstance(source, str) else dict(source)
    options: dict[str, Any] = {}
    function: Callable[..., Any] = source
    if isinstance(source, functools.partial):
        function, options = source.func, dict(source.keywords)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or getattr(sys.modules.get(module), name, None) is not function:
        raise ConfigError(
            f"rewards: got {source!r}, expected a function that its module, or the notebook, holds under its own name; "
            "lambdas, methods and functions inside functions cannot be found again when the run is resumed"
        )
    return {"name": f"{module}:{name}", **options}


def _written(rows: Rows, path: Path, settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A data section that reads the rows from a file of the run, so that the run can be resumed and traced.

    Raises:
        ConfigError: the file exists with other rows, or a row is no mapping of JSON values.
    """
    try:
        text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: expected rows as dictionaries of JSON values: {error}") from error
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{key}: the rows differ from those in {str(path)!r}; give the same rows, or another run_dir")
    atomic_write(path, text)
    known = {field.name for field in dataclasses.fields(SHARED_FIELDS["data"])} | set(options_of(sources.file))
    return {**{k: v for k, v in settings.items() if k in known}, "name": "file", "path": str(path)}
