"""Nothing here is collected where verl is not installed: it has an environment of its own (`make test-verl`)."""

from __future__ import annotations

import importlib.util
import os

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("verl") is None else []

if not collect_ignore_glob:  # before anything imports verl
    os.environ |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "tests.integrations.verl.rig"}
