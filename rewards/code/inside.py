"""Runs a program on its tests, inside of a sandbox. Standard library only: nothing else of the project can be seen there.

This is process 1 of a process namespace: what a program sends it is ignored, and when it ends the kernel ends everything else. Each test
has a process of its own, which may start threads and no other process, so that one limit of memory holds for all that it does. Process 1
hands on what that process wrote, up to the limits, as one line of JSON a test; it knows no expected value.
"""

from __future__ import annotations

import builtins
import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

PROGRAM, RESULT_FD = "program.py", 3
MODULES = (
    "bisect",
    "collections",
    "copy",
    "functools",
    "heapq",
    "itertools",
    "json",
    "math",
    "operator",
    "re",
    "string",
    "sys",
    "typing",
)
"""What a program may use without importing it, and their public names: starter code takes ``List`` for granted."""
MAX_ERROR = 1000
"""Characters of an error's text."""


UNREADABLE = "The program's result cannot be read."
LARGE = 1 << 13
"""Bits from which a whole number travels in hexadecimal: Python writes no decimal number of more than 4,300 digits."""
MOST_OF_A_HASH = 100
"""The most keys of a set or a dictionary that may share their hash."""
BESIDE = "_python_"
"""Before the name of a function in an expression of a test: Python's own, whatever the program calls by this name."""


class NotPlain(Exception):
    """A value that holds other objects than Python's plain ones."""


def encode(value: Any) -> Any:
    """A plain value as JSON can hold it; lists, tuples, sets, dictionaries, bytes, complex and very large numbers as ``{"<type>": ...}``.

    Subclasses become what they extend (a Counter a dict, a named tuple a tuple).

    Raises:
        NotPlain: it is, or holds, another object.
    """
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str.__str__(value)
    if isinstance(value, int):
        number = int.__int__(value)
        return number if number.bit_length() < LARGE else {"int": hex(number)}
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    sequences: tuple[type, ...] = (list, tuple, set, frozenset)
    for kind in sequences:
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in kind.__iter__(value)]}  # type: ignore[attr-defined]
    raise NotPlain(f"{type(value).__name__} object, expected a plain value (numbers, text, lists, dictionaries ...)")


def decode(value: Any) -> Any:
    """The value that ``encode`` wrote.

    Raises:
        Exception: nothing that it writes; any kind, because a program can write there itself.
    """
    if not isinstance(value, dict):
        if isinstance(value, list):
            raise ValueError("a bare list")
        return value
    ((kind, held),) = value.items()
    if kind == "int":
        return int(held, 16)
    if kind == "complex":
        return complex(*held)
    if kind == "bytes":
        return bytes.fromhex(held)
    if kind == "dict":
        return dict(zip(_hashed([decode(key) for key, _ in held]), [decode(item) for _, item in held], strict=True))
    items = [decode(item) for item in held]
    if kind in ("list", "tuple"):
        return items if kind == "list" else tuple(items)
    return {"set": set, "frozenset": frozenset}[kind](_hashed(items))


def _hashed(keys: list[Any]) -> list[Any]:
    """The keys, unless many of them share a hash: a program could choose numbers that take hours to put in a set."""
    if max(Counter(map(hash, keys)).values(), default=0) > MOST_OF_A_HASH:
        raise ValueError("keys of equal hashes")
    return keys


def _plain(value: Any) -> bool:
    try:
        encode(value)
    except NotPlain:
        return False
    return True


def items(value: Any) -> Any:
    """What a loop over the value gives, as a list, where the value is not plain itself (a generator, a range, a view of a dictionary)."""
    return value if _plain(value) else list(value)


def presence(value: Any) -> Any:
    """What tells the value from None: a plain one as it is, True for any other object."""
    return value if _plain(value) else True


PYTHONS: Mapping[str, Callable[..., Any]] = {
    f"{BESIDE}{name}": function
    for name, function in {**vars(builtins), "items": items, "presence": presence}.items()
    if callable(function)
}
"""Functions for the expressions of a test, under names that no program has: those of Python from before the program."""


# ---- process 1


class _Filter(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def serve(request: int, replies: int) -> None:
    """Says that the sandbox stands, reads a request, JSON to the end of a file, and writes a line for each test; the first that is not
    ``done`` is the last.

    Args:
        request: file descriptor of ``{"program", "setup", "tests", "limits", "filter"}`` (``sandbox.run_tests``)
        replies: file descriptor
    """
    if os.getpid() != 1:
        raise SystemExit("the sandbox has no process namespace of its own")
    _write_all(replies, b'{"kind": "ready"}\n')  # what goes wrong from here on is no fault of the machine's
    with open(request, encoding="utf-8") as file:
        job = json.load(file)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is safe from signals that it has no handler for
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/1/mem is not the program's to open
    code = bytes.fromhex(job["filter"])
    guard, names = _Filter(len(code) // 8, code), known_names()
    for test in job["tests"]:
        reply = _run_test(job, test, libc, guard, names)
        try:
            line = json.dumps(reply)
        except (ValueError, RecursionError):  # a value that the program wrote itself
            reply = {"kind": "error", "error": UNREADABLE}
            line = json.dumps(reply)
        _write_all(replies, line.encode() + b"\n")
        if reply["kind"] != "done":
            return


def _run_test(
    job: Mapping[str, Any], test: Mapping[str, Any], libc: Any, guard: Any, names: Mapping[str, Any]
) -> dict[str, Any]:
    output, into_output = os.pipe()
    result, into_result = os.pipe()
    stdin = os.memfd_create("stdin")
    _write_all(stdin, test.get("stdin", "").encode("utf-8", "surrogatepass"))
    os.lseek(stdin, 0, os.SEEK_SET)
    process = os.fork()
    if process == 0:
        _be_the_program(job, test, (stdin, into_output, into_result), (libc, guard, names))
    for fd in (stdin, into_output, into_result):
        os.close(fd)
    return _watch(process, output, result, job["limits"], "stdin" in test)


def _watch(process: int, output: int, result: int, limits: Mapping[str, Any], only_output: bool) -> dict[str, Any]:
    """Waits for the process, to its limits."""
    ended = os.pidfd_open(process)
    poller, read, stopped = select.poll(), {output: bytearray(), result: bytearray()}, ""
    for fd in (output, result, ended):
        poller.register(fd, select.POLLIN)
    deadline, most = time.monotonic() + limits["wall_seconds"], limits["output_bytes"]
    while not stopped:
        ready = [fd for fd, _ in poller.poll(max(0.0, deadline - time.monotonic()) * 1000)]
        for fd in set(ready) - {ended}:
            chunk = os.read(fd, 1 << 16)
            read[fd] += chunk
            if not chunk:
                poller.unregister(fd)
            elif len(read[fd]) > most:
                stopped = "output"
        if not ready:
            stopped = "timeout"
        elif ready == [ended]:  # all that it wrote has been read
            break
    if stopped:
        os.kill(process, signal.SIGKILL)
    _, status, usage = os.wait4(process, 0)
    for fd in (output, result, ended):
        os.close(fd)
    if stopped:
        return {"kind": stopped}
    signalled = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    spent = usage.ru_utime + usage.ru_stime >= limits["cpu_seconds"]
    if signalled == signal.SIGXCPU or (signalled == signal.SIGKILL and spent):
        return {"kind": "timeout"}
    if signalled:
        return {"kind": "error", "error": f"The program was ended by the signal {signal.Signals(signalled).name}."}
    return _reply(os.WEXITSTATUS(status), bytes(read[output]), bytes(read[result]), only_output)


def _reply(status: int, output: bytes, result: bytes, only_output: bool) -> dict[str, Any]:
    try:
        said = json.loads(result) if result else {}
        error = said.get("error")
        if error is not None and not isinstance(error, str):
            raise ValueError("an error that is no text")
    except (ValueError, AttributeError, RecursionError, MemoryError):  # the program may write there, too
        said, error = {}, UNREADABLE
    if error is None and status:
        error = f"The program exited with status {status}."
    if error is None and not only_output and not isinstance(said.get("values"), list):
        error = "The program ended before it returned a value."
    if error is not None:
        return {"kind": "error", "error": error[:MAX_ERROR]}
    return {"kind": "done", "output": output.decode("utf-8", "replace"), "values": said.get("values")}


def known_names() -> dict[str, Any]:
    """What a program finds defined: ``MODULES`` and their public names, but for those that Python has already."""
    found: dict[str, Any] = {}
    modules = {name: importlib.import_module(name) for name in MODULES}
    for module in modules.values():
        public = getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")])
        for name in public:
            if not hasattr(builtins, name):
                found.setdefault(name, getattr(module, name))
    return found | modules


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


# ---- the program's process


def _be_the_program(
    job: Mapping[str, Any], test: Mapping[str, Any], fds: Sequence[int], means: tuple[Any, Any, Mapping[str, Any]]
) -> NoReturn:
    """Gives up what the process could do beyond its limits, and runs the program on one test."""
    status = 70
    try:
        libc, guard, names = means
        os.setsid()  # a group of its own: a signal to the program's group reaches nobody else
        nothing = os.open("/dev/null", os.O_WRONLY)
        stdin, output, result = (os.dup(fd) for fd in fds)
        for fd, place in ((stdin, 0), (output, 1), (nothing, 2), (result, RESULT_FD)):
            os.dup2(fd, place, inheritable=False)
        os.closerange(RESULT_FD + 1, 1024)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-8, 1)  # M_ARENA_MAX: each thread would reserve 64 MiB of the address space, which is limited
        _set_limits(job["limits"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name, fd in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
            stream = os.fdopen(fd, "w" if fd else "r", encoding="utf-8", errors="replace", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(
            22, 2, ctypes.byref(guard), 0, 0
        ):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
            raise OSError(ctypes.get_errno(), "no filter of system calls")
        status, said = _evaluated(job, test, names)
        _write_all(RESULT_FD, json.dumps(said).encode())
    except BaseException:
        status = status or 70
    finally:
        os._exit(status)


def _set_limits(limits: Mapping[str, Any]) -> None:
    cpu = limits["cpu_seconds"]
    for name, soft, hard in (
        ("AS", limits["memory_bytes"], limits["memory_bytes"]),
        ("CPU", cpu, cpu + 1),
        ("FSIZE", limits["file_bytes"], limits["file_bytes"]),
        ("NOFILE", limits["open_files"], limits["open_files"]),
        ("NPROC", limits["threads"], limits["threads"]),
        ("CORE", 0, 0),
        ("MSGQUEUE", 0, 0),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (soft, hard))


def _evaluated(job: Mapping[str, Any], test: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status that the program exits with, and ``{"values"}`` or ``{"error"}``."""
    sys.argv, sys.path[:] = [PROGRAM], [path for path in sys.path if os.path.exists(path)]
    sys.setrecursionlimit(100_000)  # as deep as an answer needs: the frames of Python take memory, which is limited
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    try:
        module = types.ModuleType("__main__" if "stdin" in test else "program")
        for own_module in ("inside", "launcher"):
            sys.modules.pop(own_module, None)
        sys.modules["__main__"] = sys.modules[module.__name__] = module
        own = vars(module)
        own |= dict(names)
        exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), own)
        exec(compile(job["program"], PROGRAM, "exec", dont_inherit=True), own)
        values = [encode(value) for value in _values(test, own)]
        _finish()
        return 0, {"values": values}
    except SystemExit as error:
        _finish()
        return (error.code if isinstance(error.code, int) else int(error.code is not None)) & 255, {}
    except BaseException as error:
        return 0, {"error": _described(error, job["program"])}


def _values(test: Mapping[str, Any], own: dict[str, Any]) -> list[Any]:
    """The test's function called with its arguments, or its expressions; nothing where it has neither."""
    own |= {name: decode(value) for name, value in test.get("names", {}).items()}
    if "function" in test:
        function = (
            getattr(own["Solution"](), test["function"])
            if isinstance(own.get("Solution"), type)
            else own[test["function"]]
        )
        return [function(*(decode(argument) for argument in test["arguments"]))]
    beside = dict(PYTHONS)  # local names come before the program's
    return [
        eval(compile(source, "test.py", "eval", dont_inherit=True), own, beside)
        for source in test.get("expressions", ())
    ]


def _finish() -> None:
    """What Python does before it ends: it waits for threads, calls what wants to be called, and writes what is buffered."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    importlib.import_module("atexit")._run_exitfuncs()
    for stream in {sys.stdout, sys.__stdout__}:
        if stream is not None:
            stream.flush()


def _described(error: BaseException, program: str) -> str:
    """Type and message, and the last three places in the program."""
    try:
        message = str(error)
    except BaseException:
        message = ""
    if isinstance(error, KeyError) and not isinstance(message, str):
        message = ""
    lines, places, trace = program.splitlines(), [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == PROGRAM:
            text = lines[trace.tb_lineno - 1].strip() if trace.tb_lineno <= len(lines) else ""
            places.append(f"Line {trace.tb_lineno} in {trace.tb_frame.f_code.co_name} ({PROGRAM}): {text}")
        trace = trace.tb_next
    return "\n".join([f"{type(error).__name__}: {message}"[:MAX_ERROR], *places[-3:]])


if __name__ == "__main__":
    serve(0, 1)
