"""The page to try a model on, in a real browser."""

import re
from pathlib import Path

import pytest
import tensorflow as tf
from playwright.sync_api import Page, Route, expect

from imagepipe.base.names import TASK_ASSET
from tests.browser import find_violations
from tests.serving.conftest import Brightness
from tests.serving.test_serve import serving
from tests.serving.test_server import gray

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "brightness"
    folder.mkdir()
    (folder / "7").symlink_to(model)
    with serving(folder) as (_, url):
        yield url


class Price(Brightness):
    """A regression: brightness times weight, for a camera."""

    def __init__(self, assets: Path):
        super().__init__(assets, ("price",), 0)
        (assets / TASK_ASSET).write_text("regression\n")
        self.task = tf.saved_model.Asset(str(assets / TASK_ASSET))
        text, number = tf.TensorSpec([None], tf.string), tf.TensorSpec([None], tf.float32)
        side = {"camera": text, "weight": number}
        self.preprocess = tf.function(self._preprocess_all).get_concrete_function(input=text, **side)
        image = self.preprocess.structured_outputs["image"]
        self.answer = tf.function(self._answer_price).get_concrete_function(
            image=tf.TensorSpec(image.shape, image.dtype), **side
        )
        self.serve = tf.function(self._serve_all).get_concrete_function(input=text, metadata=text, **side)

    def _preprocess_all(self, input, camera, weight):
        return self._preprocess(input) | {"camera": tf.identity(camera), "weight": tf.identity(weight)}

    def _answer_price(self, image, camera, weight):
        value = tf.reduce_mean(tf.cast(image, tf.float32), axis=(1, 2, 3)) * weight
        label = tf.strings.as_string(value, precision=7, shortest=True)
        return {"classes": value[:, None], "label": label, "score": value}

    def _serve_all(self, input, metadata, camera, weight):
        return self._answer_price(**self._preprocess_all(input, camera, weight)) | {"metadata": tf.identity(metadata)}


@pytest.fixture
def priced(browser, tmp_path):
    """The page of a regression with side features."""
    (tmp_path / "assets").mkdir()
    module = Price(tmp_path / "assets")
    folder = tmp_path / "price"
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": module.serve})
    with serving(folder) as (_, url):
        page = browser.new_page(viewport={"width": 900, "height": 600})
        page.goto(url)
        yield page
        page.close()


def test_the_page_asks_for_side_features_and_shows_a_value_without_a_bar(priced, tmp_path):
    expect(priced.locator("#side input")).to_have_count(2)
    requests: list[str] = []
    priced.on("request", lambda request: requests.append(request.url))
    (tmp_path / "light.png").write_bytes(gray(250))
    choose(priced, tmp_path / "light.png")
    expect(priced.locator("#error")).to_contain_text("camera: ")
    expect(priced.locator("#error")).to_contain_text("weight: ")
    expect(priced.locator("#result")).to_be_hidden()
    priced.get_by_label("camera").fill("old")
    priced.get_by_label("weight").press_sequentially("-")  # reads as an empty value
    priced.get_by_label("weight").press("Enter")
    expect(priced.locator("#error")).not_to_contain_text("camera")
    expect(priced.locator("#error")).to_contain_text("weight: ")
    assert not any(":predict" in url for url in requests)
    priced.get_by_label("weight").fill("2")
    priced.get_by_label("weight").press("Enter")
    expect(priced.locator("#label")).to_have_text(re.compile(r"^49\d\.\d+$"))
    expect(priced.locator("#error")).to_have_text("")
    expect(priced.locator("#classes tr")).to_have_count(1)
    assert priced.locator("#classes td").all_inner_texts() == ["price", priced.locator("#label").inner_text()]
    assert find_violations(priced) == []
    priced.get_by_label("weight").fill("")
    priced.get_by_label("weight").press("Enter")
    expect(priced.locator("#result")).to_be_hidden()


@pytest.fixture
def page(browser, url):
    page = browser.new_page(viewport={"width": 900, "height": 600})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(url)
    yield page
    assert all(address.startswith((url, "blob:")) for address in requested)  # it needs no other host
    page.close()


def choose(page: Page, file: Path) -> None:
    page.locator("#file").set_input_files(file)


def test_an_image_is_chosen_and_its_class_shows(page, tmp_path):
    expect(page.locator("#name")).to_have_text("brightness")
    expect(page.locator("#version")).to_have_text("version 7")
    for value, label in ((250, "light"), (10, "dark")):
        (tmp_path / f"{label}.png").write_bytes(gray(value))
        choose(page, tmp_path / f"{label}.png")
        expect(page.locator("#label")).to_have_text(label)
        rows = page.locator("#classes tr")
        expect(rows).to_have_count(2)
        expect(rows.first.locator(".name")).to_have_text(label)
        assert float(rows.first.locator(".score").inner_text()) > 0.9
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 20
    assert find_violations(page) == []


def test_a_file_that_is_not_an_image_shows_the_servers_reason_and_the_next_image_works(page, tmp_path):
    (tmp_path / "text.png").write_bytes(b"text")
    choose(page, tmp_path / "text.png")
    expect(page.locator("#error")).to_contain_text("not an image")
    expect(page.locator("#result")).to_be_hidden()
    (tmp_path / "light.png").write_bytes(gray(250))
    choose(page, tmp_path / "light.png")
    expect(page.locator("#label")).to_have_text("light")
    expect(page.locator("#error")).to_have_text("")


def test_an_image_that_is_chosen_before_the_page_knows_its_model_waits_for_it(page, tmp_path):
    held: list[Route] = []
    page.route("**/v1/models", lambda route: held.append(route))
    with page.expect_request("**/v1/models"):
        page.reload()
    (tmp_path / "light.png").write_bytes(gray(250))
    choose(page, tmp_path / "light.png")
    held[0].continue_()
    expect(page.locator("#label")).to_have_text("light")
    expect(page.locator("#error")).to_have_text("")


def test_an_image_that_is_dropped_is_taken(page, tmp_path):
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
            document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        list(gray(250)),
    )
    expect(page.locator("#label")).to_have_text("light")
