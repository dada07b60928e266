"""Takes out of a lock file what another one pins in the same version: ``lock_without.py FILE OTHER``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ENTRY = re.compile(r"^\S+==.*\n(?:    .*\n)*", re.MULTILINE)
"""A requirement with its hashes."""


def main() -> None:
    file, other = map(Path, sys.argv[1:])
    pinned = {_version(entry) for entry in ENTRY.findall(other.read_text())}
    file.write_text(ENTRY.sub(lambda m: "" if _version(m.group()) in pinned else m.group(), file.read_text()))


def _version(entry: str) -> str:
    """Name and version, without hashes; on which machines is left out, so the rest serves where all of the other file does."""
    return entry.partition("\\")[0].partition(";")[0].strip()


if __name__ == "__main__":
    main()
