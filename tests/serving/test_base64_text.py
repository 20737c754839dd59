"""Base64 as callers write it: what has one meaning is read, the rest is named."""

import base64
import contextlib
import time

import pytest

from imagepipe.serving import limits
from imagepipe.serving.base64_text import decode_base64

DATA = bytes(range(256)) * 3 + b"\xfb\xff"  # "+", "/" and padding
PLAIN = base64.b64encode(DATA).decode()
LINES = base64.encodebytes(DATA).decode()

FORMS = {
    "plain": PLAIN,
    "in lines": LINES,
    "in lines with CRLF": LINES.replace("\n", "\r\n"),
    "with a line end": PLAIN + "\n",
    "without padding": PLAIN.rstrip("="),
    "URL-safe": base64.urlsafe_b64encode(DATA).decode(),
    "URL-safe without padding": base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "a data: URI": f"data:image/jpeg;base64,{PLAIN}",
    "a data: URI with parameters": f"DATA:image/jpeg;name=a.jpg;BASE64,{LINES}",
    "a data: URI without a type": f"data:;base64,{PLAIN}",
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_bytes(form):
    assert decode_base64(FORMS[form]) == DATA


REFUSALS = {
    "a plus lost to a form": (PLAIN.replace("+", " "), "may have been a '\\+'"),
    "both alphabets": (PLAIN + base64.urlsafe_b64encode(DATA).decode(), "URL-safe forms"),
    "one character too many": (PLAIN.rstrip("=") + "AA", "it is cut"),
    "other letters": ("aé", "letters that base64 doesn't have"),
    "a data: URI of text": ("data:text/plain,hello", "not in base64"),
    "no end of a data: URI's head": ("data:image/jpeg;base64" + PLAIN, "not in base64"),
    "padding in the middle": ("AA==AAAA", "base64 digit"),
    "too little padding": ("AA=", "base64 digit"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_has_no_or_several_meanings_is_named(case):
    text, words = REFUSALS[case]
    with pytest.raises(ValueError, match=words):
        decode_base64(text)


@pytest.mark.parametrize("item", ["A", "\n", " \n", "-", "-+", "=", "A=", "data:", "é", "AA\n"])
def test_no_text_of_a_full_body_takes_long(item):
    text = item * (limits.MAX_BODY_BYTES // len(item))
    start = time.thread_time()
    with contextlib.suppress(ValueError):
        decode_base64(text)
    assert time.thread_time() - start < 1.0
