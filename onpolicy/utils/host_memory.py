"""How much memory this machine, or the container around this process, has left."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = 1 << 62
"""Bytes that are taken to be free where the system does not say."""
CGROUPS = (("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
           ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"))  # fmt: skip
"""Files with a container's limit and what it uses, versions 2 and 1."""


def available_memory(meminfo: str = "/proc/meminfo", cgroups: tuple[tuple[str, str], ...] = CGROUPS) -> int:
    """Bytes that can still be taken without swapping.

    Args:
        meminfo: Linux's file of that name
        cgroups: files with a limit and with what is used of it; those that are not there limit nothing
    """
    free = [UNKNOWN]
    try:
        lines = dict(line.split(":", 1) for line in Path(meminfo).read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    for limit, used in cgroups:
        try:
            taken = int(Path(used).read_text()) - _cached(Path(used).with_name("memory.stat"))
            free.append(max(int(Path(limit).read_text()) - taken, 0))
        except (OSError, ValueError):  # "max": no limit
            continue
    return min(free)


def _cached(stat: Path) -> int:
    """Bytes of files that a container counts as used and gives back when they are needed; those of memory without a file are not."""
    try:
        found = dict(line.split() for line in stat.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return sum(int(found.get(f"{kind}_file", 0)) for kind in ("inactive", "active"))
