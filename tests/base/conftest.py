import fcntl
from collections.abc import Callable

import pytest

from tests.ingest.conftest import lines, put, records, tree  # noqa: F401 (fixtures)
from tests.photos import crops, encode, photos  # noqa: F401 (fixtures)
from tests.stores import memory, s3, s3_server, store  # noqa: F401 (fixtures)


@pytest.fixture
def before_locking(monkeypatch) -> Callable[[Callable[[], object]], None]:
    """Has something done between the opening of the next file or folder that is locked, and the lock."""
    flock = fcntl.flock

    def do_once(change: Callable[[], object]) -> None:
        def lock(*arguments):
            monkeypatch.setattr(fcntl, "flock", flock)
            change()
            return flock(*arguments)

        monkeypatch.setattr(fcntl, "flock", lock)

    return do_once
