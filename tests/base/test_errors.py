import errno
import os

import pytest

from imagepipe.base.errors import IngestError, describe_error
from imagepipe.base.full_disk import is_full_disk, measure_full_disk, name_full_disk

FULL = os.strerror(errno.ENOSPC)


def fill(filename=None):
    raise OSError(errno.ENOSPC, FULL, *([filename] if filename else []))


def fill_and_raise(error, filename=None):
    try:
        fill(filename)
    except OSError:
        raise error  # noqa: B904


def test_a_full_disk_is_named_by_the_folder_if_nothing_says_where(tmp_path):
    for do in (fill, lambda: fill_and_raise(RuntimeError("a library's own words"))):
        with pytest.raises(OSError, match=FULL) as full, name_full_disk(str(tmp_path)):
            do()
        assert describe_error(full.value) == f"{tmp_path}: {FULL}. Make room, then run it again"


def test_a_file_that_a_full_disk_has_no_room_for_is_named_itself(tmp_path):
    for do in (fill, lambda filename: fill_and_raise(RuntimeError("a library's own words"), filename)):
        with pytest.raises(OSError, match=FULL) as full, name_full_disk(str(tmp_path)):
            do("/elsewhere/cache")
        assert full.value.filename == "/elsewhere/cache"


def test_an_error_that_tells_its_own_story_stays_as_it_is(tmp_path):
    error = IngestError("restore it")
    for explain in (name_full_disk(str(tmp_path)), measure_full_disk(tmp_path / "pixels", "the pixels", lambda: 1)):
        with pytest.raises(IngestError, match="restore it"), explain:
            fill_and_raise(error)
    assert not is_full_disk(IngestError(FULL))


def test_an_error_that_hides_what_it_was_raised_after_is_not_about_that(tmp_path):
    error = KeyError("key")
    error.__suppress_context__ = True  # as ``from None`` does
    with pytest.raises(KeyError), name_full_disk(str(tmp_path)):
        fill_and_raise(error)


def test_a_file_that_is_incomplete_is_measured_only_if_it_is_the_one_without_room(tmp_path):
    path = tmp_path / "pixels"
    for filename, text in ((None, f"{FULL} for the pixels"), (str(path), f"{FULL} for the pixels"), ("/other", FULL)):
        path.write_bytes(b"a part")
        with pytest.raises(OSError, match=FULL) as full, measure_full_disk(path, "the pixels", lambda: 10**6):
            fill(filename)
        assert full.value.filename == ("/other" if filename == "/other" else str(path))
        assert full.value.strerror.startswith(text)
        assert not path.exists()


def test_errors_that_are_the_cause_of_one_another_come_to_an_end():
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_full_disk(one)
