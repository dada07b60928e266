"""What the files about generators share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rollout.test_generators import arguments
from tests.tiny import tiny_model_dir


@pytest.fixture(scope="package")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="package")
def vllm(model_dir: Path) -> Iterator[Any]:
    """One engine for all of them: it takes long to start, and keeps state in its process."""
    from onpolicy.rollout.vllm_generator import VLLMGenerator

    generator = VLLMGenerator(**arguments(model_dir), dtype="float32")
    yield generator
    generator.close()
