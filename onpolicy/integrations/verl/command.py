"""``onpolicy verl``: a method's config checked, and handed to verl's own entry point."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.console import Console

from onpolicy.config.problems import collected
from onpolicy.integrations.verl.names import MODE, SECTION, STOP_FILE
from onpolicy.integrations.verl.summary import summarize_verl_run
from onpolicy.utils.errors import ConfigError, ModelError, UserError, first_line
from onpolicy.utils.signals import Stopped, on_interrupt, wait_for
from onpolicy.utils.tables import print_facts
from onpolicy.utils.terminal import plain, print_json, print_next

if TYPE_CHECKING:
    from onpolicy.config.registry import Plugin
    from onpolicy.config.resolved import ResolvedConfig
    from onpolicy.experiments.forecast.memory import Memory


DATA = "data.train_files", "data.val_files"
"""Keys that name files with problems."""


def check(path: Path, overrides: Sequence[str]) -> Any:
    """The composed config of verl, with ours checked inside; loads no model and starts no Ray.

    Raises:
        ConfigError: no verl here, or every file or key that is wrong and every combination that cannot work on verl.
    """
    quiet()
    if importlib.util.find_spec("verl") is None:
        raise ConfigError("verl is not installed here; it has an environment of its own: `make verl`, or docs/verl.md")
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from onpolicy.integrations.verl.settings import method, served

    config = compose(path, overrides)
    with collected(None) as problems:
        problems.add(*_missing_files(config))
        with problems.collect():
            resolved = (method if config.trainer.v1.trainer_mode.startswith(MODE) else served)(config, problems)
            if resolved.environment is not None:
                problems.add(*_environment_problems(config, resolved, resolved.environment.plugin))
        try:
            validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        except (AssertionError, ValueError, TypeError) as error:
            problems.add(f"{path}: verl refuses it: {error}")
    return config


def _missing_files(config: Any) -> Iterator[str]:
    """Files that do not exist, which a run would find out after minutes; verl's defaults name some."""
    for key in ("actor_rollout_ref.model.path", *DATA):
        for name in _named(config, key):
            local = name.startswith(("~", "/", ".")) or key.startswith("data.")
            if local and "://" not in name and not Path(name).expanduser().exists():
                yield f"{key}: there is no {name!r}. Give the path in the file or as an override."


def _environment_problems(config: Any, resolved: ResolvedConfig, plugin: Plugin) -> Iterator[str]:
    """What a run with an environment would find out after minutes: files without its problems, and an environment that cannot be made
    (tried where the model's tokenizer is on this machine)."""
    from onpolicy.experiments.forecast.at_hand import folder_at_hand
    from onpolicy.integrations.verl.problems import file_problems
    from onpolicy.models import load_tokenizer, student_renderer
    from onpolicy.rollout.build import environment_maker
    from onpolicy.run.check_run import not_ready

    for key in DATA:
        yield from file_problems(key, _named(config, key))
    lacking = [f"{SECTION}.{problem}" for problem in not_ready(plugin)]
    yield from lacking
    folder = None if lacking else folder_at_hand(resolved.config.model)
    if folder is None:
        return
    tokenizer = load_tokenizer(str(folder), trust_remote_code=resolved.config.model.trust_remote_code)
    make = environment_maker(plugin, student_renderer(resolved, tokenizer, str(folder)))
    try:
        make()
    except UserError:
        raise
    except Exception as error:  # a user's own code
        yield f"{SECTION}.environment: {plugin.name!r} cannot be made: {type(error).__name__}: {first_line(error)}."


def _named(config: Any, key: str) -> list[str]:
    value = OmegaConf.select(config, key)
    return [value] if isinstance(value, str) else list(value or ())


def quiet() -> None:
    """Hides verl's warnings about missing accelerators and engines, which do not concern a config."""
    os.environ.setdefault("VERL_LOGGING_LEVEL", "ERROR")
    warnings.filterwarnings("ignore", message=".* engine is not available")


def compose(path: Path, overrides: Sequence[str]) -> Any:
    """The config that hydra composes from a file and overrides."""
    from hydra import compose as composed
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise ConfigError(f"config file {str(path)!r} does not exist.")
    try:
        with initialize_config_dir(config_dir=str(path.resolve().parent), version_base=None):
            return composed(config_name=path.stem, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error


def print_check(path: Path, overrides: Sequence[str], as_json: bool) -> int:
    """Prints a summary of the run, or it and the section ``onpolicy`` as JSON.

    Raises:
        ConfigError: with every problem of the config.
    """
    with contextlib.redirect_stdout(
        sys.stderr if as_json else io.StringIO()
    ):  # verl says that its own checks have passed
        config = check(path, overrides)
        from onpolicy.integrations.verl.settings import method, served

        is_served = not config.trainer.v1.trainer_mode.startswith(MODE)
        resolved = (served if is_served else method)(config)
        memory, told = _memory(config, resolved, with_logits=is_served)
        facts = summarize_verl_run(config, resolved, served=is_served) | {"memory": told}
    if as_json:
        print_json({"summary": facts, "memory": memory, "config": OmegaConf.to_container(config.onpolicy)})
        return 0
    console = Console()
    print_facts(facts, console)
    console.print(
        f"[green]✓[/green] {plain(path)} is valid: verl composes it, and the method works on verl",
        highlight=False,
        soft_wrap=True,
    )
    print_next(["verl", "train", str(path), *overrides])
    return 0


def _memory(config: Any, resolved: ResolvedConfig, *, with_logits: bool) -> tuple[Memory | None, str]:
    """What GPUs hold, as numbers and in a line, which says why where it is not known."""
    from onpolicy.experiments.forecast.activations import NotMeasurable
    from onpolicy.integrations.verl.memory import memory_in_words, models_at_hand, verl_memory

    if with_logits:
        return None, "not estimated: verl's own losses hold the logits of a whole micro-batch"
    try:
        found = verl_memory(config, resolved, models_at_hand(config, resolved))
    except (NotMeasurable, ModelError) as error:
        return None, f"not estimated: {error}"
    return found, memory_in_words(config, found)


def train_on_verl(path: Path, overrides: Sequence[str]) -> int:
    """Checks, and then runs ``python -m verl.trainer.main_ppo``; returns its status.

    Raises:
        Stopped: the user stopped it; verl goes on from its last checkpoint.
    """
    trainer = check(path, overrides).trainer
    here = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])  # for plug-ins of the user's
    folder, name = str(path.resolve().parent), path.stem
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", folder, "--config-name", name, *overrides]
    stop_file = Path(trainer.default_local_dir) / STOP_FILE if trainer.v1.trainer_mode.startswith(MODE) else None
    if stop_file:
        stop_file.unlink(missing_ok=True)
    asked: list[None] = []
    # in a process group of its own, so that the terminal's Ctrl-C does not end it before it has saved
    with (
        on_interrupt(lambda: asked.append(None)),
        subprocess.Popen(command, env=os.environ | {"PYTHONPATH": here}, process_group=0) as process,
    ):
        status = wait_for(process, lambda: len(asked), partial(_tell, process, stop_file))
    if asked:
        resumes = () if trainer.resume_mode != "disable" else ("trainer.resume_mode=auto",)
        kept = [o for o in overrides if not (resumes and o.startswith("trainer.resume_mode="))]
        raise Stopped("verl", "train", str(path), *kept, *resumes)
    return status


def _tell(process: subprocess.Popen[bytes], stop_file: Path | None, times: int) -> None:
    """Hands on that the user asks verl to stop: first after a step, then at once.

    Args:
        process: verl's
        stop_file: our trainer looks for it after each step; None where the trainer is verl's own, which cannot save on request
        times: how often the user has asked
    """
    if stop_file is None or times > 1:
        process.send_signal(signal.SIGINT)
        return
    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.touch()
    print("stopping after this step, with a checkpoint; again to stop at once", flush=True)
