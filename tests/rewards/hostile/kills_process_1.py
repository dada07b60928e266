import os
import signal

for number in (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGSTOP,
    signal.SIGKILL,
    signal.SIGHUP,
    signal.SIGSEGV,
    signal.SIGALRM,
):
    os.kill(1, number)
    try:
        os.kill(-1, number)
    except OSError:
        pass
print("still here")
