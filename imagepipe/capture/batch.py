"""Captures the answers of a batch prediction: in the process that predicts, shard by shard, so that nothing is lost."""

import random
from typing import Any

from imagepipe.base import filesystem
from imagepipe.capture.files import write_rows
from imagepipe.capture.rows import Answered, CaptureOptions, build_row

_FILE_BYTES = 8 * 2**20
_ROW_BYTES = 4096  # beside the image: scores and an embedding


class ShardCapture:
    """Writes the answers to a shard; another attempt at it within the same hour replaces the files."""

    def __init__(self, options: CaptureOptions, shard: str):
        """Makes it.

        Args:
            options: the part of the images that is captured, and where to; old rows are not deleted.
            shard: its id, for the names of the files.
        """
        self._options, self._shard = options, shard
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
            write_rows(filesystem.absolute(self._options.folder), self._rows, f"{self._shard}-{self._files}")
            self._rows, self._size, self._files = [], 0, self._files + 1
