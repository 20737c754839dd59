import inspect
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from imagepipe.base import on_disk
from imagepipe.base.folders import describe_passed_over, list_files
from tests.stores import memory  # noqa: F401 (a fixture)


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def list_all(folder):
    """Returns the reasons by relative path, in the order of the listing, and what was passed over."""
    passed_over = Counter()
    listed = {path.removeprefix(f"{folder}/"): reason for path, reason in list_files(str(folder), passed_over)}
    return listed, passed_over


JUNK = (
    "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "a/@eaDir/1.jpg/SYNOPHOTO_THUMB_S.jpg",
    "__MACOSX/a/._1.jpg",
    "a/.thumbnails/1.jpg",
    "a/._1.jpg",
    "a/.DS_Store",
    "lost+found/7",
    "$RECYCLE.BIN/1.jpg",
    "System Volume Information/x",
    ".ipynb_checkpoints/1.jpg",
    "a/Thumbs.db",
)


def test_what_systems_leave_in_folders_is_passed_over_and_counted(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2", *JUNK)
    listed, passed_over = list_all(tmp_path)
    assert listed == {"a/1.jpg": None, "b/2": None}
    assert passed_over.total() == len(JUNK)
    assert describe_passed_over(passed_over) == (
        "1 Thumbs.db, 4 hidden, 1 in $RECYCLE.BIN, 2 in @eaDir, 1 in System Volume Information, 1 in __MACOSX, "
        "1 in lost+found"
    )


def test_a_store_passes_over_and_counts_the_same(tmp_path, memory):  # noqa: F811
    put(tmp_path, "a/1.jpg", "b/2", *JUNK)
    for name in ("a/1.jpg", "b/2", *JUNK):
        memory.put(f"set/{name}", b"x")
    assert list_all(f"{memory.uri}/set") == list_all(tmp_path)


def test_names_of_junk_folders_are_those_of_folders_only(tmp_path):
    put(tmp_path, "a/lost+found", "thumbs.db/1.jpg")
    listed, passed_over = list_all(tmp_path)
    assert listed == dict.fromkeys(("a/lost+found", "thumbs.db/1.jpg"))
    assert not passed_over


def test_nothing_passed_over_is_no_text(tmp_path):
    (tmp_path / "@eaDir").mkdir()
    _, passed_over = list_all(tmp_path)
    assert describe_passed_over(passed_over) == ""


def test_a_loop_or_a_broken_link_costs_that_entry_only(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg", "c.jpg")
    (tmp_path / "a/self.jpg").symlink_to("self.jpg")
    (tmp_path / "b/gone").symlink_to("nowhere")
    (tmp_path / "b/up").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert list_all(tmp_path)[0] == {
        "a/1.jpg": None,
        "a/self.jpg": "link that can't be followed: Too many levels of symbolic links",
        "b/2.jpg": None,
        "b/gone": "link that can't be followed: No such file or directory",
        "b/up": "folder that links to one above itself",
        "c.jpg": None,
        "loop": "link that can't be followed: Too many levels of symbolic links",
    }


def test_a_closed_folder_costs_its_entries_only():
    """As an ordinary user, whom permissions stop; as root they would not."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        put(folder, "set/a/1.jpg", "set/b/2.jpg", "closed/3.jpg")
        (folder / "set/a/link.jpg").symlink_to(folder / "closed/3.jpg")
        for name in ("set/b", "closed"):
            (folder / name).chmod(0)
        if user == 0:
            os.seteuid(65534)
        try:
            listed, _ = list_all(folder / "set")
        finally:
            os.seteuid(user)
            for name in ("set/b", "closed"):
                (folder / name).chmod(0o755)
    assert listed == {
        "a/1.jpg": None,
        "a/link.jpg": "link that can't be followed: Permission denied",
        "b": "folder can't be listed: Permission denied",
    }


def test_a_folder_that_vanishes_meanwhile_costs_its_entries_only(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    listing = list_files(str(tmp_path), Counter())
    next(listing)
    (tmp_path / "b").rename(tmp_path.with_name("moved"))
    assert list(listing) == [
        (f"{tmp_path}/b", "folder can't be listed: No such file or directory"),
        (f"{tmp_path}/c/3.jpg", None),
    ]


def test_a_pipe_is_counted_and_never_waited_for(tmp_path):
    put(tmp_path, "a/1.jpg")
    os.mkfifo(tmp_path / "a/pipe.jpg")
    listed, passed_over = list_all(tmp_path)
    assert listed == {"a/1.jpg": None}
    assert describe_passed_over(passed_over) == "1 not files (pipes, sockets, devices)"


def test_names_that_are_not_utf_8_are_refused_by_name(tmp_path):
    put(tmp_path, "a/1.jpg", os.fsdecode(b"a/caf\xe9.jpg"), os.fsdecode(b"th\xe9/2.jpg"))
    reasons = [reason for _, reason in list_files(str(tmp_path), Counter())]
    assert reasons == [
        None,
        "name is not UTF-8, rename it: b'a/caf\\xe9.jpg'",
        "name is not UTF-8, rename it: b'th\\xe9/2.jpg'",
    ]


def test_a_link_that_is_passed_over_is_not_walked(tmp_path):
    put(tmp_path, "set/a/1.jpg", "elsewhere/1", "elsewhere/2")
    (tmp_path / "set/.cache").symlink_to(tmp_path / "elsewhere")
    assert list_all(tmp_path / "set")[1] == {"hidden": 1}


def test_links_that_double_the_paths_from_folder_to_folder_come_to_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr("imagepipe.base.folders._MAX_LISTINGS", 4)
    for number in range(30):
        put(tmp_path, f"all/{number}/x.jpg")
        for link in "ab":
            (tmp_path / f"all/{number}" / link).symlink_to(f"../{number + 1}")
    passed_over = Counter()
    listed = [reason for _, reason in list_files(str(tmp_path / "all/0"), passed_over)]
    assert listed.count(None) <= 4 * 30
    assert "folder to which links lead more than 4 times" in listed


def test_a_deep_tree_needs_no_recursion(tmp_path):
    deep = "/".join("d" * 300)
    put(tmp_path, f"{deep}/1.jpg")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        listed, _ = list_all(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert listed == {f"{deep}/1.jpg": None}


@pytest.mark.parametrize("name", ["[a]", "a*b", "what?", "two  words ", "a\nb", "{x}", "~", "$HOME", "-rf"])
def test_any_name_is_listed(name, tmp_path, memory):  # noqa: F811
    put(tmp_path, f"{name}/{name}.jpg")
    assert list_all(tmp_path / name)[0] == {f"{name}.jpg": None}
    memory.put(f"{name}/{name}.jpg", b"x")
    assert list_all(f"{memory.uri}/{name}")[0] == {f"{name}.jpg": None}


def test_a_folder_with_more_files_than_fit_into_memory_is_listed_in_order(tmp_path, monkeypatch):
    names = [f"{n * 7919 % 1000:03}.jpg" for n in range(40)] + ["b/1.jpg", "b/2.jpg", ".hidden"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    passed_over = Counter()
    expected = list(list_files(str(tmp_path), passed_over))
    assert len(expected) == 42
    monkeypatch.setattr(on_disk, "_IN_MEMORY", 7)
    again = Counter()
    assert list(list_files(str(tmp_path), again)) == expected
    assert again == passed_over == {"hidden": 1}
