"""Configs by name: ``onpolicy train sdpo`` finds the shipped file from any folder."""

from __future__ import annotations

import difflib
from pathlib import Path

from onpolicy.utils.errors import ConfigError, nearest

SHIPPED = Path(__file__).parents[1] / "configs"


def shipped_configs(suffix: str = ".yaml") -> dict[str, Path]:
    """Name -> file: the path below the folder of shipped configs, without its ending, e.g. ``lab/sdpo``."""
    files = sorted(SHIPPED.rglob(f"*{suffix}"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(SHIPPED).with_suffix("").as_posix(): path for path in files}


def find_config(given: str | Path, suffix: str = ".yaml") -> Path:
    """The file that a path or the name of a shipped config means; a file that exists at the path comes first.

    Args:
        suffix: ``.json`` for DeepSpeed's configs, e.g. ``deepspeed/zero3``

    Raises:
        ConfigError: neither.
    """
    path, shipped = Path(given), shipped_configs(suffix)
    if path.is_file():
        return path
    if path.as_posix() in shipped:
        return shipped[path.as_posix()]
    here = sorted(str(p) for p in path.parent.glob(f"*{suffix}")) if path.parent.is_dir() else []
    near = next(iter(difflib.get_close_matches(str(path), here, n=1, cutoff=0.4)), None)
    near = near or nearest(path.as_posix(), shipped)
    if path.is_dir():
        near = str(path / "config.yaml") if (path / "config.yaml").is_file() else None
    raise ConfigError(
        f"config file {str(path)!r} {'is a folder' if path.is_dir() else 'does not exist'}."
        + (f" Did you mean {near!r}?" if near else "")
        + " `onpolicy list configs` names those that come with the package."
    )


def config_argument(path: Path) -> str:
    """How a command line names a config: one of the shipped by its name, any other by its path."""
    name = next((name for name, shipped in shipped_configs().items() if shipped == path), None)
    return str(path) if name is None or find_config(name) != path else name


def config_summary(path: Path) -> str:
    """The beginning of a config's opening comment, up to the first line that ends a sentence."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#") or (words and words[-1].endswith(".")):
            break
        words.append(line.removeprefix("#").strip())
    return " ".join(words)
