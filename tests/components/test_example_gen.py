import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components.data_check.columns import find_left_out
from components.example_gen.convert import convert_example
from imagepipe.base.errors import DataError
from imagepipe.base.images import BadImage
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


def test_a_transparent_gif_lies_on_white_as_where_a_file_is_read():
    gif = io.BytesIO()
    Image.new("P", (8, 8), 0).save(gif, "GIF", transparency=0)
    converted = convert_example(make_foreign(gif.getvalue(), 1), **NAMES, label_names=None)
    assert tf.io.decode_image(converted.features.feature["image/encoded"].bytes_list.value[0]).numpy().min() == 255


def test_a_label_without_a_name_and_what_is_no_image_are_named():
    with pytest.raises(DataError, match=r"label_map: the record 'x.jpg' has the label 7, which has no name; .* 1 to 2"):
        convert_example(make_foreign(b"\xff\xd8\xff", 7, "x.jpg"), **NAMES, label_names={1: "a", 2: "b"})
    with pytest.raises(BadImage, match="not an image, but a PDF"):
        convert_example(make_foreign(b"%PDF-1.7", 1, "x.jpg"), **NAMES, label_names=None)


def test_an_image_that_would_end_the_training_is_refused_before():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for kind in ("JPEG", "PNG"):
        data = encode_image(noise, kind)
        assert convert_example(make_foreign(data, 1), **NAMES, label_names=None)
        with pytest.raises(BadImage):
            convert_example(make_foreign(data[: len(data) // 2], 1), **NAMES, label_names=None)


@pytest.mark.parametrize("label", [tf.train.Feature(bytes_list={"value": [b"rose"]}),
                                   tf.train.Feature(float_list={"value": [1.0]})])  # fmt: skip
def test_a_label_that_no_map_can_name_is_refused_by_name(label):
    example = make_foreign(b"\xff\xd8\xff", None, "x.jpg")
    example.features.feature["image/class/label"].CopyFrom(label)
    with pytest.raises(
        DataError, match=r"the record 'x.jpg' has the label '(rose|1\.0)', and a map names whole numbers"
    ):
        convert_example(example, **NAMES, label_names={1: "rose"})


def generate_examples(records, tmp_path, names):
    """Runs ImportExampleGen on TFRecords, and returns its artifact."""
    config = Config(name="x", data={"path": str(records), "features": NAMES | names})
    deploy = config.make_deployment(str(tmp_path))
    example_gen = create_pipeline(config, find_examples(config), str(tmp_path), str(tmp_path), deploy, []).components[0]
    assert example_gen.id == "ImportExampleGen"
    context = example_gen.executor_spec.executor_class.Context(beam_pipeline_args=config.beam.make_arguments())
    examples = make_artifact(standard_artifacts.Examples, tmp_path / "examples")
    example_gen.executor_spec.executor_class(context).Do({}, {"examples": [examples]}, example_gen.exec_properties)
    return examples


def write_records(path, images):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, image in enumerate(images):
            writer.write(make_foreign(image, 1 + number % 2, f"{path.name[:5]} {number}").SerializeToString())


def test_a_set_without_one_image_that_can_be_used_is_refused_by_split(tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    write_records(records / "train-00000-of-00001", [encode_image(Image.new("RGB", (8, 8)))])
    write_records(records / "val-00000-of-00001", [b"%PDF-1.7"])
    with pytest.raises(DataError, match=r"no image is left for the split eval: 1 records were left out.*val-0 0 \(not"):
        generate_examples(records, tmp_path, {})


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
    images = [encode_image(photo, kind) for kind in ("JPEG", "WEBP", "BMP")]
    write_records(records / "train-00000-of-00002", [*images, *images, b"%PDF-1.7"])
    write_records(records / "validation-00000-of-00001", [*images, encode_image(photo, "WEBP")[:50]])
    examples = generate_examples(records, tmp_path, {"label_map": str(tmp_path / "names.txt")})
    for split, count in (("train", 6), ("eval", 3)):
        files = tf.io.gfile.glob(f"{artifact_utils.get_split_uri([examples], split)}/*")
        parsed = [tf.train.Example.FromString(x) for x in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()]
        assert len(parsed) == count
        assert {e.features.feature["image/class/label"].bytes_list.value[0] for e in parsed} == {b"daisy", b"rose"}
        for example in parsed:
            image = example.features.feature["image/encoded"].bytes_list.value[0]
            assert image.startswith((b"\xff\xd8\xff", b"\x89PNG"))
    [finding] = find_left_out([examples])
    assert finding.message.startswith(
        "2 records were left out, as their images can't be decoded: train 6 (not an image"
    )
    assert finding.examples == ["train 6", "valid 3"]
    # TFX packs itself for Beam's workers elsewhere, 52 MB a component, and leaves it.
    assert sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) < 10_000
