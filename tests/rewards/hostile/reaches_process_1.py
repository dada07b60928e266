import ctypes
import os
import resource
import struct

try:
    for name in ("AS", "DATA", "NOFILE", "CPU", "FSIZE"):
        resource.prlimit(1, getattr(resource, "RLIMIT_" + name), (0, 0))
        print("allowed", name)
except OSError:
    pass
for name, ask in {
    "affinity": lambda: os.sched_setaffinity(1, os.sched_getaffinity(0)),
    "scheduler": lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)),
    "parameter": lambda: os.sched_setparam(1, os.sched_param(0)),
    "priority": lambda: os.setpriority(os.PRIO_PROCESS, 1, 19),
    "priority of a user": lambda: os.setpriority(os.PRIO_USER, 0, 19),
    "pidfd": lambda: os.pidfd_open(1),
}.items():
    try:
        ask()
        print("allowed", name)
    except OSError:
        pass
libc = ctypes.CDLL(None, use_errno=True)
idle = struct.pack("=IIQiIQQQ", 48, 5, 0, 0, 0, 0, 0, 0)
mask = struct.pack("=Q", 1)
place, size = ctypes.c_void_p(), ctypes.c_size_t()
for name, numbers, arguments in (
    ("sched_setattr", (314, 274), (1, idle, 0)),
    ("ioprio_set", (251, 30), (1, 1, 3 << 13)),
    ("ioprio_set of a user", (251, 30), (3, 0, 3 << 13)),
    ("migrate_pages", (256, 238), (1, 1, mask, mask)),
    ("move_pages", (279, 239), (1, 0, None, None, None, 0)),
    ("get_robust_list", (274, 100), (1, ctypes.byref(place), ctypes.byref(size))),
    ("kcmp", (312, 272), (1, 1, 1, 0, 0)),
    ("process_vm_readv", (310, 270), (1, None, 0, None, 0, 0)),
    ("ptrace", (101, 117), (16, 1, 0, 0)),
):
    if libc.syscall(numbers[os.uname().machine == "aarch64"], *arguments) >= 0:
        print("allowed", name)
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
print("its own limit is", *resource.prlimit(0, resource.RLIMIT_NOFILE))
