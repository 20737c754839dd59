"""The page to try a model on, in a real browser."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser import find_violations
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
