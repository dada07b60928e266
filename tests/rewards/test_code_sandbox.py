"""The sandbox for programs: it has to work where these tests run, nothing escapes it, nothing hangs in it, and nothing of it stays."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onpolicy.rewards.code import Limits, Outcome, SandboxUnavailable, run_tests, sandbox
from onpolicy.rewards.code.inside import NotPlain, decode, encode
from onpolicy.rewards.code.sandbox import (
    bubblewrap_command,
    call_test,
    expressions_test,
    hidden_paths,
    interpreter,
    stdin_test,
    visible_paths,
)
from onpolicy.rewards.code.system_calls import CLONE, MACHINES, PRLIMIT, REFUSED, seccomp_filter

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
HOSTILE = Path(__file__).parent / "hostile"
WAYS = ["namespaces", *(["bubblewrap"] if shutil.which("bwrap") else [])]
SHORT = Limits(cpu_seconds=1, wall_seconds=3.0, memory_bytes=256 << 20, output_bytes=1 << 20)


@pytest.fixture(params=WAYS, autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to build a sandbox that can be tried here; without any the tests fail."""
    monkeypatch.setattr(sandbox, "mechanism", lambda: request.param)
    return str(request.param)


def outcome(program: str, test: dict[str, Any] | None = None, limits: Limits = SHORT, setup: str = "") -> Outcome:
    """Of one test, by default of an empty standard input."""
    (found,) = run_tests(program, [test or stdin_test("")], setup=setup, limits=limits)
    return found


def test_the_sandbox_works_here() -> None:
    """Also where nothing is installed: `mechanism` itself, which tries."""
    assert sandbox._run.__name__ and sandbox.__dict__["mechanism"]() in ("namespaces", "bubblewrap")
    assert outcome("print(6 * 7)") == Outcome("done", "42\n")


def test_tests_of_a_program_have_processes_of_their_own() -> None:
    program = "import sys\nseen = getattr(sys, 'seen', 0)\nsys.seen = seen + 1\nprint(seen, input())"
    assert [o.output for o in run_tests(program, [stdin_test("a"), stdin_test("b")])] == ["0 a\n", "0 b\n"]


def test_functions_methods_and_expressions() -> None:
    assert outcome("def f(a, b):\n    return {a: (b, {1.5})}", call_test("f", [1, [2]])).values == ({1: ([2], {1.5})},)
    solution = "class Solution:\n    def f(self, rows: List[int]) -> int:\n        return sum(rows)"
    assert outcome(solution, call_test("f", [[1, 2]])).values == (3,)
    assert outcome("f = lambda x: x * k", expressions_test(["f(2)", "f(n)"], {"n": 3}), setup="k = 5").values == (
        10,
        15,
    )
    main = "def f():\n    return __name__\nif __name__ == '__main__':\n    1 / 0"
    assert outcome(main, call_test("f", [])).values == ("program",)


def test_a_program_may_end_as_programs_do() -> None:
    deep = (
        "import sys, threading\nthreading.stack_size(1 << 27)\nsys.setrecursionlimit(10**6)\n"
        "def depth(n):\n    return n and 1 + depth(n - 1)\n"
        "threading.Thread(target=lambda: print(depth(50_000))).start()"
    )
    assert outcome(deep).output == "50000\n"
    assert outcome("import atexit\natexit.register(print, 'last')\nprint('first')").output == "first\nlast\n"
    assert outcome("print('x', end='')\nexit()").output == "x"
    assert outcome("import os\nprint(1, flush=True)\nos._exit(0)").output == "1\n"
    assert outcome("import sys\nsys.exit(3)").error == "The program exited with status 3."
    assert outcome("import sys\nsys.exit('no')").error == "The program exited with status 1."


def test_errors_name_the_place() -> None:
    assert outcome("x = 1\ndef f():\n    return [][x]\nf()").error == (
        "IndexError: list index out of range\nLine 4 in <module> (program.py): f()\nLine 3 in f (program.py): return [][x]"
    )
    assert outcome("def f(:").error == "SyntaxError: invalid syntax (program.py, line 1)"


def test_the_first_that_fails_is_the_last() -> None:
    kinds = [o.kind for o in run_tests("print(1 // int(input()))", [stdin_test(t) for t in ("1", "0", "1")])]
    assert kinds == ["done", "error"]


# ---- hostile programs

EXPECTED: dict[str, tuple[str, str]] = {
    "fork_bomb": ("error", "BlockingIOError"),
    "thread_bomb": ("done", "can't start new thread"),
    "starts_programs": ("done", "BlockingIOError PermissionError BlockingIOError"),
    "writes_outside": ("done", "nothing written"),
    "fills_the_disk": ("error", "No space left on device"),
    "large_file": ("error", "File too large"),
    "many_files": ("error", "No space left on device|Too many open files"),
    "endless_output": ("output", ""),
    "endless_line": ("output", ""),
    "endless_error_stream": ("timeout", ""),
    "endless_loop": ("timeout", ""),
    "ignores_the_limit": ("timeout", ""),
    "sleeps": ("timeout", ""),
    "stops_itself": ("timeout", ""),
    "closes_everything": ("timeout", ""),
    "never_ending_thread": ("timeout", ""),
    "never_ending_exit": ("timeout", ""),
    "endless_error_text": ("timeout", ""),
    "memory": ("error", "MemoryError"),
    "memory_of_sockets": ("done", "little"),
    "memory_beside_the_limit": ("done", "PermissionError PermissionError"),
    "imports_ours": ("done", "nothing imported"),
    "reads_the_machine": ("done", "nothing read"),
    "network": ("done", "PermissionError lo\n"),
    "signals": ("error", "SIGTERM"),
    "kills_process_1": ("done", "still here"),
    "reaches_process_1": ("done", "its own limit is 32 32"),
    "kills_itself": ("error", "SIGKILL"),
    "crashes": ("error", "SIGSEGV"),
    "raises_the_limits": ("done", "refused"),
    "system_calls": ("done", "end of list"),
    "deep_recursion": ("error", "RecursionError"),
    "deep_source": ("error", "SyntaxError|MemoryError|RecursionError"),
    "breaks_the_runner": ("done|error", ""),
}
"""Program in hostile/ -> what becomes of it, and what its error or its output says."""


def test_every_hostile_program_is_named() -> None:
    assert {path.stem for path in HOSTILE.glob("*.py")} == EXPECTED.keys() | {"equal_to_everything", "forges_its_value"}


@pytest.mark.parametrize("name", EXPECTED)
def test_hostile_programs(name: str) -> None:
    kinds, says = EXPECTED[name]
    found = outcome((HOSTILE / f"{name}.py").read_text())
    assert found.kind in kinds.split("|"), found
    assert any(part in found.error + found.output for part in says.split("|")), found
    assert "allowed" not in found.output and not Path("/tmp/left_behind").exists()


@pytest.mark.parametrize("name", ["endless_loop", "ignores_the_limit"])
def test_processor_time_is_limited_by_itself(name: str) -> None:
    limits = replace(SHORT, wall_seconds=300.0)
    began = time.monotonic()
    assert outcome((HOSTILE / f"{name}.py").read_text(), limits=limits).kind == "timeout"
    assert time.monotonic() - began < 300


def test_threads_are_limited_by_number(way: str) -> None:
    found = outcome((HOSTILE / "thread_bomb.py").read_text(), limits=replace(SHORT, threads=12))
    number = int(found.output.split()[0])
    assert number == 10 or (way == "bubblewrap" and os.geteuid() == 0), "process 1 and the first thread count"


def test_a_value_cannot_equal_everything() -> None:
    """What comes out is plain, whatever class it had inside."""
    found = outcome((HOSTILE / "equal_to_everything.py").read_text(), call_test("f", [0]))
    assert "NotPlain" in found.error
    found = outcome((HOSTILE / "equal_to_everything.py").read_text(), call_test("f", [1]))
    (value,) = found.values
    assert type(value) is int and value == 1


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("no_json", "cannot be read"),
        ("two_values", ""),
        ("odd_kind", "cannot be read"),
        ("equal_hashes", "cannot be read"),
        ("half_a_character", ""),
        ("nested", "cannot be read|RecursionError"),
        ("no_list", "ended before it returned"),
        ("huge_number", "cannot be read"),
        ("half_equal_hashes", "cannot be read"),
        ("overflow", "cannot be read: OverflowError"),
        ("error_that_is_a_list", "cannot be read"),
        ("error_that_is_nested", "cannot be read"),
        ("value_that_is_nested", "cannot be read"),
        ("large_number_that_is_none", "cannot be read"),
    ],
)
def test_a_forged_value_is_an_answer_like_any_other(case: str, says: str) -> None:
    """A program may write where its value is expected: it can claim values, and nothing breaks outside."""
    source = (HOSTILE / "forges_its_value.py").read_text()
    began = time.process_time()
    found = outcome(source, call_test("f", [case]))
    assert time.process_time() - began < 5
    assert found.kind == ("done" if case in ("two_values", "half_a_character") else "error"), found
    assert any(part in found.error for part in says.split("|")), found


# ---- nothing stays

CROWD = """
import ctypes, json, os, sys
from concurrent.futures import ThreadPoolExecutor
from rewards.code import Limits, run_tests, sandbox
from rewards.code.sandbox import stdin_test
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whatever is left behind becomes ours
way, number, work = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sandbox.mechanism = lambda: way
programs = ["print(int(input()) + {i})", "open('/tmp/left_by_a_program', 'w').write('x')", "while True: pass", "1 / 0",
            "import threading, time\\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\\nprint({i})",
            "while True: print('x' * 999)", "import os\\nos.fork()", "import os\\nos.kill(os.getpid(), 9)"]
def one(i):
    kinds = {0: "done", 1: "done", 2: "timeout", 3: "error", 4: "done", 5: "output", 6: "error", 7: "error"}
    place = i % 8 if i % 80 == 2 else (i % 8 if i % 8 != 2 else 0)  # few of those that take a second
    limits = Limits(cpu_seconds=1, wall_seconds=60, output_bytes=1 << 20)
    (found,) = run_tests(programs[place].replace("{i}", str(i)), [stdin_test("1")], limits=limits)
    return found.kind == kinds[place] and (place != 0 or found.output == f"{i + 1}\\n")
before = len(os.listdir("/proc/self/fd"))
with ThreadPoolExecutor(4) as pool:
    right = sum(pool.map(one, range(number)))
try:
    left = os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    left = None
print(json.dumps([right, left, len(os.listdir("/proc/self/fd")) - before, os.path.exists("/tmp/left_by_a_program"), os.listdir(work)]))
"""


def crowd(way: str, number: int, folder: Path) -> None:
    command = [sys.executable, "-B", "-c", CROWD, way, str(number), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [number, None, 0, False, []]


def test_programs_through_four_slots(way: str, tmp_path: Path) -> None:
    crowd(way, 80, tmp_path)


@pytest.mark.nightly
def test_a_thousand_programs_through_four_slots(way: str, tmp_path: Path) -> None:
    crowd(way, 1000, tmp_path)


def children(process: int) -> list[int]:
    return [
        int(child) for path in Path(f"/proc/{process}/task").glob("*/children") for child in path.read_text().split()
    ]


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_sandbox_dies_with_the_process_that_asked(way: str) -> None:
    code = (
        "import sys\nfrom rewards.code import Limits, run_tests, sandbox\nfrom rewards.code.sandbox import stdin_test\n"
        f"sandbox.mechanism = lambda: {way!r}\n"
        "list(run_tests('while True: pass', [stdin_test('')], limits=Limits(cpu_seconds=3000, wall_seconds=3000)))"
    )
    asking = subprocess.Popen([sys.executable, "-B", "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    family: list[int] = []
    while len(family) < 3:  # the launcher, process 1, the program
        family, left = [], [asking.pid]
        while left:
            found = children(left.pop())
            family, left = family + found, left + found
        time.sleep(0.01)
    asking.kill()
    asking.wait()
    while any(map(alive, family)):
        time.sleep(0.01)


def test_leaving_early_ends_the_sandbox() -> None:
    before = set(children(os.getpid()))
    with closing(run_tests("print(input())", [stdin_test("1"), stdin_test("2")])) as outcomes:
        assert next(outcomes).output == "1\n"
    assert set(children(os.getpid())) <= before


# ---- whoever starts it, and where it cannot be

AS_NOBODY = """
import ctypes, os, sys
user, group, libc = os.geteuid(), os.getegid(), ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x10000000) == 0, os.strerror(ctypes.get_errno())
for file, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
    with open(f"/proc/self/{file}", "w") as out:
        out.write(text)
os.execv(sys.executable, [sys.executable, "-B", "-c", sys.argv[1]])
"""
UNPRIVILEGED = """
import os
from rewards.code import run_tests, sandbox
from rewards.code.sandbox import stdin_test
assert os.getuid() == 1000
sandbox.mechanism = lambda: WAY
for program in ("import os\\nprint(os.getuid(), os.listdir('/tmp'))", *PROGRAMS):
    print(*run_tests(program, [stdin_test("")]))
"""


def test_a_user_without_rights_can_start_it(way: str) -> None:
    names = ("writes_outside", "reads_the_machine", "raises_the_limits", "system_calls", "thread_bomb", "signals")
    programs = [(HOSTILE / f"{name}.py").read_text() for name in names]
    code = UNPRIVILEGED.replace("WAY", repr(way)).replace("PROGRAMS", repr(programs))
    command = [sys.executable, "-c", AS_NOBODY, code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    said = done.stdout.splitlines()
    expected = (
        "65534 []",
        "nothing written",
        "nothing read",
        "refused AS",
        "end of list",
        "can't start new thread",
        "SIGTERM",
    )
    assert len(said) == len(expected) and all(map(str.__contains__, said, expected)), done
    assert "allowed" not in done.stdout, done


def test_where_nothing_works_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    sandbox.mechanism.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    broken = tmp_path / "launcher.py"
    broken.write_text("import sys\nsys.exit('unshare: Operation not permitted')")
    monkeypatch.setattr(sandbox, "HERE", tmp_path)
    with pytest.raises(
        SandboxUnavailable,
        match=r"namespaces: unshare: Operation not permitted.*Install bubblewrap \(apt",
    ):
        sandbox.mechanism()
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    with pytest.raises(SandboxUnavailable, match=r"bubblewrap: bwrap: No permissions to create new namespace"):
        sandbox.mechanism()
    sandbox.mechanism.cache_clear()


def test_once_a_sandbox_stands_nothing_is_its_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever ends process 1 then: the run goes on."""
    launcher = tmp_path / "launcher.py"
    monkeypatch.setattr(sandbox, "HERE", tmp_path)
    monkeypatch.setattr(sandbox, "mechanism", lambda: "namespaces")
    launcher.write_text("import sys\nprint('{\"kind\": \"ready\"}', flush=True)\nsys.exit('MemoryError')")
    assert outcome("") == Outcome("error", error="The sandbox was ended before the program was.")
    launcher.write_text("import sys\nsys.exit('MemoryError')")
    with pytest.raises(SandboxUnavailable, match="MemoryError"):
        outcome("")


def test_what_programs_of_today_use() -> None:
    """asyncio makes a pair of sockets; some read /dev/stdin; a pool starts as many threads as the limit says."""
    loop = "import asyncio\nasync def main():\n    await asyncio.sleep(0.001)\n    print('slept')\nasyncio.run(main())"
    assert outcome(loop).output == "slept\n"
    devices = "import os\nfor name in ('stdin', 'fd/0'):\n    print(open(f'/dev/{name}').read(), input(), os.path.islink('/dev/stdout'))"
    assert outcome(devices, stdin_test("a\nb")).output == "a\nb a True\na\nb b True\n"
    threads = "import threading, time\nfor _ in range(40):\n    threading.Thread(target=time.sleep, args=(0.1,)).start()\nprint('all')"
    assert outcome(threads, limits=replace(SHORT, memory_bytes=Limits().memory_bytes)).output == "all\n"


def test_the_command_of_process_1_does_not_show_where_this_project_lies() -> None:
    found = outcome("print(ascii(open('/proc/1/cmdline').read()))").output
    assert "-I" in found and str(ROOT) not in found


def test_what_is_visible_holds_no_package_of_python_and_not_this_project() -> None:
    assert not any(str(ROOT).startswith(path) for path in visible_paths())
    program = f"import os\nprint([os.listdir(path) for path in {hidden_paths()!r}])"
    assert hidden_paths() and eval(outcome(program).output) == [[]] * len(hidden_paths())


def test_the_command_of_bubblewrap() -> None:
    command = bubblewrap_command(Limits(file_bytes=4096))
    options, run = command[: command.index("--")], command[command.index("--") + 1 :]
    assert run == [interpreter(), "-I", "-S", "/runner/inside.py"]
    assert {"--unshare-all", "--unshare-user", "--as-pid-1", "--die-with-parent", "--new-session"} <= set(options)
    assert options[options.index("--cap-drop") + 1] == "ALL"
    assert options[options.index("--size") :][:4] == ["--size", "4096", "--tmpfs", "/tmp"] and options[-2:] == [
        "--remount-ro",
        "/",
    ]
    shown = {options[i + 1] for i, word in enumerate(options) if word == "--ro-bind"}
    links = {path for path in visible_paths() if os.path.islink(path)}
    assert (
        shown <= {*visible_paths(), interpreter(), str(sandbox.HERE / "inside.py")}
        and shown >= set(visible_paths()) - links
    )
    assert "--bind" not in options and "--dev" not in options and "--share-net" not in options
    assert all(options[options.index(path) - 1] == "--tmpfs" for path in hidden_paths())
    assert options[options.index("/dev/stdin") - 2 :][:2] == ["--symlink", "/proc/self/fd/0"]


# ---- values and system calls


def test_plain_values_travel() -> None:
    for value in (
        None,
        True,
        -3,
        0.5,
        "ä\n",
        b"\0",
        1j,
        [1, (2, {3})],
        {(1, 2): frozenset({"x"})},
        float("inf"),
        {},
        -(10**5000),
        [2**8192],
    ):
        assert decode(json.loads(json.dumps(encode(value)))) == value
        assert type(decode(encode(value))) is type(value)
    with pytest.raises(NotPlain, match="object object, expected a plain value"):
        encode([object()])
    odd: tuple[Any, ...] = (
        [1],
        {"list": 3},
        {"set": [{"list": []}]},
        {"a": 1, "b": 2},
        {"other": 1},
        {"complex": [1, 2, 3]},
        {"int": 3},
    )
    for forged in odd:
        with pytest.raises((ValueError, TypeError, KeyError)):
            decode(forged)


def answer(code: bytes, machine: int, number: int, argument: int = 0) -> int:
    """What a filter of classic BPF answers: the few instructions that this one has."""
    data = struct.pack("=IIQ6Q", number, machine, 0, argument, 0, 0, 0, 0, 0)
    place, held = 0, 0
    while True:
        operation, if_true, if_false, operand = struct.unpack_from("=HBBI", code, 8 * place)
        if operation == 0x20:
            (held,) = struct.unpack_from("=I", data, operand)
        elif operation == 0x06:
            return int(operand)
        else:
            holds = {0x15: held == operand, 0x35: held >= operand, 0x45: bool(held & operand)}[operation]
            place += if_true if holds else if_false
        place += 1


@pytest.mark.parametrize(("machine", "read"), [("x86_64", 0), ("aarch64", 63)])
def test_the_filter_of_system_calls(machine: str, read: int) -> None:
    code, (column, audit) = seccomp_filter(machine), MACHINES[machine]
    allowed, refused, killed = 0x7FFF0000, 0x00050001, 0x80000000
    numbers = [call[column] for call in REFUSED.values() if call[column] is not None]
    assert len(set(numbers)) == len(numbers) and {answer(code, audit, n) for n in numbers if n is not None} == {refused}
    assert answer(code, audit, read) == allowed and answer(code, 0x40000003, read) == killed
    assert answer(code, audit, 0x40000000 | read) == killed
    clone, limit = CLONE[column], PRLIMIT[column]
    assert answer(code, audit, clone, 0x3D0F00) == allowed and answer(code, audit, clone, 17) == 0x0005000B
    assert answer(code, audit, 435) == 0x00050026
    own, upper_half = answer(code, audit, limit, 0), answer(code, audit, limit, 1 << 32)
    assert own == upper_half == allowed, "a process's number is 32 bits"
    assert {answer(code, audit, limit, number) for number in (1, 2, (1 << 32) | 1, 0xFFFFFFFF)} == {refused}


def test_calls_that_are_new_have_one_number_on_all_machines() -> None:
    assert all(x86 == arm for x86, arm in REFUSED.values() if x86 is not None and x86 >= 424)
