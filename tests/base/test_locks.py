import contextlib
import fcntl
import threading
import time

import pytest

from imagepipe.base import filesystem, locks

BUSY = RuntimeError("busy")


def test_a_folder_is_held_by_one_at_a_time_and_its_file_stays(tmp_path):
    folder = tmp_path / "new" / "folder"
    with locks.lock_folder(folder, BUSY):
        inode = (folder / locks.LOCK).stat().st_ino
        for _ in range(2):
            with pytest.raises(RuntimeError, match="busy"), locks.lock_folder(folder, BUSY):
                pass
    with locks.lock_folder(folder, BUSY):
        assert (folder / locks.LOCK).stat().st_ino == inode


def test_who_only_looks_at_a_lock_keeps_nobody_out(tmp_path, monkeypatch):
    looker = (tmp_path / locks.LOCK).open("w")
    fcntl.flock(looker, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: looker.close())
    with locks.lock_folder(tmp_path, BUSY):
        assert looker.closed


def test_a_folder_that_is_removed_while_it_is_being_locked_is_locked_anew(tmp_path, before_locking):
    folder = tmp_path / "folder"
    folder.mkdir()
    before_locking(lambda: folder.rename(tmp_path / "removed"))
    with locks.lock_folder(folder, BUSY):
        with pytest.raises(RuntimeError, match="busy"), locks.lock_folder(folder, BUSY):
            pass
        with locks.lock_folder(tmp_path / "removed", BUSY):
            pass


def test_of_several_that_want_a_store_at_once_one_gets_it(memory):
    holders, refused = [], []
    end = threading.Event()

    def hold(number):
        try:
            with locks.lock_folder(f"{memory.uri}/folder", BUSY):
                holders.append(number)
                end.wait()
        except RuntimeError:
            refused.append(number)
        if len(refused) == 3:
            end.set()

    threads = [threading.Thread(target=hold, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(holders) == 1
    assert len(refused) == 3


def test_a_store_held_by_a_killed_process_is_free_again_after_a_while(store, monkeypatch):
    path = store.put("folder/.lock", b"host elsewhere, process 7")
    with pytest.raises(RuntimeError, match="busy"), locks.lock_folder(f"{store.uri}/folder", BUSY):
        pass
    monkeypatch.setattr(filesystem, "modified", lambda path: time.time() - locks.STALE_SECONDS - 1)
    with locks.lock_folder(f"{store.uri}/folder", BUSY):
        assert filesystem.read_bytes(path) not in (b"", b"host elsewhere, process 7")
    assert filesystem.read_bytes(path) == b""


def test_who_was_late_to_renew_leaves_a_store_to_its_next_holder(store, monkeypatch):
    folder = f"{store.uri}/folder"
    with contextlib.ExitStack() as late, contextlib.ExitStack() as following:
        is_held_late = late.enter_context(locks.lock_folder(folder, BUSY))
        with monkeypatch.context() as patch:
            patch.setattr(filesystem, "modified", lambda path: time.time() - locks.STALE_SECONDS - 1)
            is_held = following.enter_context(locks.lock_folder(folder, BUSY))
        late.close()
        with pytest.raises(RuntimeError, match="busy"), locks.lock_folder(folder, BUSY):
            pass
        assert not is_held_late()
        assert is_held()
    assert store.content("folder") == {locks.LOCK: b""}


def test_renewing_does_not_take_a_store_back(memory, monkeypatch):
    monkeypatch.setattr(locks, "_RENEW_SECONDS", 0.01)
    with locks.lock_folder(f"{memory.uri}/folder", BUSY) as renew:
        assert renew()
        memory.put("folder/.lock", b"another one")
        time.sleep(0.1)
        assert memory.content("folder") == {locks.LOCK: b"another one"}
        assert not renew()
    assert memory.content("folder") == {locks.LOCK: b"another one"}


def test_a_store_whose_lock_was_deleted_is_held_no_more(memory):
    with locks.lock_folder(f"{memory.uri}/folder", BUSY) as renew:
        filesystem.delete(f"{memory.uri}/folder/{locks.LOCK}")
        assert not renew()
    assert memory.content("folder") == {}
