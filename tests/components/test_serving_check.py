"""ServingCheck on a real server: which requests it sends, and which models it blesses."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tfx.types import artifact_utils, standard_artifacts

from components.serving_check import expectations
from components.serving_check.component import ServingCheck
from imagepipe.base.features import Features
from imagepipe.base.names import SERVING_REPORT
from tests.conftest import encode_image, make_example
from tests.serving.conftest import save_brightness

FEATURES = json.dumps(asdict(Features()))


def gray(value: int, side: int = 20) -> Image.Image:
    return Image.new("RGB", (side, side), (value,) * 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> standard_artifacts.Model:
    root = tmp_path_factory.mktemp("model")
    save_brightness(root / "artifact" / "Format-Serving", root / "assets")
    artifact = standard_artifacts.Model()
    artifact.uri = str(root / "artifact")
    return artifact


def examples(folder: Path, images: list[bytes]) -> standard_artifacts.Examples:
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(["train", "eval"])
    (folder / "Split-eval").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "Split-eval" / "data.gz"), tf.io.TFRecordOptions("GZIP")) as writer:
        for number, image in enumerate(images):
            writer.write(make_example(image, "light", f"id-{number}", width=3).SerializeToString())
    return artifact


def blessing(
    model: standard_artifacts.Model, split: standard_artifacts.Examples, folder: Path, budget: float | None = None
) -> tuple[int, list[str], dict]:
    """Returns the property, the names of the files, and the report."""
    artifact = standard_artifacts.InfraBlessing()
    artifact.uri = str(folder)
    properties = {"features": FEATURES, "latency_budget_ms": budget}
    ServingCheck.EXECUTOR_SPEC.executor_class().Do(
        {"model": [model], "examples": [split]}, {"blessing": [artifact]}, properties
    )
    files = sorted(file.name for file in folder.iterdir())
    report = json.loads((folder / SERVING_REPORT).read_text())
    return artifact.get_int_custom_property("blessed"), files, report


def test_requests_are_those_that_graph_and_server_see_alike(model, tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # the photo lies on its side
    images = [
        encode_image(gray(250)),
        encode_image(gray(250), exif=exif),
        encode_image(gray(10), "WEBP"),
        b"no image",
        encode_image(gray(10, side=200)),
        encode_image(Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)), "PNG"),
        encode_image(gray(10)),
    ]
    monkeypatch.setattr(expectations, "MAX_ONLINE_PIXELS", 10_000)
    monkeypatch.setattr(expectations, "MAX_IMAGES_BYTES", 20_000)
    split = examples(tmp_path / "examples", images)
    saved = Path(model.uri) / "Format-Serving"
    expected = expectations.build_expectations(saved, artifact_utils.get_split_uri([split], "eval"), Features())
    assert [(expectation.request.id, expectation.label) for expectation in expected] == [
        ("id-0", "light"),
        ("id-6", "dark"),
    ]
    assert not any(expectation.request.side for expectation in expected)


def test_without_an_image_to_send_no_model_is_blessed(model, tmp_path):
    blessed, files, report = blessing(model, examples(tmp_path / "examples", [b"no image"]), tmp_path)
    assert (blessed, "INFRA_NOT_BLESSED" in files) == (0, True)
    assert report["problems"] == ["no Example of the split 'eval' can be sent to the server unchanged"]


@pytest.mark.slow
def test_a_model_that_serves_is_blessed_unless_it_is_slower_than_the_budget(model, tmp_path):
    split = examples(tmp_path / "examples", [encode_image(gray(value)) for value in range(0, 250, 10)])
    (tmp_path / "one").mkdir()
    blessed, files, report = blessing(model, split, tmp_path / "one")
    assert (blessed, files, report["problems"]) == (1, ["INFRA_BLESSED", "report.json"], [])
    assert report["images"] == 25
    (tmp_path / "other").mkdir()
    blessed, files, report = blessing(model, split, tmp_path / "other", budget=0.01)
    assert (blessed, files) == (0, ["INFRA_NOT_BLESSED", "report.json"])
    assert "more than the budget of 0.01 ms" in report["problems"][0]
