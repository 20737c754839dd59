"""From the images that a program has (files, bytes, arrays) to requests."""

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage

from imagepipe.base import filesystem
from imagepipe.base.images import MAX_BYTES, BadImage, normalize
from imagepipe.ingest.parts import Part, read_part
from imagepipe.serving.instances import check_request, replace_surrogates
from imagepipe.serving.tensors import mark_missing
from imagepipe.serving.types import Failure, Request, Value

Image = str | os.PathLike[str] | bytes | np.ndarray
"""An image as a caller has it: the path of a file, an encoded image, or uint8 ``[height, width, 3]`` in RGB."""

Admit = Callable[[int], None]
"""Called with the size of what is about to be read: it may wait, or raise an OSError."""


def read_images(paths: Iterable[Path]) -> Iterator[Request | Failure]:
    """Reads image files into requests: one per path, in their order, with the path as its id."""
    for path in paths:
        yield read_image(str(path), str(path), {})


def read_image(
    path: str, id_: str, side: Mapping[str, Value], part: Part | None = None, admit: Admit | None = None
) -> Request | Failure:
    """Reads an image into a request.

    Args:
        path: of a file, or the URI of one.
        id_: the request's.
        side: the request's side features.
        part: where the image lies, if it is a part of a larger file, which is read in place of ``path``.
        admit: called before anything large is in memory.
    """
    try:
        if part and admit:
            admit(sum(min(size or 0, MAX_BYTES) for size in part[2:]))
        image = read_part(part) if part else filesystem.read(path, MAX_BYTES, admit)
        return check_request(Request(id_, image, side))
    except OSError as error:
        return Failure(replace_surrogates(id_), error.strerror or str(error))
    except BadImage as error:
        return Failure(replace_surrogates(id_), str(error))
    except ValueError as error:  # a path with a NUL
        return Failure(replace_surrogates(id_), f"can't be read: {error}")


def build_requests(
    images: Iterable[Image], side: Iterable[Mapping[str, Value]] | None = None
) -> Iterator[Request | Failure]:
    """Makes requests of images that a program has.

    Args:
        images: paths, encoded images or arrays. The id is the path, or the image's number as text, from 0.
        side: side features of each image by name, None or NaN for a number that is missing; None if the model needs
            none.

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
            plain = [value.item() if isinstance(value, np.generic) else value for value in features.values()]
            side_of_image = dict(zip(features, mark_missing(plain), strict=True))  # pandas has NaN, as tensors have
            request = check_request(replace(request, side=side_of_image))
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
