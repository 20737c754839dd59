import numpy as np
import tensorflow as tf

from transform.examples import read_serialized, read_shards


def test_examples_of_a_split_are_read_in_the_order_of_its_files(tmp_path):
    for shard, records in {"b-00001.gz": [b"3"], "a-00000.gz": [b"1", b"2"]}.items():
        with tf.io.TFRecordWriter(str(tmp_path / shard), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for record in records:
                writer.write(record)
    (tmp_path / "notes.txt").write_text("not records")
    assert list(read_serialized(str(tmp_path)).as_numpy_iterator()) == [b"1", b"2", b"3"]


def test_a_split_without_files_has_no_examples(tmp_path):
    assert list(read_serialized(str(tmp_path)).as_numpy_iterator()) == []


def test_examples_have_no_tuner_that_delays_dropping_their_iterator(tmp_path):
    assert read_serialized(str(tmp_path)).batch(2).prefetch(1).options().autotune.enabled is False


def test_records_come_in_the_same_order_each_time(pattern):
    first, second = (np.array(list(read_shards([pattern]).as_numpy_iterator())) for _ in range(2))
    assert np.array_equal(first, second)
    assert len(set(first)) == len(first) == 60
