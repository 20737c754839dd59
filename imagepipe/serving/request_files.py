"""Files of requests, in the formats that other tools write and take.

- JSON lines (``.jsonl``, ``.ndjson``), each an instance of the REST API: ``{"input": {"b64": "…"}, "metadata":
  "id-1"}``, side features as further keys. ML Engine and Vertex AI take these for batch jobs.
- numpy arrays (``.npz``): ``input`` and ``metadata``, side features as further arrays, all ``[n]``.
  ``saved_model_cli run`` takes these, as ``--inputs "input=FILE.npz[input];metadata=FILE.npz[metadata]"``.
- TFRecords (``.tfrecord``, ``.tfrecord.gz``) of Examples of the data contract, which the signature ``tf_examples``
  takes.
"""

import gzip
import itertools
import json
import math
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features, restore_whole
from imagepipe.base.filesystem import open_whole
from imagepipe.base.kinds import find_packing
from imagepipe.ingest.delimited import MAX_LINE, build_object
from imagepipe.serving.instances import check_request, encode_instance, parse_instance, replace_surrogates
from imagepipe.serving.limits import MAX_ARRAYS_BYTES, MAX_LINE_BYTES
from imagepipe.serving.side import fill_missing
from imagepipe.serving.types import Failure, Request, RequestError, Value

RequestFormat = Literal["jsonl", "npy", "tfrecord"]

SUFFIXES: dict[RequestFormat, str] = {"jsonl": ".jsonl", "npy": ".npz", "tfrecord": ".tfrecord.gz"}
"""Suffix of a written file's name, by format."""

EMPTY = "no request in it"
"""Why a file of requests is a failure, the only one of its file."""

_JSON_LINES = (".jsonl", ".ndjson")
_MAX_LINES_OF_HEAD = 100  # by which it is told what a file holds


def is_request_file(path: str | Path) -> bool:
    """Returns whether ``read_requests`` takes the file, judged by its name."""
    return _find_reader(path) is not None


def holds_requests(path: str) -> bool:
    """Returns whether a file of JSON lines is one of requests, and no manifest, judged by its first lines.

    A row of a manifest says where the image is (``path``); a request has it (``input``). Lines that are neither decide
    nothing: whoever reads the file refuses them by their number.
    """
    if not path.lower().endswith(_JSON_LINES):
        return False
    try:
        with filesystem.open_read(path) as file:
            lines = itertools.islice(iter(lambda: file.readline(MAX_LINE + 1), b""), _MAX_LINES_OF_HEAD)
            return next((is_request for is_request in map(_is_request, lines) if is_request is not None), True)
    except OSError:
        return True  # reading it tells the reason


def _is_request(line: bytes) -> bool | None:
    """Returns whether a line is a request or a row of a manifest; None if it is neither."""
    if b"\0" in line:  # UTF-16, in which no program writes images
        return False
    if len(line) > MAX_LINE:
        return True
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names = values if isinstance(values, dict) else {}
    if "input" in names or "b64" in names:
        return True
    return False if "path" in map(str.lower, names) else None


def read_requests(path: str | Path) -> Iterator[Request | Failure]:
    """Reads a file of requests.

    Args:
        path: of a local file, or the URI of one.

    Returns:
        One per line, row or record, in their order. If the file itself is damaged, the last one is a failure; and so is
        the only one of a file that has none.

    Raises:
        ModelError: if the format can't be read.
    """
    reader = _find_reader(path)
    if not reader:
        raise ModelError(f"{path}: expected a file .jsonl, .ndjson, .npz, .tfrecord or .tfrecord.gz")
    is_empty = True
    try:
        with filesystem.open_read(str(path)) as file:
            for request in reader(file, str(path)):
                is_empty = False
                yield request
        if is_empty:
            yield Failure(replace_surrogates(str(path)), EMPTY)
    except OSError as error:
        yield Failure(replace_surrogates(str(path)), error.strerror or str(error))
    except Exception as error:  # zlib, zipfile and numpy don't list what they raise on damaged bytes
        yield Failure(replace_surrogates(str(path)), f"the rest can't be read: {error}")


def write_requests(requests: Iterable[Request], path: Path, kind: RequestFormat) -> int:
    """Writes a file of requests, which appears whole or not at all.

    Args:
        requests: the requests to write. For ``npy`` all are held in memory, each as long as the longest; zero bytes at
            the end of an image, which no decoder reads, are lost there.
        path: the file; its name ends with the format's suffix in ``SUFFIXES``.
        kind: the format.

    Returns:
        How many were written.

    Raises:
        ModelError: if the file's name has another suffix.
    """
    if not path.name.endswith(SUFFIXES[kind]):
        raise ModelError(f"{path}: the name of a file of {kind} requests has to end with {SUFFIXES[kind]}")
    writer = {"jsonl": _write_json_lines, "npy": _write_arrays, "tfrecord": _write_records}[kind]
    with open_whole(path) as file:
        return writer(requests, file)


def parse_example(
    serialized: bytes, place: str, names: Features, needed: Collection[str] | None = None
) -> Request | Failure:
    """Returns the request in an Example.

    Args:
        serialized: the Example.
        place: the request's id if the Example has none.
        names: roles of the features; all but ``input``, ``metadata`` and ``label`` are side features.
        needed: the side features to take; all by default.
    """
    try:
        features = tfrecord.decode_example(serialized)
    except ValueError as error:
        return Failure(place, str(error))
    side = {
        name: values
        for name, values in features.items()
        if name not in (names.input, names.metadata, names.label) and (needed is None or name in needed)
    }
    given = {names.input: features.get(names.input, ()), names.metadata: features.get(names.metadata, ()), **side}
    if several := next((name for name, values in given.items() if len(values) > 1), None):
        return Failure(place, f"the Example's feature {several!a} has {len(given[several])} values, and one is taken")
    (image, *_) = features.get(names.input) or [b""]
    (metadata, *_) = features.get(names.metadata) or [place.encode()]
    if not isinstance(image, bytes) or not image:
        return Failure(place, f"the Example has no bytes feature '{names.input}'")
    if not isinstance(metadata, bytes):
        return Failure(place, f"the Example's feature '{names.metadata}' is not of bytes")
    plain = {name: _make_plain(values[0]) for name, values in side.items() if values}
    return check_request(Request(metadata.decode(errors="replace"), image, plain))


def _make_plain(value: bytes | Value) -> Value:
    """Returns a value of an array or an Example, where text is bytes, and NaN stands for a missing number."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if isinstance(value, float) and math.isnan(value) else value


def _find_reader(path: str | Path) -> Callable[[BinaryIO, str], Iterator[Request | Failure]] | None:
    readers = {
        **dict.fromkeys(_JSON_LINES, _read_json_lines),
        ".npz": _read_arrays,
        ".tfrecord": _read_records,
        ".tfrecord.gz": _read_zipped_records,
    }
    return next((reader for suffix, reader in readers.items() if str(path).lower().endswith(suffix)), None)


def _write_json_lines(requests: Iterable[Request], file: BinaryIO) -> int:
    count = 0
    for request in requests:
        file.write(json.dumps(encode_instance(request)).encode() + b"\n")
        count += 1
    return count


def _read_json_lines(file: BinaryIO, path: str) -> Iterator[Request | Failure]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if number == 1 and (packed := find_packing(line)):
            raise ValueError(f"it is packed by {packed}; unpack it first")
        if len(line) > MAX_LINE_BYTES:
            raise ValueError(f"line {number} is longer than {MAX_LINE_BYTES:,} bytes")
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield parse_instance(json.loads(line, object_pairs_hook=build_object), place)
        except RequestError as error:
            yield Failure(place, str(error))
        except (ValueError, RecursionError) as error:
            yield Failure(place, f"not JSON: {error}")


def _write_arrays(requests: Iterable[Request], file: BinaryIO) -> int:
    rows = list(requests)
    longest = max((len(request.image) for request in rows), default=0)
    if len(rows) * longest > MAX_ARRAYS_BYTES:
        raise ModelError(
            f"{len(rows):,} images, all padded to the {longest:,} bytes of the longest, make an array of more than "
            f"{MAX_ARRAYS_BYTES:,} bytes; write several files, or another format"
        )
    names = sorted({name for request in rows for name in request.side})
    for request in rows:
        if missing := next((name for name in names if name not in request.side), None):
            raise ModelError(
                f"{request.id} has no '{missing}', which others have; in a file of arrays all need the same"
            )
    side = {name: np.array(fill_missing(request.side[name] for request in rows)) for name in names}
    np.savez_compressed(
        file,
        allow_pickle=False,
        input=np.array([request.image for request in rows], np.bytes_),
        metadata=np.array([request.id.encode() for request in rows], np.bytes_),
        **side,
    )
    return len(rows)


def _read_arrays(file: BinaryIO, path: str) -> Iterator[Request | Failure]:
    with zipfile.ZipFile(file) as packed:
        size = sum(entry.file_size for entry in packed.infolist())
    if size > MAX_ARRAYS_BYTES:
        raise ValueError(f"its arrays hold {size:,} bytes, and at most {MAX_ARRAYS_BYTES:,} are read; divide it")
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    if "input" not in arrays:
        raise ValueError(f"it has no array 'input', only {', '.join(arrays)}")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or arrays["input"].ndim != 1 or arrays["input"].dtype.kind != "S":
        described = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"expected arrays of one length, 'input' of bytes; it has {described}")
    for row in range(len(arrays["input"])):
        values = {name: array[row].item() for name, array in arrays.items()}
        image = values.pop("input")
        side = {name: _make_plain(value) for name, value in values.items()}
        id_ = side.pop("metadata", None)
        yield check_request(Request(f"{path}:{row}" if id_ is None else str(restore_whole(id_)), image, side))


def _write_records(requests: Iterable[Request], file: BinaryIO) -> int:
    count = 0
    # Without a name and a time in its header, the same requests give the same bytes.
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
        for request in requests:
            values = zip(request.side, fill_missing(request.side.values()), strict=True)
            side = {name: [x.encode() if isinstance(x, str) else x] for name, x in values}
            example = tfrecord.encode_example({"input": [request.image], "metadata": [request.id.encode()], **side})
            zipped.write(tfrecord.frame_record(example))
            count += 1
    return count


def _read_records(file: BinaryIO, path: str) -> Iterator[Request | Failure]:
    for number, record in enumerate(tfrecord.read_records(file)):
        yield parse_example(record, f"{path}:{number}", Features())


def _read_zipped_records(file: BinaryIO, path: str) -> Iterator[Request | Failure]:
    with gzip.GzipFile(fileobj=file) as unzipped:
        yield from _read_records(cast(BinaryIO, unzipped), path)
