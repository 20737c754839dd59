"""The dashboard in a real browser."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from playwright.sync_api import Page, expect

from imagepipe.serving.access import EVERYBODY, Access
from pipeline.runs.dashboard import server
from pipeline.runs.summary import write_summary
from pipeline.workdir import Workdir
from tests.browser import find_violations
from tests.pipeline.runs.workdirs import DAG, Recorder, run_id

pytestmark = pytest.mark.slow

LONG = "a_name_that_is_as_long_as_a_name_may_be_and_has_no_place_to_break_it"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory) -> Recorder:
    """Four runs: the last is in progress, the one before failed."""
    recorder = Recorder(tmp_path_factory.mktemp("dashboard") / "work", LONG[:63])
    for number in (0, 1):
        recorder.record(number)
        recorder.summarize(number, pushed_version=str(1000 + number), intervals={"accuracy": (0.88, 0.97)})
        recorder.originate(number, {"name": LONG, "trainer": {LONG: number, "epochs": number}}, {LONG: str(number)})
        (recorder.workdir.serving(recorder.name) / str(1000 + number)).mkdir(parents=True)
    done = [{"id": node, "seconds": 3, "cached": node != "Transform"} for node in list(DAG)[:5]]
    recorder.record(2, failed="Trainer")
    error = f"Trainer failed: {LONG}{LONG}"
    recorder.summarize(2, status="failed", error=error, nodes=done, metrics={})
    recorder.originate(2)
    recorder.record(3, running="Trainer")
    recorder.summarize(3, status="running", nodes=done, metrics={})
    recorder.originate(3)
    return recorder


@contextmanager
def serve(recorder: Recorder, access: Access) -> Iterator[str]:
    app = server.make_app(Workdir(recorder.workdir.root), access, "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        serving = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=serving.run, args=([listening],))
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        serving.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(recorder) -> Iterator[str]:
    with serve(recorder, EVERYBODY) as url:
        yield url


@pytest.fixture
def opened(browser, url):
    """Opens pages; none of them may ask another host, or say anything on the console."""
    pages: list[Page] = []
    messages: list[str] = []
    asked: list[str] = []

    def opened(path: str = "", width: int = 1100, **options) -> Page:
        page = browser.new_page(viewport={"width": width, "height": 800}, **options)
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url + path)
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    assert messages == []
    assert all(address.startswith((url, "data:")) for address in asked), asked


PATHS = [
    "",
    f"runs/{run_id(1)}/index.html",
    f"runs/{run_id(2)}/index.html",
    f"runs/{run_id(2)}/log-Trainer.html",
    f"compare/{run_id(0)}/{run_id(1)}/index.html",
    f"versions/{LONG[:63]}/1001/index.html",
]


@pytest.mark.parametrize("path", PATHS)
def test_on_a_phone_nothing_needs_sideways_scrolling_in_light_and_in_the_dark(opened, path):
    shades = {}
    for scheme in ("light", "dark"):
        page = opened(path, 360, color_scheme=scheme)
        for details in page.locator("details").all():
            details.evaluate("details => { details.open = true; }")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
        colors = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        shades[scheme] = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors]
    (light_back, light_text), (dark_back, dark_text) = shades["light"], shades["dark"]
    assert light_back - light_text > 400  # of 765
    assert dark_text - dark_back > 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", PATHS)
def test_axe_finds_nothing_and_a_table_stays_one_on_a_phone(opened, path, scheme):
    page = opened(path, color_scheme=scheme)
    assert find_violations(page) == []
    phone = opened(path, 360, color_scheme=scheme)
    assert find_violations(phone) == []
    assert phone.get_by_role("row").count() == page.get_by_role("row").count()


def test_runs_are_filtered_and_sorted_with_the_keyboard(opened):
    page = opened()
    rows = page.locator("#list tbody tr:visible")
    expect(rows).to_have_count(4)
    page.get_by_label("Show only runs with").fill("failed")
    expect(rows).to_have_count(1)
    expect(page.locator("#count")).to_have_text("1 of 4")
    page.get_by_label("Show only runs with").fill("")
    heading = page.get_by_role("columnheader", name="Accuracy").get_by_role("button")
    heading.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Accuracy")).to_have_attribute("aria-sort", "descending")
    figures = [float(cell) for cell in rows.locator("td[data-label=Accuracy]").all_inner_texts() if cell]
    assert figures == sorted(figures, reverse=True)
    assert len(figures) == 2
    page.keyboard.press("Enter")
    figures = [float(cell) for cell in rows.locator("td[data-label=Accuracy]").all_inner_texts() if cell]
    assert figures == sorted(figures)


def test_the_first_tab_leads_past_the_navigation(opened):
    page = opened()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="To the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


def test_two_runs_are_chosen_and_compared(opened):
    page = opened()
    page.get_by_label("Compare", exact=True).select_option(run_id(1))
    page.get_by_label("with", exact=True).select_option(run_id(0))
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Compared: {run_id(0)} and {run_id(1)}")
    expect(page.get_by_role("row", name="trainer.epochs")).to_contain_text("1")
    expect(page.get_by_role("row", name="accuracy")).to_contain_text("0.8800 to 0.9700")


def test_a_node_of_the_graph_leads_to_its_row_and_a_failed_one_to_its_log(opened):
    page = opened(f"runs/{run_id(2)}/index.html")
    page.get_by_role("link", name="Trainer, failed").click()
    row = page.locator("tr:target")
    expect(row).to_contain_text("Trainer")
    row.get_by_role("link", name="log of Trainer").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Log of Trainer")
    expect(page.locator("pre.log")).to_have_text("written by Trainer")


def test_a_page_follows_a_run_in_progress(opened, recorder):
    page = opened(f"runs/{run_id(3)}/index.html")
    expect(page.get_by_role("link", name="Trainer, running")).to_be_visible()
    read = recorder.read(3)
    done = [*read.nodes, read.nodes[-1].model_copy(update={"id": "Trainer"})]
    write_summary(read.model_copy(update={"nodes": done}), recorder.workdir.runs / run_id(3))
    expect(page.get_by_role("link", name="Champion, running")).to_be_visible(timeout=15_000)
    write_summary(read, recorder.workdir.runs / run_id(3))


def test_exported_pages_work_from_a_folder(recorder, browser, tmp_path):
    server.export_pages(recorder.workdir.root, tmp_path / "site")
    page = browser.new_page()
    page.goto((tmp_path / "site" / "index.html").as_uri())
    expect(page.locator("#list tbody tr")).to_have_count(4)
    page.get_by_label("Show only runs with").fill("failed")
    expect(page.locator("#list tbody tr:visible")).to_have_count(1)
    page.locator("#list tbody tr:visible th a").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(f"Run {run_id(2)}")
    page.close()


def test_a_browser_that_has_the_token_as_password_sees_all_pages(recorder, browser):
    with serve(recorder, Access("word")) as url:
        refused = httpx.get(url)
        assert (refused.status_code, refused.headers["WWW-Authenticate"][:5]) == (401, "Basic")
        with browser.new_context(http_credentials={"username": "anybody", "password": "word"}) as context:
            page = context.new_page()
            failed: list[str] = []
            page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
            page.goto(url)
            page.locator(f"#list a[href*='{run_id(1)}']").first.click()
            expect(page.get_by_role("heading", level=1)).to_contain_text(run_id(1))
            assert page.evaluate("getComputedStyle(document.body).maxWidth") != "none"  # the style sheet has come
    assert failed == []
