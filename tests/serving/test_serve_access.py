"""The server as a process that wants a token, by HTTPS; its page in a real browser; and the command that asks it."""

import json
import os
import shutil
import ssl
import subprocess
import sys
import time
from types import SimpleNamespace

import httpx
import pytest
import trustme
from playwright.sync_api import expect

from imagepipe.serving.credentials import load_authorities
from tests.browser import find_violations
from tests.serving.test_serve import serving
from tests.serving.test_server import PREDICT, gray, instance

pytestmark = pytest.mark.slow

WORD = "b3a1c4d5e6f7-of-the-server"


@pytest.fixture(scope="module")
def secured(model, certificates, tmp_path_factory):
    folder = tmp_path_factory.mktemp("secured") / "brightness"
    folder.mkdir()
    (folder / "7").symlink_to(model)
    shown = folder.parent / "token"
    shown.write_text(f"{WORD}\n")
    shown.chmod(0o640)
    shutil.copytree(certificates, folder.parent / "tls")
    files = ["--certificate", str(folder.parent / "tls" / "own.pem"), "--key", str(folder.parent / "tls" / "own.key")]
    with serving(folder, "--token-file", str(shown), *files, "--allow-origin", "https://app.example") as (_, url):
        yield SimpleNamespace(url=url, token_file=shown, ca=certificates / "ca.pem", log=folder.parent / "log")


def predict(secured, *options: str, **environment: str) -> subprocess.CompletedProcess:
    image = secured.log.with_name("light.png")
    image.write_bytes(gray(250))
    command = [sys.executable, "-m", "imagepipe", "predict", "--endpoint", secured.url, str(image), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)  # noqa: S603


def test_callers_with_the_token_are_answered_and_it_is_written_nowhere(secured):
    with httpx.Client(base_url=secured.url, verify=load_authorities(secured.ca), timeout=60) as http:
        body = {"instances": [instance(gray(250))]}
        paths = ["/v1/models", "/metrics", "/openapi.json", "/v2/models/brightness", "/v2", "/x"]
        assert {http.get(path).status_code for path in paths} == {401}
        assert http.post(PREDICT, json=body).status_code == 401
        assert http.get("/v2/health/ready").json() == {"ready": True}
        assert http.get("/v2/health/live").json() == {"live": True}
        http.headers["Authorization"] = f"Bearer {WORD}"
        assert http.post(PREDICT, json=body).json()["predictions"][0]["label"] == "light"
        assert http.post(PREDICT, content=b"{").status_code == 400
        assert http.get(f"/{WORD[:4]}").status_code == 404
        assert http.get("/", headers={"Host": "rebound.example"}).status_code == 200  # an empty page
        assert http.get("/v1/models", headers={"Host": "rebound.example"}).status_code == 400
        assert http.get("/metrics").text.count('status="401"') >= 1
    for options, environment in (
        (["--token-file", str(secured.token_file)], {}),
        ([], {"IMAGEPIPE_TOKEN": WORD}),
    ):
        done = predict(secured, "--ca", str(secured.ca), *options, **environment)
        assert (done.returncode, done.stdout.split()[0]) == (0, "light"), done.stderr
    refused = predict(secured, "--ca", str(secured.ca), **{"IMAGEPIPE_TOKEN": WORD[:-1]})
    assert (refused.returncode, "the token is wrong" in refused.stderr) == (1, True), refused.stderr
    assert "Traceback" not in refused.stderr
    written = secured.log.read_text()
    assert written.count('"status": 401') > len(paths)
    assert WORD not in written


def test_the_page_asks_for_the_token_and_keeps_it_for_its_tab(secured, browser, tmp_path):
    (tmp_path / "light.png").write_bytes(gray(250))
    with browser.new_context(ignore_https_errors=True) as context:
        page = context.new_page()
        page.goto(secured.url)
        field = page.get_by_label("The server's token")
        expect(field).to_be_visible()
        assert find_violations(page) == []
        field.fill("wrong")
        page.get_by_role("button", name="Enter").click()
        expect(page.locator("#error")).to_have_text("the token is wrong")
        field.fill(WORD)
        field.press("Enter")
        expect(page.locator("#name")).to_have_text("brightness")
        expect(field).to_be_hidden()
        page.reload()
        page.locator("#file").set_input_files(tmp_path / "light.png")
        expect(page.locator("#label")).to_have_text("light")
        assert context.cookies() == []
        assert json.loads(page.evaluate("JSON.stringify(localStorage)")) == {}
        other = context.new_page()
        other.goto(secured.url)
        expect(other.get_by_label("The server's token")).to_be_visible()


def test_the_docs_show_the_api_to_a_reader_with_the_token_and_load_nothing_from_elsewhere(secured, browser):
    with browser.new_context(ignore_https_errors=True) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{secured.url}/docs")
        page.get_by_label("The server's token").fill(WORD)
        page.get_by_role("button", name="Enter").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("brightness: an image model, version 7")
        page.get_by_text("/v1/models/{name}:predict", exact=True).click()
        expect(page.get_by_text('"instances"').first).to_be_visible()
        with page.expect_download() as download:
            page.get_by_role("link", name="OpenAPI").click()
        assert json.loads(download.value.path().read_text())["openapi"] == "3.1.0"
        assert find_violations(page) == []
    assert all(address.startswith((secured.url, f"blob:{secured.url}")) for address in asked)


def test_a_renewed_certificate_is_taken_without_a_restart(secured):
    address = ("127.0.0.1", int(secured.url.rpartition(":")[2]))
    earlier = ssl.get_server_certificate(address)
    renewed = trustme.CA().issue_cert("127.0.0.1")
    renewed.cert_chain_pems[0].write_to_path(secured.log.with_name("tls") / "own.pem")
    renewed.private_key_pem.write_to_path(secured.log.with_name("tls") / "own.key")
    deadline = time.monotonic() + 60
    while ssl.get_server_certificate(address) == earlier:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_host_that_others_reach_is_told_of_in_a_line(model):
    # It stops at the port, which is checked after that.
    command = [sys.executable, "-m", "imagepipe", "serve", str(model), "--host", "192.0.2.1", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own command)
    first, second = done.stderr.splitlines()
    assert first == "everybody who reaches 192.0.2.1 is answered: there is no --token-file"
    assert "can't listen on 192.0.2.1:0" in second
