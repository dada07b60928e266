"""Nothing here is collected where verl is not installed: it has an environment of its own (`make test-verl`)."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Iterator

import pytest

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("verl") is None else []

if not collect_ignore_glob:  # before anything imports verl
    os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "tests.integrations.verl.rig"}


@pytest.fixture
def no_cluster() -> Iterator[dict[str, str]]:
    """Variables with which Ray finds none of the clusters that run here, and starts one that others do not find. Its sockets need a
    short path."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield {"RAY_TMPDIR": folder}
