"""The image itself as the body of a request: what is taken, what is refused, and what it may cost."""

import contextlib
import re
import time

import httpx
import pytest
from PIL import Image

from imagepipe.serving import limits
from imagepipe.serving.types import Request, RequestError
from imagepipe.serving.uploads import find_parser
from tests.conftest import encode_image
from tests.serving.test_server import INFER, PREDICT, gray

TYPES = {"iso": "int64", "weight": "float32", "camera": "string"}
FORM = "multipart/form-data; boundary=XX"


def part(name: str, content: bytes, extra: str = "") -> bytes:
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
    return head.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--XX--\r\n"


IMAGE = part("file", b"\xff\xd8\r\n--X\0", '; filename="a.jpg"\r\nContent-Type: image/jpeg')


def parse(body: bytes, content_type: str = FORM, query: str = "") -> Request:
    read = find_parser(content_type, query, TYPES)
    assert read
    return read(body)


def test_the_image_is_the_body_and_its_features_are_the_query():
    query = "metadata=a%20photo&iso=100&weight=1.5e0&camera=Caf%C3%A9"
    request = parse(b"\xff\xd8", "IMAGE/JPEG; x=1", query)
    assert request == Request("a photo", b"\xff\xd8", {"iso": 100, "weight": 1.5, "camera": "Café"})
    assert [type(value) for value in request.side.values()] == [int, float, str]
    assert parse(b"\xff\xd8", "image/jpeg", "iso=100.0&weight=NA&camera=").side == {
        "iso": 100,
        "weight": None,
        "camera": "",
    }


def test_the_image_is_the_file_of_a_form_and_its_features_are_the_other_fields():
    fields = [part("iso", b"100"), part("camera", "Café".encode()), part("metadata", b"7")]
    expected = Request("7", b"\xff\xd8\r\n--X\0", {"iso": 100, "camera": "Café", "weight": 2.0})
    assert parse(form(*fields, IMAGE), query="weight=2") == expected
    assert parse(b"\r\n" + form(IMAGE, *fields), 'multipart/form-data; boundary="XX"', "weight=2") == expected
    assert parse(form(part("input", b"\xff"))) == Request("", b"\xff")  # curl -F 'input=<photo.jpg'


@pytest.mark.parametrize("kind", ["", "application/json", "application/x-www-form-urlencoded", "text/plain"])
def test_other_bodies_are_none_of_these(kind):
    assert find_parser(kind, "x=1", TYPES) is None


REFUSALS = {
    "no boundary": (form(IMAGE), "multipart/form-data", "", "no boundary"),
    "a long header": (form(IMAGE), FORM + ";" * 2000, "", "no boundary"),
    "another boundary": (form(IMAGE), FORM + "Y", "", "not a form"),
    "no form": (b"{}", FORM, "", "not a form"),
    "nothing": (b"", FORM, "", "it is cut"),
    "a cut form": (IMAGE, FORM, "", "it is cut"),
    "no file": (form(part("iso", b"1")), FORM, "", "one file, the image, in the form, not 0"),
    "two files": (form(IMAGE, IMAGE), FORM, "", "not 2"),
    "a field without a name": (form(IMAGE.replace(b'name="file"; ', b"")), FORM, "", "field 0 has no name"),
    "base64": (
        form(part("input", b"/9g=", "\r\nContent-Transfer-Encoding: base64")),
        FORM,
        "",
        "field 0 is in 'base64'; send it unchanged",
    ),
    "bytes that are no text": (form(IMAGE, part("camera", b"\xff")), FORM, "", "field 1 is not text in UTF-8"),
    "a field twice": (form(IMAGE, part("iso", b"1"), part("iso", b"1")), FORM, "", "'iso' is given twice"),
    "a field of the form in the query": (form(IMAGE, part("iso", b"1")), FORM, "iso=1", "'iso' is given twice"),
    "an image in the query": (b"\xff", "image/png", "input=x", "'input' is given twice"),
    "a query that is no text": (b"\xff", "image/png", "camera=%FF", "not text in UTF-8"),
    "a word for a whole number": (b"\xff", "image/png", "iso=high", "'iso' is 'high'; the model needs a whole number"),
    "a fraction for a whole number": (b"\xff", "image/png", "iso=1.5", "the model needs a whole number"),
    "a word for a number": (b"\xff", "image/png", "weight=inf", "'weight' is 'inf'; the model needs a number"),
    "no whole number": (b"\xff", "image/png", "iso=", "'iso' is missing, and the model needs a whole number"),
    "a number beyond 64 bits": (b"\xff", "image/png", "iso=9999999999999999999", "of 64 bits"),
    "a long text": (form(IMAGE, part("camera", b"x" * 5000)), FORM, "", "at most 4,096"),
    "many parameters": (b"\xff", "image/png", "&" * 600, "at most 512 side features"),
    "many fields": (form(IMAGE, *[part("iso", b"1")] * 514), FORM, "", "more than 514 fields"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_bad_form_or_query_is_refused_with_its_reason(case):
    body, content_type, query, words = REFUSALS[case]
    with pytest.raises(RequestError, match=re.escape(words)):
        parse(body, content_type, query)


@pytest.mark.parametrize("item", [b"\0", b"\r", b"\r\n-", b"\r\n--X", b"\r\n--XXz", b"--XX\r\n", b"\r\n--XX\r\n"])
def test_no_form_of_a_full_body_takes_long(item):
    body = form(part("input", item * (limits.MAX_BODY_BYTES // len(item))))
    start = time.thread_time()
    for content in (body, item * (limits.MAX_BODY_BYTES // len(item))):
        with contextlib.suppress(RequestError):
            parse(content)
    assert time.thread_time() - start < 1.0


def test_both_protocols_answer_an_image_as_the_body_as_they_answer_json(served):
    image = encode_image(Image.new("RGB", (1200, 900), "white"), "BMP")
    assert len(image) > 3_000_000
    for content in (image, gray(250, "JPEG")):
        headers = {"Content-Type": "image/jpeg"}
        (row,) = served.http.post(f"{PREDICT}?metadata=a", content=content, headers=headers).json()["predictions"]
        assert (row["label"], row["metadata"]) == ("light", "a")
        answer = served.http.post(INFER, files={"file": ("a.jpg", content)}, data={"metadata": "b"}).json()
        outputs = {tensor["name"]: tensor["data"] for tensor in answer["outputs"]}
        assert (outputs["label"], outputs["metadata"]) == (["light"], ["b"])
        assert outputs["classes"] == row["classes"]


def test_an_image_as_the_body_is_checked_like_any_other(served):
    headers = {"Content-Type": "image/jpeg"}
    for path, content, status, words in (
        (PREDICT, b"text", 400, "not an image"),
        (PREDICT, b"", 400, "empty file"),
        (f"{PREDICT}?x=1", gray(1), 400, "'x' is not known; the model takes input, metadata"),
        (INFER, gray(1, "JPEG")[:-9], 400, "truncated"),
        (PREDICT, bytes(limits.MAX_BODY_BYTES + 1), 413, "larger than 64 MiB"),
        ("/v1/models/x:predict", gray(1), 404, "no model 'x'"),
    ):
        response = served.http.post(path, content=content, headers=headers)
        assert (response.status_code, words in response.json()["error"]) == (status, True), response.text


def test_an_image_that_is_sent_as_something_else_is_named(served):
    response = served.http.post(PREDICT, content=gray(1), headers={"Content-Type": "application/octet-stream"})
    assert response.status_code == 400
    assert "It is an image: send the header Content-Type: image/jpeg" in response.json()["error"]


def test_a_page_of_another_site_can_not_send_an_image(served):
    headers = {"Content-Type": "image/jpeg", "Origin": "https://evil.example.com"}
    assert httpx.post(served.url + PREDICT, content=gray(1), headers=headers).status_code == 403
