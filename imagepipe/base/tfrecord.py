"""tf.train.Example and TFRecord files without TensorFlow, whose import alone takes longer than a small ingest.

The three messages are declared in a descriptor pool of their own, field for field as in TensorFlow's
``tensorflow/core/example/{feature,example}.proto``; the same bytes come out, and TensorFlow may be imported beside it.
"""

import gzip
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from imagepipe.base import filesystem

Value = bytes | int | float
_MAX_RECORD = 2**29  # bytes: an image at the limit of pixels, as a PNG that does not compress, has 300 MB
_MASK_DELTA = 0xA282EAD8  # tensorflow/core/lib/hash/crc32c.h


def _make_example_class() -> Any:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="imagepipe/example.proto", package="tensorflow", syntax="proto3")

    for name, type_ in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=type_, label=field.LABEL_REPEATED)

    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, message) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        feature.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".tensorflow.{message}",
            label=field.LABEL_OPTIONAL,
            oneof_index=0,
        )

    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Feature",
        label=field.LABEL_OPTIONAL,
    )
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
        label=field.LABEL_REPEATED,
    )

    file.message_type.add(name="Example").field.add(
        name="features",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".tensorflow.Features",
        label=field.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_Example = _make_example_class()


def encode_example(features: Mapping[str, Sequence[Value]]) -> bytes:
    """Returns a serialized tf.train.Example; the same features always give the same bytes.

    Args:
        features: name to values, each list not empty and of one Python type: bytes, int (64 bits), float (kept in 32).
    """
    example = _Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        first = values[0]
        if isinstance(first, bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(first, int):
            feature.int64_list.value.extend(values)
        else:
            feature.float_list.value.extend(values)
    return example.SerializeToString(deterministic=True)


def decode_example(serialized: bytes) -> dict[str, list[Value]]:
    """Returns the values of all features of a serialized tf.train.Example, by name.

    Raises:
        ValueError: it is no Example.
    """
    return {
        name: list(getattr(feature, feature.WhichOneof("kind")).value) if feature.WhichOneof("kind") else []
        for name, feature in _parse(serialized).features.feature.items()
    }


def read_bytes_feature(serialized: bytes, name: str) -> list[bytes]:
    """Returns the values of one bytes feature of a serialized tf.train.Example; empty if it has none."""
    return list(_Example.FromString(serialized).features.feature[name].bytes_list.value)


def to_text(value: Value) -> str:
    """Returns a feature's value as text; bytes that aren't UTF-8 are replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def describe_example(serialized: bytes) -> dict[str, tuple[str, int]]:
    """Returns type (``bytes``, ``int64`` or ``float``) and number of values of the features of a tf.train.Example.

    Features without a list of values are left out.

    Raises:
        ValueError: it is no Example.
    """
    features = _parse(serialized).features.feature
    kinds = ((name, feature, feature.WhichOneof("kind")) for name, feature in features.items())
    return {
        name: (kind.removesuffix("_list"), len(getattr(feature, kind).value)) for name, feature, kind in kinds if kind
    }


def frame_record(record: bytes) -> bytes:
    """Returns the record as in a TFRecord file: its length and itself, each followed by a checksum."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, compute_masked_crc(length), record, compute_masked_crc(record)))


def read_records(file: BinaryIO) -> Iterator[bytes]:
    """Yields the records of a TFRecord file (not compressed, or opened through gzip).

    Raises:
        ValueError: the file ends within a record, a checksum is wrong, or a record is longer than ingest writes.
    """
    while head := file.read(12):
        if len(head) < 12 or compute_masked_crc(head[:8]) != head[8:]:
            raise ValueError("not a TFRecord file, or a damaged one: the checksum of a record's length is wrong")
        (length,) = struct.unpack("<Q", head[:8])
        if length > _MAX_RECORD:
            raise ValueError(f"a record of {length:,} bytes; at most {_MAX_RECORD:,} are read")
        record, crc = file.read(length), file.read(4)
        if compute_masked_crc(record) != crc:
            raise ValueError("damaged TFRecord file: the checksum of a record is wrong")
        yield record


def read_artifact(split: str) -> list[Iterator[bytes]]:
    """Returns the records of each file of a split, in the order of their names, as ImportExampleGen writes them.

    Args:
        split: its folder, a path or URI.
    """
    return [_read_gzip(path) for path in filesystem.glob(f"{split}/*.gz")]


def _read_gzip(path: str) -> Iterator[bytes]:
    with filesystem.open_read(path) as opened, gzip.open(opened) as file:
        yield from read_records(cast(BinaryIO, file))


def _parse(serialized: bytes) -> Any:
    try:
        return _Example.FromString(serialized)
    except DecodeError:
        raise ValueError("not a tf.train.Example") from None


def compute_masked_crc(data: bytes) -> bytes:
    """Returns the checksum, 4 bytes, that TensorFlow keeps beside what it writes."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK_DELTA) & 0xFFFFFFFF)
