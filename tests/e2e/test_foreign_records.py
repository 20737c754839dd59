"""From TFRecords that another program wrote to a prediction with a name, by the commands that a user types."""

import io
import json
import math

import pytest
import tensorflow as tf
import yaml
from PIL import Image

from tests.conftest import make_digit_images
from tests.e2e.test_train import imagepipe
from tests.small_backbone import BACKBONE

NAMES = {"0": "zero", "1": "one"}


def write_shard(path, images: list[tuple[str, bytes]]) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, (label, png) in enumerate(images):
            example = tf.train.Example()
            feature = example.features.feature
            with Image.open(io.BytesIO(png)) as image:
                encoded = io.BytesIO()
                image.convert("RGB").save(encoded, ("PNG", "WEBP", "BMP")[number % 3])
            feature["image/encoded"].bytes_list.value.append(encoded.getvalue())
            feature["image/class/label"].int64_list.value.append(1 + int(label))
            if number % 4:  # the others lack it
                feature["thickness"].float_list.value.append(math.sqrt(number))
            writer.write(example.SerializeToString())


@pytest.mark.long
def test_records_with_numbers_for_classes_become_a_model_that_says_their_names(tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    images = [(label, png) for label, png in make_digit_images(800) if label in NAMES]
    write_shard(records / "train-00000-of-00002", images[:110])
    (records / "train-00001-of-00002").write_bytes(b"")
    write_shard(records / "validation-00000-of-00001", images[110:])
    (records / "_SUCCESS").write_bytes(b"")
    (tmp_path / "map.pbtxt").write_text(
        "".join(f"item {{ id: {1 + int(number)} name: '{name}' }}\n" for number, name in NAMES.items())
    )
    features = {"input": "image/encoded", "label": "image/class/label", "label_map": "map.pbtxt"}
    config = {
        "name": "foreign",
        "data": {"path": "records", "features": features | {"numeric": ["thickness"]}},
        "image": {"size": [32, 32]},
        "trainer": {"backbone": BACKBONE, "weights": "none", "epochs": 1},
        "evaluation": {"thresholds": {"accuracy": 0}, "margin": 1, "intervals": "none"},
    }
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    done = imagepipe("run", tmp_path / "pipeline.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["example_count"] == len(images) - 110

    (tmp_path / "one.png").write_bytes(images[0][1])
    (tmp_path / "ask.csv").write_text("path,thickness\none.png,2.5\none.png,\n")
    answers = imagepipe("predict", tmp_path / "serving" / "foreign", tmp_path / "ask.csv", "--json")
    labels = [json.loads(line)["label"] for line in answers.stdout.splitlines()]
    assert len(labels) == 2, answers.stderr
    assert set(labels) <= set(NAMES.values())
