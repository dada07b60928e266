"""Nothing here is collected where verifiers is not installed (`make test-verifiers`)."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("verifiers") is None else []
