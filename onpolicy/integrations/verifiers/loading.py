"""Finds environments of verifiers: installed packages of them, or functions and classes by their names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

from onpolicy.utils.errors import ConfigError, first_line
from onpolicy.utils.ready import extra, installed

needs_verifiers = installed("verifiers", extra("verifiers"))
"""What a plug-in's ``ready`` is that uses verifiers."""


_shared: dict[tuple[str, str], Any] = {}
"""Environments that data was read from and that no run has taken yet."""


def load_environment(id: str, args: Mapping[str, Any] | None, *, to_run: bool = False) -> Any:
    """The environment; one that is to run is nobody else's, because it may keep locks and clients of the event loop that it runs in.

    Args:
        id: name of a package that has ``load_environment``, as verifiers installs it, or ``module:callable``
        args: what it is called with
        to_run: whether it will hold episodes, and not give its problems alone

    Raises:
        ConfigError: it cannot be imported, cannot be made, or cannot be run here.
    """
    key = id, json.dumps(dict(args or {}), sort_keys=True)
    environment = _shared.pop(key, None) or _made(*key)
    if not to_run:
        _shared[key] = environment
    return environment


def _made(id: str, args: str) -> Any:
    import verifiers as vf

    given = json.loads(args)
    try:
        if ":" in id:
            module, _, name = id.partition(":")
            environment = getattr(importlib.import_module(module), name)(**given)
        else:
            environment = vf.load_environment(id, **given)
    except Exception as error:  # an environment's own code runs here
        cause = error.__cause__ or error
        raise ConfigError(
            f"environment.id: {id!r} with args {given} cannot be made: {type(cause).__name__}: {first_line(cause)}. Expected the name of "
            "an installed package with load_environment, or 'module:callable'."
        ) from error
    if not isinstance(environment, vf.Environment):
        raise ConfigError(
            f"environment.id: {id!r} made a {type(environment).__name__}, expected a verifiers.Environment"
        )
    if environment.requires_group_rollouts:
        raise ConfigError(
            f"environment.id: the rubric of {id!r} compares the rollouts of a group, which is not supported; expected reward functions of "
            "one rollout each"
        )
    return environment
