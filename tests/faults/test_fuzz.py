"""A stranger's bytes: an answer or an error with a message, never anything else."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.targets import TARGETS


@st.composite
def damage(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Sound input with some bytes replaced, inserted, repeated or cut."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["replace", "insert", "repeat", "cut"])):
            case "replace":
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                data[at:at] = draw(st.one_of(st.binary(max_size=8), st.sampled_from(WORDS)))
            case "repeat":
                data[at:at] = data[at : at + 64] * draw(st.integers(1, 20))
            case "cut":
                del data[at : at + 4 * length]
    return bytes(data)


@st.composite
def replace_node(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Sound JSON with one value replaced by another, or by what no writer of JSON would write."""
    content = json.loads(draw(st.sampled_from(seeds)))
    node = content
    while True:
        key = draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key]) or draw(st.booleans()):
            node[key] = "@"
            return json.dumps(content).encode().replace(b'"@"', draw(st.sampled_from(VALUES)))
        node = node[key]


def is_json(seed: bytes) -> bool:
    try:
        return isinstance(json.loads(seed), dict)
    except ValueError:
        return False


VALUES = [b"null", b"true", b"0", b"-1", b"1e999", b"NaN", b'""', b'".."', b'"\\ud800"', b"[]", b"{}", b"[[1]]"]
VALUES += [
    '"ȹ"'.encode(),
    b'"\\u0000"',
    b"9" * 400,
    b"9" * 5000,
    b"[" * 2000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"": null}',
    b'["a", 1, null]',
]

# What parsers stumble over.
WORDS = [b"\xff\xff\xff\xff", b"\0" * 8, b"-1", b"1e999", b"NaN", b"null", b"[" * 2000, b"{", b'"', b"\\ud800"]
WORDS += [b"\xff\xd8", b"IDAT", b"9" * 5000, b"true", "\u2028".encode(), b"\r", b",", b"\xed\xa0\x80"]


@pytest.mark.parametrize("examples", [60, pytest.param(5000, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", TARGETS)
def test_damaged_bytes_are_read_or_refused_with_a_message(name, examples):
    target = TARGETS[name]
    structured = [replace_node(target.seeds)] if all(map(is_json, target.seeds)) else []

    # The same examples each time in the gate, others in each long run.
    @settings(
        max_examples=examples,
        derandomize=examples < 1000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(damage(target.seeds), st.binary(max_size=200), *structured))
    def read(data: bytes) -> None:
        try:
            target.read(data)
        except target.errors as error:
            assert str(error).strip()  # noqa: PT017 (any of many inputs may raise it)

    read()


@pytest.mark.parametrize("name", TARGETS)
def test_sound_bytes_are_read(name):
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed)


# Input that fuzzing came upon, of which something else than an error with a message came.
ONCE_FATAL = [
    ("rest", '{"instances": [{"input": {"b64": "aGVsbGȹ"}}]}'.encode()),
    ("v2", '{"inputs": [{"name": "input", "datatype": "BYTES", "shape": [1], "data": ["ȹ"]}]}'.encode()),
    ("dataset.json", b"[" * 100_000),
    ("dataset.json", b'{"options": ' + b"[" * 100_000),
]


@pytest.mark.parametrize(("name", "data"), ONCE_FATAL)
def test_bytes_that_were_fatal_once_are_refused(name, data):
    with pytest.raises(TARGETS[name].errors, match=r"\w"):
        TARGETS[name].read(data)
