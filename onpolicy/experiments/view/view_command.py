"""``onpolicy view RUN…``: serves the page of runs until it is interrupted."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from pathlib import Path

from onpolicy.experiments.view.server import LOOPBACK, ViewServer
from onpolicy.utils.errors import ConfigError, nearest
from onpolicy.utils.terminal import printable

PORT = 8571
"""Tried first where none is asked for."""
DEPTH = 4
"""Folders below one that is given, in which runs are looked for."""
WRITTEN = ("metrics.jsonl", "config.yaml", "run.lock")
"""What a run writes into its folder; the last two before its first step."""


def view_runs(runs: Sequence[Path], port: int | None, wait: bool) -> int:
    """Serves the page of these runs; returns the exit status.

    Args:
        runs: their folders, or folders in which they are
        port: to listen on; None: a fixed one, and where that is taken any that is free
        wait: take a folder that is not there yet

    Raises:
        ConfigError: a folder that is not there, or a port that cannot be had.
    """
    server = listening(found_runs(runs, wait=wait), port)
    print(f"{server.address}  (this machine alone; Ctrl-C ends it)", flush=True)
    for run in server.followed.runs:
        print(f"  {printable(run.name)}  {printable(str(run.folder))}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nview ended; runs go on")
    finally:
        server.server_close()
    return 0


def listening(folders: Sequence[Path], port: int | None) -> ViewServer:
    """A server that has its port.

    Raises:
        ConfigError: the port that was asked for is taken, or may not be used.
    """
    try:
        return ViewServer(folders, PORT if port is None else port)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        if port is None and taken:
            server = ViewServer(folders, 0)
            print(f"port {PORT} is taken, by another view perhaps: this one has port {server.server_port}", flush=True)
            return server
        reason = "is taken" if taken else f"cannot be used ({error.strerror})"
        raise ConfigError(
            f"--port: {port} on {LOOPBACK} {reason}; expected a free one. Leave --port out to have one chosen."
        ) from error
    except OverflowError as error:
        raise ConfigError(f"--port: got {port}, expected a number from 1 to 65535") from error


def found_runs(folders: Sequence[Path], *, wait: bool = False) -> list[Path]:
    """The run folders that are meant: those given, or all that are in one of them.

    Args:
        folders: as given
        wait: take a folder that is not there yet

    Raises:
        ConfigError: a folder is not there, or it is a file.
    """
    found = [run for folder in folders for run in _runs_of(folder, wait)]
    return list(dict.fromkeys(found))


def _runs_of(folder: Path, wait: bool) -> list[Path]:
    if folder.is_file():
        raise ConfigError(f"{str(folder)!r} is a file; expected a run folder, with metrics.jsonl in it")
    if not folder.is_dir():
        if wait:
            return [folder]
        raise ConfigError(
            f"{str(folder)!r} is not there; expected a run folder, with metrics.jsonl in it{_hint(folder)}"
        )
    if any((folder / name).exists() for name in WRITTEN):
        return [folder]
    return sorted(_below(folder, DEPTH)) or [folder]


def _hint(folder: Path) -> str:
    beside = [path.name for path in folder.parent.iterdir() if path.is_dir()] if folder.parent.is_dir() else []
    like = nearest(folder.name, beside)
    meant = f". Did you mean {str(folder.parent / like)!r}?" if like else ""
    return f"{meant or '.'} --wait waits for a run that has not begun"


def _below(folder: Path, depth: int) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            if (path / WRITTEN[0]).is_file():
                yield path
            elif depth > 1:
                yield from _below(path, depth - 1)
