import os

found = [f"environment {name}" for name in os.environ if name not in ("LC_CTYPE", "PWD")]
for path in (
    "/etc/passwd",
    "/etc/hostname",
    "/root/.bashrc",
    "/proc/1/mem",
    "/proc/1/environ",
    "/proc/1/maps",
    "/proc/kcore",
    "/dev/mem",
    "/sys/kernel",
):
    try:
        with open(path, "rb") as file:
            if file.read(1):
                found.append(path)
    except OSError:
        pass
found += [
    f"/{name}" for name in os.listdir("/") if name in ("home", "etc", "var", "sys", "opt", "mnt", "work", "outside")
]
found += [name for name in os.listdir("/proc") if name.isdigit() and int(name) > 2]
try:
    found.append(os.readlink("/proc/1/fd/0"))
except OSError:
    pass
found += [
    link
    for link in map(os.readlink, (f"/proc/self/fd/{n}" for n in range(4)))
    if link.startswith("/") and link != "/dev/null" and "memfd" not in link
]
print(found or "nothing read")
