"""Real images, and one run of Transform's analysis over them, shared by the tests of several folders."""

import gc
import io
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script, and so in each child
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Prints a failure when it happens: a run that is cut off before its summary has still said what failed."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} failed in {report.when}:\n{report.longreprtext}", flush=True)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error: object) -> None:
    """Prints how a process of pytest-xdist has died, which its own message leaves out: by which signal, if by one."""
    if error:
        status = node.gateway._io.popen.wait(10)  # negative for a signal, as subprocess has it
        print(f"\n{node.gateway.id} ended with status {status}", flush=True)


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """A photo of 640 by 427 pixels, in colour."""
    return Image.fromarray(load_sample_images().images[0])


def encode_image(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def break_quantization_table(jpeg: bytes) -> bytes:
    """Returns the JPEG with a sound header that names a missing quantization table: only decoders notice."""
    frame = jpeg.index(b"\xff\xc0")
    return jpeg[: frame + 12] + b"\3" + jpeg[frame + 13 :]


def make_digit_images(count: int) -> list[tuple[str, bytes]]:
    """The first ``count`` of scikit-learn's handwritten digits, as (label, PNG)."""
    digits = load_digits()
    return [
        (str(label), encode_image(Image.fromarray((pixels * (255 / 16)).astype(np.uint8)).resize((80, 80)), "PNG"))
        for pixels, label in zip(digits.images[:count], digits.target[:count], strict=True)
    ]


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with 400 digits."""
    folder = tmp_path_factory.mktemp("digits")
    for number, (label, png) in enumerate(make_digit_images(400)):
        (folder / label).mkdir(exist_ok=True)
        (folder / label / f"{number:04}.png").write_bytes(png)
    return folder


def list_summaries(runs_dir: Path) -> list:
    """The summaries of the runs in a folder, newest first; each has to be readable."""
    from pipeline.runs.summary import read_summaries

    summaries = [summary for _, summary in read_summaries(runs_dir)]
    assert None not in summaries
    return summaries


def make_example(image: bytes, label: str | None = None, metadata: str | None = None, **side: float | str):
    """A tf.train.Example of the data contract."""
    import tensorflow as tf

    example = tf.train.Example()
    feature = example.features.feature
    feature["input"].bytes_list.value.append(image)
    if label is not None:
        feature["label"].bytes_list.value.append(label.encode())
    if metadata is not None:
        feature["metadata"].bytes_list.value.append(metadata.encode())
    for name, value in side.items():
        if isinstance(value, str):
            feature[name].bytes_list.value.append(value.encode())
        else:
            feature[name].float_list.value.append(value)
    return example


SIZE = (32, 40)


def run_analysis(raw: list[dict], spec: dict, custom_config: dict, folder: Path):
    """Runs Transform's analysis of parsed Examples, and returns its output, which it writes into ``folder``."""
    import functools

    import apache_beam as beam
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam

    from transform.preprocessing import preprocessing_fn

    metadata = tft.DatasetMetadata.from_feature_spec(spec)
    with (
        beam.Pipeline("FnApiRunner") as pipeline,
        tft_beam.Context(temp_dir=str(folder / "tmp")),
    ):
        transform_fn = ((pipeline | beam.Create(raw)), metadata) | tft_beam.AnalyzeDataset(
            functools.partial(preprocessing_fn, custom_config=custom_config)
        )
        transform_fn | tft_beam.WriteTransformFn(str(folder))
        metadata | tft_beam.WriteMetadata(str(folder / "metadata"), pipeline=pipeline)
    return tft.TFTransformOutput(str(folder))


@pytest.fixture(scope="session")
def analyzed(tmp_path_factory: pytest.TempPathFactory):
    """Transform's output for digits with two side features, the features, and the serialized Examples.

    ``weight`` is missing in every third Example. Label "7" is the most frequent, "b" comes last in the alphabet.
    """
    import tensorflow as tf

    from imagepipe.base.features import Features

    features = Features(numeric=("weight",), categorical=("camera",))
    rows = []
    for i, (label, png) in enumerate(make_digit_images(48)):
        name = {"0": "b", "1": "10"}.get(label, "7")
        side = {"camera": "new" if i % 2 else "old"} | ({"weight": float(i)} if i % 3 else {})
        rows.append({"input": png, "label": name.encode(), "metadata": f"id-{i}"} | side)
    spec = {
        "input": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([], tf.string),
        "weight": tf.io.VarLenFeature(tf.float32),
        "camera": tf.io.FixedLenFeature([1], tf.string),
    }
    raw = [
        {
            "input": row["input"],
            "label": row["label"],
            "weight": [row["weight"]] if "weight" in row else [],
            "camera": [row["camera"].encode()],
        }
        for row in rows
    ]
    custom = {"task": "classification", "features": asdict(features), "image_size": list(SIZE)}
    output = run_analysis(raw, spec, custom, tmp_path_factory.mktemp("transform"))
    serialized = [
        make_example(
            row["input"],
            row["label"].decode(),
            row["metadata"],
            **{name: row[name] for name in ("weight", "camera") if name in row},
        ).SerializeToString()
        for row in rows
    ]
    return output, features, serialized


def serialize_example(image: bytes, labels: list[str] | list[float]) -> bytes:
    """A serialized Example with any number of labels."""
    example = make_example(image)
    feature = example.features.feature["label"]
    if labels and isinstance(labels[0], float):
        feature.float_list.value.extend(labels)
    elif labels:
        feature.bytes_list.value.extend(label.encode() for label in labels)
    return example.SerializeToString()


@pytest.fixture(scope="session")
def analyzed_multilabel(tmp_path_factory: pytest.TempPathFactory):
    """Transform's output for digits with some of the labels a, b and c or none; and the serialized Examples."""
    import tensorflow as tf

    from imagepipe.base.features import Features

    labels = [["b", "a"], [], ["c"], ["b"], ["a", "b", "c"], ["b"]]
    pngs = [png for _, png in make_digit_images(len(labels))]
    spec = {"input": tf.io.FixedLenFeature([], tf.string), "label": tf.io.VarLenFeature(tf.string)}
    raw = [{"input": png, "label": [x.encode() for x in ls]} for png, ls in zip(pngs, labels, strict=True)]
    custom = {"task": "multilabel", "features": asdict(Features()), "image_size": list(SIZE)}
    output = run_analysis(raw, spec, custom, tmp_path_factory.mktemp("transform"))
    return output, [serialize_example(png, ls) for png, ls in zip(pngs, labels, strict=True)]


@pytest.fixture(scope="session")
def analyzed_regression(tmp_path_factory: pytest.TempPathFactory):
    """Transform's output for digits with numbers, one of them missing; and the serialized Examples."""
    import tensorflow as tf

    from imagepipe.base.features import Features

    values = [[0.5], [-3.0], [], [1e6]]
    pngs = [png for _, png in make_digit_images(len(values))]
    spec = {"input": tf.io.FixedLenFeature([], tf.string), "label": tf.io.VarLenFeature(tf.float32)}
    raw = [{"input": png, "label": value} for png, value in zip(pngs, values, strict=True)]
    custom = {"task": "regression", "features": asdict(Features()), "image_size": list(SIZE)}
    output = run_analysis(raw, spec, custom, tmp_path_factory.mktemp("transform"))
    return output, [serialize_example(png, value) for png, value in zip(pngs, values, strict=True)]


@pytest.fixture
def pattern(tmp_path: Path) -> str:
    """Pattern of two gzip'd TFRecord files with the numbers 0 to 29 and 30 to 59 as text."""
    import tensorflow as tf

    for shard in range(2):
        options = tf.io.TFRecordOptions(compression_type="GZIP")
        with tf.io.TFRecordWriter(str(tmp_path / f"{shard}.gz"), options) as writer:
            for number in range(shard * 30, shard * 30 + 30):
                writer.write(str(number).encode())
    return str(tmp_path / "*.gz")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; the test is skipped if there is none."""
    from tests.browser import launch_browser  # here, so that other tests do without Playwright

    with launch_browser() as browser:
        yield browser


@pytest.fixture
def frozen_garbage() -> Iterator[None]:
    """Keeps Python's garbage collector from looking at other tests' objects while CPU time is measured."""
    gc.freeze()
    yield
    gc.unfreeze()
