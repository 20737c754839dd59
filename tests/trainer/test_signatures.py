"""The exported signatures, on a small network behind the real transform graph."""

from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import ExifTags, Image
from scipy.special import logit

from imagepipe.base.features import IMAGE, MISSING_FLAG, TARGET, TRANSFORMED, Features
from imagepipe.base.names import TaskName
from imagepipe.deploy.saved_model import read_labels, read_task
from imagepipe.serving import engine
from imagepipe.serving.predictor import load
from imagepipe.serving.types import Request, RequestError
from tests.conftest import SIZE, encode_image, make_digit_images, make_example, run_analysis
from trainer.config import TrainerConfig
from trainer.export.answers import make_answers
from trainer.export.calibration import NO_CALIBRATION
from trainer.export.signatures import save_model
from trainer.inputs import load_split, make_batches
from trainer.network import build_network
from trainer.tasks import make_classification
from transform.examples import load_graph, make_parser, read_shards

WEIGHT, CAMERA = TRANSFORMED + "weight", TRANSFORMED + "camera"
NO_WEIGHT = MISSING_FLAG + "weight"


def answer_by(task: TaskName, names: list[str], thresholds: dict[str, float], unknown_from: float | None = None):
    """Answers of a model to which the brighter half of all images is novel."""
    return make_answers(
        task, names, thresholds, NO_CALIBRATION, lambda outputs: outputs["embedding"][:, 0], unknown_from
    )


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(1)
    image = keras.Input((*SIZE, 3), dtype="uint8", name=IMAGE)
    weight, camera = keras.Input((), name=WEIGHT), keras.Input((), dtype="int64", name=CAMERA)
    no_weight = keras.Input((), name=NO_WEIGHT)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    side = [
        *(keras.layers.Reshape((1,))(x) for x in (weight, no_weight)),
        keras.layers.CategoryEncoding(3, output_mode="one_hot")(camera),
    ]
    joined = keras.layers.Concatenate()([pooled, *side])
    return keras.Model(
        {IMAGE: image, WEIGHT: weight, CAMERA: camera, NO_WEIGHT: no_weight},
        {"logits": keras.layers.Dense(3)(joined), "embedding": pooled},
    )


@pytest.fixture(scope="module")
def served(analyzed, network, tmp_path_factory):
    output, features, _ = analyzed
    path = str(tmp_path_factory.mktemp("export") / "model")
    save_model(network, answer_by("classification", ["10", "7", "b"], {}), output, features, "classification", path)
    return tf.saved_model.load(path), path


def request(serialized: list[bytes], ids: list[str]) -> dict[str, tf.Tensor]:
    features = [tf.train.Example.FromString(s).features.feature for s in serialized]
    return {
        "input": tf.constant([f["input"].bytes_list.value[0] for f in features]),
        "weight": tf.constant([f["weight"].float_list.value[0] for f in features]),
        "camera": tf.constant([f["camera"].bytes_list.value[0] for f in features]),
        "metadata": tf.constant(ids),
    }


def test_signatures_are_those_of_the_contract(served):
    model, path = served
    assert set(model.signatures) == {"serving_default", "tf_examples", "transform_features", "embed"}
    for name in ("serving_default", "tf_examples"):
        outputs = model.signatures[name].structured_outputs
        assert {key: (spec.dtype.name, spec.shape.rank) for key, spec in outputs.items()} == {
            "classes": ("float32", 2),
            "label": ("string", 1),
            "score": ("float32", 1),
            "novelty": ("float32", 1),
            "metadata": ("string", 1),
        }
    taken = model.signatures["serving_default"].structured_input_signature[1]
    assert set(taken) == {"input", "metadata", "weight", "camera"}
    assert all(spec.shape.rank == 1 for spec in taken.values())
    assert list(tf.io.gfile.GFile(f"{path}/assets/labels")) == ["10\n", "7\n", "b\n"]


def test_the_servers_half_gives_the_embedding_beside_the_answers(served, analyzed):
    """So captured traffic has it without a second run of the network."""
    model, _ = served
    asked = request([s for i, s in enumerate(analyzed[2]) if i % 3][:3], ["1"] * 3)
    metadata = asked.pop("metadata")
    answers = model.answer(**model.preprocess(**asked))
    embedded = model.signatures["embed"](input=asked["input"], metadata=metadata)
    np.testing.assert_allclose(answers["embedding"], embedded["embedding"], rtol=1e-6)
    assert set(answers) == {"classes", "label", "score", "novelty", "embedding"}


@pytest.mark.long
def test_a_side_feature_may_be_called_like_a_layer_or_an_output(tmp_path):
    numeric = ("hidden", "pool", "scale", "outputs", "head", "side", "numeric_0", "score", "mobilenetv2_3")
    features = Features(numeric=numeric, categorical=("dropout", "classes"))
    png = make_digit_images(1)[0][1]
    spec: dict = {name: tf.io.FixedLenFeature([], tf.string) for name in ("input", "label", *features.categorical)}
    spec |= {name: tf.io.FixedLenFeature([], tf.float32) for name in numeric}
    rows = [
        {"input": png, "label": label.encode()}
        | {name: float(row + place) for place, name in enumerate(numeric)}
        | {name: f"{name}{row}".encode() for name in features.categorical}
        for row, label in enumerate("ab")
    ]
    custom = {"task": "classification", "features": asdict(features), "image_size": list(SIZE)}
    output = run_analysis(rows, spec, custom, tmp_path / "transform")
    config = TrainerConfig(weights="none", backbone="mobilenet_v3_small")
    side = {TRANSFORMED + name: 3 if name in features.categorical else None for name in features.side}
    network = build_network(SIZE, make_classification(2), side, config).served
    answers = answer_by("classification", ["a", "b"], {})
    save_model(network, answers, output, features, "classification", str(tmp_path / "model"))
    asked = {name: tf.constant([row[name] for row in rows]) for name in ("input", *features.side)}
    signatures = tf.saved_model.load(str(tmp_path / "model")).signatures
    served = signatures["serving_default"](**asked, metadata=tf.constant(["1", "2"]))
    texts = [row | {name: row[name].decode() for name in features.categorical} for row in rows]
    examples = [make_example(row["input"], **{n: row[n] for n in features.side}).SerializeToString() for row in texts]
    assert np.allclose(served["classes"], signatures["tf_examples"](examples=tf.constant(examples))["classes"])
    assert not np.allclose(served["classes"][0], served["classes"][1])  # the images are the same


def test_training_and_both_serving_signatures_see_the_same_pixels_and_answer_the_same(
    served, analyzed, network, tmp_path
):
    model, _ = served
    output, features, serialized = analyzed
    serialized = [s for s in serialized if tf.train.Example.FromString(s).features.feature["weight"].float_list.value]
    with tf.io.TFRecordWriter(str(tmp_path / "x.tfrecord")) as writer:
        for record in serialized:
            writer.write(record)
    _, transform = load_graph(output)
    parse = make_parser(output, features, with_label=True)
    read = read_shards([str(tmp_path / "*.tfrecord")])
    split = load_split(read, lambda s: transform(parse(s)), make_classification(3), tmp_path / "pixels")
    trained_on, _ = make_batches(split, len(serialized)).get_single_element()

    seen = model.signatures["transform_features"](examples=tf.constant(serialized))
    by_examples = model.signatures["tf_examples"](examples=tf.constant(serialized))
    by_default = model.signatures["serving_default"](**request(serialized, ["x"] * len(serialized)))

    assert np.array_equal(trained_on[IMAGE], seen[IMAGE])
    assert np.array_equal(by_examples["classes"], by_default["classes"])
    assert np.array_equal(
        by_examples["classes"], tf.function(lambda x: tf.nn.softmax(network(x)["logits"]))(trained_on)
    )


def test_a_number_is_missing_in_a_request_if_it_is_nan_as_in_an_example_without_it(served, analyzed):
    model, path = served
    without = [s for i, s in enumerate(analyzed[2]) if i % 3 == 0]
    features = [tf.train.Example.FromString(s).features.feature for s in without]
    by_default = model.signatures["serving_default"](
        input=tf.constant([f["input"].bytes_list.value[0] for f in features]),
        weight=tf.fill(len(without), float("nan")),
        camera=tf.constant([f["camera"].bytes_list.value[0] for f in features]),
        metadata=tf.fill(len(without), ""),
    )
    by_examples = model.signatures["tf_examples"](examples=tf.constant(without))
    assert np.array_equal(by_default["classes"], by_examples["classes"])
    requests = [
        Request(
            "", f["input"].bytes_list.value[0], {"weight": None, "camera": f["camera"].bytes_list.value[0].decode()}
        )
        for f in features
    ]
    asked = engine.Engine(Path(path), "x", "1", lambda size: None).ask(requests)
    np.testing.assert_allclose(asked.classes, by_default["classes"], rtol=1e-5)
    flags = model.signatures["transform_features"](examples=tf.constant(without))[NO_WEIGHT]
    assert flags.numpy().tolist() == [1.0] * len(without)


def test_metadata_passes_through_and_label_and_score_are_those_of_the_best_class(served, analyzed):
    model, _ = served
    serialized = [s for i, s in enumerate(analyzed[2]) if i % 3]
    answer = model.signatures["serving_default"](**request(serialized[:5], [f"é-{i}" for i in range(5)]))
    assert [m.decode() for m in answer["metadata"].numpy()] == [f"é-{i}" for i in range(5)]
    names = np.array([b"10", b"7", b"b"])
    assert np.array_equal(names[answer["classes"].numpy().argmax(axis=1)], answer["label"].numpy())
    assert np.array_equal(answer["classes"].numpy().max(axis=1), answer["score"].numpy())
    by_examples = model.signatures["tf_examples"](examples=tf.constant(serialized[:2]))
    assert by_examples["metadata"].numpy().tolist() == [b"id-1", b"id-2"]


def test_an_example_without_identifier_is_answered_with_an_empty_one(served, analyzed):
    model, _ = served
    bare = tf.train.Example.FromString(analyzed[2][1])
    del bare.features.feature["metadata"]
    del bare.features.feature["label"]
    answer = model.signatures["tf_examples"](examples=tf.constant([bare.SerializeToString()]))
    assert answer["metadata"].numpy().tolist() == [b""]


def test_an_empty_batch_gets_an_empty_answer(served):
    model, _ = served
    assert model.signatures["tf_examples"](examples=tf.constant([], tf.string))["classes"].shape == (0, 3)


def test_the_embedding_is_that_of_the_network_and_needs_no_side_features(served, analyzed, network):
    model, _ = served
    taken = model.signatures["embed"].structured_input_signature[1]
    assert set(taken) == {"input", "metadata"}
    serialized = [s for i, s in enumerate(analyzed[2]) if i % 3][:5]
    asked = request(serialized, [f"é-{i}" for i in range(5)])
    answer = model.signatures["embed"](input=asked["input"], metadata=asked["metadata"])
    assert set(answer) == {"embedding", "metadata"}
    assert [m.decode() for m in answer["metadata"].numpy()] == [f"é-{i}" for i in range(5)]
    transformed = model.signatures["transform_features"](examples=tf.constant(serialized))
    inputs = {x.name: transformed[x.name] for x in network.inputs}
    np.testing.assert_allclose(answer["embedding"], network(inputs)["embedding"], rtol=1e-5)


def test_images_at_least_as_novel_as_the_limit_get_no_label_and_keep_their_classes(served, analyzed, network, tmp_path):
    plain, _ = served
    output, features, serialized = analyzed
    examples = tf.constant(serialized)
    expected = plain.signatures["tf_examples"](examples=examples)
    limit = float(np.median(expected["novelty"]))
    path = str(tmp_path / "model")
    answers = answer_by("classification", ["10", "7", "b"], {}, limit)
    save_model(network, answers, output, features, "classification", path)
    answer = tf.saved_model.load(path).signatures["tf_examples"](examples=examples)
    is_novel = expected["novelty"].numpy() >= limit
    assert 0 < is_novel.sum() < len(is_novel)
    assert np.array_equal(answer["label"], np.where(is_novel, b"", expected["label"]))
    for name in ("classes", "score", "novelty", "metadata"):
        assert np.array_equal(answer[name], expected[name])
    images = [tf.train.Example.FromString(s).features.feature["input"].bytes_list.value[0] for s in serialized]
    side = {"weight": 1.0, "camera": "old"}
    asked = [Request(str(number), image, side) for number, image in enumerate(images)]
    by_command = load(path).predict_requests(asked)
    by_server = engine.Engine(Path(path), "x", "1", lambda size: None).ask(asked)
    for prediction, novelty, label in zip(by_command, by_server.novelty, by_server.labels, strict=True):
        assert prediction.novelty == pytest.approx(novelty, abs=1e-5)
        assert (prediction.label, prediction.labels) == (label, (label,) if label else ())
    assert "" in by_server.labels


def constant_network(logits: list[float]) -> keras.Model:
    """Returns a network with the same logits for every image."""
    image = keras.Input((*SIZE, 3), dtype="uint8", name=IMAGE)
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.0)(image))
    dense = keras.layers.Dense(len(logits), bias_initializer=lambda shape, dtype: tf.constant(logits, dtype))
    return keras.Model({IMAGE: image}, {"logits": dense(pooled), "embedding": pooled})


def test_several_labels_are_assigned_at_their_thresholds_and_joined_in_order(analyzed_multilabel, tmp_path):
    output, serialized = analyzed_multilabel
    for name, probabilities, label in (
        ("some", [0.5, 0.8, 0.26], b"a|c"),  # at the threshold is enough
        ("none", [0.49, 0.8, 0.24], b""),
    ):
        path = str(tmp_path / name)
        answers = answer_by("multilabel", ["a", "b", "c"], {"b": 0.9, "c": 0.25})
        network = constant_network([logit(p) for p in probabilities])
        save_model(network, answers, output, Features(), "multilabel", path)
        model = tf.saved_model.load(path)
        answer = model.signatures["tf_examples"](examples=tf.constant(serialized))
        assert answer["label"].numpy().tolist() == [label] * len(serialized)
        assert answer["classes"].numpy()[0] == pytest.approx(probabilities)
        assert answer["score"].numpy()[0] == pytest.approx(0.8)
        assert model.signatures["tf_examples"](examples=tf.constant([], tf.string))["label"].shape == (0,)
        seen = model.signatures["transform_features"](examples=tf.constant(serialized))
        assert seen[TARGET].numpy()[0].tolist() == [1, 1, 0]
    assert read_labels(Path(path)) == ["a", "b", "c"]
    assert read_task(Path(path)) == "multilabel"


def test_a_threshold_for_an_unknown_label_is_refused_and_the_labels_are_listed():
    with pytest.raises(ValueError, match=r"trainer\.label_thresholds: d: .*which are a, b, c"):
        answer_by("multilabel", ["a", "b", "c"], {"d": 0.5})


@pytest.mark.parametrize(("value", "text"), [(3.2, b"3.2"), (-1234567.0, b"-1234567"), (0.0, b"0")])
def test_a_regression_returns_its_value_as_class_score_and_text(analyzed_regression, tmp_path, value, text):
    output, serialized = analyzed_regression
    path = str(tmp_path / "model")
    answers = answer_by("regression", ["label"], {})
    save_model(constant_network([value]), answers, output, Features(), "regression", path)
    model = tf.saved_model.load(path)
    answer = model.signatures["tf_examples"](examples=tf.constant(serialized[:1]))
    assert answer["classes"].numpy().tolist() == [[np.float32(value)]]
    assert answer["score"].numpy().tolist() == [np.float32(value)]
    assert answer["label"].numpy().tolist() == [text]
    assert read_labels(Path(path)) == ["label"]
    assert read_task(Path(path)) == "regression"


def make_photos(photo: Image.Image, count: int) -> list[bytes]:
    """Photos in all eight orientations (EXIF in both byte orders, XMP), with alpha, in inks, gray, of any size."""
    random = np.random.default_rng(0)
    encoded = []
    for number in range(count):
        left, top = random.integers(0, 300, 2)
        part = photo.crop((left, top, left + random.integers(80, 340), top + random.integers(60, 127)))
        exif = Image.Exif()
        exif.endian = "<>"[number % 2]
        exif[ExifTags.Base.Make] = "a camera's maker"
        exif[ExifTags.Base.Orientation] = 1 + number % 8
        match number // 8 % 5:
            case 0:
                encoded.append(encode_image(part, quality=90, exif=exif))
            case 1:
                part.putalpha(Image.linear_gradient("L").resize(part.size))
                encoded.append(encode_image(part, "PNG", exif=exif))
            case 2:
                encoded.append(encode_image(part.convert("CMYK"), quality=90, exif=exif))
            case 3:
                xmp = f"<tiff:Orientation>{1 + number % 8}</tiff:Orientation>".encode()
                encoded.append(encode_image(part.convert("L"), progressive=True, xmp=xmp))
            case 4:
                encoded.append(encode_image(part.quantize(16), "PNG", transparency=3))
    return encoded


def answer_everywhere(path: str, encoded: list[bytes]) -> dict[str, np.ndarray]:
    """The probabilities of plain TensorFlow, of ``imagepipe serve``'s engine and of ``imagepipe predict``."""
    side = {"weight": 1.0, "camera": "old"}
    requests = [Request(str(number), image, side) for number, image in enumerate(encoded)]
    bare = tf.saved_model.load(path).signatures["serving_default"](
        input=tf.constant(encoded),
        metadata=tf.constant([r.id for r in requests]),
        weight=tf.fill(len(encoded), side["weight"]),
        camera=tf.fill(len(encoded), side["camera"]),
    )
    predictions = load(path).predict_requests(requests)
    server = engine.Engine(Path(path), "x", "1", lambda size: None)
    return {
        "bare": bare["classes"].numpy(),
        "serve": np.concatenate([server.ask(requests[i : i + 32]).classes for i in range(0, len(requests), 32)]),
        "predict": np.array([[p.classes[name] for name in ("10", "7", "b")] for p in predictions]),
    }


@pytest.fixture(scope="module")
def steep(analyzed, tmp_path_factory):
    """A model whose answer depends on each part of the image, and on where it is, and on its colors."""
    output, features, _ = analyzed
    keras.utils.set_random_seed(2)
    image = keras.Input((*SIZE, 3), dtype="uint8", name=IMAGE)
    side = {name: keras.Input((), name=name) for name in (WEIGHT, NO_WEIGHT)}
    side |= {CAMERA: keras.Input((), dtype="int64", name=CAMERA)}
    parts = keras.layers.AveragePooling2D(8)(keras.layers.Rescaling(1 / 127.5, -1)(image))
    flat = keras.layers.Flatten()(parts)
    logits = keras.layers.Dense(3, kernel_initializer="random_normal")(flat)
    path = str(tmp_path_factory.mktemp("steep") / "model")
    network = keras.Model({IMAGE: image, **side}, {"logits": logits, "embedding": flat})
    save_model(network, answer_by("classification", ["10", "7", "b"], {}), output, features, "classification", path)
    return path


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_the_bare_model_the_server_and_the_command_answer_the_same_about_any_photo(steep, photo, count):
    answers = answer_everywhere(steep, make_photos(photo, count))
    assert len(answers["bare"]) == count
    for way in ("serve", "predict"):
        np.testing.assert_allclose(answers[way], answers["bare"], atol=1e-3)


def test_the_answer_about_a_photo_does_not_depend_on_how_it_lies(steep, photo):
    encoded = []
    for orientation, turn in enumerate([None, 0, 3, 1, 5, 2, 6, 4], start=1):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        lying = photo if turn is None else photo.transpose(Image.Transpose(turn))
        encoded.append(encode_image(lying, quality=95, exif=exif))
    *classes, rotated = answer_everywhere(steep, [*encoded, encode_image(photo.rotate(180))])["bare"]
    assert np.abs(np.subtract(classes, classes[0])).max() < 0.01
    assert np.abs(rotated - classes[0]).max() > 0.03


def test_a_server_that_decodes_by_itself_gives_the_answers_of_the_signature(served, analyzed):
    model, path = served
    _, _, serialized = analyzed
    serialized = [s for s in serialized if tf.train.Example.FromString(s).features.feature["weight"].float_list.value]
    asked = request(serialized, [str(number) for number in range(len(serialized))])
    rows = zip(*(asked[name].numpy().tolist() for name in ("metadata", "input", "weight", "camera")), strict=True)
    requests = [Request(i.decode(), image, {"weight": w, "camera": c.decode()}) for i, image, w, c in rows]
    asking = engine.Engine(Path(path), "x", "1", lambda size: None)
    answers = asking.ask(requests)
    expected = model.signatures["serving_default"](**asked)
    np.testing.assert_allclose(answers.classes, expected["classes"], rtol=1e-5)
    assert answers.labels == [label.decode() for label in expected["label"].numpy()]
    with pytest.raises(RequestError, match="instance 1: the model needs 'camera' next to the image"):
        asking.ask([requests[0], Request("y", requests[0].image)])


def test_a_missing_number_is_answered_as_in_an_example_that_lacks_it(served, analyzed):
    model, path = served
    _, _, serialized = analyzed
    lacking = next(
        s for s in serialized if not tf.train.Example.FromString(s).features.feature["weight"].float_list.value
    )
    (expected,) = model.signatures["tf_examples"](examples=tf.constant([lacking]))["classes"].numpy()
    feature = tf.train.Example.FromString(lacking).features.feature
    side = {"weight": None, "camera": feature["camera"].bytes_list.value[0].decode()}
    asked = Request("x", feature["input"].bytes_list.value[0], side)
    answers = engine.Engine(Path(path), "x", "1", lambda size: None).ask(
        [asked, replace(asked, side=side | {"weight": 9})]
    )
    np.testing.assert_allclose(answers.classes[0], expected, rtol=1e-5)
