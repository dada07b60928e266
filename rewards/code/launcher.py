"""Builds a sandbox out of Linux namespaces and becomes its process 1. Run as a script, by ``sandbox``; standard library only.

``launcher.py SPEC``: SPEC is JSON with ``paths`` (what is visible, read-only, at the same place), ``hidden`` (folders below them that look
empty) and ``file_bytes`` (size of the one folder that can be written, /tmp, in memory). The request is read from standard input and
answered on standard output (``inside.serve``). Exit status 77: the sandbox could not be built, and standard error says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

REFUSED = 77
NOBODY = 65534
NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC, NEW_USER, NEW_PID, NEW_NET = (
    0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH, MOUNT_SETATTR = 2, 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
LINKS = {"/dev/fd": "/proc/self/fd"} | {
    f"/dev/std{name}": f"/proc/self/fd/{fd}" for fd, name in enumerate(("in", "out", "err"))
}

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    spec = json.loads(sys.argv[1])
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    inside = importlib.import_module("inside")
    sys.path.pop(0)
    libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG: with the process that started this one
    nothing = os.open("/dev/null", os.O_RDWR)  # before the child changes the root, which is this process's too
    try:
        enter_namespaces()
        first = os.fork()
        if first == 0:
            build_root(spec)
            become_nobody()
            libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # after the change of user, which clears it
            if os.getppid() != 0:
                raise OSError("the process namespace shows its parent")
            inside.serve(0, 1)
            os._exit(0)
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(REFUSED)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # its end is the sandbox's end
    os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 255)


def call(name: str, *arguments: Any) -> None:
    """A function of libc. Raises OSError naming it."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        shown = " ".join(a.decode() for a in arguments if isinstance(a, bytes))
        raise OSError(number, f"{name} {shown}: {os.strerror(number)}")


def enter_namespaces() -> None:
    """Users, mounts, processes (of children), network, messages and names of its own. Whoever starts this is ``NOBODY`` inside; root keeps
    its own rights for the mounts, and the program runs as the machine's ``NOBODY``: limits on processes do not hold for root."""
    user, group = os.geteuid(), os.getegid()
    everything = NEW_USER | NEW_NS | NEW_PID | NEW_NET | NEW_IPC | NEW_UTS | NEW_CGROUP
    if user != 0:
        call("unshare", everything)
        write("/proc/self/setgroups", "deny")
        write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        write("/proc/self/gid_map", f"{NOBODY} {group} 1")
        return
    wait, ready = os.pipe()
    helper = os.fork()  # two users can only be mapped from outside
    if helper == 0:
        os.close(ready)
        os._exit(0 if os.read(wait, 1) and map_users(os.getppid()) else 1)
    os.close(wait)
    try:
        call("unshare", everything)
        os.write(ready, b"1")
    finally:
        os.close(ready)
        _, status = os.waitpid(helper, 0)
    if status:
        raise OSError("the users of the sandbox cannot be mapped")


def map_users(process: int) -> bool:
    """Root and ``NOBODY`` as they are; root alone where a container has no other user."""
    for lines in (f"0 0 1\n{NOBODY} {NOBODY} 1\n", "0 0 1\n"):
        try:
            write(f"/proc/{process}/uid_map", lines)
            write(f"/proc/{process}/gid_map", lines)
            return True
        except OSError:
            continue
    return False


def build_root(spec: Mapping[str, Any]) -> None:
    """A root in memory that shows the given paths and can be written in /tmp alone."""
    call("mount", None, b"/", None, REC | PRIVATE, None)
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", NO_SUID | NO_DEV, b"size=1m,mode=755")
    os.mkdir("/tmp/outside")
    call("syscall", PIVOT_ROOT[os.uname().machine], b"/tmp", b"/tmp/outside")
    os.chdir("/")
    for path in spec["paths"]:
        show(path)
    for path in spec["hidden"]:
        call("mount", b"tmpfs", path.encode(), b"tmpfs", READ_ONLY | NO_SUID | NO_DEV, b"size=4k")
    for path in DEVICES:
        os.makedirs("/dev", exist_ok=True)
        open(path, "w").close()
        call("mount", f"/outside{path}".encode(), path.encode(), None, BIND, None)
    for link, target in LINKS.items():
        os.symlink(target, link)
    os.mkdir("/proc")
    with contextlib.suppress(PermissionError):  # where a container hides parts of its own, there is none here
        call("mount", b"proc", b"/proc", b"proc", READ_ONLY | NO_SUID | NO_DEV | NO_EXEC, None)
    os.mkdir("/tmp")
    call("umount2", b"/outside", DETACH)
    os.rmdir("/outside")
    size = f"size={spec['file_bytes']},nr_inodes=1024,mode=1777".encode()
    call("mount", b"tmpfs", b"/tmp", b"tmpfs", NO_SUID | NO_DEV, size)
    call("mount", None, b"/", None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEV, None)
    os.chdir("/tmp")


class MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "users")]


def show(path: str) -> None:
    """A folder, file or link of the machine, read-only with all that is mounted below it."""
    outside = f"/outside{path}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.islink(outside):
        os.symlink(os.readlink(outside), path)
        return
    if os.path.isdir(outside):
        os.makedirs(path, exist_ok=True)
    else:
        open(path, "w").close()
    call("mount", outside.encode(), path.encode(), None, BIND | REC, None)
    attributes = MountAttributes(READ_ONLY | NO_SUID | NO_DEV, 0, 0, 0)  # the flags of mount have the same numbers here
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    call("syscall", MOUNT_SETATTR, -100, path.encode(), 0x8000, ctypes.byref(attributes), size)  # AT_RECURSIVE


def become_nobody() -> None:
    """Gives up all rights, whoever started this."""
    if os.geteuid() == 0 and mapped(NOBODY):
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    call("capset", header, nothing)


def mapped(user: int) -> bool:
    """Whether the namespace knows this user."""
    try:
        with open("/proc/self/uid_map") as file:
            return any(int(line.split()[0]) == user for line in file)
    except OSError:
        return True


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


if __name__ == "__main__":
    main()
