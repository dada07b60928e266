"""Locks of torch's extension compiler, real ones.

1. a lock that nobody holds is removed after the patience, with a word at once and one then, and the compiler gets it; 2. one that
a process holds, or beside which files change, is waited for; 3. torch's own class is as before afterwards; 4. DeepSpeed's first
use passes such a lock.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from torch.utils.cpp_extension import load
from torch.utils.file_baton import FileBaton

from onpolicy.trainer import compiler_lock
from onpolicy.trainer.compiler_lock import abandoned_locks_removed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler_lock, "PATIENCE_S", 0.3)
    monkeypatch.setattr(compiler_lock, "POLL_S", 0.02)


def test_a_lock_that_nobody_holds_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with abandoned_locks_removed():
        baton = FileBaton(str(lock))
        assert baton.try_acquire() and lock.exists(), "the compiler has the lock now"
        baton.release()
    said = capsys.readouterr().err
    assert said.count(str(lock)) == 2 and "waiting for" in said and "nobody has held" in said


@pytest.mark.parametrize("sign", ["open", "beside"])
def test_a_lock_that_somebody_holds_is_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sign: str
) -> None:
    """A process has it open; or one on another machine writes objects beside it."""
    lock, done = tmp_path / "lock", threading.Event()
    holder: Any = FileBaton(str(lock))
    assert holder.try_acquire()
    if sign == "beside":
        os.close(holder.fd)
        holder.fd = None

    def compile_slowly() -> None:
        for i in range(20):
            done.wait(0.05)  # three times the patience in all
            (tmp_path / "object.o").write_text("o" * i)
        holder.release()

    thread = threading.Thread(target=compile_slowly)
    thread.start()
    with abandoned_locks_removed():
        other = FileBaton(str(lock))
        assert other.try_acquire()
        assert (tmp_path / "object.o").read_text() == "o" * 19, "it waited to the end"
        other.release()
    thread.join()
    assert "nobody" not in capsys.readouterr().err


def test_torch_is_as_before_afterwards(tmp_path: Path) -> None:
    before = FileBaton.try_acquire
    with pytest.raises(RuntimeError), abandoned_locks_removed():
        raise RuntimeError
    assert FileBaton.try_acquire is before
    (tmp_path / "lock").touch()
    assert not FileBaton(str(tmp_path / "lock")).try_acquire()


@pytest.mark.process
def test_torchs_compiler_passes_an_abandoned_lock(tmp_path: Path) -> None:
    """As DeepSpeed calls it; without the context it would wait for ever."""
    (tmp_path / "lock").touch()
    source = tmp_path / "one.cpp"
    source.write_text('extern "C" int one() { return 1; }')
    with abandoned_locks_removed():
        load("one", [str(source)], build_directory=str(tmp_path), is_python_module=False)
    assert (tmp_path / "one.so").exists() and not (tmp_path / "lock").exists()
    assert ctypes.CDLL(str(tmp_path / "one.so")).one() == 1
