"""Versions whose network OpenVINO computes: served, predicted and exchanged like others."""

import base64
import gc
import json
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import joblib
import pytest
import tensorflow as tf

from imagepipe.base.errors import ModelError
from imagepipe.deploy import openvino_form
from imagepipe.deploy.openvino_form import FOLDER, FORM, NETWORK, OpenVinoNetwork, read_form, write_form
from imagepipe.deploy.saved_model import GRAPH
from imagepipe.serving import batch, engine, openvino_model, streams, threads
from imagepipe.serving.batch import predict_source
from imagepipe.serving.loaded_model import LoadedModel
from imagepipe.serving.openvino_model import OpenVinoModel
from imagepipe.serving.predictor import load
from imagepipe.serving.streams import ALL_CPUS
from imagepipe.serving.types import Failure, Request, RequestError
from imagepipe.serving.workers import CPUS
from tests.serving.conftest import FORM_NOVELTY, look_twice
from tests.serving.test_server import gray


@pytest.fixture(autouse=True)
def measured_quickly(monkeypatch):
    monkeypatch.setattr(openvino_model, "choose_streams", lambda form, size: 1)


def test_a_predictor_asks_openvino_where_the_version_has_a_form_for_it(two_forms):
    predictor = load(two_forms)
    answers = predictor.predict([gray(10), b"no image", *[gray(250)] * 20])
    dark, failed, *light = answers
    assert isinstance(failed, Failure)
    assert [answer.label for answer in (dark, *light)] == ["dark"] + ["light"] * 20
    assert {answer.novelty for answer in light} == {FORM_NOVELTY}
    (expected,) = LoadedModel(two_forms).predict([Request("", gray(250))])
    assert light[0].classes == pytest.approx(expected.classes, abs=1e-6)
    assert predictor.model.engine == "OpenVINO, int8, batches at once: 1"


def test_a_batch_prediction_computes_as_many_batches_at_once_as_is_best_here(two_forms, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_model, "choose_streams", lambda form, size: 2)
    both_compute = threading.Barrier(2, timeout=60)
    open_request = OpenVinoNetwork.open_request

    def open_watched(network):
        compute = open_request(network)

        def compute_with_another(inputs):
            both_compute.wait()
            return compute(inputs)

        return compute_with_another

    monkeypatch.setattr(OpenVinoNetwork, "open_request", open_watched)
    monkeypatch.setattr(batch, "_TOO_FEW_TO_MEASURE", 32)
    for number in range(32):
        (tmp_path / f"{number:02}.png").write_bytes(gray(10 if number % 3 else 250))
    result = predict_source(two_forms, str(tmp_path), tmp_path / "out")
    assert (result.predicted, both_compute.broken) == (32, False)
    rows = [json.loads(line) for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert [row["label"] == "light" for row in rows] == [number % 3 == 0 for number in range(32)]


@pytest.mark.parametrize("source", ["photos", "photos.jsonl"])
def test_a_batch_prediction_of_few_images_does_not_wait_for_a_measurement(two_forms, tmp_path, monkeypatch, source):
    """Of a file of requests nobody knows how many images it has."""
    measured = []
    monkeypatch.setattr(openvino_model, "choose_streams", lambda form, size: measured.append(form) or 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(gray(10))
    content = base64.b64encode(gray(10)).decode()
    (tmp_path / "photos.jsonl").write_text(json.dumps({"input": {"b64": content}, "metadata": "1"}))
    assert predict_source(two_forms, str(tmp_path / source), tmp_path / "out").predicted == 1
    assert len(measured) == (1 if source == "photos.jsonl" else 0)


def test_how_many_batches_are_computed_at_once_is_measured_and_one_where_that_fails(two_forms, tmp_path):
    form = two_forms / FOLDER
    assert streams.choose_streams(form, 2) in [1 << n for n in range(joblib.cpu_count().bit_length())]
    assert streams.choose_streams(tmp_path, 2) == 1


def test_the_network_of_the_savedmodel_is_not_loaded_and_its_signatures_are_described(two_forms, model):
    loaded = OpenVinoModel(two_forms)
    assert loaded.signatures == LoadedModel(model).signatures
    assert not hasattr(loaded.loaded, "answer")


@pytest.mark.parametrize("damaged", [b"", b"\xff" * 100, b"\x12\x04\x2a\x02\xff\xff"])
def test_a_damaged_savedmodel_is_refused_in_words_though_openvino_computes_its_network(two_forms, tmp_path, damaged):
    copy = tmp_path / "model"
    shutil.copytree(two_forms, copy)
    (copy / GRAPH).write_bytes(damaged)
    with pytest.raises(ModelError, match="can't be loaded as a model of this pipeline"):
        load(copy)


def test_callers_at_the_same_time_share_batches_and_each_gets_its_own_answers(two_forms):
    sizes: list[int] = []
    served = engine.ServedModel(two_forms, "brightness", sizes.append).engine
    sizes.clear()

    def ask(number: int) -> list[str]:
        values = [10 if (number + place) % 3 else 250 for place in range(1 + number % 20)]
        answers = served.ask([Request(str(value), gray(value)) for value in values])
        assert [label == "dark" for label in answers.labels] == [value == 10 for value in values]
        return answers.labels

    with ThreadPoolExecutor(16) as pool:
        count = sum(len(labels) for labels in pool.map(ask, range(100)))
    assert sum(sizes) == count
    assert set(sizes) <= {1, 2, 4, 8}  # of each other size OpenVINO would keep some 10 MB of InceptionV3


def test_a_broken_image_is_named_by_its_number_in_the_request_though_threads_share_them(two_forms):
    served = engine.ServedModel(two_forms, "brightness", lambda size: None).engine
    no_tables = gray(250, "JPEG").replace(b"\xff\xdb", b"\xff\xfe")  # which turns them into comments
    broken, sound = Request("x", no_tables), Request("x", gray(10))
    assert served.check([broken])[0].image == no_tables  # so that TensorFlow is the first to notice
    for place in (0, 7, 8, 30):
        with pytest.raises(RequestError, match=f"instance {place}: "):
            served.ask([sound] * place + [broken] + [sound] * (30 - place))


def test_common_images_are_answered_while_all_threads_decode_large_ones(two_forms, monkeypatch):
    monkeypatch.setattr(engine, "LARGE_PIXELS", 1000)
    served = engine.ServedModel(two_forms, "brightness", lambda size: None).engine
    preprocess, released = served.model.preprocess, threading.Event()

    def preprocess_slowly(requests):
        assert requests[0].id != "large" or released.wait(30)
        return preprocess(requests)

    monkeypatch.setattr(served.model, "preprocess", preprocess_slowly)
    with ThreadPoolExecutor(2 * joblib.cpu_count()) as pool:
        large = [pool.submit(served.answer, [Request("large", gray(10))], 1001) for _ in range(joblib.cpu_count())]
        try:
            assert served.answer([Request("common", gray(250))], 1000).labels == ["light"]
        finally:
            released.set()
        assert [future.result(30).labels for future in large] == [["dark"]] * joblib.cpu_count()


def test_a_caller_who_is_alone_gets_all_cpus_and_several_get_a_stream_each(two_forms, monkeypatch):
    monkeypatch.setattr(openvino_model, "choose_streams", lambda form, size: 2)
    computed: list[tuple[OpenVinoNetwork, int]] = []
    open_request = OpenVinoNetwork.open_request

    def open_watched(network):
        compute = open_request(network)

        def compute_watched(inputs):
            computed.append((network, len(inputs["image"])))
            return compute(inputs)

        return compute_watched

    monkeypatch.setattr(OpenVinoNetwork, "open_request", open_watched)
    served = engine.ServedModel(two_forms, "brightness", lambda size: None).engine

    def ask(count: int, is_alone: bool) -> list[tuple[bool, int]]:
        computed.clear()
        checked = served.check([Request("x", gray(250))] * count)
        assert served.answer(checked, 1, is_alone).labels == ["light"] * count
        return sorted((network is served.model._network, size) for network, size in computed)

    assert ask(1, is_alone=True) == [(False, 1)]
    assert ask(1, is_alone=False) == [(True, 1)]
    assert ask(7, is_alone=True) == [(True, 1), (True, 2), (True, 4)]  # the streams share them


def test_a_caller_who_is_alone_with_a_worker_gets_the_cpus_of_all_workers(two_forms, monkeypatch):
    threads = []
    compile_network = openvino_form.compile_network

    def compile_watched(network, precision, options):
        threads.append(options["INFERENCE_NUM_THREADS"])
        return compile_network(network, precision, options)

    monkeypatch.setattr(openvino_form, "compile_network", compile_watched)
    monkeypatch.setenv(CPUS, "1")
    OpenVinoModel(two_forms, load="callers")
    monkeypatch.setenv(ALL_CPUS, "2")
    model = OpenVinoModel(two_forms, load="callers")
    assert threads == ["1", "1", "2"]
    inputs = model.preprocess([Request("", gray(250))])
    assert model.answer_alone(inputs)["label"] == model.answer(inputs)["label"] == [b"light"]


def test_versions_of_both_engines_take_over_from_each_other_and_no_answer_is_lost(two_forms, model, tmp_path):
    folder = tmp_path / "brightness"
    folder.mkdir()
    (folder / "1").symlink_to(model)
    served = engine.ServedModel(folder, "brightness", lambda size: None)
    ended = threading.Event()

    def ask_until_the_end() -> set[float]:
        novelties = set()
        while not ended.is_set():
            answers = served.engine.ask([Request("x", gray(250))] * 3)
            assert answers.labels == ["light"] * 3
            novelties |= set(answers.novelty.tolist())
        return novelties

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask_until_the_end) for _ in range(4)]
        try:
            for version, target in (("2", two_forms), ("3", model)):
                (folder / version).symlink_to(target)
                look_twice(served)
                assert served.engine.version == version
                time.sleep(0.1)
        finally:
            ended.set()
        assert all(FORM_NOVELTY in future.result(60) and len(future.result()) == 2 for future in asked)


def test_a_signal_is_handled_after_a_version_was_replaced():
    program = """
import gc, signal, threading, openvino
from openvino import opset13
from imagepipe.deploy.openvino_form import compile_network
pixels = opset13.parameter([1, 4])
network = openvino.Model([opset13.relu(pixels)], [pixels])
live = [compile_network(network, "float32")]
def follow():
    live[:] = [compile_network(network, "float32")]
    gc.collect()
thread = threading.Thread(target=follow)
thread.start()
thread.join()
signal.signal(signal.SIGTERM, lambda *_: print("finishes what it has"))
signal.raise_signal(signal.SIGTERM)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)  # noqa: S603
    assert (ended.returncode, ended.stdout) == (0, "finishes what it has\n"), ended.stderr


@pytest.mark.parametrize("is_folder_of_versions", [True, False])
def test_a_live_version_is_loaded_again_when_its_form_is_complete(two_forms, model, tmp_path, is_folder_of_versions):
    """One file comes after the other, each with a pause: first the SavedModel, then a form whose weights are cut."""
    version = tmp_path / "brightness" / "8"
    shutil.copytree(model, version)
    served = engine.ServedModel(version.parent if is_folder_of_versions else version, "brightness", lambda size: None)
    look_twice(served)
    first = served.engine
    assert (first.version, first.model.engine) == ("8", "TensorFlow")

    shutil.copytree(two_forms / FOLDER, version / FOLDER)
    weights = (version / FOLDER / NETWORK).with_suffix(".bin")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    look_twice(served)
    assert (served.engine.version, "are damaged" in served.engine.model.note) == ("8", True)
    second = served.engine
    look_twice(served)
    assert served.engine is second  # as its files are the same

    weights.write_bytes(content)
    served.refresh()
    assert served.engine is second
    served.refresh()
    assert served.engine.model.engine.startswith("OpenVINO")
    assert served.engine.ask([Request("x", gray(250))]).novelty == [FORM_NOVELTY]


def test_the_live_version_stays_if_what_came_later_cant_be_loaded(two_forms, model, tmp_path, monkeypatch, caplog):
    version = tmp_path / "brightness" / "8"
    shutil.copytree(model, version)
    (version.parent / "7").symlink_to(model)
    served = engine.ServedModel(version.parent, "brightness", lambda size: None)
    live = served.engine
    monkeypatch.setattr(engine, "load_served", lambda *arguments: 1 / 0)
    shutil.copytree(two_forms / FOLDER, version / FOLDER)
    for _ in range(3):
        look_twice(served)
        assert served.engine is live
    assert caplog.text.count("version 8 is refused") == 1


def test_threads_of_a_version_end_with_it(two_forms):
    def count() -> int:
        return sum(thread.name == "batches" for thread in threading.enumerate())

    others = count()
    served = engine.Engine(two_forms, "brightness", "7", lambda size: None)
    assert count() > others
    del served
    gc.collect()
    deadline = time.monotonic() + 60
    while count() > others:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("what", ["missing", "damaged", "changed", "without VNNI", "with VNNI"])
def test_where_openvino_does_not_work_tensorflow_answers_and_that_is_said(two_forms, what, monkeypatch, tmp_path):
    folder = tmp_path / "7"
    shutil.copytree(two_forms, folder)
    form = folder / FOLDER
    if what == "missing":
        monkeypatch.setitem(sys.modules, "openvino", None)
        reason = "imagepipe-tfx[openvino]"
    elif what == "damaged":
        (form / NETWORK).write_bytes(b"<net>")
        write_form(form, read_form(form))
        reason = "can't be loaded by OpenVINO"
    elif what == "changed":
        (form / NETWORK).write_bytes((form / NETWORK).read_bytes().replace(b"Subtract", b"Multiply"))
        OpenVinoNetwork(pack_as_before(form, tmp_path / "before"))  # it parses
        reason = "network.xml is damaged: the bytes are not those that were written, see sha256_xml in form.json"
    else:
        was_exact = what == "without VNNI"
        write_form(form, read_form(form) | {"exact_int8": was_exact})
        monkeypatch.setattr(openvino_form, "has_exact_int8", lambda: not was_exact)
        reason = f"int8 was accepted on a processor {'with' if was_exact else 'without'} VNNI, and {what}, as here, "
    if what not in ("damaged", "changed"):
        load_graph = tf.saved_model.load
        monkeypatch.setattr(tf.saved_model, "load", lambda path: load_graph(path) if path != str(form) else 1 / 0)
    predictor = load(folder)
    (answer,) = predictor.predict([gray(250)])
    assert (answer.label, answer.novelty != FORM_NOVELTY) == ("light", True)
    assert predictor.model.engine == "TensorFlow"
    assert reason in predictor.model.note
    assert "TensorFlow computes the network instead." in predictor.model.note


@pytest.mark.parametrize("comes_later", [False, True])
def test_a_form_that_cant_be_used_here_is_loaded_once_and_its_files_are_not_looked_at_each_second(
    two_forms, model, tmp_path, monkeypatch, caplog, comes_later
):
    monkeypatch.setattr(openvino_form, "has_exact_int8", lambda: False)
    version = tmp_path / "brightness" / "8"
    shutil.copytree(two_forms, version)
    form = version / FOLDER
    write_form(form, read_form(form) | {"exact_int8": True})
    if comes_later:
        form.rename(tmp_path / "form")
    served = engine.ServedModel(version.parent, "brightness", lambda size: None)
    if comes_later:
        (tmp_path / "form").rename(form)
        look_twice(served)
    live = served.engine
    assert "on a processor with VNNI" in live.model.note
    assert caplog.text.count("on a processor with VNNI") == 1
    with monkeypatch.context() as patched:
        patched.setattr(engine, "describe_files", lambda folder: pytest.fail("its files were looked at"))
        look_twice(served)
    assert served.engine is live
    write_form(form, read_form(form) | {"exact_int8": False})
    look_twice(served)
    assert served.engine.model.engine.startswith("OpenVINO")


def test_where_a_form_cant_be_used_tensorflow_has_all_cpus(two_forms, tmp_path, monkeypatch):
    version = tmp_path / "8"
    shutil.copytree(two_forms, version)
    assert threads._is_for_openvino(version)
    write_form(version / FOLDER, read_form(version / FOLDER) | {"exact_int8": True})
    monkeypatch.setattr(openvino_form, "has_exact_int8", lambda: False)
    assert not threads._is_for_openvino(version)


def pack_as_before(form: Path, copy: Path) -> Path:
    """Returns a copy of a form as earlier versions wrote it."""
    shutil.copytree(form, copy)
    description = read_form(form)
    del description["sha256_xml"]
    (copy / FORM).write_text(json.dumps(description))
    return copy


@pytest.mark.parametrize("exact_int8", [True, False, None])
def test_int8_is_computed_where_the_processor_is_of_the_same_kind_or_nothing_is_written_about_it(
    two_forms, exact_int8, monkeypatch, tmp_path
):
    folder = tmp_path / "7"
    shutil.copytree(two_forms, folder)
    form = folder / FOLDER
    if exact_int8 is not None:
        write_form(form, read_form(form) | {"exact_int8": exact_int8})
    monkeypatch.setattr(openvino_form, "has_exact_int8", lambda: exact_int8 or False)
    assert load(folder).model.engine.startswith("OpenVINO, int8")
