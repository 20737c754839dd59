"""The picture of a dataset: a contact sheet of its classes, or of bands of its values, with their counts."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import cast

from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from imagepipe.base import tfrecord
from imagepipe.base.contact_sheet import SIDE, Row, draw_sheet
from imagepipe.base.labels import sum_counts

_COLUMNS, _MAX_CLASSES, _BANDS = 8, 20, 5
_MAX_RECORDS, _MAX_BYTES = 10_000, 512 * 2**20  # that are looked through for pictures: a few seconds
_MAX_VALUES = 100  # images of which the bands are made
_MAX_PIXELS = 50_000_000  # of a PNG; of a JPEG an eighth of each side is decoded

_Features = Mapping[str, list[tfrecord.Value]]


def draw_classes(records: Iterable[bytes], images: Mapping[str, int], labels: Mapping[str, Mapping[str, int]]) -> bytes:
    """Returns a contact sheet with a row for each of the 20 largest classes, as PNG.

    Args:
        records: serialized Examples of the dataset, in any order that is as good as random; no more are read than are
            needed, and at most 10,000.
        images: split to number of images.
        labels: split to number of images by label.
    """
    sizes = sum_counts(labels.values())
    ranked = sorted(sizes, key=lambda label: (-sizes[label], label))
    shown, others = ranked[:_MAX_CLASSES], ranked[_MAX_CLASSES:]
    pictures: dict[str, list[Image.Image]] = {label: [] for label in shown}
    for features in _read(records, lambda: any(len(some) < min(_COLUMNS, sizes[x]) for x, some in pictures.items())):
        names = [tfrecord.to_text(value) for value in features["label"]]
        wanted = [pictures[name] for name in names if name in pictures and len(pictures[name]) < _COLUMNS]
        if wanted and (picture := _make_picture(features)):
            for row in wanted:
                row.append(picture)
    rows = [
        Row(name, _describe({x: counts.get(name, 0) for x, counts in labels.items()}), pictures[name]) for name in shown
    ]
    footer = ""
    if others:
        smallest, largest = sizes[others[-1]], sizes[others[0]]
        per_class = f"{smallest:,} to {largest:,}" if smallest != largest else f"{smallest:,}"
        footer = f"and {len(others):,} more, with {per_class} images each"
    classes = f"{len(ranked):,} {'class' if len(ranked) == 1 else 'classes'}"
    return draw_sheet(f"{sum(images.values()):,} images of {classes}: {_describe(images)}", rows, _COLUMNS, footer)


def draw_values(records: Iterable[bytes], images: Mapping[str, int]) -> bytes:
    """Returns a contact sheet of images with numbers for labels, a row for each fifth of the values, as PNG.

    Args:
        records: as for ``draw_classes``; of the first 100 the bands are made.
        images: split to number of images.
    """
    sample: list[tuple[float, Image.Image]] = []
    for features in _read(records, lambda: len(sample) < _MAX_VALUES):
        if picture := _make_picture(features):
            sample.append((float(features["label"][0]), picture))
    sample.sort(key=lambda one: one[0])
    rows = []
    bands = min(_BANDS, len(sample))
    for number in range(bands):
        band = sample[len(sample) * number // bands : len(sample) * (number + 1) // bands]
        step = max(1.0, len(band) / _COLUMNS)
        pictures = [band[int(i * step)][1] for i in range(min(_COLUMNS, len(band)))]
        rows.append(Row(f"{band[0][0]:.4g} to {band[-1][0]:.4g}", "", pictures))
    footer = f"by value: {bands} equal parts of a sample of {len(sample):,} images" if rows else ""
    return draw_sheet(f"{sum(images.values()):,} images: {_describe(images)}", rows, _COLUMNS, footer)


def _read(records: Iterable[bytes], is_wanted: Callable[[], bool]) -> Iterator[_Features]:
    """Yields the features of records as long as more are wanted, within the limits."""
    size = 0
    for record, _ in zip(records, range(_MAX_RECORDS), strict=False):
        size += len(record)
        yield tfrecord.decode_example(record)
        if size > _MAX_BYTES or not is_wanted():
            return


def _make_picture(features: _Features) -> Image.Image | None:
    """Returns a small copy of a record's image; None if it can't be decoded here, or is too large for it."""
    data = cast(bytes, features["input"][0])
    try:
        if data.startswith(b"\xff\xd8"):
            image: ImageFile.ImageFile = JpegImagePlugin.jpeg_factory(io.BytesIO(data))
            image.draft("RGB", (SIDE, SIDE))
        else:
            image = PngImagePlugin.PngImageFile(io.BytesIO(data))
            if image.width * image.height > _MAX_PIXELS:
                return None
        image.thumbnail((SIDE, SIDE))
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # Pillow's for damaged images
        return None


def _describe(counts: Mapping[str, int]) -> str:
    return " · ".join(f"{name} {count:,}" for name, count in counts.items())
