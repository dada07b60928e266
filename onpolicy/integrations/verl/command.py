"""``onpolicy verl``: a method's config checked, and handed to verl's own entry point."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from onpolicy.config.problems import collected
from onpolicy.utils.errors import ConfigError
from onpolicy.utils.terminal import plain


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

    from onpolicy.integrations.verl.names import MODE
    from onpolicy.integrations.verl.settings import method, served

    config = compose(path, overrides)
    with collected(None) as problems:
        problems.add(*_missing_files(config))
        with problems.collect():
            (method if config.trainer.v1.trainer_mode.startswith(MODE) else served)(config, problems)
        try:
            validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        except (AssertionError, ValueError, TypeError) as error:
            problems.add(f"{path}: verl refuses it: {error}")
    return config


def _missing_files(config: Any) -> Iterator[str]:
    """Files that do not exist, which a run would find out after minutes; verl's defaults name some."""
    for key in ("actor_rollout_ref.model.path", "data.train_files", "data.val_files"):
        value = OmegaConf.select(config, key)
        for name in [value] if isinstance(value, str) else value or ():
            local = name.startswith(("~", "/", ".")) or key.startswith("data.")
            if local and "://" not in name and not Path(name).expanduser().exists():
                yield f"{key}: there is no {name!r}. Give the path in the file or as an override."


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


def print_check(path: Path, overrides: Sequence[str]) -> int:
    from rich.console import Console

    config = check(path, overrides)
    console = Console()
    console.print(plain(OmegaConf.to_yaml(config.onpolicy)), highlight=False)
    console.print(
        f"[green]✓[/green] {plain(path)} is valid: verl composes it, and the method works on verl", highlight=False
    )
    return 0


def train_on_verl(path: Path, overrides: Sequence[str]) -> int:
    """Checks, and then runs ``python -m verl.trainer.main_ppo``; returns its status."""
    check(path, overrides)
    here = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])  # for plug-ins of the user's
    folder, name = str(path.resolve().parent), path.stem
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", folder, "--config-name", name, *overrides]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": here}, check=False).returncode
