import io
import subprocess
import sys

import pytest

from imagepipe.base import tfrecord

FEATURES = {
    "input": [b"\xff\xd8"],
    "label": [b"caf\xc3\xa9", b"b"],
    "width": [-1, 2**62],
    "price": [0.5, -2.0],
    "é": [b""],
}


def test_tensorflow_reads_what_is_written():
    import tensorflow as tf

    example = tf.train.Example.FromString(tfrecord.encode_example(FEATURES)).features.feature
    assert {
        name: list(getattr(feature, feature.WhichOneof("kind")).value) for name, feature in example.items()
    } == FEATURES


def test_what_tensorflow_writes_is_read(tmp_path):
    import tensorflow as tf

    example = tf.train.Example()
    example.features.feature["sha256"].bytes_list.value.append(b"abc")
    path = str(tmp_path / "one.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(example.SerializeToString())
    with open(path, "rb") as file:  # noqa: PTH123
        (record,) = tfrecord.read_records(file)
    assert tfrecord.read_bytes_feature(record, "sha256") == [b"abc"]
    assert tfrecord.read_bytes_feature(record, "label") == []


def test_tensorflow_reads_the_framing(tmp_path):
    import tensorflow as tf

    path = tmp_path / "some.tfrecord"
    path.write_bytes(tfrecord.frame_record(b"one") + tfrecord.frame_record(b""))
    assert [record.numpy() for record in tf.data.TFRecordDataset(str(path))] == [b"one", b""]


def test_damage_is_found():
    whole = tfrecord.frame_record(b"a record of some bytes")
    for place in (0, 9, 20, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="damaged"):
            list(tfrecord.read_records(io.BytesIO(bytes(damaged))))
    with pytest.raises(ValueError, match="damaged"):
        list(tfrecord.read_records(io.BytesIO(whole[:-5])))


def test_the_same_features_give_the_same_bytes_in_any_order():
    assert tfrecord.encode_example(FEATURES) == tfrecord.encode_example(dict(reversed(FEATURES.items())))


def test_what_the_command_line_imports_needs_neither_tensorflow_nor_beam():
    check = (
        "import sys, imagepipe.ingest.command, imagepipe.ingest.dataset, imagepipe.base.images;"
        "print(sorted({'tensorflow', 'apache_beam'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)  # noqa: S603
    assert process.stdout == "[]\n"


def test_ingesting_here_imports_neither_tensorflow_nor_beam(tmp_path, crops):
    (tmp_path / "source/a").mkdir(parents=True)
    (tmp_path / "source/a/1.jpg").write_bytes(crops(1)[0])
    check = (
        "import sys; from imagepipe.ingest.command import ingest; ingest(*sys.argv[1:]);"
        "print(sorted({'tensorflow', 'apache_beam', 'pandas', 'IPython'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", check, str(tmp_path / "source"), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"  # noqa: S603
