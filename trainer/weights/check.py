"""A check that HDF5's library survives a file of weights, and that a SavedModel's variables are listed in time.

The C library hangs or crashes on some damaged files, with Python's lock held, so that no time limit within the process
helps: a process of its own reads the file first.
"""

import subprocess
import sys
from functools import cache
from pathlib import Path

import h5py

from imagepipe.base.errors import WeightsError
from trainer.weights.checkpoint import Checkpoint, get_index, is_saved_model
from trainer.weights.contents import list_shards, open_hdf5

_BYTES_PER_SECOND = 5 << 20  # of a slow disk, and of compressed numbers
_MAX_BYTES = 1 << 30  # per dataset; no layer of a backbone comes near, and a few bytes of a file can claim more
_READ, _WRONG = 0, 3  # exit statuses of the other process: read whole; wrong, but the library came back


def check_readable(path: str, seconds: int = 30) -> None:
    """Checks that a file of weights is there, and that what reads it survives it: another process reads it first.

    A file that is merely wrong passes: its reader says what is missing. An unchanged file is read once. Of a
    SavedModel's folder the list of its variables is read.

    Args:
        path: the file or folder.
        seconds: limit for a small file; a large one has a second more for every 5 MiB.

    Raises:
        WeightsError: there is none; or the other process was ended by a signal, took longer than that, or could not do
            its work.
    """
    if is_saved_model(path):
        stat = get_index(path).stat()
        _read_elsewhere(path, seconds + stat.st_size // _BYTES_PER_SECOND, stat.st_mtime_ns)
        return
    if Path(path).is_dir():
        raise WeightsError(
            f"{path} is a folder, but not of a SavedModel with variables (one that is optimized for serving has none). "
            "Give the model as a .keras, .h5 or .weights.h5 file"
        )
    if not Path(path).is_file():
        raise WeightsError(f"there is no file {path}")
    for part in list_shards(path) or [path]:
        if not Path(part).is_file():
            raise WeightsError(f"{path} names {part}, and there is no such file: copy all of its files")
        stat = Path(part).stat()
        _read_elsewhere(part, seconds + stat.st_size // _BYTES_PER_SECOND, stat.st_mtime_ns)


@cache
def _read_elsewhere(path: str, seconds: int, modified: int) -> None:
    # -P: without it Python imports modules from the current folder, which may be the one that the file came in.
    reader = "the reader of variables" if Path(path).is_dir() else "HDF5's library"
    command = [sys.executable, "-P", "-m", __spec__.name, path]
    try:
        done = subprocess.run(command, timeout=seconds, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    except subprocess.TimeoutExpired:
        problem = f"{reader} did not finish reading it in {seconds} s"
    else:
        if done.returncode in (_READ, _WRONG):
            return
        if done.returncode > 0:
            raise WeightsError(f"{path} can't be checked: {done.stderr.strip()[-500:]}")
        problem = f"reading it ended {reader} by signal {-done.returncode}"
    raise WeightsError(f"{path} is damaged, or made to do harm: {problem}. Get it again.")


def _read_whole(path: str) -> None:
    def read(_: str, item: h5py.Group | h5py.Dataset) -> None:
        for name in item.attrs:
            item.attrs[name]
        if isinstance(item, h5py.Dataset) and not item.external and not item.is_virtual and item.nbytes <= _MAX_BYTES:
            item[()]

    if Path(path).is_dir():
        Checkpoint(path).list_contents()
        return
    with open_hdf5(path) as file:
        read("", file)
        file.visititems(read)  # follows no link to another file


if __name__ == "__main__":
    try:
        _read_whole(sys.argv[1])
    except Exception:  # h5py doesn't list what it raises
        sys.exit(_WRONG)
