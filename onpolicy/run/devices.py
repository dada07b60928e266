"""``trainer.devices``: several devices of this machine by one command, a rank on each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy.config.load import ConfigSource, load
from onpolicy.config.resolve import resolve
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import ALL_DEVICES
from onpolicy.distributed.env import launched
from onpolicy.run.run_dir import default_folder
from onpolicy.utils.errors import ConfigError

SHARDED = ("trainer.name=deepspeed", "trainer.config=deepspeed/zero3")
"""What trains on several devices, where the config names a trainer of one process."""


def num_devices(resolved: ResolvedConfig) -> int:
    """Devices of this machine on which a run trains; without a GPU, processes.

    Raises:
        ConfigError: there are fewer GPUs.
    """
    import torch

    asked, there = resolved.trainer.settings.devices, torch.cuda.device_count()
    if asked == ALL_DEVICES:
        return max(there, 1)
    if there and int(asked) > there:
        raise ConfigError(
            f"trainer.devices: got {asked}, expected at most {there}, the GPUs of this machine, or {ALL_DEVICES}"
        )
    return int(asked)


def for_ranks(source: ConfigSource, overrides: Sequence[str]) -> tuple[list[str], int]:
    """What each rank of a run is started with, and how many there are.

    Returns:
        the overrides, and 1 where nothing is to be started: the run has one device, this is one of the ranks already, or the config has
        problems, all of which the run's own check says

    Raises:
        ConfigError: there are fewer GPUs, or the sharded trainer cannot have what the config says.
    """
    if launched():
        return list(overrides), 1
    try:
        resolved = resolve(load(source, overrides))
    except ConfigError:
        return list(overrides), 1
    size = num_devices(resolved)
    if size == 1:
        return list(overrides), 1
    overrides = _sharded(resolved, overrides)
    resolve(load(source, overrides))
    if resolved.config.run_dir is None:  # one folder, whichever rank asks and however often they are started
        overrides = [*overrides, f"run_dir={default_folder(Path(str(source)))}"]
    return list(overrides), size


def foreseen_ranks(source: ConfigSource, overrides: Sequence[str], ranks: int) -> tuple[list[str], int]:
    """As ``for_ranks``, for a machine that is not this one.

    Args:
        source: the config
        overrides: ``key=value``
        ranks: of that machine, where the config does not say
    """
    resolved = resolve(load(source, overrides))
    asked = resolved.trainer.settings.devices
    size = ranks if asked == ALL_DEVICES else max(ranks, int(asked))
    return (_sharded(resolved, overrides) if size > 1 and asked != "1" else list(overrides)), size


def _sharded(resolved: ResolvedConfig, overrides: Sequence[str]) -> list[str]:
    several = getattr(resolved.trainer.plugin.function, "on_several_ranks", False)
    return [*overrides] if several else [*overrides, *SHARDED]


def refuse_devices_without_ranks(resolved: ResolvedConfig) -> None:
    """Raises ConfigError where a run of several devices was not started by the command that starts its ranks."""
    if not launched() and num_devices(resolved) > 1:
        raise ConfigError(
            f"trainer.devices: {resolved.trainer.settings.devices} needs processes of their own, which `onpolicy train` starts; "
            "got a call in one process"
        )


def unused_devices(resolved: ResolvedConfig) -> str:
    """One line where a run leaves GPUs of this machine idle; empty where it does not."""
    import torch

    roles = resolved.config.distributed
    there = torch.cuda.device_count()
    if there < 2 or launched() or roles.num_trainers or roles.num_generators:
        return ""
    return f"uses 1 of the {there} GPUs of this machine; trainer.devices={ALL_DEVICES} uses them all"
