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
