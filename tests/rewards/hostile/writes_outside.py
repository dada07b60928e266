import os

written = []
for folder in (
    "/",
    "/root",
    "/home",
    "/usr/lib",
    "/lib",
    "/dev",
    "/proc",
    "/runner",
    "/etc",
    "/var/tmp",
    "/dev/shm",
    os.path.dirname(os.__file__),
):
    try:
        os.makedirs(folder, exist_ok=True)
        with open(f"{folder}/left_behind", "w") as file:
            file.write("x")
        written.append(folder)
    except OSError:
        pass
open("/tmp/left_behind", "w").write("x")  # its own
print(written or "nothing written")
