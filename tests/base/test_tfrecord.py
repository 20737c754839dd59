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


def test_ingesting_does_not_import_tensorflow_and_importing_beam_hides_nothing_for_good():
    check = (
        "import sys\n"
        "from imagepipe.ingest import command\n"
        "with command.import_quickly('apache_beam', *command._UNUSED_BY_BEAM): import imagepipe.ingest.steps\n"
        "assert not {'tensorflow', 'pandas', 'IPython'} & set(sys.modules)\n"
        "import pandas, IPython, apache_beam.dataframe.convert"
    )
    subprocess.run([sys.executable, "-c", check], check=True)  # noqa: S603
