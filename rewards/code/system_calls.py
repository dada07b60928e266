"""The system calls that a program in the sandbox may not make, and the filter of the kernel (seccomp) that refuses them.

A list of what is refused, because what the standard library needs differs between its versions. Each call is here for a reason: it
starts a process, reaches another process, reaches memory or a part of the kernel that no limit counts, or changes the machine.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its column in the tables below, and its number in the audit system."""
CLONE, PRLIMIT = (56, 220), (302, 261)
"""Threads need the first; reading and setting one's own limits the second."""
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # other processes: process 1 has the user of the program, so the kernel would allow it
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "get_robust_list": (274, 100), "perf_event_open": (298, 241), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # the network; a pair of sockets, which asyncio needs, keeps its small buffers and carries no file descriptors
    "socket": (41, 198), "setsockopt": (54, 208), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # memory that the limit does not count
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # mounts, namespaces and files by handle
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    # parts of the kernel with a history, of no use here
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "personality": (135, 92),
    "modify_ldt": (154, None), "lookup_dcookie": (212, 18),
    # the machine
    "syslog": (103, 116), "acct": (163, 89), "settimeofday": (164, 170), "adjtimex": (159, 171), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
}  # fmt: skip
"""Call -> its number on x86-64 and on ARM64.

Some calls reach another process and are not here. Signals (kill, tgkill, rt_sigqueueinfo): the kernel drops those to process 1 from
inside, and each program has a process group of its own. prctl's core scheduling and the files of /proc/1: process 1 cannot be traced.
Those that only read (getpriority, sched_getaffinity and so on)."""
_CLONE3, _CLONE_THREAD, _EPERM, _EAGAIN, _ENOSYS = 435, 0x10000, 1, 11, 38


def filter_of_this_machine() -> bytes:
    """The filter as ``prctl(PR_SET_SECCOMP)`` takes it.

    Raises:
        OSError: another machine than x86-64 and ARM64.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(f"the sandbox knows the system calls of {' and '.join(MACHINES)}, not of {machine}")
    return seccomp_filter(machine)


def seccomp_filter(machine: str) -> bytes:
    """Classic BPF over ``struct seccomp_data``: number at 0, machine at 4, first argument at 16 (its low half).

    Processes may not be started, threads may; limits may be set for the process itself (0), not for one by its number.
    """
    column, audit = MACHINES[machine]
    load, equal, above, masked, end = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, error, allow = 0x80000000, 0x00050000, 0x7FFF0000
    code: list[Sequence[int]] = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, 0)]
    code += [(above, 0, 1, 0x40000000), (end, 0, 0, kill)]  # the x32 numbers of the same calls
    code += [
        (equal, 0, 1, _CLONE3),
        (end, 0, 0, error | _ENOSYS),
    ]  # its flags cannot be read; libraries fall back to clone
    for number, test, refusal in ((CLONE, (masked, 0, 1, _CLONE_THREAD), _EAGAIN), (PRLIMIT, (equal, 0, 1, 0), _EPERM)):
        code += [
            (equal, 0, 4, number[column]),
            (load, 0, 0, 16),
            test,
            (end, 0, 0, allow),
            (end, 0, 0, error | refusal),
        ]
    for numbers in REFUSED.values():
        if (refused := numbers[column]) is not None:
            code += [(equal, 0, 1, refused), (end, 0, 0, error | _EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in (*code, (end, 0, 0, allow)))
