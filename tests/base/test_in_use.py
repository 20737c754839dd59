import errno
import fcntl
import os
import subprocess
import sys

import pytest

from imagepipe.base.in_use import hold_folder, is_in_use
from imagepipe.base.locks import LOCK, lock_folder


def test_a_folder_is_in_use_as_long_as_one_of_its_holders_is(tmp_path):
    (tmp_path / "model" / "assets").mkdir(parents=True)
    with hold_folder(tmp_path / "model"):
        with hold_folder(tmp_path / "model"):
            assert is_in_use(tmp_path)
        assert is_in_use(tmp_path / "model")
        assert not is_in_use(tmp_path / "model" / "assets")
        (tmp_path / "model").rename(tmp_path / "moved")
        assert is_in_use(tmp_path / "moved")
    assert not is_in_use(tmp_path)


def test_a_folder_that_a_writer_has_locked_is_in_use(tmp_path):
    with lock_folder(tmp_path / "state", RuntimeError()):
        assert is_in_use(tmp_path)
    assert not is_in_use(tmp_path)
    assert not is_in_use(tmp_path / "none")


def test_a_folder_that_is_not_there_cannot_be_held(tmp_path):
    with pytest.raises(FileNotFoundError), hold_folder(tmp_path / "none"):
        pass


def test_a_folder_that_is_removed_while_it_is_being_held_is_not_held(tmp_path, before_locking):
    folder, removed = tmp_path / "model", tmp_path / "removed"
    folder.mkdir()
    before_locking(lambda: folder.rename(removed))
    with pytest.raises(FileNotFoundError), hold_folder(folder):
        pass
    folder.mkdir()
    before_locking(lambda: (removed.rmdir(), folder.rename(removed), folder.mkdir()))
    with hold_folder(folder):
        assert is_in_use(folder)
        assert not is_in_use(removed)


def test_the_mark_of_a_process_that_was_killed_is_gone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from imagepipe.base.in_use import hold_folder\n"
        "with hold_folder(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: S603
        assert holder.stdout.readline() == b"held\n"
        assert is_in_use(tmp_path)
        holder.kill()
        holder.wait()
    assert not is_in_use(tmp_path)


def test_looking_whether_a_folder_is_in_use_disturbs_nobody_who_takes_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from imagepipe.base.in_use import is_in_use\n"
        "print('looking', flush=True)\n"
        "while True: is_in_use(Path(sys.argv[1]))"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as looker:  # noqa: S603
        try:
            assert looker.stdout.readline() == b"looking\n"
            for _ in range(20_000):
                with hold_folder(tmp_path):
                    pass
        finally:
            looker.kill()


def test_who_looks_at_a_writers_lock_is_not_taken_for_a_writer(tmp_path):
    with (tmp_path / LOCK).open("w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)
        assert not is_in_use(tmp_path)


@pytest.mark.parametrize(
    ("call", "number", "in_use"),
    [
        ((fcntl, "flock"), errno.EBADF, True),  # as NFS answers
        ((fcntl, "flock"), errno.ENOLCK, True),
        ((os, "open"), errno.EACCES, True),
        ((os, "open"), errno.ENOENT, False),
        ((os, "scandir"), errno.EACCES, True),
        ((os, "scandir"), errno.ENOENT, False),
    ],
)
def test_a_folder_that_cannot_be_looked_at_counts_as_in_use(call, number, in_use, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*call, fail)
        assert is_in_use(tmp_path) == in_use
