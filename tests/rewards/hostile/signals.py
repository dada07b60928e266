import os
import signal

signal.raise_signal(signal.SIGINT) if False else None
os.killpg(0, signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
