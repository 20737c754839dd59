"""From the images that a person or a program names (files, folders, globs, bytes, arrays) to requests."""

import csv
import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from imagepipe.base import filesystem
from imagepipe.base.errors import ModelError
from imagepipe.base.images import MAX_BYTES, BadImage, normalize
from imagepipe.serving.instances import check_request, replace_surrogates
from imagepipe.serving.request_files import is_request_file, read_requests
from imagepipe.serving.types import Failure, Request, Value

Image = str | os.PathLike[str] | bytes | np.ndarray
"""An image as a caller has it: the path of a file, an encoded image, or uint8 ``[height, width, 3]`` in RGB."""

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


def expand_paths(arguments: list[str]) -> list[Path]:
    """Expands files, folders (the images in them, at any depth) and globs.

    Args:
        arguments: paths or patterns. A name that exists is a path, even with a ``[`` in it.

    Returns:
        Files in the order of the arguments; a file that does not exist is kept, for its reader to report.

    Raises:
        ModelError: if a folder or a pattern holds no image.
    """
    paths: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in _IMAGE_SUFFIXES)
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = sorted(Path(match) for match in glob.glob(argument, recursive=True))  # noqa: PTH207 (Path's takes no absolute pattern)
        if not files:
            raise ModelError(f"{argument}: no image there")
        paths += files
    return paths


def read_images(paths: Iterable[Path]) -> Iterator[Request | Failure]:
    """Reads image files into requests: one per path, in their order, with the path as its id."""
    for path in paths:
        try:
            yield check_request(Request(str(path), filesystem.read(str(path), MAX_BYTES)))
        except OSError as error:
            yield Failure(replace_surrogates(str(path)), error.strerror or str(error))


def read_inputs(paths: Iterable[Path]) -> Iterator[Request | Failure]:
    """Reads image files and files of requests, in their order."""
    for path in paths:
        yield from read_requests(path) if is_request_file(path) else read_images([path])


def build_requests(
    images: Iterable[Image], side: Iterable[Mapping[str, Value]] | None = None
) -> Iterator[Request | Failure]:
    """Makes requests of images that a program has.

    Args:
        images: paths, encoded images or arrays. The id is the path, or the image's number as text, from 0.
        side: side features of each image by name; None if the model needs none.

    Returns:
        One per image, in their order; a file that can't be read, or an array that is not an image, is a failure.

    Raises:
        ValueError: if ``images`` and ``side`` have different lengths.
        TypeError: if ``images`` is a single image, or one of them is none of these types.
    """
    if isinstance(images, str | bytes | os.PathLike):  # a string is an iterable too: of paths of one character
        raise TypeError("expected several images; put a single one into a list")
    rows = ((image, {}) for image in images) if side is None else zip(images, side, strict=True)
    for number, (image, features) in enumerate(rows):
        request: Request | Failure
        if isinstance(image, str | os.PathLike):
            (request,) = read_images([Path(image)])
        elif isinstance(image, bytes):
            request = Request(str(number), image)
        elif isinstance(image, np.ndarray):
            request = _encode_array(str(number), image)
        else:
            raise TypeError(f"image {number}: expected a path, bytes or a numpy array, not {type(image).__name__}")
        if isinstance(request, Request) and features:
            plain = {name: x.item() if isinstance(x, np.generic) else x for name, x in features.items()}
            request = check_request(replace(request, side=plain))
        yield request


def _encode_array(name: str, array: np.ndarray) -> Request | Failure:
    """Encodes pixels as PNG, which is lossless, so that they take the way of all other images."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        return Failure(name, f"expected an array uint8 [height, width, 3], not {array.dtype} {list(array.shape)}")
    encoded = io.BytesIO()
    PillowImage.fromarray(np.ascontiguousarray(array)).save(encoded, "PNG", compress_level=1)
    return Request(name, encoded.getvalue())


def normalize_images(requests: Iterable[Request | Failure]) -> Iterator[Request | Failure]:
    """Converts the images of requests, of any format that ``imagepipe ingest`` takes, as it converts them.

    An image that the serving graph could not decode, for which it would refuse a whole batch, becomes a failure.
    """
    for request in requests:
        try:
            yield replace(request, image=normalize(request.image).data) if isinstance(request, Request) else request
        except BadImage as error:
            yield Failure(request.id, str(error))


def list_items(source: str) -> list[Path]:
    """Returns the inputs of a batch prediction: what a path stands for, or the files in the column path of a CSV.

    Raises:
        ModelError: if there are none, or the CSV can't be read.
    """
    path = Path(source)
    if path.suffix.lower() != ".csv":
        return expand_paths([source])
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "path" not in (rows.fieldnames or ()):
                raise ModelError(f"{path} has no column 'path', only {', '.join(rows.fieldnames or ['nothing'])}")
            items = []
            for row in rows:
                if not row["path"]:
                    raise ModelError(f"{path}, line {rows.line_num}: no path")
                items.append(path.parent / row["path"])
            return items
    except (csv.Error, UnicodeDecodeError) as error:
        raise ModelError(f"{path} can't be read as CSV: {error}") from error
