"""Problems from files, hubs and generators, in one form.

The functions named in ``onpolicy.config.registry.TABLES["data"]`` are the sources; ``load_prompts`` reads any supported file.
"""

from __future__ import annotations

from onpolicy.data.champ import champ
from onpolicy.data.errors import BadRow, DataError
from onpolicy.data.files import load_prompts, read_prompts
from onpolicy.data.gym import gym
from onpolicy.data.rows import Reading, ReadPrompts
from onpolicy.data.sources import file, hub

__all__ = [
    "BadRow",
    "DataError",
    "ReadPrompts",
    "Reading",
    "champ",
    "file",
    "gym",
    "hub",
    "load_prompts",
    "read_prompts",
]
