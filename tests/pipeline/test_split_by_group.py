"""ImportExampleGen, as the pipeline configures it, on TFRecords that aren't split."""

import tensorflow as tf
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components.example_gen.executor import SPLIT_KEY
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.source import find_examples
from tests.conftest import encode_image, make_example
from tests.evaluated import make_artifact


def split_records(data: dict, folder, feature: str) -> dict[str, list[bytes]]:
    """Runs the first node of the pipeline; returns what each split's records have in a feature."""
    config = Config(name="x", data=data)
    deploy = config.make_deployment(str(folder))
    example_gen = create_pipeline(config, find_examples(config), str(folder), str(folder), deploy, []).components[0]
    context = example_gen.executor_spec.executor_class.Context(beam_pipeline_args=config.beam.make_arguments())
    examples = make_artifact(standard_artifacts.Examples, folder / "examples")
    example_gen.executor_spec.executor_class(context).Do({}, {"examples": [examples]}, example_gen.exec_properties)
    values = {}
    for name in artifact_utils.decode_split_names(examples.split_names):
        files = tf.io.gfile.glob(f"{artifact_utils.get_split_uri([examples], name)}/*")
        records = tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
        parsed = [tf.train.Example.FromString(record).features.feature for record in records]
        assert not any(SPLIT_KEY in features for features in parsed)
        values[name] = sorted(features[feature].bytes_list.value[0] for features in parsed)
    return values


def make_image(number: int) -> bytes:
    return encode_image(Image.new("RGB", (4, 4), (number % 256, number // 256, 0)), "PNG")


def write_records(folder, examples) -> None:
    folder.mkdir()
    with tf.io.TFRecordWriter(str(folder / "0.tfrecord")) as writer:
        for example in examples:
            writer.write(example.SerializeToString())


def test_tfrecords_made_elsewhere_are_split_by_their_group(tmp_path):
    records = tmp_path / "records"
    groups = [f"p{number % 60}" if number % 3 else "" for number in range(600)]
    write_records(records, (make_example(make_image(n), "ab"[n % 2], patient=g) for n, g in enumerate(groups)))
    splits = split_records({"path": str(records), "features": {"group": "patient"}}, tmp_path / "grouped", "patient")
    assert sum(map(len, splits.values())) == 600
    assert sum(len(set(given) - {b""}) for given in splits.values()) == 40
    assert all(given.count(b"") >= 10 for given in splits.values())  # of 200, which are drawn one by one
    ungrouped = split_records({"path": str(records)}, tmp_path / "ungrouped", "patient")
    assert sum(len(set(given) - {b""}) for given in ungrouped.values()) > 40


def test_neither_a_new_name_nor_a_new_feature_moves_an_image_to_another_split(tmp_path):
    images = [make_image(number) for number in range(200)]
    write_records(tmp_path / "first", (make_example(image, "tulip") for image in images))
    write_records(tmp_path / "second", (make_example(image, "tulips", patient="") for image in images))
    first = split_records({"path": str(tmp_path / "first")}, tmp_path / "of_first", "input")
    second = split_records({"path": str(tmp_path / "second")}, tmp_path / "of_second", "input")
    assert first == second
    assert all(first.values())
