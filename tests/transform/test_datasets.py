import tensorflow as tf

from transform import datasets


def test_examples_of_a_split_are_read_in_the_order_of_its_files(tmp_path):
    for shard, records in {"b-00001.gz": [b"3"], "a-00000.gz": [b"1", b"2"]}.items():
        with tf.io.TFRecordWriter(str(tmp_path / shard), tf.io.TFRecordOptions(compression_type="GZIP")) as writer:
            for record in records:
                writer.write(record)
    (tmp_path / "notes.txt").write_text("not records")
    assert list(datasets.examples(str(tmp_path)).as_numpy_iterator()) == [b"1", b"2", b"3"]


def test_a_split_without_files_has_no_examples(tmp_path):
    assert list(datasets.examples(str(tmp_path)).as_numpy_iterator()) == []


def test_examples_come_without_a_tuner_that_whoever_drops_their_iterator_would_wait_for(tmp_path):
    assert datasets.examples(str(tmp_path)).batch(2).prefetch(1).options().autotune.enabled is False
