"""ImportExampleGen, as the pipeline configures it, on TFRecords that aren't split."""

import tensorflow as tf
from tfx.types import artifact_utils, standard_artifacts

from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.source import find_examples
from tests.conftest import make_example
from tests.evaluated import make_artifact


def split_records(config: Config, folder) -> dict[str, list[str]]:
    """Runs the first node of the pipeline; returns the groups of each split's records."""
    deploy = config.make_deployment(str(folder))
    example_gen = create_pipeline(config, find_examples(config), str(folder), str(folder), deploy, []).components[0]
    context = example_gen.executor_spec.executor_class.Context(beam_pipeline_args=config.beam.make_arguments())
    examples = make_artifact(standard_artifacts.Examples, folder / "examples")
    example_gen.executor_spec.executor_class(context).Do({}, {"examples": [examples]}, example_gen.exec_properties)
    groups = {}
    for name in artifact_utils.decode_split_names(examples.split_names):
        files = tf.io.gfile.glob(f"{artifact_utils.get_split_uri([examples], name)}/*")
        records = tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
        parsed = [tf.train.Example.FromString(record) for record in records]
        groups[name] = [example.features.feature["patient"].bytes_list.value[0].decode() for example in parsed]
    return groups


def test_tfrecords_made_elsewhere_are_split_by_their_group(tmp_path):
    (tmp_path / "records").mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / "records" / "0.tfrecord")) as writer:
        for number in range(600):
            example = make_example(b"\xff\xd8\xff%d" % number, "ab"[number % 2], patient=f"p{number % 60}")
            writer.write(example.SerializeToString())
    data = {"path": str(tmp_path / "records"), "features": {"group": "patient"}}
    splits = split_records(Config(name="x", data=data), tmp_path / "grouped")
    assert sum(map(len, splits.values())) == 600
    assert all(splits.values())
    assert sum(len(set(groups)) for groups in splits.values()) == 60
    ungrouped = split_records(Config(name="x", data=data | {"features": {}}), tmp_path / "ungrouped")
    assert sum(len(set(groups)) for groups in ungrouped.values()) > 60
