"""On-policy self-distillation for reasoning models, with expressed uncertainty kept in sight.

``import onpolicy`` loads nothing heavy: each name below is loaded when it is first used (docs/python.md).
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onpolicy.config.load import load as load_config
    from onpolicy.data.files import load_prompts as load_prompts
    from onpolicy.experiments.report.page import write_report as report
    from onpolicy.losses.divergences import forward_kl as forward_kl
    from onpolicy.losses.divergences import jsd as jsd
    from onpolicy.losses.divergences import reverse_kl as reverse_kl
    from onpolicy.run.api import build_objective as build_objective
    from onpolicy.run.api import evaluate as evaluate
    from onpolicy.run.api import train as train
    from onpolicy.run.evaluate import pass_at_k as pass_at_k
    from onpolicy.utils.errors import UserError as UserError

__version__ = "0.1.0"

INTERFACE = {
    "load_config": "onpolicy.config.load:load",
    "load_prompts": "onpolicy.data.files:load_prompts",
    "train": "onpolicy.run.api:train",
    "evaluate": "onpolicy.run.api:evaluate",
    "build_objective": "onpolicy.run.api:build_objective",
    "pass_at_k": "onpolicy.run.evaluate:pass_at_k",
    "forward_kl": "onpolicy.losses.divergences:forward_kl",
    "reverse_kl": "onpolicy.losses.divergences:reverse_kl",
    "jsd": "onpolicy.losses.divergences:jsd",
    "report": "onpolicy.experiments.report.page:write_report",
    "UserError": "onpolicy.utils.errors:UserError",
}
"""Name -> ``module:name``."""

__all__ = [
    "UserError",
    "build_objective",
    "evaluate",
    "forward_kl",
    "jsd",
    "load_config",
    "load_prompts",
    "pass_at_k",
    "report",
    "reverse_kl",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in INTERFACE:
        raise AttributeError(f"module 'onpolicy' has no attribute {name!r}; it has {', '.join(INTERFACE)}")
    module, _, attribute = INTERFACE[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *INTERFACE])


class _Package(ModuleType):
    """``onpolicy.train`` is the function, although a module has that name: importing the module must not hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in INTERFACE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
