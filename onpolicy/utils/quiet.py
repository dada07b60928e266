"""Hides what libraries print at start-up and what says nothing about the run; errors still come through."""

from __future__ import annotations

import logging
import os

CHATTY = ("vllm", "DeepSpeed")


def quiet_libraries() -> None:
    """To be called before torch is imported; a user's own environment wins."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in CHATTY:
        # a filter stays when the library sets its own level later
        logging.getLogger(name).addFilter(lambda record: record.levelno >= logging.ERROR)
        logging.getLogger(f"{name}.triton_utils.importing").addFilter(lambda record: record.levelno >= logging.ERROR)
