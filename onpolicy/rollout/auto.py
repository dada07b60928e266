"""``generator: auto``: which generator this machine has."""

from __future__ import annotations

from onpolicy.utils.choice import Choice, chooser
from onpolicy.utils.ready import is_installed


@chooser
def auto() -> Choice:
    """`vllm` where it is installed, else `transformers`; the run's config records which."""
    if is_installed("vllm"):
        return Choice("vllm", "vLLM is installed")
    return Choice("transformers", "vLLM is not installed here")
