"""Requests in files, as other tools take them, and as they come back from them. Imports nothing heavy.

- JSON lines (``.jsonl``), an instance of the REST API each: ``{"input": {"b64": "…"}, "metadata": "id-1"}``, side
  features as further keys. What ML Engine and Vertex AI take for batch jobs.
- numpy arrays (``.npz``): ``input`` and ``metadata``, side features as further arrays, all ``[n]``. What
  ``saved_model_cli run`` takes, as ``--inputs "input=FILE.npz[input];metadata=FILE.npz[metadata]"``.
- TFRecords (``.tfrecord``, ``.tfrecord.gz``) of Examples of the data contract: what the signature
  ``tf_examples`` takes.
"""

import base64
import binascii
import gzip
import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from imagepipe.base import filesystem, tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features
from imagepipe.base.images import MAX_BYTES, BadImage, normalize

Format = Literal["jsonl", "npy", "tfrecord"]
Value = str | int | float

SUFFIXES: dict[Format, str] = {"jsonl": ".jsonl", "npy": ".npz", "tfrecord": ".tfrecord.gz"}
"""How the names of the files end that are written."""

_INPUT, _METADATA = "input", "metadata"
_MAX_NUMBER = 2**63  # JSON has larger ones, and NaN, which is below no number
_MAX_LINE = MAX_BYTES * 4 // 3 + 2**20  # base64 needs four characters for three bytes
_MAX_ARRAYS = 2**31  # bytes of a file of arrays, which is read at once


@dataclass(frozen=True)
class Request:
    """What is asked about an image.

    Attributes:
        id: the caller's name of the image, which comes back with the answer.
        image: the encoded image; the serving graph decodes JPEG, PNG, BMP and GIF.
        side: side features by name.
    """

    id: str
    image: bytes
    side: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """What could not be asked about.

    Attributes:
        id: the caller's name of the image, or the place where it should have been.
        error: why.
    """

    id: str
    error: str


class RequestError(ValueError):
    """A request that can't be answered; the message says why.

    Attributes:
        kind: the same in one word, for those who count.
    """

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def of_images(paths: Iterable[Path]) -> Iterator[Request | Failure]:
    """Requests about image files: one a path, in their order; its id is the path."""
    for path in paths:
        try:
            yield _checked(Request(str(path), filesystem.read(str(path), MAX_BYTES)))
        except OSError as error:
            yield Failure(_printable(str(path)), error.strerror or str(error))


def of_files(paths: Iterable[Path]) -> Iterator[Request | Failure]:
    """What images and files of requests ask, in their order."""
    for path in paths:
        yield from read(path) if is_file_of_requests(path) else of_images([path])


def normalized(requests: Iterable[Request | Failure]) -> Iterator[Request | Failure]:
    """The same requests, their images of any format that ``imagepipe ingest`` takes, and treated as it treats them.

    What the serving graph could not decode, for which it would refuse a whole batch, becomes a failure.
    """
    for each in requests:
        try:
            yield replace(each, image=normalize(each.image).data) if isinstance(each, Request) else each
        except BadImage as error:
            yield Failure(each.id, str(error))


def is_file_of_requests(path: Path) -> bool:
    """Whether ``read`` reads it, by its name."""
    return _reader(path) is not None


def read(path: Path) -> Iterator[Request | Failure]:
    """Reads a file of requests.

    Returns:
        One a line, row or record, in their order. Where the file itself is damaged, a failure is the last.

    Raises:
        ModelError: if it is of no format that is read.
    """
    reader = _reader(path)
    if not reader:
        raise ModelError(f"{path}: expected a file .jsonl, .npz, .tfrecord or .tfrecord.gz")
    try:
        yield from reader(path)
    except OSError as error:
        yield Failure(_printable(str(path)), error.strerror or str(error))
    except Exception as error:  # of what zlib, zipfile and numpy raise over damaged bytes there is no list
        yield Failure(_printable(str(path)), f"the rest can't be read: {error}")


def write(requests: Iterable[Request], path: Path, kind: Format) -> int:
    """Writes a file of requests, which appears whole or not at all.

    Args:
        requests: those to write. For ``npy`` all are held in memory, each as long as the longest; zero bytes at the end
            of an image, which no decoder looks at, are lost there.
        path: the file; its name ends as ``SUFFIXES`` says.
        kind: the format.

    Returns:
        How many were written.

    Raises:
        ModelError: if the file's name would not tell its format.
    """
    if not path.name.endswith(SUFFIXES[kind]):
        raise ModelError(f"{path}: the name of a file of {kind} requests has to end with {SUFFIXES[kind]}")
    writer = {"jsonl": _write_json_lines, "npy": _write_arrays, "tfrecord": _write_records}[kind]
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            count = writer(requests, file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def to_instance(request: Request) -> dict[str, Any]:
    """A request as an instance of the REST API."""
    return {_INPUT: {"b64": base64.b64encode(request.image).decode()}, _METADATA: request.id, **request.side}


def from_instance(instance: Any, default_id: str = "") -> Request:
    """The request that an instance of the REST API is.

    Args:
        instance: parsed JSON.
        default_id: where it has no ``metadata``.

    Raises:
        RequestError: if it is no instance.
    """
    if not isinstance(instance, dict):
        raise RequestError("wrong_type", 'expected an object such as {"input": {"b64": "…"}, "metadata": "id-1"}')
    if _INPUT not in instance:
        raise RequestError("missing_input", f"'{_INPUT}' is missing")
    encoded = instance[_INPUT]
    if not isinstance(encoded, dict) or list(encoded) != ["b64"] or not isinstance(encoded["b64"], str):
        raise RequestError(
            "wrong_type", f"""'{_INPUT}' has to be an object {{"b64": "…"}} with the image's bytes in base64"""
        )
    try:
        image = base64.b64decode(encoded["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("bad_base64", f"'{_INPUT}' is not valid base64: {error}") from None
    metadata = instance.get(_METADATA, default_id)
    if not isinstance(metadata, str):
        raise RequestError("wrong_type", f"'{_METADATA}' has to be a string")
    side = {name: value for name, value in instance.items() if name not in (_INPUT, _METADATA)}
    request = Request(metadata, image, side)
    if problem := _problem(request):
        raise RequestError("wrong_type", problem)
    return request


def _problem(request: Request) -> str | None:
    """Why an id or a side feature could be neither sent nor computed with, which would take a whole batch with it."""
    for name, value in {_METADATA: request.id, **request.side}.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
        if not (is_number or isinstance(value, str)):
            return f"{name!a} has to be a number (of 64 bits) or a string"
        if any(_printable(text) != text for text in (name, str(value))):
            return f"{name!a} is no valid text: {value!a}"
    return None


def _printable(text: str) -> str:
    """The text as UTF-8 can hold it: not every name of a file is text, nor is every string of JSON."""
    return text.encode(errors="replace").decode()


def _checked(request: Request) -> Request | Failure:
    problem = _problem(request)
    return Failure(_printable(request.id), problem) if problem else request


def _reader(path: Path) -> Callable[[Path], Iterator[Request | Failure]] | None:
    readers = {
        ".jsonl": _read_json_lines,
        ".npz": _read_arrays,
        ".tfrecord": _read_records,
        ".tfrecord.gz": _read_records,
    }
    return next((reader for suffix, reader in readers.items() if path.name.endswith(suffix)), None)


def _write_json_lines(requests: Iterable[Request], file: BinaryIO) -> int:
    count = 0
    for request in requests:
        file.write(json.dumps(to_instance(request)).encode() + b"\n")
        count += 1
    return count


def _read_json_lines(path: Path) -> Iterator[Request | Failure]:
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(_MAX_LINE + 1)
            if not line:
                return
            if len(line) > _MAX_LINE:
                raise ValueError(f"line {number} is longer than {_MAX_LINE:,} bytes")
            place = f"{path}:{number}"
            try:
                yield from_instance(json.loads(line), place)
            except RequestError as error:
                yield Failure(place, str(error))
            except (ValueError, RecursionError) as error:
                yield Failure(place, f"not JSON: {error}")


def _write_arrays(requests: Iterable[Request], file: BinaryIO) -> int:
    given = list(requests)
    longest = max((len(request.image) for request in given), default=0)
    if len(given) * longest > _MAX_ARRAYS:
        raise ModelError(
            f"{len(given):,} images, the longest of {longest:,} bytes, to which all are padded, make an array of more "
            f"than {_MAX_ARRAYS:,} bytes; write several files, or another format"
        )
    side = {name: np.array([request.side[name] for request in given]) for name in (given[0].side if given else ())}
    np.savez_compressed(
        file,
        allow_pickle=False,
        **{
            _INPUT: np.array([request.image for request in given], np.bytes_),
            _METADATA: np.array([request.id.encode() for request in given], np.bytes_),
            **side,
        },
    )
    return len(given)


def _read_arrays(path: Path) -> Iterator[Request | Failure]:
    with zipfile.ZipFile(path) as packed:
        size = sum(entry.file_size for entry in packed.infolist())
    if size > _MAX_ARRAYS:
        raise ValueError(f"its arrays hold {size:,} bytes, and at most {_MAX_ARRAYS:,} are read; divide it")
    with np.load(path, allow_pickle=False) as loaded:
        arrays = dict(loaded)
    if _INPUT not in arrays:
        raise ValueError(f"it has no array '{_INPUT}', only {', '.join(arrays)}")
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) != 1 or arrays[_INPUT].ndim != 1 or arrays[_INPUT].dtype.kind != "S":
        described = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in arrays.items())
        raise ValueError(f"expected arrays of one length, '{_INPUT}' of bytes; it has {described}")
    for row in range(len(arrays[_INPUT])):
        values = {name: array[row].item() for name, array in arrays.items()}
        image = values.pop(_INPUT)
        texts = {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}
        yield _checked(Request(str(texts.pop(_METADATA, f"{path}:{row}")), image, texts))


def _write_records(requests: Iterable[Request], file: BinaryIO) -> int:
    count = 0
    # Without a name and a time in its header, the same requests give the same bytes.
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
        for request in requests:
            side = {name: [x.encode() if isinstance(x, str) else x] for name, x in request.side.items()}
            example = tfrecord.encode_example({_INPUT: [request.image], _METADATA: [request.id.encode()], **side})
            zipped.write(tfrecord.frame_record(example))
            count += 1
    return count


def _read_records(path: Path) -> Iterator[Request | Failure]:
    with path.open("rb") as raw, gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw as file:
        for number, record in enumerate(tfrecord.read_records(cast(BinaryIO, file))):
            yield from_example(record, f"{path}:{number}", Features())


def from_example(serialized: bytes, place: str, names: Features) -> Request | Failure:
    """The request that an Example is.

    Args:
        serialized: the Example.
        place: its name where it has none itself.
        names: which feature is what; all but ``input``, ``metadata`` and ``label`` are side features.
    """
    try:
        features = tfrecord.decode_example(serialized)
    except ValueError as error:
        return Failure(place, str(error))
    (image, *_) = features.get(names.input) or [b""]
    (metadata, *_) = features.get(names.metadata) or [place.encode()]
    if not isinstance(image, bytes) or not image:
        return Failure(place, f"the Example has no bytes feature '{names.input}'")
    if not isinstance(metadata, bytes):
        return Failure(place, f"the Example's feature '{names.metadata}' is not of bytes")
    side = {
        name: values[0].decode(errors="replace") if isinstance(values[0], bytes) else values[0]
        for name, values in features.items()
        if values and name not in (names.input, names.metadata, names.label)
    }
    return _checked(Request(metadata.decode(errors="replace"), image, side))
