"""The page for labels in a real browser, by keyboard alone."""

import hashlib
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from imagepipe.base.decisions import Decision, append_decision, read_decisions
from imagepipe.serving.access import EVERYBODY, Access
from pipeline.labelling import server
from pipeline.labelling.work import Item, Queue, Work
from tests.browser import find_violations, launch_browser

pytestmark = pytest.mark.slow

CLASSES = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
IMAGES = 1000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Work:
    """1,000 images of five classes, of which the model gives each the next one."""
    folder = tmp_path_factory.mktemp("pictures")
    items = []
    for number in range(IMAGES):
        written = io.BytesIO()
        color = (number * 7 % 256, number * 13 % 256, number % 256)
        Image.new("RGB", (120, 80), color).save(written, "PNG")
        sha256 = hashlib.sha256(written.getvalue() + bytes(number)).hexdigest()
        (folder / sha256).write_bytes(written.getvalue())
        label, other = CLASSES[number % 5], CLASSES[(number + 1) % 5]
        beside = ((items[-1].sha256, items[-1].label),) if items else ()
        guesses = ((other, 0.8), (label, 0.2))
        why = f"looks more like {other} than {label}"
        items.append(Item(sha256, f"<b>{number}</b>.jpg", label, guesses, why, "run-1", beside))
    queues = [Queue("errors", "Likely label errors", "Odd ones.", items), Queue("more", "More", "Few.", items[:3])]
    return Work("run-1", "classification", CLASSES, queues, folder, notes=["A note."])


@contextmanager
def serve(work: Work, labels, access: Access = EVERYBODY) -> Iterator[str]:
    app = server.make_app(work, labels, "ann", access)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = threading.Thread(target=serving.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            serving.should_exit = serving.force_exit = True
            thread.join()


@contextmanager
def open_page(browser: Browser, url: str, **options) -> Iterator[Page]:
    context = browser.new_context(**options)
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    page.goto(url)
    expect(page.locator("#now")).not_to_be_empty()
    yield page
    context.close()
    assert errors == []


def settle(page: Page) -> None:
    """Waits until all decisions are written."""
    expect(page.locator("body")).to_have_attribute("data-pending", "0")


# What a person does, and which label that gives an image of this class.
MOVES = [
    ("Enter", lambda item: item.label),
    ("+", lambda item: item.guesses[0][0]),
    ("3", lambda _: "roses"),
    ("Delete", lambda _: None),
]


def press_through(page: Page, items: dict[str, Item], expected: dict, count: int) -> None:
    """Decides on so many images, in the order in which the page shows them."""
    for number in range(count):
        sha256 = page.evaluate("document.body.dataset.sha")
        key, answer = MOVES[number % len(MOVES)]
        assert sha256 not in expected
        expected[sha256] = answer(items[sha256])
        page.keyboard.press(key)


def test_a_thousand_decisions_by_keyboard_with_reloads_and_two_windows(browser, work, tmp_path):
    items = {item.sha256: item for item in work.queues[0].items}
    expected: dict = {}
    labels = tmp_path / "labels.jsonl"
    with serve(work, labels) as url, open_page(browser, url) as one:
        press_through(one, items, expected, 300)
        settle(one)
        one.reload()
        expect(one.locator("#now")).not_to_be_empty()
        press_through(one, items, expected, 100)
        settle(one)
        with open_page(browser, url) as other:
            press_through(other, items, expected, 200)
            settle(other)
            expect(one.get_by_role("button", name="Likely label errors (400)")).to_be_visible()
            press_through(one, items, expected, 200)
            settle(one)
        last = one.evaluate("document.body.dataset.sha")
        one.keyboard.press("5")
        settle(one)
        one.keyboard.press("Backspace")  # undone
        settle(one)  # else the next decision would take its place
        assert one.evaluate("document.body.dataset.sha") == last
        press_through(one, items, expected, 200)
        settle(one)
        expect(one.locator("#now")).to_have_text("All images of this queue have a decision.")
    decisions = read_decisions(str(labels))
    assert {sha256: decision.label for sha256, decision in decisions.newest.items()} == expected
    assert len(expected) == IMAGES
    assert (decisions.problems, decisions.disputes) == ([], {})
    lines = [json.loads(line) for line in labels.read_text().splitlines()]
    assert len(lines) == IMAGES + 2  # the one that was undone, and that


def test_search_undo_skip_and_names_of_strangers(browser, work, tmp_path):
    labels = tmp_path / "labels.jsonl"
    with serve(work, labels) as url, open_page(browser, url) as page:
        expect(page.locator("#id")).to_contain_text("<b>0</b>.jpg")
        expect(page.locator("#beside img")).to_have_count(0)
        page.keyboard.press("Space")
        expect(page.locator("#id")).to_contain_text("<b>1</b>.jpg")
        expect(page.locator("#beside figcaption")).to_have_text("daisy")
        expect(page.locator("#image")).to_have_js_property("naturalWidth", 120)
        page.keyboard.press("/")
        page.keyboard.type("a new one 3")
        page.keyboard.press("Enter")
        expect(page.locator("#id")).to_contain_text("<b>2</b>.jpg")
        expect(page.get_by_role("button", name="a new one 3")).to_be_visible()
        page.keyboard.press("Delete")
        page.keyboard.press("Backspace")
        page.keyboard.press("Backspace")
        expect(page.locator("#id")).to_contain_text("<b>1</b>.jpg")
        page.keyboard.press("Enter")
        settle(page)
        (decision,) = read_decisions(str(labels)).newest.values()
        assert (decision.label, decision.metadata) == ("dandelion", "<b>1</b>.jpg")
        page.get_by_role("button", name="More").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#id")).to_contain_text("of 3")


def test_what_was_decided_on_a_copy_stands_beside_the_other(browser, work, tmp_path):
    with serve(work, tmp_path / "labels.jsonl") as url, open_page(browser, url) as page:
        page.keyboard.press("Delete")
        expect(page.locator("#beside figcaption")).to_have_text("daisy; decided: not an image of ours")


def test_a_held_key_decides_on_one_image_and_a_word_in_the_making_names_no_class(browser, work, tmp_path):
    labels = tmp_path / "labels.jsonl"
    with serve(work, labels) as url, open_page(browser, url) as page:
        for _ in range(5):
            page.keyboard.down("Enter")
        page.keyboard.up("Enter")
        for _ in range(5):
            page.keyboard.down("3")
        page.keyboard.up("3")
        page.keyboard.press("/")
        page.keyboard.insert_text("ni")
        page.locator("#search").dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True})
        page.keyboard.insert_text("hongo")
        for _ in range(5):
            page.keyboard.down("Enter")
        page.keyboard.up("Enter")
        settle(page)
        expect(page.locator("#id")).to_contain_text("<b>3</b>.jpg")
    assert [one.label for one in read_decisions(str(labels)).newest.values()] == ["daisy", "roses", "nihongo"]


def test_a_new_class_leaves_the_others_their_keys(browser, work, tmp_path):
    labels = tmp_path / "labels.jsonl"
    with serve(work, labels) as url, open_page(browser, url) as page:
        page.keyboard.press("/")
        page.keyboard.type("a new one")
        page.keyboard.press("Enter")
        page.keyboard.press("3")
        page.keyboard.press("6")
        settle(page)
    assert [one.label for one in read_decisions(str(labels)).newest.values()] == ["a new one", "roses", "a new one"]


def test_an_image_that_browsers_do_not_know_is_shown_and_a_broken_one_said_to_be(browser, tmp_path):
    images = []
    for number in range(2):
        written = io.BytesIO()
        Image.new("RGB", (120, 80)).save(written, "TIFF")
        (tmp_path / (str(number) * 64)).write_bytes(written.getvalue()[: None if number == 0 else 100])
        images.append(Item(str(number) * 64, f"{number}.tif", "a", (), ""))
    work = Work("capture", "classification", ["a"], [Queue("a", "A", "", images)], tmp_path)
    with serve(work, tmp_path / "labels.jsonl") as url, open_page(browser, url) as page:
        expect(page.locator("#image")).to_have_js_property("naturalWidth", 120)
        page.keyboard.press("Space")
        expect(page.locator("#image")).to_have_attribute("alt", "This browser can't show the image 1.tif")


def test_an_undo_leaves_what_another_person_decided(browser, work, tmp_path):
    labels = tmp_path / "labels.jsonl"
    first = work.queues[0].items[0]
    by_bob = Decision(first.sha256, "roses", by="bob")
    with serve(work, labels) as url, open_page(browser, url) as page:
        page.keyboard.press("Enter")
        settle(page)
        append_decision(labels, by_bob)
        page.keyboard.press("Backspace")
        expect(page.locator("#now")).to_have_text("Label: daisy; decided: roses (bob)")
        assert read_decisions(str(labels)).newest == {first.sha256: by_bob}
        page.keyboard.press("5")
        settle(page)
        assert read_decisions(str(labels)).newest[first.sha256].label == "tulips"
        page.keyboard.press("Backspace")
        settle(page)
        expect(page.locator("#now")).to_have_text("Label: daisy; decided: roses (bob)")
    assert read_decisions(str(labels)).newest == {first.sha256: by_bob}


def test_decisions_arrive_though_the_page_is_reloaded_or_closed_at_once(browser, work, tmp_path, monkeypatch):
    def append_slowly(*arguments):
        time.sleep(0.1)
        append_decision(*arguments)

    def wait_for(count):
        end = time.monotonic() + 60
        while (written := len(read_decisions(str(labels)).newest)) < count and time.monotonic() < end:
            time.sleep(0.05)
        assert written == count

    monkeypatch.setattr("pipeline.labelling.work.append_decision", append_slowly)
    labels = tmp_path / "labels.jsonl"
    labels.touch()
    asked = []
    with serve(work, labels) as url, open_page(browser, url) as page:
        page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
        for key in ("Enter", "3", "Delete", "3", "Backspace", "5"):
            page.keyboard.press(key)
        page.reload()
        wait_for(4)
        page.reload()
        expect(page.locator("#id")).to_contain_text("<b>4</b>.jpg")
        for _ in range(4):
            page.keyboard.press("Enter")
        with page.expect_event("close"):
            page.close(run_before_unload=True)
        wait_for(8)
    assert asked == ["beforeunload"] * 2  # not where nothing was on its way
    decisions = read_decisions(str(labels)).newest
    assert [decisions[item.sha256].label for item in work.queues[0].items[:4]] == ["daisy", "roses", None, "tulips"]


def test_a_decision_that_can_not_be_saved_comes_back(browser, work, tmp_path):
    with serve(work, tmp_path / "labels.jsonl") as url, open_page(browser, url) as page:
        page.route(
            "**/decisions", lambda route: route.fulfill(status=500, json={"error": "not saved: the disk is full"})
        )
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("<b>0</b>.jpg: not saved: the disk is full")
        expect(page.locator("#id")).to_contain_text("<b>0</b>.jpg")


def test_several_labels_and_numbers_by_keyboard(browser, work, tmp_path):
    few = work.queues[0].items[:3]
    several = replace(work, task="multilabel", queues=[Queue("a", "A", "", [replace(i, label=["daisy"]) for i in few])])
    with serve(several, tmp_path / "several.jsonl") as url, open_page(browser, url) as page:
        page.keyboard.press("3")
        page.keyboard.press("1")
        page.keyboard.press("2")
        page.keyboard.press("Enter")
        page.keyboard.press("Enter")
        settle(page)
    assert [one.label for one in read_decisions(str(tmp_path / "several.jsonl")).newest.values()] == [
        ["dandelion", "roses"], ["daisy"],
    ]  # fmt: skip
    numbers = replace(work, task="regression", queues=[Queue("a", "A", "", [replace(i, label=2.0) for i in few])])
    with serve(numbers, tmp_path / "numbers.jsonl") as url, open_page(browser, url) as page:
        page.keyboard.press("Enter")
        page.get_by_label("A number").fill("3.5")
        page.keyboard.press("Enter")
        settle(page)
    assert [one.label for one in read_decisions(str(tmp_path / "numbers.jsonl")).newest.values()] == [2.0, 3.5]


def test_of_several_labels_those_that_the_model_answered_are_proposed(browser, work, tmp_path):
    one = replace(work.queues[0].items[0], label=None, guesses=(("daisy", 0.6), ("roses", 0.3)), answer=("roses",))
    several = replace(work, task="multilabel", queues=[Queue("a", "A", "", [one])])
    with serve(several, tmp_path / "labels.jsonl") as url, open_page(browser, url) as page:
        page.keyboard.press("Enter")
        settle(page)
    assert [one.label for one in read_decisions(str(tmp_path / "labels.jsonl")).newest.values()] == [["roses"]]


def test_a_token_is_asked_for_and_sent(browser, work, tmp_path):
    access = Access(token="secret")  # noqa: S106
    with serve(work, tmp_path / "labels.jsonl", access) as url:
        page = browser.new_page()
        page.goto(url)
        page.get_by_label("The server's token").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("the token is wrong")
        page.get_by_label("The server's token").fill("secret")
        page.keyboard.press("Enter")
        expect(page.locator("#id")).to_contain_text("<b>0</b>.jpg")
        expect(page.locator("#image")).to_have_js_property("naturalWidth", 120)
        page.close()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wrong_for_people_who_do_not_see_or_use_a_mouse(browser, work, tmp_path, width, scheme):
    size = {"width": width, "height": 800}
    with (
        serve(work, tmp_path / "labels.jsonl") as url,
        open_page(browser, url, viewport=size, color_scheme=scheme) as page,
    ):
        page.keyboard.press("Enter")
        settle(page)
        assert find_violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
