import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "unshare": (0x10000000,),
    "setns": (0, 0),
    "mount": (b"tmpfs", b"/tmp", b"tmpfs", 0, None),
    "umount2": (b"/proc", 2),
    "chroot": (b"/tmp",),
    "ptrace": (16, 1, 0, 0),
    "process_vm_readv": (1, None, 0, None, 0, 0),
    "personality": (0,),
    "setuid": (0,),
    "sethostname": (b"x", 1),
    "keyctl": (0, 0),
}
for name, arguments in calls.items():
    function = getattr(libc, name, None)
    if function is not None and function(*arguments) != -1:
        print("allowed", name)
try:
    with open("/proc/self/status") as file:
        print(
            *[
                f"allowed {line}"
                for line in file
                if line.startswith(("CapPrm", "CapEff", "CapInh", "CapAmb")) and int(line.split()[1], 16)
            ]
        )
except OSError:
    pass
for device in ("/dev/sda", "/dev/kmsg", "/dev/tty"):
    if os.path.exists(device) and os.access(device, os.R_OK):
        print("allowed", device)
print("end of list")
