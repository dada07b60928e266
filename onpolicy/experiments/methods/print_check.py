"""``onpolicy check``: a config checked without loading a model, and what it means."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.syntax import Syntax

from onpolicy.config.canonical import canonicalize
from onpolicy.config.load import to_yaml
from onpolicy.config.registry import defaults_and
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.shipped import config_argument
from onpolicy.experiments.forecast.at_hand import forecast_at_hand
from onpolicy.experiments.methods.summary import summarize_run
from onpolicy.run.check_run import check_run
from onpolicy.trainer.forward_settings import left_to_device
from onpolicy.utils.tables import print_facts
from onpolicy.utils.terminal import plain, print_json, print_next


def print_config_check(source: Path, overrides: Sequence[str], full: bool, as_json: bool) -> None:
    """Prints a summary of the run, the whole config as YAML, or both as JSON.

    Raises:
        ConfigError: with every problem of the config.
    """
    with contextlib.redirect_stdout(sys.stderr):  # what a user's module prints is no JSON and no YAML
        resolved = check_run(source, overrides)
        lines = {} if full else summarize_run(resolved, forecast_at_hand(resolved))
    if as_json:
        print_json({"summary": lines, "config": canonicalize(resolved)})
        return
    console = Console()
    if full:
        _print_yaml(resolved, console)
    print_facts(lines, console)
    console.print(
        f"[green]✓[/green] {plain(source)} is valid: every key, name and option was found"
        + ("" if full else "; --full prints all of them"),
        highlight=False,
        soft_wrap=True,
    )
    print_next(["preview", config_argument(source), *overrides], ["train", config_argument(source), *overrides])


def _print_yaml(resolved: ResolvedConfig, console: Console) -> None:
    options = dict(defaults_and(resolved.trainer.plugin.function, resolved.trainer.plugin.options))
    chosen = "".join(f"# trainer.{name}: {what}\n" for name, what in left_to_device(options).items())
    text = to_yaml(resolved.config) + chosen
    if console.is_terminal:
        console.print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text)  # rich would fold it, and it is to be read again
