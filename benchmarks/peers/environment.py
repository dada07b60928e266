"""The environment of the peers, TRL and Liger, apart from the project's own: `build/peers`, made when it is first needed.

    python -m benchmarks.peers.environment

Both sides run on the same torch (requirements/torch-cpu.txt) and the same transformers (requirements/cpu.lock).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / "build" / "peers"
TORCH, LOCK = ROOT / "requirements" / "torch-cpu.txt", ROOT / "requirements" / "cpu.lock"
PEERS = Path(__file__).with_name("requirements.txt")
UV = (sys.executable, ROOT / "scripts" / "uv_as_pip.py", "pip", "install", "-q", "--no-build-isolation", "--python")


def peers_python() -> Path:
    """The peers' python. The stamp is written last and holds what was asked for, so a set-up that was interrupted, or
    made for other versions, is taken up again."""
    python, stamp = VENV / "bin" / "python", VENV / ".complete"
    contents = "".join(file.read_text() for file in (TORCH, LOCK, PEERS))
    if stamp.exists() and stamp.read_text() == contents:
        return python
    print(f"setting up {VENV.relative_to(ROOT)} with TRL and Liger: 1.5 GB, a minute", flush=True)
    if not python.exists():
        _run(sys.executable, "-m", "venv", VENV)
    torch = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "-r")
    if subprocess.run(list(map(str, (*torch, TORCH))), stderr=subprocess.DEVNULL, check=False).returncode:
        _run(*torch, TORCH.with_name("torch-cpu-index.txt"))  # as the Makefile does
    _run(*UV, python, "-c", LOCK, "accelerate", "datasets", "transformers")  # what TRL declares
    _run(*UV, python, "--no-deps", "-r", PEERS)
    stamp.write_text(contents)
    return python


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True)


if __name__ == "__main__":
    print(peers_python())
