"""Opens Parquet files, of images or of their paths."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imagepipe.base import filesystem
from imagepipe.base.errors import IngestError

_BUFFER = 2**20  # of a column that is read: else all images of a row group are in memory at once


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """Opens a Parquet file as a ``pyarrow.parquet.ParquetFile`` whose columns are read piece by piece.

    Args:
        path: an absolute path or URI.

    Raises:
        IngestError: it is none, or damaged, also where that shows as it is read.
        OSError: of the system, such as a lack of permission.
    """
    import pyarrow as pa  # not above: most sources do without
    import pyarrow.parquet as pq

    try:
        with filesystem.open_read(path) as file, pq.ParquetFile(file, buffer_size=_BUFFER, pre_buffer=False) as table:
            yield table
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno:  # not Arrow's: a full disk, no permission
            raise
        raise IngestError(f"{path} can't be read as Parquet: {' '.join(str(error).split())[:300]}") from error
