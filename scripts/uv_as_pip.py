"""Runs uv in this Python's environment, with the indexes, proxy and certificates that pip is configured with: uv does not read pip's
configuration, and behind a mirror nothing else may be reachable.

    .venv/bin/python scripts/uv_as_pip.py pip install --require-hashes --no-deps -r requirements/cpu.lock

A variable of uv's own that is set already wins. Where pip is given several indexes, uv looks in all of them for the best version,
as pip does, in place of stopping at the first that knows the name.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "no-index": "UV_NO_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
}
"""pip's option -> uv's variable."""
SECTIONS = ("global", "install", ":env:")
"""Whose settings count for ``pip install``; each overrides the one before."""


def pip_settings(listed: str) -> Mapping[str, str]:
    """Option -> value for ``pip install``.

    Args:
        listed: what ``pip config list`` prints, lines like ``global.index-url='https://...'``
    """
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return {option: value for section in SECTIONS for option, value in found[section].items()}


def uv_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """The same for uv, as environment variables."""
    found = {NAMES[option]: " ".join(value.split()) for option, value in settings.items() if option in NAMES}
    if "UV_FIND_LINKS" in found:
        found["UV_FIND_LINKS"] = found["UV_FIND_LINKS"].replace(" ", ",")
    if "UV_INDEX" in found:
        found["UV_INDEX"] = " ".join(url for url in found["UV_INDEX"].split() if not _missing(url))
        found["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return found


def _missing(url: str) -> bool:
    """Whether it is a folder that does not exist, which pip passes over and uv refuses."""
    parts = urlparse(url)
    return parts.scheme == "file" and not Path(url2pathname(parts.path)).is_dir()


def main() -> int:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    environment = uv_variables(pip_settings(listed)) | dict(os.environ) | {"VIRTUAL_ENV": sys.prefix}
    return subprocess.run([sys.executable, "-m", "uv", *sys.argv[1:]], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
