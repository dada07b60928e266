"""Runs programs that a model wrote where they reach nothing: no network, no other process, no file of the machine but Python's own.

bubblewrap (``bwrap``) where it is installed, otherwise namespaces of Linux (``launcher``). In both the program sees Python's standard
library and the system's libraries, read-only, and one folder of its own in memory, /tmp; no environment, nothing of this project, and no
package beside the standard library (no numpy). Memory, time, output, files and threads are limited (``Limits``), other processes cannot be
started, and a filter refuses the system calls that none of this needs (``system_calls``). When the process that asked dies, so does the
sandbox.

Expected values are never inside: the tests that go in hold inputs alone, and what comes out is compared outside. A program can print or
return what it likes, and can forge the text of its own error; it gains nothing that it could not have printed. What is left to trust is the
kernel. Root uses the namespaces where both work: a program under root's bubblewrap is root's own user, whose threads only memory limits.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..base import RewardError
from .inside import decode, encode
from .launcher import DEVICES, LINKS
from .system_calls import filter_of_this_machine

Kind = Literal["done", "error", "timeout", "output"]
HERE = Path(__file__).resolve().parent
INSIDE = "/runner/inside.py"
STARTUP_SECONDS = 60.0
"""Longest time that a sandbox may take beside its programs', on a busy machine."""
MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Of one test."""

    cpu_seconds: int = 6
    wall_seconds: float = 20.0
    """More than ``cpu_seconds``, because a busy machine is no fault of the program's."""
    memory_bytes: int = 1024 * MIB
    """Address space."""
    output_bytes: int = 8 * MIB
    file_bytes: int = 16 * MIB
    """Of a file, and of all that the tests of a program leave in /tmp."""
    open_files: int = 64
    threads: int = 64
    """Process 1 and the program's first count; each further one reserves its stack, 8 MiB, of ``memory_bytes``."""


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    kind: Kind
    """``done``; ``error``: it raised, was killed or exited with another status than 0; ``timeout``; ``output``: it wrote too much."""
    output: str = ""
    """What it wrote on standard output, where it is ``done``."""
    values: tuple[Any, ...] = ()
    """What the test's function or expressions gave, plain values."""
    error: str = ""


class SandboxUnavailable(RewardError):
    """This machine has no way to run a program safely; says what to install or to allow."""


def stdin_test(text: str) -> dict[str, Any]:
    """A test of a whole program, which reads this text."""
    return {"stdin": text}


def call_test(function: str, arguments: Sequence[Any]) -> dict[str, Any]:
    """A test of one function, or method of the class ``Solution``, with plain arguments."""
    return {"function": function, "arguments": [encode(argument) for argument in arguments]}


def expressions_test(expressions: Sequence[str], names: dict[str, Any] | None = None) -> dict[str, Any]:
    """A test that evaluates expressions beside the program, with names for plain values."""
    return {"expressions": list(expressions), "names": {k: encode(v) for k, v in (names or {}).items()}}


def run_tests(
    program: str, tests: Sequence[dict[str, Any]], *, setup: str = "", limits: Limits | None = None
) -> Generator[Outcome, None, None]:
    """Runs a program on tests in order, each in a process of its own, and stops after the first that is not ``done``.

    Closing the iterator ends the sandbox.

    Args:
        program: Python source
        tests: made by ``stdin_test``, ``call_test`` or ``expressions_test``
        setup: Python source of the dataset, run before the program
        limits: of each test; None: ``Limits()``

    Raises:
        SandboxUnavailable: nothing on this machine can run it safely.
    """
    yield from _run(mechanism(), program, tests, setup, limits or Limits())


@functools.cache
def mechanism() -> Literal["bubblewrap", "namespaces"]:
    """What runs programs here; tried once in a process.

    Raises:
        SandboxUnavailable: neither works; says what to do.
    """
    failed = []
    tries: list[Literal["bubblewrap", "namespaces"]] = ["bubblewrap", "namespaces"]
    for name in tries if os.geteuid() else reversed(tries):
        if name == "bubblewrap" and shutil.which("bwrap") is None:
            failed.append("bubblewrap: there is no bwrap on the PATH")
            continue
        try:
            with closing(_run(name, "print(6 * 7)", [stdin_test("")], "", Limits())) as outcomes:
                first = next(outcomes)
            if first.output == "42\n":
                return name
            failed.append(f"{name}: a program that prints 42 gave {first}")
        except (OSError, SandboxUnavailable) as error:
            failed.append(f"{name}: {error}")
    raise SandboxUnavailable(
        "code that a model wrote cannot be run safely here. "
        + "; ".join(failed)
        + ". Install bubblewrap (apt install bubblewrap, dnf install bubblewrap), or allow user namespaces: sysctl "
        "user.max_user_namespaces=10000, on Ubuntu also sysctl kernel.apparmor_restrict_unprivileged_userns=0, in Docker "
        "--security-opt seccomp=unconfined --security-opt systempaths=unconfined. Linux on x86-64 or ARM64 is needed."
    )


def _run(
    by: str, program: str, tests: Sequence[dict[str, Any]], setup: str, limits: Limits
) -> Generator[Outcome, None, None]:
    if sys.platform != "linux":
        raise SandboxUnavailable(f"{sys.platform}, expected Linux")
    request = {"program": program, "setup": setup, "tests": list(tests), "limits": asdict(limits)}
    try:
        request["filter"] = filter_of_this_machine().hex()
    except OSError as error:
        raise SandboxUnavailable(str(error)) from error
    command = bubblewrap_command(limits) if by == "bubblewrap" else namespaces_command(limits)
    asked, said = os.memfd_create("request"), os.memfd_create("errors")
    try:
        with os.fdopen(os.dup(asked), "w", encoding="utf-8", errors="surrogatepass") as file:
            json.dump(request, file)
        os.lseek(asked, 0, os.SEEK_SET)
        process = (
            subprocess.Popen(  # from this folder: /proc/1 shows the command, and need not show where this project lies
                command, stdin=asked, stdout=subprocess.PIPE, stderr=said, env={}, cwd=HERE, start_new_session=True
            )
        )
        try:
            yield from _outcomes(process, len(tests), limits, said)
        finally:
            _end(process)
    finally:
        os.close(asked)
        os.close(said)


def _outcomes(
    process: subprocess.Popen[bytes], tests: int, limits: Limits, said: int
) -> Generator[Outcome, None, None]:
    """One for each line, at most for as long and as much as the limits allow; what happens once the sandbox stands is the program's."""
    if _line(process, STARTUP_SECONDS, MIB) is None and (error := _refusal(process, said)):
        raise SandboxUnavailable(error)
    for _ in range(tests):
        line = _line(process, STARTUP_SECONDS + limits.wall_seconds, 8 * limits.output_bytes)
        if line is None:
            yield Outcome("error", error="The sandbox was ended before the program was.")
            return
        outcome = _outcome(line)
        yield outcome
        if outcome.kind != "done":
            return


def _line(process: subprocess.Popen[bytes], seconds: float, most: int) -> bytes | None:
    """The next line; None where there is none in time, or it is too long."""
    assert process.stdout is not None
    buffer: bytearray = process.__dict__.setdefault("_read_ahead", bytearray())
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            end = buffer.find(b"\n")
            if end >= 0:
                line = bytes(buffer[:end])
                del buffer[: end + 1]
                return line
            if len(buffer) > most or not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return None
            buffer += chunk


def _outcome(line: bytes) -> Outcome:
    try:
        said = json.loads(line)
        if said["kind"] != "done":
            return Outcome(said["kind"], error=said.get("error", ""))
        return Outcome("done", said["output"], tuple(map(decode, said["values"] or ())))
    except Exception as error:  # of any kind: the program may have written the value itself
        return Outcome("error", error=f"The program's value cannot be read: {type(error).__name__}.")


def _refusal(process: subprocess.Popen[bytes], said: int) -> str:
    """Why nothing was run, in the words of whoever should have built the sandbox; empty where it was built."""
    try:
        status = process.wait(5)
    except subprocess.TimeoutExpired:
        return ""
    text = os.pread(said, 2000, 0).decode("utf-8", "replace").strip()
    return text if status not in (0, -9, 137) and text else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the sandbox and waits for it: its process 1 is the last that holds the pipe.

    Process 1 is killed, not its parent, which then collects it: nobody may do so in a container whose own process 1 is none that does.
    """
    assert process.stdout is not None
    try:
        first = list(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))
    except OSError:  # it has ended, or this kernel does not tell
        first = []
    for child in first:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    if not first:
        process.kill()
    with process.stdout, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(STARTUP_SECONDS) and os.read(process.stdout.fileno(), 1 << 20):
            pass
    try:
        process.wait(STARTUP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# ---- what a sandbox shows, and the two ways to build one


def interpreter() -> str:
    """Python itself, outside of any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def standard_library() -> str:
    return os.path.realpath(os.path.dirname(os.__file__))


@functools.cache
def visible_paths() -> tuple[str, ...]:
    """The standard library, and the libraries that it and Python need."""
    extensions = sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix})
    python = {standard_library(), os.path.realpath(extensions)}
    shared = sysconfig.get_config_var("LDLIBRARY") or ""
    python |= {p for folder in ("lib", "lib64") if os.path.isfile(p := os.path.join(sys.base_prefix, folder, shared))}
    system = [path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.exists(path)]
    inside_of = tuple(f"{path}/" for path in system if not os.path.islink(path))
    return (*system, *sorted(path for path in python if not path.startswith(inside_of)))


@functools.cache
def hidden_paths() -> tuple[str, ...]:
    """Folders with installed packages below the visible ones, which look empty inside."""
    candidates = [os.path.join(standard_library(), name) for name in ("site-packages", "dist-packages")]
    candidates += ["/usr/lib/python3/dist-packages"]
    return tuple(sorted({path for path in candidates if os.path.isdir(path)}))


def namespaces_command(limits: Limits) -> list[str]:
    """The launcher, started from its own folder."""
    spec = {"paths": visible_paths(), "hidden": hidden_paths(), "file_bytes": limits.file_bytes}
    return [interpreter(), "-I", "-S", "launcher.py", json.dumps(spec)]


def bubblewrap_command(limits: Limits) -> list[str]:
    """``bwrap`` with everything unshared; the runner is its process 1."""
    command = [
        shutil.which("bwrap") or "bwrap",
        "--unshare-all",
        "--unshare-user",
        "--as-pid-1",
        "--die-with-parent",
        "--new-session",
    ]
    command += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534"]
    for path in visible_paths():
        command += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
    for path in hidden_paths():
        command += ["--tmpfs", path, "--remount-ro", path]
    if not interpreter().startswith(tuple(f"{path}/" for path in visible_paths())):
        command += ["--ro-bind", interpreter(), interpreter()]
    command += ["--ro-bind", str(HERE / "inside.py"), INSIDE, "--proc", "/proc"]
    for device in DEVICES:
        command += ["--dev-bind", device, device]
    for link, target in LINKS.items():
        command += ["--symlink", target, link]
    command += ["--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/"]
    return [*command, "--", interpreter(), "-I", "-S", INSIDE]
