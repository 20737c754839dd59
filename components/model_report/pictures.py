"""Pictures in a report: small JPEGs of the images in Examples."""

import base64
import io
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import tensorflow as tf
from PIL import Image

from imagepipe.base import images
from imagepipe.base.features import Features
from transform.examples import read_serialized

_QUALITY = 75
_MAX_PIXELS = 50_000_000


def read_examples(
    split: str, is_wanted: Callable[[int, bytes], bool], limit: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yields those serialized Examples of a split that are wanted, with their positions; of its first ``limit``."""
    records = read_serialized(split)
    for position, record in enumerate((records if limit is None else records.take(limit)).as_numpy_iterator()):
        if is_wanted(position, record):
            yield position, record


def read_encoded_image(record: bytes, features: Features) -> bytes:
    """Returns the encoded image of a serialized Example; nothing if it has none."""
    values = tf.train.Example.FromString(record).features.feature[features.input].bytes_list.value
    return values[0] if values else b""


def find_images(split: str, features: Features, ids: Collection[str], limit: int) -> dict[str, bytes]:
    """Returns encoded images of a split by their identifiers.

    Args:
        split: folder of the split.
        features: names of an Example's features.
        ids: identifiers; ``<split>/<position>`` for an Example that has none.
        limit: number of Examples to look through.
    """
    encoded: dict[str, bytes] = {}
    name = Path(split).name.removeprefix("Split-")
    for position, record in enumerate(read_serialized(split).take(limit).as_numpy_iterator()):
        example = tf.train.Example.FromString(record)
        values = example.features.feature[features.metadata].bytes_list.value
        key = values[0].decode(errors="replace") if values else f"{name}/{position}"
        if key in ids and key not in encoded:
            encoded[key] = read_encoded_image(record, features)
        if len(encoded) == len(ids):
            break
    return encoded


def decode_picture(data: bytes, side: int) -> Image.Image | None:
    """Decodes an image to RGB, its longer side ``side`` pixels; None if it can't be decoded, or is huge."""
    try:
        pixels = Image.open(io.BytesIO(images.normalize(data, max_pixels=_MAX_PIXELS).data))
        pixels.draft("RGB", (side, side))
        picture = pixels.convert("RGB")
    except (images.BadImage, OSError, ValueError):
        return None
    # A tiny image is enlarged without smoothing: smooth edges would show what isn't there.
    return resize_picture(
        picture, side, Image.Resampling.NEAREST if side > max(picture.size) else Image.Resampling.LANCZOS
    )


def resize_picture(
    picture: Image.Image, side: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Returns a copy whose longer side is ``side`` pixels."""
    scale = side / max(picture.size)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), resampling)


def format_data_url(picture: Image.Image) -> str:
    """Returns a picture as a URL that needs no host."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
