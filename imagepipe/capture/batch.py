"""Captures the answers of a batch prediction: in the process that predicts, shard by shard, so that nothing is lost."""

import random
from typing import Any

from imagepipe.base import filesystem
from imagepipe.capture.files import write_rows
from imagepipe.capture.rows import Answered, CaptureOptions, build_row

_FILE_BYTES = 8 * 2**20
_ROW_BYTES = 4096  # beside the image: scores and an embedding


class ShardCapture:
    """Writes the answers to a shard, in one attempt at it."""

    def __init__(self, options: CaptureOptions, shard: str, folder: str):
        """Makes it.

        Args:
            options: the part of the images that is captured; old rows are not deleted.
            shard: its id, for the names of the files.
            folder: the attempt's, from which the files are moved into the capture, see ``move_files``.
        """
        self._options, self._shard, self._folder = options, shard, folder
        self._rows: list[dict[str, Any]] = []
        self._size = self._files = 0

    def add(self, answered: Answered) -> None:
        """Takes an answer, if it is among those to be captured.

        Raises:
            OSError: if a file can't be written.
        """
        if random.random() >= self._options.rate:  # noqa: S311 (a sample, no secret)
            return
        row = build_row(answered, self._options.images)
        self._rows.append(row)
        self._size += len(row["image"] or b"") + _ROW_BYTES
        if self._size >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is not in a file yet.

        Raises:
            OSError: if the file can't be written.
        """
        if self._rows:
            write_rows(self._folder, self._rows, f"{self._shard}-{self._files}")
            self._rows, self._size, self._files = [], 0, self._files + 1


def move_files(folder: str, capture: str) -> None:
    """Moves the files of an attempt into the capture, which may lie elsewhere; those that are there are replaced.

    Raises:
        OSError: if one can't be read or written.
    """
    for path, _ in filesystem.walk(folder):
        target = f"{capture}{path.removeprefix(folder)}"
        if filesystem.is_uri(target):
            filesystem.copy(path, target)
        else:
            filesystem.write_whole(target, filesystem.read_bytes(path))
        filesystem.delete(path)
