import json
import os

import pytest

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError
from imagepipe.ingest import commit


def stage(folder, **contents):
    """Stages files and returns their moves, for commit."""
    for name, content in contents.items():
        filesystem.write_whole(f"{folder}/.staging-1/{name}", content)
    return {f".staging-1/{name}": name for name in contents}


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_interruption_at_any_step_leaves_the_old_or_is_finished_to_the_new(tmp_path, monkeypatch):
    """Stops before the 1st, 2nd, … change of a file in place, until none is left to stop at."""
    old = {"gone": b"1", "kept": b"2", "changed": b"3", "dataset.json": b"old"}
    new = {"kept": b"2", "changed": b"33", "added": b"4", "dataset.json": b"new"}
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        for name, data in old.items():
            filesystem.write_whole(f"{folder}/{name}", data)
        moves = stage(folder, **{name: new[name] for name in ("changed", "added", "dataset.json")})
        left = steps

        def interrupted(do):
            def step(*paths):
                nonlocal left
                if left == 0:
                    raise KeyboardInterrupt
                left -= 1
                do(*paths)

            return step

        with monkeypatch.context() as patch:
            for name in ("rename", "delete", "write_whole"):
                patch.setattr(filesystem, name, interrupted(getattr(filesystem, name)))
            try:
                commit.commit(str(folder), moves, ["gone"])
                stopped = False
            except KeyboardInterrupt:
                stopped = True
        described = (folder / "dataset.json").read_bytes()
        if described == b"new":
            assert {name: data for name, data in content(folder).items() if name in new or name in old} == new
        commit.recover(str(folder))
        present = content(folder)
        assert present in (old, new)
        assert not stopped or (present == old) == (steps == 0)
        assert not list(folder.glob(".staging-*"))
        if not stopped:
            break
        steps += 1
    assert steps == 6  # the journal, one deletion, three moves, the journal's deletion


def test_a_file_that_would_replace_an_equal_one_is_left_alone(tmp_path):
    filesystem.write_whole(f"{tmp_path}/same", b"1")
    os.utime(tmp_path / "same", ns=(5, 5))
    commit.commit(str(tmp_path), stage(tmp_path, same=b"1"), [])
    assert (tmp_path / "same").stat().st_mtime_ns == 5
    assert not (tmp_path / "journal.json").exists()


@pytest.mark.parametrize(
    "journal",
    [
        {"moves": [], "deletions": ["../kept"]},
        {"moves": [], "deletions": ["train/../../kept"]},
        {"moves": [], "deletions": ["{root}/kept"]},
        {"moves": [], "deletions": ["file://{root}/kept"]},
        {"moves": [["../kept", "stolen"]], "deletions": []},
        {"moves": [[".staging-1/new", "../kept"]], "deletions": ["old"]},
        {"moves": [1], "deletions": []},
        {"moves": [["a"]], "deletions": []},
        {"moves": [["a", None]], "deletions": []},
        {"moves": [], "deletions": [1]},
        {"moves": [], "deletions": [""]},
        {"moves": [], "deletions": ["a\0b"]},
        {"moves": [], "deletions": 1},
        [],
    ],
)
def test_a_journal_that_leads_out_of_its_folder_or_is_malformed_is_refused_before_anything_changes(tmp_path, journal):
    folder = tmp_path / "dataset"
    stage(folder, new=b"1")
    for path in (tmp_path / "kept", folder / "old"):
        path.write_bytes(b"2")
    (folder / "journal.json").write_text(json.dumps(journal).replace("{root}", str(tmp_path)))
    contents = content(tmp_path)
    with pytest.raises(IngestError, match=r"journal\.json is damaged: restore it"):
        commit.recover(str(folder))
    assert content(tmp_path) == contents


def test_a_refused_ingest_leaves_the_lock_of_the_running_one(tmp_path):
    folder = str(tmp_path / "out")
    with commit.lock(folder):
        for _ in range(3):
            with pytest.raises(IngestError, match=r"Another ingest into .* is running: wait"), commit.lock(folder):
                pass
    with commit.lock(folder):
        pass


def test_a_store_is_locked_too(memory):
    folder = f"{memory.uri}/out"
    message = r"Another ingest into .* is running, or was killed less than 10 minutes ago"
    with commit.lock(folder), pytest.raises(IngestError, match=message), commit.lock(folder):
        pass
    with commit.lock(folder):
        pass


def test_a_folder_that_cannot_be_created_is_reported(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(IngestError, match="can't be used"), commit.lock(f"{tmp_path}/file/out"):
        pass
