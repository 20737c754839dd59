"""Opens a file of weights of any kind: HDF5, alone, in Keras's zip or in several files; or a SavedModel's folder."""

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import h5py
import numpy as np

from imagepipe.base.errors import WeightsError, describe_error
from imagepipe.base.kinds import LOOKED_AT, describe_content
from trainer.weights import checkpoint, hdf5
from trainer.weights.layers import Contents, show_text

_INSIDE_KERAS = "model.weights.h5"
_MAX_WEIGHTS, _MAX_INFLATION = 8 << 30, 100  # bytes, and times the archive's
_MAX_LAYERS = 3_000
_MAX_SHARDS = 256  # files that are open at once
_MAX_JSON = 64 << 20  # bytes; the largest of Keras's applications has 2 MB

Reader = Callable[[str], np.ndarray]
"""Returns the numbers at one of ``StoredLayer.keys``."""


@contextmanager
def open_weights(path: str) -> Iterator[tuple[Contents, Reader]]:
    """Opens a file of weights for reading. Have it read by another process first: ``check.check_readable``.

    Raises:
        WeightsError: it does not hold weights that can be read.
    """
    try:
        if Path(path).is_dir():
            saved = checkpoint.Checkpoint(path)
            yield _check_bounds(saved.list_contents()), saved.read
        elif shards := list_shards(path):
            with ExitStack() as stack:
                files = [stack.enter_context(open_hdf5(shard)) for shard in shards]
                contents = _check_bounds(hdf5.list_shards(files))
                yield contents, lambda key: hdf5.read_numbers(next(file[key] for file in files if key in file))
        else:
            with open_hdf5(path) as file:
                yield _check_bounds(_list_contents(path, file)), lambda key: hdf5.read_numbers(file[key])
    except WeightsError:
        raise
    except Exception as error:  # h5py doesn't list what it raises on damaged bytes, from KeyError to UnicodeEncodeError
        raise WeightsError(f"{path} does not hold weights that can be read: {show_text(str(error), 300)}") from error


def list_shards(path: str) -> list[str]:
    """Returns the files that a ``.weights.json`` of Keras names, which lie beside it; none if it is another file.

    Raises:
        WeightsError: it is damaged, or names a file elsewhere.
    """
    if not path.endswith(".json"):
        return []
    try:
        with Path(path).open("rb") as file:
            content = _parse_json(file, path)
        values = content["weight_map"].values() if isinstance(content, dict) else ()
        names = sorted({name for value in values for name in (value if isinstance(value, list) else [value])})
        if not names:
            raise ValueError("it names no files")
        if odd := [name for name in names if name != Path(name).name or not name.endswith(".h5")]:
            raise ValueError(f"it names {odd[0]!r}, which is no .h5 file beside it")
    except (AttributeError, KeyError, OSError, TypeError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path} is not what Keras's save_weights(max_shard_size=) writes: {describe_error(error)}"
        ) from error
    if len(names) > _MAX_SHARDS:
        raise WeightsError(f"{path} names {len(names):,} files; at most {_MAX_SHARDS} are read")
    return [str(Path(path).with_name(name)) for name in names]


@contextmanager
def open_hdf5(path: str) -> Iterator[h5py.File]:
    """Opens an HDF5 file, or the one in a ``.keras`` file.

    Raises:
        WeightsError: it is neither. Damage shows as one of many exceptions of h5py.
    """
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            yield file
    elif zipfile.is_zipfile(path):
        # Python's zip starts anew at each step back, and HDF5 makes many: 40 s for InceptionV3.
        with tempfile.TemporaryFile() as copy:
            _extract_weights(path, copy)
            with h5py.File(copy) as file:
                yield file
    else:
        raise WeightsError(
            f"{path} does not hold weights that can be read: it is {_describe_other(path)}. "
            "Keras's save_weights() and save() write such files."
        )


def _describe_other(path: str) -> str:
    """Returns what a file is that is neither HDF5 nor a zip archive."""
    with Path(path).open("rb") as file:
        start = file.read(LOOKED_AT)
    if not start:
        return "empty"
    return describe_content(start) or "neither HDF5 nor a .keras file, or it is damaged"


def _extract_weights(path: str, copy: IO[bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if _INSIDE_KERAS not in names:
            kind = "of PyTorch" if any(name.endswith("data.pkl") for name in names) else f"without {_INSIDE_KERAS}"
            raise OSError(f"it is a zip archive {kind}, and no .keras file")
        info = archive.getinfo(_INSIDE_KERAS)
        if info.file_size > min(_MAX_WEIGHTS, _MAX_INFLATION * Path(path).stat().st_size):
            raise OSError(f"{_INSIDE_KERAS} in it would have {info.file_size} bytes")
        with archive.open(info) as inside:
            shutil.copyfileobj(inside, copy, 1 << 20)


def _check_bounds(contents: Contents) -> Contents:
    if len(contents.layers) > _MAX_LAYERS:
        raise OSError(f"it has {len(contents.layers):,} layers; the largest backbone has less than 1,000")
    if contents.count_numbers() > _MAX_WEIGHTS:
        raise OSError(f"by its shapes it has more than {_MAX_WEIGHTS:,} numbers")
    return contents


def _list_contents(path: str, file: h5py.File) -> Contents:
    contents = hdf5.list_contents(file)
    if not zipfile.is_zipfile(path):
        return contents
    with zipfile.ZipFile(path) as archive:
        config, metadata = _read_json(archive, "config.json"), _read_json(archive, "metadata.json")
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return hdf5.add_configuration(contents, config, str(version))


def _read_json(archive: zipfile.ZipFile, name: str) -> object:
    with archive.open(name) as file:
        return _parse_json(file, name)


def _parse_json(file: IO[bytes], name: str) -> object:
    content = file.read(_MAX_JSON + 1)
    if len(content) > _MAX_JSON:
        raise OSError(f"{name} is larger than {_MAX_JSON >> 20} MiB")
    return json.loads(content)
