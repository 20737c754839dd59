"""Data sets in the forms in which people have them, each from the source to a prediction of the pushed model."""

import io
import json
import tarfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import yaml
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.runs.summary import Summary
from tests.conftest import make_digit_images
from tests.e2e.test_tasks import QUICK

pytestmark = pytest.mark.slow

NAMES = ("zero", "one", "two")
Labelled = list[tuple[int, bytes]]  # class and PNG
Parts = dict[str, Labelled]  # by split


def command(*arguments: str | Path):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def make_parts() -> Parts:
    digits = [(int(label), png) for label, png in make_digit_images(1000) if int(label) < len(NAMES)]
    return {"train": digits[:200], "validation": digits[200:250], "test": digits[250:]}


def write_folders(root: Path, parts: Parts) -> Path:
    """The layout of torchvision's ImageFolder, without a test split."""
    for part, folder in {"train": "train", "validation": "val"}.items():
        for number, (label, png) in enumerate(parts[part]):
            path = root / "folders" / folder / NAMES[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png)
    return root / "folders"


def write_hugging_face(root: Path, parts: Parts) -> Path:
    """What ``datasets`` writes: an image is a struct, a label is a number that the schema's metadata names."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(NAMES), "_type": "ClassLabel"}}
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema(
        {"image": image, "label": pa.int64()}, {"huggingface": json.dumps({"info": {"features": features}})}
    )
    folder = root / "hub" / "data"
    folder.mkdir(parents=True)
    for part, images in parts.items():
        rows = [{"image": {"bytes": png, "path": f"{i}.png"}, "label": label} for i, (label, png) in enumerate(images)]
        pq.write_table(pa.Table.from_pylist(rows, schema), folder / f"{part}-00000-of-00001.parquet")
    return root / "hub"


def write_webdataset(root: Path, parts: Parts) -> Path:
    with tarfile.open(root / "digits-000000.tar", "w") as tar:
        for number, (label, png) in enumerate(chain.from_iterable(parts.values())):
            for suffix, content in (("png", png), ("cls", NAMES[label].encode())):
                member = tarfile.TarInfo(f"{number:06}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return root / "digits-000000.tar"


def write_label_studio(root: Path, parts: Parts) -> Path:
    tasks = []
    for number, (label, png) in enumerate(chain.from_iterable(parts.values())):
        (root / f"{number}.png").write_bytes(png)
        result = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [NAMES[label]]}}
        annotation = {"id": number, "was_cancelled": False, "result": [result]}
        tasks.append({"id": number, "data": {"image": f"{number}.png"}, "annotations": [annotation]})
    (root / "export.json").write_text(json.dumps(tasks))
    return root / "export.json"


INGESTED: dict[str, Callable[[Path, Parts], Path]] = {
    "folders": write_folders,
    "hugging face": write_hugging_face,
    "webdataset": write_webdataset,
    "label studio": write_label_studio,
}


def check_run(root: Path, digit: Labelled) -> Summary:
    """Runs the pipeline, and asks the pushed model about an image."""
    sets = [argument for override in [*QUICK, "evaluation.thresholds={}"] for argument in ("--set", override)]
    result = command("run", root / "pipeline.yaml", *sets, "--json")
    summary = Summary.model_validate_json(result.stdout)
    assert (result.exit_code, summary.pushed_version is not None) == (0, True), result.stderr
    (root / "new.png").write_bytes(digit[0][1])
    answer = command("predict", summary.serving_dir, root / "new.png", "--json")
    assert json.loads(answer.stdout)["label"] in NAMES
    assert sorted(summary.metrics_by_class) == sorted(NAMES)
    return summary


@pytest.mark.parametrize("form", INGESTED)
def test_from_the_source_to_a_prediction(tmp_path, form):
    parts = make_parts()
    (tmp_path / "source").mkdir()
    source, root = INGESTED[form](tmp_path / "source", parts), tmp_path / "project"
    ingested = command("ingest", source, "--out", root / "dataset")
    assert ingested.exit_code == 0, ingested.stderr
    assert command("init", root / "dataset").exit_code == 0
    summary = check_run(root, parts["test"])
    if form in ("folders", "hugging face"):  # whose splits are given
        assert summary.metrics["example_count"] == len(parts["validation"])


def test_from_records_made_elsewhere_to_a_prediction(tmp_path):
    parts, folder = make_parts(), tmp_path / "records"
    folder.mkdir()
    for part, images in parts.items():
        with tf.io.TFRecordWriter(str(folder / f"{part}-00000-of-00001")) as writer:
            for label, png in images:
                example = tf.train.Example()
                example.features.feature["image/encoded"].bytes_list.value.append(png)
                example.features.feature["image/class/label"].int64_list.value.append(1 + label)
                writer.write(example.SerializeToString())
    (folder / "_SUCCESS").touch()
    (tmp_path / "names.txt").write_text("".join(f"{1 + number}:{name}\n" for number, name in enumerate(NAMES)))
    features = {"input": "image/encoded", "label": "image/class/label", "label_map": "names.txt"}
    config = {"name": "digits", "data": {"path": "records", "features": features}}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(config))
    summary = check_run(tmp_path, parts["test"])
    assert summary.metrics["example_count"] == len(parts["validation"])
