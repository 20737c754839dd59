import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components.example_gen.convert import convert_example
from imagepipe.base.errors import DataError
from pipeline.config import Config
from pipeline.dag import create_pipeline
from pipeline.source import find_examples
from tests.conftest import encode_image
from tests.evaluated import make_artifact

NAMES = {"input": "image/encoded", "label": "image/class/label", "metadata": "image/filename"}


def make_foreign(image: bytes, number: int | None, name: str = "") -> tf.train.Example:
    example = tf.train.Example()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(image)
    feature["image/filename"].bytes_list.value.append(name.encode())
    if number is not None:
        feature["image/class/label"].int64_list.value.append(number)
    return example


def test_labels_get_names_and_what_the_graph_does_not_decode_is_converted():
    photo = Image.new("RGB", (8, 8), (200, 0, 0))
    jpeg = encode_image(photo)
    kept = convert_example(make_foreign(jpeg, 2), **NAMES, label_names={1: "daisy", 2: "rose"})
    assert kept.features.feature["image/encoded"].bytes_list.value[0] == jpeg
    assert list(kept.features.feature["image/class/label"].bytes_list.value) == [b"rose"]
    for kind in ("WEBP", "BMP", "TIFF"):
        converted = convert_example(
            make_foreign(encode_image(photo.convert("RGB"), kind), 1), **NAMES, label_names=None
        )
        pixels = tf.io.decode_image(converted.features.feature["image/encoded"].bytes_list.value[0])
        assert np.abs(pixels.numpy().astype(int) - (200, 0, 0)).max() < 4
        assert list(converted.features.feature["image/class/label"].int64_list.value) == [1]
    unlabelled = convert_example(make_foreign(jpeg, None), **NAMES, label_names={1: "daisy"})
    assert not unlabelled.features.feature["image/class/label"].bytes_list.value


def test_a_label_without_a_name_and_what_is_no_image_are_named():
    with pytest.raises(DataError, match=r"label_map: the record 'x.jpg' has the label 7, which has no name; .* 1 to 2"):
        convert_example(make_foreign(b"\xff\xd8\xff", 7, "x.jpg"), **NAMES, label_names={1: "a", 2: "b"})
    with pytest.raises(DataError, match=r"the image of the record 'x.jpg' can't be used: not an image, but a PDF"):
        convert_example(make_foreign(b"%PDF-1.7", 1, "x.jpg"), **NAMES, label_names=None)


def test_a_foreign_set_of_shards_becomes_examples_with_names(tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    records = tmp_path / "records"
    records.mkdir()
    (records / "_SUCCESS").write_bytes(b"")
    (records / "train-00001-of-00002").write_bytes(b"")
    (tmp_path / "names.txt").write_text("1:daisy\n2:rose\n")
    photo = Image.new("RGB", (8, 8), (200, 0, 0))
    for split, count in (("train-00000-of-00002", 6), ("validation-00000-of-00001", 3)):
        with tf.io.TFRecordWriter(str(records / split)) as writer:
            for number in range(count):
                image = encode_image(photo, ("JPEG", "WEBP", "BMP")[number % 3])
                writer.write(make_foreign(image, 1 + number % 2, f"{number}").SerializeToString())
    data = {"path": str(records), "features": NAMES | {"label_map": str(tmp_path / "names.txt")}}
    config = Config(name="x", data=data)
    deploy = config.make_deployment(str(tmp_path))
    example_gen = create_pipeline(config, find_examples(config), str(tmp_path), str(tmp_path), deploy, []).components[0]
    assert example_gen.id == "ImportExampleGen"
    context = example_gen.executor_spec.executor_class.Context(beam_pipeline_args=config.beam.make_arguments())
    examples = make_artifact(standard_artifacts.Examples, tmp_path / "examples")
    example_gen.executor_spec.executor_class(context).Do({}, {"examples": [examples]}, example_gen.exec_properties)
    for split, count in (("train", 6), ("eval", 3)):
        files = tf.io.gfile.glob(f"{artifact_utils.get_split_uri([examples], split)}/*")
        parsed = [tf.train.Example.FromString(x) for x in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()]
        assert len(parsed) == count
        assert {e.features.feature["image/class/label"].bytes_list.value[0] for e in parsed} == {b"daisy", b"rose"}
        for example in parsed:
            image = example.features.feature["image/encoded"].bytes_list.value[0]
            assert image.startswith((b"\xff\xd8\xff", b"\x89PNG"))
    # TFX packs itself for Beam's workers elsewhere, 52 MB a component, and leaves it.
    assert sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) < 10_000
