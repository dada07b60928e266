"""Writes while the disk is full: 1. outside of a run they fail at once; 2. in a run they are tried again until there is space,
until the limit, or until the user asks; 3. other errors are raised; 4. a file is never half written."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from onpolicy.utils import disk


class Writer:
    """Raises each of these errors once, then writes."""

    def __init__(self, path: Path, *errors: Exception) -> None:
        self.path, self.errors, self.calls = path, list(errors), 0

    @disk.retry_while_disk_full(lambda self, text: self.path)
    def write(self, text: str) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        disk.atomic_write(self.path, text)
        return len(text)


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "PAUSE", 0.0)


def test_outside_of_a_run_it_fails_at_once(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "file", full())
    with pytest.raises(OSError, match="No space left"):
        writer.write("text")
    assert writer.calls == 1


def test_it_is_tried_again_until_there_is_space(tmp_path: Path) -> None:
    notes: list[str] = []
    writer = Writer(tmp_path / "file", full(), full(), full())
    with disk.waiting_for_disk_space(notes.append):
        assert writer.write("text") == 4
    assert writer.calls == 4 and (tmp_path / "file").read_text() == "text"
    first, last = notes
    assert f"disk full: waiting for space in {tmp_path}" in first and "disk space is available again" in last


def test_after_the_limit_it_names_the_file_and_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "LIMIT", 0.0)
    writer = Writer(tmp_path / "file", full(), full())
    waiting = disk.waiting_for_disk_space(print, kept=lambda: "the last checkpoint is step 3")
    with waiting, pytest.raises(disk.DiskFull, match=r"could not write .*file.*; the last checkpoint is step 3"):
        writer.write("text")


@pytest.mark.parametrize("asked_before", [False, True])
def test_asking_to_stop_ends_the_wait_unless_it_was_asked_before(
    tmp_path: Path, asked_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "PAUSE", 0.01)
    asked = [asked_before]

    def note(text: str) -> None:
        asked[0] = True

    writer = Writer(tmp_path / "file", full(), full())
    with disk.waiting_for_disk_space(note, interrupted=lambda: asked[0]):
        if asked_before:
            assert writer.write("text") == 4
        else:
            with pytest.raises(disk.DiskFull):
                writer.write("text")


@pytest.mark.parametrize("make", [lambda: OSError(errno.EACCES, "Permission denied"), lambda: ValueError("not text")])
def test_other_errors_are_raised(tmp_path: Path, make: Callable[[], Exception]) -> None:
    for errors in ([make()], [full(), make()]):
        writer = Writer(tmp_path / "file", *errors)
        with (
            disk.waiting_for_disk_space(lambda text: None),
            pytest.raises((OSError, ValueError), match=r"denied|not text"),
        ):
            writer.write("text")


def test_a_librarys_own_error_is_raised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint's error names what is still there."""
    monkeypatch.setattr(disk, "LIMIT", 0.0)
    writer = Writer(tmp_path / "file", RuntimeError("I/O error: No space left on device (os error 28)"))
    with disk.waiting_for_disk_space(lambda text: None), pytest.raises(RuntimeError, match="os error 28"):
        writer.write("text")


def test_a_file_keeps_its_old_content_where_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    disk.atomic_write(path, "old")

    def fail(descriptor: int) -> None:
        raise full()

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError) as found:
        disk.atomic_write(path, "new")
    assert found.value.filename == str(path)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["file"]
