import dataclasses
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import imagepipe
from imagepipe.base.errors import ModelError
from imagepipe.base.images import prepare_for_decoder
from imagepipe.base.in_use import is_in_use
from imagepipe.deploy.saved_model import read_labels, read_task
from imagepipe.deploy.storage import is_same_model
from imagepipe.deploy.versions import find_model
from imagepipe.serving import batch
from imagepipe.serving.engine import Engine, ServedModel
from imagepipe.serving.inputs import build_requests, normalize_images, read_images
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.openapi import describe_tensors
from imagepipe.serving.predictor import load
from imagepipe.serving.types import Failure, Prediction, Request
from tests.conftest import break_quantization_table, encode_image
from tests.photos import HEIC
from tests.serving.conftest import Brightness
from tests.serving.test_server import gray


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name, value in (("a.png", 10), ("sub/é b.webp", 250), ("c.jpg", 240)):
        image = Image.new("RGB", (8, 8), (value,) * 3)
        (folder / name).write_bytes(
            encode_image(image, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name.split(".")[-1]])
        )
    return folder


def test_half_a_file_of_variables_is_refused_in_words(tmp_path):
    module = tf.Module()
    module.weights = tf.Variable(np.zeros(10_000))
    tf.saved_model.save(module, str(tmp_path))
    (file,) = (tmp_path / "variables").glob("*.data-*")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="can't be loaded as a model of this pipeline"):
        LoadedModel(tmp_path)


def predict_files(model: Path, paths: list[Path]) -> list[Prediction | Failure]:
    return list(load(model).predict_requests(read_images(paths)))


def test_each_image_gets_its_own_answer_and_a_bad_one_its_own_error(model, images):
    (images / "b.jpg").write_bytes(b"no image")
    paths = [images / "a.png", images / "b.jpg", images / "missing.jpg", images / "sub" / "é b.webp"]
    a, b, missing, webp = predict_files(model, paths)
    assert isinstance(a, Prediction)
    assert (a.label, a.id) == ("dark", str(images / "a.png"))
    assert a.score == pytest.approx(1 - 10 / 255, abs=1e-5)
    assert list(a.classes) == ["dark", "light"]
    assert isinstance(webp, Prediction)
    assert list(webp.classes) == ["light", "dark"]
    assert isinstance(b, Failure)
    assert "not an image" in b.error
    assert missing == Failure(str(images / "missing.jpg"), "No such file or directory")


def test_an_image_that_only_the_graph_finds_broken_fails_alone(model, images):
    (images / "b.jpg").write_bytes(break_quantization_table((images / "c.jpg").read_bytes()))
    dark, broken, light = predict_files(model, [images / "a.png", images / "b.jpg", images / "c.jpg"])
    assert isinstance(broken, Failure)
    assert broken.error.startswith("broken image")
    assert [answer.label for answer in (dark, light)] == ["dark", "light"]


def test_an_image_that_the_graph_refuses_and_nobody_else_fails_alone(model, images, monkeypatch):
    refused, preprocess = (images / "c.jpg").read_bytes(), LoadedModel.preprocess

    def refuse_one(self, requests):
        if any(request.image == refused for request in requests):
            raise tf.errors.InvalidArgumentError(None, None, "Invalid JPEG data")
        return preprocess(self, requests)

    monkeypatch.setattr(LoadedModel, "preprocess", refuse_one)
    expected = Failure(str(images / "c.jpg"), "broken image: the model can't decode it")
    dark, failure, light = predict_files(model, [images / "a.png", images / "c.jpg", images / "sub" / "é b.webp"])
    assert (dark.label, failure, light.label) == ("dark", expected, "light")
    assert predict_files(model, [images / "c.jpg"]) == [expected]


def test_a_model_that_cannot_answer_about_sound_images_is_no_failure_of_theirs(model, images, monkeypatch):
    def fail(*_):
        raise tf.errors.InvalidArgumentError(None, None, "a bug")

    monkeypatch.setattr(LoadedModel, "preprocess", fail)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a bug"):
        predict_files(model, [images / "a.png"])


def test_a_model_without_a_task_is_a_classifier_and_names_its_best_class(model, images):
    assert read_task(model) == "classification"
    (answer,) = predict_files(model, [images / "a.png"])
    assert answer.labels == ("dark",)


def test_more_images_than_a_batch_are_all_answered_in_order(model, images):
    paths = [images / ("a.png" if i % 3 else "c.jpg") for i in range(70)]
    answers = predict_files(model, paths)
    assert [answer.label for answer in answers] == ["dark" if i % 3 else "light" for i in range(70)]


def test_a_photo_lying_on_its_side_is_asked_about_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    (tmp_path / "lying.jpg").write_bytes(encode_image(wide, exif=exif))
    (request,) = normalize_images(read_images([tmp_path / "lying.jpg"]))
    assert isinstance(request, Request)
    assert tf.io.decode_image(request.image).shape == (40, 20, 3)


def test_a_photo_is_turned_for_a_graph_that_does_not_turn_it(model, tmp_path):
    assert not LoadedModel(model).turns_upright()
    exif = Image.Exif()
    exif[0x0112] = 6
    inks = Image.new("CMYK", (40, 20), (0, 0, 0, 200))
    (tmp_path / "lying.jpg").write_bytes(encode_image(inks, exif=exif))
    (answer,) = predict_files(model, [tmp_path / "lying.jpg"])
    assert answer.label == "dark"
    assert prepare_for_decoder((tmp_path / "lying.jpg").read_bytes())[1:] == (20, 40)


def test_heic_and_avif_are_asked_about_as_they_are_ingested(model, tmp_path):
    dark = encode_image(Image.new("RGB", (40, 20), (10, 10, 10)), "AVIF")
    for name, data in (("a.avif", dark), ("b.heic", HEIC), ("c.heic", HEIC[:300])):
        (tmp_path / name).write_bytes(data)
    a, b, c = predict_files(model, [tmp_path / "a.avif", tmp_path / "b.heic", tmp_path / "c.heic"])
    assert isinstance(a, Prediction)
    assert a.label == "dark"
    assert isinstance(b, Prediction)
    assert isinstance(c, Failure)
    assert prepare_for_decoder(HEIC)[1:] == (64, 96)


def test_a_model_in_memory_marks_its_folder_as_in_use(model):
    folder = Path(shutil.copytree(model, model.parent.parent / "in_use" / "7"))
    loaded = LoadedModel(folder)
    assert is_in_use(folder.parent)
    del loaded
    gc.collect()
    assert not is_in_use(folder.parent)


def test_a_model_is_found_by_its_folder_its_versions_or_its_run(model, tmp_path):
    (model.parent / "6").mkdir(exist_ok=True)
    run = tmp_path / "run"
    run.mkdir()
    (run / "summary.json").write_text(json.dumps({"name": "brightness", "model_dir": str(model)}))
    assert find_model(model) == find_model(model.parent) == find_model(run) == model
    assert read_labels(model) == ["dark", "light"]
    assert is_same_model(str(model), str(model))
    assert not is_same_model(str(model), str(tmp_path))


def test_a_folder_without_a_model_is_refused_with_the_reason(tmp_path):
    with pytest.raises(ModelError, match="neither a SavedModel"):
        find_model(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ModelError, match=r"summary\.json is missing or damaged"):
        find_model(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": "brightness"}')
    with pytest.raises(ModelError, match="did not get as far"):
        find_model(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"garbage")
    with pytest.raises(ModelError, match="can't be loaded"):
        LoadedModel(tmp_path)


def test_the_api_answers_about_paths_bytes_and_arrays(model, images):
    predictor = imagepipe.load(str(model.parent))
    array = np.asarray(Image.open(images / "a.png").convert("RGB"))
    given = [images / "a.png", str(images / "none.png"), (images / "a.png").read_bytes(), array, array / 255, b"text"]
    path, missing, content, pixels, floats, text = predictor.predict(given)
    assert isinstance(path, Prediction)
    assert (path.id, path.label, path.labels) == (str(images / "a.png"), "dark", ("dark",))
    assert [content, pixels] == [dataclasses.replace(path, id="2"), dataclasses.replace(path, id="3")]
    assert missing == Failure(str(images / "none.png"), "No such file or directory")
    assert floats == Failure("4", "expected an array uint8 [height, width, 3], not float64 [8, 8, 3]")
    assert isinstance(text, Failure)
    assert (predictor.model.labels, predictor.model.task, predictor.model.side) == (
        ["dark", "light"],
        "classification",
        {},
    )


@pytest.mark.parametrize("images", ["photo.jpg", b"photo", Path("photo.jpg")])
def test_a_single_image_is_not_taken_for_a_list(model, images):
    with pytest.raises(TypeError, match="put a single one into a list"):
        imagepipe.load(model).predict(images)


def test_an_image_of_another_type_is_named(model):
    with pytest.raises(TypeError, match="image 0: expected a path, bytes or a numpy array, not Image"):
        imagepipe.load(model).predict([Image.new("RGB", (8, 8))])


def save_weighted(folder: Path, assets: Path, name: str) -> Path:
    """Saves a model whose probabilities are multiplied by the side feature ``name``."""
    module = Brightness(assets, ("dark", "light"), 0)

    def preprocess(input, **side):
        return module._preprocess(input) | {name: tf.identity(side[name])}

    def answer(image, **side):
        answers = module._answer(image)
        return answers | {"classes": answers["classes"] * side[name][:, None]}

    def serve(input, metadata, **side):
        return answer(**preprocess(input, **side)) | {"metadata": tf.identity(metadata)}

    strings, numbers = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32, name=name)
    signature = tf.function(serve).get_concrete_function(input=strings, metadata=strings, **{name: numbers})
    module.preprocess = tf.function(preprocess).get_concrete_function(input=strings, **{name: numbers})
    outputs = module.preprocess.structured_outputs
    specs = {key: tf.TensorSpec(x.shape, x.dtype, name=key) for key, x in outputs.items()}
    module.answer = tf.function(answer).get_concrete_function(**specs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": signature})
    return folder


@pytest.fixture(scope="module")
def weighted(tmp_path_factory) -> Path:
    return save_weighted(tmp_path_factory.mktemp("weighted"), tmp_path_factory.mktemp("assets"), "weight")


def test_a_side_feature_may_be_called_like_the_input_of_another_signature(tmp_path):
    (tmp_path / "assets").mkdir()
    predictor = imagepipe.load(save_weighted(tmp_path / "model", tmp_path / "assets", "examples"))
    (answer,) = predictor.predict([gray(0)], [{"examples": 0.5}])
    assert answer.score == 0.5


def test_the_api_takes_side_features_and_an_image_that_lacks_one_fails_alone(weighted):
    predictor = imagepipe.load(weighted)
    side = [{"weight": 1}, {"weight": np.float32(0.5)}, {}, {"weight": "heavy"}, {"weight": float("inf")}]
    whole, half, none, text, infinite = predictor.predict([gray(0)] * 5, side)
    assert (whole.score, half.score) == (1, 0.5)
    assert none == Failure("2", "the model needs 'weight' next to the image")
    assert text == Failure("3", "'weight' is 'heavy'; the model needs a float32 there")
    assert infinite == Failure("4", "'weight' has to be a number (of 64 bits) or a string")
    with pytest.raises(ValueError, match="shorter"):
        predictor.predict([gray(0)] * 2, side[:1])


def test_a_number_that_is_missing_to_numpy_and_pandas_is_missing():
    values = (float("nan"), np.float32("nan"), None, 1.5)
    requests = build_requests([gray(0)] * 4, [{"iso": value, "camera": "old"} for value in values])
    assert [request.side for request in requests] == [{"iso": iso, "camera": "old"} for iso in (None, None, None, 1.5)]


def test_a_model_in_a_folder_whose_name_looks_like_a_pattern_answers(model, photo, tmp_path):
    folder = tmp_path / "models [1] *?" / "1"
    shutil.copytree(model, folder)
    assert load(folder).predict([encode_image(photo)]) == load(model).predict([encode_image(photo)])


class WithoutNovelty(Brightness):
    """A model as earlier versions exported it."""

    def _answer(self, image):
        answers = super()._answer(image)
        del answers["novelty"]
        return answers


def test_a_model_without_novelty_is_asked_in_all_ways_as_before(tmp_path):
    (tmp_path / "assets").mkdir()
    module = WithoutNovelty(tmp_path / "assets", ("dark", "light"), 0)
    signatures = {"serving_default": module.serve, "tf_examples": module.serve_examples}
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), signatures=signatures)
    (tmp_path / "light.png").write_bytes(gray(250))
    (answer,) = load(tmp_path / "m").predict([tmp_path / "light.png"])
    assert (answer.label, answer.novelty) == ("light", None)
    served = Engine(tmp_path / "m" / "1", "m", "1", lambda size: None)
    answers = served.ask([Request("x", gray(250))])
    assert (answers.labels, answers.novelty) == (["light"], None)
    assert "novelty" not in [output["name"] for output in describe_tensors(served)["outputs"]]
    batch.predict_source(tmp_path / "m" / "1", str(tmp_path / "light.png"), tmp_path / "out")
    (row,) = (json.loads(line) for file in tmp_path.glob("out/predictions-*") for line in file.open())
    assert set(row) == {"metadata", "label", "score", "classes"}


def test_a_model_whose_decoding_is_no_part_of_its_own_is_asked_here_and_refused_by_the_server(tmp_path):
    (tmp_path / "assets").mkdir()
    module = Brightness(tmp_path / "assets", ("dark", "light"), 0)
    del module.preprocess, module.answer
    tf.saved_model.save(module, str(tmp_path / "m" / "1"), signatures={"serving_default": module.serve})
    (tmp_path / "light.png").write_bytes(gray(250))
    (answer,) = load(tmp_path / "m").predict([tmp_path / "light.png"])
    assert answer.label == "light"
    with pytest.raises(ModelError, match="m/1 was exported by an early version of imagepipe"):
        ServedModel(tmp_path / "m", "m", lambda size: None)
