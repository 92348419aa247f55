"""Files: locks on file systems that have none."""

import errno
import fcntl
from pathlib import Path

import pytest

from march_search.errors import StorageError
from march_search.files.atomic import lock, try_lock


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    text = f"{tmp_path / 'lock'}: cannot be locked: No locks available. Use a file system that has flock."
    with pytest.raises(StorageError) as refused:
        try_lock(tmp_path / "lock")
    assert str(refused.value) == text
    for busy in (None, "another process holds the lock"):
        with pytest.raises(StorageError) as refused, lock(tmp_path / "lock", busy):
            pass
        assert str(refused.value) == text


def test_a_lock_that_another_holds_is_refused_in_the_words_given(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    with held, pytest.raises(StorageError, match="taken"), lock(tmp_path / "lock", "taken"):
        pass
    with lock(tmp_path / "lock", "taken"):
        assert try_lock(tmp_path / "lock") is None
