"""The image itself as the body of a request: its bytes (``Content-Type: image/jpeg``), or a form with a file in it.

``metadata`` and side features come as parameters of the URL's query, or as further fields of the form.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from imagepipe.serving.instances import check_feature_count, make_request
from imagepipe.serving.limits import MAX_FORM_PARTS
from imagepipe.serving.side import convert_value
from imagepipe.serving.types import Request, RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_HEADER = 1024  # characters of a Content-Type: a boundary has at most 70 (RFC 2046, 5.1.1)
_AS_IT_IS = ("", "binary", "8bit", "7bit")  # Content-Transfer-Encoding


def find_parser(content_type: str, query: str, types: Mapping[str, str]) -> Callable[[bytes], Request] | None:
    """Returns what makes a request of a body with an image in it, or None if the header says that it is none.

    Args:
        content_type: the header Content-Type.
        query: the URL's query, without the question mark.
        types: ``string``, ``float32`` or ``int64`` of each side feature of the model.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("image/"):
        return lambda body: _make_request([("input", body), *_parse_query(query)], types)
    if kind == "multipart/form-data":
        return lambda body: _make_request([*parse_form(body, content_type), *_parse_query(query)], types)
    return None


def _parse_query(query: str) -> list[tuple[str, str]]:
    check_feature_count(query.count("&"))
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise RequestError("wrong_type", f"the URL's query is not text in UTF-8: {error}") from None


def _make_request(fields: list[tuple[str, str | bytes]], types: Mapping[str, str]) -> Request:
    """Returns the request in fields, of which the bytes are the image, and the others text."""
    side: dict[str, str] = {}
    images = [value for _, value in fields if isinstance(value, bytes)]
    if len(images) != 1:
        raise RequestError("wrong_type", f"expected one file, the image, in the form, not {len(images)}")
    for name, value in fields:
        if name in side or (name == "input" and isinstance(value, str)):
            raise RequestError("wrong_type", f"{name!a} is given twice")
        if isinstance(value, str):
            side[name] = value
    metadata = side.pop("metadata", "")
    values = {name: convert_value(name, text, types.get(name, "string")) for name, text in side.items()}
    return make_request(metadata, images[0], values)


def parse_form(body: bytes, content_type: str) -> list[tuple[str, str | bytes]]:
    """Returns name and value of a form's fields (RFC 7578): bytes of files and of the field ``input``, else text.

    Raises:
        RequestError: if it is not a form, or has more fields than a request can have.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary") if len(content_type) <= _MAX_HEADER else None
    if not boundary:
        raise RequestError("bad_form", "the header Content-Type has no boundary, which separates a form's fields")
    # Before the parser, which takes a microsecond for each: a body can have ten millions of them.
    if body.count(b"--" + boundary) > MAX_FORM_PARTS + 1:
        raise RequestError("too_many_features", f"a form of more than {MAX_FORM_PARTS} fields")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks)
        parser.write(body)
    except FormParserError as error:
        raise RequestError("bad_form", f"the body is not a form: {error}") from None
    if not form.has_end:
        raise RequestError("bad_form", "the body is not a form, or it is cut: the boundary at its end is missing")
    return [_read_part(number, part) for number, part in enumerate(form.parts)]


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    content: bytes = b""


class _Form:
    """Collects what the parser finds; it is given the whole body at once, and so calls once for each item."""

    def __init__(self) -> None:
        self.parts: list[_Part] = []
        self.has_end = False
        self._header = b""
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": lambda: self.parts.append(_Part()),
            "on_header_field": self._start_header,
            "on_header_value": self._end_header,
            "on_part_data": self._end_part,
            "on_end": self._end,
        }

    def _start_header(self, body: bytes, start: int, end: int) -> None:
        self._header = body[start:end].lower()

    def _end_header(self, body: bytes, start: int, end: int) -> None:
        self.parts[-1].headers[self._header] = body[start:end]

    def _end_part(self, body: bytes, start: int, end: int) -> None:
        self.parts[-1].content = body[start:end]

    def _end(self) -> None:
        self.has_end = True


def _read_part(number: int, part: _Part) -> tuple[str, str | bytes]:
    disposition, options = parse_options_header(part.headers.get(b"content-disposition", b"").decode("latin-1"))
    if disposition != b"form-data" or b"name" not in options:
        raise RequestError("bad_form", f"the form's field {number} has no name")
    encoding = part.headers.get(b"content-transfer-encoding", b"").decode("latin-1").strip().lower()
    if encoding not in _AS_IT_IS:
        raise RequestError("bad_form", f"the form's field {number} is in {encoding!a}; send it unchanged")
    try:
        name = options[b"name"].decode()
        return name, part.content if b"filename" in options or name == "input" else part.content.decode()
    except UnicodeDecodeError:
        raise RequestError("bad_form", f"the form's field {number} is not text in UTF-8") from None
