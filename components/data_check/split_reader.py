"""Reads a split's Examples: their ids, labels, hashes, and what the images look like."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from components.data_check import label_errors, near_duplicates
from components.data_check.columns import MAX_SLICES
from components.data_check.split import ColumnValue, Split
from imagepipe.base import appearance, images, tfrecord
from imagepipe.base.features import Features
from imagepipe.base.labels import find_fault
from transform.examples import read_serialized

_BATCH = 64  # images that are described at once


def read_split(
    folder: str,
    name: str,
    features: Features,
    describe_every: int,
    slices: Sequence[tuple[str, ...]] = (),
    columns_every: int = 0,
) -> Split:
    """Reads the Examples of a split once.

    Args:
        folder: folder of the split, whose ``*.gz`` files are read.
        name: name of the split.
        features: names of an Example's features.
        describe_every: every n-th image gets descriptors, see ``label_errors``; 0 for none.
        slices: combinations of columns whose values are collected.
        columns_every: of every n-th image the side features are kept; 0 for none.
    """
    split = Split(slices={columns: set() for columns in slices})
    batch: dict[int, np.ndarray] = {}  # images that wait for their descriptors, by index
    for index, record in enumerate(read_serialized(folder).as_numpy_iterator()):
        example = tfrecord.decode_example(record)
        split.ids.append(_read_text(example, features.metadata) or f"{name}/{index}")
        split.sha256.append(_read_text(example, "sha256"))
        split.labels.append([tfrecord.to_text(value) for value in example.get(features.label, [])])
        if group := _read_text(example, features.group):
            split.groups[index] = group
        for column in features.categorical:
            split.faulty[column].update(filter(find_fault, map(tfrecord.to_text, example.get(column, []))))
        if columns_every > 0 and index % columns_every == 0:
            for column in features.side:
                split.columns[column].append(_read_value(example, column))
        for columns, values in split.slices.items():
            if len(values) <= MAX_SLICES:
                values.update(
                    itertools.product(*(map(tfrecord.to_text, example.get(column, [])) for column in columns))
                )
        measured = _read_measurements(example)
        is_described = describe_every > 0 and index % describe_every == 0
        if is_described or measured is None:
            image = _decode(example.get(features.input, []))
            if image is None:
                split.unreadable.append(index)
            else:
                measured = measured or _measure(image)
                if is_described:
                    batch[index] = image
        dhash, contrast = measured or (0, 0.0)
        split.hashes.append(dhash)
        split.plain.append(contrast < near_duplicates.MIN_CONTRAST)
        if len(batch) == _BATCH:
            _add_descriptors(split, batch)
    _add_descriptors(split, batch)
    return split


def read_thumbnails(folder: str, features: Features, indices: set[int]) -> dict[int, np.ndarray]:
    """Returns gray thumbnails of some images of a split, uint8 ``[pixels]`` by index, without those that are broken."""
    thumbnails = {}
    for index, record in enumerate(read_serialized(folder).as_numpy_iterator()):
        if index in indices:
            try:
                image = images.read_pixels(
                    tfrecord.read_bytes_feature(record, features.input)[0], appearance.THUMBNAIL_SIDE
                )
            except (images.BadImage, IndexError):
                continue
            thumbnails[index] = np.frombuffer(appearance.make_thumbnail(Image.fromarray(image)), np.uint8)
    return thumbnails


def _add_descriptors(split: Split, batch: dict[int, np.ndarray]) -> None:
    """Adds the descriptors of a batch of images to the split, and empties the batch."""
    if batch:
        descriptors = label_errors.compute_descriptors(np.stack(list(batch.values())))
        split.descriptors.update(zip(batch, descriptors, strict=True))
        batch.clear()


def _decode(values: Sequence[bytes | int | float]) -> np.ndarray | None:
    """Returns the pixels of an image feature, None unless it is one image that can be decoded."""
    try:
        (data,) = values
        return images.read_pixels(data if isinstance(data, bytes) else b"", label_errors.SIDE)
    except (images.BadImage, ValueError):
        return None


def _measure(image: np.ndarray) -> tuple[int, float]:
    measured = appearance.measure_appearance(appearance.make_thumbnail(Image.fromarray(image)))
    return int(measured.dhash, 16), measured.contrast


def _read_measurements(example: Mapping[str, list[Any]]) -> tuple[int, float] | None:
    """Returns difference hash and contrast as ingest measured them, None for Examples made elsewhere."""
    try:
        (dhash,), (contrast,) = example["dhash"], example["contrast"]
        return (int(dhash, 16), float(contrast)) if len(dhash) == appearance.HASH_BITS // 4 else None
    except (KeyError, TypeError, ValueError):
        return None


def _read_value(example: Mapping[str, list[Any]], name: str) -> ColumnValue:
    value = next(iter(example.get(name, [])), None)
    return tfrecord.to_text(value) if isinstance(value, bytes) else value


def _read_text(example: Mapping[str, list[Any]], name: str) -> str | None:
    values = example.get(name)
    return tfrecord.to_text(values[0]) if values else None
