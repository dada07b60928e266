"""What a plug-in can tell of its options before it is called: a file that does not exist, a package that is not installed; and how
to install what is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any, TypeVar

from onpolicy.utils.errors import UserError

Function = TypeVar("Function", bound=Callable[..., Any])
DISTRIBUTION = "onpolicy-distill"
"""What pip calls this project. It is imported, and started, as ``onpolicy``, which on PyPI is another project's name."""


class NotInstalled(UserError, ImportError):
    """A package that an option needs; names the command that installs it."""


def ready_if(check: Callable[..., Any]) -> Callable[[Function], Function]:
    """Declares what is called with a plug-in's options before a run loads anything; it raises a ``UserError``."""

    def declare(function: Function) -> Function:
        function.ready = check  # type: ignore[attr-defined]
        return function

    return declare


def is_installed(package: str) -> bool:
    """Whether a package can be imported, which a folder of its name in the current one cannot; nothing is loaded."""
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None


def extra(*names: str) -> str:
    """The command that installs these optional dependencies, which pyproject.toml lists."""
    return f"pip install '{DISTRIBUTION}[{','.join(names)}]'"


def project_version() -> str | None:
    """None where the project is imported from a folder without being installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return None


def declared_requirements() -> list[str]:
    """What the project declares that it needs, like ``torch>=2.11``; empty where it is not installed."""
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []


def begins_with(first: Callable[..., Any]) -> Callable[[Function], Function]:
    """Declares what gives the first items of what a plug-in gives, soon: called with their number, and with the plug-in's options."""

    def declare(function: Function) -> Function:
        function.first = first  # type: ignore[attr-defined]
        return function

    return declare


def installed(package: str, remedy: str) -> Callable[..., None]:
    """A check for ``ready_if``: that a package is installed."""

    def check(**options: Any) -> None:
        if not is_installed(package):
            raise NotInstalled(f"needs the package {package}, which is not installed: {remedy}")

    return check
