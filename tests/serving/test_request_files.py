"""Files of requests: each format is read back as it was written, and an error fails only its own line."""

import gzip
import json
import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from imagepipe.base import tfrecord
from imagepipe.base.errors import ModelError
from imagepipe.base.features import Features
from imagepipe.serving import request_files
from imagepipe.serving.inputs import normalize_images, read_images
from imagepipe.serving.instances import encode_instance, parse_instance
from imagepipe.serving.request_files import SUFFIXES, is_request_file, parse_example, read_requests, write_requests
from imagepipe.serving.types import Failure, Request, RequestError
from tests.conftest import encode_image

PNG = encode_image(Image.new("RGB", (4, 4)), "PNG")
JPEG = encode_image(Image.new("RGB", (8, 8), (200, 0, 0)))
REQUESTS = [
    Request("é 1", PNG, {"weight": 1.5, "camera": "neu"}),
    Request("2", JPEG, {"weight": -3.0, "camera": "alt"}),
]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_what_was_written_is_read_back(tmp_path, kind):
    path = tmp_path / f"asked{SUFFIXES[kind]}"
    assert write_requests(iter(REQUESTS), path, kind) == 2
    assert is_request_file(path)
    assert list(read_requests(path)) == REQUESTS
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_the_same_requests_give_the_same_bytes(tmp_path, kind):
    paths = [tmp_path / f"{name}{SUFFIXES[kind]}" for name in "ab"]
    for path in paths:
        write_requests(REQUESTS, path, kind)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_missing_number_is_still_missing_when_it_is_read_back(tmp_path, kind):
    path = tmp_path / f"x{SUFFIXES[kind]}"
    write_requests([Request("1", PNG, {"weight": None}), Request("2", PNG, {"weight": 1.5})], path, kind)
    assert list(read_requests(path)) == [Request("1", PNG, {"weight": None}), Request("2", PNG, {"weight": 1.5})]


def test_arrays_whose_images_have_other_features_are_refused_by_name(tmp_path):
    with pytest.raises(ModelError, match="2 has no 'weight', which others have"):
        write_requests([Request("1", PNG, {"weight": 1}), Request("2", PNG)], tmp_path / "x.npz", "npy")


def test_json_lines_are_instances_of_the_rest_api(tmp_path):
    write_requests(REQUESTS[:1], tmp_path / "x.jsonl", "jsonl")
    (line,) = (tmp_path / "x.jsonl").read_text().splitlines()
    instance = json.loads(line)
    assert set(instance) == {"input", "metadata", "weight", "camera"}
    assert tf.io.decode_base64(instance["input"]["b64"].replace("+", "-").replace("/", "_")).numpy() == PNG


def test_arrays_are_read_by_numpy_without_pickle(tmp_path):
    write_requests(REQUESTS, tmp_path / "x.npz", "npy")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["input"].tolist() == [PNG, JPEG]
        assert arrays["weight"].tolist() == [1.5, -3.0]


def test_records_are_read_by_tensorflow(tmp_path):
    write_requests(REQUESTS, tmp_path / "x.tfrecord.gz", "tfrecord")
    records = tf.data.TFRecordDataset(str(tmp_path / "x.tfrecord.gz"), compression_type="GZIP")
    images = [tf.train.Example.FromString(x.numpy()).features.feature["input"].bytes_list.value[0] for x in records]
    assert images == [PNG, JPEG]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, kind):
    path = tmp_path / f"x{SUFFIXES[kind]}"
    path.write_bytes(b"old")

    def killed():
        yield REQUESTS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_requests(killed(), path, kind)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_file_with_the_suffix_of_another_format_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"has to end with \.npz"):
        write_requests(REQUESTS, tmp_path / "x.jsonl", "npy")
    with pytest.raises(ModelError, match="expected a file"):
        list(read_requests(tmp_path / "x.csv"))


B64 = {"b64": "AAAA"}


@pytest.mark.parametrize(
    ("instance", "reason"),
    [
        ([1], "expected an object"),
        ({}, "'input' is missing"),
        ({"input": "AAAA"}, "has to be an object"),
        ({"input": {"b64": 5}}, "has to be an object"),
        ({"input": {"b64": "AAAAA"}}, "not valid base64"),
        ({"input": {"b64": "é"}}, "not valid base64"),
        ({"input": B64, "metadata": 3}, "'metadata' has to be a string"),
        ({"input": B64, "weight": [1]}, "'weight' has to be a number"),
        ({"input": B64, "weight": True}, "'weight' has to be a number"),
        ({"input": B64, "weight": float("nan")}, "'weight' has to be a number"),
        ({"input": B64, "weight": 10**400}, "'weight' has to be a number"),
    ],
)
def test_a_bad_instance_is_refused_with_the_reason(instance, reason):
    with pytest.raises(RequestError, match=reason):
        parse_instance(instance)


def test_blank_lines_are_no_requests(tmp_path):
    good = json.dumps(encode_instance(REQUESTS[0]))
    (tmp_path / "x.jsonl").write_text(f"\n{good}\n  \nno json\n\n")
    first, second = read_requests(tmp_path / "x.jsonl")
    assert first == REQUESTS[0]
    assert second.id == f"{tmp_path}/x.jsonl:4"


def test_a_bad_line_fails_alone_and_says_which(tmp_path):
    good = json.dumps(encode_instance(REQUESTS[0]))
    nested = "[" * 100_000
    (tmp_path / "x.jsonl").write_text(f"{good}\nno json\n{{}}\n{nested}\n" + '{"input": {"b64": "AAAA"}}\n')
    first, second, third, fourth, fifth = read_requests(tmp_path / "x.jsonl")
    assert first == REQUESTS[0]
    assert isinstance(second, Failure)
    assert second.id == f"{tmp_path}/x.jsonl:2"
    assert second.error.startswith("not JSON")
    assert third == Failure(f"{tmp_path}/x.jsonl:3", "'input' is missing")
    assert isinstance(fourth, Failure)
    assert fifth == Request(f"{tmp_path}/x.jsonl:5", b"\0\0\0")


def test_a_line_too_long_ends_the_file_with_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(request_files, "MAX_LINE_BYTES", 1000)
    (tmp_path / "x.jsonl").write_text("{}\n" + "x" * 2000 + "\n{}\n")
    assert [failure.error for failure in read_requests(tmp_path / "x.jsonl")] == [
        "'input' is missing",
        "the rest can't be read: line 2 is longer than 1,000 bytes",
    ]


def test_requests_before_damage_are_read(tmp_path):
    path = tmp_path / "x.tfrecord"
    record = tfrecord.frame_record(tfrecord.encode_example({"input": [PNG], "metadata": [b"1"], "label": [b"cat"]}))
    noise, labelless = (
        tfrecord.frame_record(b"noise"),
        tfrecord.frame_record(tfrecord.encode_example({"label": [b"cat"]})),
    )
    path.write_bytes(record + noise + labelless + record[:-1])
    first, *failures = read_requests(path)
    assert first == Request("1", PNG)
    assert [failure.error for failure in failures] == [
        "not a tf.train.Example",
        "the Example has no bytes feature 'input'",
        "the rest can't be read: damaged TFRecord file: the checksum of a record is wrong",
    ]
    (tmp_path / "y.tfrecord.gz").write_bytes(b"not gzip")
    (failure,) = read_requests(tmp_path / "y.tfrecord.gz")
    assert "not a gzip" in failure.error.lower()


@pytest.mark.parametrize("kind", ["npy", "tfrecord"])
def test_damage_anywhere_in_a_file_is_a_failure_and_no_exception(tmp_path, kind):
    path = tmp_path / f"x{SUFFIXES[kind]}"
    write_requests([Request(str(n), bytes(3000), {"weight": float(n)}) for n in range(20)], path, kind)
    whole = path.read_bytes()
    failed = 0
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        failed += any(isinstance(request, Failure) for request in read_requests(path))
    assert failed > 50


def test_a_file_without_a_request_is_a_failure(tmp_path):
    for name in ("x.jsonl", "x.tfrecord", "x.tfrecord.gz"):
        (tmp_path / name).touch()
    (tmp_path / "blank.ndjson").write_text("\n \n")
    (tmp_path / "zipped.tfrecord.gz").write_bytes(gzip.compress(b""))
    np.savez(tmp_path / "x.npz", input=np.array([], "S1"))
    for path in tmp_path.iterdir():
        assert list(read_requests(path)) == [Failure(str(path), "no request in it")]


def test_what_is_packed_is_named_once(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(json.dumps(encode_instance(REQUESTS[0])).encode() * 9))
    (failure,) = read_requests(tmp_path / "x.jsonl")
    assert failure == Failure(f"{tmp_path}/x.jsonl", "the rest can't be read: it is packed by gzip; unpack it first")


def test_a_key_that_is_there_twice_is_refused_by_name(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"input": {"b64": "AAAA"}, "weight": 1, "weight": 2}\n{"input": {"b64": "AAAA", "b64": "BBBB"}}\n'
    )
    assert [failure.error for failure in read_requests(tmp_path / "x.jsonl")] == [
        "not JSON: the key 'weight' is there twice",
        "not JSON: the key 'b64' is there twice",
    ]


def test_an_example_with_several_values_of_a_feature_is_refused_by_name(tmp_path):
    good = {"input": [PNG], "metadata": [b"1"], "weight": [1.5], "label": [b"a", b"b"]}
    examples = [
        good,
        *(good | more for more in ({"input": [PNG, JPEG]}, {"metadata": [b"1", b"2"]}, {"weight": [1, 2, 3]})),
    ]
    records = [tfrecord.encode_example(example) for example in examples]
    (tmp_path / "x.tfrecord").write_bytes(b"".join(map(tfrecord.frame_record, records)))
    first, *failures = read_requests(tmp_path / "x.tfrecord")
    assert first == Request("1", PNG, {"weight": 1.5})
    assert [failure.error for failure in failures] == [
        "the Example's feature 'input' has 2 values, and one is taken",
        "the Example's feature 'metadata' has 2 values, and one is taken",
        "the Example's feature 'weight' has 3 values, and one is taken",
    ]
    assert parse_example(records[3], "x", Features(), ()) == Request("1", PNG)


def test_ids_that_are_numbers_are_written_as_whole_ones(tmp_path):
    np.savez(tmp_path / "x.npz", input=[b"a"] * 2, metadata=[0, np.nan])
    assert [request.id for request in read_requests(tmp_path / "x.npz")] == ["0", f"{tmp_path}/x.npz:1"]


def test_ids_and_values_that_no_batch_could_hold_fail_alone(tmp_path):
    np.savez(tmp_path / "x.npz", input=[b"a"] * 3, weight=[1.0, float("inf"), 2.0])
    first, second, third = read_requests(tmp_path / "x.npz")
    assert isinstance(first, Request)
    assert isinstance(third, Request)
    assert second == Failure(f"{tmp_path}/x.npz:1", "'weight' has to be a number (of 64 bits) or a string")
    np.savez(tmp_path / "x.npz", input=[b"a"], weight=[True])
    assert [failure.error for failure in read_requests(tmp_path / "x.npz")] == [second.error]
    name = tmp_path / os.fsdecode(b"caf\xe9.png")
    name.write_bytes(PNG)
    (failure,) = read_images([name])
    assert failure.id == f"{tmp_path}/caf?.png"
    assert "is not valid text" in failure.error


def test_arrays_too_large_to_be_read_back_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(request_files, "MAX_ARRAYS_BYTES", 100)
    with pytest.raises(ModelError, match="write several files"):
        write_requests([Request("1", b"x" * 60), Request("2", b"x")], tmp_path / "x.npz", "npy")
    assert not list(tmp_path.iterdir())


def test_arrays_that_are_pickled_too_many_or_of_other_shapes_are_refused(tmp_path, monkeypatch):
    def failure(**arrays) -> str:
        np.savez_compressed(tmp_path / "x.npz", **arrays)
        (answer,) = read_requests(tmp_path / "x.npz")
        assert isinstance(answer, Failure)
        return answer.error

    assert "allow_pickle" in failure(input=np.array([b"x", None], object))
    assert "no array 'input'" in failure(images=np.array([b"x"]))
    assert "of one length" in failure(input=np.array([b"x"]), metadata=np.array(["1", "2"]))
    assert "of bytes" in failure(input=np.array([1.0]))
    monkeypatch.setattr(request_files, "MAX_ARRAYS_BYTES", 10_000)
    assert "at most 10,000 are read" in failure(input=np.zeros(20_000, "S1"))


def test_a_file_that_is_missing_or_no_archive_is_a_failure_of_its_own(tmp_path):
    assert list(read_requests(tmp_path / "x.npz")) == [Failure(f"{tmp_path}/x.npz", "No such file or directory")]
    (tmp_path / "x.npz").write_text("no archive")
    (failure,) = read_requests(tmp_path / "x.npz")
    assert "not a zip file" in failure.error


def test_images_that_can_not_be_decoded_fail_and_others_are_converted():
    webp = encode_image(Image.new("RGB", (4, 4)), "WEBP")
    earlier = Failure("0", "lost")
    asked = [earlier, Request("1", webp, {"weight": 1.0}), Request("2", b"text"), Request("3", JPEG)]
    failed, converted, bad, same = normalize_images(asked)
    assert failed == earlier
    assert isinstance(converted, Request)
    assert converted.side == {"weight": 1.0}
    assert tf.io.decode_image(converted.image).shape == (4, 4, 3)
    assert isinstance(bad, Failure)
    assert same == asked[3]
